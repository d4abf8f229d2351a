"""Where to ask for objects on a frame: a grid, spots of contrast, or a classical segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from sam2_engine.masks import deepest_point

_MIN_CONTRAST = 0.15  # of a frame's range, between an object and what is around it
_SMOOTHING = 0.25  # of an object's radius, for the classical segmentation
_MIN_AREA = 0.2  # of a disc of the expected diameter: what is smaller is noise


@dataclass(frozen=True, eq=False)
class Seeds:
    """N places to ask for an object at, in frame pixels."""

    points: NDArray[np.float32]
    """(N, 2) y, x, one on each object."""
    boxes: NDArray[np.float32] | None = None
    """(N, 4) y0, x0, y1, x1 of the outermost pixels of the object."""
    regions: NDArray[np.int32] | None = None
    """(H, W) roughly the objects: n + 1 where the object of point n is, 0 beside all."""

    def __len__(self) -> int:
        return len(self.points)


def grid_seeds(shape: tuple[int, int], points_per_side: int = 32) -> Seeds:
    """points_per_side x points_per_side points, spread evenly over a frame of H x W."""
    height, width = shape
    at = (np.arange(points_per_side) + 0.5) / points_per_side
    y, x = np.meshgrid(at * height - 0.5, at * width - 0.5, indexing="ij")
    return Seeds(np.stack((y, x), axis=-1).reshape(-1, 2).astype(np.float32))


def contrast_seeds(frame: ArrayLike, diameter: float, min_contrast: float = _MIN_CONTRAST) -> Seeds:
    """A point in each blob, brighter or darker than what is around it, of about a diameter.

    Args:
        frame: (H, W) or (H, W, C).
        diameter: of a typical object, in pixels.
        min_contrast: of the frame's range; fainter blobs are left out.
    """
    from skimage.feature import peak_local_max

    grey = _grey(frame)
    sigma = diameter / 2 / np.sqrt(2)  # where a disc's response is largest
    blobs = ndimage.gaussian_filter(grey, sigma / 2) - ndimage.gaussian_filter(grey, sigma * 2)
    apart = max(1, round(diameter / 3))
    points = [
        peak_local_max(
            sign * blobs, min_distance=apart, threshold_abs=min_contrast / 2, exclude_border=False
        )
        for sign in (1, -1)
    ]
    return Seeds(np.concatenate(points).astype(np.float32))


def classical_seeds(frame: ArrayLike, diameter: float, local: bool = False) -> Seeds:
    """The instances of a threshold and a watershed of the distances to the background.

    Args:
        frame: (H, W) or (H, W, C); the fewer of bright and dark pixels are taken as objects.
        diameter: of a typical object, in pixels.
        local: threshold by the surroundings of each pixel, not by Otsu's for the whole frame; for
            frames that are lit unevenly.
    """
    return label_seeds(classical_labels(frame, diameter, local))


def classical_labels(frame: ArrayLike, diameter: float, local: bool = False) -> NDArray[np.int32]:
    """(H, W) what `classical_seeds` starts from."""
    from skimage.feature import peak_local_max
    from skimage.filters import threshold_local, threshold_otsu
    from skimage.segmentation import watershed

    grey = ndimage.gaussian_filter(_grey(frame), _SMOOTHING * diameter / 2)
    otsu = threshold_otsu(grey) if np.ptp(grey) > 0 else 1.0
    is_bright = grey > otsu
    sign = 1 if is_bright.mean() <= 0.5 else -1  # there is less of objects than of background
    bar = threshold_local(grey, 2 * int(2 * diameter) + 1) if local else otsu
    inside = sign * grey > sign * bar
    if local:  # and where the frame is flat there is nothing
        spread = ndimage.gaussian_filter(np.abs(grey - bar), diameter)
        inside &= spread > _MIN_CONTRAST / 4
    inside = ndimage.binary_fill_holes(inside)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside), diameter / 10)
    tops = peak_local_max(
        depth, min_distance=max(1, round(diameter / 3)), labels=ndimage.label(inside)[0],
        exclude_border=False,
    )  # fmt: skip
    markers = np.zeros(inside.shape, np.int32)
    markers[tuple(tops.T)] = np.arange(1, len(tops) + 1)
    labels = watershed(-depth, markers, mask=inside)
    areas = np.bincount(labels.ravel())
    labels[areas[labels] < _MIN_AREA * np.pi / 4 * diameter**2] = 0
    return labels.astype(np.int32)


def label_seeds(labels: ArrayLike) -> Seeds:
    """Points, boxes and regions of the instances of a labels image (H, W), in order of their ids.

    The point of an instance is the pixel farthest from all that is not of it. What is 0 or below is
    none, such as what another program has marked as unknown.
    """
    ids, flat = np.unique(np.maximum(labels, 0), return_inverse=True)
    has_background = len(ids) > 0 and ids[0] == 0
    regions = (flat.reshape(np.shape(labels)) + (0 if has_background else 1)).astype(np.int32)
    points, boxes = [], []
    for index, area in enumerate(ndimage.find_objects(regions), start=1):
        (y0, y1), (x0, x1) = ((side.start, side.stop) for side in area)
        y, x = deepest_point(regions[area] == index)
        points.append((y0 + y, x0 + x))
        boxes.append((y0, x0, y1 - 1, x1 - 1))
    return Seeds(
        np.array(points, np.float32).reshape(-1, 2),
        np.array(boxes, np.float32).reshape(-1, 4),
        regions,
    )


def typical_diameter(frame: ArrayLike) -> float:
    """A guess at the diameter of the objects of a frame, in pixels: that of its usual blobs.

    The scale at which differences of Gaussians respond most, of 4 to a quarter of the frame.
    """
    grey = _grey(frame)
    diameters = 4 * 1.25 ** np.arange(int(np.log(max(min(grey.shape) / 16, 1)) / np.log(1.25)) + 1)
    responses = []
    for diameter in diameters:
        sigma = diameter / 2 / np.sqrt(2)
        blobs = ndimage.gaussian_filter(grey, sigma / 1.26) - ndimage.gaussian_filter(
            grey, sigma * 1.26
        )
        responses.append(np.sqrt((blobs**2).mean()))
    return float(diameters[int(np.argmax(responses))])


def _grey(frame: ArrayLike) -> NDArray[np.float32]:
    """(H, W) 0 to 1 by the frame's percentiles, of the mean of its channels."""
    values = np.nan_to_num(np.asarray(frame, dtype=np.float32))
    if values.ndim == 3:
        values = values[..., :3].mean(axis=-1)
    low, high = np.percentile(values, (0.5, 99.5))
    grey: NDArray[Any] = ((values - low) / max(high - low, 1e-6)).clip(0, 1)
    return grey.astype(np.float32)
