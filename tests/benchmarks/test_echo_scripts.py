"""The quick forms of the echo scripts on a few tiny clips, one of them killed in the middle and given again."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nnunet_folders
import numpy as np
import pytest

from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.readers import open_data

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
EPOCHS = 5


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("echo scripts")


@pytest.fixture(scope="module")
def options(place) -> list[str]:
    """A tiny nnU-Net with random weights, normalising by constants, is the teacher."""
    numbers = {"0": {"mean": 33.0, "std": 50.0, "percentile_00_5": 0.0, "percentile_99_5": 255.0}}
    folder = nnunet_folders.model_folder(place / "model", {"background": 0, "LV": 1}, ("ultrasound",), (4, 8, 8),
                                         (32, 32), (3.5, 3.5), normalisation=("CTNormalization",), intensities=numbers)
    return ["--quick", "--teacher", f"nnunet:{folder}", "--work", str(place / "work"), "--out", str(place / "out")]


def pareto(options) -> list[str]:
    return [sys.executable, str(SCRIPTS / "echo_pareto.py"), *options, "--sizes", "31", "s41", "--no-latency",
            "--epochs", str(EPOCHS)]


def document(place: Path, name: str) -> dict:
    return json.loads((place / "out" / f"{name}.json").read_text())


def epochs(file: Path) -> list[dict]:
    with file.open() as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def killed(place, options) -> list[dict]:
    """echo_pareto.py, killed in the middle of its first training; what that training had measured until then."""
    with subprocess.Popen(pareto(options), start_new_session=True, stdout=subprocess.DEVNULL) as process:
        while not (place / "work" / "31" / "last.ckpt").exists() and process.poll() is None:
            time.sleep(0.02)
        process.kill()  # the script alone: its workers have to notice
    assert not (place / "work" / "31" / "run.json").exists()
    assert not (place / "out").exists()
    return epochs(place / "work" / "31" / "metrics.csv")


@pytest.fixture(scope="module")
def made(place, options, killed) -> Path:
    kept = {p: p.stat().st_mtime_ns for part in ("clips", "targets") for p in (place / "work" / part).rglob("*.*")}
    done = subprocess.run(pareto(options), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert "step     31\n" in done.stdout
    assert "targets" not in done.stdout
    return place


def test_a_killed_pareto_goes_on_with_the_training_that_it_was_in(made, killed):
    after = epochs(made / "work" / "31" / "metrics.csv")
    assert 0 < len(killed) < EPOCHS
    assert after[: len(killed)] == killed
    assert [int(row["epoch"]) for row in after] == list(range(1, EPOCHS + 1))


def test_pareto_has_every_network_with_its_cost_and_its_paired_difference_to_the_teacher(made):
    found = document(made, "echo_pareto")
    assert (found["schema"], found["quick"], found["clips"]) == ("edgeseg.echo_pareto/1", True, 1)
    assert list(found["scores"]) == ["teacher", "31", "s41", "other-31"]
    for name, gap in found["minus_teacher"].items():
        own, teacher = (found["scores"][n]["Dice"] for n in (name, "teacher"))
        assert gap["value"] == pytest.approx(own[0] - teacher[0])
    assert found["costs"]["31"]["parameters"] == 174_721
    assert found["costs"]["s41"]["macs"] < found["costs"]["31"]["macs"]
    assert [t["limit"] for t in found["targets"][:2]] == [-0.02, -0.02]
    assert (made / "out" / "echo_pareto.png").stat().st_size > 10_000
    page = (made / "out" / "echo_pareto.md").read_text()
    assert "mean nothing" in page
    assert str(made) not in page


def test_no_student_saw_a_label(made):
    for name, domain in (("31", "train"), ("other-31", "other")):
        run = Run.open(made / "work" / name)
        assert run.recipe["kd_weight"] == 1
        clips = run.dataset()
        assert [ref.load().labels for ref in clips.refs] == [None] * 3
        assert not (made / "work" / "clips" / domain / "VolumeTracings.csv").exists()
        assert not run.data["splits"]["val"]


def test_other_recipes_and_teachers_than_those_that_work_was_begun_with_are_refused(made, options, scripts):
    import echo_pareto

    again = pareto(options)[2:]
    with pytest.raises(EdgesegError, match=rf"was begun with epochs = {EPOCHS}, not 3: choose another --work"):
        echo_pareto.main([*again, "--epochs", "3"])
    with pytest.raises(EdgesegError, match=r"targets/train: was made of nnunet:.*, not nnunet:another: choose another"):
        echo_pareto.main([*again, "--teacher", "nnunet:another"])


def test_all_four_pairs_and_both_losses_share_clips_and_command(made, options, scripts):
    import echo_pairs

    echo_pairs.main([*options, "--jobs", "0"])
    found = document(made, "echo_pairs")
    assert len(found["minus_teacher"]) == 8
    assert {tuple(r["data"]) for r in found["recipes"].values()} == {("echonet-synthetic:train",)}
    for pair, gain in found["kl_minus_bce"].items():
        kl, bce = (found["scores"][f"{pair}-{loss}"]["Dice"][0] for loss in ("layerwise_kl", "soft_bce"))
        assert gain["value"] == pytest.approx(kl - bce)
    assert {r["loss"] for r in found["recipes"].values()} == {"layerwise_kl", "soft_bce"}


def test_phases_of_true_masks_are_there_beside_those_of_the_networks(made, options, scripts):
    import echo_phases

    echo_phases.main([*options, "--jobs", "0"])
    found = document(made, "echo_phases")
    assert list(found["phases"]["all"]) == ["true masks", "31", "teacher"]
    assert {"ED", "ES"} == set(found["phases"]["all"]["31"]["free-running, our detector"])
    assert [r["name"] for r in found["sampling_rates"]] == ["every 1", "every 2", "every 3", "every 4"]
    page = (made / "out" / "echo_phases.md").read_text()
    peers = page.partition("## Published peers")[2]
    assert "| Li 2023" in peers
    assert "Li 2023" not in page.replace(peers, "")


def real_clips(folder: Path) -> Path:
    """In the place of real clips: phantom ones in their format, under names that nobody may read again."""
    folder.mkdir()
    for k, ref in enumerate(open_data("phantom:echo?n=3&domain=other&seed=5").refs):
        case = ref.load()
        np.savez(folder / f"SECRET{k}.npz", frames=case.frames[:30, 0].astype(np.uint8),
                 deeplabv3_mask=case.labels[:30], fps=50.0)
    return folder


def test_real_clips_are_numbers_in_the_result_and_their_images_are_gone_afterwards(made, options, scripts, tmp_path):
    import echo_real

    clips = real_clips(tmp_path / "real")
    runs = ["--run", str(made / "work" / "31")]
    echo_real.main([*options, *runs, "--real", str(clips), "--jobs", "0", "--pictures", str(tmp_path / "pictures")])
    found = document(made, "echo_real")
    assert list(found["results"]) == ["31", "labels-s41", "leave-one-out from labels", "leave-one-out"]
    assert [len(r["Dice"]) for r in found["results"].values()] == [3, 3, 1, 1]
    for name in ("real-without-1", "real-labels-without-1"):
        run = Run.open(made / "work" / name)
        assert [p for p in run.data["splits"]["train"] if p.startswith("camus")] == ["camus_patient0001",
                                                                                     "camus_patient0002"]
    assert run.data["pretrained"]["name"] == "labels-s41"
    assert "SECRET" not in json.dumps(found) + (made / "out" / "echo_real.md").read_text()
    assert not (made / "work" / "real-scratch").exists()
    assert not list((made / "work").glob("real-*without-*/cache"))
    assert len(list((tmp_path / "pictures").glob("*.mp4"))) == 8


def test_pictures_of_real_clips_are_refused_in_the_repository_and_missing_clips_are_said(options, scripts, tmp_path,
                                                                                         capsys):
    import echo_real

    with pytest.raises(EdgesegError, match="lies in the repository"):
        echo_real.main([*options, "--pictures", str(SCRIPTS / "results" / "x")])
    echo_real.main([*options, "--real", str(tmp_path / "none")])
    assert capsys.readouterr().out.startswith("skipped: ")


def test_speed_compares_stream_and_teacher_in_one_run_and_says_how_int8_drifts(made, options, scripts, stream_bundle,
                                                                              monkeypatch):
    import echo_speed

    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    echo_speed.main([*options, "--jobs", "0", "--bundle", str(stream_bundle.path)])
    found = document(made, "echo_speed")
    rows = {r["name"]: r for r in found["bench"]["rows"]}
    assert set(rows) == {"Stream, OpenVINO INT8", "Stream, OpenVINO FP32", "teacher, OpenVINO FP32",
                         "teacher, PyTorch FP32"}
    assert [name for name, r in rows.items() if r["torch"]] == ["teacher, PyTorch FP32"]
    assert rows["Stream, OpenVINO INT8"]["end_to_end"]["p50_ms"] > 0
    assert found["drift"][0]["estimate"]["n"] == 1
    assert [t["limit"] for t in found["targets"]] == [300, 300, 30, 15, -0.005]


@pytest.mark.soak
def test_without_a_teacher_one_is_trained_and_bundles_are_timed(place):
    """All that the quick form does, DeepLabv3 included; a polite kill takes the workers along."""
    work, out = place / "all", place / "all-out"
    command = [sys.executable, str(SCRIPTS / "echo_pareto.py"), "--quick", "--sizes", "31", "--real", "--work",
               str(work), "--out", str(out)]
    with subprocess.Popen(command) as process:
        while not (work / "logs" / "teacher.log").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 143
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((out / "echo_pareto.json").read_text())
    assert found["bench"]["rows"][0]["network"]["p50_ms"] > 0
