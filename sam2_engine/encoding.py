"""Frames as objects look at them: encoded together where that is quicker, and past frames that
cannot be read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from sam2_engine.features import FeatureCache, frames_at_once
from sam2_engine.frames import Area, Part
from sam2_engine.model import SAM2, ImageFeatures
from sam2_engine.unreadable import UnreadableFrame


class FrameEncoder:
    """Gives the image features of frames, some of them ahead of their use."""

    def __init__(self, model: SAM2, features: FeatureCache) -> None:
        self.features = features
        self.unreadable: dict[int, UnreadableFrame] = {}
        """Frames that are not tried again, with what was said of them."""
        self.at_once = frames_at_once(model)
        """How many frames are encoded together."""

    @property
    def most_ahead(self) -> int:
        """How many frames ``ahead`` looks at: the rest of a batch, and the next one."""
        return 2 * self.at_once - 1

    def __call__(self, frame: int, areas: Sequence[Area | None]) -> ImageFeatures:
        """Features of a frame as it is looked at for some objects (a batch of them): for all of
        them on all of it, or for each in an area. Raises UnreadableFrame.
        """
        if frame in self.unreadable:
            raise self.unreadable[frame]
        if areas[0] is None:
            return self.features[frame].expand(len(areas))
        parts: list[Part] = [(frame, area) for area in areas if area is not None]
        different = list(dict.fromkeys(parts))
        if self.features.holds(len(different)):
            for start in range(0, len(different), self.at_once):
                self.features.encode(different[start : start + self.at_once])
        found = [self.features[part] for part in parts]
        return ImageFeatures(*(torch.cat(level) for level in zip(*found, strict=True)))

    def with_next(self, frame: int, step: int, due: Collection[int]) -> None:
        """Encode some of the next frames together with this one, which is quicker where frames are
        small for the machine.

        due: those of which all will be looked at, for certain.
        """
        if frame in self.features:
            return
        following = self._readable(range(frame, frame + self.at_once * step, step), due)
        missing = [t for t in following if t not in self.features]
        if len(missing) > 1 and self.features.holds(len(missing) + 1):
            try:
                self.features.encode(following)
            except UnreadableFrame as error:
                if error.frame == frame:
                    raise
                self.unreadable[error.frame] = error  # told of when it is needed

    def ahead(self, frame: int, step: int, due: Collection[int]) -> bool:
        """Have the device encode the next frames beside what it still has to do for this one, one
        batch ahead. Returns False where something fails: the error is raised where that frame is
        needed, when the results before it are out.

        due: as for `with_next`.
        """
        most = self.most_ahead
        following = self._readable(range(frame + step, frame + (most + 1) * step, step), due)
        missing = [t for t in following if t not in self.features]
        is_enough = len(following) - len(missing) >= self.at_once
        if missing and not is_enough and self.features.holds(len(following) + 2):
            later = missing[self.at_once :]
            try:
                self.features.encode([t for t in following if t not in later])
            except UnreadableFrame as error:
                self.unreadable[error.frame] = error
            except Exception:
                return False
        return True

    def _readable(self, frames: range, due: Collection[int]) -> list[int]:
        return [frame for frame in frames if frame in due and frame not in self.unreadable]
