"""How many threads a CPU runtime may use: affinity, physical cores and the container's quota.

Neither OpenVINO nor ONNX Runtime looks at the cgroup quota: with 64 visible cores and a quota of two they start 64
threads, which the scheduler then stops for most of each period.
"""

import os
from pathlib import Path

from edgeseg.errors import EdgesegError

CPUS = Path("/sys/devices/system/cpu")
CGROUP_OF_PROCESS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def default_threads() -> int:
    """Physical cores that this process may run on, at most the whole CPUs of its quota, at least 1."""
    quota = cpu_quota()
    cores = physical_cores(allowed_cpus())
    return max(1, min(cores, int(quota)) if quota is not None else cores)


def checked_threads(threads: int | None) -> int:
    """`threads`, or the default when None; EdgesegError below 1."""
    if threads is None:
        return default_threads()
    if threads < 1:
        raise EdgesegError(f"the number of threads must be at least 1, not {threads}")
    return threads


def allowed_cpus() -> set[int]:
    """CPUs that this process may run on (all of them where the system has no affinity)."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def physical_cores(cpus: set[int], root: Path = CPUS) -> int:
    """Number of cores behind `cpus`: two hyper-threads of one core share its arithmetic units and count once."""
    cores = set()
    for cpu in cpus:
        try:
            cores.add((root / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(f"cpu{cpu}")
    return len(cores)


def cpu_quota(process: Path = CGROUP_OF_PROCESS, root: Path = CGROUPS) -> float | None:
    """CPUs' worth of time that the process's cgroup and those above it allow; None without a limit.

    Reads cpu.max (cgroup v2) and cpu.cfs_quota_us / cpu.cfs_period_us (v1). Inside a container the path in
    /proc/self/cgroup may be the host's, which is not there: the mounted root then is the container's own group.
    """
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [root]
        elif "cpu" in controllers.split(","):
            mounts = [root / controllers, root / "cpu"]
        else:
            continue
        for mount in mounts:
            group = mount / path.lstrip("/")
            limits += [limit for folder in (group, *group.parents) if folder.is_relative_to(mount)
                       if (limit := group_limit(folder)) is not None]
    return min(limits, default=None)


def group_limit(folder: Path) -> float | None:
    """The limit of one cgroup folder in CPUs, None when it sets none."""
    if (text := read(folder / "cpu.max")) is not None:
        quota, _, period = text.partition(" ")
    else:
        quota, period = read(folder / "cpu.cfs_quota_us") or "", read(folder / "cpu.cfs_period_us") or ""
    if not (quota.isdigit() and period.isdigit()) or int(period) == 0:  # "max" (v2) and -1 (v1): no limit
        return None
    return int(quota) / int(period)


def read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
