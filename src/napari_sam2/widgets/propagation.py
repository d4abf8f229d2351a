"""Following objects through the slices: what is asked for, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from napari_sam2.counted import counted
from napari_sam2.session import Session
from napari_sam2.tasks import Step, Task
from napari_sam2.unread import unreadable_text
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.marking import Marking
from napari_sam2.widgets.panel import SELECTED_OBJECTS
from napari_sam2.widgets.reach import chosen_reach
from sam2_engine.unreadable import UnreadableFrame

_NAMED = 3  # objects in a message
_LOOKS = 2  # at a slice, until it is known how closely to look
_ALIKE = 0.8  # IoU of masks that are as good as the same


class Propagation:
    """One at a time, in the background.

    What a person marks, paints or ends meanwhile counts at once: the Runner ends the run, which
    begins again with what is left to do.
    """

    def __init__(self, context: Context, marking: Marking) -> None:
        self._context = context
        self._marking = marking
        self._panel = context.panel
        context.runner.stepped.connect(self._on_step)
        context.runner.ended.connect(context.changed)

    def start(self) -> None:
        """Follow the chosen objects through the chosen slices."""
        session, panel = self._context.session, self._panel
        if session is None or self._context.is_running:
            return
        ids, reach = self._ids(session), panel.reach.currentData()
        limits, here = (panel.first.value(), panel.last.value()), self._context.frame

        def go() -> None:
            try:
                chosen = chosen_reach(session, reach, ids, here, limits)
            except ValueError as error:
                panel.fail(str(error))
            else:
                self._follow(session, ids, "Everything there is already up to date.", **chosen)

        self._when_decided(session, ids, go)

    def update(self) -> None:
        """Find the masks anew that are out of date, and no others."""
        session = self._context.session
        if session is None or self._context.is_running:
            return
        ids = self._ids(session)
        go = partial(self._follow, session, ids, "Nothing is out of date.", only_stale=True)
        self._when_decided(session, ids, go)

    def update_corrected(self, ids: Iterable[int]) -> None:
        """As `update`, for objects that were just corrected; it is taken back with that."""
        session = self._context.session
        if session is None or self._context.is_running:
            return
        late = [i for i in self._present(session, ids) if session.stale(i)]
        if any(not session.objects[i].locked for i in late):
            reach = {"only_stale": True, "joins_last": True}
            go = partial(self._follow, session, late, "Nothing is out of date.", **reach)
            self._when_decided(session, late, go)

    def _follow(self, session: Session, ids: list[int], nothing: str, **reach: Any) -> None:
        """reach: as for `Session.task`."""

        def again() -> None:
            left = session.task(self._present(session, ids), **reach)
            if not left.wanted:
                self._panel.say("Stopped: what was followed is gone or locked.")
            elif not any(left.wanted.values()):
                self._say_done(session, left)
            else:
                self._when_decided(
                    session, ids, partial(self._follow, session, ids, nothing, **reach)
                )

        try:
            task = session.task(self._present(session, ids), **reach)
        except ValueError as error:  # other slices are shown than when it was asked for
            self._panel.fail(str(error))
        else:
            self._run(session, task, nothing, again)

    def check_both_sides(self) -> None:
        """Follow all objects between marked slices from the farther ones, too, and compare."""
        session = self._context.session
        if session is None or self._context.is_running:
            return
        try:
            task = session.check_task()
        except ValueError as error:
            self._panel.fail(str(error))
        else:
            nothing = "All masks between marked slices are compared already."
            self._run(session, task, nothing, self.check_both_sides)

    def stop(self) -> None:
        """End after the slice under way; what is done is kept."""
        if self._context.is_running:
            self._context.runner.stop()
            self._panel.stop.setEnabled(False)
            self._panel.say("Stopping after this slice …")

    def _ids(self, session: Session) -> list[int]:
        if self._panel.which.currentData() == SELECTED_OBJECTS:
            return self._panel.objects.selected
        return list(session.objects)

    def _present(self, session: Session, ids: Iterable[int]) -> list[int]:
        """Those that have not been removed."""
        return [i for i in ids if i in session.objects]

    def _when_decided(
        self, session: Session, ids: list[int], go: Callable[[], None], looks: int = _LOOKS
    ) -> None:
        """Go on when it is known how closely to look at objects: at once, if they had previews."""
        context, frames = self._context, session.undecided_frames(self._present(session, ids))
        if not frames or not looks:
            if session is context.session and not context.is_running:
                go()
            return
        tasks = {frame: session.preview_task(frame) for frame in frames}

        def done(steps: list[Step]) -> None:
            for step in steps:
                session.accept(tasks[step.frame], step)
            self._when_decided(session, ids, go, looks - 1)

        if not session.model.is_loaded:
            self._panel.say(context.loading())
        context.runner.request(
            lambda: list(self._previews(session, tasks)),
            done,
        )

    def _previews(self, session: Session, tasks: Mapping[int, Task]) -> Iterator[Step]:
        """On the frames that can be read; the run tells of the others."""
        for frame, task in tasks.items():
            with suppress(UnreadableFrame):
                yield session.compute_preview(task, frame)

    def _run(self, session: Session, task: Task, nothing: str, again: Callable[[], None]) -> None:
        """
        nothing: what to say where there is nothing to do.
        again: asks for what is left to do then.
        """
        if not task.wanted:
            self._panel.fail(self._why_nothing(session))
            return
        self._marking.add_layers()
        if not any(task.wanted.values()):
            self._panel.say(nothing)
            return
        self._panel.show_progress(0, 0)
        is_loaded = session.model.is_loaded
        self._panel.say("Following the objects …" if is_loaded else self._context.loading())
        done = partial(self._on_ended, session, task, again)
        self._context.runner.run(session, task, f"SAM 2: {self._names(task)}", done)
        self._context.changed.emit()

    def _why_nothing(self, session: Session) -> str:
        ids = self._ids(session)
        if not ids:
            return "No object is selected: choose some in the table, or all objects."
        marked = [i for i in ids if session.prompts_for(i) or session.kept(i)]
        if marked and all(session.objects[i].locked for i in marked):
            return f"{self._context.name(marked[0])} is locked. Unlock it first."
        return "There is no mark yet to start from: click on an object or draw a box around it."

    def _names(self, task: Task) -> str:
        names = [self._context.name(i) for i in task.wanted]
        return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")

    def _on_step(self, done: int, total: int, seconds_left: float | None) -> None:
        self._panel.show_progress(done, total, seconds_left)
        runner = self._context.runner
        if runner.running is self._context.session and done == 1 and not runner.is_stopped:
            self._panel.say(
                "Following the objects; results appear slice by slice. You can look at them "
                "meanwhile, and mark other objects."
            )

    def _on_ended(
        self, session: Session, task: Task, again: Callable[[], None], stopped: bool
    ) -> None:
        if session is not self._context.session:
            return
        if not self._context.runner.is_stopped and session.has_changed_since(task):
            if task.view is session.view:
                again()
            else:
                self._panel.say(
                    "Stopped: marks, ends or locks of what was followed have changed. Go back to "
                    "its slices and press Propagate."
                )
        elif stopped:
            self._panel.say("Stopped. The slices done so far are kept.")
        elif task.is_check:
            self._say_compared(session, task)
        else:
            self._say_done(session, task)

    def _say_done(self, session: Session, task: Task) -> None:
        unread = session.unread if task.view is session.view else {}
        if unread:
            self._panel.fail(unreadable_text(unread))
            return
        key, there = task.view.key, [i for i in task.wanted if i in session.objects]
        found = [
            f"{self._context.name(i)} is on {len(session.masks_of(i, key))} of {len(task.view)} "
            "slices"
            for i in there
        ]
        late = sum(len(session.stale(i, key)) for i in there)
        self._panel.say(
            f"Done: {'; '.join(found[:_NAMED])}{'; …' if len(found) > _NAMED else ''}. "
            + (
                "Meanwhile intensities have changed, masks were approved or slices can be read "
                f"again; press Update for what is out of date: {counted(late, 'mask')}."
                if late
                else "Where a slice is wrong, mark it there or paint, then Update; where an object "
                "goes on too far, press Ends here (T) on its last slice."
            )
        )

    def _say_compared(self, session: Session, task: Task) -> None:
        known = [
            session.other_sides(i).get(frame)
            for i, frames in task.wanted.items()
            if i in session.objects
            for frame in frames
        ]
        compared = [one.iou for one in known if one is not None]
        differ = sum(iou < _ALIKE for iou in compared)
        self._panel.say(
            f"Compared from both sides: on {differ} of {counted(len(compared), 'slice')} the two "
            f"ways share less than {_ALIKE:.0%}. Next doubtful slice counts this now."
        )
