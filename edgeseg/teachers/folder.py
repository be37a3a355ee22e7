"""Writing a network as an nnU-Net v2 model folder, which nnU-Net itself can read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeseg.errors import EdgesegError
from edgeseg.files import new_file, write_text


def write_model_folder(out: Path, network_state: Mapping[str, Any], dataset_json: dict[str, Any],
                       plans: dict[str, Any], configuration: str = "2d", fold: int = 0,
                       mirror_axes: tuple[int, ...] | None = (0, 1)) -> None:
    """Write `out`/plans.json, dataset.json and fold_`fold`/checkpoint_final.pth as nnUNetTrainer would.

    `network_state` is the state dict of nnunetv2's network for these plans (`plans.build_network`), with or without
    deep supervision. Further folds go into the same folder. Each file is written beside, then renamed.

    Raises:
        EdgesegError: `out` already holds another model (other plans or labels); nothing is changed then.
    """
    import torch

    for name, content in (("plans.json", plans), ("dataset.json", dataset_json)):
        path = out / name
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(content)):
            raise EdgesegError(f"{path}: belongs to another model: choose an empty folder")
    checkpoint = {
        "network_weights": {name: tensor.detach().cpu() for name, tensor in network_state.items()},
        "optimizer_state": None,
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": 0,
        "init_args": {"plans": plans, "configuration": configuration, "fold": fold, "dataset_json": dataset_json},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": mirror_axes,
    }
    write_text(out / "plans.json", json.dumps(plans, indent=4))
    write_text(out / "dataset.json", json.dumps(dataset_json, indent=4))
    with new_file(out / f"fold_{fold}" / "checkpoint_final.pth") as part:
        torch.save(checkpoint, part)


def make_dataset_json(labels: dict[str, Any], channels: Sequence[str], cases: int = 0,
                      regions_class_order: Sequence[int] | None = None) -> dict[str, Any]:
    """dataset.json: `labels` name -> value (or list of values for a region), background 0; one name a channel."""
    content = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    if regions_class_order is not None:
        content["regions_class_order"] = list(regions_class_order)
    return content


def make_plans(dataset_name: str, features: Sequence[int], patch_size: Sequence[int], spacing: Sequence[float],
               normalisation: Sequence[str] = ("ZScoreNormalization",), batch_size: int = 8,
               intensities: dict[str, dict[str, float]] | None = None) -> dict[str, Any]:
    """plans.json for a PlainConvUNet as nnU-Net plans it (two convolutions a stage, stride 2 between stages).

    Args:
        dataset_name: nnU-Net's `DatasetXXX_NAME`.
        features: channels of each stage, highest resolution first; the patch is divided by 2^(len - 1).
        patch_size, spacing: two numbers (pixels; mm) for configuration "2d", three for "3d_fullres".
        normalisation: nnU-Net's scheme of each channel.
        intensities: per channel "0", "1", ...: mean, std, percentile_00_5, percentile_99_5 (CTNormalization).
    """
    dim, stages = len(patch_size), len(features)
    if any(size % 2 ** (stages - 1) for size in patch_size):
        raise EdgesegError(f"a patch of {tuple(patch_size)} cannot be halved {stages - 1} times")
    configuration = {
        "data_identifier": f"nnUNetPlans_{dim}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size,
        "patch_size": [int(size) for size in patch_size],
        "median_image_size_in_voxels": [float(size) for size in patch_size],
        "spacing": [float(mm) for mm in spacing],
        "normalization_schemes": list(normalisation),
        "use_mask_for_norm": [False] * len(normalisation),
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
        # nnU-Net's defaults: cubic for images, linear for labels and probabilities, nearest across thick slices
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "batch_dice": dim == 2,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": [int(width) for width in features],
                "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
                "kernel_sizes": [[3] * dim] * stages,
                "strides": [[1] * dim] + [[2] * dim] * (stages - 1),
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": dataset_name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [float(mm) for mm in (max(spacing), *spacing)[-3:]],
        "original_median_shape_after_transp": [int(size) for size in (1, *patch_size)[-3:]],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d" if dim == 2 else "3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        # nnU-Net looks every channel up, whether its normalisation needs the numbers or not
        "foreground_intensity_properties_per_channel":
            {str(channel): {} for channel in range(len(normalisation))} | (intensities or {}),
    }
