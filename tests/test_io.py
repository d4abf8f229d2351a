"""Real files in and out; orientation and spacing are checked with SimpleITK, a second reader."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from napari_sam2.io import ReadError, Volume, WriteError, check_target, read_volume, write_labels

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data")
RNG = np.random.default_rng(0)

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


# ---- NIfTI


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


# ---- TIFF


def test_ome_tiff_axes_and_pixel_size(tmp_path: Path) -> None:
    stack = RNG.integers(0, 999, (5, 6, 7)).astype(np.uint16)
    sizes = {"PhysicalSizeX": 200, "PhysicalSizeY": 250, "PhysicalSizeZ": 1.5}
    units = {"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm", "PhysicalSizeZUnit": "µm"}
    tifffile.imwrite(
        tmp_path / "a.ome.tif", stack, ome=True, metadata={"axes": "ZYX", **sizes, **units}
    )
    volume = read_volume(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(volume.array, stack)
    assert (volume.unit, volume.axes) == ("um", "zyx")
    assert volume.spacing == pytest.approx((1.5, 0.25, 0.2))

    labels = ball(volume.shape)
    write_labels(tmp_path / "labels.ome.tif", labels, volume)
    with tifffile.TiffFile(tmp_path / "labels.ome.tif") as tif:
        assert tif.is_ome and tif.series[0].axes == "ZYX" and tif.series[0].dtype == np.uint8
    back = read_volume(tmp_path / "labels.ome.tif")
    np.testing.assert_array_equal(back.array, labels)
    assert back.spacing == pytest.approx(volume.spacing) and back.unit == "um"

    write_labels(tmp_path / "labels.tif", labels, volume)
    with tifffile.TiffFile(tmp_path / "labels.tif") as tif:
        assert (
            tif.is_imagej
            and tif.imagej_metadata["unit"] == "um"
            and tif.imagej_metadata["spacing"] == 1.5
        )
        numerator, denominator = tif.pages[0].tags["XResolution"].value
        assert numerator / denominator == pytest.approx(1 / 0.2)  # ImageJ counts pixels per unit
    back = read_volume(tmp_path / "labels.tif")
    np.testing.assert_array_equal(back.array, labels)
    assert back.spacing == pytest.approx(volume.spacing) and back.unit == "um"
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "labels.tif")), labels
    )

    write_labels(tmp_path / "labels.nii.gz", labels, volume)  # micrometres become millimetres
    np.testing.assert_allclose(
        sitk.ReadImage(tmp_path / "labels.nii.gz").GetSpacing(),
        [0.0002, 0.00025, 0.0015],
        rtol=1e-5,
    )


def test_imagej_time_lapse(tmp_path: Path) -> None:
    movie = RNG.integers(0, 255, (4, 6, 7)).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "m.tif", movie, imagej=True, resolution=(2, 2),
        metadata={"axes": "TYX", "unit": "micron", "finterval": 30.0},
    )  # fmt: skip
    volume = read_volume(tmp_path / "m.tif")
    assert volume.axes == "tyx" and volume.unit == "um"
    assert volume.spacing == pytest.approx((30.0, 0.5, 0.5))
    for name in ("l.tif", "l.ome.tif"):
        write_labels(tmp_path / name, movie // 64, volume)
        back = read_volume(tmp_path / name)
        np.testing.assert_array_equal(back.array, movie // 64)
        assert back.axes == "tyx" and back.spacing == pytest.approx((30.0, 0.5, 0.5))


def test_plain_tiff_pictures_and_colour(tmp_path: Path) -> None:
    picture = RNG.random((6, 7)).astype(np.float32)
    tifffile.imwrite(tmp_path / "p.tif", picture)
    volume = read_volume(tmp_path / "p.tif")
    assert (volume.shape, volume.axes, volume.unit) == ((1, 6, 7), "yx", "pixel")
    write_labels(
        tmp_path / "l.tif", (volume.array > 0.5) * 70_000, volume
    )  # too large for ImageJ's format
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "l.tif"), (picture > 0.5) * 70_000)

    colours = RNG.integers(0, 255, (3, 6, 7, 4)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "c.tif", colours, photometric="rgb", extrasamples=["unassalpha"])
    volume = read_volume(tmp_path / "c.tif")
    np.testing.assert_array_equal(volume.array, colours[..., :3])
    tifffile.imwrite(tmp_path / "one.tif", colours[0, ..., :3], photometric="rgb")
    assert read_volume(tmp_path / "one.tif").array.shape == (1, 6, 7, 3)


def test_tiff_with_channels_and_time_needs_a_choice(tmp_path: Path) -> None:
    data = RNG.integers(0, 255, (3, 4, 2, 6, 7)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "h.tif", data, imagej=True, metadata={"axes": "TZCYX"})
    with pytest.raises(
        ReadError, match="holds 2 channels; choose one with --channel 0 to --channel 1"
    ):
        read_volume(tmp_path / "h.tif")
    with pytest.raises(
        ReadError, match="holds 3 volumes; choose one with --volume 0 to --volume 2"
    ):
        read_volume(tmp_path / "h.tif", channel=1)
    volume = read_volume(tmp_path / "h.tif", channel=1, volume=2)
    np.testing.assert_array_equal(volume.array, data[2, :, 1])
    with tifffile.TiffWriter(tmp_path / "two.tif") as writer:
        writer.write(data[0, 0, 0])
        writer.write(data[0, 0, 0, :3])
    with pytest.raises(
        ReadError, match=r"holds 2 images; choose one with --series: 1 \(shape \(6, 7\)\)"
    ):
        read_volume(tmp_path / "two.tif")
    assert read_volume(tmp_path / "two.tif", series="2").shape == (1, 3, 7)


# ---- damaged files and targets


def damaged_files(folder: Path) -> list[tuple[Path, str]]:
    """Files that cannot be read, with a part of the message each must give."""
    good = nibabel.Nifti1Image(RNG.integers(0, 99, (20, 20, 20)).astype(np.int16), np.eye(4))
    nibabel.save(good, folder / "good.nii.gz")
    nibabel.save(good, folder / "good.nii")
    packed, plain = (folder / "good.nii.gz").read_bytes(), (folder / "good.nii").read_bytes()
    tifffile.imwrite(folder / "good.tif", np.zeros((9, 30, 30), np.uint16))

    def header(**fields: object) -> bytes:
        changed = nibabel.Nifti1Header(plain[:348], check=False)
        for name, value in fields.items():
            changed[name] = value
        return changed.binaryblock + plain[348:]

    nan = np.array([np.nan, 0, 0, 0], np.float32)
    made = [
        ("missing.nii.gz", None, "no file"),
        ("empty.nii.gz", b"", "empty"),
        ("empty.tif", b"", "empty"),
        ("empty.dcm", b"", "empty"),
        ("cut.nii.gz", packed[: len(packed) // 2], "damaged"),
        ("cut.nii", plain[: len(plain) // 2], "truncated"),
        ("stub.nii", plain[:100], "damaged"),
        ("text.nii", b"this is not an image\n" * 50, "damaged"),
        ("text.nii.gz", b"this is not an image\n" * 50, "damaged"),
        ("packed_text.nii.gz", gzip.compress(b"this is not an image\n" * 50), "damaged"),
        ("text.tif", b"this is not an image\n" * 50, "damaged"),
        ("text.dcm", b"this is not an image\n" * 50, "damaged"),
        ("text.png", b"this is not an image\n" * 50, "NIfTI"),
        ("cut.tif", (folder / "good.tif").read_bytes()[:3000], "damaged"),
        ("huge.nii", header(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "truncated"),
        ("huge.nii.gz", gzip.compress(header(dim=[3, 9999, 9999, 9999, 1, 1, 1, 1])), "truncated"),
        ("huge.tif", None, "damaged"),
        ("pipe.nii", None, "neither a file nor a folder"),
        ("negative.nii", header(dim=[3, -5, 20, 20, 1, 1, 1, 1]), "no voxels"),
        ("nan.nii", header(sform_code=1, srow_x=nan), "orientation"),
        ("zero.nii", header(sform_code=1, srow_x=nan * 0), "orientation"),
        ("complex.nii", None, "complex"),
    ]  # fmt: skip
    tifffile.imwrite(folder / "huge.tif", np.zeros((30, 30), np.uint16))
    with tifffile.TiffFile(folder / "huge.tif", mode="r+b") as tif:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tif.pages[0].tags[tag].overwrite(60_000)
    os.mkfifo(folder / "pipe.nii")
    for name, content, _ in made:
        if content is not None:
            (folder / name).write_bytes(content)
    nibabel.save(
        nibabel.Nifti1Image(np.ones((3, 3, 3), np.complex64), np.eye(4)), folder / "complex.nii"
    )
    return [(folder / name, message) for name, _, message in made]


def test_damaged_files_give_one_sentence(tmp_path: Path) -> None:
    for path, message in damaged_files(tmp_path):
        with pytest.raises(ReadError) as caught:
            read_volume(path)
        text = str(caught.value)
        assert message in text and str(path) in text and "\n" not in text, text


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
    with pytest.raises(WriteError, match="image itself"):
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


def test_labels_of_another_shape_or_type_are_refused(tmp_path: Path) -> None:
    volume = Volume(np.zeros((2, 3, 4), np.uint8))
    for labels in (np.zeros((2, 3, 5), int), np.full((2, 3, 4), -1), np.full((2, 3, 4), 0.5)):
        with pytest.raises(ValueError, match=r"shape|whole numbers"):
            write_labels(tmp_path / "l.tif", labels, volume)
    assert list(tmp_path.iterdir()) == []
