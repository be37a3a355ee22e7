"""What the scripts on echo clips share: options, clips without labels, clips of other formats, scores, pages."""

import argparse
import csv
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import HERE, Target, markdown_table, provenance
from students import absolute

from edgeseg.case import Case
from edgeseg.distill.recipe import Recipe
from edgeseg.errors import EdgesegError
from edgeseg.files import write_text
from edgeseg.labels import IGNORE
from edgeseg.measure.document import check_out, write_json
from edgeseg.measure.overlap import PUBLISHED_ECHO_THRESHOLD, above, dice, iou
from edgeseg.measure.phases import true_phases
from edgeseg.phantoms.echo_write import LISTED, SETS, write_avi
from edgeseg.readers import open_data
from edgeseg.readers.nifti_write import write_volume
from edgeseg.teachers.stored import StoredTargets

RECIPES = HERE / "recipes"
THRESHOLDS = {"": 0.5, " at 80/255": PUBLISHED_ECHO_THRESHOLD}
QUICK = {"epochs": 1, "validate_every": 1, "batch_size": 1, "clip": 4, "size": (32, 32), "spacing": (3.5, 3.5),
         "precision": "32-true"}
QUICK_FRAMES, QUICK_STEP = 10, 9
"""A quick clip has so many frames, so many frames of the phantom apart."""


def parser_of(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", default="phantom:echo?n=100&domain=other",
                        help="labelled clips: train and dev make the teacher, val is the test (default: %(default)s)")
    parser.add_argument("--train", default="phantom:echo?n=350&frames=24",
                        help="the students' clips; labels are thrown away (default: %(default)s)")
    parser.add_argument("--other-train", default="phantom:echo?n=175&frames=24&domain=other",
                        help="the 'real data' arm's clips: of the same patients as --other (default: %(default)s)")
    parser.add_argument("--teacher", help="deeplabv3:CHECKPOINT, ... (default: a DeepLabv3 trained on --other)")
    parser.add_argument("--teacher-epochs", type=int, default=10)
    parser.add_argument("--recipe", type=Path, default=RECIPES / "echo_student.toml", help="of `edgeseg distill`")
    parser.add_argument("--epochs", type=int, help="other than the recipe's")
    parser.add_argument("--seed", type=int, help="other than the recipe's")
    parser.add_argument("--jobs", type=int, default=2, help="steps at a time, one thread each; 0: in this process")
    parser.add_argument("--work", type=Path, default=Path("runs/echo"), help="everything made; may be gone on with")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--quick", action="store_true", help="tiny settings: proves that the script runs, nothing else")
    return parser


def settle(given: argparse.Namespace) -> Recipe:
    """The recipe of the students; `given` names what is really used afterwards."""
    check_out(given.out)
    check_out(given.work)
    given.work = given.work.resolve()
    base = Recipe.load(given.recipe)
    if given.quick:
        base, given.jobs, given.teacher_epochs = base.changed(QUICK), min(given.jobs, 1), 1
        given.train, given.other = (f"camus:{tiny(given.work / 'quick' / name, spec)}" for name, spec in
                                    (("train", "phantom:echo?n=4"), ("other", "phantom:echo?n=4&domain=other")))
        given.other_train = given.other
    given.train, given.other, given.other_train = map(absolute, (given.train, given.other, given.other_train))
    given.teacher = absolute(given.teacher) if given.teacher else None
    open_data(given.other)  # a wrong path is better found now
    return base.changed({"epochs": given.epochs, "seed": given.seed})


OURS = {"stem_stride": 2, "skips": True, "filters": 16}


def spec_of(size: str) -> dict[str, Any]:
    """Of `31`, three blocks of one layer of the published family; `s31`: with a strided stem, skips and 16 filters,
    made for a CPU.

    Raises:
        EdgesegError: not such a name.
    """
    if not (found := re.fullmatch(r"(s?)([1-9])([1-9])", size)):
        raise EdgesegError(f"{size}: a size is blocks and layers, such as 31, or s41 for one with a strided stem")
    return {"blocks": int(found[2]), "layers": int(found[3]), **(OURS if found[1] else {})}


# ---- clips

def without_labels(spec: str, folder: Path) -> str:
    """The train and dev clips of `spec` as EchoNet-Synthetic has them, AVI files without a label; what opens them."""
    if not folder.exists():
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        (part / "Videos").mkdir(parents=True)
        rows = []
        for ref in open_data(spec).refs:
            if ref.split not in ("train", "dev"):
                continue
            case = ref.load()
            assert case.frame_time is not None
            write_avi(part / "Videos" / f"{ref.id}.avi", case.frames[:, 0], 1 / case.frame_time)
            rows.append((ref.id, 0, 0, 0, *case.frames.shape[2:], 1 / case.frame_time, len(case.frames),
                         SETS[ref.split]))
        with (part / "FileList.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([LISTED, *rows])
        (part / "source.txt").write_text(spec)
        part.rename(folder)
    if (made := (folder / "source.txt").read_text()) != spec:
        raise EdgesegError(f"{folder}: was made of {made}, not {spec}: choose another --work")
    return f"echonet-synthetic:{folder}"


def write_camus(folder: Path, clips: Sequence[tuple[Case, str]]) -> Path:
    """Labelled clips (0..255, whole numbers), each with its set, losslessly in CAMUS's layout: patient0001, ..."""
    sets: dict[str, list[str]] = {}
    for number, (case, split) in enumerate(clips, 1):
        name, known = f"patient{number:04d}", true_phases(case)
        assert case.labels is not None
        assert case.frame_time is not None
        for ending, pixels in (("", case.frames[:, 0]), ("_gt", case.labels)):
            write_volume(folder / name / f"{name}_4CH_half_sequence{ending}.nii.gz", pixels.astype(np.uint8),
                         case.spacing, 1.0)
        info = {"ED": 1 + min(known.ed, default=0), "ES": 1 + min(known.es, default=len(case.frames) - 1),
                "NbFrame": len(case.frames), "FrameRate": 1 / case.frame_time}
        if ef := case.provenance.get("echo", {}).get("ef"):
            info["EF"] = ef
        write_text(folder / name / "Info_4CH.cfg", "".join(f"{k}: {v}\n" for k, v in info.items()))
        sets.setdefault(split, []).append(name)
    write_text(folder / "split.json", json.dumps(sets))  # last: whoever finds it finds all
    return folder


def tiny(folder: Path, spec: str) -> Path:
    """A few short clips of a phantom."""
    if not (folder / "split.json").exists():
        write_camus(folder, [(thinned(ref.load()), ref.split or "") for ref in open_data(spec).refs])
    return folder


def thinned(case: Case) -> Case:
    kept = slice(0, QUICK_FRAMES * QUICK_STEP, QUICK_STEP)
    echo = case.provenance["echo"]
    events = {k: [n for t in echo[k] if 0 < (n := t // QUICK_STEP) < QUICK_FRAMES] for k in ("ed", "es")}
    assert case.labels is not None
    return replace(case, frames=case.frames[kept], labels=case.labels[kept], frame_time=0.04,
                   provenance={"echo": echo | events})


# ---- scores

def predicted(given: argparse.Namespace, names: Iterable[str]) -> dict[str, StoredTargets]:
    return {name: StoredTargets.open(given.work / "predictions" / name) for name in names}


def ventricle(targets: StoredTargets, case: Case) -> np.ndarray:
    """Probability of the left ventricle, float32 [T, H, W]."""
    return targets.predict(case)[1][:, 1]


def score_clip(probability: np.ndarray, case: Case) -> dict[str, float]:
    """Dice and IoU, means over the labelled frames of a clip, at both thresholds; Dice of the ED and ES frames."""
    labels = case.labels
    assert labels is not None
    known = [t for t in range(len(labels)) if (labels[t] != IGNORE).all()]
    truth, phases, found = labels == 1, true_phases(case), {}
    for name, threshold in THRESHOLDS.items():
        masks = above(probability, threshold)
        by_frame = {t: dice(masks[t], truth[t]) for t in known}
        found[f"Dice{name}"] = float(np.mean(list(by_frame.values())))
        found[f"IoU{name}"] = float(np.mean([iou(masks[t], truth[t]) for t in known]))
        for phase, frames in (("ED", phases.ed), ("ES", phases.es)):
            found[f"{phase} Dice{name}"] = float(np.mean([by_frame.get(t, np.nan) for t in frames] or [np.nan]))
    return found


def score(networks: dict[str, StoredTargets], cases: Iterable[Case]) -> dict[str, dict[str, list[float]]]:
    """Network -> measure -> one value a clip."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in networks}
    for case in cases:
        for name, network in networks.items():
            for measure, value in score_clip(ventricle(network, case), case).items():
                found[name].setdefault(measure, []).append(value)
    return found


def page(title: str, document: dict[str, Any], parts: Sequence[str], rows: Sequence[Sequence[str]] = ()) -> str:
    """Markdown: where it comes from, the numbers to reach (`rows` of `Target.line`), and the parts."""
    changed = " with changes" if document["changed_files"] else ""
    quick = ["**A quick run with tiny settings: these numbers mean nothing.**"] if document["quick"] else []
    return "\n\n".join([
        f"# {title}", *quick,
        f"`{document['command']}`, commit {document['commit']}{changed}.",
        *([markdown_table(["number to reach", "measured", "95 %", "limit", ""], rows).rstrip()] if rows else []),
        *(part.rstrip() for part in parts)]) + "\n"


def started(given: argparse.Namespace, schema: str) -> dict[str, Any]:
    """The head of a result document."""
    return {"schema": f"edgeseg.{schema}/1", "quick": given.quick, **provenance()}


def finish(given: argparse.Namespace, name: str, title: str, document: dict[str, Any], parts: Sequence[str],
           rows: Sequence[Target] = ()) -> None:
    """Write OUT/NAME.json and .md, and say whether the numbers to reach were reached."""
    write_json(given.out / f"{name}.json", document | {"targets": [t.document() for t in rows]})
    write_text(given.out / f"{name}.md", page(title, document, parts, [t.line() for t in rows]))
    for row in rows:
        print("  ".join(part for part in row.line() if part))
    print(f"wrote    {given.out / name}.md")


def run_main(main: Callable[[], None], name: str) -> None:
    """What a script does when it is run: errors are one line, and a polite kill is as Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except EdgesegError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
