"""Clicks and shapes in napari's layers as prompts, and back."""

from __future__ import annotations

import numpy as np
import pytest
from lazy import random_place
from models import small_model
from napari.layers import Image

from napari_sam2.alignment import align
from napari_sam2.prompt_layers import (
    NEGATIVE,
    POSITIVE,
    Follower,
    PromptLayers,
    image_transform,
    new_labels_layer,
    object_colours,
)
from napari_sam2.sequence_view import Channels, SequenceKey, SequenceView
from napari_sam2.session import Session

SHAPE = (8, 40, 50)
SINGLE = 1e-4  # pixels; napari holds shapes in single precision


def colour_of(object_id: int) -> np.ndarray:
    return np.asarray(object_colours().map(object_id), float).reshape(-1)[:4]


def make(shape=SHAPE, axis=0, **place) -> tuple[PromptLayers, SequenceView]:
    """The layers of an image, ready for marks of object 1 along an axis."""
    image = Image(np.zeros(shape, np.uint8), contrast_limits=(0, 1), **place)
    view = SequenceView(image, SequenceKey.along(axis, len(shape)))
    layers = PromptLayers(image, view.frame_shape)
    prepare(layers, view)
    return layers, view


def prepare(layers, view, object_id=1, label=POSITIVE) -> None:
    layers.prepare(view.key, object_id, label, colour_of(object_id))


def draw(layers, view, frame, yx, kind) -> None:
    """A shape as a person draws it over the image."""
    positions = align(layers.image, layers.boxes)(view.join(frame, yx))
    layers.boxes.add(positions, shape_type=kind)


def rectangle(y0, x0, y1, x1) -> list[tuple[float, float]]:
    return [(y0, x0), (y0, x1), (y1, x1), (y1, x0)]


# -- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_clicks_belong_to_the_object_the_sign_and_the_slice_that_they_were_made_with(axis):
    layers, view = make(axis=axis)
    layers.points.add(view.join(3, [(2, 4), (5, 6)]))
    prepare(layers, view, 2, NEGATIVE)
    layers.points.add(view.join(5, [(4, 3)]))
    read = layers.read(view).prompts
    assert read.keys() == {(1, 3), (2, 5)}
    assert read[1, 3].points == [(2, 4), (5, 6)] and read[1, 3].labels == [1, 1]
    assert read[2, 5].points == [(4, 3)] and read[2, 5].labels == [0]
    other = SequenceView(layers.image, SequenceKey.along((axis + 1) % 3, 3))
    assert not layers.read(other).prompts


def test_shapes_are_boxes_scribbles_and_lassos():
    layers, view = make()
    draw(layers, view, 1, rectangle(5, 10, 20, 30), "rectangle")
    draw(layers, view, 2, [(1, 2), (3, 4), (5, 9)], "path")
    draw(layers, view, 2, [(7, 2), (8, 4)], "line")
    draw(layers, view, 2, [(1, 2), (30, 4), (5, 9)], "polygon")
    draw(layers, view, 3, rectangle(5, 10, 25, 40), "ellipse")
    read = layers.read(view).prompts
    assert read[1, 1].box == (5, 10, 20, 30)
    assert read[1, 2].scribbles == [(((1, 2), (3, 4), (5, 9)), 1), (((7, 2), (8, 4)), 1)]
    assert read[1, 2].lassos == [((1, 2), (30, 4), (5, 9))]
    (ellipse,) = read[1, 3].lassos
    y, x = np.array(ellipse).T
    np.testing.assert_allclose(((y - 15) / 10) ** 2 + ((x - 25) / 15) ** 2, 1, atol=1e-9)


def test_what_is_drawn_beside_the_object_is_a_scribble():
    layers, view = make()
    prepare(layers, view, 4, NEGATIVE)
    draw(layers, view, 2, [(1, 2), (3, 4)], "path")
    draw(layers, view, 2, rectangle(5, 10, 25, 40), "rectangle")
    draw(layers, view, 2, [(0, 0), (30, 0), (30, 30), (20, 3), (10, 3)], "polygon")
    read = layers.read(view).prompts[4, 2]
    assert read.box is None and not read.lassos
    assert [label for _, label in read.scribbles] == [0, 0, 0]
    (y0, x0), (y1, x1) = read.scribbles[1][0]
    assert 5 < y0 == y1 < 25 and (x0, x1) == (10, 40)
    (y0, x0), (y1, x1) = read.scribbles[2][0]
    assert y0 == y1 > 20 and x0 == 0 and x1 == pytest.approx(3 + 27 * (y0 - 20) / 10)


@pytest.mark.parametrize("seed", range(6))
def test_marks_are_read_whatever_the_places_of_the_image_and_of_their_layers(seed):
    rng = np.random.default_rng(seed)
    layers, view = make(axis=seed % 3, **random_place(rng, 3))
    for layer in (layers.points, layers.boxes):
        for name, value in random_place(rng, 3).items():
            setattr(layer, name, value)
    height, width = view.frame_shape
    frame = int(rng.integers(len(view)))
    point = rng.uniform(0, (height - 1, width - 1))
    y0, x0, y1, x1 = 1.25, 2.5, height - 2.0, width - 1.75
    path = rng.uniform(0, (height - 1, width - 1), (4, 2))
    layers.points.add(align(layers.image, layers.points)(view.join(frame, point)))
    draw(layers, view, frame, rectangle(y0, x0, y1, x1), "rectangle")
    draw(layers, view, frame, path, "path")
    reading = layers.read(view)
    assert reading.outside == 0 and reading.replaced == []
    read = reading.prompts[1, frame]
    np.testing.assert_allclose(read.points, [point], atol=1e-6)
    np.testing.assert_allclose(read.box, (y0, x0, y1, x1), atol=SINGLE)
    np.testing.assert_allclose(read.scribbles[0][0], path, atol=SINGLE)


def test_marks_of_a_4d_image_belong_to_the_position_of_its_sliders():
    layers, view = make((2, 3, 40, 50), axis=1)
    layers.points.add([(0, 2, 4, 5), (1, 2, 6, 7)])
    there = SequenceView(layers.image, SequenceKey(1, (1, None, None, None)))
    assert layers.read(view).prompts[1, 2].points == [(4, 5)]
    assert layers.read(there).prompts[1, 2].points == [(6, 7)]
    assert layers.read(view).outside == 0


def test_a_mark_of_a_4d_image_belongs_to_the_plane_that_it_was_placed_in():
    """It may lie in two: here on z = 2 and on x = 5, both along t."""
    layers, _ = make((2, 3, 40, 50), axis=0)
    at_z, at_x = (
        SequenceView(layers.image, SequenceKey(0, position))
        for position in ((None, 2, None, None), (None, None, None, 5))
    )
    prepare(layers, at_z)
    layers.points.add([(1, 2, 4, 5)])
    assert layers.read(at_z).prompts[1, 1].points == [(4, 5)]
    assert not layers.read(at_x).prompts
    prepare(layers, at_x)
    layers.points.add([(0, 2, 6, 5)])
    assert layers.read(at_x).prompts[1, 0].points == [(2, 6)]
    assert layers.read(at_z).prompts.keys() == {(1, 1)}


def test_a_2d_image_has_marks_too():
    image = Image(np.zeros((40, 50, 3), np.uint8), rgb=True)
    view = SequenceView(image)
    layers = PromptLayers(image, view.frame_shape)
    prepare(layers, view)
    layers.points.add([(4, 5)])
    draw(layers, view, 0, rectangle(5, 10, 20, 30), "rectangle")
    read = layers.read(view).prompts[1, 0]
    assert read.points == [(4, 5)] and read.box == (5, 10, 20, 30)


# -- what cannot be used -----------------------------------------------------------------------


def test_marks_that_cannot_be_used_are_counted():
    layers, view = make()
    layers.points.add([(3, -2, 5), (3, 5, 60), (20, 5, 5)])
    draw(layers, view, 3, rectangle(50, 10, 60, 30), "rectangle")
    draw(layers, view, 3, [(-9, 4), (-5, 30)], "line")
    across = np.array([(1, 5, 5), (1, 5, 20), (4, 20, 20), (4, 20, 5)])
    layers.boxes.add(across, shape_type="rectangle")
    reading = layers.read(view)
    assert not reading.prompts and reading.outside == 6


def test_a_shape_that_reaches_beyond_the_image_counts_where_it_is_inside():
    layers, view = make()
    draw(layers, view, 3, rectangle(-9, 10, 20, 300), "rectangle")
    draw(layers, view, 4, [(-9, 10), (20, 300), (20, 10)], "polygon")
    draw(layers, view, 5, [(20, -10), (20, 300)], "line")
    reading = layers.read(view)
    assert reading.prompts[1, 3].box == (-0.5, 10, 20, 49.5)
    assert reading.prompts[1, 4].lassos == [((-0.5, 10), (20, 49.5), (20, 10))]
    assert reading.prompts[1, 5].scribbles == [(((20, -0.5), (20, 49.5)), 1)]


def test_boxes_that_are_replaced_or_too_small_are_left_over():
    layers, view = make()
    draw(layers, view, 3, rectangle(5, 10, 20, 30), "rectangle")
    draw(layers, view, 3, rectangle(7, 7, 7.5, 30), "rectangle")
    draw(layers, view, 3, rectangle(6, 11, 21, 31), "rectangle")
    draw(layers, view, 3, [(7, 7), (7.2, 7), (7, 7.2)], "polygon")
    reading = layers.read(view)
    assert reading.prompts[1, 3].box == (6, 11, 21, 31)
    assert sorted(reading.replaced) == [0, 1, 3]
    layers.boxes.remove(reading.replaced)
    assert layers.read(view).prompts == reading.prompts and not layers.read(view).replaced


@pytest.mark.parametrize("bad", [np.nan, "liver", None, -1, 0, 1.5, np.inf])
def test_a_mark_of_no_object_is_not_used(bad):
    layers, view = make()
    layers.points.add(view.join(3, [(2, 4), (5, 6)]))
    features = layers.points.features.astype({"object": object})
    features.loc[0, "object"] = bad
    layers.points.features = features
    reading = layers.read(view)
    assert reading.outside == 1 and reading.prompts[1, 3].points == [(5, 6)]
    layers.colour(colour_of)


def test_marks_without_features_are_of_the_first_object_and_positive():
    layers, view = make()
    layers.points.add(view.join(3, [(2, 4)]))
    layers.points.features = {}
    assert layers.read(view).prompts[1, 3].labels == [1]


# -- editing -----------------------------------------------------------------------------------


def fired(layers: PromptLayers, act) -> bool:
    """Whether an event tells that something may have changed."""
    events = []

    def note(event):
        action = getattr(event, "action", None)
        if action is None or action.value in ("added", "changed", "removed"):
            events.append(event)

    for emitter in layers.emitters:
        emitter.connect(note)
    act()
    for emitter in layers.emitters:
        emitter.disconnect(note)
    return bool(events)


def relabelled(layer, **columns) -> None:
    layer.features = layer.features.assign(**columns)


def test_every_way_to_edit_many_clicks_changes_the_reading_and_is_told():
    layers, view = make()
    points = layers.points
    points.add(view.join(3, [(2, 4), (5, 6), (7, 8)]))

    def here(object_id=1, frame=3):
        return layers.read(view).prompts[object_id, frame]

    def move():
        points.data = np.add(points.data, (0, 1, 2))

    assert fired(layers, move) and here().points == [(3, 6), (6, 8), (8, 10)]
    assert fired(layers, lambda: relabelled(points, label=[NEGATIVE, POSITIVE, NEGATIVE]))
    assert here().labels == [0, 1, 0]
    assert fired(layers, lambda: relabelled(points, object=[1, 1, 7]))
    assert here(7).points == [(8, 10)] and len(here().points) == 2
    points.selected_data = {0, 2}
    assert fired(layers, points.remove_selected)
    assert layers.read(view).prompts.keys() == {(1, 3)} and here().points == [(6, 8)]
    points.translate = (1, 2, 0)
    assert here(1, 4).points == [(8, 8)]


def test_every_way_to_edit_many_shapes_changes_the_reading_and_is_told():
    layers, view = make()
    shapes = layers.boxes
    draw(layers, view, 3, rectangle(5, 10, 20, 30), "rectangle")
    draw(layers, view, 3, [(1, 2), (3, 4)], "path")

    def here(object_id=1, frame=3):
        return layers.read(view).prompts[object_id, frame]

    def move():
        shapes.data = [np.add(data, (1, 0, 2)) for data in shapes.data]

    assert fired(layers, move)
    assert here(1, 4).box == (5, 12, 20, 32) and here(1, 4).scribbles == [(((1, 4), (3, 6)), 1)]
    assert fired(layers, lambda: relabelled(shapes, object=[1, 9], label=[POSITIVE, NEGATIVE]))
    assert here(9, 4).scribbles == [(((1, 4), (3, 6)), 0)] and not here(1, 4).scribbles
    shapes.selected_data = {0, 1}
    assert fired(layers, shapes.remove_selected) and not layers.read(view).prompts


@pytest.mark.parametrize("seed", range(3))
def test_marks_and_masks_follow_an_image_that_is_moved(seed):
    layers, view = make()
    labels = new_labels_layer(layers.image, np.zeros(SHAPE, np.int32))
    held = Follower(layers.image, [labels], None)
    layers.points.add(view.join(3, [(2, 4), (5, 6)]))
    draw(layers, view, 3, rectangle(5, 10, 20, 30), "rectangle")
    place = random_place(np.random.default_rng(seed), 3)
    for name, value in place.items():
        setattr(layers.image, name, value)
    read = layers.read(view).prompts[1, 3]
    np.testing.assert_allclose(read.points, [(2, 4), (5, 6)], atol=SINGLE)
    np.testing.assert_allclose(read.box, (5, 10, 20, 30), atol=SINGLE)
    np.testing.assert_allclose(align(layers.image, labels)([(4, 20, 30)]), [(4, 20, 30)])
    del held
    layers.image.translate = (9, 9, 9)
    assert not np.allclose(align(layers.image, labels)([(4, 20, 30)]), [(4, 20, 30)])


def test_the_marks_of_an_object_are_removed_from_all_sequences():
    layers, view = make()
    layers.points.add(view.join(3, [(2, 4)]))
    draw(layers, view, 3, rectangle(5, 10, 20, 30), "rectangle")
    other = SequenceView(layers.image, SequenceKey.along(1, 3))
    prepare(layers, other)
    layers.points.add(other.join(3, [(2, 4)]))
    prepare(layers, other, 2)
    layers.points.add(other.join(3, [(2, 4)]))
    layers.remove_object(1)
    assert not layers.read(view).prompts and layers.read(other).prompts.keys() == {(2, 3)}
    assert len(layers.boxes.data) == 0


def test_signs_and_objects_are_told_by_colour():
    layers, view = make()
    layers.points.add(view.join(3, [(2, 4)]))
    draw(layers, view, 3, [(1, 2), (3, 4)], "path")
    prepare(layers, view, 2, NEGATIVE)
    layers.points.add(view.join(3, [(5, 6)]))
    draw(layers, view, 3, [(1, 2), (3, 4)], "path")
    layers.colour(colour_of)
    np.testing.assert_allclose(layers.points.border_color, [colour_of(1), colour_of(2)], atol=1e-6)
    (green, red), symbols = layers.points.face_color, [str(s) for s in layers.points.symbol]
    assert green[1] > green[0] and red[0] > red[1] and symbols == ["disc", "diamond"]
    positive, negative = layers.boxes.edge_color
    np.testing.assert_allclose(positive, colour_of(1), atol=1e-6)
    np.testing.assert_allclose(negative, red, atol=1e-6)


# -- filling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_what_a_session_says_is_shown_and_read_back_the_same(seed):
    rng = np.random.default_rng(seed)
    image = Image(np.zeros(SHAPE, np.uint8), contrast_limits=(0, 1), **random_place(rng, 3))
    session = Session(image, small_model())
    layers = PromptLayers(image, session.view.frame_shape)
    for layer in (layers.points, layers.boxes):
        for name, value in random_place(rng, 3).items():
            setattr(layer, name, value)
    prepare(layers, session.view)
    layers.points.add(rng.uniform(0, 5, (4, 3)))  # what was there is replaced
    layers.boxes.add(rng.uniform(0, 5, (4, 3)), shape_type="polygon")
    said = {}
    for axis in (0, 1):
        session.show(SequenceKey.along(axis, 3))
        size = np.array(session.view.frame_shape) - 1
        corners = [(0, 0), (0, 4), (4, 0)]
        for object_id in (1, 2):
            if object_id not in session.objects:
                session.add_object()
            for frame in (2, 5):
                y0, x0 = rng.uniform(0, size / 2)
                marks = {
                    "points": rng.uniform(0, size, (5, 2)),
                    "labels": rng.integers(0, 2, 5),
                    "box": (y0, x0, y0 + 2, x0 + 3) if frame == 2 else None,
                    "scribbles": [(rng.uniform(0, size, (4, 2)), n) for n in (1, 0)],
                    "lassos": [np.add(corners, rng.uniform(0, 3, (3, 2))) for _ in "ab"],
                }
                session.set_prompts(object_id, frame, **marks)
                said[axis, object_id, frame] = marks
    layers.fill(session, colour_of)
    for axis in (0, 1):
        reading = layers.read(SequenceView(image, SequenceKey.along(axis, 3)))
        assert reading.outside == 0 and reading.replaced == []
        assert reading.prompts.keys() == {(i, f) for a, i, f in said if a == axis}
        for (object_id, frame), read in reading.prompts.items():
            marks = said[axis, object_id, frame]
            np.testing.assert_allclose(read.points, marks["points"], atol=1e-6)
            assert read.labels == marks["labels"].tolist()
            assert (read.box is None) == (marks["box"] is None)
            if read.box is not None:
                np.testing.assert_allclose(read.box, marks["box"], atol=SINGLE)
            for (path, label), (given, sign) in zip(
                read.scribbles, marks["scribbles"], strict=True
            ):
                np.testing.assert_allclose(path, given, atol=SINGLE)
                assert label == sign
            for polygon, given in zip(read.lassos, marks["lassos"], strict=True):
                np.testing.assert_allclose(polygon, given, atol=SINGLE)
    before = {axis: layers.read(session.view_of(SequenceKey.along(axis, 3))) for axis in (0, 1)}
    layers.fill(session, colour_of)
    for axis, reading in before.items():
        assert layers.read(session.view_of(SequenceKey.along(axis, 3))) == reading


def test_filling_keeps_what_the_next_mark_belongs_to():
    layers, view = make()
    session = Session(layers.image, small_model())
    session.add_object()
    session.set_prompts(1, 3, points=[(2, 4)], box=(5, 10, 20, 30))
    prepare(layers, view, 6, NEGATIVE)
    layers.fill(session, colour_of)
    layers.points.add(view.join(3, [(7, 8)]))
    assert layers.read(view).prompts[6, 3].labels == [0]
    assert layers.read(view).prompts[1, 3].points == [(2, 4)]


# -- channels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_layers_of_channels_that_are_seen_together_reach_through_all_of_them(seed):
    place = random_place(np.random.default_rng(seed), 4)
    image = Image(np.zeros((5, 3, 40, 50), np.uint8), contrast_limits=(0, 1), **place)
    view = SequenceView(image, channels=Channels(1, (0, 2)))
    layers = PromptLayers(image, view.frame_shape, channel_axis=1)
    prepare(layers, view)
    labels = new_labels_layer(image, np.zeros(view.shape, np.int32), channel_axis=1)
    for layer in (labels, layers.points, layers.boxes):
        for channel in range(3):
            at = align(image, layer)([(4, channel, 20, 30)])[0]
            np.testing.assert_allclose(at[[0, 2, 3]], (4, 20, 30), atol=1e-6)
            assert -0.5 < at[1] < 0.5
    for channel in range(3):  # a click while the viewer shows one of them
        layers.points.add(align(image, layers.points)([(4, channel, 20, 30)]))
    np.testing.assert_allclose(layers.read(view).prompts[1, 4].points, [(20, 30)] * 3, atol=1e-6)
    assert image_transform(image)["scale"] == pytest.approx(image.scale)
