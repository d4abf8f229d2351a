"""Random edits of a session, in any order: its labels follow from what it holds and from nothing
else, all of it is taken back and done again, and masks follow from prompts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from models import small_model

from napari_sam2.session import NothingToDo, Session

SHAPE = (6, 48, 64)
EDITS = 60  # for each seed
MOST_OBJECTS = 5


class Edits:
    """Whatever a script or a person may do to a session; what it refuses changes nothing."""

    def __init__(self, session: Session, seed: int) -> None:
        self.session = session
        self.rng = np.random.default_rng(seed)
        self.done: list[str] = []
        """What was done and not refused."""

    def anything(self) -> None:
        """One of the methods below that begin with do_."""
        names = [name for name in dir(self) if name.startswith("do_")]
        name = str(self.rng.choice([*names, "do_box", "do_points", "do_propagate"]))
        name = name if self.session.objects else "do_add"
        action: Callable[[], object] = getattr(self, name)
        before = self.session.labels.copy()
        try:
            action()
        except ValueError as error:
            assert str(error).endswith("."), error  # a sentence
            np.testing.assert_array_equal(self.session.labels, before)
        else:
            self.done.append(name)

    # -- what is chosen ------------------------------------------------------------------------

    def one(self) -> int:
        """An object."""
        return int(self.rng.choice(list(self.session.objects)))

    def frame(self) -> int:
        return int(self.rng.integers(SHAPE[0]))

    def spot(self) -> tuple[float, float]:
        """y, x"""
        return float(self.rng.uniform(0, SHAPE[1] - 1)), float(self.rng.uniform(0, SHAPE[2] - 1))

    def region(self) -> np.ndarray:
        """(H, W) some rectangle."""
        mask = np.zeros(SHAPE[1:], np.uint8)
        (y, x), (height, width) = self.spot(), self.rng.integers(4, 20, 2)
        mask[int(y) : int(y) + height, int(x) : int(x) + width] = 1
        return mask

    # -- what is done --------------------------------------------------------------------------

    def do_add(self) -> None:
        if len(self.session.objects) < MOST_OBJECTS:
            self.session.add_object()

    def do_remove(self) -> None:
        if len(self.session.objects) > 1:
            self.session.remove_object(self.one())

    def do_points(self) -> None:
        frame = self.frame()
        points = self.session.view.join(frame, [self.spot(), self.spot()])
        self.session.add_points(self.one(), points, [1, int(self.rng.integers(2))])
        self.session.preview(frame)

    def do_box(self) -> None:
        frame, (y, x) = self.frame(), self.spot()
        self.session.add_box(self.one(), frame, (y, x, y + 12, x + 15))
        self.session.preview(frame)

    def do_unmark(self) -> None:
        self.session.set_prompts(self.one(), self.frame())

    def do_paint(self) -> None:
        self.session.paint(self.one(), self.frame(), self.region())

    def do_brush(self) -> None:
        """Paint in the labels, as napari's brush does."""
        frame, number = self.frame(), self.rng.choice([0, self.one()])
        self.session.labels[frame][self.region() > 0] = number
        self.session.take_painting(frame)

    def do_unpaint(self) -> None:
        self.session.unpaint(self.one(), self.frame())

    def do_propagate(self) -> None:
        start, stop = sorted((self.frame(), self.frame()))
        self.session.propagate(objects=[self.one()], start=start, stop=stop)

    def do_update(self) -> None:
        self.session.update()

    def do_keep(self) -> None:
        how = "approved" if self.rng.random() < 0.5 else "locked"
        self.session.keep(self.one(), [self.frame()], how)

    def do_release(self) -> None:
        self.session.release(self.one(), range(SHAPE[0]))

    def do_reject(self) -> None:
        self.session.reject(self.one(), [self.frame()])

    def do_edit(self) -> None:
        which = str(self.rng.choice(["hidden", "locked"]))
        object_id = self.one()
        is_on = getattr(self.session.objects[object_id], which)
        self.session.edit_object(object_id, **{which: not is_on})

    def do_ends(self) -> None:
        first, last = sorted((self.frame(), self.frame()))
        self.session.set_life(self.one(), first, last)

    def do_forget_ends(self) -> None:
        self.session.set_life(self.one())

    def do_cut(self) -> None:
        self.session.cut_object(self.one(), self.frame())

    def do_split(self) -> None:
        self.session.split_object(self.one(), self.frame(), [self.region(), self.region()])

    def do_join(self) -> None:
        self.session.join_objects(self.one(), self.one())

    def do_merge(self) -> None:
        one, other = self.one(), self.one()
        if one != other:
            self.session.merge_objects(one, other)

    def do_parent(self) -> None:
        self.session.set_parent(self.one(), self.one())

    def do_labels(self) -> None:
        labels = np.zeros(SHAPE, np.int32)
        for _ in range(3):
            labels[self.frame()][self.region() > 0] = self.rng.integers(1, MOST_OBJECTS + 1)
        self.session.take_labels(labels)

    def do_branch(self) -> None:
        """Something in a branch, something else here meanwhile, and all of it together."""
        branch = self.session.branch()
        other = Edits(branch, int(self.rng.integers(1000)))
        for edits in (other, other, self):
            edits.do_box()
        self.session.take_branch(branch, "Branch")

    def do_undo(self) -> None:
        for _ in range(self.rng.integers(1, 4)):
            self.session.undo()

    def do_redo(self) -> None:
        for _ in range(self.rng.integers(1, 3)):
            self.session.redo()


def held(session: Session) -> np.ndarray:
    """The labels that follow from what a session holds."""
    fresh = Session(session.image, session.model, window=(0, 200))
    fresh.restore(session.snapshot())
    return fresh.labels


@pytest.mark.parametrize("seed", range(25))
def test_labels_follow_from_what_a_session_holds_after_any_edits(seed):
    image = np.random.default_rng(seed).uniform(0, 200, SHAPE).astype(np.float32)
    session = Session(image, small_model(), window=(0, 200))
    session.add_object()
    edits = Edits(session, seed)
    for _ in range(EDITS):
        edits.anything()
        np.testing.assert_array_equal(session.labels, held(session), err_msg=f"{edits.done}")
    assert len(edits.done) > EDITS / 3

    last = session.labels.copy()
    steps = 0
    while session.undo() is not None:
        steps += 1
    assert not session.labels.any()
    for _ in range(steps):
        session.redo()
    np.testing.assert_array_equal(session.labels, last)

    fresh = Session(image, session.model, window=(0, 200))
    fresh.restore(session.snapshot(), trust=False)
    for one in (session, fresh):
        with suppress(NothingToDo):  # all are locked
            one.propagate()
    np.testing.assert_array_equal(session.labels, fresh.labels)
