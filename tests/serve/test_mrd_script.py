"""The quick form of benchmarks/serve_mrd.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ismrmrd", reason="the extra `mrd` is not installed")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_mrd.py"


def test_latency_four_clients_and_memory_have_a_value_and_a_verdict(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--bundle", "cine", "--threads", "1", "--out", tmp_path],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "serve_mrd.json").read_text())
    assert [t["limit"] for t in found["targets"]] == [3.0, 0, 1.05]
    assert all(t["met"] in (True, False) for t in found["targets"])
    assert found["wrong"] == 0
    assert found["served_ms"]["value"] > found["bare_ms"]["value"] > 0
    page = (tmp_path / "serve_mrd.md").read_text()
    assert "these numbers mean nothing" in page
    assert str(tmp_path) not in page
