"""The dock widget "SAM 2": it shows a session, and has the model work on it in a thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari.layers
import napari.viewer
import numpy as np
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import QVBoxLayout, QWidget

from napari_sam2.sequence_view import SequenceKey
from napari_sam2.session import LazyModel, Session, Step, Task
from napari_sam2.widgets.panel import BOX, EXCLUDE, INCLUDE, Panel
from napari_sam2.widgets.worker import Worker
from napari_sam2.widgets.workspace import Connections, Workspace

if TYPE_CHECKING:
    from sam2_engine.model import SAM2

_POLL_MS = 15
_REFRESH_MS = {2: 30, 3: 300}  # by the number of displayed axes; a volume is slow to show
_COUNT_MS = 300
_CONTRAST_MS = 400
_SURE = 0.5
_FIRST_STEPS = 3  # say little of the time that is left


class SAM2Widget(QWidget):
    """Click on an object or draw a box around it, and follow it through the slices."""

    def __init__(
        self, viewer: napari.viewer.Viewer, model: SAM2 | str = "nano", device: str = "auto"
    ) -> None:
        """model: the name that is chosen to begin with, or a loaded model."""
        super().__init__()
        self._viewer = viewer
        self._model = LazyModel(model, device)
        self._work: Workspace | None = None
        self._known: dict[napari.layers.Image, Workspace] = {}
        self._worker = Worker()
        self._events = Connections()
        self._running: Session | None = None
        self._first_step = 0.0  # when it came, by the clock
        self._is_docked = False

        self.panel = Panel()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.panel)
        layout.addStretch(1)
        self._connect_panel()

        self._poll = self._timer(self._deliver, _POLL_MS)
        self._refresh = self._timer(self._refresh_labels, once=True)
        self._count = self._timer(self._show_objects, _COUNT_MS, once=True)
        self._contrast = self._timer(self._on_contrast_settled, _CONTRAST_MS, once=True)
        # Qt may destroy the widget without closing it; what outlives it must let go of it then.
        self.destroyed.connect(partial(_let_go, self._worker, self._events, self._known))

        layers, dims = viewer.layers.events, viewer.dims.events
        self._events.connect(layers.removed, self._on_layer_removed)
        for emitter in (layers.inserted, layers.removed, layers.reordered, layers.renamed):
            self._events.connect(emitter, self._fill_images)
        self._events.connect(viewer.layers.selection.events.active, self._show_mode)
        for emitter in (dims.order, dims.ndisplay, dims.point):
            self._events.connect(emitter, self._on_dims)

        self._look_for_models()
        self._load_model()
        self._fill_images()

    # -- for people, scripts and tests ---------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """The session of the chosen image; None without an image."""
        return self._work.session if self._work else None

    @property
    def points_layer(self) -> napari.layers.Points | None:
        """Where clicks are placed; None before the first prompt."""
        return self._work.prompts.points if self._work and self._work.prompts else None

    @property
    def boxes_layer(self) -> napari.layers.Shapes | None:
        """Where boxes are drawn; None before the first prompt."""
        return self._work.prompts.boxes if self._work and self._work.prompts else None

    @property
    def labels_layer(self) -> napari.layers.Labels | None:
        """Where the masks are shown; None before the first prompt."""
        return self._work.labels if self._work else None

    @property
    def is_busy(self) -> bool:
        """Whether the model is at work, or its results are not yet shown."""
        return self._worker.is_busy

    def choose_image(self, image: napari.layers.Image) -> None:
        """Work on an image layer of the viewer."""
        index = self.panel.images.findData(image)
        if index < 0:
            raise ValueError(f"{image.name} is no image layer of this viewer.")
        self.panel.images.setCurrentIndex(index)

    def start(self, mode: str) -> None:
        """Let the person place prompts of the selected object: "include", "exclude" or "box"."""
        if self._work is None:
            self._say_what_next()
            return
        prompts = self._add_layers(self._work)
        layer = prompts.boxes if mode == BOX else prompts.points
        layer.visible = True
        self.panel.mode = mode
        self._viewer.layers.selection.active = layer
        layer.mode = "add_rectangle" if mode == BOX else "add"
        self.panel.mode = mode  # the layer's events tell clicks apart from boxes, not their sign
        self._prepare()
        if self._viewer.dims.ndisplay == 3:
            self.panel.fail("Prompts are placed on slices: switch the viewer to 2D first (Ctrl+Y).")
        elif mode == BOX:
            self.panel.say(f"Drag a box tightly around {self._name()}, on any slice.")
        elif mode == EXCLUDE:
            self.panel.say(f"Click where the mask of {self._name()} should not be.")
        else:
            self.panel.say(f"Click on {self._name()}, on any slice.")

    def new_object(self) -> None:
        """Add an object; prompts then belong to it."""
        if self._work is None:
            return
        object_id = self._work.session.add_object()
        self._show_objects()
        self.panel.object = object_id
        self.start(self.panel.mode if self.panel.mode in (INCLUDE, BOX) else INCLUDE)

    def delete_object(self) -> None:
        """Take away the selected object with its prompts and its mask."""
        object_id = self.panel.object
        if self._work is None or not object_id or self._is_running:
            return
        name = self._name()
        if self._work.prompts:
            self._work.prompts.remove_object(object_id)
        self._work.session.remove_object(object_id)
        if not self._work.session.objects:
            self._work.session.add_object()
        self._show_objects()
        self.panel.say(f"{name} is deleted.")

    def propagate(self) -> None:
        """Follow all objects with prompts through the slices, in the background."""
        if self._work is None or self._is_running:
            return
        work, session = self._work, self._work.session
        task = session.task(direction=self.panel.direction.currentData())
        if not task.anchors:
            self.panel.fail(
                "There is no prompt yet to start from: click on an object or draw a box around it."
            )
            return
        self._add_layers(work)
        self._running = session
        self.panel.show_progress(0, 0)
        self.panel.say("Following the objects …" if self._model.is_loaded else self._loading())
        self._worker.run(
            lambda: session.compute_propagation(task),
            each=lambda step: self._on_step(session, task, step),
            done=lambda stopped: self._on_run_done(session, task, stopped),
            failed=self._on_run_failed,
        )
        self._begin()

    def stop(self) -> None:
        """End the propagation after the slice under way; what is done is kept."""
        if self._is_running:
            self._worker.cancel()
            self.panel.stop.setEnabled(False)
            self.panel.say("Stopping after this slice …")

    def shut_down(self) -> None:
        """Let go of the viewer and end the thread; the layers stay as they are."""
        for timer in (self._poll, self._refresh, self._count, self._contrast):
            timer.stop()
        self._work = None
        _let_go(self._worker, self._events, self._known)

    # -- Qt ------------------------------------------------------------------------------------

    def closeEvent(self, event: Any) -> None:
        """Qt's name."""
        self.shut_down()
        super().closeEvent(event)

    def event(self, event: QEvent | None) -> bool:
        """napari takes a widget out of its dock without closing it."""
        if event is not None and event.type() == QEvent.Type.ParentChange:
            was_docked, self._is_docked = self._is_docked, self.parent() is not None
            if was_docked and not self._is_docked:
                self.shut_down()
        return bool(super().event(event))

    @property
    def _is_running(self) -> bool:
        return self._running is not None

    def _timer(self, action: Callable[[], None], interval: int = 0, once: bool = False) -> QTimer:
        timer = QTimer(self)
        timer.setInterval(interval)
        timer.setSingleShot(once)
        timer.timeout.connect(action)
        return timer

    def _connect_panel(self) -> None:
        panel = self.panel
        panel.models.addItem(Path(self._model.name).name, self._model.name)
        panel.devices.setCurrentIndex(panel.devices.findData(self._model.device))
        panel.images.currentIndexChanged.connect(self._on_image_chosen)
        panel.models.activated.connect(self._on_model_chosen)
        panel.devices.activated.connect(self._on_model_chosen)
        panel.objects.currentRowChanged.connect(self._on_object_chosen)
        panel.new.clicked.connect(lambda: self.new_object())
        panel.delete.clicked.connect(lambda: self.delete_object())
        panel.propagate.clicked.connect(lambda: self.propagate())
        panel.stop.clicked.connect(lambda: self.stop())
        for mode, button in panel.modes.items():
            button.clicked.connect(partial(self._on_mode_button, mode))
        for key, action in self._keys().items():
            shortcut = QShortcut(QKeySequence(key), self)
            shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
            shortcut.activated.connect(action)

    def _keys(self) -> dict[str, Callable[[], None]]:
        """What the keys do, in this widget and in the prompt layers."""
        return {
            "N": self.new_object,
            "I": partial(self.start, INCLUDE),
            "E": partial(self.start, EXCLUDE),
            "B": partial(self.start, BOX),
        }

    # -- images --------------------------------------------------------------------------------

    def _fill_images(self, *_: object) -> None:
        images = [layer for layer in self._viewer.layers if isinstance(layer, napari.layers.Image)]
        combo = self.panel.images
        chosen = combo.currentData()
        combo.blockSignals(True)
        combo.clear()
        for image in images:
            combo.addItem(image.name, image)
        combo.setCurrentIndex(max(0, combo.findData(chosen)) if images else -1)
        combo.blockSignals(False)
        self._on_image_chosen()

    def _on_image_chosen(self, *_: object) -> None:
        image = self.panel.images.currentData()
        if (self._work.image if self._work else None) is image and image is not None:
            return
        self._work = None
        problem = ""
        if image is not None:
            try:
                self._work = self._open(image)
            except ValueError as error:
                problem = str(error)
            self._on_dims()
        self._show_objects()
        self._show_mode()
        self._say_what_next()
        if problem:
            self.panel.fail(problem)

    def _open(self, image: napari.layers.Image) -> Workspace:
        if image not in self._known:
            work = Workspace(image, self._model)
            work.session.masks_changed.connect(self._on_masks_changed)
            work.session.objects_changed.connect(self._show_objects)
            work.image_events.connect(image.events.contrast_limits, self._on_contrast)
            work.image_events.connect(image.events.data, self._on_image_data)
            self._known[image] = work
        return self._known[image]

    def _on_layer_removed(self, event: Any) -> None:
        layer = event.value
        if layer in self._known:
            self._forget_image(layer)
            return
        for work in self._known.values():
            partner = work.forget_layer(layer)
            if partner in self._viewer.layers:
                self._viewer.layers.remove(partner)

    def _on_image_data(self, event: Any) -> None:
        """Other pixels: what is known of the old ones is gone."""
        image, work = event.source, self._known[event.source]
        mine = [work.labels] + ([work.prompts.points] if work.prompts else [])
        was_chosen = self._work is work
        self._forget_image(image)
        for layer in mine:
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)
        if was_chosen:
            self._on_image_chosen()
            self.panel.say(f"{image.name} has changed, so its prompts and masks are removed.")

    def _forget_image(self, image: napari.layers.Image) -> None:
        work = self._known.pop(image)
        work.close()
        if self._running is work.session:
            self._worker.cancel()
        if self._work is work:
            self._work = None

    def _on_contrast(self, *_: object) -> None:
        self._contrast.start()

    def _on_contrast_settled(self) -> None:
        changed = [work for work in self._known.values() if work.update_window()]
        if self._work not in changed or not self._work.session.prompts or self._is_running:
            return
        frame = self._current_frame()
        if any(frame in frames for frames in self._work.session.prompts.values()):
            self._preview(frame)
        else:
            self.panel.say(
                "The contrast has changed, and with it what SAM 2 sees. "
                "Press Propagate to bring the masks up to date."
            )

    # -- the model -----------------------------------------------------------------------------

    def _look_for_models(self) -> None:
        """Find out, in the background, which models and devices there are."""

        def look() -> tuple[list[Any], set[str]]:
            import torch

            from sam2_engine.weights import list_models

            devices = {"auto", "cpu"}
            devices |= {"cuda"} if torch.cuda.is_available() else set()
            devices |= {"mps"} if torch.backends.mps.is_available() else set()
            return list_models(), devices

        self._worker.request(look, lambda found: self._show_models(*found), self._on_failed)
        self._begin()

    def _show_models(self, models: list[Any], devices: set[str]) -> None:
        combo = self.panel.models
        for info in models:
            index = combo.findData(info.name)
            if index < 0:
                combo.addItem(info.name, info.name)
                index = combo.count() - 1
            size = "bundled" if info.repository is None else _size_text(info.size)
            combo.setItemText(index, f"{info.name}, {size}, {info.licence}")
            combo.setItemData(index, info.title, Qt.ItemDataRole.ToolTipRole)
        self.panel.show_devices(devices)

    def _on_model_chosen(self, *_: object) -> None:
        name, device = self.panel.models.currentData(), self.panel.devices.currentData()
        if (name, device) == (self._model.name, self._model.device):
            return
        self._model = LazyModel(name, device)
        for work in self._known.values():
            work.session.model = self._model
        self._load_model()

    def _load_model(self) -> None:
        model = self._model

        def loaded(_: object) -> None:
            if model is not self._model:
                return
            if self._work and self._work.session.prompts:
                self.panel.say(f"{model.name} is ready. Propagate to use it on all slices.")
            else:
                self._say_what_next()

        if not model.is_loaded:
            self.panel.say(self._loading())
        self._worker.request(model.get, loaded, self._on_failed)
        self._begin()

    def _loading(self) -> str:
        return f"Loading the model: {self.panel.models.currentText()} …"

    # -- prompts -------------------------------------------------------------------------------

    def _add_layers(self, work: Workspace) -> Any:
        return work.add_layers(
            self._viewer.layers, self._on_prompts_edited, self._show_mode, self._keys()
        )

    def _on_mode_button(self, mode: str, checked: bool) -> None:
        if checked:
            self.start(mode)
            return
        layer = self.boxes_layer if mode == BOX else self.points_layer
        if layer is not None:
            layer.mode = "pan_zoom"

    def _show_mode(self, *_: object) -> None:
        """Show in the buttons what a click in the viewer does now."""
        active = self._viewer.layers.selection.active
        boxes, points = self.boxes_layer, self.points_layer
        mode = None
        if boxes is not None and boxes is active and boxes.mode == "add_rectangle":
            mode = BOX
        elif points is not None and points is active and points.mode == "add":
            mode = EXCLUDE if self.panel.mode == EXCLUDE else INCLUDE
        self.panel.mode = mode
        self._prepare()

    def _prepare(self) -> None:
        if self._work is not None and self.panel.object:
            self._work.prepare(self.panel.object, self.panel.mode == EXCLUDE)

    def _on_prompts_edited(self, *_: object) -> None:
        """Hand what has changed in the prompt layers to the session, and ask for previews."""
        if self._work is None:
            return
        edit = self._work.take_over_edits()
        prompts = self._work.session.prompts
        for object_id, frame in edit.places:
            said = prompts.get(object_id, {}).get(frame)
            if said is not None and not said.usable:
                self.panel.say(f"Now click on {self._name(object_id)} itself, or draw a box.")
            elif object_id not in prompts:
                self.panel.say(f"{self._name(object_id)} has no prompts left, so it has no mask.")
            elif said is None:
                self.panel.say(
                    "A prompt is gone. Press Propagate to bring the other slices up to date."
                )
        frames = {f for i, f in edit.places if f in prompts.get(i, {}) and prompts[i][f].usable}
        for frame in sorted(frames):
            self._preview(frame)
        if edit.is_outside:
            self.panel.fail("That is not on a slice of the image, so it is not used.")
        if edit.has_leftovers:
            QTimer.singleShot(0, self._work.remove_leftovers)

    def _on_dims(self, *_: object) -> None:
        """The sequence follows the viewer: its slider's axis, and where other sliders are."""
        if self._work is None or self._work.image not in self._viewer.layers:
            return
        points = self.points_layer
        if points is not None and points.mode == "add":
            points.selected_data = set()  # Delete must not take a click that is out of sight
        dims, session = self._viewer.dims, self._work.session
        if dims.ndim < self._work.image.ndim:  # the image is about to go
            return
        key = SequenceKey.of_viewer(self._work.image, dims.order, dims.point)
        if key != session.view.key:
            session.show(key)
            self._on_prompts_edited()
            self._say_what_next()

    def _current_frame(self) -> int:
        """The slice of the session's sequence that the viewer shows."""
        assert self._work is not None
        view = self._work.session.view
        if view.key.axis is None:
            return 0
        here = self._work.image.world_to_data(self._viewer.dims.point)[view.key.axis]
        return int(np.clip(np.rint(here), 0, len(view) - 1))

    # -- previews and propagation --------------------------------------------------------------

    def _preview(self, frame: int) -> None:
        assert self._work is not None
        session = self._work.session
        task = session.task()
        self._add_layers(self._work)
        if not self._is_running:
            ready = self._model.is_loaded
            self.panel.say(f"Looking at slice {frame} …" if ready else self._loading())
        self._worker.request(
            lambda: session.compute_preview(task, frame),
            lambda step: self._on_preview(session, task, step),
            self._on_failed,
            key=(id(session), session.view.key, frame),
        )
        self._begin()

    def _on_preview(self, session: Session, task: Task, step: Step) -> None:
        session.accept(task, step)
        if session is not self.session or self._is_running or not step.masks:
            return
        lost = [object_id for object_id, mask in step.masks.items() if mask is None]
        if lost:
            self.panel.fail(
                f"Nothing found for {self._name(lost[0])} on slice {step.frame}. "
                "Click nearer to its middle, or draw a box around it."
            )
            return
        is_sure = all(mask is None or mask.iou >= _SURE for mask in step.masks.values())
        self.panel.say(
            f"Slice {step.frame} is marked{'' if is_sure else ', but the model is not sure'}. "
            "Correct it with Include and Exclude, or go on with "
            + ("Propagate." if len(session.view) > 1 else "a new object.")
        )

    def _on_step(self, session: Session, task: Task, step: Step) -> None:
        session.accept(task, step)
        if step.done == 1:
            self._first_step = time.monotonic()
        each = (time.monotonic() - self._first_step) / max(1, step.done - 1)
        left = each * (step.total - step.done) if step.done > _FIRST_STEPS else None
        self.panel.show_progress(step.done, step.total, left)
        if step.done == 1 and self.panel.stop.isEnabled():
            self.panel.say(
                "Following the objects; results appear slice by slice. You can look at them "
                "meanwhile, and mark other objects."
            )

    def _on_run_done(self, session: Session, task: Task, stopped: bool) -> None:
        self._end_run()
        if session is not self.session:
            return
        if stopped:
            self.panel.say("Stopped. The slices done so far are kept.")
            return
        found = [
            f"{self._name(i)} is on {len(session.masks.get(i, ()))} of {len(task.view)} slices"
            for i in task.anchors
        ]
        self.panel.say(
            f"Done: {'; '.join(found[:3])}{'; …' if len(found) > 3 else ''}. Where a slice is "
            "wrong, click there to correct it, then propagate again."
        )

    def _on_run_failed(self, error: Exception) -> None:
        self._end_run()
        self._on_failed(error)

    def _end_run(self) -> None:
        self._running = None
        self._show_objects()

    def _on_failed(self, error: Exception) -> None:
        from sam2_engine.weights import WeightsError

        text = str(error).strip()
        if isinstance(error, MemoryError) or "out of memory" in text.lower():
            text = "The memory is full. Choose a smaller model, or run on the processor (CPU)."
        elif not isinstance(error, ValueError | OSError | WeightsError) or not text:
            text = f"Something went wrong ({type(error).__name__}): {text or 'no details'}"
        self.panel.fail(text)

    # -- what it shows -------------------------------------------------------------------------

    def _name(self, object_id: int | None = None) -> str:
        session = self.session
        info = session.objects.get(object_id or self.panel.object) if session else None
        return info.name if info else ""

    def _say_what_next(self) -> None:
        if self._work is None:
            self.panel.say("Open an image (File > Open); it then appears above.")
        elif not self._model.is_loaded and self._worker.is_busy:
            self.panel.say(self._loading())
        elif not self._work.session.prompts and self._work.session.prompted_objects:
            self.panel.say(
                "The objects are marked elsewhere (another axis or position). To follow them "
                "through these slices too, mark them here."
            )
        elif not self._work.session.prompts:
            self.panel.say(
                f"Press Include and click on {self._name()}, or press Box and drag a box around "
                "it, on any slice."
            )
        else:
            self.panel.say("Correct any slice with clicks or a box, or go on with Propagate.")

    def _show_objects(self) -> None:
        work = self._work
        chosen = self.panel.object
        rows = []
        if work is not None:
            prompts, masks = work.session.prompts, work.session.masks
            elsewhere = work.session.prompted_objects
            for object_id, info in work.session.objects.items():
                said = prompts.get(object_id, {}).values()
                count = sum(len(one.points) + (one.box is not None) for one in said)
                slices = len(masks.get(object_id, {}))
                text = f"{_count(count, 'prompt')}, {_count(slices, 'slice')}"
                if not count and object_id in elsewhere:
                    text = "marked in other slices"
                rows.append((object_id, f"{info.name}   {text}", work.colour_of(object_id)))
        self.panel.show_objects(rows)
        if self.panel.object != chosen:
            self._on_object_chosen()
        self._show_controls()

    def _on_object_chosen(self, *_: object) -> None:
        if self._work is None or not self.panel.object:
            return
        if self._work.prompts is not None:
            self._work.prompts.points.selected_data = set()
            self._work.prompts.boxes.selected_data = set()
        if self._work.labels is not None:
            self._work.labels.selected_label = self.panel.object
        self._prepare()

    def _show_controls(self) -> None:
        panel, is_free = self.panel, not self._is_running
        for combo in (panel.images, panel.models, panel.devices, panel.direction):
            combo.setEnabled(is_free)
        for button in (panel.new, *panel.modes.values()):
            button.setEnabled(self._work is not None)
        panel.delete.setEnabled(self._work is not None and is_free)
        is_sequence = self._work is not None and len(self._work.session.view) > 1
        panel.propagate.setEnabled(is_sequence and is_free)
        panel.propagate.setToolTip(
            "Follow all objects with prompts through the slices."
            if is_sequence or self._work is None
            else "This image has one slice; its masks are there as soon as it has prompts."
        )
        panel.stop.setEnabled(self._is_running)
        panel.progress.setVisible(self._is_running)

    def _on_masks_changed(self, index: tuple[int | slice, ...]) -> None:
        """Show a slice of the labels that has changed, unless the viewer shows another one."""
        if self._work is None:
            return
        if not self._count.isActive():
            self._count.start()
        axis = self._work.session.view.key.axis
        ndisplay = self._viewer.dims.ndisplay
        if ndisplay == 2 and axis is not None:
            changed = index[axis]
            if isinstance(changed, int) and changed != self._current_frame():
                return
        if not self._refresh.isActive():
            self._refresh.start(_REFRESH_MS[ndisplay])

    def _refresh_labels(self) -> None:
        if self.labels_layer is not None:
            self.labels_layer.refresh()

    # -- the thread ----------------------------------------------------------------------------

    def _begin(self) -> None:
        self._poll.start()
        self._show_controls()

    def _deliver(self) -> None:
        self._worker.deliver()
        if self._model.downloaded is not None:
            done, total = self._model.downloaded
            of_all = "" if total is None else f" of {_size_text(total)}"
            self.panel.say(f"Downloading {self._model.name}: {_size_text(done)}{of_all} …")
        if not self._worker.is_busy:
            self._poll.stop()
            self._show_objects()


def _let_go(worker: Worker, events: Connections, known: dict[Any, Workspace], *_: object) -> None:
    """End what would outlive the widget: the thread, and callbacks on the viewer's events."""
    worker.close()
    events.disconnect_all()
    for work in known.values():
        work.close()
    known.clear()


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _size_text(size: int | None) -> str:
    """Bytes, for people."""
    if size is None:
        return "download"
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
