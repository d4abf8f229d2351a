"""What a person does with objects: add, delete, merge, lock, approve, undo, take from labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import napari.layers
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QColorDialog

from napari_sam2.areas import CLOSE
from napari_sam2.counted import counted
from napari_sam2.label_masks import LabelMasks, masks_in, names_and_parents
from napari_sam2.session import Session
from napari_sam2.session_base import EDITS
from napari_sam2.slice_data import Keep
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.events import CTRL, call
from napari_sam2.widgets.marking import Marking
from napari_sam2.widgets.panel import INCLUDE

_NAMED = 3  # lost links in a message

End = Literal["first", "last"]
"""Of the slices on which an object is."""
Slices = Literal["largest", "shown", "all"]
"""Of another labels layer."""


class ObjectActions:
    """Calls the session, and says what has happened."""

    def __init__(self, context: Context, marking: Marking) -> None:
        self._context = context
        self._marking = marking
        self._panel = context.panel
        table = context.panel.objects
        table.delete_asked.connect(self.delete)
        table.colour_asked.connect(self.ask_colour)
        table.renamed.connect(lambda i, name: self.edit([i], name=name))
        table.hide_asked.connect(lambda ids, hidden: self.edit(ids, hidden=hidden))
        table.lock_asked.connect(lambda ids, locked: self.edit(ids, locked=locked))
        context.panel.labels_menu.aboutToShow.connect(self._fill_labels_menu)
        context.panel.closely.clicked.connect(self.look_closely)

    def new(self) -> None:
        """Add an object; marks then belong to it."""
        if self._context.session is None:
            return
        object_id = self._context.session.add_object()
        self._context.changed.emit()
        self._panel.object_id = object_id
        self._marking.start(self._panel.mode or INCLUDE)

    def delete(self) -> None:
        """Take away the selected objects with their marks and masks."""
        work = self._context.work
        if work is None or self._context.is_running:
            return
        session, chosen = work.session, self._panel.objects.selected
        names, is_one = self._context.names(chosen), len(chosen) == 1
        with self._changing_many(session, "Delete object" if is_one else "Delete objects"):
            done = [self._context.attempt(partial(session.remove_object, i)) for i in chosen]
            if not session.objects:
                session.add_object()
        self._context.changed.emit()
        if done and all(done):
            self._panel.say(f"{names} deleted. Undo brings {'it' if is_one else 'them'} back.")

    def merge(self) -> None:
        """Make the selected objects one, the first of them."""
        session = self._context.session
        if session is None or self._context.is_running:
            return
        into, *others = self._panel.objects.selected or [0]
        if not others:
            self._panel.fail(f"Select two or more objects first: hold {CTRL} and click on each.")
            return
        with self._changing_many(session, "Merge"):
            done = [self._context.attempt(partial(session.merge_objects, into, i)) for i in others]
        self._context.changed.emit()
        self._panel.object_id = into
        if all(done):
            self._panel.say(f"{len(others) + 1} objects are now {self._context.name(into)}.")

    def look_closely(self, closely: bool) -> None:
        """Whether the selected objects are looked at in an area of their own."""
        session, context = self._context.session, self._context
        if session is None or context.is_running:
            return
        chosen, times = self._panel.objects.selected, CLOSE if closely else None
        looks = partial(session.look_closely, times=times)
        with session.history.change("Look closely" if closely else "Look at whole slices"):
            done = [context.attempt(partial(looks, object_id)) for object_id in chosen]
        context.changed.emit()
        if not all(done):
            return
        if closely and not any(session.area(object_id) for object_id in chosen):
            self._panel.say("These objects are large: there is nothing to be gained.")
        else:
            self._panel.say("Their masks are out of date now: press Update or Propagate.")

    def edit(self, object_ids: Iterable[int], **changes: Any) -> None:
        """Change the name or colour of objects, or whether they are hidden or locked."""
        session = self._context.session
        if session is not None:
            with self._changing_many(session, EDITS[next(iter(changes))]):
                for object_id in object_ids:
                    session.edit_object(object_id, **changes)
            self._context.changed.emit()
            if changes.get("locked") is False:
                self._end_warning()

    def ask_colour(self, object_id: int) -> None:
        """Let the person choose an object's colour in Qt's dialog."""
        work = self._context.work
        if work is None:
            return
        now = QColor.fromRgbF(*(float(part) for part in work.masks.colour_of(object_id)[:3]))
        dialog = QColorDialog(now, self._panel)
        dialog.setWindowTitle(f"Colour of {self._context.name(object_id)}")
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)

        def chosen(colour: QColor) -> None:
            if work is self._context.work and object_id in work.session.objects:
                self.edit([object_id], colour=colour.getRgbF()[:3])

        dialog.colorSelected.connect(chosen)
        dialog.open()

    def keep_slice(self, how: Keep, kept: bool | None = None) -> None:
        """Approve or lock the slice that is shown for the selected object, or take that back.

        kept: whether it is to be kept; by default the opposite of what is.
        """
        session, object_id = self._context.session, self._panel.object_id
        if session is None or not object_id:
            return
        frame = self._context.frame
        now = session.kept(object_id).get(frame)
        if kept is None:
            kept = now != how
        change = "Unlock" if not kept else "Approve" if how == "approved" else "Lock"
        with session.history.change(change):
            if now is not None:
                session.release(object_id, [frame])
            if kept:
                session.keep(object_id, [frame], how)
        self._context.changed.emit()
        self._end_warning()

    def end_here(self, end: End) -> None:
        """Say that the selected object begins ("first") or ends ("last") on the slice that is
        shown, or take that back."""
        session, object_id = self._context.session, self._panel.object_id
        if session is None or not object_id:
            return
        self._marking.take_over_strokes()
        frame, life, name = self._context.frame, session.life(object_id), self._context.name()
        if end == "first":
            verb, where, outermost, is_taken_back = "begins", "before", 0, life.first == frame
            life = life._replace(first=0 if is_taken_back else frame)
        else:
            outermost, is_taken_back = len(session.view) - 1, life.last == frame
            verb, where = "ends", "behind"
            life = life._replace(last=None if is_taken_back else frame)
        if frame == outermost:
            self._panel.fail(f"There are no slices {where} this one.")
        else:
            with self._context.in_portions():
                done = self._context.attempt(partial(session.set_life, object_id, *life))
            if done and is_taken_back:
                self._panel.say(f"Propagate looks for {name} on the slices {where}, too.")
            elif done:
                self._panel.say(
                    f"{name} {verb} on slice {frame}: it has nothing {where}, and Propagate does "
                    "not look for it there."
                )
        self._context.changed.emit()

    def unpaint(self) -> None:
        """Forget what was painted on the slice that is shown, for the selected object."""
        session, object_id = self._context.session, self._panel.object_id
        if session is None or not object_id:
            return
        frame = self._context.frame
        if self._context.attempt(lambda: session.unpaint(object_id, frame)):
            said = session.prompts.get(object_id, {}).get(frame)
            if said is not None and said.usable:
                self._marking.preview(frame)
            else:
                self._panel.say("What was painted here is forgotten. Update finds the mask anew.")
        self._context.changed.emit()

    def undo(self) -> None:
        """Take the last change back."""
        self._travel("Undone", "There is nothing to take back.", Session.undo)

    def redo(self) -> None:
        """Make the change again that was last taken back."""
        self._travel("Done again", "There is nothing to make again.", Session.redo)

    def take_labels(
        self,
        layer: napari.layers.Labels,
        object_ids: Iterable[int] | None = None,
        slices: Slices = "largest",
    ) -> None:
        """Take masks of another labels layer as if painted by hand; read in the background.

        object_ids: which labels; by default all. slices: each one on its "largest" slice, or all
        on the one that is "shown", or on "all".
        """
        work = self._context.work
        if work is None:
            return
        session, view = work.session, work.session.view
        frames = {"largest": None, "shown": [self._context.frame], "all": range(len(view))}

        def done(found: LabelMasks) -> None:
            if session is not self._context.session or view is not session.view:
                self._panel.fail(
                    f"Nothing was taken from {layer.name}: other slices are shown now than when "
                    "you asked for it."
                )
                return
            taken = partial(session.take_masks, found, *names_and_parents(layer))
            with self._context.in_portions():
                is_taken = self._context.attempt(taken)
            if not is_taken:
                return
            self._marking.add_layers()
            self._context.changed.emit()
            ids = found.objects
            if ids:
                self._panel.object_id = ids[0]
                many = counted(len(ids), "object")
                if session.parents.keys() & set(ids):
                    many += " with their parents"
                then = "" if slices == "all" or len(view) == 1 else " Now Propagate."
                self._panel.say(
                    f"{many} taken from {layer.name}.{_lost(session, layer, ids)}{then}"
                )
            else:
                self._panel.fail(f"There is no such label in {layer.name}.")

        self._panel.say(f"Reading {layer.name} …")
        read = partial(masks_in, view, layer, object_ids, frames[slices])
        self._context.runner.request(read, done)

    @contextmanager
    def _changing_many(self, session: Session, change: str) -> Iterator[None]:
        """What is done to objects one after the other is one change, and each slice is written
        once."""
        with (
            self._context.in_portions(),
            session.history.change(change),
            session.writing_together(),
        ):
            yield

    def _end_warning(self) -> None:
        """What was refused before may be possible now."""
        if self._panel.warns:
            self._context.say_what_next()

    def _travel(self, word: str, nothing: str, step: Callable[[Session], str | None]) -> None:
        work = self._context.work
        self._marking.take_over_strokes()
        if work is None or work.is_held:
            return
        is_cut = self._context.runner.running is work.session
        if is_cut:  # else slices would come again that are taken back
            self._context.runner.drop()
        with self._context.in_portions():
            what = step(work.session)
        self._context.changed.emit()
        text = nothing if what is None else f"{word}: {what}."
        self._panel.say(f"{text} Objects are not followed on." if is_cut else text)

    def _fill_labels_menu(self) -> None:
        """The labels layers whose masks may be taken as a start."""
        menu = self._panel.labels_menu
        menu.clear()
        menu.setToolTipsVisible(True)
        for layer in self._context.viewer.layers:
            if not isinstance(layer, napari.layers.Labels) or layer is self._context.labels:
                continue
            only = [int(layer.selected_label)]
            for text, tip, take in (
                ("all objects", "Each one on its largest slice.", (layer,)),
                ("all on this slice", "As they are on this slice.", (layer, None, "shown")),
                ("all on all slices", "As they are, to correct them.", (layer, None, "all")),
                ("selected label", "The label that is selected in that layer.", (layer, only)),
            ):
                action = menu.addAction(f"{layer.name}: {text}")
                assert action is not None
                action.setToolTip(tip)
                action.triggered.connect(partial(call, partial(self.take_labels, *take)))
        if menu.isEmpty():
            nothing = menu.addAction("There is no other labels layer")
            assert nothing is not None
            nothing.setEnabled(False)


def _lost(session: Session, layer: napari.layers.Labels, ids: Iterable[int]) -> str:
    """What to say of parents that a layer gives to those that were taken, and that cannot be."""
    there, (_, parents) = set(ids), names_and_parents(layer)
    lost = [
        f"{session.objects[daughter].name} of {session.objects[parent].name}"
        for daughter, parent in parents.items()
        if {daughter, parent} <= there and session.parents.get(daughter) != parent
    ]
    if not lost:
        return ""
    named = ", ".join(lost[:_NAMED]) + (", …" if len(lost) > _NAMED else "")
    return f" No daughters, for the parent is still there as they begin: {named}."
