"""A viewer with the widget in it, and the hands of a person, for tests."""

from __future__ import annotations

import threading
from functools import cached_property

import numpy as np
from models import small_model
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtWidgets import QApplication, QWidget
from reference import fresh_predictor

from napari_sam2.widgets import SAM2Widget

SHAPE = (7, 48, 64)
TIMEOUT = 180_000


def blobs(shape=SHAPE):
    z, y, x = np.indices(shape)
    one = (y - 14 - z) ** 2 + (x - 20) ** 2 < 70
    two = (y - 32) ** 2 + (x - 46 + z) ** 2 < 80
    noise = np.random.default_rng(0).normal(0, 10, shape)
    return (noise + 150 * one + 220 * two).astype(np.float32)


def assert_same(labels, expected):
    """Equal, but where two objects' logits differ by less than half precision tells."""
    np.testing.assert_array_equal(labels > 0, expected > 0)
    assert (labels != expected).mean() < 1e-3


class Desk:
    """A viewer with the widget in it, and the hands of a person."""

    def __init__(self, viewer, qtbot, model=None, **layer):
        self.viewer = viewer
        self.qtbot = qtbot
        self.image = viewer.add_image(layer.pop("data", blobs()), name="scan", **layer)
        self.widget = SAM2Widget(viewer, model=model or small_model())
        self.panel = self.widget.panel
        self.dock = viewer.window.add_dock_widget(self.widget, name="SAM 2")
        if model is None:
            self.settle()

    @property
    def session(self):
        return self.widget.session

    @property
    def labels(self):
        return self.session.labels

    @property
    def status(self):
        return self.panel.status.text()

    def settle(self):
        """Wait until the model has answered all that was asked."""
        QApplication.processEvents()
        self.qtbot.waitUntil(lambda: not self.widget.is_busy, timeout=TIMEOUT)

    @cached_property
    def canvas(self):
        widgets = self.viewer.window._qt_window.findChildren(QWidget)
        return next(w for w in widgets if "CanvasBackend" in type(w).__name__)

    def position(self, yx):
        """Where a position in the image's displayed axes is on the canvas."""
        displayed = list(self.viewer.dims.displayed)
        data = np.array(self.image.world_to_data(self.viewer.dims.point))
        data[displayed] = yx
        world = np.array(self.image.data_to_world(data))[displayed]
        y, x = (world - self.viewer.camera.center[-2:]) * self.viewer.camera.zoom
        return QPoint(round(x + self.canvas.width() / 2), round(y + self.canvas.height() / 2))

    def mouse(self, kind, at, held=True, modifiers=Qt.KeyboardModifier.NoModifier):
        left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
        button = none if kind == QEvent.Type.MouseMove else left
        where = QPointF(at), QPointF(self.canvas.mapToGlobal(at))
        event = QMouseEvent(kind, *where, button, left if held else none, modifiers)
        QApplication.sendEvent(self.canvas, event)

    def click(self, yx, **how):
        at = self.position(yx)
        self.mouse(QEvent.Type.MouseMove, at, held=False, **how)
        self.mouse(QEvent.Type.MouseButtonPress, at, **how)
        self.mouse(QEvent.Type.MouseButtonRelease, at, held=False, **how)

    def drag(self, start, end):
        self.draw(start, *(np.add(start, np.subtract(end, start) * part) for part in (0.3, 0.7, 1)))

    def draw(self, *path, **how):
        """Press at the first position, move through the others, release at the last."""
        start, *others = (self.position(yx) for yx in path)
        self.mouse(QEvent.Type.MouseMove, start, held=False, **how)
        self.mouse(QEvent.Type.MouseButtonPress, start, **how)
        for at in others:
            self.mouse(QEvent.Type.MouseMove, at, **how)
            self.qtbot.wait(30)  # vispy drops moves that come too fast
        self.mouse(QEvent.Type.MouseButtonRelease, others[-1], held=False, **how)
        QApplication.processEvents()

    def key(self, key, modifiers=Qt.KeyboardModifier.NoModifier):
        self.qtbot.keyClick(self.canvas, key, modifiers)

    def press(self, button):
        self.qtbot.mouseClick(button, Qt.MouseButton.LeftButton)

    def go_to(self, step, axis=0):
        self.viewer.dims.set_current_step(axis, step)

    def expected(self, frame=None):
        """Labels that the engine gives for the session's prompts: of a preview, or of all."""
        predictor = fresh_predictor(self.session)
        if frame is not None:
            return predictor.predict(frame).labels()
        labels = np.zeros_like(self.labels)
        for result in predictor.propagate():
            labels[self.session.view.index(result.frame)] = result.labels()
        return labels


def worker_threads():
    return [thread for thread in threading.enumerate() if thread.name == "napari-sam2"]
