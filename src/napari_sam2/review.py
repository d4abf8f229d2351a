"""Where the masks of a session are most likely wrong, so that a person looks there first.

    object_id, frame = next_doubtful(session)

What it rests on, and how well it finds errors, is measured by `benchmarks.review` and described in
docs/review.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_sam2.session import Session
from napari_sam2.slice_data import ObjectMask, SlicePrompts, State
from napari_sam2.tasks import OtherSide

Floats = NDArray[np.float64]

_JUMP = 0.5  # how much a jump of area or position from one slice to the next takes from the trust
_REACH = 4.0  # slices from what a person has said to where it counts half
_DIFFERS = 0.125  # of the pixels that only one of both ways shows
_FILLED = 0.5  # part of a box that an object fills
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
    steadiness: Floats
    """0 to 1: the stability, less what area and position jump."""
    worst: Floats
    """0 to 1: the least steadiness on the way from the nearest slice that a person has marked,
    painted, approved or locked, without that one, to this one; without any, its own."""
    expected: Floats
    """Pixels that a slice without a mask would have if the object was there: those of the nearest
    slice with a mask, or half of the box that was drawn where the model has found nothing. 0 with a
    mask, where the model has not looked, and where a person says that the object is not there on
    the nearest slice that something is known of."""
    distance: Floats
    """Slices to the nearest one that a person has marked, painted, approved or locked; infinite
    without any."""
    differing: Floats
    """Pixels that only one of both ways shows, from the marked slices before and behind; 0 where
    they were not compared."""
    is_open: NDArray[np.bool_]
    """Whether nobody has said anything of the slice."""

    @property
    def wrong(self) -> Floats:
        """(slices,) pixels that are likely wrong; 0 where a person has spoken.

        Of a mask, what the model is unsure of, there and where it was least steady on the way
        there, for what has gone wrong once is followed from then on; the more the farther it is
        from what a person has said, for errors add up. Of a slice without a mask, what may have
        been lost, the more the nearer, for nothing vanishes beside its marks. Of both, a part of
        what differs between the ways from both sides.
        """
        near = _REACH / (self.distance + _REACH)
        unsure = (1 - self.iou * self.worst) * self.area * (1 - near)
        lost = self.expected * near**2
        wrong: Floats = np.where(self.is_open, unsure + lost + _DIFFERS * self.differing, 0)
        return wrong

    @property
    def doubt(self) -> Floats:
        """(slices,) 0 to 1: `wrong` as a part of the largest mask that the object has or should."""
        largest = max(float(np.fmax(self.area, self.expected).max(initial=0)), 1.0)
        return np.fmin(self.wrong / largest, 1)


def evidence(session: Session, object_id: int) -> Evidence:
    """What is known of an object's masks in the sequence that is shown.

    Milliseconds, but for masks that are looked at for the first time.
    """
    states, life = session.states(object_id), session.life(object_id)
    known = evidence_of(
        session.masks_of(object_id),
        states,
        len(session.view),
        session.prompts_for(object_id),
        session.looked_at(object_id),
        session.other_sides(object_id),
    )
    known.is_open[: life.first] = False
    if life.last is not None:
        known.is_open[life.last + 1 :] = False
    return known


def evidence_of(
    masks: Mapping[int, ObjectMask],
    states: Mapping[int, State],
    slices: int,
    prompts: Mapping[int, SlicePrompts],
    looked_at: Collection[int],
    other_sides: Mapping[int, OtherSide],
) -> Evidence:
    """Of one object, by slice, as `Session` gives them."""
    area, y, x, stability, iou = np.tile([[0.0], [0], [0], [1], [1]], slices)
    if masks:
        at = np.fromiter(masks, int)
        known = [(*mask.summary, mask.iou) for mask in masks.values()]
        area[at], y[at], x[at], stability[at], iou[at] = np.array(known).T
    said = {frame: state for frame, state in states.items() if state != "auto"}
    is_open = np.ones(slices, np.bool_)
    is_open[list(said)] = False
    fixed = np.sort([frame for frame, state in said.items() if state != "rejected"])
    differing = np.zeros(slices)
    for frame, other in other_sides.items():
        differing[frame] = other.pixels
    area_change, shift = _area_change(area), _shift(area, y, x)
    steadiness = stability * (1 - _JUMP * area_change) * (1 - _JUMP * shift)
    return Evidence(
        area=area,
        iou=np.clip(iou, 0, 1),
        stability=stability,
        area_change=area_change,
        shift=shift,
        steadiness=steadiness,
        worst=_worst_on_the_way(steadiness, fixed),
        expected=_expected(area, said, prompts, looked_at),
        distance=_distance(fixed, slices),
        differing=differing,
        is_open=is_open,
    )


def doubts(session: Session, objects: Iterable[int] | None = None) -> dict[int, Floats]:
    """Object -> (slices,) doubt, in the sequence that is shown. objects: ids; by default all."""
    chosen = session.objects if objects is None else objects
    return {object_id: evidence(session, object_id).doubt for object_id in chosen}


def by_doubt(session: Session, objects: Iterable[int] | None = None) -> list[tuple[int, int]]:
    """(object, slice) of what is worth a look; first where most pixels are likely wrong.

    Left out are locked objects, and slices that a person has marked, painted, approved, locked or
    rejected.
    """
    ranked = []
    for object_id in session.objects if objects is None else objects:
        if session.objects[object_id].locked:
            continue
        known = evidence(session, object_id)
        wrong = known.wrong
        frames = np.flatnonzero(known.doubt >= _LEAST)
        ranked += [(-float(wrong[frame]), object_id, int(frame)) for frame in frames]
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


def _worst_on_the_way(steadiness: Floats, fixed: NDArray[np.int64]) -> Floats:
    """As in `Evidence`. fixed: sorted slices; of two that are equally near, the earlier serves."""
    worst = steadiness.copy()
    starts = (fixed[:-1] + fixed[1:]) // 2 + 1
    for start, mark, stop in zip([0, *starts], fixed, [*starts, len(worst)], strict=False):
        behind, before = slice(mark + 1, stop), slice(start, mark)
        worst[behind] = np.minimum.accumulate(steadiness[behind])
        worst[before] = np.minimum.accumulate(steadiness[before][::-1])[::-1]
    return worst


def _expected(
    area: Floats,
    said: Mapping[int, State],
    prompts: Mapping[int, SlicePrompts],
    looked_at: Collection[int],
) -> Floats:
    """As in `Evidence`. said: the state of each slice on which a person has spoken."""
    known = {int(frame): float(area[frame]) for frame in np.flatnonzero(area)}
    for frame, state in said.items():
        if state not in ("prompted", "rejected"):
            known.setdefault(frame, 0.0)  # the person says that the object is not there
    for frame, one in prompts.items():
        if frame in looked_at and one.starts_over:
            known.setdefault(frame, _FILLED * _boxed(one))
    expected = np.zeros(len(area))
    if not known:
        return expected
    at = np.array(sorted(known))
    places = _nearest(at, len(area))
    pixels = np.array([known[frame] for frame in at])[places]
    way = np.abs(at[places] - np.arange(len(area)))
    nearest = np.where(way == way.min(axis=0), pixels, 0).max(axis=0)
    lost = [frame for frame in looked_at if not area[frame]]
    expected[lost] = nearest[lost]
    return expected


def _boxed(said: SlicePrompts) -> float:
    """Pixels in the box around box and lassos, one of which there is."""
    corners = np.concatenate(
        [*said.lassos, np.reshape(() if said.box is None else said.box, (-1, 2))]
    )
    return float(np.ptp(corners, axis=0).prod())


def _distance(fixed: NDArray[np.int64], slices: int) -> Floats:
    """(slices,) to the nearest of sorted slices."""
    if not len(fixed):
        return np.full(slices, np.inf)
    way: Floats = np.abs(fixed[_nearest(fixed, slices)] - np.arange(slices)).astype(np.float64)
    return way.min(axis=0)


def _nearest(at: NDArray[np.int64], slices: int) -> NDArray[np.int64]:
    """(2, slices) indices into sorted slices, one at least: the nearest one before each slice and
    the nearest one from it on; at an end the same one twice."""
    place = np.searchsorted(at, np.arange(slices))
    return np.stack([np.maximum(place - 1, 0), np.minimum(place, len(at) - 1)])
