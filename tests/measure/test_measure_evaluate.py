import csv
import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny_bundle

from edgeseg.bundle.export import describe
from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.manifest import Data, Measured, split_sha256
from edgeseg.measure.evaluate import evaluate, evaluate_bundle, split_note
from edgeseg.readers import open_data

SCHEME = LabelScheme(("background", "RV", "MYO", "LV"))
MNMS = LabelScheme(("background", "LV", "MYO", "RV"))


def stack(lv: int, myo: int, rv: int = 0) -> np.ndarray:
    """uint8 [4, 20, 20] with that many pixels of each structure."""
    flat = np.zeros(1600, np.uint8)
    flat[:lv], flat[lv : lv + myo], flat[800 : 800 + rv] = 3, 2, 1
    return flat.reshape(4, 20, 20)


def case(patient: str, phase: str | None, labels: np.ndarray, scheme: LabelScheme | None = SCHEME, **other) -> Case:
    frames = np.random.default_rng(0).normal(size=(len(labels), 1, *labels.shape[1:])).astype(np.float32)
    return Case(f"{patient}_{phase}", patient, frames, (1.5, 1.25), slice_spacing=8.0, labels=labels, scheme=scheme,
                phase=phase, group="NOR", **other)


VOXEL = 8.0 * 1.5 * 1.25 / 1000


def test_clinical_values_by_hand():
    cases = [case("p1", "ED", stack(200, 100, 300)), case("p1", "ES", stack(80, 120, 150))]
    answers = {"p1_ED": stack(190, 110, 300), "p1_ES": stack(100, 120, 150)}
    found = {r.name: r for r in evaluate(lambda c: answers[c.id], cases, SCHEME).read_outs()}
    assert found["LV EDV ml"].manual == pytest.approx(200 * VOXEL)
    assert found["LV EDV ml"].difference == pytest.approx(-10 * VOXEL)
    assert found["LV ESV ml"].measured == pytest.approx(100 * VOXEL)
    assert found["LV EF %"].manual == pytest.approx(60.0)
    assert found["LV EF %"].measured == pytest.approx(100 * 90 / 190)
    assert found["RV EF %"].difference == pytest.approx(0.0)
    assert found["LV mass g"].manual == pytest.approx(1.05 * 100 * VOXEL)
    assert found["LV mass g"].measured == pytest.approx(1.05 * 110 * VOXEL)


def test_a_patient_without_es_has_no_ef_but_keeps_the_rest():
    result = evaluate(lambda c: c.labels, [case("p1", "ED", stack(200, 100))], SCHEME)
    assert {r.name for r in result.read_outs()} == {"LV EDV ml", "RV EDV ml", "LV mass g"}


def test_structures_without_a_heart_have_no_clinical_values():
    scheme = LabelScheme(("background", "spleen"))
    labels = (stack(50, 0) > 0).astype(np.uint8)
    result = evaluate(lambda c: c.labels, [case("p1", None, labels, scheme)], scheme)
    assert result.read_outs() == []
    assert result.summary()["clinical"] == {}
    assert list(result.summary()["structures"]) == ["mean", "spleen"]
    assert list(result.summary()["structures"]["spleen"]) == ["all"]


def test_labels_are_joined_by_name_not_by_number():
    labels = stack(200, 100, 300)
    other = SCHEME.names.index
    numbered = np.array([0, other("LV"), other("MYO"), other("RV")])  # M&Ms numbers the three the other way round
    mnms_labels = np.zeros_like(labels)
    for value, name in enumerate(MNMS.names):
        mnms_labels[labels == other(name)] = value
    assert (mnms_labels != labels).any()
    assert numbered.tolist() == [0, 3, 2, 1]
    result = evaluate(lambda c: labels, [case("p1", "ED", mnms_labels, MNMS)], SCHEME)
    assert [r.dice for r in result.rows] == [1.0, 1.0, 1.0]


def test_the_summary_is_a_mean_over_patients_with_its_interval():
    cases = [case(f"p{i}", phase, stack(100, 50, 60)) for i in range(4) for phase in ("ED", "ES")]

    def segment(c):  # p0 loses half of its LV at ES, p1 its whole RV
        labels = c.labels.copy()
        if c.id == "p0_ES":
            labels.ravel()[:50] = 0
        if c.patient == "p1":
            labels[labels == 1] = 0
        return labels

    summary = evaluate(segment, cases, SCHEME).summary(seed=3)
    lv, rv = summary["structures"]["LV"], summary["structures"]["RV"]
    half = 2 * 50 / 150
    assert lv["ES"]["dice"].value == pytest.approx((half + 3) / 4)
    assert lv["ED"]["dice"].value == 1.0
    assert lv["all"]["dice"].value == pytest.approx(((half + 1) / 2 + 3) / 4)
    assert lv["all"]["dice"].n == 4
    assert lv["all"]["dice"].low < lv["all"]["dice"].value < lv["all"]["dice"].high
    assert (rv["all"]["undefined"], rv["all"]["hd95_mm"].n, rv["all"]["hd95_mm"].value) == (2, 3, 0.0)
    assert rv["all"]["dice"].value == pytest.approx(0.75)
    mean = [summary["structures"][s]["all"]["dice"].value for s in ("RV", "MYO", "LV")]
    assert summary["structures"]["mean"]["all"]["dice"].value == pytest.approx(np.mean(mean))
    assert (summary["cases"], summary["patients"], summary["seed"]) == (8, 4, 3)


def test_ignored_pixels_count_for_nobody():
    labels = stack(100, 50)
    labels[0, 0, :] = 255
    answer = stack(100, 50)
    answer[0, 0, :] = 1  # wrong, but nobody may look
    lv = evaluate(lambda c: answer, [case("p1", "ED", labels)], SCHEME).rows[2]
    assert lv.dice == 1.0
    assert lv.manual_volume_ml == pytest.approx(80 * VOXEL)


def test_a_clip_has_distances_in_the_plane_and_no_volume():
    clip = replace(case("p1", None, stack(100, 50)), axis="time", slice_spacing=None)
    shifted = np.roll(clip.labels, 2, axis=1)
    rows = evaluate(lambda c: shifted, [clip], SCHEME).rows
    assert math.isnan(rows[2].volume_ml)
    assert rows[2].hd95_mm == pytest.approx(3.0)  # 2 rows of 1.5 mm, in the frame that has LV


def test_cases_are_streamed_one_at_a_time():
    log = []

    def cases():
        for i in range(3):
            log.append(f"read {i}")
            yield case(f"p{i}", "ED", stack(100, 50))

    def segment(c):
        log.append(f"segment {c.patient[1:]}")
        return c.labels

    evaluate(segment, cases(), SCHEME)
    assert log == [f"{what} {i}" for i in range(3) for what in ("read", "segment")]


@pytest.mark.parametrize(("change", "message"), [
    ({"labels": None}, "has no labels"),
    ({"scheme": LabelScheme(("background", "RV"), (0, 1))}, "but the task needs"),
])
def test_a_case_that_cannot_be_compared_is_named(change, message):
    wrong = replace(case("p1", "ED", stack(10, 10)), source="a file.nii.gz", **change)
    with pytest.raises(EdgesegError, match=rf"a file\.nii\.gz: .*{message}"):
        evaluate(lambda c: stack(10, 10), [wrong], SCHEME)


def test_no_case_at_all_is_an_error():
    with pytest.raises(EdgesegError, match="no case to evaluate"):
        evaluate(lambda c: c.labels, [], SCHEME)


def test_files_hold_every_row_and_the_document_is_json(tmp_path):
    cases = [case("p1", "ED", stack(200, 100)), case("p1", "ES", stack(80, 120))]
    result = evaluate(lambda c: c.labels, cases, SCHEME)
    names = [p.name for p in result.write(tmp_path)]
    assert names == ["cases.csv", "patients.csv", "evaluation.json"]
    with (tmp_path / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert rows[2]["structure"] == "LV"
    assert float(rows[2]["volume_ml"]) == pytest.approx(200 * VOXEL)
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert document["schema"] == "edgeseg.evaluation/1"
    assert document["summary"]["structures"]["LV"]["ED"]["dice"]["value"] == 1.0
    assert document["summary"]["structures"]["LV"]["ED"]["dice"]["low"] is None  # one patient has no interval
    assert len(document["rows"]) == 6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A real nnU-Net raw folder on which the tiny bundle is exact but for its resampling."""
    return tiny_bundle.write_nnunet_data(tmp_path_factory.mktemp("the data") / "Dataset001")


@pytest.mark.parametrize(("backend", "precision"), [("openvino", "int8"), ("onnxruntime", "fp32")])
def test_a_real_bundle_on_real_files(bundle, data, backend, precision):
    seen = []
    result = evaluate_bundle(bundle, f"nnunet:{data}", "all", precision=precision, backend=backend,
                             progress=lambda c, total: seen.append((c.id, total)))
    assert len(seen) == 5
    assert seen[0][1] == 5
    summary = result.summary()
    assert summary["patients"] == 5
    assert summary["structures"]["mean"]["all"]["dice"].value > 0.97
    assert summary["structures"]["LV"]["all"]["hd95_mm"].value < 1.6
    assert result.about["precision"] == precision
    assert str(bundle.parent) not in json.dumps(result.about)


def test_a_changed_bundle_is_refused(bundle, data, tmp_path):
    import shutil

    copy = tmp_path / "changed.edgeseg"
    shutil.copytree(bundle, copy)
    with (copy / "model.int8.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(EdgesegError, match=r"model\.int8\.bin: changed"):
        evaluate_bundle(copy, f"nnunet:{data}", "all")


def test_an_empty_split_is_refused(bundle, data, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [f"case{i}" for i in range(5)], "dev": [], "val": []}))
    with pytest.raises(EdgesegError, match="no case in split 'val'"):
        evaluate_bundle(bundle, f"nnunet:{data}", "val", split)


def test_ejection_fractions_of_acdc_are_those_of_the_diagnoses(acdc):
    from edgeseg.readers import open_data

    data = open_data(f"acdc:{acdc}").select("val")
    data = replace(data, refs=tuple(r for r in data.refs if r.group in ("DCM", "NOR")))
    assert len(data) == 16
    result = evaluate(lambda c: SCHEME.encode(c.labels, c.scheme), data, SCHEME)
    fractions = [r for r in result.read_outs() if r.name == "LV EF %"]
    assert len(fractions) == 8
    for found in fractions:  # ACDC: dilated cardiomyopathy below 40 %, normal above 50 %
        assert found.measured == found.manual
        assert found.manual < 40 if found.group == "DCM" else found.manual > 50
    assert result.summary()["structures"]["mean"]["all"]["dice"].value == 1.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's data folder, and a bundle whose manifest tells of that data what `export` writes."""
    import tiny_run

    place = tmp_path_factory.mktemp("trained")
    run = tiny_run.make_run(place)
    data = describe(run, "tiny", None, Measured(frames=0, frames_from="", checks=(), training={})).data
    return run.data["spec"][0], tiny_bundle.make_bundle(place / "tiny.edgeseg", precisions=("fp32",), data=data)


def test_a_bundle_tells_its_own_val_patients_from_others(trained, tmp_path):
    data, bundle = trained
    assert evaluate_bundle(bundle, data).notes == []
    splits = {s: list(open_data(data).select(s).patients()) for s in ("train", "val")}
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"train": splits["val"], "val": splits["train"]}))
    (note,) = evaluate_bundle(bundle, data, split_file=other).notes
    assert note.startswith("CAUTION")
    assert "not the val patients of the training split" in note
    (note,) = evaluate_bundle(bundle, data, "all").notes
    assert note.startswith("CAUTION")
    assert "trained on" in note


def test_another_data_set_is_noted_as_external(trained, tmp_path):
    data = tiny_bundle.write_nnunet_data(tmp_path / "Dataset002_Other", cases=3)
    (note,) = evaluate_bundle(trained[1], f"nnunet:{data}").notes
    assert "Dataset002_Other" in note
    assert "external" in note
    assert "CAUTION" not in note


def test_a_part_of_merged_training_data_is_not_external():
    about = Data(name="acdc+mnms", licence="", patients={}, split_sha256={"val": split_sha256(["mnms_a"])})
    assert "CAUTION" in split_note(about, "acdc", "val", ["a"])
    assert "external" in split_note(about, "cmr", "val", ["a"])
    assert split_note(about, "mnms+acdc", "val", ["mnms_a"]) == ""


def test_the_hash_of_a_split_is_that_of_its_sorted_patients():
    assert split_sha256(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()
