import json
import shutil

import pytest
import tiny_bundle
from measured_manifest import PROTOCOL, with_evidence

from edgeseg.cli.main import main
from edgeseg.container import MANIFEST, open_bundle, sha256, write_sums


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Two bundles, one of them with evidence."""
    root = tmp_path_factory.mktemp("a place") / "runs"
    bare = tiny_bundle.make_bundle(root / "bare.edgeseg")
    proven = shutil.copytree(bare, root / "proven.edgeseg")
    (proven / "frames" / PROTOCOL.name).mkdir(parents=True)
    shutil.copy(proven / "model.fp32.onnx", proven / "frames" / PROTOCOL.name / "fp32.onnx")
    with_evidence(open_bundle(bare).manifest).write(proven / MANIFEST)
    write_sums(proven)
    return root


@pytest.fixture
def runs(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(original, tmp_path / "runs")


@pytest.fixture
def edgeseg(monkeypatch, capsys):
    """Run the real command: (exit code, stdout, stderr)."""
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["edgeseg", "bundle", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out, said.err.strip()
    return call


def test_list_shows_every_bundle_and_why_one_is_damaged(runs, edgeseg):
    assert edgeseg("pack", runs / "bare.edgeseg", runs / "packed.edgeseg.zip")[0] == 0
    shutil.copytree(runs / "bare.edgeseg", runs / "broken.edgeseg")
    (runs / "broken.edgeseg" / "golden.npz").write_bytes(b"x")
    (runs / "junk.edgeseg.zip").write_bytes(b"x")
    (runs / "a run").mkdir()
    code, out, err = edgeseg("list", "runs")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["bundle", "bare.edgeseg", "packed.edgeseg.zip", "proven.edgeseg",
                                                   "damaged", "damaged"]
    assert "not tested" in lines[1]
    for words in ("openvino", "0.880 [0.870, 0.890] (test val, n 20, openvino int8)", "CC BY-NC-SA 4.0"):
        assert words in lines[3]
    assert "golden.npz: changed" in lines[4]
    assert "junk.edgeseg.zip: no zip archive" in lines[5]


def test_list_as_json_has_the_same(runs, edgeseg):
    (runs / "junk.edgeseg.zip").write_bytes(b"x")
    bare, junk, proven = json.loads(edgeseg("list", runs, "--json")[1].splitlines()[-1])
    assert (bare["int8"], bare["dice"], bare["error"]) == ("not tested", None, None)
    assert bare["bytes"] == sum(p.stat().st_size for p in (runs / "bare.edgeseg").iterdir())
    assert "no zip archive" in junk["error"]
    assert proven["int8"] == "openvino"
    assert (proven["dice"]["split"], proven["dice"]["precision"]) == ("val", "int8")
    assert proven["dice"]["dice"]["mean"]["value"] == 0.88


def test_list_of_nothing(runs, edgeseg, tmp_path):
    (tmp_path / "empty").mkdir()
    assert json.loads(edgeseg("list", tmp_path / "empty", "--json")[1]) == []
    code, out, err = edgeseg("list", tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert "nowhere: no such folder" in err


def test_inspect_shows_the_sheet_the_gates_and_the_speeds(runs, edgeseg):
    code, out, _ = edgeseg("inspect", runs / "proven.edgeseg")
    assert code == 0
    for words in ("seed 7", "no patient's image", "mean Dice drop", "MISSED", "openvino int8: admitted", "Some CPU",
                  "1.94", "ptq", PROTOCOL.name, "0 background, 1 RV", "CC BY-NC-SA 4.0"):
        assert words in out
    document = json.loads(edgeseg("inspect", runs / "proven.edgeseg", "--json")[1].splitlines()[-1])
    assert document["manifest"] == json.loads((runs / "proven.edgeseg" / MANIFEST).read_text())
    assert document["files"]["golden.npz"] == (runs / "proven.edgeseg" / "golden.npz").stat().st_size


def test_a_manifest_does_not_reach_the_terminals_controls(runs, edgeseg):
    bundle = runs / "bare.edgeseg"
    values = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(values | {"task": "evil \x1b]0;title\x07 \x1b[2J"}))
    write_sums(bundle)
    for command in (("inspect", bundle), ("list", runs)):
        assert "\x1b" not in edgeseg(*command)[1]
    assert "evil ?]0;title? ?[2J" in edgeseg("inspect", bundle)[1]


def test_verify_counts_the_files_that_it_checked(runs, edgeseg):
    bundle = runs / "bare.edgeseg"
    count = len(list(bundle.iterdir())) - 1
    assert f"{count} files" in edgeseg("verify", bundle)[1]
    assert json.loads(edgeseg("verify", bundle, "--json")[1])["files"] == count
    (bundle / "model.int8.bin").write_bytes(b"\0" * (bundle / "model.int8.bin").stat().st_size)
    code, out, err = edgeseg("verify", bundle)
    assert (code, out) == (2, "")
    assert "model.int8.bin: changed" in err
    assert "\n" not in err


def test_pack_and_unpack_go_round(runs, edgeseg, tmp_path):
    zipped, back = tmp_path / "x y.zip", tmp_path / "back.edgeseg"
    document = json.loads(edgeseg("pack", runs / "proven.edgeseg", zipped, "--json")[1])
    assert document == {"zip": str(zipped), "bytes": zipped.stat().st_size, "sha256": sha256(zipped)}
    assert sha256(zipped) in edgeseg("pack", runs / "proven.edgeseg", zipped, "--force")[1]
    assert edgeseg("verify", zipped)[0] == 0
    document = json.loads(edgeseg("unpack", zipped, back, "--json")[1])
    assert document["files"] == len(open_bundle(runs / "proven.edgeseg").files) - 1
    assert open_bundle(back).manifest == open_bundle(runs / "proven.edgeseg").manifest
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    for command in (("pack", back, zipped), ("unpack", zipped, back), ("unpack", back / MANIFEST, tmp_path / "new"),
                    ("pack", tmp_path / "nothing", tmp_path / "new.zip"), ("unpack", tmp_path, tmp_path / "new")):
        code, out, err = edgeseg(*command)
        assert (code, out, "\n" in err) == (2, "", False)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
