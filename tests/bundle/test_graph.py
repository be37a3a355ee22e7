"""Frame graphs against the NumPy pipeline, on phantom frames brought to many protocols."""

import getpass
import shutil
import socket
import subprocess
import sys
import zlib
from functools import cache, partial
from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeseg import geometry
from edgeseg.bundle.frame_nodes import FLOOR, IMAGE
from edgeseg.bundle.golden import phantom_frames
from edgeseg.bundle.graph import Plan, graph_of, parse_protocol, write_frame_graphs
from edgeseg.errors import EdgesegError
from edgeseg.measure.overlap import dice_per_class
from edgeseg.preprocess import Normalisation, Preprocessing
from edgeseg.runtime.backends import BACKENDS, PRECISIONS, SUFFIX, load_backend
from edgeseg.runtime.frame_graph import bring, graph_file
from edgeseg.runtime.golden import label_agreement
from edgeseg.runtime.telemetry import telemetry_off

telemetry_off()  # as the build process does: three quarters of the time of these tests went into its processes
SIZE, MM = (96, 80), (2.5, 2.5)
VALUES = (0, 1, 2, 3)
ZSCORE = Preprocessing(SIZE, MM, window="centre")
load = cache(partial(load_backend, threads=1))  # what is written under one name stays what it is


def write_core(folder, preprocessing=ZSCORE, resize=True, seed=3, precisions=PRECISIONS):
    """A core with random 5 x 5 convolutions, at half resolution with a Resize at its end if `resize`, for both
    runtimes; its "INT8" form rounds the weights and activations of the second convolution to 8 bits."""
    import openvino as ov

    rng, channels = np.random.default_rng(seed), len(preprocessing.channels)
    shapes = {"w1": (12, channels, 5, 5), "w2": (4, 12, 5, 5), "b1": (12,), "b2": (4,)}
    arrays = {k: (rng.normal(size=s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for k, s in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    # On a phantom every class's logits get mean 0 and deviation 1, so that each class wins somewhere.
    frame = frames_for(parse_protocol("128x108@2.5", "uint16"), channels)[1][None].astype(np.float32)
    window = geometry.take_window(preprocessing.to_canvas(frame, MM), (16, 14), SIZE)
    onnx.save(core_model(arrays, channels, resize, False), folder / "unbalanced.onnx")
    logits = load("onnxruntime", folder / "unbalanced.onnx")(window)[0].reshape(4, -1)
    arrays["b2"] -= logits.mean(axis=1)
    for name in ("w2", "b2"):
        arrays[name] /= logits.std(axis=1).reshape(-1, *[1] * (arrays[name].ndim - 1))
    for precision in precisions:
        path = folder / f"model.{precision}.onnx"
        onnx.save(core_model(arrays, channels, resize, precision == "int8"), path)
        ov.save_model(ov.convert_model(path), path.with_suffix(".xml"), compress_to_fp16=False)
    return folder


def core_model(arrays, channels, resize, int8):
    step = 2 if resize else 1
    constants = [numpy_helper.from_array(v, k) for k, v in arrays.items()]
    nodes = [helper.make_node("Conv", ["image", "w1", "b1"], ["a"], pads=[2] * 4, strides=[step] * 2),
             helper.make_node("Relu", ["a"], ["r"])]
    names = ["r", "w2"]
    if int8:
        for i, (name, kind, scale) in enumerate((("r", np.uint8, 0.02), ("w2", np.int8, np.ptp(arrays["w2"]) / 250))):
            constants += [numpy_helper.from_array(np.array(scale, np.float32), f"s{i}"),
                          numpy_helper.from_array(np.array(0, kind), f"z{i}")]
            nodes += [helper.make_node("QuantizeLinear", [name, f"s{i}", f"z{i}"], [f"q{i}"]),
                      helper.make_node("DequantizeLinear", [f"q{i}", f"s{i}", f"z{i}"], [f"d{i}"])]
            names[i] = f"d{i}"
    nodes.append(helper.make_node("Conv", [*names, "b2"], ["small" if resize else "logits"], pads=[2] * 4))
    if resize:
        constants.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
        nodes.append(helper.make_node("Resize", ["small", "", "scales"], ["logits"], mode="linear"))
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, n, *SIZE))
             for name, n in (("image", channels), ("logits", 4))]
    graph = helper.make_graph(nodes, "core", [sides[0]], [sides[1]], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module")
def cores(tmp_path_factory):
    return write_core(tmp_path_factory.mktemp("a place"))


@pytest.fixture(scope="module")
def protocol_in(cores):
    """The protocol of a text, whose graphs lie in `cores`: written when the first test asks for them."""
    @cache
    def written(text, dtype="uint16", back="logits"):
        write_frame_graphs(cores, ZSCORE, VALUES, protocol := parse_protocol(text, dtype, back))
        return protocol
    return written


@cache
def phantoms():
    return phantom_frames(1, 4)


def frames_for(protocol, channels=1):
    """Phantom frames as this protocol's scanner would deliver them; the second channel is turned round."""
    found = []
    for frame, spacing in phantoms()[:3]:
        image = frame.astype(np.float32)
        found.append(bring(np.concatenate([image, image[:, ::-1] * 0.5 + 3])[:channels], spacing, protocol))
    return found


def both(folder, preprocessing, protocol, backend, precision, frames, values=VALUES):
    """Label values by the frame graph and by the NumPy pipeline."""
    graph = load(backend, folder / graph_file(protocol, backend, precision))
    net = load(backend, folder / f"model.{precision}.{SUFFIX[backend]}")
    mine = np.concatenate([graph(f[None]) for f in frames])
    assert mine.dtype == np.uint8
    theirs = [preprocessing.segment(f[None].astype(np.float32), protocol.spacing, net, back=protocol.back)
              for f in frames]
    return mine, np.asarray(values, np.uint8)[np.concatenate(theirs)]


def assert_equal(mine, theirs, precision):
    """The issue's limits. (A logit on a rounding step of INT8 may fall to the other side.)"""
    assert len(np.unique(theirs)) >= 3, "the network sees too little to compare"
    if precision == "fp32":
        assert label_agreement(mine, theirs) >= 0.995
    assert min(dice_per_class(mine, theirs, 4, 255)) >= 0.98


USUAL = "128x108@2.8125"


@pytest.mark.parametrize(("text", "dtype"), [
    (USUAL, "uint16"), ("200x231@1.3x1.1", "int16"), ("97x80@2.5", "float32"), ("70x160@1.9x2.2", "uint8"),
])
def test_a_frame_graph_gives_the_labels_of_the_numpy_pipeline(cores, protocol_in, text, dtype):
    protocol = protocol_in(text, dtype)
    for backend, precision in product(BACKENDS, PRECISIONS):
        assert_equal(*both(cores, ZSCORE, protocol, backend, precision, frames_for(protocol)), precision)


@pytest.mark.parametrize("channels", [
    (Normalisation("rescale"),), (Normalisation("zscore"), Normalisation("rgb")),
    (Normalisation("none"), Normalisation("ct", mean=300, std=200, low=50, high=900)),
])
def test_every_normalisation_and_a_core_without_a_last_resize(tmp_path, channels):
    preprocessing, protocol = Preprocessing(SIZE, MM, channels, window="centre"), parse_protocol("110x90@2.6", "uint16")
    write_core(tmp_path, preprocessing, resize=False, precisions=("fp32",))
    write_frame_graphs(tmp_path, preprocessing, VALUES, protocol)
    for backend in BACKENDS:
        frames = frames_for(protocol, len(channels))
        assert_equal(*both(tmp_path, preprocessing, protocol, backend, "fp32", frames), "fp32")


def test_labels_can_go_back_to_the_native_grid_instead_of_logits(cores, protocol_in):
    protocol = protocol_in(USUAL, back="labels")
    frames = frames_for(protocol)
    for backend, precision in product(BACKENDS, PRECISIONS):
        mine, theirs = both(cores, ZSCORE, protocol, backend, precision, frames)
        assert_equal(mine, theirs, precision)
        net = load(backend, cores / f"model.{precision}.{SUFFIX[backend]}")
        canvas = ZSCORE.to_canvas(frames[1][None].astype(np.float32), protocol.spacing)
        start = geometry.centre_start(canvas.shape[-2:], SIZE)
        small = np.zeros((1, *canvas.shape[-2:]), np.uint8)
        geometry.add_window(small, net(geometry.take_window(canvas, start, SIZE)).argmax(axis=1).astype(np.uint8),
                            start)
        np.testing.assert_array_equal(theirs[1], geometry.resize_labels(small, protocol.size)[0])  # step by step


def test_the_graph_gives_label_values_not_class_numbers(cores, tmp_path):
    values, protocol = (0, 7, 2, 200), parse_protocol("100x100@2.5", "uint16")
    for path in cores.glob("model.fp32.*"):
        shutil.copy(path, tmp_path)
    write_frame_graphs(tmp_path, ZSCORE, values, protocol)
    for backend in BACKENDS:
        mine, theirs = both(tmp_path, ZSCORE, protocol, backend, "fp32", frames_for(protocol), values)
        assert set(np.unique(mine)) <= set(values)
        assert len(np.unique(mine)) > 2
        assert label_agreement(mine, theirs) >= 0.995


@pytest.mark.parametrize(("text", "dtype", "levels"), [
    (USUAL, "uint16", (0, 7, 65535)), ("97x80@2.5", "float32", (0, -3, 1e-30, 3e38)),
])
def test_frames_without_contrast_are_background(cores, protocol_in, text, dtype, levels):
    protocol = protocol_in(text, dtype)
    for backend in BACKENDS:
        graph = load(backend, cores / graph_file(protocol, backend, "int8"))
        for level in levels:
            assert not graph(np.full((1, 1, *protocol.size), level, dtype)).any(), (backend, level)


def network_input(preprocessing, protocol, frame):
    """What the part before the core makes of one frame, and what NumPy makes of it."""
    nodes = Plan(preprocessing, VALUES, protocol).before(IMAGE)
    graph = graph_of(Plan(preprocessing, VALUES, protocol), nodes.nodes, nodes.constants, None,
                     {IMAGE: (1, 1, *SIZE), FLOOR: (1, 1, 1, 1)})
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    canvas = preprocessing.to_canvas(frame[None].astype(np.float32), protocol.spacing)
    window = geometry.take_window(canvas, geometry.centre_start(canvas.shape[-2:], SIZE), SIZE)
    return session.run([IMAGE], {"frame": frame[None]})[0], window


@pytest.mark.parametrize(("low", "contrast", "dtype"), [
    (0, 900, "uint16"), (60000, 20, "uint16"), (-30000, 40, "int16"), (1e6, 3.0, "float32"), (0, 1e-20, "float32"),
    (0, 1e30, "float32"),
])
def test_statistics_are_those_of_double_precision_sums(low, contrast, dtype):
    """Offsets far above the contrast, and magnitudes whose squares no float32 holds."""
    protocol, rng = parse_protocol("120x90@2.5", dtype), np.random.default_rng(0)
    frame = np.zeros((1, 120, 90), dtype)
    frame[0, 10:100, 20:70] = low + contrast * rng.random((90, 50)) + (dtype != "float32")
    frame[0, 50, 30:40] = 0  # zeros inside the box count, those outside do not
    mine, theirs = network_input(ZSCORE, protocol, frame)
    assert np.isfinite(mine).all()
    np.testing.assert_allclose(mine, theirs, atol=2e-3 * max(1.0, np.abs(theirs).max() / 100))


@pytest.mark.parametrize(("low", "contrast", "dtype"),
                         [(65000, 3, "uint16"), (-32000, 3, "int16"), (1e6, 2, "float32")])
def test_an_offset_that_fills_the_frame_costs_no_digits(low, contrast, dtype):
    frame = (low + np.random.default_rng(0).integers(0, contrast, (1, 240, 200))).astype(dtype)
    mine, theirs = network_input(ZSCORE, parse_protocol("240x200@1.25", dtype), frame)
    assert theirs.std() > 0.3
    np.testing.assert_allclose(mine, theirs, atol=2e-3)


def test_a_single_bright_pixel_is_a_box_of_its_own():
    frame = np.zeros((1, 50, 50), np.uint16)
    frame[0, 13, 27] = 9
    for kind in ("zscore", "rescale"):
        mine, theirs = network_input(Preprocessing(SIZE, MM, (Normalisation(kind),), window="centre"),
                                     parse_protocol("50x50@2.5", "uint16"), frame)
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_only_the_core_is_quantised(cores, protocol_in):
    import openvino as ov

    folder = cores / "frames" / protocol_in(USUAL).name

    def onnx_count(path):
        return [sum(n.op_type == kind for n in onnx.load(path).graph.node) for kind in ("QuantizeLinear", "Conv")]

    def ir_count(path):
        kinds = [op.get_type_name() for op in ov.Core().read_model(path).get_ops()]
        return [kinds.count(kind) for kind in ("FakeQuantize", "Convolution")]

    assert onnx_count(folder / "int8.onnx") == onnx_count(cores / "model.int8.onnx") == [2, 2]
    assert ir_count(folder / "int8.xml") == ir_count(cores / "model.int8.xml")
    assert ir_count(folder / "int8.xml")[0] > 0
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(onnx.load(path), full_check=True)
        assert not any(n.op_type in ("Resize", "ArgMax") for n in onnx.load(path).graph.node)
    shapes = [(p.stem, [d.get_length() for d in ov.Core().read_model(p).output(0).partial_shape])
              for p in sorted(folder.glob("*.xml"))]
    assert shapes == [("fp32", [1, 128, 108]), ("int8", [1, 128, 108])]


def test_two_processes_write_the_same_bytes_that_say_nothing_of_the_machine(cores, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    for path in cores.glob("model.*"):
        shutil.copy(path, tmp_path)
    written = write_frame_graphs(tmp_path, ZSCORE, VALUES, parse_protocol(USUAL, "uint16"))
    assert {p.name for p in written} == {f"{p}.{s}" for p in ("fp32", "int8") for s in ("onnx", "xml", "bin")}
    first = {p.name: zlib.crc32(p.read_bytes()) for p in written}
    code = f"""
import sys
from edgeseg.runtime.telemetry import telemetry_off
telemetry_off()
import openvino as ov
from pathlib import Path
from edgeseg.bundle.graph import parse_protocol, write_frame_graphs
from edgeseg.preprocess import Preprocessing
assert "torch" not in sys.modules
ov.op.Constant(ov.Type.f32, ov.Shape([1]), [0.0])  # moves the counter that names operations
write_frame_graphs(Path({str(tmp_path)!r}), Preprocessing({SIZE}, {MM}, window="centre"), {VALUES},
                   parse_protocol({USUAL!r}, "uint16"))
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {p.name: zlib.crc32(p.read_bytes()) for p in written} == first
    for path in written:
        content = path.read_bytes()
        for word in (str(tmp_path), tmp_path.name, "/tmp", socket.gethostname(), f"/{getpass.getuser()}"):
            assert word.encode() not in content, (path.name, word)
        if path.suffix == ".onnx":
            model = onnx.load(path)
            assert not any([model.metadata_props, model.doc_string, model.producer_name, model.graph.doc_string])


def test_only_what_the_bundle_has_gets_a_frame_graph(cores, tmp_path):
    for path in cores.glob("model.fp32.*"):
        shutil.copy(path, tmp_path)
    written = write_frame_graphs(tmp_path, ZSCORE, VALUES, parse_protocol("64x64@2.5", "uint8"))
    assert sorted(p.name for p in written) == ["fp32.bin", "fp32.onnx", "fp32.xml"]
    assert all(p.is_file() for p in written)


@pytest.mark.parametrize(("preprocessing", "text", "message"), [
    (Preprocessing(SIZE, MM), "128x108@2.8125", "tiles need several passes"),
    (Preprocessing(SIZE, MM, (Normalisation(masked=True),), window="centre"), "64x64@2.5", "fills holes"),
    (ZSCORE, "8000x8000@90000", "check the spacing"),
])
def test_what_one_static_graph_cannot_do_is_refused_and_nothing_written(tmp_path, preprocessing, text, message):
    with pytest.raises(EdgesegError, match=message) as error:
        write_frame_graphs(tmp_path, preprocessing, VALUES, parse_protocol(text, "uint16"))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_tiles_are_no_obstacle_where_the_frame_fits_the_grid(cores, tmp_path):
    protocol, tiles = parse_protocol("90x78@2.5", "uint16"), Preprocessing(SIZE, MM)
    shutil.copy(cores / "model.fp32.onnx", tmp_path)
    write_frame_graphs(tmp_path, tiles, VALUES, protocol)
    assert_equal(*both(tmp_path, tiles, protocol, "onnxruntime", "fp32", frames_for(protocol)), "fp32")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(40))
def test_any_protocol_and_normalisation_gives_the_labels_of_the_numpy_pipeline(tmp_path, seed):
    rng = np.random.default_rng(seed)
    kinds = [Normalisation("zscore"), Normalisation("rescale"), Normalisation("rgb"), Normalisation("none"),
             Normalisation("ct", mean=300, std=200, low=50, high=900)]
    channels = tuple(kinds[i] for i in rng.choice(len(kinds), rng.integers(1, 3), replace=False))
    preprocessing = Preprocessing(SIZE, MM, channels, window="centre")
    rows, columns = rng.integers(60, 260, 2)
    protocol = parse_protocol(f"{rows}x{columns}@{rng.uniform(1, 3):.3f}x{rng.uniform(1, 3):.3f}",
                              rng.choice(["uint8", "int16", "uint16", "float32"]), rng.choice(["logits", "labels"]))
    write_core(tmp_path, preprocessing, resize=bool(rng.integers(2)), seed=seed)
    write_frame_graphs(tmp_path, preprocessing, VALUES, protocol)
    frames = frames_for(protocol, len(channels))
    for backend, precision in product(BACKENDS, PRECISIONS if {n.kind for n in channels} == {"zscore"} else ("fp32",)):
        # (this core's INT8 scales are those of z-scored images, others saturate it)
        assert_equal(*both(tmp_path, preprocessing, protocol, backend, precision, frames), precision)


@pytest.mark.parametrize(("text", "dtype", "back", "name", "spacing"), [
    ("256x216@1.40625", "uint16", "logits", "256x216@1.40625-uint16", (1.40625, 1.40625)),
    ("256x216@1.400", "uint8", "labels", "256x216@1.4-uint8-labels", (1.4, 1.4)),
    ("1x8192@2x0.00001", "int16", "logits", "1x8192@2x0.00001-int16", (2, 1e-5)),
    ("016x16@01.5x1.50", "float32", "logits", "16x16@1.5-float32", (1.5, 1.5)),
])
def test_a_protocol_has_one_name(text, dtype, back, name, spacing):
    protocol = parse_protocol(text, dtype, back)
    assert (protocol.name, protocol.spacing, protocol.dtype, protocol.back) == (name, spacing, dtype, back)


@pytest.mark.parametrize(("text", "message"), [
    ("", "expected ROWS"), ("256x216", "expected ROWS"), ("256@1.4", "expected ROWS"), ("axb@1", "expected ROWS"),
    ("256x216@-1", "expected ROWS"), ("256x216@nan", "expected ROWS"), ("256x216@inf", "expected ROWS"),
    ("256x216@1e3", "expected ROWS"), ("../x@1", "expected ROWS"), ("256x216@1.4x", "expected ROWS"),
    ("256x216@1.4\n", "expected ROWS"), ("٢x٢@1", "expected ROWS"), ("256x216@0", "more than 0"),
    ("256x216@1x0.0", "more than 0"), ("0x216@1", "1..8192"), ("256x8193@1", "1..8192"),
])
def test_a_protocol_that_cannot_be_read_is_one_line(text, message):
    with pytest.raises(EdgesegError, match=message) as error:
        parse_protocol(text, "uint16")
    assert "\n" not in str(error.value)


def test_unknown_pixel_types_and_ways_back_are_refused():
    for dtype, back, message in (("float64", "logits", "uint8, int16, uint16, float32"), (">u2", "logits", "dtype"),
                                 ("uint16", "probabilities", "logits, labels")):
        with pytest.raises(EdgesegError, match=message):
            parse_protocol("16x16@1", dtype, back)
