"""The dock widget that fine-tunes a model, in a real viewer."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from desk import TIMEOUT
from kinds import crosses
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QMessageBox

from napari_sam2.widgets import FineTune, SAM2Widget, choices
from sam2_engine.training.finetune import Examination, Score
from sam2_engine.weights import list_models


@pytest.fixture
def rising(monkeypatch):
    """Each score is better than the one before."""
    scores = iter(np.linspace(0.1, 0.9, 100))
    monkeypatch.setattr(
        Examination, "score", lambda self, model: Score(next(scores), 0.3, math.nan)
    )


@pytest.fixture
def viewer(own_choices, no_thread_left, make_napari_viewer):
    """A stack of images and its labels, and labels of another shape."""
    viewer = make_napari_viewer()
    pairs = [crosses(seed) for seed in range(4)]
    viewer.add_image(np.stack([image for image, _ in pairs]), name="cells")
    viewer.add_labels(np.stack([labels for _, labels in pairs]), name="corrected")
    viewer.add_labels(np.zeros((3, 3), np.uint8), name="other")
    return viewer


def press(qtbot, button) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def made(viewer, tmp_path: Path, minutes: float) -> FineTune:
    widget = FineTune(viewer)
    viewer.window.add_dock_widget(widget, name="Fine-tune")
    widget.output.setText(str(tmp_path / "mine.safetensors"))
    widget.minutes.setValue(minutes)
    return widget


def test_layers_make_a_model_that_is_used(viewer, qtbot, tmp_path, rising, a_step_takes) -> None:
    a_step_takes(1)
    sam2 = SAM2Widget(viewer)
    viewer.window.add_dock_widget(sam2, name="SAM 2")
    widget = made(viewer, tmp_path, 0.1)
    assert widget.image.currentText() == "cells" and widget.labels.currentText() == "corrected"
    assert not widget.stop_button.isEnabled() and not widget.use_button.isEnabled()
    late: list[float] = []
    tick = QTimer()
    last = [time.perf_counter()]

    def note() -> None:
        now = time.perf_counter()
        late.append(now - last[0])
        last[0] = now

    tick.timeout.connect(note)
    tick.start(10)
    press(qtbot, widget.start_button)
    assert widget.is_training and not widget.start_button.isEnabled()
    qtbot.waitUntil(lambda: not widget.is_training, timeout=TIMEOUT)
    tick.stop()
    assert len(late) > 20 and np.quantile(late, 0.9) < 0.5, "the window went on meanwhile"
    assert widget.card is not None and widget.card.is_written, widget.status.text()
    steps = [step for step, _ in widget.curve.scores["box"]]
    assert steps[0] == 0 and steps[-1] == widget.card.steps > 0
    assert widget.card.trained_on == ("cells (3 slices)",)
    assert "mine" in [info.name for info in list_models()]
    qtbot.waitUntil(lambda: widget.start.findText("mine") > 0, timeout=TIMEOUT)
    assert widget.start.currentText() == "nano"
    press(qtbot, widget.use_button)
    qtbot.waitUntil(lambda: not sam2.is_busy, timeout=TIMEOUT)
    assert sam2._models.model.name == "mine" and choices.load()["model"] == "mine"


def test_a_training_is_stopped_and_resumed(viewer, qtbot, tmp_path, rising) -> None:
    widget = made(viewer, tmp_path, 30)
    press(qtbot, widget.start_button)
    qtbot.waitUntil(lambda: widget._status is not None and widget._status.step > 0, timeout=TIMEOUT)
    press(qtbot, widget.stop_button)
    qtbot.waitUntil(lambda: not widget.is_training, timeout=TIMEOUT)
    assert "Resume goes on" in widget.status.text()
    first = widget.card.steps
    press(qtbot, widget.resume_button)
    qtbot.waitUntil(
        lambda: widget._status is not None and widget._status.step > first, timeout=TIMEOUT
    )
    widget.stop()
    qtbot.waitUntil(lambda: not widget.is_training, timeout=TIMEOUT)
    assert widget.card.steps > first


def test_a_model_is_not_replaced_without_a_question(
    viewer, qtbot, tmp_path, rising, monkeypatch
) -> None:
    answers = [QMessageBox.StandardButton.No] * 2 + [QMessageBox.StandardButton.Yes]
    asked: list[str] = []
    monkeypatch.setattr(
        QMessageBox, "question", lambda parent, title, text: asked.append(text) or answers.pop(0)
    )
    widget = made(viewer, tmp_path, 30)
    output = tmp_path / "mine.safetensors"
    output.write_bytes(b"of last week")
    press(qtbot, widget.start_button)
    assert "mine.safetensors exists" in asked[0]
    assert not widget.is_training and "another name" in widget.status.text()
    output.unlink()
    (tmp_path / "mine.training").mkdir()
    (tmp_path / "mine.training" / "settings.json").write_text("{}")
    press(qtbot, widget.start_button)
    assert "Resume goes on" in asked[1] and not widget.is_training
    output.write_bytes(b"of last week")
    press(qtbot, widget.start_button)
    assert len(asked) == 3 and widget.is_training
    qtbot.waitUntil(lambda: widget._status is not None and widget._status.step > 0, timeout=TIMEOUT)
    widget.stop()
    qtbot.waitUntil(lambda: not widget.is_training, timeout=TIMEOUT)
    assert output.read_bytes() != b"of last week"
    press(qtbot, widget.resume_button)
    assert len(asked) == 3 and widget.is_training, "its own model is replaced with no question"
    widget.stop()
    qtbot.waitUntil(lambda: not widget.is_training, timeout=TIMEOUT)


def test_the_name_that_is_offered_is_free(viewer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)

    def offered() -> str:
        widget = FineTune(viewer)
        viewer.window.add_dock_widget(widget)
        return Path(widget.output.text()).name

    assert offered() == "my-model.safetensors"
    for name in ("my-model", "my-model-2"):
        (tmp_path / f"{name}.safetensors").touch()
    assert offered() == "my-model-3.safetensors"
    (tmp_path / "my-model-2.training").mkdir()
    assert offered() == "my-model-2.safetensors", "its training was stopped: Resume goes on"


def test_files_are_learnt_from(viewer, qtbot, tmp_path, rising, a_step_takes) -> None:
    a_step_takes(3)
    images, labels = [], []
    for seed in range(2):
        for kind, array, paths in zip(("i", "l"), crosses(seed), (images, labels), strict=True):
            paths.append(str(tmp_path / f"{kind}{seed}.tif"))
            tifffile.imwrite(paths[-1], array)
    widget = made(viewer, tmp_path, 0.1)
    widget.source.setCurrentText("files")
    widget.set_files(widget._images, images)
    widget.set_files(widget._labels, labels)
    press(qtbot, widget.start_button)
    qtbot.waitUntil(lambda: not widget.is_training, timeout=TIMEOUT)
    assert widget.card is not None, widget.status.text()
    assert widget.card.held_out == ("i1.tif (1 slice)",)


def test_only_approved_slices_are_learnt_from(viewer, qtbot, tmp_path) -> None:
    from napari_sam2.widgets.finetune import _layer_sources

    sam2 = SAM2Widget(viewer)
    viewer.window.add_dock_widget(sam2, name="SAM 2")
    session = sam2.session
    one = session.add_object()
    for frame in range(4):
        session.paint(one, frame, crosses(frame)[1] == 1)
    sam2._marking.add_layers()
    widget = made(viewer, tmp_path, 1)
    widget.labels.setCurrentIndex(widget.labels.findData(sam2.labels_layer))
    assert widget.only_approved.isEnabled()
    widget.only_approved.setChecked(True)
    press(qtbot, widget.start_button)
    qtbot.waitUntil(lambda: "is approved yet" in widget.status.text(), timeout=TIMEOUT)
    session.keep(one, [0, 1, 3])
    parts = _layer_sources(viewer.layers["cells"], sam2.labels_layer, only_approved=True)
    assert [len(part.labels) for part in parts] == [2, 1]
    np.testing.assert_array_equal(parts[1].labels[0] > 0, crosses(3)[1] == 1)
    qtbot.waitUntil(lambda: not sam2.is_busy, timeout=TIMEOUT)


def test_what_does_not_fit_is_said_at_once(viewer, qtbot, tmp_path) -> None:
    widget = made(viewer, tmp_path, 1)
    for change, message in (
        (lambda: widget.labels.setCurrentText("other"), "shape"),
        (lambda: widget.output.setText(str(tmp_path / "mine.pt")), ".safetensors"),
        (lambda: widget.output.setText(str(tmp_path / "nano.safetensors")), "published"),
        (lambda: widget.source.setCurrentText("files"), "Choose images"),
    ):
        change()
        press(qtbot, widget.start_button)
        assert message in widget.status.text() and not widget.is_training
        widget.output.setText(str(tmp_path / "mine.safetensors"))
