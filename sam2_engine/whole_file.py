"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def beside(path: Path, suffix: str = "") -> Iterator[Path]:
    """A name in the same folder to write a file or a folder to, which takes the place of `path` at
    the end; after an error, or where nothing can be put there, what was there is as it was.

    suffix: of the name, for libraries that go by it.

    Raises: OSError.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part{suffix}")
    try:
        yield temporary
        _replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file; an older one stays whole until then. Line ends are written as they are.

    Raises: OSError, and the older file is as it was.
    """
    with beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _replace(new: Path, target: Path) -> None:
    """Put a file or a folder in the place of an older one."""
    if not (new.is_dir() and target.exists()):
        os.replace(new, target)
        return
    old = target.with_name(f"{target.name}.old-{secrets.token_hex(4)}")  # folders cannot be swapped
    os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
