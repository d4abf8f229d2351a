"""Image features, computed once per frame and kept within a budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from sam2_engine.model import ImageFeatures


class FeatureCache:
    """Keeps the most recently used features, up to a number of bytes."""

    def __init__(self, encode: Callable[[int], ImageFeatures], budget: int) -> None:
        """
        Args:
            encode: computes the features of a frame.
            budget: bytes of features to keep; 0 keeps none.
        """
        self._encode = encode
        self._features: OrderedDict[int, ImageFeatures] = OrderedDict()
        self.budget = budget
        self.nbytes = 0
        """Bytes held now; never above the budget."""
        self.encoded = 0
        """How often a frame has been encoded."""

    def __contains__(self, frame: int) -> bool:
        return frame in self._features

    def __getitem__(self, frame: int) -> ImageFeatures:
        """Features of a frame (batch of 1), from the cache or computed now."""
        if frame in self._features:
            self._features.move_to_end(frame)
            return self._features[frame]
        features = self._encode(frame)
        self.encoded += 1
        size = _nbytes(features)
        if size <= self.budget:
            while self.nbytes + size > self.budget:
                self.nbytes -= _nbytes(self._features.popitem(last=False)[1])
            self._features[frame] = features
            self.nbytes += size
        return features

    def clear(self) -> None:
        self._features.clear()
        self.nbytes = 0


def _nbytes(features: ImageFeatures) -> int:
    return sum(level.nbytes for level in features)
