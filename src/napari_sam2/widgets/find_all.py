"""The window "Find all objects": looks for objects on a slice, and lets a person choose of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import napari.layers
import numpy as np
from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QSlider,
    QSpinBox,
    QVBoxLayout,
)

from napari_sam2.automatic import add_all, search_all
from napari_sam2.counted import counted
from napari_sam2.prompt_layers import new_labels_layer
from napari_sam2.session import Session
from napari_sam2.tasks import Task
from napari_sam2.throughout import throughout_steps
from napari_sam2.unread import unreadable_text
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.docking import ToolWindow, count_in, push_button
from napari_sam2.widgets.events import Connections
from napari_sam2.widgets.marking import Marking
from napari_sam2.widgets.worker import Worker

if TYPE_CHECKING:
    from sam2_engine.automatic import Candidate, Search

_SEEDS = {
    "grid": "a grid of points",
    "contrast": "spots of contrast",
    "classical": "threshold and watershed",
}
_TILES = {0: "the whole slice", 1: "tiles in full resolution", 2: "tiles, enlarged twice"}
_LAYER_NAME = "Found, not yet objects"
_EVERY = 5  # slices from one on which objects are looked for to the next
_MANY = 20  # objects whose clicks would hide them


class FindAll(ToolWindow):
    """Find, look through, add. What is found is a labels layer of its own until it is added."""

    def __init__(self, context: Context, marking: Marking) -> None:
        super().__init__(context.panel, "Find all objects on this slice")
        self._context = context
        self._marking = marking
        self._worker = Worker(self, is_held=lambda: context.is_held)
        self.candidates: list[Candidate] = []
        """All that was found, best first."""
        self.deleted: set[int] = set()
        """Places in `candidates` of what the person has clicked away."""
        self.layer: napari.layers.Labels | None = None
        """Where they are shown: n + 1 is the candidate n."""
        self._task: Task | None = None
        self._frame = 0

        self.seeds, self.tiles = QComboBox(), QComboBox()
        self.seeds.setToolTip(
            "Where SAM 2 is asked for an object. Round, separate objects: threshold and watershed. "
            "A labels layer: at each of its labels on this slice. "
            "Nuclei in another image: at each bright spot of it, by threshold and watershed."
        )
        self.tiles.setToolTip("Small objects are seen better in tiles; it takes longer.")
        for factor, text in _TILES.items():
            self.tiles.addItem(text, factor)
        self.diameter = QSpinBox()
        self.diameter.setRange(0, 9999)
        self.diameter.setSpecialValueText("guess")
        count_in(self.diameter, "pixel")
        self.diameter.setToolTip("How large a usual object is, for contrast and watershed.")
        self.find_button = push_button(
            "Find all objects here", "Look for objects on the slice that the viewer shows."
        )
        self.stop_button = push_button("Stop", "Stop; what has been found so far is kept.")
        self.every = QSpinBox()
        self.every.setRange(1, 999)
        self.every.setValue(_EVERY)
        self.every.setPrefix("every ")
        count_in(self.every, "slice")
        self.every.setToolTip(
            "Objects are looked for on these slices, and followed through those between. Objects "
            "that are there for a shorter time may be missed."
        )
        self.whole_button = push_button(
            "Whole sequence",
            "Find all objects of all slices and follow them. One Undo takes all of it back.",
        )
        self.progress = QProgressBar()
        self.progress.setToolTip("How far it is.")
        self.score, self.smallest, self.largest = (
            QSlider(Qt.Orientation.Horizontal) for _ in range(3)
        )
        self.score.setRange(0, 100)
        self.score.setToolTip("Hide those that the model is less sure of.")
        self.smallest.setToolTip("Hide smaller ones; the diameter of a disc of the same area.")
        self.largest.setToolTip("Hide larger ones; the diameter of a disc of the same area.")
        self.values = {slider: QLabel() for slider in (self.score, self.smallest, self.largest)}
        self.restore_button = push_button("Bring back", "Show again what was clicked away.")
        self.add_button = push_button("", "Make those that are shown objects, with these masks.")
        self.status = QLabel()
        self.status.setWordWrap(True)
        self._lay_out()

        self.find_button.clicked.connect(self._on_find)
        self.whole_button.clicked.connect(self._on_whole)
        self.stop_button.clicked.connect(self._on_stop)
        self.add_button.clicked.connect(self._on_add)
        self.restore_button.clicked.connect(self._on_restore)
        self.seeds.currentIndexChanged.connect(self._show_state)
        context.changed.connect(self._show_state)
        for slider in self.values:
            slider.valueChanged.connect(self.show_chosen)
        self._listing = QTimer(self)  # later, when it is known which layer holds the objects
        self._listing.setSingleShot(True)
        self._listing.timeout.connect(self._list_seeds)
        self._events = Connections()
        self._events.connect_list(context.viewer.layers, self._on_layers)
        # Qt may destroy the window without closing it.
        self.destroyed.connect(partial(_end, self._worker))
        self._show_sliders()
        self.show_chosen()

    def sizeHint(self) -> QSize:
        """Qt's name."""
        return QSize(380, super().sizeHint().height())

    # -- for people, scripts and tests ---------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether it is looking for objects."""
        return self._worker.is_busy

    @property
    def chosen(self) -> list[int]:
        """Places in `candidates` of those that are shown and would be added."""
        low, high = self.smallest.value(), self.largest.value()
        return [
            n
            for n, one in enumerate(self.candidates)
            if n not in self.deleted
            and 100 * one.score >= self.score.value()
            and low <= round(_diameter(one)) <= high
        ]

    def open(self) -> None:
        """Show the window, with the labels layers that there are now."""
        self._list_seeds()
        self.present()

    def search(self) -> None:
        """Look for objects on the slice that the viewer shows, in the background."""
        session = self._context.session
        if session is None or self._worker.is_running:
            return
        self.clear()
        seeds, factor = self.seeds.currentData(), self.tiles.currentData()
        task, frame = session.task(objects=()), self._context.frame
        self._task, self._frame = task, frame
        diameter = float(self.diameter.value()) or None
        self._worker.run(
            lambda: _steps(task, frame, seeds, diameter, factor),
            each=self._on_step,
            done=self._on_done,
            failed=self._on_failed,
        )
        self._show_begin("%v of %m places")

    def search_sequence(self) -> None:
        """Find and follow all objects of the sequence that is shown, in the background."""
        session = self._context.session
        if session is None or self._worker.is_running:
            return
        if self._context.is_running:
            self.status.setText("Objects are being followed: wait for that, or press Stop there.")
            return
        self.clear()
        self._marking.take_over_strokes()
        branch = session.branch()
        seeds, factor = self.seeds.currentData(), self.tiles.currentData()
        diameter, every = float(self.diameter.value()) or None, self.every.value()
        unread: dict[int, str] = {}

        def steps() -> Iterator[tuple[int, int]]:
            size = branch.model.get().image_size // factor if factor else None
            search = throughout_steps(branch, every, seeds, diameter, Rules(tile_size=size))
            unread.update((yield from search)[1])

        from sam2_engine.automatic import Rules

        self._worker.run(
            steps,
            each=self._on_sequence_step,
            done=partial(self._on_sequence_done, session, branch, unread),
            failed=self._on_failed,
        )
        self._show_begin("%v of %m slices searched")

    def add(self) -> list[int]:
        """Make those that are shown objects, in one step of undo. Returns their ids."""
        work, task, chosen = self._context.work, self._task, self.chosen
        if work is None or task is None or task.view is not work.session.view:
            self.status.setText(
                "Another image or axis is shown by now; find the objects there anew."
            )
            return []
        session = work.session
        ids = add_all(
            session, self._frame, [self.candidates[n] for n in chosen], session.untouched_objects
        )
        self._show_marks(ids)
        self.clear()
        self._context.changed.emit()
        if ids:
            self._context.panel.object_id = ids[0]
        many, is_sequence = counted(len(ids), "object"), len(session.view) > 1
        follow = "Propagate follows them; " if is_sequence else ""
        self.status.setText(f"{many} added. {follow}Undo takes them back.")
        then = f" on slice {self._frame}. Now Propagate." if is_sequence else "."
        self._context.panel.say(f"{many} added{then}")
        return ids

    def clear(self) -> None:
        """Forget what was found."""
        self.candidates, self.deleted = [], set()
        if self.layer is not None and self.layer in self._context.viewer.layers:
            self._context.viewer.layers.remove(self.layer)
        self.layer = None
        self._show_sliders()
        self.show_chosen()

    def shut_down(self) -> None:
        """End the thread after the step under way."""
        self._events.disconnect_all()
        self._listing.stop()
        self._worker.close()

    # -- what is shown -------------------------------------------------------------------------

    def show_chosen(self, *_: object) -> None:
        """Show those that the sliders let through."""
        chosen = self.chosen
        for slider, text in (
            (self.score, f"{self.score.value() / 100:.2f}"),
            (self.smallest, f"{self.smallest.value()} px"),
            (self.largest, f"{self.largest.value()} px"),
        ):
            self.values[slider].setText(text)
        some = f" {len(chosen)} of {len(self.candidates)}" if self.candidates else ""
        self.add_button.setText(f"Add{some} as objects")
        self._show_state()
        if self.layer is None or self._task is None:
            return
        from sam2_engine.automatic import labels_image

        view = self._task.view
        numbers = np.array([0, *(n + 1 for n in chosen)], self.layer.data.dtype)
        labels = labels_image([self.candidates[n] for n in chosen], view.frame_shape)
        self.layer.data[view.index(self._frame)] = numbers[labels]
        self.layer.refresh()

    def _show_begin(self, text: str) -> None:
        self.progress.setFormat(text)
        self.progress.setRange(0, 0)
        self.status.setText("Looking for objects …")
        self._show_state()

    def _show_marks(self, ids: list[int]) -> None:
        """The layers of marks and masks, which are not there before the first object."""
        marks = self._marking.add_layers()
        if len(ids) > _MANY:
            marks.points.visible = False

    def _show_state(self, *_: object) -> None:
        is_running, session = self._worker.is_running, self._context.session
        is_free = not is_running and session is not None
        self.find_button.setEnabled(is_free)
        self.whole_button.setEnabled(is_free and session is not None and len(session.view) > 1)
        self.stop_button.setEnabled(is_running)
        self.progress.setVisible(is_running)
        seeds = self.seeds.currentData()
        has_diameter = seeds in ("contrast", "classical") or isinstance(seeds, napari.layers.Image)
        self.diameter.setEnabled(has_diameter)
        self.add_button.setEnabled(not is_running and bool(self.chosen))
        self.restore_button.setEnabled(bool(self.deleted))

    def _show_sliders(self) -> None:
        """All that was found passes them."""
        sizes = [round(_diameter(one)) for one in self.candidates] or [0, 1]
        scores = [int(100 * one.score) for one in self.candidates] or [0, 100]
        for slider, values, end in (
            (self.score, scores, min),
            (self.smallest, sizes, min),
            (self.largest, sizes, max),
        ):
            slider.blockSignals(True)
            slider.setRange(min(values), max(values))
            slider.setValue(end(values))
            slider.setEnabled(bool(self.candidates))
            slider.blockSignals(False)

    def _on_layers(self, *_: object) -> None:
        self._listing.start()

    def _list_seeds(self) -> None:
        before = self.seeds.currentData()
        self.seeds.blockSignals(True)
        self.seeds.clear()
        for name, text in _SEEDS.items():
            self.seeds.addItem(text, name)
        session = self._context.session
        shown = () if session is None else session.view.layers
        for layer in self._context.viewer.layers:
            own = layer is self.layer or layer is self._context.labels
            if isinstance(layer, napari.layers.Labels) and not own:
                self.seeds.addItem(f"labels: {layer.name}", layer)
            elif isinstance(layer, napari.layers.Image) and not (layer.rgb or layer in shown):
                self.seeds.addItem(f"nuclei in: {layer.name}", layer)
        self.seeds.setCurrentIndex(max(0, self.seeds.findData(before)))
        self.seeds.blockSignals(False)
        self._show_state()

    def _lay_out(self) -> None:
        form = QFormLayout()
        form.addRow("Ask at", self.seeds)
        form.addRow("Diameter", self.diameter)
        form.addRow("Look at", self.tiles)
        sliders = QFormLayout()
        for text, slider in (
            ("Score at least", self.score),
            ("Size at least", self.smallest),
            ("Size at most", self.largest),
        ):
            row = QHBoxLayout()
            row.addWidget(slider, 1)
            row.addWidget(self.values[slider])
            self.values[slider].setMinimumWidth(50)
            slider.setAccessibleName(text)
            sliders.addRow(text, row)
        self.every.setAccessibleName("Slices on which objects are looked for")
        self.progress.setAccessibleName("Progress")
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        row = QHBoxLayout()
        row.addWidget(self.find_button, 1)
        row.addWidget(self.stop_button)
        layout.addLayout(row)
        row = QHBoxLayout()
        row.addWidget(self.whole_button, 1)
        row.addWidget(self.every)
        layout.addLayout(row)
        layout.addWidget(self.progress)
        layout.addLayout(sliders)
        row = QHBoxLayout()
        row.addWidget(self.add_button, 1)
        row.addWidget(self.restore_button)
        layout.addLayout(row)
        layout.addWidget(self.status)

    # -- what happens --------------------------------------------------------------------------

    def _on_find(self, *_: object) -> None:
        self.search()

    def _on_whole(self, *_: object) -> None:
        self.search_sequence()

    def _on_sequence_step(self, step: tuple[int, int]) -> None:
        done, total = step
        self.progress.setRange(0, total)
        if done:
            self.progress.setValue(done)

    def _on_sequence_done(
        self, session: Session, branch: Session, unread: dict[int, str], stopped: bool
    ) -> None:
        if session is not self._context.session:
            self._show_state()
            self.status.setText("Another image is shown by now, so nothing was added to the first.")
            return
        ids: list[int] = []
        with self._context.in_portions():
            is_taken = self._context.attempt(
                lambda: ids.extend(session.take_branch(branch, "Find throughout"))
            )
        if not is_taken:
            self._show_state()
            self.status.setText(self._context.panel.status.text())
            return
        if ids:
            self._show_marks(ids)
            self._context.panel.object_id = ids[0]
        self._context.changed.emit()
        self._show_state()
        masks = len(session.masks)
        many = "1 object has" if masks == 1 else f"{masks} objects have"
        begin = "Stopped. " if stopped else ""
        self.status.setText(f"{begin}{many} masks now. Undo takes back what was found.")
        if unread:
            self._context.panel.fail(unreadable_text(unread))
            return
        self._context.panel.say(f"{begin}{many} masks now. Look through them: Next doubtful slice.")

    def _on_stop(self, *_: object) -> None:
        self._worker.cancel()
        self.stop_button.setEnabled(False)
        self.status.setText("Stopping after the step under way …")

    def _on_add(self, *_: object) -> None:
        self.add()

    def _on_restore(self, *_: object) -> None:
        self.deleted.clear()
        self.show_chosen()

    def _on_step(self, found: tuple[int, int, list[Candidate]]) -> None:
        done, total, self.candidates = found
        self.progress.setRange(0, total)
        self.progress.setValue(done)

    def _on_done(self, stopped: bool) -> None:
        task, work = self._task, self._context.work
        if task is None or work is None or task.view is not work.session.view:
            self.clear()
            self.status.setText(
                "There is no image any more, so what was found is not shown."
                if work is None
                else "Another image, axis or position is shown by now, so what was found is not "
                "shown: press Find all objects here again."
            )
            return
        if self.candidates:
            labels = np.zeros(task.view.shape, np.uint16)
            axis = None if task.view.channels is None else task.view.channels.axis
            self.layer = new_labels_layer(work.image, labels, axis)
            self.layer.name = _LAYER_NAME
            self.layer.mouse_drag_callbacks.append(self._while_pressed)
            self._context.viewer.add_layer(self.layer)
        self._show_sliders()
        self.show_chosen()
        if self.candidates:
            self.status.setText(
                ("Stopped. " if stopped else "")
                + "Move the sliders, and click on what is none; then add the rest."
            )
        else:
            self.status.setText(
                "Nothing was found here. Try to ask at other places, with another diameter, or in "
                "tiles."
            )

    def _on_failed(self, error: Exception) -> None:
        self.clear()
        self.status.setText(f"⚠ {self._context.tell(error)}")

    def _while_pressed(self, layer: napari.layers.Labels, event: Any) -> Generator[None]:
        """A click takes away what it lies on; a drag moves the view as ever."""
        if layer.mode != "pan_zoom":
            return
        dragged = False
        yield
        while event.type == "mouse_move":
            dragged = True
            yield
        value = layer.get_value(event.position, world=True)
        if not dragged and value:
            self.deleted.add(int(value) - 1)
            self.show_chosen()


def _steps(
    task: Task, frame: int, seeds: Any, diameter: float | None, factor: int
) -> Iterator[tuple[int, int, list[Candidate]]]:
    """Places done, places in all, and what has been found up to now."""
    from sam2_engine.automatic import Rules

    size = task.source.model.get().image_size // factor if factor else None
    state: Search
    for state in search_all(task, frame, seeds, diameter, Rules(tile_size=size)):
        yield state.done, state.total, state.candidates


def _diameter(candidate: Candidate) -> float:
    """Of a disc of the same area, in pixels."""
    return float(np.sqrt(candidate.pixels * 4 / np.pi))


def _end(worker: Worker, *_: object) -> None:
    worker.close()
