"""`napari-sam2 convert`: labels from one format to another."""

from __future__ import annotations

import itertools
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
import tifffile
from dicom_series import write_series
from images import OBLIQUE, mirrored
from nibabel.orientations import apply_orientation, inv_ornt_aff
from pydicom.uid import generate_uid

from napari_sam2.cli import main
from napari_sam2.io import ReadError, Volume, read_labels, read_volume, write_labels
from napari_sam2.io.place import on_image
from napari_sam2.io.volume import spacing_of

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


@pytest.mark.parametrize("table", ["man_track.txt", "res_track.txt"])
def test_parents_of_tracks_go_from_one_folder_to_another(
    tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.zeros((5, 9, 12), np.uint8)
    labels[:2, 1:4, 1:4] = 1
    labels[2:, 1:4, 1:4], labels[2:, 5:8, 1:4] = 2, 3
    labels[[0, 1, 3, 4], 5:8, 6:9] = 4  # gone for a frame
    movie = Volume(labels, axes="tyx")
    write_labels(tmp_path / "1_RES", labels, movie, parents={2: 1, 3: 1})
    (tmp_path / "1_RES" / "res_track.txt").rename(tmp_path / "1_RES" / table)
    assert main(["convert", str(tmp_path / "1_RES"), str(tmp_path / "2_RES")]) == 0
    before, after = tmp_path / "1_RES" / table, tmp_path / "2_RES" / "res_track.txt"
    assert after.read_text() == "1 0 1 0\n2 2 4 1\n3 2 4 1\n4 0 1 0\n5 3 4 4\n"
    assert after.read_text() == before.read_text()
    assert not capsys.readouterr().err
    assert main(["convert", str(tmp_path / "1_RES"), str(tmp_path / "3.ome.tif")]) == 0
    assert "does not say which tracks come from which" in capsys.readouterr().err
    before.write_text("1 0 1\n")
    assert main(["convert", str(tmp_path / "1_RES"), str(tmp_path / "3_RES")]) == 3
    assert f"{table} is no table of tracks" in capsys.readouterr().err


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
    channels = str(tmp_path / "c.ome.tif")
    tifffile.imwrite(channels, np.ones((3, 2, 4, 5), np.uint8), metadata={"axes": "TCYX"})
    for arguments, code, message in [
        ([good, str(tmp_path / "l.xyz")], 4, "must end in"),
        ([good, str(tmp_path / "old.tif")], 4, "--overwrite"),
        ([good, good, "--overwrite"], 4, "it is the input itself; give another name."),
        ([good, str(tmp_path / "l.dcm")], 4, "give its folder with --like"),
        ([good, str(tmp_path / "l_RES")], 4, "no time"),
        ([channels, str(tmp_path / "l_RES")], 3, "has 2 channels, and labels have none"),
        ([image, str(tmp_path / "l.tif")], 3, "holds an image, not labels"),
        ([good, str(tmp_path / "l.tif"), "--like", str(scan)], 3, "shape"),
        ([str(tmp_path / "none.nii"), str(tmp_path / "l.tif")], 3, "no file"),
    ]:
        assert main(["convert", *arguments]) == code, arguments
        complaint = capsys.readouterr().err
        assert message in complaint and complaint.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "c.ome.tif", "ct", "image.nii.gz", "l.nii.gz", "old.tif"
    ]  # fmt: skip
    assert main(["convert", good, str(tmp_path / "old.tif"), "--overwrite"]) == 0
    np.testing.assert_array_equal(read_labels(tmp_path / "old.tif")[0].array, labels)


# ---- where labels lie


def placed(labels: np.ndarray, affine: np.ndarray) -> Volume:
    return Volume(labels, spacing_of(affine), "mm", affine, "made")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_labels_in_any_order_of_axes_are_put_on_their_image(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    labels = np.random.default_rng(0).integers(0, 9, (2, 4, 5, 6))
    image = Volume(labels, (2.0, *spacing_of(OBLIQUE)), "mm", OBLIQUE, "made", "tzyx")
    turn = np.array(list(zip(order, signs, strict=True)))
    stored = np.stack([apply_orientation(one.T, turn).T for one in labels])
    affine = OBLIQUE @ inv_ornt_aff(turn, labels.shape[:0:-1])
    other = Volume(stored, (2.0, *spacing_of(affine)), "mm", affine, "other", "tzyx")
    found = on_image(other, image, "other")
    np.testing.assert_array_equal(found.array, labels)
    np.testing.assert_allclose(found.affine, OBLIQUE, atol=1e-9)
    np.testing.assert_allclose(found.spacing, image.spacing)


def test_labels_that_lie_elsewhere_are_refused() -> None:
    image = placed(np.zeros((4, 5, 5), np.uint8), np.diag([1.0, 1.0, 3.0, 1.0]))
    labels = image.array
    moved, turned, larger = (image.affine.copy() for _ in range(3))
    moved[0, 3] = 0.6
    turned[:2, :2] = [[0.9, -0.3], [0.3, 0.9]]
    larger[2, 2] = 3.2
    for affine in (moved, turned, larger, image.affine @ np.diag([-1.0, 1, 1, 1])):
        with pytest.raises(ReadError, match=r"lies elsewhere in space than the image made \(up to"):
            on_image(placed(labels, affine), image, "labels")
    moved[0, 3] = 0.4
    near = placed(labels, moved)
    assert on_image(near, image, "labels") is near
    nowhere = Volume(labels, (1.0, 1.0, 1.0))
    assert on_image(nowhere, image, "labels") is nowhere
    assert on_image(near, nowhere, "labels") is near


def test_convert_puts_labels_where_they_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, own = tmp_path / "image.nii.gz", tmp_path / "labels.nii.gz"
    labels = blobs((6, 8, 7))
    nibabel.save(nibabel.Nifti1Image(np.zeros((7, 8, 6), np.int16), OBLIQUE), image)
    nibabel.save(nibabel.Nifti1Image(labels.T, OBLIQUE), own)
    flip, out = str(mirrored(own, tmp_path / "flip.nii.gz")), str(tmp_path / "out.nii.gz")
    assert main(["convert", flip, out, "--like", str(image)]) == 0
    back, _, _ = read_labels(out)
    np.testing.assert_array_equal(back.array, labels)
    np.testing.assert_allclose(back.affine, OBLIQUE, atol=1e-4)
    capsys.readouterr()
    nibabel.save(nibabel.Nifti1Image(labels.T, OBLIQUE @ np.diag([-1.0, 1, 1, 1])), flip)
    command = ["convert", flip, out, "--like", str(image), "--overwrite"]
    assert main(command) == 3 and "lies elsewhere in space" in capsys.readouterr().err
    nibabel.save(nibabel.Nifti1Image(labels.T, None), flip)  # says nothing of its place
    assert main(command) == 0
    np.testing.assert_allclose(read_labels(out)[0].affine, OBLIQUE, atol=1e-4)
    write_labels(tmp_path / "plain.tif", labels, Volume(labels))
    command = ["convert", str(own), out, "--like", str(tmp_path / "plain.tif"), "--overwrite"]
    assert main(command) == 0
    np.testing.assert_allclose(read_labels(out)[0].affine, OBLIQUE, atol=1e-4)
