"""Golden replay: the bundle's phantom frames through every runtime, precision and frame graph on this machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from edgeseg.container import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.manifest import FrameProtocol
from edgeseg.runtime.backends import BACKENDS, CANDIDATES, Backend, load_backend, model_file
from edgeseg.runtime.cpu import native_bf16
from edgeseg.runtime.frame_graph import FrameGraphs, bring, graph_file
from edgeseg.runtime.golden import Golden, label_agreement, replayed

FRAME_GRAPH = 0.995
"""Least label agreement of an FP32 frame graph with the NumPy pipeline on this box: the same arithmetic up to
rounding."""
CORE = "core"


@dataclass(frozen=True)
class Replay:
    """Golden frames through one graph.

    Attributes:
        graph: "core", whose label maps are compared with those that the build box stored, or a frame protocol's name,
            whose maps are compared with those of the core here, on the golden frames brought to the protocol.
        agreement: share of equal labels where either has foreground, over all frames; None when nothing was compared.
        least: what it must reach. worst_frame: the agreement of the frame that has the least.
        failed: why the graph does not run here. note: what else has to be said.
    """

    graph: str
    backend: str
    precision: str
    frames: int
    least: float
    agreement: float | None = None
    worst_frame: float | None = None
    failed: str | None = None
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """None when there was nothing to compare with."""
        if self.failed:
            return False
        return None if self.agreement is None else self.agreement >= self.least

    @property
    def verdict(self) -> str:
        return {True: "agrees", False: "FAILED" if self.failed else "DISAGREES", None: "not compared"}[self.passed]


def replay_all(bundle: Bundle, golden: Sequence[Golden], threads: int, say: Callable[[str], None]) -> list[Replay]:
    """The core in every runtime and precision that the bundle has, bf16 where it is native and admitted, and every
    frame graph."""
    admission, found = bundle.manifest.measured.admission, []
    frames = {p.name: [f for f in (bring(item.frame, item.spacing, p) for item in golden) if f.min() < f.max()]
              for p in bundle.manifest.frames}
    for backend in BACKENDS:
        for precision in CANDIDATES:
            if model_file(backend, precision) not in bundle.files:
                continue
            if precision == "bf16" and not (backend == "openvino" and native_bf16() and admission
                                            and admission.admitted(backend, precision)):
                continue
            say(f"replaying {backend} {precision}")
            path = bundle.file(model_file(backend, precision))
            load = cache(partial(load_backend, backend, path, threads, precision))
            found.append(replay_core(bundle, golden, backend, precision, load))
            found += [replay_frame_graph(bundle, protocol, frames[protocol.name], backend, precision,
                                         golden[0].least_agreement[precision], threads, load)
                      for protocol in bundle.manifest.frames
                      if graph_file(protocol, backend, precision) in bundle.files]
    return sorted(found, key=lambda replay: replay.graph != CORE)


def replay_core(bundle: Bundle, golden: Sequence[Golden], backend: str, precision: str,
                load: Callable[[], Backend]) -> Replay:
    """Golden frames through the core, against the label maps of the build box."""
    key, note = f"{backend} {precision}", ""
    if precision == "bf16" and not all(key in item.labels for item in golden):
        key, note = f"{backend} fp32", "against the stored FP32 maps"
    least = golden[0].least_agreement[precision]
    if missing := sum(key not in item.labels for item in golden):  # nothing would tell a network that is wrong here
        return Replay(CORE, backend, precision, 0, least, note=note, failed="the bundle stores no label map of it for "
                      f"{missing} of {len(golden)} golden frames: export it again")
    try:
        network = load()
        mine = replayed([(item.frame, item.spacing) for item in golden], bundle.preprocessing, network,
                        bundle.manifest.stream is not None)
    except Exception as error:  # whatever a runtime does on a machine that it does not suit is the answer looked for
        return Replay(CORE, backend, precision, len(golden), least, failed=reason(error, bundle), note=note)
    return compare(CORE, backend, precision, mine, [item.labels[key] for item in golden], least, note)


def replay_frame_graph(bundle: Bundle, protocol: FrameProtocol, frames: Sequence[np.ndarray], backend: str,
                       precision: str, least: float, threads: int, load: Callable[[], Backend]) -> Replay:
    """Raw frames [C, H, W] of the protocol's grid and type through its graph, against the core in the NumPy path."""
    least = FRAME_GRAPH if precision == "fp32" else min(least, FRAME_GRAPH)
    if not frames:
        return Replay(protocol.name, backend, precision, 0, least, note="no golden frame has anything in its grid")
    try:
        graph = FrameGraphs(bundle, backend, precision, threads).load(protocol)
        core = load()
        mine = [graph(np.ascontiguousarray(frame[None]))[0] for frame in frames]
        theirs = [bundle.scheme.decode(bundle.preprocessing.segment(f[None].astype(np.float32), protocol.spacing, core,
                                                                    back=protocol.back)) for f in frames]
    except Exception as error:  # see replay_core
        return Replay(protocol.name, backend, precision, len(frames), least, failed=reason(error, bundle))
    return compare(protocol.name, backend, precision, mine, [t[0] for t in theirs], least)


def compare(graph: str, backend: str, precision: str, mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray],
            least: float, note: str = "") -> Replay:
    """Pooled over the frames: in a small apical slice one pixel would be a percent."""
    whole = label_agreement(*(np.concatenate([m.ravel() for m in maps]) for maps in (mine, theirs)))
    worst = min(label_agreement(a, b) for a, b in zip(mine, theirs, strict=True))
    return Replay(graph, backend, precision, len(mine), least, whole, worst, note=note)


def reason(error: Exception, bundle: Bundle) -> str:
    """One line without the place of the bundle, which is nobody's business in a record."""
    line = " ".join(str(error).split()).replace(f"{bundle.path}/", "") or "no message"
    return (line if isinstance(error, EdgesegError) else f"{type(error).__name__}: {line}")[:300]
