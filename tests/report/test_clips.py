"""`edgeseg clips`: real AVI files in; masks, curves, videos and tables out."""

import csv
import json

import cv2
import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from edgeseg.cli.main import app
from edgeseg.errors import EdgesegError
from edgeseg.phantoms.echo_write import write_avi
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import open_data
from edgeseg.readers.clip import SIDE, decode, spacing_of
from edgeseg.report.clips import COLUMNS, read_clips
from edgeseg.runtime.stream import Stream


@pytest.fixture
def folder(tmp_path):
    """Two clips and one that is none."""
    place = tmp_path / "two clips"
    place.mkdir()
    for number, ref in enumerate(open_data("phantom:echo?n=2&seed=4").refs):
        write_avi(place / f"clip {number}.avi", ref.load().frames[:24, 0], 50.0)
    (place / "broken.avi").write_bytes(b"RIFF no video")
    return place


def run(*arguments):
    return CliRunner().invoke(app, ["clips", *map(str, arguments)])


def test_each_clip_gets_its_stream_s_masks_a_video_a_curve_and_its_rows(stream_bundle, folder, tmp_path):
    done = run(stream_bundle.path, "-i", folder / "clip 0.avi", "-i", folder / "clip 1.avi", "-o", tmp_path / "out",
               "--precision", "fp32", "--json")
    assert done.exit_code == 0, done.output
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {"clips.csv", "size.csv", *(
        f"clip {n}.{ending}" for n in (0, 1) for ending in ("nii.gz", "mp4", "png"))}
    case = open_data(f"video:{folder / 'clip 1.avi'}").refs[0].load()
    stream = Stream(stream_bundle, precision="fp32", spacing=case.spacing)
    expected = np.stack([stream.push(frame).labels for frame in case.frames])
    image = nib.load(out / "clip 1.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj).T, expected)
    assert len(decode(out / "clip 0.mp4").frames) == 24
    rows = list(csv.DictReader((out / "clips.csv").open()))
    assert tuple(rows[0]) == COLUMNS
    assert [(r["clip"], r["frames"], r["fps"]) for r in rows] == [("clip 0", "24", "50"), ("clip 1", "24", "50")]
    sizes = [int(r["Size"]) for r in csv.DictReader((out / "size.csv").open()) if r["Filename"] == "clip 1"]
    assert sizes == (expected > 0).sum((1, 2)).tolist()
    assert [r["clip"] for r in json.loads(done.stdout.splitlines()[-1])] == ["clip 0", "clip 1"]


def test_a_broken_clip_is_named_and_the_others_are_written(stream_bundle, folder, tmp_path):
    done = run(stream_bundle.path, "-i", folder, "-o", tmp_path / "out", "--no-pictures")
    assert isinstance(done.exception, EdgesegError)
    assert "1 of 3 clips failed" in str(done.exception)
    assert "broken.avi" in done.output
    assert len(list(csv.DictReader((tmp_path / "out" / "clips.csv").open()))) == 2
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_what_was_read_before_an_interruption_is_in_the_tables(stream_bundle, folder, tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    first = open_data(f"video:{folder / 'clip 0.avi'}").refs[0]
    with pytest.raises(KeyboardInterrupt):
        read_clips(Stream(stream_bundle, precision="fp32"), [("clip 0", first.load), ("clip 1", interrupted)],
                   tmp_path / "out", pictures=False)
    rows, sizes = (list(csv.DictReader((tmp_path / "out" / f"{name}.csv").open())) for name in ("clips", "size"))
    assert [r["clip"] for r in rows] == ["clip 0"]
    assert len(sizes) == 24


def test_a_bundle_without_a_ventricle_and_a_file_in_the_way_are_refused(folder, tmp_path, stream_bundle):
    (tmp_path / "file").touch()
    assert "is a file" in str(run(stream_bundle.path, "-i", folder, "-o", tmp_path / "file").exception)


def test_a_larger_clip_of_the_same_view_has_the_same_mm_whatever_reads_it(tmp_path):
    """Pixels of unknown size: training, targets, calibration and `edgeseg clips` all see the whole frame."""
    frames = open_data("phantom:echo?n=1&seed=4&frames=8").refs[0].load().frames[:, 0]
    for name, (height, width) in {"square": (112, 112), "wide": (90, 140)}.items():
        write_avi(tmp_path / f"{name}.avi", np.stack([cv2.resize(f, (width, height)) for f in frames]), 50.0)
        case = open_data(f"video:{tmp_path / f'{name}.avi'}").refs[0].load()
        assert case.spacing == spacing_of(case.frames[:, 0]) == (SIDE / height, SIDE / width)
        canvas = Preprocessing((112, 112), (1.0, 1.0)).to_canvas(case.frames, case.spacing)
        assert canvas.shape[-2:] == (112, 112)
    assert spacing_of(frames) == (1.0, 1.0)


def test_what_the_reader_found_odd_is_said_and_a_picture_that_fails_costs_no_reading(stream_bundle, tmp_path):
    frames = open_data("phantom:echo?n=1&seed=4&frames=12").refs[0].load().frames[:, 0]
    write_avi(tmp_path / "odd.avi", frames, 50.0)
    (tmp_path / "odd.avi").write_bytes((tmp_path / "odd.avi").read_bytes()[:-8000])
    (tmp_path / "out" / "odd.mp4").mkdir(parents=True)
    done = run(stream_bundle.path, "-i", tmp_path / "odd.avi", "-o", tmp_path / "out")
    assert done.exception is None, done.output
    assert "odd: note: the file is truncated" in done.output
    assert "odd: note: no picture: " in done.output
    assert len(list(csv.DictReader((tmp_path / "out" / "clips.csv").open()))) == 1
