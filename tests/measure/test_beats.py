import csv
from pathlib import Path

import numpy as np
import pytest
from heart_curves import clip
from scipy.signal import find_peaks

from edgeseg.errors import EdgesegError
from edgeseg.measure.beats import COLUMNS, ClipSizes, read_size_csv, size_rows, systoles
from edgeseg.measure.phases import Phases


def test_each_beat_has_one_systole():
    curve, truth = clip([45, 50, 42])
    found = systoles(curve)
    assert len(found) == 3
    assert max(abs(a - b) for a, b in zip(found, truth.es, strict=True)) <= 2


def test_the_rule_takes_order_statistics_at_5_and_95_percent_not_at_powers():
    """Of 175 sizes the published indices are 1 and 135: a dip of half of that smaller spread passes there."""
    sizes = np.full(175, 1000.0)
    sizes[:35] = 1400.0
    sizes[60:75] = 1000 - 600 * np.hanning(17)[1:-1]
    sizes[120] = 700.0
    ordered = np.sort(sizes)
    published = 0.5 * (ordered[135] - ordered[1])
    intended = 0.5 * (ordered[166] - ordered[9])
    assert published < 300 + 1 < intended
    assert find_peaks(-sizes, distance=20, prominence=published)[0].tolist() == [67, 120]
    assert systoles(sizes) == [67]


def test_systoles_lie_at_least_20_frames_apart():
    t = np.arange(200)
    found = systoles(1000 + 200 * np.cos(2 * np.pi * t / 12))
    assert np.diff(found).min() >= 20


def test_an_empty_mask_is_no_systole():
    curve, _ = clip([45, 50, 42])
    expected = systoles(curve)
    curve[[5, 70]] = (0, np.nan)
    assert systoles(curve) == expected


@pytest.mark.parametrize("sizes", [np.full(60, 900), np.zeros(60), np.empty(0), np.full(60, np.nan), np.array([5])])
def test_a_clip_that_does_not_beat_has_no_systole(sizes):
    assert systoles(sizes) == []


def write_size_csv(path: Path, clips: list[ClipSizes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *(row for c in clips for row in size_rows(c))])
    return path


def test_the_table_has_echonets_columns_and_a_row_for_each_frame(tmp_path):
    curve, truth = clip([45, 50, 42])
    first = ClipSizes("0XA.avi", curve.astype(int), Phases(truth.ed[:1], truth.es[:1]))
    second = ClipSizes("0XB.avi", np.array([10, np.nan, 12]), Phases())
    path = write_size_csv(tmp_path / "a folder" / "size.csv", [first, second])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert path.read_text().splitlines()[0] == "Filename,Frame,Size,HumanLarge,HumanSmall,ComputerSmall"
    assert len(rows) == len(curve) + 3
    mine = [row for row in rows if row["Filename"] == "0XA.avi"]
    assert [int(row["Frame"]) for row in mine] == list(range(len(curve)))
    assert [int(row["Size"]) for row in mine] == curve.astype(int).tolist()
    marked = {column: [int(row["Frame"]) for row in mine if row[column] == "1"] for column in COLUMNS[3:]}
    assert marked == {"HumanLarge": [truth.ed[0]], "HumanSmall": [truth.es[0]],
                      "ComputerSmall": systoles(curve.astype(int))}
    assert [row["Size"] for row in rows[-3:]] == ["10", "0", "12"]


def test_rows_hold_whole_numbers():
    row = size_rows(ClipSizes("a", np.array([3.0, 4.0, 5.0]), Phases((2,), (0,))))[2]
    assert row == ("a", 2, 5, 1, 0, 0)
    assert all(isinstance(value, int) for value in row[1:])


def test_what_was_written_is_read_back(tmp_path):
    clips = [ClipSizes(f"{n}.avi", np.arange(30.0) + n, Phases((2,), (9 + n,))) for n in range(3)]
    for made, back in zip(clips, read_size_csv(write_size_csv(tmp_path / "size.csv", clips)), strict=True):
        assert (back.filename, back.truth) == (made.filename, made.truth)
        assert np.array_equal(back.sizes, made.sizes)


@pytest.mark.parametrize(("text", "word"), [
    ("Filename,Frame\na,0\n", "no column 'HumanLarge'"),
    ("Filename,Frame,Size,HumanLarge,HumanSmall\na,0,big,0,0\n", "not a"),
    ("Filename,Frame,Size,HumanLarge,HumanSmall\na,1,5,0,0\n", "count from 0"),
    ("Filename,Frame,Size,HumanLarge,HumanSmall\na,0\n", "not a")])
def test_a_table_that_does_not_hold_is_one_line(tmp_path, text, word):
    (tmp_path / "size.csv").write_text(text)
    with pytest.raises(EdgesegError, match=word):
        read_size_csv(tmp_path / "size.csv")
    with pytest.raises(EdgesegError, match="no such file"):
        read_size_csv(tmp_path / "none.csv")
