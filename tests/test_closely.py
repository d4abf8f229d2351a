"""Small objects are looked at closely: in an area of their own, at a higher resolution."""

from __future__ import annotations

import numpy as np
import pytest
from models import small_model
from reference import fresh_predictor

from napari_sam2.areas import around_boxes, enlarged, moved
from napari_sam2.session import LockedError, NothingToDo, Session
from napari_sam2.session_file import open_session, save_session

SHAPE = (5, 120, 160)
WINDOW = (0, 250)


@pytest.fixture
def volume():
    """A small bright blob and a larger one on noise."""
    _, y, x = np.indices(SHAPE)
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    small = (y - 30) ** 2 + (x - 40) ** 2 < 20
    large = (y - 80) ** 2 + (x - 110) ** 2 < 500
    return (noise + 150 * small + 220 * large).astype(np.float32)


@pytest.fixture
def session(volume):
    session = Session(volume, small_model(), window=WINDOW)
    session.add_box(session.add_object(), 2, (25, 35, 35, 45))
    session.add_box(session.add_object(), 2, (58, 88, 102, 132))
    return session


def expected(session, object_id):
    """Frame -> mask of one object as the engine gives it, asked for this object alone."""
    results = fresh_predictor(session, [object_id]).propagate()
    return {result.frame: result.mask(object_id) for result in results}


def assert_as_engine(session, object_id):
    masks = session.masks_of(object_id)
    for frame, mask in expected(session, object_id).items():
        found = masks[frame].on_frame(SHAPE[1:]) if frame in masks else np.zeros(SHAPE[1:], bool)
        np.testing.assert_array_equal(found, mask)


def test_an_area_is_some_times_as_wide_as_the_object_and_stays_in_the_frame():
    assert around_boxes([(40, 30, 49, 35)], 3, (100, 80)) == (30, 18, 60, 48)
    assert around_boxes([(40, 30, 49, 35)], 9, (100, 80)) is None  # nearly all of it
    assert around_boxes([(0, 79, 0, 79)], 4, (100, 80)) == (0, 48, 32, 80)
    assert around_boxes([(10, 10, 19, 19), (30, 10, 40, 19)], 2, (100, 80)) == (24, 4, 46, 26)


def test_an_area_grows_with_marks_outside_of_it():
    area = (30, 20, 60, 50)
    assert enlarged(area, (30, 20, 59, 49), (100, 80)) == area
    assert enlarged(area, (70, 30, 71, 31), (100, 80)) == (30, 20, 79, 50)
    assert enlarged(area, (0, 0, 99, 79), (100, 80)) is None


def test_each_object_is_followed_as_the_engine_does_it_in_its_area(session):
    area = session.look_closely(1)
    assert area is not None and session.area(1) == area and session.area(2) is None
    session.propagate()
    for object_id in (1, 2):
        assert session.masks_of(object_id)
        assert_as_engine(session, object_id)
    steps = list(session.compute_propagation(session.task()))
    assert steps == []  # all is up to date


def test_steps_are_counted_with_all_areas(session):
    session.look_closely(1)
    session.look_closely(2, times=2)
    steps = list(session.propagation())
    assert [step.done for step in steps] == list(range(1, len(steps) + 1))
    assert {step.total for step in steps} == {len(steps)}


def test_masks_are_out_of_date_when_one_looks_otherwise_and_come_back_with_undo(session):
    session.propagate()
    before = session.labels.copy()
    session.look_closely(1)
    assert session.stale(1) == list(range(SHAPE[0])) and session.stale(2) == []
    session.history.undo()
    assert session.area(1) is None and session.stale(1) == []
    session.history.redo()
    assert session.area(1) is not None
    session.update()
    assert session.stale(1) == []
    assert session.look_closely(1, times=None) is None
    session.update()
    np.testing.assert_array_equal(session.labels, before)


def test_a_click_corrects_in_the_area_what_was_found_without_it(session):
    """The mask that a click corrects is where it was on the slice, however one looks now."""
    session.propagate()
    session.add_points(1, [(3, 31, 41)])  # corrects the tracked mask
    tracked = session.prompts[1][3].corrects
    assert tracked is not None and tracked.area is None
    whole = expected(session, 1)
    session.look_closely(1)
    session.update()
    assert_as_engine(session, 1)
    assert session.prompts[1][3].corrects is tracked
    close = session.masks_of(1)[3].on_frame(SHAPE[1:])
    assert (close & whole[3]).sum() > 0
    session.add_points(1, [(4, 31, 41)])
    assert session.prompts[1][4].corrects.area == session.area(1)
    session.look_closely(1, times=None)
    session.update()
    assert_as_engine(session, 1)


def test_an_area_goes_to_marks_outside_of_it():
    area = (30, 20, 60, 50)
    assert moved(area, (30, 20, 59, 49), (100, 80)) == area
    assert moved(area, (70, 30, 71, 31), (100, 80)) == (56, 16, 86, 46)
    assert moved(area, (5, 70, 24, 75), (100, 80)) == (0, 50, 40, 80)
    assert moved(area, (0, 0, 99, 79), (100, 80)) is None


def test_an_object_is_looked_for_where_it_is_marked(session):
    area = top, left, bottom, _ = session.look_closely(1, times=3)
    session.propagate()
    session.add_points(1, [(3, bottom + 5, left + 2)])  # corrects a mask: with what is about that
    grown = looked_at(session, 1, 3)
    assert session.area(1) == area and grown[0] <= top and grown[2] > bottom + 5
    session.add_box(1, 4, (70, 90, 79, 99))  # shows it elsewhere
    there = looked_at(session, 1, 4)
    assert there[2] - there[0] == bottom - top and there[0] < 70 and there[2] > 79
    session.propagate()
    assert_as_engine(session, 1)
    session.add_points(1, [(3, 2, 2)], [0])  # what is beside the object changes nothing
    assert looked_at(session, 1, 3) == grown


def looked_at(session, object_id, frame):
    """Where the model looks for an object on a slice that is marked."""
    step = session.compute_preview(session.task(), frame)
    return step.masks[object_id].coarse.area


def test_a_preview_looks_where_the_propagation_does(session):
    session.look_closely(1)
    step = session.compute_preview(session.task(), 2)
    assert set(step.masks) == {1, 2}
    assert step.masks[2].coarse.area is None
    for object_id, mask in step.masks.items():
        found = np.zeros(SHAPE[1:], bool) if mask is None else mask.on_frame(SHAPE[1:])
        np.testing.assert_array_equal(found, expected(session, object_id)[2])
    session.look_closely(2, times=2)
    step = session.compute_preview(session.task(), 2)
    assert step.masks[2].coarse.area == session.area(2)
    assert (step.masks[2].on_frame(SHAPE[1:]) == expected(session, 2)[2]).all()


def test_many_small_objects_share_the_memory_for_features(volume):
    session = Session(volume, small_model(), window=WINDOW)
    for n in range(12):
        session.add_box(session.add_object(), n % 5, (20 + n, 30, 30 + n, 40))
        session.look_closely(n + 1)
    session.propagate()
    assert session._engine._pair.tracker.features.nbytes <= 1 << 30
    assert_as_engine(session, 1)
    assert_as_engine(session, 12)


def test_areas_come_back_from_a_file(session, volume, tmp_path):
    session.look_closely(1)
    session.propagate()
    session.add_points(1, [(4, 31, 41)])
    path = tmp_path / "work.sam2session"
    save_session(session, path)
    opened = open_session(path, volume, model=small_model(), warn=pytest.fail)
    assert opened.area(1) == session.area(1) and opened.area(2) is None
    assert opened.prompts[1][4].corrects.area == session.area(1)
    assert opened.stale(1) == session.stale(1)
    for one in (session, opened):
        one.update()
    np.testing.assert_array_equal(opened.labels, session.labels)


def test_parts_of_a_track_are_looked_at_alike_and_a_cleared_one_forgets_it(session):
    session.look_closely(1)
    session.propagate()
    frames = sorted(session.masks_of(1))
    new = session.cut_object(1, frames[2])
    assert session.area(new) == session.area(1)
    session.remove_object(new)
    session.history.undo()
    assert session.area(new) == session.area(1)


def test_it_must_be_known_how_large_an_object_is(session):
    three = session.add_object()
    with pytest.raises(NothingToDo, match="not known how large Object 3 is"):
        session.look_closely(three)
    session.add_points(three, [(2, 30, 40)])
    with pytest.raises(NothingToDo, match="not known how large"):
        session.look_closely(three)
    painted = np.zeros(SHAPE[1:], bool)
    painted[28:34, 38:44] = True
    session.paint(three, 2, painted)
    assert session.look_closely(three) == (7, 17, 55, 65)
    session.edit_object(three, locked=True)
    with pytest.raises(LockedError):
        session.look_closely(three)
