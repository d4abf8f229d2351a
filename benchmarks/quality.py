"""How well objects of real images are segmented from few prompts, beside a classical method.

    python -m benchmarks.quality --data DIR [--split dev] [--model NAME_OR_PATH] [--limit N]
                                 [--memory recent|confident] [--memory-tokens all|pooled]
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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks import cases, classical, report
from benchmarks.cases import Item, Target, first_frame, grey_frames, read_case, read_items
from napari_sam2.areas import CLOSE, Area, Box, around_boxes, enlarged, is_small_in, joined
from napari_sam2.records import NEAR
from napari_sam2.tasks import LazyModel
from sam2_engine.model import SAM2
from sam2_engine.sequence import SequencePredictor
from sam2_engine.training.measures import (
    Mask,
    Masks,
    deepest_point,
    dice,
    iou,
    largest_slice,
    tight_box,
)

Point = tuple[int, int]  # y, x

NO_MEMORY = "box, no memory"
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
MAX_CORRECTIONS = 3
CACHE_BYTES = 4 << 30  # features of a whole volume, so that each frame is encoded and timed once


# -- the protocol ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correction:
    """A click that a person would make where a result is most wrong."""

    frame: int
    point: Point
    positive: bool


def corrective_click(predicted: Masks, truth: Masks) -> Correction | None:
    """The deepest point of the largest error region of the slice with the most wrong pixels.

    A region is connected and either missed or added in the whole. None where nothing is wrong.
    """
    wrong = (predicted ^ truth).sum(axis=(1, 2))
    frame = int(wrong.argmax())
    if not wrong[frame]:
        return None
    regions = [
        (region, positive)
        for error, positive in (
            (truth[frame] & ~predicted[frame], True),
            (predicted[frame] & ~truth[frame], False),
        )
        for region in connected_regions(error)
    ]
    region, positive = max(regions, key=lambda pair: int(pair[0].sum()))
    return Correction(frame, deepest_point(region), positive)


def connected_regions(mask: Mask) -> list[Mask]:
    """Each connected part of a mask (H, W), edge to edge, as a mask."""
    labels, count = ndimage.label(mask)
    return [labels == i for i in range(1, count + 1)]


@dataclass(frozen=True)
class Answer:
    """Of one object on one frame."""

    low_res: NDArray[np.float32]
    """(S/4, S/4) logits."""
    area: Area | None
    """Where the model looked."""


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


def prompt_frame(kind: str, truth: Masks) -> int:
    """Where an object is prompted: on its largest slice, or its first frame of a time-lapse."""
    return first_frame(truth) if kind == "timelapse" else largest_slice(truth)


# -- the model -------------------------------------------------------------------------------------


class ModelRun:
    """The objects of one item in one predictor; object i has the id i + 1."""

    def __init__(
        self,
        model: SAM2,
        frames: NDArray[Any],
        kind: str,
        truths: Sequence[Masks],
        closely: bool = False,
        **options: Any,
    ) -> None:
        """
        Args:
            closely: look at small objects in areas of their own, as a session does by itself.
            options: of the predictor.
        """
        self.kind = kind
        self.truths = truths
        self.closely = closely
        self.predictor = SequencePredictor(
            model, frames, cache_bytes=CACHE_BYTES, refine_clicks=True, **options
        )
        self.masks = [np.zeros(truth.shape, np.bool_) for truth in truths]
        self.answers: dict[tuple[int, int], Answer] = {}  # by object and frame
        started = time.perf_counter()
        for frame in range(len(frames)):
            self.predictor.features[frame]  # encoded now, and found in the cache by every prompt
        self.encoding_seconds = time.perf_counter() - started
        self.box_seconds = 0.0

    def run(self, prompt: str) -> float:
        """Leave the masks of all objects from one kind of prompt in `masks`; seconds that it took.

        "box+3" goes on from where "box" has ended, which must have been the last to run.
        """
        started = time.perf_counter()
        if prompt == "box+3":
            self._correct()
            return self.box_seconds + time.perf_counter() - started
        self.predictor.clear_prompts()
        if prompt == NO_MEMORY:
            for index in range(len(self.truths)):
                self._hand_on_boxes(index)
            return self.encoding_seconds + time.perf_counter() - started
        for index, truth in enumerate(self.truths):
            frame = prompt_frame(self.kind, truth)
            self._prompt(index, frame, **first_prompt(prompt, truth[frame]))
        self._segment(range(len(self.truths)))
        seconds = self.encoding_seconds + time.perf_counter() - started
        if prompt == "box":
            self.box_seconds = seconds
        return seconds

    def _segment(self, indices: Sequence[int]) -> None:
        ids = [index + 1 for index in indices]
        for index in indices:
            self.masks[index][:] = False
        if self.kind == "image":
            results = iter([self.predictor.predict(0, ids)])
        else:
            forward = self.kind == "timelapse"
            results = self.predictor.propagate(ids, "forward" if forward else "both")
        for result in results:
            for object_id, mask, *answer in zip(
                result.object_ids, result.masks, result.low_res, result.areas, strict=True
            ):
                self.masks[object_id - 1][result.frame] = mask
                self.answers[object_id - 1, result.frame] = Answer(*answer)

    def _prompt(self, index: int, frame: int, **prompt: Any) -> None:
        """Show an object, and look closely where it is small: first where the prompt says that it
        is, or the mask that follows from it; and not where it turns out to be larger.
        """
        say = partial(self.predictor.set_prompts, index + 1, frame, **prompt)
        shape = self.predictor.source.shape
        say()
        if not self.closely:
            return
        box = prompt.get("box") or self._box(index, frame)
        area = None if box is None else around_boxes([box], CLOSE, shape)
        if area is None:
            return
        say(area=area)
        box = self._box(index, frame)
        if box is None or not is_small_in(area, box, shape):
            say()

    def _box(self, index: int, frame: int) -> Box | None:
        """About the mask that follows from the prompts on a frame."""
        mask = self.predictor.predict(frame, [index + 1]).mask(index + 1)
        return tight_box(mask) if mask.any() else None

    def _hand_on_boxes(self, index: int) -> None:
        """Each slice by itself, from the box around the mask of the slice before, until that is
        empty: what tools do that have SAM and no memory.
        """
        truth, masks = self.truths[index], self.masks[index]
        masks[:] = False
        origin = prompt_frame(self.kind, truth)
        ways = [range(origin, len(truth))]
        if self.kind == "volume":
            ways.append(range(origin, -1, -1))
        for frames in ways:
            box = tight_box(truth[origin])
            for frame in frames:
                self._prompt(index, frame, box=box)
                mask = self.predictor.predict(frame, [index + 1]).mask(index + 1)
                self.predictor.clear_prompts(index + 1)
                masks[frame] = mask
                if not mask.any():
                    break
                box = tight_box(mask)

    def _correct(self) -> None:
        """Up to three rounds of a corrective click for each object, then tracking anew."""
        for _ in range(MAX_CORRECTIONS):
            corrected = []
            for index, truth in enumerate(self.truths):
                click = corrective_click(self.masks[index], truth)
                if click is not None:
                    self._add_click(index, click)
                    corrected.append(index)
            if corrected:
                self._segment(corrected)

    def _add_click(self, index: int, click: Correction) -> None:
        """Add it to the box on the prompted slice; elsewhere let it correct the last answer."""
        known = self.predictor.prompts[index + 1].get(click.frame)
        points = [*(known.points.tolist() if known else []), click.point]
        signs = [*(known.labels.tolist() if known else []), int(click.positive)]
        start = self._start_of(index, click)
        area, box = known.area if known else start.area, known.box if known else None
        if area is not None:
            around = joined(box, (*click.point, *click.point))
            area = enlarged(area, around, self.predictor.source.shape)
        self.predictor.set_prompts(
            index + 1,
            click.frame,
            points=points,
            labels=signs,
            box=box,
            mask_input=None if box else self._as_seen(start, area),
            area=area,
        )

    def _as_seen(self, answer: Answer, area: Area | None) -> NDArray[np.float32]:
        """The logits of an answer as one looks now."""
        now, before = (
            self.predictor.source.geometry.looking_at(one) for one in (area, answer.area)
        )
        logits = now.low_res_as_seen(torch.from_numpy(answer.low_res)[None, None], before)
        found: NDArray[np.float32] = logits[0, 0].numpy()
        return found

    def _start_of(self, index: int, click: Correction) -> Answer:
        """What a click corrects: the slice's last answer; where the object was not found there, the
        nearest one within a few slices, if the click is on it.
        """
        last = self.answers[index, click.frame]
        if not click.positive or (last.low_res > 0).any():
            return last
        near = sorted(range(-NEAR, NEAR + 1), key=lambda step: (abs(step), step))
        answers = (self.answers.get((index, click.frame + step)) for step in near)
        return next((a for a in answers if a is not None and (a.low_res > 0).any()), last)


def first_prompt(prompt: str, mask: Mask) -> dict[str, Any]:
    """Arguments of set_prompts that show an object by its true mask (H, W) on one frame."""
    if prompt == "click":
        return {"points": [deepest_point(mask)]}
    if prompt == "mask":
        return {"mask": mask}
    return {"box": tight_box(mask)}


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
        choices=("all", "pooled"),
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
        rows = json.loads(path.read_text())["rows"]
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
