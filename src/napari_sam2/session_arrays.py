"""The masks in a session's file: arrays by name, those of one object on some slices in one .npz.

What `pack` writes, `Arrays` reads and checks. docs/sessions.md has a table of the arrays.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.areas import Area
from napari_sam2.sequence_view import SequenceView
from napari_sam2.slice_data import CoarseLogits, ObjectMask, ObjectState

EPOCH = (1980, 1, 1, 0, 0, 0)
"""When all files in a zip were made: equal arrays make equal files."""
_LARGEST_SIDE = 4096  # of coarse logits: more is damage
_ALL = (0, 0, 0, 0)  # the area of a mask that was looked for on the whole frame


# -- writing -------------------------------------------------------------------------------------


def pack(known: ObjectState) -> bytes:
    """All that takes arrays of what is known of an object, as a file."""
    return _npz(_arrays_of(known))


def _arrays_of(known: ObjectState) -> dict[str, NDArray[Any]]:
    """All arrays by name; tables without entries are left out."""
    painted = {f: said.mask for f, said in known.prompts.items() if said.mask is not None}
    kept = {f: one.prompts.mask for f, one in known.kept.items()}
    corrected = {f: said.corrects for f, said in known.prompts.items() if said.corrects is not None}
    return {
        **_pack_masks("painted", painted),
        **_pack_masks("kept", kept),
        **_pack_masks("found", known.found),
        **_pack_masks("tracked", known.tracked),
        **_pack_coarse("corrected", corrected),
        "current_slices": np.array(sorted(known.current), np.int64),
        "rejected_slices": np.array(sorted(known.rejected), np.int64),
    }


def _pack_masks(table: str, masks: Mapping[int, ObjectMask | None]) -> dict[str, NDArray[Any]]:
    if not masks:
        return {}
    frames = sorted(masks)
    seen = {frame: mask for frame in frames if (mask := masks[frame]) is not None}
    boxes = [(mask.top, mask.left, *mask.logits.shape) for mask in seen.values()]
    logits = [mask.logits.ravel() for mask in seen.values()]
    coarse = {f: mask.coarse for f, mask in seen.items() if mask.coarse is not None}
    return {
        f"{table}_slices": np.array(list(seen), np.int64),
        f"{table}_boxes": np.array(boxes, np.int64).reshape(-1, 4),
        f"{table}_scores": np.array([mask.iou for mask in seen.values()], np.float64),
        f"{table}_logits": np.concatenate([np.empty(0, np.float16), *logits]),
        f"{table}_absent": np.array([f for f in frames if f not in seen], np.int64),
        **_pack_coarse(f"{table}_coarse", coarse),
    }


def _pack_coarse(table: str, logits: Mapping[int, CoarseLogits]) -> dict[str, NDArray[Any]]:
    if not logits:
        return {}
    places = [(one.side, one.top, one.left, *one.steps.shape) for one in logits.values()]
    steps = [one.steps.ravel() for one in logits.values()]
    areas = [one.area or _ALL for one in logits.values()]
    return {
        f"{table}_slices": np.array(list(logits), np.int64),
        f"{table}_boxes": np.array(places, np.int64).reshape(-1, 5),
        f"{table}_areas": np.array(areas, np.int64).reshape(-1, 4),
        f"{table}_logits": np.concatenate([np.empty(0, np.int8), *steps]),
    }


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """As `numpy.savez_compressed`, but quick."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy", EPOCH)
            file.writestr(member, content.getvalue(), zipfile.ZIP_DEFLATED, 1)
    return whole.getvalue()


# -- reading -------------------------------------------------------------------------------------


class Arrays:
    """A file of `pack`, as masks. Whatever does not fit together is a ValueError, or one of those
    that NumPy and zipfile raise.
    """

    def __init__(self, content: bytes, view: SequenceView) -> None:
        """view: the sequence that the masks belong to."""
        self._file = zipfile.ZipFile(io.BytesIO(content))
        self._view, self._names = view, frozenset(self._file.namelist())

    def frames(self, name: str) -> list[int]:
        """An array of frames."""
        frames = self._array(name, np.int64, 1)
        if ((frames < 0) | (frames >= len(self._view))).any():
            raise ValueError("A mask lies outside the image.")
        return [int(frame) for frame in frames]

    def masks(self, table: str) -> dict[int, ObjectMask]:
        """Frame -> mask of a table; none where it is left out."""
        if not self._has(table):
            return {}
        frames = self.frames(f"{table}_slices")
        boxes = self._array(f"{table}_boxes", np.int64, 2)
        scores = self._array(f"{table}_scores", np.float64, 1)
        coarse = self.coarse(f"{table}_coarse")
        parts = _cut(self._array(f"{table}_logits", np.float16, 1), boxes)
        found = {}
        for frame, box, score, logits in zip(frames, boxes, scores, parts, strict=True):
            top, left = int(box[0]), int(box[1])
            bottom, right = top + logits.shape[0], left + logits.shape[1]
            height, width = self._view.frame_shape
            if top < 0 or left < 0 or bottom > height or right > width:
                raise ValueError("A mask lies outside its slice.")
            found[frame] = ObjectMask(top, left, logits, coarse.get(frame), float(score))
        return found

    def coarse(self, table: str) -> dict[int, CoarseLogits]:
        """Frame -> the model's own logits of a table; none where it is left out."""
        if not self._has(table):
            return {}
        frames = self.frames(f"{table}_slices")
        places = self._array(f"{table}_boxes", np.int64, 2)
        parts = _cut(self._array(f"{table}_logits", np.int8, 1), places[:, 1:])
        areas = [list(_ALL)] * len(frames)
        if f"{table}_areas.npy" in self._names:  # older files know of none
            areas = self._array(f"{table}_areas", np.int64, 2).tolist()
        found = {}
        for frame, (side, top, left, height, width), steps, area in zip(
            frames, places.tolist(), parts, areas, strict=True
        ):
            if not (
                0 <= top <= top + height <= side
                and 0 <= left <= left + width <= side <= _LARGEST_SIDE
            ):
                raise ValueError("A mask lies outside its slice.")
            seen = None if tuple(area) == _ALL else checked_area(area, self._view.frame_shape)
            found[frame] = CoarseLogits(side, top, left, steps, seen)
        return found

    def absent(self, table: str) -> list[int]:
        """The frames on which the model does not see the object."""
        return self.frames(f"{table}_absent") if self._has(table) else []

    def rejected(self) -> list[int]:
        """The frames whose masks a person has rejected; older files do not know of any."""
        return self.frames("rejected_slices") if self._has("rejected") else []

    def _has(self, table: str) -> bool:
        return f"{table}_slices.npy" in self._names

    def _array(self, name: str, dtype: type, ndim: int) -> NDArray[Any]:
        with self._file.open(f"{name}.npy") as member:
            array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        if array.dtype != dtype or array.ndim != ndim:
            raise ValueError(f"{name} is {array.dtype} of {array.shape}.")
        return array


def checked_area(area: Sequence[int], shape: tuple[int, int]) -> Area:
    """The part of a frame (H, W) that is looked at; ValueError where it lies outside."""
    top, left, bottom, right = area
    if not (0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]):
        raise ValueError("What is looked at closely lies outside the image.")
    return top, left, bottom, right


def _cut(flat: NDArray[Any], boxes: NDArray[np.int64]) -> list[NDArray[Any]]:
    """A flat array into (h, w) parts, one after the other, of boxes (N, 4): ..., h, w."""
    sizes = boxes[:, 2:]
    if boxes.shape[1] != 4 or (sizes < 0).any() or sizes.prod(axis=1).sum() != len(flat):
        raise ValueError("Masks and their sizes do not go together.")
    ends = np.cumsum(sizes.prod(axis=1))
    parts = np.split(flat, ends[:-1]) if len(boxes) else []
    return [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]
