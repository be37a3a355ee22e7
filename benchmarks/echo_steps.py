"""The process that has torch: takes steps of the echo scripts, one after the other, until its input ends.

    in   {"log": FILE, "command": ["distill", ...]}      a command of `edgeseg`, or one of COMMANDS
    out  {} or {"error": "one line"}
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from edgeseg import geometry
from edgeseg.case import Case
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.measure.document import write_json
from edgeseg.readers import Dataset, open_data

FEATURES = (16, 32, 64, 128, 128)
"""Of the narrow nnU-Net: 7 x 7 pixels are left of 112."""
JUDGE_EPOCHS = 30
JUDGED = 8
"""A judge looks at every so many frames: neighbours look alike."""


class Network:
    """A student in the place of a teacher, so that what it says is stored as targets are."""

    mirror_axes = ()

    def __init__(self, run: Run) -> None:
        from edgeseg.students.cost import count_parameters
        from edgeseg.teachers.checkpoint import sha256

        self.run, self.name, self.student = run, run.name, run.student()
        self.scheme, self.channels, self.preprocessing = run.scheme, run.channels, run.preprocessing
        self.provenance = {"parameters": count_parameters(self.student), "spec": run.spec,
                           "sha256": sha256(run.folder / "student.safetensors")}

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, len(self.channels), *self.preprocessing.size)

    def network(self) -> Any:
        return self.student

    def predict(self, case: Case, tta: str = "none") -> tuple[np.ndarray, np.ndarray]:
        """Class indices uint8 [N, H, W] and probabilities float32 [N, K, H, W] in the native grid."""
        import torch

        from edgeseg.students import frame_by_frame, is_recurrent

        def net(windows: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return frame_by_frame(self.student, torch.from_numpy(np.ascontiguousarray(windows))).float().numpy()

        canvas = self.preprocessing.to_canvas(case.frames, case.spacing)
        batch = len(canvas) if is_recurrent(self.student) else 8
        logits = geometry.resize_linear(self.preprocessing.canvas_logits(canvas, net, batch), case.frames.shape[-2:])
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return p.argmax(axis=1).astype(np.uint8), p


def opened(network: str) -> Any:
    """A teacher's spec, or a run folder."""
    from edgeseg.teachers import open_teacher

    folder = Path(network)
    return Network(Run.open(folder)) if folder.is_dir() else open_teacher(network)


def of_split(data: str, split: str) -> Dataset:
    return open_data(data).select(split)


def predict(network: str, data: str, split: str, out: str) -> None:
    """Soft masks of a split, stored as targets, and what the network costs (OUT/cost.json)."""
    from edgeseg.distill.targets import make_targets
    from edgeseg.students.cost import count_macs

    subject = opened(network)
    write_json(Path(out) / "cost.json", {"parameters": subject.provenance["parameters"],
                                         "macs": count_macs(subject.network(), subject.input_shape)})
    make_targets([subject], of_split(data, split), Path(out))


def train_nnunet(data: str, out: str, epochs: str, quick: str) -> None:
    """nnU-Net's own network class, narrow, on the ED and ES frames of labelled clips, as a real model folder."""
    import torch
    from safetensors.torch import load_file

    from edgeseg.distill.machine import Machine
    from edgeseg.distill.phantom_teacher import DeepSupervised
    from edgeseg.distill.recipe import Recipe
    from edgeseg.distill.train import train_network
    from edgeseg.distill.train_teacher import traced
    from edgeseg.teachers.deeplabv3 import GREY, SCHEME, SIZE
    from edgeseg.teachers.folder import make_dataset_json, make_plans, write_model_folder
    from edgeseg.teachers.nnunet import NnUNetTeacher
    from edgeseg.teachers.plans import build_network

    folder = Path(out)
    features, size = ((4, 8, 8), (32, 32)) if quick == "quick" else (FEATURES, SIZE)
    numbers = {"0": {"mean": GREY.mean, "std": GREY.std, "percentile_00_5": GREY.low, "percentile_99_5": GREY.high}}
    plans = make_plans("Dataset998_Echo", features, size, [112 / n for n in size], ("CTNormalization",), 8, numbers)
    dataset_json = make_dataset_json({name: k for k, name in enumerate(SCHEME.names)}, ("ultrasound",))
    recipe = Recipe(data=(data,), teacher="none", kd_weight=0.0, epochs=int(epochs), precision="auto")
    torch.manual_seed(recipe.seed)
    network = DeepSupervised(build_network(plans, dataset_json))
    work = folder.with_name(f"{folder.name}-training")
    work.mkdir(parents=True, exist_ok=True)
    untrained = folder.with_name(f".{folder.name}.grid")  # its grid is read where every user's is
    write_model_folder(untrained, network.network.state_dict(), dataset_json, plans)
    grid = NnUNetTeacher.open(untrained).preprocessing
    dataset = open_data(data)
    dataset = replace(dataset, refs=tuple(map(traced, dataset.refs)))
    train_network(network, recipe, dataset, SCHEME, grid, work, Machine(threads=1), print)
    state = {k.removeprefix("network."): v for k, v in load_file(work / "student.safetensors").items()}
    write_model_folder(untrained, state, dataset_json, plans, mirror_axes=())
    untrained.rename(folder)


def teacher_onnx(teacher: str, out: str) -> None:
    from edgeseg.teachers.export import teacher_onnx as write

    write(opened(teacher), Path(out))


def judge(name: str, data: str, split: str, out: str, *folders: str) -> None:
    """Score of the masks of each folder of predictions, clip by clip: {folder: [score]}."""
    from edgeseg.measure.judge_score import score_masks
    from edgeseg.teachers.judge import Judge
    from edgeseg.teachers.stored import StoredTargets

    judges, networks = Judge.open(name), {Path(f).name: StoredTargets.open(Path(f)) for f in folders}
    found: dict[str, list[float]] = {n: [] for n in networks}
    for case in of_split(data, split):
        frames = case.frames[::JUDGED, 0]
        for n, network in networks.items():
            masks = network.predict(case)[1][::JUDGED, 1]
            found[n].append(score_masks(judges.of_masks, frames, masks).score)
    write_json(Path(out), {"judge": judges.provenance, "scores": found})


def train_judge(out: str, *data: str) -> None:
    """A small image-text judge, trained on labelled clips; of no network's masks."""
    import shutil

    from edgeseg.teachers.judge_training import train_judge as run

    part = Path(f"{out}.part")
    shutil.rmtree(part, ignore_errors=True)
    run((case for spec in data for case in open_data(spec).select("train")), part, JUDGE_EPOCHS)
    part.rename(out)


def sampling(network: str, data: str, split: str, out: str) -> None:
    """aFD over the sampling rate: `measure.sampling_rate` with the network run on the kept frames alone."""
    from edgeseg.measure.phases import PUBLISHED_AREA_THRESHOLD, area_curve, network_phases
    from edgeseg.measure.sampling_rate import sampling_rates

    subject = opened(network)
    rows = sampling_rates(of_split(data, split), lambda case: area_curve(
        subject.predict(case)[1][:, 1], PUBLISHED_AREA_THRESHOLD), detect=network_phases)
    write_json(Path(out), {"rows": rows})


COMMANDS = {"predict": predict, "train-nnunet": train_nnunet, "teacher-onnx": teacher_onnx, "judge": judge,
            "train-judge": train_judge, "sampling": sampling}


def do(command: list[str]) -> None:
    name, *arguments = command
    if "torch" in sys.modules:  # the step before may have had more
        sys.modules["torch"].set_num_threads(1)
    if name in COMMANDS:
        COMMANDS[name](*arguments)
        return
    from edgeseg.cli.main import app

    app(args=command, standalone_mode=False)


def listen(steps: "SimpleQueue[str]") -> None:
    """Lines go on to the main thread; when whoever sends them has ended, so does this process, tidily if it can."""
    for line in sys.stdin:
        steps.put(line)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)
    os._exit(1)


def main() -> None:
    steps: SimpleQueue[str] = SimpleQueue()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the script's business
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    threading.Thread(target=listen, args=(steps,), daemon=True).start()
    while True:
        step = json.loads(steps.get())
        with open(step["log"], "a", buffering=1) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                do(step["command"])
                answer = {}
            except Exception as error:
                if not isinstance(error, EdgesegError):
                    traceback.print_exc()
                answer = {"error": " ".join(str(error).split()) or type(error).__name__}
            sys.stdout.flush()
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
