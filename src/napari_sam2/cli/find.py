"""The command `napari-sam2 find`: all objects of an image or sequence, without prompts."""

from __future__ import annotations

import argparse
import time
from typing import Any

from napari_sam2.cli.common import (
    BAD_COMMAND,
    INCOMPLETE,
    OK,
    Bar,
    UserError,
    add_model_and_window,
    add_output,
    add_tracks,
    chosen_model,
    clear_errors,
    pair,
)
from napari_sam2.cli.results import check_files, tell, write_results

_EXAMPLES = """\
examples:
  napari-sam2 find nuclei.tif -o nuclei_labels.tif --diameter 18
  napari-sam2 find movie.ome.tif -o movie_01_RES --every 5 --diameter 25
  napari-sam2 find movie.ome.tif -o movie_01_RES --divisions --tracks movie.csv
"""


def add_find(commands: Any) -> None:
    """Add the command to the subparsers of `napari-sam2`."""
    find = commands.add_parser(
        "find",
        help="find all objects of an image file and follow them, without prompts",
        description="Find all objects of an image, volume or time-lapse and follow them through "
        "it, and write a labels file that overlays it.",
        epilog=_EXAMPLES,
    )
    add = find.add_argument
    help_ = (
        "where SAM 2 is asked: at the instances of a threshold and a watershed (classical, "
        "default), at spots of contrast, or on a grid"
    )
    add("--seeds", choices=("classical", "contrast", "grid"), default="classical", help=help_)
    help_ = "how large a usual object is, in pixels (default: a guess)"
    add("--diameter", type=float, metavar="PIXELS", help=help_)
    help_ = "objects are looked for on every Nth slice or frame, and followed between (default: 10)"
    add("--every", type=int, default=10, metavar="N", help=help_)
    help_ = "look at square tiles of so many pixels, for objects that are small in a large frame"
    add("--tile", type=int, metavar="PIXELS", help=help_)
    help_ = (
        "take over all divisions that the masks speak for: a cell becomes a parent and daughters"
    )
    add("--divisions", action="store_true", help=help_)
    add_tracks(find)
    add_model_and_window(find)
    add_output(find)
    find.set_defaults(run=_find)


def _find(options: argparse.Namespace) -> int:
    window = pair("--window", options.window)
    for name, value in (
        ("--every", options.every),
        ("--diameter", options.diameter),
        ("--tile", options.tile),
    ):
        if value is not None and not value >= 1:
            raise UserError(BAD_COMMAND, f"{name} must be 1 or more, not {value:g}")

    from napari_sam2.divisions import accept_division, propose_divisions
    from napari_sam2.io import check_target, read_volume
    from napari_sam2.segmentation import loaded
    from napari_sam2.session import Session, UnreadableSlices
    from napari_sam2.throughout import find_throughout
    from sam2_engine.automatic import Rules

    started = time.perf_counter()
    bar = Bar(options.quiet)
    with clear_errors():
        check_files(options)
        volume = read_volume(
            options.image, volume=options.volume, channel=options.channel, series=options.series
        )
        check_target(options.output, overwrite=options.overwrite, like=volume)
        bar.notes = volume.notes
        is_colour = volume.array.ndim == 4
        session = Session(
            volume.array,
            loaded(chosen_model(options)),
            window=window,
            rgb=is_colour,
            spacing=volume.spacing,
        )
        incomplete = None
        try:
            find_throughout(
                session,
                every=options.every,
                seeds=options.seeds,
                diameter=options.diameter,
                rules=Rules(tile_size=options.tile),
                progress=bar.update,
            )
        except UnreadableSlices as error:
            incomplete = error
        finally:
            bar.close()
        proposals = propose_divisions(session) if options.divisions else []
        for proposal in proposals:
            accept_division(session, proposal)
        write_results(
            options,
            session.labels,
            volume,
            parents=session.parents,
            tracks_of=(session, volume),
        )
    seconds = time.perf_counter() - started
    found = {"divisions": len(proposals)} if options.divisions else {}
    ids = set(session.objects)
    tell(options, session.labels, volume, ids, seconds, more=found, incomplete=incomplete)
    return OK if incomplete is None else INCOMPLETE
