"""The quick form of benchmarks/robustness.py on a tiny bundle, whose network no turn and no storage can mislead."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bundle

from edgeseg.measure.evaluate import evaluate_bundle
from edgeseg.measure.perturb import perturbations

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "robustness.py"


def script(*options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, options)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("robustness script")
    tiny_bundle.make_bundle(place / "tiny.edgeseg")
    tiny_bundle.write_nnunet_data(place / "Dataset001", cases=5)
    done = script("--quick", "--bundle", place / "tiny.edgeseg", "--data", f"nnunet:{place / 'Dataset001'}", "--split",
                  "all", "--threads", 1, "--out", place / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    (place / "said.txt").write_text(done.stdout)
    return place


@pytest.fixture(scope="module")
def document(place) -> dict:
    return json.loads((place / "out" / "robustness.json").read_text())


def test_every_row_has_its_dice_and_its_paired_drop_with_an_interval(document):
    assert [r["name"] for r in document["rows"]] == [p.name for p in perturbations()]
    assert (document["schema"], document["quick"], document["seed"]) == ("edgeseg.robustness/1", True, 0)
    assert (document["patients"], document["cases"], document["precision"]) == (4, 4, "int8")
    assert document["commit"]
    assert document["machine"]["torch_in_process"] is False
    for row in document["rows"]:
        assert set(row["dice"]) == set(row["drop"]) == {"mean", "RV", "MYO", "LV"}
        drop = row["drop"]["mean"]
        assert drop["low"] <= drop["value"] <= drop["high"]
        assert drop["n"] == 4
        if row["group"] != "slices":
            assert drop["value"] == pytest.approx(document["unchanged"]["mean"]["value"] - row["dice"]["mean"]["value"])
        assert drop["value"] == pytest.approx(sum(row["drop"][s]["value"] for s in ("RV", "MYO", "LV")) / 3)


def test_a_network_that_looks_at_one_grey_level_at_a_time_keeps_what_it_must_and_loses_what_it_must(document):
    drops = {r["name"]: r["drop"]["mean"]["value"] for r in document["rows"]}
    exact = [r["name"] for r in document["rows"] if r["group"] in ("orientation", "slices")]
    assert all(abs(drops[name]) < 1e-6 for name in exact), drops
    assert all(drops[name] > 0.3 for name in ("values x 10", "values + 100% of the largest", "stored in 16 bit"))
    assert drops["noise, SNR 50"] < drops["noise, SNR 20"] < drops["noise, SNR 10"]


def test_the_unchanged_row_is_what_evaluate_says(document, place):
    found = evaluate_bundle(place / "tiny.edgeseg", f"nnunet:{place / 'Dataset001'}", "all", precision="int8")
    first = list(found.patient_dice().values())[:4]
    assert document["unchanged"]["mean"]["value"] == pytest.approx(sum(first) / 4)


def test_the_verdict_is_that_of_the_worst_row(document, place):
    worst = max(document["rows"], key=lambda r: r["drop"]["mean"]["value"])
    first, *groups = document["targets"]
    assert first["name"] == f"worst row: {worst['name']}"
    assert (first["value"], first["limit"], first["met"]) == (worst["drop"]["mean"]["value"], 0.03, False)
    assert len(groups) == len({r["group"] for r in document["rows"]}) == 8
    assert f"worst row: {worst['name']}" in (place / "said.txt").read_text()


def test_progress_says_how_long_it_will_take_and_the_page_names_no_folder_and_no_patient(place):
    said = (place / "said.txt").read_text().splitlines()
    assert [line.split()[1] for line in said[:4]] == ["1/4", "2/4", "3/4", "4/4"]
    assert all("min left" in line for line in said[:4])
    page = (place / "out" / "robustness.md").read_text()
    assert page.count("\n| orientation |") == 7
    assert "these numbers mean nothing" in page
    for text in (page, (place / "out" / "robustness.json").read_text()):
        assert str(place) not in text
        assert "case0" not in text
    assert (place / "out" / "robustness.png").stat().st_size > 10_000


def test_data_that_cannot_be_scored_is_one_line_and_nothing_is_written(place, tmp_path):
    tiny = ("--bundle", place / "tiny.edgeseg", "--out", tmp_path / "out")
    unlabelled = f"nifti:{place / 'Dataset001' / 'imagesTr'}"
    for options, words in ((("--data", unlabelled, "--split", "all"), "has no labels"),
                           (("--data", "phantom:cine?n=1", "--split", "val"), "no case in split 'val'")):
        done = script(*tiny, *options)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert words in done.stderr
    assert not (tmp_path / "out").exists()
