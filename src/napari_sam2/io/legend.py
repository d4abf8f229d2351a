"""What the objects in a labels file are called, and how they are coloured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

RGB = tuple[float, float, float]
"""Red, green and blue, 0 to 1."""


@dataclass(frozen=True)
class LegendEntry:
    """One object of a labels file."""

    id: int
    """Its value in the array."""
    name: str
    colour: RGB | None = None
    parent: int | None = None
    """The id of the object that divided into this one and others."""

    @property
    def bytes(self) -> tuple[int, int, int] | None:
        """The colour as whole numbers from 0 to 255."""
        if self.colour is None:
            return None
        red, green, blue = (round(255 * min(max(float(part), 0.0), 1.0)) for part in self.colour)
        return red, green, blue


Legend = tuple[LegendEntry, ...]
"""In the order of the ids."""


def make_legend(
    ids: Iterable[int],
    names: Mapping[int, str],
    colours: Mapping[int, RGB],
    parents: Mapping[int, int] | None = None,
) -> Legend:
    """An entry for every id that occurs or has a name; names are made fit for one line of text."""
    known = parents or {}
    wanted = sorted({int(i) for i in ids} | {int(i) for i in names} - {0})
    return tuple(
        LegendEntry(i, _one_line(names.get(i, "")) or f"Object {i}", colours.get(i), known.get(i))
        for i in wanted
    )


def colour_of_bytes(values: Iterable[float]) -> RGB:
    """The colour of numbers from 0 to 255; what follows the first three is left out."""
    red, green, blue, *_ = (float(value) / 255 for value in values)
    return red, green, blue


def _one_line(name: str) -> str:
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", str(name)).split())
