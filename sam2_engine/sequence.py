"""The streaming predictor: prompts on some frames in, masks on all frames out.

Masks follow from prompts, frames and model alone. A prompted frame is decoded from its own
prompts without memory; every other frame is tracked from a prompted frame of its object, in
one direction, frame by frame. Nothing of an earlier pass is reused that a fresh predictor
would not compute alike, so the order of calls never shows in the result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sam2_engine.features import (
    EncodingStream,
    FeatureCache,
    FeatureStore,
    encode_parts,
    frames_at_once,
)
from sam2_engine.frame_result import FrameResult
from sam2_engine.frames import Area, Fit, Frames, FrameSource, Part, Windows
from sam2_engine.holes import fill_small_holes
from sam2_engine.memory import (
    CONFIDENT_IOU,
    ConfidentMemoryBank,
    Memory,
    MemoryBank,
    MemorySelection,
    MemoryTokens,
)
from sam2_engine.model import ABSENT_LOGIT, SAM2, Decoded, ImageFeatures, as_mask_input
from sam2_engine.model.recalled import Picked, Recalled, join, near_object, pick
from sam2_engine.passes import Direction, Pass, Sweep, plan
from sam2_engine.prompts import Prompt
from sam2_engine.unreadable import FAILURES_IN_A_ROW, UnreadableFrame

T = TypeVar("T")
_BEYOND = -8.0  # the logit where an object may not lie
_OBJECTS_AT_ONCE = 32  # more of them in one batch take more memory and are no quicker


@dataclass(frozen=True)
class _Answer:
    """One object on one frame, on the model's device."""

    low_res: Tensor  # (1, 1, S/4, S/4)
    iou: Tensor  # (1,)
    object_score: Tensor  # (1, 1)
    pointer: Tensor  # (1, C)
    area: Area | None  # of the frame, that was looked at


@dataclass(frozen=True)
class _PromptedFrame:
    """What the prompts of all objects on one frame give; valid while they are the same."""

    prompts: dict[int, Prompt]
    answers: dict[int, _Answer]
    memories: dict[int, Memory]


@dataclass
class _Runner:
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


class SequencePredictor:
    """Segments and tracks objects through a sequence of frames.

    All coordinates are array indices, y before x. One thread at a time may use a predictor.
    """

    def __init__(
        self,
        model: SAM2,
        frames: Frames,
        *,
        window: Windows | None = None,
        fit: Fit = "stretch",
        pixel_size: tuple[float, float] = (1.0, 1.0),
        max_prompted_frames: int | Literal["adjacent"] | None = 8,
        end_after: int | None = None,
        memory: MemorySelection = "recent",
        memory_tokens: MemoryTokens = "all",
        cache_bytes: int = 1 << 30,
        cache_dtype: torch.dtype | None = None,
        store: FeatureStore | None = None,
        fill_holes: int = 0,
        refine_clicks: bool = False,
    ) -> None:
        """
        Args:
            model: in eval mode, on the device to compute on.
            frames: len() and [i] -> (H, W) or (H, W, C) of any number type, read one at a time;
                three channels C are red, green and blue, and two are magenta and green.
            window: intensities shown to the model as black and white, for the whole sequence,
                or one for each channel; by default the 0.5 and 99.5 percentiles of sampled frames.
            fit: "stretch" frames to the model's square as published, or "pad" to keep the aspect.
            pixel_size: height and width of a pixel in any unit, for the aspect.
            max_prompted_frames: prompted frames that a tracked frame sees, the nearest; None: all.
                "adjacent": the last one before it and the first one after it, so that a prompt
                changes no frame beyond the prompted frames next to it.
            end_after: once an object has not been found on so many frames in a row, it is taken
                to have ended, and is absent from the frames beyond without being looked for.
            memory: "recent" as published: a tracked frame sees the last few before it. "confident":
                it sees those that the model was sure of and that differ most, so that frames need
                not be in any order; a mask that is not confident leads nowhere.
            memory_tokens: "all" as published. "near": a memory's places far from the object are
                averaged 2 x 2, which leaves some two fifths to look at: quicker, and nearly the
                same masks. "pooled": all are, which leaves a quarter.
            cache_bytes: budget for image features.
            cache_dtype: what they are rounded to, such as torch.float16 to keep twice as many;
                by default none.
            store: where features are looked for before a frame is encoded, and kept afterwards.
            fill_holes: fill holes and remove specks of up to so many pixels in the stride-4
                masks; 0 leaves masks as they are.
            refine_clicks: take the clicks on a frame one after the other, each correcting the
                mask that the earlier ones gave, as a person places them and as published for
                clicks in separate calls; else all at once, as published for one call.
        """
        self.model = model
        self.source = FrameSource(frames, model.image_size, window, fit, pixel_size)
        # Without a reference to self, a predictor that is let go frees its features at once.
        self.features = FeatureCache(
            partial(encode_parts, model, self.source, store),
            cache_bytes,
            cache_dtype,
            EncodingStream(model.device),
        )
        self._adjacent = max_prompted_frames == "adjacent"
        self._max_prompted = None if max_prompted_frames == "adjacent" else max_prompted_frames
        if end_after is not None and end_after < 1:
            raise ValueError(f"end_after is a number of frames, 1 or more, or None: {end_after!r}.")
        self._end_after = end_after
        if memory not in get_args(MemorySelection):
            raise ValueError(f'memory must be "recent" or "confident", not {memory!r}.')
        self._is_selective = memory == "confident"
        if memory_tokens not in get_args(MemoryTokens):
            known = '"all", "near" or "pooled"'
            raise ValueError(f"memory_tokens must be {known}, not {memory_tokens!r}.")
        self._memory_tokens = memory_tokens
        self._fill_holes = fill_holes
        self._refine_clicks = refine_clicks
        self._prompts: dict[int, dict[int, Prompt]] = {}
        self._prompted_frames: dict[int, _PromptedFrame] = {}
        self._paused: dict[tuple[int, int, int], _Runner] = {}
        self._unreadable: dict[int, UnreadableFrame] = {}  # of the last run; not tried again in it
        self._failures = 0  # in a row

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.source)

    # -- prompts -------------------------------------------------------------------------------

    @property
    def prompts(self) -> Mapping[int, Mapping[int, Prompt]]:
        """Object id -> frame -> prompt, as they are set now."""
        return MappingProxyType(self._prompts)

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects that have prompts, sorted."""
        return tuple(sorted(self._prompts))

    def set_prompts(
        self,
        object_id: int,
        frame: int,
        *,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        strokes: ArrayLike | None = None,
        within: ArrayLike | None = None,
        area: Area | None = None,
    ) -> None:
        """Say all there is to say of an object on a frame; replaces what was said of it there.

        Args:
            object_id: a positive integer below 2**31, which `FrameResult.labels` holds.
            points: (N, 2) y, x.
            labels: (N,) 1 inside the object, 0 outside; all 1 by default.
            box: y0, x0, y1, x1.
            mask: (H, W), nonzero on the object; it is then the frame's answer.
            mask_input: (S/4, S/4) low_res logits of an earlier answer, which the points correct.
            strokes: (N,) ascending; of points with one number, placed together, `refine_clicks`
                makes one round. By default each has its own.
            within: (H, W), nonzero where the object may lie.
            area: y0, x0, y1, x1, the last two just beyond it: the part of the frame to look at; by
                default all. A small object is seen in more detail in an area some times its size,
                which follows it from here to other frames, and is not found outside. Prompts and
                masks are in pixels of the whole frames all the same, but for mask_input.

        Raises:
            ValueError: no such frame, a coordinate or an area outside, or shapes that do not fit.
        """
        if int(object_id) != object_id or not 0 < object_id < 2**31:
            raise ValueError(f"An object's id is a positive integer below 2**31, not {object_id}.")
        self._check_frame(frame)
        prompt = Prompt.create(
            self.source.shape,
            points,
            labels,
            box,
            mask,
            mask_input,
            strokes,
            within,
            self.source.geometry.looking_at(area).area,
        )
        side = self.model.image_size // 4
        if prompt.mask_input is not None and prompt.mask_input.shape != (side, side):
            raise ValueError(
                f"mask_input is {prompt.mask_input.shape}; this model's logits are {side} x {side}."
            )
        self._prompts.setdefault(int(object_id), {})[int(frame)] = prompt

    def clear_prompts(self, object_id: int | None = None, frame: int | None = None) -> None:
        """Take back the prompts of an object, on a frame, or both; of everything by default."""
        for known in list(self._prompts):
            if object_id is not None and known != object_id:
                continue
            frames = self._prompts[known]
            for t in list(frames) if frame is None else [frame]:
                frames.pop(t, None)
            if not frames:
                del self._prompts[known]

    # -- masks ---------------------------------------------------------------------------------

    def predict(self, frame: int, objects: Iterable[int] | None = None) -> FrameResult:
        """Masks from the prompts on this frame alone, for a live preview.

        Args:
            objects: ids; by default all. Those without a prompt on this frame are left out.
        """
        self._check_frame(frame)
        ids = [i for i in self._chosen(objects) if frame in self._prompts[i]]
        self._unreadable = {}
        prompts = {i: self._prompts[i][frame] for i in ids}
        return self._result(frame, self._decode_prompts(frame, prompts), self._prompts)

    def propagate(
        self,
        objects: Iterable[int] | None = None,
        direction: Direction = "both",
        start: int | None = None,
        stop: int | None = None,
        only: Mapping[int, Collection[int]] | None = None,
        skip_unreadable: bool = False,
    ) -> Iterator[FrameResult]:
        """Track objects through the sequence, one frame at a time.

        Forward, a frame follows from the last prompted frame before it; backward, from the next
        one after it. With "both" it follows from the nearer of the two. A frame where clicks only
        say what does not belong to an earlier answer (`Prompt.trims`) is passed through on the
        way. Frames come in order, first ascending, then descending; the two passes never give the
        same object twice.

        Close the generator to cancel. A later call that starts where it was cancelled goes on
        from there without tracking the earlier frames again, and gives the same masks.

        Args:
            objects: ids, by default all that have prompts.
            start, stop: first and last frame wanted, both included; by default all.
            only: the frames wanted of each object, of those from `start` to `stop`; an object that
                is not named is left out. By default all frames of all objects.
            skip_unreadable: go on past frames that cannot be read, as if they were not there.
                Their results have an `error` and no objects. Nothing is tracked from a prompted
                frame that cannot be read.

        Yields:
            A FrameResult with the objects that the frame belongs to.

        Raises:
            ValueError: no such object, frame or direction; raised by the call itself.
            UnreadableFrame: a frame cannot be read. With `skip_unreadable`: several in a row, and
                by then none that could be read before, either.
        """
        ids, passes = self._plan(objects, direction, start, stop, only)
        return self._run(ids, passes, skip_unreadable)

    def num_steps(
        self,
        objects: Iterable[int] | None = None,
        direction: Direction = "both",
        start: int | None = None,
        stop: int | None = None,
        only: Mapping[int, Collection[int]] | None = None,
    ) -> int:
        """How many results the same call of propagate yields."""
        _, passes = self._plan(objects, direction, start, stop, only)
        return sum(len(one.yielded) for one in passes)

    # -- planning ------------------------------------------------------------------------------

    def _plan(
        self,
        objects: Iterable[int] | None,
        direction: Direction,
        start: int | None,
        stop: int | None,
        only: Mapping[int, Collection[int]] | None,
    ) -> tuple[tuple[int, ...], list[Pass]]:
        start = 0 if start is None else int(start)
        stop = len(self) - 1 if stop is None else int(stop)
        self._check_frame(start)
        self._check_frame(stop)
        ids = self._chosen(objects)
        if only is not None:
            named = self._chosen(only)
            ids = tuple(i for i in ids if i in named)
        between = range(start, stop + 1)
        wanted = {i: frozenset(between if only is None else {*between} & {*only[i]}) for i in ids}
        return ids, plan(self._prompts, wanted, len(self), direction, self._adjacent)

    # -- tracking ------------------------------------------------------------------------------

    def _run(self, ids: tuple[int, ...], passes: list[Pass], skips: bool) -> Iterator[FrameResult]:
        if not ids:
            return
        given = {i: dict(self._prompts[i]) for i in ids}
        self._unreadable, self._failures = {}, 0
        runs, told = [], {frame for one in passes for frame in one.shown}
        for one in passes:
            resumed = []
            for sweep in one.sweeps:
                try:
                    resumed.append(self._resume(sweep, ids, one.wanted_of(sweep), skips))
                except UnreadableFrame as error:
                    self._pass_over(error, skips)
                    if error.frame not in told:
                        told.add(error.frame)
                        yield replace(self._result(error.frame, {}, given), error=error)
            runs.append((one, resumed))
        self._paused.clear()  # of earlier calls, which could pile up
        for one, runners in runs:
            looks_ahead = self.features.encodes_ahead
            try:
                for frame in one.frames(t for runner in runners for t in runner.ahead):
                    active = [runner for runner in runners if runner.is_due(frame)]
                    try:
                        answers = {
                            i: self._prompted_frame(frame).answers[i]
                            for i in one.shown.get(frame, [])
                        }
                        tracked = self._track(frame, active)
                    except UnreadableFrame as error:
                        self._pass_over(error, skips)
                        for runner in active:
                            runner.next, runner.is_whole = frame + one.step, False
                        if frame in one.yielded:
                            yield replace(self._result(frame, {}, given), error=error)
                        continue
                    self._failures = 0
                    looks_ahead = looks_ahead and self._encode_ahead(frame, one.step, runners)
                    answers |= {i: a for i, a in tracked.items() if frame in one.wanted[i]}
                    if answers:
                        yield self._result(frame, answers, given)
            finally:
                for runner in runners:
                    self._pause(runner)

    def _pass_over(self, error: UnreadableFrame, skips: bool) -> None:
        """Go on past a frame, unless it is not asked for or there is no sense in it."""
        self._unreadable[error.frame] = error
        self._failures += 1
        is_row = self._failures % FAILURES_IN_A_ROW == 0
        if not skips or (is_row and self.source.is_gone()):
            raise error

    def _resume(
        self, sweep: Sweep, ids: tuple[int, ...], wanted: Sequence[int], skips: bool
    ) -> _Runner:
        """A runner at the sweep's origin, or where an earlier call left the same sweep."""
        state = self._state(sweep, ids)
        paused = self._paused.pop(sweep.key, None)
        if paused is not None and paused.state == state:
            behind = (wanted[0] - paused.next) * sweep.frames.step >= 0
            if behind:
                return replace(paused, sweep=sweep, end=wanted[-1])
        memories = {}
        for frame in sweep.sees:
            try:
                memories[frame] = self._prompted_frame(frame).memories[sweep.object_id]
            except UnreadableFrame as error:
                if frame == sweep.origin or not skips:
                    raise
                self._unreadable[frame] = error
        config, most = self.model.config, self._max_prompted
        bank = (
            ConfidentMemoryBank(config, memories, most)
            if self._is_selective
            else MemoryBank(config, len(self), sweep.frames.step, memories, most)
        )
        origin = self._prompted_frame(sweep.origin).answers[sweep.object_id]
        first = sweep.frames[0]
        is_whole = len(memories) == len(sweep.sees)
        low_res, area = origin.low_res, origin.area
        return _Runner(sweep, state, bank, first, low_res, area, wanted[-1], is_whole=is_whole)

    def _pause(self, runner: _Runner) -> None:
        """Keep a sweep that was begun and not finished."""
        is_begun = runner.next != runner.sweep.frames[0]
        if is_begun and runner.is_whole and runner.next in runner.sweep.frames:
            self._paused[runner.sweep.key] = runner

    def _state(self, sweep: Sweep, ids: tuple[int, ...]) -> tuple[Any, ...]:
        """All that the object's memories follow from, but for the frames and the model."""
        passed = self._prompts[sweep.object_id].keys() & set(sweep.frames)
        frames = sorted({*sweep.sees, *passed})
        return ids, tuple((frame, *self._prompts_on(frame).items()) for frame in frames)

    @torch.inference_mode()
    def _track(self, frame: int, runners: Sequence[_Runner]) -> dict[int, _Answer]:
        """Track objects to a frame, together where their memories are equally many."""
        answers: dict[int, _Answer] = {}
        trimmed = [r for r in runners if frame in self._prompts[r.sweep.object_id]]
        for runner in trimmed:
            prompted, i = self._prompted_frame(frame), runner.sweep.object_id
            self._advance(frame, runner, prompted.answers[i], prompted.memories[i])
        runners = [runner for runner in runners if runner not in trimmed]
        for runner in runners:
            if self._has_ended(runner):
                answers[runner.sweep.object_id] = self._absent(runner.area)
                runner.next += runner.sweep.frames.step
        runners = [runner for runner in runners if not self._has_ended(runner)]
        if not runners:
            return answers
        self._follow(runners)
        self._encode_with_next(frame, [runner for runner in runners if runner.area is None])
        groups: dict[tuple[bool, int, int], list[tuple[_Runner, Recalled]]] = defaultdict(list)
        for runner in runners:
            recall = runner.bank.recall(frame)
            recalled = self.model.memory_tokens(*recall)
            key = runner.area is None, len(recall.memories), recalled.num_pointers
            groups[key].append((runner, recalled))

        for members in (part for group in groups.values() for part in _portions(group)):
            areas = [runner.area for runner, _ in members]
            features = self._features(frame, areas)
            recalled = join([recalled for _, recalled in members])
            conditioned = self.model.attend_to_memory(features, recalled)
            before = None
            if self.model.config.draws_prompts:
                before = as_mask_input(torch.cat([runner.last for runner, _ in members]))
            decoded = self.model.decode_masks(
                features, conditioned, mask_input=before, multimask=True
            )
            memories = self._remember_tracked(features, decoded)
            for (runner, _), answer, memory in zip(
                members, self._split(decoded, areas), memories, strict=True
            ):
                answers[runner.sweep.object_id] = answer
                self._advance(frame, runner, answer, memory)
        return answers

    def _advance(self, frame: int, runner: _Runner, answer: _Answer, memory: Memory) -> None:
        """Remember an object's answer on a frame, and go on to the next."""
        confidence = self._confidence(answer)
        runner.bank.add(frame, memory, confidence)
        if not self._is_selective or confidence >= CONFIDENT_IOU:
            runner.last, runner.area = answer.low_res, answer.area
        runner.next += runner.sweep.frames.step
        if self._end_after is not None:
            is_found = bool((answer.low_res > 0).any())
            runner.absent = 0 if is_found else runner.absent + 1

    def _follow(self, runners: Sequence[_Runner]) -> None:
        """Move areas to where their objects were last."""
        for runner in runners:
            if runner.area is None:
                continue
            before = self.source.geometry.looking_at(runner.area)
            now = before.following(runner.last)
            runner.last, runner.area = now.low_res_as_seen(runner.last, before), now.area

    def _features(self, frame: int, areas: Sequence[Area | None]) -> ImageFeatures:
        """Of a frame as it is looked at for some objects: for all of them on all of it, or for each
        in an area.
        """
        if frame in self._unreadable:
            raise self._unreadable[frame]
        if areas[0] is None:
            return self.features[frame].expand(len(areas))
        parts: list[Part] = [(frame, area) for area in areas if area is not None]
        count = frames_at_once(self.model)
        different = list(dict.fromkeys(parts))
        if self.features.holds(len(different)):
            for start in range(0, len(different), count):
                self.features.encode(different[start : start + count])
        found = [self.features[part] for part in parts]
        return ImageFeatures(*(torch.cat(level) for level in zip(*found, strict=True)))

    def _encode_with_next(self, frame: int, runners: Sequence[_Runner]) -> None:
        """Encode some of the next frames together with this one, which is quicker where frames are
        small for the machine.

        runners: that look at all of the frames.
        """
        if not runners or frame in self.features:
            return
        count, step = frames_at_once(self.model), runners[0].sweep.frames.step
        due = self._sure_of(runners, count)
        following = [t for t in range(frame, frame + count * step, step) if t in due]
        missing = [t for t in following if t not in self.features]
        if len(missing) > 1 and self.features.holds(len(missing) + 1):
            try:
                self.features.encode(following)
            except UnreadableFrame as error:
                if error.frame == frame:
                    raise
                self._unreadable[error.frame] = error  # told of when it is needed

    def _encode_ahead(self, frame: int, step: int, runners: Sequence[_Runner]) -> bool:
        """Have the device encode the next frames beside what it still has to do for this one, one
        batch ahead. Returns False where something fails: the error is raised where that frame is
        needed, when the results before it are out.
        """
        count = frames_at_once(self.model)
        most = 2 * count - 1  # the rest of this batch, and the next one
        due = self._sure_of([runner for runner in runners if runner.area is None], most)
        following = [t for t in range(frame + step, frame + (most + 1) * step, step) if t in due]
        missing = [t for t in following if t not in self.features]
        is_enough = len(following) - len(missing) >= count
        if missing and not is_enough and self.features.holds(len(following) + 2):
            later = missing[count:]
            try:
                self.features.encode([t for t in following if t not in later])
            except UnreadableFrame as error:
                self._unreadable[error.frame] = error
            except Exception:
                return False
        return True

    def _sure_of(self, runners: Sequence[_Runner], count: int) -> set[int]:
        """The next frames, up to so many of each, that objects cannot have ended before; without
        those that could not be read.
        """
        due: set[int] = set()
        for runner in runners:
            until = count if self._end_after is None else self._end_after - runner.absent
            due.update(runner.ahead[: max(min(count, until), 0)])
        return due - self._unreadable.keys()

    def _confidence(self, answer: _Answer) -> float:
        """Predicted IoU, 0 of an absent object; read from the device only where it is needed."""
        if not self._is_selective or float(answer.object_score) <= 0:
            return 0.0
        return float(answer.iou)

    def _has_ended(self, runner: _Runner) -> bool:
        return self._end_after is not None and runner.absent >= self._end_after

    def _absent(self, area: Area | None) -> _Answer:
        """The answer on a frame beyond an object's end."""
        config, device = self.model.config, self.model.device
        side = config.image_size // 4
        return _Answer(
            low_res=torch.full((1, 1, side, side), ABSENT_LOGIT, device=device),
            iou=torch.zeros(1, device=device),
            object_score=torch.full((1, 1), ABSENT_LOGIT, device=device),
            pointer=torch.zeros((1, config.d_model), device=device),
            area=area,
        )

    # -- prompted frames -----------------------------------------------------------------------

    def _prompts_on(self, frame: int) -> dict[int, Prompt]:
        return {i: self._prompts[i][frame] for i in self.object_ids if frame in self._prompts[i]}

    def _prompted_frame(self, frame: int) -> _PromptedFrame:
        """Answers and memories of all objects prompted on a frame, computed together.

        Together, also where only one is asked for: so they do not depend on who asks.
        """
        prompts = self._prompts_on(frame)
        known = self._prompted_frames.get(frame)
        if known is None or known.prompts != prompts:
            answers = self._decode_prompts(frame, prompts)
            known = _PromptedFrame(prompts, answers, self._remember_prompted(frame, answers))
            self._prompted_frames[frame] = known
            for old in set(self._prompted_frames) - {t for p in self._prompts.values() for t in p}:
                del self._prompted_frames[old]
        return known

    @torch.inference_mode()
    def _decode_prompts(self, frame: int, prompts: Mapping[int, Prompt]) -> dict[int, _Answer]:
        """Decode prompts without memory, together where they have the same form."""
        if not prompts:
            return {}
        rounds = {i: list(p.rounds()) if self._refine_clicks else [p] for i, p in prompts.items()}
        answers: dict[int, _Answer] = {}
        for turn in range(max(map(len, rounds.values()))):
            groups: dict[tuple[bool, bool, int, bool], list[int]] = defaultdict(list)
            asked: dict[int, Prompt] = {}
            for i, own in rounds.items():
                if turn >= len(own):
                    continue
                p = own[turn]
                if turn:
                    p = replace(p, mask_input=answers[i].low_res[0, 0].cpu().float().numpy())
                asked[i] = p
                form = p.mask is None, p.num_tokens, p.mask_input is None
                groups[p.area is None, *form].append(i)
            for members in (part for group in groups.values() for part in _portions(group)):
                areas = [asked[i].area for i in members]
                features = self._features(frame, areas)
                decoded = self._decode_group(features, [asked[i] for i in members])
                answers.update(zip(members, self._split(decoded, areas), strict=True))
        return {i: self._within(prompts[i], answer) for i, answer in answers.items()}

    def _within(self, prompt: Prompt, answer: _Answer) -> _Answer:
        """An answer without what lies where the object may not lie."""
        if prompt.within is None:
            return answer
        seen = self.source.geometry.looking_at(prompt.area)
        allowed = seen.mask_to_low_res(torch.from_numpy(prompt.within)[None, None])
        outside = allowed.to(answer.low_res.device) < 0.5
        limited = torch.where(outside, answer.low_res.clamp(max=_BEYOND), answer.low_res)
        return replace(answer, low_res=limited)

    def _decode_group(self, features: ImageFeatures, prompts: Sequence[Prompt]) -> Decoded:
        """features: of what is looked at for each of them."""
        seen = [self.source.geometry.looking_at(p.area) for p in prompts]
        if prompts[0].mask is not None:
            masks = [
                geometry.mask_to_model(torch.from_numpy(p.mask)[None, None].to(self.model.device))
                for geometry, p in zip(seen, prompts, strict=True)
                if p.mask is not None
            ]
            return self.model.mask_as_output(features, torch.cat(masks))
        points, labels = [], []
        for geometry, p in zip(seen, prompts, strict=True):
            yx, signs = p.points, p.labels
            if p.box is not None:  # the corners come first
                yx = np.concatenate((np.array(p.box, np.float32).reshape(2, 2), yx))
                signs = np.concatenate((np.array([2, 3]), signs))
            points.append(geometry.to_model(yx))
            labels.append(signs)
        mask_input = None
        if prompts[0].mask_input is not None:
            stacked = np.stack([p.mask_input for p in prompts if p.mask_input is not None])
            mask_input = as_mask_input(torch.from_numpy(stacked)[:, None].to(self.model.device))
        return self.model.decode_masks(
            features,
            self.model.without_memory(features),
            torch.from_numpy(np.stack(points)).to(self.model.device),
            torch.from_numpy(np.stack(labels)).to(self.model.device),
            mask_input,
            multimask=prompts[0].num_tokens == 1,
        )

    @torch.inference_mode()
    def _remember_prompted(self, frame: int, answers: Mapping[int, _Answer]) -> dict[int, Memory]:
        memories: dict[int, Memory] = {}
        whole = [i for i, answer in answers.items() if answer.area is None]
        close = [i for i, answer in answers.items() if answer.area is not None]
        for ids in (*_portions(whole), *_portions(close)):
            low_res = torch.cat([answers[i].low_res for i in ids])
            score = torch.cat([answers[i].object_score for i in ids])
            features = self._features(frame, [answers[i].area for i in ids])
            encoded = self.model.encode_memory(
                features, self.model.upscale(low_res), score, binarise=True
            )
            for index, i in enumerate(ids):
                own = encoded[index : index + 1]
                picked = self._pick(own, low_res[index : index + 1])
                memories[i] = Memory(own, answers[i].pointer, picked)
        return memories

    # -- helpers -------------------------------------------------------------------------------

    def _remember_tracked(self, features: ImageFeatures, decoded: Decoded) -> list[Memory]:
        encoded = self.model.encode_memory(
            features, self.model.upscale(decoded.low_res), decoded.object_score, binarise=False
        )
        memories = []
        for i in range(len(encoded)):
            one = slice(i, i + 1)
            own = encoded[one].clone()
            picked = self._pick(own, decoded.low_res[one])
            memories.append(Memory(own, decoded.pointer[one].clone(), picked))
        return memories

    def _pick(self, memory: Tensor, low_res: Tensor) -> Picked | None:
        """What is looked at of a memory; low_res: (1, 1, S/4, S/4) logits of its object."""
        if self._memory_tokens == "all":
            return None
        near = torch.zeros([side // 2 for side in memory.shape[-2:]], dtype=torch.bool)
        if self._memory_tokens == "near":
            near = near_object(low_res)[0].cpu()
        return pick(memory, near)

    def _split(self, decoded: Decoded, areas: Sequence[Area | None]) -> Iterator[_Answer]:
        """One answer per object, with small holes filled if asked for."""
        low_res = fill_small_holes(decoded.low_res, self._fill_holes)
        iou, score, pointer = decoded.iou, decoded.object_score, decoded.pointer
        for i, area in enumerate(areas):
            one = slice(i, i + 1)
            yield _Answer(low_res[one], iou[one], score[one], pointer[one], area)

    def _result(
        self,
        frame: int,
        answers: Mapping[int, _Answer],
        prompts: Mapping[int, Mapping[int, Prompt]],
    ) -> FrameResult:
        ids = tuple(sorted(answers))
        side = self.model.image_size // 4

        def gather(tensors: list[Tensor], *shape: int) -> NDArray[np.float32]:
            if not tensors:
                return np.empty((0, *shape), np.float32)
            out: NDArray[np.float32] = torch.cat(tensors).float().cpu().numpy()
            return out.reshape(len(ids), *shape)

        masks = {i: prompts[i][frame].mask for i in ids if frame in prompts[i]}
        return FrameResult(
            frame=frame,
            object_ids=ids,
            low_res=gather([answers[i].low_res for i in ids], side, side),
            iou=gather([answers[i].iou for i in ids]),
            object_score=gather([answers[i].object_score for i in ids]),
            given={i: mask for i, mask in masks.items() if mask is not None},
            geometry=self.source.geometry,
            areas=tuple(answers[i].area for i in ids),
        )

    def _chosen(self, objects: Iterable[int] | None) -> tuple[int, ...]:
        if objects is None:
            return self.object_ids
        ids = tuple(sorted({int(i) for i in objects}))
        missing = [i for i in ids if i not in self._prompts]
        if missing:
            raise ValueError(f"Object {missing[0]} has no prompts.")
        return ids

    def _check_frame(self, frame: int) -> None:
        if int(frame) != frame or not 0 <= frame < len(self):
            raise ValueError(
                f"There is no frame {frame}; the sequence has frames 0 to {len(self) - 1}."
            )


def _portions(members: list[T]) -> Iterator[list[T]]:
    """What is computed together, in an order that does not change."""
    for start in range(0, len(members), _OBJECTS_AT_ONCE):
        yield members[start : start + _OBJECTS_AT_ONCE]
