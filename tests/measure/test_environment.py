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
