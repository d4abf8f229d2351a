"""What is measured of objects, against shapes of known size and against scikit-image."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lazy import Lazy
from models import small_model
from napari.layers import Image
from skimage.measure import regionprops_table

from napari_sam2 import Session
from napari_sam2.io import Volume
from napari_sam2.io.place import layer_axes
from napari_sam2.io.readers import layers_of
from napari_sam2.io.volume import spacing_of
from napari_sam2.measures import Measures, found_objects, measure_labels, measure_session, write_csv
from napari_sam2.sequence_view import SequenceKey


def of(measures: Measures, object_id: int, frame: int) -> Any:
    return next(r for r in measures.frames if (r.object, r.frame) == (object_id, frame))


def boxes() -> tuple[np.ndarray, np.ndarray]:
    """Two boxes in a volume, and an image."""
    labels = np.zeros((5, 20, 30), np.uint16)
    labels[1:4, 2:6, 3:13] = 1
    labels[2:5, 10:15, 10:14] = 300
    image = np.random.default_rng(0).normal(1000, 50, labels.shape)
    return labels, image


def test_a_volume_is_measured_in_millimetres() -> None:
    labels, image = boxes()
    volume = Volume(image, (3.0, 0.5, 0.25), "mm")
    measures = measure_labels(labels, volume, names={1: "liver"})
    one, other = measures.objects
    assert (one.object, one.name, one.unit) == (1, "liver", "mm3")
    assert one.size == pytest.approx(3 * 4 * 10 * 3 * 0.5 * 0.25)
    assert (one.frames, one.first, one.last, one.pixels) == (3, 1, 3, 120)
    assert one.centroid == pytest.approx((2 * 3, 3.5 * 0.5, 7.5 * 0.25))
    assert one.box == (1, 2, 3, 4, 6, 13)
    assert one.mean == pytest.approx(image[labels == 1].mean())
    assert one.spread == pytest.approx(image[labels == 1].std())
    assert (other.object, other.name) == (300, "Object 300")
    slice_ = of(measures, 1, 2)
    assert (slice_.size, slice_.unit) == (pytest.approx(40 * 0.5 * 0.25), "mm2")
    assert slice_.box == (2, 3, 6, 13)
    assert slice_.mean == pytest.approx(image[2][labels[2] == 1].mean())


def test_it_agrees_with_scikit_image_on_odd_shapes() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 6, (4, 40, 50)).astype(np.uint8)
    image = rng.normal(0, 1, labels.shape)
    measures = measure_labels(labels, Volume(image))
    names = ("label", "num_pixels", "centroid", "bbox", "intensity_mean", "intensity_std")
    for frame in range(4):
        table = regionprops_table(labels[frame], image[frame], properties=names)
        for n, object_id in enumerate(table["label"]):
            row = of(measures, object_id, frame)
            assert row.pixels == table["num_pixels"][n]
            found = (*row.centroid[1:], row.mean, row.spread)
            keys = ("centroid-0", "centroid-1", "intensity_mean", "intensity_std")
            np.testing.assert_allclose(found, [table[key][n] for key in keys])
            assert row.box == tuple(table[f"bbox-{i}"][n] for i in range(4))


def test_a_centroid_lies_in_the_patient() -> None:
    labels, image = boxes()
    affine = np.diag((-0.25, -0.5, 3.0, 1.0))
    affine[:3, 3] = 100, 50, -20  # R, A, S of the first voxel
    (one, _) = measure_labels(labels, Volume(image, (3.0, 0.5, 0.25), "mm", affine)).objects
    right, anterior, superior = (affine @ (7.5, 3.5, 2, 1))[:3]
    assert one.centroid == pytest.approx((superior, -anterior, -right))


SHEARED = np.array([[0, -2, 1, 5], [1.5, 0, 0, -7], [0, 0, 3, 9], [0, 0, 0, 1.0]])
"""Slices of 2 x 1.5 mm, 3 mm apart, each shifted by 1 mm to the one before."""


def sheared() -> tuple[np.ndarray, Volume]:
    labels, image = boxes()
    return labels, Volume(image, spacing_of(SHEARED), "mm", SHEARED)


def test_shear_takes_nothing_from_volumes() -> None:
    labels, volume = sheared()
    assert volume.voxel_size == pytest.approx(9)
    measures = measure_labels(labels, volume)
    assert measures.objects[0].size == pytest.approx(120 * 9)
    assert of(measures, 1, 2).size == pytest.approx(40 * 3)
    assert found_objects(labels, volume, {})[0].size == pytest.approx(120 * 9 / 1000)
    over_time = replace(volume, array=volume.array[None], spacing=(1.0, *volume.spacing))
    over_time = replace(over_time, axes="tzyx")
    assert measure_labels(labels[None], over_time).objects[0].size == pytest.approx(120 * 9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_session_on_a_scan_is_measured_as_its_labels_are(axis: int) -> None:
    labels, volume = sheared()
    (data, options, _), *_ = layers_of(volume)
    order = list(layer_axes(volume))
    for image, own, given in (
        (volume.array, labels, volume),
        (Image(data, **options), labels.transpose(order), None),
    ):
        session = Session(image, small_model(), window=(0, 2000), spacing=volume.spacing)
        session.show(SequenceKey.along(axis, 3))
        session.add_object(object_id=1)
        for frame, mask in enumerate(np.moveaxis(own == 1, axis, 0)):
            if mask.any():
                session.paint(1, frame, mask)
        (one,) = measure_session(session, image=given).objects
        assert (one.size, one.unit) == (pytest.approx(120 * 9), "mm3")
        if given is not None:
            expected = measure_labels(labels, volume).objects[0].centroid
            assert one.centroid == pytest.approx(expected)


def test_cells_are_areas_over_time() -> None:
    labels, image = boxes()
    movie = Volume(image, (60.0, 0.5, 0.5), "um", axes="tyx")
    measures = measure_labels(labels, movie)
    assert measures.is_time
    one = measures.objects[0]
    assert (one.size, one.unit) == (pytest.approx(40 * 0.25), "um2")  # the mean, not the sum
    assert one.centroid == pytest.approx((3.5 * 0.5, 7.5 * 0.5))
    assert one.box == (2, 3, 6, 13)


def test_volumes_over_time_are_volumes_per_time_point() -> None:
    labels, image = boxes()
    labels, image = np.stack([labels, labels * 0, labels]), np.stack([image] * 3)
    volumes = Volume(image, (60.0, 3.0, 0.5, 0.25), "mm", axes="tzyx")
    measures = measure_labels(labels, volumes)
    assert [r.frame for r in measures.frames if r.object == 1] == [0, 2]
    row = of(measures, 1, 2)
    assert (row.size, row.unit) == (pytest.approx(120 * 3 * 0.5 * 0.25), "mm3")
    assert row.centroid == pytest.approx((2 * 3, 3.5 * 0.5, 7.5 * 0.25))
    assert row.box == (1, 2, 3, 4, 6, 13)
    assert measures.objects[0].size == pytest.approx(row.size)


def test_values_that_are_missing_do_not_count() -> None:
    labels = np.ones((1, 2, 2), np.uint8)
    image = np.array([[[1.0, 3.0], [np.nan, np.inf]]])
    (one,) = measure_labels(labels, Volume(image)).objects
    assert (one.pixels, one.mean, one.spread) == (4, 2.0, 1.0)
    (none,) = measure_labels(labels, Volume(image * np.nan)).objects
    assert (none.mean, none.spread) == (None, None)


def test_images_are_read_slice_by_slice() -> None:
    labels, image = boxes()
    lazy: Any = Lazy(image, image[0].size)
    found = measure_labels(Lazy(labels, labels[0].size), Volume(lazy))
    assert found == measure_labels(labels, Volume(image))


def test_what_a_person_has_said_and_the_model_thinks_is_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layer = Image(rng.normal(0, 10, (6, 48, 64)), scale=(3, 0.5, 0.5), units=("mm",) * 3)
    layer.translate = (10, 20, 30)
    session = Session(layer, small_model())
    liver = session.add_object("liver")
    session.add_points(liver, [(2, 20, 30), (2, 24, 30)])
    session.propagate()
    mask = np.zeros((48, 64), bool)
    mask[10:14, 20:30] = True
    session.paint(liver, 5, mask)
    session.keep(liver, [5])
    empty = session.add_object("nothing")
    measures = measure_session(session)

    row = of(measures, liver, 5)
    assert (row.name, row.pixels, row.size, row.unit) == ("liver", 40, 10.0, "mm2")
    assert row.centroid == pytest.approx((10 + 15, 20 + 11.5 / 2, 30 + 24.5 / 2))
    assert (row.prompts, row.approved, row.score) == (1, True, None)
    marked = of(measures, liver, 2)
    assert (marked.prompts, marked.approved) == (2, False)
    assert marked.score == session.masks_of(liver)[2].iou
    (one,) = measures.objects
    assert one.object == liver != empty
    assert one.pixels == (session.labels == liver).sum() and one.unit == "mm3"
    assert one.size == pytest.approx(one.pixels * 0.75)
    assert one.prompts == 3 and one.approved == pytest.approx(1 / one.frames)

    frames, objects = write_csv(tmp_path / "m.csv", measures)
    table = pd.read_csv(frames)
    assert list(table.columns) == [
        *("object", "name", "frame", "size", "unit", "pixels"),
        *("centroid_z", "centroid_y", "centroid_x", "y_from", "x_from", "y_to", "x_to"),
        *("mean", "spread", "score", "prompts", "approved"),
    ]
    assert len(table) == one.frames
    last = table.iloc[-1]
    assert (last["frame"], last["approved"], last["size"]) == (5, 1, 10.0)
    assert np.isnan(last["score"])
    assert pd.read_csv(objects)["size"].tolist() == pytest.approx([one.size])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.csv", "m_objects.csv"]


def test_a_layer_in_time_gives_areas() -> None:
    labels, image = boxes()
    layer = Image(image, axis_labels=("t", "y", "x"), scale=(60, 0.5, 0.5))
    session = Session(layer, small_model())
    session.take_labels(labels, frames=range(5))
    measures = measure_session(session)
    one = measures.objects[0]
    assert measures.is_time and one.size == pytest.approx(40 * 0.25)
    assert one.centroid == pytest.approx((3.5 * 0.5, 7.5 * 0.5))


def test_labels_alone_say_nothing_of_marks(tmp_path: Path) -> None:
    labels, image = boxes()
    measures = measure_labels(labels, Volume(image))
    for row in (*measures.frames, *measures.objects):
        assert (row.score, row.prompts, row.approved) == (None, None, None)
    for file in write_csv(tmp_path / "m.csv", measures):
        assert pd.read_csv(file)[["score", "prompts", "approved"]].isna().all(axis=None)


def test_one_picture_has_areas() -> None:
    session = Session(np.random.default_rng(0).normal(0, 10, (48, 64)), small_model())
    mask = np.zeros((48, 64), bool)
    mask[10:14, 20:30] = True
    session.paint(session.add_object("cell"), 0, mask)
    (one,) = measure_session(session).objects
    assert (one.size, one.unit, one.centroid) == (40.0, "pixel2", (11.5, 24.5))


def test_nothing_gives_tables_with_heads(tmp_path: Path) -> None:
    labels, image = boxes()
    for file in write_csv(tmp_path / "m.csv", measure_labels(labels * 0, Volume(image))):
        (head,) = csv.reader(file.open())
        assert head[:2] == ["object", "name"] and "centroid_z" in head


def test_shapes_must_fit() -> None:
    labels, image = boxes()
    with pytest.raises(ValueError, match="shape"):
        measure_labels(labels[1:], Volume(image))
