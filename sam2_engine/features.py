"""Image features, computed once per frame, or part of it, and kept within a budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sam2_engine.frames import FrameSource, Part
from sam2_engine.full_memory import AtOnce
from sam2_engine.model import SAM2, ImageFeatures
from sam2_engine.model.compiled import FRAMES_AT_ONCE

_PIXELS_AT_ONCE = 2 * 512 * 512  # of frames on a processor: more are no quicker, and one waits


class FeatureStore(Protocol):
    """Where features outlive a predictor, found again by the image that they were made of."""

    def get(self, image: Tensor) -> ImageFeatures | None:
        """Features of a (3, S, S) image as the model sees it, on the CPU; None if not known."""

    def put(self, image: Tensor, features: ImageFeatures) -> None:
        """Keep the features (batch of 1) of an image."""


class EncodingStream:
    """A CUDA device's own queue for encoding, so that it works beside what else is computed.

    Other devices do one thing after the other: there, all of this does nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._own = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.follow()  # the model's weights may be on their way still

    @property
    def is_own(self) -> bool:
        """Whether encoding goes on beside other work."""
        return self._own is not None

    def follow(self) -> None:
        """Have what is queued here from now on wait for all that others have queued up to now."""
        if self._own is not None:
            self._own.wait_stream(torch.cuda.current_stream(self._own.device))

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Queue here what is computed inside."""
        if self._own is None:
            yield
        else:
            with torch.cuda.stream(self._own):
                yield

    def mark(self) -> torch.cuda.Event | None:
        """The point that the queue has come to, for ``hand_over``."""
        return None if self._own is None else self._own.record_event()

    def hand_over(self, features: ImageFeatures, made: torch.cuda.Event | None) -> None:
        """Have others wait until features are made, and their memory be kept until these others
        have used them, whenever they are forgotten.
        """
        if self._own is not None and made is not None:
            current = torch.cuda.current_stream(self._own.device)
            current.wait_event(made)
            for level in features:
                level.record_stream(current)


class _Kept(NamedTuple):
    features: ImageFeatures
    made: torch.cuda.Event | None
    """When they are there; until then they may be on their way."""


class FeatureCache:
    """Keeps the most recently used features of frames and parts of them, up to some bytes."""

    def __init__(
        self,
        encode: Callable[[Sequence[Part]], list[ImageFeatures]],
        budget: int,
        dtype: torch.dtype | None = None,
        stream: EncodingStream | None = None,
    ) -> None:
        """
        Args:
            encode: computes the features of some parts, each a batch of 1; of fewer at a time,
                where a card has no room for all.
            budget: bytes of features to keep; 0 keeps none.
            dtype: what features are rounded to and kept in, such as torch.float16 for half the
                bytes; by default as they are. They are rounded before their first use, too, so
                that masks do not depend on what is still kept.
            stream: where all encoding is queued; by default where all else is.
        """
        self._encode = encode
        self._dtype = dtype
        self._stream = stream or EncodingStream(torch.device("cpu"))
        self._computed_in = torch.float32
        self._at_once = AtOnce(FRAMES_AT_ONCE)
        self._kept: OrderedDict[Part, _Kept] = OrderedDict()
        self._part_bytes = 0
        self.budget = budget
        self.nbytes = 0
        """Bytes held now; never above the budget."""
        self.encoded = 0
        """How many parts have been encoded, or looked up in a store."""

    @property
    def encodes_ahead(self) -> bool:
        """Whether ``encode`` returns at once, and encoding goes on beside other work."""
        return self._stream.is_own

    def __contains__(self, part: Part) -> bool:
        """Whether features are kept, or on their way."""
        return part in self._kept

    def __getitem__(self, part: Part) -> ImageFeatures:
        """Features of a frame or a part of it (batch of 1), from the cache or computed now.

        What is encoded later waits for what has been queued up to now, and not for what is
        computed from these features.
        """
        self._stream.follow()
        if part in self._kept:
            self._kept.move_to_end(part)
            kept = self._kept[part]
        else:
            (kept,) = self._made([part])
        self._stream.hand_over(*kept)
        return _as(kept.features, self._computed_in)

    def holds(self, count: int) -> bool:
        """Whether the features of so many parts can be kept at once."""
        return 0 < count * self._part_bytes <= self.budget

    def encode(self, parts: Sequence[Part]) -> None:
        """Encode those of some parts that are not known yet in one batch, and keep all of them
        rather than any others.
        """
        for part in parts:
            if part in self._kept:
                self._kept.move_to_end(part)
        missing = [part for part in parts if part not in self._kept]
        if missing:
            self._made(missing)

    def clear(self) -> None:
        self._kept.clear()
        self.nbytes = 0

    def _made(self, parts: Sequence[Part]) -> list[_Kept]:
        """The features of parts, rounded, and kept as far as the budget goes."""
        with self._stream.encoding():
            made = self._at_once.computed(self._encode, parts)
            self._computed_in = made[0].stride16.dtype
            rounded = [_as(features, self._dtype or self._computed_in) for features in made]
            kept = [_Kept(features, self._stream.mark()) for features in rounded]
        self.encoded += len(parts)
        for part, one in zip(parts, kept, strict=True):
            self._keep(part, one)
        return kept

    def _keep(self, part: Part, one: _Kept) -> None:
        self._part_bytes = size = _nbytes(one.features)
        if size > self.budget:
            return
        while self.nbytes + size > self.budget:
            self.nbytes -= _nbytes(self._kept.popitem(last=False)[1].features)
        self._kept[part] = one
        self.nbytes += size


def _as(features: ImageFeatures, dtype: torch.dtype) -> ImageFeatures:
    return ImageFeatures(*(level.to(dtype) for level in features))


def _nbytes(features: ImageFeatures) -> int:
    return sum(level.nbytes for level in features)


def frames_at_once(model: SAM2) -> int:
    """How many frames a pass encodes together."""
    if model.device.type != "cpu":
        return FRAMES_AT_ONCE
    return min(FRAMES_AT_ONCE, max(_PIXELS_AT_ONCE // model.image_size**2, 1))


@torch.inference_mode()
def encode_parts(
    model: SAM2, source: FrameSource, store: FeatureStore | None, parts: Sequence[Part]
) -> list[ImageFeatures]:
    """Features of each part, a batch of 1, from the store or encoded in one batch."""
    images = [source[part] for part in parts]
    stored = [None if store is None else store.get(image) for image in images]
    unknown = [image for image, known in zip(images, stored, strict=True) if known is None]
    if unknown:
        batch = torch.stack(unknown)
        is_pinned = model.device.type == "cuda"  # then the card goes on computing meanwhile
        if is_pinned:
            batch = batch.pin_memory()
        batched = model.encode_image(batch.to(model.device, non_blocking=is_pinned))
    encoded: list[ImageFeatures] = []
    taken = 0
    for image, known in zip(images, stored, strict=True):
        if known is not None:
            known = ImageFeatures(*(level.to(model.device, model.dtype) for level in known))
        else:
            known = batched.select(taken)
            if len(unknown) > 1:  # a part would hold on to the whole
                known = ImageFeatures(*(level.clone() for level in known))
            taken += 1
            if store is not None:
                store.put(image, known)
        encoded.append(known)
    return encoded
