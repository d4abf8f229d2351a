"""Looking through what was found: the most doubtful slices first, and what becomes of them."""

from __future__ import annotations

from napari_sam2.review import evidence, next_doubtful
from napari_sam2.session import Session
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.doubt_map import reasons
from napari_sam2.widgets.marking import Marking


class Reviewing:
    """Goes to slices, rejects masks, and takes out what is approved."""

    def __init__(self, context: Context, marking: Marking) -> None:
        self._context = context
        self._marking = marking
        self._panel = context.panel
        self._seen: set[tuple[int, int]] = set()
        self._asked: tuple[Session, int, int, str] | None = None
        """Of which object on which slice the person was asked, and how."""
        self._said = ""
        context.panel.doubts.go_to.connect(self.go_to)
        menu = context.panel.session_menu
        menu.addSeparator()
        entry = menu.addAction("Approved masks as a layer")
        assert entry is not None
        entry.setToolTip("A new labels layer with the approved masks alone, to be saved.")
        entry.triggered.connect(lambda *_: self.copy_approved())
        context.runner.ended.connect(lambda: self._seen.clear())  # masks are others by now
        context.changed.connect(self._show_answer)

    def go_to(self, object_id: int, frame: int) -> None:
        """Select an object, and show a slice."""
        self._panel.object_id = object_id
        self._context.go_to(frame)

    def next_doubtful(self) -> None:
        """Go to the most doubtful slice that was not looked at since the last propagation."""
        session = self._context.session
        if session is None:
            return
        self._marking.take_over_strokes()
        place = next_doubtful(session, self._seen)
        if place is None:
            more = "any more; press again to begin anew" if self._seen else "yet"
            self._seen.clear()
            self._panel.say(f"There is no slice to look at {more}.")
            return
        self._seen.add(place)
        self.go_to(*place)
        object_id, frame = place
        why = reasons(evidence(session, object_id), frame)
        self._said = (
            f"{self._context.name(object_id)}, slice {frame}: {why}. Approve it (Y), correct it, "
            "or reject it (R); if the object has ended before, press T on its last slice."
        )
        self._asked = session, object_id, frame, self._said
        self._panel.say(self._said)

    def reject(self) -> None:
        """Say that the mask of the selected object is wrong on the slice that is shown."""
        session, object_id = self._context.session, self._panel.object_id
        if session is None or not object_id:
            return
        self._marking.take_over_strokes()
        frame = self._context.frame
        if self._context.attempt(lambda: session.reject(object_id, [frame])):
            self._panel.say(
                f"The mask of {self._context.name()} on slice {frame} is rejected. Update finds it "
                "again, from the slices before and behind, which are locked as they are."
            )
        self._context.changed.emit()

    def _show_answer(self) -> None:
        """As long as the question stands there: say that it is answered, or ask it again."""
        if self._asked is None or self._panel.status.text() != self._said:
            return
        session, object_id, frame, question = self._asked
        if session is not self._context.session or object_id not in session.objects:
            return
        how = session.kept(object_id).get(frame)
        name = self._context.name(object_id)
        answer = f"{name} is {how} on slice {frame}. Next doubtful slice (Q)."
        self._said = question if how is None else answer
        self._panel.say(self._said)

    def copy_approved(self) -> None:
        """Add a labels layer with the approved masks and no others, to be saved as any layer."""
        work = self._context.work
        if work is None:
            return
        layer = work.masks.approved()
        if layer is None:
            self._panel.fail("No mask is approved yet: approve slices first (Y).")
            return
        active = self._context.viewer.layers.selection.active
        self._context.viewer.add_layer(layer)
        self._context.viewer.layers.selection.active = active
        self._panel.say("The new layer holds approved masks alone. Save it with File > Save.")
