"""`napari-sam2 convert`: labels from one format to another."""

from __future__ import annotations

import itertools
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
from dicom_series import write_series
from pydicom.uid import generate_uid

from napari_sam2.cli import main
from napari_sam2.io import Volume, read_labels, read_volume, write_labels

NAMES = {1: "liver", 5: "spleen"}
COLOURS = {1: (1.0, 0.0, 0.0), 5: (0.0, 1.0, 0.0)}


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A DICOM series of 6 x 8 x 7 voxels."""
    write_series(tmp_path / "ct", FrameOfReferenceUID=generate_uid())
    return tmp_path / "ct"


def blobs(shape: tuple[int, ...]) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[1:3, 1:4, 2:5] = 1
    labels[2:4, 5:7, 1:3] = 5
    return labels


def test_labels_go_round_all_formats_and_come_back(tmp_path: Path, scan: Path) -> None:
    image = read_volume(scan)
    labels = blobs(image.shape)
    write_labels(tmp_path / "0.nii.gz", labels, image, names=NAMES, colours=COLOURS)
    chain = ["0.nii.gz", "1.seg.nrrd", "2.dcm", "3.nii", "4.ome.zarr", "5.ome.tif", "6.nii.gz"]
    for source, target in itertools.pairwise(chain):
        like = ["--like", str(scan)] if target in ("2.dcm", "3.nii", "6.nii.gz") else []
        assert main(["convert", str(tmp_path / source), str(tmp_path / target), *like]) == 0
    last, names, colours = read_labels(tmp_path / chain[-1])
    np.testing.assert_array_equal(last.array, labels)
    np.testing.assert_allclose(last.affine, image.affine, atol=1e-4)
    assert names == NAMES
    for object_id, colour in COLOURS.items():
        np.testing.assert_allclose(colours[object_id], colour, atol=0.02)
    seg = highdicom.seg.segread(tmp_path / "2.dcm")
    assert [seg.get_segment_description(n).segment_label for n in (1, 2)] == ["liver", "spleen"]


def test_what_convert_refuses(
    tmp_path: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = Volume(np.zeros((3, 4, 5), np.uint8), spacing=(2.0, 1.0, 1.0), unit="mm")
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[1] = 1
    good, image = str(tmp_path / "l.nii.gz"), str(tmp_path / "image.nii.gz")
    write_labels(good, labels, volume)
    values = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), image)
    (tmp_path / "old.tif").write_bytes(b"old")
    for arguments, code, message in [
        ([good, str(tmp_path / "l.xyz")], 4, "must end in"),
        ([good, str(tmp_path / "old.tif")], 4, "--overwrite"),
        ([good, good, "--overwrite"], 4, "is the image itself"),
        ([good, str(tmp_path / "l.dcm")], 4, "not read from a DICOM folder"),
        ([good, str(tmp_path / "l_RES")], 4, "no time"),
        ([image, str(tmp_path / "l.tif")], 3, "holds an image, not labels"),
        ([good, str(tmp_path / "l.tif"), "--like", str(scan)], 3, "shape"),
        ([str(tmp_path / "none.nii"), str(tmp_path / "l.tif")], 3, "no file"),
    ]:
        assert main(["convert", *arguments]) == code, arguments
        complaint = capsys.readouterr().err
        assert message in complaint and complaint.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ct", "image.nii.gz", "l.nii.gz", "old.tif"
    ]  # fmt: skip
    assert main(["convert", good, str(tmp_path / "old.tif"), "--overwrite"]) == 0
    np.testing.assert_array_equal(read_labels(tmp_path / "old.tif")[0].array, labels)
