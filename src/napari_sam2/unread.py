"""What is said of slices that could not be read while objects were followed past them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_sam2.session import Session

_NAMED = 5  # slices in a message


class UnreadableSlices(OSError):
    """Slices could not be read and have no new masks, as the message says; all others are done."""

    def __init__(self, message: str, session: Session) -> None:
        super().__init__(message)
        self.session = session
        """With what was found."""


def unreadable_text(unread: Mapping[int, str]) -> str:
    """What to say of frames that were passed over, one or more, and why each was."""
    first, *others = sorted(unread)
    text = f"{unread[first].rstrip('. ')}. "
    if others:
        more = ", ".join(map(str, others[:_NAMED])) + (", …" if len(others) > _NAMED else "")
        text += f"Nor can {len(others)} more: {more}. They have "
    else:
        text += "It has "
    return f"{text}no new masks; the next run tries again."
