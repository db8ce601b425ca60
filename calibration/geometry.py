"""Where source, detector and object are: the scan geometry, its per-view vectors and its signs.

One right-handed frame, fixed to the object, in mm: ``z`` is the rotation axis and points up. At angle 0 the source
stands at ``-y`` and the detector at ``+y``; a positive angle turns source and detector counter-clockwise seen from
``+z``. Detector columns run along ``u`` (``+x`` at angle 0), rows along ``v`` (``+z``); row 0 is the lowest row.

# Ref: the per-view vectors are those of the ASTRA toolbox's `cone_vec` geometry (van Aarle et al. 2016, Opt. Express
#      24, 25129), whose circular cone beam has the same signs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Views:
    """The poses of a scan, one row per view, all in mm.

    Attributes
    ----------
    source_mm, detector_mm : (n_views, 3) float64
        Focal spot, and centre of the detector.
    u_mm, v_mm : (n_views, 3) float64
        Step from one column, and from one row, to the next.
    """

    source_mm: NDArray[np.float64]
    detector_mm: NDArray[np.float64]
    u_mm: NDArray[np.float64]
    v_mm: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A circular cone-beam scanner with a flat detector.

    ``offset_u_mm`` and ``offset_v_mm`` shift the detector's centre along its columns and rows, away from the ray
    that meets the axis at a right angle.
    """

    source_to_detector_mm: float
    source_to_object_mm: float
    pitch_mm: float
    rows: int
    cols: int
    offset_u_mm: float = 0.0
    offset_v_mm: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.source_to_object_mm <= self.source_to_detector_mm:
            raise ValueError(
                f"source_to_object_mm is {self.source_to_object_mm} and source_to_detector_mm "
                f"{self.source_to_detector_mm}; allowed: 0 < object <= detector"
            )
        if self.pitch_mm <= 0 or self.rows < 1 or self.cols < 1:
            raise ValueError(f"a detector of {self.rows} x {self.cols} pixels of {self.pitch_mm} mm cannot be")

    @property
    def magnification(self) -> float:
        """How much larger the object's shadow is than the object."""
        return self.source_to_detector_mm / self.source_to_object_mm

    def views(self, angles_rad: ArrayLike) -> Views:
        """Return the pose of source and detector at each angle.

        Parameters
        ----------
        angles_rad : (n_views,) float
        """
        angle = np.atleast_1d(np.asarray(angles_rad, dtype=np.float64))
        cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
        along_u = np.stack([cos, sin, zero], axis=1)
        away = np.stack([-sin, cos, zero], axis=1)  # from source to detector
        along_v = np.tile([0.0, 0.0, 1.0], (len(angle), 1))
        object_to_detector_mm = self.source_to_detector_mm - self.source_to_object_mm
        return Views(
            source_mm=-self.source_to_object_mm * away,
            detector_mm=object_to_detector_mm * away + self.offset_u_mm * along_u + self.offset_v_mm * along_v,
            u_mm=self.pitch_mm * along_u,
            v_mm=self.pitch_mm * along_v,
        )
