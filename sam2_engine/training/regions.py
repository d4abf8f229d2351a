"""Objects that nobody has labelled: bodies of like intensity in real images, as clips' masks.

The labelled volumes show few kinds of objects, but their images show many more: bones, vessels,
muscles, fluid. What can be grown from a seed up to a visible edge is one of them, well enough to
teach that a mask ends where an edge is, and that bodies begin and end along a sequence.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_TRIES = 12
_LEAST_AREA, _MOST_AREA = 0.0015, 0.25  # of the frame
_LEAST_CONTRAST = 1.6  # in standard deviations of the inside
_LEAST_EDGE = 1.5  # mean steepness along the border over that inside
_LEAST_SOLIDITY = 0.55


def grow_bodies(
    rng: np.random.Generator, images: NDArray[np.float32], max_objects: int
) -> NDArray[np.bool_]:
    """Masks of bodies that are seen on the first frame of a clip.

    A body is what is connected to a random seed, through space and time, and differs little from it
    in a smoothed image; only those are kept that are compact and have a visible edge all around.

    Args:
        images: (T, H, W) intensities in about [0, 1].

    Returns:
        (N, T, H, W) with N <= max_objects; N may be 0.
    """
    frames = len(images)
    blur = math.exp(rng.uniform(math.log(0.8), math.log(3.0)))
    smooth = ndimage.gaussian_filter(images, (0.4 if frames > 1 else 0, blur, blur))
    steepness = ndimage.gaussian_gradient_magnitude(images[0], 1.5)
    flat = np.flatnonzero(
        (steepness < np.median(steepness) * 1.5 + 1e-6) & (smooth[0] > 0.02) & (smooth[0] < 1.2)
    )
    bodies: list[NDArray[np.bool_]] = []
    taken = np.zeros(images.shape[1:], bool)
    for _ in range(_TRIES if len(flat) else 0):
        y, x = np.unravel_index(rng.choice(flat), taken.shape)
        if taken[y, x]:
            continue
        body = _grow(smooth, (int(y), int(x)), math.exp(rng.uniform(math.log(0.04), math.log(0.2))))
        if body is not None and _is_clear(images[0], body[0], steepness):
            bodies.append(body)
            taken |= body[0]
            if len(bodies) == max_objects:
                break
    return np.stack(bodies) if bodies else np.zeros((0, *images.shape), bool)


def _grow(
    smooth: NDArray[np.float32], seed: tuple[int, int], spread: float
) -> NDArray[np.bool_] | None:
    """(T, H, W) what is connected to a seed on the first frame; None where it is no body."""
    like = np.abs(smooth - smooth[0][seed]) < spread
    if not like[0][seed]:
        return None
    first, _ = ndimage.label(like[0])
    area = (first == first[seed]).sum() / like[0].size
    if not 0.7 * _LEAST_AREA < area < 1.3 * _MOST_AREA:
        return None
    thin = ndimage.generate_binary_structure(2, 1)[None]
    opened = ndimage.binary_opening(like, thin, iterations=2)
    if not opened[0][seed]:
        return None
    labels, _ = ndimage.label(opened)
    body = labels == labels[0][seed]
    body = ndimage.binary_closing(body, thin, iterations=2) | body
    areas = body.sum((1, 2)) / body[0].size
    if not (_LEAST_AREA < areas[0] < _MOST_AREA and areas.max() < 2.5 * areas[0] + _LEAST_AREA):
        return None  # it leaks into something else
    for t in range(len(body)):
        body[t] = ndimage.binary_fill_holes(body[t])
    return body


def _is_clear(
    image: NDArray[np.float32], body: NDArray[np.bool_], steepness: NDArray[np.float32]
) -> bool:
    """Whether a body on a frame is compact, and has an edge that is steeper than its inside."""
    rows, columns = np.nonzero(body)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    if body.sum() < _LEAST_SOLIDITY * 0.785 * height * width:
        return False
    inside = ndimage.binary_erosion(body, iterations=2)
    border = ndimage.binary_dilation(body, iterations=2) & ~inside
    ring = ndimage.binary_dilation(body, iterations=6) & ~ndimage.binary_dilation(
        body, iterations=2
    )
    if not inside.any() or not ring.any():
        return False
    contrast = abs(float(image[inside].mean()) - float(image[ring].mean()))
    noise = float(image[inside].std())
    edge = float(steepness[border].mean()) / (float(steepness[inside].mean()) + 1e-6)
    return contrast > max(_LEAST_CONTRAST * noise, 0.08) and edge > _LEAST_EDGE
