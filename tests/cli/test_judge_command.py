"""edgeseg judge: real bundles, phantom clips and a random judge; what is printed and what is written."""

import json

import pytest
import tiny_bundle
import typer
from typer.testing import CliRunner

from edgeseg.cli.judge import judge
from edgeseg.errors import EdgesegError
from edgeseg.phantoms.echo_write import write_avi
from edgeseg.readers import open_data
from edgeseg.teachers import judge_training

app = typer.Typer()
app.command()(judge)
CLIP = "phantom:echo?n=1&seed=0"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    first = tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "one.edgeseg", precisions=("fp32",))
    return [first, *(tiny_bundle.copy_bundle(first, first.with_name(f"{n}.edgeseg")) for n in ("two", "three"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch

    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("judge")
    judge_training.write_model(judge_training.new_model(), out)
    return out


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_bundles_are_judged_beside_their_dice_and_their_order_is_compared(bundles, model, tmp_path):
    found = run(*bundles, "--data", CLIP, "--model", model, "--every", 40, "--out", tmp_path / "out", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout.strip().splitlines()[-1])
    assert document == json.loads((tmp_path / "out" / "judge.json").read_text())
    assert [m["name"] for m in document["members"]] == ["one.edgeseg", "two.edgeseg", "three.edgeseg"]
    assert document["spearman"]["value"] == 0  # equal bundles: no order to agree on
    assert "Spearman" in found.stdout
    row = document["rows"][0]
    assert row["score"] == pytest.approx(row["hidden"] + row["wall"])
    assert 0 <= row["dice"] < 1
    assert document["judge"]["name"] == model.name
    assert str(model) not in json.dumps(document)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--data", CLIP, "--every", "0"], "--every 0"),
    (["--data", CLIP, "--split", "val"], "no clip in split 'val'"),
    (["--data", "phantom:cine?n=1"], "looks at grey clips")])
def test_bad_input_is_one_line_and_writes_nothing(bundles, model, tmp_path, arguments, said):
    found = run(bundles[0], *arguments, "--model", model, "--out", tmp_path / "out")
    assert isinstance(found.exception, EdgesegError), found.output
    assert said in str(found.exception)
    assert "\n" not in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_a_clip_that_cannot_be_read_is_left_out_with_a_note(bundles, model, tmp_path):
    write_avi(tmp_path / "good.avi", open_data(CLIP).refs[0].load().frames[:24, 0], 50.0)
    (tmp_path / "broken.avi").write_bytes(b"RIFF no video")
    found = run(bundles[0], "--data", f"video:{tmp_path}", "--model", model, "--every", "12", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout.strip().splitlines()[-1])
    assert [r["clip"] for r in document["rows"]] == ["good"]
    assert any(n.startswith("left out: ") and "broken.avi" in n for n in document["notes"])
