"""A person's work on the objects of an item, done by their true masks: prompts on one frame, then
corrective clicks, and the masks that a model makes of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.cases import first_frame
from benchmarks.limit import synchronise
from napari_sam2.areas import CLOSE, Area, Box, around_boxes, enlarged, is_small_in, joined
from napari_sam2.records import NEAR
from sam2_engine.masks import Mask, Masks, deepest_point, largest_slice, tight_box
from sam2_engine.model import SAM2
from sam2_engine.sequence import SequencePredictor

Point = tuple[int, int]  # y, x

NO_MEMORY = "box, no memory"
MAX_CORRECTIONS = 3
CACHE_BYTES = 4 << 30  # features of a whole volume, so that each frame is encoded and timed once


def prompt_frame(kind: str, truth: Masks) -> int:
    """Where an object is prompted: on its largest slice, or its first frame of a time-lapse."""
    return first_frame(truth) if kind == "timelapse" else largest_slice(truth)


def first_prompt(prompt: str, mask: Mask) -> dict[str, Any]:
    """Arguments of set_prompts that show an object by its true mask (H, W) on one frame."""
    if prompt == "click":
        return {"points": [deepest_point(mask)]}
    if prompt == "mask":
        return {"mask": mask}
    return {"box": tight_box(mask)}


@dataclass(frozen=True)
class Correction:
    """A click that a person would make where a result is most wrong."""

    frame: int
    point: Point
    positive: bool


def corrective_click(predicted: Masks, truth: Masks) -> Correction | None:
    """The deepest point of the largest error region of the slice with the most wrong pixels.

    A region is connected and either missed or added in the whole. None where nothing is wrong.
    """
    wrong = (predicted ^ truth).sum(axis=(1, 2))
    frame = int(wrong.argmax())
    if not wrong[frame]:
        return None
    regions = [
        (region, positive)
        for error, positive in (
            (truth[frame] & ~predicted[frame], True),
            (predicted[frame] & ~truth[frame], False),
        )
        for region in connected_regions(error)
    ]
    region, positive = max(regions, key=lambda pair: int(pair[0].sum()))
    return Correction(frame, deepest_point(region), positive)


def connected_regions(mask: Mask) -> list[Mask]:
    """Each connected part of a mask (H, W), edge to edge, as a mask."""
    labels, count = ndimage.label(mask)
    return [labels == i for i in range(1, count + 1)]


@dataclass(frozen=True)
class Answer:
    """Of one object on one frame."""

    low_res: NDArray[np.float32]
    """(S/4, S/4) logits."""
    area: Area | None
    """Where the model looked."""


class ModelRun:
    """The objects of one item in one predictor; object i has the id i + 1."""

    def __init__(
        self,
        model: SAM2,
        frames: NDArray[Any],
        kind: str,
        truths: Sequence[Masks],
        closely: bool = False,
        **options: Any,
    ) -> None:
        """
        Args:
            closely: look at small objects in areas of their own, as a session does by itself.
            options: of the predictor.
        """
        self.kind = kind
        self.truths = truths
        self.closely = closely
        self.predictor = SequencePredictor(
            model, frames, cache_bytes=CACHE_BYTES, refine_clicks=True, **options
        )
        self.masks = [np.zeros(truth.shape, np.bool_) for truth in truths]
        self.answers: dict[tuple[int, int], Answer] = {}  # by object and frame
        started = time.perf_counter()
        for frame in range(len(frames)):
            self.predictor.features[frame]  # encoded now, and found in the cache by every prompt
        synchronise(model.device)
        self.encoding_seconds = time.perf_counter() - started
        self.box_seconds = 0.0

    def run(self, prompt: str) -> float:
        """Leave the masks of all objects from one kind of prompt in `masks`; seconds that it took.

        "box+3" goes on from where "box" has ended, which must have been the last to run.
        """
        started = time.perf_counter()
        if prompt == "box+3":
            self._correct()
            return self.box_seconds + time.perf_counter() - started
        self.predictor.clear_prompts()
        if prompt == NO_MEMORY:
            for index in range(len(self.truths)):
                self._hand_on_boxes(index)
            return self.encoding_seconds + time.perf_counter() - started
        for index, truth in enumerate(self.truths):
            frame = prompt_frame(self.kind, truth)
            self._prompt(index, frame, **first_prompt(prompt, truth[frame]))
        self._segment(range(len(self.truths)))
        seconds = self.encoding_seconds + time.perf_counter() - started
        if prompt == "box":
            self.box_seconds = seconds
        return seconds

    def _segment(self, indices: Sequence[int]) -> None:
        ids = [index + 1 for index in indices]
        for index in indices:
            self.masks[index][:] = False
        if self.kind == "image":
            results = iter([self.predictor.predict(0, ids)])
        else:
            forward = self.kind == "timelapse"
            results = self.predictor.propagate(ids, "forward" if forward else "both")
        for result in results:
            for object_id, mask, *answer in zip(
                result.object_ids, result.masks, result.low_res, result.areas, strict=True
            ):
                self.masks[object_id - 1][result.frame] = mask
                self.answers[object_id - 1, result.frame] = Answer(*answer)

    def _prompt(self, index: int, frame: int, **prompt: Any) -> None:
        """Show an object, and look closely where it is small: first where the prompt says that it
        is, or the mask that follows from it; and not where it turns out to be larger.
        """
        say = partial(self.predictor.set_prompts, index + 1, frame, **prompt)
        shape = self.predictor.source.shape
        say()
        if not self.closely:
            return
        box = prompt.get("box") or self._box(index, frame)
        area = None if box is None else around_boxes([box], CLOSE, shape)
        if area is None:
            return
        say(area=area)
        box = self._box(index, frame)
        if box is None or not is_small_in(area, box, shape):
            say()

    def _box(self, index: int, frame: int) -> Box | None:
        """About the mask that follows from the prompts on a frame."""
        mask = self.predictor.predict(frame, [index + 1]).mask(index + 1)
        return tight_box(mask) if mask.any() else None

    def _hand_on_boxes(self, index: int) -> None:
        """Each slice by itself, from the box around the mask of the slice before, until that is
        empty: what tools do that have SAM and no memory.
        """
        truth, masks = self.truths[index], self.masks[index]
        masks[:] = False
        origin = prompt_frame(self.kind, truth)
        ways = [range(origin, len(truth))]
        if self.kind == "volume":
            ways.append(range(origin, -1, -1))
        for frames in ways:
            box = tight_box(truth[origin])
            for frame in frames:
                self._prompt(index, frame, box=box)
                mask = self.predictor.predict(frame, [index + 1]).mask(index + 1)
                self.predictor.clear_prompts(index + 1)
                masks[frame] = mask
                if not mask.any():
                    break
                box = tight_box(mask)

    def _correct(self) -> None:
        """Up to three rounds of a corrective click for each object, then tracking anew."""
        for _ in range(MAX_CORRECTIONS):
            corrected = []
            for index, truth in enumerate(self.truths):
                click = corrective_click(self.masks[index], truth)
                if click is not None:
                    self._add_click(index, click)
                    corrected.append(index)
            if corrected:
                self._segment(corrected)

    def _add_click(self, index: int, click: Correction) -> None:
        """Add it to the box on the prompted slice; elsewhere let it correct the last answer."""
        known = self.predictor.prompts[index + 1].get(click.frame)
        points = [*(known.points.tolist() if known else []), click.point]
        signs = [*(known.labels.tolist() if known else []), int(click.positive)]
        start = self._start_of(index, click)
        area, box = known.area if known else start.area, known.box if known else None
        if area is not None:
            around = joined(box, (*click.point, *click.point))
            area = enlarged(area, around, self.predictor.source.shape)
        self.predictor.set_prompts(
            index + 1,
            click.frame,
            points=points,
            labels=signs,
            box=box,
            mask_input=None if box else self._as_seen(start, area),
            area=area,
        )

    def _as_seen(self, answer: Answer, area: Area | None) -> NDArray[np.float32]:
        """The logits of an answer as one looks now."""
        now, before = (
            self.predictor.source.geometry.looking_at(one) for one in (area, answer.area)
        )
        logits = now.low_res_as_seen(torch.from_numpy(answer.low_res)[None, None], before)
        found: NDArray[np.float32] = logits[0, 0].numpy()
        return found

    def _start_of(self, index: int, click: Correction) -> Answer:
        """What a click corrects: the slice's last answer; where the object was not found there, the
        nearest one within a few slices, if the click is on it.
        """
        last = self.answers[index, click.frame]
        if not click.positive or (last.low_res > 0).any():
            return last
        near = sorted(range(-NEAR, NEAR + 1), key=lambda step: (abs(step), step))
        answers = (self.answers.get((index, click.frame + step)) for step in near)
        return next((a for a in answers if a is not None and (a.low_res > 0).any()), last)
