import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle

from edgeseg.errors import EdgesegError
from edgeseg.measure import environment
from edgeseg.measure.turns import Job, Worker, WorkerError, started, take_turns, write_frames

BLOCK = 0.02


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    raw = [tiny_bundle.frame(i) for i in range(2)]
    return str(write_frames(tmp_path_factory.mktemp("with space") / "frames.npz", raw, [(1.5, 1.5)] * 2, raw))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return str(tiny_bundle.write_network(tmp_path_factory.mktemp("network") / "net.onnx", (1, 1, 24, 32)))


def pending(worker: Worker) -> bool:
    """Whether the worker has said anything nobody asked for."""
    import selectors

    with selectors.DefaultSelector() as selector:
        selector.register(worker.process.stdout, selectors.EVENT_READ)
        return bool(selector.select(0.05))


def test_a_network_file_is_measured_on_both_runtimes_without_torch(frames, network):
    jobs = {name: Job("network", network, frames, name) for name in ("openvino", "onnxruntime")}
    with Worker(jobs["openvino"]) as a, Worker(jobs["onnxruntime"]) as b:
        for worker in (a, b):
            assert worker.ready["torch"] is False
            assert worker.ready["shape"] == [1, 1, 24, 32]
            assert worker.ready["modes"] == ["network"]
            answer = worker.ask({"mode": "network", "seconds": BLOCK, "discard": 5}, 60)
            assert sum(answer["ms"]) <= 1000 * (answer["end"] - answer["start"])
            assert min(answer["ms"]) > 0
        assert a.ready["runtime"]["INFERENCE_PRECISION_HINT"] == "<Type: 'float32'>"
        assert a.ready["pid"] != b.ready["pid"]


def test_only_one_process_runs_at_a_time_and_everybody_has_one_turn_a_round(frames, network):
    jobs = [Job("network", network, frames), Job("network", network, frames, "onnxruntime"), Job("empty", "", frames)]
    workers = {str(i): Worker(job) for i, job in enumerate(jobs)}
    try:
        turns = take_turns(workers, rounds=6, seconds=BLOCK, seed=1)
        assert not any(pending(w) for w in workers.values())  # asleep without the token
    finally:
        for worker in workers.values():
            worker.close()
    assert turns.complete
    assert len(turns.blocks) == 18
    orders = set()
    for number in range(6):
        order = tuple(b.row for b in turns.blocks if b.round == number)
        assert sorted(order) == ["0", "1", "2"]
        orders.add(order)
    assert len(orders) > 1  # nobody always follows the same neighbour
    for before, after in zip(turns.blocks, turns.blocks[1:], strict=False):
        assert before.start < before.end <= after.start
    assert all(b.end - b.start >= BLOCK for b in turns.blocks)


@pytest.mark.parametrize("threads", [1, 2])
def test_resizing_in_a_worker_has_the_threads_of_its_row_and_no_more(frames, network, threads):
    with Worker(Job("network", network, frames, "onnxruntime", threads=threads)) as worker:
        assert worker.ready["runtime"]["OPENCV_NUM_THREADS"] == str(threads)


def test_a_block_knows_the_resident_set_and_the_energy_where_the_system_tells(frames, monkeypatch):
    counters = iter([1_000_000, 3_500_000, 9_000_000, 0])  # the second block: the counter has started anew
    monkeypatch.setattr(environment, "energy_uj", lambda: next(counters))
    with Worker(Job("empty", "", frames)) as worker:
        first, second = take_turns({"row": worker}, rounds=2, seconds=0.001).blocks
        status = Path(f"/proc/{worker.process.pid}/status")
        if not status.exists():
            pytest.skip("this system has no /proc")
        now = int(status.read_text().split("VmRSS:")[1].split()[0]) / 1024
    assert (first.energy_j, second.energy_j) == (2.5, None)
    assert first.rss_mb <= first.peak_rss_mb
    assert second.rss_mb == pytest.approx(now, rel=0.2)


def test_a_job_that_does_not_start_is_one_line_that_names_its_file(frames, tmp_path):
    absent = tmp_path / "absent.onnx"
    with pytest.raises(EdgesegError, match=r"absent\.onnx: openvino fp32 does not start") as caught:
        started(Job("network", str(absent), frames))
    assert "\n" not in str(caught.value)


def test_discarded_calls_are_not_counted(frames):
    with Worker(Job("empty", "", frames)) as worker:
        answer = worker.ask({"mode": "network", "seconds": 0.0, "discard": 5}, 60)
    assert len(answer["ms"]) == 1


def test_ctrl_c_keeps_what_was_measured(frames):
    with Worker(Job("empty", "", frames)) as worker:
        done = []

        def interrupt_after_three(block):
            done.append(block)
            if len(done) == 3:
                signal.raise_signal(signal.SIGINT)

        assert threading.current_thread() is threading.main_thread()
        turns = take_turns({"row": worker}, rounds=50, seconds=0.001, on_block=interrupt_after_three)
    assert not turns.complete
    assert len(turns.blocks) == 3


def test_ctrl_c_before_the_first_block_has_nothing_to_keep(frames, monkeypatch):
    with Worker(Job("empty", "", frames)) as worker:
        monkeypatch.setattr(Worker, "ask", lambda *a: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            take_turns({"row": worker}, rounds=2, seconds=0.001)


def test_workers_survive_ctrl_c_and_end_with_their_bench(frames):
    worker = Worker(Job("empty", "", frames))
    worker.process.send_signal(signal.SIGINT)
    assert worker.ask({"mode": "network", "seconds": 0.0, "discard": 0}, 60)["ms"]
    worker.close()
    assert worker.process.returncode == 0


def test_a_worker_that_dies_leaves_and_the_others_go_on(frames):
    with Worker(Job("empty", "", frames)) as well, Worker(Job("empty", "", frames)) as ill:
        ill.process.kill()
        turns = take_turns({"well": well, "ill": ill}, rounds=3, seconds=0.001)
    assert not turns.complete
    assert list(turns.failed) == ["ill"]
    assert "ended with code -9" in turns.failed["ill"]
    assert len(turns.of("well", "network")) == 3


def test_a_file_that_is_no_network_is_one_line(frames, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network")
    with pytest.raises(WorkerError, match=r"broken\.onnx") as caught:
        Worker(Job("network", str(broken), frames))
    assert "\n" not in str(caught.value)


def test_a_network_with_other_channels_is_refused(frames, tmp_path):
    network = tiny_bundle.write_network(tmp_path / "two.onnx", (1, 2, 32, 32))
    with pytest.raises(WorkerError, match="takes 2 channels, the bundle's frames have 1"):
        Worker(Job("network", str(network), frames))


def test_zero_frames_are_refused(tmp_path):
    with pytest.raises(EdgesegError, match="no frame to measure with"):
        write_frames(tmp_path / "frames.npz", [], [], [])
    assert not list(tmp_path.iterdir())


def test_the_network_gets_the_centre_of_the_frame_not_zeros():
    from edgeseg.measure.worker import network_input

    canvas = tiny_bundle.frame(0)
    window = network_input(canvas, (1, 1, 24, 32), "net")
    np.testing.assert_array_equal(window[0], canvas[:, 8:32, 2:34])
    assert window.max() == 300
    padded = network_input(canvas, (1, 1, 64, 64), "net")
    assert padded.shape == (1, 1, 64, 64)
    assert padded.sum() == canvas.sum()
