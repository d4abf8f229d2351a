"""Whether the slices that a review proposes first are those with the errors.

    python -m benchmarks.review --data DIR [--split dev] [--model NAME_OR_PATH] [--limit N]
                                [--prompts N] [--json FILE]

Every object is prompted by a box as in `benchmarks.quality` and followed through its volume or
time-lapse. All its slices but the prompted one are then ranked, those of all objects of an item
together. A rank is scored by the share of all wrong pixels that its first tenth of the slices
holds, over that tenth: 1 is chance. docs/review.md says what was found.

With `--prompts 2` or more, each object has boxes on so many of its slices, in the middle of as many
equal stretches of them, and "both sides" is doubt after `Session.check_both_sides`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import cases, report
from benchmarks.cases import Item, read_case, read_items
from benchmarks.prompting import prompt_frame
from napari_sam2.review import Evidence, evidence
from napari_sam2.session import Session
from sam2_engine.masks import tight_box
from sam2_engine.model import SAM2
from sam2_engine.weights import load_model

Floats = NDArray[np.float64]

PART = 0.1  # of the slices, those that are proposed first
RANKS: dict[str, Callable[[Evidence], Floats]] = {
    "doubt": lambda known: known.wrong,
    "predicted IoU": lambda known: np.where(known.area > 0, 1 - known.iou, -1),
    "area change": lambda known: known.area_change,
}

BOTH_SIDES = "both sides"
BEST = "best possible"


def gain(rank: Floats, wrong: Floats, part: float = PART) -> float:
    """Share of what is wrong in the first part of the slices, over that part; chance gives 1.

    rank, wrong: (N,) of each slice; the largest rank is first, and equal ones share their places.
    """
    places = part * len(rank)
    values, of_value, counts = np.unique(-rank, return_inverse=True, return_counts=True)
    sums = np.bincount(of_value, wrong, len(values))
    taken = np.clip(places - (np.cumsum(counts) - counts), 0, counts)
    return float((sums * taken / counts).sum() / wrong.sum() / part)


def score_item(model: SAM2, item: Item, prompts: int = 1) -> dict[str, Any]:
    """The gain of each rank, and the best that any could have; all wrong pixels.

    prompts: boxes of each object.
    """
    frames, targets = read_case(item)
    truths = [target.truth for target in targets if target.part != "union"]
    session = Session(frames, model, rgb=frames.ndim == 4)
    for object_id, truth in enumerate(truths, start=1):
        session.add_object(object_id=object_id)
        for frame in prompt_frames(item.kind, truth, prompts):
            session.set_prompts(object_id, frame, box=tight_box(truth[frame]))
    session.propagate("forward" if item.kind == "timelapse" else "both")
    counts = [wrong_pixels(session, i, truth) for i, truth in enumerate(truths, start=1)]
    known = [evidence(session, object_id) for object_id in session.objects]
    is_open = np.concatenate([one.is_open for one in known])
    wrong = np.concatenate(counts)[is_open]

    def gain_of(rank: Callable[[Evidence], Floats], known: Sequence[Evidence]) -> float:
        return gain(np.concatenate([rank(one) for one in known])[is_open], wrong)

    gains = {name: gain_of(rank, known) for name, rank in RANKS.items()}
    if prompts > 1:
        session.check_both_sides()
        compared = [evidence(session, object_id) for object_id in session.objects]
        gains[BOTH_SIDES] = gain_of(RANKS["doubt"], compared)
    return {
        "dataset": item.dataset,
        "item": item.name,
        "slices": int(is_open.sum()),
        "wrong": int(wrong.sum()),
        **gains,
        BEST: gain(wrong, wrong),
    }


def prompt_frames(kind: str, truth: NDArray[np.bool_], count: int) -> list[int]:
    """Where an object is prompted; one frame is that of `benchmarks.quality`. truth: (N, H, W)."""
    if count == 1:
        return [prompt_frame(kind, truth)]
    there = np.flatnonzero(truth.any(axis=(1, 2)))
    middles = (np.arange(count) + 0.5) / count * len(there)
    return sorted({int(there[int(middle)]) for middle in middles})


def wrong_pixels(session: Session, object_id: int, truth: NDArray[np.bool_]) -> Floats:
    """(slices,) pixels that an object's masks have too many or too few. truth: (slices, H, W)."""
    wrong = truth.sum(axis=(1, 2)).astype(np.float64)
    for frame, mask in session.masks_of(object_id).items():
        wrong[frame] = (mask.on_frame(truth.shape[1:]) ^ truth[frame]).sum()
    return wrong


def summarise(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per data set, the means over its items, and one for the mean over data sets."""
    keys = _measures(scores)
    rows = []
    for dataset in sorted({score["dataset"] for score in scores}):
        own = [score for score in scores if score["dataset"] == dataset]
        means = {key: float(np.mean([score[key] for score in own])) for key in keys}
        rows.append({"dataset": dataset, "items": len(own), **means})
    means = {key: float(np.mean([row[key] for row in rows])) for key in keys}
    return [*rows, {"dataset": "**mean over data sets**", "items": None, **means}]


def _measures(scores: Sequence[dict[str, Any]]) -> list[str]:
    return [key for key in (*RANKS, BOTH_SIDES, BEST) if key in scores[0]]


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line per data set."""
    keys = ["dataset", "items", *_measures(rows)]
    return report.table(["data set", *keys[1:]], [[row[key] for key in keys] for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Score one split of a folder; table on stdout, progress on stderr."""
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="benchmarks.review", description=about)
    cases.add_arguments(parser)
    parser.add_argument("--prompts", type=int, default=1, help="boxes of each object (default: 1)")
    chosen = parser.parse_args(arguments)

    items = [i for i in read_items(chosen.data, chosen.split, chosen.limit) if i.kind != "image"]
    model = load_model(chosen.model, device=chosen.device)
    scores = []
    for number, item in enumerate(items, start=1):
        scores.append(score_item(model, item, chosen.prompts))
        told = ", ".join(f"{name} {scores[-1][name]:.2f}" for name in _measures(scores))
        report.progress(f"[{number}/{len(items)}] {item.name}: {told}")
    rows = summarise(scores)
    print(as_table(rows))
    content = {"rows": rows, "scores": scores, "part": PART, "model": chosen.model}
    report.write_json(chosen.json, content, "benchmarks.review", arguments)


if __name__ == "__main__":
    main()
