"""PNG and JPEG in, through Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from napari_sam2.io.volume import ReadError, Volume, native

_GREY = {"1": np.uint8, "L": np.uint8, "LA": np.uint8, "I": np.int32, "F": np.float32}
"""Type of the values, by Pillow's mode; other modes are colours, or grey in 16 bits."""


def read_picture(path: Path) -> Volume:
    """Read one picture as (1, y, x), or (1, y, x, 3) in colours; transparency is left out.

    Raises: ReadError for pictures that are too large for Pillow; what Pillow raises, if damaged.
    """
    with _opened(path) as picture:
        dtype = _dtype(picture)
        if dtype is None:
            array = np.asarray(picture.convert("RGB"))
        elif picture.mode == "LA":
            array = np.asarray(picture.getchannel("L"))
        else:
            array = np.asarray(picture).astype(dtype, copy=False)
    return Volume(array=native(array[np.newaxis]), source=path.name, axes="yx")


def picture_form(path: Path) -> tuple[tuple[int, int], str, str]:
    """Size (y, x), type of the values and axes, without reading pixels."""
    with _opened(path) as picture:
        dtype = _dtype(picture)
        return picture.size[::-1], str(dtype or "colours"), "YX"


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise ReadError(
            f"{path} claims to be a picture of more than {2 * (Image.MAX_IMAGE_PIXELS or 0):.0f} "
            "pixels; save it as TIFF, which is read part by part."
        ) from error


def _dtype(picture: Image.Image) -> np.dtype | None:
    """Of grey values; None for colours."""
    if picture.mode.startswith("I;16"):
        return np.dtype(np.uint16)
    grey = _GREY.get(picture.mode)
    return None if grey is None else np.dtype(grey)
