"""The cost of a contrastive training step: the quick form of the script, its rows, and the step that it measures."""

import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeseg.distill.sweep import Sweep
from edgeseg.measure.turns import Block, Turns

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
ROWS, QUICK_ROWS = ["none", "layer-wise KL", "all supervised", "all instance"], ["none", "all supervised"]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        patch.setenv("PYTHONPATH", "")  # the script changes it for its workers
        patch.setattr(sys, "argv", ["contrastive_cost.py", "--quick"])
        import contrastive_cost

        yield contrastive_cost


@pytest.fixture(scope="module")
def place(tmp_path_factory, script) -> Path:
    """What a quick run has written. It is made in this process: every other one imports torch again."""
    out = tmp_path_factory.mktemp("a cost") / "out"
    script.main(["--quick", "--out", str(out)])
    return out


@pytest.mark.soak  # two processes with torch
def test_every_row_made_steps_of_its_own_arm_in_the_same_rounds(place):
    found = json.loads((place / "contrastive_cost.json").read_text())
    assert (found["schema"], found["quick"], found["student"]) == ("edgeseg.contrastive-cost/1", True, "S1")
    rows = {r["name"]: r for r in found["rows"]}
    assert list(rows) == QUICK_ROWS
    for r in rows.values():
        assert len(r["medians_ms"]) == 2
        assert r["steps"] >= 2
        assert min(r["medians_ms"]) <= r["ms"]["value"] <= max(r["medians_ms"])
        assert r["about"]["torch_threads"] == 1
        assert r["about"]["precision"] == "32-true"
    plain, features = rows.values()
    for part in ("teacher_parameters", "head_parameters"):
        assert plain["about"][part] == 0 < features["about"][part]
    assert plain["about"]["features"] == []
    assert features["about"]["features"] == ["encoder supervised", "bottleneck supervised", "decoder supervised"]
    assert len({r["about"]["student_parameters"] for r in rows.values()}) == 1


@pytest.mark.soak  # two processes with torch
def test_verdicts_are_on_the_ratios_to_the_plain_row(place):
    found = json.loads((place / "contrastive_cost.json").read_text())
    plain, features = found["rows"]
    for r in found["rows"]:
        assert r["peak_mb"] >= r["start_mb"] > 100
        assert r["grown_mb"] == pytest.approx(r["peak_mb"] - r["start_mb"])
    time, memory = found["targets"]
    blocks = np.divide(features["medians_ms"], plain["medians_ms"])
    assert (time["value"], time["limit"]) == (pytest.approx(np.exp(np.log(blocks).mean())), 2)
    assert (memory["value"], memory["limit"]) == (pytest.approx(features["peak_mb"] / plain["peak_mb"]), 1.5)
    assert all(t["met"] == (t["value"] <= t["limit"]) for t in found["targets"])


def test_a_drifting_machine_moves_the_times_and_not_the_ratios(script):
    """Blocks in rounds that grow slower; the first step of each block is an outlier."""
    def block(name: str, ms: float, number: int) -> Block:
        return Block(name, "step", number, 0, 1, np.array([100 * ms, ms, ms, ms]), 1, peak_rss_mb=600 + number)

    turns = Turns([block(name, ms * (1 + n), n) for n in range(10)
                   for name, ms in (("layer-wise KL", 30.0), ("all instance", 36.0), ("none", 20.0))])
    row = script.row("all instance", Namespace(ready={"runtime": {"rss_mb": 500.0, "precision": "x"}}), turns)
    assert row.medians_ms == tuple(36.0 * (1 + n) for n in range(10))
    assert row.ms.value == 36 * 5.5
    assert row.ms.high > 1.3 * row.ms.low
    for found, ratio in ((row.times_plain, 1.8), (row.times_kl, 1.2)):
        assert (found.low, found.value, found.high) == pytest.approx((ratio, ratio, ratio))
    assert (row.steps, row.peak_mb, row.grown_mb, row.about) == (40, 609, 109, {"precision": "x"})
    rows = {name: replace(row, name=name, peak_mb=peak) for name, peak in (
        ("none", 400.0), ("all supervised", 600.5), ("all instance", 599.5))}
    assert [t.met for t in script.targets(rows)] == [True, False, True, True]


@pytest.mark.soak  # two processes with torch
def test_the_page_says_which_step_is_plain_and_that_the_teacher_is_random_and_names_no_folder(place):
    page = (place / "contrastive_cost.md").read_text()
    assert "these numbers mean nothing" in page
    assert "The plain step is that of the arm `none`: labels alone" in page
    assert "has random weights" in page
    for name in QUICK_ROWS:
        assert f"| {name} |" in page
    assert str(place.parent) not in page + (place / "contrastive_cost.json").read_text()


@pytest.mark.parametrize("student", ["S1", "S2", "mobilenetv2"])
def test_a_full_run_has_every_arm_on_the_sweep_s_grid_and_batch_size(script, student):
    sweep = script.settle(Namespace(student=student, quick=False)).changed({"teacher": "multitask:x"})
    runs = {run.arm: run.recipe for run in sweep.runs()}
    assert list(runs) == ROWS
    base = Sweep.load(SCRIPTS / "recipes" / "contrastive_ct.toml").base
    assert {(r.size, r.spacing, r.batch_size) for r in runs.values()} == {(base.size, base.spacing, base.batch_size)}
    assert {r.student for r in runs.values()} == {"mobilenetv2" if student == "mobilenetv2" else "unet"}
    assert [(r.kd_weight > 0, len(r.features)) for r in runs.values()] == [
        (False, 0), (True, 0), (True, 3), (True, 3)]


def test_a_measured_step_trains_the_student_and_the_heads_and_not_the_teacher(script, tmp_path):
    from contrastive_cost_worker import Step

    script.prepare(script.settle(Namespace(student="S1", quick=True)), tmp_path, True)
    subject = Step({"path": str(tmp_path / "all supervised.toml"), "frames": str(tmp_path / "batches.npz"),
                    "threads": 1})
    module = subject.module
    teacher = module.teacher.__self__.running
    parts = {"student": module.student, "heads": module.features, "teacher": teacher}
    before = {name: [p.detach().clone() for p in part.parameters()] for name, part in parts.items()}
    subject.calls["step"](0)
    moved = {name: [bool((a != b).any()) for a, b in zip(before[name], part.parameters(), strict=True)]
             for name, part in parts.items()}
    assert all(moved["student"])
    encoder, bottleneck, decoder = np.reshape(moved["heads"], (3, -1))
    assert encoder.all()
    assert decoder.all()
    # no spleen is left at the lowest scale of so small a grid: no negatives, no gradient (weights only decay)
    assert not bottleneck[1::2].any()
    assert not any(moved["teacher"])
    assert (module.trainer.global_step, module.epoch_steps) == (1, 1)
