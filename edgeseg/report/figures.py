"""Figures for reports. matplotlib is imported here only, without a display."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.files import new_file


@dataclass(frozen=True)
class Point:
    """One network in a plot of Dice against its cost. `low`, `high`: interval of the Dice (NaN: none drawn)."""

    name: str
    ms: float
    dice: float
    low: float = float("nan")
    high: float = float("nan")
    parameters: int | None = None


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: nothing global, no display
    return figure, figure.add_subplot()


def save(figure: Any, path: Path) -> Path:
    """Write a PNG beside `path`, then rename."""
    with new_file(path) as part:
        figure.savefig(part, format="png", dpi=120, metadata={"Software": None})
    return path


def latency_histograms(path: Path, latencies: Mapping[str, np.ndarray], target: float) -> Path:
    """Histogram of single-image latencies in ms for each name, with the line at which `target` images a second lie."""
    figure, axes = new_figure(9, 1.2 + 0.6 * max(1, len(latencies)))
    limit = 1000 / target
    known = {name: ms for name, ms in latencies.items() if len(ms)}
    if known:
        low = min(float(ms.min()) for ms in known.values())
        high = max(limit, *(float(np.percentile(ms, 99.5)) for ms in known.values()))
        edges = np.geomspace(max(low * 0.9, 1e-6), high * 1.1, 120)
        for offset, ms in enumerate(reversed(known.values())):
            count, _ = np.histogram(ms, edges)
            axes.fill_between(edges[:-1], offset, offset + 0.85 * count / max(count.max(), 1), step="post", alpha=0.7)
    axes.axvline(limit, color="black", linestyle="--", linewidth=1)
    axes.text(limit, len(known), f"{target:g} images/s ", fontsize=8, va="bottom", ha="right")
    axes.set(xscale="log", xlabel="latency of one image, ms", ylim=(0, len(known) + 0.4))
    axes.set_yticks(np.arange(len(known)) + 0.4, [f"{name}\n{np.median(ms):.2f} ms" for name, ms in
                                                  reversed(known.items())], fontsize=8)
    axes.tick_params(axis="y", length=0)
    plain_numbers(axes.xaxis)
    return save(figure, path)


def plain_numbers(axis: Any) -> None:
    """2, 5, 10 on a logarithmic axis instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def dice_versus_cost(path: Path, points: Sequence[Point], title: str = "") -> Path:
    """Dice, with its intervals, against latency in ms and, where it is known, against the number of parameters."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sized = [p for p in points if p.parameters]
    figure = Figure(figsize=(11 if sized else 7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [("network, ms per image", points, lambda p: p.ms),
              *([("parameters, millions", sized, lambda p: p.parameters / 1e6)] if sized else [])]
    for axes, (label, shown, cost) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, point in enumerate(shown):
            known = np.isfinite([point.low, point.high]).all()
            error = np.maximum([[point.dice - point.low], [point.high - point.dice]], 0) if known else None
            axes.errorbar(cost(point), point.dice, error, fmt="o", capsize=3, label=point.name,
                          color=colormaps["tab20"](number % 20))
        axes.set(xscale="log", xlabel=label, ylabel="mean Dice", title=title)
        axes.grid(alpha=0.3, which="both")
        plain_numbers(axes.xaxis)
    if points:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return save(figure, path)


def thread_scaling(path: Path, rates: Mapping[str, Mapping[int, float]]) -> Path:
    """Images per second of each name against the number of threads; a thin line shows perfect scaling."""
    figure, axes = new_figure(7, 4.5)
    for name, found in rates.items():
        counts = sorted(found)
        line, = axes.plot(counts, [found[n] for n in counts], "o-", label=name)
        axes.plot(counts, [found[counts[0]] * n / counts[0] for n in counts], ":", color=line.get_color(), linewidth=1)
    axes.set(xlabel="threads", ylabel="images per second", yscale="log",
             xticks=sorted({n for found in rates.values() for n in found}))
    plain_numbers(axes.yaxis)
    axes.grid(alpha=0.3, which="both")
    if rates:
        axes.legend(fontsize=8)
    return save(figure, path)
