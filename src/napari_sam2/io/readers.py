"""Images as napari layers: the readers of the manifest, and the same for other programs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from napari_sam2.io.files import list_images, read_image, take_channel
from napari_sam2.io.guard import clear_errors
from napari_sam2.io.kinds import SUFFIXES, image_kind, is_dicom
from napari_sam2.io.place import layer_affine, obliqueness, to_layer_order
from napari_sam2.io.volume import ReadError, Volume, unread

LayerData = tuple[Any, dict[str, Any], str]
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

METADATA_KEY = "napari_sam2"
"""Under this key, a layer's metadata hold its `Volume`, with zeros in place of the pixels."""

_OURS = tuple(
    {suffix for known in SUFFIXES.values() for suffix in known}
    - {".hdr", ".img", *SUFFIXES["picture"]}
)
_LOOKED_AT = 1000  # files of a folder, until it is taken for one without DICOM
_COLOURS = ("cyan", "yellow", "magenta", "red", "green", "blue")  # as napari colours channels


def get_reader(path: Paths) -> Callable[[Paths], list[LayerData]] | None:
    """For napari: what reads a path, or None for what is not ours. Several files are one stack."""
    return read_layers if all(_is_ours(Path(file)) for file in _paths(path)) else None


def read_layers(path: Paths) -> list[LayerData]:
    """Read all images of a file or folder as layers; of several series the first is visible.

    path: as for `read_image`; or numbered pictures, or DICOM files of one series.

    What the readers found odd is shown as a warning.
    Raises: ReadError, if no series can be read.
    """
    paths = [Path(file) for file in _paths(path)]
    if len(paths) > 1 and all(image_kind(file) in ("TIFF", "picture") for file in paths):
        from napari_sam2.io.sequence import read_sequence

        images = [read_sequence(paths)]
    else:
        images = _images(paths[0])
    layers: list[LayerData] = []
    has_image = False
    for image in images:
        shown = layers_of(image, visible=image.is_labels or not has_image)
        if image.is_labels:
            for _, options, _ in shown:
                options |= _named(paths[0] if len(paths) == 1 else paths[0].parent)
        has_image |= not image.is_labels
        layers += shown
        for note in image.notes:
            warnings.warn(f"{image.source}: {note}", stacklevel=2)
        if image.affine is not None and (degrees := obliqueness(image)):
            warnings.warn(
                f"{image.source} lies oblique by {degrees:.0f} degrees and is shown straight; it "
                "overlays scans of the same direction, and files that are written keep its place.",
                stacklevel=2,
            )
    return layers


def source_of(metadata: Mapping[str, Any]) -> Volume | None:
    """The file's `Volume` (without its array) in the metadata of a layer of `layers_of`."""
    source = metadata.get(METADATA_KEY)
    return source if isinstance(source, Volume) else None


def layers_of(image: Volume, visible: bool = True) -> list[LayerData]:
    """An image as layers: one, or one per channel.

    Scale, affine and units place it in the world of `napari_sam2.io.place`, in mm or micrometres.
    Contrast limits are the first window that the file proposes, or percentiles of some slices. The
    metadata hold the image's `Volume`, so that labels can be written as the file has them; see
    `to_file_order`.
    """
    if "c" not in image.axes:
        return [_layer(image, visible)]
    count = int(image.array.shape[image.axes.index("c")])
    layers = []
    for channel in range(count):
        data, options, kind = _layer(take_channel(image, channel), visible)
        if not image.is_labels and count > 1:
            colours = ("magenta", "green") if count == 2 else _COLOURS
            options |= {"colormap": colours[channel % len(colours)], "blending": "additive"}
        layers.append((data, options, kind))
    return layers


def _layer(image: Volume, visible: bool) -> LayerData:
    is_colour = image.array.ndim > len(image.shape)
    data = to_layer_order(image.array, image)
    levels = [to_layer_order(level, image) for level in image.pyramid]
    options = _placed(image, data.ndim - is_colour) | {
        "name": image.source,
        "visible": visible,
        "metadata": {METADATA_KEY: replace(image, array=_left_out(image), pyramid=())},
    }
    if levels:
        data, options["multiscale"] = [data, *levels], True
    if image.is_labels:
        return data, options, "labels"
    if is_colour:
        options["rgb"] = True
    else:
        options["contrast_limits"] = _contrast_limits(image)
        if image.is_inverted:
            options["colormap"] = "gray_r"
    return data, options, "image"


def _named(path: Path) -> dict[str, Any]:
    """What a labels file says of its objects, as napari shows it and our writers find it again."""
    from napari_sam2.io.labels import read_legend
    from napari_sam2.io.labels_ctc import read_parents

    with clear_errors(path):
        legend, parents = read_legend(path), read_parents(path)
    if parents:
        return {"features": {"index": [*parents], "parent": [*parents.values()]}}
    if not legend:
        return {}
    features = {"index": [one.id for one in legend], "name": [one.name for one in legend]}
    options: dict[str, Any] = {"features": features}
    if all(one.colour is not None for one in legend):
        from napari.utils.colormaps import DirectLabelColormap

        colours: dict[int | None, Any] = {one.id: (*(one.colour or ()), 1.0) for one in legend}
        others = {None: (0.6, 0.6, 0.6, 1.0), 0: (0.0, 0.0, 0.0, 0.0)}
        options["colormap"] = DirectLabelColormap(color_dict=others | colours)
    return options


def _placed(image: Volume, ndim: int) -> dict[str, Any]:
    """Where a layer of the image lies: its scale, and what of its place goes beyond that."""
    labels = ("z", *image.axes)[-ndim:] if image.axes == "yx" else tuple(image.axes)
    length = {"mm": "mm", "um": "um"}.get(image.unit, "pixel")
    spacing = np.array(image.spacing[-ndim:])
    options: dict[str, Any] = {"axis_labels": labels}
    if image.affine is not None:
        affine = layer_affine(image)
        spacing[-3:] = abs(np.diag(affine)[:3])
        placed = np.eye(ndim + 1)
        placed[-4:, -4:] = affine @ np.diag([*1 / spacing[-3:], 1.0])
        options["affine"] = placed
    # An interval of exactly 1 may only mean that the file gives none.
    time = "s" if labels[0] == "t" and spacing[0] != 1 else "pixel"
    units = tuple(time if label == "t" else length for label in labels)
    return options | {"scale": tuple(float(step) for step in spacing), "units": units}


def _contrast_limits(image: Volume) -> tuple[float, float]:
    if image.windows:
        return next(iter(image.windows.values()))
    from napari_sam2.windows import PERCENTILES, window_for

    low, high = window_for(image.pyramid[-1] if image.pyramid else image.array, PERCENTILES)
    assert isinstance(low, float) and isinstance(high, float)
    return low, high


def _left_out(image: Volume) -> Any:
    return unread(image.array.shape, image.array.dtype)


# ---- which files


def _images(path: Path) -> list[Volume]:
    """All series of a path that can be read."""
    readers: list[Callable[[], Volume]]
    with clear_errors(path):
        if image_kind(path) == "DICOM":
            from napari_sam2.io.dicom import find_series

            readers = [series.read for series in find_series(path)]
        else:
            infos = list_images(path)
            readers = [partial(read_image, path, info.series) for info in infos]
    images, problems = [], []
    for read in readers:
        try:
            with clear_errors(path):
                images.append(read())
        except ReadError as error:
            problems.append(error)
    if not images:
        raise problems[0]
    for problem in problems:
        warnings.warn(str(problem), stacklevel=2)
    return images


def _paths(path: Paths) -> Sequence[str | os.PathLike[str]]:
    return [path] if isinstance(path, str | os.PathLike) else path


def _is_ours(path: Path) -> bool:
    try:
        kind = image_kind(path)
    except (ReadError, OSError):  # a name of ours gets a reader, which says what is wrong
        return path.name.lower().endswith(_OURS)
    if path.is_file() or kind != "DICOM":
        return True
    files = islice((file for file in path.rglob("*") if file.is_file()), _LOOKED_AT)
    return any(file.suffix.lower() in SUFFIXES["DICOM"] or is_dicom(file) for file in files)
