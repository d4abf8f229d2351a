"""What several tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def own_models(monkeypatch, tmp_path):
    """The list of one's own models, empty: not that of whoever runs the tests."""
    monkeypatch.setenv("SAM2_OWN_MODELS", str(tmp_path / "own_models" / "models.json"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The path of a file with the small model, which no test changes."""
    from models import small_model

    from sam2_engine.weights import save_model

    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_model(small_model(), path)
    return str(path)


@pytest.fixture
def own_choices(monkeypatch, tmp_path):
    """Nothing that whoever runs the tests has chosen or saved is read or changed."""
    from napari_sam2 import recovery
    from napari_sam2.widgets import choices, workspace

    monkeypatch.setattr(choices, "FILE", tmp_path / "choices" / "widget.json")
    monkeypatch.setattr(recovery, "FOLDER", tmp_path / "recovery")
    monkeypatch.setattr(workspace, "AUTOSAVE_SECONDS", 3600.0)


@pytest.fixture
def no_thread_left(qtbot):
    """When the viewer is closed, the threads end."""
    from desk import TIMEOUT, worker_threads
    from qtpy.QtCore import QEvent
    from qtpy.QtWidgets import QApplication

    yield
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    qtbot.waitUntil(lambda: not worker_threads(), timeout=TIMEOUT)


@pytest.fixture
def desk(own_choices, no_thread_left, make_napari_viewer, qtbot):
    """Makes desks; their viewers are shown, so that the canvas takes the mouse."""
    from desk import Desk

    return lambda **layer: Desk(make_napari_viewer(show=True), qtbot, **layer)
