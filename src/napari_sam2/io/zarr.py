"""OME-Zarr in, through the library ome-zarr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Multiscales, Node

from napari_sam2.counted import counted, listed
from napari_sam2.io.guard import Guarded, logged_errors
from napari_sam2.io.volume import ReadError, Volume, native

_LENGTHS = {  # unit in the file -> (unit of the Volume, factor)
    "angstrom": ("um", 1e-4),
    "nanometer": ("um", 1e-3),
    "micrometer": ("um", 1.0),
    "millimeter": ("mm", 1.0),
    "centimeter": ("mm", 10.0),
    "meter": ("mm", 1e3),
}
_SECONDS = {"second": 1.0, "millisecond": 1e-3, "microsecond": 1e-6, "minute": 60.0, "hour": 3600.0}


def count_images(path: Path) -> int:
    """How many images and labels are in an OME-Zarr folder."""
    return len(_nodes(path))


def read_zarr(path: Path, series: str | None = None) -> Volume:
    """Read an image with all time points and channels; chunks are read when they are used.

    Lower resolutions come in `Volume.pyramid`. series: "1" is the image (or the first of several),
    the next ones are its labels; by default the only image.

    Raises: ReadError for what is no OME-Zarr image, and when a choice is needed.
    """
    nodes = _nodes(path)
    images = [node for node in nodes if not _is_labels(node)]
    if series is not None:
        if not (series.isdigit() and 1 <= int(series) <= len(nodes)):
            raise ReadError(f"{path} holds {len(nodes)} images; there is no --series {series}.")
        node = nodes[int(series) - 1]
    elif len(images or nodes) == 1:
        node = (images or nodes)[0]
    else:
        found = [f"{n} ({_name(node)})" for n, node in enumerate(nodes, start=1)]
        raise ReadError(
            f"{path} holds {len(nodes)} images; choose one with --series: {listed(found, 10)}."
        )
    return _read(path, node, node is nodes[0] and series is None)


def _nodes(path: Path) -> list[Node]:
    """The image, or the images of a folder of several; then the labels that belong to them."""
    found, labels = [], []
    with logged_errors("ome_zarr"):
        for place in (path, *_inner_images(path)):
            if not (nodes := _node(place)):
                continue
            found += nodes
            names = _attributes(place / "labels").get("labels", [])
            for name in names if isinstance(names, list) else []:
                labels += _node(place / "labels" / str(name)) if ".." not in str(name) else []
    if found:
        return found + labels
    wells = _wells(path)
    if wells:
        fields = [str(image.relative_to(path)) for image in _inner_images(path / wells[0])]
        raise ReadError(
            f"{path} is a plate of {counted(len(wells), 'well')} ({listed(wells, 8)}); "
            f"open the folder of a field of view, such as {path / (fields or wells)[0]}."
        )
    raise ReadError(
        f"{path} holds no OME-Zarr image; give the folder of an image (it names its multiscales)."
    )


def _wells(path: Path) -> list[str]:
    """The folders of the wells that a plate lists, and that are there: "A/1", "A/2"..."""
    plate = _attributes(path).get("plate")
    wells = plate.get("wells") if isinstance(plate, dict) else None
    names = [str(well.get("path")) for well in wells or [] if isinstance(well, dict)]
    return [well for well in names if ".." not in well and (path / well).is_dir()]


def _node(place: Path) -> list[Node]:
    """The image in a folder; none if it is not one."""
    location = parse_url(place)
    is_image = location is not None and "multiscales" in location.root_attrs
    return [Node(location, [])] if is_image else []


def _inner_images(path: Path) -> list[Path]:
    """Images inside a folder that is not one itself: 0, 1... of bioformats2raw and of a well."""
    if "multiscales" in _attributes(path):
        return []
    inner = (place for place in path.iterdir() if place.is_dir() and place.name.isdigit())
    return sorted(inner, key=lambda place: int(place.name))


def _attributes(place: Path) -> dict[str, Any]:
    try:
        attributes = dict(zarr.open_group(place, mode="r").attrs)
    except (FileNotFoundError, ValueError):
        return {}
    inner = attributes.get("ome")
    return inner if isinstance(inner, dict) else attributes


def _is_labels(node: Node) -> bool:
    return "image-label" in node.zarr.root_attrs


def _name(node: Node) -> str:
    return str(node.metadata.get("name") or Path(node.zarr.path).name)


def _read(path: Path, node: Node, is_only: bool) -> Volume:
    multiscales = next(spec for spec in node.specs if isinstance(spec, Multiscales))
    # Files before version 0.4 name axes without units, or not at all.
    stated = node.zarr.root_attrs["multiscales"][0].get("axes") or node.metadata["axes"]
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in stated]
    names = "".join(str(axis["name"])[0] for axis in axes)
    place = Path(node.zarr.path)
    levels = [_arrange(path, _open(place, name), names) for name in multiscales.datasets]
    array, kinds = levels[0]
    scale = _scale(node, len(axes))
    factors, unit = _units(axes)
    sizes = {name: s * f for name, s, f in zip(names, scale, factors, strict=True)}
    channels = tuple(str(name) for name in node.metadata.get("channel_names") or ())
    if "c" not in kinds or len(channels) != array.shape[kinds.index("c")]:
        channels = ()
    limits = node.metadata.get("contrast_limits") or ()
    windows = {
        name: (float(pair[0]), float(pair[1]))
        for name, pair in zip(channels or ("of the file",), limits, strict=False)
        if pair and None not in pair and pair[0] < pair[1]
    }
    along = "zyx" if kinds == "yx" else kinds.replace("c", "")
    return Volume(
        array=array,
        spacing=tuple(sizes.get(axis, 1.0) for axis in along),
        unit=unit,
        source=path.name if is_only else f"{path.name}, {_name(node)}",
        axes=kinds,
        channels=channels,
        windows=windows,
        pyramid=tuple(level for level, _ in levels[1:]),
        is_labels=_is_labels(node) and array.dtype.kind in "ui",
    )


def _open(place: Path, name: str) -> Any:
    """One resolution, read chunk by chunk later."""
    stored = zarr.open_array(place / name, mode="r")
    if stored.dtype.kind not in "buif":
        raise ReadError(
            f"{place} holds values of type {stored.dtype}; only integers and real numbers can be "
            "read."
        )
    return da.from_array(Guarded(stored, place / name), chunks=stored.chunks, name=False)


def _arrange(path: Path, array: Any, names: str) -> tuple[Any, str]:
    """The array with the axes of a `Volume`, and which."""
    if array.ndim != len(names) or not {"y", "x"} <= set(names) or set(names) - set("tczyx"):
        raise ReadError(
            f"{path} has the axes {', '.join(names)} and arrays of {array.ndim} axes; t, c, z, y "
            "and x can be read."
        )
    for axis in "tcz":
        if axis in names and array.shape[names.index(axis)] == 1:
            array = array[(slice(None),) * names.index(axis) + (0,)]
            names = names.replace(axis, "")
    array = array.transpose([names.index(axis) for axis in "tczyx" if axis in names])
    names = "".join(axis for axis in "tczyx" if axis in names)
    if names in ("yx", "cyx"):  # one picture, which a Volume holds as one slice
        array = array[..., np.newaxis, :, :]
        names = names.replace("cyx", "czyx")
    return native(array), names


def _scale(node: Node, count: int) -> list[float]:
    """Size of an element of the highest resolution along each axis of the file."""
    total = np.ones(count)
    whole = node.zarr.root_attrs["multiscales"][0].get("coordinateTransformations") or []
    first = (node.metadata.get("coordinateTransformations") or [[]])[0] or []
    for step in [*first, *whole]:
        factor = np.asarray(step.get("scale", np.ones(count)), float)
        if step.get("type") == "scale" and factor.shape == (count,):
            total *= np.where(np.isfinite(factor) & (factor > 0), factor, 1.0)
    return [float(factor) for factor in total]


def _units(axes: list[dict[str, Any]]) -> tuple[list[float], str]:
    """Factors that bring each axis to the unit of the Volume (seconds along t), and that unit."""
    lengths = [_LENGTHS.get(str(axis.get("unit"))) for axis in axes if axis["name"] in "zyx"]
    known = [length for length in lengths if length is not None]
    unit = known[-1][0] if len(known) == len(lengths) else "pixel"
    in_um = {"um": 1.0, "mm": 1e3}
    factors = []
    for axis in axes:
        length = _LENGTHS.get(str(axis.get("unit")))
        if axis["name"] == "t":
            factors.append(_SECONDS.get(str(axis.get("unit")), 1.0))
        elif unit != "pixel" and length is not None:
            factors.append(length[1] * in_um[length[0]] / in_um[unit])
        else:
            factors.append(1.0)
    return factors, unit
