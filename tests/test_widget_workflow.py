"""Prompt, propagate, correct: the widget's workflow in a real viewer, by mouse and keyboard."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from desk import SHAPE, TIMEOUT, assert_same, blobs
from models import small_model
from qtpy.QtCore import QEvent, QPoint, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QApplication, QColorDialog, QDialogButtonBox, QLineEdit

from napari_sam2.feature_files import SETTING, allowed_gigabytes
from napari_sam2.io import read_labels
from napari_sam2.label_ids import ids_in
from napari_sam2.session import Session
from napari_sam2.tasks import Engine
from napari_sam2.widgets import choices
from napari_sam2.widgets.object_table import COLOUR, EYE, LOCK, NAME, PROMPTS
from napari_sam2.widgets.slice_strip import (
    APPROVED,
    LOCKED,
    MASK,
    OUTSIDE,
    PAINTED,
    PROMPTED,
    STALE,
)

CONTROL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier


def cell(d, row, column):
    """Click on a cell of the table of objects."""
    table = d.panel.objects
    at = table.visualItemRect(table.item(row, column)).center()
    d.qtbot.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, pos=at)


def choose(combo, value):
    """Choose from a list as a person does, who is told of it."""
    index = combo.findData(value)
    assert index >= 0
    combo.setCurrentIndex(index)
    combo.activated.emit(index)


def write_to(d, layer):
    """Choose where masks are written to, and wait until the layer has been looked through."""
    choose(d.panel.targets, layer)
    d.settle()


def mark_two(d):
    """An object on slice 2 and one on slice 4, followed through all slices."""
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.key("N")
    d.go_to(4)
    d.click((32, 42))
    d.settle()
    d.key("G")
    d.settle()
    assert list(d.session.masks) == [1, 2]


# -- marking -----------------------------------------------------------------------------------


def test_scribbles_and_lassos_are_drawn_with_the_mouse(desk):
    d = desk()
    d.go_to(2)
    d.key("D")  # keys work where a layer of the image is active: not yet
    assert d.session.prompts == {}
    d.press(d.panel.modes["scribble"])
    d.draw((12, 16), (14, 18), (17, 21), (20, 24))
    (scribble,) = d.session.prompts[1][2].scribbles
    assert scribble.label == 1
    np.testing.assert_allclose(scribble.path[0], (12, 16), atol=1)
    np.testing.assert_allclose(scribble.path[-1], (20, 24), atol=1)
    d.draw((40, 10), (40, 20), (40, 30), modifiers=SHIFT)
    assert [one.label for one in d.session.prompts[1][2].scribbles] == [1, 0]
    d.settle()
    assert_same(d.labels[2], d.expected(2))

    d.key("N")
    d.key("L")
    assert d.panel.modes["lasso"].isChecked()
    d.draw((24, 38), (24, 54), (40, 54), (40, 38), (26, 37))
    (lasso,) = d.session.prompts[2][2].lassos
    assert np.ptp(lasso, axis=0).min() > 12
    d.settle()
    assert_same(d.labels[2], d.expected(2))
    assert d.panel.objects.item(0, PROMPTS).text() == "2"
    assert d.panel.objects.item(1, PROMPTS).text() == "1"


@pytest.mark.parametrize("mode", ["scribble", "lasso"])
def test_a_drawing_that_is_too_short_or_interrupted_does_no_harm(desk, mode):
    d = desk()
    d.go_to(2)
    d.press(d.panel.modes[mode])
    path = (24, 38), (24, 54), (40, 54), (40, 38), (26, 37)
    d.draw(*path)
    d.click((30, 10))  # no drawing yet
    d.key("E")
    d.click((44, 4))
    d.settle()
    assert len(d.session.prompts[1][2].points) == 1
    d.press(d.panel.modes[mode])
    d.click((30, 10))
    d.key(Qt.Key.Key_Z, CONTROL)  # in the middle of it
    d.key(Qt.Key.Key_Z, CONTROL)
    assert d.session.prompts == {}
    d.draw(*path)
    d.settle()
    said = d.session.prompts[1][2]
    assert len(said.scribbles) + len(said.lassos) == 1
    assert len(d.widget.shapes_layer.data) == 1
    assert_same(d.labels[2], d.expected(2))


def test_many_marks_are_moved_and_deleted_at_once(desk):
    d = desk()
    d.go_to(2)
    d.press(d.panel.modes["include"])
    for at in ((14, 18), (16, 20), (18, 22)):
        d.click(at)
    d.settle()
    d.key("S")  # napari's own: select
    d.key("A")  # all of this slice
    assert len(d.widget.points_layer.selected_data) == 3
    d.draw((16, 20), (20, 25), (26, 32))
    d.settle()
    np.testing.assert_allclose(d.session.prompts[1][2].points[1], (26, 32), atol=1)
    np.testing.assert_allclose(d.session.prompts[1][2].points[0], (24, 30), atol=1)
    assert_same(d.labels[2], d.expected(2))
    d.key(Qt.Key.Key_Delete)
    d.settle()
    assert d.session.prompts == {}
    assert not d.labels.any()
    d.key(Qt.Key.Key_Z, CONTROL)
    assert len(d.widget.points_layer.data) == 3
    assert len(d.session.prompts[1][2].points) == 3
    assert d.labels[2].any()


# -- painting ----------------------------------------------------------------------------------


def test_painting_and_erasing_by_hand_is_taken_over_and_kept(desk):
    d = desk()
    mark_two(d)
    d.panel.object_id = 1
    d.go_to(5)
    layer = d.widget.labels_layer
    d.press(d.panel.modes["paint"])
    assert d.viewer.layers.selection.active is layer
    assert layer.selected_label == 1
    layer.brush_size = 3
    d.draw((40, 5), (40, 9), (40, 13))
    painted = d.labels[5].copy()
    assert painted[40, 5] == painted[40, 13] == 1
    assert d.session.prompts[1][5].mask is not None
    assert d.panel.strip.states.flags[5] & PAINTED
    d.key("1")  # napari's own: erase
    d.draw((40, 5), (40, 6), (40, 7))
    d.settle()
    erased = d.labels[5].copy()
    assert erased[40, 5] == 0
    assert erased[40, 13] == 1
    stale = d.session.stale(1)
    assert stale
    assert d.panel.strip.states.flags[stale[0]] & STALE
    encoded = d.session._engine._pair.tracker.features.encoded
    d.key("U")
    d.settle()
    assert d.session.stale(1) == []
    np.testing.assert_array_equal(d.labels[5], erased)
    assert d.session._engine._pair.tracker.features.encoded == encoded
    # A mark there waits until what was painted is taken back.
    d.press(d.panel.modes["include"])
    d.click((18, 22))
    d.settle()
    assert "marks wait" in d.status
    np.testing.assert_array_equal(d.labels[5], erased)
    d.press(d.panel.unpaint)
    d.settle()
    assert d.session.prompts[1][5].mask is None
    assert d.session.masks[1][5].coarse is not None  # the model's own
    assert not d.panel.unpaint.isEnabled()
    for _ in range(2):
        d.press(d.panel.undo)
    np.testing.assert_array_equal(d.labels[5], erased)
    assert d.panel.unpaint.isEnabled()
    # Undo takes the strokes back one by one, also in the labels layer itself.
    d.viewer.layers.selection.active = layer
    for _ in range(2):
        d.key(Qt.Key.Key_Z, CONTROL)
    np.testing.assert_array_equal(d.labels[5], painted)
    d.key(Qt.Key.Key_Z, CONTROL)
    assert 5 not in d.session.prompts.get(1, {})
    d.key(Qt.Key.Key_Z, CONTROL | SHIFT)
    np.testing.assert_array_equal(d.labels[5], painted)


def test_what_other_plugins_make_of_the_objects_layer_counts_as_painted(desk):
    d = desk()
    mark_two(d)
    layer, before = d.widget.labels_layer, d.labels.copy()
    layer.data = before.astype(np.uint16)  # napari's "Convert data type"
    d.settle()
    QApplication.processEvents()
    assert "keeps its type of numbers" in d.status
    assert layer.data is d.labels
    assert not d.session.prompts_for(1)[2].mask
    new = before.copy()
    new[3, :, :20] = 0  # a plugin that cuts and adds
    new[5, 2:6, 2:6] = 9
    layer.data = new
    d.settle()
    QApplication.processEvents()
    assert "painted by hand" in d.status
    np.testing.assert_array_equal(layer.data, new)
    assert layer.data is d.labels
    assert list(d.session.objects) == [1, 2, 9]
    assert d.session.states(9) == {5: "painted"}
    d.press(d.panel.undo)
    np.testing.assert_array_equal(d.labels, before)
    layer.data = np.zeros((3, 8, 8), np.int32)  # it is of something else now
    d.settle()
    assert "another shape" in d.status
    assert d.widget.labels_layer is not layer
    assert layer in d.viewer.layers
    np.testing.assert_array_equal(d.widget.labels_layer.data, before)


def test_who_marks_or_paints_in_layers_of_another_image_works_on_that(desk):
    d = desk()
    mark_two(d)
    first, clicks, objects = d.session, d.widget.points_layer, d.widget.labels_layer
    other = d.viewer.add_image(blobs()[::-1], name="other")
    d.widget.choose_image(other)
    d.widget.start("include")
    d.widget.choose_image(d.image)  # and not by a click in the clicks of the other one
    d.click((20, 22))
    assert d.session is first
    d.widget.choose_image(other)
    assert d.session is not first and not d.session.prompts
    d.go_to(3)
    d.viewer.layers.selection.active = objects
    objects.mode = "paint"
    d.draw((44, 5), (44, 9), (44, 13))
    d.settle()
    assert d.session is first and d.panel.images.currentData() is d.image
    assert first.states(2)[3] == "painted"
    d.widget.choose_image(other)
    d.viewer.layers.selection.active = clicks
    clicks.mode = "add"
    d.go_to(5)
    d.click((20, 22))
    d.settle()
    assert d.session is first and 5 in first.prompts_for(2)
    d.widget.choose_image(other)
    d.viewer.layers.selection.active = clicks
    d.key("N")
    assert list(first.objects) == [1, 2, 3]
    d.widget.choose_image(other)
    assert d.session.prompts == {} and list(d.session.objects) == [1]
    objects.data = np.zeros_like(objects.data)  # as a plugin does with any layer
    d.settle()
    assert d.session is first and not d.labels.any()
    d.press(d.panel.undo)
    assert d.labels.any()


def test_other_labels_and_locked_masks_are_not_painted_over(desk):
    d = desk()
    mark_two(d)
    d.go_to(4)
    d.panel.object_id = 2
    d.key("Y")
    assert d.session.kept(2) == {4: "approved"}
    assert d.panel.approve.isChecked()
    mask = d.labels[4] == 2
    y, x = np.argwhere(mask)[len(np.argwhere(mask)) // 2]
    d.panel.object_id = 1
    d.press(d.panel.modes["paint"])
    d.widget.labels_layer.brush_size = 5
    d.draw((y, x), (y, x + 1))
    np.testing.assert_array_equal(d.labels[4] == 2, mask)
    # A label that is no object yet becomes one.
    d.widget.labels_layer.selected_label = 7
    d.draw((44, 4), (44, 6))
    assert 7 in d.session.objects
    assert d.panel.object_id == 7
    assert (d.labels[4] == 7).sum() > 5


# -- objects -----------------------------------------------------------------------------------


def test_the_table_names_hides_locks_merges_and_deletes(desk):
    d = desk()
    mark_two(d)
    table = d.panel.objects
    rows = list(table)
    assert [row.prompts for row in rows] == [1, 1]
    assert rows[0].slices == (min(d.session.masks[1]), max(d.session.masks[1]))
    assert 0 < rows[0].score <= 1

    at = table.visualItemRect(table.item(1, NAME)).center()
    d.qtbot.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, pos=at)
    d.qtbot.mouseDClick(table.viewport(), Qt.MouseButton.LeftButton, pos=at)
    editor = table.findChild(QLineEdit)
    editor.selectAll()
    d.qtbot.keyClicks(editor, "big nucleus")  # b, i, n, ... are no keys of the widget here
    d.qtbot.keyClick(editor, Qt.Key.Key_Return)
    d.qtbot.waitUntil(lambda: d.session.objects[2].name == "big nucleus", timeout=TIMEOUT)
    assert list(d.session.objects) == [1, 2]

    cell(d, 0, EYE)
    assert d.session.objects[1].hidden
    assert d.widget.labels_layer.colormap.map(1)[..., 3] == 0
    assert (d.labels == 1).any()
    cell(d, 0, EYE)
    assert d.widget.labels_layer.colormap.map(1)[..., 3] == 1

    cell(d, 0, LOCK)
    before = d.labels.copy()
    table.object_id = 1
    d.press(d.panel.delete)
    assert "locked" in d.status
    d.go_to(2)
    d.press(d.panel.modes["exclude"])
    d.click((30, 40))
    d.settle()
    np.testing.assert_array_equal(d.labels == 1, before == 1)
    assert "locked" in d.status
    assert len(d.widget.points_layer.data) == 2  # the click is taken back
    cell(d, 0, LOCK)

    table.selectAll()
    for column, is_set in ((EYE, "hidden"), (LOCK, "locked")):
        for wanted in (True, False):
            cell(d, 0, column)
            assert [getattr(one, is_set) for one in d.session.objects.values()] == [wanted] * 2
    assert table.selected == [1, 2]
    cell(d, 0, LOCK)
    assert d.session.undo() == "Lock" and not d.session.objects[2].locked
    table.object_id = 1

    d.viewer.layers.selection.active = d.widget.points_layer
    d.key("O")
    assert d.panel.object_id == 2
    d.key("O", SHIFT)
    assert d.panel.object_id == 1
    union = d.labels > 0
    table.selectAll()
    d.press(d.panel.merge)
    assert list(d.session.objects) == [1]
    assert (union <= (d.labels == 1)).all()
    assert set(d.widget.points_layer.features["object"]) == {1}
    d.press(d.panel.undo)
    assert list(d.session.objects) == [1, 2]
    assert d.session.objects[2].name == "big nucleus"
    assert set(d.widget.points_layer.features["object"]) == {1, 2}
    table.object_id = 2
    d.press(d.panel.delete)
    assert list(d.session.objects) == [1]
    assert len(d.widget.points_layer.data) == 1
    d.press(d.panel.undo)
    assert (d.labels == 2).any()


def test_the_colour_of_an_object_is_chosen_in_the_table(desk):
    d = desk()
    mark_two(d)
    table, layer = d.panel.objects, d.widget.labels_layer
    before = layer.colormap.map(1)
    cell(d, 0, COLOUR)
    dialog = d.panel.findChild(QColorDialog)
    assert dialog.isVisible()
    assert dialog.windowTitle() == "Colour of Object 1"
    np.testing.assert_allclose(dialog.currentColor().getRgbF()[:3], before[:3], atol=0.01)
    dialog.setCurrentColor(QColor(10, 250, 20))
    buttons = dialog.findChild(QDialogButtonBox)
    d.press(buttons.button(QDialogButtonBox.StandardButton.Ok))
    chosen = np.array((10, 250, 20, 255)) / 255
    np.testing.assert_allclose(layer.colormap.map(1), chosen, atol=0.01)
    np.testing.assert_allclose(d.widget.points_layer.border_color[0], chosen, atol=0.01)
    swatch = table.item(0, COLOUR).icon().pixmap(14, 14).toImage()
    np.testing.assert_allclose(swatch.pixelColor(7, 7).getRgbF()[:3], chosen[:3], atol=0.03)
    assert (d.widget.points_layer.border_color[1] != chosen).any()
    d.viewer.layers.selection.active = d.widget.points_layer
    d.key(Qt.Key.Key_Z, CONTROL)
    assert d.status == "Undone: Colour."
    assert d.session.objects[1].colour is None
    np.testing.assert_allclose(layer.colormap.map(1), before)
    np.testing.assert_allclose(d.widget.points_layer.border_color[0], before)

    cell(d, 1, COLOUR)
    d.qtbot.keyClick(d.panel.findChildren(QColorDialog)[-1], Qt.Key.Key_Escape)
    assert d.session.objects[2].colour is None


def test_a_colour_is_shown_at_once_but_many_objects_together(desk, tmp_path):
    """So that a layer that is saved just after that has it."""
    d = desk()
    mark_two(d)
    layer = d.widget.labels_layer
    d.session.edit_object(1, colour=(1.0, 0.5, 0.0))
    np.testing.assert_allclose(layer.colormap.map(1), (1, 0.5, 0, 1), atol=0.01)
    d.session.edit_object(1, hidden=True)
    np.testing.assert_allclose(layer.colormap.map(1)[3], 0)
    layer.save(str(tmp_path / "objects.seg.nrrd"), plugin="napari-sam2")
    assert read_labels(tmp_path / "objects.seg.nrrd")[2][1] == pytest.approx((1, 0.5, 0), abs=1e-5)

    truth = np.zeros(SHAPE, np.uint8)
    truth[2, :4, :40] = np.arange(40) + 3
    shown = []
    layer.events.colormap.connect(shown.append)
    d.session.take_labels(truth)
    assert len(d.session.objects) == 42 and len(shown) == 1


def test_an_existing_labels_layer_is_a_start(desk):
    d = desk()
    truth = np.zeros(SHAPE, np.uint8)
    truth[3, 10:24, 12:28], truth[2, 12:16, 12:16], truth[4, 26:40, 34:50] = 5, 5, 9
    other = d.viewer.add_labels(truth, name="truth")
    d.panel.labels_menu.aboutToShow.emit()
    texts = [action.text() for action in d.panel.labels_menu.actions()]
    assert texts == [
        "truth: all objects",
        "truth: all on this slice",
        "truth: all on all slices",
        "truth: selected label",
    ]
    other.selected_label = 9
    d.panel.labels_menu.aboutToShow.emit()
    d.panel.labels_menu.actions()[3].trigger()
    assert not d.session.prompts, "it is read in another thread"
    d.settle()
    assert d.session.prompts[9].keys() == {4}
    np.testing.assert_array_equal(d.labels[4] == 9, truth[4] == 9)
    d.panel.labels_menu.actions()[0].trigger()
    d.settle()
    assert d.session.prompts[5].keys() == {3}
    assert "taken from truth" in d.panel.status.text()
    d.press(d.panel.propagate)
    d.settle()
    np.testing.assert_array_equal(d.labels[3] == 5, truth[3] == 5)
    assert {5, 9} <= set(d.session.masks)

    # What another program has tracked is taken as it is, with its lineage.
    other.features = {"index": [5, 9], "parent": [0, 5], "name": ["mother", "daughter"]}
    truth[5:, 26:40, 34:50], truth[:2, 10:24, 12:28] = 9, 5
    for object_id in (5, 9):
        d.session.remove_object(object_id)
    d.panel.labels_menu.actions()[2].trigger()
    d.settle()
    assert "2 objects with their parents taken from truth" in d.panel.status.text()
    np.testing.assert_array_equal(d.labels, truth)
    assert d.session.parents == {9: 5} and d.session.objects[9].name == "daughter"
    assert d.session.life(5) == (0, 3) and d.session.life(9) == (4, None)

    truth[4, 0:4, 0:4], truth[3, 0:4, 0:4] = 5, 9  # now they are there together
    for object_id in (5, 9):
        d.session.remove_object(object_id)
    d.panel.labels_menu.actions()[2].trigger()
    d.settle()
    assert d.session.parents == {}
    assert d.status == (
        "2 objects taken from truth. No daughters, for the parent is still there as they begin: "
        "daughter of mother."
    )

    d.widget.take_labels(other)
    d.viewer.dims.order = (1, 0, 2)
    before = d.session.prompts
    d.settle()
    assert "other slices are shown now" in d.panel.status.text()
    assert d.session.prompts == before


def test_a_correction_has_other_slices_found_anew_by_itself(desk):
    d = desk()
    d.panel.more.setChecked(True)
    tick(d, d.panel.update_by_itself)
    assert d.panel.update_by_itself.isChecked()
    d.go_to(1)
    d.press(d.panel.modes["include"])
    d.click((15, 20))
    d.qtbot.wait(400)
    d.settle()
    assert len(d.session.masks_of(1)) == 1, "what was not followed yet is not"
    d.press(d.panel.propagate)
    d.settle()
    before = d.labels.copy()

    def wait():
        d.qtbot.waitUntil(lambda: not d.session.stale(1), timeout=TIMEOUT)
        d.settle()

    d.go_to(4)
    d.key("E")
    d.click((30, 44))
    wait()
    assert_same(d.labels, d.expected())
    corrected = d.labels.copy()
    assert (corrected != before)[5:].any()
    d.press(d.panel.reject)
    assert d.session.states(1)[4] == "rejected"
    wait()
    assert d.session.states(1)[4] == "auto"

    for expected in (corrected, before):
        d.press(d.panel.undo)
        d.qtbot.wait(400)
        d.settle()
        np.testing.assert_array_equal(d.labels, expected)
    d.press(d.panel.redo)
    d.qtbot.wait(400)
    d.settle()
    np.testing.assert_array_equal(d.labels, corrected)

    d.press(d.panel.approve)
    d.qtbot.wait(400)
    d.settle()
    assert d.session.stale(1), "nothing was corrected"
    tick(d, d.panel.update_by_itself)
    d.click((31, 45))
    d.qtbot.wait(400)
    d.settle()
    assert d.session.stale(1)


def test_what_is_not_shown_is_written_by_and_by(desk):
    frames = 40
    d = desk(data=blobs((frames, *SHAPE[1:])), contrast_limits=(0, 250))
    _, y, x = np.indices((1, *SHAPE[1:]))
    for frame in range(frames):
        d.session.paint(1, frame, ((y - 20) ** 2 + (x - 30) ** 2 < 90)[0])
    d.widget.start("include")
    d.go_to(7)
    array = d.widget.labels_layer.data
    assert array.any(axis=(1, 2)).all()

    def rest_is_written():
        """Slices that wait are seen to wait; then nobody asks, but they are written."""
        assert len(np.unique(array.any(axis=(1, 2)))) == 2
        waiting = array.any(axis=(1, 2)) != array[7].any()
        assert waiting.sum() > frames / 2
        d.qtbot.waitUntil(lambda: not d.widget._context._rest.isActive(), timeout=TIMEOUT)
        assert len(np.unique(array.any(axis=(1, 2)))) == 1

    d.press(d.panel.delete)
    assert not array[7].any()
    rest_is_written()
    d.press(d.panel.undo)
    assert array[7].any()
    rest_is_written()
    d.press(d.panel.redo)
    d.press(d.panel.undo)
    other = d.viewer.add_image(blobs(), name="other")
    d.widget.choose_image(other)  # meanwhile, another session is worked on
    d.qtbot.waitUntil(lambda: array.any(axis=(1, 2)).all(), timeout=TIMEOUT)


# -- propagation -------------------------------------------------------------------------------


def test_propagation_reaches_where_it_is_told(desk):
    d = desk()
    panel = d.panel
    d.go_to(1)
    d.press(panel.modes["include"])
    d.click((15, 20))
    d.go_to(5)
    d.click((19, 20))
    d.settle()

    def found():
        return sorted(d.session.masks[1])

    d.go_to(3)
    panel.reach.setCurrentIndex(panel.reach.findData("here"))
    d.press(panel.propagate)
    d.settle()
    assert set(found()) <= {1, 2, 3, 5}
    assert len(found()) == 4
    panel.reach.setCurrentIndex(panel.reach.findData("between"))
    d.press(panel.propagate)
    d.settle()
    assert found() == [1, 2, 3, 4, 5]
    d.go_to(6)
    d.press(panel.propagate)
    assert "does not lie between two marked slices" in d.status
    panel.reach.setCurrentIndex(panel.reach.findData("range"))
    assert panel.range.isVisible()
    panel.first.setValue(0)
    panel.last.setValue(0)
    d.press(panel.propagate)
    d.settle()
    assert found() == [0, 1, 2, 3, 4, 5]
    panel.reach.setCurrentIndex(panel.reach.findData("both"))
    d.press(panel.propagate)
    d.settle()
    assert_same(d.labels, d.expected())
    d.press(panel.propagate)
    assert "up to date" in d.status

    # Only the selected object.
    d.press(panel.new)
    d.go_to(3)
    d.click((32, 43))
    d.settle()
    panel.which.setCurrentIndex(panel.which.findData("selected"))
    before = dict(d.session.masks[1])
    d.press(panel.propagate)
    d.settle()
    assert len(d.session.masks[2]) > 1
    assert all(d.session.masks[1][frame] is mask for frame, mask in before.items())


def test_a_propagation_that_cannot_begin_says_why(desk):
    d = desk()
    d.press(d.panel.propagate)
    assert "There is no mark yet" in d.status
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    cell(d, 0, LOCK)
    d.press(d.panel.propagate)
    assert "Object 1 is locked. Unlock it first." in d.status
    cell(d, 0, LOCK)
    assert "locked" not in d.status, "it is no more"
    d.widget.redo()
    assert d.status == "There is nothing to make again."
    d.panel.which.setCurrentIndex(d.panel.which.findData("selected"))
    d.panel.objects.clearSelection()
    d.press(d.panel.propagate)
    assert "No object is selected" in d.status


def test_an_object_begins_and_ends_where_a_person_says_so(desk):
    d = desk()
    mark_two(d)
    before = d.labels.copy()
    cell(d, 0, NAME)
    d.go_to(4)
    d.key("T")
    assert_same(d.labels[:5], before[:5])
    assert not (d.labels[5:] == 1).any() and list(d.session.masks_of(1)) == [0, 1, 2, 3, 4]
    assert d.panel.ends.isChecked() and not d.panel.begins.isChecked()
    assert d.status.startswith("Object 1 ends on slice 4")
    d.go_to(5)
    assert d.panel.slice.text() == "Slice 5: behind its last slice"
    assert not d.panel.ends.isChecked()
    d.click((18, 20))  # it is not there
    assert "is on slices 0 to 4 and not on 5" in d.status and not d.session.prompts[1].get(5)
    d.key("G")
    d.settle()
    assert max(d.session.masks_of(1)) == 4

    d.go_to(4)
    d.press(d.panel.ends)  # taken back
    assert not d.panel.ends.isChecked() and d.session.life(1) == (0, None)
    d.key("G")
    d.settle()
    assert_same(d.labels, before)

    d.go_to(1)
    d.press(d.panel.begins)
    assert d.panel.begins.isChecked() and min(d.session.masks_of(1)) == 1
    d.go_to(0)
    assert d.panel.slice.text() == "Slice 0: before its first slice"
    d.press(d.panel.begins)
    assert "no slices before" in d.status and not d.panel.begins.isChecked()
    assert {OUTSIDE} == {d.panel.strip.states.flags[0]}
    d.key(Qt.Key.Key_Z, CONTROL)
    assert_same(d.labels, before)


def test_locked_and_approved_slices_are_kept_and_shown(desk):
    d = desk()
    mark_two(d)
    d.panel.object_id = 1
    d.go_to(4)
    d.press(d.panel.approve)
    d.go_to(6)
    d.press(d.panel.lock)
    flags = d.panel.strip.states.flags
    assert flags[4] & APPROVED
    assert flags[6] & LOCKED
    assert flags[2] & PROMPTED
    assert flags[3] & MASK
    assert d.panel.slice.text() == "Slice 6: locked"
    kept = d.labels[[4, 6]] == 1
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((30, 40))
    d.settle()
    d.press(d.panel.update_masks)
    d.settle()
    np.testing.assert_array_equal(d.labels[[4, 6]] == 1, kept)
    d.go_to(6)
    assert d.panel.lock.isChecked()
    d.press(d.panel.lock)
    assert not d.panel.lock.isChecked()
    assert d.session.kept(1) == {4: "approved"}

    # The strip shows slices, and takes the viewer to them.
    strip = d.panel.strip
    at = QPoint(int((1.5 / SHAPE[0]) * strip.width()), 12)
    d.qtbot.mouseClick(strip, Qt.MouseButton.LeftButton, pos=at)
    assert d.viewer.dims.current_step[0] == 1


@pytest.mark.parametrize("removed", ["clicks boxes", "boxes objects", "scan clicks boxes", "all"])
def test_several_layers_are_removed_at_once(desk, removed):
    d = desk()
    other = d.viewer.add_image(blobs()[:, ::-1].copy(), name="other")
    d.widget.choose_image(d.image)
    mark_two(d)
    layers = d.viewer.layers
    names = removed.split()
    chosen = [la for la in layers if removed == "all" or la.name.split()[-1] in names]
    layers.selection = set(chosen)
    layers.remove_selected()
    d.qtbot.wait(50)
    assert not set(chosen) & set(layers)
    assert not any(la.name.endswith(("clicks", "boxes")) for la in layers)
    if d.image in layers:
        d.press(d.panel.modes["include"])
        assert len(d.widget.points_layer.data) == 2
        assert list(d.session.masks) == [1, 2]
    assert (other in layers) == (removed != "all")


@pytest.mark.parametrize("dock", ["docked", "floating", "closed"])
def test_slices_are_drawn_after_layers_were_removed(desk, dock):
    """In napari 0.9.2 by itself the process crashes here, at least with Mesa."""
    d = desk()
    d.dock.setFloating(dock == "floating")
    d.press(d.panel.modes["include"])
    d.click((20, 20))
    d.settle()
    d.qtbot.wait(300)
    removed = d.widget.points_layer, d.widget.shapes_layer, d.widget.labels_layer
    if dock == "closed":
        d.viewer.window.remove_dock_widget(d.dock)
    for layer in removed:
        if layer in d.viewer.layers:  # the widget takes one of marks with the other
            d.viewer.layers.remove(layer)
    for step in (5, 2):
        d.qtbot.wait(300)
        d.go_to(step)
    d.qtbot.wait(300)
    assert list(d.viewer.layers) == [d.image]


def test_marks_that_are_deleted_on_all_positions_are_gone_at_once(desk):
    d = desk(data=np.stack([blobs(), blobs()[::-1]]))
    d.press(d.panel.modes["include"])
    for position in (1, 2):
        d.go_to(position, axis=1)
        d.click((16, 20))
        d.settle()
    assert len(d.session.prompted_sequences) == 2
    points = d.widget.points_layer
    points.selected_data = {0, 1}
    points.remove_selected()
    d.settle()
    assert d.session.prompted_sequences == ()
    assert not d.labels.any()
    assert d.session.view.key.position[1] == 2
    d.key(Qt.Key.Key_Z, CONTROL)
    assert len(d.session.prompted_sequences) == len(points.data) == 2


def test_in_3d_the_work_goes_on_but_marks_need_slices(desk):
    d = desk()
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    d.viewer.dims.ndisplay = 3
    d.key("E")
    assert "2D" in d.status
    d.press(d.panel.modes["paint"])
    assert "2D" not in d.status, "one can paint in 3D"
    d.key("G")
    d.settle()
    assert_same(d.labels, d.expected())
    d.key(Qt.Key.Key_Z, CONTROL)
    assert not np.delete(d.labels, 2, axis=0).any()
    d.key(Qt.Key.Key_Z, CONTROL | SHIFT)
    assert_same(d.labels, d.expected())
    # Painting in 3D reaches over slices, and each of them is taken over.
    layer = d.widget.labels_layer
    d.viewer.layers.selection.active = layer
    layer.n_edit_dimensions = 3
    layer.brush_size = 5
    layer.selected_label = 2
    layer.paint((4, 40, 10), 2)
    QApplication.processEvents()
    painted = [frame for frame, said in d.session.prompts[2].items() if said.mask is not None]
    assert painted == [2, 3, 4, 5, 6]
    assert d.labels[4, 40, 10] == 2


def test_marks_of_a_flat_image_are_there_again_after_a_look_in_3d(desk):
    """napari 0.9 cannot add scribbles to a layer of two axes while it shows that in 3D."""
    d = desk(data=blobs()[2])
    d.press(d.panel.modes["scribble"])
    d.draw((12, 16), (14, 18), (17, 21), (20, 24))
    d.press(d.panel.modes["box"])
    d.drag((4, 8), (28, 32))
    d.press(d.panel.modes["lasso"])
    d.draw((24, 38), (24, 54), (40, 54), (40, 38), (26, 37))
    d.settle()
    kept = d.session.prompts[1][0]
    d.viewer.dims.ndisplay = 3
    d.press(d.panel.undo)
    d.press(d.panel.redo)
    d.viewer.dims.ndisplay = 2
    assert len(d.widget.shapes_layer.data) == 3
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    said = d.session.prompts[1][0]
    np.testing.assert_allclose(said.scribbles[0].path, kept.scribbles[0].path)
    np.testing.assert_allclose(said.lassos[0], kept.lassos[0])
    np.testing.assert_allclose(said.box, kept.box)
    assert len(said.points) == 1


def test_slices_near_by_are_encoded_while_nothing_else_is_to_do(desk):
    d = desk()
    d.go_to(3)
    d.press(d.panel.modes["include"])
    d.qtbot.waitUntil(
        lambda: all(d.session.is_encoded(frame) for frame in range(SHAPE[0])), timeout=TIMEOUT
    )
    d.settle()  # the last answer may not have been delivered yet


# -- options -----------------------------------------------------------------------------------


def test_intensities_are_chosen_and_change_what_the_model_sees(desk):
    d = desk(contrast_limits=(0, 250))
    choose(d.panel.windows, "lung")
    d.settle()
    assert d.session.window == (-1350, 150)
    d.image.contrast_limits = (0, 100)  # another choice is in force
    d.qtbot.wait(600)
    d.settle()
    assert d.session.window == (-1350, 150)
    choose(d.panel.windows, "percentiles")
    d.settle()
    low, high = d.session.window
    assert -60 < low < 0 < 200 < high < 260
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    assert_same(d.labels[2], d.expected(2))
    before = d.labels[2].copy()
    choose(d.panel.windows, "bone")
    d.settle()
    assert (d.labels[2] != before).any()
    assert_same(d.labels[2], d.expected(2))


def test_images_are_seen_together_as_colours(desk):
    d = desk()
    other = d.viewer.add_image(blobs()[:, ::-1].copy(), name="stain")
    d.widget.choose_image(d.image)
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    texts = [d.panel.channels.itemText(i) for i in range(d.panel.channels.count())]
    assert texts == ["as it is", "with stain"]
    d.panel.channels.setCurrentIndex(1)
    d.panel.channels.activated.emit(1)
    assert d.session.view.num_channels == 2
    assert list(d.session.prompts[1]) == [2]
    assert len(d.widget.points_layer.data) == 1
    d.press(d.panel.propagate)
    d.settle()
    assert_same(d.labels, d.expected())
    other.contrast_limits = 0, 90
    d.qtbot.waitUntil(lambda: d.session.window[1] == (0, 90), timeout=TIMEOUT)
    d.settle()
    other.data = blobs()
    d.settle()
    assert "stain has changed. Update" in d.status
    np.testing.assert_array_equal(d.session.view[3][..., 1], other.data[3])
    d.press(d.panel.update_masks)
    d.settle()
    assert_same(d.labels, d.expected())
    d.viewer.layers.remove(other)
    assert d.panel.channels.currentText() == "with stain (removed)"
    other.data = blobs()[:3]
    d.settle()
    assert d.panel.channels.currentText() == "as it is"
    assert "scan is seen by itself now" in d.status
    assert d.session.view.num_channels == 1
    assert list(d.session.prompts[1]) == [2]
    assert d.session is not None

    # Few entries are channels, unless their name says what they are.
    for name, offered in (("t", []), ("Z", []), ("stage", ["axis stage: channels 1 to 3"])):
        labels = (name, "plane", "y", "x")
        few = d.viewer.add_image(np.zeros((3, *SHAPE), np.uint8), axis_labels=labels)
        d.widget.choose_image(few)
        texts = [d.panel.channels.itemText(i) for i in range(d.panel.channels.count())]
        assert [text for text in texts if text.startswith("axis")] == offered


def test_masks_are_written_where_the_person_wants_them(desk):
    d = desk()
    shared = np.zeros(SHAPE, np.int32)
    shared[:, 10:30, 10:16] = 3
    before = shared.copy()
    other = d.viewer.add_labels(shared, name="shared")
    write_to(d, other)
    assert d.widget.labels_layer is other
    assert list(d.session.objects) == [4]  # an id that was free
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.press(d.panel.propagate)
    d.settle()
    np.testing.assert_array_equal(shared == 3, before == 3)
    assert (shared == 4).any()
    d.press(d.panel.more)
    d.press(d.panel.overwrite)
    d.session.write_rest()
    assert ((before == 3) & (shared == 4)).any()
    d.press(d.panel.overwrite)
    d.session.write_rest()
    np.testing.assert_array_equal(shared == 3, before == 3)
    d.press(d.panel.overwrite)

    choose(d.panel.targets, "new layer")
    np.testing.assert_array_equal(shared, before)
    assert d.widget.labels_layer is not other
    assert (d.labels == 4).any()
    assert not d.panel.overwrite.isChecked(), "it was said of the other layer"
    choose(d.panel.targets, "one each")
    single = d.viewer.layers["scan Object 4"]
    np.testing.assert_array_equal(single.data == 4, d.labels == 4)
    d.press(d.panel.new)
    assert "scan Object 5" in d.viewer.layers
    d.image.translate = (0, 7, 0)
    assert single.translate[1] == d.viewer.layers["scan Object 5"].translate[1] == 7
    assert d.widget.labels_layer.translate[1] == 7
    assert other.translate[1] == 0  # a person's own layer
    choose(d.panel.targets, "new layer")
    assert "scan Object 5" not in d.viewer.layers
    d.panel.object_id = 4
    d.press(d.panel.delete)
    assert not (d.labels == 4).any()
    assert (single.data == 4).any(), "nothing is written to the layers that are gone"


def test_a_chosen_labels_layer_that_was_removed_comes_back_with_the_next_mark(desk):
    d = desk()
    shared = np.zeros(SHAPE, np.int32)
    shared[0, :5, :5] = 3
    other = d.viewer.add_labels(shared, name="shared")
    write_to(d, other)
    d.viewer.layers.remove(other)
    assert d.panel.targets.currentData() is other
    assert d.panel.targets.currentText() == "shared (removed)"
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    assert d.widget.labels_layer is other and other in d.viewer.layers
    assert d.panel.targets.currentText() == "shared"
    assert shared[2].any() and (shared == 3).sum() == 25
    d.viewer.layers.remove(other)
    choose(d.panel.targets, "new layer")
    d.settle()
    assert d.widget.labels_layer.data is d.labels is not shared
    assert (shared == 3).sum() == (shared > 0).sum() == 25
    assert sum(layer.name.endswith("objects") for layer in d.viewer.layers) == 1


def test_objects_that_wait_for_marks_go_with_the_person_to_an_empty_layer(desk):
    d = desk()
    empty = d.viewer.add_labels(np.zeros(SHAPE, np.int32), name="empty")
    write_to(d, empty)
    assert [(i, info.name) for i, info in d.session.objects.items()] == [(1, "Object 1")]
    choose(d.panel.targets, "new layer")
    d.session.edit_object(1, name="liver", colour=(1.0, 0.5, 0.0))
    d.session.add_object()
    taken = d.viewer.add_labels(np.full(SHAPE, 3, np.int32), name="taken")
    write_to(d, taken)
    names = {i: info.name for i, info in d.session.objects.items()}
    assert names == {4: "liver", 5: "Object 5"}
    assert d.session.objects[4].colour == (1.0, 0.5, 0.0)
    binary = d.viewer.add_labels(255 * (np.indices(SHAPE)[0] == 0).astype(np.uint8), name="binary")
    write_to(d, binary)
    assert [info.name for info in d.session.objects.values()] == ["liver", "Object 2"]
    d.panel.object_id = 1
    d.press(d.panel.modes["include"])
    d.go_to(2)
    d.click((16, 20))
    d.settle()
    assert set(np.unique(binary.data)) == {0, 1, 255}


def test_masks_are_written_to_zarr_on_disk_slice_by_slice(desk, tmp_path):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(
        tmp_path / "labels.zarr", shape=SHAPE, chunks=(1, *SHAPE[1:]), dtype=np.uint16
    )

    def on_disk():
        """The slices that have ever been written: an empty one has no file."""
        files = (tmp_path / "labels.zarr" / "c").glob("*/0/0")
        return sorted(int(file.parent.parent.name) for file in files)

    d = desk()
    layer = d.viewer.add_labels(array, name="on disk")
    write_to(d, layer)
    assert d.widget.labels_layer is layer
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    assert on_disk() == [2]
    assert_same(np.asarray(array[2]), d.expected(2))
    d.go_to(5)
    d.press(d.panel.modes["paint"])
    layer.brush_size = 3
    d.draw((40, 5), (40, 9), (40, 13))
    assert on_disk() == [2, 5]
    assert d.session.prompts[d.panel.object_id][5].mask is not None
    again = zarr.open_array(tmp_path / "labels.zarr", mode="r")
    assert again[5, 40, 5] == again[5, 40, 13] == d.panel.object_id
    d.panel.reach.setCurrentIndex(d.panel.reach.findData("between"))
    d.go_to(3)
    d.press(d.panel.propagate)
    d.settle()
    assert on_disk() == [2, 3, 4, 5]
    assert_same(again[3:5], d.expected()[3:5])
    d.viewer.layers.selection.active = layer
    for _ in range(3):
        d.key(Qt.Key.Key_Z, CONTROL)
    d.session.write_rest()
    assert not again[:].any()


def test_a_large_labels_layer_is_looked_through_while_the_window_goes_on(desk, monkeypatch):
    d = desk()
    gate, threads = threading.Event(), []

    def slow(labels):
        threads.append(threading.current_thread())
        assert gate.wait(TIMEOUT / 1000)
        return ids_in(labels)

    monkeypatch.setattr("napari_sam2.widgets.options.ids_in", slow)
    large = d.viewer.add_labels(np.full(SHAPE, 3, np.int32), name="large")
    choose(d.panel.targets, large)
    assert "Looking through large" in d.status
    assert d.panel.targets.currentData() is large
    assert d.widget.labels_layer is not large
    choose(d.panel.targets, "new layer")  # and change one's mind
    gate.set()
    d.settle()
    assert d.widget.labels_layer is not large
    assert d.panel.targets.currentData() == "new layer"
    assert list(d.session.objects) == [1]
    write_to(d, large)
    assert d.widget.labels_layer is large
    assert list(d.session.objects) == [4]
    assert "Looking through" not in d.status
    assert len(threads) == 2 and threading.main_thread() not in threads


def test_a_labels_layer_that_does_not_fit_is_refused(desk):
    d = desk()
    moved = d.viewer.add_labels(np.zeros(SHAPE, np.int32), name="moved", translate=(3, 0, 0))
    choose(d.panel.targets, moved)
    assert "does not lie on the image" in d.status
    assert d.widget.labels_layer is not moved


def test_features_are_kept_on_disk_where_one_chooses_so(desk, monkeypatch):
    monkeypatch.setenv(SETTING, "0")  # put back after the test
    monkeypatch.delenv(SETTING)
    d = desk()
    assert d.panel.on_disk.currentText() == "nothing" and allowed_gigabytes() == 0
    choose(d.panel.on_disk, 20)
    assert allowed_gigabytes() == 20
    monkeypatch.delenv(SETTING)  # as on the next day
    assert desk().panel.on_disk.currentData() == 20 and allowed_gigabytes() == 20
    monkeypatch.setenv(SETTING, "7")
    assert desk().panel.on_disk.currentData() == 7, "the environment is asked first"


def test_the_last_choices_are_remembered(desk):
    d = desk()
    d.panel.end_after.setValue(4)
    assert d.session.end_after == 4
    choose(d.panel.memory, "confident")
    assert d.session.memory == "confident"
    choose(d.panel.memory_tokens, "near")
    assert d.session.memory_tokens == "near"
    assert choices.load()["end_after"] == 4
    assert desk().session.memory_tokens == "near"
    choices.FILE.write_text("{ broken")
    assert choices.load() == {}
    choices.remember(end_after=2)
    assert choices.load() == {"end_after": 2}


# -- two of everything -------------------------------------------------------------------------


def test_two_widgets_and_two_viewers_do_not_mind_each_other(desk, make_napari_viewer):
    from napari_sam2.widgets import SAM2Widget

    d = desk()
    second = SAM2Widget(d.viewer, model=small_model())
    d.viewer.window.add_dock_widget(second, name="SAM 2, second")
    viewer = make_napari_viewer()
    third = SAM2Widget(viewer, model=small_model())
    viewer.add_image(blobs(), name="elsewhere")
    d.qtbot.addWidget(third)
    for widget in (d.widget, second, third):
        widget.start("include")
        widget.points_layer.add([2, 16, 20])
    for widget in (d.widget, second, third):
        d.qtbot.waitUntil(lambda widget=widget: not widget.is_busy, timeout=TIMEOUT)
        assert list(widget.session.prompts[1]) == [2]
        assert_same(widget.session.labels[2], d.expected(2))
    assert second.session is not d.session
    second.close()
    d.widget.points_layer.add([4, 18, 20])
    third.points_layer.add([3, 18, 20])
    d.settle()
    assert sorted(d.session.prompts[1]) == [2, 4]
    assert list(second._images.known) == []
    third.shut_down()


def test_it_follows_the_theme(desk):
    d = desk()
    dark = d.panel.objects.horizontalHeaderItem(EYE).icon().pixmap(32, 32).toImage()
    d.viewer.theme = "light"
    QApplication.processEvents()
    light = d.panel.objects.horizontalHeaderItem(EYE).icon().pixmap(32, 32).toImage()
    assert dark.pixelColor(16, 16).lightness() > 150 > light.pixelColor(16, 16).lightness()


def test_a_replay_of_the_final_prompts_gives_the_same_masks(desk):
    d = desk()
    mark_two(d)
    d.go_to(3)
    d.click((34, 43))
    d.settle()
    d.press(d.panel.update_masks)
    d.settle()
    fresh = Session(blobs(), small_model(), window=d.session.window, end_after=d.session.end_after)
    fresh.restore(d.session.snapshot(), trust=False)
    fresh.propagate()
    np.testing.assert_array_equal(fresh.labels, d.labels)


def test_a_drag_is_one_stroke_although_results_arrive(desk):
    d = desk()
    mark_two(d)
    d.go_to(5)
    d.panel.object_id = 1
    d.press(d.panel.modes["paint"])
    d.widget.labels_layer.brush_size = 3
    start, end = d.position((42, 5)), d.position((42, 12))
    d.mouse(QEvent.Type.MouseButtonPress, start)
    d.image.contrast_limits = (0, 120)  # the masks are out of date in the middle of the stroke
    d.widget.update_masks()
    d.qtbot.wait(700)
    d.mouse(QEvent.Type.MouseMove, end)
    d.mouse(QEvent.Type.MouseButtonRelease, end, held=False)
    d.settle()
    assert d.labels[5, 42, 5] == d.labels[5, 42, 12] == 1
    assert d.session.prompts[1][5].mask is not None


def test_small_objects_are_looked_at_closely(desk):
    shape = (5, 160, 200)
    d = desk(data=blobs(shape))
    d.press(d.panel.more)
    tick(d, d.panel.closely_by_itself)
    d.go_to(2)
    d.press(d.panel.modes["box"])
    d.drag((8, 12), (24, 28))
    d.settle()
    assert not d.panel.closely.isChecked()
    tick(d, d.panel.closely)
    top, left, bottom, right = d.session.area(1)
    assert bottom - top == right - left < 120
    assert d.panel.closely.isChecked()
    assert "out of date" in d.status
    d.press(d.panel.propagate)
    d.settle()
    assert d.session.stale(1) == [] and d.session.masks_of(1)
    inside = np.zeros(shape, bool)
    inside[:, top:bottom, left:right] = True
    assert not (d.labels[~inside] == 1).any()
    d.press(d.panel.new)
    assert not d.panel.closely.isChecked(), "another object is selected"
    tick(d, d.panel.closely)
    assert "not known how large" in d.status
    assert not d.panel.closely.isChecked()
    d.panel.object_id = 1
    assert d.panel.closely.isChecked()
    tick(d, d.panel.closely)
    assert d.session.area(1) is None
    d.press(d.panel.undo)
    assert d.session.area(1) is not None and d.panel.closely.isChecked()


def discs():
    """Small bright discs at (60, 80) and at (140, 170)."""
    shape = (4, 200, 240)
    _, y, x = np.indices(shape)
    noise = np.random.default_rng(0).normal(0, 10, shape)
    for row, column, radius in ((60, 80, 7), (140, 170, 7)):
        noise += 150 * ((y - row) ** 2 + (x - column) ** 2 < radius**2)
    return noise.astype(np.float32)


def tick(d, box):
    d.qtbot.mouseClick(box, Qt.MouseButton.LeftButton, pos=QPoint(8, box.height() // 2))


def test_small_objects_are_looked_at_closely_by_itself(desk):
    d = desk(data=discs(), model="nano")
    d.settle()
    assert d.panel.closely_by_itself.isChecked()
    seen = []
    d.session.masks_changed.connect(lambda _: seen.append(d.session.masks_of(1).get(2)))
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((60, 80))
    d.settle()
    assert d.session.area(1) is not None and d.panel.closely.isChecked()
    assert "looked at closely" in d.status and "looked at closely" in d.panel.slice.text()
    assert seen[0] is None  # the mark has no mask yet
    whole, close = seen[1:]
    assert whole.coarse.area is None, "it is seen at once, on the whole slice"
    assert close.coarse.area == d.session.area(1)
    assert d.session.stale(1) == []
    d.key("Z", CONTROL)
    assert d.session.area(1) is None and not d.session.prompts and not d.panel.closely.isChecked()
    d.key("Z", CONTROL | SHIFT)
    assert d.session.area(1) is not None and d.session.stale(1) == []
    assert d.panel.closely.isChecked()

    d.press(d.panel.new)
    assert not d.panel.closely.isChecked() and "closely" not in d.panel.slice.text()
    d.click((140, 170))
    d.key("G")  # without waiting for the answer
    d.settle()
    for object_id in (1, 2):
        assert d.session.area(object_id) is not None
        assert d.session.stale(object_id) == []
        assert len(d.session.masks_of(object_id)) == 4


def test_what_a_person_chooses_of_looking_closely_stays_and_is_remembered(desk):
    d = desk(data=discs(), model="nano")
    d.settle()
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((60, 80))
    d.settle()
    d.press(d.panel.more)
    tick(d, d.panel.closely)
    assert d.session.area(1) is None and not d.panel.closely.isChecked()
    d.click((62, 82))
    d.settle()
    d.key("G")
    d.settle()
    assert d.session.area(1) is None and len(d.session.masks_of(1)) == 4
    tick(d, d.panel.closely_by_itself)
    assert not d.session.closely and choices.load()["closely"] is False
    d.press(d.panel.new)
    d.click((140, 170))
    d.settle()
    d.key("G")
    d.settle()
    assert d.session.area(2) is None
    d.viewer.add_image(discs(), name="another")
    d.widget.choose_image(d.viewer.layers["another"])
    assert not d.session.closely and not d.panel.closely_by_itself.isChecked()


def test_painting_is_looked_at_closely_when_it_is_followed(desk):
    d = desk(data=discs(), model="nano")
    d.settle()
    d.go_to(2)
    d.press(d.panel.modes["paint"])
    d.widget.labels_layer.brush_size = 5
    d.draw((56, 80), (60, 80), (64, 80))
    d.settle()
    area = d.session.area(1)
    assert area is not None and d.panel.closely.isChecked()
    d.draw((60, 74), (60, 80), (60, 86))
    d.settle()
    assert d.session.area(1) not in (area, None), "it is as large as what is painted now"
    d.key("G")
    d.settle()
    assert len(d.session.masks_of(1)) == 4


# -- scripts -----------------------------------------------------------------------------------


def test_what_a_script_says_is_seen_and_marks_by_hand_join_it(desk):
    d = desk()
    s, (shown,) = d.session, d.viewer.layers
    s.add_box(1, 3, (8, 12, 26, 28))
    assert len(d.widget.shapes_layer.data) == 1 and d.viewer.layers.selection.active is shown
    s.propagate()
    d.settle()
    assert d.widget.labels_layer.data is s.labels and set(s.masks_of(1)) == set(range(7))
    d.go_to(3)
    d.press(d.panel.modes["exclude"])
    d.click((40, 55))
    d.settle()
    said = s.prompts[1][3]
    assert said.box is not None and len(said.points) == 1
    assert_same(s.labels[3], d.expected(3))
    s.add_points(s.add_object(), [(3, 32, 44)])
    s.add_points(2, [(5, 32, 42)])
    QApplication.processEvents()
    assert len(d.widget.points_layer.data) == 3
    s.remove_object(1)
    assert len(d.widget.points_layer.data) == 2 and not len(d.widget.shapes_layer.data)
    s.undo()
    QApplication.processEvents()
    assert len(d.widget.points_layer.data) == 3 and len(d.widget.shapes_layer.data) == 1
    d.viewer.layers.remove(d.widget.points_layer)
    s.preview(5)
    assert d.widget.points_layer is None, "what a person removes does not come by itself again"


def test_a_script_does_not_come_between_a_run(desk):
    d = desk()
    d.session.add_points(1, [(2, 16, 20)])
    begun, go_on, steps = threading.Event(), threading.Event(), Engine._steps

    def slow(self, task):
        for step in steps(self, task):
            yield step
            begun.set()
            go_on.wait(60)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_steps", slow)
        d.press(d.panel.propagate)
        d.qtbot.waitUntil(begun.is_set, timeout=TIMEOUT)
        with pytest.raises(ValueError, match="being followed already"):
            d.session.propagate()
        d.session.preview(2)
        go_on.set()
        d.settle()
    assert_same(d.labels, d.expected())
    d.session.propagate()
