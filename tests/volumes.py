"""Volumes for tests with objects that a person would mark."""

from __future__ import annotations

import numpy as np


def two_blobs(shape: tuple[int, int, int]) -> np.ndarray:
    """Two bright blobs on noise, drifting along the first axis, at least 40 x 56; float32."""
    z, y, x = np.indices(shape)
    noise = np.random.default_rng(0).normal(0, 10, shape)
    one = (y - 14 - z) ** 2 + (x - 16) ** 2 < 60
    two = (y - 26) ** 2 + (x - 38 + z) ** 2 < 80
    return (noise + 150 * one + 220 * two).astype(np.float32)
