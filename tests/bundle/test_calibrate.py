from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from edgeseg.bundle.calibrate import calibration_frames, centre_window, check_leak, draw_frames
from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import CaseRef, Dataset

GRID = Preprocessing((16, 16), (1.0, 1.0))


def toy_data(patients=6, slices=10, phases=("ED", "ES"), constant=False) -> Dataset:
    def load(patient, phase):
        frames = np.random.default_rng([int(patient[1:]), phase == "ED"]).normal(size=(slices, 1, 12, 20)) * 100
        if constant:
            frames[1:] = 5
        return Case(f"{patient}_{phase}", patient, frames, (1.0, 1.0), phase=phase, group="NOR")

    refs = tuple(CaseRef(f"p{p}_{phase}", f"p{p}", "train", phase, None, None,
                         lambda p=p, phase=phase: load(f"p{p}", phase)) for p in range(patients) for phase in phases)
    return Dataset("toy", "toy:", refs, None, "none")


class ToyRun:
    """What calibration asks of a run."""

    preprocessing = GRID

    def __init__(self, folder, train, dev=(), val=()):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "student.safetensors").write_bytes(b"weights")
        self.data = {"splits": {"train": train, "dev": dev, "val": val}}


def test_every_patient_gives_as_many_frames_as_any_other_and_both_phases_are_drawn():
    frames = draw_frames(toy_data(), GRID, 20, seed=0)
    assert len(frames) == 20
    counts = Counter(f.case.patient for f in frames).values()
    assert max(counts) - min(counts) <= 1
    assert min(Counter(f.case.phase for f in frames).values()) >= 8


def test_a_single_frame_a_patient_still_covers_the_stack_and_the_phases():
    frames = draw_frames(toy_data(patients=9), GRID, 9, seed=3)
    assert len({f.case.patient for f in frames}) == 9
    assert {f.index // 4 for f in frames} == {0, 1, 2}  # of ten slices
    assert set(Counter(f.case.phase for f in frames).values()) == {4, 5}


def test_no_frame_is_drawn_twice_even_when_more_are_asked_for_than_there_are():
    frames = draw_frames(toy_data(patients=2, slices=3), GRID, 100, seed=0)
    assert sorted((f.case.id, f.index) for f in frames) == [(f"p{p}_{e}", i) for p in (0, 1) for e in ("ED", "ES")
                                                            for i in range(3)]


def test_the_draw_depends_on_the_seed_and_on_nothing_else():
    first, again, other = (draw_frames(toy_data(), GRID, 8, seed) for seed in (1, 1, 2))
    assert [(f.case.id, f.index) for f in first] == [(f.case.id, f.index) for f in again]
    assert [(f.case.id, f.index) for f in first] != [(f.case.id, f.index) for f in other]


@pytest.mark.parametrize("shape", [(12, 20), (13, 21), (16, 16), (15, 17), (31, 8)])
def test_the_centre_window_is_the_tile_that_segmentation_uses_for_images_that_fit(shape):
    canvas = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    seen = []

    def net(x):
        seen.append(x)
        return np.zeros((len(x), 2, 16, 16), np.float32)

    GRID.canvas_logits(canvas[None], net)
    window = centre_window(canvas, GRID.size)
    assert window.shape == (1, 16, 16)
    if max(shape) <= 16:
        np.testing.assert_array_equal(window, seen[0][0])
    else:  # the middle of the image is the middle of the window
        assert np.isin(canvas[0, shape[0] // 2, shape[1] // 2], window[0, 7:10, 7:10])


def test_the_sheet_counts_frames_and_names_nobody(tmp_path):
    data = toy_data()
    tensors, sheet = calibration_frames(ToyRun(tmp_path, data.patients()), data, 12, seed=0)
    assert tensors.shape == (12, 1, 16, 16)
    assert (len(sheet.frames), sheet.patients, sheet.seed) == (12, 6, 0)
    assert sum(sheet.strata["phase"].values()) == 12
    assert "p0" not in sheet.model_dump_json()
    assert len({f.patient for f in sheet.frames}) == 6


def test_hashes_cannot_be_made_without_the_weights(tmp_path):
    data = toy_data()
    one = calibration_frames(ToyRun(tmp_path / "a", data.patients()), data, 4, 0)[1]
    run = ToyRun(tmp_path / "b", data.patients())
    (run.folder / "student.safetensors").write_bytes(b"others")
    two = calibration_frames(run, data, 4, 0)[1]
    assert [f.sha256 for f in one.frames] == [f.sha256 for f in two.frames]
    assert not {f.patient for f in one.frames} & {f.patient for f in two.frames}


@pytest.mark.parametrize("held_out", ["dev", "val"])
def test_a_patient_that_was_held_out_of_training_cannot_calibrate(tmp_path, held_out):
    data = toy_data()
    run = ToyRun(tmp_path, data.patients()[1:], **{held_out: ["p0"]})
    with pytest.raises(EdgesegError, match=f"patient p0 was in {held_out}"):
        check_leak(run, data)


def test_a_patient_who_is_new_since_training_cannot_calibrate(tmp_path):
    data = toy_data()
    with pytest.raises(EdgesegError, match="patient p5 is new"):
        check_leak(ToyRun(tmp_path, data.patients()[:5]), data)


def test_cases_of_other_splits_are_never_drawn(tmp_path):
    data = toy_data()
    mixed = replace(data, refs=tuple(replace(r, split="dev" if r.patient == "p3" else "train") for r in data.refs))
    run = ToyRun(tmp_path, [p for p in data.patients() if p != "p3"], dev=["p3"])
    sheet = calibration_frames(run, mixed, 100, 0)[1]
    assert sheet.patients == 5


@pytest.mark.parametrize("count", [0, 1, -5])
def test_fewer_than_two_frames_are_refused(tmp_path, count):
    with pytest.raises(EdgesegError, match="--calibration-frames"):
        calibration_frames(ToyRun(tmp_path, toy_data().patients()), toy_data(), count, 0)


def test_constant_frames_do_not_count(tmp_path):
    data = toy_data(patients=1, phases=("ED",), constant=True)
    with pytest.raises(EdgesegError, match="only 1 usable training frame"):
        calibration_frames(ToyRun(tmp_path, ["p0"]), data, 10, 0)
