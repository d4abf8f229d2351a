"""Saving, opening and recovering sessions in the widget, and its place in napari's menus."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest
from desk import SHAPE, TIMEOUT, assert_same, blobs
from models import small_model
from napari.layers import Image
from napari.layers._source import Source
from npe2 import PluginManifest
from qtpy.QtWidgets import QFileDialog, QMessageBox

from napari_sam2 import sample_data
from napari_sam2.lazy_model import LazyModel
from napari_sam2.recovery import find_recovery
from napari_sam2.session import Session
from napari_sam2.session_file import read_session, save_session
from napari_sam2.widgets import SAM2Widget, session_files, workspace
from napari_sam2.widgets.workspace import Workspace


def mark_and_paint(d):
    """Two objects, one of them followed, the other painted by hand."""
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.key("G")
    d.settle()
    d.key("N")
    d.go_to(4)
    d.press(d.panel.modes["paint"])
    d.draw((30, 40), (34, 46))
    d.session.edit_object(2, name="painted")
    d.settle()


def test_a_saved_session_opens_as_it_was(desk, tmp_path):
    d = desk()
    mark_and_paint(d)
    labels = d.labels.copy()
    d.widget.save_session(tmp_path / "work")  # without the suffix
    d.settle()
    (file,) = tmp_path.glob("work*")
    assert f"Saved to {file.name}" in d.status

    d.press(d.panel.delete)
    d.press(d.panel.modes["include"])
    d.click((40, 8))
    d.settle()
    assert (d.labels != labels).any()
    d.widget.open_session(file)
    d.settle()
    assert f"Opened {file.name}" in d.status
    np.testing.assert_array_equal(d.labels, labels)
    assert [row.name for row in d.panel.objects] == ["Object 1", "painted"]
    assert len(d.widget.points_layer.data) == 1
    assert d.widget.labels_layer.data is d.labels
    assert len([layer for layer in d.viewer.layers if layer.name.startswith("scan")]) == 4
    # It goes on from there.
    d.go_to(6)
    d.press(d.panel.modes["include"])
    d.click((20, 20))
    d.settle()
    assert 6 in d.session.prompts[d.panel.object_id]


def test_a_session_opens_along_the_axis_of_its_marks(desk, tmp_path):
    d = desk(data=np.stack([blobs((5, *SHAPE[1:]))] * 3))
    d.panel.along.setCurrentIndex(1)
    d.panel.along.activated.emit(1)
    d.viewer.dims.set_point((0, 1), (2, 3))
    d.press(d.panel.modes["include"])
    d.click((17, 20))
    d.settle()
    d.widget.save_session(tmp_path / "deep.sam2session")
    unmarked = Session(d.image, small_model())
    unmarked.add_object("nothing yet")
    save_session(unmarked, tmp_path / "unmarked.sam2session")
    d.settle()

    d.panel.along.setCurrentIndex(0)
    d.panel.along.activated.emit(0)
    assert d.session.view.key.axis == 0
    assert d.session.prompts == {}
    d.widget.open_session(tmp_path / "deep.sam2session")
    d.settle()
    assert d.panel.along.currentData() == 1
    assert d.session.view.key.axis == 1
    assert list(d.session.prompts[1]) == [3], "the sliders are where the marks are"
    d.viewer.dims.set_point(0, 0)  # another position has no marks
    assert d.session.prompts == {}
    # A session without marks follows what the person has chosen.
    d.widget.open_session(tmp_path / "unmarked.sam2session")
    d.settle()
    assert d.session.objects[1].name == "nothing yet"
    assert d.panel.along.currentData() == d.session.view.key.axis == 1


def test_a_session_of_coronal_slices_waits_until_they_are_shown(desk, tmp_path):
    d = desk()
    d.viewer.dims.order = (1, 0, 2)
    d.go_to(20, axis=1)
    d.widget.start("include")
    d.widget.points_layer.add([3, 20, 20])
    d.settle()
    assert d.session.view.key.axis == 1
    labels = d.labels.copy()
    d.widget.save_session(tmp_path / "coronal.sam2session")
    d.settle()
    d.viewer.dims.order = (0, 1, 2)
    d.widget.open_session(tmp_path / "coronal.sam2session")
    d.settle()
    assert d.session.view.key.axis == 0
    assert "Opened" in d.status
    np.testing.assert_array_equal(d.labels, labels)
    assert len(d.widget.points_layer.data) == 1
    d.viewer.dims.order = (1, 0, 2)
    assert list(d.session.prompts[1]) == [20]


def test_files_are_asked_for_and_remembered(desk, tmp_path, monkeypatch):
    d = desk()
    mark_and_paint(d)
    asked, answers = [], []

    def answer(parent, title, start, kinds=""):
        asked.append((title, start))
        return answers.pop(0), kinds

    monkeypatch.setattr(QFileDialog, "getSaveFileName", answer)
    monkeypatch.setattr(QFileDialog, "getOpenFileName", answer)
    actions = {action.text(): action for action in d.panel.session_menu.actions()}
    file, copy = tmp_path / "a.sam2session", tmp_path / "copy.sam2session"

    def choose(text, *given):
        answers[:] = [str(one) for one in given]
        actions[text].trigger()
        d.settle()
        assert answers == []

    choose("Save", "")  # and change one's mind
    assert list(tmp_path.glob("*.sam2session")) == []
    choose("Save", tmp_path / "a")
    assert asked[-1] == ("Save session", "scan.sam2session")
    assert "Saved to a.sam2session" in d.status
    d.session.edit_object(2, name="later")
    choose("Save")  # to the same file, without a question
    assert read_session(file).state.objects[2].name == "later"
    choose("Save as …", copy)
    assert asked[-1] == ("Save session", str(file))
    before = d.session
    choose("Open …", "")
    assert d.session is before
    choose("Open …", file)
    assert d.session is not before
    assert d.session.objects[2].name == "later"
    d.session.edit_object(2, name="last")
    choose("Save")  # goes on in the file that was opened
    assert read_session(file).state.objects[2].name == "last"
    assert read_session(copy).state.objects[2].name == "later"

    # With an image that comes from a file, others are looked for and written beside it.
    monkeypatch.setattr(d.image, "_source", Source(path=str(tmp_path / "scan.nii.gz")))
    d.image.name = "scan.nii.gz"
    answers[:] = ["", "", ""]
    d.widget.tracks.export.menu().actions()[0].trigger()
    assert asked[-1][1] == str(tmp_path / "scan.csv")
    d.widget.second_reader.open()
    d.widget.second_reader.source.activated.emit(1)
    assert asked[-1] == ("Another person's masks", str(tmp_path))
    d.widget._context.work.file = None
    actions["Save as …"].trigger()
    assert asked[-1] == ("Save session", str(tmp_path / "scan.sam2session"))


def test_what_is_opened_is_seen_at_once(desk, tmp_path):
    d = desk()
    mark_and_paint(d)
    labels = d.labels.copy()
    d.widget.save_session(tmp_path / "work.sam2session")
    d.settle()
    d.widget.shut_down()
    d.viewer.layers.clear()
    d.image = d.viewer.add_image(blobs(), name="scan")
    d.widget = SAM2Widget(d.viewer, model=small_model())
    d.panel = d.widget.panel
    d.qtbot.addWidget(d.widget)
    d.settle()
    d.widget.open_session(tmp_path / "work.sam2session")
    d.settle()
    np.testing.assert_array_equal(d.widget.labels_layer.data, labels)
    assert d.widget.labels_layer in d.viewer.layers
    assert len(d.widget.points_layer.data) == 1
    d.widget.shut_down()


def test_unsaved_work_is_not_replaced_without_a_question(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "AUTOSAVE_SECONDS", 0.1)
    d = desk()
    d.session.paint(1, 3, np.ones(SHAPE[1:]))
    d.widget.save_session(tmp_path / "work.sam2session")
    d.settle()
    mark_and_paint(d)
    labels = d.labels.copy()
    answers = [QMessageBox.StandardButton.No, QMessageBox.StandardButton.Yes]
    asked = []
    monkeypatch.setattr(
        QMessageBox, "question", lambda parent, title, text: asked.append(text) or answers.pop(0)
    )
    path = str(tmp_path / "work.sam2session")
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *of: (path, ""))
    d.widget.open_session()
    d.settle()
    assert "scan are not saved" in asked[0]
    np.testing.assert_array_equal(d.labels, labels)
    d.widget.open_session()
    d.settle()
    assert len(asked) == 2
    assert d.status == "Opened work.sam2session."
    assert not np.array_equal(d.labels, labels)
    d.qtbot.waitUntil(d.panel.recovery.isVisible, timeout=TIMEOUT)
    d.press(d.panel.recover)  # nothing here is unsaved: no question
    d.settle()
    assert len(asked) == 2
    assert "scan is back" in d.status
    np.testing.assert_array_equal(d.labels, labels)


def test_a_session_that_comes_too_late_is_not_opened(desk, tmp_path):
    d = desk()
    mark_and_paint(d)
    d.widget.save_session(tmp_path / "work.sam2session")
    d.settle()
    d.widget.open_session(tmp_path / "work.sam2session")
    d.viewer.layers.remove(d.image)  # while it is read
    d.settle()
    assert d.session is None
    assert d.panel.images.count() == 0


def test_a_session_opens_with_the_model_that_made_it(desk, tmp_path):
    d = desk()
    made = Session(d.image, "nano")
    made.add_points(made.add_object(), [(3, 17, 20)])
    made.propagate()
    save_session(made, tmp_path / "made.sam2session")
    d.widget.open_session(tmp_path / "made.sam2session")
    d.settle()
    assert d.status == "Opened made.sam2session."
    assert d.session.model.name == d.panel.models.currentData() == "nano"
    assert d.session.stale(1) == []
    np.testing.assert_array_equal(d.labels, made.labels)
    d.press(d.panel.update_masks)
    assert "Nothing is out of date" in d.status

    made.model = LazyModel(small_model())
    made.model.name = "/gone/mine.pt"
    save_session(made, tmp_path / "gone.sam2session")
    d.widget.open_session(tmp_path / "gone.sam2session")
    d.settle()
    assert d.session.model.name == d.panel.models.currentData() == "nano"
    assert "/gone/mine.pt" in d.status
    assert "out of date" in d.status
    assert len(d.session.stale(1)) == len(made.masks_of(1))


def test_a_session_of_other_pixels_is_opened_if_the_person_wants_it(desk, tmp_path, monkeypatch):
    d = desk()
    mark_and_paint(d)
    d.widget.save_session(tmp_path / "work.sam2")
    d.settle()
    (file,) = tmp_path.glob("work*")
    other = d.viewer.add_image(blobs()[:, ::-1].copy(), name="other")
    d.widget.choose_image(other)
    answers = [QMessageBox.StandardButton.No, QMessageBox.StandardButton.Yes]
    asked = []

    def answer(parent, title, text):
        asked.append(text)
        return answers.pop(0)

    monkeypatch.setattr(QMessageBox, "question", answer)
    for _ in range(2):
        d.widget.open_session(file)
        d.settle()
    assert len(asked) == 2
    assert list(d.session.objects) == [1, 2]
    assert d.session.stale(1)
    assert "out of date" in d.status


def test_a_broken_file_is_told(desk, tmp_path):
    d = desk()
    before = d.session
    (tmp_path / "broken.sam2").write_bytes(b"PK no session")
    d.widget.open_session(tmp_path / "broken.sam2")
    d.settle()
    assert d.status.startswith("⚠")
    assert "broken.sam2" in d.status
    assert d.session is before


def open_again(d):
    """Open a new dock in the same viewer, in which work is offered that was not saved."""
    d.widget = SAM2Widget(d.viewer, model=small_model())
    d.panel = d.widget.panel
    d.dock = d.viewer.window.add_dock_widget(d.widget, name="again")
    d.qtbot.waitUntil(d.panel.recovery.isVisible, timeout=TIMEOUT)


def test_work_that_was_cut_off_is_offered_and_recovered(desk, monkeypatch):
    monkeypatch.setattr(workspace, "AUTOSAVE_SECONDS", 0.1)
    d = desk()
    assert not d.panel.recovery.isVisible()
    mark_and_paint(d)
    labels = d.labels.copy()
    names = [layer.name for layer in d.viewer.layers]
    d.viewer.window.remove_dock_widget(d.dock)  # without saving
    open_again(d)
    assert [layer.name for layer in d.viewer.layers] == names, "nothing is removed unasked"
    assert re.search(r"not saved \(.*\d:\d\d", d.panel.cut_off.text())
    d.press(d.panel.recover)
    d.settle()
    np.testing.assert_array_equal(d.labels, labels)
    assert d.session.objects[2].name == "painted"
    assert not d.panel.recovery.isVisible()
    assert [layer.name for layer in d.viewer.layers] == names, "in place of what was left"
    assert d.widget.labels_layer in d.viewer.layers
    d.widget.undo()  # nothing to undo: history begins anew
    assert "nothing" in d.status


def test_recovered_work_does_not_replace_what_was_painted_without_the_widget(desk):
    d = desk()
    mark_and_paint(d)
    left = d.widget.labels_layer, d.widget.points_layer
    d.viewer.window.remove_dock_widget(d.dock)
    left[0].paint((3.0, 5.0, 5.0), 7)
    open_again(d)
    d.press(d.panel.recover)
    d.settle()
    assert left[0] in d.viewer.layers
    assert left[1] not in d.viewer.layers


def test_what_changes_while_a_session_is_saved_is_not_forgotten(desk, tmp_path, monkeypatch):
    gate = threading.Event()

    def slow(session, path):
        save_session(session, path)
        gate.wait(TIMEOUT)

    d = desk()
    d.session.paint(1, 3, np.ones(SHAPE[1:]))
    with monkeypatch.context() as patch:
        patch.setattr(session_files, "save_session", slow)
        d.widget.save_session(tmp_path / "work")
        d.session.edit_object(1, name="later")
        gate.set()
        d.settle()
    d.widget.shut_down()
    found = find_recovery(d.image)
    assert read_session(found).state.objects[1].name == "later"
    found.unlink()

    d.widget = SAM2Widget(d.viewer, model=small_model())
    d.widget.session.paint(1, 3, np.ones(SHAPE[1:]))
    d.widget.save_session(tmp_path / "work")
    d.settle()
    d.widget.shut_down()
    assert find_recovery(d.image) is None, "all of it is in the person's file"


def test_work_that_was_cut_off_is_discarded_if_the_person_wants_it(desk, monkeypatch):
    monkeypatch.setattr(workspace, "AUTOSAVE_SECONDS", 0.1)
    d = desk()
    d.session.paint(1, 3, np.ones(SHAPE[1:]))
    d.widget.shut_down()
    assert find_recovery(d.image) is not None
    d.widget = SAM2Widget(d.viewer, model=small_model())
    d.qtbot.addWidget(d.widget)
    d.panel = d.widget.panel
    d.qtbot.waitUntil(lambda: not d.panel.recovery.isHidden(), timeout=TIMEOUT)
    answers = [QMessageBox.StandardButton.No, QMessageBox.StandardButton.Yes]
    monkeypatch.setattr(QMessageBox, "question", lambda *of: answers.pop(0))
    d.panel.discard.click()
    assert find_recovery(d.image) is not None
    assert not d.panel.recovery.isHidden()
    d.panel.discard.click()
    assert d.panel.recovery.isHidden()
    assert d.session.prompts == {}
    d.widget.shut_down()
    assert find_recovery(d.image) is None


@pytest.mark.parametrize("work", ["painted", "approved", "locked", "none"])
def test_work_without_marks_is_kept_for_recovery(own_choices, work):
    image = Image(blobs())
    session = Session(image, small_model())
    space = Workspace(image, session)
    space.start_autosave(None, pytest.fail)
    if work == "painted":
        session.paint(1, 3, np.ones(SHAPE[1:]))
    elif work == "none":
        session.edit_object(1, name="nothing")
    else:
        session.keep(1, [3], work)
    space.close()
    found = find_recovery(image)
    assert (found is None) == (work == "none")


def test_a_download_shows_progress_and_can_be_stopped(desk, monkeypatch):
    gate = threading.Event()

    def slow(self):
        self._stopped = False
        try:
            for done in range(6000):
                self._on_progress(done << 20, 6000 << 20)
                gate.wait(0.02)
            raise AssertionError("It was not stopped.")
        finally:
            self.downloaded = None

    d = desk()
    index = d.panel.models.findData("sam2.1-tiny")
    assert "156 MB" in d.panel.models.itemText(index)
    with monkeypatch.context() as patch:
        patch.setattr(LazyModel, "get", slow)
        d.panel.models.setCurrentIndex(index)
        d.panel.models.activated.emit(index)
        d.qtbot.waitUntil(d.panel.download.isVisible, timeout=TIMEOUT)
        d.qtbot.waitUntil(lambda: d.panel.download.value() > 0, timeout=TIMEOUT)
        d.press(d.panel.stop_download)
        d.settle()
    assert not d.panel.download.isVisible()
    assert "stopped" in d.status
    assert d.session.model.is_loaded
    assert d.panel.models.currentData() == d.session.model.name
    # The model in use goes on working.
    d.go_to(2)
    d.press(d.panel.modes["include"])
    d.click((16, 20))
    d.settle()
    assert_same(d.labels[2], d.expected(2))


def test_the_manifest_is_valid_and_its_samples_open(make_napari_viewer):
    manifest = PluginManifest.from_distribution("napari-sam2")
    manifest.validate_imports()
    assert set(manifest.contributions.menus) == {"napari/layers/segment", "napari/layers/track"}
    for make in (sample_data.moving_cells, sample_data.brain):
        ((data, options, kind),) = make()
        assert kind == "image"
        assert data.ndim == 3
        assert options["name"]
    viewer = make_napari_viewer()
    (layer,) = viewer.open_sample("napari-sam2", "moving_cells")
    assert layer.data.shape == (40, 256, 320)


def test_work_on_an_image_that_gets_another_shape_comes_back_with_its_old_one(desk):
    d = desk()
    mark_and_paint(d)
    labels, pixels = d.labels.copy(), d.image.data
    d.image.data = pixels[:, 4:]
    d.settle()
    kept = find_recovery(pixels)
    assert kept is not None and str(kept) in d.status
    savers = [t for t in threading.enumerate() if t.name == "napari-sam2 autosave" and t.is_alive()]
    assert len(savers) == 1, "of the image as it is now, and of nothing else"
    d.image.data = pixels
    d.settle()
    assert d.status == "scan has another shape now."
    d.qtbot.waitUntil(d.panel.recovery.isVisible, timeout=TIMEOUT)
    d.press(d.panel.recover)
    d.settle()
    np.testing.assert_array_equal(d.labels, labels)


def test_work_on_an_image_that_changed_is_kept_for_the_image_as_it_is_now(desk):
    d = desk()
    mark_and_paint(d)
    d.image.data = d.image.data + 1
    d.widget.shut_down()
    assert find_recovery(d.image) is not None
