"""The dock widgets. They show a session and call it; only this package imports Qt.

Each is imported when it is first asked for, so that opening one does not wait for the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_sam2.widgets.finetune import FineTune
    from napari_sam2.widgets.measures_table import MeasuresTable
    from napari_sam2.widgets.sam2_widget import SAM2Widget

__all__ = ["FineTune", "MeasuresTable", "SAM2Widget"]

_HOME = {"FineTune": "finetune", "MeasuresTable": "measures_table", "SAM2Widget": "sam2_widget"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
