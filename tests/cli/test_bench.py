import copy
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jsonschema
import pytest
import tiny_bundle
import typer
from typer.testing import CliRunner

from edgeseg.cli.bench import bench, end
from edgeseg.errors import EdgesegError, GateFailed
from edgeseg.measure import bench as bench_module
from edgeseg.report import bench as whole
from edgeseg.report.bench_schema import json_schema
from edgeseg.report.bench_text import markdown, remarks

SCHEMA = Path(__file__).parents[2] / "docs" / "bench.schema.json"
ROWS = ("--starts", 0, "--no-ceilings")
"""Nothing but the rows."""
app = typer.Typer()
app.command()(bench)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg", precisions=("fp32",))


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(bench_module, "BLOCK_SECONDS", 0.02)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def edgeseg(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "edgeseg", *map(str, arguments)], capture_output=True, text=True,
                          check=False, **options)


@pytest.fixture(scope="module")
def missed(bundle, tmp_path_factory):
    """A real bench that missed its target: what the command printed, its --out, and the result behind both."""
    place = tmp_path_factory.mktemp("bench")
    network = tiny_bundle.write_network(place / "teacher.onnx", (1, 1, 48, 48))
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_module, "BLOCK_SECONDS", 0.02)
        patch.setattr(whole, "measure_exam", partial(whole.measure_exam, slices=2, phases=3, rounds=1))
        patch.setattr(whole, "cross_check", partial(whole.cross_check, repeats=2, seconds=1))
        patch.setattr(whole, "measure_ceilings", partial(whole.measure_ceilings, seconds_per_probe=0.05))
        measure = whole.full_bench
        patch.setattr(whole, "full_bench", lambda *a, **k: results.append(measure(*a, **k)) or results[0])
        found = run(bundle, "--against", network, "--seconds", 0.1, "--threads", 1, "--json", "--out",
                    place / "some out", "--target", 1e9, "--starts", 1, "--rate", 50, "--rate-seconds", 0.2,
                    "--streams", 1, "--cross-check")
    return found, place / "some out", results[0]


def test_a_table_for_people_then_one_document_on_the_last_line_and_files(missed):
    found, out, _ = missed
    assert found.exit_code == 0, found.output  # a missed target fails only a strict bench
    lines = found.stdout.strip().splitlines()
    document = json.loads(lines[-1])
    assert document["target_met"] is False
    assert document["threads"] == [1]
    assert "teacher OpenVINO FP32" in found.stdout
    assert "1x48x48 (teacher)" in found.stdout
    assert "MISSED" in found.stdout
    assert sorted(p.name for p in out.iterdir()) == ["bench.json", "bench.md", "bench.png"]
    assert json.loads((out / "bench.json").read_text()) == document
    assert (out / "bench.md").read_text().startswith("| row | thr | part | p50 ms |")
    assert (out / "bench.png").read_bytes()[:4] == b"\x89PNG"


def test_each_part_that_was_asked_for_is_in_the_words_and_in_the_document(missed):
    found, out, result = missed
    document = json.loads((out / "bench.json").read_text())
    assert document["missing"] == {}
    assert document["complete"] is result.complete is True
    assert document["paced"]["frames"] == 10
    assert document["exam"]["slices"] * document["exam"]["phases"] == 6
    assert set(document["first_frames"]) == {r.name for r in result.rows.rows if r.role == "student"}
    assert {r["precision"] for r in document["ceilings"]["rows"]} >= {"fp32"}
    assert all(r["of_roofline"] > 0 for r in document["reached"].values())
    assert len(document["cross_check"]["ours_ms"]) == 2
    assert document["pipeline"] is None
    for word in ("start ", "paced ", "exam ", "ceiling ", "layers ", "check "):
        assert any(line.startswith(word) for line in found.stdout.splitlines()), word


def test_the_document_is_of_the_published_schema(missed):
    _, out, _ = missed
    document = json.loads((out / "bench.json").read_text())
    jsonschema.validate(document, json.loads(SCHEMA.read_text("utf-8")))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | {"rows": [{"name": "a row without numbers"}]}, json_schema())


def test_the_published_schema_is_that_of_the_types():
    assert json.loads(SCHEMA.read_text("utf-8")) == json_schema(), \
        "write it again: python -m edgeseg.report.bench_schema > docs/bench.schema.json"


@pytest.mark.parametrize("error", [EdgesegError("{bundle}: the frames are late"), OSError(28, "no space left")])
def test_a_part_that_fails_is_said_so_and_the_others_go_on(bundle, tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise type(error)(*(a.format(bundle=bundle) if isinstance(a, str) else a for a in error.args))

    monkeypatch.setattr(whole, "measure_paced", fail)
    monkeypatch.setattr(whole, "cross_check", partial(whole.cross_check, repeats=1, seconds=1))
    found = run(bundle, *ROWS, "--seconds", 0.02, "--threads", 1, "--rate", 50, "--cross-check", "--json", "--out",
                tmp_path / "out")
    assert isinstance(found.exception, EdgesegError)
    assert found.exception.exit_code == 2
    document = json.loads(found.stdout.strip().splitlines()[-1])
    assert set(document["missing"]) == {"paced"}
    assert str(bundle.parent) not in json.dumps(document)
    assert (document["complete"], document["interrupted"]) == (False, False)
    assert document["cross_check"] is not None
    assert "FAILED   paced: " in found.stdout
    assert "ended early" not in found.stdout
    assert (tmp_path / "out" / "bench.json").is_file()


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_in_a_part_keeps_what_there_is_and_ends_the_rest(bundle, tmp_path, times):
    """Also when it is pressed again while the results are written."""
    out = tmp_path / "out"
    process = start("import signal\nfrom edgeseg.cli.progress import Progress\n"
                    f"Progress.__call__ = lambda bar, text, total: [signal.raise_signal(2) for _ in range({times})] "
                    "if 'frames a second' in text else None",
                    bundle, *ROWS, "--seconds", "0.02", "--threads", "1", "--rate", "5", "--rate-seconds", "600",
                    "--cross-check", "--out", out)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    document = json.loads((out / "bench.json").read_text())
    assert document["interrupted"] is True
    assert document["missing"] == {"cross_check": "the run was ended"}
    assert 0 < document["paced"]["frames"] < 3000
    assert document["paced"]["complete"] is False
    assert document["rows"][0]["network"]["n"] > 0
    assert "INCOMPLETE  the run was ended early" in output


def test_a_strict_bench_that_misses_its_target_fails_and_still_reports(bundle, missed, tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "full_bench", lambda *a, **k: missed[2])
    found = run(bundle, "--target", 1e9, "--strict", "--json", "--out", tmp_path / "out")
    assert isinstance(found.exception, GateFailed)
    assert found.exception.exit_code == 3
    assert json.loads(found.stdout.strip().splitlines()[-1])["target_met"] is False
    assert (tmp_path / "out" / "bench.json").is_file()


def test_a_percentile_with_too_few_calls_is_a_dash(bundle):
    found = run(bundle, *ROWS, "--seconds", 0.03, "--threads", 1, "--json")
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout.strip().splitlines()[-1])["rows"]
    few = [r for r in rows if r["end_to_end"]["n"] < 662]
    assert few
    assert all(r["end_to_end"]["p99_ms"] is None for r in few)
    assert " - " in found.stdout


@pytest.mark.parametrize(("met", "strict", "code"), [(True, True, 0), (False, True, 3), (False, False, 0),
                                                     (None, True, 2), (None, False, 0)])
def test_the_exit_code_of_a_gate_tells_missed_from_not_measured(missed, met, strict, code):
    result = copy.deepcopy(missed[2])
    rows = result.rows
    rows.rows = [replace(r, target_met=met) for r in rows.rows]
    if not code:
        return end(result, strict)
    with pytest.raises(EdgesegError) as caught:
        end(result, strict)
    assert caught.value.exit_code == code
    assert ("--seconds" in str(caught.value)) is (met is None)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--device", "cuda"], "--device cuda: there is no such device"),
    (["--seconds", 0], "must be above 0"),
    (["--threads", 9999], "--threads 9999: this process may use"),
    (["--threads", "1,two"], "--threads 1,two: write whole numbers"),
    (["--threads", "1,1"], "names a number twice"),
    (["--against", "absent.onnx"], "absent.onnx: no such network"),
    (["--against", "nnunet:absent"], "absent: no such nnU-Net model folder"),
    (["--rate", 0], "--rate 0"),
    (["--rate", "nan"], "must be above 0 and finite"),
    (["--rate", 50, "--rate-seconds", -1], "must be above 0 and finite"),
    (["--rate", 50, "--stress", -1], "--stress -1"),
    (["--rate", 50, "--quota", 0], "--quota 0"),
    (["--stress", 2], "add --rate"),
    (["--streams", 0], "--streams 0"),
    (["--streams", 9999], "9999"),
    (["--streams", "many"], "--streams many"),
    (["--starts", -1], "--starts -1"),
    (["--seed", -1], "--seed -1"),
])
def test_bad_input_is_one_line_and_writes_nothing(bundle, tmp_path, arguments, message):
    found = run(bundle, *arguments, "--out", tmp_path / "out")
    assert isinstance(found.exception, EdgesegError)
    assert found.exception.exit_code == 2
    assert message in str(found.exception)
    assert "\n" not in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_refused_before_the_work_starts(bundle, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("kept")
    monkeypatch.setattr(whole, "full_bench", lambda *a, **k: pytest.fail("the work started"))
    found = run(bundle, "--out", file)
    assert isinstance(found.exception, EdgesegError), found.output
    assert f"{file}: is a file" in str(found.exception)
    assert file.read_text() == "kept"


def test_the_help_says_what_the_frames_are():
    said = " ".join(run("--help").stdout.split())
    assert "phantom frames" in said
    assert "real frames" not in said


def test_the_command_says_it_in_one_line_without_traceback(bundle, tmp_path):
    copy = tmp_path / "changed.edgeseg"
    shutil.copytree(bundle, copy)
    (copy / "model.fp32.onnx").write_bytes(b"x")
    found = edgeseg("bench", copy)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith("edgeseg: ")
    assert "model.fp32.onnx: changed" in found.stderr
    assert found.stderr.count("\n") == 1


def test_no_bundle_at_all_is_one_line(tmp_path):
    found = edgeseg("bench", cwd=tmp_path)
    assert found.returncode == 2
    assert "no bundle in runs/" in found.stderr


def test_an_interrupted_bench_writes_what_it_has_marked_incomplete(bundle, tmp_path):
    out = tmp_path / "out"
    # the bar's step after each block, which shows nothing when nobody looks, tells when the first one is done
    process = start("from edgeseg.cli.progress import Progress\n"
                    "Progress.__call__ = lambda *a: print('block', file=sys.stderr, flush=True)",
                    bundle, "--seconds", "600", "--threads", "1", "--out", out, "--json")
    assert process.stderr.readline() == "block\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    document = json.loads(output.strip().splitlines()[-1])
    assert document["complete"] is False
    assert sum(len(b) for r in document["rows"] for b in r["blocks"].values()) >= 1
    assert json.loads((out / "bench.json").read_text()) == document
    assert "INCOMPLETE" in (out / "bench.md").read_text()


def start(change, *arguments):
    """`edgeseg bench` in its own process in which `change` has run before."""
    code = f"import sys\n{change}\nfrom edgeseg.cli.main import main\nmain()"
    return subprocess.Popen([sys.executable, "-c", code, "bench", *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("module", "attribute", "number"), [
    ("edgeseg.container", "open_bundle", signal.SIGINT),
    ("edgeseg.measure.turns", "Worker.ask", signal.SIGINT),  # while a network is loaded
    ("edgeseg.measure.turns", "Worker.ask", signal.SIGTERM),
    ("edgeseg.measure.turns", "take_turns", signal.SIGINT),  # all loaded, no block yet
])
def test_a_bench_interrupted_before_its_first_block_is_one_line(bundle, tmp_path, module, attribute, number):
    process = start(f"import signal, {module}\n{module}.{attribute} = lambda *a: signal.raise_signal({int(number)})",
                    bundle, "--seconds", "600", "--threads", "1", "--out", tmp_path / "out", "--json")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert output == ""
    assert errors == "edgeseg: bench: interrupted before the first measurement: nothing was written\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("busy", [False, True])
def test_a_busy_machine_is_said_so(busy):
    machine = {"cpu": "a CPU", "cpus_affinity": 2, "cpu_quota": None}
    load = {"others_before": 0.01, "others_during": 0.6 if busy else None, "busy": busy}
    rows = bench_module.Bench([], 10.0, 5.0, 3, "student OpenVINO INT8", True, False, machine, load, {"threads": [1]})
    result = whole.FullBench(rows)
    lines = remarks(result)
    assert any(line.startswith("BUSY") and "60 % during" in line for line in lines) is busy
    assert ("BUSY" in markdown(result)) is busy
    assert any("not given" in line for line in lines)  # no teacher
    assert any("not measured" in line for line in lines)
