"""Where positions in one layer's data lie in another's, and a layer of any grid on a frame."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_sam2.sequence_view import image_shape

if TYPE_CHECKING:
    from napari.layers import Image, Labels, Layer

    from napari_sam2.sequence_view import SequenceView

_TILE = 2048  # pixels; a layer is read for so many rows and columns of a frame at a time
_OBLIQUE_TILE = 64  # where rows and columns run across several axes: less lies between
_ROUNDING = 1e-6  # of a pixel: where a position lies between two, it goes to the later one


@dataclass(frozen=True)
class Alignment:
    """The affine map from positions in one layer's data to positions in another's."""

    matrix: NDArray[np.float64]
    """(E, D)"""
    offset: NDArray[np.float64]
    """(E,)"""

    def __call__(self, positions: ArrayLike) -> NDArray[np.float64]:
        """(N, D) positions in the source -> (N, E) in the target."""
        at = np.asarray(positions, float).reshape(-1, self.matrix.shape[1])
        moved: NDArray[np.float64] = at @ self.matrix.T + self.offset
        return moved


def align(source: Layer, target: Layer) -> Alignment:
    """By way of the world: scale, translate, rotate, shear, affine and units of both layers.

    As in the viewer, the last axes belong together where one layer has more of them.
    """

    def moved(position: NDArray[np.float64]) -> NDArray[np.float64]:
        world = np.array(source.data_to_world(position), float) * _units_ratio(source, target)
        return np.array(target.world_to_data(world), float)

    offset = moved(np.zeros(source.ndim))
    columns = [moved(step) - offset for step in np.eye(source.ndim)]
    return Alignment(np.stack(columns, axis=1), offset)


def layer_on(view: SequenceView, layer: Labels | Image, frame: int) -> NDArray[Any]:
    """A layer of any shape and transform on a frame of an image layer.

    layer: labels, or an image without colours. One that lies nowhere, as labels of files that know
    no pixel size, and has the shape of the image lies on its pixels.

    Returns (H, W) of the layer's data type: the nearest value of each pixel, and 0 where the layer
    ends. Only what lies on the frame is read.
    Raises ValueError where the view is of an array, which lies nowhere in the world.
    """
    if not view.layers:
        raise ValueError("The image is an array without a place; give its labels as an array.")
    data = layer.data[0] if layer.multiscale else layer.data
    corners = view.join(frame, [(0, 0), (1, 0), (0, 1)])
    image = view.layers[0]
    is_on_pixels = _lies_nowhere(layer) and tuple(data.shape) == image_shape(image)
    origin, below, beside = corners if is_on_pixels else align(image, layer)(corners)
    height, width = view.frame_shape
    down, right = below - origin, beside - origin
    down[abs(down) * height < _ROUNDING] = 0
    right[abs(right) * width < _ROUNDING] = 0
    size = _OBLIQUE_TILE if (down * right).any() else _TILE
    found = np.zeros((height, width), data.dtype)
    for top, left in product(range(0, height, size), range(0, width, size)):
        tile = found[top : top + size, left : left + size]
        y, x = np.ogrid[top : top + tile.shape[0], left : left + tile.shape[1]]
        # Along an axis that runs along rows or columns only, a few numbers say where all lie.
        steps = zip(origin, down, right, data.shape, strict=True)
        nearest, is_inside, area = [], np.ones(tile.shape, np.bool_), []
        for start, step_y, step_x, end in steps:
            at = np.array(start + (y * step_y if step_y else 0) + (x * step_x if step_x else 0))
            near = np.floor(at + 0.5 + _ROUNDING).astype(np.int64)
            is_inside &= (near >= 0) & (near < end)
            area.append(slice(max(0, int(near.min())), min(end, int(near.max()) + 1)))
            nearest.append(near.clip(area[-1].start, area[-1].stop - 1) - area[-1].start)
        if is_inside.any():
            block = np.asarray(data[tuple(area)])
            tile[:] = np.where(is_inside, block[tuple(nearest)], 0)
    return found


def _lies_nowhere(layer: Layer) -> bool:
    """Whether nothing says where a layer lies and how large its pixels are."""
    steps = np.eye(layer.ndim)
    world = np.array([layer.data_to_world(step) for step in (*steps, 0 * steps[0])])
    is_unplaced = np.array_equal(world, [*steps, 0 * steps[0]])
    return is_unplaced and all(str(unit) == "pixel" for unit in layer.units)


def _units_ratio(source: Layer, target: Layer) -> NDArray[np.float64]:
    """(D,) the units of the source's axes in those of the target's; 1 where it has none.

    As in the viewer, units do not count where an axis has one kind of them in one layer and another
    kind in the other: millimetres and pixels.
    """
    from pint import get_application_registry

    base = get_application_registry().get_base_units
    ratio = np.ones(source.ndim)
    common = min(source.ndim, target.ndim)
    pairs = zip(source.units[-common:], target.units[-common:], strict=True)
    in_base = [(base(one), base(other)) for one, other in pairs]
    if all(one[1] == other[1] for one, other in in_base):
        ratio[-common:] = [one[0] / other[0] for one, other in in_base]
    return ratio
