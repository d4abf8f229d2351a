"""Peak memory of tracking through short and long sequences; it must not grow with their length.

    python -m benchmarks.memory [--frames 50 500 2000] [--objects 1 8 32] [--model NAME]
        [--resolution N] [--device cpu] [--json FILE]

On a graphics card ("cuda") it is the card's memory. Each case runs in a process of its own. Frames
are computed when they are asked for. A resolution below the model's own takes less time, and makes
less of what could grow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import report

FRAME_SIZE = 256
CACHE_BYTES = 32 << 20
MIB = 1 << 20


class MovingDisks:
    """A sequence that is never held in memory: bright disks that circle on noise."""

    def __init__(self, frames: int, disks: int, size: int = FRAME_SIZE) -> None:
        self.frames, self.disks, self.size = frames, disks, size

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """(size, size) float32."""
        image = np.random.default_rng(index).normal(0, 0.1, (self.size, self.size))
        rows, columns = np.indices(image.shape)
        for disk in range(self.disks):
            y, x = self.centre(disk, index)
            image[np.hypot(rows - y, columns - x) <= self.radius] += 1
        return image.astype(np.float32)

    @property
    def radius(self) -> float:
        """In pixels."""
        return self.size / 20

    def centre(self, disk: int, index: int) -> tuple[float, float]:
        """y, x of a disk on a frame."""
        angle = 2 * np.pi * (disk / self.disks + index / 500)
        half = self.size / 2
        return half + 0.7 * half * float(np.sin(angle)), half + 0.7 * half * float(np.cos(angle))


def measure(
    model: str, frames: int, objects: int, resolution: int | None, device: str = "cpu"
) -> dict[str, Any]:
    """Track in this process and say how much memory it took: MiB before, and at its peak."""
    from sam2_engine.sequence import SequencePredictor
    from sam2_engine.weights import load_model

    source = MovingDisks(frames, objects)
    network = load_model(model, device, image_size=resolution)
    predictor = SequencePredictor(network, source, cache_bytes=CACHE_BYTES)
    for disk in range(objects):
        y, x = source.centre(disk, 0)
        r = source.radius
        predictor.set_prompts(disk + 1, 0, box=(y - r, x - r, y + r, x + r))
    before = peak_memory(device)
    started = time.perf_counter()
    for result in predictor.propagate():
        result.labels()
    seconds = time.perf_counter() - started
    peak = peak_memory(device)
    return {
        "frames": frames,
        "objects": objects,
        "resolution": network.image_size,
        "before_mib": before / MIB,
        "peak_mib": peak / MIB,
        "cache_mib": predictor.features.nbytes / MIB,
        "seconds_per_frame": seconds / frames,
    }


def peak_memory(device: str = "cpu") -> int:
    """The largest resident size of this process so far, or what it had of a card, in bytes."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_apart(
    model: str, frames: int, objects: int, resolution: int | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """The same in a new process, so that no case sees another's memory."""
    command = [sys.executable, "-m", "benchmarks.memory", "--model", model, "--device", device]
    command += ["--case", str(frames), str(objects)]
    command += ["--resolution", str(resolution)] if resolution else []
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    case: dict[str, Any] = json.loads(done.stdout)
    return case


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case; table on stdout, progress on stderr."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[50, 500, 2000])
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--model", default="nano", help="name or checkpoint (default: nano)")
    parser.add_argument("--resolution", type=int, help="of the input (default: the model's own)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.case:
        print(json.dumps(measure(chosen.model, *chosen.case, chosen.resolution, chosen.device)))
        return

    rows = []
    for objects in chosen.objects:
        for frames in chosen.frames:
            row = measure_apart(chosen.model, frames, objects, chosen.resolution, chosen.device)
            rows.append(row)
            report.progress(f"{frames} frames, {objects} objects: {row['peak_mib']:.0f} MiB")
    columns = {
        "objects": "objects",
        "frames": "frames",
        "resolution": "resolution",
        "before, MiB": "before_mib",
        "peak, MiB": "peak_mib",
        "of it features, MiB": "cache_mib",
        "s/frame": "seconds_per_frame",
    }
    lines = [[row[key] for key in columns.values()] for row in rows]
    print(report.table(list(columns), lines))
    content = {"rows": rows, "model": chosen.model}
    report.write_json(chosen.json, content, "benchmarks.memory", arguments)


if __name__ == "__main__":
    main()
