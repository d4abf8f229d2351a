"""Has the model work for a session in a thread, and shows how far it is."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from napari.utils import cancelable_progress
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QLabel, QWidget

from napari_sam2.session import Session
from napari_sam2.tasks import Step, Task
from napari_sam2.widgets.worker import Worker

_TELL = 0.25  # seconds between two reports of progress
_TELL_NAPARI = 2.0  # its bar has the whole window drawn anew
_SPINNER_SPEED = 20  # percent
_FIRST_STEPS = 3  # say little of the time that is left
_LOOK_AHEAD = 4  # slices on either side


class Runner(QObject):
    """Previews at once, one propagation at a time, and slices looked at ahead when idle.

    All of it takes effect in the window's thread, by `Session.accept`.
    """

    previewed = Signal(object, object)
    """A session, and the Step that was found for a click or a box."""
    stepped = Signal(int, int, object)
    """Slices done, slices in all, and seconds left or None."""
    ended = Signal()
    """Objects are not followed any more."""
    failed = Signal(Exception)
    idle = Signal()
    """Nothing is under way any more."""

    def __init__(self, parent: QWidget, is_held: Callable[[], bool]) -> None:
        """is_held: as for Worker."""
        super().__init__(parent)
        self._parent = parent
        self.worker = Worker(self, self._on_delivered, is_held)
        self.running: Session | None = None
        """Whose objects are being followed."""
        self.is_stopped = False
        """Whether the last run was asked to end."""
        self.is_dropped = False
        """Whether what comes of it is not wanted any more, either."""
        self.until_end: list[Any] = []
        """What is closed when a run ends; the first is napari's progress bar."""
        self._began = self._told = self._told_napari = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether the model is at work on what was asked, or results are not yet shown."""
        return self.worker.is_busy

    def make_ready(self) -> None:
        """Have napari load what it takes for its first layers of marks and masks.

        Else the window stands still for that when the first tool is chosen.
        """
        self.worker.request_when_idle(_make_layers, lambda _: None, self.failed.emit)

    def preview(self, session: Session, frame: int) -> None:
        """Find the masks of all objects that are marked on a slice.

        What was found on the whole slice is shown while a small object is looked at closely.
        """
        task = session.preview_task(frame)

        def done(step: Step) -> None:
            if session.accept(task, step):
                self.preview(session, frame)
            else:
                self.previewed.emit(session, step)

        self.worker.request(
            lambda: session.compute_preview(task, frame),
            done,
            self.failed.emit,
            key=(id(session), session.view.key, frame),
        )

    def request(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Do something that takes long, then `done` with what it returns."""
        self.worker.request(work, done, self.failed.emit)

    def run(self, session: Session, task: Task, text: str, done: Callable[[bool], None]) -> None:
        """Follow objects through slices, until the end or something else is said of them.

        Args:
            text: what it is called in napari's list of activities.
            done: called at the end, unless it failed or was dropped, with whether something was
                left to do.
        """
        self.running = session
        self.is_stopped = self.is_dropped = False
        self._began = 0.0
        bar = _Activity(total=0, desc=text, cancel_callback=self.stop)
        self.until_end += [bar, _CollectionPause()]
        window = self._parent.window()
        if window is not None:
            _calm_spinners(window)
        self.worker.run(
            lambda: session.compute_propagation(task),
            each=partial(self._on_step, session, task),
            done=partial(self._on_end, done),
            failed=self._on_run_failed,
        )

    def stop(self) -> None:
        """End the propagation after the slice under way; what is done is kept."""
        self.is_stopped = True
        self.worker.cancel()

    def drop(self) -> None:
        """As `stop`, but what comes from now on is not taken over."""
        self.is_dropped = True
        self.stop()

    def look_ahead(self, session: Session, frame: int) -> None:
        """Encode a slice and its neighbours while nothing else is to be done, nearest first."""
        if self.is_busy or not session.model.is_loaded:
            return
        near = sorted(range(-_LOOK_AHEAD, _LOOK_AHEAD + 1), key=lambda step: (abs(step), -step))
        ahead = (frame + step for step in near if 0 <= frame + step < len(session.view))
        wanted = next((at for at in ahead if not session.is_encoded(at)), None)
        if wanted is None:
            return
        task = session.task(objects=())
        self.worker.request_when_idle(
            lambda: session.encode(task, wanted),
            lambda _: self.look_ahead(session, frame) if task.view is session.view else None,
            lambda _: None,  # nobody has asked for it; the first mark there tells what is wrong
        )

    def close(self) -> None:
        """End the thread after the step under way."""
        self.worker.close()
        self._end_run()

    # -- what comes from the thread ------------------------------------------------------------

    def _on_delivered(self) -> None:
        if self.worker.is_idle:
            self.idle.emit()

    def _on_step(self, session: Session, task: Task, step: Step) -> None:
        if self.is_dropped:
            return
        session.accept(task, step)
        if session.has_changed_since(task):
            self.worker.cancel()
        now = time.monotonic()
        if not self._began:
            self._began = now
        if step.done > 1 and now - self._told < _TELL:
            return
        self._told = now
        each = (now - self._began) / max(1, step.done - 1)
        left = each * (step.total - step.done) if step.done > _FIRST_STEPS else None
        self.stepped.emit(step.done, step.total, left)
        if self.until_end and (step.done == 1 or now - self._told_napari > _TELL_NAPARI):
            self._told_napari = now
            bar = self.until_end[0]
            if bar.total != step.total:
                bar.total = step.total
            bar.update(step.done - bar.n)

    def _on_end(self, done: Callable[[bool], None], stopped: bool) -> None:
        self._end_run()
        self.ended.emit()
        if not self.is_dropped:
            done(stopped)

    def _on_run_failed(self, error: Exception) -> None:
        self._end_run()
        self.failed.emit(error)

    def _end_run(self) -> None:
        self.running = None
        while self.until_end:
            self.until_end.pop().close()


def _make_layers() -> None:
    """napari imports pandas and parts of scikit-image when it makes the first of these."""
    from napari.layers import Labels, Points, Shapes

    Labels(np.zeros((1, 1), np.uint8))
    Points(ndim=2)
    Shapes(ndim=2)


def _calm_spinners(window: QWidget) -> None:
    """Turn napari's sign of activity more slowly.

    It moves 33 times in a second, and every time the whole window is put together anew. Where the
    processor does that, it took 4 of 10 seconds from the model.
    """
    for label in window.findChildren(QLabel):
        movie = label.movie()
        if movie is not None:
            movie.setSpeed(_SPINNER_SPEED)


class _Activity(cancelable_progress):  # type: ignore[misc]
    """napari's bar calls back only where it is iterated over; this one at once."""

    def cancel(self) -> None:
        super().cancel()
        self.cancel_callback()


class _CollectionPause:
    """Spares Python the search of all that was there before for garbage, until it is closed.

    napari and torch hold a million objects; the search stops the window for a quarter of a second.
    """

    def __init__(self) -> None:
        gc.freeze()

    def close(self) -> None:
        gc.unfreeze()
