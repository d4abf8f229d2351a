"""All objects of a sequence without a click: movies with known objects."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tifffile
from lazy import Damaged, Lazy

from benchmarks.automatic import average_precision
from napari_sam2.cli import main
from napari_sam2.io import read_volume
from napari_sam2.session import Session, UnreadableSlices
from napari_sam2.synthetic_movies import Ellipse, draw_movie
from napari_sam2.throughout import _join, find_throughout
from sam2_engine.unreadable import UnreadableFrame

SHAPE = (9, 96, 128)


class Counted(Lazy):
    """An array that counts how often a frame is read."""

    reads = 0

    def __getitem__(self, index: Any) -> np.ndarray:
        self.reads += 1
        return super().__getitem__(index)


def movie(*paths: dict[int, tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Cells of 18 pixels, each from frame to its centre; images and labels."""
    shapes = [
        {n: Ellipse(*path[t], 9, 9) for n, path in enumerate(paths, start=1) if t in path}
        for t in range(SHAPE[0])
    ]
    return draw_movie(shapes, SHAPE[1:])


def path(frames: range, start: tuple[float, float], step: tuple[float, float] = (0, 0)):
    return {t: (start[0] + step[0] * t, start[1] + step[1] * t) for t in frames}


def matched(session: Session, truth: np.ndarray) -> dict[int, list[int]]:
    """True object -> objects that lie on half of it on half of its frames."""
    found: dict[int, list[int]] = {}
    for number in range(1, truth.max() + 1):
        frames = np.flatnonzero((truth == number).any(axis=(1, 2)))
        for object_id in session.objects:
            masks = session.masks_of(object_id)
            good = 0
            for frame in frames:
                own = truth[frame] == number
                if frame in masks:
                    mask = masks[frame].on_frame(own.shape)
                    good += (mask & own).sum() > 0.5 * (mask | own).sum()
            if good >= 0.5 * len(frames):
                found.setdefault(number, []).append(object_id)
    return found


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray]:
    """One that stays, one that moves, one that comes on frame 2 and one that goes after 4."""
    return movie(
        path(range(9), (25, 25)),
        path(range(9), (65, 30), (0, 3)),
        path(range(2, 9), (25, 90), (1, 0)),
        path(range(5), (75, 105)),
    )


def test_each_object_is_found_once_from_its_first_frame_to_its_last(scene):
    image, truth = scene
    counted = Counted(image, image[0].size)
    session = Session(counted, "nano")
    steps: list[tuple[int, int]] = []
    ids = find_throughout(
        session, every=4, diameter=18, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert counted.reads <= 4 * len(image), "no frame is read anew for each key frame"
    assert sorted(ids) == sorted(session.objects)
    found = matched(session, truth)
    assert sorted(found) == [1, 2, 3, 4]
    assert all(len(own) == 1 for own in found.values())
    (came,) = found[3]
    masks = session.masks_of(came)
    # Found on frame 4, followed back to frame 2, where it came.
    own = truth[3] == 3
    assert (masks[3].on_frame(own.shape) & own).sum() > 0.5 * own.sum()


def test_frames_that_cannot_be_read_are_passed_over(scene):
    image, truth = scene
    damaged = Damaged(image, image[0].size)
    damaged.bad = (4, 6)  # a key frame, and one between
    session = Session(damaged, "nano")
    with pytest.raises(UnreadableSlices, match=r"Slice 4 cannot.*Nor can 1 more: 6\.") as caught:
        find_throughout(session, every=4, diameter=18)
    assert caught.value.session is session
    found = matched(session, truth)
    assert sorted(found) == [1, 2, 3, 4] and all(len(own) == 1 for own in found.values())
    assert set(session.masks_of(found[1][0])) == {0, 1, 2, 3, 5, 7, 8}
    assert not session.labels[[4, 6]].any()
    damaged.bad = tuple(range(9))
    with pytest.raises(UnreadableFrame):
        find_throughout(Session(damaged, "nano", window=(0, 255)), every=4)


def test_one_step_of_undo_takes_all_back(scene):
    session = Session(scene[0], "nano")
    find_throughout(session, every=4, diameter=18)
    assert session.labels.any()
    assert session.history.undo_label == "Find throughout"
    session.undo()
    assert not session.objects and not session.labels.any()


def test_what_is_known_is_not_found_again(scene):
    image, truth = scene
    session = Session(image, "nano")
    mine = session.add_object("mine")
    session.paint(mine, 0, truth[0] == 1)
    ids = find_throughout(session, every=4, diameter=18)
    assert mine not in ids and session.objects[mine].name == "mine"
    assert matched(session, truth)[1] == [mine]


def given(session: Session, number: int, masks: dict[int, np.ndarray]) -> int:
    object_id = session.add_object(object_id=number)
    for frame, mask in masks.items():
        session.paint(object_id, frame, mask)
    return object_id


def test_two_that_are_one_wherever_both_are_become_one(scene):
    image, truth = scene
    session = Session(image, "nano")
    given(session, 1, {t: truth[t] == 1 for t in range(4)})
    given(session, 2, {t: truth[t] == 1 for t in range(3, 9)})
    given(session, 3, {t: truth[t] == 2 for t in range(9)})
    _join(session, 0, 8, set())
    assert sorted(session.objects) == [1, 3]
    assert sorted(session.masks_of(1)) == list(range(9))


def test_of_two_that_have_met_one_ends_there(scene):
    image, truth = scene
    session = Session(image, "nano")
    given(session, 1, {t: truth[t] == 1 for t in range(9)})
    given(session, 2, {t: truth[t] == (2 if t < 5 else 1) for t in range(9)})
    ended: set[int] = set()
    _join(session, 0, 8, ended)
    assert ended == {2}  # as sure as the other, and younger
    assert all(session.masks_of(1)[t].on_frame(truth[t].shape).any() for t in range(9))
    masks = session.masks_of(2)
    assert sorted(masks) == [0, 1, 2, 3, 4]
    assert session.life(2) == (0, 4), "it is not followed any more"
    assert 5 not in session.states(2), "nobody has painted anything there"


def test_what_begins_where_it_has_met_another_is_not_kept(scene):
    image, truth = scene
    session = Session(image, "nano")
    given(session, 1, {t: truth[t] == 1 for t in range(9)})
    given(session, 2, {t: truth[t] == (1 if t < 5 else 2) for t in range(3, 9)})
    ended: set[int] = set()
    _join(session, 0, 8, ended)
    assert ended == {2} and sorted(session.objects) == [1]
    assert sorted(session.masks_of(1)) == list(range(9))


def test_locked_objects_are_not_joined(scene):
    image, truth = scene
    session = Session(image, "nano")
    for number in (1, 2):
        given(session, number, {t: truth[t] == 1 for t in range(9)})
    session.edit_object(1, locked=True)
    _join(session, 0, 8, set())
    assert sorted(session.objects) == [1, 2]


def test_objects_with_approved_slices_are_not_joined(scene):
    image, truth = scene
    session = Session(image, "nano")
    given(session, 1, {t: truth[t] == 1 for t in range(9)})
    given(session, 2, {t: truth[t] == (2 if t < 5 else 1) for t in range(9)})
    session.keep(2, [7])
    _join(session, 0, 8, set())
    assert sorted(session.masks_of(2)) == list(range(9))


def test_what_has_divided_is_not_painted_beyond_its_end(scene):
    image, truth = scene
    session = Session(image, "nano")
    given(session, 1, {t: truth[t] == 1 for t in range(9)})
    given(session, 2, {t: truth[t] == (2 if t < 3 else 1) for t in range(5)})
    for number, true in ((3, 3), (4, 2)):
        given(session, number, {t: truth[t] == true for t in range(6, 9)})
    session.set_division(2, [3, 4])
    _join(session, 0, 8, set())
    assert sorted(session.masks_of(2)) == [0, 1, 2] and session.parents == {3: 2, 4: 2}


def test_a_wrong_step_is_said(scene):
    with pytest.raises(ValueError, match="1 or more frames"):
        find_throughout(Session(scene[0], "nano"), every=0)


def test_the_command_finds_all_objects_of_a_movie(scene, tmp_path, capsys):
    image, truth = scene
    tifffile.imwrite(tmp_path / "movie.ome.tif", image, metadata={"axes": "TYX"})
    out = tmp_path / "labels.tif"
    command = ["find", str(tmp_path / "movie.ome.tif"), "-o", str(out), "--every", "4"]
    assert main([*command, "--diameter", "18", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    labels = np.asarray(read_volume(out).array)
    assert {one["id"] for one in said["objects"]} == set(np.unique(labels)) - {0}
    assert average_precision(labels[0], truth[0], 0.5) > 0.6


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert main(["find", "x.tif", "-o", str(tmp_path / "o.tif"), "--every", "0"]) == 2
    assert "--every must be 1 or more" in capsys.readouterr().err
    assert main(["find", str(tmp_path / "no.tif"), "-o", str(tmp_path / "o.tif")]) == 3
    assert "no file" in capsys.readouterr().err
