"""Files as on Windows: what is open, or mapped into memory, can be neither replaced nor removed.

What this process holds is looked up in /proc, so only Linux can play Windows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

IN_USE = "The process cannot access the file because it is being used by another process"


def held(path: str | os.PathLike[str]) -> list[str]:
    """The files at a path, or in a folder, that this process has open or mapped."""
    place = os.path.realpath(path)
    return sorted({file for file in _open_files() if file == place or file.startswith(place + "/")})


def hold_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, as on Windows."""
    for name, count in (("replace", 2), ("rename", 2), ("unlink", 1), ("remove", 1), ("rmdir", 1)):
        monkeypatch.setattr(os, name, _guarded(getattr(os, name), count))


def _guarded(real: Callable[..., None], count: int) -> Callable[..., None]:
    def guarded(*paths: Any, dir_fd: int | None = None, **how: Any) -> None:
        folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        for path in paths[:count]:
            if held(os.path.join(folder, os.fspath(path))):
                raise PermissionError(13, IN_USE, os.fspath(path))
        real(*paths, **how | ({} if dir_fd is None else {"dir_fd": dir_fd}))

    return guarded


def _open_files() -> Iterator[str]:
    for handle in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{handle}")
        except OSError:  # closed by now
            continue
        if target.startswith("/") and not os.path.isdir(target):
            yield target
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6:
            yield fields[5]
