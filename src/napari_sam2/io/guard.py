"""Whatever a file makes a library raise, people get one sentence."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        raise ReadError(f"{path} is damaged or not what its name says ({reason}).") from error


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
