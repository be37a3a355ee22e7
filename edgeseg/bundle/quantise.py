"""FP32 ONNX -> OpenVINO IR, and INT8 for both runtimes with NNCF. Runs in a fresh process (`build.py`)."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.onnx_file import INPUT


def convert(onnx_file: Path, xml: Path) -> None:
    """Write the IR of an ONNX file. OpenVINO would halve the weights' precision unless told not to."""
    import openvino as ov

    try:
        model = ov.convert_model(onnx_file)
    except Exception as error:  # unknown operators arrive as several private exception classes
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EdgesegError(f"{onnx_file.name}: OpenVINO cannot convert it ({lines[-1] if lines else error})") from None
    save_ir(model, xml)


def save_ir(model: Any, xml: Path) -> None:
    import openvino as ov

    try:
        ov.save_model(model, xml, compress_to_fp16=False)
    except RuntimeError:  # "iostream error": the folder is ours and was writable a moment ago, so the disk is full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(xml)) from None


def quantise_ir(fp32: Path, int8: Path, frames: np.ndarray) -> None:
    """INT8 IR: symmetric weights per channel, asymmetric activations, calibrated on all `frames` [n, C, gh, gw]."""
    import nncf
    import openvino as ov

    quiet()
    model = nncf.quantize(ov.Core().read_model(fp32), nncf.Dataset([x[None] for x in frames]),
                          preset=nncf.QuantizationPreset.MIXED, subset_size=len(frames))
    save_ir(model, int8)


def quantise_onnx(fp32: Path, int8: Path, frames: np.ndarray) -> None:
    """INT8 ONNX (QDQ). Activations get one scale a tensor: ONNX Runtime refuses NNCF's per-channel zero points, which
    are its default for depthwise convolutions."""
    import nncf
    import onnx
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    quiet()
    advanced = AdvancedQuantizationParameters(activations_quantization_params=QuantizationParameters(per_channel=False))
    model = nncf.quantize(onnx.load(fp32), nncf.Dataset([{INPUT: x[None]} for x in frames]),
                          preset=nncf.QuantizationPreset.MIXED, subset_size=len(frames), advanced_parameters=advanced)
    int8.write_bytes(model.SerializeToString(deterministic=True))


def quiet() -> None:
    """NNCF narrates on stderr; its progress bars stay where there is no terminal to draw them on."""
    import nncf

    nncf.set_log_level(logging.ERROR)
