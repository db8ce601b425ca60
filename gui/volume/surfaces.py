"""Surfaces of equal concentration: a closed mesh in mm from one material, its area and what it encloses.

# Ref: marching cubes: Lorensen and Cline 1987, SIGGRAPH 21, 163, without holes: Lewiner et al. 2003.
# Ref: smoothing that does not shrink: Taubin 1995, SIGGRAPH 22, 351.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from gui.colour import Colour

FINDING, MARCHING, SMOOTHING = "finding the surface", "making triangles", "smoothing"
SHRINK, INFLATE = 0.5, -0.53
"""Taubin's two steps; their pass band ends at 1 / SHRINK + 1 / INFLATE = 0.11."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mesh:
    """Triangles of a surface.

    Attributes
    ----------
    vertices_mm : (n, 3) float32
        x, y, z in the axes of `calibration.geometry`.
    faces : (m, 3) int32
        Corners of each triangle, counter-clockwise as seen from outside.
    colour : Colour
    name : str
        What it is, for people and for files: "iodine at 5 mg/mL".
    """

    vertices_mm: NDArray[np.float32]
    faces: NDArray[np.int32]
    colour: Colour = (0.8, 0.8, 0.8)
    name: str = ""

    def __post_init__(self) -> None:
        if self.vertices_mm.ndim != 2 or self.vertices_mm.shape[1] != 3:
            raise ValueError(f"vertices of shape {self.vertices_mm.shape}; allowed: (n, 3)")
        if self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise ValueError(f"faces of shape {self.faces.shape}; allowed: (m, 3)")

    @property
    def area_mm2(self) -> float:
        """Area of all triangles."""
        a, b, c = self._corners()
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)

    @property
    def volume_mm3(self) -> float:
        """What the surface encloses; right for a closed one, which all of `isosurface` are."""
        a, b, c = self._corners()
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    def normals(self) -> NDArray[np.float32]:
        """Return the direction out of the surface at each vertex, (n, 3); larger triangles weigh more."""
        a, b, c = self._corners()
        across = np.cross(b - a, c - a)
        n = len(self.vertices_mm)
        sums = [
            sum(np.bincount(self.faces[:, corner], across[:, axis], minlength=n) for corner in range(3))
            for axis in range(3)
        ]
        normals = np.stack(sums, axis=1)
        return (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)).astype(np.float32)

    def _corners(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        middle = self.vertices_mm.mean(axis=0, dtype=np.float64) if len(self.vertices_mm) else 0.0
        corners = (self.vertices_mm.astype(np.float64) - middle)[self.faces]
        return corners[:, 0], corners[:, 1], corners[:, 2]


def isosurface(
    values_g_cm3: NDArray[np.floating],
    at_g_cm3: float,
    *,
    voxel_mm: float | tuple[float, float, float],
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    colour: Colour = (0.8, 0.8, 0.8),
    name: str = "",
    smoothing_steps: int = 0,
) -> Generator[Progress, None, Mesh]:
    """Find where a concentration is passed; what reaches the edge of the volume is closed there.

    Parameters
    ----------
    values_g_cm3 : (z, y, x) float
        What is not a number is outside.
    at_g_cm3 : float
        The surface stands where the values, linear between voxels, pass it.
    voxel_mm : float or (x, y, z) of float
        Edges of a voxel.
    centre_mm : (x, y, z) float
        Of the volume, as in `reconstruction.volume.Grid`.
    smoothing_steps : int
        Of Taubin's; 10 take the steps of the voxels away, 0 leave the surface as it is.

    Raises
    ------
    WrongUsage
        No voxel, or every one, is above the threshold's concentration.
    """
    if values_g_cm3.ndim != 3:
        raise ValueError(f"values of shape {values_g_cm3.shape}; allowed: (z, y, x)")
    yield Progress(FINDING, 0, 1)
    box = _box_above(values_g_cm3, at_g_cm3)
    if box is None:
        raise WrongUsage(
            f"no voxel of {name or 'the volume'} is above {1000 * at_g_cm3:g} mg/mL",
            hint=f"its highest value is {1000 * _highest(values_g_cm3):.3g} mg/mL; choose a threshold below that",
        )
    yield Progress(MARCHING, 0, 1)
    corners, faces = _marching_cubes(_closed(values_g_cm3[box], at_g_cm3), at_g_cm3)
    first = np.array([part.start - 1 for part in box], dtype=np.float64)
    middle = (np.array(values_g_cm3.shape) - 1) / 2
    vertices_mm = (corners + first - middle)[:, ::-1] * np.asarray(voxel_mm) + np.asarray(centre_mm)
    if smoothing_steps:
        yield from _smooth(vertices_mm, faces, smoothing_steps)
    return Mesh(vertices_mm=vertices_mm.astype(np.float32), faces=faces.astype(np.int32), colour=colour, name=name)


def _highest(values: NDArray[np.floating]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else 0.0


def _box_above(values: NDArray[np.floating], level: float) -> tuple[slice, slice, slice] | None:
    """Return the part of the volume that has all voxels above a level, with one voxel about it where there is one."""
    above = values > level
    parts = []
    for axis, n in enumerate(values.shape):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(above.any(axis=others))
        if not found.size:
            return None
        parts.append(slice(max(found[0] - 1, 0), min(found[-1] + 2, n)))
    return parts[0], parts[1], parts[2]


def _closed(values: NDArray[np.floating], level: float) -> NDArray[np.float32]:
    """Put a layer about the volume, mirrored at the level, so that the surface ends half a voxel outside it."""
    padded = np.pad(np.nan_to_num(values, nan=min(0.0, level - 1.0)).astype(np.float32), 1, mode="edge")
    for axis in range(3):
        for end in (0, -1):
            layer = np.moveaxis(padded, axis, 0)
            layer[end] = np.minimum(layer[end], 2 * level - layer[end])
    return padded


def _marching_cubes(values: NDArray[np.float32], level: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return corners in voxels (z, y, x) and faces that turn counter-clockwise from outside in (x, y, z)."""
    from skimage.measure import marching_cubes  # takes a second to load

    corners, faces, _, _ = marching_cubes(values, level, allow_degenerate=False)
    return corners.astype(np.float64), faces.astype(np.int64)


def _smooth(vertices_mm: NDArray[np.float64], faces: NDArray[np.int64], steps: int) -> Generator[Progress, None, None]:
    """Move every vertex to and fro towards its neighbours' mean, in place."""
    from scipy.sparse import coo_array

    first, second = np.concatenate([faces[:, pair] for pair in ([0, 1], [1, 2], [2, 0])]).T
    n = len(vertices_mm)
    ones = np.ones(2 * len(first))
    links = coo_array((ones, (np.r_[first, second], np.r_[second, first])), shape=(n, n)).tocsr()
    links.data[:] = 1.0
    per_neighbour = 1 / np.maximum(links.sum(axis=1), 1)[:, None]
    for step in range(steps):
        yield Progress(SMOOTHING, step, steps)
        for share in (SHRINK, INFLATE):
            vertices_mm += share * ((links @ vertices_mm) * per_neighbour - vertices_mm)
