"""What is added up over the pixels of objects, plane by plane."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class ObjectSum:
    """What is added up over the pixels of an object. Positions are (plane, y, x)."""

    pixels: int
    position: NDArray[np.float64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    """The last index + 1."""
    bright: int
    """Pixels with an intensity; those that are NaN have none."""
    total: float
    squares: float

    def add(self, other: ObjectSum) -> None:
        self.pixels += other.pixels
        self.position = self.position + other.position
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.bright += other.bright
        self.total += other.total
        self.squares += other.squares

    def common(
        self, place: Callable[[NDArray[np.float64]], tuple[float, ...]], ndim: int
    ) -> dict[str, Any]:
        """What both kinds of rows say of it. ndim: of its box."""
        mean = self.total / self.bright if self.bright else None
        spread = None
        if mean is not None:
            spread = float(np.sqrt(max(self.squares / self.bright - mean**2, 0.0)))
        return {
            "pixels": self.pixels,
            "centroid": place(self.position / self.pixels),
            "box": (*self.low[-ndim:].tolist(), *self.high[-ndim:].tolist()),
            "mean": mean,
            "spread": spread,
        }


def sums_of(
    plane: int, labels: Any, read: Callable[[], Any], only: Collection[int] | None
) -> dict[int, ObjectSum]:
    """Of all objects of a plane, by id.

    plane: its index. labels: (H, W). read: gives the image there, (H, W) or (H, W, colours), or
    None; it is called only if there are objects, and where it cannot be read there are no
    intensities. only: ids to look at; by default all.
    """
    array = np.asarray(labels)
    rows, columns = np.nonzero(array)
    if only is not None:
        wanted = np.isin(array[rows, columns], list(only))
        rows, columns = rows[wanted], columns[wanted]
    if not len(rows):
        return {}
    ids = np.unique(array[rows, columns])
    number = np.searchsorted(ids, array[rows, columns])
    pixels = np.bincount(number)
    values = _values(read)
    bright: NDArray[Any] = np.zeros(len(ids))
    total: NDArray[Any] = bright
    squares: NDArray[Any] = bright
    if values is not None:
        seen = values[rows, columns].astype(np.float64)
        finite = np.isfinite(seen)
        seen = np.where(finite, seen, 0.0)
        bright = np.bincount(number, finite)
        total, squares = np.bincount(number, seen), np.bincount(number, seen**2)
    low = np.full((2, len(ids)), np.iinfo(np.int64).max)
    high = np.zeros((2, len(ids)), np.int64)
    for axis, at in enumerate((rows, columns)):
        np.minimum.at(low[axis], number, at)
        np.maximum.at(high[axis], number, at + 1)
    middle = [np.bincount(number, at) for at in (rows, columns)]
    return {
        int(object_id): ObjectSum(
            int(pixels[n]),
            np.array([plane * pixels[n], middle[0][n], middle[1][n]], float),
            np.array([plane, low[0][n], low[1][n]], np.int64),
            np.array([plane + 1, high[0][n], high[1][n]], np.int64),
            int(bright[n]),
            float(total[n]),
            float(squares[n]),
        )
        for n, object_id in enumerate(ids.tolist())
    }


def _values(read: Callable[[], Any]) -> NDArray[Any] | None:
    """(H, W) intensities, of colours the mean; None where there are none or they cannot be read."""
    try:
        image = read()
        values = None if image is None else np.asarray(image)
    except MemoryError:
        raise
    except Exception:  # each kind of file has its own
        return None
    return values if values is None or values.ndim == 2 else values.mean(axis=-1)


def add(sums: dict[int, ObjectSum], object_id: int, found: ObjectSum) -> None:
    """Add what was found of an object to what is known."""
    if object_id in sums:
        sums[object_id].add(found)
    else:
        sums[object_id] = replace(found)
