"""The machine that a measurement was made on, and who else was using it."""

import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeseg.runtime import threads
from edgeseg.runtime.cpu import cpu_class, cpu_info

PACKAGES = ("edgeseg", "numpy", "openvino", "onnxruntime", "opencv-python-headless", "scipy")
BUSY_SHARE = 0.10
"""A machine is called busy when others use more than this share of the CPUs that this process may use."""
PROC = Path("/proc")
POWER = Path("/sys/class/powercap")


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
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
        "torch_in_process": "torch" in sys.modules,
    }


def cpu_name() -> str:
    """What the CPU calls itself."""
    return cpu_info().get("model name") or platform.processor() or platform.machine()


def memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
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


def load_before(seconds: float = 0.5) -> float | None:
    """Share of the allowed CPUs in use right now, watched for `seconds` while this process sleeps."""
    start, own = snapshot(), time.process_time()
    time.sleep(seconds)
    return foreign_share(start, snapshot(), time.process_time() - own)


def is_busy(*shares: float | None) -> bool:
    """Whether any of the known shares is above BUSY_SHARE."""
    return any(s is not None and s > BUSY_SHARE for s in shares)
