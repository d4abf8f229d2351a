"""The window of tracks in a real viewer: proposals, tracks changed by hand, the layer, the plot."""

from __future__ import annotations

import numpy as np
import pytest
from desk import SHAPE, TIMEOUT
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QFileDialog
from test_lineage import FRAMES, IMAGES, TRUTH

from napari_sam2.io.writers import write_ctc
from napari_sam2.session import Session


@pytest.fixture
def work(desk):
    """A desk on a movie: object 1 has a cell and, from frame 4 on, both of its daughters."""
    d = desk(data=IMAGES, contrast_limits=(0, 200))
    session = d.session
    other = session.add_object()
    with session.history.change("Paint"):
        for t in range(FRAMES):
            session.paint(1, t, np.isin(TRUTH[t], (1, 2, 3)))
            session.paint(other, t, TRUTH[t] == 4)
    d.widget.start("include")
    d.press(d.panel.tracks)
    d.window = d.widget.tracks
    d.settle()
    return d


def shown(d) -> list[int]:
    d.window.show_tracks()
    return [track.object_id for track in d.window.view.tracks]


def test_a_division_is_found_looked_at_and_accepted(work):
    d = work
    assert d.window.isVisible() and shown(d) == [1, 2]
    assert not d.window.accept.isEnabled()
    d.press(d.window.next)
    d.settle()
    assert d.viewer.dims.current_step[0] == 4 and d.panel.object_id == 1
    assert "may divide on slice 4" in d.window.status.text()
    d.press(d.window.accept)
    d.settle()
    assert d.session.parents == {3: 1, 4: 1}
    assert shown(d) == [3, 1, 4, 2]
    assert "Object 1 divides into Object 3 and Object 4" in d.window.status.text()
    assert not d.window.accept.isEnabled()
    labels = d.widget.labels_layer.data
    assert set(np.unique(labels[5])) == {0, 2, 3, 4}
    d.press(d.window.next)
    d.settle()
    assert "not speak for any division" in d.window.status.text()
    d.press(d.panel.undo)
    assert d.session.parents == {} and set(np.unique(d.session.labels[5])) == {0, 1, 2}


def test_what_is_said_of_one_image_does_not_stay_with_another(work):
    d = work
    d.press(d.window.next)
    d.settle()
    assert "may divide on slice 4" in d.window.status.text()
    d.widget.choose_image(d.viewer.add_image(IMAGES, name="other"))
    shown(d)
    assert "Next division goes where" in d.window.status.text()


def test_a_division_is_rejected(work):
    d = work
    d.press(d.window.next)
    d.settle()
    d.press(d.window.reject)
    d.settle()
    assert d.session.no_divisions == {1: frozenset({4})}
    assert "not speak for any division" in d.window.status.text()
    assert not d.window.reject.isEnabled()


def test_tracks_are_changed_by_hand(work):
    d = work
    d.panel.object_id = 1
    d.go_to(4)
    d.press(d.window.divide)  # the pieces of its mask here
    assert d.session.parents == {3: 1, 4: 1}
    d.panel.objects.selectAll()
    d.press(d.window.unlink)
    assert d.session.parents == {}
    select(d, 1, 3)
    d.press(d.window.link)
    assert d.session.parents == {3: 1}
    d.press(d.window.join)
    assert d.session.parents == {} and sorted(d.session.objects) == [1, 2, 4]
    select(d, 2)
    d.go_to(5)
    d.press(d.window.cut)
    new = d.panel.object_id
    assert min(d.session.masks_of(new)) == 5 and max(d.session.masks_of(2)) == 4
    select(d, 2, 4)
    d.press(d.window.join)
    assert "both there on slice 4" in d.window.status.text()
    select(d, 2)
    d.press(d.window.cut)
    assert "can be cut on" in d.window.status.text()
    select(d, 2)
    d.press(d.window.join)
    assert "needs two objects" in d.window.status.text()


def select(d, *ids: int) -> None:
    table = d.panel.objects
    rows = list(d.session.objects)
    table.clearSelection()
    for number, object_id in enumerate(ids):
        item = table.item(rows.index(object_id), 1)
        held = Qt.KeyboardModifier.ControlModifier if number else Qt.KeyboardModifier.NoModifier
        at = table.visualItemRect(item).center()
        d.qtbot.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, held, at)
    assert table.selected == sorted(ids)


def test_a_click_in_the_plot_goes_there(work):
    d = work
    shown(d)
    view = d.window.view
    at = view.position(2, 6).toPoint()
    d.qtbot.mouseClick(view, Qt.MouseButton.LeftButton, pos=at)
    assert d.viewer.dims.current_step[0] == 6 and d.panel.object_id == 2
    assert view.place_at(view.position(1, 3)) == (1, 3)
    d.qtbot.mouseClick(view, Qt.MouseButton.LeftButton, pos=QPoint(5, view.height() - 1))
    assert d.panel.object_id == 2  # nothing lies there
    image = view.grab().toImage()
    colours = {image.pixelColor(x, view.position(2, 0).toPoint().y()).name() for x in range(400)}
    assert len(colours) > 1
    with d.session.history.change("Paint"):
        for column in range(40):
            dot = np.zeros(TRUTH[0].shape, bool)
            dot[0, column] = True
            d.session.paint(d.session.add_object(), 0, dot)
    last = max(d.session.objects)
    d.qtbot.waitUntil(lambda: d.panel.objects.rowCount() == last, timeout=TIMEOUT)
    shown(d)
    for chosen in (last, 1):  # what is chosen elsewhere is scrolled to
        d.panel.object_id = chosen
        d.settle()
        assert view.visibleRegion().contains(view.position(chosen, 0).toPoint())


def test_the_layer_of_tracks_follows_the_masks(work):
    d = work
    active = d.viewer.layers.selection.active
    d.window.show_layer.click()
    layer = d.window.layer.layer
    assert layer in d.viewer.layers and d.viewer.layers.selection.active is active
    assert set(layer.data[:, 0]) == {1, 2} and layer.graph == {}
    d.session.split_object(1, 4)
    d.qtbot.waitUntil(lambda: set(layer.data[:, 0]) == {1, 2, 3, 4}, timeout=TIMEOUT)
    assert layer.graph == {3: [1], 4: [1]} and layer.color_by == "colour"
    ids = layer.data[:, 0]
    for object_id in (1, 2, 3, 4):
        expected = d.widget._context.work.masks.colour_of(object_id)
        np.testing.assert_allclose(layer.track_colors[ids == object_id][0], expected, atol=1e-6)
    d.session.undo()
    d.qtbot.waitUntil(lambda: layer.graph == {}, timeout=TIMEOUT)
    d.image.scale = (1, 2, 3)
    assert tuple(layer.scale) == (1, 2, 3)
    d.session.edit_object(2, colour=(1, 0, 0))
    red = (1, 0, 0, 1)
    d.qtbot.waitUntil(
        lambda: np.allclose(layer.track_colors[layer.data[:, 0] == 2][0], red), timeout=TIMEOUT
    )
    d.viewer.layers.remove(layer)
    assert not d.window.show_layer.isChecked()
    d.window.show_layer.click()
    d.session.remove_object(1)
    d.session.remove_object(2)
    d.window.show_tracks()
    assert d.window.layer.layer is None
    assert not [one for one in d.viewer.layers if one.name.endswith("tracks")]


def test_tracks_are_exported(work, tmp_path, monkeypatch):
    d = work
    d.session.split_object(1, 4)
    for suffix, there in ((".csv", "cells.csv"), (".geff", "cells.geff"), ("_RES", "cells_RES")):
        monkeypatch.setattr(
            QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "cells"), "")
        )
        entry = {".csv": 0, ".geff": 1, "_RES": 2}[suffix]
        d.window.export.menu().actions()[entry].trigger()
        assert (tmp_path / there).exists(), d.window.status.text()
    assert "3 4 7 1" in (tmp_path / "cells_RES" / "res_track.txt").read_text()
    d.window.export_to(tmp_path / "no" / "cells.csv")
    assert "⚠" in d.window.status.text()
    # The layer that is left when the widget is closed still says who descends from whom.
    d.session.edit_object(3, name="left")
    layer = d.widget.labels_layer
    d.viewer.window.remove_dock_widget(d.dock)
    write_ctc(str(tmp_path / "later_RES"), *layer.as_layer_data_tuple()[:2])
    tracks = [
        (tmp_path / name / "res_track.txt").read_text() for name in ("cells_RES", "later_RES")
    ]
    assert tracks[0] == tracks[1] and "left" in [*layer.features["name"]]


def test_another_image_has_its_own_tracks(work, qtbot):
    d = work
    d.window.show_layer.click()
    other = d.viewer.add_image(np.zeros(SHAPE, np.float32), name="empty")
    d.widget.choose_image(other)
    d.window.show_tracks()
    assert shown(d) == [] and d.window.layer.layer is None
    d.widget.choose_image(d.image)
    assert shown(d) == [1, 2] and d.window.layer.layer is not None
    assert isinstance(d.session, Session)
