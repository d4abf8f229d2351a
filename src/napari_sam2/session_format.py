"""How a session lies on disk: a zip of JSON and NumPy arrays, which other programs can read.

`session.json` holds all that is said, and `masks/*.npz` the masks, each file those of one object on
some slices of one sequence.
docs/sessions.md describes both.
"""

from __future__ import annotations

import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from napari_sam2.areas import Area
from napari_sam2.io.volume import WriteError
from napari_sam2.lineage import has_circle
from napari_sam2.sequence_view import Channels, SequenceKey, SequenceView, Windows
from napari_sam2.session import Session
from napari_sam2.slice_data import (
    CoarseLogits,
    Kept,
    Life,
    Look,
    ObjectInfo,
    ObjectMask,
    ObjectState,
    Place,
    Scribble,
    SessionState,
    SlicePrompts,
)

if TYPE_CHECKING:
    from sam2_engine.memory import MemorySelection, MemoryTokens

V = TypeVar("V")
_FORMAT, _VERSION = "napari-sam2 session", 1
_LARGEST_SIDE = 4096  # of coarse logits: more is damage
_ALL = (0, 0, 0, 0)  # the area of a mask that was looked for on the whole frame
_UNDECIDED, _BY_ITSELF, _SETTLED = "undecided", "by itself", "settled"  # closely or not
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal arrays make equal files

_BLOCK = 16  # slices whose masks lie in one file, so that few are packed again after a change

Packed = dict[tuple[Place, int], tuple[ObjectState, bytes]]
"""What was written last of an object in a block of slices, and as which bytes."""


class SessionFileError(ValueError):
    """A session cannot be opened. The message is a sentence that says why, and what to do."""


@dataclass(frozen=True)
class ImageReference:
    """Which image a session belongs to."""

    names: tuple[str, ...]
    """Of its layers; of arrays, empty texts. Several images were seen together in colours."""
    paths: tuple[str, ...]
    """Of their files; empty where they are not known."""
    shape: tuple[int, ...]
    """Of the array, with colours and channels."""
    dtype: str
    rgb: bool
    channels: Channels | None
    spacing: tuple[float, ...]
    """Size of an element along each axis of the image; only their ratios matter."""
    fingerprint: str
    """As `fingerprint` gave it."""

    def __str__(self) -> str:
        named = " and ".join(f'"{name}"' for name in self.names if name)
        return f"image {named}".strip() if named else "image"


@dataclass(frozen=True)
class SavedSession:
    """What a session's file holds."""

    image: ImageReference
    model: str
    """Name or path."""
    checksum: str
    """Of the model, as `LazyModel.checksum`."""
    program: str
    """Name and version of what wrote the file."""
    saved: str
    """When, in ISO 8601."""
    state: SessionState

    def labels(self) -> NDArray[np.int32]:
        """The masks as they were saved: (...) in the shape of the image, without colours.

        Needs neither the image nor the model.
        """
        session = Session(
            _blank(self.image), self.model, rgb=self.image.rgb, channels=self.image.channels
        )
        session.restore(self.state)
        labels: NDArray[np.int32] = session.labels
        return labels


# -- writing -------------------------------------------------------------------------------------


def write_session(path: str | os.PathLike[str], saved: SavedSession, packed: Packed) -> None:
    """Write a session's file; an older one stays whole until the new one is complete.

    packed: of the last time, or empty; what has not changed since is not packed again.

    Raises WriteError, which says why the file cannot be written.
    """
    members: dict[str, bytes] = {}
    names: dict[Place, list[str]] = {}
    known = dict(packed)
    packed.clear()
    for n, (place, state) in enumerate(saved.state.sequences.items()):
        names[place] = []
        for block, part in _blocks(state):
            old, content = known.get((place, block), (None, b""))
            if old is None or not _is_same(old, part):
                content = _npz(_pack(part))
            packed[place, block] = part, content
            name = f"masks/{n}-{block}.npz"
            names[place].append(name)
            members[name] = content
    text = json.dumps(_to_json(saved, names), allow_nan=False, default=_plain)
    _write_whole(path, {"session.json": text.encode(), **members})


def _blocks(known: ObjectState) -> Iterator[tuple[int, ObjectState]]:
    """What is known on each block of slices, where that takes arrays."""
    drawn = {f for f, said in known.prompts.items() if said.mask or said.corrects}
    frames = {*known.found, *known.kept, *known.tracked, *drawn}

    def of(block: int, table: Mapping[int, V]) -> dict[int, V]:
        return {frame: value for frame, value in table.items() if frame // _BLOCK == block}

    for block in sorted({frame // _BLOCK for frame in frames}):
        yield (
            block,
            ObjectState(
                of(block, known.prompts),
                of(block, known.kept),
                of(block, known.found),
                frozenset(frame for frame in known.current if frame // _BLOCK == block),
                frozenset(frame for frame in known.rejected if frame // _BLOCK == block),
                of(block, known.tracked),
            ),
        )


def _is_same(old: ObjectState, new: ObjectState) -> bool:
    """Whether two states hold the same masks; these never change."""
    tables: list[tuple[Mapping[int, object], Mapping[int, object]]] = [
        (old.prompts, new.prompts),
        (old.kept, new.kept),
        (old.found, new.found),
        (old.tracked, new.tracked),
    ]
    return (old.current, old.rejected) == (new.current, new.rejected) and all(
        a.keys() == b.keys() and all(a[frame] is b[frame] for frame in a) for a, b in tables
    )


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays for JSON."""
    return value.tolist()


def _write_whole(path: str | os.PathLike[str], members: Mapping[str, bytes]) -> None:
    """A zip of files that appears whole or not at all, and stays whatever happens afterwards."""
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        target = target.resolve()
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(None, "it is write-protected")
        beside = target.with_name(
            f".{target.name[:100]}.{os.getpid()}-{threading.get_ident()}.part"
        )
        try:
            with open(beside, "wb") as file:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as whole:
                    for name, content in members.items():
                        how = zipfile.ZIP_STORED if name.endswith(".npz") else zipfile.ZIP_DEFLATED
                        whole.writestr(zipfile.ZipInfo(name, _EPOCH), content, how)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        finally:
            with suppress(OSError):
                beside.unlink()
        if os.name == "posix":
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the new name survives, too
            finally:
                os.close(folder)
    except OSError as error:
        raise WriteError(
            f"The session could not be saved to {path}: {error.strerror or error}."
        ) from error


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """As `numpy.savez_compressed`, but quick."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            file.writestr(member, content.getvalue(), zipfile.ZIP_DEFLATED, 1)
    return whole.getvalue()


def _to_json(saved: SavedSession, names: Mapping[Place, list[str]]) -> dict[str, Any]:
    """names: of the files with masks."""
    state, image, channels = saved.state, saved.image, saved.image.channels
    sequences: dict[SequenceKey, list[dict[str, Any]]] = {}
    for (key, object_id), known in state.sequences.items():
        one = {
            "object": object_id,
            "masks": names[key, object_id],
            "prompts": [
                {"slice": frame} | _said_json(said) for frame, said in sorted(known.prompts.items())
            ],
            "kept": [
                {"slice": frame, "how": kept.how} for frame, kept in sorted(known.kept.items())
            ],
            "life": list(known.life),
            "area": None if known.look is None else known.look.area,
            "look": _look_json(known.look),
        }
        sequences.setdefault(key, []).append(one)
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "program": saved.program,
        "saved": saved.saved,
        "image": {
            "names": list(image.names),
            "paths": list(image.paths),
            "shape": list(image.shape),
            "dtype": image.dtype,
            "rgb": image.rgb,
            "channels": None
            if channels is None
            else {"axis": channels.axis, "indices": list(channels.indices)},
            "spacing": list(image.spacing),
            "fingerprint": image.fingerprint,
        },
        "model": {"name": saved.model, "checksum": saved.checksum},
        "window": state.window,
        "end_after": state.end_after,
        "memory": state.memory,
        "memory_tokens": state.memory_tokens,
        "closely": state.closely,
        "last_id": state.last_id,
        "shown": _key_json(state.shown),
        "objects": [
            {
                "id": object_id,
                "name": info.name,
                "colour": info.colour,
                "hidden": info.hidden,
                "locked": info.locked,
            }
            for object_id, info in state.objects.items()
        ],
        "parents": [
            {"daughter": daughter, "parent": parent}
            for daughter, parent in sorted(state.parents.items())
        ],
        "no_divisions": [
            {"object": object_id, "slices": sorted(frames)}
            for object_id, frames in sorted(state.no_divisions.items())
        ],
        "seconds": [
            {"object": object_id, "seconds": round(seconds, 1)}
            for object_id, seconds in sorted(state.seconds.items())
        ],
        "sequences": [_key_json(key) | {"objects": objects} for key, objects in sequences.items()],
    }


def _key_json(key: SequenceKey) -> dict[str, Any]:
    return {"axis": key.axis, "position": list(key.position)}


def _look_json(look: Look | None) -> str:
    if look is None:
        return _UNDECIDED
    return _SETTLED if look.is_settled else _BY_ITSELF


def _said_json(said: SlicePrompts) -> dict[str, Any]:
    return {
        "points": said.points.tolist(),
        "labels": said.labels.tolist(),
        "box": said.box,
        "scribbles": [{"path": s.path.tolist(), "label": s.label} for s in said.scribbles],
        "lassos": [lasso.tolist() for lasso in said.lassos],
    }


def _pack(known: ObjectState) -> dict[str, NDArray[Any]]:
    """All arrays of an object in one sequence, by name; tables without entries are left out."""
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


def _blank(reference: ImageReference) -> list[NDArray[np.uint8]]:
    """Images of the right shape that take no memory."""
    return [np.broadcast_to(np.uint8(0), reference.shape)] * len(reference.names)


# -- reading -------------------------------------------------------------------------------------


def read_session(path: str | os.PathLike[str]) -> SavedSession:
    """What a session's file holds; every value is checked.

    Raises SessionFileError: there is no such file, it is none of a session or damaged, or a newer
    napari-sam2 has written it.
    """
    if not isinstance(path, str | os.PathLike):
        raise SessionFileError(
            f"Give the path of the session first, and then the image, not a {type(path).__name__}."
        )
    try:
        with zipfile.ZipFile(path) as file:
            content = _json_of(file, path)
            return _from_json(content, file)
    except SessionFileError:
        raise
    except FileNotFoundError as error:
        raise SessionFileError(f"There is no file {path}.") from error
    except OSError as error:
        raise SessionFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # damage makes numpy, json and zipfile raise almost anything
        raise SessionFileError(
            f"{path} is damaged, or not a session of napari-sam2. Open a copy of it, or another "
            "one."
        ) from error


def _json_of(file: zipfile.ZipFile, path: str | os.PathLike[str]) -> dict[str, Any]:
    content = json.loads(file.read("session.json"))
    if content["format"] != _FORMAT:
        raise SessionFileError(f"{path} is not a session of napari-sam2.")
    version = _whole(content["version"], 1)
    if version > _VERSION:
        raise SessionFileError(
            f"{path} was saved by a newer version of the plugin ({content['program']}). Update "
            "napari-sam2 to open it."
        )
    return content  # type: ignore[no-any-return]


def _from_json(content: Mapping[str, Any], file: zipfile.ZipFile) -> SavedSession:
    image = content["image"]
    channels = image["channels"]
    reference = ImageReference(
        names=tuple(str(name) for name in image["names"]),
        paths=tuple(str(path) for path in image["paths"]),
        shape=tuple(_whole(size, 1) for size in image["shape"]),
        dtype=str(np.dtype(image["dtype"])),
        rgb=bool(image["rgb"]),
        channels=None
        if channels is None
        else Channels(_whole(channels["axis"]), tuple(map(_whole, channels["indices"]))),
        spacing=tuple(_number(step) for step in image["spacing"]),
        fingerprint=str(image["fingerprint"]),
    )
    objects = {
        _whole(one["id"], 1): ObjectInfo(
            str(one["name"]), _colour(one["colour"]), bool(one["hidden"]), bool(one["locked"])
        )
        for one in content["objects"]
    }
    sequences: dict[Place, ObjectState] = {}
    for sequence in content["sequences"]:
        view = _view(reference, sequence)
        for one in sequence["objects"]:
            if one["object"] not in objects:
                raise ValueError("A mask belongs to no object.")
            place = view.key, one["object"]
            blocks = [zipfile.ZipFile(io.BytesIO(file.read(name))) for name in one["masks"]]
            sequences[place] = _state(one, [_Arrays(block, view) for block in blocks], view)
    end_after = content["end_after"]
    state = SessionState(
        objects=objects,
        sequences=sequences,
        shown=_view(reference, content["shown"]).key,
        window=_window(content["window"]),
        end_after=None if end_after is None else _whole(end_after, 1),
        memory=_memory(content.get("memory", "recent")),
        last_id=_whole(content["last_id"], max(objects, default=0)),
        parents=_parents(content.get("parents", ()), objects),
        no_divisions={
            _whole(one["object"], 1): frozenset(map(_whole, one["slices"]))
            for one in content.get("no_divisions", ())
        },
        memory_tokens=_memory_tokens(content.get("memory_tokens", "all")),
        closely=bool(content.get("closely", True)),
        seconds={
            _whole(one["object"], 1): _number(one["seconds"]) for one in content.get("seconds", ())
        },
    )
    model = content["model"]
    return SavedSession(
        image=reference,
        model=str(model["name"]),
        checksum=str(model["checksum"]),
        program=str(content["program"]),
        saved=str(content["saved"]),
        state=state,
    )


def _parents(links: Any, objects: Mapping[int, ObjectInfo]) -> dict[int, int]:
    """Daughter -> parent; older files have none."""
    parents = {_whole(one["daughter"], 1): _whole(one["parent"], 1) for one in links}
    if not {*parents, *parents.values()} <= objects.keys() or has_circle(parents):
        raise ValueError("Daughters and parents do not go together.")
    return parents


def _view(reference: ImageReference, key: Mapping[str, Any]) -> SequenceView:
    """The frames of a sequence, all black; ValueError where the image has no such sequence."""
    axis = None if key["axis"] is None else _whole(key["axis"])
    position = tuple(None if index is None else _whole(index) for index in key["position"])
    view = SequenceView(
        _blank(reference),
        SequenceKey(axis, position),
        rgb=reference.rgb,
        channels=reference.channels,
        spacing=reference.spacing,
    )
    is_inside = [i is None or i < n for i, n in zip(position, view.shape, strict=True)]
    if not all(is_inside) or (axis is not None and position[axis] is not None):
        raise ValueError(f"{key} is no sequence of the image.")
    return view


class _Arrays:
    """The arrays of an object in one sequence, as masks."""

    def __init__(self, file: zipfile.ZipFile, view: SequenceView) -> None:
        self._file, self._view, self._names = file, view, frozenset(file.namelist())

    def frames(self, name: str) -> list[int]:
        frames = self._array(f"{name}", np.int64, 1)
        if ((frames < 0) | (frames >= len(self._view))).any():
            raise ValueError("A mask lies outside the image.")
        return [int(frame) for frame in frames]

    def masks(self, table: str) -> dict[int, ObjectMask]:
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
            seen = None if tuple(area) == _ALL else _area(area, self._view.frame_shape)
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


def _cut(flat: NDArray[Any], boxes: NDArray[np.int64]) -> list[NDArray[Any]]:
    """A flat array into (h, w) parts, one after the other, of boxes (N, 4): ..., h, w."""
    sizes = boxes[:, 2:]
    if boxes.shape[1] != 4 or (sizes < 0).any() or sizes.prod(axis=1).sum() != len(flat):
        raise ValueError("Masks and their sizes do not go together.")
    ends = np.cumsum(sizes.prod(axis=1))
    parts = np.split(flat, ends[:-1]) if len(boxes) else []
    return [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]


def _state(one: Mapping[str, Any], blocks: Sequence[_Arrays], view: SequenceView) -> ObjectState:
    def masks(table: str) -> dict[int, ObjectMask]:
        return {f: mask for block in blocks for f, mask in block.masks(table).items()}

    def absent(table: str) -> list[int]:
        return [frame for block in blocks for frame in block.absent(table)]

    painted, kept, found, tracked = map(masks, ("painted", "kept", "found", "tracked"))
    corrected = {f: said for block in blocks for f, said in block.coarse("corrected").items()}
    how = {_whole(entry["slice"]): entry["how"] for entry in one["kept"]}
    prompts = {
        _whole(said["slice"]): _said(said, corrected.get(said["slice"]), painted.get(said["slice"]))
        for said in one["prompts"]
    }
    if any(frame >= len(view) for frame in prompts):
        raise ValueError("A prompt lies outside the image.")
    if how.keys() != kept.keys() or not set(how.values()) <= {"approved", "locked"}:
        raise ValueError("Approved or locked slices and their masks do not go together.")
    if not painted.keys() | corrected.keys() <= prompts.keys():
        raise ValueError("Prompts and their masks do not go together.")
    return ObjectState(
        prompts=prompts,
        kept={frame: Kept(how[frame], SlicePrompts(mask=mask)) for frame, mask in kept.items()},
        found={**found, **dict.fromkeys(absent("found"))},
        current=frozenset(f for block in blocks for f in block.frames("current_slices")),
        rejected=frozenset(f for block in blocks for f in block.rejected()),
        tracked={**tracked, **dict.fromkeys(absent("tracked"))},
        life=_life(one.get("life", [0, None]), len(view)),
        look=_look(one.get("area"), one.get("look", _SETTLED), view.frame_shape),
    )


def _look(area: Any, how: Any, shape: tuple[int, int]) -> Look | None:
    if how not in (_UNDECIDED, _BY_ITSELF, _SETTLED) or (how == _UNDECIDED and area is not None):
        raise ValueError(f"{how!r} does not say how closely an object is looked at.")
    if how == _UNDECIDED:
        return None
    return Look(None if area is None else _area(area, shape), how == _SETTLED)


def _area(area: Any, shape: tuple[int, int]) -> Area:
    top, left, bottom, right = (_whole(edge) for edge in area)
    if not (top < bottom <= shape[0] and left < right <= shape[1]):
        raise ValueError("What is looked at closely lies outside the image.")
    return top, left, bottom, right


def _life(life: Any, num_frames: int) -> Life:
    first, last = life
    found = Life(_whole(first), None if last is None else _whole(last))
    if not found.has(found.first) or found.first >= num_frames:
        raise ValueError("An object's life lies outside the image.")
    return found


def _said(
    said: Mapping[str, Any], corrects: CoarseLogits | None, mask: ObjectMask | None
) -> SlicePrompts:
    points = _positions(said["points"])
    labels = np.array([_sign(label) for label in said["labels"]], np.int64)
    if len(points) != len(labels):
        raise ValueError("Points and their labels do not go together.")
    box = None if said["box"] is None else tuple(_number(value) for value in said["box"])
    if box is not None and len(box) != 4:
        raise ValueError("A box has four numbers.")
    return SlicePrompts(
        points,
        labels,
        box,
        tuple(Scribble(_positions(s["path"], 1), _sign(s["label"])) for s in said["scribbles"]),
        tuple(_positions(lasso, 3) for lasso in said["lassos"]),
        corrects,
        mask,
    )


def _positions(yx: Any, least: int = 0) -> NDArray[np.float64]:
    found = np.array([[_number(value) for value in point] for point in yx], np.float64)
    found = found.reshape(len(yx), 2)
    if len(found) < least:
        raise ValueError("A drawing has too few corners.")
    return found


def _window(window: Any) -> Windows | None:
    if window is None:
        return None
    if isinstance(window[0], list):
        return tuple((_number(low), _number(high)) for low, high in window)
    low, high = window
    return _number(low), _number(high)


def _colour(colour: Any) -> tuple[float, float, float] | None:
    if colour is None:
        return None
    red, green, blue = (_number(value) for value in colour)
    return red, green, blue


def _whole(value: Any, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{value!r} should be a whole number from {least}.")
    return value


def _memory(value: Any) -> MemorySelection:
    if value not in ("recent", "confident"):
        raise ValueError(f"{value!r} should be recent or confident.")
    selection: MemorySelection = value
    return selection


def _memory_tokens(value: Any) -> MemoryTokens:
    if value not in ("all", "pooled"):
        raise ValueError(f"{value!r} should be all or pooled.")
    tokens: MemoryTokens = value
    return tokens


def _sign(label: Any) -> int:
    if label not in (0, 1):
        raise ValueError(f"{label!r} should be 0 or 1.")
    return int(label)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(f"{value!r} should be a number.")
    return float(value)
