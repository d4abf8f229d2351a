"""Divisions are proposed where cells divide, and nowhere else; what becomes of proposals."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import divisions as benchmark
from napari_sam2.divisions import (
    Proposal,
    accept_division,
    divide,
    next_division,
    propose_divisions,
    reject_division,
)
from napari_sam2.lineage import LineageError, divisions
from napari_sam2.session import LockedError, Session
from napari_sam2.slice_data import ObjectMask
from napari_sam2.synthetic_movies import Ellipse, draw_movie, make_movie

WAYS = (benchmark._keep, benchmark._one_goes_on, benchmark._both_go_on)


@pytest.fixture(scope="module")
def movie():
    return make_movie(16, (128, 128), 7, seed=3, dividing=2, entering=1, leaving=1)


@pytest.mark.parametrize("way", WAYS)
def test_each_division_is_proposed_once_and_nothing_else(movie, way):
    session = benchmark._given(movie, way)
    found = propose_divisions(session)
    assert len(found) == len(divisions(movie.parents)) == 2
    assert benchmark.count_right(movie, session, found, frames=1) == 2
    for one in found:
        assert len(one.daughters) == {0: 2, 1: 1, 2: 0}[WAYS.index(way)]
        assert 0.4 <= one.score <= 1 and one.reason


@pytest.mark.parametrize("way", WAYS)
def test_what_is_accepted_is_the_true_lineage(movie, way):
    session = benchmark._given(movie, way)
    before = session.labels.copy()
    for one in propose_divisions(session):
        daughters = accept_division(session, one)
        assert session.history.undo_label == "Division"
        assert len(daughters) == 2 and session.parents[daughters[0]] == one.parent
    assert propose_divisions(session) == []
    truth = divisions(movie.parents)
    assert len(divisions(session.parents)) == len(truth)
    for parent, daughters in truth.items():
        frame = int(np.flatnonzero((movie.labels == daughters[0]).any(axis=(1, 2)))[0]) + 1
        found = [_most(session.labels[frame][movie.labels[frame] == d]) for d in daughters]
        mother = _most(session.labels[frame - 2][movie.labels[frame - 2] == parent])
        assert len(set(found)) == 2
        assert {session.parents[i] for i in found} == {mother}
    while session.undo():
        if not session.parents and np.array_equal(session.labels, before):
            return
    raise AssertionError("undo did not bring back what was there before")


def _most(values: np.ndarray) -> int:
    return int(np.bincount(values).argmax())


def test_what_is_rejected_is_not_proposed_again(movie):
    session = benchmark._given(movie, benchmark._one_goes_on)
    first, second = propose_divisions(session)
    reject_division(session, first)
    assert propose_divisions(session) == [second]
    session.undo()
    assert propose_divisions(session) == [first, second]
    session.edit_object(first.parent, locked=True)
    assert propose_divisions(session) == [second]


def test_two_cells_that_touch_or_pass_do_not_divide():
    shapes = []
    for t in range(12):
        gap = abs(t - 6) * 4 + 16  # they come together, touch, and part
        shapes.append({1: Ellipse(30, 60 - gap / 2, 8, 8), 2: Ellipse(30, 60 + gap / 2, 8, 8)})
        if t > 4:  # and one comes over the border, beside a third
            shapes[-1][3] = Ellipse(70, 118 - (t - 5) * 2, 8, 8)
        shapes[-1][4] = Ellipse(70, 90, 8, 8)
    images, labels = draw_movie(shapes, (96, 120))
    session = Session(images, "nano")
    session.take_labels(labels, frames=range(12))
    assert propose_divisions(session, least=0.3) == []


def test_a_division_marked_by_hand_cuts_the_parent():
    shapes = [
        {1: Ellipse(30, 40, 9, 9)} | ({2: Ellipse(30, 70, 9, 9)} if t > 3 else {}) for t in range(8)
    ]
    images, labels = draw_movie(shapes, (64, 96))
    session = Session(images, "nano")
    session.take_labels(labels, frames=range(8))
    rest, daughter = sorted(divide(session, 1, 4, [2]), key=lambda i: i == 2)
    assert session.parents == {rest: 1, daughter: 1} and daughter == 2
    assert max(session.masks_of(1)) == 3 and min(session.masks_of(rest)) == 4
    assert session.undo() == "Division" and session.parents == {}
    session.edit_object(2, locked=True)
    with pytest.raises(LockedError, match="locked"):
        divide(session, 1, 4, [2])
    with pytest.raises(LineageError, match="in one piece"):
        divide(session, 1, 4)
    assert session.parents == {} and sorted(session.objects) == [1, 2]


def test_pieces_of_a_mask_part_at_a_thin_neck():
    def pieces(*cells):
        _, labels = draw_movie([dict(enumerate(cells, start=1))], (60, 60))
        return ObjectMask.given(labels[0] > 0).pieces

    assert len(pieces(Ellipse(30, 30, 14, 8, 0.6))) == 1
    apart = pieces(Ellipse(15, 20, 8, 8), Ellipse(40, 40, 6, 6))
    touching = pieces(Ellipse(20, 20, 8, 8), Ellipse(20, 34, 7, 7))
    for two in (apart, touching):
        large, small = two
        assert large.summary[0] > small.summary[0]
    np.testing.assert_allclose(apart[1].summary[1:3], (40, 40), atol=0.5)
    whole = np.zeros((60, 60), int)
    for one in touching:
        whole += one.on_frame((60, 60))
    _, labels = draw_movie([{1: Ellipse(20, 20, 8, 8), 2: Ellipse(20, 34, 7, 7)}], (60, 60))
    np.testing.assert_array_equal(whole, (labels[0] > 0).astype(int))


def test_the_next_proposal_is_the_next_in_time():
    one, two = (Proposal(1, frame, (), 0.5, "") for frame in (3, 7))
    assert next_division([two, one], 0) is one
    assert next_division([two, one], 3) is two
    assert next_division([two, one], 7) is one
    assert next_division([], 0) is None


def test_the_benchmark_prints_how_well_divisions_are_proposed(capsys):
    benchmark.main(["--movies", "1", "--frames", "14", "--cells", "5", "--dividing", "1"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["ended"] * 2 + ["goes on"] * 2 + ["in one"] * 2
    assert all(float(row[4]) >= 0.5 and float(row[5]) >= 0.5 for row in rows)
