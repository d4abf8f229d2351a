"""Image files in, labels files out, each with its spacing and place in the world. No napari."""

from napari_sam2.io.files import read_volume
from napari_sam2.io.labels import check_target, write_labels
from napari_sam2.io.volume import ReadError, Volume, WriteError

__all__ = ["ReadError", "Volume", "WriteError", "check_target", "read_volume", "write_labels"]
