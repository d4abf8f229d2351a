"""Speed and equality of this engine and the official code (PyPI sam2==1.1.0), side by side.

    python -m benchmarks.against_official [--size tiny] [--resolution 512 1024] [--objects 1 4 8]
        [--frames 12] [--device cpu] [--json FILE]

Both have the same random weights, frames and clicks, and take turns frame by frame in one process,
so that whatever else the machine does slows both alike. sam2 needs torchvision, which this project
does not; so it has an environment of its own. In this repository's top folder:

    python -m venv ../official
    ../official/bin/pip install torch==2.14.1 torchvision==0.29.1
    ../official/bin/pip install setuptools wheel safetensors huggingface_hub platformdirs scipy tqdm
    SAM2_BUILD_CUDA=0 ../official/bin/pip install --no-build-isolation sam2==1.1.0
    ../official/bin/python -m benchmarks.against_official
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.recipe import movie_frame, recipe_weights
from sam2_engine.frames import FrameSource
from sam2_engine.model import SAM2, VARIANTS, ModelConfig
from sam2_engine.sequence import SequencePredictor

CONFIGS = {"tiny": "t", "small": "s", "base-plus": "b+", "large": "l"}
SEED, OBJ_BIAS = 0, 2.0
CLICKS = 5
"""How often a click on a known frame is timed."""
MIB = 1 << 20
Logits = NDArray[np.float32]
T = TypeVar("T")


class Engine(Protocol):
    """What both are asked for. Frames are as large as the model's input, so that resizing them is
    no part of the comparison.
    """

    def click(self, obj: int, yx: tuple[float, float]) -> Any:
        """Click on frame 0; a further click on an object corrects its mask."""

    def propagate(self) -> Iterator[Logits]:
        """(N, H, W) logits of each frame, from the first on."""


class Official:
    """The official video predictor as published, with three settings for the sake of equality:
    corrected frames are conditioned on; holes are not filled, which needs a CUDA extension; and
    memories are kept in float32 where all is computed in it.
    """

    def __init__(self, config: ModelConfig, size: str, frames: Sequence[Any], device: str) -> None:
        os.environ.setdefault("TQDM_DISABLE", "1")
        import sam2.sam2_video_predictor as published
        from sam2.build_sam import build_sam2_video_predictor

        side = config.image_size
        self.predictor = build_sam2_video_predictor(
            f"configs/sam2.1/sam2.1_hiera_{CONFIGS[size]}.yaml",
            device=device,
            hydra_overrides_extra=[
                f"++model.image_size={side}",
                "++model.add_all_frames_to_correct_as_cond=true",
            ],
        )
        self.predictor.fill_hole_area = 0
        _fill(self.predictor)
        source = FrameSource(frames, side, window=(0, 255))
        images = torch.stack([source[t] for t in range(len(source))])
        # It reads a folder of JPEGs; here it gets the pixels.
        published.load_video_frames = lambda **_: (images.to(device), side, side)
        self.autocast = device != "cpu"
        if not self.autocast:
            published.torch = _Float32Torch()
        with self._precision():
            self.state = self.predictor.init_state("")

    def _precision(self) -> torch.autocast:
        """bfloat16 on a graphics card, as in its notebooks."""
        return torch.autocast("cuda", torch.bfloat16, enabled=self.autocast)

    def click(self, obj: int, yx: tuple[float, float]) -> Any:
        with self._precision():
            return self.predictor.add_new_points_or_box(
                self.state, 0, obj, points=[yx[::-1]], labels=[1]
            )[2]

    def propagate(self) -> Iterator[Logits]:
        steps = self.predictor.propagate_in_video(self.state)
        while True:
            with self._precision():  # not around a yield: the other engine's turn is none of its
                step = next(steps, None)
            if step is None:
                return
            yield step[2][:, 0].float().cpu().numpy()


class _Float32Torch:
    """torch, with float32 for the type that memories are kept in."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class Ours:
    """This engine."""

    def __init__(self, config: ModelConfig, frames: Sequence[Any], device: str) -> None:
        model = SAM2(config)
        _fill(model)
        precision = torch.float32 if device == "cpu" else torch.bfloat16
        model = model.eval().requires_grad_(False).to(device, precision)
        self.predictor = SequencePredictor(model, frames, window=(0, 255))
        self.answers: dict[int, Logits] = {}

    def click(self, obj: int, yx: tuple[float, float]) -> Any:
        self.predictor.set_prompts(obj, 0, points=[yx], mask_input=self.answers.get(obj))
        result = self.predictor.predict(0, [obj])
        self.answers[obj] = result.low_res[0]
        return result.logits

    def propagate(self) -> Iterator[Logits]:
        for result in self.predictor.propagate(direction="forward"):
            yield result.logits


def _fill(model: torch.nn.Module) -> None:
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(recipe_weights(shapes, SEED, OBJ_BIAS))


class Meter:
    """Time and memory of what one of the two does, while the other one does other things."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.held = self.peak = 0
        """Bytes in use now, and at most; 0 where the system does not tell."""

    def run(self, work: Callable[[], T]) -> tuple[T, float]:
        """The result, and the seconds that it took."""
        before = self._start()
        started = time.perf_counter()
        result = work()
        if self.device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        peak = self._read()[1]
        self.peak = max(self.peak, self.held + peak - before)
        self.held += self._start() - before
        return result, seconds

    def _start(self) -> int:
        """Bytes in use, without what was freed; the peak is counted anew."""
        gc.collect()
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return self._read()[0]

    def _read(self) -> tuple[int, int]:
        """Bytes in use now, and at the peak since the start."""
        if self.device != "cpu":
            return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        if sys.platform != "linux":
            return 0, 0
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak


def compare(size: str, resolution: int, objects: int, frames: int, device: str) -> dict[str, Any]:
    """One row: seconds a tracked frame and a click, MiB at the peak, largest difference."""
    config = VARIANTS[f"sam2.1-{size}"].resized(resolution)
    movie = [movie_frame(t, resolution) for t in range(frames)]
    meters = {"official": Meter(device), "ours": Meter(device)}
    makers: dict[str, Callable[[], Engine]] = {
        "official": lambda: Official(config, size, movie, device),
        "ours": lambda: Ours(config, movie, device),
    }
    engines = {name: meters[name].run(make)[0] for name, make in makers.items()}
    places = [
        (resolution * (0.4 + 0.25 * np.sin(k)), resolution * (0.3 + 0.4 * k / max(objects, 8)))
        for k in range(objects)
    ]

    def click(name: str, k: int) -> float:
        return meters[name].run(lambda: engines[name].click(k + 1, places[k]))[1]

    for k in range(objects):
        for name in engines:
            click(name, k)
    rounds = [{name: click(name, 0) for name in engines} for _ in range(CLICKS)]
    first, difference = side_by_side(engines, meters)
    second, again = side_by_side(engines, meters)
    row: dict[str, Any] = {"size": size, "resolution": resolution, "objects": objects}
    for key, seconds in (("first", first), ("second", second)):
        row |= {f"{name}_{key}": seconds[name] for name in engines}
        row[f"ratio_{key}"] = seconds["ours"] / seconds["official"]
    for name in engines:
        row[f"click_{name}"] = statistics.median(times[name] for times in rounds)
    for name, meter in meters.items():
        row[f"peak_{name}_mib"] = meter.peak / MIB if meter.peak else None
    return row | {"max_abs_diff": max(difference, again), "frames": frames}


def side_by_side(
    engines: dict[str, Engine], meters: dict[str, Meter]
) -> tuple[dict[str, float], float]:
    """Seconds a tracked frame of each, and the largest difference between their logits.

    The first frame, which is prompted and not tracked, is not counted; but on a graphics card its
    time is, in which this engine has begun to encode the next ones.
    """
    skipped = 0 if any(meter.device == "cuda" for meter in meters.values()) else 1
    passes = {name: engine.propagate() for name, engine in engines.items()}
    spent: dict[str, list[float]] = {name: [] for name in engines}
    difference = 0.0
    while True:
        logits = {}
        for name, results in passes.items():
            result, seconds = meters[name].run(lambda results=results: next(results, None))
            if result is None:
                return {
                    name: sum(times[skipped:]) / (len(times) - 1) for name, times in spent.items()
                }, difference
            logits[name] = result
            spent[name].append(seconds)
        difference = max(difference, float(np.abs(logits["official"] - logits["ours"]).max()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case; table on stdout, progress on stderr."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="benchmarks.against_official",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=CONFIGS, default="tiny")
    parser.add_argument("--resolution", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    chosen = parser.parse_args(arguments)
    if importlib.util.find_spec("sam2") is None:
        parser.error(f"sam2 is not in this environment.\n\n{__doc__}")

    rows = []
    for resolution in chosen.resolution:
        for objects in chosen.objects:
            row = compare(chosen.size, resolution, objects, chosen.frames, chosen.device)
            report.progress(
                f"{resolution}, {objects} objects: {row['ratio_first']:.2f} of the official time, "
                f"{row['ratio_second']:.2f} once features are known, "
                f"differing by {row['max_abs_diff']:.1e}"
            )
            rows.append(row)
    keys = [key for key in rows[0] if key != "max_abs_diff"]
    lines = [[*(row[key] for key in keys), f"{row['max_abs_diff']:.1e}"] for row in rows]
    print(report.table([*(key.replace("_", " ") for key in keys), "max abs diff"], lines))
    content = {"rows": rows, "threads": torch.get_num_threads()}
    report.write_json(chosen.json, content, "benchmarks.against_official", arguments)


if __name__ == "__main__":
    main()
