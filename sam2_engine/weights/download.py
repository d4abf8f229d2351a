"""Finding the file of a model on this machine, and fetching it into the hub's cache."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from sam2_engine.names import split_size
from sam2_engine.weights.registry import ModelInfo, WeightsError, model_info
from sam2_engine.whole_file import move

MODELS_FOLDER_VARIABLE = "SAM2_MODELS"
"""Environment variable with a folder of model files, for machines without a network."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and, if known, the bytes in all. What it raises cancels."""

# HfHubHTTPError derives from the error of the HTTP library that huggingface_hub is built on, which
# is not the same in all of its versions.
_NETWORK_ERRORS: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)


def find(info: ModelInfo, folder: str | Path | None = None) -> Path | None:
    """The file of a model on this machine, or None where it has to be downloaded.

    Looks at what is bundled, in the folder (default: the one that SAM2_MODELS names), and in the
    hub's cache. Does not touch the network and does not check the file.
    """
    if info.repository is None:
        return Path(__file__).parent / info.file  # of one's own model, the path itself
    folder = folder or os.environ.get(MODELS_FOLDER_VARIABLE)
    if folder:
        local = Path(folder).expanduser() / info.file
        if local.is_file():
            return local
    cached = try_to_load_from_cache(info.repository, info.file)
    return Path(cached) if isinstance(cached, str) else None


def find_file(
    name_or_path: str | os.PathLike[str], folder: str | Path | None = None
) -> Path | None:
    """As `find`, by a name or a path, both also with a size: "sam2.1-tiny@512"."""
    info = model_info(str(name_or_path))
    if info is not None:
        return find(info, folder)
    path = Path(split_size(name_or_path)[0]).expanduser()
    return path if path.is_file() else None


def fetch(
    info: ModelInfo, folder: str | Path | None = None, progress: Progress | None = None
) -> Path:
    """The checked file of a model, downloaded where it is not on this machine yet.

    A download that breaks is taken up again where it stopped, also by a later call. Its file
    enters the hub's cache only when it is complete and its size and sha256 are right.

    Args:
        info: from list_models().
        folder: with model files; looked at before the network. Default: SAM2_MODELS.
        progress: called as the download goes on. A progress bar is printed in any case.

    Raises:
        WeightsError: no network, no such file, not enough space, or a wrong size or sum.
    """
    path = find(info, folder)
    if path is None:
        return _download(info, progress)
    if info.repository is None:
        if not path.is_file():
            raise WeightsError(
                f"The file of the bundled model is missing ({path}). Install napari-sam2 again."
            )
        return path
    in_cache = path.is_relative_to(constants.HF_HUB_CACHE)
    _check(path, info.file, info.size, info.sha256, ours=in_cache)
    return path


def _download(info: ModelInfo, progress: Progress | None) -> Path:
    assert info.repository is not None
    url = hf_hub_url(info.repository, info.file)
    try:
        metadata = get_hf_file_metadata(url)
        if metadata.etag is None:
            raise WeightsError(
                f"{url} did not answer like a model hub. Check HF_ENDPOINT and your proxy, "
                f"or {_by_hand(info)}."
            )
        size = info.size or metadata.size
        # Large files have their sha256 as etag.
        etag_is_sum = re.fullmatch("[0-9a-f]{64}", metadata.etag)
        sha256 = info.sha256 or (metadata.etag if etag_is_sum else None)

        # Download beside the place where the cache keeps the file, and move it there when it is
        # right; hf_hub_download then finds it and enters it.
        store = Path(constants.HF_HUB_CACHE)
        store /= repo_folder_name(repo_id=info.repository, repo_type="model")
        blob = store / "blobs" / metadata.etag
        partial = blob.with_name(f"{metadata.etag}.sam2.incomplete")
        blob.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(f"{partial}.lock"):
            if blob.exists():
                _check(blob, info.file, size, sha256, ours=True)
            else:
                if metadata.size is None or (_size(partial) or 0) > metadata.size:
                    partial.unlink(missing_ok=True)  # nothing to go on from
                with _ReportingFile(partial, metadata.size, progress) as file:
                    _get(url, file, metadata.size, info.file)
                _check(partial, info.file, size, sha256, ours=True)
                move(partial, blob)
        return Path(hf_hub_download(info.repository, info.file))
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise WeightsError(
            f"The hub has no file {info.file} in {info.repository} (asked at {url}). "
            f"If you have the file, {_by_hand(info)}."
        ) from error
    except _NETWORK_ERRORS as error:
        raise WeightsError(
            f"{info.file} could not be downloaded from {url} ({first_line(error)}). Check the "
            "network and the free disk space and try again: it goes on from where it stopped. "
            f"Without a network, {_by_hand(info)}."
        ) from error


def _get(url: str, file: io.FileIO, size: int | None, name: str) -> None:
    """Fill a file up to its size; after a break, go on as long as each try brings some bytes."""
    while True:
        start = file.tell()
        try:
            return http_get(
                url,
                file,  # type: ignore[arg-type]  # only BinaryIO's methods are called
                resume_size=start,
                headers=build_hf_headers(),
                expected_size=size,
                displayed_filename=name,
            )
        except _NETWORK_ERRORS:
            if size is None or file.tell() == start:
                raise


def _by_hand(info: ModelInfo) -> str:
    return (
        f"copy {info.file} into a folder and name that folder in the environment variable "
        f"{MODELS_FOLDER_VARIABLE}, or choose the file itself as the model"
    )


def first_line(error: BaseException) -> str:
    """The gist of an error message, to be put into another one."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


class _ReportingFile(io.FileIO):
    """A file, open at its end, that reports how far it is written."""

    def __init__(self, path: Path, total: int | None, progress: Progress | None) -> None:
        super().__init__(path, "ab")
        self._total = total
        self._progress = progress

    def write(self, data: bytes) -> int:  # type: ignore[override]
        written = super().write(data)
        if self._progress is not None:
            self._progress(self.tell(), self._total)
        return written


def _check(path: Path, name: str, size: int | None, sha256: str | None, ours: bool) -> None:
    """Compare a file's size and sum with the published ones; remove it if it is our download."""
    found_size = path.stat().st_size
    wrong = None
    if size is not None and found_size != size:
        wrong = f"it has {found_size:,} bytes instead of {size:,}"
    elif sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            wrong = f"its sha256 is {found} instead of {sha256}"
    if wrong is None:
        return
    if ours:
        what_next = "It was removed; load the model again to download it anew"
        try:
            path.resolve().unlink()
            path.unlink(missing_ok=True)  # the cache's link to it
        except OSError:  # in use, on Windows
            what_next = "It is in use; end other programs and load the model again to remove it"
    else:
        what_next = (
            "Replace it by a new copy; a model of your own is loaded by its path, under a name "
            "that differs from the published file's"
        )
    raise WeightsError(
        f"The file {name} in {path.parent} is not the published one: {wrong}. {what_next}."
    )
