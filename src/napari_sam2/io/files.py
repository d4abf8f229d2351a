"""The right reader and writer for a path; what is written appears whole or not at all.

The formats' libraries are imported when a file of theirs turns up, so that starting is quick.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import numpy as np

from napari_sam2.io.volume import ReadError, Volume, WriteError

_NIFTI = (".nii", ".nii.gz")
_TIFF = (".tif", ".tiff")
_DICOM = (".dcm", ".ima")
_READABLE = "NIfTI (.nii, .nii.gz), DICOM (a folder or a file) and TIFF (.tif, .tiff)"
_WRITABLE = ".nii, .nii.gz, .tif, .tiff or .ome.tif"


def read_volume(
    path: str | os.PathLike[str],
    *,
    volume: int | None = None,
    channel: int | None = None,
    series: str | None = None,
) -> Volume:
    """Read an image file, or a folder of DICOM files, as one `Volume` with its array in (z, y, x)
    order.

    path: NIfTI, TIFF, a DICOM folder, or any file of a DICOM series.
    volume: which one, counted from 0, of a 4-D file or a time series of volumes.
    channel: which one, counted from 0, of a TIFF with several.
    series: which DICOM series of a folder (its number in the list that the error shows, or its
        UID), or which image, counted from 1, of a TIFF with several.

    Raises: ReadError, one sentence, for anything that cannot be read or must be chosen first.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise ReadError(f"There is no file or folder {path}.")
        if not (path.is_file() or path.is_dir()):
            raise ReadError(f"{path} is neither a file nor a folder.")
        if path.is_file() and path.stat().st_size == 0:
            raise ReadError(f"{path} is empty (0 bytes).")
        result = _read(path, volume, channel, series)
    except (ReadError, KeyboardInterrupt):
        raise
    except PermissionError as error:
        raise ReadError(f"{path} may not be read: permission denied.") from error
    except MemoryError as error:
        raise ReadError(f"{path} does not fit into this machine's memory.") from error
    except Exception as error:  # a damaged file makes the libraries raise almost anything
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise ReadError(f"{path} is damaged or not what its name says ({reason}).") from error
    if 0 in result.array.shape:
        raise ReadError(f"{path} holds no voxels.")
    return result


def _read(path: Path, volume: int | None, channel: int | None, series: str | None) -> Volume:
    name = path.name.lower()
    is_tiff, is_nifti = name.endswith(_TIFF), name.endswith(_NIFTI)
    if channel is not None and not is_tiff:
        raise ReadError(f"--channel chooses from TIFF files; leave it out for {path}.")
    if is_nifti:
        from napari_sam2.io.nifti import read_nifti

        if series is not None:
            raise ReadError(
                f"--series chooses from DICOM folders and TIFF files; leave it out for {path}."
            )
        return read_nifti(path, volume)
    if is_tiff:
        from napari_sam2.io.tiff import read_tiff

        return read_tiff(path, volume, channel, series)
    from napari_sam2.io.dicom import is_dicom, read_dicom

    if path.is_dir() or name.endswith(_DICOM) or is_dicom(path):
        return read_dicom(path, volume, series)
    raise ReadError(f"{path} is not an image that can be read: {_READABLE} can.")


def write_labels(
    path: str | os.PathLike[str], labels: np.ndarray, like: Volume, *, overwrite: bool = False
) -> None:
    """Write a labels array so that it overlays the image it was made on.

    path: its suffix chooses the format: .nii, .nii.gz, .tif and .tiff (ImageJ) or .ome.tif.
    labels: (z, y, x), integers from 0; stored in the smallest unsigned type that holds the ids.
    like: the volume that `labels` belong to; gives affine, spacing, units and axes.

    The file is written beside the target under another name and then renamed, so an older file
    stays whole until the new one is complete.

    Raises: WriteError if the target exists and `overwrite` is not set, or cannot be written.
    ValueError if the shapes differ or `labels` are not whole numbers from 0.
    """
    target = check_target(path, overwrite=overwrite)
    labels = np.asarray(labels)
    if labels.shape != like.shape:
        raise ValueError(f"The labels have shape {labels.shape}, the image {like.shape}.")
    if labels.dtype.kind not in "bui" or labels.min(initial=0) < 0:
        raise ValueError(
            f"Labels must be whole numbers from 0, not {labels.dtype} from {labels.min()}."
        )
    labels = labels.view(np.uint8) if labels.dtype.kind == "b" else labels
    suffix = next(
        s
        for s in (*_NIFTI[::-1], ".ome.tif", ".ome.tiff", *_TIFF)
        if target.name.lower().endswith(s)
    )
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part{suffix}")
    try:
        if suffix in _NIFTI:
            from napari_sam2.io.nifti import write_nifti

            write_nifti(temporary, labels, like)
        else:
            from napari_sam2.io.tiff import write_tiff

            write_tiff(temporary, labels, like)
        check_target(target, overwrite=overwrite)
        os.replace(temporary, target)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f"{target} could not be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def check_target(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    source: str | os.PathLike[str] | None = None,
) -> Path:
    """Find out before a long computation whether labels can be written to `path`; returns it with
    links resolved.

    source: the image, which is never overwritten.

    Raises: WriteError, which says why not.
    """
    target = Path(path)
    if not target.name.lower().endswith(_NIFTI + _TIFF):
        raise WriteError(f"Labels cannot be written to {path}: its name must end in {_WRITABLE}.")
    try:
        problem = _problem(target, overwrite, source)
    except (
        OSError
    ) as error:  # a name that is too long, a folder that may not be written, a full disk
        problem = str(error.strerror or error)
    if problem:
        raise WriteError(f"Labels cannot be written to {path}: {problem}.")
    return target.resolve()


def _problem(target: Path, overwrite: bool, source: str | os.PathLike[str] | None) -> str | None:
    """Why `target` cannot be written, or None; tries it with another name in the same folder."""
    if not target.parent.exists():
        return f"there is no folder {target.parent}"
    if not target.parent.is_dir():
        return f"{target.parent} is not a folder"
    if target.is_dir():
        return "it is a folder"
    target = target.resolve()
    if target.exists():
        if source is not None and Path(source).exists() and target.samefile(source):
            return "it is the image itself; give another file with -o"
        if not overwrite:
            return "it exists already; use --overwrite to replace it"
        if not os.access(target, os.W_OK):
            return "it is write-protected"
    probe = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.probe")
    probe.touch(exist_ok=False)
    probe.unlink()
    return None
