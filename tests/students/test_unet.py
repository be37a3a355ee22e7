"""The U-Net family: the published sizes S1 and S2, and what becomes of two classes, wrong sizes and wrong widths."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from edgeseg.bundle.fold import fold_batch_norm, torch_logits
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.train import make_student
from edgeseg.errors import EdgesegError
from edgeseg.losses.layerwise_kl import kl_divergence, layerwise_kl
from edgeseg.onnx_file import write_onnx
from edgeseg.students import build_student
from edgeseg.students.cost import count_macs, count_parameters
from edgeseg.students.unet import UNet, UNetSpec

S1, S2 = UNetSpec(), UNetSpec(widths=(32, 64, 128))


@pytest.mark.parametrize(("spec", "parameters", "gmac"), [(S1, 57_297, 0.85), (S2, 227_233, 3.35)])
def test_the_published_members_have_the_published_size_and_cost(spec, parameters, gmac):
    model = UNet(spec)
    assert count_parameters(model) == sum(p.numel() for p in model.parameters()) == parameters
    assert round(count_macs(model, (1, 3, 256, 256)) / 1e9, 2) == gmac


def test_the_parameters_are_those_computed_by_hand():
    """Of S1 by its layers: a convolution has k^2 c_in c_out weights and c_out biases, BatchNorm 2 c."""
    convs = {(3, 16): 9, (16, 32): 9, (32, 64): 9, (64, 32): 9, (32, 16): 9}
    norms = 2 * (16 + 32 + 64 + 32 + 16)
    ups = 4 * 64 * 32 + 32 + 4 * 32 * 16 + 16
    assert sum(k * a * b + b for (a, b), k in convs.items()) + norms + ups + 16 + 1 == count_parameters(UNet(S1))


def test_two_classes_are_one_logit_and_more_have_one_each():
    x = torch.randn(2, 3, 16, 16)
    (two,), (three,) = (UNet(UNetSpec(num_classes=k)).train()(x) for k in (2, 3))
    assert two.shape == (2, 2, 16, 16)
    assert (two[:, 0] == 0).all()
    assert two[:, 1].std() > 0
    assert three.shape == (2, 3, 16, 16)
    assert (three.std((0, 2, 3)) > 0).all()
    assert [UNet(UNetSpec(num_classes=k)).head.out_channels for k in (2, 3, 5)] == [1, 3, 5]


def test_its_layer_wise_loss_is_the_one_of_its_only_output():
    (logits,), teacher = UNet(S1).train()(torch.randn(2, 3, 16, 16)), torch.randn(2, 2, 16, 16)
    loss = layerwise_kl([logits], [teacher], None, lambda z, y: z.sum(), 1.0, 4.0)
    assert torch.isclose(loss, kl_divergence(teacher, logits, 4.0))
    assert loss > 1e-4


def test_features_have_the_paths_and_scales_that_recipes_name():
    model, seen = UNet(S1).eval(), {}
    for name in ("encoder.0", "encoder.1", "pools.1", "bottleneck", "decoder.1", "decoder.0"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _input, out, name=name: seen.update({name: tuple(out.shape[1:])}))
    with torch.inference_mode():
        model(torch.zeros(1, 3, 256, 256))
    assert seen == {"encoder.0": (16, 256, 256), "encoder.1": (32, 128, 128), "pools.1": (32, 64, 64),
                    "bottleneck": (64, 64, 64), "decoder.1": (32, 128, 128), "decoder.0": (16, 256, 256)}


def test_the_exported_file_computes_what_was_trained(tmp_path):
    torch.manual_seed(0)
    model = UNet(UNetSpec(1, 2, (4, 8, 8)))
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, 0, 0.3)
        nn.init.uniform_(norm.running_var, 0.2, 2)
    folded = fold_batch_norm(model.eval())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    write_onnx(folded, (1, 1, 32, 48), tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(1, 1, 32, 48)).astype(np.float32)
    found, = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"image": x})
    np.testing.assert_allclose(found, torch_logits(model, x), atol=1e-5)
    assert found[:, 1].std() > 1e-3


def test_a_recipe_names_it_by_its_widths():
    recipe = Recipe(student="unet", spec={"widths": [32, 64, 128]})
    assert make_student(recipe, 3, 2).spec == S2


@pytest.mark.parametrize(("wrong", "said"), [
    ({"widths": [16, 0, 64]}, "above 0"), ({"widths": [16]}, "two or more"), ({"widths": []}, "two or more"),
    ({"widths": "abc"}, "whole numbers"), ({"widths": [16.5, 32, 64]}, "whole numbers"), ({"depth": 3}, "depth")])
def test_widths_that_do_not_exist_are_refused_in_one_line(wrong, said):
    with pytest.raises(EdgesegError, match=said) as error:
        build_student({"family": "unet"} | wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(30, 32), (32, 18), (1, 1)])
def test_a_size_that_cannot_be_halved_often_enough_is_refused(size):
    with pytest.raises(EdgesegError, match=rf"{size[0]} x {size[1]} pixels cannot be halved 2 times.*multiples of 4"):
        UNet(S1)(torch.zeros(2, 3, *size))
