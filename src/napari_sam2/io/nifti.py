"""NIfTI in, a file or a pair of .hdr and .img: the X, Y, Z, T of the file becomes (t, z, y, x)."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from napari_sam2.io.guard import check_affine, logged_errors
from napari_sam2.io.volume import (
    ReadError,
    Volume,
    by_slice,
    check_memory,
    native,
    spacing_of,
    unread,
)

_MM = {"unknown": 1.0, "mm": 1.0, "micron": 1e-3, "meter": 1e3}
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
_MAX_GZIP_RATIO = 1100  # deflate cannot pack more than 1032 : 1


def read_nifti(path: Path, pixels: bool = True) -> Volume:
    """Read all of a file: (z, y, x), with time (t, z, y, x), with components (t, c, z, y, x).

    An uncompressed file is memory-mapped, so slices are read when they are used; a compressed one
    is unpacked into memory. Values are scaled by the header's scl_slope and scl_inter slice by
    slice, to float32. pixels: False leaves the values out.

    Raises: ReadError for damaged files and for an affine that is of no use.
    """
    with logged_errors("nibabel.global"):
        image: Any = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Pair):
        raise ReadError(f"{path} is not a NIfTI file.")
    header = image.header
    _check_size(path, _file_of(image, "image", path), header)
    space, time = header.get_xyzt_units()
    _check_spacing(path, _file_of(image, "header", path), header)
    affine = np.diag([*[_MM.get(space, 1.0)] * 3, 1.0]) @ np.asarray(image.affine, np.float64)
    check_affine(path, affine)
    dtype = header.get_data_dtype()
    if dtype.kind == "c":
        raise ReadError(f"{path} holds complex numbers; save its magnitude and read that.")
    if dtype.kind not in "uif" and dtype.names is None:
        raise ReadError(f"{path} holds values of type {dtype}, which cannot be read.")

    shape = image.shape
    axes = "xyztcuv"[: len(shape)]
    for axis in reversed(range(3, len(shape))):  # one time point or component is none
        if shape[axis] == 1:
            shape, axes = shape[:axis] + shape[axis + 1 :], axes[:axis] + axes[axis + 1 :]
    if axes not in ("x", "xy", "xyz", "xyzt", "xyzc", "xyztc"):
        raise ReadError(
            f"{path} has shape {image.shape}; volumes with time and components are the most that "
            "can be read."
        )
    is_flat = len(shape) < 3
    stored = (*shape, *[1] * (3 - len(shape)))
    proxy: Any = image.dataobj
    slope, inter = float(proxy.slope), float(proxy.inter)
    array = (
        unread(stored, dtype)
        if not pixels
        else _stored_values(path, image).reshape(stored, order="F")
    )
    array = array.T
    if axes == "xyztc":
        array, axes = array.swapaxes(0, 1), "xyzct"
    if dtype.names:  # RGB24 and RGBA32 are records of 8-bit samples
        if not pixels:
            array = unread((*array.shape, 3), np.uint8)
        else:
            array = array[..., np.newaxis].view(np.uint8)[..., :3]
    elif slope != 1 or inter != 0 or (dtype.kind == "f" and dtype.itemsize > 4):
        array = by_slice(
            array, np.float32, lambda block: (block * np.float64(slope) + inter).astype(np.float32)
        )
    spacing: tuple[float, ...] = spacing_of(affine)
    if "t" in axes:
        step = float(header.get_zooms()[3]) * _SECONDS.get(time, 1.0)
        spacing = (step if np.isfinite(step) and step > 0 else 1.0, *spacing)
    low, high = float(header["cal_min"]), float(header["cal_max"])
    return Volume(
        array=native(array),
        spacing=spacing,
        unit="mm",
        affine=affine,
        source=path.name,
        axes="yx" if is_flat else axes[::-1],
        nifti_header=header.copy(),
        windows={"of the file": (low, high)} if -np.inf < low < high < np.inf else {},
        is_labels=header.get_intent()[0] == "label" and array.dtype.kind in "ui",
    )


def _file_of(image: Any, part: str, path: Path) -> Path:
    """Where the "header" or the "image" lies, which are one file, or a pair."""
    names = image.file_map
    return Path(names[part].filename if part in names else names["image"].filename or path)


def _stored_values(path: Path, image: Any) -> np.ndarray:
    """The values as they lie in the file: a memory map, or unpacked."""
    if path.suffix != ".gz":
        return np.asanyarray(image.dataobj.get_unscaled())
    needed = _claimed(image.header)
    check_memory(path, needed)
    with gzip.open(path) as file:
        file.seek(image.dataobj.offset)
        values = file.read(needed)
        while file.read(2**20):  # at its end, the file's checksum is compared
            pass
    if len(values) < needed:
        raise ReadError(f"{path} is truncated: it holds too few values; copy it again.")
    return np.frombuffer(values, image.dataobj.dtype)


def _claimed(header: nibabel.Nifti1Header) -> int:
    """Bytes of pixels that the header says there are."""
    count = np.prod([int(n) for n in header.get_data_shape()], dtype=object)
    return int(count) * int(header.get_data_dtype().itemsize)


def _check_spacing(path: Path, file_of_header: Path, header: nibabel.Nifti1Header) -> None:
    """nibabel takes a spacing of 0 as 1; a place that rests on it is wrong."""
    with nibabel.openers.ImageOpener(str(file_of_header)) as file:
        stored: Any = type(header).from_fileobj(file, check=False)
    spacing = stored["pixdim"][1 : 1 + min(3, len(header.get_data_shape()))]
    if stored["sform_code"] <= 0 and not (np.isfinite(spacing).all() and (spacing != 0).all()):
        raise ReadError(
            f"The header of {path} gives a spacing of {', '.join(f'{s:g}' for s in spacing)} mm; "
            "repair it, for example with nibabel."
        )


def _check_size(path: Path, file_of_values: Path, header: nibabel.Nifti1Header) -> None:
    """Compare what the header claims with the file's size before anything is allocated."""
    shape = header.get_data_shape()
    if not shape or min(shape) < 1:
        raise ReadError(f"{path} holds no voxels: its header gives the shape {shape}.")
    packed = path.suffix == ".gz"
    if _claimed(header) > file_of_values.stat().st_size * (_MAX_GZIP_RATIO if packed else 1):
        raise ReadError(
            f"{path} is truncated or damaged: its header gives the shape "
            f"{tuple(int(n) for n in shape)}, but the file is too small for that; copy or download "
            "it again."
        )
