"""Labels as NIfTI: (z, y, x) goes back to the file's X, Y, Z, as it was."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from napari_sam2.io.volume import Volume, label_dtype, spacing_of


def write_nifti(path: Path, labels: np.ndarray, like: Volume) -> None:
    """Write labels (z, y, x) so that they lie on `like` voxel by voxel in any program.

    From NIfTI the source's header is kept: affine, qform and sform with their codes, units,
    spacing. From DICOM the affine is RAS. Images without orientation (TIFF) get x to the left and y
    to the back, as ITK reads TIFF.
    """
    data = labels.astype(label_dtype(labels)).T
    if like.nifti_header is not None:
        header = like.nifti_header.copy()
        header.extensions.clear()
        if len(header.get_data_shape()) == 2:
            data = data[..., 0]
        kind = (
            nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        )
        header.set_data_shape(data.shape)
        header.set_data_dtype(data.dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0
        image = kind(data, header.get_best_affine(), header)
    else:
        affine = like.affine
        if affine is None:
            z, y, x = (size * (1e-3 if like.unit == "um" else 1.0) for size in like.spacing)
            affine = np.diag([-x, -y, z, 1.0])
        kind = nibabel.Nifti1Image if max(data.shape) < 2**15 else nibabel.Nifti2Image
        image = kind(data, affine)
        image.header.set_xyzt_units("unknown" if like.unit == "pixel" else "mm")
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner")
        if not np.allclose(image.get_qform(), affine, atol=1e-3 * min(spacing_of(affine))):
            image.set_qform(None, code="unknown")  # a quaternion cannot hold shear (gantry tilt)
    image.header.set_intent("label")
    image.header["descrip"] = b"labels by napari-sam2"
    nibabel.save(image, path)
