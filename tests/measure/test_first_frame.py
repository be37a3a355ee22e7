import mmap
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle

from edgeseg.errors import EdgesegError
from edgeseg.measure import first_frame as module
from edgeseg.measure.document import one_line
from edgeseg.measure.first_frame import cached_pages, evict, files_of, first_frame
from edgeseg.measure.turns import Job, write_frames


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with space")
    raw = [tiny_bundle.frame(0)]
    bundle = tiny_bundle.make_bundle(folder / "tiny.edgeseg", precisions=("fp32",))
    return Job("bundle", str(bundle), str(write_frames(folder / "frames.npz", raw, [(1.5, 1.5)], raw)))


LINUX = pytest.mark.skipif(not Path("/proc/mounts").exists() or not hasattr(os, "posix_fadvise"),
                           reason="this system has no posix_fadvise")


def in_memory(path) -> bool:
    """Whether a file lies on a file system that is nothing but page cache."""
    types = dict(line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines())
    mount = next(p for p in path.resolve().parents if str(p) in types)
    return types[str(mount)] in ("tmpfs", "ramfs")


def cached(path) -> int | None:
    with path.open("rb") as file:
        return cached_pages(file.fileno())


def test_the_parts_of_a_start_lie_within_the_whole(job):
    found = first_frame(job, warm_starts=2)
    assert len(found.warm_s) == 2
    if not hasattr(os, "posix_fadvise") or in_memory(Path(job.path)):
        assert found.cold_s is None
    else:
        assert found.cold_s > 0
    assert min(found.warm_s) > 0
    assert 0 < found.load_s + found.first_s < max(found.warm_s)
    assert '"warm_s": [' in one_line(found)


def test_the_first_start_is_cold_and_the_parts_are_of_the_median_of_the_others(job, monkeypatch):
    happened = []
    times = iter([(9.0, 8.0, 1.0), (3.0, 2.0, 0.5), (1.0, 0.6, 0.1), (2.0, 1.5, 0.25)])
    monkeypatch.setattr(module, "start", lambda job: happened.append("start") or next(times))
    monkeypatch.setattr(module, "evict", lambda path: happened.append(path.name) or True)
    found = first_frame(job)
    assert (found.cold_s, found.warm_s, found.load_s, found.first_s) == (9.0, (3.0, 1.0, 2.0), 1.5, 0.25)
    assert happened[-4:] == ["start"] * 4
    assert {"model.fp32.bin", "manifest.json", "SHA256SUMS"} <= set(happened[:-4])


def test_where_files_cannot_be_evicted_there_is_no_cold_start(job, monkeypatch):
    monkeypatch.setattr(module, "start", lambda job: (1.0, 0.5, 0.1))
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert first_frame(job).cold_s is None


@LINUX
def test_an_evicted_file_is_out_of_the_page_cache_and_unchanged(tmp_path):
    path = tmp_path / "weights.bin"
    content = np.random.default_rng(0).bytes(1 << 20)
    path.write_bytes(content)
    assert cached(path) == (1 << 20) // mmap.PAGESIZE
    gone, left = evict(path), cached(path)
    assert path.read_bytes() == content
    if in_memory(path):
        pytest.skip("a file system in memory has nothing to evict")
    assert (gone, left) == (True, 0)


@LINUX
def test_a_file_with_a_page_that_somebody_holds_is_not_evicted(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(8 * mmap.PAGESIZE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        assert held[3 * mmap.PAGESIZE] == 0
        assert not evict(path)
        assert cached(path) >= 1


@LINUX
def test_a_start_from_a_file_system_in_memory_is_not_called_cold(monkeypatch):
    monkeypatch.setattr(module, "start", lambda job: (1.0, 0.5, 0.1))
    memory = Path("/dev/shm")
    if not (os.access(memory, os.W_OK) and in_memory(memory / "x")):
        pytest.skip("this system has no file system in memory at /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        path = Path(folder, "net.onnx")
        path.write_bytes(b"x")
        assert not evict(path)
        assert first_frame(Job("network", str(path), "")).cold_s is None


@LINUX
def test_an_empty_file_has_no_page_that_could_stay(tmp_path):
    (tmp_path / "empty").touch()
    assert evict(tmp_path / "empty")


def test_a_network_brings_its_weights_and_nothing_at_all_brings_no_file(tmp_path):
    for name in ("net.xml", "net.bin", "other.bin"):
        (tmp_path / name).write_bytes(b"x")
    assert files_of(Job("network", str(tmp_path / "net.xml"), "")) == [tmp_path / "net.bin", tmp_path / "net.xml"]
    assert files_of(Job("empty", "", "")) == []


def test_bad_input_is_one_line(job, tmp_path):
    with pytest.raises(EdgesegError, match="at least 1 warm start, not 0"):
        first_frame(job, warm_starts=0)
    with pytest.raises(EdgesegError, match=r"absent\.edgeseg: openvino fp32 does not start") as caught:
        first_frame(Job("bundle", str(tmp_path / "absent.edgeseg"), job.frames))
    assert "\n" not in str(caught.value)
