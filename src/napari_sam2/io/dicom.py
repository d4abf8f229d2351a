"""DICOM in: the series of a folder, a file, a DICOMDIR or a zip archive; slices in order of
position."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
import pydicom

from napari_sam2.counted import listed
from napari_sam2.io import dicom_header as read
from napari_sam2.io.dicom_files import Source, is_archive, is_dicomdir, open_all
from napari_sam2.io.dicom_frames import Frame, frames_of
from napari_sam2.io.dicom_grid import Grid, grid_of, grids_of
from napari_sam2.io.dicom_pixels import check_decoders, lazy_pixels, value_type
from napari_sam2.io.dicom_suv import suv_factor
from napari_sam2.io.kinds import contents
from napari_sam2.io.place import orientation
from napari_sam2.io.volume import ImageInfo, ReadError, Volume

__all__ = [
    "DicomInfo",
    "DicomSeries",
    "find_series",
    "list_series",
    "read_dicom",
    "read_dicom_image",
]


@dataclass(frozen=True, kw_only=True)
class DicomInfo(ImageInfo):
    """What the headers of a series tell.

    uid: SeriesInstanceUID, empty where the files have none; parts of a series that fit on no common
        grid (a localizer, say) share it.
    volumes: how many lie at the same place. files: how many there are.
    """

    uid: str
    volumes: int
    files: int


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """A series of images whose headers are read."""

    info: DicomInfo
    grid: Grid
    name: str  # what to call it

    def read(self) -> Volume:
        """The series as a `Volume` whose array is lazy (dask, a chunk per slice), in modality units
        (HU for CT, SUV for PET where the files allow it).

        Raises: ReadError if a decoder is missing; when slices are computed, if they are damaged.
        """
        frames = [f for volume in self.grid.frames for f in volume]
        check_decoders(frames)
        array = lazy_pixels(self.grid.frames)
        if self.grid.axes == "tyx":
            array = array[:, 0]
        elif not self.grid.axis:
            array = array[0]
        return Volume(
            array=array,
            spacing=self.info.spacing,
            unit=self.info.unit,
            affine=self.grid.affine,
            source=self.name,
            axes=self.info.axes,
            notes=self.info.notes,
            files=_paths(frames),
            frames=_numbers(frames),
            windows=self.grid.windows,
            channels=self.info.channels,
            is_inverted=frames[0].is_inverted,
        )


def list_series(path: Path) -> list[DicomInfo]:
    """What is in a folder with its subfolders, a DICOMDIR or a zip archive, or in the series that a
    file belongs to; only headers are read.

    Raises: as `find_series`.
    """
    return [series.info for series in find_series(path)]


def find_series(path: Path) -> list[DicomSeries]:
    """The series of images in a folder with its subfolders, a DICOMDIR or a zip archive, or the one
    that a file belongs to; only headers are read.

    Files of which no picture can be read are left out, as notes of the series beside them tell.

    Raises: ReadError if there is none, or `path` itself is damaged.
    """
    parts: list[tuple[pydicom.Dataset, list[Frame], list[str]]] = []
    with _quiet():
        is_file = not (path.is_dir() or is_archive(path) or is_dicomdir(path))
        found, damaged = _files_by_series(path, is_file)
        for one in found:
            frames, notes = _in_units(one)
            for part in grids_of(frames):
                if is_file and all(f.source.path != path for f in part):
                    continue  # of the parts of its series, only the one that it belongs to is meant
                if len(part) == 1 and part[0].problem:
                    damaged[part[0].source] = part[0].problem
                elif all(f.problem for f in part):  # not one slice of many, but a scan
                    raise ReadError(part[0].problem)
                else:
                    parts.append((one[0][1], part, notes))
        if is_file and Source(path) in damaged:
            raise ReadError(damaged[Source(path)])
        if not parts:
            raise ReadError(next(iter(damaged.values())))
        folders = {f.source.folder for _, part, _ in parts for f in part}
        series = []
        for number, (header, part, notes) in enumerate(parts, start=1):
            several = len(parts) > 1
            grid = grid_of(part)
            notes = [*notes, *_damaged(part), *_left_out(part, damaged, folders)]
            files = len({f.source for f in part})
            info = _info(header, files, grid, notes, str(number) if several else None)
            suffix = f", series {number} of {len(parts)}" if several else ""
            series.append(DicomSeries(info, grid, path.name + suffix))
    return series


def read_dicom_image(path: Path, series: str | int | None = None) -> Volume:
    """Everything of one series, lazily, slice by slice, with its place in the patient.

    path: a folder, searched with its subfolders; any file of the series; a DICOMDIR; a zip archive.
    series: its number in `list_series`, from 1, or its SeriesInstanceUID, where there are several.

    The array's axes are "zyx", or "tzyx" or "czyx" where several volumes lie at the same place; z
    grows along the normal of the slices. `files` holds a path per slice, those of the first volume
    first; none for an archive.

    Raises: ReadError when there is no image, a choice is needed, or a decoder is missing.
    """
    return _choose(path, series).read()


def read_dicom(
    path: Path,
    volume: int | None = None,
    series: str | None = None,
    channel: int | None = None,
) -> Volume:
    """One volume (z, y, x) of a series, or the time points of a single slice (t, y, x), lazily, as
    `read_dicom_image`.

    path, series: as for `read_dicom_image`. volume, channel: which, from 0, where the series holds
    several at the same place: time points, or else echoes, b-values and other kinds of picture.

    Raises: ReadError when there is no image, a choice is needed or a decoder is missing.
    """
    chosen = _choose(path, series)
    grid = chosen.grid
    is_cine = grid.axis == "t" and len(grid.frames[0]) == 1
    index = _which(chosen, "channel" if grid.axis == "c" else "volume", volume, channel, is_cine)
    image = chosen.read()
    if index is None:
        note = "These are time points of one slice; its place in the patient is not kept."
        return replace(
            image,
            array=image.array if image.axes == "tyx" else image.array[:, 0],
            axes="tyx",
            spacing=(image.spacing[0], *image.spacing[-2:]),
            affine=None,
            notes=(*image.notes, *((note,) if grid.affine is not None else ())),
        )
    frames = grid.frames[index]
    return replace(
        image,
        array=image.array[index] if grid.axis else image.array,
        axes="yx" if len(frames) == 1 and grid.affine is None else "zyx",
        spacing=grid.voxel,
        files=_paths(frames),
        frames=_numbers(frames),
        channels=(),
    )


def _which(
    chosen: DicomSeries, option: str, volume: int | None, channel: int | None, may_be_all: bool
) -> int | None:
    """Which of the volumes at one place was chosen with --volume or --channel; None is all.

    option: the one of these that a choice is made with. Raises: ReadError.
    """
    given = {"volume": volume, "channel": channel}
    index = given.pop(option)
    ((other, other_index),) = given.items()
    name, count = chosen.name, chosen.info.volumes
    plural = f"{count} {option}s"
    if index is None and count > 1 and not may_be_all:
        kinds = ", ".join(chosen.info.channels) or "time points, say"
        raise ReadError(
            f"The series {name} holds {plural} at the same place ({kinds}); choose one with "
            f"--{option} 0 to --{option} {count - 1}."
        )
    if other_index not in (None, 0):
        raise ReadError(f"The series {name} holds a single {other}; leave out --{other} "
                        f"{other_index}.")  # fmt: skip
    if index is not None and not 0 <= index < count:
        raise ReadError(
            f"The series {name} holds {plural}; there is no --{option} {index}, use 0 to "
            f"{count - 1}."
            if count > 1
            else f"The series {name} holds a single {option}; leave out --{option} {index}."
        )
    return None if index is None and may_be_all else index or 0


def _paths(frames: list[Frame]) -> tuple[Path, ...]:
    return tuple(f.source.path for f in frames if f.source.member is None)


def _numbers(frames: list[Frame]) -> tuple[int, ...]:
    return tuple(f.index + 1 for f in frames if f.index is not None)


# ---- which series


def _choose(path: Path, wanted: str | int | None) -> DicomSeries:
    series = find_series(path)
    chosen = [
        one
        for number, one in enumerate(series, start=1)
        if wanted in (None, one.info.uid, number, str(number))
    ]
    if len(chosen) == 1:
        return chosen[0]
    asked = f"there is no series {wanted}; " if not chosen else ""
    described = [_describe(one.info) for one in (chosen or series)]
    raise ReadError(
        f"{path} holds {len(series)} series: {asked}choose one with --series: "
        f"{listed(described, 12)}."
    )


def _describe(info: DicomInfo) -> str:
    shape = " x ".join(str(n) for n in info.shape)
    return f"{info.series} ({info.kind} {info.description!r}, {shape})"


_Files = list[tuple[Source, pydicom.Dataset, list[Frame]]]


def _files_by_series(path: Path, is_file: bool) -> tuple[list[_Files], dict[Source, str]]:
    """Images by series, with headers and frames, in order of series numbers; and files of which
    nothing can be read, and why. Raises: ReadError if there are neither."""
    own_key = _key(_own_header(path)) if is_file else None
    found: dict[tuple[str, ...], _Files] = defaultdict(list)
    others: list[tuple[Source, int]] = []
    objects: list[str] = []
    damaged: dict[Source, str] = {}
    least: dict[tuple[PurePath, str], int] = {}  # bytes of images in a folder, by their ending
    for source, file, size in open_all(path):
        try:
            header = read.read_header(source, file, size)
            if header is None:
                others.append((source, size))
            elif not read.is_image(header):
                objects.append(read.modality(header) or "object")
            elif own_key in (None, key := _key(header)):
                frames = list(frames_of(source, header, size))
                found[key].append((source, header, frames))
                place = source.folder, _ending(source)
                least[place] = min(size, least.get(place, size))
        except read.DamagedFile as error:
            damaged[source] = str(error)
    for source, size in others:
        known = least.get((source.folder, _ending(source)))
        if known is not None and (size == 0 or 2 * size >= known):
            damaged[source] = f"{source} is damaged: it does not begin as DICOM does."
    if not found and not damaged:
        names = [source.name for source, _ in others]
        raise ReadError(_nothing_found(path, names, objects))
    by_number = sorted(
        found.values(), key=lambda files: read.number(files[0][1], "SeriesNumber") or 0
    )
    return by_number, damaged


def _ending(source: Source) -> str:
    """Of its name; "" of one without, such as IM0001, and of those that are UIDs."""
    suffix = PurePath(source.name).suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def _nothing_found(path: Path, others: list[str], objects: list[str]) -> str:
    """What to say of a folder or archive without images. others: names of its other files;
    objects: kinds of DICOM objects in it that are no images."""
    said = f"The {'folder' if path.is_dir() else 'file'} {path} holds no DICOM images"
    if objects:
        counts = " and ".join(f"{n} DICOM {kind}" for kind, n in Counter(objects).most_common(3))
        return f"{said}, only {counts}; give the folder with the images that they belong to."
    if others:
        return f"{said}, but {contents(others)}; give one of them, or the folder with the images."
    return f"{said}: it is empty."


def _own_header(path: Path) -> pydicom.Dataset:
    with path.open("rb") as file:
        header = read.read_header(Source(path), file, path.stat().st_size)
    if header is None:
        raise ReadError(f"{path} is not a DICOM image.")
    if not read.is_image(header):
        raise ReadError(
            f"{path} is a DICOM {read.modality(header) or 'object'}, not an image; give the "
            "image's folder."
        )
    return header


def _key(header: pydicom.Dataset) -> tuple[str, ...]:
    """What files of a series share."""
    uid = read.text(header, "SeriesInstanceUID")
    return (
        (uid,)
        if uid
        else tuple(read.text(header, k) for k in ("SeriesNumber", "SeriesDescription", "Modality"))
    )


def _in_units(files: _Files) -> tuple[list[Frame], list[str]]:
    """The frames of a series, those of PET scaled to SUV, and notes on the values."""
    frames = [frame for _, _, own in files for frame in own]
    modality = read.modality(files[0][1])
    notes = []
    if modality == "PT":
        factor, note = suv_factor([header for _, header, _ in files])
        frames = [_scaled(f, factor) for f in frames] if factor != 1 else frames
        notes.append(note)
    if modality == "CT" and not all(f.is_rescaled for f in frames):
        notes.append(
            "The files give no rescale slope and intercept, so values may not be Hounsfield units."
        )
    if any(f.is_inverted for f in frames):
        notes.append("Small values are bright (MONOCHROME1); values are as they are stored.")
    return frames, notes


def _damaged(frames: list[Frame]) -> list[str]:
    """A note on slices that are known to be damaged before anybody looks at them."""
    names = [f.source.name for f in frames if f.problem]
    if not names:
        return []
    return [
        f"{len(names)} of {len(frames)} slices cannot be read: cut off or damaged "
        f"({listed(names, 3)}). Copy or export the series again."
    ]


def _left_out(frames: list[Frame], damaged: Iterable[Source], folders: Set[PurePath]) -> list[str]:
    """A note on files of which nothing can be read, and that may be of this series: they lie beside
    it, or in a folder with no series.

    folders: with files of any series.
    """
    own = {f.source.folder for f in frames}
    names = [s.name for s in damaged if s.folder in own or s.folder not in folders]
    if not names:
        return []
    return [
        f"Left out as damaged: {listed(names, 3)}. What is missing may lie at an end, where no gap "
        "shows; copy or export the series again."
    ]


def _info(
    header: pydicom.Dataset, files: int, grid: Grid, notes: list[str], number: str | None
) -> DicomInfo:
    return DicomInfo(
        series=number,
        kind=read.modality(header) or "DICOM",
        description=read.description(header),
        shape=grid.shape,
        axes=grid.axes,
        dtype=str(value_type([f for volume in grid.frames for f in volume])),
        spacing=grid.spacing,
        unit=grid.unit,
        orientation=orientation(Volume(np.empty(0), affine=grid.affine)),
        channels=grid.names,
        notes=(*grid.notes, *notes),
        uid=read.text(header, "SeriesInstanceUID"),
        volumes=len(grid.frames),
        files=files,
    )


def _scaled(frame: Frame, factor: float) -> Frame:
    return replace(
        frame,
        slope=frame.slope * factor,
        intercept=frame.intercept * factor,
        windows={
            name: (low * factor, high * factor) for name, (low, high) in frame.windows.items()
        },
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the screen and logs what pydicom warns of, which quotes patients' data."""
    logger = logging.getLogger("pydicom")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.addFilter(_drop)
        try:
            yield
        finally:
            logger.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return False
