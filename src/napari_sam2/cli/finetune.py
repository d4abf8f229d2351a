"""The command `napari-sam2 finetune`: a model of one's own, from images and their labels."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from napari_sam2.cli.common import FAILED, OK, STOPPED, clear_errors
from napari_sam2.counted import counted

if TYPE_CHECKING:
    from sam2_engine.training.finetune import Status

_EXAMPLES = """\
The last images are held out, a fifth of them by default, and show whether the model becomes better:
give images that belong together (of one patient, of one movie) next to each other. Of a single
volume or time-lapse its last slices are held out. Ctrl-C stops and keeps what is best so far; the
same command with --resume goes on.

examples:
  napari-sam2 finetune --images a.tif b.tif c.tif --labels a_labels.tif b_labels.tif c_labels.tif \\
      -o my-cells.safetensors
  napari-sam2 segment d.tif -o d_labels.tif --model my-cells --box 1:0,10,10,60,60
"""


def add_finetune(commands: Any) -> None:
    """Add the command to the subparsers of `napari-sam2`."""
    finetune = commands.add_parser(
        "finetune",
        help="train a model further on images of your own and their labels",
        description="Train a model further on images of your own and their labels.",
        epilog=_EXAMPLES,
    )
    add = finetune.add_argument
    help_ = "images, volumes or time-lapses, of all formats that `segment` reads"
    add("--images", nargs="+", required=True, metavar="FILE", help=help_)
    help_ = "the labels of each image, in the same order; an id is one object"
    add("--labels", nargs="+", required=True, metavar="FILE", help=help_)
    help_ = "the model to write, NAME.safetensors; NAME is then in the list of models"
    add("-o", "--output", required=True, metavar="NAME.safetensors", help=help_)
    help_ = "a name of `napari-sam2 models` or a checkpoint file (default: nano)"
    add("--from", dest="start", default="nano", metavar="MODEL", help=help_)
    add("--minutes", type=float, default=10.0, help="of training, without scoring (default: 10)")
    help_ = "share of the images that is held out to score on (default: 0.2)"
    add("--held-out", type=float, default=0.2, metavar="SHARE", help=help_)
    help_ = "slices without labels have not been labelled, rather than being empty"
    add("--labelled-slices-only", action="store_true", help=help_)
    help_ = "train the image encoder, too: slower, needs more memory and more data"
    add("--whole-model", action="store_true", help=help_)
    help_ = "an image and its labels that are only scored: what the model should still do well on"
    add("--also", nargs=2, action="append", default=[], metavar=("IMAGE", "LABELS"), help=help_)
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--resume", action="store_true", help="go on with a training that was stopped")
    help_ = "replace the output if it exists, and a training that was stopped"
    add("--overwrite", action="store_true", help=help_)
    add("--json", action="store_true", help="print the card as JSON, for scripts")
    add("-q", "--quiet", action="store_true", help="no progress bar and no card")
    finetune.set_defaults(run=_finetune, if_stopped="stopped; no model was written")


def _finetune(options: argparse.Namespace) -> int:
    from pathlib import Path

    from napari_sam2.finetune import check_model_target, finetune, read_pairs

    bar = _TrainingBar(options.quiet)
    with clear_errors():
        check_model_target(Path(options.output), options.overwrite or options.resume)
        sources = read_pairs(options.images, options.labels, options.labelled_slices_only)
        also = read_pairs([image for image, _ in options.also], [own for _, own in options.also])
        try:
            card = finetune(
                sources,
                options.output,
                start=options.start,
                minutes=options.minutes,
                held_out=options.held_out,
                whole_model=options.whole_model,
                device=options.device,
                resume=options.resume,
                overwrite=options.overwrite,
                also=also,
                on_status=bar.update,
            )
        finally:
            bar.close()
    if options.json:
        print(json.dumps(card.as_json(), indent=2))
    elif not options.quiet:
        print(card.as_text())
    if not card.is_complete:
        print("napari-sam2: stopped; --resume goes on", file=sys.stderr)
    if not card.is_written:
        print(
            f"napari-sam2: on what was held out nothing was better than {card.start}, so "
            f"{options.output} was not written; more images or more minutes may help",
            file=sys.stderr,
        )
    if not card.is_complete:
        return STOPPED
    return OK if card.is_written else FAILED


class _TrainingBar:
    """How far the training is, the loss, and the last score."""

    def __init__(self, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._bar: Any = None
        self._told = 0

    def update(self, status: Status) -> None:
        if self._is_quiet:
            return
        from tqdm import tqdm

        if self._bar is None:
            form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
            self._bar = tqdm(total=1.0, desc="Training", bar_format=form)
        for moment in status.moments[self._told :]:
            self._bar.write(
                f"after {counted(moment.step, 'step')}: {moment.score}", file=sys.stderr
            )
        self._told = len(status.moments)
        if status.losses:
            last = status.losses[-20:]
            self._bar.set_postfix_str(f"loss {sum(last) / len(last):.3f}", refresh=False)
        self._bar.update(status.share - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
