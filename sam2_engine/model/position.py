"""Position encodings: sine (image, memory, time) and rotary (attention)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_TEMPERATURE = 10_000.0


@lru_cache(maxsize=32)
def sine_encoding_2d(channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """Sine encoding of a grid, rows in the first half of the channels, columns in the second.

    Positions run from 1 to the size and are scaled to 2 pi.

    Returns:
        (1, channels, height, width) float32, made on the processor: the same on every device.
    """
    half = channels // 2
    with torch.inference_mode(False), torch.no_grad():
        wave = _waves(half)

        def encode(size: int) -> Tensor:
            position = torch.arange(1, size + 1, device="cpu", dtype=torch.float32)
            angle = (position / (size + 1e-6) * 2 * math.pi)[:, None] / wave
            return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

        rows = encode(height)[:, None].expand(height, width, half)
        columns = encode(width)[None].expand(height, width, half)
        return torch.cat((rows, columns), dim=2).permute(2, 0, 1)[None].contiguous().to(device)


def sine_encoding_1d(positions: Tensor, channels: int) -> Tensor:
    """Sine encoding of times: (N,) on the processor -> (N, channels) float32, sines first, then
    cosines.
    """
    angle = positions.float()[:, None] / _waves(channels // 2)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def _waves(count: int) -> Tensor:
    """(count,) the wavelengths of channels; two that are neighbours have one."""
    index = torch.arange(count, device="cpu")
    return _TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / count)


@lru_cache(maxsize=32)
def axial_rotations(
    channels: int, height: int, width: int, device: torch.device, pool: int = 1
) -> Tensor:
    """Rotary encoding of a grid (Su et al., 2021; axial as in Heo et al., 2024).

    The first half of the channel pairs turns with the column, the second with the row.

    Args:
        pool: how many cells of the grid, along each side, one token stands for; it turns as their
            centre does.

    Returns:
        (height * width / pool^2, channels / 2) complex numbers of length 1, made on the processor.
    """
    with torch.inference_mode(False), torch.no_grad():
        exponent = torch.arange(0, channels, 4, device="cpu")[: channels // 4].float() / channels
        frequency = 1.0 / _TEMPERATURE**exponent
        height, width = height // pool, width // pool
        index = torch.arange(height * width, device="cpu", dtype=torch.float32)
        offset = (pool - 1) / 2
        column = pool * (index % width) + offset
        row = pool * torch.div(index, width, rounding_mode="floor") + offset
        angle = torch.cat((torch.outer(column, frequency), torch.outer(row, frequency)), dim=1)
        return torch.polar(torch.ones_like(angle), angle).to(device)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn neighbouring channel pairs of x (B, tokens, channels) by the turns given per token, for
    each of the batch or for all.

    Where x holds several grids one after the other, the turns repeat.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turned = pairs.unflatten(-2, (-1, turns.shape[-2])) * turns.unsqueeze(-3)
    return torch.view_as_real(turned).flatten(-4, -3).flatten(-2).to(x.dtype)


def rotate_in_place(x: Tensor, turns: Tensor) -> None:
    """The same, in x itself, which is float32."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    pairs.unflatten(-2, (-1, len(turns))).mul_(turns)
