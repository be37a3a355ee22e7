"""Students on real apical four chamber clips, held against what EchoNet-Dynamic's published DeepLabv3 said of them.

    python benchmarks/echo_real.py --work runs/echo --out benchmarks/results [--real ../shared/data/echo_real]

First students that never saw a real frame (the runs of echo_pareto.py, and one of the phantom's labels): Dice, IoU,
correlation of the area curves, and aFD of ED and ES against the teacher's own curve, both by the same detector. Then
leave-one-out: distilled from the phantom's targets and the masks of all clips but one, scored on that one, in turn; and
the same with the phantom's labels in the place of targets, going on from the student of those labels.
Writes echo_real.json and .md, in which clips are numbers. Images stay in a scratch folder below --work that is deleted
at the end; pictures are made only with --pictures DIR, and never inside the repository. Without the clips the script
says so and does nothing.
"""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import echo_common as echo
from common import HERE, Target, cell, markdown_table, target
from echo_crew import Crew, distillation, prediction, train_teacher
from echo_crew import targets as targets_of
from students import shown

from edgeseg.case import Case
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.distill.targets import make_targets
from edgeseg.errors import EdgesegError
from edgeseg.measure.afd import ClipCurve, conditioned, free_running
from edgeseg.measure.ejection import pearson
from edgeseg.measure.overlap import above
from edgeseg.measure.phases import PHASES, area_curve, find_phases
from edgeseg.measure.statistics import Interval, bootstrap_interval
from edgeseg.phantoms.echo import SCHEME
from edgeseg.readers import merge, open_data
from edgeseg.report.echo import Curve, area_curves, write_overlay_video
from edgeseg.teachers.stored import StoredTargets

REAL = HERE.parents[1] / "shared" / "data" / "echo_real"
LEAVE_ONE_OUT, FROM_LABELS, LABELS = "leave-one-out", "leave-one-out from labels", "labels-"
LABELLED = ("phantom:echo?n=800&seed=1&frames=24", "phantom:echo?n=400&seed=1&frames=24&domain=other")
LABEL_CLIP, LABEL_EPOCHS = 24, 6
"""Of the student that learns from labels: what a phantom draws costs next to nothing, and many hearts help."""
GONE_ON_WITH = ("phantom:echo?n=160&seed=1&frames=24", "phantom:echo?n=80&seed=1&frames=24&domain=other")
QUICK_LABELLED = ("phantom:echo?n=4&frames=10",)
FINE = {"epochs": 3, "learning_rate": 1e-3}
"""When that student goes on with real clips, beside the first of the hearts that it knows."""


class PhantomAndReal:
    """In the place of a teacher: stored targets of the phantom's clips, and of real ones the masks that they carry."""

    tta, mirror_axes = "none", ()

    def __init__(self, stored: StoredTargets) -> None:
        self.stored, self.name = stored, "phantom's targets + published masks"
        self.scheme, self.channels, self.preprocessing = stored.scheme, stored.channels, stored.preprocessing
        self.provenance = {"parameters": stored.provenance["parameters"], "teachers": stored.manifest["teachers"]}

    def predict(self, case: Case, tta: str = "none") -> tuple[np.ndarray, np.ndarray]:
        if case.labels is None:
            return self.stored.predict(replace(case, id=case.id.partition("_")[2]))  # merged: DATASET_id
        inside = (case.labels == 1).astype(np.float32)
        return case.labels, np.stack([1 - inside, inside], axis=1)


def read_clips(folder: Path, quick: bool) -> list[Case]:
    """The clips with a mask, named by number. Their masks stand where labels would."""
    clips = []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as stored:
            if "deeplabv3_mask" not in stored:
                continue
            kept = slice(0, 24 if quick else None)
            frames, masks = (stored[k][kept] for k in ("frames", "deeplabv3_mask"))
            rate = float(stored["fps"])
        number = f"clip {len(clips) + 1}"
        curve = find_phases(area_curve(masks > 0), 1 / rate)
        clips.append(Case(number, number, frames[:, None].astype(np.float32), (1.0, 1.0), "time", frame_time=1 / rate,
                          labels=(masks > 0).astype(np.uint8), scheme=SCHEME,
                          provenance={"echo": {"ed": list(curve.ed), "es": list(curve.es)}}))
    return clips


def judged(clips: list[Case], found: list[np.ndarray]) -> dict[str, Any]:
    """A student's probabilities [T, H, W] of each clip against the masks of the teacher."""
    curves, values, correlations = [], [], []
    for case, probability in zip(clips, found, strict=True):
        assert case.labels is not None
        assert case.frame_time is not None
        mine, theirs = area_curve(probability), area_curve(case.labels == 1)
        curves.append(ClipCurve(case.id, mine, find_phases(theirs, case.frame_time), case.frame_time))
        values.append(echo.score_clip(probability, case))
        correlations.append(float(pearson(mine, theirs)))
    measures = ("Dice", "IoU", "Dice at 80/255", "IoU at 80/255")
    return {**{m: [v[m] for v in values] for m in measures}, "area correlation": correlations,
            "afd": conditioned(curves, find_phases), "free": free_running(curves)}


def probabilities(given: argparse.Namespace, crew: Crew, name: str, run: Path, spec: str) -> list[np.ndarray]:
    """Of every clip. They are kept with the clips, not in --work."""
    apart = argparse.Namespace(work=given.scratch)
    crew.run([prediction(apart, name, run, spec, "val")])
    stored = echo.predicted(apart, [name])[name]
    return [echo.ventricle(stored, case) for case in open_data(spec)]


def others(given: argparse.Namespace, clips: list[Case], left_out: int) -> str:
    """What opens all clips but one; they are in the scratch folder."""
    folder = given.scratch / f"without-{left_out + 1}" / "clips"
    kept = [(c, "train") for k, c in enumerate(clips) if k != left_out]
    return f"camus:{folder if folder.exists() else echo.write_camus(folder, kept)}"


def fold_recipe(given: argparse.Namespace, base: Recipe, clips: list[Case], left_out: int, train: str) -> Recipe:
    """The recipe of the student that sees all clips but one; its targets are in the scratch folder too."""
    real, folder = others(given, clips, left_out), given.scratch / f"without-{left_out + 1}" / "targets"
    data = merge([open_data(train), open_data(real)])
    mixed = PhantomAndReal(StoredTargets.open(given.work / "targets" / "train"))
    kept = tuple(r for r in data.refs if r.split in ("train", "dev"))
    make_targets([mixed], replace(data, refs=kept), folder, say=lambda _: None)
    return base.changed({"data": (f"{train}:{1 - given.share:g}", f"{real}:{given.share:g}"),
                         "spec": echo.spec_of(given.size), "teacher": f"targets:{folder}"})


def taught_by_labels(given: argparse.Namespace, base: Recipe) -> Recipe:
    """The recipe of a student of both domains' labels: what the phantom alone can teach."""
    return base.changed({"data": (given.train,) if given.quick else LABELLED, "spec": echo.spec_of(given.size),
                         **({} if given.quick else {"epochs": LABEL_EPOCHS, "clip": LABEL_CLIP}), "kd_weight": 0.0,
                         "teacher": "none", "targets": "network", "loss": "layerwise_kl"})


def labels_fold(given: argparse.Namespace, base: Recipe, clips: list[Case], left_out: int) -> Recipe:
    """The recipe of that student going on with all clips but one."""
    phantom = QUICK_LABELLED if given.quick else GONE_ON_WITH
    share = (1 - given.share) / len(phantom)
    return taught_by_labels(given, base).changed({
        "data": (*(f"{spec}:{share:g}" for spec in phantom), f"{others(given, clips, left_out)}:{given.share:g}"),
        "pretrained": str(given.work / (LABELS + given.size)), **({} if given.quick else FINE)})


def leave_one_out(given: argparse.Namespace, base: Recipe, crew: Crew, clips: list[Case], spec: str
                  ) -> dict[str, tuple[list[Case], list[np.ndarray]]]:
    """Of each way the clips that were left out, and what the student that did not see them says of each."""
    folds = range(1 if given.quick else len(clips))
    ways = {FROM_LABELS: {f"real-labels-without-{k + 1}": labels_fold(given, base, clips, k) for k in folds}}
    if not given.labels_only:
        train = echo.without_labels(given.train, given.work / "clips" / "train")
        train_teacher(given, crew)
        crew.run([targets_of(given, "train", given.teacher, train)])
        ways[LEAVE_ONE_OUT] = {f"real-without-{k + 1}": fold_recipe(given, base, clips, k, train) for k in folds}
    crew.run([distillation(given, name, recipe) for way in ways.values() for name, recipe in way.items()])
    return {way: ([clips[k] for k in folds], [probabilities(given, crew, name, given.work / name, spec)[k]
                                              for k, name in zip(folds, recipes, strict=True)])
            for way, recipes in ways.items()}


def pictures(folder: Path, name: str, clips: list[Case], found: list[np.ndarray]) -> None:
    for case, probability in zip(clips, found, strict=True):
        assert case.labels is not None
        assert case.frame_time is not None
        masks, base = {"teacher": case.labels == 1, name: above(probability)}, f"{case.id.replace(' ', '-')}-{name}"
        write_overlay_video(folder / f"{base}.mp4", case.frames[:, 0], masks[name], masks["teacher"], case.frame_time)
        curves = {n: area_curve(m) for n, m in masks.items()}
        area_curves(folder / f"{base}.png", [Curve(n, c, find_phases(c, case.frame_time)) for n, c in curves.items()],
                    case.frame_time)


def targets(results: dict[str, dict[str, Any]], size: str) -> list[Target]:
    rows = []
    for name in (size, LABELS + size):
        if (unseen := results.get(name)) is not None:
            rows += [target(f"Dice of {name}, no real frame seen", mean(unseen["Dice"]), ">=", 0.80),
                     target(f"area-curve correlation of {name}", mean(unseen["area correlation"]), ">=", 0.9),
                     *(target(f"{p} aFD of {name} against the teacher's curve, frames", unseen["afd"][p].frames, "<=",
                              2.0) for p in PHASES)]
    for way in (LEAVE_ONE_OUT, FROM_LABELS):
        if (seen := results.get(way)) is not None:
            rows.append(target(f"Dice, {way}, with the other clips' masks", mean(seen["Dice"]), ">=", 0.88))
    return rows


def mean(values: list[float]) -> Interval:
    return bootstrap_interval(values)


def table(results: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, found in results.items():
        events = [found["free"][p] for p in PHASES]
        rows.append([name, *(cell(mean(found[k]), 3) for k in ("Dice", "IoU", "Dice at 80/255", "area correlation")),
                     *(cell(found["afd"][p].frames, 2) for p in PHASES),
                     *(cell(e.difference.frames, 2) for e in events),
                     "; ".join(f"{e.found}, {e.missed}, {e.false}, {e.border}" for e in events)])
    return markdown_table(["student", "Dice", "IoU", "Dice at 80/255", "area correlation", "ED aFD", "ES aFD",
                           "ED aFD, free-running", "ES aFD, free-running",
                           "found, missed, false, at the border (ED; ES)"], rows)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = echo.parser_of(__doc__)
    parser.add_argument("--real", type=Path, default=REAL, help="clips, .npz with frames, deeplabv3_mask and fps")
    parser.add_argument("--run", type=Path, action="append", help="a student's run; repeat (default: all of WORK)")
    parser.add_argument("--size", default="s41", help="of the numbers to reach, and of leave-one-out (default: "
                                                      "%(default)s, the best on the phantom's dev clips)")
    parser.add_argument("--share", type=float, default=0.3, help="of real windows in the leave-one-out trainings")
    parser.add_argument("--labels-only", action="store_true", help="leave out what needs a teacher of the phantom")
    parser.add_argument("--no-training", action="store_true", help="score the runs, leave leave-one-out out")
    parser.add_argument("--pictures", type=Path, help="folder for videos and curves, outside the repository")
    given = parser.parse_args(arguments)
    if given.pictures and given.pictures.resolve().is_relative_to(HERE.parent):
        raise EdgesegError(f"{given.pictures}: lies in the repository, where no picture of a patient goes: choose "
                           "another --pictures")
    return given


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    clips = read_clips(given.real, given.quick)
    if len(clips) < 2:
        print(f"skipped: {given.real} holds no real clips (.npz with frames, deeplabv3_mask and fps)")
        return
    base = echo.settle(given)
    given.scratch = given.work / "real-scratch"
    shutil.rmtree(given.scratch, ignore_errors=True)  # of a script that was killed
    results = {}
    try:
        spec = f"camus:{echo.write_camus(given.scratch / 'all', [(c, 'val') for c in clips])}"
        with Crew(given.work, given.jobs) as crew:
            wanted = given.run or sorted(p.parent for p in given.work.glob("*/run.json"))
            if not given.no_training:
                name = LABELS + given.size
                crew.run([distillation(given, name, taught_by_labels(given, base))])
                wanted = [*dict.fromkeys((*wanted, given.work / name))]
            runs = {r.name: r.resolve() for r in wanted if not r.name.startswith("real-")}
            for name, folder in runs.items():
                Run.open(folder)
                found = probabilities(given, crew, name, folder, spec)
                results[name] = judged(clips, found)
                if given.pictures:
                    pictures(given.pictures, name, clips, found)
            if not given.no_training:
                for way, (out, found) in leave_one_out(given, base, crew, clips, spec).items():
                    results[way] = judged(out, found)
                    if given.pictures:
                        pictures(given.pictures, way.replace(" ", "-"), out, found)
    finally:
        for images in (given.scratch, *given.work.glob("real-*without-*/cache")):
            shutil.rmtree(images, ignore_errors=True)
    rows = targets(results, given.size)
    document = {**echo.started(given, "echo_real"), "clips": len(clips), "frames": sum(len(c.frames) for c in clips),
                "results": results,
                "recipe": shown(base), "share_of_real_windows": given.share}
    about = (f"{len(clips)} real clips, {document['frames']} frames; the reference is the mask that EchoNet-Dynamic's "
             "published DeepLabv3 gave, not a manual label. Means over clips with 95 % bootstrap intervals over clips: "
             "of so few these are wide, and too narrow all the same. aFD in frames: of each event of the teacher's "
             "curve the nearest one of the student's; free-running, those within 10 frames. Both curves by the same "
             "detector. The phantom was made to look like these clips (no frame of them is in it): they are not unseen "
             "in every sense.")
    if any(name.startswith(LABELS) for name in results):
        about += f" {LABELS}: no teacher, but the labels of the phantom's `train` and `other` clips."
    if FROM_LABELS in results:
        about += (f" {FROM_LABELS}: that student, going on for {FINE['epochs']} epochs with some of those labels and "
                  f"the masks of the other clips, {given.share:.0%} of its windows from them.")
    if LEAVE_ONE_OUT in results:
        about += (f" {LEAVE_ONE_OUT}: {given.size} distilled from the phantom's targets and the masks of the other "
                  f"clips, {given.share:.0%} of its windows from them.")
    echo.finish(given, "echo_real", "Echo: real clips", document, [table(results), about], rows)


if __name__ == "__main__":
    echo.run_main(main, "echo_real")
