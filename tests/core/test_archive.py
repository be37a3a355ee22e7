import os
import random
import stat
import zipfile
from contextlib import suppress

import pytest

from edgeseg import archive
from edgeseg.archive import Archive, is_safe, write_zip
from edgeseg.errors import EdgesegError


def make_zip(path, members, method=zipfile.ZIP_STORED):
    """`members`: (name or ZipInfo, content), as anybody may write them."""
    with zipfile.ZipFile(path, "w", method) as out:
        for name, content in members:
            out.writestr(name, content)
    return path


def refused(path, message):
    with pytest.raises(EdgesegError, match=message) as refusal:
        Archive(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def entry(name, **attributes):
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name  # ZipInfo() itself would make it harmless
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/a", "//a", "./a", "a//b", "..", "C:/a", "c:a", "a\\b", "..\\a",
                                  "a ", "a/b.", "a\nb", "a\x1b[31m", "a:stream", "..."])
def test_a_name_that_could_leave_the_folder_anywhere_is_refused(tmp_path, name):
    refused(make_zip(tmp_path / "a.zip", [("good", "x"), (entry(name), "x")]), "leaves its folder|damaged")
    assert not is_safe(name)


def test_a_name_with_a_zero_byte_is_refused(tmp_path):
    make_zip(tmp_path / "a.zip", [(entry("good\x00../a"), "x")])
    refused(tmp_path / "a.zip", "leaves its folder|damaged")


@pytest.mark.parametrize("name", ["a", "frames/256x216@1.40625-uint16/fp32.onnx", ".hidden", "Größe 1"])
def test_ordinary_names_are_taken(tmp_path, name):
    assert is_safe(name)
    with Archive(make_zip(tmp_path / "a.zip", [(name, "x"), ("other", "")])) as opened:
        assert opened.names == {name, "other"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path, kind):
    refused(make_zip(tmp_path / "a.zip", [(entry("a", external_attr=(kind | 0o777) << 16), "/etc/passwd")]), "link")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a", "a"), ("a", "A"), ("a", "a/b"), ("x/a", "X/A"), ("x", "x/", "X/b")])
def test_names_that_stand_for_one_place_are_refused(tmp_path, names):
    refused(make_zip(tmp_path / "a.zip", [(name, "") for name in names]), "twice")


def change(path, offset, value):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)


def test_encrypted_members_are_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a", "x")])
    directory = path.read_bytes().index(b"PK\x01\x02")
    change(path, directory + 8, b"\x01\x00")
    refused(path, "encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, method):
    refused(make_zip(tmp_path / "a.zip", [("a", "x")], method), "another method")


def test_a_bomb_is_refused_by_what_it_says(tmp_path, monkeypatch):
    refused(make_zip(tmp_path / "a.zip", [("a", bytes(20_000_000))], zipfile.ZIP_DEFLATED), "unpack to 20000000")
    with Archive(make_zip(tmp_path / "b.zip", [("a", bytes(500))], zipfile.ZIP_DEFLATED)) as small:
        assert small.read("a") == bytes(500)
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 999)
    refused(make_zip(tmp_path / "c.zip", [("a", bytes(1000))]), "too many")
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 1500)
    refused(make_zip(tmp_path / "d.zip", [("a", bytes(800)), ("b", bytes(800))], zipfile.ZIP_DEFLATED), "unpack to")
    refused(make_zip(tmp_path / "e.zip", [("a", bytes(800)), ("b", bytes(800))]), "larger than")
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    refused(make_zip(tmp_path / "f.zip", [(str(i), "") for i in range(4)]), "more than 3 files")


def test_a_bomb_that_lies_about_its_size_writes_no_more_than_it_said(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a", bytes(5_000_000))], zipfile.ZIP_DEFLATED)
    directory = path.read_bytes().index(b"PK\x01\x02")
    for place in (22, directory + 24):  # size, in the member's own header and in the archive's directory
        change(path, place, (1000).to_bytes(4, "little"))
    with Archive(path) as opened, pytest.raises(EdgesegError, match="damaged"):
        opened.extract(tmp_path / "out")
    assert sum(p.stat().st_size for p in (tmp_path / "out").iterdir()) <= 1000


def test_overlapping_members_do_not_multiply(tmp_path):
    """Many entries of the directory that point at one compressed member: the known bomb without recursion."""
    path = make_zip(tmp_path / "a.zip", [(f"{i:03d}", bytes(100_000) if not i else b"") for i in range(200)],
                    zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    first = place = content.index(b"PK\x01\x02")
    for _ in range(200):
        content[place + 16 : place + 28] = content[first + 16 : first + 28]  # checksum and sizes
        content[place + 42 : place + 46] = bytes(4)
        place = content.find(b"PK\x01\x02", place + 4)
    path.write_bytes(content)
    refused(path, "unpack to")


def test_what_is_no_zip_says_so(tmp_path):
    good = make_zip(tmp_path / "good.zip", [("a", "content")]).read_bytes()
    for content in (b"", b"PK", b"not a zip" * 100, good[:-5], good[10:-30]):
        (tmp_path / "a.zip").write_bytes(content)
        refused(tmp_path / "a.zip", "no zip archive, or a damaged one")


def test_a_folder_around_everything_and_entries_for_folders_do_not_count(tmp_path):
    made = make_zip(tmp_path / "a.zip", [("x.edgeseg/", ""), ("x.edgeseg/a", "1"), ("x.edgeseg/f/", ""),
                                         ("x.edgeseg/f/b", "2")])
    with Archive(made) as opened:
        assert opened.names == {"a", "f/b"}
        opened.extract(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == ["a", "b", "f"]


def test_an_archive_is_the_same_bytes_whenever_and_wherever_it_was_written(tmp_path):
    archives = []
    for k, order in enumerate((("a", "f/ö"), ("f/ö", "a"))):
        files = {}
        for name in order:
            files[name] = tmp_path / str(k) / name
            files[name].parent.mkdir(parents=True, exist_ok=True)
            files[name].write_bytes(name.encode() * 1000)
            files[name].chmod(0o600 + k)
            os.utime(files[name], (1e9 * k + 1e8, 1e9 * k + 1e8))
        write_zip(files, tmp_path / f"{k}.zip")
        archives.append((tmp_path / f"{k}.zip").read_bytes())
    assert archives[0] == archives[1]
    with Archive(tmp_path / "1.zip") as opened:
        assert opened.read("f/ö") == "f/ö".encode() * 1000


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_with_any_byte_changed_is_refused_or_gives_what_it_says(tmp_path, method):
    """Headers included: their checks may be passed by chance, but nothing else than a refusal may come out."""
    draw = random.Random(3)
    content = draw.randbytes(300) + bytes(300)
    good = make_zip(tmp_path / "a.zip", [("a", content), ("f/b", content[::-1])], method).read_bytes()
    for k in range(600):
        changed = bytearray(good)
        changed[draw.randrange(len(good))] ^= draw.randrange(1, 256)
        (tmp_path / "b.zip").write_bytes(changed)
        with suppress(EdgesegError), Archive(tmp_path / "b.zip") as opened:
            opened.extract(tmp_path / f"out{k}")
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("out")) == ["a.zip", "b.zip"]
