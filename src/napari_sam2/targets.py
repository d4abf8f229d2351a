"""Names of files, and whether they can be written where they shall be and replace nothing that is
read."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from sam2_engine.whole_file import move

_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def file_name(text: str) -> str:
    """A text, such as the name of a layer, as the name of a file that every system takes."""
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", text).strip(". ") or "image"
    return f"_{name}" if _DEVICES.fullmatch(name) else name  # devices of Windows, in any folder


def why_not(
    path: Path, overwrite: bool, is_folder: bool = False, parent: Path | None = None
) -> str | None:
    """Why a file, or a folder, cannot be written to `path`, or None; tries it with another file in
    the folder that it lies in.

    parent: the folder that must be there, if not the one that `path` lies in.
    """
    folder = path.parent if parent is None else parent
    try:
        if not folder.exists():
            return f"there is no folder {folder}"
        if not folder.is_dir():
            return f"{folder} is not a folder"
        if path.exists() and path.is_dir() != is_folder:
            return "it is a file, and a folder is needed" if is_folder else "it is a folder"
        if path.exists() and not overwrite:
            return "it exists already; --overwrite (overwrite=True in a script) replaces it"
        if path.exists() and not os.access(path, os.W_OK):
            return "it is write-protected"
        if path.is_file():
            move(path, path)  # on Windows not while it is open
        return why_not_in(folder)
    except OSError as error:  # a name that is too long
        return error.strerror or str(error)


def why_not_in(folder: Path, room: int = 0) -> str | None:
    """Why nothing can be written to a folder, or None.

    room: bytes that there must be room for, which are written to find out: quotas count, too.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # on Linux without a name: nothing is left
            file.write(bytes(room))
        return None
    except OSError as error:
        return error.strerror or str(error)


def overlap(written: Iterable[Path], read: Iterable[Path]) -> tuple[Path, Path] | None:
    """The first path to write with one to read that is the same or lies in it, links resolved."""
    places = {_place(path): path for path in written}
    for path in read:
        place = _place(path)
        for at in (place, *place.parents):
            if at in places:
                return places[at], path
    return None


def _place(path: Path) -> Path:
    place = os.path.normcase(os.path.realpath(path))
    if sys.platform == "darwin":  # whose disks take both spellings for one, as those of Windows
        place = unicodedata.normalize("NFC", place).casefold()
    return Path(place)
