"""How far a propagation is to go, from what the person chose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from napari_sam2.session import NothingToDo, Session
from napari_sam2.widgets.panel import BETWEEN, HERE, RANGE


def chosen_reach(
    session: Session, reach: str, object_ids: Sequence[int], here: int, limits: tuple[int, int]
) -> dict[str, Any]:
    """Arguments for `Session.task`, which stay as they are whatever is marked from now on.

    Args:
        reach: one of the panel's choices.
        here: the slice that the viewer shows.
        limits: the slices that the person gave for RANGE.

    Raises NothingToDo, with a message for people, where there are no such slices.
    """
    if reach == RANGE:
        return {"start": min(limits), "stop": min(max(limits), len(session.view) - 1)}
    if reach == HERE:
        return {"to": here}
    if reach == BETWEEN:
        before, behind = _marked_around(session, object_ids, here)
        return {"start": before, "stop": behind}
    return {"direction": reach}


def _marked_around(session: Session, object_ids: Sequence[int], here: int) -> tuple[int, int]:
    """The slices before and behind this one that others follow from."""
    marked = set()
    for object_id in object_ids:
        said = session.prompts.get(object_id, {})
        marked |= {frame for frame, one in said.items() if one.usable}
        marked |= set(session.kept(object_id))
    before = [frame for frame in marked if frame <= here]
    behind = [frame for frame in marked if frame > here]
    if here in marked and not behind:  # on the last marked slice: between it and the one before
        before, behind = [frame for frame in before if frame < here], [here]
    if not before or not behind:
        raise NothingToDo(
            f"Slice {here} does not lie between two marked slices: mark the object on both sides, "
            "or choose other slices."
        )
    return max(before), min(behind)
