"""What all commands share: exit codes, errors of one line, options, progress, numbers."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from napari_sam2.lazy_model import LazyModel

OK, FAILED, BAD_COMMAND, BAD_INPUT, BAD_OUTPUT, NO_MODEL, FAILED_JOBS, INCOMPLETE = range(8)
STOPPED = 130

EXIT_CODES = """\
exit codes:
  0    done
  1    something unexpected (set NAPARI_SAM2_DEBUG=1 to see all of it)
  2    the command line is wrong: an unknown option, a malformed prompt
  3    an image, mask, table or session cannot be read, or they or the prompts do not fit each other
  4    the result cannot be written (it is kept elsewhere), or would replace what is read
  5    the model or the device is not there
  6    batch: some images failed or are incomplete; the report says which
  7    some slices of the image could not be read: the labels are written without new masks there
  130  stopped with Ctrl-C
Unless the code is 0, 6 or 7, no labels file is written to OUT and an older one is left as it was; a
batch that is stopped keeps the images that are done.
"""


class UserError(Exception):
    """Ends the program with one line on stderr and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def complain(error: UserError) -> int:
    """Print an error as one line on stderr, and return its exit code."""
    print(f"napari-sam2: {' '.join(str(error).split())}", file=sys.stderr)
    return error.code


class Parser(argparse.ArgumentParser):
    """argparse, with texts as they are written, exit codes below them, and errors of one line."""

    def __init__(self, *, epilog: str = "", **options: Any) -> None:
        super().__init__(
            epilog=f"{epilog}\n{EXIT_CODES}" if epilog else EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(BAD_COMMAND, f"{message} ({self.prog} --help shows how)")


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turn errors that people can do something about into one line and an exit code."""
    from napari_sam2.io import ReadError, WriteError
    from napari_sam2.segmentation import ModelError, PromptError
    from napari_sam2.session_file import ChangedImageError, MissingModelError, SessionFileError
    from sam2_engine.unreadable import UnreadableFrame

    try:
        yield
    except MissingModelError as error:
        raise UserError(NO_MODEL, f"{error} --model does so.") from error
    except ModelError as error:
        raise UserError(NO_MODEL, str(error)) from error
    except ChangedImageError as error:
        raise UserError(BAD_INPUT, f"{error} --changed-image does so.") from error
    except (ReadError, PromptError, SessionFileError, UnreadableFrame) as error:
        raise UserError(BAD_INPUT, str(error)) from error
    except WriteError as error:
        raise UserError(BAD_OUTPUT, str(error)) from error


def add_choice_of_image(parser: argparse.ArgumentParser) -> None:
    """Options that choose one image of a file with several."""
    help_ = "which volume of a 4-D file or time series, from 0"
    parser.add_argument("--volume", type=int, metavar="N", help=help_)
    parser.add_argument("--channel", type=int, metavar="N", help="which channel, from 0")
    help_ = "which DICOM series of a folder, or image of a TIFF or OME-Zarr, from 1"
    parser.add_argument("--series", metavar="N|UID", help=help_)


def add_model_and_window(parser: argparse.ArgumentParser) -> None:
    """What looks at an image that nobody has looked at before, and how it sees it."""
    help_ = (
        "a name of `napari-sam2 models` or a checkpoint file (default: nano); with @512 behind it, "
        "slices are seen in 512 pixels, which is quicker than the 1024 of SAM 2.1"
    )
    parser.add_argument("--model", default="nano", help=help_)
    add_compile(parser)
    help_ = "intensities shown as black and white, as -160,240 (default: 0.5 and 99.5 percentile)"
    parser.add_argument("--window", metavar="LO,HI", help=help_)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where the model runs."""
    help_ = "auto, cpu, cpu-bfloat16, cuda or mps (default: auto)"
    parser.add_argument("--device", default="auto", help=help_)


def add_compile(parser: argparse.ArgumentParser) -> None:
    """Whether the model is compiled."""
    help_ = "have PyTorch compile the model: minutes at first, quicker then; for a graphics card"
    parser.add_argument("--compile", action="store_true", help=help_)


def add_closely(parser: argparse.ArgumentParser) -> None:
    """Whether objects are looked at in areas of their own."""
    help_ = (
        "look at each object in an area about it, 6 times its size, at a higher resolution; or at "
        "none (default: at small ones, by larger models only at tiny ones on large slices)"
    )
    parser.add_argument("--closely", action=argparse.BooleanOptionalAction, help=help_)


def chosen_model(options: argparse.Namespace) -> LazyModel:
    """The model of add_model_and_window, on the device of add_output."""
    from napari_sam2.lazy_model import LazyModel

    return LazyModel(options.model, options.device, compile=options.compile, is_quiet=options.quiet)


def add_output(parser: argparse.ArgumentParser) -> None:
    """What all commands have that write labels of one image."""
    add = parser.add_argument
    help_ = "NIfTI, TIFF, OME-Zarr, NRRD, MHA; a DICOM folder, file, zip or DICOMDIR"
    add("image", metavar="IMAGE", help=help_)
    help_ = (
        "labels to write: .nii, .nii.gz, .tif, .ome.tif, .ome.zarr, .nrrd, .seg.nrrd, .dcm (DICOM "
        "SEG), .rtstruct.dcm (DICOM contours), or a name that ends in _RES (Cell Tracking "
        "Challenge)"
    )
    add("-o", "--output", required=True, metavar="OUT", help=help_)
    add_device(parser)
    add_choice_of_image(parser)
    add("--measures", metavar="CSV", help="write sizes, places and intensities of objects, too")
    add("--overwrite", action="store_true", help="replace OUT if it exists")
    add("--json", action="store_true", help="print what was found as JSON, for scripts")
    help_ = "no progress bar, no summary, no warnings"
    add("-q", "--quiet", action="store_true", help=help_)


def add_tracks(parser: argparse.ArgumentParser) -> None:
    """What commands have that know who descends from whom."""
    help_ = "write where each object is over time, and its parent: a table (.csv) or .geff"
    parser.add_argument("--tracks", metavar="FILE", help=help_)


class Bar:
    """The progress bar; it appears, after the reader's notes, when the first slice is done."""

    def __init__(self, is_quiet: bool) -> None:
        self.is_quiet = is_quiet
        self.notes: tuple[str, ...] = ()
        self._bar: Any = None

    def update(self, done: int, total: int) -> None:
        if self.is_quiet:
            return
        if self._bar is None:
            from tqdm import tqdm

            for note in self.notes:
                print(f"warning: {note}", file=sys.stderr)
            self.notes = ()
            self._bar = tqdm(total=total, unit="step", desc="Segmenting")
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


EXAMPLES = {
    "--box": "1:40,120,90,210,180 (z,y0,x0,y1,x1)",
    "--point": "1:40,160,130 (z,y,x)",
    "--negative": "1:40,200,190 (z,y,x)",
    "--ends": "1:30,55 (FIRST,LAST)",
    "--window": "-160,240 (LO,HI)",
    "--slices": "10,60 (FIRST,LAST)",
}


def numbers(option: str, text: str, count: int, prompt: str | None = None) -> tuple[float, ...]:
    """An option's numbers, commas between them. prompt: the whole of what was typed."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != count or not all(math.isfinite(n) for n in found):
        raise UserError(
            BAD_COMMAND,
            f"{option} {prompt or text}: {count} numbers with commas between them are needed, as "
            f"in {EXAMPLES[option]}",
        )
    return found


def pair(option: str, text: str | None) -> tuple[float, float] | None:
    """An option's two numbers, the smaller first."""
    if text is None:
        return None
    low, high = numbers(option, text, 2)
    if low > high or (low == high and option == "--window"):
        raise UserError(BAD_COMMAND, f"{option} {text}: the first number must be the smaller one")
    return low, high
