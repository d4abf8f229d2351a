"""What the benchmarks share: a table for people, JSON for programs, and the machine it ran on."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam2_engine.whole_file import write_text


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table with aligned columns; numbers to the right, missing values as a dash."""
    cells = [[_text(value) for value in row] for row in rows]
    widths = [
        max(len(line[column]) for line in [list(head), *cells]) for column in range(len(head))
    ]
    numeric = [
        any(isinstance(row[column], (int, float)) for row in rows) for column in range(len(head))
    ]

    def line(values: Sequence[str]) -> str:
        padded = [
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        ]
        return "| " + " | ".join(padded) + " |"

    rule = [
        "-" * (width - 1) + ":" if right else "-" * width
        for width, right in zip(widths, numeric, strict=True)
    ]
    return "\n".join([line(head), line(rule), *(line(row) for row in cells)])


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def write_json(
    path: Path | None, content: dict[str, Any], module: str, arguments: Sequence[str] | None
) -> None:
    """Write what a benchmark has found, and with which command on which machine.

    Args:
        path: of the file, which is never half there; None writes none.
        module: of the benchmark.
        arguments: as its `main` got them.
    """
    if path is not None:
        how = {"command": _command(module, arguments), "machine": _machine()}
        write_text(path, json.dumps(content | how, indent=1) + "\n")


def _machine() -> dict[str, Any]:
    """Processor, graphics card, cores, system and versions that the figures depend on."""
    from importlib.metadata import version

    torch = sys.modules.get("torch")
    card = torch.cuda.get_device_name() if torch and torch.cuda.is_initialized() else None
    return {
        "processor": _processor(),
        "graphics card": card,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _command(module: str, arguments: Sequence[str] | None) -> str:
    """The command line that is running, as a person would type it."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)])


def progress(text: str) -> None:
    """A line on stderr, so that stdout holds the results alone."""
    print(text, file=sys.stderr, flush=True)
