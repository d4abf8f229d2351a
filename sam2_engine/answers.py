"""What the model answers of an object on a frame, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sam2_engine.frames import Area
from sam2_engine.full_memory import AtOnce
from sam2_engine.holes import fill_small_holes
from sam2_engine.memory import Memory, MemoryTokens
from sam2_engine.model import ABSENT_LOGIT, SAM2, Decoded, ImageFeatures
from sam2_engine.model.recalled import Picked, near_object, pick

_OBJECTS_AT_ONCE = 32  # more of them in one batch take more memory and are no quicker


@dataclass(frozen=True)
class Answer:
    """One object on one frame, on the model's device."""

    low_res: Tensor  # (1, 1, S/4, S/4)
    iou: Tensor  # (1,)
    object_score: Tensor  # (1, 1)
    pointer: Tensor  # (1, C)
    area: Area | None  # of the frame, that was looked at


@dataclass(frozen=True)
class Answers:
    """How the answers of a model are taken and remembered; options as for `SequencePredictor`."""

    model: SAM2
    fill_holes: int
    memory_tokens: MemoryTokens
    at_once: AtOnce = field(default_factory=lambda: AtOnce(_OBJECTS_AT_ONCE))
    """How many objects are computed together."""

    def split(self, decoded: Decoded, areas: Sequence[Area | None]) -> Iterator[Answer]:
        """One answer per object, with small holes filled if asked for."""
        low_res = fill_small_holes(decoded.low_res, self.fill_holes)
        iou, score, pointer = decoded.iou, decoded.object_score, decoded.pointer
        for i, area in enumerate(areas):
            one = slice(i, i + 1)
            yield Answer(low_res[one], iou[one], score[one], pointer[one], area)

    def absent(self, area: Area | None) -> Answer:
        """The answer on a frame beyond an object's end."""
        config, device = self.model.config, self.model.device
        side = config.image_size // 4
        return Answer(
            low_res=torch.full((1, 1, side, side), ABSENT_LOGIT, device=device),
            iou=torch.zeros(1, device=device),
            object_score=torch.full((1, 1), ABSENT_LOGIT, device=device),
            pointer=torch.zeros((1, config.d_model), device=device),
            area=area,
        )

    def remember(
        self,
        features: ImageFeatures,
        low_res: Tensor,
        object_score: Tensor,
        pointer: Tensor,
        *,
        binarise: bool,
    ) -> list[Memory]:
        """One memory per object.

        features, low_res, object_score, pointer: of all of them, as in `Answer` but for the batch.
        binarise: as for `SAM2.encode_memory`.
        """
        encoded = self.model.encode_memory(
            features, self.model.upscale(low_res), object_score, binarise=binarise
        )
        memories = []
        for i in range(len(encoded)):
            one = slice(i, i + 1)
            own = encoded[one].clone()  # a part would hold on to the whole
            memories.append(Memory(own, pointer[one].clone(), self._pick(own, low_res[one])))
        return memories

    def _pick(self, memory: Tensor, low_res: Tensor) -> Picked | None:
        """What is looked at of a memory; low_res: (1, 1, S/4, S/4) logits of its object."""
        if self.memory_tokens == "all":
            return None
        near = torch.zeros([side // 2 for side in memory.shape[-2:]], dtype=torch.bool)
        if self.memory_tokens == "near":
            near = near_object(low_res)[0].cpu()
        return pick(memory, near)
