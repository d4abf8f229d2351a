"""The losses of SAM 2 training: focal, dice, IoU and object score (paper, appendix D.2.2).

Every function keeps the object axis, so the caller can weigh objects. Logits and targets of masks
are ``(N, M, H, W)``: N objects, M candidate masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossWeights:
    """Weights of the four terms; the defaults are the published ones."""

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    object_score: float = 1.0
    absent: float = 1.0
    """How many times an absent object counts in the object score; absence is rare in clips."""


PUBLISHED = LossWeights()
_DOUBT = 0.03


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss, mean over the pixels. (..., H, W) logits and 0/1 targets -> (...)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = torch.sigmoid(logits)
    miss = probability + target - 2 * probability * target  # 1 - p of the true class
    balance = (1 - alpha) + (2 * alpha - 1) * target
    return (balance * miss**gamma * cross_entropy).mean((-2, -1))


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice, with one pixel added to both sides. (..., H, W) -> (...)."""
    probability = torch.sigmoid(logits)
    both = (probability * target).sum((-2, -1))
    total = probability.sum((-2, -1)) + target.sum((-2, -1))
    return 1 - (2 * both + 1) / (total + 1)


def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of the thresholded mask with the target, 1 if both are empty. (..., H, W) -> (...)."""
    predicted, wanted = logits > 0, target > 0.5
    both = (predicted & wanted).sum((-2, -1)).float()
    either = (predicted | wanted).sum((-2, -1)).float()
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(either))


def mask_losses(
    candidates: Tensor,
    predicted_iou: Tensor,
    object_score: Tensor,
    target: Tensor,
    weights: LossWeights = PUBLISHED,
    size: int | None = None,
) -> Tensor:
    """The loss of each object for one answer of the mask decoder.

    Focal and dice are taken on the best candidate only (the smallest of their sum) and are zero
    where the object is absent, the IoU error on every candidate, the object score on every object.

    Args:
        candidates: (N, M, h, w) raw mask logits, as the decoder gives them.
        predicted_iou: (N, M) the decoder's own estimate, in 0..1.
        object_score: (N, 1) logit of "the object is on this frame".
        target: (N, H, W) truth, 0 or 1.
        size: side at which focal and dice are computed; the target's own if None.

    Returns:
        (N,) loss of each object.
    """
    size = size or target.shape[-1]
    truth = target.unsqueeze(1).float()
    present = target.flatten(1).any(1)
    truth_small = _shrink(truth, candidates.shape[-1])
    # A thin object can vanish at the low resolution: keep what little there is.
    with torch.no_grad():
        coarse = focal_loss(candidates, truth_small.expand_as(candidates)) * weights.focal
        coarse = coarse + dice_loss(candidates, truth_small.expand_as(candidates)) * weights.dice
        best = coarse.argmin(1)
        real_iou = mask_iou(candidates, truth_small.expand_as(candidates))
    chosen = candidates[torch.arange(len(best), device=best.device), best].unsqueeze(1)
    chosen = F.interpolate(chosen, size=(size, size), mode="bilinear", align_corners=False)
    truth_large = _shrink(truth, size)
    shape = focal_loss(chosen, truth_large) * weights.focal
    shape = (shape + dice_loss(chosen, truth_large) * weights.dice).squeeze(1)
    iou_error = (predicted_iou - real_iou).abs().mean(1)
    # Never quite sure: in still images all objects are there, and a score that has grown without
    # limit would later drown everything else in the loss of the first absent ones.
    sure = present.float().clamp(_DOUBT, 1 - _DOUBT)
    score = F.binary_cross_entropy_with_logits(object_score.squeeze(1), sure, reduction="none")
    score = torch.where(present, score, weights.absent * score)
    return present * (shape + weights.iou * iou_error) + weights.object_score * score


def _shrink(mask: Tensor, side: int) -> Tensor:
    """(N, 1, H, W) 0/1 -> (N, 1, side, side) 0/1 by area; the largest part is kept of what would
    vanish.
    """
    if mask.shape[-1] == side:
        return mask
    area = F.adaptive_avg_pool2d(mask, side)
    peak = area.flatten(1).amax(1).clamp(max=1.0).view(-1, 1, 1, 1)
    threshold = torch.minimum(torch.full_like(peak, 0.5), peak)
    return ((area >= threshold) & (area > 0)).float()
