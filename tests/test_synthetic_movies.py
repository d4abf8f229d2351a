"""Movies whose truth is known: what is drawn and what is said of it go together."""

from __future__ import annotations

import numpy as np
import pytest

from napari_sam2.synthetic_movies import Ellipse, draw_movie, make_movie


@pytest.fixture(scope="module")
def movie():
    return make_movie(frames=20, size=(128, 128), cells=6, seed=0)


def frames_of(movie, number):
    return np.flatnonzero((movie.labels == number).any(axis=(1, 2)))


def test_what_is_labelled_is_bright(movie):
    assert movie.images.shape == movie.labels.shape == (20, 128, 128)
    assert movie.images.dtype == np.float32 and movie.labels.dtype == np.int32
    on = movie.labels > 0
    assert movie.images[on].mean() > movie.images[~on].mean() + 60


def test_a_cell_has_one_id_from_its_first_frame_to_its_last(movie):
    for number in np.unique(movie.labels)[1:]:
        frames = frames_of(movie, number)
        assert frames.tolist() == list(range(frames[0], frames[-1] + 1))


def test_a_parent_ends_where_two_daughters_of_half_its_area_begin(movie):
    parents = sorted(set(movie.parents.values()))
    assert len(parents) == 2
    for parent in parents:
        daughters = [d for d, p in movie.parents.items() if p == parent]
        assert len(daughters) == 2
        last = frames_of(movie, parent)[-1]
        own = (movie.labels[last] == parent).sum()
        for daughter in daughters:
            assert frames_of(movie, daughter)[0] == last + 1
            first = (movie.labels[last + 1] == daughter).sum()
            assert first == pytest.approx(own / 2, rel=0.15)


def test_cells_come_and_go_over_the_border(movie):
    daughters, parents = set(movie.parents), set(movie.parents.values())
    all_ids = set(np.unique(movie.labels)) - {0}
    came = {n for n in all_ids - daughters if frames_of(movie, n)[0] > 0}
    went = {n for n in all_ids - parents if frames_of(movie, n)[-1] < 19}
    assert len(came) == 1 and len(went) == 1
    inner = movie.labels[:, 1:-1, 1:-1]
    for number in came:
        first = frames_of(movie, number)[0]
        assert (inner[first] == number).sum() < (movie.labels[first] == number).sum()


def test_equal_arguments_give_an_equal_movie(movie):
    again = make_movie(frames=20, size=(128, 128), cells=6, seed=0)
    assert np.array_equal(movie.images, again.images) and movie.parents == again.parents
    other = make_movie(frames=20, size=(128, 128), cells=6, seed=1)
    assert not np.array_equal(movie.labels, other.labels)


def test_of_two_cells_that_overlap_each_has_its_side():
    _, labels = draw_movie([{1: Ellipse(20, 15, 8, 8), 2: Ellipse(20, 27, 8, 8)}], (40, 40))
    assert (labels[0][20, 15:21] == 1).all() and (labels[0][20, 22:27] == 2).all()


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="do not fit"):
        make_movie(size=(32, 32), cells=20)
    with pytest.raises(ValueError, match="not negative"):
        make_movie(cells=-1)
