"""Reading a torch checkpoint without running what it says.

A checkpoint is a pickle, and a pickle is a program. `torch.load(weights_only=True)` runs none of it and builds tensors
and plain containers; beyond those, only the names in `allowed_globals` are built.
"""

import hashlib
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from edgeseg.errors import EdgesegError

PREFIXES = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before parameter names."""


def allowed_globals() -> list[Any]:
    """What nnU-Net's own checkpoints hold beyond torch's defaults: numpy float scalars (losses and Dice of the log).

    The function is given under the name of numpy 1.x too: nnU-Net files of that time hold it.
    """
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    return [
        (scalar, "numpy._core.multiarray.scalar"),
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        type(np.dtype(np.float32)),
        type(np.dtype(np.float64)),
    ]


def load_checkpoint(path: Path, trust: bool = False) -> dict[str, Any]:
    """The checkpoint's dictionary, tensors on the CPU.

    With `trust` the file is unpickled without limits: it can then run any code.

    Raises:
        EdgesegError: missing, damaged, not a dictionary, or holding more than `allowed_globals` without `trust`.
    """
    if not path.is_file():
        raise EdgesegError(f"{path}: no such checkpoint")
    try:
        with torch.serialization.safe_globals(allowed_globals()):
            content = torch.load(path, map_location="cpu", weights_only=not trust)
    except (RuntimeError, EOFError, UnpicklingError, ValueError, KeyError, TypeError) as error:
        foreign = re.search(r"GLOBAL (\S+)|unrecognized function (\S+)", str(error))
        if foreign and not trust:
            raise EdgesegError(f"{path}: the checkpoint wants {foreign[1] or foreign[2]}, which could run code, and "
                               "was not loaded: `edgeseg distill --trust-checkpoint` takes it, only if you trust "
                               "whoever made it") from None
        raise EdgesegError(f"{path}: not a readable checkpoint ({type(error).__name__}): copy or download it "
                           "again") from None
    if not isinstance(content, dict):
        raise EdgesegError(f"{path}: expected a dictionary as nnU-Net writes it, found {type(content).__name__}")
    return content


def strip_prefixes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameter names without the prefixes that torch.compile and DistributedDataParallel added, in any order."""

    def plain(name: str) -> str:
        while name.startswith(PREFIXES):
            name = name.removeprefix(PREFIXES[0]).removeprefix(PREFIXES[1])
        return name

    return {plain(name): tensor for name, tensor in state.items()}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
