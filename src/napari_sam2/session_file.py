"""Sessions on disk: saved in one file, opened on their image, replayed without a window."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.lazy_model import LazyModel
from napari_sam2.segmentation import ModelError, loaded
from napari_sam2.sequence_view import SequenceView
from napari_sam2.session import Session, UnreadableSlices
from napari_sam2.session_format import (
    Fingerprint,
    ImageReference,
    Packed,
    SavedSession,
    SessionFileError,
    read_session,
    write_session,
)
from napari_sam2.tasks import Step

if TYPE_CHECKING:
    from sam2_engine.model import SAM2

__all__ = [
    "SUFFIX",
    "ChangedImageError",
    "MissingModelError",
    "SessionFileError",
    "SessionWriter",
    "fingerprint",
    "fitted",
    "open_session",
    "read_session",
    "replay",
    "save_session",
]

SUFFIX = ".sam2session"
_SAMPLED_FRAMES = 8
_SAMPLED_SIDE = 1024  # pixels; of larger frames, the fingerprint takes the middle


class ChangedImageError(SessionFileError):
    """The image has the right shape, but other pixels than when the session was saved."""


class MissingModelError(SessionFileError, ModelError):
    """The model that the session was made with is not on this machine."""


# -- save and open -------------------------------------------------------------------------------


def save_session(session: Session, path: str | os.PathLike[str]) -> None:
    """Save all of a session but its history, and what is not its own in the labels.

    An older file stays whole until the new one is complete, whatever happens meanwhile.

    path: of the file; its name should end in `SUFFIX`.

    Raises WriteError, which says why the file cannot be written.
    """
    if not isinstance(session, Session):
        raise ValueError(
            f"Give the session first, and then the path, not a {type(session).__name__}."
        )
    SessionWriter(session).write(path)


def open_session(
    path: str | os.PathLike[str],
    image: Any = None,
    *,
    model: LazyModel | SAM2 | str | None = None,
    device: str = "auto",
    labels: Any = None,
    overwrite: bool = False,
    changed_image: bool = False,
    warn: Callable[[str], None] = warnings.warn,
) -> Session:
    """A session as it was saved, but for its history.

    Masks that were up to date are up to date again, unless the image, its spacing or the model
    are others: then they are shown as they were and `propagate` or `update` computes them anew.

    Args:
        path: of the file.
        image: as for `Session`, of the shape that was saved; by default it is read from the file
            that it came from, or from one of that name beside the session.
        model: another one than the saved one.
        device: as for `Session`.
        labels, overwrite: as for `Session`. What they hold under the ids of the session's objects
            is taken as written from it.
        changed_image: open it also where the image has other pixels by now.
        warn: told, in a sentence, what is not as it was.

    Raises:
        SessionFileError: the file cannot be read, or the image is none or has another shape;
            `read_session(path).labels()` gives the masks even then.
        ChangedImageError: the pixels are others; `changed_image=True` opens it nevertheless.
        MissingModelError: the model is not here; another `model` opens it nevertheless.
        ValueError: the labels cannot be written to.
    """
    saved = read_session(path)
    session = _session(saved, path, image, model, device, labels, overwrite, changed_image)
    differences = _differences(session, saved, changed_image)
    for difference in differences:
        warn(f"{difference}; its masks are out of date until they are computed again.")
    session.restore(saved.state, trust=not differences)
    return session


def replay(
    path: str | os.PathLike[str],
    image: Any = None,
    *,
    model: LazyModel | SAM2 | str | None = None,
    device: str = "auto",
    everywhere: bool = False,
    only_approved: bool = False,
    changed_image: bool = False,
    progress: Callable[[Step], None] | None = None,
) -> NDArray[np.int32]:
    """The masks that follow from a saved session's prompts, computed anew.

    They are computed on the slices where the session had looked for them, and are those that it
    shows when its masks are up to date. What is painted, approved or locked is taken as it is.

    everywhere: follow all objects through all slices instead.
    only_approved: the approved masks alone, which are taken as they are; nothing is computed.
    progress: called after every slice; each sequence counts its own.
    Other arguments and errors as for `open_session`; ModelError where the model cannot be loaded;
    UnreadableSlices at the end, where slices could not be read: its `session` has all others.

    Returns labels in the shape of the image, without colours; 0 is background.
    """
    if only_approved:
        saved = read_session(path)
        known = "nano" if model is None else model  # none is asked
        session = _session(saved, path, image, known, device, None, False, changed_image)
        session.restore(saved.state, trust=False)
        return session.approved_labels()
    session = replay_session(
        path,
        image,
        model=model,
        device=device,
        everywhere=everywhere,
        changed_image=changed_image,
        progress=progress,
    )
    labels: NDArray[np.int32] = session.labels
    return labels


def replay_session(
    path: str | os.PathLike[str],
    image: Any = None,
    *,
    model: LazyModel | SAM2 | str | None = None,
    device: str = "auto",
    everywhere: bool = False,
    changed_image: bool = False,
    progress: Callable[[Step], None] | None = None,
) -> Session:
    """As `replay`, but all of the session, with lineages and masks of their own."""
    saved = read_session(path)
    session = _session(saved, path, image, model, device, None, False, changed_image)
    session.restore(saved.state, trust=False)
    loaded(session.model)
    for key in dict.fromkeys(key for key, _ in saved.state.sequences):
        session.show(key)
        if session.task().wanted:
            compute = session.propagate if everywhere else session.update
            with suppress(UnreadableSlices):  # told of at the end
                compute(progress=progress)
    session.show(saved.state.shown)
    session.check_read()
    return session


def _session(
    saved: SavedSession,
    path: str | os.PathLike[str],
    image: Any,
    model: LazyModel | SAM2 | str | None,
    device: str,
    labels: Any,
    overwrite: bool,
    changed_image: bool,
) -> Session:
    """An empty session that a saved one, of a file, can be restored in."""
    reference = saved.image
    if image is None:
        image = _read_image(reference, path)
    view = SequenceView(image)
    _check_shape(view, reference)
    if not changed_image and not fingerprint(image).fits(reference.fingerprint):
        raise ChangedImageError(
            f"{_other_pixels(view, reference)}. The session can be opened nevertheless; its masks "
            "stay as they are until they are computed again."
        )
    if model is None and not _is_available(saved.model):
        raise MissingModelError(
            f'The session was made with the model "{saved.model}", which is not on this machine. '
            "Choose another model to open it with."
        )
    session = Session(
        image,
        saved.model if model is None else model,
        device=device,
        window=saved.state.window,
        rgb=reference.rgb,
        channels=reference.channels,
        spacing=reference.spacing,
        labels=labels,
        overwrite=overwrite,
    )
    largest = max(saved.state.objects, default=0)
    if largest > np.iinfo(session.labels.dtype).max:
        raise ValueError(
            f"The labels are {session.labels.dtype}, which cannot hold the object {largest}. "
            "Write to labels of a larger type."
        )
    return session


def _differences(session: Session, saved: SavedSession, changed_image: bool) -> list[str]:
    """What masks follow from and is not as it was, in sentences without an end.

    changed_image: whether the image may be another.
    """
    found = []
    if changed_image and not fingerprint(session.image).fits(saved.image.fingerprint):
        found.append(_other_pixels(session.view, saved.image))
    if not np.allclose(_ratios(session.view.spacing), _ratios(saved.image.spacing)):
        found.append(f"The {saved.image} has another spacing than when the session was saved")
    model, was = session.model, f'The session was made with the model "{saved.model}"'
    if not model.checksum or not saved.checksum:
        if model.name != saved.model:
            found.append(f'{was}, not "{model.name}"')
    elif model.checksum != saved.checksum:
        other = "other weights of this name" if model.name == saved.model else f'"{model.name}"'
        found.append(f"{was}, not {other}")
    return found


def _other_pixels(view: SequenceView, reference: ImageReference) -> str:
    """That an image is not as it was saved, or not the one at all; a sentence without an end."""
    names = tuple(str(layer.name) for layer in view.layers)
    if not names or names == reference.names:
        return f"The {reference} has other pixels than when the session was saved"
    here = replace(reference, names=names)
    return f"The {here} has other pixels than the {reference} that the session was made on"


def _check_shape(view: SequenceView, reference: ImageReference) -> None:
    here, there = _shapes(view), (len(reference.names), reference.shape)
    if here != there:
        raise SessionFileError(
            f"The session belongs to {_shape_text(*there)}, but this is {_shape_text(*here)}. "
            "Open it on the image that it was made on; its masks alone can be had without one."
        )
    if view.layers and view.rgb != reference.rgb:
        colours = "in colours" if reference.rgb else "without colours"
        raise SessionFileError(
            f"The session belongs to an image {colours}, unlike this one. Open it on the image "
            "that it was made on."
        )


def image_file(reference: ImageReference, session: str | os.PathLike[str]) -> Path | None:
    """The file that a session's image came from, or if that is gone a file or folder of its name
    beside the session, which may come from another computer; None where no file is known."""
    if not reference.paths or not reference.paths[0]:
        return None
    path = Path(reference.paths[0])
    # Takes both / and \, which may have been another system's.
    moved = Path(session).parent / PureWindowsPath(reference.paths[0]).name
    return moved if moved.exists() and not path.exists() else path


def _read_image(reference: ImageReference, session: str | os.PathLike[str]) -> NDArray[Any]:
    """The image's array, from the file that it came from, with its axes as they were shown."""
    from napari_sam2.io import ReadError, read_volume
    from napari_sam2.saved_image import SessionImage

    path = image_file(reference, session) if len(reference.paths) == 1 else None
    if path is None:
        raise SessionFileError(
            f"The session does not say which file its {reference} came from: give the image."
        )
    try:
        volume = read_volume(path)
    except ReadError as error:
        raise SessionFileError(f"{error} Give the session's image.") from error
    array: NDArray[Any] = SessionImage(volume, reference).array
    return array


def fitted(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A volume as read from a file, without its one slice where the session's image has none.

    shape: of the session's image.
    """
    is_one_slice = len(array.shape) == len(shape) + 1 and array.shape[0] == 1
    return array[0] if is_one_slice else array


def _is_available(model: str) -> bool:
    """Whether a model can be loaded or downloaded."""
    from sam2_engine.weights import find_file, model_info

    return model_info(model) is not None or find_file(model) is not None


def _shapes(view: SequenceView) -> tuple[int, tuple[int, ...]]:
    """How many images are seen together, and their shape."""
    return len(view.arrays), tuple(int(size) for size in view.arrays[0].shape)


def _shape_text(count: int, shape: tuple[int, ...]) -> str:
    size = " x ".join(map(str, shape))
    return f"an image of {size}" if count == 1 else f"{count} images of {size}"


def _ratios(spacing: Sequence[float]) -> NDArray[np.float64]:
    return np.array(spacing) / spacing[-1]


# -- the image -----------------------------------------------------------------------------------


def fingerprint(image: Any) -> Fingerprint:
    """Sums over some of the pixels of an image; equal for equal values of any data type.

    image: as for `Session`. The middle of up to 8 frames is read, never the whole. A frame that
    cannot be read counts as such: work on an image with a damaged slice can be saved.
    """
    total, frames = hashlib.sha256(), []
    for array in SequenceView(image).arrays:
        shape = tuple(int(size) for size in array.shape)
        total.update(repr(shape).encode())
        in_frame = 3 if len(shape) > 2 and shape[-1] <= 4 else 2
        starts = [max(0, (size - _SAMPLED_SIDE) // 2) for size in shape[-in_frame:]]
        middle = [slice(start, start + _SAMPLED_SIDE) for start in starts]
        leading = shape[:-in_frame]
        count = int(np.prod(leading, dtype=np.int64))
        for n in np.unique(np.linspace(0, count - 1, min(count, _SAMPLED_FRAMES)).astype(np.int64)):
            index = (*(int(i) for i in np.unravel_index(n, leading)), *middle)
            try:
                pixels = np.asarray(array[index]).astype("<f8") + 0.0  # there are two zeros
            except Exception:  # each library has its own
                total.update(b"damaged")
                frames.append("")
            else:
                total.update(pixels.tobytes())
                frames.append(hashlib.sha256(pixels.tobytes()).hexdigest())
    return Fingerprint(f"sha256:{total.hexdigest()}", tuple(frames))


def _refer(session: Session) -> ImageReference:
    view = session.view
    layers = view.layers or [None] * len(view.arrays)
    pairs = list(zip(layers, view.arrays, strict=True))
    return ImageReference(
        names=tuple("" if layer is None else str(layer.name) for layer, _ in pairs),
        paths=tuple(_path_of(layer, array) for layer, array in pairs),
        shape=_shapes(view)[1],
        dtype=str(np.dtype(view.arrays[0].dtype)),
        rgb=view.rgb,
        channels=view.channels,
        spacing=view.spacing,
        fingerprint=fingerprint(view.arrays),  # a layer may have other data by now
    )


def _path_of(layer: Any, array: Any) -> str:
    """Of the file that an image came from; empty where it is not known."""
    path = layer.source.path if layer is not None else getattr(array, "filename", None)
    if not isinstance(path, str | os.PathLike):
        return ""
    return os.path.abspath(path) if os.path.exists(path) else str(path)


# -- writing -------------------------------------------------------------------------------------


class SessionWriter:
    """Saves one session again and again; what has not changed since is not packed again."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._image: ImageReference | None = None
        self._packed: Packed = {}

    @property
    def image(self) -> ImageReference:
        """Looked at once."""
        if self._image is None:
            self._image = _refer(self._session)
        return self._image

    def write(self, path: str | os.PathLike[str]) -> None:
        """As `save_session`; in any one thread."""
        model = self._session.model
        saved = SavedSession(
            image=self.image,
            model=model.name,
            checksum=model.checksum,
            program=f"napari-sam2 {version('napari-sam2')}",
            saved=datetime.now(UTC).isoformat(timespec="seconds"),
            state=self._session.snapshot(),
        )
        write_session(path, saved, self._packed)
