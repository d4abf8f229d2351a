"""Windows of the trunk, against arrays that are filled up as published."""

import pytest
import torch
from torch.nn import functional as F

from sam2_engine.model import hiera


def filled_up(attention, x, window):
    """As published: zeros up to whole windows, attention in each, and the padding cut off."""
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = padded.shape[1] // window, padded.shape[2] // window
    windows = hiera._to_windows(padded, window, window)
    shrink = 2 if attention.pool else 1
    nothing = torch.zeros(len(windows), window // shrink, window // shrink, 24)
    whole = hiera._from_windows(attention(windows, nothing), rows, columns)
    return whole[:, : height // shrink, : width // shrink]


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (10, 32), (28, 18), (6, 4)])
def test_windows_at_the_edge_are_as_if_filled_up_with_zeros(pool, size):
    torch.manual_seed(0)
    attention = hiera.HieraAttention(inputs=12, outputs=24, heads=2, pool=pool).eval()
    x = torch.randn(2, *size, 12)
    with torch.no_grad():
        torch.nn.init.normal_(attention.qkv.bias)
        expected = filled_up(attention, x, window=14)
        plus = torch.randn_like(expected)
        found = attention.in_padded_windows(x, plus, window=14) - plus
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", [False, True])
def test_a_block_gives_the_same_for_all_windows_at_once_and_for_some_at_a_time(pool, monkeypatch):
    torch.manual_seed(0)
    block = hiera.HieraBlock(inputs=8, outputs=16, heads=2, window=4, pool=pool).eval()
    x = torch.randn(30, 4, 4, 8)
    with torch.no_grad():
        at_once = block(x)
        monkeypatch.setattr("sam2_engine.model.layers._VALUES_AT_ONCE", 3 * 16 * block.hidden)
        by_threes = block(x)
    torch.testing.assert_close(at_once, by_threes, atol=1e-5, rtol=1e-5)
    assert at_once.shape == ((30, 2, 2, 16) if pool else (30, 4, 4, 16))
