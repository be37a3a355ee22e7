"""Verify: does a bundle compute here what it computed on the box that built it, how fast, and what "auto" takes here.

Without torch. The frames are those of golden.npz: phantoms, whose label maps the build box stored for every model file.
A replay that disagrees is a failure; another CPU, other versions and other latencies are told.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg import geometry
from edgeseg.container import MANIFEST, Bundle, open_bundle
from edgeseg.errors import EdgesegError, Interrupted
from edgeseg.manifest import CpuClass, Speeds
from edgeseg.measure import bench, environment
from edgeseg.measure.document import write_json
from edgeseg.measure.replay import Replay, replay_all
from edgeseg.measure.speed import measure_speeds
from edgeseg.runtime.backends import BACKENDS
from edgeseg.runtime.cpu import cpu_class
from edgeseg.runtime.golden import Golden, load_golden
from edgeseg.runtime.precision import LocalRecord, bundle_key, choose_precision, local_record
from edgeseg.runtime.threads import default_threads

SCHEMA = "edgeseg.acceptance/1"
TARGET = 10.0
"""Images per second, end to end: what a live reconstruction needs. Stated, never a reason to refuse."""
SECONDS = 0.25
"""Counted time of each network: with five of them, their start and the replays the whole takes less than 10 s."""


@dataclass(frozen=True)
class NetworkTime:
    """Median latency of a network in ms, here and on the build box (None where it has no such row)."""

    backend: str
    precision: str
    here_ms: float
    build_ms: float | None

    @property
    def ratio(self) -> float | None:
        """Latency here over there: 2 is twice as slow."""
        return self.here_ms / self.build_ms if self.build_ms else None


@dataclass
class Verification:
    """The result.

    Attributes:
        bundle: name of its folder. key: SHA-256 of its SHA256SUMS. files: how many hashes were right.
        versions: package -> (on the build box, here), those that differ.
        build_class: of the box that measured the bundle's speeds, if it did.
        speeds: measured here; None when a network did not run.
        images_per_second: end to end with OpenVINO in the precision that "auto" takes here; None when it did not run.
        auto: what "auto" takes here for each runtime, after this verification.
        recorded: whether this machine's record was written; `record_note`: where, or why not.
    """

    bundle: str
    key: str
    files: int
    frames: int
    replays: tuple[Replay, ...]
    versions: dict[str, tuple[str | None, str | None]]
    here_class: CpuClass
    build_class: CpuClass | None
    speeds: Speeds | None
    times: tuple[NetworkTime, ...]
    images_per_second: float | None
    auto: dict[str, str]
    recorded: bool
    record_note: str
    seconds_taken: float
    machine: dict[str, Any] = field(default_factory=dict)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def accepted(self) -> bool:
        """No replay failed. (A frame graph in whose grid no golden frame has anything is not compared.)"""
        return all(replay.passed is not False for replay in self.replays)

    @property
    def target_met(self) -> bool | None:
        return None if self.images_per_second is None else self.images_per_second >= TARGET

    def document(self) -> dict[str, Any]:
        """acceptance.json. No path, user or host."""
        return {
            "schema": SCHEMA, "date": self.date, "accepted": self.accepted, "bundle": self.bundle,
            "bundle_sha256": self.key, "hashes_checked": self.files, "golden_frames": self.frames,
            "replays": [{**vars(r), "verdict": r.verdict} for r in self.replays],
            "versions_that_differ": {k: {"build": b, "here": h} for k, (b, h) in self.versions.items()},
            "cpu_class": {"build": dump(self.build_class), "here": dump(self.here_class),
                          "equal": None if self.build_class is None else self.build_class == self.here_class},
            "latency": [{**vars(t), "ratio": t.ratio} for t in self.times], "speeds": dump(self.speeds),
            "end_to_end_images_per_second": self.images_per_second, "target_images_per_second": TARGET,
            "target_met": self.target_met, "auto": self.auto, "recorded": self.recorded,
            "seconds_taken": self.seconds_taken, "machine": self.machine}


def dump(part: CpuClass | Speeds | None) -> dict[str, Any] | None:
    return part.model_dump(mode="json") if part else None


def verify_bundle(path: Path, seconds: float = SECONDS, threads: int | None = None, record: bool = True,
                  say: Callable[[str], None] = lambda line: None) -> Verification:
    """Check hashes, replay the golden frames, measure, and (with `record`) tell `precision="auto"` of this machine.

    Args:
        seconds: counted time of each network. threads: of each network; default: what affinity and quota allow. With
            another number nothing is recorded.
        say: called with each step that begins.

    Raises:
        EdgesegError: a damaged bundle or one without golden label maps, bad numbers. Interrupted: by Ctrl-C.
    """
    start = time.monotonic()
    threads = bench.allowed_threads(threads)
    say("checking hashes")
    bundle = open_bundle(path)
    golden = load_golden(bundle.file("golden.npz"))
    if not any(item.labels for item in golden):
        raise EdgesegError(f"{bundle.path / 'golden.npz'}: holds no label map to compare with: export the bundle again")
    replays = tuple(replay_all(bundle, golden, threads, say))
    agreed: dict[str, bool] = {b: all(r.passed is not False for r in replays if r.backend == b) for b in BACKENDS}
    say("measuring")
    try:
        speeds = measure_speeds(bundle.file(MANIFEST).parent, network_inputs(bundle, golden), seconds, threads)
    except Interrupted:
        raise
    except EdgesegError:
        if all(agreed.values()):
            raise
        speeds = None  # a network does not run here: its replay says why
    if not record:
        recorded, note = False, "as asked"
    elif threads != (usual := default_threads()):
        recorded, note = False, (f"measured with {threads} thread(s), and precision=auto goes by what is fastest with "
                                 f"the default, {usual}: verify without --threads")
    else:
        recorded, note = keep(bundle, agreed, speeds)
    auto: dict[str, str] = {backend: choose_precision(bundle, backend) for backend in BACKENDS}
    stored = bundle.manifest.measured.speeds
    return Verification(
        bundle.path.name, bundle_key(bundle), len(bundle.files) - 1, len(golden), replays,
        other_versions(bundle.manifest.versions), cpu_class(), stored.cpu_class if stored else None, speeds,
        network_times(speeds, stored), end_to_end(bundle, golden, auto["openvino"], threads), auto, recorded, note,
        time.monotonic() - start, environment.describe())


def network_inputs(bundle: Bundle, golden: Sequence[Golden]) -> list[np.ndarray]:
    """The golden frames as network inputs float32 [C, gh, gw]: the window around each one's centre."""
    size, canvases = bundle.preprocessing.size, [bundle.preprocessing.to_canvas(g.frame[None], g.spacing)[0]
                                                 for g in golden]
    return [geometry.take_window(c, geometry.centre_start((c.shape[-2], c.shape[-1]), size), size) for c in canvases]


def end_to_end(bundle: Bundle, golden: Sequence[Golden], precision: str, threads: int) -> float | None:
    """Images per second, one after another, from raw golden frame to label map; None when it does not run."""
    from edgeseg.runtime.segmenter import Segmenter

    try:
        segmenter = Segmenter(bundle, "openvino", precision, threads)
        segmenter.warm_up()
    except Exception:  # the replay of this network says why
        return None
    taken = []
    for item in [golden[0], *golden]:
        before = time.perf_counter()
        if not segmenter.segment(item.frame, item.spacing).ok:
            return None
        taken.append(time.perf_counter() - before)
    return 1 / float(np.median(taken[1:]))


def network_times(here: Speeds | None, build: Speeds | None) -> tuple[NetworkTime, ...]:
    there = {(r.backend, r.precision): r.median_ms for r in build.rows} if build else {}
    return tuple(NetworkTime(r.backend, r.precision, r.median_ms, there.get((r.backend, r.precision)))
                 for r in (here.rows if here else ()))


def other_versions(build: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """What runs here in another version than on the build box, of the packages that the runtime needs."""
    return {name: (build[name], environment.installed(name)) for name in environment.PACKAGES
            if name in build and build[name] != environment.installed(name)}


def keep(bundle: Bundle, agreed: dict[str, bool], speeds: Speeds | None) -> tuple[bool, str]:
    """Write this machine's record; whether that worked, and where it is or why not."""
    record = LocalRecord(bundle=bundle_key(bundle), cpu_class=cpu_class(), agreed=agreed, speeds=speeds)
    try:
        return True, str(write_json(local_record(bundle), record.model_dump(mode="json")))
    except (OSError, EdgesegError) as error:
        return False, f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
