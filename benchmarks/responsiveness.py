"""How long the window stands still while SAM 2 works on a volume of 300 x 512 x 512.

    python -m benchmarks.responsiveness [--frames 300] [--size 512] [--others 0] [--model NAME]
        [--json FILE]

A real viewer with the widget: an object is marked (encoding), followed through all slices
(propagation), corrected on one of them and brought up to date (updating), while the person looks
on. Then all of it again with a second object, while the person scrolls through the slices. A timer
beats in Qt's event loop every 5 ms; a stall is how much later than that a beat comes. "scrolling
alone" is what napari needs for the slices, while nothing else is done. With --others so many small
objects are there before, painted on one slice and followed through all. The figures on top are
those of looking on; those of scrolling contain napari's drawing, and are given beside napari's own.
Without a screen all runs on a virtual one (xvfb-run), where the processor has to draw, too.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report

BEAT_MS = 5
SCROLL_MS = 150
SCROLLING = ", scrolling"
SCROLLING_ALONE = "scrolling alone"
_SETTLE_MS = 500
_SCROLL_SECONDS = 3.0


def discs(count: int, size: int) -> list[NDArray[np.bool_]]:
    """(size, size) each: small discs in rows."""
    rows, columns = np.ogrid[:size, :size]
    in_row = math.ceil(math.sqrt(count))
    step = size / max(in_row, 1)
    centres = [divmod(k, in_row) for k in range(count)]
    return [
        np.hypot(rows - (y + 0.5) * step, columns - (x + 0.5) * step) < 0.3 * step
        for y, x in centres
    ]


def volume(frames: int, size: int, others: int = 0) -> NDArray[np.uint8]:
    """(frames, size, size): two bright bodies on noise, which drift and change their size, and so
    many `discs` that stay as they are.
    """
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (size + frames, size), np.uint8)
    rows, columns = np.ogrid[:size, :size]
    image = np.empty((frames, size, size), np.uint8)
    still = 60 * np.any([np.zeros((size, size), bool), *discs(others, size)], axis=0)
    for index in range(frames):
        image[index] = noise[index : index + size] + still
        for y, x, value in ((0.35, 0.35, 150), (0.6, 0.65, 190)):
            radius = size * (0.08 + 0.05 * np.sin(np.pi * index / frames))
            y, x = size * y + 0.1 * index, size * x - 0.1 * index
            image[index][(rows - y) ** 2 + (columns - x) ** 2 < radius**2] += np.uint8(value)
    return image


def stalls(beats: Sequence[float]) -> NDArray[np.float64]:
    """Seconds at which the beats came -> by how many milliseconds each was late."""
    return np.maximum(np.diff(beats) * 1000 - BEAT_MS, 0)


def summary(late: NDArray[np.float64]) -> dict[str, float]:
    """The longest stall and the 99th percentile of all beats, in milliseconds."""
    return {
        "longest_stall_ms": float(late.max(initial=0)),
        "p99_stall_ms": float(np.percentile(late, 99)) if late.size else 0.0,
    }


class Heart:
    """A timer in Qt's event loop that notes when it beats."""

    def __init__(self) -> None:
        from qtpy.QtCore import Qt, QTimer

        self.beats: list[float] = []
        self._timer = QTimer()
        self._timer.setTimerType(Qt.TimerType.PreciseTimer)
        self._timer.setInterval(BEAT_MS)
        self._timer.timeout.connect(lambda: self.beats.append(time.perf_counter()))

    def during(self, is_over: Callable[[], bool], also: Callable[[], None]) -> tuple[Any, float]:
        """Run the event loop until `is_over`; `also` is what a person does all the while.

        Returns how late each beat was (milliseconds), and how long it took (seconds).
        """
        from qtpy.QtCore import QEventLoop, QTimer

        loop, watch, person = QEventLoop(), QTimer(), QTimer()
        watch.timeout.connect(lambda: loop.quit() if is_over() else None)
        person.timeout.connect(also)
        begin = time.perf_counter()
        self.beats = [begin]
        self._timer.start()
        watch.start(20)
        person.start(SCROLL_MS)
        loop.exec()
        for timer in (self._timer, watch, person):
            timer.stop()
        return stalls(self.beats), time.perf_counter() - begin


def measure(model: str, frames: int, size: int, others: int = 0) -> list[dict[str, Any]]:
    """Mark, propagate, correct and update in a viewer; the stalls of each phase.

    others: so many objects are there before, on all slices.
    """
    import napari
    from qtpy.QtTest import QTest

    from napari_sam2.widgets import SAM2Widget

    viewer = napari.Viewer(show=True)
    viewer.add_image(volume(frames, size, others), name="volume", contrast_limits=(0, 255))
    widget = SAM2Widget(viewer, model=model)
    viewer.window.add_dock_widget(widget, name="SAM 2")
    heart, rows = Heart(), []
    middle = frames // 2
    viewer.dims.set_current_step(0, middle)

    def wait() -> None:
        while widget.is_busy:
            QTest.qWait(20)
        QTest.qWait(_SETTLE_MS)

    def scroll() -> None:
        viewer.dims.set_current_step(0, (viewer.dims.current_step[0] + 1) % frames)

    def phase(name: str, action: Callable[[], None], also: Callable[[], None]) -> None:
        late, seconds = heart.during(is_over=_after(action, widget), also=also)
        rows.append({"phase": name, "seconds": seconds, **summary(late), "late": late})
        report.progress(f"{name}: {seconds:.1f} s, longest stall {late.max():.0f} ms")

    def click(frame: int, y: float, x: float) -> None:
        layer = widget.points_layer
        assert layer is not None
        layer.add([frame, y * size + 0.1 * frame, x * size - 0.1 * frame])

    def work_on(y: float, x: float, also: Callable[[], None], name: str) -> None:
        viewer.dims.set_current_step(0, middle)
        wait()
        phase(f"encoding{name}", lambda: click(middle, y, x), lambda: None)
        phase(f"propagation{name}", widget.propagate, also)
        viewer.dims.set_current_step(0, frames // 4)
        wait()
        phase(f"correction{name}", lambda: click(frames // 4, y, x + 0.02), lambda: None)
        phase(f"updating{name}", widget.update_masks, also)

    wait()
    widget.start("include")
    wait()
    if others:
        session = widget.session
        assert session is not None
        with session.history.change("Others"), session.writing_first(middle):
            for disc in discs(others, size):
                session.paint(session.add_object(), middle, disc)
        phase(f"propagation of {others} others", widget.propagate, lambda: None)
        wait()
    late, seconds = heart.during(is_over=_after_seconds(_SCROLL_SECONDS), also=scroll)
    rows.append({"phase": SCROLLING_ALONE, "seconds": seconds, **summary(late), "late": late})
    work_on(0.35, 0.35, lambda: None, "")
    widget.new_object()
    work_on(0.6, 0.65, scroll, SCROLLING)
    viewer.close()
    return rows


def _after_seconds(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


def _after(action: Callable[[], None], widget: Any) -> Callable[[], bool]:
    """Does the action on the first call; then tells whether the widget has done its work.

    And has shown it: what is drawn last, shortly after the end, belongs to it.
    """
    begun: list[bool] = []
    ended: list[float] = []

    def is_over() -> bool:
        if not begun:
            begun.append(True)
            action()
        elif not widget.is_busy:
            ended.append(time.perf_counter())
            return ended[-1] - ended[0] > _SETTLE_MS / 1000
        return False

    return is_over


def run_on_a_screen() -> None:
    """Start this program anew on a virtual screen, where there is none and one can be had."""
    has_screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform != "linux" or has_screen or os.environ.get("QT_QPA_PLATFORM"):
        return
    xvfb = shutil.which("xvfb-run")
    if xvfb is None:
        sys.exit("There is no screen. Install Xvfb (on Debian and Ubuntu: apt install xvfb).")
    command = [xvfb, "-a", "-s", "-screen 0 1400x900x24", sys.executable, "-m"]
    os.execv(xvfb, [*command, "benchmarks.responsiveness", *sys.argv[1:]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all phases; table on stdout, progress on stderr."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.responsiveness", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--size", type=int, default=512, help="rows and columns (default: 512)")
    parser.add_argument("--others", type=int, default=0, help="objects before (default: none)")
    parser.add_argument("--model", default="nano", help="name or checkpoint (default: nano)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    chosen = parser.parse_args(arguments)
    run_on_a_screen()

    rows = measure(chosen.model, chosen.frames, chosen.size, chosen.others)
    late = {row["phase"]: row.pop("late") for row in rows}
    work = [row["phase"] for row in rows if row["phase"] != SCROLLING_ALONE]
    scrolling = [name for name in work if name.endswith(SCROLLING)]
    looking_on = [name for name in work if name not in scrolling]
    for title, names in (("all", looking_on), (f"all{SCROLLING}", scrolling)):
        seconds = sum(row["seconds"] for row in rows if row["phase"] in names)
        together = summary(np.concatenate([late[name] for name in names]))
        rows.append({"phase": title, "seconds": seconds, **together})
    keys = ["phase", "seconds", "longest_stall_ms", "p99_stall_ms"]
    head = ["phase", "seconds", "longest stall, ms", "99th percentile, ms"]
    print(report.table(head, [[row[key] for key in keys] for row in rows]))
    content = {
        **{key: rows[-2][key] for key in ("longest_stall_ms", "p99_stall_ms")},
        "phases": rows,
        "volume": [chosen.frames, chosen.size, chosen.size],
        "others": chosen.others,
        "model": chosen.model,
    }
    report.write_json(chosen.json, content, "benchmarks.responsiveness", arguments)


if __name__ == "__main__":
    main()
