"""What is said of the labels that a command has found, and measured in them."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_data_path

if TYPE_CHECKING:
    import numpy as np

    from napari_sam2.io import Volume
    from napari_sam2.io.legend import RGB
    from napari_sam2.session import Session, UnreadableSlices

KEPT = user_data_path("napari-sam2", appauthor=False) / "kept"
"""Where results go that cannot be written to where they were wanted."""

_Write = Callable[[Path], object]


def tell(
    options: argparse.Namespace,
    labels: np.ndarray,
    volume: Volume,
    wanted: Set[int],
    seconds: float,
    names: Mapping[int, str] | None = None,
    more: Mapping[str, Any] | None = None,
    incomplete: UnreadableSlices | None = None,
) -> None:
    """Print how much of each object was found: a line for people, or JSON.

    more: what else JSON says. incomplete: what is missing, also a line on stderr.
    """
    from napari_sam2.measures import found_objects

    facts: list[dict[str, Any]] = []
    for found in found_objects(labels, volume, names or {}, wanted):
        unit = None if found.unit == "voxels" else found.unit
        fact = {"id": found.id, "name": found.name, "voxels": found.voxels}
        facts.append(fact | {"size": found.size if unit else None, "unit": unit})
    if options.json:
        said = {"output": str(options.output), "seconds": seconds, "objects": facts}
        said |= {"incomplete": None if incomplete is None else str(incomplete)} | dict(more or {})
        print(json.dumps(said | {"notes": list(volume.notes)}, indent=2))
    elif not options.quiet:
        texts = []
        for one in facts:
            size = f" ({one['size']:.3g} {one['unit']})" if one["unit"] else ""
            amount = f"{one['voxels']} voxels{size}" if one["voxels"] else "not found"
            texts.append(f"object {one['id']}: {amount}")
        print(f"{options.output}: {', '.join(texts) or 'nothing was found'}; {seconds:.1f} s")
    if incomplete is not None:
        print(f"napari-sam2: {incomplete}", file=sys.stderr)


def check_files(options: argparse.Namespace) -> None:
    """Find out before a long computation whether labels and tables can be written, and that they
    replace nothing that is read. Raises: WriteError."""
    from napari_sam2.io import check_target

    _check_apart(options)
    check_target(options.output, overwrite=options.overwrite, source=options.image)
    if options.measures:
        _check_measures(options)
    if getattr(options, "tracks", None):
        from napari_sam2.tracks import check_tracks_target

        check_tracks_target(options.tracks, options.overwrite)


def _check_apart(options: argparse.Namespace) -> None:
    from napari_sam2.io import WriteError
    from napari_sam2.measures import csv_files
    from napari_sam2.targets import overlap

    named = vars(options)
    read = {"image": options.image, "mask": named.get("mask"), "session": named.get("session")}
    wanted = [("-o", Path(options.output))]
    if options.measures:
        wanted += [("--measures", path) for path in csv_files(options.measures)]
    if named.get("tracks"):
        wanted.append(("--tracks", Path(options.tracks)))
    before: dict[Path, str] = {}
    for option, path in wanted:
        for what, source in read.items():
            if source and overlap([path], [Path(source)]):
                raise WriteError(
                    f"{path} ({option}) would replace the {what} {source}; give another name."
                )
        if found := overlap(before, [path]):
            raise WriteError(
                f"{found[0]} ({before[found[0]]}) and {path} ({option}) would replace each other; "
                "give them different names."
            )
        before[path] = option


def _check_measures(options: argparse.Namespace) -> None:
    from napari_sam2.io import WriteError
    from napari_sam2.measures import csv_files
    from napari_sam2.targets import why_not

    if not options.measures.lower().endswith(".csv"):
        raise WriteError(
            f"Measures cannot be written to {options.measures}: its name must end in .csv."
        )
    for path in csv_files(options.measures):
        if reason := why_not(path, options.overwrite):
            raise WriteError(f"Measures cannot be written to {path}: {reason}.")


def write_results(
    options: argparse.Namespace,
    labels: np.ndarray,
    volume: Volume,
    *,
    names: Mapping[int, str] | None = None,
    colours: Mapping[int, RGB] | None = None,
    parents: Mapping[int, int] | None = None,
    tracks_of: tuple[Session, Volume] | None = None,
) -> None:
    """Write the tables that were asked for, and then the labels. If one of them cannot be written,
    all are kept in another folder, and labels that are there already stay.

    tracks_of: the session whose tracks may be asked for, and the image with its axes as the session
        has them.

    Raises: WriteError, which says where the results are kept.
    """
    from napari_sam2.io import WriteError, write_labels

    def to_labels(path: Path) -> None:
        write_labels(
            path,
            labels,
            volume,
            overwrite=options.overwrite,
            names=names,
            colours=colours,
            parents=parents,
        )

    tables: dict[Path, _Write] = {}
    if options.measures:
        tables[Path(options.measures)] = lambda path: _write_measures(path, labels, volume, names)
    if tracks_of is not None and options.tracks:
        tables[Path(options.tracks)] = lambda path: _write_tracks(path, options, *tracks_of)
    output = Path(options.output)
    try:
        for path, write in (tables | {output: to_labels}).items():
            write(path)
    except WriteError as error:
        raise WriteError(f"{error} {_keep(output, to_labels, tables)}") from error


def _keep(output: Path, to_labels: _Write, tables: Mapping[Path, _Write]) -> str:
    """Write the results to a new folder that can be written. Returns what to say of it.

    Labels that their own format does not take are written as NIfTI. Of the tables, it is as many as
    there is room for.
    """
    for place in (KEPT, None):  # None is the folder for temporary files
        for name in dict.fromkeys((output.name, f"{output.name.partition('.')[0]}.nii.gz")):
            with suppress(OSError):
                if place is not None:
                    place.mkdir(parents=True, exist_ok=True)
                folder = Path(tempfile.mkdtemp(prefix="napari-sam2-", dir=place))
                try:
                    to_labels(folder / name)
                except OSError:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
                for path, write in tables.items():
                    with suppress(OSError):
                        write(folder / path.name)
                files = ", ".join(sorted(file.name for file in folder.iterdir()))
                return f"What was found is kept in {folder} ({files}): move it where you want it."
    return "Nor could what was found be kept in another folder."


def _write_measures(
    path: Path, labels: np.ndarray, volume: Volume, names: Mapping[int, str] | None
) -> None:
    """Raises: WriteError."""
    from napari_sam2.io import WriteError
    from napari_sam2.measures import measure_labels, write_csv

    try:
        write_csv(path, measure_labels(labels, volume, names=names))
    except OSError as error:
        reason = error.strerror or error
        raise WriteError(f"{path} could not be written: {reason}.") from error


def _write_tracks(
    path: Path, options: argparse.Namespace, session: Session, volume: Volume
) -> None:
    """Raises: WriteError."""
    from napari_sam2.tracks import write_tracks

    is_time = volume.axes.startswith("t")
    write_tracks(path, session, overwrite=options.overwrite, is_time=is_time, image=volume)
