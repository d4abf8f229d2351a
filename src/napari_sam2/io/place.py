"""Where an image lies in the world of a viewer, and the order of axes that shows it there.

The world's axes are superior, posterior and left, so that with x to the right of the screen and y
down, slices look as radiologists view them. All in mm, from the file's own origin, so that scans of
one patient overlay whatever program wrote them.

napari slices along the axes of the world, and draws slices only of images whose axes run along
them. An image is therefore shown with its axes in the order of the world's (a sagittal scan has
its slices along x), and one that lies oblique is turned straight about the origin. Scans of the
same direction still overlay; what is written to files keeps the exact place.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np

from napari_sam2.io.volume import RAS_OF_LPS, ReadError, Volume

_TO_WORLD = RAS_OF_LPS[[2, 1, 0, 3]]  # from R, A, S to S, P, L
_REVERSED = np.eye(4)[[2, 1, 0, 3]]  # from z, y, x to x, y, z
_STRAIGHT = 0.1  # degrees; less is rounding


def world_affine(volume: Volume) -> np.ndarray:
    """(4, 4): (z, y, x, 1) voxel indices -> (superior, posterior, left) in mm, exactly.

    Of an image without a place in a patient, only the spacing is known: its first voxel lies at 0.
    """
    if volume.affine is None:
        return np.diag([*volume.spacing[-3:], 1.0])
    affine: np.ndarray = _TO_WORLD @ volume.affine @ _REVERSED
    return affine


def ras_of_world(affine: np.ndarray) -> np.ndarray:
    """The opposite: from (4, 4) of `world_affine` to that of a `Volume`, x, y, z to RAS mm."""
    result: np.ndarray = _TO_WORLD.T @ affine @ _REVERSED
    return result


def orientation(volume: Volume) -> str | None:
    """Where x, y and z grow to, in letters: "LPS" is left, posterior, superior."""
    if volume.affine is None:
        return None
    from nibabel.orientations import aff2axcodes

    return "".join(letter or "?" for letter in aff2axcodes(volume.affine))


def obliqueness(volume: Volume) -> float:
    """Degrees between the image's axes and the world's nearest ones; 0 below a tenth."""
    cosine = (np.trace(_rotation(world_affine(volume), layer_axes(volume))) - 1) / 2
    degrees = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return degrees if degrees > _STRAIGHT else 0.0


def has_place(volume: Volume) -> bool:
    """Whether the file says where it lies in a patient; NIfTI files without sform and qform don't.

    Frames in time have none along their first axis, so they are not compared with anything.
    """
    header = volume.nifti_header
    is_placed = header is None or header["sform_code"] > 0 or header["qform_code"] > 0
    return volume.affine is not None and volume.axes != "tyx" and bool(is_placed)


def on_image(labels: Volume, image: Volume, path: str | os.PathLike[str]) -> Volume:
    """Labels along the axes of the image that they were made on.

    Those of the same grid whose axes have another order or direction are put in the image's; where
    labels or image have no place, and where the shapes differ, labels are returned as they are.

    path: of the labels, for people.

    Raises: ReadError where they lie elsewhere, by more than half a voxel.
    """
    from nibabel.orientations import inv_ornt_aff, io_orientation

    if not (has_place(labels) and has_place(image)):
        return labels
    assert labels.affine is not None and image.affine is not None
    shape, size = labels.shape[-3:], image.shape[-3:]  # z, y, x
    turn = io_orientation(np.linalg.inv(image.affine) @ labels.affine)
    order = [2 - [int(axis) for axis in turn[:, 0]].index(2 - axis) for axis in range(3)]
    if (turn != [[0, 1], [1, 1], [2, 1]]).any() and tuple(shape[axis] for axis in order) == size:
        first = len(labels.shape) - 3
        steps = [slice(None, None, int(step)) for step in turn[::-1, 1]]
        array = labels.array[(slice(None),) * first + tuple(steps)]
        axes = [*range(first), *(first + axis for axis in order)]
        turned = replace(
            labels,
            array=array.transpose(axes),
            affine=labels.affine @ inv_ornt_aff(turn, shape[::-1]),
            spacing=(*labels.spacing[:-3], *(labels.spacing[-3:][axis] for axis in order)),
            nifti_header=None,  # it is of the other order
        )
        if _apart(turned, image) <= 0.5 * min(image.spacing[-3:]):
            return turned
    if shape == size and (apart := _apart(labels, image)) > 0.5 * min(image.spacing[-3:]):
        raise ReadError(
            f"{path} lies elsewhere in space than the image {image.source} (up to {apart:.1f} mm "
            "off): resample it to the image first."
        )
    return labels


def _apart(labels: Volume, image: Volume) -> float:
    """How far from each other, in mm, corners of two volumes of one shape lie at most."""
    assert labels.affine is not None and image.affine is not None
    corners = np.array([[x, y, z, 1] for z in (0, 1) for y in (0, 1) for x in (0, 1)])
    corners[:, :3] *= np.array(image.shape[-3:])[::-1]
    apart = (corners @ (labels.affine - image.affine).T)[:, :3]
    return float(np.linalg.norm(apart, axis=1).max())


def layer_axes(volume: Volume) -> tuple[int, int, int]:
    """Which of the array's z, y, x (0, 1, 2) a layer has along superior, posterior and left."""
    if volume.affine is None:
        return 0, 1, 2
    from nibabel.orientations import io_orientation

    nearest = [int(axis) for axis in io_orientation(world_affine(volume))[:, 0]]
    return nearest.index(0), nearest.index(1), nearest.index(2)


def layer_affine(volume: Volume) -> np.ndarray:
    """(4, 4): voxel indices in the layer's order of axes -> the world, with an oblique image turned
    straight about the world's origin.
    """
    affine, order = world_affine(volume), layer_axes(volume)
    straight = np.eye(4)
    straight[:3, :3] = np.diag(_steps(affine, order))
    straight[:3, 3] = _rotation(affine, order).T @ affine[:3, 3]
    return straight


def to_layer_order(array: Any, volume: Volume) -> Any:
    """A file's array (its axes those of `volume`, colour last) as a layer shows it.

    Its axes are put in the world's order, and an image that has one slice only because a `Volume`
    needs one loses it. Nothing is copied.
    """
    if _is_flat(volume):
        return array[..., 0, :, :, :] if _has_colour(array, volume) else array[..., 0, :, :]
    return array.transpose(_permutation(array.ndim, volume, layer_axes(volume)))


def to_file_order(array: Any, volume: Volume) -> Any:
    """The opposite of `to_layer_order`: a layer's array, labels say, with the shape of `volume`."""
    if _is_flat(volume):
        return array[..., np.newaxis, :, :]
    order = layer_axes(volume)
    back = order.index(0), order.index(1), order.index(2)
    return array.transpose(_permutation(array.ndim, volume, back))


def shape_in_layer(volume: Volume) -> tuple[int, ...]:
    """Of what `to_layer_order` makes of an array with the shape of ``volume``."""
    shape: tuple[int, ...] = to_layer_order(np.broadcast_to(False, volume.shape), volume).shape
    return shape


def _is_flat(volume: Volume) -> bool:
    return volume.axes == "yx" and volume.affine is None


def _has_colour(array: Any, volume: Volume) -> bool:
    return array.ndim > len(volume.shape)


def _permutation(ndim: int, volume: Volume, order: tuple[int, int, int]) -> list[int]:
    """Of an array's axes, where those of space go into `order`; "tyx" has no third of space."""
    if volume.affine is None:
        return list(range(ndim))
    first = len(volume.shape) - 3
    return [*range(first), *(first + axis for axis in order), *range(first + 3, ndim)]


def _steps(affine: np.ndarray, order: tuple[int, int, int]) -> np.ndarray:
    """(3,) the spacing along the layer's axes, negative where indices grow against the world's."""
    columns = affine[:3, list(order)]
    spacing: np.ndarray = np.linalg.norm(columns, axis=0) * np.where(np.diag(columns) < 0, -1, 1)
    return spacing


def _rotation(affine: np.ndarray, order: tuple[int, int, int]) -> np.ndarray:
    """(3, 3) the rotation from the straight image to where it lies: the nearest to its axes."""
    left, _, right = np.linalg.svd(affine[:3, list(order)] / _steps(affine, order))
    rotation: np.ndarray = left @ right
    return rotation
