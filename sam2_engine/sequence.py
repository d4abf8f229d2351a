"""The streaming predictor: prompts on some frames in, masks on all frames out.

Masks follow from prompts, frames and model alone. A prompted frame is decoded from its own
prompts without memory; every other frame is tracked from a prompted frame of its object, in
one direction, frame by frame. Nothing of an earlier pass is reused that a fresh predictor
would not compute alike, so the order of calls never shows in the result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sam2_engine.answers import Answer, Answers
from sam2_engine.encoding import FrameEncoder
from sam2_engine.features import EncodingStream, FeatureCache, FeatureStore, encode_parts
from sam2_engine.frame_result import FrameResult
from sam2_engine.frames import Area, Fit, Frames, FrameSource, Windows
from sam2_engine.memory import ConfidentMemoryBank, MemoryBank, MemorySelection, MemoryTokens
from sam2_engine.model import SAM2
from sam2_engine.passes import Direction, Pass, Sweep, plan
from sam2_engine.prompted import PromptedFrames
from sam2_engine.prompts import Prompt
from sam2_engine.tracking import Runner, Tracker
from sam2_engine.unreadable import FAILURES_IN_A_ROW, UnreadableFrame


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
        # None of what follows has a reference to self: so features are freed with a predictor.
        features = FeatureCache(
            partial(encode_parts, model, self.source, store),
            cache_bytes,
            cache_dtype,
            EncodingStream(model.device),
        )
        if end_after is not None and end_after < 1:
            raise ValueError(f"end_after is a number of frames, 1 or more, or None: {end_after!r}.")
        if memory not in get_args(MemorySelection):
            raise ValueError(f'memory must be "recent" or "confident", not {memory!r}.')
        if memory_tokens not in get_args(MemoryTokens):
            known = '"all", "near" or "pooled"'
            raise ValueError(f"memory_tokens must be {known}, not {memory_tokens!r}.")
        self._adjacent = max_prompted_frames == "adjacent"
        self._max_prompted = None if max_prompted_frames == "adjacent" else max_prompted_frames
        self._is_selective = memory == "confident"
        self._prompts: dict[int, dict[int, Prompt]] = {}
        geometry, answers = self.source.geometry, Answers(model, fill_holes, memory_tokens)
        self._encoder = FrameEncoder(model, features)
        self._prompted = PromptedFrames(
            self._prompts, self._encoder, answers, geometry, refine_clicks
        )
        self._tracker = Tracker(
            self._prompted, self._encoder, answers, geometry, end_after, self._is_selective
        )
        self._paused: dict[tuple[int, int, int], Runner] = {}
        self._failures = 0  # frames in a row that could not be read

    @property
    def features(self) -> FeatureCache:
        """Of frames that were looked at; another predictor of the same frames can share it."""
        return self._encoder.features

    @features.setter
    def features(self, features: FeatureCache) -> None:
        self._encoder.features = features

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
        self._encoder.unreadable = {}
        prompts = {i: self._prompts[i][frame] for i in ids}
        return self._result(frame, self._prompted.decode(frame, prompts), self._prompts)

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
        self._encoder.unreadable, self._failures = {}, 0
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
                            i: self._prompted[frame].answers[i] for i in one.shown.get(frame, [])
                        }
                        tracked = self._tracker.track(frame, active)
                    except UnreadableFrame as error:
                        self._pass_over(error, skips)
                        for runner in active:
                            runner.next, runner.is_whole = frame + one.step, False
                        if frame in one.yielded:
                            yield replace(self._result(frame, {}, given), error=error)
                        continue
                    self._failures = 0
                    if looks_ahead:
                        looks_ahead = self._tracker.encode_ahead(frame, one.step, runners)
                    answers |= {i: a for i, a in tracked.items() if frame in one.wanted[i]}
                    if answers:
                        yield self._result(frame, answers, given)
            finally:
                for runner in runners:
                    self._pause(runner)

    def _pass_over(self, error: UnreadableFrame, skips: bool) -> None:
        """Go on past a frame, unless it is not asked for or there is no sense in it."""
        self._encoder.unreadable[error.frame] = error
        self._failures += 1
        is_row = self._failures % FAILURES_IN_A_ROW == 0
        if not skips or (is_row and self.source.is_gone()):
            raise error

    def _resume(
        self, sweep: Sweep, ids: tuple[int, ...], wanted: Sequence[int], skips: bool
    ) -> Runner:
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
                memories[frame] = self._prompted[frame].memories[sweep.object_id]
            except UnreadableFrame as error:
                if frame == sweep.origin or not skips:
                    raise
                self._encoder.unreadable[frame] = error
        config, most = self.model.config, self._max_prompted
        bank = (
            ConfidentMemoryBank(config, memories, most)
            if self._is_selective
            else MemoryBank(config, len(self), sweep.frames.step, memories, most)
        )
        origin = self._prompted[sweep.origin].answers[sweep.object_id]
        first = sweep.frames[0]
        is_whole = len(memories) == len(sweep.sees)
        low_res, area = origin.low_res, origin.area
        return Runner(sweep, state, bank, first, low_res, area, wanted[-1], is_whole=is_whole)

    def _pause(self, runner: Runner) -> None:
        """Keep a sweep that was begun and not finished."""
        is_begun = runner.next != runner.sweep.frames[0]
        if is_begun and runner.is_whole and runner.next in runner.sweep.frames:
            self._paused[runner.sweep.key] = runner

    def _state(self, sweep: Sweep, ids: tuple[int, ...]) -> tuple[Any, ...]:
        """All that the object's memories follow from, but for the frames and the model."""
        passed = self._prompts[sweep.object_id].keys() & set(sweep.frames)
        frames = sorted({*sweep.sees, *passed})
        return ids, tuple((frame, *self._prompted.prompts_on(frame).items()) for frame in frames)

    # -- helpers -------------------------------------------------------------------------------

    def _result(
        self,
        frame: int,
        answers: Mapping[int, Answer],
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
