"""The SAM 2 network, one file per component of the paper."""

from sam2_engine.model.compiled import compile_model, say, say_nothing
from sam2_engine.model.config import VARIANTS, ConvTrunkConfig, HieraConfig, ModelConfig
from sam2_engine.model.sam2 import ABSENT_LOGIT, SAM2, Decoded, ImageFeatures, as_mask_input

__all__ = [
    "ABSENT_LOGIT",
    "SAM2",
    "VARIANTS",
    "ConvTrunkConfig",
    "Decoded",
    "HieraConfig",
    "ImageFeatures",
    "ModelConfig",
    "as_mask_input",
    "compile_model",
    "say",
    "say_nothing",
]
