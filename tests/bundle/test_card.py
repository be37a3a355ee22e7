import re

import pytest
import tiny_bundle
from measured_manifest import estimate, gate, with_evidence

from edgeseg.bundle.card import gate_rows, licence_text, model_card
from edgeseg.container import open_bundle
from edgeseg.phantoms import cine
from edgeseg.readers import acdc


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return open_bundle(tiny_bundle.make_bundle(tmp_path_factory.mktemp("x") / "tiny.edgeseg")).manifest


@pytest.fixture(scope="module")
def card(bare):
    return model_card(with_evidence(bare))


def section(card, title):
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def cells(text):
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]


def test_every_gate_stands_there_with_value_limit_and_verdict(bare, card):
    rows = cells(section(card, "Admission of INT8"))
    assert ["openvino int8", "mean Dice drop", "0.0012 [0.0004, 0.002]", "upper end <= 0.01", "20", "passed"] in rows
    assert ["onnxruntime int8", "mean Dice drop", "0.0212 [0.0204, 0.022]", "upper end <= 0.01", "20", "MISSED"] in rows
    assert ["openvino int8", "LV EF bias", "0.31 points", "<= 1 points", "20", "passed"] in rows
    for g in with_evidence(bare).measured.admission.gates:
        assert [g.subject, g.name] in [row[:2] for row in rows]
    assert "openvino int8: admitted; onnxruntime int8: not admitted" in card
    assert "20 patients of acdc dev" in card
    assert ["openvino", "ptq", "0.9071", "mean Dice drop"] in rows


def test_dice_of_each_structure_is_named_by_split(card):
    text = section(card, "Dice per structure")
    dev, val = text.split("On val")
    assert ["runtime", "precision", "patients", "RV", "MYO", "LV", "mean"] in cells(dev)
    assert ["openvino", "int8", "20", "0.91 [0.89, 0.93]", "0.88", "0.94", "0.91 [0.9, 0.92]"] in cells(dev)
    assert ["onnxruntime", "fp32", "20", "0.88 [0.86, 0.9]", "0.85", "0.91", "0.88 [0.87, 0.89]"] in cells(val)
    assert "kept for reporting" in val


def test_a_training_on_dev_and_what_it_notes_are_said(bare):
    measured = with_evidence(bare)
    final = measured.model_copy(update={"distillation": {**measured.distillation, "final": True, "note": "Seen late."}})
    for one, said in ((model_card(final), True), (model_card(measured), False)):
        assert ("trained on train and dev" in section(one, "Data and licences")) is said
        assert ("no estimate for new ones" in section(one, "Dice per structure")) is said
        assert ("Note: Seen late." in section(one, "Dice per structure")) is said


def test_calibration_without_patients_says_so(bare, card):
    text = section(card, "Calibration of INT8")
    for words in ("no patient's image among them", "phantom:cine?n=40&seed=7", "cine phantom", "phase: 1 ED, 1 ES",
                  "seed 7"):
        assert words in text
    assert "no patient's image" not in section(model_card(bare), "Calibration of INT8")


@pytest.mark.parametrize(("sheet", "said", "unsaid"), [
    ({"source": "run"}, ["training patients", "None is of a dev or val patient."], ["compared"]),
    ({"source": "nifti"}, ["4 patients", "compared", "would not show"], ["training", "None is of"]),
    ({"source": "phantom:cine?n=4", "synthetic": True}, ["4 simulated patients", "No name is that of"],
     ["training", "None is of", "compared"]),
])
def test_the_sheet_claims_of_held_out_patients_only_what_was_checked(bare, sheet, said, unsaid):
    changed = bare.calibration.model_copy(update={"patients": 4, **sheet})
    text = section(model_card(bare.model_copy(update={"calibration": changed})), "Calibration of INT8")
    assert all(words in text for words in said)
    assert not any(words in text for words in unsaid)


def test_the_higher_accuracy_tier_is_named_where_its_low_end_reaches_it():
    found = [gate("mean Dice ratio", "openvino int8", "accuracy", estimate(1.0, spread), ">=", 0.99, True, "low")
             for spread in (0.0005, 0.005)]
    assert [row[-1] for row in gate_rows(found)] == ["verdict", "passed, 99.9 % tier", "passed"]


def test_speed_streams_and_frame_graphs_name_their_machine_and_their_price(card):
    speed, streams = section(card, "Speed"), section(card, "Streams and frame graphs")
    for words in ("2 thread(s) of Some CPU", "avx512_vnni", "Other work was running"):
        assert words in speed
    assert ["openvino", "int8", "1.94", "1.8 [1.7, 1.9]"] in cells(speed)
    assert "Val: normalising each frame by itself" in streams
    assert "-0.004 [-0.006, -0.002] (from 0.8800)" in streams
    assert "40x36@1.5-uint16" in streams
    assert "99.87 % of the pixels" in streams


def test_what_was_not_measured_is_said_and_nothing_is_left_open(bare):
    without = model_card(bare.model_copy(update={"calibration": None}))
    for card in (without, model_card(bare)):
        assert not re.search(r"None\b(?! is of)|\(\)|\[\]|  +$", card)
        assert "Not measured." in section(card, "Dice per structure")
        assert "Not measured" in section(card, "Speed")
    assert "no INT8" in section(without, "Admission of INT8")
    assert "Not tested." in section(model_card(bare), "Admission of INT8")


def test_data_and_licence_are_carried(bare, card):
    assert "CC BY-NC-SA 4.0" in section(card, "Data and licences")
    assert "creativecommons.org/licenses/by-nc-sa" in licence_text(with_evidence(bare))


def test_a_bar_in_a_name_does_not_break_a_table(bare):
    m = with_evidence(bare)
    rung = m.measured.ladder[0].model_copy(update={"rung": "a|b"})
    card = model_card(m.model_copy(update={"measured": m.measured.model_copy(update={"ladder": (rung,)})}))
    assert ["openvino", "a\\|b", "0.9071", "mean Dice drop"] in cells(card)


def terms(bare, name, licence, teacher):
    """LICENSE and card of a bundle of that data and teacher."""
    m = with_evidence(bare).model_copy(update={
        "teacher": teacher, "licences": {"weights": licence, "software": "Apache-2.0"},
        "data": bare.data.model_copy(update={"name": name, "licence": licence})})
    return licence_text(m), model_card(m)


def test_terms_of_weights_distilled_on_acdc_are_said_plainly(bare):
    text, card = terms(bare, "acdc", acdc.LICENCE, {"dataset": "Dataset027_ACDC"})
    for words in ("data set acdc", "CC BY-NC-SA 4.0 (ACDC", "creativecommons.org/licenses/by-nc-sa",
                  "no commercial use", "name the source", "(Dataset027_ACDC) may apply"):
        assert words in text
    assert "Apache-2.0" in text.split("\n\n")[1]  # the software, apart from the weights
    assert "commercially" not in text
    assert "CC BY-NC-SA 4.0 (ACDC" in section(card, "Data and licences")
    assert "synthetic images" not in card


def test_terms_of_weights_of_phantom_labels_are_free_and_their_dice_is_synthetic(bare):
    text, card = terms(bare, "phantom", cine.LICENCE, {})
    for words in ("data set phantom", "Apache-2.0 (synthetic, no patient data)", "apache.org/licenses/LICENSE-2.0",
                  "also commercially", "No teacher"):
        assert words in text
    assert "NC" not in text
    assert "may apply" not in text
    assert "none: trained on labels only" in section(card, "Data and licences")
    assert "Cases of phantom, synthetic images." in section(card, "Dice per structure")
    assert "synthetic images alone" in section(card, "Known limits")


def test_of_merged_data_the_strictest_terms_are_named(bare):
    text, _ = terms(bare, "phantom+acdc", f"{cine.LICENCE}; {acdc.LICENCE}", {})
    assert "no commercial use" in text
    assert "also commercially" not in text
