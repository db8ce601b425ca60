"""How materials in a volume glow and hide each other, and which parts of it a ray may leap over.

A ray gathers light from front to back. A material at concentration c has the share s = (c - low) / (high - low) of its
full colour, within 0 to 1 and bent by s + bend (s^2 - s); it hides with `extinction_per_mm` times s, and glows in its
colour as much as it hides. Everything here but the concentrations may change without another upload of the volume.

# Ref: emission and absorption: Max 1995, IEEE Trans. Vis. Comput. Graph. 1, 99.
# Ref: leaps by the distance to the next full block: Cohen and Sheffer 1994, The Visual Computer 11, 27.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.progress import Progress
from gui.colour import DIMMING, GREY, Colour, Look
from gui.volume.noise import noise_of, smoothed, smoothing_for

BLOCK = 8
"""Voxels along the edge of a block."""
BUSY, CALM = 0, 255
"""Marks of blocks: sampled finely, and sampled coarsely; between them stands the distance to what is not empty."""
CALM_ALPHA = 0.01
"""A block is calm if what it hides varies by less than this, from the least to the most its voxels allow."""
MOST_CHANNELS = 8
MOST_OPACITY = 0.995
REACH_SHARE = 1 / 32
"""A material hides its opacity through this share of the volume's longest edge."""
HAZE, SOLID = 0.03, 0.9
"""How opaque the grey base and the other materials are at first, in three dimensions."""
BASE_COLOUR: Colour = (0.62, 0.66, 0.70)
"""The base in three dimensions, where it is not a background to add lights to but a body of its own."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Optics:
    """What all materials do to light; arrays over the materials, float64.

    Attributes
    ----------
    low_g_cm3, high_g_cm3, extinction_per_mm, bend : (n,) float64
    colours, lights : (n, 3) float64
        As bodies that hide each other, and as lights that add up (`gui.colour.blend`).
    """

    low_g_cm3: NDArray[np.float64]
    high_g_cm3: NDArray[np.float64]
    extinction_per_mm: NDArray[np.float64]
    colours: NDArray[np.float64]
    lights: NDArray[np.float64]
    bend: NDArray[np.float64]

    def shares(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return how much of its full colour each material has; (n, ...) to the same."""
        extra = (slice(None), *(None,) * (values.ndim - 1))
        low, high, bend = self.low_g_cm3[extra], self.high_g_cm3[extra], self.bend[extra]
        share = np.clip((np.nan_to_num(values, nan=0.0) - low) / (high - low), 0, 1)
        return share + bend * (share * share - share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What is cut away: all outside a box, and all beyond a plane.

    Attributes
    ----------
    low_shares, high_shares : (x, y, z) of 0 to 1
        Where the box begins and ends, in shares of the volume's edges.
    normal : (x, y, z) or None
        Unit vector; what lies farther along it than `plane_mm` from the volume's middle is cut away. None: no plane.
    """

    low_shares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    high_shares: tuple[float, float, float] = (1.0, 1.0, 1.0)
    normal: tuple[float, float, float] | None = None
    plane_mm: float = 0.0

    def box_mm(self, grains: Grains) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the corners of what is left by the box."""
        low, high = grains.corners_mm
        return low + np.asarray(self.low_shares) * (high - low), low + np.asarray(self.high_shares) * (high - low)

    def plane(self, grains: Grains) -> tuple[float, float, float, float]:
        """Return a, b, c, d: what has a x + b y + c z <= d stays."""
        if self.normal is None:
            return 0.0, 0.0, 0.0, 1.0
        a, b, c = self.normal
        return a, b, c, float(np.dot(self.normal, grains.centre_mm)) + self.plane_mm


def solid_colour(colour: Colour) -> Colour:
    """Return the colour of a material as a body: the grey base brighter, the others as bright as their palette."""
    if colour == GREY:
        return BASE_COLOUR
    red, green, blue = (min(part / DIMMING, 1.0) for part in colour)
    return red, green, blue


def first_opacity(look: Look) -> float:
    """Return how opaque a material is in three dimensions before anybody has chosen."""
    return HAZE if look.colour == GREY else SOLID


def optics_of(
    looks: Sequence[Look],
    longest_mm: float,
    *,
    opacities: Sequence[float] | None = None,
    bend: float = 0.0,
) -> Optics:
    """Turn looks into what a ray needs.

    Parameters
    ----------
    looks : (n,) Look
        One that has `is_visible` false, or an `opacity` below 1, is hidden or fainter.
    longest_mm : float
        The longest edge of the volume.
    opacities : (n,) float, optional
        Of each material in three dimensions, 0 to 1, through `REACH_SHARE` of the longest edge.
    bend : float
        -1 to 1: above 0 faint concentrations are clearer, below 0 they are denser.
    """
    if not -1 <= bend <= 1:
        raise ValueError(f"bend is {bend}; allowed: -1 to 1")
    chosen = [first_opacity(look) for look in looks] if opacities is None else opacities
    opacity = np.array(
        [
            share * float(getattr(look, "opacity", 1.0)) * bool(getattr(look, "is_visible", True))
            for look, share in zip(looks, chosen, strict=True)
        ]
    )
    return Optics(
        low_g_cm3=np.array([look.low_g_cm3 for look in looks], dtype=np.float64),
        high_g_cm3=np.array([look.high_g_cm3 for look in looks], dtype=np.float64),
        extinction_per_mm=-np.log1p(-MOST_OPACITY * opacity) / (REACH_SHARE * longest_mm),
        colours=np.array([solid_colour(look.colour) for look in looks], dtype=np.float64).reshape(-1, 3),
        lights=np.array([look.colour for look in looks], dtype=np.float64).reshape(-1, 3),
        bend=np.full(len(looks), bend),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grains:
    """A volume made ready for rays.

    Attributes
    ----------
    values : (n, z, y, x) float32
        In g/cm3, without what is not a number.
    voxel_mm : (x, y, z) float
        Edges of the voxels, which are longer than the source's where it was thinned out.
    centre_mm : (x, y, z) float
    least, most : (n, z, y, x) float32
        Lowest and highest value that a sample in a block can have.
    thinning : int
        How many voxels of the source one is the mean of, along each axis.
    noise_g_cm3 : tuple of float
        Standard deviation of each material's noise, as it stands in `values`.
    smoothing_voxels : tuple of float
        Standard deviation of the Gaussian that each material was averaged with.
    """

    values: NDArray[np.float32]
    voxel_mm: tuple[float, float, float]
    centre_mm: tuple[float, float, float]
    least: NDArray[np.float32]
    most: NDArray[np.float32]
    thinning: int = 1
    noise_g_cm3: tuple[float, ...] = ()
    smoothing_voxels: tuple[float, ...] = ()

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Edges of the whole volume, x, y, z."""
        x, y, z = (float(n * edge) for n, edge in zip(self.values.shape[:0:-1], self.voxel_mm, strict=True))
        return x, y, z

    @property
    def corners_mm(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lowest and the highest corner, x, y, z."""
        half, middle = np.asarray(self.size_mm) / 2, np.asarray(self.centre_mm)
        return middle - half, middle + half


def grains_of(
    values: NDArray[np.floating],
    voxel_mm: float,
    *,
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    most_voxels: int = 256**3,
    smoothings: Sequence[float] | None = (),
    highs_g_cm3: Sequence[float] = (),
) -> Generator[Progress, None, Grains]:
    """Make a volume ready for rays; a larger one than the budget is thinned out by means of cubes of voxels.

    Parameters
    ----------
    values : (n, z, y, x) float
        Of up to `MOST_CHANNELS` materials, in g/cm3; may be mapped from a file.
    smoothings : (n,) float, optional
        Voxels that each material is smoothed by; None chooses by its noise and `highs_g_cm3`, the tops of the windows.
    """
    if values.ndim != 4 or not 1 <= len(values) <= MOST_CHANNELS:
        raise ValueError(f"values of shape {values.shape}; allowed: (1 to {MOST_CHANNELS}, z, y, x)")
    n, *shape = values.shape
    thinning = 1
    while np.prod([max(edge // thinning, 1) for edge in shape]) > most_voxels:
        thinning += 1
    counts = [max(edge // thinning, 1) for edge in shape]
    thin = np.empty((n, *counts), dtype=np.float32)
    least, most = (np.empty((n, *(-(-edge // BLOCK) for edge in counts)), np.float32) for _ in range(2))
    used_voxels: list[float] = []
    for channel in range(n):
        for z in range(counts[0]):
            if z % 32 == 0:
                yield Progress("preparing the volume", channel * counts[0] + z, n * counts[0])
            slab = np.asarray(values[channel, z * thinning : (z + 1) * thinning], dtype=np.float32)
            thin[channel, z] = _mean_of_cubes(np.nan_to_num(slab, nan=0.0), thinning, counts[1:])
        if smoothings is None:
            used_voxels.append(smoothing_for(thin[channel], highs_g_cm3[channel]))
        else:
            used_voxels.append(smoothings[channel] if smoothings else 0.0)
        thin[channel] = smoothed(thin[channel], used_voxels[channel])
        least[channel] = _over_blocks(thin[channel], np.minimum)
        most[channel] = _over_blocks(thin[channel], np.maximum)
    used = [min(thinning, edge) for edge in shape]
    lost_mm = [(edge - count * step) * voxel_mm for edge, count, step in zip(shape, counts, used, strict=True)]
    x_mm, y_mm, z_mm = (centre - lost / 2 for centre, lost in zip(centre_mm, lost_mm[::-1], strict=True))
    return Grains(
        values=thin,
        voxel_mm=(used[2] * voxel_mm, used[1] * voxel_mm, used[0] * voxel_mm),
        centre_mm=(x_mm, y_mm, z_mm),
        least=least,
        most=most,
        thinning=thinning,
        noise_g_cm3=tuple(noise_of(thin[channel]) for channel in range(n)),
        smoothing_voxels=tuple(used_voxels),
    )


def _mean_of_cubes(slab: NDArray[np.float32], thinning: int, counts: Sequence[int]) -> NDArray[np.float32]:
    if thinning == 1:
        return slab[0]
    rows, columns = (min(thinning, slab.shape[axis]) for axis in (1, 2))
    part = slab[:, : counts[0] * rows, : counts[1] * columns]
    return part.reshape(len(slab), counts[0], rows, counts[1], columns).mean(axis=(0, 2, 4))


def _over_blocks(values: NDArray[np.float32], of: np.ufunc) -> NDArray[np.float32]:
    """Return the minimum or maximum over each block and one voxel about it, which linear samples in it reach."""
    for axis in range(3):
        values = np.moveaxis(values, axis, 0)
        starts = np.arange(0, len(values), BLOCK)
        inside = of.reduceat(values, starts, axis=0)
        before, after = values[np.maximum(starts - 1, 0)], values[np.minimum(starts + BLOCK, len(values) - 1)]
        values = np.moveaxis(of(inside, of(before, after)), 0, axis)
    return np.ascontiguousarray(values)


def leaps(grains: Grains, optics: Optics) -> NDArray[np.uint8]:
    """Mark each block by how a ray may cross it.

    Returns
    -------
    marks : (z, y, x) uint8
        `BUSY`, `CALM`, or for an empty block the distance in blocks (along the longest axis) to the next that is not.
    """
    from scipy.ndimage import distance_transform_cdt

    hides = (slice(None), None, None, None)
    low, high = (
        np.sum(optics.shares(values) * optics.extinction_per_mm[hides], axis=0)
        for values in (grains.least, grains.most)
    )
    across_mm = BLOCK * float(np.linalg.norm(grains.voxel_mm))
    is_empty = high <= 0
    if is_empty.all():
        return np.full(is_empty.shape, CALM - 1, dtype=np.uint8)
    away = np.asarray(distance_transform_cdt(is_empty, metric="chessboard"))
    marks = np.clip(away, 1, CALM - 1).astype(np.uint8)
    marks[~is_empty] = np.where((high - low)[~is_empty] * across_mm < CALM_ALPHA, CALM, BUSY)
    return marks
