"""A session from arrays alone: what it reads, and which masks follow from which prompts."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import zarr
from lazy import Lazy
from models import small_model
from reference import fresh_predictor
from volumes import two_blobs

from napari_sam2.engine_prompts import engine_prompts
from napari_sam2.io import Volume
from napari_sam2.label_writer import LabelWriter
from napari_sam2.measures import measure_session
from napari_sam2.output import Output
from napari_sam2.segmentation import segment
from napari_sam2.sequence_view import ELSEWHERE, OUTSIDE, SequenceKey, SequenceView
from napari_sam2.session import LockedError, NothingToDo, Session
from napari_sam2.slice_data import ObjectMask

SHAPE = (5, 40, 56)


@pytest.fixture
def volume():
    return two_blobs(SHAPE)


@pytest.fixture
def session(volume):
    return Session(volume, small_model(), window=(0, 250))


def propagated(session):
    """Labels as the engine gives them for the prompts of a session."""
    labels = np.zeros(session.view.shape, np.int32)
    best = np.zeros(session.view.shape, np.float32)
    for result in fresh_predictor(session).propagate():
        index = session.view.index(result.frame)
        for object_id, logits in zip(result.object_ids, result.logits, strict=True):
            wins = logits > best[index]
            labels[index][wins] = object_id
            best[index][wins] = logits[wins]
    return labels


def assert_same(labels, expected):
    """Equal, but where two objects' logits differ by less than half precision tells."""
    np.testing.assert_array_equal(labels > 0, expected > 0)
    assert (labels != expected).mean() < 2e-3


def run(session, **how):
    session.propagate(**how)
    return session.labels


# -- sequences ---------------------------------------------------------------------------------


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
    expected = fresh_predictor(session).predict(2).labels()
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
    np.testing.assert_array_equal(session.labels[3], fresh_predictor(session).predict(3).labels())


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
    np.testing.assert_array_equal(session.labels[3], fresh_predictor(session).predict(3).labels())
    assert (session.labels[3] != before[3]).any()

    session.add_points(one, [(3, 17, 16)])
    assert session.prompts[one][3].corrects is said.corrects
    run(session)  # prompts alone give the same again
    np.testing.assert_array_equal(session.labels, propagated(session))

    session.add_box(one, 3, (8, 8, 26, 24))
    assert session.prompts[one][3].corrects is None, "a box starts over"

    session.set_prompts(one, 3)
    np.testing.assert_array_equal(session.labels[3], before[3])


def test_what_is_trimmed_reaches_on_to_where_the_object_is_shown_next(session):
    one = session.add_object()
    session.add_points(one, [(0, 15, 16)])
    session.add_points(one, [(4, 17, 16)])
    run(session)
    session.add_points(one, [(1, 30, 8)], labels=[0])
    session.preview(1)
    assert session.stale(one) == [2, 3], "which may follow from the slice before it"
    session.update()
    assert session.stale(one) == []
    np.testing.assert_array_equal(session.labels, propagated(session))

    session.set_prompts(one, 0)
    assert session.stale(one) == [2, 3], "all that was followed from there"
    session.set_prompts(one, 4)
    run(session)
    np.testing.assert_array_equal(session.labels, propagated(session))


def test_a_click_where_the_object_was_lost_corrects_its_mask_nearby(session):
    one = session.add_object()
    session.add_points(one, [(1, 15, 16)])
    run(session)
    seen = session.masks[one][3]
    session.reject(one, [4])
    assert 4 not in session.masks[one]

    session.add_points(one, [(4, 2, 2)], labels=[0])
    assert session.prompts[one][4].corrects is None, "nothing is to be taken away there"
    session.set_prompts(one, 4)
    session.reject(one, [4])
    session.add_points(one, [(4, 17, 16)])
    corrects = session.prompts[one][4].corrects
    assert corrects is seen.coarse
    run(session)
    session.add_points(one, [(4, 19, 16)])
    assert session.prompts[one][4].corrects is corrects, "the second click goes on from there"


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


def test_it_is_known_whether_what_is_followed_has_changed(session):
    done, one = session.add_object(), session.add_object()
    session.add_points(done, [(2, 25, 36)])
    session.propagate(objects=[done])
    session.add_points(one, [(2, 16, 16)])
    session.set_life(one, last=3)
    task = session.task()
    assert not task.wanted[done]

    def change(work):
        with session.history.change("Try"):
            work()
            changed = session.has_changed_since(task)
        session.undo()
        assert not session.has_changed_since(task)
        return changed

    assert not change(lambda: session.edit_object(done, locked=True))
    assert not change(lambda: session.remove_object(done))
    assert not change(lambda: session.edit_object(one, name="kidney"))
    assert change(lambda: session.edit_object(one, locked=True))
    assert change(lambda: session.remove_object(one))
    assert change(lambda: session.add_points(one, [(3, 17, 16)]))
    assert change(lambda: session.set_life(one, last=2))
    assert change(lambda: session.set_life(one, last=4))


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
    np.testing.assert_array_equal(session.labels[2], fresh_predictor(session).predict(2).labels())


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
    with pytest.raises(ValueError, match=r"whole number, not 2\.0"):
        session.add_box(one, 2.0, (5, 5, 9, 9))
    for taken_or_none in (one, 0, 2**31):
        with pytest.raises(ValueError, match="needs a new id"):
            session.add_object(object_id=taken_or_none)
    with pytest.raises(ValueError, match=r"a whole number, not 3\.0"):
        session.add_object(object_id=3.0)
    for colour in ((1, 0, 0, 1), (255, 0, 0), (0.5, 0.5)):
        with pytest.raises(ValueError, match="three numbers from 0 to 1"):
            session.edit_object(one, colour=colour)
    assert session.prompts == {}
    assert session.objects[one].colour is None


# -- scribbles and lassos ----------------------------------------------------------------------


MISTAKES = [
    ("A slice is a whole number, not 3.5", lambda s: s.add_box(1, 3.5, (8, 8, 20, 24))),
    ("A slice is a whole number, not True", lambda s: s.add_box(1, True, (8, 8, 20, 24))),
    ("A slice is a whole number, not None", lambda s: s.preview(None)),
    ("A slice is a whole number, not 1.5", lambda s: s.cut_object(1, 1.5)),
    ("list: .3., not 3", lambda s: s.keep(1, 3)),
    ("list: .1., not 1", lambda s: s.propagate(objects=1)),
    ("The id of an object is a whole number, not 'liver'", lambda s: s.add_points("liver", [])),
    ("The id of an object is a whole number, not 2.5", lambda s: s.add_object(object_id=2.5)),
    ("The name of an object is a text, not 5", lambda s: s.add_object(5)),
    ("An object has no color; it has name, colour", lambda s: s.edit_object(1, color=(1, 0, 0))),
    ("three numbers from 0 to 1", lambda s: s.edit_object(1, colour=(255, 0, 0))),
    ("three numbers from 0 to 1", lambda s: s.edit_object(1, colour="red")),
    (r"needs 3 coordinates, \(z, y, x\); .* shape \(1, 2\)", lambda s: s.add_points(1, [(9, 9)])),
    (r"needs 3 coordinates, \(z, y, x\); .* shape \(\)", lambda s: s.add_points(1, 9)),
    ("corner of a lasso needs 2", lambda s: s.add_lasso(1, 2, [(2, 9, 9), (2, 9, 20), (2, 20, 9)])),
    ("A box is four numbers", lambda s: s.add_box(1, 2, (2, 8, 8, 2, 20, 24))),
    ("A box is four numbers", lambda s: s.add_box(1, 2, 8)),
    ("is empty", lambda s: s.add_box(1, 2, (8, 8, 8, 24))),
    ("The first slice, 3, is behind the last one, 1", lambda s: s.propagate(start=3, stop=1)),
    ('"approved" or "locked"', lambda s: s.keep(1, [2], "done")),
    ("float64; .astype", lambda s: s.take_labels(np.ones(SHAPE))),
    ("bool; .astype", lambda s: s.take_labels(np.ones(SHAPE, bool))),
    ("not a list", lambda s: s.take_labels([1, 2])),
    ("SequenceKey.along", lambda s: s.show(2)),
    ("no axis 5", lambda s: s.show(SequenceKey.along(5, ndim=3))),
]


@pytest.mark.parametrize(("why", "mistake"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_in_a_script_is_told_in_a_sentence_and_changes_nothing(session, why, mistake):
    session.add_object()
    session.add_points(1, [(2, 15, 17)])
    session.preview(2)
    before, label = session.snapshot(), session.history.undo_label
    with pytest.raises(ValueError, match=why):
        mistake(session)
    after = session.snapshot()
    assert after.objects == before.objects
    assert after.sequences.keys() == before.sequences.keys()
    assert session.history.undo_label == label
    session.propagate()  # and it goes on
    assert session.masks_of(1)


@pytest.mark.parametrize(
    ("why", "image"),
    [
        ("not a str", "scan.nii.gz"),
        ("not a NoneType", None),
        ("not a list", [[1, 2], [3, 4]]),
        ("numbers; these are complex", np.zeros(SHAPE, complex)),
        ("no pixel", np.zeros((0, 8, 8))),
    ],
)
def test_what_is_no_image_is_told_at_once(why, image):
    with pytest.raises(ValueError, match=why):
        Session(image)


def test_a_volume_that_was_read_is_an_image_with_its_spacing(volume):
    read = Volume(volume, (4.0, 0.5, 0.5), "um")
    session = Session(read, small_model(), window=(0, 250))
    assert session.view.spacing == (4.0, 0.5, 0.5)
    session.add_points(session.add_object(), [(2, 15, 17)])
    session.propagate()
    np.testing.assert_array_equal(
        session.labels, segment(read, points={1: (2, 15, 17)}, model=small_model(), window=(0, 250))
    )
    assert measure_session(session).frames[0].unit == "um2"
    channels = Volume(np.stack([volume, volume], 1), (4.0, 0.5, 0.5), axes="tcyx")
    assert Session(channels).view.spacing == (4.0, 1.0, 0.5, 0.5)


def test_an_object_is_not_looked_for_on_less_than_a_slice(session):
    session.add_points(session.add_object(), [(2, 15, 17)])
    session.end_after = 0
    with pytest.raises(ValueError, match="1 or more, or None: 0"):
        session.propagate()


def test_a_model_is_changed_by_its_name(session):
    session.model = "nano"
    assert session.model.name == "nano"
    assert not session.model.is_loaded


def test_a_lasso_keeps_the_object_within_it(session):
    one = session.add_object()
    polygon = [(8, 8), (8, 26), (27, 26), (27, 8)]
    session.add_box(one, 2, (8, 8, 27, 26))
    session.preview(2)
    boxed = session.labels[2].copy()
    outside = np.ones(SHAPE[1:], bool)
    outside[6:30, 6:29] = False  # but for a pixel of the model's masks
    assert boxed[outside].any(), "the test needs a model that leaves the box"
    session.set_prompts(one, 2, lassos=[polygon])
    session.preview(2)
    assert session.labels[2].any()
    assert not session.labels[2][outside].any()
    np.testing.assert_array_equal(session.labels[2], fresh_predictor(session).predict(2).labels())

    session.add_points(one, [(2, 35, 50)])  # what is clicked on may lie outside after all
    session.preview(2)
    assert session.labels[2][outside].any()


def test_a_scribble_is_clicks_along_it_placed_at_once(session):
    one = session.add_object()
    session.add_scribble(one, 2, [(16, 4), (16, 4), (16, 28)])
    given = engine_prompts(session.prompts[one][2], fresh_predictor(session).source.geometry)
    assert len(given["points"]) > 1
    np.testing.assert_allclose(given["points"][:, 0], 16)
    steps = np.diff(given["points"][:, 1])
    np.testing.assert_allclose(steps, steps[0])
    assert 4 < given["points"][:, 1].min() < given["points"][:, 1].max() < 28
    assert set(given["strokes"]) == {0}
    session.preview(2)
    np.testing.assert_array_equal(session.labels[2], fresh_predictor(session).predict(2).labels())

    session.add_scribble(one, 2, [(30, 40)], label=0)
    said = session.prompts[one][2]
    given = engine_prompts(said, fresh_predictor(session).source.geometry)
    assert list(given["labels"][-2:]) == [1, 0]
    assert given["strokes"][-1] == 1
    assert said.count == 2


def test_marks_may_reach_beyond_the_frame(session):
    one = session.add_object()
    session.set_prompts(
        one, 2, scribbles=[([(-9, 5), (20, 5)], 1)], lassos=[[(-5, -5), (-5, 99), (30, 20)]]
    )
    session.preview(2)
    np.testing.assert_array_equal(session.labels[2], fresh_predictor(session).predict(2).labels())


def test_only_what_is_beside_an_object_shows_nothing(session):
    one = session.add_object()
    session.add_scribble(one, 2, [(2, 2), (2, 30)], label=0)
    assert not session.prompts[one][2].usable
    with pytest.raises(NothingToDo):
        session.propagate()


# -- propagation -------------------------------------------------------------------------------


@pytest.fixture
def counted(session, monkeypatch):
    """A session, and what its model does: [frames encoded, objects tracked to a frame]."""
    counts = [0, 0]
    model = session.model.get()
    encode, attend = model.encode_image, model.attend_to_memory

    def encoding(images):
        counts[0] += len(images)
        return encode(images)

    def attending(features, recalled):
        counts[1] += len(recalled.tokens)
        return attend(features, recalled)

    monkeypatch.setattr(model, "encode_image", encoding)
    monkeypatch.setattr(model, "attend_to_memory", attending)
    return session, counts


def test_each_frame_is_encoded_once_and_tracked_once(counted):
    session, counts = counted
    one, two = session.add_object(), session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.preview(2)
    assert counts == [1, 0]
    session.add_points(two, [(3, 26, 36)])
    session.propagate()
    assert counts == [5, 8]
    session.propagate()
    session.update()
    assert counts == [5, 8], "nothing was out of date"


def test_objects_that_come_late_compute_nothing_of_the_others_again(counted):
    session, counts = counted
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    assert counts == [5, 4]
    before = session.masks_of(one)
    two = session.add_object()
    session.add_points(two, [(2, 26, 36)])
    session.propagate()
    assert counts == [5, 8]
    assert all(session.masks_of(one)[frame] is mask for frame, mask in before.items())


def test_an_update_goes_to_the_next_slices_that_are_sure(volume, monkeypatch):
    deep = np.repeat(volume, 4, axis=0)
    session = Session(deep, small_model(), window=(0, 250))
    one, two = session.add_object(), session.add_object()
    session.add_points(one, [(9, 16, 16)])
    session.add_points(two, [(9, 26, 36)])
    session.propagate()
    session.keep(one, [4])
    session.paint(one, 15, session.masks_of(one)[15].on_frame(SHAPE[1:]))
    session.propagate()
    before = {i: dict(session.masks_of(i)) for i in (one, two)}
    tracked = []
    model = session.model.get()
    attend = model.attend_to_memory
    monkeypatch.setattr(
        model,
        "attend_to_memory",
        lambda *a, **k: tracked.append(len(a[1].tokens)) or attend(*a, **k),
    )
    monkeypatch.setattr(model, "encode_image", lambda *a: pytest.fail("a frame was encoded"))

    session.add_points(one, [(9, 30, 40)], labels=[0])
    assert session.stale(one) == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    session.preview(9)
    steps = []
    session.update(progress=steps.append)
    frames = [5, 6, 7, 8, 10, 11, 12, 13, 14]
    assert sorted(step.frame for step in steps) == frames
    assert sum(tracked) == len(frames)
    assert session.stale(one) == session.stale(two) == []
    for frame in range(20):
        same = session.masks_of(one)[frame] is before[one][frame]
        assert same == (frame not in [*frames, 9])
        assert session.masks_of(two)[frame] is before[two][frame]


def test_an_update_leaves_out_what_was_never_computed(session):
    one = session.add_object()
    session.add_points(one, [(0, 14, 16)])
    session.propagate(to=2)
    assert list(session.masks_of(one)) == [0, 1, 2]
    session.add_points(one, [(0, 30, 40)], labels=[0])
    session.update()
    assert list(session.masks_of(one)) == [0, 1, 2]
    assert session.stale(one) == []


def test_to_here_goes_from_the_nearest_prompt(session):
    one, two = session.add_object(), session.add_object()
    session.add_points(one, [(0, 14, 16), (4, 18, 16)])
    session.add_points(two, [(4, 26, 34)])
    session.propagate(to=3)
    assert list(session.masks_of(one)) == [3, 4]
    assert list(session.masks_of(two)) == [3, 4]
    session.propagate(objects=[two], start=1, stop=2)
    assert list(session.masks_of(one)) == [3, 4]
    assert list(session.masks_of(two)) == [1, 2, 3, 4]
    session.propagate()
    assert_same(session.labels, propagated(session))


def test_an_object_ends_where_it_is_not_seen_for_some_slices(volume, monkeypatch):
    model = small_model(obj_bias=-2.0)  # sees nothing on tracked frames
    session = Session(volume, model, window=(0, 250), end_after=2)
    one = session.add_object()
    session.paint(one, 0, volume[0] > 100)
    tracked = []
    attend = model.attend_to_memory
    monkeypatch.setattr(
        model, "attend_to_memory", lambda *a, **k: tracked.append(1) or attend(*a, **k)
    )
    session.propagate()
    assert len(tracked) == 2
    assert list(session.masks_of(one)) == [0]
    monkeypatch.setattr(model, "encode_image", lambda *a: pytest.fail("a frame was encoded"))
    session.end_after = 1
    assert session.stale(one) == [1, 2, 3, 4]


def test_masks_follow_from_which_slices_are_remembered(volume):
    session = Session(volume, small_model(), window=(0, 250))
    session.add_points(session.add_object(), [(0, 14, 16)])
    session.propagate()
    session.memory, session.memory_tokens = "confident", "near"
    assert session.stale(1) == [0, 1, 2, 3, 4]
    session.propagate()
    options = {"memory": "confident", "memory_tokens": "near"}
    fresh = Session(volume, small_model(), window=(0, 250), **options)
    fresh.add_points(fresh.add_object(), [(0, 14, 16)])
    fresh.propagate()
    assert_same(session.labels, fresh.labels)
    assert session.stale(1) == []


# -- what a person keeps -----------------------------------------------------------------------


def square(at, size=6):
    mask = np.zeros(SHAPE[1:], bool)
    mask[at : at + size, at : at + size] = True
    return mask


def test_nothing_writes_a_painted_slice(session):
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    before = session.labels.copy()
    session.paint(one, 3, square(30))
    np.testing.assert_array_equal(session.labels[3], square(30) * one)
    assert session.stale(one) == [4]
    session.update()
    session.add_points(one, [(3, 16, 16)])  # waits
    session.keep(one, [3])
    session.release(one, [3])
    assert session.stale(one) == [], "the same mask was kept and painted"
    session.preview(3)
    session.propagate()
    np.testing.assert_array_equal(session.labels[3], square(30) * one)
    assert (session.labels[4] != before[4]).any(), "the slices around follow from it"
    session.unpaint(one, 3)
    assert (session.labels[3] != square(30) * one).any()
    session.paint(one, 1, np.zeros(SHAPE[1:]))
    session.propagate()
    assert not session.labels[1].any(), "painted as empty"


@pytest.mark.parametrize("how", ["approved", "locked"])
def test_nothing_writes_a_slice_that_is_kept(session, how):
    one, two = session.add_object(), session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    session.keep(one, [3], how)
    assert session.kept(one) == {3: how}
    kept = session.labels[3].copy()
    session.add_points(one, [(2, 30, 40)], labels=[0])
    session.add_points(one, [(3, 3, 3)])
    session.add_box(two, 3, (5, 5, 30, 30))
    session.propagate()
    np.testing.assert_array_equal(np.where(kept, session.labels[3], 0), kept)
    with pytest.raises(LockedError, match=f"is {how} on slice 3. Unlock it"):
        session.paint(one, 3, square(0))
    before = session.masks_of(one)[3]
    session.release(one, [3])
    assert session.masks_of(one)[3] is before
    session.propagate()
    np.testing.assert_array_equal(
        session.masks_of(one)[3].on_frame(SHAPE[1:]) * one > 0, propagated_mask(session, one, 3)
    )


def propagated_mask(session, object_id, frame):
    for result in fresh_predictor(session).propagate():
        if result.frame == frame and object_id in result.object_ids:
            return result.mask(object_id)
    raise AssertionError


def test_painting_on_the_labels_is_taken_over(session):
    one, two = session.add_object(), session.add_object()
    session.paint(one, 2, square(10))
    session.paint(two, 2, square(20))
    assert session.take_painting(2) == [], "nobody has painted"
    labels = session.labels
    labels[2, 10:12] = 0  # erased
    labels[2, 20:23, 20:30] = one  # over the other, and beyond it
    labels[2, 35, 35] = 99  # no object's
    seen = labels[2].copy()
    assert session.take_painting(2) == [one, two]
    np.testing.assert_array_equal(labels[2], seen)
    drawn = session.masks_of(one)[2].on_frame(SHAPE[1:])
    np.testing.assert_array_equal(drawn, seen == one)
    assert session.take_painting(2) == []
    assert session.undo() == "Paint"
    np.testing.assert_array_equal(labels[2] == one, square(10))
    np.testing.assert_array_equal(labels[2] == two, square(20))
    assert labels[2, 35, 35] == 99


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stroke_over_two_objects_leaves_nothing_when_they_go(session, overwrite):
    session.overwrite = overwrite
    one, two, three = (session.add_object() for _ in range(3))
    session.paint(one, 2, square(10))
    session.add_points(two, [(2, 16, 16)])
    session.preview(2)
    over = session.labels[2] == two
    over[:, 17:] = False
    over[10, 10] = True
    session.labels[2][over] = three
    assert session.take_painting(2) == [one, three]
    for object_id in (one, two, three):
        session.remove_object(object_id)
    assert not session.labels.any()


def test_painting_over_what_the_model_has_found_leaves_that_whole(session):
    one, two = session.add_object(), session.add_object()
    session.add_points(two, [(2, 16, 16)])
    session.preview(2)
    found = session.labels[2] == two
    over = found & square(14)
    assert over.any()
    session.labels[2][over] = one
    assert session.take_painting(2) == [one]
    np.testing.assert_array_equal(session.labels[2], np.where(over, one, found * two))
    np.testing.assert_array_equal(session.masks_of(two)[2].on_frame(SHAPE[1:]), found)


@pytest.mark.parametrize("how", ["approved", "locked", "whole"])
def test_painting_over_what_is_kept_is_not_taken_over(session, how):
    one, two = session.add_object(), session.add_object()
    session.paint(one, 2, square(10))
    if how == "whole":
        session.edit_object(one, locked=True)
    else:
        session.keep(one, [2], how)
    session.labels[2, 8:14, 8:14] = two
    assert session.take_painting(2) == [two]
    np.testing.assert_array_equal(session.labels[2] == one, square(10))
    around = np.zeros(SHAPE[1:], bool)
    around[8:14, 8:14] = True
    np.testing.assert_array_equal(session.labels[2] == two, around & ~square(10))
    session.labels[2] = 0
    assert session.take_painting(2) == [two]
    np.testing.assert_array_equal(session.labels[2], one * square(10))
    with pytest.raises(ValueError, match="There is no slice 77"):
        session.take_painting(77)


def test_the_last_slice_that_is_released_is_not_lost(session):
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    session.keep(one, [3])
    kept = session.labels[3].copy()
    session.set_prompts(one, 2)
    session.release(one, [3])
    np.testing.assert_array_equal(session.labels[3], kept)
    assert session.prompts[one][3].mask is not None


def test_nothing_writes_a_locked_object(session):
    one, two = session.add_object("liver"), session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    locked = session.labels.copy()
    session.edit_object(one, locked=True)
    for change in (
        lambda: session.add_points(one, [(2, 3, 3)]),
        lambda: session.add_box(one, 2, (3, 3, 9, 9)),
        lambda: session.set_prompts(one, 2),
        lambda: session.paint(one, 2, square(0)),
        lambda: session.remove_object(one),
        lambda: session.merge_objects(two, one),
    ):
        with pytest.raises(LockedError, match="liver is locked"):
            change()
    session.add_box(two, 2, (8, 8, 30, 40))
    session.window = (0, 1000)
    session.propagate()
    np.testing.assert_array_equal(np.where(locked, session.labels, 0), locked)
    assert (session.labels == two).any()
    session.edit_object(one, locked=False)
    session.propagate()
    assert (np.where(locked, session.labels, 0) != locked).any()


# -- labels of others --------------------------------------------------------------------------


@pytest.fixture
def others(volume):
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 10:20, 10:20] = 3
    labels[1:4, 25:30, 30:45] = 9
    return labels


def test_labels_of_others_are_left_alone(volume, others):
    before = others.copy()
    session = Session(volume, small_model(), window=(0, 250), labels=others)
    one = session.add_object()
    assert one == 10, "ids that are in the labels are not used again"
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    np.testing.assert_array_equal(others[before > 0], before[before > 0])
    np.testing.assert_array_equal(others == one, (whole(session, one)) & (before == 0))
    session.remove_object(one)
    np.testing.assert_array_equal(others, before)


def whole(session, object_id):
    """An object's masks, also where others cover them."""
    found = np.zeros(SHAPE, bool)
    for frame, mask in session.masks_of(object_id).items():
        found[frame] = mask.on_frame(SHAPE[1:])
    return found


def test_labels_of_others_are_covered_where_asked_and_come_back(volume, others):
    before = others.copy()
    session = Session(volume, small_model(), window=(0, 250), labels=others, overwrite=True)
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    np.testing.assert_array_equal(others == one, whole(session, one))
    session.undo()
    session.undo()
    np.testing.assert_array_equal(others, before)


def test_labels_are_written_slice_by_slice(volume, tmp_path):
    """An array like zarr's: never asked for more than a few slices."""

    class OnDisk(Lazy):
        chunks = (2, *SHAPE[1:])

        def __setitem__(self, index, value):
            self._array[index] = value
            self.written = index

    file = np.memmap(tmp_path / "labels.raw", np.uint16, "w+", shape=SHAPE)
    labels = OnDisk(file, 2 * volume[0].size)
    session = Session(
        Lazy(volume, volume[0].size), small_model(), window=(0, 250), labels=labels
    )  # fmt: skip
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    np.testing.assert_array_equal(file == one, whole(session, one))

    everywhere = session.add_object()
    session.paint(everywhere, 3, np.ones(SHAPE[1:]))
    session.keep(one, [3])
    mask = session.masks_of(one)[3]
    assert labels.written == (3, *mask.area), "no more of a slice than has changed"
    np.testing.assert_array_equal(file[3], np.where(mask.on_frame(SHAPE[1:]), one, everywhere))


def test_labels_on_disk_that_nothing_was_written_to_are_not_scanned():
    store = zarr.storage.LoggingStore(zarr.storage.MemoryStore(), log_level="ERROR")
    on_disk = zarr.create_array(
        store, shape=(1500, 4096, 4096), chunks=(1, 1024, 1024), dtype=np.int32
    )  # 100 GB
    store.counter.clear()
    assert Output(on_disk.shape, on_disk).others == frozenset()
    assert store.counter["get"] == 0

    few = zarr.create_array({}, shape=(4, 8, 8), chunks=(1, 4, 4), dtype=np.int32)
    few[2, 3, 3] = 5
    assert Output(few.shape, few).others == {5}


def test_there_are_new_objects_beside_a_mask_of_0_and_255(volume):
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, :4, :4] = 255
    session = Session(volume, small_model(), labels=labels)
    one, two = session.add_object(), session.add_object()
    assert (one, two) == (1, 2)
    session.paint(two, 0, np.ones(SHAPE[1:]))
    assert (labels[0, :4, :4] == 255).all() and (labels[0, 4:] == two).all()
    session.add_object(object_id=254)
    with pytest.raises(ValueError, match="uint8, which hold ids up to 255"):
        session.add_object()


def test_masks_move_to_other_labels(volume, others, session):
    before = others.copy()
    one = session.add_object(object_id=20)
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    first = session.labels
    session.write_to(others)
    assert session.labels is others
    assert not first.any()
    np.testing.assert_array_equal(others == one, whole(session, one) & (before == 0))
    session.write_to()
    np.testing.assert_array_equal(others, before)
    np.testing.assert_array_equal(session.labels == one, whole(session, one))

    session.add_object(object_id=300)
    with pytest.raises(ValueError, match="uint8, which hold ids up to 255, not 300"):
        session.write_to(others)
    session.remove_object(300)
    session.add_object("spleen", object_id=9)
    with pytest.raises(ValueError, match="under the id 9 already, which is the id of spleen"):
        session.write_to(others)
    with pytest.raises(ValueError, match="whole numbers"):
        session.write_to(np.zeros(SHAPE))
    with pytest.raises(ValueError, match="shape"):
        session.write_to(np.zeros((3, 3), int))


def test_each_object_can_have_labels_of_its_own(session):
    one, two = session.add_object(), session.add_object()
    session.add_points(one, [(2, 16, 16)])
    alone = session.labels_of(one)
    session.add_points(two, [(2, 18, 20)])
    session.propagate()
    np.testing.assert_array_equal(alone == one, whole(session, one))
    np.testing.assert_array_equal(session.labels_of(two) == two, whole(session, two))
    assert (whole(session, one) & whole(session, two)).any(), "the test needs an overlap"
    mine = np.zeros(SHAPE, np.uint8)  # such as an array on disk
    mine[0, 0, 0] = 9
    assert session.labels_of(one, mine) is mine
    np.testing.assert_array_equal(mine == one, whole(session, one) & (mine != 9))
    assert not alone.any()
    session.undo()
    assert mine.sum() == mine[0, 0, 0] == 9


def test_masks_along_several_axes_do_not_depend_on_the_order(volume):
    results = []
    for axes in ((0, 2), (2, 0)):
        session = Session(volume, small_model(), window=(0, 250))
        one, two = session.add_object(), session.add_object()
        for axis in axes:
            session.show(SequenceKey.along(axis, 3))
            session.add_points(one if axis == 0 else two, [(2, 16, 16)])
            session.add_points(two if axis == 0 else one, [(2, 26, 36)])
            session.propagate()
        results.append(session.labels.copy())
        assert set(np.unique(results[-1])) == {0, one, two}
    np.testing.assert_array_equal(*results)
    session.show(SequenceKey.along(2, 3))
    for object_id in (one, two):
        for frame in list(session.prompts[object_id]):
            session.set_prompts(object_id, frame)
    session.show(SequenceKey.along(0, 3))
    alone = Session(volume, small_model(), window=(0, 250))
    alone.restore(session.snapshot())
    np.testing.assert_array_equal(
        session.labels == one, np.where(session.labels == one, whole(session, one), False)
    )
    np.testing.assert_array_equal(session.labels, alone.labels)


# -- taking labels -----------------------------------------------------------------------------


def test_existing_labels_start_objects(session, others):
    assert session.take_labels(others) == [3, 9]
    assert set(session.objects) == {3, 9}
    assert list(session.prompts[9]) == [1]
    np.testing.assert_array_equal(session.labels[1] == 9, others[1] == 9)
    session.propagate()
    assert list(session.masks_of(3)) == [0, 1, 2, 3, 4]
    assert session.add_object() == 10
    session.undo()
    session.undo()
    session.undo()
    assert not session.labels.any()
    assert not session.objects

    assert session.take_labels(others, object_ids=[9], frames=[0, 2, 3]) == [9]
    assert list(session.prompts[9]) == [2, 3]
    session.keep(9, [2])
    with pytest.raises(LockedError):
        session.take_labels(others, frames=[2])
    assert set(session.objects) == {9}, "nothing is taken then"
    with pytest.raises(ValueError, match="shape"):
        session.take_labels(others[1:])
    large = np.array(others, np.uint32)
    large[large == 3] = 2**31 + 7
    session.remove_object(9)
    with pytest.raises(ValueError, match="needs a new id"):
        session.take_labels(large)
    assert not session.objects, "nothing is taken then"


def test_a_slice_of_many_labels_is_written_once(session):
    labels = np.zeros(SHAPE, np.uint16)
    labels[2, :4, :40] = np.arange(40) + 1
    written = []
    session.masks_changed.connect(written.append)
    assert session.take_labels(labels) == list(range(1, 41))
    assert len(written) == 1
    np.testing.assert_array_equal(session.labels, labels)


def test_objects_take_the_place_of_labels_that_they_are_made_from(volume, others):
    before = others.copy()
    session = Session(volume, small_model(), window=(0, 250), labels=others)
    session.take_labels(others, object_ids=[9])
    np.testing.assert_array_equal(others, before)
    session.propagate(to=2)
    np.testing.assert_array_equal(others[:2], before[:2])
    np.testing.assert_array_equal(others[2] == 9, whole(session, 9)[2] & (before[2] != 3))
    np.testing.assert_array_equal(others[3:], before[3:])
    session.undo()
    session.undo()
    np.testing.assert_array_equal(others, before)


# -- undo --------------------------------------------------------------------------------------


def test_everything_can_be_taken_back_and_made_again(session):
    one, two = session.add_object("one"), session.add_object("two")
    session.history.clear()
    actions = [
        ("Prompt", lambda: session.add_points(one, [(2, 16, 16), (2, 2, 2)], labels=[1, 0])),
        ("Prompt", lambda: session.add_box(two, 1, (17, 27, 35, 45))),
        ("Propagate", lambda: session.propagate()),
        ("Prompt", lambda: (session.add_points(one, [(3, 30, 8)], [0]), session.preview(3))),
        ("Paint", lambda: session.paint(one, 0, square(3))),
        ("Propagate", lambda: session.update()),
        ("Approve", lambda: session.keep(two, [2, 3])),
        ("Rename", lambda: session.edit_object(one, name="first")),
        ("Lock", lambda: session.edit_object(one, locked=True)),
        ("Lock", lambda: session.edit_object(one, locked=False)),
        ("Unlock", lambda: session.release(two, [2])),
        ("Unpaint", lambda: session.unpaint(one, 0)),
        ("Prompt", lambda: session.set_prompts(one, 3)),
        ("Merge", lambda: session.merge_objects(one, two)),
        ("New object", lambda: session.add_object("three")),
        ("Delete object", lambda: session.remove_object(one)),
    ]  # fmt: skip
    states = [state_of(session)]
    for label, act in actions:
        act()
        assert session.history.undo_label == label
        states.append(state_of(session))
    for (label, _), state in zip(reversed(actions), reversed(states[:-1]), strict=True):
        assert session.undo() == label
        assert_same_state(state_of(session), state)
    assert session.undo() is None
    for (label, _), state in zip(actions, states[1:], strict=True):
        assert session.redo() == label
        assert_same_state(state_of(session), state)
    assert session.redo() is None


def state_of(session):
    state = session.snapshot()
    prompts = {place: dict(own.prompts) for place, own in state.sequences.items() if own.prompts}
    kept = {place: dict(own.kept) for place, own in state.sequences.items() if own.kept}
    return session.labels.copy(), state.objects, prompts, kept


def assert_same_state(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1:] == other[1:]


def test_undo_writes_what_is_seen_first_and_the_rest_in_portions(session):
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    done, view = session.labels.copy(), session.labels
    assert done.any(axis=(1, 2)).all()
    with session.writing_first(2):
        assert session.undo() == "Propagate"
    assert not session.masks
    assert not view[2].any()
    np.testing.assert_array_equal(view[3:], done[3:])
    portions = 1
    while not session.write_rest(1e-9, at=4):
        portions += 1
        assert not view[4].any()
    assert portions > 1
    assert not view.any()
    with session.writing_first(4):
        session.redo()
        session.undo()
        session.redo()
    np.testing.assert_array_equal(session.labels, done)  # all, for whoever asks for them
    session.undo()
    assert not view.any()
    with session.writing_first(3):
        session.redo()
    session.paint(one, 2, square(30))
    session.write_rest()
    done[2] = one * square(30)
    np.testing.assert_array_equal(view, done)


def test_many_deleted_objects_come_back_without_each_being_compared_with_all(volume, monkeypatch):
    session = Session(volume, small_model())
    ids = [session.add_object() for _ in range(12)]
    for number, object_id in enumerate(ids):
        for frame in range(SHAPE[0]):
            session.paint(object_id, frame, square(2 * number))
    before = session.labels.copy()
    with session.history.change("Delete objects"):
        for object_id in ids:
            session.remove_object(object_id)
    compared = []
    monkeypatch.setattr(LabelWriter, "_is_covered", lambda *given: compared.append(given))
    session.undo()
    np.testing.assert_array_equal(session.labels, before)
    assert before.any() and not compared


@pytest.mark.parametrize("change", ["lock", "merge", "delete", "overwrite"])
def test_changes_of_whole_objects_are_written_in_portions_too(volume, change):
    others = np.zeros(SHAPE, np.int32)
    others[:, 22:24] = 7
    session = Session(volume, small_model(), labels=others)
    one, two = session.add_object(), session.add_object()
    for frame in range(SHAPE[0]):
        session.paint(one, frame, square(20, 10))
        session.paint(two, frame, square(26))
    before = others.copy()
    with session.writing_first(3):
        if change == "lock":
            session.edit_object(two, locked=True)
        elif change == "merge":
            session.merge_objects(two, one)
        elif change == "delete":
            session.remove_object(one)
        else:
            session.overwrite = True
    now = others.copy()
    np.testing.assert_array_equal(np.delete(now, 3, axis=0), np.delete(before, 3, axis=0))
    assert (now[3] != before[3]).any() == (change != "lock")  # what is painted goes first anyway
    assert not session.write_rest(1e-9, at=1)
    np.testing.assert_array_equal(others[1], now[3])
    session.write_rest()
    assert (others == now[3]).all()
    if change == "overwrite":
        session.overwrite = False
        np.testing.assert_array_equal(others, before)


def test_a_change_after_undo_ends_what_could_be_made_again(session):
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.undo()
    session.add_points(one, [(3, 16, 16)])
    assert session.redo() is None
    assert list(session.prompts[one]) == [3]


def test_undo_keeps_only_what_has_changed(session):
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    session.add_points(one, [(2, 2, 2)], labels=[0])
    session.preview(2)
    before = session.history.nbytes
    replaced = sum(mask.nbytes for mask in session.masks_of(one).values())
    session.update()
    assert 0 < session.history.nbytes - before <= replaced
    session.undo()
    assert session.history.nbytes == before


# -- saving ------------------------------------------------------------------------------------


def test_a_state_can_be_pickled_and_restored(volume, session):
    one, two = session.add_object("one"), session.add_object()
    session.edit_object(two, colour=(1.0, 0.0, 0.5), hidden=True)
    session.add_points(one, [(2, 16, 16)])
    session.set_prompts(
        two, 1, box=(17, 27, 35, 45), scribbles=[([(20, 30), (30, 40)], 1)],
        lassos=[[(1, 1), (1, 50), (39, 20)]],
    )  # fmt: skip
    session.propagate()
    session.add_points(one, [(3, 30, 8)], labels=[0])
    session.preview(3)
    session.paint(two, 4, square(20))
    session.keep(one, [0])
    session.show(SequenceKey.along(1, 3))
    session.add_points(one, [(2, 16, 16)])
    session.preview(16)
    state = pickle.loads(pickle.dumps(session.snapshot()))

    other = Session(volume, small_model(), window=(0, 99))
    other.add_object("goes")
    other.restore(state)
    np.testing.assert_array_equal(other.labels, session.labels)
    assert other.objects == session.objects
    assert other.view.key == session.view.key
    assert other.window == session.window
    assert other.undo() is None
    for axis in (0, 1):
        for one_session in (session, other):
            one_session.show(SequenceKey.along(axis, 3))
        for object_id in session.objects:
            assert other.stale(object_id) == session.stale(object_id)
            assert other.facts(object_id) == session.facts(object_id)
        for one_session in (session, other):
            one_session.propagate()
        np.testing.assert_array_equal(other.labels, session.labels)
    assert other.add_object() == 3

    other.restore(state, trust=False)
    other.show(SequenceKey.along(0, 3))
    assert set(other.stale(one)) >= {1, 2, 3}


def test_a_state_restored_onto_its_own_labels_owns_them(volume, session):
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    labels = session.labels.copy()
    labels[0, 0, 0] = 77
    other = Session(volume, small_model(), window=(0, 250), labels=labels)
    other.restore(session.snapshot())
    other.remove_object(one)
    assert (labels == 77).sum() == (labels > 0).sum() == 1


# -- the list of objects -----------------------------------------------------------------------


def test_a_preview_costs_what_its_own_objects_cost(session, monkeypatch):
    asked = []
    for frame, x in ((0, 5), (1, 16), (1, 30), (3, 45)):
        session.add_points(session.add_object(), [(frame, 16, x)])
    wanted = session._records.wanted
    monkeypatch.setattr(
        session._records, "wanted", lambda place, *of: asked.append(place[1]) or wanted(place, *of)
    )
    assert session.preview_task(1).anchors.keys() == {2, 3}
    assert sorted(asked) == [2, 3]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"box": (50, 60, 70, 80)}, "box at .* outside the slice, which is 40 x 56"),
        ({"box": (-9, -9, -4, -4)}, "outside"),
        ({"box": (1, 2, float("nan"), 9)}, "box lies where no number says"),
        ({"points": [(3, 99)]}, "point .* outside"),
        ({"points": [(3, float("inf"))]}, "no number"),
        ({"scribbles": [([(60, 1), (61, 2)], 1)]}, "scribble .* outside"),
        ({"lassos": [[(60, 1), (61, 2), (60, 2)]]}, "lasso .* outside"),
        ({"lassos": [[(6, 1), (float("nan"), 2), (6, 2)]]}, "no number"),
    ],
)
def test_marks_outside_the_slice_or_nowhere_are_refused(session, said, why):
    one = session.add_object()
    with pytest.raises(ValueError, match=why):
        session.set_prompts(one, 2, **said)
    if "box" in said:
        with pytest.raises(ValueError, match=why):
            session.add_box(one, 2, said["box"])
    assert session.prompts == {}
    session.add_box(one, 2, (-5, -5, 20, 20))  # reaches beyond it


def test_facts_of_an_object(session):
    one = session.add_object("liver")
    facts = session.facts(one)
    assert (facts.prompts, facts.slices, facts.first, facts.score) == (0, 0, None, None)
    session.add_points(one, [(2, 16, 16), (2, 2, 2)], labels=[1, 0])
    session.add_scribble(one, 2, [(16, 14), (16, 18)])
    session.propagate(start=1, stop=3)
    session.paint(one, 3, square(9))
    facts = session.facts(one)
    assert facts.info.name == "liver"
    assert (facts.prompts, facts.slices, facts.first, facts.last) == (4, 3, 1, 3)
    assert facts.score == pytest.approx(np.mean([session.masks_of(one)[f].iou for f in (1, 2)]))
    assert facts.stale == 0
    session.window = (0, 1000)
    assert session.facts(one).stale == 2


def test_a_union_holds_every_pixel_of_its_masks_once():
    rng = np.random.default_rng(0)
    whole = np.zeros((3, 20, 30), np.float32)
    for n, (y, x) in enumerate(((2, 3), (5, 9), (15, 22))):
        whole[n, y : y + 4, x : x + 6] = rng.normal(0, 2, (4, 6)) + 1e-6
    masks = [ObjectMask.of_logits(logits, logits[:16, :16], 0.9) for logits in whole]
    union, given = ObjectMask.union(masks), ObjectMask.given((whole > 0).any(axis=0))
    assert union.area == given.area
    np.testing.assert_array_equal(union.logits, given.logits)
    assert ObjectMask.union(masks[:1]) is masks[0]


def test_two_objects_become_one(session):
    one, two = session.add_object(), session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.add_box(two, 2, (17, 27, 35, 45))
    session.add_box(one, 3, (8, 8, 26, 24))
    session.add_box(two, 3, (17, 27, 35, 45))
    session.propagate()
    session.paint(two, 4, np.zeros(SHAPE[1:]))
    session.paint(one, 4, np.zeros(SHAPE[1:]))
    both = whole(session, one) | whole(session, two)
    session.merge_objects(one, two)
    np.testing.assert_array_equal(session.labels == one, both)
    assert set(session.objects) == {one}
    said = session.prompts[one]
    assert list(said) == [2, 3, 4]
    assert said[2].box == (17, 27, 35, 45)
    assert said[3].box == (8, 8, 35, 45)
    assert said[4].mask.is_empty
    np.testing.assert_array_equal(said[2].points, [(16, 16)])
    session.propagate()
    np.testing.assert_array_equal(session.labels, propagated(session))
    with pytest.raises(ValueError, match="with itself"):
        session.merge_objects(one, one)


# -- in one call -------------------------------------------------------------------------------


def test_segment_is_a_session_that_reads_slice_by_slice(volume):
    boxes, points = {2: (1, (17, 27, 35, 45))}, {1: [(2, 16, 16), (3, 17, 16)]}
    model = small_model()
    found = segment(
        Lazy(volume, volume[0].size), boxes=boxes, points=points, model=model, window=(0, 250)
    )
    session = Session(volume, model, window=(0, 250))
    session.add_object()
    session.add_points(1, points[1])
    session.add_object()
    session.add_box(2, *boxes[2])
    session.propagate()
    np.testing.assert_array_equal(found, session.labels)
    assert found.dtype == np.uint8
