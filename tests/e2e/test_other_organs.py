"""From an nnU-Net folder of other organs to masks: two channels, five labels, nothing cardiac, no code of its own."""

import math
from dataclasses import replace
from pathlib import Path

import nibabel
import nnunet_folders
import numpy as np
import pytest
from disks import dataset, disks

from edgeseg.bundle.export import export_bundle
from edgeseg.bundle.recipe import CalibrationRecipe
from edgeseg.container import Bundle, open_bundle
from edgeseg.distill.against import against_rows
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.distill.train import distill
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.measure.bench import bench_bundle
from edgeseg.phantoms.write import write_nnunet
from edgeseg.readers import CaseRef, Dataset, open_data
from edgeseg.runtime.cpu import native_bf16
from edgeseg.runtime.golden import load_golden
from edgeseg.runtime.predict import predict
from edgeseg.runtime.segmenter import Segmenter
from edgeseg.teachers import open_teacher

ORGANS = LabelScheme(tuple(nnunet_folders.ORGANS), tuple(nnunet_folders.ORGANS.values()))
CHANNELS = ("CT", "T1")
PATIENT = 90
"""None of the patients that were trained on."""


def small(data: Path, teacher: Path) -> Recipe:
    return Recipe(data=(f"nnunet:{data}",), teacher=f"nnunet:{teacher}", size=(32, 32), spacing=(1.5, 1.25),
                  width_mult=0.5, expansion=2, epochs=1, batch_size=4, validate_every=1, precision="32-true")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    place = tmp_path_factory.mktemp("other organs")
    data = write_nnunet(dataset(ORGANS, channels=2), place / "raw data", CHANNELS)
    teacher = nnunet_folders.organ_folder(place / "teacher", patch=(32, 32))
    return distill(small(data, teacher), place / "run", say=str)


@pytest.fixture(scope="module")
def bundle(run) -> Bundle:
    return open_bundle(export_bundle(run, recipe=CalibrationRecipe(frames=6, rungs=("post-training",)), seconds=0.1))


def write_images(folder: Path) -> tuple[Path, np.ndarray]:
    """An unseen patient as NAME_0000 and NAME_0001 on an oblique grid; returns the affine too."""
    frames = disks(PATIENT, "ED", ORGANS, channels=2).frames
    turned = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turned * (1.25, 1.5, 8.0), (-31.5, 12.25, 700)
    folder.mkdir()
    for channel in range(2):
        pixels = frames[:, channel].transpose(2, 1, 0).astype(np.int16)
        nibabel.Nifti1Image(pixels, affine).to_filename(folder / f"new patient_{channel:04d}.nii.gz")
    return folder, affine


def test_the_bundle_names_the_channels_and_labels_of_the_teacher(run, bundle):
    assert run.scheme == bundle.scheme == ORGANS
    assert bundle.manifest.channels == CHANNELS
    assert bundle.manifest.task == "segmentation of liver, spleen, left kidney, right kidney, pancreas"
    assert [c.kind for c in bundle.manifest.preprocessing.channels] == ["ct", "zscore"]
    card = bundle.file("MODEL_CARD.md").read_text()
    assert all(name in card for name in (*CHANNELS, *ORGANS.foreground))
    assert not any(name in card for name in ("ventric", "RV", "LV"))


def test_golden_frames_have_both_channels_and_are_segmented_by_every_file(bundle):
    golden = load_golden(bundle.file("golden.npz"))
    assert len(golden) > 0
    for item in golden:
        assert item.frame.shape[0] == 2
        assert sorted(item.labels) == ["onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino int8"]
        assert all(found.shape == item.frame.shape[1:] for found in item.labels.values())


def test_every_row_of_the_bench_takes_two_channels(run, bundle, tmp_path):
    result = bench_bundle(bundle.path, against_rows(str(run.folder), bundle.path, 1, tmp_path), [1], 0.02)
    rows = 6 + native_bf16()  # FP32 and INT8 of each runtime, bf16 where the CPU has it, PyTorch, the teacher
    assert [row.shape for row in result.rows] == [(1, 2, 32, 32)] * rows
    assert all(row.failed is None and row.network.n > 0 for row in result.rows)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_masks_of_two_channel_images_are_the_students_on_the_images_grid(run, bundle, tmp_path, backend):
    images, affine = write_images(tmp_path / "images")
    segmenter = Segmenter(bundle, backend, "fp32", threads=1)
    result, = predict(segmenter, [images], tmp_path / "masks")
    assert (result.error, result.mask) == ("", tmp_path / "masks" / "new patient.nii.gz")
    mask, image = nibabel.load(result.mask), nibabel.load(images / "new patient_0000.nii.gz")
    assert mask.shape == image.shape == (56, 48, 2)
    np.testing.assert_allclose(mask.affine, affine, atol=1e-5)
    np.testing.assert_allclose(mask.header.get_zooms(), (1.25, 1.5, 8.0), atol=1e-5)
    labels = np.asarray(mask.dataobj).transpose(2, 1, 0)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) <= set(ORGANS.values)

    frames = disks(PATIENT, "ED", ORGANS, channels=2).frames
    wanted, swapped = (ORGANS.decode(by_torch(run, x)) for x in (frames, frames[:, ::-1]))
    assert np.mean(labels == wanted) > 0.999
    assert np.mean(labels == swapped) < 0.99  # the test would see channels in the wrong order


def by_torch(run: Run, frames: np.ndarray) -> np.ndarray:
    """Class indices of the trained student, in torch."""
    import torch

    student = run.student()
    with torch.inference_mode():
        return run.preprocessing.segment(np.ascontiguousarray(frames), (1.5, 1.25),
                                         lambda x: student(torch.from_numpy(x)).numpy())


def test_int8_masks_hold_label_values_only(bundle, tmp_path):
    images, _ = write_images(tmp_path / "images")
    result, = predict(Segmenter(bundle, precision="int8", threads=1), [images], tmp_path / "masks")
    labels = np.asarray(nibabel.load(result.mask).dataobj)
    assert set(np.unique(labels)) <= set(ORGANS.values)
    assert len(np.unique(labels)) > 1


def test_one_channel_is_refused_by_a_bundle_of_two(bundle, tmp_path):
    images, _ = write_images(tmp_path / "images")
    (images / "new patient_0001.nii.gz").unlink()
    result, = predict(Segmenter(bundle, threads=1), [images], tmp_path / "masks")
    assert "expected 2 channel(s)" in result.error
    assert not list((tmp_path / "masks").glob("*"))


def tumours(root: Path) -> Path:
    """A raw data set with region labels in which a strip of every case is marked `ignore`."""
    scheme = LabelScheme(("background", "whole", "core", "enhancing"))

    def hidden(ref: CaseRef):
        case = ref.load()
        labels = case.labels.copy()
        labels[:, :12] = IGNORE
        return replace(case, labels=labels)

    whole = dataset(scheme)
    refs = tuple(replace(ref, load=lambda ref=ref: hidden(ref)) for ref in whole.refs)
    write_nnunet(Dataset("tumours", "tumours", refs, scheme, "synthetic", ignore=IGNORE), root, ("FLAIR",))
    nnunet_folders.edit_json(root / "dataset.json", lambda about: about.update(
        labels=nnunet_folders.TUMOUR, regions_class_order=[1, 2, 3]))
    return root


def test_regions_and_ignored_pixels_distil_into_exclusive_classes(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeseg.teachers.export.teacher_onnx", lambda *arguments: None)  # slow, and not looked at
    data = tumours(tmp_path / "raw")
    assert (np.asarray(nibabel.load(data / "labelsTr" / "p00_ED.nii.gz").dataobj) == 4).sum() == 2 * 12 * 56
    teacher = nnunet_folders.region_folder(tmp_path / "teacher", patch=(32, 32))
    run = distill(small(data, teacher), tmp_path / "run", say=str)
    assert run.scheme == LabelScheme(("background", "whole", "core", "enhancing"), (0, 1, 2, 3))
    assert math.isfinite(run.metrics["history"][0]["loss"])
    assert math.isfinite(run.metrics["dev"]["dice"])
    case = open_data(f"nnunet:{data}").select("val").refs[0].load()
    assert (case.labels == IGNORE).any()
    for found in (by_torch(run, case.frames), open_teacher(f"nnunet:{teacher}").predict(case, "none")[0]):
        assert set(np.unique(run.scheme.decode(found))) <= {0, 1, 2, 3}
    assert run.student()(torch_zeros()).shape == (1, 4, 32, 32)  # no class for the ignore label


def torch_zeros():
    import torch

    return torch.zeros(1, 1, 32, 32)
