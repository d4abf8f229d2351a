"""The rows of the table of measures, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt

from napari_sam2.measures import FrameMeasure, ObjectMeasure
from napari_sam2.widgets.measures_plot import pretty
from napari_sam2.widgets.object_table import by_number, range_text

Row = FrameMeasure | ObjectMeasure


def key_of(row: Row) -> tuple[int, int | None]:
    """What a row is of: the object, and the frame."""
    return row.object, row.frame if isinstance(row, FrameMeasure) else None


class MeasuresRows(QAbstractTableModel):
    """Rows as the table shows them."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: Sequence[Row] = ()
        self._is_time = False

    def show(self, rows: Sequence[Row], is_time: bool) -> None:
        """Show other rows."""
        self.beginResetModel()
        self.rows, self._is_time = rows, is_time
        self.endResetModel()

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Qt's name. By what a column shows; -1 leaves the rows as they are."""
        if not 0 <= column < self.columnCount():
            return
        self.layoutAboutToBeChanged.emit()
        before, chosen = self.rows, self.persistentIndexList()
        self.rows = sorted(
            before,
            key=lambda row: _rank(list(self._cells(row).values())[column]),
            reverse=order == Qt.SortOrder.DescendingOrder,
        )
        places = {key_of(row): number for number, row in enumerate(self.rows)}
        moved = [self.index(places[key_of(before[i.row()])], i.column()) for i in chosen]
        self.changePersistentIndexList(chosen, moved)
        self.layoutChanged.emit()

    def rowCount(self, parent: QModelIndex | None = None) -> int:
        """Qt's name."""
        return len(self.rows)

    def columnCount(self, parent: QModelIndex | None = None) -> int:
        """Qt's name."""
        return len(self._cells(self.rows[0])) if self.rows else 0

    def headerData(self, section: int, orientation: Any, role: int = 0) -> Any:
        """Qt's name."""
        is_head = orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole
        return list(self._cells(self.rows[0]))[section] if is_head and self.rows else None

    def data(self, index: QModelIndex, role: int = 0) -> Any:
        """Qt's name."""
        if role == Qt.ItemDataRole.TextAlignmentRole and index.column() > 0:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        if role not in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole):
            return None
        return list(self._cells(self.rows[index.row()]).values())[index.column()]

    def _cells(self, row: Row) -> dict[str, str]:
        """Head -> text."""
        kind = "Volume" if row.unit.endswith("3") else "Area"
        size, unit = row.size, pretty(row.unit)
        if row.unit == "mm3" and isinstance(row, ObjectMeasure):
            size, unit = size / 1000, "ml"
        cells = {"Object": row.name}
        if isinstance(row, FrameMeasure):
            cells["Time" if self._is_time else "Slice"] = str(row.frame)
        cells[f"{kind} ({unit})"] = f"{size:.4g}"
        cells |= {"Mean": _text(row.mean), "SD": _text(row.spread), "Score": _text(row.score, 2)}
        cells["Marks"] = "–" if row.prompts is None else str(row.prompts)
        if isinstance(row, ObjectMeasure):
            cells["Times" if self._is_time else "Slices"] = range_text(row.first, row.last)
            cells["Approved"] = "–" if row.approved is None else f"{row.approved:.0%}"
        else:
            cells["Approved"] = "yes" if row.approved else ""
        cells["Centroid"] = ", ".join(f"{part:.1f}" for part in row.centroid)
        return cells


def _rank(text: str) -> tuple[int, float, list[str | int]]:
    """What to sort cells by: first those without a value, then numbers, then names."""
    try:
        return 1, float(text.removesuffix("%")), []
    except ValueError:
        return 2 if text.strip("–") else 0, 0.0, by_number(text)


def _text(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}g}"
