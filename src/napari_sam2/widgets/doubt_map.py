"""A map of how doubtful the masks of all objects are on all slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QImage, QPainter
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_sam2.counted import counted
from napari_sam2.review import Evidence

_HEIGHT = 30
_MARK = 3  # pixels at the left of the row of the selected object
_FULL = 0.5  # doubt from which on the colour covers the ground
_TIP = (
    "How doubtful the masks are: a row for each object, slices from left to right. The redder, "
    "the more is likely wrong. Click to go there."
)


class DoubtMap(QWidget):
    """Objects from top to bottom, slices from left to right; of what shares a pixel, the worst."""

    go_to = Signal(int, int)
    """An object and a slice that the person wants to see."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, str] = {}
        self._known: dict[int, Evidence] = {}
        self._doubt: NDArray[np.float64] = np.zeros((0, 0))
        self._here = (0, 0)
        self._ink = QColor(200, 200, 200)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setToolTip(_TIP)
        self.setMouseTracking(True)
        self.setCursor(Qt.CursorShape.PointingHandCursor)

    def sizeHint(self) -> QSize:
        """Qt's name. The same for any number of objects, so that nothing is laid out anew."""
        return QSize(200, _HEIGHT)

    @property
    def doubt(self) -> NDArray[np.float64]:
        """(objects, slices) 0 to 1, as it is shown."""
        return self._doubt

    def show_evidence(self, known: Mapping[int, Evidence], names: Mapping[int, str]) -> None:
        """Show what is known of the objects of a sequence; known: by object id."""
        self._known, self._names = dict(known), dict(names)
        doubt = [one.doubt for one in known.values()]
        self._doubt = np.array(doubt) if doubt else np.zeros((0, 0))
        self.update()

    def show_place(self, object_id: int, frame: int) -> None:
        """Which object is selected, and which slice the viewer shows."""
        if (object_id, frame) != self._here:
            self._here = object_id, frame
            self.update()

    def set_ink(self, ink: QColor) -> None:
        """Draw lines in a theme's colour."""
        self._ink = ink
        self.update()

    def place_at(self, x: float, y: float) -> tuple[int, int] | None:
        """The object and the slice that lie at a position, in pixels; None without any."""
        if not self._doubt.size:
            return None
        sizes = (self.height(), self.width())
        row, frame = (
            int(np.clip(at / max(1, size) * count, 0, count - 1))
            for at, size, count in zip((y, x), sizes, self._doubt.shape, strict=True)
        )
        return list(self._known)[row], frame

    def paintEvent(self, event: Any) -> None:
        """Qt's name."""
        painter = QPainter(self)
        width, height = self.width(), self.height()
        ground = QColor(self._ink)
        ground.setAlpha(40)
        painter.fillRect(0, 0, width, height, ground)
        if not self._doubt.size:
            return
        painter.drawImage(QRectF(0, 0, width, height), _image(self._doubt, (height, width)))
        rows, slices = self._doubt.shape
        object_id, frame = self._here
        painter.setPen(self._ink)
        each = width / slices
        painter.drawRect(QRectF(frame * each, 0, max(2.0, each), height - 1))
        if rows > 1 and object_id in self._known:
            row, each = list(self._known).index(object_id), height / rows
            painter.fillRect(QRectF(0, row * each, _MARK, max(2.0, each)), self._ink)

    def mousePressEvent(self, event: Any) -> None:
        """Qt's name."""
        place = self.place_at(event.position().x(), event.position().y())
        if place is not None:
            self.go_to.emit(*place)

    def mouseMoveEvent(self, event: Any) -> None:
        """Qt's name."""
        place = self.place_at(event.position().x(), event.position().y())
        if place is None:
            return
        object_id, frame = place
        text = f"{self._names[object_id]}, slice {frame}: {reasons(self._known[object_id], frame)}"
        QToolTip.showText(event.globalPosition().toPoint(), text, self)


def reasons(known: Evidence, frame: int) -> str:
    """What makes a slice doubtful, for people."""
    if not known.is_open[frame]:
        return "you have judged it"
    text = f"doubt {known.doubt[frame]:.2f}"
    if known.differing[frame] >= 0.2 * max(known.area[frame], 1):
        differing = counted(round(known.differing[frame]), "pixel")
        text += f", {differing} of difference to the other side"
    if not known.area[frame]:
        near = known.distance[frame]
        is_missed = known.expected[frame] > 0 and np.isfinite(near)
        return f"{text}, no mask" + (f", {near:.0f} away from your marks" if is_missed else "")
    parts = [
        f"the model's own score {known.iou[frame]:.2f}",
        f"stability {known.stability[frame]:.2f}",
    ]
    if known.area_change[frame] >= 0.2:
        parts.append(f"the area changes by {known.area_change[frame]:.0%}")
    if known.shift[frame] >= 0.2:
        parts.append("it moves")
    if known.worst[frame] <= known.steadiness[frame] - 0.1:
        parts.append("less sure on the way here from your marks")
    return f"{text}: {', '.join(parts)}"


def _image(doubt: NDArray[np.float64], size: tuple[int, int]) -> QImage:
    """(objects, slices) in yellow to red, faint where there is little doubt; no larger than size.

    size: height and width in pixels.
    """
    small = _largest(_largest(doubt, size[0]).T, size[1]).T
    pixels = np.zeros((*small.shape, 4), np.uint8)  # blue, green, red, alpha
    pixels[..., 0] = 40
    pixels[..., 1] = 220 * (1 - small)
    pixels[..., 2] = 240
    pixels[..., 3] = 255 * np.fmin(small / _FULL, 1)
    height, width = small.shape
    image = QImage(pixels.tobytes(), width, height, 4 * width, QImage.Format.Format_ARGB32)
    return image.copy()  # it has its own pixels


def _largest(rows: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Rows side by side made one, with the largest values, until there are no more than `most`."""
    if len(rows) <= max(1, most):
        return rows
    starts: Sequence[int] = np.unique(np.arange(most) * len(rows) // most).tolist()
    found: NDArray[np.float64] = np.maximum.reduceat(rows, starts, axis=0)
    return found
