"""The teacher's network as ONNX, for the benches (its full pipeline stays nnU-Net's own)."""

from pathlib import Path

from edgeseg.errors import need
from edgeseg.onnx_file import write_onnx
from edgeseg.teachers.nnunet import NnUNetTeacher


def teacher_onnx(teacher: NnUNetTeacher, out: Path) -> None:
    """Write the first fold's network: `image` [1, C, *patch] -> `logits` [1, heads, *patch]."""
    need("onnxscript", "train")
    write_onnx(teacher.network(), teacher.input_shape, out)
