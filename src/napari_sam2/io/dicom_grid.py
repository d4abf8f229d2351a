"""From the frames of a series to its grid: order along the normal, time points, affine, and what is
odd about them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import ArrayLike

from napari_sam2.counted import counted, listed
from napari_sam2.io.dicom_frames import Frame, Mark
from napari_sam2.io.volume import RAS_OF_LPS, spacing_of

# What tells several volumes of a series apart, by value, in order of trust; and which axis it makes
_BY_VALUE = {
    "temporal position": "t",
    "echo time": "c",
    "b-value": "c",
    "image type": "c",
    "time offset": "t",
    "trigger time": "t",
    "frame reference time": "t",
    "acquisition number": "t",
    "acquisition time": "t",
}
_BY_RANK = ("trigger time", "acquisition time", "acquisition number", "content time",
            "instance number", "frame")  # fmt: skip
_TIMES = ("time offset", "trigger time", "frame reference time", "acquisition time", "cine time")


@dataclass(frozen=True, eq=False)
class Grid:
    """Frames in their order.

    frames: one list of slices, ordered along z, per volume.
    axis: what the volumes are: "t" for time points, "c" for kinds of picture (echoes, b-values), ""
        for a single one.
    names: of the volumes along "c".
    interval: between time points, in seconds, or None.
    affine: (4, 4), voxel (x, y, z) -> RAS mm, or None where the files do not say.
    voxel: its size (z, y, x) in `unit`, "mm" or "pixel".
    """

    frames: list[list[Frame]]
    axis: str
    names: tuple[str, ...]
    interval: float | None
    affine: np.ndarray | None
    voxel: tuple[float, float, float]
    unit: str
    notes: tuple[str, ...]

    @property
    def axes(self) -> str:
        """As in `Volume`: "zyx", "tzyx", "czyx"; without a place also "tyx" and "yx"."""
        if self.affine is None and len(self.frames[0]) == 1:
            return f"{self.axis}yx"
        return f"{self.axis}zyx"

    @property
    def shape(self) -> tuple[int, ...]:
        """Along `axes`, as `Volume.shape`."""
        rows, columns = self.frames[0][0].size
        if self.axes == "tyx":
            return len(self.frames), rows, columns
        volume = (len(self.frames[0]), rows, columns)
        return (len(self.frames), *volume) if self.axis else volume

    @property
    def spacing(self) -> tuple[float, ...]:
        """Along `axes`, as in `Volume`."""
        if self.axes == "tyx":
            return (self.interval or 1.0, *self.voxel[1:])
        return (self.interval or 1.0, *self.voxel) if self.axis == "t" else self.voxel

    @property
    def windows(self) -> dict[str, tuple[float, float]]:
        """Those that the file proposes for the slice in the middle."""
        slices = self.frames[0]
        middle = slices[len(slices) // 2]
        return {} if middle.is_colour else middle.windows


def grids_of(frames: list[Frame]) -> list[list[Frame]]:
    """Part the frames of a series into those that fit on one grid: of the same size, colour,
    orientation and pixel spacing. A localizer in the series of its scan comes out alone."""
    parts: list[list[Frame]] = []
    for frame in frames:
        for part in parts:
            if _fits(frame, part[0]):
                part.append(frame)
                break
        else:
            parts.append([frame])
    return parts


def _fits(a: Frame, b: Frame) -> bool:
    pixel = min(a.pixel_spacing or (1.0,))
    return (
        a.size == b.size
        and a.is_colour == b.is_colour
        and _alike(a.orientation, b.orientation, 0.01)
        and _alike(a.pixel_spacing, b.pixel_spacing, 1e-3 * pixel)
    )


def _alike(one: ArrayLike | None, other: ArrayLike | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.abs(np.subtract(one, other)).max() <= tolerance)


def grid_of(frames: list[Frame]) -> Grid:
    """The grid of frames that fit on one."""
    notes: list[str] = []
    frames = _without_lost(_without_copies(frames, notes), notes)
    if all(f.is_placed for f in frames):
        volumes, axis, key = _volumes(frames, notes)
        affine = _affine(volumes[0], notes)
        interval = _interval(volumes, key, notes) if axis == "t" else None
        names = _names([v[0].marks[key] for v in volumes], key) if axis == "c" and key else ()
        return Grid(volumes, axis, names, interval, affine, spacing_of(affine), "mm", tuple(notes))
    frames = sorted(frames, key=lambda f: f.order)
    interval = _interval([[f] for f in frames], "cine time", notes) if len(frames) > 1 else None
    if len(frames) > 1 and interval is None:
        notes.append(
            "The files do not say where the slices lie; they are in the order of their numbers."
        )
    in_plane = frames[0].pixel_spacing
    voxel = (1.0 if in_plane is None else frames[0].thickness or 1.0, *(in_plane or (1.0, 1.0)))
    return Grid(
        frames=[frames] if interval is None else [[f] for f in frames],
        axis="" if interval is None else "t",
        names=(),
        interval=interval,
        affine=None,
        voxel=voxel,
        unit="pixel" if in_plane is None else "mm",
        notes=tuple(notes),
    )


def _without_copies(frames: list[Frame], notes: list[str]) -> list[Frame]:
    seen = set()
    kept = []
    for frame in frames:
        position = None if frame.position is None else tuple(frame.position)
        same = (frame.uid, frame.index, position, frame.order)
        if not frame.uid or same not in seen:
            kept.append(frame)
        seen.add(same)
    _note_left_out(len(frames) - len(kept), "they are copies of others", notes)
    return kept


def _without_lost(frames: list[Frame], notes: list[str]) -> list[Frame]:
    """Without the few that do not say where they lie, where most do: their headers are damaged."""
    placed = [f for f in frames if f.is_placed]
    lost = [f.source.name for f in frames if not f.is_placed]
    if not lost or len(lost) >= len(placed):
        return frames
    notes.append(f"{counted(len(lost), 'slice')} left out, with no position: {listed(lost, 3)}.")
    return placed


def _note_left_out(count: int, why: str, notes: list[str]) -> None:
    if count:
        notes.append(f"{counted(count, 'doubled slice')} left out: {why}.")


# ---- which frames make a volume


def _volumes(frames: list[Frame], notes: list[str]) -> tuple[list[list[Frame]], str, str | None]:
    """Volumes (lists of slices in order of position), their axis, and the mark that tells them
    apart."""
    stacks = _stacks(frames)
    if max(len(stack) for stack in stacks) == 1:
        return [[stack[0] for stack in stacks]], "", None
    for key, axis in _BY_VALUE.items():
        volumes = _complete_volumes(stacks, key) if _tells_apart(stacks, key) else []
        left_out = len(frames) - len(stacks) * len(volumes)
        if 2 * left_out >= len(frames):
            continue  # these slices share a value by chance
        if len(volumes) == 1:
            _note_left_out(left_out, "their positions occur twice", notes)
            return volumes, "", None
        if left_out:
            notes.append(f"{counted(left_out, 'slice')} left out: their volumes are not complete.")
        return volumes, axis, key
    counts = {len(stack) for stack in stacks}
    if len(counts) > 1:
        _note_left_out(len(frames) - len(stacks), "their positions occur twice", notes)
        return [[min(stack, key=lambda f: f.order) for stack in stacks]], "", None
    rank = next((key for key in _BY_RANK if _tells_apart(stacks, key)), "frame")
    if rank not in _TIMES:
        notes.append(
            f"The files do not say what tells the {len(stacks[0])} volumes at one place apart; "
            "they are in the order of their numbers."
        )
    ranked = [sorted(stack, key=lambda f: float(f.marks[rank])) for stack in stacks]
    return [list(volume) for volume in zip(*ranked, strict=True)], "t", rank


def _stacks(frames: list[Frame]) -> list[list[Frame]]:
    """Frames that share a position, in order of position."""
    frames = sorted(frames, key=lambda f: (f.depth, f.order))
    tolerance = 1e-2 * min(frames[0].pixel_spacing or (1.0, 1.0))
    stacks: list[list[Frame]] = []
    for frame in frames:
        if stacks and frame.depth - stacks[-1][0].depth <= tolerance:
            stacks[-1].append(frame)
        else:
            stacks.append([frame])
    return stacks


def _tells_apart(stacks: list[list[Frame]], key: str) -> bool:
    """Whether every frame has the mark, and no two at one position the same."""
    return all(
        len({f.marks[key] for f in stack if key in f.marks}) == len(stack) for stack in stacks
    )


def _complete_volumes(stacks: list[list[Frame]], key: str) -> list[list[Frame]]:
    by_value: dict[Mark, list[Frame]] = defaultdict(list)
    for stack in stacks:
        for frame in stack:
            by_value[frame.marks[key]].append(frame)
    values = sorted(by_value, key=lambda v: (0.0, v) if isinstance(v, str) else (v, ""))
    return [by_value[value] for value in values if len(by_value[value]) == len(stacks)]


def _names(values: list[Mark], key: str) -> tuple[str, ...]:
    """Of the volumes along "c"; of image types, the parts in which they differ."""
    if key == "image type":
        parts = list(zip_longest(*(str(value).split("\\") for value in values), fillvalue=""))
        differing = [part for part in parts if len(set(part)) > 1]
        return tuple(" ".join(name).strip() for name in zip(*differing, strict=True))
    form = "TE {:g} ms" if key == "echo time" else "b {:g} s/mm2"
    return tuple(form.format(value) for value in values)


def _interval(volumes: list[list[Frame]], key: str | None, notes: list[str]) -> float | None:
    """Seconds between volumes, by what tells them apart, or by another time that all have."""
    for mark in (key,) if key in _TIMES else _TIMES:
        times = [[f.marks.get(mark) for f in volume] for volume in volumes]
        if any(not isinstance(t, float) for volume in times for t in volume):
            continue
        gaps = np.diff(np.mean(np.array(times, dtype=np.float64), axis=1))
        usual = float(np.median(gaps))
        if gaps.min() > 0:
            if gaps.max() - gaps.min() > 0.1 * usual:
                notes.append(
                    f"Time points are unequally spaced: {gaps.min():.3g} to {gaps.max():.3g} s, "
                    f"mostly {usual:.3g} s."
                )
            return usual
    return None


# ---- where a volume lies


def _affine(slices: list[Frame], notes: list[str]) -> np.ndarray:
    """(4, 4), voxel (x, y, z) -> RAS mm, with notes on positions that do not fit it."""
    first = slices[0]
    assert first.position is not None and first.orientation is not None
    along_row, along_column = first.orientation
    normal = np.cross(along_row, along_column)
    between_rows, between_columns = first.pixel_spacing or (1.0, 1.0)
    if first.pixel_spacing is None:
        notes.append("The files give no pixel spacing; it is taken as 1 mm.")
    if len(slices) > 1:
        step = _step(slices, normal, min(between_rows, between_columns), notes)
    else:
        step = normal * (first.thickness or 1.0)
        if first.thickness is None:
            notes.append("The files give no slice thickness; it is taken as 1 mm.")
    affine = np.eye(4)
    affine[:3, 0] = along_row * between_columns
    affine[:3, 1] = along_column * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return RAS_OF_LPS @ affine


def _step(slices: list[Frame], normal: np.ndarray, pixel: float, notes: list[str]) -> np.ndarray:
    """From one slice to the next, in mm."""
    positions = np.array([s.position for s in slices])
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    if gaps.max() - gaps.min() > 0.05 * usual:
        step *= usual / gaps.mean()
        notes.append(_uneven(gaps, usual))
    else:
        off_line = positions - positions[0] - np.arange(len(slices))[:, None] * step
        shift = float(np.linalg.norm(off_line - np.outer(off_line @ normal, normal), axis=1).max())
        if shift > 0.5 * pixel:
            notes.append(
                f"Slices are shifted against each other by up to {shift:.1f} mm, which is left so."
            )
    tilt = np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
    if tilt > 0.5:
        notes.append(f"The gantry is tilted by {tilt:.1f} degrees; the affine holds it as shear.")
    return step


def _uneven(gaps: np.ndarray, usual: float) -> str:
    """Slices that are missing (a gap of whole steps), or unequally spaced."""
    steps = np.round(gaps / usual)
    odd = np.abs(gaps - usual) > 0.05 * usual
    missing = (
        int((steps[odd] - 1).sum())
        if (np.abs(gaps - steps * usual)[odd] < 0.1 * usual).all()
        else 0
    )
    where = int(np.abs(gaps - usual).argmax())
    what = (
        f"{missing} slice{'s are' if missing > 1 else ' is'} missing"
        if missing > 0
        else "Slices are unequally spaced"
    )
    return (
        f"{what}: {gaps[where]:.2f} mm lie between z = {where} and {where + 1}, elsewhere mostly "
        f"{usual:.2f} mm; positions beyond are not exact."
    )
