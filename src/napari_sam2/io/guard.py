"""Whatever a file makes a library raise, people get one sentence."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from napari_sam2.io.volume import ReadError, Uncopied


@contextlib.contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn all errors of the code within into a ReadError about `path`."""
    try:
        yield
    except ReadError:
        raise
    except PermissionError as error:
        raise ReadError(f"{path} may not be read: permission denied.") from error
    except MemoryError as error:
        raise ReadError(f"{path} does not fit into this machine's memory.") from error
    except ImportError as error:
        raise ReadError(
            f"{path} needs the package {error.name}, which is not installed: "
            'pip install "napari-sam2[formats]".'
        ) from error
    except Exception as error:  # a damaged file makes the libraries raise almost anything
        raise ReadError(
            f"{path} is damaged or not what its name says ({reason_of(error)})."
        ) from error


def reason_of(error: Exception) -> str:
    """A library's message on one line and not too long."""
    return " ".join(str(error).split())[:150] or type(error).__name__


def too_small(path: Path, shape: tuple[int, ...]) -> ReadError:
    """What to say of a file that holds less than its header claims."""
    return ReadError(
        f"{path} is truncated or damaged: its header gives the shape {shape}, but its values are "
        "fewer; copy or download it again."
    )


def file_beside(header: Path, name: str) -> Path:
    """The one file with the values of a header, which must lie in the header's folder or below.

    Raises: ReadError.
    """
    is_list = "%" in name or name.startswith("LIST")
    if is_list or os.path.isabs(name) or ".." in Path(name).parts:
        raise ReadError(
            f"{header} keeps its values in {name!r}; only one data file beside the header can be "
            "read."
        )
    place = header.parent / name
    if not place.is_file():
        raise ReadError(f"{header} keeps its values in {name!r}, which is not beside it.")
    return place


def check_affine(path: Path, affine: np.ndarray) -> None:
    """Raises ReadError where a header gives a (4, 4) affine that is of no use."""
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ReadError(
            f"The header of {path} gives no usable orientation: it holds NaN, or a spacing of "
            "zero. Repair it, or export the image again."
        )


@contextlib.contextmanager
def logged_errors(logger: str) -> Iterator[list[str]]:
    """What a library logs as an error meanwhile, instead of on the screen."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    log = logging.getLogger(logger)
    before = log.handlers, log.propagate
    log.handlers, log.propagate = [Collect(logging.ERROR)], False
    try:
        yield messages
    finally:
        log.handlers, log.propagate = before


class Guarded(Uncopied):
    """An array whose values are read later; damage that is found then is told as clearly."""

    def __init__(self, array: Any, path: Path) -> None:
        super().__init__(array)
        self.path = path

    def __getitem__(self, index: Any) -> Any:
        with clear_errors(self.path):
            return super().__getitem__(index)
