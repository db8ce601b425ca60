"""Where source, detector and object are: the scan geometry, its per-view vectors and its signs.

One right-handed frame, fixed to the object, in mm: ``z`` is the rotation axis and points up. At angle 0 the source
stands at ``-y`` and the detector at ``+y``; a positive angle turns source and detector counter-clockwise seen from
``+z``. Detector columns run along ``u`` (``+x`` at angle 0), rows along ``v`` (``+z``); row 0 is the lowest row.
``w`` points from the detector to the source (``-y`` at angle 0): u, v and w are right-handed.

The source defines ``z = 0``, so that seven numbers say where source and detector are, whatever the axis leans against:
two distances, two offsets and three tilts. How high the object stands is the object's affair.

# Ref: the per-view vectors are those of the ASTRA toolbox's `cone_vec` geometry (van Aarle et al. 2016, Opt. Express
#      24, 25129), whose circular cone beam has the same signs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

TILTS = ("roll_rad", "tilt_u_rad", "tilt_v_rad")
STEEPEST_RAD = np.pi / 4
"""A detector that is turned further is mounted wrongly."""


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

    def shadows_px(self, points_mm: ArrayLike) -> NDArray[np.float64]:
        """Return where the rays through points meet the detector, in pixels from its centre.

        Parameters
        ----------
        points_mm : (n_points, 3) or (n_views, n_points, 3) float
            Fixed to the object, or, for each view, wherever they are.

        Returns
        -------
        (n_views, n_points, 2) float64
            Along the columns (u) and along the rows (v).
        """
        source, detector, u, v = (axis[:, None, :] for axis in (self.source_mm, self.detector_mm, self.u_mm, self.v_mm))
        rays = np.asarray(points_mm, dtype=np.float64) - source
        normal = np.cross(u, v)
        stretch = ((detector - source) * normal).sum(-1) / (rays * normal).sum(-1)
        met = source + stretch[..., None] * rays - detector
        along = ((met * axis).sum(-1) / (axis * axis).sum(-1) for axis in (u, v))
        return np.stack(list(along), axis=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A circular cone-beam scanner with a flat detector.

    ``offset_u_mm`` and ``offset_v_mm`` shift the detector's centre along u and v, away from the ray that meets the axis
    at a right angle. Then the detector is turned about its centre: first by ``roll_rad`` about w (counter-clockwise as
    the source sees it), then by ``tilt_u_rad`` about u (the highest row comes nearer to the source), then by
    ``tilt_v_rad`` about v (the last column goes away from the source). u, v and w are those of the untilted detector.
    """

    source_to_detector_mm: float
    source_to_object_mm: float
    pitch_mm: float
    rows: int
    cols: int
    offset_u_mm: float = 0.0
    offset_v_mm: float = 0.0
    roll_rad: float = 0.0
    tilt_u_rad: float = 0.0
    tilt_v_rad: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.source_to_object_mm <= self.source_to_detector_mm:
            raise ValueError(
                f"source_to_object_mm is {self.source_to_object_mm} and source_to_detector_mm "
                f"{self.source_to_detector_mm}; allowed: 0 < object <= detector"
            )
        if self.pitch_mm <= 0 or self.rows < 1 or self.cols < 1:
            raise ValueError(f"a detector of {self.rows} x {self.cols} pixels of {self.pitch_mm} mm cannot be")
        for name in TILTS:
            if not abs(getattr(self, name)) <= STEEPEST_RAD:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: {-STEEPEST_RAD:.3g} to {STEEPEST_RAD:.3g}")

    @property
    def magnification(self) -> float:
        """How much larger the object's shadow is than the object."""
        return self.source_to_detector_mm / self.source_to_object_mm

    @property
    def is_tilted(self) -> bool:
        """Whether the detector stands askew."""
        return any(getattr(self, name) for name in TILTS)

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
        axes = np.stack([along_u, along_v, -away], axis=-1)
        turned = axes @ self._turn()
        return Views(
            source_mm=-self.source_to_object_mm * away,
            detector_mm=object_to_detector_mm * away + self.offset_u_mm * along_u + self.offset_v_mm * along_v,
            u_mm=self.pitch_mm * turned[..., 0],
            v_mm=self.pitch_mm * turned[..., 1],
        )

    def _turn(self) -> NDArray[np.float64]:
        """Return the matrix that tilts the detector: its columns are where u, v and w go, in (u, v, w)."""
        cos, sin = np.cos, np.sin
        roll, about_u, about_v = self.roll_rad, self.tilt_u_rad, self.tilt_v_rad
        turn_w = np.array([[cos(roll), -sin(roll), 0], [sin(roll), cos(roll), 0], [0, 0, 1]])
        turn_u = np.array([[1, 0, 0], [0, cos(about_u), -sin(about_u)], [0, sin(about_u), cos(about_u)]])
        turn_v = np.array([[cos(about_v), 0, sin(about_v)], [0, 1, 0], [-sin(about_v), 0, cos(about_v)]])
        return turn_v @ turn_u @ turn_w
