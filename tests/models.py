"""Small models for tests: quick, with weights that make lively masks."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from benchmarks.recipe import recipe_weights
from sam2_engine.model import SAM2, HieraConfig, ModelConfig

SMALL = ModelConfig(
    trunk=HieraConfig(
        embed_dim=16, num_heads=1, stages=(1, 2, 3, 1), global_blocks=(4,),
        windows=(8, 4, 14, 7), background_size=(7, 7),
    ),
    image_size=128, d_model=64, memory_dim=16, memory_layers=2, memory_ffn=128,
)  # fmt: skip


@lru_cache(maxsize=4)
def small_model(obj_bias: float = 2.0, draws_prompts: bool = False) -> SAM2:
    """The configuration of the small goldens, with their weights; shared, so do not change it.

    draws_prompts: with all that nano has and the published models have not.
    """
    model = SAM2(replace(SMALL, draws_prompts=draws_prompts, refines_masks=draws_prompts))
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(recipe_weights(shapes, seed=0, obj_bias=obj_bias))
    return model.eval().requires_grad_(False)


def device_model(device: str, dtype: torch.dtype) -> SAM2:
    """A copy on another device or of another type."""
    model = SAM2(SMALL)
    model.load_state_dict(small_model().state_dict())
    return model.eval().to(device, dtype)
