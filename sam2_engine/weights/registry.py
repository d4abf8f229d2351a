"""The models that can be loaded by name: published ones, the bundled one, and one's own."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from sam2_engine.model.config import VARIANTS
from sam2_engine.names import split_size
from sam2_engine.whole_file import write_text

OWN_MODELS_VARIABLE = "SAM2_OWN_MODELS"
"""Environment variable with the JSON file that lists one's own models, name -> facts."""


class WeightsError(RuntimeError):
    """A model that cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class ModelInfo:
    """A model with a name."""

    name: str
    title: str
    """For people, in a list to choose from."""
    file: str
    """Name of its file, in the package, in a local folder and in the repository; of one's own
    model the whole path.
    """
    config: str
    """The variant in sam2_engine.model.VARIANTS; of one's own model, what it was trained from."""
    image_size: int
    """Side of the square input, in pixels: what the weights were trained for, or was asked for."""
    repository: str | None = None
    """On the Hugging Face hub; None for the bundled model and one's own."""
    size: int | None = None
    """Bytes, where published."""
    sha256: str | None = None
    """Where published; else a download is checked against the sum that the hub names."""
    licence: str = "Apache-2.0"
    is_own: bool = False
    """Whether it was trained on this computer."""


_PUBLISHED = (
    # version, size, title, bytes, sha256
    ("2.1", "tiny", "SAM 2.1 tiny", 156_008_466,
     "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
    ("2.1", "small", "SAM 2.1 small", 184_416_285,
     "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
    ("2.1", "base-plus", "SAM 2.1 base plus", None,
     "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
    ("2.1", "large", "SAM 2.1 large", 898_083_611,
     "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
    ("2.0", "tiny", "SAM 2 tiny", None,
     "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125"),
    ("2.0", "small", "SAM 2 small", None,
     "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3"),
    ("2.0", "base-plus", "SAM 2 base plus", None,
     "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071"),
    ("2.0", "large", "SAM 2 large", None,
     "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b"),
)  # fmt: skip


def _published(
    version: str, size: str, title: str, num_bytes: int | None, sha256: str
) -> ModelInfo:
    family = "sam2.1" if version == "2.1" else "sam2"
    name = f"{family}-{size}"
    return ModelInfo(
        name=name,
        title=title,
        file=f"{family}_hiera_{size.replace('-', '_')}.pt",
        config=name,
        image_size=VARIANTS[name].image_size,
        repository=f"facebook/{family}-hiera-{size}",
        size=num_bytes,
        sha256=sha256,
    )


_NANO = ModelInfo(
    name="nano",
    title="nano (bundled, no download)",
    file="nano.safetensors",
    config="nano",
    image_size=VARIANTS["nano"].image_size,
)
_MEDSAM2 = ModelInfo(
    name="medsam2",
    title="MedSAM2 (CT, MRI, ultrasound)",
    file="MedSAM2_latest.pt",
    config="sam2.1-tiny",
    image_size=512,
    repository="wanglab/MedSAM2",
)

MODELS: dict[str, ModelInfo] = {
    info.name: info for info in (_NANO, *(_published(*row) for row in _PUBLISHED), _MEDSAM2)
}


def list_models() -> list[ModelInfo]:
    """The models that load_model knows by name; the bundled one, which needs no network, first,
    and one's own last.
    """
    return [*MODELS.values(), *_own_models().values()]


def model_info(name: str) -> ModelInfo | None:
    """What is known of a model by its name; None where there is none of that name.

    name: also with a size, as `split_size` takes it.
    """
    info = _listed(name)
    name_alone, size = split_size(name)
    if info is not None or size is None:
        return info
    info = _listed(name_alone)
    if info is None:
        return None
    return replace(info, name=name, title=f"{info.title} at {size} pixels", image_size=size)


def add_own_model(
    name: str, path: str | os.PathLike[str], title: str, start: str, image_size: int
) -> None:
    """Enter a model's file in the list under a name, in place of an older one of that name.

    Args:
        title: for people, in a list to choose from.
        start: the model that it was trained from.

    Raises:
        ValueError: the name is that of a published model, or empty.
        OSError: the list cannot be written.
    """
    if not name or name in MODELS:
        raise ValueError(f"A model of your own cannot be called {name!r}; choose another name.")
    listed = _read_own_models()
    listed[name] = {
        "file": str(Path(path).resolve()),
        "title": title,
        "config": start,
        "image_size": image_size,
    }
    target = _own_models_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, json.dumps(listed, indent=1) + "\n")


def _listed(name: str) -> ModelInfo | None:
    return MODELS.get(name) or _own_models().get(name)


def _own_models() -> dict[str, ModelInfo]:
    """Those whose files are still there."""
    found = {}
    for name, facts in _read_own_models().items():
        try:
            path = Path(facts["file"])
            if not path.is_file():
                continue
            found[name] = ModelInfo(
                name=name,
                title=str(facts["title"]),
                file=str(path),
                config=str(facts["config"]),
                image_size=int(facts["image_size"]),
                size=path.stat().st_size,
                licence="your own",
                is_own=True,
            )
        except (KeyError, TypeError, ValueError, OSError):
            continue
    return found


def _read_own_models() -> dict[str, dict[str, Any]]:
    try:
        listed = json.loads(_own_models_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return listed if isinstance(listed, dict) else {}


def _own_models_file() -> Path:
    named = os.environ.get(OWN_MODELS_VARIABLE)
    if named:
        return Path(named).expanduser()
    return user_data_path("napari-sam2", appauthor=False) / "models.json"
