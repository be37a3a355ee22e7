"""The ConvLSTM family: the published sizes, and that a stream is the clip it is cut from."""

import itertools

import pytest
import torch
from torch import nn

from edgeseg.errors import EdgesegError
from edgeseg.students import build_student
from edgeseg.students.convlstm import ConvLSTM, ConvLSTMSpec
from edgeseg.students.cost import count_macs, count_parameters

PUBLISHED = {  # blocks, layers -> parameters, and 10^9 multiply-accumulates a frame of 112 x 112
    (1, 1): (5_701, 0.071), (1, 2): (16_141, 0.201), (1, 3): (26_581, 0.331), (1, 4): (37_021, 0.461),
    (2, 1): (39_577, 0.201), (2, 2): (91_633, 0.461), (2, 3): (143_689, 0.721), (2, 4): (195_745, 0.981),
    (3, 1): (174_721, 0.331), (3, 2): (392_953, 0.721), (3, 3): (611_185, 1.111), (3, 4): (829_417, 1.501),
    (4, 1): (714_577, 0.461), (4, 2): (1_596_937, 0.981), (4, 3): (2_479_297, 1.501), (4, 4): (3_361_657, 2.021)}
SMALL = ConvLSTMSpec(blocks=2, layers=2, filters=4)
MEMBERS = [SMALL, ConvLSTMSpec(blocks=4, filters=2, num_classes=3), ConvLSTMSpec(blocks=1, filters=3),
           ConvLSTMSpec(blocks=2, filters=4, stem_stride=2, skips=True, in_channels=2),
           ConvLSTMSpec(blocks=1, filters=4, stem_stride=4)]
every = pytest.mark.parametrize("spec", MEMBERS, ids=range(len(MEMBERS)))


def trained_by_chance(spec: ConvLSTMSpec) -> ConvLSTM:
    """Random weights, and BatchNorm statistics that are not 0 and 1."""
    torch.manual_seed(0)
    model = ConvLSTM(spec)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, 0, 0.1)
        nn.init.uniform_(norm.running_var, 0.05, 0.2)
    return model.eval()


@pytest.mark.parametrize("size", PUBLISHED)
def test_each_member_has_the_published_number_of_parameters(size):
    blocks, layers = size
    assert count_parameters(ConvLSTM(ConvLSTMSpec(blocks=blocks, layers=layers))) == PUBLISHED[size][0]


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (2, 2), (4, 1)])
def test_a_frame_costs_the_published_multiply_accumulates(size):
    blocks, layers = size
    model = ConvLSTM(ConvLSTMSpec(blocks=blocks, layers=layers))
    assert round(count_macs(model, (1, 1, 112, 112)) / 1e9, 3) == PUBLISHED[size][1]


def test_a_stem_of_stride_two_costs_a_quarter_of_the_same_widths_without():
    plain, strided = (count_macs(ConvLSTM(ConvLSTMSpec(stem_stride=s)), (1, 1, 112, 112)) for s in (1, 2))
    assert strided < 0.3 * plain


@every
def test_a_stream_is_the_clip_over_200_frames(spec):
    model = trained_by_chance(spec)
    side = max(8, spec.stride)
    clip = torch.rand(1, 200, spec.in_channels, side, 2 * side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole, state = model(clip)[0], None
        for t, expected in enumerate(whole):
            y, state = model.step(clip[:, t], state)
            assert (y[0] - expected).abs().max() < 1e-4, t
    assert whole[-1].std() > 1e-3


@every
def test_the_states_are_those_that_the_spec_names(spec):
    side = 2 * spec.stride
    with torch.inference_mode():
        _, state = ConvLSTM(spec).eval().step(torch.zeros(1, spec.in_channels, side, side))
    assert [tuple(s.shape) for s in state] == list(spec.states((side, side)).values())
    assert list(spec.states((side, side)))[:2] == ["h0", "c0"]
    assert len(state) == 2 * spec.blocks * spec.layers


def test_no_frame_knows_of_later_ones_and_each_remembers_earlier_ones():
    model = trained_by_chance(SMALL)
    clip = torch.rand(1, 6, 1, 8, 8)
    other = clip.clone()
    other[:, 3] = 1 - other[:, 3]
    with torch.inference_mode():
        changed = (model(clip) - model(other)).abs().amax(dim=(0, 2, 3, 4))
    assert (changed[:3] == 0).all()
    assert (changed[3:] > 0).all()


def test_the_recurrence_runs_on_what_the_cell_gives_not_on_what_is_normalised():
    """The second frame's state is the same whatever BatchNorm does."""
    model, x = trained_by_chance(ConvLSTMSpec(blocks=1, filters=4)), torch.rand(1, 1, 8, 8)
    with torch.inference_mode():
        _, before = model.step(x, model.step(x)[1])
        nn.init.constant_(model.norms[0].bias, 7.0)
        _, after = model.step(x, model.step(x)[1])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@every
def test_training_gives_a_list_highest_resolution_first_and_evaluation_its_first(spec):
    model, side = ConvLSTM(spec), 2 * spec.stride
    clip = torch.rand(2, 3, spec.in_channels, side, side)
    outputs = model.train()(clip)
    assert [tuple(o.shape) for o in outputs] == [
        (2, 3, spec.num_classes, side >> k, side >> k) for k in range(min(4, spec.blocks))]
    assert all((o[:, :, 0] == 0).all() and o[:, :, 1:].std() > 0 for o in outputs)
    with torch.inference_mode():
        assert model.eval()(clip).shape == outputs[0].shape


def test_heads_that_only_train_change_nothing_else():
    model = trained_by_chance(SMALL)
    clip = torch.rand(1, 2, 1, 8, 8)
    with torch.inference_mode():
        before = model(clip)
        for p in model.training_heads.parameters():
            nn.init.constant_(p, 9.0)
        assert torch.equal(model(clip), before)
    assert sum(p.numel() for p in model.training_heads.parameters()) == 2 * SMALL.filters + 1


def test_a_single_frame_is_a_clip_of_one():
    model, x = trained_by_chance(SMALL), torch.rand(3, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(model(x), model(x[:, None])[:, 0])


def test_each_class_but_the_background_has_its_own_weights():
    two, three = (count_parameters(ConvLSTM(ConvLSTMSpec(num_classes=k))) for k in (2, 3))
    assert three - two == 12 + 1


@pytest.mark.parametrize(("wrong", "named"), [
    ({"blocks": 0}, "block"), ({"filters": 0}, "filter"), ({"stem_stride": 3}, "stem_stride"), ({"depth": 2}, "depth")])
def test_what_is_not_a_member_is_refused_by_name(wrong, named):
    with pytest.raises(EdgesegError, match=named):
        build_student({"family": "convlstm"} | wrong)


def test_the_family_has_sixteen_published_members():
    assert set(PUBLISHED) == set(itertools.product(range(1, 5), repeat=2))
