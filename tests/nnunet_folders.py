"""Small real nnU-Net v2 model folders with random weights, and phantom-free cases for them."""

import copy
import json
from pathlib import Path

import numpy as np
import torch

from edgeseg.case import Case
from edgeseg.teachers.folder import make_dataset_json, make_plans, write_model_folder
from edgeseg.teachers.plans import build_network

CARDIAC = {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
ORGANS = {"background": 0, "liver": 1, "spleen": 2, "left kidney": 3, "right kidney": 4, "pancreas": 5}
TUMOUR = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "ignore": 4}


def model_folder(out: Path, labels: dict = CARDIAC, channels: tuple[str, ...] = ("cineMRI",),
                 features: tuple[int, ...] = (4, 8, 8, 8), patch: tuple[int, ...] = (32, 40),
                 spacing: tuple[float, ...] = (1.5, 1.25), folds: tuple[int, ...] = (0,), residual: bool = False,
                 regions_class_order: tuple[int, ...] | None = None, seed: int = 0, **plans_options) -> Path:
    """Write `out` (a 2d model, or 3d_fullres with three patch numbers); every fold has its own random weights."""
    plans = make_plans("Dataset900_Tiny", features, patch, spacing,
                       **{"normalisation": ("ZScoreNormalization",) * len(channels), **plans_options})
    configuration = "2d" if len(patch) == 2 else "3d_fullres"
    if residual:
        architecture = plans["configurations"][configuration]["architecture"]
        architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    dataset = make_dataset_json(labels, channels, regions_class_order=regions_class_order)
    for fold in folds:
        torch.manual_seed(1000 * seed + fold)
        network = build_network(plans, dataset, configuration)
        for parameter in network.parameters():  # nnU-Net starts biases at 0: make the classes differ
            parameter.data += 0.05 * torch.randn_like(parameter)
        axes = tuple(range(len(patch)))
        write_model_folder(out, network.state_dict(), dataset, plans, configuration, fold, axes)
    return out


def organ_folder(out: Path, **options) -> Path:
    """Two channels, five labels, nothing cardiac, CT-like normalisation of the first channel."""
    numbers = {"mean": 90.0, "std": 40.0, "percentile_00_5": -50.0, "percentile_99_5": 210.0}
    return model_folder(out, ORGANS, ("CT", "T1"), normalisation=("CTNormalization", "ZScoreNormalization"),
                        intensities={"0": numbers, "1": numbers}, **options)


def region_folder(out: Path, **options) -> Path:
    """Overlapping regions (sigmoid heads) and an ignore label."""
    return model_folder(out, TUMOUR, ("FLAIR",), regions_class_order=(1, 2, 3), **options)


def volume_folder(out: Path, **options) -> Path:
    """3d_fullres."""
    return model_folder(out, patch=(8, 32, 24), spacing=(4.0, 1.5, 1.25), features=(4, 8), **options)


def with_old_plans(folder: Path) -> Path:
    """Rewrite plans.json as the first releases of nnU-Net v2 wrote it: no `architecture`."""
    path = folder / "plans.json"
    plans = json.loads(path.read_text())
    grid = plans["configurations"]["2d"]
    arch = grid.pop("architecture")["arch_kwargs"]
    grid.update(UNet_class_name="PlainConvUNet", UNet_base_num_features=arch["features_per_stage"][0],
                unet_max_num_features=max(arch["features_per_stage"]), num_pool_per_axis=[arch["n_stages"] - 1] * 2,
                n_conv_per_stage_encoder=arch["n_conv_per_stage"],
                n_conv_per_stage_decoder=arch["n_conv_per_stage_decoder"],
                pool_op_kernel_sizes=arch["strides"], conv_kernel_sizes=arch["kernel_sizes"])
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    path.write_text(json.dumps(plans))
    return folder


def edit_json(path: Path, change) -> None:
    """Apply `change` to the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_checkpoint(path: Path, change) -> None:
    """Apply `change` to a checkpoint's dictionary."""
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(copy.copy(content), path)


def case(shape: tuple[int, int, int] = (3, 45, 50), channels: int = 1, spacing: tuple[float, float] = (1.4, 1.1),
         slice_spacing: float | None = 8.0, seed: int = 0) -> Case:
    """A smooth random volume with a rim of zeros, which nnU-Net crops away."""
    n, h, w = shape
    coarse = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, channels, h // 6, w // 6)))
    frames = torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic").numpy() * 60 + 100
    frames[..., :3, :] = frames[..., -4:] = 0
    return Case("case", "patient", frames, spacing, slice_spacing=slice_spacing, source="case.nii.gz",
                axis="slice" if slice_spacing is not None else "time")
