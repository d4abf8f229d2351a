"""The person's last choices, remembered from one day to the next in a small JSON file."""

from __future__ import annotations

import json
import logging
from typing import Any

from platformdirs import user_config_path

from sam2_engine.whole_file import write_text

logger = logging.getLogger(__name__)

FILE = user_config_path("napari-sam2", appauthor=False) / "widget.json"


def load() -> dict[str, Any]:
    """What was chosen last; nothing where there is no file, or none that can be read."""
    try:
        known = json.loads(FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(**choices: Any) -> None:
    """Change some of the choices. A file that cannot be written is no trouble to anyone."""
    known = load()
    if known | choices == known:
        return
    try:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        write_text(FILE, json.dumps(known | choices, indent=1) + "\n")
    except OSError:
        logger.debug("The choices could not be written to %s.", FILE, exc_info=True)
