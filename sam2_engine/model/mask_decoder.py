"""The mask decoder: prompts and image features become masks, scored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam2_engine.model.layers import MLP, Attention, LayerNorm2d
from sam2_engine.model.prompt_encoder import CERTAIN

_NUM_CANDIDATES = 3
_STABILITY_DELTA = 0.05
_STABILITY_THRESHOLD = 0.98


class TokenToImage(Attention):
    """Attention of a few tokens to the image.

    An image's tokens are many, and their projection is linear. So the queries are taken back
    through it and meet the image as it is, and of its values the averages are projected: half the
    work, and no array as large as the image in between.
    """

    def forward(self, tokens: Tensor, placed: Tensor, image: Tensor) -> Tensor:
        """Tokens (B, N, C), image with and without its position encoding (B, HW, C) -> (B, N, C).

        The bias of the keys adds the same to all scores of a token, which changes no weight.
        """
        queries = _by_head(self.q_proj(tokens), self.heads)
        queries = queries * queries.shape[-1] ** -0.5
        queries = queries @ self.k_proj.weight.unflatten(0, (self.heads, -1))
        scores = queries.flatten(1, 2) @ placed.transpose(1, 2)
        averages = (scores.softmax(dim=-1) @ image).unflatten(1, (self.heads, -1))
        values = averages @ self.v_proj.weight.unflatten(0, (self.heads, -1)).transpose(1, 2)
        return self.out_proj(values.transpose(1, 2).flatten(2) + self.v_proj.bias)


class ImageToToken(Attention):
    """Attention of the image to a few tokens, whose keys and values meet it as it is, likewise."""

    def forward(self, placed: Tensor, keys: Tensor, tokens: Tensor) -> Tensor:
        """Image with its position encoding (B, HW, C), tokens with and without theirs (B, N, C) ->
        (B, HW, C).
        """
        keys = _by_head(self.k_proj(keys), self.heads)
        keys = keys * keys.shape[-1] ** -0.5
        bias = keys @ self.q_proj.bias.unflatten(0, (self.heads, -1, 1))
        keys = keys @ self.q_proj.weight.unflatten(0, (self.heads, -1))
        scores = torch.baddbmm(bias.flatten(1, 2), keys.flatten(1, 2), placed.transpose(1, 2))
        weights = scores.unflatten(1, (self.heads, -1)).softmax(dim=2).flatten(1, 2)
        values = _by_head(self.v_proj(tokens), self.heads)
        values = values @ self.out_proj.weight.t().unflatten(0, (self.heads, -1))
        values = values + self.out_proj.bias / self.heads  # the weights of a head add up to 1
        return weights.transpose(1, 2) @ values.flatten(1, 2)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image; then the image attends to the tokens."""

    def __init__(self, channels: int, heads: int, mlp: int, first: bool) -> None:
        super().__init__()
        inner = channels // 2
        self.self_attn = Attention(channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = TokenToImage(channels, heads, inner)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, mlp, channels, depth=2)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = ImageToToken(channels, heads, inner)
        self.first = first

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.first:  # the tokens are their own position encoding still
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_pe
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        placed = image + image_pe
        attended = self.cross_attn_token_to_image(tokens + token_pe, placed, image)
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        attended = self.cross_attn_image_to_token(placed, tokens + token_pe, tokens)
        return tokens, self.norm4(image + attended)


class TwoWayTransformer(nn.Module):
    """Two such blocks, and a last look of the tokens at the image."""

    def __init__(self, channels: int, heads: int, mlp: int, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(channels, heads, mlp, first=index == 0) for index in range(depth)
        )
        self.final_attn_token_to_image = TokenToImage(channels, heads, channels // 2)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, HW, C), its position encoding (1, HW, C) and tokens (B, N, C), transformed."""
        queries = tokens
        for layer in self.layers:
            queries, image = layer(queries, image, tokens, image_pe)
        attended = self.final_attn_token_to_image(queries + tokens, image + image_pe, image)
        return self.norm_final_attn(queries + attended), image


class Refinement(nn.Module):
    """Adds to upscaled features what their neighbours and the mask input at the same place say.

    Not in the published models, whose encoder leaves nothing to be done at these strides; a
    convolutional trunk's features at strides 4 and 8 have seen little of the image.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels + 1, hidden, kernel_size=3, padding=1)
        self.leave = nn.Conv2d(hidden, channels, kernel_size=3, padding=1)
        nn.init.zeros_(self.leave.weight)  # starts as no change
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, mask_input: Tensor) -> Tensor:
        """Refine features (B, C, s, s) by mask logits (B, 1, k s, k s)."""
        logits = F.avg_pool2d(mask_input, mask_input.shape[-1] // features.shape[-1])
        drawn = (logits / CERTAIN).clamp(-1, 1).to(features.dtype)
        # Channels last in memory, as the features come: other convolutions take twice as long.
        both = torch.cat((features.permute(0, 2, 3, 1), drawn.permute(0, 2, 3, 1)), dim=3)
        return features + self.leave(F.gelu(self.enter(both.permute(0, 3, 1, 2))))


class DecoderOutput(NamedTuple):
    """What the decoder says of B objects, with M = 3 candidates or M = 1 mask."""

    masks: Tensor
    """(B, M, S/4, S/4) logits."""
    ious: Tensor
    """(B, M) predicted IoU in [0, 1]."""
    tokens: Tensor
    """(B, M, C) the mask tokens, from which object pointers are made."""
    object_score: Tensor
    """(B, 1) logit, positive where the object is visible."""


class MaskDecoder(nn.Module):
    """Decodes one mask, or three candidates where the prompt is ambiguous."""

    def __init__(self, d_model: int, mlp: int, heads: int = 8, refines: bool = False) -> None:
        super().__init__()
        num_masks = 1 + _NUM_CANDIDATES
        self.transformer = TwoWayTransformer(d_model, heads, mlp)
        self.iou_token = nn.Embedding(1, d_model)
        self.mask_tokens = nn.Embedding(num_masks, d_model)
        self.obj_score_token = nn.Embedding(1, d_model)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(d_model, d_model // 4, kernel_size=2, stride=2),
            LayerNorm2d(d_model // 4),
            nn.GELU(),
            nn.ConvTranspose2d(d_model // 4, d_model // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.conv_s0 = nn.Conv2d(d_model, d_model // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(d_model, d_model // 4, kernel_size=1)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(d_model, d_model, d_model // 8, depth=3) for _ in range(num_masks)
        )
        self.iou_prediction_head = MLP(d_model, 256, num_masks, depth=3)
        self.pred_obj_score_head = MLP(d_model, d_model, 1, depth=3)
        self.refinements = nn.ModuleList()
        if refines:
            self.refinements.append(Refinement(d_model // 4, 48))
            self.refinements.append(Refinement(d_model // 8, 24))

    def forward(
        self,
        image: Tensor,
        stride8: Tensor,
        stride4: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        multimask: bool,
        stability_fallback: bool = True,
        mask_input: Tensor | None = None,
        empty_is_stable: bool = True,
    ) -> DecoderOutput:
        """Decode.

        Args:
            image: (B, C, S/16, S/16) features, conditioned on memory or on none.
            stride8: (B, C/4, S/8, S/8), from conv_s1.
            stride4: (B, C/8, S/4, S/4), from conv_s0.
            image_pe: (1, C, S/16, S/16).
            sparse: (B, N, C) prompt tokens.
            dense: (B or 1, C, S/16, S/16) prompt map.
            multimask: three candidates (masks 1 to 3) in place of one (mask 0).
            stability_fallback: where mask 0 changes much with the threshold, take the best
                candidate in its place.
            mask_input: (B, 1, S/4, S/4) logits, of which ``dense`` was made; for refinements.
            empty_is_stable: whether mask 0 is kept where it has no pixel at all, as published.
        """
        own = torch.cat(
            (self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight)
        )
        tokens = torch.cat((own.expand(sparse.shape[0], -1, -1), sparse), dim=1)
        height, width = image.shape[-2:]
        tokens, flat = self.transformer(
            (image + dense).flatten(2).transpose(1, 2),
            image_pe.flatten(2).transpose(1, 2),
            tokens,
        )
        features = flat.transpose(1, 2).unflatten(2, (height, width))
        up1, norm, activation, up2, _ = self.output_upscaling
        features = activation(norm(up1(features) + stride8))
        features = self._refined(0, features, mask_input)
        features = activation(up2(features) + stride4)
        features = self._refined(1, features, mask_input)

        mask_tokens = tokens[:, 2 : 2 + 1 + _NUM_CANDIDATES]
        weights = torch.stack(
            [mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        masks = (weights @ features.flatten(2)).unflatten(2, features.shape[-2:])
        ious = self.iou_prediction_head(tokens[:, 1]).sigmoid()
        object_score = self.pred_obj_score_head(tokens[:, 0])
        if multimask:
            return DecoderOutput(masks[:, 1:], ious[:, 1:], mask_tokens[:, 1:], object_score)
        token = mask_tokens[:, :1]
        if stability_fallback:
            masks, ious = _stable_or_best(masks, ious, empty_is_stable)
        else:
            masks, ious = masks[:, :1], ious[:, :1]
        return DecoderOutput(masks, ious, token, object_score)

    def _refined(self, level: int, features: Tensor, mask_input: Tensor | None) -> Tensor:
        if mask_input is None or not self.refinements:
            return features
        refined: Tensor = self.refinements[level](features, mask_input)
        return refined


def _stable_or_best(masks: Tensor, ious: Tensor, empty_is_stable: bool) -> tuple[Tensor, Tensor]:
    """Mask 0 where it is stable, else the candidate with the best predicted IoU.

    Stability is the IoU of the masks at thresholds +delta and -delta.
    """
    row = torch.arange(masks.shape[0], device=masks.device)
    best = ious[:, 1:].argmax(dim=1) + 1
    single = masks[:, 0].flatten(1)
    inner = (single > _STABILITY_DELTA).sum(dim=1).float()
    outer = (single > -_STABILITY_DELTA).sum(dim=1).float()
    stability = torch.where(outer > 0, inner / outer, float(empty_is_stable))
    stable = stability >= _STABILITY_THRESHOLD
    chosen = torch.where(stable, torch.zeros_like(best), best)
    return masks[row, chosen][:, None], ious[row, chosen][:, None]
