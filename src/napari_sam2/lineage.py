"""Who descends from whom: daughters and their parents, as plain ids.

A graph is a mapping from the id of a daughter to that of its parent. An object without an entry has
no known parent. `Session` keeps one; `napari_sam2.divisions` proposes its edges.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Parents = Mapping[int, int]
"""Daughter -> parent."""


class LineageError(ValueError):
    """Objects cannot be parent and daughter, or one track. The message says why."""


def divisions(parents: Parents) -> dict[int, tuple[int, ...]]:
    """Parent -> its daughters, all in the order of their ids."""
    found: dict[int, list[int]] = defaultdict(list)
    for daughter, parent in sorted(parents.items()):
        found[parent].append(daughter)
    return {parent: tuple(daughters) for parent, daughters in sorted(found.items())}


def ancestors(parents: Parents, object_id: int) -> Iterator[int]:
    """Parent, grandparent and so on; it ends also where the graph has a circle."""
    seen = {object_id}
    while (parent := parents.get(object_id)) is not None and parent not in seen:
        seen.add(parent)
        yield parent
        object_id = parent


def generation(parents: Parents, object_id: int) -> int:
    """How many divisions lie before an object; 0 without a known parent."""
    return sum(1 for _ in ancestors(parents, object_id))


def has_circle(parents: Parents) -> bool:
    """Whether somebody would descend from itself."""
    return any(
        parents.get(last) is not None
        for start in parents
        for last in [start, *ancestors(parents, start)][-1:]
    )


def merged(parents: Parents, into: int, other: int) -> dict[int, int]:
    """The graph once two objects are one: the first takes over what the other was to others.

    The first keeps its own parent if it has one. Links that would make somebody its own ancestor
    are dropped.
    """
    kept = {d: p for d, p in parents.items() if other not in (d, p) and (d, p) != (into, other)}
    new = {daughter: into for daughter, parent in parents.items() if parent == other}
    if into not in kept and other in parents:
        new[into] = parents[other]
    for daughter, parent in sorted(new.items()):
        if daughter != parent and daughter not in ancestors(kept, parent):
            kept[daughter] = parent
    return kept


def split_mask(
    mask: NDArray[np.bool_], pieces: Sequence[NDArray[np.bool_]]
) -> list[NDArray[np.bool_]]:
    """Give each pixel of a mask to the nearest of several pieces, as of the frame before.

    mask, pieces: (H, W) each. Returns as many masks as there are pieces; they do not overlap.
    """
    from scipy.ndimage import distance_transform_edt

    rows, columns = _box(np.logical_or.reduce([mask, *pieces]))
    near = mask[rows, columns]
    ways = [_far(p[rows, columns], distance_transform_edt) for p in pieces]
    owner = np.argmin(ways, axis=0)
    parts = []
    for number in range(len(pieces)):
        part = np.zeros_like(mask)
        part[rows, columns] = near & (owner == number)
        parts.append(part)
    return parts


def _far(piece: NDArray[np.bool_], distances: Any) -> NDArray[np.float64]:
    """(h, w) how far each pixel is from a piece; infinite from an empty one."""
    if not piece.any():
        return np.full(piece.shape, np.inf)
    far: NDArray[np.float64] = distances(~piece)
    return far


def _box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and columns in which a mask lies."""
    spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    rows, columns = (slice(int(s[0]), int(s[-1]) + 1) if len(s) else slice(0, 0) for s in spans)
    return rows, columns
