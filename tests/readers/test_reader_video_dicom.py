"""`video:` on multi-frame DICOM as ultrasound machines write it."""

import io
from pathlib import Path

import numpy as np
import pytest
from test_reader_video import grey_clip, only, write_video

from edgeseg.errors import EdgesegError
from edgeseg.readers import open_data

pydicom = pytest.importorskip("pydicom")


def write_dicom(path: Path, pixels: np.ndarray, colours: str = "MONOCHROME2", jpeg: bool = False, **elements) -> Path:
    """Stored numbers [T, H, W] or [T, H, W, 3] -> an ultrasound multi-frame file; `elements` set or replace others."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, UltrasoundMultiFrameImageStorage, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = UltrasoundMultiFrameImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.PatientID, data.Manufacturer = "1.2.3", "SECRET^NAME", "ACME"
    data.Rows, data.Columns = pixels.shape[1:3]
    data.NumberOfFrames, data.SamplesPerPixel = len(pixels), pixels.shape[3] if pixels.ndim == 4 else 1
    data.PhotometricInterpretation, data.PixelRepresentation = colours, 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    if jpeg:
        from PIL import Image

        frames = []
        for frame in pixels:
            stream = io.BytesIO()
            Image.fromarray(frame).save(stream, "JPEG", quality=95)
            frames.append(stream.getvalue())
        data.PixelData = encapsulate(frames)
    else:
        data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OB" if jpeg or pixels.dtype.itemsize == 1 else "OW"
    data.save_as(path, enforce_file_format=True)
    return path


def region(delta: float, units: int = 3):
    from pydicom.dataset import Dataset

    item = Dataset()
    item.RegionSpatialFormat = 1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta, 2 * delta
    return item


def test_a_grey_cine_loop_comes_back_exactly_with_its_time_and_pixel_size(tmp_path):
    clip = grey_clip(6, (40, 60))
    regions = [region(9, 7), region(0.05)]
    path = write_dicom(tmp_path / "loop", clip, FrameTime="20", SequenceOfUltrasoundRegions=regions)
    case = only(f"video:{path}")
    assert np.array_equal(case.frames[:, 0], clip)
    assert case.frame_time == pytest.approx(0.02)
    assert case.spacing == pytest.approx((1.0, 0.5))  # cm a pixel -> mm, row first
    assert "spacing" not in case.provenance
    assert case.vendor == "ACME"


def test_no_name_of_a_file_says_who_the_patient_is(tmp_path):
    paths = [write_dicom(tmp_path / f"{n}.dcm", grey_clip(3), FrameTime="20") for n in "ab"]
    data = open_data(f"video:{tmp_path}")
    assert len(paths) == len(data) == 2
    assert len(data.patients()) == 1  # one person, two clips: one set
    assert "SECRET" not in repr(data)


def test_deep_and_inverted_grey_is_brought_to_0_255(tmp_path):
    deep = grey_clip(3).astype(np.uint16) * 4
    case = only(f"video:{write_dicom(tmp_path / 'a.dcm', deep, BitsStored=10, HighBit=9, CineRate=30)}")
    assert np.allclose(case.frames[:, 0], deep * (255 / 1023), atol=1e-3)
    assert case.frame_time == pytest.approx(1 / 30)
    inverted = only(f"video:{write_dicom(tmp_path / 'b.dcm', 255 - grey_clip(3), 'MONOCHROME1')}")
    assert np.array_equal(inverted.frames[:, 0], grey_clip(3))


@pytest.mark.parametrize(("colours", "jpeg"), [("RGB", False), ("YBR_FULL", False), ("YBR_FULL_422", True)])
def test_colour_loops_become_grey(tmp_path, colours, jpeg):
    clip = np.repeat(grey_clip(4)[..., None], 3, axis=3)
    if colours == "YBR_FULL":
        clip[..., 1:] = 128  # no colour
    else:
        clip[:, :16, :16] = (200, 0, 0)
    case = only(f"video:{write_dicom(tmp_path / 'a.dcm', clip, colours, jpeg, FrameTime='20')}")
    assert np.abs(case.frames[:, 0, 20:] - clip[:, 20:, :, 0]).mean() < 2
    if colours != "YBR_FULL":
        assert case.frames[1, 0, 4, 4] == pytest.approx(0.299 * 200, abs=5)
    assert "colour, turned to grey" in case.provenance["notes"]


def test_palette_colour_is_looked_up(tmp_path):
    table = (np.arange(256, dtype=np.uint16)[::-1] * 257).tobytes()
    palette = {f"{c}PaletteColorLookupTable{k}": v for c in ("Red", "Green", "Blue")
               for k, v in (("Descriptor", [256, 0, 16]), ("Data", table))}
    case = only(f"video:{write_dicom(tmp_path / 'a.dcm', grey_clip(3), 'PALETTE COLOR', **palette)}")
    assert np.abs(case.frames[:, 0] - (255 - grey_clip(3).astype(float))).max() <= 1


@pytest.mark.parametrize(("elements", "seconds", "said"), [
    ({"FrameTimeVector": [0, 25, 25]}, 0.025, ""), ({"RecommendedDisplayFrameRate": 40}, 0.025, ""),
    ({"FrameTime": "0"}, 0.02, "says inf frames"), ({"FrameTime": "0.5"}, 0.02, "says 2000 frames"),
    ({"CineRate": 0}, 0.02, "assumed"), ({}, 0.02, "assumed"),
])
def test_the_frame_rate_is_found_or_assumed_and_said(tmp_path, elements, seconds, said):
    case = only(f"video:{write_dicom(tmp_path / 'a.dcm', grey_clip(3), **elements)}")
    assert case.frame_time == pytest.approx(seconds)
    assert said in " ".join(case.provenance["notes"])
    assert bool(said) == bool(case.provenance["notes"])


def test_single_frames_are_left_out_of_a_folder_and_refused_alone(tmp_path, caplog):
    still = write_dicom(tmp_path / "still.dcm", grey_clip(1))
    write_video(tmp_path / "a.avi", grey_clip(3))
    assert [r.id for r in open_data(f"video:{tmp_path}").refs] == ["a"]
    assert "left out: 1 (still.dcm)" in caplog.text
    with pytest.raises(EdgesegError, match=r"still\.dcm: 1 frames can be decoded"):
        only(f"video:{still}")


def test_damaged_pixels_are_one_line(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", grey_clip(5))
    path.write_bytes(path.read_bytes()[:-19000])
    with pytest.raises(EdgesegError, match=r"a\.dcm: its pixels are truncated or damaged") as error:
        only(f"video:{path}")
    assert "\n" not in str(error.value)


def test_frames_before_a_damaged_one_are_used(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.repeat(grey_clip(6)[..., None], 3, axis=3), "YBR_FULL_422", jpeg=True)
    content = path.read_bytes()
    at = content.rfind(b"\xff\xd8\xff\xe0")
    path.write_bytes(content[:at] + bytes(400) + content[at + 400 :])
    case = only(f"video:{path}")
    assert len(case.frames) == 5
    assert any("5 frames before that are used" in n for n in case.provenance["notes"])
