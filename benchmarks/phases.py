"""What each of three ways through a volume costs, and what it gives, with a simulated reader.

    python -m benchmarks.phases --data DIR [--split dev] [--model NAME_OR_PATH] [--limit N]
                                [--json FILE]

1. by hand: each slice is boxed, and corrected until it is right. Nothing is propagated.
2. propagated: a box on the largest slice is followed both ways, to where the reader says that the
   object begins and ends; the reader then goes from the most doubtful slice on, corrects what is
   not right, updates, and stops after five in a row that are.
3. alone: as 2, but only the most doubtful tenth of the slices is looked at.

The reader knows the truth. A slice is right from a Dice of 0.85 on. What is not gets up to three
clicks, each in the middle of its largest error, and is painted if it is not right then.
Boxes, clicks and ends are counted together, paintings apart: they cost a person far more. A slice
is one that has the object. Seconds are the model's, without those of a person. Dice is over all
slices.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cases, report
from benchmarks.prompting import corrective_click
from napari_sam2 import Session
from napari_sam2.review import next_doubtful
from sam2_engine.masks import dice, largest_slice, tight_box
from sam2_engine.weights import load_model

RIGHT = 0.85  # Dice of a slice
CLICKS = 3  # on a slice, then it is painted
CALM = 5  # slices in a row that are right, then the rest is believed
TENTH = 0.1  # of the slices that are looked at in the third phase

Masks = NDArray[np.bool_]  # (N, H, W)


@dataclass
class Reader:
    """One object of a session, and a person who knows the truth of it."""

    session: Session
    object_id: int
    truth: Masks
    marks: int = 0
    """Boxes, clicks, and the object's first and last slice."""
    painted: int = 0
    looks: int = 0
    seconds: float = 0.0

    def box(self, frame: int) -> None:
        """Draw a tight box."""
        self.session.add_box(self.object_id, frame, tight_box(self.truth[frame]))
        self.marks += 1
        self._timed(lambda: self.session.preview(frame))

    def say_ends(self) -> None:
        """Say on which slices the object begins and ends."""
        frames = np.flatnonzero(self.truth.any(axis=(1, 2)))
        first, last = int(frames[0]), int(frames[-1])
        self.session.set_life(self.object_id, first, last)
        self.marks += (first > 0) + (last < len(self.truth) - 1)

    def mask(self, frame: int) -> NDArray[np.bool_]:
        """(H, W) as it is now."""
        found = self.session.masks_of(self.object_id).get(frame)
        if found is None:
            return np.zeros(self.truth.shape[1:], np.bool_)
        return found.on_frame(self.truth.shape[1:])

    def look(self, frame: int) -> bool:
        """Approve a slice, or correct it until it is right. Returns whether it was right."""
        self.looks += 1
        was_right = is_right = self.is_right(frame)
        for _ in range(CLICKS):
            if is_right:
                break
            click = corrective_click(self.mask(frame)[None], self.truth[frame][None])
            assert click is not None
            at = self.session.view.join(frame, [click.point])
            self.session.add_points(self.object_id, at, [int(click.positive)])
            self.marks += 1
            self._timed(lambda: self.session.preview(frame))
            is_right = self.is_right(frame)
        if is_right:
            self.session.keep(self.object_id, [frame])
        else:
            self.session.paint(self.object_id, frame, self.truth[frame])
            self.painted += 1
        return was_right

    def is_right(self, frame: int) -> bool:
        """Whether a person would leave it as it is."""
        return dice(self.mask(frame), self.truth[frame]) >= RIGHT

    def propagate(self) -> None:
        """Follow the object through all slices."""
        self._timed(self.session.propagate)

    def update(self) -> None:
        """Find anew what is out of date."""
        self._timed(self.session.update)

    def _timed(self, action: Callable[[], object]) -> None:
        started = time.perf_counter()
        action()
        self.seconds += time.perf_counter() - started


def by_hand(reader: Reader) -> None:
    """Phase 1."""
    for frame in np.flatnonzero(reader.truth.any(axis=(1, 2))).tolist():
        reader.box(frame)
        reader.look(frame)


def propagated(reader: Reader, most: int | None = None) -> None:
    """Phase 2; phase 3 with the most slices to look at."""
    reader.box(largest_slice(reader.truth))
    reader.say_ends()
    reader.propagate()
    seen: set[tuple[int, int]] = set()
    calm = 0
    while calm < CALM and (most is None or reader.looks < most):
        place = next_doubtful(reader.session, seen)
        if place is None:
            break
        seen.add(place)
        if reader.look(place[1]):
            calm += 1
        else:
            calm = 0
            reader.update()


def alone(reader: Reader) -> None:
    """Phase 3."""
    slices = int(reader.truth.any(axis=(1, 2)).sum())
    propagated(reader, most=max(1, round(TENTH * slices)))


PHASES: dict[str, Callable[[Reader], None]] = {
    "1 by hand": by_hand,
    "2 propagated": propagated,
    "3 alone": alone,
}


def run(frames: NDArray[Any], truth: Masks, model: Any) -> Iterator[dict[str, Any]]:
    """A row for each phase, of one object."""
    for name, phase in PHASES.items():
        session = Session(frames, model)
        reader = Reader(session, session.add_object(), truth)
        phase(reader)
        slices = int(truth.any(axis=(1, 2)).sum())
        result = np.stack([reader.mask(frame) for frame in range(len(truth))])
        yield {
            "phase": name,
            "dice": dice(result, truth),
            "marks": reader.marks / slices,
            "painted": reader.painted / slices,
            "looks": reader.looks / slices,
            "seconds": reader.seconds / slices,
            "slices": slices,
        }


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the objects of a data set, for each phase."""
    means = []
    for dataset, phase in dict.fromkeys((row["dataset"], row["phase"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["phase"]) == (dataset, phase)]
        keys = ("dice", "marks", "painted", "looks", "seconds", "slices")
        mean = {key: float(np.mean([row[key] for row in own])) for key in keys}
        means.append({"dataset": dataset, "phase": phase, "objects": len(own), **mean})
    return means


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line per data set and phase."""
    keys = ["dataset", "phase", "objects", "slices"]
    keys += ["looks", "marks", "painted", "seconds", "dice"]
    head = ["data set", "phase", "objects", "slices"]
    head += ["looks/slice", "marks/slice", "painted/slice", "s/slice", "Dice"]
    return report.table(head, [[row[key] for key in keys] for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Table on stdout, progress on stderr."""
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="benchmarks.phases", description=about)
    cases.add_arguments(parser)
    chosen = parser.parse_args(arguments)
    model = load_model(chosen.model, device=chosen.device)
    rows: list[dict[str, Any]] = []
    items = cases.read_items(chosen.data, chosen.split, chosen.limit)
    volumes = [item for item in items if item.kind == "volume"]
    for number, item in enumerate(volumes, start=1):
        frames, targets = cases.read_case(item)
        for target in targets:
            if target.part != "union":
                rows += [
                    {"dataset": item.dataset, **row} for row in run(frames, target.truth, model)
                ]
        report.progress(f"[{number}/{len(volumes)}] {item.name}")
    summary = summarise(rows)
    print(as_table(summary))
    content = {"rows": rows, "summary": summary, "model": chosen.model}
    report.write_json(chosen.json, content, "benchmarks.phases", arguments)


if __name__ == "__main__":
    main()
