"""metadata.json: a bundle described in the field names of MONAI's bundle specification.

Mandatory fields as in https://docs.monai.io/en/stable/mb_specification.html (`optional_packages_version` is what older
versions of it have for `required_packages_version`). Only what is true of this bundle: it holds no torch weights and no
MONAI code, so MONAI can describe and list it, not run it.
"""

from typing import Any

from edgeseg.manifest import ChannelNormalisation, Manifest
from edgeseg.onnx_file import INPUT, OUTPUT, STEP_INPUT, STEP_OUTPUT

VERSION = "1.0.0"
"""Of the model in a bundle: another training is another bundle with another name, not a later version of this one."""
UNKNOWN = "n/a"
RUNTIME = ("edgeseg", "openvino", "onnxruntime")


def metadata(m: Manifest) -> dict[str, Any]:
    """The content of metadata.json."""
    maker = f"edgeseg {m.versions['edgeseg']}" if "edgeseg" in m.versions else "edgeseg"
    size = list(m.preprocessing.size)
    document = {
        "version": VERSION,
        "changelog": {VERSION: f"exported by {maker}"},
        "monai_version": UNKNOWN,
        "pytorch_version": m.versions.get("torch", UNKNOWN),
        "numpy_version": m.versions.get("numpy", UNKNOWN),
        "required_packages_version": {name: m.versions[name] for name in RUNTIME if name in m.versions},
        "optional_packages_version": {},
        "name": m.name,
        "task": m.task,
        "description": f"{m.task[:1].upper()}{m.task[1:]} in 2D frames on a plain CPU, as ONNX and OpenVINO IR; "
                       "manifest.json describes it in full",
        "authors": UNKNOWN,
        "copyright": f"weights: {m.licences.get('weights', UNKNOWN)} (see LICENSE)",
        "intended_use": m.intended_use,
        "data_source": f"{m.data.name} ({m.data.licence})",
        "data_type": ", ".join(m.channels),
        "network_data_format": {
            "inputs": {"image": {
                "name": STEP_INPUT if m.stream else INPUT,
                "type": "image",
                "format": "magnitude",
                "modality": modality(m),
                "num_channels": len(m.channels),
                "spatial_shape": size,
                "dtype": "float32",
                "value_range": value_range(m.preprocessing.channels),
                "is_patch_data": True,
                "channel_def": {str(i): name for i, name in enumerate(m.channels)},
            }},
            "outputs": {"pred": {
                "name": STEP_OUTPUT if m.stream else OUTPUT,
                "type": "image",
                "format": "labels",  # the largest of K channels is the label
                "modality": UNKNOWN,
                "num_channels": len(m.labels.names),
                "spatial_shape": size,
                "dtype": "float32",
                "value_range": [],
                "is_patch_data": True,
                "channel_def": {str(i): name for i, name in enumerate(m.labels.names)},
            }},
        },
    }
    if dice := {f"{s.split} mean_dice {s.backend} {s.precision}": round(s.dice["mean"].value, 4)
                for s in m.measured.scores if "mean" in s.dice}:
        document["eval_metrics"] = dice
    return document


def modality(m: Manifest) -> str:
    """MONAI's word where the channels' names leave no doubt, otherwise these names."""
    if all(c.kind == "ct" for c in m.preprocessing.channels) or all(name.upper() == "CT" for name in m.channels):
        return "CT"
    return "MR" if all("MR" in name for name in m.channels) else ", ".join(m.channels)


def value_range(channels: tuple[ChannelNormalisation, ...]) -> list[int]:
    """0..1 where the normalisation makes it so; an empty list is MONAI's "not known"."""
    return [0, 1] if all(c.kind == "rgb" for c in channels) else []
