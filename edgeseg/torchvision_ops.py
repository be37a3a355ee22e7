"""torchvision beside a CPU-only torch.

The public index serves a torchvision built against CUDA torch; next to a CPU build it fails at import with "operator
torchvision::nms does not exist", and with it all that imports it (torchmetrics and so Lightning, nnU-Net's trainers).
Only two operator schemas are missing, and nothing here calls them: declaring them is enough.
"""

import importlib

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_KEEP: list[object] = []  # a torch.library.Library undoes its declarations when it is collected


def import_torchvision() -> None:
    """Import torchvision if it is installed; declare the missing operators only after exactly that failure."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS.values():
            library.define(schema)
        _KEEP.append(library)
        importlib.import_module("torchvision")
