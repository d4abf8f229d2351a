"""The engine knows nothing of napari or Qt, and napari_sam2 knows Qt only in its widgets."""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

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


def loaded_by(modules, then="pass"):
    """Names of all modules that a new Python has loaded after importing these, and statements."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"{then}\n"
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


def test_importing_the_engine_imports_none_of_its_modules_yet():
    """Else two threads that ask for different ones first wait for each other, as the widget's may
    when it opens: one looks for models, the other loads one.
    """
    loaded = loaded_by(["sam2_engine"])
    assert "torch" not in loaded
    assert not {name for name in loaded if name.startswith("sam2_engine.")}


def test_masks_are_found_without_pytorchs_compiler():
    """Whose import takes longer than the bundled model needs to be loaded and to answer."""
    find = (
        "import napari_sam2, numpy\n"
        "napari_sam2.segment(numpy.eye(64)[None], boxes={1: (0, (0, 0, 40, 40))})"
    )
    loaded = loaded_by([], then=find)
    assert "sam2_engine.sequence" in loaded
    assert not {"torch._dynamo", "sympy"} & (loaded - loaded_by(["torch"]))


def test_only_public_parts_of_napari_are_used():
    """No private module of napari, and no private part of a viewer, its window or a layer."""
    owners = {"viewer", "window", "layers", "layer", "dims", "image", "labels", "points", "boxes"}
    for path in Path(napari_sam2.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            private = [n for n in names if n.startswith("napari.") and "._" in n]
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
                if owner in owners or node.attr.startswith(("_qt_", "_slice_", "_vispy")):
                    private.append(f"{owner}.{node.attr}")
            assert not private, f"{path}, line {node.lineno}: {private}"


def test_the_check_sees_what_it_looks_for():
    assert loaded_by(["napari", "qtpy"]) >= {"napari", "qtpy"}
