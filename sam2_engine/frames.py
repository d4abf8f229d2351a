"""A sequence of 2-D frames of any array, as input of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Fit = Literal["stretch", "pad"]
Window = tuple[float, float]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SAMPLED_FRAMES = 16
_SAMPLED_PIXELS = 1 << 16
_PERCENTILES = (0.5, 99.5)


class Frames(Protocol):
    """Anything with a length whose items are (H, W) or (H, W, 3) arrays of one shape."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Geometry:
    """How (H, W) frames lie in the model's S x S input.

    "stretch" squashes them to the square, as published; "pad" keeps the aspect and leaves the
    right or lower part of the square empty.
    """

    frame_shape: tuple[int, int]
    image_size: int
    fit: Fit = "stretch"

    @property
    def filled(self) -> tuple[int, int]:
        """Height and width of the part of the square that the frame fills."""
        if self.fit == "stretch":
            return self.image_size, self.image_size
        scale = self.image_size / max(self.frame_shape)
        height, width = (max(1, round(size * scale)) for size in self.frame_shape)
        return height, width

    def to_model(self, yx: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 2) y, x in frame pixels -> (N, 2) x, y in model pixels."""
        scale = np.array(self.filled, np.float32) / np.array(self.frame_shape, np.float32)
        return np.ascontiguousarray((yx * scale)[:, ::-1], np.float32)

    def mask_to_model(self, mask: Tensor) -> Tensor:
        """(B, 1, H, W) masks -> (B, 1, S, S) of 0 and 1."""
        return (self.image_to_model(mask.float()) >= 0.5).float()

    def image_to_model(self, image: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, C, S, S), empty parts 0."""
        height, width = self.filled
        if image.shape[-2:] != (height, width):
            image = F.interpolate(image, size=(height, width), mode="bilinear", antialias=True)
        return F.pad(image, (0, self.image_size - width, 0, self.image_size - height))

    def logits_to_frame(self, low_res: Tensor) -> Tensor:
        """(B, 1, S/4, S/4) logits -> (B, 1, H, W)."""
        logits = low_res.float()
        if self.fit == "pad":
            size = self.image_size
            logits = F.interpolate(logits, size=(size, size), mode="bilinear")
            logits = logits[..., : self.filled[0], : self.filled[1]]
        return F.interpolate(logits, size=self.frame_shape, mode="bilinear")


class FrameSource:
    """Frames in the model's terms: one intensity window, its size, ImageNet's statistics."""

    def __init__(
        self, frames: Frames, image_size: int, window: Window | None = None, fit: Fit = "stretch"
    ) -> None:
        """Look at the first frame for the shape, and at some more for the window if none is given.

        Raises:
            ValueError: no frames, frames that are not 2-D or RGB, or an unknown fit.
        """
        if len(frames) == 0:
            raise ValueError("The sequence has no frames.")
        if fit not in ("stretch", "pad"):
            raise ValueError(f'fit must be "stretch" or "pad", not {fit!r}.')
        self._frames = frames
        first = self._read(0)
        self._raw_shape = first.shape
        self.geometry = Geometry((first.shape[0], first.shape[1]), image_size, fit)
        if window is None:
            window = sample_window(frames)
        low, high = float(window[0]), float(window[1])
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ValueError(f"The intensity window must be low < high, not {low:g} to {high:g}.")
        self.window: Window = (low, high)

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.geometry.frame_shape

    def __getitem__(self, index: int) -> Tensor:
        """Frame as the model sees it, (3, S, S) float32 on the CPU."""
        frame = self._read(index)
        if frame.shape != self._raw_shape:
            raise ValueError(
                f"Frame {index} is {frame.shape}, but the first is {self._raw_shape}; "
                "all frames of a sequence must have one shape."
            )
        low, high = self.window
        scaled = (frame.astype(np.float32) - low) / (high - low)
        scaled = np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
        image = torch.from_numpy(scaled)
        image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
        image = self.geometry.image_to_model(image[None])[0].expand(3, -1, -1)
        mean = torch.tensor(_IMAGENET_MEAN)[:, None, None]
        std = torch.tensor(_IMAGENET_STD)[:, None, None]
        return (image - mean) / std

    def _read(self, index: int) -> NDArray[Any]:
        frame = np.asarray(self._frames[index])
        if frame.ndim == 3 and frame.shape[2] == 4:
            frame = frame[..., :3]  # the alpha channel says nothing of the object
        if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] != 3):
            raise ValueError(
                f"Frame {index} has shape {frame.shape}; a frame is (height, width), "
                "or (height, width, 3) for colours."
            )
        if not frame.size:
            raise ValueError(f"Frame {index} has no pixels.")
        if np.iscomplexobj(frame) or frame.dtype.kind not in "buif":
            raise ValueError(
                f"Frame {index} holds {frame.dtype}, which is not an image of numbers."
            )
        return frame


def sample_window(frames: Frames) -> Window:
    """The 0.5 and 99.5 percentiles of up to 16 frames spread over the sequence."""
    picked = np.unique(np.linspace(0, len(frames) - 1, _SAMPLED_FRAMES).round().astype(int))
    samples = []
    for index in picked:
        values = np.asarray(frames[int(index)]).astype(np.float32).ravel()
        samples.append(values[:: max(1, values.size // _SAMPLED_PIXELS)])
    values = np.concatenate(samples)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, _PERCENTILES))
    if low < high:
        return low, high
    # Nearly all is background: the few pixels that differ are the picture.
    low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low, low + 1.0)
