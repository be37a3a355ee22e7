"""One volume, stored on disk in several orders of its axes: the mask in patient space is the same."""

from itertools import product

import nibabel as nib
import numpy as np
import pytest
import tiny_bundle
from nibabel.orientations import apply_orientation, inv_ornt_aff

from edgeseg.readers import open_data
from edgeseg.runtime.predict import predict
from edgeseg.runtime.segmenter import Segmenter

write_network = tiny_bundle.write_network
FLIPS = list(product((1, -1), repeat=3))


def write_blurring_network(path):
    """The tiny network behind a mean over 5 x 5 pixels, so that it matters which pixels are neighbours in a frame."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(write_network(path))
    weight, = (w for w in model.graph.initializer if w.name == "w")
    whole = np.repeat(np.repeat(numpy_helper.to_array(weight), 5, axis=2), 5, axis=3) / 25
    weight.CopyFrom(numpy_helper.from_array(whole, "w"))
    model.graph.node[0].attribute.append(helper.make_attribute("pads", [2, 2, 2, 2]))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_bundle, "write_network", write_blurring_network)
        bundle = tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg", precisions=("fp32",))
    return Segmenter(bundle, precision="fp32", threads=1)


@pytest.fixture(scope="module")
def affine():
    """1.5 x 1.5 x 8 mm, oblique as a short axis is."""
    turn, tilt = np.deg2rad(35), np.deg2rad(25)
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    found = np.eye(4)
    found[:3, :3] = about_z @ about_x @ np.diag([1.5, 1.5, 8.0])
    found[:3, 3] = (-30, 44, 12)
    return found


@pytest.fixture(scope="module")
def image(affine):
    """[x, y, z]: a phantom around its heart, each structure with its grey level."""
    labels = open_data("phantom:cine?n=1&seed=3").refs[0].load().labels
    row, col = np.argwhere(labels > 0)[:, 1:].mean(axis=0).astype(int)
    around = labels[:, row - 50 : row + 50, col - 45 : col + 45]
    return nib.Nifti1Image(tiny_bundle.LEVELS[around].T.astype(np.int16), affine)


@pytest.fixture(scope="module")
def expected(segmenter, image, tmp_path_factory):
    """The mask of the image as nibabel writes it, x, y, z: it holds all labels, and is not what each pixel is alone."""
    path = tmp_path_factory.mktemp("as it is") / "a.nii.gz"
    nib.save(image, path)
    mask = mask_of(segmenter, path)
    array = np.asarray(mask.dataobj)
    assert set(np.unique(array)) == {0, 1, 2, 3}
    assert 0.001 < (tiny_bundle.LEVELS[array] != np.asarray(image.dataobj)).mean() < 0.2
    return mask


def stored(image, axes, signs):
    """The same image with its axes (x, y, z) at the places `axes` of the file, backwards where the sign is -1."""
    order = np.array(list(zip(axes, signs, strict=True)), float)
    array = apply_orientation(np.asarray(image.dataobj), order)
    return nib.Nifti1Image(array, image.affine @ inv_ornt_aff(order, image.shape))


def mask_of(segmenter, path):
    (done,) = predict(segmenter, [path], path.parent / "masks")
    assert done.error == ""
    return nib.load(done.mask)


def in_patient_space(image):
    """Array and affine, axes turned to the patient's as near as they can be without resampling."""
    near = nib.as_closest_canonical(image)
    return np.asarray(near.dataobj), near.affine


def assert_same_in_patient_space(mask, expected):
    (array, where), (wanted, there) = in_patient_space(mask), in_patient_space(expected)
    np.testing.assert_allclose(where, there, atol=1e-3)
    np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("signs", FLIPS)
@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2)], ids=["xyz", "yxz"])
def test_flipped_and_transposed_slices_give_the_same_mask(segmenter, image, expected, axes, signs, tmp_path):
    nib.save(stored(image, axes, signs), tmp_path / "a.nii.gz")
    mask = mask_of(segmenter, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(mask.affine, nib.load(tmp_path / "a.nii.gz").affine)
    assert_same_in_patient_space(mask, expected)


@pytest.mark.parametrize("axes", [(2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1)], ids=["zyx", "zxy", "xzy", "yzx"])
def test_slices_along_another_axis_of_the_file_give_the_same_mask(segmenter, image, expected, axes, tmp_path):
    nib.save(stored(image, axes, (1, 1, 1)), tmp_path / "a.nii.gz")
    assert_same_in_patient_space(mask_of(segmenter, tmp_path / "a.nii.gz"), expected)


def test_an_image_that_simpleitk_wrote_gives_the_same_mask(segmenter, image, affine, expected, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    written = sitk.GetImageFromArray(np.asarray(image.dataobj).T)  # its arrays are [z, y, x]
    lps = np.diag([-1, -1, 1]) @ affine[:3]  # and its patient space has x to the left and y to the back
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    written.SetSpacing(zooms.tolist())
    written.SetDirection((lps[:, :3] / zooms).ravel().tolist())
    written.SetOrigin(lps[:, 3].tolist())
    sitk.WriteImage(written, str(tmp_path / "a.nii.gz"))
    mask = mask_of(segmenter, tmp_path / "a.nii.gz")
    assert_same_in_patient_space(mask, expected)
    back = sitk.ReadImage(str(tmp_path / "masks" / "a.nii.gz"))  # and SimpleITK finds the mask on its image
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), np.asarray(expected.dataobj).T)
    for ours, theirs in ((back.GetSpacing(), written.GetSpacing()), (back.GetOrigin(), written.GetOrigin()),
                         (back.GetDirection(), written.GetDirection())):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
