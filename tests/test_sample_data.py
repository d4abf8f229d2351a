"""File > Open Sample: three images without a network, and downloads that are checked."""

from __future__ import annotations

import hashlib
import http.server
import io
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import tifffile

from napari_sam2 import sample_data
from napari_sam2.sample_data import PUBLIC_IMAGES, download


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a sample asked for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["brain", "body_ct", "moving_cells"])
def test_three_kinds_of_images_need_no_network(make_napari_viewer, name: str) -> None:
    (layer,) = make_napari_viewer().open_sample("napari-sam2", name)
    assert layer.data.ndim == 3 and layer.name
    low, high = layer.contrast_limits
    assert low < np.mean(layer.data[len(layer.data) // 2]) < high or name == "body_ct"


@pytest.mark.usefixtures("no_network")
def test_the_brain_comes_without_nilearn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    ((data, options, _),) = sample_data.brain()
    assert data.shape == (24, 96, 128)
    assert options["scale"] == pytest.approx((2.2, 2, 2), abs=1e-4)


def test_the_ct_is_in_hounsfield_units_with_the_liver_on_the_right() -> None:
    """In the picture, the patient's right is on the left."""
    ((data, options, _),) = sample_data.body_ct()
    assert data[0, 0, 0] < -900  # air
    liver = data[22, 70, 64]
    assert abs(int(liver) - 110) < 80
    assert options["contrast_limits"] == (-150, 250)
    assert abs(data[50, 75, 55:65].mean() + 840) < 60  # lung


# ---- downloads


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The URL of a server on this machine that sends a small TIFF, and what it was asked for."""
    picture = np.arange(4 * 2 * 8 * 8, dtype=np.uint16).reshape(4, 2, 8, 8)
    content = io.BytesIO()
    tifffile.imwrite(content, picture)
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Length", str(len(content.getvalue())))
            self.end_headers()
            is_broken = "broken" in self.path  # the line goes down in the middle
            self.wfile.write(content.getvalue()[: 100 if is_broken else None])

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path / "cache")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{httpd.server_port}/cells.tif"
        good = hashlib.sha256(content.getvalue()).hexdigest()
        public = replace(PUBLIC_IMAGES["cells"], url=url, sha256=good)
        monkeypatch.setitem(PUBLIC_IMAGES, "cells", public)
        yield url, asked
        httpd.shutdown()


def test_a_public_image_is_downloaded_once(server: tuple[str, list[str]]) -> None:
    for _ in range(2):
        first, second = sample_data.cells()
    assert server[1] == ["/cells.tif"]
    assert (first[1]["name"], second[1]["name"]) == (
        "cells in 3-D, membranes",
        "cells in 3-D, nuclei",
    )
    assert second[0].shape == (4, 8, 8)
    assert second[0][1, 0, 0] == 3 * 64
    assert second[1]["scale"] == (0.29, 0.26, 0.26)


def test_another_file_than_the_one_that_is_meant_is_not_kept(
    server: tuple[str, list[str]], tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="checksum differs"):
        download(replace(PUBLIC_IMAGES["cells"], sha256="0" * 64))
    assert list((tmp_path / "cache" / "samples").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.tif", "could not be downloaded"), ("broken.tif", "could not be downloaded")],
)
def test_a_download_that_fails_leaves_nothing_and_can_be_tried_again(
    server: tuple[str, list[str]], tmp_path: Path, name: str, message: str
) -> None:
    public = PUBLIC_IMAGES["cells"]
    with pytest.raises(OSError, match=message):
        download(replace(public, url=server[0].replace("cells.tif", name)))
    folder = tmp_path / "cache" / "samples"
    assert not folder.exists() or list(folder.iterdir()) == []
    assert tifffile.imread(download(public)).shape == (4, 2, 8, 8)


def test_without_a_network_one_sentence_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path)
    with pytest.raises(OSError, match="try again with a network"):
        download(replace(PUBLIC_IMAGES["head"], url="http://127.0.0.1:9/brain.tiff"))
