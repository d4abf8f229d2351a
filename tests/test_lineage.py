"""Tracks and lineages in a session: cut, split, join, divide; undone, saved, and found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from altered import saved_otherwise
from models import small_model
from napari.layers import Image, Labels

from napari_sam2 import lineage
from napari_sam2.divisions import divide
from napari_sam2.io import Volume, read_parents, write_labels
from napari_sam2.io.readers import read_layers
from napari_sam2.lineage import LineageError
from napari_sam2.session import LockedError, Session
from napari_sam2.session_file import SessionFileError, open_session, read_session, save_session
from napari_sam2.synthetic_movies import Ellipse, draw_movie

SIZE = (64, 96)
FRAMES = 8


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Cell 1 divides after frame 3 into 2 and 3; 4 stays."""
    shapes = []
    for t in range(FRAMES):
        cells = {4: Ellipse(45, 70, 8, 8)}
        if t < 4:
            cells[1] = Ellipse(25, 30, 8 + t, 8)
        else:
            cells[2], cells[3] = Ellipse(25 - 2 * t, 30, 6, 6), Ellipse(25 + 2 * t, 30, 6, 6)
        shapes.append(cells)
    return draw_movie(shapes, SIZE)


IMAGES, TRUTH = scene()


def followed(session: Session, numbers: list[int], *, as_one: int | None = None) -> int:
    """An object with the masks of true cells, as the model would have found them from frame 0."""
    object_id = session.add_object(object_id=as_one)
    for t in range(FRAMES):
        mask = np.isin(TRUTH[t], numbers)
        if mask.any():
            session.paint(object_id, t, mask)
    return object_id


@pytest.fixture
def session() -> Session:
    """Objects 1 to 4 as the true cells, without a lineage."""
    session = Session(IMAGES, small_model(), window=(0, 200))
    for number in (1, 2, 3, 4):
        followed(session, [number], as_one=number)
    return session


# -- graphs --------------------------------------------------------------------------------------


def test_a_graph_is_read():
    parents = {2: 1, 3: 1, 5: 3, 6: 3}
    assert lineage.divisions(parents) == {1: (2, 3), 3: (5, 6)}
    assert list(lineage.ancestors(parents, 6)) == [3, 1]
    assert [lineage.generation(parents, i) for i in (1, 2, 6, 9)] == [0, 1, 2, 0]
    assert not lineage.has_circle(parents) and not lineage.has_circle({})
    assert lineage.has_circle({1: 2, 2: 1}) and lineage.has_circle({1: 1})
    assert lineage.has_circle({4: 1, 1: 2, 2: 3, 3: 1})


def test_merging_two_objects_never_makes_a_circle():
    assert lineage.merged({2: 1, 3: 1}, 2, 3) == {2: 1}
    assert lineage.merged({2: 1, 3: 1}, 1, 3) == {2: 1}
    assert lineage.merged({2: 1, 5: 3, 6: 3}, 2, 3) == {2: 1, 5: 2, 6: 2}
    assert lineage.merged({2: 1, 3: 2}, 1, 3) == {2: 1}
    assert lineage.merged({2: 1, 3: 2}, 3, 1) == {3: 2}
    assert lineage.merged({3: 7}, 2, 3) == {2: 7}


def test_each_pixel_goes_to_the_nearest_piece():
    mask = np.zeros((20, 30), bool)
    mask[8:12, 5:25] = True
    left, right = np.zeros_like(mask), np.zeros_like(mask)
    left[8:12, 5:10], right[8:12, 20:25] = True, True
    one, two = lineage.split_mask(mask, [left, right])
    np.testing.assert_array_equal(one | two, mask)
    assert not (one & two).any()
    assert np.flatnonzero(one.any(axis=0)).tolist() == list(range(5, 15))


# -- divisions -----------------------------------------------------------------------------------


def test_a_division_is_set_undone_and_taken_back(session):
    session.set_division(1, [2, 3])
    assert session.parents == {2: 1, 3: 1}
    assert session.life(1).last == 3 and session.life(2).first == 4
    assert session.undo() == "Division"
    assert session.parents == {} and session.life(1).last is None
    session.redo()
    session.remove_division(1)
    assert session.parents == {} and session.life(1).last is None and session.life(3).first == 0
    session.undo()
    assert session.parents == {2: 1, 3: 1} and session.life(1).last == 3


def test_without_kin_an_object_begins_and_ends_where_a_person_said(session, tmp_path: Path):
    session.set_life(1, last=5)
    session.set_life(2, first=3)
    session.set_division(1, [2, 3])
    assert session.life(1) == (0, 3) and session.life(2) == (4, None)
    session.set_life(2, first=4, last=7)
    path = tmp_path / "tracks.sam2session"
    save_session(session, path)
    for one in (session, open_session(path, IMAGES, model=small_model())):
        one.remove_division(1)
        assert one.life(1) == (0, 5) and one.life(2) == (3, 7) and one.life(3) == (0, None)
        one.undo()
        assert one.life(1) == (0, 3) and one.life(2) == (4, 7)
    session.set_life(1, last=2)
    session.remove_division(1)
    assert session.life(1) == (0, 2)


def test_a_part_of_a_track_that_was_cut_still_ends_there_without_its_parent(session):
    new = session.cut_object(4, 5)
    session.set_parent(new, 4)
    session.set_parent(new, None)
    assert session.life(4) == (0, 4) and session.life(new) == (5, None)
    session.set_parent(new, 4)
    session.join_objects(4, new)
    assert session.life(4) == (0, None)


@pytest.mark.parametrize(
    ("parent", "daughters", "what"),
    [
        (1, [2], "two daughters or more"),
        (1, [1, 2], "own parent"),
        (2, [1, 3], "is still there on slice 7"),
        (4, [2, 3], "Cut Object 4 on slice 4 first"),
    ],
)
def test_what_is_no_division_is_refused(session, parent, daughters, what):
    with pytest.raises(LineageError, match=what):
        session.set_division(parent, daughters)
    assert session.parents == {} and session.life(parent).last is None


def test_nobody_descends_from_itself(session):
    session.set_division(1, [2, 3])
    granddaughter = session.cut_object(2, 6)
    session.set_parent(granddaughter, 2)
    with pytest.raises(LineageError, match="Object 5 descends from Object 1"):
        session.set_parent(1, granddaughter)


def test_what_is_locked_or_has_no_mask_is_no_daughter(session):
    session.edit_object(2, locked=True)
    with pytest.raises(LockedError, match="locked"):
        session.set_division(1, [2, 3])
    session.edit_object(2, locked=False)
    session.set_division(1, [2, 3])
    session.edit_object(3, locked=True)
    last = session.history.undo_label
    for edit in (
        lambda: session.remove_division(1),
        lambda: session.unlink_objects([1]),
        lambda: session.set_division(1, [2, session.cut_object(4, 5)]),
    ):
        with pytest.raises(LockedError, match="Object 3 is locked"):
            edit()
        assert session.parents == {2: 1, 3: 1}  # not a part of it is done
    session.undo()  # the cut
    assert session.history.undo_label == last
    session.edit_object(3, locked=False)
    session.unlink_objects([1])
    assert session.parents == {} and session.life(1) == session.life(3) == (0, None)
    empty = session.add_object()
    with pytest.raises(LineageError, match="no mask here yet"):
        divide(session, 4, 3, [empty])
    assert max(session.masks_of(4)) == FRAMES - 1  # not cut in vain
    with pytest.raises(LineageError, match="no mask here yet"):
        session.set_parent(empty, 1)
    with pytest.raises(ValueError, match="no object 99"):
        session.set_parent(99, 1)


def test_a_daughter_gets_another_parent(session):
    session.set_division(1, [2, 3])
    end = session.cut_object(4, 3)
    session.set_parent(3, 4)
    assert session.parents == {2: 1, 3: 4} and session.life(1).last == 3
    session.set_parent(2, None)
    assert session.parents == {3: 4} and session.life(1).last is None
    assert end in session.objects


def test_an_object_is_not_followed_beyond_its_division(session):
    session.set_division(1, [2, 3])
    with pytest.raises(LockedError, match="is on slices 0 to 3 and not on 5"):
        session.add_points(1, [(5, 25, 30)])
    session.unpaint(1, 3)
    assert session.task([1]).wanted[1] == {3}
    session.propagate(objects=[1])
    assert max(session.masks_of(1)) <= 3
    labels = session.labels.copy()
    mine = np.array(session.labels[6])
    mine[40:45, 10:20] = 1
    session.labels[6] = mine
    assert session.take_painting(6) == []  # nobody paints what has ended
    np.testing.assert_array_equal(session.labels, labels)


def test_a_deleted_object_leaves_the_graph(session):
    session.set_division(1, [2, 3])
    session.remove_object(3)
    assert session.parents == {2: 1} and session.life(1) == (0, 3)
    session.undo()
    assert session.parents == {2: 1, 3: 1}
    session.remove_object(1)
    assert session.parents == {}
    assert session.life(2) == session.life(3) == (0, None)  # as after Unlink
    session.undo()
    assert session.life(2) == session.life(3) == (4, None)


def test_without_its_last_daughter_a_cell_goes_on(session):
    session.set_life(1, last=5)
    session.set_division(1, [2, 3])
    session.remove_object(3)
    session.remove_object(2)
    assert session.life(1) == (0, 5)
    session.undo()
    assert session.life(1) == (0, 3)


def test_a_track_that_is_joined_or_merged_ends_where_its_later_part_did(session):
    later = session.cut_object(2, 6)
    session.set_life(later, 6, 7)
    session.set_parent(later, 2)
    session.set_parent(2, 1)
    session.join_objects(2, later)
    assert session.parents == {2: 1} and session.life(2) == (4, 7)
    end = session.cut_object(4, 6)
    session.set_parent(end, 4)
    session.merge_objects(2, end)  # it has a parent already, and 4 no daughter any more
    assert session.parents == {2: 1} and session.life(4) == (0, 5)  # the cut
    session.remove_object(2)
    assert session.life(1) == (0, None)


@pytest.mark.parametrize("frames", [None, range(FRAMES)])
def test_tracks_of_other_labels_come_with_their_parents(tmp_path: Path, frames):
    """Also where each is taken on its largest slice alone, and where only the movie is to scale."""
    movie = Volume(IMAGES, axes="tyx")
    write_labels(tmp_path / "1_RES", TRUTH, movie, parents={2: 1, 3: 1})
    ((data, options, _),) = read_layers(tmp_path / "1_RES")
    layer = Labels(data, **options)
    for image, labels, parents in (
        (Image(IMAGES, scale=(300, 0.5, 0.5), units=("s", "um", "um")), layer, None),
        (IMAGES, TRUTH, read_parents(tmp_path / "1_RES") | {4: 2, 1: 3, 9: 4}),
    ):
        session = Session(image, small_model(), window=(0, 200))
        session.take_labels(labels, frames=frames, parents=parents)
        assert session.parents == {2: 1, 3: 1}  # 4 begins before 2
        assert [session.life(i) for i in (1, 2, 3, 4)] == [(0, 3), (4, None), (4, None), (0, None)]
        if frames is not None:
            np.testing.assert_array_equal(session.labels, TRUTH)
        assert session.undo() == "Take labels" and not session.labels.any()
        assert not session.parents and not session.objects
        session.take_labels(labels, frames=[1, 6], parents=parents)  # who knows what lies between
        assert not session.parents and session.life(2) == (0, None)


# -- cut, split, join ----------------------------------------------------------------------------


def test_a_track_is_cut_and_joined_again(session):
    before = session.labels.copy()
    new = session.cut_object(4, 5)
    np.testing.assert_array_equal(session.labels, np.where((before == 4) & late(5), new, before))
    assert max(session.masks_of(4)) == 4 and min(session.masks_of(new)) == 5
    assert session.life(4) == (0, 4) and session.life(new) == (5, None)
    assert session.undo() == "Cut track"
    np.testing.assert_array_equal(session.labels, before)
    session.redo()
    assert session.join_objects(new, 4) == 4
    np.testing.assert_array_equal(session.labels, before)
    assert session.life(4) == (0, None) and new not in session.objects


def late(frame: int) -> np.ndarray:
    return np.arange(FRAMES)[:, None, None] >= frame


def test_both_parts_of_a_cut_track_have_a_prompt():
    session = Session(IMAGES, small_model(), window=(0, 200))
    session.add_object()
    session.add_box(1, 2, (35, 60, 55, 80))
    session.propagate()
    assert sorted(session.masks_of(1)) == list(range(FRAMES))
    masks = session.masks_of(1)
    new = session.cut_object(1, 2)  # the box belongs to the second part
    assert session.states(1)[1] == "painted" and session.states(new)[2] == "prompted"
    assert session.masks_of(1)[1] is masks[1] and session.masks_of(new)[5] is masks[5]
    session.propagate()
    assert max(session.masks_of(1)) <= 1 and min(session.masks_of(new)) >= 2
    fresh = Session(IMAGES, small_model(), window=(0, 200))
    fresh.restore(session.snapshot(), trust=False)
    fresh.propagate()
    np.testing.assert_array_equal(fresh.labels, session.labels)


def test_a_track_is_cut_only_between_its_masks(session):
    for frame in (0, 4, 7):
        with pytest.raises(LineageError, match="can be cut on slices 1 to 3"):
            session.cut_object(1, frame)
    session.edit_object(1, locked=True)
    with pytest.raises(LockedError):
        session.cut_object(1, 2)


def test_a_track_that_is_ended_is_not_followed_further():
    session = Session(IMAGES, small_model(), window=(0, 200))
    session.add_object()
    session.add_box(1, 5, (35, 60, 55, 80))
    session.propagate()
    before = session.labels.copy()
    session.set_life(1, last=2)  # the box belongs to what is taken away
    np.testing.assert_array_equal(session.labels, np.where(late(3), 0, before))
    assert session.life(1) == (0, 2) and session.states(1)[2] == "painted"
    session.propagate()
    assert max(session.masks_of(1)) <= 2
    assert [session.undo(), session.undo()] == ["Propagate", "First and last slice"]
    np.testing.assert_array_equal(session.labels, before)
    assert session.life(1) == (0, None)


def test_a_track_is_ended_only_where_a_mask_is_left_and_nothing_is_kept(session):
    with pytest.raises(LineageError, match="is on slices 4 to 7, so it cannot end on slice 3"):
        session.set_life(2, last=3)
    session.keep(4, [6])
    before = session.labels.copy()
    with pytest.raises(LockedError, match="approved on slice 6"):
        session.set_life(4, last=2)
    np.testing.assert_array_equal(session.labels, before)
    session.set_life(4, last=6)
    assert session.life(4) == (0, 6)


def test_an_object_is_only_where_a_person_says_that_it_can_be():
    session = Session(IMAGES, small_model(), window=(0, 200))
    session.add_object()
    session.add_box(1, 5, (35, 60, 55, 80))
    session.add_points(1, [(1, 45, 70)])
    session.propagate()
    found = session.labels.copy()
    session.set_life(1, first=4, last=6)
    np.testing.assert_array_equal(session.labels[4:7], found[4:7])
    assert not session.labels[:4].any() and not session.labels[7:].any()
    assert list(session.prompts[1]) == [5]  # the click before is gone
    session.propagate()
    assert list(session.masks_of(1)) == [4, 5, 6]
    with pytest.raises(LockedError, match="Object 1 is on slices 4 to 6 and not on 2"):
        session.add_points(1, [(2, 45, 70)])
    again = Session(IMAGES, small_model(), window=(0, 200))
    again.restore(session.snapshot())
    assert again.life(1) == (4, 6)
    session.set_life(1)
    assert session.life(1) == (0, None)
    session.propagate()
    assert len(session.masks_of(1)) == len(IMAGES)
    assert [session.undo() for _ in range(4)] == ["Propagate", "First and last slice"] * 2
    np.testing.assert_array_equal(session.labels, found)
    session.set_life(1, last=5)
    with pytest.raises(LineageError, match="on slices 0 to 5, so it cannot begin on slice 6"):
        session.set_life(1, first=6)
    with pytest.raises(ValueError, match="cannot begin on slice 5 and end on slice 2"):
        session.set_life(1, first=5, last=2)
    session.add_object()
    session.add_box(2, 5, (35, 60, 55, 80))  # no mask yet
    with pytest.raises(LineageError, match="on slice 5, so it cannot end on slice 3"):
        session.set_life(2, last=3)
    session.set_life(2, last=5)
    assert list(session.prompts[2]) == [5]


def test_the_nearest_mask_leads_on_where_no_mark_is_left():
    session = Session(IMAGES, small_model(), window=(0, 200))
    session.add_object()
    session.add_box(1, 1, (35, 60, 55, 80))
    session.propagate()
    masks = dict(session.masks_of(1))
    session.set_life(1, first=3)
    assert session.states(1)[3] == "painted" and session.masks_of(1)[3] == masks[3]
    session.propagate()
    assert min(session.masks_of(1)) == 3


def test_a_parent_is_not_there_along_with_its_daughters(session):
    session.set_division(1, [2, 3])
    for change in (
        lambda: session.set_life(1),
        lambda: session.set_life(1, last=4),
        lambda: session.set_life(2),
    ):
        with pytest.raises(LineageError, match="Take the division back first"):
            change()
    session.set_life(1, last=2)
    session.set_life(2, first=5)
    assert session.parents == {2: 1, 3: 1}


@pytest.mark.parametrize(
    "edit",
    [lambda s, i: s.cut_object(i, 3), lambda s, i: s.set_life(i, last=2)],
    ids=["cut", "end"],
)
def test_the_end_of_a_track_goes_first_where_masks_overlap(edit):
    """It becomes a prompt there, as if painted, where the track has no other one."""
    session = Session(IMAGES, small_model(), window=(0, 200))
    ids = session.add_object(), session.add_object()
    for object_id, x in zip(ids, (30, 40), strict=True):
        session.add_points(object_id, [(FRAMES - 1, 25, x)])
    session.propagate()
    one, two = (session.masks_of(i)[2].on_frame(SIZE) for i in ids)
    loser = min(ids, key=lambda i: (session.labels[2][one & two] == i).sum())
    assert (session.labels[2][one & two] != loser).any(), "the test needs an overlap"
    edit(session, loser)
    assert (session.labels[2][one & two] == loser).all()
    fresh = Session(IMAGES, small_model(), window=(0, 200))
    fresh.restore(session.snapshot())
    np.testing.assert_array_equal(session.labels, fresh.labels)


def test_the_later_part_of_a_cut_track_has_the_daughters(session):
    session.set_division(1, [2, 3])
    new = session.cut_object(1, 2)
    assert session.parents == {2: new, 3: new}
    session.join_objects(1, new)
    assert session.parents == {2: 1, 3: 1}


def test_a_mask_in_two_pieces_becomes_two_daughters():
    session = Session(IMAGES, small_model(), window=(0, 200))
    followed(session, [1, 2, 3])
    followed(session, [4])
    one, two = session.split_object(1, 4)
    assert session.parents == {one: 1, two: 1}
    for t in range(4, FRAMES):
        found = {int(np.unique(session.labels[t][TRUTH[t] == n])[0]) for n in (2, 3)}
        assert found == {one, two}
    np.testing.assert_array_equal(session.labels[:4] == 1, TRUTH[:4] == 1)
    assert session.states(one)[4] == "painted" and session.states(one)[5] == "auto"
    assert session.stale(one) == [5, 6, 7]
    assert session.undo() == "Division"
    assert sorted(session.objects) == [1, 2] and max(session.masks_of(1)) == 7


def test_a_mask_that_cannot_be_split_for_want_of_ids_stays():
    session = Session(IMAGES, small_model(), window=(0, 200), labels=np.zeros(IMAGES.shape, "u1"))
    followed(session, [1, 2, 3])
    session.add_object(object_id=254)
    before = session.labels.copy()
    with pytest.raises(ValueError, match="uint8, which hold ids up to 255"):
        session.split_object(1, 4)
    assert max(session.masks_of(1)) == FRAMES - 1
    np.testing.assert_array_equal(session.labels, before)


def test_what_cannot_be_split_is_said(session):
    with pytest.raises(LineageError, match="in one piece"):
        session.split_object(4, 5)
    with pytest.raises(LineageError, match="begins on slice 0"):
        session.split_object(4, 0)
    session.keep(4, [6])
    with pytest.raises(LockedError, match="approved on slice 6"):
        session.split_object(4, 5)
    session.set_division(1, [2, 3])
    with pytest.raises(LineageError, match="divides already"):
        session.split_object(1, 2)


def test_what_is_no_one_track_is_not_joined(session):
    with pytest.raises(LineageError, match=r"both there on slice 0, .* track\. Merge"):  # no cut
        session.join_objects(1, 4)
    with pytest.raises(LineageError, match="to itself"):
        session.join_objects(1, 1)
    session.set_division(1, [2, 3])
    with pytest.raises(LineageError, match="Object 1 divides"):
        session.join_objects(1, 2)
    session.set_parent(3, None)
    assert session.join_objects(2, 1) == 1  # its only daughter goes on with it
    assert session.parents == {} and sorted(session.masks_of(1)) == list(range(FRAMES))


def test_merging_keeps_the_graph_whole(session):
    session.set_division(1, [2, 3])
    session.merge_objects(2, 3)
    assert session.parents == {2: 1}
    session.undo()
    assert session.parents == {2: 1, 3: 1}


@pytest.mark.parametrize(("into", "other"), [(1, 2), (2, 1)])
def test_a_parent_that_goes_on_with_one_daughter_has_no_other(session, tmp_path, into, other):
    session.set_division(1, [2, 3])
    session.merge_objects(into, other)
    assert session.parents == {}, "3 begins while it is still there"
    assert session.life(into) == (0, None)
    write_labels(tmp_path / "1_RES", session.labels, Volume(IMAGES), parents=session.parents)
    session.undo()
    assert session.parents == {2: 1, 3: 1} and session.life(1) == (0, 3)


def test_a_daughter_that_began_before_her_parent_ended_is_none(session):
    session.set_division(1, [2, 3])
    session.merge_objects(2, 4)  # which is there from the first frame on
    assert session.parents == {3: 1}


# -- on disk -------------------------------------------------------------------------------------


def test_a_lineage_comes_back_from_a_file(session, tmp_path: Path):
    session.set_division(1, [2, 3])
    session.reject_division(4, 5)
    session.reject_division(4, 2)
    path = tmp_path / "tracks.sam2session"
    save_session(session, path)
    again = open_session(path, IMAGES, model=small_model())
    assert again.parents == {2: 1, 3: 1}
    assert again.no_divisions == {4: frozenset({2, 5})}
    assert again.life(1) == (0, 3) and again.life(2) == (4, None)
    np.testing.assert_array_equal(again.labels, session.labels)


def test_a_file_without_lineages_opens(session, tmp_path: Path):
    saved_otherwise(
        session, tmp_path, lambda content: [content.pop("parents"), content.pop("no_divisions")]
    )
    again = open_session(tmp_path / "changed.sam2session", IMAGES, model=small_model())
    assert again.parents == {} and sorted(again.objects) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "links",
    [[{"daughter": 2, "parent": 9}], [{"daughter": 1, "parent": 2}, {"daughter": 2, "parent": 1}]],
)
def test_a_file_with_a_senseless_lineage_is_refused(session, tmp_path: Path, links):
    saved_otherwise(session, tmp_path, lambda content: content.update(parents=links))
    with pytest.raises(SessionFileError, match="damaged"):
        read_session(tmp_path / "changed.sam2session")


# -- branches ------------------------------------------------------------------------------------


def test_what_a_branch_has_changed_is_taken_over_in_one_step(session):
    session.set_division(1, [2, 3])
    before = session.labels.copy()
    branch = session.branch()
    assert branch.parents == session.parents and branch.life(1) == session.life(1)
    np.testing.assert_array_equal(branch.masks_of(2)[5].logits, session.masks_of(2)[5].logits)
    new = branch.cut_object(4, 4)
    branch.set_parent(new, 4)
    branch.remove_object(3)
    np.testing.assert_array_equal(session.labels, before)

    mine = session.add_object("mine")  # meanwhile; it has the id of the branch's new object
    assert mine == new
    session.paint(2, 6, TRUTH[6] == 4)
    session.edit_object(1, name="mother")
    meanwhile = session.labels.copy()
    (taken,) = session.take_branch(branch, "Work")
    assert taken not in (new, mine) and session.objects[mine].name == "mine"
    assert session.parents == {2: 1, taken: 4}
    assert min(session.masks_of(taken)) == 4 and max(session.masks_of(4)) == 3
    assert 3 not in session.objects and session.objects[1].name == "mother"
    np.testing.assert_array_equal(session.labels[6] == 2, TRUTH[6] == 4)
    assert session.undo() == "Work"
    np.testing.assert_array_equal(session.labels, meanwhile)
    assert session.parents == {2: 1, 3: 1}


def test_an_object_that_is_gone_in_a_branch_stays_if_it_changes_meanwhile(session):
    branch = session.branch()
    branch.merge_objects(4, 2)
    branch.remove_object(3)
    session.paint(3, 6, TRUTH[6] == 4)
    session.take_branch(branch, "Work")
    assert sorted(session.objects) == [1, 3, 4]
    assert sorted(session.masks_of(3)) == [4, 5, 6, 7]
    np.testing.assert_array_equal(session.masks_of(3)[6].on_frame(SIZE), TRUTH[6] == 4)
    assert set(np.unique(session.labels).tolist()) == {0, 1, 3, 4}


def test_a_branch_knows_what_is_marked_along_another_axis(session):
    session.show(replace(session.view.key, axis=1))
    one = session.add_object()
    across = np.zeros(session.view.frame_shape, bool)
    across[2:5, 80:90] = True
    session.paint(one, 5, across)
    session.show(replace(session.view.key, axis=0))
    branch = session.branch()
    assert one in branch.prompted_objects and one not in branch.untouched_objects
    branch.remove_object(one)
    session.take_branch(branch, "Work")
    assert one not in session.objects and not (session.labels == one).any()
    assert session.undo() == "Work"
    np.testing.assert_array_equal(session.labels[:, 5] == one, across)


def test_an_object_that_is_deleted_meanwhile_stays_so(session):
    branch = session.branch()
    branch.set_division(1, [2, 3])
    branch.keep(3, [5])
    session.remove_object(3)
    assert session.take_branch(branch, "Work") == []
    assert 3 not in session.objects and session.parents == {2: 1}
    assert not (session.labels == 3).any()


def test_new_objects_of_a_branch_leave_the_labels_of_others_alone(session):
    labels = np.zeros(IMAGES.shape, np.uint8)
    labels[0, :9, :9] = 5  # 1 to 4 are the session's
    session.write_to(labels)
    branch = session.branch()
    new = branch.add_object()
    branch.paint(new, 0, np.ones(SIZE))
    assert session.take_branch(branch, "Work") == [6]
    assert (labels[0, :9, :9] == 5).all() and (labels[0] == 5).sum() == 81
    assert (labels[0] == 6).sum() > 81


def test_new_objects_of_a_branch_get_ids_that_the_labels_hold_by_now(session):
    branch = session.branch()
    branch.paint(branch.add_object(object_id=300), 0, np.ones(SIZE))
    session.write_to(np.zeros(IMAGES.shape, np.uint8))
    assert session.take_branch(branch, "Work") == [5]

    branch = session.branch()
    branch.paint(branch.add_object(object_id=254), 0, np.ones(SIZE))
    branch.paint(branch.add_object(), 1, np.ones(SIZE))
    session.add_object(object_id=255)
    before, objects = session.labels.copy(), list(session.objects)
    with pytest.raises(ValueError, match="uint8, which hold ids up to 255"):
        session.take_branch(branch, "Work")
    assert list(session.objects) == objects
    np.testing.assert_array_equal(session.labels, before)
    session.write_to(np.zeros(IMAGES.shape, np.uint16))
    assert session.take_branch(branch, "Work") == [254, 256]
