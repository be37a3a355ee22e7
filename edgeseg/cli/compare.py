"""edgeseg compare: finished runs on the same patients, with the tests that say whether they differ."""

from pathlib import Path
from typing import Annotated

import typer

from edgeseg.errors import EdgesegError

Opt = typer.Option


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders; what differs by the seed alone is "
                                                                      "one arm, the first arm is the baseline")],
    data: Annotated[str | None, Opt(help="acdc:DIR, ... (default: what the first run was trained on)")] = None,
    split: Annotated[str, Opt(help="dev, val, train or all")] = "dev",
    split_file: Annotated[Path | None, Opt(help="JSON with train/dev/val patients")] = None,
    margin: Annotated[float, Opt(help="of non-inferiority, in Dice")] = 0.02,
    seed: Annotated[int, Opt(help="of the bootstrap and of random permutations")] = 0,
    out: Annotated[Path | None, Opt(help="folder for compare.json, .md, .png and the scores of every case, which the "
                                         "next call reads")] = None,
    json: Annotated[bool, Opt("--json", help="the last line of stdout is one JSON document")] = False,
) -> None:
    """Score students case by case and test, paired by patient, whether each arm differs from the first one."""
    from dataclasses import replace

    from edgeseg.cli.progress import Progress
    from edgeseg.cli.table import say, show
    from edgeseg.distill.run import Run
    from edgeseg.distill.scores import kept_scores
    from edgeseg.measure.document import check_out, one_line, write_json, write_text
    from edgeseg.readers import open_data
    from edgeseg.report import compare as report

    check_out(out)
    if not margin > 0:
        raise EdgesegError(f"--margin {margin:g}: is what a student may be worse by, in Dice, above 0")
    arms = report.arms_of([Run.open(folder) for folder in runs if not hidden(folder)])
    dataset = open_data(data, split_file) if data else arms[0].runs[0].dataset()
    cases = dataset.select(None if split == "all" else split)
    if not len(cases):
        raise EdgesegError(f"{dataset.spec}: no case in split {split!r}: choose another --split or --split-file")
    total = len(cases) * sum(len(arm.runs) for arm in arms)
    with Progress("cases") as progress:
        def step(case: object) -> None:
            progress(getattr(case, "id", ""), total)

        arms = [replace(arm, scores=tuple(kept_scores(run, cases, out / "scores" if out else None, step)
                                          for run in arm.runs)) for arm in arms]
    found = report.compare(arms, cases, split, margin, seed)
    say(report.how(found))
    show(report.score_table(found), 0)
    if len(arms) > 1:
        say("")
        show(report.difference_table(found), 0)
    for note in found["notes"]:
        say(f"note     {note}")
    if out:
        paths = [write_json(out / "compare.json", found), write_text(out / "compare.md", report.markdown(found)),
                 report.picture(out / "compare.png", found)]
        say("wrote    " + ", ".join(map(str, paths)))
    if json:
        typer.echo(one_line(found))


def hidden(folder: Path) -> bool:
    """What `edgeseg sweep` keeps beside the runs, when a shell named all that is there."""
    return folder.name.startswith(".")
