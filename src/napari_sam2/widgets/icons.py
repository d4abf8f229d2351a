"""Small pictures for buttons and lists, drawn in the colours of the theme."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from qtpy.QtCore import QPointF, QRectF, Qt
from qtpy.QtGui import QColor, QIcon, QPainter, QPainterPath, QPen, QPixmap, QPolygonF

GREEN, RED, BLUE = QColor(60, 200, 80), QColor(255, 100, 95), QColor(90, 160, 250)
_SIDE = 32


def colour_icon(colour: Any) -> QIcon:
    """A filled square. colour: RGB, 0 to 1."""
    pixmap = QPixmap(14, 14)
    pixmap.fill(QColor.fromRgbF(*(float(part) for part in np.asarray(colour)[:3])))
    icon = QIcon(pixmap)
    icon.addPixmap(pixmap, QIcon.Mode.Selected)  # else Qt tints it
    return icon


def icon(name: str, ink: QColor) -> QIcon:
    """A picture by name, its lines in the colour `ink` where they mean no colour of their own."""
    pixmap = QPixmap(_SIDE, _SIDE)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setPen(_pen(ink))
    _PICTURES[name](painter, ink)
    painter.end()
    made = QIcon(pixmap)
    made.addPixmap(pixmap, QIcon.Mode.Selected)
    return made


def shade(colour: QColor, ink: QColor) -> QColor:
    """The colour, darker where the theme is light, so that it stands out as well."""
    return colour.darker(170) if ink.lightness() < 128 else colour


def _pen(colour: QColor, width: float = 3) -> QPen:
    pen = QPen(colour, width)
    pen.setCapStyle(Qt.PenCapStyle.RoundCap)
    pen.setJoinStyle(Qt.PenJoinStyle.RoundJoin)
    return pen


def _include(painter: QPainter, ink: QColor) -> None:
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(shade(GREEN, ink))
    painter.drawEllipse(QPointF(16, 16), 10, 10)


def _exclude(painter: QPainter, ink: QColor) -> None:
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(shade(RED, ink))
    painter.drawPolygon(
        QPolygonF([QPointF(16, 4), QPointF(28, 16), QPointF(16, 28), QPointF(4, 16)])
    )


def _box(painter: QPainter, ink: QColor) -> None:
    painter.setPen(_pen(shade(BLUE, ink), 4))
    painter.drawRect(QRectF(5, 8, 22, 16))


def _scribble(painter: QPainter, ink: QColor) -> None:
    painter.setPen(_pen(shade(GREEN, ink), 4))
    path = QPainterPath(QPointF(4, 22))
    path.cubicTo(12, -4, 18, 40, 28, 10)
    painter.drawPath(path)


def _lasso(painter: QPainter, ink: QColor) -> None:
    pen = _pen(shade(BLUE, ink), 3)
    pen.setStyle(Qt.PenStyle.DotLine)
    painter.setPen(pen)
    painter.drawEllipse(QRectF(4, 6, 24, 19))


def _paint(painter: QPainter, ink: QColor) -> None:
    painter.drawLine(QPointF(27, 5), QPointF(15, 18))
    painter.setBrush(ink)
    painter.drawEllipse(QPointF(10, 22), 5, 5)


def _eye(painter: QPainter, ink: QColor) -> None:
    path = QPainterPath(QPointF(3, 16))
    path.quadTo(16, 1, 29, 16)
    path.quadTo(16, 31, 3, 16)
    painter.drawPath(path)
    painter.setBrush(ink)
    painter.drawEllipse(QPointF(16, 16), 4, 4)


def _eye_closed(painter: QPainter, ink: QColor) -> None:
    painter.setPen(_pen(_faint(ink)))
    path = QPainterPath(QPointF(3, 14))
    path.quadTo(16, 29, 29, 14)
    painter.drawPath(path)
    for x, y in ((6, 24), (16, 27), (26, 24)):
        painter.drawLine(QPointF(16 + (x - 16) * 0.8, y - 5), QPointF(x, y))


def _lock(painter: QPainter, ink: QColor) -> None:
    painter.drawArc(QRectF(9, 4, 14, 20), 0, 180 * 16)
    painter.setBrush(ink)
    painter.drawRoundedRect(QRectF(6, 14, 20, 14), 2, 2)


def _lock_open(painter: QPainter, ink: QColor) -> None:
    painter.setPen(_pen(_faint(ink)))
    painter.drawArc(QRectF(9, 2, 14, 20), 20 * 16, 160 * 16)
    painter.drawRoundedRect(QRectF(6, 14, 20, 14), 2, 2)


def _undo(painter: QPainter, ink: QColor) -> None:
    painter.drawArc(QRectF(7, 9, 18, 16), -90 * 16, 200 * 16)
    painter.drawPolyline(QPolygonF([QPointF(4, 8), QPointF(8, 14), QPointF(14, 11)]))


def _redo(painter: QPainter, ink: QColor) -> None:
    painter.translate(_SIDE, 0)
    painter.scale(-1, 1)
    _undo(painter, ink)


def _faint(ink: QColor) -> QColor:
    faint = QColor(ink)
    faint.setAlpha(90)
    return faint


_PICTURES: dict[str, Callable[[QPainter, QColor], None]] = {
    "include": _include,
    "exclude": _exclude,
    "box": _box,
    "scribble": _scribble,
    "lasso": _lasso,
    "paint": _paint,
    "eye": _eye,
    "eye closed": _eye_closed,
    "lock": _lock,
    "lock open": _lock_open,
    "undo": _undo,
    "redo": _redo,
}
