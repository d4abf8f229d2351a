"""Prompts of one image placed on another, where they lie in the world.

For scans of one patient, or of many in about the same place: a template's clicks, boxes, scribbles,
lassos and painted slices go to the nearest slice of the other image. What lies outside it is left
out and told. Where a person has chosen how closely to look at an object, or between which slices
it is, that goes along.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_sam2.areas import CLOSE
from napari_sam2.counted import counted
from napari_sam2.io.place import world_affine
from napari_sam2.io.volume import Volume
from napari_sam2.sequence_view import SequenceKey
from napari_sam2.session import NothingToDo, Session
from napari_sam2.slice_data import Life, ObjectMask, SessionState, SlicePrompts


class PlacementError(ValueError):
    """Prompts cannot be placed on an image; the message is a sentence that says why."""


@dataclass(frozen=True)
class Placement:
    """From voxels of a template to voxels of another image, both (z, y, x)."""

    matrix: NDArray[np.float64]
    """(4, 4): (z, y, x, 1) of the template -> (z, y, x, 1) of the image."""
    shape: tuple[int, ...]
    """(z, y, x) of the image."""

    @classmethod
    def between(cls, template: Volume, image: Volume) -> Placement:
        """By the patient's space; where neither image has one, by spacing from the first voxel.

        Raises PlacementError where only one of them lies in a patient, or they have no z.
        """
        for volume in (template, image):
            if volume.axes != "zyx":
                raise PlacementError(
                    f"{volume.source} is no volume, so prompts cannot be placed by their position."
                )
        if (template.affine is None) != (image.affine is None):
            without = template if template.affine is None else image
            raise PlacementError(
                f"{without.source} does not say where it lies, so prompts cannot be placed by "
                "their position in the world; give prompts of its own."
            )
        matrix = np.linalg.inv(world_affine(image)) @ world_affine(template)
        return cls(matrix, image.shape)

    def axis(self, axis: int) -> int:
        """The axis of the image that is nearest to an axis of the template."""
        along = self.matrix[:3, axis] / np.linalg.norm(self.matrix[:3, :3], axis=1)
        return int(np.abs(along).argmax())

    def points(self, zyx: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 3) -> (N, 3)."""
        moved: NDArray[np.float64] = zyx @ self.matrix[:3, :3].T + self.matrix[:3, 3]
        return moved


def place(state: SessionState, session: Session, placement: Placement) -> list[str]:
    """Give a session the objects and prompts of a template.

    state: of the template's session, made on a volume (z, y, x). session: empty, on the image.

    Returns what was left out, a sentence each. Raises PlacementError if nothing lies on the image.
    """
    for object_id, info in state.objects.items():
        session.add_object(info.name, object_id=object_id)
        session.edit_object(object_id, colour=info.colour)
    notes = []
    count = 0
    for (key, object_id), known in state.sequences.items():
        if key.axis is None or len(key.position) != 3:
            raise PlacementError("The template's session was not made on a volume (z, y, x).")
        axis = placement.axis(key.axis)
        session.show(SequenceKey.along(axis, 3))
        taken: set[int] = set()
        lost = 0
        marked = {frame: _positions(said) for frame, said in sorted(known.prompts.items())}
        everywhere = np.concatenate([np.empty((0, 2)), *marked.values()])
        for frame, positions in marked.items():
            moved = _Moved(placement, key.axis, axis, frame)
            # A slice that is painted as empty lies where the object is on others.
            yx = positions if len(positions) else everywhere
            target = moved.frame(yx) if len(yx) and moved.is_inside(yx) else -1
            if not 0 <= target < placement.shape[axis]:
                lost += 1
            elif target not in taken:  # two slices of a finer template can meet on one
                taken.add(target)
                moved.give(session, object_id, target, known.prompts[frame])
        if known.look is not None and known.look.is_settled:
            with suppress(NothingToDo):  # clicks do not say how large the object is here
                session.look_closely(object_id, None if known.look.area is None else CLOSE)
        if taken and known.own_life != Life():  # a lineage is not placed
            life = _placed_life(known.own_life, everywhere, placement, key.axis, axis)
            session.set_life(object_id, *life.widened(taken))
        count += len(taken)
        if lost:
            name = state.objects[object_id].name
            notes.append(f"{name} has {counted(lost, 'marked slice')} outside this image.")
    if not count:
        raise PlacementError(
            "None of the template's marks lies on this image; check that both show the same place."
        )
    return notes


def _placed_life(
    life: Life, yx: NDArray[np.float64], placement: Placement, axis: int, to_axis: int
) -> Life:
    """Between which slices of the image an object is: those nearest to where it ends about its
    marks (N, 2) in the template."""
    first, last = (
        None if frame is None else _Moved(placement, axis, to_axis, frame).frame(yx)
        for frame in (life.first or None, life.last)
    )
    if placement.matrix[to_axis, axis] < 0:
        first, last = last, first
    end = placement.shape[to_axis] - 1
    return Life(
        0 if first is None else max(first, 0),
        None if last is None else min(last, end),
    )


@dataclass(frozen=True)
class _Moved:
    """A slice of the template, and where it comes to lie."""

    placement: Placement
    axis: int
    """Along which the template is sliced."""
    to_axis: int
    """Along which the image is sliced."""
    at: int
    """The template's slice."""

    def frame(self, yx: NDArray[np.float64]) -> int:
        """The slice nearest to the middle of (N, 2) positions; it may lie outside the image."""
        middle = yx.mean(0, keepdims=True)
        return round(float(self.placement.points(self._lifted(middle))[0, self.to_axis]))

    def is_inside(self, yx: NDArray[np.float64]) -> bool:
        """Whether all of (N, 2) positions lie on the image's slices."""
        height, width = (n for a, n in enumerate(self.placement.shape) if a != self.to_axis)
        found = self.moved(yx)
        return bool(((found >= -0.5) & (found <= (height - 0.5, width - 0.5))).all())

    def give(self, session: Session, object_id: int, frame: int, said: SlicePrompts) -> None:
        """Set the prompts on a slice of the image."""
        if said.mask is not None:
            session.paint(object_id, frame, self._resampled(said.mask, frame))
            return
        box = None
        if said.box is not None:
            y0, x0, y1, x1 = said.box
            corners = self.moved(np.array([(y0, x0), (y0, x1), (y1, x0), (y1, x1)]))
            box = (*corners.min(0), *corners.max(0))
        session.set_prompts(
            object_id,
            frame,
            points=self.moved(said.points),
            labels=said.labels,
            box=box,
            scribbles=[(self.moved(line.path), line.label) for line in said.scribbles],
            lassos=[self.moved(polygon) for polygon in said.lassos],
        )

    def moved(self, yx: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) on the template's slice -> (N, 2) on the image's, both in the plane's axes."""
        return np.delete(self.placement.points(self._lifted(yx)), self.to_axis, axis=1)

    def _lifted(self, yx: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) on the template's slice -> (N, 3)."""
        return np.insert(np.asarray(yx, float).reshape(-1, 2), self.axis, self.at, axis=1)

    def _resampled(self, mask: ObjectMask, frame: int) -> NDArray[np.bool_]:
        """(H, W) a painted slice on a slice of the image: each pixel takes the nearest one."""
        plane = [n for a, n in enumerate(self.placement.shape) if a != self.to_axis]
        rows, columns = np.indices(plane).reshape(2, -1)
        zyx = np.insert(np.stack([rows, columns], 1).astype(float), self.to_axis, frame, axis=1)
        back = np.linalg.inv(self.placement.matrix)
        source = np.delete(zyx @ back[:3, :3].T + back[:3, 3], self.axis, axis=1)
        y, x = np.rint(source - (mask.top, mask.left)).astype(int).T
        height, width = mask.logits.shape
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        painted = np.zeros(len(y), np.bool_)
        painted[inside] = mask.logits[y[inside], x[inside]] > 0
        return painted.reshape(plane)


def _positions(said: SlicePrompts) -> NDArray[np.float64]:
    """(N, 2) all positions of some prompts; of what is painted, its corners."""
    found = [places for _, places in said.places]
    if said.mask is not None and not said.mask.is_empty:
        found.append(np.reshape(said.mask.box, (2, 2)))
    return np.concatenate([np.empty((0, 2)), *found])
