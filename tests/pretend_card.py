"""A graphics card that is not there: tensors that say they are on one, computed by the processor.

As on a card, tensors of both must not meet in an operation, and none goes to numpy from there. It
is one of CUDA, or of Apple, which knows no numbers of 64 bits and lacks an operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CARD = torch.device("cuda", 0)
"""The one that is pretended."""
_MARK = "_is_on_pretended_card"


def _is_on_card(tensor: Tensor) -> bool:
    return _MARK in tensor.__dict__


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


def _put_on_card(value: Any) -> Any:
    for tensor in _tensors(value):
        if CARD.type == "mps" and tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64.")
        setattr(tensor, _MARK, True)
    return value


def _without_device(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The arguments without a device, and the device that they name."""
    named, left = None, []
    for one in args:
        if isinstance(one, torch.device) or (isinstance(one, str) and one in ("cpu", CARD.type)):
            named = torch.device(one)
        else:
            left.append(one)
    others = dict(kwargs)
    if others.get("device") is not None:
        named = torch.device(others.pop("device"))
    return tuple(left), others, named


class PretendCard(TorchFunctionMode):
    """While it is entered, "cuda" is there, in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        """Operations on the card."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.device, torch._C._nn._parse_to):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        owner = args[0] if args and isinstance(args[0], Tensor) else None
        if owner is not None and func in _GETTERS:
            return _GETTERS[func](owner) if _is_on_card(owner) else func(*args)
        if name in ("to", "cpu", "cuda") and owner is not None:
            return self._moved(name, owner, args[1:], kwargs)
        if name == "pin_memory":
            assert owner is not None and not _is_on_card(owner)
            return owner.clone()
        given = list(_tensors([args, kwargs]))
        on_card = [one for one in given if _is_on_card(one)]
        if name in ("numpy", "__array__", "from_numpy") and on_card:
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        if name == "__set__" and owner is not None:  # .data and .grad
            if len(on_card) > len(given) - len(on_card) or _is_on_card(given[-1]):
                _put_on_card(owner)
            return func(*args, **kwargs)
        if on_card:
            if CARD.type == "mps" and kwargs.get("antialias"):
                raise NotImplementedError("_upsample_bilinear2d_aa is not implemented for MPS.")
            if CARD.type == "mps" and name in ("amin", "amax") and owner.dtype == torch.int64:
                raise NotImplementedError("MPS does not support min/max ops with int64 input.")
            if CARD.type == "mps" and name == "grid_sample":
                raise AssertionError("wrong values: pytorch/pytorch#174339")
            if name in ("scaled_dot_product_attention", "linear"):
                _check_layout(name, *given[:3])
            self._check(name, func, args, given)
        args, kwargs, device = _without_device(args, kwargs)
        found = func(*args, **kwargs)
        if (device or (CARD if on_card else None)) == CARD or (
            device is not None and device.type == CARD.type
        ):
            self.calls += 1
            _put_on_card(found)
        return found

    def _moved(self, name: str, owner: Tensor, args: Any, kwargs: Any) -> Tensor:
        """What `to`, `cpu` and `cuda` give."""
        args, kwargs, device = _without_device(args, kwargs)
        dtype = next((one for one in args if isinstance(one, torch.dtype)), kwargs.get("dtype"))
        here, goes = _is_on_card(owner), _is_on_card(owner)
        if name != "to":
            goes = name == "cuda"
        elif device is not None:
            goes = device.type == CARD.type
        elif args and isinstance(args[0], Tensor):
            dtype, goes = args[0].dtype, _is_on_card(args[0])
        moved = owner if dtype is None else owner.to(dtype)
        if goes != here and moved is owner:
            moved = owner.clone()
        moved.__dict__.pop(_MARK, None)
        return _put_on_card(moved) if goes else moved

    def _check(self, name: str, func: Any, args: Any, given: list[Tensor]) -> None:
        """Raises what CUDA raises where tensors of both places meet."""
        if "mkldnn" in str(func):
            raise NotImplementedError(f"Could not run {func} with arguments from the CUDA backend.")
        if name in ("copy_", "_has_compatible_shallow_copy_type") or all(
            _is_on_card(one) or not one.dim() for one in given
        ):
            return
        if name in ("__getitem__", "__setitem__") and _is_on_card(args[0]):
            values = list(_tensors(args[2:]))  # an index may be on the processor
            if all(_is_on_card(one) or not one.dim() for one in values):
                return
        shapes = [(tuple(one.shape), "cuda" if _is_on_card(one) else "cpu") for one in given]
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {shapes}")


def _check_layout(name: str, *given: Tensor) -> None:
    """Raises where one version of torch or another would, or would give wrong values."""
    if CARD.type == "cuda" and name != "linear" and any(0 in one.stride() for one in given):
        raise RuntimeError("cuDNN Frontend error: No valid execution plans built.")
    if CARD.type == "mps" and not all(one.is_contiguous() for one in given):
        raise AssertionError("wrong values of views: pytorch/pytorch#181133, #162730")


_GETTERS: dict[Any, Callable[[Tensor], Any]] = {
    Tensor.device.__get__: lambda _: CARD,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda _: CARD.type == "cuda",  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda _: False,  # type: ignore[attr-defined]
    Tensor.get_device: lambda _: 0,
}


class _Stream:
    """Of a card that does one thing after the other."""

    device = CARD

    def wait_stream(self, _: Any) -> None: ...

    def wait_event(self, _: Any) -> None: ...

    def record_event(self) -> str:
        return "done"


@contextmanager
def pretended_card(monkeypatch: Any, kind: str = "cuda") -> Iterator[PretendCard]:
    """A card in this thread, "cuda" or "mps"; what has to do with streams does nothing."""
    with monkeypatch.context() as patch, PretendCard() as card:
        patch.setitem(globals(), "CARD", torch.device(kind, 0))
        patch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
        patch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        patch.setattr(torch.cuda, "device", lambda _: nullcontext())
        patch.setattr(torch.cuda, "Stream", lambda _: _Stream())
        patch.setattr(torch.cuda, "current_stream", lambda _: _Stream())
        patch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        patch.setattr(Tensor, "record_stream", lambda *_: None)
        yield card
