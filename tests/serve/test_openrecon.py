"""export/openrecon: the label keeps OpenRecon's rules and says what was measured; the Dockerfile holds that label."""

import base64
import copy
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import tiny_bundle

from edgeseg.container import open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.shipped import find

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "export" / "openrecon"
BENCH = ROOT / "benchmarks" / "results" / "bench.json"


def load_make():
    spec = importlib.util.spec_from_file_location("openrecon_make", FOLDER / "make.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()
NEEDS = make.Needs("cine.edgeseg", 160.4, 1)


@pytest.fixture(scope="module")
def label():
    return make.make_label(open_bundle(find("cine")), NEEDS, "edgeseg", "0.1.0")


def run(*arguments):
    return subprocess.run([sys.executable, FOLDER / "make.py", *map(str, arguments)], capture_output=True, text=True,
                          check=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("open recon") / "out"
    done = run("--bundle", "cine", "--bench", BENCH, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_the_rules_are_themselves_a_schema():
    jsonschema.Draft202012Validator.check_schema(json.loads((FOLDER / "label.schema.json").read_text()))


def test_the_label_keeps_the_rules_and_asks_for_no_gpu(label):
    assert make.problems(label) == []
    found = label["reconstruction"]
    assert (found["can_use_gpu"], found["min_count_required_gpus"], found["min_required_gpu_memory"]) == (False, 0, 0)
    assert found["transfer_protocol"] == {"protocol": "ISMRMRD", "version": "1.4.1"}
    assert found["content_qualification_type"] == "RESEARCH"
    assert "CC BY-NC-SA" in label["general"]["regulatory_information"]["additional_relevant_information"]


PARAMETER = {"id": "config", "type": "choice", "label": {"en": "Config"}, "default": "a",
             "values": [{"id": "a", "name": {"en": "A"}}]}
NUMBER = {"id": "n", "type": "int", "label": {"en": "N"}, "minimum": 0, "maximum": 9, "default": 1}
GOOD = [
    [], [PARAMETER], [NUMBER, {**NUMBER, "id": "m", "unit": {"en": "ms"}, "information": {"en": "more"}}],
    [{"id": "b", "type": "boolean", "label": {"en": "B"}, "default": True}],
    [{"id": "s", "type": "string", "label": {"en": "S", "de": "S"}, "isLargeText": True}],
    [{**NUMBER, "type": "double", "default": 1.5}], [{**NUMBER, "id": f"n{i}"} for i in range(14)],
]


@pytest.mark.parametrize("parameters", GOOD)
def test_parameters_of_every_kind_are_allowed(label, parameters):
    assert make.problems({**label, "parameters": parameters}) == []


def of(part, **values):
    return lambda found: found[part].update(values)


BAD = {
    "no general": lambda found: found.pop("general"),
    "no parameters": lambda found: found.pop("parameters"),
    "something more": lambda found: found.update(more=1),
    "no memory": lambda found: found["reconstruction"].pop("min_required_memory"),
    "no cores": of("reconstruction", min_count_required_cpu_cores=0),
    "half a core": of("reconstruction", min_count_required_cpu_cores=0.5),
    "memory below 0": of("reconstruction", min_required_memory=-1),
    "memory as text": of("reconstruction", min_required_memory="512"),
    "another protocol": of("reconstruction", transfer_protocol={"protocol": "MRD", "version": "2.0.0"}),
    "another protocol version": of("reconstruction", transfer_protocol={"protocol": "ISMRMRD", "version": "1.5.0"}),
    "another emitter": of("reconstruction", emitter="mask"),
    "another injector": of("reconstruction", injector="raw"),
    "another qualification": of("reconstruction", content_qualification_type="TOY"),
    "GPU as a word": of("reconstruction", can_use_gpu="no"),
    "a field that is not known": of("reconstruction", can_use_npu=False),
    "no UDI": lambda found: found["general"]["regulatory_information"].pop("udi"),
    "a date that is no text": lambda found: found["general"]["regulatory_information"].update(manufacture_date=2026),
    "a version of two numbers": of("general", version="0.1"),
    "a version with a zero in front": of("general", version="01.2.3"),
    "a version with a word in front": of("general", version="v0.1.0"),
    "a version of Python's": of("general", version="0.1.0.dev1"),
    "no English name": of("general", name={"de": "x"}),
    "15 parameters": lambda found: found.update(parameters=[{**NUMBER, "id": f"n{i}"} for i in range(15)]),
    "a parameter twice": lambda found: found.update(parameters=[NUMBER, NUMBER]),
    "a parameter's id with a dash": lambda found: found.update(parameters=[{**NUMBER, "id": "a-b"}]),
    "a parameter of no kind": lambda found: found.update(parameters=[{**NUMBER, "type": "float"}]),
    "a number without limits": lambda found: found.update(parameters=[{"id": "n", "type": "int", "label": {"en": "N"},
                                                                       "default": 1}]),
    "a number beyond 32 bits": lambda found: found.update(parameters=[{**NUMBER, "maximum": 2**31}]),
    "a double of hundredths": lambda found: found.update(parameters=[{**NUMBER, "type": "double", "default": 1.25}]),
    "a unit of four letters": lambda found: found.update(parameters=[{**NUMBER, "unit": {"en": "inch"}}]),
    "a choice of nothing": lambda found: found.update(parameters=[{**PARAMETER, "values": []}]),
    "a boolean with values": lambda found: found.update(parameters=[{**PARAMETER, "type": "boolean", "default": True}]),
    "a switch without default": lambda found: found.update(parameters=[{"id": "b", "type": "boolean",
                                                                        "label": {"en": "B"}}]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_label_against_the_rules_is_found_and_nothing_is_written(label, tmp_path, name):
    spoilt = copy.deepcopy(label)
    BAD[name](spoilt)
    assert make.problems(spoilt)
    with pytest.raises(EdgesegError, match="would break OpenRecon's rules"):
        make.write(tmp_path / "out", open_bundle(find("cine")), spoilt)
    assert not (tmp_path / "out").exists()


def bench(**changes):
    row = {"name": "a, 2 threads", "role": "student", "backend": "openvino", "precision": "int8", "threads": 2,
           "peak_rss_mb": 150.0, "torch": False, "failed": None, "target_met": True}
    rows = [row, {**row, "name": "a, 1 thread", "threads": 1, "target_met": False},
            {**row, "name": "b, 1 thread", "threads": 1, "precision": "fp32", "peak_rss_mb": 201.0},
            {**row, "name": "torch", "torch": True, "peak_rss_mb": 900.0},
            {**row, "name": "teacher", "role": "teacher", "peak_rss_mb": 900.0}]
    return {"schema": "edgeseg.bench/2", "complete": True, "bundle": "x.edgeseg", "default_row": "a, 2 threads",
            "rows": rows} | changes


def read(tmp_path, document):
    path = tmp_path / "bench.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return make.read_needs(path)


def test_memory_is_the_hungriest_row_of_the_bundle_and_cores_are_those_that_are_fast_enough(tmp_path):
    assert read(tmp_path, bench()) == make.Needs("x.edgeseg", 201.0, 2)
    quick = bench()
    quick["rows"][1]["target_met"] = True
    assert read(tmp_path, quick).cores == 1
    for row in quick["rows"]:
        row["target_met"] = False
    assert read(tmp_path, quick).cores == 2  # of the default row
    assert read(tmp_path, {"schema": "edgeseg.bench-numbers/1", "bench": bench()}) == read(tmp_path, bench())


@pytest.mark.parametrize("document", [
    "", "[]", "{}", "null", bench(complete=False), bench(rows=[]), bench(default_row="none of them"),
    bench(schema="edgeseg.verify/1"), bench(rows=[{**bench()["rows"][0], "peak_rss_mb": None}]),
    bench(rows=[{**bench()["rows"][0], "peak_rss_mb": float("nan")}]), bench(rows=3)])
def test_what_is_no_complete_bench_is_one_line(tmp_path, document):
    with pytest.raises(EdgesegError, match="no complete result of edgeseg bench"):
        read(tmp_path, document)


def test_the_label_asks_for_what_the_shipped_bench_measured(written):
    found = json.loads((written[0] / "label.json").read_text())["reconstruction"]
    rows = [r for r in json.loads(BENCH.read_text())["bench"]["rows"] if r["role"] == "student" and not r["torch"]]
    peak = max(r["peak_rss_mb"] for r in rows)
    assert peak + make.SERVER_MB <= found["min_required_memory"] < peak + make.SERVER_MB + make.STEP_MB
    assert found["min_count_required_cpu_cores"] in {r["threads"] for r in rows}


def test_the_folder_holds_the_bundle_and_a_dockerfile_with_exactly_that_label(written):
    out, said = written
    assert open_bundle(out / "bundle.edgeseg").files == open_bundle(find("cine")).files
    text = (out / "Dockerfile").read_text()
    name, encoded = re.search(r'^LABEL "([^"]+)"="([A-Za-z0-9+/=]+)"$', text, re.MULTILINE).groups()
    assert name == "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
    label = json.loads(base64.b64decode(encoded))
    assert label == json.loads((out / "label.json").read_text())
    assert make.problems(label) == []
    assert "$" not in text
    assert "FROM python:3.11-slim\n" in text
    copied = re.search(r"^COPY (.+) constraints\.txt ", text, re.MULTILINE).group(1)
    assert copied == make.WHEEL
    assert "OpenRecon_edgeseg_edgeseg-cine_V0.1.0" in said
    assert "not cine.edgeseg: measure this one" in said  # what lies in benchmarks/results was another bundle


def test_the_command_in_the_dockerfile_exists(written):
    text = (written[0] / "Dockerfile").read_text().replace("\\\n", "")
    command = json.loads(re.search(r"^CMD (\[.+\])$", text, re.MULTILINE).group(1))
    assert command[:3] == ["edgeseg", "serve", "mrd"]
    pytest.importorskip("edgeseg.cli.serve_mrd", reason="the MRD server is not part of this edgeseg")
    code = "from edgeseg.cli import main, serve_mrd; main.app.command('alone')(serve_mrd.mrd); main.main()"
    said = subprocess.run([sys.executable, "-c", code, "alone", "--help"], capture_output=True, text=True, check=True,
                          env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
    assert all(word in said for word in command if word.startswith("--"))
    assert command[command.index("--port") + 1] == str(make.PORT)


def test_bad_arguments_are_one_line_and_write_nothing(tmp_path):
    packed = tiny_bundle.make_bundle(tmp_path / "tiny.edgeseg", precisions=("fp32",))
    there = tmp_path / "there"
    there.mkdir()
    for extra, words in ((("--vendor", "a/b"), "letters, digits and dashes"), (("--version", "1.0"), "general/version"),
                         (("--out", there), "is there already"), (("--bench", tmp_path / "none.json"), "none.json"),
                         (("--bundle", "nobody"), "no such bundle")):
        done = run("--bundle", packed, "--bench", BENCH, "--out", tmp_path / "out", *extra)
        assert done.returncode == 1
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()
        assert list(there.iterdir()) == []
