"""Golden frames of the maker's own data: only on request, and then the bundle says so."""

import pytest
import tiny_run

from edgeseg.bundle.export import export_bundle
from edgeseg.cli.main import main
from edgeseg.container import open_bundle
from edgeseg.runtime.golden import load_golden


def test_images_enter_a_bundle_only_when_the_maker_insists(tmp_path, monkeypatch, capsys):
    run = tiny_run.make_run(tmp_path)
    data = run.recipe["data"][0]
    monkeypatch.setattr("sys.argv", ["edgeseg", "export", str(run.folder), "--no-int8", "--golden-from", data])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "--i-may-share-these" in capsys.readouterr().err
    assert not run.folder.with_name("tiny run.edgeseg").exists()
    bundle = open_bundle(export_bundle(run, int8=False, seconds=0.05, golden=data))
    assert bundle.manifest.golden == run.data["name"]
    first = next(iter(run.dataset()))
    golden = load_golden(bundle.file("golden.npz"))[0]
    assert (golden.frame == first.frames[len(first.frames) // 2]).all()
    card = bundle.file("MODEL_CARD.md").read_text()
    assert "No patient image is in this bundle" not in card
    assert f"golden frames are images of {run.data['name']}" in card
