import shutil
from pathlib import Path

import pytest
import tiny_bundle

from edgeseg import shipped
from edgeseg.container import locate, open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Calibration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("made") / "tiny.edgeseg")


@pytest.fixture
def checkout(tiny, tmp_path, monkeypatch):
    """A checkout that ships `tiny` and `other`, and an empty folder to work in."""
    root = tmp_path / "a checkout"
    for name in ("tiny", "other"):
        shutil.copytree(tiny, root / "export" / f"{name}.edgeseg")
    (root / "export" / "README.md").write_text("x")
    (root / "calibration").mkdir()
    (root / "calibration" / "cine.toml").write_text("")
    (root / "edgeseg").mkdir()
    monkeypatch.setattr(shipped, "PACKAGE", root / "edgeseg")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return root


def test_a_checkout_ships_what_lies_in_export(checkout):
    assert shipped.names() == ("other", "tiny")
    assert shipped.find("tiny") == checkout / "export" / "tiny.edgeseg"
    assert open_bundle("tiny").path == shipped.find("tiny")


def test_a_wheel_ships_what_is_packed_in_it(checkout, tiny):
    shutil.copytree(tiny, checkout / "edgeseg" / "_shipped" / "export" / "packed.edgeseg")
    assert shipped.names() == ("packed",)  # not what happens to lie beside the package
    assert open_bundle("packed").path.parent.parent.parent == checkout / "edgeseg"


@pytest.mark.parametrize("name", ["nothing", "Tiny", "tiny.edgeseg", "./tiny", "export/tiny", "../export/tiny"])
def test_an_unknown_name_lists_the_known_ones_in_one_line(checkout, name):
    with pytest.raises(EdgesegError) as error:
        open_bundle(name)
    assert f"{name}: no such bundle" in str(error.value)
    assert "(other, tiny)" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_shipped_bundles_an_unknown_name_says_so(checkout):
    (checkout / "edgeseg" / "_shipped").mkdir()
    assert shipped.names() == ()
    with pytest.raises(EdgesegError, match="there is none in this installation"):
        open_bundle("tiny")


def test_a_path_that_exists_goes_before_a_name(checkout, tiny):
    here = Path(shutil.copytree(tiny, "tiny"))
    assert locate("tiny") == here
    assert open_bundle("tiny").path == here
    assert locate("other") == shipped.find("other")


def test_a_folder_that_hides_a_shipped_bundle_is_refused_by_what_it_is(checkout):
    Path("tiny").mkdir()
    with pytest.raises(EdgesegError, match="this folder is no bundle") as error:
        open_bundle("tiny")
    assert str(shipped.find("tiny")) in str(error.value)
    assert open_bundle(shipped.find("tiny")).manifest.name == "tiny"
    Path("mine").mkdir()
    with pytest.raises(EdgesegError, match="SHA256SUMS"):
        open_bundle("mine")


def test_a_damaged_shipped_bundle_is_refused_by_name(checkout):
    (shipped.find("tiny") / "golden.npz").write_bytes(b"x")
    with pytest.raises(EdgesegError, match=r"golden\.npz: changed"):
        open_bundle("tiny")
    (shipped.find("other") / "notes.txt").write_text("x")
    with pytest.raises(EdgesegError, match=r"notes\.txt: does not belong"):
        open_bundle("other")


def test_a_recipe_is_found_by_its_name_in_the_repository(checkout):
    name = Path("calibration/cine.toml")
    assert shipped.recipe(name) == checkout / name
    for missing in ("calibration/nothing.toml", "calibration", "../a checkout/calibration/cine.toml/x",
                    "calibration/../calibration/cine.toml"):
        assert shipped.recipe(missing) == Path(missing)
    name.parent.mkdir()
    name.write_text("frames = 5")
    assert shipped.recipe(name) == name


@pytest.mark.parametrize("name", shipped.names() or [pytest.param("", marks=pytest.mark.skip("none is shipped yet"))])
def test_every_bundle_of_this_repository_is_whole_and_has_its_sheet(name):
    bundle = open_bundle(ROOT / "export" / f"{name}.edgeseg")
    assert bundle.manifest.name == name
    assert bundle.manifest.golden == "phantom"
    sheet = (ROOT / "calibration" / f"{name}.sheet.json").read_text("utf-8")
    assert Calibration.model_validate_json(sheet) == bundle.manifest.calibration
