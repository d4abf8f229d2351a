"""Weights: which models there are, fetching their files, and safe loading."""

from sam2_engine.weights.download import fetch, find, find_file
from sam2_engine.weights.loading import load_model, save_model
from sam2_engine.weights.registry import (
    ModelInfo,
    WeightsError,
    add_own_model,
    list_models,
    model_info,
)

__all__ = [
    "ModelInfo",
    "WeightsError",
    "add_own_model",
    "fetch",
    "find",
    "find_file",
    "list_models",
    "load_model",
    "model_info",
    "save_model",
]
