"""Frames per second of the INT8 streaming step against the DeepLabv3 that it was distilled from, and the drift of INT8.

    python benchmarks/echo_speed.py --bundle runs/echo/31.edgeseg --teacher deeplabv3:CHECKPOINT --work runs/echo \
        --out benchmarks/results

One interleaved run: the bundle's `Stream` in OpenVINO (INT8 and FP32; a raw frame to its labels, and the step alone),
the teacher's network in OpenVINO FP32 and in PyTorch, each in its own process, on consecutive frames of one test clip.
Drift is (Dice INT8 - Dice FP32) over frames 181-200 minus the same over frames 1-20, over the test clips. Writes
echo_speed.json and .md.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import echo_common as echo
from common import HERE, Target, cell, markdown_table, target
from echo_crew import Crew, Step, train_teacher

from edgeseg.bundle.stream_gate import drift_gate, play
from edgeseg.container import Bundle, open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Gate
from edgeseg.measure.bench import Bench, allowed_threads, measure
from edgeseg.measure.rows import RowSpec
from edgeseg.measure.turns import Job, write_frames
from edgeseg.readers import open_data
from edgeseg.runtime.backends import model_file

FRAMES = 64
"""Consecutive frames of one clip, over and over; at least two, for a repeated one would be a stall."""
INT8, FP32 = "Stream, OpenVINO INT8", "Stream, OpenVINO FP32"
OPENVINO, PYTORCH = "teacher, OpenVINO FP32", "teacher, PyTorch FP32"
PER_SECOND, OVER_PYTORCH, OVER_OPENVINO = 300.0, 30.0, 15.0


def bench(given: argparse.Namespace, bundle: Bundle, network: Path) -> Bench:
    print("bench    student and teacher in turns", flush=True)
    case, threads = open_data(given.other).select("val").refs[0].load(), allowed_threads(given.threads)
    frames = list(case.frames[:FRAMES])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory(prefix="edgeseg-echo-") as scratch:
        stored = {}
        grid = bundle.preprocessing  # the student's constants are the teacher's, which takes every pixel as it is
        for name, ready in (("student", lambda f: grid.to_canvas(f, case.spacing)), ("teacher", grid.normalise)):
            canvases = [ready(f[None])[0] for f in frames]
            stored[name] = str(write_frames(Path(scratch) / f"{name}.npz", frames, [case.spacing] * len(frames),
                                            canvases))
        others = (OPENVINO, PYTORCH)
        specs = [RowSpec(name, "student", Job("stream", str(bundle.path), stored["student"], "openvino", precision,
                                              threads, "echo_subjects"), others)
                 for name, precision in ((INT8, "int8"), (FP32, "fp32"))]
        specs += [RowSpec(OPENVINO, "teacher", Job("network", str(network), stored["teacher"], threads=threads)),
                  RowSpec(PYTORCH, "teacher", Job("torch-teacher", given.teacher, stored["teacher"], "torch", "fp32",
                                                  threads, "echo_subjects"))]
        found = measure(specs, given.seconds, PER_SECOND, together=given.quick)
    if failed := [f"{r.name}: {r.failed}" for r in found.rows if r.failed]:
        raise EdgesegError(failed[0])
    found.frames, found.about = len(frames), {"bundle": bundle.path.name, "threads": threads}
    return found


def drifts(given: argparse.Namespace, bundle: Bundle) -> list[Gate]:
    """Of INT8 in OpenVINO over the test clips, played forwards and backwards to 200 frames."""
    data = open_data(given.other).select("val")
    print(f"drift    {len(data)} clips", flush=True)
    played = [play(bundle.file(model_file("openvino", p)), "openvino", p, data, bundle.preprocessing)
              for p in ("int8", "fp32")]
    return [drift_gate("openvino int8", *played, data, bundle.scheme)]


def targets(found: Bench, drift: list[Gate]) -> list[Target]:
    row = found.row(INT8)
    rows = [Target("frames/s, a raw frame to its labels (Stream.push, INT8)", row.images_per_second, ">=", PER_SECOND),
            Target("frames/s, the INT8 step alone", row.network.images_per_second, ">=", PER_SECOND),
            target("times as fast as the teacher in PyTorch, networks alone", row.speed_up[PYTORCH], ">=",
                   OVER_PYTORCH),
            target("times as fast as the teacher in OpenVINO FP32, networks alone", row.speed_up[OPENVINO], ">=",
                   OVER_OPENVINO)]
    return rows + [Target(f"drift of Dice, {g.subject}", g.estimate.value, ">=", g.limit, g.estimate.low,
                          g.estimate.high, g.estimate.n) for g in drift]


def table(found: Bench) -> str:
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    return markdown_table(["row", "network, ms", "frame to labels, ms", "frames/s", "times the teacher in OpenVINO",
                           "times it in PyTorch"], [
        [r.name, ms(r.network.p50_ms), ms(r.end_to_end.p50_ms if r.end_to_end else None),
         "-" if r.images_per_second is None else f"{r.images_per_second:.0f}",
         *(cell(r.speed_up[n], 1) if n in r.speed_up else "" for n in (OPENVINO, PYTORCH))] for r in found.rows])


def main(arguments: list[str] | None = None) -> None:
    parser = echo.parser_of(__doc__)
    parser.add_argument("--bundle", type=Path, help="of the (3,1) student (default: WORK/31.edgeseg)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="counted time of each row and mode")
    given = parser.parse_args(arguments)
    if given.quick:
        given.seconds, given.threads = 0.2, 1
    allowed_threads(given.threads)
    echo.settle(given)
    bundle = open_bundle(given.bundle or given.work / "31.edgeseg")
    if not bundle.manifest.stream or model_file("openvino", "int8") not in bundle.files:
        raise EdgesegError(f"{bundle.path}: is not the INT8 bundle of a recurrent student: `edgeseg export RUN`")
    with Crew(given.work, given.jobs) as crew:
        train_teacher(given, crew)
        network = given.work / "teacher.onnx"
        crew.run([Step("teacher-onnx", ("teacher-onnx", given.teacher, network))])
    drift = drifts(given, bundle)
    found = bench(given, bundle, network)
    rows = targets(found, drift)
    document = {**echo.started(given, "echo_speed"), "bundle": bundle.path.name, "student": bundle.manifest.student,
                "teacher": given.teacher.partition(":")[0],
                "drift": [g.model_dump() for g in drift],
                "bench": found.document()}
    machine, busy = found.machine, " **Busy while timing: do not quote the times.**" if found.load["busy"] else ""
    about = (f"Teacher: {document['teacher']}. {machine['cpu']}, {machine['cpus_affinity']} CPUs, "
             f"{found.about['threads']} thread(s) a row. Medians of single frames, all rows in turns in one run, on "
             f"{found.frames} consecutive frames of a clip; ratios of the networks alone, paired by round, with "
             f"95 % intervals. Drift: {drift[0].estimate.n} unseen phantom clips, played forwards and backwards to 200 "
             f"frames.{busy}")
    echo.finish(given, "echo_speed", "Echo: speed of the stream", document, [table(found), about], rows)


if __name__ == "__main__":
    echo.run_main(main, "echo_speed")
