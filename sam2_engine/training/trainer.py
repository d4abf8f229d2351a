"""The training loop: stages one after the other, a checkpoint every two minutes, and a way back
from it.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_engine.model import SAM2, VARIANTS, ImageFeatures, ModelConfig
from sam2_engine.model.conv_trunk import ConvTrunk
from sam2_engine.training.data import Batch, BatchDataset, ClipSampler, batches
from sam2_engine.training.sources import Source
from sam2_engine.training.steps import (
    StepResult,
    clip_step,
    geometry_step,
    image_step,
)
from sam2_engine.whole_file import beside

GEOMETRY, IMAGES, CLIPS = "geometry", "images", "clips"
_CHECKPOINT_SECONDS = 120.0
_LONGEST_STEP = 60.0  # seconds; more is a process that was halted or a machine that slept
_REPORT_EVERY = 20
_GEOMETRY_IMAGES = 4  # whose features the prompts of a geometry step share
_EMA_DECAY = 0.99
_CLIP_NORM = 1.0
_FEWEST_KEPT = 8  # batches with features before any comes again, if they fit
_RENEWED = 4  # then one of so many steps draws a new one


@contextmanager
def tiny_is_zero() -> Iterator[None]:
    """Within, this thread takes numbers below the normal range for 0, and so do those that torch
    starts for it: enter it before anything is computed.

    Gradients are full of them, they mean nothing there, and Intel's processors are slow with them.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own task and learning rate, which falls to zero along a
    cosine.
    """

    name: str
    kind: str
    """"geometry", "images" or "clips"."""
    minutes: float
    """How long it lasts. A slow machine makes fewer steps, and the learning rate still ends at
    zero.
    """
    steps: int | None = None
    """Ends earlier after so many steps."""
    learning_rate: float = 4e-4
    trunk_rate: float = 0.2
    """Learning rate of the image trunk, as a share; 0 saves its backward pass."""
    batch: int = 8
    """Clips or images in a batch; objects in the geometry stage."""
    objects: int = 16
    """Most objects of a clip."""
    frames: tuple[int, int] = (1, 1)
    """Least and greatest number of frames of a clip."""
    learnt: int | None = None
    """Frames at a clip's end that are learnt from; the model's own masks lead there."""
    drift_share: float = 0.0
    """Probability that true masks gone astray lead there instead."""
    images: int = 0
    """Single images beside the clips, so that prompts are not forgotten."""
    cache_bytes: int = 0
    """Where positive, the image encoder keeps its weights, and features of so many bytes are kept
    of batches that come again; each time with other prompts.
    """


STAGES: dict[str, tuple[Stage, ...]] = {
    "nano": (
        Stage("geometry", GEOMETRY, minutes=3, learning_rate=1.5e-3, batch=16),
        Stage("images", IMAGES, minutes=90, learning_rate=6e-4, batch=6, objects=10),
        Stage("short clips", CLIPS, minutes=15, batch=3, objects=6, frames=(2, 4), images=2),
        Stage(
            "clips",
            CLIPS,
            minutes=75,
            batch=3,
            objects=4,
            frames=(3, 9),
            learnt=2,
            drift_share=0.6,
            images=2,
        ),
    ),
}
"""The stages of each model that can be trained from scratch, by its name in ``VARIANTS``."""


@dataclass
class Progress:
    """Where a run is."""

    stage: int = 0
    step: int = 0
    """Steps made in this stage."""
    seconds: float = 0.0
    """Time spent in this stage."""
    total_steps: int = 0


class Trainer:
    """Trains a SAM2 through its stages, and keeps everything that a resumed run needs in one file.

    Attributes:
        model: the network, as the optimiser sees it.
        average: name -> running mean of the weights, which is what ``export`` ships.
    """

    def __init__(
        self,
        model: SAM2,
        stages: tuple[Stage, ...],
        out: str | Path,
        sources: list[Source],
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        synthetic_share: float | None = None,
        on_step: Callable[[StepResult], None] | None = None,
    ) -> None:
        """
        Args:
            model: to be trained, on any device.
            out: folder of checkpoint.pt, train.log and one file of weights per finished stage.
            sources: what to train on; may be empty, then all clips are synthetic.
            workers: processes that make batches ahead; 0 makes them in this one.
            rank: number of this process where several train together (torch.distributed is set up
                then); each has its own batches, gradients are averaged, and rank 0 writes.
            synthetic_share: as for ``ClipSampler``.
            on_step: called after each step, in place of lines on standard output; its time does not
                count as training, and what it raises ends the run, with a checkpoint.
        """
        self.model = model
        self.stages = stages
        self.out = Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.sources = sources
        self.seed, self.workers, self.rank = seed, workers, rank
        self.synthetic_share, self.on_step = synthetic_share, on_step
        self.progress = Progress()
        self.generator = torch.Generator().manual_seed(seed + rank)
        self.optimizer = self._optimizer()
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @property
    def checkpoint_path(self) -> Path:
        return self.out / "checkpoint.pt"

    def run(self, max_steps: int | None = None) -> None:
        """Train until the last stage ends, or for ``max_steps`` more steps; a checkpoint is left
        in any case.
        """
        made = 0
        try:
            while self.progress.stage < len(self.stages):
                stage = self.stages[self.progress.stage]
                made += self._run_stage(stage, None if max_steps is None else max_steps - made)
                if max_steps is not None and made >= max_steps:
                    break
        finally:
            self.save()

    def save(self) -> None:
        """Write the checkpoint beside the old one and put it in its place."""
        if self.rank != 0:
            return
        _write(
            self.checkpoint_path,
            {
                "config": asdict(self.model.config),
                "model": self.model.state_dict(),
                "average": self.average,
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "progress": asdict(self.progress),
                "stages": [stage.name for stage in self.stages],
                "seed": self.seed,
            },
        )

    def resume(self) -> bool:
        """Go on from the checkpoint in the output folder; False if there is none.

        Raises:
            ValueError: the checkpoint was made with other stages.
        """
        if not self.checkpoint_path.is_file():
            return False
        state = torch.load(self.checkpoint_path, map_location="cpu", weights_only=True)
        names = [stage.name for stage in self.stages]
        done = state["progress"]["stage"]
        if state["stages"][: done + 1] != names[: done + 1]:
            raise ValueError(
                f"{self.checkpoint_path} was made by the stages {', '.join(state['stages'])}, "
                f"not {', '.join(names)}. Train into another folder with --out."
            )
        self.model.load_state_dict(state["model"])
        self.average = {k: v.to(self.model.device) for k, v in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        if self.rank == 0:
            self.generator.set_state(state["generator"])
        else:  # only rank 0's state is kept; the others start a new row of numbers
            self.generator.manual_seed(state["seed"] + self.rank + state["progress"]["total_steps"])
        self.progress = Progress(**state["progress"])
        self.seed = state["seed"]
        return True

    # -- one stage -----------------------------------------------------------------------------

    def _run_stage(self, stage: Stage, max_steps: int | None) -> int:
        progress = self.progress
        if progress.step == 0:
            self.optimizer = self._optimizer()
        next_step = self._steps(stage)
        saved = last = time.monotonic()
        made = 0
        recent: dict[str, list[float]] = {}
        while max_steps is None or made < max_steps:
            share = self.share_done
            if share >= 1:
                self._finish(stage)
                break
            self._set_learning_rate(stage, share)
            result = next_step()
            self._update(result.loss)
            made += 1
            now = time.monotonic()
            progress.step += 1
            progress.total_steps += 1
            progress.seconds += self._agree(min(now - last, _LONGEST_STEP))
            last = now
            for name, value in result.report.items():
                recent.setdefault(name, []).append(value)
            if progress.step % _REPORT_EVERY == 0:
                self._report(stage, recent)
                recent = {}
            if self.on_step is not None:
                self.on_step(result)
                last = time.monotonic()
            if now - saved > _CHECKPOINT_SECONDS:
                self.save()
                saved = now
        return made

    @property
    def share_done(self) -> float:
        """How much of the present stage is done; 1 after the last one."""
        if self.progress.stage == len(self.stages):
            return 1.0
        stage = self.stages[self.progress.stage]
        share = self.progress.seconds / (60 * stage.minutes)
        return max(share, self.progress.step / stage.steps) if stage.steps else share

    def _finish(self, stage: Stage) -> None:
        if self.rank == 0:
            _write(
                self.out / f"{self.progress.stage + 1}-{stage.name}.pt",
                {"config": asdict(self.model.config), "average": self.average},
            )
        self.progress.stage += 1
        self.progress.step = 0
        self.progress.seconds = 0.0
        self.save()

    def _steps(self, stage: Stage) -> Callable[[], StepResult]:
        _freeze(self.model, stage.trunk_rate == 0, encoder=stage.cache_bytes > 0)
        model = self.model
        sampler = ClipSampler(self.sources, model.image_size, self.synthetic_share)
        seed = self.seed * 1000 + self.progress.stage

        def ready(seed: int, frames: tuple[int, int], count: int) -> Iterator[Batch]:
            dataset = BatchDataset(sampler, seed, frames, count, stage.objects, self.rank)
            if stage.cache_bytes:
                kinds = 2 if stage.images else 1
                yield from _kept(dataset, model, self.progress.step, stage.cache_bytes // kinds)
            for batch in batches(dataset, self.progress.step, self.workers):
                yield batch.to(model.device)

        if stage.kind == GEOMETRY:
            single = ready(seed, (1, 1), _GEOMETRY_IMAGES)
            return lambda: geometry_step(
                model, next(single).images[:, 0], self.generator, stage.batch
            )
        main = ready(seed, stage.frames, stage.batch)
        if stage.kind == IMAGES:
            return lambda: image_step(model, next(main), self.generator)

        def tracked() -> StepResult:
            return clip_step(model, next(main), self.generator, stage.learnt, stage.drift_share)

        if not stage.images:
            return tracked
        beside = ready(seed + 500, (1, 1), stage.images)
        return lambda: tracked() + image_step(model, next(beside), self.generator)

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        if torch.isfinite(norm):
            self.optimizer.step()
        decay = min(_EMA_DECAY, (1 + self.progress.total_steps) / (10 + self.progress.total_steps))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.dtype.is_floating_point:
                    self.average[name].lerp_(value, 1 - decay)

    def _average_gradients(self) -> None:
        if not dist.is_initialized():
            return
        trained = [p for p in self.model.parameters() if p.requires_grad]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        together /= dist.get_world_size()
        sizes = [p.numel() for p in trained]
        for parameter, gradient in zip(trained, together.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def _agree(self, seconds: float) -> float:
        """The mean of all processes, so that they end a stage at the same step."""
        if not dist.is_initialized():
            return seconds
        shared = torch.tensor([seconds], dtype=torch.float64)
        dist.all_reduce(shared)
        return float(shared) / dist.get_world_size()

    def _optimizer(self) -> torch.optim.AdamW:
        """Three groups: the trunk, weights, and what should not decay (biases, norms,
        embeddings).
        """
        trunk, weights, others = [], [], []
        for name, parameter in self.model.named_parameters():
            if name.startswith("image_encoder.trunk."):
                trunk.append(parameter)
            elif parameter.ndim >= 2 and "embed" not in name and "token" not in name:
                weights.append(parameter)
            else:
                others.append(parameter)
        return torch.optim.AdamW(
            [
                {"params": trunk, "name": "trunk", "weight_decay": 0.01},
                {"params": weights, "name": "weights", "weight_decay": 0.02},
                {"params": others, "name": "others", "weight_decay": 0.0},
            ],
            lr=1e-3,
            betas=(0.9, 0.99),
            fused=True,
        )

    def _set_learning_rate(self, stage: Stage, share: float) -> None:
        warm_up = min(1.0, (self.progress.step + 1) / 50)
        rate = stage.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * share))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (stage.trunk_rate if group["name"] == "trunk" else 1.0)

    def _report(self, stage: Stage, recent: dict[str, list[float]]) -> None:
        if self.rank != 0:
            return
        means = {name: round(sum(v) / len(v), 3) for name, v in sorted(recent.items())}
        line = {
            "stage": stage.name,
            "step": self.progress.step,
            "minutes": round(self.progress.seconds / 60, 2),
            "lr": round(self.optimizer.param_groups[1]["lr"], 6),
            **means,
        }
        text = json.dumps(line)
        if self.on_step is None:
            print(text, flush=True)
        with open(self.out / "train.log", "a", encoding="utf-8") as log:
            log.write(text + "\n")


def scaled(stages: tuple[Stage, ...], minutes: float) -> tuple[Stage, ...]:
    """The same stages, shorter or longer, so that they last ``minutes`` together."""
    factor = minutes / sum(stage.minutes for stage in stages)
    return tuple(replace(stage, minutes=stage.minutes * factor) for stage in stages)


def new_model(name: str, imagenet: bool = True) -> SAM2:
    """A model to train from scratch: random heads, and for a convolutional trunk ImageNet's
    weights.

    Raises:
        ValueError: there are no stages for this name.
    """
    if name not in STAGES:
        raise ValueError(f"There is no training for {name!r}; there is for: {', '.join(STAGES)}.")
    model = SAM2(VARIANTS[name])
    if imagenet:
        from sam2_engine.training.trunk import load_imagenet_trunk

        load_imagenet_trunk(model.image_encoder.trunk)
    _calibrate(model)
    return model


@torch.no_grad()
def _calibrate(model: SAM2, spread: float = 0.3) -> None:
    """Make what starts at random start small.

    Image features get a spread below that of the position encodings they are added to, and memory
    attention starts as little more than the features themselves, on the same scale.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((4, 3, 8, 8), generator=generator)
    images = F.interpolate(images, size=(model.image_size,) * 2, mode="bicubic")
    model.eval()
    encoder = model.image_encoder
    levels = encoder.trunk(images)
    for lateral, level in zip(encoder.neck.convs, reversed(levels), strict=True):
        conv = lateral.get_submodule("conv")
        scale = spread / conv(level).std()
        for parameter in conv.parameters():
            parameter.mul_(scale)
    for name, parameter in model.memory_attention.named_parameters():
        if "out_proj." in name or "linear2." in name:
            parameter.mul_(0.2)
        elif name == "norm.weight":
            parameter.fill_(spread)


def load_average(path: str | Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The averaged weights of a checkpoint or of a finished stage, with the configuration they
    fit.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    for config in VARIANTS.values():
        if _plain(asdict(config)) == _plain(state["config"]):
            return config, state["average"]
    raise ValueError(f"{path} was made for a configuration that is not in VARIANTS any more.")


def _kept(dataset: BatchDataset, model: SAM2, start: int, most_bytes: int) -> Iterator[Batch]:
    """Endless batches with features, of which as many are kept as fit in the memory.

    Kept ones come in turn, and cost neither drawing nor encoding. One in a few is new, and where
    there is no room it takes the place of the oldest.
    """
    kept: deque[Batch] = deque()
    number = start
    while True:
        if len(kept) < _FEWEST_KEPT or number % _RENEWED == 0:
            batch = dataset[number].to(model.device)
            with torch.no_grad():
                features = model.encode_image(batch.images.flatten(0, 1))
            half = ImageFeatures(*(level.to(torch.float16) for level in features))
            # The images are done with; what follows asks for their shape alone.
            blank = torch.zeros((), device=model.device).expand(batch.images.shape)
            kept.append(replace(batch, images=blank, features=half))
            while len(kept) > 1 and sum(map(_num_bytes, kept)) > most_bytes:
                kept.popleft()
        batch = kept[number % len(kept)]
        features = ImageFeatures(*(level.to(model.dtype) for level in batch.features or ()))
        yield replace(batch, features=features)
        number += 1


def _num_bytes(batch: Batch) -> int:
    return batch.masks.nbytes + sum(level.nbytes for level in batch.features or ())


def _freeze(model: SAM2, whole_trunk: bool, encoder: bool = False) -> None:
    """Training mode, but the trunk (or its part up to stride 4, or all that encodes images) keeps
    its weights.
    """
    model.train()
    decoder = model.sam_mask_decoder
    for part in (model.image_encoder, decoder.conv_s0, decoder.conv_s1):
        part.requires_grad_(not encoder)
    if encoder:
        return
    trunk = model.image_encoder.trunk
    trunk.requires_grad_(not whole_trunk)
    if isinstance(trunk, ConvTrunk):
        for part in (trunk.stem, *trunk.stages[: trunk.output_stages[0] + 1]):
            part.requires_grad_(False)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _write(path: Path, state: dict[str, Any]) -> None:
    with beside(path) as temporary:
        torch.save(state, temporary)
