"""torch.compile, for what is computed again and again with arrays of the same shapes.

Of a pass through a sequence that is the encoder, the decoder and the memory encoder. Memory
attention is left as it is: its shapes change on each of the first frames, and nearly all of it is
large products of matrices, for which there is nothing better to be written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from sam2_engine.full_memory import card_is_full
from sam2_engine.model.hiera import stretching

if TYPE_CHECKING:
    from sam2_engine.model.sam2 import SAM2

Part = Literal["encoder", "decoder", "memory encoder"]
Tell = Callable[[str], None]
"""Is given a sentence for the person who waits."""
Compute = Callable[..., tuple[Tensor, ...]]
FRAMES_AT_ONCE = 4
"""So many frames are encoded together in a pass, where the device has room for them."""
_MOST_SHAPES = 64  # of each part; eleven are met by one model, with up to 32 objects
_PARTS_ON_A_PROCESSOR: tuple[Part, ...] = ("decoder",)
"""There the others are no quicker compiled, or slower, and take minutes to compile."""


def say(sentence: str) -> None:
    """The usual way to tell: on the console, beside what is the program's output."""
    print(sentence, file=sys.stderr, flush=True)


def say_nothing(sentence: str) -> None:
    """For those who do not want to be told."""


class CompiledParts:
    """Runs parts of a model compiled, each for the shapes that it has met.

    A shape is compiled when it is met first, which is told. Numbers of objects are filled up to
    powers of two, so that there are few shapes, for those that share a frame and for those looked
    at each in its own area; of the encoder there is one, ``FRAMES_AT_ONCE``.
    Where PyTorch finds no compiler the parts run as they are, which is told, too.
    """

    def __init__(self, parts: Collection[Part], image_size: int, tell: Tell = say) -> None:
        self._parts = set(parts)
        self._size = image_size
        self._tell = tell
        self._compiled: dict[Part, Compute] = {}
        self._met: set[tuple[Part, int, bool]] = set()

    def run(
        self, part: Part, compute: Compute, *inputs: Tensor | bool | None
    ) -> tuple[Tensor, ...]:
        """What ``compute`` makes of the inputs; their first axis is frames or objects."""
        count = max(len(each) for each in inputs if isinstance(each, Tensor))
        if part not in self._parts or (part == "encoder" and count != FRAMES_AT_ONCE):
            return compute(*inputs)
        filled = 1 << (count - 1).bit_length()
        like = [_filled(each, filled) if isinstance(each, Tensor) else each for each in inputs]
        found = self._compute(part, compute, filled, like)
        if found is None:
            return compute(*inputs)
        return tuple(each[:count] for each in found) if filled > count else found

    def _compute(
        self, part: Part, compute: Compute, count: int, inputs: list[Tensor | bool | None]
    ) -> tuple[Tensor, ...] | None:
        """None where it cannot be compiled."""
        first = inputs[0]
        is_apart = part != "encoder" and isinstance(first, Tensor) and len(first) > 1
        if (part, count, is_apart) in self._met:
            return self._compiled[part](*inputs)
        unit = "frame" if part == "encoder" else "object"
        what = (
            f"the {part} for {self._size} x {self._size}, {count} {unit}{'s' if count > 1 else ''}"
            f"{', each in its own area' if is_apart else ''}"
        )
        self._tell(f"Compiling {what}: the first run only, it takes up to some minutes.")
        begin = time.perf_counter()
        try:
            if part not in self._compiled:
                # Not where it is defined: that alone makes every start more than a second longer.
                torch.compiler.assume_constant_result(stretching)
                # Else the ninth shape, of all models together, would run as it is without a word.
                torch._dynamo.config.cache_size_limit = _MOST_SHAPES
                self._compiled[part] = torch.compile(compute, dynamic=False)
            found = self._compiled[part](*inputs)
        except Exception as error:  # whatever a compiler, or its absence, can lead to
            if card_is_full(error):
                raise
            self._parts.clear()
            self._tell(
                "PyTorch cannot compile the model here, so it runs as it is, with the same masks: "
                f"{_first_line(error)}"
            )
            return None
        self._met.add((part, count, is_apart))
        self._tell(f"Compiled {what} in {time.perf_counter() - begin:.0f} s.")
        return found


def compile_model(model: SAM2, parts: Collection[Part] | None = None, tell: Tell = say) -> None:
    """Have a model compiled that only predicts, and warm it up for one object.

    Args:
        parts: by default all on a graphics card, and on a processor those that gain by it.
        tell: is given a sentence before and after each wait, and where there is no compiler.
    """
    if parts is None:
        parts = get_args(Part) if model.device.type == "cuda" else _PARTS_ON_A_PROCESSOR
    model.compiled = CompiledParts(parts, model.image_size, tell)
    _warm_up(model, FRAMES_AT_ONCE if "encoder" in parts else 1)


@torch.inference_mode()
def _warm_up(model: SAM2, frames: int) -> None:
    """Compute what a pass computes for a batch of frames, and for a frame with one object."""
    size, device = model.image_size, model.device
    images = torch.zeros((frames, 3, size, size), device=device)
    features = model.encode_image(images).select(0)
    logits = torch.zeros((1, 1, size // 4, size // 4), device=device, dtype=model.dtype)
    decoded = model.decode_masks(
        features,
        model.without_memory(features),
        mask_input=logits if model.config.draws_prompts else None,
        multimask=True,
    )
    model.encode_memory(
        features, model.upscale(decoded.low_res), decoded.object_score, binarise=False
    )


def _filled(x: Tensor, count: int) -> Tensor:
    """Repeat the last item until there are so many; what is the same for all is given once."""
    if len(x) == 1 or x.stride(0) == 0:
        return x[0][None]  # one stride for what is compiled, whatever is written in x
    if len(x) == count:
        return x
    return torch.cat((x, x[-1:].expand(count - len(x), *x.shape[1:])))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
