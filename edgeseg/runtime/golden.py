"""golden.npz: frames in their native grid and the label maps that each model file gave for them on the building box.

Replaying them elsewhere shows whether that box computes the same. The same IR may give slightly different numbers on
another CPU, so the comparison has a tolerance, stored beside the maps.
"""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.preprocess import Net, Preprocessing

LEAST_AGREEMENT = {"fp32": 0.999, "bf16": 0.97, "int8": 0.97}
"""Share of equal labels where either map has foreground. FP32: other kernels round differently, which flips ties only.
INT8: CPUs without VNNI saturate 16-bit sums and round each layer differently. bf16: 8 bits of mantissa, as coarse."""


@dataclass(frozen=True)
class Golden:
    """One frame: raw float32 [C, H, W] of `spacing` (row, column) mm, and `labels["openvino int8"]` uint8 [H, W].

    `labels` has a map for each model file of the bundle, of class indices; `least_agreement["int8"]` is what a replay
    in that precision is held to (`label_agreement`).
    """

    frame: np.ndarray
    spacing: tuple[float, float]
    labels: dict[str, np.ndarray]
    least_agreement: dict[str, float] = field(default_factory=LEAST_AGREEMENT.copy)


def replayed(frames: Sequence[tuple[np.ndarray, tuple[float, float]]], preprocessing: Preprocessing, network: Net,
             recurrent: bool) -> list[np.ndarray]:
    """Class indices uint8 [H, W] of each frame ([C, H, W] with its spacing): by itself, or `recurrent` as the clip that
    the frames are."""
    if recurrent:
        return list(preprocessing.segment(np.stack([f for f, _ in frames]).astype(np.float32), frames[0][1], network))
    return [preprocessing.segment(f[None].astype(np.float32), spacing, network)[0] for f, spacing in frames]


def save_golden(path: Path, golden: list[Golden]) -> None:
    """Write frames, spacings, expected labels and tolerances; the same content gives the same bytes."""
    arrays = {f"least_agreement_{k}": np.asarray(v, np.float64) for k, v in LEAST_AGREEMENT.items()}
    for i, item in enumerate(golden):
        arrays[f"frame_{i}"] = item.frame
        arrays[f"spacing_{i}"] = np.asarray(item.spacing, np.float64)
        arrays |= {f"labels_{i} {key}": labels for key, labels in item.labels.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def load_golden(path: Path) -> list[Golden]:
    """Read frames, maps and tolerances; EdgesegError when the file is damaged."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("no .npz file")
        with np.load(path, allow_pickle=False) as stored:
            least = read_tolerances(stored)
            count = sum(name.startswith("frame_") for name in stored.files)
            return [read_frame(stored, i, least) for i in range(count)]
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise EdgesegError(f"{path}: not readable golden frames ({error}): copy the bundle again") from None


def read_tolerances(stored: np.lib.npyio.NpzFile) -> dict[str, float]:
    """What the building box allows each precision; where it names none for bf16, that of INT8."""
    prefix = "least_agreement_"
    least = {name.removeprefix(prefix): float(stored[name]) for name in stored.files if name.startswith(prefix)}
    if not all(0 < value <= 1 for value in least.values()):  # 0 or NaN would let everything pass
        raise ValueError(f"tolerances {least} are not between 0 and 1")
    return {"fp32": least["fp32"], "int8": least["int8"], "bf16": least.get("bf16", least["int8"])}


def read_frame(stored: np.lib.npyio.NpzFile, i: int, least: dict[str, float]) -> Golden:
    frame, spacing = stored[f"frame_{i}"].astype(np.float32), stored[f"spacing_{i}"]
    labels = {name.removeprefix(f"labels_{i} "): stored[name] for name in stored.files
              if name.startswith(f"labels_{i} ")}
    for key, found in labels.items():
        if found.shape != frame.shape[1:]:
            raise ValueError(f"the map of {key} has shape {found.shape}, frame {i} has {frame.shape}")
    return Golden(frame, (float(spacing[0]), float(spacing[1])), labels, least)


def label_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of equal labels among the pixels where either map has foreground (0..1; 1 when neither has any).

    Counting the background too would flatter: it is nine tenths of a cardiac image.
    """
    either = (a > 0) | (b > 0)
    return float((a == b)[either].mean()) if either.any() else 1.0
