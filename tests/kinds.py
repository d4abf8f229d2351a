"""Images of a kind that nano is poor at, to learn from."""

from __future__ import annotations

import numpy as np

SIDE = 128


def crosses(seed: int, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Crosses that differ from what is around them by their texture alone: (Y, X) uint8, and ids.

    From a box, a model that does not know them takes the ellipse in it.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    image = 128 + 50 * np.sin((x + y) * 1.1 + rng.uniform(0, 6))
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for number in range(1, count + 1):
        half = int(rng.integers(14, 22))
        thick = max(2, half // 5)
        for _ in range(50):
            at = rng.integers(half, SIDE - half, 2)
            dy, dx = np.abs(y - at[0]), np.abs(x - at[1])
            if not labels[(dy <= half + 2) & (dx <= half + 2)].any():
                break
        else:
            continue
        cross = ((dy <= thick) & (dx <= half)) | ((dx <= thick) & (dy <= half))
        labels[cross] = number
        image[cross] = 128 + 50 * np.sin((x - y) * 1.1)[cross]
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8), labels
