"""Run every benchmark script, one after the other, and say what ran, what was skipped and why.

    python benchmarks/all.py --data acdc:DIR --teacher nnunet:FOLDER --recipe benchmarks/recipes/X.toml \
        --bundle cine.edgeseg --baseline plain.edgeseg --run runs/cine --work runs/tables --out benchmarks/results

The tables train what they need into --work and come first; without --bundle and --run the others take their student of
expansion ratio 4. A script that fails does not stop the others. Exit code 1 when one failed.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from students import HERE, PHANTOM, QUICK_DATA, QUICK_TEACHER, add_options


@dataclass(frozen=True)
class Script:
    """`needs`: options without which it is skipped. `takes`: options that it also knows. All take --out."""

    name: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    quick: bool = True


SCRIPTS = (
    Script("ismrm_table1", takes=("data", "teacher", "recipe", "work")),
    Script("ismrm_table2", takes=("data", "teacher", "recipe", "work")),
    Script("main_job", needs=("bundle", "data"), takes=("baseline", "teacher", "run")),
    Script("admission", needs=("run", "data"), quick=False),
    Script("bench", needs=("bundle",), takes=("run", "teacher")),
    Script("frame_speed", needs=("bundle",), quick=False),
    Script("robustness", needs=("bundle", "data")),
    Script("serve_mrd", needs=("bundle",)),
    Script("serve_igtl", needs=("bundle",)),
    Script("serve_dicom", needs=("bundle",)),
    Script("serve_cpp", takes=("bundle",), quick=False),
)


def stand_ins(given: argparse.Namespace) -> dict[str, str]:
    """What an option means that was not given: made by the tables before, if they ran."""
    work = given.work
    found = {"bundle": work / "expansion-4.edgeseg", "run": work / "expansion-4"}
    data = f"acdc:{work / QUICK_DATA}" if given.quick else PHANTOM
    teacher = work / QUICK_TEACHER if given.quick else work / "teacher" / "teacher"
    return ({k: str(v) for k, v in found.items() if v.exists()} | {"data": data}
            | ({"teacher": f"nnunet:{teacher}"} if teacher.exists() else {}))


def run_script(script: Script, given: argparse.Namespace) -> tuple[str, bool]:
    """What became of it, in words, and whether that is well."""
    path, values = HERE / f"{script.name}.py", {k: v for k, v in vars(given).items() if v is not None}
    if "work" not in script.takes:  # a table finds these itself
        values = stand_ins(given) | values
    if not path.exists():
        return "skipped: there is no such script yet", True
    if given.quick and not script.quick:
        return "skipped: it has no quick form", True
    if missing := [f"--{option}" for option in script.needs if option not in values]:
        return f"skipped: needs {' and '.join(missing)}", True
    options = [part for option in (*script.needs, *script.takes, "out") if option in values
               for part in (f"--{option}", str(values[option]))] + (["--quick"] if given.quick else [])
    print(f"\n== {script.name} {' '.join(options)}", flush=True)
    start = time.monotonic()
    code = subprocess.run([sys.executable, path, *options], check=False).returncode
    took = f"{time.monotonic() - start:.0f} s"
    return (f"FAILED with code {code} after {took}", False) if code else (f"ran, {took}", True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--bundle", help="a distilled student's")
    parser.add_argument("--baseline", help="the bundle of the same student without distillation")
    parser.add_argument("--run", help="the distilled student's run")
    parser.add_argument("--only", nargs="+", choices=[s.name for s in SCRIPTS])
    given = parser.parse_args()
    wanted = [s for s in SCRIPTS if not given.only or s.name in given.only]
    results = {script.name: run_script(script, given) for script in wanted}
    print()
    for name, (words, _) in results.items():
        print(f"{name:16}{words}")
    return 0 if all(well for _, well in results.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
