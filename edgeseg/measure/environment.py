"""The machine that a measurement was made on, and who else was using it."""

import os
import platform
import re
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeseg.runtime import threads
from edgeseg.runtime.cpu import cpu_class, cpu_info

PACKAGES = ("edgeseg", "numpy", "openvino", "onnxruntime", "opencv-python-headless", "scipy")
"""What the runtime needs."""
TRAINING = ("torch", "nnunetv2")
"""What rows beside the bundle's run with; only asked for their versions, never imported."""
BUSY_SHARE = 0.10
"""A machine is called busy when others use more than this share of the CPUs that this process may use."""
PROC = Path("/proc")
POWER = Path("/sys/class/powercap")
MEMORY_FILES = (("memory.max", "memory.current", "inactive_file"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
"""Of a cgroup, v2 and v1: its limit, what it uses, and how much of this is page cache that goes first (memory.stat)."""


def describe() -> dict[str, Any]:
    """CPU and its class, cores and limits, governor, operating system, versions. No host or user name."""
    info = cpu_info()
    return {
        "cpu": cpu_name(),
        "cpu_family_model_stepping": [info.get(k) for k in ("cpu family", "model", "stepping")],
        "cpu_class": cpu_class().model_dump(mode="json"),
        "hypervisor": "hypervisor" in info.get("flags", "").split(),
        "cpus_visible": os.cpu_count(),
        "cpus_affinity": len(threads.allowed_cpus()),
        "cpu_quota": threads.cpu_quota(),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "frequency_khz": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or None,
        "memory_gb": memory_gb(),
        "os": system_name(platform.system(), platform.release()),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES + TRAINING},
        "torch_in_process": "torch" in sys.modules,
    }


def cpu_name() -> str:
    """What the CPU calls itself."""
    return cpu_info().get("model name") or platform.processor() or platform.machine()


def system_name(system: str, release: str) -> str:
    """Name and major.minor of a kernel: what follows ("6.8.0-45-acme") may name whoever built it."""
    number = re.match(r"\d+(\.\d+)?", release)
    return f"{system} {number[0]}" if number else system


def memory_gb() -> float | None:
    memory = physical_memory()
    return None if memory is None else round(memory / 2**30, 1)


def physical_memory() -> int | None:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def available_memory(process: Path = threads.CGROUP_OF_PROCESS, root: Path = threads.CGROUPS,
                     meminfo: Path = PROC / "meminfo") -> int | None:
    """Bytes that this process can still take: what the machine has available (all of it where it does not say) and what
    its cgroup (v1 or v2) and those above it have left, whichever is least. None where nothing is known."""
    free = re.search(r"^MemAvailable:\s*(\d+) kB", read(meminfo) or "", re.MULTILINE)
    known = [int(free[1]) * 1024 if free else physical_memory()]
    for line in (read(process) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        mounts = ([root] if not controllers
                  else [root / controllers, root / "memory"] if "memory" in controllers.split(",") else [])
        for mount in mounts:  # inside a container the path may be the host's: the mount itself then is its own group
            group = mount / path.lstrip("/")
            known += [memory_left(folder) for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return min((k for k in known if k is not None), default=None)


def memory_left(group: Path) -> int | None:
    """Bytes below the limit of one cgroup folder, None without one; page cache that goes first counts as left."""
    for most, used, cache in MEMORY_FILES:
        limit, now = read(group / most) or "", read(group / used) or ""
        if limit.isdigit() and now.isdigit():  # "max": no limit
            stat = dict(line.split()[:2] for line in (read(group / "memory.stat") or "").splitlines())
            return max(0, int(limit) - int(now) + int(stat.get(cache, 0)))
    return None


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def read(path: str | Path) -> str | None:
    """The stripped text of a small system file, or None where it cannot be read."""
    try:
        return Path(path).read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def energy_uj(root: Path = POWER) -> int | None:
    """What all CPU packages have used, everybody's work included, in microjoules; it starts anew from 0 now and then.

    None where RAPL is not there or not to be read (many systems keep it for root).
    """
    packages = [zone for zone in root.glob("intel-rapl:*") if (read(zone / "name") or "").startswith("package")]
    counters = [read(zone / "energy_uj") for zone in packages]
    return sum(int(c) for c in counters if c) if counters and all(counters) else None


@dataclass(frozen=True)
class Snapshot:
    """Seconds that the allowed CPUs have spent not idle since boot (None where unknown), at `time` (monotonic, s)."""

    time: float
    busy: float | None
    stolen: float | None


def snapshot() -> Snapshot:
    """Read /proc/stat for the CPUs of this process."""
    allowed = {f"cpu{i}" for i in threads.allowed_cpus()}
    lines = [line.split() for line in (read(PROC / "stat") or "").splitlines()]
    ticks = [[int(v) for v in line[1:9]] for line in lines if line[0] in allowed]
    if not ticks or any(len(t) < 8 for t in ticks) or not any(map(any, ticks)):
        return Snapshot(time.monotonic(), None, None)
    hertz = os.sysconf("SC_CLK_TCK")
    # user nice system idle iowait irq softirq steal; guests are inside user
    busy = sum(sum(t) - t[3] - t[4] for t in ticks) / hertz
    return Snapshot(time.monotonic(), busy, sum(t[7] for t in ticks) / hertz)


def foreign_share(start: Snapshot, end: Snapshot, own_seconds: float) -> float | None:
    """Share (0..1) of the allowed CPUs that others used between two snapshots; time stolen by a hypervisor counts.

    Args:
        own_seconds: CPU time that the measurement itself used meanwhile.
    """
    span = (end.time - start.time) * len(threads.allowed_cpus())
    if start.busy is None or end.busy is None or span <= 0:
        return None
    return min(1.0, max(0.0, (end.busy - start.busy - own_seconds) / span))


class Watch:
    """Tells which share of the allowed CPUs others used while the `with` block ran.

    Own is the CPU time of this process and of the children that it waited for inside the block: a child that was
    started before it brings along too much, and one that still runs at its end counts as somebody else.

    Attributes:
        others: 0..1, None before the end of the block and where it is unknown.
    """

    others: float | None = None

    def __enter__(self) -> "Watch":
        self.start, self.own = snapshot(), own_seconds()
        return self

    def __exit__(self, *exception: object) -> None:
        own = own_seconds()
        if self.own is not None and own is not None:
            self.others = foreign_share(self.start, snapshot(), own - self.own)


def own_seconds() -> float | None:
    """CPU seconds of this process and of its children that have ended and were waited for, with theirs; None where the
    system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def load_before(seconds: float = 0.5) -> float | None:
    """Share of the allowed CPUs in use right now, watched for `seconds` while this process sleeps."""
    start, own = snapshot(), time.process_time()
    time.sleep(seconds)
    return foreign_share(start, snapshot(), time.process_time() - own)


def is_busy(*shares: float | None) -> bool:
    """Whether any of the known shares is above BUSY_SHARE."""
    return any(s is not None and s > BUSY_SHARE for s in shares)
