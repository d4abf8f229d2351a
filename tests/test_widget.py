"""The widget in a real viewer, driven by what people do: clicks, drags, keys, layers, sliders."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from itertools import combinations

import napari.layers
import numpy as np
import pytest
from desk import SHAPE, TIMEOUT, assert_same, blobs, worker_threads
from models import SMALL, small_model
from napari.settings import get_settings
from napari.utils import progress
from napari.utils.theme import get_theme
from qtpy.QtCore import QEvent, QPoint, Qt
from qtpy.QtGui import QColor, QShortcut
from qtpy.QtWidgets import (
    QAbstractButton,
    QApplication,
    QComboBox,
    QFileDialog,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSlider,
    QSpinBox,
    QTableWidget,
    QToolButton,
    QWidget,
)

from napari_sam2.session import Session
from napari_sam2.widgets import SAM2Widget, choices
from napari_sam2.widgets.icons import BLUE, GREEN, RED, shade
from napari_sam2.widgets.object_table import COLOUR, LOCK, NAME, ObjectRow, ObjectTable
from napari_sam2.widgets.sam2_widget import KEYS
from napari_sam2.widgets.second_reader import DIFFERENCE_COLOURS
from napari_sam2.widgets.slice_strip import (
    APPROVED,
    LOCKED,
    PAINTED,
    PROMPTED,
    REJECTED,
    SliceStates,
    SliceStrip,
)
from sam2_engine.model import SAM2
from sam2_engine.weights import save_model

LEFT = Qt.MouseButton.LeftButton

pytestmark = pytest.mark.usefixtures("own_choices")

# -- the plugin --------------------------------------------------------------------------------


def test_napari_finds_the_widget(make_napari_viewer, qtbot):
    viewer = make_napari_viewer()
    dock, widget = viewer.window.add_plugin_dock_widget("napari-sam2", "SAM 2")
    assert isinstance(widget, SAM2Widget)
    assert "Open an image" in widget.panel.status.text()
    viewer.window.remove_dock_widget(dock)
    qtbot.waitUntil(lambda: not worker_threads(), timeout=TIMEOUT)


def test_opening_the_menu_does_not_load_torch():
    code = "import sys, napari_sam2.widgets; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr


# -- clicks, boxes, masks ----------------------------------------------------------------------


def test_a_click_shows_a_mask_at_once_and_propagate_follows_it(desk):
    d = desk(scale=(3, 1, 1), translate=(5, -2, 4))
    d.go_to(2)
    d.press(d.panel.modes["include"])
    assert d.viewer.layers.selection.active is d.widget.points_layer
    d.click((16, 20))
    d.settle()
    np.testing.assert_allclose(d.session.prompts[1][2].points, [(16, 20)], atol=0.5)
    assert_same(d.labels[2], d.expected(2))
    assert d.labels[2].any()
    assert not np.delete(d.labels, 2, axis=0).any()
    assert "Slice 2 is marked" in d.status

    d.press(d.panel.propagate)
    assert d.panel.progress.isVisible()
    assert d.panel.stop.isEnabled()
    d.settle()
    assert_same(d.labels, d.expected())
    assert not d.panel.stop.isEnabled()
    assert f"Object 1 is on {len(d.session.masks[1])} of 7 slices" in d.status

    layer = d.widget.labels_layer
    assert layer.data is d.labels
    np.testing.assert_array_equal(layer.scale, (3, 1, 1))
    np.testing.assert_array_equal(layer.translate, (5, -2, 4))


def test_the_bundled_model_loads_in_the_background_and_marks_a_disc(desk):
    _, y, x = np.indices((3, 96, 128))
    disc = (y - 48) ** 2 + (x - 60) ** 2 < 24**2
    noise = np.random.default_rng(0).normal(40, 10, disc.shape)
    d = desk(model="nano", data=(noise + 80 * disc).astype(np.float32), contrast_limits=(0, 180))
    assert "Loading the model" in d.status
    d.press(d.panel.modes["box"])
    QApplication.processEvents()  # the window makes room for the widget
    d.drag((22, 34), (74, 86))  # before the model is there
    d.settle()
    found = d.labels[d.viewer.dims.current_step[0]] > 0
    assert (found & disc[0]).sum() > 0.6 * (found | disc[0]).sum()
    assert "is marked" in d.status


def test_a_dragged_box_is_one_prompt_and_a_second_replaces_it(desk):
    d = desk()
    d.go_to(3)
    d.press(d.panel.modes["box"])
    start, end = d.position((10, 12)), d.position((26, 30))
    d.mouse(QEvent.Type.MouseButtonPress, start)
    d.mouse(QEvent.Type.MouseMove, end)
    assert d.session.prompts == {}, "a box counts when the mouse is released"
    d.mouse(QEvent.Type.MouseButtonRelease, end, held=False)
    np.testing.assert_allclose(d.session.prompts[1][3].box, (10, 12, 26, 30), atol=0.6)
    d.settle()
    assert_same(d.labels[3], d.expected(3))

    d.drag((12, 14), (24, 28))
    d.settle()
    d.qtbot.waitUntil(lambda: len(d.widget.shapes_layer.data) == 1, timeout=TIMEOUT)
    np.testing.assert_allclose(d.session.prompts[1][3].box, (12, 14, 24, 28), atol=0.6)
    assert_same(d.labels[3], d.expected(3))

    d.click((40, 50))  # no drag: no box
    d.settle()
    d.qtbot.waitUntil(lambda: len(d.widget.shapes_layer.data) == 1, timeout=TIMEOUT)
    np.testing.assert_allclose(d.session.prompts[1][3].box, (12, 14, 24, 28), atol=0.6)


def test_exclude_shift_and_keys(desk):
    d = desk()
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.click((32, 44), modifiers=Qt.KeyboardModifier.ShiftModifier)
    d.click((18, 22))
    assert list(d.session.prompts[1][2].labels) == [1, 0, 1]
    d.key("E")
    assert d.panel.modes["exclude"].isChecked()
    d.click((40, 10))
    assert list(d.session.prompts[1][2].labels) == [1, 0, 1, 0]
    d.key("N")
    d.key("I")
    d.click((32, 44))
    assert list(d.session.prompts) == [1, 2]
    assert list(d.session.prompts[2][2].labels) == [1]
    d.key("B")
    assert d.viewer.layers.selection.active is d.widget.shapes_layer
    d.settle()
    assert_same(d.labels[2], d.expected(2))
    colours = d.widget.points_layer.face_color
    assert (colours[0] == colours[2]).all()
    assert (colours[0] != colours[1]).any()


def test_every_key_that_is_listed_works_in_the_layers_of_the_image_only(desk):
    d = desk()
    d.widget.start("include")
    listed = {part.strip() for row in KEYS for part in row.split(",")}
    listed |= {"Shift+O", "Shift+T", "Ctrl+Shift+Z"}  # named in the texts of O, T and Ctrl+Z
    listed -= {"Shift+click", "S", "A", "Delete"}  # by the mouse, and napari's own
    in_widget = {shortcut.key().toString() for shortcut in d.widget.findChildren(QShortcut)}
    assert in_widget == listed

    def bound(layer):
        return {str(key).replace("Meta", "Ctrl") for key in layer.keymap}

    assert bound(d.widget.points_layer) == bound(d.widget.shapes_layer) == listed
    assert bound(d.widget.labels_layer) == listed - {"B", "E", "L", "P"}
    assert bound(d.image) == set()
    assert not {str(key) for key in d.viewer.keymap} & listed


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1)])
def test_the_sequence_is_the_axis_of_the_slider(desk, order):
    d = desk(scale=(3, 1, 1))
    d.viewer.dims.order = order
    d.viewer.reset_view()
    axis = order[0]
    assert len(d.session.view) == SHAPE[axis]
    d.go_to(20, axis)
    d.press(d.panel.modes["include"])
    d.click((3, 20) if axis == 1 else (3, 18))
    d.settle()
    assert list(d.session.prompts[1]) == [20]
    here = d.labels.take(20, axis)
    assert_same(here, d.expected(20))
    assert here.any()
    d.viewer.dims.order = (0, 1, 2)
    assert d.session.prompts == {}


def test_rotated_sheared_layers_keep_prompts_and_masks_in_place(desk):
    d = desk(rotate=(0, 0, 30), shear=(0, 0, 0.3), scale=(2, 1, 0.5), affine=np.diag([1, 2, 2, 1]))
    d.go_to(4)
    d.press(d.panel.modes["include"])
    d.click((18, 20))
    d.settle()
    np.testing.assert_allclose(d.session.prompts[1][4].points, [(18, 20)], atol=0.5)
    at = (3.2, 7.5, 11)
    expected = d.image.data_to_world(at)
    for layer in (d.widget.labels_layer, d.widget.points_layer, d.widget.shapes_layer):
        np.testing.assert_allclose(layer.data_to_world(at), expected)
    # All of them go where the image goes.
    d.image.scale, d.image.translate = (3, 1, 0.5), (1, 2, 3)
    for layer in (d.widget.labels_layer, d.widget.points_layer):
        np.testing.assert_allclose(layer.data_to_world((1, 2, 3)), d.image.data_to_world((1, 2, 3)))
    # The prompt layers may be moved apart from the image.
    d.widget.points_layer.translate += (3, 0, 0)
    d.widget.points_layer.add([4, 18, 20])
    assert sorted(d.session.prompts[1]) == [5]


def test_a_colour_image_and_a_time_lapse_of_volumes(desk):
    colours = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    d = desk(data=colours, rgb=True)
    assert not d.panel.propagate.isEnabled()
    d.press(d.panel.modes["include"])
    d.click((20, 20))
    d.settle()
    assert_same(d.labels, d.expected(0))

    series = d.viewer.add_image(np.stack([blobs()] * 3), name="series")
    d.widget.choose_image(series)
    d.viewer.dims.set_current_step(1, 2)
    d.widget.start("include")
    d.widget.points_layer.add([1, 2, 16, 20])
    d.settle()
    assert len(d.session.view) == 3
    assert list(d.session.prompts[1]) == [1]
    assert d.labels[1, 2].any()
    d.viewer.dims.set_current_step(1, 4)
    assert d.session.prompts == {}
    d.viewer.dims.set_current_step(1, 2)
    assert list(d.session.prompts[1]) == [1]


def test_slices_follow_each_other_along_the_chosen_slider(desk):
    series = np.stack([blobs((5, 48, 64)) + shift for shift in range(3)])
    d = desk(data=series)
    d.press(d.panel.more)
    along, dims = d.panel.along, d.viewer.dims
    assert [along.itemText(i) for i in range(along.count())] == [
        f"{dims.axis_labels[0]}: 3 slices",
        f"{dims.axis_labels[1]}: 5 slices",
    ]
    assert along.isVisible()
    dims.set_point((0, 1), (2, 3))
    along.setCurrentIndex(1)
    along.activated.emit(1)
    assert len(d.session.view) == 5
    d.press(d.panel.modes["include"])
    d.click((17, 20))
    d.settle()
    assert list(d.session.prompts[1]) == [3]
    d.press(d.panel.propagate)
    d.settle()
    assert_same(d.labels, d.expected())
    assert d.labels[2].any(axis=(1, 2)).all()
    assert not d.labels[:2].any()
    # Rolled, so that another pair of axes is shown, there are other sliders.
    dims.order = (0, 2, 1, 3)
    assert [along.itemData(i) for i in range(along.count())] == [0, 2]
    dims.order = (0, 1, 2, 3)
    assert along.currentData() == 1
    assert list(d.session.prompts[1]) == [3]
    flat = d.viewer.add_image(blobs(), name="flat")
    d.widget.choose_image(flat)
    assert not along.isVisible()


def test_an_image_with_five_axes_is_marked_where_its_sliders_are(desk):
    data = np.zeros((2, 3, *SHAPE), np.float32)
    data[1, 2] = blobs()
    d = desk(data=data, contrast_limits=(0, 250))
    choices = [d.panel.along.itemData(i) for i in range(d.panel.along.count())]
    assert choices == [0, 1, 2]
    d.panel.along.setCurrentIndex(2)
    d.panel.along.activated.emit(2)
    d.viewer.dims.set_point((0, 1, 2), (1, 2, 3))
    d.press(d.panel.modes["include"])
    d.click((17, 20))
    d.press(d.panel.propagate)
    d.settle()
    assert_same(d.labels, d.expected())
    assert d.labels[1, 2].any()
    assert not d.labels[0].any() and not d.labels[1, :2].any()
    d.go_to(0, axis=1)
    assert d.session.prompts == {}


def test_of_a_multiscale_image_the_full_resolution_is_segmented():
    pyramid = [blobs(), blobs()[:, ::2, ::2]]
    image = napari.layers.Image(pyramid, multiscale=True, contrast_limits=(0, 250))
    session = Session(image, small_model())
    assert session.labels.shape == SHAPE
    assert session.window == (0, 250)
    np.testing.assert_array_equal(session.view[3], pyramid[0][3])


def test_images_are_read_frame_by_frame(desk):
    dask = pytest.importorskip("dask.array")
    reads = []

    def read(block, block_info=None):
        reads.append(block_info[0]["array-location"][0][0])
        return block

    lazy = dask.from_array(blobs((60, *SHAPE[1:])), chunks=(1, -1, -1)).map_blocks(
        read, dtype=np.float32
    )
    d = desk(data=lazy, contrast_limits=(0, 250))
    d.go_to(2)
    d.press(d.panel.modes["include"])
    reads.clear()
    d.click((16, 20))
    d.settle()
    assert d.labels[2].any()
    near = set(range(2 + 5))  # the first tells the size of a frame; those near by come when idle
    assert set(reads) <= near


# -- changes to prompts ------------------------------------------------------------------------


def test_moving_and_deleting_prompts_changes_the_masks(desk):
    d = desk()
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.click((32, 44))
    d.settle()
    both = d.labels[2].copy()
    d.key(Qt.Key.Key_Delete)  # the last one is selected
    d.settle()
    assert len(d.widget.points_layer.data) == 1
    assert (d.labels[2] != both).any()
    assert_same(d.labels[2], d.expected(2))

    moved = d.widget.points_layer.data.copy()
    moved[0, 0] = 5
    d.widget.points_layer.data = moved
    d.settle()
    assert not d.labels[2].any()
    assert_same(d.labels[5], d.expected(5))

    d.widget.points_layer.features = {"object": [4], "axis": [0], "label": ["positive"]}
    d.settle()
    assert set(np.unique(d.labels)) == {0, 4}

    d.widget.points_layer.features = {"object": [2**31], "axis": [0], "label": ["positive"]}
    d.settle()
    assert "it is not used" in d.panel.status.text()
    assert not d.session.prompts, "such an object cannot be"
    d.widget.points_layer.features = {"object": [4], "axis": [0], "label": ["positive"]}
    d.settle()
    assert set(np.unique(d.labels)) == {0, 4}

    d.widget.points_layer.data = np.empty((0, 3))
    d.settle()
    assert not d.labels.any()


def test_renamed_layers_are_those_that_they_were(desk):
    d = desk()
    d.go_to(2)
    d.press(d.panel.modes["include"])
    for layer in d.viewer.layers:
        layer.name = f"renamed {layer.name}"
    d.click((16, 20))
    assert "Encoding slice 2" in d.status, "the first click on a slice takes longer, and says so"
    d.settle()
    assert len(d.viewer.layers) == 4
    assert d.panel.images.currentText() == "renamed scan"
    assert_same(d.labels[2], d.expected(2))
    d.click((30, 40))
    assert "Looking at slice 2" in d.status, "the second one does not"
    d.settle()


def test_removed_layers_come_back_with_the_prompts_of_every_axis(desk):
    d = desk()
    d.widget.start("include")
    d.widget.points_layer.add([2, 16, 20])
    d.widget.shapes_layer.add([[3, 10, 12], [3, 10, 30], [3, 26, 30], [3, 26, 12]])
    d.viewer.dims.order = (2, 0, 1)
    d.widget.start("exclude")
    d.widget.points_layer.add([2, 16, 24])
    d.settle()
    d.viewer.layers.remove(d.widget.shapes_layer)
    assert d.widget.points_layer is None
    d.widget.start("include")
    assert len(d.widget.points_layer.data) == 2
    assert len(d.widget.shapes_layer.data) == 1
    assert list(d.session.prompts[1]) == [24]
    d.widget.points_layer.remove([list(d.widget.points_layer.features["axis"]).index(2)])
    assert d.session.prompts == {}
    d.viewer.dims.order = (0, 1, 2)
    assert list(d.session.prompts[1]) == [2, 3]
    d.settle()


def test_a_click_after_propagation_corrects_that_slice(desk):
    d = desk()
    d.go_to(1)
    d.press(d.panel.modes["include"])
    d.click((15, 20))
    d.press(d.panel.propagate)
    d.settle()
    before = d.labels.copy()
    d.go_to(4)
    d.key("E")
    d.click((30, 44))
    d.settle()
    assert d.session.prompts[1][4].corrects is not None
    assert_same(d.labels[4], d.expected(4))
    np.testing.assert_array_equal(np.delete(d.labels, 4, axis=0), np.delete(before, 4, axis=0))
    d.press(d.panel.propagate)
    d.settle()
    assert_same(d.labels, d.expected())


def test_a_prompt_outside_the_image_is_told(desk):
    d = desk()
    d.widget.start("include")
    d.widget.points_layer.add([2, 400, 3])
    assert d.session.prompts == {}
    assert "not used" in d.status


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
def test_an_image_that_lies_across_its_slices_is_not_marked_beside_what_is_seen(desk):
    tilt = np.array([[2.97, -0.14, 0, 5], [0.42, 0.99, 0, -8], [0, 0, 1, 3], [0, 0, 0, 1]])
    d = desk(affine=tilt)  # 8 degrees about x, slices of 3 mm
    assert "out of its slices" in d.status
    d.press(d.panel.modes["box"])
    assert "out of its slices" in d.status
    assert d.panel.mode is None and d.widget.shapes_layer is None
    d.viewer.dims.order = (2, 0, 1)  # sagittal slices lie along the world's axis
    d.press(d.panel.modes["include"])
    assert d.panel.mode == "include"
    d.viewer.dims.order = (0, 1, 2)
    d.widget.points_layer.mode = "pan_zoom"
    d.image.affine = np.eye(4) + np.eye(4, k=1) * 1e-4  # rounding in a file
    d.press(d.panel.modes["box"])
    assert d.panel.mode == "box" and "Drag a box" in d.status


def test_objects_are_added_chosen_and_deleted(desk):
    d = desk()
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.press(d.panel.new)
    assert d.panel.object_id == 2
    d.click((32, 44))
    d.panel.object_id = 1
    d.click((17, 21))
    d.settle()
    assert {i: len(d.session.prompts[i][2].points) for i in (1, 2)} == {1: 2, 2: 1}
    assert d.widget.labels_layer.selected_label == 1
    d.press(d.panel.delete)
    d.settle()
    assert list(d.session.objects) == [2]
    assert len(d.widget.points_layer.data) == 1
    assert_same(d.labels[2], d.expected(2))

    # Many at once: the slice is written once, and the message has room.
    written = []
    d.session.masks_changed.connect(written.append)
    for _ in range(4):
        d.press(d.panel.new)
        d.click((16, 20))
        d.settle()
    d.panel.objects.selectAll()
    written.clear()
    d.press(d.panel.delete)
    assert len(written) == 1 and not d.labels.any()
    assert d.status == "Object 2, Object 3, Object 4 and 2 more deleted. Undo brings them back."


def test_the_plugins_docks_lie_one_behind_the_other(desk):
    d = desk()
    window = d.viewer.window._qt_window
    height = window.height()
    docks = [d.dock]
    for name in ("Measures", "Fine-tune"):
        dock, widget = d.viewer.window.add_plugin_dock_widget("napari-sam2", name)
        d.qtbot.waitUntil(lambda dock=dock: d.dock in window.tabifiedDockWidgets(dock))
        d.qtbot.waitUntil(widget.isVisible)
        docks.append(dock)
        assert widget.body.minimumSizeHint().width() <= d.panel.sizeHint().width(), name
    assert set(window.tabifiedDockWidgets(d.dock)) == set(docks[1:])
    assert window.height() == height
    d.dock.raise_()
    d.qtbot.waitUntil(d.panel.isVisible)


# -- runs --------------------------------------------------------------------------------------


class SlowFrames(np.ndarray):
    """An array whose slices wait for `gate`, so that a run lasts until the test lets it go on."""

    gate = threading.Event()

    def __getitem__(self, index):
        if threading.current_thread().name == "napari-sam2":
            self.gate.wait(60)
        return np.asarray(super().__getitem__(index))


@pytest.fixture
def slow_desk(desk, monkeypatch):
    monkeypatch.setattr("napari_sam2.widgets.runner._LOOK_AHEAD", 1)
    SlowFrames.gate.set()
    d = desk(data=np.zeros((2, 2, 2)))
    d.widget.shut_down()
    d.viewer.layers.clear()
    d.image = d.viewer.add_image(blobs(), name="slow")
    d.image.data = blobs().view(SlowFrames)
    d.widget = SAM2Widget(d.viewer, model=small_model())
    d.panel = d.widget.panel
    d.dock = d.viewer.window.add_dock_widget(d.widget, name="slow SAM 2")
    d.viewer.reset_view()
    d.settle()
    d.widget.start("include")
    d.widget.points_layer.add([3, 17, 20])
    d.settle()
    yield d
    SlowFrames.gate.set()


def begin_a_run(d):
    """Start to propagate and hold it at its second new frame; the first was looked at ahead."""
    d.qtbot.waitUntil(lambda: all(map(d.session.is_encoded, (2, 4))), timeout=TIMEOUT)
    SlowFrames.gate.clear()
    d.press(d.panel.propagate)
    d.qtbot.waitUntil(lambda: d.panel.progress.value() >= 1, timeout=TIMEOUT)
    assert any("SAM 2" in bar.desc for bar in progress._all_instances), "napari's own bar"


def test_stop_keeps_what_is_done(slow_desk):
    d = slow_desk
    begin_a_run(d)
    assert not d.panel.propagate.isEnabled()
    d.press(d.panel.stop)
    SlowFrames.gate.set()
    d.settle()
    assert "Stopped" in d.status
    done = d.labels.any(axis=(1, 2))
    assert done[3]
    assert not done.all()
    d.press(d.panel.propagate)
    d.settle()
    assert_same(d.labels, d.expected())


def test_undo_ends_a_run_so_that_nothing_comes_again(slow_desk):
    d = slow_desk
    begin_a_run(d)
    d.widget.undo()
    assert d.status == "Undone: Propagate. Objects are not followed on."
    left = d.labels.copy()
    assert left[3].any() and not np.delete(left, 3, axis=0).any()
    SlowFrames.gate.set()
    d.settle()
    np.testing.assert_array_equal(d.labels, left)
    assert d.status == "Undone: Propagate. Objects are not followed on."
    assert d.panel.propagate.isEnabled()
    d.press(d.panel.propagate)
    d.settle()
    assert_same(d.labels, d.expected())


def test_a_run_tells_of_its_own_slices_whatever_the_viewer_shows(slow_desk):
    d = slow_desk
    begin_a_run(d)
    d.viewer.dims.order = (1, 0, 2)
    SlowFrames.gate.set()
    d.settle()
    there = int(d.labels.any(axis=(1, 2)).sum())
    assert there > 3
    assert f"is on {there} of 7 slices" in d.status


def test_a_correction_during_a_run_counts_at_once(slow_desk):
    d = slow_desk
    begin_a_run(d)
    d.widget.points_layer.add([5, 17, 22])
    SlowFrames.gate.set()
    d.settle()
    assert d.status.startswith("Done: ")
    assert not d.session.stale(1)
    assert_same(d.labels, d.expected())


def test_what_was_cut_off_during_a_run_is_not_looked_for(slow_desk):
    d = slow_desk
    begin_a_run(d)
    d.go_to(2)
    d.widget.end_here("first")
    d.go_to(3)
    SlowFrames.gate.set()
    d.settle()
    assert d.status.startswith("Done: ")
    assert d.session.looked_at(1) == {2, 3, 4, 5, 6}
    assert not d.session.is_encoded(0)


def test_a_run_ends_when_what_it_follows_is_removed(slow_desk):
    d = slow_desk
    begin_a_run(d)
    d.session.remove_object(1)
    SlowFrames.gate.set()
    d.settle()
    assert d.status == "Stopped: what was followed is gone or locked."
    assert not d.labels.any()
    assert not d.session.is_encoded(0)


def test_napari_stops_a_run_even_after_a_correction(slow_desk):
    d = slow_desk
    begin_a_run(d)
    d.widget.points_layer.add([5, 17, 22])
    next(bar for bar in progress._all_instances if "SAM 2" in bar.desc).cancel()
    SlowFrames.gate.set()
    d.settle()
    assert d.status == "Stopped. The slices done so far are kept."
    assert not d.labels[0].any()


def test_a_correction_before_other_slices_are_shown_ends_a_run_that_says_why(slow_desk):
    d = slow_desk
    begin_a_run(d)
    d.widget.points_layer.add([5, 17, 22])
    d.viewer.dims.order = (1, 0, 2)
    SlowFrames.gate.set()
    d.settle()
    assert "have changed" in d.status
    d.viewer.dims.order = (0, 1, 2)
    d.press(d.panel.propagate)
    d.settle()
    assert_same(d.labels, d.expected())


def test_an_object_may_go_before_it_is_followed(slow_desk):
    d = slow_desk
    d.session.set_prompts(1, 3)
    SlowFrames.gate.clear()
    other = d.session.add_object()
    d.session.add_points(1, (5, 17, 22))
    d.session.add_points(other, (6, 32, 40))
    d.press(d.panel.propagate)
    d.session.remove_object(other)
    SlowFrames.gate.set()
    d.settle()
    assert d.status.startswith("Done: Object 1 is on")
    assert_same(d.labels, d.expected())


def test_approving_does_not_hold_up_a_run(slow_desk):
    d = slow_desk
    begin_a_run(d)
    d.go_to(3)
    d.widget.keep_slice("approved", True)
    SlowFrames.gate.set()
    d.settle()
    assert d.session.looked_at(1) == set(range(7))
    assert "masks were approved" in d.status
    assert d.session.stale(1)
    d.press(d.panel.update_masks)
    d.settle()
    assert not d.session.stale(1)


def test_a_run_says_what_is_out_of_date_at_its_end(slow_desk):
    d = slow_desk
    begin_a_run(d)
    d.image.contrast_limits = (0, 300)
    d.qtbot.wait(600)  # the contrast limits settle
    SlowFrames.gate.set()
    d.settle()
    assert d.session.window == (0, 300)
    assert "intensities have changed" in d.status
    assert "press Update" in d.status
    d.widget.update_masks()
    d.settle()
    assert "out of date" not in d.status
    assert_same(d.labels, d.expected())


def test_an_image_of_another_shape_ends_a_run_and_says_so(slow_desk):
    d = slow_desk
    begin_a_run(d)
    d.image.data = blobs((5, 48, 64))
    told = d.status
    assert "another shape" in told
    SlowFrames.gate.set()
    d.settle()
    assert d.status == told


class BrokenFrames(np.ndarray):
    """An array whose frames `broken` the model cannot read, as when a network disk is gone."""

    broken = ()

    def __getitem__(self, index):
        if index[0] in self.broken and threading.current_thread().name == "napari-sam2":
            raise OSError("The disk with the image is gone")
        return np.asarray(super().__getitem__(index))


def notifications(viewer):
    """The texts of napari's own notifications in the corner of the canvas."""
    window = viewer.window._qt_window
    shown = [w for w in window.findChildren(QWidget) if "Notification" in type(w).__name__]
    return [w.message.text() for w in shown if w.isVisible()]


def test_a_failure_is_told_in_napari_and_nothing_is_lost(desk, monkeypatch):
    d = desk()
    d.image.data = blobs().view(BrokenFrames)
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    done = d.labels.copy()
    assert done[2].any() and notifications(d.viewer) == []

    monkeypatch.setattr(BrokenFrames, "broken", range(7))
    d.press(d.panel.propagate)
    d.settle()
    told = "cannot be read: The disk with the image is gone"
    assert len(notifications(d.viewer)) == 1
    assert re.fullmatch(f"⚠ Slice [1-6] {told}", d.status)
    assert notifications(d.viewer) == [f"SAM 2: {d.status.removeprefix('⚠ ')}"]
    assert not d.panel.stop.isEnabled() and d.panel.propagate.isEnabled()
    assert not any("SAM 2" in bar.desc for bar in progress._all_instances)
    np.testing.assert_array_equal(d.labels, done)

    d.go_to(6)
    d.click((20, 20))
    d.settle()
    assert d.status == f"⚠ Slice 6 {told}"
    assert sorted(d.session.prompts[1]) == [2, 6], "the click is kept, though it has no mask yet"

    monkeypatch.setattr(BrokenFrames, "broken", [4])
    d.press(d.panel.propagate)
    d.settle()
    assert d.status == f"⚠ Slice 4 {told}. It has no new masks; the next run tries again."
    assert d.session.looked_at(1) == {0, 1, 2, 3, 5, 6}

    monkeypatch.setattr(BrokenFrames, "broken", ())
    d.press(d.panel.propagate)
    d.settle()
    assert "Done" in d.status
    assert_same(d.labels, d.expected())


def test_the_window_stays_alive_while_the_model_works(slow_desk):
    d = slow_desk
    begin_a_run(d)
    d.go_to(5)
    d.widget.points_layer.add([5, 19, 20])  # a prompt during the run waits its turn
    QApplication.processEvents()
    assert d.viewer.dims.current_step[0] == 5
    assert "Encoding slice 5" not in d.status, "the run has the word"
    assert_same(d.labels[5], np.zeros(SHAPE[1:]))

    d.go_to(1)
    d.viewer.camera.zoom *= 1.5
    d.press(d.panel.modes["paint"])
    d.draw((8, 40), (8, 50))
    d.qtbot.waitUntil(lambda: d.session.prompts[1].get(1) is not None, timeout=TIMEOUT)
    painted = d.labels[1].copy()
    assert painted.any()
    assert d.widget.is_busy, "the run waits for its slice all the while"

    SlowFrames.gate.set()
    d.settle()
    assert_same(d.labels[5], d.expected(5))
    np.testing.assert_array_equal(d.labels[1], painted)
    assert d.labels.any(axis=(1, 2)).sum() > 3


@pytest.mark.parametrize(
    "harm", ["image", "points", "labels", "all", "undock", "close", "new data", "viewer"]
)
def test_harm_during_a_run_breaks_nothing(slow_desk, harm):
    d = slow_desk
    begin_a_run(d)
    widget = d.widget
    if harm == "image":
        d.viewer.layers.remove(d.image)
    elif harm == "points":
        d.viewer.layers.remove(widget.points_layer)
    elif harm == "labels":
        d.viewer.layers.remove(widget.labels_layer)
    elif harm == "all":
        d.viewer.layers.clear()
    elif harm == "undock":
        d.viewer.window.remove_dock_widget(d.dock)
    elif harm == "close":
        widget.close()
    elif harm == "viewer":
        d.viewer.close()
    else:
        d.image.data = blobs() + 1
    QApplication.processEvents()
    SlowFrames.gate.set()
    if harm == "viewer":
        d.qtbot.waitUntil(lambda: not worker_threads(), timeout=TIMEOUT)
        return
    d.settle()
    assert not any("SAM 2" in bar.desc for bar in progress._all_instances)
    if harm in ("undock", "close"):
        d.qtbot.waitUntil(lambda: not worker_threads(), timeout=TIMEOUT)
        d.viewer.layers.clear()  # nothing listens any more
    elif harm in ("points", "labels"):
        # Layers that are gone come back with all that the session knows.
        assert d.session.prompts
        widget.start("include")
        assert len(widget.points_layer.data) == 1
        assert widget.labels_layer.data is d.labels
        d.press(d.panel.propagate)
        d.settle()
        assert_same(d.labels, d.expected())
    elif harm == "new data":
        # Marks are kept; masks follow from the new pixels as soon as they are asked for.
        assert list(d.session.prompts[1]) == [3]
        assert len(widget.points_layer.data) == 1
        assert d.session.stale(1)
        d.press(d.panel.propagate)
        d.settle()
        assert_same(d.labels, d.expected())
    else:
        assert d.session is None or d.session.prompts == {}


def test_a_closed_widget_leaves_no_thread_and_no_callbacks(desk):
    d = desk()
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    points = d.widget.points_layer
    widget = weakref.ref(d.widget)
    assert worker_threads()
    d.viewer.window.remove_dock_widget(d.dock)
    d.qtbot.waitUntil(lambda: not worker_threads(), timeout=TIMEOUT)
    points.add([2, 20, 20])
    d.viewer.add_image(blobs())
    d.widget = d.panel = d.dock = None
    for _ in range(2):  # the widget, and then what its buttons called
        QApplication.processEvents()
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    d.viewer.layers.clear()
    gc.collect()
    assert widget() is None


# -- images, models, messages ------------------------------------------------------------------


def test_every_image_has_its_own_session(desk):
    d = desk()
    first = d.session
    d.widget.start("include")
    d.widget.points_layer.add([2, 16, 20])
    d.settle()
    other = d.viewer.add_image(blobs()[:, ::-1].copy(), name="other")
    d.widget.choose_image(other)
    assert d.session is not first
    assert d.session.prompts == {}
    assert d.panel.modes["include"].isChecked() is False
    d.widget.choose_image(d.image)
    assert d.session is first
    other.name = "renamed"
    assert d.panel.images.findText("renamed") >= 0
    d.viewer.layers.remove(d.image)
    assert d.widget.session.prompts == {}
    assert d.panel.images.count() == 1


def test_without_an_image_it_says_what_to_do(make_napari_viewer, qtbot):
    viewer = make_napari_viewer()
    widget = SAM2Widget(viewer, model=small_model())
    qtbot.addWidget(widget)
    assert "Open an image" in widget.panel.status.text()
    widget.start("include")
    widget.new_object()
    widget.propagate()
    assert len(viewer.layers) == 0
    viewer.add_image(blobs())
    assert "click on Object 1" in widget.panel.status.text()
    widget.propagate()
    assert "no mark yet" in widget.panel.status.text()
    widget.shut_down()


def test_new_contrast_limits_are_what_the_model_sees(desk):
    d = desk(contrast_limits=(0, 250))
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    before = d.labels[2].copy()
    d.image.contrast_limits = (100, 2000)
    d.qtbot.waitUntil(lambda: d.session.window == (100, 2000), timeout=TIMEOUT)
    d.settle()
    assert (d.labels[2] != before).any()
    assert_same(d.labels[2], d.expected(2))


def test_models_are_listed_and_a_failure_is_told(desk, monkeypatch, tmp_path):
    d = desk()
    texts = [d.panel.models.itemText(i) for i in range(d.panel.models.count())]
    assert "sam2.1-large, 898 MB, Apache-2.0" in texts
    assert any(text.startswith("nano") for text in texts)
    monkeypatch.setenv("SAM2_MODELS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    d.panel.models.addItem("mine", str(tmp_path / "no-such-file.pt"))
    d.panel.models.setCurrentIndex(d.panel.models.count() - 1)
    d.panel.models.activated.emit(d.panel.models.currentIndex())
    d.settle()
    assert "no-such-file.pt" in d.status
    assert d.status.startswith("⚠")


def test_a_checkpoint_is_chosen_as_a_file_and_remembered(desk, monkeypatch, tmp_path):
    good, bad = tmp_path / "mine.safetensors", tmp_path / "holiday.pt"
    save_model(small_model(), good)
    bad.write_bytes(b"no checkpoint")
    asked = ["", str(bad), str(good)]
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (asked.pop(0), ""))
    d = desk()
    models = d.panel.models
    before, count = d.session.model, models.count()
    assert models.itemText(count - 1) == "File …"

    def choose_file():
        models.setCurrentIndex(models.count() - 1)
        models.activated.emit(models.count() - 1)
        d.settle()

    choose_file()  # and change one's mind
    assert models.currentData() == before.name
    choose_file()
    assert d.status.startswith("⚠")
    assert str(bad) in d.status
    assert d.session.model is before
    assert models.currentData() == before.name
    assert models.count() == count, "a file that is no checkpoint is not offered again"
    choose_file()
    assert d.session.model.name == models.currentData() == str(good)
    assert models.currentText() == "mine.safetensors"
    assert models.itemText(models.count() - 1) == "File …"
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    assert_same(d.labels[2], d.expected(2))

    def next_day():
        widget = SAM2Widget(d.viewer)
        d.qtbot.addWidget(widget)
        d.qtbot.waitUntil(lambda: not widget.is_busy, timeout=TIMEOUT)
        widget.shut_down()
        models = widget.panel.models
        return models.currentData(), [models.itemData(i) for i in range(models.count())]

    chosen, listed = next_day()
    assert chosen == str(good)
    choices.remember(model="nano")
    chosen, listed = next_day()
    assert chosen == "nano"
    assert str(good) in listed, "it is at hand as long as it is there"
    good.unlink()
    assert str(good) not in next_day()[1]


def test_a_model_looks_in_fewer_pixels_where_one_chooses_so(desk, tmp_path):
    path = str(tmp_path / "mine.safetensors")
    save_model(SAM2(replace(SMALL, image_size=1024)), path)
    d = desk()
    models, sizes = d.panel.models, d.panel.sizes

    def choose(combo, value):
        combo.setCurrentIndex(combo.findData(value))
        combo.activated.emit(combo.currentIndex())
        d.settle()

    assert not sizes.isVisibleTo(d.panel)
    models.addItem("mine", path)
    choose(models, path)
    d.press(d.panel.more)
    assert sizes.isVisible()
    texts = [sizes.itemText(i) for i in range(sizes.count())]
    assert texts == ["1024 pixels, as trained", "768 pixels", "512 pixels"]
    assert d.session.model.get().image_size == 1024

    choose(sizes, 512)
    assert (d.session.model.name, d.session.model.get().image_size) == (f"{path}@512", 512)
    assert (models.currentData(), sizes.currentData()) == (path, 512)
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    assert d.status.startswith("Slice 2 is marked") or "Nothing found" in d.status

    widget = SAM2Widget(d.viewer)  # another day
    d.qtbot.addWidget(widget)
    d.qtbot.waitUntil(lambda: not widget.is_busy, timeout=TIMEOUT)
    widget.shut_down()
    assert (widget.panel.models.currentData(), widget.panel.sizes.currentData()) == (path, 512)
    assert widget._models.model.name == f"{path}@512"

    d.widget._models.choose(f"{path}@1024", "cpu")
    d.settle()
    assert (sizes.currentText(), sizes.count()) == ("1024 pixels, as trained", 3)

    choose(models, "nano")
    assert d.session.model.name == "nano"
    assert not sizes.isVisible()


def test_it_fits_a_narrow_dock(desk):
    d = desk()
    d.panel.more.setChecked(True)
    d.panel.reach.setCurrentIndex(d.panel.reach.findData("range"))
    d.panel.recovery.show()
    d.panel.show_download((1 << 20, 999 << 20))
    QApplication.processEvents()
    bar = d.widget.findChild(QScrollArea).verticalScrollBar().sizeHint().width()
    assert d.panel.minimumSizeHint().width() + bar <= 300
    assert d.widget.minimumSizeHint().width() <= 300
    controls = (QComboBox, QPushButton, QSpinBox, QSlider, QToolButton, QProgressBar, QTableWidget)
    d.widget.finder.open()  # a window of the panel, so that its controls are found as well
    shown = [part for kind in controls for part in d.widget.findChildren(kind)]
    assert len(shown) > 30
    assert [part for part in shown if not part.toolTip()] == []
    spoken = {label.buddy() for label in d.widget.findChildren(QLabel)}
    spoken |= {part for part in shown if isinstance(part, QAbstractButton) and part.text()}
    assert [part for part in shown if not (part in spoken or part.accessibleName())] == []


def test_arrows_change_the_slice_whatever_was_pressed_before(desk):
    d = desk()
    d.press(d.panel.new)
    table, window = d.panel.objects, d.viewer.window._qt_window
    cell = table.visualItemRect(table.item(0, NAME)).center()
    d.widget.finder.open()
    for here, press in (
        (window, lambda: d.press(d.panel.modes["box"])),
        (window, lambda: d.press(d.panel.approve)),
        (window, lambda: d.press(d.panel.undo)),
        (window, lambda: d.qtbot.mouseClick(table.viewport(), LEFT, pos=cell)),
        (d.widget.finder, lambda: d.press(d.widget.finder.restore_button)),
    ):
        d.go_to(2)
        press()
        d.qtbot.keyClick(here.focusWidget(), Qt.Key.Key_Right)
        assert d.viewer.dims.current_step[0] == 3
    assert table.currentRow() == 0
    finder = d.widget.finder
    d.qtbot.keyClick(finder.every, Qt.Key.Key_Escape)
    assert not finder.isVisible() and d.widget.isVisible()


def test_objects_are_put_in_order_by_a_heading(qtbot):
    table, colour = ObjectTable(), (1.0, 0.0, 0.0)
    qtbot.addWidget(table)
    table.resize(400, 300)
    table.show()
    names = ("Cell 10", "Cell 9", "anchor")
    rows = [ObjectRow(n, name, colour, score=n / 10) for n, name in enumerate(names, start=1)]
    table.show_rows(rows)
    table.selectAll()
    head = table.horizontalHeader()

    def click(column):
        at = QPoint(head.sectionViewportPosition(column) + 5, head.height() // 2)
        qtbot.mouseClick(head.viewport(), LEFT, pos=at)
        return [row.name for row in table]

    assert click(NAME) == ["anchor", "Cell 9", "Cell 10"]
    assert click(NAME) == ["Cell 10", "Cell 9", "anchor"]
    assert click(COLOUR) == list(names)
    assert table.selected == [1, 2, 3]
    click(NAME)
    table.show_rows([*rows, ObjectRow(4, "a new one", colour)])
    assert [row.name for row in table] == ["anchor", "Cell 9", "Cell 10", "a new one"]


def test_objects_are_renamed_hidden_locked_and_deleted_without_a_mouse(desk):
    d = desk()
    d.press(d.panel.new)
    table, window = d.panel.objects, d.viewer.window._qt_window
    buttons = [*d.widget.findChildren(QPushButton), d.panel.more, table]
    assert [one for one in buttons if not one.focusPolicy() & Qt.FocusPolicy.TabFocus] == []

    def press(*keys):
        for key in keys:
            d.qtbot.keyClick(window.focusWidget(), key)

    window.activateWindow()
    d.qtbot.waitUntil(window.isActiveWindow, timeout=TIMEOUT)
    table.setFocus()
    press(Qt.Key.Key_Up, Qt.Key.Key_F2)
    d.qtbot.keyClicks(window.focusWidget(), "Ng")  # two keys of the widget
    press(Qt.Key.Key_Return)
    QApplication.processEvents()
    assert [info.name for info in d.session.objects.values()] == ["Ng", "Object 2"]
    press(Qt.Key.Key_Space)
    assert d.session.objects[1].hidden and not d.session.objects[2].hidden
    table.setCurrentCell(1, LOCK)
    press(Qt.Key.Key_Space)
    assert d.session.objects[2].locked
    press(Qt.Key.Key_Space, Qt.Key.Key_Delete)
    assert list(d.session.objects) == [1] and window.focusWidget() is table
    press(Qt.Key.Key_Tab)
    assert window.focusWidget() is d.panel.new


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_no_button_is_cut_beside_a_scroll_bar(desk, theme):
    d = desk()
    d.viewer.theme = theme
    window = d.viewer.window._qt_window
    window.resize(1000, 600)
    window.resizeDocks([d.dock], [300], Qt.Orientation.Horizontal)
    d.panel.recovery.show()
    d.panel.show_download((1 << 20, 999 << 20))
    area = d.widget.findChild(QScrollArea)
    d.qtbot.waitUntil(
        lambda: d.widget.width() == 300 and area.verticalScrollBar().isVisible(), timeout=TIMEOUT
    )
    assert not area.horizontalScrollBar().isVisible()
    buttons = [*d.widget.findChildren(QPushButton), *d.widget.findChildren(QToolButton)]
    shown = [button for button in buttons if button.isVisible()]
    assert len(shown) > 20
    assert [b.text() for b in shown if b.width() < b.sizeHint().width()] == []
    ends = {b: b.mapTo(d.widget, b.rect().topRight()).x() for b in shown}
    assert max(ends.values()) < d.widget.width()
    assert max(ends[b] for b in shown if d.panel.isAncestorOf(b)) < area.viewport().width()


def test_propagate_and_messages_stay_in_sight_with_options_open_and_large_letters(desk):
    d = desk()
    window = d.viewer.window._qt_window
    window.resize(1366, 768)
    window.setStyleSheet(f"{window.styleSheet()} * {{ font-size: 14pt; }}")
    d.panel.more.setChecked(True)
    area = d.widget.findChild(QScrollArea)
    d.qtbot.waitUntil(lambda: area.verticalScrollBar().isVisible(), timeout=TIMEOUT)
    d.panel.fail("This is a long message. " * 12)
    QApplication.processEvents()
    panel = d.panel
    for part in (panel.propagate, panel.update_masks, panel.stop, panel.undo, panel.status):
        assert part.visibleRegion().boundingRect() == part.rect(), part.toolTip()
    assert panel.status.height() >= panel.status.heightForWidth(panel.status.width())
    d.panel.recovery.show()
    QApplication.processEvents()
    assert panel.recover.visibleRegion().boundingRect() == panel.recover.rect()

    appearance, table = get_settings().appearance, panel.objects
    usual = appearance.font_size
    try:
        for size in (usual, 14):  # as a person chooses it
            appearance.font_size = size
            QApplication.processEvents()
            assert {table.font().pointSize(), panel.more.font().pointSize()} == {size}
            assert table.columnWidth(NAME) >= 16 * table.fontMetrics().averageCharWidth()
            assert table.rowHeight(0) >= table.fontMetrics().height()
    finally:
        appearance.font_size = usual


def _lightness(colour: QColor, seen=None) -> float:
    """Relative luminance as WCAG 2 has it. seen: linear RGB -> what a person sees of it."""
    linear = np.array(
        [
            part / 12.92 if part <= 0.04 else ((part + 0.055) / 1.055) ** 2.4
            for part in colour.getRgbF()[:3]
        ]
    )
    return float(
        np.clip(linear if seen is None else seen @ linear, 0, 1) @ [0.2126, 0.7152, 0.0722]
    )


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_pictures_stand_out_from_buttons_in_both_themes(theme):
    colours = get_theme(theme)
    ink, ground = (QColor(*c.as_rgb_tuple(alpha=False)) for c in (colours.text, colours.primary))
    for colour in (GREEN, RED, BLUE):
        assert _contrast(_lightness(shade(colour, ink)), _lightness(ground)) >= 3


def test_states_and_differences_are_told_without_red_and_green(qtbot):
    shapes = {}
    for flag in (0, PROMPTED, PAINTED, APPROVED, LOCKED, REJECTED):
        strip = SliceStrip()
        qtbot.addWidget(strip)
        strip.resize(200, 26)
        strip.show_states(SliceStates(np.array([0, 0, flag, 0, 0], np.uint8)), 0)
        image = strip.grab().toImage()
        places = [(x, y) for y in range(image.height()) for x in range(image.width())]
        shapes[flag] = [image.pixel(*place) for place in places]
    drawn = {
        tuple(pixel != ground for pixel, ground in zip(shape, shapes[0], strict=True))
        for shape in shapes.values()
    }
    assert len(drawn) == len(shapes)

    no_red = np.array(  # protanopia, Machado et al. 2009
        [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]
    )
    seen = [_lightness(QColor(colour), no_red) for colour in DIFFERENCE_COLOURS.values()]
    assert min(_contrast(*pair) for pair in combinations(seen, 2)) > 1.5
