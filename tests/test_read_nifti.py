"""NIfTI in, and labels over it; orientation and spacing are checked with SimpleITK."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from images import AFFINES, DATA, OBLIQUE, assert_same_grid, ball, needs_data

from napari_sam2.io import ReadError, read_image, read_volume, write_labels
from napari_sam2.io.readers import get_reader

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_labels_overlay_the_image(tmp_path: Path, name: str, suffix: str) -> None:
    data = RNG.integers(0, 1000, (9, 8, 7)).astype(np.int16)
    source, out = tmp_path / f"image{suffix}", tmp_path / f"labels{suffix}"
    nibabel.save(nibabel.Nifti1Image(data, AFFINES[name]), source)

    volume = read_volume(source)
    assert volume.array.shape == (7, 8, 9)
    assert volume.array[1, 2, 3] == data[3, 2, 1]
    np.testing.assert_allclose(volume.affine, AFFINES[name], atol=1e-5)
    np.testing.assert_allclose(
        volume.spacing[::-1], np.linalg.norm(AFFINES[name][:3, :3], axis=0), rtol=1e-5
    )

    labels = ball(volume.shape)
    write_labels(out, labels, volume)
    image, written = sitk.ReadImage(source), sitk.ReadImage(out)
    assert_same_grid(image, written)
    assert written.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), labels)
    np.testing.assert_array_equal(nibabel.load(out).affine, nibabel.load(source).affine)


def test_nifti_header_is_kept(tmp_path: Path) -> None:
    """qform and sform may differ; both, their codes and the units come back."""
    image = nibabel.Nifti2Image(np.zeros((4, 5, 6), np.float32), None)
    image.set_qform(AFFINES["flipped"], code=1)
    image.set_sform(OBLIQUE, code=4)
    image.header.set_xyzt_units("micron", "msec")
    nibabel.save(image, tmp_path / "image.nii")
    volume = read_volume(tmp_path / "image.nii")
    write_labels(tmp_path / "labels.nii.gz", ball((6, 5, 4))[:, :, :4], volume)
    before, after = nibabel.load(tmp_path / "image.nii"), nibabel.load(tmp_path / "labels.nii.gz")
    assert isinstance(after, nibabel.Nifti2Image)
    for get in ("get_qform", "get_sform"):
        for one, other in zip(
            getattr(before, get)(coded=True), getattr(after, get)(coded=True), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert after.header.get_xyzt_units() == ("micron", "msec")
    assert volume.spacing[0] == pytest.approx(2.5e-3, rel=1e-5)  # micrometres in the file, mm here


@pytest.mark.parametrize("code", ["qform", "sform", "neither"])
def test_nifti_with_one_form_or_none(tmp_path: Path, code: str) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), None)
    image.header.set_zooms((0.5, 0.6, 0.7))
    image.set_qform(OBLIQUE if code == "qform" else None, code=int(code == "qform"))
    image.set_sform(OBLIQUE if code == "sform" else None, code=int(code == "sform"))
    nibabel.save(image, tmp_path / "image.nii.gz")
    volume = read_volume(tmp_path / "image.nii.gz")
    write_labels(tmp_path / "labels.nii.gz", np.ones(volume.shape, np.uint8), volume)
    assert_same_grid(
        sitk.ReadImage(tmp_path / "image.nii.gz"), sitk.ReadImage(tmp_path / "labels.nii.gz")
    )
    np.testing.assert_array_equal(nibabel.load(tmp_path / "labels.nii.gz").affine, image.affine)


def test_nifti_values_are_scaled_and_labels_are_not(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(
        np.arange(60, dtype=np.float32).reshape(3, 4, 5) * 0.25 - 3, np.eye(4)
    )
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    assert nibabel.load(tmp_path / "scaled.nii.gz").dataobj.slope != 1
    volume = read_volume(tmp_path / "scaled.nii.gz")
    expected = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "scaled.nii.gz"))
    np.testing.assert_allclose(volume.array, expected, atol=1e-3)
    assert volume.array.dtype == np.float32

    labels = np.zeros(volume.shape, np.int64)
    labels[0, 0, :3] = [1, 255, 256]
    write_labels(tmp_path / "labels.nii.gz", labels, volume)
    written = sitk.ReadImage(tmp_path / "labels.nii.gz")
    assert written.GetPixelID() == sitk.sitkUInt16
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), labels)


def test_nifti_big_endian_colour_and_flat(tmp_path: Path) -> None:
    data = RNG.integers(0, 999, (3, 4, 5)).astype(">i2")
    nibabel.save(
        nibabel.Nifti1Image(data, np.eye(4), nibabel.Nifti1Header(endianness=">")),
        tmp_path / "big.nii",
    )
    volume = read_volume(tmp_path / "big.nii")
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, data.T)
    write_labels(tmp_path / "big_labels.nii", (volume.array > 500).astype(int), volume)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "big_labels.nii")), volume.array > 500
    )

    colours = RNG.integers(0, 255, (3, 4, 5, 3)).astype(np.uint8)
    records = np.ascontiguousarray(colours).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(records, np.eye(4)), tmp_path / "rgb.nii.gz")
    volume = read_volume(tmp_path / "rgb.nii.gz")
    np.testing.assert_array_equal(volume.array, colours.transpose(2, 1, 0, 3))
    assert volume.shape == (5, 4, 3)
    write_labels(tmp_path / "rgb_labels.nii.gz", np.ones(volume.shape, int), volume)
    assert nibabel.load(tmp_path / "rgb_labels.nii.gz").shape == (3, 4, 5)

    nibabel.save(
        nibabel.Nifti1Image(data[..., 0].astype(np.int16), np.eye(4)), tmp_path / "flat.nii.gz"
    )
    volume = read_volume(tmp_path / "flat.nii.gz")
    assert volume.shape == (1, 4, 3)
    write_labels(tmp_path / "flat_labels.nii.gz", np.ones(volume.shape, int), volume)
    assert nibabel.load(tmp_path / "flat_labels.nii.gz").shape == (3, 4)


def test_nifti_4d_needs_a_choice(tmp_path: Path) -> None:
    data = RNG.integers(0, 99, (3, 4, 5, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(data, OBLIQUE), tmp_path / "4d.nii.gz")
    with pytest.raises(
        ReadError, match=r"holds 6 volumes; choose one with --volume 0 to --volume 5"
    ):
        read_volume(tmp_path / "4d.nii.gz")
    with pytest.raises(ReadError, match="there is no --volume 6"):
        read_volume(tmp_path / "4d.nii.gz", volume=6)
    volume = read_volume(tmp_path / "4d.nii.gz", volume=2)
    np.testing.assert_array_equal(volume.array, data[..., 2].T)
    write_labels(tmp_path / "labels.nii.gz", ball(volume.shape)[:, :, :3], volume)
    written = nibabel.load(tmp_path / "labels.nii.gz")
    assert written.shape == (3, 4, 5)
    np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-5)

    nibabel.save(nibabel.Nifti1Image(data[..., :1], OBLIQUE), tmp_path / "one.nii.gz")
    assert read_volume(tmp_path / "one.nii.gz").shape == (5, 4, 3)


@needs_data
@pytest.mark.parametrize(
    "name",
    [
        "sarcoma/STS_025_CT",
        "hippocampus/hippocampus_034",
        "cardiac/SCD0000101_ED",
        "brain_tumour/brain2",
    ],
)
def test_real_nifti_files_and_their_masks(tmp_path: Path, name: str) -> None:
    """What we write over a real image equals, in place and values, the labels that came with it."""
    volume = read_volume(DATA / "dev" / f"{name}.nii.gz")
    truth = read_volume(DATA / "dev" / f"{name}_labels.nii.gz")
    write_labels(tmp_path / "labels.nii.gz", truth.array.astype(int), volume)
    image, given, ours = (
        sitk.ReadImage(path)
        for path in (
            DATA / "dev" / f"{name}.nii.gz",
            DATA / "dev" / f"{name}_labels.nii.gz",
            tmp_path / "labels.nii.gz",
        )
    )
    assert_same_grid(image, ours)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(given))


def test_all_of_a_4d_file_is_read(tmp_path: Path) -> None:
    data = RNG.integers(0, 99, (3, 4, 5, 6)).astype(np.int16)
    image = nibabel.Nifti1Image(data, OBLIQUE)
    image.header.set_zooms((0.7, 0.9, 2.5, 1500))
    image.header.set_xyzt_units("mm", "msec")
    nibabel.save(image, tmp_path / "4d.nii.gz")
    volume = read_image(tmp_path / "4d.nii.gz")
    np.testing.assert_array_equal(volume.array, data.T)
    assert volume.axes == "tzyx"
    assert volume.spacing == pytest.approx((1.5, 2.5, 0.9, 0.7))  # seconds, then mm
    components = RNG.random((3, 4, 5, 1, 2)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(components, OBLIQUE), tmp_path / "5d.nii")
    volume = read_image(tmp_path / "5d.nii")
    assert volume.axes == "czyx"
    np.testing.assert_array_equal(volume.array, components[:, :, :, 0].T)
    np.testing.assert_array_equal(
        read_volume(tmp_path / "5d.nii", channel=1).array, components[:, :, :, 0, 1].T
    )


def test_an_uncompressed_file_is_not_read_before_it_is_used(tmp_path: Path) -> None:
    """Also if its values are scaled, or stored in the other byte order."""
    data = RNG.integers(-99, 99, (40, 50, 60)).astype(np.int16)
    for name, order, slope in (("plain", "<", 1), ("scaled", "<", 0.5), ("swapped", ">", 1)):
        header = nibabel.Nifti1Image(data, np.eye(4)).header.as_byteswapped(order)
        header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, 0, 352
        header["magic"] = b"n+1"
        path = tmp_path / f"{name}.nii"
        path.write_bytes(
            header.binaryblock + bytes(4) + data.astype(f"{order}i2").tobytes(order="F")
        )
        array = read_image(path).array
        with path.open("r+b") as file:  # what is written now is seen later
            file.seek(-2, os.SEEK_END)
            file.write(np.array(1234, f"{order}i2").tobytes())
        assert np.asarray(array[-1])[-1, -1] == 1234 * slope, name
        np.testing.assert_array_equal(np.asarray(array[7]), data[:, :, 7].T * slope)


def test_a_pair_of_header_and_values_is_one_image(tmp_path: Path) -> None:
    """Either file opens it; labels on it become a file of their own that lies on it."""
    data = RNG.integers(-99, 99, (4, 5, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Pair(data, AFFINES["oblique"]), tmp_path / "scan.img")
    for name in ("scan.hdr", "scan.img"):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.array, data.T)
        np.testing.assert_allclose(volume.affine, AFFINES["oblique"], atol=1e-5)
    write_labels(tmp_path / "l.nii.gz", (data.T > 0).astype(np.uint8), volume)
    labels = nibabel.load(tmp_path / "l.nii.gz")
    np.testing.assert_array_equal(np.asarray(labels.dataobj), data > 0)
    np.testing.assert_allclose(labels.affine, AFFINES["oblique"], atol=1e-5)

    (tmp_path / "scan.img").write_bytes(data.tobytes()[:50])
    with pytest.raises(ReadError, match=r"scan\.hdr is truncated"):
        read_volume(tmp_path / "scan.hdr")
    (tmp_path / "scan.img").unlink()
    with pytest.raises(ReadError, match=r"scan\.hdr is damaged"):
        read_volume(tmp_path / "scan.hdr")
    (tmp_path / "envi.hdr").write_text("ENVI\nsamples = 5\n")
    with pytest.raises(ReadError, match="is not an image that can be read"):
        read_volume(tmp_path / "envi.hdr")
    assert get_reader(str(tmp_path / "envi.hdr")) is None


def test_a_window_in_the_header_is_proposed(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4))
    image.header["cal_min"], image.header["cal_max"] = -100, 300
    nibabel.save(image, tmp_path / "w.nii")
    assert list(read_image(tmp_path / "w.nii").windows.values()) == [(-100.0, 300.0)]
