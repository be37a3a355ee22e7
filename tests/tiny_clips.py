"""Clips of a disc that moves and beats, and a finished run of a small ConvLSTM, without a training."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.preprocess import Normalisation, Preprocessing
from edgeseg.readers import open_data

SIZE = (32, 40)
GRID = Preprocessing(SIZE, (1.0, 1.0), (Normalisation("rgb"),), window="centre")


def clip(seed: int, frames: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Grey frames float32 [T, 1, 32, 40] in 0..255, whole numbers, and labels uint8 [T, 32, 40]."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames)[:, None, None]
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    phase = rng.uniform(0, 6)
    row, column = 16 + 4 * np.sin(0.2 * t + phase), 20 + 6 * np.cos(0.15 * t + 2 * phase)
    labels = np.hypot(y - row, x - column) < 7 + 2 * np.sin(0.4 * t + phase)
    grey = np.where(labels, 60, 150) + rng.normal(0, 25, (frames, *SIZE))
    return grey.clip(0, 255).round().astype(np.float32)[:, None], labels.astype(np.uint8)


def write_data(root: Path, clips: int) -> Path:
    """The clips as volumes of a raw nnU-Net data set: no reader of clips is under test here."""
    import nibabel

    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for i in range(clips):
        frames, labels = clip(i)
        for array, name in ((frames[:, 0], f"imagesTr/clip{i}_0000"), (labels, f"labelsTr/clip{i}")):
            nibabel.Nifti1Image(array.transpose(2, 1, 0), np.eye(4)).to_filename(root / f"{name}.nii.gz")
    (root / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "US"}, "labels": {"background": 0, "LV": 1}, "numTraining": clips,
        "file_ending": ".nii.gz"}))
    return root


def student():
    """A small ConvLSTM with random weights whose logits are as often above 0 as below."""
    import torch

    from edgeseg.students.convlstm import ConvLSTM, ConvLSTMSpec

    torch.manual_seed(0)
    model = ConvLSTM(ConvLSTMSpec(blocks=2, filters=6)).train()
    clips = torch.from_numpy(np.stack([clip(100 + i, 6)[0] for i in range(4)]) / 255)
    with torch.no_grad():
        for cell in model.cells:
            cell.gates.weight *= 3
        for _ in range(20):
            model(clips)
        model.eval()
        model.head.bias -= model(clips)[:, :, 1].median()
    return model


def make_run(folder: Path, clips: int = 8) -> Run:
    """Write data and run below `folder`."""
    from safetensors.torch import save_file

    network = student()
    spec = f"nnunet:{write_data(folder / 'Dataset002_Discs', clips)}"
    data = open_data(spec)
    run_folder = folder / "runs" / "discs"
    run_folder.mkdir(parents=True)
    save_file(network.state_dict(), run_folder / "student.safetensors")
    run = Run(run_folder, asdict(Recipe(data=(spec,), teacher="none", kd_weight=0.0)), network.spec.to_dict(),
              data.scheme, GRID, ("US",), {},
              {"spec": [spec], "name": data.name, "licence": "none",
               "splits": {s: list(data.select(s).patients()) for s in ("train", "dev", "val")}},
              {"dev": {"dice": 0.9, "epoch": 0}})
    run.save()
    return run
