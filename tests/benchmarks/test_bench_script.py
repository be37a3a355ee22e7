"""The quick form of benchmarks/bench.py on a tiny bundle."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bundle

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench.py"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    place = tmp_path_factory.mktemp("bench script")
    bundle = tiny_bundle.make_bundle(place / "tiny.edgeseg")
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--bundle", bundle, "--out", place / "out"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return place / "out"


def test_every_number_of_the_bench_has_a_value_and_a_verdict(out):
    found = json.loads((out / "bench.json").read_text())
    names = [t["name"] for t in found["targets"]]
    assert any("empty call" in n for n in names)
    assert any("between two runs" in n for n in names)
    assert any("deadlines missed" in n for n in names)
    assert sum("benchmark_app" in n for n in names) == 2
    assert all(t["value"] is not None and t["met"] in (True, False) for t in found["targets"])


def test_the_harness_is_measured_on_real_calls(out):
    target = next(t for t in json.loads((out / "bench.json").read_text())["targets"] if "empty call" in t["name"])
    assert 0 < target["value"] < 1000
    assert target["n"] > 10


def test_streams_are_run_alone_and_under_stress(out):
    found = json.loads((out / "bench.json").read_text())["paced"]
    assert found["alone"]["stress"] == 0
    assert found["beside 2 busy processes"]["stress"] == 2
    assert all(p["frames"] == 10 and p["complete"] for p in found.values())


def test_the_page_holds_the_bench_and_names_no_folder(out):
    page = (out / "bench.md").read_text()
    for title in ("## One full bench", "## Paced streams", "## Two equal runs in a row", "## Against benchmark_app"):
        assert title in page
    assert str(out.parent) not in page + (out / "bench.json").read_text()
