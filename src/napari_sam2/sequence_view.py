"""An image of any dimensions, read as a sequence of 2-D frames along one of its axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_sam2.given import whole_number
from napari_sam2.io.volume import Volume

Window = tuple[float, float]
Windows = Window | tuple[Window, ...]
"""The intensities shown as black and white, or these for each channel."""
ELSEWHERE, OUTSIDE = -1, -2
MOST_CHANNELS = 3
_BESIDE = 0.5  # pixels or slices


@dataclass(frozen=True)
class Channels:
    """Up to three channels of an image that the model sees as one picture in colours."""

    axis: int
    """The axis of the image along which the channels lie."""
    indices: tuple[int, ...]
    """Three are red, green and blue; of two, the first is magenta and the second green."""


@dataclass(frozen=True)
class SequenceKey:
    """Which frames of an image make a sequence; its prompts and masks belong together."""

    axis: int | None
    """The axis along which the frames follow each other; None for a 2-D image, one frame."""
    position: tuple[int | None, ...]
    """One entry per axis: the fixed index, or None for `axis` and the two axes of a frame.

    0 for the axis of channels that are seen together.
    """

    @classmethod
    def along(cls, axis: int | None, ndim: int, channel_axis: int | None = None) -> SequenceKey:
        """Along an axis of an image, its frames the last two other axes, all others at index 0.

        axis: by default the third from the end; none in a 2-D image.
        """
        others = [other for other in range(ndim) if other != channel_axis]
        if len(others) == 2:
            axis = None
        else:
            axis = others[-3] if axis is None else axis
            if axis not in range(-ndim, ndim):
                raise ValueError(f"There is no axis {axis} in an image of {ndim} axes, from 0.")
            axis %= ndim
        free = {axis, *[other for other in others if other != axis][-2:]}
        return cls(axis, tuple(None if other in free else 0 for other in range(ndim)))

    @classmethod
    def of_viewer(
        cls,
        layer: Any,
        order: Sequence[int],
        point: Sequence[float],
        axis: int | None = None,
        channel_axis: int | None = None,
    ) -> SequenceKey:
        """The sequence that a viewer shows of a layer, as its axes are rolled.

        layer: a napari image layer. order: viewer.dims.order. point: viewer.dims.point, in world
        coordinates; axes that are neither shown nor the sequence are taken where it lies.
        axis: one of `sequence_axes`, by default the first. channel_axis: of channels that are
        seen together.
        """
        shape = image_shape(layer)
        possible = sequence_axes(layer, order, channel_axis)
        if axis not in possible:
            axis = possible[0] if possible else None
        shown = _axes_of(layer, order, channel_axis)[-2:]
        here = np.rint(layer.world_to_data(point))

        def index(a: int) -> int | None:
            if a == axis or a in shown:
                return None
            return 0 if a == channel_axis else int(np.clip(here[a], 0, shape[a] - 1))

        return cls(axis, tuple(index(a) for a in range(layer.ndim)))


def sequence_axes(
    layer: Any, order: Sequence[int], channel_axis: int | None = None
) -> tuple[int, ...]:
    """The axes of an image layer that frames can follow each other along, the likeliest first.

    They are those with a slider in a viewer with these dims.order; axes of one slice and axes that
    are labelled as channels come last.
    """
    shape = image_shape(layer)
    hidden = _axes_of(layer, order, channel_axis)[:-2]

    def is_unlikely(axis: int) -> bool:
        return shape[axis] == 1 or str(layer.axis_labels[axis]).lower() in ("c", "channel")

    return tuple(sorted(hidden, key=is_unlikely))


def is_oblique(layer: Any, order: Sequence[int]) -> bool:
    """Whether a viewer with these dims.order shows the slices of an image layer where they are not.

    napari draws slices straight, without what turns or shears them out of their plane. A click
    takes it into account, and then lies half a pixel or a slice or more beside what is shown.
    """
    axes = _axes_of(layer, order, None)
    shown, hidden = axes[-2:], axes[:-2]
    origin = np.array(layer.data_to_world(np.zeros(layer.ndim)))
    to_world = np.array([layer.data_to_world(step) for step in np.eye(layer.ndim)]).T
    to_world -= origin[:, None]
    to_data = np.linalg.inv(to_world)
    last = np.array(image_shape(layer)) - 1.0
    try:
        for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
            at = last / 2
            at[shown] = last[shown] * (y, x)
            world = np.empty(layer.ndim)  # where napari shows it
            world[shown] = to_world[np.ix_(shown, shown)] @ at[shown] + origin[shown]
            across = at[hidden] + (to_data @ origin)[hidden]
            world[hidden] = np.linalg.solve(to_data[np.ix_(hidden, hidden)], across)
            if np.abs(to_data @ (world - origin) - at).max() >= _BESIDE:
                return True
    except np.linalg.LinAlgError:
        return True  # slices are shown from the side
    return False


class SequenceView:
    """The frames of one sequence, read one at a time: what `SequencePredictor` takes as frames.

    Frames keep the array's own order of axes, however the viewer turns them.
    """

    def __init__(
        self,
        image: Any,
        key: SequenceKey | None = None,
        *,
        rgb: bool = False,
        channels: Channels | None = None,
        spacing: Sequence[float] | None = None,
    ) -> None:
        """
        Args:
            image: a napari image layer (of a multiscale one, the full resolution is taken), any
                array, a `Volume` of `read_volume` or `read_image`, or a list of up to three of one
                kind and shape, to be seen in colours. Arrays are never read as a whole.
            key: which frames; by default along the third axis from the end.
            rgb: whether an array's last axis holds colours. A layer and a volume know by
                themselves.
            channels: channels of one array, to be seen in colours.
            spacing: size of an array's element along each axis, in one unit. A layer and a volume
                know by themselves.

        Raises ValueError where the image has fewer than two axes, images that belong together
        differ, or the key or the channels are for another image.
        """
        images = list(image) if isinstance(image, list | tuple) else [image]
        if not 1 <= len(images) <= MOST_CHANNELS:
            raise ValueError(
                f"{len(images)} images were given; the model sees up to {MOST_CHANNELS} together."
            )
        self.layers: tuple[Any, ...] = tuple(one for one in images if is_layer(one))
        """The image layers, if they are layers."""
        self.arrays: tuple[Any, ...] = tuple(_array_of(one) for one in images)
        """Their arrays, at full resolution."""
        first = images[0]
        is_volume = isinstance(first, Volume)
        if is_volume:
            rgb = first.array.ndim > len(first.shape)
        self.rgb = bool(first.rgb) if self.layers else rgb
        """Whether a frame is a picture in colours as it is."""
        self.channels = channels
        full = tuple(int(size) for size in self.arrays[0].shape)
        self._extent = full[:-1] if self.rgb else full
        self._check_images(images, full)

        channel_axis = None if channels is None else channels.axis
        self.shape: tuple[int, ...] = tuple(
            1 if axis == channel_axis else size for axis, size in enumerate(self._extent)
        )
        """Of the image and its labels: without colours, and 1 along the channels' axis."""
        self.key = SequenceKey.along(None, len(self.shape), channel_axis) if key is None else key
        position = self.key.position
        free = [axis for axis, index in enumerate(position) if index is None]
        self.plane = tuple(axis for axis in free if axis != self.key.axis)
        """The axes of a frame's rows and columns."""
        if (
            len(position) != len(self.shape)
            or len(self.plane) != 2
            or channel_axis in free
            or any(n not in range(self.shape[a]) for a, n in enumerate(position) if n is not None)
        ):
            raise ValueError(f"{self.key} is no sequence of an image of shape {self.shape}.")
        steps = np.ones(len(self.shape)) if spacing is None else spacing
        if self.layers:
            steps = _steps(first)
        elif is_volume:
            steps = _steps_of(first)
        self.spacing: tuple[float, ...] = tuple(float(step) for step in steps)
        """Size of an element along each axis, as the layer was placed then."""
        self.pixel_size = self.spacing[self.plane[0]], self.spacing[self.plane[1]]
        """Height and width of a pixel."""

    @property
    def frame_shape(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return self.shape[self.plane[0]], self.shape[self.plane[1]]

    @property
    def num_channels(self) -> int:
        """Channels that are seen together; 1 for a grey picture and for one in colours."""
        return len(self.arrays) if self.channels is None else len(self.channels.indices)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a frame."""
        return np.result_type(*(array.dtype for array in self.arrays))

    def __len__(self) -> int:
        return 1 if self.key.axis is None else self.shape[self.key.axis]

    def check_frame(self, frame: int) -> None:
        """Raises ValueError where there is no such frame."""
        if not 0 <= whole_number(frame, "A slice") < len(self):
            raise ValueError(f"There is no slice {frame}; there are {len(self)}, from 0.")

    def __getitem__(self, frame: int) -> NDArray[Any]:
        """(H, W), or (H, W, C) for colours and for channels; IndexError past the end."""
        if not 0 <= frame < len(self):
            raise IndexError(f"There is no slice {frame}; there are {len(self)}, from 0.")
        if self.num_channels == 1:
            array = self.channel(0, frame)
            return array[..., :3] if self.rgb else array
        return np.stack([self.channel(n, frame) for n in range(self.num_channels)], axis=-1)

    def channel(self, number: int, frame: int) -> NDArray[Any]:
        """(H, W) of one of `num_channels`, or (H, W, 3 or 4) for colours.

        Raises OSError with the frame's number where it cannot be read.
        """
        at = list(self.index(frame))
        array = self.arrays[0 if self.channels else number]
        if self.channels is not None:
            at[self.channels.axis] = self.channels.indices[number]
        try:
            return np.asarray(array[tuple(at)])
        except MemoryError:
            raise
        except Exception as error:  # each kind of file has its own
            reason = str(error) or type(error).__name__
            raise OSError(f"Slice {frame} cannot be read: {reason}") from error

    def index(self, frame: int) -> tuple[int | slice, ...]:
        """What picks a frame's pixels from an array of `shape`."""
        return tuple(
            frame if axis == self.key.axis else slice(None) if fixed is None else fixed
            for axis, fixed in enumerate(self.key.position)
        )

    def split(self, positions: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(N, D) positions in the array -> the frame of each, and its (N, 2) y, x on that frame.

        A position belongs to the nearest frame, and to all channels. Instead of a frame, ELSEWHERE
        stands where a position lies in another sequence, and OUTSIDE where it lies outside the
        image.
        """
        at = np.asarray(positions, float).reshape(-1, len(self.shape))
        nearest = np.rint(at)
        frames = np.zeros(len(at), np.int64)
        if self.key.axis is not None:
            frames = np.clip(nearest[:, self.key.axis], 0, len(self) - 1).astype(np.int64)
        for axis, fixed in enumerate(self.key.position):
            if fixed is not None and (self.channels is None or axis != self.channels.axis):
                frames[nearest[:, axis] != fixed] = ELSEWHERE
        frames[~((at >= -0.5) & (at <= np.array(self._extent) - 0.5)).all(axis=1)] = OUTSIDE
        return frames, at[:, self.plane]

    def join(self, frame: int, yx: ArrayLike) -> NDArray[np.float64]:
        """(N, 2) y, x on a frame -> (N, D) positions in the array; the opposite of `split`.

        Along the channels' axis they lie in the middle.
        """
        points = np.asarray(yx, float).reshape(-1, 2)
        at = np.empty((len(points), len(self.shape)))
        at[:] = [0 if fixed is None else fixed for fixed in self.key.position]
        if self.channels is not None:
            at[:, self.channels.axis] = (self._extent[self.channels.axis] - 1) / 2
        if self.key.axis is not None:
            at[:, self.key.axis] = frame
        at[:, self.plane] = points
        return at

    def _check_images(self, images: Sequence[Any], full: tuple[int, ...]) -> None:
        dtype = np.dtype(self.arrays[0].dtype)
        if dtype.kind not in "buif":
            raise ValueError(f"The pixels of an image are numbers; these are {dtype}.")
        if 0 in full:
            raise ValueError(f"There is no pixel in an image of shape {full}.")
        if len(self._extent) < 2:
            raise ValueError(f"An image needs two axes or more; this one has {len(self._extent)}.")
        if self.layers and len(self.layers) != len(images):
            raise ValueError("Give layers or arrays, not both.")
        for n, array in enumerate(self.arrays[1:], start=1):
            if tuple(array.shape) != full:
                raise ValueError(
                    f"Images that are seen together need one shape; the first is {full}, "
                    f"another is {tuple(array.shape)}."
                )
            if self.layers and not _is_in_one_place(self.layers[0], self.layers[n]):
                raise ValueError(
                    f'"{self.layers[n].name}" lies elsewhere than "{self.layers[0].name}"; give '
                    "both layers the same scale, translation, rotation and shear."
                )
        if self.rgb and (len(images) > 1 or self.channels is not None):
            raise ValueError("A picture in colours has its channels already; give it alone.")
        if self.channels is None:
            return
        axis, indices = self.channels.axis, self.channels.indices
        if len(images) > 1:
            raise ValueError("Give channels of one image, or several images, not both.")
        if not 0 <= axis < len(full) or len(full) < 3:
            raise ValueError(f"There is no axis {axis} of channels in an image of shape {full}.")
        if not 1 <= len(indices) <= MOST_CHANNELS:
            raise ValueError(
                f"{len(indices)} channels were chosen; the model sees 1 to {MOST_CHANNELS}."
            )
        if not all(0 <= index < full[axis] for index in indices):
            raise ValueError(f"The image has {full[axis]} channels, from 0; chosen: {indices}.")


def is_layer(image: Any) -> bool:
    """Whether this is a napari image layer, and not an array."""
    return hasattr(image, "contrast_limits")


def image_shape(layer: Any) -> tuple[int, ...]:
    """Size of an image layer's array at full resolution, without colours."""
    return tuple(_array_of(layer).shape)[: layer.ndim]


def window_of(layer: Any) -> Window | None:
    """The intensities that an image layer shows as black and white; None: let the engine sample.

    For colours, napari shows the whole range of the data type, whatever the contrast limits say.
    """
    if layer.rgb:
        dtype = np.dtype(layer.dtype)
        return (0.0, float(np.iinfo(dtype).max)) if dtype.kind in "ui" else (0.0, 1.0)
    low, high = (float(value) for value in layer.contrast_limits)
    return (low, high) if np.isfinite((low, high)).all() and low < high else None


def _array_of(image: Any) -> Any:
    if is_layer(image):
        return image.data[0] if image.multiscale else image.data
    if isinstance(image, Volume):
        return image.array
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        raise ValueError(
            "An image is an image layer, an array, or a Volume of read_volume, not a "
            f"{type(image).__name__}."
        )
    return image


def _axes_of(layer: Any, order: Sequence[int], channel_axis: int | None) -> list[int]:
    """The layer's axes in the viewer's order, without the channels'."""
    added = len(order) - layer.ndim  # axes that other layers add in front
    return [axis - added for axis in order if axis >= added and axis - added != channel_axis]


def _steps(layer: Any) -> NDArray[np.float64]:
    """(D,) how far apart neighbours along each axis of a layer's data lie in the world."""
    origin = np.array(layer.data_to_world(np.zeros(layer.ndim)))
    ends = [layer.data_to_world(step) for step in np.eye(layer.ndim)]
    return np.linalg.norm(np.array(ends) - origin, axis=1)


def _steps_of(volume: Volume) -> list[float]:
    """As `_steps`; 1 along channels."""
    own = iter(volume.spacing)
    return [1.0 if axis == "c" else next(own) for axis in volume.axes.rjust(3, "z")]


def _is_in_one_place(first: Any, second: Any) -> bool:
    corners = np.vstack([np.zeros(first.ndim), np.diag(image_shape(first))])
    return np.allclose(
        [first.data_to_world(at) for at in corners], [second.data_to_world(at) for at in corners]
    )
