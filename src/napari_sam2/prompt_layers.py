"""The napari layers in which people place prompts, and what is in them for a session.

Clicks lie in a Points layer. In a Shapes layer a rectangle is a box, a path or line a scribble, and
a polygon or ellipse a lasso. Each mark knows from the layer's features which object it belongs to,
along which axis and in the plane of which axes it was placed, and whether it lies on the object or
beside it. A box or lasso that lies beside it is a scribble across its widest row. Both layers have
the image's ndim, lie where it lies and follow it, and may be moved, scaled or turned apart from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.alignment import align
from napari_sam2.label_ids import MAX_ID
from napari_sam2.sequence_view import ELSEWHERE, OUTSIDE, SequenceKey, SequenceView, image_shape
from napari_sam2.session import Session
from napari_sam2.slice_data import Box, SlicePrompts

if TYPE_CHECKING:
    from napari.layers import Image, Labels, Layer, Points, Shapes
    from napari.utils.colormaps import CyclicLabelColormap

Colours = Callable[[int], NDArray[np.float64]]
"""Object id -> RGBA, 0 to 1."""
Path = tuple[tuple[float, float], ...]
"""y, x on a frame, one after the other."""

POSITIVE, NEGATIVE = "positive", "negative"

_NO_AXIS = -1  # stands for a 2-D image's sequence in the column `axis`
_SIGN_COLOUR = {POSITIVE: (0.2, 0.9, 0.3, 1.0), NEGATIVE: (1.0, 0.2, 0.2, 1.0)}
_SYMBOL = {POSITIVE: "disc", NEGATIVE: "diamond"}
# Bright, told apart by people who do not see all colours (Okabe and Ito's, lightened), and rare
# in images, which are mostly grey.
_OBJECT_COLOURS = (
    "#40c8ff", "#ffa726", "#c77dff", "#ffee58", "#26d9a3", "#ff7fb0", "#6b8cff", "#ff6e40",
    "#a5e65a", "#00d5d5", "#f06bff", "#d8b48a",
)  # fmt: skip
_SMALLEST = 1.0  # pixels, of a box's sides; a click without a drag makes a smaller one
_FLAT = 0.5  # slices; a shape that reaches farther does not lie in one
_ELLIPSE_CORNERS = 32
_ROWS = 9  # that are tried for the widest one
_PLACE = ("scale", "translate", "rotate", "shear", "affine", "units")


@dataclass
class LayerPrompts:
    """What the layers say of one object on one frame; the arguments of `Session.set_prompts`."""

    points: list[tuple[float, float]] = field(default_factory=list)
    """y, x"""
    labels: list[int] = field(default_factory=list)
    """1 for points on the object, 0 for points beside it."""
    box: Box | None = None
    scribbles: list[tuple[Path, int]] = field(default_factory=list)
    """Corners of lines, each line with a label as of a point."""
    lassos: list[Path] = field(default_factory=list)
    """Corners of polygons."""


@dataclass
class Reading:
    """All prompts of one sequence, and how many marks lie where they cannot be used."""

    prompts: dict[tuple[int, int], LayerPrompts] = field(default_factory=dict)
    """(object, frame) -> prompts."""
    outside: int = 0
    """Marks outside the image, shapes that do not lie in one slice, marks without an object."""
    replaced: list[int] = field(default_factory=list)
    """Indices of shapes that are too small, or boxes that a later one on the frame replaces."""

    def at(self, object_id: int, frame: int) -> LayerPrompts:
        return self.prompts.setdefault((object_id, frame), LayerPrompts())


def image_transform(image: Image, channel_axis: int | None = None) -> dict[str, Any]:
    """What places another layer where the image lies, as arguments of the layer.

    channel_axis: an axis along which the other layer has one element, which reaches through all
    channels, so that it is seen whichever of them the viewer shows.
    """
    place = {
        "scale": np.array(image.scale),
        "translate": np.array(image.translate),
        "rotate": image.rotate,
        "shear": image.shear,
        "affine": image.affine,
        "units": image.units,
        "axis_labels": image.axis_labels,
    }
    if channel_axis is not None:
        from napari.utils.transforms import Affine

        count = image_shape(image)[channel_axis]
        linear = Affine(scale=image.scale, rotate=image.rotate, shear=image.shear).linear_matrix
        place["translate"] += linear[:, channel_axis] * (count - 1) / 2
        place["scale"][channel_axis] *= count
    return place


class Follower:
    """Keeps other layers in place on an image that is scaled, moved or turned, while it is held."""

    def __init__(self, image: Image, layers: Iterable[Layer], channel_axis: int | None) -> None:
        """channel_axis: as for `image_transform`."""
        self._image = image
        self._layers = tuple(layers)
        self._channel_axis = channel_axis
        for name in _PLACE:
            getattr(image.events, name).connect(self._follow)

    def _follow(self, event: Any) -> None:
        place = image_transform(self._image, self._channel_axis)
        for layer in self._layers:
            for name in _PLACE:
                setattr(layer, name, place[name])


def new_labels_layer(image: Image, labels: Any, channel_axis: int | None = None) -> Labels:
    """A layer that shows a session's labels in place on the image; it holds the same array."""
    from napari.layers import Labels

    return Labels(
        labels,
        name=f"{image.name} objects",
        opacity=0.5,
        colormap=object_colours(),
        **image_transform(image, channel_axis),
    )


def object_colours() -> CyclicLabelColormap:
    """The colours of objects, from 1; 0 is transparent."""
    from napari.utils.colormaps import CyclicLabelColormap

    return CyclicLabelColormap(colors=["transparent", *_OBJECT_COLOURS])


def object_rgb(object_id: int) -> tuple[float, float, float]:
    """The colour of an object by its id: red, green and blue, 0 to 1."""
    code = _OBJECT_COLOURS[(object_id - 1) % len(_OBJECT_COLOURS)]
    red, green, blue = (int(code[n : n + 2], 16) / 255 for n in (1, 3, 5))
    return red, green, blue


class PromptLayers:
    """The Points and the Shapes layer of one image."""

    def __init__(
        self, image: Image, frame_shape: tuple[int, int], channel_axis: int | None = None
    ) -> None:
        """frame_shape: rows and columns, for the size of the marks.

        channel_axis: of channels that are seen together.
        """
        from napari.layers import Points, Shapes

        self.image = image
        features: dict[str, Any] = {
            "object": np.empty(0, int),
            "axis": np.empty(0, int),
            "plane": np.empty(0, object),
            "label": np.empty(0, object),
        }
        defaults = {"object": 1, "axis": _NO_AXIS, "plane": "", "label": POSITIVE}
        place = image_transform(image, channel_axis)
        self.points: Points = Points(
            ndim=image.ndim,
            name=f"{image.name} clicks",
            features=features,
            feature_defaults=defaults,
            size=max(frame_shape) / 25,
            border_width=0.15,
            # A lower limit other than 0 makes napari show a dot where a slice has no click.
            canvas_size_limits=(0, 15),
            **place,
        )
        self.boxes: Shapes = Shapes(
            ndim=image.ndim,
            name=f"{image.name} boxes",
            features=features,
            feature_defaults=defaults,
            edge_width=max(frame_shape) / 200,
            face_color=[0, 0, 0, 0],
            **place,
        )
        self._follower = Follower(image, (self.points, self.boxes), channel_axis)

    @property
    def emitters(self) -> tuple[Any, ...]:
        """Of the events of edited marks, by mouse, keyboard or script.

        Those of the data also announce changes to come: their `action` is then none of "added",
        "changed" and "removed".
        """
        points, boxes = self.points.events, self.boxes.events
        return points.data, points.features, boxes.data, boxes.features

    @property
    def is_torn(self) -> bool:
        """Whether napari has left behind the colours of a drawing that was too short for a shape.

        It cannot show such a layer in 3D. `fill` mends it.
        """
        return len(self.boxes.face_color) != len(self.boxes.data)

    def prepare(
        self, key: SequenceKey, object_id: int, label: str, colour: NDArray[np.float64]
    ) -> None:
        """What the next mark will belong to, and its object's colour.

        What is right already is not set again, which is slow.
        """
        points, boxes = self.points, self.boxes
        defaults = {"object": object_id, **_sequence_features(key), "label": label}
        for layer in (points, boxes):
            # Someone may have given the layer features without some of the columns.
            wanted = {name: defaults[name] for name in defaults if name in layer.features}
            if layer.feature_defaults.iloc[0].to_dict() != wanted:
                layer.feature_defaults = wanted
        with points.block_update_properties(), boxes.block_update_properties():
            for layer, name, value in (
                (points, "current_face_color", _SIGN_COLOUR[label]),
                (points, "current_border_color", colour),
                (boxes, "current_edge_color", _edge_colour(label, colour)),
            ):
                if not _is_colour(getattr(layer, name), value):
                    setattr(layer, name, value)
            if points.current_symbol.value != _SYMBOL[label]:
                points.current_symbol = _SYMBOL[label]

    def read(self, view: SequenceView) -> Reading:
        """The prompts of the sequence that `view` shows."""
        self._trim()
        reading = Reading()
        self._read_points(view, reading)
        self._read_shapes(view, reading)
        return reading

    def fill(self, session: Session, colour_of: Colours) -> None:
        """Show the prompts of all sequences of a session, and nothing else."""
        self._end_drawing()
        points, boxes = _Marks(), _Marks()
        for view in session.prompted_sequences:
            for object_id, frames in session.prompts_of(view.key).items():
                for frame, said in frames.items():
                    _mark_points(points, view, object_id, frame, said)
                    _mark_shapes(boxes, view, object_id, frame, said)
        self.boxes.data = []  # of these, `remove` would leave behind what `is_torn` tells of
        self.points.remove(list(range(len(self.points.data))))
        for layer, marks in ((self.points, points), (self.boxes, boxes)):
            if not marks.kinds:
                continue
            defaults = layer.feature_defaults
            to_layer = align(self.image, layer)
            placed = [to_layer(at) for at in marks.positions]
            if layer is self.points:
                self.points.add(np.concatenate(placed))
            else:
                self.boxes.add(placed, shape_type=marks.kinds)
            layer.features = marks.features
            if set(defaults) == set(layer.features):
                layer.feature_defaults = defaults
            layer.selected_data = set()
        self.colour(colour_of)

    def colour(self, colour_of: Colours) -> None:
        """Give every mark its object's colour; clicks show their sign by filling and symbol.

        By the filling, since napari paints the border of a selected click, the last one, blue.
        Scribbles and lassos beside the object are red.
        """
        self._trim()
        if len(self.points.data):
            labels = _signs(self.points)
            faces = np.array([_SIGN_COLOUR[label] for label in labels])
            borders = np.array(_colours_of(self.points, colour_of))
            symbols = [_SYMBOL[label] for label in labels]
            # Most often a new click has the right ones already, and to set them is slow.
            if not np.allclose(self.points.face_color, faces, atol=1e-3):
                self.points.face_color = faces
            if not np.allclose(self.points.border_color, borders, atol=1e-3):
                self.points.border_color = borders
            if [symbol.value for symbol in self.points.symbol] != symbols:
                self.points.symbol = symbols
        if len(self.boxes.data):
            self.boxes.edge_color = [
                _edge_colour(label, colour)
                for label, colour in zip(
                    _signs(self.boxes), _colours_of(self.boxes, colour_of), strict=True
                )
            ]

    def remove_object(self, object_id: int) -> None:
        """Take away all marks of an object, in every sequence."""
        self.points.remove([n for n, i in enumerate(_objects(self.points)) if i == object_id])
        self.boxes.remove([n for n, i in enumerate(_objects(self.boxes)) if i == object_id])

    def _end_drawing(self) -> None:
        """A drawing that is not finished yet must not lose its shape: napari would look for it."""
        mode = self.boxes.mode
        if str(mode).startswith("add"):
            self.boxes.mode = "pan_zoom"
            self.boxes.mode = mode
        self._trim()

    def _trim(self) -> None:
        """napari leaves behind the features of a drawing that was too short for a shape."""
        boxes, count = self.boxes, len(self.boxes.data)
        if len(boxes.features) > count:
            defaults = boxes.feature_defaults
            boxes.features = boxes.features.iloc[:count]
            boxes.feature_defaults = defaults

    def _read_points(self, view: SequenceView, reading: Reading) -> None:
        frames, yx = view.split(align(self.points, self.image)(self.points.data))
        belongs, signs = _belong(self.points, view.key), _signs(self.points)
        for n, object_id in enumerate(_objects(self.points)):
            if not belongs[n] or frames[n] == ELSEWHERE:
                continue
            if object_id is None or frames[n] == OUTSIDE:
                reading.outside += 1
                continue
            prompts = reading.at(object_id, int(frames[n]))
            prompts.points.append((float(yx[n, 0]), float(yx[n, 1])))
            prompts.labels.append(int(signs[n] == POSITIVE))

    def _read_shapes(self, view: SequenceView, reading: Reading) -> None:
        to_image = align(self.boxes, self.image)
        belongs, signs = _belong(self.boxes, view.key), _signs(self.boxes)
        last_box: dict[tuple[int, int], int] = {}
        kinds = self.boxes.shape_type
        for n, object_id in enumerate(_objects(self.boxes)):
            if not belongs[n]:
                continue
            corners = to_image(_outline(np.asarray(self.boxes.data[n]), kinds[n]))
            is_path = kinds[n] in ("path", "line")
            if not is_path and _extent(corners[:, view.plane]) < _SMALLEST:
                reading.replaced.append(n)
                continue
            frame, yx = _on_one_frame(view, corners)
            if frame == ELSEWHERE:
                continue
            last = np.array(view.frame_shape) - 0.5
            is_lost = (yx.max(axis=0) < -0.5).any() or (yx.min(axis=0) > last).any()
            # A shape may reach beyond the image; what counts is the part inside.
            inside = np.clip(yx, -0.5, last)
            if not is_path:
                is_lost |= _extent(inside) < _SMALLEST
            if object_id is None or frame == OUTSIDE or is_lost:
                reading.outside += 1
                continue
            prompts = reading.at(object_id, frame)
            label = int(signs[n] == POSITIVE)
            if kinds[n] == "rectangle" and label:
                if (object_id, frame) in last_box:
                    reading.replaced.append(last_box[object_id, frame])
                last_box[object_id, frame] = n
                (y0, x0), (y1, x1) = inside.min(axis=0), inside.max(axis=0)
                prompts.box = float(y0), float(x0), float(y1), float(x1)
            elif label and not is_path:
                prompts.lassos.append(_path(inside))
            else:
                line = inside if is_path else _widest_row(inside)
                prompts.scribbles.append((_path(line), label))


@dataclass
class _Marks:
    """Marks to be added to a layer, in the image's positions."""

    positions: list[NDArray[np.float64]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    features: dict[str, list[Any]] = field(
        default_factory=lambda: {"object": [], "axis": [], "plane": [], "label": []}
    )

    def add(
        self, view: SequenceView, object_id: int, frame: int, kind: str, yx: Any, label: int
    ) -> None:
        self.positions.append(view.join(frame, yx))
        self.kinds.append(kind)
        self.features["object"].append(object_id)
        for name, value in _sequence_features(view.key).items():
            self.features[name].append(value)
        self.features["label"].append(POSITIVE if label else NEGATIVE)


def _mark_points(
    marks: _Marks, view: SequenceView, object_id: int, frame: int, said: SlicePrompts
) -> None:
    for point, label in zip(said.points, said.labels, strict=True):
        marks.add(view, object_id, frame, "point", point, label)


def _mark_shapes(
    marks: _Marks, view: SequenceView, object_id: int, frame: int, said: SlicePrompts
) -> None:
    if said.box is not None:
        y0, x0, y1, x1 = said.box
        corners = [(y0, x0), (y0, x1), (y1, x1), (y1, x0)]
        marks.add(view, object_id, frame, "rectangle", corners, 1)
    for path, label in said.scribbles:
        marks.add(view, object_id, frame, "path", path, label)
    for polygon in said.lassos:
        marks.add(view, object_id, frame, "polygon", polygon, 1)


def _on_one_frame(
    view: SequenceView, positions: NDArray[np.float64]
) -> tuple[int, NDArray[np.float64]]:
    """The frame that a shape lies on, and its (N, 2) y, x; OUTSIDE if it lies on several."""
    across = [axis for axis in range(len(view.shape)) if axis not in view.plane]
    middle = positions.mean(axis=0)
    middle[list(view.plane)] = 0  # what lies beside the image is cut off
    frame = int(view.split(middle)[0][0])
    if (np.ptp(positions[:, across], axis=0) > _FLAT).any():
        frame = OUTSIDE
    return frame, positions[:, view.plane]


def _extent(yx: NDArray[np.float64]) -> float:
    """The smaller side of the box around (N, 2) positions."""
    return float(np.ptp(yx, axis=0).min())


def _outline(data: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """(N, D) corners of a shape; napari holds an ellipse as the (4, D) corners around it."""
    if kind != "ellipse":
        return data
    middle = data.mean(axis=0)
    first, second = (data[1] - data[0]) / 2, (data[3] - data[0]) / 2
    angle = np.linspace(0, 2 * np.pi, _ELLIPSE_CORNERS, endpoint=False)[:, None]
    outline: NDArray[np.float64] = middle + np.cos(angle) * first + np.sin(angle) * second
    return outline


def _widest_row(polygon: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, 2) y, x of the ends of the longest row inside a polygon of (N, 2) corners."""
    low, high = polygon[:, 0].min(), polygon[:, 0].max()
    ends = np.roll(polygon, -1, axis=0)
    rows = []
    for y in low + (high - low) * (np.arange(_ROWS) + 0.5) / _ROWS:
        crosses = (polygon[:, 0] <= y) != (ends[:, 0] <= y)
        (y0, x0), (y1, x1) = polygon[crosses].T, ends[crosses].T
        x = np.sort(x0 + (y - y0) / (y1 - y0) * (x1 - x0))
        rows += [
            (right - left, y, left, right) for left, right in zip(x[::2], x[1::2], strict=True)
        ]
    _, y, left, right = max(rows)
    return np.array([(y, left), (y, right)])


def _path(yx: NDArray[np.float64]) -> Path:
    return tuple((float(y), float(x)) for y, x in yx)


def _sequence_features(key: SequenceKey) -> dict[str, Any]:
    """What tells sequences apart in which a mark may lie: their axis and those of their frames."""
    plane = [n for n, at in enumerate(key.position) if at is None and n != key.axis]
    return {
        "axis": _NO_AXIS if key.axis is None else key.axis,
        "plane": ",".join(map(str, plane)),
    }


def _edge_colour(label: str, colour: Any) -> Any:
    return colour if label == POSITIVE else _SIGN_COLOUR[NEGATIVE]


def _column(layer: Points | Shapes, name: str, default: object) -> NDArray[Any]:
    """A column of features; the default where someone has removed it."""
    features: Mapping[str, Any] = layer.features
    if name in features:
        return np.asarray(features[name], dtype=object)
    return np.full(len(layer.data), default, dtype=object)


def _belong(layer: Points | Shapes, key: SequenceKey) -> list[bool]:
    """Whether each mark was placed in such a sequence; one that does not say so was."""
    belongs = [True] * len(layer.data)
    for name, wanted in _sequence_features(key).items():
        for n, value in enumerate(_column(layer, name, wanted)):
            belongs[n] &= value == wanted or _is_missing(value)
    return belongs


def _objects(layer: Points | Shapes) -> list[int | None]:
    """The object of each mark; None where what stands there cannot be its id."""
    return [_object_id(value) for value in _column(layer, "object", 1)]


def _colours_of(layer: Points | Shapes, colour_of: Colours) -> list[NDArray[np.float64]]:
    """The colour of each mark's object; of no object, that of the background."""
    objects = _objects(layer)
    known = {i: colour_of(i or 0) for i in set(objects)}
    return [known[i] for i in objects]


def _is_colour(text: str, colour: Any) -> bool:
    """Whether a colour as napari writes it ("#rrggbb", with "aa" or a name) is this one."""
    from napari.utils.colormaps.standardize_color import transform_color

    return bool(np.allclose(transform_color(text)[0], colour, atol=1 / 255))


def _object_id(value: Any) -> int | None:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 1 <= number <= MAX_ID and number == float(value) else None


def _signs(layer: Points | Shapes) -> list[str]:
    return [
        NEGATIVE if value == NEGATIVE else POSITIVE for value in _column(layer, "label", POSITIVE)
    ]


def _is_missing(value: Any) -> bool:
    return value is None or value != value
