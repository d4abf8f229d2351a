"""The controls of the widget "SAM 2": what it looks like, and nothing of what it does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from qtpy.QtCore import QEvent, QObject, QPoint, QSize, Qt
from qtpy.QtGui import QColor, QIcon, QPainter, QPen, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QFormLayout,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

INCLUDE, EXCLUDE, BOX = "include", "exclude", "box"

_DEVICES = {
    "auto": ("automatic", "The graphics card if there is one, else the processor."),
    "cpu": ("processor (CPU)", "Works everywhere; slow with the larger models."),
    "cuda": ("NVIDIA GPU (CUDA)", "Needs an NVIDIA card and a PyTorch built for it."),
    "mps": ("Apple GPU (MPS)", "Needs a Mac with Apple silicon."),
}
_DIRECTIONS = {
    "both": ("both ways", "Every slice follows from the nearest slice that has prompts."),
    "forward": ("forward", "From the slices with prompts towards higher slice numbers."),
    "backward": ("backward", "From the slices with prompts towards lower slice numbers."),
}
_MODES = {
    INCLUDE: ("Include", "Click on the object.  Key: I"),
    EXCLUDE: ("Exclude", "Click where the mask should not be.  Key: E, or Shift and click"),
    BOX: ("Box", "Drag a box around the object.  Key: B"),
}


class Panel(QWidget):
    """All controls, from top to bottom. It holds no state but what the person sees."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.images = _combo("The image to segment. Its contrast limits are what SAM 2 sees.")
        self.models = _combo(
            "The network. nano comes with the plugin and is quick; the larger ones see better, "
            "and are downloaded once."
        )
        self.devices = _combo("Where the network runs.", _DEVICES)

        self.objects = QListWidget()
        self.objects.setToolTip("The objects. New clicks and boxes belong to the selected one.")
        self.objects.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.objects.setIconSize(QSize(14, 14))
        self.objects.setMinimumHeight(60)
        self.objects.setMaximumHeight(120)
        self.new = _button("New object", "Begin another object.  Key: N")
        self.delete = _button("Delete", "Delete the selected object, its prompts and its mask.")

        self.modes = {mode: _mode_button(mode, *text) for mode, text in _MODES.items()}

        self.direction = _combo("Which way to follow the objects from their prompts.", _DIRECTIONS)
        self.propagate = _button("Propagate", "")
        self.stop = _button("Stop", "Stop; the slices done so far are kept.")
        self.progress = QProgressBar()
        self.progress.setToolTip("Slices done in this propagation.")

        self.status = QLabel()
        self.status.setWordWrap(True)
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.status.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        self.status.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.MinimumExpanding)
        self.status.setMinimumHeight(5 * self.fontMetrics().lineSpacing())
        self.status.setToolTip("What to do next, and what went wrong.")
        self._arrange()

    def _arrange(self) -> None:
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow("Image", self.images)
        form.addRow("Model", self.models)
        form.addRow("Runs on", self.devices)

        objects = QHBoxLayout()
        objects.addWidget(self.new, 2)
        objects.addWidget(self.delete, 1)

        modes = QGridLayout()
        modes.setSpacing(4)
        for column, button in enumerate(self.modes.values()):
            modes.addWidget(button, 0, column)
            modes.setColumnStretch(column, 1)

        run = QGridLayout()
        run.setSpacing(4)
        run.addWidget(self.direction, 0, 0, 1, 2)
        run.addWidget(self.propagate, 1, 0)
        run.addWidget(self.stop, 1, 1)
        run.setColumnStretch(0, 2)
        run.setColumnStretch(1, 1)

        layout = QVBoxLayout(self)
        layout.setSpacing(6)
        layout.addLayout(form)
        layout.addWidget(_heading("1. Objects"))
        layout.addWidget(self.objects)
        layout.addLayout(objects)
        layout.addWidget(_heading("2. Prompts, on any slice"))
        layout.addLayout(modes)
        layout.addWidget(_heading("3. Through all slices"))
        layout.addLayout(run)
        layout.addWidget(self.progress)
        layout.addWidget(self.status)

    # -- what is shown -------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """What to do next."""
        self.status.setText(text)

    def fail(self, text: str) -> None:
        """What went wrong."""
        self.status.setText(f"⚠ {text}")

    def show_progress(self, done: int, total: int, seconds_left: float | None = None) -> None:
        """How far a propagation is; total 0 for one that has not begun."""
        left = "" if seconds_left is None else f", {_duration(seconds_left)} left"
        self.progress.setRange(0, total)
        self.progress.setValue(done)
        self.progress.setFormat(f"%v of %m slices{left}")

    @property
    def mode(self) -> str | None:
        """INCLUDE, EXCLUDE, BOX, or None where a click moves the view."""
        return next((mode for mode, button in self.modes.items() if button.isChecked()), None)

    @mode.setter
    def mode(self, chosen: str | None) -> None:
        for mode, button in self.modes.items():
            button.setChecked(mode == chosen)

    @property
    def object(self) -> int:
        """Id of the selected object; 0 for none."""
        item = self.objects.currentItem()
        return 0 if item is None else int(item.data(Qt.ItemDataRole.UserRole))

    @object.setter
    def object(self, object_id: int) -> None:
        for row, item in enumerate(self._object_items()):
            if item.data(Qt.ItemDataRole.UserRole) == object_id:
                self.objects.setCurrentRow(row)

    def show_objects(self, rows: Iterable[tuple[int, str, Any]]) -> None:
        """The list of objects: id, text and RGB colour of each.

        The selected one stays selected; where it is gone, the last one is.
        """
        rows = list(rows)
        chosen = self.object
        self.objects.blockSignals(True)
        ids = [item.data(Qt.ItemDataRole.UserRole) for item in self._object_items()]
        if ids != [object_id for object_id, _, _ in rows]:
            self.objects.clear()
            for object_id, _, _ in rows:
                item = QListWidgetItem(self.objects)
                item.setData(Qt.ItemDataRole.UserRole, object_id)
            self.objects.setCurrentRow(len(rows) - 1)
            self.object = chosen
        for item, (_, text, colour) in zip(self._object_items(), rows, strict=True):
            if item.text() != text:
                item.setText(text)
            item.setIcon(_colour_icon(colour))
        self.objects.blockSignals(False)

    def _object_items(self) -> list[QListWidgetItem]:
        items = (self.objects.item(row) for row in range(self.objects.count()))
        return [item for item in items if item is not None]

    def show_devices(self, present: set[str]) -> None:
        """Take away the devices that this computer lacks."""
        for index in reversed(range(self.devices.count())):
            device = self.devices.itemData(index)
            if device not in present and device != self.devices.currentData():
                self.devices.removeItem(index)


class _QuietComboBox(QComboBox):
    """Scrolling over a closed list does not choose another model or image."""

    def __init__(self) -> None:
        super().__init__()
        self.installEventFilter(self)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Qt's name."""
        if event is not None and event.type() == QEvent.Type.Wheel:
            event.ignore()
            return True
        return bool(super().eventFilter(watched, event))


def _combo(tip: str, entries: dict[str, tuple[str, str]] | None = None) -> QComboBox:
    """entries: value -> text and tooltip."""
    combo = _QuietComboBox()
    combo.setToolTip(tip)
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(8)
    for index, (value, (text, entry_tip)) in enumerate((entries or {}).items()):
        combo.addItem(text, value)
        combo.setItemData(index, entry_tip, Qt.ItemDataRole.ToolTipRole)
    return combo


def _button(text: str, tip: str) -> QPushButton:
    button = QPushButton(text)
    button.setToolTip(tip)
    button.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # keys stay with the canvas
    return button


def _mode_button(mode: str, text: str, tip: str) -> QPushButton:
    button = _button(text, tip)
    button.setIcon(_mode_icon(mode))
    button.setIconSize(QSize(14, 14))
    button.setCheckable(True)
    return button


def _heading(text: str) -> QLabel:
    label = QLabel(f"<b>{text}</b>")
    label.setContentsMargins(0, 6, 0, 0)
    return label


def _duration(seconds: float) -> str:
    """For people, who want no more than one number."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _colour_icon(colour: Any) -> QIcon:
    """colour: RGB, 0 to 1."""
    pixmap = QPixmap(14, 14)
    pixmap.fill(QColor.fromRgbF(*(float(part) for part in np.asarray(colour)[:3])))
    icon = QIcon(pixmap)
    icon.addPixmap(pixmap, QIcon.Mode.Selected)  # else Qt tints it
    return icon


def _mode_icon(mode: str) -> QIcon:
    pixmap = QPixmap(32, 32)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    if mode == INCLUDE:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(60, 200, 80))
        painter.drawEllipse(QPoint(16, 16), 10, 10)
    elif mode == EXCLUDE:
        painter.setPen(QPen(QColor(240, 60, 60), 6))
        painter.drawLine(7, 7, 25, 25)
        painter.drawLine(25, 7, 7, 25)
    else:
        painter.setPen(QPen(QColor(90, 160, 250), 4))
        painter.drawRect(5, 8, 22, 16)
    painter.end()
    return QIcon(pixmap)
