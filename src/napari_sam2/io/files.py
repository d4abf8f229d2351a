"""The right reader for a path.

The formats' libraries are imported when a file of theirs turns up, so that starting is quick.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from napari_sam2.io.guard import clear_errors
from napari_sam2.io.kinds import image_kind
from napari_sam2.io.place import orientation
from napari_sam2.io.volume import ImageInfo, ReadError, Volume


def read_volume(
    path: str | os.PathLike[str],
    *,
    volume: int | None = None,
    channel: int | None = None,
    series: str | None = None,
) -> Volume:
    """Read one image as a `Volume` with its array in (z, y, x) order; (t, y, x) for a time-lapse.

    path: as for `read_image`.
    volume: which one, counted from 0, of a 4-D file or a time series of volumes.
    channel: which one, counted from 0, of an image with several.
    series: which DICOM series of a folder (its number in the list that the error shows, or its
        UID), or which image, counted from 1, of a TIFF or OME-Zarr with several.

    Raises: ReadError, one sentence, for anything that cannot be read or must be chosen first.
    """
    path = Path(path)
    with clear_errors(path):
        if image_kind(path) == "DICOM":
            from napari_sam2.io.dicom import read_dicom

            return read_dicom(path, volume, series, channel)
        image = _read(path, series, pixels=True)
        if "c" in image.axes:
            image = take_channel(image, _index(path, image, "c", channel))
        elif channel not in (None, 0):
            raise ReadError(f"{path} holds a single channel; leave out --channel {channel}.")
        if image.axes == "tzyx":
            image = _take_time(image, _index(path, image, "t", volume))
        elif volume not in (None, 0):
            raise ReadError(f"{path} holds a single volume; leave out --volume {volume}.")
    return image


def read_image(path: str | os.PathLike[str], series: str | None = None) -> Volume:
    """Read everything in an image file: all time points and channels, as the file has them.

    path: NIfTI, TIFF, PNG, JPEG, OME-Zarr, NRRD, MHA; any file of a DICOM series, a folder of them,
        a DICOMDIR or a zip; a DICOM SEG or RTSTRUCT; a folder of numbered TIFFs, PNGs or JPEGs.
    series: which, where there are several; as for `read_volume`.

    The array is read slice by slice when it is used, unless the file is compressed as a whole.

    Raises: ReadError, one sentence, for anything that cannot be read or needs a choice of series.
    """
    path = Path(path)
    with clear_errors(path):
        return _read(path, series, pixels=True)


def list_images(path: str | os.PathLike[str]) -> list[ImageInfo]:
    """Find out what is in a file or folder, without reading pixels.

    path: as for `read_image`.

    Raises: ReadError, one sentence, if nothing there is an image.
    """
    path = Path(path)
    with clear_errors(path):
        kind = image_kind(path)
        if kind == "DICOM":
            from napari_sam2.io.dicom import list_series

            return [_without_z(info) for info in list_series(path)]
        names = _series_names(path, kind)
        several = len(names) > 1
        images = [_read(path, name if several else None, pixels=False) for name in names]
        return [
            _without_z(
                ImageInfo(
                    series=name if several else None,
                    kind=kind,
                    description=image.source,
                    shape=tuple(int(n) for n in image.shape),
                    axes=image.axes,
                    dtype=str(image.array.dtype),
                    spacing=image.spacing,
                    unit=image.unit,
                    orientation=orientation(image),
                    channels=image.channels,
                    notes=image.notes,
                )
            )
            for name, image in zip(names, images, strict=True)
        ]


def _without_z(info: ImageInfo) -> ImageInfo:
    """One picture has no z, though a `Volume` of it has."""
    if info.axes != "yx":
        return info
    return replace(info, shape=info.shape[-2:], spacing=info.spacing[-2:])


def take_channel(image: Volume, channel: int) -> Volume:
    """One channel of an image with several."""
    at = image.axes.index("c")
    axes = image.axes.replace("c", "")
    pick = (slice(None),) * at + (channel,)
    array = image.array[pick]
    is_picture = axes == "zyx" and array.shape[0] == 1 and image.affine is None
    name = image.channels[channel] if image.channels else f"channel {channel}"
    return replace(
        image,
        array=array,
        axes="yx" if is_picture else axes,
        channels=(),
        pyramid=tuple(level[pick] for level in image.pyramid),
        source=f"{image.source}, {name}",
        windows={name: image.windows[name]} if name in image.windows else {},
    )


def _take_time(image: Volume, time: int) -> Volume:
    return replace(
        image,
        array=image.array[time],
        axes="zyx",
        spacing=image.spacing[1:],
        pyramid=tuple(level[time] for level in image.pyramid),
        source=f"{image.source}, volume {time}",
    )


def _index(path: Path, image: Volume, axis: str, index: int | None) -> int:
    """The index that was chosen along time or channels, checked."""
    option, plural = {"c": ("channel", "channels"), "t": ("volume", "volumes")}[axis]
    count = int(image.array.shape[image.axes.index(axis)])
    if index is None and count > 1:
        raise ReadError(
            f"{path} holds {count} {plural}; choose one with --{option} 0 to --{option} "
            f"{count - 1}."
        )
    index = index or 0
    if not 0 <= index < count:
        raise ReadError(
            f"{path} holds {count} {plural}; there is no --{option} {index}, use 0 to {count - 1}."
        )
    return index


_SINGLE = ("NIfTI", "picture", "sequence", "NRRD", "MetaImage", "DICOM SEG", "RTSTRUCT")
"""Kinds of files that hold one image."""


def _read(path: Path, series: str | None, pixels: bool) -> Volume:
    kind = image_kind(path)
    if kind in _SINGLE and series not in (None, "1"):
        raise ReadError(f"{path} holds a single image; leave out --series {series}.")
    image: Volume
    if kind == "NIfTI":
        from napari_sam2.io.nifti import read_nifti

        image = read_nifti(path, pixels)
    elif kind == "TIFF":
        from napari_sam2.io.tiff import read_tiff

        image = read_tiff(path, series)
    elif kind == "picture":
        from napari_sam2.io.picture import read_picture

        image = read_picture(path)
    elif kind == "sequence":
        from napari_sam2.io.sequence import read_sequence

        image = read_sequence(path)
    elif kind == "OME-Zarr":
        from napari_sam2.io.zarr import read_zarr

        image = read_zarr(path, series)
    elif kind == "NRRD":
        from napari_sam2.io.nrrd import read_nrrd

        image = read_nrrd(path, pixels)
    elif kind == "MetaImage":
        from napari_sam2.io.metaimage import read_metaimage

        image = read_metaimage(path, pixels)
    elif kind == "DICOM SEG":
        from napari_sam2.io.labels_dicom import read_seg

        image = replace(read_seg(path)[0], is_labels=True)
    elif kind == "RTSTRUCT":
        from napari_sam2.io.labels_rtstruct import read_rtstruct

        image = replace(read_rtstruct(path, pixels=pixels)[0], is_labels=True)
    else:
        from napari_sam2.io.dicom import read_dicom_image

        image = read_dicom_image(path, series)
    if 0 in image.array.shape:
        raise ReadError(f"{path} holds no voxels.")
    return image


def _series_names(path: Path, kind: str) -> list[str]:
    """What chooses each image of a file: "1", "2"..."""
    count = 1
    if kind == "TIFF":
        from napari_sam2.io.tiff import count_series

        count = count_series(path)
    elif kind == "OME-Zarr":
        from napari_sam2.io.zarr import count_images

        count = count_images(path)
    return [str(number) for number in range(1, count + 1)]
