"""What a person without a trained model would do: a seeded watershed, carried from slice to slice.

On the prompted slice the seeds come from the prompt, on every other slice from the mask of the
slice before: its deep part is inside, all that is far from it is outside, and the watershed of
the gradient decides what lies between. It stops where the object's grey values are gone or its
area dies. The few numbers below were chosen once, on the dev split.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import gaussian, sobel
from skimage.segmentation import watershed

Grey = NDArray[np.float32]  # (H, W) or (N, H, W), 0 to 1
Mask = NDArray[np.bool_]

CLICK_RADIUS = 2  # pixels around a click that are taken as inside
CLICK_REACH = 0.25  # of the image's smaller side: no object reaches farther from a click
BOX_CORE = 0.6  # of a box: an ellipse of this size is taken as inside
CORE = 0.5  # of an object's depth: what is deeper is inside on the next slice too
REACH = 0.35  # of an object's depth: no border moves farther from one slice to the next
MIN_REACH = 2.0  # pixels
GREY_LIMIT = 2.5  # standard deviations around the object's mean that seeds may have
MIN_AREA = 0.05  # of the object's area on the prompted slice, else it has ended


def from_click(image: Grey, point: tuple[int, int]) -> Mask:
    """Mask (H, W) around a click at y, x."""
    rows, columns = np.indices(image.shape)
    distance = np.hypot(rows - point[0], columns - point[1])
    return _between(image, distance <= CLICK_RADIUS, distance > CLICK_REACH * min(image.shape))


def from_box(image: Grey, box: tuple[int, int, int, int]) -> Mask:
    """Mask (H, W) within the box y0, x0, y1, x1 (its outermost pixels)."""
    y0, x0, y1, x1 = box
    rows, columns = np.indices(image.shape)
    half_height, half_width = (y1 - y0 + 1) / 2, (x1 - x0 + 1) / 2
    radius = np.hypot(
        (rows - (y0 + y1) / 2) / max(BOX_CORE * half_height, 0.6),
        (columns - (x0 + x1) / 2) / max(BOX_CORE * half_width, 0.6),
    )
    outside = np.ones(image.shape, bool)
    outside[y0 : y1 + 1, x0 : x1 + 1] = False
    return _between(image, radius <= 1, outside)


def carry(images: Grey, start: int, mask: Mask, both_ways: bool = True) -> Mask:
    """Masks (N, H, W) from the mask (H, W) on frame `start`, forward and, if asked, backward."""
    masks = np.zeros(images.shape, bool)
    masks[start] = mask
    if not mask.any():
        return masks
    inside = images[start][mask]
    mean, spread = float(inside.mean()), max(float(inside.std()), 0.02)
    for step in (1, -1) if both_ways else (1,):
        before, frame = mask, start + step
        while 0 <= frame < len(images):
            here = _around(before)
            image, depth = images[frame][here], _depth(before[here])
            likely = np.abs(gaussian(image, 1) - mean) <= GREY_LIMIT * spread
            core = (depth > max(CORE * depth.max(), 1.0)) & likely
            distance = ndimage.distance_transform_edt(~before[here])
            far = distance > max(REACH * depth.max(), MIN_REACH)
            after = np.zeros_like(before)
            after[here] = _between(image, core, far)
            if after.sum() < max(MIN_AREA * mask.sum(), 4):
                break
            masks[frame] = before = after
            frame += step
    return masks


def _around(mask: Mask) -> tuple[slice, slice]:
    """The part of the image that can matter on the next slice."""
    (top, bottom), (left, right) = ((at.min(), at.max()) for at in np.nonzero(mask))
    margin = 8 + int(REACH * min(bottom - top, right - left))
    return (
        slice(max(top - margin, 0), bottom + margin + 1),
        slice(max(left - margin, 0), right + margin + 1),
    )


def _depth(mask: Mask) -> NDArray[np.float64]:
    """Distance (H, W) of each pixel of a mask to what is not of it, the array's border included."""
    return ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def _between(image: Grey, inside: Mask, outside: Mask) -> Mask:
    """The object between pixels that are surely inside and surely outside; empty without a seed."""
    found = np.zeros(image.shape, bool)
    if not inside.any():
        return found
    rows, columns = np.nonzero(~outside)
    window = (
        slice(max(rows.min() - 2, 0), rows.max() + 3),
        slice(max(columns.min() - 2, 0), columns.max() + 3),
    )
    seeds = np.where(inside[window], 1, np.where(outside[window], 2, 0))
    found[window] = watershed(sobel(gaussian(image[window], 1)), seeds) == 1
    return found
