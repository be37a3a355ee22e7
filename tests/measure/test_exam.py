import json

import numpy as np
import pytest
import tiny_bundle

from edgeseg.container import open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.measure import exam as exam_module
from edgeseg.measure.document import one_line
from edgeseg.measure.exam import SEQUENTIAL, measure_exam, write_exam
from edgeseg.readers import nifti
from edgeseg.runtime.threads import allowed_cpus, default_threads

CPUS = len(allowed_cpus())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg"))


@pytest.fixture(scope="module")
def seen():
    return []


@pytest.fixture(scope="module")
def result(bundle, seen):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exam_module, "BLOCK_SECONDS", 0.02)
        return measure_exam(bundle, None, default_threads(), slices=3, phases=4, rounds=3, on_block=seen.append)


def test_both_ways_are_measured_in_turns(result, seen):
    assert (result.complete, result.interrupted) == (True, False)
    assert (result.slices, result.phases) == (3, 4)
    assert [r.name for r in result.rows] == [SEQUENTIAL, f"{default_threads()} stream{'s' * (default_threads() > 1)}"]
    assert [(b.round, b.mode) for b in seen].count((1, "exam")) == 2
    for row in result.rows:
        assert row.failed is None
        assert len(row.spread) >= 3
        assert row.seconds == pytest.approx(np.median(row.spread))
        assert row.images_per_second == pytest.approx(12 / row.seconds)
        assert row.network_images_per_second > 0


def test_the_ratio_is_paired_by_round(result, seen):
    first, second = result.rows
    assert first.faster is None
    assert second.faster.n == 3
    ratios = []
    for number in range(3):
        ms = {b.row: np.median(b.ms) for b in seen if (b.round, b.mode) == (number, "exam")}
        ratios.append(ms[first.name] / ms[second.name])
    assert second.faster.value == pytest.approx(np.exp(np.log(ratios).mean()))


def test_rows_say_what_they_ran_with(result):
    assert [r.streams for r in result.rows] == [1, default_threads()]
    assert [int(r.settings["NUM_STREAMS"]) for r in result.rows] == [1, default_threads()]
    assert {r.threads for r in result.rows} == {default_threads()}
    assert {r.precision for r in result.rows} == {"fp32"}  # nothing else is admitted


def test_the_result_is_a_document_without_paths(result, bundle):
    document = json.loads(one_line(result))
    assert document["complete"] is True
    assert len(document["rows"]) == 2
    assert str(bundle.path.parent) not in json.dumps(document)


def test_the_exam_is_one_image_of_the_bundles_own_frames(bundle, tmp_path):
    (path,) = write_exam(bundle, tmp_path / "an exam", 2, 5).iterdir()
    assert nifti.time_points(path) == 5
    found = [nifti.read_case((path,), id="x", patient="x", frame=t).frames for t in range(5)]
    assert found[0].shape == (2, 1, 40, 36)
    np.testing.assert_array_equal(np.concatenate(found), [tiny_bundle.frame(i % 3) for i in range(10)])


def test_an_interrupted_exam_keeps_what_it_has(bundle, monkeypatch):
    monkeypatch.setattr(exam_module, "BLOCK_SECONDS", 0.01)

    seen = []

    def stop(block):
        seen.append(block)
        if len(seen) == 3:  # of the four of a round: at least one is of files to masks, at least one of the network
            raise KeyboardInterrupt

    result = measure_exam(bundle, 1, 1, slices=1, phases=2, rounds=3, on_block=stop)
    assert (result.complete, result.interrupted, len(seen)) == (False, True, 3)
    assert len({(b.row, b.mode) for b in seen}) == 3
    for row in result.rows:
        kept = {b.mode: b for b in seen if b.row == row.name}
        exam, network = kept.get("exam"), kept.get("network")
        assert row.failed is None
        assert row.spread == (() if exam is None else tuple(exam.ms / 1000))
        assert row.seconds == (None if exam is None else pytest.approx(np.median(exam.ms) / 1000))
        assert row.cpu_s == (None if exam is None else pytest.approx(exam.cpu_s / len(exam.ms)))
        assert row.images_per_second == (None if exam is None else pytest.approx(2 / row.seconds))
        assert row.network_images_per_second == (
            None if network is None else pytest.approx(2000 / np.median(network.ms)))
    one_line(result)  # what was not measured is no obstacle


def test_an_exam_interrupted_in_its_first_block_keeps_that_one(bundle, monkeypatch):
    monkeypatch.setattr(exam_module, "BLOCK_SECONDS", 0.01)
    seen = []

    def stop(block):
        seen.append(block)
        raise KeyboardInterrupt

    result = measure_exam(bundle, 1, 1, slices=1, phases=2, rounds=3, on_block=stop)
    assert (result.complete, result.interrupted, len(seen)) == (False, True, 1)
    numbers = {(r.name, mode): n for r in result.rows
               for mode, n in (("exam", r.seconds), ("network", r.network_images_per_second))}
    assert {key for key, n in numbers.items() if n is not None} == {(seen[0].row, seen[0].mode)}


@pytest.mark.parametrize(("options", "message"), [
    ({"streams": 0}, "at least 1, not 0"), ({"streams": CPUS + 1}, f"may use {CPUS} CPUs"),
    ({"slices": 0}, "at least 1 of each"), ({"phases": -1}, "at least 1 of each"), ({"rounds": 0}, "at least 1"),
])
def test_impossible_numbers_are_refused_before_anything_starts(bundle, monkeypatch, options, message):
    monkeypatch.setattr(exam_module, "Worker", None)
    with pytest.raises(EdgesegError, match=message):
        measure_exam(**{"bundle": bundle, "streams": 1, "threads": CPUS, **options})


def test_a_bundle_without_frames_is_refused(tmp_path):
    path = tiny_bundle.make_bundle(tmp_path / "empty.edgeseg", frames=0, precisions=("fp32",))
    with pytest.raises(EdgesegError, match="no frame to measure with"):
        measure_exam(open_bundle(path), 1, 1)
