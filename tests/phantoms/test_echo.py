"""The echo phantom: reproducible clips whose masks, volumes, valves and events agree."""

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from edgeseg.errors import EdgesegError
from edgeseg.phantoms.echo import DOMAINS, FRAMES, echo_clip, echo_patient, truth
from edgeseg.phantoms.echo_beat import eased, events, moments
from edgeseg.phantoms.echo_heart import LEVELS, fullness, leaflets, poses, volume
from edgeseg.phantoms.echo_image import ANGLES, Scanner
from edgeseg.phantoms.echo_scene import X, Y, paint, warp_of
from edgeseg.phantoms.texture import stream
from edgeseg.readers import open_data

FINGERPRINT = {"clip": (137, 49.0, [18, 65, 107], [34, 80, 124]), "areas": [1626, 1681, 1730],
               "means": [31.1, 31.1, 31.3]}
DRAWN = [("train", 0), ("train", 1), ("train", 2), ("other", 0), ("other", 1)]


@pytest.fixture(scope="module")
def clips():
    """patient, frames, labels, truth of some clips of both domains."""
    patients = [echo_patient(i, seed=3, domain=DOMAINS[name]) for name, i in DRAWN]
    return [(p, *echo_clip(p), truth(p)) for p in patients]


def many(count=60, domain="train", **ranges):
    more = "".join(f"&{k}={v}" for k, v in ranges.items())
    data = open_data(f"phantom:echo?n={count}&seed=5&domain={domain}{more}")
    return [echo_patient(*ref.load.args[:3]) for ref in data.refs]


def test_same_seed_same_clip_in_any_order(clips):
    echo_patient(5, seed=1)
    again = open_data("phantom:echo?n=3&seed=3").refs[2].load()
    np.testing.assert_array_equal(again.frames, clips[2][1])
    np.testing.assert_array_equal(again.labels, clips[2][2])


def test_index_seed_and_domain_change_the_clip():
    drawn = {round(echo_patient(i, s, d).heart.edv, 4) for i in range(4) for s in range(3) for d in DOMAINS.values()}
    assert len(drawn) == 24


def test_data_of_patient_0_are_those_of_every_machine(clips):
    """Coarse on purpose: a rounding difference passes, another random stream does not."""
    patient, frames, labels, known = clips[0]
    assert (patient.count, patient.fps, known["ed"], known["es"]) == FINGERPRINT["clip"]
    np.testing.assert_allclose(labels[:3].sum((1, 2)), FINGERPRINT["areas"], atol=4)
    np.testing.assert_allclose(frames[:3].mean((1, 2, 3)), FINGERPRINT["means"], atol=0.5)


def test_a_case_is_like_one_of_echonet_with_every_frame_labelled():
    case = open_data("phantom:echo?n=1&seed=8&domain=other").refs[0].load()
    assert (case.axis, case.spacing, case.provenance["spacing"]) == ("time", (1.0, 1.0), "unknown")
    assert case.frame_time == pytest.approx(1 / case.provenance["echo"]["fps"])
    assert case.frames.dtype == np.float32
    assert case.frames.shape == (len(case.labels), 1, 112, 112)
    assert FRAMES[0] <= len(case.frames) <= FRAMES[1]
    assert case.frames.min() == 0
    assert 120 < case.frames.max() <= 255
    np.testing.assert_array_equal(case.frames, np.rint(case.frames))
    assert set(np.unique(case.labels)) == {0, 1}
    assert case.scheme.names == ("background", "LV")


def test_inner_muscle_gets_dim_in_systole_and_the_mask_does_not_change():
    """Of `train` clips alone; at end-diastole nothing is dimmer than without."""
    assert all(p.look.veil == 0 for p in many(20, "other"))
    patient = next(p for p in many(20) if p.look.veil > 12)
    course = poses(patient.heart, moments(patient.beats, patient.times), patient.times)
    full, least = max(course, key=lambda p: p.half), min(course, key=lambda p: p.half)
    for pose, dimmer in ((full, False), (least, True)):
        warp = warp_of(patient.heart, course[0], pose)
        (plain, mask), (veiled, same) = (paint(patient.heart, look, pose, warp)
                                         for look in (replace(patient.look, veil=0.0), patient.look))
        np.testing.assert_array_equal(mask, same)
        assert ((plain - veiled > 0.05)[~mask].sum() > 100) == dimmer


def test_every_frame_has_one_ventricle_without_holes(clips):
    for _, _, labels, _ in clips:
        for mask in labels[::7]:
            assert ndimage.label(mask)[1] == 1
            assert (ndimage.binary_fill_holes(mask) == mask).all()
            assert 250 < mask.sum() < 3200


def test_nothing_but_marks_lies_outside_the_sector(clips):
    for patient, frames, labels, _ in clips:
        y, x = np.mgrid[:112, :112]
        angle = np.abs(np.arctan2(x - patient.scan.apex[0], y - patient.scan.apex[1]))
        outside = ndimage.binary_erosion((angle > patient.scan.half) & (patient.scan.marks == 0), iterations=9)
        assert frames[:, 0, outside].mean() < 3  # what compression leaves
        assert not labels[:, outside].any()


def test_the_cavity_is_darker_than_the_wall_beside_the_septum():
    """Of most clips: walls may lie in a shadow."""
    darker = []
    for patient in many(8):
        (frame,), (mask,) = echo_clip(replace(patient, count=1))
        ring = ndimage.binary_dilation(mask, iterations=6) & ~ndimage.binary_dilation(mask)
        darker.append(frame[0][ndimage.binary_erosion(mask, iterations=2)].mean() < 0.7 * frame[0][ring].mean())
    assert np.mean(darker) >= 0.75


def test_ejection_fraction_follows_from_the_volumes_at_the_events():
    for patient in many(20):
        known, beats = truth(patient), patient.beats
        ends = moments(beats, beats.end_systole()).volume
        np.testing.assert_allclose(1 - ends / beats.edv[:-1], beats.ef, atol=1e-9)
        assert 100 * (1 - known["esv"] / known["edv"]) == pytest.approx(known["ef"])


def test_masks_reproduce_the_ejection_fraction_by_area_and_length(clips):
    """V goes with area^2 / length for one shape; pixels and beats that differ leave some points."""
    for patient, _, labels, known in clips:
        times = np.arange(patient.count) / patient.fps
        length = np.array([p.length for p in poses(patient.heart, moments(patient.beats, times), times)])
        size = labels.sum((1, 2)) ** 2 / length
        ed = known["ed"][0]
        es = min(e for e in known["es"] if e > ed)
        assert 100 * (1 - size[es] / size[ed]) == pytest.approx(known["ef"], abs=4)


def test_the_shape_has_the_volume_of_the_course(clips):
    for patient, _, _, known in clips:
        times = np.arange(patient.count) / patient.fps
        at = moments(patient.beats, times)
        made = [volume(patient.heart, p.half, p.length) for p in poses(patient.heart, at, times)]
        np.testing.assert_allclose(made, known["volume"], rtol=1e-9)


def test_a_ball_has_the_volume_of_a_ball(clips):
    """Half widths sqrt(1 - (1 - 2s)^2) over a length of 2W: 4/3 pi W^3."""
    heart = replace(clips[0][0].heart, pixel=1.0, foreshortening=0.0, ripple=np.zeros((2, 3)))
    ball = np.trapezoid(1 - (1 - 2 * LEVELS) ** 2, LEVELS)
    made = volume(heart, 20.0, 40.0) / fullness(heart) * ball
    assert made == pytest.approx(4 / 3 * np.pi * 20**3 / 1000, rel=1e-3)


def test_volume_stands_still_while_both_valves_are_closed():
    for patient in many(10):
        beats = patient.beats
        for k in range(len(beats.start) - 1):
            tense = np.linspace(beats.start[k], beats.start[k] + beats.contraction, 7)[:-1]
            slack = np.linspace(beats.end_systole()[k], beats.opening()[k], 7)
            assert np.ptp(moments(beats, tense).volume) < 1e-9
            assert np.ptp(moments(beats, slack).volume) < 1e-9


def test_the_mitral_valve_is_closed_in_systole_and_opens_in_every_diastole():
    for patient in [*many(5), *many(5, hr="150-180")]:
        beats = patient.beats
        times = np.arange(beats.start[0], beats.start[-1], 0.002)
        mitral = moments(beats, times).mitral
        for begin, opens, end in zip(beats.start, beats.opening(), beats.start[1:], strict=False):
            assert not mitral[(times > begin) & (times < opens)].any()
            assert mitral[(times > opens) & (times < end)].max() > 0.9
        assert mitral.min() >= 0
        assert (beats.opening() < beats.start[1:]).all()


def test_leaflets_of_an_open_valve_leave_the_annulus_free():
    gap = [abs(np.subtract(*[v[-1] for _, v in leaflets(-15.0, 14.0, 60.0, how, 75.0)])) for how in (0.0, 0.5, 1.0)]
    assert gap[0] < 2 < gap[1] < gap[2]


def test_events_lie_at_the_extremes_of_volume_and_alternate():
    for patient in many(20):
        ed, es = events(patient.beats, patient.fps, patient.count)
        at = moments(patient.beats, np.arange(patient.count) / patient.fps).volume
        for frame in ed:
            near = at[max(0, frame - 3) : frame + 4]
            assert at[frame] >= near.max() - 0.25 * np.ptp(at)
        kinds = [kind for _, kind in sorted([(f, "ed") for f in ed] + [(f, "es") for f in es])]
        assert all(a != b for a, b in pairwise(kinds))
        assert any(s > d for d in ed for s in es)


def test_extremes_of_the_mask_are_within_two_frames_of_the_events(clips):
    for _, _, labels, known in clips:
        area = ndimage.gaussian_filter1d(labels.sum((1, 2)).astype(float), 0.7)
        for frames, sign in ((known["ed"], 1), (known["es"], -1)):
            inner = [f for f in frames if 5 <= f < len(area) - 5]
            for frame in inner:
                assert abs(int(np.argmax(sign * area[frame - 5 : frame + 6])) - 5) <= 3


def test_beats_of_a_clip_differ_in_length():
    for patient in many(10, domain="other"):
        lengths = np.diff(patient.beats.start)
        assert lengths.std() / lengths.mean() > 0.003


def test_conditioned_clips_keep_to_their_ranges():
    patients = many(20, ef="20-40", hr="90-120")
    assert all(20 <= truth(p)["ef"] <= 40 and 90 <= p.hr <= 120 for p in patients)
    rates = [60 / np.diff(p.beats.start).mean() for p in patients]
    assert 95 < np.mean(rates) < 115
    wide = [truth(p)["ef"] for p in many(40)]
    assert min(wide) < 30
    assert max(wide) > 65


def test_frame_rates_and_sizes_cover_those_of_real_clips():
    patients = many(40)
    assert all(30 <= p.fps <= 60 for p in patients)
    assert sum(p.fps == 50 for p in patients) > 10
    assert all(40 < p.heart.edv < 320 for p in patients)


def test_domains_are_shifted_against_each_other():
    train, other = many(30), many(30, domain="other")
    for value in (lambda p: p.scan.decibel, lambda p: p.look.septum, lambda p: p.heart.tilt, lambda p: p.fps):
        assert np.std([value(p) for p in train]) > 1.1 * np.std([value(p) for p in other])
    assert np.mean([p.heart.foreshortening for p in other]) > 1.5 * np.mean([p.heart.foreshortening for p in train])
    assert not {p.name for p in train} & {p.name for p in other}


def test_speckle_widens_with_depth():
    """Of an even tissue: correlation across the beam, two pixels apart, near the probe and at the bottom."""
    (patient,) = many(1, domain="other")
    scan = patient.scan
    scan = replace(scan, beam=(scan.beam[0], 0.018 * ANGLES / (2 * scan.half)), weight=0 * scan.weight, sharp=0.0,
                   clutter=scan.clutter - 9, floor=scan.floor - 9, apex=(66.0, 0.0), jpeg=98)
    near, far = [], []
    for seed in range(8):
        picture = Scanner(scan, stream(seed))(np.full((112, 112), 0.6, np.float32), (X + 5 * seed, Y))
        for found, rows in ((near, slice(25, 45)), (far, slice(75, 95))):
            part = picture[rows, 56:76]
            part = part - ndimage.gaussian_filter(part, 5)
            found.append((part[:, 2:] * part[:, :-2]).mean() / part.var())
    assert np.mean(far) > np.mean(near) + 0.1


def test_an_excerpt_is_a_part_of_the_clip_with_its_events_and_volumes():
    """Greys differ by the scanner's noise, which is drawn frame by frame."""
    starts = []
    for whole, part in zip(*(open_data(f"phantom:echo?n=3&seed=5{more}") for more in ("", "&frames=30")), strict=True):
        of_whole, of_part = whole.provenance["echo"], part.provenance["echo"]
        assert len(part.frames) == len(part.labels) == 30
        first = next(t for t in range(len(whole.frames) - 29)
                     if np.allclose(of_whole["volume"][t:t + 30], of_part["volume"]))
        assert np.mean(part.labels != whole.labels[first:first + 30]) < 1e-3
        for phase in ("ed", "es"):
            assert of_part[phase] == [t - first for t in of_whole[phase] if first <= t < first + 30]
        assert np.isfinite(of_part["edv"])
        starts.append(first)
    assert len(set(starts)) == 3
    again = open_data("phantom:echo?n=1&seed=5&frames=192").refs[0].load()
    assert np.array_equal(again.frames, open_data("phantom:echo?n=1&seed=5").refs[0].load().frames)


def test_cases_are_split_by_patient_and_references_can_be_pickled():
    data = open_data("phantom:echo?n=20")
    assert [len(data.select(s)) for s in ("train", "dev", "val")] == [14, 2, 4]
    assert pickle.loads(pickle.dumps(data.refs[3])).id == data.refs[3].id


def test_a_split_file_is_followed(tmp_path):
    file = tmp_path / "split.json"
    file.write_text('{"train": ["echo_train0001"], "dev": [], "val": ["echo_train0000"]}', "utf-8")
    assert [r.split for r in open_data("phantom:echo?n=2", file).refs] == ["val", "train"]


@pytest.mark.parametrize(("options", "says"), [
    ("n=0", "n=0"), ("seed=-1", "seed=-1"), ("domain=wide", "domain=wide"), ("length=9", "option length"),
    ("frames=1", "frames=1"), ("ef=40-20", "ef=40-20"), ("ef=40", "ef=40"), ("ef=0-20", "ef=0-20"),
    ("hr=20-400", "hr=20-400"), ("hr=a-b", "hr=a-b"), ("ef=20.5-30", "ef=20.5-30")])
def test_bad_options_are_refused_in_one_line(options, says):
    with pytest.raises(EdgesegError, match=says) as caught:
        open_data(f"phantom:echo?{options}")
    assert "\n" not in str(caught.value)
    assert "phantom:echo" in str(caught.value)


def test_an_unknown_phantom_names_those_that_there_are():
    with pytest.raises(EdgesegError, match="phantom:cine, phantom:echo and phantom:ct"):
        open_data("phantom:lung?n=2")


def test_easing_starts_at_0_and_ends_at_1():
    for share in (0.8, 1.0):
        np.testing.assert_allclose(eased(np.array([-1, 0, 1, 2]), share), [0, 0, 1, 1])

