"""The demo makes its three files from a real volume, with the affine kept."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from napari_sam2 import demo


@pytest.mark.slow
def test_demo_makes_image_labels_and_picture(
    tmp_path: Path,
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a model that is quick; what nano finds is looked at in `make demo`."""
    monkeypatch.setattr(demo, "has_display", lambda: False)
    demo.main(["--out", str(tmp_path / "out"), "--model", checkpoint])
    image = nibabel.load(tmp_path / "out" / "mni152_t1.nii.gz")
    labels = nibabel.load(tmp_path / "out" / "mni152_labels.nii.gz")
    assert image.shape == labels.shape == (197, 233, 189)
    np.testing.assert_array_equal(image.affine, labels.affine)
    assert labels.get_data_dtype() == np.uint8
    assert set(np.unique(labels.dataobj)) <= {0, *demo.OBJECTS}
    assert (tmp_path / "out" / "mni152_labels.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for text in ("mni152_labels.nii.gz", "Follow 3 objects through 45 slices", "cerebellum"):
        assert text in printed


def test_display_is_not_opened_on_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setenv("CI", "true")
    assert not demo.has_display()
    monkeypatch.delenv("CI")
    assert demo.has_display()
