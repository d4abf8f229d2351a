"""Fine-tune a model on labelled images of one's own, and know whether it has become better.

    train, held_out = split([make_source("a", images, labels), ...])
    result = fine_tune(model, train, held_out, "my-model.training", minutes=10)
    result.best, result.before  # scores on what was held out

The loop is ``Trainer``'s; here are its stage, the scores, and what is kept.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam2_engine.features import FeatureCache
from sam2_engine.masks import Mask, deepest_point, iou, largest_slice, tight_box
from sam2_engine.model import SAM2
from sam2_engine.sequence import SequencePredictor
from sam2_engine.training.sources import Source, as_int32, window
from sam2_engine.training.steps import StepResult
from sam2_engine.training.synthetic import synthetic_clip
from sam2_engine.training.trainer import CLIPS, IMAGES, Stage, Trainer
from sam2_engine.whole_file import beside, write_text

SYNTHETIC_SHARE = 0.15
"""Of the clips: scenes of all kinds, so that what the model could do before is not lost."""
_HEADS_RATE, _WHOLE_RATE = 3e-4, 1e-4
_MOST_SLICES, _MOST_OBJECTS = 24, 6  # scored; objects of one slice
_MOST_TRACKS, _TRACK_LENGTH = 6, 16
_SCORINGS = 8  # in the course of a training
_SMALLEST = 12  # pixels of an object that is scored


class DataError(ValueError):
    """Images and labels that nothing can be learnt from; one sentence that says why."""


# -- data ------------------------------------------------------------------------------------------


def make_source(
    name: str,
    images: NDArray[Any],
    labels: NDArray[Any],
    volume: bool = False,
) -> Source:
    """A labelled image, volume or time-lapse to learn from, checked.

    Args:
        name: for messages.
        images: (T, H, W) or (T, H, W, 3) numbers of any type.
        labels: (T, H, W) ids of objects, 0 for background; the same id is the same object.
        volume: whether the frames are slices, so that objects can be followed along any axis.

    Raises:
        DataError: shapes that differ, ids that are no whole numbers from 0, or no object.
    """
    if images.ndim not in (3, 4) or images.shape[:3] != labels.shape:
        raise DataError(
            f"{name}: the image has the shape {tuple(images.shape)} and its labels "
            f"{tuple(labels.shape)}; both need the same slices, rows and columns."
        )
    if labels.dtype.kind not in "bui" and not np.array_equal(labels, np.round(labels)):
        raise DataError(f"{name}: the labels must be whole numbers, an object's id in each pixel.")
    if labels.min() < 0:
        raise DataError(f"{name}: the labels hold the negative number {labels.min():g}.")
    if not labels.any():
        raise DataError(f"{name}: there is no object in its labels; all of them are 0.")
    return Source(f"own/{name}", window(images), as_int32(labels), True, volume)


def only_slices(source: Source, slices: Sequence[int]) -> list[Source]:
    """The runs of neighbouring slices among these, such as those that a person has approved.

    What lies between them is not learnt from, neither as object nor as background.

    Raises:
        DataError: none of these slices has an object.
    """
    runs = np.split(np.sort(slices), np.flatnonzero(np.diff(np.sort(slices)) > 1) + 1)
    parts = [_part(source, run) for run in runs if len(run)]
    parts = [part for part in parts if part.labels.any()]
    if not parts:
        raise DataError(f"{source.name[4:]}: there is no object on the slices to learn from.")
    return parts


def split(sources: Sequence[Source], share: float = 0.2) -> tuple[list[Source], list[Source]]:
    """Which images to train on, and which to hold out: the last ones as they are given, at least
    one. Of a single sequence its last slices with objects.

    Raises:
        DataError: there is nothing to hold out, for all is one slice; or an impossible share.
    """
    if not 0 < share < 1:
        raise DataError(f"The share to hold out lies between 0 and 1; it is {share:g}.")
    sources = list(sources)
    if not sources:
        raise DataError("There are no images to learn from.")
    if len(sources) > 1:
        count = min(max(1, round(share * len(sources))), len(sources) - 1)
        return sources[:-count], sources[-count:]
    one = sources[0]
    labelled = np.flatnonzero(one.labels.any(axis=(1, 2)))
    if len(labelled) < 2:
        raise DataError(
            f"{one.name[4:]} has one slice with objects and is the only image: nothing could be "
            "held out to see whether the model becomes better. Give two labelled slices or more."
        )
    count = min(max(1, round(share * len(labelled))), len(labelled) - 1)
    first = int(labelled[-count])
    length = len(one.labels)
    return [_part(one, np.arange(first))], [_part(one, np.arange(first, length))]


def synthetic_sources(count: int = 12, side: int = 256) -> list[Source]:
    """Scenes of many kinds that never change, to see whether a model has lost what it could do."""
    found = []
    for seed in range(count):
        scene = synthetic_clip(np.random.default_rng((7, seed)), 1, side)
        labels = np.zeros(scene.images.shape, np.int32)
        for number, mask in enumerate(scene.masks, start=1):
            labels[mask] = number
        found.append(
            Source(f"synthetic/{seed}", scene.images.astype(np.float16), labels, True, False)
        )
    return found


def _part(source: Source, slices: NDArray[np.int64]) -> Source:
    return replace(source, images=source.images[slices], labels=source.labels[slices])


# -- scores ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """How well a model does on images that it has not learnt from; nan where there were none."""

    box: float
    """Mean IoU from a box on a slice."""
    click: float
    """Mean IoU from one click on a slice."""
    tracked: float
    """Mean Dice of objects that are followed from a box on their largest slice; nan in images."""

    @property
    def mean(self) -> float:
        """Of what there is."""
        return float(np.nanmean([self.box, self.click, self.tracked]))

    def __str__(self) -> str:
        parts = [f"box {self.box:.3f}", f"click {self.click:.3f}"]
        if not math.isnan(self.tracked):
            parts.append(f"tracked {self.tracked:.3f}")
        return ", ".join(parts)


class Examination:
    """Scores models on the same objects, again and again."""

    def __init__(self, sources: Sequence[Source], keeps_features: bool = False) -> None:
        """
        Args:
            keeps_features: the models have one and the same image encoder.
        """
        per_source = max(1, _MOST_SLICES // max(len(sources), 1))
        self._sources = list(sources)[:: max(1, len(sources) // _MOST_SLICES)]
        self._slices = [_spread(_labelled(source), per_source) for source in self._sources]
        self._keeps = keeps_features
        self._features: dict[int, FeatureCache] = {}

    def score(self, model: SAM2) -> Score:
        """Score a model in eval mode."""
        box: list[float] = []
        click: list[float] = []
        tracked: list[float] = []
        for index, source in enumerate(self._sources):
            predictor = SequencePredictor(model, source.images, window=(0.0, 1.0))
            if self._keeps:
                predictor.features = self._features.setdefault(index, predictor.features)
            for frame in self._slices[index]:
                truths = _objects(source.labels[frame])
                box += _single(predictor, frame, truths, "box")
                click += _single(predictor, frame, truths, "click")
            if len(source.labels) > 1 and len(tracked) < _MOST_TRACKS:
                tracked += _followed(predictor, source.labels, _MOST_TRACKS - len(tracked))
        return Score(*(float(np.mean(v)) if v else math.nan for v in (box, click, tracked)))


def _single(
    predictor: SequencePredictor, frame: int, truths: Mapping[int, Mask], kind: str
) -> list[float]:
    """IoU of each object on one slice."""
    for number, truth in truths.items():
        prompt = {"box": tight_box(truth)} if kind == "box" else {"points": [deepest_point(truth)]}
        predictor.set_prompts(number, frame, **prompt)
    result = predictor.predict(frame) if truths else None
    predictor.clear_prompts()
    if result is None:
        return []
    found = dict(zip(result.object_ids, result.masks, strict=True))
    return [iou(found[number], truth) for number, truth in truths.items()]


def _followed(predictor: SequencePredictor, labels: NDArray[np.int32], most: int) -> list[float]:
    """Dice of the objects on most slices, each followed from its largest one."""
    ids = [int(i) for i in np.unique(labels) if i]
    lengths = {i: int((labels == i).any(axis=(1, 2)).sum()) for i in ids}
    long = sorted((i for i in ids if lengths[i] > 1), key=lambda i: (-lengths[i], i))[
        : min(most, 2)
    ]
    scores = []
    for number in long:
        truth = labels == number
        largest = largest_slice(truth)
        start = max(0, min(largest - _TRACK_LENGTH // 2, len(labels) - _TRACK_LENGTH))
        stop = min(len(labels), start + _TRACK_LENGTH) - 1
        predictor.set_prompts(number, largest, box=tight_box(truth[largest]))
        both = total = 0
        for result in predictor.propagate([number], start=start, stop=stop):
            mask = result.mask(number)
            both += int((mask & truth[result.frame]).sum())
            total += int(mask.sum()) + int(truth[result.frame].sum())
        predictor.clear_prompts()
        scores.append(2 * both / total)
    return scores


def _labelled(source: Source) -> list[int]:
    return [int(t) for t in np.flatnonzero(source.labels.any(axis=(1, 2)))]


def _objects(labels: NDArray[np.int32]) -> dict[int, Mask]:
    ids, areas = np.unique(labels[labels > 0], return_counts=True)
    chosen = [int(i) for i, area in zip(ids, areas, strict=True) if area >= _SMALLEST]
    return {i: labels == i for i in _spread(chosen, _MOST_OBJECTS)}


def _spread(values: Sequence[int], most: int) -> list[int]:
    """At most so many of the values, evenly spread."""
    if len(values) <= most:
        return list(values)
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, most)]


# -- training --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """A score in the course of a training."""

    step: int
    seconds: float
    """Of training up to here, without scoring."""
    score: Score


@dataclass(frozen=True)
class Status:
    """Where a training is."""

    share: float
    """How much is done, 0 to 1."""
    step: int
    losses: Sequence[float]
    """Of each step since the training began or was resumed; it grows while the training goes on."""
    moments: Sequence[Moment]
    """Scores on what was held out; the first is the model's before the training."""


@dataclass(frozen=True)
class FineTuned:
    """What came of a training."""

    weights: Mapping[str, Tensor] | None
    """The best ones; None where nothing was better than before."""
    moments: Sequence[Moment]
    others_before: Mapping[str, Score]
    others_after: Mapping[str, Score]
    """On other kinds of images, by their name."""
    is_complete: bool
    """False where it was stopped, and can be resumed."""

    @property
    def before(self) -> Score:
        return self.moments[0].score

    @property
    def best(self) -> Moment:
        """The moment whose weights are kept; the first where none was better."""
        return best_of(self.moments)


def best_of(moments: Sequence[Moment]) -> Moment:
    """The first of those with the best mean score."""
    return max(moments, key=lambda moment: moment.score.mean)


def fine_tune(
    model: SAM2,
    train: Sequence[Source],
    held_out: Sequence[Source],
    folder: str | os.PathLike[str],
    *,
    minutes: float = 10.0,
    whole_model: bool = False,
    cache_bytes: int = 1 << 30,
    others: Mapping[str, Sequence[Source]] | None = None,
    resume: bool = False,
    seed: int = 0,
    on_status: Callable[[Status], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> FineTuned:
    """Train a model on images, score it on others, and keep the best weights.

    The image encoder keeps its weights, and its features of views of the images are kept in memory,
    unless the whole model is trained. Ctrl-C stops as `should_stop` does: what was best is kept.

    Args:
        model: in float32; it is changed.
        train, held_out: of ``split``.
        folder: for the checkpoint, from which a stopped training is resumed.
        minutes: of training; scoring comes on top.
        cache_bytes: for features, where the encoder keeps its weights.
        others: other kinds of images, to see what the model has lost; scored before and after.
        on_status: called after each step and score.
        should_stop: asked after each step.

    Raises:
        DataError: with `resume`, there is nothing to resume, or it was another training.
    """
    folder = Path(folder)
    record = _Record(folder)
    trainer = Trainer(
        model,
        (_stage(train, minutes, whole_model, cache_bytes),),
        folder,
        list(train),
        seed,
        synthetic_share=SYNTHETIC_SHARE,
    )
    losses: list[float] = []
    exam = Examination(held_out, keeps_features=not whole_model)
    other_exams = {name: Examination(own) for name, own in (others or {}).items()}
    if resume:
        record.load()
        if not trainer.resume():
            raise DataError(f"There is no training to resume at {folder}.")
    else:
        before = SAM2(model.config)
        before.load_state_dict(model.state_dict())
        before.to(model.device).eval()
        record.others = {name: one.score(before) for name, one in other_exams.items()}
        record.add(Moment(0, 0.0, exam.score(before)), None)

    scored_at = trainer.share_done
    scoring_seconds = 0.0
    began = time.monotonic()

    def tell() -> None:
        if on_status is not None:
            share, step = trainer.share_done, trainer.progress.total_steps
            on_status(Status(min(share, 1.0), step, losses, tuple(record.moments)))

    def examine() -> None:
        nonlocal scored_at, scoring_seconds
        begun = time.monotonic()
        scored = _averaged(trainer)
        seconds = 60 * minutes * min(trainer.share_done, 1.0)
        moment = Moment(trainer.progress.total_steps, seconds, exam.score(scored))
        record.add(moment, scored.state_dict())
        scored_at = trainer.share_done
        scoring_seconds = time.monotonic() - begun
        tell()

    def after_step(result: StepResult) -> None:
        nonlocal began
        losses.append(result.report["loss"])
        tell()
        if should_stop is not None and should_stop():
            raise KeyboardInterrupt
        is_due = trainer.share_done - scored_at >= 1 / _SCORINGS
        if is_due and time.monotonic() - began > 2 * scoring_seconds and trainer.share_done < 1:
            examine()
            began = time.monotonic()

    trainer.on_step = after_step
    tell()
    is_complete = True
    try:
        trainer.run()
    except KeyboardInterrupt:
        is_complete = False
    if trainer.progress.total_steps > record.moments[-1].step:
        examine()
    others_after = dict(record.others)
    weights = record.weights()
    if weights is not None:
        best = SAM2(model.config)
        best.load_state_dict(weights)
        best.to(model.device).eval()
        others_after = {name: one.score(best) for name, one in other_exams.items()}
    return FineTuned(weights, tuple(record.moments), record.others, others_after, is_complete)


def _stage(train: Sequence[Source], minutes: float, whole_model: bool, cache_bytes: int) -> Stage:
    """One stage for all: clips where there are sequences, and images."""
    rate = _WHOLE_RATE if whole_model else _HEADS_RATE
    common: dict[str, Any] = {
        "minutes": minutes,
        "learning_rate": rate,
        "cache_bytes": 0 if whole_model else cache_bytes,
    }
    if any(len(source.labels) > 1 for source in train):
        return Stage("clips", CLIPS, batch=1, objects=4, frames=(3, 4), images=3, **common)
    return Stage("images", IMAGES, batch=4, objects=8, **common)


def _averaged(trainer: Trainer) -> SAM2:
    model = SAM2(trainer.model.config)
    model.load_state_dict(trainer.average)
    return model.to(trainer.model.device).eval()


class _Record:
    """Scores and the best weights, in the folder of the checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._scores, self._best = folder / "scores.json", folder / "best.pt"
        self.moments: list[Moment] = []
        self.others: dict[str, Score] = {}

    def add(self, moment: Moment, weights: Mapping[str, Tensor] | None) -> None:
        """Note a score, and keep the weights if it is the best."""
        self.moments.append(moment)
        if weights is None:
            self._best.unlink(missing_ok=True)
        elif best_of(self.moments) is moment:
            with beside(self._best) as temporary:
                torch.save(dict(weights), temporary)
        content = {
            "moments": [asdict(one) for one in self.moments],
            "others": {name: asdict(score) for name, score in self.others.items()},
        }
        write_text(self._scores, json.dumps(content))

    def load(self) -> None:
        """Raises DataError where there is none that can be read."""
        try:
            content = json.loads(self._scores.read_text(encoding="utf-8"))
            self.moments = [
                Moment(one["step"], one["seconds"], Score(**one["score"]))
                for one in content["moments"]
            ]
            self.others = {name: Score(**score) for name, score in content["others"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"There is no training to resume at {self._scores.parent}; start one."
            ) from error

    def weights(self) -> dict[str, Tensor] | None:
        """The best ones, None where the model was best before."""
        if best_of(self.moments) is self.moments[0] or not self._best.is_file():
            return None
        weights: dict[str, Tensor] = torch.load(self._best, map_location="cpu", weights_only=True)
        return weights
