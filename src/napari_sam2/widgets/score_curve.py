"""A curve of the loss and the scores of a training, while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

_HEIGHT, _MARGIN = 150, 10
_COLOURS = {
    "loss": QColor(150, 150, 150),
    "box": QColor(66, 133, 244),
    "click": QColor(251, 140, 0),
    "tracked": QColor(15, 157, 88),
}
_SMOOTH = 20  # steps whose losses are averaged


class ScoreCurve(QWidget):
    """The loss in grey, falling from its highest; scores from 0 to 1 in colours; steps along."""

    def __init__(self) -> None:
        super().__init__()
        self._losses: Sequence[float] = ()
        self._first_step = 0
        self._scores: dict[str, list[tuple[int, float]]] = {}
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setToolTip(
            "Scores on the images that are held out: IoU from a box and from a click, Dice of "
            "objects that are followed. In grey the loss on those that are learnt from."
        )

    def sizeHint(self) -> QSize:
        """Qt's name."""
        return QSize(260, _HEIGHT)

    @property
    def scores(self) -> dict[str, list[tuple[int, float]]]:
        """What is shown: kind -> (step, score)."""
        return self._scores

    def show_training(
        self, losses: Sequence[float], last_step: int, scores: dict[str, list[tuple[int, float]]]
    ) -> None:
        """losses: of the steps up to the last one. scores: kind -> (step, score)."""
        self._losses, self._first_step = list(losses), last_step - len(losses)
        self._scores = {kind: points for kind, points in scores.items() if points}
        self.update()

    def paintEvent(self, event: Any) -> None:
        """Qt's name."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        ink = self.palette().text().color()
        letters = painter.fontMetrics()
        high, beside = letters.height(), letters.horizontalAdvance("0.5") + 8
        below = high + high // 2 + 6
        area = QRectF(
            beside, high / 2, self.width() - beside - _MARGIN, self.height() - below - high / 2
        )
        faint = QColor(ink)
        faint.setAlpha(60)
        for value in (0.0, 0.5, 1.0):
            y = area.bottom() - value * area.height()
            painter.setPen(faint)
            painter.drawLine(QPointF(area.left(), y), QPointF(area.right(), y))
            painter.setPen(ink)
            painter.drawText(QPointF(2, y + letters.ascent() / 3), f"{value:g}")
        last = max(
            [1, self._first_step + len(self._losses)]
            + [step for points in self._scores.values() for step, _ in points]
        )

        def at(step: float, value: float) -> QPointF:
            return QPointF(
                area.left() + step / last * area.width(), area.bottom() - value * area.height()
            )

        curve = _smoothed(self._losses, int(area.width()))
        painter.setPen(QPen(_COLOURS["loss"], 1.5))
        painter.drawPolyline(QPolygonF([at(self._first_step + step, loss) for step, loss in curve]))
        left = 2.0
        for kind, points in self._scores.items():
            colour = _COLOURS[kind]
            painter.setPen(QPen(colour, 2))
            painter.drawPolyline(QPolygonF([at(step, value) for step, value in points]))
            painter.setBrush(colour)
            for step, value in points:
                painter.drawEllipse(at(step, value), 2.5, 2.5)
            painter.setBrush(Qt.BrushStyle.NoBrush)
            text = f"{kind} {points[-1][1]:.2f}"
            painter.drawText(QPointF(left, self.height() - 4), text)
            left += letters.horizontalAdvance(text) + 10
        if self._losses:
            painter.setPen(_COLOURS["loss"])
            mean = float(np.mean(self._losses[-_SMOOTH:]))
            painter.drawText(QPointF(left, self.height() - 4), f"loss {mean:.2f}")


def _smoothed(losses: Sequence[float], most: int) -> list[tuple[float, float]]:
    """(step, share of the highest mean loss), at most so many."""
    if not losses:
        return []
    sums = np.cumsum(np.concatenate(([0.0], losses)))
    ends = np.unique(np.linspace(1, len(losses), min(len(losses), max(1, most))).astype(int))
    starts = np.maximum(0, ends - _SMOOTH)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    highest = float(means.max()) or 1.0
    return [(float(end), float(mean / highest)) for end, mean in zip(ends, means, strict=True)]
