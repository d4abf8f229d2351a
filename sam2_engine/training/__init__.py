"""Training of SAM 2 models: ``python -m sam2_engine.training --help``."""
