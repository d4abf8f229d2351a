"""A strip that shows what is known of the selected object on every slice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QBrush, QColor, QPainter, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_sam2.widgets.icons import GREEN, RED, shade

MASK, STALE, PROMPTED, PAINTED, APPROVED, LOCKED, REJECTED, OUTSIDE = (1 << n for n in range(8))
_WORDS = {
    PROMPTED: "marked",
    PAINTED: "painted",
    APPROVED: "approved",
    LOCKED: "locked",
    REJECTED: "rejected",
    STALE: "out of date",
}
_TIP = (
    "The selected object on every slice: filled where it has a mask, faint where that is out of "
    "date, ▼ marked, ■ painted by hand, × rejected, a thick line below: approved, a thin one: "
    "locked, hatched: before its first or behind its last slice. Click to go to a slice."
)


@dataclass(frozen=True)
class SliceStates:
    """What is known of one object on every slice."""

    flags: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    """(slices,) MASK, STALE, PROMPTED, PAINTED, APPROVED, LOCKED, REJECTED, OUTSIDE, added."""
    colour: tuple[float, ...] = (0.5, 0.5, 0.5)
    """RGB, 0 to 1."""

    def has(self, frame: int, flag: int) -> bool:
        """Whether a slice is marked, approved, ..."""
        return 0 <= frame < len(self.flags) and bool(self.flags[frame] & flag)

    def begins(self, frame: int) -> bool:
        """Whether a person has said that the object begins on a slice."""
        return self.has(frame - 1, OUTSIDE) and not self.has(frame, OUTSIDE)

    def ends(self, frame: int) -> bool:
        """Whether a person has said that the object ends on a slice."""
        return self.has(frame + 1, OUTSIDE) and not self.has(frame, OUTSIDE)

    def text(self, frame: int) -> str:
        """In words, for people."""
        if self.has(frame, OUTSIDE):
            is_before = (self.flags[:frame] & OUTSIDE).all()
            return "before its first slice" if is_before else "behind its last slice"
        words = [word for flag, word in _WORDS.items() if self.has(frame, flag)]
        if not self.has(frame, MASK):
            words.append("no mask")
        return ", ".join(words) or "by the model"


class SliceStrip(QWidget):
    """Slices from left to right, as many as fit in a pixel together."""

    go_to = Signal(int)
    """A slice that the person wants to see."""

    def __init__(self) -> None:
        super().__init__()
        self._states = SliceStates()
        self._current = 0
        self._ink = QColor(200, 200, 200)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setToolTip(_TIP)
        self.setMouseTracking(True)
        self.setCursor(Qt.CursorShape.PointingHandCursor)

    def sizeHint(self) -> QSize:
        """Qt's name."""
        return QSize(200, 26)

    @property
    def states(self) -> SliceStates:
        return self._states

    def show_states(self, states: SliceStates, current: int) -> None:
        """Show an object's slices, and which one the viewer shows."""
        same = states.colour == self._states.colour and np.array_equal(
            states.flags, self._states.flags
        )
        if not same or current != self._current:
            self._states, self._current = states, current
            self.update()

    def set_ink(self, ink: QColor) -> None:
        """Draw lines in a theme's colour."""
        self._ink = ink
        self.update()

    def slice_at(self, x: float) -> int:
        """The slice that lies at a horizontal position, in pixels."""
        count = len(self._states.flags)
        return int(np.clip(x / max(1, self.width()) * count, 0, max(0, count - 1)))

    def paintEvent(self, event: Any) -> None:
        """Qt's name."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        width, height = self.width(), self.height()
        band = QRectF(0, 8, width, height - 13)
        ground = QColor(self._ink)
        ground.setAlpha(40)
        painter.fillRect(band, ground)
        hatched = QBrush(ground, Qt.BrushStyle.BDiagPattern)
        count = len(self._states.flags)
        if not count:
            return
        each = width / count
        full = QColor.fromRgbF(*(float(part) for part in self._states.colour[:3]))
        faint = QColor(full)
        faint.setAlpha(90)
        flags = self._states.flags
        for run, flag in _runs(flags & (MASK | STALE)):
            if flag & MASK:
                area = QRectF(run.start * each, band.top(), len(run) * each, band.height())
                painter.fillRect(area, faint if flag & STALE else full)
        for run, flag in _runs(flags & OUTSIDE):
            if flag:
                area = QRectF(run.start * each, band.top(), len(run) * each, band.height())
                painter.fillRect(area, hatched)
        below = band.bottom() + 1
        for bit, colour, top, high in (
            (APPROVED, shade(GREEN, self._ink), below, 3),
            (LOCKED, self._ink, below + 1, 1),
        ):
            for run, flag in _runs(flags & bit):
                if flag:
                    painter.fillRect(QRectF(run.start * each, top, len(run) * each, high), colour)
        painter.setPen(QPen(shade(RED, self._ink), 2))
        for frame in np.flatnonzero(flags & REJECTED):
            x = (frame + 0.5) * each
            painter.drawLine(QPointF(x - 3, 1), QPointF(x + 3, 7))
            painter.drawLine(QPointF(x - 3, 7), QPointF(x + 3, 1))
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self._ink)
        for frame in np.flatnonzero(flags & (PROMPTED | PAINTED)):
            x = (frame + 0.5) * each
            if flags[frame] & PAINTED:
                painter.drawRect(QRectF(x - 3, 1, 6, 6))
            else:
                corners = [QPointF(x - 4, 1), QPointF(x + 4, 1), QPointF(x, 8)]
                painter.drawPolygon(QPolygonF(corners))
        here = QRectF(self._current * each, band.top() - 2, max(2.0, each), band.height() + 4)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(self._ink)
        painter.drawRect(here)

    def mousePressEvent(self, event: Any) -> None:
        """Qt's name."""
        if len(self._states.flags):
            self.go_to.emit(self.slice_at(event.position().x()))

    def mouseMoveEvent(self, event: Any) -> None:
        """Qt's name."""
        if not len(self._states.flags):
            return
        frame = self.slice_at(event.position().x())
        if event.buttons() & Qt.MouseButton.LeftButton:
            self.go_to.emit(frame)
        text = f"Slice {frame}: {self._states.text(frame)}"
        QToolTip.showText(event.globalPosition().toPoint(), text, self)


def _runs(flags: NDArray[np.integer[Any]]) -> list[tuple[range, int]]:
    """Runs of slices that are alike, with what they are."""
    ends = np.flatnonzero(np.diff(flags)) + 1
    starts = [0, *ends.tolist()]
    return [
        (range(start, stop), int(flags[start]))
        for start, stop in zip(starts, [*ends.tolist(), len(flags)], strict=True)
    ]
