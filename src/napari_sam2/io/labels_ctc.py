"""Labels as a result of the Cell Tracking Challenge: mask000.tif, mask001.tif ... res_track.txt."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import tifffile

from napari_sam2.io.legend import Legend
from napari_sam2.io.sequence import TRACKS
from napari_sam2.io.volume import ReadError, Volume, WriteError

_FILE = re.compile(r"mask\d{3,}\.tif|res_track\.txt")
_LARGEST = 2**16 - 1  # the files are 16 bit


def check_time(labels: Volume) -> None:
    """Raises WriteError for a volume. Slices of which nothing says what they are, as in a plain
    TIFF, may be frames.
    """
    is_unsaid = labels.axes.replace("c", "") == "zyx" and labels.unit == "pixel"
    if labels.axes.startswith("t") or (is_unsaid and labels.affine is None):
        return
    raise WriteError(
        "A Cell Tracking Challenge folder holds a time-lapse, and these labels have no time; "
        "write them as .nii.gz, .ome.tif or .seg.nrrd."
    )


def write_ctc(folder: Path, labels: Volume, legend: Legend) -> None:
    """Write a time-lapse, a file per frame, and a line "L B E P" per track: its label, first and
    last frame, and the label of the track that it comes from, or 0.

    The format knows no gaps: an object that comes back after frames without it goes on under a new
    label, whose parent is the old one. Names, colours and the pixel size are lost.

    Raises: WriteError for labels without time, where there are more than 65535 of them, and where a
    parent is still there when a daughter has begun.
    """
    parents = {entry.id: entry.parent for entry in legend if entry.parent is not None}
    names = {entry.id: entry.name for entry in legend}
    check_time(labels)
    tracks: list[list[int]] = []  # label, first frame, last frame, parent
    open_tracks: dict[int, list[int]] = {}  # by the object's id
    divided: set[int] = set()  # objects whose daughters have begun
    last = max(int(np.max(labels.array)), 0)
    folder.mkdir()
    digits = max(3, len(str(len(labels.array) - 1)))
    for frame, picture in enumerate(labels.array):
        written = np.array(picture, np.uint32)
        present = np.unique(picture[picture > 0]).tolist()
        divided |= {parents[i] for i in present if i in parents and i not in open_tracks}
        for object_id in present:
            if object_id in divided:
                raise WriteError(
                    f"{names[object_id]} is still there on frame {frame}, but has daughters by "
                    "then; cut it there, or take the division back."
                )
            track = open_tracks.get(object_id)
            if track is None:
                parent = open_tracks.get(parents.get(object_id, 0))
                track = [object_id, frame, frame, 0 if parent is None else parent[0]]
            elif track[2] < frame - 1:
                last += 1
                track = [last, frame, frame, track[0]]
            if track[1] == frame:
                tracks.append(track)
                open_tracks[object_id] = track
            track[2] = frame
            if track[0] != object_id:
                written[picture == object_id] = track[0]
        if last > _LARGEST:
            raise WriteError(
                f"A Cell Tracking Challenge folder holds labels up to {_LARGEST}; these go up to "
                f"{last}. Write .ome.tif instead, or give the objects smaller ids."
            )
        tifffile.imwrite(
            folder / f"mask{frame:0{digits}}.tif",
            written.astype(np.uint16),
            compression="zlib",
            photometric="minisblack",
        )
    lines = (" ".join(map(str, track)) for track in sorted(tracks))
    (folder / "res_track.txt").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")


def read_parents(path: str | os.PathLike[str]) -> dict[int, int]:
    """Track -> the one that it comes from, by label; empty where a path is no folder with tracks.

    path: of a folder as of the Cell Tracking Challenge, with res_track.txt or man_track.txt.

    Raises ReadError where its table of tracks is none.
    """
    path = Path(path)
    table = next((path / name for name in TRACKS if (path / name).is_file()), None)
    if table is None:
        return {}
    try:
        tracks = [
            [int(number) for number in line.split()]
            for line in table.read_text(encoding="ascii").splitlines()
            if line.strip()
        ]
        return {label: parent for label, _, _, parent in tracks if parent}
    except ValueError as error:
        raise ReadError(
            f"{table} is no table of tracks: each line has a label, the first and the last frame, "
            "and the label of the parent or 0."
        ) from error


def check_replaceable(folder: Path) -> None:
    """Raises WriteError where a folder holds anything but such a result."""
    strange = [file.name for file in folder.iterdir() if not _FILE.fullmatch(file.name)]
    if strange:
        raise WriteError(
            f"Labels cannot be written to {folder}: the folder holds something else too "
            f"({strange[0]}); move it away, or give another folder."
        )
