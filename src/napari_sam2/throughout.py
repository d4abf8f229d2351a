"""All objects of a whole sequence, without a click: found on key frames, followed, and joined.

ids = find_throughout(session, every=5, seeds="classical", diameter=18)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sam2.automatic import add_all, search_all
from napari_sam2.session import Session
from napari_sam2.slice_data import ObjectMask
from napari_sam2.tasks import Task
from napari_sam2.unread import UnreadableSlices, unreadable_text

if TYPE_CHECKING:
    from sam2_engine.automatic import Candidate, Rules

_KNOWN = 0.3  # share of a mask that objects cover already: what has more of it is not new
_SAME = 0.7  # IoU from which two masks are on one object


def find_throughout(
    session: Session,
    *,
    every: int = 10,
    seeds: Any = "classical",
    diameter: float | None = None,
    rules: Rules | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[int]:
    """Find and follow all objects of the sequence that is shown, in one step of undo.

    On every key frame the objects are found that no known object covers. They are followed back to
    the key frame before, for they may have come since then, and with all others on to the next. Who
    is absent from a key frame has ended. Where two objects fall onto one region they are made one,
    if that holds since the later one began; else the one of which the model is less sure ends where
    they met.

    Objects that were there before take part, and those that nobody has marked or named become the
    first that are found; those that are locked, or have approved or locked
    slices, are neither joined nor ended.

    Slices that cannot be read are passed over; the next one that can be read is the key frame then.

    Args:
        every: frames from one key frame to the next; objects that live shorter may be missed.
        seeds, diameter, rules: as for `find_all`, on each key frame.
        progress: called with the number of key frames that are done and of all.

    Returns ids of the objects that were added and are left at the end, sorted.

    Raises ValueError for a step below 1 and as `find_all` does; what `sam2_engine.load_model`
    raises. UnreadableSlices at the end, where slices were passed over: its `session` has what was
    found; OSError as soon as none can be read any more.
    """
    steps = throughout_steps(session, every, seeds, diameter, rules)
    while True:
        try:
            done, total = next(steps)
        except StopIteration as end:
            ids, unread = end.value
            if unread:
                raise UnreadableSlices(unreadable_text(unread), session) from None
            return ids  # type: ignore[no-any-return]
        if progress is not None and done:
            progress(done, total)


def throughout_steps(
    session: Session,
    every: int = 10,
    seeds: Any = "classical",
    diameter: float | None = None,
    rules: Rules | None = None,
) -> Generator[tuple[int, int], None, tuple[list[int], dict[int, str]]]:
    """As `find_throughout`, in steps; close it to stop and keep what is found by then.

    Yields how many key frames are done, of how many, when one is done; and (0, all) in between.
    Returns the ids, and why each slice was passed over that could not be read.
    """
    from sam2_engine.automatic import finished
    from sam2_engine.frames import first_readable

    if every < 1:
        raise ValueError(f"Key frames are 1 or more frames apart, not {every}.")
    view = session.view
    last = len(view) - 1
    total = last // every + 1
    stretches = [range(start, min(start + every, last + 1)) for start in range(0, last + 1, every)]
    added: set[int] = set()
    ended: set[int] = set()
    unread: dict[int, str] = {}

    def follow(objects: Iterable[int], start: int, stop: int) -> Iterator[tuple[int, int]]:
        with suppress(UnreadableSlices):  # told of at the end
            for _ in session.propagation(objects=objects, start=start, stop=stop):
                yield 0, total
        unread.update(session.unread)

    waiting = session.untouched_objects
    task = _with_window(session.task(objects=()))
    with session.history.change("Find throughout"):
        before = -1
        key_frames = first_readable(view, stretches, unread)
        for (key, image), (following, _) in pairwise(chain(key_frames, [(last + 1, None)])):
            if before >= 0:
                _join(session, before, key, ended)
                ended |= session.objects.keys() - _masks_on(session, key).keys()
            found = finished(search_all(task, key, seeds, diameter, rules, image))
            yield 0, total
            new = add_all(session, key, list(_unknown(session, key, found)), waiting)
            waiting = [i for i in waiting if i not in new]
            added |= set(new)
            if new and before >= 0:
                yield from follow(new, before + 1, key)
                _join(session, before, key, ended)
            after = min(following, last)
            going = (session.prompted_objects & set(session.objects)) - ended
            if going and after > key:
                yield from follow(going, key, after)
            before = key
            yield key // every + 1, total
        _join(session, before, last, ended)
    return sorted(added & session.objects.keys()), unread


def _with_window(task: Task) -> Task:
    """With the window that it would be looked at in; else that is found anew on each key frame."""
    from sam2_engine.frames import sample_window

    if task.source.window is not None:
        return task
    return replace(task, source=replace(task.source, window=sample_window(task.view)))


def _masks_on(session: Session, frame: int) -> dict[int, ObjectMask]:
    """What is found of each object on a frame; absent ones are left out."""
    masks = {i: session.masks_of(i).get(frame) for i in session.objects}
    return {i: mask for i, mask in masks.items() if mask is not None and not mask.is_empty}


def _unknown(session: Session, frame: int, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    """Those that no object covers yet."""
    shape = session.view.frame_shape
    known = np.zeros(shape, np.bool_)
    for mask in _masks_on(session, frame).values():
        known |= mask.on_frame(shape)
    for one in candidates:
        if (known[one.area] & one.mask).sum() <= _KNOWN * one.pixels:
            yield one


def _join(session: Session, first: int, last: int, ended: set[int]) -> None:
    """Settle whose the region is where two objects have met between two frames (included)."""
    for frame in range(first, last + 1):
        masks = _masks_on(session, frame)
        for one, other in combinations(sorted(masks), 2):
            if not masks[one].meets(masks[other]) or ended & {one, other}:
                continue
            if not {one, other} <= session.objects.keys():  # joined on this frame
                continue
            if any(session.objects[i].locked or session.kept(i) for i in (one, other)):
                continue
            if _iou(masks[one], masks[other]) < _SAME:
                continue
            if _are_one(session, one, other):
                session.merge_objects(one, other)
            else:
                _end_weaker(session, one, other, frame, last, ended)


def _shared(session: Session, one: int, other: int) -> list[int]:
    """Frames on which both objects are."""
    first, second = session.masks_of(one), session.masks_of(other)
    return sorted(
        frame
        for frame in set(first) & set(second)
        if not (first[frame].is_empty or second[frame].is_empty)
    )


def _are_one(session: Session, one: int, other: int) -> bool:
    """Whether two objects lie on one region wherever both are."""
    first, second = session.masks_of(one), session.masks_of(other)
    return all(_iou(first[frame], second[frame]) >= _SAME for frame in _shared(session, one, other))


def _end_weaker(
    session: Session, one: int, other: int, met: int, last: int, ended: set[int]
) -> None:
    """End the one of two objects of which the model is less sure, from where they met on."""
    surety = {}
    for object_id in (one, other):
        masks = session.masks_of(object_id)
        own = [masks[frame].iou for frame in range(met, last + 1) if frame in masks]
        surety[object_id] = float(np.mean(own))
    weaker = min((one, other), key=lambda i: (surety[i], -i))
    if min(session.masks_of(weaker)) < met:
        session.set_life(weaker, session.life(weaker).first, met - 1)
    else:
        session.remove_object(weaker)
    ended.add(weaker)


def _iou(one: ObjectMask, other: ObjectMask) -> float:
    """Of two masks of a frame."""
    shared = one.shared_pixels(other)
    either = one.summary[0] + other.summary[0] - shared
    return shared / either if either else 0.0
