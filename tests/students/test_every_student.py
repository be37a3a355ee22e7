"""What every student keeps, whatever its family."""

import json

import pytest
import torch

from edgeseg.errors import EdgesegError
from edgeseg.students import build_student

MOBILE, DENSE = {"family": "mobilenetv2", "width_mult": 0.5}, {"family": "dense", "widths": [8, 8, 16, 16, 24]}
MEMBERS = [
    (MOBILE | {"stem_stride": 1}, (96, 48, 24, 12)),
    (MOBILE, (96, 24, 12, 6)),
    (DENSE, (96, 48, 24, 12)),
    (DENSE | {"stem_stride": 4, "widths": [8, 8, 16, 16], "blocks": [1] * 4, "expansions": [0] * 4}, (96, 48, 24, 12)),
    (DENSE | {"head": "bilinear", "up": "transposed", "activation": "hardswish"}, (96, 48, 24, 12)),
    (DENSE | {"expansions": [0, 0, 0, 2, 4], "blocks": [1, 1, 1, 2, 2]}, (96, 48, 24, 12)),
    ({"family": "convlstm", "blocks": 4, "filters": 4}, (96, 48, 24, 12)),
    ({"family": "unet"}, (96,)),
    ({"family": "unet", "widths": [4, 6, 8, 10]}, (96,)),
]
every = pytest.mark.parametrize(("values", "sizes"), MEMBERS, ids=range(len(MEMBERS)))


def member(values, **more):
    return build_student(values | {"in_channels": 2, "num_classes": 5} | more)


@every
def test_a_list_of_outputs_in_training_and_its_first_in_evaluation(values, sizes):
    model, x = member(values), torch.randn(2, 2, 96, 96)
    assert [tuple(o.shape) for o in model.train()(x)] == [(2, 5, s, s) for s in sizes]
    with torch.inference_mode():
        assert model.eval()(x).shape == (2, 5, 96, 96)


@every
def test_every_parameter_is_trained(values, sizes):
    model = member(values).train()
    sum(o.square().mean() for o in model(torch.randn(2, 2, 96, 96))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@every
def test_a_spec_goes_through_json_and_back(values, sizes):
    spec = member(values).spec
    assert build_student(json.loads(json.dumps(spec.to_dict()))).spec == spec


@every
def test_an_odd_member_has_inputs_of_its_stride(values, sizes):
    model = member(values).eval()
    n = model.spec.stride
    with torch.inference_mode():
        assert model(torch.randn(1, 2, 2 * n, 3 * n)).shape == (1, 5, 2 * n, 3 * n)


@pytest.mark.parametrize(("wrong", "named"), [
    ({"family": "resnext"}, "resnext"), ({"family": "dense", "depth": 3}, "depth"),
    ({"family": "dense", "stem_stride": 1}, "stem_stride"), ({"family": "dense", "head": "fancy"}, "head"),
    ({"family": "dense", "widths": [8, 8, 8]}, "stages"), ({"family": "dense", "blocks": [-1, 0, 0, 0, 0]}, "blocks"),
    ({"family": "dense", "widths": "abcde"}, "dense student"), ({"family": "mobilenetv2", "width_mult": "x"}, "mobile"),
])
def test_what_is_not_a_member_is_refused_by_name(wrong, named):
    with pytest.raises(EdgesegError, match=named):
        build_student(wrong)
