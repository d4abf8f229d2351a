"""Frames in the model's terms: their aspect, their channels and their intensity windows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sam2_engine.frames import Fit, FrameSource, Geometry, sample_window


def grey_levels(source: FrameSource, frame: int = 0) -> torch.Tensor:
    """(3, S, S) as the model sees a frame, back from ImageNet's statistics to 0 to 1."""
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    return source[frame] * std + mean


def test_padding_keeps_the_aspect_of_pixels_that_are_not_square() -> None:
    geometry = Geometry((30, 100), 128, "pad", (3, 0.8))  # 90 mm x 80 mm
    assert geometry.filled == (128, 114)
    np.testing.assert_allclose(geometry.to_model(np.array([[15, 50]], np.float32)), [[57, 64]])
    mask = torch.zeros(1, 1, 30, 100)
    mask[..., 10:20, 20:80] = 1
    logits = torch.nn.functional.avg_pool2d(geometry.mask_to_model(mask), 4) * 20 - 10
    back = geometry.logits_to_frame(logits)[0, 0] > 0
    assert (back == (mask[0, 0] > 0)).float().mean() > 0.97


def test_a_disc_in_millimetres_is_a_disc_for_the_model() -> None:
    y, x = np.mgrid[:30, :100]
    disc = ((y - 15) * 3.0) ** 2 + ((x - 50) * 0.8) ** 2 < 30**2
    source = FrameSource(disc[None], 128, (0, 1), "pad", (3, 0.8))
    seen = grey_levels(source)[0] > 0.5
    rows, columns = seen.any(1).sum(), seen.any(0).sum()
    assert abs(int(rows) - int(columns)) <= 4
    stretched = grey_levels(FrameSource(disc[None], 128, (0, 1), "stretch", (3, 0.8)))[0] > 0.5
    assert int(stretched.any(0).sum()) > int(stretched.any(1).sum()) + 8


@pytest.mark.parametrize("size", [(0, 1), (-1, 1), (np.nan, 1)])
def test_pixels_without_a_size_are_refused(size: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="height and a width"):
        FrameSource(np.zeros((1, 4, 4)), 32, (0, 1), "pad", size)


def test_two_channels_are_magenta_and_green() -> None:
    frames = np.zeros((1, 8, 8, 2), np.uint16)
    frames[..., 0], frames[..., 1] = 50, 4000
    image = grey_levels(FrameSource(frames, 32, ((0, 100), (0, 4000))))
    for channel, level in enumerate((0.5, 1.0, 0.5)):
        assert torch.allclose(image[channel], torch.tensor(level), atol=1e-5)


def test_each_channel_has_its_own_window() -> None:
    frames = np.zeros((1, 8, 8, 3), np.float32)
    frames[:] = 1, 20, 300
    image = grey_levels(FrameSource(frames, 32, ((0, 4), (10, 30), (0, 300))))
    for channel, level in enumerate((0.25, 0.5, 1.0)):
        assert torch.allclose(image[channel], torch.tensor(level), atol=1e-5)


def test_windows_for_other_channels_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="the frames have 3"):
        FrameSource(np.zeros((1, 8, 8, 3)), 32, ((0, 4), (10, 30)))
    with pytest.raises(ValueError, match="low < high, not 5 to 5"):
        FrameSource(np.zeros((1, 8, 8, 2)), 32, ((0, 4), (5, 5)))


@pytest.mark.parametrize(
    ("dtype", "offset"),
    [("int32", 2**30), ("uint32", 2**31), ("int64", 2**40), ("float64", 1e9), ("uint16", 60000)],
)
def test_a_narrow_window_far_from_zero_keeps_its_grey_levels(dtype: str, offset: float) -> None:
    ramp = (np.arange(32 * 32).reshape(1, 32, 32) + offset).astype(dtype)
    low, high = offset, offset + 1023
    image = grey_levels(FrameSource(ramp, 32, (low, high)))[0]
    assert torch.allclose(image.ravel(), torch.linspace(0, 1, 1024), atol=1e-4)
    sampled = sample_window(ramp)
    assert sampled[0] == pytest.approx(low + 5, abs=1)
    assert sampled[1] == pytest.approx(high - 5, abs=1)


def test_an_alpha_channel_says_nothing_of_the_window() -> None:
    colours = np.random.default_rng(0).integers(0, 50, (2, 16, 16, 4)).astype(np.uint8)
    colours[..., 3] = 255
    assert FrameSource(colours, 32).window == FrameSource(colours[..., :3], 32).window


def test_other_percentiles_can_be_sampled() -> None:
    ramp = np.arange(101, dtype=np.uint8).reshape(1, 1, 101)
    assert sample_window(ramp, (10, 90)) == (10, 90)


def test_a_part_of_the_frames_is_seen_as_if_it_were_the_whole() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (2, 40, 60)).astype(np.uint8)
    area = (10, 20, 34, 52)
    part = frames[:, 10:34, 20:52]
    for fit in ("stretch", "pad"):
        source = FrameSource(frames, 64, (0, 255), fit)
        alone = FrameSource(part, 64, (0, 255), fit)
        assert torch.equal(source[1, area], alone[1])
        seen = source.geometry.looking_at(area)
        yx = np.array([[10, 20], [33.5, 51]], np.float32)
        np.testing.assert_allclose(
            seen.to_model(yx), alone.geometry.to_model(yx - np.float32([10, 20]))
        )
        low_res = torch.randn(1, 1, 16, 16)
        logits = seen.logits_to_frame(low_res)
        assert logits.shape == (1, 1, 40, 60)
        inside = alone.geometry.logits_to_frame(low_res)
        assert torch.equal(logits[..., 10:34, 20:52], inside)
        assert int((logits > -1000).sum()) == inside.numel()
        mask = torch.zeros(1, 1, 40, 60)
        mask[..., 15:25, 25:40] = 1
        assert torch.equal(
            seen.mask_to_model(mask),
            alone.geometry.mask_to_model(mask[..., 10:34, 20:52]),
        )


@pytest.mark.parametrize("area", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 41, 5), (9, 5, 5, 9)])
def test_an_area_that_is_not_in_the_frames_is_refused(area: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="not a part of the frames, which are 40 x 60"):
        FrameSource(np.zeros((2, 40, 60)), 64)[0, area]


def low_res_of(geometry: Geometry, y: float, x: float, radius: float = 6) -> torch.Tensor:
    """(1, 1, S/4, S/4) logits of a disc at y, x of the frame, 1 a pixel inside of its edge."""
    rows, columns = np.indices(geometry.frame_shape)
    disc = radius - np.hypot(rows - y, columns - x)
    raised = torch.from_numpy(disc.astype(np.float32))[None, None].clamp(min=-16) + 16
    return torch.nn.functional.avg_pool2d(geometry.image_to_model(raised), 4) - 16


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_an_area_follows_an_object_that_leaves_its_middle(fit: Fit) -> None:
    seen = Geometry((200, 300), 128, fit, area=(40, 60, 100, 140))
    assert seen.following(low_res_of(seen, 70, 100)) == seen
    assert seen.following(low_res_of(seen, 74, 106)) == seen, "near its middle"
    top, left, bottom, right = seen.following(low_res_of(seen, 84, 100)).area or ()
    assert (bottom - top, right - left) == (60, 80)
    assert abs((top + bottom) / 2 - 84.5) <= 2 and abs((left + right) / 2 - 100.5) <= 2
    at_the_edge = replace(seen, area=(0, 0, 60, 80))
    assert at_the_edge.following(low_res_of(at_the_edge, 8, 8)) == at_the_edge
    assert seen.following(torch.full((1, 1, 32, 32), -1024.0)) == seen, "it is not there"
    whole = seen.looking_at(None)
    assert whole.following(low_res_of(whole, 8, 8)) == whole


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_what_was_seen_in_one_part_is_known_in_another(fit: Fit) -> None:
    """To within a pixel of the coarser one, and where it was not seen there is nothing."""
    whole = Geometry((200, 300), 256, fit, (2.0, 1.0))
    parts = [whole, whole.looking_at((40, 60, 110, 130)), whole.looking_at((50, 90, 130, 170))]
    for before in parts:
        for now in parts:
            found = now.low_res_as_seen(low_res_of(before, 80, 110, 14), before)
            assert found.shape == (1, 1, 64, 64)
            true = low_res_of(now, 80, 110, 14)
            area = max(int((true > 0).sum()), 1)
            assert int(((found > 0) != (true > 0)).sum()) <= 0.35 * area, (before.area, now.area)
    one, other = whole.looking_at((0, 0, 50, 50)), whole.looking_at((20, 20, 90, 90))
    seen = one.low_res_as_seen(torch.full((1, 1, 64, 64), 5.0), other)
    on_frame = one.logits_to_frame(seen)[0, 0] > 0
    assert on_frame[25:45, 25:45].all() and not on_frame[:18].any() and not on_frame[:, :18].any()
