"""Stand-in until fdk.py has it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.geometry import Geometry
from reconstruction.fdk import _CpuVolume, _GpuVolume, _RowFilter, angular_weights_rad, ramp_filter
from reconstruction.volume import Grid


class FdkStream:
    """Views are back-projected as they come."""

    def __init__(
        self,
        angles_rad: NDArray[np.float64],
        geometry: Geometry,
        grid: Grid,
        n_bins: int,
        *,
        window: str = "ram-lak",
        use_gpu: bool = False,
        lifts_mm: Any = 0.0,  # noqa: ARG002
    ) -> None:
        weights = angular_weights_rad(angles_rad)
        gain = ramp_filter(geometry.cols, geometry.pitch_mm / geometry.magnification, window)
        self._poses = np.stack([np.cos(angles_rad), np.sin(angles_rad), weights / 2], axis=1)
        self._filter = _RowFilter(geometry, gain, use_gpu=use_gpu)
        self._volume = (_GpuVolume if use_gpu else _CpuVolume)(geometry, grid, n_bins)

    def add(self, line_integrals: NDArray[np.float32], views: slice) -> None:
        """Add some views."""
        self._volume.add(self._filter(line_integrals, views.start), self._poses[views])

    def result(self) -> NDArray[np.float32]:
        """Return the volume."""
        return self._volume.result()
