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
from edgeseg.bundle.recipe import RUNGS, CalibrationRecipe
from edgeseg.distill.run import Run
from edgeseg.manifest import (
    Admission,
    FrameCheck,
    FrameProtocol,
    Gate,
    Measured,
    Part,
    PrecisionName,
    Rung,
    Scores,
    Speeds,
    Streaming,
)
from edgeseg.measure.evaluate import Evaluation
from edgeseg.measure.statistics import bootstrap_interval, paired_difference
from edgeseg.readers import Dataset
from edgeseg.runtime.backends import BACKENDS, PRECISIONS, load_backend, model_file

FEWEST = 2
"""dev patients from which on an interval exists: with fewer nothing can be admitted, and climbing is pointless."""


class Job(Part):
    """What `export.py` asks for.

    Attributes:
        run: its folder. tuned: the weights come from the ladder's last rung. last: there is no further rung.
        seconds: counted time of each row of the speed gate.
    """

    run: str
    int8: bool
    recipe: dict[str, Any]
    protocols: tuple[FrameProtocol, ...]
    frames_from: str
    tuned: bool
    last: bool
    seconds: float


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
    site = Site(folder, Run.open(Path(job.run)), TypeAdapter(CalibrationRecipe).validate_python(job.recipe), say)
    fp32 = folder / "model.fp32.onnx"
    quantise.convert(fp32, fp32.with_suffix(".xml"))
    ladder = site.climb(np.load(scratch / "calibration.npy"), job.tuned) if job.int8 else []
    gates = site.gates()
    if job.int8 and not job.last and site.judged and not site.int8_admitted(gates):  # the last rung may still help
        return Measured(frames=0, frames_from="", checks=(), training={}, ladder=tuple(ladder))
    inputs = np.load(scratch / "inputs.npy")
    checks = check_files(folder, inputs, np.load(scratch / "logits.npy"))
    refuse_bad(checks)
    for protocol in job.protocols:
        say(f"frame graph {protocol.name}")
        write_frame_graphs(folder, site.run.preprocessing, site.run.scheme.values, protocol)
    frame_checks = site.check_frames(job.protocols)
    write_golden(folder, site.run.preprocessing)
    say("timing")
    speeds = site.speeds(inputs, job.seconds)
    found = site.admission([*gates, *admission.speed_gates(speeds)])
    return Measured(frames=len(inputs), frames_from=job.frames_from, checks=tuple(checks), training={},
                    ladder=tuple(ladder), admission=found, speeds=speeds, scores=tuple(site.reported()),
                    streaming=tuple(site.streaming()), frame_checks=frame_checks)


@dataclass
class Site:
    """A folder of model files under construction, and the cases that judge them.

    `evaluations` keeps what was scored: (split, backend, precision) -> Evaluation.
    """

    folder: Path
    run: Run
    recipe: CalibrationRecipe
    say: Say
    evaluations: dict[tuple[str, str, str], Evaluation] = field(default_factory=dict)

    @cached_property
    def splits(self) -> dict[str, Dataset]:
        """dev and val, as far as they have labelled cases."""
        data = self.run.dataset()
        found = {split: score.labelled_split(self.run, data, split) for split in ("dev", "val")}
        return {split: cases for split, cases in found.items() if cases is not None}

    @property
    def judged(self) -> bool:
        """Whether dev can tell an INT8 file that is good enough from one that is not."""
        return "dev" in self.splits and len(self.splits["dev"].patients()) >= FEWEST

    def int8_admitted(self, gates: Sequence[Gate]) -> bool:
        found = self.admission(gates)
        return found is not None and all(found.admitted(b, "int8") for b in BACKENDS)

    def path(self, backend: str, precision: str) -> Path:
        return self.folder / model_file(backend, precision)

    def evaluation(self, split: str, backend: str, precision: str) -> Evaluation:
        key = (split, backend, precision)
        if key not in self.evaluations:
            self.say(f"scoring {backend} {precision} on {split}")
            self.evaluations[key] = self.score(self.path(backend, precision), split, backend, precision)
        return self.evaluations[key]

    def score(self, path: Path, split: str, backend: str, precision: str) -> Evaluation:
        return score.score_file(path, backend, precision, self.splits[split], self.run.preprocessing, self.run.scheme)

    def climb(self, frames: np.ndarray, tuned: bool) -> list[Rung]:
        """Both INT8 files; without labelled dev cases nothing can judge, so the first rung is taken."""
        from edgeseg.bundle.ladder import climb

        rungs = tuple(r for r in self.recipe.rungs if r != "fine-tune") or RUNGS[:1]
        if not self.judged:
            rungs = rungs[:1]

        def judge(path: Path, backend: str) -> tuple[float, tuple[str, ...]]:
            if "dev" not in self.splits:
                return 0.0, ("no labelled dev cases",)
            found = self.score(path, "dev", backend, "int8")
            missed = admission.failed(admission.candidate_gates(
                f"{backend} int8", found, self.evaluation("dev", backend, "fp32"), self.recipe.limits))
            return float(np.mean(list(found.patient_dice().values()))), missed

        ladder: list[Rung] = []
        for backend in BACKENDS:
            ladder += climb(backend, self.path("onnxruntime", "fp32"), self.path(backend, "int8"), frames, rungs, judge,
                            self.say)
        return [r.model_copy(update={"rung": f"fine-tune, {r.rung}"}) for r in ladder] if tuned else ladder

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
        for backend, precision in self.candidates():
            gates += admission.candidate_gates(f"{backend} {precision}", self.evaluation("dev", backend, precision),
                                               self.evaluation("dev", backend, "fp32"), self.recipe.limits)
        self.say("comparing the runtimes on dev")
        found = {p: self.agreement(p) for p in PRECISIONS if self.path("openvino", p).is_file()}
        return gates + admission.parity_gates(found["fp32"][0], found["int8"][1] if "int8" in found else None,
                                              len(self.splits["dev"]), self.recipe.limits)

    def agreement(self, precision: str) -> tuple[float, float]:
        a, b = (load_backend(backend, self.path(backend, precision)) for backend in BACKENDS)
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

    def streaming(self) -> list[Streaming]:
        """What statistics of each frame cost against those of the volume, in OpenVINO FP32."""
        if not any(n.kind in ("zscore", "rescale") for n in self.run.preprocessing.channels):
            return []
        net, found = load_backend("openvino", self.path("openvino", "fp32")), []
        for split, data in self.splits.items():
            self.say(f"scoring statistics of each frame on {split}")
            frames = score.score_streaming(net, data, self.run.preprocessing, self.run.scheme).patient_dice()
            volume = self.evaluation(split, "openvino", "fp32").patient_dice()
            difference = paired_difference(list(frames.values()), list(volume.values()))
            found.append(Streaming(split=split, volume=score.estimate(bootstrap_interval(list(volume.values()))),
                                   difference=score.estimate(difference)))
        return found

    def check_frames(self, protocols: Sequence[FrameProtocol]) -> tuple[FrameCheck, ...]:
        from edgeseg.bundle.frame_check import check_frame_graph

        data = self.run.dataset()
        data = data.select("dev") if len(data.select("dev")) else data.select("train")
        return tuple(check for protocol in protocols for check in check_frame_graph(
            self.folder, protocol, data, self.run.preprocessing, self.run.scheme.values))


def main(arguments: list[str], say: Say) -> dict[str, Any]:
    scratch, folder = map(Path, arguments)
    return json.loads(build(scratch, folder, say).model_dump_json())


if __name__ == "__main__":
    answer_apart(main)
