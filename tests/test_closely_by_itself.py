"""Small objects are looked at closely without being asked, with the model that is bundled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from altered import saved_otherwise
from desk import blobs
from models import SMALL, small_model

from napari_sam2.areas import around_boxes, is_small_in
from napari_sam2.automatic import add_all, find_all
from napari_sam2.lazy_model import LazyModel
from napari_sam2.second_reader import SecondReading
from napari_sam2.segmentation import segment
from napari_sam2.session import Session, Step
from napari_sam2.session_file import open_session, replay, save_session
from napari_sam2.slice_data import ObjectMask
from sam2_engine.model import SAM2

SHAPE = (4, 200, 240)
SMALL_BOX, LARGE_BOX = (53, 73, 67, 87), (80, 110, 180, 210)


def disc(y, x, radius):
    rows, columns = np.indices(SHAPE[1:])
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


@pytest.fixture(scope="module")
def nano():
    return LazyModel("nano", "cpu")


@pytest.fixture(scope="module")
def volume():
    """A small bright disc and a large one."""
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    return (noise + 150 * disc(60, 80, 7) + 200 * disc(130, 160, 50)).astype(np.float32)


@pytest.fixture
def session(volume, nano):
    return Session(volume, nano)


def look(session, object_id):
    return session._records.look((session.view.key, object_id))


def test_what_is_small_in_an_area():
    shape = (200, 240)
    area = (16, 36, 106, 126)
    assert is_small_in(area, SMALL_BOX, shape)
    assert is_small_in(area, (20, 40, 64, 84), shape)  # half as wide
    assert not is_small_in(area, (20, 40, 65, 84), shape)
    for cut in ((16, 73, 30, 87), (53, 36, 67, 50), (90, 73, 105, 87), (53, 110, 67, 125)):
        assert not is_small_in(area, cut, shape)
    corner = (0, 150, 90, 240)
    assert is_small_in(corner, (0, 220, 14, 239), shape)  # the edges of the frame cut nothing
    assert not is_small_in(corner, (0, 150, 14, 160), shape)


def test_a_click_on_something_small_is_answered_closely(session):
    one = session.add_object()
    session.add_points(one, [(2, 60, 80)])
    assert session.area(one) is None
    whole = session.compute_preview(session.task(), 2).masks[one]
    step = session.preview(2)
    area = session.area(one)
    assert area == around_boxes([whole.box], 6, SHAPE[1:])
    assert step.masks[one].coarse.area == area
    assert session.masks_of(one)[2] is step.masks[one] and session.stale(one) == []
    found = session.labels[2] == one
    assert (found & disc(60, 80, 7)).sum() / (found | disc(60, 80, 7)).sum() > 0.8
    session.propagate()
    assert session.area(one) == area and session.stale(one) == []
    session.undo()  # the propagation
    assert session.undo() == "Prompt"
    assert session.area(one) is None and not session.masks
    assert session.redo() == "Prompt"
    assert session.area(one) == area and list(session.masks_of(one)) == [2]
    assert session.stale(one) == []


def test_the_first_answer_is_that_of_whole_slices_and_the_closer_one_takes_its_place(session):
    one = session.add_object()
    session.add_points(one, [(2, 60, 80)])
    task = session.preview_task(2)
    assert task.areas == {}
    step = session.compute_preview(task, 2)
    assert session.accept(task, step) is True
    assert session.masks_of(one)[2] is step.masks[one] and session.stale(one) == []
    closer = session.preview_task(2)
    assert set(closer.areas) == {one} and session.area(one) is None
    better = session.compute_preview(closer, 2)
    assert session.accept(closer, better) is False
    assert session.masks_of(one)[2] is better.masks[one]
    assert session.accept(task, step) is False  # it comes too late
    assert session.masks_of(one)[2] is better.masks[one]


def test_a_box_says_how_large_an_object_is(session):
    one, two = session.add_object(), session.add_object()
    session.add_box(one, 2, SMALL_BOX)
    session.add_box(two, 2, LARGE_BOX)
    assert session.undecided_frames() == [2]
    session.propagate()
    assert session.area(one) == around_boxes([SMALL_BOX], 6, SHAPE[1:])
    assert session.area(two) is None and look(session, two) is not None
    assert session.undecided_frames() == []
    for object_id in (one, two):
        assert len(session.masks_of(object_id)) == len(session.view)
        assert session.stale(object_id) == []


def test_it_does_not_matter_whether_one_looks_first(volume, nano):
    """A script that propagates at once has the same masks as someone who sees previews."""
    results = []
    for previews in (True, False):
        session = Session(volume, nano)
        one, two = session.add_object(), session.add_object()
        for object_id, place in ((one, (2, 60, 80)), (two, (1, 130, 160))):
            session.add_points(object_id, [place])
            if previews:
                session.preview(place[0])
        session.propagate()
        results.append((session.labels.copy(), session.area(one), session.area(two)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


def test_something_small_that_is_marked_at_two_places_is_looked_at_closely_at_both(nano):
    """On each slice the area lies about the marks there, and the mask has to fit in it there."""
    image = np.random.default_rng(0).normal(0, 10, SHAPE)
    image[:2] += 150 * disc(40, 40, 7)
    image[2:] += 150 * disc(160, 200, 7)
    session = Session(image.astype(np.float32), nano)
    one = session.add_object()
    session.add_box(one, 1, (33, 33, 47, 47))
    session.add_box(one, 2, (153, 193, 167, 207))
    session.propagate()
    assert session.area(one) is not None
    first, second = (session.masks_of(one)[frame].coarse.area for frame in (1, 2))
    assert first[0] < 40 < first[2] < 160 and second[0] < 160 < second[2]


def test_undo_takes_back_all_that_a_propagation_did_and_decided(session):
    one = session.add_object()
    session.add_points(one, [(2, 60, 80)])
    session.propagate(to=3)
    assert list(session.masks_of(one)) == [2, 3]
    session.undo()
    assert not session.masks and not session.labels.any()
    session.undo()
    assert session.area(one) is None and not session.prompts
    session.redo(), session.redo()
    assert session.area(one) is not None and session.stale(one) == []


@pytest.mark.parametrize("wrong", ["nothing", "cut", "wide"])
def test_a_wrong_guess_is_taken_back_for_good(session, wrong):
    one = session.add_object()
    session.add_points(one, [(2, 60, 80)])
    task = session.preview_task(2)
    first = session.compute_preview(task, 2)
    assert session.accept(task, first)
    closer = session.preview_task(2)
    top, left, bottom, right = closer.areas[one]
    mask = np.zeros(SHAPE[1:], bool)
    if wrong == "cut":
        mask[60:70, left : left + 20] = True
    elif wrong == "wide":
        mask[top + 5 : bottom - 5, left + 5 : right - 5] = True
    answer = ObjectMask.given(mask) if mask.any() else None
    assert session.accept(closer, Step(2, {one: answer}, is_preview=True)) is False
    assert session.area(one) is None
    assert session.masks_of(one)[2] is first.masks[one], "what was found on the whole slice stays"
    assert session.stale(one) == [] and session.undecided_frames() == []
    session.preview(2)
    session.add_points(one, [(2, 62, 81)])
    session.preview(2)
    assert session.area(one) is None


def test_a_box_whose_object_is_larger_is_looked_at_on_the_whole_slice_next(session):
    one = session.add_object()
    session.add_box(one, 2, SMALL_BOX)
    task = session.preview_task(2)
    top, left, bottom, right = task.areas[one]
    filled = np.zeros(SHAPE[1:], bool)
    filled[top:bottom, left:right] = True
    step = Step(2, {one: ObjectMask.given(filled)}, is_preview=True)
    assert session.accept(task, step) is True
    assert not session.masks and session.area(one) is None
    session.preview(2)
    assert session.masks_of(one)[2].coarse.area is None and session.area(one) is None


def test_more_clicks_show_that_an_object_is_not_so_small(session):
    one = session.add_object()
    session.add_points(one, [(2, 60, 80)])
    session.preview(2)
    area = session.area(one)
    session.add_points(one, [(2, 62, 82)])
    session.preview(2)
    assert session.area(one) == area
    task = session.preview_task(2)
    wide = np.zeros(SHAPE[1:], bool)
    wide[area[0] : area[2], area[1] : area[3]] = True
    assert session.accept(task, Step(2, {one: ObjectMask.given(wide)}, is_preview=True)) is True
    assert session.area(one) is None
    session.preview(2)
    assert session.stale(one) == [] and session.masks_of(one)[2].coarse.area is None


def test_what_is_marked_elsewhere_in_its_place_is_decided_anew(session):
    one = session.add_object()
    session.set_prompts(one, 2, points=[(60, 80)])
    session.preview(2)
    assert session.area(one) is not None
    session.set_prompts(one, 2, points=[(130, 160)])
    assert session.area(one) is None
    session.preview(2)
    assert session.area(one) is None and session.masks_of(one)[2].box[2] > 150
    session.set_prompts(one, 2)
    session.set_prompts(one, 1, box=SMALL_BOX)
    session.preview(1)
    assert session.area(one) == around_boxes([SMALL_BOX], 6, SHAPE[1:])
    session.propagate()
    session.set_prompts(one, 1)  # nothing is left of it
    assert look(session, one) is None and not session.masks


def test_what_has_been_followed_stays_as_it_is(session):
    session.closely = False
    one = session.add_object()
    session.add_points(one, [(2, 60, 80)])
    session.propagate()
    session.closely = True
    assert session.undecided_frames() == []
    session.preview(2)
    session.add_points(one, [(3, 60, 80)])
    session.preview(3)
    session.propagate()
    assert session.area(one) is None and session.stale(one) == []


def test_what_a_person_has_chosen_is_never_overruled(session):
    one, two = session.add_object(), session.add_object()
    session.add_box(one, 2, SMALL_BOX)
    session.look_closely(one, times=None)
    session.add_box(two, 2, LARGE_BOX)
    area = session.look_closely(two, times=1.2)
    assert area is not None
    session.preview(2)
    session.add_box(one, 2, (52, 72, 68, 88))
    session.propagate()
    assert session.area(one) is None
    assert session.area(two) == area, "although what is found there is cut off"
    session.undo()
    while session.undo() != "Look closely":
        pass
    assert look(session, two) is None


def test_painting_is_looked_at_closely_at_once_and_as_it_is_at_last(session):
    one = session.add_object()
    session.model.get()
    session.paint(one, 1, disc(60, 80, 3))
    assert session.area(one) == around_boxes([(58, 78, 62, 82)], 6, SHAPE[1:])
    session.paint(one, 1, disc(60, 80, 7))
    area = around_boxes([(54, 74, 66, 86)], 6, SHAPE[1:])
    assert session.area(one) == area
    assert session.undo() == "Paint" and session.area(one) != area
    session.redo()
    session.propagate()
    assert session.area(one) == area and len(session.masks_of(one)) == SHAPE[0]


def test_objects_that_come_in_numbers_are_looked_at_on_whole_slices(session, volume):
    session.model.get()
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 53:68, 73:88] = 4
    assert session.take_labels(labels) == [4]
    found = find_all(session, 2, "classical", diameter=14)
    new = add_all(session, 2, found)
    theirs = SecondReading(session, np.where(labels, np.uint8(77), 0))
    other = theirs.add(77)
    session.propagate()
    assert new
    for object_id in (4, *new, other):
        assert session.area(object_id) is None
    session.add_box(4, 3, SMALL_BOX)
    session.preview(3)
    assert session.area(4) is None


def test_daughters_are_looked_at_on_whole_slices(session):
    session.model.get()
    one = session.add_object()
    session.paint(one, 0, disc(60, 80, 7))
    session.propagate()
    assert session.area(one) is not None
    daughters = session.split_object(one, 2, [disc(57, 80, 3), disc(63, 80, 3)])
    session.update()
    assert [session.area(daughter) for daughter in daughters] == [None, None]


def test_many_small_objects_are_each_looked_at_closely(nano):
    noise = np.random.default_rng(0).normal(0, 10, (2, 200, 240))
    places = [(30 + 40 * (n // 5), 30 + 40 * (n % 5)) for n in range(10)]
    image = noise + sum(150 * disc(*place, 6) for place in places)
    session = Session(image.astype(np.float32), nano)
    for y, x in places:
        session.add_box(session.add_object(), 0, (y - 6, x - 6, y + 6, x + 6))
    session.propagate()
    assert all(session.area(i) is not None for i in session.objects)
    assert session.undecided_frames() == []
    assert [len(masks) for masks in session.masks.values()] == [2] * 10


def test_models_with_a_large_input_see_small_objects_by_themselves(volume):
    large = SAM2(replace(SMALL, image_size=768))
    session = Session(volume, large.eval())
    one = session.add_object()
    session.add_box(one, 2, SMALL_BOX)
    session.preview(2)
    assert session.area(one) is None and look(session, one) is None
    assert session.undecided_frames() == []
    session.model = LazyModel(small_model())
    assert session.undecided_frames() == [2]


def test_on_a_slice_larger_than_its_input_a_large_model_misses_what_is_tiny_there():
    session = Session(
        np.zeros((2, 900, 1200), np.uint8), SAM2(replace(SMALL, image_size=576)).eval()
    )
    areas = {}
    for width in (24, 26):  # 11.5 and 12.5 pixels of the input
        one, mask = session.add_object(), np.zeros((900, 1200), bool)
        mask[400:410, 600 : 600 + width] = True
        session.paint(one, 0, mask)
        areas[width] = session.area(one)
    assert areas == {24: around_boxes([(400, 600, 409, 623)], 6, (900, 1200)), 26: None}
    session.model = LazyModel(SAM2(replace(SMALL, image_size=1280)).eval())  # it sees all there is
    assert session.area(1) is None


def test_with_a_larger_model_only_what_a_person_has_chosen_is_looked_at_closely(session, nano):
    one, two = session.add_object(), session.add_object()
    for object_id in (one, two):
        session.add_box(object_id, 2, SMALL_BOX)
    session.propagate()
    area = session.area(one)
    session.look_closely(two)
    session.model = LazyModel(SAM2(replace(SMALL, image_size=768)).eval())
    assert session.area(one) is None and session.area(two) == area
    assert set(session.task().areas) == {two}
    session.model = nano
    assert session.area(one) == area and session.stale(one) == [] and session.stale(two) == []


def test_what_is_decided_and_what_is_not_comes_back_from_a_file(session, volume, nano, tmp_path):
    for box in (SMALL_BOX, LARGE_BOX, SMALL_BOX):
        session.add_box(session.add_object(), 2, box)
    session.look_closely(3, times=None)
    session.preview(2)
    session.add_points(session.add_object(), [(2, 60, 80)])  # nobody has looked
    session.closely = False
    path = tmp_path / "work.sam2session"
    save_session(session, path)
    opened = open_session(path, volume, model=nano, warn=pytest.fail)
    assert opened.closely is False
    for object_id in session.objects:
        assert look(opened, object_id) == look(session, object_id)
    assert look(opened, 1).area and not look(opened, 1).is_settled
    assert look(opened, 3) == (None, True) and look(opened, 4) is None
    opened.closely = session.closely = True
    for one in (session, opened):
        one.propagate()
        assert one.area(4) is not None
    np.testing.assert_array_equal(opened.labels, session.labels)
    save_session(session, path)
    np.testing.assert_array_equal(replay(path, volume, model=nano), session.labels)


def test_sessions_of_older_programs_stay_as_they_are(session, volume, nano, tmp_path):
    session.closely = False
    session.add_box(session.add_object(), 2, SMALL_BOX)
    session.propagate()

    def as_before(said):
        del said["closely"], said["sequences"][0]["objects"][0]["look"]

    older = saved_otherwise(session, tmp_path, as_before)
    opened = open_session(older, volume, model=nano, warn=pytest.fail)
    assert opened.stale(1) == []
    opened.preview(2)
    opened.propagate()
    np.testing.assert_array_equal(opened.labels, session.labels)
    new = opened.add_object()  # what is marked from now on is decided
    opened.add_box(new, 2, SMALL_BOX)
    opened.preview(2)
    assert opened.area(1) is None and opened.area(new) is not None


@pytest.mark.parametrize(
    "change",
    [{"look": "perhaps"}, {"look": "undecided", "area": [0, 0, 9, 9]}, {"area": [0, 0, 9, 999]}],
)
def test_a_damaged_file_is_refused(session, tmp_path, change):
    session.add_box(session.add_object(), 2, SMALL_BOX)
    session.preview(2)

    def damage(said):
        said["sequences"][0]["objects"][0] |= change

    damaged = saved_otherwise(session, tmp_path, damage)
    with pytest.raises(ValueError, match="damaged"):
        open_session(damaged, session.image, model=session.model)


def test_a_branch_decides_and_tells(session):
    one = session.add_object()
    session.add_points(one, [(2, 60, 80)])
    branch = session.branch()
    branch.propagate()
    session.take_branch(branch, "Follow")
    assert session.area(one) == branch.area(one) is not None
    assert session.stale(one) == []
    session.undo()
    assert session.area(one) is None and not session.masks


def test_merged_objects_keep_an_area_only_where_they_share_it(session):
    one, two, three = (session.add_object() for _ in range(3))
    session.add_box(one, 2, SMALL_BOX)
    session.add_box(two, 2, LARGE_BOX)
    session.preview(2)
    area = session.area(one)
    session.merge_objects(one, three)  # which is nowhere
    assert session.area(one) == area
    session.merge_objects(one, two)
    assert session.area(one) is None and look(session, one).is_settled


def test_segment_looks_closely_by_itself_at_all_or_at_none(nano):
    image = blobs((3, 160, 200))
    how = {"boxes": {1: (1, (8, 12, 24, 28)), 2: (1, (22, 36, 42, 56))}, "model": nano}
    network = {"model": nano}
    by_itself, closely, whole = (segment(image, closely=c, **how) for c in (None, True, False))
    np.testing.assert_array_equal(by_itself, closely)  # both are small
    assert (closely != whole).any()
    session = Session(image, nano, closely=False)
    for object_id, (frame, box) in how["boxes"].items():
        session.add_box(session.add_object(object_id=object_id), frame, box)
    session.propagate()
    np.testing.assert_array_equal(session.labels, whole)
    large = {1: (1, (2, 2, 150, 190))}
    np.testing.assert_array_equal(
        segment(image, boxes=large, **network),
        segment(image, boxes=large, closely=False, **network),
    )


def test_a_click_has_only_its_own_object_looked_at_again(session):
    one, two = session.add_object(), session.add_object()
    session.add_points(one, [(2, 60, 80)])
    assert set(session.preview(2).masks) == {one}
    first = session.masks_of(one)[2]
    session.add_box(two, 2, LARGE_BOX)
    assert set(session.preview(2).masks) == {two}
    assert session.masks_of(one)[2] is first
    assert set(session.preview(2).masks) == {one, two}  # all is up to date
    assert session.masks_of(one)[2] is first
    session.paint(one, 2, disc(60, 80, 7))
    session.add_points(two, [(2, 130, 160)])
    assert set(session.preview(2).masks) == {two}
    session.window = (0, 400)
    session.edit_object(two, locked=True)
    session.add_points(session.add_object(), [(2, 130, 160)])
    assert set(session.preview(2).masks) == {3}
