"""Labels files: the right writer for a path, and what is written appears whole or not at all.

The formats' libraries are imported when a file of theirs turns up, so that starting is quick.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from napari_sam2.io.files import read_image
from napari_sam2.io.guard import clear_errors
from napari_sam2.io.kinds import image_kind
from napari_sam2.io.legend import RGB, Legend, make_legend
from napari_sam2.io.place import on_image
from napari_sam2.io.volume import ReadError, Volume, WriteError
from napari_sam2.label_ids import ids_in
from napari_sam2.targets import why_not, why_not_in
from sam2_engine.whole_file import beside

Format = Literal["ctc", "rtstruct"]
"""A format that no suffix tells: "ctc", a folder of the Cell Tracking Challenge; "rtstruct", for
RTSTRUCT in a file that is named .dcm alone."""

_SUFFIXES = (
    *(".nii.gz", ".nii"),
    *(".ome.tif", ".ome.tiff", ".tif", ".tiff"),
    *(".seg.nrrd", ".nrrd"),
    *(".rtstruct.dcm", ".dcm"),
)
_WRITABLE = (
    ".nii, .nii.gz, .tif, .ome.tif, .ome.zarr, .nrrd, .seg.nrrd, .dcm, .rtstruct.dcm, or _RES for "
    "a folder of the Cell Tracking Challenge"
)
_FEW_IDS = 32
_LEAST_ROOM = 1 << 20
"""Bytes. Compressed, labels take a hundredth of a byte per voxel, and the headers something."""
_PACKAGES = {"nrrd": "pynrrd", "ome_zarr": "ome-zarr", "zarr": "ome-zarr", "highdicom": "highdicom"}


def write_labels(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    like: Volume,
    *,
    overwrite: bool = False,
    names: Mapping[int, str] | None = None,
    colours: Mapping[int, RGB] | None = None,
    parents: Mapping[int, int] | None = None,
    format: Format | None = None,
) -> None:
    """Write a labels array so that it overlays the image it was made on.

    path: its suffix chooses the format: .nii and .nii.gz (NIfTI), .tif and .tiff (ImageJ),
        .ome.tif, .nrrd and .seg.nrrd (3D Slicer), .dcm (DICOM SEG) and .rtstruct.dcm (RTSTRUCT; for
        both, the image must come from DICOM files), a folder .ome.zarr, or one that ends in _RES
        (Cell Tracking Challenge). A path IMAGE.ome.zarr/labels/NAME adds labels to an OME-Zarr
        image.
    labels: integers from 0 along the image's axes without channels: (z, y, x), (t, y, x) or
        (t, z, y, x), and (1, y, x) for one picture; stored in the smallest unsigned type that
        holds the ids.
    like: the volume that `labels` belong to; gives affine, spacing, units, axes and DICOM files.
    names, colours: of the objects by id, colours as red, green and blue from 0 to 1. Kept by NIfTI,
        OME-TIFF, OME-Zarr, NRRD, DICOM SEG and RTSTRUCT.
    parents: of objects that come from a division, by id. Kept by the Cell Tracking Challenge's.
    format: "ctc" for a folder of another name; "rtstruct" for RTSTRUCT in a file of another name.

    The file or folder is written beside the target under another name and then renamed, so an older
    one stays whole until the new one is complete.

    Raises: WriteError if the target exists and `overwrite` is not set, or cannot be written, if the
    shapes differ, `labels` are not whole numbers from 0, or `like` is no `Volume`.
    """
    target = check_target(path, overwrite=overwrite, format=format)
    placed = _placed(np.asarray(labels), like)
    legend = make_legend(ids_in(placed.array), names or {}, colours or {}, parents)
    kind = _kind(target, format)
    assert kind is not None
    try:
        with beside(target, kind.suffix) as temporary:
            kind.write(temporary, placed, legend)
            check_target(target, overwrite=overwrite, format=format)
        kind.finish(target)
    except ImportError as error:
        package = _PACKAGES.get((error.name or "").split(".")[0])
        if package is None:
            raise
        raise WriteError(
            f"{target.name} needs the package {package}, which is not installed. Install it with: "
            'pip install "napari-sam2[formats]"'
        ) from error
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f"{target} could not be written: {error.strerror or error}.") from error


def read_labels(
    path: str | os.PathLike[str], like: Volume | None = None
) -> tuple[Volume, dict[int, str], dict[int, RGB]]:
    """Read a labels file: the labels in their place, and names and colours by id where it has them.

    path: whatever `read_image` reads with whole numbers in it, DICOM SEG and RTSTRUCT too.
    like: the image that the labels belong to. A DICOM SEG or RTSTRUCT is put on all of its slices;
        labels of the same grid that are stored with their axes in another order or direction are
        put in that of the image.

    Raises: ReadError, one sentence; also for labels that have another shape than `like`, or lie
    elsewhere in space.
    """
    path = Path(path)
    if like is not None and not isinstance(like, Volume):
        raise ReadError(
            "`like` must be the Volume of the image that the labels were made on, as read_volume "
            f"gives it, not {type(like).__name__}."
        )
    from napari_sam2.io.labels_dicom import labels_kind, read_seg

    with clear_errors(path):
        kind = labels_kind(path)
        if kind == "DICOM SEG":
            labels, legend = read_seg(path, like)
        elif kind == "RTSTRUCT":
            from napari_sam2.io.labels_rtstruct import read_rtstruct

            labels, legend = read_rtstruct(path, like)
        else:
            labels, legend = read_image(path), read_legend(path)
        array = _in_memory(labels.array)
    if array.dtype.kind == "f" and np.array_equal(array, np.rint(array)):
        array = array.astype(np.int64)  # labels as some programs save them
    if array.ndim != len(labels.shape) or array.dtype.kind not in "bui" or array.min() < 0:
        raise ReadError(f"{path} holds an image, not labels: labels are whole numbers from 0.")
    if not labels.is_labels and _is_intensities(array):
        raise ReadError(
            f"{path} holds an image, not labels: it has many values, and most neighbours differ, "
            "where all pixels of an object have one."
        )
    if "c" in labels.axes:
        raise ReadError(
            f"{path} has {labels.shape[labels.axes.index('c')]} channels, and labels have none; "
            "give a file with the labels of one channel."
        )
    labels = replace(labels, array=array)
    if like is not None:
        labels = on_image(labels, like, path)
        if labels.array.shape != _shape_of_labels(like):
            raise ReadError(
                f"{path} has the shape {array.shape} and the image {_shape_of_labels(like)}; "
                "choose labels and an image that belong together."
            )
    return (
        labels,
        {entry.id: entry.name for entry in legend},
        {entry.id: entry.colour for entry in legend if entry.colour is not None},
    )


def read_mask(path: Path | str, volume: Volume) -> np.ndarray:
    """Labels that prompt objects, in the image's shape; of one frame alone, they are those of the
    first.

    Raises: ReadError.
    """
    labels, *_ = read_labels(path)
    masks = np.asarray(on_image(labels, volume, path).array)
    if masks.shape == volume.shape:
        return masks
    first = replace(volume, array=volume.array[:1])
    masks = np.asarray(on_image(labels, first, path).array)
    if masks.size != np.prod(volume.shape[1:]) or masks.shape[-2:] != volume.shape[1:]:
        raise ReadError(
            f"The mask {path} has the shape {masks.shape}, the image {volume.source} "
            f"{volume.shape}; a mask is as large as the image, or as its first frame."
        )
    whole = np.zeros(volume.shape, masks.dtype)
    whole[0] = masks.reshape(volume.shape[1:])
    return whole


def check_target(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    source: str | os.PathLike[str] | None = None,
    format: Format | None = None,
    like: Volume | None = None,
) -> Path:
    """Find out before a long computation whether labels can be written to `path`; returns it with
    links resolved.

    source: the image, which is never overwritten.
    like: the image once it is read, to which a DICOM segmentation must be able to refer, and for
        whose labels there must be room, roughly.
    format: as for `write_labels`.

    Raises: WriteError, which says why not.
    """
    target = Path(path)
    kind = _kind(target, format)
    if kind is None:
        raise WriteError(f"Labels cannot be written to {path}: its name must end in {_WRITABLE}.")
    try:
        problem = _problem(target, kind, overwrite, source)
    except WriteError:
        raise
    except OSError as error:  # a name that is too long
        problem = str(error.strerror or error)
    if like is not None and not problem:
        kind.check_image(like)
        room = max(_LEAST_ROOM, math.prod(_shape_of_labels(like)) // 100)
        problem = why_not_in(kind.parent or target.resolve().parent, room)
    if problem:
        raise WriteError(f"Labels cannot be written to {path}: {problem}.")
    return target.resolve()


# ---- formats


@dataclass(frozen=True)
class _Kind:
    """A format, for one target."""

    suffix: str
    """Of the file that is written beside the target: libraries go by it."""
    write: Callable[[Path, Volume, Legend], None]
    is_folder: bool = False
    check_replaceable: Callable[[Path], None] = lambda _: None
    """Raises WriteError where an existing folder holds something else."""
    check_image: Callable[[Volume], object] = lambda _: None
    """Raises WriteError where labels of this image do not fit the format."""
    finish: Callable[[Path], None] = lambda _: None
    """Called when the target is in its place."""
    parent: Path | None = None
    """The folder that must be there, if not the one that the target lies in."""


def _kind(target: Path, format: Format | None) -> _Kind | None:
    """The format of a target; None where its name tells none."""
    name = target.name.lower()
    if format == "ctc" or name.endswith("_res"):
        from napari_sam2.io import labels_ctc

        return _Kind(
            "_RES",
            labels_ctc.write_ctc,
            True,
            labels_ctc.check_replaceable,
            labels_ctc.check_time,
        )
    if name.endswith(".zarr") or target.parent.name == "labels":
        kind = _zarr_kind(target)
        if kind is not None:
            return kind
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), None)
    if format == "rtstruct":
        suffix = ".rtstruct.dcm"
    if suffix is None:
        return None
    if suffix == ".dcm":
        from napari_sam2.io import labels_dicom

        return _Kind(suffix, labels_dicom.write_seg, check_image=labels_dicom.sources_of)
    if suffix == ".rtstruct.dcm":
        from napari_sam2.io.labels_rtstruct import check_image, write_rtstruct

        return _Kind(suffix, write_rtstruct, check_image=check_image)
    if suffix == ".seg.nrrd":
        from napari_sam2.io import labels_nrrd

        return _Kind(suffix, labels_nrrd.write_nrrd, check_image=labels_nrrd.check_one_volume)
    return _Kind(suffix, _file_writer(suffix))


def _file_writer(suffix: str) -> Callable[[Path, Volume, Legend], None]:
    if suffix.startswith(".nii"):
        from napari_sam2.io.labels_nifti import write_nifti

        return write_nifti
    if suffix.endswith(".nrrd"):
        from napari_sam2.io.labels_nrrd import write_nrrd

        return write_nrrd
    from napari_sam2.io.labels_tiff import write_tiff

    return write_tiff


def _zarr_kind(target: Path) -> _Kind | None:
    from napari_sam2.io.labels_zarr import check_replaceable, image_of, register, write_zarr

    image = image_of(target)
    if image is not None:
        return _Kind(
            "",
            partial(write_zarr, image=image),
            True,
            check_replaceable,
            finish=lambda target: register(image, target.name),
            parent=image,
        )
    if target.name.lower().endswith(".zarr"):
        return _Kind(".ome.zarr", write_zarr, True, check_replaceable)
    return None


def read_legend(path: Path) -> Legend:
    """What a labels file says of its objects; nothing where its format has no place for that."""
    name = path.name.lower()
    kind = image_kind(path)
    if kind == "DICOM SEG":
        from napari_sam2.io.labels_dicom import seg_legend

        return seg_legend(path)
    if kind == "RTSTRUCT":
        from napari_sam2.io.labels_rtstruct import rtstruct_legend

        return rtstruct_legend(path)
    if name.endswith((".nii", ".nii.gz")):
        from napari_sam2.io.labels_nifti import nifti_legend

        return nifti_legend(path)
    if name.endswith((".tif", ".tiff")):
        from napari_sam2.io.labels_tiff import tiff_legend

        return tiff_legend(path)
    if name.endswith(".nrrd"):
        from napari_sam2.io.labels_nrrd import nrrd_legend

        return nrrd_legend(path)
    if any((path / file).exists() for file in ("zarr.json", ".zattrs")):
        from napari_sam2.io.labels_zarr import zarr_legend

        return zarr_legend(path)
    return ()


# ---- arrays


def _placed(labels: np.ndarray, like: Volume) -> Volume:
    """The labels in the place of their image, which has no channels any more."""
    if not isinstance(like, Volume):
        raise WriteError(
            "`like` must be the Volume of the image that the labels were made on, as read_volume "
            f"gives it, not {type(like).__name__}."
        )
    if labels.shape != _shape_of_labels(like):
        raise WriteError(
            f"The labels have shape {labels.shape}, the image {_shape_of_labels(like)}."
        )
    if labels.dtype.kind not in "bui":
        raise WriteError(f"Labels must be whole numbers from 0, not {labels.dtype}.")
    if labels.min(initial=0) < 0:
        raise WriteError(f"Labels must be whole numbers from 0, and there is {labels.min()}.")
    axes = like.axes.replace("c", "")
    spacing = (1.0,) * (max(3, len(axes)) - len(like.spacing)) + tuple(like.spacing)
    array = labels.view(np.uint8) if labels.dtype.kind == "b" else labels
    return replace(like, array=array, axes=axes, spacing=spacing)


def _in_memory(array: Any) -> np.ndarray:
    """The values, of a memory map a copy: Windows lets nobody write over a file that is mapped."""
    found = np.asarray(array)
    base: Any = found
    while isinstance(base, np.ndarray):
        base = base.base
    return found.copy() if isinstance(base, mmap.mmap) else found


def _is_intensities(array: np.ndarray) -> bool:
    """Whether whole numbers are no ids: of pixels beside each other that are not 0, more than half
    differ, in more than a few values. In labels of nuclei and axons at most 4 % do, in images
    80 % and more."""
    one, other = array[..., :-1], array[..., 1:]
    both = (one != 0) & (other != 0)
    differ = both & (one != other)
    if 2 * np.count_nonzero(differ) <= np.count_nonzero(both):
        return False
    return len(np.unique(one[differ])) > _FEW_IDS


def _shape_of_labels(like: Volume) -> tuple[int, ...]:
    if "c" not in like.axes:
        return like.shape
    return tuple(n for n, axis in zip(like.shape, like.axes, strict=True) if axis != "c")


# ---- files and folders


def _problem(
    target: Path, kind: _Kind, overwrite: bool, source: str | os.PathLike[str] | None
) -> str | None:
    """Why `target` cannot be written, or None; raises WriteError where a folder holds something
    else."""
    if target.is_symlink():
        target = target.resolve()
    if target.exists():
        if source is not None and Path(source).exists() and target.samefile(source):
            return "it is the input itself; give another name"
        if kind.is_folder and target.is_dir():
            kind.check_replaceable(target)
        if kind.suffix.endswith(".dcm") and target.is_file() and image_kind(target) == "DICOM":
            return "it is an image, not a segmentation"
    return why_not(target, overwrite, kind.is_folder, kind.parent)
