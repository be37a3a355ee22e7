"""What stands around the rows of a bench, in lines of text: one function a part."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgeseg.distill.against import PipelineRow
from edgeseg.measure.bench import Bench
from edgeseg.measure.ceilings import Ceilings
from edgeseg.measure.cross_check import CrossCheck
from edgeseg.measure.exam import Exam
from edgeseg.measure.first_frame import FirstFrame
from edgeseg.measure.paced import Paced
from edgeseg.measure.statistics import Interval


def first_frames(found: Mapping[str, FirstFrame], rows: Bench) -> Iterator[str]:
    for name, first in found.items():
        cold = "-" if first.cold_s is None else f"{first.cold_s:.2f} s"
        warm = sorted(first.warm_s)
        yield (f"start    {short(name)}: first mask {warm[len(warm) // 2]:.2f} s after the start of the process "
               f"({warm[0]:.2f} to {warm[-1]:.2f}, n = {len(warm)}), {cold} with its files out of the page cache; "
               f"of it loading {first.load_s:.2f} s, the first call {first.first_s:.3f} s")


def paced(found: Paced, rows: Bench) -> Iterator[str]:
    around = (f", beside {found.stress} busy processes" if found.stress else "") + (
        f", held to {found.quota:g} CPUs" if found.quota is not None else "")
    late = f"worst {found.worst_lateness_ms:.1f} ms late, " if found.missed else ""
    p50, p99, most = (found.latency.p50_ms, found.latency.p99_ms, found.latency.max_ms)
    yield (f"paced    {found.rate:g} frames/s for {found.frames / found.rate:.0f} s{around}: {found.missed} of "
           f"{found.frames} deadlines missed, {late}at most {found.max_queue} waiting; arrival to mask p50 {ms(p50)}, "
           f"p99 {ms(p99)}, max {ms(most)}" + ("" if found.complete else "; interrupted"))


def exam(found: Exam, rows: Bench) -> Iterator[str]:
    for row in found.rows:
        if row.seconds is None:
            yield f"exam     {row.name}: not measured" + (f": {row.failed}" if row.failed else "")
            continue
        faster = f", {times(row.faster)} times as fast" if row.faster else ""
        yield (f"exam     {found.slices} slices x {found.phases} phases, {row.name}, {row.precision.upper()}: "
               f"{row.seconds:.2f} s from file to mask ({min(row.spread):.2f} to {max(row.spread):.2f}, n = "
               f"{len(row.spread)}), {row.images_per_second or 0:.0f} images/s{faster}; network alone "
               f"{row.network_images_per_second or 0:.0f} images/s")


def ceilings(found: Ceilings, rows: Bench) -> Iterator[str]:
    peak = found.peak
    known = {"fp32": peak.fp32_gmacs, "bf16": peak.bf16_gmacs, "int8": peak.int8_gmacs}
    yield (f"ceiling  measured with {peak.threads} thread(s): " + ", ".join(
        f"{p.upper()} {rate:.0f}" for p, rate in known.items() if rate) + f" GMAC/s, {peak.bandwidth_gb_s:.1f} GB/s")
    for name, reached in shares(found, rows).items():
        row = next(r for r in found.rows if r.precision == reached["precision"])
        yield (f"ceiling  {short(name)}: {row.macs / 1e6:.0f} M MAC, {row.bytes / 1e6:.1f} MB moved; roofline "
               f"{row.floor_ms:.2f} ms ({row.bound}), {100 * reached['of_roofline']:.0f} % of it reached; "
               f"{reached['gmacs']:.0f} GMAC/s, {100 * reached['of_peak']:.0f} % of the peak")
        costly = ", ".join(f"{layer.name.partition('/')[0]} ({layer.type}) {layer.ms:.2f} ms {100 * layer.share:.0f} %"
                           for layer in row.cost.layers)
        yield f"layers   {short(name)}: {costly}"


def shares(found: Ceilings, rows: Bench) -> dict[str, dict[str, Any]]:
    """What each OpenVINO row of the student reaches of its ceiling by its median (the network's, same threads)."""
    return {row.name: {"precision": row.precision, "gmacs": limit.gmacs_at(p50), "of_peak": limit.share_of_peak(p50),
                       "of_roofline": limit.share_of_floor(p50)}
            for row in rows.rows
            if row.role == "student" and row.backend == "openvino" and row.threads == found.peak.threads
            and (p50 := row.network.p50_ms) and (limit := found.of(row.precision))}


def cross_check(found: CrossCheck, rows: Bench) -> Iterator[str]:
    middle = sorted(found.theirs_ms)[len(found.theirs_ms) // 2]
    yield (f"check    {found.precision.upper()}, {found.threads} thread(s): ours / benchmark_app = "
           f"{times(found.ratio)}, n = {found.ratio.n} (benchmark_app: {middle:.2f} ms)"
           + (", agrees within 10 %" if found.agrees else f", DIFFERS: {found.why_not}"))


def pipeline(found: tuple[PipelineRow, ...], rows: Bench) -> Iterator[str]:
    for row in found:
        each = "not measured" if row.seconds_per_image is None else (
            f"{row.seconds_per_image:.3f} s an image ({min(row.spread):.3f} to {max(row.spread):.3f}, n = "
            f"{len(row.spread)})")
        whole = "-" if row.seconds_with_start_up is None else f"{row.seconds_with_start_up:.1f} s"
        size = "x".join(map(str, row.input_shape[1:]))
        yield (f"pipeline {row.name}: {each}, {size}, {row.tiles:.1f} tiles and {row.passes:.1f} passes an image; "
               f"start-up and all {row.images} images {whole}")


SAY: dict[str, Callable[[Any, Bench], Iterator[str]]] = {
    "first_frames": first_frames, "paced": paced, "exam": exam, "ceilings": ceilings, "cross_check": cross_check,
    "pipeline": pipeline}
"""In the order in which they are measured."""


def short(name: str) -> str:
    return name.removeprefix("student ")


def ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"


def times(ratio: Interval) -> str:
    """`20.31 [19.80, 20.90]`; one block has no interval."""
    return f"{ratio.value:.2f}" + (f" [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.n > 1 else "")
