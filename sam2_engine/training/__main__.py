"""Train a model: ``python -m sam2_engine.training --data MANIFEST --config nano --out DIR``."""

import sys

from sam2_engine.training.command import main

if __name__ == "__main__":
    sys.exit(main())
