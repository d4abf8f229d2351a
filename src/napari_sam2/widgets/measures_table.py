"""The dock widget "Measures": a table and a plot of what was measured of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import napari.layers
import napari.viewer
import numpy as np
from napari.utils.theme import get_theme
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QSplitter,
    QTableView,
    QVBoxLayout,
)

from napari_sam2.io.legend import colour_of_bytes
from napari_sam2.io.writers import layer_volume, session_of
from napari_sam2.measures import (
    FrameMeasure,
    Measures,
    Steps,
    labels_steps,
    layer_steps,
    session_steps,
    write_csv,
)
from napari_sam2.sequence_view import image_shape
from napari_sam2.session import Session
from napari_sam2.widgets.docking import Docked
from napari_sam2.widgets.events import Connections
from napari_sam2.widgets.measures_plot import MeasuresPlot
from napari_sam2.widgets.measures_rows import MeasuresRows, Row, key_of
from napari_sam2.widgets.proposed_files import beside
from napari_sam2.widgets.row_table import choose_rows

_PORTION = 0.02  # seconds that the window may stand still
_QUIET = 1000  # ms without a change, until what has changed is measured anew
_NAME_LETTERS = 24  # of an object, that the table has room for
_OBJECTS, _SLICES, _TIMES = "Objects", "Slices", "Times"


class MeasuresTable(Docked):
    """Measure the objects of a labels layer; a click on a row shows the object on its frame.

    A layer that shows the masks of a session is measured with scores, prompts and what is approved,
    on the sequence that its widget works on; any other one by its pixels alone. It is measured
    anew when the labels have changed and then stay as they are for a moment.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = viewer
        self.measures: Measures | None = None
        """What is shown; None before the first time."""
        self._measured: (
            tuple[napari.layers.Labels, napari.layers.Image | None, int | None] | None
        ) = None
        """What was measured, and is measured anew: the labels, the image, and the axis of the
        labels that frames lie along; None before the first time."""
        self._steps: Steps | None = None

        self.labels, self.image = QComboBox(), QComboBox()
        self.labels.setToolTip("The objects to measure.")
        self.image.setToolTip("Where intensities are taken from.")
        for combo in (self.labels, self.image):
            combo.setSizeAdjustPolicy(
                QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
            )
            combo.setMinimumContentsLength(8)
        self.measure_button = QPushButton("Measure")
        self.follow = QCheckBox("Keep up to date")
        self.follow.setChecked(True)
        self.follow.setToolTip("Measure anew when the labels have changed.")
        self.export_button = QPushButton("Export CSV …")
        self.export_button.setToolTip("Two tables: a row per object and slice, and one per object.")
        self.rows = QComboBox()
        self.rows.addItems([_OBJECTS, _SLICES])
        self.rows.setToolTip("A row for each object, or one for each of its slices.")
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setMaximumHeight(6)
        self.progress.hide()
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.table = QTableView()
        self.plot = MeasuresPlot()
        self._model = MeasuresRows()
        self._lay_out()

        self._timer = QTimer(self)
        self._timer.timeout.connect(self._go_on)
        self._quiet = QTimer(self)
        self._quiet.setSingleShot(True)
        self._quiet.setInterval(_QUIET)
        self._quiet.timeout.connect(self._measure_anew)
        self.follow.toggled.connect(self._on_changed)
        self.measure_button.clicked.connect(self.measure)
        self.export_button.clicked.connect(lambda: self.export())
        self.rows.currentIndexChanged.connect(self._on_rows_chosen)
        self.table.clicked.connect(lambda index: self._on_row(index.row()))
        self.plot.go_to.connect(self._show_frame)
        self.labels.currentIndexChanged.connect(self._on_labels)
        self._events, self._changes = Connections(), Connections()
        self._events.connect_list(viewer.layers, self._list_layers)
        self._events.connect(viewer.events.theme, self._show_theme)
        self.destroyed.connect(self._events.disconnect_all)
        self.destroyed.connect(self._changes.disconnect_all)
        self._show_theme()
        self._list_layers()
        self._on_labels()

    # -- for people, scripts and tests ---------------------------------------------------------

    def measure(self) -> None:
        """Measure the chosen labels; the window goes on meanwhile."""
        layer, image = self.labels.currentData(), self.image.currentData()
        if layer is None:
            self._say("There are no labels to measure: open some, or segment an object first.")
            return
        self._measure(layer, image)

    def export(self, path: Path | str | None = None) -> None:
        """Write what is shown as CSV; by default to a file that is asked for."""
        if self.measures is None or self._measured is None:
            return
        if path is None:
            labels, image, _ = self._measured
            name = beside(labels, ".csv", labels.source.path or (image and image.source.path))
            path, _ = QFileDialog.getSaveFileName(self, "Export measures", name, "CSV (*.csv)")
        if not path:
            return
        if not Path(path).suffix:
            path = f"{path}.csv"
        try:
            frames, objects = write_csv(path, self.measures)
        except OSError as error:
            self._say(f"{path} could not be written: {error.strerror or error}.")
        else:
            self._say(f"Written: {frames.name} and {objects.name}")

    @property
    def is_busy(self) -> bool:
        """Whether something is being measured."""
        return self._steps is not None

    # -- helpers -------------------------------------------------------------------------------

    def _measure(self, layer: napari.layers.Labels, image: napari.layers.Image | None) -> None:
        try:
            self._steps, axis = _steps_of(layer, image)
        except (OSError, ValueError) as error:
            self._say(str(error))
            return
        self._measured = layer, image, axis
        self._listen(layer)
        self.measure_button.setEnabled(False)
        self.progress.show()
        self._timer.start(0)

    def _listen(self, layer: napari.layers.Labels) -> None:
        """Be told when what was measured changes."""
        self._changes.disconnect_all()
        session = _session(layer)
        signals: list[Any] = [layer.events.data, layer.events.paint, layer.events.labels_update]
        if session is not None:
            signals = [session.masks_changed, session.objects_changed, session.prompts_changed]
        for signal in signals:
            self._changes.connect(signal, self._on_changed)

    def _on_changed(self, *_: object) -> None:
        """Something has changed; more may follow at once."""
        if self.follow.isChecked() and self._measured is not None:
            self._quiet.start()

    def _measure_anew(self) -> None:
        if self._measured is not None and self._measured[0] in self._viewer.layers:
            self._measure(*self._measured[:2])

    def _lay_out(self) -> None:
        form = QFormLayout()
        form.addRow("Labels", self.labels)
        form.addRow("Image", self.image)
        buttons = QHBoxLayout()
        for button in (self.measure_button, self.rows, self.export_button):
            buttons.addWidget(button)
        form.addRow("", self.follow)
        choose_rows(self.table)
        self.table.setModel(self._model)
        columns = self.table.horizontalHeader()
        assert columns is not None
        columns.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self.table.setSortingEnabled(True)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setShowGrid(False)
        split = QSplitter(Qt.Orientation.Vertical)
        split.addWidget(self.table)
        split.addWidget(self.plot)
        split.setChildrenCollapsible(False)
        layout = QVBoxLayout(self.body)
        layout.addLayout(form)
        layout.addLayout(buttons)
        layout.addWidget(self.progress)
        layout.addWidget(split, 1)
        layout.addWidget(self.status)
        self.export_button.setEnabled(False)
        for widget, name in ((self.rows, "Rows"), (self.table, "Measures"), (self.plot, "Plot")):
            widget.setAccessibleName(name)

    def _list_layers(self, *_: object) -> None:
        for combo, kind in ((self.labels, napari.layers.Labels), (self.image, napari.layers.Image)):
            before = combo.currentData()
            combo.blockSignals(True)
            combo.clear()
            for layer in reversed(self._viewer.layers):
                if isinstance(layer, kind):
                    combo.addItem(layer.name, layer)
            if kind is napari.layers.Image:
                combo.addItem("no intensities", None)
            if before is None and kind is napari.layers.Labels:  # rather one's own than another's
                own = (one for one in self._viewer.layers if isinstance(one, kind))
                before = next((one for one in own if _session(one) is not None), None)
            combo.setCurrentIndex(max(combo.findData(before), 0))
            combo.blockSignals(False)
        self._on_labels()

    def _on_labels(self, *_: object) -> None:
        """Propose an image: a session's own, or one of the shape of the labels."""
        layer = self.labels.currentData()
        session = None if layer is None else _session(layer)
        self.image.setEnabled(session is None)
        if layer is None:
            return
        for index in range(self.image.count()):
            image = self.image.itemData(index)
            is_own = session is not None and image is session.view.layers[0]
            if is_own or (session is None and _fits(image, layer)):
                self.image.setCurrentIndex(index)
                return

    def _go_on(self) -> None:
        """Measure for a moment, and let the window live."""
        end = perf_counter() + _PORTION
        assert self._steps is not None
        try:
            while perf_counter() < end:
                done, total = next(self._steps)
                self.progress.setRange(0, total)
                self.progress.setValue(done)
        except StopIteration as finished:
            self._finish(finished.value)
        except Exception as error:  # whatever a lazy image makes of reading
            self._finish(None)
            self._say(f"Measuring failed: {error}")

    def _finish(self, measures: Measures | None) -> None:
        self._timer.stop()
        self._steps = None
        self.progress.hide()
        self.measure_button.setEnabled(True)
        if measures is None or self._measured is None:
            return
        self.measures = measures
        layer = self._measured[0]
        self.rows.setItemText(1, _TIMES if measures.is_time else _SLICES)
        ids = [one.object for one in measures.objects]
        colours = {i: colour_of_bytes(255 * np.asarray(layer.get_color(i))) for i in ids}
        self.plot.show_measures(measures, colours)
        self.plot.setVisible(len({one.frame for one in measures.frames}) > 1)
        self.export_button.setEnabled(True)
        self._fill()
        self._say("" if ids else "There are no objects in these labels.")

    def _on_rows_chosen(self, *_: object) -> None:
        """Other rows have other columns, by which they are not in order yet."""
        columns = self.table.horizontalHeader()
        assert columns is not None
        columns.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self._fill()

    def _fill(self) -> None:
        if self.measures is None:
            return
        chosen = [key_of(self._model.rows[i.row()]) for i in self.table.selectedIndexes()[:1]]
        has_objects = self.rows.currentIndex() == 0
        rows: Sequence[Row] = self.measures.objects if has_objects else self.measures.frames
        self._model.show(rows, self.measures.is_time)
        letters, heads = self.table.fontMetrics(), self.table.verticalHeader()
        columns = self.table.horizontalHeader()
        assert heads is not None and columns is not None
        self._model.sort(columns.sortIndicatorSection(), columns.sortIndicatorOrder())
        heads.setDefaultSectionSize(letters.height() + 6)
        self.table.resizeColumnsToContents()
        widest = _NAME_LETTERS * letters.averageCharWidth()
        self.table.setColumnWidth(0, min(self.table.columnWidth(0), widest))
        for number, row in enumerate(self._model.rows):
            if key_of(row) in chosen:
                self.table.selectRow(number)

    def _on_row(self, number: int) -> None:
        assert self.measures is not None and self._measured is not None
        row = self._model.rows[number]
        if isinstance(row, FrameMeasure):
            frame = row.frame
        else:
            own = [one for one in self.measures.frames if one.object == row.object]
            frame = max(own, key=lambda one: one.size).frame
        self._measured[0].selected_label = row.object
        self.plot.mark(row.object, frame)
        self._show_frame(frame)

    def _show_frame(self, frame: int) -> None:
        if self._measured is None:
            return
        layer, _, axis = self._measured
        if axis is None:
            return
        if layer not in self._viewer.layers or not 0 <= frame < layer.data.shape[axis]:
            return
        dims = self._viewer.dims
        at = np.array(layer.world_to_data(dims.point))
        at[axis] = frame
        dims.set_point(axis + dims.ndim - layer.ndim, layer.data_to_world(at)[axis])
        self.plot.mark(layer.selected_label, frame)

    def _say(self, text: str) -> None:
        self.status.setText(text)

    def _show_theme(self, *_: object) -> None:
        theme = get_theme(self._viewer.theme)
        text, background = (
            colour_of_bytes(colour.as_rgb_tuple(alpha=False))
            for colour in (theme.text, theme.background)
        )
        self.plot.set_theme(text, background)


def _steps_of(
    layer: napari.layers.Labels, image: napari.layers.Image | None
) -> tuple[Steps, int | None]:
    """What measures a layer frame by frame, and the axis of its data along which frames lie.

    Raises OSError, ValueError with what is wrong.
    """
    session = _session(layer)
    if session is not None:
        return session_steps(session), session.view.key.axis
    if layer.multiscale:
        raise ValueError(f"{layer.name} has several resolutions, so it cannot be measured.")
    labels, volume = layer_volume(layer.data, layer.as_layer_data_tuple()[1])
    axes = volume.axes
    array: Any = None
    if image is not None:
        array = image.data[0] if image.multiscale else image.data
        array = array[..., :3] if image.rgb else array
        if not _fits(image, layer):
            raise ValueError(f"{image.name} has another shape than {layer.name}; choose its image.")
        array = array[np.newaxis] if axes == "yx" else array
        volume = replace(volume, array=array)
    else:
        volume = replace(volume, array=np.broadcast_to(np.float32(np.nan), labels.shape))
    steps = layer_steps(layer)[-3:] if layer.ndim == len(axes) > 2 else None
    return labels_steps(labels, volume, steps=steps), None if axes == "yx" else 0


def _fits(image: napari.layers.Image | None, layer: napari.layers.Labels) -> bool:
    """Whether intensities of an image can be taken for labels."""
    return image is not None and image_shape(image) == tuple(layer.data.shape)


def _session(layer: napari.layers.Labels) -> Session | None:
    """The session that a layer shows all masks of."""
    session = session_of(layer.metadata)
    return session if session is not None and session.written_labels is layer.data else None
