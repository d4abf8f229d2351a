"""Labels files: targets are checked first, and a failure leaves the old file whole."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from napari_sam2.io import ReadError, Volume, WriteError, check_target, read_labels, write_labels


def test_targets_are_checked(tmp_path: Path) -> None:
    (tmp_path / "old.nii.gz").write_bytes(b"old")
    (tmp_path / "file").touch()
    (tmp_path / "folder.tif").mkdir()
    for target, message in [
        (tmp_path / "labels.png", "must end in"),
        (tmp_path / "nowhere" / "labels.nii.gz", "no folder"),
        (tmp_path / "file" / "labels.nii.gz", "not a folder"),
        (tmp_path / "folder.tif", "is a folder"),
        (tmp_path / "old.nii.gz", "--overwrite"),
        (tmp_path / ("a" * 252 + ".nii"), "long"),
        (Path("/proc/labels.nii.gz"), "/proc"),
    ]:
        with pytest.raises(WriteError, match=message):
            check_target(target)
    with pytest.raises(WriteError, match="input itself"):
        check_target(tmp_path / "old.nii.gz", overwrite=True, source=tmp_path / "old.nii.gz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.tif", "old.nii.gz"]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(np.zeros((2, 3, 4), np.uint8))
    target = tmp_path / "labels.nii.gz"
    target.write_bytes(b"old")

    def full_disk(image: nibabel.Nifti1Image, path: Path) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(nibabel, "save", full_disk)
        with pytest.raises(WriteError, match="No space left on device"):
            write_labels(target, np.ones((2, 3, 4), int), volume, overwrite=True)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["labels.nii.gz"]

    write_labels(target, np.ones((2, 3, 4), int), volume, overwrite=True)
    assert nibabel.load(target).shape == (4, 3, 2)
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_an_image_is_not_taken_for_labels(tmp_path: Path, dtype: str) -> None:
    """Whatever the numbers are stored as: some programs save ids as floats."""
    path = tmp_path / "l.nii.gz"

    def read(values: np.ndarray) -> np.ndarray:
        nibabel.save(nibabel.Nifti1Image(values.astype(dtype), np.eye(4)), path)
        return np.asarray(read_labels(path)[0].array).T

    scan = np.random.default_rng(0).integers(0, 1200, (20, 24, 5))
    with pytest.raises(ReadError, match="an image, not labels: it has many values, and most neigh"):
        read(scan)
    cells = np.zeros((90, 90, 2), int)  # 900 of them, which touch each other
    cells[:] = np.arange(900).reshape(30, 30, 1).repeat(3, 0).repeat(3, 1)
    np.testing.assert_array_equal(read(cells), cells)
    points = np.zeros((40, 40, 2), int)
    points[::2, ::2] = np.arange(400).reshape(20, 20, 1)
    np.testing.assert_array_equal(read(points), points)
    if dtype == "float32":
        with pytest.raises(ReadError, match="labels are whole numbers from 0"):
            read(scan + 0.25)


def test_labels_of_another_shape_or_type_are_refused(tmp_path: Path) -> None:
    volume = Volume(np.zeros((2, 3, 4), np.uint8))
    for labels in (np.zeros((2, 3, 5), int), np.full((2, 3, 4), -1), np.full((2, 3, 4), 0.5)):
        with pytest.raises(WriteError, match=r"shape|whole numbers"):
            write_labels(tmp_path / "l.tif", labels, volume)
    assert list(tmp_path.iterdir()) == []
