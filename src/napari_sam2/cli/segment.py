"""The command `napari-sam2 segment`: one image, from prompts on a few slices."""

from __future__ import annotations

import argparse
import time
from typing import Any

from napari_sam2.cli.common import (
    BAD_COMMAND,
    EXAMPLES,
    INCOMPLETE,
    OK,
    Bar,
    UserError,
    add_closely,
    add_model_and_window,
    add_output,
    chosen_model,
    clear_errors,
    numbers,
    pair,
)
from napari_sam2.cli.results import check_files, tell, write_results

_COORDINATES = """\
coordinates are array indices, counted from 0, in the order z, y, x; for NIfTI files z, y, x are the
file's third, second and first axis. A box lies on one slice: 1:z,y0,x0,y1,x1. With --axis y it is
1:y,z0,x0,z1,x1, and with --axis x 1:x,z0,y0,z1,y1. Points are always z,y,x. A point or a box on one
slice is enough; more of them, on any slices, make the result better.

examples:
  napari-sam2 segment scan.nii.gz -o liver.nii.gz --box 1:40,120,90,210,180
  napari-sam2 segment dicom_folder -o organs.nii.gz --box 1:30,80,60,140,150 --point 2:35,200,130
  napari-sam2 segment scan.nii.gz -o liver.nii.gz --box 1:40,120,90,210,180 --ends 1:22,61
  napari-sam2 segment cells.tif -o tracked.ome.tif --mask first_frame.tif --direction forward
"""


def add_segment(commands: Any) -> None:
    """Add the command to the subparsers of `napari-sam2`."""
    segment = commands.add_parser(
        "segment",
        help="segment objects in an image file, from prompts on a few slices",
        description="Segment objects in an image file, and write a labels file that overlays it.",
        epilog=_COORDINATES,
    )
    add = segment.add_argument
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    add("--box", metavar="ID:Z,Y0,X0,Y1,X1", help="a box around object ID on slice Z", **several)
    add("--point", metavar="ID:Z,Y,X", help="a point on object ID", **several)
    add("--negative", metavar="ID:Z,Y,X", help="a point that is not on object ID", **several)
    help_ = (
        "labels file of the image's shape, or of its first slice alone: each slice on which an id "
        "occurs prompts that object; of a folder of the Cell Tracking Challenge with its parents"
    )
    add("--mask", metavar="FILE", help=help_)
    help_ = "object ID is on slices FIRST to LAST, along the axis, and not looked for on others"
    add("--ends", metavar="ID:FIRST,LAST", help=help_, **several)
    help_ = "axis along which the image is sliced and objects are followed (default: z)"
    add("--axis", choices=("0", "1", "2", "z", "y", "x"), default="z", help=help_)
    help_ = "follow objects to growing indices, falling ones, or both (default)"
    add("--direction", choices=("both", "forward", "backward"), default="both", help=help_)
    help_ = "first and last slice to segment, along the axis (default: all)"
    add("--slices", metavar="FIRST,LAST", help=help_)
    help_ = (
        "which slices are remembered on the way: the recent ones (default), or the confident ones, "
        "which suits images in no order"
    )
    add("--memory", choices=("recent", "confident"), default="recent", help=help_)
    help_ = (
        "how much of a remembered slice is looked at: all (default); near, which is coarse far "
        "from the object, quicker and nearly as exact; or pooled, coarse everywhere"
    )
    add("--memory-tokens", choices=("all", "near", "pooled"), default="all", help=help_)
    add_closely(segment)
    add_model_and_window(segment)
    add_output(segment)
    segment.set_defaults(run=_segment)


def _segment(options: argparse.Namespace) -> int:
    boxes = {
        object_id: [(given[0], (given[1], given[2], given[3], given[4])) for given in found]
        for object_id, found in _by_id("--box", options.box, 5).items()
    }
    points, negative = (
        {k: [(z, y, x) for z, y, x in found] for k, found in _by_id(option, given, 3).items()}
        for option, given in (("--point", options.point), ("--negative", options.negative))
    )
    ends = {
        object_id: (first, last)
        for object_id, found in _by_id("--ends", options.ends, 2).items()
        for first, last in found
    }
    window = pair("--window", options.window)
    slices = pair("--slices", options.slices)
    if not (boxes or points or negative or options.mask):
        raise UserError(
            BAD_COMMAND, "there are no prompts: give at least one --box, --point or --mask"
        )

    from napari_sam2.io import check_target, read_volume
    from napari_sam2.io.labels import read_mask
    from napari_sam2.segmentation import parents_of_masks, segment
    from napari_sam2.session import UnreadableSlices

    started = time.perf_counter()
    bar = Bar(options.quiet)
    with clear_errors():
        check_files(options)
        volume = read_volume(
            options.image, volume=options.volume, channel=options.channel, series=options.series
        )
        check_target(options.output, overwrite=options.overwrite, like=volume)
        masks, parents = None, {}
        if options.mask:
            masks = read_mask(options.mask, volume)
            parents = parents_of_masks(options.mask, masks, options.axis)
        bar.notes = volume.notes
        incomplete = None
        try:
            labels = segment(
                volume,
                boxes=boxes,
                points=points,
                negative_points=negative,
                masks=masks,
                ends=ends,
                parents=parents,
                axis=options.axis,
                direction=options.direction,
                slices=slices,
                model=chosen_model(options),
                window=window,
                memory=options.memory,
                memory_tokens=options.memory_tokens,
                closely=options.closely,
                progress=bar.update,
            )
        except UnreadableSlices as error:
            incomplete, labels = error, error.session.labels
        finally:
            bar.close()
        write_results(options, labels, volume, parents=parents)
    seconds = time.perf_counter() - started
    tell(options, labels, volume, boxes.keys() | points.keys(), seconds, incomplete=incomplete)
    return OK if incomplete is None else INCOMPLETE


def _by_id(option: str, prompts: list[str], count: int) -> dict[int, list[tuple[float, ...]]]:
    """{3: [(10.0, 20.0, 30.0)]} for ["3:10,20,30"]."""
    found: dict[int, list[tuple[float, ...]]] = {}
    for prompt in prompts:
        object_id, colon, text = prompt.partition(":")
        if not colon or not object_id.strip().isdecimal() or int(object_id) < 1:
            raise UserError(
                BAD_COMMAND,
                f"{option} {prompt}: an object's number from 1 and a colon must come first, as in "
                f"{EXAMPLES[option]}",
            )
        found.setdefault(int(object_id), []).append(numbers(option, text, count, prompt))
    return found
