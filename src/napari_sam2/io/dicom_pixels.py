"""Pixels of DICOM frames in the units they stand for, all at once or when they are looked at."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import UID

from napari_sam2.io.dicom_files import Source
from napari_sam2.io.dicom_frames import Frame
from napari_sam2.io.guard import reason_of
from napari_sam2.io.volume import ReadError

_PLUGINS = {  # by a part of the transfer syntax's name: packages, and the module that decodes
    "JPEG-LS": ("pyjpegls", "jpeg_ls"),
    "JPEG 2000": ("pylibjpeg pylibjpeg-openjpeg", "openjpeg"),
    "JPEG": ("pylibjpeg pylibjpeg-libjpeg", "libjpeg"),
    "RLE": ("pylibjpeg pylibjpeg-rle", "rle"),
}
_lock = threading.Lock()


def check_decoders(frames: Sequence[Frame]) -> None:
    """Find out before a window opens whether all frames can be decompressed.

    Raises: ReadError, which names the decoder that is missing.
    """
    for frame in {f.syntax: f for f in frames}.values():
        try:
            is_there = not frame.syntax.is_compressed or get_decoder(frame.syntax).is_available
        except NotImplementedError:
            is_there = False
        if not is_there:
            raise _missing_decoder(frame.source, frame.syntax)


def _missing_decoder(source: Source, syntax: UID) -> ReadError:
    packages, _ = _plugin(syntax)
    if packages:
        return ReadError(
            f"{source} is compressed with {syntax.name}, which needs a decoder: pip install "
            f"{packages}."
        )
    return ReadError(f"{source} is compressed with {syntax.name}, for which there is no decoder.")


def _plugin(syntax: UID) -> tuple[str, str]:
    """Packages to install for a compressed transfer syntax, and the module that decodes it."""
    return next((plugin for part, plugin in _PLUGINS.items() if part in syntax.name), ("", ""))


def lazy_pixels(volumes: list[list[Frame]]) -> Any:
    """A dask array of a chunk per frame: (t, z, y, x), or (t, z, y, x, 3) uint8 for colour.

    Raises when a chunk is computed: ReadError for pixels that are damaged.
    """
    import dask.array as da

    pixels = _Pixels(volumes)
    chunks = (1, 1, *pixels.shape[2:])
    # Without a name of its own, dask would read all frames to make one.
    return da.from_array(pixels, chunks=chunks, name=f"dicom-{secrets.token_hex(8)}")


class _Pixels:
    """Frames as an array that reads those that are asked for; what dask needs of one."""

    def __init__(self, volumes: list[list[Frame]]) -> None:
        first = volumes[0][0]
        self._frames = np.array(volumes, dtype=object)
        self.dtype = value_type([f for volume in volumes for f in volume])
        self.shape = (*self._frames.shape, *first.size, *((3,) if first.is_colour else ()))
        self.ndim = len(self.shape)

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        frames: Any = self._frames[index[:2]]
        inside = tuple(index[2:])
        if isinstance(frames, Frame):
            return frame_pixels(frames, self.dtype)[inside]
        pictures = [frame_pixels(frame, self.dtype)[inside] for frame in frames.flat]
        return np.stack(pictures).reshape(*frames.shape, *pictures[0].shape)


def value_type(frames: Sequence[Frame]) -> np.dtype:
    """The smallest type that holds every value a frame can have after its slope and intercept."""
    if frames[0].is_colour:
        return np.dtype(np.uint8)
    low, high = 0.0, 0.0
    for frame in frames:
        if frame.problem:
            continue  # its header may claim anything
        if frame.values is None or frame.slope % 1 or frame.intercept % 1:
            return np.dtype(np.float32)
        ends = [value * frame.slope + frame.intercept for value in frame.values]
        low, high = min(low, *ends), max(high, *ends)
    if max(-low, high) >= 2**31:
        return np.dtype(np.float32)
    if low >= 0:
        return np.min_scalar_type(int(high))
    return np.promote_types(np.min_scalar_type(int(low)), np.min_scalar_type(-int(high) - 1))


def frame_pixels(frame: Frame, dtype: np.dtype) -> np.ndarray:
    """(rows, columns) in modality units, or (rows, columns, 3) uint8.

    Raises: ReadError if the pixels are damaged, or no longer there.
    """
    if frame.problem:
        raise ReadError(frame.problem)
    dataset = pydicom.Dataset()
    try:
        if frame.index is None and not frame.syntax.is_deflated:
            with frame.source.open() as file:
                data = pixel_array(file, ds_out=dataset, transfer_syntax_uid=frame.syntax)
        else:
            with _lock:
                dataset = _kept(frame.source, frame.syntax, frame.source.path.stat().st_mtime_ns)
            data = pixel_array(dataset, index=frame.index)
        if data.shape[:2] != frame.size:
            raise ValueError(f"they are {data.shape[:2]}, not {frame.size}")
        if frame.is_colour:
            return _rgb(data, dataset)
        if frame.has_lookup:
            data = apply_modality_lut(data, dataset)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes pydicom and its plugins raise almost anything
        raise ReadError(
            f"The pixels of {frame.source} cannot be read ({reason_of(error)}); "
            f"{_advice(frame.syntax)}."
        ) from error
    if frame.slope != 1 or frame.intercept != 0:
        data = data * frame.slope + frame.intercept
    return data.astype(dtype, copy=False)


def _advice(syntax: UID) -> str:
    """What to do about pixels that cannot be read: the decoder at hand may not know all kinds."""
    packages, module = _plugin(syntax) if syntax.is_compressed else ("", "")
    if packages and find_spec(module) is None:
        return f"install a decoder for all kinds of {syntax.name}: pip install {packages}"
    return "copy or export the file again"


@lru_cache(maxsize=1)
def _kept(source: Source, syntax: UID, changed: int) -> pydicom.Dataset:
    """A multi-frame file, still compressed: the headers of its frames take long to skip, so that it
    is kept while its frames are read one after another. Also one that is deflated as a whole.

    changed: when the file was, so that a newer one is read anew.
    """
    with source.open() as file:
        dataset = pydicom.dcmread(file, force=True, specific_tags=_PIXEL_TAGS)
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


_PIXEL_TAGS: list[Any] = [
    tag for tag in pydicom.datadict.DicomDictionary if tag >> 16 in (0x0028, 0x7FE0)
]


def _rgb(data: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """(rows, columns, 3) uint8 of a colour picture of any depth, or of one with a palette."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        data = apply_color_lut(data, dataset)
        depth = data.dtype.itemsize * 8
    else:
        depth = int(dataset.BitsStored)
    return (data >> max(0, depth - 8)).astype(np.uint8)[..., :3]
