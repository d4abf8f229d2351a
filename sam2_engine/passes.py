"""Which frames each object is tracked to, and from where: the plan of a propagation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sam2_engine.prompts import Prompt

Direction = Literal["both", "forward", "backward"]

_FORWARD, _BACKWARD = 1, -1
_STEPS = {"both": (_FORWARD, _BACKWARD), "forward": (_FORWARD,), "backward": (_BACKWARD,)}
"""From one frame to the next, in each pass of a direction."""


@dataclass(frozen=True)
class Sweep:
    """The frames that one object is tracked through from one of its prompted frames."""

    object_id: int
    origin: int
    frames: range
    sees: tuple[int, ...]
    """The prompted frames whose memories it starts with."""

    @property
    def key(self) -> tuple[int, int, int]:
        return self.object_id, self.origin, self.frames.step


@dataclass(frozen=True)
class Pass:
    """All sweeps in one direction, side by side."""

    step: int
    sweeps: list[Sweep]
    shown: Mapping[int, list[int]]
    """Frames whose prompted objects are part of the results of this pass, with their ids."""
    wanted: Mapping[int, frozenset[int]]
    """Frames of each object that give a result and are not prompted."""

    @property
    def yielded(self) -> set[int]:
        """Frames that give a result."""
        tracked = {t for sweep in self.sweeps for t in self.wanted_of(sweep)}
        return tracked | set(self.shown)

    def wanted_of(self, sweep: Sweep) -> list[int]:
        """The frames of a sweep that give a result, in its order."""
        wanted = self.wanted[sweep.object_id]
        return [t for t in sweep.frames if t in wanted]

    def frames(self, ahead: Iterable[int]) -> list[int]:
        """Every frame that has to be computed, in the order of the pass.

        ahead: those that its sweeps still go through.
        """
        return sorted({*ahead, *self.shown}, reverse=self.step == _BACKWARD)


def plan(
    prompts: Mapping[int, Mapping[int, Prompt]],
    wanted: Mapping[int, Collection[int]],
    num_frames: int,
    direction: Direction,
    sees_adjacent: bool,
) -> list[Pass]:
    """The passes that find objects on the frames wanted of them.

    Args:
        prompts: of each object, by frame.
        wanted: the objects to find, and on which frames each.
        num_frames: length of the sequence.
        sees_adjacent: whether a tracked frame sees the prompted frames next to it alone.

    Raises:
        ValueError: no such direction.
    """
    if direction not in _STEPS:
        raise ValueError(f'direction must be "both", "forward" or "backward", not {direction!r}.')
    tracked = {i: frozenset(frames) - prompts[i].keys() for i, frames in wanted.items()}
    passes: list[Pass] = []
    for step in _STEPS[direction]:
        sweeps = [
            sweep
            for i in wanted
            for sweep in _sweeps(i, prompts[i], num_frames, step, direction, sees_adjacent)
            if any(frame in tracked[i] for frame in sweep.frames)
        ]
        shown: dict[int, list[int]] = defaultdict(list)
        if not passes:  # prompted frames are shown once, in the first pass
            for i, frames in wanted.items():
                for frame in prompts[i]:
                    if frame in frames:
                        shown[frame].append(i)
        passes.append(Pass(step, sweeps, shown, tracked))
    return passes


def _sweeps(
    object_id: int,
    prompts: Mapping[int, Prompt],
    num_frames: int,
    step: int,
    direction: Direction,
    sees_adjacent: bool,
) -> Iterator[Sweep]:
    frames, both = _origins(prompts), direction == "both"
    for before, origin, after in zip(
        [None, *frames[:-1]], frames, [*frames[1:], None], strict=True
    ):
        if step == _FORWARD:
            if after is None:
                last = num_frames - 1
            else:  # of two prompted frames that are equally near, the earlier one serves
                last = (origin + after) // 2 if both else after - 1
        elif before is None:
            last = 0
        else:
            last = (before + origin) // 2 + 1 if both else before + 1
        other = after if step == _FORWARD else before
        adjacent = (origin,) if other is None else (origin, other)
        sees = adjacent if sees_adjacent else tuple(frames)
        yield Sweep(object_id, origin, range(origin + step, last + step, step), sees)


def _origins(prompts: Mapping[int, Prompt]) -> list[int]:
    """The frames that an object is tracked from: all that are prompted, but for those where an
    answer is only trimmed, unless there is no other.
    """
    shown = [frame for frame in prompts if not prompts[frame].trims]
    return sorted(shown or prompts)
