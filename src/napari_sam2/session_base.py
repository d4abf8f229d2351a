"""What a session has: objects, sequences, and records of what is said and found of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from psygnal import Signal

from napari_sam2.areas import Area
from napari_sam2.findings import Findings
from napari_sam2.given import whole_number
from napari_sam2.history import History
from napari_sam2.label_ids import MAX_ID
from napari_sam2.label_writer import LabelWriter
from napari_sam2.lazy_model import LazyModel
from napari_sam2.lineage import Parents, merged
from napari_sam2.looks import Looks
from napari_sam2.output import Output
from napari_sam2.records import Cell, Records
from napari_sam2.sequence_view import Channels, SequenceKey, SequenceView, Windows
from napari_sam2.slice_data import (
    Life,
    ObjectFacts,
    ObjectInfo,
    ObjectMask,
    SlicePrompts,
    State,
)
from napari_sam2.tasks import Engine, Source
from napari_sam2.windows import window_for

if TYPE_CHECKING:
    from sam2_engine.memory import MemorySelection, MemoryTokens
    from sam2_engine.model import SAM2

EDITS = {"name": "Rename", "colour": "Colour", "hidden": "Hide", "locked": "Lock"}
"""What can be changed of an object, and what that is called."""


def default_name(object_id: int) -> str:
    """Of an object that nobody has named."""
    return f"Object {object_id}"


def _check_name(given: Any) -> None:
    if not isinstance(given, str):
        raise ValueError(f"The name of an object is a text, not {given!r}.")


def _colour(given: Any) -> tuple[float, float, float]:
    """RGB, 0 to 1; raises ValueError where it is something else."""
    parts = () if isinstance(given, str) else tuple(given)
    if len(parts) != 3 or not all(0 <= part <= 1 for part in parts):
        raise ValueError(
            f"A colour is three numbers from 0 to 1, (red, green, blue), not {given!r}."
        )
    red, green, blue = (float(part) for part in parts)
    return red, green, blue


class NothingToDo(ValueError):
    """There is nothing to start from. The message says what is missing."""


class LockedError(ValueError):
    """Something is locked that would have to change. The message says what to unlock."""


class SessionBase:
    """Objects of one image and what is known of them. `Session` changes their masks."""

    masks_changed = Signal(tuple)
    """The index of the slice of `labels` that has changed."""
    objects_changed = Signal()
    """An object, or what is known of it, has changed."""
    prompts_changed = Signal()
    """What is said of objects on slices is other than before."""

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
            image: a napari image layer, an array (..., y, x), a `Volume` of `read_volume`, or a
                list of up to three of one kind that are seen in colours; read frame by frame.
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
            memory_tokens: "near" looks at a memory far from its object coarsely, which is quicker,
                the more so with SAM 2.1 and several objects, and changes masks a little; "pooled"
                looks at all of it so.
            closely: whether small objects are looked at closely by themselves: as by
                `look_closely`, from the first mark on. A model of up to 512 pixels does so with
                objects less than a seventh as wide as a slice, a larger one only where a slice is
                larger than its input and an object less than 12 pixels wide in that. It is decided
                once for an object, by `preview`, `propagate` or `update`, before it is followed;
                where its mask then does not fit in the area, it is looked at on whole slices. What
                `look_closely` was told goes first.

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
        self._device = device
        self.model = model  # type: ignore[assignment]
        self.end_after = end_after
        """Change it at any time, as `model`."""
        self.memory: MemorySelection = memory
        self.memory_tokens: MemoryTokens = memory_tokens
        """Change it at any time, as `model`."""
        self.closely = closely
        """Change it at any time; objects of which it is decided stay as they are."""
        self.history = History()
        self._views = {self.view.key: self.view}
        self._records = Records(self.history, lambda key: self.view_of(key).frame_shape)
        self._findings = Findings(self._records)
        output = Output(self.view.shape, labels, overwrite)
        self._writer = LabelWriter(self._records, self._views, output, self.masks_changed.emit)
        self._last_id = 0
        self._seconds: dict[int, float] = {}
        self._objects: tuple[int, Mapping[int, ObjectInfo]] = -1, {}
        self._facts: dict[int, tuple[Hashable, ObjectFacts]] = {}
        self._branched: WeakKeyDictionary[SessionBase, dict[Cell, Any]] = WeakKeyDictionary()
        self._last_source = self._asked_source()
        self._engine = Engine()

    @property
    def model(self) -> LazyModel:
        """Change it at any time; masks that follow from another one are out of date."""
        return self._model

    @model.setter
    def model(self, model: LazyModel | SAM2 | str) -> None:
        self._model = model if isinstance(model, LazyModel) else LazyModel(model, self._device)

    # -- objects -------------------------------------------------------------------------------

    @property
    def objects(self) -> Mapping[int, ObjectInfo]:
        """All objects by id."""
        revision = self._records.objects_revision
        if self._objects[0] != revision:
            self._objects = revision, dict(sorted(self._records.objects.items()))
        return self._objects[1]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is said or found of any object, in any sequence."""
        return not self._records.places

    @property
    def untouched_objects(self) -> list[int]:
        """Ids of objects without prompts that have no name of their own, nor anything else."""
        prompted, objects = self.prompted_objects, self.objects
        new = {i: ObjectInfo(default_name(i)) for i in objects if i not in prompted}
        return [i for i, info in new.items() if objects[i] == info]

    def add_object(self, name: str = "", object_id: int | None = None) -> int:
        """A new object without prompts. Returns its id.

        object_id: from 1 to `MAX_ID`; by default one that never was, neither here nor in the
            labels. With the id of something that the labels hold already, its masks take the place
            of that, slice by slice.

        Raises ValueError where the id cannot be used.
        """
        _check_name(name)
        object_id = self._new_id(self._last_id) if object_id is None else object_id
        self._check_new_id(object_id)
        object_id = int(object_id)
        self._last_id = max(self._last_id, object_id)
        with self.history.change("New object"):
            self._records.set_object(object_id, ObjectInfo(name or default_name(object_id)))
        self.objects_changed.emit()
        return object_id

    def edit_object(self, object_id: int, **changes: Any) -> None:
        """Change an object's name, colour (RGB, 0 to 1), or whether it is hidden or locked.

        Raises ValueError for another colour.
        """
        self._check_object(object_id)
        if unknown := sorted(changes.keys() - EDITS.keys()):
            raise ValueError(f"An object has no {unknown[0]}; it has {', '.join(EDITS)}.")
        _check_name(changes.get("name", ""))
        if changes.get("colour") is not None:
            changes["colour"] = _colour(changes["colour"])
        label = next((EDITS[name] for name in changes), "Edit object")
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
        return place, self._source, self._findings.comparisons, self._records.revision(place)

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
        # Another one: another thread may be saving the present one.
        self._seconds = self._seconds | {object_id: self._seconds.get(object_id, 0.0) + seconds}

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
        self._tell_of_prompts()

    def merge_objects(self, into: int, other: int) -> None:
        """Make two objects one: prompts and masks of the other are added to the first.

        Links are dropped that cannot be any more, as that of the other daughter where a parent goes
        on with one.

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
            self._records.set_parents(
                self._possible(merged(self._records.parents, into, other), into)
            )
            self._records.set_no_divisions(other, frozenset())
        self._tell_of_prompts()

    def _tell_of_prompts(self) -> None:
        self.objects_changed.emit()
        self.prompts_changed.emit()

    def _possible(self, parents: Parents, object_id: int) -> dict[int, int]:
        """Links without those of an object where the parent is still there as a daughter begins."""

        def is_possible(daughter: int, parent: int) -> bool:
            begins, ends = self.masks_of(daughter), self.masks_of(parent)
            return not begins or not ends or min(begins) > max(ends)

        links = parents.items()
        return {d: p for d, p in links if object_id not in (d, p) or is_possible(d, p)}

    # -- sequences -----------------------------------------------------------------------------

    def show(self, key: SequenceKey) -> None:
        """Work on another sequence of the same image; the prompts of the others are kept."""
        if key != self.view.key:
            self.view = self.view_of(key)
            self.objects_changed.emit()

    def view_of(self, key: SequenceKey) -> SequenceView:
        """A sequence of the image, as frames."""
        if not isinstance(key, SequenceKey):
            raise ValueError(
                f"Slices are chosen by SequenceKey.along(axis, ndim={len(self.view.shape)}), not "
                f"by {key!r}."
            )
        if key not in self._views:
            self._views[key] = self._make_view(key)
        return self._views[key]

    # -- what is known -------------------------------------------------------------------------

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

    @property
    def masks(self) -> Mapping[int, Mapping[int, ObjectMask]]:
        """Object -> frame -> mask, of the sequence that is shown."""
        found = {object_id: self.masks_of(object_id) for object_id in self.objects}
        return {object_id: masks for object_id, masks in found.items() if masks}

    def masks_of(self, object_id: int, key: SequenceKey | None = None) -> Mapping[int, ObjectMask]:
        """Frame -> mask of one object, whole, in the sequence that is shown or another one."""
        return self._records.masks((key or self.view.key, object_id))

    def looked_at(self, object_id: int) -> frozenset[int]:
        """Frames that the model has looked for an object on, in the sequence that is shown."""
        self._check_object(object_id)
        return frozenset(self._records.found.at((self.view.key, object_id)))

    def stale(self, object_id: int, key: SequenceKey | None = None) -> list[int]:
        """Frames whose masks follow from prompts, a window or a model that are others by now, in
        the sequence that is shown or another one.
        """
        return self._records.stale((key or self.view.key, object_id), self._source)

    @property
    def unread(self) -> Mapping[int, str]:
        """Frame -> why it could not be read, in a sentence: those that the last run through the
        sequence that is shown has passed over. They have no new masks; the next one tries again.
        """
        return dict(self._findings.unread.get(self.view.key, {}))

    def states(self, object_id: int) -> Mapping[int, State]:
        """Frame -> "auto", "prompted", "painted", "approved", "locked" or "rejected".

        Of one object in the sequence that is shown: the frames with a mask, and those where
        something was said. "auto" is what the model has found without a mark on the frame.
        """
        self._check_object(object_id)
        return self._records.states((self.view.key, object_id))

    def life(self, object_id: int) -> Life:
        """The frames of the sequence that is shown on which an object can be.

        `set_life` says so. A track ends where it divides or was cut, too. It is not followed
        beyond that.
        """
        self._check_object(object_id)
        return self._records.life((self.view.key, object_id))

    def area(self, object_id: int) -> Area | None:
        """The part of the slices (y0, x0, y1, x1) that the model looks at for an object, in the
        sequence that is shown; None: all.
        """
        self._check_object(object_id)
        return self._records.area((self.view.key, object_id), self._source)

    # -- helpers -------------------------------------------------------------------------------

    def _check_object(self, object_id: int) -> None:
        if whole_number(object_id, "The id of an object") not in self._records.objects:
            raise ValueError(f"There is no object {object_id}; add it with add_object first.")

    def _new_id(self, last_id: int) -> int:
        """The next id after the last one that is in no labels of others either; where the labels'
        type ends before, the first one between these.
        """
        output = self._writer.output
        following = max(last_id, *output.others, 0) + 1
        largest = min(output.largest_id, MAX_ID)
        if following <= largest:
            return following
        between = range(last_id + 1, largest + 1)  # such as beside a mask of 0 and 255
        return next((i for i in between if i not in output.others), following)

    def _check_new_id(self, object_id: int) -> None:
        """Raises ValueError where a new object cannot have this id."""
        number = whole_number(object_id, "The id of an object")
        if not 1 <= number <= MAX_ID or number in self.objects:
            raise ValueError(
                f"An object needs a new id, a whole number from 1 to {MAX_ID}; {object_id} cannot "
                "be used."
            )
        output = self._writer.output
        if object_id > output.largest_id:
            raise ValueError(
                f"The labels are {output.labels.dtype}, which hold ids up to {output.largest_id}, "
                f"not {object_id}. Write to labels of a larger type."
            )

    def _check_frame(self, frame: int) -> None:
        self.view.check_frame(frame)

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

    def _name(self, object_id: int) -> str:
        self._check_object(object_id)
        return self._records.objects[object_id].name

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
