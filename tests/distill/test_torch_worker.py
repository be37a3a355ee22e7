import shutil

import numpy as np
import pytest
import tiny_run
import torch
from nnunet_folders import model_folder

from edgeseg.distill.torch_worker import TorchNetwork
from edgeseg.errors import EdgesegError
from edgeseg.measure.turns import Job, Worker, write_frames
from edgeseg.measure.worker import network_input
from edgeseg.teachers import open_teacher


@pytest.fixture(scope="module", autouse=True)
def torch_as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run.make_run(tmp_path_factory.mktemp("a place"))


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("a place") / "model")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Three raw frames that are larger than the student's grid, and their canvases at its spacing."""
    rng = np.random.default_rng(0)
    raw = [rng.normal(100, 30, (1, 60, 70)).astype(np.float32) for _ in range(3)]
    canvases = [tiny_run.GRID.to_canvas(f[None], (1.2, 1.1))[0] for f in raw]
    return raw, canvases, str(write_frames(tmp_path_factory.mktemp("in") / "f.npz", raw, [(1.2, 1.1)] * 3, canvases))


def job(kind, path, frames, threads=1):
    return {"kind": kind, "path": str(path), "frames": frames[2], "threads": threads}


def test_the_student_computes_what_its_run_computes_on_the_input_of_the_other_rows(run, frames):
    subject, student = TorchNetwork(job("torch-student", run.folder, frames)), run.student()
    assert subject.shape == (1, 1, 64, 64)
    assert subject.count == 3
    with torch.no_grad():
        for i, canvas in enumerate(frames[1]):
            expected = student(torch.from_numpy(network_input(canvas, subject.shape, ""))).numpy()
            np.testing.assert_allclose(subject.calls["network"](i).numpy(), expected, atol=1e-4)
        labels = run.preprocessing.segment(frames[0][1][None], (1.2, 1.1),
                                           lambda x: student(torch.from_numpy(x)).numpy())
    assert len(np.unique(labels)) > 1
    assert (subject.calls["end_to_end"](1) == labels).mean() > 0.999
    assert next(iter(subject.calls)) == "end_to_end"


def test_the_teacher_is_its_first_folds_network_without_an_end_to_end_path(teacher_folder, frames):
    subject = TorchNetwork(job("torch-teacher", teacher_folder, frames))
    assert set(subject.calls) == {"network"}
    assert subject.shape == (1, 1, 32, 40)
    x = torch.from_numpy(network_input(frames[1][2], subject.shape, ""))
    with torch.no_grad():
        expected = open_teacher(f"nnunet:{teacher_folder}").network()(x).numpy()
    assert expected.shape == (1, 4, 32, 40)
    np.testing.assert_allclose(subject.calls["network"](2).numpy(), expected, atol=1e-4)


def test_a_row_says_what_it_runs_with(run, frames):
    with Worker(Job("torch-student", str(run.folder), frames[2], "torch", "fp32", 1,
                    "edgeseg.distill.torch_worker")) as worker:
        ready, block = worker.ready, worker.ask({"mode": "end_to_end", "seconds": 0.01, "discard": 1}, 60)
    assert ready["torch"] is True
    assert ready["modes"] == ["network", "end_to_end"]
    assert len(block["ms"]) >= 1
    said = ready["runtime"]
    assert (said["TORCH"], said["TORCH_NUM_THREADS"], said["MODE"]) == (torch.__version__, "1", "eager")
    assert said["MEMORY_FORMAT"] in ("contiguous_format", "channels_last")
    both = dict(word.split(" ") for word in said["MEMORY_FORMATS_MS"].split(", "))
    assert float(both[said["MEMORY_FORMAT"]]) == min(map(float, both.values()))  # the faster one is taken


def test_the_network_is_laid_out_as_is_said_and_nothing_keeps_gradients(teacher_folder, frames):
    subject = TorchNetwork(job("torch-teacher", teacher_folder, frames))
    weight = next(p for p in subject.model.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1)  # tells them apart
    assert weight.is_contiguous(memory_format=subject.format)
    out = subject.calls["network"](0)
    assert out.is_inference()
    assert not subject.model.training


def test_what_cannot_be_measured_is_one_line(tmp_path, run, teacher_folder, frames):
    with pytest.raises(EdgesegError, match="no such run"):
        TorchNetwork(job("torch-student", tmp_path / "absent", frames))
    shutil.copytree(teacher_folder, tmp_path / "empty", ignore=lambda *_: ["fold_0"])
    with pytest.raises(EdgesegError, match=r"empty: no fold_\*/checkpoint_final\.pth"):
        TorchNetwork(job("torch-teacher", tmp_path / "empty", frames))
    with pytest.raises(EdgesegError, match="takes 2 channels, the bundle's frames have 1"):
        TorchNetwork(job("torch-teacher", model_folder(tmp_path / "two", channels=("a", "b")), frames))
