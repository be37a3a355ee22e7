import io
import logging
import sys

import numpy as np
import pytest

pytest.importorskip("pydicom")
import pydicom
from dicom_files import ID, PERSON, Plane, oblique, save, slice_file, write_enhanced, write_series
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from edgeseg.errors import EdgesegError
from edgeseg.readers import open_data
from edgeseg.readers.dicom import find_stacks
from edgeseg.readers.dicom_pixels import read_pixels

RNG = np.random.default_rng(5)
CINE = RNG.integers(100, 4000, (4, 3, 7, 5))
"""Four phases of three slices; no two pixels alike (nearly)."""
PRIVATE = (PERSON, "SECRETSKI", ID, "7391124", "19470311")


def frames_of(path) -> np.ndarray:
    """[T, N, H, W] of the only stack below a path."""
    ((stack,), _) = find_stacks([path])
    return np.stack([case.frames[:, 0] for case in stack.read_times()])


def refusal(path, *words: str) -> str:
    with pytest.raises(EdgesegError) as error:
        list(open_data(f"dicom:{path}"))
    said = str(error.value)
    assert "\n" not in said
    assert all(word in said for word in words), said
    assert not any(word in said for word in PRIVATE), said
    return said


def one_slice(**changes):
    ds = slice_file(CINE[0, 0], Plane(), 0, 0, 1)
    for name, value in changes.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    return ds


@pytest.mark.parametrize("extension", ["", ".dcm", ".IMA"])
@pytest.mark.parametrize("plane", [Plane(), Plane(gap=-8.0), oblique(), oblique(gap=-9.5, spacing=(1.25, 1.75))])
def test_slices_phases_and_geometry_come_out_of_shuffled_files(tmp_path, plane, extension):
    write_series(tmp_path / "a folder", CINE, plane, extension=extension)
    cases = list(open_data(f"dicom:{tmp_path}"))
    assert [c.id.split("_", 2)[0::2] for c in cases] == [["series004", f"phase{t:02d}"] for t in range(1, 5)]
    assert len({c.patient for c in cases}) == 1
    for case, volume in zip(cases, CINE, strict=True):
        assert (case.axis, case.spacing, case.phase, case.vendor) == ("slice", plane.spacing, None, "SIEMENS")
        assert case.slice_spacing == pytest.approx(abs(plane.gap), abs=1e-4)
        np.testing.assert_array_equal(case.frames[:, 0], volume[:: -1 if plane.gap < 0 else 1])
        at = np.array([4, 6, 2, 1])  # the last pixel of the last slice lies where the writer put it
        if plane.gap < 0:
            at[2] = 0
        np.testing.assert_allclose(case.provenance["affine"] @ at, plane.affine @ [4, 6, 2, 1], atol=1e-4)


@pytest.mark.parametrize("left", [("TemporalPositionIdentifier", "AcquisitionTime", "InstanceNumber"),
                                  ("AcquisitionTime", "InstanceNumber"), ("InstanceNumber",), ()])
def test_phases_are_ordered_by_the_best_time_there_is(tmp_path, left):
    names = ("TriggerTime", "TemporalPositionIdentifier", "AcquisitionTime", "InstanceNumber")

    def only(ds, k, t):
        for name in names:
            if name not in left:
                delattr(ds, name)
        if left and left[0] != "InstanceNumber":
            ds.InstanceNumber = 500 - ds.InstanceNumber  # a worse one says something else

    write_series(tmp_path, CINE, change=only)
    found = frames_of(tmp_path)
    if left:
        np.testing.assert_array_equal(found, CINE)
    else:  # nothing is known: every image is there, in its slice
        np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(CINE, axis=0))


def test_a_trigger_time_that_is_always_zero_orders_nothing(tmp_path):
    write_series(tmp_path, CINE, change=lambda ds, k, t: setattr(ds, "TriggerTime", "0"))
    np.testing.assert_array_equal(frames_of(tmp_path), CINE)


@pytest.mark.parametrize("plane", [Plane(), oblique(gap=-7.0)])
def test_an_enhanced_file_holds_what_a_classic_series_holds(tmp_path, plane):
    write_series(tmp_path / "classic", CINE, plane)
    path = write_enhanced(tmp_path / "enhanced" / "one", CINE, plane)
    np.testing.assert_array_equal(frames_of(path), frames_of(tmp_path / "classic"))
    classic, enhanced = (next(iter(open_data(f"dicom:{tmp_path / n}"))) for n in ("classic", "enhanced"))
    np.testing.assert_allclose(classic.provenance["affine"], enhanced.provenance["affine"], atol=1e-9)


def test_any_frames_of_a_file_are_read_in_the_order_asked_for(tmp_path):
    ((stack,), _) = find_stacks([write_enhanced(tmp_path / "one", CINE)])
    slices = [s for phase in stack.phases for _, s in phase]
    np.testing.assert_array_equal(read_pixels(slices[::-1]), CINE.reshape(-1, 7, 5)[::-1])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_transfer_syntaxes_give_the_same_pixels(tmp_path, syntax):
    write_series(tmp_path, CINE, syntax=syntax)
    np.testing.assert_array_equal(frames_of(tmp_path), CINE)


def test_run_length_encoded_pixels_are_decoded(tmp_path):
    write_series(tmp_path, CINE, change=lambda ds, k, t: ds.compress(RLELossless))
    np.testing.assert_array_equal(frames_of(tmp_path), CINE)


def test_jpeg_2000_is_decoded_where_pydicom_can(tmp_path):
    if not get_decoder(JPEG2000Lossless).is_available:
        pytest.skip("no JPEG 2000 decoder is installed")
    from PIL import Image

    def compress(ds, k, t):
        coded = io.BytesIO()
        Image.fromarray(CINE[t, k].astype(np.uint16)).save(coded, "JPEG2000", irreversible=False)
        ds.PixelData, ds.file_meta.TransferSyntaxUID = encapsulate([coded.getvalue()]), JPEG2000Lossless
        ds["PixelData"].VR = "OB"
        ds.BitsStored, ds.HighBit = 16, 15

    write_series(tmp_path, CINE, change=compress)
    np.testing.assert_array_equal(frames_of(tmp_path), CINE)


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    decoder = get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"pylibjpeg": ("pylibjpeg>=2.0", "pylibjpeg-openjpeg>=2.0")})
    ds = one_slice(PixelData=encapsulate([b"1234"]))
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    path = save(ds, tmp_path / "a")
    refusal(path, f"{path}: is compressed (JPEG 2000", "pip install", "pylibjpeg-openjpeg")


@pytest.mark.parametrize("begin", [b"\2\0\0\0", b"\x08\0\x08\0"])
def test_a_file_without_preamble_or_meta_data_is_dicom_too(tmp_path, begin):
    path = save(slice_file(CINE[0, 0], Plane(), 0, 0, 1, syntax=ImplicitVRLittleEndian), tmp_path / "a")
    content = path.read_bytes()
    path.write_bytes(content[content.index(begin, 128):])
    np.testing.assert_array_equal(frames_of(path)[0, 0], CINE[0, 0])


@pytest.mark.parametrize("name", ["MR_small", "MR_small_bigendian", "MR_small_expb", "MR_small_implicit",
                                  "MR_small_RLE", "MR_small_padded", "CT_small"])
@pytest.mark.filterwarnings("ignore:The pixel data is")  # of pydicom, asked without our reader
def test_files_of_real_scanners_that_come_with_pydicom_are_read(name):
    if (path := get_testdata_file(f"{name}.dcm", download=False)) is None:
        pytest.skip("this pydicom comes without its test files")
    ds = pydicom.dcmread(path)
    (case,) = open_data(f"dicom:{path}")
    expected = ds.pixel_array.astype(np.float32) * ds.get("RescaleSlope", 1) + ds.get("RescaleIntercept", 0)
    np.testing.assert_array_equal(case.frames[0, 0], expected)
    corner = case.provenance["affine"] @ [0, 0, 0, 1] * [-1, -1, 1, 1]
    np.testing.assert_allclose(corner[:3], ds.ImagePositionPatient, atol=1e-4)
    assert case.spacing == tuple(ds.PixelSpacing)


def test_stored_numbers_become_intensities(tmp_path):
    low = CINE[0, 0]
    for name, changes, expected in (
        ("rescaled", {"RescaleSlope": "0.5", "RescaleIntercept": "-1024"}, low * 0.5 - 1024),
        ("inverted", {"PhotometricInterpretation": "MONOCHROME1"}, 4095 - low),
        ("signed", {"PixelRepresentation": 1}, np.where(low > 2047, low - 4096, low)),
        ("both", {"PixelRepresentation": 1, "PhotometricInterpretation": "MONOCHROME1"},
         -1 - np.where(low > 2047, low - 4096, low)),
        ("overlay", {"PixelData": (low | 0xF000).astype("<u2").tobytes()}, low),
        ("bytes", {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7,
                   "PixelData": (low % 256).astype(np.uint8).tobytes() + b"\0"}, low % 256),
        ("spaces", {"RescaleSlope": " 2 ", "RescaleIntercept": "0 "}, low * 2),
    ):
        save(one_slice(**changes), tmp_path / name / "file")
        np.testing.assert_array_equal(frames_of(tmp_path / name)[0, 0], expected.astype(np.float32), err_msg=name)


@pytest.mark.parametrize("missing", ["PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "BitsStored"])
def test_a_file_without_an_element_is_refused_by_both_names(tmp_path, missing):
    files = write_series(tmp_path, CINE, change=lambda ds, k, t: delattr(ds, missing) if (k, t) == (1, 2) else None)
    bad = next(f for f in files if missing not in pydicom.dcmread(f))
    refusal(tmp_path, f"{bad}: has no {missing}")


@pytest.mark.parametrize(("changes", "words"), [
    ({"PixelSpacing": [0, 1.5]}, ["PixelSpacing", "not positive"]),
    ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, ["ImageOrientationPatient", "perpendicular"]),
    ({"NumberOfFrames": 0}, ["zero frames"]),
    ({"NumberOfFrames": 4}, ["4 frames without functional groups"]),
    ({"Rows": 0}, ["zero frames or pixels"]),
    ({"Rows": None}, ["has no Rows"]),
    ({"Rows": 60000, "Columns": 60000}, ["truncated or damaged"]),
    ({"PixelData": None}, ["truncated or damaged"]),
    ({"BitsStored": 99}, ["BitsStored"]),
    ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, ["colour image", "grey-scale MR and CT"]),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, ["colour image", "grey-scale MR and CT"]),
    ({"PixelData": b"\7\0" * 35}, ["constant"]),
])
def test_bad_images_are_refused_in_one_line_with_their_file(tmp_path, changes, words):
    path = save(one_slice(**changes), tmp_path / "a b")
    refusal(path, f"{path}: ", *words)


def test_an_ultrasound_clip_is_refused_with_what_is_supported(tmp_path):
    ds = one_slice(PhotometricInterpretation="YBR_FULL_422", SamplesPerPixel=3, NumberOfFrames=30,
                   SOPClassUID=UltrasoundMultiFrameImageStorage)
    ds.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    refusal(save(ds, tmp_path / "clip"), "clip: is a colour image", "edgeseg reads grey-scale MR and CT slices")


def test_one_bad_series_does_not_stop_the_others(tmp_path):
    write_series(tmp_path, CINE)
    save(one_slice(SeriesInstanceUID="1.9", SeriesNumber=9, PhotometricInterpretation="RGB", SamplesPerPixel=3,
                   SOPClassUID=SecondaryCaptureImageStorage), tmp_path / "a screenshot")
    data = open_data(f"dicom:{tmp_path}")
    assert len(data) == 5
    assert [len(ref.load().frames) for ref in data.refs[:4]] == [3] * 4
    with pytest.raises(EdgesegError, match="a screenshot: is a colour image"):
        data.refs[4].load()


def test_what_is_no_dicom_image_is_left_out_and_counted(tmp_path, caplog):
    write_series(tmp_path, CINE)
    (tmp_path / "notes.txt").write_text("x" * 500)
    (tmp_path / "empty").touch()
    report = one_slice(Rows=None, Columns=None, PixelData=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    save(report, tmp_path / "report")
    save(one_slice(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), tmp_path / "mask")
    save(one_slice(SOPClassUID="1.2.840.10008.1.3.10", Rows=None), tmp_path / "DICOMDIR")
    with caplog.at_level(logging.WARNING):
        assert len(open_data(f"dicom:{tmp_path}")) == 4
    assert caplog.messages == ["left out: files that are not DICOM (2), DICOM objects that are no images (3)"]
    refusal(tmp_path / "mask", "holds no DICOM image")


def test_copies_of_an_image_are_used_once(tmp_path):
    files = write_series(tmp_path, CINE)
    for i, file in enumerate(files[:5]):
        (tmp_path / f"copy {i}").write_bytes(file.read_bytes())
    ((stack,), notes) = find_stacks([tmp_path])
    assert notes == ["left out: copies of an image (5)"]
    np.testing.assert_array_equal(np.stack([c.frames[:, 0] for c in stack.read_times()]), CINE)


def test_sizes_orientations_and_kinds_of_one_series_are_stacks_of_their_own(tmp_path):
    write_series(tmp_path / "cine", CINE)
    write_series(tmp_path / "phase", CINE, change=lambda ds, k, t: setattr(
        ds, "ImageType", ["ORIGINAL", "PRIMARY", "P", "ND"]))
    write_series(tmp_path / "small", CINE[:1, :1, :4, :4], change=lambda ds, k, t: setattr(ds, "InstanceNumber", 90))
    write_series(tmp_path / "other way", CINE[:1, :1], oblique(), change=lambda ds, k, t: setattr(
        ds, "InstanceNumber", 99))
    stacks, notes = find_stacks([tmp_path])
    assert [(len(s.phases), s.slots, s.name[-6:]) for s in stacks] == [
        (4, 3, "_part1"), (4, 3, "_part2"), (1, 1, "_part3"), (1, 1, "_part4")]
    assert notes == []
    assert stacks[3].read(0).slice_spacing is None


def test_a_missing_image_leaves_a_hole_and_the_other_images_stay_in_their_phase(tmp_path):
    write_series(tmp_path, CINE, change=lambda ds, k, t: (k, t) not in ((1, 0), (2, 2)))
    ((stack,), notes) = find_stacks([tmp_path])
    assert [[slot for slot, _ in phase] for phase in stack.phases] == [[0, 2], [0, 1, 2], [0, 1], [0, 1, 2]]
    for t, case in enumerate(stack.read_times()):
        np.testing.assert_array_equal(case.frames[:, 0], CINE[t, list(case.provenance["slots"])])
    assert len(notes) == 1
    assert "2 of 3 slices x 4 phases are missing" in notes[0]


def test_a_missing_slice_leaves_its_place_empty(tmp_path):
    volumes = RNG.integers(0, 4000, (2, 5, 6, 6))
    write_series(tmp_path, volumes, change=lambda ds, k, t: k != 3)
    ((stack,), notes) = find_stacks([tmp_path])
    assert stack.slots == 5
    assert stack.read(0).slice_spacing == pytest.approx(8)
    np.testing.assert_allclose(stack.affine, Plane().affine, atol=1e-6)
    assert "2 of 5 slices x 2 phases" in notes[0]


def test_uneven_slices_are_told_of(tmp_path):
    def move(ds, k, t):
        if k == 1:
            ds.ImagePositionPatient = [-20, -30, 40 + 8 + 1.9]

    write_series(tmp_path, CINE, change=move)
    ((stack,), notes) = find_stacks([tmp_path])
    assert stack.slots == 3
    assert "not evenly spaced" in notes[0]
    assert "1.9 mm" in notes[0]


def test_phases_that_the_files_speak_of_and_that_are_not_there_are_told_of(tmp_path):
    write_series(tmp_path, CINE, change=lambda ds, k, t: t < 3)
    assert find_stacks([tmp_path])[1][0].endswith("3 phases, the files speak of 4")


def test_images_side_by_side_in_one_plane_are_no_stack(tmp_path):
    write_series(tmp_path, CINE[:1], change=lambda ds, k, t: setattr(
        ds, "ImagePositionPatient", [300 * k, 0, 8 * (k // 2)]))
    refusal(tmp_path, "side by side")


def test_names_are_stable_and_tell_nothing_of_a_person(tmp_path, caplog, recwarn):
    def odd(ds, k, t):
        ds.SpecificCharacterSet = "ISO_IR 9999"
        ds.PatientName = b"M\xfcller\xff^\xc3" + PERSON.encode()
        ds.StudyDate = f"{PERSON} is no date"

    write_series(tmp_path / PERSON[:3], CINE, change=odd)
    (tmp_path / "x").mkdir()
    (tmp_path / PERSON[:3]).rename(tmp_path / "x" / "moved")
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    recwarn.clear()  # the writer warned
    data = open_data(f"dicom:{tmp_path}")
    cases = list(data)
    again = list(open_data(f"dicom:{tmp_path / 'x' / 'moved'}"))
    assert [c.id for c in cases] == [c.id for c in again]
    said = repr([(r.id, r.patient, r.vendor) for r in data.refs]) + repr(cases[0].provenance) + repr(cases[0].source)
    said += caplog.text + "".join(str(w.message) for w in recwarn)
    assert not any(word in said for word in PRIVATE)


def test_a_patient_is_one_patient_in_two_studies(tmp_path):
    write_series(tmp_path / "1", CINE, series="1.2.3", number=1)
    write_series(tmp_path / "2", CINE, series="4.5.6", number=1)
    data = open_data(f"dicom:{tmp_path}")
    assert len(data) == 8
    assert len(data.patients()) == 1
    write_series(tmp_path / "3", CINE, series="7.8.9", change=lambda ds, k, t: setattr(ds, "PatientID", "another"))
    assert len(open_data(f"dicom:{tmp_path}").patients()) == 2


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    path = save(one_slice(), tmp_path / "a")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    refusal(path, "pydicom", "pip install 'edgeseg[dicom]'")


@pytest.mark.parametrize("cases", [40, pytest.param(2000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("write", ["classic", "enhanced"])
def test_files_cut_anywhere_or_changed_anywhere_are_one_line(tmp_path, write, cases):
    path = tmp_path / "a"
    if write == "classic":
        save(one_slice(), path)
    else:
        write_enhanced(path, CINE[:1, :2])
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for cut in [*rng.integers(132, len(whole) - 1, cases), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        refusal(path, str(path))
    read, said = 0, []
    for _ in range(cases):
        content = np.frombuffer(whole, np.uint8).copy()
        content[rng.integers(132, len(whole), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(content.tobytes())
        try:
            read += len(list(open_data(f"dicom:{path}")))
        except EdgesegError as error:
            said.append(str(error))
    assert not any(word in line for word in (*PRIVATE, "\n") for line in said)
    assert read  # some changes are harmless
