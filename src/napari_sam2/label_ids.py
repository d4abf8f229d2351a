"""Which objects an array of labels shows."""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_ID = 2**31 - 1
"""Of an object."""


def ids_in(labels: Any) -> frozenset[int]:
    """All ids but 0 in an array of integers, read a block at a time; seconds for 1000 frames of
    2048 x 2048 in memory. A zarr array without a chunk on disk is not read."""
    if getattr(labels, "nchunks_initialized", None) == 0 and not labels.fill_value:
        return frozenset()
    chunks = getattr(labels, "chunks", None)
    size = chunks[0] if chunks and isinstance(chunks[0], int) else 1
    found: set[int] = set()
    for start in range(0, labels.shape[0], size):
        flat = np.asarray(labels[start : start + size]).reshape(-1)
        changes = flat[1:][flat[1:] != flat[:-1]]  # an object is many pixels in a row
        found.update(np.unique(changes).tolist(), flat[:1].tolist())
    return frozenset(found - {0})
