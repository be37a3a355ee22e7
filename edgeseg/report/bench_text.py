"""A bench in words: the table, what has to be said under it, and the same as Markdown."""

from collections.abc import Iterator
from math import nan
from pathlib import Path

from edgeseg.measure.bench import Bench, Row
from edgeseg.measure.latency import Latency
from edgeseg.report import figures
from edgeseg.report.bench import FullBench
from edgeseg.report.bench_parts import SAY, short, times

HEADER = ("row", "thr", "part", "p50 ms", "p90 ms", "p99 ms", "images/s", "calls")
HEADER_MORE = ("row", "thr", "p99-p50 ms", "max ms", "p99 <= ms (99 %)", "MB", "peak MB", "mJ/image")


def table_rows(result: Bench) -> list[tuple[str, ...]]:
    """The table as text: two lines for a row that has an end-to-end path, one for a bare network."""
    lines = []
    for row in result.rows:
        name = plain_name(row) + (" FAILED" if row.failed else "")
        lines.append((name, str(row.threads), "network", *numbers(row.network), str(row.network.n)))
        if row.end_to_end:
            lines.append(("", "", "whole", *numbers(row.end_to_end), str(row.end_to_end.n)))
    return lines


def plain_name(row: Row) -> str:
    """Without what another column says."""
    return short(row.name).partition(",")[0]


def more_rows(result: Bench) -> list[tuple[str, ...]]:
    """Tail, memory and energy of each row, end to end where it has such a path."""
    return [(plain_name(row), str(row.threads), *map(number, (
        (of := row.end_to_end or row.network).jitter_ms, of.max_ms, of.p99_bound_ms)),
        *(number(v, 0) for v in (row.rss_mb, row.peak_rss_mb)), number(row.energy_mj, 1)) for row in result.rows]


def numbers(latency: Latency) -> tuple[str, ...]:
    """p50, p90, p99 in ms and images per second; a dash for a percentile with too few calls."""
    return (*map(number, (latency.p50_ms, latency.p90_ms, latency.p99_ms)), number(latency.images_per_second, 1))


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def remarks(result: FullBench) -> list[str]:
    """What has to be said under the table, a line each."""
    rows = result.rows
    machine, load = rows.machine, rows.load
    lines = ["whole    a raw frame in its own grid to its label map; network: the inference alone, input "
             + ", ".join(f"{size} ({', '.join(names)})" for size, names in inputs(rows).items())]
    lines += [f"ratio    the network of {short(row.name)} is " + ", ".join(
        f"{times(r)} times as fast as {short(other)}" for other, r in row.speed_up.items())
        for row in rows.rows if any(r.n for r in row.speed_up.values())]
    counts = ", ".join(map(str, rows.about.get("threads", ())))
    lines += [f"machine  {machine['cpu']}, {machine['cpus_affinity']} CPUs"
              + (f", quota {machine['cpu_quota']:g}" if machine["cpu_quota"] else "")
              + f", {counts} thread(s) a row, not pinned"]
    if not any(r.role == "teacher" for r in rows.rows):
        lines.append("teacher  not given (--against RUN, X.onnx or nnunet:MODEL_FOLDER)")
    lines += [line for part, say in SAY.items() if getattr(result, part) is not None
              for line in say(getattr(result, part), rows)]
    lines += [f"{part.replace('_', ' '):8} not measured: {why}" for part, why in result.missing.items()]
    if load["busy"]:
        lines.append(f"BUSY     others used {percent(load['others_before'])} of the CPUs before and "
                     f"{percent(load['others_during'])} during the run: do not quote these numbers")
    lines += [f"FAILED   {row.name}: {row.failed}" for row in rows.rows if row.failed]
    if not result.complete:
        lines.append("INCOMPLETE  the run was ended early: what stands above is what was measured until then")
    met = {True: "reached", False: "MISSED", None: "not measured"}[rows.target_met]
    lines.append(f"target   {rows.target:g} images/s end to end, {rows.default_row}: {met}")
    return lines


def inputs(rows: Bench) -> dict[str, list[str]]:
    """Input size -> the roles of the networks that take it."""
    found: dict[str, list[str]] = {}
    for row in rows.rows:
        names = found.setdefault("x".join(map(str, row.shape[1:])), [])
        if row.role not in names:
            names.append(row.role)
    return found


def percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{100 * share:.0f} %"


def markdown(result: FullBench) -> str:
    """Both tables and the remarks."""
    return "\n\n".join(["\n".join(table(HEADER, table_rows(result.rows))),
                        "\n".join(table(HEADER_MORE, more_rows(result.rows))), *remarks(result)]) + "\n"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    for line in (header, tuple("---" for _ in header), *rows):
        yield "| " + " | ".join(line) + " |"


def pictures(result: FullBench, out: Path) -> list[Path]:
    """Histograms of every row with the target's line; images per second over threads; Dice over latency."""
    rows = result.rows
    shown = {f"{row.name}, {mode.replace('_', ' ')}": rows.latencies[row.name, mode]
             for row in rows.rows for mode in ("network", "end_to_end") if (row.name, mode) in rows.latencies}
    written = [figures.latency_histograms(out / "bench.png", shown, rows.target)]
    rates: dict[str, dict[int, float]] = {}
    for row in rows.rows:
        if rate := row.network.images_per_second:
            rates.setdefault(row.name.partition(",")[0], {})[row.threads] = rate
    if any(len(found) > 1 for found in rates.values()):
        written.append(figures.thread_scaling(out / "bench_threads.png", rates))
    known, split = result.dice["rows"], result.dice["split"]
    stored = result.ceilings.of("fp32") if result.ceilings else None
    weights = stored.cost.weight_bytes // 4 if stored else None
    points = [figures.Point(row.name, row.network.p50_ms, dice["value"], *ends(dice), weights)
              for row in rows.rows if row.network.p50_ms and (dice := known.get(row.name.partition(",")[0]))]
    if points:
        title = f"{split}, 95 % interval over patients"
        written.append(figures.dice_versus_cost(out / "bench_dice.png", points, title))
    return written


def ends(dice: dict[str, float | None]) -> tuple[float, float]:
    """Of its interval; NaN where it has none."""
    low, high = dice["low"], dice["high"]
    return nan if low is None else low, nan if high is None else high
