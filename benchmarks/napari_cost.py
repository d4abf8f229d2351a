"""What the plugin costs in napari: its start, and writing one slice of a large labels layer.

    python -m benchmarks.napari_cost [--frames 10 1000 6000] [--size 2048] [--json FILE]

A slice of a long volume must cost what a slice of a short one costs. The labels lie in a sparse
file, which claims their whole size and takes the disk space of what is written. The start is that
of a new process each: importing the package that holds the manifest, and opening the widget in a
viewer that is there already, which is time that the window stands still. Without a screen it runs
on a virtual one (xvfb-run).
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report

_ROUNDS = 9
_IMPORT = """
import json, sys, time
started, own = time.perf_counter(), time.thread_time()
import napari_sam2
print(json.dumps({"seconds": time.perf_counter() - started, "own_seconds": time.thread_time() - own,
    "modules": list(sys.modules), "torch_in": None, "napari_own_seconds": None}))
"""
_OPEN = """
import json, sys, threading, time
import napari, numpy as np

class Watch:
    torch_in = None
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            Watch.torch_in = threading.current_thread().name

own = time.thread_time()
viewer = napari.Viewer(show=True)
napari_own = time.thread_time() - own
viewer.add_image(np.zeros((20, 64, 64), np.uint8))
before = list(sys.modules)
sys.meta_path.insert(0, Watch())
started, own = time.perf_counter(), time.thread_time()
from napari_sam2.widgets import SAM2Widget
widget = SAM2Widget(viewer)
viewer.window.add_dock_widget(widget, name="SAM 2")
took, own = time.perf_counter() - started, time.thread_time() - own
deadline = time.monotonic() + 60
from qtpy.QtWidgets import QApplication
while Watch.torch_in is None and time.monotonic() < deadline:
    QApplication.processEvents()
    time.sleep(0.05)
print(json.dumps({"seconds": took, "own_seconds": own, "torch_in": Watch.torch_in,
    "napari_own_seconds": napari_own,
    "modules": [name for name in list(sys.modules) if name not in before]}))
viewer.close()
"""
HEAVY = ("torch", "napari", "qtpy")
"""What takes seconds to import."""


def start(script: str) -> dict[str, Any]:
    """Run a script in a process of its own, with the package byte-compiled, as pip leaves it.

    Returns the seconds that it took, those that its thread itself computed (`own_seconds`; others
    on a busy machine do not count in them), those of napari's own window, which heavy modules it
    loaded, and the thread that loads torch.
    """
    for package in ("napari_sam2", "sam2_engine"):
        compileall.compile_dir(Path(str(find_spec(package).origin)).parent, quiet=1)
    command = [sys.executable, "-c", script]
    xvfb = shutil.which("xvfb-run")
    if xvfb and not (os.environ.get("DISPLAY") or os.environ.get("QT_QPA_PLATFORM")):
        command = [xvfb, "-a", "-s", "-screen 0 1400x900x24", *command]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    modules = found.pop("modules")
    return {**found, "loaded": [name for name in HEAVY if name in modules]}


def slices(frames: int, size: int, folder: Path) -> dict[str, Any]:
    """Median milliseconds to write a mask to one slice of (frames, size, size), and to show it.

    folder: where the labels lie.
    """
    from napari.layers import Labels

    from napari_sam2.output import Entry, Output
    from napari_sam2.sequence_view import SequenceView
    from napari_sam2.slice_data import ObjectMask

    shape = (frames, size, size)
    output = Output((1, 1, 1))  # given labels from the start, it would look for ids in them
    output.labels = np.memmap(folder / "labels", np.int32, "w+", shape=shape)
    view = SequenceView(np.broadcast_to(np.uint8(0), shape))
    layer = Labels(output.labels)
    mask = np.zeros(shape[1:], np.bool_)
    mask[size // 4 : size // 2, size // 4 : size // 2] = True
    # In turns, for what is there already is not written again.
    entries = [
        Entry(1, ObjectMask.given(np.roll(mask, shift)), is_kept=False) for shift in (0, size // 8)
    ]
    middle = frames // 2
    written, shown = [], []
    for number in range(_ROUNDS):
        entry = entries[number % 2]
        written.append(_seconds(partial(output.write, view, middle, [entry])))
        shown.append(_seconds(lambda: layer.refresh(thumbnail=False, extent=False)))
    return {
        "frames": frames,
        "claimed_gb": output.labels.nbytes / 1e9,
        "write_ms": 1e3 * statistics.median(written),
        "show_ms": 1e3 * statistics.median(shown),
    }


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all; tables on stdout."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.napari_cost", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[10, 1000, 6000])
    parser.add_argument("--size", type=int, default=2048, help="rows and columns (default: 2048)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    chosen = parser.parse_args(arguments)

    starts = {"import": start(_IMPORT), "open the widget": start(_OPEN)}
    with tempfile.TemporaryDirectory() as folder:
        rows = [slices(frames, chosen.size, Path(folder)) for frames in chosen.frames]
    head = [
        "start",
        "seconds",
        "of the thread itself",
        "napari's window",
        "torch is loaded in",
        "loaded",
    ]
    keys = ["seconds", "own_seconds", "napari_own_seconds", "torch_in"]
    lines = [
        [name, *(one[key] for key in keys), ", ".join(one["loaded"])]
        for name, one in starts.items()
    ]
    print(report.table(head, lines))
    head = ["frames", "labels, GB", "write a slice, ms", "show it, ms"]
    print(report.table(head, [list(row.values()) for row in rows]))
    content = {"starts": starts, "rows": rows}
    report.write_json(chosen.json, content, "benchmarks.napari_cost", arguments)


if __name__ == "__main__":
    main()
