"""The window "Find all objects" in a real viewer: find, filter, click away, add."""

from __future__ import annotations

import numpy as np
import pytest
from desk import TIMEOUT
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QApplication
from test_automatic import nuclei
from test_widget import BrokenFrames

from benchmarks.automatic import average_precision


@pytest.fixture
def finder_desk(desk):
    """A time-lapse of three frames of nuclei, the second one shown."""
    frame, _ = nuclei()
    data = np.stack([np.roll(frame, shift, axis=1) for shift in (-2, 0, 2)])
    d = desk(model="nano", data=data, contrast_limits=(0, 200))
    d.settle()
    d.go_to(1)
    d.press(d.panel.find_all)
    assert d.widget.finder.isVisible()
    return d


def search(d, seeds="classical"):
    """Look for objects of 18 pixels, as a person would."""
    finder = d.widget.finder
    finder.seeds.setCurrentIndex(finder.seeds.findData(seeds))
    finder.diameter.setValue(18)
    d.press(finder.find_button)
    assert finder.stop_button.isEnabled() and not finder.find_button.isEnabled()
    d.qtbot.waitUntil(lambda: not finder.is_busy, timeout=TIMEOUT)
    return finder


def test_what_is_found_is_shown_filtered_clicked_away_and_added(finder_desk):
    d, truth = finder_desk, nuclei()[1]
    finder = search(d)
    shown = finder.layer.data
    assert average_precision(shown[1], truth, 0.5) > 0.7
    assert not shown[[0, 2]].any()
    assert not d.labels.any()

    count = len(finder.chosen)
    finder.score.setValue(int(100 * np.median([one.score for one in finder.candidates])))
    assert 0 < len(finder.chosen) < count
    np.testing.assert_array_equal(np.unique(shown[1]), [0, *(n + 1 for n in finder.chosen)])
    finder.score.setValue(finder.score.minimum())
    assert len(finder.chosen) == count

    victim = finder.candidates[0]
    d.click(np.argwhere(victim.on_frame(truth.shape)).mean(axis=0))
    assert finder.deleted == {0} and not (shown[1] == 1).any()
    d.press(finder.restore_button)
    assert not finder.deleted and (shown[1] == 1).any()
    d.click(np.argwhere(victim.on_frame(truth.shape)).mean(axis=0))

    d.press(finder.add_button)
    assert list(d.session.objects) == list(range(1, count)), "the object that waited is the first"
    assert d.session.objects[1].name == "Object 1"
    assert finder.layer is None
    assert average_precision(d.labels[1], truth, 0.5) > 0.65
    assert f"{count - 1} objects added on slice 1" in d.status
    assert d.widget.labels_layer.data is d.labels
    assert not d.widget.points_layer.visible  # so many clicks would hide the masks

    d.press(d.panel.undo)
    assert not d.labels.any()
    d.qtbot.waitUntil(d.panel.redo.isEnabled, timeout=TIMEOUT)
    d.press(d.panel.redo)
    assert len(d.session.objects) == count - 1
    d.press(d.panel.propagate)
    d.settle()
    assert d.labels[0].any() and d.labels[2].any()


def test_a_search_is_stopped_and_keeps_what_it_has(finder_desk):
    d = finder_desk
    finder = d.widget.finder
    finder.seeds.setCurrentIndex(finder.seeds.findData("grid"))
    d.press(finder.find_button)
    d.qtbot.waitUntil(lambda: finder.progress.value() >= 256, timeout=TIMEOUT)
    d.press(finder.stop_button)
    d.qtbot.waitUntil(lambda: not finder.is_busy, timeout=TIMEOUT)
    assert finder.progress.value() < finder.progress.maximum() == 1024
    assert finder.status.text().startswith("Stopped")
    assert finder.candidates and finder.layer in d.viewer.layers


def test_another_labels_layer_gives_the_seeds(finder_desk):
    d, truth = finder_desk, nuclei()[1]
    layer = d.viewer.add_labels(np.stack([truth] * 3), name="from elsewhere")
    d.press(d.panel.find_all)
    finder = search(d, layer)
    assert average_precision(finder.layer.data[1], truth, 0.5) > 0.7


def test_labels_that_come_while_the_window_is_open_can_be_chosen(finder_desk):
    d = finder_desk
    finder, truth = d.widget.finder, nuclei()[1]
    cells = d.viewer.add_labels(np.stack([truth] * 3), name="cells")
    d.widget.start("include")  # the objects layer gives no seeds
    d.settle()
    texts = [finder.seeds.itemText(n) for n in range(finder.seeds.count())]
    assert texts[3:] == ["labels: cells"]
    finder.seeds.setCurrentIndex(3)
    cells.name = "nuclei"
    d.settle()
    assert finder.seeds.currentText() == "labels: nuclei"
    d.viewer.layers.remove(cells)
    d.settle()
    assert finder.seeds.findData(cells) < 0


def test_nuclei_in_another_image_give_the_seeds(finder_desk):
    d, truth = finder_desk, nuclei()[1]
    layer = d.viewer.add_image(np.stack([90.0 * (truth > 0)] * 3), name="nuclei")
    d.press(d.panel.find_all)
    assert d.widget.finder.seeds.findData(d.image) == -1  # the image itself has ways of its own
    finder = search(d, layer)
    assert finder.diameter.isEnabled() and finder.candidates
    assert all(truth[int(y), int(x)] for y, x in (one.point for one in finder.candidates))


def test_what_was_found_elsewhere_is_not_added_here(finder_desk):
    d = finder_desk
    finder = search(d)
    d.widget.choose_image(d.viewer.add_image(np.zeros((2, 30, 30)), name="other"))
    QApplication.processEvents()
    d.press(finder.add_button)
    assert "find the objects there anew" in finder.status.text()
    assert not d.labels.any()


def test_what_is_found_for_another_position_is_told_and_not_shown(desk):
    frame, _ = nuclei()
    d = desk(model="nano", data=np.array([[frame] * 2] * 2), contrast_limits=(0, 200))
    d.settle()
    d.press(d.panel.find_all)
    finder = d.widget.finder
    d.press(finder.find_button)
    other = 1 - d.session.view.key.axis
    d.go_to(1 - d.viewer.dims.current_step[other], axis=other)
    d.qtbot.waitUntil(lambda: not finder.is_busy, timeout=TIMEOUT)
    assert "press Find all objects here again" in finder.status.text()
    assert finder.layer is None and not finder.candidates
    assert finder.find_button.isEnabled() and not finder.stop_button.isEnabled()


def test_the_buttons_follow_when_images_come_and_go(finder_desk):
    d = finder_desk
    finder = d.widget.finder
    d.press(finder.find_button)
    d.viewer.layers.remove(d.image)
    d.qtbot.waitUntil(lambda: not finder.is_busy, timeout=TIMEOUT)
    assert "no image any more" in finder.status.text()
    assert not finder.find_button.isEnabled() and not finder.whole_button.isEnabled()
    d.viewer.add_image(np.zeros((2, 64, 64)), name="other")
    QApplication.processEvents()
    assert finder.find_button.isEnabled() and finder.whole_button.isEnabled()


def test_objects_that_the_person_has_prepared_stay(finder_desk):
    d = finder_desk
    d.session.edit_object(1, name="the other kind")
    waiting = d.session.add_object()
    finder = search(d)
    ids = finder.add()
    assert ids[0] == waiting and 1 not in ids
    assert d.session.objects[1].name == "the other kind"
    assert not (d.labels == 1).any() and (d.labels == waiting).any()


def test_a_failed_search_is_told(finder_desk, monkeypatch):
    d = finder_desk

    def fail(*_, **__):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("napari_sam2.widgets.find_all.search_all", fail)
    finder = search(d)
    told = "The graphics card's memory is full."
    assert told in finder.status.text() and told in d.status
    assert finder.find_button.isEnabled() and not finder.stop_button.isEnabled()


def test_an_empty_slice_says_so(desk):
    d = desk(model="nano", data=np.zeros((2, 64, 64)), contrast_limits=(0, 1))
    d.settle()
    d.press(d.panel.find_all)
    finder = search(d)
    assert "Nothing was found" in finder.status.text()
    assert finder.layer is None and not finder.add_button.isEnabled()


def test_all_objects_of_the_sequence_are_found_and_followed(finder_desk):
    d, truth = finder_desk, nuclei()[1]
    finder = d.widget.finder
    finder.seeds.setCurrentIndex(finder.seeds.findData("classical"))
    finder.diameter.setValue(18)
    finder.every.setValue(2)
    d.press(finder.whole_button)
    assert finder.stop_button.isEnabled() and not finder.whole_button.isEnabled()
    d.session.edit_object(1, name="mine")  # meanwhile, a person goes on
    d.qtbot.waitUntil(lambda: not finder.is_busy, timeout=TIMEOUT)
    d.settle()
    assert (finder.progress.value(), finder.progress.maximum()) == (2, 2)
    labels = d.session.labels
    assert all(len(np.unique(labels[t])) > 4 for t in range(3))
    assert average_precision(labels[1], truth, 0.5) > 0.5
    assert d.session.objects[1].name == "mine"
    assert f"{len(d.session.masks)} objects have masks now" in d.status
    assert d.session.history.undo_label == "Find throughout"
    d.press(d.panel.undo)
    assert not d.session.labels.any() and list(d.session.objects) == [1]
    d.press(d.panel.redo)
    assert all(len(np.unique(d.session.labels[t])) > 4 for t in range(3))


@pytest.mark.parametrize("whole", [False, True])
def test_a_drawing_is_not_interrupted_by_what_is_found(finder_desk, whole):
    d = finder_desk
    finder = d.widget.finder
    finder.seeds.setCurrentIndex(finder.seeds.findData("classical"))
    finder.diameter.setValue(18)
    d.press(d.panel.modes["lasso"])
    d.press(finder.whole_button if whole else finder.find_button)
    start, *corners = (d.position(yx) for yx in ((20, 20), (20, 60), (60, 60), (60, 20), (24, 20)))
    d.mouse(QEvent.Type.MouseButtonPress, start)
    for at in corners:
        d.mouse(QEvent.Type.MouseMove, at)
        d.qtbot.wait(30)
    d.qtbot.waitUntil(lambda: not finder._worker.is_running, timeout=TIMEOUT)
    d.qtbot.wait(100)
    assert finder.is_busy and finder.layer is None and not d.session.masks
    d.mouse(QEvent.Type.MouseButtonRelease, corners[-1], held=False)
    d.qtbot.waitUntil(lambda: not finder.is_busy, timeout=TIMEOUT)
    d.settle()
    assert any(
        len(said.lassos) == 1 for frames in d.session.prompts.values() for said in frames.values()
    )
    assert len(d.session.masks) > 4 if whole else finder.candidates


def test_a_search_of_the_sequence_is_stopped_and_goes_past_what_cannot_be_read(
    finder_desk, monkeypatch
):
    d = finder_desk
    finder = d.widget.finder
    finder.seeds.setCurrentIndex(finder.seeds.findData("classical"))
    finder.diameter.setValue(18)
    finder.every.setValue(1)
    d.press(finder.whole_button)
    d.qtbot.waitUntil(lambda: finder.progress.maximum() == 3, timeout=TIMEOUT)
    d.press(finder.stop_button)
    d.qtbot.waitUntil(lambda: not finder.is_busy, timeout=TIMEOUT)
    assert "Stopped" in d.status and finder.whole_button.isEnabled()
    if d.session.history.undo_label == "Find throughout":
        d.press(d.panel.undo)
    assert not d.session.labels.any()

    d.image.data = d.image.data.view(BrokenFrames)
    d.settle()
    monkeypatch.setattr(BrokenFrames, "broken", [1])
    d.press(finder.whole_button)
    d.qtbot.waitUntil(lambda: not finder.is_busy, timeout=TIMEOUT)
    d.settle()
    assert d.status.startswith("⚠ Slice 1 cannot be read: The disk with the image is gone.")
    assert [len(np.unique(d.session.labels[t])) > 4 for t in range(3)] == [True, False, True]
