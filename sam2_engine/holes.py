"""Small holes and specks in masks."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_EIGHT_CONNECTED = np.ones((3, 3), bool)
_FILLED, _REMOVED = 0.1, -0.1


def fill_small_holes(logits: Tensor, max_area: int) -> Tensor:
    """Fill holes and remove specks of up to ``max_area`` pixels in (B, 1, h, w) mask logits.

    The pixels of a filled hole get a logit just above 0, those of a removed speck one just
    below. An object's only piece is no speck, however small. The same on every device.
    """
    if max_area <= 0:
        return logits
    filled = logits.float().cpu().numpy().copy()
    for mask_logits in filled[:, 0]:
        mask = mask_logits > 0
        mask_logits[_small(~mask, max_area)] = _FILLED
        if mask.any():
            mask_logits[_small(mask, max_area, keep_largest=True)] = _REMOVED
    return torch.from_numpy(filled).to(logits)


def _small(region: np.ndarray, max_area: int, keep_largest: bool = False) -> np.ndarray:
    """Pixels of the region's connected parts that are not larger than the area."""
    parts, count = ndimage.label(region, _EIGHT_CONNECTED)
    if not count:
        return np.zeros_like(region)
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    small = areas <= max_area
    small[0] = False
    if keep_largest:
        small[1 + areas[1:].argmax()] = False
    return small[parts]
