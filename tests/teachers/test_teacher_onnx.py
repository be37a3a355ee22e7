"""The teacher's network as ONNX."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from nnunet_folders import model_folder, volume_folder

from edgeseg.teachers import open_teacher
from edgeseg.teachers.export import teacher_onnx


@pytest.mark.parametrize("make", [model_folder, volume_folder], ids=["2d", "3d"])
def test_onnx_is_one_static_file_that_computes_what_torch_computes(tmp_path, make, capfd):
    teacher = open_teacher(f"nnunet:{make(tmp_path / 'm')}")
    out = tmp_path / "out folder" / "teacher.onnx"
    out.parent.mkdir()
    teacher_onnx(teacher, out)
    assert capfd.readouterr().out == ""
    assert [path.name for path in out.parent.iterdir()] == ["teacher.onnx"]
    model = onnx.load(out)
    onnx.checker.check_model(model)
    assert {o.domain: o.version for o in model.opset_import}[""] == 18
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert tuple(shape) == teacher.input_shape
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = teacher.network()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"image": x})[0], expected, atol=1e-4)


def test_onnx_says_nothing_about_the_machine(tmp_path):
    teacher_onnx(open_teacher(f"nnunet:{model_folder(tmp_path / 'm')}"), tmp_path / "teacher.onnx")
    text = onnx.load(tmp_path / "teacher.onnx").SerializeToString()
    assert b"site-packages" not in text
    assert b"stack_trace" not in text
    assert str(tmp_path).encode() not in text
