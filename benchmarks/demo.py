"""The main job on the built-in phantom, as a user would run it: the three commands, one picture, one closing table.

    python benchmarks/demo.py --out demo

All that it shows is synthetic data with known truth. Writes OUT/run, OUT/cine.edgeseg, OUT/overlay.png, OUT/demo.json.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgeseg.container import open_bundle
from edgeseg.distill.recipe import PHANTOM
from edgeseg.measure.document import write_json
from edgeseg.measure.evaluate import Evaluation, evaluate, evaluate_bundle
from edgeseg.readers import open_data
from edgeseg.runtime.overlay import write_overlay
from edgeseg.runtime.segmenter import Segmenter

TARGET = 10.0
"""Images per second: real time, as the ISMRM abstract has it."""


def edgeseg(*arguments: object) -> float:
    """Run one command of the toolkit, shown as it is typed; returns its seconds."""
    print(f"\n$ edgeseg {' '.join(map(str, arguments))}", flush=True)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "edgeseg", *map(str, arguments)])
    if done.returncode:
        sys.exit(done.returncode)
    return time.monotonic() - started


def teacher_evaluation(run: Path, data: str) -> Evaluation:
    """nnU-Net's own pipeline on the phantom's val patients (torch: in this process, after every timing)."""
    from edgeseg.teachers import open_teacher

    teacher = open_teacher(f"nnunet:{run / 'teacher'}")
    cases = open_data(data).select("val")
    return evaluate(lambda case: teacher.predict(case, "mirror")[0], cases, teacher.scheme)


def rows(bench: dict[str, Any], scores: dict[str, Evaluation]) -> list[tuple[str, ...]]:
    """Closing table (OpenVINO rows): name, mean Dice [interval], images per second, verdict."""
    table = []
    for name, role, precision in (("teacher", "teacher", "fp32"), ("student FP32", "student", "fp32"),
                                  ("student INT8", "student", "int8")):
        wanted = (role, "openvino", precision)
        row = next(r for r in bench["rows"] if (r["role"], r["backend"], r["precision"]) == wanted)
        speed = (row["end_to_end"] or row["network"])["images_per_second"]
        dice = scores[name].summary()["structures"]["mean"]["all"]["dice"]
        verdict = {True: "reached", False: "MISSED", None: "not measured"}[row["target_met"]]
        table.append((name, f"{dice.value:.3f} [{dice.low:.3f}, {dice.high:.3f}]", f"{speed:.0f}", verdict))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    out = parser.parse_args().out
    started = time.monotonic()
    ours = (out / "demo.json").exists() or (out / "run" / "recipe.toml").exists()
    if out.exists() and any(out.iterdir()) and not ours:
        sys.exit(f"{out}: not a folder that this script made: choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    run, bundle = out / "run", out / "cine.edgeseg"
    seconds = {"distill": edgeseg("distill", "--out", run),
               "export": edgeseg("export", run, "--int8", "--out", bundle),
               "bench": edgeseg("bench", bundle, "--device", "cpu", "--against", run, "--seconds", "3", "--out", out)}
    bench = json.loads((out / "bench.json").read_text())
    data = PHANTOM.data[0]
    print("\nscoring teacher and students on the phantom's val patients", flush=True)
    scores = {"student FP32": evaluate_bundle(bundle, data, precision="fp32"),
              "student INT8": evaluate_bundle(bundle, data, precision="int8")}
    case = open_data(data).select("val").refs[0].load()
    segmenter = Segmenter(bundle)
    write_overlay(out / "overlay.png", case.frames[:, 0], segmenter.scheme.values, segmenter.segment_case(case))
    scores["teacher"] = teacher_evaluation(run, data)
    table = rows(bench, scores)
    seconds["all"] = time.monotonic() - started
    print(f"\n{'':34}{'mean Dice [95 % interval]':28}{'images/s':>9}   target {TARGET:.0f}/s")
    for name, dice, speed, verdict in table:
        print(f"{name:34}{dice:28}{speed:>9}   {verdict}")
    n = scores["teacher"].summary()["patients"]
    print(f"\nDice: synthetic phantom, {n} val patients (ED and ES), which no training and no choice has seen.\n"
          "Teacher: nnU-Net's own pipeline with mirroring for Dice, one pass of its network for speed.\n"
          "Student: raw frame to label map.")
    print(f"picture  {out / 'overlay.png'}\nbundle   {open_bundle(bundle).path}\ntime     {seconds['all']:.0f} s")
    write_json(out / "demo.json", {"table": table, "seconds": seconds, "patients": n})


if __name__ == "__main__":
    main()
