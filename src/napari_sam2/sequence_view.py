"""An image of any dimensions, read as a sequence of 2-D frames along one of its axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Window = tuple[float, float]
ELSEWHERE, OUTSIDE = -1, -2


@dataclass(frozen=True)
class SequenceKey:
    """Which frames of an image make a sequence; its prompts and masks belong together."""

    axis: int | None
    """The axis along which the frames follow each other; None for a 2-D image, one frame."""
    position: tuple[int | None, ...]
    """One entry per axis: the fixed index, or None for `axis` and the two axes of a frame."""

    @classmethod
    def along(cls, axis: int | None, ndim: int) -> SequenceKey:
        """Along an axis of an image, its frames the last two other axes, all others at index 0.

        axis: by default the third from the end; none in a 2-D image.
        """
        if ndim == 2:
            return cls(None, (None, None))
        axis = ndim - 3 if axis is None else range(ndim)[axis]
        free = {axis, *[other for other in range(ndim) if other != axis][-2:]}
        return cls(axis, tuple(None if other in free else 0 for other in range(ndim)))

    @classmethod
    def of_viewer(cls, layer: Any, order: Sequence[int], point: Sequence[float]) -> SequenceKey:
        """The sequence that a viewer shows of a layer: the slider's axis, as the axes are rolled.

        layer: a napari image layer. order: viewer.dims.order. point: viewer.dims.point, in world
        coordinates; axes that are neither shown nor the sequence are taken where it lies.
        """
        added = len(order) - layer.ndim  # axes that other layers add in front
        axes = [axis - added for axis in order if axis >= added]
        hidden = axes[:-2]
        if not hidden:
            return cls(None, (None, None))
        shape = image_shape(layer)
        axis = next((a for a in hidden if shape[a] > 1), hidden[0])
        here = np.rint(layer.world_to_data(point))
        position = tuple(
            int(np.clip(here[a], 0, shape[a] - 1)) if a in hidden and a != axis else None
            for a in range(layer.ndim)
        )
        return cls(axis, position)


class SequenceView:
    """The frames of one sequence, read one at a time: what `SequencePredictor` takes as frames.

    Frames keep the array's own order of axes, however the viewer turns them.
    """

    def __init__(self, data: Any, key: SequenceKey | None = None, *, rgb: bool = False) -> None:
        """data: any array, never read as a whole. rgb: whether its last axis holds colours.

        Raises ValueError where the image has fewer than two axes, or the key is for another one.
        """
        self.data = data
        self.rgb = rgb
        self.shape: tuple[int, ...] = tuple(data.shape[:-1] if rgb else data.shape)
        if len(self.shape) < 2:
            raise ValueError(f"An image needs two axes or more; this one has {len(self.shape)}.")
        self.key = key or SequenceKey.along(None, len(self.shape))
        free = [axis for axis, index in enumerate(self.key.position) if index is None]
        self.plane = tuple(axis for axis in free if axis != self.key.axis)
        """The axes of a frame's rows and columns."""
        if len(self.key.position) != len(self.shape) or len(self.plane) != 2:
            raise ValueError(f"{self.key} is no sequence of an image of shape {self.shape}.")

    @classmethod
    def of_layer(cls, layer: Any, key: SequenceKey | None = None) -> SequenceView:
        """Of a napari image layer; of a multiscale one, the full resolution."""
        return cls(layer.data[0] if layer.multiscale else layer.data, key, rgb=layer.rgb)

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return self.shape[self.plane[0]], self.shape[self.plane[1]]

    def __len__(self) -> int:
        return 1 if self.key.axis is None else self.shape[self.key.axis]

    def __getitem__(self, frame: int) -> NDArray[Any]:
        """(H, W), or (H, W, 3) for colours; IndexError past the end."""
        if not 0 <= frame < len(self):
            raise IndexError(f"There is no slice {frame}; there are {len(self)}, from 0.")
        array = np.asarray(self.data[self.index(frame)])
        return array[..., :3] if self.rgb else array

    def index(self, frame: int) -> tuple[int | slice, ...]:
        """What picks a frame's pixels from an array of `shape`."""
        return tuple(
            frame if axis == self.key.axis else slice(None) if fixed is None else fixed
            for axis, fixed in enumerate(self.key.position)
        )

    def split(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(N, D) positions in the array -> the frame of each, and its (N, 2) y, x on that frame.

        A position belongs to the nearest frame. Instead of a frame, ELSEWHERE stands where a
        position lies in another sequence, and OUTSIDE where it lies outside the image.
        """
        at = np.asarray(positions, float).reshape(-1, len(self.shape))
        nearest = np.rint(at)
        frames = np.zeros(len(at), np.int64)
        if self.key.axis is not None:
            frames = np.clip(nearest[:, self.key.axis], 0, len(self) - 1).astype(np.int64)
        for axis, fixed in enumerate(self.key.position):
            if fixed is not None:
                frames[nearest[:, axis] != fixed] = ELSEWHERE
        frames[~((at >= -0.5) & (at <= np.array(self.shape) - 0.5)).all(axis=1)] = OUTSIDE
        return frames, at[:, self.plane]

    def join(self, frame: int, yx: ArrayLike) -> NDArray[np.float64]:
        """(N, 2) y, x on a frame -> (N, D) positions in the array; the opposite of `split`."""
        points = np.asarray(yx, float).reshape(-1, 2)
        at = np.empty((len(points), len(self.shape)))
        at[:] = [0 if fixed is None else fixed for fixed in self.key.position]
        if self.key.axis is not None:
            at[:, self.key.axis] = frame
        at[:, self.plane] = points
        return at


def image_shape(layer: Any) -> tuple[int, ...]:
    """Size of an image layer's array at full resolution, without colours."""
    shape: Iterable[int] = (layer.data[0] if layer.multiscale else layer.data).shape
    return tuple(shape)[: layer.ndim]


def window_of(layer: Any) -> Window | None:
    """The intensities that an image layer shows as black and white; None: let the engine sample.

    For colours, napari shows the whole range of the data type, whatever the contrast limits say.
    """
    if layer.rgb:
        dtype = np.dtype(layer.dtype)
        return (0.0, float(np.iinfo(dtype).max)) if dtype.kind in "ui" else (0.0, 1.0)
    low, high = (float(value) for value in layer.contrast_limits)
    return (low, high) if np.isfinite((low, high)).all() and low < high else None
