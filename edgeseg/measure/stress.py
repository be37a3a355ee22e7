"""Hard times for a measured process: others that want the same CPUs, and a quota on its own use of them."""

import errno
import math
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from edgeseg.errors import EdgesegError
from edgeseg.runtime import threads

PERIOD_US = 100_000
"""The kernel's own period: a group that has used its quota stands still until the next one begins."""
LEAST_CPUS = 0.01
"""The kernel takes no quota below 1 ms a period."""
MOST_PER_CPU = 64
"""Busy processes for each allowed CPU: more of them say nothing new, and may leave no process to end them with."""
BUSY = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
print(flush=True)
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""
"""Counts until it is killed, or until its parent is gone."""


class Stress:
    """`count` processes that keep the CPUs of this one busy while the `with` block runs.

    They have the affinity and the niceness of this process, which are those of its workers: they compete as equals.

    Raises:
        EdgesegError: a negative count, more than MOST_PER_CPU for each CPU; the system starts no more processes.
    """

    def __init__(self, count: int) -> None:
        if count < 0:
            raise EdgesegError(f"--stress {count}: the number of busy processes cannot be negative")
        most = MOST_PER_CPU * len(threads.allowed_cpus())
        if count > most:
            raise EdgesegError(f"--stress {count}: at most {most} busy processes, {MOST_PER_CPU} for each of the "
                               f"{len(threads.allowed_cpus())} CPUs that may be used here")
        self.count = count
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Stress":
        try:
            for _ in range(self.count):
                self.processes.append(subprocess.Popen([sys.executable, "-I", "-S", "-c", BUSY, str(os.getpid())],
                                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
            for process in self.processes:
                assert process.stdout is not None
                process.stdout.readline()  # from here on it is busy
        except BaseException as error:
            self.__exit__()
            if isinstance(error, OSError):
                raise EdgesegError(f"--stress {self.count}: the system starts no more processes: "
                                   f"{error.strerror}") from None
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()
        self.processes = []


class Quota:
    """The process `pid` gets at most `cpus` CPUs' worth of time while the `with` block runs.

    By a cgroup of its own (v1 or v2), which is removed at the end; the process goes back where it was.
    The kernel weighs a group as one task of niceness 0, as it does a container: threads and niceness of the process
    count inside it alone, so next to others it fares differently than without a quota, not just slower.

    Raises:
        EdgesegError: an impossible quota; the system has no cgroups or does not let this user make one.
    """

    def __init__(self, cpus: float, pid: int, process: Path = threads.CGROUP_OF_PROCESS,
                 root: Path = threads.CGROUPS) -> None:
        if not LEAST_CPUS <= cpus < math.inf:
            raise EdgesegError(f"--quota {cpus:g}: must be at least {LEAST_CPUS:g} CPUs and finite")
        self.cpus, self.pid = cpus, pid
        self.home, above = groups(process, root)
        self.group = above / f"edgeseg-{os.getpid()}-{pid}"

    def __enter__(self) -> "Quota":
        try:
            self.group.mkdir()
            quota = round(self.cpus * PERIOD_US)
            if (self.group / "cpu.max").exists():  # v2
                write(self.group / "cpu.max", f"{quota} {PERIOD_US}")
            else:
                write(self.group / "cpu.cfs_period_us", str(PERIOD_US))
                write(self.group / "cpu.cfs_quota_us", str(quota))
            write(self.group / "cgroup.procs", str(self.pid))
        except BaseException as error:
            self.__exit__()
            if isinstance(error, OSError):
                raise EdgesegError(f"--quota {self.cpus:g}: this system does not let you limit a process: "
                                   f"{error.filename}: {error.strerror}") from None
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        end = time.monotonic() + 1
        while self.group.is_dir():
            for pid in (threads.read(self.group / "cgroup.procs") or "").split():
                with suppress(OSError):  # it has ended meanwhile
                    write(self.home / "cgroup.procs", pid)
            try:
                self.group.rmdir()
            except OSError as error:  # a process that is just ending holds it for a moment
                if error.errno != errno.EBUSY or time.monotonic() > end:
                    raise
                time.sleep(0.01)


def check_quota(cpus: float) -> None:
    """Hold a process that only waits to `cpus` and let it go again, as `Quota` later does with one that is measured.

    Raises:
        EdgesegError: as `Quota`: that a group with the limit can be made here, and a process put into it, is known
            only once it was done.
    """
    try:
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE,
                              stderr=subprocess.DEVNULL) as waiting:
            try:
                with Quota(cpus, waiting.pid):
                    pass
            finally:
                waiting.kill()
    except OSError as error:
        raise EdgesegError(f"--quota {cpus:g}: cannot be tried out here: {error.strerror}") from None


def groups(process: Path, root: Path) -> tuple[Path, Path]:
    """The cgroup that this process is in, and the one in which another with a limit of its own can be made.

    With v1 they are the same. In v2 a group with processes hands no controller down, so the new one comes beside it or
    further up, but never outside a group that sets a limit itself. Inside a container the path in /proc/self/cgroup
    may be the host's: the mounted root then is the container's own group.

    Raises:
        EdgesegError: there is no cgroup with the cpu controller, or none that hands it down.
    """
    lines = [line.split(":", 2) for line in (threads.read(process) or "").splitlines()]
    for _, controllers, path in lines:
        if "cpu" in controllers.split(","):
            mount = next((m for m in (root / controllers, root / "cpu") if m.is_dir()), root)
            own = mount / path.lstrip("/")
            own = own if own.is_dir() else mount
            return own, own
    for _, controllers, path in lines:
        own = root / path.lstrip("/")
        own = own if own.is_dir() else root
        for group in (own, *own.parents):
            if not controllers and "cpu" in (threads.read(group / "cgroup.subtree_control") or "").split():
                return own, group
            if group == root or threads.group_limit(group) is not None:
                break
    raise EdgesegError("--quota: this system has no cgroup in which the CPU time of a process can be limited")


def write(path: Path, text: str) -> None:
    """Write to a control file, which must be there: outside a cgroup file system none is made."""
    try:
        handle = os.open(path, os.O_WRONLY)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
