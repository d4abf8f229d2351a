"""Masks follow from prompts alone: whatever was done before, a fresh session gives the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from models import small_model

from napari_sam2.sequence_view import SequenceKey
from napari_sam2.session import LockedError, NothingToDo, Session

SHAPE = (6, 24, 30)
ACTIONS = 120


class Person:
    """Does anything, at random."""

    def __init__(self, seed, volume, labels):
        self.random = np.random.default_rng(seed)
        self.session = Session(volume, small_model(), window=(0, 250), labels=labels)
        for _ in range(3):
            self.session.add_object()

    def act(self):
        """One action that is allowed; the others are refused with an error of their own."""
        actions = [
            self.click, self.click, self.mark, self.mark, self.unmark, self.preview,
            self.propagate, self.propagate_some, self.stop_early, self.update, self.paint,
            self.unpaint, self.keep, self.release, self.reject, self.lock, self.edit, self.undo,
            self.undo, self.redo, self.add, self.remove, self.merge, self.turn,
        ]  # fmt: skip
        action = actions[self.random.integers(len(actions))]
        try:
            action()
        except (LockedError, NothingToDo):
            return f"{action.__name__} (refused)"
        finally:
            self.check_facts()
        return action.__name__

    def check_facts(self):
        """What is remembered of objects is what would be found anew."""
        session = self.session
        for object_id, info in session.objects.items():
            facts, masks = session.facts(object_id), session.masks_of(object_id)
            marks = session.prompts_for(object_id).values()
            assert facts.info == info
            assert facts.states == Counter(session.states(object_id).values())
            assert facts.stale == len(session.stale(object_id))
            assert facts.prompts == sum(one.count for one in marks)
            assert (facts.slices, facts.first, facts.last) == (
                len(masks), min(masks, default=None), max(masks, default=None)
            )  # fmt: skip

    # -- what it picks -------------------------------------------------------------------------

    @property
    def object(self):
        return int(self.random.choice(list(self.session.objects)))

    @property
    def frame(self):
        return int(self.random.integers(min(6, len(self.session.view))))

    def places(self, count):
        return self.random.uniform(0, np.array(self.session.view.frame_shape) - 1, (count, 2))

    def mask(self):
        mask = np.zeros(self.session.view.frame_shape, bool)
        top, left = self.places(1).astype(int)[0]
        mask[top : top + 8, left : left + 8] = True
        return mask

    # -- what it does --------------------------------------------------------------------------

    def click(self):
        at = self.session.view.join(self.frame, self.places(1))
        self.session.add_points(self.object, at, [int(self.random.integers(2))])

    def mark(self):
        count = int(self.random.integers(3))
        marks = {"points": self.places(count), "labels": self.random.integers(0, 2, count)}
        kind = self.random.integers(4)
        if kind == 1:
            marks["box"] = self.places(2).ravel()
        if kind == 2:
            marks["scribbles"] = [(self.places(3), int(self.random.integers(2)))]
        if kind == 3:
            marks["lassos"] = [self.places(4)]
        self.session.set_prompts(self.object, self.frame, **marks)

    def unmark(self):
        chosen = self.object
        frames = list(self.session.prompts.get(chosen, ()))
        if frames:
            self.session.set_prompts(chosen, int(self.random.choice(frames)))

    def preview(self):
        self.session.preview(self.frame)

    def propagate(self):
        self.session.propagate()

    def propagate_some(self):
        start, stop = sorted((self.frame, self.frame))
        hows = [
            {"start": start, "stop": stop}, {"to": self.frame}, {"direction": "forward"},
            {"direction": "backward", "objects": [self.object]},
        ]  # fmt: skip
        self.session.propagate(**hows[self.random.integers(len(hows))])

    def stop_early(self):
        steps = self.session.propagation()
        for _ in range(self.random.integers(4)):
            next(steps, None)
        steps.close()

    def update(self):
        self.session.update()

    def paint(self):
        if self.random.random() < 0.5:
            self.session.paint(self.object, self.frame, self.mask())
        else:  # into the labels, as in a viewer
            frame = self.frame
            where = self.session.view.index(frame)
            labels = self.session.labels[where].copy()
            labels[self.mask()] = self.random.choice([0, self.object])
            self.session.labels[where] = labels
            self.session.take_painting(frame)

    def unpaint(self):
        self.session.unpaint(self.object, self.frame)

    def keep(self):
        how = str(self.random.choice(["approved", "locked"]))
        self.session.keep(self.object, [self.frame], how)

    def release(self):
        chosen = self.object
        self.session.release(chosen, self.session.kept(chosen))

    def reject(self):
        self.session.reject(self.object, [self.frame])

    def lock(self):
        chosen = self.object
        self.session.edit_object(chosen, locked=not self.session.objects[chosen].locked)

    def edit(self):
        self.session.edit_object(self.object, name=f"name {self.random.integers(99)}")

    def undo(self):
        for _ in range(self.random.integers(1, 4)):
            if len(self.session.history) and self.session.history.undo_label != "New object":
                self.session.undo()

    def redo(self):
        for _ in range(self.random.integers(1, 4)):
            self.session.redo()

    def add(self):
        if len(self.session.objects) < 4:
            self.session.add_object()

    def remove(self):
        if len(self.session.objects) > 2:
            self.session.remove_object(self.object)

    def merge(self):
        into, other = self.object, self.object
        if into != other and len(self.session.objects) > 2:
            self.session.merge_objects(into, other)

    def turn(self):
        axis = int(self.random.choice([0, 0, 2]))
        self.session.show(SequenceKey.along(axis, 3))


def finish(session, state):
    """Bring all masks up to date, in all sequences with prompts."""
    for object_id in session.objects:
        session.edit_object(object_id, locked=False)
    for key in sorted({key for key, _ in state.sequences}, key=repr):
        session.show(key)
        if session.task().wanted:
            session.propagate()


@pytest.fixture(scope="module")
def volume():
    z, y, x = np.indices(SHAPE)
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    blobs = ((y - 8 - z) ** 2 + (x - 10) ** 2 < 30) * 150 + (
        (y - 16) ** 2 + (x - 22) ** 2 < 30
    ) * 220
    return (noise + blobs).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_a_fresh_session_gives_the_same_masks(volume, seed):
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 4:8, 4:8] = 200  # someone else's
    person = Person(seed, volume, labels)
    done = [person.act() for _ in range(ACTIONS)]
    session = person.session
    state = session.snapshot()
    finish(session, state)

    given = {
        place: replace(known, found={}, current=frozenset(), tracked={})
        for place, known in state.sequences.items()
    }
    others = np.where(labels == 200, labels, 0)
    fresh = Session(volume, small_model(), window=(0, 250), labels=others.copy())
    fresh.restore(replace(state, sequences=given))
    finish(fresh, state)

    assert fresh.objects == session.objects
    for key in {key for key, _ in state.sequences}:
        session.show(key)
        fresh.show(key)
        for object_id in session.objects:
            masks, expected = session.masks_of(object_id), fresh.masks_of(object_id)
            assert list(masks) == list(expected), done
            for frame, mask in masks.items():
                one = mask.on_frame(session.view.frame_shape)
                other = expected[frame].on_frame(session.view.frame_shape)
                assert (one != other).mean() < 0.01, (done, key, object_id, frame)
    assert (session.labels != fresh.labels).mean() < 0.005, done
    assert (session.labels[labels == 200] == 200).all()
    for object_id in list(session.objects):
        session.remove_object(object_id)
    np.testing.assert_array_equal(session.labels, others)
