"""Where the masks of a session are most likely wrong, so that a person looks there first.

    object_id, frame = next_doubtful(session)

What it rests on, and how well it finds errors, is measured by `benchmarks.review` and described in
docs/review.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_sam2.session import Session
from napari_sam2.slice_data import ObjectMask, State

Floats = NDArray[np.float64]

_JUMP = 0.5  # how much a jump of area or position from one slice to the next takes from the trust
_REACH = 2.0  # slices from a marked one after which half of the doubt counts
_LOST = 0.4  # of a slice without a mask beside one with a mask
_LEAST = 0.01  # doubt that is worth a look


@dataclass(frozen=True)
class Evidence:
    """What speaks for and against one object's masks: arrays (slices,) of a sequence."""

    area: Floats
    """Pixels; 0 without a mask."""
    iou: Floats
    """How well the model thinks that the mask fits, 0 to 1; 1 where a person gave it, or none."""
    stability: Floats
    """Area where the model's logits are above 1 as a part of that where they are above -1, 0 to
    1. A mask whose outline hangs on a little more or less is not stable. 1 likewise."""
    area_change: Floats
    """0 to 1: the larger change towards a neighbouring slice, of the larger of both areas."""
    shift: Floats
    """0 to 1: the larger way of the centre towards a neighbouring slice, in radii of the larger
    mask, taken as a disc."""
    distance: Floats
    """Slices to the nearest one that a person has marked, painted, approved or locked; infinite
    without any."""
    is_open: NDArray[np.bool_]
    """Whether nobody has said anything of the slice."""

    @property
    def doubt(self) -> Floats:
        """(slices,) 0 to 1: pixels that are likely wrong, as a part of the largest mask.

        What the model is unsure of, or what jumps, counts by its area and by the distance from
        what a person has said, for errors add up on the way. Where an object is lost from one
        slice to the next, the mask on the one before counts. 0 where a person has spoken.
        """
        largest = max(float(self.area.max(initial=0)), 1.0)
        steady = (1 - _JUMP * self.area_change) * (1 - _JUMP * self.shift)
        wrong = (1 - self.iou * self.stability * steady) * self.area
        lost = np.where(self.area == 0, _LOST * np.maximum(*_neighbours(self.area)), 0)
        far = 1 - _REACH / (self.distance + _REACH)
        doubt: Floats = np.where(self.is_open, (wrong + lost) / largest * far, 0)
        return doubt


def evidence(session: Session, object_id: int) -> Evidence:
    """What is known of an object's masks in the sequence that is shown.

    Milliseconds, but for masks that are looked at for the first time.
    """
    states, life = session.states(object_id), session.life(object_id)
    known = evidence_of(session.masks_of(object_id), states, len(session.view))
    known.is_open[: life.first] = False
    if life.last is not None:
        known.is_open[life.last + 1 :] = False
    return known


def evidence_of(
    masks: Mapping[int, ObjectMask], states: Mapping[int, State], slices: int
) -> Evidence:
    """Of one object: slice -> mask, slice -> state, as `Session` gives them."""
    area, y, x, stability, iou = np.tile([[0.0], [0], [0], [1], [1]], slices)
    if masks:
        at = np.fromiter(masks, int)
        known = [(*mask.summary, mask.iou) for mask in masks.values()]
        area[at], y[at], x[at], stability[at], iou[at] = np.array(known).T
    said = {frame: state for frame, state in states.items() if state != "auto"}
    is_open = np.ones(slices, np.bool_)
    is_open[list(said)] = False
    fixed = np.sort([frame for frame, state in said.items() if state != "rejected"])
    return Evidence(
        area=area,
        iou=np.clip(iou, 0, 1),
        stability=stability,
        area_change=_area_change(area),
        shift=_shift(area, y, x),
        distance=_distance(fixed, slices),
        is_open=is_open,
    )


def doubts(session: Session, objects: Iterable[int] | None = None) -> dict[int, Floats]:
    """Object -> (slices,) doubt, in the sequence that is shown. objects: ids; by default all."""
    chosen = session.objects if objects is None else objects
    return {object_id: evidence(session, object_id).doubt for object_id in chosen}


def by_doubt(session: Session, objects: Iterable[int] | None = None) -> list[tuple[int, int]]:
    """(object, slice) of what is worth a look, the most doubtful first.

    Left out are locked objects, and slices that a person has marked, painted, approved, locked or
    rejected.
    """
    found = doubts(session, objects)
    ranked = [
        (-float(doubt[frame]), object_id, int(frame))
        for object_id, doubt in found.items()
        if not session.objects[object_id].locked
        for frame in np.flatnonzero(doubt >= _LEAST)
    ]
    return [(object_id, frame) for _, object_id, frame in sorted(ranked)]


def next_doubtful(
    session: Session,
    seen: Collection[tuple[int, int]] = (),
    objects: Iterable[int] | None = None,
) -> tuple[int, int] | None:
    """(object, slice) to look at next, in order of doubt; None where there is nothing more.

    seen: (object, slice) that were looked at and left as they are. objects: as for `by_doubt`.
    """
    return next((place for place in by_doubt(session, objects) if place not in seen), None)


def count_states(session: Session, object_id: int) -> Counter[State]:
    """How many slices of an object are in each state, in the sequence that is shown."""
    return Counter(session.states(object_id).values())


def _neighbours(values: Floats) -> tuple[Floats, Floats]:
    """(slices,) values of the slice before and of the one behind; at an end, the slice's own."""
    padded = np.pad(values, 1, mode="edge")
    return padded[:-2], padded[2:]


def _area_change(area: Floats) -> Floats:
    changes = [np.abs(area - near) / np.fmax(np.fmax(area, near), 1) for near in _neighbours(area)]
    return np.fmax(*changes)


def _shift(area: Floats, y: Floats, x: Floats) -> Floats:
    shifts = []
    for near, near_y, near_x in zip(*map(_neighbours, (area, y, x)), strict=True):
        radius = np.sqrt(np.fmax(np.fmax(area, near), 1) / np.pi)
        way = np.hypot(y - near_y, x - near_x) / radius
        shifts.append(np.where((area > 0) & (near > 0), np.fmin(way, 1), 0))
    return np.fmax(*shifts)


def _distance(fixed: NDArray[np.int64], slices: int) -> Floats:
    """(slices,) to the nearest of sorted slices."""
    if not len(fixed):
        return np.full(slices, np.inf)
    frames = np.arange(slices)
    place = np.searchsorted(fixed, frames)
    before, behind = fixed[np.maximum(place - 1, 0)], fixed[np.minimum(place, len(fixed) - 1)]
    return np.fmin(np.abs(frames - before), np.abs(frames - behind)).astype(np.float64)
