"""Teachers: segmentation networks that a lab already has, read as they are. Importing this package imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeseg.errors import EdgesegError, need

if TYPE_CHECKING:
    from edgeseg.teachers.nnunet import NnUNetTeacher


def open_teacher(spec: str, **options: Any) -> "NnUNetTeacher":
    """Open the teacher that `spec` names: `nnunet:FOLDER`, an nnU-Net v2 model folder.

    `options` are those of `NnUNetTeacher.open` (folds, configuration, trust, device, bf16).

    Raises:
        EdgesegError: unknown kind, or a folder that cannot be read.
    """
    kind, colon, where = spec.partition(":")
    if kind != "nnunet" or not colon or not where:
        raise EdgesegError(f"teacher {spec!r} is not known: write nnunet:MODEL_FOLDER")
    need("torch", "train")
    from edgeseg.teachers.nnunet import NnUNetTeacher

    return NnUNetTeacher.open(Path(where).expanduser(), **options)
