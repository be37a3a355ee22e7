import json
import random
import shutil
import stat
import zipfile

import pytest
import tiny_bundle

from edgeseg.bundle.pack import pack, unpack
from edgeseg.container import MANIFEST, SUMS, open_bundle, write_sums
from edgeseg.errors import EdgesegError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg")


@pytest.fixture(scope="module")
def packed(bundle):
    return pack(bundle, bundle.with_name("tiny.edgeseg.zip"))


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rezip(packed, out, edit=lambda members: None, method=zipfile.ZIP_STORED, before=""):
    """The archive with its members (name -> content) changed."""
    with zipfile.ZipFile(packed) as source:
        members = {i.filename: source.read(i) for i in source.infolist()}
    edit(members)
    with zipfile.ZipFile(out, "w", method) as target:
        for name, content in members.items():
            target.writestr(f"{before}{name}", content)
    return out


def refused(packed, tmp_path, message):
    """Both ways in refuse the archive in one line that names it, and leave nothing."""
    before = sorted(tmp_path.rglob("*"))
    for way in (lambda: unpack(packed, tmp_path / "out" / "a.edgeseg"), lambda: open_bundle(packed)):
        with pytest.raises(EdgesegError, match=message) as refusal:
            way()
        assert str(packed) in str(refusal.value)
        assert "\n" not in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory, monkeypatch):
    """Temporary folders of this test alone, to see what stays in them."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def test_unpacking_gives_back_every_byte(bundle, packed, tmp_path):
    opened = unpack(packed, tmp_path / "new" / "back.edgeseg")
    assert opened.path == tmp_path / "new" / "back.edgeseg"
    assert opened.manifest == open_bundle(bundle).manifest
    assert contents(opened.path) == contents(bundle)
    assert [p.name for p in opened.path.parent.iterdir()] == ["back.edgeseg"]


def test_equal_bundles_give_equal_archives(bundle, packed, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "other name.edgeseg")
    assert pack(copy, tmp_path / "a.zip").read_bytes() == packed.read_bytes()
    assert pack(packed, tmp_path / "b.zip").read_bytes() == packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == sorted(contents(bundle))
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_packed_bundle_opens_as_a_folder_does_and_its_copy_goes_with_it(bundle, packed, temporary):
    opened = open_bundle(str(packed))
    assert opened.manifest == open_bundle(bundle).manifest
    assert opened.path.name == "tiny.edgeseg"
    assert contents(opened.path) == contents(bundle)
    where = opened.file("golden.npz")
    assert where.is_relative_to(temporary)
    del opened
    assert not where.exists()


def test_the_copy_goes_when_the_process_ends(packed, temporary):
    import subprocess
    import sys

    code = f"import edgeseg; b = edgeseg.open_bundle({str(packed)!r}); print(b.path); assert b.path.is_dir()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"TMPDIR": str(temporary)})
    assert str(temporary) in done.stdout


def test_a_packed_bundle_segments(packed):
    import numpy as np

    from edgeseg.runtime.segmenter import Segmenter

    image = tiny_bundle.frame(0)
    found = Segmenter(packed, threads=1).segment(image[0], (1.5, 1.5))
    assert np.array_equal(found.labels, tiny_bundle.label_image(0))


def test_what_others_packed_is_taken(bundle, packed, tmp_path):
    """Deflated, and with the folder around it, as `zip -r tiny.zip tiny.edgeseg` does."""
    made = rezip(packed, tmp_path / "a.zip", method=zipfile.ZIP_DEFLATED, before="tiny.edgeseg/")
    assert contents(unpack(made, tmp_path / "a.edgeseg").path) == contents(bundle)


def test_missing_and_extra_files_are_refused(packed, tmp_path):
    refused(rezip(packed, tmp_path / "a.zip", lambda m: m.pop("golden.npz")), tmp_path, "golden.npz: missing")
    refused(rezip(packed, tmp_path / "b.zip", lambda m: m.update(more=b"")), tmp_path, "more: does not belong")
    refused(rezip(packed, tmp_path / "c.zip", lambda m: m.pop(SUMS)), tmp_path, "no SHA256SUMS")
    refused(rezip(packed, tmp_path / "d.zip", lambda m: m.update({"golden.npz": b"x"})), tmp_path,
            r"golden\.npz: changed")


@pytest.mark.parametrize("name", ["../evil", "/evil", "C:\\evil", "a/../../evil", "..\\evil"])
def test_a_name_that_leaves_the_folder_is_refused_even_if_the_sums_list_it(packed, tmp_path, name):
    def add(members):
        members[name] = b""
        members[SUMS] += f"{'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'}  {name}\n".encode()

    refused(rezip(packed, tmp_path / "a.zip", add), tmp_path, "leaves its folder")
    assert not list(tmp_path.parent.glob("evil"))


def test_a_link_in_place_of_a_file_is_refused(packed, tmp_path):
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        for info in source.infolist():
            content = source.read(info)
            if info.filename == "golden.npz":
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            target.writestr(info, content)
    refused(tmp_path / "a.zip", tmp_path, "golden.npz is a link")


def test_a_bomb_is_refused(packed, tmp_path):
    made = rezip(packed, tmp_path / "a.zip", lambda m: m.update({"golden.npz": bytes(30_000_000)}),
                 zipfile.ZIP_DEFLATED)
    refused(made, tmp_path, "unpack to 30")


def test_a_newer_schema_is_refused_with_the_way_out(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "newer.edgeseg")
    values = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(values | {"schema_version": 2}))
    write_sums(copy)
    with pytest.raises(EdgesegError, match="update edgeseg"):
        pack(copy, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as target:
        for name, content in contents(copy).items():
            target.writestr(name, content)
    refused(tmp_path / "b.zip", tmp_path, r"b\.zip/manifest\.json: schema version 2 is newer .* update edgeseg")


def test_what_is_no_bundle_says_so(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    refused(tmp_path / "a.zip", tmp_path, "no zip archive, or a damaged one")
    with pytest.raises(EdgesegError, match=r"nothing\.zip: no zip file"):
        unpack(tmp_path / "nothing.zip", tmp_path / "b")
    with pytest.raises(EdgesegError, match="no zip file"):
        unpack(tmp_path, tmp_path / "b")


def test_what_is_there_is_only_replaced_when_asked_for_and_only_by_its_kind(bundle, packed, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "a.edgeseg")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "final.doc").write_text("years")
    zipped = shutil.copy(packed, tmp_path / "a.zip")
    zipped.with_name("photos.zip").write_bytes(rezip(packed, tmp_path / "x.zip", lambda m: m.pop(SUMS)).read_bytes())
    before = contents(tmp_path)
    for force, target, message in ((False, copy, "--force"), (True, tmp_path / "thesis", "is no bundle"),
                                   (True, zipped, "is no bundle")):
        with pytest.raises(EdgesegError, match=message):
            unpack(packed, target, force)
    for force, name, message in ((False, "a.zip", "--force"), (True, "photos.zip", "no packed bundle"),
                                 (True, "thesis", "no packed bundle"), (True, "thesis/final.doc", "no packed bundle"),
                                 (False, "a.edgeseg/new.zip", "lies in the bundle")):
        with pytest.raises(EdgesegError, match=message):
            pack(copy, tmp_path / name, force)
    assert contents(tmp_path) == before
    unpack(packed, copy, force=True)
    pack(copy, zipped, force=True)
    assert contents(tmp_path) == before


def test_a_failed_replacement_leaves_the_bundle_that_was_there(bundle, packed, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "a.edgeseg")
    bad = rezip(packed, tmp_path / "bad.zip", lambda m: m.update({"golden.npz": b"x"}))
    with pytest.raises(EdgesegError, match=r"golden\.npz: changed"):
        unpack(bad, copy, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.edgeseg", "bad.zip"]
    assert contents(copy) == contents(bundle)


def test_any_changed_byte_of_any_members_data_is_refused(packed, tmp_path, temporary):
    """510 at random, each file in turn."""
    good = packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        ranges = []
        for info in archive.infolist():
            start = info.header_offset + 30 + len(info.filename.encode())
            assert good[start : start + info.file_size] == archive.read(info)  # stored as it is
            ranges.append((start, info.file_size))
    draw = random.Random(1)
    for k in range(510):
        start, size = ranges[k % len(ranges)]
        changed = bytearray(good)
        changed[start + draw.randrange(size)] ^= draw.randrange(1, 256)
        (tmp_path / "a.zip").write_bytes(changed)
        with pytest.raises(EdgesegError, match=r"a\.zip"):
            open_bundle(tmp_path / "a.zip")
        assert list(temporary.iterdir()) == []
