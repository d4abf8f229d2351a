"""The command `napari-sam2 convert`: labels from one format to another."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from napari_sam2.cli.common import OK, clear_errors


def add_convert(commands: Any) -> None:
    """Add the command to the subparsers of `napari-sam2`."""
    parser = commands.add_parser(
        "convert",
        help="write a labels file in another format",
        description="Write a labels file in another format, in the same place; names and colours\n"
        "of objects, and parents of tracks, are kept where both formats have them.",
    )
    add = parser.add_argument
    add("labels", metavar="LABELS", help="a labels file, DICOM SEG and RTSTRUCT too")
    help_ = (
        "file or folder to write: .nii.gz, .nii, .ome.tif, .tif, .ome.zarr, IMAGE.zarr/labels/NAME,"
        " .seg.nrrd, .nrrd, .dcm (DICOM SEG), .rtstruct.dcm (DICOM contours), NAME_RES (Cell "
        "Tracking Challenge)"
    )
    add("out", metavar="OUT", help=help_)
    help_ = (
        "the image that the labels were made on; gives place and spacing where LABELS has none, "
        "and the series that DICOM SEG and RTSTRUCT refer to"
    )
    add("--like", metavar="IMAGE", help=help_)
    help_ = "write OUT, whatever its name, as a Cell Tracking Challenge folder, or as RTSTRUCT"
    add("--format", choices=("ctc", "rtstruct"), help=help_)
    help_ = "which DICOM series of a folder, or image of a file, --like is, from 1"
    add("--series", metavar="N|UID", help=help_)
    add("--overwrite", action="store_true", help="replace OUT if it exists")
    add("-q", "--quiet", action="store_true", help="no summary, no warnings")
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    from napari_sam2.io import (
        WriteError,
        check_target,
        read_image,
        read_labels,
        read_parents,
        write_labels,
    )
    from napari_sam2.io.place import has_place

    with clear_errors():
        for source in (options.labels, options.like):
            check_target(
                options.out, overwrite=options.overwrite, source=source, format=options.format
            )
        like = read_image(options.like, options.series) if options.like else None
        labels, names, colours = read_labels(options.labels, like)
        parents = read_parents(options.labels)
        if like is None and not labels.files and options.out.lower().endswith(".dcm"):
            raise WriteError(
                f"{options.out} has to refer to the DICOM series that the labels were made on: "
                "give its folder with --like, or write .nii.gz or .seg.nrrd."
            )
        if like is not None and not has_place(like) and has_place(labels):
            is_alike = labels.axes == like.axes.replace("c", "")
            like = labels if is_alike else like  # a time-lapse has no place
        write_labels(
            options.out,
            labels.array,
            labels if like is None else like,
            overwrite=options.overwrite,
            names=names,
            colours=colours,
            parents=parents,
            format=options.format,
        )
    if not options.quiet:
        for note in labels.notes:
            print(f"warning: {note}", file=sys.stderr)
        if parents and not read_parents(options.out):
            print(
                f"warning: {options.out} does not say which tracks come from which; a folder "
                "NAME_RES of the Cell Tracking Challenge does.",
                file=sys.stderr,
            )
        print(f"{options.out}: labels of shape {' x '.join(map(str, labels.array.shape))}")
    return OK
