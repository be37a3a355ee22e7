"""A search in words and as a picture: who was trained, how far each came, and the front of latency and dev Dice."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeseg.report.figures import save

HEADER = ("name", "ms", "one thread", "params", "MACs", "rung", "dev Dice", "front", "student")
Document = Mapping[str, Any]


def trained_rows(document: Document) -> list[tuple[str, ...]]:
    """One line for each trained candidate, who came farthest first; Dice only compares within a rung."""
    measured = {row["name"]: row for row in document["latency"]}
    rungs, seen = document["rungs"], set()
    lines: list[tuple[str, ...]] = []
    for number, rung in reversed(list(enumerate(rungs, 1))):
        for row in rung["rows"]:
            if (name := row["name"]) in seen:
                continue
            seen.add(name)
            about = measured[name]
            counts = list(about["threads"].values())
            fronts = [str(k) for k, r in enumerate(rungs, 1) if name in r["front"]]
            lines.append((name + ("*" if name == document["winner"] else ""), f"{about['ms']:.2f}",
                          f"{counts[0]['ms']:.2f}", f"{about['parameters'] / 1e6:.2f} M",
                          f"{about['macs'] / 1e6:.0f} M", f"{number}", dice(row), ",".join(fronts) or "-",
                          about["text"]))
    return lines


def dice(row: Mapping[str, Any]) -> str:
    return "failed" if row["dice"] is None else f"{row['dice']:.4f}"


def remarks(document: Document) -> list[str]:
    """What has to be said under the table."""
    about, last = document["about"], document["rungs"][-1]
    recipe, threads = about["recipe"], about["recipe"]["threads"]
    clock = about["reference"][str(threads[-1])]
    best = next(r for r in last["rows"] if r["name"] == document["winner"])
    lines = [f"winner   {best['name']}: dev Dice {best['dice']:.4f} after {last['epochs']} epochs at {best['ms']:.2f} "
             f"ms ({threads[-1]} threads, limit {recipe['max_latency']:g} ms)",
             "front    in a rung nobody is as fast and better; Dice of different rungs does not compare",
             f"clock    every ms is a ratio to {about['reference']['text']} in blocks beside it, times its median "
             f"{clock['ms']:.2f} ms (over the search 80 % lay in {clock['p10']:.2f} to {clock['p90']:.2f})"]
    if about["busy"]:
        lines.append(f"caution  others used {about['others']['median']:.0%} of the CPUs (median over candidates) while "
                     "latencies were measured")
    if failed := [r for r in document["latency"] if "failed" in r]:
        lines.append(f"failed   {len(failed)} candidates could not be measured, the first {failed[0]['name']}")
    return lines


def markdown(document: Document) -> str:
    """The whole search as a page."""
    about = document["about"]
    recipe, machine = about["recipe"], about["machine"]
    measured = [r for r in document["latency"] if "failed" not in r]
    fast = [r for r in measured if r["ms"] <= recipe["max_latency"]]
    what = f"the whole frame {recipe['frame']} {recipe['dtype']}" if recipe["frame"] else "the network alone"
    lines = ["# Search", "", f"{len(measured)} candidates measured as INT8 OpenVINO graphs ({what}) on "
             f"{machine['cpu']}, {len(fast)} of them at most {recipe['max_latency']:g} ms on {recipe['threads'][-1]} "
             f"threads. Accuracy is mean dev Dice ({about['data']['name']}, {about['data']['splits']['dev']} patients) "
             "after a short distillation; each rung starts anew with a one-cycle schedule of its own length. "
             f"Seed {recipe['seed']}.", "", *(f"- {r}" for r in remarks(document)), "",
             table(HEADER, trained_rows(document)), ""]
    for number, rung in enumerate(document["rungs"], 1):
        discarded = ", ".join(rung["discarded"]) or "nobody"
        end = "" if number == len(document["rungs"]) else f" Discarded: {discarded}."
        lines += [f"## Rung {number}: {len(rung['rows'])} candidates, {rung['epochs']} epochs", "",
                  f"Front, fastest first: {', '.join(rung['front'])}.{end}", "",
                  table(("name", "ms", "dev Dice", "taken because"), [
                      (r["name"], f"{r['ms']:.2f}", dice(r), r["why"])
                      for r in rung["rows"]]), ""]
    rows = [(r["name"], "; ".join(f"{t['ms']:.2f} [{t['low']:.2f}, {t['high']:.2f}]" for t in r["threads"].values()),
             f"{r['parameters'] / 1e6:.3f} M", f"{r['macs'] / 1e6:.0f} M", r["text"]) for r in measured]
    ms = f"ms on {' and '.join(map(str, recipe['threads']))} threads [95 %]"
    lines += ["## Every latency", "", table(("name", ms, "params", "MACs", "student"), rows)]
    return "\n".join(lines)


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in line) + " |"
                     for line in (header, ("---",) * len(header), *rows)) + "\n"


def picture(path: Path, document: Document) -> Path:
    """Left: all latencies against multiply-accumulates. Right: dev Dice against latency, one colour a rung."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    limit = document["about"]["recipe"]["max_latency"]
    measured = [r for r in document["latency"] if "failed" not in r]
    for family, marker in (("dense", "o"), ("mobilenetv2", "^")):
        if rows := [r for r in measured if r["student"] == family]:
            left.scatter([r["ms"] for r in rows], [r["macs"] / 1e6 for r in rows], s=16, marker=marker, alpha=0.6,
                         label=f"{family} ({len(rows)})")
    left.set(xscale="log", yscale="log", xlabel=f"ms of one frame, INT8, {threads_of(document)} threads",
             ylabel="million multiply-accumulates", title="measured")
    controls = {r["name"] for r in measured if r["control"]}
    for number, rung in enumerate(document["rungs"], 1):
        rows = [r for r in rung["rows"] if r["dice"] is not None]
        points = {r["name"]: (r["ms"], r["dice"]) for r in rows}
        dots = right.scatter([r["ms"] for r in rows], [r["dice"] for r in rows], s=22,
                             label=f"rung {number}: {len(rows)} x {rung['epochs']} epochs")
        colour = dots.get_facecolor()[0]
        front = [points[n] for n in rung["front"]]
        right.step(*zip(*front, strict=True), where="post", color=colour, linewidth=1)
        for name in controls & points.keys():
            right.scatter(*points[name], s=70, facecolors="none", edgecolors="black")
    for row in document["rungs"][-1]["rows"]:
        if row["dice"] is not None:
            winner = row["name"] == document["winner"]
            right.annotate(row["name"], (row["ms"], row["dice"]), xytext=(0, 7), textcoords="offset points", fontsize=8,
                           ha="center", weight="bold" if winner else "normal")
    if controls:
        right.scatter([], [], s=70, facecolors="none", edgecolors="black", label="made by hand")
    right.set(xlabel=f"ms of one frame, INT8, {threads_of(document)} threads", ylabel="mean dev Dice",
              title="trained (lines: Pareto fronts)")
    right.margins(x=0.12)
    left.legend(fontsize=8, loc="lower right")
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=3)
    for axes in (left, right):
        axes.axvline(limit, color="black", linestyle="--", linewidth=1)
        axes.grid(alpha=0.3, which="both")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    return save(figure, path)


def threads_of(document: Document) -> int:
    return document["about"]["recipe"]["threads"][-1]
