import copy
import re

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgeseg.bundle.check import check_file, refuse_bad
from edgeseg.bundle.fold import fold_batch_norm, torch_logits
from edgeseg.errors import GateFailed
from edgeseg.onnx_file import OPSET, write_onnx
from edgeseg.students.mobilenetv2 import MobileNetV2Spec, MobileNetV2UNet


@pytest.fixture(scope="module")
def student() -> nn.Module:
    torch.manual_seed(0)
    model = MobileNetV2UNet(MobileNetV2Spec(2, 3, widths=(8, 8, 16, 16, 16), blocks=(1, 1, 2, 1, 1), expansion=2))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            m.weight.data.uniform_(0.5, 2)
            m.bias.data.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def core(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("a place") / "model.fp32.onnx"
    write_onnx(fold_batch_norm(student), (1, 2, 32, 64), path)
    return path


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(0).normal(size=(4, 2, 32, 64)).astype(np.float32)


def test_folding_leaves_no_batch_norm_and_the_same_function(student, inputs):
    before = copy.deepcopy(student.state_dict())
    folded = fold_batch_norm(student)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    expected = torch_logits(student, inputs)
    np.testing.assert_allclose(torch_logits(folded, inputs), expected, atol=1e-4 * np.ptp(expected))
    assert all(torch.equal(v, student.state_dict()[k]) for k, v in before.items())  # the run's module is untouched


def test_the_core_is_one_static_file_of_the_pinned_opset(core):
    model = onnx.load(core)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    values = (*model.graph.input, *model.graph.output)
    sides = [(v.name, [d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values]
    assert sides == [("image", [1, 2, 32, 64]), ("logits", [1, 3, 32, 64])]
    assert list(core.parent.iterdir()) == [core]
    assert not any(n.op_type == "BatchNormalization" for n in model.graph.node)


def test_the_core_says_nothing_of_where_it_was_made(core):
    model = onnx.load(core)
    assert not model.producer_name
    assert not model.metadata_props
    assert not any(n.metadata_props or n.doc_string for n in model.graph.node)
    assert not re.search(rb"\.py|site-packages|stack_trace", core.read_bytes())


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_both_runtimes_compute_what_torch_computes(core, student, inputs, backend):
    check = check_file(core, backend, "fp32", inputs, torch_logits(student, inputs))
    assert check.max_logit_difference < 1e-4 * check.logit_range
    refuse_bad([check])


def test_a_file_of_another_student_is_refused(core, student, inputs):
    other = fold_batch_norm(student)
    with torch.no_grad():
        other.heads[0].weight.mul_(-1)
    check = check_file(core, "onnxruntime", "fp32", inputs, torch_logits(other, inputs))
    with pytest.raises(GateFailed, match=r"model.fp32.onnx: differs from the trained student.*nothing was written"):
        refuse_bad([check])


def test_a_file_with_slightly_wrong_weights_is_refused_as_fp32(core, student, inputs):
    reference = torch_logits(student, inputs)
    check = check_file(core, "openvino", "fp32", inputs, reference + 0.003 * np.ptp(reference))
    assert check.label_agreement > 0.999  # the same labels, yet not the same network
    with pytest.raises(GateFailed):
        refuse_bad([check])
    refuse_bad([check.model_copy(update={"precision": "int8"})])


def test_a_file_that_gives_nan_is_refused(core, student, inputs):
    check = check_file(core, "openvino", "fp32", inputs, torch_logits(student, inputs))
    with pytest.raises(GateFailed):
        refuse_bad([check.model_copy(update={"max_logit_difference": float("nan")})])
