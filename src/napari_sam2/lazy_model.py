"""A model by name, loaded when it is first needed."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam2_engine.model import SAM2

CPU_BFLOAT16 = "cpu-bfloat16"
"""The device of a model that is to multiply in bfloat16 on a processor, which is quicker."""


class LazyModel:
    """A model by name, loaded when it is first needed."""

    def __init__(
        self,
        model: SAM2 | str = "nano",
        device: str = "auto",
        *,
        compile: bool = False,
        is_quiet: bool = False,
    ) -> None:
        """
        Args:
            model: a name of `sam2_engine.list_models()`, a checkpoint's path, or a loaded model;
                names and paths as `sam2_engine.load_model` takes them, also with a size.
            device: "auto", "cpu", "cpu-bfloat16", "cuda" or "mps".
            compile: as for `sam2_engine.load_model`, for a model that is yet to be loaded.
            is_quiet: whether nothing is printed of how long that takes.
        """
        self.name = model if isinstance(model, str) else "model"
        self.device = device
        self.compile = compile
        self._is_quiet = is_quiet
        self.downloaded: tuple[int, int | None] | None = None
        """Bytes downloaded and bytes in all, during a download."""
        self._is_named = isinstance(model, str)
        self._loaded = None if isinstance(model, str) else model
        self._lock = threading.Lock()
        self._stopped = False
        self._checksum = ""

    @property
    def is_loaded(self) -> bool:
        return self._loaded is not None

    @property
    def image_size(self) -> int | None:
        """How many pixels along each side it sees of a frame; None before it is loaded."""
        return None if self._loaded is None else self._loaded.config.image_size

    def get(self) -> SAM2:
        """The model, after a download if need be. Raises what `sam2_engine.load_model` raises."""
        with self._lock:
            if self._loaded is None:
                from sam2_engine.model import say, say_nothing
                from sam2_engine.weights import load_model

                is_mixed = self.device == CPU_BFLOAT16
                device, dtype = ("cpu", "mixed") if is_mixed else (self.device, "auto")
                try:
                    self._loaded = load_model(
                        self.name,
                        device,
                        dtype,
                        progress=self._on_progress,
                        compile=self.compile,
                        tell=say_nothing if self._is_quiet else say,
                    )
                finally:
                    self.downloaded, self._stopped = None, False
            return self._loaded

    @property
    def checksum(self) -> str:
        """The sha256 of the model's file, known before it is loaded; empty where it is not here.

        Behind it is the size, where the name asks for one. Of a model that came loaded, a sum over
        its weights.
        """
        if not self._checksum:
            self._checksum = _sum_of_file(self.name) if self._is_named else _sum_of(self.get())
        return self._checksum

    def stop_download(self) -> None:
        """Have a download in another thread end, or not begin, with an error that says so."""
        self._stopped = True

    def _on_progress(self, done: int, total: int | None) -> None:
        from sam2_engine.weights import WeightsError

        if self._stopped:
            raise WeightsError(f"The download of {self.name} was stopped; choose it to go on.")
        self.downloaded = done, total


def _sum_of_file(name: str) -> str:
    """Of a model by name or path."""
    from sam2_engine.names import split_size, with_size
    from sam2_engine.weights import find_file, model_info

    model, size = split_size(name)
    info = model_info(model)
    if info is not None and info.image_size == size:
        size = None  # the same masks follow
    if info is not None and info.sha256 is not None:
        return with_size(info.sha256, size)
    path = find_file(name)
    if path is None:
        return ""
    with open(path, "rb") as file:
        return with_size(hashlib.file_digest(file, "sha256").hexdigest(), size)


def _sum_of(model: SAM2) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().float().numpy().tobytes())
    return total.hexdigest()
