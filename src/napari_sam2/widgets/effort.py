"""How long a person works on each object."""

from __future__ import annotations

from time import monotonic

from napari_sam2.session import Session
from napari_sam2.widgets.context import Context

_PAUSE = 60.0  # seconds without a sign of the person, after which the work was interrupted


class Effort:
    """Tells the session the time between two signs of a person: marks, slices, objects chosen.

    It belongs to the object that was selected. Waiting for a propagation does not count.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._last = monotonic()
        self._on: tuple[Session, int] | None = None
        context.changed.connect(self.note)
        context.panel.objects.chosen.connect(self.note)

    def note(self, *_: object) -> None:
        """The person has done something."""
        now = monotonic()
        passed, self._last = now - self._last, now
        if self._on is not None and passed <= _PAUSE and not self._context.is_running:
            session, object_id = self._on
            if object_id in session.objects:
                session.spend(object_id, passed)
        here, chosen = self._context.session, self._context.panel.object_id
        self._on = None if here is None or not chosen else (here, chosen)
