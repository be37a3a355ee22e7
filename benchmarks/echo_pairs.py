"""{nnU-Net, DeepLabv3} x {MobileNetV2, ConvLSTM}, each by the layer-wise KL and by soft binary cross-entropy.

    python benchmarks/echo_pairs.py --work runs/echo --out benchmarks/results [--nnunet nnunet:FOLDER]

Every pair is trained by the same command (`edgeseg distill --recipe`) on the same unlabelled clips; the recipe of a
student does not know its teacher. Both teachers are trained on the same frames (ED and ES of `other` clips), all
networks are tested on unseen `other` clips. What echo_pareto.py left in --work is used. Writes echo_pairs.json and .md.
The clip is the unit of every interval.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import echo_common as echo
from common import cell, markdown_table
from echo_common import RECIPES
from echo_crew import TEACHER, Crew, Step, distillation, prediction, targets, train_teacher
from students import absolute, shown

from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.measure.statistics import bootstrap_interval, paired_difference
from edgeseg.readers import open_data

STUDENTS, LOSSES = ("mobilenetv2", "convlstm"), ("layerwise_kl", "soft_bce")
QUICK = {"batch_size": 4}
"""BatchNorm needs more than one image."""


def teachers(given: argparse.Namespace, crew: Crew, clips: str) -> dict[str, str]:
    """Name -> spec; both are there afterwards, and what they say of the clips in WORK/targets."""
    folder = given.work / "nnunet"
    if given.nnunet is None and not folder.exists():
        crew.run([Step("nnunet", ("train-nnunet", given.other, folder, str(given.teacher_epochs),
                                  "quick" if given.quick else ""))])
    train_teacher(given, crew)
    found = {"nnunet": given.nnunet or f"nnunet:{folder}", "deeplabv3": given.teacher}
    crew.run(targets(given, folder_of(name), spec, clips) for name, spec in found.items())
    return found


def folder_of(teacher: str) -> str:
    """Of its targets; echo_pareto.py's are DeepLabv3's."""
    return "train" if teacher == "deeplabv3" else f"train-{teacher}"


def recipes_of(given: argparse.Namespace, base: Recipe, clips: str) -> dict[str, Recipe]:
    frames = Recipe.load(given.frames_recipe)
    if given.quick:
        frames = frames.changed(echo.QUICK | QUICK)
    frames = frames.changed({"epochs": given.epochs, "seed": given.seed})
    students = {"mobilenetv2": frames, "convlstm": base.changed({"spec": echo.spec_of(given.size)})}
    return {f"{teacher}-{student}-{loss}": students[student].changed({
        "data": (clips,), "teacher": f"targets:{given.work / 'targets' / folder_of(teacher)}", "loss": loss,
        "temperature": given.temperature if loss == "layerwise_kl" else 1.0})
        for teacher in ("nnunet", "deeplabv3") for student in STUDENTS for loss in LOSSES}


def table(scores: dict[str, Any], gaps: dict[str, Any], gains: dict[str, Any]) -> str:
    rows = [[f"{teacher} itself", "", cell(bootstrap_interval(scores[key]["Dice"]), 3), "", ""]
            for teacher, key in (("nnunet", "nnunet"), ("deeplabv3", TEACHER))]
    for name in gaps:
        teacher, student, loss = name.split("-")
        rows.append([f"{teacher} -> {student}", loss, cell(bootstrap_interval(scores[name]["Dice"]), 3),
                     cell(gaps[name], 3), cell(gains[f"{teacher}-{student}"], 3) if loss == LOSSES[0] else ""])
    return markdown_table(["pair", "loss", "Dice", "Dice - teacher", "KL - BCE"], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = echo.parser_of(__doc__)
    parser.add_argument("--size", default="s31", help="of the ConvLSTM (default: %(default)s)")
    parser.add_argument("--nnunet", help="nnunet:FOLDER (default: a narrow one, trained on --other)")
    parser.add_argument("--frames-recipe", type=Path, default=RECIPES / "echo_frames.toml",
                        help="of the student that takes single frames; --recipe is the ConvLSTM's")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the layer-wise KL")
    given = parser.parse_args(arguments)
    base = echo.settle(given)
    given.nnunet = absolute(given.nnunet) if given.nnunet else None
    clips = echo.without_labels(given.train, given.work / "clips" / "train")
    recipes = recipes_of(given, base, clips)
    steps = [distillation(given, name, recipe) for name, recipe in recipes.items()]
    with Crew(given.work, given.jobs) as crew:
        found = teachers(given, crew, clips)
        crew.run(steps)
        networks = {"nnunet": found["nnunet"], TEACHER: found["deeplabv3"]} | {n: given.work / n for n in recipes}
        crew.run(prediction(given, n, network, given.other, "val") for n, network in networks.items())
    test = open_data(given.other).select("val")
    scores = echo.score(echo.predicted(given, networks), test)
    own = {"nnunet": scores["nnunet"]["Dice"], "deeplabv3": scores[TEACHER]["Dice"]}
    gaps = {n: paired_difference(scores[n]["Dice"], own[n.split("-")[0]]) for n in recipes}
    gains = {pair: paired_difference(*(scores[f"{pair}-{loss}"]["Dice"] for loss in LOSSES))
             for pair in dict.fromkeys(n.rpartition("-")[0] for n in recipes)}
    document = {
        **echo.started(given, "echo_pairs"), "recipes": {n: shown(r) for n, r in recipes.items()},
        "test": f"{test.name}, split val", "clips": len(test), "scores": scores, "minus_teacher": gaps,
        "kl_minus_bce": gains, "training": {n: {k: Run.open(given.work / n).metrics.get(k) for k in ("dev", "seconds")}
                                            for n in recipes},
    }
    text = (f"{table(scores, gaps, gains)}\nPhantom figures: means over {len(test)} unseen clips of {test.name} with "
            "95 % bootstrap intervals over clips, differences paired by clip. No student saw a label, all saw the same "
            f"clips. The KL is layer-wise with T = {given.temperature:g}, the other loss the published binary "
            "cross-entropy.")
    echo.finish(given, "echo_pairs", "Echo: pairs of teacher and student", document, [text])


if __name__ == "__main__":
    echo.run_main(main, "echo_pairs")
