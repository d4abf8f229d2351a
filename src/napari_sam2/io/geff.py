"""Tracks as a graph in a file: the Graph Exchange File Format (GEFF), a group of Zarr arrays.

Written with Zarr alone, after the specification 1.3 (https://liveimagetrackingtools.org/geff). The
package `geff` is not needed, which asks for an older numcodecs than others do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sam2_engine.whole_file import beside

if TYPE_CHECKING:
    from napari_sam2.tracks import TrackGraph

_VERSION = "1.3"
_UNITS = {"mm": "millimeter", "um": "micrometer"}


def write_geff(path: Path, graph: TrackGraph) -> None:
    """Write tracks; an older file of theirs stays whole until the new one is complete.

    A node has the properties `t` (its frame), `z` if there is one, `y` and `x` in the world,
    `object` (the id), `lineage` (the id of the first ancestor) and `size`.

    Raises: OSError.
    """
    with beside(path) as temporary:
        _write(temporary, graph)


def _write(folder: Path, graph: TrackGraph) -> None:
    import zarr

    axes: dict[str, NDArray[Any]] = {"t": graph.frames}
    axes |= dict(zip(graph.places, graph.centroids.T, strict=True))
    props = axes | {"object": graph.objects, "lineage": graph.lineages, "size": graph.sizes}
    root = zarr.open_group(folder, mode="w", zarr_format=2)
    arrays = {"nodes/ids": np.arange(len(graph.frames), dtype=np.uint64)}
    arrays |= {f"nodes/props/{name}/values": values for name, values in props.items()}
    arrays["edges/ids"] = graph.edges.astype(np.uint64)
    for name, values in arrays.items():
        root.create_array(name, data=np.ascontiguousarray(values))
    root.require_group("edges/props")
    tracks = {"lineage": "lineage"}
    if graph.has_divisions_only:
        tracks["tracklet"] = "object"
    root.attrs["geff"] = {
        "geff_version": _VERSION,
        "directed": True,
        "axes": [_axis(name, values, graph.unit) for name, values in axes.items()],
        "node_props_metadata": {
            name: {"identifier": name, "dtype": str(values.dtype)} for name, values in props.items()
        },
        "edge_props_metadata": {},
        "track_node_props": tracks,
        "extra": {"names": {str(i): name for i, name in graph.names.items()}},
    }


def _axis(name: str, values: NDArray[Any], unit: str) -> dict[str, Any]:
    is_time = name == "t"
    axis = {
        "name": name,
        "type": "time" if is_time else "space",
        "unit": "frame" if is_time else _UNITS.get(unit, "pixel"),
    }
    if not len(values):
        return axis
    return axis | {"min": float(values.min()), "max": float(values.max())}
