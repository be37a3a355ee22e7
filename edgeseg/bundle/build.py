"""Everything of an export that must not share a process with torch (see `apart.py`): convert, quantise, check, admit.

    python -m edgeseg.bundle.build SCRATCH FOLDER

SCRATCH holds job.json and the arrays that `export.py` made; FOLDER holds model.fp32.onnx and gets the rest.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from edgeseg.bundle import admission, score
from edgeseg.bundle.apart import Say, answer_apart, run_apart
from edgeseg.bundle.quantise import Inputs
from edgeseg.bundle.recipe import RUNGS, CalibrationRecipe
from edgeseg.bundle.stream_gate import drift_gate, play
from edgeseg.distill.run import Run
from edgeseg.manifest import (
    Admission,
    Change,
    FrameCheck,
    FrameProtocol,
    Gate,
    Measured,
    Part,
    PrecisionName,
    Rung,
    Scores,
    Speeds,
)
from edgeseg.measure.evaluate import Evaluation
from edgeseg.measure.statistics import bootstrap_interval, paired_difference
from edgeseg.readers import Dataset
from edgeseg.runtime.backends import BACKENDS, load_backend, model_file

FEWEST = 5
"""dev patients from which on the ladder is climbed: with fewer an interval is so wide that a file can hardly be
admitted, however good, and every rung costs minutes."""


class Job(Part):
    """What `export.py` asks for.

    Attributes:
        run: its folder. untuned: folder with the model files of the run's own weights when FOLDER gets fine-tuned ones.
        seconds: counted time of each row of the speed gate. golden: data set of the golden frames; "": phantom.
    """

    run: str
    int8: bool
    recipe: dict[str, Any]
    protocols: tuple[FrameProtocol, ...]
    frame_precisions: tuple[PrecisionName, ...]
    frames_from: str
    seconds: float
    golden: str = ""
    untuned: str | None = None


def build_apart(scratch: Path, folder: Path, job: Job, say: Say) -> Measured:
    """Run `build` in its own process and return what it measured."""
    (scratch / "job.json").write_text(job.model_dump_json())
    return Measured.model_validate(run_apart("edgeseg.bundle.build", scratch, folder, say=say))


def build(scratch: Path, folder: Path, say: Say) -> Measured:
    """Convert, quantise, compare with torch's logits, admit, and write frame graphs and golden frames."""
    from edgeseg.bundle import quantise
    from edgeseg.bundle.check import check_files, refuse_bad
    from edgeseg.bundle.golden import write_golden
    from edgeseg.bundle.graph import write_frame_graphs

    job = Job.model_validate_json((scratch / "job.json").read_text())
    recipe = TypeAdapter(CalibrationRecipe).validate_python(job.recipe)
    site = Site(folder, Run.open(Path(job.run)), recipe, say, Path(job.untuned) if job.untuned else None)
    fp32 = folder / "model.fp32.onnx"
    quantise.convert(fp32, fp32.with_suffix(".xml"))
    ladder = site.climb(calibration(scratch)) if job.int8 else []
    inputs = np.load(scratch / "inputs.npy")
    checks = check_files(folder, inputs, np.load(scratch / "logits.npy"))
    refuse_bad(checks)
    for protocol in job.protocols:
        say(f"frame graph {protocol.name}")
        write_frame_graphs(folder, site.run.preprocessing, site.run.scheme.values, protocol, job.frame_precisions)
    frame_checks = site.check_frames(job.protocols)
    write_golden(folder, site.run.preprocessing, job.golden, site.recurrent)
    gates = site.gates()
    say("timing")
    speeds = site.speeds(inputs, job.seconds)
    streaming, label_return = site.costs()
    return Measured(frames=len(inputs), frames_from=job.frames_from, checks=tuple(checks), training={},
                    ladder=tuple(ladder), admission=site.admission([*gates, *admission.speed_gates(speeds)]),
                    speeds=speeds, scores=tuple(site.reported()), streaming=streaming, label_return=label_return,
                    frame_checks=frame_checks)


@dataclass
class Site:
    """A folder of model files under construction, and the cases that judge them.

    `evaluations` keeps what was scored: (split, file) -> Evaluation, for files that do not change any more; `played`
    the streams of dev in FP32, of each runtime.
    """

    folder: Path
    run: Run
    recipe: CalibrationRecipe
    say: Say
    untuned: Path | None = None
    evaluations: dict[tuple[str, str, Path], Evaluation] = field(default_factory=dict)
    played: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @cached_property
    def splits(self) -> dict[str, Dataset]:
        """dev and val, as far as they have labelled cases."""
        data = self.run.dataset()
        found = {split: score.labelled_split(self.run, data, split) for split in ("dev", "val")}
        return {split: cases for split, cases in found.items() if cases is not None}

    @property
    def judged(self) -> bool:
        """Whether dev has the patients to tell an INT8 file that is good enough from one that is not."""
        return "dev" in self.splits and len(self.splits["dev"].patients()) >= FEWEST

    def path(self, backend: str, precision: str) -> Path:
        return self.folder / model_file(backend, precision)

    def evaluation(self, split: str, backend: str, precision: str, folder: Path | None = None) -> Evaluation:
        path = (folder or self.folder) / model_file(backend, precision)
        key = (split, precision, path)
        if key not in self.evaluations:
            self.say(f"scoring {backend} {precision} on {split}")
            self.evaluations[key] = self.score(path, split, backend, precision)
        return self.evaluations[key]

    def score(self, path: Path, split: str, backend: str, precision: str) -> Evaluation:
        return score.score_file(path, backend, precision, self.splits[split], self.run.preprocessing, self.run.scheme)

    def against_fp32(self, found: Evaluation, backend: str, precision: str, path: Path) -> list[Gate]:
        """The gates of one candidate; fine-tuned ones are held against the run's own weights, which they replace."""
        fp32 = self.evaluation("dev", backend, "fp32", self.untuned)
        gates = admission.candidate_gates(f"{backend} {precision}", found, fp32, self.recipe.limits)
        return [*gates, self.drift(backend, precision, path)] if self.recurrent else gates

    @cached_property
    def recurrent(self) -> bool:
        return bool(load_backend("onnxruntime", self.path("onnxruntime", "fp32")).states)

    def drift(self, backend: str, precision: str, path: Path) -> Gate:
        """Of a recurrent network: what a stream loses with time."""
        self.say(f"playing streams of dev to {backend} {precision}")
        data, pre = self.splits["dev"], self.run.preprocessing
        if backend not in self.played:
            self.played[backend] = play(self.path(backend, "fp32"), backend, "fp32", data, pre)
        mine = play(path, backend, precision, data, pre)
        return drift_gate(f"{backend} {precision}", mine, self.played[backend], data, self.run.scheme)

    def climb(self, frames: np.ndarray | Inputs) -> list[Rung]:
        """Both INT8 files, ONNX Runtime's also held against OpenVINO's; without enough dev patients nothing can judge,
        so the first rung is taken."""
        from edgeseg.bundle.ladder import climb

        rungs = tuple(r for r in self.recipe.rungs if r != "fine-tune") or RUNGS[:1]
        ladder: list[Rung] = []
        for backend in BACKENDS:
            ladder += climb(backend, self.path("onnxruntime", "fp32"), self.path(backend, "int8"), frames,
                            rungs if self.judged else rungs[:1], self.judge, self.say)
        return [r.model_copy(update={"rung": f"fine-tune, {r.rung}"}) for r in ladder] if self.untuned else ladder

    def judge(self, path: Path, backend: str) -> tuple[float, tuple[str, ...]]:
        """Mean dev Dice of a file and the gates that it misses, as the ladder asks."""
        if "dev" not in self.splits:
            return 0.0, ("no labelled dev cases",)
        found = self.score(path, "dev", backend, "int8")
        gates = self.against_fp32(found, backend, "int8", path)
        if backend == "onnxruntime" and all(g.passed for g in gates):
            gates.append(self.int8_parity(path))
        return float(np.mean(list(found.patient_dice().values()))), admission.failed(gates)

    def candidates(self) -> list[tuple[Literal["openvino", "onnxruntime"], PrecisionName]]:
        """Every precision beside FP32 that there is here."""
        from edgeseg.runtime.precision import native_bf16

        found: list[Any] = [(b, "int8") for b in BACKENDS if self.path(b, "int8").is_file()]
        return found + ([("openvino", "bf16")] if native_bf16() else [])

    def gates(self) -> list[Gate]:
        """All gates but speed on dev; none without labelled dev cases."""
        if "dev" not in self.splits:
            return []
        gates: list[Gate] = []
        replaced = [(b, "fp32") for b in BACKENDS] if self.untuned else []
        for backend, precision in [*replaced, *self.candidates()]:
            found = self.evaluation("dev", backend, precision)
            gates += self.against_fp32(found, backend, precision, self.path(backend, precision))
        self.say("comparing the runtimes on dev")
        agreement, _ = self.compare([self.path(b, "fp32") for b in BACKENDS])
        gates.append(admission.fp32_parity(agreement, len(self.splits["dev"]), self.recipe.limits))
        if self.path("openvino", "int8").is_file():
            gates.append(self.int8_parity(self.path("onnxruntime", "int8")))
        return gates

    def int8_parity(self, onnx: Path) -> Gate:
        _, dice = self.compare([self.path("openvino", "int8"), onnx])
        return admission.int8_parity(dice, len(self.splits["dev"]), self.recipe.limits)

    def compare(self, paths: Sequence[Path]) -> tuple[float, float]:
        """Agreement of the two runtimes, each on its file."""
        a, b = (load_backend(backend, path) for backend, path in zip(BACKENDS, paths, strict=True))
        return score.agreement(a, b, self.splits["dev"], self.run.preprocessing, len(self.run.scheme.foreground))

    def admission(self, gates: Sequence[Gate]) -> Admission | None:
        if "dev" not in self.splits:
            return None
        data = self.splits["dev"]
        return Admission(data=data.name, split="dev", patients=len(data.patients()), gates=tuple(gates))

    def speeds(self, inputs: np.ndarray, seconds: float) -> Speeds:
        from edgeseg.measure.speed import measure_speeds

        return measure_speeds(self.folder, list(inputs[:8]), seconds)

    def reported(self) -> list[Scores]:
        """Dice of every file on dev and val."""
        rows: list[tuple[Any, Any]] = [(b, "fp32") for b in BACKENDS]
        rows += self.candidates()
        return [score.scores(self.evaluation(split, b, p), b, p, split) for split in self.splits for b, p in rows]

    def costs(self) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
        """What statistics of each frame cost against those of the volume, and labels sent back to the native grid
        against logits; in OpenVINO FP32, on dev and val."""
        net = load_backend("openvino", self.path("openvino", "fp32"))
        streaming, label_return = [], []
        for split, data in self.splits.items():
            before = self.evaluation(split, "openvino", "fp32")
            self.say(f"scoring statistics of each frame, and labels sent back, on {split}")
            given = (net, data, self.run.preprocessing, self.run.scheme)
            label_return.append(change(split, before, score.score_label_return(*given)))
            if any(n.kind in ("zscore", "rescale") for n in self.run.preprocessing.channels):
                streaming.append(change(split, before, score.score_streaming(*given)))
        return tuple(streaming), tuple(label_return)

    def check_frames(self, protocols: Sequence[FrameProtocol]) -> tuple[FrameCheck, ...]:
        from edgeseg.bundle.frame_check import check_frame_graph

        data = self.run.dataset()
        data = data.select("dev") if len(data.select("dev")) else data.select("train")
        return tuple(check for protocol in protocols for check in check_frame_graph(
            self.folder, protocol, data, self.run.preprocessing, self.run.scheme.values))


def calibration(scratch: Path) -> np.ndarray | Inputs:
    """The frames that calibrate; of a recurrent network samples of all its inputs."""
    if (samples := scratch / "calibration.npz").is_file():
        return dict(np.load(samples))
    return np.load(scratch / "calibration.npy")


def change(split: str, before: Evaluation, after: Evaluation) -> Change:
    """Mean Dice before, and the paired difference after - before."""
    a, b = after.patient_dice(), before.patient_dice()
    return Change(split=split, before=score.estimate(bootstrap_interval(list(b.values()))),
                  difference=score.estimate(paired_difference([a[p] for p in b], list(b.values()))))


def main(arguments: list[str], say: Say) -> dict[str, Any]:
    scratch, folder = map(Path, arguments)
    return json.loads(build(scratch, folder, say).model_dump_json())


if __name__ == "__main__":
    answer_apart(main)
