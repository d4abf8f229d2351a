"""Where a person is likely to keep files that belong to a layer, and under which name."""

from __future__ import annotations

from pathlib import Path

from napari.layers import Layer

from napari_sam2.io.kinds import stem
from napari_sam2.targets import file_name


def folder_of(layer: Layer, path: str | None = None) -> str:
    """The folder in which the layer's file lies, or its own folder; empty where that is not known.

    path: of the file, if not the layer's own.
    """
    path = path or layer.source.path
    folder = Path(path).absolute().parent if path else None
    return str(folder) if folder is not None and folder.is_dir() else ""


def beside(layer: Layer, suffix: str, path: str | None = None) -> str:
    """What to propose for a new file: the layer's name, beside the layer's file."""
    return str(Path(folder_of(layer, path), f"{file_name(stem(layer.name))}{suffix}"))
