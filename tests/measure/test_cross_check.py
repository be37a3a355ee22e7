import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
import tiny_bundle

from edgeseg import child
from edgeseg.container import open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.measure.cross_check import MISSING, benchmark_app, cross_check, plain_value, why_not
from edgeseg.measure.document import one_line

AVAILABLE = """
import sys
from edgeseg.errors import EdgesegError
from edgeseg.measure.cross_check import check_available
try:
    check_available()
    print("there")
except EdgesegError as error:
    print(error)
print("openvino" in sys.modules)
"""
SAME = {"edgeseg": {"NUM_STREAMS": "1"}, "benchmark_app": {"NUM_STREAMS": "1"}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("a place") / "tiny.edgeseg"
    return open_bundle(tiny_bundle.make_bundle(path, frames=1, precisions=("fp32",)))


@pytest.fixture(scope="module")
def found(bundle):
    return cross_check(bundle, "fp32", 1, repeats=1, seconds=0.1)


def test_both_measure_the_same_network_with_the_same_settings(found):
    assert (len(found.ours_ms), len(found.theirs_ms), found.ratio.n) == (1, 1, 1)
    assert found.ours_ms[0] > 0
    ours, theirs = found.settings["edgeseg"], found.settings["benchmark_app"]
    assert set(theirs) >= {"INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT"}
    assert theirs == {name: ours[name] for name in theirs}


def test_it_agrees_or_says_why_not_and_names_no_folder(found, bundle):
    assert found.agrees == (abs(found.ratio.value - 1) <= 0.1)
    assert bool(found.why_not) != found.agrees
    assert found.command.startswith("benchmark_app -m model.fp32.xml -d CPU")
    document = json.loads(one_line(found))
    assert str(bundle.path.parent) not in json.dumps(document)
    assert "tmp" not in document["command"]


@pytest.mark.parametrize(("ours", "theirs", "settings", "reason"), [
    ([5.0], [4.0], {"edgeseg": {"NUM_STREAMS": "1"}, "benchmark_app": {"NUM_STREAMS": "2"}},
     "NUM_STREAMS is 1 here and 2 there"),
    ([0.05, 0.05], [0.02, 0.02], SAME, "rounds to 0.01 ms"),
    ([4.0, 6.0], [4.0, 4.0], SAME, "our medians lie between 4.00 and 6.00 ms"),
    ([4.0, 4.0], [4.0, 6.0], SAME, "benchmark_app's medians lie between 4.00 and 6.00 ms"),
    ([5.0, 5.0], [4.0, 4.0], SAME, "takes 1.00 ms more"),
    ([4.0, 4.0], [5.0, 5.0], SAME, "unknown"),
])
def test_a_disagreement_has_its_reason(ours, theirs, settings, reason):
    assert reason in why_not(ours, theirs, settings)


def test_settings_are_compared_in_one_spelling():
    assert plain_value("PerformanceMode.LATENCY") == plain_value("LATENCY")


def test_a_missing_benchmark_app_names_the_command_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EdgesegError, match="pip install --force-reinstall openvino"):
        benchmark_app([], tmp_path)


@pytest.mark.parametrize("parts", [(), ("openvino",), ("openvino", "tools"), ("openvino", "tools", "benchmark")])
def test_whether_benchmark_app_is_there_is_known_without_an_import(tmp_path, parts):
    """`parts`: of an openvino without it, which comes before the real one and would fail to be imported."""
    folder, environment = tmp_path, child.environment()
    for part in parts:
        (folder := folder / part).mkdir()
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    done = subprocess.run([sys.executable, "-P", "-c", AVAILABLE], capture_output=True, text=True, check=True,
                          env=environment)
    assert done.stdout.splitlines() == [MISSING if parts else "there", "False"]


def test_a_missing_benchmark_app_is_found_before_anything_is_measured(bundle, monkeypatch):
    monkeypatch.setattr("edgeseg.measure.cross_check.find_spec", lambda name: None)
    with pytest.raises(EdgesegError, match="pip install --force-reinstall openvino"):
        cross_check(bundle, "fp32", threads=0)  # not even looked at


def test_a_benchmark_app_that_fails_is_one_line(tmp_path):
    with pytest.raises(EdgesegError, match="benchmark_app did not measure") as caught:
        benchmark_app(["-m", str(tmp_path / "absent.xml")], tmp_path)
    assert "\n" not in str(caught.value)
    assert tempfile.gettempdir() not in str(caught.value)


def test_a_network_that_does_not_load_is_named_without_its_folder(bundle, tmp_path):
    shutil.copytree(bundle.path, tmp_path / "broken.edgeseg")
    (tmp_path / "broken.edgeseg" / "model.fp32.xml").write_text("no network")
    broken = type(bundle)(tmp_path / "broken.edgeseg", bundle.manifest, bundle.files)
    with pytest.raises(EdgesegError, match=r"broken\.edgeseg: model\.fp32\.xml cannot be cross-checked") as caught:
        cross_check(broken, "fp32", 1)
    assert str(caught.value).count(tempfile.gettempdir()) == 1


@pytest.mark.parametrize(("options", "message"), [
    ({"repeats": 0}, "must be above 0"),
    ({"seconds": 0}, "must be above 0"),
    ({"seconds": float("nan")}, "must be above 0"),
    ({"threads": 0}, "at least 1"),
    ({"precision": "int8"}, r"model\.int8\.xml"),
])
def test_what_cannot_be_checked_is_refused(bundle, options, message):
    with pytest.raises(EdgesegError, match=message):
        cross_check(bundle, **{"precision": "fp32", "threads": 1} | options)
