"""The labels layers that show the masks of a session, and take what is painted in them."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.alignment import align
from napari_sam2.io.readers import METADATA_KEY
from napari_sam2.io.writers import SESSION_KEY
from napari_sam2.output import check_writable
from napari_sam2.prompt_layers import Follower, new_labels_layer, object_rgb
from napari_sam2.session import Session
from napari_sam2.widgets.canvas import remove_layers
from napari_sam2.widgets.events import Connections, Hooks, Keys, bind_keys, unbind_keys

if TYPE_CHECKING:
    from napari.components import LayerList
    from napari.layers import Image, Labels, Layer

NAPARI_KEYS = frozenset("BELP")
"""In a labels layer, people know these keys for something else: preserve, erase, pick, paint."""

_TRANSPARENT = np.zeros(4)
_OTHERS = np.array((0.7, 0.7, 0.7, 1.0))
"""Labels that are not of the session."""


class MaskLayers:
    """One labels layer, a new one or one that was there; and, if wanted, one more per object."""

    def __init__(self, image: Image, session: Session) -> None:
        self.image = image
        self.session = session
        self.layer: Labels | None = None
        self.each: dict[int, Labels] = {}
        """By object, where every object has a layer of its own."""
        self.has_each = False
        self.given: Labels | None = None
        """The layer that a person has chosen for the masks; also while it is not in the viewer."""
        self.is_held = False
        """Whether the person is in the middle of a stroke."""
        self.has_strokes = False
        """Whether strokes have ended that the session has not taken over yet."""
        self.selected = 1
        self._array: Any = None  # what the layer shows, the session's labels
        self._layers: LayerList | None = None
        self._events = Connections()
        self._keys: Keys = {}
        self._colormap: Any = None  # of the layer, as it was
        self._shown: tuple[Any, ...] = ()
        self._follower: Follower | None = None

    @property
    def is_own(self) -> bool:
        """Whether the layer is made here, so that all labels in it are objects."""
        return self.given is None

    @property
    def own(self) -> list[Labels]:
        """The layers that were made here."""
        main = [self.layer] if self.layer is not None and self.is_own else []
        return [*self.each.values(), *main]

    def add(self, layers: LayerList, hooks: Hooks) -> None:
        """Add the layer, where there is none."""
        self._layers = layers
        if self.layer is None:
            layer = self.given or new_labels_layer(
                self.image, self.session.labels, self._channel_axis
            )
            layers.insert(layers.index(self.image) + 1, layer)
            self._take(layer, hooks)

    def check(self, layer: Labels) -> None:
        """Raises ValueError where a layer cannot take the masks, as far as its ids are not needed
        to say so.
        """
        check_grid(self.image, layer, self.session.view.shape)
        check_writable(layer.data, self.session.view.shape)

    def write_to(
        self,
        layer: Labels | None,
        layers: LayerList,
        hooks: Hooks,
        others: Collection[int] | None = None,
    ) -> None:
        """Show masks in another layer, an existing one or a new one.

        others: the ids that the layer holds, where they are known.

        Raises ValueError where the layer cannot take them; nothing has changed then.
        """
        if layer is not None:
            check_grid(self.image, layer, self.session.view.shape)
        self.session.write_to(None if layer is None else layer.data, others=others)
        old, was_own = self.layer, self.is_own
        self.forget()
        if was_own and old is not None and old in layers:
            layers.remove(old)
        self.given = layer
        self._layers = layers
        if layer is None:
            self.add(layers, hooks)
        else:
            self._take(layer, hooks)
            layer.refresh()

    def show_each(self, wanted: bool) -> None:
        """Whether every object has a layer of its own, too."""
        self.has_each = wanted
        if not wanted and self._layers is not None:
            each = dict(self.each)
            remove_layers(self._layers, each.values())
            for object_id in each:
                self.session.drop_labels_of(object_id)
            self.each.clear()
            self._follow()
        if self.layer is not None:
            self.layer.visible = not wanted
        self._shown = ()
        self.colour()

    def approved(self) -> Labels | None:
        """A new layer of the approved masks alone; None without any. Nothing changes it later."""
        labels = self.session.approved_labels()
        if not labels.any():
            return None
        layer = new_labels_layer(self.image, labels, self._channel_axis)
        layer.name = f"{self.image.name} approved"
        self._name_objects(layer)
        self._name_file(layer)
        if self.layer is not None:
            layer.colormap = self.layer.colormap
        return layer

    def forget(self, layer: Layer | None = None) -> None:
        """Let go of a layer, by default of the one with all masks; it stays as it is."""
        for object_id, single in list(self.each.items()):
            if single is layer:
                del self.each[object_id]
        if layer not in (None, self.layer):
            self._follow()
            return
        self._events.disconnect_all()
        if self.layer is not None:
            self.layer.metadata.pop(SESSION_KEY, None)
            if self.is_own:
                self._name_objects(self.layer)
            unbind_keys(self.layer, self._keys)
            if self._while_held in self.layer.mouse_drag_callbacks:
                self.layer.mouse_drag_callbacks.remove(self._while_held)
            if not self.is_own:
                self.layer.colormap = self._colormap
        self.layer = None
        self.is_held = self.has_strokes = False
        self._follow()

    def close(self) -> None:
        """Let go of all layers; they stay as they are."""
        self.forget()
        for layer in self.each.values():
            self._name_objects(layer)
        self.each.clear()
        self._follow()

    @property
    def is_replaced(self) -> bool:
        """Whether the layer was given another array than the session's."""
        return self.layer is not None and self.layer.data is not self._array

    def take_array(self) -> list[int]:
        """Put the session's array back into the layer, with what is in the one that it was given.

        Returns the frames of the sequence that is shown on which that is something else. Raises
        ValueError where it has another shape; the layer is let go of then.
        """
        assert self.layer is not None
        layer, own, view = self.layer, self._array, self.session.view
        new = layer.data
        if tuple(np.shape(new)) != view.shape:
            self.given = None
            self.forget()
            raise ValueError(
                f"{layer.name} has another shape now, so the masks are shown in a layer of their "
                "own."
            )
        changed = []
        for frame in range(len(view)):
            index = view.index(frame)
            if not np.array_equal(own[index], new[index]):
                own[index] = new[index]
                changed.append(frame)
        layer.data = own
        self.has_strokes = False  # the layer tells of this, too
        return changed

    def refresh(self) -> None:
        """Show what has changed in the masks."""
        for layer in (self.layer, *self.each.values()):
            if layer is not None and layer.visible:
                layer.refresh(thumbnail=False, highlight=False, extent=False)  # these are as before

    def colour_of(self, object_id: int) -> NDArray[np.float64]:
        """RGBA of an object; of none, transparent."""
        if not object_id:
            return _TRANSPARENT.copy()
        info = self.session.objects.get(object_id)
        own = None if info is None else info.colour
        return np.array((*(own or object_rgb(object_id)), 1.0))

    def colour(self) -> bool:
        """Show every object in its colour, or not at all. Returns whether that changes anything."""
        from napari.utils.colormaps import DirectLabelColormap

        objects = self.session.objects
        wanted = tuple((i, info.name, info.colour, info.hidden) for i, info in objects.items())
        if self.layer is None or wanted == self._shown:
            return False
        self._shown = wanted
        colours: dict[int | None, Any] = {None: _OTHERS, 0: _TRANSPARENT}
        for object_id, info in objects.items():
            colours[object_id] = self.colour_of(object_id)
            if info.hidden:  # but its colour is there to be saved
                colours[object_id][3] = 0
        self.layer.colormap = DirectLabelColormap(color_dict=colours)
        if self.has_each:
            self._show_each_object(DirectLabelColormap(color_dict=colours))
        return True

    def _take(self, layer: Labels, hooks: Hooks) -> None:
        self.layer = layer
        self._array = layer.data
        self._link(layer)
        self._colormap = layer.colormap
        layer.selected_label = self.selected
        self._keys = {key: act for key, act in hooks.keys.items() if key not in NAPARI_KEYS}
        self._events.connect(layer.events.paint, hooks.painted)
        self._events.connect(layer.events.data, hooks.painted)
        self._events.connect(layer.events.selected_label, hooks.label_selected)
        self._events.connect(layer.events.mode, hooks.mode_changed)
        layer.mouse_drag_callbacks.insert(0, self._while_held)
        bind_keys(layer, self._keys)
        self._shown = ()
        self._follow()
        self.colour()

    def _show_each_object(self, colormap: Any) -> None:
        objects, layers = self.session.objects, self._layers
        if layers is None:
            return
        for object_id, info in objects.items():
            if object_id not in self.each:
                labels = self.session.labels_of(object_id)
                layer = new_labels_layer(self.image, labels, self._channel_axis)
                self.each[object_id] = layer
                self._link(layer)
                layers.insert(layers.index(self.image) + 1, layer)
            self.each[object_id].name = f"{self.image.name} {info.name}"
            self.each[object_id].colormap = colormap
        gone = [self.each.pop(object_id) for object_id in self.each.keys() - objects.keys()]
        remove_layers(layers, gone)
        self._follow()

    def _link(self, layer: Labels) -> None:
        """Let writers and measures find the image's file, and the objects' names."""
        layer.metadata[SESSION_KEY] = weakref.ref(self.session)
        self._name_file(layer)

    def _name_objects(self, layer: Labels) -> None:
        """Let a layer itself say what its objects are called and descend from."""
        objects, parents = self.session.objects, self.session.parents
        layer.features = {
            "index": [0, *objects],
            "name": ["", *(info.name for info in objects.values())],
            "parent": [0, *(parents.get(object_id, 0) for object_id in objects)],
        }

    def _name_file(self, layer: Labels) -> None:
        if METADATA_KEY in self.image.metadata:
            layer.metadata[METADATA_KEY] = self.image.metadata[METADATA_KEY]

    @property
    def _channel_axis(self) -> int | None:
        channels = self.session.view.channels
        return None if channels is None else channels.axis

    def _follow(self) -> None:
        """Let the layers that are there now go where the image goes."""
        self._follower = Follower(self.image, self.own, self._channel_axis)

    def _while_held(self, layer: Labels, event: Any) -> Iterator[None]:
        self.is_held = True
        self.session.write_rest()  # so that all that is painted over is there
        yield
        while event.type == "mouse_move":
            yield
        self.is_held = False


def check_grid(image: Image, labels: Labels, shape: tuple[int, ...]) -> None:
    """Raises ValueError where labels do not lie on the image, pixel on pixel."""
    data_shape = tuple(getattr(labels.data, "shape", ()))
    if labels.multiscale or data_shape != shape:
        raise ValueError(f"{labels.name} has another shape than the image, so it cannot be used.")
    to_labels = align(image, labels)
    if not np.allclose(to_labels.matrix, np.eye(len(shape)), atol=1e-4) or not np.allclose(
        to_labels.offset, 0, atol=1e-2
    ):
        raise ValueError(f"{labels.name} does not lie on the image, so it cannot be used.")
