"""The quick form of benchmarks/frame_speed.py on a tiny bundle with a frame graph."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bundle

from edgeseg.bundle.graph import parse_protocol, write_frame_graphs
from edgeseg.container import MANIFEST, write_sums
from edgeseg.manifest import Manifest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "frame_speed.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, "--quick", "--threads", "1", *map(str, arguments)],
                          capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frame speed")
    tiny_bundle.make_bundle(folder / "plain.edgeseg")
    bundle = tiny_bundle.make_bundle(folder / "tiny.edgeseg")
    protocol = parse_protocol("32x30@1.5", "uint16")
    write_frame_graphs(bundle, tiny_bundle.GRID, (0, 1, 2, 3), protocol)
    Manifest.read(bundle / MANIFEST).model_copy(update={"frames": (protocol,)}).write(bundle / MANIFEST)
    write_sums(bundle)
    tiny_bundle.write_network(folder / "larger.onnx", (1, 1, 64, 64))
    done = run("--bundle", bundle, "--against", folder / "larger.onnx", "--out", folder / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_number_has_a_value_and_a_verdict(place):
    found = json.loads((place / "out" / "frame_speed.json").read_text())
    names = [t["name"] for t in found["targets"]]
    assert names == ["images per second, all cores busy", "one frame, 1 thread: median, ms",
                     "times as many images per second as larger"]
    assert all(t["value"] > 0 and t["met"] in (True, False) for t in found["targets"])
    rows = {(r["name"], r["mode"]): r for r in found["rows"]}
    assert set(rows) == {("all cores busy", "queue"), ("one frame, 1 thread", "end_to_end"),
                         ("one frame, 1 thread", "network"), ("larger, all cores busy", "queue"),
                         ("larger, one frame, 1 thread", "network")}
    for (_, mode), row in rows.items():
        assert (row["calls"] is None) == (mode == "queue")
        assert len(row["rates"]) == found["seconds"] / 0.1
        if mode != "queue":
            assert row["calls"]["n"] > 10
            assert row["p50_ms"]["value"] == pytest.approx(row["calls"]["p50_ms"], rel=0.01)  # of one block


def test_the_page_says_that_it_was_quick_and_names_no_folder(place):
    page = (place / "out" / "frame_speed.md").read_text()
    assert "these numbers mean nothing" in page
    assert str(place) not in page + (place / "out" / "frame_speed.json").read_text()


def test_a_bundle_without_a_frame_graph_is_one_line(place):
    done = run("--bundle", place / "plain.edgeseg", "--out", place / "other")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("has no frame graph: export it with --frame")
    assert not (place / "other").exists()
