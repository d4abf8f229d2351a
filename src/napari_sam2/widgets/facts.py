"""What the widget says of a session's objects and slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from napari_sam2.counted import counted
from napari_sam2.session import Session
from napari_sam2.widgets.object_table import ObjectRow
from napari_sam2.widgets.slice_strip import (
    APPROVED,
    LOCKED,
    MASK,
    OUTSIDE,
    PAINTED,
    PROMPTED,
    REJECTED,
    STALE,
    SliceStates,
)

_STATES = {"auto": "by the model", "prompted": "marked"}
"""Words for people, of the states that need others."""

Colours = Callable[[int], Any]
"""Object id -> RGB or RGBA, 0 to 1."""


def object_rows(session: Session, colour_of: Colours) -> list[ObjectRow]:
    """The table of objects."""
    elsewhere, spent = session.prompted_objects, session.seconds
    rows = []
    for object_id in session.objects:
        facts = session.facts(object_id)
        counts = ", ".join(f"{n} {_STATES.get(state, state)}" for state, n in facts.states.items())
        notes = [f"Slices: {counts}." if counts else ""]
        if facts.stale:
            notes.append(f"Press Update for what is out of date: {counted(facts.stale, 'slice')}.")
        if not facts.prompts and object_id in elsewhere:
            notes.append("Marked on another axis or position.")
        seconds = spent.get(object_id, 0)
        if seconds >= 1:
            notes.append(f"Your time: {int(seconds) // 60} min {int(seconds) % 60} s.")
        both = facts.first is not None and facts.last is not None
        rows.append(
            ObjectRow(
                object_id,
                facts.info.name,
                _rgb(colour_of(object_id)),
                facts.prompts,
                (facts.first or 0, facts.last or 0) if both else None,
                facts.score,
                facts.info.hidden,
                facts.info.locked,
                " ".join(filter(None, notes)),
            )
        )
    return rows


def slice_states(session: Session, object_id: int, colour_of: Colours) -> SliceStates:
    """What is known of an object on every slice of the sequence."""
    flags = np.zeros(len(session.view), np.uint8)
    if object_id not in session.objects:
        return SliceStates(flags)
    for frame in session.masks_of(object_id):
        flags[frame] |= MASK
    for frame in session.stale(object_id):
        flags[frame] |= STALE
    for frame, said in session.prompts.get(object_id, {}).items():
        flags[frame] |= PROMPTED if said.mask is None else PAINTED
    for frame, how in session.kept(object_id).items():
        flags[frame] |= APPROVED if how == "approved" else LOCKED
    for frame, state in session.states(object_id).items():
        flags[frame] |= REJECTED if state == "rejected" else 0
    life = session.life(object_id)
    flags[: life.first] |= OUTSIDE
    if life.last is not None:
        flags[life.last + 1 :] |= OUTSIDE
    if session.objects[object_id].locked:
        flags |= LOCKED
    return SliceStates(flags, _rgb(colour_of(object_id)))


def _rgb(colour: Any) -> tuple[float, ...]:
    return tuple(float(part) for part in colour[:3])
