"""Hundreds of random things that people do, in any order; masks follow from what is left."""

from __future__ import annotations

import numpy as np
import pytest
from desk import SHAPE, Desk, blobs
from models import small_model
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from napari_sam2.session import Session

ACTIONS = 300
ORDERS = ((0, 1, 2), (1, 0, 2), (2, 0, 1))
CONTROL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier


class Hands:
    """Does one thing after the other, without waiting for the answer."""

    def __init__(self, desk: Desk, seed: int, folder) -> None:
        self.d = desk
        self.rng = np.random.default_rng(seed)
        self.file = folder / "soak.sam2"
        self.mishaps: list[str] = []
        fail = desk.panel.fail

        def listen(text: str) -> None:
            if "went wrong" in text:
                self.mishaps.append(text)
            fail(text)

        desk.panel.fail = listen

    def anything(self) -> str:
        """One of the methods below that begin with do_, the likelier ones more often."""
        often = ["do_click"] * 8 + ["do_paint"] * 3 + ["do_propagate"] * 4 + ["do_undo"] * 4
        names = [name for name in dir(self) if name.startswith("do_")] + often
        name = str(self.rng.choice(names))
        getattr(self, name)()
        QApplication.processEvents()
        return name

    # -- places --------------------------------------------------------------------------------

    def on_a_slice(self) -> bool:
        d = self.d
        if d.viewer.dims.ndisplay == 3:
            d.viewer.dims.ndisplay = 2
        axis = d.session.view.key.axis
        d.go_to(int(self.rng.integers(SHAPE[axis])), axis)
        return True

    def spot(self) -> tuple[float, float]:
        """y, x on the slice that is shown."""
        shape = self.d.session.view.frame_shape
        return tuple(float(self.rng.uniform(1, size - 2)) for size in shape)

    # -- what people do ------------------------------------------------------------------------

    def do_click(self) -> None:
        self.on_a_slice()
        self.d.widget.start(str(self.rng.choice(["include", "include", "exclude"])))
        shift = self.rng.random() < 0.2
        self.d.click(self.spot(), modifiers=SHIFT if shift else Qt.KeyboardModifier.NoModifier)

    def do_shape(self) -> None:
        self.on_a_slice()
        self.d.widget.start(str(self.rng.choice(["box", "scribble", "lasso"])))
        (y0, x0), (y1, x1) = self.spot(), self.spot()
        self.d.draw((y0, x0), (y0, (x0 + x1) / 2), (y0, x1), (y1, x1), (y1, x0 + 1))

    def do_move(self) -> None:
        layer = self.d.widget.points_layer
        if layer is not None and len(layer.data):
            data = np.array(layer.data)
            data[self.rng.integers(len(data))] = [self.rng.uniform(0, n - 1) for n in SHAPE]
            layer.data = data

    def do_delete_marks(self) -> None:
        for layer in (self.d.widget.points_layer, self.d.widget.shapes_layer):
            if layer is not None and len(layer.data):
                layer.selected_data = {int(self.rng.integers(len(layer.data)))}
                layer.remove_selected()

    def do_paint(self) -> None:
        self.on_a_slice()
        self.d.widget.start("paint")
        layer = self.d.widget.labels_layer
        layer.mode = str(self.rng.choice(["paint", "paint", "erase"]))
        layer.brush_size = int(self.rng.integers(2, 9))
        self.d.draw(self.spot(), self.spot())

    def do_propagate(self) -> None:
        panel = self.d.panel
        panel.reach.setCurrentIndex(int(self.rng.integers(panel.reach.count())))
        panel.which.setCurrentIndex(int(self.rng.integers(2)))
        self.d.widget.propagate()

    def do_update(self) -> None:
        self.d.widget.update_masks()

    def do_stop(self) -> None:
        self.d.widget.stop()

    def do_undo(self) -> None:
        self.d.widget.undo()

    def do_redo(self) -> None:
        self.d.widget.redo()

    def do_new(self) -> None:
        if len(self.d.session.objects) < 4:
            self.d.widget.new_object()

    def do_next(self) -> None:
        self.d.widget.next_object()

    def do_delete_object(self) -> None:
        if self.rng.random() < 0.3:
            self.d.widget.delete_objects()

    def do_merge(self) -> None:
        if self.rng.random() < 0.3:
            self.d.panel.objects.selectAll()
            self.d.widget.merge_objects()

    def do_keep(self) -> None:
        self.on_a_slice()
        self.d.widget.keep_slice(str(self.rng.choice(["approved", "locked"])))

    def do_lock_object(self) -> None:
        object_id = self.d.panel.object_id
        locked = self.d.session.objects[object_id].locked
        self.d.panel.objects.lock_asked.emit(object_id, not locked)

    def do_hide(self) -> None:
        object_id = self.d.panel.object_id
        hidden = self.d.session.objects[object_id].hidden
        self.d.panel.objects.hide_asked.emit(object_id, not hidden)

    def do_switch_layer(self) -> None:
        layers = self.d.viewer.layers
        layers.selection.active = layers[int(self.rng.integers(len(layers)))]

    def do_change_axis(self) -> None:
        self.d.viewer.dims.order = ORDERS[int(self.rng.integers(len(ORDERS)))]
        self.d.viewer.reset_view()

    def do_show_3d(self) -> None:
        self.d.viewer.dims.ndisplay = 3
        self.d.widget.start("include")

    def do_remove_layer(self) -> None:
        for layer in (self.d.widget.points_layer, self.d.widget.labels_layer):
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
@pytest.mark.parametrize("seed", [1, 2])
def test_random_work_ends_with_the_masks_of_a_fresh_replay(desk, tmp_path, seed):
    d = desk(contrast_limits=(0, 250))
    hands = Hands(d, seed, tmp_path)
    done = []
    for _ in range(ACTIONS // 2):
        done.append(hands.anything())
        if len(done) % 50 == 0:
            d.settle()
    d.qtbot.wait(600)  # the contrast limits settle
    d.settle()
    assert hands.mishaps == [], done
    assert d.session.prompted_sequences

    d.viewer.dims.ndisplay = 2
    d.panel.reach.setCurrentIndex(d.panel.reach.findData("both"))
    d.panel.which.setCurrentIndex(d.panel.which.findData("all"))
    for order in ORDERS:
        d.viewer.dims.order = order
        d.widget.propagate()
        d.settle()

    # The layers show what the session knows.
    session = d.session
    d.widget.start("include")
    clicks = sum(
        len(said.points)
        for view in session.prompted_sequences
        for frames in session.prompts_of(view.key).values()
        for said in frames.values()
    )
    assert len(d.widget.points_layer.data) >= clicks
    assert d.widget.labels_layer.data is session.labels

    fresh = Session(blobs(), small_model())
    fresh.restore(session.snapshot(), trust=False)
    for view in session.prompted_sequences:
        fresh.show(view.key)
        try:
            fresh.propagate()
        except ValueError as error:  # all objects of this sequence are locked
            assert "prompt" in str(error)
    np.testing.assert_array_equal(fresh.labels, session.labels)
