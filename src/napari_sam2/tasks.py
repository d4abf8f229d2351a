"""What a session asks of the model, and how it is computed: in any one thread."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_sam2.areas import Area, enlarged, moved
from napari_sam2.feature_files import feature_files
from napari_sam2.sequence_view import SequenceView, Windows
from napari_sam2.slice_data import Basis, CoarseLogits, Life, ObjectMask, SlicePrompts

if TYPE_CHECKING:
    from sam2_engine.frames import Geometry
    from sam2_engine.memory import MemorySelection, MemoryTokens
    from sam2_engine.model import SAM2
    from sam2_engine.sequence import Direction, SequencePredictor

_MOST_CLICKS = 8  # for one scribble
_CLICK_DISTANCE = 0.1  # of the frame, at least between them
_ROUGH = 16.0  # the logit in the middle of a lasso

Anchors = Mapping[int, SlicePrompts]
"""Frame -> what masks of one object follow from."""
Wanted = Mapping[int, frozenset[int]]
"""Object -> frames to be computed."""


CPU_BFLOAT16 = "cpu-bfloat16"
"""The device of a model that is to multiply in bfloat16 on a processor, which is quicker."""


class LazyModel:
    """A model by name, loaded when it is first needed."""

    def __init__(
        self,
        model: SAM2 | str = "nano",
        device: str = "auto",
        *,
        compile: bool = False,
        is_quiet: bool = False,
    ) -> None:
        """
        Args:
            model: a name of `sam2_engine.list_models()`, a checkpoint's path, or a loaded model;
                names and paths as `sam2_engine.load_model` takes them, also with a size.
            device: "auto", "cpu", "cpu-bfloat16", "cuda" or "mps".
            compile: as for `sam2_engine.load_model`, for a model that is yet to be loaded.
            is_quiet: whether nothing is printed of how long that takes.
        """
        self.name = model if isinstance(model, str) else "model"
        self.device = device
        self.compile = compile
        self._is_quiet = is_quiet
        self.downloaded: tuple[int, int | None] | None = None
        """Bytes downloaded and bytes in all, during a download."""
        self._is_named = isinstance(model, str)
        self._loaded = None if isinstance(model, str) else model
        self._lock = threading.Lock()
        self._stopped = False
        self._checksum = ""

    @property
    def is_loaded(self) -> bool:
        return self._loaded is not None

    @property
    def image_size(self) -> int | None:
        """How many pixels along each side it sees of a frame; None before it is loaded."""
        return None if self._loaded is None else self._loaded.config.image_size

    def get(self) -> SAM2:
        """The model, after a download if need be. Raises what `sam2_engine.load_model` raises."""
        with self._lock:
            if self._loaded is None:
                from sam2_engine.model import say, say_nothing
                from sam2_engine.weights import load_model

                is_mixed = self.device == CPU_BFLOAT16
                device, dtype = ("cpu", "mixed") if is_mixed else (self.device, "auto")
                try:
                    self._loaded = load_model(
                        self.name,
                        device,
                        dtype,
                        progress=self._on_progress,
                        compile=self.compile,
                        tell=say_nothing if self._is_quiet else say,
                    )
                finally:
                    self.downloaded, self._stopped = None, False
            return self._loaded

    @property
    def checksum(self) -> str:
        """The sha256 of the model's file, known before it is loaded; empty where it is not here.

        Behind it is the size, where the name asks for one. Of a model that came loaded, a sum over
        its weights.
        """
        if not self._checksum:
            self._checksum = _sum_of_file(self.name) if self._is_named else _sum_of(self.get())
        return self._checksum

    def stop_download(self) -> None:
        """Have a download in another thread end, or not begin, with an error that says so."""
        self._stopped = True

    def _on_progress(self, done: int, total: int | None) -> None:
        from sam2_engine.weights import WeightsError

        if self._stopped:
            raise WeightsError(f"The download of {self.name} was stopped; choose it to go on.")
        self.downloaded = done, total


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
    """The predictors of the sequence that was last asked for. Not for two threads at once."""

    def __init__(self) -> None:
        self._key: tuple[SequenceView, Source] | tuple[()] = ()
        self._pair: _Pair

    def preview(self, task: Task, frame: int) -> Step:
        """The masks of all objects that are prompted on a frame, from these prompts alone."""
        self._prepare(task)
        return Step(frame, self._pair.look(task, frame), is_preview=True)

    def encode(self, task: Task, frame: int) -> None:
        """Look at a frame, so that the first click on it is answered at once."""
        self._prepare(task)
        self._pair.tracker.features[frame]

    def is_encoded(self, task: Task, frame: int) -> bool:
        """Whether a click on a frame would be answered at once."""
        return self._is_prepared(task) and frame in self._pair.tracker.features

    def propagate(self, task: Task) -> Iterator[Step]:
        """The masks that are wanted, one frame at a time."""
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
            for result in tracker.propagate(wanted, direction, only=wanted, skip_unreadable=True):
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


def _sum_of_file(name: str) -> str:
    """Of a model by name or path."""
    from sam2_engine.names import split_size, with_size
    from sam2_engine.weights import find_file, model_info

    model, size = split_size(name)
    info = model_info(model)
    if info is not None and info.image_size == size:
        size = None  # the same masks follow
    if info is not None and info.sha256 is not None:
        return with_size(info.sha256, size)
    path = find_file(name)
    if path is None:
        return ""
    with open(path, "rb") as file:
        return with_size(hashlib.file_digest(file, "sha256").hexdigest(), size)


def _sum_of(model: SAM2) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().float().numpy().tobytes())
    return total.hexdigest()


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


def area_on(said: SlicePrompts, area: Area | None, shape: tuple[int, int]) -> Area | None:
    """Where to look for an object on a frame (H, W) that is marked: in its area, or where that has
    followed it to; moved to marks that show it elsewhere, enlarged for those that correct it.
    """
    if area is None:
        return None
    corrected = None if said.starts_over else said.corrects
    here = area if corrected is None else corrected.area or area
    if said.extent is None:
        return here
    return (moved if corrected is None else enlarged)(here, said.extent, shape)


def engine_prompts(said: SlicePrompts, geometry: Geometry) -> dict[str, Any]:
    """What is said of an object on a frame, as arguments of `SequencePredictor.set_prompts`.

    geometry: with the part of the frame to look at.

    A scribble becomes clicks spread along it. Lassos become the box around them and a rough mask;
    the object is kept within them, unless a click on it lies outside. Marks may reach beyond the
    frame; what counts is the part inside.
    """
    shape = geometry.frame_shape
    if said.mask is not None:
        return {"mask": said.mask.on_frame(shape), "area": geometry.area}
    first, last = np.reshape(geometry.seen, (2, 2)) - 0.5
    strokes = [(point[None], label) for point, label in zip(said.points, said.labels, strict=True)]
    strokes += [(_spread(one.path, shape), one.label) for one in said.scribbles]
    prompts: dict[str, Any] = {"area": geometry.area}
    if strokes:
        counts = [len(clicks) for clicks, _ in strokes]
        prompts["points"] = np.concatenate([clicks for clicks, _ in strokes]).clip(first, last)
        prompts["labels"] = np.repeat([label for _, label in strokes], counts)
        prompts["strokes"] = np.repeat(np.arange(len(strokes)), counts)
    if said.starts_over:
        corners = [np.reshape(said.box, (2, 2))] if said.box is not None else []
        around = np.concatenate([*corners, *said.lassos]).clip(first, last)
        prompts["box"] = (*around.min(axis=0), *around.max(axis=0))
    elif said.corrects is not None:
        prompts["mask_input"] = _as_seen(said.corrects, geometry)
    if said.lassos and said.box is None:
        prompts |= _lassoed(said.lassos, prompts, geometry)
    return prompts


def _lassoed(
    lassos: Iterable[NDArray[np.float64]], marks: Mapping[str, Any], geometry: Geometry
) -> dict[str, Any]:
    """What lassos add to their box, beside points of `marks`."""
    import torch
    from skimage.draw import polygon2mask

    shape = geometry.frame_shape
    inside = np.logical_or.reduce([polygon2mask(shape, lasso) for lasso in lassos])
    if not inside.any():
        return {}
    covered = geometry.mask_to_low_res(torch.from_numpy(inside)[None, None])[0, 0].numpy()
    added: dict[str, Any] = {"mask_input": (2 * covered - 1) * _ROUGH}
    if marks.get("points") is not None:
        on_it = np.rint(marks["points"][marks["labels"] == 1]).astype(int)
        y, x = on_it.clip(0, np.array(shape) - 1).T
        if not inside[y, x].all():
            return added
    return added | {"within": inside}


def _spread(path: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Clicks spread evenly along a line of (N, 2) corners, none of them at its ends.

    More clicks on a small object do not make its mask better, so they keep a distance.
    """
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=1)
    along = np.concatenate(([0], np.cumsum(lengths)))
    if not along[-1]:
        return path[:1]
    count = min(_MOST_CLICKS, 1 + int(along[-1] / (_CLICK_DISTANCE * max(shape))))
    at = (np.arange(count) + 0.5) / count * along[-1]
    return np.stack([np.interp(at, along, path[:, axis]) for axis in (0, 1)], axis=1)


def _masks_of(result: Any) -> dict[int, ObjectMask | None]:
    """A predictor's FrameResult as masks."""
    return {
        object_id: ObjectMask.of_logits(
            result.logits_of(object_id), result.low_res[n], result.iou[n], result.areas[n]
        )
        for n, object_id in enumerate(result.object_ids)
    }


def _as_seen(known: CoarseLogits, geometry: Geometry) -> NDArray[np.float32]:
    """(S/4, S/4) the logits of a mask in the part of the frame that the model looks at now."""
    logits = _resized(known.logits(), geometry.image_size // 4)
    import torch

    before = geometry.looking_at(known.area)
    low_res: NDArray[np.float32] = geometry.low_res_as_seen(
        torch.from_numpy(logits)[None, None], before
    )[0, 0].numpy()
    return low_res


def _resized(logits: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Logits that another model gave, at the size that this model takes."""
    if logits.shape == (side, side):
        return logits
    from scipy.ndimage import zoom

    scale = side / np.array(logits.shape)
    resized: NDArray[np.float32] = zoom(logits, scale, order=1, grid_mode=True, mode="nearest")
    return resized
