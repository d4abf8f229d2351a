"""Frames that cannot be read; without torch, for those that only tell of them."""

from __future__ import annotations

FAILURES_IN_A_ROW = 5
"""So many frames that cannot be read raise the question whether any can be read any more."""


class UnreadableFrame(OSError):
    """A frame that could not be had from where it is kept. The message is what was said of it."""

    def __init__(self, frame: int, message: str) -> None:
        super().__init__(message)
        self.frame = frame
