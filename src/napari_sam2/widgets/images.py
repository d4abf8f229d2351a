"""Which image is worked on, and what becomes of its session when layers change."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import napari.layers
from napari.utils.notifications import show_warning
from qtpy.QtCore import QObject, QTimer, Signal

from napari_sam2.session import Session
from napari_sam2.widgets import choices
from napari_sam2.widgets.canvas import remove_layers
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.display import Display
from napari_sam2.widgets.marking import Marking
from napari_sam2.widgets.options import Options
from napari_sam2.widgets.self_update import SelfUpdate
from napari_sam2.widgets.session_files import SessionFiles
from napari_sam2.widgets.workspace import Look, Workspace

_END_AFTER = 10


class Images(QObject):
    """Keeps a workspace for every image that was chosen, as long as the image is there."""

    autosave_failed = Signal(str)
    """Why a session cannot be saved by itself; comes from another thread."""

    def __init__(
        self, context: Context, marking: Marking, display: Display, self_update: SelfUpdate
    ) -> None:
        super().__init__(context)
        self._context = context
        self._marking = marking
        self._display = display
        self._self_update = self_update
        self.known: dict[napari.layers.Image, Workspace] = {}
        self._options = Options(context, marking, self)
        self.files = SessionFiles(context, self)
        self.autosave_failed.connect(self._on_autosave_failed)
        panel = context.panel
        panel.images.currentIndexChanged.connect(self._on_chosen)
        panel.end_after.setValue(int(choices.load().get("end_after", _END_AFTER)))
        panel.end_after.valueChanged.connect(self._on_end_after)
        panel.memory.activated.connect(self._on_memory)
        chosen = panel.memory_tokens.findData(choices.load().get("memory_tokens", "all"))
        panel.memory_tokens.setCurrentIndex(max(chosen, 0))
        panel.memory_tokens.activated.connect(self._on_memory_tokens)
        panel.closely_by_itself.setChecked(bool(choices.load().get("closely", True)))
        panel.closely_by_itself.clicked.connect(self._on_closely)
        context.models.changed.connect(self._on_model_changed)

    def fill(self, *_: object) -> None:
        """List the images of the viewer."""
        layers, combo = self._context.viewer.layers, self._context.panel.images
        images = [layer for layer in layers if isinstance(layer, napari.layers.Image)]
        entries = [(image.name, image) for image in images]
        self._context.panel.show_choices(combo, entries, combo.currentData())
        self._on_chosen()
        self._options.fill()

    def follow_viewer(self, *_: object) -> None:
        """Take the sequence that the viewer shows: its slider's axis, and where others are."""
        context, work = self._context, self._context.work
        if work is None or work.image not in context.viewer.layers:
            return
        if context.points is not None and context.points.mode == "add":
            context.points.selected_data = set()  # Delete must not take a click out of sight
        dims, session = context.viewer.dims, work.session
        if dims.ndim < work.image.ndim:  # the image is about to go
            return
        work.follow_display(dims.ndisplay)
        key = work.key_shown(dims.order, dims.point)
        if key != session.view.key:
            session.show(key)
            self._options.fill_axes()
            self._marking.take_over_edits()
            context.say_what_next()
        self._display.show_slice()
        if context.panel.mode is not None:
            self._marking.ahead.start()

    def on_removed(self, event: Any) -> None:
        """A layer has been removed from the viewer."""
        layer, layers = event.value, self._context.viewer.layers
        if layer in self.known:
            self._forget(layer)
            return
        for work in self.known.values():
            partner = work.forget_layer(layer)
            if partner in layers.selection:  # napari may be about to remove it, too
                QTimer.singleShot(0, partial(remove_layers, layers, [partner]))
            else:
                remove_layers(layers, [partner])

    def adopt(self, work: Workspace, recovered: Path | None = None) -> None:
        """Listen to a workspace, and take it for its image's.

        recovered: the file that its session has been recovered from, and that is saved to again.
        """
        work.follow_display(self._context.viewer.dims.ndisplay)
        work.start_autosave(recovered, self.autosave_failed.emit)
        work.events.connect(work.session.masks_changed, self._display.on_masks_changed)
        changed, updates = work.session.objects_changed, self._self_update.on_objects_changed
        work.events.connect(changed, self._display.on_objects_changed)
        work.events.connect(changed, partial(updates, work.session))
        work.events.connect(changed, partial(self._show_at_first, work))
        for seen in (work.image, *work.look.partners):
            # Not the method: another image's callback on the same layer would count as this one.
            work.events.connect(seen.events.contrast_limits, partial(self._options.on_contrast))
            work.events.connect(seen.events.data, partial(self._on_data, work))
        self.known[work.image] = work

    def _show_at_first(self, work: Workspace) -> None:
        """What a script says of objects is seen at once, as what is marked by hand."""
        is_seen = work.has_been_shown or work is not self._context.work
        if not is_seen and not work.session.is_empty:
            self._marking.add_layers()

    def close(self) -> None:
        self._options.close()
        self._context.work = None

    def _on_chosen(self, *_: object) -> None:
        context, image = self._context, self._context.panel.images.currentData()
        if (context.work.image if context.work else None) is image and image is not None:
            return
        context.work = None
        problem = ""
        if image is not None:
            try:
                if image not in self.known:
                    self.adopt(Workspace(image, self.new_session(image)))
                context.work = self.known[image]
                self.files.look_for_recovery(context.work)
            except ValueError as error:
                problem = str(error)
            self.follow_viewer()
        self._options.fill()
        selected = 0 if context.work is None else context.work.object_id
        context.changed.emit()
        context.panel.object_id = selected
        self._put_tool_away()
        self._marking.show_mode()
        context.say_what_next()
        if problem:
            context.panel.fail(problem)

    def _put_tool_away(self) -> None:
        """A click must not mark another image than the one that is chosen now."""
        active: Any = self._context.viewer.layers.selection.active
        now = self._context.work
        is_own = now is not None and now.shows_in(active)
        if not is_own and any(work.shows_in(active) for work in self.known.values()):
            active.mode = "pan_zoom"

    def new_session(self, image: napari.layers.Image, look: Look | None = None) -> Session:
        """A session of an image, by itself or with what is seen together with it."""
        look = look or Look()
        return Session(
            [image, *look.partners] if look.partners else image,
            self._context.models.model,
            channels=look.channels,
            end_after=self._context.panel.end_after.value() or None,
            memory=self._context.panel.memory.currentData(),
            memory_tokens=self._context.panel.memory_tokens.currentData(),
            closely=self._context.panel.closely_by_itself.isChecked(),
        )

    def replace(
        self, work: Workspace, session: Session, recovered: Path | None = None
    ) -> Workspace:
        """Go on with another session of the same image, in the same layers of marks and masks."""
        new = Workspace(work.image, session)
        new.window, new.look = work.window, work.look
        new.axis = session.view.key.axis if session.prompted_sequences else work.axis
        is_seen = work.labels is not None or work.prompts is not None
        has_layers = is_seen or not session.is_empty
        was_chosen = self._context.work is work
        old = work.layers
        self._forget(work.image)
        self.adopt(new, recovered)
        if was_chosen:
            self._context.work = new
        remove_layers(self._context.viewer.layers, old)
        if was_chosen:
            if has_layers:
                self._marking.add_layers()
            self._options.fill()
            self.follow_viewer()
            self._context.changed.emit()
        return new

    def _on_data(self, work: Workspace, event: Any) -> None:
        """Other pixels, also of what is seen with the image: marks and masks are kept where they
        still fit."""
        image, changed = work.image, event.source
        was_chosen = self._context.work is work
        parting = ""
        try:
            try:
                session = self.new_session(image, work.look)
            except ValueError:
                if not work.look.partners:
                    raise
                work.look = Look()
                parting = f" {image.name} is seen by itself now."
                session = self.new_session(image)
        except ValueError as error:
            self._forget(image)
            self._on_chosen()
            self._context.panel.fail(str(error))
            return
        is_alike = session.view.shape == work.session.view.shape
        if is_alike:
            state = work.session.snapshot()
            session.restore(replace(state, window=session.window), trust=False)
            text = (
                f"{changed.name} has changed.{parting} Update brings the masks up to date with it."
            )
        elif work.session.is_empty:
            text = f"{image.name} has another shape now."
        else:
            text = f"{image.name} has another shape now, so its marks and masks are gone."
        new = self.replace(work, session)
        if is_alike:
            session.objects_changed.emit()  # so that it is saved for the image as it is now
        elif work.kept is not None:
            text += f" Recover brings them back once it is as it was; they are in {work.kept}."
        elif work.file is not None:
            text += f" They are in {work.file}."
        if was_chosen:
            if not is_alike:
                self.files.look_for_recovery(new)
            self._context.panel.say(text)

    def _forget(self, image: napari.layers.Image) -> None:
        work = self.known.pop(image)
        work.close()
        if self._context.runner.running is work.session:
            self._context.runner.stop()
        if self._context.work is work:
            self._context.work = None

    def _on_autosave_failed(self, text: str) -> None:
        show_warning(f"SAM 2 cannot save the session by itself: {text}")

    def _on_end_after(self, count: int) -> None:
        choices.remember(end_after=count)
        for work in self.known.values():
            work.session.end_after = count or None
        self._context.changed.emit()

    def _on_memory(self, *_: object) -> None:
        for work in self.known.values():
            work.session.memory = self._context.panel.memory.currentData()
        self._context.changed.emit()

    def _on_memory_tokens(self, *_: object) -> None:
        wanted = self._context.panel.memory_tokens.currentData()
        choices.remember(memory_tokens=wanted)
        for work in self.known.values():
            work.session.memory_tokens = wanted
        self._context.changed.emit()

    def _on_closely(self, closely: bool) -> None:
        choices.remember(closely=closely)
        for work in self.known.values():
            work.session.closely = closely

    def _on_model_changed(self) -> None:
        context, model = self._context, self._context.models.model
        is_other = any(work.session.model is not model for work in self.known.values())
        for work in self.known.values():
            work.session.model = model
        context.changed.emit()
        if is_other and context.session is not None and context.session.prompts:
            context.panel.say(f"{model.name} is ready. Update uses it on the slices with masks.")
        elif context.says_loading and not context.is_running:
            context.say_what_next()
