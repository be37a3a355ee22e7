import numpy as np
import pytest
import tiny_bundle

from edgeseg.errors import EdgesegError
from edgeseg.runtime import cpu
from edgeseg.runtime.backends import BACKENDS, load_backend, model_file


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_computes_the_network_and_keeps_no_hold_on_its_answer(bundle, backend):
    network = load_backend(backend, bundle / f"model.fp32.{'xml' if backend == 'openvino' else 'onnx'}", 1)
    assert network.shape == (1, 1, 32, 32)
    x = tiny_bundle.LEVELS[tiny_bundle.label_image(0, (32, 32))][None, None]
    first = network(x)
    kept = first.copy()
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first.argmax(1)[0], tiny_bundle.label_image(0, (32, 32)))
    network(np.zeros_like(x))
    np.testing.assert_array_equal(first, kept)  # the next call must not write into it


def test_openvino_runs_onnx_files_too(bundle):
    x = np.random.default_rng(0).normal(100, 90, (1, 1, 32, 32)).astype(np.float32)
    onnx, ir = (load_backend("openvino", bundle / f"model.fp32.{end}", 1)(x) for end in ("onnx", "xml"))
    np.testing.assert_array_equal(onnx, ir)


def test_openvino_computes_in_single_precision_with_the_threads_that_it_is_given(bundle):
    settings = load_backend("openvino", bundle / "model.fp32.xml", 1).compiled
    assert str(settings.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"
    assert settings.get_property("INFERENCE_NUM_THREADS") == 1
    assert settings.get_property("NUM_STREAMS") == 1


def write_frame_graph(path, channels=2):
    """uint16 [1, C, 8, 8] -> uint8 [1, 8, 8]: the channel that is largest."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
             helper.make_node("ArgMax", ["float"], ["index"], axis=1, keepdims=0),
             helper.make_node("Cast", ["index"], ["labels"], to=TensorProto.UINT8)]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", TensorProto.UINT16, (1, channels, 8, 8))],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, (1, 8, 8))])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frame_graph_takes_raw_pixels_and_gives_labels_as_they_are(tmp_path, backend):
    network = load_backend(backend, write_frame_graph(tmp_path / "frame.onnx"), 1)
    assert (network.shape, network.dtype) == ((1, 2, 8, 8), np.uint16)
    x = np.random.default_rng(0).integers(0, 2**16, (1, 2, 8, 8)).astype(np.uint16)  # above what int16 holds, too
    found = network(x)
    assert (found.dtype, found.shape) == (np.uint8, (1, 8, 8))
    np.testing.assert_array_equal(found, x.argmax(axis=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_of_another_type_are_never_converted_in_silence(tmp_path, backend):
    network = load_backend(backend, write_frame_graph(tmp_path / "frame.onnx"), 1)
    with pytest.raises(Exception, match=r"expected|uint16"):
        network(np.full((1, 2, 8, 8), 70_000, np.float32))


def test_bf16_is_openvino_with_the_fp32_file(bundle):
    if not cpu.native_bf16():
        pytest.skip("this CPU has no instructions for bf16")
    path = bundle / model_file("openvino", "bf16")
    assert path.name == "model.fp32.xml"
    network = load_backend("openvino", path, 1, "bf16")
    assert str(network.compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'bfloat16'>"
    x = np.random.default_rng(0).normal(100, 90, (1, 1, 32, 32)).astype(np.float32)
    exact, found = load_backend("openvino", path, 1)(x), network(x)
    assert found.dtype == np.float32
    assert not np.array_equal(found, exact)  # it really computes with fewer digits
    np.testing.assert_allclose(found, exact, rtol=0.02, atol=0.01 * np.abs(exact).max())


def test_bf16_is_refused_where_it_would_be_simulated_or_does_not_exist(bundle, monkeypatch):
    with pytest.raises(EdgesegError, match="ONNX Runtime does not compute in bf16"):
        load_backend("onnxruntime", bundle / "model.fp32.onnx", 1, "bf16")
    monkeypatch.setattr(cpu, "isa_flags", lambda: ("avx2", "avx512f", "avx512_vnni"))
    with pytest.raises(EdgesegError, match="no instructions for bf16"):
        load_backend("openvino", bundle / "model.fp32.xml", 1, "bf16")
    with pytest.raises(EdgesegError, match="fp32, bf16, int8"):
        load_backend("openvino", bundle / "model.fp32.xml", 1, "fp16")


def write_graph(path, operator="Conv", shape=(1, 1, 8, 8), domain=""):
    from onnx import TensorProto, helper

    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("image", "logits")]
    node = helper.make_node(operator, ["image"], ["logits"], domain=domain)
    graph = helper.make_graph([node], "g", sides[:1], sides[1:])
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_cannot_be_loaded_is_one_line_that_names_the_file(tmp_path, bundle, backend):
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "empty.onnx").write_bytes(b"")
    whole = (bundle / "model.fp32.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    write_graph(tmp_path / "unknown.onnx", "Frobnicate")
    write_graph(tmp_path / "private.onnx", "Frobnicate", domain="com.example")
    write_graph(tmp_path / "open.onnx", "Relu", shape=(1, 1, "h", "w"))
    write_graph(tmp_path / "flat.onnx", "Relu", shape=(1, 8))
    for name in ("text", "empty", "half", "unknown", "private", "open", "flat", "missing"):
        with pytest.raises(EdgesegError) as refusal:
            load_backend(backend, tmp_path / f"{name}.onnx", 1)
        assert str(refusal.value).startswith(str(tmp_path / f"{name}.onnx"))
        assert "\n" not in str(refusal.value)


def test_an_ir_without_its_weights_or_with_half_of_them_is_refused(tmp_path, bundle):
    for name, size in (("none", None), ("half", 8)):
        (tmp_path / f"{name}.xml").write_bytes((bundle / "model.fp32.xml").read_bytes())
        if size is not None:
            (tmp_path / f"{name}.bin").write_bytes((bundle / "model.fp32.bin").read_bytes()[:size])
        with pytest.raises(EdgesegError, match=name) as refusal:
            load_backend("openvino", tmp_path / f"{name}.xml", 1)
        assert "\n" not in str(refusal.value)


def test_half_an_ir_is_refused(tmp_path, bundle):
    whole = (bundle / "model.fp32.xml").read_bytes()
    (tmp_path / "cut.xml").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.bin").write_bytes((bundle / "model.fp32.bin").read_bytes())
    with pytest.raises(EdgesegError, match=r"cut\.xml: OpenVINO cannot load this network") as refusal:
        load_backend("openvino", tmp_path / "cut.xml", 1)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_of_two_inputs_is_refused(tmp_path, backend):
    from onnx import TensorProto, helper

    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 1, 8, 8)) for n in ("a", "b", "sum")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["sum"])], "g", sides[:2], sides[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "two.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EdgesegError, match=r"two\.onnx: expected one image input"):
        load_backend(backend, tmp_path / "two.onnx", 1)


def test_an_unknown_backend_is_refused(bundle):
    with pytest.raises(EdgesegError, match="openvino, onnxruntime"):
        load_backend("tensorrt", bundle / "model.fp32.onnx", 1)
