"""Admit: what `export` ends with, repeated on a finished bundle, other data or another machine."""

from pathlib import Path

from edgeseg.bundle import admission, score
from edgeseg.bundle.apart import Say
from edgeseg.bundle.recipe import Limits
from edgeseg.bundle.stream_gate import drift_gate, play
from edgeseg.container import Bundle, open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Admission, Part, Scores, Speeds
from edgeseg.measure.evaluate import Evaluation, split_note
from edgeseg.measure.speed import measure_speeds
from edgeseg.measure.verify import network_inputs
from edgeseg.readers import Dataset, open_data
from edgeseg.runtime.backends import BACKENDS, load_backend, model_file
from edgeseg.runtime.golden import load_golden
from edgeseg.runtime.precision import native_bf16


class Admitted(Part):
    """The gates with the scores and times that they were held against. `notes`: for a person."""

    bundle: str
    admission: Admission
    scores: tuple[Scores, ...]
    speeds: Speeds
    notes: tuple[str, ...]


def admit_bundle(path: Path, data: str, split: str = "dev", split_file: Path | None = None,
                 limits: Limits | None = None, seconds: float = 2.0, threads: int | None = None,
                 say: Say = lambda line: None) -> Admitted:
    """Score every precision of the bundle at `path` on `split` of `data` and hold it against FP32 (`admission`).

    Args:
        limits: default: those that the bundle was admitted with.

    Raises:
        EdgesegError: a damaged bundle, a bundle with nothing beside FP32, an empty or unlabelled split.
    """
    bundle = open_bundle(path)
    limits = limits or Limits(**bundle.manifest.limits)
    dataset = open_data(data, split_file)
    cases = dataset.select(None if split == "all" else split)
    if not len(cases):
        raise EdgesegError(f"{data}: no case in split {split!r}: choose another --split or --split-file")
    candidates = [(b, "int8") for b in BACKENDS if model_file(b, "int8") in bundle.files]
    candidates += [("openvino", "bf16")] if native_bf16() else []
    if not candidates:
        raise EdgesegError(f"{bundle.path}: has nothing but FP32, and this CPU has no bf16: nothing to admit")
    note = split_note(bundle.manifest.data, dataset.name, split, cases.patients())
    found = {key: scored(bundle, *key, cases, threads, say) for key in [(b, "fp32") for b in BACKENDS] + candidates}
    gates = [g for b, p in candidates
             for g in admission.candidate_gates(f"{b} {p}", found[b, p], found[b, "fp32"], limits)]
    if bundle.manifest.stream:
        played = {key: play(bundle.file(model_file(*key)), *key, cases, bundle.preprocessing, threads) for key in found}
        gates += [drift_gate(f"{b} {p}", played[b, p], played[b, "fp32"], cases, bundle.scheme) for b, p in candidates]
    say("comparing the runtimes")
    parity = {p: compared(bundle, p, cases, threads) for p in ("fp32", "int8") if ("openvino", p) in found}
    gates.append(admission.fp32_parity(parity["fp32"][0], len(cases), limits))
    if "int8" in parity:
        gates.append(admission.int8_parity(parity["int8"][1], len(cases), limits))
    say("timing")
    golden = load_golden(bundle.file("golden.npz"))
    speeds = measure_speeds(bundle.path, network_inputs(bundle, golden), seconds, threads)
    gates += admission.speed_gates(speeds)
    return Admitted(
        bundle=bundle.path.name, speeds=speeds, notes=(note,) if note else (),
        admission=Admission(data=dataset.name, split=split, patients=len(cases.patients()), gates=tuple(gates)),
        scores=tuple(score.scores(e, b, p, split) for (b, p), e in found.items()))  # type: ignore[arg-type]


def scored(bundle: Bundle, backend: str, precision: str, cases: Dataset, threads: int | None, say: Say) -> Evaluation:
    say(f"scoring {backend} {precision}")
    return score.score_file(bundle.file(model_file(backend, precision)), backend, precision, cases,
                            bundle.preprocessing, bundle.scheme, threads)


def compared(bundle: Bundle, precision: str, cases: Dataset, threads: int | None) -> tuple[float, float]:
    nets = [load_backend(b, bundle.file(model_file(b, precision)), threads) for b in BACKENDS]
    return score.agreement(nets[0], nets[1], cases, bundle.preprocessing, len(bundle.scheme.foreground))
