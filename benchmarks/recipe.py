"""Random weights that any implementation of SAM 2 can have: made from a seed and the names of the
published state dict, as those of the goldens in tests/parity. And a movie to track in.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam2_engine.model import SAM2, VARIANTS


def recipe_weights(
    shapes: Mapping[str, Sequence[int]], seed: int, obj_bias: float
) -> dict[str, Tensor]:
    """Weights of parameters by name.

    Args:
        obj_bias: of the object score; above 0, objects are found.
    """
    weights = {}
    for name, shape in shapes.items():
        rs = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
        x = rs.standard_normal(shape).astype(np.float32)
        kind = name.rsplit(".", 1)[-1]
        if name == "sam_mask_decoder.pred_obj_score_head.layers.2.bias":
            x = np.full(shape, obj_bias, np.float32)
        elif kind == "bias":
            x = 0.1 * x
        elif kind == "weight" and len(shape) == 1:
            x = 1 + 0.1 * x
        elif kind == "weight":
            x = x / np.sqrt(np.prod(shape[1:]))
            if "cross_attn_image." in name:
                x = 4 * x
        elif kind not in ("positional_encoding_gaussian_matrix", "maskmem_tpos_enc"):
            x = 0.1 * x
        weights[name] = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    return weights


def recipe_model(name: str, resolution: int | None, device: str) -> SAM2:
    """One of `VARIANTS` with such weights, ready to predict: in float32 on a processor ("cpu"), in
    bfloat16 elsewhere. resolution: of its input; None: its own.
    """
    config = VARIANTS[name]
    model = SAM2(config.resized(resolution or config.image_size))
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(recipe_weights(shapes, seed=0, obj_bias=2.0))
    precision = torch.float32 if device == "cpu" else torch.bfloat16
    return model.eval().requires_grad_(False).to(device, precision)


def movie_frame(t: int, size: int = 1024) -> NDArray[np.uint8]:
    """Frame t of two bright discs that drift over noise, (size, size)."""
    base = np.random.RandomState(1000).rand(size, size)
    yy, xx = np.mgrid[:size, :size] / size
    frame = 60 * base + 20 * np.sin(6 * xx + 0.3 * t)
    frame[(xx - 0.3 - 0.015 * t) ** 2 + (yy - 0.4) ** 2 < 0.0225] += 110
    frame[(xx - 0.7) ** 2 + (yy - 0.75 + 0.012 * t) ** 2 < 0.01] += 70
    return frame.clip(0, 255).astype(np.uint8)
