"""How a session lies on disk: a zip of JSON and NumPy arrays, which other programs can read.

`session.json` holds all that is said, and `masks/*.npz` the masks, each file those of one object on
some slices of one sequence: `session_arrays`. docs/sessions.md describes both.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from napari_sam2.io.volume import WriteError
from napari_sam2.lineage import has_circle
from napari_sam2.sequence_view import Channels, SequenceKey, SequenceView, Windows
from napari_sam2.session import Session
from napari_sam2.session_arrays import EPOCH, Arrays, checked_area, pack
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
from napari_sam2.targets import why_not
from sam2_engine.whole_file import beside

V = TypeVar("V")
_FORMAT, _VERSION = "napari-sam2 session", 1
_UNDECIDED, _BY_ITSELF, _SETTLED = "undecided", "by itself", "settled"  # closely or not
_BLOCK = 16  # slices whose masks lie in one file, so that few are packed again after a change

Packed = dict[tuple[Place, int], tuple[ObjectState, bytes]]
"""What was written last of an object in a block of slices, and as which bytes."""


class SessionFileError(ValueError):
    """A session cannot be opened. The message is a sentence that says why, and what to do."""


class Fingerprint(NamedTuple):
    """What `fingerprint` saw of an image."""

    whole: str
    """A sum over all that was looked at."""
    frames: tuple[str, ...] = ()
    """One over each frame, empty where it could not be read; older sessions have none."""

    def fits(self, other: Fingerprint) -> bool:
        """Whether both are of one image, as far as frames could be read both times."""
        if self.whole == other.whole:
            return True
        if len(self.frames) != len(other.frames):
            return False
        pairs = list(zip(self.frames, other.frames, strict=True))
        known = [one == two for one, two in pairs if one and two]
        return 0 < len(known) < len(pairs) and all(known)


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
    fingerprint: Fingerprint

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
                content = pack(part)
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
    target = Path(path).resolve()
    if reason := why_not(target, overwrite=True):
        raise WriteError(f"The session could not be saved to {path}: {reason}.")
    try:
        with beside(target) as temporary, open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as whole:
                for name, content in members.items():
                    how = zipfile.ZIP_STORED if name.endswith(".npz") else zipfile.ZIP_DEFLATED
                    whole.writestr(zipfile.ZipInfo(name, EPOCH), content, how)
            file.flush()
            os.fsync(file.fileno())
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
            "own_life": list(known.own_life),
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
            "fingerprint": image.fingerprint.whole,
            "fingerprints": list(image.fingerprint.frames),
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


def read_fingerprint(path: str | os.PathLike[str]) -> Fingerprint | None:
    """That of a session's image, without the rest of the file; None where it is no session."""
    try:
        with zipfile.ZipFile(path) as file:
            return _fingerprint(_json_of(file, path)["image"])
    except Exception:  # as in read_session
        return None


def _fingerprint(image: Mapping[str, Any]) -> Fingerprint:
    return Fingerprint(str(image["fingerprint"]), tuple(map(str, image.get("fingerprints", ()))))


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
        fingerprint=_fingerprint(image),
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
            blocks = [Arrays(file.read(name), view) for name in one["masks"]]
            sequences[place] = _state(one, blocks, view)
    end_after = content["end_after"]
    state = SessionState(
        objects=objects,
        sequences=sequences,
        shown=_view(reference, content["shown"]).key,
        window=_window(content["window"]),
        end_after=None if end_after is None else _whole(end_after),
        memory=_one_of(("recent", "confident"), content.get("memory", "recent")),
        last_id=_whole(content["last_id"], max(objects, default=0)),
        parents=_parents(content.get("parents", ()), objects),
        no_divisions={
            _whole(one["object"], 1): frozenset(map(_whole, one["slices"]))
            for one in content.get("no_divisions", ())
        },
        memory_tokens=_one_of(("all", "near", "pooled"), content.get("memory_tokens", "all")),
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


def _state(one: Mapping[str, Any], blocks: Sequence[Arrays], view: SequenceView) -> ObjectState:
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
        own_life=_life(one.get("own_life", [0, None]), len(view)),
        look=_look(one.get("area"), one.get("look", _SETTLED), view.frame_shape),
    )


def _look(area: Any, how: Any, shape: tuple[int, int]) -> Look | None:
    if how not in (_UNDECIDED, _BY_ITSELF, _SETTLED) or (how == _UNDECIDED and area is not None):
        raise ValueError(f"{how!r} does not say how closely an object is looked at.")
    if how == _UNDECIDED:
        return None
    seen = None if area is None else checked_area([_whole(edge) for edge in area], shape)
    return Look(seen, how == _SETTLED)


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


def _one_of(known: Sequence[str], value: Any) -> Any:
    if value not in known:
        raise ValueError(f"{value!r} should be {' or '.join(known)}.")
    return value


def _sign(label: Any) -> int:
    if label not in (0, 1):
        raise ValueError(f"{label!r} should be 0 or 1.")
    return int(label)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(f"{value!r} should be a number.")
    return float(value)
