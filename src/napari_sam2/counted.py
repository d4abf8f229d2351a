"""Numbers of things, in words for people."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, thing: str) -> str:
    """ "1 slice", "2 slices"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def slice_range(first: int, last: int) -> str:
    """ "slice 3", "slices 3 to 5"."""
    return f"slice {first}" if first == last else f"slices {first} to {last}"


def listed(names: Sequence[str], most: int) -> str:
    """ "a, b", "a, b and 7 more"."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
