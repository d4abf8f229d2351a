"""TIFF in: plain, ImageJ, OME, pyramids; PNG and JPEG; numbered files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from images import ball
from PIL import Image

from napari_sam2.io import (
    ReadError,
    list_images,
    read_image,
    read_labels,
    read_volume,
    write_labels,
)

RNG = np.random.default_rng(0)


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


def test_all_of_a_hyperstack_is_read(tmp_path: Path) -> None:
    data = RNG.integers(0, 255, (3, 4, 2, 6, 7)).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "h.tif", data, imagej=True, resolution=(4, 4),
        metadata={"axes": "TZCYX", "unit": "um", "spacing": 0.5, "finterval": 20},
    )  # fmt: skip
    volume = read_image(tmp_path / "h.tif")
    assert volume.axes == "tczyx"
    assert volume.spacing == pytest.approx((20, 0.5, 0.25, 0.25))
    np.testing.assert_array_equal(volume.array, data.swapaxes(1, 2))
    tifffile.imwrite(
        tmp_path / "c.ome.tif", data[0, 0], ome=True,
        metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}},
    )  # fmt: skip
    volume = read_image(tmp_path / "c.ome.tif")
    assert volume.channels == ("DAPI", "GFP")
    np.testing.assert_array_equal(volume.array[:, 0], data[0, 0])
    picture = read_volume(tmp_path / "c.ome.tif", channel=1)
    assert (picture.axes, picture.shape) == ("yx", (1, 6, 7))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pages_are_read_when_they_are_used(
    tmp_path: Path, compression: str | None, order: str
) -> None:
    """BigTIFF, as written by programs for large data; of 40 pages one is decoded."""
    stack = RNG.integers(0, 9999, (40, 64, 64)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "b.tif", stack, bigtiff=True, compression=compression, byteorder=order,
        metadata={"axes": "ZYX"},
    )  # fmt: skip
    array = read_image(tmp_path / "b.tif").array
    assert array.dtype == np.uint16 and array.dtype.isnative
    with tifffile.TiffFile(tmp_path / "b.tif", mode="r+b") as tif:  # spoil all pages but one
        for number, page in enumerate(tif.pages):
            if number != 7:
                tif.filehandle.seek(page.dataoffsets[0])
                tif.filehandle.write(b"\xff" * page.databytecounts[0])
    np.testing.assert_array_equal(np.asarray(array[7]), stack[7])
    if compression:
        with pytest.raises(ReadError, match=r"b\.tif is damaged"):
            np.asarray(array[8])


def test_a_pyramid_keeps_its_levels(tmp_path: Path) -> None:
    base = RNG.integers(0, 255, (512, 640)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "p.ome.tif") as writer:
        options = {"tile": (64, 64), "compression": "zlib", "photometric": "minisblack"}
        writer.write(base, subifds=2, metadata={"axes": "YX"}, **options)
        writer.write(base[::2, ::2], subfiletype=1, **options)
        writer.write(base[::4, ::4], subfiletype=1, **options)
    volume = read_image(tmp_path / "p.ome.tif")
    assert [level.shape for level in volume.pyramid] == [(1, 256, 320), (1, 128, 160)]
    np.testing.assert_array_equal(volume.array[0], base)
    np.testing.assert_array_equal(volume.pyramid[1][0], base[::4, ::4])


def test_an_ome_image_in_several_files_is_one(tmp_path: Path) -> None:
    """Any of the files stands for all; without one of them, its pages are shown as 0 and told."""
    stack = RNG.integers(1, 255, (3, 6, 7)).astype(np.uint8)
    uuids = [f"urn:uuid:00000000-0000-0000-0000-00000000000{n}" for n in range(3)]
    blocks = "".join(
        f'<TiffData IFD="0" FirstZ="{n}" FirstC="0" FirstT="0" PlaneCount="1">'
        f'<UUID FileName="z{n}.ome.tif">{uuid}</UUID></TiffData>'
        for n, uuid in enumerate(uuids)
    )
    for n, uuid in enumerate(uuids):
        description = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="{uuid}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
            'Type="uint8" SizeX="7" SizeY="6" SizeZ="3" SizeC="1" SizeT="1" PhysicalSizeX="0.5" '
            'PhysicalSizeY="0.5" PhysicalSizeZ="2"><Channel ID="Channel:0" SamplesPerPixel="1"/>'
            f"{blocks}</Pixels></Image></OME>"
        )
        tifffile.imwrite(
            tmp_path / f"z{n}.ome.tif", stack[n], description=description, metadata=None
        )
    volume = read_image(tmp_path / "z1.ome.tif")
    np.testing.assert_array_equal(volume.array, stack)
    assert volume.spacing == (2.0, 0.5, 0.5)
    (tmp_path / "z2.ome.tif").unlink()
    volume = read_image(tmp_path / "z1.ome.tif")
    np.testing.assert_array_equal(volume.array, [stack[0], stack[1], stack[2] * 0])
    assert "1 of the image's 3 pages" in volume.notes[0]


def test_a_folder_of_numbered_files_is_a_sequence(tmp_path: Path) -> None:
    frames = RNG.integers(0, 255, (12, 6, 7)).astype(np.uint8)
    (tmp_path / "z").mkdir()
    for number, frame in enumerate(frames):
        tifffile.imwrite(tmp_path / "z" / f"slice{number}.tif", frame)  # 10 comes after 9
    volume = read_image(tmp_path / "z")
    assert volume.axes == "zyx"
    np.testing.assert_array_equal(volume.array, frames)

    (tmp_path / "01").mkdir()  # as in the Cell Tracking Challenge
    for number, frame in enumerate(frames):
        tifffile.imwrite(tmp_path / "01" / f"t{number:03}.tif", frame)
    volume = read_volume(tmp_path / "01")
    assert volume.axes == "tyx"
    np.testing.assert_array_equal(volume.array, frames)

    (tmp_path / "all").mkdir()
    data = frames.reshape(2, 2, 3, 6, 7)
    for t, c, z in np.ndindex(2, 2, 3):
        tifffile.imwrite(tmp_path / "all" / f"well3_t{t}_c{c}_z{z}.tif", data[t, c, z])
    volume = read_image(tmp_path / "all")
    assert volume.axes == "tczyx"
    np.testing.assert_array_equal(volume.array, data)

    tifffile.imwrite(tmp_path / "z" / "notes.tif", frames[0])
    with pytest.raises(ReadError, match="not numbered alike"):
        read_image(tmp_path / "z")
    (tmp_path / "z" / "notes.tif").unlink()
    tifffile.imwrite(tmp_path / "z" / "slice5.tif", frames[0].astype(np.uint16))
    with pytest.raises(ReadError, match=r"slice5\.tif differs from slice0\.tif in type"):
        read_image(tmp_path / "z")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_numbered_pictures_are_a_sequence_too(tmp_path: Path, suffix: str) -> None:
    """In colours, as movies are cut into frames; pictures beside scans are none of it."""
    colours = np.kron(RNG.integers(0, 255, (11, 2, 3, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    for number, frame in enumerate(colours):
        Image.fromarray(frame).save(tmp_path / f"t{number}.{suffix}", quality=100, subsampling=0)
    (info,) = list_images(tmp_path)
    assert (info.axes, info.shape) == ("tyx", (11, 16, 24))
    volume = read_volume(tmp_path)
    assert volume.array.shape == (11, 16, 24, 3)
    assert np.abs(np.asarray(volume.array).astype(int) - colours).max() <= (suffix == "jpg") * 4
    (info,) = list_images(tmp_path / f"t0.{suffix}")
    assert (info.axes, info.shape, len(info.spacing)) == ("yx", (16, 24), 2)
    Image.fromarray(colours[0, :9]).save(tmp_path / f"t3.{suffix}")
    with pytest.raises(ReadError, match=r"differs from t0\.\w+ in size"):
        read_image(tmp_path)

    tifffile.imwrite(tmp_path / "scan.tif", colours[..., 0])  # what follows is of the TIFF
    assert read_image(tmp_path).array.shape == (11, 16, 24)
    (tmp_path / "scan.tif").rename(tmp_path / "scan.nii")
    with pytest.raises(ReadError, match=r"holds no DICOM images, but 11 .* and 1 \.nii file"):
        read_image(tmp_path)


def test_pictures_keep_their_grey_values(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65535, (6, 7)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "deep.png").array, deep[np.newaxis])
    clear = np.dstack([deep >> 8, deep & 255]).astype(np.uint8)  # grey and transparency
    Image.fromarray(clear, "LA").save(tmp_path / "clear.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "clear.png").array[0], deep >> 8)
    mask = deep > 30000
    Image.fromarray(mask).save(tmp_path / "mask.png")
    labels, _, _ = read_labels(tmp_path / "mask.png")
    np.testing.assert_array_equal(labels.array[0], mask)


def test_several_images_in_a_file_are_listed(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "two.tif") as writer:
        writer.write(np.zeros((6, 7), np.uint8))
        writer.write(np.zeros((3, 8, 9), np.uint16), photometric="minisblack")
    tifffile.imwrite(tmp_path / "one.tif", np.zeros((6, 7), np.uint8))
    assert list_images(tmp_path / "one.tif")[0].description == "one.tif"
    first, second = list_images(tmp_path / "two.tif")
    assert second.description == "two.tif, image 2"
    assert (first.series, first.shape, first.axes, first.dtype) == ("1", (6, 7), "yx", "uint8")
    assert (second.series, second.shape, second.dtype) == ("2", (3, 8, 9), "uint16")
