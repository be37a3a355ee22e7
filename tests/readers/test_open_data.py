import json
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.phantoms.write import write_nnunet
from edgeseg.readers import Dataset, merge, open_data
from edgeseg.readers.splits import read_split, seeded_split, split_of_patients


def mask(case, name: str) -> np.ndarray:
    return case.labels == case.scheme.values[case.scheme.names.index(name)]


def heavy_modules_after(code: str) -> str:
    """Which of the heavy modules a fresh interpreter holds after running `code`."""
    code += "; import sys; print([m for m in ('torch', 'nibabel', 'onnx', 'nncf', 'lightning') if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_readers_import_neither_torch_nor_nibabel():
    assert heavy_modules_after("import edgeseg.readers") == "[]"


def test_reading_files_never_imports_torch(acdc):
    code = f"from edgeseg.readers import open_data; list(open_data({f'acdc:{acdc}'!r}))"
    assert heavy_modules_after(code) == "['nibabel']"


def test_references_can_be_pickled_for_worker_processes(acdc):
    data = pickle.loads(pickle.dumps(open_data(f"acdc:{acdc}")))
    assert data.refs[0].load().id == "patient001_frame01"


@pytest.mark.parametrize(("spec", "word"), [
    ("somewhere", "acdc:PATH"), ("mha:somewhere", "acdc:PATH"), ("acdc:", "no such folder"),
    ("phantom:brain", "phantom 'brain'"), ("acdc:{}?frames=2d", "no option frames=2d"), ("acdc:{}?x", "?key=value"),
    ("mnms:{}?frames=4d", "no option"),
])
def test_unknown_formats_and_options_are_refused(tmp_path, spec, word):
    with pytest.raises(EdgesegError, match=r".*") as error:
        open_data(spec.format(tmp_path))
    assert word in str(error.value)


def test_question_mark_in_a_folder_name_is_no_option(acdc):
    odd = acdc.rename(acdc.with_name("what?now"))
    assert len(open_data(f"acdc:{odd}")) == 8


def test_select_keeps_one_split_and_refuses_unknown_ones(acdc):
    data = open_data(f"acdc:{acdc}")
    assert data.select("dev").patients() == ("patient002",)
    assert data.select(None) is data
    assert sum(len(data.select(s)) for s in ("train", "dev", "val")) == len(data)
    with pytest.raises(EdgesegError, match="unknown split 'test'"):
        data.select("test")


def test_seeded_split_is_by_patient_fixed_and_70_10_20():
    patients = [f"p{i:03d}" for i in range(100)]
    split = seeded_split(patients)
    assert split == seeded_split(reversed(patients))
    assert split != seeded_split(patients, seed=1)
    assert [list(split.values()).count(s) for s in ("train", "dev", "val")] == [70, 10, 20]
    # the same for ever: a change would move patients between sets of runs that exist
    assert [p for p, s in sorted(split.items()) if s == "dev"][:3] == ["p013", "p015", "p025"]
    assert sorted(seeded_split("abc").values()) == ["dev", "train", "val"]
    assert sorted(seeded_split("ab").values()) == ["train", "val"]
    assert list(seeded_split("a").values()) == ["train"]


def test_without_split_file_both_phases_of_a_patient_stay_together(acdc):
    (acdc / "split.json").unlink()
    data = open_data(f"acdc:{acdc}")
    assert len({(r.patient, r.split) for r in data.refs}) == 4
    assert {r.split for r in data.refs} == {"train", "dev", "val"}


def test_split_file_wins_and_patients_that_it_leaves_out_are_in_no_set(acdc, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"train": ["patient003"], "val": ["patient001", "elsewhere"]}))
    data = open_data(f"acdc:{acdc}", file)
    assert [r.split for r in data.refs[::2]] == ["val", None, "train", None]


@pytest.mark.parametrize(("content", "word"), [
    ("{", "not JSON"), ("[1]", "expected"), ("{}", "expected"), ('{"test": ["a"]}', "expected"),
    ('{"train": "a"}', "list"), ('{"train": [1]}', "list"),
    ('{"train": ["a"], "val": ["a"]}', "patient a is in two splits"),
])
def test_malformed_split_file_is_named(tmp_path, content, word):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(EdgesegError, match=r"split\.json: ") as error:
        read_split(tmp_path / "split.json")
    assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_split_of_other_patients_or_no_file_is_refused(tmp_path):
    (tmp_path / "split.json").write_text('{"train": ["a"]}')
    with pytest.raises(EdgesegError, match="names none of the 1 patients"):
        split_of_patients(["b"], tmp_path)
    with pytest.raises(EdgesegError, match="no such split file"):
        split_of_patients(["b"], tmp_path, tmp_path / "other.json")


def test_patient_in_two_splits_is_an_error(data):
    with pytest.raises(EdgesegError, match="patient p00 is in two splits"):
        replace(data, refs=(data.refs[0], replace(data.refs[1], split="val")))
    with pytest.raises(EdgesegError, match="case p00_frame01 is there twice"):
        replace(data, refs=(data.refs[0], data.refs[0]))


def test_acdc_and_mnms_merge_by_name_not_by_number(acdc, mnms):
    spec = f"acdc:{acdc} + mnms:{mnms}"
    data = open_data(spec)
    assert data.spec == spec
    assert data.name == "acdc+mnms"
    assert len(data) == 16
    assert data.scheme.names == ("background", "RV", "MYO", "LV")
    assert len(data.licence.split("; ")) == 2
    assert data.patients()[0] == "acdc_patient001"
    assert data.patients()[-1] == "mnms_p03"
    alone = list(open_data(f"mnms:{mnms}"))
    for case, source in zip(list(data)[8:], alone, strict=True):
        assert case.scheme == data.scheme
        assert case.patient == f"mnms_{source.patient}"
        assert source.scheme.values != case.scheme.values or source.scheme.names != case.scheme.names
        for name in ("LV", "MYO", "RV"):
            assert np.array_equal(mask(case, name), mask(source, name))
            assert mask(case, name).any()


def test_merge_of_one_is_itself_and_of_none_an_error(data):
    assert merge([data]) is data
    with pytest.raises(EdgesegError, match="at least one"):
        merge([])


def test_merge_refuses_a_data_set_without_a_structure(acdc, make_data):
    other = make_data(scheme=LabelScheme(("background", "LV", "MYO")))
    with pytest.raises(EdgesegError, match="no label RV"):
        merge([open_data(f"acdc:{acdc}"), other])


def test_merge_finds_a_patient_in_two_splits_of_two_folders(data):
    elsewhere = replace(data, refs=tuple(replace(r, id=f"{r.id}b", split="train") for r in data.refs))
    with pytest.raises(EdgesegError, match="patient toy_p01 is in two splits"):
        merge([data, elsewhere])


def test_ignored_pixels_survive_a_merge(data, make_data, tmp_path):
    ref = make_data().refs[0]
    case = ref.load()
    labels = case.labels.copy()
    labels[0, 0] = 255
    refs = (replace(ref, load=lambda: replace(case, labels=labels)),)
    dotted = Dataset("dotted", "dotted:", refs, case.scheme, "none", ignore=255)
    merged = merge([data, dotted])
    found = list(merged)[-1].labels
    assert merged.ignore == 255
    assert np.array_equal(found, labels)
    again = open_data(f"nnunet:{write_nnunet(dotted, tmp_path / 'Dataset001_x')}")
    assert again.ignore == 255
    assert np.array_equal(next(iter(again)).labels, labels)
