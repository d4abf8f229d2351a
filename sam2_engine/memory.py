"""The memory bank: which memories a frame sees (paper, section 4). Bounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from sam2_engine.model import ModelConfig
from sam2_engine.model.recalled import Picked

MemorySelection = Literal["recent", "confident"]
"""Which tracked frames are remembered: the last ones, as published, or the surest and most diverse.
"""
MemoryTokens = Literal["all", "near", "pooled"]
"""How much of a memory is looked at: all places, as published; those near the object, and of the
others their means over 2 x 2; or these means alone."""
CONFIDENT_IOU = 0.5
"""Predicted IoU from which a mask is remembered where only confident ones are."""


@dataclass(frozen=True)
class Memory:
    """What is remembered of one object on one frame."""

    features: Tensor
    """(1, memory_dim, S/16, S/16)"""
    pointer: Tensor
    """(1, C)"""
    picked: Picked | None = None
    """What is looked at of the features; None: all."""


class Recall(NamedTuple):
    """The memories that one frame sees, as SAM2.memory_tokens takes them."""

    memories: list[tuple[Tensor, int]]
    pointers: list[tuple[Tensor, float]]
    picked: list[Picked] | None
    """What is looked at of each memory; None: all."""


class MemoryBank:
    """Memories of one object while it is tracked from frame to frame in one direction.

    It holds the object's prompted frames, the spatial memories of the last few tracked frames,
    and the pointers of some more; older ones are dropped.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_frames: int,
        step: int,
        prompted: Mapping[int, Memory],
        max_prompted: int | None,
    ) -> None:
        """
        Args:
            num_frames: length of the sequence; short ones stretch the pointers' times.
            step: +1 when tracking forward in time, -1 backward.
            prompted: memories of the object's prompted frames, by frame.
            max_prompted: how many of them a frame sees at most, the nearest; None for all.
        """
        self._step = step
        self._prompted = prompted
        self._max_prompted = max_prompted
        self._num_recent = config.num_memories - 1
        self._prompted_index = config.num_memories - 1
        self._num_pointers = min(num_frames, config.max_pointers) - 1
        self._recent: dict[int, Memory] = {}
        self._pointers: dict[int, Tensor] = {}

    def add(self, frame: int, memory: Memory, confidence: float) -> None:
        """Remember a tracked frame, whatever its confidence, and forget what no later frame can
        see.
        """
        self._recent[frame] = memory
        self._pointers[frame] = memory.pointer
        kept: dict[int, Any]
        for kept, limit in (
            (self._recent, self._num_recent),
            (self._pointers, self._num_pointers),
        ):
            for old in [t for t in kept if (frame - t) * self._step >= limit]:
                del kept[old]

    def recall(self, frame: int) -> Recall:
        """What a frame sees: prompted frames, recent frames oldest first, then pointers."""
        selected = _nearest(self._prompted, frame, self._max_prompted)
        # A prompted frame that was not selected still counts as a recent one.
        others = {t: memory for t, memory in self._prompted.items() if t not in selected}

        memories = [(self._prompted[t], self._prompted_index) for t in selected]
        for age in range(self._num_recent, 0, -1):
            t = frame - self._step * age
            memory = self._recent.get(t, others.get(t))
            if memory is not None:
                memories.append((memory, age - 1))

        scale = max(self._num_pointers, 1)
        pointers = [
            (self._prompted[t].pointer, (frame - t) * self._step / scale)
            for t in selected
            if (frame - t) * self._step >= 0
        ]
        for age in range(1, self._num_pointers + 1):
            t = frame - self._step * age
            if t in self._pointers:
                pointers.append((self._pointers[t], age / scale))
            elif t in others:
                pointers.append((others[t].pointer, age / scale))
        return _recall(memories, pointers)


class ConfidentMemoryBank:
    """Memories of one object where frames need not resemble their neighbours.

    It holds the object's prompted frames and, of the tracked ones, as many as ``MemoryBank`` keeps
    recent: only those whose mask is confident, and of the two that are most alike the more
    confident one. So the bank sorts itself by confidence and variety instead of by time, after
    Medical SAM 2 (Zhu et al., arXiv 2408.00874, section 3.2).
    """

    def __init__(
        self, config: ModelConfig, prompted: Mapping[int, Memory], max_prompted: int | None
    ) -> None:
        """prompted, max_prompted: as for ``MemoryBank``."""
        self._prompted = prompted
        self._max_prompted = max_prompted
        self._prompted_index = config.num_memories - 1
        self._size = config.num_memories - 1
        self._scale = max(config.max_pointers - 1, 1)
        self._kept: list[tuple[Memory, float]] = []  # with their confidence, the newest last

    def add(self, frame: int, memory: Memory, confidence: float) -> None:
        """Remember a tracked frame if it is confident, and forget one where there are too many.

        Args:
            confidence: predicted IoU, 0 where the object is judged absent.
        """
        if confidence < CONFIDENT_IOU:
            return
        self._kept.append((memory, confidence))
        if len(self._kept) > self._size:
            first, second = max(combinations(range(len(self._kept)), 2), key=self._likeness)
            is_surer = self._kept[first][1] > self._kept[second][1]
            del self._kept[second if is_surer else first]

    def recall(self, frame: int) -> Recall:
        """What a frame sees: prompted frames, then kept ones, numbered by their rank from the
        newest, since time may mean nothing.
        """
        selected = _nearest(self._prompted, frame, self._max_prompted)
        memories = [(self._prompted[t], self._prompted_index) for t in selected]
        pointers = [(self._prompted[t].pointer, 1 / self._scale) for t in selected]
        ages = range(len(self._kept), 0, -1)
        ranked = list(zip(ages, (memory for memory, _ in self._kept), strict=True))
        memories += [(memory, age - 1) for age, memory in ranked]
        pointers += [(memory.pointer, age / self._scale) for age, memory in reversed(ranked)]
        return _recall(memories, pointers)

    def _likeness(self, pair: tuple[int, int]) -> float:
        """The cosine of the angle between two memories."""
        first, second = (self._kept[index][0].features.flatten().float() for index in pair)
        return float(F.cosine_similarity(first, second, dim=0))


def _recall(memories: list[tuple[Memory, int]], pointers: list[tuple[Tensor, float]]) -> Recall:
    picked = [memory.picked for memory, _ in memories if memory.picked is not None]
    features = [(memory.features, index) for memory, index in memories]
    return Recall(features, pointers, picked or None)


def _nearest(prompted: Mapping[int, Memory], frame: int, limit: int | None) -> list[int]:
    """Prompted frames that a frame sees: the nearest before it, the nearest at or after it, then by
    distance.
    """
    frames = sorted(prompted)
    if limit is None or len(frames) <= limit:
        return frames
    before = [t for t in frames if t < frame][-1:]
    after = [t for t in frames if t >= frame][:1]
    rest = sorted(set(frames) - {*before, *after}, key=lambda t: (abs(t - frame), t))
    return sorted((before + after + rest)[:limit])
