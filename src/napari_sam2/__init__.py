"""SAM 2 for napari: segment and track anything in volumes and time-lapses.

For scripts: `read_volume`, `segment` and `write_labels` do without a window. They are imported when
they are first used, so that importing the package is quick and loads neither Qt nor napari nor
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_sam2.io import ReadError, Volume, WriteError, read_volume, write_labels
    from napari_sam2.segmentation import ModelError, PromptError, segment

__all__ = [
    "ModelError",
    "PromptError",
    "ReadError",
    "Volume",
    "WriteError",
    "read_volume",
    "segment",
    "write_labels",
]

_HOME = dict.fromkeys(__all__, "napari_sam2.io") | {
    "ModelError": "napari_sam2.segmentation",
    "PromptError": "napari_sam2.segmentation",
    "segment": "napari_sam2.segmentation",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("napari-sam2")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
