"""How much a mask depends on resolution, intensity, slice spacing, and where the prompt sits.

    python -m benchmarks.robustness --data DIR [--split dev] [--model NAME] [--limit N]
                                    [--json FILE] [--plot FILE]

Volumes only. The object is prompted by its box on its largest slice and followed both ways, once on
the volume as it is and once under each condition; Dice over all slices. What the conditions are is
described in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.transform import downscale_local_mean

from benchmarks import cases, report
from benchmarks.cases import grey_frames, read_case, read_items
from benchmarks.quality import between_ends
from sam2_engine.masks import Masks, dice, largest_slice, tight_box
from sam2_engine.model import SAM2
from sam2_engine.sequence import SequencePredictor
from sam2_engine.weights import load_model

Grey = NDArray[np.float32]  # (N, H, W), 0 black to 1 white
Change = Callable[[Grey], Grey]
BASELINE = "as it is"
_SMALLEST_SHARE = 0.1  # of the largest slice: on less of the object nobody would prompt it


@dataclass(frozen=True)
class Condition:
    """One way in which a case is made harder, or prompted elsewhere."""

    group: str
    name: str
    intensity: Change = lambda grey: grey
    shrink: int = 1
    """Pixels along each side of a frame that become one."""
    every: int = 1
    """Slices of which one is kept."""
    places: tuple[float, ...] | None = None
    """Where the boxes are, from the object's first slice (0) to its last (1); None: on its
    largest."""
    ends: bool = False
    """Whether it is said on which slices the object begins and ends."""


def with_gamma(grey: Grey, gamma: float) -> Grey:
    return grey**gamma


def inverted(grey: Grey) -> Grey:
    return 1 - grey


def with_noise(grey: Grey, deviation: float) -> Grey:
    noise = np.random.default_rng(0).standard_normal(grey.shape, np.float32)
    return np.clip(grey + np.float32(deviation) * noise, 0, 1)


def in_window(grey: Grey, low: float, high: float) -> Grey:
    return np.clip((grey - low) / (high - low), 0, 1)


CONDITIONS = (
    Condition(BASELINE, BASELINE),
    Condition("resolution", "1/2", shrink=2),
    Condition("resolution", "1/4", shrink=4),
    Condition("intensity", "gamma 0.5", partial(with_gamma, gamma=0.5)),
    Condition("intensity", "gamma 2", partial(with_gamma, gamma=2.0)),
    Condition("intensity", "inverted", inverted),
    Condition("intensity", "noise 0.1", partial(with_noise, deviation=0.1)),
    Condition("intensity", "window +0.25", partial(in_window, low=0.25, high=1.25)),
    Condition("intensity", "window -0.25", partial(in_window, low=-0.25, high=0.75)),
    Condition("slices", "every 2nd", every=2),
    Condition("slices", "every 4th", every=4),
    Condition("prompt", "first slice", places=(0.0,)),
    Condition("prompt", "middle slice", places=(0.5,)),
    Condition("prompt", "3 slices", places=(0.2, 0.5, 0.8)),
    Condition("prompt", "both ends", ends=True),
    Condition("prompt", "3 slices, ends", places=(0.2, 0.5, 0.8), ends=True),
)


def segment(model: SAM2, grey: Grey, truths: Sequence[Masks], condition: Condition) -> list[float]:
    """Dice of each object (N, H, W) under a condition."""
    scores = [0.0] * len(truths)
    by_first: dict[int, list[int]] = defaultdict(list)  # which of `every` slices are kept
    for index, truth in enumerate(truths):
        by_first[largest_slice(truth) % condition.every].append(index)
    for first, indices in by_first.items():
        kept = slice(first, None, condition.every)
        own = [truths[index][kept] for index in indices]
        found = _follow(model, condition.intensity(grey)[kept], own, condition)
        for index, truth, mask in zip(indices, own, found, strict=True):
            said = mask & between_ends(truth) if condition.ends else mask
            scores[index] = dice(said, truth[:, : mask.shape[1], : mask.shape[2]])
    return scores


def _follow(model: SAM2, grey: Grey, truths: Sequence[Masks], condition: Condition) -> list[Masks]:
    """Masks of objects at the resolution of `grey`, without a rest of rows and columns that makes
    no whole pixel.
    """
    side = condition.shrink
    height, width = (size // side * side for size in grey.shape[1:])
    frames = downscale_local_mean(grey[:, :height, :width], (1, side, side)).astype(np.float32)
    predictor = SequencePredictor(model, frames, window=(0.0, 1.0))
    found = [np.zeros(frames.shape, np.bool_) for _ in truths]
    for index, truth in enumerate(truths):
        small = shrunk(truth[:, :height, :width], side)
        for frame in prompted_slices(small, condition.places) if small.any() else ():
            predictor.set_prompts(index + 1, frame, box=tight_box(small[frame]))
    if predictor.object_ids:
        for result in predictor.propagate():
            for object_id, mask in zip(result.object_ids, result.masks, strict=True):
                found[object_id - 1][result.frame] = mask
    return [mask.repeat(side, axis=1).repeat(side, axis=2) for mask in found]


def shrunk(truth: Masks, side: int) -> Masks:
    """Masks (N, H, W) at a coarser resolution; a pixel is the object's where half of it is, or
    where the most of it is, if the object is thinner than that everywhere.
    """
    if side == 1:
        return truth
    share = downscale_local_mean(truth.astype(np.float32), (1, side, side))
    most = share.max()
    masks: Masks = share >= min(0.5, most) if most else share > 0
    return masks


def prompted_slices(truth: Masks, places: tuple[float, ...] | None) -> list[int]:
    """The slices to prompt an object on."""
    if places is None:
        return [largest_slice(truth)]
    areas = truth.sum(axis=(1, 2))
    usable = np.flatnonzero(areas >= max(1, _SMALLEST_SHARE * areas.max()))
    return sorted({int(usable[round(place * (len(usable) - 1))]) for place in places})


def score_all(model: SAM2, items: Sequence[cases.Item]) -> list[dict[str, Any]]:
    """A row for each condition and data set: the mean over its objects, without unions."""
    scores: dict[tuple[Condition, str], list[float]] = defaultdict(list)
    for index, item in enumerate(items):
        started = time.perf_counter()
        frames, targets = read_case(item)
        grey = grey_frames(frames)
        truths = [target.truth for target in targets if target.part != "union"]
        for condition in CONDITIONS:
            scores[condition, item.dataset] += segment(model, grey, truths, condition)
        seconds = time.perf_counter() - started
        report.progress(f"[{index + 1}/{len(items)}] {item.name} ({seconds:.1f} s)")
    return [
        {
            "group": condition.group,
            "condition": condition.name,
            "dataset": dataset,
            "score": float(np.mean(values)),
            "n": len(values),
        }
        for (condition, dataset), values in scores.items()
    ]


def means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Condition -> mean over data sets."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        values[row["condition"]].append(row["score"])
    return {name: float(np.mean(scores)) for name, scores in values.items()}


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per condition, a column per data set, their mean, and that over the baseline's."""
    datasets = sorted({row["dataset"] for row in rows})
    known = {(row["condition"], row["dataset"]): row["score"] for row in rows}
    mean = means(rows)
    lines: list[list[Any]] = []
    for condition in CONDITIONS:
        name = condition.name
        scores = [known.get((name, dataset)) for dataset in datasets]
        ratio = mean[name] / mean[BASELINE] if mean[BASELINE] else None
        lines.append([condition.group, name, *scores, mean[name], ratio])
    return report.table(["", "condition", *datasets, "mean", "of the baseline"], lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of the mean over data sets, with a dot per data set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    names = [condition.name for condition in CONDITIONS]
    groups = list(dict.fromkeys(condition.group for condition in CONDITIONS))
    mean = means(rows)
    colours = [f"C{groups.index(condition.group)}" for condition in CONDITIONS]
    axes.bar(names, [mean[name] for name in names], color=colours, alpha=0.6)
    for row in rows:
        axes.plot(row["condition"], row["score"], ".", color="black", alpha=0.5)
    axes.axhline(mean[BASELINE], color="black", linewidth=0.8)
    axes.set(ylabel="Dice", ylim=(0, 1))
    axes.tick_params(axis="x", rotation=45)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score the volumes of one split; table on stdout, progress on stderr."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.robustness", description=__doc__.split("\n")[0]
    )
    cases.add_arguments(parser)
    parser.add_argument("--plot", type=Path, help="draw the table here, too (PNG, SVG, PDF)")
    chosen = parser.parse_args(arguments)
    items = [
        item
        for item in read_items(chosen.data, chosen.split, chosen.limit)
        if item.kind == "volume"
    ]
    if not items:
        raise SystemExit(f"The split {chosen.split!r} of {chosen.data} has no volumes.")
    started = time.perf_counter()
    rows = score_all(load_model(chosen.model, device=chosen.device), items)
    seconds = time.perf_counter() - started
    print(as_table(rows))
    print(f"\n{len(items)} volumes in {seconds:.0f} s, model {chosen.model}.")
    if chosen.plot:
        plot(rows, chosen.plot)
    content = {"rows": rows, "means": means(rows), "seconds": seconds, "model": chosen.model}
    report.write_json(chosen.json, content, "benchmarks.robustness", arguments)


if __name__ == "__main__":
    main()
