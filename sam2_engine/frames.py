"""A sequence of 2-D frames of any array, as input of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sam2_engine.model.layers import resized
from sam2_engine.unreadable import FAILURES_IN_A_ROW, UnreadableFrame

Fit = Literal["stretch", "pad"]
Area = tuple[int, int, int, int]
"""Part of a frame: y0, x0, y1, x1 in pixels, the last two just beyond it."""
Part = int | tuple[int, Area]
"""A frame, or a frame and the part of it that is looked at."""
Window = tuple[float, float]
"""The intensities shown as black and as white."""
Windows = Window | tuple[Window, ...]
"""One window, or one for each channel."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_UNSEEN_LOGIT = -1024.0  # where the model has not looked
_EMPTY_LOGIT = -16.0  # the same, for a model that is to go on from there
_ADRIFT = 0.125  # of an area, how far from its middle an object may go before the area follows it
_SAMPLED_FRAMES = 16
_SAMPLED_PIXELS = 1 << 16


class Frames(Protocol):
    """Anything with a length whose items are (H, W) or (H, W, C) arrays of one shape, C 1 to 4.

    Three channels are red, green and blue, and a fourth is left out; of two, the first is magenta
    and the second green.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Geometry:
    """How (H, W) frames lie in the model's S x S input.

    "stretch" squashes them to the square, as published; "pad" keeps the aspect that they have
    with pixels of `pixel_size`, and leaves the right or lower part of the square empty.
    """

    frame_shape: tuple[int, int]
    image_size: int
    fit: Fit = "stretch"
    pixel_size: tuple[float, float] = (1.0, 1.0)
    """Height and width of a pixel, in any unit."""
    area: Area | None = None
    """The part of the frames that the model sees; by default all."""

    @property
    def seen(self) -> Area:
        """The part of the frames that the model sees."""
        return self.area or (0, 0, *self.frame_shape)

    @property
    def seen_shape(self) -> tuple[int, int]:
        """Height and width of that part."""
        top, left, bottom, right = self.seen
        return bottom - top, right - left

    @property
    def filled(self) -> tuple[int, int]:
        """Height and width of the part of the square that is filled."""
        if self.fit == "stretch":
            return self.image_size, self.image_size
        extent = np.array(self.seen_shape) * self.pixel_size
        height, width = np.rint(extent * self.image_size / extent.max()).clip(1).astype(int)
        return int(height), int(width)

    def looking_at(self, area: Area | None) -> Geometry:
        """The same with another part of the frames seen. ValueError: it is not a part of them."""
        if area is None:
            return replace(self, area=None)
        top, left, bottom, right = (int(edge) for edge in area)
        height, width = self.frame_shape
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise ValueError(
                f"The area {(top, left, bottom, right)} (y0, x0, y1, x1) is not a part of the "
                f"frames, which are {height} x {width} pixels."
            )
        return replace(self, area=(top, left, bottom, right))

    def following(self, low_res: Tensor) -> Geometry:
        """With the part of the frames that is seen moved to have an object in its middle, as far as
        the frames go; the same where the object is near enough to it, or not there.

        low_res: (1, 1, S/4, S/4) logits of the object, on the processor.
        """
        if self.area is None:
            return self
        found = torch.nonzero(low_res[0, 0] > 0)
        if not len(found):
            return self
        middle = (found.amin(0) + found.amax(0) + 1).numpy() / 2 * 4 / self.filled
        seen = np.array(self.seen_shape)
        if (np.abs(middle - 0.5) <= _ADRIFT).all():
            return self
        corner = np.rint(self.seen[:2] + (middle - 0.5) * seen)
        top, left = corner.clip(0, np.array(self.frame_shape) - seen).astype(int).tolist()
        height, width = self.seen_shape
        return replace(self, area=(top, left, top + height, left + width))

    def low_res_as_seen(self, low_res: Tensor, before: Geometry) -> Tensor:
        """(B, 1, s, s) logits of a part of the frame that was seen before, -> (B, 1, S/4, S/4) of
        the part that is seen now; what was not seen is empty. As they are where that is the same.
        """
        if self == before:
            return low_res
        side = self.image_size // 4
        grid = []
        for axis in (1, 0):  # x, y
            at = (np.arange(side) + 0.5) * 4 / self.filled[axis]  # parts of what is seen
            at = self.seen[axis] + at * self.seen_shape[axis]  # pixels of the frame
            at = (at - before.seen[axis]) / before.seen_shape[axis]
            at[(at < 0) | (at > 1)] = np.inf
            at = at * before.filled[axis] / before.image_size
            grid.append(torch.from_numpy((at * 2 - 1).astype(np.float32)).to(low_res.device))
        x, y = torch.broadcast_tensors(grid[0][None, :], grid[1][:, None])
        places = torch.stack((x, y), -1)[None].expand(len(low_res), -1, -1, -1)
        raised = low_res.float().clamp(min=_EMPTY_LOGIT) - _EMPTY_LOGIT
        inside = torch.isfinite(places).all(-1)[:, None]
        found = F.grid_sample(raised, places.nan_to_num(0, 2, -2), align_corners=False)
        return torch.where(inside, found, 0) + _EMPTY_LOGIT

    def to_model(self, yx: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 2) y, x in frame pixels -> (N, 2) x, y in model pixels."""
        scale = np.array(self.filled, np.float32) / np.array(self.seen_shape, np.float32)
        corner = np.array(self.seen[:2], np.float32)
        return np.ascontiguousarray(((yx - corner) * scale)[:, ::-1], np.float32)

    def mask_to_model(self, mask: Tensor) -> Tensor:
        """(B, 1, H, W) masks -> (B, 1, S, S) of 0 and 1."""
        return (self.image_to_model(mask.float()) >= 0.5).float()

    def mask_to_low_res(self, mask: Tensor) -> Tensor:
        """(B, 1, H, W) masks -> (B, 1, S/4, S/4), how much of each pixel they cover, 0 to 1."""
        return F.avg_pool2d(self.mask_to_model(mask), 4)

    def image_to_model(self, image: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, C, S, S), empty parts 0."""
        top, left, bottom, right = self.seen
        return self.seen_to_model(image[..., top:bottom, left:right])

    def seen_to_model(self, image: Tensor) -> Tensor:
        """(B, C, h, w) float of the part that is seen -> (B, C, S, S), empty parts 0."""
        height, width = self.filled
        if image.shape[-2:] != (height, width):
            image = resized(image, (height, width))
        return F.pad(image, (0, self.image_size - width, 0, self.image_size - height))

    def logits_to_frame(self, low_res: Tensor) -> Tensor:
        """(B, 1, S/4, S/4) logits -> (B, 1, H, W), -1024 where the model sees nothing."""
        logits = low_res.float()
        if self.fit == "pad":
            size = self.image_size
            logits = F.interpolate(logits, size=(size, size), mode="bilinear")
            logits = logits[..., : self.filled[0], : self.filled[1]]
        logits = F.interpolate(logits, size=self.seen_shape, mode="bilinear")
        if self.area is None:
            return logits
        (height, width), (top, left, bottom, right) = self.frame_shape, self.seen
        around = (left, width - right, top, height - bottom)
        return F.pad(logits, around, value=_UNSEEN_LOGIT)


class FrameSource:
    """Frames in the model's terms: one intensity window, its size, ImageNet's statistics."""

    def __init__(
        self,
        frames: Frames,
        image_size: int,
        window: Windows | None = None,
        fit: Fit = "stretch",
        pixel_size: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        """Look at the first frame for the shape, and at some more for the window if none is given.

        Frames that cannot be read are passed over; others serve in their place.

        Raises:
            UnreadableFrame: none of them can be read.
            ValueError: no frames, frames that are not 2-D or colours, an unknown fit, a window
                that is empty, or pixels without a size.
        """
        if len(frames) == 0:
            raise ValueError("The sequence has no frames.")
        if fit not in ("stretch", "pad"):
            raise ValueError(f'fit must be "stretch" or "pad", not {fit!r}.')
        self._frames = frames
        if not (np.isfinite(pixel_size).all() and min(pixel_size) > 0):
            raise ValueError(f"A pixel has a height and a width above 0, not {pixel_size}.")
        self._last: tuple[int, NDArray[Any]] | None = None
        self._readable, first = next(_readable_frames(frames))
        first = _checked(self._readable, first)
        self._raw_shape = first.shape
        shape = first.shape[0], first.shape[1]
        self.geometry = Geometry(shape, image_size, fit, pixel_size)
        if window is None:
            window = sample_window(frames)
        channels = first.shape[2] if first.ndim == 3 else 1
        self.window = _checked_windows(window, channels)

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.geometry.frame_shape

    def __getitem__(self, part: Part) -> Tensor:
        """A frame, or a part of it, as the model sees it, (3, S, S) float32 on the CPU."""
        index, area = part if isinstance(part, tuple) else (part, None)
        geometry = self.geometry.looking_at(area)
        frame = self._read_again(index)
        if frame.shape != self._raw_shape:
            raise ValueError(
                f"Frame {index} is {frame.shape}, but the first is {self._raw_shape}; "
                "all frames of a sequence must have one shape."
            )
        top, left, bottom, right = geometry.seen
        values = frame[top:bottom, left:right].astype(_exact(frame.dtype))
        low, high = np.moveaxis(np.array(self.window), -1, 0)
        scaled = (values - low.astype(values.dtype)) / (high - low).astype(values.dtype)
        scaled = np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
        image = torch.from_numpy(scaled.astype(np.float32))
        image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
        if len(image) == 2:
            image = image[[0, 1, 0]]
        image = geometry.seen_to_model(image[None])[0].expand(3, -1, -1)
        return normalised(image)

    def _read_again(self, index: int) -> NDArray[Any]:
        """A frame, which is often asked for several times in a row."""
        if self._last is None or self._last[0] != index:
            self._last = index, self._read(index)
        return self._last[1]

    def _read(self, index: int) -> NDArray[Any]:
        return _checked(index, _frame_of(self._frames, index))

    def is_gone(self) -> bool:
        """Whether a frame that could be read before cannot be read any more: it is tried."""
        try:
            _frame_of(self._frames, self._readable)
        except UnreadableFrame:
            return True
        return False


def _checked(index: int, frame: NDArray[Any]) -> NDArray[Any]:
    """A frame, if it is one; raises ValueError."""
    frame = _without_alpha(frame)
    if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] not in (1, 2, 3)):
        raise ValueError(
            f"Frame {index} has shape {frame.shape}; a frame is (height, width), "
            "or (height, width, channels) with 2 or 3 channels for colours."
        )
    if not frame.size:
        raise ValueError(f"Frame {index} has no pixels.")
    if np.iscomplexobj(frame) or frame.dtype.kind not in "buif":
        raise ValueError(f"Frame {index} holds {frame.dtype}, which is not an image of numbers.")
    return frame


def normalised(images: Tensor) -> Tensor:
    """(..., 3, S, S) images from 0 to 1, with ImageNet's mean and deviation, for the model."""
    mean, deviation = (
        torch.tensor(values)[:, None, None].to(images) for values in (_IMAGENET_MEAN, _IMAGENET_STD)
    )
    return (images - mean) / deviation


def sample_window(frames: Frames, percentiles: tuple[float, float] = (0.5, 99.5)) -> Window:
    """Percentiles of up to 16 frames spread over the sequence, of all channels together; alpha is
    none of them, nor are frames that cannot be read. Raises UnreadableFrame where none can.
    """
    samples = []
    for _, frame in _readable_frames(frames):
        frame = _without_alpha(frame)
        values = frame.astype(_exact(frame.dtype)).ravel()
        samples.append(values[:: max(1, values.size // _SAMPLED_PIXELS)])
    values = np.concatenate(samples)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, percentiles))
    if low < high:
        return low, high
    # Nearly all is background: the few pixels that differ are the picture.
    low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low, low + 1.0)


def _readable_frames(frames: Frames) -> Iterator[tuple[int, NDArray[Any]]]:
    """Up to 16 frames spread over the sequence, as `first_readable` gives them."""
    picked = np.unique(np.linspace(0, len(frames) - 1, _SAMPLED_FRAMES).round().astype(int))
    return first_readable(frames, [[int(index)] for index in picked])


def first_readable(
    frames: Frames, stretches: Sequence[Sequence[int]], unread: dict[int, str] | None = None
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Of each stretch of frames the first that can be read, with its number.

    unread: is told of those that cannot be read, and why.

    Raises UnreadableFrame where none can, and at once where the first few cannot.
    """
    total = sum(map(len, stretches))
    failures: list[UnreadableFrame] = []
    is_any = False
    for stretch in stretches:
        for index in stretch:
            try:
                frame = _frame_of(frames, index)
            except UnreadableFrame as error:
                failures.append(error)
                if unread is not None:
                    unread[index] = str(error)
                if not is_any and len(failures) in (FAILURES_IN_A_ROW, total):
                    raise failures[0] from None
            else:
                is_any = True
                yield index, frame
                break


def _frame_of(frames: Frames, index: int) -> NDArray[Any]:
    """A frame as it is given; raises UnreadableFrame for whatever goes wrong there."""
    try:
        return np.asarray(frames[index])
    except MemoryError:
        raise
    except Exception as error:  # each kind of file has its own
        raise UnreadableFrame(index, str(error) or type(error).__name__) from error


def _without_alpha(frame: NDArray[Any]) -> NDArray[Any]:
    """The fourth channel says nothing of the object."""
    return frame[..., :3] if frame.ndim == 3 and frame.shape[2] == 4 else frame


def _exact(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The smallest type of float in which neighbouring values of a type stay apart."""
    return np.result_type(dtype, np.float32)


def _checked_windows(windows: Windows, channels: int) -> Windows:
    """As floats: (low, high), or as many of them as there are channels."""
    pairs = np.array(windows, float)
    if pairs.shape not in ((2,), (channels, 2)):
        raise ValueError(
            f"{windows} is no intensity window: give (low, high), or one for each channel; "
            f"the frames have {channels}."
        )
    for low, high in pairs.reshape(-1, 2):
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ValueError(f"The intensity window must be low < high, not {low:g} to {high:g}.")
    if pairs.ndim == 1:
        return float(pairs[0]), float(pairs[1])
    return tuple((float(low), float(high)) for low, high in pairs)
