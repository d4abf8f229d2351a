"""Marking objects by hand: which tool is in use, and what becomes of a mark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qtpy.QtCore import QTimer

from napari_sam2.label_ids import ids_in
from napari_sam2.prompt_layers import PromptLayers
from napari_sam2.session import Session
from napari_sam2.tasks import Step
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.events import CTRL, Hooks, Keys
from napari_sam2.widgets.panel import BOX, EXCLUDE, INCLUDE, LASSO, PAINT, SCRIBBLE
from napari_sam2.widgets.workspace import Workspace

_AHEAD_MS = 250
_SURE = 0.5
_LAYER_MODES = {
    INCLUDE: "add",
    EXCLUDE: "add",
    BOX: "add_rectangle",
    SCRIBBLE: "add_path",
    LASSO: "add_polygon_lasso",
    PAINT: "paint",
}
_SHAPE_MODES = {
    "add_rectangle": BOX,
    "add_path": SCRIBBLE,
    "add_polyline": SCRIBBLE,
    "add_line": SCRIBBLE,
    "add_polygon_lasso": LASSO,
    "add_polygon": LASSO,
    "add_ellipse": LASSO,
}
_PAINT_MODES = ("paint", "erase", "fill", "polygon")
_ADVICE = {
    INCLUDE: "Click on {}, on any slice.",
    EXCLUDE: "Click where the mask of {} should not be.",
    BOX: "Drag a box tightly around {}, on any slice.",
    SCRIBBLE: "Draw a line along {}; hold Shift to draw along what does not belong to it.",
    LASSO: "Draw freely around {}.",
    PAINT: "Paint {} by hand; press 1 to erase and 2 to paint. What you paint is kept.",
}


class Marking:
    """Takes marks from the layers to the session, and asks for previews."""

    def __init__(self, context: Context, keys: Keys) -> None:
        self._context = context
        self._panel = context.panel
        self._keys = keys
        self.ahead = QTimer(context)
        self.ahead.setInterval(_AHEAD_MS)
        self.ahead.setSingleShot(True)
        self.ahead.timeout.connect(self._look_ahead)
        context.runner.previewed.connect(self._on_preview)
        context.panel.objects.chosen.connect(self._on_chosen)

    @property
    def hooks(self) -> Hooks:
        """Of the layers of the image that is chosen; who marks or paints in them later, while
        another image is chosen, chooses it again.
        """
        work = self._context.work
        assert work is not None

        def here(action: Callable[..., None]) -> Callable[..., None]:
            def act(*_: object) -> None:
                self._choose(work)
                action()

            return act

        return Hooks(
            here(self.take_over_edits),
            here(self._on_stroke),
            self._on_label_selected,
            self.show_mode,
            {key: here(action) for key, action in self._keys.items()},
        )

    def _choose(self, work: Workspace) -> None:
        """Work on the image of the layer that a person works in."""
        now, active = self._context.work, self._context.viewer.layers.selection.active
        is_shared = now is not None and work.labels is not None and work.labels is now.labels
        is_meant = work.shows_in(active) or work.masks.is_replaced
        if now is not work and is_meant and not is_shared:
            self._context.choose(work.image)

    def start(self, mode: str) -> None:
        """Let the person mark the selected object in one of the panel's ways."""
        if self._context.work is None:
            self._context.say_what_next()
            return
        if self._context.is_oblique:
            self.show_mode()
            self._context.refuse_oblique()
            return
        layer = self._layer_for(mode)
        layer.visible = True
        self._panel.mode = mode
        self._context.viewer.layers.selection.active = layer
        layer.mode = _LAYER_MODES[mode]
        self._panel.mode = mode  # the layer's events tell clicks apart from boxes, not their sign
        self.prepare()
        if self._context.viewer.dims.ndisplay == 3 and mode != PAINT:
            self._panel.fail(f"Objects are marked on slices: switch to 2D first ({CTRL}+Y).")
        else:
            self._panel.say(_ADVICE[mode].format(self._context.name()))
        self.ahead.start()

    def press(self, mode: str) -> None:
        """A button of the panel has been pressed; pressed again, a click moves the view."""
        if self._context.panel.modes[mode].isChecked():
            self.start(mode)
        else:
            active: Any = self._context.viewer.layers.selection.active
            if active is not None:
                active.mode = "pan_zoom"

    def show_mode(self, *_: object) -> None:
        """Show in the buttons what a click in the viewer does now."""
        shapes = self._context.shapes
        is_active = shapes is self._context.viewer.layers.selection.active
        if shapes is not None and is_active and not shapes.visible:
            shapes.visible = True
        self._panel.mode = self._mode_of(self._context.viewer.layers.selection.active)
        self.prepare()

    def _layer_for(self, mode: str) -> Any:
        """The layer in which a person marks in this way."""
        prompts = self.add_layers()
        if mode == PAINT:
            return self._context.labels
        return prompts.points if mode in (INCLUDE, EXCLUDE) else prompts.boxes

    def _mode_of(self, active: Any) -> str | None:
        mode = getattr(active, "mode", None)
        if active is self._context.shapes:
            return _SHAPE_MODES.get(str(mode))
        if active is self._context.points and mode == "add":
            return EXCLUDE if self._panel.mode == EXCLUDE else INCLUDE
        return PAINT if active is self._context.labels and mode in _PAINT_MODES else None

    def _on_chosen(self) -> None:
        """There is nothing to exclude from an object that has nothing yet."""
        session, panel = self._context.session, self._panel
        if session is None or panel.mode != EXCLUDE:
            return
        if panel.object_id in session.untouched_objects:
            panel.mode = INCLUDE

    def prepare(self) -> None:
        """Let new marks belong to the selected object."""
        if self._context.work is not None and self._panel.object_id:
            self._context.work.prepare(self._panel.object_id, self._panel.mode == EXCLUDE)

    def add_layers(self) -> PromptLayers:
        """Add the layers of the image that are missing."""
        assert self._context.work is not None
        return self._context.work.add_layers(self._context.viewer.layers, self.hooks)

    def take_over_edits(self, *_: object) -> None:
        """Hand what has changed in the prompt layers to the session, and ask for previews."""
        work, say = self._context.work, self._panel.say
        if work is None:
            return
        self.take_over_strokes()
        edit = work.take_over_edits()
        prompts = work.session.prompts
        for object_id, frame in edit.places:
            name = self._context.name(object_id)
            said = prompts.get(object_id, {}).get(frame)
            if said is not None and self._is_waiting(object_id, frame):
                self._panel.fail(
                    f"{name} is painted, approved or locked on slice {frame}: "
                    "marks wait until that is taken back."
                )
            elif said is not None and not said.usable:
                say(f"Now click on {name} itself, or draw a box.")
            elif object_id not in prompts:
                say(f"{name} has no marks left, so it has no mask.")
            elif said is None:
                say("A mark is gone. Press Update to bring the other slices up to date.")
        frames = {
            frame
            for i, frame in edit.places
            if frame in prompts.get(i, {})
            and prompts[i][frame].usable
            and not self._is_waiting(i, frame)
        }
        for frame in sorted(frames):
            self.preview(frame)
        if edit.refused:
            self._panel.fail(edit.refused)
        if edit.is_outside:
            self._panel.fail("That is not on a slice of the image, so it is not used.")
        if edit.has_leftovers:
            QTimer.singleShot(0, work.remove_leftovers)

    def _is_waiting(self, object_id: int, frame: int) -> bool:
        """Whether a person keeps the mask there, so that marks change nothing now."""
        session = self._context.session
        assert session is not None
        said = session.prompts.get(object_id, {}).get(frame)
        is_painted = said is not None and said.mask is not None
        return is_painted or frame in session.kept(object_id)

    def preview(self, frame: int) -> None:
        """Find the masks of all objects that are marked on a slice, in the background."""
        context = self._context
        assert context.work is not None
        session = context.work.session
        self.add_layers()
        if not context.is_running:
            if not session.model.is_loaded:
                self._panel.say(context.loading())
            elif session.is_encoded(frame):
                self._panel.say(f"Looking at slice {frame} …")
            else:
                self._panel.say(f"Encoding slice {frame}: its first mark takes longer …")
        context.runner.preview(session, frame)

    def _on_preview(self, session: Session, step: Step) -> None:
        if session is not self._context.session or self._context.is_running or not step.masks:
            return
        lost = [object_id for object_id, mask in step.masks.items() if mask is None]
        if lost:
            self._panel.fail(
                f"Nothing found for {self._context.name(lost[0])} on slice {step.frame}. "
                "Click nearer to its middle, or draw a box around it."
            )
            return
        is_sure = all(mask is None or mask.iou >= _SURE for mask in step.masks.values())
        chosen = self._panel.object_id
        is_close = chosen in step.masks and session.area(chosen) is not None
        self._panel.say(
            f"Slice {step.frame} is marked{'' if is_sure else ', but the model is not sure'}. "
            + (
                f"{self._context.name()} is looked at closely: it and what is near it, and nothing "
                "else (see Options). "
                if is_close
                else ""
            )
            + "Correct it with Include and Exclude, or go on with "
            + ("Propagate." if len(session.view) > 1 else "a new object.")
        )
        self.ahead.start()

    def _on_stroke(self, *_: object) -> None:
        """napari tells of some strokes just before it paints them; a plugin gives a new array."""
        if self._context.work is not None:
            self._context.work.masks.has_strokes = True
            QTimer.singleShot(0, self.take_over_strokes)

    def take_over_strokes(self) -> None:
        """Take what was painted by hand as the objects' masks on their slices."""
        context, work = self._context, self._context.work
        if work is None or work.labels is None or not work.masks.has_strokes:
            return
        work.masks.has_strokes = False
        session, labels = work.session, work.labels
        is_flat = context.viewer.dims.ndisplay == 2 and labels.n_edit_dimensions == 2
        frames: Sequence[int] = [context.frame] if is_flat else range(len(session.view))
        painted = {int(labels.selected_label)} if labels.mode != "erase" else set()
        if work.masks.is_replaced:
            frames = self._take_array(work)
            if not frames:
                return
            painted.update(*(ids_in(labels.data[session.view.index(n)]) for n in frames))
        with session.history.change("Paint"):
            if work.masks.is_own:
                for object_id in sorted(painted - {0} - session.objects.keys()):
                    session.add_object(object_id=object_id)
            changed = {i for frame in frames for i in session.take_painting(frame)}
        context.changed.emit()
        if changed:
            then = " Update carries it on." if len(session.view) > 1 else ""
            names = context.names(sorted(changed))
            self._panel.say(f"{names}: painted by hand, and kept so.{then}")
        else:
            self._panel.fail("Locked and approved masks are not painted over. Unlock them first.")

    def _take_array(self, work: Workspace) -> list[int]:
        """The frames that are others in the array that the labels layer was given; says if none."""
        name = work.masks.layer.name if work.masks.layer is not None else ""
        try:
            frames = work.masks.take_array()
        except ValueError as error:
            self.add_layers()
            self._panel.fail(str(error))
            return []
        if not frames:
            self._panel.say(
                f"{name} keeps its type of numbers, in which it shows the masks. Files are written "
                "in the smallest type that holds them."
            )
        return frames

    def _on_label_selected(self, *_: object) -> None:
        if self._context.labels is not None:
            self._panel.object_id = int(self._context.labels.selected_label)

    def _look_ahead(self) -> None:
        """Encode the slices around the one that is shown, while the person thinks."""
        work = self._context.work
        if work is not None and work.image in self._context.viewer.layers:
            self._context.runner.look_ahead(work.session, self._context.frame)
