"""The feature pyramid after the trunk (Lin et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sam2_engine.model.layers import pointwise


class _Lateral(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=1)

    def forward(self, x: Tensor, after: nn.Conv2d | None) -> Tensor:
        return pointwise(x, self.conv, after)


class FpnNeck(nn.Module):
    """1x1 convolutions to one width; the coarsest level is added to the one below it."""

    def __init__(self, channels: Sequence[int], d_model: int) -> None:
        super().__init__()
        # As in the published weights, convs[0] serves the coarsest level.
        self.convs = nn.ModuleList(_Lateral(c, d_model) for c in reversed(channels))

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Trunk outputs at strides 4, 8, 16, 32 -> (B, d_model, ., .) at strides 4, 8, 16."""
        return self.lateral(levels, 0), self.lateral(levels, 1), self.stride16(levels)

    def stride16(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, d_model, S/16, S/16)"""
        fine, coarse = self.lateral(levels, 2), self.lateral(levels, 3)
        return fine + F.interpolate(coarse.float(), scale_factor=2.0, mode="nearest").to(fine.dtype)

    def lateral(
        self, levels: Sequence[Tensor], index: int, after: nn.Conv2d | None = None
    ) -> Tensor:
        """A level through its own 1x1 convolution, and one more of these if it is given."""
        projected: Tensor = self.convs[-1 - index](levels[index], after)
        return projected
