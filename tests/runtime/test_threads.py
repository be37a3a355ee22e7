import pytest

from edgeseg.errors import EdgesegError
from edgeseg.runtime import threads


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_dot_", ".")).write_text(text + "\n")


def test_version_2_quota_is_the_tightest_of_the_group_and_those_above_it(tmp_path):
    (tmp_path / "self").write_text("0::/pod/box\n")
    root = tmp_path / "fs"
    write(root / "pod" / "box", cpu_dot_max="400000 100000")
    write(root / "pod", cpu_dot_max="150000 100000")
    write(root, cpu_dot_max="max 100000")
    assert threads.cpu_quota(tmp_path / "self", root) == 1.5


def test_version_2_without_a_limit_is_none(tmp_path):
    (tmp_path / "self").write_text("0::/\n")
    write(tmp_path / "fs", cpu_dot_max="max 100000")
    assert threads.cpu_quota(tmp_path / "self", tmp_path / "fs") is None


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_version_1_quota_is_found_under_either_name_of_the_controller(tmp_path, mount):
    (tmp_path / "self").write_text("7:pids:/\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n")
    write(tmp_path / "fs" / mount / "docker" / "abc", cpu_dot_cfs_quota_us="200000", cpu_dot_cfs_period_us="100000")
    assert threads.cpu_quota(tmp_path / "self", tmp_path / "fs") == 2


def test_inside_a_container_the_host_path_is_not_there_and_the_mounted_root_counts(tmp_path):
    (tmp_path / "self").write_text("4:cpu,cpuacct:/docker/on/the/host\n")
    write(tmp_path / "fs" / "cpu", cpu_dot_cfs_quota_us="50000", cpu_dot_cfs_period_us="100000")
    assert threads.cpu_quota(tmp_path / "self", tmp_path / "fs") == 0.5


def test_version_1_without_a_limit_is_none(tmp_path):
    (tmp_path / "self").write_text("4:cpu:/\n")
    write(tmp_path / "fs" / "cpu", cpu_dot_cfs_quota_us="-1", cpu_dot_cfs_period_us="100000")
    assert threads.cpu_quota(tmp_path / "self", tmp_path / "fs") is None


def test_a_system_without_cgroups_has_no_quota(tmp_path):
    assert threads.cpu_quota(tmp_path / "none", tmp_path / "none") is None


def test_hyper_threads_of_one_core_count_once(tmp_path):
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        write(tmp_path / f"cpu{cpu}" / "topology", thread_siblings_list=siblings)
    assert threads.physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert threads.physical_cores({0, 2}, tmp_path) == 1
    assert threads.physical_cores({7, 8}, tmp_path) == 2  # nothing known: every CPU is a core


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (2.5, 2), (0.5, 1), (64, 4)])
def test_threads_stay_below_cores_and_quota_but_are_at_least_one(monkeypatch, quota, expected):
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    monkeypatch.setattr(threads, "physical_cores", lambda cpus: 4)
    assert threads.default_threads() == expected


def test_affinity_is_obeyed():
    import os

    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs and a system with affinity")
    everything = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everything)})
        assert threads.default_threads() == 1
    finally:
        os.sched_setaffinity(0, everything)


def test_a_wrong_number_of_threads_is_refused():
    assert threads.checked_threads(3) == 3
    with pytest.raises(EdgesegError, match="at least 1, not 0"):
        threads.checked_threads(0)
