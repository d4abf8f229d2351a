"""Memory attention: the current frame's features look at the memory bank (paper, section 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam2_engine.model.layers import Attention
from sam2_engine.model.position import axial_rotations, rotate


class RotaryAttention(Attention):
    """Attention whose queries and keys are turned by their place in the image."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, unplaced: int = 0) -> Tensor:
        """Attend; the last ``unplaced`` keys have no place in the image and are not turned."""
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        side = math.isqrt(q.shape[1])
        cos, sin = axial_rotations(q.shape[2] // self.heads, side, side, q.device)
        q = self._turn(q, cos, sin)
        placed = k.shape[1] - unplaced
        k = torch.cat((self._turn(k[:, :placed], cos, sin), k[:, placed:]), dim=1)
        return self.attend(q, k, v)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.heads == 1:
            return rotate(x, cos, sin)
        by_head = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return rotate(by_head, cos, sin).transpose(1, 2).flatten(2)


class MemoryAttentionLayer(nn.Module):
    """Self-attention, cross-attention to the memories, feed-forward; each after a layer norm."""

    def __init__(self, channels: int, memory_dim: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(channels, heads=1)
        self.cross_attn_image = RotaryAttention(channels, heads=1, kv_channels=memory_dim)
        self.linear1 = nn.Linear(channels, ffn)
        self.linear2 = nn.Linear(ffn, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, memory: Tensor, memory_pos: Tensor, num_pointers: int) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed, normed)
        x = x + self.cross_attn_image(self.norm2(x), memory + memory_pos, memory, num_pointers)
        return x + self.linear2(F.relu(self.linear1(self.norm3(x))))


class MemoryAttention(nn.Module):
    """A stack of such layers."""

    def __init__(self, channels: int, memory_dim: int, ffn: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MemoryAttentionLayer(channels, memory_dim, ffn) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        image: Tensor,
        image_pos: Tensor,
        memory: Tensor,
        memory_pos: Tensor,
        num_pointers: int,
    ) -> Tensor:
        """Condition the image on the memories.

        Args:
            image: (B, HW, C) stride-16 features of the current frame.
            image_pos: (1, HW, C) sine encoding.
            memory: (B, N, memory_dim) tokens: whole memory maps of HW tokens each, then pointers.
            memory_pos: (B or 1, N, memory_dim) their place in space and time.
            num_pointers: how many of the N tokens, at the end, are pointer tokens.

        Returns:
            (B, HW, C).
        """
        x = image + 0.1 * image_pos
        for layer in self.layers:
            x = layer(x, memory, memory_pos, num_pointers)
        return self.norm(x)
