"""The window "Tracks": lineages, proposals of divisions, and tracks changed by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from napari.utils.theme import get_theme
from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QCheckBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QMenu,
    QVBoxLayout,
)

from napari_sam2.divisions import (
    Known,
    Proposal,
    accept_division,
    divide,
    next_division,
    propose,
    reject_division,
)
from napari_sam2.io.writers import write_ctc
from napari_sam2.session import Session
from napari_sam2.tracks import tracks_of, write_tracks
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.docking import ToolWindow, push_button, scrolling
from napari_sam2.widgets.events import CTRL, Connections, call
from napari_sam2.widgets.lineage_view import LineageView
from napari_sam2.widgets.marking import Marking
from napari_sam2.widgets.proposed_files import beside
from napari_sam2.widgets.tracks_layer import TracksLayer

_REFRESH_MS = 200
_REFRESH_SHARE = 0.1  # of the time may go into showing tracks
_SELECT = f"Select objects in the table: hold {CTRL} and click on each."
_WELCOME = f"Next division goes where a cell may divide. {_SELECT}"


class TracksWindow(ToolWindow):
    """It shows the lineages of the session, and calls it."""

    def __init__(self, context: Context, marking: Marking) -> None:
        super().__init__(context.panel, "Tracks and lineages")
        self._context = context
        self._marking = marking
        self._panel = context.panel
        self.layer = TracksLayer(context.viewer.layers)
        self.proposal: Proposal | None = None
        """The one that is shown."""
        self._session: Session | None = None
        self._session_events = Connections()
        self._events = Connections()
        self._refresh = QTimer(self)
        self._refresh.setSingleShot(True)
        self._refresh.setInterval(_REFRESH_MS)
        self._refresh.timeout.connect(self._on_pause)

        self.view = LineageView()
        self._area = scrolling(self.view)
        self._seen = 0
        """The object that was last scrolled to."""
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.status.setMinimumHeight(3 * self.fontMetrics().lineSpacing())
        self.status.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        self.show_layer = QCheckBox("Show tracks in the viewer")
        self.show_layer.setToolTip("A Tracks layer, kept in step with the masks.")
        self.export = push_button("Export", "Write tracks and lineages to a file.")
        self.export.setMenu(self._export_menu())
        self.next = push_button("Next division", "Go where the masks speak for a division.")
        self.accept = push_button("Accept", "It divides here: daughters become objects.")
        self.reject = push_button("Reject", "It does not divide here; it is not proposed again.")
        self.divide = push_button(
            "Divide",
            "The earliest of the selected objects divides into the others. With one selected: its "
            "mask on this slice falls into the daughters.",
        )
        self.link = push_button(
            "Link", "The earlier of two selected objects is the later one's parent."
        )
        self.unlink = push_button("Unlink", "The selected objects have no parent and no daughters.")
        self.cut = push_button("Cut here", "From this slice on, the selected object is a new one.")
        self.join = push_button("Join", "The selected objects are one track, one after the other.")
        self._lay_out()
        self._connect()

    def sizeHint(self) -> QSize:
        """Qt's name."""
        return QSize(430, 420)

    # -- for people, scripts and tests ---------------------------------------------------------

    def open(self) -> None:
        """Show the window, with the tracks that there are now."""
        self.show_tracks()
        self._say(_WELCOME)
        self.present()

    def next_division(self) -> None:
        """Look for divisions in the background, and go to the next one in time."""
        session = self._context.session
        if session is None:
            return
        self._marking.take_over_strokes()
        known, after = Known.of(session), -1 if self.proposal is None else self.proposal.frame
        self._say("Looking for divisions …")

        def done(proposals: list[Proposal]) -> None:
            if session is self._context.session:
                self._show_proposals(proposals, after)

        self._context.runner.request(lambda: propose(known), done)

    def accept_division(self) -> None:
        """Let the object divide as is proposed."""
        proposal = self.proposal
        if proposal is not None:
            self._divide(lambda session: accept_division(session, proposal))

    def reject_division(self) -> None:
        """Have the division not proposed again, and go to the next."""
        session, proposal = self._context.session, self.proposal
        if session is None or proposal is None:
            return
        if self._context.attempt(lambda: reject_division(session, proposal)):
            self._context.changed.emit()
            self.next_division()

    def divide_selected(self) -> None:
        """Let the earliest of the selected objects divide into the others."""
        session = self._context.session
        if session is None:
            return
        chosen = self._by_begin(session)
        if chosen:
            frame, (parent, *daughters) = self._context.frame, chosen
            self._divide(lambda session: divide(session, parent, frame, daughters))

    def link_selected(self) -> None:
        """Make the earlier of two selected objects the parent of the later one."""
        self._change_two(
            lambda session, one, other: session.set_parent(other, one),
            "{other} descends from {one} now.",
        )

    def unlink_selected(self) -> None:
        """Take parents and daughters from the selected objects."""
        session, chosen = self._context.session, self._panel.objects.selected
        if session is None or not chosen:
            return
        if self._attempt(lambda: session.unlink_objects(chosen)):
            self._say("They have no parent and no daughters now. Undo brings these back.")

    def cut_selected(self) -> None:
        """Cut the selected object on the slice that is shown."""
        session, object_id = self._context.session, self._panel.object_id
        if session is None or not object_id:
            return
        made: list[int] = []
        frame = self._context.frame
        if self._attempt(lambda: made.append(session.cut_object(object_id, frame))):
            self._say(
                f"{self._context.name(object_id)} ends before slice {frame}; from there on it is "
                f"{self._context.name(made[0])}."
            )
            self._panel.object_id = made[0]

    def join_selected(self) -> None:
        """Make the selected objects one track, one after the other."""
        self._change_two(
            lambda session, one, other: session.join_objects(one, other),
            "{other} goes on as {one} now.",
        )

    def export_to(self, path: str | Path) -> None:
        """Write the tracks: .csv, .geff, or a folder that ends in _RES."""
        session, labels = self._context.session, self._context.labels
        if session is None:
            return
        self._marking.take_over_strokes()
        try:
            if Path(path).suffix.lower() in (".csv", ".geff"):
                write_tracks(path, session, overwrite=True, is_time=self._is_time(session))
            elif labels is None:
                raise ValueError("There are no masks to write yet.")
            else:
                data, meta = labels.as_layer_data_tuple()[:2]
                if self._is_time(session) and session.view.key.axis == 0:
                    meta["axis_labels"] = ("t", *labels.axis_labels[1:])
                write_ctc(str(path), data, meta)
        except (OSError, ValueError) as error:  # a WriteError is one of these
            self._say(f"⚠ {error}")
        else:
            self._say(f"Written to {Path(path).name}.")

    def shut_down(self) -> None:
        """Let go of the viewer; the layer of tracks goes."""
        self._refresh.stop()
        self._session_events.disconnect_all()
        self._events.disconnect_all()
        self.layer.remove()

    # -- what is shown -------------------------------------------------------------------------

    def show_tracks(self) -> None:
        """Everything as it is now."""
        begin = time.perf_counter()
        work = self._context.work
        self._listen(None if work is None else work.session)
        if work is None:
            self.view.show_tracks([], {}, 1)
            self.layer.remove()
        else:
            tracks = tracks_of(work.session)
            colours = {t.object_id: work.masks.colour_of(t.object_id) for t in tracks}
            self.view.show_tracks(tracks, colours, len(work.session.view))
            self._show_layer()
        self._show_place()
        self._show_state()
        took = 1000 * (time.perf_counter() - begin)
        self._refresh.setInterval(max(_REFRESH_MS, round(took / _REFRESH_SHARE)))

    def _show_layer(self) -> None:
        work = self._context.work
        if work is None or not self.show_layer.isChecked():
            self.layer.remove()
            return
        try:
            self.layer.show(work)
        except ValueError as error:
            self.layer.remove()
            self.show_layer.setChecked(False)
            self._say(f"⚠ {error}")

    def _show_place(self, *_: object) -> None:
        if self._context.work is None:
            return
        object_id, frame = self._panel.object_id, self._context.frame
        self.view.show_place(object_id, frame)
        if object_id != self._seen and self.view.has(object_id):
            self._seen = object_id  # once, so that a person may scroll on
            self.view.resize(self.view.width(), self.view.sizeHint().height())  # Qt would later
            at = self.view.position(object_id, frame).toPoint()
            self._area.ensureVisible(at.x(), at.y())

    def _show_state(self) -> None:
        session = self._context.session
        is_free = session is not None and not self._context.is_running
        for button in (self.divide, self.link, self.unlink, self.cut, self.join):
            button.setEnabled(is_free)
        for button in (self.next, self.export):
            button.setEnabled(session is not None)
        self.accept.setEnabled(is_free and self.proposal is not None)
        self.reject.setEnabled(session is not None and self.proposal is not None)

    def _show_proposals(self, proposals: list[Proposal], after: int) -> None:
        self.view.show_proposals(proposals)
        self.proposal = next_division(proposals, after)
        self._show_state()
        if self.proposal is None:
            self._say("The masks do not speak for any division that is not judged yet.")
            return
        one = self.proposal
        self._go_to(one.parent, one.frame)
        many = "1 division is" if len(proposals) == 1 else f"{len(proposals)} divisions are"
        self._say(
            f"{self._context.name(one.parent)} may divide on slice {one.frame} (score "
            f"{one.score:.2f}): {one.reason}. {many} proposed. Accept or Reject."
        )

    # -- what happens --------------------------------------------------------------------------

    def _divide(self, action: Callable[[Session], list[int]]) -> None:
        session = self._context.session
        if session is None:
            return
        made: list[int] = []
        if not self._attempt(lambda: made.extend(action(session))):
            return
        self.proposal = None
        self.view.show_proposals([])
        self._show_state()
        names = " and ".join(self._context.name(i) for i in made)
        parent = self._context.name(session.parents[made[0]])
        self._panel.object_id = made[0]
        self._say(f"{parent} divides into {names}. Update finds their masks anew where needed.")

    def _change_two(self, action: Callable[[Session, int, int], object], text: str) -> None:
        """Of two selected objects, with the names of both in the text; the earlier one first."""
        session = self._context.session
        if session is None:
            return
        chosen = self._by_begin(session)
        if len(chosen) != 2:
            self._say(f"⚠ This needs two objects. {_SELECT}")
            return
        one, other = chosen
        names = {"one": self._context.name(one), "other": self._context.name(other)}
        if self._attempt(lambda: action(session, one, other)):
            self._say(text.format(**names))

    def _by_begin(self, session: Session) -> list[int]:
        """The selected objects, the earliest first."""
        begins = {i: min(session.masks_of(i), default=0) for i in self._panel.objects.selected}
        return sorted(begins, key=lambda i: (begins[i], i))

    def _attempt(self, action: Callable[[], object]) -> bool:
        """Do what may be refused, unless objects are being followed; say so if it is."""
        if self._context.is_running:
            self._say("⚠ Objects are being followed: wait for that, or press Stop.")
            return False
        self._marking.take_over_strokes()
        try:
            with self._context.in_portions():
                action()
        except ValueError as error:
            self._say(f"⚠ {error}")
            return False
        finally:
            self._context.changed.emit()
        return True

    def _go_to(self, object_id: int, frame: int) -> None:
        self._panel.object_id = object_id
        self._context.go_to(frame)

    def _is_time(self, session: Session) -> bool:
        """Whether frames are time points, as far as the image tells."""
        axis, layers = session.view.key.axis, session.view.layers
        label = str(layers[0].axis_labels[axis]).lower() if layers and axis is not None else ""
        return label not in ("z", "depth")

    def _say(self, text: str) -> None:
        self.status.setText(text)

    def _listen(self, session: Session | None) -> None:
        """Follow the changes of the session that is worked on, and of no other."""
        if session is self._session:
            return
        self._session_events.disconnect_all()
        self._session, self.proposal = session, None
        self.view.show_proposals([])
        self._say(_WELCOME)
        if session is not None:
            for signal in (session.objects_changed, session.masks_changed):
                self._session_events.connect(signal, self._on_changed)

    def _on_changed(self, *_: object) -> None:
        """Several changes in a row are shown together, and none while nobody looks."""
        is_seen = self.isVisible() or self.show_layer.isChecked()
        if is_seen and not self._refresh.isActive():
            self._refresh.start()

    def _on_pause(self) -> None:
        """Not while a person draws, which a new layer would interrupt."""
        if self._context.is_held:
            self._refresh.start()
        else:
            self.show_tracks()

    def _on_removed(self, event: Any) -> None:
        if event.value is self.layer.layer:  # by the person
            self.show_layer.setChecked(False)

    def _on_export(self, kind: str, suffix: str) -> None:
        work = self._context.work
        if work is None:
            return
        name = beside(work.image, suffix)
        chosen, _ = QFileDialog.getSaveFileName(self, f"Export tracks: {kind}", name)
        if chosen:
            self.export_to(chosen if chosen.endswith(suffix) else chosen + suffix)

    def _show_theme(self, *_: object) -> None:
        red, green, blue = get_theme(self._context.viewer.theme).text.as_rgb_tuple(alpha=False)
        self.view.set_ink(QColor(red, green, blue))

    def _connect(self) -> None:
        for button, action in (
            (self.next, self.next_division),
            (self.accept, self.accept_division),
            (self.reject, self.reject_division),
            (self.divide, self.divide_selected),
            (self.link, self.link_selected),
            (self.unlink, self.unlink_selected),
            (self.cut, self.cut_selected),
            (self.join, self.join_selected),
        ):
            button.clicked.connect(partial(call, action))
        self.show_layer.toggled.connect(partial(call, self._show_layer))
        self.view.go_to.connect(self._go_to)
        self._context.changed.connect(self._on_changed)
        self._panel.objects.chosen.connect(self._show_place)
        viewer = self._context.viewer
        self._events.connect(viewer.dims.events.point, self._show_place)
        self._events.connect(viewer.layers.events.removed, self._on_removed)
        self._events.connect(viewer.events.theme, self._show_theme)
        self._show_theme()

    def _export_menu(self) -> QMenu:
        menu = QMenu(self)
        menu.setToolTipsVisible(True)
        for kind, suffix, tip in (
            ("Table", ".csv", "A row for each object and slice: place, size, parent."),
            ("GEFF", ".geff", "The Graph Exchange File Format, which tracking programs read."),
            ("Cell Tracking Challenge", "_RES", "A folder of masks and res_track.txt."),
        ):
            entry = menu.addAction(f"{kind} …")
            assert entry is not None
            entry.setToolTip(tip)
            entry.triggered.connect(partial(call, partial(self._on_export, kind, suffix)))
        return menu

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self)
        self.view.setAccessibleName("Lineages")
        layout.addWidget(self._area, 1)
        for widgets in (
            (self.next, self.accept, self.reject),
            (self.divide, self.link, self.unlink, self.cut, self.join),
            (self.show_layer, self.export),
        ):
            row = QHBoxLayout()
            for widget in widgets:
                row.addWidget(widget)
            layout.addLayout(row)
        layout.addWidget(self.status)
