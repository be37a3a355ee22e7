"""Shipped bundles on the command line: `edgeseg bundle list`, and a name in place of a path."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import tiny_bundle
from measured_manifest import PROTOCOL, with_evidence

from edgeseg import Segmenter, shipped
from edgeseg.cli.main import main
from edgeseg.container import MANIFEST, open_bundle, write_sums


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkout that ships a bundle without evidence and one with."""
    root = tmp_path_factory.mktemp("a checkout")
    bare = tiny_bundle.make_bundle(root / "export" / "bare.edgeseg")
    proven = shutil.copytree(bare, root / "export" / "proven.edgeseg")
    (proven / "frames" / PROTOCOL.name).mkdir(parents=True)
    shutil.copy(proven / "model.fp32.onnx", proven / "frames" / PROTOCOL.name / "fp32.onnx")
    licences = {"weights": "CC BY-NC-SA 4.0 (somebody)", "software": "Apache-2.0"}
    with_evidence(open_bundle(bare).manifest).model_copy(update={"licences": licences}).write(proven / MANIFEST)
    write_sums(proven)
    return root


@pytest.fixture
def checkout(original, tmp_path, monkeypatch):
    root = shutil.copytree(original, tmp_path / "checkout")
    (root / "edgeseg").mkdir()
    monkeypatch.setattr(shipped, "PACKAGE", root / "edgeseg")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return root


@pytest.fixture
def edgeseg(monkeypatch, capsys):
    """Run the real command: (exit code, stdout, stderr)."""
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["edgeseg", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out, said.err.strip()
    return call


def test_the_list_has_a_line_a_shipped_bundle(checkout, edgeseg, tmp_path):
    tiny = tmp_path / "work" / "runs" / "mine.edgeseg"
    shutil.copytree(checkout / "export" / "bare.edgeseg", tiny)  # of a user: not shipped
    code, out, err = edgeseg("bundle", "list")
    assert (code, err) == (0, "")
    header, bare, proven = out.splitlines()
    assert header.split()[0] == "bundle"
    assert bare.split()[0] == "bare"
    assert "not measured" in bare
    for words in ("proven", "test", "0.880 [0.870, 0.890] (test val, n 20, openvino int8)", "openvino ", "MB",
                  "CC BY-NC-SA 4.0 (somebody)"):
        assert words in proven


def test_the_list_as_json_says_the_same(checkout, edgeseg):
    bare, proven = json.loads(edgeseg("bundle", "list", "--json")[1].splitlines()[-1])
    assert (bare["name"], bare["dice"], bare["int8"]) == ("bare", None, "not tested")
    assert proven["dice"]["dice"]["mean"] == {"value": 0.88, "low": 0.87, "high": 0.89, "n": 20}
    assert (proven["dice"]["split"], proven["licence"]) == ("val", "CC BY-NC-SA 4.0 (somebody)")
    folder = checkout / "export" / "proven.edgeseg"
    assert proven["bytes"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_a_damaged_shipped_bundle_is_listed_as_that(checkout, edgeseg):
    (checkout / "export" / "bare.edgeseg" / "golden.npz").write_bytes(b"x")
    code, out, _ = edgeseg("bundle", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["bundle", "proven", "damaged"]
    assert "golden.npz: changed" in out
    assert "golden.npz: changed" in edgeseg("bundle", "verify", "bare")[2]


def test_an_installation_without_bundles_says_so(checkout, edgeseg):
    (checkout / "edgeseg" / "_shipped").mkdir()
    code, out, err = edgeseg("bundle", "list")
    assert (code, err) == (0, "")
    assert out.startswith("no bundle is shipped with this installation")
    assert json.loads(edgeseg("bundle", "list", "--json")[1]) == []


def test_predict_takes_a_shipped_name(checkout, edgeseg, tmp_path):
    nibabel.Nifti1Image(tiny_bundle.frame(0).transpose(2, 1, 0), np.diag([1.5, 1.5, 8, 1])).to_filename("image.nii.gz")
    code, out, err = edgeseg("predict", "bare", "-i", "image.nii.gz", "-o", "masks", "--threads", 1)
    assert (code, err) == (0, "")
    assert "bare.edgeseg" in out  # which one it took
    assert np.array_equal(np.asarray(nibabel.load("masks/image.nii.gz").dataobj).T, tiny_bundle.label_image(0)[None])
    found = Segmenter("bare", threads=1).segment(tiny_bundle.frame(0)[0], (1.5, 1.5))
    assert np.array_equal(found.labels, tiny_bundle.label_image(0))


@pytest.mark.parametrize("command", [
    ("predict", "{}", "-i", "x", "-o", "masks"), ("evaluate", "{}"), ("verify", "{}"), ("bench", "{}"),
    ("admit", "{}", "--data", "phantom:cine"), ("bundle", "inspect", "{}"), ("bundle", "verify", "{}"),
    ("bundle", "pack", "{}", "out.zip")])
@pytest.mark.parametrize("name", ["nowhere", "./bare"])  # the second is a path, which is not there
def test_every_command_refuses_what_is_neither_path_nor_name(checkout, edgeseg, tmp_path, command, name):
    code, out, err = edgeseg(*(word.format(name) for word in command))
    assert (code, out) == (2, "")
    assert err.startswith(f"edgeseg: {name}: no such bundle")
    assert "(bare, proven)" in err
    assert "\n" not in err
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("command", [("predict", "-i", "x", "-o", "masks"), ("verify",), ("bench",), ("evaluate",)])
def test_no_command_takes_a_shipped_bundle_that_nobody_named(checkout, edgeseg, command):
    code, _, err = edgeseg(*command)
    assert code == 2
    assert "no bundle in runs/" in err


def test_the_usual_inspections_take_a_name(checkout, edgeseg, tmp_path):
    assert "openvino int8: admitted" in edgeseg("bundle", "inspect", "proven")[1]
    assert edgeseg("bundle", "pack", "bare", tmp_path / "x.zip")[0] == 0
    assert open_bundle(tmp_path / "x.zip").manifest.name == "bare"
