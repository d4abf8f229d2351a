"""The right writer for a path; what is written appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import numpy as np

from napari_sam2.io.volume import Volume, WriteError

_NIFTI = (".nii", ".nii.gz")
_TIFF = (".tif", ".tiff")
_WRITABLE = ".nii, .nii.gz, .tif, .tiff or .ome.tif"


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
            from napari_sam2.io.labels_nifti import write_nifti

            write_nifti(temporary, labels, like)
        else:
            from napari_sam2.io.labels_tiff import write_tiff

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
