"""What the engine gives for a session's prompts, asked by a predictor that knows nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from models import small_model

from napari_sam2.engine_prompts import area_on, engine_prompts
from napari_sam2.session import Session
from sam2_engine.sequence import SequencePredictor


def fresh_predictor(session: Session, objects: Iterable[int] | None = None) -> SequencePredictor:
    """With the prompts of some objects of the sequence that is shown; by default of all."""
    view = session.view
    predictor = SequencePredictor(
        small_model(),
        view,
        window=session.window,
        fit="pad",
        pixel_size=view.pixel_size,
        refine_clicks=True,
        max_prompted_frames="adjacent",
    )
    for object_id in session.prompts if objects is None else objects:
        for frame, said in session.prompts[object_id].items():
            area = area_on(said, session.area(object_id), view.frame_shape)
            given = engine_prompts(said, predictor.source.geometry.looking_at(area))
            predictor.set_prompts(object_id, frame, **given)
    return predictor
