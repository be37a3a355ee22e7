"""Checkpoints are read without running what they say."""

import os
import re

import numpy as np
import pytest
import torch

from edgeseg.errors import EdgesegError
from edgeseg.teachers.checkpoint import load_checkpoint, strip_prefixes


class Payload:
    """Unpickling this makes a folder: the sign that code of the file ran."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_hostile_checkpoint_is_refused_in_one_line_and_does_not_run(tmp_path, zipped):
    path, marker = tmp_path / "checkpoint_final.pth", tmp_path / "ran"
    torch.save({"network_weights": {}, "logging": Payload(marker)}, path, _use_new_zipfile_serialization=zipped)
    before = path.read_bytes()
    with pytest.raises(EdgesegError, match=r"mkdir.*--trust-checkpoint") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    assert path.read_bytes() == before
    load_checkpoint(path, trust=True)  # the one way in, and the proof that the payload is live
    assert marker.is_dir()


def test_refusal_leaves_no_allowed_names_behind(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"logging": Payload(tmp_path / "ran")}, tmp_path / "c.pth")
    with pytest.raises(EdgesegError):
        load_checkpoint(tmp_path / "c.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def test_numpy_scalars_of_the_training_log_are_read(tmp_path):
    log = {"mean_fg_dice": [np.float32(0.5), np.float64(0.25)]}
    torch.save({"network_weights": {"w": torch.ones(2)}, "logging": log, "_best_ema": np.float32(0.5)},
               tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth")["logging"] == log


def test_numpy_scalars_written_with_numpy_1_are_read(tmp_path):
    torch.save({"_best_ema": np.float64(0.25)}, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "c.pth").read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in old
    (tmp_path / "c.pth").write_bytes(old)
    assert load_checkpoint(tmp_path / "c.pth") == {"_best_ema": 0.25}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>not found</html>"],
                         ids=["truncated", "empty", "html"])
def test_damaged_checkpoint_is_one_line_that_names_it(tmp_path, damage, trust):
    path = tmp_path / "c.pth"
    torch.save({"network_weights": {"w": torch.zeros(1000)}}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EdgesegError, match=re.escape(str(path)) + ".*not a readable checkpoint"):
        load_checkpoint(path, trust)


def test_what_is_not_a_dictionary_and_what_is_missing_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "c.pth")
    with pytest.raises(EdgesegError, match="expected a dictionary"):
        load_checkpoint(tmp_path / "c.pth")
    with pytest.raises(EdgesegError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pth")


def test_prefixes_of_compile_and_ddp_are_stripped():
    names = ["module._orig_mod.a.module.w", "_orig_mod.module.b", "module.c", "_orig_mod.d", "modules.e"]
    stripped = strip_prefixes({name: torch.zeros(1) for name in names})
    assert list(stripped) == ["a.module.w", "b", "c", "d", "modules.e"]
