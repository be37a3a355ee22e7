"""A bench in words: the table, what has to be said under it, and the same as Markdown."""

from collections.abc import Iterator
from math import nan
from pathlib import Path

from edgeseg.measure.bench import Bench
from edgeseg.measure.environment import is_busy
from edgeseg.measure.latency import Latency
from edgeseg.measure.rows import Row
from edgeseg.report import figures
from edgeseg.report.bench import FullBench
from edgeseg.report.bench_parts import SAY, short, times

HEADER = ("row", "thr", "part", "p50 ms", "p90 ms", "p99 ms", "images/s", "calls")
HEADER_MORE = ("row", "thr", "part", "p50 <=", "p90 <=", "p99 <=", "p99-p50", "max ms")
"""<=: with 99 % confidence the true percentile lies below it (MLPerf's early stopping)."""


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
    """How far the percentiles can be trusted, and the tail."""
    lines = []
    for row in result.rows:
        for first, part, of in ((True, "network", row.network), (False, "whole", row.end_to_end)):
            if of:
                lines.append((plain_name(row) if first else "", str(row.threads) if first else "", part,
                              *map(number, (of.p50_bound_ms, of.p90_bound_ms, of.p99_bound_ms, of.jitter_ms,
                                            of.max_ms))))
    return lines


TABLES = {HEADER: table_rows, HEADER_MORE: more_rows}


def numbers(latency: Latency) -> tuple[str, ...]:
    """p50, p90, p99 in ms and images per second; a dash for a percentile with too few calls."""
    return (*map(number, (latency.p50_ms, latency.p90_ms, latency.p99_ms)), number(latency.images_per_second, 1))


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def remarks(result: FullBench) -> list[str]:
    """What has to be said under the tables, a line each."""
    rows = result.rows
    lines = [f"input    {rows.about.get('input', 'phantom frames')}",
             "whole    a raw frame in its own grid to its label map; network: the inference alone, input "
             + ", ".join(f"{size} ({', '.join(names)})" for size, names in inputs(rows).items()), *ratios(rows),
             *memory(rows), *machine(rows), *not_given(rows)]
    lines += [line for part, say in SAY.items() if getattr(result, part) is not None
              for line in say(getattr(result, part), rows)]
    lines += busy(result)
    lines += [f"FAILED   {line}" for line in result.failures]
    if result.interrupted:
        lines.append("INCOMPLETE  the run was ended early: what stands above is what was measured until then")
    elif not result.complete:
        lines.append("INCOMPLETE  not everything that was asked for was measured")
    met = {True: "reached", False: "MISSED", None: "not measured (too few calls)"}[rows.target_met]
    lines.append(f"target   {rows.target:g} images/s end to end, {rows.default_row}: {met}")
    return lines


def ratios(rows: Bench) -> Iterator[str]:
    """One line a row that is compared: its network, and in brackets the whole where both have it."""
    for row in rows.rows:
        found = [(short(other), r, row.whole_speed_up.get(other)) for other, r in row.speed_up.items() if r.n]
        if found:
            yield f"ratio    {short(row.name)}: network " + ", ".join(
                f"{times(r)} times as fast as {other}" + (f" (whole {times(whole)})" if whole else "")
                for other, r, whole in found)


def memory(rows: Bench) -> Iterator[str]:
    known = [f"{short(r.name)} {r.rss_mb:.0f} (peak {r.peak_rss_mb:.0f})" for r in rows.rows
             if r.rss_mb and r.peak_rss_mb]
    if known:
        yield "memory   resident MB of each process: " + ", ".join(known)
    if energy := [f"{short(r.name)} {r.energy_mj:.1f}" for r in rows.rows if r.energy_mj is not None]:
        yield "energy   mJ of the CPU package for each call of the network: " + ", ".join(energy)


def machine(rows: Bench) -> Iterator[str]:
    about, counts = rows.machine, ", ".join(map(str, rows.about.get("threads", ())))
    pinned = {row.settings.get("ENABLE_CPU_PINNING") for row in rows.rows if row.backend == "openvino"} - {None}
    yield (f"machine  {about['cpu']}, {about['cpus_affinity']} CPUs"
           + (f", quota {about['cpu_quota']:g}" if about["cpu_quota"] else "") + f", {counts} thread(s) a row; threads "
           + (f"pinned by OpenVINO: {', '.join(sorted(map(str, pinned)))}, by no other runtime" if pinned else
              "not pinned"))


def not_given(rows: Bench) -> Iterator[str]:
    if not any(r.role == "teacher" for r in rows.rows):
        yield "teacher  not given (--against RUN, X.onnx or nnunet:MODEL_FOLDER)"
    if not any(r.role == "student" and r.backend == "torch" for r in rows.rows):
        yield "PyTorch  not given (--against RUN, the bundle's own)"


def busy(result: FullBench) -> Iterator[str]:
    load = result.rows.load
    if load["busy"]:
        yield (f"BUSY     others used {percent(load['others_before'])} of the CPUs before and "
               f"{percent(load['others_during'])} during the rows: do not quote these numbers")
    for part, others in result.others.items():
        if is_busy(others):
            yield f"BUSY     others used {percent(others)} of the CPUs during {part.replace('_', ' ')}"


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
    return "\n\n".join([*("\n".join(table(h, lines(result.rows))) for h, lines in TABLES.items()),
                        *remarks(result)]) + "\n"


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
