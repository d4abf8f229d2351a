"""What tests of image files share: affines, labels, and where SimpleITK sees them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data")

OBLIQUE = np.array(
    [[0.69, -0.45, 0.31, -40.0], [0.52, 0.85, -0.1, 12.5], [-0.2, 0.25, 1.9, 7.0], [0, 0, 0, 1]]
)
OBLIQUE[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * [
    0.7,
    0.9,
    2.5,
]  # orthogonal axes, three spacings
AFFINES = {
    "oblique": OBLIQUE,
    "flipped": np.array([[-0.8, 0, 0, 90], [0, -0.8, 0, 120], [0, 0, 3, 0], [0, 0, 0, 1.0]]),
    "sagittal": np.array([[0, 0, 1.2, -60], [-0.5, 0, 0, 70], [0, -0.5, 0, 80], [0, 0, 0, 1.0]]),
}


def ball(shape: tuple[int, int, int]) -> np.ndarray:
    """Labels (z, y, x): an object 1 that no flip or swap of axes leaves alone, and a voxel of 3."""
    labels = np.zeros(shape, np.uint16)
    labels[1:3, 2:5, 1:7] = 1
    labels[0, 0, -1] = 3
    return labels


def positions(image: sitk.Image, value: int) -> set[tuple[float, ...]]:
    """Where (LPS mm, rounded) SimpleITK sees the voxels of a value."""
    found = np.argwhere(sitk.GetArrayFromImage(image) == value)
    return {
        tuple(np.round(image.TransformIndexToPhysicalPoint([int(x), int(y), int(z)]), 2) + 0.0)
        for z, y, x in found
    }


def assert_same_grid(a: sitk.Image, b: sitk.Image) -> None:
    assert a.GetSize() == b.GetSize()
    np.testing.assert_allclose(a.GetSpacing(), b.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(a.GetOrigin(), b.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(a.GetDirection(), b.GetDirection(), atol=1e-5)


def mirrored(source: Path, target: Path) -> Path:
    """The same voxels in the same places, stored from the other end of the first axis."""
    image = nibabel.load(source)
    values = np.ascontiguousarray(np.asarray(image.dataobj)[::-1])
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = len(values) - 1
    nibabel.save(nibabel.Nifti1Image(values, image.affine @ turn), target)
    return target
