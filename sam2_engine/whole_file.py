"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_WAITS = (0.0, 0.1, 0.3, 0.6)  # seconds


@contextmanager
def beside(path: Path, suffix: str = "") -> Iterator[Path]:
    """A name in the same folder to write a file or a folder to, which takes the place of `path` at
    the end; after an error, or where nothing can be put there, what was there is as it was.

    suffix: of the name, for libraries that go by it.

    Raises: OSError.
    """
    temporary = path.with_name(f".{short(path.name)}.{secrets.token_hex(4)}.part{suffix}")
    try:
        yield temporary
        _replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()


def short(name: str) -> str:
    """The beginning of a file's name, which leaves room for more: names have 255 bytes at most."""
    return os.fsencode(name)[:100].decode(errors="ignore")


def write_text(path: Path, text: str) -> None:
    """Write a file; an older one stays whole until then. Line ends are written as they are.

    Raises: OSError, and the older file is as it was.
    """
    with beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def move(source: Path, target: Path) -> None:
    """Give a file or a folder another name, or the name of an older file, which is gone then.

    Windows refuses that while a program has one of them open, as virus scanners have every new file
    for a moment; so it is tried for a second.

    Raises: OSError.
    """
    for wait in (*_WAITS, None):
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if wait is None:
                reason = (
                    f"{error.strerror or error}; it may be open in another program, or as a layer "
                    "in napari: close it there, or choose another name"
                )
                raise PermissionError(error.errno, reason, str(target)) from error
            gc.collect()  # closes the files of arrays that nobody has any more
            time.sleep(wait)


def _replace(new: Path, target: Path) -> None:
    """Put a file or a folder in the place of an older one."""
    if not (new.is_dir() and target.exists()):
        move(new, target)
        return
    old = target.with_name(f"{target.name}.old-{secrets.token_hex(4)}")  # folders cannot be swapped
    move(target, old)
    try:
        move(new, target)
    except OSError:
        move(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
