"""edgeseg judge: bundles + clips + an image-text model -> scores of their masks and phases, without a label."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeseg.cli.options import bundle_path
from edgeseg.errors import EdgesegError

if TYPE_CHECKING:
    from edgeseg.measure.judged import Judged

Opt = typer.Option


def judge(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", parser=bundle_path,
                                                  help="bundles that segment LV; of three or more on labelled clips "
                                                       "the judge's order is compared with that of Dice")],
    data: Annotated[str, Opt(help="echonet:DIR, video:FILE, phantom:echo?n=10&domain=other, ...")],
    model: Annotated[str, Opt(help="folder of an open_clip model, or hf-hub:OWNER/NAME, which is downloaded")],
    split: Annotated[str, Opt(help="train, dev, val, or all")] = "all",
    every: Annotated[int, Opt(help="judge the masks of every so many frames")] = 1,
    precision: Annotated[str, Opt(help="of the bundles: auto, int8, bf16 or fp32")] = "auto",
    out: Annotated[Path | None, Opt(help="folder for judge.json")] = None,
    json: Annotated[bool, Opt("--json", help="the last line of stdout is one JSON document")] = False,
) -> None:
    """Let an image-text model (as EchoCLIP) judge the masks and the phases of bundles, without labels."""
    from edgeseg.cli.progress import Progress
    from edgeseg.measure.document import check_out, one_line, write_json
    from edgeseg.measure.judged import judge_bundles
    from edgeseg.readers import open_data
    from edgeseg.teachers.judge import Judge

    check_out(out)
    if every < 1:
        raise EdgesegError(f"--every {every}: write 1 or more")
    dataset = open_data(data).select(None if split == "all" else split)
    if not len(dataset):
        raise EdgesegError(f"{data}: no clip in split {split!r}: choose another --split")
    found = Judge.open(model)
    with Progress("clips") as progress:
        result = judge_bundles(bundles, dataset.refs, found.of_masks, found.of_valve, every, precision,
                               lambda name: progress(name, len(dataset)))
    result.about = {"judge": found.provenance, "data": {"name": dataset.name, "split": split}, "every": every}
    show(result)
    if out:
        typer.echo(f"wrote    {write_json(out / 'judge.json', result.document())}")
    if json:
        typer.echo(one_line(result.document()))


def show(result: "Judged") -> None:
    """A line a bundle, best first, and how the order agrees with Dice."""
    from rich.console import Console

    from edgeseg.cli.evaluate import new_table, text

    console = Console()
    table = new_table("bundle", "score", "LV hidden", "wall", "Dice", "ED F1", "ES F1", "clips")
    for row in sorted((m.summary() for m in result.members), key=lambda r: -r["score"].value):
        events = row["phases"]
        table.add_row(row["name"], text(row["score"], 3), text(row["hidden"], 3), text(row["wall"], 3),
                      text(row["dice"], 3), f"{events['ED'].f1.value:.2f}", f"{events['ES'].f1.value:.2f}",
                      str(row["score"].n))
    console.print(table)
    console.print("ED F1, ES F1: events of the area curve against those that the judge sees in the mitral valve",
                  markup=False)
    if result.agreement:
        console.print(f"Spearman's correlation with Dice over {len(result.members)} bundles: "
                      f"{text(result.agreement, 3)}")
    for note in result.notes:
        console.print(f"note     {note}", markup=False)
