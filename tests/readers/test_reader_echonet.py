"""`echonet:` and `echonet-synthetic:` on folders written in their layout, with masks that are known."""

import csv
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from test_reader_video import grey_clip, patch_rate, write_video

from edgeseg.errors import EdgesegError
from edgeseg.labels import IGNORE
from edgeseg.readers import draw_probabilities, merge, open_data, split_weight
from edgeseg.readers.echonet import row_order
from edgeseg.readers.tracing import inter_annotator_dice, mask_of

LIST = ("FileName", "EF", "ESV", "EDV", "FrameHeight", "FrameWidth", "FPS", "NumberOfFrames", "Split")
TRACED = ("FileName", "X1", "Y1", "X2", "Y2", "Frame")
BIG, SMALL = 20.0, 12.0


def chords(width: float, top: float = 10, bottom: float = 50, centre: float = 32) -> np.ndarray:
    """A tracing [21, 4] of a block `width` wide: the long axis, then 20 chords across it."""
    y = np.linspace(top, bottom, 20)
    rows = np.stack([np.full(20, centre - width / 2), y, np.full(20, centre + width / 2), y], axis=1)
    return np.vstack([[centre, top - 3, centre, bottom + 3], rows])


def block(width: int, top: int = 10, bottom: int = 50, centre: int = 32) -> np.ndarray:
    """The mask of `chords`: its edges belong to it."""
    mask = np.zeros((64, 64), bool)
    mask[top : bottom + 1, centre - width // 2 : centre + width // 2 + 1] = True
    return mask


def write_csv(file: Path, columns: Sequence[str], rows: list) -> None:
    with file.open("w", newline="") as text:
        csv.writer(text).writerows([columns, *rows])


def write_echonet(root: Path, traced: dict[str, dict[int, np.ndarray]], rows: dict[str, dict] | None = None) -> Path:
    """Clips of 20 frames of 64 x 64 at 50 per second; `traced`: video -> frame -> rows; `rows` replace what FileList
    says of a video."""
    root.mkdir(parents=True)
    listed = []
    for k, name in enumerate(traced):
        write_video(root / "Videos" / f"{name}.avi", grey_clip())
        row = dict(zip(LIST, (name, 55.5, 40, 90, 64, 64, 50, 20, ("TRAIN", "VAL", "TEST")[k % 3]), strict=True))
        listed.append([(row | (rows or {}).get(name, {}))[c] for c in LIST])
    write_csv(root / "FileList.csv", LIST, listed)
    write_csv(root / "VolumeTracings.csv", TRACED, [[f"{v}.avi", *row, f] for v, frames in traced.items()
                                                    for f, t in frames.items() for row in t])
    return root


def one(tmp_path: Path, frames: dict[int, np.ndarray], **row):
    root = write_echonet(tmp_path / "echo net", {"0XA": frames}, {"0XA": row})
    (case,) = open_data(f"echonet:{root}")
    return case


def noted(case, words: str) -> bool:
    return any(words in note for note in case.provenance["notes"])


USUAL = {15: chords(SMALL), 4: chords(BIG)}


def test_a_clip_has_labels_on_its_traced_frames_and_ignore_elsewhere(tmp_path):
    case = one(tmp_path, USUAL)
    assert case.frames.shape == (20, 1, 64, 64)
    assert case.scheme.names == ("background", "LV")
    assert np.array_equal(case.labels[4], block(20))
    assert np.array_equal(case.labels[15], block(12))
    assert (np.delete(case.labels, [4, 15], axis=0) == IGNORE).all()
    assert case.provenance["echo"] == {"ef": 55.5, "edv": 90, "esv": 40, "fps": 50, "view": "A4C",
                                       "ed": [4], "es": [15]}
    assert (case.spacing, case.frame_time, case.axis) == ((112 / 64, 112 / 64), 0.02, "time")
    assert case.provenance["spacing"] == "unknown"
    assert case.provenance["notes"] == ()
    assert "annotators" not in case.provenance


def test_the_sets_are_those_of_the_list_or_of_a_split_file(tmp_path):
    root = write_echonet(tmp_path / "e", dict.fromkeys(("0XA", "0XB", "0XC"), USUAL))
    data = open_data(f"echonet:{root}")
    assert [r.split for r in data.refs] == ["train", "dev", "val"]
    assert data.ignore == IGNORE
    (tmp_path / "mine.json").write_text('{"train": ["0XC"], "val": ["0XA"]}')
    assert [r.split for r in open_data(f"echonet:{root}", tmp_path / "mine.json").refs] == ["val", None, "train"]
    assert pickle.loads(pickle.dumps(data)).refs[2].load().id == "0XC"


def test_the_larger_area_is_diastole_whatever_the_order_of_the_rows(tmp_path):
    against = {4: chords(BIG), 15: chords(SMALL)}
    root = write_echonet(tmp_path / "e", {"0XA": USUAL, "0XB": against, "0XC": {3: chords(BIG)}})
    usual, conflict, single = open_data(f"echonet:{root}")
    for case in (usual, conflict):
        assert (case.provenance["echo"]["ed"], case.provenance["echo"]["es"]) == ([4], [15])
    assert (noted(usual, "end-diastole by area"), noted(conflict, "end-diastole by area")) == (False, True)
    assert "ed" not in single.provenance["echo"]
    order = row_order(root)
    assert (order.systole_first, order.conflicts, order.undecided) == (("0XA",), ("0XB",), ("0XC",))


def test_several_annotators_of_a_frame_are_kept_apart_and_vote(tmp_path):
    case = one(tmp_path, {15: chords(SMALL), 4: np.vstack([chords(20), chords(24), chords(12)])})
    masks = case.provenance["annotators"]
    assert list(masks) == [4]
    assert [m.sum() for m in masks[4]] == [block(w).sum() for w in (20, 24, 12)]
    assert np.array_equal(case.labels[4], block(20))
    assert case.provenance["echo"]["ed"] == [4]


def test_agreement_is_one_against_the_majority_of_the_others():
    masks = [np.array([1, 1, 1, 0], bool), np.array([1, 1, 0, 0], bool), np.array([1, 1, 1, 1], bool)]
    # majorities of the two others: 1100, 1110, 1100
    assert inter_annotator_dice(masks) == pytest.approx((4 / 5 + 4 / 5 + 4 / 6) / 3)
    assert inter_annotator_dice(masks[:2]) == pytest.approx(4 / 5)
    assert inter_annotator_dice([np.zeros(4, bool)] * 2) == 1
    with pytest.raises(ValueError, match="at least two"):
        inter_annotator_dice(masks[:1])


def test_repaired_labels_tell_apart_what_the_rows_run_together(tmp_path):
    second = chords(24)
    root = write_echonet(tmp_path / "e", {"0XA": {15: chords(SMALL), 4: np.vstack([chords(20), second[:20]])}})
    (root / "repaired_labels").mkdir()
    for k, rows in enumerate((chords(20), second, chords(18)[:20])):  # "systol" is the larger frame here
        np.save(root / "repaired_labels" / f"0XA.systol.label{k}.npy", rows)
    (case,) = open_data(f"echonet:{root}")
    assert [m.sum() for m in case.provenance["annotators"][4]] == [block(20).sum(), block(24).sum()]
    assert case.provenance["echo"]["ed"] == [4]
    assert noted(case, "frame 4 has 20 rows")
    (root / "0XA.diastol.label0.npy").write_bytes(b"no array")
    with pytest.raises(EdgesegError, match=r"0XA\.diastol\.label0\.npy: is no array"):
        open_data(f"echonet:{root}")


@pytest.mark.parametrize(("rows", "why"), [(chords(SMALL)[:20], "has 20 rows"), (np.full((21, 4), np.nan), "no number"),
                                           (chords(SMALL) * 1e9, "no number"), (chords(SMALL)[:1], "has 1 rows")])
def test_a_frame_without_a_whole_tracing_is_reported_and_left_unlabelled(tmp_path, caplog, rows, why):
    case = one(tmp_path, {15: rows, 4: chords(BIG)})
    assert (case.labels[15] == IGNORE).all()
    assert np.array_equal(case.labels[4], block(20))
    assert noted(case, why)
    assert "tracings that are unusable, left out: 1 (0XA frame 15)" in caplog.text


def test_tracings_outside_the_image_or_the_clip_label_nothing(tmp_path):
    case = one(tmp_path, {15: chords(SMALL) + 500, 40: chords(SMALL), -1: chords(SMALL), 2: chords(BIG, centre=60)})
    assert np.flatnonzero((case.labels != IGNORE).any((1, 2))).tolist() == [2]
    assert case.labels[2].sum() == 41 * 14  # columns 50 to 63
    assert noted(case, "frame 15 is traced outside")
    assert noted(case, "frame 40 is traced, but the clip has 20")
    assert noted(case, "frame -1 is traced")
    assert noted(case, "frame 2 is traced beyond the image: clipped")


def test_lists_that_disagree_are_reported_and_what_fits_is_read(tmp_path, caplog):
    root = write_echonet(tmp_path / "e", dict.fromkeys(("0XA", "0XB"), USUAL))
    (root / "Videos" / "0XB.avi").rename(root / "Videos" / "0XZ.avi")
    with (root / "VolumeTracings.csv").open("a") as text:
        text.write("0XQ.avi,1,2,3,4,5\n0XA.avi,1,2,3,4,here\n")
    data = open_data(f"echonet:{root}")
    assert [r.id for r in data.refs] == ["0XA"]
    assert np.array_equal(next(iter(data)).labels[4], block(20))
    for words in ("without a file in Videos/, left out: 1 (0XB)", "does not list, left out: 1 (0XZ)",
                  "FileList.csv does not list: 1 (0XQ)", "1 rows have no whole frame number"):
        assert words in caplog.text


@pytest.mark.parametrize(("file", "content", "words"), [
    ("FileList.csv", None, "is missing"), ("VolumeTracings.csv", None, "is missing"),
    ("FileList.csv", "Name,EF\na,1\n", "no column FileName"), ("VolumeTracings.csv", "", "no column FileName"),
    ("VolumeTracings.csv", "FileName,X1,Y1,X2,Frame\n", "no column Y2"), ("FileList.csv", b"\xff\xfe\x00", "no CSV"),
    ("FileList.csv", "FileName\nother\n", "holds no video that FileList.csv lists"),
])
def test_unusable_lists_are_one_line_that_names_the_file(tmp_path, file, content, words):
    path = write_echonet(tmp_path / "e", {"0XA": USUAL}) / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EdgesegError, match=r".*") as error:
        open_data(f"echonet:{tmp_path / 'e'}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fps", ["0", "nan", "", "1500", "fast"])
def test_a_rate_that_cannot_be_is_replaced_by_that_of_the_file(tmp_path, fps):
    case = one(tmp_path, USUAL, FPS=fps)
    assert case.frame_time == pytest.approx(0.02)
    assert case.provenance["echo"]["fps"] == pytest.approx(50)
    assert noted(case, "which cannot be") == (fps in ("0", "1500"))


def test_without_any_usable_rate_the_assumed_one_is_said(tmp_path):
    root = write_echonet(tmp_path / "e", {"0XA": USUAL}, {"0XA": {"FPS": 0}})
    patch_rate(root / "Videos" / "0XA.avi", 1, 0)
    (case,) = open_data(f"echonet:{root}")
    assert case.frame_time == 0.02
    assert "fps" not in case.provenance["echo"]
    assert noted(case, "50 frames per second assumed")


def test_what_the_list_says_of_the_clip_is_checked(tmp_path):
    case = one(tmp_path, USUAL, NumberOfFrames=33, FPS=32)
    assert case.frame_time == 1 / 32
    assert noted(case, "FileList.csv says 33 frames, 20 were decoded")
    assert noted(case, "the file says 50 frames per second, FileList.csv 32, which is used")


def test_a_truncated_video_keeps_the_labels_before_the_cut(tmp_path):
    root = write_echonet(tmp_path / "e", {"0XA": USUAL})
    path = root / "Videos" / "0XA.avi"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 8 // 10])
    (case,) = open_data(f"echonet:{root}")
    assert 4 < len(case.frames) < 15
    assert np.array_equal(case.labels[4], block(20))
    assert noted(case, "truncated")
    assert noted(case, "frame 15 is traced, but the clip has")


def test_synthetic_clips_have_no_labels_and_volumes_of_zero_are_unknown(tmp_path):
    write_echonet(tmp_path / "synthetic" / "dynamic", {"s1": {}, "s2": {}},
                  {s: {"ESV": 0, "EDV": 0.0, "FPS": 50} for s in ("s1", "s2")})
    (tmp_path / "synthetic" / "dynamic" / "VolumeTracings.csv").unlink()
    for root in (tmp_path / "synthetic", tmp_path / "synthetic" / "dynamic"):
        data = open_data(f"echonet-synthetic:{root}")
        assert data.scheme is None
        assert [r.split for r in data.refs] == ["train", "dev"]
        case = next(iter(data))
        assert case.labels is None
        assert case.provenance["echo"] == {"ef": 55.5, "fps": 50, "view": "A4C"}


@pytest.mark.parametrize(("spec", "expected"), [
    ("echonet:/d:0.7", ("echonet:/d", 0.7)), ("echonet:/d", ("echonet:/d", None)), ("echonet:5", ("echonet:5", None)),
    ("phantom:echo?n=5&seed=0:.3", ("phantom:echo?n=5&seed=0", 0.3)), ("video:a:b.avi:2", ("video:a:b.avi", 2.0)),
    ("acdc:/d:train", ("acdc:/d:train", None)), ("acdc", ("acdc", None)),
])
def test_a_share_is_the_number_after_the_last_colon(spec, expected):
    assert split_weight(spec) == expected


@pytest.mark.parametrize("share", ["0", "-0.5", "0.0"])
def test_a_share_that_is_not_positive_is_refused(share):
    with pytest.raises(EdgesegError, match="must be positive"):
        split_weight(f"echonet:/d:{share}")


def test_a_mixture_draws_each_source_by_its_share_in_every_set(tmp_path):
    real = write_echonet(tmp_path / "real", dict.fromkeys(("0XA", "0XB", "0XC", "0XD"), USUAL))
    made = write_echonet(tmp_path / "made", {"s1": {}, "s2": {}, "s3": {}})
    data = merge([open_data(f"echonet:{real}:0.7"), open_data(f"echonet-synthetic:{made}:0.3")])
    assert draw_probabilities(data.refs) == pytest.approx([0.7 / 4] * 4 + [0.1] * 3)
    assert draw_probabilities(data.select("train").refs) == pytest.approx([0.35, 0.35, 0.3])
    again = open_data(data.spec)
    assert np.array_equal(draw_probabilities(again.refs), draw_probabilities(data.refs))
    assert [r.id for r in again.refs] == [r.id for r in data.refs]
    cases = list(again)
    assert cases[0].provenance["echo"]["ed"] == [4]
    assert cases[-1].labels is None
    even = merge([open_data(f"echonet:{real}"), open_data(f"echonet-synthetic:{made}")])
    assert draw_probabilities(even.refs) == pytest.approx([1 / 7] * 7)


def test_shares_for_some_of_the_sources_are_refused(tmp_path):
    real = write_echonet(tmp_path / "real", {"0XA": USUAL})
    made = write_echonet(tmp_path / "made", {"s1": {}})
    with pytest.raises(EdgesegError, match="give every data set a share"):
        open_data(f"echonet:{real}:0.7 + echonet-synthetic:{made}")


def test_reading_clips_never_imports_torch(tmp_path):
    root = write_echonet(tmp_path / "e", {"0XA": USUAL})
    code = (f"import sys; from edgeseg.readers import open_data; list(open_data({f'echonet:{root}'!r})); "
            f"list(open_data({f'video:{root}'!r})); "
            "print([m for m in ('torch', 'pydicom', 'onnx') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_long_axis_is_no_part_of_the_outline_and_halves_round_to_even():
    tracing = chords(20)
    tracing[0] = (0, 0, 63, 63)
    assert np.array_equal(mask_of(tracing, (64, 64)), block(20))
    halves = chords(20)
    halves[1:, 0] += 0.5  # 22.5 -> 22
    halves[1:, 2] += 0.5  # 42.5 -> 42
    assert np.array_equal(mask_of(halves, (64, 64)), block(20))
