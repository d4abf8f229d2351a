"""A small plot of tracks and lineages: time from left to right, a row for each track."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qtpy.QtCore import QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QPainter, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_sam2.counted import slice_range
from napari_sam2.divisions import Proposal
from napari_sam2.tracks import Track

_ROW = 12  # pixels
_EDGE = 6
_HALF = 4.0  # of a diamond
_FAINT = 60  # of 255
_TIP = (
    "Tracks over time: a line for each object, and where it divides. Click to go there. A diamond "
    "is a division that is proposed."
)


class LineageView(QWidget):
    """Families one below the other; a parent lies between its daughters."""

    go_to = Signal(int, int)
    """An object and a frame that the person wants to see."""

    def __init__(self) -> None:
        super().__init__()
        self._tracks: list[Track] = []
        self._rows: dict[int, int] = {}
        self._colours: dict[int, QColor] = {}
        self._proposals: tuple[Proposal, ...] = ()
        self._frames = 1
        self._here = (0, 0)
        self._ink = QColor(200, 200, 200)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setToolTip(_TIP)
        self.setMouseTracking(True)
        self.setCursor(Qt.CursorShape.PointingHandCursor)

    def sizeHint(self) -> QSize:
        """Qt's name."""
        return QSize(300, max(1, len(self._tracks)) * _ROW + 2 * _EDGE)

    def minimumSizeHint(self) -> QSize:
        """Qt's name: a plot that scrolls, with rows that can be told apart."""
        return self.sizeHint()

    @property
    def tracks(self) -> list[Track]:
        """Those that are shown, from top to bottom."""
        return self._tracks

    def show_tracks(self, tracks: Sequence[Track], colours: Mapping[int, Any], frames: int) -> None:
        """Show the tracks of a sequence. colours: object -> RGB, 0 to 1. frames: how many."""
        self._tracks = in_rows(tracks)
        self._rows = {track.object_id: row for row, track in enumerate(self._tracks)}
        self._colours = {
            i: QColor.fromRgbF(*(float(part) for part in colour[:3]))
            for i, colour in colours.items()
        }
        self._frames = max(1, frames)
        self.updateGeometry()
        self.update()

    def show_proposals(self, proposals: Sequence[Proposal]) -> None:
        self._proposals = tuple(proposals)
        self.update()

    def show_place(self, object_id: int, frame: int) -> None:
        """Which object is selected, and which frame the viewer shows."""
        if (object_id, frame) != self._here:
            self._here = object_id, frame
            self.update()

    def set_ink(self, ink: QColor) -> None:
        """Draw lines in a theme's colour."""
        self._ink = ink
        self.update()

    def has(self, object_id: int) -> bool:
        """Whether an object has a track here."""
        return object_id in self._rows

    def position(self, object_id: int, frame: float) -> QPointF:
        """Where an object is on a frame, in pixels."""
        each = (self.width() - 2 * _EDGE) / self._frames
        return QPointF(_EDGE + (frame + 0.5) * each, _EDGE + (self._rows[object_id] + 0.5) * _ROW)

    def place_at(self, at: QPointF) -> tuple[int, int] | None:
        """The object and the frame that lie at a position; None beside all tracks.

        The frame is one on which the object is.
        """
        row = int((at.y() - _EDGE) // _ROW)
        if not 0 <= row < len(self._tracks):
            return None
        track = self._tracks[row]
        frame = int((at.x() - _EDGE) / max(1, self.width() - 2 * _EDGE) * self._frames)
        return track.object_id, min(max(frame, track.first), track.last)

    def paintEvent(self, event: Any) -> None:
        """Qt's name."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        object_id, frame = self._here
        ground = QColor(self._ink)
        ground.setAlpha(_FAINT)
        if object_id in self._rows:
            top = _EDGE + self._rows[object_id] * _ROW
            painter.fillRect(QRectF(0, top, self.width(), _ROW), ground)
        each = (self.width() - 2 * _EDGE) / self._frames
        painter.fillRect(QRectF(_EDGE + frame * each, 0, max(2.0, each), self.height()), ground)
        for track in self._tracks:
            self._draw(painter, track)
        painter.setPen(QPen(self._ink, 1))
        painter.setBrush(self._ink)
        for one in self._proposals:
            if one.parent in self._rows:
                painter.drawPolygon(_diamond(self.position(one.parent, one.frame)))

    def _draw(self, painter: QPainter, track: Track) -> None:
        colour = self._colours.get(track.object_id, self._ink)
        start = self.position(track.object_id, track.first - 0.4)
        end = self.position(track.object_id, track.last + 0.4)
        painter.setPen(QPen(colour, 3))
        painter.drawLine(start, end)
        row = self._rows.get(track.parent or 0)
        if row is None:
            return
        parent = self._tracks[row]
        branch = self.position(parent.object_id, parent.last + 0.4)
        painter.setPen(QPen(self._ink, 1))
        painter.drawLine(branch, QPointF(branch.x(), start.y()))
        painter.drawLine(QPointF(branch.x(), start.y()), start)

    def mousePressEvent(self, event: Any) -> None:
        """Qt's name."""
        place = self.place_at(event.position())
        if place is not None:
            self.go_to.emit(*place)

    def mouseMoveEvent(self, event: Any) -> None:
        """Qt's name."""
        place = self.place_at(event.position())
        if place is None:
            return
        track = self._tracks[self._rows[place[0]]]
        text = f"{track.name}: {slice_range(track.first, track.last)}"
        if track.daughters:
            text += f", divides into {len(track.daughters)}"
        if track.generation:
            text += f", generation {track.generation}"
        QToolTip.showText(event.globalPosition().toPoint(), text, self)


def in_rows(tracks: Sequence[Track]) -> list[Track]:
    """Families in the order given; half of the daughters above their parent, half below."""
    known = {track.object_id: track for track in tracks}
    rows: list[Track] = []

    def add(track: Track) -> None:
        daughters = [known[i] for i in track.daughters if i in known]
        half = (len(daughters) + 1) // 2
        for daughter in daughters[:half]:
            add(daughter)
        rows.append(track)
        for daughter in daughters[half:]:
            add(daughter)

    for track in tracks:
        if track.parent not in known:
            add(track)
    return rows


def _diamond(middle: QPointF) -> QPolygonF:
    x, y = middle.x(), middle.y()
    corners = ((x - _HALF, y), (x, y - _HALF), (x + _HALF, y), (x, y + _HALF))
    return QPolygonF([QPointF(*corner) for corner in corners])
