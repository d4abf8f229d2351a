"""The SAM 2 engine: tensors, frames and prompts; no napari, no Qt, no file formats."""
