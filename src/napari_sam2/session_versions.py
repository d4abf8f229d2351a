"""Earlier, saved and branched versions of what a session knows, and how it takes them over."""

from __future__ import annotations

from collections import defaultdict
from typing import Self

import numpy as np

from napari_sam2.history import Change
from napari_sam2.output import Output
from napari_sam2.sequence_view import SequenceKey
from napari_sam2.session_tracks import TrackEdits
from napari_sam2.slice_data import SessionState


class Versions(TrackEdits):
    """A session as it was, as it is to be saved, and as it goes on elsewhere."""

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
        self._tell_of_prompts()

    # -- work in another thread ----------------------------------------------------------------

    def branch(self) -> Self:
        """A session of its own that goes on from here, for work that takes long in another thread.

        `take_branch` takes over what becomes of it.
        """
        other = type(self)(
            self.image,
            self.model,
            window=self.window,
            end_after=self.end_after,
            memory=self.memory,
            memory_tokens=self.memory_tokens,
            closely=self.closely,
            **self._how,
        )
        here = self._writer.output  # new ids of the branch are to fit in there
        labels = np.zeros(self.view.shape, here.labels.dtype)
        other._writer.write_to(Output(self.view.shape, labels, others=here.others))
        with self.history.lock:
            self._branched[other] = self._records.cells()
        for (number, place, frame), value in self._branched[other].items():
            other._records.tables[number].put(place, frame, value)
        other._last_id = self._last_id
        for key in self._views:  # it must not take an object that is marked elsewhere for a new one
            other.view_of(key)
        other.show(self.view.key)
        return other

    def take_branch(self, branch: Self, label: str) -> list[int]:
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
        self._tell_of_prompts()
        return sorted(set(own.values()) & self.objects.keys())

    # -- helpers -------------------------------------------------------------------------------

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
        self._tell_of_prompts()
        return change.label
