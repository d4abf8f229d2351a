"""The command `napari-sam2 batch`: many images, on this machine or a cluster."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from napari_sam2.cli.common import (
    BAD_COMMAND,
    BAD_INPUT,
    BAD_OUTPUT,
    FAILED_JOBS,
    OK,
    UserError,
    add_closely,
    add_compile,
    add_device,
    clear_errors,
    pair,
)

_TABLES = """\
JOBS is a folder, of which every image is segmented, or a CSV with the column image (a path relative
to the CSV) and as wanted name, session, mask, series, volume, channel. What to segment is said by
  --prompts CSV       columns image, object, z, y, x and as wanted y1, x1 (a box), label (0: not on
                      the object), name
  --session SESSION   a session saved on another image: its marks are placed by world position
  --masks FOLDER      a labels file for each image, of the same name, with masks on some slices,
                      or of the first frame alone
  the columns session and mask of JOBS, for single images

examples:
  napari-sam2 batch scans --session template.sam2session --out livers
  napari-sam2 batch jobs.csv --prompts boxes.csv --out organs --window -160,240 --workers 4
  napari-sam2 batch movies --masks first_frames --out tracked --format .ome.tif --direction forward
"""


def add_batch(commands: Any) -> None:
    """Add the command to the subparsers of `napari-sam2`."""
    parser = commands.add_parser(
        "batch",
        help="segment many images, and report on them",
        description="Segment many images. What an earlier run has done is skipped; an image that\n"
        "fails does not end the others. OUT gets the labels, report.html and report.csv.",
        epilog=_TABLES,
    )
    add = parser.add_argument
    add("jobs", metavar="JOBS", help="a CSV of images, or a folder of them")
    add("-o", "--out", required=True, metavar="DIR", help="folder to write to")
    add("--session", metavar="SESSION", help="a template: its marks are placed on every image")
    help_ = "image of the template (default: the file that the session was made on)"
    add("--template-image", metavar="IMAGE", help=help_)
    add("--prompts", metavar="CSV", help="points and boxes, a row each")
    add("--masks", metavar="DIR", help="labels files of the images' names")
    help_ = "of the labels files: .nii.gz (default), .ome.tif, .seg.nrrd, .ome.zarr, _RES"
    add("--format", default=".nii.gz", metavar="SUFFIX", help=help_)
    add("--axis", choices=("0", "1", "2", "z", "y", "x"), default="z", help="as for segment")
    add("--direction", choices=("both", "forward", "backward"), default="both", help="as there")
    add("--window", metavar="LO,HI", help="intensities shown as black and white, as -160,240")
    help_ = "a name of `napari-sam2 models` or a checkpoint (default: the session's, or nano)"
    add("--model", help=help_)
    add_device(parser)
    add_compile(parser)
    add_closely(parser)
    help_ = "processes on this machine (default: one for each graphics card, or two cores)"
    add("--workers", type=int, metavar="N", help=help_)
    add("--scheduler", metavar="ADDRESS", help="a dask scheduler, as tcp://node1:8786")
    help_ = "replace files in DIR that are not of a batch, or have been changed since"
    add("--overwrite", action="store_true", help=help_)
    add("--json", action="store_true", help="print a line of JSON for each image on stdout")
    add("-q", "--quiet", action="store_true", help="no progress bar, no summary")
    parser.set_defaults(
        run=_batch, if_stopped="stopped; what is done stays, and the same command goes on with it"
    )


def _batch(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from napari_sam2.batch import (
        FAILED,
        INCOMPLETE,
        BatchError,
        JobError,
        Settings,
        jobs_of,
        run_batch,
    )
    from napari_sam2.batch_report import summary

    if options.workers is not None and options.workers < 1:
        raise UserError(BAD_COMMAND, f"--workers {options.workers}: one process at least is needed")
    out = Path(options.out)
    settings = Settings(
        out=out,
        suffix=options.format,
        model=options.model,
        device=options.device,
        compile=options.compile,
        is_quiet=options.quiet,
        window=pair("--window", options.window),
        axis=options.axis,
        direction=options.direction,
        closely=options.closely,
        template_image=Path(options.template_image).absolute() if options.template_image else None,
        overwrite=options.overwrite,
    )
    try:
        jobs = jobs_of(
            options.jobs, template=options.session, prompts=options.prompts, masks=options.masks
        )
    except JobError as error:
        raise UserError(BAD_INPUT, str(error)) from error
    tables = [Path(path) for path in (options.jobs, options.prompts) if path]
    bar: Any = None

    def start() -> None:
        nonlocal bar
        bar = tqdm(total=len(jobs), unit="image", disable=options.quiet, file=sys.stderr)

    def progress(result: Any) -> None:
        bar.update()
        if result.message and not options.quiet:
            bar.write(f"{result.name}: {result.message}", file=sys.stderr)
        if options.json:
            bar.write(json.dumps(asdict(result) | {"thumbnail": None}), file=sys.stdout)

    try:
        with clear_errors():
            results = run_batch(
                jobs,
                settings,
                tables=[path for path in tables if path.is_file()],
                workers=options.workers,
                scheduler=options.scheduler,
                on_start=start,
                progress=progress,
            )
    except BatchError as error:
        raise UserError(BAD_OUTPUT, str(error)) from error
    finally:
        if bar is not None:
            bar.close()
    if not options.quiet and not options.json:
        print(f"{out / 'report.html'}: {summary(results)}")
    bad = any(result.status in (FAILED, INCOMPLETE) for result in results)
    return FAILED_JOBS if bad else OK
