"""`camus:` on folders in its layout: NIfTI written by nibabel, MetaImage written by SimpleITK and by hand."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from edgeseg.errors import EdgesegError
from edgeseg.labels import IGNORE
from edgeseg.readers import merge, open_data
from edgeseg.readers.mhd import read_mhd

SHAPE = (30, 22)
COUNT = 6
INFO = {"ED": 1, "ES": COUNT, "NbFrame": COUNT, "Sex": "F", "ImageQuality": "Good", "EF": 56.5, "FrameRate": 40}


def clip() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [T, H, W] images, no two pixels alike in a row, and labels: LV 1 shrinks, MYO 2 around it, LA 3 below."""
    images = np.arange(COUNT * SHAPE[0] * SHAPE[1]).reshape(COUNT, *SHAPE) % 251
    labels = np.zeros((COUNT, *SHAPE), np.uint8)
    for t in range(COUNT):
        labels[t, 3:17, 3:19] = 2
        labels[t, 5 : 15 - t, 5:17] = 1
        labels[t, 20:26, 6:15] = 3
    return images.astype(np.uint8), labels


def write_nifti(path: Path, array: np.ndarray) -> None:
    """[T, H, W] or [H, W]; 0.3 mm from column to column, 0.15 from row to row."""
    image = nib.Nifti1Image(array.T, np.eye(4))
    image.header.set_zooms((0.3, 0.15, 1.0)[: array.ndim])
    nib.save(image, path)


def write_mhd(path: Path, array: np.ndarray) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(array if array.ndim == 3 else array[None])
    image.SetSpacing((0.3, 0.15, 1.54))
    sitk.WriteImage(image, str(path), useCompression="_gt" in path.name)


def write_view(root: Path, patient: str, view: str = "4CH", ending: str = ".nii.gz",
               parts=("ED", "ES", "half_sequence"), labelled=("ED", "ES", "half_sequence"),
               info: dict | None = None) -> Path:
    """One view of a patient; `parts` and `labelled` name the files that are there. Returns the patient's folder."""
    folder = root / patient
    folder.mkdir(parents=True, exist_ok=True)
    entries = INFO if info is None else info
    (folder / f"Info_{view}.cfg").write_text("".join(f"{k}: {v}\n" for k, v in entries.items()))
    images, labels = clip()
    frames = {"ED": int(entries["ED"]) - 1, "ES": int(entries["ES"]) - 1}
    write = write_nifti if ending.startswith(".nii") else write_mhd
    for part in parts:
        pick = frames.get(part, slice(None))
        write(folder / f"{patient}_{view}_{part}{ending}", images[pick])
        if part in labelled:
            write(folder / f"{patient}_{view}_{part}_gt{ending}", labels[pick])
    return folder


def only(spec: str):
    (case,) = open_data(spec)
    return case


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mhd", ".mha"])
def test_a_half_sequence_comes_back_with_all_its_labels(tmp_path, ending):
    write_view(tmp_path / "ca mus", "patient0001", ending=ending)
    images, labels = clip()
    case = only(f"camus:{tmp_path / 'ca mus'}")
    assert case.id == "patient0001_4CH"
    assert np.array_equal(case.frames[:, 0], images)
    assert np.array_equal(case.labels, labels == 1)
    assert case.scheme.names == ("background", "LV")
    assert case.spacing == pytest.approx((0.15, 0.3))
    assert "spacing" not in case.provenance
    assert (case.axis, case.frame_time) == ("time", 1 / 40)
    assert case.provenance["echo"] == {"view": "A4C", "ed": [0], "es": [5], "ef": 56.5, "fps": 40}
    assert case.provenance["notes"] == ()


def test_all_structures_are_there_when_asked_for(tmp_path):
    write_view(tmp_path, "patient0001")
    case = only(f"camus:{tmp_path}?labels=all")
    assert case.scheme.names == ("background", "LV", "MYO", "LA")
    assert np.array_equal(case.labels, clip()[1])


def test_both_views_of_a_patient_are_cases_of_one_set_and_one_can_be_chosen(tmp_path):
    for patient in ("patient0001", "patient0002", "patient0003"):
        for view in ("2CH", "4CH"):
            write_view(tmp_path, patient, view)
    data = open_data(f"camus:{tmp_path}")
    assert len(data) == 6
    assert len({(r.patient, r.split) for r in data.refs}) == 3
    assert {r.split for r in data.refs} == {"train", "dev", "val"}
    assert [c.provenance["echo"]["view"] for c in data][:2] == ["A2C", "A4C"]
    assert [r.id for r in open_data(f"camus:{tmp_path}?view=2CH").refs] == [f"patient000{k}_2CH" for k in (1, 2, 3)]


def test_the_official_subgroups_are_the_sets(tmp_path):
    for patient in ("patient0001", "patient0002", "patient0003"):
        write_view(tmp_path / "database_nifti", patient)
    (tmp_path / "database_split").mkdir()
    for number, group in enumerate(("testing", "training", "validation"), 1):
        (tmp_path / "database_split" / f"subgroup_{group}.txt").write_text(f"patient{number:04d}\n")
    for root in (tmp_path, tmp_path / "database_nifti"):
        assert [r.split for r in open_data(f"camus:{root}").refs] == ["val", "train", "dev"]


def test_labels_of_ed_and_es_find_their_place_in_a_sequence_without_labels(tmp_path):
    write_view(tmp_path, "patient0001", parts=("ED", "ES", "sequence"), labelled=("ED", "ES"), ending=".mhd",
               info=INFO | {"ED": 2, "ES": 5, "LVef": 44, "LVedv": 94.2, "LVesv": 40.5, "EF": ""})
    case = only(f"camus:{tmp_path}")
    labels = clip()[1] == 1
    assert len(case.frames) == COUNT
    assert np.array_equal(case.labels[[1, 4]], labels[[1, 4]])
    assert (np.delete(case.labels, [1, 4], axis=0) == IGNORE).all()
    assert case.provenance["echo"] == {"view": "A4C", "ed": [1], "es": [4], "ef": 44, "edv": 94.2, "esv": 40.5,
                                       "fps": 40}


@pytest.mark.parametrize("labelled", [("ED", "ES"), ()])
def test_ed_and_es_alone_are_a_clip_of_two(tmp_path, labelled):
    write_view(tmp_path, "patient0001", parts=("ED", "ES"), labelled=labelled)
    case = only(f"camus:{tmp_path}")
    images, labels = clip()
    assert np.array_equal(case.frames[:, 0], images[[0, -1]])
    assert np.array_equal(case.labels, labels[[0, -1]] == 1 if labelled else np.full((2, *SHAPE), IGNORE))
    assert (case.provenance["echo"]["ed"], case.provenance["echo"]["es"]) == ([0], [1])
    assert case.frame_time is None  # they are no neighbours


@pytest.mark.parametrize(("info", "words"), [
    ({"ED": COUNT, "ES": 1}, "the LV is larger in the frame that Info_4CH.cfg names ES"),
    ({"NbFrame": 4, "ES": 4}, "Info_4CH.cfg says 4 frames, the clip has 6"),
    ({"FrameRate": 0}, "says 0 frames per second"), ({"FrameRate": ""}, "50 frames per second assumed"),
])
def test_what_is_odd_is_noted(tmp_path, info, words):
    write_view(tmp_path, "patient0001", info=INFO | info)
    case = only(f"camus:{tmp_path}")
    assert any(words in note for note in case.provenance["notes"])
    assert case.provenance["echo"]["ed"] == [int((INFO | info)["ED"]) - 1]
    assert case.frame_time == (1 / 50 if "FrameRate" in info else 1 / 40)


def test_camus_joins_a_mixture_by_name(tmp_path):
    write_view(tmp_path / "a", "patient0001")
    write_view(tmp_path / "b", "patient0002")
    data = merge([open_data(f"camus:{tmp_path / 'a'}:0.5"), open_data(f"camus:{tmp_path / 'b'}?labels=all:0.5")])
    assert [c.scheme.names for c in data] == [("background", "LV")] * 2
    assert [np.array_equal(c.labels, clip()[1] == 1) for c in data] == [True, True]


def spoil(folder: Path, how: str) -> None:
    gt = folder / "patient0001_4CH_half_sequence_gt.nii.gz"
    if how == "info":
        (folder / "Info_4CH.cfg").unlink()
    elif how == "phase":
        (folder / "Info_4CH.cfg").write_text("ED: 1\nES: 9\n")
    elif how == "shape":
        write_nifti(gt, clip()[1][:, 1:])
    elif how == "value":
        write_nifti(gt, clip()[1] * 2)
    elif how == "still":
        gt.unlink()
        write_nifti(folder / "patient0001_4CH_ES_gt.nii.gz", clip()[1][0, 1:])
    elif how == "truncated":
        gt.write_bytes(gt.read_bytes()[:100])


@pytest.mark.parametrize(("how", "words"), [
    ("info", "Info_4CH.cfg: is missing"), ("phase", "has 6 frames, but Info_4CH.cfg names ED 1 and ES 9"),
    ("shape", "half_sequence_gt.nii.gz: shape"), ("value", "label value 4 is outside"),
    ("still", "ES_gt.nii.gz: has shape (1, 29, 22)"), ("truncated", "half_sequence_gt.nii.gz: is not a readable NIfTI"),
])
def test_unusable_parts_are_one_line_that_names_the_file(tmp_path, how, words):
    spoil(write_view(tmp_path, "patient0001"), how)
    with pytest.raises(EdgesegError, match=r".*") as error:
        only(f"camus:{tmp_path}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_without_patients_or_the_view_are_refused(tmp_path):
    with pytest.raises(EdgesegError, match="holds no patientNNNN folder"):
        open_data(f"camus:{tmp_path}")
    write_view(tmp_path, "patient0001")
    with pytest.raises(EdgesegError, match="of 2CH"):
        open_data(f"camus:{tmp_path}?view=2CH")
    with pytest.raises(EdgesegError, match="has no option view=3CH"):
        open_data(f"camus:{tmp_path}?view=3CH")


HEADER = ("ObjectType = Image\nNDims = 3\nBinaryDataByteOrderMSB = True\nElementSpacing = 0.5 0.25 1\n"
          "DimSize = 4 3 2\nElementType = MET_SHORT\n")


def test_big_endian_metaimages_are_read(tmp_path):
    numbers = np.arange(24).reshape(2, 3, 4) - 5
    (tmp_path / "a.mha").write_bytes(f"{HEADER}ElementDataFile = LOCAL\n".encode() + numbers.astype(">i2").tobytes())
    volume = read_mhd(tmp_path / "a.mha")
    assert np.array_equal(volume.pixels, numbers)
    assert (volume.spacing, volume.slice_spacing) == ((0.25, 0.5), 1.0)


@pytest.mark.parametrize(("text", "words"), [
    (f"{HEADER}ElementDataFile = LOCAL\n123", "truncated or damaged"),
    (f"{HEADER}ElementDataFile = a.raw\n", r"\(a\.raw\) are missing"),
    (f"{HEADER}ElementDataFile = ../a.raw\n", "one file beside it"),
    (f"{HEADER}CompressedData = True\nElementDataFile = LOCAL\nxx", "compressed pixels"),
    (f"{HEADER}ElementNumberOfChannels = 3\nElementDataFile = LOCAL\n", "colour"),
    (HEADER.replace("SHORT", "LONG_ARRAY") + "ElementDataFile = LOCAL\n", "needs DimSize"),
    (HEADER.replace("0.25", "0") + "ElementDataFile = LOCAL\n", "must be positive"),
    ("no header at all", "is no MetaImage header"), (HEADER, "is no MetaImage header"),
])
def test_damaged_metaimages_are_one_line(tmp_path, text, words):
    (tmp_path / "a.mhd").write_text(text)
    with pytest.raises(EdgesegError, match=rf"a\.mhd: .*{words}"):
        read_mhd(tmp_path / "a.mhd")
