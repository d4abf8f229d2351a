"""What several tests share."""

from __future__ import annotations

import gc
import os
import sys
from functools import lru_cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ["NAPARI_CONFIG"] = ""  # napari's settings of whoever runs the tests stay as they are
os.environ["LP_NUM_THREADS"] = "0"  # pictures are drawn by the process that asks, not by more


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
def a_step_takes(monkeypatch):
    """As if each step of a training took so many seconds: on any machine there are as many."""
    from sam2_engine.training import trainer

    def takes(seconds: float) -> None:
        clock = count(0, seconds)
        monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    return takes


@pytest.fixture
def own_choices(monkeypatch, tmp_path):
    """Nothing that whoever runs the tests has chosen or saved is read or changed."""
    from napari_sam2 import recovery
    from napari_sam2.widgets import choices, workspace

    monkeypatch.setattr(choices, "FILE", tmp_path / "choices" / "widget.json")
    monkeypatch.setattr(recovery, "FOLDER", tmp_path / "recovery")
    monkeypatch.setattr(workspace, "AUTOSAVE_SECONDS", 3600.0)


@pytest.fixture
def make_napari_viewer(make_napari_viewer, monkeypatch):
    """napari's own, without what takes the longer the more tests were before, or is always the
    same: it looks for garbage in the whole process at each layer that goes, and for plugins at each
    viewer."""
    from napari._vispy import canvas
    from npe2 import PluginManager

    if next(_viewers) % 4 == 0:
        gc.collect()  # here, as Python would soon do it in any thread
    monkeypatch.setattr(canvas, "gc", SimpleNamespace(collect=lambda: gc.collect(1)))
    monkeypatch.setattr(PluginManager, "discover", _once(PluginManager.discover))
    return make_napari_viewer


_viewers = count()
_once = lru_cache(lru_cache)
"""A function that is asked the same again gives its first answer, in all tests."""


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
