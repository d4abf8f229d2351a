"""Labels as TIFF, with ImageJ or OME metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tifffile

from napari_sam2.io.legend import Legend, LegendEntry, colour_of_bytes
from napari_sam2.io.volume import Volume, WriteError, label_dtype

NAME = "object name "
"""In the OME annotation of labels, before an object's id."""
_COLOUR = "object colour "


def write_tiff(path: Path, labels: Volume, legend: Legend) -> None:
    """Write labels with their axes and pixel size.

    A name ending in .ome.tif makes an OME-TIFF, with names and colours as a map annotation;
    otherwise it is an ImageJ stack, or OME-TIFF where ImageJ's format cannot hold it (ids above
    65535, more than 4 GB).

    Raises: WriteError for ids that OME-TIFF does not know either, from 2^32.
    """
    data = labels.array.astype(label_dtype(labels.array), copy=False)
    if data.dtype.itemsize > 4:
        raise WriteError(
            f"TIFF holds ids up to {2**32 - 1}, and these labels go up to {data.max()}; write them "
            "as .nii.gz, .nrrd or .ome.zarr, or number the objects anew."
        )
    axes = labels.axes.upper()
    if axes == "YX":
        data = data[0]
    size = dict(zip(axes if len(axes) > 2 else "ZYX", labels.spacing, strict=True))
    is_ome = ".ome." in path.name.lower() or data.dtype.itemsize > 2 or data.nbytes > 2**32 - 2**25
    metadata: dict[str, Any] = {"axes": axes}
    if is_ome:
        if labels.unit != "pixel":
            unit = "µm" if labels.unit == "um" else labels.unit
            for axis in [a for a in "XYZ" if a in axes]:
                metadata |= {f"PhysicalSize{axis}": size[axis], f"PhysicalSize{axis}Unit": unit}
        if "T" in axes:
            metadata |= {"TimeIncrement": size["T"], "TimeIncrementUnit": "s"}
        if legend:
            metadata["MapAnnotation"] = _annotation(legend)
        tifffile.imwrite(
            path, data, ome=True, metadata=metadata, compression="zlib", photometric="minisblack"
        )
        return
    metadata["unit"] = labels.unit
    if "T" in axes:
        metadata["finterval"] = size["T"]
    if "Z" in axes or axes == "YX":
        metadata["spacing"] = size["Z"]
    tifffile.imwrite(
        path,
        data,
        imagej=True,
        metadata=metadata,
        resolution=(1 / size["X"], 1 / size["Y"]),
        compression="zlib",
    )


def tiff_legend(path: Path) -> Legend:
    """Names and colours that `write_tiff` has put into an OME-TIFF; else none."""
    with tifffile.TiffFile(path) as tif:
        metadata = tifffile.xml2dict(tif.ome_metadata) if tif.ome_metadata else {}
    annotations = metadata.get("OME", {}).get("StructuredAnnotations", {}).get("MapAnnotation", [])
    names: dict[int, str] = {}
    colours: dict[int, str] = {}
    for annotation in annotations if isinstance(annotations, list) else [annotations]:
        pairs = annotation.get("Value", {}).get("M", [])
        for pair in pairs if isinstance(pairs, list) else [pairs]:
            key, value = str(pair.get("K", "")), str(pair.get("value", ""))
            for prefix, found in ((NAME, names), (_COLOUR, colours)):
                if key.startswith(prefix) and key.removeprefix(prefix).isdigit():
                    found[int(key.removeprefix(prefix))] = value
    return tuple(
        LegendEntry(
            i, names[i], colour_of_bytes(bytes.fromhex(colours[i])) if i in colours else None
        )
        for i in sorted(names)
    )


def _annotation(legend: Legend) -> dict[str, str]:
    pairs = {f"{NAME}{entry.id}": entry.name for entry in legend}
    colours = {f"{_COLOUR}{entry.id}": entry.bytes for entry in legend}
    return pairs | {key: bytes(value).hex() for key, value in colours.items() if value is not None}
