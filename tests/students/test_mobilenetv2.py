"""The MobileNetV2 student family: hand-computed sizes and the contract that every member keeps."""

import pytest
import torch

from edgeseg.errors import EdgesegError
from edgeseg.students.cost import count_macs, count_parameters
from edgeseg.students.mobilenetv2 import MobileNetV2Spec, MobileNetV2UNet


def inverted_residual(c_in: int, c_out: int, t: int) -> tuple[int, int]:
    """(parameters, multiply-accumulates per output pixel when the stride is 1) by hand."""
    wide = t * c_in
    expand = (c_in * wide + 2 * wide, c_in * wide) if t > 1 else (0, 0)
    return expand[0] + 9 * wide + 2 * wide + wide * c_out + 2 * c_out, expand[1] + 9 * wide + wide * c_out


def by_hand(spec: MobileNetV2Spec, size: int) -> tuple[int, int]:
    """Parameters and MACs of a member, level by level, from the formulas of the block."""
    c, t = spec.channels, spec.expansion
    pixels = [(size // (spec.stem_stride * 2**k)) ** 2 for k in range(len(c))]
    params = 9 * spec.in_channels * c[0] + 2 * c[0]
    macs = 9 * spec.in_channels * c[0] * pixels[0]
    for k, width in enumerate(c):
        for block in range(spec.blocks[k]):
            c_in = (c[max(0, k - 1)] if block == 0 else width)
            ratio = 1 if k == 0 and block == 0 else t
            p, m = inverted_residual(c_in, width, ratio)
            params += p
            macs += m * pixels[k]
            if block == 0 and k > 0 and ratio > 1:  # the expansion runs before the strided depthwise layer
                macs += c_in * ratio * c_in * (pixels[k - 1] - pixels[k])
    for k in range(len(c) - 1):
        p, m = inverted_residual(c[k], c[k], t)
        params += c[k + 1] * c[k] + 2 * c[k] + p
        macs += c[k + 1] * c[k] * pixels[k + 1] + m * pixels[k]
    params += sum(c[k] * spec.num_classes + spec.num_classes for k in range(4))
    return params, macs + c[0] * spec.num_classes * pixels[0]


MEMBERS = [
    (MobileNetV2Spec(), 413_392),
    (MobileNetV2Spec(expansion=1, width_mult=0.5), None),
    (MobileNetV2Spec(stem_stride=1, expansion=8, widths=(8, 16, 24, 40, 64, 96), blocks=(1,) * 6), None),
]


@pytest.mark.parametrize(("spec", "pinned"), MEMBERS)
def test_parameters_and_macs_are_those_computed_by_hand(spec, pinned):
    model = MobileNetV2UNet(spec)
    params, macs = by_hand(spec, 192)
    assert count_parameters(model) == params
    assert count_macs(model, (1, 1, 192, 192)) == macs
    assert pinned is None or params == pinned


@pytest.mark.parametrize("expansion", [1, 2, 4, 6, 8])
def test_every_expansion_ratio_of_the_published_table_is_a_member(expansion):
    assert MobileNetV2UNet(MobileNetV2Spec(expansion=expansion, width_mult=0.5)).eval()(torch.zeros(1, 1, 32, 32)).shape


@pytest.mark.parametrize("wrong", [{"expansion": 3}, {"stem_stride": 4}, {"widths": (8, 16), "blocks": (1, 1)}])
def test_a_member_that_does_not_exist_is_refused(wrong):
    with pytest.raises(EdgesegError):
        MobileNetV2Spec(**wrong)
