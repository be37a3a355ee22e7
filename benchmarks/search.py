"""A finished `edgeseg search` as a kept result, with the full trainings of its winner and of what was made by hand.

    edgeseg search --max-latency 1.0ms --data acdc:DIR --teacher nnunet:FOLDER --distill benchmarks/recipes/X.toml \
        --control benchmarks/recipes/hand.toml --frame 256x216@1.40625 --jobs 2 --out searches/cine
    edgeseg distill --recipe searches/cine/winner.toml --out runs/winner
    edgeseg distill --recipe searches/cine/control-hand.toml --out runs/hand
    python benchmarks/search.py searches/cine --run runs/winner --run runs/hand --out benchmarks/results

Writes search.json, .md and .png. Everything here was chosen on dev; val is not looked at.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import HERE, markdown_table, provenance

from edgeseg.bundle.search import Search
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.measure.document import check_out, write_json, write_text
from edgeseg.report.pareto import markdown, picture

NONE = "\nNo candidate was trained with the full schedule.\n"


def full(found: Search, folder: Path) -> dict[str, Any]:
    """What a run with the full schedule reached, under the name that its student has in the search.

    Raises:
        EdgesegError: the run is of a student that the search has not measured.
    """
    run = Run.open(folder)
    grid = list(run.preprocessing.size), list(run.preprocessing.spacing)
    for row in found.latency:
        same_grid = (list(row["size"]), list(row["spacing"])) == grid
        if same_grid and row["student"] == run.spec["family"] and all(run.spec[k] == v for k, v in row["spec"].items()):
            return {"name": row["name"], "ms": row["ms"], "epochs": run.recipe["epochs"], "seed": run.seed,
                    "dev_dice": run.metrics["dev"]["dice"], "epoch": run.metrics["dev"]["epoch"] + 1,
                    "control": row["control"]}
    raise EdgesegError(f"{folder}: its student is not one of the search in {found.folder}")


def page(document: dict[str, Any]) -> str:
    """The search's own page, and after it the full trainings and where it all comes from."""
    rows = [(r["name"] + (" (made by hand)" if r["control"] else ""), f"{r['ms']:.2f}", str(r["epochs"]),
             str(r["seed"]), f"{r['dev_dice']:.4f}", str(r["epoch"])) for r in document["full"]]
    made = document["provenance"]
    return (markdown(document) + "\n## Full schedule\n\n"
            + (markdown_table(("name", "ms", "epochs", "seed", "dev Dice", "at epoch"), rows) if rows else NONE)
            + f"\nCommit {made['commit']}{' with changes' if made['changed_files'] else ''}: `{made['command']}`\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("search", type=Path, help="folder of a finished search")
    parser.add_argument("--run", type=Path, action="append", default=[], help="run with the full schedule; repeat")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    check_out(given.out)
    found = Search.open(given.search)
    document = {"provenance": provenance(), **found.document(), "full": [full(found, run) for run in given.run]}
    for path in (write_json(given.out / "search.json", document), write_text(given.out / "search.md", page(document)),
                 picture(given.out / "search.png", document)):
        print(path)


if __name__ == "__main__":
    try:
        main()
    except EdgesegError as error:
        print(f"search: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
