"""Masks of a slice as closed contours, and back to the same masks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.cluster.hierarchy import DisjointSet
from scipy.spatial import Delaunay
from skimage.measure import find_contours

_DIGITS = 2  # of a pixel, that files keep
_NEAR = 1e-6  # pixels from an edge that counts as on it

Contour = NDArray[np.float64]
"""(N, 2) corners y, x in pixels, whose centres have whole numbers; the last meets the first."""


def contours_of(mask: NDArray[np.bool_]) -> list[Contour]:
    """A contour around each connected part of a mask (H, W), half-way to the pixels outside.

    Holes are joined to the outside by a channel of no width, the keyhole of DICOM (PS3.3
    C.8.8.6.3), which every radiotherapy system reads.
    """
    parts, _ = ndimage.label(mask)
    contours = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        part = np.pad(parts[rows, columns] == number, 1)
        rings = [ring[:-1] for ring in find_contours(part, 0.5)]
        corner = rows.start - 1, columns.start - 1
        contours.append(_corners(_joined(rings)) + corner)
    return contours


def mask_of(contours: Iterable[Contour], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels (H, W) whose centres lie in an odd number of contours of one object, or on them.

    As scikit-image's polygon2mask, which takes half a minute for the contours of a whole body on a
    hundred slices.
    """
    mask = np.zeros(shape, bool)
    for contour in contours:
        snapped = np.round(contour, _DIGITS)
        mask ^= _inside(snapped, shape, below=True) | _inside(snapped, shape, below=False)
    return mask


def _inside(contour: Contour, shape: tuple[int, int], below: bool) -> NDArray[np.bool_]:
    """Row by row, what lies between every second crossing with an edge and the next one.

    below: whether an edge crosses the row of its lower end, and not that of its upper one; else the
        other way round.
    """
    (y0, x0), (y1, x1) = contour.T, np.roll(contour, -1, axis=0).T
    low, high = np.minimum(y0, y1), np.maximum(y0, y1)
    first = np.floor(low) + 1 if below else np.ceil(low)
    last = np.floor(high) if below else np.ceil(high) - 1
    first, last = first.clip(0), last.clip(max=shape[0] - 1)
    counts = (last - first + 1).clip(0).astype(int)
    edge = np.repeat(np.arange(len(contour)), counts)
    rows = (first - counts.cumsum() + counts)[edge] + np.arange(counts.sum())
    crossings = x0[edge] + (rows - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    order = np.lexsort((crossings, rows))
    rows, crossings = rows[order][::2].astype(int), crossings[order]
    starts = np.ceil(crossings[::2] - _NEAR).clip(0, shape[1]).astype(int)
    ends = np.floor(crossings[1::2] + _NEAR + 1).clip(0, shape[1]).astype(int)
    changes = np.zeros((shape[0], shape[1] + 1), int)
    np.add.at(changes, (rows, starts), 1)
    np.add.at(changes, (rows, np.maximum(starts, ends)), -1)
    inside: NDArray[np.bool_] = changes.cumsum(axis=1)[:, :-1] > 0
    return inside


def _corners(ring: Contour) -> Contour:
    """Without the points that lie straight between their neighbours."""
    before, behind = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * behind[:, 1] != before[:, 1] * behind[:, 0]
    return ring[turns | ((before * behind).sum(axis=1) < 0)]


def _joined(rings: list[Contour]) -> Contour:
    """One contour of several rings, joined by the shortest channels there are.

    These do not cross each other or a ring. They are among the edges of a Delaunay triangulation,
    as those of every minimum spanning tree are.
    """
    points = np.concatenate(rings)
    behind = list(range(1, len(points) + 1))  # the corner that comes next, by corner
    ends = np.cumsum([len(ring) for ring in rings])
    for ring, end in zip(rings, ends.tolist(), strict=True):
        behind[end - 1] = end - len(ring)
    corners = list(range(len(points)))
    for one, other in _channels(points, ends) if len(rings) > 1 else ():
        corners += [other, one]  # a channel has two sides, so its ends are there twice
        behind += [behind[other], behind[one]]
        behind[one], behind[other] = len(behind) - 2, len(behind) - 1
    path = [0]
    while behind[path[-1]]:
        path.append(behind[path[-1]])
    whole: Contour = points[np.array(corners)[path]]
    return whole


def _channels(points: Contour, ends: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pairs of points that join all rings; ends: the number of points up to the end of each."""
    ring = np.searchsorted(ends, np.arange(len(points)), side="right")
    edges = Delaunay(points).simplices[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    edges = edges[ring[edges[:, 0]] != ring[edges[:, 1]]]
    lengths = np.linalg.norm(np.diff(points[edges], axis=1)[:, 0], axis=1)
    joined, channels = DisjointSet(range(len(ends))), []
    for one, other in edges[np.argsort(lengths, kind="stable")].tolist():
        if joined.merge(int(ring[one]), int(ring[other])):
            channels.append((one, other))
    return channels
