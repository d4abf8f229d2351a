"""The command `napari-sam2`: images in, labels out, without a window; a module for each command."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from napari_sam2.cli.batch import add_batch
from napari_sam2.cli.common import FAILED, STOPPED, Parser, UserError, complain
from napari_sam2.cli.convert import add_convert
from napari_sam2.cli.find import add_find
from napari_sam2.cli.finetune import add_finetune
from napari_sam2.cli.info import add_info
from napari_sam2.cli.models import add_models
from napari_sam2.cli.replay import add_replay
from napari_sam2.cli.segment import add_segment
from sam2_engine.full_memory import WHAT_TAKES_LESS, card_is_full, machine_is_full


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
    except UserError as error:
        return complain(error)
    except KeyboardInterrupt:
        return complain(UserError(STOPPED, "stopped"))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if os.environ.get("NAPARI_SAM2_DEBUG"):
            raise
        if machine_is_full(error):
            return complain(UserError(FAILED, "this machine's memory is too small for this image"))
        if card_is_full(error):
            what = f"the graphics card's memory is full; {WHAT_TAKES_LESS}"
            return complain(UserError(FAILED, what))
        what = f"unexpected {type(error).__name__}: {error}; NAPARI_SAM2_DEBUG=1 shows more"
        return complain(UserError(FAILED, what))


def _run(arguments: list[str]) -> int:
    options = _parser().parse_args(_join_negative_values(arguments))
    try:
        code: int = options.run(options)
    except KeyboardInterrupt as error:
        raise UserError(STOPPED, options.if_stopped) from error
    return code


def _parser() -> Parser:
    parser = Parser(
        prog="napari-sam2",
        description="Segment and track objects in volumes and time-lapses with SAM 2.",
    )
    parser.set_defaults(if_stopped="stopped; no labels were written")
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (
        add_segment,
        add_find,
        add_replay,
        add_batch,
        add_finetune,
        add_convert,
        add_info,
        add_models,
    ):
        add(commands)
    return parser


class _Version(argparse.Action):
    """Look the version up only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from napari_sam2 import __version__

        print(f"napari-sam2 {__version__}")
        parser.exit()


def _join_negative_values(arguments: list[str]) -> list[str]:
    """`--window -160,240` as `--window=-160,240`: argparse takes a leading minus for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--window" and argument[:1] == "-":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
