"""All objects of a frame: where the model is asked, what is kept, and how it becomes objects."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from models import small_model
from scipy import ndimage

from benchmarks.automatic import average_precision
from napari_sam2.automatic import add_all, find_all, search_all
from napari_sam2.session import Session
from napari_sam2.session_file import open_session, save_session
from sam2_engine import load_model
from sam2_engine.automatic import (
    Candidate,
    Rules,
    best_of,
    crop_areas,
    find_objects,
    labels_image,
    search,
    tile_areas,
)
from sam2_engine.seeds import (
    classical_labels,
    contrast_seeds,
    grid_seeds,
    label_seeds,
    typical_diameter,
)
from sam2_engine.sequence import SequencePredictor

ALL = Rules(pred_iou_thresh=0, stability_score_thresh=0, max_area=1.0)


@lru_cache
def nuclei() -> tuple[np.ndarray, np.ndarray]:
    """A frame of 24 bright discs of 18 pixels on a dim, noisy ground, and their labels."""
    y, x = np.indices((160, 208))
    truth = np.zeros((160, 208), np.int32)
    shifts = np.random.default_rng(1).integers(-5, 6, (24, 2))
    for n, (dy, dx) in enumerate(shifts):
        at = 22 + 38 * (n // 6) + dy, 19 + 34 * (n % 6) + dx
        truth[(y - at[0]) ** 2 + (x - at[1]) ** 2 < 81] = n + 1
    frame = 30 + 120 * ndimage.gaussian_filter((truth > 0).astype(float), 1)
    return (frame + np.random.default_rng(0).normal(0, 6, frame.shape)).astype(np.float32), truth


def candidate(box: tuple[int, int, int, int], iou: float) -> Candidate:
    """A rectangle."""
    mask = np.ones((box[2] - box[0], box[3] - box[1]), bool)
    bits = np.packbits(mask, axis=1)
    return Candidate((box[0], box[1]), box, bits, int(mask.sum()), iou, stability=1.0)


# -- where to ask ----------------------------------------------------------------------------------


def test_contrast_and_classical_seeds_lie_one_on_each_object():
    frame, truth = nuclei()
    for seeds in (contrast_seeds(frame, 18), label_seeds(classical_labels(frame, 18))):
        y, x = np.rint(seeds.points).astype(int).T
        assert sorted(set(truth[y, x]) - {0}) == list(range(1, 25))
        assert (truth[y, x] > 0).sum() == 24


def test_dark_objects_are_seeded_as_bright_ones_are():
    frame, truth = nuclei()
    assert average_precision(classical_labels(255 - frame, 18), truth, 0.75) == 1


def test_uneven_light_asks_for_a_local_threshold():
    frame, truth = nuclei()
    lit = frame + np.linspace(0, 400, frame.shape[1])
    assert average_precision(classical_labels(lit, 18), truth, 0.5) < 0.6
    assert average_precision(classical_labels(lit, 18, local=True), truth, 0.5) > 0.8


def test_touching_objects_are_told_apart_by_their_depth():
    y, x = np.indices((60, 60))
    frame = ((y - 30) ** 2 + (x - 20) ** 2 < 100) | ((y - 30) ** 2 + (x - 38) ** 2 < 100)
    assert len(label_seeds(classical_labels(frame, 20))) == 2


def test_the_usual_diameter_is_guessed():
    assert 12 < typical_diameter(nuclei()[0]) < 27


def test_seeds_of_labels_know_point_box_and_region_of_each_instance():
    labels = np.zeros((20, 30), np.int16)
    labels[2:9, 3:6] = 40
    labels[16:] = -1  # unknown
    labels[10:15, 20:29] = 7
    seeds = label_seeds(labels)
    assert seeds.boxes.tolist() == [[10, 20, 14, 28], [2, 3, 8, 5]]
    for n, (y, x) in enumerate(seeds.points.astype(int), start=1):
        assert seeds.regions[y, x] == n
    assert len(label_seeds(np.zeros((4, 4), int))) == 0


def test_the_grid_covers_the_frame_evenly():
    points = grid_seeds((64, 128), 4).points
    assert points[0].tolist() == [7.5, 15.5]
    assert points[-1].tolist() == [55.5, 111.5]


@pytest.mark.parametrize("shape", [(100, 330), (64, 64), (129, 65)])
def test_tiles_show_every_place_whole_somewhere(shape):
    room = np.zeros(shape)
    for rows, columns in tile_areas(shape, 64):
        inside = np.pad(np.ones((rows.stop - rows.start, columns.stop - columns.start)), 1)
        ends = (
            (rows.start == 0, rows.stop == shape[0]),
            (columns.start == 0, columns.stop == shape[1]),
        )
        inside = np.pad(inside[1:-1, 1:-1], [(1 - a, 1 - b) for a, b in ends])
        # How far it is to where the tile cuts something off.
        far = (
            np.full(inside.shape, 99.0) if inside.all() else ndimage.distance_transform_edt(inside)
        )
        far = far[tuple(slice(1 - a, far.shape[i] - (1 - b)) for i, (a, b) in enumerate(ends))]
        room[rows, columns] = np.maximum(room[rows, columns], far)
    assert room.min() >= 16


def test_crops_are_those_of_the_published_generator():
    first = crop_areas((1500, 1500), 1, 512 / 1500)
    assert [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in first] == [
        (0, 1006, 0, 1006), (0, 1006, 494, 1500), (494, 1500, 0, 1006), (494, 1500, 494, 1500),
    ]  # fmt: skip


# -- what is kept ----------------------------------------------------------------------------------


def test_of_what_overlaps_the_better_is_kept():
    good, same = candidate((0, 0, 10, 10), 0.9), candidate((0, 0, 10, 11), 0.8)
    beside = candidate((0, 12, 10, 20), 0.5)
    assert best_of([beside, same, good], (20, 20)) == [good, beside]


def test_parts_of_wholes_are_left_out_unless_they_are_asked_for():
    part, whole = candidate((2, 2, 6, 6), 0.6), candidate((0, 0, 10, 10), 0.9)
    assert best_of([part, whole], (20, 20)) == [whole]
    assert best_of([part, whole], (20, 20), Rules(max_covered=1)) == [whole, part]


def test_the_better_has_the_pixels_of_the_labels():
    labels = labels_image([candidate((0, 0, 4, 4), 0.9), candidate((0, 2, 4, 8), 0.5)], (6, 9))
    assert (labels[:4, :4] == 1).all()
    assert (labels[:4, 4:8] == 2).all()
    assert (labels > 0).sum() == 32


def test_holes_are_filled_and_specks_removed():
    def smallest(rules: Rules) -> int:
        sizes = []
        for found in find_objects(small_model(), nuclei()[0], grid_seeds((160, 208), 4), rules):
            mask = np.pad(found.mask, 1)
            for region in (mask, ~mask):
                parts, count = ndimage.label(region, np.ones((3, 3)))
                sizes += np.bincount(parts.ravel())[1:].tolist() if count > 1 else []
        return min(sizes, default=10**6)

    assert smallest(ALL) <= 40
    assert smallest(replace(ALL, min_mask_region_area=40)) > 40


def test_rules_of_size_border_and_scores_hold():
    frame = nuclei()[0]
    every = find_objects(load_model("nano"), frame, "contrast", ALL, diameter=18)
    bar = float(np.median([one.iou for one in every]))
    rules = Rules(
        pred_iou_thresh=bar,
        stability_score_thresh=0.3,
        min_area=30,
        max_area=0.01,
        keep_border=False,
    )
    found = find_objects(load_model("nano"), frame, "contrast", rules, diameter=18)
    assert 0 < len(found) < len(every)
    for one in found:
        assert one.iou >= bar and one.stability >= 0.3
        assert 30 <= one.pixels == one.mask.sum() <= 0.01 * frame.size
        y0, x0, y1, x1 = one.box
        assert y0 > 0 and x0 > 0 and y1 < 160 and x1 < 208


def test_what_a_tile_cuts_off_is_left_to_the_next():
    rules = replace(ALL, box_nms_thresh=1, max_covered=1, tile_size=64)
    found = find_objects(load_model("nano"), nuclei()[0], "contrast", rules, diameter=18)
    assert len(found) > 20
    tiles = tile_areas((160, 208), 64)
    for one in found:
        y0, x0, y1, x1 = one.box
        assert any(
            (r.start < y0 or r.start == 0 == y0) and (y1 < r.stop or r.stop == 160 == y1)
            and (c.start < x0 or c.start == 0 == x0) and (x1 < c.stop or c.stop == 208 == x1)
            for r, c in tiles
        )  # fmt: skip


# -- finding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", ["contrast", "classical"])
@pytest.mark.parametrize("tile_size", [None, 128])
def test_nuclei_are_found(seeds, tile_size):
    frame, truth = nuclei()
    rules = Rules(tile_size=tile_size)
    found = find_objects(load_model("nano"), frame, seeds, rules, diameter=18)
    assert average_precision(labels_image(found, frame.shape), truth, 0.5) > 0.7


def test_nuclei_are_found_by_the_grid_and_by_points_of_ones_own():
    frame, truth = nuclei()
    for seeds in ("grid", label_seeds(truth).points):
        found = find_objects(load_model("nano"), frame, seeds, Rules(points_per_side=16))
        assert average_precision(labels_image(found, frame.shape), truth, 0.5) > 0.5


def test_colours_and_whole_numbers_are_images_too():
    frame, truth = nuclei()
    colours = np.repeat(frame.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    found = find_objects(load_model("nano"), colours, truth)
    assert average_precision(labels_image(found, frame.shape), truth, 0.5) > 0.7


def test_batches_change_nothing():
    frame, truth = nuclei()
    results = [
        labels_image(
            find_objects(load_model("nano"), frame, truth, Rules(points_per_batch=n)), frame.shape
        )
        for n in (5, 64)
    ]
    assert average_precision(*results, 0.98) == 1


def test_a_search_tells_how_far_it_is_and_stops():
    frame, truth = nuclei()
    steps = search(load_model("nano"), frame, truth, Rules(points_per_batch=10))
    first = next(steps)
    assert (first.done, first.total) == (10, 24)
    steps.close()
    assert 0 < len(first.candidates) <= 10
    told = []
    find_objects(load_model("nano"), frame, truth, progress=lambda *state: told.append(state))
    assert told == [(24, 24)]


def test_a_frame_without_anything_has_no_objects():
    for seeds in ("contrast", "classical", np.zeros((64, 64), int)):
        assert find_objects(small_model(), np.zeros((64, 64)), seeds, diameter=10) == []


def test_what_is_wrong_is_said():
    frame = nuclei()[0]
    for seeds, text in (
        ("mesh", 'must be "grid", "contrast" or "classical"'),
        (np.zeros((3, 3)), "not an array of"),
        ([(5, 900)], "x=900 lies outside"),
    ):
        with pytest.raises(ValueError, match=text):
            search(small_model(), frame, seeds)
    with pytest.raises(ValueError, match="above 0 pixels"):
        find_objects(small_model(), frame, "classical", diameter=0)


# -- objects of a session --------------------------------------------------------------------------


@pytest.fixture
def session():
    frame = nuclei()[0]
    return Session(np.stack([frame, np.roll(frame, 2, axis=1), np.roll(frame, 4, axis=1)]))


def test_what_is_found_becomes_objects_in_one_step(session):
    truth = np.roll(nuclei()[1], 2, axis=1)
    found = find_all(session, 1, "classical", diameter=18)
    ids = add_all(session, 1, found)
    assert list(session.objects) == ids
    assert average_precision(session.labels[1], truth, 0.5) > 0.7
    assert not session.labels[[0, 2]].any()
    said = session.prompts[ids[0]][1]
    assert said.points.tolist() == [list(found[0].point)]

    assert session.history.undo_label == "Find all"
    session.undo()
    assert not session.objects and not session.labels.any()
    session.redo()
    assert list(session.objects) == ids and session.labels[1].any()


def test_they_are_followed_and_are_the_same_when_opened_again(session, tmp_path):
    add_all(session, 1, find_all(session, 1, "classical", diameter=18)[:6])
    session.propagate()
    assert set(np.unique(session.labels[0])) - {0} <= set(session.objects)
    assert session.labels[0].any() and session.labels[2].any()
    save_session(session, tmp_path / "cells.sam2session")
    again = open_session(tmp_path / "cells.sam2session", session.image)
    again.propagate()
    np.testing.assert_array_equal(again.labels, session.labels)


def test_a_seed_counts_once_its_mask_is_taken_back(session):
    (object_id, *_) = add_all(session, 1, find_all(session, 1, "contrast", diameter=18))
    session.unpaint(object_id, 1)
    assert session.prompts[object_id][1].mask is None
    session.preview(1)
    assert object_id in session.masks


def test_objects_that_are_there_stay_and_keep_their_pixels(session):
    mine = session.add_object("mine")
    mask = nuclei()[1] == 3
    session.paint(mine, 0, mask)
    add_all(session, 0, find_all(session, 0, nuclei()[1]))
    assert (session.labels[0][mask] == mine).all()


def test_seeds_come_from_a_labels_layer_of_any_place(session):
    from napari.layers import Image, Labels

    image = Image(session.image, scale=(1, 0.5, 0.5))
    truth = np.stack([nuclei()[1]] * 3)[:, ::2, ::2]
    layer = Labels(truth, scale=(1, 1, 1))
    found = find_all(Session(image), 0, layer)
    assert average_precision(labels_image(found, (160, 208)), nuclei()[1], 0.5) > 0.7


def test_seeds_come_from_an_image_of_nuclei_of_any_place(session):
    from napari.layers import Image

    image = Image(session.image, scale=(1, 0.5, 0.5))
    truth = nuclei()[1]
    spots = 90.0 * (truth > 0) + np.random.default_rng(0).normal(10, 3, truth.shape)
    spots = np.stack([np.zeros_like(spots), spots, spots])[:, ::2, ::2]
    layer = Image(spots, scale=(1, 1, 1), translate=(-1, 0, 0))
    found = find_all(Session(image), 0, layer, diameter=18)
    on = [int(truth[int(y), int(x)]) for y, x in (one.point for one in found)]
    assert len(found) > 0.3 * truth.max()
    assert 0 not in on and len(set(on)) > 0.9 * len(on)


def test_many_objects_are_followed_in_portions_that_change_nothing(session, monkeypatch):
    model, truth = small_model(), nuclei()[1]
    seen, results = [], []
    attend = model.attend_to_memory
    monkeypatch.setattr(
        model, "attend_to_memory", lambda f, *rest: seen.append(len(f.stride16)) or attend(f, *rest)
    )
    for most in (32, 5):
        monkeypatch.setattr("sam2_engine.answers._OBJECTS_AT_ONCE", most)
        predictor = SequencePredictor(model, session.view)
        for object_id in range(1, 25):
            predictor.set_prompts(object_id, 1, mask=truth == object_id)
        seen.clear()
        results.append([result.masks for result in predictor.propagate()])
        assert sum(seen) == 2 * 24 and max(seen) == min(most, 24)
    for one, other in zip(*results, strict=True):
        assert (one != other).mean() < 1e-4


def test_a_slice_that_is_not_there_is_said(session):
    with pytest.raises(ValueError, match="no slice 7"):
        next(search_all(session.task(objects=()), 7))


# -- the benchmark's measure -----------------------------------------------------------------------


def test_average_precision_counts_hits_misses_and_extras():
    truth = np.zeros((10, 30), np.int32)
    truth[:, :10], truth[:, 10:20] = 1, 2
    found = np.zeros_like(truth)
    found[:, :8], found[:, 25:] = 5, 9  # IoU 0.8 with the first; an extra
    assert average_precision(found, truth, 0.75) == pytest.approx(1 / 3)
    assert average_precision(found, truth, 0.85) == 0
    assert average_precision(truth, truth, 0.99) == 1
    assert average_precision(found * 0, truth * 0, 0.5) == 1
    assert average_precision(found * 0, truth, 0.5) == 0
