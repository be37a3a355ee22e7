import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from edgeseg.errors import EdgesegError
from edgeseg.measure import stress as module
from edgeseg.measure.stress import MOST_PER_CPU, Quota, Stress, check_quota, groups
from edgeseg.runtime import threads

LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")


def stat(pid: int) -> list[str]:
    """State, parent ... of a process, from the third field of its stat on; [] when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def wait_until(condition) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


@LINUX
def test_stress_is_busy_on_the_same_cpus_and_gone_afterwards():
    with Stress(2) as stress:
        pids = [p.pid for p in stress.processes]
        assert len(set(pids)) == 2
        for pid in pids:
            assert wait_until(lambda pid=pid: int(stat(pid)[11]) >= 5)  # ticks of user time
            assert os.sched_getaffinity(pid) == threads.allowed_cpus()
            assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)
            os.kill(pid, signal.SIGINT)  # Ctrl-C in the terminal goes to all of them: it is not theirs to obey
            assert int(stat(pid)[11]) >= 5
    assert not any(map(stat, pids))


@LINUX
def test_stress_is_gone_after_a_failure():
    pids = []
    with suppress(ZeroDivisionError), Stress(1) as stress:
        pids.append(stress.processes[0].pid)
        raise ZeroDivisionError
    assert not stat(*pids)


@LINUX
def test_stress_ends_with_a_bench_that_was_killed():
    code = ("import sys, time; from edgeseg.measure.stress import Stress\n"
            "with Stress(1) as s: print(s.processes[0].pid, flush=True); time.sleep(60)")
    bench = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(bench.stdout.readline())
    assert stat(pid)
    bench.kill()
    bench.communicate()
    assert wait_until(lambda: stat(pid)[:1] in ([], ["Z"]))


def test_no_stress_is_no_process():
    with Stress(0) as stress:
        assert stress.processes == []


def test_less_than_no_stress_is_refused():
    with pytest.raises(EdgesegError, match="--stress -1: the number of busy processes cannot be negative"):
        Stress(-1)


def test_more_stress_than_the_machine_bears_is_refused_before_a_process_starts(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    most = MOST_PER_CPU * len(threads.allowed_cpus())
    with pytest.raises(EdgesegError, match=f"--stress {most + 1}: at most {most} busy processes, 64 for") as caught:
        Stress(most + 1)
    assert "\n" not in str(caught.value)
    assert Stress(most).count == most


def test_when_no_process_starts_those_that_did_are_ended(monkeypatch):
    began, popen = [], subprocess.Popen

    def third_fails(*args, **options):
        if len(began) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        began.append(popen(*args, **options))
        return began[-1]

    monkeypatch.setattr(subprocess, "Popen", third_fails)
    with pytest.raises(EdgesegError, match="--stress 3: the system starts no more processes"), Stress(3):
        pass
    assert [p.returncode for p in began] == [-signal.SIGKILL] * 2


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    try:
        with Quota(0.5, process.pid):
            pass
    except EdgesegError as error:
        process.kill()
        process.wait()
        pytest.skip(f"no quota on this machine: {error}")
    yield process
    process.kill()
    process.wait()


def group_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/cgroup")


def test_a_quota_holds_for_the_process_alone_and_is_lifted_again(sleeper):
    before, own = group_of(sleeper.pid).read_text(), threads.cpu_quota()
    with Quota(0.5, sleeper.pid) as quota:
        assert threads.cpu_quota(group_of(sleeper.pid)) == 0.5
        assert threads.cpu_quota() == own
        assert quota.group.is_dir()
    assert group_of(sleeper.pid).read_text() == before
    assert not quota.group.exists()
    assert sleeper.poll() is None


def test_a_quota_is_lifted_after_a_failure_and_after_the_end_of_its_process(sleeper):
    with pytest.raises(ZeroDivisionError), Quota(0.25, sleeper.pid) as quota:
        raise ZeroDivisionError
    assert not quota.group.exists()
    with Quota(0.25, sleeper.pid) as quota:
        sleeper.kill()
        sleeper.wait()
    assert not quota.group.exists()


def test_a_quota_that_can_be_had_is_tried_out_and_leaves_nothing(sleeper, monkeypatch):
    tried = []

    class Watched(Quota):
        def __enter__(self):
            super().__enter__()
            tried.append((self.pid, self.group, threads.cpu_quota(group_of(self.pid))))
            return self

    monkeypatch.setattr(module, "Quota", Watched)
    before = group_of(os.getpid()).read_text()
    check_quota(0.5)
    (pid, group, limit), = tried
    assert (limit, pid == os.getpid()) == (0.5, False)  # this process itself is never held back
    assert not group.exists()
    assert not stat(pid)
    assert group_of(os.getpid()).read_text() == before


def test_a_quota_for_a_process_that_is_gone_leaves_no_group(sleeper):
    sleeper.kill()
    sleeper.wait()
    quota = Quota(1, sleeper.pid)
    with pytest.raises(EdgesegError, match=r"--quota 1: this system does not let you limit a process: .*cgroup\.procs"):
        quota.__enter__()
    assert not quota.group.exists()


@pytest.mark.parametrize("cpus", [0, -1, 0.001, float("nan"), float("inf")])
def test_impossible_quotas_are_refused(cpus):
    with pytest.raises(EdgesegError, match=r"must be at least 0\.01 CPUs and finite"):
        Quota(cpus, os.getpid())


@pytest.fixture
def tree(tmp_path):
    """A folder with the given control files, and what /proc/self/cgroup would say."""
    def make(process: str, files: dict[str, str]) -> tuple[Path, Path]:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        (tmp_path / "self").write_text(process)
        return tmp_path / "self", tmp_path
    return make


def test_without_cgroups_a_quota_is_refused_in_one_line(tree):
    for process, files in (("", {}), ("4:memory:/\n0::/a\n", {"a/cgroup.subtree_control": "memory pids\n"})):
        with pytest.raises(EdgesegError, match="has no cgroup in which the CPU time of a process can be limited"):
            Quota(1, os.getpid(), *tree(process, files))


def test_where_no_group_can_be_made_the_refusal_names_the_file_and_nothing_is_left(tree):
    process, root = tree("1:cpu:/\n", {"cpu/cgroup.procs": ""})
    quota = Quota(1, os.getpid(), process, root)  # a plain folder: a new one in it has no control files
    with pytest.raises(EdgesegError, match=r"cpu\.cfs_period_us: No such file or directory") as caught:
        quota.__enter__()
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in (root / "cpu").iterdir()) == ["cgroup.procs"]


def test_a_read_only_group_is_refused():
    quota = Quota(1, os.getpid())
    quota.group = Path("/proc/edgeseg")  # nobody, not even root, makes a folder there
    with pytest.raises(EdgesegError, match="--quota 1: this system does not let you limit a process: /proc/edgeseg"):
        quota.__enter__()


@LINUX
def test_the_check_finds_a_group_that_cannot_be_made(monkeypatch):
    began, popen = [], subprocess.Popen
    monkeypatch.setattr(module, "groups", lambda process, root: (Path("/proc"), Path("/proc")))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kw: began.append(popen(*args, **kw)) or began[-1])
    with pytest.raises(EdgesegError, match="this system does not let you limit a process: /proc/edgeseg") as caught:
        check_quota(1)
    assert "\n" not in str(caught.value)
    assert [p.returncode for p in began] == [-signal.SIGKILL]


@pytest.mark.parametrize(("process", "files", "own", "above"), [
    ("3:cpu,cpuacct:/a\n0::/x\n", {"cpu,cpuacct/a/tasks": ""}, "cpu,cpuacct/a", "cpu,cpuacct/a"),  # v1
    ("1:cpu:/of/the/host\n", {"cpu/tasks": ""}, "cpu", "cpu"),  # v1 inside a container
    ("0::/\n", {"cgroup.subtree_control": "cpuset cpu"}, "", ""),  # v2, the root
    ("0::/u/s/x\n", {"u/s/x/cgroup.procs": "1", "u/s/cgroup.subtree_control": "pids",
                     "u/cgroup.subtree_control": "cpu pids", "cgroup.subtree_control": "cpu"}, "u/s/x", "u"),  # v2
])
def test_the_group_is_made_where_the_cpu_controller_is_handed_down(tree, process, files, own, above):
    told, root = tree(process, files)
    assert groups(told, root) == (root / own, root / above)


def test_a_quota_never_leads_out_of_the_limit_that_the_process_has(tree):
    told, root = tree("0::/u/x\n", {"u/x/cpu.max": "50000 100000", "u/cgroup.subtree_control": "cpu"})
    with pytest.raises(EdgesegError, match="has no cgroup"):
        groups(told, root)
