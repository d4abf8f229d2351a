"""Still images whose objects move each by itself, as cells do in a time-lapse.

The background stays where it is, what lies between objects that part or meet is stretched or
squeezed, and an object turns and changes its shape on the way.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

_LEAST = 30  # pixels: smaller objects go with what is around them
_FADES = 0.25  # of an object's size, how far around it the motion fades
_SPRING = 0.1  # of its way from where it began, so that no object is squeezed to nothing
_STILL = 0.08  # how strongly the background keeps its place


def crowd_grid(rng: np.random.Generator, grid: Tensor, labels: np.ndarray) -> Tensor:
    """A grid in which each object moves by itself, besides what all do together.

    Args:
        grid: (T, S, S, 2) where each output pixel is taken from, as of `motion_grid`.
        labels: (S, S) objects on the first frame as the grid shows it, 0 for the background.

    Returns:
        (T, S, S, 2) of the same first frame.
    """
    velocities = _velocities(rng, labels, len(grid))
    moved = [grid[0]]
    shift = torch.zeros(1, 2, *labels.shape)  # (x, y) in output pixels, from here to the source
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in labels.shape), indexing="ij")
    here = torch.stack([columns, rows])[None]
    for frame in range(1, len(grid)):
        # What is seen at a place now was there a step ago, less the step of what is seen.
        step = _sample(velocities[frame - 1], here + shift)
        shift = _sample(shift, here - step) - step
        along_y, along_x = torch.gradient(grid[frame], dim=(0, 1))
        dx, dy = shift[0, 0, ..., None], shift[0, 1, ..., None]
        moved.append(grid[frame] + dx * along_x + dy * along_y)
    return torch.stack(moved)


def _velocities(rng: np.random.Generator, labels: np.ndarray, frames: int) -> Tensor:
    """(T - 1, 1, 2, S, S) steps (x, y) in pixels of what is seen at each place of the first
    frame.
    """
    areas = np.bincount(labels.ravel())
    ids = [int(i) for i in np.flatnonzero(areas >= _LEAST) if i != 0]
    speed = math.exp(rng.uniform(math.log(0.02), math.log(0.18)))  # sizes a frame
    turn, strain = rng.uniform(0, 0.12), rng.uniform(0, 0.08)
    steadiness = rng.uniform(0.2, 0.95)
    total = np.zeros((frames - 1, 2, *labels.shape), np.float32)
    weight = np.full(labels.shape, _STILL, np.float32)
    places = ndimage.find_objects(labels)
    for object_id in ids:
        size = math.sqrt(areas[object_id])
        margin = math.ceil(3 * _FADES * size)
        around = tuple(
            slice(max(one.start - margin, 0), one.stop + margin) for one in places[object_id - 1]
        )
        near = labels[around] == object_id
        here = ndimage.gaussian_filter(near.astype(np.float32), _FADES * size, mode="constant")
        here = np.maximum(here, near)
        y, x = np.indices(near.shape, np.float32)
        y, x = y - y[near].mean(), x - x[near].mean()
        step, way = rng.normal(0, speed * size, 2), np.zeros(2)
        for frame in range(frames - 1):
            step = steadiness * step + math.sqrt(1 - steadiness**2) * rng.normal(0, speed * size, 2)
            x_step, y_step = step - _SPRING * way
            way += x_step, y_step
            angle, stretch, slant = rng.normal(0, turn), *rng.normal(0, strain, 2)
            total[frame, 0][around] += here * (x_step + stretch * x + (slant - angle) * y)
            total[frame, 1][around] += here * (y_step + (slant + angle) * x - stretch * y)
        weight[around] += here
    return torch.from_numpy(total / weight)[:, None]


def _sample(field: Tensor, places: Tensor) -> Tensor:
    """A field (1, C, S, S) at places (1, 2, S, S) of x, y in pixels; beyond the edge as at it."""
    side = field.shape[-1]
    grid = ((places * 2 + 1) / side - 1).permute(0, 2, 3, 1)
    return F.grid_sample(field, grid, padding_mode="border", align_corners=False)
