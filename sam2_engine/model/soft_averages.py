"""Averages of values, weighted by a softmax over many keys, as a processor does them quickest.

A softmax takes the largest score off first, of each query, which is one pass over scores that
hardly fit into the cache, and divides by the sum afterwards, which is another. Here a bound on the
largest score, found from a few of the keys, is taken off by the product that makes the scores,
and the averages are divided. The product also cuts off scores that are far below: their weights
would be numbers below the normal range of a float, at which many processors are a hundred times
slower.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sam2_engine.model.layers import clamped_product, linear

_SCORES_AT_ONCE = 3 << 21  # of queries with keys; fewer make products slower, more leave the cache
_LOOKED_AT = 61  # one key of so many tells the bound; a number that fits into no row of an image
_LOWEST, _HIGHEST = -65.0, 78.0  # powers of e that stay normal floats, ten thousands added up too
_TOO_LARGE = math.exp(_HIGHEST)


def shiftable_keys(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The weight (C, inputs) and the bias (C,) of a projection to keys, which then have two more
    channels, 1 and 0: by the first, a query's own channel shifts all its scores; what is written to
    the second shifts all scores of a key.
    """
    return F.pad(weight, (0, 0, 0, 2)), torch.cat((bias, bias.new_tensor((1.0, 0.0))))


def shiftable_queries(queries: Tensor) -> Tensor:
    """(..., C) with the two channels, 0 and 1, that belong to such keys."""
    padded = F.pad(queries, (0, 2))
    padded[..., -1] = 1
    return padded


def soft_averages(queries: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
    """Write softmax(queries keys^T) values^T to out (Q, D).

    Args:
        queries: (Q, C + 2), of which the last two channels are 0, which is used here, and 1.
        keys: (N, C + 2), of which the last two channels are 1 and what is added to their scores.
        values: (D, N).
    """
    parts = math.ceil(len(queries) * len(keys) / _SCORES_AT_ONCE)
    few = keys[::_LOOKED_AT].contiguous()
    for some, averages in zip(queries.chunk(parts), out.chunk(parts), strict=True):
        total = _average(some, few, keys, values, averages)
        missed = (total >= _TOO_LARGE).nonzero()[:, 0]
        if len(missed):  # with all keys, the bound is the largest score itself
            again = averages[missed]
            _average(some[missed], keys, keys, values, again)
            averages[missed] = again


def _average(queries: Tensor, few: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> Tensor:
    """Write the averages, with the bounds that a few keys tell; returns the sums of weights (Q,),
    too large where a bound was too low.
    """
    shift = queries[:, -2]
    shift.zero_()
    shift -= linear(queries, few).amax(dim=1)
    weights = clamped_product(queries, keys, _LOWEST, _HIGHEST).exp_()
    total = weights.sum(dim=1)
    torch.div(linear(weights, values), total[:, None], out=out)
    return total
