"""napari's canvas, as OpenGL sees it."""

from __future__ import annotations

from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtWidgets import QWidget


def make_canvas_current(widget: QWidget) -> None:
    """Before layers are removed: let OpenGL's calls go to the canvas of the window of ``widget``.

    napari frees at once what a removed layer had on the graphics card (0.9.2), in whatever context
    is current. Outside of a paint that is the window's, and the canvas would go on with textures
    that are gone: with Mesa the process crashes at the next slice.
    """
    while (parent := widget.parentWidget()) is not None:
        widget = parent
    for canvas in widget.findChildren(QOpenGLWidget):
        if canvas.isValid():
            canvas.makeCurrent()
