"""Any image as a sequence of frames: which axes, which channels, and where they lie."""

from __future__ import annotations

import numpy as np
import pytest
from lazy import Lazy, random_place
from models import SMALL, small_model
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_sam2.alignment import align, layer_on
from napari_sam2.sequence_view import (
    ELSEWHERE,
    OUTSIDE,
    Channels,
    SequenceKey,
    SequenceView,
    sequence_axes,
)
from napari_sam2.session import Session
from sam2_engine.model import SAM2

SHAPE = (5, 6, 7)


def volume(*shape: int, dtype: str = "uint16") -> np.ndarray:
    shape = shape or SHAPE
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def image(data: np.ndarray, **options) -> Image:
    return Image(data, contrast_limits=(0, 100), **options)


def shown(viewer: ViewerModel, layer: Image, **options) -> SequenceView:
    key = SequenceKey.of_viewer(layer, viewer.dims.order, viewer.dims.point, **options)
    return SequenceView(layer, key)


# -- which frames ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 7), (5, 6, 7), (2, 5, 6, 7), (2, 3, 5, 6, 7)])
def test_any_axis_of_any_image_is_a_sequence_that_is_read_frame_by_frame(shape):
    array = volume(*shape)
    for axis in range(len(shape) if len(shape) > 2 else 1):
        key = SequenceKey.along(axis, len(shape))
        rows, columns = [a for a in range(len(shape)) if a != axis or len(shape) == 2][-2:]
        view = SequenceView(Lazy(array, shape[rows] * shape[columns]), key)
        assert view.frame_shape == (shape[rows], shape[columns])
        assert len(view) == (1 if len(shape) == 2 else shape[axis])
        for frame in range(len(view)):
            index = [0] * len(shape)
            index[rows] = index[columns] = slice(None)
            if key.axis is not None:
                index[axis] = frame
            np.testing.assert_array_equal(view[frame], array[tuple(index)])
        for frame in (-1, len(view)):
            with pytest.raises(IndexError, match="no slice"):
                view[frame]


def test_dask_arrays_are_read_frame_by_frame():
    dask = pytest.importorskip("dask.array")
    read = []

    def block(block_info=None):
        read.append(block_info[None]["chunk-location"][0])
        return np.full((1, 6, 7), read[-1], np.float32)

    array = dask.map_blocks(block, chunks=((1,) * 9, (6,), (7,)), dtype=np.float32)
    view = SequenceView(image(array))
    read.clear()  # napari has shown the first slice
    assert (view[4] == 4).all() and isinstance(view[4], np.ndarray)
    assert set(read) == {4}


def test_zarr_and_memory_mapped_arrays_are_read_frame_by_frame(tmp_path):
    mapped = np.memmap(tmp_path / "image", np.uint16, "w+", shape=SHAPE)
    mapped[:] = volume()
    np.testing.assert_array_equal(SequenceView(mapped)[3], volume()[3])
    zarr = pytest.importorskip("zarr")
    stored = zarr.create_array(tmp_path / "z", shape=SHAPE, chunks=(1, 6, 7), dtype="uint16")
    stored[:] = volume()
    view = SequenceView(stored, SequenceKey.along(2, 3))
    np.testing.assert_array_equal(view[3], volume()[:, :, 3])


def test_of_a_multiscale_layer_the_full_resolution_is_read():
    levels = [Lazy(volume(8, 32, 32), 32 * 32), volume(8, 16, 16)]
    layer = Image(levels, multiscale=True, contrast_limits=(0, 9))
    view = SequenceView(layer)
    assert view.frame_shape == (32, 32)
    np.testing.assert_array_equal(view[5], volume(8, 32, 32)[5])


def test_a_layer_with_a_lazy_array_is_read_frame_by_frame_in_any_order():
    array = Lazy(volume(30, 6, 7), 30 * 7)
    viewer = ViewerModel()
    layer = viewer.add_image(array, contrast_limits=(0, 9), multiscale=False)
    for order in [(0, 1, 2), (1, 0, 2), (2, 0, 1)]:
        viewer.dims.order = order
        view = shown(viewer, layer)
        assert view.key.axis == order[0]
        for frame in range(len(view)):
            np.testing.assert_array_equal(view[frame], volume(30, 6, 7).take(frame, order[0]))


def test_the_viewer_says_which_axis_and_other_axes_stay_where_the_sliders_are():
    viewer = ViewerModel()
    array = volume(4, 5, 6, 7)
    layer = viewer.add_image(array, scale=(10, 3, 1, 1), translate=(100, 7, 0, 0))
    viewer.dims.set_point(0, 120)
    viewer.dims.set_point(1, 16)
    over_time = shown(viewer, layer)
    assert over_time.key == SequenceKey(0, (None, 3, None, None))
    np.testing.assert_array_equal(over_time[1], array[1, 3])
    over_z = shown(viewer, layer, axis=1)
    assert over_z.key == SequenceKey(1, (2, None, None, None))
    np.testing.assert_array_equal(over_z[1], array[2, 1])
    viewer.dims.order = (0, 2, 1, 3)  # coronal, at a time
    assert shown(viewer, layer, axis=2).key == SequenceKey(2, (2, None, None, None))
    np.testing.assert_array_equal(shown(viewer, layer, axis=2)[5], array[2, :, 5])
    assert sequence_axes(layer, viewer.dims.order) == (0, 2)


def test_a_sequence_along_an_axis_that_is_on_the_screen_falls_back_to_the_slider():
    viewer = ViewerModel()
    layer = viewer.add_image(volume())
    assert shown(viewer, layer, axis=2).key.axis == 0


def test_single_slices_and_channels_are_the_last_choice_of_an_axis():
    viewer = ViewerModel()
    czyx = viewer.add_image(volume(2, 5, 6, 7), axis_labels=("c", "z", "y", "x"))
    assert sequence_axes(czyx, viewer.dims.order) == (1, 0)
    assert shown(viewer, czyx).key == SequenceKey(1, (0, None, None, None))
    tzyx = Image(volume(1, 5, 6, 7))
    assert sequence_axes(tzyx, (0, 1, 2, 3)) == (1, 0)


def test_an_image_beside_one_with_more_axes_keeps_its_own():
    viewer = ViewerModel()
    viewer.add_image(volume(2, 5, 6, 7))
    layer = viewer.add_image(volume())
    flat = viewer.add_image(volume(6, 7))
    assert shown(viewer, layer).key == SequenceKey(0, (None, None, None))
    assert shown(viewer, flat).key == SequenceKey(None, (None, None))


# -- channels ----------------------------------------------------------------------------------


def test_channels_of_one_array_are_seen_in_colours():
    array = volume(5, 4, 6, 7)  # Z, C, Y, X
    view = SequenceView(Lazy(array, 6 * 7), channels=Channels(1, (3, 0)))
    assert view.key == SequenceKey(0, (None, 0, None, None))
    assert view.shape == (5, 1, 6, 7) and view.num_channels == 2
    np.testing.assert_array_equal(view[2], np.stack([array[2, 3], array[2, 0]], axis=-1))
    assert np.zeros(view.shape)[view.index(2)].shape == view.frame_shape
    along_y = SequenceView(array, SequenceKey.along(2, 4, 1), channels=Channels(1, (0, 1, 2)))
    np.testing.assert_array_equal(along_y[4], np.moveaxis(array[:, :3, 4], 1, -1))
    one = SequenceView(volume(3, 6, 7), channels=Channels(0, (2,)))
    assert len(one) == 1
    np.testing.assert_array_equal(one[0], volume(3, 6, 7)[2])


def test_positions_belong_to_all_channels():
    view = SequenceView(volume(5, 4, 6, 7), channels=Channels(1, (3, 0)))
    frames, yx = view.split([(2, channel, 1, 3) for channel in range(4)])
    assert set(frames) == {2} and (yx == (1, 3)).all()
    assert view.split([(2, 4, 1, 3)])[0] == [OUTSIDE]
    assert view.split(view.join(3, [(1, 2)]))[0] == [3]


def test_the_viewer_s_axes_are_rolled_around_the_channels():
    viewer = ViewerModel()
    layer = viewer.add_image(volume(5, 4, 6, 7))
    for order, axis in [((0, 1, 2, 3), 0), ((1, 0, 2, 3), 0), ((2, 1, 0, 3), 2), ((3, 0, 2, 1), 3)]:
        viewer.dims.order = order
        key = SequenceKey.of_viewer(layer, order, viewer.dims.point, channel_axis=1)
        assert key.axis == axis and key.position[1] == 0
        SequenceView(layer, key, channels=Channels(1, (0,)))


def test_layers_are_seen_together_in_colours():
    place = random_place(np.random.default_rng(0), 3)
    arrays = [volume() + n for n in range(3)]
    layers = [image(array, **place) for array in arrays]
    view = SequenceView(layers, SequenceKey.along(1, 3))
    np.testing.assert_array_equal(view[2], np.stack(arrays, axis=-1)[:, 2])
    assert SequenceView(arrays)[2].shape == (6, 7, 3)
    assert SequenceView(arrays[:2])[2].shape == (6, 7, 2)


def test_what_cannot_be_seen_together_is_refused():
    grey, colours = volume(), np.zeros((5, 6, 3), np.uint8)
    refused = {
        "up to 3": lambda: SequenceView([grey] * 4),
        "one shape": lambda: SequenceView([grey, grey[1:]]),
        "lies elsewhere": lambda: SequenceView([image(grey), image(grey, scale=(2, 1, 1))]),
        "not both": lambda: SequenceView([image(grey), grey]),
        "channels already": lambda: SequenceView(colours, rgb=True, channels=Channels(0, (0,))),
        "4 channels": lambda: SequenceView(grey, channels=Channels(0, (0, 1, 2, 3))),
        "has 5 channels": lambda: SequenceView(grey, channels=Channels(0, (5,))),
        "no axis 3": lambda: SequenceView(grey, channels=Channels(3, (0,))),
        "no sequence": lambda: SequenceView(grey, SequenceKey.along(0, 4)),
        "two axes": lambda: SequenceView(np.zeros(5)),
    }
    for message, make in refused.items():
        with pytest.raises(ValueError, match=message):
            make()


def test_colours_are_one_picture():
    colours = np.random.default_rng(0).integers(0, 255, (4, 6, 7, 4), np.uint8)
    view = SequenceView(image(colours, rgb=True))
    assert view.shape == (4, 6, 7) and view.num_channels == 1 and view.rgb
    np.testing.assert_array_equal(view[2], colours[2, ..., :3])


# -- places ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_pixel_has_its_size_in_the_world(axis):
    place = random_place(np.random.default_rng(axis), 3)
    spacing = np.array([3, 0.8, 0.5])
    flipped = image(volume(), scale=spacing * [1, -1, 1], rotate=place["rotate"])
    expected = tuple(np.delete(spacing, axis))
    key = SequenceKey.along(axis, 3)
    assert SequenceView(flipped, key).pixel_size == pytest.approx(expected)
    assert SequenceView(volume(), key, spacing=spacing).pixel_size == pytest.approx(expected)
    assert SequenceView(volume(), key).pixel_size == (1, 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_positions_belong_to_the_nearest_frame_and_come_back(axis):
    view = SequenceView(volume(), SequenceKey.along(axis, 3))
    inside = np.random.default_rng(axis).uniform(-0.4, np.array(SHAPE) - 0.6, (50, 3))
    frames, yx = view.split(inside)
    np.testing.assert_array_equal(frames, np.rint(inside[:, axis]))
    for frame, at, position in zip(frames, yx, inside, strict=True):
        position[axis] = frame
        np.testing.assert_allclose(view.join(frame, at)[0], position)
    assert view.split([SHAPE])[0] == [OUTSIDE]
    other = SequenceView(volume(2, *SHAPE), SequenceKey(1, (1, None, None, None)))
    assert list(other.split([(0, 1, 2, 3), (1, 1, 2, 3)])[0]) == [ELSEWHERE, 1]


@pytest.mark.parametrize("seed", range(5))
def test_layers_are_aligned_by_way_of_the_world(seed):
    rng = np.random.default_rng(seed)
    first = image(volume(), **random_place(rng, 3))
    second = Labels(volume(dtype="int32"), **random_place(rng, 3))
    positions = rng.uniform(-5, 10, (20, 3))
    moved = align(first, second)(positions)
    for before, after in zip(positions, moved, strict=True):
        np.testing.assert_allclose(
            first.data_to_world(before), second.data_to_world(after), atol=1e-9
        )
    np.testing.assert_allclose(align(second, first)(moved), positions, atol=1e-8)


def test_units_and_missing_axes_are_honoured():
    metres = image(volume(2, *SHAPE), units=("s", "mm", "mm", "mm"), scale=(5, 3, 1, 1))
    fine = Labels(volume(dtype="int32"), units=("um",) * 3, scale=(3000, 500, 500))
    np.testing.assert_allclose(align(metres, fine)([(1, 2, 3, 3)]), [(2, 6, 6)])


def test_units_of_another_kind_do_not_count_as_in_the_viewer():
    """Labels with the image's scale and no unit, as a script makes them."""
    place = {"scale": (3, 0.5, 0.5), "translate": (10, 20, 30)}
    scan = image(volume(), units=("mm",) * 3, **place)
    labels = Labels(np.random.default_rng(0).integers(0, 9, SHAPE), **place)
    view = SequenceView(scan, SequenceKey.along(0, 3))
    for frame in range(len(view)):
        np.testing.assert_array_equal(layer_on(view, labels, frame), labels.data[frame])


@pytest.mark.parametrize("seed", range(8))
def test_labels_of_another_grid_are_found_by_the_nearest(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(4, 12, 3))
    layer = image(volume(), **random_place(rng, 3))
    # Over the image, so that something of it is labelled.
    place = random_place(rng, 3) | {"scale": rng.uniform(0.5, 1.5, 3)}
    array = rng.integers(1, 1000, shape).astype(np.int32)
    labels = Labels(array, **place)
    middle = np.array(layer.data_to_world(np.array(SHAPE) / 2))
    labels.translate += middle - labels.data_to_world(np.array(shape) / 2)
    view = SequenceView(layer, SequenceKey.along(seed % 3, 3))
    seen = 0
    for frame in range(len(view)):
        found = layer_on(view, labels, frame)
        assert found.dtype == np.int32
        for y, x in np.ndindex(view.frame_shape):
            at = labels.world_to_data(layer.data_to_world(view.join(frame, [(y, x)])[0]))
            nearest = np.floor(np.array(at) + 0.5).astype(int)
            is_inside = (nearest >= 0).all() and (nearest < shape).all()
            assert found[y, x] == (array[tuple(nearest)] if is_inside else 0)
        seen += int((found > 0).sum())
    assert seen > 10


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_of_half_the_resolution_are_read_slice_by_slice(axis):
    shape = (8, 600, 700)
    coarse = np.random.default_rng(0).integers(0, 9, (8, 300, 350)).astype(np.uint8)
    array = Lazy(coarse, coarse[0].size)
    labels = Labels(array, scale=(1, 2, 2), translate=(0, 0.5, 0.5), multiscale=False)
    array.largest = coarse.size // coarse.shape[axis]
    view = SequenceView(image(np.zeros(shape, np.uint8)), SequenceKey.along(axis, 3))
    frame = shape[axis] // 2
    expected = coarse.repeat(2, 1).repeat(2, 2).take(frame, axis)
    np.testing.assert_array_equal(layer_on(view, labels, frame), expected)


def test_oblique_labels_are_never_read_as_a_whole():
    array = np.ones((200, 200, 200), np.uint8)
    labels = Labels(Lazy(array, 120**3), rotate=(20, 30, 40), multiscale=False)
    view = SequenceView(image(np.zeros((200, 200, 200), np.uint8)))
    assert layer_on(view, labels, 30).any()


def test_labels_of_an_image_without_a_place_are_refused():
    with pytest.raises(ValueError, match="without a place"):
        layer_on(SequenceView(volume()), Labels(volume(dtype="int32")), 0)


def test_a_session_shows_the_model_slices_in_their_true_aspect():
    """An ellipse in pixels that is a disc in millimetres is a disc for the model."""
    y, x = np.mgrid[:20, :90]
    disc = (((y - 9.5) * 2.0) ** 2 + (x - 45.0) ** 2 < 18**2).astype(np.float32)
    seen = []

    class Watched(SAM2):
        def encode_image(self, image):
            seen.append(image)
            return super().encode_image(image)

    model = Watched(SMALL)
    model.load_state_dict(small_model().state_dict())
    stack = np.stack([disc, disc])
    for shown_image in (image(stack, scale=(1, 2, 1)), stack):
        spacing = None if isinstance(shown_image, Image) else (1, 2, 1)
        session = Session(shown_image, model.eval(), window=(0, 1), spacing=spacing)
        session.add_object()
        session.add_points(1, [(0, 9, 45)])
        session.preview(0)
        bright = seen[-1][0, 0] > 0
        rows, columns = int(bright.any(1).sum()), int(bright.any(0).sum())
        assert abs(rows - columns) <= 4 and rows > 40


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_session_never_reads_an_image_as_a_whole(axis):
    array = Lazy(np.random.default_rng(0).random((6, 20, 24)).astype(np.float32), 20 * 24)
    layer = Image(array, contrast_limits=(0, 1), multiscale=False)
    for shown_image in (layer, array):
        session = Session(shown_image, small_model())
        session.show(SequenceKey.along(axis, 3))
        session.add_object()
        session.set_prompts(1, 3, box=(1, 2, 5, 15))
        session.propagate()
        assert len(session.masks_of(1)) == array.shape[axis]
