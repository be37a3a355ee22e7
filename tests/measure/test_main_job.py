import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bundle

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "main_job.py"
TARGETS = 8
KD = {"teacher": "nnunet", "targets": "stored", "tta": "none", "kd_weight": 0.5, "temperature": 2.0, "own_layers": True,
      "epochs": 2, "seed": 7}
W0 = KD | {"teacher": "none", "targets": "auto", "tta": "mirror", "kd_weight": 0.0, "own_layers": False}
MACHINE = {"device": "cpu", "processes": 1, "threads": 1, "cpus": 2}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A quick run of the whole script on a tiny bundle, a tiny nnU-Net teacher and a real nnU-Net data folder."""
    import nnunet_folders

    place = tmp_path_factory.mktemp("main job")
    bundle = tiny_bundle.make_bundle(place / "distilled.edgeseg", distillation=KD)
    baseline = tiny_bundle.make_bundle(place / "plain.edgeseg", distillation=W0)
    data = tiny_bundle.write_nnunet_data(place / "Dataset001", cases=3)
    teacher = nnunet_folders.model_folder(place / "model", patch=(32, 32), spacing=(1.5, 1.5))
    run = place / "run"
    run.mkdir()
    tiny_bundle.write_network(run / "teacher.onnx", (1, 1, 32, 32))
    (run / "run.json").write_text(json.dumps({"metrics": {"seconds": 600.0, "machine": MACHINE},
                                              "recipe": {"seed": 7, "epochs": 2}}))
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick", "--bundle", bundle, "--baseline", baseline,
                           "--data", f"nnunet:{data}", "--split", "all", "--teacher", f"nnunet:{teacher}", "--run", run,
                           "--out", place / "out", "--cache", place / "cache", "--threads", "1"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def test_every_target_has_a_value_and_a_verdict(results):
    document = json.loads((results / "out" / "main_job.json").read_text())
    assert document["schema"] == "edgeseg.main_job/1"
    assert document["quick"] is True
    assert len(document["targets"]) == TARGETS
    for one in document["targets"]:
        assert isinstance(one["value"], float)
        assert one["met"] is (one["value"] >= one["limit"] if one["sign"] == ">=" else one["value"] <= one["limit"])
    assert document["training"]["seconds"] == 600


def test_students_teacher_and_their_differences_are_there(results):
    document = json.loads((results / "out" / "main_job.json").read_text())
    assert set(document["evaluations"]) == {
        "distilled openvino int8", "distilled openvino fp32", "distilled onnxruntime int8",
        "distilled onnxruntime fp32", "undistilled openvino int8", "undistilled openvino fp32", "teacher none"}
    pair = document["paired_differences"]["distilled openvino int8 - undistilled openvino int8"]
    assert (pair["value"], pair["n"], pair["p"]) == (0.0, 3, 1.0)  # the two bundles hold the same network
    teacher = document["evaluations"]["teacher none"]["structures"]["mean"]["all"]["dice"]
    assert 0 <= teacher["value"] < 0.9  # random weights
    rows = {row["name"]: row for row in document["bench"]["rows"]}
    assert {"teacher OpenVINO FP32", "full-width nnU-Net OpenVINO FP32"} <= set(rows)
    assert "full-width nnU-Net OpenVINO FP32" in rows["student OpenVINO INT8"]["speed_up"]
    assert document["full_width_network"]["features"] == [4, 8]


def test_the_page_says_how_was_trained_and_what_the_evaluation_noted(results):
    document = json.loads((results / "out" / "main_job.json").read_text())
    assert document["distillation"] == {"distilled": KD, "undistilled": W0}
    assert document["training"]["machine"] == MACHINE
    assert "external" in document["notes"]["distilled openvino int8"][0]
    page = " ".join((results / "out" / "main_job.md").read_text().split())
    assert "P(i): stored" in page
    assert "10.0 wall minutes" in page
    assert "threads 1" in page
    assert page.count("external data") == 1  # the same note of every network, once


def test_students_that_differ_in_more_than_distillation_are_not_compared(tmp_path):
    bundle = tiny_bundle.make_bundle(tmp_path / "distilled.edgeseg", distillation=KD)
    baseline = tiny_bundle.make_bundle(tmp_path / "plain.edgeseg", distillation=W0 | {"epochs": 3})
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick", "--bundle", bundle, "--baseline", baseline, "--data",
                           "phantom:cine?n=3", "--out", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "epochs" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("changes", "teacher", "word"), [
    ({}, {}, "P(i): stored"), ({"targets": "auto"}, {"configuration": "2d"}, "deep supervision"),
    ({"targets": "auto"}, {"configuration": "3d_fullres"}, "P(i): stored"),
    ({"targets": "network", "own_layers": False}, {}, "full output"), ({"teacher": "none"}, {}, "no teacher"),
])
def test_the_reading_of_the_teacher_is_told(changes, teacher, word, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import main_job

    assert word in main_job.reading(KD | changes, teacher)


def test_results_name_no_folder_of_this_machine(results):
    written = [p for p in (results / "out").iterdir() if p.suffix != ".png"]
    assert sorted(p.name for p in written) == ["main_job.json", "main_job.md"]
    for path in written:
        assert str(results) not in path.read_text()
        assert "A quick run" in path.read_text() or path.suffix == ".json"
    assert (results / "out" / "main_job.png").read_bytes()[:4] == b"\x89PNG"
