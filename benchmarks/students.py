"""Students of one recipe for the tables: asked for by the scripts, made here in a process of their own, as torch needs.

    students.py WORK NAME... [--export | --score] [--predict TTA...] [--quick]

WORK/NAME.toml is a recipe, WORK/NAME its run (score.json in it: Dice on val; cost.json: what its network and its
teacher's cost), WORK/NAME.edgeseg its bundle; WORK/teacher-labels are the teacher's label maps of val, WORK/cache-* the
cases that students share. What is finished
is left as it is, what was interrupted goes on: the same command, given again, does the rest.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import HERE, labels_folder, minutes, reading, without_folders

from edgeseg.case import Case
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.distill.sweep import shared
from edgeseg.errors import EdgesegError
from edgeseg.files import write_text
from edgeseg.measure.document import check_out, write_json
from edgeseg.measure.evaluate import evaluate
from edgeseg.readers import open_data

PHANTOM = "phantom:cine"
QUICK = {"epochs": 1, "validate_every": 1, "width_mult": 0.5, "batch_size": 4, "precision": "32-true"}
LABELS, QUICK_DATA, QUICK_TEACHER = "teacher-labels", "quick-data", "quick-teacher"
RUNGS = ("post-training", "bias-correction")
"""Of the quantisation ladder: a table compares students, none of which is shipped. The whole ladder takes as long as a
training."""
QUICK_GRID = (64, 64), (5.0, 5.0)
"""Pixels and mm of the tiny teacher: one window holds a whole image."""


def parser_of(description: str) -> argparse.ArgumentParser:
    """The options that every table of trained students has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help=f"acdc:DIR, ... (default: {PHANTOM})")
    parser.add_argument("--teacher", help="nnunet:FOLDER (default: a narrow one, trained on the phantom)")
    parser.add_argument("--recipe", type=Path, help="TOML file of `edgeseg distill` (default: its defaults)")
    parser.add_argument("--work", type=Path, default=Path("runs/tables"), help="runs and bundles; may be gone on with")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--quick", action="store_true", help="tiny settings: proves that the script runs, nothing else")


def settle(given: argparse.Namespace) -> Recipe:
    """The recipe that all students share; `given.data` and `given.teacher` name what is really used afterwards.

    Raises:
        EdgesegError: a recipe, data set, teacher or folder that cannot be used.
    """
    check_out(given.out)
    check_out(given.work)
    base, given.work = Recipe.load(given.recipe) if given.recipe else Recipe(), given.work.resolve()
    if given.quick:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # more only wait for each other in so small a network
        base = base.changed(QUICK)
        given.data = given.data or f"acdc:{tiny_phantom(given.work / QUICK_DATA)}"
        given.teacher = given.teacher or f"nnunet:{given.work / QUICK_TEACHER}"
    if base.split_file:
        base = base.changed({"split_file": str(Path(base.split_file).resolve())})
    given.data = absolute(given.data or PHANTOM)
    given.split, given.split_file = "val", Path(base.split_file) if base.split_file else None
    open_data(given.data, given.split_file)  # a wrong path is better found now
    if not given.teacher:
        make(given.work, {"teacher": base.changed({"data": (given.data,), "teacher": "phantom"})})
        given.teacher = f"nnunet:{given.work / 'teacher' / 'teacher'}"
    given.teacher = absolute(given.teacher)
    return base.changed({"data": (given.data,), "teacher": given.teacher})


def absolute(spec: str) -> str:
    """`acdc:a folder` with its path made absolute, so that a run can be gone on with from anywhere."""
    kind, colon, path = spec.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if colon and Path(path).expanduser().exists() else spec


def make(work: Path, recipes: dict[str, Recipe], *options: str) -> dict[str, Run]:
    """Train what is not trained yet (and export or score it), one after the other in one process.

    Raises:
        EdgesegError: a run that was begun with another recipe, or the process failed (it has said why).
    """
    for name, recipe in recipes.items():
        path = work / name / "recipe.toml"
        if path.exists() and (begun := Recipe.load(path)) != recipe:
            key = next(k for k, v in asdict(recipe).items() if v != getattr(begun, k))
            raise EdgesegError(f"{path.parent}: was begun with {key} = {getattr(begun, key)!r}, not "
                               f"{getattr(recipe, key)!r}: choose another --work")
    for name, recipe in recipes.items():
        write_text(work / f"{name}.toml", recipe.to_toml())
    with subprocess.Popen([sys.executable, __file__, work, *recipes, *options]) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # it was told too, and tidies up
            code = process.wait()
    if code:
        raise EdgesegError(f"the students were not finished (code {code}); the same command goes on with what is there")
    return {name: Run.open(work / name) for name in recipes}


def tiny_phantom(folder: Path) -> Path:
    """A data set of four phantom patients, every fourth pixel and slice, in ACDC's layout."""
    from edgeseg.phantoms.write import write_acdc

    if not (folder / "split.json").exists():  # written last
        data = open_data(f"{PHANTOM}?n=4")
        write_acdc(replace(data, refs=tuple(replace(r, load=partial(thinned, r.load)) for r in data.refs)), folder)
    return folder


def thinned(load: Any) -> Case:
    case: Case = load()
    return replace(case, frames=case.frames[::4, :, ::4, ::4], labels=case.labels[::4, ::4, ::4],
                   spacing=tuple(4 * s for s in case.spacing), slice_spacing=4 * case.slice_spacing)


def unnamed(notes: list[str], cases: set[str]) -> list[str]:
    """Notes of an evaluation without the ids of its cases."""
    return [note.partition(": ")[2] if note.partition(": ")[0] in cases else note for note in notes]


def shown(recipe: Recipe) -> dict[str, Any]:
    """The recipe without the folders of this machine."""
    return {k: without_folders(v) if isinstance(v, str) else v
            for k, v in {**asdict(recipe), "data": [without_folders(d) for d in recipe.data]}.items()}


def schedule(recipe: Recipe, runs: dict[str, Run]) -> str:
    """How the students were trained, as sentences of a page."""
    spent = [m for r in runs.values() if (m := minutes(r.metrics)) is not None]
    teacher = next(iter(runs.values())).teacher
    distilled = asdict(recipe) | ({} if recipe.kd_weight else {"teacher": "none"})
    return (f"Students trained: {len(runs)}, each in its own run of `edgeseg distill`: {recipe.epochs} epochs, batches "
            f"of {recipe.batch_size}, learning rate {recipe.learning_rate:g}, width {recipe.width_mult:g}, stem stride "
            f"{recipe.stem_stride}. {reading(distilled, teacher)}; {'with' if recipe.t_squared else 'without'} the "
            f"factor T² (the abstract has none). {min(spent):.1f} to {max(spent):.1f} wall minutes a training.")


# From here on: the process that has torch.

def make_here(work: Path, names: list[str], export: bool, score: bool, predict: list[str], quick: bool) -> None:
    if quick and not (work / QUICK_TEACHER).exists():
        write_teacher(work / QUICK_TEACHER)
    for number, name in enumerate(names, 1):
        say(f"student  {name} ({number} of {len(names)})")
        run = train(work, name)
        if not (run.folder / "cost.json").exists():
            write_json(run.folder / "cost.json", cost(run))
        if export:
            export_run(run, work / f"{name}.edgeseg", quick)
        if score and not (run.folder / "score.json").exists():
            write_json(run.folder / "score.json", dice_on_val(run))
    for tta in predict:
        import teacher_step

        say(f"predict  teacher, {tta}")
        teacher, data, split_file = run.recipe["teacher"], run.recipe["data"][0], run.recipe["split_file"]
        teacher_step.predict(teacher, data, "val", Path(split_file) if split_file else None, tta,
                             labels_folder(work / LABELS, teacher, data, tta))


def train(work: Path, name: str) -> Run:
    from edgeseg.distill.train import distill

    if (work / name / "run.json").exists():
        return Run.open(work / name)
    recipe = Recipe.load(work / f"{name}.toml")
    return distill(recipe, work / name, resume=(work / name / "recipe.toml").exists(), cache=work / shared(recipe))


def export_run(run: Run, out: Path, quick: bool) -> None:
    from edgeseg.bundle.export import export_bundle
    from edgeseg.bundle.graph import parse_protocol
    from edgeseg.bundle.recipe import CalibrationRecipe

    if out.exists() and out.stat().st_mtime >= (run.folder / "run.json").stat().st_mtime:
        return
    recipe = CalibrationRecipe(frames=4, rungs=("post-training",)) if quick else CalibrationRecipe(rungs=RUNGS)
    protocols = () if quick or len(run.channels) > 1 else (parse_protocol("256x216@1.40625", "uint16"),)
    export_bundle(run, out, recipe=recipe, protocols=protocols, force=True, seconds=0.05 if quick else 2.0,
                  say=lambda line: say(f"export   {line}"))


def say(line: str) -> None:
    print(line, flush=True)


def cost(run: Run) -> dict[str, dict[str, Any]]:
    """Parameters and MACs of one pass of the student's and of the teacher's network; the teacher's passes a window."""
    from edgeseg.students.cost import count_macs, count_parameters
    from edgeseg.teachers import open_teacher

    student = run.student()
    found = {"student": {"parameters": count_parameters(student),
                         "macs": count_macs(student, (1, len(run.channels), *run.preprocessing.size))}}
    if run.recipe["teacher"].startswith("nnunet:"):
        teacher = open_teacher(run.recipe["teacher"], folds=tuple(run.recipe["folds"]) or None,
                               configuration=run.recipe["configuration"] or None)
        mirrored = len(run.teacher["folds"]) * 2 ** len(teacher.mirror_axes)
        found["teacher"] = {"parameters": run.teacher["parameters"],
                            "passes": {"none": len(run.teacher["folds"]), "mirror": mirrored,
                                       "mirror+rotate": 4 * mirrored}}
        if not teacher.is_3d:
            shape = (1, len(teacher.channels), *teacher.preprocessing.size)
            found["teacher"]["macs"] = count_macs(teacher.network(), shape)
    return found


def dice_on_val(run: Run) -> dict[str, dict[str, float]]:
    """Structure (and `mean`) -> patient -> Dice of the student, FP32 in PyTorch: weights are judged, not a runtime."""
    import torch

    student, data = run.student(), run.dataset().select("val")

    def network(x: Any) -> Any:
        return student(torch.from_numpy(x)).numpy()

    with torch.inference_mode():
        found = evaluate(lambda case: run.preprocessing.segment(case.frames, case.spacing, network), data, run.scheme,
                         data.ignore)
    return {structure or "mean": found.patient_dice(structure) for structure in (None, *run.scheme.foreground)}


def write_teacher(folder: Path) -> None:
    """An nnU-Net model folder with random weights."""
    import torch

    from edgeseg.phantoms.cine import SCHEME
    from edgeseg.teachers.folder import make_dataset_json, make_plans, write_model_folder
    from edgeseg.teachers.plans import build_network

    torch.manual_seed(0)
    dataset = make_dataset_json({name: k for k, name in enumerate(SCHEME.names)}, ("cineMRI",))
    plans = make_plans("Dataset999_Tiny", [4, 8, 8, 8], *QUICK_GRID)
    part = folder.with_name(f".{folder.name}.part")
    write_model_folder(part, build_network(plans, dataset).state_dict(), dataset, plans)
    part.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="+")
    for option in ("--export", "--score", "--quick"):
        parser.add_argument(option, action="store_true")
    parser.add_argument("--predict", nargs="+", default=[], metavar="TTA")
    make_here(**vars(parser.parse_args()))


if __name__ == "__main__":
    try:
        main()
    except EdgesegError as error:
        print(f"students: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
