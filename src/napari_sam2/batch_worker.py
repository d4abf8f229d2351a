"""One job of a batch, from an image file to a labels file; it runs in any process."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.batch_jobs import Job, TablePrompts
from napari_sam2.measures import FoundObject, found_objects
from napari_sam2.targets import overlap
from sam2_engine.full_memory import WHAT_TAKES_LESS, card_is_full, machine_is_full
from sam2_engine.whole_file import write_text

if TYPE_CHECKING:
    from napari_sam2.io import Volume
    from napari_sam2.lazy_model import LazyModel
    from napari_sam2.session_format import SavedSession

DONE, SKIPPED, INCOMPLETE, FAILED = "done", "done before", "incomplete", "failed"
_BEGUN = "begun"  # in a record: labels that lie there may be of a worker that died
RECORDS = "records"
REPORTS = ("report.html", "report.csv")
_THUMBNAIL = 192  # pixels of the longer side


@dataclass(frozen=True)
class Settings:
    """What is the same for all jobs of a batch."""

    out: Path
    """The folder that labels and records go to."""
    suffix: str = ".nii.gz"
    """Of the labels files, as `write_labels` knows them."""
    model: str | None = None
    """By default "nano", and for sessions the one that they were made with."""
    device: str = "auto"
    compile: bool = False
    """Whether each worker compiles its model, see `sam2_engine.load_model`."""
    is_quiet: bool = False
    """Whether workers print nothing of how long that takes."""
    window: tuple[float, float] | None = None
    axis: int | str = 0
    direction: str = "both"
    closely: bool | None = None
    """As for `segment`; sessions made on an image say it themselves."""
    template_image: Path | None = None
    """Of the template; by default the file that it was made on."""
    threads: int | None = None
    """Of a worker's processor."""
    overwrite: bool = False
    """Whether files may be replaced that are not of a batch, or have been changed since."""
    run: str = ""
    """Another one for each run, which tells what it has done itself from what was done before."""


@dataclass(frozen=True)
class JobResult:
    """What became of a job."""

    name: str
    image: str
    status: str
    """DONE, SKIPPED (an earlier run had done it), INCOMPLETE (slices could not be read; a later run
    does it anew) or FAILED."""
    message: str = ""
    """Why it failed, or is incomplete."""
    seconds: float = 0.0
    output: str = ""
    objects: tuple[FoundObject, ...] = ()
    notes: tuple[str, ...] = ()
    """What the reader found odd, and which marks could not be placed."""
    thumbnail: str = ""
    """A PNG in base64: the slice that shows most of the objects."""
    key: str = ""
    """Equal for equal pixels, prompts, model and settings."""
    run: str = ""
    """In which it was done."""
    written: str = ""
    """A sum over the output as it was written, which tells whether it has been changed since."""


@dataclass
class _Answer:
    labels: NDArray[Any]
    names: Mapping[int, str] = field(default_factory=dict)
    colours: Mapping[int, tuple[float, float, float]] = field(default_factory=dict)
    parents: Mapping[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    missing: str = ""
    """Which slices could not be read; all others are done."""


def run_job(job: Job, settings: Settings) -> JobResult:
    """Segment one image and write its labels and a record, unless an earlier run did so.

    Never raises: what goes wrong is the result's message, a sentence without patient data.
    """
    from napari_sam2.io import ReadError, WriteError
    from napari_sam2.io.guard import reason_of
    from napari_sam2.placement import PlacementError
    from napari_sam2.segmentation import ModelError, PromptError
    from napari_sam2.session_file import SessionFileError
    from sam2_engine.unreadable import UnreadableFrame

    _use_threads(settings.threads)
    begin = time.perf_counter()
    try:
        return _run(job, settings, begin)
    except (
        ReadError,
        WriteError,
        PromptError,
        PlacementError,
        ModelError,
        SessionFileError,
        UnreadableFrame,
    ) as error:
        message = str(error)
    except Exception as error:  # one bad file must not end the run
        message = f"Unexpected {type(error).__name__}: {reason_of(error)}"
        if machine_is_full(error):
            message = f"{job.image} does not fit into this machine's memory."
        elif card_is_full(error):
            message = f"The graphics card's memory was full at {job.image}; {WHAT_TAKES_LESS}."
    seconds = time.perf_counter() - begin
    return JobResult(job.name, str(job.image), FAILED, message, seconds)


def output_of(job: Job, settings: Settings) -> Path:
    """Where a job's labels go."""
    return settings.out / f"{job.name}{settings.suffix}"


def check_outputs(jobs: Sequence[Job], settings: Settings, tables: Sequence[Path] = ()) -> None:
    """That nothing that is read is replaced: images, masks, sessions, templates and tables.

    Raises: WriteError; SessionFileError where a template cannot be read, or does not say which
    image it was made on.
    """
    from napari_sam2.io import WriteError

    read = dict.fromkeys(tables, "table")
    for template in {job.template for job in jobs if job.template is not None}:
        source = _template_image(template, settings)
        read |= {template: "template", source: "image of the template"}
    for job in jobs:
        own = {"session": job.session, "mask": job.mask, "image": job.image}
        read |= {path: what for what, path in own.items() if path is not None}
    written = [settings.out / name for name in REPORTS]
    for job in jobs:
        written += [output_of(job, settings), _record_of(job, settings)]
    if found := overlap(written, read):
        target, source = found
        how = "would replace"
    elif found := overlap(read, written):
        source, target = found
        how = "would lie in"
    else:
        return
    raise WriteError(f"{target} {how} the {read[source]} {source}; give another folder with --out.")


def read_record(job: Job, settings: Settings) -> JobResult | None:
    """What an earlier run said of a job, if that is there and whole."""
    try:
        found = json.loads(_record_of(job, settings).read_text(encoding="utf-8"))
        objects = tuple(FoundObject(**one) for one in found.pop("objects"))
        return JobResult(**found | {"objects": objects, "notes": tuple(found["notes"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _run(job: Job, settings: Settings, begin: float) -> JobResult:
    from napari_sam2.io import check_target, read_volume, write_labels

    volume = read_volume(job.image, volume=job.volume, channel=job.channel, series=job.series)
    lazy = _model(_model_name(job, settings), settings)
    key = _key(job, settings, volume, lazy)
    output, record = output_of(job, settings), read_record(job, settings)
    if output.exists() and record is not None and record.key == key and record.status == DONE:
        # Of this run: a worker died before it could tell of it.
        is_own = settings.run != "" and record.run == settings.run
        return record if is_own else replace(record, status=SKIPPED)
    check_outputs([job], settings)
    check_target(output, overwrite=True, source=job.image, like=volume)
    _check_replaceable(output, record, settings)
    answer = _answer(job, settings, volume, lazy)
    there = _check_replaceable(output, record, settings)  # it took a while
    begun = JobResult(job.name, str(job.image), _BEGUN, run=settings.run)
    _write_record(job, settings, replace(begun, written=there))
    write_labels(
        output,
        answer.labels,
        volume,
        overwrite=True,
        names=answer.names,
        colours=answer.colours,
        parents=answer.parents,
    )
    written = _sum(output) or ""
    _write_record(job, settings, replace(begun, written=written))
    result = JobResult(
        name=job.name,
        image=str(job.image),
        status=INCOMPLETE if answer.missing else DONE,
        message=answer.missing,
        seconds=time.perf_counter() - begin,
        output=output.name,
        objects=found_objects(answer.labels, volume, answer.names),
        notes=(*volume.notes, *answer.notes),
        thumbnail=_thumbnail(volume, answer.labels, settings.window),
        key=key,
        run=settings.run,
        written=written,
    )
    _write_record(job, settings, result)
    return result


def _check_replaceable(output: Path, record: JobResult | None, settings: Settings) -> str:
    """That labels which are already there are as a batch wrote them. Returns a sum over them, ""
    for none. Raises: WriteError."""
    from napari_sam2.io import WriteError

    there = _sum(output) or ""
    if settings.overwrite or not there:
        return there
    if record is None:
        raise WriteError(f"{output} exists and is not of a batch; use --overwrite.")
    # A worker of this run may have died before it could say what it wrote.
    is_own = record.status == _BEGUN and settings.run != "" and record.run == settings.run
    if not is_own and record.written != there:
        raise WriteError(
            f"{output} would be done anew, but has been changed since a batch wrote it. Move it "
            "away to keep it, or use --overwrite to replace all such files."
        )
    return there


def _answer(job: Job, settings: Settings, volume: Volume, lazy: LazyModel) -> _Answer:
    if job.session is not None:
        return _from_session(job.session, settings, volume, lazy)
    if job.template is not None:
        return _from_template(job.template, settings, volume, lazy)
    from napari_sam2.io.labels import read_mask
    from napari_sam2.segmentation import loaded, parents_of_masks, segment
    from napari_sam2.session import UnreadableSlices

    prompts, missing = job.prompts or TablePrompts(), ""
    masks, parents = None, {}
    if job.mask is not None:
        masks = read_mask(job.mask, volume)
        parents = parents_of_masks(job.mask, masks, settings.axis)
    try:
        labels = segment(
            volume,
            boxes=prompts.boxes,  # type: ignore[arg-type]
            points=prompts.points,  # type: ignore[arg-type]
            negative_points=prompts.negative_points,  # type: ignore[arg-type]
            masks=masks,
            ends=prompts.ends,
            parents=parents,
            axis=settings.axis,
            direction=settings.direction,  # type: ignore[arg-type]
            model=loaded(lazy),
            window=settings.window,
            closely=settings.closely,
        )
    except UnreadableSlices as error:
        labels, missing = error.session.labels, str(error)
    return _Answer(labels, prompts.names, parents=parents, missing=missing)


def _from_session(path: Path, settings: Settings, volume: Volume, lazy: LazyModel) -> _Answer:
    """A session of this image, computed anew."""
    from napari_sam2.saved_image import SessionImage
    from napari_sam2.session import UnreadableSlices
    from napari_sam2.session_file import replay

    saved = _saved(settings.run, path)
    image = SessionImage(volume, saved.image)
    said, missing = saved.state, ""
    try:
        found = replay(path, image.array, model=lazy)
    except UnreadableSlices as error:
        found, missing = error.session.labels, str(error)
    labels = image.labels(found)
    return _Answer(labels, said.names, said.colours, said.parents, missing=missing)


def _from_template(path: Path, settings: Settings, volume: Volume, lazy: LazyModel) -> _Answer:
    """Prompts of another image, placed on this one."""
    from napari_sam2.placement import Placement, place
    from napari_sam2.segmentation import loaded, look_closely_at_all
    from napari_sam2.session import Session, UnreadableSlices
    from napari_sam2.windows import CT_WINDOWS

    saved = _saved(settings.run, path)
    template = _place_of_template(settings.run, path, _template_image(path, settings))
    window = settings.window
    if window is None and saved.state.window in [
        (level - width / 2, level + width / 2) for level, width in CT_WINDOWS.values()
    ]:
        window = saved.state.window  # type: ignore[assignment]
    loaded(lazy)
    session = Session(
        volume.array,
        lazy,
        window=window,
        rgb=volume.array.ndim == 4,
        spacing=volume.spacing,
        closely=settings.closely is None and saved.state.closely,
    )
    notes = place(saved.state, session, Placement.between(template, volume))
    for view in session.prompted_sequences:
        session.show(view.key)
        if settings.closely:
            look_closely_at_all(session)
        elif settings.closely is False:
            for object_id in session.objects:
                session.look_closely(object_id, times=None)
        with suppress(UnreadableSlices):  # told of at the end
            session.propagate(settings.direction)  # type: ignore[arg-type]
    said, missing = saved.state, ""
    try:
        session.check_read()
    except UnreadableSlices as error:
        missing = str(error)
    parents, own = session.parents, tuple(notes)
    return _Answer(session.labels, said.names, said.colours, parents, own, missing)


@functools.lru_cache(maxsize=2)  # a template, and the image's own session
def _saved(run: str, path: Path) -> SavedSession:
    """A session, read once in each run."""
    from napari_sam2.session_file import read_session

    return read_session(path)


@functools.lru_cache(maxsize=1)
def _place_of_template(run: str, session: Path, image: Path) -> Volume:
    """The image of a template, read once in each run; its pixels are not kept."""
    from napari_sam2.io import read_volume
    from napari_sam2.saved_image import SessionImage

    placed = SessionImage(read_volume(image), _saved(run, session).image).placed
    return replace(placed, array=np.broadcast_to(np.uint8(0), placed.array.shape), pyramid=())


def _template_image(template: Path, settings: Settings) -> Path:
    """The image that a template was made on. Raises: SessionFileError where that is not known."""
    from napari_sam2.session_file import SessionFileError, image_file

    if settings.template_image is not None:
        return settings.template_image
    known = image_file(_saved(settings.run, template).image, template)
    if known is None:
        raise SessionFileError(
            f"{template.name} does not say which file it was made on; give it with "
            "--template-image."
        )
    return known


# ---- the model


@functools.lru_cache(maxsize=1)
def _model(name: str, settings: Settings) -> LazyModel:
    """Loaded once in each process; anew for another run, for which its file may be another."""
    from napari_sam2.lazy_model import LazyModel

    return LazyModel(name, settings.device, compile=settings.compile, is_quiet=settings.is_quiet)


def _model_name(job: Job, settings: Settings) -> str:
    if settings.model is not None:
        return settings.model
    saved = job.session or job.template
    return "nano" if saved is None else _saved(settings.run, saved).model


def check_model(name: str, settings: Settings) -> None:
    """Load a model, which this process keeps. Raises: ModelError."""
    from napari_sam2.segmentation import loaded

    _use_threads(settings.threads)
    loaded(_model(name, settings))


def models_of(jobs: Sequence[Job], settings: Settings) -> set[str]:
    """The models of a batch, but for those of the images' own sessions."""
    by_template = {job.template: job for job in jobs if job.session is None}
    return {_model_name(job, settings) for job in by_template.values()}


def _use_threads(threads: int | None) -> None:
    import torch

    if threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


# ---- records


def _key(job: Job, settings: Settings, volume: Volume, lazy: LazyModel) -> str:
    """What the result follows from."""
    from napari_sam2.session_file import fingerprint

    given = {
        "image": fingerprint(volume.array).whole,
        "spacing": volume.spacing,
        "prompts": asdict(job.prompts) if job.prompts else None,
        "files": [_sum(path) for path in (job.session, job.template, job.mask)],
        "model": lazy.checksum,
        "window": settings.window,
        "axis": str(settings.axis),
        "direction": settings.direction,
        "closely": settings.closely,
        "program": version("napari-sam2"),
    }
    text = json.dumps(given, sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _sum(path: Path | None) -> str | None:
    """Of what a file holds, or all files of a folder; None where there is none."""
    if path is None or not path.exists():
        return None
    if path.is_dir():
        inside = {
            file.relative_to(path).as_posix(): _sum(file)
            for file in path.rglob("*")
            if file.is_file()
        }
        return hashlib.sha256(json.dumps(inside, sort_keys=True).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_of(job: Job, settings: Settings) -> Path:
    return settings.out / RECORDS / f"{job.name}.json"


def _write_record(job: Job, settings: Settings, result: JobResult) -> None:
    target = _record_of(job, settings)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, json.dumps(asdict(result)))


# ---- what a person sees


def _thumbnail(volume: Volume, labels: NDArray[Any], window: tuple[float, float] | None) -> str:
    """The slice with most of the objects of those that can be read, their outlines on it, as a PNG
    in base64."""
    import imageio.v3 as imageio
    from skimage.segmentation import find_boundaries
    from skimage.transform import resize

    from napari_sam2.io.legend import RGB
    from napari_sam2.prompt_layers import object_rgb
    from napari_sam2.sequence_view import SequenceView

    view = SequenceView(volume, rgb=volume.array.ndim == 4)
    for frame in np.argsort(-(labels > 0).sum((1, 2)), kind="stable").tolist():
        with suppress(OSError):
            image = view[frame].astype(np.float32)
            break
    else:
        return ""
    low, high = window or np.percentile(image, (0.5, 99.5))
    grey = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
    grey = grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)
    height = grey.shape[0] * volume.spacing[-2] / volume.spacing[-1]
    scale = _THUMBNAIL / max(height, grey.shape[1])
    size = max(1, round(height * scale)), max(1, round(grey.shape[1] * scale))
    picture = resize(grey, size, anti_aliasing=True)
    small = resize(labels[frame], size, order=0, preserve_range=True, anti_aliasing=False)
    edges = find_boundaries(small.astype(labels.dtype), mode="inner")
    for i in np.unique(small[edges]):
        colour: RGB = object_rgb(int(i))
        picture[edges & (small == i)] = colour
    png: bytes = imageio.imwrite("<bytes>", (picture * 255).astype(np.uint8), extension=".png")
    return b64encode(png).decode()
