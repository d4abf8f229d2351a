"""NRRD, MetaImage and OME-Zarr in; place and spacing are checked with SimpleITK."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from images import AFFINES
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.writer import (
    write_image,
    write_labels,
    write_plate_metadata,
    write_well_metadata,
)

from napari_sam2.io import ReadError, Volume, list_images, read_image, read_volume

RNG = np.random.default_rng(0)
DATA = RNG.integers(-500, 3000, (7, 8, 9)).astype(np.int16)


def itk_image(affine: np.ndarray, array: np.ndarray = DATA) -> sitk.Image:
    """An image with a RAS affine, as ITK places it."""
    image = sitk.GetImageFromArray(array)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def assert_lies_as_in(image: sitk.Image, volume: Volume) -> None:
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image))
    assert volume.affine is not None
    assert volume.spacing == pytest.approx(image.GetSpacing()[::-1])
    for index in np.ndindex(2, 2, 2):
        ours = volume.affine @ [*index, 1]
        theirs = image.TransformContinuousIndexToPhysicalPoint([float(i) for i in index])
        np.testing.assert_allclose(ours[:3] * [-1, -1, 1], theirs, atol=1e-4)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize(
    "file", ["a.nrrd", "packed.nrrd", "a.nhdr", "a.mha", "packed.mha", "a.mhd"]
)
def test_images_lie_where_itk_writes_them(tmp_path: Path, name: str, file: str) -> None:
    image = itk_image(AFFINES[name])
    sitk.WriteImage(image, str(tmp_path / file), useCompression=file.startswith("z"))
    volume = read_image(tmp_path / file)
    assert (volume.axes, volume.unit) == ("zyx", "mm")
    assert_lies_as_in(sitk.ReadImage(str(tmp_path / file)), volume)
    (info,) = list_images(tmp_path / file)
    assert (info.shape, info.dtype) == ((7, 8, 9), "int16")


@pytest.mark.parametrize("space", ["left-posterior-superior", "RAS", "left-anterior-superior"])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_nrrd_of_any_space_and_encoding(tmp_path: Path, space: str, encoding: str) -> None:
    header = {
        "space": space,
        "space directions": np.diag([0.5, 0.6, 2.0]),
        "space origin": [1.0, 2.0, 3.0],
        "encoding": encoding,
    }
    nrrd.write(str(tmp_path / "a.nrrd"), DATA.T, header)
    nrrd.write(str(tmp_path / "raw.nrrd"), DATA.T, header | {"encoding": "raw"})
    # SimpleITK does not unpack bzip2.
    assert_lies_as_in(sitk.ReadImage(str(tmp_path / "raw.nrrd")), read_image(tmp_path / "a.nrrd"))


def test_nrrd_with_time_channels_and_colours(tmp_path: Path) -> None:
    series = RNG.integers(0, 99, (3, *DATA.shape)).astype(np.uint8)
    directions = np.vstack([np.full(3, np.nan), np.eye(3)])
    for kind, axes in (("list", "tzyx"), ("vector", "czyx")):
        header = {"space": "LPS", "space directions": directions, "kinds": [kind, *["domain"] * 3]}
        nrrd.write(str(tmp_path / f"{kind}.nrrd"), series.T.transpose(3, 0, 1, 2), header)
        volume = read_image(tmp_path / f"{kind}.nrrd")
        assert volume.axes == axes
        np.testing.assert_array_equal(volume.array, series)
    header["kinds"] = ["RGB-color", *["domain"] * 3]
    nrrd.write(str(tmp_path / "rgb.nrrd"), series.T.transpose(3, 0, 1, 2), header)
    volume = read_image(tmp_path / "rgb.nrrd")
    assert (volume.axes, volume.shape) == ("zyx", DATA.shape)
    np.testing.assert_array_equal(volume.array, np.moveaxis(series, 0, -1))


def test_mha_with_time_and_colours(tmp_path: Path) -> None:
    volumes = [itk_image(AFFINES["flipped"], DATA + n) for n in range(3)]
    sitk.WriteImage(sitk.JoinSeries(volumes, 0, 1.5), str(tmp_path / "t.mha"))
    volume = read_image(tmp_path / "t.mha")
    assert (volume.axes, volume.spacing[0]) == ("tzyx", 1.5)
    np.testing.assert_array_equal(volume.array[2], DATA + 2)
    assert_lies_as_in(volumes[1], read_volume(tmp_path / "t.mha", volume=1))
    colours = RNG.integers(0, 255, (*DATA.shape, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "rgb.mha"))
    volume = read_image(tmp_path / "rgb.mha")
    assert (volume.axes, volume.shape) == ("zyx", DATA.shape)
    np.testing.assert_array_equal(volume.array, colours)


@pytest.mark.parametrize("file", ["a.mha", "list.mhd"])
def test_an_uncompressed_mha_is_not_read_before_it_is_used(tmp_path: Path, file: str) -> None:
    for dtype in (np.uint8, np.int16, np.float32):
        array = (RNG.integers(0, 99, (7, 8, 9)) / 2).astype(dtype)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / file))
        volume = read_image(tmp_path / file)
        values = tmp_path / file.replace(".mhd", ".raw")
        with values.open("r+b") as stored:  # what is written now is seen later
            stored.seek(-array.itemsize, os.SEEK_END)
            stored.write(np.array(77, dtype).tobytes())
        assert volume.array[-1, -1, -1] == 77
        np.testing.assert_array_equal(volume.array[:-1], array[:-1])


@pytest.mark.parametrize("is_compressed", [False, True])
def test_an_mhd_may_have_its_values_in_a_folder_below(tmp_path: Path, is_compressed: bool) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(DATA), str(tmp_path / "a.mhd"), is_compressed)
    (values,) = (file for file in tmp_path.iterdir() if file.suffix != ".mhd")
    (tmp_path / "below").mkdir()
    values.rename(tmp_path / "below" / values.name)
    text = (tmp_path / "a.mhd").read_text().replace(values.name, f"below/{values.name}")
    (tmp_path / "a.mhd").write_text(text)
    np.testing.assert_array_equal(read_image(tmp_path / "a.mhd").array, DATA)


@pytest.mark.parametrize("skipped", [0, 10, -1])
def test_an_mhd_may_skip_a_header_and_swap_bytes(tmp_path: Path, skipped: int) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(DATA), str(tmp_path / "a.mhd"))
    (tmp_path / "a.raw").write_bytes(bytes(10) * (skipped != 0) + DATA.astype(">i2").tobytes())
    text = (tmp_path / "a.mhd").read_text().replace("OrderMSB = False", "OrderMSB = True")
    text = text.replace("ElementDataFile", f"HeaderSize = {skipped}\nElementDataFile")
    (tmp_path / "a.mhd").write_text(text)
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.mhd")))
    ours = np.asarray(read_image(tmp_path / "a.mhd").array)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours, DATA)


@pytest.mark.parametrize("fmt", [FormatV04(), FormatV05()], ids=["0.4", "0.5"])
def test_ome_zarr_with_channels_scales_and_labels(tmp_path: Path, fmt: object) -> None:
    data = RNG.integers(0, 999, (2, 2, 4, 64, 80)).astype(np.uint16)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="w", zarr_format=fmt.zarr_format)
    axes = [
        {"name": "t", "type": "time", "unit": "minute"},
        {"name": "c", "type": "channel"},
        {"name": "z", "type": "space", "unit": "nanometer"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]
    channels = [
        {"label": name, "color": "FF0000", "window": {"start": 5, "end": 500, "min": 0, "max": 999}}
        for name in ("DAPI", "GFP")
    ]
    write_image(data, group, axes="tczyx", fmt=fmt, scale_factors=[{"y": 2, "x": 2}])
    attributes = group.attrs.asdict()
    described = attributes.get("ome", attributes)
    described["multiscales"][0]["axes"] = axes
    for n, dataset in enumerate(described["multiscales"][0]["datasets"], start=1):
        scale = [2, 1, 500, 0.2 * n, 0.2 * n]
        dataset["coordinateTransformations"] = [{"type": "scale", "scale": scale}]
    described["omero"] = {"channels": channels}
    group.attrs.put(attributes)
    volume = read_image(tmp_path / "a.ome.zarr")
    assert (volume.axes, volume.unit, volume.channels) == ("tczyx", "um", ("DAPI", "GFP"))
    assert volume.spacing == pytest.approx((120, 0.5, 0.2, 0.2))
    assert [level.shape[-2:] for level in volume.pyramid] == [(32, 40)]
    assert volume.windows == {"DAPI": (5, 500), "GFP": (5, 500)}
    np.testing.assert_array_equal(volume.array, data)
    one = read_volume(tmp_path / "a.ome.zarr", volume=1, channel=0)
    np.testing.assert_array_equal(one.array, data[1, 0])

    write_labels(
        (data[:, 0] > 500).astype(np.uint8), group, name="cells", axes=[axes[0], *axes[2:]], fmt=fmt
    )
    assert read_image(tmp_path / "a.ome.zarr").axes == "tczyx"  # the image, not its labels
    image, labels = list_images(tmp_path / "a.ome.zarr")
    assert (image.series, labels.series, labels.axes) == ("1", "2", "tzyx")
    cells = read_image(tmp_path / "a.ome.zarr", series="2")
    assert cells.is_labels
    np.testing.assert_array_equal(cells.array, data[:, 0] > 500)


def test_ome_zarr_with_several_images_needs_a_choice(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "b.zarr", mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    for n in range(12):
        write_image(np.full((4, 8, 8), n, np.uint8), root.create_group(str(n)), axes="zyx",
                    fmt=FormatV04(), name=f"scan {n}")  # fmt: skip
    said = (
        r"holds 12 images; choose one with --series: 1 \(scan 0\), .*, 10 \(scan 9\) and 2 more\."
    )
    with pytest.raises(ReadError, match=said):
        read_image(tmp_path / "b.zarr")
    np.testing.assert_array_equal(read_image(tmp_path / "b.zarr", series="2").array, 1)


def test_a_plate_names_its_wells_and_a_field_to_open(tmp_path: Path) -> None:
    plate = tmp_path / "screen.ome.zarr"
    root = zarr.open_group(plate, mode="w", zarr_format=2)
    write_plate_metadata(root, ["A"], ["1", "2"], ["A/1", "A/2"], fmt=FormatV04())
    for number, well in enumerate(("A/1", "A/2")):
        group = root.require_group(well)
        write_well_metadata(group, ["0", "1"], fmt=FormatV04())
        for field in "01":
            picture = np.full((4, 8, 8), 10 * number + int(field), np.uint8)
            write_image(picture, group.create_group(field), axes="zyx", fmt=FormatV04())
    with pytest.raises(ReadError, match=r"a plate of 2 wells \(A/1, A/2\); .*zarr/A/1/0\.$"):
        read_image(plate)
    assert read_image(plate / "A" / "2" / "1").array[0, 0, 0] == 11
    assert len(list_images(plate / "A" / "2")) == 2  # a well, whose fields are choices


@pytest.mark.parametrize(("file", "package"), [("a.nrrd", "nrrd"), ("a.mha", "SimpleITK")])
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, package: str
) -> None:
    sitk.WriteImage(itk_image(np.eye(4)), str(tmp_path / file))
    module = "nrrd" if package == "nrrd" else "metaimage"
    monkeypatch.delitem(sys.modules, f"napari_sam2.io.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ReadError, match=rf"needs the package {package}, .*napari-sam2\[formats\]"):
        read_image(tmp_path / file)
