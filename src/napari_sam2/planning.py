"""What there is to ask of the model, as things stand, and whether what was asked still holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from napari_sam2.looks import Looks
from napari_sam2.records import Records
from napari_sam2.sequence_view import SequenceView
from napari_sam2.slice_data import Life
from napari_sam2.tasks import Anchors, Source, Task, origins

if TYPE_CHECKING:
    from sam2_engine.passes import Direction


def all_said(records: Records, view: SequenceView, source: Source) -> Task:
    """A task with all that is said in a sequence, of which nothing is asked yet."""
    anchors, areas = {}, {}
    for object_id in sorted(records.objects):
        place = view.key, object_id
        own = records.anchors(place)
        area = records.area(place, source)
        if own:
            anchors[object_id] = own
        if own and area is not None:
            areas[object_id] = area
    return Task(view, source, anchors, {}, areas)


def to_follow(
    records: Records,
    task: Task,
    objects: Collection[int],
    frames: range,
    direction: Direction,
    to: int | None,
    only_stale: bool,
) -> Task:
    """The task of `all_said` with what is to be computed of objects, as `Session.task` says."""
    wanted, lives = {}, {}
    for object_id, own in task.anchors.items():
        if object_id not in objects or records.objects[object_id].locked:
            continue
        place = task.view.key, object_id
        lives[object_id] = life = records.life(place)
        reach = _reach(own, life, frames, direction, to)
        wanted[object_id] = records.wanted(place, task.source, reach, only_stale)
    return replace(task, wanted=wanted, lives=lives)


def to_preview(looks: Looks, task: Task, frame: int) -> Task:
    """The task of `all_said` for a preview of a frame, as `Session.preview_task` says."""
    records, key, areas = looks.records, task.view.key, {}
    here = [i for i, own in task.anchors.items() if frame in own]
    tried = [i for i in here if looks.is_undecided((key, i))]
    for object_id in tried:
        area = looks.area_to_try((key, object_id))
        if area is not None:
            areas[object_id] = area
    free = [i for i in here if not records.objects[i].locked]
    wanted = [i for i in free if records.wanted((key, i), task.source, [frame], False)]
    chosen = [i for i in here if i in tried or i in wanted] or here
    anchors = {i: task.anchors[i] for i in chosen}
    return replace(task, anchors=anchors, areas={**task.areas, **areas})


def between_marks(records: Records, task: Task) -> Mapping[int, frozenset[int]]:
    """Object -> frames between two marked ones with masks that are up to date, of those asked for.

    They could be followed from either side.
    """
    between = {}
    for object_id in task.wanted:
        place, own = (task.view.key, object_id), task.anchors[object_id]
        stale, marked = set(records.stale(place, task.source)), origins(own)
        found = records.found.at(place).keys() - stale - own.keys()
        between[object_id] = frozenset(f for f in found if marked[0] < f < marked[-1])
    return between


def has_changed_since(records: Records, task: Task) -> bool:
    """What `Session.has_changed_since` says."""
    for object_id, wanted in task.wanted.items():
        place, info = (task.view.key, object_id), records.objects.get(object_id)
        if info is None or info.locked:
            if wanted:
                return True
            continue
        if task.lives[object_id] != records.life(place):
            return True
        asked, now = task.anchors[object_id], records.anchors(place)
        changed = {f for f in asked.keys() | now.keys() if asked.get(f) is not now.get(f)}
        if changed - records.kept.at(place).keys():
            return True
    return False


def _reach(
    anchors: Anchors, life: Life, frames: range, direction: Direction, to: int | None
) -> range:
    """Those of the frames to which an object is followed from where it is marked."""
    first, last, marked = frames[0], frames[-1], origins(anchors)
    low = max(first, marked[0]) if direction == "forward" else first
    high = min(last, marked[-1]) if direction == "backward" else last
    low = max(low, life.first)
    high = high if life.last is None else min(high, life.last)
    if to is not None:
        near = min(marked, key=lambda frame: (abs(frame - to), frame))
        low, high = max(low, min(near, to)), min(high, max(near, to))
    return range(low, high + 1)
