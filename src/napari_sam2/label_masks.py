"""The masks that labels hold, to be taken into a session."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_sam2.alignment import layer_on
from napari_sam2.output import check_labels
from napari_sam2.sequence_view import SequenceView
from napari_sam2.slice_data import ObjectMask

if TYPE_CHECKING:
    from napari.layers import Labels


def masks_in(
    view: SequenceView,
    labels: NDArray[Any] | Labels,
    object_ids: Collection[int] | None = None,
    frames: Iterable[int] | None = None,
) -> dict[tuple[int, int], ObjectMask]:
    """(object, frame) -> its mask, for `Session.take_masks`; arguments as for `take_labels`.

    Changes nothing, so that another thread can read what takes long.
    """
    read = _reader(view, labels)
    found: dict[tuple[int, int], ObjectMask] = {}
    largest: dict[int, tuple[int, int]] = {}
    for frame in range(len(view)) if frames is None else frames:
        areas, mask_of = objects_on(read(frame))
        for object_id in areas if object_ids is None else areas.keys() & set(object_ids):
            if frames is None:
                area, before = largest.get(object_id, (0, frame))
                if areas[object_id] <= area:
                    continue
                found.pop((object_id, before), None)
                largest[object_id] = areas[object_id], frame
            found[object_id, frame] = mask_of(object_id)
    return found


def _reader(view: SequenceView, labels: Any) -> Callable[[int], NDArray[Any]]:
    """Frame -> (H, W) of a labels layer or of an array in the shape of the image."""
    if hasattr(labels, "data_to_world"):
        return lambda frame: layer_on(view, labels, frame)
    check_labels(labels, view.shape)
    return lambda frame: np.asarray(labels[view.index(frame)])


def objects_on(labels: NDArray[Any]) -> tuple[dict[int, int], Callable[[int], ObjectMask]]:
    """The pixels of each object of (H, W), by id, and what makes its mask."""
    rows, columns = np.nonzero(labels > 0)
    ids, number, pixels = np.unique(labels[rows, columns], return_inverse=True, return_counts=True)
    numbered = np.zeros(labels.shape, np.int32)
    numbered[rows, columns] = number + 1
    numbers = {object_id: n for n, object_id in enumerate(ids.tolist())}
    boxes = ndimage.find_objects(numbered)

    def mask(object_id: int) -> ObjectMask:
        n = numbers[object_id]
        box = boxes[n]
        return ObjectMask.given(numbered[box] == n + 1, box[0].start, box[1].start)

    return dict(zip(ids.tolist(), pixels.tolist(), strict=True)), mask
