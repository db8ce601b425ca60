"""Where a phantom lies in a volume: no phantom stands on its stage exactly as its drawing has it.

The description is drawn as the maps would show it, each agent's vials as discs of its concentrations. The pose sought
is the one whose drawing correlates best with the measured maps, both blurred by a third of a vial's radius, so that
noise counts little. All turns are tried, and for each turn all shifts at once by the Fourier transform; then turn and
shifts are refined together.

# Ref: normalised correlation by the Fourier transform: Lewis 1995, Vision Interface, 120; simplex search: Nelder and
#      Mead 1965, Comput. J. 7, 308.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, special
from scipy.optimize import minimize

from firmware_iface.errors import WrongUsage
from reconstruction.phantom_file import Phantom
from reconstruction.volume import MASS_CONCENTRATION, Volume

LEAST_CORRELATION = 0.3
BLUR_SHARE = 1 / 3
"""Of the smallest vial's radius."""
MOST_TURNS = 720
COARSE_VOXELS = 4
"""Of the smallest vial's radius: voxels are joined to about so many of them for the search of all turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """How a phantom lies in a volume: turned about its description's origin, from x to y, then shifted.

    `correlation_ratio` of the drawing with the maps: 1 where they are alike.
    """

    x_mm: float
    y_mm: float
    rotation_rad: float
    correlation_ratio: float

    def of(self, phantom: Phantom) -> Phantom:
        """Return the phantom as it lies."""
        return phantom.moved(self.x_mm, self.y_mm, self.rotation_rad)


def find_pose(
    volume: Volume, phantom: Phantom, *, most_shift_mm: float | None = None, most_turn_rad: float = np.pi
) -> Pose:
    """Find shift and turn of a phantom from the maps of its agents.

    Parameters
    ----------
    most_shift_mm : float, optional
        How far along x and y it may be off; None: as far as the volume goes.
    most_turn_rad : float
        How far it may be turned either way; 0: shifts only.

    Raises
    ------
    WrongUsage
        No pose looks like the maps.
    """
    if volume.unit != MASS_CONCENTRATION:
        raise WrongUsage(f"the volume is in {volume.unit}; allowed: materials in {MASS_CONCENTRATION}")
    agents = tuple(name for name in phantom.agents if name in volume.channels)
    if not agents:
        raise WrongUsage(
            f"the volume has no map of {', '.join(phantom.agents) or 'an agent'}; it has: {', '.join(volume.channels)}"
        )
    slices, y_mm, x_mm = _mean_slices(volume, phantom, agents)
    picture = _Picture(slices, y_mm, x_mm, phantom, agents)
    radius = min(vial.radius_mm for vial in phantom.vials)
    n_joined = max(int(radius / (COARSE_VOXELS * volume.grid.voxel_mm)), 1)
    coarse = _Picture(*_joined(slices, y_mm, x_mm, n_joined), phantom, agents)
    best = coarse.best(most_shift_mm, most_turn_rad)
    step = np.array([n_joined * volume.grid.voxel_mm, n_joined * volume.grid.voxel_mm, coarse.turn_step_rad / 2])
    free = 3 if most_turn_rad > 0 else 2
    # A simplex as large as the coarse steps, so that it cannot be caught between voxels.
    simplex = np.vstack([best[:free], *(best[:free] + row[:free] for row in np.diag(step)[:free])])
    found = minimize(
        lambda pose: -picture.correlation(np.append(pose, best[free:])),
        best[:free],
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 0.01 * volume.grid.voxel_mm, "fatol": 1e-6, "maxiter": 300},
    )
    correlation = float(-found.fun)
    if correlation < LEAST_CORRELATION:
        raise WrongUsage(
            f"no place of the phantom looks like the maps: the best correlates with {correlation:.2f}; "
            f"allowed: at least {LEAST_CORRELATION}",
            hint="check the description's materials and radii, or give positions as they are and register nothing",
        )
    x, y, turn = np.append(found.x, best[free:])
    turn = (turn + np.pi) % (2 * np.pi) - np.pi
    return Pose(x_mm=float(x), y_mm=float(y), rotation_rad=float(turn), correlation_ratio=correlation)


_Slices = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Maps (n_agents, y, x), and the places of their rows and columns."""


def _mean_slices(volume: Volume, phantom: Phantom, agents: Sequence[str]) -> _Slices:
    z, y_mm, x_mm = volume.grid.axes_mm()
    low, high = phantom.z_range_mm or (-np.inf, np.inf)
    kept = np.nonzero((z >= low) & (z <= high))[0]
    if not kept.size:
        raise WrongUsage(f"no slice lies within {low:g} to {high:g} mm; the volume has {z[0]:g} to {z[-1]:g} mm")
    slab = slice(int(kept[0]), int(kept[-1]) + 1)
    return np.stack([volume.channel(name)[slab].mean(axis=0, dtype=np.float64) for name in agents]), y_mm, x_mm


def _joined(slices: NDArray[np.float64], y_mm: NDArray[np.float64], x_mm: NDArray[np.float64], n: int) -> _Slices:
    """Join n by n voxels to one; what is left over at the far ends is cut."""
    n_y, n_x = len(y_mm) // n, len(x_mm) // n
    tiles = slices[:, : n_y * n, : n_x * n].reshape(len(slices), n_y, n, n_x, n).mean(axis=(2, 4))
    return tiles, y_mm[: n_y * n].reshape(n_y, n).mean(1), x_mm[: n_x * n].reshape(n_x, n).mean(1)


class _Picture:
    """The mean slices of the agents, and drawings of the phantom to hold against them.

    Each map, and each of a drawing's, has its mean taken off and is scaled to a spread of 1.
    """

    def __init__(
        self,
        maps: NDArray[np.float64],
        y_mm: NDArray[np.float64],
        x_mm: NDArray[np.float64],
        phantom: Phantom,
        agents: Sequence[str],
    ) -> None:
        self._y_mm, self._x_mm, self._phantom, self._agents = y_mm, x_mm, phantom, agents
        self._voxel_mm = float(y_mm[1] - y_mm[0]) if len(y_mm) > 1 else float(x_mm[1] - x_mm[0])
        radius = min(vial.radius_mm for vial in phantom.vials)
        self._blur_mm = max(BLUR_SHARE * radius, self._voxel_mm / 2)
        maps = ndimage.gaussian_filter(np.nan_to_num(maps), self._blur_mm / self._voxel_mm, axes=(1, 2))
        maps -= maps.mean((-2, -1), keepdims=True)
        # Agents of a few and of hundreds of mg/mL, and quiet and loud maps, count alike.
        spread = np.sqrt((maps**2).mean((-2, -1), keepdims=True))
        self._maps = maps / np.maximum(spread, np.finfo(float).tiny)
        self._norm = float(np.sqrt((self._maps**2).sum()))
        ring = max(max(np.hypot(vial.x_mm, vial.y_mm) for vial in phantom.vials), radius)
        self.turn_step_rad = float(max(min(radius / (2 * ring), np.pi / 6), 2 * np.pi / MOST_TURNS))

    def drawing(self, pose: NDArray[np.float64]) -> NDArray[np.float64]:
        """Draw the phantom at (x, y, turn): (n_agents, y, x)."""
        drawn = np.zeros_like(self._maps)
        for vial in self._phantom.moved(*(float(p) for p in pose)).vials:
            shown = [(k, vial.true_mg_ml(name)) for k, name in enumerate(self._agents) if name in vial.materials]
            reach = vial.radius_mm + 3 * self._blur_mm
            rows = np.nonzero(np.abs(self._y_mm - vial.y_mm) <= reach)[0]
            cols = np.nonzero(np.abs(self._x_mm - vial.x_mm) <= reach)[0]
            if not (shown and rows.size and cols.size):
                continue
            window = np.ix_(rows, cols)
            away = np.hypot(self._y_mm[rows, None] - vial.y_mm, self._x_mm[cols] - vial.x_mm)
            disc = 0.5 * special.erfc((away - vial.radius_mm) / (np.sqrt(2) * self._blur_mm))
            for k, true in shown:
                drawn[k][window] = np.maximum(drawn[k][window], disc * (1.0 if true is None else true))
        drawn -= drawn.mean((-2, -1), keepdims=True)
        spread = np.sqrt((drawn**2).mean((-2, -1), keepdims=True))
        return drawn / np.maximum(spread, np.finfo(float).tiny)

    def correlation(self, pose: NDArray[np.float64]) -> float:
        """Return how alike drawing and maps are: -1 to 1."""
        drawn = self.drawing(pose)
        norm = float(np.sqrt((drawn**2).sum()))
        return float((drawn * self._maps).sum()) / (norm * self._norm) if norm > 0 and self._norm > 0 else -1.0

    def best(self, most_shift_mm: float | None, most_turn_rad: float) -> NDArray[np.float64]:
        """Return the best (x, y, turn) on a grid of voxels and turns."""
        n_turns = int(np.ceil(most_turn_rad / self.turn_step_rad)) if most_turn_rad > 0 else 0
        turns = np.linspace(-most_turn_rad, most_turn_rad, 2 * n_turns + 1)
        middle = np.array([self._x_mm.mean(), self._y_mm.mean()])
        shape = self._maps.shape[-2:]
        spectrum = np.asarray(fft.rfft2(self._maps))
        lags = [np.rint(fft.fftfreq(n) * n) * self._voxel_mm for n in shape]
        best, best_score = np.zeros(3), -np.inf
        # The drawing is put into the middle of the volume, so that no vial of it is cut off.
        for turn in turns:
            drawn = np.asarray(fft.rfft2(self.drawing(np.array([*middle, turn]))))
            scores = np.asarray(fft.irfft2((spectrum * drawn.conj()).sum(0), shape))
            shifts_y, shifts_x = lags[0] + middle[1], lags[1] + middle[0]
            if most_shift_mm is not None:
                reach = max(most_shift_mm, self._voxel_mm)
                allowed = (np.abs(shifts_y) <= reach)[:, None] & (np.abs(shifts_x) <= reach)
                scores = np.where(allowed, scores, -np.inf)
            row, col = np.unravel_index(np.argmax(scores), shape)
            if scores[row, col] > best_score:
                best_score = float(scores[row, col])
                best = np.array([shifts_x[col], shifts_y[row], turn])
        return best
