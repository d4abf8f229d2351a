"""Points, boxes and masks as tokens and as a dense map (paper, section 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sam2_engine.model.layers import LayerNorm2d, PointwiseConv


class RandomFourierPosition(nn.Module):
    """Position encoding with random spatial frequencies (Tancik et al., 2020)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        frequencies = nn.init.normal_(torch.empty(2, features))
        self.register_buffer("positional_encoding_gaussian_matrix", frequencies)

    def forward(self, xy: Tensor) -> Tensor:
        """(..., 2) coordinates x, y in [0, 1] -> (..., 2 * features)."""
        matrix = self.positional_encoding_gaussian_matrix
        angle = 2 * math.pi * ((2 * xy.float() - 1) @ matrix.float())
        return torch.cat((angle.sin(), angle.cos()), dim=-1).to(matrix.dtype)

    def grid(self, height: int, width: int) -> Tensor:
        """Encoding of the cell centres of a grid, (1, 2 * features, height, width)."""
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        xy = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1)
        return self(xy).permute(2, 0, 1)[None]


class PromptEncoder(nn.Module):
    """Embeds the prompts of one image, given in pixels of the model's input."""

    def __init__(self, d_model: int, image_size: int, mask_channels: int = 16) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid_size = image_size // 16
        self.pe_layer = RandomFourierPosition(d_model // 2)
        # One embedding each for negative points, positive points and the two corners of a box.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, d_model) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, d_model)
        self.no_mask_embed = nn.Embedding(1, d_model)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            PointwiseConv(mask_channels, d_model),
        )

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Points (B, N, 2) as x, y in input pixels, with labels (B, N), as tokens (B, N, C).

        Labels: 1 positive, 0 negative, 2 and 3 the first and second corner of a box, -1 padding.
        """
        tokens = self.pe_layer((points + 0.5) / self.image_size)
        labels = labels[..., None]
        tokens = torch.where(labels == -1, self.not_a_point_embed.weight, tokens)
        for label, embedding in enumerate(self.point_embeddings.parameters()):
            tokens = tokens + (labels == label) * embedding
        return tokens

    def embed_mask(self, mask_input: Tensor) -> Tensor:
        """Logits (B, 1, S/4, S/4) as a dense map (B, C, S/16, S/16)."""
        return self.mask_downscaling(mask_input.to(self.no_mask_embed.weight.dtype))

    def no_mask(self) -> Tensor:
        """The dense map that stands for 'no mask', (1, C, S/16, S/16)."""
        embed = self.no_mask_embed.weight[:, :, None, None]
        return embed.expand(-1, -1, self.grid_size, self.grid_size)

    def dense_position(self) -> Tensor:
        """Position encoding of the image features, (1, C, S/16, S/16)."""
        return self.pe_layer.grid(self.grid_size, self.grid_size)


CERTAIN = 10.0
"""The logit in the middle of a prompt that is drawn."""
_CLICK_RADIUS = 6.0  # pixels of the model's input


def draw_prompts(
    points: Tensor, labels: Tensor, mask_input: Tensor | None, image_size: int
) -> Tensor:
    """Logits (B, 1, S/4, S/4) that say where prompts are: a box is the ellipse in it, positive
    inside and negative outside; a click is a spot of its sign.

    Args:
        points: (B, N, 2) x, y in input pixels.
        labels: (B, N), as `PromptEncoder.embed_points` takes them.
        mask_input: (B, 1, S/4, S/4) logits of an earlier answer, which takes the box's place.
    """
    side = image_size // 4
    centres = 4 * (torch.arange(side, device=points.device) + 0.5)
    x, y = centres.view(1, 1, side), centres.view(1, side, 1)
    places = points.float() + 0.5

    def squared(centre: Tensor, reach: Tensor) -> Tensor:
        """(B, S/4, S/4) squared distance from (B, 2) centres in units of (B, 2) reaches."""
        (cx, cy), (rx, ry) = centre[:, :, None, None].unbind(1), reach[:, :, None, None].unbind(1)
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2

    if mask_input is None:
        first, second = ((places * (labels == corner)[..., None]).sum(dim=1) for corner in (2, 3))
        reach = ((second - first).abs() + 1) / 2
        ellipse = (CERTAIN * (1 - squared((first + second) / 2, reach))).clamp(min=-CERTAIN)
        drawn = ellipse * (labels == 2).any(dim=1)[:, None, None]
    else:
        drawn = mask_input[:, 0].float()
    signs = (labels == 1).float() - (labels == 0).float()
    for place, sign in zip(places.unbind(1), signs.unbind(1), strict=True):
        spot = torch.exp(-squared(place, torch.full_like(place, _CLICK_RADIUS)))
        drawn = drawn + CERTAIN * sign[:, None, None] * spot
    return drawn[:, None]
