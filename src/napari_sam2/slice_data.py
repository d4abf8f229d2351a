"""What a session knows of one object on one frame: immutable values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Box = tuple[float, float, float, float]
Keep = Literal["approved", "locked"]

_FAINTEST = 1e-4  # a logit above 0 stays above 0 in half precision
_CERTAIN = 1000.0  # the logit of a pixel that a person has given


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """One object on one frame, whole, also where another object covers it."""

    top: int
    left: int
    logits: NDArray[np.float16]
    """(h, w) the bounding box at `top`, `left`: above 0 on the object, 0 beside it."""
    low_res: NDArray[np.float16] | None
    """(S/4, S/4) the model's own mask logits, which corrective clicks start from; None for a mask
    that a person has given."""
    iou: float
    """How well the model thinks that the mask fits, 0 to 1."""

    @classmethod
    def of_logits(
        cls, logits: NDArray[np.float32], low_res: NDArray[np.float32], iou: float
    ) -> ObjectMask | None:
        """From the logits of a whole frame; None where no pixel belongs to the object."""
        area = _bounding_box(logits > 0)
        if area is None:
            return None
        inside = logits[area]
        half = np.where(inside > 0, np.clip(inside, _FAINTEST, _CERTAIN), 0).astype(np.float16)
        coarse = np.clip(low_res, -32, 32).astype(np.float16)
        return cls(area[0].start, area[1].start, half, coarse, float(iou))

    @classmethod
    def given(cls, mask: ArrayLike) -> ObjectMask:
        """From a person's (H, W) mask, nonzero on the object; it may be empty."""
        inside = np.asarray(mask) != 0
        area = _bounding_box(inside) or (slice(0, 0), slice(0, 0))
        logits = (inside[area] * _CERTAIN).astype(np.float16)
        return cls(area[0].start, area[1].start, logits, None, 1.0)

    @property
    def area(self) -> tuple[slice, slice]:
        """The rows and columns of the frame that `logits` covers."""
        height, width = self.logits.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def num_pixels(self) -> int:
        return int((self.logits > 0).sum())

    def on_frame(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """(H, W), True on the object."""
        mask = np.zeros(shape, np.bool_)
        mask[self.area] = self.logits > 0
        return mask


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
    mask: ObjectMask | None = None
    """Painted by the person: the frame's whole answer, whatever else is said."""

    @property
    def usable(self) -> bool:
        """Whether this says where the object is, and not only where it is not."""
        corrects = self.mask_input is not None and len(self.points) > 0
        return (
            self.mask is not None
            or self.box is not None
            or bool((self.labels == 1).any())
            or corrects
        )

    @property
    def count(self) -> int:
        """Clicks, box and painting."""
        return len(self.points) + (self.box is not None) + (self.mask is not None)


@dataclass(frozen=True, eq=False)
class Kept:
    """A mask that a person has approved or locked: nothing writes it, and others follow from it."""

    how: Keep
    prompts: SlicePrompts
    """The mask, as a prompt for the frames around."""


Basis = tuple[object, ...]


@dataclass(frozen=True, eq=False)
class Found:
    """What the model has found on a frame, and what that follows from."""

    mask: ObjectMask | None
    """None where the object is not seen."""
    basis: Basis
    """The model and its settings, and the prompts that were followed."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object, but for its prompts and masks."""

    name: str
    colour: tuple[float, float, float] | None = None
    """RGB, 0 to 1; None for the colour that belongs to its id."""
    hidden: bool = False
    locked: bool = False
    """Nothing writes its masks."""


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
