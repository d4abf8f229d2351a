"""Labels as TIFF, with ImageJ or OME metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from napari_sam2.io.volume import Volume, label_dtype


def write_tiff(path: Path, labels: np.ndarray, like: Volume) -> None:
    """Write labels (z, y, x) with the axes and pixel size of `like`.

    A name ending in .ome.tif makes an OME-TIFF; otherwise it is an ImageJ stack, or OME-TIFF where
    ImageJ's format cannot hold it (ids above 65535, more than 4 GB).
    """
    data = labels.astype(label_dtype(labels))
    axes = like.axes.upper()
    if axes == "YX":
        data = data[0]
    first, y, x = like.spacing
    is_ome = ".ome." in path.name.lower() or data.dtype.itemsize > 2 or data.nbytes > 2**32 - 2**25
    metadata: dict[str, Any] = {"axes": axes}
    if is_ome:
        if like.unit != "pixel":
            unit = "µm" if like.unit == "um" else like.unit
            metadata |= {
                "PhysicalSizeX": x,
                "PhysicalSizeXUnit": unit,
                "PhysicalSizeY": y,
                "PhysicalSizeYUnit": unit,
            }
            if axes == "ZYX":
                metadata |= {"PhysicalSizeZ": first, "PhysicalSizeZUnit": unit}
        if axes == "TYX":
            metadata |= {"TimeIncrement": first, "TimeIncrementUnit": "s"}
        tifffile.imwrite(
            path, data, ome=True, metadata=metadata, compression="zlib", photometric="minisblack"
        )
        return
    metadata["unit"] = like.unit
    metadata |= {"finterval": first} if axes == "TYX" else {"spacing": first}
    tifffile.imwrite(
        path, data, imagej=True, metadata=metadata, resolution=(1 / x, 1 / y), compression="zlib"
    )
