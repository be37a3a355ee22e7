"""What is shipped works from an installed wheel: built from a checkout and from its sdist, used in another folder."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tiny_bundle

from edgeseg import shipped

ROOT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "edgeseg", "export", "calibration",
         "benchmarks/recipes")
BUILDER = next((d.version for d in distributions(name="setuptools")), "0")
ISOLATED = int(BUILDER.split(".")[0]) < 77
"""This environment's own setuptools builds, without a network, unless it is too old (pyproject.toml)."""


def python(*arguments, cwd, **environment) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False,
                          env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment})


def pip_wheel(source: Path, out: Path) -> Path:
    isolation = [] if ISOLATED else ["--no-build-isolation"]
    done = python("-m", "pip", "wheel", "--no-deps", *isolation, "-w", out, source, cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the files that are built from, with one bundle more in export/."""
    root = tmp_path_factory.mktemp("a place") / "checkout"
    for part in PARTS:
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, root / part)
    tiny_bundle.make_bundle(root / "export" / "tiny.edgeseg")
    return root


@pytest.fixture(scope="module")
def wheel(checkout):
    stale = checkout / "build" / "lib" / "edgeseg" / "_shipped" / "export" / "tiny.edgeseg" / "of an older one"
    stale.parent.mkdir(parents=True)
    stale.write_text("x")  # an extra file would make the bundle a damaged one
    return pip_wheel(checkout, checkout.parent / "wheel")


@pytest.fixture(scope="module")
def installed(wheel):
    """A function that runs edgeseg's command as installed from the wheel, in a folder outside the checkout."""
    target, work = wheel.parents[1] / "site", wheel.parents[1] / "elsewhere"
    work.mkdir()
    done = python("-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=work)
    assert done.returncode == 0, done.stderr

    def edgeseg(*arguments):
        return python(target / "bin" / "edgeseg", *arguments, cwd=work, PYTHONPATH=str(target))

    return edgeseg, target, work


def test_the_wheel_holds_bundles_with_their_licences_sheets_and_recipes(wheel, checkout):
    with zipfile.ZipFile(wheel) as packed:
        names = {n.removeprefix("edgeseg/_shipped/") for n in packed.namelist() if n.startswith("edgeseg/_shipped/")}
    bundles = {p.relative_to(checkout).as_posix() for p in (checkout / "export").glob("*.edgeseg/**/*") if p.is_file()}
    assert {"export/tiny.edgeseg/SHA256SUMS", "export/tiny.edgeseg/model.int8.xml"} <= bundles
    others = {p.relative_to(checkout).as_posix() for pattern in
              ("calibration/*.toml", "calibration/*.sheet.json", "benchmarks/recipes/*.toml")
              for p in checkout.glob(pattern)}
    assert {"calibration/cine.toml", "benchmarks/recipes/acdc_distilled.toml"} <= others
    assert names == bundles | others


def test_the_installed_command_lists_and_uses_a_shipped_bundle(installed):
    edgeseg, target, work = installed
    done = python("-c", "import edgeseg; print(edgeseg.__file__)", cwd=work, PYTHONPATH=str(target))
    assert done.stdout.startswith(str(target))
    rows = json.loads(edgeseg("bundle", "list", "--json").stdout)
    assert {r["name"]: r["error"] for r in rows} == dict.fromkeys((*shipped.names(), "tiny"))
    image = nibabel.Nifti1Image(tiny_bundle.frame(1).transpose(2, 1, 0), np.diag([1.5, 1.5, 8, 1]))
    (work / "images").mkdir()
    image.to_filename(work / "images" / "case.nii.gz")
    done = edgeseg("predict", "tiny", "-i", "images", "-o", "masks", "--threads", 1)
    assert done.returncode == 0, done.stderr
    mask = nibabel.load(work / "masks" / "case.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj).T, tiny_bundle.label_image(1)[None])
    assert np.array_equal(mask.affine, image.affine)
    done = edgeseg("predict", "tinier", "-i", "images", "-o", "other")
    assert (done.returncode, "tiny)" in done.stderr, (work / "other").exists()) == (2, True, False)


def test_recipes_are_found_from_the_wheel(installed):
    _, target, work = installed
    code = ("from edgeseg.shipped import recipe; from edgeseg.bundle.recipe import CalibrationRecipe; "
            "print(CalibrationRecipe.load(recipe('calibration/cine-phantom.toml')).name)")
    assert python("-c", code, cwd=work, PYTHONPATH=str(target)).stdout.strip() == "cine-phantom"


@pytest.mark.skipif(ISOLATED, reason="needs setuptools >= 77 in this environment")
def test_a_wheel_from_the_sdist_is_the_same(checkout, wheel, tmp_path):
    code = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    done = python("-c", code, tmp_path, cwd=checkout)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.splitlines()[-1]) as archive:
        archive.extractall(tmp_path)  # made here; Debian 12's Python knows no filter yet
    again = pip_wheel(next(p for p in tmp_path.iterdir() if p.is_dir()), tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as a, zipfile.ZipFile(again) as b:
        assert {n: a.read(n) for n in a.namelist() if "_shipped" in n} == {
            n: b.read(n) for n in b.namelist() if "_shipped" in n}
        assert set(a.namelist()) == set(b.namelist())


@pytest.mark.skipif(ISOLATED, reason="needs setuptools >= 77 in this environment")
def test_a_damaged_bundle_ends_the_build(checkout, wheel, tmp_path):
    root = shutil.copytree(checkout, tmp_path / "checkout", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    (root / "export" / "tiny.edgeseg" / "golden.npz").write_bytes(b"x")
    done = python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "out", root, cwd=tmp_path)
    assert done.returncode != 0
    assert "golden.npz: missing or changed" in done.stdout + done.stderr
    assert list(tmp_path.rglob("*.whl")) == []
