"""Movies of cells that move, touch, divide, enter and leave, with the exact truth.

movie = make_movie(frames=20, size=(128, 128), cells=6, seed=0)
movie.images, movie.labels, movie.parents

Tests and benchmarks of tracking use them. Cells are bright ellipses on a dark, noisy ground, as
nuclei under a fluorescence microscope; they are easier than real ones, and known to the pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_GROUND, _LIGHT, _NOISE = 30.0, 120.0, 6.0  # intensities; the noise is a standard deviation
_LEAST = 12  # pixels of a cell in the picture; with fewer it is not there yet, or has left
_BEFORE = 3  # frames over which a cell grows long before it divides
_LONG = 1.7  # length over width of a cell in the last frame before its division
_AGE = 6  # frames that a daughter lives at least before it divides
_GROWTH = 8  # frames in which a daughter grows to the size of its parent


@dataclass(frozen=True)
class Movie:
    """A movie and what is true of it."""

    images: NDArray[np.float32]
    """(T, H, W) intensities."""
    labels: NDArray[np.int32]
    """(T, H, W) 0 is the ground. A cell has one id from its first frame to its last or until it
    divides; then its daughters have new ones."""
    parents: Mapping[int, int]
    """Id of a daughter -> id of the cell that divided."""


@dataclass(frozen=True)
class Ellipse:
    """A cell in one frame; lengths in pixels."""

    y: float
    x: float
    along: float
    """Half of its length."""
    across: float
    """Half of its width."""
    angle: float = 0.0
    """Of its long axis, in radians from the y axis towards x."""


def make_movie(
    frames: int = 20,
    size: tuple[int, int] = (128, 128),
    cells: int = 6,
    seed: int = 0,
    *,
    diameter: float = 18.0,
    speed: float = 1.0,
    dividing: int = 2,
    entering: int = 1,
    leaving: int = 1,
) -> Movie:
    """A movie of cells; equal arguments give an equal movie.

    Args:
        size: (H, W).
        cells: in the picture at the start.
        diameter: of a full-grown cell, in pixels.
        speed: pixels a frame; cells wander, and push each other away where they touch.
        dividing: divisions, if there are enough cells and frames for them. A cell grows long for
            some frames, and two daughters of half its area appear beside each other.
        entering, leaving: cells that come over the border in the middle of the movie, and those of
            the first frame that go over it.

    Raises ValueError where the cells do not fit into the picture, or a number is negative.
    """
    if frames < 1 or min(cells, dividing, entering, leaving) < 0 or diameter < 6:
        raise ValueError("Numbers of cells are not negative; a diameter is 6 pixels or more.")
    if cells * diameter**2 > 0.6 * size[0] * size[1]:
        raise ValueError(f"{cells} cells of {diameter:g} pixels do not fit into {size}.")
    world = _World(size, diameter / 2, speed, np.random.default_rng(seed))
    world.fill(cells, leaving)
    divide_at = sorted(_spread(dividing, _BEFORE + 1, frames - 2, world.rng))
    enter_at = _spread(entering, 1, max(1, frames // 2), world.rng)
    shapes = []
    for frame in range(frames):
        for _ in range(enter_at.count(frame)):
            world.enter()
        for due in divide_at:
            if frame == due - _BEFORE:
                world.prepare_division()
        shapes.append(world.shapes())
        world.step()
    images, labels = draw_movie(shapes, size, seed)
    seen = set(np.unique(labels).tolist())
    return Movie(images, labels, {d: p for d, p in world.parents.items() if {d, p} <= seen})


def draw_movie(
    shapes: Sequence[Mapping[int, Ellipse]], size: tuple[int, int], seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Draw known cells.

    shapes: for each frame, id -> ellipse. size: (H, W).

    Returns images and labels, each (T, H, W). Where two cells overlap, a pixel belongs to the one
    of whose ellipse it lies deeper inside. Cells of which fewer than 12 pixels are in the picture
    are left out of both.
    """
    images = np.zeros((len(shapes), *size), np.float32)
    labels = np.zeros((len(shapes), *size), np.int32)
    for frame, cells in enumerate(shapes):
        nearest = np.ones(size)
        for number, cell in cells.items():
            area, depth = _depth(cell, size)
            if (depth < 1).sum() < _LEAST:
                continue
            inside = depth < nearest[area]
            nearest[area][inside] = depth[inside]
            labels[frame][area][inside] = number
        light = np.where(labels[frame] > 0, 1 - 0.5 * nearest**2, 0)  # dim at the border
        images[frame] = _GROUND + _LIGHT * ndimage.gaussian_filter(light, 0.8)
    noise = np.random.default_rng(seed).normal(0, _NOISE, images.shape)
    return images + noise.astype(np.float32), labels


def _depth(cell: Ellipse, size: tuple[int, int]) -> tuple[tuple[slice, slice], NDArray[np.float64]]:
    """A part of the picture, and there the squared distance from the middle; 1 at the border."""
    reach = max(cell.along, cell.across) + 1
    rows, columns = (
        slice(max(0, math.floor(c - reach)), max(0, min(n, math.ceil(c + reach) + 1)))
        for c, n in zip((cell.y, cell.x), size, strict=True)
    )
    y, x = np.ogrid[rows, columns]
    along = (y - cell.y) * math.cos(cell.angle) + (x - cell.x) * math.sin(cell.angle)
    across = (x - cell.x) * math.cos(cell.angle) - (y - cell.y) * math.sin(cell.angle)
    return (rows, columns), (along / cell.along) ** 2 + (across / cell.across) ** 2


def _spread(number: int, low: int, high: int, rng: np.random.Generator) -> list[int]:
    """So many frames from low to high (included); none where there are none."""
    return [] if high < low else rng.integers(low, high + 1, number).tolist()


@dataclass
class _Cell:
    place: NDArray[np.float64]
    """y, x."""
    velocity: NDArray[np.float64]
    born: int
    radius: float
    stays: bool
    """Whether it keeps away from the border."""
    divides_at: int | None = None
    angle: float = 0.0


class _World:
    """Cells that move; lengths in pixels, times in frames."""

    def __init__(
        self, size: tuple[int, int], radius: float, speed: float, rng: np.random.Generator
    ) -> None:
        self.size, self.radius, self.speed, self.rng = np.array(size, float), radius, speed, rng
        self.cells: dict[int, _Cell] = {}
        self.parents: dict[int, int] = {}
        self._frame = self._last_id = 0

    def fill(self, cells: int, leaving: int) -> None:
        """The cells of the first frame; some of them are on their way to the border."""
        margin = np.full(2, 1.5 * self.radius)
        for number in range(cells):
            tries = self.rng.uniform(margin, self.size - margin, (200, 2))
            others = np.array([c.place for c in self.cells.values()]).reshape(-1, 2)
            gaps = np.linalg.norm(tries[:, None] - others, axis=-1).min(axis=1, initial=np.inf)
            free = tries[np.argsort(-gaps, kind="stable")[:20]]  # farthest from the others
            if number < leaving:
                free = free[np.minimum(free, self.size - free).min(axis=1).argsort()]
            self._add(free[0], self._direction(), self.radius, stays=number >= leaving)
        for cell in list(self.cells.values())[:leaving]:
            self._send_out(cell)

    def enter(self) -> None:
        """A cell just outside of the border, on its way in."""
        axis, far = self.rng.integers(0, 2, 2)
        place = self.rng.uniform(0.25 * self.size, 0.75 * self.size)
        place[axis] = self.size[axis] + self.radius if far else -self.radius
        velocity = np.zeros(2)
        velocity[axis] = (-1 if far else 1) * 1.5 * self.speed
        self._add(place, velocity, self.radius, stays=False)

    def prepare_division(self) -> None:
        """Let a cell divide some frames from now, if there is one that can."""
        able = [
            cell
            for cell in self.cells.values()
            if cell.stays
            and cell.divides_at is None
            and (cell.born == 0 or self._frame - cell.born >= _AGE)
        ]
        if able:
            cell = able[self.rng.integers(len(able))]
            cell.divides_at = self._frame + _BEFORE
            cell.angle = float(self.rng.uniform(0, math.pi))

    def shapes(self) -> dict[int, Ellipse]:
        """Id -> where and how a cell is now."""
        return {number: self._shape(cell) for number, cell in self.cells.items()}

    def step(self) -> None:
        """Go on to the next frame."""
        self._frame += 1
        for number, cell in list(self.cells.items()):
            if cell.stays:
                turned = cell.velocity + self.rng.normal(0, 0.4 * self.speed, 2)
                cell.velocity = turned * self.speed / max(float(np.linalg.norm(turned)), 1e-6)
            cell.place = cell.place + cell.velocity
            cell.radius = min(self.radius, cell.radius + self.radius * 0.3 / _GROWTH)
            outside = (cell.place < -self.radius - 2) | (cell.place > self.size + self.radius + 2)
            if outside.any():
                del self.cells[number]
            elif cell.divides_at == self._frame:
                self._divide(number)
        self._push_apart()

    def _shape(self, cell: _Cell) -> Ellipse:
        ratio = 1.0
        if cell.divides_at is not None:
            ratio += (_LONG - 1) * (1 - (cell.divides_at - self._frame - 1) / _BEFORE)
        root = math.sqrt(ratio)
        y, x = cell.place
        return Ellipse(float(y), float(x), cell.radius * root, cell.radius / root, cell.angle)

    def _divide(self, number: int) -> None:
        cell = self.cells.pop(number)
        axis = np.array([math.cos(cell.angle), math.sin(cell.angle)])
        small = cell.radius / math.sqrt(2)  # half of the area
        for side in (-1, 1):
            daughter = self._add(cell.place + side * small * axis, side * axis, small, stays=True)
            self.parents[daughter] = number

    def _add(
        self, place: NDArray[np.float64], velocity: NDArray[np.float64], radius: float, stays: bool
    ) -> int:
        self._last_id += 1
        self.cells[self._last_id] = _Cell(place, velocity, self._frame, radius, stays)
        return self._last_id

    def _direction(self) -> NDArray[np.float64]:
        angle = self.rng.uniform(0, 2 * math.pi)
        return self.speed * np.array([math.cos(angle), math.sin(angle)])

    def _send_out(self, cell: _Cell) -> None:
        """On the shortest way over the border, and quick."""
        ways = np.concatenate((cell.place, self.size - cell.place))
        nearest = int(ways.argmin())
        cell.velocity = np.zeros(2)
        cell.velocity[nearest % 2] = (-1 if nearest < 2 else 1) * 1.5 * self.speed

    def _push_apart(self) -> None:
        """Cells that overlap go apart until they hardly do; those that stay, off the border."""
        for _ in range(4):
            cells = list(self.cells.values())
            for index, one in enumerate(cells):
                for other in cells[index + 1 :]:
                    between = other.place - one.place
                    gap = float(np.linalg.norm(between))
                    overlap = 0.95 * (one.radius + other.radius) - gap
                    if overlap > 0:
                        push = between / max(gap, 1e-6) * overlap / 2
                        one.place, other.place = one.place - push, other.place + push
            for cell in cells:
                if cell.stays:
                    low, high = cell.radius * 1.3, self.size - 1 - cell.radius * 1.3
                    inside = np.clip(cell.place, low, high)
                    cell.velocity = np.where(inside != cell.place, -cell.velocity, cell.velocity)
                    cell.place = inside
