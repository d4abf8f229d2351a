"""What a predictor says of the objects on one frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sam2_engine.frames import Area, Geometry
from sam2_engine.unreadable import UnreadableFrame


@dataclass(frozen=True)
class FrameResult:
    """Masks of N objects on one frame of H x W pixels."""

    frame: int
    object_ids: tuple[int, ...]
    low_res: NDArray[np.float32]
    """(N, S/4, S/4) mask logits; -1024 where the object is judged absent."""
    iou: NDArray[np.float32]
    """(N,) predicted IoU, 0 to 1."""
    object_score: NDArray[np.float32]
    """(N,) logit, positive where the object is visible."""
    given: Mapping[int, NDArray[np.bool_]]
    """(H, W) masks that were given as prompts on this frame, by object; they are the answer."""
    geometry: Geometry
    """Of frames that are seen in the whole."""
    areas: tuple[Area | None, ...]
    """(N,) the part of the frame that was looked at for each object; None: all."""
    error: UnreadableFrame | None = None
    """Why the frame could not be read; N is 0 then. Only where that was asked for."""

    @property
    def logits(self) -> NDArray[np.float32]:
        """(N, H, W) mask logits at the frame's size, computed on each access."""
        height, width = self.geometry.frame_shape
        out = np.empty((len(self.object_ids), height, width), np.float32)
        for index in range(len(out)):
            out[index] = self._logits_of(index)
        return out

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(N, H, W), each object by itself; they may overlap."""
        out = np.empty((len(self.object_ids), *self.geometry.frame_shape), np.bool_)
        for index, object_id in enumerate(self.object_ids):
            given = self.given.get(object_id)
            out[index] = self._logits_of(index) > 0 if given is None else given
        return out

    def mask(self, object_id: int) -> NDArray[np.bool_]:
        """(H, W) of one object; KeyError where it has no result on this frame."""
        given = self.given.get(object_id)
        return self.logits_of(object_id) > 0 if given is None else given.copy()

    def logits_of(self, object_id: int) -> NDArray[np.float32]:
        """(H, W) mask logits of one object; KeyError where it has no result on this frame."""
        if object_id not in self.object_ids:
            raise KeyError(f"Object {object_id} has no result on frame {self.frame}.")
        return self._logits_of(self.object_ids.index(object_id))

    def labels(self) -> NDArray[np.int32]:
        """(H, W) object ids, 0 for background; overlaps go to the larger logit.

        A mask that was given as a prompt wins over all that is predicted.
        """
        labels = np.zeros(self.geometry.frame_shape, np.int32)
        best = np.zeros(self.geometry.frame_shape, np.float32)
        for index, object_id in enumerate(self.object_ids):
            given = self.given.get(object_id)
            logits = self._logits_of(index) if given is None else np.where(given, np.inf, 0)
            wins = logits > best
            labels[wins] = object_id
            best[wins] = logits[wins]
        return labels

    def _logits_of(self, index: int) -> NDArray[np.float32]:
        low_res = torch.from_numpy(self.low_res[index])[None, None]
        seen = self.geometry.looking_at(self.areas[index])
        logits: NDArray[np.float32] = seen.logits_to_frame(low_res)[0, 0].numpy()
        return logits
