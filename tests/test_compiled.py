"""torch.compile: the same masks, few shapes, a word before each wait, and no need of a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tifffile
import torch
from models import small_model
from test_sequence import movie
from torch._dynamo.utils import counters

from napari_sam2 import batch, batch_worker
from napari_sam2.cli import main
from sam2_engine import weights
from sam2_engine.model import SAM2, compile_model
from sam2_engine.model.compiled import FRAMES_AT_ONCE, Part
from sam2_engine.sequence import SequencePredictor
from sam2_engine.weights import load_model

PROMPTS: dict[int, dict[str, Any]] = {
    1: {"points": [(25, 22)]},
    2: {"points": [(40, 58)]},
    5: {"points": [(25, 24)]},
}


def copy_of(model: SAM2) -> SAM2:
    """Of its own, to be compiled."""
    own = SAM2(model.config)
    own.load_state_dict(model.state_dict())
    return own.eval().requires_grad_(False)


def masks(model: SAM2, objects: int, length: int = 8, closely: bool = False) -> np.ndarray:
    p = SequencePredictor(model, movie(length))
    for i in list(PROMPTS)[:objects]:
        ((y, x),) = PROMPTS[i]["points"]
        area = (y - 16, x - 16, y + 16, x + 16) if closely else None
        p.set_prompts(i, 0, **PROMPTS[i], area=area)
    return np.stack([result.low_res for result in p.propagate()])


@pytest.fixture
def without_compiler(monkeypatch) -> None:
    """Everything of torch.compile but the writing of code."""
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def test_shapes_are_few_and_told_of(without_compiler) -> None:
    told: list[str] = []
    plain, model = small_model(), copy_of(small_model())
    torch._dynamo.config.cache_size_limit = 1  # PyTorch's own is soon reached, too
    compile_model(model, get_args(Part), told.append)
    sizes = {"encoder": "4 frames", "decoder": "1 object", "memory encoder": "1 object"}
    for part, size in sizes.items():
        what = f"the {part} for 128 x 128, {size}"
        assert told[0].startswith(f"Compiling {what}: the first run only")
        assert told[1].startswith(f"Compiled {what} in ")
        del told[:2]
    for objects, new in ((1, 0), (3, 4), (3, 0)):  # three are filled up to four
        found = masks(model, objects)
        np.testing.assert_allclose(found, masks(plain, objects), atol=1e-3)
        assert len(told) == new and all("4 objects" in sentence for sentence in told)
        told.clear()
    np.testing.assert_allclose(masks(model, 3, 8, True), masks(plain, 3, 8, True), atol=1e-3)
    assert len(told) == 4 and all("4 objects, each in its own area" in each for each in told)
    # Of the encoder, and three of each of the others: none was compiled without a word, and all of
    # those that were told of.
    assert counters["stats"]["unique_graphs"] == 7


def test_what_a_person_waits_for_is_not_compiled(without_compiler) -> None:
    """A click on a frame, whose shapes change with the prompts."""
    told: list[str] = []
    model = copy_of(small_model())
    compile_model(model, get_args(Part), told.append)
    told.clear()
    p, plain = (SequencePredictor(each, movie(3)) for each in (model, small_model()))
    for each in (p, plain):
        each.set_prompts(1, 1, box=(15, 10, 35, 30), points=[(25, 20)])
    np.testing.assert_array_equal(p.predict(1).low_res, plain.predict(1).low_res)
    assert not told


def test_on_a_processor_only_the_decoder_is_compiled(without_compiler) -> None:
    told: list[str] = []
    model = load_model("nano", device="cpu", image_size=64, compile=True, tell=told.append)
    assert len(told) == 2 and all("the decoder for 64 x 64" in sentence for sentence in told)
    assert model.compiled is not None


def test_without_a_compiler_the_model_runs_as_it_is(monkeypatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", fail)
    told: list[str] = []
    model = copy_of(small_model())
    compile_model(model, get_args(Part), told.append)
    assert told[1:] == [
        "PyTorch cannot compile the model here, so it runs as it is, with the same masks: "
        "No working C++ compiler found"
    ]
    np.testing.assert_array_equal(masks(model, 3), masks(small_model(), 3))
    assert len(told) == 2


@pytest.mark.slow
def test_a_machine_without_any_compiler(tmp_path: Path) -> None:
    script = """
import torch
from sam2_engine.weights import load_model
model = load_model("nano", device="cpu", image_size=64, compile=True)
with torch.inference_mode():
    features = model.encode_image(torch.zeros(1, 3, 64, 64))
    start = torch.zeros(1, 1, 16, 16)
    found = model.decode_masks(features, features.stride16, mask_input=start, multimask=True)
print(tuple(found.low_res.shape))
"""
    hidden = {
        "PATH": str(tmp_path),
        "CXX": "no-such-compiler",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, env=os.environ | hidden, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip() == "(1, 1, 16, 16)", done.stderr
    assert done.stderr.count("PyTorch cannot compile the model here") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++", "cl"))), reason="no C++ compiler"
)
@pytest.mark.parametrize("part", get_args(Part))
def test_compiled_parts_give_the_same_masks(part: Part) -> None:
    told: list[str] = []
    plain = small_model(draws_prompts=part == "decoder")
    model = copy_of(plain)
    compile_model(model, [part], told.append)
    found, expected = (masks(each, 1, 1 + FRAMES_AT_ONCE) for each in (model, plain))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert [sentence.split()[0] for sentence in told] == ["Compiling", "Compiled"]


@pytest.mark.parametrize("is_asked", [False, True])
@pytest.mark.parametrize("command", ["segment", "find", "batch"])
def test_the_command_line_asks_for_it(monkeypatch, tmp_path, command: str, is_asked: bool) -> None:
    class Asked(Exception):
        pass

    def load(name: str, *args: Any, compile: bool, tell: Any, **options: Any) -> Any:
        raise Asked(f"{name} {compile} {tell.__name__}")

    def run(jobs: Any, settings: Any, **options: Any) -> Any:
        return batch_worker._model("nano", settings).get()

    monkeypatch.setattr(weights, "load_model", load)
    monkeypatch.setattr(batch, "run_batch", run)
    monkeypatch.setenv("NAPARI_SAM2_DEBUG", "1")
    images = tmp_path / "images"
    images.mkdir()
    tifffile.imwrite(images / "image.tif", movie(3), photometric="minisblack")
    (tmp_path / "prompts.csv").write_text("image,object,z,y,x\nimage.tif,1,0,25,22\n")
    arguments = {
        "segment": ["images/image.tif", "-o", "out.tif", "--point", "1:0,25,22"],
        "find": ["images/image.tif", "-o", "out.tif"],
        "batch": ["images", "-o", "out", "--prompts", "prompts.csv"],
    }[command]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Asked, match=f"nano {is_asked} say_nothing"):
        main([command, *arguments, "--quiet", *(["--compile"] if is_asked else [])])
