"""What a reader hands on and a writer needs: an array with its place in the world."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class ReadError(ValueError):
    """A file cannot be read as an image. The message is one sentence that says what to do."""


class WriteError(OSError):
    """A labels file cannot be written. The message is one sentence that says what to do."""


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
    windows: intensity windows that the file proposes, (low, high) by name.
    channels: names of the channels along "c".
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
    windows: dict[str, tuple[float, float]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels along the axes, without colour; (z, y, x) from `read_volume`."""
        return self.array.shape[: max(3, len(self.axes))]


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Distance between neighbouring voxels along (z, y, x), in mm, of an (x, y, z) -> mm affine."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(z), float(y), float(x)


def native(array: np.ndarray) -> np.ndarray:
    """The same array in this machine's byte order, which torch needs."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def label_dtype(labels: np.ndarray) -> np.dtype:
    """The smallest unsigned integer type that holds every id in `labels`."""
    return np.min_scalar_type(int(labels.max(initial=0)))
