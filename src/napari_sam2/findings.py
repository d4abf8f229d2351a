"""What of the model's answers is taken over, and what is known of its runs besides the masks."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from napari_sam2.looks import Looks
from napari_sam2.records import Records
from napari_sam2.sequence_view import SequenceKey
from napari_sam2.slice_data import REJECTED, Found, Place
from napari_sam2.tasks import OtherSide, Step, Task, basis, origins


class Findings:
    """Puts what the model has found into the records, where it still answers what there is now."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.unread: dict[SequenceKey, dict[int, str]] = {}
        """Frame -> why it could not be read, of the last run through each sequence."""
        self.comparisons = 0
        """Another one when masks are compared with those from the other side."""
        self._other_sides: WeakKeyDictionary[Found, OtherSide] = WeakKeyDictionary()
        self._passed: WeakKeyDictionary[Found, frozenset[int]] = WeakKeyDictionary()
        """The frames that could not be read that a mask was found past."""

    def take(self, task: Task, step: Step, looks: Looks) -> tuple[bool, bool]:
        """Take over masks, and decide how closely to look where a preview shows that.

        Returns whether there is a new mask, and whether a preview is to be computed once more.
        """
        is_new = again = False
        is_new_look = step.is_preview and task.source == looks.source
        for object_id, mask in step.masks.items():
            place, frame = (task.view.key, object_id), step.frame
            if not self._is_asked_still(task, object_id, frame):
                continue
            asked = task.anchors[object_id].get(frame)
            if asked is not None and asked.mask is not None:
                if is_new_look and looks.is_undecided(place):
                    looks.begin(place)
                continue  # a person's own mask is the answer
            if step.is_preview and not looks.is_close_enough(task, object_id, step):
                again |= bool(self._records.wanted(place, looks.source, [frame], False))
                continue
            found = Found(mask, task.basis(object_id, frame))
            known = self._records.found.get(place, frame)
            if known is not None and known.basis == REJECTED:
                area = self._records.area(place, task.source)
                now = basis(task.source, self._records.anchors(place), frame, area)
                if found.basis != now:
                    continue  # it was rejected meanwhile
            if known is None or known.basis != found.basis:  # not again along with others
                if step.is_preview and self._is_current(looks, place, frame):
                    continue
                self._records.found.set(place, frame, found)
                is_new = True
                self._note_passed(task, object_id, frame, found)
            if is_new_look and mask is not None and looks.is_undecided(place):
                again |= looks.begin(place)
        return is_new, again

    def note_unread(self, task: Task, step: Step) -> None:
        """Keep which frames a run passes over; with its first step, those of the last are gone."""
        unread = {} if step.done == 1 else self.unread.get(task.view.key, {})
        self.unread[task.view.key] = unread | ({step.frame: step.error} if step.error else {})

    def compare(self, task: Task, step: Step) -> None:
        """Keep how masks agree with those from the other side, unless they are others by now."""
        for object_id, mask in step.masks.items():
            known = self._records.found.get((task.view.key, object_id), step.frame)
            if known is not None and known.basis == task.basis(object_id, step.frame):
                self._other_sides[known] = OtherSide.of(known.mask, mask)
        self.comparisons += 1

    def other_sides(self, place: Place) -> Mapping[int, OtherSide]:
        """Frame -> how its mask agrees with that from the other side, where they were compared."""
        found = self._records.found.at(place).items()
        return {f: self._other_sides[one] for f, one in found if one in self._other_sides}

    # -- helpers -------------------------------------------------------------------------------

    def _is_asked_still(self, task: Task, object_id: int, frame: int) -> bool:
        """Whether a frame is still marked as it was when a task asked for an object."""
        place, info = (task.view.key, object_id), self._records.objects.get(object_id)
        if info is None or info.locked or not self._records.life(place).has(frame):
            return False
        now = self._records.anchors(place)
        return bool(now) and task.anchors[object_id].get(frame) is now.get(frame)

    def _is_current(self, looks: Looks, place: Place, frame: int) -> bool:
        found = self._records.found.at(place)
        return frame in found and frame not in self._records.stale(place, looks.source)

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
        passed = frozenset(self.unread.get(task.view.key, {})).intersection(between)
        if passed:
            self._passed[found] = passed
