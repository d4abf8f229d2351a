"""Comparing with another person's masks, in a viewer."""

from __future__ import annotations

import time

import numpy as np
import pytest
from desk import SHAPE, TIMEOUT
from qtpy.QtCore import QPoint, Qt

from napari_sam2.second_reader import ONLY_MINE, ONLY_THEIRS
from napari_sam2.session import Session
from napari_sam2.session_file import save_session


def square(left: int) -> np.ndarray:
    mask = np.zeros(SHAPE[1:], bool)
    mask[10:20, left : left + 10] = True
    return mask


@pytest.fixture
def table(desk, tmp_path):
    """A desk with one object on slices 1 to 4; theirs is shifted on slices 2 and 3, and they have
    another one."""
    d = desk()
    own = d.session.untouched_objects[0]
    for frame in range(1, 5):
        d.session.paint(own, frame, square(10))
    theirs = Session(d.image)
    for number, frames in ((3, {1: 10, 2: 15, 3: 17, 4: 10}), (5, {6: 40})):
        theirs.add_object("cyst" if number == 5 else "", number)
        for frame, left in frames.items():
            theirs.paint(number, frame, square(left))
    path = tmp_path / "theirs.sam2session"
    save_session(theirs, path)
    d.widget.compare(path)
    d.settle()
    d.window = d.widget.second_reader
    d.qtbot.waitUntil(lambda: d.window.reading is not None, timeout=TIMEOUT)
    yield d
    d.window.close()


def texts(window):
    columns = range(window.table.columnCount())
    rows = range(window.table.rowCount())
    return [[window.table.item(row, column).text() for column in columns] for row in rows]


def test_the_window_lists_objects_and_shows_their_masks(table):
    d = table
    assert texts(d.window) == [
        ["Object 1", "Object 3", "0.700", "2"],
        ["–", "cyst", "–", ""],
    ]
    assert d.window.status.text().startswith("1 object is compared; 0 only you have, 1 only they.")
    assert d.window.theirs in d.viewer.layers and not d.window.theirs.editable
    shown = d.window.differences.data
    assert (shown[2] == ONLY_MINE).sum() == 50 and (shown[2] == ONLY_THEIRS).sum() == 50
    assert (shown[3] == ONLY_MINE).sum() == 70
    for _ in range(20):
        d.widget.new_object()
    rows = d.window.table
    d.window.present()

    def is_seen():
        last = rows.item(20, 0)
        if last is None or not last.isSelected():
            return False
        return rows.viewport().rect().contains(rows.visualItemRect(last))

    d.qtbot.waitUntil(is_seen, timeout=TIMEOUT)


def test_differences_are_settled_one_by_one(table):
    d = table
    d.press(d.window.next_button)
    assert d.viewer.dims.current_step[0] == 3  # the larger one
    d.press(d.window.theirs_button)
    np.testing.assert_array_equal(d.labels[3] == 1, square(17))
    assert "Object 1, slice 3: settled" in d.window.status.text()
    d.press(d.window.next_button)
    assert d.viewer.dims.current_step[0] == 2
    assert "slice 2: whose mask is right?" in d.window.status.text()
    d.press(d.window.mine_button)
    assert d.session.kept(1) == {2: "approved", 3: "approved"}
    np.testing.assert_array_equal(d.labels[2] == 1, square(10))
    assert texts(d.window)[0][3] == "0"
    d.press(d.window.next_button)
    assert "settled" in d.window.status.text()
    d.qtbot.waitUntil(lambda: not (d.window.differences.data[3] > 0).any(), timeout=TIMEOUT)

    d.press(d.panel.undo)
    d.press(d.panel.undo)
    np.testing.assert_array_equal(d.labels[3] == 1, square(10))
    d.qtbot.waitUntil(lambda: texts(d.window)[0][3] == "2", timeout=TIMEOUT)
    assert "not settled any more" in d.window.status.text()
    d.press(d.window.all_button)
    assert "Object 1: settled" in d.window.status.text()
    d.go_to(0)
    d.press(d.panel.undo)
    d.qtbot.waitUntil(lambda: "not settled any more" in d.window.status.text(), timeout=TIMEOUT)


def test_an_object_of_theirs_is_added(table):
    d = table
    assert not d.window.add_button.isEnabled()
    d.window.table.selectRow(1)
    assert d.window.strip.differing.tolist() == [0, 0, 0, 0, 0, 0, 100]  # where it lies
    for button in (d.window.mine_button, d.window.theirs_button, d.window.all_button):
        assert not button.isEnabled()  # there is no object of mine in that row
    d.press(d.window.add_button)
    assert d.session.objects[2].name == "cyst" and "cyst is yours" in d.window.status.text()
    np.testing.assert_array_equal(d.labels[6] == 2, square(40))
    d.qtbot.waitUntil(lambda: texts(d.window)[1][:3] == ["cyst", "cyst", "1.000"], timeout=TIMEOUT)
    red = (1.0, 0.0, 0.0)
    d.session.edit_object(2, colour=red)  # theirs is outlined in the colour of mine
    d.qtbot.waitUntil(lambda: tuple(d.window.theirs.get_color(5)[:3]) == red, timeout=TIMEOUT)


def test_a_click_in_the_strip_goes_to_the_slice(table):
    d = table
    d.panel.object_id = 1
    d.qtbot.waitUntil(
        lambda: d.window.strip.differing.tolist() == [0, 0, 100, 140, 0, 0, 0], timeout=TIMEOUT
    )
    at = QPoint(round(2.5 / SHAPE[0] * d.window.strip.width()), 10)
    d.qtbot.mouseClick(d.window.strip, Qt.MouseButton.LeftButton, pos=at)
    assert d.viewer.dims.current_step[0] == 2
    d.go_to(5)
    assert d.window.strip.current == 5


def test_what_does_not_fit_is_said(table, tmp_path):
    d = table
    compared = texts(d.window)
    other = d.viewer.add_labels(np.zeros((3, 5, 5), int), name="other")
    d.window.compare(other)
    d.settle()
    assert "another shape" in d.window.status.text()
    (tmp_path / "broken.sam2session").write_bytes(b"nothing")
    d.window.compare(tmp_path / "broken.sam2session")
    d.settle()
    d.qtbot.waitUntil(lambda: "broken.sam2session" in d.window.status.text(), timeout=TIMEOUT)
    assert (d.labels[2] == 1).any()
    assert texts(d.window) == compared and d.window.theirs in d.viewer.layers
    d.window.close()
    d.widget.compare()
    assert d.window.source.currentText() == "a file …"  # as it was


def test_another_image_takes_their_layers_away(table):
    d = table
    theirs = d.window.theirs
    second = d.viewer.add_image(np.zeros(SHAPE), name="second")
    d.widget.choose_image(second)
    d.settle()
    d.qtbot.waitUntil(lambda: theirs not in d.viewer.layers, timeout=TIMEOUT)
    assert d.window.reading is None


def test_what_changes_while_masks_are_read_is_seen(table, tmp_path):
    d = table
    d.widget.compare(tmp_path / "theirs.sam2session")
    while not d.widget._runner.worker._outbox:  # it has been read, and is not shown yet
        time.sleep(0.01)
    d.session.paint(1, 0, square(10))
    d.settle()
    d.qtbot.waitUntil(lambda: (d.window.differences.data[0] == ONLY_MINE).any(), timeout=TIMEOUT)
    assert (d.window.differences.data[0] == ONLY_MINE).sum() == 100
