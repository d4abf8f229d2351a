"""Intensity windows of layers, arrays and channels; one for a whole sequence."""

from __future__ import annotations

import numpy as np
import pytest
from lazy import Lazy
from models import small_model
from napari.layers import Image

from napari_sam2.sample_data import body_ct
from napari_sam2.sequence_view import Channels, SequenceKey, SequenceView
from napari_sam2.session import Session
from napari_sam2.windows import (
    CONTRAST_LIMITS,
    CT_WINDOWS,
    PERCENTILES,
    window_choices,
    window_for,
)
from sam2_engine.frames import FrameSource


def ramps(length: int = 40, dtype: str = "float32") -> np.ndarray:
    """(N, 100, 100), every frame holding all whole numbers from 0 to 9999."""
    frame = np.arange(10_000).reshape(100, 100)
    return np.stack([frame] * length).astype(dtype)


def test_the_layer_s_contrast_limits_are_the_default():
    layer = Image(ramps(), contrast_limits=(100, 5000))
    assert window_for(layer) == (100, 5000)
    layer.contrast_limits = (7, 9)
    assert window_for(SequenceView(layer)) == (7, 9)


def test_ct_windows_are_level_and_width_in_hounsfield_units():
    assert window_for(ramps(), "soft tissue") == (-150, 250)
    assert window_for(ramps(), "lung") == (-1350, 150)
    assert window_for(ramps(), "bone") == (-500, 1300)
    assert window_for(ramps(), "brain") == (0, 80)
    assert window_for(ramps(), "liver") == (-45, 105)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64"])
def test_percentiles_are_of_the_whole_sequence_and_few_frames_are_read(dtype):
    array = ramps(dtype=dtype)
    array[::2] //= 100
    low, high = window_for(Lazy(array, 100 * 100), PERCENTILES)
    assert low == pytest.approx(np.percentile(array, 0.5), abs=10)
    assert high == pytest.approx(np.percentile(array, 99.5), abs=100)
    narrow = window_for(array, PERCENTILES, percentiles=(25, 50))
    assert narrow == pytest.approx(np.percentile(array, (25, 50)), abs=20)


def test_percentiles_are_of_the_sequence_that_is_shown():
    array = np.stack([ramps(3), ramps(3) + 1e6])  # T, Z, Y, X
    low, _ = window_for(SequenceView(array, SequenceKey(1, (1, None, None, None))), PERCENTILES)
    assert low > 1e6


def test_what_is_not_a_number_does_not_count():
    array = ramps()
    array[:, :50] = np.nan
    array[3] = np.inf
    array[4] = -np.inf
    low, high = window_for(array, PERCENTILES)
    assert 5000 <= low < high <= 9999


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4, 4), bool),
        np.ones((3, 4, 4), bool),
        np.full((3, 4, 4), np.nan),
        np.full((3, 4, 4), 7, np.uint16),
    ],
)
@pytest.mark.parametrize("choice", [CONTRAST_LIMITS, PERCENTILES])
def test_a_picture_of_one_grey_has_a_window(array, choice):
    for image in (array, Image(array, contrast_limits=(0, 1))):
        low, high = window_for(image, choice)
        assert np.isfinite((low, high)).all() and low < high


def test_a_binary_picture_is_black_and_white():
    array = np.random.default_rng(0).random((3, 40, 40)) > 0.5
    assert window_for(Image(array)) == window_for(array) == (0, 1)


def test_a_picture_in_colours_has_the_range_of_its_type():
    colours = np.random.default_rng(0).integers(50, 90, (6, 7, 4), np.uint8)
    assert window_for(Image(colours, rgb=True)) == (0, 255)
    assert window_for(Image(colours / 255, rgb=True)) == (0, 1)
    low, high = window_for(Image(colours, rgb=True), PERCENTILES)
    assert 50 <= low < high <= 89


def test_each_of_several_layers_has_its_own_window():
    layers = [Image(ramps(), contrast_limits=limits) for limits in ((0, 10), (5, 500), (1, 2))]
    assert window_for(layers) == ((0, 10), (5, 500), (1, 2))
    assert window_for(layers, "lung") == (-1350, 150)


def test_each_channel_has_its_own_percentiles():
    array = np.stack([ramps(), ramps() * 1000], axis=1)  # Z, C, Y, X
    view = SequenceView(Lazy(array, 100 * 100), channels=Channels(1, (1, 0)))
    first, second = window_for(view, PERCENTILES)
    assert first[1] == pytest.approx(1000 * second[1], rel=0.01)
    source = FrameSource(view, 32, window_for(view))
    assert source.window == (first, second)
    layer = Image(array, contrast_limits=(0, 77))
    assert window_for(SequenceView(layer, channels=Channels(1, (1, 0)))) == (0, 77)


def test_a_list_of_choices_holds_what_makes_sense():
    grey = list(window_choices(Image(ramps(), contrast_limits=(0, 1))))
    assert grey == [CONTRAST_LIMITS, PERCENTILES, *CT_WINDOWS]
    assert window_choices(ramps())["lung"] == "CT lung (level -600, width 1500)"
    assert list(window_choices(ramps())) == [PERCENTILES, *CT_WINDOWS]
    assert list(window_choices(ramps(dtype="uint16"))) == [PERCENTILES]
    colours = Image(np.zeros((6, 7, 3), np.uint8), rgb=True)
    assert list(window_choices(colours)) == [CONTRAST_LIMITS, PERCENTILES]
    for choice in window_choices(ramps()):
        window_for(ramps(), choice)


def test_the_windows_of_a_file_can_be_chosen():
    layer = Image.create(*body_ct()[0])
    choices = window_choices(layer)
    assert choices["file: soft tissue"] == "From the file: soft tissue"
    assert window_for(layer, "file: soft tissue") == (-150, 250)
    layer.contrast_limits = (0, 1)
    assert window_for(layer, "file: lung") == (-1350, 150)
    with pytest.raises(ValueError, match=r"file: kidney.*file: lung"):
        window_for(layer, "file: kidney")


def test_an_unknown_window_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'kidney'.*lung"):
        window_for(ramps(), "kidney")


def test_a_session_of_several_arrays_gives_each_its_own_window():
    session = Session([ramps(), ramps() * 1000], small_model())
    assert session.window == window_for([ramps(), ramps() * 1000])
    (_, first), (_, second) = session.window
    assert second == pytest.approx(1000 * first, rel=0.01)
