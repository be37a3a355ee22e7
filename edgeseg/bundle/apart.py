"""A module in a fresh process without torch: `python -P -m MODULE ARGUMENTS`, which talks JSON lines.

Fresh, because the names of an IR's constants come from a counter of the process: two exports of one run are then the
same bytes. Without torch, because NNCF imports it when it can and the two fight over threads.

    out  {"say": "..."}                                  any number of progress lines
    out  {"result": {...}} or {"error": "...", "gate": false} or {"error": "...", "errno": 28, "file": "..."}
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeseg import child
from edgeseg.errors import EdgesegError, GateFailed

Say = Callable[[str], None]


def run_apart(module: str, *arguments: str | Path, say: Say = lambda line: None) -> dict[str, Any]:
    """Run `module` and return its result.

    Raises:
        EdgesegError, GateFailed: what the process says went wrong. OSError: the disk is full.
    """
    environment = child.environment()
    environment["OPENBLAS_NUM_THREADS"] = "1"  # its products are tiny here, and its threads spin beside the runtimes'
    answer: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", errors="replace") as errors, subprocess.Popen(
            [*child.command(module), *map(str, arguments)], stdout=subprocess.PIPE, stderr=errors,
            stdin=subprocess.DEVNULL, env=environment, text=True, errors="replace") as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                answer = json.loads(line)
                if "say" in answer:
                    say(answer["say"])
        except BaseException:
            process.kill()
            raise
        code = process.wait()
        errors.seek(0)
        said = [line for line in errors.read().splitlines() if line.strip()][-1:] or ["no message"]
    if answer.get("errno"):
        raise OSError(answer["errno"], os.strerror(answer["errno"]), answer.get("file"))
    if "error" in answer:
        raise GateFailed(answer["error"]) if answer["gate"] else EdgesegError(answer["error"])
    if "result" not in answer:
        raise EdgesegError(f"{module.rpartition('.')[2]} ended with code {code} ({said[0][:300]})")
    return answer["result"]


class NoTorch:
    """An import finder for which there is no torch."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch' in this process", name="torch")


def forbid_torch() -> None:
    """NNCF looks for torch when it is imported, by a way that only None in sys.modules answers with no; scipy would
    later take that None for the module, so an import finder takes its place."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    import nncf  # noqa: F401

    del sys.modules["torch"]
    sys.meta_path.insert(0, NoTorch())  # type: ignore[arg-type]


def answer_apart(work: Callable[[list[str], Say], dict[str, Any]]) -> None:
    """The other end: call `work` with the arguments and a way to report progress, and send what it returns."""
    from edgeseg.runtime.telemetry import telemetry_off

    telemetry_off()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # NNCF's progress bars must not get into the answer
    forbid_torch()

    def send(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        send({"result": work(sys.argv[1:], lambda line: send({"say": line}))})
    except EdgesegError as error:
        send({"error": str(error), "gate": isinstance(error, GateFailed)})
    except OSError as error:
        send({"error": str(error), "gate": False, "errno": error.errno, "file": error.filename and str(error.filename)})
