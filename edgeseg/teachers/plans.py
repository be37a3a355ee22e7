"""What an nnU-Net v2 model folder says about its network, grid, intensities and labels, read through nnunetv2."""

import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgeseg.errors import EdgesegError, need
from edgeseg.labels import LabelScheme
from edgeseg.preprocess import Normalisation, Preprocessing

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")
NORMALISATIONS = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale",
    "RGBTo01Normalization": "rgb",
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep nnunetv2's prints and warnings out of the command line's output."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what nnunetv2 raises on a plans or dataset file that lacks something into one line that names the file."""
    try:
        yield
    except KeyError as error:
        raise EdgesegError(f"{path}: the entry {error} is missing: is this file complete?") from None
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError, IndexError) as error:
        raise EdgesegError(f"{path}: nnU-Net cannot work with this file: {' '.join(str(error).split())}") from None


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """plans.json and dataset.json of a model folder.

    Raises:
        EdgesegError: the folder or one of the files is missing or is not JSON.
    """
    if not folder.is_dir():
        raise EdgesegError(f"{folder}: no such nnU-Net model folder")
    if not (folder / "plans.json").is_file() and (inside := sorted(folder.glob("*/plans.json"))):
        raise EdgesegError(f"{folder}: no plans.json here, but there is one in {inside[0].parent}: name that folder")
    return read_json(folder / "plans.json"), read_json(folder / "dataset.json")


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EdgesegError(f"{path}: missing; an nnU-Net v2 model folder holds plans.json, dataset.json and fold_0, "
                           "fold_1, ...") from None
    except ValueError as error:
        raise EdgesegError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise EdgesegError(f"{path}: expected a JSON object")
    return content


def managers(plans: dict[str, Any], dataset: dict[str, Any], configuration: str, folder: Path = Path(),
             ) -> tuple["PlansManager", "ConfigurationManager", "LabelManager"]:
    """nnunetv2's own managers of these plans; cascades and unknown networks are refused by name.

    Plans of nnU-Net's first v2 releases, which do not say `architecture`, are brought up to date by nnunetv2.
    """
    need("nnunetv2", "train")
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    with quiet(), reading(folder / "plans.json"):
        plans_manager = PlansManager(plans)
        if configuration not in plans_manager.available_configurations:
            raise EdgesegError(f"{folder / 'plans.json'}: no configuration {configuration!r}, only "
                               f"{', '.join(plans_manager.available_configurations)}")
        grid = plans_manager.get_configuration(configuration)
        check_configuration(grid, configuration, folder / "plans.json")
    with quiet(), reading(folder / "dataset.json"):
        return plans_manager, grid, plans_manager.get_label_manager(dataset)


def check_configuration(grid: "ConfigurationManager", name: str, path: Path) -> None:
    if grid.previous_stage_name is not None:
        raise EdgesegError(f"{path}: {name} is the second stage of a cascade (after {grid.previous_stage_name}), which "
                           "edgeseg does not read: use a 2d or 3d_fullres model")
    # nnunetv2 imports and calls whatever dotted name the plans give: only torch.nn and these two networks may be named
    wanted = grid.network_arch_class_name
    if wanted.split(".")[-1] not in NETWORKS or not wanted.startswith("dynamic_network_architectures."):
        raise EdgesegError(f"{path}: the network {wanted} is not one that edgeseg reads ({', '.join(NETWORKS)})")
    for key in grid.network_arch_init_kwargs_req_import:
        value = grid.network_arch_init_kwargs[key]
        if value is not None and not value.startswith(("torch.nn.", "dynamic_network_architectures.")):
            raise EdgesegError(f"{path}: {key} names {value}, which is not a part of torch.nn")


def build_network(plans: dict[str, Any], dataset: dict[str, Any], configuration: str = "2d",
                  deep_supervision: bool = True, folder: Path = Path()) -> torch.nn.Module:
    """nnunetv2's network of these plans with nnU-Net's random initialisation, in training mode.

    [B, C, *patch] -> logits [B, heads, *patch]; with deep supervision a list of them, highest resolution first.
    """
    _, grid, labels = managers(plans, dataset, configuration, folder)
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    with quiet(), reading(folder / "plans.json"):
        return get_network_from_plans(
            grid.network_arch_class_name, grid.network_arch_init_kwargs, grid.network_arch_init_kwargs_req_import,
            len(channel_names(dataset, folder)), labels.num_segmentation_heads, deep_supervision=deep_supervision)


def channel_names(dataset: dict[str, Any], folder: Path = Path()) -> tuple[str, ...]:
    """Names of the input channels in order (`modality` in old files)."""
    names = dataset.get("modality") or dataset.get("channel_names")
    if not names:
        raise EdgesegError(f"{folder / 'dataset.json'}: the entry 'channel_names' is missing")
    return tuple(str(names[key]) for key in sorted(names, key=int))


def label_scheme(dataset: dict[str, Any], labels: "LabelManager", path: Path) -> LabelScheme:
    """Classes in the order of the exclusive outputs, with the integers that nnU-Net writes; `ignore` is no class.

    Labels: by value. Regions: background, then the regions in the order in which nnU-Net paints them.
    """
    named = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    if labels.has_regions:
        regions = [name for name, value in named.items() if value not in (0, [0])]
        names, values = ["background", *regions], [0, *(int(v) for v in labels.regions_class_order)]
    else:
        numbers = {name: int(value[0] if isinstance(value, list) else value) for name, value in named.items()}
        names = sorted(numbers, key=lambda name: numbers[name])
        values = [numbers[name] for name in names]
        if values != list(range(len(values))):
            raise EdgesegError(f"{path}: label values must be 0, 1, 2, ... as nnU-Net demands, found {values}")
    try:
        return LabelScheme(tuple(names), tuple(values))
    except EdgesegError as error:
        raise EdgesegError(f"{path}: {error}") from None


def preprocessing(plans: "PlansManager", grid: "ConfigurationManager", path: Path) -> Preprocessing:
    """The in-plane grid of the plans and each channel's normalisation: the default grid of a 2D student.

    Patch and spacing of the plans are in nnU-Net's own axis order (`transpose_forward`); here they are rows, columns.

    Raises:
        EdgesegError: a 2d configuration whose slices are not the slices of the files, or an unknown normalisation.
    """
    size, spacing = list(grid.patch_size), list(grid.spacing)
    if len(size) == 3:
        size, spacing = ([values[axis] for axis in plans.transpose_backward] for values in (size, spacing))
    elif list(plans.transpose_forward) != [0, 1, 2]:
        raise EdgesegError(f"{path}: this 2d model cuts its slices across axis {plans.transpose_forward[0]} of the "
                           "files (transpose_forward): a 2D student works on axis 0 only; use the 3d_fullres model")
    with reading(path):
        schemes = enumerate(zip(grid.normalization_schemes, grid.use_mask_for_norm, strict=True))
        return Preprocessing(
            size=(int(size[-2]), int(size[-1])),
            spacing=(float(spacing[-2]), float(spacing[-1])),
            channels=tuple(normalisation(scheme, bool(masked), plans, channel, path)
                           for channel, (scheme, masked) in schemes),
        )


def normalisation(scheme: str, masked: bool, plans: "PlansManager", channel: int, path: Path) -> Normalisation:
    kind = NORMALISATIONS.get(scheme)
    if kind is None:
        raise EdgesegError(f"{path}: intensity normalisation {scheme} is not one that edgeseg knows")
    if kind != "ct":  # nnU-Net heeds the mask in its z-score alone
        return Normalisation(kind, masked=masked and kind == "zscore")  # type: ignore[arg-type]
    numbers = plans.foreground_intensity_properties_per_channel[str(channel)]
    return Normalisation("ct", mean=float(numbers["mean"]), std=float(numbers["std"]),
                         low=float(numbers["percentile_00_5"]), high=float(numbers["percentile_99_5"]))
