"""What a person says of objects: marks on them, painted masks, and what is kept or rejected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike

from napari_sam2.areas import CLOSE, Area, around_boxes
from napari_sam2.counted import slice_range
from napari_sam2.given import positions, several
from napari_sam2.label_masks import LabelMasks, masks_in, names_and_parents
from napari_sam2.lineage import ancestors
from napari_sam2.session_base import LockedError, NothingToDo, default_name
from napari_sam2.session_tracks import TrackEdits
from napari_sam2.slice_data import Found, Keep, Kept, Life, Look, ObjectMask, SlicePrompts


class Marks(TrackEdits):
    """What masks follow from, as a person gives it. Each change is one step of undo."""

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
        self._tell_of_prompts()

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
        self._tell_of_prompts()
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
        self._tell_of_prompts()

    # -- painted masks, and those of existing labels ----------------------------------------------

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
        with self.history.change("Paint"), self._writer.together():
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
        self._tell_of_prompts()

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
        with self.history.change("Take labels"), self._writer.together():
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
        self._tell_of_prompts()

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

    def _check_alive(self, object_id: int, frame: int) -> None:
        life = self._records.life((self.view.key, object_id))
        if not life.has(frame):
            end = len(self.view) - 1 if life.last is None else life.last
            raise LockedError(
                f"{self._name(object_id)} is on {slice_range(life.first, end)} and not on {frame}: "
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
