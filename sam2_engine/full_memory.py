"""Memory that is full: how it is known, and what a graphics card then does in smaller parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
WHAT_TAKES_LESS = (
    "a smaller model or input takes less (such as sam2.1-tiny@512), and so does --device cpu"
)


def card_is_full(error: BaseException) -> bool:
    """Whether an error says so. PyTorch, CUDA's libraries and Apple's each have their own."""
    return "out of memory" in str(error).lower() or "ALLOC_FAILED" in str(error)


def machine_is_full(error: BaseException) -> bool:
    """Whether an error says that the machine has no more memory, in Python's words or PyTorch's."""
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


class AtOnce:
    """How many things are computed together: fewer for good, once a card had no room for them."""

    def __init__(self, most: int) -> None:
        self.most = most

    def computed(self, work: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[R]:
        """What work makes of each item, some at a time, in their order.

        Work that fails must have changed nothing. Raises what it raises, also where a card has no
        room for one item alone.
        """
        made: list[R] = []
        while len(made) < len(items):
            some = items[len(made) : len(made) + self.most]
            try:
                made += work(some)
                continue
            except RuntimeError as error:
                if len(some) == 1 or not card_is_full(error):
                    raise
            self.most = len(some) // 2  # not above, where the error holds on to what was computed
        return made
