"""Segment a volume from prompts, without a window: what the command line and scripts call."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sam2.io.volume import Volume
from napari_sam2.label_ids import MAX_ID
from napari_sam2.lazy_model import LazyModel
from napari_sam2.sequence_view import SequenceKey
from napari_sam2.session import Direction, NothingToDo, Session, UnreadableSlices
from sam2_engine.unreadable import UnreadableFrame

if TYPE_CHECKING:
    from sam2_engine.memory import MemorySelection, MemoryTokens
    from sam2_engine.model import SAM2

Box = tuple[float, tuple[float, float, float, float]]
"""A slice index and the box on it: first corner, opposite corner, in the array's axis order."""
Point = tuple[float, float, float]
"""z, y, x."""
AXES = {"z": 0, "y": 1, "x": 2}


class PromptError(ValueError):
    """Prompts do not fit the image or each other; the message is a sentence that says which."""


class ModelError(ValueError):
    """The model or the device cannot be had; the message is a sentence that says what to do."""


@dataclass
class _FramePrompts:
    """What is asked about one object on one slice, in the slice's own coordinates."""

    points: list[tuple[float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    box: tuple[float, float, float, float] | None = None
    mask: np.ndarray | None = None


def segment(
    volume: Any,
    *,
    boxes: Mapping[int, Box | Sequence[Box]] | None = None,
    points: Mapping[int, Point | Sequence[Point]] | None = None,
    negative_points: Mapping[int, Point | Sequence[Point]] | None = None,
    masks: np.ndarray | None = None,
    ends: Mapping[int, tuple[float, float]] | None = None,
    parents: Mapping[int, int] | None = None,
    axis: int | str = 0,
    direction: Direction = "both",
    slices: tuple[float, float] | None = None,
    model: str | PathLike[str] | SAM2 | LazyModel = "nano",
    device: str = "auto",
    window: tuple[float, float] | None = None,
    memory: MemorySelection = "recent",
    memory_tokens: MemoryTokens = "all",
    closely: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Segment objects through a volume or time-lapse, from prompts on a few of its slices.

    volume: a `Volume` of `read_volume`, or an array (z, y, x) or (z, y, x, 3) of any kind, which is
        read slice by slice.
    boxes: object id -> (slice, (y0, x0, y1, x1)), or several of them on different slices. With
        another `axis` the slice is an index along it and the corners are in the two other axes, in
        the order of the array: (z0, x0, z1, x1) for axis "y", (z0, y0, z1, y1) for axis "x".
    points: object id -> (z, y, x), or several; they lie on the object. negative_points: they lie
        beside it.
    masks: (z, y, x) integers. Every slice on which an id occurs is a mask prompt for that object,
        and comes back as it is.
    ends: object id -> the first and the last slice on which it is, both included; it is not looked
        for on others. By default objects may be on all.
    parents: daughter -> parent, of objects that both have masks: the daughter begins on her first
        one, and the parent ends on its last.
    axis: 0, 1, 2 or "z", "y", "x": the axis along which the volume is sliced and objects are
        followed.
    direction: as for `Session.propagate`: "forward" leaves out what lies before an object's first
        prompt, "backward" what lies behind its last.
    slices: first and last slice (both included) to segment; by default all. Prompts may lie
        outside. Other slices stay 0.
    model: a name of `sam2_engine.list_models()`, a checkpoint's path, a loaded model, or a
        `LazyModel`, which says whether it is compiled. device:
        "auto", "cpu", "cpu-bfloat16", "cuda" or "mps".
    window: the intensities shown as black and white; by default the 0.5 and 99.5 percentiles of the
        volume.
    memory, memory_tokens: as for `Session`; "confident" for slices in no order, "near" for speed.
    closely: whether objects are looked at in an area about them, 6 times their size where they are
        prompted, as `Session.look_closely` does. By default small ones are, as `Session` decides it
        by itself; True: all, which is slower; False: none.
    progress: called as progress(done, total) after every slice.

    Returns labels (z, y, x) in the smallest unsigned integer type that holds the ids; 0 is
    background. Where objects overlap, masks that were given go first, then the larger logit.

    Raises: PromptError before anything is computed; ModelError if the model cannot be loaded;
    UnreadableSlices at the end, where slices could not be read: its `session.labels` are those of
    all others; OSError as soon as none can be read.
    """
    array = volume.array if isinstance(volume, Volume) else volume
    if not hasattr(array, "shape"):
        raise PromptError(
            f"An array (z, y, x) or a Volume of read_volume is needed, not {type(array).__name__}."
        )
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3):
        raise PromptError(
            f"An image of shape (z, y, x) or (z, y, x, 3) is needed, not {array.shape}."
        )
    axis = axis_number(axis)
    if direction not in ("both", "forward", "backward"):
        raise PromptError(f"The direction must be both, forward or backward, not {direction!r}.")
    if window is not None and not (
        math.isfinite(window[0]) and math.isfinite(window[1]) and window[0] < window[1]
    ):
        raise PromptError(
            f"The window must be two numbers, the smaller first, not {window[0]:g}, {window[1]:g}."
        )
    length = array.shape[axis]
    start, stop = (0, length - 1) if slices is None else slices
    if not _are_slices(start, stop, length):
        raise PromptError(
            f"There are no slices {start:g} to {stop:g}: the image has {length}, from 0."
        )
    prompts = _gather(array.shape[:3], axis, boxes, points, negative_points, masks)
    lives = _lives(ends, prompts, length)

    if isinstance(model, str | PathLike):
        model = LazyModel(str(model), device)
    network = loaded(model) if isinstance(model, LazyModel) else model
    labels = np.zeros(array.shape[:3], np.min_scalar_type(max(i for i, _ in prompts)))
    session = Session(
        volume,
        network,
        window=window,
        rgb=array.ndim == 4,
        labels=labels,
        memory=memory,
        memory_tokens=memory_tokens,
        closely=closely is None,
    )
    session.show(SequenceKey.along(axis, 3))
    for (object_id, frame), prompt in sorted(prompts.items(), key=lambda item: item[0]):
        if object_id not in session.objects:
            session.add_object(object_id=object_id)
            session.set_life(object_id, *lives.get(object_id, ()))
        if prompt.mask is not None:
            session.paint(object_id, frame, prompt.mask)
        else:
            session.set_prompts(
                object_id, frame, points=prompt.points, labels=prompt.labels, box=prompt.box
            )
    for daughter, parent in (parents or {}).items():
        try:
            session.set_parent(daughter, parent)
        except ValueError as error:
            raise PromptError(str(error)) from error
    if closely:
        look_closely_at_all(session)
    with suppress(UnreadableSlices):  # told of when all is there
        session.propagate(
            direction,
            start=int(start),
            stop=int(stop),
            progress=None if progress is None else lambda step: progress(step.done, step.total),
        )
    frames = np.moveaxis(labels, axis, 0)  # masks that were given may lie outside what is wanted
    frames[: int(start)] = 0
    frames[int(stop) + 1 :] = 0
    session.check_read()
    return labels


def parents_of_masks(
    path: str | PathLike[str], masks: np.ndarray, axis: int | str = 0
) -> dict[int, int]:
    """The parents of a folder of the Cell Tracking Challenge that `masks` were read from.

    axis: along which objects are followed; there are no parents where it is not the time. Links of
    tracks that are not there, or of which the parent is still there as the daughter begins, are
    left out. Raises ReadError.
    """
    from napari_sam2.io import read_parents

    parents = read_parents(path)
    if not parents or axis_number(axis) != 0:
        return {}
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    for frame, labels in enumerate(masks):
        for object_id in np.unique(labels).tolist():
            begins.setdefault(object_id, frame)
            ends[object_id] = frame
    return {d: p for d, p in parents.items() if d in begins and p in ends and begins[d] > ends[p]}


def look_closely_at_all(session: Session) -> None:
    """Look closely at all objects that are marked in the sequence that is shown."""
    prompts = session.prompts
    for frame in sorted({frame for own in prompts.values() for frame in own}):
        with suppress(UnreadableFrame):
            session.preview(frame)  # tells how large an object is
    for object_id in prompts:
        with suppress(NothingToDo):  # nothing was found at its points
            session.look_closely(object_id)


def axis_number(axis: int | str) -> int:
    """0, 1 or 2 for an axis given as a number or as z, y, x. Raises: PromptError."""
    number = AXES.get(str(axis).lower(), axis)
    if str(number) not in ("0", "1", "2"):
        raise PromptError(f"The axis must be 0, 1, 2 or z, y, x, not {axis!r}.")
    return int(number)


def loaded(model: LazyModel) -> SAM2:
    """A model by name or path. Raises: ModelError."""
    from sam2_engine.weights import WeightsError

    try:
        return model.get()
    except (WeightsError, ValueError) as error:
        raise ModelError(str(error)) from error


def _gather(
    shape: tuple[int, ...],
    axis: int,
    boxes: Mapping[int, Box | Sequence[Box]] | None,
    points: Mapping[int, Point | Sequence[Point]] | None,
    negative_points: Mapping[int, Point | Sequence[Point]] | None,
    masks: np.ndarray | None,
) -> dict[tuple[int, int], _FramePrompts]:
    """All prompts, checked, by object and slice."""
    prompts: dict[tuple[int, int], _FramePrompts] = {}
    size = f"the image has {shape[0]} x {shape[1]} x {shape[2]} voxels (z, y, x), counted from 0"

    def at(object_id: int, frame: int) -> _FramePrompts:
        if not isinstance(object_id, int | np.integer) or not 1 <= object_id <= MAX_ID:
            raise PromptError(
                f"Object ids are whole numbers from 1 to {MAX_ID}, not {object_id!r}."
            )
        return prompts.setdefault((int(object_id), frame), _FramePrompts())

    in_plane = [n for n in range(3) if n != axis]
    height, width = (shape[n] for n in in_plane)
    for object_id, box in _each("boxes", boxes, "{1: (z, (y0, x0, y1, x1))}"):
        if not _is_box(box):
            raise PromptError(
                f"A box is a slice and its corners, (z, (y0, x0, y1, x1)), not {box!r}."
            )
        frame, corners = box
        text = f"The box {object_id}:{frame:g},{','.join(f'{c:g}' for c in corners)}"
        top, left, bottom, right = corners
        if not (top < bottom and left < right):
            raise PromptError(
                f"{text} is empty: its second corner must be larger than its first in both axes."
            )
        is_inside = (
            0 <= frame < shape[axis]
            and min(top, left) >= -0.5
            and bottom <= height
            and right <= width
        )
        if not is_inside:
            raise PromptError(f"{text} lies outside the image: {size}.")
        if frame != int(frame):
            raise PromptError(f"{text} lies between two slices; its slice must be a whole number.")
        prompt = at(object_id, int(frame))
        if prompt.box is not None:
            raise PromptError(
                f"Object {object_id} has two boxes on slice {frame:g}; give one box per slice."
            )
        prompt.box = (float(top), float(left), float(bottom), float(right))

    for sign, what, given in (
        (1, "points", points),
        (0, "negative_points", negative_points),
    ):
        for object_id, point in _each(what, given, "{1: (z, y, x)}"):
            if not _are_numbers(point):
                raise PromptError(f"A point is (z, y, x), not {point!r}.")
            text = f"The point {object_id}:{','.join(f'{c:g}' for c in point)}"
            if len(point) != 3 or not all(
                -0.5 <= c <= n - 0.5 for c, n in zip(point, shape, strict=True)
            ):
                raise PromptError(f"{text} lies outside the image: {size}.")
            if point[axis] != int(point[axis]):
                raise PromptError(
                    f"{text} lies between two slices; its {'zyx'[axis]} must be a whole number."
                )
            prompt = at(object_id, int(point[axis]))
            prompt.points.append((float(point[in_plane[0]]), float(point[in_plane[1]])))
            prompt.labels.append(sign)

    for object_id, frame, mask in _mask_prompts(shape, axis, masks):
        prompt = at(object_id, frame)
        if prompt.points or prompt.box is not None:
            raise PromptError(
                f"Object {object_id} has a mask on slice {frame}, and a box or points on it as "
                "well; give one or the other."
            )
        prompt.mask = mask

    if not prompts:
        raise PromptError("There are no prompts: give at least one box, point or mask.")
    found = {
        o
        for (o, _), p in prompts.items()
        if p.box is not None or 1 in p.labels or p.mask is not None
    }
    lost = sorted({object_id for object_id, _ in prompts} - found)
    if lost:
        raise PromptError(
            f"Object {lost[0]} has only negative points; give it a box, a mask or a point that "
            "lies on it."
        )
    return prompts


def _lives(
    ends: Mapping[int, tuple[float, float]] | None,
    prompted: Collection[tuple[int, int]],
    length: int,
) -> dict[int, tuple[int, int]]:
    """The ends that are given, checked.

    prompted: objects and slices.
    """
    lives = {}
    for object_id, given in (ends or {}).items():
        if not _are_numbers(given) or len(given) != 2:
            raise PromptError(
                f"The ends of object {object_id} are its first and last slice, not {given!r}."
            )
        first, last = given
        text = f"Object {object_id} cannot be on slices {first:g} to {last:g}"
        if not _are_slices(first, last, length):
            raise PromptError(f"{text}: the image has {length}, from 0.")
        own = sorted(frame for number, frame in prompted if number == object_id)
        if not own:
            raise PromptError(f"Object {object_id} has ends, but no box, point or mask.")
        outside = [frame for frame in own if not first <= frame <= last]
        if outside:
            raise PromptError(f"{text} alone: it is marked on slice {outside[0]}.")
        lives[object_id] = int(first), int(last)
    return lives


def _are_slices(first: float, last: float, length: int) -> bool:
    """Whether they are two slices of so many, in this order."""
    return 0 <= first <= last < length and first == int(first) and last == int(last)


def _each(what: str, given: Mapping[int, Any] | None, as_in: str) -> Iterator[tuple[int, Any]]:
    """(id, prompt) for every prompt of a mapping from ids to one prompt or several."""
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise PromptError(
            f"The {what} are given by object, as in {as_in}, not as {type(given).__name__}."
        )
    for object_id, value in given.items():
        if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str):
            raise PromptError(
                f"The {what} of object {object_id} are given as in {as_in}, not as {value!r}."
            )
        is_one = len(value) > 0 and np.isscalar(value[0])
        for one in [value] if is_one else value:
            yield object_id, one


def _is_box(box: Any) -> bool:
    """Whether it has the form (z, (y0, x0, y1, x1))."""
    is_pair = isinstance(box, Sequence | np.ndarray) and len(box) == 2
    return is_pair and _are_numbers((box[0],)) and _are_numbers(box[1]) and len(box[1]) == 4


def _are_numbers(values: Any) -> bool:
    is_row = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str)
    return is_row and all(isinstance(one, int | float | np.number) for one in values)


def _mask_prompts(
    shape: tuple[int, ...], axis: int, masks: np.ndarray | None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(id, slice, mask) for every slice on which an id occurs."""
    if masks is None:
        return
    masks = np.asarray(masks)
    if masks.shape != tuple(shape):
        raise PromptError(
            f"The masks have shape {masks.shape}, the image {tuple(shape)} (z, y, x)."
        )
    if masks.dtype.kind not in "bui" and not np.array_equal(masks, np.round(masks)):
        raise PromptError(
            "The masks must hold whole numbers, an object's id in each of its voxels."
        )
    if masks.min() < 0:
        raise PromptError(
            f"The masks hold the negative number {masks.min():g}; object ids are whole numbers "
            "from 1."
        )
    for frame, slice_ in enumerate(np.moveaxis(masks, axis, 0)):
        for object_id in np.unique(slice_[slice_ > 0]):
            yield int(object_id), frame, slice_ == object_id
