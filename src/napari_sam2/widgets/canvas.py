"""napari's canvas, as OpenGL sees it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtWidgets import QMainWindow

if TYPE_CHECKING:
    from napari.components import LayerList
    from napari.layers import Layer

_KEPT = "napari-sam2 keeps its canvas current"


def keep_canvas_current(layers: LayerList, window: QMainWindow) -> None:
    """Whenever layers are removed, let OpenGL's calls go to the canvas of their window.

    napari frees at once what a removed layer had on the graphics card (0.7 to 0.9.2), in whatever
    context is current. Outside of a paint that is the window's, and the canvas would go on with
    textures that are gone: with Mesa the process crashes at the next slice. The window is kept
    from that for as long as it lives, for a widget that is closed leaves layers.
    """
    if window.property(_KEPT):
        return
    window.setProperty(_KEPT, True)
    known = weakref.ref(window)

    def before_removal(event: object) -> None:
        window = known()
        canvases = [] if window is None else window.findChildren(QOpenGLWidget)
        for canvas in canvases:
            if canvas.isValid():
                canvas.makeCurrent()

    layers.events.removing.connect(before_removal)


def remove_layers(layers: LayerList, unwanted: Iterable[Layer | None]) -> None:
    """Remove those that are there; at once, for each time napari looks through all that Python has,
    which takes about half a second. One alone does not end what napari itself does at once."""
    there = [layer for layer in unwanted if layer in layers]
    with layers.batched_update() if len(there) > 1 else nullcontext():
        for layer in there:
            if layer in layers:  # it may have gone with another
                layers.remove(layer)
