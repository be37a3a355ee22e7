"""Admission's numbers: what INT8 costs, what the calibration set matters, what a frame graph adds, what verify takes.

    python benchmarks/admission.py --run runs/cine --data acdc:DIR --out benchmarks/results

Writes admission.json and admission.md. Gates and choices are dev's; the Dice figures are on `val`, on which nothing was
chosen. The patient is the unit of every interval.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Target, cell, markdown_table, provenance, target

from edgeseg.bundle.calibrate import draw_frames
from edgeseg.bundle.card import gate_rows
from edgeseg.bundle.export import export_bundle
from edgeseg.bundle.frame_check import protocol_frames
from edgeseg.bundle.graph import parse_protocol
from edgeseg.bundle.recipe import CalibrationRecipe
from edgeseg.bundle.stability import Stability, measure_stability
from edgeseg.container import Bundle, open_bundle
from edgeseg.distill.run import Run
from edgeseg.manifest import FrameProtocol
from edgeseg.measure.bench import Bench, RowSpec, measure
from edgeseg.measure.document import write_json, write_text
from edgeseg.measure.evaluate import evaluate_bundle
from edgeseg.measure.statistics import Difference, Interval, paired_difference
from edgeseg.measure.turns import Job, write_frames
from edgeseg.readers import open_data
from edgeseg.runtime.backends import model_file

RECIPES = Path(__file__).resolve().parents[1] / "calibration"
BACKENDS = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


def say(line: str) -> None:
    print(line, flush=True)


def export(run: Run, out: Path, recipe: CalibrationRecipe,
           protocols: tuple[FrameProtocol, ...]) -> tuple[Bundle, float]:
    start = time.monotonic()
    bundle = open_bundle(export_bundle(run, out, recipe=recipe, protocols=protocols,
                                       say=lambda line: say(f"export   {line}")))
    return bundle, time.monotonic() - start


def dice(bundle: Bundle, data: str, split: str) -> dict[str, dict[str, float]]:
    """`openvino int8` -> patient -> mean Dice."""
    found = {}
    for backend in BACKENDS:
        for precision in ("fp32", "int8"):
            say(f"evaluate {bundle.path.name} {backend} {precision} on {split}")
            found[f"{backend} {precision}"] = evaluate_bundle(bundle.path, data, split, None, precision,
                                                              backend).patient_dice()
    return found


def difference(a: dict[str, float], b: dict[str, float]) -> Difference:
    both = sorted(a.keys() & b.keys())
    return paired_difference([a[p] for p in both], [b[p] for p in both])


def unequal_files(a: Bundle, b: Bundle) -> list[str]:
    """Names of the files that differ, the manifest compared without `measured` and the name."""
    manifests = [x.manifest.model_dump(exclude={"measured", "name"}) for x in (a, b)]
    changed = ["manifest.json"] if manifests[0] != manifests[1] else []
    written_from_it = {"manifest.json", "SHA256SUMS", "MODEL_CARD.md", "metadata.json"}
    return changed + [n for n in sorted(a.files | b.files) if n not in written_from_it
                      and not (n in a.files and n in b.files and a.file(n).read_bytes() == b.file(n).read_bytes())]


def frame_speed(bundle: Bundle, run: Run, protocol: FrameProtocol, threads: int, seconds: float) -> Bench:
    """Core networks and frame graphs of both runtimes and precisions in one interleaved run, on real frames."""
    data = run.dataset().select("dev")
    raw = protocol_frames(data, protocol)
    windows = [f.window for f in draw_frames(data, run.preprocessing, len(raw), 0)]
    with tempfile.TemporaryDirectory(prefix="edgeseg-admission-") as scratch:
        def frames(name: str, images: list[np.ndarray]) -> str:
            return str(write_frames(Path(scratch) / name, images, [(1.0, 1.0)] * len(images), images))

        inputs = {"core": frames("core.npz", windows), "frame": frames("frame.npz", raw)}
        specs = []
        for backend in BACKENDS:
            ending = model_file(backend, "fp32").rpartition(".")[2]
            for precision in ("fp32", "int8"):
                core, name = bundle.file(model_file(backend, precision)), f"{backend} {precision}"
                graph = bundle.file(f"frames/{protocol.name}/{precision}.{ending}")
                specs += [RowSpec(f"core {name}", "student", Job("network", str(core), inputs["core"], backend,
                                                                 "fp32", threads), (f"frame {name}",)),
                          RowSpec(f"frame {name}", "student", Job("network", str(graph), inputs["frame"], backend,
                                                                  "fp32", threads))]
        return measure(specs, seconds, 1.0)


def stability(run: Run, sets: int, split: str) -> Stability:
    """Dice over resampled calibration sets of training frames, and of phantom frames."""
    recipe, phantom = (CalibrationRecipe.load(RECIPES / f"{name}.toml") for name in ("cine", "cine-phantom"))
    return measure_stability(run, recipe, sets, split, phantom, say=lambda line: say(f"calibrate {line}"))


def verify_seconds(bundle: Bundle) -> tuple[float, int]:
    """Wall seconds of `edgeseg verify` from start to exit, and its exit code."""
    start = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "edgeseg", "verify", str(bundle.path), "--no-record"],
                          capture_output=True, check=False).returncode
    return time.monotonic() - start, code


def collect(given: argparse.Namespace) -> dict[str, Any]:
    run = Run.open(given.run)
    protocol = parse_protocol(given.frame, given.dtype)
    recipe, phantom = (CalibrationRecipe.load(RECIPES / f"{name}.toml") for name in ("cine", "cine-phantom"))
    with tempfile.TemporaryDirectory(prefix="edgeseg-admission-") as kept:
        folder = Path(kept)
        bundle, seconds = export(run, folder / "first.edgeseg", recipe, (protocol,))
        again, _ = export(run, folder / "second.edgeseg", recipe, (protocol,))
        free, _ = export(run, folder / "phantom.edgeseg", phantom, ())
        real, synthetic = dice(bundle, given.data, given.split), dice(free, given.data, given.split)
        found = {
            "manifest": bundle.manifest, "export_seconds": seconds, "unequal_files": unequal_files(bundle, again),
            "megabytes": sum(bundle.file(n).stat().st_size for n in bundle.files if "/" not in n) / 1e6,
            "megabytes_with_frames": sum(bundle.file(n).stat().st_size for n in bundle.files) / 1e6,
            "dice": {"training frames": real, "phantom frames": synthetic},
            "drop": {b: difference(real[f"{b} fp32"], real[f"{b} int8"]) for b in BACKENDS},
            "phantom_admission": free.manifest.measured.admission,
        }
        say("stability of calibration")
        found["stability"] = stability(run, given.sets, given.split)
        say("timing   core and frame graph")
        found["speed"] = {str(t): frame_speed(bundle, run, protocol, t, given.seconds) for t in given.threads}
        found["verify"] = verify_seconds(bundle)
    return found


def targets(found: dict[str, Any], threads: int) -> list[Target]:
    rows = []
    for backend, label in BACKENDS.items():
        rows.append(target(f"INT8 mean Dice drop, {label}", found["drop"][backend], "<=", 0.003))
    stable: Stability = found["stability"]
    for backend, label in BACKENDS.items():
        d = stable.difference(backend)
        assert d is not None
        rows += [Target(f"|Dice, phantom - training frames|, {label}", abs(d.value), "<=", 0.005, n=d.n),
                 Target(f"spread of Dice over {len(stable.own.sheets)} calibration sets, {label}",
                        stable.own.spread(backend), "<=", 0.003, n=stable.patients)]
    bench = found["speed"][str(threads)]
    for backend, label in BACKENDS.items():
        for precision in ("fp32", "int8"):
            core = bench.row(f"core {backend} {precision}")
            ratio: Interval = core.speed_up[f"frame {backend} {precision}"]
            limit = max(1.3, 1 + 0.5 / core.network.p50_ms)  # 1.3 times, or 0.5 ms added, whichever is larger
            rows.append(target(f"frame graph / core, {label} {precision.upper()}, {threads} threads", ratio, "<=",
                               limit))
    seconds, code = found["verify"]
    rows += [Target(f"edgeseg verify, s (exit code {code})", seconds, "<=", 10.0),
             Target("bundle, MB", found["megabytes"], "<=", 12.0),
             Target("bundle with one protocol's frame graphs, MB", found["megabytes_with_frames"], "<=", 12.0),
             Target("files that differ between two exports", float(len(found["unequal_files"])), "<=", 0.0)]
    return rows


def page(found: dict[str, Any], rows: list[Target], document: dict[str, Any], split: str) -> str:
    measured = found["manifest"].measured
    checks = [(c.protocol, c.backend, c.precision, f"{c.agreement:.5f}", f"{c.least_dice:.4f}")
              for c in measured.frame_checks]
    speeds = [(threads, r.name, f"{r.network.p50_ms:.2f}", f"{r.network.p99_ms:.2f}" if r.network.p99_ms else "-",
               "".join(cell(i, 2) for i in r.speed_up.values()))
              for threads, bench in found["speed"].items() for r in bench.rows]
    changes = [(name, s.split, f"{s.before.value:.4f}", f"{s.difference.value:+.4f} [{s.difference.low:+.4f}, "
                f"{s.difference.high:+.4f}]", str(s.difference.n))
               for name, rows_ in (("statistics of each frame, not the volume", measured.streaming),
                                   ("arg-max on the small grid, then nearest", measured.label_return)) for s in rows_]
    sets = [(recipe.recipe.name, label, f"{np.mean(recipe.dice(b)):.4f}", f"{recipe.spread(b):.4f}",
             f"{recipe.overlap:.0%}") for recipe in (found["stability"].own, found["stability"].others)
            for b, label in BACKENDS.items()]
    table = [(name, which, f"{np.mean(list(v.values())):.4f}", str(len(v)))
             for name, all_ in found["dice"].items() for which, v in all_.items()]
    machine = document["speed"][next(iter(document["speed"]))]["machine"]
    return "\n".join([
        "# Admission", "", f"Run `{document['run']}`, commit {document['commit']}"
        f"{' with uncommitted changes' if document['changed_files'] else ''}, `{document['command']}`; "
        f"{machine['cpu']}, {machine['cpus_affinity']} CPUs"
        + (", **busy while timing**" if any(b.load["busy"] for b in found["speed"].values()) else "") + ".", "",
        markdown_table(("what", "value", "95 %", "limit", "verdict"), [t.line() for t in rows]),
        f"## Mean Dice on {split}, by calibration frames", "",
        markdown_table(("calibrated on", "file", "mean Dice", "patients"), table),
        "## Gates on dev (calibrated on training frames)", "",
        markdown_table(*(lambda g: (g[0], g[1:]))(gate_rows(measured.admission.gates))),
        "## Ladder", "",
        markdown_table(("rung", "runtime", "dev Dice", "missed"),
                       [(r.rung, r.backend, f"{r.dice:.4f}", ", ".join(r.failed) or "-") for r in measured.ladder]),
        "## Frame graph against the NumPy pipeline, dev frames", "",
        markdown_table(("protocol", "runtime", "precision", "equal labels", "least Dice"), checks),
        "## Core network and frame graph", "",
        markdown_table(("threads", "row", "p50 ms", "p99 ms", "frame / core"),
                       speeds),
        f"## Calibration sets ({split})", "",
        markdown_table(("recipe", "runtime", "mean Dice of the sets", "spread", "frames shared by two sets"), sets),
        "## What changes of the pipeline cost (FP32)", "",
        markdown_table(("change", "split", "Dice before", "difference", "patients"), changes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--frame", default="256x216@1.40625")
    parser.add_argument("--dtype", default="uint16")
    parser.add_argument("--sets", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    open_data(given.data)  # a wrong path is better found now
    found = collect(given)
    rows = targets(found, given.threads[0])
    document = {"schema": "edgeseg.admission/1", **provenance(), "run": given.run.name,
                "targets": [t.document() for t in rows], **found,
                "dice": {name: {file: list(values.values()) for file, values in files.items()}  # no patient's id
                         for name, files in found["dice"].items()},
                "manifest": found["manifest"].model_dump(mode="json"),
                "phantom_admission": found["phantom_admission"].model_dump(mode="json"),
                "stability": found["stability"].document(),
                "speed": {t: b.document() for t, b in found["speed"].items()}}
    write_json(given.out / "admission.json", document)
    write_text(given.out / "admission.md", page(found, rows, document, given.split))
    for t in rows:
        say("   ".join(t.line()))


if __name__ == "__main__":
    main()
