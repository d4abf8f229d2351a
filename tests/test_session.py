"""A session from arrays alone: what it reads, and which masks follow from which prompts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from models import small_model

from napari_sam2.sequence_view import ELSEWHERE, OUTSIDE, SequenceKey, SequenceView
from napari_sam2.session import NothingToDo, Session
from sam2_engine.sequence import SequencePredictor

SHAPE = (5, 40, 56)


@pytest.fixture
def volume():
    """Two bright blobs on noise, drifting along the first axis."""
    z, y, x = np.indices(SHAPE)
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    one = (y - 14 - z) ** 2 + (x - 16) ** 2 < 60
    two = (y - 26) ** 2 + (x - 38 + z) ** 2 < 80
    return (noise + 150 * one + 220 * two).astype(np.float32)


@pytest.fixture
def session(volume):
    return Session(volume, small_model(), window=(0, 250))


def predictor(session):
    """A predictor with all prompts of a session, which it knows nothing else of."""
    fresh = SequencePredictor(
        small_model(),
        session.view,
        window=session.window,
        refine_clicks=True,
        max_prompted_frames="adjacent",
    )
    for object_id, frames in session.prompts.items():
        for frame, said in frames.items():
            fresh.set_prompts(
                object_id,
                frame,
                points=said.points if len(said.points) else None,
                labels=said.labels if len(said.points) else None,
                box=said.box,
                mask_input=None if said.corrects is None else said.corrects.logits(),
            )
    return fresh


def propagated(session):
    """Labels as the engine gives them for the prompts of a session."""
    labels = np.zeros(session.view.shape, np.int32)
    best = np.zeros(session.view.shape, np.float32)
    for result in predictor(session).propagate():
        index = session.view.index(result.frame)
        for object_id, logits in zip(result.object_ids, result.logits, strict=True):
            wins = logits > best[index]
            labels[index][wins] = object_id
            best[index][wins] = logits[wins]
    return labels


def assert_same(labels, expected):
    """Equal, but where two objects' logits differ by less than half precision tells."""
    np.testing.assert_array_equal(labels > 0, expected > 0)
    assert (labels != expected).mean() < 1e-3


def run(session, **how):
    session.propagate(**how)
    return session.labels


# -- sequences ---------------------------------------------------------------------------------


class Lazy:
    """An array that only gives one slice at a time."""

    def __init__(self, array, largest):
        self._array = array
        self.largest = largest
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, index):
        found = self._array[index]
        assert found.size <= self.largest, "more than one frame was read"
        return found

    def __array__(self, *args, **kwargs):
        raise AssertionError("the whole array was read")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_frames_are_slices_along_any_axis_and_are_read_one_by_one(volume, axis):
    largest = volume.size // volume.shape[axis]
    view = SequenceView(Lazy(volume, largest), SequenceKey.along(axis, 3))
    assert len(view) == SHAPE[axis]
    assert view.frame_shape == tuple(np.delete(SHAPE, axis))
    for frame in range(len(view)):
        np.testing.assert_array_equal(view[frame], volume.take(frame, axis))
    with pytest.raises(IndexError, match="no slice"):
        view[len(view)]


def test_a_sequence_of_a_4d_image_stays_where_the_other_axes_are():
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    over_time = SequenceView(array, SequenceKey(0, (None, 2, None, None)))
    np.testing.assert_array_equal(over_time[1], array[1, 2])
    over_z = SequenceView(array, SequenceKey(1, (1, None, None, None)))
    np.testing.assert_array_equal(over_z[2], array[1, 2])
    assert len(over_time) == 2
    assert len(over_z) == 3


def test_colours_stay_together_and_a_2d_image_is_one_frame():
    colours = np.random.default_rng(0).integers(0, 255, (6, 7, 4), np.uint8)
    view = SequenceView(colours, rgb=True)
    assert len(view) == 1
    assert view.frame_shape == (6, 7)
    np.testing.assert_array_equal(view[0], colours[..., :3])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_positions_belong_to_the_nearest_frame_and_come_back(axis):
    view = SequenceView(np.zeros(SHAPE), SequenceKey.along(axis, 3))
    inside = np.random.default_rng(axis).uniform(-0.4, np.array(SHAPE) - 0.6, (50, 3))
    frames, yx = view.split(inside)
    np.testing.assert_array_equal(frames, np.rint(inside[:, axis]))
    for frame, at, position in zip(frames, yx, inside, strict=True):
        position[axis] = frame
        np.testing.assert_allclose(view.join(frame, at)[0], position)
    assert view.split([SHAPE])[0] == [OUTSIDE]
    other = SequenceView(np.zeros((2, *SHAPE)), SequenceKey(1, (1, None, None, None)))
    assert list(other.split([(0, 1, 2, 3), (1, 1, 2, 3)])[0]) == [ELSEWHERE, 1]


def test_an_image_needs_two_axes():
    with pytest.raises(ValueError, match="two axes"):
        Session(np.zeros(5), small_model())


# -- masks -------------------------------------------------------------------------------------


def test_a_preview_is_what_the_engine_predicts(session):
    one, two = session.add_object(), session.add_object("two")
    session.add_points(one, [(2, 16, 16)])
    session.add_box(two, 2, (17, 27, 35, 45))
    session.preview(2)
    expected = predictor(session).predict(2).labels()
    assert set(np.unique(expected)) == {0, one, two}
    assert_same(session.labels[2], expected)
    assert not np.delete(session.labels, 2, axis=0).any()


@pytest.mark.parametrize("axis", [0, 2])
def test_propagation_is_what_the_engine_gives(session, axis):
    session.show(SequenceKey.along(axis, 3))
    one, two = session.add_object(), session.add_object()
    session.add_points(one, [(2, 16, 16), (2, 2, 16)], labels=[1, 0])
    session.add_points(two, [(3, 26, 36)])
    steps = list(session.propagation())
    assert [step.done for step in steps] == list(range(1, steps[-1].total + 1))
    assert_same(session.labels, propagated(session))
    assert session.labels.any(axis=tuple(a for a in range(3) if a != axis)).all()


def test_masks_do_not_depend_on_the_order_of_prompts(volume):
    prompts = [(1, (2, 16, 16), 1), (1, (2, 3, 3), 0), (2, (1, 26, 37), 1), (2, (4, 26, 34), 1)]
    results = []
    # Clicks on one slice correct each other in their order, which is part of the prompt.
    orders = [
        o for o in itertools.permutations(prompts) if o.index(prompts[0]) < o.index(prompts[1])
    ]
    for order in orders[::4]:
        session = Session(volume, small_model(), window=(0, 250))
        for object_id in (1, 2):
            session.add_object(object_id=object_id)
        for object_id, point, label in order:
            for frame in session.add_points(object_id, [point], [label]):
                session.preview(frame)
        results.append(run(session).copy())
    assert len(results) == 3
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_direction_leaves_the_other_side_alone(session):
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    run(session, direction="forward")
    assert session.labels[2:].any(axis=(1, 2)).all()
    assert not session.labels[:2].any()


def test_a_stopped_propagation_keeps_what_it_has(session):
    one = session.add_object()
    session.add_points(one, [(0, 14, 16)])
    steps = session.propagation()
    frames = [next(steps).frame, next(steps).frame]
    steps.close()
    assert sorted(session.masks[one]) == frames == [0, 1]
    assert not session.labels[2:].any()


def test_without_prompts_there_is_nothing_to_propagate(session):
    one = session.add_object()
    with pytest.raises(NothingToDo, match="click on an object"):
        run(session)
    session.add_points(one, [(1, 2, 2)], labels=[0])
    with pytest.raises(NothingToDo):
        run(session)


# -- changes -----------------------------------------------------------------------------------


def test_the_last_prompt_takes_all_masks_with_it(session):
    one, two = session.add_object(), session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.add_points(two, [(2, 26, 36)])
    run(session)
    session.set_prompts(one, 2)
    assert one not in session.masks
    assert set(np.unique(session.labels)) == {0, two}


def test_an_object_that_goes_gives_back_what_it_covered(session):
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    run(session)
    alone = session.labels.copy()
    two = session.add_object()
    session.add_points(two, [(2, 18, 20)])
    run(session)
    assert ((session.labels == two) & (alone == one)).any(), "the test needs objects that overlap"
    session.remove_object(two)
    np.testing.assert_array_equal(session.labels, alone)
    assert session.add_object() not in (one, two)


def test_a_moved_prompt_changes_its_frames(session):
    one = session.add_object()
    session.add_points(one, [(1, 15, 16)])
    session.preview(1)
    session.set_prompts(one, 3, points=[(17, 16)])
    session.set_prompts(one, 1)
    session.preview(3)
    assert not session.labels[1].any()
    np.testing.assert_array_equal(session.labels[3], predictor(session).predict(3).labels())


def test_clicks_on_a_tracked_slice_correct_its_mask(session):
    one = session.add_object()
    session.add_points(one, [(1, 15, 16)])
    run(session)
    tracked = session.masks[one][3]
    before = session.labels.copy()

    session.add_points(one, [(3, 30, 8)], labels=[0])
    said = session.prompts[one][3]
    assert said.corrects is tracked.coarse
    session.preview(3)
    np.testing.assert_array_equal(session.labels[3], predictor(session).predict(3).labels())
    assert (session.labels[3] != before[3]).any()

    session.add_points(one, [(3, 17, 16)])
    assert session.prompts[one][3].corrects is said.corrects
    run(session)  # prompts alone give the same again
    np.testing.assert_array_equal(session.labels, propagated(session))

    session.add_box(one, 3, (8, 8, 26, 24))
    assert session.prompts[one][3].corrects is None, "a box starts over"

    session.set_prompts(one, 3)
    np.testing.assert_array_equal(session.labels[3], before[3])


def test_clicks_on_the_first_slice_start_from_nothing(session):
    one = session.add_object()
    session.add_points(one, [(1, 15, 16)])
    run(session)
    session.add_points(one, [(1, 2, 2)], labels=[0])
    assert session.prompts[one][1].corrects is None


def test_an_answer_to_prompts_that_have_changed_is_dropped(session):
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    task = session.task()
    late = session.compute_preview(task, 2)
    session.add_points(one, [(2, 3, 3)], labels=[0])
    session.accept(task, late)
    assert not session.labels.any()
    session.set_prompts(one, 2)
    session.accept(task, late)
    assert not session.labels.any()


def test_previews_between_the_steps_do_not_disturb_a_propagation(session):
    one, two = session.add_object(), session.add_object()
    session.add_points(one, [(2, 16, 16), (4, 18, 16)])
    expected = propagated(session)
    task = session.task()
    for step in session.compute_propagation(task):
        session.accept(task, step)
        session.set_prompts(two, step.frame, points=[(26, 36)])
        session.preview(step.frame)
        session.set_prompts(two, step.frame)
    np.testing.assert_array_equal(session.labels, expected)


def test_labels_of_others_are_left_alone(session):
    session.labels[2, 10:20, 10:20] = 99
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    run(session)
    assert (session.labels == one).any()
    assert (session.labels[2, 10:20, 10:20] == 99).all()


def test_every_axis_has_its_own_prompts(session):
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.show(SequenceKey.along(2, 3))
    assert session.prompts == {}
    session.add_points(one, [(2, 16, 16)])
    assert list(session.prompts[one]) == [16]
    session.preview(16)
    assert session.labels[:, :, 16].any()
    session.show(SequenceKey.along(0, 3))
    assert list(session.prompts[one]) == [2]


def test_the_window_decides_what_the_model_sees(session):
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.preview(2)
    before = session.labels[2].copy()
    session.window = (0, 1000)
    session.preview(2)
    assert (session.labels[2] != before).any()
    np.testing.assert_array_equal(session.labels[2], predictor(session).predict(2).labels())


def test_mistakes_are_told(session):
    with pytest.raises(ValueError, match="no object 3"):
        session.set_prompts(3, 0, points=[(1, 1)])
    one = session.add_object()
    with pytest.raises(ValueError, match="no slice 7"):
        session.set_prompts(one, 7, points=[(1, 1)])
    with pytest.raises(ValueError, match="outside"):
        session.add_points(one, [(2, 99, 1)])
    with pytest.raises(ValueError, match="2 points have 1 labels"):
        session.set_prompts(one, 1, points=[(1, 1), (2, 2)], labels=[1])
    with pytest.raises(ValueError, match="positive id"):
        session.add_object(object_id=one)
    assert session.prompts == {}
