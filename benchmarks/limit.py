"""How near each part of the engine comes to what this machine can do.

    python -m benchmarks.limit [--model sam2.1-tiny] [--resolution N] [--objects 1 8]
        [--device cpu] [--rounds 7] [--json FILE]

The limit of a part is its floating-point operations over the rate at which this machine multiplies
large matrices, measured in turns with it. Only products count as operations (matrices, attention,
convolutions); norms, activations and copies are free in the limit, so nothing reaches it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from benchmarks.recipe import movie_frame, recipe_model
from sam2_engine.features import frames_at_once
from sam2_engine.frames import FrameSource
from sam2_engine.memory import Recall
from sam2_engine.model import SAM2, VARIANTS
from sam2_engine.model.compiled import FRAMES_AT_ONCE
from sam2_engine.model.layers import linear
from sam2_engine.sequence import SequencePredictor

_MATRIX, _MATRIX_ON_A_CARD = 2048, 8192  # smaller ones end before a card is full of them
_FIRST, _TIMED = 7, 8
"""Frames tracked before, so that the timed ones see a full memory bank; as many are timed as make
up whole batches of those that are encoded together."""
ENCODER, ATTENTION = "encoder", "memory attention"
Work = Callable[[], Any]


def parts(model: SAM2, objects: int) -> dict[str, Work]:
    """The work on one tracked frame by part, with a full memory bank for each object; but of the
    encoder, the work on all frames that a pass encodes together.
    """
    config, device = model.config, model.device
    side = config.image_size // 16
    source = FrameSource([movie_frame(0, config.image_size)], config.image_size, (0, 255))
    image = source[0][None].to(device)
    images = image.expand(frames_at_once(model), -1, -1, -1).contiguous()
    features = model.encode_image(image).expand(objects)
    recalled = model.memory_tokens(*full_bank(model, objects))
    conditioned = model.attend_to_memory(features, recalled)
    mask_input = None
    if config.draws_prompts:
        mask_input = torch.zeros(objects, 1, 4 * side, 4 * side, device=device)
    decoded = model.decode_masks(features, conditioned, mask_input=mask_input, multimask=True)

    def encode_memory() -> Any:
        high_res = model.upscale(decoded.low_res)
        return model.encode_memory(features, high_res, decoded.object_score, binarise=False)

    return {
        ENCODER: lambda: model.encode_image(images),
        ATTENTION: lambda: model.attend_to_memory(features, recalled),
        "decoder": lambda: model.decode_masks(
            features, conditioned, mask_input=mask_input, multimask=True
        ),
        "memory encoder": encode_memory,
    }


def full_bank(model: SAM2, objects: int) -> Recall:
    """Of random numbers."""
    config = model.config
    like = torch.zeros((), device=model.device, dtype=model.dtype)
    side = config.image_size // 16
    memory = torch.randn_like(like.expand(objects, config.memory_dim, side, side))
    pointer = torch.randn_like(like.expand(objects, config.d_model))
    memories = [(memory, index) for index in reversed(range(config.num_memories))]
    return Recall(memories, [(pointer, float(age)) for age in range(config.max_pointers)], None)


def operations(work: Work) -> int:
    """Floating-point operations of all products in it; one multiplication and addition is two."""
    counter = FlopCounterMode(display=False, custom_mapping=_custom_operations())
    with counter:
        work()
    return int(counter.get_total_flops())


def _custom_operations() -> dict[Any, Any]:
    """How to count what torch's counter does not know."""

    def attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * prod(q[:-1]) * k[-2] * (q[-1] + v[-1])

    def product(x: Sequence[int], *others: Any, **_: Any) -> int:
        adds = others[1] is not None and len(others[1]) == 2  # x, what is added, the weight
        weight = others[1] if adds else others[0]
        return 2 * prod(x) * int(weight[0])

    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        known[torch.ops.mkldnn._linear_pointwise] = product
    return known


def seconds(work: Work, device: torch.device) -> float:
    """How long it takes, once."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Wait until a graphics card has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(model: SAM2, objects: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each part: operations, seconds at this machine's rate, and seconds it takes."""
    device = model.device
    side = _MATRIX if device.type == "cpu" else _MATRIX_ON_A_CARD
    matrix = torch.randn(side, side, device=device, dtype=model.dtype)
    rows = []
    for name, work in parts(model, objects).items():
        share = frames_at_once(model) if name == ENCODER else 1
        count = operations(work) // share
        at_limit, taken = [], []
        for turn in range(rounds + 1):
            multiplying = seconds(lambda: linear(matrix, matrix), device)
            working = seconds(work, device) / share
            if turn:  # the first one warms up
                at_limit.append(count * multiplying / (2 * side**3))
                taken.append(working)
        rows.append(_row(name, objects, count, at_limit, taken))
    tracking = rows[1:]
    whole = _tracked_frame(model, objects)
    total = {key: sum(row[key] for row in rows) for key in ("operations", "limit", "seconds")}
    tracked = {key: sum(row[key] for row in tracking) for key in total}
    other = {"operations": 0, "limit": 0.0, "seconds": whole - total["seconds"]}
    for name, sums in (
        ("tracking (the three before)", tracked),
        ("everything else", other),
        ("a tracked frame", total | {"seconds": whole}),
    ):
        ratio = sums["seconds"] / sums["limit"] if sums["limit"] else None
        rows.append({"part": name, "objects": objects, **sums, "ratio": ratio})
    return rows


def _row(
    name: str, objects: int, count: int, at_limit: Sequence[float], taken: Sequence[float]
) -> dict[str, Any]:
    ratios = [working / limit for working, limit in zip(taken, at_limit, strict=True)]
    return {
        "part": name,
        "objects": objects,
        "operations": count,
        "limit": statistics.median(at_limit),
        "seconds": statistics.median(taken),
        "ratio": statistics.median(ratios),
    }


def _tracked_frame(model: SAM2, objects: int) -> float:
    """Mean seconds from one tracked frame to the next, encoding it too."""
    size = model.image_size
    ahead = 2 * FRAMES_AT_ONCE  # go on as long as is timed, so that as many are encoded meanwhile
    frames = [movie_frame(t, size) for t in range(1 + _FIRST + _TIMED + ahead)]
    predictor = SequencePredictor(model, frames, window=(0, 255))
    for k in range(objects):
        place = (size * 0.4, size * (0.3 + 0.4 * k / max(objects, 8)))
        predictor.set_prompts(k + 1, 0, points=[place])
    results = predictor.propagate(direction="forward")
    for _ in range(1 + _FIRST):
        next(results)
    return statistics.fmean(seconds(lambda: next(results), model.device) for _ in range(_TIMED))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, how it is measured, and where the figures go."""
    parser.add_argument("--model", choices=VARIANTS, default="sam2.1-tiny")
    parser.add_argument("--resolution", type=int, help="default: the model's own")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here too")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case; table on stdout, progress on stderr."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="benchmarks.limit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    chosen = parser.parse_args(arguments)

    model = recipe_model(chosen.model, chosen.resolution, chosen.device)
    rows = []
    with torch.inference_mode():
        for objects in chosen.objects:
            rows += measure(model, objects, chosen.rounds)
            report.progress(f"{objects} objects: {rows[-1]['seconds']:.3f} s a tracked frame")
    head = ["objects", "part", "GFLOP", "at the limit, ms", "measured, ms", "ratio"]
    lines = [
        [
            row["objects"],
            row["part"],
            row["operations"] / 1e9,
            1e3 * row["limit"],
            1e3 * row["seconds"],
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
    report.write_json(chosen.json, content, "benchmarks.limit", arguments)


if __name__ == "__main__":
    main()
