"""Labels layers that are saved from napari: File > Save Selected Layers."""

from __future__ import annotations

from pathlib import Path

import nibabel
import npe2
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from dicom_series import write_series
from napari.layers import Labels
from napari.utils.colormaps import DirectLabelColormap

from napari_sam2.io import Volume, read_labels, read_volume, write_labels
from napari_sam2.io.readers import read_layers
from napari_sam2.io.writers import write_ctc, write_nifti


@pytest.fixture(autouse=True, scope="module")
def plugin() -> None:
    """Make the manifest known, as napari does when it starts."""
    npe2.PluginManager.instance().discover()


def blobs(shape: tuple[int, ...]) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[..., 1:3, 2:5] = 1
    labels[..., 4:6, 1:3] = 2
    labels[-1, ..., -1] = 1
    return labels


def save(layer: Labels, path: Path) -> None:
    assert layer.save(str(path), plugin="napari-sam2") == [str(path)]


@pytest.mark.parametrize("name", ["l.nii.gz", "l.seg.nrrd"])
def test_labels_on_an_opened_scan_go_back_to_its_file(tmp_path: Path, name: str) -> None:
    affine = np.eye(4)  # a sagittal scan, a little oblique
    affine[:3, :3] = nibabel.eulerangles.euler2mat(0.1, 0.05, -0.1) @ [
        (0, 0, 2.9),
        (0.9, 0, 0),
        (0, 0.8, 0),
    ]
    affine[:3, 3] = -80, -100, -70
    values = np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5)
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "scan.nii.gz")
    with pytest.warns(UserWarning, match="oblique"):
        ((shown, options, _),) = read_layers(tmp_path / "scan.nii.gz")
    layer = Labels(
        (np.asarray(shown) > 150).astype(np.uint8),
        **{key: options[key] for key in ("scale", "affine", "axis_labels", "units", "metadata")},
    )
    save(layer, tmp_path / name)
    image = sitk.ReadImage(str(tmp_path / name))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values.T > 150)
    steps = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    source = nibabel.load(tmp_path / "scan.nii.gz").affine
    expected = np.diag([-1, -1, 1, 1]) @ source
    np.testing.assert_allclose(steps, expected[:3, :3], atol=1e-5)
    np.testing.assert_allclose(image.GetOrigin(), expected[:3, 3], atol=1e-4)
    if name.endswith("gz"):
        np.testing.assert_allclose(nibabel.load(tmp_path / name).affine, source, atol=1e-6)


def test_labels_of_any_layer_lie_where_the_layer_lies(tmp_path: Path) -> None:
    layer = Labels(
        blobs((3, 6, 7)), scale=(2, 0.5, 0.25), translate=(10, 20, 30), units=("um",) * 3
    )
    save(layer, tmp_path / "l.nrrd")
    image = sitk.ReadImage(str(tmp_path / "l.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), layer.data)
    # napari's z, y, x are superior, posterior, left
    np.testing.assert_allclose(image.GetOrigin(), (0.03, 0.02, 0.01))
    np.testing.assert_allclose(image.GetSpacing(), (0.00025, 0.0005, 0.002))
    np.testing.assert_allclose(image.GetDirection(), np.eye(3).ravel(), atol=1e-12)
    save(layer, tmp_path / "l.ome.tif")
    back, _, _ = read_labels(tmp_path / "l.ome.tif")
    assert (back.spacing, back.unit) == ((2, 0.5, 0.25), "um")


def test_a_layer_in_time_is_a_time_lapse(tmp_path: Path) -> None:
    layer = Labels(blobs((3, 6, 7)), axis_labels=("t", "y", "x"), scale=(30, 0.5, 0.5))
    save(layer, tmp_path / "l.ome.tif")
    assert write_ctc(str(tmp_path / "cells"), *layer.as_layer_data_tuple()[:2]) == [
        str(tmp_path / "cells_RES")
    ]
    for name in ("l.ome.tif", "cells_RES"):
        back, _, _ = read_labels(tmp_path / name)
        np.testing.assert_array_equal(np.squeeze(back.array), layer.data)
        ((data, options, kind),) = read_layers(tmp_path / name)  # as labels again
        assert kind == "labels" and options["axis_labels"] == ("t", "y", "x")
        np.testing.assert_array_equal(data, layer.data)
    assert (tmp_path / "cells_RES" / "res_track.txt").read_text() == "1 0 2 0\n2 0 2 0\n"


def test_tracks_that_are_opened_and_saved_again_keep_their_parents(tmp_path: Path) -> None:
    """As after File > Open Folder, or after opening all masks of it."""
    labels = np.zeros((5, 9, 12), np.uint8)
    labels[:2, 1:4, 1:4] = 1
    labels[2:, 1:4, 1:4], labels[2:, 5:8, 1:4] = 2, 3
    write_labels(tmp_path / "1_RES", labels, Volume(labels, axes="tyx"), parents={2: 1, 3: 1})
    files = sorted((tmp_path / "1_RES").glob("mask*.tif"))
    for number, source in enumerate((tmp_path / "1_RES", files), start=2):
        ((data, options, kind),) = read_layers(source)
        assert kind == "labels"
        layer = Labels(data, **options)
        assert layer.features.to_dict("list") == {"index": [2, 3], "parent": [1, 1]}
        layer.paint((4, 6, 8), 7)
        path = str(tmp_path / f"{number}_RES")  # as the dialog does, with its first filter
        assert write_nifti(path, *layer.as_layer_data_tuple()[:2]) == [path]
        saved = (tmp_path / f"{number}_RES" / "res_track.txt").read_text()
        assert saved == "1 0 1 0\n2 2 4 1\n3 2 4 1\n7 4 4 0\n"


def test_labels_that_reach_through_channels_lose_that_axis(tmp_path: Path) -> None:
    layer = Labels(blobs((3, 1, 6, 7)), axis_labels=("z", "c", "y", "x"), scale=(2, 4, 0.5, 0.25))
    save(layer, tmp_path / "l.ome.tif")
    back, _, _ = read_labels(tmp_path / "l.ome.tif")
    assert (back.axes == "zyx" and back.spacing == (2, 0.5, 0.25)) or back.unit == "pixel"
    np.testing.assert_array_equal(back.array, layer.data[:, 0])


@pytest.mark.parametrize("name", ["cells_RES", "l.nii.gz"])
def test_labels_of_several_channels_are_not_taken_for_a_volume(tmp_path: Path, name: str) -> None:
    layer = Labels(blobs((3, 2, 6, 7)), axis_labels=("t", "c", "y", "x"), name="cells")
    with pytest.raises(OSError, match="cells has an axis of 2 channels"):
        save(layer, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_names_come_from_features_and_colours_from_the_colormap(tmp_path: Path) -> None:
    layer = Labels(
        blobs((3, 6, 7)),
        features=pd.DataFrame({"index": [0, 1, 2], "name": ["background", "liver", "spleen"]}),
        colormap=DirectLabelColormap(color_dict={None: "transparent", 1: "red", 2: (0, 0, 0, 0)}),
    )
    save(layer, tmp_path / "l.seg.nrrd")
    _, names, colours = read_labels(tmp_path / "l.seg.nrrd")
    assert (names, colours) == ({1: "liver", 2: "spleen"}, {1: (1.0, 0.0, 0.0)})


@pytest.mark.parametrize(
    "name", ["l.seg.nrrd", "l.nii.gz", "l.ome.zarr", "l.dcm", "l.rtstruct.dcm"]
)
def test_labels_that_are_opened_again_keep_names_colours_and_place(
    make_napari_viewer, tmp_path: Path, name: str
) -> None:
    """From a file to napari and back into a file, a DICOM segmentation too."""
    write_series(tmp_path / "ct", FrameOfReferenceUID="1.2.3")
    image = read_volume(tmp_path / "ct")
    labels = np.zeros(image.shape, np.uint8)
    labels[1:5, 2:6, 1:4], labels[3, :2] = 3, 7
    names, colours = {3: "liver", 7: "spleen"}, {3: (1.0, 0.0, 0.0), 7: (0.0, 1.0, 0.0)}
    write_labels(tmp_path / name, labels, image, names=names, colours=colours)
    viewer = make_napari_viewer()
    (scan,) = viewer.open(tmp_path / "ct", plugin="napari-sam2")
    (layer,) = viewer.open(tmp_path / name, plugin="napari-sam2")
    assert isinstance(layer, Labels)
    if name != "l.ome.zarr":  # which knows no patient
        place = np.array(np.unravel_index(int((labels == 7).argmax()), labels.shape))
        at = layer.world_to_data(scan.data_to_world(place))
        assert layer.data[tuple(np.rint(at).astype(int))] == 7
        in_liver = layer.data_to_world(np.argwhere(layer.data == 3)[0])
        assert "name: liver" in layer.get_status(in_liver, world=True)["coordinates"]
    assert tuple(layer.get_color(3)) == pytest.approx((1, 0, 0, 1), abs=0.01)
    layer.save(str(tmp_path / "again.seg.nrrd"), plugin="napari-sam2")
    _, again, painted = read_labels(tmp_path / "again.seg.nrrd")
    assert again == names
    assert painted[7] == pytest.approx((0, 1, 0), abs=0.01)


def test_labels_of_five_axes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="5 axes"):
        save(Labels(blobs((2, 2, 2, 6, 7))), tmp_path / "l.nii.gz")
    assert list(tmp_path.iterdir()) == []
