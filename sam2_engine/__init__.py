"""The SAM 2 engine: tensors, frames and prompts; no napari, no Qt, no file formats.

model = load_model("nano")
predictor = SequencePredictor(model, volume)  # (Z, Y, X), or anything with frames
predictor.set_prompts(1, frame=40, box=(y0, x0, y1, x1))
for result in predictor.propagate():
    labels[result.frame] = result.labels()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam2_engine.frame_result import FrameResult
    from sam2_engine.prompts import Prompt
    from sam2_engine.sequence import SequencePredictor
    from sam2_engine.weights import list_models, load_model

__all__ = ["FrameResult", "Prompt", "SequencePredictor", "list_models", "load_model"]

_HOMES = {
    "FrameResult": "frame_result",
    "Prompt": "prompts",
    "SequencePredictor": "sequence",
    "list_models": "weights",
    "load_model": "weights",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and no more.

    If the package imported its modules, two threads that ask for different ones first could each
    wait for what the other has begun, which Python ends with an ImportError.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
