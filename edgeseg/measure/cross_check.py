"""Cross-check: our latency of a network against what openvino's own benchmark_app says of the same file.

Both call it one image at a time with the same input, precision, threads, one stream and the same hint, in processes of
their own that take turns. What differs is what a call is: benchmark_app reports the runtime's own time of a request
whose input is already in place and whose output nobody takes; our call also hands over the input and copies the output.

`python -P -m edgeseg.measure.cross_check ARGUMENTS...` is benchmark_app itself, with OpenVINO's telemetry off.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from edgeseg import child
from edgeseg.container import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.measure.ceilings import TIMEOUT, golden_input, without_folders
from edgeseg.measure.statistics import Interval, bootstrap_interval
from edgeseg.measure.turns import DISCARD, LOAD_TIMEOUT, Job, Worker, WorkerError, write_frames
from edgeseg.runtime.backends import model_file
from edgeseg.runtime.threads import checked_threads

TOLERANCE = 0.10
STEP_MS = 0.01
"""benchmark_app's report has two decimals."""
MISSING = "openvino's benchmark_app is not installed: pip install --force-reinstall openvino"


@dataclass(frozen=True)
class CrossCheck:
    """One network, measured by us and by benchmark_app.

    Attributes:
        ours_ms, theirs_ms: median latency of each repeat, in the order in which they ran.
        ratio: median over the repeats of ours / theirs, with its bootstrap interval.
        settings: "edgeseg" and "benchmark_app" -> what the runtime said it runs with there.
        command: benchmark_app's arguments, files by their names.
        agrees: the ratio is within TOLERANCE of 1. why_not: what differs when it is not, else "".
    """

    precision: str
    threads: int
    ours_ms: tuple[float, ...]
    theirs_ms: tuple[float, ...]
    ratio: Interval
    settings: dict[str, dict[str, str]]
    command: str
    agrees: bool
    why_not: str


def check_available() -> None:
    """Raise EdgesegError where benchmark_app is not installed. Looks for its file and imports nothing."""
    found = find_spec("openvino")
    for part in ("tools", "benchmark", "main"):
        found = PathFinder.find_spec(part, found.submodule_search_locations or []) if found else None
    if found is None:
        raise EdgesegError(MISSING)


def cross_check(bundle: Bundle, precision: str, threads: int, repeats: int = 5, seconds: float = 2.0) -> CrossCheck:
    """Measure the bundle's OpenVINO network of one precision with both, taking turns.

    Args:
        repeats: turns of each; who begins alternates. seconds: of a turn, rounded up: benchmark_app counts whole ones.

    Raises:
        EdgesegError: bad numbers, no such network, no golden frame, benchmark_app missing or failing.
    """
    check_available()
    threads = checked_threads(threads)
    if repeats < 1 or not 0 < seconds < math.inf:
        raise EdgesegError(f"cross-check: {repeats} repeats of {seconds:g} s: both must be above 0 and finite")
    seconds, network, x = math.ceil(seconds), bundle.file(model_file("openvino", precision)), golden_input(bundle)
    ours: list[float] = []
    theirs: list[float] = []
    settings: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="edgeseg-cross-check-") as scratch:
        folder = Path(scratch)
        (folder / "report").mkdir()
        np.save(folder / "input.npy", x)
        (folder / "config.json").write_text(json.dumps(
            {"CPU": {"PERFORMANCE_HINT": "LATENCY", "CPU_DENORMALS_OPTIMIZATION": True}}))
        command = arguments(network, folder, precision, threads, seconds)
        job = Job("network", str(network), str(write_frames(folder / "frames.npz", [x[0]], [(1.0, 1.0)], [x[0]])),
                  precision=precision, threads=threads)
        try:
            with Worker(job) as worker:
                settings["edgeseg"] = {k: plain_value(v) for k, v in worker.ready["runtime"].items()}

                def run_ours() -> None:
                    token = {"mode": "network", "seconds": seconds, "discard": DISCARD}
                    ours.append(float(np.median(worker.ask(token, LOAD_TIMEOUT)["ms"])))

                def run_theirs() -> None:
                    median, found = benchmark_app(command, folder / "report")
                    theirs.append(median)
                    settings["benchmark_app"] = {k: v for k, v in found.items() if k in settings["edgeseg"]}

                for number in range(repeats):
                    for run in (run_ours, run_theirs) if number % 2 == 0 else (run_theirs, run_ours):
                        run()
        except WorkerError as error:
            reason = without_folders(str(error), [job.path, job.frames])
            raise EdgesegError(f"{bundle.path}: {network.name} cannot be cross-checked: {reason}") from None
    ratio = bootstrap_interval(np.divide(ours, np.maximum(theirs, STEP_MS / 2)), np.median)
    agrees = abs(ratio.value - 1) <= TOLERANCE
    return CrossCheck(precision, threads, tuple(ours), tuple(theirs), ratio, settings,
                      " ".join(["benchmark_app", *(Path(a).name if Path(a).is_absolute() else a for a in command)]),
                      agrees, "" if agrees else why_not(ours, theirs, settings))


def arguments(network: Path, folder: Path, precision: str, threads: int, seconds: int) -> list[str]:
    """benchmark_app's, for what runtime/openvino_backend.py does. It takes the hint from the file, as -hint would
    forbid -nstreams and -nthreads."""
    return ["-m", str(network), "-d", "CPU", "-api", "sync", "-hint", "none", "-load_config",
            str(folder / "config.json"), "-nstreams", "1", "-nthreads", str(threads), "-infer_precision",
            "bf16" if precision == "bf16" else "f32", "-i", str(folder / "input.npy"), "-t", str(seconds),
            "-report_type", "no_counters", "-json_stats", "-report_folder", str(folder / "report")]


def benchmark_app(command: Sequence[str], folder: Path) -> tuple[float, dict[str, str]]:
    """Its median latency in ms, from the report that it writes into `folder`, and the settings that it prints;
    EdgesegError when it is missing or fails."""
    done = child.run_module("edgeseg.measure.cross_check", *command, timeout=TIMEOUT)
    try:
        if done.returncode:
            raise ValueError(child.last_words(done.returncode, done.stderr or done.stdout))
        report = json.loads((folder / "benchmark_report.json").read_text())
        median = float(report["execution_results"]["latency (ms)"])
    except (OSError, ValueError, KeyError) as error:
        said = without_folders(str(error), filter(os.path.isabs, [*command, str(folder / "benchmark_report.json")]))
        raise EdgesegError(f"benchmark_app did not measure: {said}") from None
    words = [line.removeprefix("[ INFO ]").strip().partition(": ") for line in done.stdout.splitlines()]
    return median, {name: plain_value(value) for name, _, value in words if name.isupper() and " " not in name}


def plain_value(value: str) -> str:
    """One spelling of a setting: "PerformanceMode.LATENCY" and "LATENCY" are the same."""
    return value.removeprefix("PerformanceMode.").strip()


def why_not(ours: Sequence[float], theirs: Sequence[float], settings: dict[str, dict[str, str]]) -> str:
    """What may explain two medians that are more than TOLERANCE apart, the likeliest first."""
    mine, other = float(np.median(ours)), float(np.median(theirs))
    a, b = settings["edgeseg"], settings["benchmark_app"]
    reasons = [f"{name} is {a[name]} here and {b[name]} there" for name in sorted(a.keys() & b.keys())
               if a[name] != b[name]]
    if other < 10 * STEP_MS:
        reasons.append(f"benchmark_app rounds to {STEP_MS} ms, too coarse for a call of {other:.2f} ms")
    for name, ms in (("our", ours), ("benchmark_app's", theirs)):
        if max(ms) > (1 + TOLERANCE) * min(ms):
            reasons.append(f"the machine was not steady: {name} medians lie between {min(ms):.2f} and {max(ms):.2f} ms")
    if mine > other:
        reasons.append(f"our call, which also hands over the input and copies the output, takes {mine - other:.2f} ms "
                       "more than the runtime's own time of a request, which benchmark_app reports")
    return "; ".join(reasons) or "unknown: the same settings, a steady machine, and ours is the shorter"


def main() -> None:
    from edgeseg.runtime.telemetry import telemetry_off

    telemetry_off()
    try:
        from openvino.tools.benchmark.main import main as app
    except ImportError:
        sys.exit(MISSING)
    sys.exit(app())


if __name__ == "__main__":
    main()
