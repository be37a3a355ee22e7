"""edgeseg: distil a medical segmentation teacher into an INT8 student and run it on a plain CPU, without torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeseg.container import open_bundle
    from edgeseg.runtime.segmenter import Segmenter
    from edgeseg.runtime.stream import Stream

__version__ = "0.1.0"
__all__ = ["Segmenter", "Stream", "__version__", "open_bundle"]

_HOME = {"Segmenter": "edgeseg.runtime.segmenter", "Stream": "edgeseg.runtime.stream",
         "open_bundle": "edgeseg.container"}


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `import edgeseg` stays instant."""
    if name not in _HOME:
        raise AttributeError(f"module 'edgeseg' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
