"""What is said of the labels that a command has found, and measured in them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from napari_sam2.io import Volume


def tell(
    options: argparse.Namespace,
    labels: np.ndarray,
    volume: Volume,
    wanted: Set[int],
    seconds: float,
    names: Mapping[int, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print how much of each object was found: a line for people, or JSON.

    more: what else JSON says.
    """
    from napari_sam2.batch_worker import found_objects

    facts: list[dict[str, Any]] = []
    for found in found_objects(labels, volume, names or {}, wanted):
        unit = None if found.unit == "voxels" else found.unit
        fact = {"id": found.id, "name": found.name, "voxels": found.voxels}
        facts.append(fact | {"size": found.size if unit else None, "unit": unit})
    if options.json:
        said = {"output": str(options.output), "seconds": seconds, "objects": facts}
        said |= more or {}
        print(json.dumps(said | {"notes": list(volume.notes)}, indent=2))
    elif not options.quiet:
        texts = []
        for one in facts:
            size = f" ({one['size']:.3g} {one['unit']})" if one["unit"] else ""
            amount = f"{one['voxels']} voxels{size}" if one["voxels"] else "not found"
            texts.append(f"object {one['id']}: {amount}")
        print(f"{options.output}: {', '.join(texts)}; {seconds:.1f} s")


def check_measures(options: argparse.Namespace) -> None:
    """Find out before a long computation whether the table can be written. Raises: WriteError."""
    from napari_sam2.io import WriteError

    if not options.measures:
        return
    path = Path(options.measures)
    if not path.parent.is_dir():
        raise WriteError(f"{path} cannot be written: there is no folder {path.parent}.")
    if path.is_dir() or (path.exists() and not options.overwrite):
        raise WriteError(f"{path} exists already; use --overwrite to replace it.")


def check_tracks(options: argparse.Namespace) -> None:
    """The same of the file of tracks. Raises: WriteError."""
    from napari_sam2.tracks import check_tracks_target

    if options.tracks:
        check_tracks_target(options.tracks, options.overwrite)


def write_measures(
    options: argparse.Namespace,
    labels: np.ndarray,
    volume: Volume,
    names: Mapping[int, str] | None = None,
) -> None:
    """Write the table that was asked for, if one was. Raises: WriteError."""
    from napari_sam2.io import WriteError
    from napari_sam2.measures import measure_labels, write_csv

    if not options.measures:
        return
    try:
        write_csv(options.measures, measure_labels(labels, volume, names=names))
    except OSError as error:
        reason = error.strerror or error
        raise WriteError(f"{options.measures} could not be written: {reason}.") from error
