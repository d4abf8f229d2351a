"""Labels layers of napari as files: the writers of the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sam2.io.labels import write_labels
from napari_sam2.io.legend import RGB
from napari_sam2.io.place import ras_of_world, to_file_order
from napari_sam2.io.readers import source_of
from napari_sam2.io.volume import Volume, WriteError

if TYPE_CHECKING:
    from napari_sam2.session import Session

SESSION_KEY = "napari_sam2_session"
"""Under this key, the metadata of a layer of masks hold a weak reference to their session."""

_PLACE = ("scale", "translate", "rotate", "shear", "affine")
_UNITS = {"millimeter": ("mm", 1.0), "micrometer": ("um", 1e-3)}
_TIME = ("t", "time")
_CHANNEL = ("c", "channel")


def write_layer(path: str, data: Any, meta: dict[str, Any], *, suffix: str) -> list[str]:
    """Write a labels layer, for napari's Save dialog, which asks before it replaces a file.

    path: its suffix chooses the format, as for `write_labels`.
    suffix: of a path that has none. Of two that end in .dcm, it chooses.
    data, meta: as of `layer.as_layer_data_tuple()`. A layer of labels that lies on an image which
        this plugin has opened goes back to that file's axes and place; another one is placed by its
        scale, affine and units. Names and parents are taken from its session, or the columns
        "index", "name" and "parent" of its features, and colours from its colormap, if each object
        has its own.

    Returns the path. Raises WriteError.
    """
    levels = data if meta.get("multiscale") else [data]
    labels, like = _in_file(levels[0], meta) or layer_volume(levels[0], meta)
    array = np.asarray(labels)
    if not Path(path).suffix and not path.lower().endswith("_res"):
        path += suffix
    is_rtstruct = suffix == ".rtstruct.dcm" and path.lower().endswith(".dcm")
    write_labels(
        path,
        array,
        like,
        overwrite=True,
        names=names_in(meta),
        colours=_colours(meta),
        parents=parents_in(meta),
        format="rtstruct" if is_rtstruct else None,
    )
    return [path]


write_nifti = partial(write_layer, suffix=".nii.gz")
write_tiff = partial(write_layer, suffix=".ome.tif")
write_nrrd = partial(write_layer, suffix=".seg.nrrd")
write_seg = partial(write_layer, suffix=".dcm")
write_rtstruct = partial(write_layer, suffix=".rtstruct.dcm")
write_zarr = partial(write_layer, suffix=".ome.zarr")
write_ctc = partial(write_layer, suffix="_RES")


def session_of(metadata: Mapping[str, Any]) -> Session | None:
    """The session whose masks a labels layer with these metadata shows, while it is open."""
    reference = metadata.get(SESSION_KEY)
    session: Session | None = None if reference is None else reference()
    return session


def names_in(meta: Mapping[str, Any]) -> dict[int, str]:
    """What the objects of a labels layer are called, by id. meta: as for `write_layer`."""
    session = session_of(meta.get("metadata", {}))
    if session is not None:
        return {object_id: info.name for object_id, info in session.objects.items()}
    return {i: str(name) for i, name in _feature(meta, "name")}


def parents_in(meta: Mapping[str, Any]) -> dict[int, int]:
    """Daughter -> parent, of the objects of a labels layer. meta: as for `write_layer`."""
    session = session_of(meta.get("metadata", {}))
    if session is not None:
        return {**session.parents}
    pairs = _feature(meta, "parent")
    return {i: int(parent) for i, parent in pairs if np.isreal(parent) and parent > 0}


def _feature(meta: Mapping[str, Any], column: str) -> Iterator[tuple[int, Any]]:
    """Each object of a labels layer, and what a column of its features says of it."""
    features = meta.get("features")
    if features is not None and {"index", column} <= set(features):
        for i, value in zip(features["index"], features[column], strict=True):
            if int(i) > 0:
                yield int(i), value


def _in_file(data: Any, meta: Mapping[str, Any]) -> tuple[Any, Volume] | None:
    """The labels in the order of the file that the image was read from; None if there is none, or
    it has another shape."""
    source = source_of(meta.get("metadata", {}))
    if source is None or "c" in source.axes:
        return None
    try:
        labels = to_file_order(_without_channels(data, meta), source)
    except ValueError:  # another number of axes
        return None
    return (labels, source) if labels.shape == source.shape else None


def layer_volume(data: Any, meta: Mapping[str, Any]) -> tuple[Any, Volume]:
    """A layer's labels and their place, by what the layer says of itself.

    data, meta: as for `write_layer`. Returns labels along the axes of the volume, whose array they
    are. Raises WriteError for labels with other than 2 to 4 axes, or of several channels.
    """
    from napari.layers import Layer

    names = _axis_labels(data, meta)
    labels = _without_channels(data, meta)
    kept = [
        axis for axis in range(data.ndim) if names[axis] not in _CHANNEL or data.shape[axis] > 1
    ]
    channels = next((data.shape[axis] for axis in kept if names[axis] in _CHANNEL), None)
    if channels is not None:
        raise WriteError(
            f"The layer {meta.get('name', 'of labels')} has an axis of {channels} channels, and "
            "labels are written without; split the image into its channels and mark one of them, "
            "or take the labels of one channel."
        )
    has_time = bool(kept) and (names[kept[0]] in _TIME or len(kept) == 4)
    axes = {2: "yx", 3: "tyx" if has_time else "zyx", 4: "tzyx"}.get(labels.ndim)
    if axes is None:
        raise WriteError(
            f"The layer {meta.get('name', 'of labels')} has {labels.ndim} axes, and labels with "
            "2 to 4 can be written; take one position of the others first."
        )
    place = {key: meta[key] for key in _PLACE if key in meta}
    layer = Layer.create(np.zeros((1,) * data.ndim, np.uint8), place, "labels")
    origin = np.array(layer.data_to_world(np.zeros(data.ndim)))
    steps = np.array([layer.data_to_world(step) for step in np.eye(data.ndim)]).T - origin[:, None]
    spacing = np.linalg.norm(steps, axis=0)[kept]
    units = [str(unit) for unit in meta.get("units") or ()]
    unit, in_mm = _UNITS.get(units[-1] if units else "", ("pixel", 1.0))
    affine = None
    if axes.endswith("zyx"):
        world = np.eye(4)
        world[:3, :3] = steps[np.ix_(kept[-3:], kept[-3:])] * in_mm
        world[:3, 3] = origin[kept[-3:]] * in_mm
        if not np.allclose(world, np.diag([*spacing[-3:] * in_mm, 1])):
            affine = ras_of_world(world)
    if axes == "yx":
        labels, spacing = labels[np.newaxis], np.array([1.0, *spacing])
    return labels, Volume(labels, tuple(spacing.tolist()), unit, affine, "layer", axes)


def _without_channels(data: Any, meta: Mapping[str, Any]) -> Any:
    """The labels without an axis of channels that they reach through."""
    names = _axis_labels(data, meta)
    axes = tuple(a for a in range(data.ndim) if names[a] in _CHANNEL and data.shape[a] == 1)
    return np.asarray(data).squeeze(axes) if axes else data


def _axis_labels(data: Any, meta: Mapping[str, Any]) -> list[str]:
    labels = [str(label).lower() for label in meta.get("axis_labels") or ()]
    return labels if len(labels) == data.ndim else [""] * data.ndim


def _colours(meta: Mapping[str, Any]) -> dict[int, RGB]:
    """Of a colormap that gives each object its colour; none of one that goes on for all ids."""
    found = getattr(meta.get("colormap"), "color_dict", {})
    colours = {}
    for object_id, colour in found.items():
        if isinstance(object_id, int | np.integer) and object_id > 0:
            red, green, blue, alpha = (float(part) for part in colour)
            if alpha > 0 or red or green or blue:  # hidden objects have a colour, too
                colours[int(object_id)] = (red, green, blue)
    return colours
