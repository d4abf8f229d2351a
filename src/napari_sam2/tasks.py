"""What a session asks of the model, and how it is computed: in any one thread."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from napari_sam2.feature_files import feature_files
from napari_sam2.sequence_view import SequenceView, Windows
from napari_sam2.slice_data import Basis, ObjectMask, SlicePrompts

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
            model: a name of `sam2_engine.list_models()`, a checkpoint's path, or a loaded model.
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

    def get(self) -> SAM2:
        """The model, after a download if need be. Raises what `sam2_engine.load_model` raises."""
        with self._lock:
            if self._loaded is None:
                from sam2_engine.model import say, say_nothing
                from sam2_engine.weights import load_model

                self._stopped = False
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
                    self.downloaded = None
            return self._loaded

    @property
    def checksum(self) -> str:
        """The sha256 of the model's file, known before it is loaded; empty where it is not here.

        Of a model that came loaded, a sum over its weights.
        """
        if not self._checksum:
            self._checksum = _sum_of_file(self.name) if self._is_named else _sum_of(self.get())
        return self._checksum

    def stop_download(self) -> None:
        """Have a download under way in another thread end, with an error that says so."""
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
    is_check: bool = False
    """Whether masks are followed from the farther one of the two marked frames around them, to be
    compared with those that are known."""

    def basis(self, object_id: int, frame: int) -> Basis:
        """What the object's mask on a frame follows from."""
        return basis(self.source, self.anchors[object_id], frame)


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
        shared = 0 if one is None or other is None else shared_pixels(one, other)
        either = sum(areas) - shared
        return cls(shared / either if either else 1.0, either - shared)


def shared_pixels(one: ObjectMask, other: ObjectMask) -> int:
    """How many pixels two masks of a frame have in common."""
    top, left = max(one.top, other.top), max(one.left, other.left)
    bottom, right = (min(a.stop, b.stop) for a, b in zip(one.area, other.area, strict=True))
    if bottom <= top or right <= left:
        return 0
    parts = (
        mask.logits[top - mask.top : bottom - mask.top, left - mask.left : right - mask.left] > 0
        for mask in (one, other)
    )
    return int(np.logical_and(*parts).sum())


def origins(anchors: Anchors) -> list[int]:
    """The frames that an object is followed from: not those where a tracked mask is only trimmed,
    unless there is no other. As in `SequencePredictor`.
    """
    return sorted([f for f, said in anchors.items() if not said.trims] or anchors)


def basis(source: Source, anchors: Anchors, frame: int) -> Basis:
    """What an object's mask on a frame follows from: the prompts on it, else those around it, up to
    the next ones that it can be followed from.
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
    return source, *(one if one.mask is None else one.mask for one in said)


class Engine:
    """The predictors of the sequence that was last asked for. Not for two threads at once."""

    def __init__(self) -> None:
        self._key: tuple[SequenceView, Source] | tuple[()] = ()
        self._preview: SequencePredictor
        self._tracker: SequencePredictor
        self._said: dict[tuple[int, int], SlicePrompts] = {}

    def preview(self, task: Task, frame: int) -> Step:
        """The masks of all objects that are prompted on a frame, from these prompts alone."""
        self._prepare(task)
        here = {i: {frame: own[frame]} for i, own in task.anchors.items() if frame in own}
        self._preview.clear_prompts()
        _set_prompts(self._preview, here, {}, task.view)
        masks = _masks_of(self._preview.predict(frame)) if here else {}
        return Step(frame, masks, is_preview=True)

    def encode(self, task: Task, frame: int) -> None:
        """Look at a frame, so that the first click on it is answered at once."""
        self._prepare(task)
        self._tracker.features[frame]

    def is_encoded(self, task: Task, frame: int) -> bool:
        """Whether a click on a frame would be answered at once."""
        return self._is_prepared(task) and frame in self._tracker.features

    def propagate(self, task: Task) -> Iterator[Step]:
        """The masks that are wanted, one frame at a time."""
        self._prepare(task)
        tracker = self._tracker
        self._said = _set_prompts(tracker, task.anchors, self._said, task.view)
        both: dict[Direction, Wanted] = {"both": task.wanted}
        passes: list[tuple[Direction, Wanted]] = []
        for direction, frames in (_far_passes(task) if task.is_check else both).items():
            passes.append((direction, {i: own for i, own in frames.items() if own}))
        total = sum(tracker.num_steps(own, direction, only=own) for direction, own in passes)
        done = 0
        for direction, wanted in passes:
            for result in tracker.propagate(wanted, direction, only=wanted):
                done += 1
                yield Step(result.frame, _masks_of(result), done, total)

    def _is_prepared(self, task: Task) -> bool:
        return self._key == (task.view, task.source)

    def _prepare(self, task: Task) -> None:
        """Two predictors that share their image features: previews may come between the steps
        of a propagation, whose own prompts must not change meanwhile."""
        from sam2_engine.sequence import SequencePredictor

        if self._is_prepared(task):
            return
        model, source, known = task.source.model.get(), task.source, self._key
        tracker = SequencePredictor(
            model,
            task.view,
            window=source.window,
            fit="pad",
            pixel_size=task.view.pixel_size,
            refine_clicks=True,
            max_prompted_frames="adjacent",
            end_after=source.end_after,
            memory=source.memory,
            memory_tokens=source.memory_tokens,
            store=feature_files(source.model),
        )
        preview = SequencePredictor(
            model,
            task.view,
            window=tracker.source.window,
            fit="pad",
            pixel_size=task.view.pixel_size,
            refine_clicks=True,
        )
        alike = known and replace(known[1], model=source.model, window=source.window)
        if known and known == (task.view, alike):
            tracker.features = self._tracker.features  # of the same frames, model and window
        preview.features = tracker.features
        self._tracker, self._preview = tracker, preview
        self._key, self._said = (task.view, source), {}


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
    from sam2_engine.weights import find, model_info

    info = model_info(name)
    if info is not None and info.sha256 is not None:
        return info.sha256
    path = Path(name).expanduser() if info is None else find(info)
    if path is None or not path.is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum_of(model: SAM2) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().float().numpy().tobytes())
    return total.hexdigest()


def _set_prompts(
    predictor: SequencePredictor,
    anchors: Mapping[int, Anchors],
    known: Mapping[tuple[int, int], SlicePrompts],
    view: SequenceView,
) -> dict[tuple[int, int], SlicePrompts]:
    """Give a predictor these prompts and no others. Returns them by object and frame.

    known: those that it has, which are left as they are, so that it can go on where it was.
    """
    wanted = {(i, frame): said for i, own in anchors.items() for frame, said in own.items()}
    for object_id, frame in known.keys() - wanted.keys():
        predictor.clear_prompts(object_id, frame)
    for (object_id, frame), said in wanted.items():
        if known.get((object_id, frame)) is said:
            continue
        prompts = engine_prompts(said, predictor.source.geometry)
        predictor.set_prompts(object_id, frame, **prompts)
    return wanted


def engine_prompts(said: SlicePrompts, geometry: Geometry) -> dict[str, Any]:
    """What is said of an object on a frame, as arguments of `SequencePredictor.set_prompts`.

    A scribble becomes clicks spread along it. Lassos become the box around them and a rough mask;
    the object is kept within them, unless a click on it lies outside. Marks may reach beyond the
    frame; what counts is the part inside.
    """
    shape = geometry.frame_shape
    if said.mask is not None:
        return {"mask": said.mask.on_frame(shape)}
    last = np.array(shape) - 0.5
    strokes = [(point[None], label) for point, label in zip(said.points, said.labels, strict=True)]
    strokes += [(_spread(one.path, shape), one.label) for one in said.scribbles]
    prompts: dict[str, Any] = {}
    if strokes:
        counts = [len(clicks) for clicks, _ in strokes]
        prompts["points"] = np.concatenate([clicks for clicks, _ in strokes]).clip(-0.5, last)
        prompts["labels"] = np.repeat([label for _, label in strokes], counts)
        prompts["strokes"] = np.repeat(np.arange(len(strokes)), counts)
    if said.starts_over:
        corners = [np.reshape(said.box, (2, 2))] if said.box is not None else []
        around = np.concatenate([*corners, *said.lassos]).clip(-0.5, last)
        prompts["box"] = (*around.min(axis=0), *around.max(axis=0))
    elif said.corrects is not None:
        prompts["mask_input"] = _resized(said.corrects.logits(), geometry.image_size // 4)
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
            result.logits_of(object_id), result.low_res[n], result.iou[n]
        )
        for n, object_id in enumerate(result.object_ids)
    }


def _resized(logits: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Logits that another model gave, at the size that this model takes."""
    if logits.shape == (side, side):
        return logits
    from scipy.ndimage import zoom

    scale = side / np.array(logits.shape)
    resized: NDArray[np.float32] = zoom(logits, scale, order=1, grid_mode=True, mode="nearest")
    return resized
