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


def to_shiftable_keys(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The weight (C, inputs) and the bias (C,) of a projection to keys, which then have two more
    channels, 1 and 0: by the first, a query's own channel shifts all its scores; what is written to
    the second shifts all scores of a key.
    """
    return _with_two_more(weight, bias, (1.0, 0.0))


def to_shiftable_queries(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The same of a projection to queries, which are divided by the root of C and then have the two
    channels, 0 and 1, that belong to such keys.
    """
    root = math.sqrt(len(weight))
    return _with_two_more(weight / root, bias / root, (0.0, 1.0))


def _with_two_more(
    weight: Tensor, bias: Tensor, channels: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    return F.pad(weight, (0, 0, 0, 2)), torch.cat((bias, bias.new_tensor(channels)))


def soft_averages(queries: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
    """Write softmax(queries keys^T) values to out (Q, D).

    Args:
        queries: (Q, C + 2), of which the last two channels are 0, which is used here, and 1.
        keys: (N, C + 2), of which the last two channels are 1 and what is added to their scores.
        values: (N, D).
    """
    totals = _averages(queries, keys[::_LOOKED_AT].contiguous(), keys, values, out)
    missed = (totals >= _TOO_LARGE).nonzero()[:, 0]
    if len(missed):  # with all keys, the bound is the largest score itself
        again = out[missed]
        _averages(queries[missed], keys, keys, values, again)
        out[missed] = again


def _averages(queries: Tensor, few: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> Tensor:
    """Write the averages, with the bounds that a few keys tell; returns the sums of weights (Q,),
    too large where a bound was too low.
    """
    totals = []
    parts = math.ceil(len(queries) * len(keys) / _SCORES_AT_ONCE)
    for some, averages in zip(queries.chunk(parts), out.chunk(parts), strict=True):
        shift = some[:, -2]
        shift.zero_()
        shift -= linear(some, few).amax(dim=1)
        weights = clamped_product(some, keys, _LOWEST, _HIGHEST).exp_()
        total = weights.sum(dim=1)
        torch.div(linear(weights, values.t()), total[:, None], out=averages)
        totals.append(total)
    return torch.cat(totals)
