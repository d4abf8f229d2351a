"""The predictor: a function of prompts, frames and model; bounded; at home with any frames."""

from __future__ import annotations

import gc
import itertools
import os
import platform
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from images import DATA, needs_data
from models import device_model, small_model

from sam2_engine.features import EncodingStream, FeatureCache
from sam2_engine.frame_result import FrameResult
from sam2_engine.frames import FrameSource, Geometry, sample_window
from sam2_engine.holes import fill_small_holes
from sam2_engine.memory import CONFIDENT_IOU, ConfidentMemoryBank, Memory, MemorySelection
from sam2_engine.model import SAM2, ImageFeatures
from sam2_engine.model.position import axial_rotations
from sam2_engine.model.prompt_encoder import draw_prompts
from sam2_engine.model.recalled import Recalled, join, near_object, pick
from sam2_engine.sequence import SequencePredictor
from sam2_engine.weights.loading import half_precision, load_model, multiplies_bfloat16

LENGTH, HEIGHT, WIDTH = 12, 60, 80


def movie(length: int = LENGTH, dtype: str = "uint16") -> np.ndarray:
    """Two bright discs that drift over noise, (T, Y, X)."""
    noise = np.random.RandomState(0).rand(length, HEIGHT, WIDTH) * 200
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for t in range(length):
        noise[t][(y - 25) ** 2 + (x - 20 - t) ** 2 < 100] += 600
        noise[t][(y - 40) ** 2 + (x - 60 + t) ** 2 < 60] += 400
    return noise.astype(dtype)


def predictor(frames: Any = None, draws: bool = False, **options: Any) -> SequencePredictor:
    """draws: whether the model draws prompts, as nano does."""
    model = small_model(draws_prompts=draws)
    return SequencePredictor(model, movie() if frames is None else frames, **options)


def disc() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (y - 25) ** 2 + (x - 25) ** 2 < 90


PROMPTS: list[tuple[int, int, dict[str, Any]]] = [
    (1, 2, {"points": [(25, 22)]}),
    (1, 8, {"points": [(25, 28), (5, 5)], "labels": [1, 0]}),
    (1, 4, {"points": [(30, 22)], "labels": [0], "mask_input": np.full((32, 32), 1.5)}),
    (2, 2, {"box": (32, 50, 48, 68)}),
    (2, 9, {"points": [(40, 51)], "mask_input": np.full((32, 32), -1.5)}),
    (7, 5, {"mask": disc()}),
    (9, 2, {"box": (20, 10, 30, 30), "points": [(25, 20)]}),
]


def collect(results: Any) -> dict[tuple[int, int], np.ndarray]:
    found: dict[tuple[int, int], np.ndarray] = {}
    for result in results:
        for i, low_res in zip(result.object_ids, result.low_res, strict=True):
            assert (result.frame, i) not in found, "an object came twice on a frame"
            found[result.frame, i] = low_res
    return found


def same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=str(key))


@pytest.fixture(scope="module", params=[False, True], ids=["published", "draws"])
def draws(request) -> bool:
    return request.param


@pytest.fixture(scope="module")
def reference(draws: bool) -> dict[tuple[int, int], np.ndarray]:
    p = predictor(draws=draws)
    for i, frame, prompt in PROMPTS:
        p.set_prompts(i, frame, **prompt)
    return collect(p.propagate())


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_calls_gives_bit_equal_masks(seed: int, draws: bool, reference: dict) -> None:
    rng = random.Random(seed)
    p = predictor(draws=draws, cache_bytes=rng.choice([0, 1 << 30]))
    todo = rng.sample(PROMPTS, len(PROMPTS))
    while todo:
        action = rng.choice(
            ["prompt", "prompt", "wrong", "predict", "propagate", "cancel", "clear"]
        )
        if action == "prompt":
            i, frame, prompt = todo.pop()
            p.set_prompts(i, frame, **prompt)
        elif action == "wrong":  # something that is said first and replaced later
            i, frame, _ = rng.choice(todo)
            p.set_prompts(i, frame, points=[(rng.uniform(0, 59), rng.uniform(0, 79))])
        elif action == "predict":
            p.predict(rng.randrange(LENGTH))
        elif action == "propagate":
            list(p.propagate(direction=rng.choice(["both", "forward", "backward"])))
        elif action == "cancel":
            list(itertools.islice(p.propagate(), rng.randrange(1, 8)))
        else:
            p.set_prompts(33, 4, box=(3, 3, 20, 20))
            list(itertools.islice(p.propagate(), 3))
            p.clear_prompts(33)
    wrong = [(i, f) for i in p.object_ids for f in p.prompts[i]]
    for object_id, frame in wrong:
        if (object_id, frame) not in {(a, b) for a, b, _ in PROMPTS}:
            p.clear_prompts(object_id, frame)
    same(collect(p.propagate()), reference)


def test_only_the_wanted_frames_of_each_object_are_tracked(
    draws: bool, reference: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = predictor(draws=draws)
    for i, frame, prompt in PROMPTS:
        p.set_prompts(i, frame, **prompt)
    tracked = []
    attend = p.model.attend_to_memory
    monkeypatch.setattr(
        p.model,
        "attend_to_memory",
        lambda f, *of: tracked.append(len(f.stride16)) or attend(f, *of),
    )
    only = {1: {2, 3, 9}, 2: set(), 7: {0, 8}, 9: range(LENGTH)}
    found = collect(p.propagate(only=only))
    assert found.keys() == {(t, i) for i, frames in only.items() for t in frames}
    for key, low_res in found.items():
        np.testing.assert_allclose(low_res, reference[key], atol=1e-3)
    nine = LENGTH - 1
    one, seven = 2, 5 + 3  # up to the last wanted frame on each side of the prompted ones
    assert sum(tracked) == nine + one + seven
    assert p.num_steps(only=only) == len(list(p.propagate(only=only)))
    left_out = {1: {3}, 9: {0}}
    assert collect(p.propagate(only=left_out)).keys() == {(3, 1), (0, 9)}
    assert p.num_steps([1, 2], only=left_out) == 1
    with pytest.raises(ValueError, match="Object 77 has no prompts"):
        p.propagate(only={77: {1}})


def test_clicks_of_one_stroke_are_placed_at_once() -> None:
    points, together = [(25, 18), (25, 25), (25, 30), (5, 5)], [0, 0, 0, 1]
    labels = [1, 1, 1, 0]
    stroke = predictor(refine_clicks=True)
    stroke.set_prompts(1, 3, points=points, labels=labels, strokes=together)
    first = predictor()
    first.set_prompts(1, 3, points=points[:3])
    then = predictor()
    then.set_prompts(1, 3, points=points, labels=labels, mask_input=first.predict(3).low_res[0])
    np.testing.assert_allclose(stroke.predict(3).low_res, then.predict(3).low_res, atol=1e-4)
    with pytest.raises(ValueError, match="4 points have 2 strokes"):
        stroke.set_prompts(1, 3, points=points, strokes=[0, 1])


def test_an_object_is_kept_within_what_is_given() -> None:
    p = predictor()
    p.set_prompts(1, 3, box=(10, 8, 40, 40))
    free = p.predict(3).mask(1)
    p.set_prompts(1, 3, box=(10, 8, 40, 40), within=disc())
    kept = p.predict(3).mask(1)
    y, x = np.nonzero(kept)
    reach = np.hypot(y - 25, x - 25).max()
    assert reach < 90**0.5 + 4  # up to a pixel of the model's masks
    y, x = np.nonzero(free)
    assert np.hypot(y - 25, x - 25).max() > reach
    with pytest.raises(ValueError, match="within is"):
        p.set_prompts(1, 3, box=(10, 8, 40, 40), within=disc()[1:])


def test_previews_do_not_depend_on_propagation() -> None:
    first, second = predictor(), predictor()
    for p in (first, second):
        p.set_prompts(1, 3, points=[(25, 23)])
    before = first.predict(3).low_res
    list(first.propagate())
    list(second.propagate())
    np.testing.assert_array_equal(first.predict(3).low_res, before)
    np.testing.assert_array_equal(second.predict(3).low_res, before)


def test_cancelled_propagation_goes_on_where_it_stopped(draws: bool) -> None:
    p = predictor(draws=draws)
    for i, frame, prompt in PROMPTS:
        p.set_prompts(i, frame, **prompt)
    forward = p.propagate(direction="forward")
    first = list(itertools.islice(forward, 5))
    forward.close()
    seen = p.features.encoded
    rest = p.propagate(direction="forward", start=first[-1].frame + 1)
    whole = predictor(draws=draws)
    for i, frame, prompt in PROMPTS:
        whole.set_prompts(i, frame, **prompt)
    same(collect([*first, *rest]), collect(whole.propagate(direction="forward")))
    assert p.features.encoded - seen <= LENGTH - 1 - first[-1].frame + 1


def test_resuming_tracks_no_frame_again() -> None:
    p = predictor(movie(20), cache_bytes=0)
    p.set_prompts(1, 0, points=[(25, 20)])
    list(itertools.islice(p.propagate(), 10))
    before = p.features.encoded
    assert [r.frame for r in p.propagate(start=10)] == list(range(10, 20))
    assert p.features.encoded == before + 10


def test_prompts_are_drawn_where_they_are() -> None:
    """A box is its ellipse and a click a spot of its sign; an earlier answer takes the box's
    place.
    """
    points = torch.tensor([[[16.0, 32.0], [47.0, 95.0], [100.0, 20.0]]])
    labels = torch.tensor([[2, 3, 0]])
    drawn = draw_prompts(points, labels, None, 128)[0, 0]
    assert drawn.shape == (32, 32)
    rows, columns = np.nonzero(drawn.numpy() > 0)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 23, 4, 11)
    area = len(rows) * 16 / (np.pi / 4 * 32 * 64)
    assert 0.9 < area < 1.1
    assert drawn[5, 25] < -15 and drawn[28, 20] == -10

    earlier = torch.full((1, 1, 32, 32), -3.0)
    click = draw_prompts(torch.tensor([[[66.0, 66.0]]]), torch.tensor([[1]]), earlier, 128)[0, 0]
    assert click[16, 16] > 0 and click[0, 0] == -3
    assert (draw_prompts(points, torch.full((1, 3), -1), None, 128) == 0).all()


def test_a_wanted_range_gives_the_masks_of_the_whole() -> None:
    p = predictor(movie(20))
    p.set_prompts(1, 2, points=[(25, 22)])
    p.set_prompts(1, 15, box=(15, 25, 35, 45))
    whole = collect(p.propagate())
    part = collect(predictor_like(p).propagate(start=6, stop=12))
    assert sorted(frame for frame, _ in part) == list(range(6, 13))
    same(part, {key: whole[key] for key in part})


def predictor_like(p: SequencePredictor) -> SequencePredictor:
    other = predictor(movie(len(p)))
    for i, frames in p.prompts.items():
        for frame, prompt in frames.items():
            box = prompt.box
            points = prompt.points if len(prompt.points) else None
            other.set_prompts(i, frame, points=points, box=box)
    return other


def test_an_area_gives_the_masks_of_its_frames_alone_in_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Geometry, "following", lambda self, low_res: self)
    top, left, bottom, right = area = (5, 5, 45, 69)
    whole = predictor(window=(0, 900))
    alone = predictor(movie()[:, top:bottom, left:right], window=(0, 900))
    for p, dy, dx in ((whole, 0, 0), (alone, top, left)):
        seen = {"area": area} if p is whole else {}
        p.set_prompts(1, 0, box=(15 - dy, 10 - dx, 35 - dy, 30 - dx), **seen)
        p.set_prompts(2, 1, points=[(25 - dy, 21 - dx)], **seen)
        mask = disc()
        mask = mask if p is whole else mask[top:bottom, left:right]
        p.set_prompts(3, 2, mask=mask, **seen)
    for one, other in zip(whole.propagate(), alone.propagate(), strict=True):
        inside = one.masks[:, top:bottom, left:right]
        np.testing.assert_array_equal(inside, other.masks)
        assert one.masks.sum() == inside.sum()
        assert set(one.areas) == {area} and set(other.areas) == {None}


AREAS = {1: (0, 0, 50, 48), 2: None, 7: (5, 6, 55, 54), 9: (0, 0, 50, 48)}


@pytest.mark.parametrize("cache_bytes", [1 << 30, 1 << 20, 0])
@pytest.mark.parametrize("draws", [False, True])
def test_objects_in_areas_are_together_as_alone(draws: bool, cache_bytes: int) -> None:
    together = predictor(draws=draws, cache_bytes=cache_bytes)
    for i, frame, prompt in PROMPTS:
        together.set_prompts(i, frame, area=AREAS[i], **prompt)
    everything = collect(together.propagate())
    for alone in AREAS:
        p = predictor(draws=draws)
        for i, frame, prompt in PROMPTS:
            if i == alone:
                p.set_prompts(i, frame, area=AREAS[i], **prompt)
        found = collect(p.propagate())
        assert found.keys() == {key for key in everything if key[1] == alone}
        for key, low_res in found.items():
            np.testing.assert_allclose(low_res, everything[key], atol=1e-3, err_msg=str(key))


def test_a_stopped_propagation_in_areas_goes_on_where_it_was() -> None:
    p, other = predictor(draws=True), predictor(draws=True)
    for one in (p, other):
        for i, frame, prompt in PROMPTS:
            one.set_prompts(i, frame, area=AREAS[i], **prompt)
    expected = areas_of(other.propagate())
    running = p.propagate()
    found = areas_of(itertools.islice(running, 5))
    running.close()
    assert areas_of(p.propagate()) | found == expected


def areas_of(results: Any) -> dict[tuple[int, int], Any]:
    return {(r.frame, i): a for r in results for i, a in zip(r.object_ids, r.areas, strict=True)}


def test_an_area_follows_a_small_object_across_the_frames() -> None:
    """By the bundled model, in both directions."""
    last = 36
    noise = np.random.default_rng(0).normal(0, 8, (last + 1, 140, 320))
    t, y, x = np.indices(noise.shape)
    disc = (y - 50 - t) ** 2 + (x - 50 - 6 * t) ** 2 < 150
    model = load_model("nano", "cpu")
    p = SequencePredictor(model, noise + 120 * disc, window=(-20, 130), fit="pad")
    middle = last // 2
    p.set_prompts(1, middle, mask=disc[middle], area=(8, 98, 128, 218))
    found = {result.frame: result for result in p.propagate()}
    for frame in (0, 6, 30, last):
        (area,) = found[frame].areas
        assert area is not None and (area[2] - area[0], area[3] - area[1]) == (120, 120)
        mask = found[frame].masks[0]
        assert (mask & disc[frame]).sum() > 0.6 * (mask | disc[frame]).sum(), frame
    (first,), (end,) = found[0].areas, found[last].areas
    assert first is not None and end is not None and first[3] < end[1] + 10, "they are far apart"


def test_each_object_and_frame_comes_once_and_steps_are_counted() -> None:
    for direction in ("both", "forward", "backward"):
        p = predictor()
        for i, frame, prompt in PROMPTS:
            p.set_prompts(i, frame, **prompt)
        results = list(p.propagate(direction=direction))
        assert p.num_steps(direction=direction) == len(results)
        frames = {(r.frame, i) for r in results for i in r.object_ids}
        expected = {
            (t, i)
            for i in p.object_ids
            for t in range(LENGTH)
            if direction == "both"
            or (direction == "forward" and t >= min(p.prompts[i]))
            or (direction == "backward" and t <= max(p.prompts[i]))
        }
        assert frames == expected


def test_objects_together_are_as_objects_alone() -> None:
    together = predictor()
    for i, frame, prompt in PROMPTS:
        together.set_prompts(i, frame, **prompt)
    everything = collect(together.propagate())
    for alone in (1, 2, 7, 9):
        p = predictor()
        for i, frame, prompt in PROMPTS:
            if i == alone:
                p.set_prompts(i, frame, **prompt)
        for key, low_res in collect(p.propagate()).items():
            np.testing.assert_allclose(low_res, everything[key], atol=2e-3)


def test_objects_with_equally_many_memories_are_one_batch(monkeypatch) -> None:
    p = predictor(movie(6))
    for i in range(1, 6):
        p.set_prompts(i, 0, points=[(10 * i, 10 * i)])
    batches = []
    attend = p.model.attend_to_memory
    monkeypatch.setattr(
        p.model, "attend_to_memory", lambda f, *a: batches.append(len(f.stride16)) or attend(f, *a)
    )
    list(p.propagate())
    assert batches == [5] * 5


def test_a_correction_is_kept_and_reaches_the_frames_around() -> None:
    p = predictor()
    p.set_prompts(1, 0, points=[(25, 20)])
    first = collect(p.propagate())
    p.set_prompts(1, 6, points=[(28, 24)], labels=[1], mask_input=first[6, 1])
    second = collect(p.propagate())
    np.testing.assert_array_equal(second[6, 1], p.predict(6).low_res[0])
    changed = {t for t in range(LENGTH) if not np.array_equal(first[t, 1], second[t, 1])}
    assert {5, 6, 7} <= changed and 0 not in changed


def test_a_trimmed_mask_is_passed_through_and_nothing_is_tracked_from_it() -> None:
    p = predictor()
    p.set_prompts(1, 0, points=[(25, 20)])
    p.set_prompts(1, 9, points=[(25, 24)])
    first = collect(p.propagate())
    p.set_prompts(1, 3, points=[(50, 70)], labels=[0], mask_input=first[3, 1])
    second = collect(p.propagate())
    np.testing.assert_array_equal(second[3, 1], p.predict(3).low_res[0])
    changed = {t for t in range(LENGTH) if not np.array_equal(first[t, 1], second[t, 1])}
    assert changed == {3, 4}, "past it, as far as is followed from the same frame"
    same(collect(p.propagate(start=4, stop=4)), {(4, 1): second[4, 1]})

    p.clear_prompts(1, 0)
    p.clear_prompts(1, 9)
    alone = collect(p.propagate())
    assert alone.keys() == second.keys(), "where nothing else is said, it is all there is"


def test_adjacent_prompts_reach_no_further_than_their_neighbours() -> None:
    p = predictor(max_prompted_frames="adjacent")
    for frame in (0, 4, 8):
        p.set_prompts(1, frame, points=[(25 + frame, 20 + frame)])
    first = collect(p.propagate())
    p.set_prompts(1, 8, points=[(50, 70)])
    second = collect(p.propagate())
    changed = {t for t in range(LENGTH) if not np.array_equal(first[t, 1], second[t, 1])}
    assert changed and min(changed) > 4 and {7, 8, 9} <= changed


def test_confident_memories_do_not_depend_on_the_order_of_calls() -> None:
    def asked(**options: Any) -> dict[tuple[int, int], np.ndarray]:
        p = predictor(draws=True, memory="confident", **options)
        for frame in (0, 9):
            p.set_prompts(1, frame, points=[(25, 20 + frame)])
        found = collect(p.propagate(start=4, stop=7))
        stopped = p.propagate()
        next(stopped)
        stopped.close()
        list(p.propagate(direction="backward"))
        return found | collect(p.propagate())

    fresh = predictor(draws=True, memory="confident")
    for frame in (9, 0):
        fresh.set_prompts(1, frame, points=[(25, 20 + frame)])
    same(asked(), collect(fresh.propagate()))
    with pytest.raises(ValueError, match="recent"):
        predictor(memory="best")


def recalled(model: SAM2, kept: tuple[float, ...]) -> list[Recalled]:
    """Of each object two memories and a pointer, with that share of its cells near it."""
    rng = torch.Generator().manual_seed(0)
    side, channels = model.image_size // 16, model.config.memory_dim
    found = []
    for share in kept:
        maps = [torch.randn(1, channels, side, side, generator=rng) for _ in range(2)]
        pointer = torch.randn(1, model.config.d_model, generator=rng)
        cells = [torch.rand(side // 2, side // 2, generator=rng) < share for _ in maps]
        memories = list(zip(maps, (6, 0), strict=True))
        picked = [pick(one, near) for one, near in zip(maps, cells, strict=True)]
        found.append(model.memory_tokens(memories, [(pointer, 0.5)], picked))
    return found


def test_far_from_an_object_four_places_of_a_memory_are_one_token() -> None:
    model = small_model()
    side = model.image_size // 16
    one = torch.arange(16.0 * side * side).view(1, 16, side, side)
    near = torch.zeros(side // 2, side // 2, dtype=torch.bool)
    near[0, 1] = True
    found = model.memory_tokens([(one, 6)], [(torch.zeros(1, 64), 0.5)], [pick(one, near)])
    rows = found.detail.rows[0]
    assert found.tokens.shape[1] == found.places.shape[1] == len(rows) == found.detail.lengths[0]
    assert (rows >= 0).sum() == side**2 // 4 + 3 and (rows == -2).sum() == found.num_pointers
    assert rows[:5].tolist() == [2, 3, side + 2, side + 3, side**2]
    torch.testing.assert_close(found.tokens[0, :4], one[0, :, :2, 2:4].flatten(1).t())
    torch.testing.assert_close(found.tokens[0, 4], one[0, :, :2, :2].mean(dim=(1, 2)))
    torch.testing.assert_close(found.tokens[0, 5], one[0, :, :2, 4:6].mean(dim=(1, 2)))

    mask = torch.full((1, 1, 4 * side, 4 * side), -1.0)
    mask[..., 16, 8] = 1.0  # in the cell 2, 1, and nowhere else
    rows, columns = near_object(mask)[0].nonzero(as_tuple=True)
    assert (rows.unique().tolist(), columns.unique().tolist()) == ([1, 2, 3], [0, 1, 2])


@pytest.mark.parametrize("grad", [False, True])  # other products
def test_all_places_near_are_what_is_published_and_objects_together_are_as_alone(grad) -> None:
    model = small_model()
    frame = FrameSource([np.full((64, 64), 100, np.uint8)], model.image_size, (0, 255))[0]
    with torch.inference_mode(not grad):
        features = model.encode_image(frame[None])
        (whole,) = recalled(model, (2.0,))
        assert not torch.equal(whole.tokens[0, 0], whole.tokens[0, 1])
        in_order = whole.detail.rows[whole.detail.rows >= 0]
        assert in_order.tolist() == 2 * list(range((model.image_size // 16) ** 2))
        end = len(in_order) + whole.num_pointers
        tokens, places = whole.tokens[:, :end], whole.places[:, :end]
        usual = model.attend_to_memory(features, Recalled(tokens, places, whole.num_pointers))
        same_as_usual = model.attend_to_memory(features, whole)
        torch.testing.assert_close(same_as_usual, usual, atol=1e-5, rtol=1e-4)

        several = recalled(model, (0.0, 0.6, 0.3, 2.0))
        assert len({one.tokens.shape[1] for one in several}) > 1
        together = model.attend_to_memory(features.expand(4), join(several))
        alone = torch.cat([model.attend_to_memory(features, one) for one in several])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(together[0], together[3], atol=1e-3)


@pytest.mark.parametrize("memory_tokens", ["near", "pooled"])
def test_of_memories_in_parts_no_order_of_calls_shows(memory_tokens) -> None:
    def asked() -> SequencePredictor:
        p = predictor(memory_tokens=memory_tokens)
        p.set_prompts(1, 3, points=[(25, 22)])
        p.set_prompts(2, 3, box=(2, 2, 9, 12))
        return p

    p = asked()
    stopped = p.propagate(start=5)
    next(stopped)
    stopped.close()
    found = collect(p.propagate())
    same(found, collect(asked().propagate()))
    usual = predictor()
    usual.set_prompts(1, 3, points=[(25, 22)])
    others = collect(usual.propagate())
    np.testing.assert_array_equal(found[3, 1], others[3, 1], err_msg="it is not tracked")
    assert not np.array_equal(found[4, 1], others[4, 1])
    with pytest.raises(ValueError, match="pooled"):
        predictor(memory_tokens="few")


def test_pooled_keys_turn_as_the_middle_of_what_they_stand_for() -> None:
    each = axial_rotations(16, 4, 4, torch.device("cpu")).view(4, 4, 8)
    pooled = axial_rotations(16, 4, 4, torch.device("cpu"), pool=2).view(2, 2, 8)
    four = each.view(2, 2, 2, 2, 8).prod(dim=3).prod(dim=1)
    torch.testing.assert_close(pooled**4, four)


def memory(*values: float) -> Memory:
    return Memory(torch.tensor([values]), torch.zeros(1, 64))


def test_a_confident_bank_keeps_what_is_sure_and_differs() -> None:
    config = replace(small_model().config, num_memories=3)
    bank = ConfidentMemoryBank(config, {0: memory(1, 1)}, None)
    east, north, nearly_north = memory(1, 0), memory(0, 1), memory(0.1, 1)
    bank.add(1, memory(-1, 0), confidence=CONFIDENT_IOU - 0.01)
    bank.add(2, north, confidence=0.9)
    bank.add(3, east, confidence=0.6)
    bank.add(4, nearly_north, confidence=0.8)  # like the surer one on frame 2
    kept = [features.tolist() for features, _ in bank.recall(5).memories]
    assert kept == [[[1, 1]], [[0, 1]], [[1, 0]]]
    bank.add(5, memory(0, 2), confidence=0.95)
    kept = [features.tolist() for features, _ in bank.recall(6).memories]
    assert kept == [[[1, 1]], [[1, 0]], [[0, 2]]]
    recalled = bank.recall(6)
    assert [index for _, index in recalled.memories] == [2, 1, 0]
    assert len(recalled.pointers) == 3


@needs_data
def test_one_prompted_image_segments_a_set_of_images_in_no_order() -> None:
    folder = DATA / "dev" / "hippocampus"
    scores: dict[MemorySelection, list[float]] = {"recent": [], "confident": []}
    for number in ("034", "038", "042"):
        image, labels = (
            np.asarray(nibabel.load(folder / f"hippocampus_{number}{end}.nii.gz").dataobj).T
            for end in ("", "_labels")
        )
        truth = labels == 1
        order = np.random.default_rng(0).permutation(np.flatnonzero(truth.any(axis=(1, 2))))
        image, truth = image[order], truth[order]
        largest = int(truth.sum(axis=(1, 2)).argmax())
        rows, columns = np.nonzero(truth[largest])
        for selection, found in scores.items():
            p = SequencePredictor(load_model("nano"), image, memory=selection)
            p.set_prompts(1, largest, box=(rows.min(), columns.min(), rows.max(), columns.max()))
            masks = np.zeros(truth.shape, bool)
            for result in p.propagate():
                masks[result.frame] = result.mask(1)
            found.append(2 * (masks & truth).sum() / (masks.sum() + truth.sum()))
    assert np.mean(scores["confident"]) > np.mean(scores["recent"]) + 0.1, scores


def test_an_object_that_has_ended_is_not_looked_for_any_more() -> None:
    never_there = small_model(obj_bias=-50.0)
    p = SequencePredictor(never_there, movie(), end_after=2)
    p.set_prompts(1, 6, mask=disc())
    results = list(p.propagate())
    assert len(results) == p.num_steps() == LENGTH
    assert [r.frame for r in results if r.mask(1).any()] == [6]
    assert p.features.encoded == 1 + 2 + 2, "two frames to each side were enough"


def test_refined_clicks_correct_the_mask_of_the_earlier_ones() -> None:
    box, clicks, signs = (10, 10, 40, 60), [(25, 20), (30, 50)], [1, 0]
    step = predictor()
    step.set_prompts(1, 3, box=box)
    for count in (1, 2):
        earlier = step.predict(3).low_res[0]
        step.set_prompts(
            1, 3, points=clicks[:count], labels=signs[:count], box=box, mask_input=earlier
        )
    at_once = predictor(refine_clicks=True)
    at_once.set_prompts(1, 3, points=clicks, labels=signs, box=box)
    at_once.set_prompts(2, 3, points=[(50, 70)])
    at_once.set_prompts(3, 3, points=[*clicks, (12, 12)], labels=[0, 1, 1])
    together = at_once.predict(3)
    np.testing.assert_allclose(together.low_res[0], step.predict(3).low_res[0], atol=1e-5)
    first = predictor()
    first.set_prompts(3, 3, points=clicks, labels=[0, 1])  # up to the first inside
    earlier = first.predict(3).low_res[0]
    first.set_prompts(3, 3, points=[*clicks, (12, 12)], labels=[0, 1, 1], mask_input=earlier)
    np.testing.assert_allclose(together.low_res[2], first.predict(3).low_res[0], atol=1e-5)


@pytest.mark.parametrize("draws", [False, True])
def test_a_box_is_not_answered_with_nothing_by_a_model_that_draws_prompts(
    draws: bool, monkeypatch
) -> None:
    p = predictor(draws=draws)
    decoder = p.model.sam_mask_decoder
    none, some = decoder.output_hypernetworks_mlps[0], decoder.output_hypernetworks_mlps[1:]
    upscaling = decoder.output_upscaling
    monkeypatch.setattr(upscaling[-1], "forward", torch.abs)  # so signs are those of the weights
    for refinement in decoder.refinements:
        torch.nn.init.zeros_(refinement.leave.weight)
    for mlp, value in [(none, -1.0), *((mlp, 1.0) for mlp in some)]:
        torch.nn.init.zeros_(mlp.layers[-1].weight)
        torch.nn.init.constant_(mlp.layers[-1].bias, value)
    p.set_prompts(1, 2, box=(15, 12, 35, 32))
    assert p.predict(2).mask(1).any() == draws, "as published, an empty mask counts as stable"


def test_a_mask_prompt_is_the_answer_to_the_pixel() -> None:
    p = predictor()
    p.set_prompts(4, 5, mask=disc())
    p.set_prompts(5, 5, box=(10, 10, 40, 40))
    (result,) = p.propagate(start=5, stop=5)
    np.testing.assert_array_equal(result.mask(4), disc())
    np.testing.assert_array_equal(result.labels() == 4, disc())


def test_overlaps_go_to_the_larger_logit() -> None:
    low_res = np.array([[[3.0, 1.0], [-1.0, 2.0]], [[2.0, 5.0], [-2.0, -3.0]]], np.float32)
    ones = np.ones(2, np.float32)
    result = FrameResult(0, (3, 8), low_res, ones, ones, {}, Geometry((2, 2), 8), (None, None))
    np.testing.assert_array_equal(result.labels(), [[3, 8], [0, 3]])
    np.testing.assert_array_equal(result.masks.sum(axis=(1, 2)), [3, 2])


class LazyFrames:
    """Frames that exist only while they are read."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> np.ndarray:
        assert isinstance(index, int)
        self.reads.append(index)
        return np.random.RandomState(index).rand(HEIGHT, WIDTH).astype(np.float32)


def test_memory_does_not_grow_with_the_number_of_frames() -> None:
    def held(length: int) -> int:
        p = predictor(LazyFrames(length), cache_bytes=1 << 20)
        p.set_prompts(1, 0, points=[(25, 20)])
        p.set_prompts(2, 0, points=[(40, 60)])
        sizes = [tensor_bytes() for r in p.propagate() if r.frame in (25, length - 1)]
        assert p.features.nbytes <= 1 << 20
        return max(sizes)

    short, long = held(30), held(90)
    assert long <= short * 1.01


def tensor_bytes() -> int:
    gc.collect()  # or what other tests left, and an earlier predictor, would count by chance
    storages = {
        o.untyped_storage().data_ptr(): o.untyped_storage().nbytes()
        for o in gc.get_objects()
        if type(o) in (torch.Tensor, torch.nn.Parameter)  # no FakeTensor, which holds nothing
    }
    return sum(storages.values())


def test_frames_encoded_together_give_the_same_masks_as_one_by_one(monkeypatch) -> None:
    batches: list[int] = []
    encode = SAM2.encode_image

    def counting(model: SAM2, images: torch.Tensor) -> Any:
        batches.append(len(images))
        return encode(model, images)

    monkeypatch.setattr(SAM2, "encode_image", counting)
    found = []
    for cache_bytes in (1 << 30, 0):  # without room for frames to come, they are not encoded yet
        p = predictor(cache_bytes=cache_bytes)
        p.set_prompts(1, 3, points=[(25, 22)])
        found.append(collect(p.propagate()))
        assert p.features.nbytes <= cache_bytes
    assert max(batches[: LENGTH // 2]) > 1
    assert sum(batches) >= 2 * LENGTH and set(batches[-LENGTH:]) == {1}
    assert found[0].keys() == found[1].keys()
    for key, low_res in found[0].items():
        np.testing.assert_allclose(low_res, found[1][key], atol=1e-4, err_msg=str(key))


def test_frames_are_encoded_once_for_all_objects_and_passes() -> None:
    p = predictor()
    for i, frame, prompt in PROMPTS:
        p.set_prompts(i, frame, **prompt)
    for direction in ("both", "forward", "backward"):
        list(p.propagate(direction=direction))
    assert p.features.encoded == LENGTH


class SimulatedStream(EncodingStream):
    """A stream of its own, as a CUDA device has one: what is encoded on it is there only when it
    has been waited for. Until then it is all zeros.
    """

    is_own = True

    def __init__(self) -> None:
        self.is_encoding = False
        self.hidden: dict[int, torch.Tensor] = {}
        self.marks = 0

    def follow(self) -> None:
        assert not self.is_encoding

    @contextmanager
    def encoding(self) -> Iterator[None]:
        self.is_encoding = True
        try:
            yield
        finally:
            self.is_encoding = False

    def mark(self) -> Any:
        assert self.is_encoding, "a mark elsewhere says nothing of what is encoded here"
        self.marks += 1
        return self.marks

    def hide(self, features: ImageFeatures) -> None:
        assert self.is_encoding
        for level in features:
            self.hidden[level.data_ptr()] = level.clone()
            level.zero_()

    def hand_over(self, features: ImageFeatures, made: Any) -> None:
        assert made and not self.is_encoding
        for level in features:
            if level.data_ptr() in self.hidden:
                level.copy_(self.hidden.pop(level.data_ptr()))


def ahead(p: SequencePredictor) -> list[list[int]]:
    """Make a predictor encode ahead as on a CUDA device; returns the batches as they come."""
    stream, encode, batches = SimulatedStream(), p.features._encode, []

    @torch.inference_mode()
    def hidden(frames: Sequence[int]) -> list[ImageFeatures]:
        made = encode(frames)
        made = [ImageFeatures(*(level.clone() for level in one)) for one in made]
        for one in made:
            stream.hide(one)
        batches.append(list(frames))
        return made

    p.features = FeatureCache(hidden, p.features.budget, stream=stream)
    return batches


def test_encoding_ahead_changes_no_mask_and_no_count(draws: bool, reference: dict) -> None:
    p = predictor(draws=draws)
    batches = ahead(p)
    for i, frame, prompt in PROMPTS:
        p.set_prompts(i, frame, **prompt)
    with torch.inference_mode():
        found = collect(p.propagate())
    same(found, reference)
    assert sorted(t for batch in batches for t in batch) == list(range(LENGTH))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_one_batch_is_encoded_ahead_in_the_direction_of_propagation(direction: str) -> None:
    p = predictor(movie(16))
    batches = ahead(p)
    origin, step = (0, 1) if direction == "forward" else (15, -1)
    p.set_prompts(1, origin, points=[(25, 22)])
    known = []
    with torch.inference_mode():
        for result in p.propagate(direction=direction):
            known.append(sum((t - result.frame) * step > 0 for batch in batches for t in batch))
    order = [origin + step * n for n in range(16)]
    assert batches == [order[:1], order[1:5], order[5:9], order[9:13], order[13:]]
    assert known == [4, 7, 6, 5, 4, 7, 6, 5, 4, 6, 5, 4, 3, 2, 1, 0]


def test_stopping_while_frames_are_encoded_ahead_leaves_them_for_later(reference: dict) -> None:
    p = predictor()
    batches = ahead(p)
    p.set_prompts(1, 0, points=[(25, 22)])
    once = predictor()
    once.set_prompts(1, 0, points=[(25, 22)])
    with torch.inference_mode():
        assert len(list(itertools.islice(p.propagate(), 2))) == 2
        assert [len(batch) for batch in batches] == [1, 4, 4]
        p.set_prompts(2, 7, box=(32, 50, 48, 68))  # a frame that is on its way
        once.set_prompts(2, 7, box=(32, 50, 48, 68))
        preview = p.predict(7).low_res
        np.testing.assert_array_equal(preview, once.predict(7).low_res)
        same(collect(p.propagate()), collect(once.propagate()))
    assert sorted(t for batch in batches for t in batch) == list(range(LENGTH))


@pytest.mark.parametrize("room", [0, 1, 4, 8, 9, 10])
def test_encoding_ahead_keeps_the_budget_and_encodes_nothing_twice(room: int) -> None:
    """room: for how many frames there is some."""
    one = predictor()
    one.features[0]
    size = one.features.nbytes
    p, plain = (predictor(movie(20), cache_bytes=room * size) for _ in range(2))
    batches = ahead(p)
    found = []
    with torch.inference_mode():
        for each in (p, plain):
            each.set_prompts(1, 0, points=[(25, 22)])
            results = {}
            for result in each.propagate():
                results[result.frame, 1] = result.low_res[0]
                assert each.features.nbytes <= room * size
            found.append(results)
    for key, low_res in found[0].items():
        np.testing.assert_allclose(low_res, found[1][key], atol=1e-4)
    if room:
        assert p.features.encoded == 20 and len(p.features._stream.hidden) == 0
    assert max(map(len, batches)) == (4 if room >= 5 else 3 if room == 4 else 1)


def test_where_a_card_is_full_fewer_are_computed_together(
    monkeypatch, draws: bool, reference: dict
) -> None:
    """A card is emulated that has room for one object, or for two frames."""
    failures = []

    def limit(name: str, most: int) -> None:
        compute = getattr(SAM2, name)

        def limited(model: SAM2, first: Any, *others: Any, **named: Any) -> Any:
            shown = first.stride16 if isinstance(first, ImageFeatures) else first
            if len(shown) > most:
                failures.append(name)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return compute(model, first, *others, **named)

        monkeypatch.setattr(SAM2, name, limited)

    p = predictor(draws=draws)
    limit("encode_image", 2)
    limit("decode_masks", 1)
    limit("encode_memory", 1)
    for i, frame, prompt in PROMPTS:
        p.set_prompts(i, frame, **prompt)
    found = collect(p.propagate())
    for key, low_res in reference.items():
        np.testing.assert_allclose(found[key], low_res, atol=1e-4, err_msg=str(key))
    assert failures.count("encode_image") == 1 and len(failures) < 6, "not tried again each time"
    limit("decode_masks", 0)
    with pytest.raises(RuntimeError, match="out of memory"):
        p.predict(2)


class Damaged:
    """16 frames, some of which cannot be read."""

    def __init__(self, *bad: int) -> None:
        self.bad = set(bad)
        self.failures = 0

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> np.ndarray:
        if index in self.bad:
            self.failures += 1
            raise KeyError(f"frame {index} is damaged")  # each library has its own
        return movie(16)[index]


def test_a_frame_that_cannot_be_read_is_told_of_where_it_is_needed() -> None:
    p = predictor(Damaged(7), window=(0, 1000))
    ahead(p)
    p.set_prompts(1, 0, points=[(25, 22)])
    frames = []
    with torch.inference_mode(), pytest.raises(OSError, match="frame 7"):
        frames.extend(result.frame for result in p.propagate())
    assert len(frames) >= 5, "the first batch is without it"


def test_frames_that_cannot_be_read_are_passed_over() -> None:
    source = Damaged(0, 3, 7)  # the first one, and one on either side of the prompt
    p, whole = predictor(source, window=(0, 1000)), predictor(movie(16), window=(0, 1000))
    for one in (p, whole):
        one.set_prompts(1, 5, points=[(25, 22)])
    expected = collect(whole.propagate())
    results = list(p.propagate(skip_unreadable=True))
    assert [r.frame for r in results] == [r.frame for r in whole.propagate()]
    assert len(results) == p.num_steps()
    assert {r.frame: (r.object_ids, "damaged" in str(r.error)) for r in results if r.error} == {
        7: ((), True),
        3: ((), True),
        0: ((), True),
    }
    found = collect(results)
    for frame in (4, 5, 6):
        np.testing.assert_array_equal(found[frame, 1], expected[frame, 1])
    assert {frame for frame, _ in found} == set(range(16)) - {0, 3, 7}
    assert source.failures <= 6, "each is tried once in a run, and where the shape is looked for"
    source.bad.clear()
    same(collect(p.propagate(skip_unreadable=True)), expected)


def test_nothing_is_tracked_from_a_prompted_frame_that_cannot_be_read() -> None:
    p = predictor(Damaged(2), window=(0, 1000))
    p.set_prompts(1, 2, mask=disc())
    p.set_prompts(1, 12, points=[(25, 22)])
    results = list(p.propagate(skip_unreadable=True))
    assert [r.frame for r in results if r.error] == [2]
    assert {frame for frame, _ in collect(results)} == set(range(8, 16)), "nearer to the other"


def test_a_run_ends_where_no_frame_can_be_read_any_more() -> None:
    source = Damaged()
    p = predictor(source, window=(0, 1000))
    p.set_prompts(1, 1, points=[(25, 22)])
    frames = []
    with pytest.raises(OSError, match="is damaged"):
        for result in p.propagate(skip_unreadable=True):
            frames.append(result.frame)
            if result.frame == 4:
                source.bad.update(range(16))
    assert source.failures < 12
    p = predictor(Damaged(*range(4, 14)), window=(0, 1000))  # many in a row, but not all are gone
    p.set_prompts(1, 1, points=[(25, 22)])
    results = list(p.propagate(skip_unreadable=True))
    assert [r.frame for r in results if not r.error] == [1, 2, 3, 14, 15, 0]
    source.bad.update(range(16))
    with pytest.raises(OSError, match="frame 0 is damaged"):
        predictor(source)


def test_an_object_that_may_have_ended_has_few_frames_encoded_ahead() -> None:
    p = predictor(movie(16), end_after=2)
    batches = ahead(p)
    p.set_prompts(1, 0, points=[(25, 22)])
    known = []
    with torch.inference_mode():
        for result in p.propagate():
            known.append(sum(t > result.frame for batch in batches for t in batch))
    assert max(known) <= 2


def test_a_stream_of_its_own_waits_and_is_waited_for(monkeypatch) -> None:
    """What is asked of CUDA, in order; there is none where the tests run."""
    said: list[str] = []

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name, self.device = str(name), "cuda:0"

        def wait_stream(self, other: Any) -> None:
            said.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event: str) -> None:
            said.append(f"{self.name} waits for {event}")

        def record_event(self) -> str:
            said.append(f"{self.name} comes to a mark")
            return f"the mark of {self.name}"

    class Level:
        def record_stream(self, stream: Stream) -> None:
            said.append(f"kept for {stream.name}")

    @contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        said.append(f"enter {stream.name}")
        try:
            yield
        finally:
            said.append(f"leave {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("own"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    stream = EncodingStream(torch.device("cuda"))
    assert stream.is_own and said == ["own waits for main"]
    said.clear()
    with pytest.raises(OSError), stream.encoding():
        raise OSError
    assert said == ["enter own", "leave own"]
    said.clear()
    with stream.encoding():
        made = stream.mark()
    features: Any = [Level(), Level()]
    stream.hand_over(features, made)
    assert said == [
        "enter own", "own comes to a mark", "leave own",
        "main waits for the mark of own", "kept for main", "kept for main",
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cache_bytes", [1 << 30, 1 << 20, 0])
def test_encoding_on_a_stream_of_its_own_changes_no_mask(cache_bytes: int) -> None:
    model = device_model("cuda", torch.float32)
    found = []
    for is_ahead in (True, False):
        p = SequencePredictor(model, movie(40), cache_bytes=cache_bytes)
        assert p.features.encodes_ahead
        if not is_ahead:
            p.features = FeatureCache(p.features._encode, cache_bytes)
        for i, frame, prompt in PROMPTS:
            p.set_prompts(i, frame, **prompt)
        found.append(collect(p.propagate()))
    for key, low_res in found[0].items():
        np.testing.assert_allclose(low_res, found[1][key], atol=1e-4, err_msg=str(key))


def test_the_feature_cache_keeps_its_budget() -> None:
    one = predictor()
    one.features[0]
    size = one.features.nbytes
    p = predictor(cache_bytes=3 * size + size // 2)
    for t in (0, 1, 2, 0, 3):
        p.features[t]
    assert p.features.nbytes == 3 * size
    assert [t in p.features for t in range(4)] == [True, False, True, True]
    assert predictor(cache_bytes=0).features[0] is not None


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "uint32", "int64", "float16", "float64"]
)
def test_any_number_type(dtype: str) -> None:
    frames = (movie() > 500) if dtype == "bool" else (movie() // 4).astype(dtype)
    p = predictor(frames)
    p.set_prompts(1, 0, box=(15, 10, 35, 30))
    assert sum(1 for _ in p.propagate(stop=3)) == 4


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize(
    "shape",
    [(1, 40, 40), (3, 33, 32), (3, 32, 33), (2, 7, 200), (2, 200, 7), (2, 1, 1), (2, 130, 9, 3)],
)
def test_any_shape(shape: tuple[int, ...], fit: str) -> None:
    frames = np.random.RandomState(1).rand(*shape)
    p = predictor(frames, fit=fit)
    p.set_prompts(1, 0, points=[(shape[1] // 2, shape[2] // 2)])
    for result in p.propagate():
        assert result.masks.shape == (1, *shape[1:3])
        assert result.labels().shape == shape[1:3]
        assert np.isfinite(result.logits).all()


def test_nans_and_infinities_are_shown_as_black_and_white() -> None:
    frames = movie(4).astype(np.float32)
    frames[1, :20] = np.nan
    frames[2, 20:40] = np.inf
    frames[3] = -np.inf
    assert all(np.isfinite(sample_window(frames)))
    p = predictor(frames)
    p.set_prompts(1, 0, points=[(25, 20)])
    assert all(np.isfinite(r.logits).all() for r in p.propagate())
    source = FrameSource(frames, 128, window=(0, 800))
    black = source[3].amax()
    assert torch.isfinite(source[2]).all() and source[2].amax() > 1 > black


def test_constant_and_empty_pictures_have_a_window() -> None:
    assert sample_window(np.zeros((2, 4, 4))) == (0, 1)
    assert sample_window(np.full((2, 4, 4), np.nan)) == (0, 1)
    sparse = np.zeros((1, 100, 100))
    sparse[0, 0, 0] = 5
    assert sample_window(sparse) == (0, 5)


def test_one_window_for_the_whole_sequence() -> None:
    frames = np.stack([np.full((8, 8), v, np.float32) for v in (0, 50, 100)])
    source = FrameSource(frames, 32, window=(0, 100))
    levels = [float(source[t][0].mean()) for t in range(3)]
    assert levels[1] == pytest.approx((levels[0] + levels[2]) / 2, abs=1e-5)


def test_padding_keeps_the_aspect_and_the_place() -> None:
    geometry = Geometry((50, 100), 128, "pad")
    assert geometry.filled == (64, 128)
    np.testing.assert_allclose(geometry.to_model(np.array([[25, 50]], np.float32)), [[64, 32]])
    mask = torch.zeros(1, 1, 50, 100)
    mask[..., 10:40, 20:80] = 1
    logits = torch.nn.functional.avg_pool2d(geometry.mask_to_model(mask), 4) * 20 - 10
    back = geometry.logits_to_frame(logits)[0, 0] > 0
    assert (back == (mask[0, 0] > 0)).float().mean() > 0.97


def test_small_holes_and_specks() -> None:
    logits = torch.full((1, 1, 20, 20), -5.0)
    logits[..., 2:12, 2:12] = 5
    logits[..., 5:7, 5:7] = -5  # a hole of 4
    logits[..., 8:11, 8:11] = -5  # a hole of 9
    logits[..., 15, 15:18] = 5  # a speck of 3
    mask = fill_small_holes(logits, 4) > 0
    assert mask[..., 5:7, 5:7].all() and not mask[..., 8:11, 8:11].any()
    assert not mask[..., 15, :].any()
    assert torch.equal(fill_small_holes(logits, 0), logits)
    tiny = torch.full((1, 1, 8, 8), -5.0)
    tiny[..., 3, 3] = 5
    assert (fill_small_holes(tiny, 4) > 0).sum() == 1


BAD = [
    ({"object_id": 0, "frame": 0, "points": [(1, 1)]}, "positive integer"),
    ({"object_id": 2**31, "frame": 0, "points": [(1, 1)]}, r"below 2\*\*31"),
    ({"object_id": 1, "frame": 12, "points": [(1, 1)]}, "frames 0 to 11"),
    ({"object_id": 1, "frame": -1, "points": [(1, 1)]}, "frames 0 to 11"),
    ({"object_id": 1, "frame": 0}, "nothing in this prompt"),
    ({"object_id": 1, "frame": 0, "points": [(61, 5)]}, "outside the image"),
    ({"object_id": 1, "frame": 0, "points": [(np.nan, 5)]}, "not a number"),
    ({"object_id": 1, "frame": 0, "points": np.ones((2, 3))}, r"Points are \(N, 2\)"),
    ({"object_id": 1, "frame": 0, "box": (0, 0, 200, 20)}, "60 x 80"),
    ({"object_id": 1, "frame": 0, "box": (0, 0, 20)}, "box is four numbers"),
    ({"object_id": 1, "frame": 0, "points": [(1, 1)], "labels": [1, 0]}, "2 labels"),
    ({"object_id": 1, "frame": 0, "points": [(1, 1)], "labels": [3]}, "inside"),
    ({"object_id": 1, "frame": 0, "mask": np.ones((5, 5))}, r"\(5, 5\)"),
    ({"object_id": 1, "frame": 0, "mask": disc(), "box": (1, 1, 2, 2)}, "alone"),
    ({"object_id": 1, "frame": 0, "points": [(1, 1)], "mask_input": np.ones((4, 4))}, "mask_input"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_prompts_are_refused_and_change_nothing(call: dict, message: str) -> None:
    p = predictor()
    p.set_prompts(1, 0, points=[(25, 20)])
    kept = p.prompts[1][0]
    with pytest.raises(ValueError, match=message):
        p.set_prompts(**call)
    assert p.object_ids == (1,) and p.prompts[1][0] is kept


def test_bad_sequences_and_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="no frames"):
        predictor(np.zeros((0, 5, 5)))
    with pytest.raises(ValueError, match="shape"):
        predictor(np.zeros((3, 5, 5, 5)))
    with pytest.raises(ValueError, match="window"):
        predictor(window=(3, 3))
    p = predictor()
    with pytest.raises(ValueError, match="Object 5"):
        p.propagate(objects=[5])
    with pytest.raises(ValueError, match="direction"):
        p.propagate(direction="sideways")
    assert list(p.propagate()) == []
    ragged = predictor([np.zeros((5, 5)), np.zeros((6, 5))], window=(0, 1))
    ragged.set_prompts(1, 0, points=[(1, 1)])
    with pytest.raises(ValueError, match="one shape"):
        list(ragged.propagate())


def devices() -> list[Any]:
    cases = [("cpu", torch.bfloat16), ("cpu", torch.float16)]
    marks = {
        "cuda": pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        "mps": pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device"),
    }
    params = [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in cases]
    for device, mark in marks.items():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            case = pytest.param(
                device, dtype, id=f"{device}-{dtype}", marks=[mark, pytest.mark.gpu]
            )
            params.append(case)
    return params


@pytest.mark.parametrize(("device", "dtype"), devices())
def test_other_devices_and_number_types_agree(device: str, dtype: torch.dtype) -> None:
    results = []
    for model in (small_model(), device_model(device, dtype)):
        p = SequencePredictor(model, movie(4))
        p.set_prompts(1, 0, box=(15, 10, 35, 30))
        p.set_prompts(2, 1, mask=disc())
        results.append(np.concatenate([r.logits.ravel() for r in p.propagate()]))
    agree = (results[0] > 0) == (results[1] > 0)
    assert agree.mean() > (0.999 if dtype == torch.float32 else 0.93)


MIXED = pytest.param(
    "mixed",
    marks=pytest.mark.skipif(not multiplies_bfloat16(), reason="this processor has no bfloat16"),
)


@pytest.mark.parametrize("dtype", ["half", MIXED])
def test_half_precision_changes_few_pixels_of_real_images(dtype: str) -> None:
    """nano follows three regions through an MRI of a head, in what it has on a graphics card, and
    in what makes processors quicker.
    """
    pytest.importorskip("nilearn")
    from nilearn.datasets import load_mni152_template

    volume = np.asarray(load_mni152_template(resolution=2).dataobj, np.float32).T
    frames = volume[47:55]
    exact = load_model("nano", device="cpu")
    chosen = half_precision(exact.config) if dtype == "half" else dtype
    half = load_model("nano", device="cpu", dtype=chosen)
    masks = []
    for model in (exact, half):
        p = SequencePredictor(model, frames, fit="pad")
        p.set_prompts(1, 0, box=(17, 14, 101, 84))
        p.set_prompts(2, 0, box=(35, 30, 82, 69))
        p.set_prompts(3, 0, points=[(58, 59)])
        masks.append(np.stack([result.masks for result in p.propagate()]))
    assert half.is_mixed if dtype == "mixed" else half.dtype == torch.float16
    assert masks[0].any(axis=(2, 3)).all()
    assert 0 < (masks[0] != masks[1]).sum() <= 0.005 * masks[0].sum()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library is asked")
def test_freed_arrays_are_kept_for_the_next_ones() -> None:
    script = """
import ctypes, resource, sys, torch
from sam2_engine.model.layers import recycle_memory
no_huge_pages = 41  # of Linux: a fault fills 4 KiB then, and not 2 MiB now and again
ctypes.CDLL(None).prctl(no_huge_pages, 1, 0, 0, 0)
if sys.argv[1] == "recycle":
    recycle_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for megabytes in range(4, 28):  # each is larger than any before, what the library gives back
    array = torch.zeros(megabytes << 18)
    del array
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    # Other tests may have had the library behave otherwise (dask's nanny does).
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    faults = {
        how: int(
            subprocess.check_output([sys.executable, "-c", script, how], text=True, env=environment)
        )
        for how in ("recycle", "as it is")
    }
    every_page = sum(range(4, 28)) << 8
    assert faults["as it is"] > 0.9 * every_page, "if not, nothing has to be done about it any more"
    # 0.08 to 0.17, by where the heap happens to lie
    assert faults["recycle"] < 0.5 * faults["as it is"], faults
