"""From NIfTI files to mask files, loaded once: `python -m edgeseg.distill.pipeline_worker` (as measure/worker).

nnU-Net's own predictor (reading, cropping, normalising, resampling, sliding window, resampling back and writing, in one
process and with nnU-Net's own settings), or the student's `predict` on the same files.

A checkpoint is a pickle, and nnU-Net unpickles whatever it is given. Here it is given a copy that holds nothing but the
weights, read without running anything (`teachers.export.safe_copy`); its command is then run on the same copy.
"""

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.measure.exam import checked
from edgeseg.measure.worker import Subject, load_frames, main, settings_of
from edgeseg.readers.nifti import ENDINGS
from edgeseg.readers.nifti_write import write_volume
from edgeseg.runtime.predict import predict
from edgeseg.runtime.segmenter import Segmenter

SLICE_SPACING = 8.0
"""mm between the slices of a case. A 2d model does not use it; golden frames do not know theirs."""
MIRRORED, PLAIN, STUDENT = "mirrored", "not mirrored", "student"
"""The modes, and the folders that their masks go to."""
IMAGES, MODEL = "images", "model"
"""Folders beside the job's frames: the cases, and the copy of the model."""


class Student:
    """A subject (`measure.worker.Subject`) with one mode: all cases with the bundle's `predict`.

    The job's path is a bundle, its frames the folder of images that `NnUNet` wrote; the masks go beside that.
    """

    count = 1

    def __init__(self, job: dict[str, Any]) -> None:
        cv2.setNumThreads(job["threads"])  # resampling is part of it: its pool has one thread a CPU by default
        images = Path(job["frames"])
        segmenter = Segmenter(job["path"], threads=job["threads"])
        self.shape: tuple[int, ...] = (1, len(segmenter.preprocessing.channels), *segmenter.preprocessing.size)
        self.runtime: dict[str, Any] = {"BACKEND": segmenter.backend, "PRECISION": segmenter.precision,
                                        **settings_of(segmenter._network)}
        self.calls: dict[str, Callable[[int], None]] = {
            STUDENT: lambda _: checked(predict(segmenter, [images], images.with_name(STUDENT)))}


class NnUNet:
    """A subject with two modes, each all cases: with and without mirroring.

    The job's path is an nnU-Net model folder. What is written goes beside the job's frames.

    Attributes:
        runtime: versions, folds, cases, images, tiles (of all images together) and mirrorings (passes for each tile).
    """

    def __init__(self, job: dict[str, Any]) -> None:
        threads = str(job["threads"])  # read by nnunetv2 when it is imported
        os.environ.update(nnUNet_def_n_proc=threads, OMP_NUM_THREADS=threads, nnUNet_compile="f")
        import torch

        from edgeseg.teachers.export import safe_copy
        from edgeseg.teachers.plans import quiet

        torch.set_num_threads(job["threads"])
        root = Path(job["frames"]).parent
        folds = safe_copy(Path(job["path"]), root / MODEL)
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        with quiet():
            self.predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
            self.predictor.initialize_from_trained_model_folder(str(root / MODEL), folds)
        frames, spacings, _ = load_frames(Path(job["frames"]))
        about = self.predictor.dataset_json
        cases = write_cases(frames, spacings, about["file_ending"], len(about["channel_names"]), root / IMAGES,
                            job["path"])
        self.count, self.calls = 1, {MIRRORED: self.exam(root, True), PLAIN: self.exam(root, False)}
        self.shape: tuple[int, ...] = (1, len(about["channel_names"]), *self.predictor.configuration_manager.patch_size)
        self.runtime: dict[str, Any] = {
            "TORCH": torch.__version__, "NNUNETV2": version("nnunetv2"), "TORCH_NUM_THREADS": threads,
            "folds": folds, "cases": len(cases), "images": len(frames),
            "tiles": sum(self.tiles(files) for files in cases),
            "mirrorings": 2 ** len(self.predictor.allowed_mirroring_axes or ())}

    def exam(self, root: Path, mirrored: bool) -> Callable[[int], None]:
        """What is timed: all cases from files to masks (`root`/"mirrored" or `root`/"not mirrored")."""
        out = root / (MIRRORED if mirrored else PLAIN)
        out.mkdir()

        def run(_: int) -> None:
            self.predictor.use_mirroring = mirrored
            self.predictor.predict_from_files_sequential(str(root / IMAGES), str(out))

        return run

    def tiles(self, files: list[Path]) -> int:
        """Windows that nnU-Net cuts of one case, all its slices together; each is one pass, or one for each mirroring
        and fold."""
        from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

        predictor, grid = self.predictor, self.predictor.configuration_manager
        data = grid.preprocessor_class(verbose=False).run_case(
            [str(f) for f in files], None, predictor.plans_manager, grid, predictor.dataset_json)[0]
        patch = tuple(grid.patch_size)
        slices, window = (data.shape[1], data.shape[2:]) if len(patch) == 2 else (1, data.shape[1:])
        padded = tuple(max(n, least) for n, least in zip(window, patch, strict=True))
        steps = compute_steps_for_sliding_window(padded, patch, predictor.tile_step_size)
        return int(slices * np.prod([len(s) for s in steps]))


def write_cases(frames: list[np.ndarray], spacings: list[tuple[float, float]], ending: str, channels: int, out: Path,
                model: str) -> list[list[Path]]:
    """nnU-Net input files of raw frames [C, H, W]: those of one shape and spacing are the slices of one case.

    Returns:
        The files of each case, one a channel.

    Raises:
        EdgesegError: a file ending that is not written here, or a model of other channels than the frames.
    """
    if ending not in ENDINGS:
        raise EdgesegError(f"{model}: was trained on {ending} files; its full pipeline is measured on .nii.gz only")
    if channels != frames[0].shape[0]:
        raise EdgesegError(f"{model}: takes {channels} channels, the bundle's frames have {frames[0].shape[0]}")
    groups: dict[str, list[int]] = {}
    for i, (frame, spacing) in enumerate(zip(frames, spacings, strict=True)):
        groups.setdefault(json.dumps([frame.shape, spacing]), []).append(i)
    cases = []
    for number, members in enumerate(groups.values()):
        files = [out / f"case{number:03d}_{c:04d}{ending}" for c in range(channels)]
        for c, file in enumerate(files):
            write_volume(file, np.stack([frames[i][c] for i in members]), spacings[members[0]], SLICE_SPACING)
        cases.append(files)
    return cases


def subject(job: dict[str, Any]) -> Subject:
    return Student(job) if job["kind"] == STUDENT else NnUNet(job)


if __name__ == "__main__":
    main(subject)
