"""What a batch has to do: a job for each image, from a table or a folder."""

from __future__ import annotations

import csv
import math
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_sam2.label_ids import MAX_ID
from napari_sam2.targets import file_name

_JOB_COLUMNS = ("image", "name", "session", "mask", "series", "volume", "channel")
_PROMPT_COLUMNS = ("image", "object", "name", "z", "y", "x", "y1", "x1", "label", "first", "last")
_NEGATIVE = ("0", "-", "negative", "background")
_POSITIVE = ("", "1", "+", "positive", "foreground")
_LABEL_SUFFIXES = (
    *(".nii.gz", ".nii", ".ome.tif", ".ome.tiff", ".tif", ".tiff"),
    *(".seg.nrrd", ".nrrd", ".mha", ".png"),
)


class JobError(ValueError):
    """A table or folder of jobs cannot be used; the message says where, and what to do."""


@dataclass(frozen=True)
class TablePrompts:
    """Prompts of one image from a table, as `segment` takes them."""

    boxes: Mapping[int, list[tuple[float, tuple[float, ...]]]] = field(default_factory=dict)
    """Object -> (z, (y0, x0, y1, x1))."""
    points: Mapping[int, list[tuple[float, ...]]] = field(default_factory=dict)
    """Object -> (z, y, x)."""
    negative_points: Mapping[int, list[tuple[float, ...]]] = field(default_factory=dict)
    ends: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """Object -> its first and last slice."""
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One image, and what is asked of it. Exactly one of prompts, session, template and mask."""

    name: str
    """Of what is written, without suffix."""
    image: Path
    prompts: TablePrompts | None = None
    session: Path | None = None
    """Made on this image; its masks are computed anew."""
    template: Path | None = None
    """Made on another image; its prompts are placed by their position in the world."""
    mask: Path | None = None
    """Labels on some of the slices, or of the first frame alone."""
    series: str | None = None
    volume: int | None = None
    channel: int | None = None


def jobs_of(
    source: str | os.PathLike[str],
    *,
    template: str | os.PathLike[str] | None = None,
    prompts: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
) -> list[Job]:
    """The jobs of a table or a folder.

    source: a CSV with the column `image`, and as wanted `name`, `session`, `mask`, `series`,
        `volume` and `channel`, paths relative to the table; or a folder, of which every image (a
        file, or a folder of DICOM) is a job.
    template: a session whose prompts go to every image that has none of its own.
    prompts: a CSV with the columns `image`, `object`, `z`, `y`, `x`; with `y1` and `x1` a row is a
        box, without it is a point; `label` 0 means not on the object; `name` names the object;
        `first` and `last` are the slices on which it begins and ends. `image` is the path or the
        name of an image.
    masks: a folder with a labels file for each image, of the same name.

    Raises JobError, one sentence.
    """
    from napari_sam2.io.kinds import stem

    source = Path(source)
    if not source.exists():
        raise JobError(f"There is no file or folder {source}.")
    try:
        rows = _folder(source) if source.is_dir() else _table(source)
    except OSError as error:
        reason = error.strerror or error
        raise JobError(f"{error.filename or source} cannot be read: {reason}.") from error
    table = read_prompts(prompts) if prompts is not None else {}
    jobs = []
    for row in rows:
        image = Path(row["image"])
        name = row.get("name") or stem(image.name)
        job: dict[str, Any] = {"name": file_name(name), "image": image}
        names = [_same(text) for text in (str(image), image.name, name)]
        own = next((table[text] for text in names if text in table), None)
        if row.get("session"):
            job["session"] = Path(row["session"])
        elif row.get("mask"):
            job["mask"] = Path(row["mask"])
        elif own is not None:
            job["prompts"] = own
        elif masks is not None:
            job["mask"] = _mask_of(Path(masks), image)
        elif template is not None:
            job["template"] = Path(template)
        else:
            raise JobError(
                f"Nothing says what to segment in {image}: give it a row in --prompts, a session "
                "or a mask in the table of jobs, or a template for all with --session."
            )
        for column in ("volume", "channel"):
            if row.get(column):
                job[column] = _whole(source, column, row[column])
        jobs.append(Job(series=row.get("series") or None, **job))
    return _with_own_names(jobs)


def read_prompts(path: str | os.PathLike[str]) -> dict[str, TablePrompts]:
    """A table of prompts -> the prompts by what its column `image` says, with / between folders.

    Raises JobError.
    """
    path = Path(path)
    found: dict[str, TablePrompts] = {}
    for number, row in _rows(path, ("image", "object", "z", "y", "x"), _PROMPT_COLUMNS):
        where = f"{path}, line {number}"
        object_id = _whole(where, "object", row["object"])
        if not 1 <= object_id <= MAX_ID:
            raise JobError(
                f"{where}: objects are whole numbers from 1 to {MAX_ID}, not {object_id}."
            )
        z, y, x = (_number(where, column, row[column]) for column in "zyx")
        image = found.setdefault(_same(row["image"]), TablePrompts({}, {}, {}, {}, {}))
        label = row.get("label", "").lower()
        if label not in _NEGATIVE + _POSITIVE:
            raise JobError(f"{where}: the label is 1 (on the object) or 0 (not), not {label!r}.")
        if bool(row.get("y1")) != bool(row.get("x1")):
            raise JobError(f"{where}: a box needs both y1 and x1; a point has neither.")
        if row.get("y1"):
            if label in _NEGATIVE:
                raise JobError(f"{where}: a box lies around the object; its label cannot be 0.")
            corner = (_number(where, column, row[column]) for column in ("y1", "x1"))
            _append(image.boxes, object_id, (z, (y, x, *corner)))
        else:
            points = image.negative_points if label in _NEGATIVE else image.points
            _append(points, object_id, (z, y, x))
        if bool(row.get("first")) != bool(row.get("last")):
            raise JobError(f"{where}: an object needs both its first and its last slice, or none.")
        if row.get("first"):
            first, last = (_number(where, column, row[column]) for column in ("first", "last"))
            if image.ends.get(object_id, (first, last)) != (first, last):
                raise JobError(f"{where}: object {object_id} begins or ends elsewhere above.")
            image.ends[object_id] = first, last  # type: ignore[index]
        if row.get("name"):
            image.names[object_id] = row["name"]  # type: ignore[index]
    return found


def _append(prompts: Any, object_id: int, prompt: Any) -> None:
    prompts.setdefault(object_id, []).append(prompt)


# ---- where the images are


def _table(path: Path) -> list[dict[str, str]]:
    """The rows of a table of jobs, with paths that hold from here."""
    rows = []
    for number, row in _rows(path, ("image",), _JOB_COLUMNS):
        if not row["image"]:
            raise JobError(f"{path}, line {number}: there is no image.")
        for column in ("image", "session", "mask"):
            if row.get(column):
                row[column] = os.path.normpath(_there(path.parent, row[column]))
        rows.append(row)
    return rows


def _folder(path: Path) -> list[dict[str, str]]:
    """The images of a folder: files that can be read, and folders that hold DICOM or OME-Zarr."""
    from napari_sam2.io.kinds import image_kind
    from napari_sam2.io.volume import ReadError

    found: list[dict[str, str]] = []
    slices: list[Path] = []
    pictures: list[dict[str, str]] = []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith("."):
            continue
        try:
            kind = image_kind(entry)
        except ReadError:
            continue
        if kind == "DICOM" and entry.is_file() and entry.suffix.lower() != ".zip":
            slices.append(entry)
        elif kind in ("DICOM SEG", "RTSTRUCT"):
            continue
        elif kind == "picture":
            pictures.append({"image": str(entry)})
        elif entry.suffix.lower() == ".img" and kind == "NIfTI":
            continue  # its .hdr stands for both
        elif kind != "DICOM" or entry.is_file() or _holds_dicom(entry):
            found.append({"image": str(entry)})
    if slices and not found:  # the folder is one series itself
        return [{"image": str(path)}]
    found = found or pictures  # which beside scans only show what is in them
    if not found:
        raise JobError(f"The folder {path} holds no images.")
    return found


def _holds_dicom(folder: Path) -> bool:
    from napari_sam2.io.kinds import is_dicom

    return any(file.is_file() and is_dicom(file) for file in folder.rglob("*"))


def _mask_of(folder: Path, image: Path) -> Path:
    from napari_sam2.io.kinds import stem

    name = stem(image.name)
    for suffix in _LABEL_SUFFIXES:
        file = _there(folder, f"{name}{suffix}")
        if file.is_file():
            return file
    raise JobError(f"{folder} holds no labels file named {name} for {image}.")


def _with_own_names(jobs: list[Job]) -> list[Job]:
    """Jobs, checked that no two write to one file, whatever the case of letters."""
    seen: dict[str, Job] = {}
    for job in jobs:
        other = seen.setdefault(_same(job.name).casefold(), job)
        if other is not job:
            raise JobError(
                f"{other.image} and {job.image} would both be written as {job.name}; give them "
                "different names in a table with the columns image and name."
            )
    return jobs


def _same(text: str) -> str:
    """Equal for a path or a name that was written on any system: Windows has \\ between folders,
    and macOS takes letters and their accents apart."""
    return unicodedata.normalize("NFC", text.replace("\\", "/"))


def _there(folder: Path, text: str) -> Path:
    """A file of a folder, whose name may have been written on another system."""
    slashes = text.replace("\\", "/")
    spellings = [text, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))]
    return next((p for p in (folder / one for one in spellings) if p.exists()), folder / text)


# ---- tables


def _rows(
    path: Path, needed: Iterable[str], known: Iterable[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV with commas, semicolons or tabs, its values without spaces around."""
    if not path.is_file():
        raise JobError(f"There is no table {path}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path} is not a table in UTF-8: save it as CSV.") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
    columns = [(name or "").strip().lower() for name in reader.fieldnames or []]
    missing = [name for name in needed if name not in columns]
    if missing:
        raise JobError(f"{path} needs a column {missing[0]!r} in its first line.")
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise JobError(
            f"{path} has a column {unknown[0]!r}, which means nothing here; it can have "
            f"{', '.join(known)}."
        )
    reader.fieldnames = columns
    found = False
    for row in reader:
        if None in row:
            raise JobError(f"{path}, line {reader.line_num}: there are more values than columns.")
        values = {name: (value or "").strip() for name, value in row.items()}
        if any(values.values()):
            found = True
            yield reader.line_num, values
    if not found:
        raise JobError(f"{path} has no rows.")


def _number(where: object, column: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise JobError(f"{where}: {column} must be a number, not {text!r}.")
    return number


def _whole(where: object, column: str, text: str) -> int:
    number = _number(where, column, text)
    if number != int(number):
        raise JobError(f"{where}: {column} must be a whole number, not {text!r}.")
    return int(number)
