"""What a reader hands on and a writer needs: an array with its place in the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""(4, 4) from millimetres as DICOM and ITK count them (left, posterior, superior) to RAS, and back.
"""


class ReadError(ValueError):
    """A file cannot be read as an image. The message is one sentence that says what to do."""


class WriteError(OSError):
    """A labels file cannot be written. The message is one sentence that says what to do.

    It is no ValueError: where a writer raises one, napari's Save says nothing of it.
    """


@dataclass(frozen=True)
class Volume:
    """An image as read from a file: a stack of slices, a time-lapse, one picture, or several of
    them along time and channels.

    array: its axes are `axes`; one picture ("yx") has z = 1 all the same. Colour adds a last
        axis of 3. It may be lazy (a memory map, dask): read it slice by slice.
    spacing: distance between neighbours along each axis but channels, in `unit`; along "t" it is
        the frame interval in seconds. 1.0 where the file does not say.
    unit: "mm", "um", or "pixel" where the file does not say.
    affine: (4, 4) from voxel indices (x, y, z, 1), in that order, to RAS millimetres
        (right, anterior, superior), or None for files without a place in a patient.
    source: a few words for people: the file's name, and what was chosen from it. No patient data.
    axes: what the array's axes are: "zyx", "tyx" (frames in time), "yx", or "tzyx", "czyx", "tcyx",
        "tczyx".
    notes: what the reader found odd (missing slices, say), one sentence each.
    nifti_header: the header of the NIfTI file it came from, so that labels get the same one.
    files: the DICOM file of each slice along z, so that a segmentation can refer to them.
    frames: the number of each of these slices within its file, from 1, if one holds several.
    windows: intensity windows that the file proposes, (low, high) by name.
    channels: names of the channels along "c".
    pyramid: the same image at falling resolutions, which the file holds for display; arrays with
        the same axes as `array`, which is not among them.
    is_labels: whether the file says that its values are ids of objects.
    is_inverted: whether the file says that small values are to be shown bright.
    """

    array: np.ndarray
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    unit: str = "pixel"
    affine: np.ndarray | None = None
    source: str = "array"
    axes: str = "zyx"
    notes: tuple[str, ...] = ()
    nifti_header: Any = None
    files: tuple[Path, ...] = ()
    frames: tuple[int, ...] = ()
    windows: dict[str, tuple[float, float]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    pyramid: tuple[Any, ...] = ()
    is_labels: bool = False
    is_inverted: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels along the axes, without colour; (z, y, x) from `read_volume`."""
        return self.array.shape[: max(3, len(self.axes))]

    @property
    def voxel_size(self) -> float:
        """The volume of a voxel, in `unit` cubed; of a sheared grid less than its edges' product.

        Of a time-lapse of pictures ("tyx") it means nothing.
        """
        edges = float(np.prod(self.spacing[-3:]))
        if self.affine is None:
            return edges
        columns = self.affine[:3, :3]  # in mm, whatever `unit` is
        return edges * float(abs(np.linalg.det(columns / np.linalg.norm(columns, axis=0))))


@dataclass(frozen=True)
class ImageInfo:
    """What is in a file or folder, told without reading pixels.

    series: what to give as `series` to read this one, or None where there is only one.
    kind: the format ("NIfTI", "OME-TIFF"), or for DICOM the modality ("CT").
    description: the file's name, or what the file says about the series. No patient data.
    shape: number of voxels along `axes` (as in `Volume`; colour is left out).
    dtype: the type of its values once read.
    spacing, unit: as in `Volume`; of one picture, along "yx" alone, too.
    orientation: where x, y and z grow to: "LPS" is left, posterior, superior, the letters nearest
        for an oblique image; None for images without a place in a patient.
    channels, notes: as in `Volume`.
    """

    series: str | None
    kind: str
    description: str
    shape: tuple[int, ...]
    axes: str
    dtype: str
    spacing: tuple[float, ...]
    unit: str
    orientation: str | None
    channels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Distance between neighbouring voxels along (z, y, x), in mm, of an (x, y, z) -> mm affine."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(z), float(y), float(x)


def native(array: np.ndarray) -> np.ndarray:
    """The same array in this machine's byte order, which torch needs; slice by slice if mapped."""
    dtype = array.dtype.newbyteorder("=")
    if array.dtype == dtype:
        return array
    return by_slice(array, dtype, lambda block: block.astype(dtype))


def by_slice(
    array: np.ndarray, dtype: DTypeLike, convert: Callable[[np.ndarray], np.ndarray]
) -> Any:
    """A dask array that reads and converts one slice (the last two axes) when it is needed."""
    import dask.array as da

    chunks = (*([1] * (array.ndim - 2)), *array.shape[-2:])
    # Without a name of its own, dask would read the whole array to make one.
    return da.from_array(Uncopied(array), chunks=chunks, name=False).map_blocks(
        convert, dtype=np.dtype(dtype), meta=np.empty((0,) * array.ndim, dtype)
    )


class Uncopied:
    """What dask needs of an array: shape, dtype and indexing. A whole array it would copy."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape, self.dtype, self.ndim = tuple(array.shape), array.dtype, len(array.shape)

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]


def unread(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Zeros in place of pixels that are not needed; they take no memory."""
    import dask.array as da

    return da.zeros(shape, dtype=dtype)


def check_memory(path: Path, needed: int) -> None:
    """Raises: ReadError if an image that has to be read at once does not fit into free memory."""
    import psutil

    free = psutil.virtual_memory().available
    if needed > free:
        raise ReadError(
            f"{path} needs {needed / 2**30:.1f} GB of memory, and {free / 2**30:.1f} GB are free; "
            "save it uncompressed, which is read slice by slice, or use a larger machine."
        )


def label_dtype(labels: np.ndarray) -> np.dtype:
    """The smallest unsigned integer type that holds every id in `labels`."""
    return np.min_scalar_type(int(labels.max(initial=0)))
