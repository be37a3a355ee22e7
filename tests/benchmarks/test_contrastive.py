"""The contrastive ablation: its quick form on a tiny data set with a tiny teacher, its sweeps, and its verdicts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from disks import dataset

from edgeseg.distill.run import Run
from edgeseg.distill.scores import Scores
from edgeseg.distill.sweep import Sweep
from edgeseg.labels import LabelScheme
from edgeseg.phantoms.write import write_acdc
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import open_data
from edgeseg.report.compare import Arm

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
REAL = SCRIPTS.parents[1] / "shared" / "data" / "ct_spleen_real"
HEART = LabelScheme(("background", "RV", "MYO", "LV"))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Drawn disks in ACDC's layout, and a narrow multi-task teacher with random weights."""
    import torch
    from safetensors.torch import save_file

    from edgeseg.teachers.multitask import build_network, write_record

    place = tmp_path_factory.mktemp("an ablation")
    write_acdc(dataset(HEART, patients=8), place / "data of hearts")
    torch.manual_seed(0)
    (place / "teacher").mkdir()
    write_record(place / "teacher", "multitask", 4, HEART, Preprocessing((32, 32), (6.0, 6.0)), "disks",
                 {"dev": {"dice": 0.5, "epoch": 0}})
    save_file(build_network("multitask", 1, 4, 4, (32, 32)).state_dict(), place / "teacher" / "teacher.safetensors")
    return place


@pytest.fixture(scope="module")
def document(place) -> dict:
    done = subprocess.run([sys.executable, SCRIPTS / "contrastive_ablation.py", "acdc", "--quick", "--jobs", "2",
                           "--data", f"acdc:{place / 'data of hearts'}", "--teacher", f"multitask:{place / 'teacher'}",
                           "--work", place / "work", "--out", place / "out"], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((place / "out" / "contrastive_acdc.json").read_text())


@pytest.mark.soak  # trains a teacher and two students
def test_the_quick_form_trains_an_arm_with_features_and_the_one_without(place, document):
    assert (document["schema"], document["quick"]) == ("edgeseg.contrastive/1", True)
    for split in ("dev", "val"):
        assert [a["name"] for a in document[split]["arms"]] == ["none", "encoder supervised"]
        assert document[split]["patients"] == 1
    assert document["best_on_dev"] == "encoder supervised"
    assert document["teacher"]["width"] == 4
    plain, taught = (Run.open(place / "work" / "S1" / f"{arm}-s0") for arm in ("none", "encoder supervised"))
    assert taught.recipe["features"][0]["teacher"] == "pools.1"
    assert not plain.recipe["features"]
    assert plain.preprocessing == taught.preprocessing
    weights = [(r.folder / "student.safetensors").read_bytes() for r in (plain, taught)]
    assert weights[0] != weights[1]
    assert document["parameters"]["none"] == document["parameters"]["encoder supervised"]  # heads are dropped


@pytest.mark.soak  # trains a teacher and two students
def test_the_page_says_what_it_is_and_names_no_patient_and_no_folder(place, document):
    page = (place / "out" / "contrastive_acdc.md").read_text()
    assert "A quick run" in page
    assert (place / "out" / "contrastive_acdc.png").read_bytes()[:4] == b"\x89PNG"
    for text in (page, json.dumps(document)):
        assert str(place.parent) not in text
        assert not any(f"p0{k}" in text for k in range(8))


@pytest.mark.parametrize("task", ["ct", "acdc"])
def test_the_sweeps_hold_every_arm_with_three_seeds_and_one_schedule(task):
    sweep = Sweep.load(SCRIPTS / "recipes" / f"contrastive_{task}.toml").changed({"teacher": "multitask:x"})
    runs = sweep.runs()
    scales = {r.arm: (r.recipe.loss == "prediction_map", {(p.scale, p.kind) for p in r.recipe.features})
              for r in runs}
    kinds, names = ("supervised", "instance"), ("encoder", "bottleneck", "decoder")
    assert scales["none"] == scales["layer-wise KL"] == scales["S2 alone"] == (False, set())
    assert scales["prediction map"] == (True, set())
    for kind in kinds:
        assert scales[f"all {kind}"] == (True, {(n, kind) for n in names})
        for name in names:
            assert scales[f"{name} {kind}"] == (False, {(name, kind)})
    assert {r.recipe.seed for r in runs} == {0, 1, 2}
    assert len(runs) == 3 * len(scales)
    assert len({(r.recipe.epochs, r.recipe.batch_size, r.recipe.learning_rate, r.recipe.size) for r in runs}) == 1
    maps = [r.recipe for r in runs if r.recipe.loss == "prediction_map"]
    assert {(r.temperature, r.t_squared) for r in maps} == {(4, True)}


def test_the_other_real_patient_trains_with_every_seed_and_the_one_left_out_with_none(monkeypatch, tmp_path):
    if not REAL.is_dir():
        pytest.skip("the real slices (../shared/data/ct_spleen_real) are not here")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import contrastive_ablation

    real, sweep = open_data(f"slices:{REAL}"), Sweep.load(SCRIPTS / "recipes" / "contrastive_ct.toml")
    for patient in real.patients():
        fold = contrastive_ablation.without(sweep, real, patient, tmp_path / "split.json")
        for seed in sweep.seeds:
            train = fold.base.changed({"seed": seed, "kd_weight": 0.0}).dataset().select("train")
            kept = {r.patient.removeprefix(f"{real.name}_") for r in train.refs}
            assert kept & set(real.patients()) == set(real.patients()) - {patient}
            assert len(kept - set(real.patients())) == 21  # half of 42 phantoms


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import contrastive_claims

    return contrastive_claims


def arm(name: str, shift: float, patients: int = 20, noise: float = 0.004) -> Arm:
    """One run whose patients have Dice 0.8 + shift, more or less."""
    rng = np.random.default_rng(sum(map(ord, name)))
    apart = rng.normal(0, noise, patients)
    dice = 0.8 + np.linspace(-0.05, 0.05, patients) + shift + apart - apart.mean()
    common = np.round(dice * 1_000_000).astype(np.int64)
    counts = np.stack([common, np.full(patients, 1_000_000), np.full(patients, 1_000_000)], axis=1)[:, None]
    names = tuple(f"p{k}" for k in range(patients))
    return Arm(name, (), (Scores(names, names, ("spleen",), counts),))


def arms(**shifts: float) -> dict[str, Arm]:
    return {n.replace("_", " "): arm(n.replace("_", " "), s) for n, s in shifts.items()}


@pytest.mark.parametrize(("encoder", "verdict"), [(0.03, "holds"), (-0.03, "contradicted"), (0.0, "not shown")])
def test_the_encoder_is_strongest_where_it_beats_every_other_term(claims, encoder, verdict):
    there = arms(encoder_supervised=encoder, bottleneck_supervised=0.0, decoder_supervised=0.0, prediction_map=0.0)
    found = claims.encoder_strongest(there, 0.02)
    assert found["verdict"] == verdict
    assert list(found["tests"]) == [f"encoder supervised minus {n}" for n in (
        "bottleneck supervised", "decoder supervised", "prediction map")]
    assert claims.encoder_strongest(arms(none=0.0), 0.02)["verdict"] == "not measured"


@pytest.mark.parametrize(("small", "verdict"), [(0.03, "holds: better"), (-0.002, "holds within the margin"),
                                                (-0.06, "contradicted")])
def test_the_small_student_is_held_against_the_large_one(claims, small, verdict):
    there = arms(all_supervised=small) | {"S2 alone": arm("S2 alone", 0.0, noise=0.012)}
    assert claims.small_beats_large(there, "all supervised", 0.02)["verdict"].startswith(verdict)


@pytest.mark.parametrize(("gain", "verdict"), [(0.03, "yes: all supervised"), (0.0003, "no: all supervised is best")])
def test_the_default_changes_only_for_a_significant_gain_over_the_layer_wise_kl(claims, gain, verdict):
    there = arms(none=-0.1, all_supervised=gain, encoder_instance=-0.02, S2_alone=0.1)
    there["layer-wise KL"] = arm("layer-wise KL", 0.0)
    found = claims.new_default(there, "all supervised", 0.02)
    assert found["verdict"].startswith(verdict)
    assert len(found["tests"]) == 2  # neither the baseline nor the large student could have won
    assert claims.new_default(there, "layer-wise KL", 0.02)["verdict"].startswith("no: the layer-wise KL")
