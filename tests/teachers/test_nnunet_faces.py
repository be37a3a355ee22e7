"""The two faces of an nnU-Net teacher: full prediction and network outputs."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
import torch
from nnunet_folders import case, edit_checkpoint, model_folder, organ_folder, region_folder, volume_folder

from edgeseg.errors import EdgesegError
from edgeseg.teachers import open_teacher
from edgeseg.teachers.nnunet import native_bf16
from edgeseg.teachers.regions import exclusive_probabilities

FOLDERS = {
    "2d": (model_folder, {}, 1),
    "folds": (model_folder, {"folds": (0, 1, 2)}, 1),
    "residual": (model_folder, {"residual": True}, 1),
    "organs": (organ_folder, {}, 2),
    "regions": (region_folder, {}, 1),
    "3d": (volume_folder, {}, 1),
}


def nnunet_labels(folder, a_case, folds=None, mirror=True):
    """nnU-Net's own prediction from the same folder: no line of edgeseg in between."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=mirror, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(folder), folds)
        properties = {"spacing": [a_case.slice_spacing or 999.0, *a_case.spacing]}
        return predictor.predict_single_npy_array(a_case.frames.swapaxes(0, 1), properties)


@pytest.mark.parametrize("tta", ["none", "mirror"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_predict_gives_nnunets_own_labels(tmp_path, kind, tta):
    make, options, channels = FOLDERS[kind]
    folder = make(tmp_path / "a model", **options)
    teacher, a_case = open_teacher(f"nnunet:{folder}"), case(channels=channels)
    labels, probabilities = teacher.predict(a_case, tta)
    expected = nnunet_labels(folder, a_case, mirror=tta == "mirror")
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(teacher.scheme.decode(labels), expected)
    assert (labels.dtype, probabilities.dtype) == (np.uint8, np.float32)
    assert probabilities.shape == (3, len(teacher.scheme.names), 45, 50)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    if kind != "regions":
        np.testing.assert_array_equal(probabilities.argmax(1), labels)


def test_region_values_that_are_not_in_painting_order_keep_their_class(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": [1]}
    folder = model_folder(tmp_path / "m", labels, regions_class_order=(2, 1))
    teacher = open_teacher(f"nnunet:{folder}")
    assert (teacher.scheme.names, teacher.scheme.values) == (("background", "whole", "core"), (0, 2, 1))
    classes, _ = teacher.predict(case(), "none")
    np.testing.assert_array_equal(teacher.scheme.decode(classes), nnunet_labels(folder, case(), mirror=False))
    assert set(np.unique(classes)) == {0, 1, 2}


def test_rotation_averaging_makes_the_prediction_turn_with_the_image(tmp_path):
    teacher = open_teacher(f"nnunet:{model_folder(tmp_path / 'm')}")
    upright = case()
    turned = dataclasses.replace(upright, frames=np.rot90(upright.frames, 1, (2, 3)), spacing=upright.spacing[::-1])

    def both(tta):
        first, second = (teacher.predict(c, tta)[1] for c in (upright, turned))
        return np.abs(np.rot90(first, 1, (2, 3)) - second).max()

    assert both("mirror+rotate") < 1e-5
    assert both("mirror") > 0.01


def test_mirroring_uses_the_axes_of_the_checkpoint(tmp_path):
    folder = model_folder(tmp_path / "m")
    everything, _ = open_teacher(f"nnunet:{folder}").predict(case(), "mirror")
    edit_checkpoint(folder / "fold_0" / "checkpoint_final.pth",
                    lambda content: content.update(inference_allowed_mirroring_axes=None))
    teacher = open_teacher(f"nnunet:{folder}")
    none, _ = teacher.predict(case(), "none")
    np.testing.assert_array_equal(teacher.predict(case(), "mirror")[0], none)
    assert (everything != none).any()


def test_single_image_and_clip_are_predicted_as_nnunet_does_without_slice_spacing(tmp_path):
    folder = model_folder(tmp_path / "m")
    clip = case(slice_spacing=None)
    labels, _ = open_teacher(f"nnunet:{folder}").predict(clip, "none")
    np.testing.assert_array_equal(labels, nnunet_labels(folder, clip, mirror=False))


def test_predict_prints_nothing_and_leaves_the_case_alone(tmp_path, capfd):
    teacher, a_case = open_teacher(f"nnunet:{model_folder(tmp_path / 'm')}"), case()
    before = a_case.frames.copy()
    teacher.predict(a_case, "mirror")
    assert capfd.readouterr() == ("", "")
    np.testing.assert_array_equal(a_case.frames, before)


def test_case_of_another_kind_is_refused(tmp_path):
    organs = open_teacher(f"nnunet:{organ_folder(tmp_path / 'organs')}")
    with pytest.raises(EdgesegError, match=r"case.nii.gz: 1 channels.*wants 2 \(CT, T1\)"):
        organs.predict(case())
    volume = open_teacher(f"nnunet:{volume_folder(tmp_path / 'volume')}")
    with pytest.raises(EdgesegError, match=r"case.nii.gz: a 3d teacher needs a volume"):
        volume.predict(case(slice_spacing=None))
    rgb = open_teacher(f"nnunet:{model_folder(tmp_path / 'rgb', normalisation=('RGBTo01Normalization',))}")
    with pytest.raises(EdgesegError, match=r"case.nii.gz: nnU-Net cannot work with it: RGB images"):
        rgb.predict(dataclasses.replace(case(), frames=case().frames * 100))


def test_logits_are_the_networks_outputs_without_the_untrained_one(tmp_path):
    teacher = open_teacher(f"nnunet:{model_folder(tmp_path / 'm')}", bf16=False)
    x = torch.randn(2, 1, 32, 40, requires_grad=True)
    scales = teacher.logits(x)
    assert [tuple(z.shape) for z in scales] == [(2, 4, 32, 40), (2, 4, 16, 20)]  # 8 x 10 has weight 0 in nnU-Net
    with torch.no_grad():
        torch.testing.assert_close(scales[0], teacher.network()(x))
    assert not scales[0].requires_grad
    (scales[0] * torch.ones(1, requires_grad=True)).sum().backward()  # usable in a loss: no inference-mode tensor


def test_a_trainer_without_deep_supervision_gives_its_one_trained_output(tmp_path):
    folder = model_folder(tmp_path / "m")
    edit_checkpoint(folder / "fold_0" / "checkpoint_final.pth",
                    lambda content: content.update(trainer_name="nnUNetTrainerNoDeepSupervision"))
    assert len(open_teacher(f"nnunet:{folder}").logits(torch.zeros(1, 1, 32, 40))) == 1


def test_folds_average_their_probabilities(tmp_path):
    folder = model_folder(tmp_path / "m", folds=(0, 1))
    x = torch.randn(1, 1, 32, 40)
    together = open_teacher(f"nnunet:{folder}", bf16=False).logits(x)
    alone = [open_teacher(f"nnunet:{folder}", folds=(k,), bf16=False).logits(x) for k in (0, 1)]
    for scale, z in enumerate(together):
        torch.testing.assert_close(z.exp(), sum(one[scale].softmax(1) for one in alone) / 2)


def test_region_logits_are_log_probabilities_of_exclusive_classes(tmp_path):
    teacher = open_teacher(f"nnunet:{region_folder(tmp_path / 'm')}", bf16=False)
    x = torch.randn(1, 1, 32, 40)
    with torch.no_grad():
        claims = teacher.network()(x).sigmoid()[0].numpy()
    torch.testing.assert_close(teacher.logits(x)[0][0].exp(), torch.from_numpy(exclusive_probabilities(claims)))


def test_bfloat16_is_close_and_comes_back_as_float32(tmp_path):
    folder = model_folder(tmp_path / "m")
    x = torch.randn(2, 1, 32, 40)
    exact, fast = (open_teacher(f"nnunet:{folder}", bf16=bf16).logits(x) for bf16 in (False, True))
    assert fast[0].dtype == torch.float32
    assert not torch.equal(exact[0], fast[0])
    assert (exact[0] - fast[0]).abs().max() < 0.1 * exact[0].abs().max()
    assert open_teacher(f"nnunet:{folder}").bf16 == native_bf16(torch.device("cpu"))


def test_network_is_a_copy(tmp_path):
    teacher = open_teacher(f"nnunet:{model_folder(tmp_path / 'm')}", bf16=False)
    x = torch.randn(1, 1, 32, 40)
    before = teacher.logits(x)
    for parameter in teacher.network().parameters():
        parameter.data.zero_()
    after = teacher.logits(x)
    assert len(before) == len(after) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
