"""What is gained by looking coarsely at memories far from the object, and by looking so at all of
them.

    python -m benchmarks.memory_tokens [--model sam2.1-tiny] [--resolution N] [--objects 1 8]
        [--share 0.1] [--device cpu] [--rounds 7] [--json FILE]

The parts of a tracked frame are measured in turns, with a full memory bank for each object, and
added up: for a first pass, which encodes the frame, and for a second one, whose features are known.
Ratios are to the time with all tokens.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from typing import Any, get_args

import torch

from benchmarks import limit, report
from benchmarks.recipe import movie_frame, recipe_model
from sam2_engine.features import frames_at_once
from sam2_engine.frames import FrameSource
from sam2_engine.memory import MemoryTokens
from sam2_engine.model import SAM2
from sam2_engine.model.recalled import join, near_object, pick

WAYS: tuple[MemoryTokens, ...] = get_args(MemoryTokens)


def attention(model: SAM2, objects: int, way: MemoryTokens, share: float) -> limit.Work:
    """Laying out full memory banks and attending to them."""
    size = model.image_size
    source = FrameSource([movie_frame(0, size)], size, (0, 255))
    features = model.encode_image(source[0][None].to(model.device)).expand(objects)
    bank = limit.full_bank(model, 1)
    if way != "all":
        wide = math.sqrt(share) if way == "near" else 0.0
        picked = [pick(x, near_square(size // 16, wide, index)) for x, index in bank.memories]
        bank = bank._replace(picked=picked)

    def work() -> torch.Tensor:
        each = [model.memory_tokens(*bank) for _ in range(objects)]
        return model.attend_to_memory(features, join(each))

    return work


def near_square(side: int, wide: float, place: int) -> torch.Tensor:
    """What is near an object that is a square of so much of a map's side; at 0 there is none."""
    logits = torch.full((1, 1, 4 * side, 4 * side), -1.0)
    start, width = 4 * (place + 4), round(4 * side * wide)
    logits[..., start : start + width, start : start + width] = 1.0
    return near_object(logits)[0]


def measure(model: SAM2, objects: int, share: float, rounds: int) -> list[dict[str, Any]]:
    """A row for each way; seconds.

    share: of a frame, that an object takes; a square. Those of different frames lie one place on,
        as of an object that moves.
    """
    works = limit.parts(model, objects)
    del works[limit.ATTENTION]
    works |= {way: attention(model, objects, way, share) for way in WAYS}
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            seconds = limit.seconds(work, model.device)
            if turn:  # the first one warms up
                taken[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    encoder = medians.pop(limit.ENCODER) / frames_at_once(model)
    others = sum(seconds for name, seconds in medians.items() if name not in WAYS)
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        second = others + medians[way]
        sums = {"attention": medians[way], "first": encoder + second, "second": second}
        whole = rows[0] if rows else sums
        ratios = {f"ratio_{name}": value / whole[name] for name, value in sums.items()}
        rows.append({"objects": objects, "tokens": way, **sums, **ratios})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case; table on stdout, progress on stderr."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="benchmarks.memory_tokens",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    limit.add_arguments(parser)
    parser.add_argument("--share", type=float, default=0.1, help="of a frame, of each object")
    chosen = parser.parse_args(arguments)

    model = recipe_model(chosen.model, chosen.resolution, chosen.device)
    rows = []
    with torch.inference_mode():
        for objects in chosen.objects:
            rows += measure(model, objects, chosen.share, chosen.rounds)
            report.progress(f"{objects} objects: {rows[-1]['first']:.3f} s a tracked frame")
    head = ["objects", "tokens", "memory attention, ms", "ratio", "first pass, ms", "ratio"]
    head += ["second pass, ms", "ratio"]
    lines = []
    for row in rows:
        lines.append([row["objects"], row["tokens"]])
        for name in ("attention", "first", "second"):
            lines[-1] += [1e3 * row[name], row[f"ratio_{name}"]]
    print(report.table(head, lines))
    content = {
        "rows": rows,
        "model": chosen.model,
        "resolution": model.image_size,
        "share": chosen.share,
        "threads": torch.get_num_threads(),
    }
    report.write_json(chosen.json, content, "benchmarks.memory_tokens", arguments)


if __name__ == "__main__":
    main()
