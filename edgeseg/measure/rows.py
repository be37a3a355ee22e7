"""A row of a bench: what is asked for, and what its turns make of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeseg.measure import latency, statistics
from edgeseg.measure.latency import Latency
from edgeseg.measure.statistics import Interval
from edgeseg.measure.turns import DISCARD, Block, Job, Turns


@dataclass(frozen=True)
class RowSpec:
    """A row that is asked for. `faster_than` names the rows to which its network is compared."""

    name: str
    role: Literal["student", "teacher", "harness"]
    job: Job
    faster_than: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A measured row.

    Attributes:
        shape: the network's input [1, C, H, W].
        network: latency of the network alone. end_to_end: raw native frame to label map (None where the row has no
            such path, as a bare network file).
        speed_up: other row -> how many times faster this network is. whole_speed_up: the same, end to end, for rows
            that both have such a path.
        target_met: end-to-end (else network) images per second reach the target; None when not measured.
        torch: whether torch was in the process (only of a PyTorch row). settings: what the runtime says it runs with.
        load_ms: opening model and runtime. first_ms: the first call after it.
        rss_mb: resident memory while it worked (median over blocks). peak_rss_mb: the most it ever was.
        energy_mj: of the whole CPU package for each call of the network, where the system tells (RAPL).
        failed: why the row ended in the middle, else None.
    """

    name: str
    role: str
    backend: str
    precision: str
    file: str
    threads: int
    shape: tuple[int, ...]
    network: Latency
    end_to_end: Latency | None
    speed_up: dict[str, Interval]
    whole_speed_up: dict[str, Interval]
    target_met: bool | None
    load_ms: float
    first_ms: float
    peak_rss_mb: float | None
    rss_mb: float | None
    energy_mj: float | None
    torch: bool
    settings: dict[str, str]
    blocks: dict[str, list[dict[str, float]]]
    failed: str | None = None

    @property
    def images_per_second(self) -> float | None:
        """End to end where there is such a path, else of the network."""
        return (self.end_to_end or self.network).images_per_second


def summarise(spec: RowSpec, ready: dict[str, Any], taken: Turns, target: float) -> Row:
    network = latency.summarise(joined(taken, spec.name, "network"))
    whole = latency.summarise(joined(taken, spec.name, "end_to_end")) if "end_to_end" in ready["modes"] else None
    rate = (whole or network).images_per_second
    own = [b for b in taken.blocks if b.row == spec.name]
    return Row(
        spec.name, spec.role, spec.job.backend, spec.job.precision, Path(spec.job.path).name, spec.job.threads,
        tuple(ready["shape"]), network, whole,
        {other: speed_up(taken, spec.name, other, "network") for other in spec.faster_than},
        {other: found for other in spec.faster_than if (found := speed_up(taken, spec.name, other, "end_to_end")).n},
        rate >= target if rate else None, ready["load_ms"], ready["first_ms"],
        max((b.peak_rss_mb for b in own if b.peak_rss_mb), default=None), median([b.rss_mb for b in own]),
        energy_per_call(taken.of(spec.name, "network")), ready["torch"], ready["runtime"],
        {mode: [{"round": b.round, "calls": len(b.ms), "median_ms": float(np.median(b.ms))}
                for b in taken.of(spec.name, mode)] for mode in ready["modes"]},
        taken.failed.get(spec.name))


def median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def energy_per_call(blocks: Sequence[Block]) -> float | None:
    """Millijoules of the package for each call, those that are not timed too, what idles beside it included."""
    known = [(b.energy_j, len(b.ms) + DISCARD) for b in blocks if b.energy_j is not None]
    return 1000 * sum(j for j, _ in known) / sum(n for _, n in known) if known else None


def speed_up(taken: Turns, row: str, other: str, mode: str) -> Interval:
    """How many times faster `row` is than `other`, paired by round."""
    mine, theirs = ({b.round: float(np.median(b.ms)) for b in taken.of(name, mode)} for name in (row, other))
    both = sorted(mine.keys() & theirs.keys())
    return statistics.ratio_interval([theirs[r] for r in both], [mine[r] for r in both])


def joined(taken: Turns, row: str, mode: str) -> np.ndarray:
    found = [b.ms for b in taken.of(row, mode)]
    return np.concatenate(found) if found else np.empty(0)
