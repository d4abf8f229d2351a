"""The main job on a real volume: `python -m napari_sam2.demo`, or `make demo`.

The MNI152 T1 template (a brain MRI that nilearn brings along, so no network is needed) is read from
a NIfTI file, three structures are segmented from a box on one slice each, and the labels are
written with the image's affine beside a picture of the result. With a display, napari opens on it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from napari_sam2.io import Volume, read_volume, write_labels
from napari_sam2.segmentation import Box, segment

OBJECTS: dict[int, tuple[str, Box]] = {
    1: ("cerebellum and brain stem", (24, (46.0, 45.0, 114.0, 151.0))),
    2: ("left temporal lobe", (32, (115.0, 38.0, 159.0, 80.0))),
    3: ("right temporal lobe", (32, (115.0, 115.0, 159.0, 158.0))),
}
"""Object id -> name, and its box: slice, (y0, x0, y1, x1). The template's x grows to the right."""

SLICES = (4, 48)
"""Where the three can be told from the rest of the brain by their outlines."""

_COLOURS = {1: "#ff5555", 2: "#55aaff", 3: "#ffcc33"}


def main(arguments: list[str] | None = None) -> None:
    """Run the demo and print where its files are and how long each step took."""
    parser = argparse.ArgumentParser(prog="python -m napari_sam2.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for files")
    parser.add_argument("--model", default="nano", help="a model's name or file (default: nano)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--no-window", action="store_true", help="do not open napari")
    options = parser.parse_args(arguments)
    # Torch's threads wait asleep: spinning is many times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    image, labels, picture = make_files(options.out, options.model, options.device)
    print(f"\nimage    {image}\nlabels   {labels}\npicture  {picture}")
    if has_display() and not options.no_window:
        show(image, labels)
    else:
        print("\nWith a display, napari would open on them.")


def make_files(out: Path, model: str = "nano", device: str = "auto") -> tuple[Path, Path, Path]:
    """Make image, labels and picture in the folder `out`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    image, labels_file, picture = (
        out / name for name in ("mni152_t1.nii.gz", "mni152_labels.nii.gz", "mni152_labels.png")
    )
    with _timed("Get the MNI152 template from nilearn"):
        from nilearn.datasets import load_mni152_template

        load_mni152_template(resolution=1).to_filename(image)
    with _timed(f"Read {image.name}"):
        volume = read_volume(image)
    with _timed(f"Load the model {model}"):
        from sam2_engine.weights import load_model

        network = load_model(model, device=device)
    first, last = SLICES
    with _timed(f"Follow {len(OBJECTS)} objects through {last - first + 1} slices"):
        boxes = {object_id: box for object_id, (_, box) in OBJECTS.items()}
        labels = segment(volume, boxes=boxes, slices=SLICES, model=network, progress=_show_progress)
    with _timed(f"Write {labels_file.name}"):
        write_labels(labels_file, labels, volume, overwrite=True)
    with _timed(f"Draw {picture.name}"):
        draw(picture, volume, labels)
    print()
    for object_id, (name, box) in OBJECTS.items():
        millilitres = np.count_nonzero(labels == object_id) * np.prod(volume.spacing) / 1000
        print(f"{name:26} {millilitres:6.1f} ml, from a box on slice {box[0]}")
    return image, labels_file, picture


def draw(path: Path, volume: Volume, labels: np.ndarray) -> None:
    """A picture of slices along all three axes with the objects' contours and the boxes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 9.4), facecolor="black", layout="constrained")
    axes = figure.subplots(3, 5).ravel()
    image = np.asarray(volume.array)
    black, white = np.percentile(image, (0.5, 99.5))
    views = [(0, z) for z in (8, 14, 20, 24, 28, 32, 36, 40, 44, 48)]
    views += [(1, 70), (1, 100), (1, 138), (2, 60), (2, 120)]
    spacing = np.array(volume.spacing)
    for ax, (axis, index) in zip(axes, views, strict=True):
        vertical, horizontal = (n for n in range(3) if n != axis)
        picture, found = image.take(index, axis), labels.take(index, axis)
        ax.imshow(
            picture,
            cmap="gray",
            vmin=black,
            vmax=white,
            origin="lower",  # anterior, or the head, is up
            aspect=spacing[vertical] / spacing[horizontal],
        )
        for object_id, (_, (slice_, (y0, x0, y1, x1))) in OBJECTS.items():
            colour = _COLOURS[object_id]
            if (found == object_id).any():
                ax.contour(found == object_id, levels=[0.5], colors=[colour], linewidths=1.3)
            if axis == 0 and index == slice_:
                corners = [x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0]
                ax.plot(*corners, color=colour, linestyle="--", linewidth=0.8)
        ax.set_title(f"{'zyx'[axis]} = {index}", color="white", fontsize=9, pad=2)
        ax.set_axis_off()
    for object_id, (name, _) in OBJECTS.items():
        axes[0].plot([], [], color=_COLOURS[object_id], label=name)
    axes[0].plot([], [], color="white", linestyle="--", linewidth=0.8, label="the prompt, a box")
    figure.legend(loc="outside lower center", ncols=4, labelcolor="white", frameon=False)
    FigureCanvasAgg(figure).print_png(str(path))


def has_display() -> bool:
    """Whether a window can be opened for somebody to see."""
    if os.environ.get("CI"):
        return False
    has_screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(has_screen) or sys.platform in ("darwin", "win32")


def show(image: Path, labels: Path) -> None:
    """Open napari on the two files; returns when its window is closed."""
    import napari

    volume, result = read_volume(image), read_volume(labels)
    viewer = napari.Viewer(title="napari-sam2 demo")
    viewer.add_image(volume.array, name="MNI152 T1", scale=volume.spacing)
    viewer.add_labels(result.array, name="SAM 2", scale=volume.spacing)
    scene = getattr(viewer, "scene", viewer)  # where napari 0.9 keeps its camera
    scene.camera.orientation2d = ("up", "right")  # anterior is up
    viewer.dims.set_current_step(0, OBJECTS[1][1][0])
    napari.run()


def _show_progress(done: int, total: int) -> None:
    """Percent done, which the next print writes over; only where somebody watches."""
    if sys.stdout.isatty():
        text = f"{100 * done // total:3d} %"
        print(text + "\b" * len(text), end="", flush=True)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    """Print what is done and then the seconds it took."""
    print(f"{what} ... ", end="", flush=True)
    started = time.perf_counter()
    yield
    print(f"{time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
