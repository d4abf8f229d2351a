"""Image features on disk: found again by the next session, bounded, and never trusted blindly."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from models import small_model

from napari_sam2.feature_files import SETTING, FeatureFiles, feature_files
from napari_sam2.lazy_model import LazyModel
from sam2_engine.model import SAM2
from sam2_engine.sequence import SequencePredictor

FRAMES = np.random.default_rng(0).random((3, 40, 50), np.float32)


@pytest.fixture(scope="module")
def model() -> SAM2:
    return small_model()


def masks(model: SAM2, store: FeatureFiles | None, window=(0.0, 1.0), **options):
    predictor = SequencePredictor(model, FRAMES, window=window, store=store, **options)
    predictor.set_prompts(1, 0, box=(10, 10, 30, 30))
    return [result.low_res for result in predictor.propagate()]


def counted(model: SAM2, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every frame that is encoded."""
    encode, calls = model.encode_image, []
    monkeypatch.setattr(
        model, "encode_image", lambda images: calls.extend([1] * len(images)) or encode(images)
    )
    return calls


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def test_the_next_session_encodes_nothing_and_finds_the_same(
    model: SAM2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(model, monkeypatch)
    first = masks(model, FeatureFiles("sum", 1 << 30, tmp_path))
    assert len(calls) == 3 and len(files(tmp_path)) == 3
    again = masks(model, FeatureFiles("sum", 1 << 30, tmp_path))
    assert len(calls) == 3
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))


def test_another_window_or_model_encodes(
    model: SAM2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(model, monkeypatch)
    masks(model, FeatureFiles("sum", 1 << 30, tmp_path))
    masks(model, FeatureFiles("sum", 1 << 30, tmp_path), window=(0.0, 0.5))
    assert len(calls) == 6
    masks(model, FeatureFiles("another", 1 << 30, tmp_path))
    assert len(calls) == 9


def test_a_damaged_file_is_encoded_anew(
    model: SAM2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = masks(model, FeatureFiles("sum", 1 << 30, tmp_path))
    cut, empty, _ = files(tmp_path)
    cut.write_bytes(cut.read_bytes()[:-100])
    empty.write_bytes(b"")
    calls = counted(model, monkeypatch)
    again = masks(model, FeatureFiles("sum", 1 << 30, tmp_path))
    assert len(calls) == 2
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))


def test_files_go_by_age_and_then_by_size(model: SAM2, tmp_path: Path) -> None:
    masks(model, FeatureFiles("sum", 1 << 30, tmp_path))
    for age, path in enumerate(files(tmp_path)):
        used = time.time() - age * 24 * 3600
        os.utime(path, (used, used))
    newest, middle, _ = files(tmp_path)
    killed = tmp_path / ".abc.safetensors.0123.part"
    killed.write_bytes(b"half of it")
    os.utime(killed, (0, 0))
    FeatureFiles("sum", 1 << 30, tmp_path, max_days=1.5)
    assert files(tmp_path) == [newest, middle] and not killed.exists()
    FeatureFiles("sum", newest.stat().st_size, tmp_path)
    assert files(tmp_path) == [newest]


def test_a_session_keeps_within_its_size(model: SAM2, tmp_path: Path) -> None:
    masks(model, FeatureFiles("sum", 1 << 30, tmp_path))
    size = files(tmp_path)[0].stat().st_size
    store = FeatureFiles("sum", 2 * size, tmp_path)
    masks(model, store, window=(0.0, 0.5))
    assert sum(path.stat().st_size for path in files(tmp_path)) == 2 * size


def test_the_setting(model: SAM2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureFiles.__init__, "__defaults__", (tmp_path, 30))
    monkeypatch.delenv(SETTING, raising=False)
    assert feature_files(LazyModel(model)) is None
    monkeypatch.setenv(SETTING, "much")
    with pytest.raises(ValueError, match="gigabytes, not 'much'"):
        feature_files(LazyModel(model))
    monkeypatch.setenv(SETTING, "0.5")
    assert feature_files(LazyModel(model)) is not None


def test_half_precision_keeps_twice_as_many_and_masks_do_not_depend_on_it(model: SAM2) -> None:
    full = SequencePredictor(model, FRAMES)
    full.features[0]
    half = SequencePredictor(model, FRAMES, cache_dtype=torch.float16)
    half.features[0]
    assert 2 * half.features.nbytes == full.features.nbytes
    assert half.features[0].stride4.dtype == torch.float32
    kept, not_kept = (
        masks(model, None, cache_dtype=torch.float16, cache_bytes=size) for size in (1 << 30, 0)
    )
    assert all(np.array_equal(*pair) for pair in zip(kept, not_kept, strict=True))
    exact = masks(model, None)
    assert all(np.allclose(a, b, atol=0.05 * np.ptp(b)) for a, b in zip(kept, exact, strict=True))
