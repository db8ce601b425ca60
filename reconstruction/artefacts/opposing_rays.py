"""Rays that run against each other: each value of a full circle has a partner that saw the same object from behind.

In the source's plane the two measure the same line; above and below it they cross at the cone's angle.

# Ref: opposing rays of a fan beam: Kak and Slaney 1988, Principles of Computerized Tomographic Imaging, chapter 3.
# Ref: cubic interpolation: Keys 1981, IEEE Trans. Acoust. Speech Signal Process. 29, 1153.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.geometry import Geometry

WIDEST_GAP_RAD = np.deg2rad(5.0)
"""Hole in the circle that still leaves opposing rays to nearly all."""
LEAST_COLUMNS = 16
"""Columns with opposing rays, fewer of which are as good as none."""


class OpposingRays:
    """Where the opposing ray of each value is, and what it read.

    Attributes
    ----------
    is_seen : (cols,) bool
        Columns whose opposing rays fall on the detector.
    """

    name = "opposing rays"

    def __init__(self, angles_rad: ArrayLike, geometry: Geometry) -> None:
        turned = np.mod(np.asarray(angles_rad, dtype=np.float64).ravel(), 2 * np.pi)
        order = np.argsort(turned, kind="stable")
        angles = turned[order]
        self.widest_gap_rad = float(np.diff(angles, append=angles[0] + 2 * np.pi).max())
        cols, pitch_mm = geometry.cols, geometry.pitch_mm
        u_mm = (np.arange(cols) - (cols - 1) / 2) * pitch_mm + geometry.offset_u_mm
        col = (cols - 1) / 2 - (u_mm + geometry.offset_u_mm) / pitch_mm
        self.is_seen: NDArray[np.bool_] = (col >= 1) & (col <= cols - 2)
        self._first = np.clip(np.floor(col[self.is_seen]).astype(int), 1, max(cols - 3, 1))
        self._weights = _cubic(col[self.is_seen] - self._first)
        fan_rad = np.arctan(u_mm[self.is_seen] / geometry.source_to_detector_mm)
        wanted = np.mod(turned[:, None] + np.pi - 2 * fan_rad, 2 * np.pi)
        below = np.searchsorted(angles, wanted, side="right") - 1  # -1 is the last one
        above = np.mod(below + 1, len(angles))
        gap = np.mod(angles[above] - angles[below], 2 * np.pi)
        share = np.mod(wanted - angles[below], 2 * np.pi) / np.where(gap > 0, gap, 1.0)
        self._share = share.astype(np.float32)[:, None, :]
        self._below, self._above = (order[place][:, None, :] for place in (below, above))

    @classmethod
    def of(cls, angles_rad: ArrayLike, geometry: Geometry) -> OpposingRays | None:
        """Return the opposing rays, or None where the scan has none: no full circle, or a detector off to one side."""
        if geometry.cols < LEAST_COLUMNS:
            return None
        rays = cls(angles_rad, geometry)
        return rays if rays.widest_gap_rad <= WIDEST_GAP_RAD and rays.is_seen.sum() >= LEAST_COLUMNS else None

    def take(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the opposing rays read: the columns that have one.

        Parameters
        ----------
        values : (..., n_views, rows, cols) float32

        Returns
        -------
        (..., n_views, rows, n_seen) float32
        """
        taken = np.empty((*values.shape[:-1], self._first.size), np.float32)
        for place in np.ndindex(values.shape[:-3]):
            view = values[place]
            columns = np.zeros(taken.shape[-3:], np.float32)
            for step, weight in zip(range(-1, 3), self._weights, strict=True):
                columns += weight * view[..., self._first + step]
            low = np.take_along_axis(columns, self._below, axis=0)
            taken[place] = low + self._share * (np.take_along_axis(columns, self._above, axis=0) - low)
        return taken

    def noise_gain(self, spectrum: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return what the interpolation leaves of the energy of independent columns that were filtered: (n_seen,).

        Parameters
        ----------
        spectrum : (n,) float
            Gain of the filter from frequency 0 to the highest.
        """
        power = np.asarray(spectrum, dtype=np.float64) ** 2
        phase = np.pi * (np.arange(len(power)) + 0.5) / len(power) * np.arange(4)[:, None]
        alike = (power * np.cos(phase)).sum(axis=1) / power.sum()  # of columns that stand so far apart
        weights = self._weights.astype(np.float64)
        return np.einsum("in,jn,ij->n", weights, weights, alike[np.abs(np.subtract.outer(np.arange(4), np.arange(4)))])

    def share_of(self, is_marked: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return how much of what opposing rays read comes from marked pixels: (rows, n_seen) float32.

        Parameters
        ----------
        is_marked : (rows, cols) bool
        """
        steps = zip(range(-1, 3), self._weights, strict=True)
        return sum((np.abs(w) * is_marked[:, self._first + k] for k, w in steps), np.float32(0))  # pyright: ignore


def _cubic(t: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the weights of the four neighbours of a place t beyond the second: (4, n) float32."""
    return np.stack(
        [
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        ]
    ).astype(np.float32)
