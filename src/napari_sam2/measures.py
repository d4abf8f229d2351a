"""How large objects are, where they lie and how bright they are: per object, and per frame.

    measures = measure_session(session)
    write_csv("liver.csv", measures)

Everything is read frame by frame, so memory does not depend on their number.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.io.volume import Volume
from napari_sam2.object_sums import ObjectSum, add, sums_of
from sam2_engine.whole_file import write_text

if TYPE_CHECKING:
    from napari_sam2.session import Session

_TIME = ("t", "time")
_UNITS = {"millimeter": "mm", "micrometer": "um"}


@dataclass(frozen=True)
class FrameMeasure:
    """One object on one frame: a slice of a volume, or a time point.

    size: area in `unit` ("mm2", "pixel2"), or volume ("mm3") where a frame is a volume.
    pixels: number of pixels or voxels.
    centroid: in the world of the viewer: (z, y, x), or (y, x) in a time-lapse of pictures. In scans
        of patients z, y, x grow to superior, posterior and left, in mm.
    box: first and last index + 1 along the axes of a frame: (y0, x0, y1, x1), or with z.
    mean, spread: mean and standard deviation of the intensities; None without an image.
    score: how well the model thinks that the mask fits, 0 to 1; None where it did not make it.
    prompts: clicks, boxes, scribbles, lassos and paintings on the frame; None where labels alone
        were measured.
    approved: whether a person has approved the mask; None likewise.
    """

    object: int
    name: str
    frame: int
    size: float
    unit: str
    pixels: int
    centroid: tuple[float, ...]
    box: tuple[int, ...]
    mean: float | None
    spread: float | None
    score: float | None = None
    prompts: int | None = None
    approved: bool | None = None


@dataclass(frozen=True)
class ObjectMeasure:
    """One object on all frames.

    size: the volume, or in a time-lapse the mean over the frames on which the object is.
    frames: on how many it is; first, last: which.
    score: the mean over frames. prompts: on all frames. approved: the share of its frames, 0 to 1.
    Everything else as in `FrameMeasure`; box counts the frames too, unless they are time points.
    """

    object: int
    name: str
    size: float
    unit: str
    pixels: int
    frames: int
    first: int
    last: int
    centroid: tuple[float, ...]
    box: tuple[int, ...]
    mean: float | None
    spread: float | None
    score: float | None
    prompts: int | None
    approved: float | None


@dataclass(frozen=True)
class Measures:
    """What was measured; both in the order of ids and frames."""

    frames: tuple[FrameMeasure, ...]
    objects: tuple[ObjectMeasure, ...]
    is_time: bool
    """Whether frames are time points."""


@dataclass(frozen=True)
class FoundObject:
    """What was found of an object."""

    id: int
    name: str
    voxels: int
    size: float
    unit: str
    """Of the size: "ml", "um3" or "voxels"."""


Steps = Generator[tuple[int, int], None, Measures]
"""Yields (done, total) after each frame, and returns what was measured."""


def measure_session(
    session: Session,
    *,
    is_time: bool | None = None,
    image: Volume | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measures:
    """Measure all objects of a session on the sequence that is shown, as `session.labels` has them.

    is_time: whether frames are time points; by default where the axis of an image layer says so
        (its label is "t" or "time").
    image: what the session was made on, if that is no layer: its array has the session's axes, of
        which one picture may have lost its z. Gives place and unit; an array alone has pixels.
    progress: told how many frames are done, of how many.
    """
    return finish(session_steps(session, is_time=is_time, image=image), progress)


def measure_labels(
    labels: Any,
    image: Volume,
    *,
    names: Mapping[int, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measures:
    """Measure labels and the image that they were made on.

    labels: whole numbers along the axes of `image`, without channels, as for `write_labels`.
    image: intensities are left out where it has several channels; of colours the mean is taken.
    Raises: ValueError if the shapes differ.
    """
    return finish(labels_steps(labels, image, names=names), progress)


def found_objects(
    labels: NDArray[Any], volume: Volume, names: Mapping[int, str], wanted: Iterable[int] = ()
) -> tuple[FoundObject, ...]:
    """How much there is of every object that occurs, has a name or is wanted, by id."""
    ids, counts = np.unique(labels[labels > 0], return_counts=True)
    counted = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    found = []
    for i in sorted(counted.keys() | names.keys() | set(wanted)):
        voxels = int(counted.get(i, 0))
        size, unit = float(voxels), "voxels"
        if volume.unit != "pixel" and volume.axes == "zyx":
            size *= volume.voxel_size
            size, unit = (size / 1000, "ml") if volume.unit == "mm" else (size, "um3")
        found.append(FoundObject(int(i), names.get(i) or f"Object {i}", voxels, size, unit))
    return tuple(found)


def finish(steps: Steps, progress: Callable[[int, int], None] | None = None) -> Measures:
    """Carry all steps out."""
    while True:
        try:
            done, total = next(steps)
        except StopIteration as end:
            measures: Measures = end.value
            return measures
        if progress is not None:
            progress(done, total)


def write_csv(path: str | os.PathLike[str], measures: Measures) -> tuple[Path, Path]:
    """Write two tables: `path` with a row per object and frame, and beside it one with a row per
    object, whose name ends in "_objects.csv". Returns their paths.

    Both are written under other names and then renamed. Raises: OSError.
    """
    target, objects = csv_files(path)
    for file, rows, kind in (
        (target, measures.frames, FrameMeasure),
        (objects, measures.objects, ObjectMeasure),
    ):
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(columns(kind, measures))
        writer.writerows(values(row) for row in rows)
        write_text(file, text.getvalue())
    return target, objects


def csv_files(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The two files of `write_csv`."""
    target = Path(path)
    return target, target.with_name(f"{target.stem}_objects.csv")


def columns(kind: type[FrameMeasure] | type[ObjectMeasure], measures: Measures) -> list[str]:
    """The heads of a table of such rows; a centroid has a column per axis, and a box two."""
    rows: Sequence[Any] = measures.frames if kind is FrameMeasure else measures.objects
    places = "zyx"[-len(rows[0].centroid) :] if rows else "zyx"
    bounds = "zyx"[-len(rows[0].box) // 2 :] if rows else "zyx"
    names = []
    for one in fields(kind):
        if one.name == "centroid":
            names += [f"centroid_{axis}" for axis in places]
        elif one.name == "box":
            names += [f"{axis}{end}" for end in ("_from", "_to") for axis in bounds]
        else:
            names.append(one.name)
    return names


def values(row: FrameMeasure | ObjectMeasure) -> list[Any]:
    """A row of the table; numbers that are not known are empty, and yes is 1."""
    found: list[Any] = []
    for one in fields(row):
        value = getattr(row, one.name)
        found += value if isinstance(value, tuple) else [value]
    return ["" if v is None else int(v) if isinstance(v, bool) else v for v in found]


# ---- frame by frame


def session_steps(
    session: Session, *, is_time: bool | None = None, image: Volume | None = None
) -> Steps:
    """As `measure_session`, one frame at a time."""
    view = session.view
    if image is None and isinstance(session.image, Volume):
        image = session.image
    axis = view.key.axis
    layer = view.layers[0] if view.layers else None
    if is_time is None:
        label = str(layer.axis_labels[axis]).lower() if layer and axis is not None else ""
        if image is not None and axis == 0:
            label = image.axes[0]
        is_time = label in _TIME or axis is None  # a single picture has areas, as a movie has
    labels, objects = session.labels, session.objects
    in_space = sorted(view.plane if is_time or axis is None else (axis, *view.plane))
    unit = "pixel"
    to_world: Callable[..., Any] = np.asarray(view.spacing).__mul__
    if layer is not None:
        unit = _UNITS.get(str(layer.units[-1]), "pixel")
        to_world, steps = layer.data_to_world, layer_steps(layer, view.spacing)
    elif image is not None:
        unit, to_world = image.unit, _to_world(image)
        steps = _steps_of(to_world, len(view.shape))
    else:
        steps = np.diag(view.spacing)

    def place(position: NDArray[np.float64]) -> tuple[float, ...]:
        """(z, y, x) of frame and pixel -> the world."""
        at = view.join(0, position[-2:])[0]
        if axis is not None and not is_time:
            at[axis] = position[0]
        world = np.asarray(to_world(at), float)
        return tuple(world[in_space].tolist())

    plane = list(view.plane)
    area, step = _spanned(steps[plane]), 1.0
    if axis is not None and not is_time:
        step = _spanned(steps[[axis, *plane]]) / area
    known = {
        object_id: _Known(
            info.name,
            {
                f: one.iou
                for f, one in session.masks_of(object_id).items()
                if one.coarse is not None
            },
            {f: said.count for f, said in session.prompts.get(object_id, {}).items()},
            frozenset(f for f, how in session.kept(object_id).items() if how == "approved"),
        )
        for object_id, info in objects.items()
    }

    def planes(frame: int) -> Iterable[tuple[int, Any, Callable[[], Any]]]:
        yield frame, labels[view.index(frame)], lambda: view[frame]

    scale = _Scale(unit, area, step, is_time, False)
    return (yield from _measured(len(view), planes, scale, place, known, only=frozenset(objects)))


def labels_steps(
    labels: Any,
    image: Volume,
    *,
    names: Mapping[int, str] | None = None,
    steps: NDArray[np.float64] | None = None,
) -> Steps:
    """As `measure_labels`, one frame at a time.

    steps: (3, N) from a voxel to the next one along z, y and x, if that is not as `image` says.
    """
    from napari_sam2.io import world_affine

    axes = image.axes.replace("c", "")
    shape = tuple(
        n
        for n, a in zip(image.shape, image.axes if len(image.axes) > 2 else "zyx", strict=True)
        if a != "c"
    )
    if tuple(labels.shape) != shape:
        raise ValueError(f"The labels have shape {tuple(labels.shape)}, the image {shape}.")
    is_time = axes.startswith("t")
    affine = world_affine(image)
    known = {i: _Known(name) for i, name in (names or {}).items()}

    def place(position: NDArray[np.float64]) -> tuple[float, ...]:
        return tuple((affine @ (*position, 1))[3 - len(position) : 3].tolist())

    def place_in_picture(position: NDArray[np.float64]) -> tuple[float, ...]:
        return tuple((position[-2:] * image.spacing[-2:]).tolist())

    def picture(index: tuple[int, ...]) -> Any:
        return None if "c" in image.axes else image.array[index]

    def planes(frame: int) -> Iterable[tuple[int, Any, Callable[[], Any]]]:
        indices = [(frame, z) for z in range(shape[1])] if axes == "tzyx" else [(frame,)]
        for index in indices:
            yield index[-1], labels[index], lambda index=index: picture(index)  # type: ignore[misc]

    if axes in ("tyx", "yx"):
        y, x = image.spacing[-2:]
        scale = _Scale(image.unit, y * x, 1.0, is_time=True, are_volumes=False)
        return (yield from _measured(shape[0], planes, scale, place_in_picture, known))
    if steps is None:
        steps = _along(affine[:3, :3].T, image.spacing[-3:])
    area = _spanned(steps[1:])
    scale = _Scale(image.unit, area, _spanned(steps) / area, is_time, are_volumes=is_time)
    return (yield from _measured(shape[0], planes, scale, place, known))


def layer_steps(layer: Any, spacing: Sequence[float] | None = None) -> NDArray[np.float64]:
    """(D, N) from an element of a layer to its neighbour along each axis.

    A sheared scan (a tilted gantry) is shown straight, with pixels as far apart as in the file; the
    directions are those of the file.

    spacing: (D,) how far; by default as the layer is placed.
    """
    from napari_sam2.io import world_affine
    from napari_sam2.io.place import has_place, layer_axes
    from napari_sam2.io.readers import source_of

    steps = _steps_of(layer.data_to_world, layer.ndim)
    lengths = np.linalg.norm(steps, axis=1)
    source = source_of(layer.metadata)
    if source is not None and has_place(source) and layer.ndim == len(source.shape):
        steps[-3:] = 0
        steps[-3:, -3:] = world_affine(source)[:3, list(layer_axes(source))].T
    return _along(steps, lengths if spacing is None else spacing)


def _steps_of(to_world: Callable[..., Any], ndim: int) -> NDArray[np.float64]:
    origin = np.asarray(to_world(np.zeros(ndim)), float)
    return np.array([to_world(step) for step in np.eye(ndim)], float) - origin


def _to_world(image: Volume) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """From indices along the axes of an array, (z, y, x) or with others before them, or (y, x), to
    the same of the world."""
    from napari_sam2.io import world_affine
    from napari_sam2.io.place import has_place

    spacing = np.array((1.0, 1.0, *image.spacing))

    def to_world(at: NDArray[np.float64]) -> NDArray[np.float64]:
        world = at * spacing[-len(at) :]
        if has_place(image):
            zyx = np.array((0.0, 0.0, 0.0, *at))[-3:]
            world[-3:] = (world_affine(image) @ (*zyx, 1))[:3][-len(at) :]
        return world

    return to_world


def _along(directions: NDArray[Any], lengths: Sequence[float]) -> NDArray[np.float64]:
    """(D, N) vectors of some directions and lengths."""
    lengths_now = np.linalg.norm(directions, axis=1)
    vectors: NDArray[np.float64] = directions * (np.asarray(lengths) / lengths_now)[:, None]
    return vectors


def _spanned(steps: NDArray[np.float64]) -> float:
    """The area between two vectors, the volume between three; the product of their lengths only if
    they are at right angles."""
    return float(np.sqrt(np.linalg.det(steps @ steps.T)))


@dataclass(frozen=True)
class _Known:
    """What is known of an object beside its pixels, by frame; None where labels say nothing."""

    name: str
    scores: Mapping[int, float] = field(default_factory=dict)
    prompts: Mapping[int, int] | None = None
    approved: frozenset[int] | None = None


@dataclass(frozen=True)
class _Scale:
    """What pixels amount to."""

    unit: str
    area: float
    """Of a pixel."""
    step: float
    """From one plane to the next."""
    is_time: bool
    """Whether frames are time points."""
    are_volumes: bool
    """Whether frames are made of planes."""


_NOTHING = _Known("")
_Plane = tuple[int, Any, Callable[[], Any]]
"""Its index within a volume, the labels (H, W), and what reads the image there, or None."""


def _measured(
    count: int,
    planes: Callable[[int], Iterable[_Plane]],
    scale: _Scale,
    place: Callable[[NDArray[np.float64]], tuple[float, ...]],
    known: Mapping[int, _Known],
    only: frozenset[int] | None = None,
) -> Steps:
    """Go through all frames. only: ids to measure; by default all."""
    rows: list[FrameMeasure] = []
    totals: dict[int, ObjectSum] = {}
    in_frame = 3 if scale.are_volumes else 2
    per_pixel = scale.area * (scale.step if scale.are_volumes else 1.0)
    for frame in range(count):
        sums: dict[int, ObjectSum] = {}
        for plane in planes(frame):
            for object_id, found in sums_of(*plane, only).items():
                add(sums, object_id, found)
        for object_id, found in sorted(sums.items()):
            what = known.get(object_id, _NOTHING)
            rows.append(
                FrameMeasure(
                    object=object_id,
                    name=what.name or f"Object {object_id}",
                    frame=frame,
                    size=found.pixels * per_pixel,
                    unit=f"{scale.unit}{in_frame}",
                    score=what.scores.get(frame),
                    prompts=None if what.prompts is None else what.prompts.get(frame, 0),
                    approved=None if what.approved is None else frame in what.approved,
                    **found.common(place, in_frame),
                )
            )
            add(totals, object_id, found)
        yield frame + 1, count
    rows.sort(key=lambda row: (row.object, row.frame))
    in_all = in_frame if scale.is_time else 3
    objects = []
    for object_id, group in itertools.groupby(rows, lambda row: row.object):
        own, found = list(group), totals[object_id]
        what = known.get(object_id, _NOTHING)
        scores = [row.score for row in own if row.score is not None]
        mean_size = found.pixels * per_pixel / len(own)
        objects.append(
            ObjectMeasure(
                object=object_id,
                name=own[0].name,
                size=mean_size if scale.is_time else found.pixels * scale.area * scale.step,
                unit=f"{scale.unit}{in_all}",
                frames=len(own),
                first=own[0].frame,
                last=own[-1].frame,
                score=float(np.mean(scores)) if scores else None,
                prompts=None if what.prompts is None else sum(what.prompts.values()),
                approved=None
                if what.approved is None
                else sum(bool(row.approved) for row in own) / len(own),
                **found.common(place, in_all),
            )
        )
    return Measures(tuple(rows), tuple(objects), scale.is_time)
