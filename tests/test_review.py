"""Which slices are doubtful, what becomes of those that are rejected, and what is approved."""

from __future__ import annotations

import numpy as np
import pytest
from models import small_model

from benchmarks.review import gain, prompt_frames
from napari_sam2 import label_writer
from napari_sam2.output import Entry
from napari_sam2.review import by_doubt, doubts, evidence, evidence_of, next_doubtful
from napari_sam2.sequence_view import SequenceKey
from napari_sam2.session import LockedError, NothingToDo, Session
from napari_sam2.session_file import open_session, save_session
from napari_sam2.slice_data import CoarseLogits, ObjectMask, SlicePrompts
from sam2_engine.sequence import SequencePredictor

SHAPE = (7, 40, 56)


@pytest.fixture
def volume():
    """A bright blob on noise, drifting along the first axis."""
    z, y, x = np.indices(SHAPE)
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    return (noise + 150 * ((y - 14 - z) ** 2 + (x - 16) ** 2 < 60)).astype(np.float32)


@pytest.fixture
def session(volume):
    session = Session(volume, small_model(), window=(0, 250))
    session.add_object()
    session.add_points(1, [(2, 16, 16)])
    session.propagate()
    assert list(session.masks_of(1)) == list(range(7))
    return session


def found_mask(top, left, height, width, iou=0.8, sure=1.0):
    """A rectangle that the model has found; a part `sure` of its coarse pixels is above 1."""
    coarse = np.zeros((1, 100), np.int8)
    coarse[0, : round(100 * sure)] = 20
    logits = np.ones((height, width), np.float16)
    return ObjectMask(top, left, logits, CoarseLogits(256, 0, 0, coarse), iou)


# -- doubt -------------------------------------------------------------------------------------


def test_evidence_is_what_the_masks_show():
    masks = {
        1: found_mask(0, 0, 10, 10),
        2: found_mask(0, 0, 10, 10, iou=0.6, sure=0.5),
        3: found_mask(0, 5, 10, 10),
        4: found_mask(0, 5, 5, 10),
        6: ObjectMask.given(np.ones((3, 3))),
    }
    known = evidence_of(masks, {1: "prompted", 2: "auto", 6: "painted"}, 8, {}, {0, 2, 3, 4, 5}, {})
    assert known.area.tolist() == [0, 100, 100, 100, 50, 0, 9, 0]
    np.testing.assert_allclose(known.iou, [1, 0.8, 0.6, 0.8, 0.8, 1, 1, 1])
    np.testing.assert_allclose(known.stability, [1, 1, 0.5, 1, 1, 1, 1, 1])
    assert known.area_change.tolist() == [1, 1, 0, 0.5, 1, 1, 1, 1]
    way = np.hypot(2.5, 0) / np.sqrt(100 / np.pi)
    np.testing.assert_allclose(known.shift[[0, 1, 2, 5, 6]], [0, 0, 2 * way, 0, 0])
    np.testing.assert_allclose(known.shift[[3, 4]], [2 * way, way])
    assert known.distance.tolist() == [1, 0, 1, 2, 2, 1, 0, 1]
    assert known.is_open.tolist() == [True, False, True, True, True, True, False, True]

    steady = 1 - 0.5 * 2 * way
    np.testing.assert_allclose(
        known.steadiness[:5], [0.5, 0.5, 0.5 * steady, 0.75 * steady, 0.5 * (1 - 0.5 * way)]
    )
    np.testing.assert_allclose(known.wrong[2], 100 * (1 - 0.6 * 0.5 * steady) * (1 / 5))
    np.testing.assert_allclose(known.wrong[3], 100 * (1 - 0.8 * 0.5 * steady) * (2 / 6))
    assert known.expected.tolist() == [100, 0, 0, 0, 0, 50, 0, 0], "7 was not looked at"
    np.testing.assert_allclose(known.wrong[5], 50 * (4 / 5) ** 2, err_msg="lost")
    np.testing.assert_allclose(known.doubt, known.wrong / 100)
    assert known.doubt[[1, 6]].tolist() == [0, 0], "a person has spoken"


def test_the_nearer_to_its_marks_an_object_is_missing_the_more_it_is_doubted():
    masks = {frame: found_mask(0, 0, 10, 10) for frame in (2, 3, 4)}
    known = evidence_of(masks, {2: "prompted"}, 12, {}, set(range(12)), {})
    assert known.expected.tolist() == [100, 100, 0, 0, 0] + [100] * 7
    assert (np.diff(known.wrong[5:]) < 0).all()
    assert known.wrong[0] > known.wrong[5] > 0
    absent = {2: "prompted", 9: "painted"}
    said = evidence_of(masks, absent, 12, {}, set(range(12)) - {9}, {})
    assert said.wrong[8:].tolist() == [0] * 4, "a person has painted nothing on 9"
    assert said.expected[5] == 100


def test_a_box_on_which_the_model_finds_nothing_raises_doubt_around_it():
    box = {3: SlicePrompts.create(box=(10, 10, 30, 20))}
    known = evidence_of({}, {3: "prompted"}, 7, box, set(range(7)), {})
    assert known.expected.tolist() == [100] * 7, "half of the box"
    assert known.doubt[3] == 0
    np.testing.assert_allclose(known.doubt[[2, 4]], (4 / 5) ** 2)
    np.testing.assert_allclose(known.doubt[6], (4 / 7) ** 2)
    lasso = {3: SlicePrompts.create(lassos=[[(10, 10), (30, 10), (20, 20)]])}
    around = evidence_of({}, {3: "prompted"}, 7, lasso, set(range(7)), {})
    np.testing.assert_array_equal(around.doubt, known.doubt)
    nothing = evidence_of({}, {3: "prompted"}, 7, box, (), {})
    assert not nothing.doubt.any(), "the model has not looked yet"


def test_an_object_without_masks_or_marks_is_not_doubted():
    known = evidence_of({}, {}, 4, {}, range(4), {})
    assert known.doubt.tolist() == [0] * 4
    assert np.isinf(known.distance).all()


def test_a_smaller_iou_a_jump_and_a_longer_way_raise_the_doubt():
    masks = {frame: found_mask(0, 0, 10, 10) for frame in range(12)}
    states = {0: "prompted"}
    plain = evidence_of(masks, states, 12, {}, masks, {}).doubt
    assert (np.diff(plain) > 0).all(), "the longer the way"
    unsure = found_mask(0, 0, 10, 10, iou=0.7)
    doubt = evidence_of(masks | {6: unsure}, states, 12, {}, masks, {}).doubt
    assert doubt[6] > plain[6]
    np.testing.assert_array_equal(np.delete(doubt, 6), np.delete(plain, 6))
    for worse, first in ((found_mask(0, 0, 10, 10, sure=0.8), 6), (found_mask(3, 0, 10, 10), 5)):
        doubt = evidence_of(masks | {6: worse}, states, 12, {}, masks, {}).doubt
        assert (doubt[first:] > plain[first:]).all(), "what follows is doubted, too"
        np.testing.assert_array_equal(doubt[:first], plain[:first])
        assert doubt.max() <= 1


def test_what_was_followed_past_an_unsteady_slice_is_doubted_up_to_the_next_mark():
    sure = {2: 0.5, 5: 0.8, 7: 0.6, 9: 0.7}
    masks = {f: found_mask(0, 0, 10, 10, sure=sure.get(f, 1.0)) for f in range(12)}

    def worst(*marked):
        return evidence_of(masks, dict.fromkeys(marked, "prompted"), 12, {}, masks, {}).worst

    expected = [1, 1, 0.5, 1, 1, 0.8, 1, 0.6, 1, 0.7, 1, 1]
    np.testing.assert_allclose(worst(), expected, err_msg="there is no way")
    expected = [0.5, 0.5, 0.5, 1, 1, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6, 0.6]
    np.testing.assert_allclose(worst(3), expected)
    expected = [0.5, 0.5, 0.5, 1, 1, 0.8, 0.6, 0.6, 1, 0.7, 0.7, 0.7]
    np.testing.assert_allclose(worst(3, 8), expected, err_msg="6 follows from 8, 5 from 3")
    expected = [1, 1, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 1, 0.7, 1, 1]
    np.testing.assert_allclose(worst(1, 9), expected, err_msg="5 is as near to 1 as to 9")


def test_the_next_doubtful_slice_is_one_that_nobody_has_judged(session):
    ranked = by_doubt(session)
    doubt = doubts(session)[1]
    assert [frame for _, frame in ranked] == sorted(
        {0, 1, 3, 4, 5, 6}, key=lambda frame: (-doubt[frame], frame)
    )
    assert next_doubtful(session) == ranked[0]
    assert next_doubtful(session, seen=ranked[:2]) == ranked[2]
    assert next_doubtful(session, seen=ranked) is None

    session.keep(1, [6])
    session.keep(1, [5], "locked")
    session.paint(1, 0, np.eye(*SHAPE[1:]))
    session.reject(1, [3])
    assert {frame for _, frame in by_doubt(session)} <= {1}, "4 is locked for 3"
    assert session.states(1) == {
        0: "painted", 1: "auto", 2: "prompted", 3: "rejected", 4: "locked", 5: "locked",
        6: "approved",
    }  # fmt: skip
    assert session.facts(1).states["locked"] == 2
    session.edit_object(1, locked=True)
    assert next_doubtful(session) is None, "a locked object is not asked about"


def test_doubt_follows_the_masks(session):
    before = evidence(session, 1)
    session.paint(1, 4, np.zeros(SHAPE[1:]))
    after = evidence(session, 1)
    assert after.area[4] == 0
    assert after.doubt[3] < before.doubt[3] or after.area_change[3] == 1
    assert (after.distance[3], before.distance[5], after.distance[5]) == (1, 3, 1)


def test_objects_are_ranked_together_or_alone(session):
    two = session.add_object()
    session.add_points(two, [(5, 30, 40)])
    session.propagate()
    assert {i for i, _ in by_doubt(session)} == {1, two}
    assert {i for i, _ in by_doubt(session, [two])} == {two}
    found = {i: evidence(session, i).wrong for i in (1, two)}
    values = [found[i][frame] for i, frame in by_doubt(session)]
    assert values == sorted(values, reverse=True), "where most pixels are likely wrong"


def test_what_was_not_looked_at_is_not_doubted(volume):
    session = Session(volume, small_model(), window=(0, 250))
    session.add_object()
    session.add_points(1, [(2, 16, 16)])
    session.preview(2)
    assert session.looked_at(1) == {2}
    assert not doubts(session)[1].any()


# -- from both sides ---------------------------------------------------------------------------


@pytest.fixture
def marked_twice(session):
    session.add_box(1, 6, (12, 8, 29, 25))
    session.propagate()
    return session


def test_masks_between_two_marks_are_compared_with_those_from_the_farther_mark(marked_twice):
    session, before = marked_twice, marked_twice.labels.copy()
    steps, told = len(session.history), []
    session.check_both_sides(progress=lambda step: told.append((step.frame, step.done, step.total)))
    assert [(done, total) for _, done, total in told] == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_array_equal(session.labels, before)
    assert len(session.history) == steps, "there is nothing to take back"

    known = session.other_sides(1)
    assert sorted(known) == [3, 4, 5]
    predictor = SequencePredictor(
        session.model.get(), session.view, window=(0, 250), fit="pad", refine_clicks=True,
        max_prompted_frames="adjacent",
    )  # fmt: skip
    predictor.set_prompts(1, 2, points=[(16, 16)])
    predictor.set_prompts(1, 6, box=(12, 8, 29, 25))
    for direction, frames in (("forward", [5]), ("backward", [3, 4])):
        passed = {one.frame: one.masks[0] for one in predictor.propagate([1], direction)}
        for frame in frames:
            mask = session.masks_of(1)[frame].on_frame(SHAPE[1:])
            both, either = (mask & passed[frame]).sum(), (mask | passed[frame]).sum()
            assert known[frame] == (both / either, either - both)
    assert {iou for iou, _ in known.values()} != {1.0}, "the two ways differ somewhere"


def test_only_what_is_new_is_compared(marked_twice):
    session = marked_twice
    session.check_both_sides()
    known = session.other_sides(1)
    assert not any(session.check_task().wanted.values())
    session.add_points(1, [(4, 18, 16)])
    session.propagate()
    assert sorted(session.other_sides(1)) == [], "all between the marks follow from others now"
    assert {i: sorted(f) for i, f in session.check_task().wanted.items()} == {1: [3, 5]}
    session.undo()
    session.undo()
    assert session.other_sides(1) == known


def test_without_two_marks_there_is_nothing_to_compare(session):
    with pytest.raises(NothingToDo, match="between two slices that are marked"):
        session.check_both_sides()
    session.add_box(1, 6, (12, 8, 29, 25))
    with pytest.raises(NothingToDo):
        session.check_both_sides()  # what is between the marks is out of date
    assert session.other_sides(1) == {}


def test_a_mask_that_changes_meanwhile_is_not_compared(marked_twice):
    session = marked_twice
    task = session.check_task()
    steps = session.compute_propagation(task)
    session.reject(1, [5])
    for step in steps:
        session.accept(task, step)
    assert sorted(session.other_sides(1)) == [3, 4]
    assert session.states(1)[5] == "rejected"


def test_what_both_sides_do_not_see_alike_is_doubted(marked_twice):
    session = marked_twice
    before = evidence(session, 1)
    assert not before.differing.any()
    session.check_both_sides()
    after = evidence(session, 1)
    known = session.other_sides(1)
    assert after.differing[[3, 4, 5]].tolist() == [known[f].pixels for f in (3, 4, 5)]
    assert after.differing[[0, 1, 2, 6]].tolist() == [0] * 4
    worse = after.differing > 0
    assert worse.any()
    assert (after.wrong[worse] > before.wrong[worse]).all()
    np.testing.assert_array_equal(after.wrong[~worse], before.wrong[~worse])


# -- rejecting ---------------------------------------------------------------------------------


def test_a_rejected_slice_is_cleared_and_found_again_from_its_neighbours(session, volume):
    before = session.labels.copy()
    session.reject(1, [5])
    assert not session.labels[5].any()
    np.testing.assert_array_equal(np.delete(session.labels, 5, 0), np.delete(before, 5, 0))
    assert session.states(1)[5] == "rejected"
    assert session.kept(1) == {4: "locked", 6: "locked"}
    assert 5 in session.stale(1)

    session.update()
    assert session.states(1)[5] == "auto"
    assert session.labels[5].any()
    fresh = Session(volume, small_model(), window=(0, 250))
    fresh.add_object()
    fresh.add_points(1, [(2, 16, 16)])
    for frame in (4, 6):
        fresh.paint(1, frame, before[frame] == 1)
    fresh.propagate()
    np.testing.assert_array_equal(session.labels, fresh.labels)
    assert (session.labels[5] != before[5]).any(), "its neighbours count now"

    assert [session.undo(), session.undo()] == ["Propagate", "Reject"]
    np.testing.assert_array_equal(session.labels, before)
    assert session.kept(1) == {}
    assert session.stale(1) == []
    assert session.redo() == "Reject"
    assert not session.labels[5].any()


def test_rejecting_what_was_locked_for_a_neighbour_moves_on(session):
    session.reject(1, [4])
    session.reject(1, [5])
    assert session.states(1)[4] == session.states(1)[5] == "rejected"
    assert session.kept(1) == {3: "locked", 6: "locked"}
    session.reject(1, [0, 1])
    assert session.kept(1) == {3: "locked", 6: "locked"}, "the marked slice needs no lock"


def test_a_rejected_slice_loses_its_marks(session):
    told = []
    session.prompts_changed.connect(lambda: told.append(True))
    session.reject(1, [2])
    assert told
    assert session.prompts == {}
    assert session.states(1)[2] == "rejected"
    session.update()
    assert session.states(1)[2] == "auto"
    session.undo()
    session.undo()
    assert session.states(1)[2] == "prompted"


def test_what_a_person_has_made_or_approved_is_not_rejected(session):
    session.keep(1, [3])
    session.paint(1, 4, np.eye(*SHAPE[1:]))
    before, steps = session.labels.copy(), len(session.history)
    for frame, state in ((3, "approved"), (4, "painted")):
        with pytest.raises(LockedError, match=f"is {state} on slice {frame}"):
            session.reject(1, [0, frame])
    session.edit_object(1, locked=True)
    with pytest.raises(LockedError, match="is locked"):
        session.reject(1, [0])
    np.testing.assert_array_equal(session.labels, before)
    assert len(session.history) == steps + 1


def test_without_another_slice_there_is_nothing_to_find_a_rejected_one_from(volume):
    session = Session(volume, small_model(), window=(0, 250))
    session.add_object()
    session.add_points(1, [(2, 16, 16)])
    session.preview(2)
    before = session.labels.copy()
    with pytest.raises(NothingToDo, match="was not looked for on slice 4"):
        session.reject(1, [4])
    with pytest.raises(NothingToDo, match="no other slice"):
        session.reject(1, [2])
    np.testing.assert_array_equal(session.labels, before)
    assert session.states(1) == {2: "prompted"}
    assert session.history.undo_label == "Prompt"


def test_a_mark_on_a_rejected_slice_counts(session):
    session.reject(1, [5])
    session.add_points(1, [(5, 19, 16)])
    assert session.states(1)[5] == "prompted"
    session.preview(5)
    assert session.labels[5].any()
    session.set_prompts(1, 5)
    assert session.states(1)[5] == "rejected"
    assert not session.labels[5].any()


def test_what_is_rejected_while_it_is_computed_stays_rejected(session):
    session.add_points(1, [(3, 17, 16)])
    task = session.task()
    steps = session.compute_propagation(task)
    session.accept(task, next(steps))
    session.reject(1, [6])
    for step in steps:
        session.accept(task, step)
    assert session.states(1)[6] == "rejected"
    assert not session.labels[6].any()
    session.update()
    assert session.states(1)[6] == "auto"
    assert session.stale(1) == []


def test_a_rejected_slice_is_saved(session, volume, tmp_path):
    session.reject(1, [5])
    save_session(session, tmp_path / "a.sam2session")
    opened = open_session(tmp_path / "a.sam2session", volume, model=small_model(), warn=pytest.fail)
    assert opened.states(1) == session.states(1)
    opened.update()
    session.update()
    np.testing.assert_array_equal(opened.labels, session.labels)


# -- approving ---------------------------------------------------------------------------------


def test_approved_labels_hold_nothing_else(session):
    two = session.add_object()
    session.add_box(two, 3, (5, 5, 30, 30))
    session.propagate()
    assert not session.approved_labels().any()
    session.keep(1, [3])
    session.keep(1, [4], "locked")
    session.show(SequenceKey.along(2, 3))
    session.add_points(two, [(3, 20, 20)])
    session.preview(20)
    session.keep(two, [20])
    side = session.masks_of(two)[20].on_frame(session.view.frame_shape)
    session.show(SequenceKey.along(0, 3))
    expected = np.zeros(SHAPE, np.int32)
    expected[:, :, 20] = two * side
    mask = session.masks_of(1)[3].on_frame(SHAPE[1:])
    expected[3][mask] = 1
    found = session.approved_labels()
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_array_equal(found[4], expected[4])
    assert (found[3] == 1).any()


def test_slices_are_approved_while_a_training_in_a_thread_takes_what_is_approved(
    session, monkeypatch
):
    session.keep(1, [3])
    expected = session.approved_labels()

    def meanwhile(*entry):
        monkeypatch.undo()
        session.keep(1, [4])
        session.keep(session.add_object(), [5])
        return Entry(*entry)

    monkeypatch.setattr(label_writer, "Entry", meanwhile)
    np.testing.assert_array_equal(session.approved_labels(), expected)


# -- the benchmark -----------------------------------------------------------------------------


def test_gain_is_the_share_of_the_wrong_pixels_over_the_share_of_the_slices():
    wrong = np.array([5.0, 0, 0, 3, 0, 0, 0, 0, 0, 2])
    assert gain(wrong, wrong, 0.1) == pytest.approx(5)
    assert gain(wrong, wrong, 0.2) == pytest.approx(4)
    assert gain(np.zeros(10), wrong, 0.1) == pytest.approx(1), "equal slices share their places"
    assert gain(-wrong, wrong, 0.1) == 0
    assert gain(np.r_[1.0, 1, np.zeros(8)], wrong, 0.1) == pytest.approx(2.5)
    assert gain(wrong, wrong, 1.0) == pytest.approx(1)


def test_several_boxes_lie_in_the_middle_of_equal_stretches_of_an_object():
    truth = np.zeros((20, 4, 4), np.bool_)
    truth[4:16, 1, 1] = truth[9, 2, 2] = True
    assert prompt_frames("volume", truth, 1) == [9], "the largest"
    assert prompt_frames("timelapse", truth, 1) == [4], "the first"
    assert prompt_frames("volume", truth, 2) == [7, 13]
    assert prompt_frames("volume", truth, 3) == [6, 10, 14]
    assert prompt_frames("volume", truth[:6], 4) == [4, 5], "it has no more slices"
