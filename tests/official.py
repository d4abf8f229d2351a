"""The published video algorithm, with its history, run on this engine's parts.

The official predictor's masks depend on the order of calls (passes remember one another, prompts
of the future are seen). The goldens record that, so the parity tests replay it here; the
network, the memory bank and the geometry are the engine's own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.recipe import recipe_weights
from sam2_engine.frames import Geometry
from sam2_engine.memory import Memory, MemoryBank
from sam2_engine.model import SAM2, VARIANTS, HieraConfig, ImageFeatures, ModelConfig


@dataclass(frozen=True)
class Goldens:
    """A .json and its .npz of the parity folder."""

    path: Path

    @property
    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = json.loads(self.path.read_text())
        return info

    @property
    def arrays(self) -> Any:
        return np.load(self.path.with_suffix(".npz"))

    def model(self, obj_bias: float | None = None) -> SAM2:
        """The network in eval mode, its configuration read from name and shapes."""
        info = self.info
        bias = info["obj_bias"] if obj_bias is None else obj_bias
        return build(self.config(), info["state_dict"], info["seed"], bias)

    def config(self) -> ModelConfig:
        kind, version, *size = self.path.stem.split("_", 2)
        if kind == "full":
            family = "sam2.1" if version == "2.1" else "sam2"
            return VARIANTS[f"{family}-{size[0].replace('_', '-')}"]
        return ModelConfig(
            trunk=HieraConfig(
                embed_dim=16, num_heads=1, stages=(1, 2, 3, 1), global_blocks=(4,),
                windows=(8, 4, 14, 7), background_size=(7, 7),
            ),
            version=version, image_size=self.arrays["frames"].shape[-1],
            d_model=64, memory_dim=16, memory_layers=2, memory_ffn=128,
        )  # fmt: skip


def build(config: ModelConfig, shapes: dict[str, list[int]], seed: int, obj_bias: float) -> SAM2:
    with torch.device("meta"):
        model = SAM2(config)
    model.load_state_dict(recipe_weights(shapes, seed, obj_bias), strict=True, assign=True)
    return model.eval()


def full_frame(t: int) -> np.ndarray:
    """Frame t of the movie of the full goldens, (1024, 1024) uint8."""
    base = np.random.RandomState(1000).rand(1024, 1024)
    yy, xx = np.mgrid[:1024, :1024] / 1024
    frame = 60 * base + 20 * np.sin(6 * xx + 0.3 * t)
    frame[(xx - 0.3 - 0.015 * t) ** 2 + (yy - 0.4) ** 2 < 0.0225] += 110
    frame[(xx - 0.7) ** 2 + (yy - 0.75 + 0.012 * t) ** 2 < 0.01] += 70
    return frame.clip(0, 255).astype(np.uint8)


def normalised(frame: np.ndarray) -> Tensor:
    """(S, S) uint8 -> (1, 3, S, S) as the published transform gives it."""
    image = torch.from_numpy(frame).float()[None, None].expand(1, 3, -1, -1) / 255
    mean = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[None, :, None, None]
    return (image - mean) / std


@dataclass
class Output:
    """What the official predictor stores of one object on one frame."""

    low_res: Tensor
    obj_ptr: Tensor
    score: Tensor
    maskmem: Tensor = None  # type: ignore[assignment]  # not before it is propagated from


class OfficialTracker:
    """One inference state of the official video predictor, prompted frames all conditioning."""

    def __init__(self, model: SAM2, frames: list[np.ndarray], video_hw: tuple[int, int]) -> None:
        self.model = model
        self.frames = frames
        self.geometry = Geometry(video_hw, model.image_size)
        self.objects: list[int] = []
        self.prompted: dict[int, dict[int, Output]] = defaultdict(dict)
        self.tracked: dict[int, dict[int, Output]] = defaultdict(dict)
        self.seen: dict[int, dict[int, int]] = defaultdict(dict)  # frame -> direction
        self._features: dict[int, ImageFeatures] = {}

    def features(self, frame: int) -> ImageFeatures:
        if frame not in self._features:
            self._features[frame] = self.model.encode_image(normalised(self.frames[frame]))
        return self._features[frame]

    def prompt(self, spec: dict[str, Any]) -> Tensor:
        """Add a prompt as the goldens' .json writes it; video-size logits of all objects there."""
        frame, obj = spec["frame"], spec["obj"]
        if obj not in self.objects:
            self.objects.append(obj)
        features = self.features(frame)
        height, width = self.geometry.frame_shape
        if "mask" in spec:
            mask = torch.zeros(1, 1, height, width)
            mask[0, 0, [y for y, _ in spec["mask"]], [x for _, x in spec["mask"]]] = 1
            decoded = self.model.mask_as_output(features, self.geometry.mask_to_model(mask))
        else:
            xy = np.array(spec.get("points", []), np.float32).reshape(-1, 2)
            labels = list(spec.get("labels", []))
            if "box" in spec:
                xy = np.concatenate((np.array(spec["box"], np.float32).reshape(2, 2), xy))
                labels = [2, 3, *labels]
            points = torch.from_numpy(self.geometry.to_model(xy[:, ::-1].copy()))[None]
            earlier = self.prompted[obj].get(frame) or self.tracked[obj].get(frame)
            decoded = self.model.decode_masks(
                features,
                self._conditioned(obj, frame),
                points,
                torch.tensor(labels)[None],
                None if earlier is None else earlier.low_res.clamp(-32, 32),
                multimask=len(labels) == 1,
            )
        self.prompted[obj][frame] = Output(decoded.low_res, decoded.pointer, decoded.object_score)
        self.tracked[obj].pop(frame, None)
        return self.video_res(frame)

    def propagate(self, start: int, reverse: bool) -> Any:
        """Yield (frame, outputs of all objects in the order of their prompts)."""
        for outputs in self.prompted.values():
            for frame, output in outputs.items():
                if output.maskmem is None:
                    output.maskmem = self._memory(frame, output, binarise=True)
        step = -1 if reverse else 1
        end = -1 if reverse else len(self.frames)
        for frame in range(start, end, step):
            for obj in self.objects:
                if frame not in self.prompted[obj]:
                    self.seen[obj][frame] = step
                    features = self.features(frame)
                    conditioned = self._conditioned(obj, frame)
                    decoded = self.model.decode_masks(features, conditioned, multimask=True)
                    output = Output(decoded.low_res, decoded.pointer, decoded.object_score)
                    output.maskmem = self._memory(frame, output, binarise=False)
                    self.tracked[obj][frame] = output
                self.seen[obj][frame] = step
            yield frame, [self.output(obj, frame) for obj in self.objects]

    def output(self, obj: int, frame: int) -> Output:
        return self.prompted[obj].get(frame) or self.tracked[obj][frame]

    def video_res(self, frame: int) -> Tensor:
        """(objects, 1, H, W) logits; objects without an output there as absent."""
        height, width = self.geometry.frame_shape
        rows = []
        for obj in self.objects:
            output = self.prompted[obj].get(frame) or self.tracked[obj].get(frame)
            if output is None:
                rows.append(torch.full((1, 1, height, width), -1024.0))
            else:
                rows.append(self.geometry.logits_to_frame(output.low_res))
        return torch.cat(rows)

    def _conditioned(self, obj: int, frame: int) -> Tensor:
        step = self.seen[obj].get(frame)
        features = self.features(frame)
        if step is None:  # a frame that was never tracked is conditioned on no memory
            return self.model.without_memory(features)
        memories = {
            t: Memory(o.maskmem, o.obj_ptr)
            for t, o in self.prompted[obj].items()
            if o.maskmem is not None
        }
        bank = MemoryBank(self.model.config, len(self.frames), step, memories, None)
        for t in range(frame - 15 * step, frame, step):
            output = self.tracked[obj].get(t)
            if output is not None and output.maskmem is not None:
                bank.add(t, Memory(output.maskmem, output.obj_ptr), confidence=1.0)
        return self.model.attend_to_memory(features, self.model.memory_tokens(*bank.recall(frame)))

    def _memory(self, frame: int, output: Output, binarise: bool) -> Tensor:
        high_res = F.interpolate(output.low_res, size=(self.model.image_size,) * 2, mode="bilinear")
        return self.model.encode_memory(self.features(frame), high_res, output.score, binarise)
