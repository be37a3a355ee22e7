"""The steps of a benchmark that need torch, each in a process of its own, so that no timing shares one with torch.

    teacher_step.py random-network OUT.onnx --features 32,64,128,256,512,512 --size 192
    teacher_step.py random-folder FOLDER --features 32,64,128,256,512,512 --size 192
    teacher_step.py predict nnunet:FOLDER --data acdc:DIR --split val --tta mirror --cache DIR [--split-file FILE]
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def random_network(out: Path, features: list[int], size: int) -> None:
    """A nnU-Net 2D PlainConvUNet with random weights, as a static ONNX: timing does not look at the weights.

    Written as a model folder and read back, so that it takes the path of every teacher.
    """
    from edgeseg.teachers import open_teacher
    from edgeseg.teachers.export import teacher_onnx

    with tempfile.TemporaryDirectory() as scratch:
        parameters = random_folder(Path(scratch) / "model", features, size)
        teacher_onnx(open_teacher(f"nnunet:{Path(scratch) / 'model'}"), out)
    print(json.dumps({"parameters": parameters, "features": features, "size": size}))


def random_folder(out: Path, features: list[int], size: int) -> int:
    """A nnU-Net model folder of a cardiac 2d plan with random weights; returns the number of parameters."""
    import torch

    from edgeseg.teachers.folder import make_dataset_json, make_plans, write_model_folder
    from edgeseg.teachers.plans import build_network

    torch.manual_seed(0)
    labels = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    plans = make_plans("Dataset999_Random", features, (size, size), (1.5625, 1.5625))
    dataset = make_dataset_json(labels, ["cineMRI"])
    network = build_network(plans, dataset)
    write_model_folder(out, network.state_dict(), dataset, plans)
    return sum(p.numel() for p in network.parameters())


def predict(spec: str, data: str, split: str, split_file: Path | None, tta: Any, cache: Path) -> None:
    """Label maps of the teacher's own pipeline: CACHE/CASE.npz with class indices uint8 [N, H, W] and class names.

    Cases that are there already are not predicted again.
    """
    from edgeseg.readers import open_data
    from edgeseg.teachers import open_teacher

    teacher = open_teacher(spec)
    cache.mkdir(parents=True, exist_ok=True)
    for case in open_data(data, split_file).select(None if split == "all" else split):
        target = cache / f"{case.id}.npz"
        if target.exists():
            continue
        labels, _ = teacher.predict(case, tta=tta)
        beside = cache / f".{case.id}.part.npz"
        np.savez_compressed(beside, labels=labels, names=np.array(teacher.scheme.names))
        beside.replace(target)
        print(case.id, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("random-network", "random-folder"):
        step = steps.add_parser(name)
        step.add_argument("out", type=Path)
        step.add_argument("--features", type=lambda text: [int(n) for n in text.split(",")], required=True)
        step.add_argument("--size", type=int, default=192)
    step = steps.add_parser("predict")
    step.add_argument("spec")
    step.add_argument("--data", required=True)
    step.add_argument("--split", default="val")
    step.add_argument("--split-file", type=Path)
    step.add_argument("--tta", default="mirror")
    step.add_argument("--cache", type=Path, required=True)
    given = parser.parse_args()
    if given.step == "random-network":
        random_network(given.out, given.features, given.size)
    elif given.step == "random-folder":
        random_folder(given.out, given.features, given.size)
    else:
        predict(given.spec, given.data, given.split, given.split_file, given.tta, given.cache)


if __name__ == "__main__":
    main()
