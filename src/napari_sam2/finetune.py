"""Fine-tune a model on labelled image files, or layers, and enter the result in the model list.

images, labels = ["a.tif", "b.tif"], ["a_labels.tif", "b_labels.tif"]
card = finetune(read_pairs(images, labels), "my-model.safetensors", minutes=10)
card.before, card.after
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_sam2.counted import counted
from napari_sam2.io import ReadError, WriteError, read_labels, read_volume
from napari_sam2.lazy_model import CPU_BFLOAT16, LazyModel
from napari_sam2.segmentation import loaded
from napari_sam2.targets import why_not
from sam2_engine.names import split_size
from sam2_engine.whole_file import write_text

if TYPE_CHECKING:
    from sam2_engine.training.finetune import FineTuned, Score, Status
    from sam2_engine.training.sources import Source

HELD_OUT = 0.2
MINUTES = 10.0
_OTHERS = "other images (synthetic scenes)"
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Card:
    """What a fine-tuned model was made from, and what it can do."""

    name: str
    """In the model list."""
    path: str
    start: str
    """The model that it was trained from."""
    trained_on: tuple[str, ...]
    held_out: tuple[str, ...]
    objects: int
    """That it was trained on."""
    slices: int
    """With objects, that it was trained on."""
    whole_model: bool
    steps: int
    """Of the weights that were kept."""
    seconds: float
    before: Score
    after: Score
    others_before: dict[str, Score]
    others_after: dict[str, Score]
    is_written: bool
    """False where nothing was better than before: then there is no file."""
    is_complete: bool
    """False where it was stopped, and can be resumed."""

    def as_json(self) -> dict[str, Any]:
        """For programs: a score that there is none of is null."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(one) for key, one in value.items()}
            return None if isinstance(value, float) and math.isnan(value) else value

        facts: dict[str, Any] = plain(asdict(self))
        return facts

    def as_text(self) -> str:
        """For people, in Markdown."""
        part = "the whole model" if self.whole_model else "all but the image encoder"
        rows = [("images held out", self.before, self.after)]
        rows += [
            (name, self.others_before[name], self.others_after[name]) for name in self.others_after
        ]
        lines = [
            f"| {name} | {kind} | {getattr(before, kind):.3f} | {getattr(after, kind):.3f} |"
            for name, before, after in rows
            for kind in ("box", "click", "tracked")
            if not math.isnan(getattr(before, kind))
        ]
        table = "\n".join(["| | prompt | before | after |", "|---|---|---|---|", *lines])
        return (
            f"# {self.name}\n\n"
            f"Fine-tuned from {self.start} with napari-sam2: {part}, "
            f"{counted(self.steps, 'step')} in {self.seconds:.0f} s.\n\n"
            f"{table}\n\n"
            "box, click: mean IoU on single slices. tracked: mean Dice of objects followed from "
            "one box.\n\n"
            f"Trained on {counted(self.objects, 'object')} on {counted(self.slices, 'slice')} of: "
            f"{', '.join(self.trained_on)}.\n\n"
            f"Held out, and scored on: {', '.join(self.held_out)}. The weights that were kept are "
            "those that did best on them, which flatters the scores a little.\n"
        )


def read_pairs(
    images: Sequence[str | os.PathLike[str]],
    labels: Sequence[str | os.PathLike[str]],
    labelled_slices_only: bool = False,
) -> list[Source]:
    """Read images and their labels, in the same order, and check that they fit each other.

    Args:
        images: files or folders that ``read_volume`` reads.
        labels: what ``read_labels`` reads.
        labelled_slices_only: slices without any label have not been labelled; else they are taken
            to be empty.

    Raises:
        ReadError: a file cannot be read, there are not equally many, or a pair does not fit, in
            its shape or by where it lies in space.
    """
    if len(images) != len(labels):
        raise ReadError(
            f"There are {len(images)} images and {len(labels)} labels; give the labels of each "
            "image, in the same order."
        )
    sources: list[Source] = []
    for image, own in zip(images, labels, strict=True):
        picture = read_volume(image)
        truth, *_ = read_labels(own, picture)
        is_volume = picture.axes == "zyx" and picture.array.shape[0] > 1
        name = Path(image).name
        sources += sources_of(
            name, picture.array, truth.array, is_volume, None, labelled_slices_only
        )
    return sources


def sources_of(
    name: str,
    images: Any,
    labels: Any,
    is_volume: bool = False,
    slices: Sequence[int] | None = None,
    labelled_slices_only: bool = False,
) -> list[Source]:
    """A labelled image (T, H, W) or (T, H, W, 3) in memory, checked, as what is learnt from.

    Args:
        slices: learn from these slices alone.

    Raises:
        ReadError: it does not fit its labels, has no objects, or is too large for the memory.
    """
    from sam2_engine.training.finetune import DataError, make_source, only_slices

    _check_memory(name, images)
    try:
        source = make_source(name, np.asarray(images), np.asarray(labels), is_volume)
        if slices is None and labelled_slices_only:
            slices = np.flatnonzero(source.labels.any(axis=(1, 2))).tolist()
        return [source] if slices is None else only_slices(source, slices)
    except DataError as error:
        raise ReadError(str(error)) from error


def finetune(
    sources: Sequence[Source],
    output: str | os.PathLike[str],
    *,
    start: str = "nano",
    minutes: float = MINUTES,
    held_out: float = HELD_OUT,
    whole_model: bool = False,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    also: Sequence[Source] = (),
    on_status: Callable[[Status], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Card:
    """Fine-tune a model, write it with its card, and enter it in the model list.

    The card lies beside the weights as NAME.md, and in the weights' file. Until the training is
    complete there is a folder NAME.training with what a stopped one is resumed from.

    Args:
        sources: of `read_pairs`; the last ones are held out.
        output: NAME.safetensors.
        start: the model to go on from, a name or a file.
        minutes: of training; scoring comes on top.
        held_out: share of the sources, or of the slices of a single one.
        whole_model: train the image encoder, too.
        resume: go on with a training that was stopped.
        overwrite: replace the output if it exists, and a training that was stopped.
        also: other images that the model should still do well on; scored, not learnt from.
        on_status, should_stop: as for `fine_tune`.

    Raises, before anything is trained:
        ReadError: there is nothing to learn from or to hold out, or nothing to resume.
        WriteError: the output cannot be written.
        ModelError: the model to start from cannot be loaded.
    """
    from sam2_engine.training.finetune import DataError, fine_tune, split, synthetic_sources
    from sam2_engine.training.trainer import tiny_is_zero

    path = Path(output)
    folder = training_folder(path)
    check_model_target(path, overwrite or resume)
    if not 0 < minutes < 1e5:
        raise ReadError(f"A training lasts some minutes, not {minutes:g}.")
    try:
        train, rest = split(sources, held_out)
    except DataError as error:
        raise ReadError(str(error)) from error
    others = {_OTHERS: synthetic_sources()}
    if also:
        others["other images (given)"] = list(also)
    settings = {
        "start": start,
        "minutes": minutes,
        "held_out": held_out,
        "whole_model": whole_model,
        "images": [(one.name, list(one.labels.shape)) for one in sources],
    }
    _check_settings(folder, settings, resume)
    with tiny_is_zero():
        # What is learnt would be lost in half precision.
        model = loaded(LazyModel(start, "cpu" if device == CPU_BFLOAT16 else device)).float()
        began = time.monotonic()
        try:
            folder.mkdir(exist_ok=True)
            write_text(folder / "settings.json", json.dumps(settings))
            result = fine_tune(
                model,
                train,
                rest,
                folder,
                minutes=minutes,
                whole_model=whole_model,
                others=others,
                resume=resume,
                on_status=on_status,
                should_stop=should_stop,
            )
        except DataError as error:
            raise ReadError(str(error)) from error
    card = _card(path, start, train, rest, whole_model, result, time.monotonic() - began)
    if result.weights is not None:
        model.load_state_dict(result.weights)
        _write(path, model, card)
    if result.is_complete:
        shutil.rmtree(folder, ignore_errors=True)
    return card


def check_model_target(path: Path, overwrite: bool = False) -> None:
    """Raises WriteError where a model cannot be written to a path."""
    # Not from its module: threads that import a package and a module of it at once can deadlock.
    from sam2_engine.weights import model_info

    if path.suffix != _SUFFIX:
        raise WriteError(f"The model cannot be written to {path}: its name must end in {_SUFFIX}.")
    info = model_info(path.stem)
    if info is not None and not info.is_own:
        raise WriteError(f"{path.stem} is the name of a published model; choose another one.")
    name, size = split_size(path.stem)
    if size is not None:
        raise WriteError(
            f"A model cannot be called {path.stem}, which means {name} with an input of {size} "
            "pixels; choose another name."
        )
    if reason := why_not(path, overwrite):
        raise WriteError(f"The model cannot be written to {path}: {reason}.")
    folder = training_folder(path)
    if folder.exists() and not overwrite:
        raise WriteError(
            f"There is a stopped training at {folder}: --resume goes on with it, --overwrite "
            "starts anew."
        )
    if folder.exists() and not (folder / "settings.json").is_file():
        raise WriteError(f"{folder} is something else than a stopped training; remove it first.")


def training_folder(output: Path) -> Path:
    """What a stopped training of a model is resumed from."""
    return output.with_suffix(".training")


def _check_settings(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """A stopped training goes on with what it was started with, and is not lost by accident."""
    if not resume:
        try:
            if folder.exists():
                shutil.rmtree(folder)
        except OSError as error:
            reason = error.strerror or error
            raise WriteError(
                f"The stopped training at {folder} cannot be removed: {reason}; close what is open "
                "of it."
            ) from error
        return
    try:
        known = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"There is no stopped training at {folder} to resume.") from error
    now = json.loads(json.dumps(settings))
    other = [key.replace("_", " ") for key in settings if known.get(key) != now[key]]
    if other:
        raise ReadError(
            f"The training at {folder} was started with other settings ({', '.join(other)}); give "
            "the same, or start anew."
        )


def _check_memory(name: str, images: Any) -> None:
    import psutil

    needed = 8 * math.prod(images.shape)  # as floats, while they are converted, and their labels
    free = psutil.virtual_memory().available
    if needed > free:
        raise ReadError(
            f"{name} needs {needed / 2**30:.1f} GB of memory to learn from, and "
            f"{free / 2**30:.1f} GB are free; cut a part out of it."
        )


def _card(
    path: Path,
    start: str,
    train: Sequence[Source],
    held_out: Sequence[Source],
    whole_model: bool,
    result: FineTuned,
    seconds: float,
) -> Card:
    def names(sources: Sequence[Source]) -> tuple[str, ...]:
        return tuple(
            f"{one.name.partition('/')[2]} ({counted(len(one.labels), 'slice')})" for one in sources
        )

    return Card(
        name=path.stem,
        path=str(path),
        start=start,
        trained_on=names(train),
        held_out=names(held_out),
        objects=sum(len(np.unique(one.labels[one.labels > 0])) for one in train),
        slices=sum(int(one.labels.any(axis=(1, 2)).sum()) for one in train),
        whole_model=whole_model,
        steps=result.best.step,
        seconds=seconds,
        before=result.before,
        after=result.best.score,
        others_before=dict(result.others_before),
        others_after=dict(result.others_after),
        is_written=result.weights is not None,
        is_complete=result.is_complete,
    )


def _write(path: Path, model: Any, card: Card) -> None:
    """Weights, card and the entry in the model list. Raises: WriteError."""
    import torch

    from sam2_engine.weights import add_own_model, model_info, save_model

    try:
        save_model(model, path, torch.float16, card=card.as_json())
        write_text(path.with_suffix(".md"), card.as_text())
        start = card.start if model_info(card.start) else Path(card.start).stem
        title = f"{card.name} (fine-tuned from {start})"
        add_own_model(card.name, path, title, card.start, model.image_size)
    except OSError as error:
        raise WriteError(
            f"{path} could not be written: {error.strerror or error}. What was learnt is kept in "
            f"{training_folder(path)}; resume it."
        ) from error
