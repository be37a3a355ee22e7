import json
import subprocess
import sys

import pytest
import tiny_bundle
import typer
from typer.testing import CliRunner

from edgeseg.cli.evaluate import evaluate
from edgeseg.errors import EdgesegError

app = typer.Typer()
app.command()(evaluate)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg", precisions=("fp32",))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_bundle.write_nnunet_data(tmp_path_factory.mktemp("some data") / "Dataset001")


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_table_for_people_then_one_document_on_the_last_line_and_files(bundle, data, tmp_path):
    out = tmp_path / "some out"
    found = run(bundle, "--data", f"nnunet:{data}", "--split", "all", "--out", out, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout.strip().splitlines()[-1])
    assert document["schema"] == "edgeseg.evaluation/1"
    assert document["bundle"] == "tiny.edgeseg"
    assert document["precision"] == "fp32"  # what "auto" came to
    mean = document["summary"]["structures"]["mean"]["all"]["dice"]
    assert f"{mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]" in found.stdout
    assert sorted(p.name for p in out.iterdir()) == ["cases.csv", "evaluation.json", "patients.csv"]
    assert str(data.parent) not in json.dumps(document)


def test_the_seeded_split_is_used_by_default(bundle, data):
    found = run(bundle, "--data", f"nnunet:{data}", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout.strip().splitlines()[-1])
    assert document["data"]["split"] == "val"
    assert 1 <= document["summary"]["patients"] < 5


@pytest.mark.parametrize(("arguments", "message"), [
    (["--split", "tset"], "unknown split 'tset'"),
    (["--precision", "int8"], "int8"),
    (["--precision", "int4"], "unknown precision 'int4'"),
    (["--backend", "tensorrt"], "unknown backend 'tensorrt'"),
])
def test_bad_input_is_one_line_and_writes_nothing(bundle, data, tmp_path, arguments, message):
    found = run(bundle, "--data", f"nnunet:{data}", *arguments, "--out", tmp_path / "out")
    assert isinstance(found.exception, EdgesegError), found.output
    assert message in str(found.exception)
    assert "\n" not in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_refused_before_the_work_starts(bundle, data, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("kept")
    monkeypatch.setattr("edgeseg.measure.evaluate.evaluate_bundle", lambda *a: pytest.fail("the work started"))
    for out in (file, file / "below"):
        found = run(bundle, "--data", f"nnunet:{data}", "--out", out)
        assert isinstance(found.exception, EdgesegError), found.output
        assert f"{file}: is a file" in str(found.exception)
    assert file.read_text() == "kept"


def test_unlabelled_images_are_refused_by_name(bundle, data, tmp_path):
    found = run(bundle, "--data", f"nifti:{data / 'imagesTr'}", "--split", "all")
    assert isinstance(found.exception, EdgesegError)
    assert "case0" in str(found.exception)
    assert "label" in str(found.exception)


def test_evaluating_imports_no_torch(bundle, data):
    code = f"""
import sys
from edgeseg.measure.evaluate import evaluate_bundle
evaluate_bundle({str(bundle)!r}, "nnunet:" + {str(data)!r}, "all")
print([m for m in ("torch", "nncf", "onnx", "lightning", "matplotlib") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
