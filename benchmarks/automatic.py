"""How well all objects of a frame are found without prompts, beside a watershed.

    python -m benchmarks.automatic --data DIR [--split dev] [--model NAME_OR_PATH] [--limit N]
                                   [--json FILE]

Average precision is TP / (TP + FP + FN) of a frame at one IoU threshold, as for StarDist and the
2018 Data Science Bowl: each true object is matched with at most one that was found, one to one,
so that as many as possible reach the threshold. A data set's figure is the mean over its frames.

All methods but the grids are told how large the objects of a frame usually are, as a person would
measure it: the median of the true diameters.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from benchmarks import cases, report
from benchmarks.cases import Item
from sam2_engine.automatic import Rules, find_objects, labels_image
from sam2_engine.model import SAM2
from sam2_engine.seeds import classical_labels
from sam2_engine.weights import load_model

Labels = NDArray[np.int32]  # (H, W)
THRESHOLDS = (0.5, 0.75)
TILE = 128  # pixels of the frame, which fill the model's input
FRAMES = 5  # of a volume or time-lapse, evenly spread
PUBLISHED = Rules(pred_iou_thresh=0.8, stability_score_thresh=0.95, max_covered=1.0, max_area=1.0)


def average_precision(found: Labels, truth: Labels, threshold: float) -> float:
    """TP / (TP + FP + FN) of instances; 1 where there is nothing and nothing was found."""
    ious = instance_ious(found, truth)
    hits = ious >= threshold
    # As many pairs as possible, and of several such matchings that with the larger IoUs.
    rows, columns = linear_sum_assignment(-(hits + ious / (2 * min(ious.shape) + 1)))
    positives = int(hits[rows, columns].sum())
    total = ious.shape[0] + ious.shape[1] - positives
    return positives / total if total else 1.0


def median_diameter(truth: NDArray[np.int32]) -> float:
    """Of discs as large as the median object on a frame of (N, H, W)."""
    areas = [np.unique(frame[frame > 0], return_counts=True)[1] for frame in truth]
    return float(np.sqrt(np.median(np.concatenate(areas)) * 4 / np.pi))


def instance_ious(found: Labels, truth: Labels) -> NDArray[np.float64]:
    """(F, T) IoU of each instance that was found with each true one."""
    (ids, first), (true_ids, second) = (
        np.unique(np.append(0, labels), return_inverse=True) for labels in (found, truth)
    )
    counts = np.zeros((len(ids), len(true_ids)))
    np.add.at(counts, (first[1:], second[1:]), 1)
    union = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True) - counts
    return counts[1:, 1:] / union[1:, 1:].clip(min=1)


# -- methods ---------------------------------------------------------------------------------------

Method = Callable[[SAM2, NDArray[Any], float], Labels]
"""Of a frame, and the usual diameter of the objects of its data set."""


def watershed(model: SAM2, frame: NDArray[Any], diameter: float) -> Labels:
    """Otsu's threshold and a watershed of the distances, without the model."""
    return classical_labels(frame, diameter)


def asking(seeds: Any, rules: Rules | None = None) -> Method:
    """The model, asked at seeds."""

    def method(model: SAM2, frame: NDArray[Any], diameter: float) -> Labels:
        found = find_objects(model, frame, seeds, rules, diameter=diameter)
        return labels_image(found, frame.shape[:2])

    return method


METHODS: dict[str, Method] = {
    "watershed": watershed,
    "published grid": asking("grid", PUBLISHED),
    "grid": asking("grid"),
    "contrast": asking("contrast"),
    "classical": asking("classical"),
    "classical, tiles": asking("classical", Rules(tile_size=TILE)),
}


# -- frames ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """One frame with its true instances."""

    item: Item
    image: NDArray[Any]
    truth: Labels

    @property
    def diameter(self) -> float:
        """What a person would say of its objects."""
        return median_diameter(self.truth[None])


def instance_items(folder: Path, split: str, limit: int | None) -> list[Item]:
    """The items of a split whose labels are instances."""
    return [item for item in cases.read_items(folder, split, limit) if item.instances]


def read_frames(item: Item) -> Iterator[Frame]:
    """The frame of an image; of a volume or time-lapse those that are taken, if not empty."""
    images, labels = cases.read_frames(item)
    for index in np.unique(np.linspace(0, len(images) - 1, FRAMES + 2).round().astype(int)[1:-1]):
        if labels[index].any():
            yield Frame(item, images[index], labels[index].astype(np.int32))


def score_frames(
    model: SAM2, frames: Sequence[Frame], methods: dict[str, Method]
) -> Iterator[dict[str, Any]]:
    """Each frame by each method: average precision at both thresholds, and seconds."""
    for frame in frames:
        for name, method in methods.items():
            started = time.perf_counter()
            found = method(model, frame.image, frame.diameter)
            seconds = time.perf_counter() - started
            yield {
                "dataset": frame.item.dataset,
                "method": name,
                **{f"AP{t:g}": average_precision(found, frame.truth, t) for t in THRESHOLDS},
                "seconds": seconds,
                "found": len(np.unique(found[found > 0])),
                "true": len(np.unique(frame.truth[frame.truth > 0])),
            }


def summarise(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per data set and method, the means over its frames."""
    rows = []
    for dataset in sorted({score["dataset"] for score in scores}):
        for method in dict.fromkeys(score["method"] for score in scores):
            own = [s for s in scores if (s["dataset"], s["method"]) == (dataset, method)]
            keys = [*(f"AP{t:g}" for t in THRESHOLDS), "seconds", "found", "true"]
            means = {key: float(np.mean([score[key] for score in own])) for key in keys}
            rows.append({"dataset": dataset, "method": method, "frames": len(own), **means})
    return rows


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line per data set and method."""
    head = ["data set", "method", "AP 0.5", "AP 0.75", "s/frame", "found", "true", "frames"]
    keys = ["dataset", "method", "AP0.5", "AP0.75", "seconds", "found", "true", "frames"]
    return report.table(head, [[row[key] for key in keys] for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Score one split of a folder; table on stdout, progress on stderr."""
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="benchmarks.automatic", description=about)
    cases.add_arguments(parser)
    chosen = parser.parse_args(arguments)

    items = instance_items(chosen.data, chosen.split, chosen.limit)
    model = load_model(chosen.model, device=chosen.device)
    scores: list[dict[str, Any]] = []
    for number, item in enumerate(items, start=1):
        scores += score_frames(model, list(read_frames(item)), METHODS)
        report.progress(f"[{number}/{len(items)}] {item.name}")
    rows = summarise(scores)
    print(as_table(rows))
    content = {"rows": rows, "scores": scores, "model": chosen.model}
    report.write_json(chosen.json, content, "benchmarks.automatic", arguments)


if __name__ == "__main__":
    main()
