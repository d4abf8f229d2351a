"""The memories that a frame sees, laid out as tokens: one for each place, or one for 2 x 2 places
where they are far from the object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sam2_engine.model.position import axial_rotations, sine_encoding_2d

_NO_PLACE, _FILLED_UP = -2, -1
"""Rows of `detail_table`: of a token that has no place, and of one that is none."""
_NEVER = -1e4  # added to a score, in half precision too
_LENGTHS, _SHORTEST = 8, 64  # of a map's places, and in tokens: by what numbers of tokens differ


@dataclass(frozen=True)
class Detail:
    """What N tokens of each of B objects stand for, where some stand for 2 x 2 places."""

    lengths: tuple[int, ...]
    """Of each object, how many of the N tokens are its own, the first ones."""
    rows: Tensor
    """(B, N) what each stands for, as rows of `detail_table`."""


class Recalled(NamedTuple):
    """The memories of B objects as N tokens of each."""

    tokens: Tensor
    """(B, N, memory_dim)"""
    places: Tensor
    """(B or 1, N, memory_dim) the encoding of their place in space and time."""
    num_pointers: int
    """How many of the N, at the end of what is an object's own, come from pointers."""
    detail: Detail | None = None
    """None where the others are whole maps, a token for each place."""


@lru_cache(maxsize=8)
def detail_table(channels: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How keys turn by their place, and by how much their scores are larger.

    Rows are the places of a map of side x side, its cells of 2 x 2 places, no place at all, and
    what fills up.

    Returns:
        (rows, channels / 2) complex numbers of length 1, 1 where there is no place.
        (rows,) the logarithm of how many places a token stands for: so it counts as so many equal
        ones do. What fills up never counts.
    """
    grid = channels, side, side, torch.device("cpu")
    places, cells = axial_rotations(*grid), axial_rotations(*grid, pool=2)
    with torch.inference_mode(False), torch.no_grad():
        scores = torch.tensor((0.0, math.log(4), 0.0, _NEVER), device="cpu")
        each = torch.tensor((len(places), len(cells), 1, 1), device="cpu")
        turns = torch.cat((places, cells, torch.ones_like(places[:2])))
        return turns.to(device), scores.repeat_interleave(each).to(device)


def near_object(mask: Tensor) -> Tensor:
    """The cells of 2 x 2 places that an object lies on, and those beside them.

    mask: (B, 1, S/4, S/4) logits.

    Returns (B, S/32, S/32) bool.
    """
    side = mask.shape[-1] // 8
    on = F.adaptive_max_pool2d((mask > 0).float(), side)
    return F.max_pool2d(on, kernel_size=3, stride=1, padding=1)[:, 0] > 0


def map_tokens(places: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return places.flatten(2).transpose(1, 2)


class Picked(NamedTuple):
    """Of a memory, the places near its object, then the means of the cells elsewhere."""

    tokens: Tensor
    """(1, N, memory_dim)"""
    places: Tensor
    """(1, N, memory_dim) the encoding of their place in space."""
    rows: Tensor
    """(N,) what each stands for, as rows of `detail_table`."""


def pick(memory: Tensor, near: Tensor) -> Picked:
    """What is looked at of a memory (1, memory_dim, h, w).

    near: (h/2, w/2) bool, on the CPU: the cells whose 2 x 2 places stay apart.
    """
    is_near = near.repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()
    places, cells = (chosen.nonzero()[:, 0] for chosen in (is_near, ~near.flatten()))
    rows = torch.cat((places, cells + is_near.numel())).to(memory.device)
    place = sine_encoding_2d(*memory.shape[1:], device=memory.device)
    # A map and its cells behind each other have their places in the order of the table.
    of_memory, of_place = (
        torch.cat((map_tokens(x), map_tokens(F.avg_pool2d(x, 2))), dim=1)[:, rows]
        for x in (memory, place)
    )
    return Picked(of_memory, of_place, rows)


def with_detail(recalled: Recalled, rows: Sequence[Tensor], places: int) -> Recalled:
    """What one object recalls, filled up to one of a few lengths: products of matrices of a new
    shape take a while to prepare.

    Args:
        rows: of each memory, as `pick` gives them; pointers come behind.
        places: of a map.
    """
    tokens = recalled.tokens
    missing = -tokens.shape[1] % max(places // _LENGTHS, _SHORTEST)
    no_place = torch.full((recalled.num_pointers,), _NO_PLACE, device=tokens.device)
    own = F.pad(torch.cat((*rows, no_place)), (0, missing), value=_FILLED_UP)
    tokens, where = (F.pad(x, (0, 0, 0, missing)) for x in (tokens, recalled.places))
    return Recalled(tokens, where, recalled.num_pointers, Detail((len(own),), own[None]))


def join(recalled: Sequence[Recalled]) -> Recalled:
    """What several objects recall, with as many pointers each. Where there are details, objects
    with fewer tokens than others are filled up at their end.
    """
    tokens, places = [each.tokens for each in recalled], [each.places for each in recalled]
    details = [each.detail for each in recalled if each.detail is not None]
    detail = None
    if details:
        lengths = tuple(length for each in details for length in each.lengths)
        tokens, places = _filled_up(tokens), _filled_up(places)
        rows = _filled_up([each.rows[..., None] for each in details], _FILLED_UP)
        detail = Detail(lengths, torch.cat(rows)[..., 0])
    return Recalled(torch.cat(tokens), torch.cat(places), recalled[0].num_pointers, detail)


def _filled_up(parts: Sequence[Tensor], value: int = 0) -> list[Tensor]:
    """Each (B, N, C), N as of the longest."""
    longest = max(part.shape[1] for part in parts)
    return [F.pad(part, (0, 0, 0, longest - part.shape[1]), value=value) for part in parts]
