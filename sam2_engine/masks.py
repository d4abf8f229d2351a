"""Where to show an object by its mask, and how well one mask fits another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]  # (H, W)
Masks = NDArray[np.bool_]  # (N, H, W)


def deepest_point(mask: Mask) -> tuple[int, int]:
    """The pixel y, x of a mask (H, W) farthest from all that is outside, the image's border too."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(y), int(x)


def tight_box(mask: Mask) -> tuple[int, int, int, int]:
    """y0, x0, y1, x1 of the outermost pixels of a mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])


def largest_slice(truth: Masks) -> int:
    """The frame of (N, H, W) where the object has most pixels; the first of several."""
    return int(truth.sum(axis=(1, 2)).argmax())


def dice(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """2 |A and B| / (|A| + |B|) over all pixels; 1 if both are empty."""
    total = int(predicted.sum()) + int(truth.sum())
    return 2 * int((predicted & truth).sum()) / total if total else 1.0


def iou(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """|A and B| / |A or B| over all pixels; 1 if both are empty."""
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 1.0
