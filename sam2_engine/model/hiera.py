"""Hiera, the hierarchical vision transformer of SAM 2 (Ryali et al., 2023; paper, section C.1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam2_engine.model.config import HieraConfig
from sam2_engine.model.layers import MLP, Linear, attended, in_parts, uses_onednn


@lru_cache(maxsize=32)
def _made_once(size: int, to: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        each = torch.eye(size, device="cpu")[None, None]
        return F.interpolate(each, size=(to, size), mode="bicubic")[0, 0].to(device)


def stretching(size: int, to: int, device: torch.device) -> Tensor:
    """(to, size) matrix that stretches so many values to others by bicubic interpolation.

    Made on the processor, from where it is on the device at once, for whichever stream comes next.
    """
    return _made_once(size, to, device)


def _max_pool(x: Tensor) -> Tensor:
    """2x2 max-pool of (B, H, W, C), H and W even."""
    rows = torch.maximum(x[:, 0::2], x[:, 1::2])
    return torch.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


def _to_windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B, H, W, C) -> (B * windows, rows, columns, C); H and W are multiples of these."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // rows, rows, width // columns, columns, channels)
    return x.transpose(2, 3).reshape(-1, rows, columns, channels)


def _from_windows(windows: Tensor, down: int, across: int) -> Tensor:
    """The inverse: so many windows down and across back to (B, H, W, C)."""
    rows, columns, channels = windows.shape[1:]
    x = windows.view(-1, down, across, rows, columns, channels)
    return x.transpose(2, 3).reshape(-1, down * rows, across * columns, channels)


def _whole_and_rest(length: int, window: int) -> list[int]:
    """What whole windows cover of a length, and what is left of it; neither is 0."""
    rest = length % window
    return [part for part in (length - rest, rest) if part]


class HieraAttention(nn.Module):
    """Self-attention over a grid; a stage's first block pools its queries 2x2."""

    def __init__(self, inputs: int, outputs: int, heads: int, pool: bool) -> None:
        super().__init__()
        self.heads = heads
        self.pool = pool
        self.qkv = Linear(inputs, outputs * 3)
        self.proj = Linear(outputs, outputs)

    def forward(self, x: Tensor, plus: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H', W', C'), halved where pooled, plus another tensor of that shape;
        N grids, each by itself.
        """
        return self.proj(self._attend(self.qkv(x)), plus)

    def in_padded_windows(self, x: Tensor, plus: Tensor, window: int) -> Tensor:
        """The same in windows, as if those at the edge were filled up with zeros.

        What fills a window are keys and values that are the projection's bias; nothing is asked of
        them in turn, so they need no projection, no queries and no place in an array.
        """
        down, across = (_whole_and_rest(length, window) for length in x.shape[1:3])
        strips = []
        for strip in self.qkv(x).split(down, dim=1):
            parts = [self._in_windows(part, window) for part in strip.split(across, dim=2)]
            strips.append(torch.cat(parts, dim=2))
        return self.proj(torch.cat(strips, dim=1), plus)

    def _in_windows(self, qkv: Tensor, window: int) -> Tensor:
        """(B, H, W, 3 C) in windows that are whole, or all cut off alike -> (B, H', W', C)."""
        height, width = qkv.shape[1:3]
        rows, columns = min(height, window), min(width, window)
        out = self._attend(_to_windows(qkv, rows, columns), window**2 - rows * columns)
        return _from_windows(out, height // rows, width // columns)

    def _attend(self, qkv: Tensor, filled: int = 0) -> Tensor:
        """(N, H, W, 3 C) queries, keys and values, with so many more keys that are the projection's
        bias -> (N, H', W', C).
        """
        q, k, v = qkv.chunk(3, dim=-1)
        if self.pool:
            q = _max_pool(q)
        height, width = q.shape[1:3]
        q, k, v = (t.flatten(1, 2) for t in (q, k, v))
        if filled:
            bias = self.qkv.bias.to(qkv.dtype)
            _, key, value = bias.expand(len(qkv), filled, -1).chunk(3, dim=-1)
            k, v = torch.cat((k, key), dim=1), torch.cat((v, value), dim=1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = attended(q, k, v).transpose(1, 2).flatten(2)
        return out.unflatten(1, (height, width))


class HieraBlock(nn.Module):
    """A transformer block, which its trunk has attend in windows, or globally where that is 0."""

    def __init__(self, inputs: int, outputs: int, heads: int, window: int, pool: bool) -> None:
        super().__init__()
        self.window = window
        self.pool = pool
        self.norm1 = nn.LayerNorm(inputs, eps=1e-6)
        self.attn = HieraAttention(inputs, outputs, heads, pool)
        self.norm2 = nn.LayerNorm(outputs, eps=1e-6)
        self.hidden = outputs * 4
        self.mlp = MLP(outputs, self.hidden, outputs, depth=2, activation="gelu")
        if inputs != outputs:
            self.proj = Linear(inputs, outputs)
        self.widens = inputs != outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H', W', C'); N grids or windows, each by itself."""
        between = x.shape[1] * x.shape[2] * self.hidden
        return in_parts(lambda part: self._transformed(part, self.attn), x, between)

    def in_padded_windows(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C'), in windows of which some reach beyond the edge."""
        return self._transformed(x, partial(self.attn.in_padded_windows, window=self.window))

    def _transformed(self, x: Tensor, attention: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        shortcut = x
        x = self.norm1(x)
        if self.widens:
            shortcut = self.proj(x)
            if self.pool:
                shortcut = _max_pool(shortcut)
        x = attention(x.to(self.attn.qkv.weight.dtype), shortcut)
        tokens = x.flatten(0, 2)
        out = in_parts(lambda part: self.mlp(self.norm2(part), plus=part), tokens, self.hidden)
        return out.view_as(x)


class PatchEmbed(nn.Module):
    """7x7 convolution with stride 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, kernel_size=7, stride=4, padding=3)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, S/4, S/4, C)."""
        conv, weight = self.proj, self.proj.weight
        if uses_onednn(images):  # which then makes it so, and nobody has to turn it round
            weight = weight.contiguous(memory_format=torch.channels_last)
        made = F.conv2d(images, weight, conv.bias, conv.stride, conv.padding)
        return made.permute(0, 2, 3, 1)


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
        known = self.pos_embed.permute(0, 2, 3, 1)
        to_rows = stretching(known.shape[1], height, known.device).to(known.dtype)
        to_columns = stretching(known.shape[2], width, known.device).to(known.dtype)
        rows = torch.tensordot(to_rows, known[0], dims=1)
        background = to_columns @ rows
        window = self.pos_embed_window[0].permute(1, 2, 0)
        tall, wide, channels = window.shape
        tiles = background.view(height // tall, tall, width // wide, wide, channels)
        return (tiles + window[None, :, None]).view(1, height, width, channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images)
        x = x + self.position(*x.shape[1:3])
        down = across = 1  # how many windows x is in; it stays so while blocks want the same
        outputs = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, HieraBlock)
            height, width, window = down * x.shape[1], across * x.shape[2], block.window
            fits = window and not (height % window or width % window)
            wanted = (height // window, width // window) if fits else (1, 1)
            if (down, across) != wanted:
                x = _from_windows(x, down, across)
                down, across = wanted
                x = _to_windows(x, height // down, width // across)
            x = block.in_padded_windows(x) if window and not fits else block(x)
            if index in self.stage_ends:
                outputs.append(_from_windows(x, down, across).permute(0, 3, 1, 2))
        return outputs
