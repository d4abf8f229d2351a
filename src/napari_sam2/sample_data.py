"""Images to try the widget on: File > Open Sample > SAM 2.

The first three need no network: they are computed, or come with packages that are installed. The
others are downloaded once, and checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_sam2.io.readers import LayerData, layers_of
from napari_sam2.io.volume import RAS_OF_LPS, Volume


def moving_cells() -> list[LayerData]:
    """A computed time-lapse of cells that move, (40, 256, 320) uint8: nothing is downloaded."""
    rng = np.random.default_rng(3)
    frames, height, width, cells = 40, 256, 320, 9
    rows, columns = np.ogrid[:height, :width]
    start = rng.uniform((30, 30), (height - 30, width - 30), (cells, 2))
    velocity = rng.normal(0, 1.2, (cells, 2))
    radius, value = rng.uniform(11, 18, cells), rng.uniform(90, 170, cells)
    movie = np.empty((frames, height, width), np.uint8)
    for frame in range(frames):
        image = rng.normal(32, 7, (height, width))
        for cell in range(cells):
            y, x = start[cell] + velocity[cell] * frame
            stretch = 1 + 0.25 * np.sin(frame / 6 + cell)
            distance = np.hypot((rows - y) / stretch, (columns - x) * stretch) / radius[cell]
            image += (
                value[cell] / (1 + np.exp(12 * (distance - 1))) * (1 - 0.3 * distance.clip(0, 1))
            )
        movie[frame] = image.clip(0, 255)
    windows = {"all": (0.0, 255.0)}
    return layers_of(Volume(movie, source="moving cells", axes="tyx", windows=windows))


def brain() -> list[LayerData]:
    """A brain MRI, (z, y, x): the MNI152 T1 template at 2 mm where nilearn is installed, else the
    first volume of a scan that comes with nibabel.
    """
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError:
        from nibabel.testing import data_path

        from napari_sam2.io import read_volume

        return layers_of(read_volume(Path(str(data_path)) / "example4d.nii.gz", volume=0))
    template = load_mni152_template(resolution=2)
    image = Volume(
        array=np.asarray(template.dataobj, np.float32).T,
        spacing=(2.0, 2.0, 2.0),
        unit="mm",
        affine=np.asarray(template.affine),
        source="MNI152",
    )
    return layers_of(image)


# (z, y, x) centre and half axes in mm from the middle of the body, and Hounsfield units
_ORGANS = (
    ((0, 0, 0), (400, 105, 150), 40),  # body
    ((75, -10, 75), (90, 70, 55), -840),  # lungs
    ((75, -10, -75), (90, 70, 55), -840),
    ((35, -25, 20), (42, 40, 48), 150),  # heart
    ((-45, -15, -65), (62, 65, 62), 110),  # liver, on the right
    ((-40, 30, 95), (35, 32, 25), 120),  # spleen
    ((-75, 45, 62), (48, 24, 27), 190),  # kidneys
    ((-85, 45, -62), (48, 24, 27), 190),
    ((0, 62, 0), (400, 22, 24), 320),  # spine
    ((0, 34, 12), (400, 11, 11), 210),  # aorta
)


def body_ct() -> list[LayerData]:
    """A computed phantom in Hounsfield units, (64, 160, 200) int16 of 5 x 1.8 x 1.8 mm, like a CT
    of chest and abdomen after contrast medium: nothing is downloaded.
    """
    shape, spacing = (64, 160, 200), (5.0, 1.8, 1.8)
    middle = [(n - 1) / 2 for n in shape]
    z, y, x = (
        (axis - centre) * step
        for axis, centre, step in zip(
            np.ogrid[tuple(map(slice, shape))], middle, spacing, strict=True
        )
    )
    phantom = np.full(shape, -1000, np.float32)
    for centre, axes, value in _ORGANS:
        distance = np.sqrt(
            sum(((at - c) / a) ** 2 for at, c, a in zip((z, y, x), centre, axes, strict=True))
        )
        share = 1 / (1 + np.exp(np.clip((distance - 1) * min(axes) / 1.2, -50, 50)))
        phantom += share * (value - phantom)
    phantom += np.random.default_rng(0).normal(0, 18, shape)
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = [-n * step for n, step in zip(middle[::-1], spacing[::-1], strict=True)]
    image = Volume(
        array=phantom.round().astype(np.int16),
        spacing=spacing,
        unit="mm",
        affine=RAS_OF_LPS @ affine,
        source="CT phantom",
        windows={"soft tissue": (-150.0, 250.0), "lung": (-1350.0, 150.0)},
    )
    return layers_of(image)


@dataclass(frozen=True)
class PublicImage:
    """A public image, its place and its content's SHA-256; axes and spacing as in `Volume`."""

    name: str
    url: str
    sha256: str
    axes: str
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    unit: str = "pixel"
    channels: tuple[str, ...] = ()


_SCIKIT_IMAGE = (
    "https://gitlab.com/scikit-image/data/-/raw/2cdc5ce89b334d28f06a58c9f0ca21aa6992a5ba"
)

PUBLIC_IMAGES = {
    "cells": PublicImage(  # Allen Institute for Cell Science
        "cells in 3-D",
        f"{_SCIKIT_IMAGE}/cells3d.tif",
        "afc7c7d80d38bfde09788b4064ac1e64ec14e88454ab785ebdc8dbba5ca3b222",
        axes="zcyx",
        spacing=(0.29, 0.26, 0.26),
        unit="um",
        channels=("membranes", "nuclei"),
    ),
    "nuclear_envelope": PublicImage(
        "nuclear envelope",
        f"{_SCIKIT_IMAGE}/NPCsingleNucleus.tif",
        "a8e24e8d187f33e92ee28508d5615286c850ca75374af7e74e527d290e8b06ea",
        axes="tcyx",
        channels=("protein", "nuclear envelope"),
    ),
    "head": PublicImage(  # University of North Carolina Volume Rendering Test Data Set
        "head MRI",
        f"{_SCIKIT_IMAGE}/brain.tiff",
        "bcdbaf424fbad7b1fb0f855f608c68e5a838f35affc323ff04ea17f678eef5c6",
        axes="zyx",
    ),
}


def cells() -> list[LayerData]:
    """Fluorescence microscopy of cells, membranes and nuclei, (60, 256, 256) each; 8 MB."""
    return _downloaded(PUBLIC_IMAGES["cells"])


def nuclear_envelope() -> list[LayerData]:
    """A time-lapse of a nucleus, two channels of (15, 180, 183); 1 MB."""
    return _downloaded(PUBLIC_IMAGES["nuclear_envelope"])


def head() -> list[LayerData]:
    """Ten slices of an MRI of a head, (10, 256, 256); 1 MB."""
    return _downloaded(PUBLIC_IMAGES["head"])


def _downloaded(public: PublicImage) -> list[LayerData]:
    import tifffile

    array = tifffile.imread(download(public))
    order = [public.axes.index(axis) for axis in "tczyx" if axis in public.axes]
    image = Volume(
        array=array.reshape([n for n in array.shape if n > 1]).transpose(order),
        spacing=public.spacing,
        unit=public.unit,
        source=public.name,
        axes="".join(axis for axis in "tczyx" if axis in public.axes),
        channels=public.channels,
    )
    return layers_of(image)


def download(public: PublicImage) -> Path:
    """Fetch a public image, or find the one that was fetched before; returns its file.

    Raises: OSError, one sentence, without a network or if the file is not the one that is meant.
    """
    import platformdirs
    import pooch
    import requests

    try:
        file = pooch.retrieve(
            public.url,
            known_hash=f"sha256:{public.sha256}",
            path=platformdirs.user_cache_path("napari-sam2") / "samples",
        )
    except (requests.RequestException, ConnectionError) as error:
        raise OSError(
            f"The sample {public.name!r} could not be downloaded from {public.url}; try again with "
            "a network, or open a sample that needs none."
        ) from error
    except ValueError as error:  # the checksum differs
        raise OSError(
            f"What {public.url} sent is not the sample {public.name!r} (its checksum differs); "
            "nothing was kept."
        ) from error
    return Path(file)
