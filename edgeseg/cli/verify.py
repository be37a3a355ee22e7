"""edgeseg verify: does a bundle compute on this machine what it computed where it was built, and how fast."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeseg.cli.options import BundleOrLatest
from edgeseg.errors import GateFailed, Interrupted

if TYPE_CHECKING:
    from edgeseg.measure.verify import Verification

Opt = typer.Option


def verify(
    bundle: BundleOrLatest = None,
    seconds: Annotated[float, Opt(help="counted time of each network")] = 0.25,
    threads: Annotated[int | None, Opt(help="of every network (default: what affinity and quota allow; with "
                                           "another number nothing is kept for precision=auto)")] = None,
    out: Annotated[Path | None, Opt(help="folder for acceptance.json and acceptance.md")] = None,
    record: Annotated[bool, Opt(" /--no-record", help="do not keep the result for precision=auto on this machine",
                                show_default=False)] = True,
    json: Annotated[bool, Opt("--json", help="the last line of stdout is one JSON document")] = False,
) -> None:
    """Check hashes, replay the golden frames in every runtime and precision, and measure; exit code 3 on another
    answer than the building machine's."""
    try:
        from edgeseg.cli.progress import Progress
        from edgeseg.container import latest_bundle
        from edgeseg.measure.document import check_out, one_line
        from edgeseg.measure.verify import verify_bundle

        check_out(out)
        with Progress("starting") as progress:
            result = verify_bundle(bundle or latest_bundle(), seconds, threads, record,
                                   lambda step: progress.bar.update(progress.task, description=step))
    except KeyboardInterrupt:
        raise Interrupted("verify: interrupted: nothing was written") from None
    typer.echo("\n".join(summary(result)))
    if out:
        typer.echo("wrote      " + ", ".join(str(p) for p in write(result, out)))
    if json:
        typer.echo(one_line(result.document()))
    if not result.accepted:
        failed = [r for r in result.replays if r.passed is False]
        first = f"{failed[0].graph} {failed[0].backend} {failed[0].precision}"
        why = f" ({failed[0].failed})" if failed[0].failed else ""
        raise GateFailed(f"{result.bundle}: {len(failed)} of {len(result.replays)} replays failed or differ from the "
                         f"building machine, first {first}{why}: do not use it here; where FP32 differs too, look at "
                         "the installed runtime")


def summary(result: "Verification") -> list[str]:
    """What has to be said, a line each."""
    lines = [f"hashes     {result.files} files are what SHA256SUMS says"]
    for r in result.replays:
        found = r.failed or ("" if r.agreement is None else
                             f"{100 * r.agreement:.3f} % of {r.frames} frames' foreground (least {100 * r.least:g} %)")
        lines.append("replay     " + "  ".join(filter(None, (f"{r.graph} {r.backend} {r.precision}: {r.verdict}", found,
                                                            r.note))))
    for t in result.times:
        there = ("not measured where it was built" if t.ratio is None else
                 f"{t.ratio:.2f} times the {t.build_ms:.2f} ms of the building machine")
        lines.append(f"latency    {t.backend} {t.precision}: {t.here_ms:.2f} ms, {there}")
    if result.speeds is None:
        lines.append("latency    not measured: a network does not run here")
    elif result.speeds.busy:
        lines.append("BUSY       others used this machine meanwhile: do not quote these latencies")
    rate = result.images_per_second
    lines.append("target     10 images/s end to end: " + ("not measured" if rate is None else
                 f"{'reached' if result.target_met else 'MISSED'}, {rate:.1f} (openvino {result.auto['openvino']})"))
    lines.append(f"cpu        {result.machine['cpu']}: " + classes(result))
    lines += [f"version    {name} {here or 'is missing'} here, {build} where it was built"
              for name, (build, here) in result.versions.items()]
    lines.append("auto       " + ", ".join(f"{backend}: {precision}" for backend, precision in result.auto.items()))
    lines.append(f"record     {'kept: ' if result.recorded else 'not kept: '}{result.record_note}")
    lines.append(f"verdict    {'ACCEPTED' if result.accepted else 'REFUSED'}, in {result.seconds_taken:.1f} s")
    return lines


def classes(result: "Verification") -> str:
    """How this CPU's class differs from that of the building machine."""
    here, build = result.here_class, result.build_class
    if build is None:
        return f"{here.cores} core(s); the building machine is not known"
    missing, more = ([f for f in a.isa if f not in b.isa] for a, b in ((build, here), (here, build)))
    said = [f"{here.cores} core(s), {build.cores} where it was built"] if here.cores != build.cores else []
    said += [f"lacks {' '.join(missing)}"] * bool(missing) + [f"has {' '.join(more)} beside"] * bool(more)
    if not said:
        return "the class of the building machine"
    return "another class than the building machine: " + "; ".join(said)


def write(result: "Verification", out: Path) -> list[Path]:
    """acceptance.json and acceptance.md in `out`."""
    from edgeseg.measure.document import write_json, write_text

    return [write_json(out / "acceptance.json", result.document()),
            write_text(out / "acceptance.md", markdown(result))]


def markdown(result: "Verification") -> str:
    """The record on one page, for a person to file. It names no path: where the record lies is left out."""
    lines = [f"# Acceptance of {result.bundle}", "",
             f"**{'Accepted' if result.accepted else 'Refused'}** on {result.date}. "
             f"SHA-256 of its SHA256SUMS: `{result.key}`.", "",
             "| graph | runtime | precision | label agreement | least | verdict |", "|---|---|---|---|---|---|"]
    for r in result.replays:
        agreement = "-" if r.agreement is None else f"{r.agreement:.5f}"
        lines.append(f"| {r.graph} | {r.backend} | {r.precision} | {agreement} | {r.least:g} | "
                     f"{': '.join(filter(None, (r.verdict, r.failed, r.note))).replace('|', '/')} |")
    lines += ["", "| network | ms here | ms where it was built | ratio |", "|---|---|---|---|"]
    for t in result.times:
        lines.append(f"| {t.backend} {t.precision} | {t.here_ms:.2f} | "
                     + (f"{t.build_ms:.2f} | {t.ratio:.2f} |" if t.ratio is not None else "- | - |"))
    kept = ("hashes", "target", "cpu", "version", "auto", "BUSY")
    return "\n".join([*lines, "", *(f"- {line.split(None, 1)[0]}: {line.split(None, 1)[1]}" for line in summary(result)
                                    if line.startswith(kept)), ""])
