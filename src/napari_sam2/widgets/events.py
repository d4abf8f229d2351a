"""Callbacks and keys on layers, to be taken off again together; and what buttons call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari.components import LayerList
    from napari.layers import Layer

CTRL = "Cmd" if sys.platform == "darwin" else "Ctrl"
"""What people press where the notation of napari has Control, and that of Qt Ctrl."""
Keys = Mapping[str, Callable[[], None]]
"""A key in napari's notation, and what it does."""


@dataclass(frozen=True)
class Hooks:
    """What the widget wants to be told of the layers of an image."""

    prompts_edited: Callable[..., None]
    """Prompts may have changed."""
    painted: Callable[..., None]
    """A stroke in the labels layer has ended."""
    label_selected: Callable[..., None]
    """Another label is chosen in the labels layer."""
    mode_changed: Callable[..., None]
    """A click does something else than before."""
    keys: Keys


class Connections:
    """Callbacks on events."""

    def __init__(self) -> None:
        self._made: list[tuple[Any, Callable[..., Any]]] = []

    def connect(self, emitter: Any, callback: Callable[..., Any]) -> None:
        emitter.connect(callback)
        self._made.append((emitter, callback))

    def connect_list(self, layers: LayerList, callback: Callable[..., Any]) -> None:
        """When layers come, go, change places, or get another name."""
        events = layers.events
        for emitter in (events.inserted, events.removed, events.reordered, events.renamed):
            self.connect(emitter, callback)

    def disconnect_all(self) -> None:
        for emitter, callback in self._made:
            emitter.disconnect(callback)
        self._made.clear()


def call(action: Callable[[], object], *_: object) -> None:
    """Without Qt's argument of whether a button or an entry is checked, which PyQt passes to a
    partial function and PySide does not."""
    action()


def bind_keys(layer: Layer, keys: Keys) -> None:
    """Let keys work while this layer is active, and in no other."""
    for key, action in keys.items():
        layer.bind_key(_native(key), _for_layer(action), overwrite=True)


def unbind_keys(layer: Layer, keys: Iterable[str]) -> None:
    """Give the keys back to napari."""
    for key in keys:
        layer.bind_key(_native(key), None)


def _native(key: str) -> str:
    """napari would take Control for the key of that name on a Mac, too."""
    return key.replace("Control", CTRL)


def _for_layer(action: Callable[[], None]) -> Callable[[Layer], None]:
    """As a key of a layer, which napari calls with the layer."""

    def press(layer: Layer) -> None:
        action()

    return press
