"""What every benchmark script shares: provenance of a result, targets with verdicts, Markdown, training in words."""

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.measure.evaluate import Evaluation, evaluate
from edgeseg.measure.statistics import Interval
from edgeseg.readers import open_data

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Target:
    """A number to reach. `met` is None when it was not measured."""

    name: str
    value: float | None
    sign: Literal[">=", "<="]
    limit: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def met(self) -> bool | None:
        if self.value is None or self.value != self.value:
            return None
        return self.value >= self.limit if self.sign == ">=" else self.value <= self.limit

    def document(self) -> dict[str, Any]:
        return {**self.__dict__, "met": self.met}

    def line(self) -> tuple[str, ...]:
        verdict = {True: "reached", False: "MISSED", None: "not measured"}[self.met]
        interval = "" if self.low is None else f"[{self.low:.4g}, {self.high:.4g}]"
        value = "-" if self.met is None else f"{self.value:.4g}"
        return self.name, value, interval, f"{self.sign} {self.limit:g}", verdict


def target(name: str, interval: Interval, sign: Literal[">=", "<="], limit: float) -> Target:
    return Target(name, interval.value, sign, limit, interval.low, interval.high, interval.n)


def timing_parser(description: str | None, of: str = "its path, or a shipped name") -> argparse.ArgumentParser:
    """The options that every script has which times a bundle; `of`: what --bundle is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help=of)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--quick", action="store_true", help="tiny settings: proves that the script runs, nothing else")
    return parser


def resident_mb(process: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{process}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def run_step(*arguments: str | Path) -> str:
    """Run a step of teacher_step.py in its own process and return what it printed.

    Raises:
        EdgesegError: the step failed; its last line.
    """
    done = subprocess.run([sys.executable, str(HERE / "teacher_step.py"), *map(str, arguments)],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise EdgesegError(f"{arguments[0]} failed: {words[-1]}")
    return done.stdout


def labels_folder(folder: Path, teacher: str, data: str, tta: str) -> Path:
    """Where below `folder` the label maps of a teacher are; other data or weights never find old ones."""
    total = hashlib.sha256(data.encode())
    for path in sorted(Path(teacher.partition(":")[2]).glob("fold_*/checkpoint_*.pth")):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return folder / f"{tta}-{total.hexdigest()[:12]}"


def evaluate_teacher(given: argparse.Namespace, folder: Path, scheme: LabelScheme) -> dict[str, Evaluation]:
    """`teacher mirror`, ...: the label maps that its full pipeline left in `labels_folder(folder, ...)`."""
    found, dataset = {}, open_data(given.data, given.split_file)
    for tta in given.tta:
        labels = labels_folder(folder, given.teacher, given.data, tta)

        def segment(case: Case, labels: Path = labels) -> np.ndarray:
            with np.load(labels / f"{case.id}.npz") as stored:
                return scheme.encode(stored["labels"], LabelScheme(tuple(map(str, stored["names"]))))

        cases = dataset.select(None if given.split == "all" else given.split)
        found[f"teacher {tta}"] = evaluate(segment, cases, scheme, dataset.ignore)
    return found


def provenance() -> dict[str, Any]:
    """Commit, whether the tree was changed, and the command without the folders of this machine."""
    command = [Path(sys.argv[0]).name, *(without_folders(a) for a in sys.argv[1:])]
    return {"commit": git("rev-parse", "HEAD"), "changed_files": bool(git("status", "--porcelain")),
            "command": " ".join(command)}


def without_folders(argument: str) -> str:
    """`acdc:/data/acdc` -> `acdc:acdc`; options and plain words stay as they are."""
    prefix, colon, rest = argument.rpartition(":")
    return prefix + colon + (rest.rstrip("/").rsplit("/", 1)[-1] if os.sep in rest else rest)


def git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def reading(distillation: dict[str, Any], teacher: dict[str, Any]) -> str:
    """Which P(i) the student learned from, in words; `teacher` is the manifest's."""
    if distillation.get("teacher", "none") == "none":
        return "no teacher"
    targets = distillation.get("targets")
    of_3d = str(teacher.get("configuration", "")).startswith("3d")  # a 3D teacher distils through stored targets
    if targets == "stored" or (targets == "auto" and of_3d):
        return (f"P(i): stored soft predictions of the teacher's full pipeline (test-time augmentation: "
                f"{distillation.get('tta')}), made once per case and brought to scale i")
    if distillation.get("own_layers"):
        return "P(i): deep supervision output i of the teacher's network on each augmented patch"
    return "P(i): the full output of the teacher's network on each augmented patch, brought to scale i"


def how_trained(distillation: dict[str, Any], read: str, training: dict[str, Any]) -> str:
    """Distillation and training time as sentences of a page; `read` is what `reading` said."""
    weights = ", ".join(f"{k} {distillation[k]}" for k in ("kd_weight", "temperature") if k in distillation)
    text = f"Distillation ({weights or 'not recorded'}), {read}."
    if (spent := minutes(training)) is not None:
        machine = ", ".join(f"{k} {v}" for k, v in (training.get("machine") or {}).items())
        text += (f" Training took {spent:.1f} wall minutes, as the run recorded them "
                 f"({machine or 'number of threads not recorded'}).")
    return text


def minutes(training: dict[str, Any]) -> float | None:
    seconds = training.get("seconds")
    return None if seconds is None else seconds / 60


def noted(notes: dict[str, list[str]]) -> str:
    """What the evaluations noted, each note once, with the networks that it is about."""
    about: dict[str, list[str]] = {}
    for name, found in notes.items():
        for note in found:
            about.setdefault(note, []).append(name)
    return "".join(f"\n**{note}** ({', '.join(names)})\n" for note, names in about.items())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def cell(interval: Interval, digits: int = 4) -> str:
    """`0.9123 [0.9012, 0.9234]`; a dash where nothing is defined."""
    if interval.value != interval.value:
        return "-"
    text = f"{interval.value:.{digits}f}"
    return text if interval.low != interval.low else f"{text} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
