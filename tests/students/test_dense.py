"""The dense student family: sizes by hand, and what its design promises."""

import torch

from edgeseg.students.cost import count_macs, count_parameters
from edgeseg.students.dense import DenseSpec, DenseUNet


def test_parameters_and_macs_are_those_computed_by_hand():
    """A convolution with BatchNorm has k^2 c_in c_out weights and 2 c_out more; heads have a bias."""
    conv = {"stem": (9 * 1 * 16, 96), "1": (9 * 16 * 32, 48), "2": (9 * 32 * 64, 24), "3": (9 * 64 * 96, 12),
            "4": (9 * 96 * 128, 6), "r1": (2 * 9 * 32 * 32, 48), "r2": (2 * 9 * 64 * 64, 24),
            "r3": (2 * 9 * 96 * 96, 12), "r4": (2 * 9 * 128 * 128, 6),
            "p3": (128 * 96, 6), "p2": (96 * 64, 12), "p1": (64 * 32, 24), "p0": (32 * 16, 48),
            "d3": (9 * 96 * 96, 12), "d2": (9 * 64 * 64, 24), "d1": (9 * 32 * 32, 48), "d0": (9 * 16 * 16, 96),
            "head": (16 * 12, 96)}
    norms = 2 * (16 + 32 + 64 + 96 + 128 + 2 * (32 + 64 + 96 + 128) + 2 * (96 + 64 + 32 + 16))
    heads = sum(12 * (c + 1) for c in (16, 32, 64, 96)) - 16 * 12
    model = DenseUNet(DenseSpec())
    assert count_parameters(model) == sum(n for n, _ in conv.values()) + norms + heads == 899_680
    assert count_macs(model, (1, 1, 192, 192)) == sum(n * side * side for n, side in conv.values())


def test_the_background_is_the_zero_that_the_others_exceed():
    model = DenseUNet(DenseSpec(num_classes=3)).train()
    for logits in model(torch.randn(2, 1, 64, 64)):
        assert (logits[:, 0] == 0).all()
        assert logits[:, 1:].std() > 0


def test_the_sub_pixel_head_tells_neighbouring_pixels_apart():
    with torch.inference_mode():
        out = DenseUNet(DenseSpec()).eval()(torch.randn(1, 1, 64, 64))[0, 1]
    assert (out[0::2, 0::2] != out[1::2, 1::2]).float().mean() > 0.99
