"""Every frame graph against the NumPy pipeline with the same core network, on real frames brought to its protocol."""

from pathlib import Path

import numpy as np

from edgeseg.errors import EdgesegError, GateFailed
from edgeseg.manifest import FrameCheck, FrameProtocol
from edgeseg.measure.overlap import dice_per_class
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import Dataset
from edgeseg.runtime.backends import BACKENDS, PRECISIONS, load_backend, model_file
from edgeseg.runtime.frame_graph import bring, graph_file
from edgeseg.runtime.golden import label_agreement

FRAMES = 24
LEAST_AGREEMENT = 0.995
"""FP32: share of equal labels where either sees foreground. Linear resampling on float32 differs in ties only."""
LEAST_DICE = 0.98
"""INT8: of each structure, pooled over the frames. A pixel that lies on a rounding step may take the other side."""


def protocol_frames(data: Dataset, protocol: FrameProtocol, count: int = FRAMES) -> list[np.ndarray]:
    """Up to `count` frames [C, *size] of the protocol's spacing and type, one or more a case, from base to apex.

    Raises:
        EdgesegError: there is none with any contrast.
    """
    each = -(-count // max(1, len(data)))
    found: list[np.ndarray] = []
    for ref in data.refs[:count]:
        case = ref.load()
        for k in range(min(each, len(case.frames))):
            index = int((k + 0.5) * len(case.frames) / each) % len(case.frames)
            frame = bring(case.frames[index], case.spacing, protocol)
            if frame.min() < frame.max():
                found.append(frame)
    if not found:
        raise EdgesegError(f"frame graph {protocol.name}: no frame of {data.spec} has any contrast in its grid, so "
                           "nothing can check it: choose another --frame")
    return found[:count]


def check_frame_graph(folder: Path, protocol: FrameProtocol, data: Dataset, preprocessing: Preprocessing,
                      values: tuple[int, ...]) -> list[FrameCheck]:
    """One FrameCheck for each runtime and precision that `folder` has.

    Raises:
        GateFailed: a graph does not compute what the NumPy pipeline computes with the same way back.
        EdgesegError: see `protocol_frames`.
    """
    frames = protocol_frames(data, protocol)
    checks = []
    for backend in BACKENDS:
        for precision in PRECISIONS:
            path = folder / graph_file(protocol, backend, precision)
            if not path.is_file():
                continue
            net, graph = load_backend(backend, folder / model_file(backend, precision)), load_backend(backend, path)
            lookup = np.asarray(values, np.uint8)
            theirs = lookup[np.concatenate([preprocessing.segment(f[None].astype(np.float32), protocol.spacing, net,
                                                                  back=protocol.back) for f in frames])]
            mine = np.concatenate([graph(f[None]) for f in frames])
            check = FrameCheck(protocol=protocol.name, backend=backend, precision=precision,
                               agreement=label_agreement(mine, theirs), least_dice=least_dice(mine, theirs, values))
            refuse_bad(check)
            checks.append(check)
    return checks


def least_dice(a: np.ndarray, b: np.ndarray, values: tuple[int, ...]) -> float:
    """The least Dice of a structure between two stacks of label maps, pooled over all frames."""
    lookup = np.zeros(256, np.uint8)
    lookup[list(values)] = np.arange(len(values))
    return float(min(dice_per_class(lookup[a], lookup[b], len(values), 255)))


def refuse_bad(check: FrameCheck) -> None:
    good = check.agreement >= LEAST_AGREEMENT if check.precision == "fp32" else check.least_dice >= LEAST_DICE
    if not good:
        raise GateFailed(
            f"frame graph {check.protocol}, {check.backend} {check.precision}: differs from the NumPy pipeline: equal "
            f"labels {check.agreement:.4f} (limit for FP32 {LEAST_AGREEMENT:g}), least Dice {check.least_dice:.4f} "
            f"(limit for INT8 {LEAST_DICE:g}): nothing was written")
