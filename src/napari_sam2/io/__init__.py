"""Image files in, labels files out, each with its spacing and place in the world. No napari."""

from napari_sam2.io.files import list_images, read_image, read_volume
from napari_sam2.io.labels import check_target, read_labels, write_labels
from napari_sam2.io.labels_ctc import read_parents
from napari_sam2.io.place import to_file_order, world_affine
from napari_sam2.io.volume import ImageInfo, ReadError, Volume, WriteError

__all__ = [
    "ImageInfo",
    "ReadError",
    "Volume",
    "WriteError",
    "check_target",
    "list_images",
    "read_image",
    "read_labels",
    "read_parents",
    "read_volume",
    "to_file_order",
    "world_affine",
    "write_labels",
]
