"""The command `napari-sam2`: segment a file from prompts or a saved session, without a window."""

from __future__ import annotations

import argparse
import io
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any, NoReturn

from napari_sam2.cli_convert import add_convert

if TYPE_CHECKING:
    import numpy as np

    from napari_sam2.io import Volume

OK, FAILED, BAD_COMMAND, BAD_INPUT, BAD_OUTPUT, NO_MODEL, STOPPED = 0, 1, 2, 3, 4, 5, 130

_EXIT_CODES = """\
exit codes:
  0    done
  1    something unexpected (set NAPARI_SAM2_DEBUG=1 to see all of it)
  2    the command line is wrong: an unknown option, a malformed prompt
  3    the image, the mask or the session cannot be read, or they do not fit each other
  4    the labels cannot be written
  5    the model or the device is not there
  130  stopped with Ctrl-C
Unless the code is 0, no labels file is written and an older one is left as it was.
"""

_COORDINATES = """\
coordinates are array indices, counted from 0, in the order z, y, x; for NIfTI files z, y, x are the
file's third, second and first axis. A box lies on one slice: 1:z,y0,x0,y1,x1. With --axis y it is
1:y,z0,x0,z1,x1, and with --axis x 1:x,z0,y0,z1,y1. Points are always z,y,x. A point or a box on one
slice is enough; more of them, on any slices, make the result better.

examples:
  napari-sam2 segment scan.nii.gz -o liver.nii.gz --box 1:40,120,90,210,180
  napari-sam2 segment dicom_folder -o organs.nii.gz --box 1:30,80,60,140,150 --point 2:35,200,130
  napari-sam2 segment cells.tif -o tracked.ome.tif --mask first_frame.tif --direction forward
"""


class _UserError(Exception):
    """Ends the program with one line on stderr and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise _UserError(BAD_COMMAND, f"{message} ({self.prog} --help shows how)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see `napari-sam2 --help`."""
    try:
        if arguments is None:
            arguments = sys.argv[1:]
            logging.disable(
                logging.WARNING
            )  # what the readers' libraries log may hold patient data
            warnings.simplefilter("ignore")
            # Torch's threads wait asleep: spinning is many times slower on a busy machine.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may not be UTF-8
                sys.stdout.reconfigure(errors="backslashreplace")
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        return _run(list(arguments))
    except _UserError as error:
        return _complain(error.code, str(error))
    except KeyboardInterrupt:
        return _complain(STOPPED, "stopped; no labels were written")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except MemoryError:
        return _complain(FAILED, "this machine's memory is too small for this image")
    except Exception as error:
        if os.environ.get("NAPARI_SAM2_DEBUG"):
            raise
        return _complain(
            FAILED, f"unexpected {type(error).__name__}: {error}; NAPARI_SAM2_DEBUG=1 shows more"
        )


def _complain(code: int, message: str) -> int:
    print(f"napari-sam2: {' '.join(message.split())}", file=sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    options = _parser().parse_args(_join_negative_values(arguments))
    return options.run(options)


def _parser() -> _Parser:
    parser = _Parser(
        prog="napari-sam2",
        description="Segment and track objects in volumes and time-lapses with SAM 2.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    segment = commands.add_parser(
        "segment",
        help="segment objects in an image file, from prompts on a few slices",
        description="Segment objects in an image file, and write a labels file that overlays it.",
        epilog=_COORDINATES + "\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = segment.add_argument
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    add("--box", metavar="ID:Z,Y0,X0,Y1,X1", help="a box around object ID on slice Z", **several)
    add("--point", metavar="ID:Z,Y,X", help="a point on object ID", **several)
    add("--negative", metavar="ID:Z,Y,X", help="a point that is not on object ID", **several)
    help_ = "labels file of the image's shape: each slice on which an id occurs prompts that object"
    add("--mask", metavar="FILE", help=help_)
    help_ = "axis along which the image is sliced and objects are followed (default: z)"
    add("--axis", choices=("0", "1", "2", "z", "y", "x"), default="z", help=help_)
    help_ = "follow objects to growing indices, falling ones, or both (default)"
    add("--direction", choices=("both", "forward", "backward"), default="both", help=help_)
    help_ = "first and last slice to segment, along the axis (default: all)"
    add("--slices", metavar="FIRST,LAST", help=help_)
    help_ = "a name of `napari-sam2 models` or a checkpoint file (default: nano)"
    add("--model", default="nano", help=help_)
    help_ = "intensities shown as black and white, as -160,240 (default: 0.5 and 99.5 percentile)"
    add("--window", metavar="LO,HI", help=help_)
    _add_files_and_device(segment)
    segment.set_defaults(run=_segment)

    replay = commands.add_parser(
        "replay",
        help="compute the masks of a saved session anew",
        description="Compute the masks of a session, which was saved in napari or by a script,\n"
        "anew from its prompts, and write a labels file that overlays its image.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    replay.add_argument("session", metavar="SESSION", help="a .sam2session file")
    help_ = "follow objects through all slices, not only where the session had looked for them"
    replay.add_argument("--all-slices", action="store_true", help=help_)
    help_ = "a name of `napari-sam2 models` or a checkpoint file (default: the session's)"
    replay.add_argument("--model", help=help_)
    help_ = "go on where the image has other pixels than when the session was saved"
    replay.add_argument("--changed-image", action="store_true", help=help_)
    _add_files_and_device(replay)
    replay.set_defaults(run=_replay)

    add_convert(commands)

    models = commands.add_parser("models", help="list the models", allow_abbrev=False)
    models.set_defaults(run=_models)
    return parser


def _add_files_and_device(parser: argparse.ArgumentParser) -> None:
    """What all commands have that read an image and write labels."""
    add = parser.add_argument
    add("image", metavar="IMAGE", help="NIfTI, TIFF, a DICOM folder or a file of a DICOM series")
    help_ = "labels file to write: .nii, .nii.gz, .tif or .ome.tif"
    add("-o", "--output", required=True, metavar="OUT", help=help_)
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    help_ = "which volume of a 4-D file or time series, from 0"
    add("--volume", type=int, metavar="N", help=help_)
    add("--channel", type=int, metavar="N", help="which channel of a TIFF, from 0")
    help_ = "which DICOM series of a folder, or image of a TIFF, from 1"
    add("--series", metavar="N|UID", help=help_)
    add("--overwrite", action="store_true", help="replace OUT if it exists")
    help_ = "no progress bar, no summary, no warnings"
    add("-q", "--quiet", action="store_true", help=help_)


class _Version(argparse.Action):
    """Look the version up only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from napari_sam2 import __version__

        print(f"napari-sam2 {__version__}")
        parser.exit()


# ---- napari-sam2 segment


def _segment(options: argparse.Namespace) -> int:
    boxes = {
        object_id: [
            (numbers[0], (numbers[1], numbers[2], numbers[3], numbers[4])) for numbers in found
        ]
        for object_id, found in _by_id("--box", options.box, 5).items()
    }
    points, negative = (
        {k: [(z, y, x) for z, y, x in found] for k, found in _by_id(option, given, 3).items()}
        for option, given in (("--point", options.point), ("--negative", options.negative))
    )
    window = _pair("--window", options.window)
    slices = _pair("--slices", options.slices)
    if not (boxes or points or negative or options.mask):
        raise _UserError(
            BAD_COMMAND, "there are no prompts: give at least one --box, --point or --mask"
        )

    from napari_sam2.io import ReadError, WriteError, check_target, read_volume, write_labels
    from napari_sam2.segmentation import ModelError, PromptError, segment

    started = time.perf_counter()
    bar = _Bar(options.quiet)
    try:
        check_target(options.output, overwrite=options.overwrite, source=options.image)
        volume = read_volume(
            options.image, volume=options.volume, channel=options.channel, series=options.series
        )
        masks = _read_mask(options.mask, volume, options.image) if options.mask else None
        bar.notes = volume.notes
        labels = segment(
            volume,
            boxes=boxes,
            points=points,
            negative_points=negative,
            masks=masks,
            axis=options.axis,
            direction=options.direction,
            slices=slices,
            model=options.model,
            device=options.device,
            window=window,
            progress=bar.update,
        )
        write_labels(options.output, labels, volume, overwrite=options.overwrite)
    except (ReadError, PromptError) as error:
        raise _UserError(BAD_INPUT, str(error)) from error
    except WriteError as error:
        raise _UserError(BAD_OUTPUT, str(error)) from error
    except ModelError as error:
        raise _UserError(NO_MODEL, str(error)) from error
    finally:
        bar.close()
    if not options.quiet:
        seconds = time.perf_counter() - started
        found = _summary(labels, volume, boxes.keys() | points.keys())
        print(f"{options.output}: {found}; {seconds:.1f} s")
    return OK


# ---- napari-sam2 replay


def _replay(options: argparse.Namespace) -> int:
    from napari_sam2.io import ReadError, WriteError, check_target, read_volume, write_labels
    from napari_sam2.segmentation import ModelError
    from napari_sam2.session_file import (
        ChangedImageError,
        MissingModelError,
        SessionFileError,
        fitted,
        read_session,
        replay,
    )

    started = time.perf_counter()
    bar = _Bar(options.quiet)
    try:
        check_target(options.output, overwrite=options.overwrite, source=options.image)
        saved = read_session(options.session)
        volume = read_volume(
            options.image, volume=options.volume, channel=options.channel, series=options.series
        )
        bar.notes = volume.notes
        labels = replay(
            options.session,
            fitted(volume.array, saved.image),
            model=options.model,
            device=options.device,
            everywhere=options.all_slices,
            changed_image=options.changed_image,
            progress=lambda step: bar.update(step.done, step.total),
        ).reshape(volume.shape)
        write_labels(options.output, labels, volume, overwrite=options.overwrite)
    except MissingModelError as error:
        raise _UserError(NO_MODEL, f"{error} --model does so.") from error
    except ModelError as error:
        raise _UserError(NO_MODEL, str(error)) from error
    except ChangedImageError as error:
        raise _UserError(BAD_INPUT, f"{error} --changed-image does so.") from error
    except (ReadError, SessionFileError) as error:
        raise _UserError(BAD_INPUT, str(error)) from error
    except WriteError as error:
        raise _UserError(BAD_OUTPUT, str(error)) from error
    finally:
        bar.close()
    if not options.quiet:
        seconds = time.perf_counter() - started
        found = _summary(labels, volume, saved.state.objects.keys())
        print(f"{options.output}: {found}; {seconds:.1f} s")
    return OK


class _Bar:
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


def _summary(labels: np.ndarray, volume: Volume, wanted: Set[int]) -> str:
    """How much of each object was found: "object 1: 5210 voxels (5.2 ml), object 2: not found"."""
    import numpy as np

    ids, counts = np.unique(labels, return_counts=True)
    found = {int(i): int(count) for i, count in zip(ids, counts, strict=True) if i}
    z, y, x = volume.spacing
    texts = []
    for object_id in sorted(found.keys() | wanted):
        text = f"{found[object_id]} voxels" if object_id in found else "not found"
        if object_id in found and volume.axes == "zyx" and volume.unit in ("mm", "um"):
            size, unit = found[object_id] * z * y * x, "um3"
            if volume.unit == "mm":
                size, unit = size / 1000, "ml"
            text += f" ({size:.3g} {unit})"
        texts.append(f"object {object_id}: {text}")
    return ", ".join(texts)


# ---- napari-sam2 models


def _models(_: argparse.Namespace) -> int:
    from sam2_engine.weights import find, list_models

    models = list_models()
    width = max(len(info.name) for info in models)
    for info in models:
        if info.repository is None:
            where = "bundled"
        elif find(info):
            where = "on this machine"
        else:
            where = f"downloaded on first use{f', {info.size / 1e6:.0f} MB' if info.size else ''}"
        print(f"{info.name:{width}}  {info.image_size:4} px  {info.title}; {where}")
    return OK


# ---- arguments and files


def _read_mask(path: str, volume: Volume, image: str) -> np.ndarray:
    """The labels of a mask file, which must lie on the image voxel by voxel."""
    import numpy as np

    from napari_sam2.io import ReadError, read_volume

    mask = read_volume(path)
    if mask.array.shape != volume.shape:
        raise ReadError(
            f"The mask {path} has the shape {mask.array.shape}, the image {image} {volume.shape} "
            "(z, y, x)."
        )
    if mask.affine is not None and volume.affine is not None:
        corners = np.array([[x, y, z, 1] for z in (0, 1) for y in (0, 1) for x in (0, 1)])
        corners[:, :3] *= np.array(volume.shape)[::-1]
        apart = np.linalg.norm((corners @ (mask.affine - volume.affine).T)[:, :3], axis=1).max()
        if apart > 0.5 * min(volume.spacing):
            raise ReadError(
                f"The mask {path} lies elsewhere in space than the image {image} "
                f"(up to {apart:.1f} mm off): resample it to the image first."
            )
    return mask.array


def _by_id(option: str, prompts: list[str], count: int) -> dict[int, list[tuple[float, ...]]]:
    """{3: [(10.0, 20.0, 30.0)]} for ["3:10,20,30"]."""
    found: dict[int, list[tuple[float, ...]]] = {}
    for prompt in prompts:
        object_id, colon, numbers = prompt.partition(":")
        if not colon or not object_id.strip().isdecimal() or int(object_id) < 1:
            raise _UserError(
                BAD_COMMAND,
                f"{option} {prompt}: an object's number from 1 and a colon must come first, as in "
                f"{_EXAMPLES[option]}",
            )
        found.setdefault(int(object_id), []).append(_numbers(option, numbers, count, prompt))
    return found


_EXAMPLES = {
    "--box": "1:40,120,90,210,180 (z,y0,x0,y1,x1)",
    "--point": "1:40,160,130 (z,y,x)",
    "--negative": "1:40,200,190 (z,y,x)",
    "--window": "-160,240 (LO,HI)",
    "--slices": "10,60 (FIRST,LAST)",
}


def _numbers(option: str, text: str, count: int, prompt: str | None = None) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(math.isfinite(n) for n in numbers):
        raise _UserError(
            BAD_COMMAND,
            f"{option} {prompt or text}: {count} numbers with commas between them are needed, as "
            f"in {_EXAMPLES[option]}",
        )
    return numbers


def _pair(option: str, text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, high = _numbers(option, text, 2)
    if low > high:
        raise _UserError(BAD_COMMAND, f"{option} {text}: the first number must be the smaller one")
    return low, high


def _join_negative_values(arguments: list[str]) -> list[str]:
    """`--window -160,240` as `--window=-160,240`: argparse takes a leading minus for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--window" and argument[:1] == "-":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
