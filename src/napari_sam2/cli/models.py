"""The command `napari-sam2 models`: which there are, and which are on this machine."""

from __future__ import annotations

import argparse
import json
from typing import Any

from napari_sam2.cli.common import OK


def add_models(commands: Any) -> None:
    """Add the command to the subparsers of `napari-sam2`."""
    models = commands.add_parser("models", help="list the models")
    models.add_argument("--json", action="store_true", help="print them as JSON, for scripts")
    models.set_defaults(run=_models, if_stopped="stopped")


def _models(options: argparse.Namespace) -> int:
    from sam2_engine.weights import find, list_models

    models = list_models()
    if options.json:
        facts = [
            {
                "name": info.name,
                "title": info.title,
                "input": info.image_size,
                "bytes": info.size,
                "licence": info.licence,
                "is_here": info.repository is None or find(info) is not None,
            }
            for info in models
        ]
        print(json.dumps(facts, indent=2))
        return OK
    width = max(len(info.name) for info in models)
    for info in models:
        if info.is_own:
            where = "your own"
        elif info.repository is None:
            where = "bundled"
        elif find(info):
            where = "on this machine"
        else:
            where = f"downloaded on first use{f', {info.size / 1e6:.0f} MB' if info.size else ''}"
        print(f"{info.name:{width}}  {info.image_size:4} px  {info.title}; {where}")
    return OK
