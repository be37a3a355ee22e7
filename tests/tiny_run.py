"""A finished run of the smallest student of the family on a tiny nnU-Net data set, without a training."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import tiny_bundle

from edgeseg.bundle.calibrate import draw_frames
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import open_data

GRID = Preprocessing((64, 64), (1.0, 1.0))


def make_run(folder: Path, cases: int = 8, channels: int = 1) -> Run:
    """Write data and run below `folder`; weights are random, normalisation statistics those of the data."""
    import torch
    from safetensors.torch import save_file

    from edgeseg.students.mobilenetv2 import MobileNetV2Spec, MobileNetV2UNet

    spec = f"nnunet:{tiny_bundle.write_nnunet_data(folder / 'Dataset001_Tiny', cases)}"
    data = open_data(spec)
    torch.manual_seed(0)
    student = MobileNetV2UNet(MobileNetV2Spec(channels, 4, (8, 8, 16, 16, 16), (1, 1, 1, 1, 1), expansion=2))
    windows = np.stack([f.window for f in draw_frames(data.select("train"), GRID, 8, 0)])
    with torch.no_grad():
        for _ in range(30):
            student.train()(torch.from_numpy(windows))
    run_folder = folder / "runs" / "tiny run"
    run_folder.mkdir(parents=True)
    save_file(student.state_dict(), run_folder / "student.safetensors")
    run = Run(run_folder, asdict(Recipe(data=(spec,), teacher="none", kd_weight=0.0)), student.spec.to_dict(),
              data.scheme, GRID, tuple(f"channel {i}" for i in range(channels)),
              {"folder": "/somewhere/else/model", "folds": [0]},
              {"spec": [spec], "name": data.name, "licence": "CC BY-NC-SA 4.0",
               "splits": {s: list(data.select(s).patients()) for s in ("train", "dev", "val")}},
              {"dev": {"dice": 0.5, "epoch": 0}})
    run.save()
    return run
