"""Session files that say something else than their session."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from napari_sam2.session import Session
from napari_sam2.session_file import save_session


def saved_otherwise(
    session: Session, folder: Path, change: Callable[[dict[str, Any]], object]
) -> Path:
    """Save a session, and beside it another file with a session.json that `change` was given."""
    path, other = folder / "as_it_was.sam2session", folder / "changed.sam2session"
    save_session(session, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "session.json":
                loaded = json.loads(content)
                change(loaded)
                content = json.dumps(loaded).encode()
            new.writestr(name, content)
    return other
