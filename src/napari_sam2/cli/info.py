"""The command `napari-sam2 info`: what is in a file or folder."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from napari_sam2.cli.common import OK, UserError, clear_errors, complain

if TYPE_CHECKING:
    from napari_sam2.io import ImageInfo


def add_info(commands: Any) -> None:
    """Add the command to the subparsers of `napari-sam2`."""
    parser = commands.add_parser(
        "info",
        help="say what is in an image file or folder",
        description="Say what is in a file or folder: series, shape, spacing, orientation. No "
        "pixels are read, and nothing about the patient is shown.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="as for segment")
    parser.add_argument("--json", action="store_true", help="print it as JSON, for scripts")
    parser.set_defaults(run=_info, if_stopped="stopped")


def _info(options: argparse.Namespace) -> int:
    from napari_sam2.io import list_images

    code = OK
    found: list[ImageInfo] = []
    for path in options.images:
        try:
            with clear_errors():
                images = list_images(path)
        except UserError as error:  # the others can be read all the same
            code = complain(error)
            continue
        found += images
        if not options.json:
            print("\n".join(_text(image) for image in images))
    if options.json:
        print(json.dumps([asdict(image) for image in found], indent=2, default=str))
    return code


def _text(image: ImageInfo) -> str:
    """A few lines about an image."""
    number = "" if image.series is None else f"--series {image.series}: "
    shape = " x ".join(map(str, image.shape))
    title = ", ".join(text for text in (image.kind, image.description) if text)
    lines = [f"{number}{title}"]
    lines.append(f"  shape        {shape} ({', '.join(image.axes)}), {image.dtype}")
    spatial = image.spacing[-3:] if "z" in image.axes else image.spacing[-2:]
    if image.unit != "pixel":
        spacing = " x ".join(f"{step:.4g}" for step in spatial)
        lines.append(f"  spacing      {spacing} {image.unit}")
    if image.axes.startswith("t") and image.spacing[0] != 1:  # 1 may mean that none is given
        lines.append(f"  interval     {image.spacing[0]:.4g} s")
    if image.orientation:
        lines.append(f"  orientation  {image.orientation} (where x, y and z grow to)")
    if image.channels:
        lines.append(f"  channels     {', '.join(image.channels)}")
    lines += [f"  note         {note}" for note in image.notes]
    return "\n".join(lines)
