"""The window "Second reader": another person's masks beside one's own, difference by difference."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import napari.layers
import numpy as np
from napari.utils.colormaps import DirectLabelColormap
from numpy.typing import NDArray
from qtpy.QtCore import QRectF, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QColor, QPainter
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QSizePolicy,
    QTableWidgetItem,
    QToolTip,
    QVBoxLayout,
    QWidget,
)

from napari_sam2.counted import counted
from napari_sam2.prompt_layers import new_labels_layer
from napari_sam2.second_reader import ONLY_MINE, ONLY_THEIRS, OTHER_OBJECT, SecondReading
from napari_sam2.session import Session
from napari_sam2.widgets.canvas import remove_layers
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.docking import ToolWindow, push_button
from napari_sam2.widgets.events import Connections, call
from napari_sam2.widgets.marking import Marking
from napari_sam2.widgets.mask_layers import check_grid
from napari_sam2.widgets.proposed_files import folder_of
from napari_sam2.widgets.row_table import RowTable
from napari_sam2.widgets.workspace import Workspace

_FILTER = "Masks (*.sam2session *.nii *.nii.gz *.tif *.tiff *.nrrd *.dcm);;All files (*)"
_FROM_FILE = "a file …"
_HEADS = {
    "Yours": "Your objects; below them those that only they have.",
    "Theirs": "Their object that belongs to it: of the same name, or the one that it lies on.",
    "Dice": "2 x shared pixels / (your pixels + theirs), over all slices; 1 is full agreement.",
    "Slices": "Slices that differ and are not settled yet.",
}
DIFFERENCE_COLOURS: dict[int | None, str] = {
    ONLY_MINE: "#ffff00",
    ONLY_THEIRS: "#0050ff",
    OTHER_OBJECT: "#ff96d7",  # lighter than the blue, also for who sees no red
}
_LEGEND = "yellow: only yours · blue: only theirs · pink: both, but another object"
_PAUSE_MS = 100


class DifferenceStrip(QWidget):
    """Slices from left to right, with a bar for the pixels that differ on each."""

    go_to = Signal(int)
    """A slice that the person wants to see."""

    def __init__(self) -> None:
        super().__init__()
        self.differing: NDArray[np.int64] = np.zeros(0, np.int64)
        """(slices,) pixels that differ and are not settled."""
        self.dice: NDArray[np.float64] = np.zeros(0)
        self.current = 0
        """The slice that the viewer shows."""
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setMouseTracking(True)
        self.setCursor(Qt.CursorShape.PointingHandCursor)

    def sizeHint(self) -> QSize:
        """Qt's name."""
        return QSize(200, 40)

    def show_slices(
        self, differing: NDArray[np.int64], dice: NDArray[np.float64], current: int
    ) -> None:
        """Show an object's slices, and which one the viewer shows."""
        self.differing, self.dice, self.current = differing, dice, current
        self.update()

    def show_place(self, current: int) -> None:
        """Show which slice the viewer shows."""
        self.current = current
        self.update()

    def slice_at(self, x: float) -> int:
        """The slice that lies at a horizontal position, in pixels."""
        count = len(self.differing)
        return int(np.clip(x / max(1, self.width()) * count, 0, max(0, count - 1)))

    def paintEvent(self, event: Any) -> None:
        """Qt's name."""
        painter = QPainter(self)
        width, height = self.width(), self.height()
        ink = self.palette().text().color()
        ground = QColor(ink)
        ground.setAlpha(40)
        painter.fillRect(0, 0, width, height, ground)
        if not len(self.differing):
            return
        each = width / len(self.differing)
        highest = max(1, int(self.differing.max()))
        for frame in np.flatnonzero(self.differing).tolist():
            bar = max(2.0, (height - 2) * float(self.differing[frame]) / highest)
            area = QRectF(frame * each, height - bar, max(1.0, each), bar)
            painter.fillRect(area, QColor(240, 120, 40))
        painter.setPen(ink)
        painter.drawRect(QRectF(self.current * each, 0, max(2.0, each), height - 1))

    def mousePressEvent(self, event: Any) -> None:
        """Qt's name."""
        if len(self.differing):
            self.go_to.emit(self.slice_at(event.position().x()))

    def mouseMoveEvent(self, event: Any) -> None:
        """Qt's name."""
        if not len(self.differing):
            return
        frame = self.slice_at(event.position().x())
        if event.buttons() & Qt.MouseButton.LeftButton:
            self.go_to.emit(frame)
        dice = self.dice[frame]
        text = "no mask" if np.isnan(dice) else f"Dice {dice:.2f}"
        text = f"Slice {frame}: {text}, {counted(self.differing[frame], 'pixel')} to settle"
        QToolTip.showText(event.globalPosition().toPoint(), text, self)


class SecondReader(ToolWindow):
    """Shows where another person's masks differ, and takes theirs or approves yours."""

    def __init__(self, context: Context, marking: Marking) -> None:
        super().__init__(context.panel, "Second reader")
        self._context = context
        self._marking = marking
        self.reading: SecondReading | None = None
        """What is compared; None before masks are chosen."""
        self.theirs: napari.layers.Labels | None = None
        """Their masks, as outlines."""
        self._outlined: dict[int | None, Any] = {}  # the colours of their outlines
        self.differences: napari.layers.Labels | None = None
        """Where the two differ."""
        self._changed: dict[str, Any] = {}  # indices of slices
        self._meanwhile: dict[str, Any] = {}  # of those that change while other masks are read
        self._masks = Connections()
        self._events = Connections()
        self._compared_with: napari.layers.Labels | str | None = None
        """What the list of sources shows: a layer, or that it is a file."""
        self._row_of = 0
        """The object whose row was last scrolled to."""
        self._seen: set[tuple[int, int]] = set()
        self._claim: tuple[str, Callable[[SecondReading], bool]] | None = None
        """What was said to be settled, and whether it still is."""

        self.source = QComboBox()
        self.source.setToolTip("Where the other person's masks are: a labels layer, or a file.")
        self.table = RowTable(len(_HEADS))
        self.strip = DifferenceStrip()
        self.next_button = push_button(
            "Next difference", "Go where the most pixels differ that are not settled yet."
        )
        self.mine_button = push_button(
            "Mine, here", "Your mask on this slice is right: approve it."
        )
        self.theirs_button = push_button(
            "Theirs, here", "Take their mask on this slice, and approve it."
        )
        self.all_button = push_button(
            "Theirs, all slices", "Take their masks on all slices that are not settled."
        )
        self.add_button = push_button(
            "Add theirs", "Make an object that only they have yours, too."
        )
        self.status = QLabel("Choose whose masks to compare yours with.")
        self.status.setWordWrap(True)
        self._lay_out()

        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_PAUSE_MS)
        self._timer.timeout.connect(self._show)
        self.source.activated.connect(self._on_source)
        self.table.itemSelectionChanged.connect(self._on_row)
        self.strip.go_to.connect(self._on_slice)
        for button, action in (
            (self.next_button, self.next_difference),
            (self.mine_button, self.accept_mine),
            (self.theirs_button, partial(self.accept_theirs, here=True)),
            (self.all_button, partial(self.accept_theirs, here=False)),
            (self.add_button, self.add),
        ):
            button.clicked.connect(partial(call, action))
        context.changed.connect(self._later)
        self._events.connect(context.viewer.dims.events.point, self._show_place)
        self._show_state()

    # -- for people, scripts and tests ---------------------------------------------------------

    def open(self) -> None:
        """Show the window, with the labels layers that there are now."""
        self._list_sources()
        self.present()

    def compare(self, other: napari.layers.Labels | str | os.PathLike[str]) -> None:
        """Compare with a labels layer or a file, which is read in the background."""
        work = self._context.work
        if work is None:
            self.status.setText("Open an image first, and a session of it.")
            return
        self._marking.take_over_strokes()
        source: napari.layers.Labels | str = _FROM_FILE
        if isinstance(other, napari.layers.Labels):
            source = layer = other
            if not self._context.attempt(
                lambda: check_grid(work.image, layer, work.session.view.shape)
            ):
                self.status.setText(self._context.panel.status.text())
                self._show_source()
                return
            read = partial(_of_layer, work.session, layer)
        else:
            read = partial(SecondReading.open, work.session, other)
        self._follow(work.session)
        self._meanwhile.clear()
        self.status.setText("Comparing …")
        self._context.runner.request(partial(_read, read), partial(self._on_read, work, source))

    def clear(self) -> None:
        """Forget the other masks, and take their layers away."""
        self._follow(None)
        remove_layers(self._context.viewer.layers, [self.theirs, self.differences])
        self.reading = self.theirs = self.differences = self._compared_with = None
        self._show_source()
        self._changed.clear()
        self._seen.clear()
        self._show()

    def next_difference(self) -> None:
        """Go to the largest difference that is not settled, of all objects."""
        if self.reading is None:
            return
        place = self.reading.next_difference(self._seen)
        if place is None:  # all were looked at; those that are left come again
            self._seen.clear()
            place = self.reading.next_difference()
        if place is None:
            mine, other = len(self.reading.only_mine), len(self.reading.only_theirs)
            rest = f" {mine} only you have, {other} only they." if mine or other else ""
            self._say_settled(
                f"All that both have is settled: you agree, or you have decided.{rest}",
                lambda reading: reading.next_difference() is None,
            )
            return
        self._seen.add(place)
        self._context.panel.object_id, frame = place
        self._context.go_to(frame)
        self.status.setText(f"{self._named(frame)}: whose mask is right?")
        self._show()

    def accept_mine(self) -> None:
        """Approve your mask of the selected object on the slice that is shown."""
        frames = [self._context.frame]
        self._decide(lambda reading, own: reading.accept_mine(own, frames), frames)

    def accept_theirs(self, here: bool = True) -> None:
        """Take their mask of the selected object on this slice, or on all that are not settled."""
        frames = [self._context.frame] if here else None
        self._decide(lambda reading, own: reading.accept_theirs(own, frames), frames)

    def add(self) -> None:
        """Make the object of theirs that is selected in the table yours, too."""
        reading, their_id = self.reading, self._their_only()
        if reading is not None and their_id is not None:
            added: list[int] = []
            if self._context.attempt(lambda: added.append(reading.add(their_id))):
                self._context.changed.emit()
                self._context.panel.object_id = added[0]
                self.status.setText(f"{self._context.name()} is yours, too. Undo takes it back.")
            self._show()

    def shut_down(self) -> None:
        """Let go of the session; the layers stay."""
        self._timer.stop()
        self._events.disconnect_all()
        self._follow(None)
        self.reading = None

    # -- what is shown -------------------------------------------------------------------------

    def _show(self) -> None:
        """All anew: what has changed in the layer, the table, and the strip."""
        reading = self.reading
        if reading is not None and reading.session is not self._context.session:
            self.clear()  # another image, or another session of it
            return
        if reading is not None and self.differences is not None and self._changed:
            changed, self._changed = self._changed, {}  # more may change on the way
            for index in changed.values():
                self.differences.data[index] = reading.differences(index)
            self.differences.refresh()
        self._show_colours()
        if self.isVisible():
            self._show_rows()
        self._show_strip()
        self._show_state()
        self._show_claim()

    def _show_colours(self) -> None:
        """Theirs in the colours of yours, and white where you do not have the object."""
        reading, work = self.reading, self._context.work
        if reading is None or self.theirs is None or work is None:
            return
        colours: dict[int | None, Any] = {None: "white", 0: "transparent"}
        for own, their_id in reading.pairs.items():
            if own in reading.session.objects:
                colours[their_id] = tuple(work.masks.colour_of(own))
        if colours != self._outlined:
            self._outlined = colours
            self.theirs.colormap = DirectLabelColormap(color_dict=colours)

    def _named(self, frame: int | None = None) -> str:
        """The selected object, and the slice where there are several."""
        session = self._context.session
        has_slices = frame is not None and session is not None and len(session.view) > 1
        return f"{self._context.name()}, slice {frame}" if has_slices else self._context.name()

    def _say_settled(self, text: str, is_settled: Callable[[SecondReading], bool]) -> None:
        """Say so, for as long as it is."""
        self.status.setText(text)
        self._claim = text, is_settled

    def _show_claim(self) -> None:
        if self.reading is None or self._claim is None:
            return
        text, is_settled = self._claim
        if self.status.text() != text:
            self._claim = None
        elif not is_settled(self.reading):
            self._claim = None
            self.status.setText("That is not settled any more: press Next difference.")

    def _show_rows(self) -> None:
        reading, rows, is_new = self.reading, [], False
        if reading is not None:
            for own, info in reading.session.objects.items():
                agreement = reading.agreement(own)
                dice, unsettled = agreement.total_dice, agreement.unsettled
                their_name = reading.names.get(reading.pairs.get(own, 0), "–")
                text = "–" if dice is None else f"{dice:.3f}"
                rows.append((own, info.name, their_name, text, str(np.count_nonzero(unsettled))))
            rows += [(-i, "–", reading.names[i], "–", "") for i in reading.only_theirs]
        self.table.blockSignals(True)
        self.table.setRowCount(len(rows))
        for row, (key, *texts) in enumerate(rows):
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                item.setData(Qt.ItemDataRole.UserRole, key)
                item.setToolTip(text)
                if column > 1:
                    item.setTextAlignment(
                        Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                    )
                self.table.setItem(row, column, item)
            if key == self._context.panel.object_id:
                self.table.selectRow(row)
                is_new = key != self._row_of
        if is_new:  # once, so that a person may scroll on
            self._row_of = self._context.panel.object_id
            self.table.scrollTo(self.table.currentIndex())
        self.table.blockSignals(False)

    def _show_strip(self) -> None:
        reading, own, their_id = self.reading, self._context.panel.object_id, self._their_only()
        if reading is None or (their_id is None and own not in reading.session.objects):
            self.strip.show_slices(np.zeros(0, np.int64), np.zeros(0), 0)
            return
        agreement = reading.agreement(own) if their_id is None else reading.only(their_id)
        self.strip.show_slices(agreement.unsettled, agreement.dice, self._context.frame)

    def _show_place(self, *_: object) -> None:
        if self.reading is not None and self._context.work is not None:
            self.strip.show_place(self._context.frame)

    def _show_source(self) -> None:
        self.source.setCurrentIndex(max(0, self.source.findData(self._compared_with)))

    def _show_state(self) -> None:
        """What can be done: yours and theirs are chosen of where both have the object."""
        has_object = self.reading is not None and bool(self._context.panel.object_id)
        has_object = has_object and self._their_only() is None
        for button in (self.mine_button, self.theirs_button, self.all_button):
            button.setEnabled(has_object)
        self.next_button.setEnabled(self.reading is not None)
        self.add_button.setEnabled(self._their_only() is not None)

    def _list_sources(self) -> None:
        self.source.blockSignals(True)
        self.source.clear()
        self.source.addItem("choose …", None)
        self.source.addItem(_FROM_FILE, _FROM_FILE)
        for layer in self._context.viewer.layers:
            own = layer in (self.theirs, self.differences, self._context.labels)
            if isinstance(layer, napari.layers.Labels) and not own:
                self.source.addItem(layer.name, layer)
        self._show_source()
        self.source.blockSignals(False)

    def _their_only(self) -> int | None:
        """The object in the row that is selected, if only they have it."""
        items = self.table.selectedItems()
        key = items[0].data(Qt.ItemDataRole.UserRole) if items else 0
        return -key if key < 0 else None

    def _lay_out(self) -> None:
        top = QHBoxLayout()
        source = QLabel("Compare with")
        source.setBuddy(self.source)
        self.table.setAccessibleName("Objects")
        self.strip.setAccessibleName("Differences on the slices")
        top.addWidget(source)
        top.addWidget(self.source, 1)
        head = self.table.horizontalHeader()
        assert head is not None
        for column, (text, tip) in enumerate(_HEADS.items()):
            item = QTableWidgetItem(text)
            item.setToolTip(tip)
            self.table.setHorizontalHeaderItem(column, item)
            modes = QHeaderView.ResizeMode
            head.setSectionResizeMode(
                column, modes.Stretch if column < 2 else modes.ResizeToContents
            )
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        buttons = QGridLayout()
        buttons.addWidget(self.next_button, 0, 0, 1, 2)
        buttons.addWidget(self.mine_button, 1, 0)
        buttons.addWidget(self.theirs_button, 1, 1)
        buttons.addWidget(self.all_button, 2, 0)
        buttons.addWidget(self.add_button, 2, 1)
        legend = QLabel(_LEGEND)
        legend.setWordWrap(True)
        layout = QVBoxLayout(self)
        layout.addLayout(top)
        layout.addWidget(self.table, 1)
        layout.addWidget(self.strip)
        layout.addLayout(buttons)
        layout.addWidget(legend)
        layout.addWidget(self.status)

    def sizeHint(self) -> QSize:
        """Qt's name."""
        return QSize(380, 420)

    def showEvent(self, event: Any) -> None:
        """Qt's name."""
        super().showEvent(event)
        self._show()

    # -- what happens --------------------------------------------------------------------------

    def _decide(
        self, action: Callable[[SecondReading, int], object], frames: list[int] | None
    ) -> None:
        """frames: that are settled by it; None for all."""
        reading, own = self.reading, self._context.panel.object_id
        if reading is None or own not in reading.session.objects:
            return
        self._marking.take_over_strokes()
        session, key = reading.session, reading.session.view.key

        def is_settled(reading: SecondReading) -> bool:
            if session.view.key != key:
                return True  # it was said of other slices
            unsettled = reading.agreement(own).unsettled
            return own in session.objects and not unsettled[frames or slice(None)].any()

        if self._context.attempt(lambda: action(reading, own)):
            text = f"{self._named(*frames or ())}: settled. Undo takes it back."
            self._say_settled(text, is_settled)
        else:
            self.status.setText(self._context.panel.status.text())
        self._context.changed.emit()
        self._show()

    def _on_source(self, row: int) -> None:
        chosen = self.source.itemData(row)
        if chosen == _FROM_FILE:
            work, title = self._context.work, "Another person's masks"
            start = "" if work is None else folder_of(work.image)
            chosen = QFileDialog.getOpenFileName(self, title, start, _FILTER)[0]
        if chosen:
            self.compare(chosen)
        else:
            self._show_source()

    def _on_read(
        self,
        work: Workspace,
        source: napari.layers.Labels | str,
        result: tuple[SecondReading, NDArray[np.uint8]] | Exception,
    ) -> None:
        if work is not self._context.work:
            return
        if isinstance(result, Exception):  # what was compared before still is
            self.status.setText(self._context.tell(result))
            self._show_source()
            return
        self.clear()
        self._compared_with = source
        self._show_source()
        self.reading, found = result
        self._follow(work.session)
        self._changed = dict(self._meanwhile)
        view = work.session.view
        axis = None if view.channels is None else view.channels.axis
        self.theirs = new_labels_layer(work.image, self.reading.labels, axis)
        self.theirs.name = f"theirs: {self.reading.reader}"
        self._outlined = {}
        self.theirs.contour = 1
        self.theirs.opacity = 1.0
        self.differences = new_labels_layer(work.image, found, axis)
        self.differences.name = "differences"
        colours: dict[int | None, Any] = {None: "transparent", 0: "transparent"}
        colours |= DIFFERENCE_COLOURS
        self.differences.colormap = DirectLabelColormap(color_dict=colours)
        layers = self._context.viewer.layers
        active = layers.selection.active
        for layer in (self.differences, self.theirs):
            self._context.viewer.add_layer(layer)
            layer.editable = False
        layers.selection.active = active
        count = len(self.reading.pairs)
        many = "1 object is" if count == 1 else f"{count} objects are"
        mine, other = len(self.reading.only_mine), len(self.reading.only_theirs)
        self.status.setText(
            f"{many} compared; {mine} only you have, {other} only they. Theirs are outlines in "
            "the viewer."
        )
        self._show()

    def _follow(self, session: Session | None) -> None:
        """Be told of the changes of a session, and of no other."""
        self._masks.disconnect_all()
        if session is not None:
            self._masks.connect(session.masks_changed, self._on_masks)

    def _on_masks(self, index: Any) -> None:
        self._changed[str(index)] = self._meanwhile[str(index)] = index
        self._later()

    def _later(self) -> None:
        if self.reading is not None and not self._timer.isActive():
            self._timer.start()

    def _on_row(self) -> None:
        items = self.table.selectedItems()
        key = items[0].data(Qt.ItemDataRole.UserRole) if items else 0
        if key > 0:
            self._context.panel.object_id = key
        self._show_strip()
        self._show_state()

    def _on_slice(self, frame: int) -> None:
        self._context.go_to(frame)
        self._show_strip()


def _of_layer(session: Session, layer: napari.layers.Labels) -> SecondReading:
    return SecondReading(session, np.asarray(layer.data), reader=layer.name)


def _read(
    make: Callable[[], SecondReading],
) -> tuple[SecondReading, NDArray[np.uint8]] | Exception:
    """Their masks and all differences, or why they cannot be compared."""
    try:
        return _with_picture(make())
    except (ValueError, OSError) as error:
        return error


def _with_picture(reading: SecondReading) -> tuple[SecondReading, NDArray[np.uint8]]:
    """With all differences, slice by slice."""
    view = reading.session.view
    found = np.zeros(view.shape, np.uint8)
    for index in np.ndindex(*view.shape[:-2]):
        found[index] = reading.differences(index)
    return reading, found
