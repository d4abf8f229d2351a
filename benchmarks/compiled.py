"""Whether torch.compile pays on this machine, part by part.

    python -m benchmarks.compiled [--model nano] [--resolution N] [--objects 1] [--device cpu]
        [--parts encoder decoder ...] [--rounds 9] [--json FILE]

Each part computes in turns as it is and compiled: time of the processor on a CPU, of the clock on a
graphics card; medians, and of the ratios too. The encoder computes as many frames as a pass encodes
together. Memory attention is never compiled by the engine; here it is, with a full memory bank.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks import limit, report
from benchmarks.recipe import recipe_model
from sam2_engine.model import SAM2, VARIANTS
from sam2_engine.model.compiled import FRAMES_AT_ONCE, CompiledParts, Part

_ATTENTION = "memory attention"
_NAMES = [*get_args(Part), _ATTENTION]


def works(model: SAM2, name: str, objects: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A part's work, as it is and compiled; the second is not compiled yet."""
    if name == _ATTENTION:
        plain = limit.parts(model, objects)[name]
        return plain, torch.compile(plain, dynamic=False)
    own = deepcopy(model)
    own.compiled = CompiledParts([name], model.image_size, report.progress)
    if name == "encoder":
        size = model.image_size
        images = torch.randn(FRAMES_AT_ONCE, 3, size, size, device=model.device)
        return lambda: model.encode_image(images), lambda: own.encode_image(images)
    return limit.parts(model, objects)[name], limit.parts(own, objects)[name]


def measure(model: SAM2, name: str, objects: int, rounds: int) -> dict[str, Any]:
    """A row: seconds to compile, seconds as it is and compiled, and their ratio."""
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter

    def seconds(work: Callable[[], Any]) -> float:
        limit.synchronise(model.device)
        begin = clock()
        work()
        limit.synchronise(model.device)
        return clock() - begin

    begin = time.perf_counter()
    plain, compiled = works(model, name, objects)
    compiled()
    limit.synchronise(model.device)
    waited = time.perf_counter() - begin
    plain()
    taken = [(seconds(plain), seconds(compiled)) for _ in range(rounds)]
    return {
        "part": name,
        "objects": objects,
        "wait": waited,
        "plain": statistics.median(one for one, _ in taken),
        "compiled": statistics.median(other for _, other in taken),
        "ratio": statistics.median(other / one for one, other in taken),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every part; table on stdout, progress on stderr."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="benchmarks.compiled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=VARIANTS, default="nano")
    parser.add_argument("--resolution", type=int, help="default: the model's own")
    parser.add_argument("--objects", type=int, nargs="+", default=[1])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--parts", choices=_NAMES, nargs="+", default=_NAMES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    chosen = parser.parse_args(arguments)

    model = recipe_model(chosen.model, chosen.resolution, chosen.device)
    rows = []
    with torch.inference_mode():
        for name in chosen.parts:
            for objects in chosen.objects[:1] if name == "encoder" else chosen.objects:
                rows.append(measure(model, name, objects, chosen.rounds))
                report.progress(f"{name}, {objects} objects: {rows[-1]['ratio']:.2f}")
    head = ["part", "objects", "to compile, s", "as it is, ms", "compiled, ms", "ratio"]
    lines = [
        [
            row["part"],
            row["objects"],
            row["wait"],
            1e3 * row["plain"],
            1e3 * row["compiled"],
            row["ratio"],
        ]
        for row in rows
    ]
    print(report.table(head, lines))
    content = {
        "rows": rows,
        "model": chosen.model,
        "resolution": model.image_size,
        "threads": torch.get_num_threads(),
    }
    report.write_json(chosen.json, content, "benchmarks.compiled", arguments)


if __name__ == "__main__":
    main()
