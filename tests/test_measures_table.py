"""The dock widget with the table and the plot of measures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel

from napari_sam2.io import Volume, read_labels
from napari_sam2.io.readers import layers_of
from napari_sam2.io.volume import spacing_of
from napari_sam2.widgets import MeasuresTable


def boxes() -> np.ndarray:
    labels = np.zeros((5, 20, 30), np.uint8)
    labels[1:4, 2:6, 3:13] = 1
    labels[3, 2:9, 3:13] = 1  # largest on slice 3
    labels[2:5, 10:15, 10:14] = 2
    return labels


def measured(table: MeasuresTable, qtbot: Any) -> None:
    qtbot.mouseClick(table.measure_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not table.is_busy, timeout=60_000)


def shown(table: MeasuresTable, row: int) -> dict[str, str]:
    """Head -> text of a row, as the table shows it."""
    model = table.table.model()
    assert model is not None
    count = range(model.columnCount())
    heads = [model.headerData(c, Qt.Orientation.Horizontal) for c in count]
    return dict(zip(heads, [model.data(model.index(row, c)) for c in count], strict=True))


@pytest.fixture
def viewer(make_napari_viewer: Any) -> Any:
    """A brain of noise, in mm, with two objects, and a picture of another shape."""
    viewer = make_napari_viewer()
    place = {"scale": (3, 0.5, 0.5), "translate": (7, 8, 9), "units": ("mm",) * 3}
    image = np.random.default_rng(0).normal(100, 5, (5, 20, 30))
    viewer.add_image(image, name="brain", **place)
    viewer.add_labels(boxes(), name="found", **place)
    viewer.add_image(np.zeros((4, 4)), name="other")
    return viewer


def test_a_row_shows_its_object_on_its_slice(viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    table = MeasuresTable(viewer)
    qtbot.addWidget(table)
    assert table.image.currentText() == "brain"  # not the last one, which does not fit
    measured(table, qtbot)
    one, two = shown(table, 0), shown(table, 1)
    assert one["Object"] == "Object 1" and one["Slices"] == "1–3"
    assert float(one["Volume (ml)"]) == pytest.approx(150 * 0.75 / 1000, rel=1e-3)
    assert float(two["Mean"]) == pytest.approx(100, abs=2)

    table.table.clicked.emit(table.table.model().index(0, 0))
    assert viewer.layers["found"].selected_label == 1
    assert viewer.layers["found"].world_to_data(viewer.dims.point)[0] == 3
    table.table.selectRow(0)
    table.table.sortByColumn(1, Qt.SortOrder.AscendingOrder)  # as a click on its heading does
    assert [shown(table, row)["Object"] for row in (0, 1)] == ["Object 2", "Object 1"]
    assert [index.row() for index in table.table.selectionModel().selectedRows()] == [1]
    measured(table, qtbot)
    assert shown(table, 0)["Object"] == "Object 2"
    table.table.clicked.emit(table.table.model().index(0, 0))
    assert viewer.layers["found"].selected_label == 2
    table.rows.setCurrentIndex(1)
    last = shown(table, 5)
    assert (last["Object"], last["Slice"]) == ("Object 2", "4")
    assert float(last["Area (mm²)"]) == 5.0
    table.table.clicked.emit(table.table.model().index(5, 0))
    assert viewer.layers["found"].selected_label == 2
    assert viewer.layers["found"].world_to_data(viewer.dims.point)[0] == 4
    table.plot.go_to.emit(1)  # a click into the plot
    assert viewer.layers["found"].world_to_data(viewer.dims.point)[0] == 1

    table.export(tmp_path / "m")
    assert pd.read_csv(tmp_path / "m.csv")["size"].sum() == pytest.approx((150 + 60) * 0.25)
    assert "m_objects.csv" in table.status.text()
    table.export(tmp_path / "nowhere" / "m.csv")
    assert "could not be written" in table.status.text()


def test_the_mean_of_colours_leaves_out_their_alpha(viewer: Any, qtbot: Any) -> None:
    colours = np.full((5, 20, 30, 4), 255, np.uint8)
    colours[..., :3] = 30, 60, 90
    viewer.add_image(colours, name="stain", rgb=True)
    table = MeasuresTable(viewer)
    qtbot.addWidget(table)
    table.image.setCurrentText("stain")
    measured(table, qtbot)
    assert float(shown(table, 0)["Mean"]) == 60
    assert not table.plot.isHidden()


def test_a_single_picture_has_no_plot_over_frames(viewer: Any, qtbot: Any) -> None:
    viewer.add_labels(np.eye(4, dtype=np.uint8), name="one")
    table = MeasuresTable(viewer)
    qtbot.addWidget(table)
    table.labels.setCurrentText("one")
    measured(table, qtbot)
    assert shown(table, 0)["Times"] == "0" and table.plot.isHidden()


def test_the_table_follows_what_is_painted_once_it_is_quiet(viewer: Any, qtbot: Any) -> None:
    table = MeasuresTable(viewer)
    qtbot.addWidget(table)
    layer = viewer.layers["found"]
    layer.paint((0, 5, 5), 1)  # nothing was measured yet
    layer.undo()
    measured(table, qtbot)
    table.table.selectRow(1)
    first = table.measures
    for column in range(20, 24):  # strokes that follow each other are measured once
        layer.data_setitem((np.array([0]), np.array([19]), np.array([column])), 2)
    assert table.measures is first and not table.is_busy
    qtbot.waitUntil(lambda: table.measures is not first, timeout=60_000)
    assert table.measures.objects[1].pixels == first.objects[1].pixels + 4
    assert [i.row() for i in table.table.selectionModel().selectedRows()] == [1]

    table.follow.setChecked(False)
    second = table.measures
    layer.data = np.zeros_like(layer.data)
    qtbot.wait(1300)
    assert table.measures is second
    table.follow.setChecked(True)  # now what has changed meanwhile is seen
    qtbot.waitUntil(lambda: table.measures is not second, timeout=60_000)
    assert table.measures.objects == ()


def test_what_cannot_be_measured_is_said(viewer: Any, qtbot: Any) -> None:
    table = MeasuresTable(viewer)
    qtbot.addWidget(table)
    table.image.setCurrentIndex(table.image.findText("other"))
    table.measure()
    assert "another shape" in table.status.text() and not table.is_busy
    table.image.setCurrentIndex(table.image.findText("no intensities"))
    measured(table, qtbot)
    assert shown(table, 0)["Mean"] == "–"
    viewer.layers.remove("found")
    table.measure()
    assert "no labels" in table.status.text()
    table.plot.go_to.emit(1)  # on a layer that is gone


def test_masks_of_a_session_come_with_names_and_marks(
    desk: Any, qtbot: Any, tmp_path: Path
) -> None:
    at = desk(scale=(3, 0.5, 0.5), units=("mm",) * 3)
    at.widget.start("include")
    session = at.session
    session.edit_object(1, name="liver", colour=(1.0, 0.5, 0.0))
    mask = np.zeros((48, 64), bool)
    mask[10:14, 20:30] = True
    session.paint(1, 2, mask)
    session.keep(1, [2])
    at.viewer.add_labels(np.ones((7, 48, 64), np.uint8), name="theirs", scale=(3, 0.5, 0.5))
    table = MeasuresTable(at.viewer)
    assert table.labels.currentData() is at.widget.labels_layer  # not the last one
    qtbot.addWidget(table)
    assert not table.image.isEnabled() and table.image.currentText() == "scan"
    measured(table, qtbot)
    row = shown(table, 0)
    assert (row["Object"], row["Marks"], row["Approved"]) == ("liver", "1", "100%")
    assert float(row["Volume (ml)"]) == pytest.approx(40 * 0.75 / 1000, rel=1e-3)

    before = table.measures
    session.paint(1, 3, mask)  # the table follows by itself
    qtbot.waitUntil(lambda: table.measures is not before, timeout=60_000)
    row = shown(table, 0)
    assert (row["Marks"], row["Approved"], row["Slices"]) == ("2", "50%", "2–3")

    at.widget.labels_layer.save(str(tmp_path / "l.seg.nrrd"), plugin="napari-sam2")
    labels, names, colours = read_labels(tmp_path / "l.seg.nrrd")
    assert (labels.array == session.labels).all() and names == {1: "liver"}
    assert colours[1] == pytest.approx((1.0, 0.5, 0.0), abs=1e-5)


def test_labels_of_a_tilted_gantry_have_their_true_volume(viewer: Any, qtbot: Any) -> None:
    affine = np.array([[0, -2, 1, 5], [1.5, 0, 0, -7], [0, 0, 3, 9], [0, 0, 0, 1.0]])
    labels = Volume(boxes(), spacing_of(affine), "mm", affine, "tilted", is_labels=True)
    (layer,) = layers_of(labels)
    viewer.layers.clear()
    viewer.add_labels(layer[0], **layer[1])
    table = MeasuresTable(viewer)
    qtbot.addWidget(table)
    measured(table, qtbot)
    assert float(shown(table, 0)["Volume (ml)"]) == pytest.approx(150 * 9 / 1000, rel=1e-3)


def test_without_matplotlib_there_is_a_table_and_a_note(
    viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_qtagg", None)
    table = MeasuresTable(viewer)
    qtbot.addWidget(table)
    assert "matplotlib" in table.plot.findChild(QLabel).text()
    measured(table, qtbot)
    viewer.theme = "light"
    table.table.clicked.emit(table.table.model().index(0, 0))
    assert viewer.layers["found"].selected_label == 1
