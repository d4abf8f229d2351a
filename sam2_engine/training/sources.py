"""Labelled images and sequences to learn from: as a manifest lists them, or from memory.

docs/benchmarks.md describes the manifest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Source:
    """One image or sequence with its labels, in memory."""

    name: str
    images: np.ndarray
    """(T, H, W) or (T, H, W, 3) float16, the sequence's 0.5 to 99.5 percentiles at 0 and 1, not
    clipped.
    """
    labels: np.ndarray
    """(T, H, W) integers."""
    instances: bool
    volume: bool
    """Whether the frames are slices of a volume, so that any axis can be the sequence."""

    @property
    def group(self) -> str:
        """The data set, the part of the name before the slash."""
        return self.name.split("/")[0]

    def areas(self, axis: int) -> np.ndarray:
        """(K, T) pixels on each slice along an axis: of all objects and, if they are classes, of
        each.
        """
        known: dict[int, np.ndarray] = self.__dict__.setdefault("_areas", {})
        if axis not in known:
            others = tuple(a for a in range(3) if a != axis)
            wanted = [self.labels > 0]
            if not self.instances:
                wanted += [self.labels == i for i in np.unique(self.labels) if i != 0]
            known[axis] = np.stack([mask.sum(others) for mask in wanted])
        return known[axis]


def load_sources(manifest: str | Path, split: str = "train") -> list[Source]:
    """Read every item of one split into memory.

    Raises:
        FileNotFoundError: the manifest or a file that it names is missing.
        ValueError: the split has no items, or an item's image and labels differ in shape.
    """
    manifest = Path(manifest)
    if not manifest.is_file():
        raise FileNotFoundError(
            f"There is no data manifest at {manifest}. Give its path with --data."
        )
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))["items"]
        items = [item for item in listed if item["split"] == split]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{manifest} is not a manifest with a list of items.") from error
    if not items:
        raise ValueError(f"{manifest} lists no items of the split {split!r}.")
    return [_load(item, manifest.parent) for item in items]


def _load(item: dict, folder: Path) -> Source:
    files = folder / item["image"], folder / item["labels"]
    images, labels = read_labelled(item["name"], *files, is_picture=item["kind"] == "image")
    return Source(
        name=item["name"],
        images=window(images),
        labels=as_int32(labels),
        instances=bool(item["instances"]),
        volume=item["kind"] == "volume",
    )


def read_labelled(
    name: str, image: Path, labels: Path, is_picture: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Read an item of a manifest: frames (T, H, W) or (T, H, W, 3), and their labels (T, H, W).

    Args:
        name: for messages.
        is_picture: whether the files hold one frame alone.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: image and labels differ in shape.
    """
    frames, truth = _read(image), _read(labels)
    if is_picture:
        frames, truth = frames[None], truth[None]
    if frames.ndim == 4:
        frames = frames[..., :3]  # without alpha
    if frames.shape[:3] != truth.shape:
        raise ValueError(
            f"{name}: the image has shape {frames.shape} and its labels {truth.shape}."
        )
    return frames, truth


def _read(path: Path) -> np.ndarray:
    """An image file, frames first: NIfTI (X, Y, Z) as (Z, X, Y), TIFF and PNG as they are."""
    if not path.is_file():
        raise FileNotFoundError(f"The manifest names {path}, which does not exist.")
    if path.name.endswith((".nii", ".nii.gz")):
        import nibabel

        values = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
        return np.moveaxis(values, -1, 0)
    if path.suffix in (".tif", ".tiff"):
        import tifffile

        return tifffile.imread(path)
    from skimage.io import imread

    return imread(path)


def as_int32(labels: np.ndarray) -> np.ndarray:
    """Ids of objects from 0, of any type; numbered anew where they are too large."""
    if labels.max() > np.iinfo(np.int32).max:
        ids = np.union1d(labels, np.zeros(1, labels.dtype))
        labels = np.searchsorted(ids, labels)
    return labels.astype(np.int32)


def window(image: np.ndarray) -> np.ndarray:
    """Scale so that the 0.5 and 99.5 percentiles become 0 and 1, without clipping; float16."""
    low, high = np.percentile(image[:: max(1, len(image) // 16)], (0.5, 99.5))
    scaled = (image.astype(np.float32) - low) / max(float(high - low), 1e-6)
    return np.clip(scaled, -1, 3).astype(np.float16)
