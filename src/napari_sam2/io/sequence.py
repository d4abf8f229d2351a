"""Numbered files in: TIFF, PNG or JPEG, which are the slices, times and channels of one image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from napari_sam2.io.guard import clear_errors
from napari_sam2.io.kinds import SUFFIXES, pages_of
from napari_sam2.io.tiff import read_tiff, tiff_form
from napari_sam2.io.volume import ReadError, Volume

TRACKS = ("res_track.txt", "man_track.txt")
"""Of the Cell Tracking Challenge, beside the masks of each frame."""


def read_sequence(source: Path | Sequence[Path]) -> Volume:
    """Read numbered files as one image, in the order of their numbers (2 before 10).

    source: a folder, or the files. A number after t, time or frame counts time points, one after c,
    ch or channel channels, another slices; files of stacks are time points. So `t000.tif`... is a
    time-lapse, `cell_t1_z5_c0.tif`... all of it. A folder of the Cell Tracking Challenge with
    tracks is one, too, and holds labels.

    Raises: ReadError if the files are not numbered alike, or differ in size or type.
    """
    if isinstance(source, Path):
        files, place = pages_of(source), source
    else:
        files, place = list(source), source[0].parent
    by_name = {file.name: file for file in files}
    files = [by_name[name] for name in tifffile.natural_sorted(by_name)]
    if len(files) == 1:
        return _read(files[0])
    first = _read(files[0])
    _check_alike(files)
    leading, counts = _numbering(place, files, first.axes)
    is_tracked = any((place / name).exists() for name in TRACKS)
    if is_tracked:
        leading = leading.replace("z", "t")
    if set(leading) & set(first.axes.replace("yx", "", 1)):
        raise ReadError(f"{place} holds numbered files that do not make one image; give one file.")

    import dask.array as da

    none = np.empty((0,) * first.array.ndim, first.array.dtype)  # or dask would open every file
    blocks = [da.from_array(_Page(file, first), chunks=-1, name=False, meta=none) for file in files]
    stack = da.stack(blocks).reshape(*counts, *first.array.shape)
    letters = leading + first.axes
    if first.axes == "yx" and leading == "c":
        letters = "czyx"
    elif first.axes == "yx":  # the one slice of a picture is no axis of the sequence
        stack = stack[(slice(None),) * len(leading) + (0,)]
    order = [letters.index(axis) for axis in "tczyx" if axis in letters]
    axes = "".join(axis for axis in "tczyx" if axis in letters)
    known = dict(zip(first.axes if first.axes != "yx" else "zyx", first.spacing, strict=True))
    return Volume(
        array=stack.transpose(*order, *range(len(order), stack.ndim)),
        spacing=tuple(known.get(axis, 1.0) for axis in axes if axis != "c"),
        unit=first.unit,
        source=place.name,
        axes=axes,
        notes=first.notes,
        is_labels=is_tracked and first.array.dtype.kind in "ui" and "c" not in axes,
    )


class _Page:
    """One file of a sequence, read when dask asks for it."""

    def __init__(self, path: Path, like: Volume) -> None:
        self.path = path
        self.shape, self.dtype, self.ndim = like.array.shape, like.array.dtype, like.array.ndim

    def __getitem__(self, index: Any) -> np.ndarray:
        with clear_errors(self.path):
            return np.asarray(_read(self.path).array[index])


def _read(path: Path) -> Volume:
    if _is_tiff(path):
        return read_tiff(path)
    from napari_sam2.io.picture import read_picture

    return read_picture(path)


def _form(path: Path) -> tuple[tuple[int, ...], Any, str]:
    """Size, type of the values and axes, from the header."""
    if _is_tiff(path):
        return tiff_form(path)
    from napari_sam2.io.picture import picture_form

    return picture_form(path)


def _is_tiff(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES["TIFF"])


def _check_alike(files: list[Path]) -> None:
    first: tuple[Any, ...] | None = None
    for file in files:
        with clear_errors(file):
            found = _form(file)
        first = first or found
        for what, one, wanted in zip(("size", "type", "axes"), found, first, strict=True):
            if one != wanted:
                raise ReadError(
                    f"{file} differs from {files[0].name} in {what} ({one} and {wanted}); put the "
                    "files that belong together into a folder."
                )


def _numbering(place: Path, files: list[Path], axes: str) -> tuple[str, tuple[int, ...]]:
    """The axes along which file names count, and how far each counts."""
    parts = [re.split(r"(\d+)", file.stem) for file in files]
    if len({tuple(p[::2]) for p in parts}) > 1:
        raise ReadError(
            f"{place} holds pictures that are not numbered alike; give one of them, or put those "
            "that belong together into a folder."
        )
    numbers = np.array([[int(n) for n in p[1::2]] for p in parts], dtype=object)
    varying = [column for column in range(numbers.shape[1]) if len(set(numbers[:, column])) > 1]
    named = "".join(_counted_by(parts[0][2 * column], axes) for column in varying)
    counts = tuple(len(set(numbers[:, column])) for column in varying)
    is_grid = int(np.prod(counts)) == len(files) and len(set(named)) == len(named)
    if not is_grid:  # only one order can be told
        return _counted_by("", axes), (len(files),)
    return named, counts


def _counted_by(word: str, axes: str) -> str:
    """The axis that a number behind a word counts; in files of stacks, time."""
    letters = re.sub(r"[^a-z]+$", "", word.lower())
    last = re.split(r"[^a-z]+", letters)[-1]
    if last in ("t", "time", "timepoint", "tp", "frame"):
        return "t"
    if last in ("c", "ch", "channel"):
        return "c"
    return "t" if axes != "yx" else "z"
