"""Keeps arrays of labels in step with what a session knows."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.output import Entry, Output
from napari_sam2.records import Records
from napari_sam2.sequence_view import SequenceKey, SequenceView
from napari_sam2.slice_data import Place

Slice = tuple[SequenceKey, int]
"""A sequence and a frame of it."""


class LabelWriter:
    """Writes the masks of all objects to one array, and those of some to arrays of their own.

    At once; or one slice at once and the others later, for a window that must not stand still.
    """

    def __init__(
        self,
        records: Records,
        views: Mapping[SequenceKey, SequenceView],
        output: Output,
        written: Callable[[tuple[int | slice, ...]], None],
    ) -> None:
        """
        Args:
            views: all sequences that have masks, also those that come later.
            output: the array of all objects.
            written: called with the index of each slice that has been written.
        """
        self.output = output
        self._records = records
        self._views = views
        self._written = written
        self._alone: dict[int, Output] = {}
        self._waiting: dict[Slice, None] = {}  # in the order in which they come
        self._first: Slice | None = None  # the only slice that is written at once
        self._together: dict[Slice, set[int]] | None = None  # with what is claimed there

    @contextmanager
    def first(self, key: SequenceKey, frame: int) -> Iterator[None]:
        """What changes inside is written at once on one slice; the others wait for `write_rest`."""
        before, self._first = self._first, (key, frame)
        try:
            yield
        finally:
            self._first = before

    @contextmanager
    def together(self) -> Iterator[None]:
        """What changes inside is written when all of it is there, each slice once."""
        if self._together is not None:
            yield
            return
        gathered: dict[Slice, set[int]] = {}
        self._together = gathered
        try:
            yield
        finally:
            self._together = None
            for (key, frame), claimed in gathered.items():
                self.write(self._views[key], [frame], claimed)

    def write(self, view: SequenceView, frames: Iterable[int], claimed: Iterable[int] = ()) -> None:
        """Write frames anew, at once or, in `first`, by `write_rest`. claimed: as for `Output`;
        then it is at once in any case but in `together`.
        """
        claimed = list(claimed)
        for frame in frames:
            if self._together is not None:
                self._together.setdefault((view.key, frame), set()).update(claimed)
            elif self._first in (None, (view.key, frame)) or claimed:
                self._write_frame(view, frame, claimed)
            else:
                self._waiting[view.key, frame] = None

    def write_rest(self, seconds: float = math.inf, at: Slice | None = None) -> bool:
        """Write what `first` has left unwritten. Returns whether nothing is left.

        seconds: leave the others to the next call after so long, and after one at least.
        at: what goes first.
        """
        end = time.perf_counter() + seconds
        if at in self._waiting:
            self._write_frame(self._views[at[0]], at[1])
        while self._waiting:
            key, frame = next(iter(self._waiting))
            self._write_frame(self._views[key], frame)
            if time.perf_counter() > end:
                break
        return not self._waiting

    def write_object(self, object_id: int, only_covered: bool = False) -> None:
        """Write frames anew on which an object has a mask; only_covered: as for `frames_of`."""
        for key, frames in self.frames_of(object_id, only_covered).items():
            self.write(self._views[key], frames)

    def frames_of(
        self,
        object_id: int,
        only_covered: bool,
        known: Mapping[SequenceKey, Collection[int]] | None = None,
    ) -> dict[SequenceKey, list[int]]:
        """The frames of all sequences on which an object has a mask.

        only_covered: those where it may lie over another object, or another over it, which takes
            long where there are many. known: frames that are left out.
        """
        found = {}
        for key in self._views:
            out = () if known is None else known.get(key, ())
            frames = [f for f in self._records.masks((key, object_id)) if f not in out]
            if only_covered:
                others = [(key, i) for i in self._records.objects if i != object_id]
                frames = [f for f in frames if self._is_covered((key, object_id), f, others)]
            found[key] = frames
        return found

    def write_to(self, output: Output) -> None:
        """Write all masks to another array; the present one gets back what it held before."""
        self.output.clear()
        self.output = output
        self._write_all()

    @property
    def overwrite(self) -> bool:
        """As of `Output`; masks are written anew where it is set."""
        return self.output.overwrite

    @overwrite.setter
    def overwrite(self, wanted: bool) -> None:
        if wanted != self.output.overwrite:
            self.output.overwrite = wanted
            self._write_all()

    def alone(self, object_id: int, labels: Any = None) -> Any:
        """The array of one object, whole also where others cover it; kept in step from now on.

        labels: where to write it; by default a new array at the first call.
        """
        if object_id not in self._alone or labels is not None:
            if object_id in self._alone:
                self._alone[object_id].clear()
            self._alone[object_id] = Output(self.output.labels.shape, labels)
            self.write_object(object_id)
        return self._alone[object_id].labels

    def leave_alone(self, object_id: int) -> None:
        """Leave the array of `alone` as it is from now on."""
        self._alone.pop(object_id, None)

    def approved(self) -> NDArray[np.int32]:
        """A new array of the masks that are approved; in any thread."""
        output = Output(self.output.labels.shape)
        for key, view in list(self._views.items()):
            entries: dict[int, list[Entry]] = defaultdict(list)
            for object_id in list(self._records.objects):
                for frame, kept in list(self._records.kept.at((key, object_id)).items()):
                    mask = kept.prompts.mask
                    if kept.how == "approved" and mask is not None and not mask.is_empty:
                        entries[frame].append(Entry(object_id, mask, True))
            for frame, own in entries.items():
                output.write(view, frame, own)
        labels: NDArray[np.int32] = output.labels
        return labels

    def clear(self) -> None:
        """Take all masks out of all arrays."""
        for output in (self.output, *self._alone.values()):
            output.clear()

    def _write_frame(self, view: SequenceView, frame: int, claimed: Sequence[int] = ()) -> None:
        """Write a frame by the rules of `Output`."""
        entries = []
        for object_id in self._records.objects:
            place = view.key, object_id
            mask = self._records.shown(place, frame)
            if mask is not None:
                entries.append(Entry(object_id, mask, self._records.is_kept(place, frame)))
        self.output.write(view, frame, entries, claimed)
        self._waiting.pop((view.key, frame), None)
        for object_id, output in self._alone.items():
            own = [entry for entry in entries if entry.object_id == object_id]
            output.write(view, frame, own, claimed)
        self._written(view.index(frame))

    def _write_all(self) -> None:
        """Write all frames anew on which anything has a mask."""
        for key, view in list(self._views.items()):
            masks = [self._records.masks((key, object_id)) for object_id in self._records.objects]
            self.write(view, sorted({frame for frames in masks for frame in frames}))

    def _is_covered(self, place: Place, frame: int, others: Iterable[Place]) -> bool:
        own = self._records.shown(place, frame)
        masks = (self._records.shown(other, frame) for other in others)
        return own is not None and any(mask is not None and own.meets(mask) for mask in masks)
