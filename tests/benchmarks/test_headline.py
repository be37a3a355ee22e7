"""The headline's quick form on a tiny data set with a tiny teacher, and what it makes of known evaluations."""

import json
import subprocess
import sys
from pathlib import Path

import nnunet_folders
import pytest
import tiny_bundle

from edgeseg.labels import LabelScheme
from edgeseg.measure.evaluate import Evaluation, Row

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(SCRIPTS))
import headline  # noqa: E402
import headline_limits  # noqa: E402

SCHEME = LabelScheme(("background", "LV"))


def evaluation(dice: dict[str, float], hd95: float = 4.0, es: float = 40.0) -> Evaluation:
    """Patients with this Dice; an LV of 100 ml that empties to `es` (manual: to 50, an EF of 50 %)."""
    rows = [Row(f"{p}-{phase}", p, None, None, phase, "LV", d, d, d, d, hd95, ml, manual, ml - manual)
            for p, d in dice.items() for phase, ml, manual in (("ED", 100.0, 100.0), ("ES", es, 50.0))]
    return Evaluation(SCHEME, rows)


def test_the_student_is_compared_with_its_teacher_patient_by_patient():
    found = {headline.STUDENT: evaluation({"a": 0.90, "b": 0.94, "c": 0.90}, 5.0, es=47),
             headline.MIRRORED: evaluation({"a": 0.91, "b": 0.95, "c": 0.94}, 4.5, es=52)}
    paired = headline.against_teacher(found)
    assert paired["mean Dice"].value == pytest.approx(-0.02)
    assert paired["HD95 mm"].value == pytest.approx(0.5)
    assert paired["LV EF %: absolute error"].value == pytest.approx(3 - 2)


def test_a_patient_without_a_distance_in_one_of_them_is_in_neither():
    student, teacher = (evaluation({"a": 0.9, "b": 0.9}, hd) for hd in (5.0, 4.0))
    student.rows = [r if r.patient == "a" else Row(**{**r.__dict__, "hd95_mm": float("nan")}) for r in student.rows]
    assert headline.against_teacher({headline.STUDENT: student, headline.MIRRORED: teacher})["HD95 mm"].n == 1


def test_the_loss_to_the_teacher_is_shared_out_over_the_places_of_the_slices():
    rows = [{"structure": "LV", "place": p, "student": s, "teacher": t} for p, s, t in
            ((0.0, 0.9, 0.9), (0.5, 0.8, 0.9), (1.0, 0.5, 0.8), (1.2, 0.0, 0.0))]
    found = {(r[0], r[1]): r[2:] for r in headline_limits.by_place(rows)}
    assert found["LV", "apex"] == ["1", "0.500", "0.800", "+75%"]
    assert found["LV", "middle"][-1] == "+25%"
    assert found["LV", "outside"] == ["1", "0.000", "0.000", "+0%"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("a headline")
    tiny_bundle.write_nnunet_data(place / "Dataset001", cases=8)
    nnunet_folders.model_folder(place / "model", patch=(32, 32), spacing=(1.5, 1.5))
    return place


@pytest.mark.soak
def test_the_quick_form_trains_both_arms_and_writes_every_part(place):
    done = subprocess.run([sys.executable, SCRIPTS / "headline.py", "--quick", "--data",
                           f"nnunet:{place / 'Dataset001'}", "--teacher", f"nnunet:{place / 'model'}", "--work",
                           place / "work", "--out", place / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads((place / "out" / "headline.json").read_text())
    assert document["quick"]
    assert len(document["twins"]["gain_by_seed"]) == 1
    assert {t["name"] for t in document["targets"]} >= {"mean Dice, INT8 student", "INT8 weights, MB"}
    text = (place / "out" / "headline.md").read_text()
    assert str(place) not in text + json.dumps(document)
    assert "these numbers mean nothing" in text


@pytest.mark.soak
def test_the_limits_are_found_in_what_the_headline_left(place):
    data = f"nnunet:{place / 'Dataset001'}"
    headline_limits.main(["--bundle", str(place / "work" / "distilled-0.edgeseg"), "--teacher",
                          f"nnunet:{place / 'model'}", "--data", data, "--work", str(place / "work"), "--run",
                          str(place / "work" / "distilled-0"), "--out", str(place / "out")])
    found = json.loads((place / "out" / "headline_limits.json").read_text())
    assert found["curves"]["distilled-0"]
    assert 0 < len(found["worst"]) <= 10
    assert (place / "out" / "headline_limits.png").stat().st_size > 5000
