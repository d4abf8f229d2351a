"""Parts of a frame: boxes about what is marked, and areas that the model looks at closely."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Box = tuple[float, float, float, float]
"""y0, x0, y1, x1 of the outermost pixels or marks."""
Area = tuple[int, int, int, int]
"""y0, x0, y1, x1 in pixels, the last two just beyond it."""

CLOSE = 6.0  # times as wide as an object is what is looked at closely
_WIDEST = 0.5  # of its area: what is wider there is no small object
_LEAST_OBJECT = 8  # pixels; an area is no smaller for one that is smaller
_NEARLY_ALL = 0.8  # of a frame: looking closely gains nothing then
_SMALL_INPUT = 512  # pixels along each side of what a model sees
_TINY = 12.0  # pixels there: three of the places for which a mask is drawn


def may_need_close_looks(shape: tuple[int, int], image_size: int | None) -> bool:
    """Whether a model misses something of small objects on frames (H, W): one that sees few pixels,
    or fewer than the frames have.

    image_size: how many along each side; None where that is not known yet.
    """
    return image_size is None or image_size <= _SMALL_INPUT or image_size < max(shape)


def needs_close_look(area: Area, shape: tuple[int, int], image_size: int | None) -> bool:
    """Whether it misses something of the object that an area is about: one that sees many pixels
    does so only where the object takes up very few of them.
    """
    if image_size is None or image_size <= _SMALL_INPUT:
        return True
    top, left, bottom, right = area
    width = max(bottom - top, right - left) / CLOSE * image_size / max(shape)
    return may_need_close_looks(shape, image_size) and width < _TINY


def joined(one: Box | None, other: Box) -> Box:
    """The smallest box about both."""
    corners = np.reshape([*(one or other), *other], (4, 2))
    (y0, x0), (y1, x1) = corners.min(axis=0), corners.max(axis=0)
    return float(y0), float(x0), float(y1), float(x1)


def around_boxes(boxes: Iterable[Box], times: float, shape: tuple[int, int]) -> Area | None:
    """The area about the largest of some boxes on frames (H, W): a square so many times as wide as
    its longer side, as far as the frame goes; moved into it where that keeps its size. None where
    that is nearly all of a frame.
    """
    y0, x0, y1, x1 = max(boxes, key=_width)
    half = times * max(_width((y0, x0, y1, x1)), _LEAST_OBJECT) / 2
    y, x = (y0 + y1 + 1) / 2, (x0 + x1 + 1) / 2
    top, bottom = _inside(y - half, y + half, shape[0])
    left, right = _inside(x - half, x + half, shape[1])
    return _unless_nearly_all((top, left, bottom, right), shape)


def _width(box: Box) -> float:
    y0, x0, y1, x1 = box
    return max(y1 - y0, x1 - x0) + 1


def is_small_in(area: Area, box: Box, shape: tuple[int, int]) -> bool:
    """Whether an object that was found in an area is small there, and all of it is there: it
    touches no edge but those of the frame (H, W), and is at most half as wide.

    box: of its outermost pixels.
    """
    top, left, bottom, right = area
    y0, x0, y1, x1 = box
    is_cut = (
        (y0 <= top > 0)
        or (x0 <= left > 0)
        or (y1 + 1 >= bottom < shape[0])
        or (x1 + 1 >= right < shape[1])
    )
    return not is_cut and _width(box) <= _WIDEST * max(bottom - top, right - left)


def enlarged(area: Area, extent: Box, shape: tuple[int, int]) -> Area | None:
    """An area that holds marks, too, and as much about them as is half its size; the same one where
    they are in it.
    """
    if _holds(area, extent):
        return area
    top, left, bottom, right = area
    y0, x0, y1, x1 = extent
    margin_y, margin_x = (bottom - top) / 4, (right - left) / 4
    top, bottom = min(top, int(y0 - margin_y)), max(bottom, int(y1 + margin_y) + 1)
    left, right = min(left, int(x0 - margin_x)), max(right, int(x1 + margin_x) + 1)
    grown = max(top, 0), max(left, 0), min(bottom, shape[0]), min(right, shape[1])
    return _unless_nearly_all(grown, shape)


def moved(area: Area, extent: Box, shape: tuple[int, int]) -> Area | None:
    """The area with marks in its middle that do not lie in it, made larger where they would take up
    more than half of it; the same one where they are in it.
    """
    if _holds(area, extent):
        return area
    edges = []
    for axis in (0, 1):
        near, far = extent[axis], extent[axis + 2] + 1
        half = max((area[axis + 2] - area[axis]) / 2, far - near)
        edges.append(_inside((near + far) / 2 - half, (near + far) / 2 + half, shape[axis]))
    (top, bottom), (left, right) = edges
    return _unless_nearly_all((top, left, bottom, right), shape)


def _holds(area: Area, extent: Box) -> bool:
    top, left, bottom, right = area
    y0, x0, y1, x1 = extent
    return top <= y0 and left <= x0 and y1 < bottom and x1 < right


def _unless_nearly_all(area: Area, shape: tuple[int, int]) -> Area | None:
    top, left, bottom, right = area
    is_all = (bottom - top) * (right - left) > _NEARLY_ALL * shape[0] * shape[1]
    return None if is_all else area


def _inside(low: float, high: float, size: int) -> tuple[int, int]:
    """A part of an axis, moved into it where it lies beyond an end, as far as it fits."""
    extent = min(round(high - low), size)
    begin = int(np.clip(round(low), 0, size - extent))
    return begin, begin + extent
