"""What a session asks of the model, and how it is computed: in any one thread."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from napari_sam2.areas import Area
from napari_sam2.engine_prompts import area_on, engine_prompts
from napari_sam2.feature_files import feature_files
from napari_sam2.lazy_model import LazyModel
from napari_sam2.sequence_view import SequenceView, Windows
from napari_sam2.slice_data import Basis, Life, ObjectMask, SlicePrompts

if TYPE_CHECKING:
    from sam2_engine.memory import MemorySelection, MemoryTokens
    from sam2_engine.sequence import Direction, SequencePredictor

Anchors = Mapping[int, SlicePrompts]
"""Frame -> what masks of one object follow from."""
Wanted = Mapping[int, frozenset[int]]
"""Object -> frames to be computed."""


@dataclass(frozen=True)
class Source:
    """What masks follow from besides frames and prompts."""

    model: LazyModel
    window: Windows | None
    end_after: int | None
    """Frames in a row without an object after which it is taken to have ended."""
    memory: MemorySelection = "recent"
    """Which tracked frames are remembered, as for `SequencePredictor`."""
    memory_tokens: MemoryTokens = "all"
    """How much of each is looked at, as for `SequencePredictor`."""


@dataclass(frozen=True, eq=False)
class Task:
    """What was asked of the model, as it stood then."""

    view: SequenceView
    source: Source
    anchors: Mapping[int, Anchors]
    """Of all objects."""
    wanted: Wanted
    """Of the objects that were asked for."""
    areas: Mapping[int, Area] = field(default_factory=dict)
    """The part of the frames to look at for an object; others are looked for on all of it."""
    lives: Mapping[int, Life] = field(default_factory=dict)
    """Where the objects that were asked for can be."""
    is_check: bool = False
    """Whether masks are followed from the farther one of the two marked frames around them, to be
    compared with those that are known."""
    joins_last: bool = False
    """Whether what is found is part of the last change, and is taken back with it."""

    def basis(self, object_id: int, frame: int) -> Basis:
        """What the object's mask on a frame follows from."""
        return basis(self.source, self.anchors[object_id], frame, self.areas.get(object_id))


@dataclass(frozen=True, eq=False)
class Step:
    """What the model found on one frame."""

    frame: int
    masks: Mapping[int, ObjectMask | None]
    """By object; None where the object is not seen."""
    done: int = 1
    total: int = 1
    """This is step `done` of `total`."""
    is_preview: bool = False
    """Whether this follows from the prompts on the frame alone."""
    error: str = ""
    """Why the frame could not be read; there are no masks then."""


class OtherSide(NamedTuple):
    """How a mask on a frame agrees with that followed from the marked frame on the other side."""

    iou: float
    """1 where neither shows the object."""
    pixels: int
    """Of one of them and not of the other."""

    @classmethod
    def of(cls, one: ObjectMask | None, other: ObjectMask | None) -> OtherSide:
        """None: the object is not seen."""
        areas = [0 if mask is None else int(mask.summary[0]) for mask in (one, other)]
        shared = 0 if one is None or other is None else one.shared_pixels(other)
        either = sum(areas) - shared
        return cls(shared / either if either else 1.0, either - shared)


def origins(anchors: Anchors) -> list[int]:
    """The frames that an object is followed from: not those where a tracked mask is only trimmed,
    unless there is no other. As in `SequencePredictor`.
    """
    return sorted([f for f, said in anchors.items() if not said.trims] or anchors)


def basis(source: Source, anchors: Anchors, frame: int, area: Area | None) -> Basis:
    """What an object's mask on a frame follows from: the prompts on it, else those around it, up to
    the next ones that it can be followed from; and where the model looks for it.
    """
    if frame in anchors:
        around = [frame]
    else:
        marked, frames = origins(anchors), sorted(anchors)
        place = bisect_left(marked, frame)
        first = bisect_left(frames, marked[place - 1]) if place else 0
        last = bisect_left(frames, marked[place]) + 1 if place < len(marked) else len(frames)
        around = frames[first:last]
    said = [anchors[f] for f in around]
    # Of what is painted or kept, only the mask counts, whatever else is said there.
    return source, area, *(one if one.mask is None else one.mask for one in said)


@dataclass
class _Pair:
    """Two predictors that share their image features: previews may come between the steps of a
    propagation, whose own prompts must not change meanwhile.
    """

    tracker: SequencePredictor
    preview: SequencePredictor
    said: dict[tuple[int, int], tuple[SlicePrompts, Area | None]] = field(default_factory=dict)
    """What the tracker has been told."""

    def tell(self, task: Task) -> None:
        """Let the tracker follow from all that is said."""
        self.said = _set_prompts(self.tracker, task.anchors, self.said, task)

    def look(self, task: Task, frame: int) -> dict[int, ObjectMask | None]:
        """The masks of objects that are prompted on a frame, from these prompts alone."""
        here = {i: {frame: own[frame]} for i, own in task.anchors.items() if frame in own}
        self.preview.clear_prompts()
        _set_prompts(self.preview, here, {}, task)
        return _masks_of(self.preview.predict(frame)) if here else {}


class Engine:
    """The predictors of the sequence that was last asked for. Of two threads, one waits a step.

    A window looks at slices in a thread, while someone computes in its console.
    """

    def __init__(self) -> None:
        self._key: tuple[SequenceView, Source] | tuple[()] = ()
        self._pair: _Pair
        self._lock = threading.RLock()
        self._follows_in: int | None = None
        """The thread that follows objects."""

    def preview(self, task: Task, frame: int) -> Step:
        """The masks of all objects that are prompted on a frame, from these prompts alone."""
        with self._lock:
            self._prepare(task)
            return Step(frame, self._pair.look(task, frame), is_preview=True)

    def encode(self, task: Task, frame: int) -> None:
        """Look at a frame, so that the first click on it is answered at once."""
        with self._lock:
            self._prepare(task)
            self._pair.tracker.features[frame]

    def is_encoded(self, task: Task, frame: int) -> bool:
        """Whether a click on a frame would be answered at once."""
        return self._is_prepared(task) and frame in self._pair.tracker.features

    def propagate(self, task: Task) -> Iterator[Step]:
        """The masks that are wanted, one frame at a time.

        Raises ValueError while objects are followed in another thread.
        """
        thread = threading.get_ident()
        with self._lock:
            if self._follows_in not in (None, thread):
                raise ValueError(
                    "Objects are being followed already. Wait until that is done, or stop it."
                )
            self._follows_in = thread
        try:
            yield from self._steps(task)
        finally:
            self._follows_in = None

    def _steps(self, task: Task) -> Iterator[Step]:
        with self._lock:
            self._prepare(task)
            self._pair.tell(task)
            tracker = self._pair.tracker
            both: dict[Direction, Wanted] = {"both": task.wanted}
            passes = _far_passes(task) if task.is_check else both
            total = sum(
                tracker.num_steps(wanted, direction, only=wanted)
                for direction, wanted in passes.items()
            )
        done = 0
        for direction, wanted in passes.items():
            results = tracker.propagate(wanted, direction, only=wanted, skip_unreadable=True)
            while True:
                with self._lock:
                    result = next(results, None)
                if result is None:
                    break
                done += 1
                error = "" if result.error is None else str(result.error)
                yield Step(result.frame, _masks_of(result), done, max(done, total), error=error)

    def _is_prepared(self, task: Task) -> bool:
        return self._key == (task.view, task.source)

    def _prepare(self, task: Task) -> None:
        if self._is_prepared(task):
            return
        pair, key = _make_pair(task), (task.view, task.source)
        if self._key and _seen(*self._key) == _seen(*key):
            pair.tracker.features = pair.preview.features = self._pair.tracker.features
        self._pair, self._key = pair, key


def _seen(view: SequenceView, source: Source) -> tuple[object, ...]:
    """What image features follow from."""
    return view, source.model, source.window


def _make_pair(task: Task) -> _Pair:
    from sam2_engine.sequence import SequencePredictor

    model, source = task.source.model.get(), task.source
    look: dict[str, Any] = {
        "fit": "pad",
        "pixel_size": task.view.pixel_size,
        "refine_clicks": True,
    }
    tracker = SequencePredictor(
        model,
        task.view,
        window=source.window,
        max_prompted_frames="adjacent",
        end_after=source.end_after,
        memory=source.memory,
        memory_tokens=source.memory_tokens,
        store=feature_files(source.model),
        **look,
    )
    preview = SequencePredictor(model, task.view, window=tracker.source.window, **look)
    preview.features = tracker.features
    return _Pair(tracker, preview)


def _far_passes(task: Task) -> dict[Direction, Wanted]:
    """In which direction frames follow from the farther one of the marked frames around them."""
    forward, backward = {}, {}
    for object_id, frames in task.wanted.items():
        marked = origins(task.anchors[object_id])
        places = {frame: bisect_left(marked, frame) for frame in frames}
        forward[object_id] = frozenset(  # of two that are equally near, the earlier one serves
            frame
            for frame, place in places.items()
            if frame - marked[place - 1] > marked[place] - frame
        )
        backward[object_id] = frames - forward[object_id]
    return {"forward": forward, "backward": backward}


def _set_prompts(
    predictor: SequencePredictor,
    anchors: Mapping[int, Anchors],
    known: Mapping[tuple[int, int], tuple[SlicePrompts, Area | None]],
    task: Task,
) -> dict[tuple[int, int], tuple[SlicePrompts, Area | None]]:
    """Give a predictor these prompts and no others. Returns them by object and frame.

    known: those that it has, which are left as they are, so that it can go on where it was.
    """
    wanted = {
        (i, frame): (said, area_on(said, task.areas.get(i), task.view.frame_shape))
        for i, own in anchors.items()
        for frame, said in own.items()
    }
    for object_id, frame in known.keys() - wanted.keys():
        predictor.clear_prompts(object_id, frame)
    for (object_id, frame), (said, area) in wanted.items():
        before = known.get((object_id, frame))
        if before is None or before[0] is not said or before[1] != area:
            prompts = engine_prompts(said, predictor.source.geometry.looking_at(area))
            predictor.set_prompts(object_id, frame, **prompts)
    return wanted


def _masks_of(result: Any) -> dict[int, ObjectMask | None]:
    """A predictor's FrameResult as masks."""
    return {
        object_id: ObjectMask.of_logits(
            result.logits_of(object_id), result.low_res[n], result.iou[n], result.areas[n]
        )
        for n, object_id in enumerate(result.object_ids)
    }
