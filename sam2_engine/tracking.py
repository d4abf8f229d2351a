"""Objects on their way: each goes from a prompted frame through a sweep, frame by frame, and is
found on the next by what is remembered of those before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sam2_engine.answers import Answer, Answers
from sam2_engine.encoding import FrameEncoder
from sam2_engine.frames import Area, Geometry
from sam2_engine.memory import CONFIDENT_IOU, ConfidentMemoryBank, Memory, MemoryBank
from sam2_engine.model import as_mask_input
from sam2_engine.model.recalled import Recalled, join
from sam2_engine.passes import Sweep
from sam2_engine.prompted import PromptedFrames


@dataclass
class Runner:
    """A sweep under way."""

    sweep: Sweep
    state: tuple[Any, ...]
    """What its memories follow from; a paused runner goes on only while this is the same."""
    bank: MemoryBank | ConfidentMemoryBank
    next: int
    """The frame that comes next."""
    last: Tensor
    """(1, 1, S/4, S/4) mask logits on the frame before it."""
    area: Area | None
    """The part of the frames that they show."""
    end: int
    """The last frame that is wanted now."""
    absent: int = 0
    """On how many frames in a row, up to now, the object has not been found."""
    is_whole: bool = True
    """Whether every frame up to now could be read, so that its memories are those of any run."""

    @property
    def ahead(self) -> range:
        """The frames up to the last that is wanted."""
        step = self.sweep.frames.step
        return range(self.next, self.end + step, step)

    def is_due(self, frame: int) -> bool:
        return frame == self.next and frame in self.ahead


class Tracker:
    """Takes runners from frame to frame."""

    def __init__(
        self,
        prompted: PromptedFrames,
        encoder: FrameEncoder,
        answers: Answers,
        geometry: Geometry,
        end_after: int | None,
        is_selective: bool,
    ) -> None:
        """
        Args:
            end_after: as for `SequencePredictor`.
            is_selective: whether a mask that is not confident leads nowhere.
        """
        self._prompted = prompted
        self._encoder = encoder
        self._answers = answers
        self._model = answers.model
        self._geometry = geometry
        self._end_after = end_after
        self._is_selective = is_selective

    @torch.inference_mode()
    def track(self, frame: int, runners: Sequence[Runner]) -> dict[int, Answer]:
        """Track objects to a frame, together where their memories are equally many.

        Returns their answers by id; none of an object whose answer there is only trimmed, which is
        passed through. Raises UnreadableFrame.
        """
        answers: dict[int, Answer] = {}
        trimmed = [r for r in runners if frame in self._prompted.prompts[r.sweep.object_id]]
        for runner in trimmed:
            prompted, i = self._prompted[frame], runner.sweep.object_id
            self._advance(frame, runner, prompted.answers[i], prompted.memories[i])
        runners = [runner for runner in runners if runner not in trimmed]
        for runner in runners:
            if self._has_ended(runner):
                answers[runner.sweep.object_id] = self._answers.absent(runner.area)
                runner.next += runner.sweep.frames.step
        runners = [runner for runner in runners if not self._has_ended(runner)]
        if not runners:
            return answers
        self._follow(runners)
        step = runners[0].sweep.frames.step
        self._encoder.with_next(frame, step, self._due(runners, self._encoder.at_once))
        groups: dict[tuple[bool, int, int], list[tuple[Runner, Recalled]]] = defaultdict(list)
        for runner in runners:
            recall = runner.bank.recall(frame)
            recalled = self._model.memory_tokens(*recall)
            key = runner.area is None, len(recall.memories), recalled.num_pointers
            groups[key].append((runner, recalled))

        for group in groups.values():
            found = self._answers.at_once.computed(partial(self._tracked, frame), group)
            for (runner, _), (answer, memory) in zip(group, found, strict=True):
                answers[runner.sweep.object_id] = answer
                self._advance(frame, runner, answer, memory)
        return answers

    def encode_ahead(self, frame: int, step: int, runners: Sequence[Runner]) -> bool:
        """Have the next frames encoded that are sure to be needed, as `FrameEncoder.ahead`."""
        return self._encoder.ahead(frame, step, self._due(runners, self._encoder.most_ahead))

    def _tracked(
        self, frame: int, members: Sequence[tuple[Runner, Recalled]]
    ) -> list[tuple[Answer, Memory]]:
        """Answers and memories of objects that recall equally many memories."""
        areas = [runner.area for runner, _ in members]
        features = self._encoder(frame, areas)
        recalled = join([recalled for _, recalled in members])
        conditioned = self._model.attend_to_memory(features, recalled)
        before = None
        if self._model.config.draws_prompts:
            before = as_mask_input(torch.cat([runner.last for runner, _ in members]))
        decoded = self._model.decode_masks(features, conditioned, mask_input=before, multimask=True)
        memories = self._answers.remember(
            features, decoded.low_res, decoded.object_score, decoded.pointer, binarise=False
        )
        return list(zip(self._answers.split(decoded, areas), memories, strict=True))

    def _advance(self, frame: int, runner: Runner, answer: Answer, memory: Memory) -> None:
        """Remember an object's answer on a frame, and go on to the next."""
        confidence = self._confidence(answer)
        runner.bank.add(frame, memory, confidence)
        if not self._is_selective or confidence >= CONFIDENT_IOU:
            runner.last, runner.area = answer.low_res, answer.area
        runner.next += runner.sweep.frames.step
        if self._end_after is not None:
            is_found = bool((answer.low_res > 0).any())
            runner.absent = 0 if is_found else runner.absent + 1

    def _follow(self, runners: Sequence[Runner]) -> None:
        """Move areas to where their objects were last."""
        for runner in runners:
            if runner.area is None:
                continue
            before = self._geometry.looking_at(runner.area)
            last = runner.last.cpu()  # Apple's cards mistake what follows (pytorch/pytorch#174339)
            now = before.following(last)
            runner.last = now.low_res_as_seen(last, before).to(runner.last.device)
            runner.area = now.area

    def _due(self, runners: Sequence[Runner], count: int) -> set[int]:
        """The next frames, up to so many of each runner that looks at all of them, that its object
        cannot have ended before.
        """
        due: set[int] = set()
        for runner in runners:
            if runner.area is None:
                until = count if self._end_after is None else self._end_after - runner.absent
                due.update(runner.ahead[: max(min(count, until), 0)])
        return due

    def _confidence(self, answer: Answer) -> float:
        """Predicted IoU, 0 of an absent object; read from the device only where it is needed."""
        if not self._is_selective or float(answer.object_score) <= 0:
            return 0.0
        return float(answer.iou)

    def _has_ended(self, runner: Runner) -> bool:
        return self._end_after is not None and runner.absent >= self._end_after
