"""One image that is worked on: its session, and the layers that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.prompt_layers import (
    NEGATIVE,
    POSITIVE,
    PromptLayers,
    Reading,
    new_labels_layer,
    object_colours,
)
from napari_sam2.sequence_view import SequenceKey, window_of
from napari_sam2.session import LazyModel, Session

if TYPE_CHECKING:
    from napari.components import LayerList
    from napari.layers import Image, Labels, Layer, Points, Shapes


class Connections:
    """Callbacks on events, to be taken off again together."""

    def __init__(self) -> None:
        self._made: list[tuple[Any, Callable[..., Any]]] = []

    def connect(self, emitter: Any, callback: Callable[..., Any]) -> None:
        emitter.connect(callback)
        self._made.append((emitter, callback))

    def disconnect_all(self) -> None:
        for emitter, callback in self._made:
            emitter.disconnect(callback)
        self._made.clear()


@dataclass(frozen=True)
class Edit:
    """What a person has changed in the prompt layers."""

    places: tuple[tuple[int, int], ...]
    """(object, frame), as the session has taken it over."""
    is_outside: bool
    """Whether something was placed where it cannot be used."""
    has_leftovers: bool
    """Whether there are boxes to be removed: replaced by a later one, or too small."""


class Workspace:
    """The session of one image, and its clicks, boxes and labels layers in a viewer.

    Prompts go from the layers to the session, never back, except into layers that are new.
    """

    def __init__(self, image: Image, model: LazyModel) -> None:
        """Raises ValueError where the image is of a kind that cannot be segmented."""
        self.image = image
        self.session = Session(image, model)
        self.session.add_object()
        self.prompts: PromptLayers | None = None
        self.labels: Labels | None = None
        self.image_events = Connections()
        self._prompt_events = Connections()
        self._labels_events = Connections()
        self._readings: dict[SequenceKey, Reading] = {}
        self._is_held = False  # the mouse button, in a prompt layer
        self._keys: Mapping[str, Callable[[], None]] = {}
        self._object_id = 1
        self._excludes = False

    # -- layers --------------------------------------------------------------------------------

    def add_layers(
        self,
        layers: LayerList,
        edited: Callable[..., None],
        mode_changed: Callable[..., None],
        keys: Mapping[str, Callable[[], None]],
    ) -> PromptLayers:
        """Add the layers that are missing, and show the session in them.

        edited: called when prompts may have changed. mode_changed: called when a click in a prompt
        layer does something else than before. keys: bound to the prompt layers.
        """
        active = layers.selection.active
        if self.labels is None:
            self.labels = new_labels_layer(self.image, self.session.labels)
            self.labels.selected_label = self._object_id
            self._labels_events.connect(self.labels.events.colormap, self.colour_prompts)
            layers.insert(layers.index(self.image) + 1, self.labels)
        if self.prompts is None:
            prompts = PromptLayers(self.image, self.session.view.frame_shape)
            prompts.fill(self.session, self.colour_of)
            self._readings = {
                view.key: prompts.read(view) for view in self.session.prompted_sequences
            }
            self.prompts, self._keys = prompts, keys
            for layer in (prompts.boxes, prompts.points):
                layers.append(layer)
                for emitter in (layer.events.data, layer.events.features):
                    self._prompt_events.connect(emitter, _after_change(edited))
                self._prompt_events.connect(layer.events.mode, mode_changed)
                for key, action in keys.items():
                    layer.bind_key(key, _for_layer(action), overwrite=True)
            prompts.points.mouse_drag_callbacks.insert(0, self._while_clicking)
            prompts.boxes.mouse_drag_callbacks.insert(0, self._while_drawing)
            self.prepare(self._object_id, self._excludes)
            self.colour_prompts()
        if active in layers:
            layers.selection.active = active
        return self.prompts

    def forget_layer(self, layer: Layer) -> Layer | None:
        """A layer of this image has been removed. Returns another that should go with it.

        The session keeps its prompts and masks: to remove a layer is no order to remove masks.
        """
        if layer is self.labels:
            self._labels_events.disconnect_all()
            self.labels = None
        elif self.prompts and layer in (self.prompts.points, self.prompts.boxes):
            prompts = self.prompts
            self._let_go_of_prompts()
            return prompts.boxes if layer is prompts.points else prompts.points
        return None

    def close(self) -> None:
        """Take all callbacks and keys off the layers, which stay as they are."""
        self._let_go_of_prompts()
        self.labels = None
        self.image_events.disconnect_all()
        self._labels_events.disconnect_all()

    def _let_go_of_prompts(self) -> None:
        self._prompt_events.disconnect_all()
        if self.prompts is None:
            return
        points, boxes = self.prompts.points, self.prompts.boxes
        for layer in (points, boxes):
            for key in self._keys:
                layer.bind_key(key, None)
        for layer, callback in ((points, self._while_clicking), (boxes, self._while_drawing)):
            if callback in layer.mouse_drag_callbacks:
                layer.mouse_drag_callbacks.remove(callback)
        self.prompts = None
        self._is_held = False

    # -- prompts -------------------------------------------------------------------------------

    def prepare(self, object_id: int, excludes: bool) -> None:
        """What new clicks and boxes belong to."""
        self._object_id, self._excludes = object_id, excludes
        self._set_defaults(NEGATIVE if excludes else POSITIVE)

    def take_over_edits(self) -> Edit:
        """Hand what has changed in the prompt layers to the session."""
        if self.prompts is None or self._is_held:
            return Edit((), False, False)
        view = self.session.view
        before = self._readings.get(view.key, Reading())
        now = self.prompts.read(view)
        self._readings[view.key] = now
        changed = [
            place
            for place in before.prompts | now.prompts
            if before.prompts.get(place) != now.prompts.get(place)
        ]
        # First what is there, then what is gone: an object whose prompts move keeps its masks.
        changed.sort(key=lambda place: place not in now.prompts)
        taken = [place for place in changed if self._take_over(place, now)]
        if changed:
            self.colour_prompts()
        self.prepare(self._object_id, self._excludes)
        return Edit(tuple(taken), now.outside > before.outside, bool(now.replaced))

    def remove_leftovers(self) -> None:
        """Remove boxes that a later one replaces, and those that a click without a drag makes."""
        if self.prompts is not None and not self._is_held:
            self.prompts.boxes.remove(self.prompts.read(self.session.view).replaced)

    def colour_of(self, object_id: int) -> NDArray[np.float64]:
        """RGBA of an object in the labels layer."""
        colours = object_colours() if self.labels is None else self.labels.colormap
        return np.asarray(colours.map(object_id), float).reshape(-1)[:4]

    def colour_prompts(self, *_: object) -> None:
        """Give all prompts the colours of their objects."""
        if self.prompts is not None:
            self.prompts.colour(self.colour_of)

    def update_window(self) -> bool:
        """Take over the image's contrast limits. Returns whether they are others than before."""
        window = window_of(self.image)
        changed = window != self.session.window
        self.session.window = window
        return changed

    def _take_over(self, place: tuple[int, int], now: Reading) -> bool:
        """Hand the prompts of one object on one frame to the session, if that knows the object."""
        object_id, frame = place
        said = now.prompts.get(place)
        if said is not None:
            if object_id not in self.session.objects:
                self.session.add_object(object_id=object_id)
            self.session.set_prompts(
                object_id, frame, points=said.points, labels=said.labels, box=said.box
            )
        elif object_id in self.session.objects:
            self.session.set_prompts(object_id, frame)
        else:
            return False
        return True

    def _set_defaults(self, label: str) -> None:
        if self.prompts is None:
            return
        colour = self.colour_of(self._object_id)
        self.prompts.prepare(self.session.view.key, self._object_id, label, colour)

    def _while_clicking(self, layer: Points, event: Any) -> Iterator[None]:
        """Shift turns the sign of a click around."""
        if layer.mode == "add":
            excludes = self._excludes != ("Shift" in event.modifiers)
            self._set_defaults(NEGATIVE if excludes else POSITIVE)
        yield from self._while_held(event)

    def _while_drawing(self, layer: Shapes, event: Any) -> Iterator[None]:
        """A box counts when the mouse is released, not while it is drawn."""
        yield from self._while_held(event)

    def _while_held(self, event: Any) -> Iterator[None]:
        self._is_held = True
        yield
        while event.type == "mouse_move":
            yield
        self._is_held = False


def _after_change(edited: Callable[..., None]) -> Callable[[Any], None]:
    """Leave out the events that announce a change to come: adding, changing, removing."""

    def changed(event: Any) -> None:
        action = getattr(event, "action", None)
        if action is None or action.value in ("added", "changed", "removed"):
            edited(event)

    return changed


def _for_layer(action: Callable[[], None]) -> Callable[[Layer], None]:
    """As a key of a layer, which napari calls with the layer."""

    def press(layer: Layer) -> None:
        action()

    return press
