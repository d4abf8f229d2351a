"""A labels array that a session writes its masks to, beside what others have in it."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.label_ids import ids_in
from napari_sam2.sequence_view import SequenceKey, SequenceView
from napari_sam2.slice_data import ObjectMask

Area = tuple[slice, slice]


@dataclass(frozen=True)
class Entry:
    """A mask of one object on one frame, as it is written."""

    object_id: int
    mask: ObjectMask
    is_kept: bool
    """Whether a person has given, approved or locked it: where masks overlap, it goes first."""

    @property
    def weights(self) -> NDArray[np.float16]:
        """(h, w) what decides where masks overlap; above 0 on the object."""
        logits = self.mask.logits
        return np.where(logits > 0, np.float16(np.inf), logits) if self.is_kept else logits


@dataclass(frozen=True, eq=False)
class _Piece:
    """What one object has on a frame."""

    object_id: int
    area: Area
    weights: NDArray[np.float16]
    """In the area; above 0 on the object."""

    def part(self, area: Area) -> _Piece | None:
        """What of it is in an area, if anything is."""
        common = _common(self.area, area)
        if common is None:
            return None
        return _Piece(self.object_id, common, self.weights[_within(self.area, common)])


Groups = list[list[_Piece]]
"""By sequence, in the order in which they take pixels."""
Covered = tuple[NDArray[Any], NDArray[Any]]
"""Positions on a frame, counted row by row, and what of others was there."""


class Output:
    """Writes masks to an array, and takes them out of it without a trace.

    What the array holds follows from the masks alone and from what was in it before, not from the
    order in which they are written. Masks of sequences along several axes lie in it together.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        labels: Any = None,
        overwrite: bool = False,
        others: Collection[int] | None = None,
    ) -> None:
        """
        Args:
            shape: of the image.
            labels: an array of integers of this shape, such as a zarr array on disk; by default a
                new one, (...) int32. What is not 0 in it belongs to others.
            overwrite: whether masks cover what belongs to others; it comes back where they go.
            others: the ids in the labels, where they are known; else the labels are read for them.

        Raises ValueError where labels cannot hold the masks; the message says why.
        """
        self.overwrite = overwrite
        self.others: frozenset[int] = frozenset()
        """Ids that were in the array before."""
        if labels is None:
            labels = np.zeros(shape, np.int32)
        else:
            check_writable(labels, shape)
            self.others = frozenset(ids_in(labels) if others is None else others)
        self.labels: Any = labels
        self._views: dict[SequenceKey, SequenceView] = {}
        self._written: dict[SequenceKey, dict[int, tuple[Entry, ...]]] = defaultdict(dict)
        self._covered: dict[tuple[SequenceKey, int], Covered] = {}
        """By sequence and frame."""

    @property
    def largest_id(self) -> int:
        """The largest that the array can hold."""
        return int(np.iinfo(self.labels.dtype).max)

    def claim(self, object_ids: Iterable[int]) -> None:
        """From now on, these ids belong to objects and not to others."""
        self.others -= frozenset(object_ids)

    def write(
        self,
        view: SequenceView,
        frame: int,
        entries: Collection[Entry],
        claimed: Iterable[int] = (),
    ) -> None:
        """Have a frame hold these masks, and what others have there. Only where masks have changed
        is it written anew, unless something is claimed.

        claimed: ids of which a person may have painted pixels, which do not belong to others.
        """
        claimed = frozenset(claimed) - self.others
        frames = self._written[view.key]
        before, now = frames.get(frame, ()), tuple(entries)
        # An object that goes by an id of others takes its place where it has a mask.
        replaced = self.others.intersection(entry.object_id for entry in now)
        covered = self._covered.pop((view.key, frame), None)
        if claimed or replaced or self.overwrite or covered:
            area = _whole(view)
        else:
            changed = set(before) ^ set(now)
            if not changed:
                return
            area = _around([entry.mask.area for entry in changed if not entry.mask.is_empty])
        others = self._of_others(
            view, frame, area, self._groups(view, frame, area), claimed, covered
        )
        frames.pop(frame, None)
        if now:
            self._views[view.key] = view
            frames[frame] = now
        own = self._composed(area, self._groups(view, frame, area))
        hidden = np.isin(others, list(replaced)) if replaced else np.zeros(own.shape, np.bool_)
        if self.overwrite:
            hidden |= (others != 0) & (own != 0)
        if hidden.any():
            self._covered[view.key, frame] = np.flatnonzero(hidden), others[hidden]
            others[hidden] = 0
        self.labels[_index(view, frame, area)] = np.where(others != 0, others, own)

    def expected(self, view: SequenceView, frame: int, object_ids: Iterable[int]) -> NDArray[Any]:
        """(H, W) what a frame would hold if nobody had painted pixels with these ids."""
        area = _whole(view)
        groups = self._groups(view, frame, area)
        covered = self._covered.get((view.key, frame))
        others = self._of_others(view, frame, area, groups, frozenset(object_ids), covered)
        own = self._composed(area, groups)
        if self.overwrite:
            others[own != 0] = 0
        return np.where(others != 0, others, own)

    def clear(self) -> None:
        """Take all masks out of the array; it holds then what belongs to others."""
        for key, frames in list(self._written.items()):
            for frame in list(frames):
                self.write(self._views[key], frame, ())

    def _of_others(
        self,
        view: SequenceView,
        frame: int,
        area: Area,
        groups: Groups,
        claimed: frozenset[int],
        covered: Covered | None,
    ) -> NDArray[Any]:
        """(h, w) the area of a frame without these masks and without the claimed ids, and with what
        was covered, for which the area is the whole frame."""
        labels = np.array(self.labels[_index(view, frame, area)])
        for piece in itertools.chain.from_iterable(groups):
            part = labels[_within(area, piece.area)]
            part[(piece.weights > 0) & (part == piece.object_id)] = 0
        if covered is not None:
            where, values = covered
            flat = labels.reshape(-1)
            flat[where] = np.where(flat[where] == 0, values, flat[where])
        if claimed:  # also of what was covered: a stroke may have been, by another that came first
            labels[np.isin(labels, list(claimed))] = 0
        return labels

    def _composed(self, area: Area, groups: Groups) -> NDArray[Any]:
        """(h, w) all masks in an area together. Where they overlap, what a person keeps goes first,
        then the larger logit, then the smaller id; of several sequences, the first one."""
        rows, columns = area
        own = np.zeros((rows.stop - rows.start, columns.stop - columns.start), self.labels.dtype)
        for group in groups:
            free = own == 0
            best = np.zeros(own.shape, np.float16)
            for piece in sorted(group, key=lambda piece: piece.object_id):
                here = _within(area, piece.area)
                wins = (piece.weights > best[here]) & free[here]
                own[here][wins] = piece.object_id
                best[here][wins] = piece.weights[wins]
        return own

    def _groups(self, view: SequenceView, frame: int, area: Area) -> Groups:
        """By sequence: what the masks have in an area of a frame."""
        groups = []
        for key in sorted(self._written, key=_rank):
            if key == view.key:
                entries = self._written[key].get(frame, ())
                pieces: Iterable[_Piece] = (
                    _Piece(entry.object_id, entry.mask.area, entry.weights)
                    for entry in entries
                    if _common(entry.mask.area, area)
                )
            else:
                pieces = self._crossing(view, frame, key)
            groups.append([one for piece in pieces if (one := piece.part(area))])
        return groups

    def _crossing(self, view: SequenceView, frame: int, key: SequenceKey) -> Iterator[_Piece]:
        """What the masks of another sequence have on a frame."""
        index = view.index(frame)
        for other_frame, entries in self._written[key].items():
            plane, fixed = self._views[key].plane, self._views[key].index(other_frame)
            for entry in entries:
                box = [slice(i, i + 1) if isinstance(i, int) else i for i in fixed]
                box[plane[0]], box[plane[1]] = entry.mask.area
                if not all(
                    isinstance(i, slice) or part.start <= i < part.stop
                    for i, part in zip(index, box, strict=True)
                ):
                    continue
                within = tuple(
                    i if isinstance(i, slice) else slice(i - part.start, i - part.start + 1)
                    for i, part in zip(index, box, strict=True)
                )
                weights = entry.weights.reshape([part.stop - part.start for part in box])
                rows, columns = box[view.plane[0]], box[view.plane[1]]
                size = rows.stop - rows.start, columns.stop - columns.start
                yield _Piece(entry.object_id, (rows, columns), weights[within].reshape(size))


def _index(view: SequenceView, frame: int, area: Area) -> tuple[int | slice, ...]:
    """What picks the area of a frame from an array in the shape of the image."""
    index = list(view.index(frame))
    index[view.plane[0]], index[view.plane[1]] = area
    return tuple(index)


def _whole(view: SequenceView) -> Area:
    height, width = view.frame_shape
    return slice(0, height), slice(0, width)


def _around(areas: Sequence[Area]) -> Area:
    """The smallest area that holds all of these; an empty one if there are none."""
    rows, columns = (
        slice(
            min((one.start for one in side), default=0), max((one.stop for one in side), default=0)
        )
        for side in ([area[axis] for area in areas] for axis in (0, 1))
    )
    return rows, columns


def _common(one: Area, other: Area) -> Area | None:
    """The area that two have in common."""
    rows, columns = (
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def _within(outer: Area, inner: Area) -> Area:
    """An area of a frame, counted from the corner of one that holds it."""
    rows, columns = (
        slice(one.start - whole.start, one.stop - whole.start)
        for whole, one in zip(outer, inner, strict=True)
    )
    return rows, columns


def _rank(key: SequenceKey) -> tuple[int, ...]:
    axis = -1 if key.axis is None else key.axis
    return axis, *(-1 if index is None else index for index in key.position)


def check_labels(labels: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError where these are no labels of an image of this shape."""
    if not hasattr(labels, "shape"):
        raise ValueError(f"Labels are an array or a labels layer, not a {type(labels).__name__}.")
    if tuple(labels.shape) != shape:
        raise ValueError(f"The labels have shape {tuple(labels.shape)}, the image {shape}.")
    if np.dtype(labels.dtype).kind not in "ui":
        raise ValueError(
            f"Labels are whole numbers, but these are {labels.dtype}; .astype(int) makes them so."
        )


def check_writable(labels: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError where labels cannot hold the masks of an image of this shape."""
    check_labels(labels, shape)
    if isinstance(labels, np.ndarray) and not labels.flags.writeable:
        raise ValueError("The labels cannot be written to: their array is read-only.")
