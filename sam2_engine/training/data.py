"""Clips to train on, from labelled images and from synthetic scenes.

A clip is a short sequence of frames with the masks of the objects that are seen on its first frame,
where they will be prompted. It comes from a volume (any axis, either direction), from a time-lapse,
from a single image set in motion, from bodies in volumes that nobody has labelled (``regions``), or
from ``synthetic``. It often runs past the end of its objects, so that their absence is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sam2_engine.frames import normalised
from sam2_engine.model import ImageFeatures
from sam2_engine.training.augment import intensity, motion_grid, sample_images
from sam2_engine.training.regions import grow_bodies
from sam2_engine.training.sources import Source
from sam2_engine.training.synthetic import synthetic_clip

SHARES = {
    "hippocampus": 0.24,
    "sarcoma": 0.17,
    "em_neurites": 0.14,
    "nuclei2d": 0.18,
    "cells2d": 0.08,
    "axons2d": 0.05,
}
"""How often each data set is drawn; others get ``OTHER_SHARE`` each, what is left is synthetic."""
OTHER_SHARE = 0.1
SYNTHETIC_SHARE = 0.18
BODIES_SHARE = 0.14  # what nobody has labelled in the volumes
_CUT_SHARE = 0.35  # of batches whose clips end in another scene, where their objects are absent
_MIN_AREA = 14  # pixels of the model's input: below that nobody could click


@dataclass(frozen=True)
class Batch:
    """Clips of one length. S is the model's input size."""

    images: Tensor
    """(B, T, 3, S, S) float32, normalised for the model."""
    masks: Tensor
    """(N, T, S, S) bool, none empty on the first frame."""
    clip: Tensor
    """(N,) which of the B clips each object is in."""
    sequence_length: int
    """Number of frames that the clip's sequence is said to have; it scales the pointers' times."""
    features: ImageFeatures | None = None
    """Of the B * T frames, where they have been encoded already."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        features = self.features
        if features is not None:
            features = ImageFeatures(*(level.to(device) for level in features))
        return replace(
            self,
            images=self.images.to(device),
            masks=self.masks.to(device),
            clip=self.clip.to(device),
            features=features,
        )


class ClipSampler:
    """Draws random clips of given length from sources, bodies in them, and synthetic scenes."""

    def __init__(
        self, sources: list[Source], side: int, synthetic_share: float | None = None
    ) -> None:
        """
        Args:
            synthetic_share: of the clips, all others being of the sources, each group equally
                often; by default the recipe of the bundled model (``SHARES``, bodies, synthetic).
        """
        self.side = side
        self.groups: dict[str, list[Source]] = {}
        for source in sources:
            if source.labels.any():
                self.groups.setdefault(source.group, []).append(source)
        self.volumes = [source for source in sources if source.volume and not source.instances]
        self.names = [*self.groups, "synthetic", "bodies"]
        shares = np.array(
            [SHARES.get(name, OTHER_SHARE) for name in self.groups]
            + [SYNTHETIC_SHARE, BODIES_SHARE if self.volumes else 0.0]
        )
        if synthetic_share is not None:
            own = (1 - synthetic_share) / max(len(self.groups), 1)
            shares = np.array([own] * len(self.groups) + [synthetic_share, 0.0])
        self.shares = shares / shares.sum()

    def clip(
        self, rng: np.random.Generator, frames: int, max_objects: int
    ) -> tuple[Tensor, Tensor]:
        """One clip: images (T, 3, S, S) normalised, masks (N, T, S, S) bool with 1 <= N <=
        max_objects.
        """
        while True:
            name = self.names[rng.choice(len(self.names), p=self.shares)]
            if name == "synthetic":
                drawn: tuple[Tensor, Tensor] | None = self._synthetic(rng, frames, max_objects)
            elif name == "bodies":
                drawn = self._bodies(rng, frames, max_objects)
            else:
                group = self.groups[name]
                drawn = self._real(rng, group[rng.integers(len(group))], frames, max_objects)
            if drawn is None:
                continue
            images, masks = drawn
            images = intensity(rng, images, strength=0.5)
            return normalised(images.expand(-1, 3, -1, -1)), masks

    def _synthetic(
        self, rng: np.random.Generator, frames: int, max_objects: int
    ) -> tuple[Tensor, Tensor]:
        scene = synthetic_clip(rng, frames, self.side, max_objects)
        return torch.from_numpy(scene.images)[:, None], torch.from_numpy(scene.masks)

    def _bodies(
        self, rng: np.random.Generator, frames: int, max_objects: int
    ) -> tuple[Tensor, Tensor] | None:
        """Bodies of like intensity in any volume, of each data set equally often."""
        groups = sorted({source.group for source in self.volumes})
        group = groups[rng.integers(len(groups))]
        own = [source for source in self.volumes if source.group == group]
        images = own[rng.integers(len(own))].images
        if rng.random() < 0.25:
            images = np.moveaxis(images, int(rng.integers(1, 3)), 0)
        chosen = _walk(rng, int(rng.integers(len(images))), np.ones(len(images)), frames)
        half = math.exp(rng.uniform(math.log(0.25), math.log(1.1)))
        x, y = rng.uniform(-1, 1, 2) * max(0.0, 1 - half)
        grid = motion_grid(rng, frames, self.side, (x, y), (half, half), 0.0, 0.0)
        tensor = torch.from_numpy(np.ascontiguousarray(images[chosen])).float()[:, None]
        tensor = sample_images(tensor, grid, "border")
        masks = grow_bodies(rng, tensor[:, 0].numpy(), max_objects)
        return (tensor, torch.from_numpy(masks)) if len(masks) else None

    def _real(
        self, rng: np.random.Generator, source: Source, frames: int, max_objects: int
    ) -> tuple[Tensor, Tensor] | None:
        axis = 0
        if source.volume and rng.random() < 0.35:
            axis = int(rng.integers(1, 3))
        areas = source.areas(axis)
        area = areas[0] if frames == 1 or rng.random() < 0.3 else areas[rng.integers(len(areas))]
        least = 0 if frames == 1 or source.instances else 0.3 * area.max()
        chosen = _walk(rng, int(rng.choice(np.flatnonzero(area > least))), area, frames)
        images, labels = np.moveaxis(source.images, axis, 0), np.moveaxis(source.labels, axis, 0)
        images, labels = images[chosen], labels[chosen]

        colour = images.ndim == 4
        tensor = torch.from_numpy(np.ascontiguousarray(images)).float()
        tensor = tensor.permute(0, 3, 1, 2) if colour else tensor[:, None]
        if colour and rng.random() < 0.5:
            tensor = tensor.mean(1, keepdim=True)

        candidates = _visible(labels[0], source.instances)
        if not candidates:
            return None
        centre, half = self._view(rng, labels[0], candidates, source)
        still = len(source.labels) == 1
        moves = still or rng.random() < 0.5
        motion = rng.uniform(0.05, 0.5) * (1 if still else 0.5) if moves else 0.0
        bend = float(rng.choice((0.0, 0.01, 0.025), p=(0.4, 0.3, 0.3)))
        grid = motion_grid(
            rng, frames, self.side, centre, half, motion if frames > 1 else 0.0, bend
        )
        padding = str(rng.choice(("zeros", "border")))
        masks = _masks(rng, torch.from_numpy(labels), grid, candidates, max_objects)
        if masks is None:
            return None
        return sample_images(tensor, grid, padding), masks

    def _view(
        self,
        rng: np.random.Generator,
        labels: np.ndarray,
        candidates: list[tuple[int, ...]],
        source: Source,
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """Centre and half size of the view in [-1, 1]: the whole frame, or around an object at
        some zoom.
        """
        if rng.random() < 0.4:
            grow = rng.uniform(0.85, 1.1, 2)
            return (rng.normal(0, 0.05), rng.normal(0, 0.05)), (float(grow[0]), float(grow[1]))
        height, width = labels.shape
        group = candidates[rng.integers(len(candidates))]
        rows, columns = np.nonzero(np.isin(labels, group))
        y = (rows.min() + rows.max() + 1) / height - 1
        x = (columns.min() + columns.max() + 1) / width - 1
        # Half extent of the object, as a share of the half frame, and the size it shall have on the
        # input.
        own = max(np.ptp(columns) + 1, 1) / width, max(np.ptp(rows) + 1, 1) / height
        wanted = math.exp(rng.uniform(math.log(12), math.log(self.side))) / self.side
        zoom = max(own) / wanted
        # Neither enlarge beyond recognition nor show much empty space around the frame.
        zoom = float(np.clip(zoom, 12 / min(height, width), 1.15))
        aspect = math.exp(rng.normal(0, 0.15))
        half = zoom * aspect, zoom / aspect
        if height != width and rng.random() < 0.5:  # keep the pixels square
            long = max(height, width)
            half = half[0] * long / width, half[1] * long / height
        spread = 0.5 * max(0.0, 1 - wanted)
        x += rng.uniform(-1, 1) * half[0] * spread
        y += rng.uniform(-1, 1) * half[1] * spread
        # Little of the view lies outside the frame.
        x = np.clip(x, -max(0.1, 1.15 - half[0]), max(0.1, 1.15 - half[0]))
        y = np.clip(y, -max(0.1, 1.15 - half[1]), max(0.1, 1.15 - half[1]))
        return (float(x), float(y)), (float(half[0]), float(half[1]))


def _visible(labels: np.ndarray, instances: bool) -> list[tuple[int, ...]]:
    """The objects on a frame, each as the ids that make it: every id and, if they are classes,
    all as one.
    """
    ids: list[tuple[int, ...]] = [(int(i),) for i in np.unique(labels) if i != 0]
    if not instances and len(ids) > 1:
        ids.append(tuple(i for own in ids for i in own))
    return ids


def _masks(
    rng: np.random.Generator,
    labels: Tensor,
    grid: Tensor,
    candidates: list[tuple[int, ...]],
    max_objects: int,
) -> Tensor | None:
    """Masks of the objects that the view shows on the first frame, (N, T, S, S) bool; None
    without any.
    """
    side = grid.shape[1]
    nearest = F.grid_sample(
        labels[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    ).to(labels.dtype)[:, 0]
    area = {
        int(i): int(n) for i, n in zip(*torch.unique(nearest[0], return_counts=True), strict=True)
    }
    shown = [
        group
        for group in candidates
        if _MIN_AREA <= sum(area.get(i, 0) for i in group) <= 0.8 * side * side
    ]
    if not shown:
        return None
    picked = [shown[i] for i in rng.permutation(len(shown))[:max_objects]]
    magnified = (grid[:, :, 1:] - grid[:, :, :-1]).norm(dim=-1).median() * labels.shape[
        -1
    ] / 2 < 0.7
    masks = []
    for group in picked:
        if magnified and len(picked) <= 8:  # a smooth outline in place of a staircase
            own = torch.isin(labels, torch.tensor(group, dtype=labels.dtype))[:, None].float()
            soft = F.grid_sample(own, grid, padding_mode="zeros", align_corners=False)[:, 0]
            masks.append(soft >= 0.5)
        else:
            masks.append(torch.isin(nearest, torch.tensor(group, dtype=nearest.dtype)))
    stacked = torch.stack(masks)
    stacked = stacked[stacked[:, 0].flatten(1).sum(1) >= _MIN_AREA]
    return stacked if len(stacked) else None


def _walk(rng: np.random.Generator, start: int, area: np.ndarray, frames: int) -> np.ndarray:
    """Frames of a clip: from ``start`` in one direction with uneven steps, often past the object's
    end.

    Args:
        area: (T,) pixels of the object on each frame of its sequence.

    Returns:
        (frames,) indices; the last frame of the sequence is repeated where it ends first.
    """
    if frames == 1 or len(area) == 1:
        return np.full(frames, start)
    direction = int(rng.choice((-1, 1)))
    largest = int(rng.choice((1, 2, 3, 4), p=(0.65, 0.2, 0.1, 0.05)))
    ahead = area[start::direction]
    end = int(np.argmin(ahead > 0)) if (ahead == 0).any() else 0
    if end and rng.random() < 0.65:
        mean = end * rng.uniform(0.9, 2.0) / (frames - 1)
        largest = int(np.clip(round(2 * mean - 1), 1, 4))
    steps = rng.integers(1, largest + 1, frames - 1)
    if len(ahead) - 1 < steps.sum() * 0.6:
        direction = -direction
    path = start + direction * np.concatenate([[0], np.cumsum(steps)])
    return np.clip(path, 0, len(area) - 1)


class BatchDataset(Dataset[Batch]):
    """Batches by number: the same seed and number give the same batch, so that a resumed run
    repeats nothing.
    """

    def __init__(
        self,
        sampler: ClipSampler,
        seed: int,
        frames: tuple[int, int],
        clips: int,
        objects: int,
        rank: int = 0,
    ) -> None:
        """
        Args:
            frames: least and greatest length of clips; a batch has one length.
            clips: clips in a batch.
            objects: most objects of a clip.
            rank: processes that train together have batches of equal length, each its own.
        """
        self.sampler, self.seed, self.rank = sampler, seed, rank
        self.frames, self.clips, self.objects = frames, clips, objects

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, number: int) -> Batch:
        shared = np.random.default_rng((self.seed, number))
        frames = int(shared.integers(self.frames[0], self.frames[1] + 1))
        rng = np.random.default_rng((self.seed, number, self.rank))
        images, masks, clip = [], [], []
        for index in range(self.clips):
            frame_images, object_masks = self.sampler.clip(rng, frames, self.objects)
            images.append(frame_images)
            masks.append(object_masks)
            clip += [index] * len(object_masks)
        together, objects = torch.stack(images), torch.cat(masks)
        if frames > 1 and self.clips > 1 and rng.random() < _CUT_SHARE:
            cut = int(rng.integers(1, frames))  # from here on every clip shows what another does
            together[:, cut:] = together.roll(1, 0)[:, cut:]
            objects[:, cut:] = False
        length = int(rng.choice((frames, 16, int(rng.integers(frames, 17)))))
        return Batch(together, objects, torch.tensor(clip), max(length, 2))


def batches(dataset: BatchDataset, start: int, workers: int) -> Iterator[Batch]:
    """Endless batches from number ``start`` on, made ahead in worker processes."""
    numbers = range(start, len(dataset))
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    return iter(loader)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
