"""Averages by softmax weights, against torch's own softmax in float64."""

import pytest
import torch

from sam2_engine.model import soft_averages as module
from sam2_engine.model.layers import linear, uses_onednn
from sam2_engine.model.soft_averages import (
    soft_averages,
    to_shiftable_keys,
    to_shiftable_queries,
)


@pytest.fixture(autouse=True)
def on_onednn():
    with torch.inference_mode():
        if not uses_onednn(torch.zeros(1)):
            pytest.skip("used with oneDNN only")
        yield


def inputs(spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """100 queries and 500 keys of 32 channels, whose scores have that standard deviation, and
    values of 8.
    """
    torch.manual_seed(0)
    queries, keys = torch.randn(100, 32) * spread, torch.randn(500, 32)
    return queries, keys, torch.randn(500, 8)


def averages(queries, keys, values, plus=0.0):
    queries, keys = (
        linear(x, *to(torch.eye(32), torch.zeros(32)))
        for x, to in ((queries, to_shiftable_queries), (keys, to_shiftable_keys))
    )
    keys[:, -1] = plus
    found = torch.full((len(queries), values.shape[1]), torch.nan)
    soft_averages(queries, keys, values, out=found)
    return found


def scores(queries, keys):
    return queries.double() @ keys.double().t() / 32**0.5


def expected(queries, keys, values):
    return (scores(queries, keys).softmax(dim=1) @ values.double()).float()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_averages_are_those_of_a_softmax(spread, parts, monkeypatch):
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", 100 * 500 // parts)
    given = inputs(spread)
    torch.testing.assert_close(averages(*given), expected(*given), atol=2e-5, rtol=1e-4)


def test_a_key_counts_as_often_as_it_is_told_to():
    queries, keys, values = inputs(3.0)
    times = torch.arange(500) % 3 + 1
    again = keys.repeat_interleave(times, dim=0), values.repeat_interleave(times, dim=0)
    found = averages(queries, keys, values, plus=times.log())
    torch.testing.assert_close(found, expected(queries, *again), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("spread", [100.0, 1000.0])
def test_scores_far_above_those_that_were_looked_at_are_met_by_looking_again(spread):
    queries, keys, values = inputs(spread)
    all_scores = scores(queries, keys)
    above = all_scores.amax(dim=1) - all_scores[:, :: module._LOOKED_AT].amax(dim=1)
    assert (above > module._HIGHEST).any(), "the test needs such queries"
    assert (above < module._HIGHEST).any(), "and others"
    torch.testing.assert_close(
        averages(queries, keys, values), expected(queries, keys, values), atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("spread", [20.0, 200.0])
def test_no_weight_is_below_the_normal_range_of_a_float(spread, monkeypatch):
    seen = []

    def spy(x, weight, *rest):
        seen.append(x.clone())
        return linear(x, weight, *rest)

    monkeypatch.setattr(module, "linear", spy)
    given = inputs(spread)
    averages(*given)
    weights = [x for x in seen if x.shape[1] == 500]
    assert weights
    smallest = torch.finfo(torch.float32).tiny
    assert all(x.min() >= smallest for x in weights)
    # In float64, where they are normal: training makes a process flush those that are not.
    softmax = scores(*given[:2]).softmax(dim=1)
    below = (softmax > 1e-45) & (softmax < smallest)
    assert below.any(), "a softmax has some, or this tests nothing"
