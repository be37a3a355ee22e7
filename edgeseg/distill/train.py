"""distill(): data + teacher + recipe -> Run."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeseg.distill.machine import Machine, check_machine, described, is_first_process, training_device, wait_for
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError, Interrupted
from edgeseg.files import write_text
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import Dataset

if TYPE_CHECKING:
    from torch import nn

    from edgeseg.distill.module import Distiller
    from edgeseg.labels import LabelScheme

Say = Callable[[str], None]


def distill(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    machine: Machine | None = None,
    trust_checkpoint: bool = False,
    say: Say = print,
    cache: Path | None = None,
) -> Run:
    """Distil the recipe's teacher into its student and leave a finished run in `out`.

    Args:
        resume: go on from the last finished epoch of an interrupted run in `out`, with the recipe kept there.
        trust_checkpoint: allow a teacher checkpoint that needs full unpickling.
        cache: prepared cases and stored targets go here and stay, for other runs with the same data, grid, teacher and
            test-time augmentation; default: into the run, and away when it is finished.

    Raises:
        EdgesegError: bad input, or `out` is there and `resume` is not asked for.
    """
    machine = machine or Machine()
    fresh = not out.exists()
    try:
        return run_distillation(recipe, out, resume, machine, trust_checkpoint, say, cache)
    except EdgesegError as error:
        if fresh and not isinstance(error, Interrupted) and not (out / "last.ckpt").exists():
            shutil.rmtree(out, ignore_errors=True)  # bad input leaves nothing behind
        raise


def run_distillation(recipe: Recipe, out: Path, resume: bool, machine: Machine, trust: bool, say: Say,
                     cache: Path | None = None) -> Run:
    begun = time.monotonic()
    check_machine(machine, recipe.batch_size)
    first = is_first_process()
    if not first:  # the first process makes the folder, the phantom's teacher and the cache
        wait_for(out / READY)
        resume, say = True, lambda _: None
    recipe = open_folder(recipe, out, resume)
    if recipe.teacher == "phantom":
        from edgeseg.distill.phantom_teacher import phantom_teacher

        recipe = replace(recipe, teacher=f"nnunet:{phantom_teacher(recipe, out, machine, say)}")

    dataset = recipe.dataset()
    teacher = open_teacher_of(recipe, machine, trust)
    scheme = teacher.scheme if teacher else dataset.scheme
    if scheme is None:
        raise EdgesegError(f"{dataset.spec}: without a teacher the data must name its labels")
    student = make_student(recipe, len(teacher.channels) if teacher else channels_of(dataset), len(scheme.names))
    began = None
    if recipe.pretrained:
        from edgeseg.distill.pretrained import begin_with

        began = begin_with(recipe, out, student, scheme, dataset)
    preprocessing = student_grid(recipe, teacher, student.spec.stride, student.spec.in_channels)
    say(describe(student, preprocessing, dataset, teacher))
    module = train_network(student, recipe, dataset, scheme, preprocessing, out, machine, say, teacher, cache, begun)

    metrics = {"dev": module.best, "history": module.history, "seconds": round(module.seconds, 1),
               "machine": described(machine)}
    data = {"spec": list(recipe.data), "name": dataset.name, "licence": dataset.licence,
            "splits": {s: list(dataset.select(s).patients()) for s in ("train", "dev", "val")}}
    if began:  # what the first data asked of the weights, they still ask
        data |= {"pretrained": began, "licence": "; ".join(dict.fromkeys((dataset.licence, began["licence"])))}
    run = Run(out, asdict(recipe), student.spec.to_dict(), scheme, module.preprocessing,
              teacher.channels if teacher else tuple(f"channel {i}" for i in range(student.spec.in_channels)),
              teacher.provenance if teacher else {}, data, metrics)
    if first:
        if teacher and not teacher.predict_only:
            from edgeseg.teachers.export import teacher_onnx

            teacher_onnx(teacher, out / "teacher.onnx")
        run.save()
        shutil.rmtree(out / "cache", ignore_errors=True)
        (out / READY).unlink(missing_ok=True)
    return run


CENTRED = 0.0005
"""Share of the training foreground outside the centred window up to which one such window stands for the whole image.
Where it holds, one window costs a fraction of the tiles and segments better: the network was trained on windows with
the structures near the middle (ACDC dev Dice 0.877 against 0.873 with tiles)."""
READY = "ready"
"""Marker in the run folder: what the first process prepares for the others is there."""


def open_folder(recipe: Recipe, out: Path, resume: bool) -> Recipe:
    """Make the run folder with its recipe, or read the recipe of an interrupted run back."""
    if resume:
        if not (out / "recipe.toml").exists():
            raise EdgesegError(f"{out}: nothing to resume (no recipe.toml)")
        return Recipe.load(out / "recipe.toml")
    if out.exists() and not out.is_dir():
        raise EdgesegError(f"{out}: is a file: choose another --out")
    if out.exists() and any(out.iterdir()):
        raise EdgesegError(f"{out}: already there; `--resume {out}` goes on with it, another --out starts anew")
    if recipe.pretrained:
        family = Run.open(Path(recipe.pretrained)).spec["family"]  # better known before a phantom's teacher is trained
        if family != recipe.student:
            raise EdgesegError(f"pretrained {recipe.pretrained}: its student is of the family {family}, this one "
                               f"{recipe.student}: both need the same network")
    out.mkdir(parents=True, exist_ok=True)
    recipe = replace(recipe, data=tuple(map(absolute, recipe.data)), teacher=absolute(recipe.teacher),
                     split_file=str(Path(recipe.split_file).resolve()) if recipe.split_file else "",
                     pretrained=str(Path(recipe.pretrained).resolve()) if recipe.pretrained else "")
    write_text(out / "recipe.toml", recipe.to_toml())
    return recipe


def absolute(spec: str) -> str:
    """`acdc:a folder?x=y` with its path made absolute, so that export and --resume work from anywhere."""
    kind, colon, rest = spec.partition(":")
    path, mark, query = (rest, "", "") if Path(rest).exists() else rest.partition("?")
    if kind == "phantom" or not colon or not Path(path).exists():
        return spec  # nothing on disk (a merged spec is left as it is written)
    return f"{kind}:{Path(path).resolve()}{mark}{query}"


def open_teacher_of(recipe: Recipe, machine: Machine, trust: bool) -> Any:
    """The recipe's teacher, or None when nothing is distilled and no grid is taken from it."""
    if recipe.teacher == "none":
        return None
    from edgeseg.teachers import open_teacher

    return open_teacher(recipe.teacher, folds=recipe.folds or None, configuration=recipe.configuration or None,
                        trust=trust, device=training_device(machine.accelerator))


def make_student(recipe: Recipe, channels: int, classes: int) -> Any:
    import torch

    from edgeseg.students import build_student

    given: dict[str, Any] = {"family": recipe.student, "in_channels": channels, "num_classes": classes}
    if recipe.student == "mobilenetv2":
        given |= {"width_mult": recipe.width_mult, "expansion": recipe.expansion, "stem_stride": recipe.stem_stride}
    torch.manual_seed(recipe.seed)
    return build_student(given | recipe.spec)


def channels_of(dataset: Dataset) -> int:
    return dataset.refs[0].load().frames.shape[1]


def student_grid(recipe: Recipe, teacher: Any, stride: int, channels: int) -> Preprocessing:
    """The student's fixed grid: the recipe's, else the teacher's, else 192 x 192 at 1.5625 mm, of a student of clips
    EchoNet-Dynamic's 112 x 112 pixels and its constants (a stream has no volume to take statistics of); sizes rounded
    up to the student's stride.

    Raises:
        EdgesegError: the recipe's hu_window is not the teacher's.
    """
    from edgeseg.teachers.deeplabv3 import DeepLabV3Teacher

    alone = DeepLabV3Teacher.preprocessing if recipe.student == "convlstm" else Preprocessing((192, 192),
                                                                                            (1.5625, 1.5625))
    base = teacher.preprocessing if teacher else alone
    size = tuple(recipe.size) or base.size
    size = tuple(-(-n // stride) * stride for n in size)
    spacing = tuple(recipe.spacing) or base.spacing
    norms = base.channels if teacher else base.channels * channels
    if recipe.hu_window:
        from edgeseg.preprocess import ct_window

        low, high = recipe.hu_window
        if teacher and any((n.kind, n.low, n.high) != ("ct", low, high) for n in norms):
            raise EdgesegError(f"hu_window {low:g}..{high:g}: the student takes the normalisation of {teacher.name}, "
                               "which is another: leave hu_window out")
        norms = norms if teacher else (ct_window(low, high),) * channels
    return Preprocessing((size[0], size[1]), (spacing[0], spacing[1]), norms)


def describe(student: "nn.Module", grid: Preprocessing, dataset: Dataset, teacher: Any) -> str:
    """What is about to happen, for a person."""
    from edgeseg.students.cost import count_macs, count_parameters

    spec: Any = student.spec
    macs = count_macs(student, (1, spec.in_channels, *grid.size))
    splits = ", ".join(f"{s} {len(dataset.select(s).patients())}" for s in ("train", "dev", "val"))
    lines = [
        f"data     {dataset.spec}: {len(dataset)} cases; patients: {splits}",
        f"teacher  {teacher.name}, {teacher.provenance['parameters'] / 1e6:.2f} M parameters"
        if teacher
        else "teacher  none",
        f"student  {spec.family} {count_parameters(student) / 1e6:.3f} M parameters, {macs / 1e6:.0f} M MAC at "
        f"{grid.size[0]}x{grid.size[1]} ({grid.spacing[0]:g} x {grid.spacing[1]:g} mm)",
    ]
    return "\n".join(lines)


def train_network(
    network: "nn.Module",
    recipe: Recipe,
    dataset: Dataset,
    scheme: "LabelScheme",
    preprocessing: Preprocessing,
    out: Path,
    machine: Machine,
    say: Say,
    teacher: Any = None,
    cache_folder: Path | None = None,
    begun: float | None = None,
) -> "Distiller":
    """Train `network` by the recipe's loss; best weights in out/student.safetensors, out/last.ckpt to go on from."""
    import torch

    from edgeseg.distill.cache import Preparation
    from edgeseg.distill.clips import ClipDataset
    from edgeseg.distill.module import Distiller, at_student_spacing, dev_truth, feature_losses
    from edgeseg.distill.progress import make_trainer
    from edgeseg.distill.samples import SliceDataset, sample_weights
    from edgeseg.students import is_recurrent

    distils = recipe.kd_weight > 0
    stored = distils and (recipe.targets == "stored" or (recipe.targets == "auto" and teacher.predict_only))
    if distils and teacher.predict_only and not stored:
        raise EdgesegError(f"{teacher.name} distils through stored targets only: set targets = 'stored'")
    if recipe.features and (teacher is None or teacher.predict_only or stored):
        raise EdgesegError(f"[[features]] need the network of {recipe.teacher} on each patch, which cannot be had "
                           "here: leave them out, or name a 2D teacher and train with `edgeseg distill`")
    logits = features = None
    if recipe.features or (distils and not stored):
        logits = at_student_spacing(teacher, preprocessing.size, preprocessing.spacing)
    if logits and recipe.features:
        features = feature_losses(recipe, network, teacher, logits, preprocessing)
        say(features.description)
    soft = (lambda case: teacher.predict(case, recipe.tta)[1]) if stored else None
    dev = dataset.select("dev")
    if not dev.refs:
        raise EdgesegError(f"{dataset.spec}: no dev patients to choose the best epoch on: give a --split-file")
    fitted = replace(dataset, refs=tuple(r for r in dataset.refs if r.split == "train" or (
        recipe.final and r.split == "dev")))
    truth = partial(dev_truth, scheme=scheme, preprocessing=preprocessing, ignore=dataset.ignore, teacher=soft)
    for case in dev:  # better now than at the first validation
        truth(case)
    train = Preparation(fitted, scheme, preprocessing, recipe.needs_labels, soft)
    cache = train.run(cache_folder or out / "cache", say)
    preprocessing = replace(preprocessing, window="centre" if cache.outside <= CENTRED else "tiles")
    say(f"grid     {cache.outside:.3%} of the labelled foreground lies outside the centred {preprocessing.size[0]}x"
        f"{preprocessing.size[1]} window ({len(cache.cases)} training cases): one "
        f"{'centred window' if preprocessing.window == 'centre' else 'grid of tiles'} an image")
    mirror_axes = teacher.mirror_axes if teacher else recipe.mirror_axes
    samples: SliceDataset | ClipDataset
    if is_recurrent(network):
        samples = ClipDataset(cache, preprocessing.size, recipe.seed, recipe.clip, recipe.augment == "nnunet")
    else:
        samples = SliceDataset(cache, preprocessing.size, recipe.seed, mirror_axes, recipe.noise,
                               recipe.augment == "nnunet", labelled_only=not distils)
    module = Distiller(network, recipe, samples, dev, scheme, preprocessing, out / "student.safetensors", logits, begun,
                       truth, sample_weights(fitted.refs, samples.cases), features)
    trainer = make_trainer(recipe, out, machine, say)
    last = out / "last.ckpt"
    if last.exists():
        try:
            torch.load(last, map_location="cpu", weights_only=True)
        except Exception:  # torch raises half a dozen kinds for a damaged file
            raise EdgesegError(f"{last}: damaged: delete it and `--resume` starts this run anew") from None
    (out / READY).touch()
    try:
        trainer.fit(module, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C into an exit
        raise Interrupted(f"{out}: interrupted; go on with `edgeseg distill --resume {out}`") from None
    return module
