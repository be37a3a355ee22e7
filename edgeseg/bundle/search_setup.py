"""What a search is made of before anything is measured: its folder, teacher, data and candidates, all checked."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeseg.bundle.graph import parse_protocol
from edgeseg.bundle.search_stopwatch import REFERENCE
from edgeseg.distill.machine import Machine, check_machine
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.search_recipe import SearchRecipe
from edgeseg.distill.search_rung import RUNGS, Task, data_of, load_candidates, save_candidates
from edgeseg.distill.search_space import Candidate, checked_space, control, sample
from edgeseg.errors import EdgesegError
from edgeseg.files import write_text
from edgeseg.manifest import FrameProtocol
from edgeseg.readers import Dataset
from edgeseg.runtime.threads import default_threads

Say = Callable[[str], None]
RECIPE = "search.toml"


@dataclass(frozen=True)
class Setup:
    """Everything that the steps of a search share.

    Attributes:
        base: the distillation recipe with its teacher found. protocol: None: the network alone is measured.
        teacher: the real one, or None. data: all splits. candidates: the controls first.
    """

    recipe: SearchRecipe
    folder: Path
    base: Recipe
    protocol: FrameProtocol | None
    teacher: Any
    task: Task
    data: Dataset
    candidates: tuple[Candidate, ...]


def make_folder(recipe: SearchRecipe, folder: Path) -> SearchRecipe:
    """Make the search folder; returns the recipe that it keeps, which works from anywhere.

    Raises:
        EdgesegError: there is something already.
    """
    from edgeseg.distill.train import absolute

    file = folder / RECIPE
    if folder.exists() and not folder.is_dir():
        raise EdgesegError(f"{folder}: is a file: choose another --out")
    if folder.exists() and any(folder.iterdir()):
        what = "holds another search" if file.exists() else "is not empty"
        raise EdgesegError(f"{folder}: {what}: `--resume {folder}` goes on with a search, another --out starts anew")
    base = recipe.base
    recipe = recipe.changed({"threads": recipe.threads or tuple(sorted({1, default_threads()})),
                             "distill": recipe.distill | {
                                 "data": [absolute(d) for d in base.data], "teacher": absolute(base.teacher),
                                 "split_file": str(Path(base.split_file).resolve()) if base.split_file else ""}})
    write_text(file, recipe.to_toml())
    return recipe


def resumed(folder: Path, max_latency: float | None) -> SearchRecipe:
    """The recipe that a search folder keeps. The limit may change until something is trained for it.

    Raises:
        EdgesegError: no search, or another limit after that.
    """
    if not (file := folder / RECIPE).exists():
        raise EdgesegError(f"{folder}: nothing to resume (no {RECIPE})")
    recipe = SearchRecipe.load(file)
    if max_latency is None or max_latency == recipe.max_latency:
        return recipe
    if (folder / RUNGS).exists():
        raise EdgesegError(f"{folder}: candidates for {recipe.max_latency:g} ms are trained already: another limit "
                           "needs another --out")
    recipe = recipe.changed({"max_latency": max_latency})
    write_text(file, recipe.to_toml())
    return recipe


def set_up(recipe: SearchRecipe, folder: Path, trust: bool, say: Say) -> Setup:
    """Open teacher and data, draw the candidates, and write what the trainings read into `folder`.

    Raises:
        EdgesegError: whatever would end the search later: better now than after an hour of measuring.
    """
    base = recipe.base
    protocol = parse_protocol(recipe.frame, recipe.dtype, recipe.back) if recipe.frame else None
    if base.targets == "network":
        raise EdgesegError("targets = 'network' would run the teacher in every training: a search stores targets")
    check_machine(Machine(), base.batch_size)
    base, teacher = with_teacher(base, folder, trust, say)
    data = data_of(base)
    task = make_task(base, teacher, data)
    check_dev(task, data)
    candidates = draw(recipe, task, teacher, say)
    before = load_candidates(folder)
    if any(before.get(c.name, c) != c for c in candidates):
        raise EdgesegError(f"{folder}: this version of edgeseg draws other candidates than the one that began this "
                           "search: go on with that one, or start anew with another --out")
    save_candidates(folder, candidates)
    task.save(folder)
    return Setup(recipe, folder, base, protocol, teacher, task, data, tuple(candidates))


def with_teacher(base: Recipe, folder: Path, trust: bool, say: Say) -> tuple[Recipe, Any]:
    from edgeseg.distill.train import open_teacher_of

    if base.teacher == "phantom":
        from edgeseg.distill.phantom_teacher import phantom_teacher

        (own := folder / "phantom").mkdir(exist_ok=True)
        base = replace(base, teacher=f"nnunet:{phantom_teacher(base, own, Machine(), say).resolve()}")
        shutil.rmtree(own / "cache", ignore_errors=True)
    return base, open_teacher_of(base, Machine(), trust)


def make_task(base: Recipe, teacher: Any, data: Dataset) -> Task:
    from edgeseg.distill.train import channels_of, student_grid

    scheme = teacher.scheme if teacher else data.scheme
    if scheme is None:
        raise EdgesegError(f"{data.spec}: without a teacher the data must name its labels")
    grid = student_grid(base, teacher, 1, 0 if teacher else channels_of(data))
    axes = teacher.mirror_axes if teacher else base.mirror_axes
    return Task(replace(base, targets="stored"), scheme, grid.channels, axes, base.kd_weight > 0)


def check_dev(task: Task, data: Dataset) -> None:
    from edgeseg.distill.module import dev_truth

    dev = data.select("dev")
    if not dev.refs:
        raise EdgesegError(f"{data.spec}: no dev patients to rank candidates on: give a --split-file")
    for case in dev:
        dev_truth(case, task.scheme, task.grid(REFERENCE), dev.ignore)


def draw(recipe: SearchRecipe, task: Task, teacher: Any, say: Say) -> list[Candidate]:
    """The controls, then what the seed draws."""
    from edgeseg.distill.train import make_student, student_grid

    made = []
    for name in recipe.controls:
        own = recipe.control(name)
        student = make_student(own, len(task.channels), len(task.scheme.names))
        made.append(control(name, own, student_grid(own, teacher, student.spec.stride, len(task.channels))))
    drawn = sample(recipe.candidates, recipe.seed, recipe.grids, checked_space(recipe.space), made)
    if len(drawn) < recipe.candidates:
        say(f"space    holds {len(drawn)} candidates, not the {recipe.candidates} that were asked for")
    if not made and not drawn:
        raise EdgesegError("no grid of the search is a multiple of any student's stride: add others to grids")
    return [*made, *drawn]
