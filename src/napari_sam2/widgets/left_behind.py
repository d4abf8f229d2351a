"""Layers that stay in a viewer when their widget is closed, and that recovery replaces."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari.layers import Layer


class _Left:
    """Layers of one session, as long as nobody changes them."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.layers = weakref.WeakSet(layers)
        for layer in self.layers:
            for name in {"data", "paint"} & set(layer.events):
                layer.events[name].connect(self._on_change)

    def _on_change(self, event: Any) -> None:
        self.layers.discard(event.source)


_by_file: dict[Path, _Left] = {}


def leave(layers: Iterable[Layer], file: Path) -> None:
    """The layers show what autosave has kept in a file."""
    _by_file[file] = _Left(layers)


def left_behind(file: Path) -> list[Layer]:
    """The layers that show what is in a file of autosave, and are still as they were left."""
    return list(_by_file[file].layers) if file in _by_file else []
