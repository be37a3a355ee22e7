"""The layers of the package: what may be imported from where, in the sources and in fresh interpreters."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("cli", "report, serve", "bundle", "distill", "teachers, students, losses, measure", "runtime",
          "readers, phantoms", "container", "archive, manifest, shipped", "case, evidence, preprocess",
          "child, geometry, labels", "errors, files, onnx_file, torchvision_ops")
"""From the top. A part imports itself and what lies below it, never its neighbours."""
NEIGHBOURS = {("readers", "phantoms"), ("phantoms", "readers")}
"""`phantom:cine` is a data set as any other, and phantoms are written in the layouts that the readers read."""
LEVEL = {part: -level for level, layer in enumerate(LAYERS) for part in layer.split(", ")}

HEAVY = ("torch", "nncf", "onnx", "lightning", "nnunetv2")
TORCH_FREE = [
    "edgeseg",
    "edgeseg.cli.main",
    "edgeseg.manifest",
    "edgeseg.readers.acdc, edgeseg.readers.mnms, edgeseg.readers.nnunet, edgeseg.readers.nifti",
    "edgeseg.readers.dicom",
    "edgeseg.readers.echonet, edgeseg.readers.echonet_synthetic, edgeseg.readers.camus, edgeseg.readers.video",
    "edgeseg.phantoms.cine, edgeseg.phantoms.write, edgeseg.phantoms.echo, edgeseg.phantoms.echo_write",
    "edgeseg.runtime.segmenter",
    "edgeseg.measure.evaluate, edgeseg.measure.bench, edgeseg.measure.worker, edgeseg.measure.verify",
    "edgeseg.measure.paced, edgeseg.measure.first_frame, edgeseg.measure.exam, edgeseg.measure.cross_check",
    "edgeseg.measure.perturb",
    "edgeseg.measure.significance, edgeseg.distill.sweep, edgeseg.distill.sweep_jobs, edgeseg.distill.scores",
    "edgeseg.report.compare",
    "edgeseg.readers.msd, edgeseg.readers.slices, edgeseg.phantoms.ct, edgeseg.phantoms.ct_write",
    "edgeseg.measure.afd, edgeseg.measure.sampling_rate, edgeseg.measure.ejection, edgeseg.measure.beats",
    "edgeseg.measure.drift, edgeseg.report.echo, edgeseg.runtime.stream",
    "edgeseg.runtime.throughput, edgeseg.distill.against, edgeseg.distill.pipeline, edgeseg.report.bench_text",
    "edgeseg.distill.recipe, edgeseg.distill.run",
    "edgeseg.teachers, edgeseg.teachers.stored, edgeseg.teachers.judge, edgeseg.teachers.judge_training",
    "edgeseg.measure.judged",
    "edgeseg.serve.mrd, edgeseg.serve.igtl, edgeseg.serve.dicom_node",
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


def part_of(module: str) -> str:
    """`edgeseg.bundle.export` -> `bundle`; the package itself and `__main__` stand above everything."""
    return module.partition(".")[2].split(".")[0].replace("__main__", "")


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str, module: str) -> list[tuple[int, str]]:
    """(line, module) of every import in a source text: at the top, in functions and for the type checker alone."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: write the whole name of the module"
            # `from edgeseg import geometry` names a module, `from edgeseg.case import Case` what is in one
            names = [f"edgeseg.{a.name}" for a in node.names if a.name != "__version__"]
            names = names if node.module == "edgeseg" else [node.module]
            found += [(node.lineno, name) for name in names]
    return [(line, name) for line, name in found if name.split(".")[0] == "edgeseg"]


def upward(source: str, module: str) -> list[str]:
    """The imports that the order does not allow, as `module:line imports other`."""
    own = part_of(module)
    if not own:
        return []
    return [f"{module}:{line} imports {name}" for line, name in imports(source, module)
            if (other := part_of(name)) != own and (own, other) not in NEIGHBOURS
            and LEVEL.get(other, 1) >= LEVEL[own]]


def test_every_part_of_the_package_has_a_layer():
    parts = {part_of(module_of(file)) for file in (ROOT / "edgeseg").rglob("*.py")} - {""}
    assert parts == set(LEVEL)


def test_imports_only_go_down():
    files = sorted((ROOT / "edgeseg").rglob("*.py"))
    wrong = [line for file in files for line in upward(file.read_text("utf-8"), module_of(file))]
    assert wrong == []


@pytest.mark.parametrize(("module", "source"), [
    ("edgeseg.runtime.x", "def f():\n    from edgeseg.distill.run import Run"),
    ("edgeseg.geometry", "from edgeseg import preprocess"),
    ("edgeseg.losses.x", "import edgeseg.students.cost"),
    ("edgeseg.errors", "import edgeseg"),
    ("edgeseg.bundle.x", "if TYPE_CHECKING:\n    from edgeseg.cli.main import app"),
])
def test_an_import_upwards_or_sideways_is_seen(module, source):
    assert len(upward(source, module)) == 1
    assert upward("from edgeseg.errors import EdgesegError" if module != "edgeseg.errors" else "", module) == []


def test_contributors_read_the_same_order():
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text("utf-8").split())
    assert " > ".join(LAYERS) in text
