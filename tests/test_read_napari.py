"""Images opened in napari: where they lie, and what comes with them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from dicom_series import STORED, write_series
from images import AFFINES, OBLIQUE
from models import small_model
from napari.components import ViewerModel
from napari.layers import Layer
from ome_zarr.format import FormatV04
from ome_zarr.writer import write_image, write_labels

from napari_sam2 import Session
from napari_sam2.io import read_image, read_volume, to_file_order, world_affine
from napari_sam2.io.place import layer_axes, obliqueness
from napari_sam2.io.readers import METADATA_KEY, get_reader, read_layers
from napari_sam2.session_file import replay, save_session

RNG = np.random.default_rng(0)
STRAIGHT = np.array([[1.5, 0, 0, -20], [0, 2.0, 0, -30], [0, 0, 3.0, 10], [0, 0, 0, 1.0]])


def opened(path: Path) -> list[Layer]:
    reader = get_reader(str(path))
    assert reader is not None
    return [Layer.create(*data) for data in reader(str(path))]


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(data, affine), path)


def reoriented(data: np.ndarray, affine: np.ndarray, axes: str) -> nibabel.Nifti1Image:
    """The same image with its voxels stored in another order."""
    image = nibabel.Nifti1Image(data, affine)
    wanted = nibabel.orientations.axcodes2ornt(axes)
    return image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), wanted)
    )


# ---- place


def test_x_grows_to_the_left_of_the_patient_and_y_to_the_back(tmp_path: Path) -> None:
    """As radiologists view slices; z grows to the head."""
    save(tmp_path / "a.nii", np.zeros((4, 5, 6), np.int16), STRAIGHT)
    place = world_affine(read_volume(tmp_path / "a.nii"))
    right_anterior_superior = STRAIGHT @ [1, 2, 3, 1]
    superior, posterior, left, _ = place @ [3, 2, 1, 1]
    np.testing.assert_allclose(
        (-left, -posterior, superior), right_anterior_superior[:3], rtol=1e-6
    )
    (layer,) = opened(tmp_path / "a.nii")
    np.testing.assert_allclose(layer.data_to_world((3, 2, 1)), (superior, posterior, left))
    np.testing.assert_allclose(layer.scale, (3, 2, 1.5))
    assert [str(unit) for unit in layer.units] == ["millimeter"] * 3


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR", "ASL", "SRA"])
def test_scans_overlay_however_they_are_stored(tmp_path: Path, axes: str) -> None:
    """The slices that napari draws are the same, with sliders at the same place in the world."""
    data = RNG.integers(0, 999, (5, 6, 7)).astype(np.int16)
    save(tmp_path / "a.nii", data, STRAIGHT)
    nibabel.save(reoriented(data, STRAIGHT, axes), tmp_path / "b.nii.gz")
    viewer = ViewerModel()
    for name in ("a.nii", "b.nii.gz"):
        viewer.add_layer(opened(tmp_path / name)[0])
    for z in range(7):
        viewer.dims.set_point(0, 10 + 3 * z)
        for y, x in np.ndindex(6, 5):
            at = (10 + 3.0 * z, 30 - 2.0 * y, 20 - 1.5 * x)
            first, second = (layer.get_value(at, world=True) for layer in viewer.layers)
            assert first == second == data[x, y, z]


def test_dicom_and_nifti_of_a_scan_overlay(tmp_path: Path) -> None:
    for name, orientation in (("axial", (1, 0, 0, 0, 1, 0)), ("sagittal", (0, 1, 0, 0, 0, -1))):
        write_series(tmp_path / name, STORED, orientation=orientation)
        volume = read_volume(tmp_path / name)
        stored = nibabel.Nifti1Image(np.asarray(volume.array).T, volume.affine)
        nibabel.save(nibabel.as_closest_canonical(stored), tmp_path / f"{name}.nii.gz")
        (dicom,), (nifti,) = opened(tmp_path / name), opened(tmp_path / f"{name}.nii.gz")
        assert dicom.data.shape == nifti.data.shape
        pixels = np.asarray(dicom.data)
        for index in np.ndindex(*nifti.data.shape):
            at = dicom.world_to_data(nifti.data_to_world(index)).round(3).astype(int)
            assert nifti.data[index] == pixels[tuple(at)]


def test_oblique_scans_of_one_direction_overlay(tmp_path: Path) -> None:
    """They are shown straight, so that napari draws their slices; files keep the true place."""
    data = RNG.integers(0, 999, (8, 9, 10)).astype(np.int16)
    part = OBLIQUE.copy()
    part[:3, 3] = (OBLIQUE @ [2, 3, 4, 1])[:3]
    save(tmp_path / "all.nii", data, OBLIQUE)
    save(tmp_path / "part.nii", data[2:, 3:, 4:], part)
    assert obliqueness(read_volume(tmp_path / "all.nii")) > 10
    with pytest.warns(UserWarning, match="is shown straight"):
        (whole,), (cut,) = opened(tmp_path / "all.nii"), opened(tmp_path / "part.nii")
    linear = np.asarray(whole.affine)[:3, :3]
    np.testing.assert_allclose(linear, np.diag(np.diag(linear)), atol=1e-9)
    assert whole.scale == pytest.approx(cut.scale)
    assert sorted(whole.scale) == pytest.approx([0.7, 0.9, 2.5])
    for index in np.ndindex(*cut.data.shape):
        at = whole.world_to_data(cut.data_to_world(index)).round(3).astype(int)
        assert whole.data[tuple(at)] == cut.data[index]
    kept = whole.metadata[METADATA_KEY]
    np.testing.assert_allclose(kept.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("name", AFFINES)
def test_labels_of_a_layer_go_back_into_the_order_of_the_file(tmp_path: Path, name: str) -> None:
    data = RNG.integers(0, 9, (5, 6, 7, 3)).astype(np.uint8)
    save(tmp_path / "4d.nii", data, AFFINES[name])
    (layer,) = opened(tmp_path / "4d.nii")
    volume = layer.metadata[METADATA_KEY]
    assert volume.shape == (3, 7, 6, 5)
    np.testing.assert_array_equal(to_file_order(layer.data, volume), data.T)


def test_a_sagittal_scan_has_its_slices_along_x(tmp_path: Path) -> None:
    save(tmp_path / "s.nii", np.zeros((5, 6, 7), np.uint8), AFFINES["sagittal"])
    assert layer_axes(read_volume(tmp_path / "s.nii")) == (1, 2, 0)


def test_a_session_on_a_sagittal_scan_finds_its_image_again(make_napari_viewer, tmp_path) -> None:
    """The layer has other axes than the file; without a window it is read as it was shown."""
    data = RNG.integers(0, 99, (14, 15, 16)).astype(np.int16)
    save(tmp_path / "s.nii", data, AFFINES["sagittal"])
    (layer,) = make_napari_viewer().open(tmp_path / "s.nii", plugin="napari-sam2")
    session = Session(layer, small_model())
    session.add_points(session.add_object(), [(3, 7, 8)])
    save_session(session, tmp_path / "s.sam2session")
    found = replay(tmp_path / "s.sam2session", model=small_model())
    assert found.shape == layer.data.shape == (15, 14, 16)


# ---- what comes with a layer


def test_channels_become_layers_and_pictures_lose_their_one_slice(tmp_path: Path) -> None:
    data = RNG.integers(0, 255, (4, 2, 6, 7)).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "c.tif", data, imagej=True, resolution=(4, 4),
        metadata={"axes": "TCYX", "unit": "um", "finterval": 20},
    )  # fmt: skip
    first, second = opened(tmp_path / "c.tif")
    assert (first.name, second.name) == ("c.tif, channel 0", "c.tif, channel 1")
    assert (first.blending, first.colormap.name) == ("additive", "magenta")
    assert first.axis_labels == ("t", "y", "x")
    assert [str(unit) for unit in first.units] == ["second", "micrometer", "micrometer"]
    np.testing.assert_allclose(second.scale, (20, 0.25, 0.25))
    np.testing.assert_array_equal(second.data, data[:, 1])

    tifffile.imwrite(tmp_path / "rgb.tif", data[:3, 0].transpose(1, 2, 0).copy(), photometric="rgb")
    (colour,) = opened(tmp_path / "rgb.tif")
    assert colour.rgb and colour.data.shape == (6, 7, 3)
    tifffile.imwrite(tmp_path / "grey.tif", data[0, 0])
    (grey,) = opened(tmp_path / "grey.tif")
    assert grey.data.shape == (6, 7)
    np.testing.assert_array_equal(
        to_file_order(grey.data, grey.metadata[METADATA_KEY]), data[:1, 0]
    )


def test_an_ome_zarr_opens_with_pyramid_windows_and_labels(tmp_path: Path) -> None:
    data = RNG.integers(0, 999, (4, 64, 80)).astype(np.uint16)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="w", zarr_format=2)
    write_image(data, group, axes="zyx", fmt=FormatV04(), scale_factors=[{"y": 2, "x": 2}])
    write_labels((data > 500).astype(np.uint8), group, name="cells", axes="zyx", fmt=FormatV04())
    image, labels = opened(tmp_path / "a.ome.zarr")
    assert image.multiscale and [level.shape for level in image.data] == [data.shape, (4, 32, 40)]
    assert type(labels).__name__ == "Labels" and labels.visible
    np.testing.assert_array_equal(labels.data[0] if labels.multiscale else labels.data, data > 500)


def test_contrast_limits_are_sampled_and_not_read_from_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the same as the engine's window, from a few of 200 slices; or what the file says."""
    stack = RNG.normal(100, 10, (200, 32, 32)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "z.tif", stack, compression="zlib", metadata={"axes": "ZYX"})
    decoded = []
    image = read_image(tmp_path / "z.tif")
    block = type(image.array).compute
    monkeypatch.setattr(
        type(image.array), "compute",
        lambda array, **options: (decoded.append(array.shape), block(array, **options))[1],
    )  # fmt: skip
    (layer,) = opened(tmp_path / "z.tif")
    low, high = layer.contrast_limits
    assert 60 < low < 90 and 110 < high < 140
    assert 0 < len(decoded) < 40 and all(np.prod(shape) <= 32 * 32 for shape in decoded)

    write_series(tmp_path / "ct", STORED, WindowCenter=40, WindowWidth=400)
    (ct,) = opened(tmp_path / "ct")
    assert tuple(ct.contrast_limits) == (-160, 240)
    assert list(ct.metadata[METADATA_KEY].windows.values()) == [(-160, 240)]


def test_several_series_open_with_the_first_visible(tmp_path: Path) -> None:
    write_series(tmp_path / "a", STORED, description="thorax", SeriesNumber=1)
    write_series(tmp_path / "b", STORED[:4], description="scout", SeriesNumber=2)
    layers = opened(tmp_path)
    assert [layer.data.shape[0] for layer in layers] == [6, 4]
    assert [layer.visible for layer in layers] == [True, False]


def test_what_is_not_ours_is_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("nothing to see")
    assert get_reader(str(tmp_path / "notes")) is None
    assert get_reader(str(tmp_path / "notes" / "a.txt")) is None
    assert get_reader(str(tmp_path / "nowhere")) is None


def test_files_given_together_are_one_stack(tmp_path: Path) -> None:
    frames = RNG.integers(0, 255, (11, 6, 7)).astype(np.uint8)
    paths = [tmp_path / f"f{n}.tif" for n in range(11)]
    for path, frame in zip(paths, frames, strict=True):
        tifffile.imwrite(path, frame)
    ((data, _, _),) = read_layers([str(path) for path in sorted(paths)])
    np.testing.assert_array_equal(data, frames)


def test_napari_opens_files_and_folders_through_the_manifest(
    make_napari_viewer, tmp_path: Path
) -> None:
    save(tmp_path / "scan.nii.gz", RNG.integers(0, 99, (5, 6, 7)).astype(np.int16), STRAIGHT)
    write_series(tmp_path / "ct", STORED)
    viewer = make_napari_viewer()
    (scan,) = viewer.open(tmp_path / "scan.nii.gz", plugin="napari-sam2")
    (ct,) = viewer.open(tmp_path / "ct", plugin="napari-sam2")
    assert (scan.name, scan.data.shape) == ("scan.nii.gz", (7, 6, 5))
    assert ct.data.shape == STORED.shape
    assert scan.source.path == str(tmp_path / "scan.nii.gz")
