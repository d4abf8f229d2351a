"""One image's segmentation: its objects, their prompts, and the masks that follow from them.

A session is the only thing that changes masks. It knows no window: the widget shows it and calls
it, and a script calls it alike.

    session = Session(viewer.layers["brain"])
    ventricle = session.add_object("ventricle")
    session.add_points(ventricle, [(40, 120, 96)])
    session.propagate()
    session.labels
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike, NDArray
from psygnal import Signal

from napari_sam2.alignment import layer_on
from napari_sam2.areas import CLOSE, Area, around_boxes
from napari_sam2.history import Change, History
from napari_sam2.label_writer import LabelWriter
from napari_sam2.lineage import LineageError, ancestors, divisions, merged, split_mask
from napari_sam2.looks import Looks
from napari_sam2.output import Output
from napari_sam2.records import Cell, Records
from napari_sam2.sequence_view import Channels, SequenceKey, SequenceView, Windows
from napari_sam2.slice_data import (
    REJECTED,
    Found,
    Keep,
    Kept,
    Life,
    Look,
    ObjectFacts,
    ObjectInfo,
    ObjectMask,
    Place,
    SessionState,
    SlicePrompts,
    State,
)
from napari_sam2.tasks import (
    Engine,
    LazyModel,
    OtherSide,
    Source,
    Step,
    Task,
    basis,
    origins,
)
from napari_sam2.windows import window_for

if TYPE_CHECKING:
    from sam2_engine.memory import MemorySelection, MemoryTokens
    from sam2_engine.model import SAM2

Direction = Literal["both", "forward", "backward"]

_EDITS = {"name": "Rename", "colour": "Colour", "hidden": "Hide", "locked": "Lock"}


def default_name(object_id: int) -> str:
    """Of an object that nobody has named."""
    return f"Object {object_id}"


class NothingToDo(ValueError):
    """There is nothing to start from. The message says what is missing."""


class LockedError(ValueError):
    """Something is locked that would have to change. The message says what to unlock."""


class Session:
    """Objects, prompts and masks of one image.

    Prompts belong to the sequence that is shown (`show`): in a volume the slices along one axis.
    Masks of all sequences are written to the same `labels`.

    Masks follow from prompts, frames and model alone: a slice from the prompts on it, any other
    slice from the nearest slice with prompts. What a person paints, approves or locks is never
    written, and the slices around follow from it as from a prompt.
    """

    masks_changed = Signal(tuple)
    """The index of the slice of `labels` that has changed."""
    objects_changed = Signal()
    """An object, or what is known of it, has changed."""
    prompts_replaced = Signal()
    """Prompts are others than those that were set: after undo, redo, merging and opening."""

    def __init__(
        self,
        image: Any,
        model: LazyModel | SAM2 | str = "nano",
        *,
        device: str = "auto",
        window: Windows | None = None,
        rgb: bool = False,
        channels: Channels | None = None,
        spacing: Sequence[float] | None = None,
        labels: Any = None,
        overwrite: bool = False,
        end_after: int | None = None,
        memory: MemorySelection = "recent",
        memory_tokens: MemoryTokens = "all",
        closely: bool = True,
    ) -> None:
        """
        Args:
            image: a napari image layer, an array (..., y, x), or a list of up to three of either
                that are seen in colours; read frame by frame.
            model: a name, a checkpoint's path, or a loaded model.
            device: "auto", "cpu", "cuda" or "mps", for a model that is yet to be loaded; or
                "cpu-bfloat16", quicker on processors that multiply in half precision.
            window: intensities shown to the model as black and white, or these for each channel;
                by default the layer's contrast limits, and for an array percentiles of the
                sequence. See `window_for`.
            rgb, channels, spacing: as for `SequenceView`.
            labels, overwrite: as for `write_to`; by default a new array.
            end_after: slices in a row without an object after which it is taken to have ended;
                None to look for it to the last slice.
            memory: which slices are remembered on the way, as for `SequencePredictor`: the
                "recent" ones, or the "confident" ones, wherever they lie.
            memory_tokens: "pooled" looks at a quarter of each memory, which is quicker and changes
                masks a little.
            closely: whether small objects are looked at closely by themselves, by models of up to
                512 pixels: as by `look_closely`, from the first mark on. It is decided once for an
                object, by `preview`, `propagate` or `update`, before it is followed; where its mask
                then does not fit in the area, it is looked at on whole slices. What `look_closely`
                was told goes first.

        Raises ValueError where image or labels cannot be used; the message says why.
        """
        self.image = image
        self._how: dict[str, Any] = {"rgb": rgb, "channels": channels, "spacing": spacing}
        self._make_view: Callable[[SequenceKey | None], SequenceView] = lambda key: SequenceView(
            image, key, **self._how
        )
        self.view = self._make_view(None)
        """The sequence that prompts are set in, as frames."""
        has_windows = self.view.layers or self.view.num_channels > 1
        self.window = window_for(self.view) if window is None and has_windows else window
        """Change it at any time; masks that follow from another one are out of date."""
        self.model = model if isinstance(model, LazyModel) else LazyModel(model, device)
        """Change it at any time; masks that follow from another one are out of date."""
        self.end_after = end_after
        """Change it at any time, as `model`."""
        self.memory: MemorySelection = memory
        self.memory_tokens: MemoryTokens = memory_tokens
        """Change it at any time, as `model`."""
        self.closely = closely
        """Change it at any time; objects of which it is decided stay as they are."""
        self.history = History()
        self._views = {self.view.key: self.view}
        self._records = Records(self.history)
        output = Output(self.view.shape, labels, overwrite)
        self._writer = LabelWriter(self._records, self._views, output, self.masks_changed.emit)
        self._last_id = 0
        self._seconds: dict[int, float] = {}
        self._objects: tuple[int, Mapping[int, ObjectInfo]] = -1, {}
        self._facts: dict[int, tuple[Hashable, ObjectFacts]] = {}
        self._comparisons = 0
        self._branched: WeakKeyDictionary[Session, dict[Cell, Any]] = WeakKeyDictionary()
        self._other_sides: WeakKeyDictionary[Found, OtherSide] = WeakKeyDictionary()
        self._last_source = self._asked_source()
        self._engine = Engine()

    # -- objects -------------------------------------------------------------------------------

    @property
    def objects(self) -> Mapping[int, ObjectInfo]:
        """All objects by id."""
        revision = self._records.objects_revision
        if self._objects[0] != revision:
            self._objects = revision, dict(sorted(self._records.objects.items()))
        return self._objects[1]

    @property
    def untouched_objects(self) -> list[int]:
        """Ids of objects without prompts that have no name of their own, nor anything else."""
        prompted, objects = self.prompted_objects, self.objects
        new = {i: ObjectInfo(default_name(i)) for i in objects if i not in prompted}
        return [i for i, info in new.items() if objects[i] == info]

    def add_object(self, name: str = "", object_id: int | None = None) -> int:
        """A new object without prompts. Returns its id.

        object_id: by default one that never was, neither here nor in the labels. With the id of
        something that the labels hold already, its masks take the place of that, slice by slice.
        Raises ValueError where the id cannot be used.
        """
        if object_id is None:
            object_id = max(self._last_id, *self._writer.output.others, 0) + 1
        if object_id < 1 or object_id in self.objects:
            raise ValueError(f"An object needs a new positive id; {object_id} cannot be used.")
        largest = self._writer.output.largest_id
        if object_id > largest:
            raise ValueError(
                f"The labels are {self.labels.dtype}, which hold ids up to {largest}, not "
                f"{object_id}. Write to labels of a larger type."
            )
        self._last_id = max(self._last_id, object_id)
        with self.history.change("New object"):
            self._records.set_object(object_id, ObjectInfo(name or default_name(object_id)))
        self.objects_changed.emit()
        return object_id

    def edit_object(self, object_id: int, **changes: Any) -> None:
        """Change an object's name, colour (RGB, 0 to 1), or whether it is hidden or locked."""
        self._check_object(object_id)
        label = next((_EDITS[name] for name in changes if name in _EDITS), "Edit object")
        with self.history.change(label):
            self._records.set_object(object_id, replace(self.objects[object_id], **changes))
        if "locked" in changes:  # a locked mask goes first where masks overlap
            self._writer.write_object(object_id, only_covered=True)
        self.objects_changed.emit()

    def facts(self, object_id: int) -> ObjectFacts:
        """What a list of objects says of one, in the sequence that is shown."""
        revision = self.revision(object_id)
        known = self._facts.get(object_id)
        if known is None or known[0] != revision:
            known = self._facts[object_id] = revision, self._find_facts(object_id)
        return known[1]

    def revision(self, object_id: int) -> Hashable:
        """Another one when something changes that is known of an object, in the sequence that is
        shown; so that what follows from it is found anew only then.
        """
        self._check_object(object_id)
        place = self.view.key, object_id
        return place, self._source, self._comparisons, self._records.revision(place)

    def _find_facts(self, object_id: int) -> ObjectFacts:
        masks = self.masks_of(object_id)
        said = self._records.prompts.at((self.view.key, object_id))
        scores = [mask.iou for mask in masks.values() if mask.coarse is not None]
        return ObjectFacts(
            info=self.objects[object_id],
            prompts=sum(one.count for one in said.values()),
            slices=len(masks),
            first=min(masks, default=None),
            last=max(masks, default=None),
            score=float(np.mean(scores)) if scores else None,
            stale=len(self.stale(object_id)),
            states=Counter(self.states(object_id).values()),
        )

    @property
    def seconds(self) -> Mapping[int, float]:
        """Object -> the time that a person has spent on it, as `spend` was told."""
        return {i: seconds for i, seconds in self._seconds.items() if i in self.objects}

    def spend(self, object_id: int, seconds: float) -> None:
        """A person has worked on an object for some time. Undo does not give it back."""
        self._check_object(object_id)
        self._seconds[object_id] = self._seconds.get(object_id, 0.0) + seconds

    def remove_object(self, object_id: int) -> None:
        """Take away an object with its prompts and masks, in every sequence.

        Raises LockedError where the object is locked.
        """
        self._check_unlocked(object_id)
        with self.history.change("Delete object"):
            self._records.set_object(object_id, None)
            links = self._records.parents.items()
            self._records.set_parents({d: p for d, p in links if object_id not in (d, p)})
            self._records.set_no_divisions(object_id, frozenset())
            for key, view in list(self._views.items()):
                self._writer.write(view, self._records.clear((key, object_id)))
        self.objects_changed.emit()

    def merge_objects(self, into: int, other: int) -> None:
        """Make two objects one: prompts and masks of the other are added to the first.

        Raises LockedError where one of them is locked.
        """
        self._check_unlocked(into)
        self._check_unlocked(other)
        if into == other:
            raise ValueError("An object cannot be merged with itself.")
        with self.history.change("Merge"):
            for key, view in list(self._views.items()):
                first, second = (key, into), (key, other)
                self._records.join_lives(first, second)
                self._records.join_looks(first, second)
                said = self._records.prompts.at(second)
                frames = sorted({*self._records.masks(second), *said})
                for frame in frames:
                    self._records.merge(frame, first, second)
                self._records.clear(second)
                self._writer.write(view, frames)
            self._records.set_object(other, None)
            self._records.set_parents(merged(self._records.parents, into, other))
            self._records.set_no_divisions(other, frozenset())
        self.objects_changed.emit()
        self.prompts_replaced.emit()

    # -- prompts -------------------------------------------------------------------------------

    def show(self, key: SequenceKey) -> None:
        """Work on another sequence of the same image; the prompts of the others are kept."""
        if key != self.view.key:
            self.view = self.view_of(key)
            self.objects_changed.emit()

    @property
    def prompts(self) -> Mapping[int, Mapping[int, SlicePrompts]]:
        """Object -> frame -> prompts, of the sequence that is shown."""
        return self.prompts_of(self.view.key)

    def prompts_of(self, key: SequenceKey) -> Mapping[int, Mapping[int, SlicePrompts]]:
        """Object -> frame -> prompts, of any sequence."""
        found = {i: dict(self._records.prompts.at((key, i))) for i in self.objects}
        return {i: frames for i, frames in found.items() if frames}

    def prompts_for(self, object_id: int) -> Mapping[int, SlicePrompts]:
        """Frame -> prompts of one object, of the sequence that is shown."""
        self._check_object(object_id)
        return dict(self._records.prompts.at((self.view.key, object_id)))

    @property
    def prompted_sequences(self) -> tuple[SequenceView, ...]:
        """All sequences with prompts, as frames."""
        return tuple(view for key, view in self._views.items() if self.prompts_of(key))

    @property
    def prompted_objects(self) -> frozenset[int]:
        """Ids of all objects that have prompts in any sequence."""
        return frozenset(i for key in self._views for i in self.prompts_of(key))

    def view_of(self, key: SequenceKey) -> SequenceView:
        """A sequence of the image, as frames."""
        if key not in self._views:
            self._views[key] = self._make_view(key)
        return self._views[key]

    def set_prompts(
        self,
        object_id: int,
        frame: int,
        *,
        points: ArrayLike = (),
        labels: ArrayLike | None = None,
        box: Sequence[float] | None = None,
        scribbles: Iterable[tuple[ArrayLike, int]] = (),
        lassos: Iterable[ArrayLike] = (),
    ) -> None:
        """Say all there is to say of an object on a frame; with nothing, take back what was said.

        Points and scribbles on a frame whose mask was tracked correct that mask; a box or a lasso
        starts over. On a frame that is painted, approved or locked, prompts wait until it is free
        again. Masks that lose their prompt are taken back; `preview` or `propagate` makes new ones.

        Args:
            points: (N, 2) y, x on the frame.
            labels: (N,) 1 on the object, 0 beside it; all 1 by default.
            box: y0, x0, y1, x1.
            scribbles: (path, label) each; a path is (N, 2) y, x, a label as above.
            lassos: polygons around the object or parts of it, each (N, 2) y, x with N of 3 or more.

        Raises LockedError where the object is locked.
        """
        self._check_unlocked(object_id)
        self._check_frame(frame)
        said = SlicePrompts.create(points, labels, box, scribbles, lassos)
        if not said.is_empty:
            self._check_alive(object_id, frame)
        said = replace(said, mask=self._said(object_id, frame).mask)
        with self.history.change("Prompt"):
            self._say(object_id, frame, said)
        self.objects_changed.emit()

    def add_points(
        self, object_id: int, points: ArrayLike, labels: ArrayLike | None = None
    ) -> list[int]:
        """Add points to what is said already. Returns the frames that they lie on.

        points: (N, D) positions in the image's array, (z, y, x) in a volume.
        labels: (N,) 1 on the object, 0 beside it; all 1 by default.
        """
        self._check_unlocked(object_id)
        frames, yx = self.view.split(points)
        new = SlicePrompts.create(yx, labels)
        if (frames < 0).any():
            lost = np.asarray(points, float).reshape(len(frames), -1)[frames < 0][0]
            raise ValueError(f"The point {lost.tolist()} lies outside the image or its sequence.")
        changed = [int(frame) for frame in np.unique(frames)]
        for frame in changed:
            self._check_alive(object_id, frame)
        with self.history.change("Prompt"):
            for frame in changed:
                here = frames == frame
                more = SlicePrompts(new.points[here], new.labels[here])
                self._say(object_id, frame, self._said(object_id, frame).with_more(more))
        self.objects_changed.emit()
        return changed

    def add_box(self, object_id: int, frame: int, box: Sequence[float]) -> None:
        """Draw a box, y0, x0, y1, x1, around the object on a frame; it replaces an earlier one."""
        self._add(object_id, frame, SlicePrompts.create(box=box))

    def add_scribble(self, object_id: int, frame: int, path: ArrayLike, label: int = 1) -> None:
        """Draw a line, (N, 2) y, x, on the object on a frame; beside it with the label 0."""
        self._add(object_id, frame, SlicePrompts.create(scribbles=[(path, label)]))

    def add_lasso(self, object_id: int, frame: int, polygon: ArrayLike) -> None:
        """Draw a polygon, (N, 2) y, x, around the object or a part of it on a frame."""
        self._add(object_id, frame, SlicePrompts.create(lassos=[polygon]))

    def _add(self, object_id: int, frame: int, more: SlicePrompts) -> None:
        self._check_unlocked(object_id)
        self._check_frame(frame)
        self._check_alive(object_id, frame)
        with self.history.change("Prompt"):
            self._say(object_id, frame, self._said(object_id, frame).with_more(more))
        self.objects_changed.emit()

    def paint(self, object_id: int, frame: int, mask: ArrayLike) -> None:
        """Give an object's mask on a frame by hand; from then on nothing else changes it.

        mask: (H, W), nonzero on the object; all 0 to say that it is not there.
        Raises LockedError where the object or the frame is locked or approved.
        """
        self._check_unlocked(object_id, frame)
        self._check_alive(object_id, frame)
        given = np.asarray(mask)
        if given.shape != self.view.frame_shape:
            raise ValueError(
                f"The mask is {given.shape}, but the slices are {self.view.frame_shape}."
            )
        known = self._said(object_id, frame)
        with self.history.change("Paint"):
            painted = replace(known, mask=ObjectMask.given(given))
            self._say(object_id, frame, painted, claimed=[object_id])
        self.objects_changed.emit()

    def take_painting(self, frame: int) -> list[int]:
        """Take over what someone has painted into `labels` on a frame, as by `paint`.

        What is seen of an object becomes its mask. What is locked or approved stays as it was.
        Returns the objects whose masks have changed.
        """
        self._check_frame(frame)
        output = self._writer.output
        now = np.array(output.labels[self.view.index(frame)])
        shown = output.expected(self.view, frame, self.objects)
        differs = now != shown
        if not differs.any():
            return []
        fixed = [i for i in self.objects if self._records.is_fixed((self.view.key, i), frame)]
        seen = np.where(np.isin(shown, fixed), shown, now)
        erased = (seen == 0) & (shown != 0)
        touched = {*np.unique(seen[differs]).tolist(), *np.unique(shown[differs]).tolist()}
        for object_id in self.objects:  # erased is erased, also for what lay beneath
            own = self._records.shown((self.view.key, object_id), frame)
            if own is not None and (erased[own.area] & (own.logits > 0)).any():
                touched.add(object_id)
        changed = []
        with self.history.change("Paint"):
            for object_id in sorted(touched.intersection(self.objects).difference(fixed)):
                mask, before = seen == object_id, shown == object_id
                covered = np.isin(seen[before & ~mask], list(self.objects)).all()
                is_only_covered = covered and (before & ~mask).any() and not (mask & ~before).any()
                place = self.view.key, object_id
                if is_only_covered and not self._records.is_kept(place, frame):
                    continue  # what is painted goes first anyway
                self.paint(object_id, frame, mask)
                changed.append(object_id)
        self._writer.write(self.view, [frame], claimed=self.objects)
        return changed

    def unpaint(self, object_id: int, frame: int) -> None:
        """Take back what was painted by hand; clicks and boxes on the frame count again."""
        self._check_unlocked(object_id, frame)
        known = self._said(object_id, frame)
        if known.mask is None:
            return
        with self.history.change("Unpaint"):
            self._say(object_id, frame, replace(known, mask=None))
        self.objects_changed.emit()
        self.prompts_replaced.emit()

    def take_labels(
        self,
        labels: Any,
        object_ids: Iterable[int] | None = None,
        frames: Iterable[int] | None = None,
    ) -> list[int]:
        """Take masks of existing labels as if painted by hand. Returns the objects.

        The masks start propagations from there. Objects keep their ids, and are made where there
        are none with these.

        Args:
            labels: integers in the shape of the image, or a napari labels layer of any shape and
                place, which needs an image layer; read frame by frame.
            object_ids: which of them; by default all.
            frames: the slices of the sequence to take; by default, for each object, the one where
                it is largest.

        Raises LockedError where something locked or approved would change; nothing is taken then.
        """
        read = self._reader(labels)
        chosen = None if object_ids is None else {int(i) for i in object_ids}
        wanted = None if frames is None else sorted({int(frame) for frame in frames})
        taken: dict[tuple[int, int], ObjectMask] = {}
        largest: dict[int, tuple[int, int]] = {}
        for frame in range(len(self.view)) if wanted is None else wanted:
            self._check_frame(frame)
            here = read(frame)
            ids, counts = np.unique(here[here > 0], return_counts=True)
            for object_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
                if chosen is not None and object_id not in chosen:
                    continue
                best, best_frame = largest.get(object_id, (0, None))
                if wanted is None and count <= best:
                    continue
                if wanted is None and best_frame is not None:
                    del taken[object_id, best_frame]
                taken[object_id, frame] = ObjectMask.given(here == object_id)
                largest[object_id] = count, frame
        for object_id, frame in taken:
            if object_id in self.objects:
                self._check_unlocked(object_id, frame)
                self._check_alive(object_id, frame)
        with self.history.change("Take labels"):
            for (object_id, frame), mask in taken.items():
                if object_id not in self.objects:
                    self.add_object(object_id=object_id)
                place = self.view.key, object_id
                look = self._records.look(place) or Look()  # many do not each get their own look
                self._records.set_look(place, look._replace(is_settled=True))
                self._say(object_id, frame, replace(self._said(object_id, frame), mask=mask))
        self.objects_changed.emit()
        return sorted(largest)

    def _reader(self, labels: Any) -> Callable[[int], NDArray[Any]]:
        """Frame -> (H, W) of a labels layer or of an array in the shape of the image."""
        if hasattr(labels, "data_to_world"):
            return lambda frame: layer_on(self.view, labels, frame)
        if tuple(labels.shape) != self.view.shape:
            raise ValueError(
                f"The labels have shape {tuple(labels.shape)}, the image {self.view.shape}."
            )
        return lambda frame: np.asarray(labels[self.view.index(frame)])

    # -- what is kept --------------------------------------------------------------------------

    def keep(self, object_id: int, frames: Iterable[int], how: Keep = "approved") -> None:
        """Approve or lock an object's masks on frames as they are; nothing writes them any more.

        A frame without a mask is kept as one where the object is not.

        how: "approved" for masks that someone has looked at, "locked" for the rest.
        """
        self._check_object(object_id)
        frames = sorted(set(frames))
        place = self.view.key, object_id
        with self.history.change("Approve" if how == "approved" else "Lock"):
            for frame in frames:
                self._check_frame(frame)
                mask = self._records.shown(place, frame) or ObjectMask.given(np.zeros((1, 1)))
                self._records.kept.set(place, frame, Kept(how, SlicePrompts(mask=mask)))
            self._writer.write(self.view, frames)
        self.objects_changed.emit()

    def release(self, object_id: int, frames: Iterable[int]) -> None:
        """Take back what `keep` did; the masks stay as they are until they are computed again.

        Where an object has nothing else that its masks follow from, a mask that is released
        counts as painted by hand, so that it is not lost.
        """
        self._check_object(object_id)
        place, records = (self.view.key, object_id), self._records
        changed = sorted(set(frames) & records.kept.at(place).keys())
        with self.history.change("Unlock"):
            for frame in changed:
                mask = records.kept.at(place)[frame].prompts.mask
                records.kept.set(place, frame, None)
                if not records.anchors(place):
                    records.say(place, frame, replace(records.said(place, frame), mask=mask))
                    continue
                if mask is not None and records.shown(place, frame) is not mask:
                    records.found.set(place, frame, Found(None if mask.is_empty else mask, ()))
            self._writer.write(self.view, changed)
        self.objects_changed.emit()

    def kept(self, object_id: int) -> Mapping[int, Keep]:
        """Frame -> "approved" or "locked", of the sequence that is shown."""
        kept = self._records.kept.at((self.view.key, object_id))
        return {frame: one.how for frame, one in kept.items()}

    def reject(self, object_id: int, frames: Iterable[int]) -> None:
        """Say that an object's masks on frames are wrong: they and the marks there are cleared.

        `update` or `propagate` finds them again, from the nearest slices before and behind that
        are not rejected: these are locked as they are, unless they are marked or kept already.

        Raises:
            LockedError: the object is locked, or a slice painted or approved.
            NothingToDo: nothing was looked for on a slice, or no other slice shows the object.
        """
        self._check_unlocked(object_id)
        frames = sorted(set(frames))
        name, states = self._records.objects[object_id].name, self.states(object_id)
        place = self.view.key, object_id
        for frame in frames:
            self._check_frame(frame)
            state = states.get(frame)
            if state in ("painted", "approved"):
                raise LockedError(f"{name} is {state} on slice {frame}. Take that back first.")
            if state is None and frame not in self._records.found.at(place):
                raise NothingToDo(f"{name} was not looked for on slice {frame}: Propagate first.")
        with self.history.change("Reject"):
            changed = self._records.reject(place, frames)
            self._writer.write(self.view, changed)
        if frames and not changed:
            raise NothingToDo(
                f"There is no other slice that {name} could be found from on slice {frames[0]}. "
                "Mark it anew instead."
            )
        self.objects_changed.emit()
        self.prompts_replaced.emit()

    def states(self, object_id: int) -> Mapping[int, State]:
        """Frame -> "auto", "prompted", "painted", "approved", "locked" or "rejected".

        Of one object in the sequence that is shown: the frames with a mask, and those where
        something was said. "auto" is what the model has found without a mark on the frame.
        """
        self._check_object(object_id)
        return self._records.states((self.view.key, object_id))

    # -- tracks and lineages -------------------------------------------------------------------

    @property
    def parents(self) -> Mapping[int, int]:
        """Daughter -> parent, of all objects whose parent is known."""
        return dict(sorted(self._records.parents.items()))

    @property
    def no_divisions(self) -> Mapping[int, frozenset[int]]:
        """Object -> frames of proposals of divisions that a person has rejected."""
        return dict(sorted(self._records.no_divisions.items()))

    def life(self, object_id: int) -> Life:
        """The frames of the sequence that is shown on which an object can be.

        A track ends where it divides or was cut, and is then not followed beyond that.
        """
        self._check_object(object_id)
        return self._records.life((self.view.key, object_id))

    def area(self, object_id: int) -> Area | None:
        """The part of the slices (y0, x0, y1, x1) that the model looks at for an object, in the
        sequence that is shown; None: all.
        """
        self._check_object(object_id)
        return self._records.area((self.view.key, object_id), self._source)

    def look_closely(self, object_id: int, times: float | None = CLOSE) -> Area | None:
        """Look for an object in an area about it, at a higher resolution; not outside of it.

        Small objects are followed better so; it takes longer, since every object has its own look
        at each slice. Masks that the model has found are out of date then. The area follows it,
        and goes to where it is marked. From then on it is not decided by itself any more.

        times: how many times as wide as the object, where it is marked; None: all of the slices.

        Returns the area (y0, x0, y1, x1), as `area`: None also where that would be all. Raises
        NothingToDo where it is not known how large the object is; LockedError.
        """
        self._check_unlocked(object_id)
        place = self.view.key, object_id
        boxes = self._looks.extents(place)
        if times is not None and not boxes:
            raise NothingToDo(
                f"It is not known how large {self._name(object_id)} is: mark it on a slice first."
            )
        area = None if times is None else around_boxes(boxes, times, self.view.frame_shape)
        with self.history.change("Look closely" if area else "Look at all of it"):
            self._records.set_look(place, Look(area))
        self.objects_changed.emit()
        return area

    def set_division(self, parent: int, daughters: Iterable[int]) -> None:
        """Say that an object divides into others, which begin after its last mask.

        These become its only daughters. From then on the parent is not followed beyond its last
        mask, nor a daughter to before its first one.

        Raises LineageError: fewer than two daughters, one that begins too early, has no mask, or is
        an ancestor of the parent. LockedError where one of them is locked.
        """
        wanted = sorted(set(daughters))
        if len(wanted) < 2:
            raise LineageError(
                "A division has two daughters or more. To say that one object comes from another, "
                "give it a parent, or join the two if they are one."
            )
        for daughter in wanted:
            self._check_link(daughter, parent)
        with self.history.change("Division"):
            for daughter in divisions(self.parents).get(parent, ()):
                if daughter not in wanted:
                    self.set_parent(daughter, None)
            for daughter in wanted:
                self.set_parent(daughter, parent)
        self.objects_changed.emit()

    def remove_division(self, parent: int) -> None:
        """Say that an object does not divide; it and its daughters stay, and may be followed on.

        Raises LineageError where it has no daughters.
        """
        daughters = divisions(self.parents).get(parent, ())
        if not daughters:
            raise LineageError(f"{self._name(parent)} has no daughters.")
        with self.history.change("Remove division"):
            for daughter in daughters:
                self.set_parent(daughter, None)
        self.objects_changed.emit()

    def set_parent(self, daughter: int, parent: int | None) -> None:
        """Give an object another parent, or none.

        Raises LineageError: the parent has a mask where the daughter begins or later, one of them
        has no mask, or the parent descends from the daughter. LockedError where one is locked.
        """
        before = self._records.parents.get(daughter)
        if parent is None:
            self._check_unlocked(daughter)
        else:
            self._check_link(daughter, parent)
        with self.history.change("Parent"):
            links = {**self._records.parents}
            links.pop(daughter, None)
            self._records.set_parents(links if parent is None else links | {daughter: parent})
            if before is not None and before != parent:
                self._begin(daughter, 0)
                if before not in links.values():
                    self._end(before, None)
            if parent is not None:
                self._begin(daughter, self._span(daughter)[0])
                self._end(parent, self._span(parent)[1])
        self.objects_changed.emit()

    def cut_object(self, object_id: int, frame: int) -> int:
        """End a track before a frame; what it has from there on becomes a new object.

        Masks stay as they are. The last one before the cut, or the first one behind it, becomes a
        prompt where its part has no other; the first one behind it always does. The new object has
        the daughters, and no parent. Neither is followed beyond the cut.

        Returns the new object's id. Raises LineageError where one part would have no mask;
        LockedError where the object is locked.
        """
        self._check_unlocked(object_id)
        first, last = self._span(object_id)
        if not first < frame <= last:
            raise LineageError(
                f"{self._name(object_id)} is on slices {first} to {last}, so it can be cut on "
                f"slices {first + 1} to {last}, not on {frame}."
            )
        records, key = self._records, self.view.key
        with self.history.change("Cut track"):
            new = self.add_object()
            old_place, new_place = (key, object_id), (key, new)
            masks, life = self.masks_of(object_id), records.life(old_place)
            changed = records.move(old_place, new_place, frame)
            if not records.anchors(old_place):
                end = max(at for at in masks if at < frame)
                self._make_prompt(old_place, end, masks[end])
            start = min(at for at in masks if at >= frame)
            if start not in records.anchors(new_place):
                self._make_prompt(new_place, start, masks[start])
            records.set_life(old_place, life._replace(last=frame - 1))
            records.set_life(new_place, life._replace(first=frame))
            look = records.look(old_place) or Look()
            records.set_look(new_place, look._replace(is_settled=True))
            links = self._records.parents.items()
            records.set_parents({d: new if p == object_id else p for d, p in links})
            self._writer.write(self.view, changed)
        self.objects_changed.emit()
        self.prompts_replaced.emit()
        return new

    def end_object(self, object_id: int, frame: int) -> None:
        """Say that a track ends before a frame: what it has from there on is taken away.

        It is not followed beyond that. The last mask before the frame becomes a prompt where the
        object has no other left.

        Raises LineageError where no mask would be left; LockedError where the object is locked, or
        has approved or locked slices from the frame on.
        """
        self._check_unlocked(object_id)
        first, _ = self._span(object_id)
        if first >= frame:
            raise LineageError(
                f"{self._name(object_id)} begins on slice {first}, so it cannot end before slice "
                f"{frame}. Delete it instead."
            )
        records, place = self._records, (self.view.key, object_id)
        for at in sorted(records.kept.at(place)):
            if at >= frame:
                self._check_unlocked(object_id, at)
        with self.history.change("End track"):
            changed = records.drop(place, frame)
            if not records.anchors(place):
                masks = self.masks_of(object_id)
                self._make_prompt(place, max(masks), masks[max(masks)])
            last = records.life(place).last
            self._end(object_id, frame - 1 if last is None else min(last, frame - 1))
            self._writer.write(self.view, changed)
        self.objects_changed.emit()
        self.prompts_replaced.emit()

    def split_object(
        self, object_id: int, frame: int, pieces: Sequence[ArrayLike] | None = None
    ) -> list[int]:
        """Let an object divide on a frame on which its mask is in pieces.

        Each piece becomes a new object, a daughter, with its mask on the frame as a prompt. On the
        frames behind, each pixel of the masks goes to the piece that was nearest on the frame
        before, until `update` or `propagate` finds them anew.

        pieces: (H, W) each, nonzero on a daughter; by default the two largest pieces of the
            mask, which may hang together by a thin neck.

        Returns ids of the daughters. Raises LineageError: there are no two pieces, the object does
        not begin before the frame, or it divides later. LockedError where it is locked, or has
        approved or locked slices from the frame on.
        """
        self._check_unlocked(object_id)
        first, _ = self._span(object_id)
        records, place = self._records, (self.view.key, object_id)
        if first >= frame:
            raise LineageError(
                f"{self._name(object_id)} begins on slice {first}, so it cannot divide on {frame}."
            )
        if object_id in self._records.parents.values():
            raise LineageError(f"{self._name(object_id)} divides already; take that back first.")
        for at in sorted(records.kept.at(place)):
            if at >= frame:
                self._check_unlocked(object_id, at)
        masks = {at: mask for at, mask in self.masks_of(object_id).items() if at >= frame}
        given = self._pieces(masks.get(frame))[:2] if pieces is None else pieces
        parts = [np.asarray(piece) != 0 for piece in given]
        if len(parts) < 2 or not all(part.any() for part in parts):
            raise LineageError(
                f"The mask of {self._name(object_id)} on slice {frame} is in one piece. Mark the "
                "daughters as objects of their own, and then choose them."
            )
        with self.history.change("Division"):
            ends = [at for at in self.masks_of(object_id) if at < frame]
            if not {at for at in records.anchors(place) if at < frame}:
                self._make_prompt(place, ends[-1], self.masks_of(object_id)[ends[-1]])
            changed = records.drop(place, frame)
            ids = [self.add_object() for _ in parts]
            for new, part in zip(ids, parts, strict=True):
                self._make_prompt((self.view.key, new), frame, ObjectMask.given(part))
                records.set_look((self.view.key, new), Look())
            for at, mask in masks.items():
                if at == frame:
                    continue
                parts = split_mask(mask.on_frame(self.view.frame_shape), parts)
                for new, part in zip(ids, parts, strict=True):
                    found = ObjectMask.given(part) if part.any() else None
                    records.found.set((self.view.key, new), at, Found(found, ()))
            self._writer.write(self.view, sorted({*changed, frame}))
            self.set_division(object_id, ids)
        self.prompts_replaced.emit()
        return ids

    def join_objects(self, one: int, other: int) -> int:
        """Make two objects one track: the later one goes on with what the earlier one was.

        Returns the id that is left, that of the earlier one. Raises LineageError: both have a mask
        on some frame (`merge_objects` makes one mask of both), the earlier one divides into others,
        or the later one has another parent. LockedError where one of them is locked.
        """
        for object_id in (one, other):
            self._check_unlocked(object_id)
        if one == other:
            raise LineageError("An object cannot be joined to itself.")
        earlier, later = sorted((one, other), key=lambda i: self._span(i)[0])
        both = sorted({*self.masks_of(earlier)} & {*self.masks_of(later)})
        if both or self._span(earlier)[1] > self._span(later)[0]:
            where = both[0] if both else self._span(later)[0]
            raise LineageError(
                f"{self._name(earlier)} and {self._name(later)} are both there on slice {where}, "
                "so they are not one track. Cut one of them there, or use Merge to make one mask "
                "of both."
            )
        daughters = divisions(self.parents).get(earlier, ())
        if set(daughters) - {later}:
            raise LineageError(
                f"{self._name(earlier)} divides, so nothing can go on with it. Take the division "
                "back first."
            )
        if self._records.parents.get(later) not in (None, earlier):
            parent = self._name(self._records.parents[later])
            raise LineageError(
                f"{self._name(later)} is a daughter of {parent}. Take that back first."
            )
        with self.history.change("Join tracks"):
            self.merge_objects(earlier, later)
        return earlier

    def reject_division(self, object_id: int, frame: int) -> None:
        """Say that an object does not divide on a frame, so that it is not proposed again."""
        self._check_object(object_id)
        self._check_frame(frame)
        with self.history.change("Reject division"):
            known = self._records.no_divisions.get(object_id, frozenset())
            self._records.set_no_divisions(object_id, known | {frame})
        self.objects_changed.emit()

    def _check_link(self, daughter: int, parent: int) -> None:
        """Whether one object can be the parent of another."""
        for object_id in (daughter, parent):
            self._check_unlocked(object_id)
        if daughter == parent:
            raise LineageError("An object cannot be its own parent.")
        if daughter in ancestors(self._records.parents, parent):
            raise LineageError(
                f"{self._name(parent)} descends from {self._name(daughter)}, so it cannot be its "
                "parent."
            )
        begin, end = self._span(daughter)[0], self._span(parent)[1]
        if begin <= end:
            raise LineageError(
                f"{self._name(daughter)} begins on slice {begin}, but {self._name(parent)} is "
                f"still there on slice {end}: a daughter begins when its parent has ended. Cut "
                f"{self._name(parent)} on slice {begin} first."
            )

    def _span(self, object_id: int) -> tuple[int, int]:
        """The first and the last frame with a mask, in the sequence that is shown."""
        masks = self.masks_of(object_id)
        if not masks:
            raise LineageError(
                f"{self._name(object_id)} has no mask here yet: mark it and propagate first."
            )
        return min(masks), max(masks)

    def _name(self, object_id: int) -> str:
        self._check_object(object_id)
        return self._records.objects[object_id].name

    def _begin(self, object_id: int, first: int) -> None:
        """From which frame on an object can be."""
        place = self.view.key, object_id
        self._records.set_life(place, self._records.life(place)._replace(first=first))

    def _end(self, object_id: int, last: int | None) -> None:
        """To which frame an object can be."""
        place = self.view.key, object_id
        self._records.set_life(place, self._records.life(place)._replace(last=last))

    def _make_prompt(self, place: Place, frame: int, mask: ObjectMask) -> None:
        """Let a mask be a prompt, as if it was painted."""
        self._records.prompts.set(
            place, frame, replace(self._records.said(place, frame), mask=mask)
        )

    def _pieces(self, mask: ObjectMask | None) -> list[NDArray[np.bool_]]:
        """The pieces of a mask, (H, W) each, the largest first."""
        if mask is None:
            return []
        return [piece.on_frame(self.view.frame_shape) for piece in mask.pieces]

    # -- history -------------------------------------------------------------------------------

    def undo(self) -> str | None:
        """Take the last change back. Returns what it was; None if there is nothing."""
        return self._restored(self.history.undo())

    def redo(self) -> str | None:
        """Make the change again that was last taken back. Returns what it is, or None."""
        return self._restored(self.history.redo())

    def writing_first(self, frame: int) -> AbstractContextManager[None]:
        """What changes inside is written to `labels` on one frame of the sequence that is shown.

        The other frames are left to `write_rest`, for a window that must not stand still.
        """
        return self._writer.first(self.view.key, frame)

    def write_rest(self, seconds: float = math.inf, at: int | None = None) -> bool:
        """Write what `writing_first` has left unwritten. Returns whether nothing is left.

        seconds: leave the others to the next call after so long, and after one at least.
        at: a frame of the sequence that is shown, which goes first.
        """
        return self._writer.write_rest(seconds, None if at is None else (self.view.key, at))

    # -- saving --------------------------------------------------------------------------------

    def snapshot(self) -> SessionState:
        """All there is to save, but for the labels and the history.

        It takes no time and shares its values with the session, which never change: it can be
        taken and written in another thread while the session goes on.
        """
        with self.history.lock:
            return SessionState(
                self.objects,
                self._records.snapshot(self._source),
                self.view.key,
                self.window,
                self.end_after,
                self.memory,
                self._last_id,
                self.parents,
                self.no_divisions,
                self.memory_tokens,
                self.closely,
                self.seconds,
            )

    def restore(self, state: SessionState, trust: bool = True) -> None:
        """Take over a saved state in place of the present one. The history begins anew.

        What the labels hold under the ids of its objects is taken as written from this state.

        trust: take masks that were up to date as up to date now; False where image or model are
            others than they were.
        """
        self._writer.clear()
        self.window, self.end_after, self.memory = state.window, state.end_after, state.memory
        self.memory_tokens, self.closely = state.memory_tokens, state.closely
        self._last_id = state.last_id
        self._seconds = dict(state.seconds)
        self._writer.output.claim(state.objects)
        with self.history.lock:
            self._records.load(
                state.objects,
                state.sequences,
                self._source,
                trust,
                state.parents,
                state.no_divisions,
            )
        frames: dict[SequenceKey, set[int]] = defaultdict(set)
        for key, object_id in state.sequences:
            frames[key].update(self._records.masks((key, object_id)))
        for key, changed in frames.items():
            self._writer.write(self.view_of(key), sorted(changed), claimed=state.objects)
        self.history.clear()
        self.view = self.view_of(state.shown)
        self.objects_changed.emit()
        self.prompts_replaced.emit()

    # -- work in another thread ----------------------------------------------------------------

    def branch(self) -> Session:
        """A session of its own that goes on from here, for work that takes long in another thread.

        `take_branch` takes over what becomes of it.
        """
        other = Session(
            self.image,
            self.model,
            window=self.window,
            end_after=self.end_after,
            memory=self.memory,
            memory_tokens=self.memory_tokens,
            closely=self.closely,
            **self._how,
        )
        with self.history.lock:
            self._branched[other] = self._records.cells()
        for (number, place, frame), value in self._branched[other].items():
            other._records.tables[number].put(place, frame, value)
        other._last_id = self._last_id
        for key in self._views:  # it must not take an object that is marked elsewhere for a new one
            other.view_of(key)
        other.show(self.view.key)
        return other

    def take_branch(self, branch: Session, label: str) -> list[int]:
        """Take over what has changed in a branch, in one step of undo. Returns its new objects.

        What has changed here meanwhile is kept, also an object that is gone there. A new object
        whose id is taken gets another one.
        label: of the step, for people.
        """
        before = self._branched.pop(branch)
        after, now, records = branch._records.cells(), self._records.cells(), self._records
        known, here = {records.object_of(cell) for cell in before}, self.objects.keys()
        changed_here = [c for c in before.keys() | now.keys() if now.get(c) is not before.get(c)]
        kept = {records.object_of(cell) for cell in changed_here} - branch.objects.keys()
        own = {new: new for new in branch.objects if new not in known}
        self._last_id = max(self._last_id, branch._last_id)
        for new in own.keys() & here:
            self._last_id += 1
            own[new] = self._last_id
        frames: dict[SequenceKey, set[int]] = defaultdict(set)
        with self.history.change(label):
            for old in before.keys() | after.keys():
                value, object_id = after.get(old), records.object_of(old)
                cell = records.with_object(old, own.get(object_id, object_id))
                is_same = value is before.get(old) or now.get(cell) is not before.get(old)
                is_lost = object_id not in own and object_id not in here
                if is_same or is_lost or object_id in kept:
                    continue
                number, place, frame = cell
                if isinstance(value, int):  # a parent
                    value = own.get(value, value)
                records.tables[number].set(place, frame, value)
                if isinstance(place, tuple):
                    frames[place[0]].add(frame)
            links = records.parents.items()
            records.set_parents({d: p for d, p in links if {d, p} <= self.objects.keys()})
            for key, changed in frames.items():
                self._writer.write(self.view_of(key), sorted(changed))
        self.objects_changed.emit()
        self.prompts_replaced.emit()
        return sorted(set(own.values()) & self.objects.keys())

    # -- masks ---------------------------------------------------------------------------------

    @property
    def labels(self) -> Any:
        """Object ids in the shape of the image, without colours; 0 is background.

        Where objects overlap, what a person keeps goes first, then the larger logit.
        """
        self.write_rest()
        return self._writer.output.labels

    def approved_labels(self) -> NDArray[np.int32]:
        """As `labels`, but only the masks that are approved; those of others are left out."""
        return self._writer.approved()

    def write_to(
        self, labels: Any = None, overwrite: bool = False, others: Collection[int] | None = None
    ) -> None:
        """Write masks to another array; the present one gets back what it held before.

        Args:
            labels: integers in the shape of the image, such as a zarr array on disk; by default a
                new array. It is read once, for the ids in it, which belong to others.
            overwrite: whether masks cover what belongs to others; it comes back where they go.
            others: what `ids_in` says of a large array, which is not read then.

        Raises ValueError where the array cannot hold the masks; nothing has changed then.
        """
        output = Output(self.view.shape, labels, overwrite, others)
        largest = max(self.objects, default=0)
        if largest > output.largest_id:
            raise ValueError(
                f"The labels are {output.labels.dtype}, which hold ids up to {output.largest_id}, "
                f"not {largest}. Write to labels of a larger type."
            )
        taken = sorted(output.others & self.objects.keys())
        if taken:
            raise ValueError(
                f"The labels hold something under the id {taken[0]} already, which is the id of "
                f"{self.objects[taken[0]].name}. Write to other labels."
            )
        self._writer.write_to(output)

    @property
    def overwrite(self) -> bool:
        """Whether masks cover what belongs to others in `labels`; it comes back where they go."""
        return self._writer.overwrite

    @overwrite.setter
    def overwrite(self, wanted: bool) -> None:
        self._writer.overwrite = wanted

    def labels_of(self, object_id: int, labels: Any = None) -> Any:
        """One object alone, whole also where others cover it, kept up to date from now on.

        labels: where to write it, as for `write_to`; by default a new array at the first call.
        Returns an array in the shape of the image: the object's id, and 0 elsewhere.
        """
        self._check_object(object_id)
        return self._writer.alone(object_id, labels)

    def drop_labels_of(self, object_id: int) -> None:
        """Leave the array of `labels_of` as it is from now on."""
        self._writer.leave_alone(object_id)

    @property
    def masks(self) -> Mapping[int, Mapping[int, ObjectMask]]:
        """Object -> frame -> mask, of the sequence that is shown."""
        found = {object_id: self.masks_of(object_id) for object_id in self.objects}
        return {object_id: masks for object_id, masks in found.items() if masks}

    def masks_of(self, object_id: int) -> Mapping[int, ObjectMask]:
        """Frame -> mask of one object, whole, in the sequence that is shown."""
        return self._records.masks((self.view.key, object_id))

    def looked_at(self, object_id: int) -> frozenset[int]:
        """Frames that the model has looked for an object on, in the sequence that is shown."""
        self._check_object(object_id)
        return frozenset(self._records.found.at((self.view.key, object_id)))

    def stale(self, object_id: int) -> list[int]:
        """Frames whose masks follow from prompts, a window or a model that are others by now."""
        return self._records.stale((self.view.key, object_id), self._source)

    def preview(self, frame: int) -> Step:
        """Compute and show the masks of objects that have prompts on a frame and are not up to
        date there. Returns them; where all are up to date, all of them.
        """
        while True:  # at most on whole slices, closely, and on whole slices again
            task = self.preview_task(frame)
            step = self.compute_preview(task, frame)
            if not self.accept(task, step):
                return step

    def propagate(
        self,
        direction: Direction = "both",
        objects: Iterable[int] | None = None,
        start: int | None = None,
        stop: int | None = None,
        to: int | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> None:
        """Follow objects through the sequence. Only what is not up to date is computed.

        Args:
            direction: "forward" leaves out what lies before the first slice with prompts,
                "backward" what lies behind the last.
            objects: ids; by default all that have prompts. Locked ones are left out.
            start, stop: first and last slice wanted, both included; by default all.
            to: only to this slice, from the slice with prompts that is nearest to it.
            progress: called after every slice.

        Raises NothingToDo without prompts; what `sam2_engine.load_model` raises.
        """
        for step in self.propagation(direction, objects, start, stop, to):
            if progress is not None:
                progress(step)

    def propagation(
        self,
        direction: Direction = "both",
        objects: Iterable[int] | None = None,
        start: int | None = None,
        stop: int | None = None,
        to: int | None = None,
    ) -> Iterator[Step]:
        """As `propagate`, one slice at a time; each is shown as it comes.

        Close the generator to stop; what has been found is kept.
        """
        chosen = None if objects is None else list(objects)
        task = self.task(chosen, direction, start, stop, to)
        if self._decide_all(chosen):
            task = self.task(chosen, direction, start, stop, to)
        return self._carry_out(task)

    def update(
        self,
        objects: Iterable[int] | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> None:
        """Compute the masks anew that are out of date, and no others.

        After a correction these are the slices up to the next ones with prompts, or to the end.
        """
        chosen = None if objects is None else list(objects)
        self._decide_all(chosen)
        for step in self._carry_out(self.task(chosen, only_stale=True)):
            if progress is not None:
                progress(step)

    def check_both_sides(
        self,
        objects: Iterable[int] | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> None:
        """Follow objects to slices between two marked ones from the farther one, too, and compare.

        Masks stay as they are; `other_sides` then says where both ways disagree, and doubt counts
        it. It takes about as long as finding the masks between marked slices did. What is out of
        date, or compared already, is left out.

        objects: ids; by default all that have masks between marked slices.

        Raises NothingToDo where no mask lies between two marked slices.
        """
        for step in self._carry_out(self.check_task(objects)):
            if progress is not None:
                progress(step)

    def other_sides(self, object_id: int) -> Mapping[int, OtherSide]:
        """Frame -> how a mask agrees with that from the other side, where `check_both_sides` saw.

        Of the sequence that is shown. A mask that is found anew has to be compared anew.
        """
        self._check_object(object_id)
        found = self._records.found.at((self.view.key, object_id)).items()
        return {f: self._other_sides[one] for f, one in found if one in self._other_sides}

    # The above in parts, so that the model can work in another thread: `task` and `accept` are
    # quick and belong to the thread that sets prompts; `compute_...` take long and touch nothing
    # but the task, but only one may run at a time.

    def task(
        self,
        objects: Iterable[int] | None = None,
        direction: Direction = "both",
        start: int | None = None,
        stop: int | None = None,
        to: int | None = None,
        only_stale: bool = False,
    ) -> Task:
        """What there is to compute now; arguments as for `propagate`.

        only_stale: leave out frames that nothing was ever computed on.
        """
        if direction not in ("both", "forward", "backward"):
            raise ValueError(f"direction must be both, forward or backward, not {direction!r}.")
        first = 0 if start is None else int(start)
        last = len(self.view) - 1 if stop is None else int(stop)
        for frame in (first, last, first if to is None else to):
            self._check_frame(frame)
        chosen = set(self.objects) if objects is None else set(objects)
        for object_id in chosen:
            self._check_object(object_id)
        anchors, wanted, areas = {}, {}, {}
        for object_id, info in self.objects.items():
            place = self.view.key, object_id
            own = self._records.anchors(place)
            if not own:
                continue
            anchors[object_id] = own
            area = self._records.area(place, self._source)
            if area is not None:
                areas[object_id] = area
            if object_id not in chosen or info.locked:
                continue
            marked = origins(own)
            low = max(first, marked[0]) if direction == "forward" else first
            high = min(last, marked[-1]) if direction == "backward" else last
            life = self._records.life(place)
            low = max(low, life.first)
            high = high if life.last is None else min(high, life.last)
            if to is not None:
                near = min(marked, key=lambda frame: (abs(frame - to), frame))
                low, high = max(low, min(near, to)), min(high, max(near, to))
            wanted[object_id] = self._records.wanted(
                place, self._source, range(low, high + 1), only_stale
            )
        return Task(self.view, self._source, anchors, wanted, areas)

    def preview_task(self, frame: int) -> Task:
        """What there is to compute for `compute_preview` on a frame: objects that are up to date
        there are left out, unless all are.

        Objects of which it is yet to be decided are looked at closely, if it is known how large
        they are; `accept` sees whether that goes well.
        """
        self._check_frame(frame)
        task, key, areas, looks = self.task(objects=()), self.view.key, {}, self._looks
        here = [i for i, own in task.anchors.items() if frame in own]
        tried = [i for i in here if looks.is_undecided((key, i))]
        for object_id in tried:
            area = looks.area_to_try((key, object_id))
            if area is not None:
                areas[object_id] = area
        free = [i for i in here if not self._records.objects[i].locked]
        wanted = [i for i in free if self._records.wanted((key, i), self._source, [frame], False)]
        chosen = [i for i in here if i in tried or i in wanted] or here
        anchors = {i: task.anchors[i] for i in chosen}
        return replace(task, anchors=anchors, areas={**task.areas, **areas})

    def undecided_frames(self, objects: Iterable[int] | None = None) -> list[int]:
        """Frames whose preview decides whether an object is looked at closely, where none has yet.

        objects: ids; by default all. A preview that finds nothing decides nothing.
        """
        chosen, looks = self.objects if objects is None else objects, self._looks
        places = [place for i in chosen if looks.is_undecided(place := (self.view.key, i))]
        return sorted({frame for place in places for frame in self._records.anchors(place)})

    def check_task(self, objects: Iterable[int] | None = None) -> Task:
        """What there is to compare now, for `check_both_sides`; raises as that does."""
        task = self.task(objects)
        wanted, is_between = {}, False
        for object_id in task.wanted:
            own, known = task.anchors[object_id], self.other_sides(object_id)
            marked = origins(own)
            found = self.looked_at(object_id) - set(self.stale(object_id)) - own.keys()
            between = {frame for frame in found if marked[0] < frame < marked[-1]}
            is_between = is_between or bool(between)
            wanted[object_id] = frozenset(between - known.keys())
        if not is_between:
            raise NothingToDo(
                "No object has masks between two slices that are marked: mark it on two slices or "
                "more and propagate first."
            )
        return replace(task, wanted=wanted, is_check=True)

    def compute_preview(self, task: Task, frame: int) -> Step:
        """The masks of all objects with prompts on a frame, from these prompts alone."""
        return self._engine.preview(task, frame)

    def compute_propagation(self, task: Task) -> Iterator[Step]:
        """The masks of all objects on the frames that are wanted."""
        if not task.wanted:
            raise NothingToDo(
                "No object has a prompt yet: click on an object or draw a box around it first."
            )
        return self._engine.propagate(task)

    def encode(self, task: Task, frame: int) -> None:
        """Look at a frame ahead of the first click on it. Takes long, as `compute_...`."""
        self._engine.encode(task, frame)

    def is_encoded(self, frame: int) -> bool:
        """Whether a click on a frame would be answered at once."""
        return self._engine.is_encoded(self.task(objects=()), frame)

    def accept(self, task: Task, step: Step) -> bool:
        """Take over what was found, except where prompts have changed since it was asked for.

        Returns whether a preview is to be computed once more, of a new `preview_task`: a small
        object is to be looked at closely, or one that was is not so small.
        """
        if task.is_check:
            self._compare(task, step)
            return False
        key, again, looks = task.view.key, False, self._looks
        is_new_look = step.is_preview and task.source == self._source
        history = self.history
        with history.following() if step.is_preview else history.change("Propagate", task):
            is_new = False
            for object_id, mask in step.masks.items():
                place, info = (key, object_id), self._records.objects.get(object_id)
                if info is None or info.locked or not self._records.life(place).has(step.frame):
                    continue
                now = self._records.anchors(place)
                asked = task.anchors[object_id].get(step.frame)
                if not now or asked is not now.get(step.frame):
                    continue
                if asked is not None and asked.mask is not None:
                    if is_new_look and looks.is_undecided(place):
                        looks.begin(place)
                    continue  # a person's own mask is the answer
                if step.is_preview and not looks.is_close_enough(task, object_id, step):
                    again |= bool(self._records.wanted(place, self._source, [step.frame], False))
                    continue
                found = Found(mask, task.basis(object_id, step.frame))
                known = self._records.found.get(place, step.frame)
                if (
                    known is not None
                    and known.basis == REJECTED
                    and found.basis
                    != basis(task.source, now, step.frame, self._records.area(place, task.source))
                ):
                    continue  # it was rejected meanwhile
                if known is None or known.basis != found.basis:  # not again along with others
                    if step.is_preview and self._is_current(place, step.frame):
                        continue
                    self._records.found.set(place, step.frame, found)
                    is_new = True
                if is_new_look and mask is not None and looks.is_undecided(place):
                    again |= looks.begin(place)
            if is_new:
                self._writer.write(task.view, [step.frame])
        return again

    # -- helpers -------------------------------------------------------------------------------

    def _decide_all(self, objects: Iterable[int] | None) -> bool:
        """Decide it of all objects that begin, as far as can be; masks stay as they are.

        Returns whether there are any.
        """
        frames, found = self.undecided_frames(objects), self._records.found
        if not frames:
            return False
        places = [(self.view.key, object_id) for object_id in self.objects]
        before = {(place, f): found.get(place, f) for place in places for f in frames}
        with self.history.following(), self.writing_first(-1):
            try:
                for frame in frames:
                    self.preview(frame)
            finally:
                for (place, frame), one in before.items():
                    found.set(place, frame, one)
        self.write_rest()
        return True

    def _is_current(self, place: Place, frame: int) -> bool:
        return frame in self._records.found.at(place) and frame not in self._records.stale(
            place, self._source
        )

    def _compare(self, task: Task, step: Step) -> None:
        """Keep how masks agree with those from the other side, unless they are others by now."""
        for object_id, mask in step.masks.items():
            known = self._records.found.get((task.view.key, object_id), step.frame)
            if known is not None and known.basis == task.basis(object_id, step.frame):
                self._other_sides[known] = OtherSide.of(known.mask, mask)
        self._comparisons += 1
        self.objects_changed.emit()

    def _carry_out(self, task: Task) -> Iterator[Step]:
        for step in self.compute_propagation(task):
            self.accept(task, step)
            yield step

    def _check_object(self, object_id: int) -> None:
        if object_id not in self._records.objects:
            raise ValueError(f"There is no object {object_id}; add it with add_object first.")

    def _check_frame(self, frame: int) -> None:
        if not 0 <= frame < len(self.view):
            raise ValueError(f"There is no slice {frame}; there are {len(self.view)}, from 0.")

    def _check_unlocked(self, object_id: int, frame: int | None = None) -> None:
        self._check_object(object_id)
        info = self._records.objects[object_id]
        if info.locked:
            raise LockedError(f"{info.name} is locked. Unlock it first.")
        if frame is not None:
            self._check_frame(frame)
            kept = self._records.kept.get((self.view.key, object_id), frame)
            if kept is not None:
                raise LockedError(f"{info.name} is {kept.how} on slice {frame}. Unlock it first.")

    def _check_alive(self, object_id: int, frame: int) -> None:
        if not self._records.life((self.view.key, object_id)).has(frame):
            raise LockedError(
                f"The track of {self._name(object_id)} does not reach to slice {frame}: it divides "
                "or was cut. Mark the object that is there, or take that back first."
            )

    def _said(self, object_id: int, frame: int) -> SlicePrompts:
        return self._records.said((self.view.key, object_id), frame)

    def _say(
        self, object_id: int, frame: int, said: SlicePrompts, claimed: Iterable[int] = ()
    ) -> None:
        place, looks = (self.view.key, object_id), self._looks
        if looks.begins_anew(place, frame, said):
            self._records.set_look(place, None)
        changed = self._records.say(place, frame, said)
        if said.mask is not None and self.model.is_loaded and looks.is_undecided(place):
            looks.begin(place)
        self._writer.write(self.view, changed, claimed)

    @property
    def _looks(self) -> Looks:
        return Looks(self._records, self._views, self._source, self.closely)

    @property
    def _source(self) -> Source:
        source = self._asked_source()
        if source != self._last_source:
            self._last_source = source
        return self._last_source  # the same object: it is compared often, and then quickly

    def _asked_source(self) -> Source:
        return Source(self.model, self.window, self.end_after, self.memory, self.memory_tokens)

    def _restored(self, change: Change | None) -> str | None:
        """Show what undo or redo has changed."""
        if change is None:
            return None
        frames: dict[SequenceKey, dict[int, None]] = defaultdict(dict)
        for cells, place, number in change.cells:
            if self._records.is_lineage(cells):
                continue
            if self._records.is_object(cells):
                for key, covered in self._writer.frames_of(number, only_covered=True).items():
                    frames[key].update(dict.fromkeys(covered))
            else:
                frames[place[0]][number] = None  # type: ignore[index]
        for key, changed in frames.items():
            self._writer.write(self.view_of(key), changed)
        self.objects_changed.emit()
        self.prompts_replaced.emit()
        return change.label
