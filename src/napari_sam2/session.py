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

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psygnal import Signal

from napari_sam2.history import Cells, Change, History
from napari_sam2.sequence_view import SequenceKey, SequenceView, Window, window_of
from napari_sam2.slice_data import Box, Found, Keep, Kept, ObjectInfo, ObjectMask, SlicePrompts
from napari_sam2.tasks import Engine, LazyModel, Source, Step, Task, runs

if TYPE_CHECKING:
    from sam2_engine.model import SAM2

Direction = Literal["both", "forward", "backward"]
Place = tuple[SequenceKey, int]
"""A sequence and an object: where a cell's frame belongs."""

_ALL = "objects"  # the one place of the table of objects


class NothingToDo(ValueError):
    """There is no prompt to start from. The message says what is missing."""


class LockedError(ValueError):
    """Something is locked that would have to change. The message says what to unlock."""


class Session:
    """Objects, prompts and masks of one image.

    Prompts belong to the sequence that is shown (`show`): in a volume the slices along one axis.
    Masks of all sequences are written to the same `labels`.

    Masks follow from prompts, frames and model alone: a slice from the prompts on it, any other
    slice from the nearest slice with prompts. What a person paints, approves or locks is never
    written, and the slices around follow from it as from a prompt.
    """

    masks_changed = Signal(tuple)
    """The index of the slice of `labels` that has changed."""
    objects_changed = Signal()
    """An object, or what is known of it, has changed."""
    prompts_replaced = Signal()
    """Prompts are others than those that were set: after undo, redo, merging and opening."""

    def __init__(
        self,
        image: Any,
        model: LazyModel | SAM2 | str = "nano",
        *,
        device: str = "auto",
        window: Window | None = None,
        rgb: bool = False,
        labels: Any = None,
        end_after: int | None = None,
    ) -> None:
        """
        Args:
            image: a napari image layer, or an array (..., y, x), read frame by frame.
            model: a name, a checkpoint's path, or a loaded model.
            device: "auto", "cpu", "cuda" or "mps", for a model that is yet to be loaded.
            window: intensities shown to the model as black and white; by default the layer's
                contrast limits, and for an array percentiles of the sequence.
            rgb: whether an array's last axis holds colours.
            labels: where masks are written: an integer array of the image's shape, such as a zarr
                array on disk. What it holds already belongs to others and is never overwritten.
            end_after: slices in a row without an object after which it is taken to have ended;
                None to look for it to the last slice.
        """
        is_layer = hasattr(image, "contrast_limits")
        self._make_view: Callable[[SequenceKey | None], SequenceView] = (
            (lambda key: SequenceView.of_layer(image, key))
            if is_layer
            else (lambda key: SequenceView(image, key, rgb=rgb))
        )
        self.window = window_of(image) if window is None and is_layer else window
        """Change it at any time; masks that follow from another one are out of date."""
        self.model = model if isinstance(model, LazyModel) else LazyModel(model, device)
        """Change it at any time; masks that follow from another one are out of date."""
        self.end_after = end_after
        """Change it at any time, as `model`."""
        self.view = self._make_view(None)
        """The sequence that prompts are set in, as frames."""
        self.labels: Any = _checked_labels(labels, self.view.shape)
        """Object ids in the shape of the image, without colours; 0 is background."""
        self.history = History()
        self._views = {self.view.key: self.view}
        self._objects: Cells[ObjectInfo] = Cells(self.history)
        self._prompts: Cells[SlicePrompts] = Cells(self.history)
        self._found: Cells[Found] = Cells(self.history)
        self._kept: Cells[Kept] = Cells(self.history)
        self._tracked: Cells[Found] = Cells(self.history)
        """What was found on frames that got prompts afterwards: what these correct."""
        self._last_id = 0
        self._engine = Engine()

    # -- objects -------------------------------------------------------------------------------

    @property
    def objects(self) -> Mapping[int, ObjectInfo]:
        """All objects by id."""
        return dict(sorted(self._objects.at(_ALL).items()))

    def add_object(self, name: str = "", object_id: int | None = None) -> int:
        """A new object without prompts. Returns its id, by default one that never was."""
        if object_id is None:
            object_id = self._last_id + 1
        if object_id < 1 or object_id in self.objects:
            raise ValueError(f"An object needs a new positive id; {object_id} cannot be used.")
        self._last_id = max(self._last_id, object_id)
        with self.history.change("New object"):
            self._objects.set(_ALL, object_id, ObjectInfo(name or f"Object {object_id}"))
        self.objects_changed.emit()
        return object_id

    def edit_object(self, object_id: int, **changes: Any) -> None:
        """Change an object's name, colour (RGB, 0 to 1), or whether it is hidden or locked."""
        self._check_object(object_id)
        with self.history.change("Lock" if "locked" in changes else "Edit object"):
            self._objects.set(_ALL, object_id, replace(self.objects[object_id], **changes))
        self.objects_changed.emit()

    def remove_object(self, object_id: int) -> None:
        """Take away an object with its prompts and masks, in every sequence.

        Raises LockedError where the object is locked.
        """
        self._check_unlocked(object_id)
        with self.history.change("Delete object"):
            self._objects.set(_ALL, object_id, None)
            for key in list(self._views):
                self._clear((key, object_id))
        self.objects_changed.emit()

    def merge_objects(self, into: int, other: int) -> None:
        """Make two objects one: prompts and masks of the other are added to the first.

        Raises LockedError where one of them is locked.
        """
        self._check_unlocked(into)
        self._check_unlocked(other)
        if into == other:
            raise ValueError("An object cannot be merged with itself.")
        with self.history.change("Merge"):
            for key, view in list(self._views.items()):
                first, second = (key, into), (key, other)
                frames = {*self._shown_frames(second), *self._prompts.at(second)}
                for frame in sorted(frames):
                    masks = [self._shown(place, frame) for place in (first, second)]
                    said = [self._prompts.get(place, frame) for place in (first, second)]
                    union = _union(view.frame_shape, masks)
                    kept = self._kept.get(first, frame) or self._kept.get(second, frame)
                    painted = any(one is not None and one.mask is not None for one in said)
                    if kept is not None and union is not None:
                        self._kept.set(first, frame, Kept(kept.how, SlicePrompts(mask=union)))
                    if any(said):
                        merged = _merged(said, union if painted else None)
                        self._prompts.set(first, frame, merged)
                    if union is not None:
                        self._found.set(first, frame, Found(union, ()))
                self._clear(second)
                self._write(view, sorted(frames), other)
            self._objects.set(_ALL, other, None)
        self.objects_changed.emit()
        self.prompts_replaced.emit()

    # -- prompts -------------------------------------------------------------------------------

    def show(self, key: SequenceKey) -> None:
        """Work on another sequence of the same image; the prompts of the others are kept."""
        if key != self.view.key:
            self.view = self.view_of(key)
            self.objects_changed.emit()

    @property
    def prompts(self) -> Mapping[int, Mapping[int, SlicePrompts]]:
        """Object -> frame -> prompts, of the sequence that is shown."""
        return self.prompts_of(self.view.key)

    def prompts_of(self, key: SequenceKey) -> Mapping[int, Mapping[int, SlicePrompts]]:
        """Object -> frame -> prompts, of any sequence."""
        found = {i: dict(self._prompts.at((key, i))) for i in self.objects}
        return {i: frames for i, frames in found.items() if frames}

    @property
    def prompted_sequences(self) -> tuple[SequenceView, ...]:
        """All sequences with prompts, as frames."""
        return tuple(view for key, view in self._views.items() if self.prompts_of(key))

    @property
    def prompted_objects(self) -> frozenset[int]:
        """Ids of all objects that have prompts in any sequence."""
        return frozenset(i for key in self._views for i in self.prompts_of(key))

    def view_of(self, key: SequenceKey) -> SequenceView:
        """A sequence of the image, as frames."""
        if key not in self._views:
            self._views[key] = self._make_view(key)
        return self._views[key]

    def set_prompts(
        self,
        object_id: int,
        frame: int,
        *,
        points: ArrayLike = (),
        labels: ArrayLike | None = None,
        box: Box | None = None,
    ) -> None:
        """Say all there is to say of an object on a frame; with nothing, take back what was said.

        Points on a frame whose mask was tracked correct that mask; a box starts over. On a frame
        that is painted, approved or locked, prompts wait until it is free again.
        Masks that lose their prompt are taken back; `preview` or `propagate` makes new ones.

        Args:
            points: (N, 2) y, x on the frame.
            labels: (N,) 1 on the object, 0 beside it; all 1 by default.
            box: y0, x0, y1, x1.
        """
        self._check_object(object_id)
        self._check_frame(frame)
        yx = np.array(points, float).reshape(-1, 2)
        signs = np.ones(len(yx), np.int64) if labels is None else np.array(labels, np.int64)
        if signs.shape != (len(yx),):
            raise ValueError(f"{len(yx)} points have {signs.size} labels; give each point one.")
        own = self._prompts.get((self.view.key, object_id), frame)
        painted = None if own is None else own.mask
        said = None
        if len(yx) or box is not None or painted is not None:
            said = SlicePrompts(yx, signs, box, mask=painted)
        with self.history.change("Prompt"):
            self._say(object_id, frame, said)
        self.objects_changed.emit()

    def add_points(
        self, object_id: int, points: ArrayLike, labels: ArrayLike | None = None
    ) -> list[int]:
        """Add points to what is said already. Returns the frames that they lie on.

        points: (N, D) positions in the image's array, (z, y, x) in a volume.
        labels: (N,) 1 on the object, 0 beside it; all 1 by default.
        """
        self._check_object(object_id)
        frames, yx = self.view.split(points)
        signs = np.ones(len(yx), np.int64) if labels is None else np.array(labels, np.int64)
        if signs.shape != (len(yx),):
            raise ValueError(f"{len(yx)} points have {signs.size} labels; give each point one.")
        if (frames < 0).any():
            lost = np.asarray(points, float).reshape(len(frames), -1)[frames < 0][0]
            raise ValueError(f"The point {lost.tolist()} lies outside the image or its sequence.")
        changed = [int(frame) for frame in np.unique(frames)]
        with self.history.change("Prompt"):
            for frame in changed:
                known = self._said(object_id, frame)
                here = frames == frame
                self.set_prompts(
                    object_id,
                    frame,
                    points=np.concatenate((known.points, yx[here])),
                    labels=np.concatenate((known.labels, signs[here])),
                    box=known.box,
                )
        return changed

    def add_box(self, object_id: int, frame: int, box: Sequence[float]) -> None:
        """Draw a box, y0, x0, y1, x1, around the object on a frame; it replaces an earlier one."""
        self._check_object(object_id)
        known = self._said(object_id, frame)
        y0, x0, y1, x1 = (float(value) for value in box)
        corners = min(y0, y1), min(x0, x1), max(y0, y1), max(x0, x1)
        self.set_prompts(object_id, frame, points=known.points, labels=known.labels, box=corners)

    def paint(self, object_id: int, frame: int, mask: ArrayLike) -> None:
        """Give an object's mask on a frame by hand; from then on nothing else changes it.

        mask: (H, W), nonzero on the object; all 0 to say that it is not there.
        Raises LockedError where the object or the frame is locked or approved.
        """
        self._check_unlocked(object_id, frame)
        given = np.asarray(mask)
        if given.shape != self.view.frame_shape:
            raise ValueError(
                f"The mask is {given.shape}, but the slices are {self.view.frame_shape}."
            )
        known = self._said(object_id, frame)
        with self.history.change("Paint"):
            self._say(object_id, frame, replace(known, mask=ObjectMask.given(given)))
        self.objects_changed.emit()

    def take_painting(self, frame: int) -> list[int]:
        """Take over what someone has painted into `labels` on a frame, as by `paint`.

        Objects gain and lose the pixels that changed hands. What is locked or approved stays as
        it was. Returns the objects whose masks have changed.
        """
        self._check_frame(frame)
        now = np.array(self.labels[self.view.index(frame)])
        shown = self._composed(self.view, frame, *self.objects)
        differs = now != shown
        if not differs.any():
            return []
        fixed = {i for i in self.objects if self._is_fixed(i, frame)}
        differs &= ~np.isin(shown, list(fixed))
        changed = []
        with self.history.change("Paint"):
            for object_id in np.unique([now[differs], shown[differs]]).tolist():
                if object_id not in self.objects or object_id in fixed:
                    continue
                own = self._shown((self.view.key, object_id), frame)
                shape = self.view.frame_shape
                mask = np.zeros(shape, np.bool_) if own is None else own.on_frame(shape)
                mask[differs] = now[differs] == object_id
                self.paint(object_id, frame, mask)
                changed.append(object_id)
        self._write(self.view, [frame], *self.objects)
        return changed

    def _is_fixed(self, object_id: int, frame: int) -> bool:
        """Whether an object is locked, or its mask on a frame approved or locked."""
        kept = self._kept.get((self.view.key, object_id), frame)
        return self.objects[object_id].locked or kept is not None

    def unpaint(self, object_id: int, frame: int) -> None:
        """Take back what was painted by hand; clicks and boxes on the frame count again."""
        self._check_unlocked(object_id, frame)
        known = self._said(object_id, frame)
        if known.mask is None:
            return
        rest = replace(known, mask=None)
        with self.history.change("Unpaint"):
            self._say(object_id, frame, rest if rest.count else None)
        self.objects_changed.emit()
        self.prompts_replaced.emit()

    def take_labels(
        self, labels: Any, object_ids: Iterable[int] | None = None, frames: Iterable[int] = ()
    ) -> list[int]:
        """Take masks of an existing labels array as if painted by hand. Returns the objects.

        labels: integers in the shape of the image. object_ids: which of them; by default all.
        frames: the slices of the sequence to take; by default, for each object, its largest one.
        """
        if tuple(labels.shape) != self.view.shape:
            raise ValueError(
                f"The labels have shape {tuple(labels.shape)}, the image {self.view.shape}."
            )
        chosen = None if object_ids is None else {int(i) for i in object_ids}
        wanted = sorted(set(frames))
        best: dict[int, tuple[int, int]] = {}
        taken: dict[tuple[int, int], NDArray[np.bool_]] = {}
        for frame in wanted or range(len(self.view)):
            here = np.asarray(labels[self.view.index(frame)])
            ids, counts = np.unique(here[here > 0], return_counts=True)
            for object_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
                if chosen is not None and object_id not in chosen:
                    continue
                if wanted:
                    taken[object_id, frame] = here == object_id
                elif count > best.get(object_id, (0, 0))[0]:
                    best[object_id] = count, frame
        for object_id, (_, frame) in best.items():
            taken[object_id, frame] = np.asarray(labels[self.view.index(frame)]) == object_id
        with self.history.change("Take labels"):
            for (object_id, frame), mask in taken.items():
                if object_id not in self.objects:
                    self.add_object(object_id=object_id)
                self.paint(object_id, frame, mask)
        return sorted({object_id for object_id, _ in taken})

    # -- what is kept --------------------------------------------------------------------------

    def keep(self, object_id: int, frames: Iterable[int], how: Keep = "approved") -> None:
        """Approve or lock an object's masks on frames as they are; nothing writes them any more.

        A frame without a mask is kept as one where the object is not.
        """
        self._check_object(object_id)
        place = self.view.key, object_id
        with self.history.change("Approve" if how == "approved" else "Lock"):
            for frame in frames:
                self._check_frame(frame)
                mask = self._shown(place, frame) or ObjectMask.given(np.zeros((1, 1)))
                self._kept.set(place, frame, Kept(how, SlicePrompts(mask=mask)))
                self._write(self.view, [frame])
        self.objects_changed.emit()

    def release(self, object_id: int, frames: Iterable[int]) -> None:
        """Take back what `keep` did; the masks stay as they are until they are computed again."""
        self._check_object(object_id)
        place = self.view.key, object_id
        with self.history.change("Unlock"):
            for frame in frames:
                kept = self._kept.get(place, frame)
                if kept is None:
                    continue
                mask = kept.prompts.mask
                said = self._prompts.get(place, frame)
                if self._found.get(place, frame) is None and mask is not None and said is None:
                    self._found.set(place, frame, Found(mask if mask.logits.size else None, ()))
                self._kept.set(place, frame, None)
                self._write(self.view, [frame])
        self.objects_changed.emit()

    def kept(self, object_id: int) -> Mapping[int, Keep]:
        """Frame -> "approved" or "locked", of the sequence that is shown."""
        return {f: kept.how for f, kept in self._kept.at((self.view.key, object_id)).items()}

    # -- history -------------------------------------------------------------------------------

    def undo(self) -> str | None:
        """Take the last change back. Returns what it was; None if there is nothing."""
        return self._restored(self.history.undo())

    def redo(self) -> str | None:
        """Make the change again that was last taken back. Returns what it is, or None."""
        return self._restored(self.history.redo())

    # -- masks ---------------------------------------------------------------------------------

    @property
    def masks(self) -> Mapping[int, Mapping[int, ObjectMask]]:
        """Object -> frame -> mask, of the sequence that is shown."""
        found = {}
        for object_id in self.objects:
            place = self.view.key, object_id
            frames = {f: self._shown(place, f) for f in sorted(self._shown_frames(place))}
            known = {f: mask for f, mask in frames.items() if mask is not None}
            if known:
                found[object_id] = known
        return found

    def stale(self, object_id: int) -> list[int]:
        """Frames whose masks follow from prompts, a window or a model that are others by now."""
        place = self.view.key, object_id
        current = self._currency(object_id)
        return [f for f in sorted(self._found.at(place)) if not current(f)]

    def preview(self, frame: int) -> Step:
        """Compute and show the masks of all objects that have prompts on a frame."""
        task = self.task()
        step = self.compute_preview(task, frame)
        self.accept(task, step)
        return step

    def propagate(
        self,
        direction: Direction = "both",
        objects: Iterable[int] | None = None,
        start: int | None = None,
        stop: int | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> None:
        """Follow objects through the sequence. Only what is not up to date is computed.

        Args:
            direction: "forward" leaves out what lies before the first slice with prompts,
                "backward" what lies behind the last.
            objects: ids; by default all that have prompts.
            start, stop: first and last slice wanted, both included; by default all.
            progress: called after every slice.

        Raises NothingToDo without prompts; what `sam2_engine.load_model` raises.
        """
        for step in self.propagation(direction, objects, start, stop):
            if progress is not None:
                progress(step)

    def propagation(
        self,
        direction: Direction = "both",
        objects: Iterable[int] | None = None,
        start: int | None = None,
        stop: int | None = None,
    ) -> Iterator[Step]:
        """As `propagate`, one slice at a time; each is shown as it comes.

        Close the generator to stop; what has been found is kept.
        """
        return self._carry_out(self.task(objects, direction, start, stop))

    def update(self, objects: Iterable[int] | None = None) -> None:
        """Compute the masks anew that are out of date, and no others: after a correction, the
        slices up to the next ones with prompts."""
        for _ in self._carry_out(self.task(objects, only_stale=True)):
            pass

    # The above in parts, so that the model can work in another thread: `task` and `accept` are
    # quick and belong to the thread that sets prompts; `compute_...` take long and touch nothing
    # but the task, but only one may run at a time.

    def task(
        self,
        objects: Iterable[int] | None = None,
        direction: Direction = "both",
        start: int | None = None,
        stop: int | None = None,
        only_stale: bool = False,
    ) -> Task:
        """What there is to compute now.

        only_stale: leave out frames that nothing was ever computed on.
        """
        if direction not in ("both", "forward", "backward"):
            raise ValueError(f"direction must be both, forward or backward, not {direction!r}.")
        first = 0 if start is None else int(start)
        last = len(self.view) - 1 if stop is None else int(stop)
        self._check_frame(first)
        self._check_frame(last)
        chosen = self.objects if objects is None else set(objects)
        anchors, wanted = {}, {}
        for object_id, info in self.objects.items():
            own = self._anchors(object_id)
            if object_id not in chosen or info.locked or not own:
                continue
            anchors[object_id] = own
            low = max(first, min(own)) if direction == "forward" else first
            high = min(last, max(own)) if direction == "backward" else last
            wanted[object_id] = self._wanted(object_id, range(low, high + 1), only_stale)
        source = Source(self.model, self.window, self.end_after)
        return Task(self.view, source, anchors, wanted)

    def compute_preview(self, task: Task, frame: int) -> Step:
        """The masks of all objects with prompts on a frame, from these prompts alone."""
        return self._engine.preview(task, frame)

    def compute_propagation(self, task: Task) -> Iterator[Step]:
        """The masks of all objects on the frames that are wanted."""
        if not task.anchors:
            raise NothingToDo(
                "No object has a prompt yet: click on an object or draw a box around it first."
            )
        return self._engine.propagate(task)

    def encode(self, task: Task, frame: int) -> None:
        """Look at a frame ahead of the first click on it. Takes long, as `compute_...`."""
        self._engine.encode(task, frame)

    def is_encoded(self, frame: int) -> bool:
        """Whether a click on a frame would be answered at once."""
        return self._engine.is_encoded(self.task(objects=()), frame)

    def accept(self, task: Task, step: Step) -> None:
        """Take over what was found, except where prompts have changed since it was asked for."""
        key = task.view.key
        is_preview = step.total == 1
        group = self.history.following() if is_preview else self.history.change("Propagate", task)
        with group:
            taken = []
            for object_id, mask in step.masks.items():
                info = self.objects.get(object_id)
                if info is None or info.locked:
                    continue
                now = self._anchors(object_id, key)
                asked = task.anchors[object_id].get(step.frame)
                if not now or asked is not now.get(step.frame):
                    continue
                if asked is not None and asked.mask is not None:
                    continue  # a person's own mask is the answer
                found = Found(mask, task.basis(object_id, step.frame))
                self._found.set((key, object_id), step.frame, found)
                taken.append(object_id)
            self._write(task.view, [step.frame] if taken else [], *taken)

    # -- helpers -------------------------------------------------------------------------------

    def _carry_out(self, task: Task) -> Iterator[Step]:
        for step in self.compute_propagation(task):
            self.accept(task, step)
            yield step

    def _check_object(self, object_id: int) -> None:
        if object_id not in self._objects.at(_ALL):
            raise ValueError(f"There is no object {object_id}; add it with add_object first.")

    def _check_frame(self, frame: int) -> None:
        if not 0 <= frame < len(self.view):
            raise ValueError(f"There is no slice {frame}; there are {len(self.view)}, from 0.")

    def _check_unlocked(self, object_id: int, frame: int | None = None) -> None:
        self._check_object(object_id)
        info = self._objects.at(_ALL)[object_id]
        if info.locked:
            raise LockedError(f"{info.name} is locked. Unlock it first.")
        if frame is not None:
            self._check_frame(frame)
            kept = self._kept.get((self.view.key, object_id), frame)
            if kept is not None:
                raise LockedError(f"{info.name} is {kept.how} on slice {frame}. Unlock it first.")

    def _said(self, object_id: int, frame: int) -> SlicePrompts:
        return self._prompts.get((self.view.key, object_id), frame) or SlicePrompts()

    def _anchors(self, object_id: int, key: SequenceKey | None = None) -> dict[int, SlicePrompts]:
        """Frame -> what an object's masks follow from: what is kept there, else its prompts."""
        place = key or self.view.key, object_id
        said = {f: one for f, one in self._prompts.at(place).items() if one.usable}
        return said | {f: kept.prompts for f, kept in self._kept.at(place).items()}

    def _currency(self, object_id: int) -> Callable[[int], bool]:
        """A test whether what was found on a frame follows from what there is now."""
        anchors = self._anchors(object_id)
        frames = sorted(anchors)
        source = Source(self.model, self.window, self.end_after)
        found = self._found.at((self.view.key, object_id))

        def is_current(frame: int) -> bool:
            if frame not in found or not frames:
                return False
            if frame in anchors:
                return found[frame].basis == (source, anchors[frame])
            place = bisect_left(frames, frame)
            around = frames[max(0, place - 1) : place + 1] if place else frames[:1]
            return found[frame].basis == (source, *(anchors[f] for f in around))

        return is_current

    def _wanted(self, object_id: int, frames: range, only_stale: bool) -> list[range]:
        anchors = self._anchors(object_id)
        found = self._found.at((self.view.key, object_id))
        is_current = self._currency(object_id)
        return runs(
            frame
            for frame in frames
            if not (frame in anchors and anchors[frame].mask is not None)
            and not is_current(frame)
            and (frame in found or frame in anchors or not only_stale)
        )

    def _say(self, object_id: int, frame: int, said: SlicePrompts | None) -> None:
        """Change what is said on a frame, and take back the masks that followed from it alone."""
        place = self.view.key, object_id
        own = self._prompts.get(place, frame)
        if own is None or not own.usable:
            self._tracked.set(place, frame, self._found.get(place, frame))
        tracked = self._tracked.get(place, frame)
        if said is not None and said.box is None and tracked is not None and tracked.mask:
            low_res = tracked.mask.low_res
            logits = None if low_res is None else low_res.astype(np.float32)
            said = replace(said, mask_input=logits)
        self._prompts.set(place, frame, said)
        if said is not None:
            if not said.usable:
                self._found.set(place, frame, None)
        elif not self._anchors(object_id):
            self._clear(place, prompts=False)
        else:
            self._found.set(place, frame, tracked)
            self._tracked.set(place, frame, None)
        self._write(self.view, [frame], object_id)

    def _clear(self, place: Place, prompts: bool = True) -> None:
        """Empty all cells of an object in a sequence."""
        key, object_id = place
        frames = sorted(self._shown_frames(place))
        tables: list[Cells[Any]] = [self._found, self._tracked, self._kept]
        for cells in [*tables, self._prompts] if prompts else tables:
            for frame in list(cells.at(place)):
                cells.set(place, frame, None)
        self._write(self.view_of(key), frames, object_id)

    def _restored(self, change: Change | None) -> str | None:
        """Show what undo or redo has changed."""
        if change is None:
            return None
        frames: dict[Place, set[int]] = {}
        for cells, place, frame in change.cells:
            if cells is not self._objects:
                frames.setdefault(place, set()).add(frame)  # type: ignore[arg-type]
        for (key, object_id), changed in frames.items():
            self._write(self.view_of(key), sorted(changed), object_id)
        self.objects_changed.emit()
        self.prompts_replaced.emit()
        return change.label

    def _shown_frames(self, place: Place) -> set[int]:
        painted = {f for f, said in self._prompts.at(place).items() if said.mask is not None}
        return {*self._found.at(place), *self._kept.at(place), *painted}

    def _shown(self, place: Place, frame: int) -> ObjectMask | None:
        """The mask that the labels show: what is kept, else painted, else found."""
        kept = self._kept.get(place, frame)
        said = self._prompts.get(place, frame)
        found = self._found.get(place, frame)
        mask = found.mask if found is not None else None
        if kept is not None:
            mask = kept.prompts.mask
        elif said is not None and said.mask is not None:
            mask = said.mask
        return mask if mask is not None and mask.logits.size else None

    def _write(self, view: SequenceView, frames: Iterable[int], *also: int) -> None:
        """Write frames of `labels` anew: what a person keeps goes first, then the larger logit.

        Only pixels of objects with a mask on the frame, and of the objects `also`, are touched.
        """
        for frame in frames:
            index = view.index(frame)
            self.labels[index] = self._composed(view, frame, *also)
            self.masks_changed.emit(index)

    def _composed(self, view: SequenceView, frame: int, *also: int) -> NDArray[Any]:
        """(H, W) what `labels` hold on a frame, by `_write`'s rules."""
        key = view.key
        found: dict[int, ObjectMask] = {}
        for object_id in self._objects.at(_ALL):
            mask = self._shown((key, object_id), frame)
            if mask is not None:
                found[object_id] = mask
        labels = np.array(self.labels[view.index(frame)])
        labels[np.isin(labels, [*also, *found])] = 0
        free = labels == 0
        best = np.zeros(labels.shape, np.float16)
        for object_id in sorted(found, key=lambda i: (not self._is_kept((key, i), frame), i)):
            mask = found[object_id]
            logits = mask.logits
            if self._is_kept((key, object_id), frame):
                logits = np.where(logits > 0, np.float16(np.inf), np.float16(0))
            wins = (logits > best[mask.area]) & free[mask.area]
            labels[mask.area][wins] = object_id
            best[mask.area][wins] = logits[wins]
        return labels

    def _is_kept(self, place: Place, frame: int) -> bool:
        """Whether a person has given, approved or locked the mask on a frame."""
        said = self._prompts.get(place, frame)
        info = self._objects.get(_ALL, place[1])
        return (
            self._kept.get(place, frame) is not None
            or (said is not None and said.mask is not None)
            or (info is not None and info.locked)
        )


def _checked_labels(labels: Any, shape: tuple[int, ...]) -> Any:
    if labels is None:
        return np.zeros(shape, np.int32)
    if tuple(labels.shape) != shape:
        raise ValueError(f"The labels have shape {tuple(labels.shape)}, the image {shape}.")
    if np.dtype(labels.dtype).kind not in "ui":
        raise ValueError(f"Labels are whole numbers, but these are {labels.dtype}.")
    return labels


def _union(shape: tuple[int, int], masks: Sequence[ObjectMask | None]) -> ObjectMask | None:
    known = [mask for mask in masks if mask is not None]
    if len(known) < 2:
        return known[0] if known else None
    return ObjectMask.given(np.logical_or.reduce([mask.on_frame(shape) for mask in known]))


def _merged(said: Sequence[SlicePrompts | None], painted: ObjectMask | None) -> SlicePrompts:
    """What is said of two objects on a frame, said of one."""
    known = [one for one in said if one is not None]
    boxes = np.array([one.box for one in known if one.box is not None])
    box = (*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)) if len(boxes) else None
    return SlicePrompts(
        np.concatenate([one.points for one in known]),
        np.concatenate([one.labels for one in known]),
        box,  # type: ignore[arg-type]
        mask=painted,
    )
