"""Items of a data folder as frames and true objects; docs/benchmarks.md describes the format."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam2_engine.training.sources import read_labelled

MAX_INSTANCES_3D = 8
MAX_INSTANCES_2D = 20


@dataclass(frozen=True)
class Item:
    """One line of the manifest; `dataset` is its row in the table."""

    name: str
    dataset: str
    kind: str  # volume, timelapse or image
    image: Path
    labels: Path
    instances: bool
    apart: bool  # its truth is not of the kind that means are taken over


@dataclass(frozen=True)
class Target:
    """One object to segment."""

    part: str  # "" for instances, else "label 1", "label 2", ..., "union"
    truth: np.ndarray  # (N, H, W) bool


def read_items(folder: Path, split: str, limit: int | None = None) -> list[Item]:
    """The items of one split, at most `limit` of each data set, ordered by data set.

    A data set is the part of the name before the slash, and apart by modality where there are
    several.
    Raises SystemExit with one sentence if the folder has no manifest or the split has no items.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise SystemExit(
            f"No manifest.json in {folder}: give a folder in the format of docs/benchmarks.md."
        )
    entries = json.loads(path.read_text(encoding="utf-8"))["items"]
    modalities: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        modalities[entry["name"].split("/")[0]].add(entry["modality"])

    items: list[Item] = []
    taken: dict[str, int] = defaultdict(int)
    for entry in entries:
        if entry["split"] != split:
            continue
        family = entry["name"].split("/")[0]
        dataset = f"{family} {entry['modality']}" if len(modalities[family]) > 1 else family
        taken[dataset] += 1
        if limit is not None and taken[dataset] > limit:
            continue
        items.append(
            Item(
                name=entry["name"],
                dataset=dataset,
                kind=entry["kind"],
                image=folder / entry["image"],
                labels=folder / entry["labels"],
                instances=bool(entry["instances"]),
                apart="report apart" in (entry.get("note") or ""),
            )
        )
    if not items:
        known = ", ".join(sorted({entry["split"] for entry in entries}))
        raise SystemExit(f"{path} has no items of the split {split!r}; its splits are: {known}.")
    return sorted(items, key=lambda item: item.dataset)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a benchmark on such a folder is told: the items, the model, and where to write."""
    parser.add_argument("--data", type=Path, required=True, help="folder with a manifest.json")
    parser.add_argument("--split", default="dev", help="split of the manifest (default: dev)")
    parser.add_argument("--model", default="nano", help="name or checkpoint (default: nano)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto")
    parser.add_argument("--limit", type=int, help="at most so many items of each data set")
    parser.add_argument("--json", type=Path, help="write rows and summary here too")


def read_frames(item: Item) -> tuple[np.ndarray, np.ndarray]:
    """Frames (N, H, W) or (N, H, W, 3), and their labels (N, H, W)."""
    try:
        return read_labelled(item.name, item.image, item.labels, is_picture=item.kind == "image")
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def read_case(item: Item) -> tuple[np.ndarray, list[Target]]:
    """Frames (N, H, W) or (N, H, W, 3) and the objects to segment in them."""
    frames, labels = read_frames(item)
    return frames, targets(labels, item)


def targets(labels: np.ndarray, item: Item) -> list[Target]:
    """The objects that the protocol takes of labels (N, H, W)."""
    ids, sizes = np.unique(labels[labels > 0], return_counts=True)
    if item.kind == "volume" and item.instances:
        largest = np.argsort(-sizes, kind="stable")[:MAX_INSTANCES_3D]
        return [Target("", labels == i) for i in ids[largest]]
    if item.kind == "volume":
        if len(ids) == 1:
            return [Target(f"label {ids[0]}", labels == ids[0])]
        parts = [Target(f"label {i}", labels == i) for i in ids]
        return [*parts, Target("union", labels > 0)]
    if item.kind == "timelapse":
        ids = ids[np.argsort([first_frame(labels == i) for i in ids], kind="stable")]
        early = [i for i in ids if first_frame(labels == i) == first_frame(labels == ids[0])]
        chosen = spread(early, MAX_INSTANCES_2D)
        chosen += [i for i in ids if i not in early][: MAX_INSTANCES_2D - len(chosen)]
        return [Target("", labels == i) for i in chosen]
    return [Target("", labels == i) for i in spread(list(ids), MAX_INSTANCES_2D)]


def spread(ids: list[int], count: int) -> list[int]:
    """At most `count` of the ids, evenly spread, so that no size or corner is preferred."""
    if len(ids) <= count:
        return ids
    return [ids[round(i)] for i in np.linspace(0, len(ids) - 1, count)]


def first_frame(truth: np.ndarray) -> int:
    """The first frame of (N, H, W) with any true pixel."""
    return int(truth.any(axis=(1, 2)).argmax())


def grey_frames(frames: np.ndarray) -> np.ndarray:
    """Frames as (N, H, W) float32 in 0..1, by the sequence's 0.5 to 99.5 percentiles."""
    grey = frames.astype(np.float32)
    grey = grey.mean(axis=-1) if grey.ndim == 4 else grey
    low, high = np.percentile(grey, (0.5, 99.5))
    return np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
