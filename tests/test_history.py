"""Undo and redo of cells: what comes back, and what is forgotten."""

from __future__ import annotations

import numpy as np
import pytest

from napari_sam2.history import Cells, History


@pytest.fixture
def history():
    return History()


@pytest.fixture
def cells(history):
    return Cells(history)


def test_a_change_is_taken_back_and_made_again(history, cells):
    with history.change("First"):
        cells.set("a", 1, "x")
        cells.set("b", 2, "y")
    with history.change("Second"):
        cells.set("a", 1, "z")
        cells.set("b", 2, None)
    assert cells.at("a") == {1: "z"}
    assert cells.at("b") == {}
    assert (history.undo_label, history.redo_label) == ("Second", None)
    assert history.undo().label == "Second"
    assert (cells.get("a", 1), cells.get("b", 2)) == ("x", "y")
    assert history.undo().label == "First"
    assert cells.places == ()
    assert history.undo() is None
    assert history.redo().label == "First"
    assert history.redo().label == "Second"
    assert history.redo() is None
    assert (cells.get("a", 1), cells.get("b", 2)) == ("z", None)


def test_changes_inside_a_change_are_part_of_it(history, cells):
    with history.change("Outer"):
        cells.set("a", 1, "x")
        with history.change("Inner"):
            cells.set("a", 1, "y")
            cells.set("a", 2, "y")
    assert history.undo_label == "Outer"
    history.undo()
    assert cells.at("a") == {}


def test_steps_of_one_task_are_one_change_until_something_else_happens(history, cells):
    task = object()
    for frame in range(3):
        with history.change("Propagate", task):
            cells.set("a", frame, frame)
    with history.change("Prompt"):
        cells.set("b", 0, "x")
    with history.change("Propagate", task):
        cells.set("a", 3, 3)
    history.undo()
    assert cells.at("a") == {0: 0, 1: 1, 2: 2}
    history.undo()
    history.undo()
    assert cells.at("a") == {}


def test_what_follows_from_a_change_goes_with_it(history, cells):
    with history.change("Prompt"):
        cells.set("prompt", 0, "x")
    with history.following():
        cells.set("mask", 0, "m")
    assert history.undo_label == "Prompt"
    history.undo()
    assert cells.places == ()
    with history.following():  # a preview of what undo has left
        cells.set("mask", 1, "n")
    history.redo()
    assert cells.get("mask", 0) == "m"


def test_a_change_of_nothing_is_no_step(history, cells):
    with history.change("First"):
        cells.set("a", 1, "x")
    history.undo()
    with history.change("Nothing"):
        cells.set("a", 5, None)
    assert history.redo_label == "First"


def test_what_was_begun_is_a_step_also_after_an_error(history, cells):
    with pytest.raises(ZeroDivisionError), history.change("First"):
        cells.set("a", 1, "x")
        raise ZeroDivisionError
    history.undo()
    assert cells.at("a") == {}


def test_nothing_changes_unnoticed(cells):
    with pytest.raises(RuntimeError, match="outside"):
        cells.set("a", 1, "x")


def test_the_oldest_changes_are_forgotten():
    history = History(limit=3)
    cells = Cells(history)
    for value in range(1, 6):
        with history.change("Change"):
            cells.set("a", 0, value)
    while history.undo() is not None:
        pass
    assert cells.get("a", 0) == 2


def test_memory_stays_within_the_budget():
    history = History(budget=1000)
    cells = Cells(history)
    for value in range(10):
        with history.change("Change"):
            cells.set("a", 0, np.full(300, value, np.uint8))
            assert history.nbytes <= 1300  # with the one under way
    assert history.nbytes == 900
    steps = 0
    while history.undo() is not None:
        steps += 1
    assert steps == 3
    assert cells.get("a", 0)[0] == 6
