"""Image features on disk, for the next session on the same images.

Off unless SAM2_FEATURE_CACHE_GB, or the widget, says how many gigabytes they may take. A file holds
the features of one image, and is named after all that they follow from: the image as the model sees
it, which is its pixels, its intensity window and the model's size, and the model's weights.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from sam2_engine.whole_file import beside

if TYPE_CHECKING:
    from torch import Tensor

    from napari_sam2.lazy_model import LazyModel
    from sam2_engine.model import ImageFeatures

FOLDER = user_cache_path("napari-sam2") / "features"
SETTING = "SAM2_FEATURE_CACHE_GB"
_MOST_DAYS = 30
_DAY = 24 * 3600
_LEVELS = ("stride16", "stride8", "stride4")


class FeatureFiles:
    """A folder of features of one model: what `SequencePredictor` takes as its store."""

    def __init__(
        self, checksum: str, max_bytes: int, folder: Path = FOLDER, max_days: float = _MOST_DAYS
    ) -> None:
        """
        Args:
            checksum: of the model's weights, and of whatever else features follow from.
            max_bytes: that all files of the folder may take, of whichever model; those that were
                used longest ago go first.
            max_days: how long a file is kept after its last use.
        """
        self._checksum = checksum
        self._max_bytes = max_bytes
        self._folder = folder
        self._max_days = max_days
        self._nbytes = self.clean()

    def get(self, image: Tensor) -> ImageFeatures | None:
        """Features of a (3, S, S) image; None where there are none, or their file is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        from sam2_engine.model import ImageFeatures

        path = self._path(image)
        try:
            levels = load(path.read_bytes())
            features = ImageFeatures(*(levels[name].permute(0, 3, 1, 2) for name in _LEVELS))
            os.utime(path)
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError):
            return None
        return features

    def put(self, image: Tensor, features: ImageFeatures) -> None:
        """Keep the features of an image, if the disk takes them."""
        from safetensors.torch import save

        # Channels last, as they were made: another order of bytes would round other sums.
        levels = (level.cpu().permute(0, 2, 3, 1).contiguous() for level in features)
        content = save(dict(zip(_LEVELS, levels, strict=True)))
        if len(content) > self._max_bytes:
            return
        path = self._path(image)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with beside(path) as temporary:
                temporary.write_bytes(content)
        except OSError:  # a full disk costs time, not work
            return
        self._nbytes += len(content)
        if self._nbytes > self._max_bytes:
            self._nbytes = self.clean()

    def clean(self) -> int:
        """Remove what is too old, then what is too much; returns the bytes that remain."""
        found = []
        unfinished = self._folder.glob(".*.part")  # of processes that were killed
        for path in (*self._folder.glob("*.safetensors"), *unfinished):
            try:
                stat = path.stat()
            except OSError:  # another session cleans, too
                continue
            found.append((stat.st_mtime, stat.st_size, path))
        oldest = time.time() - self._max_days * _DAY
        total = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if used >= oldest and total <= self._max_bytes:
                break
            try:
                path.unlink(missing_ok=True)
            except OSError:  # in use, on Windows
                continue
            total -= size
        return total

    def _path(self, image: Tensor) -> Path:
        name = hashlib.sha256(self._checksum.encode())
        name.update(str(tuple(image.shape)).encode())
        name.update(image.contiguous().numpy().tobytes())
        return self._folder / f"{name.hexdigest()}.safetensors"


def allowed_gigabytes() -> float:
    """How many gigabytes of features may lie on disk; 0 where none are kept.

    Raises ValueError where the setting is not a number of gigabytes.
    """
    text = os.environ.get(SETTING, "0")
    try:
        return max(float(text), 0.0)
    except ValueError:
        raise ValueError(f"{SETTING} is a number of gigabytes, not {text!r}.") from None


def allow_gigabytes(gigabytes: float) -> None:
    """Let predictors that are made from now on, in this process, keep so many; 0: none."""
    os.environ[SETTING] = f"{gigabytes:g}"


def feature_files(model: LazyModel) -> FeatureFiles | None:
    """The store that the setting asks for; None where it asks for none.

    Raises ValueError where the setting is not a number of gigabytes.
    """
    gigabytes = allowed_gigabytes()
    if not gigabytes > 0 or not model.checksum:
        return None
    loaded = model.get()  # where and how precisely it computes shows in the features, too
    precision = "mixed" if loaded.is_mixed else loaded.dtype
    return FeatureFiles(f"{model.checksum} {loaded.device.type} {precision}", int(gigabytes * 1e9))
