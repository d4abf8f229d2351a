"""One image that is worked on: its session, and the layers that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer

from napari_sam2.prompt_layers import NEGATIVE, POSITIVE, PromptLayers, Reading
from napari_sam2.recovery import Autosave
from napari_sam2.sequence_view import Channels, SequenceKey, sequence_axes
from napari_sam2.session import Session
from napari_sam2.widgets.events import Connections, Hooks, Keys, bind_keys, unbind_keys
from napari_sam2.widgets.left_behind import leave
from napari_sam2.widgets.mask_layers import MaskLayers
from napari_sam2.windows import CONTRAST_LIMITS

if TYPE_CHECKING:
    from napari.components import LayerList
    from napari.layers import Image, Labels, Layer, Points, Shapes

AUTOSAVE_SECONDS = 10.0


@dataclass(frozen=True)
class Edit:
    """What a person has changed in the prompt layers."""

    places: tuple[tuple[int, int], ...]
    """(object, frame), as the session has taken it over."""
    is_outside: bool
    """Whether something was placed where it cannot be used."""
    has_leftovers: bool
    """Whether there are boxes to be removed: replaced by a later one, or too small."""
    refused: str = ""
    """Why a change was not taken over but taken back: its object is locked, or has no id."""


@dataclass(frozen=True)
class Look:
    """What the model sees together with an image, as colours."""

    partners: tuple[Image, ...] = ()
    """Other image layers."""
    channels: Channels | None = None
    """Or channels of the image itself."""


class Workspace:
    """The session of one image, and its layers of marks and masks in a viewer.

    Prompts go from the layers to the session; back only into layers that are new, and where the
    session itself has changed them: undo, redo, merging, opening.
    """

    def __init__(self, image: Image, session: Session) -> None:
        self.image = image
        self.session = session
        if not session.objects:
            session.add_object()
            session.history.clear()
        self.prompts: PromptLayers | None = None
        self.masks = MaskLayers(image, session)
        self.window = CONTRAST_LIMITS
        """The choice of intensities that the model sees."""
        self.look = Look()
        self.axis: int | None = None
        """Along which slices follow each other, where several axes have a slider; None: the first
        of `axes_shown`."""
        self.events = Connections()
        """Those that last as long as the workspace."""
        self.file: Path | None = None
        """Where the person has saved the session."""
        self.changes = 0
        """How many there have been of the session."""
        self.saved_changes = 0
        """How many of them are in the file."""
        self._autosave: Autosave | None = None
        self.kept: Path | None = None
        """Where autosave has left what was not saved, once this is closed."""
        self._prompt_events = Connections()
        self._readings: dict[SequenceKey, Reading] = {}
        self._count = 0  # of marks in the layers
        self._is_held = False  # the mouse button, in a prompt layer
        self._is_filling = self._is_taking_over = False
        self._is_outdated = False  # the marks in the layers
        self._soon = QTimer()
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self.bring_up_to_date)
        self.has_been_shown = False
        """Whether there have been layers of it, which a person may have removed."""
        self._ndisplay = 2
        self._is_late = False  # the layers show less than the session knows
        self._keys: Keys = {}
        self.object_id = next(iter(session.objects))
        """The object that new marks belong to."""
        self._excludes = False
        self.masks.selected = self.object_id
        self.events.connect(session.prompts_changed, self._on_prompts)
        self.events.connect(session.objects_changed, self._on_objects)
        for signal in (session.objects_changed, session.masks_changed):
            self.events.connect(signal, self._on_change)

    # -- layers --------------------------------------------------------------------------------

    @property
    def labels(self) -> Labels | None:
        """The layer that shows the masks."""
        return self.masks.layer

    @property
    def layers(self) -> list[Layer]:
        """All that were made here."""
        made: list[Layer] = [*self.masks.own]
        if self.prompts is not None:
            made += [self.prompts.points, self.prompts.boxes]
        return made

    def shows_in(self, layer: Layer | None) -> bool:
        """Whether a layer holds marks or masks of this image."""
        return layer is not None and layer in (*self.layers, self.labels)

    def key_shown(self, order: Sequence[int], point: Sequence[float]) -> SequenceKey:
        """The sequence of the image that a viewer with these dims shows."""
        return SequenceKey.of_viewer(self.image, order, point, self.axis, self._channel_axis)

    def axes_shown(self, order: Sequence[int]) -> tuple[int, ...]:
        """The axes that slices can follow each other along in a viewer with this dims.order."""
        return sequence_axes(self.image, order, self._channel_axis)

    @property
    def is_held(self) -> bool:
        """Whether the person is in the middle of a stroke, or it is not yet taken over."""
        return self._is_held or self.masks.is_held or self.masks.has_strokes

    def add_layers(self, layers: LayerList, hooks: Hooks) -> PromptLayers:
        """Add the layers that are missing, and show the session in them."""
        active = layers.selection.active
        self.has_been_shown = True
        self.masks.add(layers, hooks)
        if self.prompts is None:
            view = self.session.view
            axis = None if view.channels is None else view.channels.axis
            prompts = PromptLayers(self.image, view.frame_shape, axis)
            self._keys = hooks.keys
            for layer in (prompts.boxes, prompts.points):
                layers.append(layer)
                self._prompt_events.connect(layer.events.mode, hooks.mode_changed)
                bind_keys(layer, hooks.keys)
            edited = self._after_change(hooks.prompts_edited)
            for emitter in prompts.emitters:
                self._prompt_events.connect(emitter, edited)
            prompts.points.mouse_drag_callbacks.insert(0, self._while_clicking)
            prompts.boxes.mouse_drag_callbacks.insert(0, self._while_drawing)
            self.prompts = prompts
            self.refill()
            # An empty one costs a quarter of the time that it takes to show another slice.
            prompts.boxes.visible = len(prompts.boxes.data) > 0
        if active in layers:
            layers.selection.active = active
        return self.prompts

    def refill(self) -> None:
        """Show the session's prompts in the layers, in place of what is there.

        Not while a flat image is shown in 3D, where napari cannot add shapes: then at its end.
        """
        prompts, self._is_outdated = self.prompts, False
        self._is_late = prompts is not None and self._ndisplay > self.image.ndim
        if prompts is None or self._is_late:
            return
        self._is_filling = True
        try:
            prompts.fill(self.session, self.masks.colour_of)
        finally:
            self._is_filling = False
        self._readings = {v.key: prompts.read(v) for v in self.session.prompted_sequences}
        self._count = len(prompts.points.data) + len(prompts.boxes.data)
        self.prepare(self.object_id, self._excludes)
        self.colour_prompts()

    def follow_display(self, ndisplay: int) -> None:
        """How many axes the viewer displays now. Shows what could not be shown before."""
        self._ndisplay = ndisplay
        if self._is_late:
            self.refill()

    def forget_layer(self, layer: Layer) -> Layer | None:
        """A layer of this image has been removed. Returns another that should go with it.

        The session keeps its prompts and masks: to remove a layer is no order to remove masks.
        """
        if layer is self.labels or layer in self.masks.each.values():
            self.masks.forget(layer)
        elif self.prompts and layer in (self.prompts.points, self.prompts.boxes):
            prompts = self.prompts
            self._let_go_of_prompts()
            return prompts.boxes if layer is prompts.points else prompts.points
        return None

    def close(self) -> None:
        """Take all callbacks and keys off the layers, which stay as they are."""
        self.session.write_rest()
        layers = self.layers
        self._soon.stop()
        self._let_go_of_prompts()
        self.masks.close()
        self.events.disconnect_all()
        if self._autosave is not None:
            forget = self.changes == self.saved_changes or self.session.is_empty
            self._autosave.close(forget=forget)
            if self._autosave.path is not None and not forget and not self._autosave.error:
                self.kept = self._autosave.path
                leave(layers, self.kept)
            self._autosave = None

    def start_autosave(self, path: Path | None, failed: Callable[[str], None]) -> None:
        """Save the session by itself. path: go on with this file; failed: as for `Autosave`."""
        self._autosave = Autosave(self.session, path, AUTOSAVE_SECONDS, failed)
        if path is not None:
            self.changes += 1  # it is not in a file of the person's own

    @property
    def _channel_axis(self) -> int | None:
        return None if self.look.channels is None else self.look.channels.axis

    def show_colours(self) -> None:
        """Show objects and their marks in the colours that the session gives them now."""
        if self.masks.colour():
            self.colour_prompts()

    def _on_change(self, *_: object) -> None:
        self.changes += 1

    def _on_prompts(self) -> None:
        """Show what is said of objects elsewhere. Of many changes in a row, the first at once and
        the others together."""
        if self._is_taking_over:
            return
        is_first = not (self.session.history.is_open or self._soon.isActive())
        self._soon.start()
        if is_first:
            self.refill()
        else:
            self._is_outdated = True

    def bring_up_to_date(self) -> None:
        """Show the marks now that would be shown soon."""
        if self._is_outdated:
            self.refill()

    def _on_objects(self) -> None:
        """At once, for the layer may be saved with its colours next; but once for many objects."""
        if not self.session.history.is_open:
            self.show_colours()

    def _let_go_of_prompts(self) -> None:
        self._prompt_events.disconnect_all()
        if self.prompts is None:
            return
        points, shapes = self.prompts.points, self.prompts.boxes
        for layer in (points, shapes):
            unbind_keys(layer, self._keys)
        for layer, callback in ((points, self._while_clicking), (shapes, self._while_drawing)):
            if callback in layer.mouse_drag_callbacks:
                layer.mouse_drag_callbacks.remove(callback)
        self.prompts = None
        self._is_held = False

    # -- prompts -------------------------------------------------------------------------------

    def prepare(self, object_id: int, excludes: bool) -> None:
        """What new prompts belong to."""
        self.object_id, self._excludes = object_id, excludes
        self.masks.selected = object_id
        self._set_defaults(NEGATIVE if excludes else POSITIVE)

    def take_over_edits(self) -> Edit:
        """Hand what has changed in the prompt layers to the session."""
        if self.prompts is None or self._is_held or self._is_late:
            return Edit((), False, False)
        shown = self.session.view.key
        before = self._readings.get(shown, Reading())
        now = self.prompts.read(self.session.view)
        count = len(self.prompts.points.data) + len(self.prompts.boxes.data)
        others = self._readings.keys() - {shown} if count < self._count else ()
        self._count, self._is_taking_over = count, True
        try:
            with self.session.history.change("Mark" if now.prompts else "Delete marks"):
                refusals = []
                for key in others:  # from which marks may have been deleted, too
                    self.session.show(key)
                    refusals.append(self._take_over_all(self.prompts.read(self.session.view))[1])
                self.session.show(shown)
                taken, refused = self._take_over_all(now)
        finally:
            self._is_taking_over = False
        refused = next(filter(None, (refused, *refusals)), "")
        if refused:
            self.refill()
        elif now.prompts != before.prompts:
            self.colour_prompts()
        self.prepare(self.object_id, self._excludes)
        is_outside = now.outside > before.outside
        return Edit(tuple(taken), is_outside, bool(now.replaced), refused)

    def _take_over_all(self, now: Reading) -> tuple[list[tuple[int, int]], str]:
        """Hand what has changed in the sequence that is shown to the session.

        Returns what was taken, (object, frame), and why the last that was not was refused.
        """
        key = self.session.view.key
        before = self._readings.get(key, Reading())
        self._readings[key] = now
        changed = [
            place
            for place in before.prompts | now.prompts
            if before.prompts.get(place) != now.prompts.get(place)
        ]
        # First what is there, then what is gone: an object whose prompts move keeps its masks.
        changed.sort(key=lambda place: place not in now.prompts)
        taken, refused = [], ""
        for place in changed:
            try:
                if self._take_over(place, now):
                    taken.append(place)
            except ValueError as error:
                refused = str(error)
        return taken, refused

    def remove_leftovers(self) -> None:
        """Remove boxes that a later one replaces, and those that a click without a drag makes."""
        if self.prompts is not None and not self._is_held:
            self.prompts.boxes.remove(self.prompts.read(self.session.view).replaced)

    def colour_prompts(self, *_: object) -> None:
        """Give all prompts the colours of their objects."""
        if self.prompts is not None:
            self.prompts.colour(self.masks.colour_of)

    def _take_over(self, place: tuple[int, int], now: Reading) -> bool:
        """Hand the prompts of one object on one frame to the session, if that knows the object."""
        object_id, frame = place
        said = now.prompts.get(place)
        if said is not None:
            if object_id not in self.session.objects:
                self.session.add_object(object_id=object_id)
            self.session.set_prompts(
                object_id,
                frame,
                points=said.points,
                labels=said.labels,
                box=said.box,
                scribbles=said.scribbles,
                lassos=said.lassos,
            )
        elif object_id in self.session.objects:
            self.session.set_prompts(object_id, frame)
        else:
            return False
        return True

    def _set_defaults(self, label: str) -> None:
        if self.prompts is not None:
            colour = self.masks.colour_of(self.object_id)
            self.prompts.prepare(self.session.view.key, self.object_id, label, colour)

    def _while_clicking(self, layer: Points, event: Any) -> Iterator[None]:
        if layer.mode == "add":
            self._set_sign(event)
        yield from self._while_held(event)

    def _while_drawing(self, layer: Shapes, event: Any) -> Iterator[None]:
        """A shape counts when the mouse is released, not while it is drawn."""
        if layer.mode in ("add_path", "add_polyline", "add_line"):
            self._set_sign(event)
        yield from self._while_held(event)
        QTimer.singleShot(0, self._mend)  # after what napari does at the end

    def _mend(self) -> None:
        """Make the layer of shapes whole again, where napari has not."""
        if self.prompts is not None and not self._is_held and self.prompts.is_torn:
            self.take_over_edits()
            self.refill()

    def _set_sign(self, event: Any) -> None:
        """Shift turns the sign of a click around."""
        excludes = self._excludes != ("Shift" in event.modifiers)
        self._set_defaults(NEGATIVE if excludes else POSITIVE)

    def _while_held(self, event: Any) -> Iterator[None]:
        self._is_held = True
        yield
        while event.type == "mouse_move":
            yield
        self._is_held = False

    def _after_change(self, edited: Callable[..., None]) -> Callable[[Any], None]:
        """Leave out what announces a change to come, and what the workspace does itself."""

        def changed(event: Any) -> None:
            action = getattr(event, "action", None)
            if action is not None and action.value == "added" and not event.source.visible:
                event.source.visible = True
            is_done = action is None or action.value in ("added", "changed", "removed")
            if is_done and not self._is_filling:
                edited(event)

        return changed
