"""What limits the headline: which slices cost the Dice, how training went, where the time of a frame goes.

    python benchmarks/headline_limits.py --bundle cine --teacher nnunet:FOLDER --data acdc:DIR --work runs/headline \
        --run runs/headline/distilled-0 --run runs/headline/plain-0

Dice slice by slice on split `val` of the student and of the teacher (mirroring on; what headline.py left in --work),
over the place of the slice from base to apex; the ten slices where the student loses most, without an image and without
a name; the runs' learning curves on dev; and the layers of the frame graph by time, in OpenVINO on one thread. Writes
headline_limits.json, .md and .png. Nothing is chosen here.
"""

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import HERE, labels_folder, markdown_table, provenance

from edgeseg.container import Bundle, open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.measure.document import check_out, write_json, write_text
from edgeseg.measure.environment import describe
from edgeseg.measure.overlap import dice
from edgeseg.readers import open_data
from edgeseg.report.figures import save
from edgeseg.runtime.frame_graph import graph_file
from edgeseg.runtime.segmenter import Segmenter

WORST, CALLS = 10, 100
PLACES = ("base", "middle", "apex")


def slices_of(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a slice and structure that the experts or a network see: Dice of both, area in mm2, place 0..1."""
    segmenter, rows = Segmenter(given.bundle, precision="int8"), []
    scheme, names = segmenter.scheme, segmenter.scheme.foreground
    stored = labels_folder(given.work / "teacher-labels", given.teacher, given.data, "mirror")
    for number, case in enumerate(open_data(given.data).select("val"), 1):
        assert case.labels is not None
        own = segmenter.segment_case(case)
        truth = scheme.encode(case.labels, case.scheme)
        with np.load(stored / f"{case.id}.npz") as kept:
            teacher = scheme.encode(kept["labels"], LabelScheme(tuple(map(str, kept["names"]))))
        seen = np.flatnonzero((truth > 0).any((1, 2)))
        for z in range(len(truth)):
            for k, name in enumerate(names, 1):
                masks = [x[z] == k for x in (truth, own, teacher)]
                if any(m.any() for m in masks):
                    place = (z - seen[0]) / max(1, seen[-1] - seen[0])
                    rows.append({"volume": number, "structure": name, "place": float(place),
                                 "area_mm2": float(masks[0].sum() * np.prod(case.spacing)),
                                 "student": dice(masks[1], masks[0]), "teacher": dice(masks[2], masks[0])})
    return rows


def place_name(place: float) -> str:
    if not 0 <= place <= 1:
        return "outside"
    return PLACES[min(2, int(place * 3))]


def by_place(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Mean Dice of student and teacher over slices, structure by structure, and each part's share of the loss."""
    total, lines = sum(r["teacher"] - r["student"] for r in rows), []
    for structure in dict.fromkeys(r["structure"] for r in rows):
        for place in (*PLACES, "outside"):
            part = [r for r in rows if r["structure"] == structure and place_name(r["place"]) == place]
            if part:
                own, teacher = (float(np.mean([r[k] for r in part])) for k in ("student", "teacher"))
                share = sum(r["teacher"] - r["student"] for r in part) / total if total else float("nan")
                lines.append([structure, place, str(len(part)), f"{own:.3f}", f"{teacher:.3f}", f"{share:+.0%}"])
    return lines


def curves(runs: list[Path]) -> dict[str, list[tuple[int, float]]]:
    """Run -> (epoch, dev Dice)."""
    found = {}
    for run in runs:
        with (run / "metrics.csv").open() as file:
            rows = [(int(r["epoch"]), float(r["dev_dice_mean"])) for r in csv.DictReader(file) if r["dev_dice_mean"]]
        found[run.name] = rows
    return found


def profile(bundle: Bundle) -> list[tuple[str, float, int]]:
    """(what the CPU plugin ran, microseconds a frame, layers) of the first INT8 frame graph, the longest first: medians
    of single layers over CALLS calls on one thread."""
    import openvino as ov

    if not bundle.manifest.frames:
        return []
    protocol = bundle.manifest.frames[0]
    model = ov.Core().compile_model(str(bundle.file(graph_file(protocol, "openvino", "int8"))), "CPU", {
        "PERF_COUNT": True, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    request = model.create_infer_request()
    tensor = request.get_input_tensor(0)
    tensor.data[...] = np.random.default_rng(0).integers(1, 500, tensor.data.shape)
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(CALLS):
        request.infer()
        for layer in request.profiling_info:
            times.setdefault((layer.node_name, f"{layer.node_type} ({layer.exec_type})"), []).append(
                layer.real_time.total_seconds() * 1e6)
    total: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for (_, kind), values in times.items():
        if (middle := float(np.median(values))) > 0:
            total[kind] += middle
            count[kind] += 1
    return [(kind, us, count[kind]) for kind, us in total.most_common()]


def plot(path: Path, rows: list[dict[str, Any]], trained: dict[str, list[tuple[int, float]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    structures = list(dict.fromkeys(r["structure"] for r in rows))
    figure = Figure(figsize=(4 * (len(structures) + bool(trained)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(structures) + bool(trained), squeeze=False)[0]
    for axes, structure in zip(panels, structures, strict=False):
        part = [r for r in rows if r["structure"] == structure]
        for who, marker in (("teacher", "x"), ("student", ".")):
            axes.plot([r["place"] for r in part], [r[who] for r in part], marker, label=who, alpha=0.6)
        axes.set(title=structure, xlabel="place of the slice: 0 base, 1 apex", ylabel="Dice of the slice",
                 ylim=(-0.03, 1.03))
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    if trained:
        for name, values in trained.items():
            panels[-1].plot(*zip(*values, strict=True), ".-", label=name)
        panels[-1].set(title="training", xlabel="epoch", ylabel="Dice on dev")
        panels[-1].legend(fontsize=8)
        panels[-1].grid(alpha=0.3)
    save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--teacher", required=True, help="nnunet:FOLDER, as headline.py was given it")
    parser.add_argument("--data", required=True, help="acdc:DIR, as headline.py was given it")
    parser.add_argument("--work", type=Path, required=True, help="of headline.py")
    parser.add_argument("--run", type=Path, action="append", default=[], help="runs whose learning curves are shown")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args(arguments)
    check_out(given.out)
    bundle, trained = open_bundle(given.bundle), curves(given.run)
    rows, layers = slices_of(given), profile(open_bundle(given.bundle))
    worst = sorted(rows, key=lambda r: r["student"] - r["teacher"])[:WORST]
    total = sum(us for _, us, _ in layers)
    document = {"schema": "edgeseg.headline_limits/1", **provenance(), "bundle": bundle.path.name,
                "machine": describe(), "slices": rows, "worst": worst, "curves": trained, "layers": layers}
    write_json(given.out / "headline_limits.json", document)
    text = "\n".join([
        "# What limits the headline", "", f"`{document['command']}`, commit {document['commit']}; bundle "
        f"`{bundle.path.name}`.", "", "![Dice by slice](headline_limits.png)", "",
        "## Where the Dice is lost, slice by slice", "",
        "Means over slices (not over patients as in headline.md, so small apical slices count as much as large ones). "
        "`outside`: slices in which the experts drew nothing. Share: of the whole difference to the teacher.", "",
        markdown_table(["structure", "place", "slices", "student", "teacher", "share"], by_place(rows)),
        f"## The {WORST} slices where the student loses most", "",
        markdown_table(["volume", "structure", "place, 0 base to 1 apex", "area, mm2", "student", "teacher"], [
            [str(r["volume"]), r["structure"], f"{r['place']:.2f}", f"{r['area_mm2']:.0f}", f"{r['student']:.3f}",
             f"{r['teacher']:.3f}"] for r in worst]),
        f"## Where the time goes: one frame on one thread, {total / 1000:.2f} ms in layers", "",
        markdown_table(["layer (how the CPU plugin ran it)", "layers", "microseconds", "share"], [
            [kind, str(n), f"{us:.0f}", f"{us / total:.0%}"] for kind, us, n in layers if us > total / 100])])
    write_text(given.out / "headline_limits.md", text)
    plot(given.out / "headline_limits.png", rows, trained)
    print(f"wrote    {given.out / 'headline_limits.md'}")


if __name__ == "__main__":
    try:
        main()
    except EdgesegError as error:
        sys.exit(f"headline_limits: {error}")
