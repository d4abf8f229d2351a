"""Another person's masks beside one's own: where they differ, and whose are right.

reading = SecondReading.open(session, "scan_of_a_colleague.sam2session")
reading.agreement(1).total_dice
object_id, frame = reading.next_difference()
reading.accept_theirs(object_id, [frame])  # or accept_mine
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from napari_sam2.io.place import shape_in_layer, to_layer_order
from napari_sam2.io.readers import source_of
from napari_sam2.session import LockedError, Session
from napari_sam2.session_base import default_name
from napari_sam2.session_file import SUFFIX, fitted, read_session
from napari_sam2.slice_data import ObjectMask

ONLY_MINE, ONLY_THEIRS, OTHER_OBJECT = 1, 2, 3
"""Values of `SecondReading.differences`."""


@dataclass(frozen=True)
class Agreement:
    """Pixels of one object on every slice of the sequence that is shown."""

    mine: NDArray[np.int64]
    """(slices,)"""
    theirs: NDArray[np.int64]
    """(slices,)"""
    both: NDArray[np.int64]
    """(slices,) that are in both masks."""
    settled: NDArray[np.bool_]
    """(slices,) where you have approved or locked your mask."""

    @property
    def differing(self) -> NDArray[np.int64]:
        """(slices,) pixels that are in one mask alone."""
        return self.mine + self.theirs - 2 * self.both

    @property
    def unsettled(self) -> NDArray[np.int64]:
        """(slices,) pixels that are in one mask alone, and nobody has decided whose is right."""
        return np.where(self.settled, 0, self.differing)

    @property
    def dice(self) -> NDArray[np.float64]:
        """(slices,) 2 both / (mine + theirs), from 0 to 1; NaN where neither has a mask."""
        with np.errstate(invalid="ignore"):
            return 2 * self.both / (self.mine + self.theirs)

    @property
    def total_dice(self) -> float | None:
        """Of all slices together; None where neither has a mask."""
        pixels = int(self.mine.sum() + self.theirs.sum())
        return 2 * int(self.both.sum()) / pixels if pixels else None


class SecondReading:
    """Compares a session with labels that another person has made of the same image.

    The labels are never changed, and the session only by `accept_theirs`, `accept_mine` and `add`,
    each of which is one step of undo.
    """

    def __init__(
        self,
        session: Session,
        labels: Any,
        names: Mapping[int, str] | None = None,
        reader: str = "",
    ) -> None:
        """
        Args:
            labels: their objects, an array in the shape of the session's image; it may be lazy.
            names: of their objects, by id.
            reader: who they are, for people.

        Raises ValueError where the labels have another shape or are no whole numbers.
        """
        shape = tuple(int(size) for size in labels.shape)
        if shape != session.view.shape:
            raise ValueError(
                f"Their masks are {_size(shape)}, but your image is {_size(session.view.shape)}. "
                "Choose masks of the same image."
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"Labels are whole numbers, but these masks are {labels.dtype}.")
        self.session = session
        self.labels = labels
        self.reader = reader
        self._key = session.view.key
        self._areas: dict[int, dict[int, int]] = {}  # frame -> their id -> pixels
        self._shared: dict[tuple[int, int], tuple[ObjectMask, dict[int, int]]] = {}
        self.names: dict[int, str] = {
            i: (names or {}).get(i) or default_name(i)
            for i in sorted({i for areas in self._their_areas().values() for i in areas})
        }
        """Their objects."""
        self.pairs: dict[int, int] = self._paired()
        """Your object -> theirs; change it where others belong together."""

    @classmethod
    def open(cls, session: Session, path: str | os.PathLike[str]) -> SecondReading:
        """Read another person's masks from a session file, or from any labels file.

        Neither their image nor their model is needed; nothing is written to the file. Where the
        session's layer comes from a file, labels are put in the order of its axes.

        Raises ValueError (SessionFileError, ReadError) where the file cannot be read or does not
        fit; the message says why.
        """
        file = Path(path)
        if file.suffix == SUFFIX:
            saved = read_session(file)
            names = saved.state.names
            return cls(session, saved.labels(), names, file.name)
        from napari_sam2.io import read_labels

        shape = session.view.shape
        source = source_of(session.view.layers[0].metadata) if session.view.layers else None
        if source is not None and shape_in_layer(source) != shape:
            source = None  # the layer shows a part of the file
        labels, names, _ = read_labels(file, source)
        array = labels.array if source is None else to_layer_order(labels.array, source)
        return cls(session, fitted(array, shape), names, file.name)

    # -- how far they agree --------------------------------------------------------------------

    @property
    def only_mine(self) -> list[int]:
        """Your objects that they do not have."""
        return [i for i in self.session.objects if self.pairs.get(i) not in self.names]

    @property
    def only_theirs(self) -> list[int]:
        """Their objects that you do not have."""
        mine = self.session.objects
        return [i for i in self.names if i not in {t for m, t in self.pairs.items() if m in mine}]

    def agreement(self, object_id: int) -> Agreement:
        """Of one of your objects with theirs, on the sequence that is shown.

        Your masks count whole, also where other objects cover them.
        """
        their_id = self.pairs.get(object_id)
        theirs = self._pixels(their_id)
        mine, both = np.zeros_like(theirs), np.zeros_like(theirs)
        for frame, mask in self.session.masks_of(object_id).items():
            if not mask.is_empty:
                mine[frame] = mask.summary[0]
                both[frame] = self._under(object_id, frame, mask).get(their_id or 0, 0)
        settled = np.zeros(len(theirs), np.bool_)
        settled[list(self.session.kept(object_id))] = True
        return Agreement(mine, theirs, both, settled)

    def only(self, their_id: int) -> Agreement:
        """Of one of their objects that you do not have: all of it differs."""
        theirs = self._pixels(their_id)
        none = np.zeros_like(theirs)
        return Agreement(none, theirs, none, none.astype(np.bool_))

    def next_difference(self, seen: Collection[tuple[int, int]] = ()) -> tuple[int, int] | None:
        """The object and slice with the most pixels that differ; None where all is settled.

        Of objects that both have. seen: objects and slices to leave out.
        """
        most, place = 0, None
        for mine in self.pairs:
            if mine not in self.session.objects:
                continue
            differing = self.agreement(mine).unsettled
            differing[[frame for own, frame in seen if own == mine]] = 0
            if len(differing) and differing.max() > most:
                most, place = int(differing.max()), (mine, int(differing.argmax()))
        return place

    def differences(self, index: Any = ...) -> NDArray[np.uint8]:
        """Where the labels that are shown differ from theirs, for a picture.

        index: of a part of `labels`; by default all. Returns 0 where they agree, ONLY_MINE,
        ONLY_THEIRS, or OTHER_OBJECT where both have an object, but not the same.
        """
        shown = np.asarray(self.session.written_labels[index])
        theirs = np.asarray(self.labels[index])
        mine = np.where(np.isin(shown, list(self.session.objects)), shown, 0)
        ids, places = np.unique(mine, return_inverse=True)
        # What has no partner differs from all that they have.
        partners = np.array([self.pairs.get(int(i), -1) if i else 0 for i in ids], np.int64)
        differs = partners[places].reshape(mine.shape) != theirs
        found = np.zeros(mine.shape, np.uint8)
        found[differs & (mine > 0)] = ONLY_MINE
        found[differs & (theirs > 0)] = ONLY_THEIRS
        found[differs & (mine > 0) & (theirs > 0)] = OTHER_OBJECT
        return found

    # -- whose is right ------------------------------------------------------------------------

    def accept_theirs(self, object_id: int, frames: Iterable[int] | None = None) -> list[int]:
        """Take their masks of an object in place of yours, and approve them.

        frames: by default all where the two differ and you have approved or locked nothing; given
        frames are replaced also where yours are approved, or where you have said that the object
        has ended. Returns the frames that have changed.

        Raises LockedError where the object or one of the frames is locked; LineageError where it
        would be there along with its parent or its daughters.
        """
        session, their_id = self.session, self.pairs.get(object_id)
        chosen = self._chosen(object_id, frames)
        info, kept = session.objects[object_id], session.kept(object_id)
        locked = [f"on slice {frame}" for frame in chosen if kept.get(frame) == "locked"]
        if info.locked or locked:
            where = "" if info.locked else f" {locked[0]}"
            raise LockedError(f"{info.name} is locked{where}. Unlock it first.")
        with (
            session.objects_changed.blocked(),
            session.history.change("Accept theirs"),
            session.writing_together(),
        ):
            session.set_life(object_id, *session.life(object_id).widened(chosen))
            session.release(object_id, chosen)
            for frame in chosen:
                session.paint(object_id, frame, self._mask(their_id, frame))
            session.keep(object_id, chosen)
        session.objects_changed.emit()
        return chosen

    def accept_mine(self, object_id: int, frames: Iterable[int] | None = None) -> list[int]:
        """Approve your masks of an object. frames: as for `accept_theirs`. Returns the frames."""
        chosen = self._chosen(object_id, frames)
        self.session.keep(object_id, chosen)
        return chosen

    def add(self, their_id: int) -> int:
        """Make one of their objects yours: a new object with their masks. Returns its id.

        Raises ValueError where they have no such object.
        """
        if their_id not in self.names:
            raise ValueError(f"They have no object {their_id}.")
        session, areas = self.session, self._their_areas()
        frames = [frame for frame, own in areas.items() if their_id in own]
        with session.objects_changed.blocked(), session.history.change("Add theirs"):
            object_id = session.add_object(self.names[their_id])
            session.look_closely(object_id, times=None)  # one of many: none gets a look of its own
            for frame in frames:
                session.paint(object_id, frame, self._mask(their_id, frame))
        self.pairs[object_id] = their_id
        session.objects_changed.emit()
        return object_id

    # -- helpers -------------------------------------------------------------------------------

    def _chosen(self, object_id: int, frames: Iterable[int] | None) -> list[int]:
        if frames is not None:
            return sorted(set(frames))
        return np.flatnonzero(self.agreement(object_id).unsettled).tolist()

    def _mask(self, their_id: int | None, frame: int) -> NDArray[np.bool_]:
        """(H, W); empty without such an object."""
        index = self.session.view.index(frame)
        mask: NDArray[np.bool_] = np.asarray(self.labels[index]) == (their_id or -1)
        return mask

    def _pixels(self, their_id: int | None) -> NDArray[np.int64]:
        """(slices,) of one of their objects."""
        areas = self._their_areas()
        return np.array([areas[i].get(their_id or 0, 0) for i in range(len(areas))], np.int64)

    def _their_areas(self) -> dict[int, dict[int, int]]:
        """Frame -> their id -> pixels, of the sequence that is shown; read once."""
        view = self.session.view
        if view.key != self._key or not self._areas:
            self._key = view.key
            self._shared.clear()
            self._areas = {
                frame: _counts(np.asarray(self.labels[view.index(frame)]))
                for frame in range(len(view))
            }
        return self._areas

    def _under(self, object_id: int, frame: int, mask: ObjectMask) -> dict[int, int]:
        """Their id -> pixels under one of your masks; counted once for each mask."""
        known = self._shared.get((object_id, frame))
        if known is None or known[0] is not mask:
            theirs = np.asarray(self.labels[self.session.view.index(frame)])
            known = mask, _counts(theirs[mask.area][mask.logits > 0])
            self._shared[object_id, frame] = known
        return known[1]

    def _paired(self) -> dict[int, int]:
        """Your object -> theirs: of the same name, if a person gave it; else what it lies on."""
        with self.session.history.lock:  # another thread may be changing the session
            mine = self.session.objects
            masks = {object_id: self.session.masks_of(object_id) for object_id in mine}
        theirs = {name: i for i, name in self.names.items() if name != default_name(i)}
        pairs = {i: theirs[info.name] for i, info in mine.items() if info.name in theirs}
        rest = [i for i in mine if i not in pairs]
        others = [i for i in self.names if i not in pairs.values()]
        shared = np.zeros((len(rest), len(others)))
        for row, object_id in enumerate(rest):
            for frame, mask in masks[object_id].items():
                if not mask.is_empty:
                    under = self._under(object_id, frame, mask)
                    shared[row] += [under.get(i, 0) for i in others]
        total = {i: sum(areas.get(i, 0) for areas in self._their_areas().values()) for i in others}
        areas = {i: sum(int(mask.summary[0]) for mask in masks[i].values()) for i in rest}
        sizes = np.array([[areas[i] + total[j] for j in others] for i in rest])
        dice = 2 * shared / np.maximum(sizes.reshape(shared.shape), 1)
        for row, column in zip(*linear_sum_assignment(-dice), strict=True):
            if dice[row, column] > 0:
                pairs[rest[row]] = others[column]
        return pairs


def _counts(labels: NDArray[Any]) -> dict[int, int]:
    """Id -> pixels, without the ground."""
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
