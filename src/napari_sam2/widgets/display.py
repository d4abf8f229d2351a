"""What the widget shows of the session: objects, slices, masks, and what can be done."""

from __future__ import annotations

import time
from collections.abc import Hashable

from qtpy.QtCore import QTimer

from napari_sam2.review import Evidence, evidence
from napari_sam2.session import Session
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.facts import object_rows, slice_states
from napari_sam2.widgets.slice_strip import SliceStates

_REFRESH_MS = 30
_REFRESH_SHARE = 0.2  # of the time may go into showing labels; a volume takes long in 3D
_FACTS_MS = 300
_FACTS_SHARE = 0.2
_DOUBTS_MS = 200
_DOUBTS_SHARE = 0.1
_DOUBTS_SECONDS = 0.02
"""At a time; there may be hundreds of objects."""


class Display:
    """Shows changes soon, and many of them at once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._panel = context.panel
        self._evidence: dict[int, tuple[Hashable, Evidence]] = {}
        self._evidence_of: object = None
        self._waiting: list[int] = []
        self._refresh = QTimer(context)
        self._facts = QTimer(context)
        self._doubts = QTimer(context)
        for timer, action, interval in (
            (self._refresh, self._refresh_labels, _REFRESH_MS),
            (self._facts, self.show, _FACTS_MS),
            (self._doubts, self._show_doubts, _DOUBTS_MS),
        ):
            timer.setSingleShot(True)
            timer.setInterval(interval)
            timer.timeout.connect(action)
        context.changed.connect(self.show)

    def close(self) -> None:
        self._refresh.stop()
        self._facts.stop()
        self._doubts.stop()

    def show(self) -> None:
        """Everything as it is now."""
        self._facts.stop()
        begin = time.perf_counter()
        work, table = self._context.work, self._panel.objects
        if work is None:
            table.show_rows([])
        else:
            table.show_rows(object_rows(work.session, work.masks.colour_of))
            work.show_colours()
        self.show_slice(new_states=True)
        self._show_controls()
        if not self._doubts.isActive():
            self._doubts.start()
        took = 1000 * (time.perf_counter() - begin)
        self._facts.setInterval(max(_FACTS_MS, round(took / _FACTS_SHARE)))

    def show_slice(self, new_states: bool = False) -> None:
        """What is known of the selected object, and where the viewer is."""
        self._show_closely()
        panel, work = self._panel, self._context.work
        if work is None or not panel.object_id:
            panel.strip.show_states(SliceStates(), 0)
            panel.doubts.show_place(0, 0)
            panel.show_slice("", SliceStates(), 0)
            return
        frame, states = self._context.frame, panel.strip.states
        if new_states or len(states.flags) != len(work.session.view):
            states = slice_states(work.session, panel.object_id, work.masks.colour_of)
        panel.strip.show_states(states, frame)
        panel.doubts.show_place(panel.object_id, frame)
        closely = ", looked at closely" if panel.closely.isChecked() else ""
        panel.show_slice(f"Slice {frame}: {states.text(frame)}{closely}", states, frame)

    def settle(self) -> None:
        """Nothing is under way any more: show also what takes longer."""
        labels = self._context.labels
        if labels is not None:
            labels.refresh()  # with its thumbnail
        self.show()

    def on_objects_changed(self) -> None:
        """Several changes in a row are shown together."""
        if not self._facts.isActive():
            self._facts.start()

    def on_masks_changed(self, index: tuple[int | slice, ...]) -> None:
        """Show a slice of the labels that has changed, unless the viewer shows another one."""
        self.on_objects_changed()
        work = self._context.work
        if work is None:
            return
        axis = work.session.view.key.axis
        if self._context.viewer.dims.ndisplay == 2 and axis is not None:
            changed = index[axis]
            if isinstance(changed, int) and changed != self._context.frame:
                return
        if not self._refresh.isActive():
            self._refresh.start()

    def _refresh_labels(self) -> None:
        work = self._context.work
        if work is None:
            return
        begin = time.perf_counter()
        work.masks.refresh()
        took = 1000 * (time.perf_counter() - begin)
        self._refresh.setInterval(max(_REFRESH_MS, round(took / _REFRESH_SHARE)))

    def _show_doubts(self) -> None:
        begin = time.perf_counter()
        session = self._context.session
        sequence = None if session is None else (session, session.view.key)
        if sequence != self._evidence_of:
            self._evidence, self._waiting, self._evidence_of = {}, [], sequence
        if session is None or len(session.view) < 2:
            self._panel.doubts.show_evidence({}, {})
            return
        self._find_evidence(session)
        infos = {i: info for i, info in session.objects.items() if i in self._evidence}
        known = {i: self._evidence[i][1] for i in infos}
        self._panel.doubts.show_evidence(known, {i: info.name for i, info in infos.items()})
        took = 1000 * (time.perf_counter() - begin)
        self._doubts.setInterval(max(_DOUBTS_MS, round(took / _DOUBTS_SHARE)))
        if self._waiting:
            self._doubts.start()

    def _find_evidence(self, session: Session) -> None:
        """Of objects that have changed: of one and, for a short while, of more; the others wait.

        All that wait have their turn before what has changed meanwhile.
        """
        if not self._waiting:
            before = {i: revision for i, (revision, _) in self._evidence.items()}
            changed = [i for i in session.objects if before.get(i) != session.revision(i)]
            self._waiting = changed[::-1]
        stop = time.perf_counter() + _DOUBTS_SECONDS
        while self._waiting:
            object_id = self._waiting.pop()
            if object_id in session.objects:
                found = evidence(session, object_id)
                self._evidence[object_id] = session.revision(object_id), found
            if time.perf_counter() > stop:
                break

    def _show_closely(self) -> None:
        """Whether the selected object is looked at in an area of its own."""
        session, object_id = self._context.session, self._panel.object_id
        is_close = bool(
            session and object_id in session.objects and session.area(object_id) is not None
        )
        self._panel.closely.setChecked(is_close)

    def _show_controls(self) -> None:
        panel, session = self._panel, self._context.session
        is_free, is_there = not self._context.is_running, session is not None
        is_sequence = session is not None and len(session.view) > 1
        is_chosen = is_sequence and bool(panel.object_id)
        for widgets, enabled in (
            (panel.sources, is_free),
            (panel.tools, is_there),
            (panel.changers, is_there and is_free),
            (panel.keepers, is_chosen),
            (panel.starters, is_sequence and is_free),
        ):
            for widget in widgets:
                widget.setEnabled(enabled)
        if is_free and panel.stop.hasFocus():
            panel.propagate.setFocus()  # Qt would go on to Undo
        panel.stop.setEnabled(not is_free)
        panel.progress.setVisible(not is_free)
        panel.show_limits(len(session.view) - 1 if session is not None else 0)
        history = session.history if session is not None else None
        panel.show_history(
            None if history is None else history.undo_label,
            None if history is None else history.redo_label,
        )
