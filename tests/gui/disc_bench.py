"""A board in memory that sees discs: counts of a fan's chords through them, with Poisson noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.geometry import Geometry
from firmware_iface.frame import Frame
from tests.scan_bench import Bench

DISCS = ((0.0, 0.0, 4.0, 0.03), (2.0, 0.5, 0.6, 0.2), (-1.0, 2.0, 0.5, 0.3))
"""x_mm, y_mm, radius_mm, and what each adds per mm."""


def chords(geometry: Geometry, angle_rad: float) -> NDArray[np.float64]:
    """Return the line integrals of the rays in the source's plane: (cols,), from circles' chords."""
    views = geometry.views([angle_rad])
    across = np.arange(geometry.cols) - (geometry.cols - 1) / 2
    source = views.source_mm[0, :2]
    ends = views.detector_mm[0, :2] + across[:, None] * views.u_mm[0, :2]
    along = ends - source
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    total = np.zeros(geometry.cols)
    for x, y, radius, per_mm in DISCS:
        to = np.array([x, y]) - source
        near = along @ to
        beside_2 = (to**2).sum() - near**2
        total += per_mm * 2 * np.sqrt(np.maximum(radius**2 - beside_2, 0))
    return total


class DiscBench(Bench):
    """Sees discs from where the stage says it stands.

    Parameters
    ----------
    off_mm : float
        How far the detector's centre is beside where the plan has it: the hidden truth.
    """

    def __init__(self, geometry: Geometry, off_mm: float = 0.0, open_counts: float = 2000.0, **faults: Any) -> None:
        super().__init__(**faults)
        self.truth = replace(geometry, offset_u_mm=geometry.offset_u_mm + off_mm)
        self.open_counts, self.random = open_counts, np.random.default_rng(7)

    def frame(self, sequence: int, exposure_s: float) -> Frame:
        seen = np.zeros(self.truth.cols)
        if self.pose["SAMP"] not in ("OUT", "?"):
            seen = chords(self.truth, np.radians(float(self.pose["ROT"])))
        mean = self.open_counts * np.exp(-seen)
        counts = self.random.poisson(mean, (4, self.truth.rows, self.truth.cols)).astype(np.uint16)
        return replace(super().frame(sequence, exposure_s), counts=counts)
