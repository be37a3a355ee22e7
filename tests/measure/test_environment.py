import json
import re
import subprocess
import sys
import time

import pytest

from edgeseg.measure import environment
from edgeseg.measure.document import one_line
from edgeseg.runtime.cpu import cpu_class


def test_the_description_is_complete_and_names_nobody():
    import getpass
    import socket

    found = environment.describe()
    assert found["cpus_affinity"] >= 1
    assert found["cpu"]
    assert found["cpu_class"] == cpu_class().model_dump(mode="json")
    assert found["cpu_class"]["cores"] >= 1
    assert all(found["versions"][name] for name in ("numpy", "openvino", "onnxruntime"))
    text = one_line(found)
    assert socket.gethostname() not in text
    assert f'"{getpass.getuser()}"' not in text


def test_the_system_is_named_without_who_built_its_kernel():
    assert environment.system_name("Linux", "6.8.0-45-acme-internal") == "Linux 6.8"
    assert environment.system_name("Darwin", "23.4.0") == "Darwin 23.4"
    assert environment.system_name("Windows", "11") == "Windows 11"
    assert environment.system_name("Plan 9", "fourth") == "Plan 9"
    assert re.fullmatch(r"[A-Za-z]+( \d+(\.\d+)?)?", environment.describe()["os"])


def test_versions_of_training_packages_are_told_and_nothing_is_imported():
    code = ("import json, sys; from edgeseg.measure import environment; found = environment.describe()\n"
            "print(json.dumps([found['versions'], sorted({'torch', 'nnunetv2', 'openvino'} & set(sys.modules))]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    versions, imported = json.loads(done.stdout)
    assert imported == []
    assert {"torch", "nnunetv2"} <= set(versions)
    assert versions["torch"] == environment.installed("torch")


def test_own_work_is_not_foreign():
    start, own = environment.Snapshot(0.0, 10.0, 0.0), 3.0
    cpus = len(environment.threads.allowed_cpus())
    assert environment.foreign_share(start, environment.Snapshot(5.0, 13.0, 0.0), own) == 0.0
    assert environment.foreign_share(start, environment.Snapshot(5.0, 15.0, 0.0), own) == 2.0 / (5.0 * cpus)


def test_an_unknown_load_is_not_called_idle_or_busy():
    unknown = environment.Snapshot(0.0, None, None)
    assert environment.foreign_share(unknown, environment.Snapshot(1.0, None, None), 0.0) is None
    assert not environment.is_busy(None, 0.01)
    assert environment.is_busy(None, 0.5)


def test_busy_time_grows_with_work():
    start = environment.snapshot()
    if start.busy is None:
        pytest.skip("this system has no /proc/stat")
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        sum(range(1000))
    assert environment.snapshot().busy - start.busy >= 0.1


BURN = "import time\nwhile time.process_time() < 0.5: sum(range(1000))"
DETACH = f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {BURN!r}])"
"""Ends at once: what it started is nobody's child then, but holds the pipe open until it has ended."""


def watched(monkeypatch, code: str | None) -> float:
    """CPU seconds that a Watch gives to others while `code` runs in a child and the CPUs are busy for 0.5 s."""
    cpus = len(environment.threads.allowed_cpus())
    shots = iter([environment.Snapshot(100.0, 50.0, 0.0), environment.Snapshot(110.0, 50.5, 0.0)])
    with monkeypatch.context() as patch:
        patch.setattr(environment, "snapshot", lambda: next(shots))
        with environment.Watch() as watch:
            assert watch.others is None
            if code:
                subprocess.run([sys.executable, "-S", "-c", code], check=True, stdout=subprocess.PIPE)
    return watch.others * 10.0 * cpus


@pytest.mark.skipif(environment.own_seconds() is None, reason="this system does not tell what children used")
def test_a_child_is_own_work_and_a_process_of_somebody_else_is_not(monkeypatch):
    assert watched(monkeypatch, BURN) == 0
    # small change: this process waits, and the one in between starts another
    assert 0.25 < watched(monkeypatch, DETACH) < 0.5
    assert 0.4 < watched(monkeypatch, None) <= 0.5


def test_a_watch_tells_even_when_its_block_fails_and_nothing_where_nothing_is_known(monkeypatch):
    shots = iter([environment.Snapshot(0.0, 0.0, 0.0), environment.Snapshot(1.0, 1e6, 0.0)])
    monkeypatch.setattr(environment, "own_seconds", lambda: 0.0)
    monkeypatch.setattr(environment, "snapshot", lambda: next(shots))
    watch = environment.Watch()
    with pytest.raises(ZeroDivisionError), watch:
        raise ZeroDivisionError
    assert watch.others == 1.0
    monkeypatch.setattr(environment, "snapshot", lambda: environment.Snapshot(1.0, None, None))
    with environment.Watch() as watch:
        pass
    assert watch.others is None
    monkeypatch.setattr(environment, "own_seconds", lambda: None)
    with environment.Watch() as watch:
        pass
    assert watch.others is None


@pytest.fixture
def memory(tmp_path):
    """available_memory() of a machine with 1000 kB available, in the given cgroup with the given files."""
    def ask(process: str, files: dict[str, object]) -> int | None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        (tmp_path / "self").write_text(process)
        (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 500 kB\nMemAvailable:    1000 kB\n")
        return environment.available_memory(tmp_path / "self", tmp_path, tmp_path / "meminfo")
    return ask


V2 = {"a/b/memory.max": 700_000, "a/b/memory.current": 400_000, "a/b/memory.stat": "anon 5\ninactive_file 100000"}
V1 = {"memory/j/memory.limit_in_bytes": 300_000, "memory/j/memory.usage_in_bytes": 250_000,
      "memory/j/memory.stat": "inactive_file 7\ntotal_inactive_file 30000"}


@pytest.mark.parametrize(("process", "files", "left"), [
    ("", {}, 1_024_000),  # no cgroup
    ("0::/a/b\n", V2, 400_000),  # its limit, what is used, and the page cache that goes first
    ("0::/a/b\n", V2 | {"a/memory.max": 90_000, "a/memory.current": 20_000}, 70_000),  # one above it is tighter
    ("0::/a/b\n", V2 | {"a/b/memory.max": "max"}, 1_024_000),
    ("0::/a/b\n", V2 | {"a/b/memory.current": 900_000}, 0),
    ("4:memory:/j\n3:cpu:/\n0::/\n", V1, 80_000),
    ("4:memory:/j\n", V1 | {"memory/j/memory.limit_in_bytes": 2**63 - 4096}, 1_024_000),  # how v1 says: no limit
    ("4:memory:/of/the/host\n", {"memory/memory.limit_in_bytes": 5000, "memory/memory.usage_in_bytes": 1000}, 4000),
])
def test_available_memory_is_the_least_of_the_machines_and_the_cgroups(memory, process, files, left):
    assert memory(process, files) == left


def test_available_memory_of_a_system_that_tells_nothing_is_all_of_it(tmp_path):
    absent = tmp_path / "absent"
    assert environment.available_memory(absent, absent, absent) == environment.physical_memory()


def power_zone(root, zone, name, counter):
    (root / zone).mkdir()
    (root / zone / "name").write_text(name + "\n")
    if counter is not None:
        (root / zone / "energy_uj").write_text(f"{counter}\n")


def test_energy_is_that_of_all_packages_and_of_nothing_inside_or_around_them(tmp_path):
    power_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    power_zone(tmp_path, "intel-rapl:1", "package-1", 2_000_000)
    power_zone(tmp_path, "intel-rapl:0:0", "core", 10)
    power_zone(tmp_path, "intel-rapl:2", "psys", 100)
    assert environment.energy_uj(tmp_path) == 3_000_000


def test_energy_that_cannot_be_read_is_unknown_not_zero(tmp_path):
    assert environment.energy_uj(tmp_path / "absent") is None
    power_zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    power_zone(tmp_path, "intel-rapl:1", "package-1", None)
    assert environment.energy_uj(tmp_path) is None
