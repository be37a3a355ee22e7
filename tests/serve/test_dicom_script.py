"""The quick form of benchmarks/serve_dicom.py on a tiny bundle."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bundle

pytest.importorskip("pynetdicom")
pytest.importorskip("highdicom")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_dicom.py"


def test_every_number_has_a_value_and_a_verdict(tmp_path):
    bundle = tiny_bundle.make_bundle(tmp_path / "tiny.edgeseg")
    done = subprocess.run([sys.executable, SCRIPT, "--quick", "--threads", "1", "--precision", "fp32", "--bundle",
                           bundle, "--out", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "serve_dicom.json").read_text())
    assert [t["limit"] for t in found["targets"]] == [3.0, 0.05]
    assert all(t["met"] in (True, False) for t in found["targets"])
    assert len(found["seconds"]) == 2
    assert all(s > 0 for s in [*found["seconds"], *found["memory_mb"].values()])
    page = (tmp_path / "out" / "serve_dicom.md").read_text()
    assert "these numbers mean nothing" in page
    assert str(tmp_path) not in page
