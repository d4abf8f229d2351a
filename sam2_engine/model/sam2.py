"""SAM 2: the components joined. State and the loop over frames are in sam2_engine.sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam2_engine.model.compiled import CompiledParts, Compute, Part
from sam2_engine.model.config import HieraConfig, ModelConfig
from sam2_engine.model.conv_trunk import ConvTrunk
from sam2_engine.model.hiera import Hiera
from sam2_engine.model.layers import MLP, Linear, recycle_memory, resized
from sam2_engine.model.mask_decoder import MaskDecoder
from sam2_engine.model.memory_attention import MemoryAttention
from sam2_engine.model.memory_encoder import MemoryEncoder
from sam2_engine.model.neck import FpnNeck
from sam2_engine.model.position import sine_encoding_1d, sine_encoding_2d
from sam2_engine.model.prompt_encoder import PromptEncoder, draw_prompts
from sam2_engine.model.recalled import Picked, Recalled, map_tokens, with_detail

ABSENT_LOGIT = -1024.0
"""Every mask logit of an object that is judged not to be visible."""
_MASK_INPUT_LIMIT = 32.0
_MASK_SCALE, _MASK_BIAS = 20.0, -10.0
"""Masks are scaled so before they enter the memory encoder, and mask prompts before they leave."""


class ImageFeatures(NamedTuple):
    """What the image encoder knows of B frames of size S, with C = d_model."""

    stride16: Tensor
    """(B, C, S/16, S/16)"""
    stride8: Tensor
    """(B, C/4, S/8, S/8)"""
    stride4: Tensor
    """(B, C/8, S/4, S/4)"""

    @property
    def shared_stride16(self) -> Tensor:
        """stride16, (1, C, S/16, S/16) where it was expanded from one frame."""
        return self.stride16[:1] if self.stride16.stride(0) == 0 else self.stride16

    def expand(self, count: int) -> ImageFeatures:
        """One frame's features for several objects, without a copy."""
        return ImageFeatures(*(level.expand(count, -1, -1, -1) for level in self))

    def select(self, index: int | slice | Tensor) -> ImageFeatures:
        """Some frames of the batch; a single index keeps the batch axis."""
        if isinstance(index, int):
            index = slice(index, index + 1)
        return ImageFeatures(*(level[index] for level in self))


@dataclass(frozen=True)
class Decoded:
    """Masks of B objects on one frame."""

    candidates: Tensor
    """(B, M, S/4, S/4) mask logits, as the decoder gave them."""
    ious: Tensor
    """(B, M) predicted IoU of each candidate, in [0, 1]."""
    object_score: Tensor
    """(B, 1) logit, positive where the object is visible."""
    best: Tensor
    """(B,) index of the candidate with the highest predicted IoU."""
    pointer: Tensor
    """(B, C) object pointer."""

    @property
    def low_res(self) -> Tensor:
        """(B, 1, S/4, S/4) logits of the best candidate; ABSENT_LOGIT where there is no object."""
        visible = (self.object_score > 0)[:, :, None, None]
        return torch.where(visible, self._pick(self.candidates)[:, None], ABSENT_LOGIT)

    @property
    def iou(self) -> Tensor:
        """(B,) predicted IoU of the best candidate."""
        return self._pick(self.ious)

    def _pick(self, values: Tensor) -> Tensor:
        return values[torch.arange(len(self.best), device=self.best.device), self.best]


def as_mask_input(logits: Tensor) -> Tensor:
    """Logits of an earlier answer as they are fed back to the decoder: no surer than it learnt."""
    return logits.clamp(-_MASK_INPUT_LIMIT, _MASK_INPUT_LIMIT)


class ImageEncoder(nn.Module):
    """Trunk and neck: (B, 3, S, S) -> (B, C, ., .) at strides 4, 8 and 16."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        trunk = config.trunk
        self.trunk = Hiera(trunk) if isinstance(trunk, HieraConfig) else ConvTrunk(trunk)
        self.neck = FpnNeck(trunk.channels, config.d_model)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.neck(self.trunk(images))


class SAM2(nn.Module):
    """The network. State-dict names are those of the published checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        recycle_memory()
        self.config = config
        self.is_mixed = False
        """Whether it multiplies in half precision and keeps all else in float32."""
        self.compiled: CompiledParts | None = None
        """What runs compiled, if that was asked for; see ``compile_model``."""
        d_model, memory_dim = config.d_model, config.memory_dim
        self.image_encoder = ImageEncoder(config)
        self.memory_attention = MemoryAttention(
            d_model, memory_dim, config.memory_ffn, config.memory_layers
        )
        self.memory_encoder = MemoryEncoder(d_model, memory_dim)
        self.sam_prompt_encoder = PromptEncoder(d_model, config.image_size)
        self.sam_mask_decoder = MaskDecoder(
            d_model, config.decoder_mlp, refines=config.refines_masks
        )
        self.obj_ptr_proj = MLP(d_model, d_model, d_model, depth=3)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(config.num_memories, 1, 1, memory_dim))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, d_model))
        # In every checkpoint, but unused: features without memory get no_mem_embed alone.
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, d_model))
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, d_model))
        if config.version == "2.1":
            self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, memory_dim))
            self.obj_ptr_tpos_proj = nn.Linear(d_model, memory_dim)
        for embedding in (
            self.maskmem_tpos_enc, self.no_mem_embed, self.no_mem_pos_enc, self.no_obj_ptr,
        ):  # fmt: skip
            nn.init.trunc_normal_(embedding, std=0.02)

    @property
    def image_size(self) -> int:
        """Side S of the square input, in pixels."""
        return self.config.image_size

    @property
    def device(self) -> torch.device:
        return self.no_obj_ptr.device

    @property
    def dtype(self) -> torch.dtype:
        return self.no_obj_ptr.dtype

    def mix_precision(self) -> SAM2:
        """From now on, linear layers of the trunk and of memory attention, and attention within the
        trunk and to memories, multiply in bfloat16; all else stays in float32. Returns the model.

        For processors that multiply in bfloat16, and not for training.
        """
        self.is_mixed = True
        for part in (self.image_encoder.trunk, self.memory_attention):
            for layer in part.modules():
                if isinstance(layer, Linear):
                    layer.weight.data = layer.weight.data.to(torch.bfloat16)
        return self

    # -- image ---------------------------------------------------------------------------------

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Encode (B, 3, S, S) images, normalised with ImageNet's mean and deviation."""
        return ImageFeatures(*self._run("encoder", self._encode_image, images.to(self.dtype)))

    def _encode_image(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        neck, decoder = self.image_encoder.neck, self.sam_mask_decoder
        levels = self.image_encoder.trunk(images)
        return (
            neck.stride16(levels),
            neck.lateral(levels, 1, after=decoder.conv_s1),
            neck.lateral(levels, 0, after=decoder.conv_s0),
        )

    # -- memory --------------------------------------------------------------------------------

    def without_memory(self, features: ImageFeatures) -> Tensor:
        """Stride-16 features of a frame that is conditioned on no memory, (B, C, S/16, S/16)."""
        return features.stride16 + self.no_mem_embed.transpose(1, 2)[..., None]

    def memory_tokens(
        self,
        memories: Sequence[tuple[Tensor, int]],
        pointers: Sequence[tuple[Tensor, float]],
        picked: Sequence[Picked] | None = None,
    ) -> Recalled:
        """Lay out a memory bank as tokens.

        Args:
            memories: pairs of a memory (B, memory_dim, h, w) and its temporal index: 6 for
                prompted frames, 0 to 5 for the frames 1 to 6 before the current one.
            pointers: pairs of an object pointer (B, C) and its signed distance in frames divided
                by min(number of frames, 16) - 1.
            picked: of one object (B = 1), what is looked at of each memory; by default all.
        """
        shape, device = memories[0][0].shape[-2:], self.device
        place = sine_encoding_2d(self.config.memory_dim, *shape, device=device)
        everywhere = map_tokens(place).to(self.dtype)
        tokens, positions, rows = [], [], []
        for number, (memory, index) in enumerate(memories):
            if picked is None:
                what, where = map_tokens(memory), everywhere
            else:
                what, where, own = picked[number]
                rows.append(own)
            tokens.append(what.to(self.dtype))
            positions.append(where.to(self.dtype) + self.maskmem_tpos_enc[index])
        count = 0
        if pointers:
            what, where = self._pointer_tokens(pointers)
            tokens.append(what)
            positions.append(where)
            count = what.shape[1]
        recalled = Recalled(torch.cat(tokens, dim=1), torch.cat(positions, dim=1), count)
        return recalled if picked is None else with_detail(recalled, rows, shape.numel())

    def _pointer_tokens(self, pointers: Sequence[tuple[Tensor, float]]) -> tuple[Tensor, Tensor]:
        """(B, N, memory_dim) and their place in time, (1, N, memory_dim)."""
        # A pointer is wider than a memory token: it becomes several tokens.
        split = self.config.d_model // self.config.memory_dim
        stacked = torch.stack([pointer for pointer, _ in pointers], dim=1)
        tokens = stacked.unflatten(2, (split, self.config.memory_dim)).flatten(1, 2)
        if self.config.version == "2.1":
            times = torch.tensor([time for _, time in pointers], device="cpu")
            encoding = sine_encoding_1d(times, self.config.d_model).to(tokens.device, self.dtype)
            encoding = self.obj_ptr_tpos_proj(encoding).repeat_interleave(split, dim=0)
        else:
            encoding = tokens.new_zeros(tokens.shape[1:], dtype=self.dtype)
        return tokens, encoding[None]

    def attend_to_memory(self, features: ImageFeatures, recalled: Recalled) -> Tensor:
        """Stride-16 features conditioned on what memory_tokens gave, (B, C, S/16, S/16)."""
        image = features.shared_stride16
        height, width = image.shape[-2:]
        place = sine_encoding_2d(self.config.d_model, height, width, device=image.device)
        conditioned = self.memory_attention(
            image.flatten(2).transpose(1, 2),
            place.flatten(2).transpose(1, 2).to(image.dtype),
            *recalled,
        )
        return conditioned.transpose(1, 2).unflatten(2, (height, width))

    def encode_memory(
        self, features: ImageFeatures, high_res: Tensor, object_score: Tensor, binarise: bool
    ) -> Tensor:
        """Make a memory of a frame and its mask.

        Args:
            features: of the frame, B objects.
            high_res: (B, 1, S, S) mask logits.
            object_score: (B, 1) logits.
            binarise: threshold the mask first, as is done on prompted frames.

        Returns:
            (B, memory_dim, S/16, S/16).
        """
        inputs = features.shared_stride16, high_res, object_score, binarise
        if binarise:  # a prompted frame
            return self._encode_memory(*inputs)[0]
        return self._run("memory encoder", self._encode_memory, *inputs)[0]

    def _encode_memory(
        self, image: Tensor, high_res: Tensor, object_score: Tensor, binarise: bool
    ) -> tuple[Tensor]:
        mask = (high_res > 0).to(self.dtype) if binarise else high_res.sigmoid().to(self.dtype)
        memory = self.memory_encoder(image, mask * _MASK_SCALE + _MASK_BIAS)
        if self.config.version == "2.1":
            absent = (object_score <= 0).to(self.dtype)
            memory = memory + (absent * self.no_obj_embed_spatial)[:, :, None, None]
        return (memory,)

    # -- masks ---------------------------------------------------------------------------------

    def decode_masks(
        self,
        features: ImageFeatures,
        conditioned: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask: bool = False,
    ) -> Decoded:
        """Decode the masks of B objects.

        Args:
            features: of the frame, for B objects.
            conditioned: (B, C, S/16, S/16), from attend_to_memory or without_memory.
            points: (B, N, 2) x, y in pixels of the model's input.
            labels: (B, N): 1 positive, 0 negative, 2 and 3 corners of a box, -1 padding.
            mask_input: (B, 1, S/4, S/4) logits of an earlier answer.
            multimask: decode three candidates, for ambiguous prompts.
        """
        levels = features.stride8, features.stride4, conditioned
        if points is None and multimask:  # a tracked frame
            if mask_input is not None:  # of one type always, for what is compiled
                mask_input = mask_input.to(self.dtype)
            found = self._run("decoder", self._decode_masks, *levels, None, None, mask_input, True)
        else:
            found = self._decode_masks(*levels, points, labels, mask_input, multimask)
        return Decoded(*found)

    def _decode_masks(
        self,
        stride8: Tensor,
        stride4: Tensor,
        conditioned: Tensor,
        points: Tensor | None,
        labels: Tensor | None,
        mask_input: Tensor | None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The fields of Decoded."""
        batch = conditioned.shape[0]
        encoder = self.sam_prompt_encoder
        if self.config.draws_prompts and points is not None and labels is not None:
            mask_input = draw_prompts(points, labels, mask_input, self.image_size)
        padding = torch.zeros(batch, 1, 2, device=self.device)
        if points is None or labels is None:
            points, labels = padding, -torch.ones(batch, 1, device=self.device)
        points = torch.cat((points.float(), padding), dim=1)
        labels = torch.cat((labels, labels.new_full((batch, 1), -1)), dim=1)
        dense = encoder.no_mask() if mask_input is None else encoder.embed_mask(mask_input)
        masks, ious, tokens, object_score = self.sam_mask_decoder(
            conditioned,
            stride8,
            stride4,
            encoder.dense_position(),
            encoder.embed_points(points, labels),
            dense,
            multimask,
            stability_fallback=not self.training,
            mask_input=mask_input,
            # A short training answers boxes much larger than its own with nothing.
            empty_is_stable=not self.config.draws_prompts,
        )
        best = ious.argmax(dim=1)
        token = tokens[torch.arange(batch, device=best.device), best]
        visible = (object_score > 0).to(token.dtype)
        pointer = self._pointer(self.obj_ptr_proj(token), visible)
        return masks, ious, object_score, best, pointer

    def mask_as_output(self, features: ImageFeatures, mask: Tensor) -> Decoded:
        """Take a mask prompt (B, 1, S, S), 0 or 1, as the answer; the decoder adds a pointer."""
        mask = mask.to(self.dtype)
        low_res = resized(
            mask.float() * _MASK_SCALE + _MASK_BIAS, (self.image_size // 4, self.image_size // 4)
        )
        decoded = self.decode_masks(
            features, features.stride16, mask_input=self.mask_downsample(mask)
        )
        visible = mask.flatten(1).any(dim=1, keepdim=True)
        return Decoded(
            candidates=low_res,
            ious=torch.ones_like(decoded.ious),
            object_score=visible * _MASK_SCALE + _MASK_BIAS,
            best=decoded.best,
            pointer=self._pointer(decoded.pointer, visible.to(self.dtype)),
        )

    def upscale(self, low_res: Tensor) -> Tensor:
        """(B, 1, S/4, S/4) logits -> (B, 1, S, S) float32."""
        return F.interpolate(low_res.float(), size=(self.image_size,) * 2, mode="bilinear")

    def _run(
        self, part: Part, compute: Compute, *inputs: Tensor | bool | None
    ) -> tuple[Tensor, ...]:
        """What a part computes, compiled if that was asked for."""
        if self.compiled is None:
            return compute(*inputs)
        return self.compiled.run(part, compute, *inputs)

    def _pointer(self, pointer: Tensor, visible: Tensor) -> Tensor:
        return visible * pointer + (1 - visible) * self.no_obj_ptr
