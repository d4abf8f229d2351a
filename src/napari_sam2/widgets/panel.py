"""The controls of the widget "SAM 2": what it looks like, and nothing of what it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qtpy.QtCore import QEvent, QObject, QSize, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QMenu,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_sam2.lazy_model import CPU_BFLOAT16
from napari_sam2.widgets.docking import count_in, push_button
from napari_sam2.widgets.doubt_map import DoubtMap
from napari_sam2.widgets.events import CTRL
from napari_sam2.widgets.icons import icon
from napari_sam2.widgets.object_table import ObjectTable
from napari_sam2.widgets.slice_strip import APPROVED, LOCKED, PAINTED, SliceStates, SliceStrip

INCLUDE, EXCLUDE, BOX = "include", "exclude", "box"
SCRIBBLE, LASSO, PAINT = "scribble", "lasso", "paint"
HERE, BETWEEN, RANGE = "here", "between", "range"
_WARNING = "⚠ "
NEW_LAYER, ONE_EACH = "new layer", "one each"
ALL_OBJECTS, SELECTED_OBJECTS = "all", "selected"

_MEMORIES = {
    "recent": ("the last slices", "As published: for volumes and time-lapses."),
    "confident": (
        "confident slices",
        "For a set of images in no order, from marks on one of them.",
    ),
}
_MEMORY_TOKENS = {
    "all": ("all of each", "As published."),
    "near": (
        "near the object, quicker",
        "And coarsely at what is farther off. Nearly the same masks; on a processor SAM 2.1 models "
        "gain by it, the more the more objects are followed.",
    ),
    "pooled": ("coarsely, quickest", "Small objects are lost more often."),
}
_DEVICES = {
    "auto": ("automatic", "The graphics card if there is one, else the processor."),
    "cpu": ("processor (CPU)", "Works everywhere; slow with the larger models."),
    CPU_BFLOAT16: (
        "processor, quicker",
        "Multiplies in half precision (bfloat16): two thirds of the time for SAM 2.1 models, and "
        "nearly the same masks.",
    ),
    "cuda": ("NVIDIA GPU (CUDA)", "Needs an NVIDIA card and a PyTorch built for it."),
    "mps": ("Apple GPU (MPS)", "Needs a Mac with Apple silicon."),
}
_REACHES = {
    "both": ("all slices", "Every slice follows from the nearest slices that are marked."),
    "forward": ("forward", "From the first marked slice towards higher slice numbers."),
    "backward": ("backward", "From the last marked slice towards lower slice numbers."),
    HERE: ("to this slice", "From the nearest marked slice to the one that the viewer shows."),
    BETWEEN: ("between marks", "Between the marked slices before and behind this one."),
    RANGE: ("from … to …", "The slices that you give."),
}
_WHICH = {
    ALL_OBJECTS: ("all objects", "All objects that are marked and not locked."),
    SELECTED_OBJECTS: ("selected objects", "Only what is selected in the table of objects."),
}
_MODES = {
    INCLUDE: ("Include", "Click on the object.", "I"),
    EXCLUDE: ("Exclude", "Click where the mask should not be. Or Shift and click.", "E"),
    BOX: ("Box", "Drag a box tightly around the object.", "B"),
    SCRIBBLE: ("Scribble", "Draw a line along the object. With Shift: along what is not.", "D"),
    LASSO: ("Lasso", "Draw freely around the object.", "L"),
    PAINT: ("Paint", "Paint or erase the mask by hand. It is then kept as you paint it.", "P"),
}


class Panel(QWidget):
    """All controls, from top to bottom. It holds no state but what the person sees.

    What begins and ends a propagation, and what is said, are in `footer`, which stays in sight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.images = _combo("The image to segment.")
        self.models = _combo(
            "The network, its size and its licence. nano comes with the plugin and is quick; the "
            "larger ones see better, and are downloaded once."
        )
        self.download = QProgressBar()
        self.download.setToolTip("How much of the model is downloaded.")
        self.stop_download = push_button(
            "Stop", "Stop the download; it can be taken up again later."
        )

        self.more = QToolButton()
        self.more.setText("Options")
        self.more.setToolTip("Device, intensities, colours, and where masks are written.")
        self.more.setCheckable(True)
        self.more.setAutoRaise(True)
        self.more.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.more.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.options = QWidget()
        self._along_text = QLabel("Slices along")
        self.devices = _combo("Where the network runs.", _DEVICES)
        self._sizes_text = QLabel("Input")
        self.sizes = _combo(
            "In how many pixels along its longer side the model sees a slice. Fewer are quicker "
            "and show less detail; models see best in the size that they were trained in."
        )
        self.along = _combo("The slider along whose slices objects are followed.")
        self.windows = _combo("The intensities that SAM 2 sees as black and white.")
        self.channels = _combo("What SAM 2 sees as red, green and blue.")
        self.targets = _combo("The labels layer that masks are written to.")
        self.end_after = QSpinBox()
        self.end_after.setRange(0, 999)
        self.end_after.setSpecialValueText("never")
        count_in(self.end_after, "empty slice")
        self.end_after.setToolTip(
            "An object that is not found on so many slices in a row is taken to have ended."
        )
        self.memory = _combo(
            "Which slices are remembered while objects are followed: the last few, or those that "
            "the model is sure of, wherever they lie. The second suits images in no order.",
            _MEMORIES,
        )
        self.memory_tokens = _combo(
            "How much of each remembered slice SAM 2 looks at to find an object on the next.",
            _MEMORY_TOKENS,
        )
        self.on_disk = _combo(
            "How much disk space image features may take, so that images which SAM 2 has seen need "
            "not be looked at anew another day. From the next image or model on."
        )
        self.closely_by_itself = QCheckBox("Look closely by itself")
        self.closely_by_itself.setToolTip(
            "New objects that are small are looked at closely: in an area six times their size, at "
            "a higher resolution, and not outside of it. Models of more than 512 pixels do so only "
            "where a slice has more pixels than they see, and the object fewer than 12 of these."
        )
        self.update_by_itself = QCheckBox("Update by itself")
        self.update_by_itself.setToolTip(
            "What you mark, paint or reject for an object that has been followed already has its "
            "other slices found anew at once, as Update does. Undo takes both back together."
        )
        self.closely = QCheckBox("Look closely")
        self.closely.setToolTip(
            "Look at the selected objects in an area six times their size, at a higher resolution, "
            "and not outside of it. For small objects; slower. What you choose here stays."
        )
        self.overwrite = QCheckBox("Overwrite")
        self.overwrite.setToolTip(
            "Whether masks may cover labels in the layer that are not objects of this table."
        )
        self.overwrite.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)

        self.objects = ObjectTable()
        self.new = push_button("New", "Begin another object.  Key: N")
        self.delete = push_button("Delete", "Delete the selected objects, their marks and masks.")
        self.merge = push_button(
            "Merge", f"Make the selected objects one. Select several with {CTRL}."
        )
        self.from_labels = push_button("Labels", "Take masks of a labels layer as a start.")
        self.labels_menu = QMenu(self)
        self.from_labels.setMenu(self.labels_menu)

        self.find_all = push_button(
            "Find all objects here …", "Look for objects on this slice, and choose of them."
        )

        self.tracks = push_button(
            "Tracks …", "Lineages: where cells divide, and tracks cut, joined and written."
        )

        self.modes = {
            mode: _mode_button(text, tip, key) for mode, (text, tip, key) in _MODES.items()
        }

        self.strip = SliceStrip()
        self.doubts = DoubtMap()
        self.slice = QLabel()
        self.slice.setToolTip(
            "The slice that the viewer shows, and its state for this object. What is looked at "
            "closely, SAM 2 sees in an area about it alone (Options)."
        )
        self.slice.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.approve = push_button("Approve", "The mask is right here: keep it, follow it.  Key: Y")
        self.lock = push_button("Lock", "Keep the mask on this slice as it is.  Key: K")
        self.begins = push_button("Begins here", "The object is on no slice before.  Key: Shift+T")
        self.ends = push_button("Ends here", "The object is on no slice behind.  Key: T")
        for button in (self.approve, self.lock, self.begins, self.ends):
            button.setCheckable(True)
        self.reject = push_button(
            "Reject", "The mask is wrong here: clear it; Update finds it again.  Key: R"
        )
        self.next_doubtful = push_button(
            "Next doubtful slice", "Go where the masks are most likely wrong.  Key: Q"
        )
        self.unpaint = push_button("Unpaint", "Forget what was painted here; marks count again.")
        self.reach = _combo("Which slices to fill.", _REACHES)
        self.which = _combo("Which objects to follow.", _WHICH)
        self.first, self.last = _slice_box("First slice."), _slice_box("Last slice.")
        self.propagate = push_button(
            "Propagate",
            "Follow the objects through these slices; what is up to date is left as it is.  Key: G",
        )
        self.update_masks = push_button(
            "Update",
            "Find the masks anew that are out of date, and no others. Options > Update by itself "
            "has it done after each correction.  Key: U",
        )
        self.stop = push_button("Stop", "Stop; the slices done so far are kept.")
        self.progress = QProgressBar()
        self.progress.setToolTip("Slices done in this propagation.")
        policy = self.progress.sizePolicy()
        policy.setRetainSizeWhenHidden(True)  # else all is laid out anew, the canvas too
        self.progress.setSizePolicy(policy)

        self.undo = push_button("Undo", "")
        self.redo = push_button("Redo", "")
        self.session = push_button("Session", "Save this session, or open another.")
        self.session_menu = QMenu(self)
        self.session.setMenu(self.session_menu)
        self.help = push_button("Keys", "")
        self.cut_off = QLabel()
        self.cut_off.setWordWrap(True)
        self.recover = push_button("Recover", "Go on where it was cut off.")
        self.discard = push_button("Discard", "Delete what was saved of it.")

        self.status = QLabel()
        self.status.setWordWrap(True)
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.status.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        self.status.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.MinimumExpanding)
        self.status.setMinimumHeight(4 * self.fontMetrics().lineSpacing())
        self.status.setToolTip("What to do next, and what went wrong.")
        self.sources = [
            *(self.images, self.models, self.devices, self.sizes, self.windows, self.channels)
        ]
        self.tools = [self.new, self.from_labels, self.find_all, self.session, *self.modes.values()]
        self.changers = [self.delete, self.merge, self.targets, self.closely]
        self.keepers = [
            *(self.approve, self.lock, self.begins, self.ends, self.reject, self.next_doubtful)
        ]
        self.starters = [self.propagate, self.update_masks, self.reach, self.which]
        self._arrange()
        self.more.toggled.connect(self._show_options)
        self.reach.currentIndexChanged.connect(self._show_range)
        self._show_options(False)
        self._show_range()
        self.show_download(None)

    def _arrange(self) -> None:
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 6, 6, 4)
        layout.setSpacing(4)
        layout.addLayout(_form({"Image": self.images, "Model": self.models}))
        layout.addLayout(_row((self.download, 3), (self.stop_download, 1)))
        layout.addWidget(self.more)
        rows = {
            "Runs on": self.devices,
            "Intensities": self.windows,
            "Colours": self.channels,
            "Write to": self.targets,
            "Ends after": self.end_after,
            "Remembers": self.memory,
            "Looks at": self.memory_tokens,
            "On disk": self.on_disk,
            "Other labels": self.overwrite,
        }
        form = _form(rows)
        form.addRow("Small objects", self.closely_by_itself)
        form.addRow("Selected", self.closely)
        form.addRow("Corrections", self.update_by_itself)
        form.insertRow(1, self._sizes_text, self.sizes)
        form.insertRow(2, self._along_text, self.along)
        self.options.setLayout(form)
        layout.addWidget(self.options)
        layout.addWidget(_heading("1. Objects"))
        layout.addWidget(self.objects)
        buttons = (self.new, self.delete, self.merge, self.from_labels)
        layout.addLayout(_row(*((button, 1) for button in buttons)))
        layout.addLayout(_row((self.find_all, 2), (self.tracks, 1)))
        layout.addWidget(_heading("2. Mark them, on any slice"))
        modes = QGridLayout()
        modes.setSpacing(4)
        for place, button in enumerate(self.modes.values()):
            modes.addWidget(button, *divmod(place, 3))
            modes.setColumnStretch(place % 3, 1)
        layout.addLayout(modes)
        layout.addWidget(_heading("3. Follow them through the slices"))
        layout.addWidget(self.strip)
        layout.addWidget(self.doubts)
        layout.addWidget(self.slice)
        layout.addLayout(_row((self.reject, 1), (self.next_doubtful, 2)))
        layout.addLayout(_row((self.approve, 1), (self.lock, 1), (self.unpaint, 1)))
        layout.addLayout(_row((self.begins, 1), (self.ends, 1)))
        layout.addLayout(_row((self.reach, 1), (self.which, 1)))
        self.range = QWidget()
        limits = _row((self.first, 1), (QLabel("to"), 0), (self.last, 1))
        self.range.setLayout(limits)
        layout.addWidget(self.range)
        self.footer = QWidget()
        layout = QVBoxLayout(self.footer)
        layout.setContentsMargins(6, 0, 6, 6)
        layout.setSpacing(4)
        layout.addLayout(_row((self.propagate, 3), (self.update_masks, 2), (self.stop, 2)))
        layout.addWidget(self.progress)
        buttons = (self.undo, self.redo, self.session, self.help)
        layout.addSpacing(4)
        layout.addLayout(_row(*((button, 1) for button in buttons)))
        self.recovery = QWidget()
        recovery = QVBoxLayout(self.recovery)
        recovery.setContentsMargins(0, 4, 0, 0)
        recovery.setSpacing(4)
        recovery.addWidget(self.cut_off)
        recovery.addLayout(_row((self.recover, 1), (self.discard, 1)))
        self.recovery.hide()
        layout.addWidget(self.recovery)
        layout.addWidget(self.status)
        self._sizes_text.setBuddy(self.sizes)
        self._along_text.setBuddy(self.along)
        for widget, name in (
            (self.objects, "Objects"),
            (self.strip, "Slices of the object"),
            (self.doubts, "Doubt on the slices"),
            (self.reach, "Slices to fill"),
            (self.which, "Objects to follow"),
            (self.first, "First slice"),
            (self.last, "Last slice"),
            (self.progress, "Progress"),
            (self.download, "Download"),
        ):
            widget.setAccessibleName(name)

    # -- what is shown -------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """What to do next."""
        self.status.setText(text)

    def fail(self, text: str) -> None:
        """What went wrong."""
        self.status.setText(f"{_WARNING}{text}")

    @property
    def warns(self) -> bool:
        """Whether the person reads what went wrong."""
        return self.status.text().startswith(_WARNING)

    def show_slice(self, text: str, states: SliceStates, frame: int) -> None:
        """The slice that the viewer shows, and what has been done with it."""
        self.slice.setText(text)
        self.approve.setChecked(states.has(frame, APPROVED))
        self.lock.setChecked(states.has(frame, LOCKED))
        self.unpaint.setEnabled(states.has(frame, PAINTED))
        self.begins.setChecked(states.begins(frame))
        self.ends.setChecked(states.ends(frame))

    def show_progress(self, done: int, total: int, seconds_left: float | None = None) -> None:
        """How far a propagation is; total 0 for one that has not begun."""
        left = "" if seconds_left is None else f", {duration(seconds_left)} left"
        bar = self.progress
        bar.setUpdatesEnabled(False)  # else Qt draws the bar at once, and the canvas with it
        bar.setRange(0, total)
        bar.setValue(done)
        bar.setFormat(f"%v of %m slices{left}")
        bar.setUpdatesEnabled(True)

    def show_download(self, downloaded: tuple[int, int | None] | None) -> None:
        """Bytes that are there and bytes in all; None when nothing is downloaded."""
        for widget in (self.download, self.stop_download):
            widget.setVisible(downloaded is not None)
        if downloaded is not None:
            done, total = downloaded
            self.download.setRange(0, 0 if total is None else total >> 10)
            self.download.setValue(done >> 10)
            of_all = "" if total is None else f" of {size_text(total)}"
            self.download.setFormat(f"{size_text(done)}{of_all}")

    @property
    def mode(self) -> str | None:
        """INCLUDE, EXCLUDE, ...; None where a click moves the view."""
        return next((mode for mode, button in self.modes.items() if button.isChecked()), None)

    @mode.setter
    def mode(self, chosen: str | None) -> None:
        for mode, button in self.modes.items():
            button.setChecked(mode == chosen)

    @property
    def object_id(self) -> int:
        """Id of the object that new prompts belong to; 0 for none."""
        return self.objects.object_id

    @object_id.setter
    def object_id(self, object_id: int) -> None:
        self.objects.object_id = object_id

    def show_history(self, undo: str | None, redo: str | None) -> None:
        """What can be taken back and made again, in words."""
        for button, what, name, keys in (
            (self.undo, undo, "Undo", f"{CTRL}+Z"),
            (self.redo, redo, "Redo", f"{CTRL}+Shift+Z"),
        ):
            button.setEnabled(what is not None)
            of_what = "nothing" if what is None else what.lower()
            button.setToolTip(f"{name}: {of_what}.  Keys: {keys}")

    def show_limits(self, last: int) -> None:
        """The last slice that there is."""
        if self.last.maximum() != last:
            for box in (self.first, self.last):
                box.setMaximum(last)
            self.last.setValue(last)

    def show_keys(self, keys: Mapping[str, str]) -> None:
        """List the keys: key -> what it does."""
        rows = "".join(
            f"<tr><td><b>{key}</b>&nbsp;</td><td>{what}</td></tr>" for key, what in keys.items()
        )
        self.help.setToolTip(
            "<p>Keys, while the canvas shows one of this image's layers of marks or objects, or "
            f"the widget has the focus:</p><table>{rows}</table>"
        )

    def show_choices(
        self, combo: QComboBox, choices: Iterable[tuple[str, object]], chosen: object
    ) -> None:
        """Fill a list with texts and values, without telling anyone."""
        combo.blockSignals(True)
        combo.clear()
        for text, value in choices:
            combo.addItem(text, value)
        combo.setCurrentIndex(max(0, combo.findData(chosen)) if combo.count() else -1)
        combo.blockSignals(False)

    def show_axes(self, axes: Iterable[tuple[str, int]], chosen: int | None) -> None:
        """The sliders along which slices can follow each other; hidden unless there are two."""
        self._show_if_several(self._along_text, self.along, axes, chosen)

    def show_sizes(self, sizes: Iterable[tuple[str, int | None]], chosen: int | None) -> None:
        """The sizes in which the model can look at slices; hidden unless there are two."""
        self._show_if_several(self._sizes_text, self.sizes, sizes, chosen)

    def show_devices(self, present: set[str]) -> None:
        """Take away the devices that this computer lacks."""
        for index in reversed(range(self.devices.count())):
            device = self.devices.itemData(index)
            if device not in present and device != self.devices.currentData():
                self.devices.removeItem(index)

    def set_ink(self, ink: QColor) -> None:
        """Draw pictures in a theme's colour."""
        for mode, button in self.modes.items():
            button.setIcon(icon(mode, ink))
        self.undo.setIcon(icon("undo", ink))
        self.redo.setIcon(icon("redo", ink))
        self.lock.setIcon(icon("lock", ink))
        self.objects.set_ink(ink)
        self.strip.set_ink(ink)
        self.doubts.set_ink(ink)

    def _show_if_several(
        self, text: QLabel, combo: QComboBox, choices: Iterable[tuple[str, object]], chosen: object
    ) -> None:
        self.show_choices(combo, choices, chosen)
        for part in (text, combo):
            part.setVisible(combo.count() > 1)

    def _show_options(self, shown: bool) -> None:
        self.more.setArrowType(Qt.ArrowType.DownArrow if shown else Qt.ArrowType.RightArrow)
        self.options.setVisible(shown)

    def _show_range(self, *_: object) -> None:
        self.range.setVisible(self.reach.currentData() == RANGE)


class QuietComboBox(QComboBox):
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


def size_text(size: int | None) -> str:
    """Bytes, for people."""
    if size is None:
        return "download"
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """For people, who want no more than one number."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _combo(tip: str, entries: Mapping[str, tuple[str, str]] | None = None) -> QComboBox:
    """entries: value -> text and tooltip."""
    combo = QuietComboBox()
    combo.setToolTip(tip)
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(8)
    combo.setMinimumWidth(40)  # the row shares what there is
    for index, (value, (text, entry_tip)) in enumerate((entries or {}).items()):
        combo.addItem(text, value)
        combo.setItemData(index, entry_tip, Qt.ItemDataRole.ToolTipRole)
    return combo


def _mode_button(text: str, tip: str, key: str) -> QPushButton:
    made = push_button(text, f"{tip}  Key: {key}")
    made.setIconSize(QSize(14, 14))
    made.setCheckable(True)
    return made


def _slice_box(tip: str) -> QSpinBox:
    box = QSpinBox()
    box.setPrefix("slice ")
    box.setToolTip(tip)
    return box


def _heading(text: str) -> QLabel:
    label = QLabel(f"<b>{text}</b>")
    label.setContentsMargins(0, 6, 0, 0)
    return label


def _form(rows: Mapping[str, QWidget]) -> QFormLayout:
    form = QFormLayout()
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    form.setContentsMargins(0, 0, 0, 0)
    form.setVerticalSpacing(4)
    for text, widget in rows.items():
        form.addRow(text, widget)
    return form


def _row(*parts: tuple[QWidget, int]) -> QHBoxLayout:
    row = QHBoxLayout()
    row.setContentsMargins(0, 0, 0, 0)
    row.setSpacing(4)
    for widget, stretch in parts:
        row.addWidget(widget, stretch)
    return row
