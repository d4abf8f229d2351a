"""Masks as a model would give them that has tracked an object for some time and gone astray.

A model that only ever sees its own short clips learns to copy the mask of the frame before. One
that is led by masks like these has to look at the image, and is led for the price of a memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CERTAIN = 10.0  # the logit in the middle of a mask
_SHIFT, _WARP, _GROW, _RAGGED = 0.12, 0.15, 0.3, 0.35
"""How far a mask has gone astray at the end of a clip (standard deviations): shifts and warps as
shares of the object's size, growth and raggedness as shares of its certainty."""
_LINGERING = 0.5  # share of objects that are still answered after they have ended
_INERTIA = 0.85  # most that a mask keeps of the frame before: it grows and shrinks too late


class Drift:
    """The errors of N objects in a clip, which are their own and grow from frame to frame."""

    def __init__(
        self,
        count: int,
        side: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            side: of the masks that will come, in pixels; answers have a quarter of it.
            generator: of random numbers, on the processor.
            device: that the masks will be on.
        """

        def normal(*shape: int) -> Tensor:
            return torch.randn((count, *shape), generator=generator).to(device)

        def uniform(*shape: int) -> Tensor:
            return torch.rand((count, *shape), generator=generator).to(device)

        self._side = side // 4
        size = (self._side, self._side)
        coarse = _WARP * normal(2, 4, 4)
        warp = F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
        self._places = _SHIFT * normal(2, 1, 1) + warp  # (N, 2, s, s) in sizes of the object
        ragged = F.interpolate(normal(1, 8, 8), size=size, mode="bicubic", align_corners=True)
        self._certainty = _GROW * normal(1, 1, 1) + _RAGGED * ragged  # (N, 1, s, s)
        # Some objects are tracked well: errors are of very different sizes.
        self._amount = 1.5 * uniform(1, 1, 1) ** 2
        self._inertia = _INERTIA * uniform(1, 1, 1)
        self._lingers = uniform() < _LINGERING
        self._last: Tensor | None = None

    def answers(self, truth: Tensor, progress: float) -> Tensor:
        """Mask logits on the next frame of the clip.

        Args:
            truth: (N, S, S) bool.
            progress: 0 at the clip's first frame, where all is right, to 1 at its end.

        Returns:
            (N, 1, S/4, S/4); all negative for an object that has ended and does not linger.
        """
        area = F.adaptive_avg_pool2d(truth[:, None].float(), self._side)
        present = truth.flatten(1).any(1)
        last = area if self._last is None else self._last
        late = torch.lerp(area, last, self._inertia)
        shown = torch.where((self._lingers & ~present)[:, None, None, None], last, late)
        self._last = shown
        amount = self._amount * progress
        extent = shown.flatten(1).sum(1).sqrt().view(-1, 1, 1, 1) * 2 / self._side
        axis = (torch.arange(self._side, device=truth.device) * 2 + 1) / self._side - 1
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        places = torch.stack((x, y))[None] + amount * extent * self._places
        moved = F.grid_sample(shown, places.permute(0, 2, 3, 1), align_corners=False)
        near, wide = (_blur(moved, 2 * (self._side // part) + 1) for part in (40, 16))
        soft = torch.where(extent > 0.3, wide, torch.where(extent > 0.15, near, moved))
        # Certainty changes near the outline only: far away nothing appears by itself.
        edge = 4 * soft * (1 - soft)
        return 2 * _CERTAIN * (soft - 0.5 + amount * edge * self._certainty)


def _blur(masks: Tensor, kernel: int) -> Tensor:
    return F.avg_pool2d(masks, kernel, 1, kernel // 2, count_include_pad=False)
