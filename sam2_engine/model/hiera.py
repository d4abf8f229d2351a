"""Hiera, the hierarchical vision transformer of SAM 2 (Ryali et al., 2023; paper, section C.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam2_engine.model.config import HieraConfig
from sam2_engine.model.layers import MLP


def _max_pool(x: Tensor) -> Tensor:
    """2x2 max-pool of (B, H, W, C)."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), kernel_size=2).permute(0, 2, 3, 1)


def _to_windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C), zero-padded to a multiple of the size -> (B * windows, size, size, C)."""
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    rows, columns = x.shape[1] // size, x.shape[2] // size
    x = x.view(batch, rows, size, columns, size, channels)
    return x.transpose(2, 3).reshape(-1, size, size, channels)


def _from_windows(windows: Tensor, batch: int, height: int, width: int) -> Tensor:
    """The inverse: windows back to (B, H, W, C), the padding cut off."""
    size = windows.shape[1]
    rows, columns = -(-height // size), -(-width // size)
    x = windows.view(batch, rows, columns, size, size, -1).transpose(2, 3)
    return x.reshape(batch, rows * size, columns * size, -1)[:, :height, :width]


class HieraAttention(nn.Module):
    """Self-attention over a grid; a stage's first block pools its queries 2x2."""

    def __init__(self, inputs: int, outputs: int, heads: int, pool: bool) -> None:
        super().__init__()
        self.heads = heads
        self.pool = pool
        self.qkv = nn.Linear(inputs, outputs * 3)
        self.proj = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C'), halved where pooled."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.pool:
            q = _max_pool(q)
        height, width = q.shape[1:3]
        q, k, v = (
            t.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v)
        )
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(out).unflatten(1, (height, width))


class HieraBlock(nn.Module):
    """A transformer block that attends in windows, or globally where the window is 0."""

    def __init__(self, inputs: int, outputs: int, heads: int, window: int, pool: bool) -> None:
        super().__init__()
        self.window = window
        self.pool = pool
        self.norm1 = nn.LayerNorm(inputs, eps=1e-6)
        self.attn = HieraAttention(inputs, outputs, heads, pool)
        self.norm2 = nn.LayerNorm(outputs, eps=1e-6)
        self.mlp = MLP(outputs, outputs * 4, outputs, depth=2, activation=F.gelu)
        if inputs != outputs:
            self.proj = nn.Linear(inputs, outputs)
        self.widens = inputs != outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C')."""
        shortcut = x
        x = self.norm1(x)
        if self.widens:
            shortcut = self.proj(x)
            if self.pool:
                shortcut = _max_pool(shortcut)
        batch, height, width, _ = shortcut.shape
        if self.window:
            x = _from_windows(self.attn(_to_windows(x, self.window)), batch, height, width)
        else:
            x = self.attn(x)
        x = shortcut + x
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """7x7 convolution with stride 4: (B, 3, S, S) -> (B, S/4, S/4, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, kernel_size=7, stride=4, padding=3)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)


class Hiera(nn.Module):
    """(B, 3, S, S) -> features at strides 4, 8, 16 and 32, each (B, C, ., .)."""

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        channels, heads = config.embed_dim, config.num_heads
        self.patch_embed = PatchEmbed(channels)
        self.pos_embed = nn.Parameter(torch.zeros(1, channels, *config.background_size))
        window = config.windows[0]
        self.pos_embed_window = nn.Parameter(torch.zeros(1, channels, window, window))

        self.blocks = nn.ModuleList()
        self.stage_ends: list[int] = []
        for stage, depth in enumerate(config.stages):
            for index in range(depth):
                new_stage = stage > 0 and index == 0
                # As published, the block that opens a stage keeps the window of the one before.
                window = config.windows[stage - 1 if new_stage else stage]
                if len(self.blocks) in config.global_blocks:
                    window = 0
                outputs = channels * 2 if new_stage else channels
                heads = heads * 2 if new_stage else heads
                self.blocks.append(HieraBlock(channels, outputs, heads, window, pool=new_stage))
                channels = outputs
            self.stage_ends.append(len(self.blocks) - 1)

    def position(self, height: int, width: int) -> Tensor:
        """Stretched background embedding plus tiled window embedding, (1, height, width, C)."""
        background = F.interpolate(self.pos_embed, size=(height, width), mode="bicubic")
        window = self.pos_embed_window
        tiles = (1, 1, height // window.shape[2], width // window.shape[3])
        return (background + window.tile(tiles)).permute(0, 2, 3, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images)
        x = x + self.position(*x.shape[1:3])
        outputs = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stage_ends:
                outputs.append(x.permute(0, 3, 1, 2))
        return outputs
