"""The feature pyramid after the trunk (Lin et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class _Lateral(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FpnNeck(nn.Module):
    """1x1 convolutions to one width; the coarsest level is added to the one below it."""

    def __init__(self, channels: Sequence[int], d_model: int) -> None:
        super().__init__()
        # As in the published weights, convs[0] serves the coarsest level.
        self.convs = nn.ModuleList(_Lateral(c, d_model) for c in reversed(channels))

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Trunk outputs at strides 4, 8, 16, 32 -> (B, d_model, ., .) at strides 4, 8, 16."""
        stride32, stride16, stride8, stride4 = (
            conv(level) for conv, level in zip(self.convs, reversed(levels), strict=True)
        )
        up = F.interpolate(stride32.float(), scale_factor=2.0, mode="nearest")
        return stride4, stride8, stride16 + up.to(stride16.dtype)
