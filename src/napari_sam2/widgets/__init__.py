"""The dock widgets. They show a session and call it; only this package imports Qt."""

from napari_sam2.widgets.finetune import FineTune
from napari_sam2.widgets.measures_table import MeasuresTable
from napari_sam2.widgets.sam2_widget import SAM2Widget

__all__ = ["FineTune", "MeasuresTable", "SAM2Widget"]
