"""The quantisation ladder: the cheapest way to INT8 first, the next only if admission on dev failed."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgeseg.bundle.quantise import Inputs, NothingLeft, move, quantise_rung
from edgeseg.manifest import BackendName, Rung

Judge = Callable[[Path, str], tuple[float, tuple[str, ...]]]
"""Model file, backend -> mean dev Dice, names of the gates that it missed (none: admitted)."""


def climb(backend: BackendName, fp32_onnx: Path, out: Path, frames: np.ndarray | Inputs, rungs: Sequence[str],
          judge: Judge, say: Callable[[str], None]) -> list[Rung]:
    """Write the INT8 file of the first rung that is admitted, else of the one with the best dev Dice, to `out`.

    "fine-tune" is passed over: it changes weights, so it needs torch and begins again with a new FP32 file. So is a
    rung that would leave nothing in INT8 after one that did not.

    Args:
        frames: calibration frames, as `quantise_rung` takes them.
        judge: also asked for the Dice of files on the way to a rung, the FP32 file among them.

    Returns:
        Every rung that was tried, in order. `out` holds the last one if it was admitted, else the best (the first of
        equals).

    Raises:
        EdgesegError: the network cannot be quantised. OSError: the disk is full. `out` keeps what it had by then.
    """
    def score(path: Path) -> float:
        return judge(path, backend)[0]

    tried: list[Rung] = []
    for rung in rungs:
        if rung == "fine-tune":
            continue
        with tempfile.TemporaryDirectory(prefix=".rung-", dir=out.parent) as scratch:
            candidate = Path(scratch) / out.name
            try:
                settings = quantise_rung(rung, backend, fp32_onnx, candidate, frames, score)
            except NothingLeft:
                if not tried:
                    raise
                say(f"{backend} {rung}: would leave nothing in INT8")
                continue
            dice, failed = judge(candidate, backend)
            verdict = f"misses {', '.join(failed)}" if failed else "admitted"
            say(f"{backend} {rung}: dev Dice {dice:.4f}, {verdict}")
            if not failed or all(dice > r.dice for r in tried):
                move(candidate, out)
        tried.append(Rung(rung=rung, backend=backend, settings=settings, dice=dice, failed=failed))
        if not failed:
            break
    return tried
