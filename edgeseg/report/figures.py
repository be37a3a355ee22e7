"""Figures for reports. matplotlib is imported here only, without a display."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.files import new_file


@dataclass(frozen=True)
class Point:
    """One network in a Dice-versus-latency plot. `low`, `high`: interval of the Dice (NaN: none drawn)."""

    name: str
    ms: float
    dice: float
    low: float = float("nan")
    high: float = float("nan")


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
    figure, axes = new_figure(8, 1.5 + 0.9 * max(1, len(latencies)))
    limit = 1000 / target
    known = {name: ms for name, ms in latencies.items() if len(ms)}
    if known:
        low = min(float(ms.min()) for ms in known.values())
        high = max(limit, *(float(np.percentile(ms, 99.5)) for ms in known.values()))
        edges = np.geomspace(max(low * 0.9, 1e-6), high * 1.1, 120)
        for offset, (name, ms) in enumerate(reversed(known.items())):
            count, _ = np.histogram(ms, edges)
            axes.fill_between(edges[:-1], offset, offset + 0.85 * count / max(count.max(), 1), step="post", alpha=0.7)
            axes.text(edges[0], offset + 0.4, f" {name}: {np.median(ms):.2f} ms", fontsize=8, va="center")
    axes.axvline(limit, color="black", linestyle="--", linewidth=1)
    axes.text(limit, len(known), f" {target:g} images/s", fontsize=8, va="bottom", ha="right")
    axes.set(xscale="log", xlabel="latency of one image, ms", yticks=[], ylim=(0, len(known) + 0.4))
    return save(figure, path)


def dice_versus_latency(path: Path, points: Sequence[Point], title: str = "") -> Path:
    """Dice against latency in ms (logarithmic), with the Dice's intervals."""
    figure, axes = new_figure(7, 4.5)
    for point in points:
        known = np.isfinite([point.low, point.high]).all()
        error = np.maximum([[point.dice - point.low], [point.high - point.dice]], 0) if known else None
        axes.errorbar(point.ms, point.dice, error, fmt="o", capsize=3, label=point.name)
    axes.set(xscale="log", xlabel="network, ms per image", ylabel="mean Dice", title=title)
    axes.grid(alpha=0.3, which="both")
    if points:
        axes.legend(fontsize=8)
    return save(figure, path)
