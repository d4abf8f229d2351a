"""The widgets of the plugin's menu, where their docks lie, and windows beside them."""

from __future__ import annotations

from typing import Any

from napari.settings import get_settings
from qtpy.QtCore import QEvent, QObject, QSize, Qt, QTimer, Signal
from qtpy.QtWidgets import (
    QApplication,
    QDockWidget,
    QFrame,
    QMainWindow,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_sam2.counted import counted

_SIZED = "QTableView, QHeaderView, QLineEdit, QToolButton, ScoreCurve"
"""What napari leaves in the size of the system's letters when a person chooses larger ones."""


class _InViewer(QWidget):
    """Its letters are as large as the viewer's, and keys that nothing in it takes are the viewer's:
    the arrows, which change the slice."""

    def __init__(
        self, parent: QWidget | None = None, kind: Qt.WindowType = Qt.WindowType.Widget
    ) -> None:
        super().__init__(parent, kind)
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)

    def keyPressEvent(self, event: Any) -> None:
        """Qt's name."""
        self._hand_on(event)

    def keyReleaseEvent(self, event: Any) -> None:
        """Qt's name."""
        self._hand_on(event)

    def changeEvent(self, event: Any) -> None:
        """Qt's name. The person may have chosen another size of letters."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.StyleChange:
            sheet = f"{_SIZED} {{ font-size: {get_settings().appearance.font_size}pt; }}"
            if sheet != self.styleSheet():
                self.setStyleSheet(sheet)

    def _hand_on(self, event: Any) -> None:
        window = self.parentWidget()
        while window is not None and not isinstance(window, QMainWindow):
            window = window.parentWidget()
        if window is not None:
            QApplication.sendEvent(window, event)


class Docked(_InViewer):
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


class ToolWindow(_InViewer):
    """A window of its own, which belongs to a panel."""

    def __init__(self, panel: QWidget, title: str) -> None:
        super().__init__(panel, Qt.WindowType.Tool)
        self.setWindowTitle(title)

    def keyPressEvent(self, event: Any) -> None:
        """Qt's name. Escape closes it; what it shows is there when it is opened again."""
        if event.key() == Qt.Key.Key_Escape:
            self.close()
        else:
            super().keyPressEvent(event)

    def present(self) -> None:
        """Show it in front, with none of its lists changed by the next key."""
        self.show()
        self.raise_()
        self.setFocus()


class _Scrolling(QScrollArea):
    """As large as what is in it, where there is room; Qt's own is some lines at most."""

    def __init__(self) -> None:
        super().__init__()
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)

    def keyPressEvent(self, event: Any) -> None:
        """Qt's name. Arrows do not scroll: they are the viewer's."""
        event.ignore()

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


def push_button(text: str, tip: str) -> QPushButton:
    """One that can be reached with Tab; a click leaves the keys where they are."""
    made = QPushButton(text)
    made.setToolTip(tip)
    made.setFocusPolicy(Qt.FocusPolicy.TabFocus)
    return made


def count_in(box: QSpinBox, thing: str) -> None:
    """Let a box say "1 slice" and "2 slices"."""

    def show(number: int) -> None:
        box.setSuffix(counted(number, thing).removeprefix(str(number)))

    box.valueChanged.connect(show)
    show(box.value())


def scrolling(body: QWidget) -> QScrollArea:
    """A widget that scrolls where it has too little room."""
    area = _Scrolling()
    area.setWidgetResizable(True)
    area.setWidget(body)
    return area
