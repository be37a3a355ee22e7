"""`edgeseg compare` on copies of one run: other seeds, and arms whose weights are another network's."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import typer
from safetensors.numpy import load_file, save_file
from scipy import stats
from typer.testing import CliRunner

from edgeseg.cli.compare import compare
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.measure.evaluate import evaluate
from edgeseg.measure.significance import holm, sign_flip_p
from edgeseg.report.compare import seedless

app = typer.Typer()
app.command()(compare)


def copied(run: Run, name: str, shake: float = 0.0, **recipe) -> Path:
    """`run` under another name, its recipe changed and its weights disturbed."""
    folder = run.folder.parent / name
    shutil.copytree(run.folder, folder)
    replace(run, folder=folder, recipe=run.recipe | recipe).save()
    rng = np.random.default_rng(recipe.get("seed", 0))
    weights = load_file(run.folder / "student.safetensors")
    moved = {k: v + shake * rng.normal(size=v.shape).astype(v.dtype) if k.endswith("weight") else v
             for k, v in weights.items()}
    save_file(moved, folder / "student.safetensors")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """A baseline of two seeds and two arms of two."""
    base = tiny_run.make_run(tmp_path_factory.mktemp("a comparison"), cases=8)
    return [copied(base, "plain-s0"), copied(base, "plain-s1", 0.02, seed=1),
            copied(base, "wide-s0", 0.05, expansion=2), copied(base, "wide-s1", 0.06, expansion=2, seed=1),
            copied(base, "noisy-s1", 0.1, noise=0.5, seed=1), copied(base, "noisy-s0", 0.1, noise=0.5)]


@pytest.fixture(scope="module")
def found(runs, tmp_path_factory) -> tuple[dict, Path, str]:
    out = tmp_path_factory.mktemp("some out")
    done = call(*runs, "--split", "train", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.strip().splitlines()[-1]), out, done.stdout


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_runs_that_differ_by_their_seed_alone_are_one_arm_and_the_first_is_the_baseline(found):
    document = found[0]
    assert [(a["name"], a["seeds"]) for a in document["arms"]] == [("plain", [0, 1]), ("wide", [0, 1]),
                                                                   ("noisy", [0, 1])]
    assert document["baseline"] == "plain"
    assert document["arms"][0]["against"] is None


def test_a_patients_value_is_that_of_evaluate_averaged_over_seeds(found, runs):
    document, patients = found[0], np.array(found[0]["arms"][0]["patient_dice"])
    assert patients.shape == (2, document["patients"])
    for row, folder in zip(patients, runs, strict=False):
        run = Run.open(folder)
        student = run.student()

        def network(x, student=student):
            import torch

            with torch.inference_mode():
                return student(torch.from_numpy(x)).numpy()

        wanted = evaluate(lambda case, run=run, network=network: run.preprocessing.segment(
            case.frames, case.spacing, network), run.dataset().select("train"), run.scheme)
        np.testing.assert_allclose(row, list(wanted.patient_dice().values()))
        if folder == runs[0]:
            rows = [r.recall for r in wanted.rows]
    assert document["arms"][0]["dice"]["value"] == pytest.approx(patients.mean())
    assert min(rows) <= document["arms"][0]["macro"]["recall"] <= 1


def test_every_statistic_is_of_patients_averaged_over_seeds(found):
    arms = found[0]["arms"]
    base = np.mean(arms[0]["patient_dice"], axis=0)
    gaps = [np.mean(a["patient_dice"], axis=0) - base for a in arms[1:]]
    for arm, gap in zip(arms[1:], gaps, strict=True):
        against = arm["against"]
        assert against["difference"]["value"] == pytest.approx(gap.mean())
        assert against["difference"]["p"] == pytest.approx(stats.wilcoxon(gap).pvalue)
        assert against["permutation_p"] == pytest.approx(sign_flip_p(gap))
        assert against["bound"] == pytest.approx(stats.ttest_1samp(gap, 0).confidence_interval().low)
        assert against["non_inferior"] is bool(against["bound"] > -0.02)
        assert np.mean(against["difference_by_seed"]) == pytest.approx(gap.mean())
    assert [a["against"]["permutation_holm"] for a in arms[1:]] == pytest.approx(
        holm([sign_flip_p(g) for g in gaps]))


def test_the_next_call_scores_nothing_and_finds_the_same(found, runs, tmp_path):
    document, out, _ = found
    kept = {p: p.stat().st_mtime_ns for p in (out / "scores").iterdir()}
    assert len(kept) == 6
    again = call(*runs, "--split", "train", "--out", out, "--json")
    assert json.loads(again.stdout.strip().splitlines()[-1]) == document
    assert {p: p.stat().st_mtime_ns for p in (out / "scores").iterdir()} == kept
    # the scores themselves are what is read: another file gives another table
    shutil.copytree(out, tmp_path / "out")
    for file in (tmp_path / "out" / "scores").glob("plain-*"):
        values = json.loads(file.read_text())
        values["counts"] = [[[5, 5, 5]] * len(k) for k in values["counts"]]
        file.write_text(json.dumps(values))
    other = call(*runs, "--split", "train", "--out", tmp_path / "out", "--json")
    assert json.loads(other.stdout.strip().splitlines()[-1])["arms"][0]["dice"]["value"] == 1


def test_other_weights_are_scored_anew(found, runs, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(found[1], out)
    folder = tmp_path / "plain-s0"
    shutil.copytree(runs[2], folder)  # other weights under a name that was scored
    done = call(folder, "--split", "train", "--out", out)
    assert done.exit_code == 0, done.output
    assert len(list((out / "scores").iterdir())) == 7


def test_patients_of_a_mixture_and_of_a_final_run_s_dev_are_known_to_have_trained_it(runs):
    run = Run.open(runs[0])
    splits = run.data["splits"]
    assert run.trained_on() == set(splits["train"])
    assert replace(run, recipe=run.recipe | {"final": True}).trained_on() == {*splits["train"], *splits["dev"]}
    mixed = replace(run, data=run.data | {"name": "acdc+mnms", "splits": {"train": ["acdc_patient001", "mnms_A1"]}})
    assert {"patient001", "A1"} <= mixed.trained_on()


def test_seeds_that_began_with_a_run_of_their_own_each_are_one_arm(runs):
    run = Run.open(runs[0])
    begun = [replace(run, recipe=run.recipe | {"seed": k, "pretrained": f"base-s{k}"}) for k in (0, 1)]
    other = replace(run, recipe=run.recipe | {"pretrained": "wide-s0"})
    assert seedless(begun[0]) == seedless(begun[1]) != seedless(other)


def test_page_and_picture_say_what_the_terminal_said_and_name_no_patient(found, runs):
    document, out, said = found
    page = (out / "compare.md").read_text()
    for name in ("plain", "wide", "noisy"):
        assert f"| {name} |" in page
    assert "CAUTION: plain-s0 was trained on" in page
    assert "CAUTION: plain-s0 was trained on" in said
    p = f"{document['arms'][1]['against']['difference']['p']:.2g}"
    assert p in page
    assert p in said
    assert (out / "compare.png").read_bytes()[:4] == b"\x89PNG"
    patients = Run.open(runs[0]).dataset().patients()
    for text in (page, json.dumps(document)):
        assert not any(patient in text for patient in patients)
        assert str(runs[0].parent) not in text


def test_a_run_named_twice_counts_once_and_a_missing_seed_is_said(runs, found):
    done = call(runs[0], *runs[:3], "--split", "train", "--out", found[1], "--json")
    document = json.loads(done.stdout.strip().splitlines()[-1])
    assert [a["seeds"] for a in document["arms"]] == [[0, 1], [0]]
    assert document["arms"][1]["against"]["common_seeds"] == [0]
    assert any("seeds 0, plain 0, 1" in note for note in document["notes"])


def test_one_arm_alone_has_a_table_and_no_test(runs, found):
    done = call(runs[0], "--split", "train", "--out", found[1], "--json")
    assert done.exit_code == 0
    assert "Wilcoxon p" not in done.stdout
    assert [a["against"] for a in json.loads(done.stdout.strip().splitlines()[-1])["arms"]] == [None]


@pytest.mark.parametrize(("arguments", "words"), [
    (["--split", "tset"], "unknown split 'tset'"),
    (["--margin", "0"], "--margin 0: is what a student may be worse by"),
    (["--data", "acdc:/nowhere"], "no such folder"),
    (["--data", "phantom:cine?n=1", "--split", "val"], "no case in split 'val'"),
])
def test_bad_input_is_one_line_and_writes_nothing(runs, tmp_path, arguments, words):
    done = call(runs[0], *arguments, "--out", tmp_path / "out")
    assert isinstance(done.exception, EdgesegError)
    assert words in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_two_runs_of_one_recipe_and_seed_are_refused(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "twin")
    done = call(runs[0], tmp_path / "twin")
    assert f"{tmp_path / 'twin'}: the same recipe and seed as" in str(done.exception)


def test_a_run_that_has_not_finished_is_named(runs, tmp_path):
    (tmp_path / "half").mkdir()
    done = call(runs[0], tmp_path / "half")
    assert f"{tmp_path / 'half'}: not finished" in str(done.exception)
