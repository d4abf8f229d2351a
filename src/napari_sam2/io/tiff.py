"""TIFF in: plain, ImageJ and OME; one file, or the files of one OME image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from napari_sam2.counted import listed
from napari_sam2.io.guard import Guarded, logged_errors
from napari_sam2.io.labels_tiff import NAME
from napari_sam2.io.volume import ReadError, Volume, check_memory, native

_INCOMPLETE = ("invalid page offset", "failed to reshape", "does not match page shape")
_MAX_RATIO = 2000  # no more than this is saved by compression
_TILES_TOGETHER = 2048  # pixels: tiles are read in blocks of about this side

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


def read_tiff(path: Path, series: str | None = None) -> Volume:
    """Read a picture, a stack or a time-lapse, with all of its channels.

    Uncompressed images are memory-mapped; of others, pages or tiles are unpacked when they are
    used. Lower resolutions of a pyramid come in `Volume.pyramid`. series: "1", "2", ... where the
    file holds several images.

    Raises: ReadError when a choice is needed, and for damaged files.
    """
    with _opened(path) as tif:
        index = _choose_series(path, tif, series)
        chosen = tif.series[index]
        _check_size(path, chosen)
        notes = []
        missing = sum(page is None for page in chosen.pages)
        if missing:
            notes.append(
                f"The files of {missing} of the image's {len(chosen.pages)} pages are not beside "
                "it; what is missing is shown as 0."
            )
        letters = chosen.axes.upper()
        levels = [
            _arrange(path, _open(path, tif, index, level), letters)
            for level in range(len(chosen.levels))
        ]
        sizes = _pixel_sizes(tif, index)
        channels = _channel_names(tif, index)
        is_named = NAME in (tif.ome_metadata or "")
    array, axes = levels[0]
    if axes == "zyx" and sizes["unit"] != "pixel" and sizes["Z"] is None:
        notes.append(
            f"The file does not give the distance between slices; it is taken as 1 {sizes['unit']}."
        )
    named = "c" in axes and len(channels) == array.shape[axes.index("c")]
    return Volume(
        array=array,
        spacing=_spacing(axes, sizes),
        unit=sizes["unit"],
        source=path.name if series is None else f"{path.name}, image {series}",
        axes=axes,
        notes=tuple(notes),
        channels=channels if named else (),
        pyramid=tuple(level for level, _ in levels[1:]),
        is_labels=is_named and array.dtype.kind in "ui" and "c" not in axes,
    )


def count_series(path: Path) -> int:
    """How many images a file holds."""
    with _opened(path) as tif:
        return len(tif.series)


def tiff_form(path: Path) -> tuple[tuple[int, ...], np.dtype, str]:
    """Shape, type and axes of a file's first image, as they lie in the file."""
    with _opened(path) as tif:
        first = tif.series[0]
        return first.shape, first.dtype, first.axes


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """A file whose pages are all there."""
    with logged_errors("tifffile") as problems, tifffile.TiffFile(path) as tif:
        count = len(tif.series)
        for problem in problems:
            if any(words in problem for words in _INCOMPLETE):
                reason = problem.split("> ")[-1]
                raise ReadError(
                    f"{path} is truncated or damaged: not all of its pages can be found ({reason});"
                    " copy it again."
                )
        if not count:
            raise ReadError(f"{path} is damaged: it holds no pages; copy it again.")
        yield tif


# ---- pixels


def _open(path: Path, tif: tifffile.TiffFile, index: int, level: int) -> Any:
    """One resolution of an image, as it lies in the file; read later where that is possible."""
    chosen = tif.series[index].levels[level]
    if chosen.dtype is None or chosen.dtype.kind not in "buif":
        raise ReadError(
            f"{path} holds values of type {chosen.dtype}; only integers and real numbers can be "
            "read."
        )
    if chosen.dataoffset is not None and chosen.dtype.kind != "b":
        return tifffile.memmap(path, series=index, level=level, mode="r")
    try:
        import zarr
    except ImportError:
        check_memory(path, chosen.nbytes)
        return chosen.asarray()
    import dask.array as da

    page = chosen.keyframe
    tiled = page.is_tiled
    store = tif.series[index].aszarr(level=level, chunkmode=None if tiled else "page")
    stored = zarr.open_array(store, mode="r")
    chunks = tuple(
        max(1, _TILES_TOGETHER // chunk) * chunk if tiled and 16 <= chunk < size else chunk
        for chunk, size in zip(stored.chunks, stored.shape, strict=True)
    )
    return da.from_array(Guarded(stored, path), chunks=chunks, name=False)


def _check_size(path: Path, chosen: tifffile.TiffPageSeries) -> None:
    """Compare what the file claims with what is there, before anything is allocated."""
    if chosen.size * chosen.dtype.itemsize > _MAX_RATIO * path.stat().st_size + 2**27:
        raise ReadError(
            f"{path} is truncated or damaged: it claims to hold an image of shape "
            f"{chosen.shape}, but the file is far too small for that; copy it again."
        )
    for page in chosen.pages:
        if page is None:
            continue
        ends = zip(page.dataoffsets, page.databytecounts, strict=True)
        if max((start + count for start, count in ends), default=0) > page.parent.filehandle.size:
            raise ReadError(
                f"{path} is truncated: pixels that its header points to are not there; copy it "
                "again."
            )


# ---- axes


def _arrange(path: Path, array: Any, letters: str) -> tuple[Any, str]:
    """The array with the axes of a `Volume`, and which."""
    if letters.count("Y") != 1 or letters.count("X") != 1 or array.ndim != len(letters):
        raise ReadError(
            f"{path} has the axes {letters!r}, which do not make pictures with rows and columns."
        )
    if 0 in array.shape:
        raise ReadError(f"{path} holds no pixels.")
    for axis in [a for a in letters if a not in "YX"]:
        if array.shape[letters.index(axis)] == 1:
            array = array.reshape(
                tuple(n for n, a in zip(array.shape, letters, strict=True) if a != axis)
            )
            letters = letters.replace(axis, "", 1)
    if "S" in letters:  # samples: grey or colour, with or without transparency; or channels
        count = array.shape[letters.index("S")]
        if count == 2:
            array = array[(slice(None),) * letters.index("S") + (0,)]
            letters = letters.replace("S", "")
        elif count > 4 and "C" not in letters:
            letters = letters.replace("S", "C")
    stack = "".join(a for a in letters if a not in "YXSC")
    if len(stack) == 1 and stack != "T":
        letters = letters.replace(stack, "Z")
    elif len(stack) == 2:
        depth = "Z" if "Z" in stack else stack.replace("T", "")[-1]
        time = stack.replace(depth, "")
        letters = letters.translate({ord(depth): "Z", ord(time): "T"})
    elif len(stack) > 2:
        raise ReadError(
            f"{path} has the axes {letters!r}: more than time, depth and channel cannot be read."
        )
    order = [a for a in "TCZYXS" if a in letters]
    array = array.transpose([letters.index(a) for a in order])
    axes = "".join(order).lower().removesuffix("s")
    if "S" in order:
        array = array[..., :3]
    if axes in ("yx", "cyx"):  # one picture, which a Volume holds as one slice
        y = axes.index("y")
        array = array[(slice(None),) * y + (np.newaxis,)]
        axes = axes.replace("cyx", "czyx")
    return native(array), axes


def _spacing(axes: str, sizes: dict[str, Any]) -> tuple[float, ...]:
    along = {"t": "T", "z": "Z", "y": "Y", "x": "X"}
    kinds = "zyx" if axes == "yx" else axes.replace("c", "")
    return tuple(sizes[along[axis]] or 1.0 for axis in kinds)


# ---- metadata


def _choose_series(path: Path, tif: tifffile.TiffFile, series: str | None) -> int:
    count = len(tif.series)
    if series is None and count == 1:
        return 0
    if series is not None and series.isdigit() and 1 <= int(series) <= count:
        return int(series) - 1
    if count == 1:
        raise ReadError(f"{path} holds a single image; leave out --series {series}.")
    found = [f"{n} (shape {s.shape})" for n, s in enumerate(tif.series, start=1)]
    raise ReadError(f"{path} holds {count} images; choose one with --series: {listed(found, 10)}.")


def _ome_pixels(tif: tifffile.TiffFile, index: int) -> dict[str, Any]:
    """The OME metadata of an image's pixels; empty where there is none."""
    if not (tif.is_ome and tif.ome_metadata):
        return {}
    images = tifffile.xml2dict(tif.ome_metadata).get("OME", {}).get("Image", {})
    image = images[min(index, len(images) - 1)] if isinstance(images, list) else images
    pixels: dict[str, Any] = image.get("Pixels", {})
    return pixels


def _channel_names(tif: tifffile.TiffFile, index: int) -> tuple[str, ...]:
    channels = _ome_pixels(tif, index).get("Channel", [])
    channels = channels if isinstance(channels, list) else [channels]
    if not any("Name" in channel for channel in channels):
        return ()
    return tuple(str(c.get("Name", f"channel {n}")) for n, c in enumerate(channels))


def _pixel_sizes(tif: tifffile.TiffFile, index: int) -> dict[str, Any]:
    """Sizes along T (s), Z, Y, X (None: unknown) and their "unit": "um", "mm" or "pixel"."""
    raw: dict[str, Any] = dict.fromkeys("TZYX")
    units: dict[str, str] = {}
    pixels = _ome_pixels(tif, index)
    if pixels:
        raw |= {axis: _positive(pixels.get(f"PhysicalSize{axis}")) for axis in "ZYX"}
        units = {axis: str(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "ZYX"}
        factor = {"s": 1.0, "ms": 1e-3, "min": 60.0, "h": 3600.0}.get(
            str(pixels.get("TimeIncrementUnit", "s"))
        )
        step = _positive(pixels.get("TimeIncrement"))
        raw["T"] = step * factor if step and factor else None
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
