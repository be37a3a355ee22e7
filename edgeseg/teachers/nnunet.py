"""A trained nnU-Net v2 as a teacher: its own full prediction, and its network for distillation."""

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.preprocess import Preprocessing
from edgeseg.teachers import plans as nnunet_plans
from edgeseg.teachers.checkpoint import load_checkpoint, sha256, strip_prefixes
from edgeseg.teachers.plans import quiet
from edgeseg.teachers.regions import exclusive_log_probabilities, exclusive_probabilities

TTA = Literal["none", "mirror", "mirror+rotate"]
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
NO_SLICE_SPACING = 999.0
"""mm between slices for a single image or a clip: nnU-Net's readers of 2D files say so."""


class NnUNetTeacher:
    """An nnU-Net v2 model folder, read through nnunetv2 (2d and 3d_fullres, one or several folds).

    Attributes:
        name: the plans' data set name.
        scheme: exclusive classes of `logits` and `predict`, with the integers that nnU-Net writes.
        channels: names of the input channels. ignore: label value that has no output (masked in losses), or None.
        is_3d, predict_only: a 3d network; its 2D outputs are not defined.
        deep_supervision: False for a trainer that trained the full-resolution output alone.
        provenance: folder name, data set, configuration, folds, trainer, network, parameters, SHA-256 of each file.
    """

    def __init__(self, folder: Path, plans: dict[str, Any], dataset: dict[str, Any], configuration: str,
                 networks: list[torch.nn.Module], mirror_axes: tuple[int, ...] | None, trainer: str,
                 checkpoints: dict[str, str], device: str | torch.device = "cpu", bf16: bool | None = None) -> None:
        self._folder, self._dataset = folder, dataset
        self._plans, self._grid, self._labels = nnunet_plans.managers(plans, dataset, configuration, folder)
        self._networks = [network.eval().requires_grad_(False) for network in networks]
        self._mirror_axes = tuple(mirror_axes) if mirror_axes else None
        self._trainer = trainer
        self.name = str(plans.get("dataset_name") or folder.resolve().name)
        self.scheme: LabelScheme = nnunet_plans.label_scheme(dataset, self._labels, folder / "dataset.json")
        self.channels = nnunet_plans.channel_names(dataset, folder)
        self.ignore: int | None = self._labels.ignore_label
        self.is_3d = self.predict_only = len(self._grid.patch_size) == 3
        self.deep_supervision = "NoDeepSupervision" not in trainer
        self.provenance: dict[str, Any] = {
            "folder": folder.resolve().name,
            "dataset": self.name,
            "configuration": configuration,
            "folds": [fold_of(name) for name in checkpoints],
            "trainer": trainer,
            "network": type(networks[0]).__name__,
            "parameters": sum(p.numel() for p in networks[0].parameters()),
            "sha256": checkpoints,
        }
        self.to(device, bf16)

    @classmethod
    def open(cls, folder: Path, folds: tuple[int, ...] | None = None, configuration: str | None = None,
             trust: bool = False, device: str | torch.device = "cpu", bf16: bool | None = None) -> "NnUNetTeacher":
        """Read a model folder (plans.json, dataset.json, fold_k/checkpoint_final.pth or else checkpoint_best.pth).

        Args:
            folds: which to average; None = every fold that is there (`fold_all` only when it is alone).
            configuration: must be the one that was trained; needed only for files that do not say which.
            trust: allow a checkpoint that holds more than nnU-Net writes. It can then run any code.
            bf16: run `logits` in bfloat16; None = where the processor has it natively.

        Raises:
            EdgesegError: whatever is missing, damaged or of a kind that is not read, with the file's name.
        """
        folder = Path(folder)
        plans, dataset = nnunet_plans.read_folder(folder)
        paths = find_checkpoints(folder, folds)
        networks: list[torch.nn.Module] = []
        first: dict[str, Any] = {}
        for path in paths:
            content = load_checkpoint(path, trust)
            if not isinstance(content.get("network_weights"), dict):
                raise EdgesegError(f"{path}: holds no network_weights: not a checkpoint of nnU-Net v2")
            first = first or content
            trained = (content.get("init_args") or {}).get("configuration", configuration)
            if configuration is not None and trained != configuration:
                raise EdgesegError(f"{path}: was trained as {trained!r}, not {configuration!r}")
            configuration = trained
            if configuration is None:
                raise EdgesegError(f"{path}: does not say which configuration it is: name it (2d or 3d_fullres)")
            network = nnunet_plans.build_network(plans, dataset, configuration, True, folder)
            load_weights(network, content["network_weights"], path, str(content.get("trainer_name")))
            networks.append(network)
        assert configuration is not None  # find_checkpoints returns at least one
        hashes = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
        return cls(folder, plans, dataset, configuration, networks, first.get("inference_allowed_mirroring_axes"),
                   str(first.get("trainer_name")), hashes, device, bf16)

    def to(self, device: str | torch.device, bf16: bool | None = None) -> "NnUNetTeacher":
        """Move to `device` (in place); `bf16` as in `open`."""
        self.device = torch.device(device)
        self.bf16 = native_bf16(self.device) if bf16 is None else bf16
        for network in self._networks:
            network.to(self.device)
        self._predictor: Any = None
        return self

    @property
    def preprocessing(self) -> Preprocessing:
        """In-plane patch size, spacing and normalisation of the plans: the student's default grid."""
        return nnunet_plans.preprocessing(self._plans, self._grid, self._folder / "plans.json")

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """In-plane axes (0 rows, 1 columns) over which the teacher was trained mirrored; a student keeps to them."""
        shift = 1 if self.is_3d else 0
        return tuple(axis - shift for axis in self._mirror_axes or () if axis >= shift)

    @property
    def stride(self) -> tuple[int, int]:
        """In-plane input sizes of `logits` are multiples of this (rows, columns)."""
        rows, columns = np.prod([s[-2:] for s in self._grid.pool_op_kernel_sizes], axis=0)
        return int(rows), int(columns)

    def logits(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[B, C, H, W] at the teacher's spacing, normalised -> logits float32 [B, K, h, w], highest resolution first.

        K exclusive classes; the lowest output is left out because nnU-Net trains it with weight 0. With regions or
        several folds the values are log-probabilities (folds average probabilities). No gradient.
        """
        if self.is_3d:
            raise EdgesegError(f"{self._folder}: a 3d model has no 2D outputs: distil from its stored predictions")
        x = x.to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = [network(x) for network in self._networks]
        kept = max(1, len(outputs[0]) - 1) if self.deep_supervision else 1
        return [self._average([output[scale].float() for output in outputs]) for scale in range(kept)]

    def _average(self, folds: list[torch.Tensor]) -> torch.Tensor:
        if self._labels.has_regions:
            folds = [exclusive_log_probabilities(z) for z in folds]
        if len(folds) == 1:
            return folds[0]
        return torch.logsumexp(torch.stack([z.log_softmax(1) for z in folds]), 0) - float(np.log(len(folds)))

    def predict(self, case: Case, tta: TTA = "mirror") -> tuple[np.ndarray, np.ndarray]:
        """nnU-Net's own pipeline (resampling, sliding window, folds) on one case, in its native grid.

        `tta`: "none", "mirror" (over the axes that the checkpoint allows: nnU-Net's default), or "mirror+rotate": that
        for each of the four in-plane right-angle rotations, probabilities averaged (the test-time augmentation of ISMRM
        2024 #2094).

        Returns:
            Class indices uint8 [N, H, W] and probabilities of the exclusive classes float32 [N, K, H, W]. With regions
            the labels follow nnU-Net's painting rule (p > 0.5, later regions win), not the arg-max.
        """
        frames, spacing = self._checked(case)
        quarter_turns = range(4) if tta == "mirror+rotate" else range(1)
        total: np.ndarray | None = None
        for turns in quarter_turns:
            turned = np.ascontiguousarray(np.rot90(frames, turns, (-2, -1)))
            z, rows, columns = spacing
            turned_spacing = [z, columns, rows] if turns % 2 else [z, rows, columns]
            try:
                heads = self._probabilities(turned, turned_spacing, tta != "none")
            except AssertionError as error:  # how nnU-Net refuses an image, for example RGB values above 255
                raise EdgesegError(f"{case.source or case.id}: nnU-Net cannot work with it: {error}") from None
            heads = np.rot90(heads, -turns, (-2, -1))
            total = heads.astype(np.float32) if total is None else total + heads
        assert total is not None
        total /= len(quarter_turns)
        labels = np.asarray(self._labels.convert_probabilities_to_segmentation(total))
        if self._labels.has_regions:
            classes = np.zeros(256, np.uint8)
            classes[list(self.scheme.values)] = range(len(self.scheme.values))
            labels, total = classes[labels], exclusive_probabilities(total)
        return labels.astype(np.uint8), np.ascontiguousarray(total.swapaxes(0, 1))

    def _checked(self, case: Case) -> tuple[np.ndarray, tuple[float, float, float]]:
        """nnU-Net's view of a case: [C, z, y, x] and (z, y, x) spacing in mm."""
        where = case.source or case.id
        if case.frames.shape[1] != len(self.channels):
            raise EdgesegError(f"{where}: {case.frames.shape[1]} channels, but the teacher {self.name} wants "
                               f"{len(self.channels)} ({', '.join(self.channels)})")
        if self.is_3d and case.slice_spacing is None:
            raise EdgesegError(f"{where}: a 3d teacher needs a volume with slice spacing, this is a {case.axis} series")
        z = NO_SLICE_SPACING if case.slice_spacing is None else case.slice_spacing
        return case.frames.swapaxes(0, 1), (z, *case.spacing)

    def _probabilities(self, image: np.ndarray, spacing: list[float], mirror: bool) -> np.ndarray:
        """[C, z, y, x] -> what nnU-Net's heads say, softmax or sigmoid, [heads, z, y, x] in the same grid."""
        from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

        predictor = self._get_predictor()
        predictor.use_mirroring = mirror
        with quiet():
            preprocessor = self._grid.preprocessor_class(verbose=False)
            data, _, properties = preprocessor.run_case_npy(
                image, None, {"spacing": spacing}, self._plans, self._grid, self._dataset)
            logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu()
            return convert_predicted_logits_to_segmentation_with_correct_shape(
                logits, self._plans, self._grid, self._labels, properties, return_probabilities=True,
                num_threads_torch=torch.get_num_threads())[1]

    def _get_predictor(self) -> Any:
        if self._predictor is None:
            from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

            with quiet():
                self._predictor = nnUNetPredictor(device=self.device, allow_tqdm=False)
                self._predictor.manual_initialization(
                    self.network().to(self.device), self._plans, self._grid,
                    [network.state_dict() for network in self._networks], self._dataset, self._trainer,
                    self._mirror_axes)
        return self._predictor

    @property
    def running(self) -> torch.nn.Module:
        """The first fold's network as `logits` runs it, for forward hooks; module paths as in `network()`."""
        return self._networks[0]

    def network(self) -> torch.nn.Module:
        """A copy of the first fold's network on the CPU, deep supervision off: [1, C, *patch] -> [1, heads, *patch].

        `heads` are nnU-Net's own: one a class, or one a region (before the sigmoid).
        """
        network = copy.deepcopy(self._networks[0]).cpu().eval()
        network.decoder.deep_supervision = False  # type: ignore[union-attr]
        return network

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(1, C, *patch): one tile as nnU-Net cuts it."""
        return (1, len(self.channels), *(int(size) for size in self._grid.patch_size))


def find_checkpoints(folder: Path, folds: tuple[int, ...] | None) -> list[Path]:
    """The checkpoint of each requested fold, or of every fold that has one.

    Raises:
        EdgesegError: a requested fold that is not there, or no fold at all.
    """
    there = {fold_of(path.parent.name): path.parent for path in sorted(folder.glob("fold_*/checkpoint_*.pth"))}
    numbered = sorted(fold for fold in there if isinstance(fold, int))
    if not there:
        raise EdgesegError(f"{folder}: no fold_*/{CHECKPOINTS[0]} in this folder: nothing was trained here")
    if folds is None:
        wanted: list[int | str] = [*numbered] if numbered else ["all"]
    else:
        wanted = [*folds]
    paths = []
    for fold in wanted:
        path = next((p for name in CHECKPOINTS if (p := folder / f"fold_{fold}" / name).is_file()), None)
        if path is None:
            raise EdgesegError(f"{folder / f'fold_{fold}'}: no {' or '.join(CHECKPOINTS)} there (folds that exist: "
                               f"{', '.join(map(str, there))})")
        paths.append(path)
    if not paths:
        raise EdgesegError(f"{folder}: no fold was asked for")
    return paths


def fold_of(name: str) -> int | str:
    """`fold_3/checkpoint_final.pth` -> 3, `fold_all` -> "all"."""
    number = name.split("/")[0].removeprefix("fold_")
    return int(number) if number.isdigit() else number


def load_weights(network: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path, trainer: str) -> None:
    """Fill `network`, or say that the file holds another one (a trainer may build what the plans do not say)."""
    try:
        network.load_state_dict(strip_prefixes(weights))
    except RuntimeError:
        raise EdgesegError(f"{path}: the weights do not fit the network of plans.json: the trainer {trainer} built "
                           "another one, or the files belong to different models") from None


def native_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is fast on `device`: AVX-512 BF16 or AMX on a CPU (elsewhere it is emulated and slow)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # absent in old versions of torch
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
