"""The quick form of benchmarks/serve_igtl.py on a shipped bundle."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_igtl.py"


def test_every_number_has_a_value_a_verdict_and_a_place_on_the_page(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--threads", "1", "--bundle", "cine", "--out", out],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((out / "serve_igtl.json").read_text())
    assert [t["name"] for t in found["targets"]] == ["added to the bare Segmenter, ms",
                                                     "growth of memory from 10 to 20 frames"]
    assert all(t["met"] in (True, False) for t in found["targets"])
    assert {name: len(values) for name, values in found["rounds_ms"].items()} == {"Segmenter": 3, "OpenIGTLink": 3}
    assert all(value > 0 for values in found["rounds_ms"].values() for value in values)
    assert all(value > 50 for value in found["memory_mb"].values())  # of the server, which has a runtime loaded
    page = (out / "serve_igtl.md").read_text()
    assert "these numbers mean nothing" in page
    assert str(tmp_path) not in page + (out / "serve_igtl.json").read_text()
