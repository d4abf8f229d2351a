"""The widgets of the plugin's menu, and where their docks lie."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QEvent, QObject, QSize, QTimer, Signal
from qtpy.QtWidgets import (
    QDockWidget,
    QFrame,
    QMainWindow,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)


class Docked(QWidget):
    """A widget of the plugin's menu. Where it is too small for what is in it, that scrolls.

    Its dock becomes a tab beside another of these that is in the same place, when it is first
    shown; a person may drag it elsewhere.
    """

    placed = Signal(object)
    """Its dock lies in this window now, for the first time."""

    def __init__(self, body: QWidget | None = None, footer: QWidget | None = None) -> None:
        """body: what is in it. footer: what follows it, and stays in sight while it scrolls."""
        super().__init__()
        self.body = body or QWidget()
        area = scrolling(self.body)
        area.setFrameShape(QFrame.Shape.NoFrame)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(area)
        if footer is not None:
            area.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
            # Else Qt keeps the dock as wide as it had to be before napari's font was there.
            footer.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
            layout.addWidget(footer)
        self._place = QTimer(self)
        self._place.setSingleShot(True)
        self._place.timeout.connect(self._share_place)
        self._has_place = False

    def showEvent(self, event: Any) -> None:
        """Qt's name. napari places the dock after that."""
        super().showEvent(event)
        if not self._has_place:
            self._has_place = True
            self._place.start()

    def _share_place(self) -> None:
        dock: QWidget | None = self
        while dock is not None and not isinstance(dock, QDockWidget):
            dock = dock.parentWidget()
        window = None if dock is None else dock.parentWidget()
        if not isinstance(dock, QDockWidget) or not isinstance(window, QMainWindow):
            return
        self.placed.emit(window)
        area = window.dockWidgetArea(dock)
        for other in window.findChildren(QDockWidget):
            is_there = other.isVisible() and not other.isFloating()
            if other is dock or not is_there or window.dockWidgetArea(other) != area:
                continue
            if any(type(one) is not type(self) for one in other.findChildren(Docked)):
                window.tabifyDockWidget(other, dock)
                dock.raise_()
                return


class _Scrolling(QScrollArea):
    """As large as what is in it, where there is room; Qt's own is some lines at most."""

    def sizeHint(self) -> QSize:
        """Qt's name."""
        body, bar = self.widget(), self.verticalScrollBar()
        assert body is not None and bar is not None
        frame, size = 2 * self.frameWidth(), body.sizeHint()
        return QSize(size.width() + bar.sizeHint().width() + frame, size.height() + frame)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Qt's name. What is in it may need more room than before."""
        if event is not None and event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return bool(super().eventFilter(watched, event))


def scrolling(body: QWidget) -> QScrollArea:
    """A widget that scrolls where it has too little room."""
    area = _Scrolling()
    area.setWidgetResizable(True)
    area.setWidget(body)
    return area
