"""What `precision="auto"` takes, by what is known of this machine."""

import json
import os
from dataclasses import replace

import pytest
import tiny_bundle

from edgeseg.container import SUMS, open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.manifest import CpuClass, FrameProtocol
from edgeseg.runtime import cpu, precision
from edgeseg.runtime.precision import LocalRecord, bundle_key, choose_precision, cpu_class, local_record, native_bf16

ELSEWHERE = CpuClass(isa=("avx2",), cores=1000)
FAST = {"openvino int8": 1.2, "onnxruntime int8": 1.2}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("plain") / "plain.edgeseg", 1)


@pytest.fixture
def bundle(tmp_path, plain):
    """make(admission, speeds) -> an opened bundle with both precisions."""
    def make(admission=None, speeds=None):
        path = tmp_path / f"{len(list(tmp_path.glob('*.edgeseg')))}.edgeseg"
        return open_bundle(tiny_bundle.copy_bundle(plain, path, admission=admission, speeds=speeds))
    return make


def keep(bundle, speeds, here=None, **agreed):
    record = LocalRecord(bundle=bundle_key(bundle), cpu_class=here or cpu_class(), speeds=speeds,
                         agreed={"openvino": True, "onnxruntime": True} | agreed)
    path = local_record(bundle)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.model_dump_json())
    return path


def test_the_build_box_is_believed_on_a_cpu_of_its_class(bundle):
    made = bundle(tiny_bundle.admission(), tiny_bundle.speeds(cpu_class(), {"openvino int8": 1.01}))
    assert choose_precision(made, "openvino") == "int8"
    assert choose_precision(made, "onnxruntime") == "fp32"  # no row of it


def test_nothing_is_taken_without_admission(bundle):
    assert choose_precision(bundle(None, tiny_bundle.speeds(cpu_class(), FAST)), "openvino") == "fp32"


def test_what_failed_admission_is_not_taken_however_fast(bundle):
    made = bundle(tiny_bundle.admission("openvino int8"), tiny_bundle.speeds(cpu_class(), FAST))
    assert choose_precision(made, "openvino") == "fp32"
    assert choose_precision(made, "onnxruntime") == "int8"  # each runtime by itself


@pytest.mark.parametrize("low", [1.0, 0.8, None])
def test_an_interval_that_touches_one_or_is_unknown_is_no_gain(bundle, low):
    made = bundle(tiny_bundle.admission(), tiny_bundle.speeds(cpu_class(), {"openvino int8": low}))
    assert choose_precision(made, "openvino") == "fp32"


@pytest.mark.parametrize(("int8_ms", "expected"), [(0.9, "int8"), (1.1, "bf16")])
def test_of_several_the_one_with_the_least_median_is_taken(bundle, monkeypatch, int8_ms, expected):
    monkeypatch.setattr(precision, "native_bf16", lambda: True)
    found = tiny_bundle.speeds(cpu_class(), {"openvino int8": 1.5, "openvino bf16": 1.2}, {"openvino int8": int8_ms})
    assert choose_precision(bundle(tiny_bundle.admission(), found), "openvino") == expected


def test_bf16_has_no_frame_graphs_and_is_not_taken_where_the_bundle_has_some(bundle, monkeypatch):
    monkeypatch.setattr(precision, "native_bf16", lambda: True)
    made = bundle(tiny_bundle.admission(), tiny_bundle.speeds(
        cpu_class(), {"openvino int8": 1.2, "openvino bf16": 1.5}, {"openvino int8": 1.1, "openvino bf16": 0.5}))
    assert choose_precision(made, "openvino") == "bf16"
    protocol = FrameProtocol(name="a", size=(60, 50), spacing=(1.2, 1.2), dtype="uint16", back="logits")
    framed = replace(made, manifest=made.manifest.model_copy(update={"frames": (protocol,)}))
    assert choose_precision(framed, "openvino") == "int8"


def test_bf16_is_never_taken_where_it_is_not_native(bundle, monkeypatch):
    monkeypatch.setattr(precision, "native_bf16", lambda: False)
    made = bundle(tiny_bundle.admission(), tiny_bundle.speeds(cpu_class(), {"openvino bf16": 1.5}))
    assert choose_precision(made, "openvino") == "fp32"


def test_a_precision_whose_file_is_not_there_is_not_taken(tmp_path):
    made = open_bundle(tiny_bundle.make_bundle(tmp_path / "b", 1, ("fp32",), admission=tiny_bundle.admission(),
                                               speeds=tiny_bundle.speeds(cpu_class(), FAST)))
    assert choose_precision(made, "openvino") == "fp32"


def test_on_another_cpu_it_is_fp32_until_this_machine_has_measured(bundle):
    made = bundle(tiny_bundle.admission(), tiny_bundle.speeds(ELSEWHERE, FAST))
    assert choose_precision(made, "openvino") == "fp32"
    keep(made, tiny_bundle.speeds(cpu_class(), FAST))
    assert choose_precision(made, "openvino") == "int8"


def test_more_cores_are_another_class(bundle, monkeypatch):
    made = bundle(tiny_bundle.admission(), tiny_bundle.speeds(cpu_class(), FAST))
    monkeypatch.setattr(cpu, "default_threads", lambda: 999)
    assert cpu_class().cores == 999
    assert choose_precision(made, "openvino") == "fp32"


def test_a_record_of_another_bundle_or_another_cpu_is_not_believed(bundle):
    made = bundle(tiny_bundle.admission(), None)
    path = keep(made, tiny_bundle.speeds(ELSEWHERE, FAST), here=ELSEWHERE)
    assert choose_precision(made, "openvino") == "fp32"
    keep(made, tiny_bundle.speeds(ELSEWHERE, FAST))  # a record that contradicts itself
    assert choose_precision(made, "openvino") == "fp32"
    keep(made, tiny_bundle.speeds(cpu_class(), FAST))
    assert choose_precision(made, "openvino") == "int8"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bundle": "0" * 64}))
    assert choose_precision(made, "openvino") == "fp32"


def test_a_replay_that_disagreed_here_means_fp32_in_its_runtime_whoever_measured_the_speed(bundle):
    for stored in (None, tiny_bundle.speeds(cpu_class(), FAST)):
        made = bundle(tiny_bundle.admission(), stored)
        keep(made, tiny_bundle.speeds(cpu_class(), FAST), onnxruntime=False)
        assert choose_precision(made, "onnxruntime") == "fp32"
        assert choose_precision(made, "openvino") == "int8"
        keep(made, None, openvino=False, onnxruntime=False)
        assert choose_precision(made, "openvino") == "fp32"


def test_a_runtime_of_which_the_record_says_nothing_gets_fp32(bundle):
    made = bundle(tiny_bundle.admission(), tiny_bundle.speeds(cpu_class(), FAST))
    path = keep(made, None)
    assert choose_precision(made, "openvino") == "int8"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"agreed": {"onnxruntime": True}}))
    assert choose_precision(made, "openvino") == "fp32"
    assert choose_precision(made, "onnxruntime") == "int8"


def test_speeds_hold_for_the_default_number_of_threads_only(bundle):
    made = bundle(tiny_bundle.admission(), tiny_bundle.speeds(cpu_class(), FAST))
    usual = cpu_class().cores
    assert [choose_precision(made, "openvino", n) for n in (None, usual, usual + 1)] == ["int8", "int8", "fp32"]
    keep(made, tiny_bundle.speeds(cpu_class(), FAST))
    assert choose_precision(made, "openvino", usual + 1) == "fp32"


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b"[" * 100_000, b" " * (precision.LARGEST_RECORD + 1),
    b'{"schema_version": 2}', None])
def test_a_damaged_record_is_as_good_as_none(bundle, content):
    made = bundle(tiny_bundle.admission(), None)
    path = keep(made, tiny_bundle.speeds(cpu_class(), FAST))
    assert choose_precision(made, "openvino") == "int8"
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content)
    assert choose_precision(made, "openvino") == "fp32"


def test_any_record_that_is_cut_short_is_as_good_as_none(bundle):
    made = bundle(tiny_bundle.admission(), None)
    path = keep(made, tiny_bundle.speeds(cpu_class(), FAST))
    whole = path.read_bytes()
    for length in range(0, len(whole), 23):
        path.write_bytes(whole[:length])
        assert choose_precision(made, "openvino") == "fp32"


def test_a_cache_that_is_no_folder_or_nowhere_is_as_good_as_none(bundle, monkeypatch, tmp_path):
    made = bundle(tiny_bundle.admission(), None)
    (tmp_path / "file").write_text("kept")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choose_precision(made, "openvino") == "fp32"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(precision.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(EdgesegError, match="set XDG_CACHE_HOME"):
        local_record(made)
    assert choose_precision(made, "openvino") == "fp32"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_record_that_may_not_be_read_is_as_good_as_none(bundle):
    made = bundle(tiny_bundle.admission(), None)
    keep(made, tiny_bundle.speeds(cpu_class(), FAST)).chmod(0)
    assert choose_precision(made, "openvino") == "fp32"


def test_the_record_lies_outside_the_bundle_by_the_hash_of_its_sums(bundle, monkeypatch, tmp_path):
    one, other = bundle(), bundle(tiny_bundle.admission())
    assert local_record(one) != local_record(other)
    assert local_record(one).is_relative_to(tmp_path / "a cache" / "edgeseg")
    assert local_record(one).stem == bundle_key(one)
    assert len(bundle_key(one)) == 64
    assert (one.path / SUMS).is_file()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # does not count, by the XDG specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert local_record(one).is_relative_to(tmp_path / "home" / ".cache" / "edgeseg")


CPUINFO = """processor\t: 0
model name\t: A CPU
flags\t\t: fpu sse4_2 avx avx2 {more}

processor\t: 1
model name\t: Another
"""


@pytest.mark.parametrize(("more", "native"), [("avx512f avx512_vnni", False), ("avx512f avx512_bf16", True),
                                              ("amx_bf16 amx_int8", True), ("avx_vnni", False)])
def test_the_class_is_read_from_what_the_kernel_says(tmp_path, monkeypatch, more, native):
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(more=more))
    info = cpu.cpu_info(tmp_path / "cpuinfo")
    assert info["model name"] == "A CPU"
    monkeypatch.setattr(cpu, "cpu_info", lambda: info)
    assert set(cpu_class().isa) == {"sse4_2", "avx", "avx2", *more.split()}
    assert native_bf16() is native


def test_a_system_without_cpuinfo_has_an_unknown_class_and_no_bf16(tmp_path, monkeypatch):
    assert cpu.cpu_info(tmp_path / "absent") == {}
    monkeypatch.setattr(cpu, "cpu_info", dict)
    assert cpu_class().isa == ()
    assert not native_bf16()


def test_arm_names_its_flags_otherwise(monkeypatch):
    monkeypatch.setattr(cpu, "cpu_info", lambda: {"Features": "fp asimd bf16 sve"})
    assert cpu_class().isa == ("asimd", "bf16", "sve")
    assert not native_bf16()  # OpenVINO has no bf16 there
