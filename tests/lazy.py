"""Arrays that may only be read in small parts, and places for layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_sam2.io import ReadError


class Lazy:
    """An array that fails when more than `largest` elements are read at once."""

    def __init__(self, array: np.ndarray, largest: int) -> None:
        self._array = array
        self.largest = largest
        self.shape, self.dtype = array.shape, array.dtype
        self.ndim, self.size = array.ndim, array.size

    def __getitem__(self, index: Any) -> np.ndarray:
        found = self._array[index]
        assert found.size <= self.largest, f"{found.shape} was read of {self.shape}"
        return found

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise AssertionError("the whole array was read")


def random_place(rng: np.random.Generator, ndim: int) -> dict[str, Any]:
    """Scale, some of it negative, translate, rotate and shear of a layer."""
    rotation, _ = np.linalg.qr(rng.normal(size=(ndim, ndim)))
    return {
        "scale": rng.uniform(0.3, 3, ndim) * rng.choice([-1, 1], ndim),
        "translate": rng.uniform(-50, 50, ndim),
        "rotate": rotation * np.sign(np.linalg.det(rotation)) ** np.eye(ndim)[0],
        "shear": rng.uniform(-0.3, 0.3, ndim * (ndim - 1) // 2),
    }


class Damaged(Lazy):
    """An array of which some slices cannot be read for now."""

    bad: tuple[int, ...] = (4,)

    def __getitem__(self, index: Any) -> np.ndarray:
        if index[0] in self.bad:
            raise ReadError("data corrupted")
        return super().__getitem__(index)
