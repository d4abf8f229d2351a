"""Augmentation of clips: one geometry and one intensity change for a clip, with small drift from
frame to frame.

Images are float32 in [0, 1], (T, C, H, W). Sampling grids follow
``torch.nn.functional.grid_sample``: the whole frame spans [-1, 1] on both axes, whatever its
aspect, so the identity grid is the "stretch" of inference.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def motion_grid(
    rng: np.random.Generator,
    frames: int,
    side: int,
    centre: tuple[float, float],
    half_size: tuple[float, float],
    motion: float,
    bend: float,
) -> Tensor:
    """Where each output pixel of each frame is taken from.

    Args:
        centre: (x, y) of the view in [-1, 1].
        half_size: (x, y) half extent of the view, 1 is the whole frame.
        motion: how far shift, rotation and zoom drift over the clip (0 none, 1 strong).
        bend: amplitude of the smooth random deformation in view units, which also drifts with the
            motion.

    Returns:
        (T, side, side, 2) grid of (x, y).
    """
    steps = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
    flip_x, flip_y = rng.choice((-1.0, 1.0), 2)
    quarter = rng.integers(0, 4) * math.pi / 2
    tilt = math.radians(25) * rng.uniform(-1, 1) * (rng.random() < 0.6)
    shear = 0.2 * rng.uniform(-1, 1) * (rng.random() < 0.4)
    wave = np.sin(steps * rng.uniform(0.5, 3.0) * math.pi + rng.uniform(0, 0.3))
    angle = quarter + tilt + math.radians(25) * motion * rng.uniform(-1, 1) * steps
    zoom = np.exp(0.35 * motion * rng.uniform(-1, 1) * steps)
    shift = motion * 0.5 * (rng.uniform(-1, 1, (1, 2)) * steps[:, None])
    shift = shift + motion * 0.15 * (rng.uniform(-1, 1, (1, 2)) * (wave - wave[0])[:, None])

    axis = (torch.arange(side) * 2 + 1) / side - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    base = torch.stack([u, v], -1)
    if bend > 0:
        coarse = torch.from_numpy(rng.normal(0, bend, (2, 2, 6, 6)).astype(np.float32))
        fields = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
        fields = fields.permute(0, 2, 3, 1)
    grids = []
    for t in range(frames):
        cos, sin = math.cos(angle[t]), math.sin(angle[t])
        rotate = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, shear], [0.0, 1.0]])
        scale = np.diag([half_size[0] * zoom[t] * flip_x, half_size[1] * zoom[t] * flip_y])
        matrix = torch.from_numpy((scale @ rotate).astype(np.float32))
        view = base
        if bend > 0:
            view = view + fields[0] + fields[1] * float(motion * steps[t])
        offset = torch.tensor(
            [centre[0] + shift[t, 0] * half_size[0], centre[1] + shift[t, 1] * half_size[1]],
            dtype=torch.float32,
        )
        grids.append(view @ matrix.T + offset)
    return torch.stack(grids)


def sample_images(images: Tensor, grid: Tensor, padding: str) -> Tensor:
    """Sample (T, C, H, W) images at a (T, S, S, 2) grid, averaging first where the view shrinks
    them.
    """
    step_x = (grid[:, :, 1:, :] - grid[:, :, :-1, :]).norm(dim=-1).median() * images.shape[-1] / 2
    factor = int(step_x.item() + 0.3)
    if factor >= 2:
        images = F.avg_pool2d(images, factor, ceil_mode=True)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def intensity(rng: np.random.Generator, images: Tensor, strength: float = 1.0) -> Tensor:
    """Change contrast, gamma, polarity, illumination, sharpness and noise of a clip, the same on
    all frames.

    Args:
        images: (T, C, S, S) in about [0, 1]; values beyond are what the intensity window would
            clip.

    Returns:
        (T, C, S, S) in [0, 1].
    """
    frames, channels, side, _ = images.shape

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability * strength)

    if happens(0.6):  # another intensity window
        low = rng.uniform(-0.15, 0.2)
        high = 1 + rng.uniform(-0.3, 0.2)
        images = (images - low) / (high - low)
    images = images.clamp(0, 1)
    if happens(0.5):
        images = images ** float(np.exp(rng.uniform(-0.7, 0.7)))
    if happens(0.3):
        images = 1 - images
    if happens(0.35):  # bias field: smooth, over the whole clip
        coarse = torch.from_numpy(rng.normal(0, 0.25, (1, 1, 3, 3)).astype(np.float32))
        field = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
        images = images * field.exp()
    if happens(0.3):  # less detail: blur, or a coarser acquisition
        factor = int(rng.integers(2, 5))
        small = F.avg_pool2d(images, factor)
        images = F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)
    if happens(0.3):
        contrast, middle = rng.uniform(0.4, 0.9), rng.uniform(0.2, 0.8)
        images = (images - middle) * contrast + middle
    if happens(0.4) and frames > 1:  # slices of one volume differ in brightness
        images = images * torch.from_numpy(
            np.exp(rng.normal(0, 0.06, (frames, 1, 1, 1))).astype(np.float32)
        )
    if happens(0.5):
        noise = _noise(rng, (frames, channels, side, side))
        grain = int(rng.choice((1, 1, 2, 4)))
        if grain > 1:
            noise = F.interpolate(
                noise[..., : side // grain, : side // grain], size=(side, side), mode="bilinear"
            )
        images = images + noise * float(rng.uniform(0.01, 0.12))
    return images.clamp(0, 1)


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
