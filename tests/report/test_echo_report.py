import cv2
import numpy as np
import pytest

from edgeseg.errors import EdgesegError
from edgeseg.measure.phases import Phases
from edgeseg.report.echo import GREEN, RED, SCALE, Curve, area_curves, contoured, write_overlay_video

T, H, W = 12, 40, 56
Y, X = np.mgrid[:H, :W]


def disks(radius: float, column: float = 28) -> np.ndarray:
    return np.stack([np.hypot(Y - 20, X - column) < radius + t / 4 for t in range(T)])


FRAMES = np.random.default_rng(0).uniform(0, 120, (T, H, W)).astype(np.float32)


def read(path) -> tuple[list[np.ndarray], float]:
    video = cv2.VideoCapture(str(path))
    frames = []
    while (got := video.read())[0]:
        frames.append(got[1])
    return frames, video.get(cv2.CAP_PROP_FPS)


def coloured(picture: np.ndarray, channel: int) -> np.ndarray:
    others = np.delete(picture.astype(int), channel, axis=-1).max(axis=-1)
    return picture[..., channel].astype(int) - others > 40


def test_a_video_has_every_frame_at_its_rate_and_both_contours_where_the_masks_end(tmp_path):
    path = write_overlay_video(tmp_path / "a folder" / "clip.mp4", FRAMES, disks(8, 18), disks(6, 40), 0.02)
    frames, fps = read(path)
    assert len(frames) == T
    assert fps == pytest.approx(50)
    assert frames[0].shape == (H * SCALE, W * SCALE, 3)
    for t in (0, T - 1):
        green, red = (np.argwhere(coloured(frames[t], channel)) / SCALE for channel in (1, 2))
        assert green.mean(axis=0) == pytest.approx([20, 18.4], abs=1)
        assert red.mean(axis=0) == pytest.approx([20, 40.4], abs=1)
        assert np.hypot(*(green - [20.5, 18.5]).T).mean() == pytest.approx(8 + t / 4, abs=1)
    assert list(path.parent.iterdir()) == [path]


def test_the_student_is_green_and_drawn_over_the_red_teacher():
    mask = disks(8)[0]
    both, teacher = contoured(FRAMES[0], mask, mask), contoured(FRAMES[0], np.zeros_like(mask), mask)
    assert (both == GREEN).all(axis=-1).sum() > 100
    assert not (both == RED).all(axis=-1).any()
    assert (teacher == RED).all(axis=-1).sum() == (both == GREEN).all(axis=-1).sum()


def test_the_inside_of_a_contour_shows_the_frame():
    plain = contoured(FRAMES[0], np.zeros((H, W), bool))
    changed = (contoured(FRAMES[0], disks(8)[0]) != plain).any(axis=-1)
    assert not changed[20 * SCALE, 28 * SCALE]
    assert (plain[..., 0] == plain[..., 2]).all()


def test_nan_frames_and_empty_masks_are_drawn(tmp_path):
    frames = FRAMES.copy()
    frames[3] = np.nan
    empty = np.zeros((T, H, W), bool)
    found, _ = read(write_overlay_video(tmp_path / "clip.mp4", frames, empty, None, 0.02))
    assert len(found) == T
    assert found[3].max() < 10


def test_a_clip_of_odd_size_is_written(tmp_path):
    path = write_overlay_video(tmp_path / "odd.mp4", FRAMES[:, :39, :55], disks(8)[:, :39, :55], None, 1 / 30)
    assert len(read(path)[0]) == T


@pytest.mark.parametrize(("name", "student", "frame_time", "message"), [
    ("clip.mp4", disks(8)[:-1], 0.02, "masks of the student"),
    ("clip.mp4", disks(8), 0.0, "no frame rate"),
    ("clip.mp4", disks(8), float("nan"), "no frame rate"),
    ("clip.nothing", disks(8), 0.02, "cannot be written as MP4"),
])
def test_what_cannot_be_a_video_is_refused_and_the_old_file_stays(tmp_path, name, student, frame_time, message):
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(EdgesegError, match=message):
        write_overlay_video(path, FRAMES, student, None, frame_time)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def picture(path) -> np.ndarray:
    return cv2.imread(str(path))


def test_area_curves_are_a_picture_with_marks(tmp_path):
    areas = 1000 + 300 * np.cos(np.arange(80) / 8)
    areas[30] = np.nan
    bare = Curve("student", areas, Phases(), "black")
    marked = Curve("student", areas, Phases((50,), (25, 75)), "black")
    without, with_marks, with_truth = (picture(area_curves(tmp_path / f"{n}.png", [c], 0.02, truth))
                                       for n, (c, truth) in enumerate([(bare, None), (marked, None),
                                                                       (bare, Phases((51,), (26,)))]))
    assert without.shape == with_marks.shape
    dark = [(image < 60).all(axis=-1).sum() for image in (without, with_marks)]
    assert dark[1] > dark[0] + 100
    assert (without != with_truth).any()
    assert len(list(tmp_path.iterdir())) == 3


def test_no_curve_at_all_is_an_empty_picture(tmp_path):
    assert picture(area_curves(tmp_path / "none.png", [], 0.02)).size
