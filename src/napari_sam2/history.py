"""Undo and redo: a journal of cells that hold immutable values.

Only what has changed is kept: a cell's value before and after, which the journal shares with the
session. So hundreds of steps cost little more than the masks that they replaced.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

V = TypeVar("V")
_LIMIT = 200
_BUDGET = 256 << 20  # bytes


class Cells(Generic[V]):
    """A table of immutable values: place -> frame -> value. Every change goes to the history."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._values: dict[Hashable, dict[int, V]] = defaultdict(dict)
        self._revisions: Counter[Hashable] = Counter()

    def at(self, place: Hashable) -> Mapping[int, V]:
        """Frame -> value of one place."""
        return self._values.get(place, {})

    def get(self, place: Hashable, frame: int) -> V | None:
        return self._values.get(place, {}).get(frame)

    def set(self, place: Hashable, frame: int, value: V | None) -> None:
        """Change a cell; None empties it."""
        before = self.get(place, frame)
        if before is not value:
            self._history.note(self, place, frame, before, value)
            self.put(place, frame, value)

    def put(self, place: Hashable, frame: int, value: V | None) -> None:
        """Change a cell without a note of it: to undo, and to load."""
        self._revisions[place] += 1
        if value is not None:
            self._values[place][frame] = value
        elif place in self._values:
            self._values[place].pop(frame, None)
            if not self._values[place]:
                del self._values[place]

    def clear(self) -> None:
        """Empty all cells without a note of it."""
        self._revisions.update(self._values.keys())
        self._values.clear()

    def revision(self, place: Hashable) -> int:
        """How often something has changed at a place."""
        return self._revisions[place]

    @property
    def places(self) -> tuple[Any, ...]:
        """Where there are values."""
        return tuple(self._values)


@dataclass(eq=False)
class Change:
    """What one step of undo takes back."""

    label: str
    """For people: "Click", "Propagate"."""
    token: object = None
    cells: dict[tuple[Cells[Any], Hashable, int], tuple[Any, Any]] = field(default_factory=dict)
    """Cell -> its value before and after."""
    nbytes: int = 0
    """Of the values before, which nothing else may hold any more."""


class History:
    """The changes that can be taken back, and those that can be made again."""

    def __init__(self, limit: int = _LIMIT, budget: int = _BUDGET) -> None:
        """
        Args:
            limit: older changes are forgotten beyond so many.
            budget: and beyond so many bytes of values; the last change is always kept.
        """
        self._limit, self._budget = limit, budget
        self.lock = threading.RLock()
        """Held while anything changes, so that another thread can see cells that fit together."""
        self._done: deque[Change] = deque()
        self._undone: list[Change] = []
        self._open: Change | None = None

    @contextmanager
    def change(self, label: str, token: object = None) -> Iterator[None]:
        """All that changes inside is one step; inside another change, it is part of that.

        token: a change goes on with the last one where both have the same token.
        """
        if self._open is not None:
            yield
            return
        last = self._done[-1] if self._done else None
        goes_on = token is not None and last is not None and last.token is token
        with self.lock:
            self._open = last if goes_on and last is not None else Change(label, token)
            try:
                yield
            finally:
                change, self._open = self._open, None
                if change.cells:
                    self._undone.clear()
                    if not goes_on:
                        self._done.append(change)
                    self._forget()

    @contextmanager
    def following(self) -> Iterator[None]:
        """What changes inside follows from the last change and is taken back with it.

        It is no change of its own: what was taken back can still be made again.
        """
        if self._open is not None:
            yield
            return
        with self.lock:
            self._open = self._done[-1] if self._done else Change("")
            try:
                yield
            finally:
                self._open = None

    @property
    def is_open(self) -> bool:
        """Whether a change is under way, of which more may follow."""
        return self._open is not None

    def note(self, cells: Cells[Any], place: Hashable, frame: int, before: Any, after: Any) -> None:
        """A cell is about to change."""
        if self._open is None:
            raise RuntimeError("A change was made outside of History.change.")
        cell = cells, place, frame
        if cell not in self._open.cells:
            self._open.nbytes += getattr(before, "nbytes", 0)
        first = self._open.cells.get(cell, (before, None))[0]
        self._open.cells[cell] = first, after

    def __len__(self) -> int:
        """Changes that can be taken back."""
        return len(self._done)

    @property
    def nbytes(self) -> int:
        """Of all values that are kept to take changes back."""
        return sum(change.nbytes for change in self._done)

    def _forget(self) -> None:
        while len(self._done) > 1 and (len(self._done) > self._limit or self.nbytes > self._budget):
            self._done.popleft()

    @property
    def last(self) -> Change | None:
        """The change under way, or what `undo` takes back; None if there is neither."""
        return self._open or (self._done[-1] if self._done else None)

    @property
    def undo_label(self) -> str | None:
        """What `undo` takes back; None if there is nothing."""
        return self._done[-1].label if self._done else None

    @property
    def redo_label(self) -> str | None:
        """What `redo` makes again; None if there is nothing."""
        return self._undone[-1].label if self._undone else None

    def undo(self) -> Change | None:
        """Take the last change back and return it; None if there is nothing."""
        if not self._done:
            return None
        change = self._done.pop()
        with self.lock:
            for (cells, place, frame), (before, _) in change.cells.items():
                cells.put(place, frame, before)
        self._undone.append(change)
        return change

    def redo(self) -> Change | None:
        """Make the change again that was last taken back; None if there is nothing."""
        if not self._undone:
            return None
        change = self._undone.pop()
        with self.lock:
            for (cells, place, frame), (_, after) in change.cells.items():
                cells.put(place, frame, after)
        self._done.append(change)
        self._forget()
        return change

    def clear(self) -> None:
        """Forget everything; the present state cannot be taken back any more."""
        self._done.clear()
        self._undone.clear()
