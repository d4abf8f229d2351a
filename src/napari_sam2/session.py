"""One image's segmentation: its objects, their prompts, and the masks that follow from them.

A session is the only thing that changes masks. It knows no window: the widget shows it and calls
it, and a script calls it alike.

    session = Session(viewer.layers["brain"])
    ventricle = session.add_object("ventricle")
    session.add_points(ventricle, [(40, 120, 96)])
    for step in session.propagate():
        print(f"{step.done} of {step.total}")
    session.labels
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psygnal import Signal

from napari_sam2.sequence_view import SequenceKey, SequenceView, Window, window_of

if TYPE_CHECKING:
    from sam2_engine.model import SAM2
    from sam2_engine.sequence import SequencePredictor

Box = tuple[float, float, float, float]
Direction = Literal["both", "forward", "backward"]

_FAINTEST = 1e-4  # a logit above 0 stays above 0 in half precision


class NothingToDo(ValueError):
    """There is no prompt to start from. The message says what is missing."""


@dataclass(frozen=True, eq=False)
class SlicePrompts:
    """All that is said of one object on one frame. Positions are array indices, y before x."""

    points: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))
    """(N, 2) y, x."""
    labels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """(N,) 1 on the object, 0 beside it."""
    box: Box | None = None
    """y0, x0, y1, x1."""
    mask_input: NDArray[np.float32] | None = None
    """(h, w) logits of the tracked mask that the points correct."""

    @property
    def usable(self) -> bool:
        """Whether this says where the object is, and not only where it is not."""
        corrects = self.mask_input is not None and len(self.points) > 0
        return self.box is not None or bool((self.labels == 1).any()) or corrects


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """One object on one frame, whole, also where another object covers it."""

    top: int
    left: int
    logits: NDArray[np.float16]
    """(h, w) the bounding box at `top`, `left`: above 0 on the object, 0 beside it."""
    low_res: NDArray[np.float16]
    """(S/4, S/4) the model's own mask logits, which corrective clicks start from."""
    iou: float
    """How well the model thinks that the mask fits, 0 to 1."""

    @classmethod
    def of_logits(
        cls, logits: NDArray[np.float32], low_res: NDArray[np.float32], iou: float
    ) -> ObjectMask | None:
        """From the logits of a whole frame; None where no pixel belongs to the object."""
        rows = np.flatnonzero((logits > 0).any(axis=1))
        columns = np.flatnonzero((logits > 0).any(axis=0))
        if not len(rows):
            return None
        top, left = int(rows[0]), int(columns[0])
        inside = logits[top : rows[-1] + 1, left : columns[-1] + 1]
        half = np.where(inside > 0, np.clip(inside, _FAINTEST, 1000), 0).astype(np.float16)
        return cls(top, left, half, np.clip(low_res, -32, 32).astype(np.float16), float(iou))

    @property
    def area(self) -> tuple[slice, slice]:
        """The rows and columns of the frame that `logits` covers."""
        height, width = self.logits.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


@dataclass(frozen=True, eq=False)
class Step:
    """What the model found on one frame."""

    frame: int
    masks: Mapping[int, ObjectMask | None]
    """By object; None where the object is not seen."""
    done: int = 1
    total: int = 1
    """This is step `done` of `total`."""


@dataclass(frozen=True, eq=False)
class Task:
    """What was asked of the model, as it stood then; to be computed in any one thread."""

    view: SequenceView
    window: Window | None
    model: LazyModel
    prompts: Mapping[int, Mapping[int, SlicePrompts]]
    """Object -> frame -> usable prompts."""


class LazyModel:
    """A model by name, loaded when it is first needed."""

    def __init__(self, model: SAM2 | str = "nano", device: str = "auto") -> None:
        """model: a name of `sam2_engine.list_models()`, a checkpoint's path, or a loaded model."""
        self.name = model if isinstance(model, str) else "model"
        self.device = device
        self.downloaded: tuple[int, int | None] | None = None
        """Bytes downloaded and bytes in all, during a download."""
        self._loaded = None if isinstance(model, str) else model
        self._lock = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        return self._loaded is not None

    def get(self) -> SAM2:
        """The model, after a download if need be. Raises what `sam2_engine.load_model` raises."""
        with self._lock:
            if self._loaded is None:
                from sam2_engine.weights import load_model

                try:
                    self._loaded = load_model(
                        self.name, device=self.device, progress=self._on_progress
                    )
                finally:
                    self.downloaded = None
            return self._loaded

    def _on_progress(self, done: int, total: int | None) -> None:
        self.downloaded = done, total


@dataclass
class _Sequence:
    """What belongs to one sequence of the image. All mappings: object -> frame -> value."""

    prompts: dict[int, dict[int, SlicePrompts]] = field(default_factory=lambda: defaultdict(dict))
    masks: dict[int, dict[int, ObjectMask]] = field(default_factory=lambda: defaultdict(dict))
    tracked: dict[int, dict[int, ObjectMask]] = field(default_factory=lambda: defaultdict(dict))
    """Masks as they were tracked on frames that got prompts afterwards: what these correct."""


class Session:
    """Objects, prompts and masks of one image.

    Prompts belong to the sequence that is shown (`show`): in a volume the slices along one axis.
    Masks of all sequences are written to the same `labels`.
    """

    masks_changed = Signal(tuple)
    """The index of the slice of `labels` that has changed."""
    objects_changed = Signal()
    """An object, or the number of its prompts, has changed."""

    def __init__(
        self,
        image: Any,
        model: LazyModel | SAM2 | str = "nano",
        *,
        device: str = "auto",
        window: Window | None = None,
        rgb: bool = False,
    ) -> None:
        """
        Args:
            image: a napari image layer, or an array (..., y, x), read frame by frame.
            model: a name, a checkpoint's path, or a loaded model.
            device: "auto", "cpu", "cuda" or "mps", for a model that is yet to be loaded.
            window: intensities shown to the model as black and white; by default the layer's
                contrast limits, and for an array percentiles of the sequence.
            rgb: whether an array's last axis holds colours.
        """
        is_layer = hasattr(image, "contrast_limits")
        self._make_view: Callable[[SequenceKey | None], SequenceView] = (
            (lambda key: SequenceView.of_layer(image, key))
            if is_layer
            else (lambda key: SequenceView(image, key, rgb=rgb))
        )
        self.window = window_of(image) if window is None and is_layer else window
        """Change it at any time; what is computed next uses it."""
        self.model = model if isinstance(model, LazyModel) else LazyModel(model, device)
        """Change it at any time; what is computed next uses it."""
        self.view = self._make_view(None)
        """The sequence that prompts are set in, as frames."""
        self.objects: dict[int, str] = {}
        """Id -> name."""
        self.labels: NDArray[np.int32] = np.zeros(self.view.shape, np.int32)
        """Object ids in the shape of the image, without colours; 0 is background."""
        self._sequences: dict[SequenceKey, _Sequence] = defaultdict(_Sequence)
        self._last_id = 0
        self._engine = _Engine()

    # -- objects -------------------------------------------------------------------------------

    def add_object(self, name: str = "", object_id: int | None = None) -> int:
        """A new object without prompts. Returns its id, by default one that never was."""
        if object_id is None:
            object_id = self._last_id + 1
        if object_id < 1 or object_id in self.objects:
            raise ValueError(f"An object needs a new positive id; {object_id} cannot be used.")
        self._last_id = max(self._last_id, object_id)
        self.objects[object_id] = name or f"Object {object_id}"
        self.objects_changed.emit()
        return object_id

    def remove_object(self, object_id: int) -> None:
        """Take away an object with its prompts and masks, in every sequence."""
        self._check_object(object_id)
        del self.objects[object_id]
        for key, sequence in self._sequences.items():
            frames = set(sequence.masks[object_id])
            for known in (sequence.prompts, sequence.masks, sequence.tracked):
                known.pop(object_id, None)
            self._write(self.view_of(key), frames, also=object_id)
        self.objects_changed.emit()

    # -- prompts -------------------------------------------------------------------------------

    def show(self, key: SequenceKey) -> None:
        """Work on another sequence of the same image; the prompts of the others are kept."""
        if key != self.view.key:
            self.view = self.view_of(key)
            self.objects_changed.emit()

    @property
    def prompts(self) -> Mapping[int, Mapping[int, SlicePrompts]]:
        """Object -> frame -> prompts, of the sequence that is shown."""
        return self.prompts_of(self.view.key)

    def prompts_of(self, key: SequenceKey) -> Mapping[int, Mapping[int, SlicePrompts]]:
        """Object -> frame -> prompts, of any sequence."""
        known = self._sequences[key].prompts if key in self._sequences else {}
        return {i: dict(frames) for i, frames in known.items() if frames}

    @property
    def prompted_sequences(self) -> tuple[SequenceView, ...]:
        """All sequences with prompts, as frames."""
        return tuple(self.view_of(key) for key in self._sequences if self.prompts_of(key))

    @property
    def prompted_objects(self) -> frozenset[int]:
        """Ids of all objects that have prompts in any sequence."""
        return frozenset(i for key in self._sequences for i in self.prompts_of(key))

    def view_of(self, key: SequenceKey) -> SequenceView:
        """A sequence of the image, as frames."""
        return self.view if key == self.view.key else self._make_view(key)

    def set_prompts(
        self,
        object_id: int,
        frame: int,
        *,
        points: ArrayLike = (),
        labels: ArrayLike | None = None,
        box: Box | None = None,
    ) -> None:
        """Say all there is to say of an object on a frame; with nothing, take back what was said.

        Points on a frame whose mask was tracked correct that mask; a box starts over.
        Masks that lose their prompt are taken back; `preview` or `propagate` makes new ones.

        Args:
            points: (N, 2) y, x on the frame.
            labels: (N,) 1 on the object, 0 beside it; all 1 by default.
            box: y0, x0, y1, x1.
        """
        self._check_object(object_id)
        if not 0 <= frame < len(self.view):
            raise ValueError(f"There is no slice {frame}; there are {len(self.view)}, from 0.")
        yx = np.array(points, float).reshape(-1, 2)
        signs = np.ones(len(yx), np.int64) if labels is None else np.array(labels, np.int64)
        if signs.shape != (len(yx),):
            raise ValueError(f"{len(yx)} points have {signs.size} labels; give each point one.")

        prompted = self._now.prompts[object_id]
        masks, tracked = self._now.masks[object_id], self._now.tracked[object_id]
        own = prompted.get(frame)
        if frame in masks and not (own and own.usable):
            tracked[frame] = masks[frame]
        if len(yx) or box is not None:
            start = tracked.get(frame) if box is None else None
            logits = None if start is None else start.low_res.astype(np.float32)
            prompted[frame] = SlicePrompts(yx, signs, box, logits)
            if not prompted[frame].usable:
                self._take_back(object_id, [frame])
        else:
            prompted.pop(frame, None)
            if not any(prompts.usable for prompts in prompted.values()):
                tracked.clear()
                self._take_back(object_id, list(masks))
            elif frame in tracked:
                masks[frame] = tracked[frame]
                self._write(self.view, [frame], also=object_id)
            else:
                self._take_back(object_id, [frame])
        self.objects_changed.emit()

    def add_points(
        self, object_id: int, points: ArrayLike, labels: ArrayLike | None = None
    ) -> list[int]:
        """Add points to what is said already. Returns the frames that they lie on.

        points: (N, D) positions in the image's array, (z, y, x) in a volume.
        labels: (N,) 1 on the object, 0 beside it; all 1 by default.
        """
        frames, yx = self.view.split(points)
        signs = np.ones(len(yx), np.int64) if labels is None else np.array(labels, np.int64)
        if (frames < 0).any():
            lost = np.asarray(points, float).reshape(len(frames), -1)[frames < 0][0]
            raise ValueError(f"The point {lost.tolist()} lies outside the image or its sequence.")
        changed = [int(frame) for frame in np.unique(frames)]
        for frame in changed:
            known = self._now.prompts[object_id].get(frame, SlicePrompts())
            here = frames == frame
            self.set_prompts(
                object_id,
                frame,
                points=np.concatenate((known.points, yx[here])),
                labels=np.concatenate((known.labels, signs[here])),
                box=known.box,
            )
        return changed

    def add_box(self, object_id: int, frame: int, box: Sequence[float]) -> None:
        """Draw a box, y0, x0, y1, x1, around the object on a frame; it replaces an earlier one."""
        known = self._now.prompts[object_id].get(frame, SlicePrompts())
        y0, x0, y1, x1 = (float(value) for value in box)
        corners = min(y0, y1), min(x0, x1), max(y0, y1), max(x0, x1)
        self.set_prompts(object_id, frame, points=known.points, labels=known.labels, box=corners)

    # -- masks ---------------------------------------------------------------------------------

    @property
    def masks(self) -> Mapping[int, Mapping[int, ObjectMask]]:
        """Object -> frame -> mask, of the sequence that is shown."""
        return {i: dict(frames) for i, frames in self._now.masks.items() if frames}

    def preview(self, frame: int) -> Step:
        """Compute and show the masks of all objects that have prompts on a frame."""
        task = self.task()
        step = self.compute_preview(task, frame)
        self.accept(task, step)
        return step

    def propagate(
        self, direction: Direction = "both", objects: Iterable[int] | None = None
    ) -> Iterator[Step]:
        """Follow objects through the sequence, one frame at a time; each is shown as it comes.

        Close the generator to stop; what has been found is kept.

        objects: ids; by default all that have prompts.
        Raises NothingToDo without prompts; what `sam2_engine.load_model` raises.
        """
        task = self.task(objects)
        for step in self.compute_propagation(task, direction):
            self.accept(task, step)
            yield step

    # The two above in parts, so that the model can work in another thread: `task` and `accept` are
    # quick and belong to the thread that sets prompts; `compute_...` take long and touch nothing
    # but the task, but only one may run at a time.

    def task(self, objects: Iterable[int] | None = None) -> Task:
        """What there is to compute now."""
        chosen = None if objects is None else set(objects)
        prompts = {
            i: usable
            for i, frames in self._now.prompts.items()
            if (chosen is None or i in chosen)
            and (usable := {frame: said for frame, said in frames.items() if said.usable})
        }
        return Task(self.view, self.window, self.model, prompts)

    def compute_preview(self, task: Task, frame: int) -> Step:
        """The masks of all objects with prompts on a frame, from these prompts alone."""
        return self._engine.preview(task, frame)

    def compute_propagation(self, task: Task, direction: Direction = "both") -> Iterator[Step]:
        """The masks of all objects on the frames of the sequence."""
        if not task.prompts:
            raise NothingToDo(
                "No object has a prompt yet: click on an object or draw a box around it first."
            )
        return self._engine.propagate(task, direction)

    def accept(self, task: Task, step: Step) -> None:
        """Take over what was found, except where prompts have changed since it was asked for."""
        key = task.view.key
        now = self._sequences[key]
        for object_id, mask in step.masks.items():
            prompts = now.prompts.get(object_id, {})
            said = prompts.get(step.frame)
            asked = task.prompts[object_id].get(step.frame)
            if not prompts or asked is not (said if said and said.usable else None):
                continue
            if mask is None:
                now.masks[object_id].pop(step.frame, None)
            else:
                now.masks[object_id][step.frame] = mask
            self._write(task.view, [step.frame], also=object_id)

    # -- helpers -------------------------------------------------------------------------------

    @property
    def _now(self) -> _Sequence:
        return self._sequences[self.view.key]

    def _check_object(self, object_id: int) -> None:
        if object_id not in self.objects:
            raise ValueError(f"There is no object {object_id}; add it with add_object first.")

    def _take_back(self, object_id: int, frames: Iterable[int]) -> None:
        masks = self._now.masks[object_id]
        gone = [frame for frame in frames if masks.pop(frame, None) is not None]
        self._write(self.view, gone, also=object_id)

    def _write(self, view: SequenceView, frames: Iterable[int], also: int) -> None:
        """Write frames of `labels` anew: the larger logit has the pixel.

        Only pixels of objects with a mask on the frame, and of the object `also`, are touched.
        """
        masks = self._sequences[view.key].masks
        for frame in frames:
            found = {i: known[frame] for i, known in masks.items() if frame in known}
            index = view.index(frame)
            labels = self.labels[index]
            labels[np.isin(labels, [also, *found])] = 0
            free = labels == 0
            best = np.zeros(labels.shape, np.float16)
            for object_id in sorted(found):
                mask = found[object_id]
                wins = (mask.logits > best[mask.area]) & free[mask.area]
                labels[mask.area][wins] = object_id
                best[mask.area][wins] = mask.logits[wins]
            self.masks_changed.emit(index)


class _Engine:
    """The predictors of the sequence that was last asked for. Not for two threads at once."""

    def __init__(self) -> None:
        self._source: tuple[Any, ...] = ()
        self._preview: SequencePredictor
        self._tracker: SequencePredictor

    def preview(self, task: Task, frame: int) -> Step:
        self._prepare(task)
        here = {i: {frame: frames[frame]} for i, frames in task.prompts.items() if frame in frames}
        _set_prompts(self._preview, here)
        if not here:
            return Step(frame, {})
        return Step(frame, _masks_of(self._preview.predict(frame)))

    def propagate(self, task: Task, direction: Direction) -> Iterator[Step]:
        self._prepare(task)
        tracker = self._tracker
        _set_prompts(tracker, task.prompts)
        total = tracker.num_steps(direction=direction)
        for done, result in enumerate(tracker.propagate(direction=direction), start=1):
            yield Step(result.frame, _masks_of(result), done, total)

    def _prepare(self, task: Task) -> None:
        """Two predictors that share their image features: previews may come between the steps
        of a propagation, whose own prompts must not change meanwhile."""
        from sam2_engine.sequence import SequencePredictor

        model = task.model.get()
        source = (model, task.view, task.window)
        if (
            len(self._source) == 3
            and all(now is known for now, known in zip(source[:2], self._source[:2], strict=True))
            and task.window == self._source[2]
        ):
            return
        self._tracker = SequencePredictor(model, task.view, window=task.window, refine_clicks=True)
        self._preview = SequencePredictor(
            model, task.view, window=self._tracker.source.window, refine_clicks=True
        )
        self._preview.features = self._tracker.features
        self._source = source


def _set_prompts(
    predictor: SequencePredictor, prompts: Mapping[int, Mapping[int, SlicePrompts]]
) -> None:
    predictor.clear_prompts()
    for object_id, frames in prompts.items():
        for frame, said in frames.items():
            logits = said.mask_input
            if logits is not None:
                logits = _resized(logits, predictor.model.image_size // 4)
            predictor.set_prompts(
                object_id,
                frame,
                points=said.points if len(said.points) else None,
                labels=said.labels if len(said.points) else None,
                box=said.box,
                mask_input=logits,
            )


def _masks_of(result: Any) -> dict[int, ObjectMask | None]:
    """A predictor's FrameResult as masks."""
    logits = result.logits
    return {
        object_id: ObjectMask.of_logits(logits[n], result.low_res[n], result.iou[n])
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
