"""What is computed in one training step: from a batch to a loss, for each of the three stages.

Clips are answered as ``SequencePredictor`` answers them: prompted frames are decoded without
memory, and their memory is made of the binarised mask; tracked frames see the prompted frames, the
last six and the pointers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_engine.model import ABSENT_LOGIT, SAM2, Decoded, ImageFeatures, as_mask_input
from sam2_engine.training.data import Batch
from sam2_engine.training.drift import Drift
from sam2_engine.training.losses import PUBLISHED, LossWeights, mask_iou, mask_losses
from sam2_engine.training.prompts import PADDING, corrective_click, first_prompts

_TRACKING = LossWeights(object_score=2.0, absent=2.0)
"""Clips are short: objects are absent in a quarter of their frames, but in half of a whole
volume."""
_CORRECTED_SHARE = 0.6  # of the tracked frames that are learnt from
_CLICK_AGAIN_SHARE = 0.3  # of the corrected frames: a second click, where the first left errors


@dataclass
class StepResult:
    """The loss to go down and what to report of a step."""

    loss: Tensor
    report: dict[str, float]

    def __add__(self, other: StepResult) -> StepResult:
        report = self.report | other.report
        report["loss"] = self.report["loss"] + other.report["loss"]
        return StepResult(self.loss + other.loss, report)


@dataclass
class _Answer:
    """What the model says of N objects on one frame."""

    low_res: Tensor  # (N, 1, S/4, S/4)
    object_score: Tensor  # (N, 1)
    pointer: Tensor  # (N, C)


class _Meter:
    """Adds up the losses of several answers, and mean IoU by name."""

    def __init__(
        self,
        weights: Tensor,
        loss_size: int,
        loss_weights: LossWeights = PUBLISHED,
    ) -> None:
        self.weights = weights  # (N,)
        self.loss_size, self.loss_weights = loss_size, loss_weights
        self.terms: list[Tensor] = []
        self.report: dict[str, float] = {}

    def add(
        self,
        name: str,
        decoded: Decoded,
        truth: Tensor,
        objects: Tensor | None = None,
        factor: float = 1.0,
        loss_weights: LossWeights | None = None,
    ) -> None:
        """Count the answer for some objects; ``truth`` is (K, S, S) bool for those."""
        weights = self.weights if objects is None else self.weights[objects]
        losses = mask_losses(
            decoded.candidates,
            decoded.ious,
            decoded.object_score,
            truth,
            loss_weights or self.loss_weights,
            self.loss_size,
        )
        self.terms.append(factor * (losses * weights).sum() / self.weights.sum())
        with torch.no_grad():
            iou = mask_iou(_enlarge(decoded.low_res, truth.shape[-1])[:, 0], truth)
            self.report[name] = float(iou.mean())

    def result(self) -> StepResult:
        total = torch.stack(self.terms).sum()
        return StepResult(total, {"loss": float(total.detach()), **self.report})


def geometry_step(
    model: SAM2, images: Tensor, generator: torch.Generator, count: int
) -> StepResult:
    """The heads learn where a prompt is: whatever the image shows, a box means its ellipse and a
    click a disk.

    From random weights on real images they would hardly learn, for this has to come first. The
    features are those of real images: heads that have seen noise alone are lost among features that
    are larger and alike over whole regions.

    Args:
        images: (B, 3, S, S), normalised.
        count: number of prompts.
    """
    with torch.no_grad():
        features = model.encode_image(images)
    features = features.select(torch.randint(len(images), (count,), generator=generator))
    truth = _ellipses(generator, count, model.image_size).to(images.device)
    # Focal loss at its full weight would first teach that nothing is anywhere.
    weights = LossWeights(focal=4.0)
    ones = torch.ones(count, device=images.device)
    meter = _Meter(ones, loss_size=model.image_size // 4, loss_weights=weights)
    return _prompt_and_correct(model, features, truth, meter, generator, 0.3)


def image_step(model: SAM2, batch: Batch, generator: torch.Generator) -> StepResult:
    """Single images: a click or a box, then up to two corrective clicks."""
    if batch.features is None:
        features = model.encode_image(batch.images[:, 0])
    else:
        features = batch.features.select(slice(0, None, batch.images.shape[1]))
    return _prompt_and_correct(
        model,
        features.select(batch.clip),
        batch.masks[:, 0],
        _Meter(_object_weights(batch.clip), model.image_size // 2),
        generator,
        0.6,
    )


def clip_step(
    model: SAM2,
    batch: Batch,
    generator: torch.Generator,
    learnt: int | None = None,
    drift_share: float = 0.0,
) -> StepResult:
    """Clips with memory: prompt the first frame, track, and correct some of the frames learnt from.

    Args:
        learnt: learn from so many frames at the clip's end (and from the first); the model is
            carried to them by its own masks, without gradient. All, if None.
        drift_share: probability that it is carried there by true masks gone astray instead.
    """
    frames = batch.images.shape[1]
    learn_from = 1 if learnt is None else max(1, frames - learnt)
    meter = _Meter(_object_weights(batch.clip), model.image_size // 2)
    features = _clip_features(model, batch, learn_from)

    first = _first_answer(model, features[0], batch.masks[:, 0], meter, generator)
    prompted = {0: (_remember(model, features[0], first, binarise=True), first.pointer)}
    tracked: dict[int, tuple[Tensor, Tensor]] = {}
    visible: list[Tensor] = []
    answer = first
    last_seen = first.low_res
    start = 1
    if torch.rand((), generator=generator) < drift_share:
        drift = Drift(len(batch.masks), model.image_size, generator, batch.masks.device)
        for t in range(1, learn_from):
            answer = _astray(model, features[t], drift.answers(batch.masks[:, t], t / learn_from))
            with torch.no_grad():
                memory = _remember(model, features[t], answer, binarise=False)
            tracked[t] = (memory, answer.pointer)
            last_seen = _last_seen(answer, last_seen)
        start = learn_from
    for t in range(start, frames):
        with torch.set_grad_enabled(t >= learn_from):
            decoded = _track(model, features[t], t, prompted, tracked, answer, batch)
        answer = _Answer(decoded.low_res, decoded.object_score, decoded.pointer)
        if t >= learn_from:
            truth = batch.masks[:, t]
            factor = 2.0 / (frames - learn_from)
            meter.add(f"track{t}", decoded, truth, factor=factor, loss_weights=_TRACKING)
            visible.append(decoded.object_score[:, 0] > 0)
        last_seen = _last_seen(answer, last_seen)
        corrects = torch.rand((), generator=generator) < _CORRECTED_SHARE
        if t >= learn_from and corrects:
            again = torch.rand((), generator=generator) < _CLICK_AGAIN_SHARE
            for _ in range(1 + int(again)):
                answer = _correct_tracked(
                    model, features[t], answer, last_seen, truth, meter, generator
                )
                last_seen = _last_seen(answer, last_seen)
            prompted[t] = (_remember(model, features[t], answer, binarise=True), answer.pointer)
        else:
            with torch.set_grad_enabled(t >= learn_from):
                memory = _remember(model, features[t], answer, binarise=False)
            tracked[t] = (memory, answer.pointer)
    result = meter.result()
    tracks = [value for name, value in result.report.items() if name.startswith("track")]
    result.report = {name: v for name, v in result.report.items() if not name.startswith("track")}
    result.report["track"] = sum(tracks) / len(tracks)
    present = batch.masks[:, learn_from:].flatten(2).any(2)
    result.report["absent"] = float((~present).float().mean())
    said = torch.stack(visible, 1)
    result.report["seen"] = float(said[present].float().mean()) if present.any() else 1.0
    if not present.all():
        result.report["ended"] = float((~said[~present]).float().mean())
    return result


def _clip_features(model: SAM2, batch: Batch, learn_from: int) -> list[ImageFeatures]:
    """What the objects see on each frame; with gradient on the first and from ``learn_from`` on."""
    frames = batch.images.shape[1]
    if batch.features is not None:
        return [batch.features.select(batch.clip * frames + t) for t in range(frames)]
    parts: list[ImageFeatures] = []
    for first, last in ((0, 1), (1, learn_from), (learn_from, frames)):
        if first == last:
            continue
        with torch.set_grad_enabled(first in (0, learn_from)):
            encoded = model.encode_image(batch.images[:, first:last].flatten(0, 1))
        parts += [encoded.select(batch.clip * (last - first) + t) for t in range(last - first)]
    return parts


def _track(
    model: SAM2,
    features: ImageFeatures,
    t: int,
    prompted: dict[int, tuple[Tensor, Tensor]],
    tracked: dict[int, tuple[Tensor, Tensor]],
    before: _Answer,
    batch: Batch,
) -> Decoded:
    """Answer frame t from the memories of earlier frames and, in models that draw them, the mask
    of the frame before.
    """
    return model.decode_masks(
        features,
        _attend(model, features, t, prompted, tracked, batch.sequence_length),
        mask_input=as_mask_input(before.low_res.detach()) if model.config.draws_prompts else None,
        multimask=True,
    )


def _prompt_and_correct(
    model: SAM2,
    features: ImageFeatures,
    truth: Tensor,
    meter: _Meter,
    generator: torch.Generator,
    correct_share: float,
) -> StepResult:
    """Answer first prompts on N frames, then the corrections of those answers."""
    conditioned = model.without_memory(features)
    rounds = int(torch.rand((), generator=generator) < correct_share)
    rounds *= 1 + int(torch.rand((), generator=generator) < 0.3)
    # A correction may come with the earlier prompts or, on a mask that was tracked, by itself.
    keep = bool(torch.rand((), generator=generator) < 0.5)
    for prompts in first_prompts(truth, generator):
        own = prompts.objects
        own_features, own_truth = features.select(own), truth[own]
        points, labels = prompts.points, prompts.labels
        kind = "click" if points.shape[1] == 1 else "box"
        decoded = model.decode_masks(
            own_features, conditioned[own], points, labels, multimask=points.shape[1] == 1
        )
        meter.add(kind, decoded, own_truth, own)
        if not keep:
            points, labels = points[:, :0], labels[:, :0]
        for _ in range(rounds):
            logits = decoded.low_res.detach()
            click, sign = corrective_click(
                _enlarge(logits, truth.shape[-1])[:, 0] > 0, own_truth, generator
            )
            points, labels = torch.cat([points, click], 1), torch.cat([labels, sign], 1)
            decoded = model.decode_masks(
                own_features,
                conditioned[own],
                points,
                labels,
                as_mask_input(logits),
                multimask=points.shape[1] == 1,
            )
            meter.add(f"{kind}+", decoded, own_truth, own)
    return meter.result()


def _first_answer(
    model: SAM2,
    features: ImageFeatures,
    truth: Tensor,
    meter: _Meter,
    generator: torch.Generator,
    mask_share: float = 0.35,
) -> _Answer:
    """Prompt the objects of a clip's first frame: some by their mask, the others by a click or a
    box.
    """
    by_mask = (torch.rand(len(truth), generator=generator) < mask_share).to(truth.device)
    parts: list[tuple[Tensor, Decoded]] = []
    given = by_mask.nonzero()[:, 0]
    if len(given):
        mask = truth[given].unsqueeze(1).float()
        parts.append((given, model.mask_as_output(features.select(given), mask)))
    others = (~by_mask).nonzero()[:, 0]
    if len(others):
        conditioned = model.without_memory(features)
        for prompts in first_prompts(truth[others], generator):
            own = others[prompts.objects]
            single = prompts.points.shape[1] == 1
            decoded = model.decode_masks(
                features.select(own),
                conditioned[own],
                prompts.points,
                prompts.labels,
                multimask=single,
            )
            meter.add("click" if single else "box", decoded, truth[own], own)
            parts.append((own, decoded))
    back = torch.cat([own for own, _ in parts]).argsort()
    return _Answer(
        low_res=torch.cat([d.low_res for _, d in parts])[back],
        object_score=torch.cat([d.object_score for _, d in parts])[back],
        pointer=torch.cat([d.pointer for _, d in parts])[back],
    )


def _correct_tracked(
    model: SAM2,
    features: ImageFeatures,
    answer: _Answer,
    last_seen: Tensor,
    truth: Tensor,
    meter: _Meter,
    generator: torch.Generator,
) -> _Answer:
    """One corrective click on a tracked frame, which makes it a prompted one; right answers stay
    as they are.

    Where an object was not found, the click corrects the mask that it had last.
    """
    logits = answer.low_res.detach()
    click, sign = corrective_click(_enlarge(logits, truth.shape[-1])[:, 0] > 0, truth, generator)
    own = (sign[:, 0] != PADDING).nonzero()[:, 0]
    if not len(own):
        return answer
    selected = features.select(own)
    decoded = model.decode_masks(
        selected,
        model.without_memory(selected),
        click[own],
        sign[own],
        as_mask_input(last_seen[own].detach()),
        multimask=True,
    )
    meter.add("fix", decoded, truth[own], own)
    return _Answer(
        answer.low_res.index_copy(0, own, decoded.low_res),
        answer.object_score.index_copy(0, own, decoded.object_score),
        answer.pointer.index_copy(0, own, decoded.pointer),
    )


def _last_seen(answer: _Answer, before: Tensor) -> Tensor:
    """(N, 1, S/4, S/4) mask logits of each object on the last frame where it was found."""
    found = (answer.low_res > 0).flatten(1).any(1)[:, None, None, None]
    return torch.where(found, answer.low_res, before).detach()


@torch.no_grad()
def _astray(model: SAM2, features: ImageFeatures, low_res: Tensor) -> _Answer:
    """The answer that a model would have given with these mask logits (N, 1, S/4, S/4)."""
    decoded = model.mask_as_output(features, (model.upscale(low_res) > 0).float())
    visible = (decoded.object_score > 0)[:, :, None, None]
    return _Answer(
        torch.where(visible, low_res, ABSENT_LOGIT), decoded.object_score, decoded.pointer
    )


def _remember(model: SAM2, features: ImageFeatures, answer: _Answer, binarise: bool) -> Tensor:
    high_res = model.upscale(answer.low_res)
    return model.encode_memory(features, high_res, answer.object_score, binarise)


def _attend(
    model: SAM2,
    features: ImageFeatures,
    t: int,
    prompted: dict[int, tuple[Tensor, Tensor]],
    tracked: dict[int, tuple[Tensor, Tensor]],
    sequence_length: int,
) -> Tensor:
    """Condition frame t on the memories of earlier frames, as ``MemoryBank`` lays them out."""
    config = model.config
    oldest = config.num_memories - 1
    most = min(sequence_length, config.max_pointers) - 1
    scale = max(most, 1)
    memories = [(memory, oldest) for memory, _ in prompted.values()]
    memories += [
        (tracked[t - age][0], age - 1) for age in range(oldest, 0, -1) if t - age in tracked
    ]
    pointers = [(pointer, (t - origin) / scale) for origin, (_, pointer) in prompted.items()]
    pointers += [
        (tracked[t - age][1], age / scale) for age in range(1, most + 1) if t - age in tracked
    ]
    return model.attend_to_memory(features, model.memory_tokens(memories, pointers))


def _object_weights(clip: Tensor) -> Tensor:
    """(N,) weights so that an image with many objects counts more than one with few, but not so
    many times.
    """
    count = torch.bincount(clip)
    return count[clip].float() ** -0.5


def _enlarge(logits: Tensor, side: int) -> Tensor:
    return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)


def _ellipses(generator: torch.Generator, count: int, side: int) -> Tensor:
    """(N, S, S) bool ellipses of random place and size; every other one is a disk."""

    def random(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    size = side * torch.exp(random(-3.0, -0.35))
    aspect = torch.exp(random(-0.6, 0.6))
    aspect[::2] = 1.0
    half_x, half_y = size * aspect / 2, size / aspect / 2
    middle_x = half_x + random(0, 1) * (side - 1 - 2 * half_x).clamp(min=0)
    middle_y = half_y + random(0, 1) * (side - 1 - 2 * half_y).clamp(min=0)
    axis = torch.arange(side)
    dx = (axis[None, None, :] - middle_x[:, None, None]) / half_x[:, None, None]
    dy = (axis[None, :, None] - middle_y[:, None, None]) / half_y[:, None, None]
    return dx**2 + dy**2 <= 1
