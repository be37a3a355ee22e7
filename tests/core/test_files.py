import errno

import pytest

from edgeseg.files import new_file, write_bytes, write_text


def names(folder):
    return [p.name for p in folder.iterdir()]


def write_and_fail(path, failure):
    with new_file(path) as part:
        part.write_text("half")
        raise failure


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    for _ in range(2):  # new, and over an old one
        assert write_text(tmp_path / "new folder" / "a.txt", "ä\r\n\n").read_bytes() == "ä\r\n\n".encode()
    assert names(tmp_path / "new folder") == ["a.txt"]
    assert write_bytes(tmp_path / "b", b"\x00").read_bytes() == b"\x00"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError("bad")])
def test_a_failure_leaves_the_old_file_alone(tmp_path, failure):
    old = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(type(failure)):
        write_and_fail(old, failure)
    with pytest.raises(type(failure)):
        write_and_fail(tmp_path / "b.txt", failure)
    assert names(tmp_path) == ["a.txt"]
    assert old.read_text() == "old"


def test_a_failure_names_the_file_that_was_asked_for(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"file'$"):  # the folder above is a file
        write_text(tmp_path / "file" / "a", "x")
    (tmp_path / "is a folder" / "x").mkdir(parents=True)
    with pytest.raises(OSError, match="is a folder"):
        write_text(tmp_path / "is a folder", "x")
    full = OSError(errno.ENOSPC, "full")
    with pytest.raises(OSError, match="full"):
        write_and_fail(tmp_path / "a.txt", full)
    assert full.filename == str(tmp_path / "a.txt")


def test_two_writers_do_not_meet_and_the_ending_stays(tmp_path):
    with new_file(tmp_path / "a.nii.gz") as one, new_file(tmp_path / "a.nii.gz") as two:
        assert one != two
        assert one.name.endswith("-a.nii.gz")
        one.write_text("1")
        two.write_text("2")
    assert names(tmp_path) == ["a.nii.gz"]
