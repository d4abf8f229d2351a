"""How well objects of real images are segmented from few prompts, beside a classical method.

    python -m benchmarks.quality --data DIR [--split dev] [--model NAME_OR_PATH] [--limit N]
                                 [--memory recent|confident] [--memory-tokens all|near|pooled]
                                 [--json FILE] [--jobs N]

The protocol is described in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import cases, classical, report
from benchmarks.cases import Item, Target, grey_frames, read_case, read_items
from benchmarks.prompting import NO_MEMORY, ModelRun, prompt_frame
from napari_sam2.lazy_model import LazyModel
from sam2_engine.masks import Masks, deepest_point, dice, iou, tight_box
from sam2_engine.memory import MemoryTokens
from sam2_engine.model import SAM2

ENDS = "box+ends"
PUBLISHED: Mapping[str, Any] = {}
"""Options of the predictor as they are by default."""
PROMPTS = {
    "volume": ("click", "mask", NO_MEMORY, "box", "box+3"),
    "timelapse": (NO_MEMORY, "box", "mask"),
    "image": ("click", "box"),
}
IN_ORDER = ("click", "box", NO_MEMORY, ENDS, "mask", "box+3")  # of the table
_MODEL_ALONE = (NO_MEMORY, "box+3")  # prompts that the classical method does not take


# -- scores ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """One object of one item from one prompt."""

    value: float
    share: float | None = None  # time-lapses: part of the frames with IoU >= 0.5


def score(kind: str, predicted: Masks, truth: Masks) -> Score:
    """Dice of a volume, IoU of an image, mean IoU of a time-lapse where the object exists."""
    if kind == "volume":
        return Score(dice(predicted, truth))
    if kind == "image":
        return Score(iou(predicted, truth))
    frames = np.flatnonzero(truth.any(axis=(1, 2)))
    ious = np.array([iou(predicted[t], truth[t]) for t in frames])
    return Score(float(ious.mean()), float((ious >= 0.5).mean()))


# -- items to rows ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemScores:
    """One item by one method from one kind of prompt."""

    item: Item
    method: str
    prompt: str
    scores: list[tuple[str, Score]]  # part, score
    seconds_per_frame: float


def score_item(
    model: SAM2, item: Item, classically: bool = True, options: Mapping[str, Any] = PUBLISHED
) -> list[ItemScores]:
    """All prompts of one item, by the model and, if wanted, by the classical method."""
    frames, targets = read_case(item)
    truths = [target.truth for target in targets]
    run = ModelRun(model, frames, item.kind, truths, **options)
    grey = grey_frames(frames)
    results = []

    def add(method: str, prompt: str, masks: Sequence[Masks], seconds: float) -> None:
        results.append(_scored(item, method, prompt, targets, masks, seconds))
        if prompt == "box" and item.kind == "volume":
            ended = [mask & between_ends(truth) for mask, truth in zip(masks, truths, strict=True)]
            results.append(_scored(item, method, ENDS, targets, ended, seconds))

    for prompt in PROMPTS[item.kind]:
        seconds = run.run(prompt)
        add("model", prompt, run.masks, seconds)
        if prompt in _MODEL_ALONE or not classically:
            continue
        started = time.perf_counter()
        masks = [classical_masks(grey, item.kind, prompt, truth) for truth in truths]
        add("classical", prompt, masks, time.perf_counter() - started)
    return results


def between_ends(truth: Masks) -> NDArray[np.bool_]:
    """(N, 1, 1): the slices from an object's first to its last one."""
    inside = np.zeros((len(truth), 1, 1), np.bool_)
    frames = np.flatnonzero(truth.any(axis=(1, 2)))
    inside[frames[0] : frames[-1] + 1] = True
    return inside


def score_items(
    items: Sequence[Item],
    model: str,
    device: str,
    jobs: int,
    classically: bool = True,
    options: Mapping[str, Any] = PUBLISHED,
) -> Iterator[list[ItemScores]]:
    """Each item's scores as they come, computed in `jobs` processes that share the cores."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    if jobs == 1:
        loaded = LazyModel(model, device).get()
        yield from (score_item(loaded, item, classically, options) for item in items)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, _start_worker, (model, device, threads)) as pool:
        yield from pool.imap_unordered(partial(_score_in_worker, classically, options), items)


_worker_model: SAM2 | None = None


def _start_worker(model: str, device: str, threads: int) -> None:
    global _worker_model
    torch.set_num_threads(threads)
    _worker_model = LazyModel(model, device).get()


def _score_in_worker(classically: bool, options: Mapping[str, Any], item: Item) -> list[ItemScores]:
    assert _worker_model is not None
    return score_item(_worker_model, item, classically, options)


def classical_masks(grey: NDArray[np.float32], kind: str, prompt: str, truth: Masks) -> Masks:
    """(N, H, W) of one object by the classical method."""
    frame = prompt_frame(kind, truth)
    mask = truth[frame]
    if prompt == "click":
        first = classical.from_click(grey[frame], deepest_point(mask))
    elif prompt == "box":
        first = classical.from_box(grey[frame], tight_box(mask))
    else:
        first = mask
    return classical.carry(grey, frame, first, both_ways=kind == "volume")


def _scored(
    item: Item,
    method: str,
    prompt: str,
    targets: Sequence[Target],
    masks: Sequence[Masks],
    seconds: float,
) -> ItemScores:
    scores = [
        (target.part, score(item.kind, mask, target.truth))
        for target, mask in zip(targets, masks, strict=True)
    ]
    return ItemScores(item, method, prompt, scores, seconds / len(targets[0].truth))


def make_rows(results: Sequence[ItemScores]) -> list[dict[str, Any]]:
    """A row per data set, method and prompt, then rows for each label and the union of labels.

    A data set's own row is the mean over its objects; the union of an item's labels is not one
    of them.
    """
    parts: dict[str, set[str]] = defaultdict(set)
    for result in results:
        parts[result.item.dataset] |= {part for part, _ in result.scores}
    rows = []
    for dataset in sorted(parts):
        several = sorted(parts[dataset]) if "union" in parts[dataset] else []
        for part in ["all", *several]:
            for method in ("model", "classical"):
                for prompt in IN_ORDER:
                    chosen = [
                        result
                        for result in results
                        if (result.item.dataset, result.method, result.prompt)
                        == (dataset, method, prompt)
                    ]
                    row = _row(dataset, part, method, prompt, chosen)
                    if row:
                        rows.append(row)
    return rows


def _row(
    dataset: str, part: str, method: str, prompt: str, results: Sequence[ItemScores]
) -> dict[str, Any] | None:
    scores, seconds = [], []
    for result in results:
        own = [s for p, s in result.scores if (p != "union" if part == "all" else p == part)]
        scores += own
        if own:
            seconds.append(result.seconds_per_frame)
    if not scores:
        return None
    kind = results[0].item.kind
    row: dict[str, Any] = {
        "dataset": dataset if part == "all" else f"{dataset} ({part})",
        "part": part,
        "method": method,
        "prompt": prompt,
        "measure": "Dice" if kind == "volume" else "IoU",
        "score": float(np.mean([s.value for s in scores])),
        "seconds_per_frame": float(np.mean(seconds)),
        "n": len(scores),
        "apart": results[0].item.apart,
    }
    if kind == "timelapse":
        row["share"] = float(np.mean([s.share for s in scores if s.share is not None]))
    return row


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean over data sets by prompt and method; parts and data sets to report apart left out."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["part"] == "all" and not row["apart"]:
            values[row["prompt"]][row["method"]].append(row["score"])
    return {
        prompt: {method: float(np.mean(scores)) for method, scores in by_method.items()}
        for prompt, by_method in values.items()
    }


def as_table(rows: Sequence[dict[str, Any]], summary: dict[str, dict[str, float]]) -> str:
    """One line per data set and prompt, the model beside the classical method."""
    pairs: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        pairs[row["dataset"], row["prompt"]][row["method"]] = row
    lines: list[list[Any]] = []
    for (dataset, prompt), methods in pairs.items():
        model, other = methods["model"], methods.get("classical", {})
        name = f"{dataset}, apart" if model["apart"] else dataset
        lines.append(
            [
                name,
                prompt,
                model["measure"],
                model["score"],
                other.get("score"),
                model["n"],
                model["seconds_per_frame"],
                other.get("seconds_per_frame"),
            ]
        )
        if "share" in model:
            shares = [model["share"], other.get("share")]
            lines.append([name, prompt, "frames with IoU >= 0.5", *shares, model["n"], None, None])
    for prompt in IN_ORDER:
        if prompt in summary:
            means = [summary[prompt].get(method) for method in ("model", "classical")]
            lines.append(["**mean over data sets**", prompt, "", *means, None, None, None])
    head = [
        "data set",
        "prompt",
        "measure",
        "model",
        "classical",
        "n",
        "s/frame",
        "classical s/frame",
    ]
    return report.table(head, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score one split of a folder; table on stdout, progress on stderr."""
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=__doc__.split("\n")[0])
    cases.add_arguments(parser)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the cores")
    parser.add_argument(
        "--memory",
        choices=("recent", "confident"),
        default="recent",
        help="which tracked frames are remembered (default: recent, as published)",
    )
    parser.add_argument(
        "--memory-tokens",
        choices=get_args(MemoryTokens),
        default="all",
        help="how much of a memory a tracked frame looks at (default: all, as published)",
    )
    parser.add_argument(
        "--closely",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look at small objects in areas of their own, as a session does by itself with models "
        "of up to 512 pixels (default: so)",
    )
    parser.add_argument(
        "--classical",
        type=Path,
        metavar="FILE",
        help="JSON of an earlier run on the same items, to take the classical method's rows from",
    )
    chosen = parser.parse_args(arguments)
    known = read_classical(chosen.classical) if chosen.classical else []

    items = read_items(chosen.data, chosen.split, chosen.limit)
    if chosen.classical:
        check_items(chosen.classical, known, items)
    options = {
        "memory": chosen.memory,
        "memory_tokens": chosen.memory_tokens,
        "closely": chosen.closely,
    }
    started = begun = time.perf_counter()
    results: list[ItemScores] = []
    for scored in score_items(items, chosen.model, chosen.device, chosen.jobs, not known, options):
        results += scored
        seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        done = len({result.item.name for result in results})
        report.progress(
            f"[{done}/{len(items)}] {scored[0].item.name}: {_in_short(scored)} ({seconds:.1f} s)"
        )
    rows = make_rows(results) + known
    summary = summarise(rows)
    seconds = time.perf_counter() - started
    print(as_table(rows, summary))
    print(
        f"\n{len(items)} items in {seconds:.0f} s, model {chosen.model}, {chosen.memory} memories, "
        f"{chosen.memory_tokens} tokens."
    )
    content = {
        "rows": [{"model": chosen.model, **row} for row in rows],
        "summary": summary,
        "seconds": seconds,
        "model": chosen.model,
        **options,
        "device": chosen.device,
        "jobs": chosen.jobs,
    }
    report.write_json(chosen.json, content, "benchmarks.quality", arguments)


def read_classical(path: Path) -> list[dict[str, Any]]:
    """The classical method's rows of an earlier run; it takes long, and no model changes it."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{path} is no JSON file of this benchmark: {error}.") from None
    return [row for row in rows if row["method"] == "classical"]


def check_items(path: Path, rows: Sequence[dict[str, Any]], items: Sequence[Item]) -> None:
    """Find out before anything is computed whether rows of an earlier run are of these items.

    Raises SystemExit where the number of objects of a data set differs.
    """
    counted: dict[str, int] = defaultdict(int)
    for item in items:
        for target in read_case(item)[1]:
            counted[f"{item.dataset} ({target.part})"] += 1
            counted[item.dataset] += target.part != "union"
    for row in rows:
        if counted[row["dataset"]] != row["n"]:
            raise SystemExit(f"{path} was made on other items of {row['dataset']}.")


def _in_short(results: Sequence[ItemScores]) -> str:
    return ", ".join(
        f"{result.prompt} {np.mean([s.value for _, s in result.scores]):.2f}"
        for result in results
        if result.method == "model"
    )


if __name__ == "__main__":
    main()
