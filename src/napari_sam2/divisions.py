"""Where cells divide: proposed from the masks of a session, and accepted or rejected by a person.

    for proposal in propose_divisions(session):
        accept_division(session, proposal)

SAM 2 says nothing of divisions: it goes on with one daughter, or with both as one object, and the
other daughter is found as a new one. How well that is told is measured by `benchmarks.divisions`
and described in docs/tracks.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from napari_sam2.lineage import LineageError, divisions
from napari_sam2.session import LockedError, Session
from napari_sam2.slice_data import ObjectMask

LEAST = 0.4
"""The score of proposals that are worth a look."""
_BEFORE = 3  # frames that tell how large and how long a cell is before it divides
_GAP = 2  # frames that may lie between a parent's last mask and a daughter's first one
_REACH = 3.0  # radii of the parent within which a daughter begins
_LIKE = 0.35  # area of the smaller piece of a mask as a part of the larger one
_LASTS, _MOSTLY = 5, 0.8  # frames from a division on, and on which share of them it is in pieces


@dataclass(frozen=True)
class Proposal:
    """An object that may divide."""

    parent: int
    frame: int
    """The first one of the daughters."""
    daughters: tuple[int, ...]
    """Objects that begin there. Of two, the parent has ended. Of one, the parent's own masks from
    the frame on are the other. Of none, the parent's mask is in pieces from there on."""
    score: float
    """0 to 1."""
    reason: str
    """For people."""


@dataclass(frozen=True)
class Known:
    """What divisions are proposed from: values that never change, for another thread."""

    tracks: Mapping[int, Mapping[int, ObjectMask]]
    """Object -> frame -> mask, of all that may divide or be a daughter."""
    parents: Mapping[int, int]
    no_divisions: Mapping[int, frozenset[int]]
    shape: tuple[int, int]
    """Of a frame."""

    @classmethod
    def of(cls, session: Session) -> Known:
        """Quick, unlike `propose`."""
        tracks = {
            i: masks
            for i, info in session.objects.items()
            if not info.locked and (masks := session.masks_of(i))
        }
        return cls(tracks, session.parents, session.no_divisions, session.view.frame_shape)


def propose_divisions(session: Session, least: float = LEAST) -> list[Proposal]:
    """Divisions that the masks of the sequence that is shown speak for, the likeliest first.

    Each object takes part in one of them at most, as a parent and as a daughter. Left out are
    locked objects, those that divide already or have a parent, and what was rejected.

    least: the smallest score, 0 to 1.
    """
    return propose(Known.of(session), least)


def propose(known: Known, least: float = LEAST) -> list[Proposal]:
    """As `propose_divisions`."""
    tracks, parents = known.tracks, known.parents
    is_divided = divisions(parents)
    begins = {i: min(masks) for i, masks in tracks.items() if i not in parents and min(masks) > 0}
    found: list[Proposal] = []
    for parent, masks in tracks.items():
        if parent not in is_divided:
            found += _splits(parent, masks)
            found += _newcomers(parent, tracks, begins, known.shape)
    found = [
        one
        for one in found
        if one.score >= least
        and all(abs(one.frame - at) > _GAP for at in known.no_divisions.get(one.parent, ()))
    ]
    found.sort(key=lambda one: (-one.score, one.frame, one.parent))
    return list(_each_once(found))


def accept_division(session: Session, proposal: Proposal) -> list[int]:
    """Let an object divide as proposed, in one step of undo. Returns the ids of its daughters.

    Raises as `divide`.
    """
    return divide(session, proposal.parent, proposal.frame, proposal.daughters)


def reject_division(session: Session, proposal: Proposal) -> None:
    """Have a division not proposed again."""
    session.reject_division(proposal.parent, proposal.frame)


def divide(session: Session, parent: int, frame: int, daughters: Iterable[int] = ()) -> list[int]:
    """Let an object divide, in one step of undo. Returns the ids of its daughters.

    Of one daughter, the parent is cut where it begins, and what follows is the other. Without any,
    the parent's mask on the frame is in pieces, and these are the daughters.

    Raises LineageError and LockedError as `Session.set_division`, `cut_object`, `split_object`.
    """
    given = list(daughters)
    for daughter in given:
        if session.objects[daughter].locked:
            raise LockedError(f"{session.objects[daughter].name} is locked. Unlock it first.")
        if not session.masks_of(daughter):
            raise LineageError(
                f"{session.objects[daughter].name} has no mask here yet: mark it and propagate "
                "first."
            )
    with session.history.change("Division"):
        if not given:
            return session.split_object(parent, frame)
        if len(given) == 1:
            first = min(session.masks_of(given[0]))
            given.append(session.cut_object(parent, first))
        session.set_division(parent, given)
    return sorted(given)


# -- what speaks for a division ------------------------------------------------------------------


def _splits(parent: int, masks: Mapping[int, ObjectMask]) -> Iterator[Proposal]:
    """Where a mask falls into pieces and stays so."""
    frames = sorted(masks)
    pieces = {frame: _alike(masks[frame]) for frame in frames}
    for before, frame in pairwise(frames):
        now = pieces[frame]
        if len(pieces[before]) > 1 or len(now) < 2:
            continue
        later = [len(pieces[at]) > 1 for at in frames if frame <= at < frame + _LASTS]
        if np.mean(later) >= _MOSTLY:
            score = _score(_before(masks, frame), now[0], now[1])
            reason = "its mask falls into two pieces of like size"
            yield Proposal(parent, frame, (), score, reason)


def _alike(mask: ObjectMask) -> list[ObjectMask]:
    """The pieces of a mask that are about as large as the largest one."""
    largest, *others = mask.pieces
    return [largest, *(o for o in others if o.summary[0] >= _LIKE * largest.summary[0])]


def _newcomers(
    parent: int,
    tracks: Mapping[int, Mapping[int, ObjectMask]],
    begins: dict[int, int],
    shape: tuple[int, int],
) -> Iterator[Proposal]:
    """Objects that begin beside the parent: one while it goes on, or two when it has ended."""
    masks = tracks[parent]
    first, last = min(masks), max(masks)
    near = [
        i
        for i, frame in begins.items()
        if i != parent
        and first < frame <= last + _GAP
        and _is_near(masks, tracks[i][frame], frame)
        and not _comes_over_border(tracks[i][frame], shape)
    ]
    for one in near:
        frame = begins[one]
        if frame in masks:
            score = _score(_before(masks, frame), masks[frame], tracks[one][frame])
            yield Proposal(parent, frame, (one,), score, "a new object begins beside it")
    ended = [i for i in near if begins[i] > last]
    for n, one in enumerate(ended):
        for other in ended[n + 1 :]:
            frame = min(begins[one], begins[other])
            two = tracks[one][begins[one]], tracks[other][begins[other]]
            score = _score(_before(masks, frame), *two)
            yield Proposal(
                parent, frame, (one, other), score, "it ends, and two new objects begin there"
            )


def _before(masks: Mapping[int, ObjectMask], frame: int) -> list[ObjectMask]:
    """The parent's last masks before a frame, the latest one last."""
    return [masks[at] for at in sorted(masks) if at < frame][-_BEFORE:]


def _is_near(masks: Mapping[int, ObjectMask], newcomer: ObjectMask, frame: int) -> bool:
    before = _before(masks, frame)
    return bool(before) and _way(before[-1], newcomer) <= _REACH * _radius(before[-1])


def _comes_over_border(mask: ObjectMask, shape: tuple[int, int]) -> bool:
    return any(
        part.start == 0 or part.stop == size for part, size in zip(mask.area, shape, strict=True)
    )


def _score(before: list[ObjectMask], one: ObjectMask, other: ObjectMask) -> float:
    """0 to 1: whether two masks are the halves of one that was there before.

    They have about its area together and are of like size, and it lay between them. That it was
    long before counts a little.
    """
    whole = float(np.median([mask.summary[0] for mask in before]))
    first, second = one.summary[0], other.summary[0]
    total = np.exp(-((np.log((first + second) / whole) / 0.5) ** 2))
    alike = min(1.0, min(first, second) / max(first, second) / 0.7)
    middle = (np.array(one.summary[1:3]) + other.summary[1:3]) / 2
    off = float(np.linalg.norm(middle - before[-1].summary[1:3])) / _radius(before[-1])
    between = np.exp(-((off / 0.7) ** 2))
    length = max(_elongation(mask) for mask in before)
    long = float(np.clip((length - 1) / 0.5, 0, 1))
    return float((total * alike * between) ** (1 / 3) * (0.8 + 0.2 * long))


def _radius(mask: ObjectMask) -> float:
    """Of a disc of the same area."""
    return max(float(np.sqrt(mask.summary[0] / np.pi)), 1.0)


def _way(one: ObjectMask, other: ObjectMask) -> float:
    """Between the centres, in pixels."""
    return float(np.linalg.norm(np.subtract(one.summary[1:3], other.summary[1:3])))


def _elongation(mask: ObjectMask) -> float:
    """Length over width of the ellipse with the same second moments; 1 for a disc."""
    y, x = np.nonzero(mask.logits > 0)
    if len(y) < 3:
        return 1.0
    spread = np.linalg.eigvalsh(np.cov(y, x) + np.eye(2) / 12)
    return float(np.sqrt(spread[1] / spread[0]))


def _each_once(proposals: Iterable[Proposal]) -> Iterator[Proposal]:
    """The first of those that share a parent or a daughter."""
    parents: set[int] = set()
    daughters: set[int] = set()
    for one in proposals:
        if one.parent not in parents and daughters.isdisjoint(one.daughters):
            parents.add(one.parent)
            daughters.update(one.daughters)
            yield one


def next_division(proposals: Collection[Proposal], after: int) -> Proposal | None:
    """The first of proposals on a later frame, else the first of all; None without any."""
    in_order = sorted(proposals, key=lambda one: (one.frame, -one.score))
    later = [one for one in in_order if one.frame > after]
    return next(iter(later or in_order), None)
