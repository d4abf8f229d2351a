"""The dock widget "SAM 2": it shows a session, and has the model work on it in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari.layers
import napari.viewer
from napari.utils.theme import get_theme
from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QColor, QCursor, QKeySequence, QShortcut
from qtpy.QtWidgets import QToolTip

from napari_sam2.session import Session
from napari_sam2.slice_data import Keep
from napari_sam2.widgets.canvas import keep_canvas_current
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.display import Display
from napari_sam2.widgets.docking import Docked
from napari_sam2.widgets.effort import Effort
from napari_sam2.widgets.events import CTRL, Connections, call
from napari_sam2.widgets.find_all import FindAll
from napari_sam2.widgets.images import Images
from napari_sam2.widgets.marking import Marking
from napari_sam2.widgets.model_choice import ModelChoice
from napari_sam2.widgets.object_actions import End, ObjectActions, Slices
from napari_sam2.widgets.panel import BOX, EXCLUDE, INCLUDE, LASSO, PAINT, SCRIBBLE, Panel
from napari_sam2.widgets.propagation import Propagation
from napari_sam2.widgets.reviewing import Reviewing
from napari_sam2.widgets.runner import Runner
from napari_sam2.widgets.self_update import SelfUpdate
from napari_sam2.widgets.worker import Worker
from napari_sam2.widgets.workspace import Workspace

if TYPE_CHECKING:
    from napari_sam2.widgets.second_reader import SecondReader
    from napari_sam2.widgets.tracks_window import TracksWindow
    from sam2_engine.model import SAM2

KEYS = {
    "I": "include: clicks lie on the object",
    "E": "exclude: clicks lie beside it",
    "Shift+click": "the opposite, for this click or scribble",
    "B": "box",
    "D": "draw a scribble",
    "L": "lasso",
    "P": "paint by hand",
    "N": "new object",
    "O": "next object; Shift+O: the one before",
    "Y": "approve this slice: yes, it is right",
    "K": "keep this slice as it is: lock",
    "T": "to here: the object ends on this slice; Shift+T: it begins here",
    "R": "reject this slice: clear it, to be found again",
    "Q": "questionable: the next doubtful slice",
    "G": "go: propagate",
    "U": "update what is out of date",
    f"{CTRL}+Z": f"undo; {CTRL}+Shift+Z: redo",
    "S, A, Delete": "select marks, select all of the slice, delete them",
}
"""For people; the last row is napari's own."""


class SAM2Widget(Docked):
    """Click on an object or draw a box around it, and follow it through the slices.

    Its parts have a file each: `Marking`, `ObjectActions`, `Propagation`, `Reviewing`, `Images`,
    `Display`.
    """

    def __init__(
        self, viewer: napari.viewer.Viewer, model: SAM2 | str | None = None, device: str = "auto"
    ) -> None:
        """model: a name or a loaded model; by default the one that was chosen last, or nano."""
        panel = Panel()
        super().__init__(panel, panel.footer)
        self.panel = panel
        self._is_docked = False
        self._models = ModelChoice(self.panel, model, device)
        self._runner = Runner(self, lambda: self._context.is_held)
        self._context = Context(viewer, self.panel, self._models, self._runner)
        self._display = Display(self._context)
        self._marking = Marking(self._context, self._keys())
        self._objects = ObjectActions(self._context, self._marking)
        self._finder: FindAll | None = None
        self._tracks: TracksWindow | None = None
        self._second_reader: SecondReader | None = None
        self._propagation = Propagation(self._context, self._marking)
        self._self_update = SelfUpdate(self._context, self._propagation)
        self._images = Images(self._context, self._marking, self._display, self._self_update)
        self._reviewing = Reviewing(self._context, self._marking)
        self._effort = Effort(self._context)
        self._runner.make_ready()
        self.placed.connect(partial(keep_canvas_current, viewer.layers))
        self._connect_panel()

        self._events = Connections()
        layers, dims, images = viewer.layers.events, viewer.dims.events, self._images
        # Qt may destroy the widget without closing it; what outlives it must let go of it then.
        workers = self._models.worker, self._runner.worker
        until_end = self._runner.until_end
        self.destroyed.connect(partial(_let_go, workers, self._events, images.known, until_end))
        self._events.connect(layers.removed, images.on_removed)
        self._events.connect_list(viewer.layers, images.fill)
        self._events.connect(viewer.layers.selection.events.active, self._marking.show_mode)
        self._events.connect(dims.point, self._effort.note)
        for emitter in (dims.order, dims.ndisplay, dims.point):
            self._events.connect(emitter, images.follow_viewer)
        self._events.connect(viewer.events.theme, self._show_theme)
        self._show_theme()
        images.fill()

    # -- for people, scripts and tests ---------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """The session of the chosen image; None without an image."""
        return self._context.session

    @property
    def points_layer(self) -> napari.layers.Points | None:
        """Where clicks are placed; None before the first mark."""
        return self._context.points

    @property
    def shapes_layer(self) -> napari.layers.Shapes | None:
        """Where boxes, scribbles and lassos are drawn; None before the first mark."""
        return self._context.shapes

    @property
    def labels_layer(self) -> napari.layers.Labels | None:
        """Where the masks are shown; None before the first mark."""
        return self._context.labels

    @property
    def is_busy(self) -> bool:
        """Whether the model is at work, or its results are not yet shown."""
        is_finding = self._finder is not None and self._finder.is_busy
        return self._runner.is_busy or self._models.is_loading or is_finding

    @property
    def finder(self) -> FindAll:
        """The window in which all objects of a slice are found; made when it is first wanted."""
        if self._finder is None:
            self._finder = FindAll(self._context, self._marking)
        return self._finder

    @property
    def second_reader(self) -> SecondReader:
        """The window that compares with another person's masks; made when it is first wanted."""
        if self._second_reader is None:
            from napari_sam2.widgets.second_reader import SecondReader

            self._second_reader = SecondReader(self._context, self._marking)
        return self._second_reader

    @property
    def tracks(self) -> TracksWindow:
        """The window of tracks and lineages; made when it is first wanted."""
        if self._tracks is None:
            from napari_sam2.widgets.tracks_window import TracksWindow

            self._tracks = TracksWindow(self._context, self._marking)
        return self._tracks

    def choose_image(self, image: napari.layers.Image) -> None:
        """Work on an image layer of the viewer."""
        self._context.choose(image)

    def start(self, mode: str) -> None:
        """Let the person mark the selected object: "include", "exclude", "box", "scribble",
        "lasso" or "paint"."""
        self._marking.start(mode)

    def new_object(self) -> None:
        """Add an object; marks then belong to it."""
        self._objects.new()

    def delete_objects(self) -> None:
        """Take away the selected objects with their marks and masks."""
        self._objects.delete()

    def merge_objects(self) -> None:
        """Make the selected objects one, the first of them."""
        self._objects.merge()

    def next_object(self, step: int = 1) -> None:
        """Select the next object in the table; the one before with -1."""
        self.panel.objects.next_object(step)

    def take_labels(
        self,
        layer: napari.layers.Labels,
        object_ids: Iterable[int] | None = None,
        slices: Slices = "largest",
    ) -> None:
        """Take masks of another labels layer as a start, as if painted by hand.

        object_ids: which labels; by default all. slices: each one on its "largest" slice, or all
        on the one that is "shown", or on "all".
        """
        self._objects.take_labels(layer, object_ids, slices)

    def find_all(self) -> None:
        """Open the window in which all objects of the slice that is shown are found."""
        self.finder.open()

    def show_tracks(self) -> None:
        """Open the window of tracks and lineages."""
        self.tracks.open()

    def keep_slice(self, how: Keep, kept: bool | None = None) -> None:
        """Approve ("approved") or lock ("locked") the slice that is shown, or take that back.

        kept: whether it is to be kept; by default the opposite of what is.
        """
        self._objects.keep_slice(how, kept)

    def end_here(self, end: End) -> None:
        """Say that the selected object begins ("first") or ends ("last") on the slice that is
        shown, or take that back."""
        self._objects.end_here(end)

    def reject_slice(self) -> None:
        """Say that the selected object's mask on this slice is wrong; `update_masks` finds it
        again."""
        self._reviewing.reject()

    def next_doubtful(self) -> None:
        """Go to the slice, and the object, where the masks are most likely wrong."""
        self._reviewing.next_doubtful()

    def check_both_sides(self) -> None:
        """Compare masks between marked slices with those from the farther ones: doubt counts it."""
        self._marking.take_over_strokes()
        self._propagation.check_both_sides()

    def copy_approved(self) -> None:
        """Add a labels layer that holds the approved masks and no others."""
        self._reviewing.copy_approved()

    def compare(self, other: napari.layers.Labels | str | Path | None = None) -> None:
        """Open the window in which another person's masks are compared with these.

        other: a labels layer or a file with their masks; by default it is chosen in the window.
        """
        self.second_reader.open()
        if other is not None:
            self.second_reader.compare(other)

    def propagate(self) -> None:
        """Follow objects through the slices that are chosen, in the background."""
        self._propagation.start()

    def update_masks(self) -> None:
        """Find the masks anew that are out of date, in the background; no others."""
        self._propagation.update()

    def stop(self) -> None:
        """End the propagation after the slice under way; what is done is kept."""
        self._propagation.stop()

    def undo(self) -> None:
        """Take the last change back."""
        self._objects.undo()

    def redo(self) -> None:
        """Make the change again that was last taken back."""
        self._objects.redo()

    def save_session(self, path: str | Path | None = None) -> None:
        """Save the session in the background; by default to its file, or to one that is asked."""
        self._images.files.save(path)

    def open_session(self, path: str | Path | None = None) -> None:
        """Open a session of the chosen image; by default from a file that is asked for."""
        self._images.files.open(path)

    def shut_down(self) -> None:
        """Let go of the viewer and end the threads; the layers stay as they are."""
        self._marking.ahead.stop()
        self._display.close()
        self._self_update.close()
        self._images.close()
        self._models.close()
        for window in (self._finder, self._tracks, self._second_reader):
            if window is not None:
                window.shut_down()
        self._runner.close()
        _let_go((), self._events, self._images.known, [])

    # -- Qt ------------------------------------------------------------------------------------

    def closeEvent(self, event: Any) -> None:
        """Qt's name."""
        self.shut_down()
        super().closeEvent(event)

    def event(self, event: QEvent | None) -> bool:
        """napari takes a widget out of its dock without closing it."""
        if event is not None and event.type() == QEvent.Type.ParentChange:
            was_docked, self._is_docked = self._is_docked, self.parent() is not None
            if was_docked and not self._is_docked:
                self.shut_down()
                self.deleteLater()  # in PySide, what buttons call would keep it, model and all
        return bool(super().event(event))

    def _keys(self) -> dict[str, Callable[[], None]]:
        """What the keys do, in this widget and in the layers of the image; napari's notation."""
        marks = {"I": INCLUDE, "E": EXCLUDE, "B": BOX, "D": SCRIBBLE, "L": LASSO, "P": PAINT}
        keys: dict[str, Callable[[], None]] = {
            key: partial(self.start, mode) for key, mode in marks.items()
        }
        return keys | {
            "N": self.new_object,
            "O": self.next_object,
            "Shift-O": partial(self.next_object, -1),
            "Y": partial(self.keep_slice, "approved"),
            "K": partial(self.keep_slice, "locked"),
            "T": partial(self.end_here, "last"),
            "Shift-T": partial(self.end_here, "first"),
            "R": self.reject_slice,
            "Q": self.next_doubtful,
            "G": self.propagate,
            "U": self.update_masks,
            "Control-Z": self.undo,
            "Control-Shift-Z": self.redo,
        }

    def _connect_panel(self) -> None:
        panel = self.panel
        for button, action in (
            (panel.new, self.new_object),
            (panel.delete, self.delete_objects),
            (panel.merge, self.merge_objects),
            (panel.find_all, self.find_all),
            (panel.tracks, self.show_tracks),
            (panel.reject, self.reject_slice),
            (panel.next_doubtful, self.next_doubtful),
            (panel.propagate, self.propagate),
            (panel.update_masks, self.update_masks),
            (panel.stop, self.stop),
            (panel.unpaint, self._objects.unpaint),
            (panel.undo, self.undo),
            (panel.redo, self.redo),
            (panel.help, self._show_keys),
        ):
            button.clicked.connect(partial(call, action))
        for mode, button in panel.modes.items():
            button.clicked.connect(partial(call, partial(self._marking.press, mode)))
        panel.approve.clicked.connect(partial(call, partial(self.keep_slice, "approved")))
        panel.lock.clicked.connect(partial(call, partial(self.keep_slice, "locked")))
        panel.begins.clicked.connect(partial(call, partial(self.end_here, "first")))
        panel.ends.clicked.connect(partial(call, partial(self.end_here, "last")))
        panel.objects.chosen.connect(self._on_object_chosen)
        panel.strip.go_to.connect(self._context.go_to)
        panel.show_keys(KEYS)
        for text, tip, action in (
            (
                "Check from both sides",
                "Follow objects between marked slices from the farther ones, too: where both ways "
                "differ, there is more doubt.",
                self.check_both_sides,
            ),
            (
                "Second reader …",
                "Compare with another person's masks, and take theirs where right.",
                self.compare,
            ),
        ):
            entry = panel.session_menu.addAction(text)
            assert entry is not None
            entry.setToolTip(tip)
            entry.triggered.connect(partial(call, action))
        for key, action in self._keys().items():
            sequence = key.replace("-", "+").replace("Control", "Ctrl")
            shortcut = QShortcut(QKeySequence(sequence), self)
            shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
            shortcut.activated.connect(action)
        self._models.failed.connect(self._on_failed)
        self._runner.failed.connect(self._on_failed)
        self._runner.idle.connect(self._display.settle)

    def _show_keys(self) -> None:
        QToolTip.showText(QCursor.pos(), self.panel.help.toolTip(), self.panel.help)

    def _show_theme(self, *_: object) -> None:
        red, green, blue = get_theme(self._context.viewer.theme).text.as_rgb_tuple(alpha=False)
        self.panel.set_ink(QColor(red, green, blue))

    def _on_object_chosen(self) -> None:
        work, object_id = self._context.work, self.panel.object_id
        if work is None or not object_id:
            return
        if work.prompts is not None:
            work.prompts.points.selected_data = set()
            work.prompts.boxes.selected_data = set()
        if work.labels is not None:
            work.labels.selected_label = object_id
        self._marking.prepare()
        self._display.show_slice(new_states=True)

    def _on_failed(self, error: Exception) -> None:
        self._display.show()
        self._context.tell(error)


def _let_go(
    workers: Iterable[Worker],
    events: Connections,
    known: dict[Any, Workspace],
    until_end: list[Any],
    *_: object,
) -> None:
    """End what would outlive the widget: threads, callbacks on the viewer's events, and what lasts
    until a run ends."""
    for worker in workers:
        worker.close()
    events.disconnect_all()
    for work in known.values():
        work.close()
    known.clear()
    for one in until_end:
        with suppress(RuntimeError):  # the window that showed a progress bar may be gone
            one.close()
    until_end.clear()
