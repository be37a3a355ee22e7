"""Everything of an export that must not share a process with torch: `python -m edgeseg.bundle.build SCRATCH FOLDER`.

A fresh process, because the names of an IR's constants come from a counter of the process: two exports of one run are
then the same bytes. Without torch, because NNCF imports it when it can and the two fight over threads.

SCRATCH holds job.json and the arrays that `export.py` made; FOLDER holds model.fp32.onnx and gets the rest. The answer
is one line of JSON on stdout: {"checks": [...]}, or {"error": ...} with "gate" or "errno".
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.errors import EdgesegError, GateFailed
from edgeseg.manifest import FileCheck, Grid, preprocessing_of

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def build_apart(scratch: Path, folder: Path) -> list[FileCheck]:
    """Run `build` in its own process and return what it measured.

    Raises:
        EdgesegError: what the process says went wrong. OSError: the disk is full.
    """
    environment = dict(os.environ)
    # -P keeps the current folder off the import path; this package must still be found when it is not installed
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE_ROOT), environment.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-P", "-m", "edgeseg.bundle.build", str(scratch), str(folder)],
                          capture_output=True, env=environment, text=True, errors="replace")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise EdgesegError(f"{folder.name}: converting ended with code {done.returncode} ({said[0][:300]})") from None
    if answer.get("errno"):
        raise OSError(answer["errno"], os.strerror(answer["errno"]), answer.get("file"))
    if "error" in answer:
        raise GateFailed(answer["error"]) if answer["gate"] else EdgesegError(answer["error"])
    return [FileCheck.model_validate(c) for c in answer["checks"]]


def build(scratch: Path, folder: Path) -> list[FileCheck]:
    """Convert, quantise, compare with torch's logits, and write the golden frames."""
    from edgeseg.bundle import quantise
    from edgeseg.bundle.check import check_files, refuse_bad
    from edgeseg.bundle.golden import write_golden

    job = json.loads((scratch / "job.json").read_text())
    fp32 = folder / "model.fp32.onnx"
    quantise.convert(fp32, fp32.with_suffix(".xml"))
    if job["int8"]:
        frames = np.load(scratch / "calibration.npy")
        quantise.quantise_ir(fp32.with_suffix(".xml"), folder / "model.int8.xml", frames)
        quantise.quantise_onnx(fp32, folder / "model.int8.onnx", frames)
    checks = check_files(folder, np.load(scratch / "inputs.npy"), np.load(scratch / "logits.npy"))
    refuse_bad(checks)
    write_golden(folder, preprocessing_of(Grid.model_validate(job["preprocessing"])))
    return checks


def main() -> None:
    from edgeseg.runtime.telemetry import telemetry_off

    telemetry_off()
    sys.modules["torch"] = None  # type: ignore[assignment]  # NNCF then does without
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # NNCF's progress bars must not get into the answer
    answer: dict[str, Any]
    try:
        answer = {"checks": [c.model_dump() for c in build(Path(sys.argv[1]), Path(sys.argv[2]))]}
    except EdgesegError as error:
        answer = {"error": str(error), "gate": isinstance(error, GateFailed)}
    except OSError as error:
        answer = {"error": str(error), "errno": error.errno, "file": error.filename and str(error.filename)}
    out.write(json.dumps(answer) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
