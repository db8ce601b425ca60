"""Cuts through a volume: along the axes or aslant, as thin as a voxel or as thick as asked for.

A picture of a cut is measured in mm along its two directions: a point p stands at (p . right, p . up), whatever the
cut, so that a cut along the axes has the positions of the geometry on its edges.

# Ref: trilinear interpolation, any textbook; outside the voxels there is nothing (NaN). Rotation about an axis:
#      Rodrigues' formula.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from reconstruction.volume import Grid

Point = tuple[float, float, float]
"""x, y, z in mm, in the axes of `calibration.geometry`."""
Direction = tuple[float, float, float]
"""A vector of length 1 along x, y, z."""
MOST_SAMPLES = 512
"""Of a slanted cut along either side: finer than most panes, coarse enough to turn while one looks."""
BLOCK = 16
"""Planes of constant x read at once: so many floats stand in one line of a processor's cache."""
SMALL_BYTES = 64 * 2**20
"""Volumes below it are cut as they are."""


class Orientation(Enum):
    """The three cuts along the axes: name, axis of a (z, y, x) array it stands across, right, and up."""

    AXIAL = ("axial", 0, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    CORONAL = ("coronal", 1, (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    SAGITTAL = ("sagittal", 2, (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

    def __init__(self, label: str, axis: int, right: Direction, up: Direction) -> None:
        self.label, self.axis, self.right, self.up = label, axis, right, up

    @property
    def letter(self) -> str:
        """Of the axis of the geometry that it stands across."""
        return "zyx"[self.axis]


class Slab(Enum):
    """What a thick cut shows of the voxels behind each other."""

    MEAN = "mean"
    MAXIMUM = "maximum"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A plane through a volume.

    Attributes
    ----------
    centre_mm : Point
        A point of it; slanted cuts turn about it.
    right, up : Direction
        At right angles.
    thickness_mm : float
        Of the slab, whose middle it is; less than two voxels: one voxel thin.
    """

    centre_mm: Point
    right: Direction
    up: Direction
    thickness_mm: float = 0.0
    slab: Slab = Slab.MEAN

    @property
    def normal(self) -> NDArray[np.float64]:
        """What stands upright on it: (3,) float64."""
        return np.cross(self.right, self.up)

    def plane_mm(self, point: Point) -> tuple[float, float]:
        """Return where a point, or its foot on the plane, stands in the picture."""
        return float(np.dot(point, self.right)), float(np.dot(point, self.up))

    def point_mm(self, right_mm: float, up_mm: float) -> Point:
        """Return the point of the plane at a position in the picture."""
        normal = self.normal
        height_mm = float(np.dot(self.centre_mm, normal))
        x, y, z = right_mm * np.array(self.right) + up_mm * np.array(self.up) + height_mm * normal
        return float(x), float(y), float(z)


def along(orientation: Orientation, centre_mm: Point, thickness_mm: float = 0.0, slab: Slab = Slab.MEAN) -> Cut:
    """Return the cut along the axes through a point."""
    return Cut(centre_mm=centre_mm, right=orientation.right, up=orientation.up, thickness_mm=thickness_mm, slab=slab)


def turned(cut: Cut, axis: Direction, angle_rad: float) -> Cut:
    """Return a cut turned about an axis through its centre, counter-clockwise as the axis points at the onlooker."""
    right, up = (_rotated(np.array(side), np.array(axis), angle_rad) for side in (cut.right, cut.up))
    right /= np.linalg.norm(right)
    up -= right * (right @ up)
    up /= np.linalg.norm(up)
    return replace(cut, right=_triple(right), up=_triple(up))


def tilted(centre_mm: Point, azimuth_rad: float, tilt_rad: float) -> Cut:
    """Return the axial cut tilted about its own right side, after that has been turned about z by the azimuth."""
    level = turned(along(Orientation.AXIAL, centre_mm), (0.0, 0.0, 1.0), azimuth_rad)
    return turned(level, level.right, tilt_rad)


def angles_rad(cut: Cut) -> tuple[float, float]:
    """Return the azimuth and tilt of a cut; a turn of the picture in its own plane is left out.

    The tilt lies between 0 and pi: the azimuth says where it tilts to.
    """
    x, y, z = cut.normal
    tilt_rad = float(np.arctan2(np.hypot(x, y), z))
    return (float(np.arctan2(x, -y)) if np.hypot(x, y) > 1e-9 else 0.0), tilt_rad


def _rotated(side: NDArray[np.float64], axis: NDArray[np.float64], angle_rad: float) -> NDArray[np.float64]:
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    return cosine * side + sine * np.cross(axis, side) + (1 - cosine) * (axis @ side) * axis


def _triple(vector: NDArray[np.float64]) -> Direction:
    x, y, z = (float(part) for part in vector)
    return x, y, z


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CutPicture:
    """What a cut shows.

    Attributes
    ----------
    values : (n_channels, h, w) float32
        Row 0 is the lowest; NaN outside the volume.
    left_mm, bottom_mm : float
        Where the edges of the picture stand.
    step_mm : float
        From one sample to the next.
    """

    values: NDArray[np.float32]
    left_mm: float
    bottom_mm: float
    step_mm: float

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height."""
        return self.values.shape[2] * self.step_mm, self.values.shape[1] * self.step_mm


def index_of(grid: Grid, point: Point) -> NDArray[np.float64]:
    """Return where a point stands in the array: (z, y, x) float64, whole numbers at the middles of voxels."""
    shape = np.array(grid.shape, float)
    return (np.array(point[::-1]) - np.array(grid.centre_mm[::-1])) / grid.voxel_mm + (shape - 1) / 2


def voxel_of(grid: Grid, point: Point) -> tuple[int, int, int] | None:
    """Return the voxel, (z, y, x), in which a point lies; None outside."""
    z, y, x = (int(n) for n in np.floor(index_of(grid, point) + 0.5))
    inside = all(0 <= n < size for n, size in zip((z, y, x), grid.shape, strict=True))
    return (z, y, x) if inside else None


def point_of(grid: Grid, voxel: tuple[float, float, float]) -> Point:
    """Return the middle of a voxel, (z, y, x)."""
    at = (np.array(voxel, float) - (np.array(grid.shape, float) - 1) / 2) * grid.voxel_mm
    x, y, z = (float(part) for part in at[::-1] + np.array(grid.centre_mm))
    return x, y, z


def held(grid: Grid, point: Point) -> Point:
    """Return the point of the volume, between its outermost voxels' middles, that is nearest."""
    z, y, x = np.clip(index_of(grid, point), 0, np.array(grid.shape) - 1)
    return point_of(grid, (float(z), float(y), float(x)))


def stepped(grid: Grid, point: Point, orientation: Orientation, n_steps: int) -> Point:
    """Return a point that has gone so many slices on, held at the last one; it stands on a slice then."""
    at = list(index_of(grid, point))
    axis = orientation.axis
    at[axis] = float(np.clip(np.floor(at[axis] + 0.5) + n_steps, 0, grid.shape[axis] - 1))
    return point_of(grid, (at[0], at[1], at[2]))


def reach_of(thickness_mm: float, voxel_mm: float) -> int:
    """Return how many voxels a slab reaches to either side of its middle one."""
    return int(thickness_mm / voxel_mm / 2 + 1e-9)


def axis_of(cut: Cut) -> Orientation | None:
    """Return along which axes a cut lies; None where it is slanted."""
    for orientation in Orientation:
        if np.allclose(cut.right, orientation.right) and np.allclose(cut.up, orientation.up):
            return orientation
    return None


class Slicer:
    """Cuts one array of channels on one grid; it belongs to one thread.

    A volume that is mapped from a file lies there with x running fastest, so that a plane of constant x touches every
    page of it. Sixteen such planes cost what one does: they are read together, and kept for the next ones asked for.

    Parameters
    ----------
    values : (n_channels, z, y, x) float32
    """

    def __init__(self, values: NDArray[np.float32], grid: Grid) -> None:
        self._values, self._grid = values, grid
        self._block: tuple[int, NDArray[np.float32]] | None = None

    def picture(self, cut: Cut) -> CutPicture:
        """Return what a cut shows."""
        orientation = axis_of(cut)
        return self._slanted(cut) if orientation is None else self._straight(cut, orientation)

    def _straight(self, cut: Cut, orientation: Orientation) -> CutPicture:
        grid, axis = self._grid, orientation.axis
        middle = int(np.floor(index_of(grid, cut.centre_mm)[axis] + 0.5))
        reach = reach_of(cut.thickness_mm, grid.voxel_mm)
        low, high = max(middle - reach, 0), min(middle + reach + 1, grid.shape[axis])
        lowest_mm = [edge[0] - grid.voxel_mm / 2 for edge in grid.axes_mm()]  # of z, y, x
        up, right = (number for number in range(3) if number != axis)
        if low >= high:
            planes = np.full((len(self._values), 1, grid.shape[up], grid.shape[right]), np.nan, np.float32)
        else:
            planes = self._planes(axis, low, high)
        return CutPicture(
            values=_through(planes, 1, cut.slab),
            left_mm=float(lowest_mm[right]),
            bottom_mm=float(lowest_mm[up]),
            step_mm=grid.voxel_mm,
        )

    def _planes(self, axis: int, low: int, high: int) -> NDArray[np.float32]:
        """Return planes across an axis: (n_channels, n_planes, h, w)."""
        if axis < 2:
            rows = self._values[:, low:high] if axis == 0 else self._values[:, :, low:high]
            return np.asarray(rows) if axis == 0 else np.swapaxes(rows, 1, 2)
        if self._values.nbytes < SMALL_BYTES or high - low > BLOCK:
            return np.moveaxis(self._values[..., low:high], 3, 1)
        first, columns = self._columns(low, high)
        return np.moveaxis(columns[..., low - first : high - first], 3, 1)

    def _columns(self, low: int, high: int) -> tuple[int, NDArray[np.float32]]:
        if self._block is not None:
            first, columns = self._block
            if first <= low and high <= first + columns.shape[3]:
                return self._block
        first = low // BLOCK * BLOCK
        self._block = first, self._values[..., first : max(first + BLOCK, high)].copy()
        return self._block

    def _slanted(self, cut: Cut) -> CutPicture:
        grid = self._grid
        right_mm, up_mm = (_extent_mm(grid, side) for side in (cut.right, cut.up))
        longest_mm = max(right_mm[1] - right_mm[0], up_mm[1] - up_mm[0])
        step_mm = max(grid.voxel_mm, longest_mm / MOST_SAMPLES)
        across, upwards = (
            low + (np.arange(max(int(np.ceil((high - low) / step_mm)), 1)) + 0.5) * step_mm
            for low, high in (right_mm, up_mm)
        )
        normal = cut.normal
        height_mm = float(np.dot(cut.centre_mm, normal))
        points = (
            across[None, :, None] * np.array(cut.right) + upwards[:, None, None] * np.array(cut.up) + height_mm * normal
        )
        reach = reach_of(cut.thickness_mm, grid.voxel_mm)
        planes = np.stack(
            [trilinear(self._values, grid, points + k * grid.voxel_mm * normal) for k in range(-reach, reach + 1)],
            axis=1,
        )
        return CutPicture(
            values=_through(planes, 1, cut.slab), left_mm=right_mm[0], bottom_mm=up_mm[0], step_mm=step_mm
        )


def trilinear(values: NDArray[np.float32], grid: Grid, points_mm: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return values between the voxels.

    Parameters
    ----------
    values : (n_channels, z, y, x) float32
    points_mm : (..., 3) float
        x, y, z.

    Returns
    -------
    sampled : (n_channels, ...) float32
        NaN outside the outermost faces; between them and the outermost middles, the outermost voxel's value.
    """
    shape = np.array(grid.shape)
    at = [
        (points_mm[..., 2 - n] - grid.centre_mm[2 - n]) / grid.voxel_mm + (shape[n] - 1) / 2 for n in range(3)
    ]  # along z, y, x
    is_inside = np.ones(points_mm.shape[:-1], bool)
    for along_axis, size in zip(at, shape, strict=True):
        is_inside &= (along_axis >= -0.5) & (along_axis <= size - 0.5)
    places, shares = [], []
    for along_axis, size, stride in zip(at, shape, (shape[1] * shape[2], shape[2], 1), strict=True):
        inside = np.clip(along_axis[is_inside], 0, size - 1)
        low = np.minimum(inside.astype(np.intp), max(size - 2, 0))
        share = (inside - low).astype(np.float32)
        places.append((low * stride, np.minimum(low + 1, size - 1) * stride))
        shares.append((1 - share, share))
    found = np.zeros((len(values), int(is_inside.sum())), np.float32)
    channels = [channel.reshape(-1) for channel in values]
    taken = np.empty(found.shape[1], np.float32)
    for z, y in np.ndindex(2, 2):
        row, of_row = places[0][z] + places[1][y], shares[0][z] * shares[1][y]
        for x in range(2):
            place, weight = row + places[2][x], of_row * shares[2][x]
            for channel, sums in zip(channels, found, strict=True):
                if channel.dtype == taken.dtype:
                    np.take(channel, place, out=taken, mode="clip")
                else:
                    taken[:] = channel.take(place, mode="clip")
                with np.errstate(invalid="ignore"):  # infinities make NaN, which shows as nothing
                    sums += np.multiply(taken, weight, out=taken)
    sampled = np.full((len(values), *points_mm.shape[:-1]), np.nan, np.float32)
    sampled[:, is_inside] = found
    return sampled


def _extent_mm(grid: Grid, side: Direction) -> tuple[float, float]:
    """Return from where to where the volume reaches along a direction."""
    half_mm = np.abs(np.array(side)) @ (np.array(grid.shape[::-1]) * grid.voxel_mm / 2)
    middle_mm = np.dot(grid.centre_mm, side)
    return float(middle_mm - half_mm), float(middle_mm + half_mm)


def _through(planes: NDArray[np.float32], axis: int, slab: Slab) -> NDArray[np.float32]:
    """Return one picture of planes behind each other; what lies outside the volume counts for nothing."""
    if planes.shape[axis] == 1:
        return np.ascontiguousarray(planes.take(0, axis=axis))
    known = ~np.isnan(planes)
    is_seen = known.any(axis=axis)
    if slab is Slab.MAXIMUM:
        most = np.where(known, planes, -np.inf).max(axis=axis)
        return np.where(is_seen, most, np.nan).astype(np.float32)
    total = np.where(known, planes, 0).sum(axis=axis, dtype=np.float64)
    mean = total / np.maximum(known.sum(axis=axis), 1)
    return np.where(is_seen, mean, np.nan).astype(np.float32)


def crossing_mm(cut: Cut, other: Cut) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return a point and a direction, both in the picture of `cut`, of the line in which another cut crosses it.

    The point is the foot of the other cut's centre on that line. None where the two are parallel.
    """
    line = np.cross(cut.normal, other.normal)
    length = float(np.linalg.norm(line))
    if length < 1e-6:
        return None
    line /= length
    # The other's centre, moved inside the other plane until it stands on this one.
    towards = np.cross(other.normal, line)
    centre = np.array(other.centre_mm)
    gap = np.dot(np.array(cut.centre_mm) - centre, cut.normal)
    foot = centre + towards * gap / np.dot(towards, cut.normal)
    at = cut.plane_mm(_triple(foot))
    return at, (float(line @ np.array(cut.right)), float(line @ np.array(cut.up)))


def sampled(values: NDArray[np.float32], most_slices: int = 12, most_along: int = 256) -> NDArray[np.float32]:
    """Return every so-manieth voxel of a volume, few enough to look at all of them: (n_channels, z, y, x) float32."""
    z, y, x = (
        max(-(-n // most), 1) for n, most in zip(values.shape[1:], (most_slices, most_along, most_along), strict=True)
    )
    return np.array(values[:, z // 2 :: z, ::y, ::x])
