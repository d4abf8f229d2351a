"""A volume as the image of a session, which may have been shown with its axes in another order."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.io.files import read_image, read_volume
from napari_sam2.io.place import (
    layer_axes,
    ras_of_world,
    to_file_order,
    to_layer_order,
    world_affine,
)
from napari_sam2.io.volume import Volume
from napari_sam2.session_file import fingerprint, fitted
from napari_sam2.session_format import ImageReference


def read_session_image(
    path: str | os.PathLike[str],
    reference: ImageReference,
    *,
    volume: int | None = None,
    channel: int | None = None,
    series: str | None = None,
) -> Volume:
    """Read the image of a session: all of it where the session was made on all time points.

    volume, channel, series: as for `read_volume`. Raises: ReadError.
    """
    if volume is None and channel is None and len(reference.shape) > 3:
        image = read_image(path, series)
        if "c" not in image.axes and tuple(image.array.shape) == reference.shape:
            return image
    return read_volume(path, volume=volume, channel=channel, series=series)


class SessionImage:
    """A file's volume with its axes in the order that a session's image had.

    napari shows a sagittal scan with its slices along x (`napari_sam2.io.place`); scripts mostly
    use the file's order. The pixels tell which of the two it was.
    """

    def __init__(self, volume: Volume, reference: ImageReference) -> None:
        self.volume = volume
        self.is_layer_order = volume.affine is not None and self._is_as_in_layer(reference)
        array = to_layer_order(volume.array, volume) if self.is_layer_order else volume.array
        self.array: Any = fitted(array, reference.shape)

    @property
    def placed(self) -> Volume:
        """The volume with the axes of `array`, and the affine that belongs to them."""
        if not self.is_layer_order:
            return self.volume
        affine = world_affine(self.volume)[:, [*layer_axes(self.volume), 3]]
        spacing = tuple(float(n) for n in np.linalg.norm(affine[:3, :3], axis=0))
        array = to_layer_order(self.volume.array, self.volume)
        return replace(self.volume, array=array, affine=ras_of_world(affine), spacing=spacing)

    def labels(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Labels in the shape of `array` as the file has its axes: (z, y, x)."""
        if self.is_layer_order:
            return np.asarray(to_file_order(labels, self.volume))
        return labels.reshape(self.volume.shape)

    def _is_as_in_layer(self, reference: ImageReference) -> bool:
        if layer_axes(self.volume) == (0, 1, 2):
            return False
        as_file = fitted(self.volume.array, reference.shape)
        as_layer = fitted(to_layer_order(self.volume.array, self.volume), reference.shape)
        if as_file.shape != as_layer.shape:
            return tuple(as_layer.shape) == reference.shape
        return fingerprint(as_layer).fits(reference.fingerprint)
