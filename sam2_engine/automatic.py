"""All objects of one frame, without anybody's prompts.

The model is asked at many places (`sam2_engine.seeds`); what it answers is filtered by how sure it
is, and of what overlaps the better is kept (Kirillov et al., 2023, section 4 and B). The parameters
have the names of the published generator where they mean the same.

    found = find_objects(model, frame, seeds="classical")
    labels = labels_image(found, frame.shape[:2])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sam2_engine.frames import FrameSource, Windows, sample_window
from sam2_engine.holes import fill_small_holes
from sam2_engine.masks import tight_box
from sam2_engine.model import SAM2, ImageFeatures
from sam2_engine.seeds import (
    Seeds,
    classical_seeds,
    contrast_seeds,
    grid_seeds,
    label_seeds,
    typical_diameter,
)

SeedKind = Literal["grid", "contrast", "classical"]
Crop = tuple[slice, slice]
"""Rows and columns of a frame."""

_PIXELS_AT_ONCE = 1 << 24  # logits at the frame's size
_SURE = 8.0  # the logit in the middle of a region that is given as a seed
_BORDER = 1  # pixels: a mask so near to a tile's border is cut off there


@dataclass(frozen=True)
class Rules:
    """How objects are asked for and which are kept; see docs/automatic.md for what suits what."""

    points_per_side: int = 32
    """Of the grid on the whole frame."""
    points_per_batch: int = 64
    """Seeds that are asked for together; bounds the memory."""
    pred_iou_thresh: float = 0.4
    """Keep masks that the model thinks fit at least so well, 0 to 1."""
    stability_score_thresh: float = 0.7
    """Keep masks that change so little when the threshold moves, 0 to 1."""
    stability_score_offset: float = 1.0
    """By how much it moves, in logits, to either side."""
    box_nms_thresh: float = 0.7
    """Of masks whose boxes overlap by so much (IoU), the better is kept."""
    max_covered: float = 0.3
    """A mask is left out of which better ones cover more than this share; 1 keeps parts of
    wholes, too, as the published generator does."""
    crop_n_layers: int = 0
    """Layers of crops beside the whole frame; layer n has 2**n crops along each side."""
    crop_overlap_ratio: float = 512 / 1500
    """By how much of the frame the crops of the first layer overlap; half of that in the next."""
    crop_n_points_downscale_factor: int = 1
    """The grid of layer n has points_per_side / factor**n points along each side."""
    tile_size: int | None = None
    """Look at square tiles of so many pixels in place of the whole frame, overlapping by half.
    The model's image size sees the frame at its own resolution, less than that enlarges it."""
    min_mask_region_area: int = 0
    """Fill holes and remove specks of up to so many pixels."""
    min_area: int = 1
    max_area: float = 0.5
    """Keep masks of at least so many pixels, and of at most this share of the frame."""
    keep_border: bool = True
    """Keep masks that reach the frame's border."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A mask that may be an object."""

    point: tuple[float, float]
    """y, x of the seed."""
    box: tuple[int, int, int, int]
    """y0, x0, y1, x1 of the rows and columns that the mask covers, y1 and x1 not included."""
    bits: NDArray[np.uint8] = field(repr=False)
    """The mask within the box, a bit for each pixel (np.packbits along x)."""
    pixels: int
    iou: float
    """What the model thinks of it, 0 to 1."""
    stability: float
    """IoU of the masks at a higher and a lower threshold, 0 to 1."""

    @property
    def score(self) -> float:
        """By which the better of two is told, 0 to 1: predicted IoU times stability."""
        return self.iou * self.stability

    @property
    def area(self) -> Crop:
        """The rows and columns of the box."""
        y0, x0, y1, x1 = self.box
        return slice(y0, y1), slice(x0, x1)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(y1 - y0, x1 - x0), the mask within its box."""
        width = self.box[3] - self.box[1]
        return np.unpackbits(self.bits, axis=1, count=width).astype(np.bool_)

    def on_frame(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """(H, W), True on the object."""
        mask = np.zeros(shape, np.bool_)
        mask[self.area] = self.mask
        return mask


@dataclass(frozen=True, eq=False)
class Search:
    """A search under way: after `done` of `total` seeds."""

    done: int
    total: int
    shape: tuple[int, int]
    rules: Rules
    passed: Sequence[Candidate] = field(repr=False)
    """All masks that passed the filters, overlapping as they do."""

    @property
    def candidates(self) -> list[Candidate]:
        """The best of them, best first; computed on each access."""
        return best_of(self.passed, self.shape, self.rules)


def find_objects(
    model: SAM2,
    frame: ArrayLike,
    seeds: SeedKind | Seeds | ArrayLike = "grid",
    rules: Rules | None = None,
    *,
    diameter: float | None = None,
    window: Windows | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Candidate]:
    """The objects of a frame, best first. `search` does the same step by step, and can be stopped.

    Args:
        model: in eval mode, on the device to compute on.
        frame: (H, W) or (H, W, C) as for `SequencePredictor`.
        seeds: where to ask: the name of a way to find places, places of your own (`Seeds`, or
            (N, 2) points y, x), or a labels image (H, W) of whole numbers whose instances are asked
            for by box, point and region.
        rules: by default those that suited the training data of the benchmark best.
        diameter: of a typical object in pixels, for "contrast" and "classical"; by default a guess.
        window: intensities shown to the model as black and white; by default percentiles.
        progress: called with the number of seeds that are done and of all.

    Raises:
        ValueError: a frame that is no image, unknown seeds, or points outside.
    """
    steps = search(model, frame, seeds, rules, diameter=diameter, window=window)
    return finished(steps, progress)


def search(
    model: SAM2,
    frame: ArrayLike,
    seeds: SeedKind | Seeds | ArrayLike = "grid",
    rules: Rules | None = None,
    *,
    diameter: float | None = None,
    window: Windows | None = None,
) -> Iterator[Search]:
    """As `find_objects`, yielding after every batch of seeds; close the generator to stop.

    The call itself raises what is wrong with the arguments.
    """
    rules = rules or Rules()
    image = np.asarray(frame)
    if window is None:
        window = sample_window([image])
    shape = FrameSource([image], model.image_size, window, "pad").shape
    asked = _as_seeds(seeds, image, rules, diameter)
    if asked is None and rules.tile_size is not None:
        asked = grid_seeds(shape, rules.points_per_side)
    parts = _grid_parts(shape, rules) if asked is None else _seed_parts(asked, shape, rules)
    return _run(model, image, window, rules, list(parts))


def finished(
    steps: Iterator[Search], progress: Callable[[int, int], object] | None = None
) -> list[Candidate]:
    """What a search has found at its end; `progress` as for `find_objects`."""
    found: list[Candidate] = []
    for state in steps:
        if progress is not None:
            progress(state.done, state.total)
        if state.done == state.total:
            found = state.candidates
    return found


def best_of(
    candidates: Sequence[Candidate], shape: tuple[int, int], rules: Rules | None = None
) -> list[Candidate]:
    """Of what overlaps, the better, best first, by `box_nms_thresh` and `max_covered`.

    shape: of the frame, H and W.
    """
    rules = rules or Rules()
    taken = np.zeros(shape, np.bool_)
    kept: list[Candidate] = []
    boxes = np.empty((len(candidates), 4))
    for one in sorted(candidates, key=lambda one: -one.score):
        if (_box_ious(np.array(one.box), boxes[: len(kept)]) > rules.box_nms_thresh).any():
            continue
        mask = one.mask
        if (mask & taken[one.area]).sum() > rules.max_covered * one.pixels:
            continue
        taken[one.area] |= mask
        boxes[len(kept)] = one.box
        kept.append(one)
    return kept


def labels_image(candidates: Sequence[Candidate], shape: tuple[int, int]) -> NDArray[np.int32]:
    """(H, W) n + 1 where candidate n is; where several are, the one that comes first."""
    labels = np.zeros(shape, np.int32)
    for index in range(len(candidates) - 1, -1, -1):
        labels[candidates[index].area][candidates[index].mask] = index + 1
    return labels


# -- where to ask ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Part:
    """The seeds that are asked for in one crop of the frame."""

    crop: Crop
    seeds: Seeds


def _as_seeds(
    seeds: SeedKind | Seeds | ArrayLike, image: NDArray[Any], rules: Rules, diameter: float | None
) -> Seeds | None:
    """None for the grid, which each crop has of its own."""
    if isinstance(seeds, Seeds):
        found = seeds
    elif isinstance(seeds, str):
        if seeds == "grid":
            return None
        if seeds not in ("contrast", "classical"):
            raise ValueError(f'seeds must be "grid", "contrast" or "classical", not {seeds!r}.')
        diameter = typical_diameter(image) if diameter is None else diameter
        if not diameter > 0:
            raise ValueError(f"The diameter of an object is above 0 pixels, not {diameter:g}.")
        make = contrast_seeds if seeds == "contrast" else classical_seeds
        found = make(image, diameter)
    else:
        given = np.asarray(seeds)
        if given.shape == image.shape[:2] and given.dtype.kind in "bui":
            found = label_seeds(given)
        elif given.ndim == 2 and given.shape[1] == 2:
            found = Seeds(given.astype(np.float32))
        else:
            raise ValueError(
                f"Seeds are (N, 2) points or a labels image of the frame's size, "
                f"{image.shape[0]} x {image.shape[1]}, not an array of {given.shape}."
            )
    outside = (found.points < -0.5) | (found.points > np.array(image.shape[:2]) - 0.5)
    if outside.any():
        y, x = found.points[outside.any(axis=1)][0]
        raise ValueError(f"The seed at y={y:g}, x={x:g} lies outside the image.")
    return found


def _grid_parts(shape: tuple[int, int], rules: Rules) -> Iterator[_Part]:
    for layer in range(rules.crop_n_layers + 1):
        count = max(1, rules.points_per_side // rules.crop_n_points_downscale_factor**layer)
        for crop in crop_areas(shape, layer, rules.crop_overlap_ratio):
            size = crop[0].stop - crop[0].start, crop[1].stop - crop[1].start
            start = np.array([side.start for side in crop], np.float32)
            yield _Part(crop, Seeds(grid_seeds(size, count).points + start))


def _seed_parts(seeds: Seeds, shape: tuple[int, int], rules: Rules) -> Iterator[_Part]:
    """Each seed in the tile in whose middle it is, or in the whole frame if it fits in no tile."""
    whole: Crop = (slice(0, shape[0]), slice(0, shape[1]))
    tiles = [whole] if rules.tile_size is None else tile_areas(shape, rules.tile_size)
    first = last = seeds.points
    if seeds.boxes is not None:
        first, last = seeds.boxes[:, :2], seeds.boxes[:, 2:]
    room = np.empty((len(tiles), len(seeds)))
    for index, tile in enumerate(tiles):
        start = np.array([side.start for side in tile])
        stop = np.array([side.stop for side in tile])
        before = np.where(start == 0, np.inf, first - start)
        after = np.where(stop == np.array(shape), np.inf, stop - 1 - last)
        inside = ((seeds.points >= start - 0.5) & (seeds.points <= stop - 0.5)).all(axis=1)
        room[index] = np.where(inside, np.minimum(before, after).min(axis=1), -np.inf)
    # Where there is as much room in several, the first.
    chosen = np.where(room.max(axis=0) > _BORDER, room.argmax(axis=0), -1)
    for index, crop in [*enumerate(tiles), (-1, whole)]:
        own = np.flatnonzero(chosen == index)
        if len(own):
            yield _Part(crop, _select(seeds, own))


def _select(seeds: Seeds, indices: NDArray[np.intp]) -> Seeds:
    regions = None
    if seeds.regions is not None:
        numbers = np.zeros(len(seeds) + 1, np.int32)
        numbers[indices + 1] = np.arange(1, len(indices) + 1)
        regions = numbers[seeds.regions]
    boxes = None if seeds.boxes is None else seeds.boxes[indices]
    return Seeds(seeds.points[indices], boxes, regions)


def crop_areas(shape: tuple[int, int], layer: int, overlap_ratio: float) -> list[Crop]:
    """The 2**layer x 2**layer overlapping crops of the published generator; layer 0: the frame."""
    count = 2**layer
    overlap = int(overlap_ratio * min(shape) * 2 / count) if layer else 0
    sides = []
    for length in shape:
        size = int(np.ceil((overlap * (count - 1) + length) / count))
        starts = [(size - overlap) * n for n in range(count)]
        sides.append([slice(start, min(start + size, length)) for start in starts])
    return [(rows, columns) for rows in sides[0] for columns in sides[1]]


def tile_areas(shape: tuple[int, int], size: int) -> list[Crop]:
    """Squares of `size` pixels that cover a frame and overlap by half or more."""
    sides = []
    for length in shape:
        side = min(size, length)
        count = 1 + int(np.ceil(max(length - side, 0) / max(side / 2, 1)))
        starts = np.linspace(0, length - side, count).round().astype(int)
        sides.append([slice(int(start), int(start) + side) for start in starts])
    return [(rows, columns) for rows in sides[0] for columns in sides[1]]


# -- asking ----------------------------------------------------------------------------------------


def _run(
    model: SAM2, image: NDArray[Any], window: Windows, rules: Rules, parts: Sequence[_Part]
) -> Iterator[Search]:
    shape = image.shape[0], image.shape[1]
    total = sum(len(part.seeds) for part in parts)
    done = 0
    passed: list[Candidate] = []
    if not total:
        yield Search(0, 0, shape, rules, passed)
    for part in parts:
        crop = FrameSource([image[part.crop]], model.image_size, window, "pad")
        features = _encode(model, crop)
        for start in range(0, len(part.seeds), rules.points_per_batch):
            stop = min(start + rules.points_per_batch, len(part.seeds))
            passed += _ask(model, features, crop, part, range(start, stop), shape, rules)
            done += stop - start
            yield Search(done, total, shape, rules, passed)


@torch.inference_mode()
def _encode(model: SAM2, crop: FrameSource) -> ImageFeatures:
    return model.encode_image(crop[0][None].to(model.device))


@torch.inference_mode()
def _ask(
    model: SAM2,
    features: ImageFeatures,
    crop: FrameSource,
    part: _Part,
    batch: range,
    shape: tuple[int, int],
    rules: Rules,
) -> list[Candidate]:
    """The masks at a batch of the part's seeds that pass the filters."""
    seeds, geometry = part.seeds, crop.geometry
    origin = np.array([part.crop[0].start, part.crop[1].start], np.float32)
    own = slice(batch.start, batch.stop)
    yx = seeds.points[own, None] - origin
    signs = np.ones((len(batch), 1), np.int64)
    if seeds.boxes is not None:
        corners = seeds.boxes[own].reshape(-1, 2, 2) - origin
        yx = np.concatenate((corners.clip(-0.5, np.array(crop.shape) - 0.5), yx), axis=1)
        signs = np.concatenate((np.tile([2, 3], (len(batch), 1)), signs), axis=1)
    placed = geometry.to_model(yx.reshape(-1, 2).astype(np.float32)).reshape(yx.shape)
    mask_input = None
    if seeds.regions is not None:
        numbers = np.arange(batch.start, batch.stop)[:, None, None] + 1
        regions = torch.from_numpy(seeds.regions[part.crop][None] == numbers)
        shares = geometry.mask_to_low_res(regions[:, None].to(model.device))
        mask_input = (2 * shares - 1) * _SURE
    shared = features.expand(len(batch))
    decoded = model.decode_masks(
        shared,
        model.without_memory(shared),
        torch.from_numpy(placed).to(model.device),
        torch.from_numpy(signs).to(model.device),
        mask_input,
        multimask=seeds.boxes is None,
    )
    sure = (decoded.ious >= rules.pred_iou_thresh).nonzero().cpu().tolist()
    found = []
    step = max(1, _PIXELS_AT_ONCE // (crop.shape[0] * crop.shape[1]))
    for first in range(0, len(sure), step):
        chosen = sure[first : first + step]
        low_res = torch.stack([decoded.candidates[row, n] for row, n in chosen])[:, None]
        logits = geometry.logits_to_frame(low_res)[:, 0]
        stability = _stability(logits, rules.stability_score_offset)
        for (row, n), one, stable in zip(chosen, logits, stability.tolist(), strict=True):
            if stable < rules.stability_score_thresh:
                continue
            covered = _covered(one, part.crop, shape, rules)
            if covered is not None:
                y, x = seeds.points[batch[row]].tolist()
                iou = float(decoded.ious[row, n])
                found.append(Candidate((y, x), *covered, iou=iou, stability=stable))
    return found


def _stability(logits: Tensor, offset: float) -> Tensor:
    """(B,) of (B, H, W): IoU of the masks at thresholds +offset and -offset."""
    inner = (logits > offset).flatten(1).sum(dim=1).float()
    outer = (logits > -offset).flatten(1).sum(dim=1).float()
    return inner / outer.clamp(min=1)


def _covered(
    logits: Tensor, crop: Crop, shape: tuple[int, int], rules: Rules
) -> tuple[tuple[int, int, int, int], NDArray[np.uint8], int] | None:
    """Box, bits and pixels, as a `Candidate` has them, of the mask of (H, W) logits of a crop; None
    where a rule leaves it out.
    """
    rows = (logits > 0).any(dim=1).nonzero()[:, 0]
    columns = (logits > 0).any(dim=0).nonzero()[:, 0]
    if not len(rows):
        return None
    area = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    inside = logits[area]
    if rules.min_mask_region_area:  # an edge around it, so that no bay of it is a hole
        around = torch.nn.functional.pad(inside[None, None], (1, 1, 1, 1), value=-1.0)
        inside = fill_small_holes(around, rules.min_mask_region_area)[0, 0, 1:-1, 1:-1]
    mask = (inside > 0).cpu().numpy()
    y0, x0, y1, x1 = tight_box(mask)  # smaller, where specks have been removed
    mask = mask[y0 : y1 + 1, x0 : x1 + 1]
    top, left = (part.start + side.start for part, side in zip(area, crop, strict=True))
    y0, x0, y1, x1 = y0 + top, x0 + left, y1 + 1 + top, x1 + 1 + left
    pixels = int(mask.sum())
    if pixels < rules.min_area or pixels > rules.max_area * shape[0] * shape[1]:
        return None
    for (start, stop), side, length in zip(((y0, y1), (x0, x1)), crop, shape, strict=True):
        low, high = start - side.start < _BORDER, side.stop - stop < _BORDER
        if (low and side.start > 0) or (high and side.stop < length):
            return None  # cut off by the crop; another one shows the whole
        if not rules.keep_border and (start == 0 or stop == length):
            return None
    return (y0, x0, y1, x1), np.packbits(mask, axis=1), pixels


def _box_ious(box: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) IoU of a box y0, x0, y1, x1 with (N, 4) others."""
    overlap = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = overlap.clip(min=0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    ious: NDArray[np.float64] = shared / ((box[2:] - box[:2]).prod() + areas - shared)
    return ious
