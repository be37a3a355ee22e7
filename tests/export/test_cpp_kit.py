"""The C and C++ kit: built against the wheel's OpenVINO, its own tests run, its masks held against Python's."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import cpp_kit
import numpy as np
import pytest
import tiny_bundle
import tiny_clips
from cpp_kit import BAD_FRAME, BUNDLE, FLAGGED, OK, Handle

from edgeseg.container import open_bundle, write_sums
from edgeseg.errors import EdgesegError
from edgeseg.measure.bench import scanner_frames
from edgeseg.runtime.frame_graph import bring
from edgeseg.runtime.segmenter import Segmenter
from edgeseg.runtime.stream import Stream
from edgeseg.runtime.threads import default_threads

ROOT = Path(__file__).parents[2]
CINE = ROOT / "export" / "cine.edgeseg"
WHY = cpp_kit.missing()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY)


@pytest.fixture(scope="module")
def float_bundle(tmp_path_factory):
    """The smallest bundle, with a frame graph for float32 pixels of two sizes of a pixel, in FP32 alone."""
    from edgeseg.bundle.graph import parse_protocol, write_frame_graphs

    bundle = tiny_bundle.make_bundle(tmp_path_factory.mktemp("float") / "tiny float.edgeseg")
    protocol = parse_protocol("32x30@1.5x1.2", "float32")
    write_frame_graphs(bundle, tiny_bundle.GRID, (0, 1, 2, 3), protocol, ("fp32",))
    change_manifest(bundle, frames=[protocol.model_dump(mode="json")])
    return bundle


@pytest.fixture(scope="module")
def step_bundle(clip_run, tmp_path_factory):
    """A recurrent network in FP32."""
    from edgeseg.bundle.export import export_bundle

    return export_bundle(clip_run, tmp_path_factory.mktemp("step") / "discs.edgeseg", int8=False)


@pytest.fixture(scope="module")
def kit(tmp_path_factory, float_bundle, step_bundle):
    return cpp_kit.build(tmp_path_factory.mktemp("a place") / "the kit", *bundles(float_bundle, step_bundle))


def bundles(float_bundle, step_bundle):
    return f"-DEDGESEG_TEST_FLOAT_BUNDLE={float_bundle}", f"-DEDGESEG_TEST_STREAM_BUNDLE={step_bundle}"


def change_manifest(bundle, **values):
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    write_sums(bundle)


def test_the_kits_own_tests_pass(kit):
    assert "100% tests passed, 0 tests failed out of 2" in cpp_kit.ctest(kit)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_sample_gives_the_masks_of_python_bit_for_bit(kit, tmp_path, threads):
    frames, spacings, _ = scanner_frames(open_bundle(CINE))
    frames, spacing = np.stack(frames), spacings[0]
    segmenter = Segmenter(CINE, precision="int8", threads=threads)
    expected = np.stack([segmenter.segment(f, spacing).labels for f in frames])
    found = cpp_kit.segment_file(kit, CINE, frames, spacing, tmp_path, "--precision", "int8", "--threads", str(threads))
    np.testing.assert_array_equal(found, expected)
    assert set(np.unique(expected)) == set(segmenter.scheme.values)


def test_float_frames_give_the_masks_of_python_bit_for_bit(kit, float_bundle, tmp_path):
    bundle = open_bundle(float_bundle)
    protocol = bundle.manifest.frames[0]
    frames = np.stack([bring(tiny_bundle.frame(i), (1.5, 1.2), protocol) for i in range(3)])
    segmenter = Segmenter(bundle, precision="fp32", threads=1)
    expected = np.stack([segmenter.segment(f, protocol.spacing).labels for f in frames])
    found = cpp_kit.segment_file(kit, float_bundle, frames, protocol.spacing, tmp_path, "--precision", "fp32")
    np.testing.assert_array_equal(found, expected)
    assert expected.any()


def test_a_clip_gives_the_masks_of_python_bit_for_bit(kit, step_bundle, tmp_path):
    held_against_python(kit, step_bundle, "fp32", tmp_path)


@pytest.mark.soak
def test_a_clip_in_int8_gives_the_masks_of_python_bit_for_bit(kit, stream_bundle, tmp_path):
    held_against_python(kit, stream_bundle.path, "int8", tmp_path)


def held_against_python(kit, bundle, precision, folder):
    frames = tiny_clips.clip(5, 40)[0].astype(np.uint8)
    stream = Stream(bundle, precision=precision, threads=1)
    expected = np.stack([stream.push(f).labels for f in frames])
    found = cpp_kit.segment_file(kit, bundle, frames, (1.0, 1.0), folder, "--precision", precision, "--threads", "1")
    np.testing.assert_array_equal(found, expected)
    assert 0.1 < expected.mean() < 0.9


def test_a_stream_that_goes_wrong_goes_as_in_python(kit, step_bundle):
    rng, clip = np.random.default_rng(0), tiny_clips.clip(9, 24)[0]
    seen = set()
    with Handle(kit, step_bundle, "fp32", 1, frame_time=0.02) as handle:
        stream = Stream(step_bundle, precision="fp32", threads=1, frame_time=0.02)
        frame, clock = clip[0], 0.0
        for i in range(150):
            event = rng.choice(["next"] * 8 + ["same", "NaN", "flat", "channels", "gap", "back", "no clock", "type"])
            if event != "same":
                frame = clip[i % len(clip)]
            clock += {"gap": 0.2, "back": -0.05}.get(event, 0.02)
            if event == "NaN":
                frame = np.where(frame > 200, np.float32(np.nan), frame)
            elif event == "flat":
                frame = np.zeros_like(frame)
            elif event == "channels":
                frame = np.repeat(frame, 2, axis=0)
            elif event == "type":
                frame = frame.astype(np.int16)
            time = rng.choice([np.nan, None]) if event == "no clock" else clock
            expected = stream.push(frame, time)
            status, labels, known = handle.push(frame, (1.0, 1.0), time)
            np.testing.assert_array_equal(labels, expected.labels)
            assert known == expected.remembered
            if event != "channels":
                assert (handle.words or "ok") == expected.status
            named = expected.status.split(":")[0]
            assert status == {"ok": OK, "stall": FLAGGED, "gap": FLAGGED, "time": FLAGGED}.get(named, BAD_FRAME)
            seen.add(named)
    assert len(seen) == 7, seen


def test_what_a_handle_says_of_itself_is_the_manifest(kit, float_bundle):
    with Handle(kit, CINE) as handle:
        manifest, info = open_bundle(CINE).manifest, handle.info
        assert (info.name.decode(), info.task.decode()) == (manifest.name, manifest.task)
        assert info.precision == b"int8"  # admitted
        assert info.threads == default_threads()
        count = info.label_count
        assert tuple(n.decode() for n in info.label_names[:count]) == manifest.labels.names
        assert tuple(info.label_values[:count]) == manifest.labels.values
        graph = info.graphs[0]
        assert (info.graph_count, graph.name.decode()) == (1, manifest.frames[0].name)
        assert (graph.rows, graph.columns, graph.row_mm, graph.column_mm) == (256, 216, 1.40625, 1.40625)
    with Handle(kit, float_bundle) as handle:
        assert handle.info.precision == b"fp32"  # nothing was admitted


@pytest.mark.parametrize(("values", "words"), [
    ({"schema_version": 2}, "update it"),
    ({"schema_version": "x"}, "manifest"),
    ({"labels": {"names": ["a", "b"], "values": [0]}}, "labels"),
    ({"labels": {"names": ["a"], "values": [256]}}, "256"),
    ({"preprocessing": {}}, "manifest"),
    ({"measured": {"admission": {"gates": [{}]}}}, "manifest"),
    ({"frames": []}, "edgeseg export --frame"),
    ({"frames": [{"name": "../..", "size": [32, 30], "spacing": [1.5, 1.2], "dtype": "float32"}]}, "--frame"),
    ({"frames": [{"name": "32x30@1.5x1.2-float32", "size": [32, 29], "spacing": [1.5, 1.2], "dtype": "float32"}]},
     "other frames"),
    ({"frames": [{"name": "32x30@1.5x1.2-float32", "size": [10**9, 30], "spacing": [1.5, 1.2], "dtype": "float32"}]},
     "1000000000"),
    ({"frames": [{"name": "32x30@1.5x1.2-float32", "size": [32, 30], "spacing": [1.5, 1.2], "dtype": "float16"}]},
     "manifest"),
    ({"stream": {"states": {}, "frame_time": None}}, "model.fp32.xml")])
def test_a_manifest_that_says_what_is_not_so_is_refused(kit, float_bundle, tmp_path, values, words):
    bundle = tiny_bundle.copy_bundle(float_bundle, tmp_path / "changed.edgeseg")
    change_manifest(bundle, **values)
    with Handle(kit, bundle, "fp32") as handle:
        assert handle.status == BUNDLE
        assert words in handle.words
        assert "\n" not in handle.words


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100000, b'{"schema_version": 1e999}'])
def test_a_manifest_that_is_none_is_refused_as_in_python(kit, float_bundle, tmp_path, content):
    bundle = tiny_bundle.copy_bundle(float_bundle, tmp_path / "changed.edgeseg")
    (bundle / "manifest.json").write_bytes(content)
    write_sums(bundle)
    with Handle(kit, bundle) as handle:
        assert handle.status == BUNDLE
        assert "manifest.json: not a" in handle.words
    with pytest.raises(EdgesegError):
        open_bundle(bundle)


def test_a_network_that_is_none_is_refused(kit, float_bundle, tmp_path):
    bundle = tiny_bundle.copy_bundle(float_bundle, tmp_path / "changed.edgeseg")
    network = next(bundle.glob("frames/*/fp32.xml"))
    network.write_text(network.read_text()[:5000])
    write_sums(bundle)
    with Handle(kit, bundle, "fp32") as handle:
        assert handle.status == BUNDLE
        assert "OpenVINO cannot run this network" in handle.words


def test_a_stream_that_needs_the_whole_clip_to_normalise_is_refused(kit, step_bundle, tmp_path):
    bundle = tiny_bundle.copy_bundle(step_bundle, tmp_path / "changed.edgeseg")
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"kind": "rgb"', '"kind": "zscore"'))
    write_sums(bundle)
    with Handle(kit, bundle, "fp32") as handle:
        assert handle.status == BUNDLE
        assert "by constants" in handle.words


@pytest.mark.parametrize("kind", ["ct", "none"])
def test_a_stream_normalises_by_its_constants_as_python(kit, step_bundle, tmp_path, kind):
    bundle = tiny_bundle.copy_bundle(step_bundle, tmp_path / "changed.edgeseg")
    grid = json.loads((bundle / "manifest.json").read_text())["preprocessing"]
    grid["channels"][0] |= {"kind": kind, "mean": 70.3, "std": 33.1, "low": 12.7, "high": 190.9}
    change_manifest(bundle, preprocessing=grid)
    stream = Stream(bundle, precision="fp32", threads=1)
    with Handle(kit, bundle, "fp32", 1) as handle:
        for frame in tiny_clips.clip(2, 12)[0]:
            status, labels, _ = handle.push(frame, (1.0, 1.0))
            assert status == OK
            np.testing.assert_array_equal(labels, stream.push(frame).labels)


def test_only_the_interface_is_visible_in_the_library(kit):
    listed = cpp_kit.run("nm", "-D", "--defined-only", kit / "libedgeseg.so").split()
    names = {name.split("@")[0] for name in listed if name.startswith(("edgeseg", "_Z"))}
    header = (cpp_kit.SOURCE / "include" / "edgeseg.h").read_text()
    assert names == {f"edgeseg_{n}" for n in ("abi", "open", "get_info", "segment", "push", "reset", "last_error",
                                              "close")}
    assert all(f"{name}(" in header for name in names)


def test_python_finds_nothing_of_the_kit():
    assert not list(cpp_kit.SOURCE.rglob("*.py"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["edgeseg*"]


def test_the_benchmark_of_the_kit_runs(kit, tmp_path):
    script, sample = ROOT / "benchmarks" / "serve_cpp.py", kit / "edgeseg_segment"
    done = subprocess.run([sys.executable, script, "--quick", "--threads", "1", "--sample", sample,
                           "--out", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "serve_cpp.json").read_text())
    assert {r["name"] for r in found["rows"]} == {"C sample", "Python, the frame graph alone", "Python, Segmenter"}
    assert all(r["p50_ms"]["value"] > 0 and r["calls"]["n"] > 0 for r in found["rows"])
    goal, = found["targets"]
    assert goal["value"] > 0
    assert (goal["sign"], goal["limit"]) == ("<=", 1.05)
    page = (tmp_path / "out" / "serve_cpp.md").read_text()
    assert "these numbers mean nothing" in page
    assert str(tmp_path) not in page + json.dumps(found)


@pytest.mark.soak
def test_address_sanitizer_finds_nothing_in_our_objects(tmp_path, float_bundle, step_bundle):
    kit = cpp_kit.build(tmp_path / "the kit", "-DEDGESEG_ASAN=ON", *bundles(float_bundle, step_bundle))
    assert "100% tests passed, 0 tests failed out of 2" in cpp_kit.ctest(kit)


@pytest.mark.soak
def test_a_host_finds_the_installed_kit(kit, tmp_path):
    cpp_kit.run("cmake", "--install", kit, "--prefix", tmp_path / "opt here")
    host = tmp_path / "host"
    host.mkdir()
    (host / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.21)\nproject(host C)\nfind_package(edgeseg 1 REQUIRED)\n"
        "add_executable(host host.c)\ntarget_link_libraries(host edgeseg::edgeseg)\n")
    (host / "host.c").write_text('#include "edgeseg.h"\nint main(void) { return edgeseg_abi() != EDGESEG_ABI; }\n')
    cpp_kit.run("cmake", "-S", host, "-B", host / "b", f"-DCMAKE_PREFIX_PATH={tmp_path / 'opt here'}")
    cpp_kit.run("cmake", "--build", host / "b")
    cpp_kit.run(host / "b" / "host")
