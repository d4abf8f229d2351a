"""The right reader for a path.

The formats' libraries are imported when a file of theirs turns up, so that starting is quick.
"""

from __future__ import annotations

import os
from pathlib import Path

from napari_sam2.io.volume import ReadError, Volume

_NIFTI = (".nii", ".nii.gz")
_TIFF = (".tif", ".tiff")
_DICOM = (".dcm", ".ima")
_READABLE = "NIfTI (.nii, .nii.gz), DICOM (a folder or a file) and TIFF (.tif, .tiff)"


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
