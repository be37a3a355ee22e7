"""Segmentations of DICOM series: what they hold, what they refer to, and that other programs read them."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle
import typer
from typer.testing import CliRunner

pytest.importorskip("highdicom")
import highdicom
import pydicom
from dicom_files import ID, PERSON, Plane, oblique, save, slice_file, write_enhanced, write_series
from dicom_loops import write_loop

from edgeseg.cli.predict import predict
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.readers import open_data
from edgeseg.runtime import dicom_codes
from edgeseg.runtime.dicom_results import SegWriter, write_segs
from edgeseg.runtime.dicom_seg import Maker, Sources, make_seg
from edgeseg.runtime.dicom_series import find_series, in_graph_type, segment_moment
from edgeseg.runtime.segmenter import Segmenter

app = typer.Typer()
app.command()(predict)
BEAT = np.stack([np.stack([tiny_bundle.label_image(t + k, (30, 28)) for k in range(3)]) for t in range(2)])
"""Labels of two phases of three slices, no two slices of a phase alike."""
IMAGES = tiny_bundle.LEVELS[BEAT].astype(int)
LOOP = np.where(BEAT[:, 0] == 3, 0, BEAT[:, 0])
"""Labels of a loop: 8 bits do not hold the grey level of LV."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg")


@pytest.fixture(scope="module")
def segmenter(bundle):
    return Segmenter(bundle, threads=1)


def write(segmenter, folder, out, kind="BINARY"):
    """The SEGs of the only series of a folder, read again by highdicom."""
    (series,), _ = find_series([folder])
    written = write_segs(segmenter, Maker.of(segmenter, kind), series, out)
    return [highdicom.seg.segread(path) for path in written.files]


def planes_of(seg):
    """For each frame: segment (None in a label map), UID of its image and number of its frame, its pixels."""
    pixels = np.atleast_3d(seg.pixel_array.T).T.reshape(-1, seg.Rows, seg.Columns)
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        segment = (None if "SegmentIdentificationSequence" not in group
                   else group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        yield segment, source, group, frame


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("plane", [Plane(), oblique(gap=-8.0)], ids=["axial", "oblique from the far end"])
def test_each_phase_is_one_seg_whose_frames_lie_on_their_images(segmenter, tmp_path, plane, kind):
    files = write_series(tmp_path / "in", IMAGES, plane)
    truth = {}
    for number, file in enumerate(files):
        data = pydicom.dcmread(file)
        truth[data.SOPInstanceUID] = divmod(number, 3), data
    segs = write(segmenter, tmp_path / "in", tmp_path / "out", kind)
    assert [s.InstanceNumber for s in segs] == [1, 2]
    assert len({s.SeriesInstanceUID for s in segs}) == 1
    for t, seg in enumerate(segs):
        found = np.zeros_like(BEAT[t])
        for segment, source, group, frame in planes_of(seg):
            (phase, k), image = truth[source.ReferencedSOPInstanceUID]
            assert phase == t
            assert source.ReferencedSOPClassUID == image.SOPClassUID
            assert "ReferencedFrameNumber" not in source
            place = group.PlanePositionSequence[0].ImagePositionPatient
            np.testing.assert_allclose(place, image.ImagePositionPatient, atol=1e-4)
            found[k] += frame * (segment or 1)
        np.testing.assert_array_equal(found, BEAT[t])
        shared = seg.SharedFunctionalGroupsSequence[0]
        np.testing.assert_allclose(shared.PlaneOrientationSequence[0].ImageOrientationPatient,
                                   [*plane.row, *plane.column], atol=1e-6)
        assert shared.PixelMeasuresSequence[0].PixelSpacing == [1.5, 1.5]
        assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == pytest.approx(8)
        assert {s.ReferencedSOPInstanceUID for s in seg.SourceImageSequence} == {
            uid for uid, ((phase, _), _) in truth.items() if phase == t}
        assert (seg.PatientID, seg.PatientName, seg.StudyInstanceUID) == (ID, PERSON, "1.2.3.4.1")
        assert seg.SOPClassUID == f"1.2.840.10008.5.1.4.1.1.66.{7 if kind == 'LABELMAP' else 4}"


def test_a_file_of_many_frames_is_referred_to_by_frame(segmenter, tmp_path):
    path = write_enhanced(tmp_path / "in" / "file", IMAGES, oblique())
    image = pydicom.dcmread(path)
    for t, seg in enumerate(write(segmenter, tmp_path / "in", tmp_path / "out")):
        assert [(s.ReferencedSOPInstanceUID, s.ReferencedSOPClassUID) for s in seg.SourceImageSequence] == [
            (image.SOPInstanceUID, image.SOPClassUID)]
        found = np.zeros_like(BEAT[t])
        for segment, source, group, frame in planes_of(seg):
            described = image.PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1]
            content = described.FrameContentSequence[0]
            assert content.TemporalPositionIndex == t + 1
            np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient,
                                       described.PlanePositionSequence[0].ImagePositionPatient, atol=1e-4)
            found[content.InStackPositionNumber - 1] += frame * segment
        np.testing.assert_array_equal(found, BEAT[t])


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_loop_is_one_seg_in_time_that_lies_nowhere(segmenter, tmp_path, kind):
    path = write_loop(tmp_path / "in" / "loop", tiny_bundle.LEVELS[LOOP].astype(np.uint8))
    (seg,) = write(segmenter, tmp_path / "in", tmp_path / "out", kind)
    found, numbers = np.zeros_like(LOOP), []
    for segment, source, group, frame in planes_of(seg):
        numbers.append((segment, source.ReferencedFrameNumber))
        assert group.FrameContentSequence[0].TemporalPositionIndex == source.ReferencedFrameNumber
        assert "PlanePositionSequence" not in group
        found[source.ReferencedFrameNumber - 1] += frame * (segment or 1)
    np.testing.assert_array_equal(found, LOOP)
    assert numbers == sorted(numbers, key=lambda n: (n[0] or 0, n[1]))
    assert "FrameOfReferenceUID" not in seg
    assert seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [1.5, 1.5]
    assert seg.SourceImageSequence[0].ReferencedSOPInstanceUID == pydicom.dcmread(path).SOPInstanceUID


def test_structures_have_their_codes_and_an_unknown_one_its_own(segmenter, tmp_path):
    write_series(tmp_path / "in", IMAGES[:1])
    (seg,) = write(segmenter, tmp_path / "in", tmp_path / "out")
    said = [(s.SegmentNumber, s.SegmentLabel, s.segmented_property_type.value,
             s.segmented_property_type.scheme_designator) for s in seg.SegmentSequence]
    assert said == [(1, "RV", "53085002", "SCT"), (2, "MYO", "49848007", "SCT"), (3, "LV", "87878005", "SCT")]
    scheme = LabelScheme(("background", "left ventricle", "Left Atrium", "pericardial fat"), (0, 1, 2, 7))
    assert [dicom_codes.structure(n, v)[:2] for n, v in zip(scheme.names[1:], scheme.values[1:], strict=True)] == [
        ("87878005", "SCT"), ("82471001", "SCT"), ("LABEL-7", "99EDGESEG")]
    assert dicom_codes.structure("pericardial fat", 7)[2] == "pericardial fat"


def test_label_values_that_are_no_row_of_numbers_are_segments_in_order(segmenter, tmp_path):
    write_series(tmp_path / "in", IMAGES[:1])
    (series,), _ = find_series([tmp_path / "in"])
    scheme = LabelScheme(("background", "RV", "MYO", "fat"), (0, 40, 7, 200))
    maker = Maker("odd", "0" * 16, scheme, {})
    seg = make_seg(maker, Sources(series.files[0]), series.read(0).planes, scheme.decode(BEAT[0]))
    found = np.zeros_like(BEAT[0]).sum(0)
    for segment, *_, frame in planes_of(seg):
        found += (frame * segment).astype(found.dtype)
    np.testing.assert_array_equal(found, BEAT[0].sum(0))
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["RV", "MYO", "fat"]


def test_the_same_images_give_the_same_uids_and_other_settings_others(segmenter, tmp_path):
    write_series(tmp_path / "in", IMAGES)
    first, again, other = (write(segmenter, tmp_path / "in", tmp_path / name, kind)
                           for name, kind in (("a", "BINARY"), ("b", "BINARY"), ("c", "LABELMAP")))
    uids = [[(s.SeriesInstanceUID, s.SOPInstanceUID) for s in segs] for segs in (first, again, other)]
    assert uids[0] == uids[1]
    assert len({u for pair in uids[0] + uids[2] for u in pair}) == 6


def test_sparse_headers_and_images_without_any_structure_do(segmenter, tmp_path):
    def strip(ds, k, t):
        for name in ("PatientName", "PatientBirthDate", "PatientID", "SliceThickness", "SeriesNumber", "Modality"):
            delattr(ds, name)
        ds.PixelData = np.full((30, 28), 10 + k, "<u2").tobytes()[:-2] + b"\0\0"  # background, but not constant

    write_series(tmp_path / "in", IMAGES, change=strip)
    segs = write(segmenter, tmp_path / "in", tmp_path / "out")
    assert len(segs) == 2
    assert all(s.PatientName == "" and s.FrameOfReferenceUID and not s.pixel_array.any() for s in segs)
    assert segs[0].FrameOfReferenceUID == segs[1].FrameOfReferenceUID


@pytest.mark.parametrize(("change", "message"), [
    (lambda ds, k, t: setattr(ds, "FrameOfReferenceUID", f"1.2.{k}"), "with several frames of reference"),
    (lambda ds, k, t: delattr(ds, "StudyInstanceUID"), "says no series and study"),
    (lambda ds, k, t: setattr(ds, "PatientSex", "SECRET"), "does not do for a segmentation"),
])
def test_a_header_that_no_seg_can_be_made_of_is_one_line_without_its_values(segmenter, tmp_path, change, message):
    write_series(tmp_path / "in", IMAGES, change=change)
    with pytest.raises(EdgesegError, match=message) as error:
        write(segmenter, tmp_path / "in", tmp_path / "out")
    assert "SECRET" not in str(error.value)
    assert not list(tmp_path.glob("out/*"))


def test_frames_are_segmented_one_by_one_in_the_type_of_a_frame_graph(segmenter, tmp_path, monkeypatch):
    write_series(tmp_path / "in", IMAGES[:1])
    (series,), _ = find_series([tmp_path / "in"])
    moment = series.read(0)
    asked = []
    segment = segmenter.segment
    monkeypatch.setattr(segmenter, "segment", lambda frame, spacing: asked.append(frame) or segment(frame, spacing))
    labels, notes = segment_moment(segmenter, moment)
    assert (len(asked), notes) == (3, [])
    np.testing.assert_array_equal(labels, BEAT[0])

    class Bundle:
        class manifest:
            frames = (type("P", (), {"dtype": "uint8"}), type("P", (), {"dtype": "uint16"}))

    monkeypatch.setattr(segmenter, "bundle", Bundle)
    assert in_graph_type(segmenter, moment.frames).dtype == np.uint16
    np.testing.assert_array_equal(in_graph_type(segmenter, moment.frames), moment.frames)
    for other in (moment.frames + 0.5, moment.frames - 1, moment.frames + 70000):
        assert in_graph_type(segmenter, other) is other


def test_a_bad_frame_is_left_empty_and_said_and_only_bad_frames_are_an_error(segmenter, tmp_path):
    blank = IMAGES.copy()
    blank[0, 1] = 7
    write_series(tmp_path / "in", blank)
    (series,), _ = find_series([tmp_path / "in"])
    written = write_segs(segmenter, Maker.of(segmenter), series, tmp_path / "out")
    assert len(written.notes) == 1
    assert "1 of 3 frames are left without labels: the image is constant" in written.notes[0]
    blank[0] = 7
    write_series(tmp_path / "worse", blank)
    with pytest.raises(EdgesegError, match="constant"):
        write(segmenter, tmp_path / "worse", tmp_path / "none")
    assert not list(tmp_path.glob("none/*"))


def test_a_writing_process_makes_the_same_files_and_its_end_loses_none(segmenter, tmp_path):
    write_series(tmp_path / "in", np.repeat(IMAGES, 3, axis=0))
    (series,), _ = find_series([tmp_path / "in"])
    writer, seen = SegWriter(), []
    try:
        for name in ("here", "beside", "killed"):
            written = write_segs(segmenter, Maker.of(segmenter), series, tmp_path / name, writer,
                                 lambda moment, labels, made: seen.append(str(made.SOPInstanceUID)))
            assert len(written.files) == 6
            if name == "here":
                writer.start()
            elif name == "beside":
                (process,) = writer._pool._processes.values()
                process.kill()
        for made in ("beside", "killed"):
            for file in sorted((tmp_path / "here").iterdir()):
                one, other = pydicom.dcmread(file), pydicom.dcmread(tmp_path / made / file.name)
                assert one.PixelData == other.PixelData
                assert one.SOPInstanceUID == other.SOPInstanceUID
        assert seen[:6] == seen[6:12] == seen[12:]
        writer.start()
        for path in filter(Path.is_file, (tmp_path / "in").rglob("*")):
            data = pydicom.dcmread(path)
            del data.StudyInstanceUID
            data.save_as(path)
        (series,), _ = find_series([tmp_path / "in"])
        with pytest.raises(EdgesegError, match="says no series and study"):
            write_segs(segmenter, Maker.of(segmenter), series, tmp_path / "none", writer)
        assert not list(tmp_path.glob("none/*"))
    finally:
        writer.close()


@pytest.mark.skipif(not shutil.which("dcmdump"), reason="dcmtk is not installed")
def test_dcmtk_reads_what_is_written(segmenter, tmp_path):
    write_series(tmp_path / "in", IMAGES)
    write(segmenter, tmp_path / "in", tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        done = subprocess.run(["dcmdump", "+P", "SegmentLabel", path], capture_output=True, text=True,
                              check=True)
        assert [line.split("[")[1].split("]")[0] for line in done.stdout.splitlines()] == ["RV", "MYO", "LV"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_predict_writes_the_segs_of_every_series_and_names_none_by_a_person(bundle, tmp_path):
    write_series(tmp_path / "in" / "cine", IMAGES)
    write_loop(tmp_path / "in" / "loop", tiny_bundle.LEVELS[LOOP].astype(np.uint8), spacing=None)
    cut = save(slice_file(IMAGES[0, 0], Plane(), 0, 0, 1, series="1.7", number=7), tmp_path / "in" / "cut")
    cut.write_bytes(cut.read_bytes()[:-100])
    done = run(bundle, "-i", tmp_path / "in", "-o", tmp_path / "out", "--format", "dicom-seg", "--json")
    assert isinstance(done.exception, EdgesegError)  # of the truncated one
    document = json.loads(done.stdout.splitlines()[-1])
    assert [(c["frames"], bool(c["error"])) for c in document["cases"]] == [(6, False), (0, True), (2, False)]
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert [n[:10] + n[16:] for n in names] == ["series004__phase01.dcm", "series004__phase02.dcm", "series008_.dcm"]
    assumed = open_data(f"video:{tmp_path / 'in' / 'loop'}").refs[0].load().spacing  # as in training
    assert f"says no pixel size: {assumed[0]:g} x {assumed[1]:g} mm assumed" in " ".join(document["notes"])
    for word in (PERSON, ID):
        assert word not in done.output + " ".join(names)


def test_wrong_calls_are_one_line_and_write_nothing(bundle, tmp_path):
    write_series(tmp_path / "in", IMAGES[:1])
    (tmp_path / "file").write_text("")
    (tmp_path / "nifti").mkdir()
    (tmp_path / "nifti" / "a.nii").write_bytes(b"")
    for arguments, message in ((("in", "out", "dicom"), "choose one of nifti, dicom-seg, dicom-labelmap"),
                               (("in", "file", "dicom-seg"), "is a file, not a folder"),
                               (("nifti", "out", "dicom-seg"), "a DICOM segmentation refers to DICOM images"),
                               (("none", "out", "dicom-seg"), "no such file or folder")):
        done = run(bundle, "-i", tmp_path / arguments[0], "-o", tmp_path / arguments[1], "--format", arguments[2])
        assert message in str(done.exception)
    done = run(bundle, "-i", tmp_path / "in", "-o", tmp_path / "out", "--format", "dicom-seg", "--overlay")
    assert "leave it out" in str(done.exception)
    assert not (tmp_path / "out").exists()
