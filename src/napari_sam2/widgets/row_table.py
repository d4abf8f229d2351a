"""Tables whose rows are chosen, alike in all widgets."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QAbstractItemView, QTableView, QTableWidget


class RowTable(QTableWidget):
    """Rows to choose of, with Up and Down. Left and Right are the viewer's: they change the slice;
    with Shift they go from cell to cell."""

    def __init__(self, columns: int) -> None:
        super().__init__(0, columns)
        choose_rows(self)

    def keyPressEvent(self, event: Any) -> None:
        """Qt's name."""
        is_sideways = event.key() in (Qt.Key.Key_Left, Qt.Key.Key_Right)
        if is_sideways and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            event.ignore()
        else:
            super().keyPressEvent(event)


def choose_rows(table: QTableView) -> None:
    """Have whole rows chosen in a table, without numbers. Tab goes on to what comes next. Names
    that are too long are cut in their middle, for they often differ at their ends."""
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setTabKeyNavigation(False)
    table.setWordWrap(False)
    table.setTextElideMode(Qt.TextElideMode.ElideMiddle)
    numbers = table.verticalHeader()
    assert numbers is not None
    numbers.hide()
