"""The napari layers in which people place prompts, and what is in them for a session.

Clicks lie in a Points layer and boxes in a Shapes layer; each one knows its object, and a click
whether it lies on the object or beside it, from the layer's features. Both layers have the image's
ndim, and may be moved, scaled or turned apart from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.sequence_view import OUTSIDE, SequenceKey, SequenceView
from napari_sam2.session import Box, Session, SlicePrompts

if TYPE_CHECKING:
    from napari.layers import Image, Labels, Layer, Points, Shapes
    from napari.utils.colormaps import CyclicLabelColormap

Colours = Callable[[int], NDArray[np.float64]]
"""Object id -> RGBA, 0 to 1."""

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
_SMALLEST_BOX = 1.0  # pixels; a click without a drag makes a smaller one


@dataclass
class LayerPrompts:
    """What the layers say of one object on one frame."""

    points: list[tuple[float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    box: Box | None = None


@dataclass
class Reading:
    """All prompts of one sequence, and how many lie where they cannot be used."""

    prompts: dict[tuple[int, int], LayerPrompts] = field(default_factory=dict)
    """(object, frame) -> prompts."""
    outside: int = 0
    """Clicks and boxes outside the image, and boxes that do not lie in one slice."""
    replaced: list[int] = field(default_factory=list)
    """Indices of boxes that are too small, or that a later box on the same frame replaces."""

    def at(self, object_id: int, frame: int) -> LayerPrompts:
        return self.prompts.setdefault((object_id, frame), LayerPrompts())


def image_transform(image: Image) -> dict[str, Any]:
    """What places another layer where the image lies, as arguments of the layer."""
    return {
        "scale": image.scale,
        "translate": image.translate,
        "rotate": image.rotate,
        "shear": image.shear,
        "affine": image.affine,
        "units": image.units,
        "axis_labels": image.axis_labels,
    }


def new_labels_layer(image: Image, labels: NDArray[np.int32]) -> Labels:
    """A layer that shows a session's labels in place on the image; it holds the same array."""
    from napari.layers import Labels

    return Labels(
        labels,
        name=f"{image.name} objects",
        opacity=0.5,
        colormap=object_colours(),
        **image_transform(image),
    )


def object_colours() -> CyclicLabelColormap:
    """The colours of objects, from 1; 0 is transparent."""
    from napari.utils.colormaps import CyclicLabelColormap

    return CyclicLabelColormap(colors=["transparent", *_OBJECT_COLOURS])


class PromptLayers:
    """The Points and the Shapes layer of one image."""

    def __init__(self, image: Image, frame_shape: tuple[int, int]) -> None:
        """frame_shape: rows and columns, for the size of the marks."""
        from napari.layers import Points, Shapes

        self.image = image
        self._key: SequenceKey | None = None
        features: dict[str, Any] = {
            "object": np.empty(0, int),
            "axis": np.empty(0, int),
        }
        self.points: Points = Points(
            ndim=image.ndim,
            name=f"{image.name} clicks",
            features=features | {"label": np.empty(0, object)},
            feature_defaults={"object": 1, "axis": _NO_AXIS, "label": POSITIVE},
            size=max(frame_shape) / 25,
            border_width=0.15,
            # A lower limit other than 0 makes napari show a dot where a slice has no click.
            canvas_size_limits=(0, 15),
            **image_transform(image),
        )
        self.boxes: Shapes = Shapes(
            ndim=image.ndim,
            name=f"{image.name} boxes",
            features=features,
            feature_defaults={"object": 1, "axis": _NO_AXIS},
            edge_width=max(frame_shape) / 200,
            face_color=[0, 0, 0, 0],
            **image_transform(image),
        )

    def prepare(
        self, key: SequenceKey, object_id: int, label: str, colour: NDArray[np.float64]
    ) -> None:
        """What the next click or box will belong to, and its object's colour."""
        axis = _NO_AXIS if key.axis is None else key.axis
        points, boxes = self.points, self.boxes
        points.feature_defaults = {"object": object_id, "axis": axis, "label": label}
        boxes.feature_defaults = {"object": object_id, "axis": axis}
        with points.block_update_properties(), boxes.block_update_properties():
            points.current_face_color = _SIGN_COLOUR[label]
            points.current_border_color = colour
            points.current_symbol = _SYMBOL[label]
            boxes.current_edge_color = colour

    def read(self, view: SequenceView) -> Reading:
        """The prompts of the sequence that `view` shows."""
        axis = _NO_AXIS if view.key.axis is None else view.key.axis
        reading = Reading()
        self._read_points(view, axis, reading)
        self._read_boxes(view, axis, reading)
        return reading

    def fill(self, session: Session, colour_of: Colours) -> None:
        """Show the prompts of all sequences in empty layers."""
        for view in session.prompted_sequences:
            for object_id, frames in session.prompts_of(view.key).items():
                for frame, said in frames.items():
                    self._add(view, object_id, frame, said, colour_of(object_id))

    def colour(self, colour_of: Colours) -> None:
        """Give every mark its object's colour; clicks show their sign by filling and symbol.

        By the filling, since napari paints the border of a selected click, the last one, blue.
        """
        if len(self.points.data):
            labels = [_sign(value) for value in _column(self.points, "label")]
            self.points.face_color = [_SIGN_COLOUR[label] for label in labels]
            self.points.border_color = [colour_of(i) for i in _objects(self.points)]
            self.points.symbol = [_SYMBOL[label] for label in labels]
        if len(self.boxes.data):
            self.boxes.edge_color = [colour_of(i) for i in _objects(self.boxes)]

    def remove_object(self, object_id: int) -> None:
        """Take away all marks of an object, in every sequence."""
        self.points.remove([n for n, i in enumerate(_objects(self.points)) if i == object_id])
        self.boxes.remove([n for n, i in enumerate(_objects(self.boxes)) if i == object_id])

    def _add(
        self,
        view: SequenceView,
        object_id: int,
        frame: int,
        said: SlicePrompts,
        colour: NDArray[np.float64],
    ) -> None:
        """Show what is said of one object on one frame."""
        for label, sign in ((POSITIVE, 1), (NEGATIVE, 0)):
            self.prepare(view.key, object_id, label, colour)
            chosen = said.points[said.labels == sign]
            if len(chosen):
                at = view.join(frame, chosen)
                self.points.add(_between(self.image, self.points, at))
        if said.box is not None:
            y0, x0, y1, x1 = said.box
            corners = view.join(frame, [(y0, x0), (y0, x1), (y1, x1), (y1, x0)])
            self.boxes.add(_between(self.image, self.boxes, corners))

    def _read_points(self, view: SequenceView, axis: int, reading: Reading) -> None:
        at = _between(self.points, self.image, np.asarray(self.points.data))
        frames, yx = view.split(at)
        belongs = _column(self.points, "axis") == axis
        signs = [_sign(value) for value in _column(self.points, "label")]
        for n, object_id in enumerate(_objects(self.points)):
            if not belongs[n]:
                continue
            if frames[n] < 0:
                reading.outside += int(frames[n] == OUTSIDE)
                continue
            prompts = reading.at(object_id, int(frames[n]))
            prompts.points.append((float(yx[n, 0]), float(yx[n, 1])))
            prompts.labels.append(int(signs[n] == POSITIVE))

    def _read_boxes(self, view: SequenceView, axis: int, reading: Reading) -> None:
        belongs = _column(self.boxes, "axis") == axis
        last_box: dict[tuple[int, int], int] = {}
        for n, object_id in enumerate(_objects(self.boxes)):
            if not belongs[n] or self.boxes.shape_type[n] != "rectangle":
                continue
            corners = _between(self.boxes, self.image, np.asarray(self.boxes.data[n]))
            if np.ptp(corners[:, view.plane], axis=0).min() < _SMALLEST_BOX:
                reading.replaced.append(n)
                continue
            # A box may reach beyond the image; what counts is the part inside.
            last = np.array(view.frame_shape) - 0.5
            corners[:, view.plane] = np.clip(corners[:, view.plane], -0.5, last)
            frames, yx = view.split(corners)
            (y0, x0), (y1, x1) = yx.min(axis=0), yx.max(axis=0)
            is_flat = (frames == frames[0]).all()
            if not is_flat or frames[0] == OUTSIDE or min(y1 - y0, x1 - x0) < _SMALLEST_BOX:
                reading.outside += 1
            elif frames[0] >= 0:
                place = object_id, int(frames[0])
                if place in last_box:
                    reading.replaced.append(last_box[place])
                last_box[place] = n
                reading.at(*place).box = float(y0), float(x0), float(y1), float(x1)


def _between(source: Layer, target: Layer, positions: NDArray[Any]) -> NDArray[np.float64]:
    """(N, D) positions in one layer's data -> in another's, by way of the world."""
    moved = [target.world_to_data(source.data_to_world(at)) for at in positions]
    return np.array(moved, float).reshape(len(positions), target.ndim)


def _column(layer: Points | Shapes, name: str) -> NDArray[Any]:
    """A column of features; the value of new marks where someone has removed it."""
    features: Mapping[str, Any] = layer.features
    if name in features:
        return np.asarray(features[name])
    known = {"object": 1, "axis": _NO_AXIS, "label": POSITIVE}
    return np.full(len(layer.data), known[name], dtype=object)


def _objects(layer: Points | Shapes) -> list[int]:
    return [max(1, int(value)) for value in _column(layer, "object")]


def _sign(value: object) -> str:
    return NEGATIVE if value == NEGATIVE else POSITIVE
