"""NRRD in: .nrrd, and .nhdr with its data beside it."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any, BinaryIO

import nrrd
import numpy as np

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

_TO_RAS = {"right": (0, 1), "left": (0, -1), "anterior": (1, 1), "posterior": (1, -1)} | {
    "superior": (2, 1),
    "inferior": (2, -1),
}
_SHORT = dict(zip("RLAPSI", _TO_RAS, strict=True))
_COLOURS = ("rgb-color", "rgba-color", "3-color", "4-color")
_MM = {"mm": 1.0, "um": 1e-3, "µm": 1e-3, "microns": 1e-3, "m": 1e3}


def read_nrrd(path: Path, pixels: bool = True) -> Volume:
    """Read an image; raw data is memory-mapped, compressed data is unpacked into memory.

    Axes that the header does not place in space are colours, time (kind "time" or "list") or
    channels. pixels: False leaves the values out.

    Raises: ReadError for damaged files, and data files that lie elsewhere than beside the header.
    """
    with path.open("rb") as file:
        header = nrrd.read_header(file)
        shape = tuple(int(n) for n in header["sizes"])
        if min(shape) < 1:
            raise ReadError(f"{path} holds no voxels: its header gives the shape {shape}.")
        if header["type"] == "block":
            raise ReadError(f"{path} holds blocks of bytes, not numbers; it cannot be read.")
        dtype = nrrd.reader._determine_datatype(header)
        values = unread(shape, dtype) if not pixels else _values(path, header, file, shape, dtype)
    return _arranged(path, values, header)


def _arranged(path: Path, values: Any, header: dict[str, Any]) -> Volume:
    """The values (their axes as in the header, the fastest first) as a `Volume`."""
    ndim = len(values.shape)
    kinds = [str(kind).lower() for kind in header.get("kinds", ["???"] * ndim)]
    directions = header.get("space directions")
    if directions is not None:
        directions = np.array(
            [np.full(3, np.nan) if d is None else np.asarray(d, float) for d in directions]
        )
        in_space = [axis for axis in range(ndim) if not np.isnan(directions[axis]).all()]
    else:
        other = (*_COLOURS, "time", "list", "vector")
        in_space = [axis for axis in range(ndim) if kinds[axis] not in other][:3]
    roles = ["xyz"[in_space.index(a)] if a in in_space else "" for a in range(ndim)]
    for axis in [a for a in range(ndim) if not roles[a]]:
        is_colour = kinds[axis] in _COLOURS and values.shape[axis] in (3, 4)
        is_time = kinds[axis] in ("time", "list") and "t" not in roles
        roles[axis] = "s" if is_colour else "t" if is_time else "c"
    wanted = [role for role in "tczyxs" if role in roles]
    if len(wanted) != ndim or "y" not in roles or len(in_space) > 3:
        raise ReadError(
            f"{path} has axes of the kinds {', '.join(kinds)}; volumes with time and channels are "
            "the most that can be read."
        )
    array = values.transpose([roles.index(role) for role in wanted])
    axes = "".join(wanted).removesuffix("s")
    if "s" in roles:
        array = array[..., :3]
    if "z" not in roles:
        array = array[(slice(None),) * axes.index("y") + (np.newaxis,)]
        axes = axes if axes in ("yx", "tyx") else axes.replace("yx", "zyx")
    affine, spacing, unit = _place(path, header, directions, in_space)
    if axes == "tyx":
        array = array[:, 0]
        spacing = spacing[1:]
    if "t" in axes:
        steps = np.asarray(header.get("spacings", np.ones(ndim)), float)
        step = float(steps[roles.index("t")])
        spacing = (step if np.isfinite(step) and step > 0 else 1.0, *spacing)
    return Volume(
        array=native(array),
        spacing=spacing,
        unit=unit,
        affine=None if axes == "tyx" else affine,
        source=path.name,
        axes=axes,
        is_labels="Segment0_ID" in header and array.dtype.kind in "ui" and "c" not in axes,
    )


def _place(
    path: Path, header: dict[str, Any], directions: np.ndarray | None, in_space: list[int]
) -> tuple[np.ndarray | None, tuple[float, ...], str]:
    """Affine, spacing (z, y, x) and unit."""
    if directions is None:
        sizes = np.asarray(header.get("spacings", np.ones(len(header["sizes"]))), float)[in_space]
        sizes = np.where(np.isfinite(sizes) & (sizes > 0), sizes, 1.0)
        return None, (*[1.0] * (3 - len(sizes)), *(float(n) for n in sizes[::-1])), "pixel"
    units = [str(unit) for unit in header.get("space units", ["mm"])]
    factor = _MM.get(units[0], 1.0)
    columns = directions[in_space].T
    if columns.shape[1] == 2:  # one slice, 1 mm thick
        columns = np.column_stack([columns, np.cross(*columns.T)])
        columns[:, 2] /= np.linalg.norm(columns[:, 2]) or 1.0
    affine = np.eye(4)
    affine[:3, :3] = columns * factor
    affine[:3, 3] = np.asarray(header.get("space origin", np.zeros(3)), float) * factor
    affine[:3] = _to_ras(header) @ affine[:3]
    check_affine(path, affine)
    return affine, spacing_of(affine), "mm"


def _to_ras(header: dict[str, Any]) -> np.ndarray:
    """(3, 3) from the header's space to right, anterior, superior; unnamed spaces are LPS."""
    name = str(header.get("space", "LPS"))
    words = [_SHORT[c] for c in name] if len(name) == 3 and set(name) <= set(_SHORT) else []
    words = words or [word for word in name.lower().split("-") if word in _TO_RAS]
    matrix = np.zeros((3, 3))
    for column, word in enumerate(words[:3]):
        row, sign = _TO_RAS[word]
        matrix[row, column] = sign
    return matrix if abs(np.linalg.det(matrix)) == 1 else RAS_OF_LPS[:3, :3]


# ---- values


def _values(
    path: Path, header: dict[str, Any], file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """The values with axes as in the header, mapped where they are stored as they are."""
    count = int(np.prod(shape, dtype=object))
    needed = count * dtype.itemsize
    encoding = str(header["encoding"]).lower()
    detached = header.get("data file", header.get("datafile"))
    place = path if detached is None else file_beside(path, str(detached))
    start = file.tell() if detached is None else 0
    line_skip = int(header.get("line skip", header.get("lineskip", 0)))
    byte_skip = int(header.get("byte skip", header.get("byteskip", 0)))
    size = place.stat().st_size
    if encoding == "raw":
        if line_skip:
            start = _skip_lines(place, start, line_skip)
        start = size - needed if byte_skip == -1 else start + byte_skip
        if start < 0 or start + needed > size:
            raise too_small(path, shape)
        return np.memmap(place, dtype, "r", start, shape, order="F")
    if needed > max(size, 1) * 1100 and encoding != "bzip2" and encoding != "bz2":
        raise too_small(path, shape)
    check_memory(path, needed)
    if encoding in ("ascii", "text", "txt"):
        with place.open("rb") as data:
            data.seek(start)
            values = np.array(data.read().split(), dtype)
        if values.size != count:
            raise too_small(path, shape)
        return values.reshape(shape, order="F")
    unpack: Any = {"gzip": gzip.open, "gz": gzip.open, "bzip2": bz2.open, "bz2": bz2.open}.get(
        encoding
    )
    if unpack is None:
        raise ReadError(f"{path} is stored in the encoding {encoding!r}, which cannot be read.")
    with place.open("rb") as data:
        data.seek(_skip_lines(place, start, line_skip))
        with unpack(data) as unpacked:
            unpacked.read(max(0, byte_skip))
            values = unpacked.read(needed)  # no more, whatever it would unpack to
            unpacked.read(1)  # at its end, the file's checksum is compared
    if len(values) < needed:
        raise too_small(path, shape)
    return np.frombuffer(values, dtype).reshape(shape, order="F")


def _skip_lines(place: Path, start: int, lines: int) -> int:
    with place.open("rb") as data:
        data.seek(start)
        for _ in range(lines):
            data.readline()
        return data.tell()
