"""The table of objects: colour and name, what is known of each, and its eye and lock."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qtpy.QtCore import QEvent, QItemSelectionModel, QModelIndex, QSize, Qt, Signal
from qtpy.QtGui import QColor, QFont, QFontInfo, QFontMetrics, QIcon
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
)

from napari_sam2.widgets.icons import colour_icon, icon
from napari_sam2.widgets.row_table import RowTable

COLOUR, NAME, PROMPTS, SLICES, SCORE, EYE, LOCK = range(7)
_HEADS = {
    COLOUR: ("", "Click on a colour to choose another one."),
    NAME: (
        "Object",
        "New prompts belong to the selected object. Double-click a name to change it.",
    ),
    PROMPTS: ("Marks", "Clicks, boxes, scribbles, lassos and painted slices."),
    SLICES: ("Slices", "The first and the last slice with a mask."),
    SCORE: ("Score", "How well the model thinks its masks fit, 0 to 1: the mean over slices."),
    EYE: ("", "Click on an eye to hide or show the object, or all selected ones."),
    LOCK: ("", "Click on a lock: the masks of a locked object are never changed."),
}
_UNWRITTEN = {COLOUR: "Colour", EYE: "Shown", LOCK: "Locked"}
"""Heads that are pictures, in words."""
_ALOUD = Qt.ItemDataRole.AccessibleTextRole
"""What a screen reader says."""
_NAME_LETTERS = 16  # of a name that should be seen
_SMALL = 0.85  # of the font


@dataclass(frozen=True)
class ObjectRow:
    """What the table says of one object."""

    id: int
    name: str
    colour: tuple[float, ...]
    """RGB, 0 to 1."""
    prompts: int = 0
    slices: tuple[int, int] | None = None
    """First and last slice with a mask."""
    score: float | None = None
    hidden: bool = False
    locked: bool = False
    note: str = ""
    """More of it, shown as a tooltip."""


def by_number(name: str) -> list[str | int]:
    """What to sort names by: Object 9 comes before Object 10."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


_KEYS: dict[int, tuple[str, Callable[[ObjectRow], Any]]] = {
    COLOUR: ("Click here to put them in the order in which they were made.", lambda row: row.id),
    NAME: ("Click here to sort by name.", lambda row: by_number(row.name)),
    PROMPTS: ("Click here to sort by it.", lambda row: row.prompts),
    SLICES: ("Click here to sort by it.", lambda row: row.slices or (-1, -1)),
    SCORE: ("Click here to sort by it.", lambda row: -1.0 if row.score is None else row.score),
    EYE: ("Click here to have the hidden ones together.", lambda row: row.hidden),
    LOCK: ("Click here to have the locked ones together.", lambda row: row.locked),
}
"""What a click on a heading does, and what it puts rows in order by."""


class ObjectTable(RowTable):
    """One row per object. It changes nothing by itself but says what a person wants."""

    chosen = Signal()
    """Another object is selected."""
    renamed = Signal(int, str)
    colour_asked = Signal(int)
    hide_asked = Signal(list, bool)
    lock_asked = Signal(list, bool)
    """Of these objects: whether they are to be hidden, and locked."""
    delete_asked = Signal()
    """Of the selected objects."""

    def __init__(self) -> None:
        super().__init__(len(_HEADS))
        self._rows: list[ObjectRow] = []
        self._order: list[int] = []
        """Ids as a person has put them in order; those that come later follow."""
        self._ordered_by: int | None = None
        self._pressed_for_all: QModelIndex | None = None
        self._icons: dict[str, QIcon] = {}
        self._small = QFont(self.font())
        self.setToolTip(_HEADS[NAME][1])
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setEditTriggers(
            QAbstractItemView.EditTrigger.DoubleClicked
            | QAbstractItemView.EditTrigger.EditKeyPressed
        )
        self.setShowGrid(False)
        self.setIconSize(QSize(14, 14))
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        _, head = _headers(self)
        head.setMinimumSectionSize(20)
        head.setHighlightSections(False)
        head.setSectionsClickable(True)
        head.sectionClicked.connect(self._put_in_order)
        for column, (text, tip) in _HEADS.items():
            item = QTableWidgetItem(text)
            item.setToolTip(f"{tip} {_KEYS[column][0]}")
            item.setTextAlignment(_alignment(column))
            item.setData(_ALOUD, text or _UNWRITTEN[column])
            self.setHorizontalHeaderItem(column, item)
            is_name = column == NAME
            modes = QHeaderView.ResizeMode
            head.setSectionResizeMode(column, modes.Stretch if is_name else modes.Fixed)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Maximum)
        self.set_ink(QColor(200, 200, 200))
        self.itemSelectionChanged.connect(self.chosen)
        self.itemChanged.connect(self._on_item_changed)
        self.cellClicked.connect(self._on_cell_clicked)

    def showEvent(self, event: Any) -> None:
        """Qt's name."""
        super().showEvent(event)
        self._fit()

    def changeEvent(self, event: Any) -> None:
        """Qt's name."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.FontChange and self.isVisible():
            self._fit()

    def _fit(self) -> None:
        """Make rows and columns as large as the letters need. Numbers are written small, for names
        need the room."""
        rows, head = _headers(self)
        rows.setDefaultSectionSize(self.fontMetrics().height() + 8)
        size = max(8, round(_SMALL * QFontInfo(self.font()).pixelSize()))
        head.setStyleSheet(f"QHeaderView::section {{ padding: 2px; font-size: {size}px; }}")
        self._small.setPixelSize(size)
        metrics = QFontMetrics(self._small)
        widest = {PROMPTS: "Marks", SLICES: "000–000", SCORE: "Score", EYE: "00", LOCK: "00"}
        self.setColumnWidth(COLOUR, self.iconSize().width() + 8)
        for column, text in widest.items():
            self.setColumnWidth(column, metrics.horizontalAdvance(text) + 8)
        self.setMinimumHeight(3 * rows.defaultSectionSize() + head.sizeHint().height())
        self.updateGeometry()
        self._share_width()
        self._fill_all()

    def keyPressEvent(self, event: Any) -> None:
        """Qt's name. What a person without a mouse does with an object."""
        number, key = self.currentRow(), event.key()
        if not 0 <= number < len(self._rows):
            super().keyPressEvent(event)
        elif key == Qt.Key.Key_Delete:
            self.delete_asked.emit()
        elif key == Qt.Key.Key_F2:
            self.editItem(self._item(number, NAME))
        elif key == Qt.Key.Key_Space:
            column = self.currentColumn()
            self._on_cell_clicked(number, column if column in (COLOUR, LOCK) else EYE)
        else:
            super().keyPressEvent(event)

    def mousePressEvent(self, event: Any) -> None:
        """Qt's name. Several objects stay selected when one clicks on the eye or lock of one."""
        index, model = self.indexAt(event.position().toPoint()), self.selectionModel()
        assert model is not None
        is_mark = event.button() == Qt.MouseButton.LeftButton and index.column() in (EYE, LOCK)
        if is_mark and model.isSelected(index) and len(self.selected) > 1:
            self._pressed_for_all = index
        else:
            super().mousePressEvent(event)

    def mouseReleaseEvent(self, event: Any) -> None:
        """Qt's name."""
        pressed, self._pressed_for_all = self._pressed_for_all, None
        if pressed is None:
            super().mouseReleaseEvent(event)
        elif pressed == self.indexAt(event.position().toPoint()):
            self._on_cell_clicked(pressed.row(), pressed.column())

    def resizeEvent(self, event: Any) -> None:
        """Qt's name."""
        super().resizeEvent(event)
        self._share_width()

    def _share_width(self) -> None:
        """Where names would be cut soon, leave out what is least missed."""
        for column in (PROMPTS, SCORE):
            self.setColumnHidden(column, False)
        viewport = self.viewport()
        assert viewport is not None
        others = sum(self.columnWidth(column) for column in _HEADS if column != NAME)
        room = viewport.width() - others
        for column in (PROMPTS, SCORE):
            if room < _NAME_LETTERS * self.fontMetrics().averageCharWidth():
                room += self.columnWidth(column)
                self.setColumnHidden(column, True)

    def sizeHint(self) -> QSize:
        """Qt's name. As high as it needs, up to seven objects."""
        count = min(max(self.rowCount(), 3), 7)
        rows, head = _headers(self)
        return QSize(280, count * rows.defaultSectionSize() + head.sizeHint().height() + 4)

    @property
    def object_id(self) -> int:
        """Id of the object that new prompts belong to; 0 for none."""
        row = self.currentRow()
        return self._rows[row].id if 0 <= row < len(self._rows) else 0

    @object_id.setter
    def object_id(self, object_id: int) -> None:
        for row, known in enumerate(self._rows):
            if known.id == object_id and (row != self.currentRow() or not self.selected):
                self.setCurrentCell(row, NAME)

    @property
    def selected(self) -> list[int]:
        """Ids of all selected objects, in the order of the table."""
        rows = sorted({index.row() for index in self.selectedIndexes()})
        return [self._rows[row].id for row in rows]

    def show_rows(self, rows: Sequence[ObjectRow]) -> None:
        """Show these objects. The selected one stays selected; if it is gone, the last one is."""
        before, chosen = self._rows, self.object_id
        places = {object_id: place for place, object_id in enumerate(self._order)}
        rows = sorted(rows, key=lambda row: places.get(row.id, len(places)))
        if rows == before:
            return
        self.blockSignals(True)
        self._rows = rows
        if [row.id for row in before] != [row.id for row in rows]:
            self.setRowCount(len(rows))
            self.clearSelection()
            known = {row.id for row in rows}
            target = chosen if chosen in known else rows[-1].id if rows else 0
            for number, row in enumerate(rows):
                self._fill(number, row)
                if row.id == target:
                    self.setCurrentCell(number, NAME)
            self.updateGeometry()
        else:
            for number, (old, new) in enumerate(zip(before, rows, strict=True)):
                if old != new:
                    self._fill(number, new)
        self.blockSignals(False)
        if self.object_id != chosen:
            self.chosen.emit()

    def _put_in_order(self, column: int) -> None:
        """By what is in a column, the other way round at the second click. Rows keep their places
        then, whatever changes, until the next click."""
        turned = self._ordered_by == column
        self._ordered_by = None if turned else column
        ordered = sorted(self._rows, key=_KEYS[column][1], reverse=turned)
        self._order = [row.id for row in ordered]
        chosen, model = self.selected, self.selectionModel()
        self.show_rows(self._rows)
        assert model is not None
        flags = QItemSelectionModel.SelectionFlag
        for number, row in enumerate(self._rows):
            if row.id in chosen:
                model.select(
                    self.indexFromItem(self._item(number, NAME)), flags.Select | flags.Rows
                )

    def next_object(self, step: int = 1) -> None:
        """Select the next object, or the one before; after the last comes the first."""
        if self._rows:
            self.setCurrentCell((self.currentRow() + step) % len(self._rows), NAME)

    def set_ink(self, ink: QColor) -> None:
        """Draw eyes and locks in a theme's colour."""
        self._icons = {name: icon(name, ink) for name in ("eye", "eye closed", "lock", "lock open")}
        for column, name in ((EYE, "eye"), (LOCK, "lock")):
            head = self.horizontalHeaderItem(column)
            if head is not None:
                head.setIcon(self._icons[name])
        self._fill_all()

    def _fill_all(self) -> None:
        self.blockSignals(True)
        for number, row in enumerate(self._rows):
            self._fill(number, row)
        self.blockSignals(False)

    def _fill(self, number: int, row: ObjectRow) -> None:
        slices = "" if row.slices is None else range_text(*row.slices)
        score = "" if row.score is None else f"{row.score:.2f}"
        texts = {NAME: row.name, PROMPTS: str(row.prompts or ""), SLICES: slices, SCORE: score}
        for column in _HEADS:
            item = self.item(number, column)
            if item is None:
                item = QTableWidgetItem()
                item.setTextAlignment(_alignment(column))
                item.setFlags(_flags(column))
                self.setItem(number, column, item)
            if column != NAME:
                item.setFont(self._small)
            text = texts.get(column, "")
            if item.text() != text:
                item.setText(text)
            name = f"{row.name}. {row.note}" if row.note else row.name
            item.setToolTip(name if column == NAME else _HEADS[column][1])
        self._item(number, EYE).setData(_ALOUD, "hidden" if row.hidden else "shown")
        self._item(number, LOCK).setData(_ALOUD, "locked" if row.locked else "not locked")
        self._item(number, COLOUR).setIcon(colour_icon(row.colour))
        self._item(number, EYE).setIcon(self._icons["eye closed" if row.hidden else "eye"])
        self._item(number, LOCK).setIcon(self._icons["lock" if row.locked else "lock open"])

    def _item(self, row: int, column: int) -> QTableWidgetItem:
        item = self.item(row, column)
        assert item is not None
        return item

    def _on_item_changed(self, item: QTableWidgetItem) -> None:
        if item.column() != NAME or not 0 <= item.row() < len(self._rows):
            return
        row, name = self._rows[item.row()], item.text().strip()
        if name and name != row.name:
            self.renamed.emit(row.id, name)
        elif not name:
            item.setText(row.name)

    def _on_cell_clicked(self, number: int, column: int) -> None:
        row, selected = self._rows[number], self.selected
        ids = selected if row.id in selected else [row.id]
        if column == COLOUR:
            self.colour_asked.emit(row.id)
        elif column == EYE:
            self.hide_asked.emit(ids, not row.hidden)
        elif column == LOCK:
            self.lock_asked.emit(ids, not row.locked)

    def __iter__(self) -> Iterator[ObjectRow]:
        return iter(self._rows)


def _headers(table: QTableWidget) -> tuple[QHeaderView, QHeaderView]:
    """Of rows and of columns."""
    rows, columns = table.verticalHeader(), table.horizontalHeader()
    assert rows is not None
    assert columns is not None
    return rows, columns


def _flags(column: int) -> Any:
    flags = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
    return flags | Qt.ItemFlag.ItemIsEditable if column == NAME else flags


def _alignment(column: int) -> Any:
    side = Qt.AlignmentFlag.AlignLeft if column == NAME else Qt.AlignmentFlag.AlignHCenter
    return side | Qt.AlignmentFlag.AlignVCenter


def range_text(first: int, last: int) -> str:
    """ "3", "3–5"."""
    return str(first) if first == last else f"{first}–{last}"
