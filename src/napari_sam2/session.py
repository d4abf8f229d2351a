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
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_sam2.areas import CLOSE, Area, around_boxes
from napari_sam2.given import positions, several
from napari_sam2.history import Change
from napari_sam2.label_masks import LabelMasks, masks_in, names_and_parents
from napari_sam2.lineage import ancestors
from napari_sam2.output import Output
from napari_sam2.sequence_view import SequenceKey
from napari_sam2.session_base import LockedError, NothingToDo, default_name
from napari_sam2.session_tracks import TrackEdits
from napari_sam2.slice_data import (
    REJECTED,
    Found,
    Keep,
    Kept,
    Life,
    Look,
    ObjectMask,
    Place,
    SessionState,
    SlicePrompts,
)
from napari_sam2.tasks import OtherSide, Step, Task, basis, origins
from napari_sam2.unread import UnreadableSlices, unreadable_text
from sam2_engine.unreadable import UnreadableFrame

__all__ = ["Direction", "LockedError", "NothingToDo", "Session", "UnreadableSlices"]

Direction = Literal["both", "forward", "backward"]


class Session(TrackEdits):
    """Objects, prompts and masks of one image.

    Prompts belong to the sequence that is shown (`show`): in a volume the slices along one axis.
    Masks of all sequences are written to the same `labels`.

    Masks follow from prompts, frames and model alone: a slice from the prompts on it, any other
    slice from the nearest slice with prompts. What a person paints, approves or locks is never
    written, and the slices around follow from it as from a prompt.
    """

    # -- prompts -------------------------------------------------------------------------------

    def set_prompts(
        self,
        object_id: int,
        frame: int,
        *,
        points: ArrayLike = (),
        labels: ArrayLike | None = None,
        box: Sequence[float] | None = None,
        scribbles: Iterable[tuple[ArrayLike, int]] = (),
        lassos: Iterable[ArrayLike] = (),
    ) -> None:
        """Say all there is to say of an object on a frame; with nothing, take back what was said.

        Points and scribbles on a frame whose mask was tracked correct that mask; a box or a lasso
        starts over. On a frame that is painted, approved or locked, prompts wait until it is free
        again. Masks that lose their prompt are taken back; `preview` or `propagate` makes new ones.

        Args:
            points: (N, 2) y, x on the frame.
            labels: (N,) 1 on the object, 0 beside it; all 1 by default.
            box: y0, x0, y1, x1.
            scribbles: (path, label) each; a path is (N, 2) y, x, a label as above.
            lassos: polygons around the object or parts of it, each (N, 2) y, x with N of 3 or more.

        Raises LockedError where the object is locked, or its track does not reach to the frame;
        ValueError: no such object or frame, marks outside of the frame, or shapes that do not fit.
        """
        self._check_unlocked(object_id)
        self._check_frame(frame)
        said = SlicePrompts.create(points, labels, box, scribbles, lassos)
        self._check_inside(said)
        if not said.is_empty:
            self._check_alive(object_id, frame)
        said = replace(said, mask=self._said(object_id, frame).mask)
        with self.history.change("Prompt"):
            self._say(object_id, frame, said)
        self.objects_changed.emit()

    def add_points(
        self, object_id: int, points: ArrayLike, labels: ArrayLike | None = None
    ) -> list[int]:
        """Add points to what is said already. Returns the frames that they lie on.

        points: (N, D) positions in the image's array, (z, y, x) in a volume.
        labels: (N,) 1 on the object, 0 beside it; all 1 by default.

        Raises as `set_prompts`; ValueError also for points in another sequence.
        """
        self._check_unlocked(object_id)
        at = positions(points, len(self.view.shape), "point")
        frames, yx = self.view.split(at)
        new = SlicePrompts.create(yx, labels)
        if (frames < 0).any():
            lost = at[frames < 0][0].tolist()
            raise ValueError(f"The point {lost} lies outside the image or its sequence.")
        changed = [int(frame) for frame in np.unique(frames)]
        for frame in changed:
            self._check_alive(object_id, frame)
        with self.history.change("Prompt"):
            for frame in changed:
                here = frames == frame
                more = SlicePrompts(new.points[here], new.labels[here])
                self._say(object_id, frame, self._said(object_id, frame).with_more(more))
        self.objects_changed.emit()
        return changed

    def add_box(self, object_id: int, frame: int, box: Sequence[float]) -> None:
        """Draw a box, y0, x0, y1, x1, around the object on a frame; it replaces an earlier one.

        This, `add_scribble` and `add_lasso` raise as `set_prompts`.
        """
        self._add(object_id, frame, SlicePrompts.create(box=box))

    def add_scribble(self, object_id: int, frame: int, path: ArrayLike, label: int = 1) -> None:
        """Draw a line, (N, 2) y, x, on the object on a frame; beside it with the label 0."""
        self._add(object_id, frame, SlicePrompts.create(scribbles=[(path, label)]))

    def add_lasso(self, object_id: int, frame: int, polygon: ArrayLike) -> None:
        """Draw a polygon, (N, 2) y, x, around the object or a part of it on a frame."""
        self._add(object_id, frame, SlicePrompts.create(lassos=[polygon]))

    def _add(self, object_id: int, frame: int, more: SlicePrompts) -> None:
        self._check_unlocked(object_id)
        self._check_frame(frame)
        self._check_inside(more)
        self._check_alive(object_id, frame)
        with self.history.change("Prompt"):
            self._say(object_id, frame, self._said(object_id, frame).with_more(more))
        self.objects_changed.emit()

    def paint(self, object_id: int, frame: int, mask: ArrayLike) -> None:
        """Give an object's mask on a frame by hand; from then on nothing else changes it.

        mask: (H, W), nonzero on the object; all 0 to say that it is not there.

        Raises LockedError where the object is locked, the frame locked or approved, or the track
        does not reach to it; ValueError: no such object or frame, or a mask of another shape.
        """
        self._check_unlocked(object_id, frame)
        self._check_alive(object_id, frame)
        given = np.asarray(mask)
        if given.shape != self.view.frame_shape:
            raise ValueError(
                f"The mask is {given.shape}, but the slices are {self.view.frame_shape}."
            )
        known = self._said(object_id, frame)
        with self.history.change("Paint"):
            painted = replace(known, mask=ObjectMask.given(given))
            self._say(object_id, frame, painted, claimed=[object_id])
        self.objects_changed.emit()

    def take_painting(self, frame: int) -> list[int]:
        """Take over what someone has painted into `labels` on a frame, as by `paint`.

        What is seen of an object becomes its mask. What is locked or approved stays as it was.
        Returns the objects whose masks have changed.
        """
        self._check_frame(frame)
        output = self._writer.output
        now = np.array(output.labels[self.view.index(frame)])
        shown = output.expected(self.view, frame, self.objects)
        differs = now != shown
        if not differs.any():
            return []
        fixed = [i for i in self.objects if self._records.is_fixed((self.view.key, i), frame)]
        seen = np.where(np.isin(shown, fixed), shown, now)
        erased = (seen == 0) & (shown != 0)
        touched = {*np.unique(seen[differs]).tolist(), *np.unique(shown[differs]).tolist()}
        for object_id in self.objects:  # erased is erased, also for what lay beneath
            own = self._records.shown((self.view.key, object_id), frame)
            if own is not None and (erased[own.area] & (own.logits > 0)).any():
                touched.add(object_id)
        changed = []
        with self.history.change("Paint"), self.writing_together():
            for object_id in sorted(touched.intersection(self.objects).difference(fixed)):
                mask, before = seen == object_id, shown == object_id
                covered = np.isin(seen[before & ~mask], list(self.objects)).all()
                is_only_covered = covered and (before & ~mask).any() and not (mask & ~before).any()
                place = self.view.key, object_id
                if is_only_covered and not self._records.is_kept(place, frame):
                    continue  # what is painted goes first anyway
                self.paint(object_id, frame, mask)
                changed.append(object_id)
            self._writer.write(self.view, [frame], claimed=self.objects)
        return changed

    def unpaint(self, object_id: int, frame: int) -> None:
        """Take back what was painted by hand; clicks and boxes on the frame count again.

        Raises LockedError as `paint`.
        """
        self._check_unlocked(object_id, frame)
        known = self._said(object_id, frame)
        if known.mask is None:
            return
        with self.history.change("Unpaint"):
            self._say(object_id, frame, replace(known, mask=None))
        self.objects_changed.emit()
        self.prompts_replaced.emit()

    def take_labels(
        self,
        labels: Any,
        object_ids: Iterable[int] | None = None,
        frames: Iterable[int] | None = None,
        parents: Mapping[int, int] | None = None,
    ) -> list[int]:
        """Take masks of existing labels as if painted by hand. Returns the objects.

        The masks start propagations from there. Objects keep their ids, and are made where there
        are none with these, under the names that they have in the layer.

        Args:
            labels: integers in the shape of the image, or a napari labels layer of any shape and
                place, which needs an image layer; read frame by frame.
            object_ids: which of them; by default all.
            frames: the slices of the sequence to take; by default, for each object, the one where
                it is largest.
            parents: daughter -> parent, by default those of the layer. Of two that are both taken,
                the daughter begins on its first slice in the labels, and the parent ends on its
                last one. Links of which that does not hold are left out, and all of them where not
                all slices are looked at.

        Raises LockedError where something locked or approved would change, ValueError where an id
        cannot be used; nothing is taken then.
        """
        chosen = None if object_ids is None else several(object_ids, "objects")
        wanted = None if frames is None else self._checked(frames)
        names, own = names_and_parents(labels)
        found = masks_in(self.view, labels, chosen, wanted)
        return self.take_masks(found, names, own if parents is None else parents)

    def take_masks(
        self,
        found: LabelMasks,
        names: Mapping[int, str] | None = None,
        parents: Mapping[int, int] | None = None,
    ) -> list[int]:
        """Take what `take_labels` takes, once it has been read. Returns the objects.

        names: of objects that have none yet. parents: as there. Raises as there.
        """
        for object_id, frame in found.masks:
            if object_id in self.objects:
                self._check_unlocked(object_id, frame)
                self._check_alive(object_id, frame)
            else:
                self._check_new_id(object_id)
        with self.history.change("Take labels"), self.writing_together():
            for object_id in found.objects:
                name, own = (names or {}).get(object_id, ""), self.objects.get(object_id)
                if own is None:
                    self.add_object(name, object_id)
                elif name and own.name == default_name(object_id):
                    self._records.set_object(object_id, replace(own, name=name))
            for (object_id, frame), mask in found.masks.items():
                place = self.view.key, object_id
                look = self._records.look(place) or Look()  # many do not each get their own look
                self._records.set_look(place, look._replace(is_settled=True))
                self._say(object_id, frame, replace(self._said(object_id, frame), mask=mask))
            self._take_parents(parents or {}, found.spans)
        self.objects_changed.emit()
        return found.objects

    def _take_parents(self, parents: Mapping[int, int], spans: Mapping[int, Life]) -> None:
        """Link those that are there between these frames, where that makes sense."""
        for daughter, parent in parents.items():
            if not {daughter, parent} <= spans.keys():
                continue
            begin = min(spans[daughter].first, self._span(daughter)[0])
            end = max(spans[parent].last or 0, self._span(parent)[1])
            if begin > end and daughter not in ancestors(self._records.parents, parent):
                self._link(daughter, parent, begin, end)

    # -- what is kept --------------------------------------------------------------------------

    def keep(self, object_id: int, frames: Iterable[int], how: Keep = "approved") -> None:
        """Approve or lock an object's masks on frames as they are; nothing writes them any more.

        A frame without a mask is kept as one where the object is not.

        how: "approved" for masks that someone has looked at, "locked" for the rest.

        Raises ValueError: no such object or frame.
        """
        self._check_object(object_id)
        if how not in get_args(Keep):
            raise ValueError(f'Masks are kept as "approved" or "locked", not as {how!r}.')
        frames = self._checked(frames)
        place = self.view.key, object_id
        with self.history.change("Approve" if how == "approved" else "Lock"):
            for frame in frames:
                mask = self._records.shown(place, frame) or ObjectMask.given(np.zeros((1, 1)))
                self._records.kept.set(place, frame, Kept(how, SlicePrompts(mask=mask)))
            self._writer.write(self.view, frames)
        self.objects_changed.emit()

    def release(self, object_id: int, frames: Iterable[int]) -> None:
        """Take back what `keep` did; the masks stay as they are until they are computed again.

        Where an object has nothing else that its masks follow from, a mask that is released
        counts as painted by hand, so that it is not lost.
        """
        self._check_object(object_id)
        place, records = (self.view.key, object_id), self._records
        changed = sorted(set(self._checked(frames)) & records.kept.at(place).keys())
        with self.history.change("Unlock"):
            for frame in changed:
                mask = records.kept.at(place)[frame].prompts.mask
                records.kept.set(place, frame, None)
                if not records.anchors(place):
                    records.say(place, frame, replace(records.said(place, frame), mask=mask))
                    continue
                if mask is not None and records.shown(place, frame) is not mask:
                    records.found.set(place, frame, Found(None if mask.is_empty else mask, ()))
            self._writer.write(self.view, changed)
        self.objects_changed.emit()

    def kept(self, object_id: int) -> Mapping[int, Keep]:
        """Frame -> "approved" or "locked", of the sequence that is shown."""
        kept = self._records.kept.at((self.view.key, object_id))
        return {frame: one.how for frame, one in kept.items()}

    def reject(self, object_id: int, frames: Iterable[int]) -> None:
        """Say that an object's masks on frames are wrong: they and the marks there are cleared.

        `update` or `propagate` finds them again, from the nearest slices before and behind that
        are not rejected: these are locked as they are, unless they are marked or kept already.

        Raises:
            LockedError: the object is locked, or a slice painted or approved.
            NothingToDo: nothing was looked for on a slice, or no other slice shows the object.
        """
        self._check_unlocked(object_id)
        frames = self._checked(frames)
        name, states = self._records.objects[object_id].name, self.states(object_id)
        place = self.view.key, object_id
        for frame in frames:
            state = states.get(frame)
            if state in ("painted", "approved"):
                raise LockedError(f"{name} is {state} on slice {frame}. Take that back first.")
            if state is None and frame not in self._records.found.at(place):
                raise NothingToDo(f"{name} was not looked for on slice {frame}: Propagate first.")
        with self.history.change("Reject"):
            changed = self._records.reject(place, frames)
            self._writer.write(self.view, changed)
        if frames and not changed:
            raise NothingToDo(
                f"There is no other slice that {name} could be found from on slice {frames[0]}. "
                "Mark it anew instead."
            )
        self.objects_changed.emit()
        self.prompts_replaced.emit()

    def look_closely(self, object_id: int, times: float | None = CLOSE) -> Area | None:
        """Look for an object in an area about it, at a higher resolution; not outside of it.

        Small objects are followed better so; it takes longer, since every object has its own look
        at each slice. Masks that the model has found are out of date then. The area follows it,
        and goes to where it is marked. From then on it is not decided by itself any more.

        times: how many times as wide as the object, where it is marked; None: all of the slices.

        Returns the area (y0, x0, y1, x1), as `area`: None also where that would be all. Raises
        NothingToDo where it is not known how large the object is; LockedError.
        """
        self._check_unlocked(object_id)
        place = self.view.key, object_id
        boxes = self._looks.extents(place)
        if times is not None and not boxes:
            raise NothingToDo(
                f"It is not known how large {self._name(object_id)} is: mark it on a slice first."
            )
        area = None if times is None else around_boxes(boxes, times, self.view.frame_shape)
        with self.history.change("Look closely" if area else "Look at all of it"):
            self._records.set_look(place, Look(area))
        self.objects_changed.emit()
        return area

    # -- history -------------------------------------------------------------------------------

    def undo(self) -> str | None:
        """Take the last change back. Returns what it was; None if there is nothing."""
        return self._restored(self.history.undo())

    def redo(self) -> str | None:
        """Make the change again that was last taken back. Returns what it is, or None."""
        return self._restored(self.history.redo())

    @property
    def corrected(self) -> frozenset[int]:
        """Objects for which the last change has marked, painted or rejected something in the
        sequence that is shown."""
        last = self.history.last
        places = set() if last is None else self._records.corrected(last)
        return frozenset(i for i in self.objects if (self.view.key, i) in places)

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

    # -- saving --------------------------------------------------------------------------------

    def snapshot(self) -> SessionState:
        """All there is to save, but for the labels and the history.

        It takes no time and shares its values with the session, which never change: it can be
        taken and written in another thread while the session goes on.
        """
        with self.history.lock:
            return SessionState(
                self.objects,
                self._records.snapshot(self._source),
                self.view.key,
                self.window,
                self.end_after,
                self.memory,
                self._last_id,
                self.parents,
                self.no_divisions,
                self.memory_tokens,
                self.closely,
                self.seconds,
            )

    def restore(self, state: SessionState, trust: bool = True) -> None:
        """Take over a saved state in place of the present one. The history begins anew.

        What the labels hold under the ids of its objects is taken as written from this state.

        trust: take masks that were up to date as up to date now; False where image or model are
            others than they were.
        """
        self._writer.clear()
        self.window, self.end_after, self.memory = state.window, state.end_after, state.memory
        self.memory_tokens, self.closely = state.memory_tokens, state.closely
        self._last_id = state.last_id
        self._seconds = dict(state.seconds)
        self._writer.output.claim(state.objects)
        with self.history.lock:
            self._records.load(
                state.objects,
                state.sequences,
                self._source,
                trust,
                state.parents,
                state.no_divisions,
            )
        frames: dict[SequenceKey, set[int]] = defaultdict(set)
        for key, object_id in state.sequences:
            frames[key].update(self._records.masks((key, object_id)))
        for key, changed in frames.items():
            self._writer.write(self.view_of(key), sorted(changed), claimed=state.objects)
        self.history.clear()
        self.view = self.view_of(state.shown)
        self.objects_changed.emit()
        self.prompts_replaced.emit()

    # -- work in another thread ----------------------------------------------------------------

    def branch(self) -> Session:
        """A session of its own that goes on from here, for work that takes long in another thread.

        `take_branch` takes over what becomes of it.
        """
        other = Session(
            self.image,
            self.model,
            window=self.window,
            end_after=self.end_after,
            memory=self.memory,
            memory_tokens=self.memory_tokens,
            closely=self.closely,
            **self._how,
        )
        labels = np.zeros(self.view.shape, self._writer.output.labels.dtype)
        other.write_to(labels, others=self._writer.output.others)  # so that new ids fit in here
        with self.history.lock:
            self._branched[other] = self._records.cells()
        for (number, place, frame), value in self._branched[other].items():
            other._records.tables[number].put(place, frame, value)
        other._last_id = self._last_id
        for key in self._views:  # it must not take an object that is marked elsewhere for a new one
            other.view_of(key)
        other.show(self.view.key)
        return other

    def take_branch(self, branch: Session, label: str) -> list[int]:
        """Take over what has changed in a branch, in one step of undo. Returns its new objects.

        What has changed here meanwhile is kept, also an object that is gone there. A new object
        whose id is taken, here or by others in the labels, gets another one.
        label: of the step, for people.

        Raises ValueError where the labels' type has no id left; nothing is taken over then.
        """
        before, output = self._branched[branch], self._writer.output
        after, now, records = branch._records.cells(), self._records.cells(), self._records
        known, here = {records.object_of(cell) for cell in before}, self.objects.keys()
        changed_here = [c for c in before.keys() | now.keys() if now.get(c) is not before.get(c)]
        kept = {records.object_of(cell) for cell in changed_here} - branch.objects.keys()
        own = {new: new for new in branch.objects if new not in known}
        fit = {new for new in own.keys() - here - output.others if new <= output.largest_id}
        last_id = max(self._last_id, *fit, 0)
        for new in sorted(own.keys() - fit):
            own[new] = last_id = self._new_id(last_id)
            self._check_new_id(last_id)
        self._last_id = last_id
        frames: dict[SequenceKey, set[int]] = defaultdict(set)
        with self.history.change(label):
            for old in before.keys() | after.keys():
                value, object_id = after.get(old), records.object_of(old)
                cell = records.with_object(old, own.get(object_id, object_id))
                is_same = value is before.get(old) or now.get(cell) is not before.get(old)
                is_lost = object_id not in own and object_id not in here
                if is_same or is_lost or object_id in kept:
                    continue
                number, place, frame = cell
                if isinstance(value, int):  # a parent
                    value = own.get(value, value)
                records.tables[number].set(place, frame, value)
                if isinstance(place, tuple):
                    frames[place[0]].add(frame)
            links = records.parents.items()
            records.set_parents({d: p for d, p in links if {d, p} <= self.objects.keys()})
            for key, changed in frames.items():
                self._writer.write(self.view_of(key), sorted(changed))
        del self._branched[branch]
        self.objects_changed.emit()
        self.prompts_replaced.emit()
        return sorted(set(own.values()) & self.objects.keys())

    # -- masks ---------------------------------------------------------------------------------

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

    def check_read(self) -> None:
        """Raises UnreadableSlices where the last run through a sequence has passed over slices."""
        for unread in self._unread.values():
            if unread:
                raise UnreadableSlices(unreadable_text(unread), self)

    def other_sides(self, object_id: int) -> Mapping[int, OtherSide]:
        """Frame -> how a mask agrees with that from the other side, where `check_both_sides` saw.

        Of the sequence that is shown. A mask that is found anew has to be compared anew.
        """
        self._check_object(object_id)
        found = self._records.found.at((self.view.key, object_id)).items()
        return {f: self._other_sides[one] for f, one in found if one in self._other_sides}

    # The above in parts, so that the model can work in another thread: `task` and `accept` are
    # quick and belong to the thread that sets prompts; `compute_...` take long and touch nothing
    # but the task, but only one may run at a time.

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
        anchors, wanted, areas, lives = {}, {}, {}, {}
        for object_id, info in self.objects.items():
            place = self.view.key, object_id
            own = self._records.anchors(place)
            if not own:
                continue
            anchors[object_id] = own
            area = self._records.area(place, self._source)
            if area is not None:
                areas[object_id] = area
            if object_id not in chosen or info.locked:
                continue
            marked = origins(own)
            low = max(first, marked[0]) if direction == "forward" else first
            high = min(last, marked[-1]) if direction == "backward" else last
            lives[object_id] = life = self._records.life(place)
            low = max(low, life.first)
            high = high if life.last is None else min(high, life.last)
            if to is not None:
                near = min(marked, key=lambda frame: (abs(frame - to), frame))
                low, high = max(low, min(near, to)), min(high, max(near, to))
            wanted[object_id] = self._records.wanted(
                place, self._source, range(low, high + 1), only_stale
            )
        return Task(self.view, self._source, anchors, wanted, areas, lives, joins_last=joins_last)

    def has_changed_since(self, task: Task) -> bool:
        """Whether what a person said of the objects of a task is not what it was: marks, painted
        masks, ends or locks. Approved masks do not count, nor do intensities.

        What is still to come of such a task is better asked for anew.
        """
        for object_id, wanted in task.wanted.items():
            place, info = (task.view.key, object_id), self.objects.get(object_id)
            if info is None or info.locked:
                if wanted:
                    return True
                continue
            if task.lives[object_id] != self._records.life(place):
                return True
            asked, now = task.anchors[object_id], self._records.anchors(place)
            changed = {f for f in asked.keys() | now.keys() if asked.get(f) is not now.get(f)}
            if changed - self._records.kept.at(place).keys():
                return True
        return False

    def preview_task(self, frame: int) -> Task:
        """What there is to compute for `compute_preview` on a frame: objects that are up to date
        there are left out, unless all are.

        Objects of which it is yet to be decided are looked at closely, if it is known how large
        they are; `accept` sees whether that goes well.
        """
        self._check_frame(frame)
        task, key, areas, looks = self.task(objects=()), self.view.key, {}, self._looks
        here = [i for i, own in task.anchors.items() if frame in own]
        tried = [i for i in here if looks.is_undecided((key, i))]
        for object_id in tried:
            area = looks.area_to_try((key, object_id))
            if area is not None:
                areas[object_id] = area
        free = [i for i in here if not self._records.objects[i].locked]
        wanted = [i for i in free if self._records.wanted((key, i), self._source, [frame], False)]
        chosen = [i for i in here if i in tried or i in wanted] or here
        anchors = {i: task.anchors[i] for i in chosen}
        return replace(task, anchors=anchors, areas={**task.areas, **areas})

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
        wanted, is_between = {}, False
        for object_id in task.wanted:
            own, known = task.anchors[object_id], self.other_sides(object_id)
            marked = origins(own)
            found = self.looked_at(object_id) - set(self.stale(object_id)) - own.keys()
            between = {frame for frame in found if marked[0] < frame < marked[-1]}
            is_between = is_between or bool(between)
            wanted[object_id] = frozenset(between - known.keys())
        if not is_between:
            raise NothingToDo(
                "No object has masks between two slices that are marked: mark it on two slices or "
                "more and propagate first."
            )
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
        return self._engine.is_encoded(self.task(objects=()), frame)

    def accept(self, task: Task, step: Step) -> bool:
        """Take over what was found, except where prompts have changed since it was asked for.

        Returns whether a preview is to be computed once more, of a new `preview_task`: a small
        object is to be looked at closely, or one that was is not so small.
        """
        if not step.is_preview:
            self._note_unread(task, step)
        if task.is_check:
            self._compare(task, step)
            return False
        key, again, looks = task.view.key, False, self._looks
        is_new_look = step.is_preview and task.source == self._source
        history = self.history
        is_following = step.is_preview or task.joins_last
        with history.following() if is_following else history.change("Propagate", task):
            is_new = False
            for object_id, mask in step.masks.items():
                place, info = (key, object_id), self._records.objects.get(object_id)
                if info is None or info.locked or not self._records.life(place).has(step.frame):
                    continue
                now = self._records.anchors(place)
                asked = task.anchors[object_id].get(step.frame)
                if not now or asked is not now.get(step.frame):
                    continue
                if asked is not None and asked.mask is not None:
                    if is_new_look and looks.is_undecided(place):
                        looks.begin(place)
                    continue  # a person's own mask is the answer
                if step.is_preview and not looks.is_close_enough(task, object_id, step):
                    again |= bool(self._records.wanted(place, self._source, [step.frame], False))
                    continue
                found = Found(mask, task.basis(object_id, step.frame))
                known = self._records.found.get(place, step.frame)
                if (
                    known is not None
                    and known.basis == REJECTED
                    and found.basis
                    != basis(task.source, now, step.frame, self._records.area(place, task.source))
                ):
                    continue  # it was rejected meanwhile
                if known is None or known.basis != found.basis:  # not again along with others
                    if step.is_preview and self._is_current(place, step.frame):
                        continue
                    self._records.found.set(place, step.frame, found)
                    is_new = True
                    self._note_passed(task, object_id, step.frame, found)
                if is_new_look and mask is not None and looks.is_undecided(place):
                    again |= looks.begin(place)
            if is_new:
                self._writer.write(task.view, [step.frame])
        return again

    # -- helpers -------------------------------------------------------------------------------

    def _check_inside(self, said: SlicePrompts) -> None:
        """Marks may reach beyond the slice, but not lie outside of it altogether."""
        last = np.array(self.view.frame_shape) - 0.5
        for name, places in said.places:
            if (places.max(axis=0) < -0.5).any() or (places.min(axis=0) > last).any():
                height, width = self.view.frame_shape
                raise ValueError(
                    f"The {name} at {places.ravel().tolist()} lies outside the slice, which is "
                    f"{height} x {width} pixels."
                )

    def _checked(self, frames: Iterable[int]) -> list[int]:
        """Each of these frames once, in order."""
        chosen = several(frames, "slices")
        for frame in chosen:
            self._check_frame(frame)
        return sorted(set(chosen))

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

    def _is_current(self, place: Place, frame: int) -> bool:
        return frame in self._records.found.at(place) and frame not in self._records.stale(
            place, self._source
        )

    def _compare(self, task: Task, step: Step) -> None:
        """Keep how masks agree with those from the other side, unless they are others by now."""
        for object_id, mask in step.masks.items():
            known = self._records.found.get((task.view.key, object_id), step.frame)
            if known is not None and known.basis == task.basis(object_id, step.frame):
                self._other_sides[known] = OtherSide.of(known.mask, mask)
        self._comparisons += 1
        self.objects_changed.emit()

    def _carry_out(self, task: Task) -> Iterator[Step]:
        self._unread.pop(task.view.key, None)
        for step in self.compute_propagation(task):
            self.accept(task, step)
            yield step
        self.check_read()

    def _note_unread(self, task: Task, step: Step) -> None:
        """Keep which frames a run passes over; with its first step, those of the last are gone."""
        unread = {} if step.done == 1 else self._unread.get(task.view.key, {})
        self._unread[task.view.key] = unread | ({step.frame: step.error} if step.error else {})

    def _note_passed(self, task: Task, object_id: int, frame: int, found: Found) -> None:
        """Keep which frames a mask was found past that could not be read; and have those found anew
        that were found past this one, which can be read now.
        """
        place = task.view.key, object_id
        if self._passed:
            for at, one in list(self._records.found.at(place).items()):
                if frame in self._passed.get(one, ()):
                    self._records.found.set(place, at, Found(one.mask, ()))
        origin = min(origins(task.anchors[object_id]), key=lambda at: (abs(at - frame), at))
        between = range(min(origin, frame), max(origin, frame) + 1)
        passed = frozenset(self._unread.get(task.view.key, {})).intersection(between)
        if passed:
            self._passed[found] = passed

    def _check_alive(self, object_id: int, frame: int) -> None:
        life = self._records.life((self.view.key, object_id))
        if not life.has(frame):
            end = len(self.view) - 1 if life.last is None else life.last
            raise LockedError(
                f"{self._name(object_id)} is on slices {life.first} to {end} and not on {frame}: "
                "its ends were given, it divides or was cut. Mark the object that is here, or take "
                "that back first."
            )

    def _said(self, object_id: int, frame: int) -> SlicePrompts:
        return self._records.said((self.view.key, object_id), frame)

    def _say(
        self, object_id: int, frame: int, said: SlicePrompts, claimed: Iterable[int] = ()
    ) -> None:
        place, looks = (self.view.key, object_id), self._looks
        if looks.begins_anew(place, frame, said):
            self._records.set_look(place, None)
        changed = self._records.say(place, frame, said)
        if said.mask is not None and self.model.is_loaded and looks.is_undecided(place):
            looks.begin(place)
        self._writer.write(self.view, changed, claimed)

    def _restored(self, change: Change | None) -> str | None:
        """Show what undo or redo has changed."""
        if change is None:
            return None
        frames: dict[SequenceKey, dict[int, None]] = defaultdict(dict)
        objects = []
        for cells, place, number in change.cells:
            if self._records.is_lineage(cells):
                continue
            if self._records.is_object(cells):
                objects.append(number)
            else:
                frames[place[0]][number] = None  # type: ignore[index]
        for object_id in objects:
            covered = self._writer.frames_of(object_id, only_covered=True, known=frames)
            for key, more in covered.items():
                frames[key].update(dict.fromkeys(more))
        for key, changed in frames.items():
            self._writer.write(self.view_of(key), changed)
        self.objects_changed.emit()
        self.prompts_replaced.emit()
        return change.label
