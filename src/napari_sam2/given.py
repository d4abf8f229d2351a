"""What a script gives, checked before anything changes: a mistake is told in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_COORDINATES = {2: "(y, x)", 3: "(z, y, x)"}


def whole_number(value: Any, what: str) -> int:
    """A whole number as it is; 3.0 and True are none. what: "A slice", for the message."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ValueError(f"{what} is a whole number, not {value!r}.")
    return int(value)


def several(values: Iterable[Any], what: str) -> list[Any]:
    """Those that were given as a list; one alone is a mistake. what: "slices", for the message."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"Give the {what} as a list: [{values!r}], not {values!r}.")
    return list(values)


def positions(values: ArrayLike, axes: int, what: str) -> NDArray[np.float64]:
    """(N, axes) coordinates; one position alone, (axes,), too. what: "point", for the message."""
    names = _COORDINATES.get(axes, "one for each axis of the image")
    needed = f"A {what} needs {axes} coordinates, {names}"
    try:
        at = np.array(values, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{needed}, not {values!r}.") from error
    if at.size and (at.ndim not in (1, 2) or at.shape[-1] != axes):
        raise ValueError(f"{needed}; what was given has the shape {at.shape}.")
    return at.reshape(-1, axes)
