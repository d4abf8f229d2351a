"""Has masks found anew by themselves, once a person has corrected an object."""

from __future__ import annotations

from qtpy.QtCore import QTimer

from napari_sam2.session import Session
from napari_sam2.widgets import choices
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.propagation import Propagation

_REST_MS = 300  # more marks may follow at once
_CHOICE = "update_by_itself"


class SelfUpdate:
    """Waits until nothing is under way, then follows the objects that were corrected."""

    def __init__(self, context: Context, propagation: Propagation) -> None:
        self._context = context
        self._propagation = propagation
        self._corrected: set[int] = set()
        self._of: Session | None = None
        self._rest = QTimer(context)
        self._rest.setSingleShot(True)
        self._rest.setInterval(_REST_MS)
        self._rest.timeout.connect(self._begin)
        box = context.panel.update_by_itself
        box.setChecked(bool(choices.load().get(_CHOICE, False)))
        box.clicked.connect(lambda wanted: choices.remember(**{_CHOICE: wanted}))

    def close(self) -> None:
        self._rest.stop()

    def on_objects_changed(self, session: Session) -> None:
        """Something was said of the objects of a session."""
        context = self._context
        if session is not context.session or not context.panel.update_by_itself.isChecked():
            return
        if session is not self._of:
            self._corrected, self._of = set(), session
        if session.history.redo_label is not None:
            self._corrected.clear()  # what was taken back stays so
        else:
            self._corrected |= session.corrected
        if self._corrected:
            self._rest.start()

    def _begin(self) -> None:
        context = self._context
        if context.session is not self._of or not context.panel.update_by_itself.isChecked():
            self._corrected.clear()
        elif context.is_running or context.is_held or context.runner.is_busy:
            self._rest.start()
        elif self._corrected:
            corrected, self._corrected = self._corrected, set()
            self._propagation.update_corrected(corrected)
