"""TIFF in: pictures, stacks and time-lapses, with OME or ImageJ metadata if any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from napari_sam2.io.volume import ReadError, Volume, native

_MAX_RATIO = 2000  # no more than this is saved by compression

# unit in the file -> (unit of the Volume, factor)
_UNITS = {
    **dict.fromkeys(("nm", "nanometer"), ("um", 1e-3)),
    **dict.fromkeys(("um", "µm", "μm", "\\u00b5m", "micron", "microns", "micrometer"), ("um", 1.0)),
    **dict.fromkeys(("mm", "millimeter"), ("mm", 1.0)),
    "å": ("um", 1e-4),
    "cm": ("mm", 10.0),
    "inch": ("mm", 25.4),
    "m": ("mm", 1e3),
}


def read_tiff(
    path: Path, volume: int | None = None, channel: int | None = None, series: str | None = None
) -> Volume:
    """Read a picture, a stack or a time-lapse.

    volume: the time point, where the file has both time and depth. channel: which, where it has
    several (red, green and blue samples are one colour image). series: 1, 2, ... where it holds
    several images.

    Raises: ReadError when a choice is needed, and says which.
    """
    with tifffile.TiffFile(path) as tif:
        index = _choose_series(path, tif, series)
        chosen = tif.series[index]
        if chosen.size * chosen.dtype.itemsize > _MAX_RATIO * path.stat().st_size + 2**27:
            raise ReadError(
                f"{path} is truncated or damaged: it claims to hold an image of shape "
                f"{chosen.shape}, but the file is far too small for that; copy it again."
            )
        array, axes = chosen.asarray(), chosen.axes.upper()
        sizes = _pixel_sizes(tif, index)

    if axes.count("Y") != 1 or axes.count("X") != 1 or array.ndim != len(axes):
        raise ReadError(
            f"{path} has the axes {axes!r}, which do not make pictures with rows and columns."
        )
    if array.dtype.kind not in "buif":
        raise ReadError(
            f"{path} holds values of type {array.dtype}; only integers and real numbers can be "
            "read."
        )
    for axis in [a for a in axes if a not in "YX"]:
        if array.shape[axes.index(axis)] == 1:
            array, axes = array.squeeze(axes.index(axis)), axes.replace(axis, "", 1)
    array, axes = _take(path, array, axes, "C", channel, "channel", "channels")
    stack = axes.translate(str.maketrans("", "", "YXS"))
    if len(stack) == 2:
        time = "T" if "T" in stack else stack[0]
        array, axes = _take(path, array, axes, time, volume, "volume", "volumes")
    elif len(stack) > 2:
        raise ReadError(
            f"{path} has the axes {axes!r}: more than time, depth and channel cannot be read."
        )
    elif volume not in (None, 0):
        raise ReadError(f"{path} holds a single volume; leave out --volume {volume}.")

    stack = axes.translate(str.maketrans("", "", "YXS"))
    order = stack + "YX" + ("S" if "S" in axes else "")
    array = array.transpose([axes.index(a) for a in order])
    if not stack:
        array = array[np.newaxis]
    if "S" in axes:  # grey or colour, with or without transparency
        array = array[..., :3] if array.shape[-1] >= 3 else array[..., 0]
    if 0 in array.shape:
        raise ReadError(f"{path} holds no pixels.")
    unit = sizes["unit"]
    notes: list[str] = []
    kind = "yx" if not stack else "tyx" if stack == "T" else "zyx"
    first = sizes["T" if kind == "tyx" else "Z"]
    if kind == "zyx" and unit != "pixel" and first is None:
        notes.append(
            f"The file does not give the distance between slices; it is taken as 1 {unit}."
        )
    return Volume(
        array=native(array),
        spacing=(first or 1.0, sizes["Y"] or 1.0, sizes["X"] or 1.0),
        unit=unit,
        source=path.name,
        axes=kind,
        notes=tuple(notes),
    )


def _choose_series(path: Path, tif: tifffile.TiffFile, series: str | None) -> int:
    count = len(tif.series)
    if series is None and count == 1:
        return 0
    if series is not None and series.isdigit() and 1 <= int(series) <= count:
        return int(series) - 1
    if count == 1:
        raise ReadError(f"{path} holds a single image; leave out --series {series}.")
    found = ", ".join(f"{n} (shape {s.shape})" for n, s in enumerate(tif.series[:10], start=1))
    more = f" and {count - 10} more" if count > 10 else ""
    raise ReadError(f"{path} holds {count} images; choose one with --series: {found}{more}.")


def _take(
    path: Path, array: np.ndarray, axes: str, axis: str, index: int | None, option: str, plural: str
) -> tuple[np.ndarray, str]:
    """Pick one index of an axis, or say that it must be picked."""
    if axis not in axes:
        if index not in (None, 0):
            raise ReadError(f"{path} holds a single {option}; leave out --{option} {index}.")
        return array, axes
    position = axes.index(axis)
    count = array.shape[position]
    if index is None:
        raise ReadError(
            f"{path} holds {count} {plural}; choose one with --{option} 0 to --{option} "
            f"{count - 1}."
        )
    if not 0 <= index < count:
        raise ReadError(
            f"{path} holds {count} {plural}; there is no --{option} {index}, use 0 to {count - 1}."
        )
    return array.take(index, axis=position), axes.replace(axis, "", 1)


def _pixel_sizes(tif: tifffile.TiffFile, index: int) -> dict[str, Any]:
    """Sizes along T (s), Z, Y, X (None: unknown) and their "unit": "um", "mm" or "pixel"."""
    raw: dict[str, Any] = dict.fromkeys("TZYX")
    units: dict[str, str] = {}
    if tif.is_ome and tif.ome_metadata:
        images = tifffile.xml2dict(tif.ome_metadata).get("OME", {}).get("Image", {})
        image = images[min(index, len(images) - 1)] if isinstance(images, list) else images
        pixels = image.get("Pixels", {})
        raw |= {axis: _positive(pixels.get(f"PhysicalSize{axis}")) for axis in "ZYX"}
        units = {axis: str(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "ZYX"}
        if pixels.get("TimeIncrementUnit", "s") == "s":
            raw["T"] = _positive(pixels.get("TimeIncrement"))
    elif tif.is_imagej and tif.imagej_metadata:
        found, tags = tif.imagej_metadata, tif.pages.first.tags
        raw |= {"Z": _positive(found.get("spacing")), "T": _positive(found.get("finterval"))}
        for axis in "YX":
            tag = tags.get(f"{axis}Resolution")
            raw[axis] = _positive(tag.value[1] / tag.value[0]) if tag and tag.value[0] else None
        units = dict.fromkeys("ZYX", str(found.get("unit", "pixel")))

    converted = {axis: _UNITS.get(unit.strip().lower()) for axis, unit in units.items()}
    in_plane = converted.get("X")
    if raw["X"] is None or raw["Y"] is None or in_plane is None or converted["Y"] is None:
        return dict.fromkeys("ZYX") | {"T": raw["T"], "unit": "pixel"}
    unit = in_plane[0]
    to_micrometres = {"um": 1.0, "mm": 1e3}
    for axis, known in converted.items():
        if raw[axis] is not None and known is not None:
            raw[axis] *= known[1] * to_micrometres[known[0]] / to_micrometres[unit]
    return raw | {"unit": unit}


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None
