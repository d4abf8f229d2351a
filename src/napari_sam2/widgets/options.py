"""The options of an image: intensities, colours, and the labels layer that masks are written to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import napari.layers
from qtpy.QtCore import QTimer

from napari_sam2.feature_files import SETTING, allow_gigabytes, allowed_gigabytes
from napari_sam2.label_ids import ids_in
from napari_sam2.sequence_view import Channels, Windows, image_shape
from napari_sam2.session_base import default_name
from napari_sam2.slice_data import ObjectInfo
from napari_sam2.widgets import choices
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.marking import Marking
from napari_sam2.widgets.panel import NEW_LAYER, ONE_EACH
from napari_sam2.widgets.workspace import Look, Workspace
from napari_sam2.windows import window_choices, window_for

if TYPE_CHECKING:
    from napari_sam2.widgets.images import Images

_WINDOW_MS = 400
_GIGABYTES = (5, 20, 100)
"""Of image features on disk, to choose from."""
_OTHER_AXES = ("t", "time", "z", "y", "x")  # whose label says that there are no channels
_MOST_CHANNELS = 4  # an axis with more is hardly one of channels, unless its label says so


class Options:
    """Fills the lists of choices for the image that is worked on, and carries them out."""

    def __init__(self, context: Context, marking: Marking, images: Images) -> None:
        self._context = context
        self._marking = marking
        self._images = images
        self._awaited: tuple[Workspace, napari.layers.Labels] | None = None
        """The labels layer that is looked through, before masks of an image are written to it."""
        self._window = QTimer(context)
        self._window.setSingleShot(True)
        self._window.setInterval(_WINDOW_MS)
        self._window.timeout.connect(self._look_up_windows)
        panel = context.panel
        panel.along.activated.connect(self._on_axis_chosen)
        panel.windows.activated.connect(self._on_window_chosen)
        panel.channels.activated.connect(self._on_look_chosen)
        panel.targets.activated.connect(self._on_target_chosen)
        panel.overwrite.clicked.connect(self._on_overwrite)
        self._fill_disk()
        panel.on_disk.activated.connect(self._on_disk_chosen)

    def fill(self) -> None:
        """Show what there is to choose from, and what is chosen."""
        panel, work = self._context.panel, self._context.work
        if work is None:
            return
        self.fill_axes()
        windows = [(text, choice) for choice, text in window_choices(work.session.view).items()]
        panel.show_choices(panel.windows, windows, work.window)
        layers, partners = self._context.viewer.layers, work.look.partners
        looks = _looks(work, layers)
        if partners and work.look not in (look for _, look in looks):
            names = " and ".join(other.name for other in partners)
            is_there = all(other in layers for other in partners)
            looks.append((f"with {names}{'' if is_there else ' (removed)'}", work.look))
        panel.show_choices(panel.channels, looks, work.look)
        targets: list[tuple[str, object]] = [("a new labels layer", NEW_LAYER)]
        targets += [("one layer per object, too", ONE_EACH)]
        targets += [(layer.name, layer) for layer in self._labels_layers(work)]
        given = work.masks.given
        if given is not None and given not in self._labels_layers(work):
            targets.append((f"{given.name} (removed)", given))
        chosen: object = NEW_LAYER if given is None else given
        if self._awaited is not None and self._awaited[0] is work:
            chosen = self._awaited[1]
        panel.show_choices(panel.targets, targets, ONE_EACH if work.masks.has_each else chosen)
        panel.memory.setCurrentIndex(panel.memory.findData(work.session.memory))
        tokens = panel.memory_tokens.findData(work.session.memory_tokens)
        panel.memory_tokens.setCurrentIndex(tokens)
        panel.closely_by_itself.setChecked(work.session.closely)
        panel.overwrite.setChecked(work.session.overwrite)

    def fill_axes(self, *_: object) -> None:
        """Show the sliders that slices can follow each other along, as the axes are rolled now."""
        work, dims = self._context.work, self._context.viewer.dims
        if work is None or dims.ndim < work.image.ndim:
            return
        shape, added = image_shape(work.image), dims.ndim - work.image.ndim
        axes = [
            (f"{dims.axis_labels[axis + added]}: {shape[axis]} slices", axis)
            for axis in work.axes_shown(dims.order)
        ]
        self._context.panel.show_axes(axes, work.session.view.key.axis)

    def close(self) -> None:
        self._window.stop()

    def _on_axis_chosen(self, *_: object) -> None:
        if self._context.work is not None:
            self._context.work.axis = self._context.panel.along.currentData()
            self._images.follow_viewer()

    # -- intensities ---------------------------------------------------------------------------

    def on_contrast(self, *_: object) -> None:
        """The contrast limits have changed; more changes may follow at once."""
        self._window.start()

    def _on_window_chosen(self, *_: object) -> None:
        if self._context.work is not None:
            self._context.work.window = self._context.panel.windows.currentData()
            self._look_up_windows()

    def _look_up_windows(self) -> None:
        """In the background: some have to be read from the image."""
        for work in self._images.known.values():
            look: Callable[[], Windows] = partial(window_for, work.session.view, work.window)
            self._context.runner.request(look, partial(self._set_window, work))

    def _set_window(self, work: Workspace, window: Windows) -> None:
        context = self._context
        if window == work.session.window:
            return
        work.session.window = window
        context.changed.emit()
        if work is not context.work or not work.session.prompts or context.is_running:
            return
        if any(context.frame in frames for frames in work.session.prompts.values()):
            self._marking.preview(context.frame)
        else:
            context.panel.say(
                "The intensities have changed, and with them what SAM 2 sees. "
                "Press Update to bring the masks up to date."
            )

    # -- disk ----------------------------------------------------------------------------------

    def _fill_disk(self) -> None:
        """What was chosen last, unless the environment says how much."""
        try:
            if SETTING not in os.environ:
                allow_gigabytes(float(choices.load().get("gigabytes_on_disk", 0)))
            allowed = allowed_gigabytes()
        except (TypeError, ValueError):  # no number; what uses the setting says so
            allowed = 0.0
        sizes = sorted({*_GIGABYTES, allowed} - {0})
        entries: list[tuple[str, object]] = [("nothing", 0)]
        entries += [(f"image features, {size:g} GB", size) for size in sizes]
        self._context.panel.show_choices(self._context.panel.on_disk, entries, allowed)

    def _on_disk_chosen(self, *_: object) -> None:
        gigabytes = self._context.panel.on_disk.currentData()
        allow_gigabytes(gigabytes)
        choices.remember(gigabytes_on_disk=gigabytes)

    # -- colours -------------------------------------------------------------------------------

    def _on_look_chosen(self, *_: object) -> None:
        context, work = self._context, self._context.work
        look: Look = context.panel.channels.currentData()
        if work is None or look == work.look:
            return
        if look.channels != work.look.channels and work.session.prompted_sequences:
            context.panel.fail("Choose the channels before you mark objects; undo or delete those.")
            self.fill()
            return
        try:
            session = self._images.new_session(work.image, look)
        except ValueError as error:
            context.panel.fail(str(error))
            self.fill()
            return
        if look.channels == work.look.channels:
            state = replace(work.session.snapshot(), window=session.window)
            session.restore(state, trust=False)
        work.look = look
        self._images.replace(work, session)

    # -- labels --------------------------------------------------------------------------------

    def _labels_layers(self, work: Workspace) -> list[napari.layers.Labels]:
        """Those that masks can be written to."""
        mine = [other.labels for other in self._images.known.values() if other.masks.is_own]
        mine += list(work.masks.each.values())
        return [
            layer
            for layer in self._context.viewer.layers
            if isinstance(layer, napari.layers.Labels)
            and layer not in mine
            and not layer.multiscale
            and tuple(layer.data.shape) == work.session.view.shape
        ]

    def _on_target_chosen(self, *_: object) -> None:
        context, work = self._context, self._context.work
        target: Any = context.panel.targets.currentData()
        if work is None:
            return
        self._marking.add_layers()
        self._awaited = None
        masks, layers = work.masks, context.viewer.layers
        if target != ONE_EACH and masks.has_each:
            masks.show_each(False)
        if target == ONE_EACH:
            masks.show_each(True)
        elif target == NEW_LAYER and not masks.is_own:
            context.attempt(partial(masks.write_to, None, layers, self._marking.hooks))
        elif target == NEW_LAYER or target is work.labels:
            pass
        elif context.attempt(partial(masks.check, target)):
            self._look_through(work, target)
        self.fill()
        context.changed.emit()

    def _look_through(self, work: Workspace, layer: napari.layers.Labels) -> None:
        """Find out what ids a layer holds, which takes its time where it is large; then write."""
        context, array = self._context, layer.data

        def done(others: frozenset[int]) -> None:
            if self._awaited != awaited:
                return  # another one has been chosen since
            self._awaited = None
            if work is context.work:
                context.say_what_next()
                if layer in context.viewer.layers and layer.data is array:
                    self._write_to(work, layer, others)
                self.fill()
                context.changed.emit()

        awaited = self._awaited = (work, layer)
        context.panel.say(f"Looking through {layer.name} …")
        context.runner.request(partial(ids_in, array), done)

    def _write_to(
        self, work: Workspace, layer: napari.layers.Labels, others: frozenset[int]
    ) -> None:
        """Objects without marks give way, and get ids that the layer does not hold yet."""
        context, session = self._context, work.session
        waiting: Mapping[int, ObjectInfo] = {}
        if not session.prompted_objects and not session.masks:
            waiting = session.objects
            session.restore(replace(session.snapshot(), objects={}, sequences={}, last_id=0))
        layers, hooks = context.viewer.layers, self._marking.hooks
        context.attempt(partial(work.masks.write_to, layer, layers, hooks, others))
        for object_id, info in waiting.items():
            has_name = info.name != default_name(object_id)
            new = session.add_object(info.name if has_name else "")
            session.edit_object(new, colour=info.colour, hidden=info.hidden, locked=info.locked)
        if waiting:
            session.history.clear()

    def _on_overwrite(self, others: bool) -> None:
        if self._context.session is not None:
            with self._context.in_portions():
                self._context.session.overwrite = others


def _looks(work: Workspace, layers: Any) -> list[tuple[str, Look]]:
    """What the model can see of an image: itself, channels of it, or other images with it."""
    image = work.image
    found = [("as it is", Look())]
    if image.rgb:
        return found
    shape = image_shape(image)
    for axis, size in enumerate(shape):
        label = str(image.axis_labels[axis]).lower()
        is_labelled, is_other = label in ("c", "channel"), label in _OTHER_AXES
        is_free = len(shape) > 2 and axis < len(shape) - 2
        if is_free and size > 1 and (is_labelled or (size <= _MOST_CHANNELS and not is_other)):
            indices = tuple(range(min(size, 3)))
            text = f"axis {image.axis_labels[axis]}: channels 1 to {len(indices)}"
            found.append((text, Look(channels=Channels(axis, indices))))
    others = [
        layer
        for layer in layers
        if isinstance(layer, napari.layers.Image)
        and layer is not image
        and not layer.rgb
        and layer.ndim == image.ndim
        and image_shape(layer) == shape
    ]
    found += [(f"with {other.name}", Look((other,))) for other in others]
    if len(others) > 1:
        names = " and ".join(other.name for other in others[:2])
        found.append((f"with {names}", Look(tuple(others[:2]))))
    return found
