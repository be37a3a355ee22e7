import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import tiny_bundle

from edgeseg.container import MANIFEST, open_bundle, write_sums
from edgeseg.errors import EdgesegError
from edgeseg.manifest import CpuClass, FrameProtocol, Manifest
from edgeseg.measure import replay, verify
from edgeseg.measure.document import one_line
from edgeseg.measure.replay import Replay
from edgeseg.measure.verify import verify_bundle
from edgeseg.runtime.cpu import cpu_class, native_bf16
from edgeseg.runtime.frame_graph import bring
from edgeseg.runtime.golden import load_golden, save_golden
from edgeseg.runtime.precision import choose_precision, local_record, read_local_record

QUICK = {"seconds": 0.02}
ALL = {"openvino int8": 1.2, "onnxruntime int8": 1.2}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """As built on another CPU, with every precision admitted."""
    elsewhere = tiny_bundle.speeds(CpuClass(isa=("avx2",), cores=1000), ALL, dict.fromkeys(ALL, 1.0))
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg",
                                   admission=tiny_bundle.admission(), speeds=elsewhere,
                                   versions={"numpy": "0.0.1", "openvino": verify.environment.installed("openvino"),
                                             "torch": "1"})


@pytest.fixture(scope="module")
def found(bundle):
    """Nothing in it is replaced by a test."""
    return verify_bundle(bundle, **QUICK)


def change(bundle, path, edit):
    """A copy of a bundle in which `edit(folder)` changed something on purpose: its hashes are right again."""
    shutil.copytree(bundle, path)
    edit(path)
    write_sums(path)
    return path


def change_golden(bundle, path, edit):
    def rewrite(folder):
        save_golden(folder / "golden.npz", [edit(i, g) for i, g in enumerate(load_golden(folder / "golden.npz"))])
    return change(bundle, path, rewrite)


def only_speeds(monkeypatch, speeds):
    """The replays are real, the measurement is what a test says: its outcome on a busy machine is anybody's guess."""
    monkeypatch.setattr(verify, "measure_speeds", lambda *arguments: speeds)


def test_every_runtime_and_precision_replays_and_is_measured(found):
    names = {(r.graph, r.backend, r.precision) for r in found.replays}
    bf16 = {("core", "openvino", "bf16")} if native_bf16() else set()
    assert names == {("core", b, p) for b in ("openvino", "onnxruntime") for p in ("fp32", "int8")} | bf16
    assert all(r.agreement == r.worst_frame == 1.0 and r.frames == 3 for r in found.replays if r.precision != "bf16")
    assert all(r.passed for r in found.replays)
    assert {(t.backend, t.precision) for t in found.times} == {n[1:] for n in names}
    assert found.accepted
    assert found.files == 8  # six model files, golden.npz and the manifest
    assert found.images_per_second > 0
    assert found.target_met == (found.images_per_second >= 10)


def test_latency_is_a_ratio_to_the_build_box_where_it_has_the_row(found):
    for time in found.times:
        build = {"int8": 1.0, "fp32": 2.0}.get(time.precision)
        assert time.build_ms == build
        assert time.ratio == (time.here_ms / build if build else None)


def test_other_versions_and_another_cpu_are_told_and_no_failure(found):
    assert set(found.versions) == {"numpy"}  # openvino is the same, torch is not needed here
    assert found.versions["numpy"][0] == "0.0.1"
    assert found.build_class.cores == 1000
    assert found.here_class == cpu_class()
    assert found.document()["cpu_class"]["equal"] is False


def test_the_record_lets_auto_choose_on_this_machine(bundle, monkeypatch):
    only_speeds(monkeypatch, tiny_bundle.speeds(cpu_class(), ALL))
    opened = open_bundle(bundle)
    assert choose_precision(opened, "openvino") == "fp32"  # built on another CPU
    kept = verify_bundle(bundle, **QUICK)
    assert kept.recorded
    assert kept.record_note == str(local_record(opened))
    assert read_local_record(opened).speeds == kept.speeds
    assert kept.auto == {"openvino": "int8", "onnxruntime": "int8"}
    assert choose_precision(opened, "openvino") == "int8"
    assert open_bundle(bundle).files == opened.files  # nothing of it lies in the bundle


def test_another_number_of_threads_than_the_default_is_no_record(bundle, monkeypatch, tmp_path):
    """Its ratios would decide for every other number; an explicit default is the default."""
    only_speeds(monkeypatch, tiny_bundle.speeds(cpu_class(), ALL))
    monkeypatch.setattr(verify, "default_threads", lambda: 2)
    found = verify_bundle(bundle, threads=1, **QUICK)
    assert found.accepted
    assert not found.recorded
    assert "measured with 1 thread(s)" in found.record_note
    assert "the default, 2: verify without --threads" in found.record_note
    assert found.auto["openvino"] == "fp32"
    assert not (tmp_path / "a cache").exists()
    monkeypatch.setattr(verify, "default_threads", lambda: 1)
    assert verify_bundle(bundle, threads=1, **QUICK).recorded


def test_no_record_is_kept_if_not_wanted(bundle, monkeypatch, tmp_path):
    only_speeds(monkeypatch, tiny_bundle.speeds(cpu_class(), ALL))
    found = verify_bundle(bundle, record=False, **QUICK)
    assert not found.recorded
    assert found.auto["openvino"] == "fp32"
    assert not (tmp_path / "a cache").exists()


def test_a_cache_that_cannot_be_written_is_told_and_no_failure(bundle, monkeypatch, tmp_path):
    only_speeds(monkeypatch, tiny_bundle.speeds(cpu_class(), ALL))
    (tmp_path / "file").write_text("kept")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = verify_bundle(bundle, **QUICK)
    assert found.accepted
    assert not found.recorded
    assert str(tmp_path / "file") in found.record_note
    assert found.auto["openvino"] == "fp32"
    assert (tmp_path / "file").read_text() == "kept"


def test_a_read_only_cache_is_told_and_no_failure(bundle, monkeypatch):
    only_speeds(monkeypatch, tiny_bundle.speeds(cpu_class(), ALL))

    def refuse(path, document):  # root, as whom tests may run, writes into any folder
        raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr(verify, "write_json", refuse)
    found = verify_bundle(bundle, **QUICK)
    assert found.accepted
    assert not found.recorded
    assert "Permission denied" in found.record_note


def test_another_answer_in_one_precision_is_refused_and_auto_falls_back_in_that_runtime(bundle, monkeypatch, tmp_path):
    only_speeds(monkeypatch, tiny_bundle.speeds(cpu_class(), ALL))

    def shift(i, item):
        moved = np.roll(item.labels["openvino int8"], 4, axis=1)
        return replace(item, labels=item.labels | {"openvino int8": moved})
    changed = change_golden(bundle, tmp_path / "changed.edgeseg", shift)
    found = verify_bundle(changed, **QUICK)
    assert [(r.backend, r.precision) for r in found.replays if not r.passed] == [("openvino", "int8")]
    assert not found.accepted
    assert found.auto == {"openvino": "fp32", "onnxruntime": "int8"}
    assert read_local_record(open_bundle(changed)).agreed == {"openvino": False, "onnxruntime": True}


def test_the_tolerances_are_those_that_the_bundle_stores(bundle, monkeypatch, tmp_path):
    only_speeds(monkeypatch, tiny_bundle.speeds(cpu_class(), ALL))

    def one_pixel(i, item):
        labels = {key: found.copy() for key, found in item.labels.items()}
        for found in labels.values():
            found[20, 18] = 1  # inside the LV: about one of 230 foreground pixels
        return replace(item, labels=labels)
    changed = change_golden(bundle, tmp_path / "strict.edgeseg", one_pixel)
    assert {r.precision: r.passed for r in verify_bundle(changed, **QUICK).replays} == {
        "fp32": False, "int8": True, **({"bf16": True} if native_bf16() else {})}

    def loosen(folder):
        with np.load(folder / "golden.npz") as stored:
            arrays = dict(stored) | {"least_agreement_fp32": np.float64(0.5), "least_agreement_int8": np.float64(1.0)}
        np.savez_compressed(folder / "golden.npz", **arrays)
    loose = verify_bundle(change(changed, tmp_path / "loose.edgeseg", loosen), **QUICK)
    assert all(r.passed is (r.precision != "int8") for r in loose.replays)
    assert {r.least for r in loose.replays if r.precision == "int8"} == {1.0}


@pytest.mark.parametrize("missing", [1, 3])
def test_a_core_without_a_stored_map_fails_and_bf16_takes_that_of_fp32(bundle, monkeypatch, tmp_path, missing):
    only_speeds(monkeypatch, tiny_bundle.speeds(cpu_class(), ALL))

    def forget(i, item):
        return replace(item, labels={"openvino fp32": item.labels["openvino fp32"]}) if i < missing else item
    found = verify_bundle(change_golden(bundle, tmp_path / "few.edgeseg", forget), **QUICK)
    compared = {(r.backend, r.precision): r.passed for r in found.replays}
    assert compared == {("openvino", "fp32"): True, ("openvino", "int8"): False, ("onnxruntime", "fp32"): False,
                        ("onnxruntime", "int8"): False, **({("openvino", "bf16"): True} if native_bf16() else {})}
    assert {r.failed for r in found.replays if not r.passed} == {
        f"the bundle stores no label map of it for {missing} of 3 golden frames: export it again"}
    assert not found.accepted
    assert found.auto == {"openvino": "fp32", "onnxruntime": "fp32"}


def test_bf16_is_replayed_only_where_it_is_native_and_admitted(bundle, monkeypatch, tmp_path):
    only_speeds(monkeypatch, tiny_bundle.speeds(cpu_class(), ALL))
    refused = tiny_bundle.copy_bundle(bundle, tmp_path / "refused.edgeseg",
                                      admission=tiny_bundle.admission("openvino bf16"))
    assert "bf16" not in {r.precision for r in verify_bundle(refused, **QUICK).replays}
    monkeypatch.setattr(replay, "native_bf16", lambda: False)
    assert "bf16" not in {r.precision for r in verify_bundle(bundle, **QUICK).replays}


@pytest.mark.skipif(not native_bf16(), reason="this CPU has no instructions for bf16")
def test_bf16_is_compared_with_its_own_map_where_there_is_one(bundle, monkeypatch, tmp_path):
    only_speeds(monkeypatch, tiny_bundle.speeds(cpu_class(), ALL))
    changed = change_golden(bundle, tmp_path / "own.edgeseg", lambda i, item: replace(
        item, labels=item.labels | {"openvino bf16": np.roll(item.labels["openvino fp32"], 5)}))
    assert {r.precision: r.passed for r in verify_bundle(changed, **QUICK).replays}["bf16"] is False


def test_a_network_that_does_not_run_here_is_a_failed_replay_not_an_end(bundle, tmp_path):
    changed = change(bundle, tmp_path / "broken.edgeseg",
                     lambda folder: (folder / "model.int8.onnx").write_bytes(b"no network"))
    found = verify_bundle(changed, **QUICK)
    broken = next(r for r in found.replays if r.failed)
    assert (broken.backend, broken.precision, broken.passed) == ("onnxruntime", "int8", False)
    assert str(tmp_path) not in one_line(found.document())
    assert found.speeds is None
    assert not found.accepted
    assert read_local_record(open_bundle(changed)).agreed == {"openvino": True, "onnxruntime": False}


def test_a_bundle_without_label_maps_cannot_be_verified(bundle, tmp_path):
    for name, edit in (("bare", lambda i, item: replace(item, labels={})), ("none", None)):
        changed = change_golden(bundle, tmp_path / name, edit) if edit else change(
            bundle, tmp_path / name, lambda folder: save_golden(folder / "golden.npz", []))
        with pytest.raises(EdgesegError, match=r"golden\.npz: holds no label map"):
            verify_bundle(changed, **QUICK)


def test_a_changed_file_ends_it_before_anything_is_kept(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "b")
    with (tmp_path / "b" / "model.int8.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(EdgesegError, match=r"model\.int8\.bin: changed"):
        verify_bundle(tmp_path / "b", **QUICK)
    assert not (tmp_path / "a cache").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut", "cut", "tolerance", "shape", "npy"])
def test_damaged_golden_frames_are_one_line(bundle, tmp_path, content):
    def damage(folder):
        path = folder / "golden.npz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "cut":
            path.write_bytes(path.read_bytes()[:-300])
        elif content == "npy":
            np.save(path.with_suffix(".npy"), np.zeros(3))
            path.with_suffix(".npy").replace(path)
        else:
            with np.load(path) as stored:
                arrays = dict(stored)
            arrays["least_agreement_int8" if content == "tolerance" else "labels_0 openvino fp32"] = np.zeros(())
            np.savez_compressed(path, **arrays)
    with pytest.raises(EdgesegError, match=r"golden\.npz: not readable golden frames") as caught:
        verify_bundle(change(bundle, tmp_path / "b", damage), **QUICK)
    assert "\n" not in str(caught.value)


def test_the_maps_of_a_bundle_of_before_bf16_hold_it_to_the_tolerance_of_int8(bundle, tmp_path):
    path = tmp_path / "golden.npz"
    with np.load(bundle / "golden.npz") as stored:
        np.savez(path, **{k: stored[k] for k in stored.files if k != "least_agreement_bf16"})
    least = load_golden(path)[0].least_agreement
    assert least == {"fp32": 0.999, "int8": 0.97, "bf16": 0.97}


def test_the_record_is_json_and_names_no_path_user_or_host(found, bundle):
    import getpass
    import socket

    text = one_line(found.document())
    document = json.loads(text)
    assert document["schema"] == "edgeseg.acceptance/1"
    assert set(document) >= {"date", "accepted", "bundle", "bundle_sha256", "replays", "latency", "cpu_class", "auto",
                             "versions_that_differ", "target_met", "machine"}
    assert document["bundle"] == "tiny.edgeseg"
    for secret in (str(bundle.parent), socket.gethostname(), f'"{getpass.getuser()}"'):
        assert secret not in text


def test_a_packed_bundle_is_verified_as_its_folder(found, bundle, tmp_path, monkeypatch):
    only_speeds(monkeypatch, tiny_bundle.speeds(cpu_class(), ALL))
    packed = tmp_path / "tiny.edgeseg.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(bundle.iterdir()):
            archive.write(file, f"{file.name}")
    again = verify_bundle(packed, **QUICK)
    assert again.accepted
    assert again.key == found.key
    assert [vars(r) for r in again.replays] == [vars(r) for r in found.replays]


PROTOCOL = FrameProtocol(name="24x20@1.5-uint16", size=(24, 20), spacing=(1.5, 1.5), dtype="uint16", back="logits")


def write_frame_graph(path, value):
    """uint16 [1, 1, 24, 20] -> label values as the grey level nearest to a pixel, or `value` everywhere."""
    from onnx import TensorProto, helper, numpy_helper

    levels = np.full((4, 1, 1, 1), 0, np.float32)
    levels[:, 0, 0, 0] = tiny_bundle.LEVELS
    bias = -(tiny_bundle.LEVELS**2)
    if value is not None:
        bias = np.where(np.arange(4) == value, np.float32(1e9), bias).astype(np.float32)
    nodes = [helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
             helper.make_node("Conv", ["x", "w", "b"], ["logits"]),
             helper.make_node("ArgMax", ["logits"], ["index"], axis=1, keepdims=0),
             helper.make_node("Cast", ["index"], ["labels"], to=TensorProto.UINT8)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("image", TensorProto.UINT16, (1, 1, 24, 20))],
                              [helper.make_tensor_value_info("labels", TensorProto.UINT8, (1, 24, 20))],
                              [numpy_helper.from_array(2 * levels, "w"), numpy_helper.from_array(bias, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def add_frame_graphs(folder, value=None):
    home = folder / "frames" / PROTOCOL.name
    home.mkdir(parents=True)
    write_frame_graph(home / "fp32.onnx", None)
    write_frame_graph(home / "int8.onnx", value)
    manifest = Manifest.read(folder / MANIFEST)
    manifest.model_copy(update={"frames": (PROTOCOL,)}).write(folder / MANIFEST)  # the core takes them as they are


@pytest.mark.parametrize("value", [None, 2])
def test_frame_graphs_are_replayed_on_golden_frames_brought_to_their_protocol(bundle, tmp_path, monkeypatch, value):
    only_speeds(monkeypatch, tiny_bundle.speeds(cpu_class(), ALL))
    changed = change(bundle, tmp_path / "b.edgeseg", lambda folder: add_frame_graphs(folder, value))
    whole = verify_bundle(changed, **QUICK)
    found = {r.precision: r for r in whole.replays if r.graph == PROTOCOL.name}
    assert set(found) == {"fp32", "int8"}
    assert all(r.backend == "onnxruntime" and r.frames == 3 for r in found.values())
    assert found["fp32"].passed
    assert found["int8"].passed is (value is None)
    assert read_local_record(open_bundle(changed)).agreed == {"openvino": True, "onnxruntime": value is None}
    assert whole.auto == {"openvino": "int8", "onnxruntime": "int8" if value is None else "fp32"}


def protocol_of(dtype, size=(60, 50)):
    return PROTOCOL.model_copy(update={"dtype": dtype, "size": size})


@pytest.mark.parametrize(("dtype", "high"), [("uint16", 300), ("int16", 300), ("float32", 300), ("uint8", 255)])
def test_a_frame_is_brought_to_size_spacing_and_type(dtype, high):
    frame = tiny_bundle.frame(0)
    brought = bring(frame, (1.5, 1.5), protocol_of(dtype))
    assert (brought.shape, brought.dtype) == ((1, 60, 50), np.dtype(dtype))
    assert brought.max() == high
    assert not brought[:, :10].any()  # 40 rows in the middle of 60
    expected = frame * (high / 300)
    np.testing.assert_allclose(brought[0, 10:50, 7:43], np.rint(expected[0]), atol=0.5)


@pytest.mark.parametrize(("dtype", "low", "high", "expected"), [
    ("uint8", 0, 4095, (0, 255)), ("uint8", 0, 255, (0, 255)), ("uint8", 100, 200, (100, 200)),
    ("uint16", -1000, 3000, (0, 4000)), ("uint8", -1000, 3000, (0, 255)), ("uint16", 0, 1e6, (0, 65535)),
    ("int16", -1000, 3000, (-1000, 3000)), ("int16", -65536, 100, (-32768, 50)), ("int16", 0, 65534, (0, 32767)),
    ("float32", -1e6, 1e6, (-1e6, 1e6)),
])
def test_intensities_that_a_type_does_not_hold_are_scaled_not_cut(dtype, low, high, expected):
    frame = np.linspace(low, high, 60 * 50, dtype=np.float32).reshape(1, 60, 50)
    brought = bring(frame, (1.5, 1.5), protocol_of(dtype))
    assert (brought.min(), brought.max()) == expected
    steps = np.diff(brought.ravel().astype(float))
    assert steps.min() >= 0
    assert steps.max() <= (expected[1] - expected[0]) / 2999 + 1  # nothing is cut off or wrapped round


def test_agreement_is_pooled_over_frames_and_the_worst_frame_is_told():
    big, small = np.ones((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    small[0, :2] = 1
    wrong = small.copy()
    wrong[0, 0] = 2
    found = replay.compare("core", "openvino", "int8", [big, small], [big, wrong], 0.97)
    assert found.agreement == pytest.approx(401 / 402)
    assert found.worst_frame == 0.5
    assert found.passed
    assert found.verdict == "agrees"
    assert Replay("core", "openvino", "int8", 1, 0.97, 0.96, 0.96).verdict == "DISAGREES"
    assert Replay("core", "openvino", "int8", 1, 0.97, float("nan")).passed is False


def test_it_runs_without_torch(bundle):
    code = ("import sys\nfrom pathlib import Path\nfrom edgeseg.measure import verify\n"
            "verify.measure_speeds = lambda *a: None\n"
            f"assert verify.verify_bundle(Path({str(bundle)!r}), 0.01, 1, False).accepted\n"
            "print([m for m in ('torch', 'nncf', 'onnx', 'lightning') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
