import json
import random
import shutil

import pytest
import tiny_bundle
from measured_manifest import PROTOCOL

from edgeseg.container import MANIFEST, SUMS, latest_bundle, open_bundle, write_sums
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Manifest


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    bundle = tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg")
    (bundle / "frames" / PROTOCOL.name).mkdir(parents=True)
    shutil.copy(bundle / "model.fp32.onnx", bundle / "frames" / PROTOCOL.name / "fp32.onnx")
    change(bundle, lambda v: v.update(frames=[PROTOCOL.model_dump(mode="json")]))
    return bundle


@pytest.fixture
def bundle(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copy of tiny.edgeseg")


def files(bundle):
    """Every file, those of frames/ too."""
    found = sorted(p for p in bundle.rglob("*") if p.is_file())
    assert any("frames" in p.parts for p in found)
    return found


def test_an_untouched_bundle_opens_wherever_it_is(bundle):
    opened = open_bundle(str(bundle))
    assert opened.preprocessing == tiny_bundle.GRID
    assert opened.scheme.names == tiny_bundle.NAMES
    assert opened.file("golden.npz").is_file()
    assert opened.files == {p.relative_to(bundle).as_posix() for p in files(bundle)}
    with pytest.raises(EdgesegError, match=r"has no model\.bf16\.xml; it holds"):
        opened.file("model.bf16.xml")


def test_any_changed_byte_of_any_file_is_refused(bundle):
    """100 at random of each file in turn, more than 900 in all."""
    draw = random.Random(0)
    for path in files(bundle):
        content = path.read_bytes()
        for _ in range(100):
            changed = bytearray(content)
            changed[draw.randrange(len(content))] ^= draw.randrange(1, 256)
            path.write_bytes(changed)
            with pytest.raises(EdgesegError) as refusal:
                open_bundle(bundle)
            assert str(bundle) in str(refusal.value)
            assert "\n" not in str(refusal.value)
        path.write_bytes(content)
    open_bundle(bundle)


def test_each_missing_file_is_named(bundle):
    for path in files(bundle):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(EdgesegError, match=path.name):
            open_bundle(bundle)
        path.write_bytes(content)


def test_a_file_that_shrinks_or_grows_is_refused(bundle):
    for path in files(bundle):
        content = path.read_bytes()
        for changed in (b"", content[:-1], content + b"\n", content + content):
            path.write_bytes(changed)
            with pytest.raises(EdgesegError):
                open_bundle(bundle)
        path.write_bytes(content)


def test_an_ir_without_its_weights_is_refused_although_every_hash_is_right(bundle):
    (bundle / "model.int8.bin").unlink()
    write_sums(bundle)
    with pytest.raises(EdgesegError, match=r"model\.int8\.bin: missing"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../../outside", "/etc", "a\\b", "..", "", "not-there", "40x36@1.5-uint16/.."])
def test_a_frame_protocol_is_a_folder_of_the_bundle_or_refused(bundle, name):
    assert open_bundle(bundle).manifest.frames == (PROTOCOL,)
    change(bundle, lambda v: v["frames"][0].update(name=name))
    with pytest.raises(EdgesegError, match="frame protocol"):
        open_bundle(bundle)


def test_missing_and_extra_files_are_named(bundle):
    (bundle / "notes.txt").write_text("x")
    with pytest.raises(EdgesegError, match=r"notes\.txt: does not belong"):
        open_bundle(bundle)
    (bundle / "notes.txt").unlink()
    (bundle / "model.fp32.bin").unlink()
    with pytest.raises(EdgesegError, match=r"model\.fp32\.bin: missing"):
        open_bundle(bundle)


def test_a_file_in_a_sub_folder_counts(bundle):
    (bundle / "frames" / "a.onnx").write_bytes(b"x")
    with pytest.raises(EdgesegError, match=r"a\.onnx: does not belong"):
        open_bundle(bundle)
    write_sums(bundle)
    assert "frames/a.onnx" in open_bundle(bundle).files


def test_links_are_refused_even_to_the_same_content(bundle, tmp_path):
    (bundle / "golden.npz").rename(tmp_path / "golden.npz")
    (bundle / "golden.npz").symlink_to(tmp_path / "golden.npz")
    with pytest.raises(EdgesegError, match="links"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", "./golden.npz", "a//b", "C:/x",
                                  "a\\b"])
def test_names_that_leave_the_folder_are_refused_before_any_file_is_read(bundle, name):
    (bundle.parent / "outside").write_text("x")
    with (bundle / SUMS).open("a") as sums:
        sums.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(EdgesegError, match=r"leaves the bundle|damaged"):
        open_bundle(bundle)


def change(bundle, edit):
    """A manifest changed with its hash put right again, as by hand."""
    values = json.loads((bundle / MANIFEST).read_text())
    edit(values)
    (bundle / MANIFEST).write_text(json.dumps(values))
    write_sums(bundle)


@pytest.mark.parametrize(("edit", "message"), [
    (lambda v: v.update(schema_version=2), "newer than this edgeseg reads"),
    (lambda v: v.pop("preprocessing"), "preprocessing: Field required"),
    (lambda v: v.update(surprise=1), "surprise: Extra inputs"),
    (lambda v: v["preprocessing"].update(size=["a", 2]), r"preprocessing\.size\.0"),
])
def test_a_manifest_that_is_not_understood_is_one_line(bundle, edit, message):
    change(bundle, edit)
    with pytest.raises(EdgesegError, match=message) as refusal:
        open_bundle(bundle)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_is_not_finite_is_refused(bundle, number):
    text = (bundle / MANIFEST).read_text()
    assert text.count('"logit_range": 1.0') == 4
    for old in ('"logit_range": 1.0', '"training": {}'):  # a field of the schema, and one that takes anything
        new = old.replace("1.0", number).replace("{}", f'{{"x": {number}}}')
        (bundle / MANIFEST).write_text(text.replace(old, new, 1))
        write_sums(bundle)
        with pytest.raises(EdgesegError, match="not a readable manifest"):
            open_bundle(bundle)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"x": ', "}")])
def test_a_manifest_nested_without_end_is_one_line(bundle, opening, closing):
    (bundle / MANIFEST).write_text(opening * 100_000 + "1" + closing * 100_000)
    write_sums(bundle)
    with pytest.raises(EdgesegError, match="not a readable manifest") as refusal:
        open_bundle(bundle)
    assert "\n" not in str(refusal.value)


def test_a_manifest_survives_its_own_writing(bundle, tmp_path):
    manifest = open_bundle(bundle).manifest
    manifest.write(tmp_path / "again.json")
    assert Manifest.read(tmp_path / "again.json") == manifest


def test_what_is_no_bundle_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "packed.zip").write_bytes(b"PK")
    for name, hint in (("nothing", "edgeseg export"), ("empty", "no SHA256SUMS"), ("packed.zip", "no zip archive")):
        with pytest.raises(EdgesegError, match=hint):
            open_bundle(tmp_path / name)


def test_the_latest_bundle_is_the_one_made_last(original, tmp_path):
    import os

    with pytest.raises(EdgesegError, match="no bundle in"):
        latest_bundle(tmp_path)
    for age, name in ((20, "b"), (10, "a"), (30, "c")):
        copy = shutil.copytree(original, tmp_path / f"{name}.edgeseg")
        os.utime(copy / MANIFEST, (1e9 - age, 1e9 - age))
    assert latest_bundle(tmp_path).name == "a.edgeseg"
