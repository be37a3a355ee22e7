"""What stands around the rows of a bench, in lines of text: one function a part."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgeseg.distill.pipeline import FilesToMasks, Pipeline
from edgeseg.measure.bench import Bench
from edgeseg.measure.ceilings import STUDENT, Ceilings, Reached
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
               f"{len(row.spread)}), {row.images_per_second or 0:.0f} images/s{faster}, "
               f"{row.cpu_s or 0:.2f} s of CPU; network alone "
               f"{row.network_images_per_second or 0:.0f} images/s")


def ceilings(found: Ceilings, rows: Bench) -> Iterator[str]:
    for peak in found.peaks:
        known = {"fp32": peak.fp32_gmacs, "bf16": peak.bf16_gmacs, "int8": peak.int8_gmacs}
        yield (f"ceiling  this CPU with {peak.threads} thread(s), measured: " + ", ".join(
            f"{p.upper()} {rate:.0f}" for p, rate in known.items() if rate)
            + f" GMAC/s, {peak.bandwidth_gb_s:.1f} GB/s")
    for row in found.rows:
        yield (f"ceiling  {row.network} {row.precision.upper()}: {row.macs / 1e6:.0f} M MAC, {row.bytes / 1e6:.1f} MB "
               "moved; roofline " + ", ".join(f"{f.ms:.2f} ms with {f.threads} thread(s) ({f.bound})"
                                              for f in row.floors))
    if shares := reached(found, rows):
        yield "reached  of the roofline (of the arithmetic peak): " + ", ".join(
            f"{short(name)} {100 * r.of_roofline:.0f} % ({100 * r.of_peak:.0f} %)" for name, r in shares.items())
        yield "reached  above 100 % where activations stay in a cache: memory is no strict bound, arithmetic is"
    for row in found.rows:
        costly = ", ".join(f"{layer.name.partition('/')[0]} ({layer.type}) {layer.ms:.2f} ms {100 * layer.share:.0f} %"
                           for layer in row.cost.layers)
        yield f"layers   {row.network} {row.precision.upper()}: {costly}"


def reached(found: Ceilings, rows: Bench) -> dict[str, Reached]:
    """What each row's network reaches of this CPU's ceiling by its median."""
    return {row.name: share for row in rows.rows
            if (share := found.reached(STUDENT if row.role == "student" else row.name.partition(",")[0], row.precision,
                                       row.threads, row.network.p50_ms))}


def cross_check(found: CrossCheck, rows: Bench) -> Iterator[str]:
    middle = sorted(found.theirs_ms)[len(found.theirs_ms) // 2]
    yield (f"check    {found.precision.upper()}, {found.threads} thread(s): ours / benchmark_app = "
           f"{times(found.ratio)}, n = {found.ratio.n} (benchmark_app: {middle:.2f} ms)"
           + (", agrees within 10 %" if found.agrees else f", DIFFERS: {found.why_not}"))


def pipeline(found: Pipeline, rows: Bench) -> Iterator[str]:
    yield (f"files    {found.images} images in {found.cases} files to masks, {found.threads} thread(s); student "
           f"{found.precision.upper()}: {files_to_masks(found.student)}")
    for row in found.rows:
        size = "x".join(map(str, row.input_shape[1:]))
        yield (f"files    {row.name}: {files_to_masks(row)}, {size}, {row.tiles:.1f} tiles and {row.passes:.1f} passes "
               "an image" + "".join(f"; the student is {times(ratio)} times as fast{what}, n = {ratio.n}"
                                    for ratio, what in ((row.faster, ""), (row.faster_with_start_up, " with start-up"))
                                    if ratio))


def files_to_masks(found: FilesToMasks) -> str:
    each = "not measured" if found.seconds_per_image is None else (
        f"{1000 * found.seconds_per_image:.1f} ms an image ({1000 * min(found.spread):.1f} to "
        f"{1000 * max(found.spread):.1f}, n = {len(found.spread)})")
    return each + (f", {found.seconds_with_start_up:.1f} s for all with start-up (n = {len(found.starts)})"
                   if found.seconds_with_start_up is not None else "")


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
