"""The tracks of a session's objects: where each one is over time, and which it comes from.

    layer = viewer.add_tracks(**tracks_layer(session))
    write_tracks("cells.csv", session)   # or .geff; a folder cells_RES: write_labels

A track is an object in the sequence that is shown, from its first mask to its last.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.io.volume import WriteError
from napari_sam2.lineage import ancestors, divisions, generation
from napari_sam2.measures import measure_session
from napari_sam2.session import Session
from napari_sam2.targets import why_not
from sam2_engine.whole_file import write_text

if TYPE_CHECKING:
    from napari_sam2.io import Volume
    from napari_sam2.measures import FrameMeasure

SUFFIXES = (".csv", ".geff")
"""Of files of tracks."""


@dataclass(frozen=True)
class Track:
    """One object over time."""

    object_id: int
    name: str
    first: int
    last: int
    """The first and the last frame with a mask."""
    parent: int | None
    daughters: tuple[int, ...]
    generation: int
    """How many divisions lie before it, as far as they are known."""


def tracks_of(session: Session) -> list[Track]:
    """All objects with masks in the sequence that is shown: families together, parents first."""
    parents = session.parents
    children = divisions(parents)
    tracks: dict[int, Track] = {}
    for object_id, info in session.objects.items():
        frames = session.masks_of(object_id)
        if frames:
            tracks[object_id] = Track(
                object_id,
                info.name,
                min(frames),
                max(frames),
                parents.get(object_id),
                children.get(object_id, ()),
                generation(parents, object_id),
            )
    ordered: list[Track] = []

    def add(object_id: int) -> None:
        if object_id in tracks:
            ordered.append(tracks[object_id])
            for daughter in children.get(object_id, ()):
                add(daughter)

    for object_id, track in tracks.items():
        if track.parent not in tracks:
            add(object_id)
    return ordered


def check_lineage(session: Session) -> None:
    """Raises WriteError where a parent is still there when a daughter begins.

    That comes about where masks are changed after a division was set.
    """
    tracks = {track.object_id: track for track in tracks_of(session)}
    for track in tracks.values():
        parent = tracks.get(track.parent or 0)
        if parent is not None and track.first <= parent.last:
            raise WriteError(
                f"{track.name} begins on slice {track.first}, but its parent {parent.name} is "
                f"still there on slice {parent.last}. Cut the parent there, or take the division "
                "back."
            )


def tracks_layer(session: Session) -> dict[str, Any]:
    """What napari's `viewer.add_tracks` takes, in the order of time.

    `data`: (N, 1 + D) object id, frame, and the centre of its mask, as data coordinates of the
    image from the sequence's axis on. `graph`: daughter -> [parent]. `features`: (N,) each of
    object, parent (0 without one), generation, area in pixels.

    Raises ValueError where the frames do not follow each other along an axis before those of the
    picture, for napari's tracks need the time first.
    """
    view = session.view
    axis = view.key.axis
    if axis is None or axis > min(view.plane):
        raise ValueError(
            "Tracks can be shown where the slider of the time comes first: put that axis before "
            "those of the picture."
        )
    rows, features = [], []
    tracks = tracks_of(session)
    for track in sorted(tracks, key=lambda track: track.object_id):
        for frame, mask in session.masks_of(track.object_id).items():
            pixels, y, x, _ = mask.summary
            at = view.join(frame, [(y, x)])[0, axis:]
            rows.append((track.object_id, *at))
            features.append((track.object_id, track.parent or 0, track.generation, pixels))
    known = {track.object_id for track in tracks}
    names = ("object", "parent", "generation", "area")
    columns = np.array(features, float).reshape(-1, len(names)).T
    return {
        "data": np.array(rows, float).reshape(-1, 1 + len(view.shape) - axis),
        "graph": {d: [p] for d, p in session.parents.items() if {d, p} <= known},
        "features": dict(zip(names, columns, strict=True)),
    }


# -- files ---------------------------------------------------------------------------------------


def write_tracks(
    path: str | os.PathLike[str],
    session: Session,
    overwrite: bool = False,
    *,
    is_time: bool = True,
    image: Volume | None = None,
) -> Path:
    """Write the tracks of the sequence that is shown; the suffix chooses the format.

    .csv: a table with a row for each object and frame: its centre in the world and its size, in the
        units of the image, parent and generation.
    .geff: the Graph Exchange File Format, a node for each object and frame, an edge from each node
        to the next one of its track, and from a parent's last one to its daughters' first ones.

    The file or folder is written under another name and then renamed. Returns its path.

    is_time: whether frames are time points; else they are slices, and centres have a z.
    image: what the session was made on, if that is no layer, as for `measure_session`.

    Where no object has a mask, the table has its header alone, and the graph no nodes.

    Raises WriteError: another suffix, something there already without `overwrite`, a parent that is
    still there when a daughter begins, or a disk that cannot be written.
    """
    target = check_tracks_target(path, overwrite)
    check_lineage(session)
    rows = measure_session(session, is_time=is_time, image=image).frames
    places = "zyx"[-len(rows[0].centroid) :] if rows else "yx" if is_time else "zyx"
    try:
        if target.suffix.lower() == ".csv":
            write_text(target, _table(rows, places, session))
        else:
            from napari_sam2.io.geff import write_geff

            write_geff(target, _graph(rows, places, session))
    except OSError as error:
        raise WriteError(f"{target} could not be written: {error.strerror or error}.") from error
    return target


def check_tracks_target(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Find out before a long computation whether tracks can be written. Raises: WriteError."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise WriteError(
            f"Tracks cannot be written to {path}: its name must end in {' or '.join(SUFFIXES)}. "
            "For a folder of the Cell Tracking Challenge, write the labels to a name that ends "
            "in _RES."
        )
    is_folder = target.suffix.lower() == ".geff"
    if is_folder and overwrite and target.exists() and not (target / "nodes").is_dir():
        raise WriteError(f"{path} is something else, so it is not replaced.")
    if reason := why_not(target, overwrite, is_folder):
        raise WriteError(f"Tracks cannot be written to {path}: {reason}.")
    return target


def _table(rows: tuple[FrameMeasure, ...], places: str, session: Session) -> str:
    parents = session.parents
    text = io.StringIO()
    writer = csv.writer(text)
    names = [f"centroid_{axis}" for axis in places]
    writer.writerow(["object", "name", "frame", *names, "size", "unit", "parent", "generation"])
    for row in rows:
        parent = parents.get(row.object, "")
        depth = generation(parents, row.object)
        writer.writerow(
            [row.object, row.name, row.frame, *row.centroid, row.size, row.unit, parent, depth]
        )
    return text.getvalue()


@dataclass(frozen=True)
class TrackGraph:
    """Objects on frames as nodes of a graph; N nodes, E edges."""

    frames: NDArray[np.int64]
    """(N,)."""
    centroids: NDArray[np.float64]
    """(N, D) in the world, along `places`."""
    places: str
    """ "yx" or "zyx"."""
    unit: str
    """Of the centroids: "mm", "um", "pixel"."""
    objects: NDArray[np.int64]
    """(N,) ids."""
    lineages: NDArray[np.int64]
    """(N,) id of the first ancestor."""
    sizes: NDArray[np.float64]
    """(N,) areas or volumes."""
    edges: NDArray[np.int64]
    """(E, 2) places of nodes, from the earlier to the later one."""
    has_divisions_only: bool
    """Whether no object has just one daughter, so that an object is a whole track."""
    names: Mapping[int, str]


def _graph(rows: tuple[FrameMeasure, ...], places: str, session: Session) -> TrackGraph:
    """Rows in the order of objects and frames, as a graph."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    edges = []
    for number, row in enumerate(rows):
        if row.object in last:
            edges.append((last[row.object], number))
        first.setdefault(row.object, number)
        last[row.object] = number
    parents = {d: p for d, p in session.parents.items() if d in first and p in last}
    edges += [(last[parent], first[daughter]) for daughter, parent in parents.items()]
    roots = {i: [i, *ancestors(parents, i)][-1] for i in first}
    return TrackGraph(
        frames=np.array([row.frame for row in rows], np.int64),
        centroids=np.array([row.centroid for row in rows], np.float64).reshape(-1, len(places)),
        places=places,
        unit=rows[0].unit.rstrip("23") if rows else "pixel",
        objects=np.array([row.object for row in rows], np.int64),
        lineages=np.array([roots[row.object] for row in rows], np.int64),
        sizes=np.array([row.size for row in rows], np.float64),
        edges=np.array(edges, np.int64).reshape(-1, 2),
        has_divisions_only=all(len(own) > 1 for own in divisions(parents).values()),
        names={row.object: row.name for row in rows},
    )
