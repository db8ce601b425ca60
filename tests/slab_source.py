"""Line integrals of ellipsoids by exact chords, made where and when they are asked for: a scan of any size."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.geometry import Geometry


@dataclass(frozen=True, kw_only=True)
class Ellipsoids:
    """A `reconstruction.size.slabs.Source` that opens itself.

    `solids` are rows of centre (x, y, z) and half axes along x, y and z in mm, and attenuation in 1/mm. Bins after the
    first attenuate 0.7 times as much as the one before.
    """

    geometry: Geometry
    n_views: int
    solids: tuple[tuple[float, ...], ...]
    n_bins: int = 1
    lift_mm: float = 0.0
    turns: float = 1.0
    reads: list[tuple[slice, slice]] = field(default_factory=list, compare=False)

    def __call__(self) -> Ellipsoids:
        return self

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.n_bins, self.n_views, self.geometry.rows, self.geometry.cols

    @property
    def angles_rad(self) -> NDArray[np.float64]:
        return np.arange(self.n_views) * 2 * np.pi * self.turns / self.n_views

    @property
    def lifts_mm(self) -> NDArray[np.float64]:
        return np.linspace(-self.lift_mm / 2, self.lift_mm / 2, self.n_views)

    def read(self, views: slice, rows: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        self.reads.append((views, rows))
        geometry = self.geometry
        n_rows, n_cols = range(geometry.rows)[rows], geometry.cols
        row = np.asarray(n_rows)[:, None, None] - (geometry.rows - 1) / 2
        col = np.arange(n_cols)[:, None] - (n_cols - 1) / 2
        n_views = len(range(self.n_views)[views])
        values = np.empty((self.n_bins, n_views, len(n_rows), n_cols), np.float32)
        poses = geometry.views(self.angles_rad[views])
        for view, drop_mm in enumerate(self.lifts_mm[views]):
            source = poses.source_mm[view] - [0, 0, drop_mm]
            along = poses.detector_mm[view] - poses.source_mm[view] + row * poses.v_mm[view] + col * poses.u_mm[view]
            along /= np.linalg.norm(along, axis=-1, keepdims=True)
            total = np.zeros(along.shape[:-1])
            for solid in self.solids:
                half_mm = np.asarray(solid[3:6])
                away, ray = (source - solid[:3]) / half_mm, along / half_mm
                a, b = (ray * ray).sum(-1), ray @ away
                total += solid[6] * 2 * np.sqrt(np.maximum(b * b - a * (away @ away - 1), 0)) / a
            values[:, view] = 0.7 ** np.arange(self.n_bins)[:, None, None] * total
        return values, np.zeros(values.shape, bool)


@dataclass(frozen=True, kw_only=True)
class Deadly(Ellipsoids):
    """The first process that reads beyond the first views of a slab dies of it."""

    grave: str = ""

    def read(self, views, rows):
        if views.start >= 4:
            try:
                Path(self.grave).mkdir()
            except FileExistsError:
                return super().read(views, rows)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(views, rows)
