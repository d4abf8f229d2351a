"""All of the engine with its tensors on a graphics card that is only pretended: a tensor that was
left on the processor fails here as it would there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from models import device_model, small_model
from pretend_card import CARD, pretended_card
from test_finetune import stack, tiny, trained

import napari_sam2 as ns
from napari_sam2.automatic import add_all, find_all
from sam2_engine import SequencePredictor
from sam2_engine.training.trainer import Stage, Trainer

Z, Y, X = np.indices((4, 96, 128))
LARGE = (Y - 40 - 2 * Z) ** 2 + (X - 40) ** 2 < 400
SMALL = (Y - 70) ** 2 + (X - 100 + Z) ** 2 < 20
FRAMES = (np.random.default_rng(0).normal(60, 8, Z.shape) + 80 * LARGE + 120 * SMALL).astype("f4")


@pytest.fixture
def card(monkeypatch):
    with pretended_card(monkeypatch) as card:
        yield card


def test_what_is_on_a_card_does_not_meet_what_is_not(card):
    there, here = torch.zeros(3, device="cuda"), torch.ones(3)
    assert there.device == CARD and (there + 1).is_cuda and not there.cpu().is_cuda
    assert (there + torch.tensor(2.0)).device == CARD and there[torch.tensor([0])].is_cuda
    for wrong in (lambda: there + here, lambda: torch.cat([here, there])):
        with pytest.raises(RuntimeError, match="same device"):
            wrong()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="same device"):
        layer(there)
    assert layer.to("cuda")(there).device == layer.weight.device == CARD


def followed(model) -> list[np.ndarray]:
    predictor = SequencePredictor(model, FRAMES, memory_tokens="near")
    predictor.set_prompts(1, frame=1, box=(20, 18, 66, 64))
    predictor.set_prompts(2, frame=1, points=[(70, 98), (20, 100)], labels=[1, 0])
    predictor.set_prompts(3, frame=2, mask=LARGE[2])
    predictor.set_prompts(4, frame=0, box=(65, 95, 75, 105), area=(40, 64, 96, 128))
    found = [predictor.predict(1), *predictor.propagate()]
    predictor.set_prompts(2, frame=3, points=[(70, 97)], labels=[1])
    return [result.logits for result in (*found, *predictor.propagate())]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_objects_are_followed_on_a_card(monkeypatch, kind):
    monkeypatch.setattr("sam2_engine.model.layers._SCORES_AT_ONCE", 1 << 12)  # some of the queries
    with pretended_card(monkeypatch, kind) as card:
        found = followed(device_model(kind, torch.float32))
    assert card.calls > 1000
    for one, other in zip(found, followed(small_model()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_a_session_works_on_a_card(card):
    session = ns.Session(FRAMES, "nano", device="auto")
    large, small = session.add_object(), session.add_object()
    session.add_box(large, 1, (20, 18, 64, 62))
    session.add_box(small, 1, (64, 92, 76, 106))
    session.propagate()
    assert session.model.get().device == CARD
    assert session.model.get().dtype == torch.float16
    assert session.area(small) is not None, "it is looked at closely"
    session.add_points(small, [(3, 70, 97)])
    session.add_scribble(large, 3, [(40, 40), (50, 44)])
    session.update()
    session.check_both_sides()
    masks = session.labels
    for object_id, truth in ((large, LARGE), (small, SMALL)):
        own = masks == object_id
        assert 2 * (own & truth).sum() / (own.sum() + truth.sum()) > 0.8
    add_all(session, 0, find_all(session, 0, np.array([[40, 40]])))


def test_a_model_is_trained_on_a_card(card, tmp_path: Path):
    result, seen = trained(tmp_path, tiny().to("cuda"), 1)
    assert np.isfinite(seen[-1].losses).all() and len(result.moments) == 2
    once = {"minutes": 1.0, "steps": 1, "batch": 2}
    stages = (  # of a training from the start
        Stage("geometry", "geometry", **once),
        Stage("clips", "clips", **once, frames=(3, 3), learnt=1, drift_share=1.0),
    )
    losses: list[float] = []
    trainer = Trainer(
        tiny().to("cuda"), stages, tmp_path / "new", [stack()], synthetic_share=0.0,
        on_step=lambda result: losses.append(result.report["loss"]),
    )  # fmt: skip
    trainer.run()
    assert len(losses) == 2 and np.isfinite(losses).all()
