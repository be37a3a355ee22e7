"""The C kit (export/cpp) built for tests, and the C interface from Python."""

import ctypes as c
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).parents[1] / "export" / "cpp"
TYPES = {"uint8": 1, "int16": 2, "uint16": 3, "float32": 4}
OK, FLAGGED, BAD_FRAME, ARGUMENT, BUNDLE, NO_GRAPH, FAILED = 0, 1, 2, -1, -2, -3, -4


def missing() -> str:
    """What the kit cannot be built without and this machine does not have; "" when it has everything."""
    tools = [tool for tool in ("cmake", "ctest", "g++") if shutil.which(tool) is None]
    if tools:
        return f"the C kit needs {', '.join(tools)}: apt install cmake g++"
    for header, package in (("nlohmann/json.hpp", "nlohmann-json3-dev"), ("openssl/evp.h", "libssl-dev")):
        found = subprocess.run(["g++", "-x", "c++", "-M", "-"], input=f"#include <{header}>\n", text=True,
                               capture_output=True, check=False)
        if found.returncode:
            return f"the C kit needs {header}: apt install {package}"
    return ""


def build(folder: Path, *options: str) -> Path:
    """Configure and build into `folder`, with further `options` of cmake."""
    from openvino.utils import get_cmake_path

    plain = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_C_FLAGS=-O1 -Werror", "-DCMAKE_CXX_FLAGS=-O1 -Werror"]
    run("cmake", "-S", SOURCE, "-B", folder, f"-DOpenVINO_DIR={get_cmake_path()}", *plain, *options)
    run("cmake", "--build", folder, "--parallel", "2")
    return folder


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def ctest(folder: Path) -> str:
    return run("ctest", "--test-dir", folder, "--output-on-failure", "--timeout", "900")


class Options(c.Structure):
    _fields_ = (("precision", c.c_char_p), ("threads", c.c_int32), ("frame_time", c.c_double))


class Frame(c.Structure):
    _fields_ = (("pixels", c.c_void_p), ("pixels_size", c.c_size_t), ("type", c.c_int32), ("channels", c.c_uint32),
                ("rows", c.c_uint32), ("columns", c.c_uint32), ("row_mm", c.c_double), ("column_mm", c.c_double))


class Graph(c.Structure):
    _fields_ = (("name", c.c_char_p), ("type", c.c_int32), ("channels", c.c_uint32), ("rows", c.c_uint32),
                ("columns", c.c_uint32), ("row_mm", c.c_double), ("column_mm", c.c_double))


class Info(c.Structure):
    _fields_ = (("name", c.c_char_p), ("task", c.c_char_p), ("intended_use", c.c_char_p), ("precision", c.c_char_p),
                ("runtime", c.c_char_p), ("threads", c.c_int32), ("recurrent", c.c_int32), ("label_count", c.c_uint32),
                ("label_names", c.POINTER(c.c_char_p)), ("label_values", c.POINTER(c.c_uint8)),
                ("graph_count", c.c_uint32), ("graphs", c.POINTER(Graph)))


class Handle:
    """A handle of the library in the build folder `kit`; `status` is what opening it returned."""

    def __init__(self, kit: Path, bundle: Path, precision: str | None = None, threads: int = 0,
                 frame_time: float = 0) -> None:
        self.library = c.CDLL(str(kit / "libedgeseg.so"))
        self.library.edgeseg_last_error.restype = c.c_char_p
        self.library.edgeseg_get_info.restype = c.POINTER(Info)
        options, self.handle = Options(precision and precision.encode(), threads, frame_time), c.c_void_p()
        self.status = self.library.edgeseg_open(1, str(bundle).encode(), c.byref(options), c.byref(self.handle))

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *exception: object) -> None:
        self.library.edgeseg_close(self.handle)

    @property
    def words(self) -> str:
        return self.library.edgeseg_last_error(self.handle).decode()

    @property
    def info(self) -> Info:
        return self.library.edgeseg_get_info(self.handle).contents

    def push(self, pixels: np.ndarray, spacing: tuple[float, float],
             time: float | None = None) -> tuple[int, np.ndarray, int]:
        """Pixels [C, H, W] -> status, label values [H, W], frames remembered."""
        pixels = np.ascontiguousarray(pixels)
        channels, rows, columns = pixels.shape
        frame = Frame(pixels.ctypes.data, pixels.nbytes, TYPES[pixels.dtype.name], channels, rows, columns, *spacing)
        labels, known = np.full((rows, columns), 77, np.uint8), c.c_uint64(77)
        when = None if time is None else c.byref(c.c_double(time))
        status = self.library.edgeseg_push(self.handle, c.byref(frame), when, labels.ctypes.data_as(c.c_void_p),
                                           c.c_size_t(labels.size), c.byref(known))
        return status, labels, known.value


def segment_file(kit: Path, bundle: Path, frames: np.ndarray, spacing: tuple[float, float], folder: Path,
                 *options: str) -> np.ndarray:
    """Frames [N, C, H, W] -> label values [N, H, W], by the sample program; its files lie in `folder`."""
    given, out = folder / "frames.raw", folder / "labels.raw"
    given.write_bytes(np.ascontiguousarray(frames).tobytes())
    rows, columns = frames.shape[-2:]
    said = run(kit / "edgeseg_segment", bundle, given, f"{rows}x{columns}@{spacing[0]!r}x{spacing[1]!r}",
               frames.dtype.name, "--out", out, *options)
    assert f"n {len(frames)}" in said
    assert math.isfinite(float(said.split("median ")[1].split(" ms")[0]))
    return np.frombuffer(out.read_bytes(), np.uint8).reshape(len(frames), rows, columns)
