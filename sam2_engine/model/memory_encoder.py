"""The memory encoder: a frame's features and its mask become a memory (paper, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam2_engine.model.layers import LayerNorm2d, Linear, PointwiseConv, in_parts, linear, pointwise


class MaskDownsampler(nn.Module):
    """(B, 1, S, S) -> (B, C, S/16, S/16)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential()
        channels = 1
        for _ in range(4):
            self.encoder.append(nn.Conv2d(channels, channels * 4, 3, stride=2, padding=1))
            self.encoder.append(LayerNorm2d(channels * 4))
            self.encoder.append(nn.GELU())
            channels *= 4
        self.encoder.append(PointwiseConv(channels, outputs))

    def forward(self, mask: Tensor) -> Tensor:
        return self.encoder(mask)


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise convolution and a channel MLP, scaled by gamma (Liu et al., 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.norm = LayerNorm2d(channels)
        self.pwconv1 = Linear(channels, 4 * channels, "gelu")
        self.pwconv2 = Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.pwconv1(self.norm(self.dwconv(x)).permute(0, 2, 3, 1))
        weight, bias = self.gamma[:, None] * self.pwconv2.weight, self.gamma * self.pwconv2.bias
        return linear(inner, weight, bias, plus=x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Fuser(nn.Module):
    def __init__(self, channels: int, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConvNeXtBlock(channels) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """Adds the down-sampled mask to the projected features and narrows the sum."""

    def __init__(self, d_model: int, memory_dim: int) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownsampler(d_model)
        self.pix_feat_proj = nn.Conv2d(d_model, d_model, kernel_size=1)
        self.fuser = _Fuser(d_model)
        self.out_proj = nn.Conv2d(d_model, memory_dim, kernel_size=1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Features (B or 1, C, h, w), scaled mask (B, 1, 16 h, 16 w) -> (B, memory_dim, h, w)."""
        projected = pointwise(image, self.pix_feat_proj)

        def remember(mask: Tensor) -> Tensor:
            return pointwise(self.fuser(projected + self.mask_downsampler(mask)), self.out_proj)

        if len(image) > 1:
            return remember(mask)
        between = 4 * image.shape[1] * projected.shape[2] * projected.shape[3]
        return in_parts(remember, mask, between)
