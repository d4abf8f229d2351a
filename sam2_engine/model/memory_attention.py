"""Memory attention: the current frame's features look at the memory bank (paper, section 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sam2_engine.model.layers import Attention, Linear, in_parts, linear, uses_onednn
from sam2_engine.model.position import axial_rotations, rotate, rotate_in_place
from sam2_engine.model.recalled import Detail, detail_table
from sam2_engine.model.soft_averages import soft_averages, to_shiftable_keys, to_shiftable_queries


class RotaryAttention(Attention):
    """Attention, with one head, whose queries and keys are turned by their place in the image."""

    def __init__(self, channels: int, kv_channels: int | None = None) -> None:
        super().__init__(channels, heads=1, kv_channels=kv_channels)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, unplaced: int = 0, detail: Detail | None = None
    ) -> Tensor:
        """Attend; the last ``unplaced`` keys have no place in the image and are not turned.

        Queries (1, tokens, channels) serve all objects of a larger batch of keys. Without a detail,
        keys stand for a place each, in the order of the queries, once or several times over.
        """
        side, width = math.isqrt(q.shape[1]), self.q_proj.out_features
        turns = axial_rotations(width, side, side, q.device)
        if uses_onednn(q):
            return self._attend_narrow(q, k, v, turns, unplaced, detail)
        q = rotate(self.q_proj(q), turns)
        q, v = q.expand(len(k), -1, -1), self.v_proj(v)
        if detail is None:
            return self.attend(q, self._keys(k, turns, unplaced), v)
        table, log_places = detail_table(width, side, q.device)
        own = torch.view_as_real(table)[detail.rows]  # complex numbers not every card picks
        k = rotate(self.k_proj(k), torch.view_as_complex(own))
        return self.attend(q, k, v, log_places[detail.rows])

    def _keys(self, k: Tensor, turns: Tensor, unplaced: int) -> Tensor:
        k = self.k_proj(k)
        placed = k.shape[1] - unplaced
        turned = rotate(k[:, :placed], turns)
        return torch.cat((turned, k[:, placed:]), dim=1) if unplaced else turned

    def _attend_narrow(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        turns: Tensor,
        unplaced: int,
        detail: Detail | None,
    ) -> Tensor:
        """The same from values before their projection, object by object.

        The weights of a query add up to 1. So its values can be averaged first and projected
        then, which is less work where they are narrower than their projection, as memories are.
        """
        half_or_full = self.k_proj.weight.dtype
        side, width = math.isqrt(q.shape[1]), self.q_proj.out_features
        queries = linear(q, *to_shiftable_queries(self.q_proj.weight, self.q_proj.bias))
        rotate_in_place(queries[..., :-2], turns)
        queries = queries.to(half_or_full).expand(len(k), -1, -1)
        to_keys = to_shiftable_keys(self.k_proj.weight, self.k_proj.bias)
        placed = k.shape[1] - unplaced
        averages = v.new_empty(len(k), q.shape[1], v.shape[2])
        for index, average in enumerate(averages):
            length = k.shape[1] if detail is None else detail.lengths[index]
            keys = linear(k[index, :length], *to_keys)
            if detail is None:
                rotate_in_place(keys[:placed, :-2], turns)
            else:
                rows = detail.rows[index, :length]
                table, log_places = detail_table(width, side, q.device)
                rotate_in_place(keys[:, :-2], table[rows])
                keys[:, -1] = log_places[rows]
            keys, values = keys.to(half_or_full), v[index, :length].to(half_or_full)
            soft_averages(queries[index], keys, values, out=average)
        weight = self.out_proj.weight @ self.v_proj.weight
        bias = self.out_proj(self.v_proj.bias[None])[0]
        return linear(averages, weight, bias)


class MemoryAttentionLayer(nn.Module):
    """Self-attention, cross-attention to the memories, feed-forward; each after a layer norm."""

    def __init__(self, channels: int, memory_dim: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(channels)
        self.cross_attn_image = RotaryAttention(channels, kv_channels=memory_dim)
        self.linear1 = Linear(channels, ffn, "relu")
        self.linear2 = Linear(ffn, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(
        self, x: Tensor, memory: Tensor, placed: Tensor, num_pointers: int, detail: Detail | None
    ) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed, normed)
        x = x + self.cross_attn_image(self.norm2(x), placed, memory, num_pointers, detail)
        tokens = x.flatten(0, 1)
        return in_parts(self._feed_forward, tokens, self.linear1.out_features).view_as(x)

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        """The tokens and what is fed forward from them."""
        normed = self.norm3(tokens).to(self.linear1.weight.dtype)
        return self.linear2(self.linear1(normed), plus=tokens)


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
        detail: Detail | None = None,
    ) -> Tensor:
        """Condition the image on the memories.

        Args:
            image: (B, HW, C) stride-16 features of the current frame; (1, HW, C) where all B
                objects are on one frame, for which less has to be computed.
            image_pos: (1, HW, C) sine encoding.
            memory: (B, N, memory_dim) tokens: without a detail, whole memory maps of HW tokens
                each, then pointers.
            memory_pos: (B or 1, N, memory_dim) their place in space and time.
            num_pointers: how many of the N tokens, at the end, are pointer tokens.
            detail: what the tokens stand for where they are not whole maps.

        Returns:
            (B, HW, C).
        """
        x = image + 0.1 * image_pos
        placed = memory + memory_pos
        for layer in self.layers:
            x = layer(x, memory, placed, num_pointers, detail)
        return self.norm(x)
