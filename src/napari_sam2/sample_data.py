"""Images to try the widget on: File > Open Sample > SAM 2."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LayerData = tuple[NDArray[Any], dict[str, Any], str]


def moving_cells() -> list[LayerData]:
    """A computed time-lapse of cells that move, (40, 256, 320) uint8: nothing is downloaded."""
    rng = np.random.default_rng(3)
    frames, height, width, cells = 40, 256, 320, 9
    rows, columns = np.ogrid[:height, :width]
    start = rng.uniform((30, 30), (height - 30, width - 30), (cells, 2))
    velocity = rng.normal(0, 1.2, (cells, 2))
    radius, value = rng.uniform(11, 18, cells), rng.uniform(90, 170, cells)
    movie = np.empty((frames, height, width), np.uint8)
    for frame in range(frames):
        image = rng.normal(32, 7, (height, width))
        for cell in range(cells):
            y, x = start[cell] + velocity[cell] * frame
            stretch = 1 + 0.25 * np.sin(frame / 6 + cell)
            distance = np.hypot((rows - y) / stretch, (columns - x) * stretch) / radius[cell]
            image += (
                value[cell] / (1 + np.exp(12 * (distance - 1))) * (1 - 0.3 * distance.clip(0, 1))
            )
        movie[frame] = image.clip(0, 255)
    options = {"name": "moving cells", "axis_labels": ("t", "y", "x"), "contrast_limits": (0, 255)}
    return [(movie, options, "image")]


def brain() -> list[LayerData]:
    """The MNI152 T1 template, a brain MRI that comes with nilearn: (z, y, x), 2 mm."""
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise ImportError(
            "This sample comes with the package nilearn, which is not installed. "
            'Install it with: pip install "napari-sam2[demo]"'
        ) from error
    volume = np.asarray(load_mni152_template(resolution=2).dataobj, np.float32)
    # From the file's (x, y, z), which grow to the right, front and top, to slices seen from below.
    volume = np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1])
    options = {"name": "MNI152", "scale": (2, 2, 2), "axis_labels": ("z", "y", "x")}
    return [(volume, options, "image")]
