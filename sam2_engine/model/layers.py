"""Small layers that several components share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["none", "relu", "gelu"]
_ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}
_VALUES_AT_ONCE = 1 << 22
_SCORES_AT_ONCE = 1 << 27  # of an Apple card: half a gigabyte
_RECYCLED_BYTES = 31 << 20
_FEW_CHANNELS = 8
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)
_ONEDNN_TYPES = [torch.float32]
if _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _ONEDNN_TYPES.append(torch.bfloat16)


def uses_onednn(x: Tensor) -> bool:
    """Whether products with x go to oneDNN: float32 on a processor, with no gradients wanted.

    Its matrix products are a tenth to a fifth faster than the ones that torch takes by itself,
    and add the bias and apply the activation while the result is in the processor's cache.
    """
    return x.dtype == torch.float32 and _onednn_takes(x)


def _onednn_takes(x: Tensor) -> bool:
    return (
        _HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype in _ONEDNN_TYPES
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # whose own products they are
    )


def recycle_memory() -> None:
    """Make the GNU C library keep freed arrays for the next ones; elsewhere it does nothing.

    It hands arrays back to the system that are larger than any that was freed before, up to 32 MB.
    Products would then fill with page faults what they had a moment ago.
    """
    torch.empty(_RECYCLED_BYTES, dtype=torch.uint8, device="cpu")


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = "none",
    plus: Tensor | None = None,
) -> Tensor:
    """The activation of x (..., inputs) times the weight (outputs, inputs) plus the bias; or, with
    no activation, the same plus another tensor (..., outputs).

    Where the weight is in half precision, the product is; what comes out is as x, or as the other
    tensor.
    """
    if bias is not None and bias.dtype != weight.dtype:
        bias = bias.to(weight.dtype)
    if weight.dtype != x.dtype:
        product = linear(x.to(weight.dtype), weight, bias, activation).to(x.dtype)
        return product if plus is None else plus + product
    if plus is not None and not (_onednn_takes(x) and plus.dtype == x.dtype):
        return plus + linear(x, weight, bias)
    if plus is not None:
        total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")
        return total
    if _onednn_takes(x):
        # What torch.compile makes of a linear layer; the last argument is gelu's exact form.
        own: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
        return own
    if x.device.type == "mps":  # which has mistaken views, too (pytorch/pytorch#162730, #167154)
        x, weight = x.contiguous(), weight.contiguous()
    return _ACTIVATIONS[activation](F.linear(x, weight, bias))


def clamped_product(x: Tensor, weight: Tensor, lowest: float, highest: float) -> Tensor:
    """x (..., inputs) times the weight (outputs, inputs), clamped; where ``uses_onednn``."""
    clamped: Tensor = torch.ops.mkldnn._linear_pointwise(
        x, weight, None, "hardtanh", [lowest, highest], ""
    )
    return clamped


def in_parts(layer: Callable[[Tensor], Tensor], x: Tensor, between: int) -> Tensor:
    """layer(x), whose rows (items of the first axis) do not depend on each other.

    Where products go to oneDNN it is called for some rows at a time, so that what it makes in
    between, so many values for each row at its widest, stays in the processor's cache.
    """
    rows = max(_VALUES_AT_ONCE // between, 1)
    if not uses_onednn(x) or len(x) <= rows:
        return layer(x)
    return torch.cat([layer(part) for part in x.split(rows)])


class Linear(nn.Linear):
    """A linear layer and the activation after it."""

    def __init__(self, inputs: int, outputs: int, activation: Activation = "none") -> None:
        super().__init__(inputs, outputs)
        self.activation: Activation = activation

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        return linear(x, self.weight, self.bias, self.activation, plus)


def pointwise(x: Tensor, conv: nn.Conv2d, after: nn.Conv2d | None = None) -> Tensor:
    """A 1x1 convolution of (B, C, H, W), and another after it as if both were one."""
    weight, bias = conv.weight.flatten(1), conv.bias
    if after is not None:
        assert bias is not None
        outer = after.weight.flatten(1)
        weight, bias = outer @ weight, F.linear(bias, outer, after.bias)
    return linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution, which is a product of matrices."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self) if uses_onednn(x) else super().forward(x)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] < _FEW_CHANNELS and uses_onednn(x):
            return self._by_plane(x)
        normed = F.layer_norm(
            x.permute(0, 2, 3, 1), (x.shape[1],), self.weight, self.bias, self.eps
        )
        return normed.permute(0, 3, 1, 2)

    def _by_plane(self, x: Tensor) -> Tensor:
        """The same by whole planes (H, W): torch's layer norm is slow for a few values each."""
        centred = x - x.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        normed = centred.mul_((variance + self.eps).rsqrt_())
        return torch.addcmul(self.bias[:, None, None], normed, self.weight[:, None, None])


class MLP(nn.Module):
    """Linear layers with an activation between them."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        depth: int,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (depth - 1), outputs]
        between: list[Activation] = [activation] * (depth - 1)
        self.layers = nn.ModuleList(
            Linear(a, b, after)
            for (a, b), after in zip(pairwise(widths), [*between, "none"], strict=True)
        )

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """What the layers make of x, plus another tensor of that shape if it is given.

        With weights in half precision, so is what lies between the layers.
        """
        *inner, last = self.layers
        assert isinstance(last, Linear)
        between = x.to(last.weight.dtype)
        for layer in inner:
            between = layer(between)
        out: Tensor = last(between, plus)
        return out.to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with separate projections, optionally in a narrower inner width.

    Inputs and output are (B, tokens, channels).
    """

    def __init__(
        self, channels: int, heads: int, inner: int | None = None, kv_channels: int | None = None
    ) -> None:
        super().__init__()
        inner = inner or channels
        self.heads = heads
        self.q_proj = Linear(channels, inner)
        self.k_proj = Linear(kv_channels or channels, inner)
        self.v_proj = Linear(kv_channels or channels, inner)
        self.out_proj = Linear(inner, channels)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(self.q_proj(q), self.k_proj(k), self.v_proj(v))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, plus: Tensor | None = None) -> Tensor:
        """Attention of projected queries, keys and values, and the output projection.

        plus: (B, keys) what is added to each key's scores.
        """
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        mask = None if plus is None else plus[:, None, None].to(q.dtype)
        out = attended(q, k, v, mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


def attended(q: Tensor, k: Tensor, v: Tensor, plus: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(C) + plus) v of queries (B, heads, Q, C) and keys and values
    (B, heads, N, C).

    plus: (B, 1, 1, N), added to the scores.
    """
    if q.device.type != "mps":
        # Queries that all objects share are copied: kernels have refused, and mistaken, what is
        # repeated without a copy (pytorch/pytorch#175764, #191937).
        return F.scaled_dot_product_attention(q.contiguous() if 0 in q.stride() else q, k, v, plus)
    # Apple's own gives wrong values, in one version of torch or another, of arrays that are views,
    # as these are, and of few queries with keys that are no multiple of 32 (pytorch/pytorch#163597,
    # #169222, #181133); and it makes all scores at once.
    queries = max(_SCORES_AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]), 1)
    keys, parts = k.transpose(-2, -1), []
    for some in q.split(queries, dim=2):
        scores = some * q.shape[-1] ** -0.5 @ keys
        parts.append((scores if plus is None else scores + plus).softmax(dim=-1) @ v)
    return torch.cat(parts, dim=2)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) float to another size, so that what gets smaller is averaged.

    By the processor for an Apple card, which cannot do so before torch 2.7.
    """
    there = image.cpu() if image.device.type == "mps" else image
    small = F.interpolate(there, size=size, mode="bilinear", antialias=True)
    return small.to(image.device)
