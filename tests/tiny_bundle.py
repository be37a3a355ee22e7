"""A real bundle around the smallest network there is: each pixel gets the class whose grey level is nearest."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.container import MANIFEST, write_sums
from edgeseg.manifest import (
    Admission,
    Calibration,
    CpuClass,
    Data,
    Estimate,
    FileCheck,
    Gate,
    Labels,
    Manifest,
    Measured,
    Speed,
    Speeds,
    grid_of,
)
from edgeseg.preprocess import Normalisation, Preprocessing
from edgeseg.runtime.golden import Golden, save_golden

NAMES = ("background", "RV", "MYO", "LV")
LEVELS = np.array([0, 100, 200, 300], np.float32)
"""Grey level of each class: the network is exact on images that hold only these."""
GRID = Preprocessing((32, 32), (1.5, 1.5), (Normalisation("none"),))


def write_network(path: Path, shape: tuple[int, ...] = (1, 1, 32, 32), levels: np.ndarray = LEVELS) -> Path:
    """ONNX: logits[k] = 2 level[k] x - level[k]^2, largest where x is nearest to level[k] (first channel only)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.zeros((len(levels), shape[1], 1, 1), np.float32)
    weight[:, 0, 0, 0] = 2 * levels
    node = helper.make_node("Conv", ["input", "w", "b"], ["logits"])
    graph = helper.make_graph(
        [node], "nearest", [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (shape[0], len(levels), *shape[2:]))],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(-(levels**2).astype(np.float32), "b")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def label_image(seed: int, shape: tuple[int, int] = (40, 36)) -> np.ndarray:
    """uint8 [H, W]: a disk of LV in a ring of MYO with RV beside it, moved by the seed."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    cy, cx = shape[0] / 2 + seed % 3, shape[1] / 2 - seed % 2
    radius = np.hypot(y - cy, x - cx)
    labels = np.where(radius < 5, 3, np.where(radius < 8, 2, 0))
    labels[(np.abs(y - cy) < 4) & (np.abs(x - cx + 11) < 3)] = 1
    return labels.astype(np.uint8)


def frame(seed: int) -> np.ndarray:
    """float32 [1, H, W] on which the network is exact up to its resampling."""
    return LEVELS[label_image(seed)][None]


DATA = Data(name="test", licence="none", patients={"train": 1}, split_sha256={"train": "0" * 64})


def admission(*failed: str) -> Admission:
    """Every candidate with one accuracy gate, passed but for the subjects in `failed`, for example "openvino int8"."""
    zero = Estimate(value=0, low=0, high=0, n=3)
    gates = [Gate(name="mean Dice drop", subject=subject, kind="accuracy", estimate=zero, tested="high",
                  relation="<=", limit=0.01, unit="", passed=subject not in failed)
             for subject in ("openvino int8", "openvino bf16", "onnxruntime int8")]
    return Admission(data="test", split="dev", patients=3, gates=tuple(gates))


def speeds(cpu_class: CpuClass, lows: dict[str, float | None], medians: dict[str, float] | None = None) -> Speeds:
    """Speeds with a row for each key ("openvino int8"): the low end of its ratio to FP32, and its median (1 ms)."""
    rows = [Speed(backend=key.split()[0], precision=key.split()[1], median_ms=(medians or {}).get(key, 1.0),
                  over_fp32=Estimate(value=2.0, low=low, high=3.0, n=10)) for key, low in lows.items()]
    fp32 = [Speed(backend=backend, precision="fp32", median_ms=2.0, over_fp32=None)
            for backend in ("openvino", "onnxruntime")]
    return Speeds(cpu_class=cpu_class, cpu="a CPU", threads=1, busy=False, rows=(*fp32, *rows))


def make_bundle(path: Path, frames: int = 3, precisions: tuple[str, ...] = ("fp32", "int8"), data: Data = DATA,
                distillation: dict[str, Any] | None = None, admission: Admission | None = None,
                speeds: Speeds | None = None, versions: dict[str, str] | None = None) -> Path:
    """Write a bundle that `open_bundle` accepts. The "int8" files are the FP32 ones: only their place is tested."""
    import openvino as ov

    path.mkdir(parents=True)
    checks = []
    for precision in precisions:
        network = write_network(path / f"model.{precision}.onnx")
        ov.save_model(ov.convert_model(network), path / f"model.{precision}.xml", compress_to_fp16=False)
        checks += [FileCheck(file=f"model.{precision}.{end}", backend=backend, precision=precision, bytes=1,
                             max_logit_difference=0, logit_range=1, relative_error=0, label_agreement=1)
                   for backend, end in (("openvino", "xml"), ("onnxruntime", "onnx"))]
    keys = [f"{backend} {precision}" for backend in ("openvino", "onnxruntime") for precision in precisions]
    save_golden(path / "golden.npz", [Golden(frame(i), (1.5, 1.5), {key: label_image(i) for key in keys})
                                      for i in range(frames)])
    Manifest(
        name=path.stem, task="test", intended_use="test", labels=Labels(names=NAMES, values=(0, 1, 2, 3)),
        channels=("MRI",), preprocessing=grid_of(GRID), student={}, teacher={},
        data=data, distillation=distillation or {}, licences={},
        calibration=Calibration(recipe="run", source="run", data="test", synthetic=False, ids="salted", seed=0,
                                patients=0, strata={}, frames=()), versions=versions or {},
        measured=Measured(frames=0, frames_from="none", checks=tuple(checks), training={}, admission=admission,
                          speeds=speeds),
    ).write(path / MANIFEST)
    write_sums(path)
    return path


def copy_bundle(bundle: Path, path: Path, **measured: Any) -> Path:
    """A copy at `path` (cheaper than a new one) whose `measured` block has other values, for example `admission`."""
    shutil.copytree(bundle, path)
    manifest = Manifest.read(path / MANIFEST)
    manifest.model_copy(update={"measured": manifest.measured.model_copy(update=measured)}).write(path / MANIFEST)
    write_sums(path)
    return path


def write_nnunet_data(root: Path, cases: int = 5) -> Path:
    """A raw nnU-Net data set (dataset.json, imagesTr, labelsTr) of `cases` volumes with three slices each."""
    import json

    import nibabel

    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    for i in range(cases):
        labels = np.stack([label_image(i + z) for z in range(3)])
        for array, name in ((LEVELS[labels], f"imagesTr/case{i}_0000"), (labels, f"labelsTr/case{i}")):
            nibabel.Nifti1Image(array.transpose(2, 1, 0), affine).to_filename(root / f"{name}.nii.gz")
    (root / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "MRI"}, "labels": {name: value for value, name in enumerate(NAMES)},
        "numTraining": cases, "file_ending": ".nii.gz"}))
    return root
