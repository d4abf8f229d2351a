"""What a person says of one object on one frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam2_engine.frames import Area

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Prompt:
    """Everything that is said of one object on one frame. Coordinates are array indices."""

    points: NDArray[np.float32]
    """(N, 2) y, x; N may be 0."""
    labels: NDArray[np.int64]
    """(N,) 1 for points inside the object, 0 for points outside."""
    box: Box | None = None
    """y0, x0, y1, x1 with y0 <= y1 and x0 <= x1."""
    mask: NDArray[np.bool_] | None = None
    """(H, W); where given it is the frame's answer, and there are no points and no box."""
    mask_input: NDArray[np.float32] | None = None
    """(S/4, S/4) logits of an earlier answer on this frame, which the points correct."""
    strokes: NDArray[np.int64] | None = None
    """(N,) ascending; points of one number were placed together. None: each by itself."""
    within: NDArray[np.bool_] | None = None
    """(H, W) where the object may lie, such as what a person has drawn a line around."""
    area: Area | None = None
    """The part of the frame to look at; None: all."""

    @classmethod
    def create(
        cls,
        frame_shape: tuple[int, int],
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        strokes: ArrayLike | None = None,
        within: ArrayLike | None = None,
        area: Area | None = None,
    ) -> Prompt:
        """Check and convert; raises ValueError that says what is wrong with which prompt."""
        yx = np.empty((0, 2), np.float32)
        if points is not None:
            yx = np.array(points, np.float32)
            if yx.size and yx.shape[-1:] != (2,):
                raise ValueError(f"Points are (N, 2), a row y, x for each, not {yx.shape}.")
            yx = yx.reshape(-1, 2)
        signs = np.ones(len(yx), np.int64)
        if labels is not None:
            signs = np.array(labels, np.int64).reshape(-1)
        if len(signs) != len(yx):
            raise ValueError(f"{len(yx)} points have {len(signs)} labels; give one label a point.")
        if not np.isin(signs, (0, 1)).all():
            raise ValueError("A point's label is 1 (inside the object) or 0 (outside).")
        _check_inside(yx, frame_shape, "point")

        corners: Box | None = None
        if box is not None:
            edges = np.asarray(box, float).ravel()
            if len(edges) != 4:
                raise ValueError(f"A box is four numbers, (y0, x0, y1, x1), not {len(edges)}.")
            y0, x0, y1, x1 = edges.tolist()
            corners = (min(y0, y1), min(x0, x1), max(y0, y1), max(x0, x1))
            _check_inside(np.array(corners, np.float32).reshape(2, 2), frame_shape, "box corner")

        answer: NDArray[np.bool_] | None = None
        if mask is not None:
            if len(yx) or corners is not None:
                raise ValueError(
                    "A mask is a frame's whole answer: give it alone, without points or a box. "
                    "To correct an earlier answer with points, give its logits as mask_input."
                )
            answer = np.asarray(mask) != 0
            if answer.shape != frame_shape:
                raise ValueError(f"The mask is {answer.shape}, but the frames are {frame_shape}.")

        logits: NDArray[np.float32] | None = None
        if mask_input is not None:
            logits = np.array(mask_input, np.float32)
            if answer is not None:
                raise ValueError("Give a mask or a mask_input, not both.")
            if logits.ndim != 2:
                raise ValueError(f"mask_input must be (h, w) logits, not {logits.shape}.")
        if not len(yx) and corners is None and answer is None:
            raise ValueError("There is nothing in this prompt: give points, a box or a mask.")
        together = None if strokes is None else np.array(strokes, np.int64)
        if together is not None and together.shape != (len(yx),):
            raise ValueError(f"{len(yx)} points have {together.size} strokes; give one a point.")
        limits = None if within is None else np.asarray(within) != 0
        if limits is not None and limits.shape != frame_shape:
            raise ValueError(f"within is {limits.shape}, but the frames are {frame_shape}.")
        return cls(yx, signs, corners, answer, logits, together, limits, area)

    @property
    def trims(self) -> bool:
        """Whether it only says what does not belong to an earlier answer.

        That does not show where the object is, so nothing is tracked from there; what is tracked
        past it goes on from the answer that was trimmed.
        """
        shows = self.box is not None or self.mask is not None or bool((self.labels == 1).any())
        return self.mask_input is not None and not shows

    @property
    def num_tokens(self) -> int:
        """Points that the model sees, a box counting as two."""
        return len(self.points) + (2 if self.box is not None else 0)

    def rounds(self) -> Iterator[Prompt]:
        """The prompt as it grew: what shows the object, then one more click in each round.

        What shows it is a box, an earlier answer with the first click, or all clicks up to the
        first that lies inside. The clicks of one stroke are one round.
        """
        inside = np.flatnonzero(self.labels == 1)
        if self.box is not None or not len(self.points):
            begin = 0
        elif self.mask_input is not None:
            begin = 1
        else:
            begin = int(inside[0]) + 1 if len(inside) else len(self.points)
        numbers = np.arange(len(self.points)) if self.strokes is None else self.strokes
        ends = (np.flatnonzero(np.diff(numbers, append=-1)) + 1).tolist()
        for end in [0, *ends] if begin == 0 else [end for end in ends if end >= begin]:
            yield replace(self, points=self.points[:end], labels=self.labels[:end])


def _check_inside(yx: NDArray[np.float32], shape: tuple[int, int], what: str) -> None:
    if not np.isfinite(yx).all():
        raise ValueError(f"A {what} has a coordinate that is not a number.")
    # A pixel covers half a unit to each side of its index; a box may end on the outer edge.
    outside = (yx < -0.5) | (yx > np.array(shape))
    if outside.any():
        y, x = yx[outside.any(axis=1)][0]
        raise ValueError(
            f"The {what} at y={y:g}, x={x:g} lies outside the image, "
            f"which is {shape[0]} x {shape[1]} pixels."
        )
