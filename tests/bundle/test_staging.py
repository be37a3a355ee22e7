import errno

import pytest
import tiny_bundle

from edgeseg.bundle.staging import beside, check_target
from edgeseg.container import open_bundle
from edgeseg.errors import EdgesegError


def write_and_fail(target, failure):
    with beside(target, force=True) as part:
        (part / "x").write_text("1")
        raise failure


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_the_target_appears_whole_and_nothing_else_stays(tmp_path):
    with beside(tmp_path / "new" / "a b.edgeseg") as part:
        (part / "x").write_text("1")
        assert names(tmp_path / "new") == [part.name, f"{part.name}/x"]
    assert names(tmp_path) == ["new", "new/a b.edgeseg", "new/a b.edgeseg/x"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), EdgesegError("bad")])
def test_a_failure_leaves_nothing_not_even_the_folders_that_were_made_for_it(tmp_path, failure):
    with pytest.raises(type(failure)):
        write_and_fail(tmp_path / "new" / "deep" / "a.edgeseg", failure)
    assert names(tmp_path) == []


def test_a_failed_replacement_leaves_the_old_bundle(tmp_path):
    target = tiny_bundle.make_bundle(tmp_path / "a.edgeseg")
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(target, KeyboardInterrupt())
    assert names(tmp_path) == before
    open_bundle(target)


def test_a_replacement_leaves_no_old_file(tmp_path):
    target = tiny_bundle.make_bundle(tmp_path / "a.edgeseg")
    with beside(target, force=True) as part:
        (part / "x").write_text("1")
    assert names(tmp_path) == ["a.edgeseg", "a.edgeseg/x"]


def test_a_bundle_is_only_replaced_when_asked_for(tmp_path):
    target = tiny_bundle.make_bundle(tmp_path / "a.edgeseg")
    with pytest.raises(EdgesegError, match="--force"):
        check_target(target, force=False)
    check_target(target, force=True)


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "final.doc").write_text("years")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tiny_bundle.make_bundle(tmp_path / "a.edgeseg"))
    for name in ("thesis", "file", "link"):
        with pytest.raises(EdgesegError, match="is no bundle"), beside(tmp_path / name, force=True):
            raise AssertionError("nothing may start")
    assert (tmp_path / "thesis" / "final.doc").read_text() == "years"
