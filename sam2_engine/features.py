"""Image features, computed once per frame and kept within a budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sam2_engine.model import ImageFeatures


class FeatureStore(Protocol):
    """Where features outlive a predictor, found again by the image that they were made of."""

    def get(self, image: Tensor) -> ImageFeatures | None:
        """Features of a (3, S, S) image as the model sees it, on the CPU; None if not known."""

    def put(self, image: Tensor, features: ImageFeatures) -> None:
        """Keep the features (batch of 1) of an image."""


class FeatureCache:
    """Keeps the most recently used features, up to a number of bytes."""

    def __init__(
        self,
        encode: Callable[[int], ImageFeatures],
        budget: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            encode: computes the features of a frame.
            budget: bytes of features to keep; 0 keeps none.
            dtype: what features are rounded to and kept in, such as torch.float16 for half the
                bytes; by default as they are. They are rounded before their first use, too, so
                that masks do not depend on what is still kept.
        """
        self._encode = encode
        self._dtype = dtype
        self._computed_in = torch.float32
        self._features: OrderedDict[int, ImageFeatures] = OrderedDict()
        self._frame_bytes = 0
        self.budget = budget
        self.nbytes = 0
        """Bytes held now; never above the budget."""
        self.encoded = 0
        """How many frames have been encoded, or looked up in a store."""

    def __contains__(self, frame: int) -> bool:
        return frame in self._features

    def __getitem__(self, frame: int) -> ImageFeatures:
        """Features of a frame (batch of 1), from the cache or computed now."""
        if frame in self._features:
            self._features.move_to_end(frame)
            return _as(self._features[frame], self._computed_in)
        return self.keep(frame, self._encode(frame))

    def holds(self, count: int) -> bool:
        """Whether so many frames, as large as those before, can be kept at once."""
        return 0 < count * self._frame_bytes <= self.budget

    def keep(self, frame: int, features: ImageFeatures) -> ImageFeatures:
        """Keep features (batch of 1) of a frame that is not known yet; returns them rounded."""
        self.encoded += 1
        self._computed_in = features.stride16.dtype
        kept = _as(features, self._dtype or self._computed_in)
        self._frame_bytes = size = _nbytes(kept)
        if size <= self.budget:
            while self.nbytes + size > self.budget:
                self.nbytes -= _nbytes(self._features.popitem(last=False)[1])
            self._features[frame] = kept
            self.nbytes += size
        return _as(kept, self._computed_in)

    def clear(self) -> None:
        self._features.clear()
        self.nbytes = 0


def _as(features: ImageFeatures, dtype: torch.dtype) -> ImageFeatures:
    return ImageFeatures(*(level.to(dtype) for level in features))


def _nbytes(features: ImageFeatures) -> int:
    return sum(level.nbytes for level in features)
