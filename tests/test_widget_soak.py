"""Hundreds of random things that people do, in any order; masks follow from what is left."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import tifffile
from desk import TIMEOUT, Desk, blobs
from models import small_model
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QApplication

from napari_sam2.sequence_view import SequenceKey
from napari_sam2.session import Session
from napari_sam2.widgets.object_table import EYE, LOCK, NAME
from sam2_engine.automatic import Rules

ACTIONS = 200  # for each seed
MOST_OBJECTS = 4
ORDERS = ((0, 1, 2), (1, 0, 2), (2, 0, 1))
"""Of the last three axes."""
CONTROL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier
NONE = Qt.KeyboardModifier.NoModifier
ANYTHING_GOES: dict[str, Any] = {
    "pred_iou_thresh": -9.0,
    "stability_score_thresh": 0.0,
    "max_area": 1.0,
    "box_nms_thresh": 1.0,
    "max_covered": 1.0,
}
"""What a model of random weights finds must not be judged."""
KEYS = [
    *((key, NONE) for key in "IEBDLPNOYKTRQGUSA12"),
    *((key, modifiers) for key in "Z" * 3 for modifiers in (CONTROL, CONTROL | SHIFT)),
    ("O", SHIFT),
    ("T", SHIFT),
    (Qt.Key.Key_Delete, NONE),
    (Qt.Key.Key_Left, NONE),
    (Qt.Key.Key_Right, NONE),
]
"""Those of the widget, and napari's own that select, delete, erase, paint and move the slider."""


class Hands:
    """Does one thing after the other, without waiting for the answer."""

    def __init__(self, desk: Desk, seed: int, folder) -> None:
        self.d = desk
        self.shape = desk.image.data.shape
        self.rng = np.random.default_rng(seed)
        self.file = folder / "soak.sam2"
        self.theirs = folder / "theirs.tif"
        tifffile.imwrite(self.theirs, (blobs() > 60).astype(np.uint8) + (blobs() > 170))
        self.mishaps: list[str] = []
        self.found = 0
        """How often objects were found and added."""
        fail = desk.panel.fail

        def listen(text: str) -> None:
            if "went wrong" in text:
                self.mishaps.append(text)
            fail(text)

        desk.panel.fail = listen

    def anything(self) -> str:
        """One of the methods below that begin with do_, the likelier ones more often."""
        often = ["do_click"] * 6 + ["do_key"] * 6 + ["do_shape"] * 2 + ["do_paint"] * 2
        often += ["do_propagate"] * 3 + ["do_undo"] * 2 + ["do_slice"] * 2
        names = [name for name in dir(self) if name.startswith("do_")] + often
        name = str(self.rng.choice(names))
        getattr(self, name)()
        QApplication.processEvents()
        return name

    # -- places --------------------------------------------------------------------------------

    def on_a_slice(self) -> None:
        """Go there by a click on the strip of slices."""
        if self.d.viewer.dims.ndisplay == 3:
            self.d.viewer.dims.ndisplay = 2
        strip = self.d.panel.strip
        at = QPoint(int(self.rng.random() * strip.width()), strip.height() // 2)
        self.d.qtbot.mouseClick(strip, Qt.MouseButton.LeftButton, pos=at)

    def spot(self) -> tuple[float, float]:
        """y, x on the slice that is shown."""
        shape = self.d.session.view.frame_shape
        return tuple(float(self.rng.uniform(1, size - 2)) for size in shape)

    def press(self, *buttons) -> None:
        """Press one of these buttons, if it can be pressed."""
        self.d.press(buttons[self.rng.integers(len(buttons))])

    def mark(self, *modes: str) -> None:
        """Press the button of one of these modes, unless it is pressed already."""
        button = self.d.panel.modes[str(self.rng.choice(modes))]
        if not button.isChecked():
            self.d.press(button)

    def click_cell(self, column: int) -> None:
        """Click on a row of the table of objects, in this column."""
        table = self.d.panel.objects
        item = table.item(int(self.rng.integers(table.rowCount())), column)
        at = table.visualItemRect(item).center()
        self.d.qtbot.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, pos=at)

    # -- what people do ------------------------------------------------------------------------

    def do_click(self) -> None:
        self.on_a_slice()
        self.mark("include", "include", "exclude")
        self.d.click(self.spot(), modifiers=SHIFT if self.rng.random() < 0.2 else NONE)

    def do_shape(self) -> None:
        self.on_a_slice()
        self.mark("scribble", "lasso")
        (y0, x0), (y1, x1) = self.spot(), self.spot()
        self.d.draw((y0, x0), (y0, (x0 + x1) / 2), (y0, x1), (y1, x1), (y1, x0 + 1))

    def do_box(self) -> None:
        self.on_a_slice()
        self.mark("box")
        self.d.drag(self.spot(), self.spot())

    def do_key(self) -> None:
        key, modifiers = KEYS[self.rng.integers(len(KEYS))]
        if key != "N" or len(self.d.session.objects) < MOST_OBJECTS:
            self.d.key(key, modifiers)

    def do_slice(self) -> None:
        self.on_a_slice()

    def do_drag_marks(self) -> None:
        """Select all marks of the slice by keys, and drag them away together."""
        layer = self.d.widget.points_layer
        if layer is None or not len(layer.data) or self.d.viewer.dims.ndisplay == 3:
            return
        self.d.viewer.layers.selection.active = layer
        self.d.key("S")
        self.d.key("A")
        if layer.selected_data:
            axes = list(self.d.viewer.dims.displayed)
            start = layer.data[min(layer.selected_data)][axes]
            self.d.drag(start, self.spot())

    def do_move(self) -> None:
        layer = self.d.widget.points_layer
        if layer is not None and len(layer.data):
            data = np.array(layer.data)
            data[self.rng.integers(len(data))] = [self.rng.uniform(0, n - 1) for n in self.shape]
            layer.data = data

    def do_delete_marks(self) -> None:
        for layer in (self.d.widget.points_layer, self.d.widget.shapes_layer):
            if layer is not None and len(layer.data):
                layer.selected_data = {int(self.rng.integers(len(layer.data)))}
                layer.remove_selected()

    def do_paint(self) -> None:
        self.on_a_slice()
        self.mark("paint")
        self.d.key(str(self.rng.choice(["1", "2", "2"])))  # erase, paint
        layer = self.d.widget.labels_layer
        layer.brush_size = int(self.rng.integers(2, 9))
        self.d.draw(self.spot(), self.spot())

    def do_propagate(self) -> None:
        panel = self.d.panel
        panel.reach.setCurrentIndex(int(self.rng.integers(panel.reach.count())))
        panel.which.setCurrentIndex(int(self.rng.integers(2)))
        self.press(panel.propagate)

    def do_update(self) -> None:
        self.press(self.d.panel.update_masks)

    def do_stop(self) -> None:
        self.press(self.d.panel.stop)

    def do_undo(self) -> None:
        self.press(self.d.panel.undo, self.d.panel.redo)

    def do_new(self) -> None:
        if len(self.d.session.objects) < MOST_OBJECTS:
            self.press(self.d.panel.new)

    def do_choose_object(self) -> None:
        self.click_cell(NAME)

    def do_delete_object(self) -> None:
        if self.rng.random() < 0.3:
            self.press(self.d.panel.delete)

    def do_merge(self) -> None:
        if self.rng.random() < 0.3:
            self.d.panel.objects.selectAll()
            self.press(self.d.panel.merge)

    def do_find_all(self) -> None:
        """Look for objects on a slice, and add what is there by then."""
        finder = self.d.widget.finder
        if len(self.d.session.objects) < MOST_OBJECTS:
            self.on_a_slice()
            self.press(self.d.panel.find_all)
            finder.seeds.setCurrentIndex(finder.seeds.findData("classical"))
            self.press(finder.find_button)
            if self.rng.random() < 0.8:
                self.d.qtbot.waitUntil(lambda: not finder.is_busy, timeout=TIMEOUT)
            else:
                self.press(finder.stop_button)
        before = len(self.d.session.objects)
        self.press(finder.add_button)
        self.found += len(self.d.session.objects) > before

    def do_find_throughout(self) -> None:
        """Look for objects on all slices, and stop that or not."""
        finder = self.d.widget.finder
        if len(self.d.session.objects) < MOST_OBJECTS and self.rng.random() < 0.3:
            self.press(self.d.panel.find_all)
            finder.seeds.setCurrentIndex(finder.seeds.findData("classical"))
            self.press(finder.whole_button)
            if self.rng.random() < 0.5:
                self.press(finder.stop_button)

    def do_tracks(self) -> None:
        """Change tracks by hand, or judge a division that is proposed."""
        window = self.d.widget.tracks
        if not window.isVisible():
            self.press(self.d.panel.tracks)
        self.select_some()
        by_hand = [window.link, window.unlink, window.join]
        if len(self.d.session.objects) < MOST_OBJECTS:
            by_hand += [window.cut, window.divide]
        self.press(*by_hand, window.next, window.accept, window.reject)

    def do_show_tracks(self) -> None:
        self.d.widget.tracks.show_layer.click()

    def select_some(self) -> None:
        """Select two rows of the table of objects, if there are two."""
        self.on_a_slice()
        table = self.d.panel.objects
        for held in (NONE, CONTROL):
            item = table.item(int(self.rng.integers(table.rowCount())), NAME)
            at = table.visualItemRect(item).center()
            self.d.qtbot.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, held, at)

    def do_keep(self) -> None:
        self.on_a_slice()
        self.press(self.d.panel.approve, self.d.panel.lock, self.d.panel.unpaint)

    def do_end(self) -> None:
        self.on_a_slice()
        self.press(self.d.panel.begins, self.d.panel.ends)

    def do_reject(self) -> None:
        self.on_a_slice()
        self.press(self.d.panel.reject)

    def do_review(self) -> None:
        """Go to a doubtful slice by the button, or to any by a click on the map of doubt."""
        if self.rng.random() < 0.5:
            self.press(self.d.panel.next_doubtful)
            return
        shown = self.d.panel.doubts
        at = QPoint(int(self.rng.integers(shown.width())), int(self.rng.integers(shown.height())))
        self.d.qtbot.mouseClick(shown, Qt.MouseButton.LeftButton, pos=at)

    def do_check_both_sides(self) -> None:
        self.d.widget.check_both_sides()

    def do_second_reader(self) -> None:
        """Compare with masks of somebody else, and settle a difference."""
        window = self.d.widget.second_reader
        if window.reading is None:
            self.d.widget.compare(self.theirs)
            self.d.settle()
        self.select_some()
        self.press(window.next_button, window.next_button, window.mine_button)
        self.press(window.theirs_button, window.theirs_button, window.all_button)
        if window.table.rowCount() and len(self.d.session.objects) < MOST_OBJECTS:
            window.table.selectRow(window.table.rowCount() - 1)
            self.press(window.add_button)

    def do_lock_object(self) -> None:
        self.click_cell(LOCK)

    def do_hide(self) -> None:
        self.click_cell(EYE)

    def do_colour(self) -> None:
        colour = tuple(self.rng.random(3).tolist())
        self.d.session.edit_object(self.d.panel.object_id, colour=colour)

    def do_closely(self) -> None:
        self.d.panel.closely.click()

    def do_by_itself(self) -> None:
        self.d.panel.closely_by_itself.click()

    def do_update_by_itself(self) -> None:
        self.d.panel.update_by_itself.click()

    def do_overwrite(self) -> None:
        self.d.panel.overwrite.click()

    def do_switch_layer(self) -> None:
        layers = self.d.viewer.layers
        layers.selection.active = layers[int(self.rng.integers(len(layers)))]

    def do_change_axis(self) -> None:
        order, first = ORDERS[int(self.rng.integers(len(ORDERS)))], len(self.shape) - 3
        self.d.viewer.dims.order = (*range(first), *(first + axis for axis in order))
        self.d.viewer.reset_view()

    def do_slider(self) -> None:
        """Move one of the viewer's own."""
        axis = int(self.rng.choice(self.d.viewer.dims.not_displayed or [0]))
        self.d.viewer.dims.set_current_step(axis, int(self.rng.integers(self.shape[axis])))

    def do_show_3d(self) -> None:
        self.d.viewer.dims.ndisplay = 3
        self.d.widget.start("include")

    def do_remove_layer(self) -> None:
        tracks = self.d.widget.tracks.layer.layer
        for layer in (self.d.widget.points_layer, self.d.widget.labels_layer, tracks):
            if layer is not None and self.rng.random() < 0.3:
                self.d.viewer.layers.remove(layer)

    def do_contrast(self) -> None:
        self.d.image.contrast_limits = (0, float(self.rng.integers(150, 350)))

    def do_save(self) -> None:
        self.d.widget.save_session(self.file)

    def do_reload(self) -> None:
        if self.file.exists() and self.rng.random() < 0.5:
            self.d.widget.open_session(self.file)

    def do_wait(self) -> None:
        self.d.qtbot.wait(int(self.rng.integers(20, 150)))


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "positions"), [(5, 0), (44, 2)])
def test_random_work_ends_with_the_masks_of_a_fresh_replay(
    desk, tmp_path, seed, positions, monkeypatch
):
    monkeypatch.setattr("sam2_engine.automatic.Rules", partial(Rules, **ANYTHING_GOES))
    image = np.stack([blobs(), blobs()[::-1]]) if positions else blobs()
    d = desk(data=image, contrast_limits=(0, 250))
    hands = Hands(d, seed, tmp_path)
    done = []
    for _ in range(ACTIONS):
        done.append(hands.anything())
        if len(done) % 50 == 0:
            d.settle()
    d.panel.update_by_itself.setChecked(False)
    d.qtbot.wait(600)  # the contrast limits settle
    d.settle()
    d.qtbot.waitUntil(lambda: not d.widget.is_busy, timeout=TIMEOUT)
    assert hands.mishaps == [], done
    assert hands.found, "no object was found and added"
    assert d.session.prompted_sequences

    d.viewer.dims.ndisplay = 2
    d.panel.reach.setCurrentIndex(d.panel.reach.findData("both"))
    d.panel.which.setCurrentIndex(d.panel.which.findData("all"))
    visited: set[SequenceKey] = set()
    while keys := {view.key for view in d.session.prompted_sequences} - visited:
        key = min(keys, key=repr)
        visited.add(key)
        fixed = {axis: at for axis, at in enumerate(key.position) if at is not None}
        others = [a for a in range(image.ndim) if a != key.axis and a not in fixed]
        d.viewer.dims.order = (key.axis, *fixed, *others)
        for axis, at in fixed.items():
            d.viewer.dims.set_current_step(axis, at)
        assert d.session.view.key == key
        d.widget.propagate()
        d.settle()

    # The layers show what the session knows.
    session = d.session
    d.widget.start("include")
    clicks = {  # one of a 4-D image may lie in two planes along an axis
        (object_id, *at)
        for view in session.prompted_sequences
        for object_id, frames in session.prompts_of(view.key).items()
        for frame, said in frames.items()
        for at in np.rint(view.join(frame, said.points)).tolist()
    }
    assert len(d.widget.points_layer.data) >= len(clicks)
    assert d.widget.labels_layer.data is session.labels

    fresh = Session(image, small_model())
    fresh.restore(session.snapshot(), trust=False)
    for view in session.prompted_sequences:
        fresh.show(view.key)
        try:
            fresh.propagate()
        except ValueError as error:  # all objects of this sequence are locked
            assert "prompt" in str(error)
    np.testing.assert_array_equal(fresh.labels, session.labels)
