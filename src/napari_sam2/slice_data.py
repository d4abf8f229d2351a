"""What a session knows of its objects on its frames: immutable values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_sam2.areas import Area, Box, joined
from napari_sam2.given import positions
from napari_sam2.label_ids import ids_in
from napari_sam2.lineage import split_mask
from napari_sam2.sequence_view import SequenceKey, Windows

if TYPE_CHECKING:
    from sam2_engine.memory import MemorySelection, MemoryTokens

Keep = Literal["approved", "locked"]
State = Literal["auto", "prompted", "painted", "approved", "locked", "rejected"]
"""What a mask on a slice rests on: the model alone, marks there, or what a person says of it."""
Place = tuple[SequenceKey, int]
"""A sequence and an object."""

_FAINTEST = 1e-4  # a logit above 0 stays above 0 in half precision
_CERTAIN = 1000.0  # the logit of a pixel that a person has given
_STEP = 0.25  # between the coarse logits that are kept, which fit in a byte
_MARGIN = 8  # coarse pixels kept around an object
_FAR = -16.0  # the coarse logit further away
_SPECK = 0.05  # of a mask's area: smaller parts are no pieces of it
_NECK = 0.6  # of a piece's half width: where a mask is thinner, its pieces part


class Scribble(NamedTuple):
    """A line drawn on the object, or beside it."""

    path: NDArray[np.float64]
    """(N, 2) y, x of its corners; N is 1 or more."""
    label: int
    """1 on the object, 0 beside it."""


@dataclass(frozen=True, eq=False)
class CoarseLogits:
    """The model's own mask logits, kept around the object only and in steps of a quarter."""

    side: int
    """They are (side, side), a quarter of the model's input."""
    top: int
    left: int
    steps: NDArray[np.int8]
    """(h, w) at `top`, `left`."""
    area: Area | None = None
    """The part of the frame that the model saw; None: all."""

    @classmethod
    def of(cls, logits: NDArray[np.float32], area: Area | None = None) -> CoarseLogits:
        """logits: (side, side)."""
        rows, columns = _bounding_box(logits > 0) or (slice(0, 0), slice(0, 0))
        top, left = max(0, rows.start - _MARGIN), max(0, columns.start - _MARGIN)
        near = logits[top : rows.stop + _MARGIN, left : columns.stop + _MARGIN]
        steps = np.rint(np.clip(near / _STEP, -127, 127)).astype(np.int8)
        return cls(len(logits), top, left, steps, area)

    def logits(self) -> NDArray[np.float32]:
        """(side, side)."""
        whole = np.full((self.side, self.side), _FAR, np.float32)
        height, width = self.steps.shape
        near = self.steps.astype(np.float32) * np.float32(_STEP)
        whole[self.top : self.top + height, self.left : self.left + width] = near
        return whole


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """One object on one frame, whole, also where another object covers it."""

    top: int
    left: int
    logits: NDArray[np.float16]
    """(h, w) the bounding box at `top`, `left`: above 0 on the object, 0 beside it."""
    coarse: CoarseLogits | None
    """What corrective clicks start from; None for a mask that a person has given."""
    iou: float
    """How well the model thinks that the mask fits, 0 to 1."""

    @classmethod
    def of_logits(
        cls,
        logits: NDArray[np.float32],
        low_res: NDArray[np.float32],
        iou: float,
        area: Area | None = None,
    ) -> ObjectMask | None:
        """From the logits of a whole frame; None where no pixel belongs to the object.

        low_res: of the part of the frame that the model saw, area.
        """
        box = _bounding_box(logits > 0)
        if box is None:
            return None
        inside = logits[box]
        half = np.where(inside > 0, np.clip(inside, _FAINTEST, _CERTAIN), 0).astype(np.float16)
        coarse = CoarseLogits.of(low_res, area)
        mask = cls(box[0].start, box[1].start, half, coarse, float(iou))
        _ = mask.summary  # once, and in the thread of the model
        return mask

    @classmethod
    def given(cls, mask: ArrayLike) -> ObjectMask:
        """From a person's (H, W) mask, nonzero on the object; it may be empty."""
        inside = np.asarray(mask) != 0
        area = _bounding_box(inside) or (slice(0, 0), slice(0, 0))
        logits = np.where(inside[area], np.float16(_CERTAIN), np.float16(0))
        return cls(area[0].start, area[1].start, logits, None, 1.0)

    @classmethod
    def each_of(cls, labels: NDArray[Any]) -> dict[int, ObjectMask]:
        """All objects of (H, W) labels by id, as `given`."""
        from scipy.ndimage import find_objects

        ids = [0, *sorted(i for i in ids_in(labels[np.newaxis]) if i > 0)]
        numbers = np.searchsorted(ids, labels)
        masks = {}
        for number, box in enumerate(find_objects(numbers), start=1):
            mask = cls.given(numbers[box] == number)
            masks[ids[number]] = replace(mask, top=box[0].start, left=box[1].start)
        return masks

    @classmethod
    def union(cls, masks: Sequence[ObjectMask]) -> ObjectMask:
        """All of these masks of a frame; one alone stays the same object."""
        if len(masks) == 1:
            return masks[0]
        rows, columns = (
            slice(
                min((mask.area[axis].start for mask in masks), default=0),
                max((mask.area[axis].stop for mask in masks), default=0),
            )
            for axis in (0, 1)
        )
        logits = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float16)
        for mask in masks:
            top, left = mask.top - rows.start, mask.left - columns.start
            height, width = mask.logits.shape
            here = logits[top : top + height, left : left + width]
            # As whole numbers, which are compared several times as fast and have the same sign.
            np.copyto(here, np.float16(_CERTAIN), where=mask.logits.view(np.int16) > 0)
        return cls(rows.start, columns.start, logits, None, 1.0)

    @property
    def area(self) -> tuple[slice, slice]:
        """The rows and columns of the frame that `logits` covers."""
        height, width = self.logits.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def box(self) -> Box:
        """y0, x0, y1, x1 of its outermost pixels."""
        height, width = self.logits.shape
        return self.top, self.left, self.top + height - 1, self.left + width - 1

    @property
    def is_empty(self) -> bool:
        """Whether a person has said that the object is not there."""
        return self.logits.size == 0

    @cached_property
    def summary(self) -> tuple[float, float, float, float]:
        """Pixels on the object, their mean y and x on the frame, and the stability.

        That is the area where the coarse logits are above 1, as a part of that where they are
        above -1; 1 for a mask that a person has given, and for an empty one.
        """
        on = self.logits.view(np.int16) > 0  # whole numbers of the same sign, compared faster
        rows, columns = np.count_nonzero(on, axis=1), np.count_nonzero(on, axis=0)
        pixels = int(rows.sum())
        if not pixels:
            return 0.0, 0.0, 0.0, 1.0
        y = self.top + float(rows @ np.arange(len(rows))) / pixels
        x = self.left + float(columns @ np.arange(len(columns))) / pixels
        if self.coarse is None:
            return float(pixels), y, x, 1.0
        sure = np.count_nonzero(self.coarse.steps > 1 / _STEP)
        likely = np.count_nonzero(self.coarse.steps > -1 / _STEP)
        return float(pixels), y, x, sure / likely if likely else 0.0

    @property
    def nbytes(self) -> int:
        return self.logits.nbytes + (0 if self.coarse is None else self.coarse.steps.nbytes)

    @cached_property
    def pieces(self) -> tuple[ObjectMask, ...]:
        """Its parts, as given masks, the largest first: what hangs together by a thin neck at most.

        Two cells side by side have two, an ellipse has one. Specks are left out.
        """
        from scipy.ndimage import distance_transform_edt, label

        on = np.pad(self.logits > 0, 1)
        depth, (numbers, count) = distance_transform_edt(on), label(on)
        deepest = np.array([0, *(depth[numbers == n].max() for n in range(1, count + 1))])
        cores, count = label(depth > _NECK * deepest[numbers])
        if count < 2:
            return (self,)
        parts = split_mask(on, [cores == n for n in range(1, count + 1)])
        parts.sort(key=np.count_nonzero, reverse=True)
        least = _SPECK * np.count_nonzero(on)
        return tuple(
            replace(given, top=self.top + given.top - 1, left=self.left + given.left - 1)
            for given in map(ObjectMask.given, parts)
            if np.count_nonzero(given.logits) >= least
        )

    def meets(self, other: ObjectMask) -> bool:
        """Whether the bounding boxes overlap."""
        return all(
            one.start < two.stop and two.start < one.stop
            for one, two in zip(self.area, other.area, strict=True)
        )

    def shared_pixels(self, other: ObjectMask) -> int:
        """How many pixels it has in common with another mask of the frame."""
        if not self.meets(other):
            return 0
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = (min(a.stop, b.stop) for a, b in zip(self.area, other.area, strict=True))
        on_both = (
            one.logits[top - one.top : bottom - one.top, left - one.left : right - one.left] > 0
            for one in (self, other)
        )
        return int(np.logical_and(*on_both).sum())

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
    scribbles: tuple[Scribble, ...] = ()
    lassos: tuple[NDArray[np.float64], ...] = ()
    """Each (N, 2), y, x, a polygon drawn around the object, or around parts of it."""
    corrects: CoarseLogits | None = None
    """The tracked mask that points and scribbles correct; where none was found, the nearest one."""
    mask: ObjectMask | None = None
    """Painted by the person: the frame's whole answer, whatever else is said."""

    @classmethod
    def create(
        cls,
        points: ArrayLike = (),
        labels: ArrayLike | None = None,
        box: Sequence[float] | None = None,
        scribbles: Iterable[tuple[ArrayLike, int]] = (),
        lassos: Iterable[ArrayLike] = (),
    ) -> SlicePrompts:
        """Check and convert what is given as to `Session.set_prompts`; raises ValueError."""
        yx = positions(points, 2, "point")
        signs = np.ones(len(yx), np.int64) if labels is None else np.array(labels, np.int64)
        if signs.shape != (len(yx),):
            raise ValueError(f"{len(yx)} points have {signs.size} labels; give each point one.")
        lines = tuple(Scribble(positions(p, 2, "position"), int(i)) for p, i in scribbles)
        if not np.isin([*signs, *(line.label for line in lines)], (0, 1)).all():
            raise ValueError("The label of a click or scribble is 1 (on the object) or 0 (beside).")
        if not all(len(line.path) for line in lines):
            raise ValueError("A scribble needs a position at least.")
        polygons = tuple(positions(polygon, 2, "corner of a lasso") for polygon in lassos)
        for polygon in polygons:
            if len(polygon) < 3:
                raise ValueError(f"A lasso needs three corners or more, not {len(polygon)}.")
        if box is not None:
            corners = np.ravel(box)
            if len(corners) != 4:
                raise ValueError(f"A box is four numbers, (y0, x0, y1, x1), not {box!r}.")
            corners = np.sort(positions(corners.reshape(2, 2), 2, "corner of a box"), axis=0)
            y0, x0, y1, x1 = corners.ravel().tolist()
            if y0 == y1 or x0 == x1:
                raise ValueError(f"The box {box!r} is empty: its corners lie on one line.")
            box = y0, x0, y1, x1
        said = cls(yx, signs, box, lines, polygons)
        for name, places in said.places:
            if not np.isfinite(places).all():
                raise ValueError(f"A {name} lies where no number says: {places.tolist()}.")
        return said

    @property
    def places(self) -> list[tuple[str, NDArray[np.float64]]]:
        """What each mark is called, and the y, x of all that is known of it, (N, 2)."""
        found = [("point", point[None]) for point in self.points]
        if self.box is not None:
            found.append(("box", np.reshape(self.box, (2, 2))))
        found += [("scribble", line.path) for line in self.scribbles]
        return found + [("lasso", polygon) for polygon in self.lassos]

    def with_more(self, other: SlicePrompts) -> SlicePrompts:
        """This and what another says; of two boxes or paintings, the other's."""
        return SlicePrompts(
            np.concatenate((self.points, other.points)),
            np.concatenate((self.labels, other.labels)),
            other.box or self.box,
            self.scribbles + other.scribbles,
            self.lassos + other.lassos,
            mask=self.mask if other.mask is None else other.mask,
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is said."""
        return self.count == 0

    @property
    def starts_over(self) -> bool:
        """Whether this shows the whole object, so that an earlier mask does not matter."""
        return self.box is not None or len(self.lassos) > 0

    @property
    def extent(self) -> Box | None:
        """y0, x0, y1, x1 of all marks that are on or about the object; None without any."""
        marks = [self.points[self.labels == 1], *(s.path for s in self.scribbles if s.label == 1)]
        marks += [np.reshape(self.box, (2, 2))] if self.box is not None else []
        corners = np.concatenate([*marks, *self.lassos])
        found = (*corners.min(axis=0), *corners.max(axis=0)) if len(corners) else None
        if self.mask is None or self.mask.is_empty:
            return found
        return joined(found, self.mask.box)

    def goes_on_from(self, other: SlicePrompts) -> bool:
        """Whether this adds clicks and scribbles to what another says, and changes nothing else."""
        shapes = [(s.box, [lasso.tolist() for lasso in s.lassos], s.mask) for s in (self, other)]
        return shapes[0] == shapes[1] and other._strokes <= self._strokes

    @property
    def _strokes(self) -> set[tuple[int, bytes]]:
        """Clicks and scribbles, to be compared."""
        clicks = zip(self.labels.tolist(), self.points, strict=True)
        return {(label, yx.tobytes()) for label, yx in clicks} | {
            (scribble.label, scribble.path.tobytes()) for scribble in self.scribbles
        }

    @property
    def points_inside(self) -> bool:
        """Whether a click or a scribble is on the object."""
        return bool((self.labels == 1).any()) or any(s.label == 1 for s in self.scribbles)

    @property
    def usable(self) -> bool:
        """Whether this says where the object is, and not only where it is not."""
        return (
            self.mask is not None
            or self.starts_over
            or self.points_inside
            or (self.corrects is not None and self.count > 0)
        )

    @property
    def trims(self) -> bool:
        """Whether this only says what does not belong to a tracked mask."""
        return self.corrects is not None and not (
            self.starts_over or self.points_inside or self.mask is not None
        )

    @property
    def count(self) -> int:
        """Clicks, box, scribbles, lassos and painting."""
        marks = len(self.points) + len(self.scribbles) + len(self.lassos)
        return marks + (self.box is not None) + (self.mask is not None)

    @property
    def nbytes(self) -> int:
        arrays = [self.points, self.labels, *[s.path for s in self.scribbles], *self.lassos]
        corrects = 0 if self.corrects is None else self.corrects.steps.nbytes
        return sum(a.nbytes for a in arrays) + corrects + (self.mask.nbytes if self.mask else 0)


class Life(NamedTuple):
    """The frames on which an object can be; on others it is not, and is not looked for."""

    first: int = 0
    last: int | None = None
    """None: it may be there to the end."""

    def has(self, frame: int) -> bool:
        """Whether the object can be on a frame."""
        return self.first <= frame and (self.last is None or frame <= self.last)

    def widened(self, frames: Iterable[int]) -> Life:
        """Made longer where it takes that to have all of some frames."""
        frames = list(frames)
        last = None if self.last is None else max([self.last, *frames])
        return Life(min([self.first, *frames]), last)

    def joined(self, other: Life) -> Life:
        """From the earlier beginning to the later end."""
        last = None if self.last is None or other.last is None else max(self.last, other.last)
        return Life(min(self.first, other.first), last)


class Look(NamedTuple):
    """How closely the model looks at an object; there is none where that is yet to be decided."""

    area: Area | None = None
    """The part of the frames that it looks at; None: all."""
    is_settled: bool = True
    """Whether a person has chosen it, or it is one of many objects: it never changes by itself."""


_WHOLE = Life()


@dataclass(frozen=True, eq=False)
class Kept:
    """A mask that a person has approved or locked: nothing writes it, and others follow from it."""

    how: Keep
    prompts: SlicePrompts
    """The mask, as a prompt for the frames around."""

    @property
    def nbytes(self) -> int:
        return self.prompts.nbytes


Basis = tuple[object, ...]
REJECTED: Basis = ("rejected",)
"""Of a frame whose mask a person has rejected: it follows from nothing, and is found anew."""


@dataclass(frozen=True, eq=False)
class Found:
    """What the model has found on a frame, and what that follows from."""

    mask: ObjectMask | None
    """None where the object is not seen."""
    basis: Basis
    """The model and its settings, and the prompts that were followed."""

    @property
    def nbytes(self) -> int:
        return 0 if self.mask is None else self.mask.nbytes


@dataclass(frozen=True)
class ObjectInfo:
    """An object, but for its prompts and masks."""

    name: str
    colour: tuple[float, float, float] | None = None
    """RGB, 0 to 1; None for the colour that belongs to its id."""
    hidden: bool = False
    locked: bool = False
    """Nothing writes its masks."""


@dataclass(frozen=True)
class ObjectFacts:
    """What a list of objects says of one, in the sequence that is shown."""

    info: ObjectInfo
    prompts: int
    """Clicks, boxes, scribbles, lassos and painted slices."""
    slices: int
    """On how many it has a mask."""
    first: int | None
    last: int | None
    """The first and the last slice with a mask."""
    score: float | None
    """Mean of how well the model thinks that its masks fit, 0 to 1; None without such masks."""
    stale: int
    """Slices with masks that are out of date."""
    states: Mapping[State, int]
    """How many slices are in each state."""


@dataclass(frozen=True)
class ObjectState:
    """All that is known of an object in one sequence, by frame."""

    prompts: Mapping[int, SlicePrompts]
    kept: Mapping[int, Kept]
    found: Mapping[int, ObjectMask | None]
    """What the model has found; None where it does not see the object."""
    current: frozenset[int]
    """The frames of `found` that are up to date."""
    rejected: frozenset[int]
    """The frames of `found` whose masks a person has rejected."""
    tracked: Mapping[int, ObjectMask | None]
    """What was found on frames that got prompts afterwards."""
    life: Life = _WHOLE
    own_life: Life = _WHOLE
    """The life as it is without its parent and its daughters."""
    look: Look | None = None
    """How closely the model looks at it; None: that is yet to be decided."""


@dataclass(frozen=True)
class SessionState:
    """All of a session but image, labels and history: immutable, and made of plain values."""

    objects: Mapping[int, ObjectInfo]
    sequences: Mapping[Place, ObjectState]
    shown: SequenceKey
    window: Windows | None
    end_after: int | None
    memory: MemorySelection
    last_id: int
    """The largest id that an object ever had."""
    parents: Mapping[int, int] = field(default_factory=dict)
    """Daughter -> parent."""
    no_divisions: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """Object -> frames of proposals that a person has rejected."""
    memory_tokens: MemoryTokens = "all"
    closely: bool = True
    """Whether small objects are looked at closely by themselves."""
    seconds: Mapping[int, float] = field(default_factory=dict)
    """Object -> the time that a person has spent on it."""

    @property
    def names(self) -> dict[int, str]:
        """By object."""
        return {object_id: info.name for object_id, info in self.objects.items()}

    @property
    def colours(self) -> dict[int, tuple[float, float, float]]:
        """By object, of those that have one of their own."""
        return {i: info.colour for i, info in self.objects.items() if info.colour is not None}


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
