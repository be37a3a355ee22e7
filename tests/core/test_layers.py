"""The layers of the package: what may be imported from where, checked in fresh interpreters."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "nncf", "onnx", "lightning", "nnunetv2")
TORCH_FREE = [
    "edgeseg",
    "edgeseg.cli.main",
    "edgeseg.manifest",
    "edgeseg.readers.acdc, edgeseg.readers.mnms, edgeseg.readers.nnunet, edgeseg.readers.nifti",
    "edgeseg.phantoms.cine, edgeseg.phantoms.write",
    "edgeseg.runtime.segmenter",
    "edgeseg.measure.evaluate, edgeseg.measure.bench, edgeseg.measure.worker",
    "edgeseg.distill.recipe, edgeseg.distill.run",
    "edgeseg.teachers",
]


def loaded(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys\nprint(' '.join(sys.modules))"],
                          capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("modules", TORCH_FREE)
def test_no_torch_is_imported_by(modules):
    assert loaded(f"import {modules}") & set(HEAVY) == set()


def test_the_public_names_come_without_torch():
    assert loaded("import edgeseg; edgeseg.Segmenter; edgeseg.open_bundle") & set(HEAVY) == set()


def test_the_command_line_starts_without_any_runtime():
    assert loaded("import edgeseg.cli.main") & {"openvino", "onnxruntime", "matplotlib", "scipy", "cv2"} == set()
