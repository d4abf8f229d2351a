"""All that is known of the objects of an image, in cells that a history can take back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from napari_sam2.areas import Area, joined, needs_close_look
from napari_sam2.history import Cells, Change, History
from napari_sam2.sequence_view import SequenceKey
from napari_sam2.slice_data import (
    REJECTED,
    Basis,
    CoarseLogits,
    Found,
    Kept,
    Life,
    Look,
    ObjectInfo,
    ObjectMask,
    ObjectState,
    Place,
    SlicePrompts,
    State,
)
from napari_sam2.tasks import Source, basis

_ALL = "objects"  # the one place of each table that has a row for an object
NEAR = 5
"""Frames within which an object that was lost may still look as it did."""


Cell = tuple[int, Any, int]
"""A table's number in `Records.tables`, a place, and a frame (or an object)."""


class Records:
    """What is said, kept and found of objects, and what follows from that; no labels are written.

    A place is a sequence and an object. Cells are changed inside `History.change`.
    """

    def __init__(
        self, history: History, frame_shape: Callable[[SequenceKey], tuple[int, int]]
    ) -> None:
        """frame_shape: (H, W) of a sequence's frames."""
        self._frame_shape = frame_shape
        self._objects: Cells[ObjectInfo] = Cells(history)
        self.prompts: Cells[SlicePrompts] = Cells(history)
        """What is said, and painted."""
        self.kept: Cells[Kept] = Cells(history)
        """What is approved and locked."""
        self.found: Cells[Found] = Cells(history)
        """What the model has found."""
        self._tracked: Cells[Found] = Cells(history)
        """What was found on frames that got prompts afterwards: what these correct."""
        self._lives: Cells[Life] = Cells(history)  # all at frame 0
        self._own_lives: Cells[Life] = Cells(history)  # all at frame 0
        self._parents: Cells[int] = Cells(history)
        self._no_divisions: Cells[frozenset[int]] = Cells(history)
        self._looks: Cells[Look] = Cells(history)  # all at frame 0

    @property
    def tables(self) -> tuple[Cells[Any], ...]:
        """All there is, in one order."""
        said = self._objects, self.prompts, self.kept, self.found, self._tracked
        return *said, self._lives, self._parents, self._no_divisions, self._looks, self._own_lives

    def cells(self) -> dict[Cell, Any]:
        """The value of every cell that has one."""
        return {
            (number, place, frame): value
            for number, table in enumerate(self.tables)
            for place in table.places
            for frame, value in table.at(place).items()
        }

    def object_of(self, cell: Cell) -> int:
        """The object that a cell says something of."""
        _, place, frame = cell
        return int(frame if place == _ALL else place[1])

    def with_object(self, cell: Cell, object_id: int) -> Cell:
        """The cell that says the same of another object."""
        number, place, frame = cell
        return (
            (number, place, object_id) if place == _ALL else (number, (place[0], object_id), frame)
        )

    # -- objects -------------------------------------------------------------------------------

    @property
    def objects(self) -> Mapping[int, ObjectInfo]:
        """By id."""
        return self._objects.at(_ALL)

    @property
    def objects_revision(self) -> int:
        """Another one when an object is added, changed or taken away."""
        return self._objects.revision(_ALL)

    def revision(self, place: Place) -> tuple[ObjectInfo | None, tuple[int, ...]]:
        """Another one when something changes that is known of an object in a sequence."""
        return self.objects.get(place[1]), tuple(table.revision(place) for table in self.tables)

    def set_object(self, object_id: int, info: ObjectInfo | None) -> None:
        """Add or change an object; None takes it away."""
        self._objects.set(_ALL, object_id, info)

    def is_object(self, cells: Cells[Any]) -> bool:
        """Whether cells of a change are those of the objects."""
        return cells is self._objects

    def is_lineage(self, cells: Cells[Any]) -> bool:
        """Whether cells of a change say who descends from whom."""
        return cells is self._parents or cells is self._no_divisions

    def corrected(self, change: Change) -> set[Hashable]:
        """The places at which a change has said, painted or rejected something."""
        found = set()
        for (cells, place, _), (_, now) in change.cells.items():
            is_rejected = cells is self.found and now is not None and now.basis == REJECTED
            if cells is self.prompts or is_rejected:
                found.add(place)
        return found

    # -- where it is looked for ----------------------------------------------------------------

    def look(self, place: Place) -> Look | None:
        """How closely the model looks at an object; None where that is yet to be decided."""
        return self._looks.get(place, 0)

    def area(self, place: Place, source: Source) -> Area | None:
        """The part of the frames that the model looks at for an object; None: all.

        A model that sees such an object without looks closely only where a person has chosen so.
        """
        look = self.look(place)
        if look is None or look.area is None or look.is_settled:
            return look and look.area
        shape = self._frame_shape(place[0])
        return look.area if needs_close_look(look.area, shape, source.model.image_size) else None

    def set_look(self, place: Place, look: Look | None) -> None:
        """Change it. What was found in another area is out of date then."""
        if look != self.look(place):
            self._looks.set(place, 0, look)

    def join_looks(self, into: Place, other: Place) -> None:
        """Of one object that was two: where they were looked for in different areas, all."""
        if not (self.masks(other) or self.prompts.at(other)):
            return
        if not (self.masks(into) or self.prompts.at(into)):
            self.set_look(into, self.look(other))
        elif len({look and look.area for look in (self.look(into), self.look(other))}) > 1:
            self.set_look(into, Look())

    def begins(self, place: Place) -> bool:
        """Whether an object is marked, and was not looked for on any other frame yet."""
        anchors = self.anchors(place)
        return bool(anchors) and self.found.at(place).keys() <= anchors.keys()

    # -- lives and lineages --------------------------------------------------------------------

    def life(self, place: Place) -> Life:
        """The frames on which an object can be."""
        return self._lives.get(place, 0) or Life()

    def set_life(self, place: Place, life: Life) -> None:
        """Change it, where no mask lies outside; what the model has found outside is dropped."""
        if life == self.life(place):
            return
        self._lives.set(place, 0, None if life == Life() else life)
        for table in (self.found, self._tracked):
            for frame in [frame for frame in table.at(place) if not life.has(frame)]:
                table.set(place, frame, None)

    def own_life(self, place: Place) -> Life:
        """The life of an object as it is without its parent and its daughters."""
        life, own, object_id = self.life(place), self._own_lives.get(place, 0) or Life(), place[1]
        first = own.first if object_id in self.parents else life.first
        return Life(first, own.last if object_id in self.parents.values() else life.last)

    def set_own_life(self, place: Place, life: Life) -> None:
        """Say what it goes back to without them."""
        self._own_lives.set(place, 0, None if life == Life() else life)

    def join_lives(self, into: Place, other: Place) -> None:
        """Of one object that was two: from the earlier beginning to the later end."""
        if not (self.masks(other) or self.prompts.at(other)):
            return
        own, others = self.own_life(into), self.own_life(other)
        if self.parents.get(other[1]) == into[1]:
            own = Life(own.first, others.last)
        elif self.parents.get(into[1]) == other[1]:
            own = Life(others.first, own.last)
        else:
            own = own.joined(others)
        self.set_life(into, self.life(into).joined(self.life(other)))
        self.set_own_life(into, own)

    @property
    def parents(self) -> Mapping[int, int]:
        """Daughter -> parent."""
        return self._parents.at(_ALL)

    def set_parents(self, parents: Mapping[int, int]) -> None:
        """All of them; those that are not named have none. Who has no parent any more, or no
        daughter, begins or ends as without."""
        orphans = self.parents.keys() - parents.keys()
        childless = {*self.parents.values()} - {*parents.values()}
        lives = {*self._lives.places, *self._own_lives.places}
        own = {at: self.own_life(at) for at in lives if at[1] in orphans | childless}
        for daughter in self.parents.keys() | parents.keys():
            if self.parents.get(daughter) != parents.get(daughter):
                self._parents.set(_ALL, daughter, parents.get(daughter))
        for place, (first, last) in own.items():
            if place[1] in orphans:
                self.set_life(place, self.life(place)._replace(first=first))
            if place[1] in childless:
                self.set_life(place, self.life(place)._replace(last=last))

    @property
    def no_divisions(self) -> Mapping[int, frozenset[int]]:
        """Object -> frames on which a person says that it does not divide."""
        return self._no_divisions.at(_ALL)

    def set_no_divisions(self, object_id: int, frames: frozenset[int]) -> None:
        self._no_divisions.set(_ALL, object_id, frames or None)

    def move(self, place: Place, to: Place, first: int) -> list[int]:
        """Give all that is known of an object from a frame on to another place.

        Returns the frames whose masks may have changed.
        """
        frames = [frame for frame in self.masks(place) if frame >= first]
        tables: tuple[Cells[Any], ...] = (self.prompts, self.kept, self.found, self._tracked)
        for table in tables:
            for frame, value in list(table.at(place).items()):
                if frame >= first:
                    table.set(to, frame, value)
                    table.set(place, frame, None)
        return frames

    def drop(self, place: Place, life: Life) -> list[int]:
        """Forget all of an object on frames outside a life. Returns those that had a mask."""
        frames = [frame for frame in self.masks(place) if not life.has(frame)]
        tables: tuple[Cells[Any], ...] = (self.prompts, self.kept, self.found, self._tracked)
        for table in tables:
            for frame in [frame for frame in table.at(place) if not life.has(frame)]:
                table.set(place, frame, None)
        return frames

    # -- what is said --------------------------------------------------------------------------

    def said(self, place: Place, frame: int) -> SlicePrompts:
        """What is said on a frame; it may be empty."""
        return self.prompts.get(place, frame) or SlicePrompts()

    def say(self, place: Place, frame: int, said: SlicePrompts) -> list[int]:
        """Change what is said on a frame, and take back the masks that followed from it alone.

        Returns the frames whose masks may have changed.
        """
        before = self.prompts.get(place, frame)
        was_usable = before is not None and before.usable
        found = self.found.get(place, frame)
        tracked = self._tracked.get(place, frame) if was_usable else found
        start = None if tracked is None or tracked.mask is None else tracked.mask.coarse
        if tracked is not None and tracked.mask is None and said.points_inside:
            start = before.corrects if before is not None else None
            start = start or self._seen_near(place, frame)
        said = replace(said, corrects=None if said.starts_over else start)
        self.prompts.set(place, frame, None if said.is_empty else said)
        self._tracked.set(place, frame, tracked if said.usable else None)
        if was_usable and not said.usable:
            self.found.set(place, frame, tracked)
        if self.anchors(place):
            return [frame]
        return sorted({frame, *self._clear(place, self.found, self._tracked, self.kept)})

    def _seen_near(self, place: Place, frame: int) -> CoarseLogits | None:
        """The model's mask on the nearest frame where it found the object; None without any near.

        A click on a frame where the object was looked for in vain corrects that mask.
        """
        near = [
            (abs(f - frame), f, one.mask.coarse)
            for f, one in self.found.at(place).items()
            if abs(f - frame) <= NEAR and one.mask is not None and one.mask.coarse is not None
        ]
        return min(near, key=lambda seen: seen[:2])[2] if near else None

    def reject(self, place: Place, frames: Collection[int]) -> list[int]:
        """Clear what is found and said on frames, and lock the nearest slices around them.

        These are what the frames are found from again. Returns the frames whose masks may have
        changed; none, and nothing has changed, where there would be nothing to find them from.
        """
        found, anchors = self.found.at(place), self.anchors(place).keys() - set(frames)
        others = {f for f in found if f not in frames and found[f].basis != REJECTED} | anchors
        near = _around(sorted(others), frames) - anchors
        if not anchors and not any(self.shown(place, frame) for frame in near):
            return []
        for frame in near:
            mask = self.shown(place, frame) or ObjectMask.given(np.zeros((1, 1)))
            self.kept.set(place, frame, Kept("locked", SlicePrompts(mask=mask)))
        for frame in frames:
            self.kept.set(place, frame, None)
            self.prompts.set(place, frame, None)
            self._tracked.set(place, frame, None)
            self.found.set(place, frame, Found(None, REJECTED))
        return sorted({*frames, *near})

    def clear(self, place: Place) -> list[int]:
        """Forget all of an object in a sequence. Returns the frames that had something."""
        self.set_life(place, Life())
        self.set_own_life(place, Life())
        self.set_look(place, None)
        return self._clear(place, self.found, self._tracked, self.kept, self.prompts)

    def merge(self, frame: int, into: Place, other: Place) -> None:
        """Add what is said and shown of another place on a frame."""
        shown = [self.shown(place, frame) for place in (into, other)]
        masks = [mask for mask in shown if mask is not None]
        union = ObjectMask.union(masks)
        first, second = self.said(into, frame), self.said(other, frame)
        merged = first.with_more(second)
        if first.box is not None and second.box is not None:
            merged = replace(merged, box=joined(first.box, second.box))
        if merged.mask is not None:
            merged = replace(merged, mask=union)
        kept = self.kept.get(into, frame) or self.kept.get(other, frame)
        if kept is not None:
            self.kept.set(into, frame, Kept(kept.how, SlicePrompts(mask=union)))
        if not merged.is_empty:
            self.prompts.set(into, frame, merged)
        if masks:
            self.found.set(into, frame, Found(union, ()))

    # -- what follows --------------------------------------------------------------------------

    def anchors(self, place: Place) -> dict[int, SlicePrompts]:
        """Frame -> what an object's masks follow from: what is kept there, else its prompts."""
        said = {f: one for f, one in self.prompts.at(place).items() if one.usable}
        return said | {f: kept.prompts for f, kept in self.kept.at(place).items()}

    def wanted(
        self, place: Place, source: Source, frames: Iterable[int], only_stale: bool
    ) -> frozenset[int]:
        """Those of the frames that the model has to look at.

        only_stale: leave out those that nothing was ever computed on.
        """
        anchors, found = self.anchors(place), self.found.at(place)
        is_current = self._currency(place, source)
        return frozenset(
            frame
            for frame in frames
            if not (frame in anchors and anchors[frame].mask is not None)
            and not is_current(frame)
            and (frame in found or frame in anchors or not only_stale)
        )

    def stale(self, place: Place, source: Source) -> list[int]:
        """Frames whose masks follow from something else than there is now."""
        anchors = self.anchors(place)
        given = {frame for frame, said in anchors.items() if said.mask is not None}
        is_current = self._currency(place, source)
        return [f for f in sorted(self.found.at(place).keys() - given) if not is_current(f)]

    def masks(self, place: Place) -> dict[int, ObjectMask]:
        """What `shown` gives, on all frames where it gives something."""
        masks = {frame: found.mask for frame, found in self.found.at(place).items()}
        said = self.prompts.at(place).items()
        masks |= {frame: one.mask for frame, one in said if one.mask is not None}
        masks |= {frame: kept.prompts.mask for frame, kept in self.kept.at(place).items()}
        return {f: mask for f, mask in sorted(masks.items()) if mask and not mask.is_empty}

    def shown(self, place: Place, frame: int) -> ObjectMask | None:
        """The mask that the labels show: what is kept, else painted, else found."""
        kept, said = self.kept.get(place, frame), self.prompts.get(place, frame)
        found = self.found.get(place, frame)
        mask = found.mask if found is not None else None
        if kept is not None:
            mask = kept.prompts.mask
        elif said is not None and said.mask is not None:
            mask = said.mask
        return None if mask is None or mask.is_empty else mask

    def states(self, place: Place) -> dict[int, State]:
        """Frame -> what its mask rests on, for all frames with a mask, with marks, or rejected."""
        states: dict[int, State] = dict.fromkeys(self.masks(place), "auto")
        found = self.found.at(place).items()
        states |= {f: "rejected" for f, one in found if one.basis == REJECTED}
        for frame, said in self.prompts.at(place).items():
            if said.mask is not None or said.usable:
                states[frame] = "prompted" if said.mask is None else "painted"
        states |= {frame: kept.how for frame, kept in self.kept.at(place).items()}
        return dict(sorted(states.items()))

    def is_kept(self, place: Place, frame: int) -> bool:
        """Whether a person has given, approved or locked the mask on a frame."""
        said = self.prompts.get(place, frame)
        return self.is_fixed(place, frame) or (said is not None and said.mask is not None)

    def is_fixed(self, place: Place, frame: int) -> bool:
        """Whether an object is locked, its mask on a frame approved or locked, or its life over."""
        info = self.objects.get(place[1])
        is_locked = info is not None and info.locked
        return (
            is_locked or self.kept.get(place, frame) is not None or not self.life(place).has(frame)
        )

    # -- saving --------------------------------------------------------------------------------

    @property
    def places(self) -> set[Place]:
        """Where something is known of an object."""
        tables: tuple[Cells[Any], ...] = (self.prompts, self.kept, self.found, self._tracked)
        return {place for table in (*tables, self._lives, self._looks) for place in table.places}

    def snapshot(self, source: Source) -> dict[Place, ObjectState]:
        """All but the objects themselves, by sequence and object."""
        states = {}
        for place in sorted(self.places, key=repr):
            found, is_current = self.found.at(place), self._currency(place, source)
            states[place] = ObjectState(
                prompts=dict(self.prompts.at(place)),
                kept=dict(self.kept.at(place)),
                found={frame: one.mask for frame, one in found.items()},
                current=frozenset(frame for frame in found if is_current(frame)),
                rejected=frozenset(f for f, one in found.items() if one.basis == REJECTED),
                tracked={frame: one.mask for frame, one in self._tracked.at(place).items()},
                life=self.life(place),
                own_life=self.own_life(place),
                look=self.look(place),
            )
        return states

    def load(
        self,
        objects: Mapping[int, ObjectInfo],
        states: Mapping[Place, ObjectState],
        source: Source,
        trust: bool,
        parents: Mapping[int, int],
        no_divisions: Mapping[int, frozenset[int]],
    ) -> None:
        """Take over what was saved in place of all there is, without a note in the history.

        trust: whether masks that were up to date are up to date now.
        """
        for table in self.tables:
            table.clear()
        for daughter, parent in parents.items():
            self._parents.put(_ALL, daughter, parent)
        for object_id, rejected in no_divisions.items():
            self._no_divisions.put(_ALL, object_id, rejected)
        for object_id, info in objects.items():
            self._objects.put(_ALL, object_id, info)
        for place, state in states.items():
            if state.life != Life():
                self._lives.put(place, 0, state.life)
            if state.own_life != Life():
                self._own_lives.put(place, 0, state.own_life)
            if state.look is not None:
                self._looks.put(place, 0, state.look)
            for frame, said in state.prompts.items():
                self.prompts.put(place, frame, said)
            for frame, kept in state.kept.items():
                self.kept.put(place, frame, kept)
            for frame, mask in state.tracked.items():
                self._tracked.put(place, frame, Found(mask, ()))
            anchors = self.anchors(place)
            for frame, mask in state.found.items():
                follows: Basis = REJECTED if frame in state.rejected else ()
                if trust and frame in state.current:
                    follows = basis(source, anchors, frame, self.area(place, source))
                self.found.put(place, frame, Found(mask, follows))

    # -- helpers -------------------------------------------------------------------------------

    def _currency(self, place: Place, source: Source) -> Callable[[int], bool]:
        """A test whether what was found on a frame follows from what there is now."""
        anchors, found = self.anchors(place), self.found.at(place)
        frames, area = sorted(anchors), self.area(place, source)
        between: dict[int, Basis] = {}  # by the number of anchors before a frame

        def is_current(frame: int) -> bool:
            if frame not in found or not frames:
                return False
            if frame in anchors:
                return found[frame].basis == basis(source, anchors, frame, area)
            number = bisect_left(frames, frame)
            if number not in between:
                between[number] = basis(source, anchors, frame, area)
            return found[frame].basis == between[number]

        return is_current

    def _clear(self, place: Place, *tables: Cells[Any]) -> list[int]:
        frames = sorted(self.masks(place))
        for table in tables:
            for frame in list(table.at(place)):
                table.set(place, frame, None)
        return frames


def _around(others: Sequence[int], frames: Iterable[int]) -> set[int]:
    """The nearest of other, sorted frames before and behind each of these."""
    places = [(bisect_left(others, frame), frame) for frame in frames]
    before = {others[place - 1] for place, _ in places if place}
    return before | {others[place] for place, _ in places if place < len(others)}
