"""Labels as OME-Zarr: a label image of its own, or one in the labels of an image.

`organs.ome.zarr` is a label image of its own; `scan.ome.zarr/labels/organs` belongs to the image in
`scan.ome.zarr`, and viewers show both together.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sam2.io.legend import Legend, LegendEntry, colour_of_bytes
from napari_sam2.io.volume import Volume, WriteError, label_dtype

if TYPE_CHECKING:
    import zarr

_UNITS = {"mm": "millimeter", "um": "micrometer"}
_SMALLEST = 256  # rows and columns of the coarsest level, at most
_CHUNK = 512


def write_zarr(path: Path, labels: Volume, legend: Legend, image: Path | None = None) -> None:
    """Write labels as a pyramid, with their axes, pixel size, names and colours.

    Every level takes every second row and column of the one before, so that ids stay ids.

    image: the OME-Zarr image that the labels belong to, whose version of the format they get.
    """
    import zarr
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import add_metadata, write_multiscale

    is_old = image is not None and zarr.open_group(image, mode="r").metadata.zarr_format == 2
    fmt = FormatV04() if is_old else FormatV05()
    array = labels.array.astype(label_dtype(labels.array), copy=False)
    if labels.axes == "yx":
        array = array[0]
    axes = labels.axes
    spacing = labels.spacing[-len(axes) :]
    units = {axis: "second" if axis == "t" else _UNITS.get(labels.unit) for axis in axes}
    levels = [array]
    while max(levels[-1].shape[-2:]) > _SMALLEST:
        levels.append(levels[-1][..., ::2, ::2])
    chunks = (*[1] * (array.ndim - 2), _CHUNK, _CHUNK)
    path.parent.mkdir(exist_ok=True)  # the folder "labels" of an image
    group = zarr.open_group(path, mode="w", zarr_format=fmt.zarr_format)
    write_multiscale(
        levels,
        group,
        fmt=fmt,
        axes=axes,
        axes_units={axis: unit for axis, unit in units.items() if unit},
        scale=dict(zip(axes, spacing, strict=True)),
        storage_options=[
            {"chunks": [min(c, s) for c, s in zip(chunks, level.shape, strict=True)]}
            for level in levels
        ],
    )
    label: dict[str, Any] = {
        "version": fmt.version,
        "properties": [{"label-value": entry.id, "name": entry.name} for entry in legend],
    }
    colours = [
        {"label-value": entry.id, "rgba": [*entry.bytes, 255]} for entry in legend if entry.bytes
    ]
    if colours:
        label["colors"] = colours
    if image is not None:
        label["source"] = {"image": "../../"}
    add_metadata(group, {"image-label": label}, fmt=fmt)


def zarr_legend(path: Path) -> Legend:
    """Names and colours in a label image; none in an image."""
    import zarr

    label = _metadata(zarr.open_group(path, mode="r")).get("image-label", {})
    colours = {int(one["label-value"]): one.get("rgba") for one in label.get("colors", [])}
    names = {
        int(one["label-value"]): str(one["name"])
        for one in label.get("properties", [])
        if "name" in one
    }
    return tuple(
        LegendEntry(
            i, names.get(i, f"Object {i}"), colour_of_bytes(colours[i]) if colours.get(i) else None
        )
        for i in sorted(names.keys() | colours.keys() - {0})
    )


def image_of(path: Path) -> Path | None:
    """The OME-Zarr image for whose labels a path is meant: "image.zarr" of
    "image.zarr/labels/name"; None for a label image of its own."""
    is_inside = path.parent.name == "labels" and path.parent.parent.name.lower().endswith(".zarr")
    return path.parent.parent if is_inside else None


def register(image: Path, name: str) -> None:
    """Make labels known that lie in an image's folder "labels"."""
    import zarr
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import add_metadata

    is_old = zarr.open_group(image, mode="r").metadata.zarr_format == 2
    fmt = FormatV04() if is_old else FormatV05()
    group = zarr.open_group(image / "labels", mode="a", zarr_format=fmt.zarr_format)
    known = _metadata(group).get("labels", [])
    if name not in known:
        add_metadata(group, {"labels": [*known, name]}, fmt=fmt)


def check_replaceable(path: Path) -> None:
    """Raises WriteError where a folder is anything but a label image."""
    import zarr

    try:
        is_label_image = "image-label" in _metadata(zarr.open_group(path, mode="r"))
    except Exception:  # not zarr, or damaged
        is_label_image = False
    if not is_label_image:
        raise WriteError(
            f"Labels cannot be written to {path}: it is a folder with something else than labels; "
            f"to add labels to an OME-Zarr image, write to {path / 'labels' / 'NAME'}."
        )


def _metadata(group: zarr.Group) -> dict[str, Any]:
    attributes: dict[str, Any] = dict(group.attrs)
    return attributes.get("ome", attributes)
