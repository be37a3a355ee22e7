"""Stored targets: what a teacher said, quantised, sharded, found again by the frames; a student needs nothing else."""

import json
from dataclasses import replace

import clip_data
import numpy as np
import pytest

from edgeseg.distill import targets as making
from edgeseg.distill.targets import make_targets
from edgeseg.errors import EdgesegError
from edgeseg.preprocess import Normalisation, Preprocessing
from edgeseg.teachers import open_teacher
from edgeseg.teachers.stored import StoredTargets, probabilities_of, quantise

GRID = Preprocessing((32, 32), (1.0, 1.0), (Normalisation("ct", mean=100.0, std=50.0, low=0.0, high=255.0),))


class Threshold:
    """A teacher that knows that the disc is dark."""

    scheme, channels, preprocessing, mirror_axes, stride = clip_data.SCHEME, ("grey",), GRID, (), (1, 1)
    predict_only, ignore = True, None

    def __init__(self, name="threshold", level=90.0, cut=1000):
        self.name, self.level, self.left = name, level, cut
        self.provenance = {"parameters": 1, "level": level}

    def predict(self, case, tta="none"):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        p = 1 / (1 + np.exp((case.frames[:, 0] - self.level) / 10))
        return (p > 0.5).astype(np.uint8), np.stack([1 - p, p], axis=1).astype(np.float32)


def test_quantised_probabilities_are_floored_and_come_back_within_one_level():
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 5, 5)).astype(np.float32).transpose(0, 3, 1, 2)
    stored = quantise(p)
    assert np.array_equal(stored, np.floor(p[:, 1:] * 255))
    assert np.abs(probabilities_of(stored)[:, 1:] - p[:, 1:]).max() <= 1 / 255
    assert np.allclose(probabilities_of(stored).sum(1), 1, atol=1e-6)


def test_what_is_read_back_is_what_the_teacher_said(tmp_path):
    data, teacher = clip_data.clips(), Threshold()
    make_targets([teacher], data, tmp_path / "t", say=lambda _: None)
    stored = open_teacher(f"targets:{tmp_path / 't'}")
    for case in data:
        labels, p = stored.predict(case)
        said = teacher.predict(case)[1]
        assert np.abs(p - said).max() <= 1 / 255
        assert p.dtype == np.float32
        sure = np.abs(said[:, 1] - 0.5) > 0.01
        assert np.array_equal(labels[sure], (said[:, 1] > 0.5)[sure])
    assert stored.scheme == clip_data.SCHEME
    assert stored.preprocessing == GRID
    assert stored.name == "threshold"


def test_an_interrupted_making_goes_on_and_gives_the_same_targets(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "SHARD", 2)
    data = clip_data.clips(7)
    with pytest.raises(KeyboardInterrupt):
        make_targets([Threshold(cut=5)], data, tmp_path / "a", say=lambda _: None)
    assert len(StoredTargets.open(tmp_path / "a").manifest["cases"]) == 4
    again = Threshold()
    make_targets([again], data, tmp_path / "a", say=lambda _: None)
    assert again.left == 1000 - 3  # the rest only
    make_targets([Threshold()], data, tmp_path / "b", say=lambda _: None)
    a, b = StoredTargets.open(tmp_path / "a"), StoredTargets.open(tmp_path / "b")
    assert all(np.array_equal(a.predict(c)[1], b.predict(c)[1]) for c in data)


def test_a_case_that_cannot_be_read_loses_none_of_the_others(tmp_path):
    def broken():
        raise EdgesegError("clip.avi: cannot be decoded")

    data, said = clip_data.clips(), []
    bad = replace(data, refs=(data.refs[0], replace(data.refs[1], load=broken), *data.refs[2:]))
    with pytest.raises(EdgesegError, match=f"1 of {len(data)} cases failed"):
        make_targets([Threshold()], bad, tmp_path / "t", say=said.append)
    assert any("clip.avi: cannot be decoded" in line for line in said)
    kept = StoredTargets.open(tmp_path / "t").manifest["cases"]
    assert set(kept) == {r.id for r in data.refs} - {data.refs[1].id}
    make_targets([Threshold()], data, tmp_path / "t", say=said.append)
    assert set(StoredTargets.open(tmp_path / "t").manifest["cases"]) == {r.id for r in data.refs}


def test_several_teachers_are_fused_by_their_weights(tmp_path):
    data = clip_data.clips(3)
    one, other = Threshold(level=80.0), Threshold("other", level=110.0)
    make_targets([one, other], data, tmp_path / "t", weights=(3, 1), say=lambda _: None)
    case = data.refs[0].load()
    wanted = 0.75 * one.predict(case)[1] + 0.25 * other.predict(case)[1]
    assert np.abs(StoredTargets.open(tmp_path / "t").predict(case)[1] - wanted).max() <= 1 / 255


def test_the_folder_holds_no_image_and_no_path(tmp_path):
    data = clip_data.clips(3)
    make_targets([Threshold()], data, tmp_path / "t", say=lambda _: None)
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["manifest.json", "shard-0000.npz"]
    assert str(tmp_path) not in (tmp_path / "t" / "manifest.json").read_text()
    with np.load(tmp_path / "t" / "shard-0000.npz") as shard:
        assert all(a.dtype == np.uint8 and a.shape == (12, 1, 32, 32) for a in shard.values())


def damage_shard(folder):
    path = folder / "shard-0000.npz"
    path.write_bytes(path.read_bytes()[:-7])


def damage_manifest(folder):
    (folder / "manifest.json").write_text("{")


def newer(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))


@pytest.mark.parametrize(("damage", "said"), [(damage_shard, "changed since it was written"),
                                              (damage_manifest, "not a readable manifest"), (newer, "is newer")])
def test_damaged_targets_are_refused_in_one_line(tmp_path, damage, said):
    data = clip_data.clips(3)
    make_targets([Threshold()], data, tmp_path / "t", say=lambda _: None)
    damage(tmp_path / "t")
    with pytest.raises(EdgesegError, match=said) as error:
        StoredTargets.open(tmp_path / "t").predict(data.refs[0].load())
    assert "\n" not in str(error.value)


def test_targets_of_other_frames_are_not_taken(tmp_path):
    data = clip_data.clips(3)
    make_targets([Threshold()], data, tmp_path / "t", say=lambda _: None)
    case, stored = data.refs[0].load(), StoredTargets.open(tmp_path / "t")
    with pytest.raises(EdgesegError, match="made of other frames"):
        stored.predict(replace(case, frames=case.frames + 1))
    with pytest.raises(EdgesegError, match="holds no targets of stranger"):
        stored.predict(replace(case, id="stranger"))
    with pytest.raises(EdgesegError, match="holds no targets"):
        StoredTargets.open(tmp_path / "nothing")


def test_other_teachers_do_not_go_on_with_a_folder(tmp_path):
    data = clip_data.clips(3)
    make_targets([Threshold()], data, tmp_path / "t", say=lambda _: None)
    with pytest.raises(EdgesegError, match="another teachers"):
        make_targets([Threshold(level=70.0)], data, tmp_path / "t", say=lambda _: None)
    with pytest.raises(EdgesegError, match="one weight a teacher"):
        make_targets([Threshold()], data, tmp_path / "u", weights=(1, 2), say=lambda _: None)
