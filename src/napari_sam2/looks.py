"""How closely objects are looked at: in an area about each, or on whole slices."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from napari_sam2.areas import (
    CLOSE,
    Area,
    Box,
    around_boxes,
    is_small_in,
    joined,
    may_need_close_looks,
    needs_close_look,
)
from napari_sam2.engine_prompts import area_on
from napari_sam2.records import Records
from napari_sam2.sequence_view import SequenceKey, SequenceView
from napari_sam2.slice_data import Look, Place, SlicePrompts
from napari_sam2.tasks import Source, Step, Task


@dataclass(frozen=True)
class Looks:
    """Decides it by itself for an object while that begins, as things stand.

    From undecided, an object's look becomes one at an area, and then at most once one at whole
    slices. What a person has chosen stays.
    """

    records: Records
    views: Mapping[SequenceKey, SequenceView]
    source: Source
    is_wanted: bool
    """Whether anything is decided by itself."""

    def extents(self, place: Place, without: Collection[int] = ()) -> list[Box]:
        """Of an object on the frames where it is marked, as far as that is known.

        without: frames whose masks do not count.
        """
        boxes = []
        for frame, said in self.records.anchors(place).items():
            mask = None if frame in without else self.records.shown(place, frame)
            if said.starts_over and said.extent is not None:
                boxes.append(said.extent)
            elif mask is not None and not mask.is_empty:
                boxes.append(joined(said.extent, mask.box))
        return boxes

    def is_undecided(self, place: Place) -> bool:
        """Whether it is yet to be decided of an object."""
        return self.records.look(place) is None and self._decides(place)

    def area_to_try(self, place: Place) -> Area | None:
        """The area that an undecided object would be looked at in; None while it is not known how
        large it is, and where it is large.
        """
        boxes = self.extents(place, self.records.stale(place, self.source))
        shape, image_size = self.views[place[0]].frame_shape, self.source.model.image_size
        area = around_boxes(boxes, CLOSE, shape) if boxes else None
        return area if area is None or needs_close_look(area, shape, image_size) else None

    def begin(self, place: Place) -> bool:
        """Whether an undecided object whose size is known is to be looked at closely; if not, that
        is decided then. One that is painted needs no look for that.
        """
        area = self.area_to_try(place)
        if area is None:
            self.records.set_look(place, Look(None, is_settled=False))
            return False
        if all(said.mask is not None for said in self.records.anchors(place).values()):
            self.records.set_look(place, Look(area, is_settled=False))
        return True

    def is_close_enough(self, task: Task, object_id: int, step: Step) -> bool:
        """Whether what a preview has found can stay: not where an object that was looked at closely
        by itself is not so small. That is decided here.
        """
        place, area = (task.view.key, object_id), task.areas.get(object_id)
        look = self.records.look(place)
        is_open = look is None or (not look.is_settled and look.area == area)
        if area is None or not is_open or task.source != self.source or not self._decides(place):
            return True
        mask, shape = step.masks[object_id], task.view.frame_shape
        seen = area_on(task.anchors[object_id][step.frame], area, shape)
        is_small = seen is None or (mask is not None and is_small_in(seen, mask.box, shape))
        self.records.set_look(place, Look(area if is_small else None, is_settled=False))
        return is_small

    def begins_anew(self, place: Place, frame: int, said: SlicePrompts) -> bool:
        """Whether it is to be decided anew with what is said on a frame, since nothing that was
        said before stays: not of what a person has chosen.
        """
        records, look = self.records, self.records.look(place)
        if look is None or look.is_settled or not records.anchors(place).keys() <= {frame}:
            return False
        goes_on = said.goes_on_from(records.said(place, frame))
        return said.is_empty or (records.begins(place) and not goes_on)

    def _decides(self, place: Place) -> bool:
        """Whether anything is decided of an object now."""
        info = self.records.objects.get(place[1])
        if not self.is_wanted or info is None or info.locked or not self.records.begins(place):
            return False
        shape = self.views[place[0]].frame_shape
        return may_need_close_looks(shape, self.source.model.image_size)
