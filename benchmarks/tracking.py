"""How well whole sequences are segmented and tracked without a click, beside a linked watershed.

    python -m benchmarks.tracking [--data DIR] [--split dev] [--movies N] [--model NAME_OR_PATH]
                                  [--every N] [--frames N] [--scores PYTHON] [--json FILE]

Sequences are synthetic movies with exact truth (cells that touch, divide, enter and leave) and, of
a data folder, its time-lapses and its volumes with instances, whose slices are the frames.

Measures: SEG, DET and TRA of the Cell Tracking Challenge, F1 of divisions (one frame of
tolerance), and IoU: that of each true object with one object that was found, over all frames
together, paired one to one; 0 where there is none. The measures' packages need other versions than
the plugin, so they have an environment of their own. In this repository's top folder:

    python -m venv ../tracking
    ../tracking/bin/pip install traccuracy==0.4.3 py-ctcmetrics==1.3.3 laptrack==0.17.1 tifffile

The baseline is a watershed of each frame (Otsu's threshold), linked by overlap with laptrack. All
are told the usual diameter of the true objects, as a person would measure it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from benchmarks import cases, report
from benchmarks.automatic import instance_ious, median_diameter
from napari_sam2 import Session, find_throughout
from napari_sam2.divisions import accept_division, propose_divisions
from napari_sam2.io.labels_ctc import write_ctc
from napari_sam2.io.legend import LegendEntry
from napari_sam2.io.volume import Volume
from napari_sam2.synthetic_movies import make_movie
from sam2_engine.seeds import classical_labels

Labels = NDArray[np.int32]  # (T, H, W)
MEASURES = ("SEG", "DET", "TRA", "divisions", "IoU")


@dataclass(frozen=True)
class Case:
    """Frames with their true objects."""

    dataset: str
    images: NDArray[Any]
    truth: Labels
    parents: Mapping[int, int]

    @property
    def diameter(self) -> float:
        """What a person would say of its objects."""
        return median_diameter(self.truth)


@dataclass(frozen=True)
class Found:
    """What a method makes of a sequence."""

    labels: Labels
    parents: Mapping[int, int]
    seconds: float


# -- sequences -------------------------------------------------------------------------------------


def movies(count: int) -> Iterator[Case]:
    """Synthetic movies of loose cells and of crowds, so many of each."""
    for seed in range(count):
        for name, cells, divisions in (("movie, loose", 6, 2), ("movie, crowd", 24, 4)):
            movie = make_movie(20, (160, 160), cells, seed, dividing=divisions)
            yield Case(name, movie.images, movie.labels, movie.parents)


def real(folder: Path, split: str, limit: int | None, frames: int | None) -> Iterator[Case]:
    """Time-lapses and volumes with instances, their first frames that hold any."""
    for item in cases.read_items(folder, split, limit):
        if item.instances and item.kind != "image":
            images, labels = cases.read_frames(item)
            first = int(labels.any(axis=(1, 2)).argmax())
            taken = slice(first, None if frames is None else first + frames)
            yield Case(item.dataset, images[taken], labels[taken].astype(np.int32), {})


# -- methods ---------------------------------------------------------------------------------------


def ours(case: Case, model: str, every: int) -> Found:
    """`find_throughout`, and all divisions accepted that are proposed in a movie that has some."""
    started = time.perf_counter()
    session = Session(case.images, model)
    find_throughout(session, every=every, diameter=case.diameter)
    if case.parents:
        for proposal in propose_divisions(session):
            accept_division(session, proposal)
    seconds = time.perf_counter() - started
    return Found(np.asarray(session.labels, np.int32), session.parents, seconds)


def linked(case: Case, scores: str) -> Found:
    """A watershed of each frame, linked by overlap."""
    started = time.perf_counter()
    masks = np.stack([classical_labels(frame, case.diameter) for frame in case.images])
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        given, tracked = Path(folder, "labels.npy"), Path(folder, "tracks.npz")
        np.save(given, masks)
        started = time.perf_counter()
        _run(scores, "link", given, tracked)
        seconds += time.perf_counter() - started
        with np.load(tracked) as result:
            parents = {int(child): int(parent) for child, parent in result["parents"]}
            return Found(result["labels"], parents, seconds)


# -- scores ----------------------------------------------------------------------------------------


def score(case: Case, found: Found, scores: str) -> dict[str, float]:
    """The measures of what was found."""
    with tempfile.TemporaryDirectory() as folder:
        truth, result = Path(folder, "truth"), Path(folder, "result")
        _write(truth, case.truth, case.parents)
        _write(result, found.labels, found.parents)
        measures: dict[str, float] = json.loads(_run(scores, "score", truth, result))
    return measures | {"IoU": paired_iou(found.labels, case.truth)}


def paired_iou(found: Labels, truth: Labels) -> float:
    """Mean over the true objects of the IoU with their own found one, over all frames."""
    stacked = instance_ious(found.reshape(1, -1), truth.reshape(1, -1))
    rows, columns = linear_sum_assignment(-stacked)
    return float(stacked[rows, columns].sum() / max(1, stacked.shape[1]))


def _write(folder: Path, labels: Labels, parents: Mapping[int, int]) -> None:
    ids = np.unique(labels[labels > 0]).tolist()
    legend = tuple(LegendEntry(i, f"Object {i}", parent=parents.get(i)) for i in ids)
    write_ctc(folder, Volume(labels, axes="tyx"), legend)


def _run(python: str, *arguments: object) -> str:
    command = [python, "-m", "benchmarks.tracking_scores", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"The measures failed:\n{done.stderr}\n{__doc__}")
    return done.stdout


def rows_of(case: Case, methods: Mapping[str, Callable[[Case], Found]], scores: str) -> list[Any]:
    """A row for each method on one sequence."""
    rows = []
    for name, method in methods.items():
        found = method(case)
        rows.append(
            {
                "dataset": case.dataset,
                "method": name,
                **score(case, found, scores),
                "seconds": found.seconds / len(case.images),
                "found": len(np.unique(found.labels[found.labels > 0])),
                "true": len(np.unique(case.truth[case.truth > 0])),
            }
        )
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean over the sequences of a data set; a measure that none has is None."""
    means = []
    for dataset, method in dict.fromkeys((row["dataset"], row["method"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["method"]) == (dataset, method)]
        mean: dict[str, Any] = {"dataset": dataset, "method": method, "sequences": len(own)}
        for key in (*MEASURES, "seconds", "found", "true"):
            values = [row[key] for row in own if key in row]
            mean[key] = float(np.mean(values)) if values else None
        means.append(mean)
    return means


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line per data set and method."""
    keys = ["dataset", "method", *MEASURES, "seconds", "found", "true", "sequences"]
    head = ["data set", "method", *MEASURES, "s/frame", "found", "true", "sequences"]
    return report.table(head, [[row[key] for key in keys] for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Table on stdout, progress on stderr."""
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="benchmarks.tracking", description=about)
    add = parser.add_argument
    add("--data", type=Path, help="folder with a manifest.json (default: only movies)")
    add("--split", default="dev", help="split of the manifest (default: dev)")
    add("--limit", type=int, help="at most so many items of each data set")
    add("--movies", type=int, default=3, help="synthetic movies of each kind (default: 3)")
    add("--frames", type=int, help="at most so many frames of each real sequence")
    add("--model", default="nano", help="name or checkpoint (default: nano)")
    add("--every", type=int, default=5, help="frames between key frames (default: 5)")
    add("--scores", default="../tracking/bin/python", help="python with the measures' packages")
    add("--json", type=Path, help="write rows and summary here too")
    chosen = parser.parse_args(arguments)

    methods: dict[str, Callable[[Case], Found]] = {
        "watershed + laptrack": lambda case: linked(case, chosen.scores),
        "find_throughout": lambda case: ours(case, chosen.model, chosen.every),
    }
    rows: list[dict[str, Any]] = []
    sequences = list(movies(chosen.movies))
    if chosen.data:
        sequences += real(chosen.data, chosen.split, chosen.limit, chosen.frames)
    for number, case in enumerate(sequences, start=1):
        rows += rows_of(case, methods, chosen.scores)
        report.progress(f"[{number}/{len(sequences)}] {case.dataset}")
    summary = summarise(rows)
    print(as_table(summary))
    content = {"rows": rows, "summary": summary, "model": chosen.model}
    report.write_json(chosen.json, content, "benchmarks.tracking", arguments)


if __name__ == "__main__":
    main()
