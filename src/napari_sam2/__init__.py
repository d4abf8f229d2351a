"""SAM 2 for napari: segment and track anything in volumes and time-lapses.

For scripts and napari's console: `Session` does all that the widget does; `segment` does it in one
call; `read_volume` and `write_labels` read and write files. They are imported when they are first
used, so that importing the package is quick and loads neither Qt nor napari nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_sam2.automatic import add_all, find_all
    from napari_sam2.divisions import accept_division, propose_divisions
    from napari_sam2.io import ReadError, Volume, WriteError, read_volume, write_labels
    from napari_sam2.lazy_model import LazyModel
    from napari_sam2.lineage import LineageError
    from napari_sam2.segmentation import ModelError, PromptError, segment
    from napari_sam2.sequence_view import Channels, SequenceKey
    from napari_sam2.session import LockedError, NothingToDo, Session, UnreadableSlices
    from napari_sam2.session_file import SessionFileError, open_session, replay, save_session
    from napari_sam2.throughout import find_throughout
    from napari_sam2.tracks import tracks_layer, write_tracks
    from napari_sam2.windows import window_for

__all__ = [
    "Channels",
    "LazyModel",
    "LineageError",
    "LockedError",
    "ModelError",
    "NothingToDo",
    "PromptError",
    "ReadError",
    "SequenceKey",
    "Session",
    "SessionFileError",
    "UnreadableSlices",
    "Volume",
    "WriteError",
    "accept_division",
    "add_all",
    "find_all",
    "find_throughout",
    "open_session",
    "propose_divisions",
    "read_volume",
    "replay",
    "save_session",
    "segment",
    "tracks_layer",
    "window_for",
    "write_labels",
    "write_tracks",
]

_HOME = {
    "napari_sam2.automatic": ("add_all", "find_all"),
    "napari_sam2.divisions": ("accept_division", "propose_divisions"),
    "napari_sam2.io": ("ReadError", "Volume", "WriteError", "read_volume", "write_labels"),
    "napari_sam2.lazy_model": ("LazyModel",),
    "napari_sam2.lineage": ("LineageError",),
    "napari_sam2.segmentation": ("ModelError", "PromptError", "segment"),
    "napari_sam2.sequence_view": ("Channels", "SequenceKey"),
    "napari_sam2.session": ("LockedError", "NothingToDo", "Session", "UnreadableSlices"),
    "napari_sam2.session_file": ("SessionFileError", "open_session", "replay", "save_session"),
    "napari_sam2.throughout": ("find_throughout",),
    "napari_sam2.tracks": ("tracks_layer", "write_tracks"),
    "napari_sam2.windows": ("window_for",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("napari-sam2")
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
