"""golden.npz: frames in their native grid and the label maps that each model file gave for them on the building box.

Replaying them elsewhere shows whether that box computes the same. The same IR may give slightly different numbers on
another CPU, so the comparison has a tolerance, stored beside the maps.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeseg.errors import EdgesegError

LEAST_AGREEMENT = {"fp32": 0.999, "int8": 0.97}
"""Share of equal labels where either map has foreground. FP32: other kernels round differently, which flips ties only.
INT8: CPUs without VNNI saturate 16-bit sums and round each layer differently."""


@dataclass(frozen=True)
class Golden:
    """One frame: raw float32 [C, H, W] of `spacing` (row, column) mm, and `labels["openvino int8"]` uint8 [H, W]."""

    frame: np.ndarray
    spacing: tuple[float, float]
    labels: dict[str, np.ndarray]


def save_golden(path: Path, golden: list[Golden]) -> None:
    """Write frames, spacings, expected labels and tolerances; the same content gives the same bytes."""
    arrays = {f"least_agreement_{k}": np.asarray(v, np.float64) for k, v in LEAST_AGREEMENT.items()}
    for i, item in enumerate(golden):
        arrays[f"frame_{i}"] = item.frame
        arrays[f"spacing_{i}"] = np.asarray(item.spacing, np.float64)
        arrays |= {f"labels_{i} {key}": labels for key, labels in item.labels.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def load_golden(path: Path) -> list[Golden]:
    """Read the frames; EdgesegError when the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            count = sum(name.startswith("frame_") for name in stored.files)
            return [Golden(stored[f"frame_{i}"].astype(np.float32),
                           (float(stored[f"spacing_{i}"][0]), float(stored[f"spacing_{i}"][1])),
                           {name.removeprefix(f"labels_{i} "): stored[name] for name in stored.files
                            if name.startswith(f"labels_{i} ")})
                    for i in range(count)]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise EdgesegError(f"{path}: not readable golden frames ({error}): copy the bundle again") from None


def label_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of equal labels among the pixels where either map has foreground (0..1; 1 when neither has any).

    Counting the background too would flatter: it is nine tenths of a cardiac image.
    """
    either = (a > 0) | (b > 0)
    return float((a == b)[either].mean()) if either.any() else 1.0
