"""Looking for doubtful slices, rejecting masks and taking out what is approved, in a viewer."""

from __future__ import annotations

import numpy as np
from desk import SHAPE, TIMEOUT, blobs
from models import small_model
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QImage, QMouseEvent
from qtpy.QtWidgets import QApplication, QToolTip

from napari_sam2.io.files import read_volume
from napari_sam2.io.writers import write_nifti
from napari_sam2.review import by_doubt, doubts, evidence_of
from napari_sam2.session import Session
from napari_sam2.slice_data import CoarseLogits, ObjectMask
from napari_sam2.widgets.doubt_map import DoubtMap, reasons
from napari_sam2.widgets.object_table import NAME
from napari_sam2.widgets.slice_strip import MASK, REJECTED

CONTROL = Qt.KeyboardModifier.ControlModifier


def follow_two(d):
    """Two objects, marked on slice 2 and followed through all."""
    for at in ((16, 20), (32, 44)):
        if d.widget.points_layer is not None:
            d.press(d.panel.new)
        d.go_to(2)
        if not d.panel.modes["include"].isChecked():
            d.press(d.panel.modes["include"])
        d.click(at)
        d.settle()
    d.press(d.panel.propagate)
    d.settle()
    d.qtbot.waitUntil(lambda: d.panel.doubts.doubt.shape == (2, SHAPE[0]), timeout=TIMEOUT)
    d.qtbot.waitUntil(lambda: shows_all(d), timeout=TIMEOUT)


def shows_all(d):
    return np.array_equal(d.panel.doubts.doubt, list(doubts(d.session).values()))


def shown_place(d):
    return d.panel.object_id, d.viewer.dims.current_step[0]


def in_map(d, object_id, frame):
    """Where an object's slice is in the map of two objects."""
    size, row = d.panel.doubts, list(d.session.objects).index(object_id)
    return QPoint(
        int((frame + 0.5) / SHAPE[0] * size.width()), int((row + 0.5) / 2 * size.height())
    )


def test_doubts_of_many_objects_are_found_a_few_at_a_time(desk, monkeypatch):
    d = desk()
    d.qtbot.waitUntil(lambda: shows_all(d), timeout=TIMEOUT)
    monkeypatch.setattr("napari_sam2.widgets.display._DOUBTS_SECONDS", 0)  # one in a call
    follow = [d.session.add_object() for _ in range(4)]
    for object_id in follow:
        d.session.paint(object_id, 2, np.eye(*SHAPE[1:]))
    sizes = set()

    def is_done():
        sizes.add(len(d.panel.doubts.doubt))
        return len(d.panel.doubts.doubt) == 5 and shows_all(d)

    d.qtbot.waitUntil(is_done, timeout=TIMEOUT)
    assert {2, 3, 4} <= sizes
    d.session.remove_object(follow[1])
    d.qtbot.waitUntil(lambda: shows_all(d), timeout=TIMEOUT)


def test_a_click_on_the_map_of_doubt_goes_to_object_and_slice(desk):
    d = desk()
    assert d.panel.doubts.doubt.size == 0 or not d.panel.doubts.doubt.any()
    follow_two(d)
    for place in ((1, 5), (2, 0), (2, 6)):
        at = in_map(d, *place)
        d.qtbot.mouseClick(d.panel.doubts, Qt.MouseButton.LeftButton, pos=at)
        assert shown_place(d) == place

    at, none = in_map(d, 1, 5), Qt.MouseButton.NoButton
    where = QPointF(at), QPointF(d.panel.doubts.mapToGlobal(at))
    move = QMouseEvent(QEvent.Type.MouseMove, *where, none, none, Qt.KeyboardModifier.NoModifier)
    QApplication.sendEvent(d.panel.doubts, move)
    doubt = doubts(d.session)[1][5]
    assert QToolTip.text().startswith(f"Object 1, slice 5: doubt {doubt:.2f}")

    d.panel.object_id = 1
    d.go_to(5)
    d.press(d.panel.approve)
    d.qtbot.waitUntil(lambda: shows_all(d), timeout=TIMEOUT)
    assert d.panel.doubts.doubt[0, 5] == 0


def test_the_map_shows_the_worst_of_what_shares_a_pixel(qtbot):
    shown = DoubtMap()
    qtbot.addWidget(shown)
    shown.resize(50, 30)

    class Known:
        def __init__(self, doubt):
            self.doubt = doubt

    doubt = np.zeros((200, 1000))
    doubt[101, 333] = 1.0
    shown.show_evidence({i: Known(row) for i, row in enumerate(doubt, 1)}, {})
    image = shown.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
    ratio = shown.devicePixelRatioF()
    red = [
        (x, y)
        for y in range(int(30 * ratio))
        for x in range(int(50 * ratio))
        if (c := image.pixelColor(x, y)).red() > 180 and c.green() < 60
    ]
    assert red, "one slice of 200000 is seen"
    x, y = np.mean(red, axis=0) / ratio
    assert abs(x - 333 / 1000 * 50) < 2
    assert abs(y - 101 / 200 * 30) < 2
    assert shown.place_at(49.99, 29.99) == (200, 999)
    assert shown.place_at(0, 0) == (1, 0)


def test_a_slice_that_was_followed_past_an_unsteady_one_says_so():
    def mask(sure):
        coarse = np.where(np.arange(100) < sure, 20, 0).astype(np.int8)[None]
        return ObjectMask(0, 0, np.ones((9, 9), np.float16), CoarseLogits(256, 0, 0, coarse), 0.8)

    masks = {frame: mask(60 if frame == 2 else 90) for frame in range(5)}
    known = evidence_of(masks, {0: "prompted"}, 5, {}, masks, {})
    assert ["less sure on the way" in reasons(known, frame) for frame in range(5)] == [
        False, False, False, True, True,
    ]  # fmt: skip


def test_a_key_goes_from_one_doubtful_slice_to_the_next(desk):
    d = desk()
    d.key("Q")  # nothing is there yet, and nothing happens
    follow_two(d)
    ranked = by_doubt(d.session)
    assert len(ranked) > 4
    for place in ranked[:2]:
        d.key("Q")
        assert shown_place(d) == place
        assert f"slice {place[1]}: doubt" in d.status
    d.press(d.panel.next_doubtful)
    assert shown_place(d) == ranked[2]
    d.key("Y")  # approved: the others are nearer to what is sure by now
    rest = [place for place in by_doubt(d.session) if place not in ranked[:3]]
    for place in rest:
        d.key("Q")
        assert shown_place(d) == place
    d.key("Q")
    assert "no slice to look at any more" in d.status
    assert shown_place(d) == rest[-1]
    d.key("Q")
    assert shown_place(d) == by_doubt(d.session)[0], "anew"
    d.press(d.panel.update_masks)
    d.settle()
    d.key("Q")
    assert shown_place(d) == by_doubt(d.session)[0], "masks are others, so all are looked at again"


def test_what_was_asked_is_answered(desk):
    d = desk()
    follow_two(d)
    for key, word in (("Y", "approved"), ("K", "locked")):
        d.key("Q")
        object_id, frame = shown_place(d)
        question = d.status
        assert "Approve it (Y)" in question
        d.key(key)
        assert (
            d.status == f"Object {object_id} is {word} on slice {frame}. Next doubtful slice (Q)."
        )
        d.key(key)  # taken back
        assert d.status == question
        d.key(key)
    d.key("Q")
    object_id, frame = shown_place(d)
    question = d.status
    d.go_to(frame - 1 if frame else 1)
    d.key("Y")  # another slice
    assert d.status == question
    d.session.remove_object(object_id)
    d.widget.undo()
    d.session.remove_object(object_id)
    d.key("Q")
    assert d.session.objects.keys() == {1, 2} - {object_id}


def test_a_new_object_begins_with_what_lies_on_it(desk):
    d = desk()
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    d.key("E")
    d.key("N")
    assert d.panel.modes["include"].isChecked() and not d.panel.modes["exclude"].isChecked()
    assert d.status == "Click on Object 2, on any slice."
    d.click((32, 44))
    d.settle()
    (said,) = d.session.prompts[2].values()
    assert said.usable
    d.key("E")  # of an object that has marks
    d.panel.object_id = 1
    assert d.panel.modes["exclude"].isChecked()
    d.key("B")
    d.key("N")
    assert d.panel.modes["box"].isChecked()


def test_a_rejected_slice_is_cleared_and_found_again(desk):
    d = desk()
    follow_two(d)
    d.panel.object_id = 1
    d.go_to(5)
    before = d.labels.copy()
    assert (before[5] == 1).any()
    d.key("R")
    assert not (d.labels[5] == 1).any()
    assert "rejected" in d.status
    flags = d.panel.strip.states.flags
    assert flags[5] & REJECTED
    assert not flags[5] & MASK
    assert d.session.kept(1) == {4: "locked", 6: "locked"}
    item = d.panel.objects.item(0, NAME)
    assert "2 locked" in item.toolTip()
    assert "1 rejected" in item.toolTip()

    d.key("Z", CONTROL)
    np.testing.assert_array_equal(d.labels, before)
    assert "rejected" not in d.panel.objects.item(0, NAME).toolTip()
    d.press(d.panel.reject)
    d.key("U")
    d.settle()
    assert not d.panel.strip.states.flags[5] & REJECTED
    fresh = Session(blobs(), small_model())
    fresh.restore(d.session.snapshot(), trust=False)
    fresh.propagate()
    np.testing.assert_array_equal(fresh.labels, d.labels)

    d.go_to(4)
    d.key("K")  # unlock
    d.key("Y")
    d.key("R")
    assert "is approved on slice 4" in d.status
    assert d.session.states(1)[4] == "approved"


def test_a_rejected_slice_loses_its_marks_in_the_layer_and_gets_them_back(desk):
    d = desk()
    follow_two(d)
    d.panel.object_id = 1
    d.go_to(2)
    assert len(d.widget.points_layer.data) == 2
    d.key("R")
    assert len(d.widget.points_layer.data) == 1
    d.key("Z", CONTROL)
    assert len(d.widget.points_layer.data) == 2


def test_approved_masks_become_a_layer_that_can_be_saved(desk, tmp_path):
    d = desk(scale=(3, 1, 1))
    follow_two(d)
    entry = next(a for a in d.panel.session_menu.actions() if "Approved" in a.text())
    entry.trigger()
    assert "No mask is approved yet" in d.status
    d.session.edit_object(1, name="nucleus")
    d.panel.object_id = 1
    for frame in (3, 4):
        d.go_to(frame)
        d.key("Y")
    active, count = d.viewer.layers.selection.active, len(d.viewer.layers)
    entry.trigger()
    assert len(d.viewer.layers) == count + 1
    assert d.viewer.layers.selection.active is active
    layer = d.viewer.layers["scan approved"]
    np.testing.assert_array_equal(layer.data, d.session.approved_labels())
    np.testing.assert_array_equal(np.flatnonzero(layer.data.any(axis=(1, 2))), [3, 4])
    np.testing.assert_allclose(layer.scale, d.image.scale)
    data, meta, _ = layer.as_layer_data_tuple()
    (path,) = write_nifti(str(tmp_path / "approved.nii.gz"), data, meta)
    saved = read_volume(path)
    np.testing.assert_array_equal(saved.array, layer.data)


def test_time_counts_for_the_object_that_was_selected_but_not_breaks(desk, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("napari_sam2.widgets.effort.monotonic", lambda: now[0])
    d = desk()
    d.panel.object_id = 1
    d.go_to(2)
    before = dict(d.session.seconds)
    now[0] += 40
    d.go_to(3)
    now[0] += 500  # a break
    d.go_to(4)
    now[0] += 50
    d.press(d.panel.new)
    now[0] += 30  # on the new object
    d.go_to(1)
    spent = {i: s - before.get(i, 0) for i, s in d.session.seconds.items()}
    assert spent == {1: 90, 2: 30}
    d.qtbot.waitUntil(
        lambda: "Your time: 1 min 30 s." in d.panel.objects.item(0, NAME).toolTip(), timeout=TIMEOUT
    )


def test_masks_between_marks_are_checked_from_both_sides(desk):
    d = desk()
    follow_two(d)
    check = next(
        one for one in d.panel.session_menu.actions() if one.text() == "Check from both sides"
    )
    check.trigger()
    assert "mark it on two slices" in d.panel.status.text()

    d.panel.object_id = 1
    d.go_to(6)
    d.click((20, 24))
    d.settle()
    d.press(d.panel.propagate)
    d.settle()
    before = d.session.labels.copy()
    check.trigger()
    d.settle()
    assert sorted(d.session.other_sides(1)) == [3, 4, 5]
    np.testing.assert_array_equal(d.session.labels, before)
    assert d.panel.status.text().startswith("Compared from both sides: on ")
    assert "of 3 slices" in d.panel.status.text()
    d.qtbot.waitUntil(lambda: shows_all(d), timeout=TIMEOUT)
    check.trigger()
    assert "compared already" in d.panel.status.text()
