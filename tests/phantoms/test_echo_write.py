"""Clips written in EchoNet-Dynamic's layout: what is on disk, and that the reader gives it back."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from edgeseg.errors import EdgesegError
from edgeseg.labels import IGNORE
from edgeseg.measure.overlap import dice
from edgeseg.phantoms.echo_write import trace, write_echonet
from edgeseg.readers import open_data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder, and the cases that were written into it."""
    data = open_data("phantom:echo?n=3&seed=2&domain=other")
    cases = {case.id: case for case in data}
    data = replace(data, refs=tuple(replace(r, load=lambda c=cases[r.id]: c) for r in data.refs))
    return write_echonet(data, tmp_path_factory.mktemp("a folder") / "echo net"), cases


def rows(file):
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def test_columns_and_names_are_those_of_the_published_files(written):
    out, cases = written
    listed, traced = rows(out / "FileList.csv"), rows(out / "VolumeTracings.csv")
    assert list(listed[0]) == ["FileName", "EF", "ESV", "EDV", "FrameHeight", "FrameWidth", "FPS", "NumberOfFrames",
                               "Split"]
    assert list(traced[0]) == ["FileName", "X1", "Y1", "X2", "Y2", "Frame"]
    assert {r["FileName"] for r in listed} == set(cases) == {f.stem for f in (out / "Videos").iterdir()}
    assert {r["FileName"] for r in traced} == {f"{name}.avi" for name in cases}
    assert [r["Split"] for r in listed] == ["TRAIN", "TEST", "VAL"]


def test_every_traced_frame_has_21_rows_and_each_clip_two_in_either_order(written):
    out, cases = written
    order = []
    for name, case in cases.items():
        frames = [int(r["Frame"]) for r in rows(out / "VolumeTracings.csv") if r["FileName"] == f"{name}.avi"]
        both = list(dict.fromkeys(frames))
        assert [frames.count(f) for f in both] == [21, 21]
        assert both[0] in case.provenance["echo"]["ed"] or both[1] in case.provenance["echo"]["ed"]
        order.append(both[0] < both[1])
    assert set(order) == {True, False}


def test_a_tracing_has_its_long_axis_first_and_chords_across_it_from_the_apex(written):
    for case in written[1].values():
        segments = trace(case.labels[0] == 1)
        assert segments.shape == (21, 4)
        axis = segments[0, 2:] - segments[0, :2]
        axis /= np.hypot(*axis)
        chords = segments[1:, 2:] - segments[1:, :2]
        assert np.abs(chords @ axis).max() < 1e-9
        assert (np.diff((segments[1:, :2] - segments[0, :2]) @ axis) > 0).all()
        assert axis[1] > 0


def test_the_reader_gives_back_frames_masks_events_and_volumes(written):
    out, cases = written
    for case in open_data(f"echonet:{out}"):
        true = cases[case.id]
        echo, known = case.provenance["echo"], true.provenance["echo"]
        assert case.frames.shape == true.frames.shape
        assert np.abs(case.frames - true.frames).mean() < 4  # motion JPEG
        assert case.frame_time == pytest.approx(true.frame_time, rel=1e-3)
        assert [echo[k] for k in ("ef", "edv", "esv")] == pytest.approx([known[k] for k in ("ef", "edv", "esv")])
        assert echo["ed"][0] in known["ed"]
        assert echo["es"][0] in known["es"]
        for frame in (echo["ed"][0], echo["es"][0]):
            assert dice(case.labels[frame] == 1, true.labels[frame] == 1) > 0.94
        untraced = [t for t in range(len(case.labels)) if t not in (echo["ed"][0], echo["es"][0])]
        assert (case.labels[untraced] == IGNORE).all()


def test_a_folder_in_use_is_left_as_it_is(tmp_path):
    (tmp_path / "note").write_text("mine", "utf-8")
    with pytest.raises(EdgesegError, match="not an empty folder"):
        write_echonet(open_data("phantom:echo?n=1"), tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["note"]


def test_a_stack_is_no_clip(tmp_path):
    with pytest.raises(EdgesegError, match="is no labelled clip"):
        write_echonet(open_data("phantom:cine?n=1"), tmp_path / "out")
