"""The SAM 2 engine: tensors, frames and prompts; no napari, no Qt, no file formats.

model = load_model("nano")
predictor = SequencePredictor(model, volume)  # (Z, Y, X), or anything with frames
predictor.set_prompts(1, frame=40, box=(y0, x0, y1, x1))
for result in predictor.propagate():
    labels[result.frame] = result.labels()
"""

from sam2_engine.prompts import Prompt
from sam2_engine.sequence import FrameResult, SequencePredictor
from sam2_engine.weights import list_models, load_model

__all__ = ["FrameResult", "Prompt", "SequencePredictor", "list_models", "load_model"]
