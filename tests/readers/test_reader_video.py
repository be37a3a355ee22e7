"""`video:` on files written by OpenCV and pydicom, whole and damaged."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeseg.errors import EdgesegError
from edgeseg.readers import open_data
from edgeseg.readers.clip import DEFAULT_FPS, decode, frame_rate


def grey_clip(count: int = 20, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """uint8 [T, H, W]: a bright block that widens by a pixel a frame, on a background that brightens by 4."""
    clip = np.zeros((count, *size), np.uint8)
    for t in range(count):
        clip[t] = 20 + 4 * t
        clip[t, size[0] // 4 : size[0] // 2, 8 : 20 + t] = 220
    return clip


def write_video(path: Path, clip: np.ndarray, fps: float = 50, codec: str = "MJPG") -> Path:
    """Grey [T, H, W] or BGR [T, H, W, 3] -> a video file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, clip.shape[2:0:-1])
    assert writer.isOpened()
    for frame in clip:
        writer.write(frame if frame.ndim == 3 else cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


def patch_rate(path: Path, scale: int, rate: int) -> Path:
    """Overwrite the frame rate of an AVI header."""
    content = bytearray(path.read_bytes())
    at = content.find(b"vids")
    content[at + 20 : at + 28] = struct.pack("<II", scale, rate)
    path.write_bytes(content)
    return path


def only(spec: str):
    (case,) = open_data(spec)
    return case


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "MJPG"), ("b.mp4", "mp4v"), ("c.AVI", "MJPG")])
def test_a_clip_of_any_shape_comes_back_frame_by_frame(tmp_path, name, codec):
    clip = grey_clip(size=(64, 96))
    case = only(f"video:{write_video(tmp_path / 'with space' / name, clip, 40, codec)}")
    assert case.frames.shape == (20, 1, 64, 96)
    assert np.abs(case.frames[:, 0] - clip).mean() < 4
    assert np.all(np.diff(case.frames[:, 0, -8:, -8:].mean((1, 2))) > 2)  # each frame once, in order
    assert (case.axis, case.spacing, case.provenance["spacing"]) == ("time", (112 / 64, 112 / 96), "unknown")
    assert case.frame_time == pytest.approx(1 / 40)
    assert case.provenance["echo"] == {"fps": pytest.approx(40)}
    assert case.provenance["notes"] == ()
    assert case.labels is None


def test_colour_becomes_grey_as_the_eye_weighs_it(tmp_path):
    colour = np.zeros((5, 32, 32, 3), np.uint8)
    colour[:, :, 16:] = (0, 0, 200)  # red, in OpenCV's order
    colour[2:, :16, :16] = (0, 200, 0)
    case = only(f"video:{write_video(tmp_path / 'a.avi', colour)}")
    assert case.frames[3, 0, 8, 24] == pytest.approx(0.299 * 200, abs=6)
    assert case.frames[3, 0, 8, 8] == pytest.approx(0.587 * 200, abs=6)
    assert "colour, turned to grey" in case.provenance["notes"]


def test_a_truncated_clip_gives_its_whole_frames_and_says_so(tmp_path):
    clip = grey_clip()
    path = write_video(tmp_path / "a.avi", clip)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    case = only(f"video:{path}")
    count = len(case.frames)
    assert 2 <= count < 15
    assert np.abs(case.frames[:, 0] - clip[:count]).max() < 60  # none is half a frame
    assert any("truncated" in n for n in case.provenance["notes"])
    assert any(f"header says 20 frames, {count} were decoded" in n for n in case.provenance["notes"])


def test_frames_before_a_damaged_one_keep_their_numbers(tmp_path):
    clip = grey_clip()
    path = write_video(tmp_path / "a.avi", clip)
    content, at = bytearray(path.read_bytes()), -1
    for _ in range(11):
        at = content.find(b"00dc", at + 1)
    length = struct.unpack("<I", content[at + 4 : at + 8])[0]
    content[at + 8 : at + 8 + length] = bytes(length)
    path.write_bytes(content)
    case = only(f"video:{path}")
    assert 2 <= len(case.frames) <= 11
    assert np.abs(case.frames[:, 0] - clip[: len(case.frames)]).mean() < 4
    assert any("were decoded" in n for n in case.provenance["notes"])


@pytest.mark.parametrize("content", [b"", b"no video at all " * 50, b"RIFF\0\0\0\0AVI LIST", "head"])
def test_what_does_not_decode_is_one_line_that_names_the_file(tmp_path, content, capfd):
    path = write_video(tmp_path / "a.avi", grey_clip())
    path.write_bytes(path.read_bytes()[:4000] if content == "head" else content)
    with pytest.raises(EdgesegError, match=r"a\.avi: ") as error:
        only(f"video:{path}")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("count", [0, 1])
def test_a_clip_needs_two_frames(tmp_path, count):
    path = write_video(tmp_path / "a.avi", grey_clip(2)[:count].reshape(count, 64, 64))
    with pytest.raises(EdgesegError, match=f"{count} frames can be decoded, a clip needs at least 2"):
        only(f"video:{path}")


@pytest.mark.parametrize(("scale", "rate", "said"), [(1, 0, "says 0 frames"), (0, 50, "no usable"),
                                                     (1, 5000, "says 5000 frames")])
def test_a_wrong_rate_tag_is_never_believed(tmp_path, scale, rate, said):
    case = only(f"video:{patch_rate(write_video(tmp_path / 'a.avi', grey_clip()), scale, rate)}")
    notes = " ".join(case.provenance["notes"])
    assert case.frame_time == 1 / DEFAULT_FPS
    assert said in notes
    assert "50 frames per second assumed" in notes
    assert "fps" not in case.provenance["echo"]


def test_the_first_usable_rate_wins_and_another_one_is_noted():
    nan = float("nan")
    assert frame_rate({"list": 32.0, "file": 32.1}) == (32.0, True, [])
    assert frame_rate({"list": nan, "file": 25.0}) == (25.0, True, [])
    rate, known, notes = frame_rate({"list": -1.0, "file": 25.0, "other": 50.0})
    assert (rate, known, len(notes)) == (25.0, True, 2)
    assert frame_rate({"list": nan, "file": float("inf")})[:2] == (DEFAULT_FPS, False)


def test_frames_are_counted_not_taken_from_the_header(tmp_path):
    path = write_video(tmp_path / "a.avi", grey_clip())
    content = bytearray(path.read_bytes())
    at = content.find(b"vids")
    content[at + 32 : at + 36] = struct.pack("<I", 99)  # dwLength of the stream
    path.write_bytes(content)
    clip = decode(path)
    assert len(clip.frames) == 20
    assert clip.notes == ("the header says 99 frames, 20 were decoded",)


def test_a_folder_gives_its_clips_and_says_what_it_left_out(tmp_path, caplog):
    for name in ("b/one.avi", "b/two.avi", "c/one.avi"):
        write_video(tmp_path / name, grey_clip(4))
    (tmp_path / "b" / "readme.txt").write_text("no clip")
    data = open_data(f"video:{tmp_path}")
    assert [r.id for r in data.refs] == ["b_one", "b_two", "c_one"]
    assert {r.split for r in data.refs} == {"train", "dev", "val"}
    assert "files that are no clip, left out: 1 (readme.txt)" in caplog.text
    assert (data.scheme, data.ignore) == (None, None)


def test_nothing_to_read_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x" * 200)
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(EdgesegError, match=f"{path.name}: .*no video"):
            open_data(f"video:{path}")
    with pytest.raises(EdgesegError, match="no such folder or file"):
        open_data(f"video:{tmp_path / 'away'}")
