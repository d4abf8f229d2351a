"""Growths set into real images: irregular bodies that no volume shows, in tissue that is real.

The labelled volumes hold few kinds of lesions. A body of random shape, with its own shade and
grain, sometimes a core or a rim, is laid over a clip; what was there shines through more or less,
and its border is sharp or blurred. The idea of training on lesions that are drawn is that of Hu et
al., Label-free liver tumor segmentation, CVPR 2023.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from sam2_engine.training.synthetic import random_texture

_COARSE = 4  # pixels of a step of the fields that make the shapes
_LEAST_AREA, _MOST_AREA = 20, 0.3  # pixels; part of the frame
_LEAST_CONTRAST = 0.07  # of the intensity range, against what surrounds the body
_TRIES = 4  # for each body


def implant(
    rng: np.random.Generator, images: NDArray[np.float32], max_objects: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A clip with bodies set in that are seen on its first frame.

    Args:
        images: (T, S, S) intensities in about [0, 1]; left as they are.

    Returns:
        The clip with them, (T, S, S), and their masks, (N, T, S, S) with N <= max_objects; N may
        be 0.
    """
    images = images.copy()
    count = int(rng.integers(1, min(max_objects, 4) + 1))
    masks: list[NDArray[np.bool_]] = []
    for _ in range(count * _TRIES):
        if len(masks) >= count:
            break
        inside = _body(rng, images.shape)
        mask = inside > 0
        area = mask[0].sum()
        free = not any((mask & other).any() for other in masks)
        if free and _LEAST_AREA <= area <= _MOST_AREA * mask[0].size and _is_tissue(images, mask):
            core = _paint(rng, images, inside)
            masks.append(mask)
            if core is not None and len(masks) < max_objects and core[0].sum() >= _LEAST_AREA:
                masks.append(core)
    return images, np.stack(masks) if masks else np.zeros((0, *images.shape), bool)


def _body(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(T, S, S) above 0 inside an ellipsoid whose surface a smooth random field bends; 1 at its
    middle.
    """
    frames, side, _ = shape
    small = -(-side // _COARSE)
    radius = math.exp(rng.uniform(math.log(0.03), math.log(0.28)))  # of the side
    stretch = np.exp(rng.normal(0, 0.25, 2))
    y, x = rng.uniform(0.05, 0.95, 2)
    # The clip begins anywhere in the body, and often goes on past its end.
    height = math.exp(rng.uniform(math.log(0.4), math.log(4.0))) * frames
    depth = rng.uniform(-0.8, 0.5) + np.arange(frames) / height
    axis = (np.arange(small) + 0.5) / small
    drift = np.cumsum(rng.normal(0, 0.1 * radius, (frames, 2)), axis=0) * (rng.random() < 0.5)
    dy = (axis[None] - y - drift[:, :1]) / (radius * stretch[0])
    dx = (axis[None] - x - drift[:, 1:]) / (radius * stretch[1])
    distance = np.sqrt(dy[:, :, None] ** 2 + dx[:, None, :] ** 2 + depth[:, None, None] ** 2)
    grain = radius * small * rng.uniform(0.2, 0.7)
    field = gaussian_filter(
        rng.standard_normal(distance.shape), (0.25 * height if frames > 1 else 0, grain, grain)
    )
    inside = 1 - distance + rng.choice((0.1, 0.25, 0.45)) * field / (field.std() + 1e-6)
    beyond = distance > 1.7  # one piece, not an archipelago
    inside[beyond] = np.minimum(inside[beyond], -0.1)
    large = [
        zoom(plane, _COARSE, order=1, mode="nearest", grid_mode=True)[:side, :side]
        for plane in inside
    ]
    return np.stack(large).astype(np.float32)


def _is_tissue(images: NDArray[np.float32], mask: NDArray[np.bool_]) -> bool:
    """Whether a body is not set into the empty air around a patient."""
    return float((images[0][mask[0]] > 0.03).mean()) > 0.6


def _paint(
    rng: np.random.Generator, images: NDArray[np.float32], inside: NDArray[np.float32]
) -> NDArray[np.bool_] | None:
    """Lay a body over a clip in place; its core's mask, where it has one that differs."""
    near = images[0][(inside[0] > -0.6) & (inside[0] <= 0)]
    around = float(near.mean()) if near.size else 0.5
    shade = around + float(rng.choice((-1, 1)) * rng.uniform(_LEAST_CONTRAST, 0.5))
    if not 0 <= shade <= 1:
        shade = 2 * around - shade
    shade = float(np.clip(shade, 0, 1))
    value = shade + rng.uniform(0, 0.12) * random_texture(rng, images.shape[-1])
    value = np.broadcast_to(value, images.shape).astype(np.float32)
    core = None
    if rng.random() < 0.35:
        core = inside > rng.uniform(0.3, 0.6)
        value = np.where(core, value + rng.choice((-1, 1)) * rng.uniform(0.1, 0.4), value)
    if rng.random() < 0.2:  # an enhancing rim
        rim = (inside > 0) & (inside < rng.uniform(0.08, 0.2))
        value = np.where(rim, value + rng.choice((-1, 1)) * rng.uniform(0.1, 0.4), value)
    softness = math.exp(rng.uniform(math.log(0.01), math.log(0.25)))
    cover = 1 / (1 + np.exp(-np.clip(inside / softness, -30, 30)))
    cover *= rng.uniform(0.45, 1.0)
    images += cover.astype(np.float32) * (value - images)
    return core
