"""From a file to a model: recognise the architecture, check every tensor, run no code."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sam2_engine.model import SAM2, VARIANTS, ModelConfig, compile_model
from sam2_engine.model.compiled import Tell, say
from sam2_engine.model.config import ConvStage, ConvTrunkConfig, HieraConfig
from sam2_engine.names import split_size
from sam2_engine.weights.download import Progress, fetch, find_file, first_line
from sam2_engine.weights.registry import MODELS, WeightsError, list_models, model_info
from sam2_engine.whole_file import beside

State = dict[str, Tensor]

_CONFIG_KEY = "config"
"""Entry of a safetensors file's metadata that holds the ModelConfig as JSON."""


def load_model(
    name_or_path: str | os.PathLike[str],
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    image_size: int | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    compile: bool = False,
    tell: Tell = say,
) -> SAM2:
    """Load a model, ready to predict.

    Args:
        name_or_path: a name of list_models(), which is downloaded where it is not here yet, or
            the path of a checkpoint: an official .pt file or a fine-tuned one with the same
            names, or a .safetensors file that save_model wrote. Behind an @ may follow the
            image_size, as in "sam2.1-tiny@512".
        device: "auto" takes CUDA, else MPS, else the CPU, of those that compute; "cuda:1" is the
            second card.
        dtype: "auto" is half precision on CUDA devices that compute with it, bfloat16 for a Hiera
            trunk and float16 for a convolutional one; else float32. "mixed" is for a CPU that
            multiplies in bfloat16: see SAM2.mix_precision.
        image_size: side of the square input in pixels. A .pt file does not tell: the default is
            what the model was published with, 1024 for an unknown file.
        folder: with model files, for machines without a network. Default: SAM2_MODELS.
        progress: called with the bytes downloaded and the bytes in all.
        compile: have torch.compile make code for it, see `compile_model`; it takes minutes at
            first, and changes masks by rounding only.
        tell: is given a sentence before and after each such wait, and where "auto" passes over a
            graphics card; by default it is printed.

    Raises:
        WeightsError: the file cannot be had, is damaged, or is not a SAM 2 checkpoint.
        ValueError: no device or dtype that can be used here, or an impossible image size.
    """
    device = _choose_device(device, tell)
    _check_dtype(dtype, device)
    size = split_size(name_or_path)[1] if image_size is None else image_size
    if size is not None:
        ModelConfig(image_size=size)  # it fails before anything is downloaded
    info = model_info(str(name_or_path))
    if info is not None:
        path = fetch(info, Path(folder) if folder else None, progress)
    else:
        found = find_file(name_or_path)
        if found is None:
            raise WeightsError(
                f"There is no model and no file called {name_or_path}. Give the path of a "
                f"checkpoint, or one of: {', '.join(one.name for one in list_models())}."
            )
        path = found
        info = next((model for model in MODELS.values() if model.file == path.name), None)

    state, config = read_checkpoint(path)
    if config is None:
        config = recognise(state, path)
        if info is not None:
            config = config.resized(info.image_size)
    if size is not None:
        config = config.resized(size)

    with _NoInit():  # the weights come from the file
        model = SAM2(config)
    _check_tensors(state, model.state_dict(), path)
    model.load_state_dict(state, strict=True, assign=True)
    model = model.to(device=device, dtype=_choose_dtype(dtype, device, config)).eval()
    if dtype == _MIXED:
        model.mix_precision()
    if compile:
        compile_model(model, tell=tell)
    return model


def save_model(
    model: SAM2, path: str | os.PathLike[str], dtype: torch.dtype | None = None, **metadata: Any
) -> None:
    """Write a model's weights and configuration as a safetensors file that load_model reads.

    The file is written beside its place and then moved there, so it is never half there.

    Args:
        model: to be saved.
        path: of the file, replaced if it exists.
        dtype: of the large tensors in the file, such as torch.float16. Vectors (biases, norms)
            keep theirs: they cost nothing and suffer most. Default: as they are.
        metadata: texts, or anything that JSON can hold, to keep in the file.
    """
    path = Path(path)
    state = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        if dtype is not None and tensor.ndim > 1 and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        state[name] = tensor.contiguous()
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }
    texts[_CONFIG_KEY] = json.dumps(asdict(model.config))
    with beside(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(state, temporary, texts)
        temporary.chmod(mode)  # safetensors makes files that nobody else may read


# -- making it ---------------------------------------------------------------------------------


class _NoInit(TorchFunctionMode):
    """Leaves parameters as they are made, without random numbers: memory that nothing touches.

    The device "meta" would do the same, but has PyTorch import its compiler, which takes a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


# -- device and dtype --------------------------------------------------------------------------


def _choose_device(device: str | torch.device, tell: Tell) -> torch.device:
    if device == "auto":
        for card, is_there in (
            (torch.device("cuda"), torch.cuda.is_available()),
            (torch.device("mps"), torch.backends.mps.is_available()),
        ):
            if is_there and not (problem := _why_not(card)):
                return card
            if is_there:
                tell(f"PyTorch cannot use the graphics card, so the processor computes: {problem}")
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"There is no device {device!r}: use auto, cpu, cuda or mps.") from error
    missing = {
        "cuda": not torch.cuda.is_available(),
        "mps": not torch.backends.mps.is_available(),
    }
    if missing.get(chosen.type):
        without = chosen.type == "cuda" and not torch.backends.cuda.is_built()
        why = " (it was built without CUDA; pytorch.org has others)" if without else ""
        raise ValueError(f"PyTorch finds no {chosen.type} device here{why}: use auto or cpu.")
    if problem := _why_not(chosen):
        raise ValueError(f"PyTorch cannot use {device} here ({problem}): use auto or cpu.")
    return chosen


def _why_not(device: torch.device) -> str:
    """Why a device does not compute; empty where it does. PyTorch also finds cards that it was not
    built for, that have no such number, or that another program has for itself.
    """
    try:
        torch.ones(1, device=device).add(1)
    except RuntimeError as error:
        problem = first_line(error)
        if "no kernel image" in problem:
            problem = "this PyTorch was not built for this card; pytorch.org has others"
        return problem
    return ""


_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_MIXED = "mixed"


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16, at about twice the rate of float32."""
    # Older versions of torch do not tell.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _check_dtype(dtype: str | torch.dtype, device: torch.device) -> None:
    if dtype == _MIXED and device.type != "cpu":
        raise ValueError(f"The dtype mixed is for the processor (cpu); use auto on {device.type}.")
    if dtype == _MIXED and not multiplies_bfloat16():
        raise ValueError("This processor does not multiply in bfloat16: use the dtype auto.")
    if dtype not in ("auto", _MIXED, *_DTYPES, *_DTYPES.values()):
        names = ", ".join([_MIXED, *_DTYPES])
        raise ValueError(f"A model cannot have the dtype {dtype}: use auto, {names}.")


def _choose_dtype(
    dtype: str | torch.dtype, device: torch.device, config: ModelConfig
) -> torch.dtype:
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        with torch.cuda.device(device):  # which of several is asked
            is_half = torch.cuda.is_bf16_supported(including_emulation=False)
        return half_precision(config) if is_half else torch.float32
    if dtype == _MIXED:
        return torch.float32
    return _DTYPES[dtype] if isinstance(dtype, str) else dtype


def half_precision(config: ModelConfig) -> torch.dtype:
    """bfloat16 for a Hiera trunk, in which the published code multiplies. A convolutional trunk's
    values are bounded and its masks change by 1.5 % of their pixels in bfloat16, by 0.1 % in
    float16.
    """
    return torch.float16 if isinstance(config.trunk, ConvTrunkConfig) else torch.bfloat16


# -- reading -----------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> tuple[State, ModelConfig | None]:
    """The tensors of a file by name, and its configuration where the file holds one."""
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise WeightsError(f"{path} is empty. Download or copy it again.")
    # A safetensors file starts with the length of its header, eight bytes, then JSON.
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> tuple[State, ModelConfig | None]:
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            # Copied: on Windows a file that is mapped cannot be replaced, as fine-tuning does.
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is truncated or not a safetensors file ({error}). Download or copy it again."
        ) from error
    if _CONFIG_KEY not in texts:
        return state, None
    try:
        return state, _config_from(json.loads(texts[_CONFIG_KEY]))
    except (TypeError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} describes a model that this version of napari-sam2 does not know ({error}). "
            "Use the version that wrote it, or a newer one."
        ) from error


def _read_torch(path: Path) -> tuple[State, ModelConfig | None]:
    with path.open("rb") as file:
        start = file.read(2)
    # PyTorch writes zip archives; before version 1.6 it wrote a series of pickles.
    if start != b"PK" and start[:1] != b"\x80":
        raise WeightsError(
            f"{path} is not a checkpoint: it is neither a PyTorch nor a safetensors file."
        )
    if start == b"PK" and not zipfile.is_zipfile(path):
        raise WeightsError(f"{path} is truncated: its end is missing. Download or copy it again.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds other Python objects than weights. It is not opened, because they could "
            "run code. Save the state_dict() of the model alone, and load that."
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in PyTorch's reader
        raise WeightsError(
            f"{path} is truncated, damaged or not a checkpoint ({first_line(error)}). "
            "Download or copy it again."
        ) from error
    config = None
    # Official files and most training programs keep the weights under "model".
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        # Ours tell the architecture, too; what others keep under that name is not for us.
        with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError):
            config = _config_from(content[_CONFIG_KEY])
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} is not a SAM 2 checkpoint: it holds no weights by name.")
    odd = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise WeightsError(
            f"{path} is not a SAM 2 checkpoint: its entry {odd!r} is not a tensor. A training "
            'state is loaded if it keeps the weights under "model".'
        )
    return dict(content), config


def _config_from(described: Mapping[str, Any]) -> ModelConfig:
    values = dict(described)
    trunk = {key: _tuples(value) for key, value in values.pop("trunk").items()}
    if "embed_dim" in trunk:
        return ModelConfig(trunk=HieraConfig(**trunk), **values)
    trunk["stages"] = tuple(ConvStage(**stage) for stage in trunk["stages"])
    return ModelConfig(trunk=ConvTrunkConfig(**trunk), **values)


def _tuples(value: Any) -> Any:
    """JSON knows no tuples: turn lists back into them."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# -- recognising -------------------------------------------------------------------------------

_TRUNK = "image_encoder.trunk"
_PATCH_EMBED = f"{_TRUNK}.patch_embed.proj.weight"


def recognise(state: Mapping[str, Tensor], path: Path) -> ModelConfig:
    """The configuration that belongs to names and shapes of weights.

    Heads, windows and global blocks of a Hiera trunk, strides of a convolutional one and the
    input size leave no trace in the weights: the trunk must be a published one or nano's.
    """
    trunk: HieraConfig | ConvTrunkConfig
    if _PATCH_EMBED in state:
        trunk = _recognise_hiera(state, path)
        input_size = ModelConfig().image_size
    elif f"{_TRUNK}.stem.0.weight" in state:
        trunk = VARIANTS["nano"].trunk
        input_size = VARIANTS["nano"].image_size
    else:
        some = ", ".join(islice(state, 3))
        raise WeightsError(
            f"{path} is not a SAM 2 checkpoint: it has no image encoder of that kind. "
            f"It holds {len(state)} tensors, such as {some}."
        )
    try:
        num_memories, _, _, memory_dim = state["maskmem_tpos_enc"].shape
        return ModelConfig(
            trunk=trunk,
            version="2.1" if "obj_ptr_tpos_proj.weight" in state else "2.0",
            image_size=input_size,
            d_model=state["no_mem_embed"].shape[-1],
            memory_dim=memory_dim,
            memory_layers=_count(state, r"memory_attention\.layers\.(\d+)\."),
            memory_ffn=len(state["memory_attention.layers.0.linear1.weight"]),
            decoder_mlp=len(state["sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight"]),
            num_memories=num_memories,
            refines_masks="sam_mask_decoder.refinements.0.enter.weight" in state,
        )
    except KeyError as error:
        raise WeightsError(
            f"{path} is not a complete SAM 2 checkpoint: {error.args[0]} is missing. "
            "Models for single images only (SAM) cannot be used."
        ) from error
    except ValueError as error:
        raise WeightsError(
            f"{path} is not a SAM 2 checkpoint: its sizes do not fit ({error})."
        ) from error


def _recognise_hiera(state: Mapping[str, Tensor], path: Path) -> HieraConfig:
    embed_dim = len(state[_PATCH_EMBED])
    blocks = _count(state, rf"{re.escape(_TRUNK)}\.blocks\.(\d+)\.")
    for config in VARIANTS.values():
        trunk = config.trunk
        if not isinstance(trunk, HieraConfig):
            continue
        if (trunk.embed_dim, sum(trunk.stages)) == (embed_dim, blocks):
            return trunk
    raise WeightsError(
        f"{path} has an image encoder of {blocks} blocks that starts {embed_dim} wide, as no "
        "published SAM 2 has. Save a model of your own with sam2_engine.weights.save_model, which "
        "writes its configuration into the file."
    )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many layers are numbered in the names that match."""
    matches = (re.match(pattern, name) for name in state)
    return len({match[1] for match in matches if match})


def _check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise one error that names what is missing, what is too much and what has another shape."""
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise WeightsError(
            f"The weights in {path} do not fit the SAM 2 model that they look like: tensors "
            f"{'; '.join(problems)}. Use the complete state_dict of a SAM 2 or 2.1 model."
        )
