"""One image's segmentation: its objects, their prompts, and the masks that follow from them.

A session is the only thing that changes masks. It knows no window: the widget shows it and calls
it, and a script calls it alike.

    session = Session(viewer.layers["brain"])
    ventricle = session.add_object("ventricle")
    session.add_points(ventricle, [(40, 120, 96)])
    session.propagate()
    session.labels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_sam2.given import several
from napari_sam2.output import Output
from napari_sam2.planning import all_said, between_marks, has_changed_since, to_follow, to_preview
from napari_sam2.sequence_view import SequenceKey
from napari_sam2.session_base import LockedError, NothingToDo
from napari_sam2.session_marks import Marks
from napari_sam2.session_versions import Versions
from napari_sam2.tasks import OtherSide, Step, Task
from napari_sam2.unread import UnreadableSlices, unreadable_text
from sam2_engine.unreadable import UnreadableFrame

__all__ = ["Direction", "LockedError", "NothingToDo", "Session", "UnreadableSlices"]

Direction = Literal["both", "forward", "backward"]


class Session(Marks, Versions):
    """Objects, prompts and masks of one image.

    Prompts belong to the sequence that is shown (`show`): in a volume the slices along one axis.
    Masks of all sequences are written to the same `labels`.

    Masks follow from prompts, frames and model alone: a slice from the prompts on it, any other
    slice from the nearest slice with prompts. What a person paints, approves or locks is never
    written, and the slices around follow from it as from a prompt.
    """

    # -- labels --------------------------------------------------------------------------------

    @property
    def labels(self) -> Any:
        """Object ids in the shape of the image, without colours; 0 is background.

        Where objects overlap, what a person keeps goes first, then the larger logit.
        """
        self.write_rest()
        return self.written_labels

    @property
    def written_labels(self) -> Any:
        """As `labels`, without what `writing_first` has left unwritten; in any thread."""
        return self._writer.output.labels

    def approved_labels(self) -> NDArray[np.int32]:
        """As `labels`, but only the masks that are approved, in a new array; in any thread."""
        return self._writer.approved()

    def write_to(
        self, labels: Any = None, overwrite: bool = False, others: Collection[int] | None = None
    ) -> None:
        """Write masks to another array; the present one gets back what it held before.

        Args:
            labels: integers in the shape of the image, such as a zarr array on disk; by default a
                new array. It is read once, for the ids in it, which belong to others.
            overwrite: whether masks cover what belongs to others; it comes back where they go.
            others: what `ids_in` says of a large array, which is not read then.

        Raises ValueError where the array cannot hold the masks; nothing has changed then.
        """
        output = Output(self.view.shape, labels, overwrite, others)
        largest = max(self.objects, default=0)
        if largest > output.largest_id:
            raise ValueError(
                f"The labels are {output.labels.dtype}, which hold ids up to {output.largest_id}, "
                f"not {largest}. Write to labels of a larger type."
            )
        taken = sorted(output.others & self.objects.keys())
        if taken:
            raise ValueError(
                f"The labels hold something under the id {taken[0]} already, which is the id of "
                f"{self.objects[taken[0]].name}. Write to other labels."
            )
        self._writer.write_to(output)

    @property
    def overwrite(self) -> bool:
        """Whether masks cover what belongs to others in `labels`; it comes back where they go."""
        return self._writer.overwrite

    @overwrite.setter
    def overwrite(self, wanted: bool) -> None:
        self._writer.overwrite = wanted

    def labels_of(self, object_id: int, labels: Any = None) -> Any:
        """One object alone, whole also where others cover it, kept up to date from now on.

        labels: where to write it, as for `write_to`; by default a new array at the first call.
        Returns an array in the shape of the image: the object's id, and 0 elsewhere.
        """
        self._check_object(object_id)
        return self._writer.alone(object_id, labels)

    def drop_labels_of(self, object_id: int) -> None:
        """Leave the array of `labels_of` as it is from now on."""
        self._writer.leave_alone(object_id)

    def writing_first(self, frame: int) -> AbstractContextManager[None]:
        """What changes inside is written to `labels` on one frame of the sequence that is shown.

        The other frames are left to `write_rest`, for a window that must not stand still.
        """
        return self._writer.first(self.view.key, frame)

    def writing_together(self) -> AbstractContextManager[None]:
        """What changes inside is written to `labels` when all of it is there, each slice once."""
        return self._writer.together()

    def write_rest(self, seconds: float = math.inf, at: int | None = None) -> bool:
        """Write what `writing_first` has left unwritten. Returns whether nothing is left.

        seconds: leave the others to the next call after so long, and after one at least.
        at: a frame of the sequence that is shown, which goes first.
        """
        return self._writer.write_rest(seconds, None if at is None else (self.view.key, at))

    # -- masks ---------------------------------------------------------------------------------

    def preview(self, frame: int) -> Step:
        """Compute and show the masks of objects that have prompts on a frame and are not up to
        date there. Returns them; where all are up to date, all of them.

        Raises ValueError: no such frame; what `sam2_engine.load_model` raises.
        """
        while True:  # at most on whole slices, closely, and on whole slices again
            task = self.preview_task(frame)
            step = self.compute_preview(task, frame)
            if not self.accept(task, step):
                return step

    def propagate(
        self,
        direction: Direction = "both",
        objects: Iterable[int] | None = None,
        start: int | None = None,
        stop: int | None = None,
        to: int | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> None:
        """Follow objects through the sequence. Only what is not up to date is computed.

        Args:
            direction: "forward" leaves out what lies before the first slice with prompts,
                "backward" what lies behind the last.
            objects: ids; by default all that have prompts. Locked ones are left out.
            start, stop: first and last slice wanted, both included; by default all.
            to: only to this slice, from the slice with prompts that is nearest to it.
            progress: called after every slice.

        Slices that cannot be read are passed over, and their masks stay as they are.

        Raises NothingToDo without prompts; ValueError: no such object, slice or direction; what
        `sam2_engine.load_model` raises. UnreadableSlices at the end, where slices were passed over;
        OSError as soon as none can be read any more.
        """
        for step in self.propagation(direction, objects, start, stop, to):
            if progress is not None:
                progress(step)

    def propagation(
        self,
        direction: Direction = "both",
        objects: Iterable[int] | None = None,
        start: int | None = None,
        stop: int | None = None,
        to: int | None = None,
    ) -> Iterator[Step]:
        """As `propagate`, one slice at a time; each is shown as it comes.

        Close the generator to stop; what has been found is kept.
        """
        chosen = None if objects is None else several(objects, "objects")
        task = self.task(chosen, direction, start, stop, to)
        if self._decide_all(chosen):
            task = self.task(chosen, direction, start, stop, to)
        return self._carry_out(task)

    def update(
        self,
        objects: Iterable[int] | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> None:
        """Compute the masks anew that are out of date, and no others.

        After a correction these are the slices up to the next ones with prompts, or to the end.
        objects, progress: as for `propagate`; it raises likewise.
        """
        chosen = None if objects is None else several(objects, "objects")
        self._decide_all(chosen)
        for step in self._carry_out(self.task(chosen, only_stale=True)):
            if progress is not None:
                progress(step)

    def check_both_sides(
        self,
        objects: Iterable[int] | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> None:
        """Follow objects to slices between two marked ones from the farther one, too, and compare.

        Masks stay as they are; `other_sides` then says where both ways disagree, and doubt counts
        it. It takes about as long as finding the masks between marked slices did. What is out of
        date, or compared already, is left out.

        objects: ids; by default all that have masks between marked slices.

        Raises NothingToDo where no mask lies between two marked slices.
        """
        for step in self._carry_out(self.check_task(objects)):
            if progress is not None:
                progress(step)

    def check_read(self, key: SequenceKey | None = None) -> None:
        """Raises UnreadableSlices where the last run through a sequence, by default through any,
        has passed over slices.
        """
        for one, unread in self._findings.unread.items():
            if unread and key in (None, one):
                raise UnreadableSlices(unreadable_text(unread), self)

    def other_sides(self, object_id: int) -> Mapping[int, OtherSide]:
        """Frame -> how a mask agrees with that from the other side, where `check_both_sides` saw.

        Of the sequence that is shown. A mask that is found anew has to be compared anew.
        """
        self._check_object(object_id)
        return self._findings.other_sides((self.view.key, object_id))

    # -- masks in parts ------------------------------------------------------------------------

    # The above in parts, so that the model can work in another thread: `task` and `accept` are
    # quick and belong to the thread that sets prompts; `compute_...` take long and touch nothing
    # but the task. Of two threads that compute, one waits for a step of the other.

    def task(
        self,
        objects: Iterable[int] | None = None,
        direction: Direction = "both",
        start: int | None = None,
        stop: int | None = None,
        to: int | None = None,
        only_stale: bool = False,
        joins_last: bool = False,
    ) -> Task:
        """What there is to compute now; arguments as for `propagate`.

        only_stale: leave out frames that nothing was ever computed on. joins_last: as for Task.
        """
        if direction not in ("both", "forward", "backward"):
            raise ValueError(f"direction must be both, forward or backward, not {direction!r}.")
        first = 0 if start is None else start
        last = len(self.view) - 1 if stop is None else stop
        for frame in (first, last, first if to is None else to):
            self._check_frame(frame)
        if first > last:
            raise ValueError(f"The first slice, {first}, is behind the last one, {last}.")
        chosen = set(self.objects if objects is None else several(objects, "objects"))
        for object_id in chosen:
            self._check_object(object_id)
        frames = range(first, last + 1)
        task = replace(self._all_said(), joins_last=joins_last)
        return to_follow(self._records, task, chosen, frames, direction, to, only_stale)

    def has_changed_since(self, task: Task) -> bool:
        """Whether what a person said of the objects of a task is not what it was: marks, painted
        masks, ends or locks. Approved masks do not count, nor do intensities.

        What is still to come of such a task is better asked for anew.
        """
        return has_changed_since(self._records, task)

    def preview_task(self, frame: int) -> Task:
        """What there is to compute for `compute_preview` on a frame: objects that are up to date
        there are left out, unless all are.

        Objects of which it is yet to be decided are looked at closely, if it is known how large
        they are; `accept` sees whether that goes well.
        """
        self._check_frame(frame)
        return to_preview(self._looks, self._all_said(), frame)

    def undecided_frames(self, objects: Iterable[int] | None = None) -> list[int]:
        """Frames whose preview decides whether an object is looked at closely, where none has yet.

        objects: ids; by default all. A preview that finds nothing decides nothing.
        """
        chosen, looks = self.objects if objects is None else objects, self._looks
        places = [place for i in chosen if looks.is_undecided(place := (self.view.key, i))]
        return sorted({frame for place in places for frame in self._records.anchors(place)})

    def check_task(self, objects: Iterable[int] | None = None) -> Task:
        """What there is to compare now, for `check_both_sides`; raises as that does."""
        task = self.task(objects)
        between = between_marks(self._records, task)
        if not any(between.values()):
            raise NothingToDo(
                "No object has masks between two slices that are marked: mark it on two slices or "
                "more and propagate first."
            )
        wanted = {i: frames - self.other_sides(i).keys() for i, frames in between.items()}
        return replace(task, wanted=wanted, is_check=True)

    def compute_preview(self, task: Task, frame: int) -> Step:
        """The masks of all objects with prompts on a frame, from these prompts alone."""
        return self._engine.preview(task, frame)

    def compute_propagation(self, task: Task) -> Iterator[Step]:
        """The masks of all objects on the frames that are wanted."""
        if not task.wanted:
            raise NothingToDo(
                "No object has a prompt yet: click on an object or draw a box around it first."
            )
        return self._engine.propagate(task)

    def encode(self, task: Task, frame: int) -> None:
        """Look at a frame ahead of the first click on it. Takes long, as `compute_...`."""
        self._engine.encode(task, frame)

    def is_encoded(self, frame: int) -> bool:
        """Whether a click on a frame would be answered at once."""
        return self._engine.is_encoded(self._all_said(), frame)

    def accept(self, task: Task, step: Step) -> bool:
        """Take over what was found, except where prompts have changed since it was asked for.

        Returns whether a preview is to be computed once more, of a new `preview_task`: a small
        object is to be looked at closely, or one that was is not so small.
        """
        if not step.is_preview:
            self._findings.note_unread(task, step)
        if task.is_check:
            self._findings.compare(task, step)
            self.objects_changed.emit()
            return False
        is_following, history = step.is_preview or task.joins_last, self.history
        with history.following() if is_following else history.change("Propagate", task):
            is_new, again = self._findings.take(task, step, self._looks)
            if is_new:
                self._writer.write(task.view, [step.frame])
        return again

    # -- helpers -------------------------------------------------------------------------------

    def _all_said(self) -> Task:
        return all_said(self._records, self.view, self._source)

    def _decide_all(self, objects: Iterable[int] | None) -> bool:
        """Decide it of all objects that begin, as far as can be; masks stay as they are.

        Returns whether there are any.
        """
        frames, found = self.undecided_frames(objects), self._records.found
        if not frames:
            return False
        places = [(self.view.key, object_id) for object_id in self.objects]
        before = {(place, f): found.get(place, f) for place in places for f in frames}
        with self.history.following(), self.writing_together():
            try:
                for frame in frames:
                    with suppress(UnreadableFrame):  # told of at the end
                        self.preview(frame)
            finally:
                for (place, frame), one in before.items():
                    found.set(place, frame, one)
        return True

    def _carry_out(self, task: Task) -> Iterator[Step]:
        self._findings.unread.pop(task.view.key, None)
        for step in self.compute_propagation(task):
            self.accept(task, step)
            yield step
        self.check_read(task.view.key)
