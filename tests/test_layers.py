"""The engine knows nothing of napari or Qt, and napari_sam2 knows Qt only in its widgets."""

import json
import pkgutil
import subprocess
import sys

import napari_sam2
import sam2_engine

QT = {"PyQt5", "PyQt6", "PySide2", "PySide6", "qtpy", "superqt", "vispy", "napari.qt", "napari._qt"}
NAPARI = {"napari"}


def modules_of(package):
    """All modules of a package by name, except its widgets and what runs when imported."""
    names = (
        found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    )
    return sorted(
        name
        for name in names
        if not name.startswith("napari_sam2.widgets") and not name.endswith("__main__")
    )


def loaded_by(modules):
    """Names of all modules that a new Python has loaded after importing these."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_engine_loads_no_napari_no_qt_and_no_file_formats():
    modules = ["sam2_engine", *modules_of(sam2_engine)]
    assert "sam2_engine.model.sam2" in modules
    forbidden = NAPARI | QT | {"napari_sam2", "nibabel", "pydicom", "tifffile", "skimage"}
    assert not forbidden & loaded_by(modules)


def test_importing_napari_sam2_without_its_widgets_loads_no_napari_and_no_qt():
    modules = ["napari_sam2", *modules_of(napari_sam2)]
    assert len(modules) > 3
    assert not (NAPARI | QT) & loaded_by(modules)


def test_the_check_sees_what_it_looks_for():
    assert loaded_by(["napari", "qtpy"]) >= {"napari", "qtpy"}
