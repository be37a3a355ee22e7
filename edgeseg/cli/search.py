"""edgeseg search: the most accurate student that a latency allows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeseg.cli.options import recipe_path
from edgeseg.cli.signals import first_one_ends
from edgeseg.errors import EdgesegError

if TYPE_CHECKING:
    from edgeseg.bundle.search import Search
    from edgeseg.distill.search_recipe import SearchRecipe

Opt = typer.Option


def search(
    max_latency: Annotated[str | None, Opt(help="of one frame, INT8, all threads: 1.0ms")] = None,
    data: Annotated[list[str] | None, Opt(help="acdc:DIR, mnms:DIR, nnunet:DIR, phantom:cine; repeat to merge")] = None,
    teacher: Annotated[str | None, Opt(help="nnunet:MODEL_FOLDER, phantom, or none (labels only)")] = None,
    split_file: Annotated[str | None, Opt(help="JSON with train/dev/val patients; dev ranks the candidates")] = None,
    distill: Annotated[Path | None, Opt(parser=recipe_path, metavar="FILE",
                                        help="distillation recipe that all candidates share (TOML)")] = None,
    control: Annotated[list[Path] | None, Opt(parser=recipe_path, metavar="FILE",
                                              help="distillation recipe of a student made by hand; repeat")] = None,
    recipe: Annotated[Path | None, Opt(parser=recipe_path, metavar="FILE",
                                       help="search recipe (TOML); options given here go before it")] = None,
    candidates: Annotated[int | None, Opt(help="drawn and measured (default: 200)")] = None,
    rungs: Annotated[str | None, Opt(help="CANDIDATESxEPOCHS (default: 24x2,12x4,6x8,3x16)")] = None,
    frame: Annotated[str | None, Opt(help="measure whole frame graphs of a protocol, as 256x216@1.40625")] = None,
    dtype: Annotated[str | None, Opt(help="pixels of --frame: uint8, int16, uint16, float32")] = None,
    threads: Annotated[str, Opt(help="thread counts, the last one is the limit's (default: 1 and all)")] = "",
    seed: Annotated[int | None, Opt(help="which candidates are drawn")] = None,
    jobs: Annotated[int, Opt(help="trainings at a time, one thread each")] = 1,
    out: Annotated[Path | None, Opt(help="search folder (default: searches/NAME)")] = None,
    resume: Annotated[Path | None, Opt(help="go on with this search")] = None,
    trust_checkpoint: Annotated[bool, Opt(help="unpickle a teacher checkpoint that needs it: it can run code")] = False,
    json: Annotated[bool, Opt("--json", help="the last line of stdout is one JSON document")] = False,
) -> None:
    """Measure many students on this CPU, train the promising ones shortly, print the Pareto front and the winner."""
    with first_one_ends():
        from edgeseg.bundle.search import search as run_search
        from edgeseg.bundle.search_setup import resumed
        from edgeseg.cli.options import whole_numbers
        from edgeseg.distill.search_recipe import milliseconds, parse_rungs
        from edgeseg.measure.document import one_line

        limit = None if max_latency is None else milliseconds(max_latency)
        shared: dict[str, Any] = {"data": data, "teacher": teacher, "split_file": split_file}
        given: dict[str, Any] = {
            "candidates": candidates, "rungs": parse_rungs(rungs) if rungs is not None else None, "frame": frame,
            "dtype": dtype, "threads": whole_numbers(threads, "--threads") or None, "seed": seed}
        if resume:
            if any(v is not None for v in (*shared.values(), *given.values(), recipe, distill, control, out)):
                raise EdgesegError(f"--resume goes on with the recipe that {resume} keeps: give no other options than "
                                   "--max-latency and --jobs")
            wanted = resumed(resume, limit)
        else:
            if limit is None and not recipe:
                raise EdgesegError("how fast is fast enough? --max-latency 1.0ms")
            wanted = assemble(recipe, distill, control or [], shared, given | {"max_latency": limit})
        folder = resume or out or default_out(wanted)
        found = run_search(wanted, folder, resume is not None, jobs, trust_checkpoint,
                           lambda line: typer.echo(line, err=json))
        paths = write(found, folder)
        if not json:
            show(found, paths)
        else:
            typer.echo(one_line(found.document()))


def assemble(recipe: Path | None, distill: Path | None, controls: list[Path], shared: dict[str, Any],
             given: dict[str, Any]) -> "SearchRecipe":
    """The search recipe that files and options make; without data and teacher it is about the built-in phantom."""
    from dataclasses import asdict

    from edgeseg.distill.recipe import PHANTOM, Recipe
    from edgeseg.distill.search_recipe import CONTROL_KEYS, SearchRecipe

    wanted = SearchRecipe.load(recipe) if recipe else SearchRecipe()
    shared = {k: v for k, v in shared.items() if v is not None}
    if distill:
        wanted = wanted.changed({"distill": asdict(Recipe.load(distill).changed(shared))})
    elif not (wanted.distill or shared):
        wanted = wanted.changed({"distill": asdict(PHANTOM)})
    made = {}
    for path in controls:
        if path.stem in made or path.stem in wanted.controls:
            raise EdgesegError(f"{path}: there is a control {path.stem} already: give its recipe another file name")
        values = asdict(Recipe.load(path))
        made[path.stem] = {k: values[k] for k in CONTROL_KEYS}
    return wanted.changed({**given, "distill": wanted.distill | shared, "controls": wanted.controls | made})


def default_out(wanted: "SearchRecipe") -> Path:
    """searches/NAME as `distill` would name the run; nothing is overwritten."""
    from edgeseg.cli import distill

    name, number = distill.default_out(wanted.base.data[0]).name, 2
    folder = Path("searches") / name
    while folder.exists():
        folder, number = Path("searches") / f"{name}-{number}", number + 1
    return folder


def write(found: "Search", folder: Path) -> list[Path]:
    """search.md and search.png beside search.json."""
    from edgeseg.measure.document import write_text
    from edgeseg.report.pareto import markdown, picture

    document = found.document()
    return [folder / "search.json", write_text(folder / "search.md", markdown(document)),
            picture(folder / "search.png", document)]


def show(found: "Search", paths: list[Path]) -> None:
    from edgeseg.cli.table import say
    from edgeseg.cli.table import show as table
    from edgeseg.report.pareto import HEADER, remarks, trained_rows

    document = found.document()
    table([HEADER, *trained_rows(document)])
    for remark in remarks(document):
        say(remark)
    say(f"search   {', '.join(map(str, paths))}")
    for name in ("winner.toml", *(p.name for p in sorted(found.folder.glob("control-*.toml")))):
        say(f"next     edgeseg distill --recipe {found.folder / name} --out runs/{Path(name).stem}")
