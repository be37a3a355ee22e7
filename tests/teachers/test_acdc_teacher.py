"""The real nnU-Net: identical to nnUNetv2_predict on a real volume (skipped where the data is not)."""

import contextlib
import io

import nibabel
import numpy as np
import torch

from edgeseg.case import Case
from edgeseg.teachers import open_teacher
from edgeseg.torchvision_ops import import_torchvision


def test_labels_are_those_of_nnunets_own_prediction_from_the_file(acdc, acdc_teacher_folder, tmp_path):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    path = acdc / "training" / "patient080" / "patient080_frame01.nii.gz"  # the smallest volume of `val`
    import_torchvision()  # looking up this model's trainer imports all of nnU-Net's trainers
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(acdc_teacher_folder), (0,))
        expected = predictor.predict_from_files_sequential([[str(path)]], None)[0]  # read by SimpleITK
    image = nibabel.load(path)
    column, row, slice_spacing = map(float, image.header.get_zooms())
    case = Case("patient080_frame01", "patient080", np.asarray(image.dataobj).T[:, None], (row, column),
                slice_spacing=slice_spacing, source=str(path))
    teacher = open_teacher(f"nnunet:{acdc_teacher_folder}")
    labels, _ = teacher.predict(case, "none")
    assert teacher.scheme.names == ("background", "RV", "MYO", "LV")
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    assert int((teacher.scheme.decode(labels) != expected).sum()) == 0


def test_the_real_checkpoint_loads_without_trust_and_has_four_trained_outputs(acdc_teacher_folder):
    teacher = open_teacher(f"nnunet:{acdc_teacher_folder}")
    assert teacher.provenance["parameters"] == 5_160_340
    assert teacher.preprocessing.size == (192, 192)
    outputs = teacher.logits(torch.zeros(1, 1, 192, 192))
    assert [tuple(z.shape[1:]) for z in outputs] == [(4, 192, 192), (4, 96, 96), (4, 48, 48), (4, 24, 24)]
