"""Synthetic clips: a random 3-D scene of textured bodies, cut by a moving plane.

A body is an ellipsoid with a wavy outline, sometimes hollow (a cavity in a wall), sometimes one of
many that touch like cells in a tissue, or the branches of a tree, such as vessels. As the plane
moves, bodies appear, change their shape, drift, part and end, which is what slices of a volume and
frames of a time-lapse have in common.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

_TISSUE_SHARE, _TREES_SHARE = 0.3, 0.1
_MOST_TUBES = 40
_LARGEST_WINDOW = 256  # pixels of a texture, before it is enlarged


@dataclass(frozen=True)
class SyntheticClip:
    """images (T, S, S) float32 in [0, 1]; masks (N, T, S, S) bool, each seen on frame 0."""

    images: np.ndarray
    masks: np.ndarray


def synthetic_clip(
    rng: np.random.Generator, frames: int, side: int, max_objects: int = 8
) -> SyntheticClip:
    """A random scene. Objects may touch, enclose each other, leave the plane and come back no
    more.
    """
    kind = rng.random()
    draw = _tissue if kind < _TISSUE_SHARE else _trees if kind > 1 - _TREES_SHARE else _bodies
    images, masks = draw(rng, frames, side)
    area = masks[:, 0].sum((1, 2))
    seen = np.flatnonzero((area >= 20) & (area < 0.7 * side * side))
    if len(seen) == 0:
        return synthetic_clip(rng, frames, side, max_objects)
    keep = rng.permutation(seen)[:max_objects]
    return SyntheticClip(images, masks[keep])


def _bodies(rng: np.random.Generator, frames: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Separate bodies of similar or different sizes on a textured background."""
    scale = math.exp(rng.uniform(math.log(0.03), math.log(0.35)))
    count = int(np.clip(rng.integers(3, 10) * 0.12 / scale, 2, 26))
    plane = np.arange(frames) * rng.uniform(0.02, 0.25)  # in units of a body's height
    drift = rng.normal(0, 0.012, (2,))[None] * np.arange(frames)[:, None]
    images = np.empty((frames, side, side), np.float32)
    background = rng.uniform(0.1, 0.7)
    images[:] = background + rng.uniform(0, 0.25) * _texture(rng, side)
    masks: list[np.ndarray] = []
    alike = rng.random() < 0.6
    shade = rng.uniform(0, 1)
    while abs(shade - background) < 0.08:
        shade = rng.uniform(0, 1)
    axis = (np.arange(side) + 0.5) / side
    for _ in range(count):
        radius = scale * math.exp(rng.normal(0, 0.25 if alike else 0.6))
        radius = min(max(radius, 0.015), 0.42)
        centre = rng.uniform(0.0, 1.0, 2)
        velocity = rng.normal(0, 0.15 * radius, 2) if rng.random() < 0.5 else np.zeros(2)
        depth = rng.uniform(-0.9, 0.4)  # where the first plane cuts the body
        speed = rng.choice((-1.0, 1.0)) if rng.random() < 0.3 else 1.0
        aspect = math.exp(rng.normal(0, 0.3))
        angle = rng.uniform(0, 2 * math.pi)
        waves = rng.normal(0, 1, (2, 5)) * rng.choice((0.0, 0.05, 0.12)) / np.arange(1, 6)
        twist = rng.normal(0, 0.08)
        hollow = rng.uniform(0.45, 0.8) if rng.random() < 0.25 else 0.0
        wall_shade = rng.uniform(0, 1)
        rim = rng.uniform(0.03, 0.15) if rng.random() < 0.25 else 0.0
        rim_shade = rng.uniform(-0.35, 0.35)
        own = shade + rng.normal(0, 0.04) if alike else rng.uniform(0, 1)
        texture = rng.uniform(0, 0.2) * _texture(rng, side)
        body = np.zeros((frames, side, side), bool)
        core = np.zeros((frames, side, side), bool) if hollow else None
        for t in range(frames):
            z = depth + speed * plane[t] if speed > 0 else -depth - plane[t] * 0.5
            section = math.sqrt(max(0.0, 1 - z * z))
            if section * radius * side < 1.5:
                continue
            middle = centre + drift[t] + velocity * t
            size = radius * section
            reach = size * max(aspect, 1 / aspect) * 1.4
            x0, x1 = np.searchsorted(axis, (middle[0] - reach, middle[0] + reach))
            y0, y1 = np.searchsorted(axis, (middle[1] - reach, middle[1] + reach))
            if x1 <= x0 or y1 <= y0:
                continue
            dx = (axis[x0:x1] - middle[0])[None, :]
            dy = (axis[y0:y1] - middle[1])[:, None]
            turn = angle + twist * t
            u = (math.cos(turn) * dx + math.sin(turn) * dy) / aspect
            v = (-math.sin(turn) * dx + math.cos(turn) * dy) * aspect
            theta = np.arctan2(v, u)
            outline = np.ones_like(theta)
            for k in range(5):
                phase = (k + 2) * theta
                outline += waves[0, k] * np.cos(phase) + waves[1, k] * np.sin(phase)
            distance = np.sqrt(u * u + v * v) / (size * np.maximum(outline, 0.3))
            inside = distance < 1
            patch = images[t, y0:y1, x0:x1]
            value = own + texture[y0:y1, x0:x1]
            if rim:
                value = np.where(distance > 1 - rim, value + rim_shade, value)
            if hollow:
                inner = distance < hollow
                value = np.where(inner, value, wall_shade + texture[y0:y1, x0:x1])
                core[t, y0:y1, x0:x1] = inner  # type: ignore[index]
            patch[inside] = value[inside]
            for other in masks:  # what is drawn later lies in front
                other[t, y0:y1, x0:x1] &= ~inside
            body[t, y0:y1, x0:x1] = inside
        masks.append(body)
        if core is not None:
            masks.append(core)
            if rng.random() < 0.5:
                masks.append(body & ~core)
    return np.clip(images, 0, 1), np.stack(masks)


def _tissue(rng: np.random.Generator, frames: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells that fill the plane: nearest of random 3-D seeds, with or without visible walls."""
    coarse = side // 2
    count = int(rng.integers(6, 26))
    height = rng.uniform(0.4, 1.0)
    seeds = rng.uniform(0, 1, (count, 3)) * (1, 1, height)
    stretch = np.exp(rng.normal(0, 0.3, 2))
    plane = 0.5 * height + np.arange(frames) * rng.uniform(0.005, 0.05)
    axis = (np.arange(coarse) + 0.5) / coarse
    bend = 0.06 * rng.uniform(0, 1)
    px = axis[None, :] + bend * _texture(rng, coarse)
    py = axis[:, None] + bend * _texture(rng, coarse)
    shades = np.clip(rng.normal(rng.uniform(0.3, 0.7), rng.uniform(0.02, 0.25), count), 0, 1)
    wall, wall_shade = rng.uniform(0.0, 0.02), rng.uniform(0, 1)
    texture = rng.uniform(0, 0.25) * _texture(rng, coarse)
    images = np.empty((frames, side, side), np.float32)
    labels = np.empty((frames, coarse, coarse), np.int64)
    for t in range(frames):
        distance = np.stack(
            [
                ((px - s[0]) * stretch[0]) ** 2
                + ((py - s[1]) * stretch[1]) ** 2
                + (plane[t] - s[2]) ** 2
                for s in seeds
            ]
        ).astype(np.float32)
        nearest, second = np.partition(distance, 1, axis=0)[:2]
        labels[t] = distance.argmin(0)
        value = shades[labels[t]] + texture
        gap = np.sqrt(second) - np.sqrt(nearest)
        if wall > 0.004:
            value = np.where(gap < wall, wall_shade, value)
        images[t] = np.kron(value, np.ones((2, 2), np.float32))
    masks = labels[None] == np.arange(count)[:, None, None, None]
    masks = masks.repeat(2, axis=2).repeat(2, axis=3)
    return np.clip(images, 0, 1), masks


def _trees(rng: np.random.Generator, frames: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Trees of tubes, as vessels and neurites are: they part, meet the plane in several places,
    turn into it and out of it, and cross each other.
    """
    background = rng.uniform(0.1, 0.7)
    shade = background + rng.choice((-1, 1)) * rng.uniform(0.08, 0.5)
    images = np.empty((frames, side, side), np.float32)
    images[:] = background + rng.uniform(0, 0.25) * _texture(rng, side)
    texture = shade + rng.uniform(0, 0.2) * _texture(rng, side)
    axis = (np.arange(side) + 0.5) / side
    plane = np.arange(frames) * rng.uniform(0.005, 0.03)
    masks: list[np.ndarray] = []
    for _ in range(int(rng.integers(1, 6))):
        start = np.array((0.0, *rng.uniform(0.15, 0.85, 2)))
        tree = np.zeros((frames, side, side), bool)
        for one, other, radius in _tubes(rng, start, math.exp(rng.uniform(-4.2, -2.6))):
            low, high = np.minimum(one, other) - radius, np.maximum(one, other) + radius
            (y0, y1), (x0, x1) = (np.searchsorted(axis, (low[a], high[a])) for a in (1, 2))
            for t in np.flatnonzero((plane >= low[0]) & (plane <= high[0])):
                away = _distance(plane[t], axis[y0:y1, None], axis[None, x0:x1], one, other)
                tree[t, y0:y1, x0:x1] |= away < radius
        own = texture + rng.normal(0, 0.05)
        images[tree] = np.broadcast_to(own, tree.shape)[tree]
        for earlier in masks:  # what is drawn later lies in front
            earlier &= ~tree
        masks.append(tree)
    return np.clip(images, 0, 1), np.stack(masks)


def _tubes(
    rng: np.random.Generator, start: np.ndarray, radius: float
) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Straight pieces of a tree as two ends (z, y, x) and a radius, in sides of the frame."""
    pieces: list[tuple[np.ndarray, np.ndarray, float]] = []
    growing = [(start, rng.normal(0, 1, 3), radius), (start, rng.normal(0, 1, 3), radius)]
    while growing and len(pieces) < _MOST_TUBES:
        point, direction, radius = growing.pop(0)
        direction = direction / np.linalg.norm(direction)
        end = point + direction * rng.uniform(2, 6) * radius
        pieces.append((point, end, radius))
        parts = rng.choice((0, 1, 2), p=(0.05, 0.65, 0.3))
        for _ in range(parts):
            bent = direction + rng.normal(0, 0.35 if parts == 1 else 0.7, 3)
            growing.append((end, bent, radius * (0.97 if parts == 1 else 0.8)))
    return pieces


def _distance(
    z: float, y: np.ndarray, x: np.ndarray, one: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """(H, W) distance of the places of a plane from a straight piece between two ends."""
    along = other - one
    dz, dy, dx = z - one[0], y - one[1], x - one[2]
    share = (dz * along[0] + dy * along[1] + dx * along[2]) / (along @ along)
    share = share.clip(0, 1)
    away = (dz - share * along[0]) ** 2 + (dy - share * along[1]) ** 2
    squared: np.ndarray = away + (dx - share * along[2]) ** 2
    return np.sqrt(squared)


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """A random window of a smooth noise field of random grain, (side, side), about zero mean and
    unit spread; enlarged for larger models, so that scenes look alike.
    """
    bank = _texture_bank()
    field = bank[rng.integers(len(bank))]
    own = min(side, _LARGEST_WINDOW)
    y, x = rng.integers(0, field.shape[0] - own + 1, 2)
    window = field[y : y + own, x : x + own]
    if own < side:
        window = zoom(window, side / own, order=1)
    if rng.random() < 0.5:
        window = window.T
    return window * rng.choice((-1.0, 1.0)).astype(np.float32)


@cache
def _texture_bank() -> np.ndarray:
    """(K, 640, 640) noise fields from fine to coarse, some of them mixtures. Fixed, so that runs
    repeat.
    """
    rng = np.random.default_rng(7)
    fields = []
    for sigma in (0.7, 1.2, 2.0, 4.0, 8.0, 16.0, 40.0):
        field = gaussian_filter(rng.standard_normal((640, 640), dtype=np.float32), sigma)
        fields.append(field / field.std())
    mixtures = [fields[1] + fields[4], fields[2] + 2 * fields[5], fields[3] + fields[6]]
    fields += [m / m.std() for m in mixtures]
    stripes = np.sin(np.arange(640, dtype=np.float32) / 6)[None, :] + 0.6 * fields[4]
    fields.append((stripes / stripes.std()).astype(np.float32))
    return np.stack(fields)
