"""Models' names with the size of their input: "sam2.1-tiny@512". Imports no torch."""

from __future__ import annotations

import os
import re


def split_size(name_or_path: str | os.PathLike[str]) -> tuple[str, int | None]:
    """A model's name or path, and the side of its input in pixels that follows behind an @.

    Without one, that is None: the model looks at images as it was trained to. So it does where the
    whole is the path of a file.
    """
    name = os.fspath(name_or_path)
    found = re.fullmatch(r"(.+)@([0-9]+)", name)
    if found is None or os.path.isfile(os.path.expanduser(name)):
        return name, None
    return found[1], int(found[2])


def with_size(name: str, size: int | None) -> str:
    """The reverse of `split_size`."""
    return name if size is None else f"{name}@{size}"
