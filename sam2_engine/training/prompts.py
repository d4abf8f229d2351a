"""Simulated prompts: what a person would click or draw, from the true mask and the model's last
answer.

All functions work on many objects at once. Masks are (N, S, S) bool, points are (x, y) in model
pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

POSITIVE, NEGATIVE, BOX_FIRST, BOX_SECOND, PADDING = 1, 0, 2, 3, -1


def click_inside(region: Tensor, generator: torch.Generator, deep: Tensor) -> Tensor:
    """One point inside each region: near its deepest part where ``deep``, anywhere in it elsewhere.

    Args:
        region: (N, S, S) bool.
        deep: (N,) bool.

    Returns:
        (N, 2) points (x, y). A region without pixels gives the centre of the frame; test it
        beforehand.
    """
    count, side = region.shape[0], region.shape[-1]
    cell = 4 if side % 4 == 0 else 1
    area = F.avg_pool2d(region.unsqueeze(1).float(), cell)
    # Averaging again and again favours cells that are far from any border.
    depth, blurred = area.clone(), area
    for kernel in (3, 3, 5, 5):
        blurred = F.avg_pool2d(blurred, kernel, 1, kernel // 2)
        depth = depth + blurred
    depth = torch.where(area > 0, depth, -1.0).flatten(1)
    uniform = torch.rand(depth.shape, generator=generator).to(depth)
    # Gumbel: the largest of log(area) + noise is a draw with the probability of the area.
    anywhere = torch.where(
        area.flatten(1) > 0, area.flatten(1).clamp(min=1e-6).log() - (-uniform.log()).log(), -1e9
    )
    pick = torch.where(deep.unsqueeze(1), depth, anywhere).argmax(1)
    width = side // cell
    top, left = (pick // width) * cell, (pick % width) * cell
    offset = torch.arange(cell, device=region.device)
    rows = (top[:, None, None] + offset[:, None]).expand(-1, cell, cell)
    columns = (left[:, None, None] + offset[None, :]).expand(-1, cell, cell)
    inside = region[torch.arange(count, device=region.device)[:, None, None], rows, columns]
    choice = torch.rand((count, cell * cell), generator=generator).to(area.device)
    best = torch.where(inside.flatten(1), choice, choice - 2).argmax(1)
    x = columns.flatten(1).gather(1, best[:, None]).squeeze(1)
    y = rows.flatten(1).gather(1, best[:, None]).squeeze(1)
    empty = ~region.flatten(1).any(1)
    points = torch.stack([x, y], 1).float()
    points[empty] = side / 2
    return points


def boxes_around(masks: Tensor, generator: torch.Generator, noisy: Tensor) -> Tensor:
    """Boxes around masks as two corners. (N, S, S) bool -> (N, 2, 2), first corner top left, each
    (x, y).

    Where ``noisy`` (N,) each corner moves by a tenth of the side (standard deviation), at most 20
    pixels.
    """
    columns, rows = masks.any(1), masks.any(2)
    side = masks.shape[-1]
    x0 = columns.float().argmax(1)
    x1 = side - 1 - columns.flip(1).float().argmax(1)
    y0 = rows.float().argmax(1)
    y1 = side - 1 - rows.flip(1).float().argmax(1)
    corners = torch.stack([torch.stack([x0, y0], 1), torch.stack([x1, y1], 1)], 1).float()
    extent = torch.stack([x1 - x0, y1 - y0], 1).float().unsqueeze(1)
    noise = torch.randn(corners.shape, generator=generator).to(corners) * 0.1 * extent
    limit = torch.minimum(0.3 * extent, torch.full_like(extent, 20.0)).expand_as(noise)
    noise = torch.maximum(torch.minimum(noise, limit), -limit)
    corners = torch.where(noisy[:, None, None], corners + noise, corners)
    return corners.clamp(0, side - 1)


@dataclass(frozen=True)
class Prompts:
    """The first prompts of K of the objects, all of one kind."""

    objects: Tensor
    """(K,) which of the objects."""
    points: Tensor
    """(K, 1, 2) a click or (K, 2, 2) a box's corners, x, y in model pixels."""
    labels: Tensor
    """(K, 1) or (K, 2)."""


def first_prompts(
    masks: Tensor, generator: torch.Generator, box_share: float = 0.5
) -> list[Prompts]:
    """A click for some objects and a box for the others.

    Half of the clicks are at the deepest part, half of the boxes are tight. Coordinates that a
    person gives are indices of the frame's own pixels, which are coarser than the model's for a
    small frame; so some prompts are rounded down to a coarse grid, as they would be there.

    Args:
        masks: (N, S, S) bool, none empty.
        box_share: probability of a box.

    Returns:
        One item for the clicks and one for the boxes, without empty items.
    """
    count = len(masks)
    box = torch.rand(count, generator=generator) < box_share
    careful = (torch.rand(count, generator=generator) < 0.5).to(masks.device)
    coarse = torch.rand(count, generator=generator) < 0.5
    prompts = []
    for kind in (False, True):
        objects = (box == kind).nonzero()[:, 0].to(masks.device)
        if not len(objects):
            continue
        own, tight = masks[objects], careful[objects]
        if kind:
            points = boxes_around(own, generator, ~tight)
        else:
            points = click_inside(own, generator, tight).unsqueeze(1)
        extent = own.flatten(1).sum(1).float().sqrt()
        pixel = 1 + 8 * torch.rand(len(own), generator=generator).to(extent)
        pixel = torch.minimum(pixel, 0.15 * extent)
        rounded = (points / pixel.view(-1, 1, 1)).floor() * pixel.view(-1, 1, 1)
        points = torch.where(coarse.to(own.device)[objects].view(-1, 1, 1), rounded, points)
        labels = torch.tensor([BOX_FIRST, BOX_SECOND] if kind else [POSITIVE], device=own.device)
        prompts.append(Prompts(objects, points, labels.expand(len(own), -1)))
    return prompts


def corrective_click(
    predicted: Tensor, truth: Tensor, generator: torch.Generator, from_truth: float = 0.1
) -> tuple[Tensor, Tensor]:
    """A click in the larger of the missed and the wrong region, as a person would correct a mask.

    Args:
        predicted, truth: (N, S, S) bool.
        from_truth: share of objects whose click is drawn from the true mask instead.

    Returns:
        points (N, 1, 2) as (x, y) and labels (N, 1): 1 in a missed region, 0 in a wrong one,
        padding where nothing is wrong.
    """
    missed, wrong = truth & ~predicted, predicted & ~truth
    missed_area, wrong_area = missed.flatten(1).sum(1), wrong.flatten(1).sum(1)
    count = len(truth)
    any_point = (torch.rand(count, generator=generator) < from_truth).to(truth.device)
    any_point &= truth.flatten(1).any(1)
    positive = (missed_area >= wrong_area) | any_point
    region = torch.where(positive[:, None, None], missed, wrong)
    region = torch.where(any_point[:, None, None], truth, region)
    deep = (torch.rand(count, generator=generator) < 0.7).to(truth.device)
    points = click_inside(region, generator, deep)
    labels = torch.where(positive, POSITIVE, NEGATIVE)
    labels = torch.where(region.flatten(1).any(1), labels, PADDING)
    return points.unsqueeze(1), labels.unsqueeze(1)
