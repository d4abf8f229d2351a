"""Tracks and lineages: objects that are cut, joined and split, and who descends from whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_sam2.counted import slice_range
from napari_sam2.given import several
from napari_sam2.lineage import LineageError, ancestors, divisions, split_mask
from napari_sam2.session_base import SessionBase
from napari_sam2.slice_data import Found, Life, Look, ObjectMask, Place


class TrackEdits(SessionBase):
    """Changes of tracks. Each is one step of undo."""

    @property
    def parents(self) -> Mapping[int, int]:
        """Daughter -> parent, of all objects whose parent is known."""
        return dict(sorted(self._records.parents.items()))

    @property
    def no_divisions(self) -> Mapping[int, frozenset[int]]:
        """Object -> frames of proposals of divisions that a person has rejected."""
        return dict(sorted(self._records.no_divisions.items()))

    def set_division(self, parent: int, daughters: Iterable[int]) -> None:
        """Say that an object divides into others, which begin after its last mask.

        These become its only daughters. From then on the parent is not followed beyond its last
        mask, nor a daughter to before its first one.

        Raises LineageError: fewer than two daughters, one that begins too early, has no mask, or is
        an ancestor of the parent. LockedError where one of them is locked.
        """
        wanted = sorted(set(several(daughters, "daughters")))
        if len(wanted) < 2:
            raise LineageError(
                "A division has two daughters or more. To say that one object comes from another, "
                "give it a parent, or join the two if they are one."
            )
        for daughter in wanted:
            self._check_link(daughter, parent)
        with self.history.change("Division"):
            self._unlink(set(divisions(self.parents).get(parent, ())) - {*wanted})
            for daughter in wanted:
                self.set_parent(daughter, parent)
        self.objects_changed.emit()

    def remove_division(self, parent: int) -> None:
        """Say that an object does not divide; it and its daughters stay, and may be followed on.

        Raises LineageError where it has no daughters, LockedError where one of them is locked.
        """
        daughters = divisions(self.parents).get(parent, ())
        if not daughters:
            raise LineageError(f"{self._name(parent)} has no daughters.")
        with self.history.change("Remove division"):
            self._unlink(daughters)
        self.objects_changed.emit()

    def unlink_objects(self, object_ids: Iterable[int]) -> None:
        """Take parents and daughters from objects; all stay, and may be followed on.

        Raises LockedError where one that has a parent by now is locked.
        """
        chosen = set(several(object_ids, "objects"))
        with self.history.change("Unlink"):
            self._unlink(d for d, p in self.parents.items() if {d, p} & chosen)
        self.objects_changed.emit()

    def set_parent(self, daughter: int, parent: int | None) -> None:
        """Give an object another parent, or none. Without its kin, it is there as it was before.

        Raises LineageError: the parent has a mask where the daughter begins or later, one of them
        has no mask, or the parent descends from the daughter. LockedError where one is locked.
        """
        if parent is None:
            self._check_unlocked(daughter)
        else:
            self._check_link(daughter, parent)
        with self.history.change("Parent"):
            if parent is None:
                links = self._records.parents.items()
                self._records.set_parents({d: p for d, p in links if d != daughter})
            else:
                self._link(daughter, parent, self._span(daughter)[0], self._span(parent)[1])
        self.objects_changed.emit()

    def cut_object(self, object_id: int, frame: int) -> int:
        """End a track before a frame; what it has from there on becomes a new object.

        Masks stay as they are. The last one before the cut, or the first one behind it, becomes a
        prompt where its part has no other; the first one behind it always does. The new object has
        the daughters, and no parent. Neither is followed beyond the cut.

        Returns the new object's id. Raises LineageError where one part would have no mask;
        LockedError where the object is locked.
        """
        self._check_unlocked(object_id)
        self._check_frame(frame)
        first, last = self._span(object_id)
        if first == last:
            raise LineageError(
                f"{self._name(object_id)} is on slice {first} alone, so it cannot be cut."
            )
        if not first < frame <= last:
            raise LineageError(
                f"{self._name(object_id)} is on {slice_range(first, last)}, so it can be cut on "
                f"{slice_range(first + 1, last)}, not on {frame}."
            )
        records, key = self._records, self.view.key
        with self.history.change("Cut track"):
            new = self.add_object()
            old_place, new_place = (key, object_id), (key, new)
            masks, life = self.masks_of(object_id), records.life(old_place)
            own = records.own_life(old_place)
            changed = records.move(old_place, new_place, frame)
            links = records.parents.items()
            records.set_parents({d: new if p == object_id else p for d, p in links})
            if not records.anchors(old_place):
                end = max(at for at in masks if at < frame)
                self._make_prompt(old_place, end, masks[end])
            start = min(at for at in masks if at >= frame)
            if start not in records.anchors(new_place):
                self._make_prompt(new_place, start, masks[start])
            records.set_life(old_place, life._replace(last=frame - 1))
            records.set_life(new_place, life._replace(first=frame))
            records.set_own_life(new_place, own._replace(first=frame))
            look = records.look(old_place) or Look()
            records.set_look(new_place, look._replace(is_settled=True))
            self._writer.write(self.view, changed)
        self._tell_of_prompts()
        return new

    def set_life(self, object_id: int, first: int = 0, last: int | None = None) -> None:
        """Say on which frames of the sequence an object can be: `first` to `last`, both included.

        What it has on others is taken away, and it is not looked for there. Where it has no prompt
        left, the mask nearest to those it had becomes one.

        last: None: it may be there to the end.

        Raises ValueError: they are not frames in this order. LineageError: it has masks and none
        would be left, or it would be there along with its parent or its daughters. LockedError
        where the object is locked, or has approved or locked slices outside.
        """
        self._check_unlocked(object_id)
        for frame in (first, first if last is None else last):
            self._check_frame(frame)
        life, now, name = Life(first, last), self.life(object_id), self._name(object_id)
        if last is not None and last < first:
            raise ValueError(f"{name} cannot begin on slice {first} and end on slice {last}.")
        if life == now:
            return
        records, place = self._records, (self.view.key, object_id)
        marked = records.anchors(place)
        there = {*self.masks_of(object_id), *marked}
        if there and not any(life.has(at) for at in there):
            raise LineageError(
                f"{name} is on {slice_range(min(there), max(there))}, so it cannot "
                + (f"end on slice {last}." if min(there) > first else f"begin on slice {first}.")
            )
        self._check_kin(object_id, life)
        self._check_kept(object_id, life)
        with self.history.change("First and last slice"):
            changed = records.drop(place, life)
            if marked and not records.anchors(place):
                inside = self.masks_of(object_id)
                near = min(inside, key=lambda at: min(abs(at - mark) for mark in marked))
                self._make_prompt(place, near, inside[near])
            own = records.own_life(place)
            records.set_life(place, life)
            records.set_own_life(
                place,
                Life(
                    own.first if life.first == now.first else life.first,
                    own.last if life.last == now.last else life.last,
                ),
            )
            self._writer.write(self.view, changed)
        self._tell_of_prompts()

    def split_object(
        self, object_id: int, frame: int, pieces: Sequence[ArrayLike] | None = None
    ) -> list[int]:
        """Let an object divide on a frame on which its mask is in pieces.

        Each piece becomes a new object, a daughter, with its mask on the frame as a prompt. On the
        frames behind, each pixel of the masks goes to the piece that was nearest on the frame
        before, until `update` or `propagate` finds them anew.

        pieces: (H, W) each, nonzero on a daughter; by default the two largest pieces of the
            mask, which may hang together by a thin neck.

        Returns ids of the daughters. Raises LineageError: there are no two pieces, the object does
        not begin before the frame, or it divides later. LockedError where it is locked, or has
        approved or locked slices from the frame on.
        """
        self._check_unlocked(object_id)
        self._check_frame(frame)
        first, _ = self._span(object_id)
        records, place = self._records, (self.view.key, object_id)
        if first >= frame:
            raise LineageError(
                f"{self._name(object_id)} begins on slice {first}, so it cannot divide on {frame}."
            )
        if object_id in self._records.parents.values():
            raise LineageError(f"{self._name(object_id)} divides already; take that back first.")
        before = Life(last=frame - 1)
        self._check_kept(object_id, before)
        masks = {at: mask for at, mask in self.masks_of(object_id).items() if at >= frame}
        given = self._pieces(masks.get(frame))[:2] if pieces is None else pieces
        parts = [np.asarray(piece) != 0 for piece in given]
        if len(parts) < 2 or not all(part.any() for part in parts):
            raise LineageError(
                f"The mask of {self._name(object_id)} on slice {frame} is in one piece. Mark the "
                "daughters as objects of their own, and then choose them."
            )
        with self.history.change("Division"):
            ids = [self.add_object() for _ in parts]  # first: there may be no ids left
            ends = [at for at in self.masks_of(object_id) if at < frame]
            if not {at for at in records.anchors(place) if at < frame}:
                self._make_prompt(place, ends[-1], self.masks_of(object_id)[ends[-1]])
            changed = records.drop(place, before)
            for new, part in zip(ids, parts, strict=True):
                self._make_prompt((self.view.key, new), frame, ObjectMask.given(part))
                records.set_look((self.view.key, new), Look())
            for at, mask in masks.items():
                if at == frame:
                    continue
                parts = split_mask(mask.on_frame(self.view.frame_shape), parts)
                for new, part in zip(ids, parts, strict=True):
                    found = ObjectMask.given(part) if part.any() else None
                    records.found.set((self.view.key, new), at, Found(found, ()))
            self._writer.write(self.view, sorted({*changed, frame}))
            self.set_division(object_id, ids)
        self.prompts_changed.emit()
        return ids

    def join_objects(self, one: int, other: int) -> int:
        """Make two objects one track: the later one goes on with what the earlier one was.

        Returns the id that is left, that of the earlier one. Raises LineageError: both have a mask
        on some frame (`merge_objects` makes one mask of both), the earlier one divides into others,
        or the later one has another parent. LockedError where one of them is locked.
        """
        for object_id in (one, other):
            self._check_unlocked(object_id)
        if one == other:
            raise LineageError("An object cannot be joined to itself.")
        earlier, later = sorted((one, other), key=lambda i: self._span(i)[0])
        both = sorted({*self.masks_of(earlier)} & {*self.masks_of(later)})
        if both or self._span(earlier)[1] > self._span(later)[0]:
            where = both[0] if both else self._span(later)[0]
            raise LineageError(
                f"{self._name(earlier)} and {self._name(later)} are both there on slice {where}, "
                "so they are not one track."
                + (self._advice_to_cut(earlier, where) or self._advice_to_cut(later, where))
                + " Merge makes one mask of both."
            )
        daughters = divisions(self.parents).get(earlier, ())
        if set(daughters) - {later}:
            raise LineageError(
                f"{self._name(earlier)} divides, so nothing can go on with it. Take the division "
                "back first."
            )
        if self._records.parents.get(later) not in (None, earlier):
            parent = self._name(self._records.parents[later])
            raise LineageError(
                f"{self._name(later)} is a daughter of {parent}. Take that back first."
            )
        with self.history.change("Join tracks"):
            self.merge_objects(earlier, later)
        return earlier

    def reject_division(self, object_id: int, frame: int) -> None:
        """Say that an object does not divide on a frame, so that it is not proposed again."""
        self._check_object(object_id)
        self._check_frame(frame)
        with self.history.change("Reject division"):
            known = self._records.no_divisions.get(object_id, frozenset())
            self._records.set_no_divisions(object_id, known | {frame})
        self.objects_changed.emit()

    def _check_link(self, daughter: int, parent: int) -> None:
        """Whether one object can be the parent of another."""
        for object_id in (daughter, parent):
            self._check_unlocked(object_id)
        if daughter == parent:
            raise LineageError("An object cannot be its own parent.")
        if daughter in ancestors(self._records.parents, parent):
            raise LineageError(
                f"{self._name(parent)} descends from {self._name(daughter)}, so it cannot be its "
                "parent."
            )
        begin, end = self._span(daughter)[0], self._span(parent)[1]
        if begin <= end:
            raise LineageError(
                f"{self._name(daughter)} begins on slice {begin}, but {self._name(parent)} is "
                f"still there on slice {end}: a daughter begins when its parent has ended."
                + self._advice_to_cut(parent, begin)
            )

    def _advice_to_cut(self, object_id: int, frame: int) -> str:
        """A sentence, where it can be done."""
        begin = self._span(object_id)[0]
        return f" Cut {self._name(object_id)} on slice {frame} first." if begin < frame else ""

    def _check_kept(self, object_id: int, life: Life) -> None:
        """Whether nothing is approved or locked outside a life."""
        for frame in sorted(self._records.kept.at((self.view.key, object_id))):
            if not life.has(frame):
                self._check_unlocked(object_id, frame)

    def _check_kin(self, object_id: int, life: Life) -> None:
        """Whether an object that is there in a life is not there along with its kin."""
        parent = self.parents.get(object_id)
        if parent is not None and life.first <= self._span(parent)[1]:
            raise LineageError(
                f"{self._name(object_id)} is a daughter of {self._name(parent)}, which is there to "
                f"slice {self._span(parent)[1]}. Take the division back first."
            )
        for daughter in divisions(self.parents).get(object_id, ()):
            begin = self._span(daughter)[0]
            if life.last is None or life.last >= begin:
                raise LineageError(
                    f"{self._name(object_id)} divides: {self._name(daughter)} begins on slice "
                    f"{begin}. Take the division back first."
                )

    def _span(self, object_id: int) -> tuple[int, int]:
        """The first and the last frame with a mask, in the sequence that is shown."""
        masks = self.masks_of(object_id)
        if not masks:
            raise LineageError(
                f"{self._name(object_id)} has no mask here yet: mark it and propagate first."
            )
        return min(masks), max(masks)

    def _unlink(self, daughters: Iterable[int]) -> None:
        """Take their parents from all of these, or from none where one is locked."""
        found = sorted(daughters)
        for daughter in found:
            self._check_unlocked(daughter)
        for daughter in found:
            self.set_parent(daughter, None)

    def _link(self, daughter: int, parent: int, begin: int, end: int) -> None:
        """Make one object, which begins on a frame, a daughter of another, which ends on one."""
        records, own, other = self._records, (self.view.key, daughter), (self.view.key, parent)
        for place in (own, other):
            records.set_own_life(place, records.own_life(place))
        records.set_parents({**records.parents, daughter: parent})
        records.set_life(own, records.life(own)._replace(first=begin))
        records.set_life(other, records.life(other)._replace(last=end))

    def _make_prompt(self, place: Place, frame: int, mask: ObjectMask) -> None:
        """Let a mask be a prompt, as if it was painted; it goes first where masks overlap then."""
        self._records.prompts.set(
            place, frame, replace(self._records.said(place, frame), mask=mask)
        )
        self._writer.write(self.view_of(place[0]), [frame])

    def _pieces(self, mask: ObjectMask | None) -> list[NDArray[np.bool_]]:
        """The pieces of a mask, (H, W) each, the largest first."""
        if mask is None:
            return []
        return [piece.on_frame(self.view.frame_shape) for piece in mask.pieces]
