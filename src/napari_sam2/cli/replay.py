"""The command `napari-sam2 replay`: the masks of a saved session, computed anew."""

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
    add_output,
    add_tracks,
    clear_errors,
)
from napari_sam2.cli.results import check_files, tell, write_results


def add_replay(commands: Any) -> None:
    """Add the command to the subparsers of `napari-sam2`."""
    replay = commands.add_parser(
        "replay",
        help="compute the masks of a saved session anew",
        description="Compute the masks of a session, which was saved in napari or by a script,\n"
        "anew from its prompts, and write a labels file that overlays its image.",
    )
    replay.add_argument("session", metavar="SESSION", help="a .sam2session file")
    help_ = "follow objects through all slices, not only where the session had looked for them"
    extent = replay.add_mutually_exclusive_group()
    extent.add_argument("--all-slices", action="store_true", help=help_)
    help_ = "write approved masks alone, as they were saved; nothing is computed"
    extent.add_argument("--only-approved", action="store_true", help=help_)
    help_ = "a name of `napari-sam2 models` or a checkpoint file (default: the session's)"
    replay.add_argument("--model", help=help_)
    help_ = "go on where the image has other pixels than when the session was saved"
    replay.add_argument("--changed-image", action="store_true", help=help_)
    add_tracks(replay)
    add_output(replay)
    replay.set_defaults(run=_replay)


def _replay(options: argparse.Namespace) -> int:
    from napari_sam2.io import check_target
    from napari_sam2.saved_image import SessionImage, read_session_image
    from napari_sam2.session import UnreadableSlices
    from napari_sam2.session_file import read_session, replay, replay_session

    if options.tracks and options.only_approved:
        raise UserError(BAD_COMMAND, "--tracks needs all masks, so not with --only-approved")
    started = time.perf_counter()
    bar = Bar(options.quiet)
    with clear_errors():
        check_files(options)
        saved = read_session(options.session)
        volume = read_session_image(
            options.image,
            saved.image,
            volume=options.volume,
            channel=options.channel,
            series=options.series,
        )
        check_target(options.output, overwrite=options.overwrite, like=volume)
        image = SessionImage(volume, saved.image)
        bar.notes = volume.notes
        incomplete = None
        try:
            how: dict[str, Any] = {
                "model": options.model,
                "device": options.device,
                "changed_image": options.changed_image,
                "progress": lambda step: bar.update(step.done, step.total),
            }
            if options.only_approved:
                found = replay(options.session, image.array, only_approved=True, **how)
            else:
                session = replay_session(
                    options.session, image.array, everywhere=options.all_slices, **how
                )
                found = session.labels
        except UnreadableSlices as error:
            incomplete, session, found = error, error.session, error.session.labels
        finally:
            bar.close()
        labels = image.labels(found)
        names = saved.state.names
        write_results(
            options,
            labels,
            volume,
            names=names,
            colours=saved.state.colours,
            parents=saved.state.parents,
            tracks_of=(session, image.placed) if options.tracks else None,
        )
    seconds = time.perf_counter() - started
    tell(options, labels, volume, names.keys(), seconds, names, incomplete=incomplete)
    return OK if incomplete is None else INCOMPLETE
