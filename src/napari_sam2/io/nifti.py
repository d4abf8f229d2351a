"""NIfTI in: the file's X, Y, Z becomes (z, y, x)."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from napari_sam2.io.volume import ReadError, Volume, native, spacing_of

_MM = {"unknown": 1.0, "mm": 1.0, "micron": 1e-3, "meter": 1e3}
_MAX_GZIP_RATIO = 1100  # deflate cannot pack more than 1032 : 1


def read_nifti(path: Path, volume: int | None = None) -> Volume:
    """Read one 3-D volume; `volume` picks it from a 4-D file.

    Values are scaled by the header's scl_slope and scl_inter. An uncompressed file without scaling
    is memory-mapped, so slices are read when they are used.

    Raises: ReadError for a 4-D file without `volume`, for damaged files and for an affine that is
    of no use.
    """
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Pair):
        raise ReadError(f"{path} is not a NIfTI file.")
    header = image.header
    shape = image.shape
    _check_size(path, header)
    scale = np.diag([*[_MM.get(header.get_xyzt_units()[0], 1.0)] * 3, 1.0])
    affine = scale @ np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ReadError(
            f"The header of {path} gives no usable orientation (its affine holds NaN or zero "
            "spacing); "
            "repair it, for example with nibabel or fslorient."
        )

    data = np.asanyarray(image.dataobj)
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 5 and data.shape[3] == 1:
        data = data[:, :, :, 0]
    name = path.name
    if data.ndim == 4:
        count = data.shape[3]
        if volume is None:
            raise ReadError(
                f"{path} is 4-D and holds {count} volumes; choose one with --volume 0 to --volume "
                f"{count - 1}."
            )
        if not 0 <= volume < count:
            raise ReadError(
                f"{path} holds {count} volumes; there is no --volume {volume}, use 0 to "
                f"{count - 1}."
            )
        data, name = data[..., volume], f"{name}, volume {volume}"
    elif volume not in (None, 0):
        raise ReadError(f"{path} holds a single volume; leave out --volume {volume}.")
    if data.ndim not in (2, 3):
        raise ReadError(f"{path} has shape {shape}; only 2-D, 3-D and 4-D NIfTI files can be read.")
    data = data.reshape(data.shape + (1,) * (3 - data.ndim))

    if data.dtype.names:  # RGB24 and RGBA32 are stored as records
        data = np.stack([data[channel] for channel in "RGB"], axis=-1).transpose(2, 1, 0, 3)
    elif data.dtype.kind == "c":
        raise ReadError(f"{path} holds complex numbers; save its magnitude and read that.")
    else:
        data = data.T
    if data.dtype.kind == "f" and data.dtype.itemsize > 4:  # also what scaling makes of integers
        data = data.astype(np.float32)
    return Volume(
        array=native(data),
        spacing=spacing_of(affine),
        unit="mm",
        affine=affine,
        source=name,
        axes="yx" if len(shape) == 2 else "zyx",
        nifti_header=header.copy(),
    )


def _check_size(path: Path, header: nibabel.Nifti1Header) -> None:
    """Compare what the header claims with the file's size before anything is allocated."""
    shape = header.get_data_shape()
    if not shape or min(shape) < 1:
        raise ReadError(f"{path} holds no voxels: its header gives the shape {shape}.")
    claimed = int(np.prod([int(n) for n in shape], dtype=object)) * header.get_data_dtype().itemsize
    there = path.stat().st_size * (_MAX_GZIP_RATIO if path.suffix == ".gz" else 1)
    if claimed > there:
        raise ReadError(
            f"{path} is truncated or damaged: its header gives the shape "
            f"{tuple(int(n) for n in shape)}, "
            "but the file is too small for that; copy or download it again."
        )
