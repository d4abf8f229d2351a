"""A plot of objects' sizes over the frames; it needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from napari.settings import get_settings
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_sam2.io.legend import RGB
from napari_sam2.measures import Measures

_FAINT, _STRONG = 0.6, 2.4  # widths of lines
_INCHES = 3.6, 2.7  # it takes more where there is room; matplotlib's own fill half a screen


class MeasuresPlot(QWidget):
    """A line per object, and one across for the frame that is shown."""

    go_to = Signal(int)
    """A frame that the person has clicked on."""

    def __init__(self) -> None:
        super().__init__()
        self._text: RGB = (0.8, 0.8, 0.8)
        self._lines: dict[int, Any] = {}
        self._frame: Any = None
        self.canvas: Any = None
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        try:
            from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
            from matplotlib.figure import Figure
        except ImportError:
            note = QLabel('The plot needs matplotlib: pip install "napari-sam2[plot]"')
            note.setWordWrap(True)
            note.setAlignment(Qt.AlignmentFlag.AlignCenter)
            layout.addWidget(note)
            return
        figure = Figure(figsize=_INCHES, layout="constrained")
        self.canvas = FigureCanvasQTAgg(figure)
        self.canvas.setMinimumHeight(140)
        self._axes = figure.add_subplot()
        self.canvas.mpl_connect("button_press_event", self._on_click)
        layout.addWidget(self.canvas)

    def set_theme(self, text: RGB, background: RGB) -> None:
        """RGB, 0 to 1."""
        self._text = text
        if self.canvas is not None:
            self.canvas.figure.set_facecolor(background)
            self._axes.set_facecolor(background)
            self._style()

    def show_measures(self, measures: Measures, colours: Mapping[int, RGB]) -> None:
        """Draw anew. colours: of the objects, by id."""
        if self.canvas is None:
            return
        from matplotlib.ticker import MaxNLocator

        self._axes.clear()
        self._lines.clear()
        rows = measures.frames
        if rows:
            first, last = (end(row.frame for row in rows) for end in (min, max))
            sizes = {row.object: np.full(last - first + 1, np.nan) for row in rows}
            for row in rows:
                sizes[row.object][row.frame - first] = row.size
            frames = np.arange(first, last + 1)
            for object_id, size in sizes.items():
                (self._lines[object_id],) = self._axes.plot(
                    frames, size, color=colours[object_id], marker=".", markersize=2
                )
            kind = "volume" if rows[0].unit.endswith("3") else "area"
            self._axes.set_ylabel(f"{kind} ({pretty(rows[0].unit)})")
            self._axes.set_xlabel("time point" if measures.is_time else "slice")
            self._axes.set_ylim(bottom=0)
            self._axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        self._frame = self._axes.axvline(0, linewidth=0.8, alpha=0.7)
        self._frame.set_visible(False)
        self._style()

    def mark(self, object_id: int, frame: int | None) -> None:
        """Show which object is selected, and the frame."""
        if self.canvas is None or self._frame is None:
            return
        for other, line in self._lines.items():
            line.set_linewidth(_STRONG if other == object_id else _FAINT)
            line.set_zorder(3 if other == object_id else 2)
        self._frame.set_visible(frame is not None)
        if frame is not None:
            self._frame.set_xdata([frame, frame])
        self.canvas.draw_idle()

    def _style(self) -> None:
        axes = self._axes
        if self._frame is not None:
            self._frame.set_color(self._text)
        size = get_settings().appearance.font_size
        axes.tick_params(colors=self._text, labelsize=size - 2, length=2)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(self._text)
            label.set_fontsize(size - 1)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(self._text)
        self.canvas.draw_idle()

    def _on_click(self, event: Any) -> None:
        if event.inaxes is self._axes and event.xdata is not None:
            self.go_to.emit(round(event.xdata))


def pretty(unit: str) -> str:
    """A unit as it is printed: mm² for mm2."""
    return unit.replace("um", "µm").translate(str.maketrans("23", "²³"))
