"""How well divisions are proposed, on synthetic movies whose divisions are known.

    python -m benchmarks.divisions --movies 4 --found

Prints a table: for each way in which masks may show a division, how many of the proposals are right
(precision) and how many of the divisions are proposed (recall), within a frame and within five.

- "ended": the true masks; each daughter is an object, and the parent has ended.
- "goes on": the parent's object goes on with one daughter; the other one is an object.
- "in one": one object has the parent and both daughters.
- "found": what `find_throughout` finds with nano, with --found only, for it takes long.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from napari_sam2.divisions import LEAST, Proposal, propose_divisions
from napari_sam2.lineage import divisions
from napari_sam2.session import Session
from napari_sam2.synthetic_movies import Movie, make_movie
from napari_sam2.throughout import find_throughout

_CLOSE = (1, 5)  # frames


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--movies", type=int, default=4)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--dividing", type=int, default=3)
    parser.add_argument("--every", type=int, default=4, help="frames between key frames")
    parser.add_argument("--least", type=float, default=LEAST, help="score of a proposal")
    parser.add_argument("--found", action="store_true", help="with find_throughout, too")
    options = parser.parse_args(arguments)
    ways: dict[str, Callable[[Movie], Session]] = {
        "ended": lambda movie: _given(movie, _keep),
        "goes on": lambda movie: _given(movie, _one_goes_on),
        "in one": lambda movie: _given(movie, _both_go_on),
    }
    if options.found:
        ways["found"] = lambda movie: _found(movie, options.every)
    movies = [
        make_movie(
            options.frames,
            (options.size, options.size),
            options.cells,
            seed,
            dividing=options.dividing,
            entering=2,
            leaving=2,
        )
        for seed in range(100, 100 + options.movies)
    ]
    print("| masks | divisions | proposed | within | precision | recall | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, make in ways.items():
        total, proposed, seconds = 0, 0, 0.0
        right = dict.fromkeys(_CLOSE, 0)
        for movie in movies:
            session = make(movie)
            begin = time.perf_counter()
            found = propose_divisions(session, options.least)
            seconds += time.perf_counter() - begin
            total += len(divisions(movie.parents))
            proposed += len(found)
            for close in _CLOSE:
                right[close] += count_right(movie, session, found, close)
        for close in _CLOSE:
            precision = right[close] / proposed if proposed else float("nan")
            recall = right[close] / total if total else float("nan")
            print(
                f"| {name} | {total} | {proposed} | {close} | {precision:.2f} | {recall:.2f} "
                f"| {seconds / len(movies):.2f} |"
            )


def count_right(movie: Movie, session: Session, proposals: list[Proposal], frames: int) -> int:
    """How many true divisions are among the proposals, each counted once.

    One is right if its parent lies mostly on the true parent in the last mask before the true
    division, and its frame is at most so many frames from the true one.
    """
    right = set()
    for parent, daughters in divisions(movie.parents).items():
        begins = int(np.flatnonzero((movie.labels == daughters[0]).any(axis=(1, 2)))[0])
        own = movie.labels[begins - 1] == parent
        for one in proposals:
            mask = session.masks_of(one.parent).get(begins - 1)
            if mask is None or abs(one.frame - begins) > frames:
                continue
            if (mask.on_frame(own.shape) & own).sum() > 0.5 * own.sum():
                right.add(parent)
    return len(right)


# -- masks ---------------------------------------------------------------------------------------


def _keep(number: int, _: Movie) -> int:
    return number


def _one_goes_on(number: int, movie: Movie) -> int:
    """The first daughter counts as its parent."""
    parent = movie.parents.get(number)
    is_first = parent is not None and divisions(movie.parents)[parent][0] == number
    return _one_goes_on(parent, movie) if is_first and parent is not None else number


def _both_go_on(number: int, movie: Movie) -> int:
    """All descendants count as their first ancestor."""
    parent = movie.parents.get(number)
    return number if parent is None else _both_go_on(parent, movie)


def _given(movie: Movie, as_object: Callable[[int, Movie], int]) -> Session:
    """A session with the true masks; as_object: a true id -> the object that it is given to."""
    session = Session(movie.images, "nano")
    ids = np.array([0, *(as_object(n, movie) for n in range(1, int(movie.labels.max()) + 1))])
    labels: NDArray[np.int32] = ids.astype(np.int32)[movie.labels]
    session.take_labels(labels, frames=range(len(labels)))
    return session


def _found(movie: Movie, every: int) -> Session:
    session = Session(movie.images, "nano")
    find_throughout(session, every=every, diameter=18)
    return session


if __name__ == "__main__":
    main()
