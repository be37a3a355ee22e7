"""The teacher's network as ONNX, for the benches (its full pipeline stays nnU-Net's own)."""

from pathlib import Path

from edgeseg.errors import need
from edgeseg.teachers.folder import write_beside
from edgeseg.teachers.nnunet import NnUNetTeacher
from edgeseg.teachers.plans import quiet

OPSET = 18


def teacher_onnx(teacher: NnUNetTeacher, out: Path) -> None:
    """Write the first fold's network as static ONNX: `input` [1, C, *patch] -> `logits` [1, heads, *patch].

    One file without side file; written beside, then renamed.
    """
    need("onnxscript", "train")
    onnx = need("onnx", "train")
    import torch

    network = teacher.network()
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            network, (torch.zeros(teacher.input_shape),), dynamo=True, opset_version=OPSET, external_data=False,
            input_names=["input"], output_names=["logits"], verbose=False)
    assert program is not None  # torch returns None only for the old exporter
    model = program.model_proto
    clear_metadata(model)
    write_beside(out, lambda path: onnx.save(model, path))


def clear_metadata(model: object) -> None:
    """Remove what the exporter notes about the machine (source paths, stack traces) from every part of the model."""
    fields = getattr(model, "DESCRIPTOR", None)
    if fields is None:
        return
    for field, value in model.ListFields():  # type: ignore[attr-defined]
        if field.name in ("metadata_props", "doc_string"):
            model.ClearField(field.name)  # type: ignore[attr-defined]
        elif field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                clear_metadata(part)
