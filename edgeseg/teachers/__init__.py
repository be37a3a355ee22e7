"""Teachers: segmentation networks that a lab already has, read as they are. Importing this package imports no torch.

What distillation asks of one (`Teacher`): scheme, channels, ignore, preprocessing, mirror_axes, stride, name and
provenance; `predict(case, tta)` = its own full pipeline; and, unless `predict_only`, `logits(x)`, the module `running`
that it runs (features are read there) and `network()`, a copy for export.
"""

from pathlib import Path
from typing import Any

from edgeseg.errors import EdgesegError, need

KINDS = {"nnunet": "MODEL_FOLDER", "deeplabv3": "CHECKPOINT", "multitask": "FOLDER", "targets": "FOLDER"}


def open_teacher(spec: str, **options: Any) -> Any:
    """Open the teacher that `spec` names: `nnunet:MODEL_FOLDER` (nnU-Net v2), `deeplabv3:CHECKPOINT` (EchoNet-Dynamic's
    layout), `multitask:FOLDER` (a U-Net or transformer U-Net of `edgeseg train-teacher`), `targets:FOLDER` (what
    `edgeseg targets` stored of one or several).

    `options` are those of `NnUNetTeacher.open` (folds, configuration, trust, device, bf16); the others take what
    concerns them.

    Raises:
        EdgesegError: unknown kind, or files that cannot be read.
    """
    kind, colon, where = spec.partition(":")
    if kind not in KINDS or not colon or not where:
        raise EdgesegError(f"teacher {spec!r} is not known: write "
                           f"{' or '.join(f'{k}:{v}' for k, v in KINDS.items())}")
    path = Path(where).expanduser()
    if kind == "targets":
        from edgeseg.teachers.stored import StoredTargets

        return StoredTargets.open(path)
    need("torch", "train")
    if kind == "deeplabv3":
        from edgeseg.teachers.deeplabv3 import DeepLabV3Teacher

        return DeepLabV3Teacher.open(path, **options)
    if kind == "multitask":
        from edgeseg.teachers.multitask import MultiTaskTeacher

        return MultiTaskTeacher.open(path, **options)
    from edgeseg.teachers.nnunet import NnUNetTeacher

    return NnUNetTeacher.open(path, **options)
