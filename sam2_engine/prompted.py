"""Prompted frames: what follows for each object from its prompts on one, and from nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from sam2_engine.answers import Answer, Answers
from sam2_engine.encoding import FrameEncoder
from sam2_engine.frames import Geometry
from sam2_engine.memory import Memory
from sam2_engine.model import Decoded, ImageFeatures, as_mask_input
from sam2_engine.prompts import Prompt

_BEYOND = -8.0  # the logit where an object may not lie


@dataclass(frozen=True)
class PromptedFrame:
    """What the prompts of all objects on one frame give; valid while they are the same."""

    prompts: dict[int, Prompt]
    answers: dict[int, Answer]
    memories: dict[int, Memory]


class PromptedFrames:
    """Decodes prompts without memory, once for each frame."""

    def __init__(
        self,
        prompts: Mapping[int, Mapping[int, Prompt]],
        encoder: FrameEncoder,
        answers: Answers,
        geometry: Geometry,
        refine_clicks: bool,
    ) -> None:
        """
        Args:
            prompts: object id -> frame -> prompt, which may change meanwhile.
            refine_clicks: as for `SequencePredictor`.
        """
        self.prompts = prompts
        self._encoder = encoder
        self._answers = answers
        self._geometry = geometry
        self._refine_clicks = refine_clicks
        self._known: dict[int, PromptedFrame] = {}

    def prompts_on(self, frame: int) -> dict[int, Prompt]:
        """Object id -> prompt, of all that are prompted on a frame."""
        return {i: self.prompts[i][frame] for i in sorted(self.prompts) if frame in self.prompts[i]}

    def __getitem__(self, frame: int) -> PromptedFrame:
        """Answers and memories of all objects prompted on a frame, computed together.

        Together, also where only one is asked for: so they do not depend on who asks.
        """
        prompts = self.prompts_on(frame)
        known = self._known.get(frame)
        if known is None or known.prompts != prompts:
            answers = self.decode(frame, prompts)
            known = PromptedFrame(prompts, answers, self._remember(frame, answers))
            self._known[frame] = known
            for old in set(self._known) - {t for own in self.prompts.values() for t in own}:
                del self._known[old]
        return known

    @torch.inference_mode()
    def decode(self, frame: int, prompts: Mapping[int, Prompt]) -> dict[int, Answer]:
        """The answers to prompts on a frame, decoded together where they have the same form."""
        if not prompts:
            return {}
        rounds = {i: list(p.rounds()) if self._refine_clicks else [p] for i, p in prompts.items()}
        answers: dict[int, Answer] = {}
        for turn in range(max(map(len, rounds.values()))):
            groups: dict[tuple[bool, bool, int, bool], list[int]] = defaultdict(list)
            asked: dict[int, Prompt] = {}
            for i, own in rounds.items():
                if turn >= len(own):
                    continue
                p = own[turn]
                if turn:
                    p = replace(p, mask_input=answers[i].low_res[0, 0].cpu().float().numpy())
                asked[i] = p
                form = p.mask is None, p.num_tokens, p.mask_input is None
                groups[p.area is None, *form].append(i)
            for group in groups.values():
                found = self._answers.at_once.computed(partial(self._decoded, frame, asked), group)
                answers.update(zip(group, found, strict=True))
        return {i: self._within(prompts[i], answer) for i, answer in answers.items()}

    def _decoded(self, frame: int, asked: Mapping[int, Prompt], ids: Sequence[int]) -> list[Answer]:
        """Answers to prompts of one form."""
        areas = [asked[i].area for i in ids]
        decoded = self._decode_group(self._encoder(frame, areas), [asked[i] for i in ids])
        return list(self._answers.split(decoded, areas))

    def _decode_group(self, features: ImageFeatures, prompts: Sequence[Prompt]) -> Decoded:
        """features: of what is looked at for each of them."""
        model = self._answers.model
        seen = [self._geometry.looking_at(p.area) for p in prompts]
        if prompts[0].mask is not None:  # resized on the processor: the same on every device
            masks = [
                geometry.mask_to_model(torch.from_numpy(p.mask)[None, None])
                for geometry, p in zip(seen, prompts, strict=True)
                if p.mask is not None
            ]
            return model.mask_as_output(features, torch.cat(masks).to(model.device))
        points, labels = [], []
        for geometry, p in zip(seen, prompts, strict=True):
            yx, signs = p.points, p.labels
            if p.box is not None:  # the corners come first
                yx = np.concatenate((np.array(p.box, np.float32).reshape(2, 2), yx))
                signs = np.concatenate((np.array([2, 3]), signs))
            points.append(geometry.to_model(yx))
            labels.append(signs)
        mask_input = None
        if prompts[0].mask_input is not None:
            stacked = np.stack([p.mask_input for p in prompts if p.mask_input is not None])
            mask_input = as_mask_input(torch.from_numpy(stacked)[:, None].to(model.device))
        return model.decode_masks(
            features,
            model.without_memory(features),
            torch.from_numpy(np.stack(points)).to(model.device),
            torch.from_numpy(np.stack(labels)).to(model.device),
            mask_input,
            multimask=prompts[0].num_tokens == 1,
        )

    def _within(self, prompt: Prompt, answer: Answer) -> Answer:
        """An answer without what lies where the object may not lie."""
        if prompt.within is None:
            return answer
        seen = self._geometry.looking_at(prompt.area)
        allowed = seen.mask_to_low_res(torch.from_numpy(prompt.within)[None, None])
        outside = allowed.to(answer.low_res.device) < 0.5
        limited = torch.where(outside, answer.low_res.clamp(max=_BEYOND), answer.low_res)
        return replace(answer, low_res=limited)

    @torch.inference_mode()
    def _remember(self, frame: int, answers: Mapping[int, Answer]) -> dict[int, Memory]:
        whole = [i for i, answer in answers.items() if answer.area is None]
        close = [i for i, answer in answers.items() if answer.area is not None]

        def remembered(ids: Sequence[int]) -> list[Memory]:
            found = [answers[i] for i in ids]
            return self._answers.remember(
                self._encoder(frame, [one.area for one in found]),
                torch.cat([one.low_res for one in found]),
                torch.cat([one.object_score for one in found]),
                torch.cat([one.pointer for one in found]),
                binarise=True,
            )

        at_once, memories = self._answers.at_once, dict[int, Memory]()
        for ids in (whole, close):
            memories.update(zip(ids, at_once.computed(remembered, ids), strict=True))
        return memories
