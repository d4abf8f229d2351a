"""MetaImage in (.mha, .mhd), through ITK."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from napari_sam2.io.guard import check_affine, file_beside, too_small
from napari_sam2.io.volume import (
    RAS_OF_LPS,
    ReadError,
    Volume,
    check_memory,
    native,
    spacing_of,
    unread,
)

_MAX_RATIO = 1100  # deflate cannot pack more than 1032 : 1
_MAX_LINES, _MAX_LINE = 1000, 4096  # of a header


def read_metaimage(path: Path, pixels: bool = True) -> Volume:
    """Read an image: (z, y, x), with time (t, z, y, x), colours or channels.

    Values that are stored as they are, are memory-mapped; compressed ones are unpacked into memory.

    pixels: False leaves the values out.

    Raises: ReadError for damaged files, and data files that lie elsewhere than beside the header.
    """
    stored = _stored(path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ReadError(f"The header of {path} is damaged, or none that ITK can read.") from error
    shape = tuple(int(n) for n in reader.GetSize()[::-1])
    components = int(reader.GetNumberOfComponents())
    dtype = sitk.GetArrayViewFromImage(
        sitk.Image([1] * max(2, min(3, len(shape))), reader.GetPixelID())
    ).dtype
    needed = int(np.prod(shape, dtype=object)) * components * dtype.itemsize
    size = stored.file.stat().st_size
    if needed > (size if stored.is_raw else size * _MAX_RATIO):
        raise too_small(path, shape)
    if dtype.kind not in "uif":
        raise ReadError(f"{path} holds values of type {dtype}; save their magnitude and read that.")
    if not 2 <= len(shape) <= 4:
        raise ReadError(f"{path} has {len(shape)} axes; two to four can be read.")
    affine = _affine(reader)
    check_affine(path, affine)
    full = (*shape, components) if components > 1 else shape
    if pixels and stored.is_raw:
        # ITK takes a header's size of -1 for values that lie at the end.
        offset = size - needed if stored.offset == -1 else stored.offset
        if offset + needed > size:
            raise too_small(path, shape)
        stored_type = dtype.newbyteorder(">" if stored.is_big_endian else "<")
        array = native(np.memmap(stored.file, stored_type, "r", offset, full))
    elif pixels:
        check_memory(path, needed)
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise ReadError(
                f"The values of {path} are damaged; copy or download it again."
            ) from error
    else:
        array = unread(full, dtype)
    axes = "tzyx"[4 - len(shape) :]
    if axes == "yx":
        array = array[np.newaxis]
    if components == 2 or components > 4:
        array = np.moveaxis(array, -1, -4)
        axes = axes.replace("yx" if axes == "yx" else "zyx", "czyx")
    elif components > 1:
        array = array[..., :3]
    spacing: tuple[float, ...] = spacing_of(affine)
    if "t" in axes:
        spacing = (float(reader.GetSpacing()[3]), *spacing)
    return Volume(
        array=array,
        spacing=spacing,
        unit="mm",
        affine=affine,
        source=path.name,
        axes=axes,
    )


def _affine(reader: sitk.ImageFileReader) -> np.ndarray:
    """(4, 4) voxel (x, y, z) -> RAS mm."""
    ndim = reader.GetDimension()
    used = min(3, ndim)
    direction = np.reshape(reader.GetDirection(), (ndim, ndim))[:used, :used]
    affine = np.eye(4)
    affine[:used, :used] = direction * np.array(reader.GetSpacing()[:used])
    affine[:used, 3] = reader.GetOrigin()[:used]
    return RAS_OF_LPS @ affine


@dataclass(frozen=True)
class _Stored:
    """How the values lie in a file, from `offset` on; -1 is at its end."""

    file: Path
    offset: int
    is_raw: bool
    """Neither compressed nor text."""
    is_big_endian: bool


def _stored(path: Path) -> _Stored:
    """Where the values are: in this file, or in one beside it."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        for _ in range(_MAX_LINES):
            line = file.readline(_MAX_LINE)
            key, _, value = line.decode(errors="replace").partition("=")
            fields[key.strip().lower()] = value.strip()
            if key.strip().lower() == "elementdatafile":
                break
        end = file.tell()

    def says(*keys: str) -> bool:
        return any(fields.get(key, "").lower().startswith("t") for key in keys)

    name = fields.get("elementdatafile")
    if name is None:
        raise ReadError(f"{path} is not a MetaImage file: it does not say where its values are.")
    is_raw = says("binarydata") and not says("compresseddata")
    is_big = says("binarydatabyteordermsb", "elementbyteordermsb")
    if name.upper() == "LOCAL":
        return _Stored(path, end, is_raw, is_big)
    place = file_beside(path, name)
    skipped = fields.get("headersize", "0")
    offset = int(skipped) if re.fullmatch(r"-1|\d{1,9}", skipped) else 0
    return _Stored(place, offset, is_raw, is_big)
