"""Ship a trained model: ``python -m sam2_engine.training.export CHECKPOINT OUT.safetensors``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from sam2_engine.model import SAM2
from sam2_engine.training.trainer import load_average
from sam2_engine.weights import save_model

_LICENCES = (
    "Weights: Apache-2.0. Trained on Medical Segmentation Decathlon hippocampus (CC-BY-SA 4.0), "
    "TCIA soft-tissue sarcoma (CC-BY 3.0), Janelia FlyEM FIB-SEM (CC-BY 3.0), Data Science Bowl "
    "2018 nuclei (CC0), phase-contrast cells (MIT), SEM axons (MIT), and synthetic scenes; the "
    "trunk started from EfficientNet-Lite0 weights trained on ImageNet."
)
_SCORE_BIAS = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"


def export(checkpoint: str | Path, out: str | Path, visible_above: float = 0.0) -> None:
    """Write the averaged weights of a checkpoint as float16 safetensors for ``load_model``.

    Args:
        visible_above: object score from which an object counts as visible. Objects are absent from
            few frames of a short clip and from half of a whole volume, so the score of a model that
            trained briefly is too high; choose it on training data. It goes into a bias, and the
            file's own threshold is 0 again.
    """
    config, average = load_average(checkpoint)
    average[_SCORE_BIAS] = average[_SCORE_BIAS] - visible_above
    model = SAM2(config)
    model.load_state_dict(average)
    save_model(model, out, torch.float16, licences=_LICENCES, trained_by="sam2_engine.training")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 2 with one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m sam2_engine.training.export", description=__doc__
    )
    parser.add_argument("checkpoint", help="checkpoint.pt or a finished stage's file")
    parser.add_argument("out", help="the safetensors file to write")
    parser.add_argument(
        "--visible-above",
        type=float,
        default=0.0,
        help="object score from which an object counts as visible, chosen on training data",
    )
    options = parser.parse_args(arguments)
    try:
        export(options.checkpoint, options.out, options.visible_above)
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {options.out}, {Path(options.out).stat().st_size / 1e6:.1f} MB.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
