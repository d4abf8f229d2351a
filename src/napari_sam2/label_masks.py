"""What labels hold, to be taken into a session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.alignment import layer_on
from napari_sam2.io.writers import names_in, parents_in
from napari_sam2.output import check_labels
from napari_sam2.sequence_view import SequenceView
from napari_sam2.slice_data import Life, ObjectMask

if TYPE_CHECKING:
    from napari.layers import Labels


@dataclass(frozen=True)
class LabelMasks:
    """Masks of objects in labels."""

    masks: Mapping[tuple[int, int], ObjectMask]
    """By object and frame."""
    spans: Mapping[int, Life] = field(default_factory=dict)
    """The first and the last frame of each object; none where not all frames were looked at."""

    @property
    def objects(self) -> list[int]:
        """In order."""
        return sorted({object_id for object_id, _ in self.masks})


def masks_in(
    view: SequenceView,
    labels: NDArray[Any] | Labels,
    object_ids: Iterable[int] | None = None,
    frames: Sequence[int] | None = None,
) -> LabelMasks:
    """Read the masks that `Session.take_masks` takes; arguments as for `take_labels`.

    Changes nothing, so that another thread can read what takes long.
    """
    read = _reader(view, labels)
    whole, chosen = range(len(view)), None if object_ids is None else {*object_ids}
    masks: dict[tuple[int, int], ObjectMask] = {}
    largest: dict[int, int] = {}  # the frame of each
    spans: dict[int, Life] = {}
    for frame in whole if frames is None else frames:
        for object_id, mask in ObjectMask.each_of(read(frame)).items():
            if chosen is not None and object_id not in chosen:
                continue
            spans[object_id] = spans.get(object_id, Life(frame, frame)).widened([frame])
            if frames is None and object_id in largest:
                best = object_id, largest[object_id]
                if mask.summary[0] <= masks[best].summary[0]:
                    continue
                del masks[best]
            masks[object_id, frame] = mask
            largest[object_id] = frame
    is_whole = frames is None or {*frames} >= {*whole}
    return LabelMasks(masks, spans if is_whole else {})


def names_and_parents(labels: Any) -> tuple[Mapping[int, str], Mapping[int, int]]:
    """What a labels layer says of its objects, by id; an array says nothing."""
    if not _is_layer(labels):
        return {}, {}
    meta = {"metadata": labels.metadata, "features": labels.features}
    return names_in(meta), parents_in(meta)


def _is_layer(labels: Any) -> bool:
    return hasattr(labels, "data_to_world")


def _reader(view: SequenceView, labels: Any) -> Callable[[int], NDArray[Any]]:
    """Frame -> (H, W) of a labels layer or of an array in the shape of the image."""
    if _is_layer(labels):
        return lambda frame: layer_on(view, labels, frame)
    check_labels(labels, view.shape)
    return lambda frame: np.asarray(labels[view.index(frame)])
