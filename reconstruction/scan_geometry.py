"""Where each view's rays run: one cone beam by vectors, from which all kinds of scan follow.

The frame and the signs are those of `calibration.geometry`: fixed to the object, z up, detector columns along u and
rows along v, row 0 the lowest. Circles, helices, shifted and tilted detectors, tiles and parallel beams differ in their
vectors only; what was misaligned is in the vectors too.

# Ref: views as vectors: the ASTRA toolbox's `cone_vec` and `parallel3d_vec` (van Aarle et al. 2016, Opt. Express 24,
#      25129). Projection matrices: Hartley and Zisserman 2004, Multiple View Geometry, chapter 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.geometry import Geometry, Views

UPRIGHT_SLOPE = 1e-9
"""Columns that lean less than this against the z axis stand upright."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScanGeometry:
    """The rays of a scan, one row of vectors per view, in mm.

    Attributes
    ----------
    source_mm : (n_views, 3) float64
        Focal spot. Of a parallel beam: the unit vector that points to the source.
    detector_mm : (n_views, 3) float64
        Centre of the detector.
    u_mm, v_mm : (n_views, 3) float64
        Step from one column, and from one row, to the next.
    rows, cols : int
        Of the detector.
    is_parallel : bool
    """

    source_mm: NDArray[np.float64]
    detector_mm: NDArray[np.float64]
    u_mm: NDArray[np.float64]
    v_mm: NDArray[np.float64]
    rows: int
    cols: int
    is_parallel: bool = False

    def __post_init__(self) -> None:
        for name in ("source_mm", "detector_mm", "u_mm", "v_mm"):
            vectors = getattr(self, name)
            if vectors.shape != (len(self.source_mm), 3) or not np.isfinite(vectors).all():
                raise ValueError(f"{name} has shape {vectors.shape}; allowed: ({len(self.source_mm)}, 3), finite")
        if self.rows < 1 or self.cols < 1 or len(self.source_mm) < 1:
            raise ValueError(f"{len(self.source_mm)} views of {self.rows} x {self.cols} pixels cannot be")

    @classmethod
    def circular(
        cls, geometry: Geometry, angles_rad: ArrayLike, *, lifts_mm: ArrayLike = 0.0, shifts_mm: ArrayLike = 0.0
    ) -> ScanGeometry:
        """Return the rays of a camera that goes round the object, or up a helix.

        Parameters
        ----------
        geometry : Geometry
            Of the camera where its shift is 0.
        angles_rad : (n_views,) float
        lifts_mm : float or (n_views,) float
            How high the stage lifts the object at each view: source and detector see it from that much lower.
        shifts_mm : float or (n_views,) float
            How far the camera stands along its rows at each view.
        """
        angles = np.atleast_1d(np.asarray(angles_rad, dtype=np.float64))
        views = geometry.views(angles)
        drop = np.zeros((len(angles), 3))
        drop[:, 2] = lifts_mm
        along_u = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1)
        shift = along_u * np.broadcast_to(np.asarray(shifts_mm, dtype=np.float64), angles.shape)[:, None]
        return cls(
            source_mm=views.source_mm - drop,
            detector_mm=views.detector_mm - drop + shift,
            u_mm=views.u_mm,
            v_mm=views.v_mm,
            rows=geometry.rows,
            cols=geometry.cols,
        )

    @classmethod
    def parallel(
        cls, angles_rad: ArrayLike, *, rows: int, cols: int, pitch_mm: float, offset_u_mm: float = 0.0
    ) -> ScanGeometry:
        """Return parallel rays square to the z axis; at angle 0 they run along +y, as those of `circular`."""
        angles = np.atleast_1d(np.asarray(angles_rad, dtype=np.float64))
        along_u = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1)
        to_source = np.stack([np.sin(angles), -np.cos(angles), np.zeros_like(angles)], axis=1)
        return cls(
            source_mm=to_source,
            detector_mm=offset_u_mm * along_u,
            u_mm=pitch_mm * along_u,
            v_mm=np.tile([0.0, 0.0, pitch_mm], (len(angles), 1)),
            rows=rows,
            cols=cols,
            is_parallel=True,
        )

    @classmethod
    def of_views(cls, views: Views, *, rows: int, cols: int) -> ScanGeometry:
        """Return the rays of a cone beam at any poses."""
        return cls(
            source_mm=views.source_mm,
            detector_mm=views.detector_mm,
            u_mm=views.u_mm,
            v_mm=views.v_mm,
            rows=rows,
            cols=cols,
        )

    @classmethod
    def from_astra(
        cls, vectors: ArrayLike, *, rows: int, cols: int, voxel_mm: float = 1.0, is_parallel: bool = False
    ) -> ScanGeometry:
        """Return the rays that ASTRA's `cone_vec` or `parallel3d_vec` vectors, in units of `voxel_mm`, describe."""
        first, *others = np.split(np.asarray(vectors, dtype=np.float64) * voxel_mm, 4, axis=1)
        if is_parallel:  # ASTRA's first vector is the way the rays run
            first = -first / np.linalg.norm(first, axis=1, keepdims=True)
        detector, u, v = others
        return cls(source_mm=first, detector_mm=detector, u_mm=u, v_mm=v, rows=rows, cols=cols, is_parallel=is_parallel)

    def to_astra(self, voxel_mm: float = 1.0) -> NDArray[np.float64]:
        """Return the rows of ASTRA's `cone_vec` (or `parallel3d_vec`): (n_views, 12), in units of `voxel_mm`."""
        first = -self.source_mm if self.is_parallel else self.source_mm / voxel_mm
        return np.concatenate([first, *(a / voxel_mm for a in (self.detector_mm, self.u_mm, self.v_mm))], axis=1)

    @property
    def n_views(self) -> int:
        """Number of views."""
        return len(self.source_mm)

    def take(self, views: ArrayLike | slice) -> ScanGeometry:
        """Return the scan of some views only, in their order."""
        index = views if isinstance(views, slice) else np.asarray(views)
        names = ("source_mm", "detector_mm", "u_mm", "v_mm")
        return replace(self, **{name: np.atleast_2d(getattr(self, name)[index]) for name in names})

    def matrices(self) -> NDArray[np.float64]:
        """Return the projection matrix of each view: (n_views, 3, 4) float64.

        Of a point in mm with a 1 behind it, a matrix makes (a, b, c): the shadow falls on column a / c and row b / c,
        counted from the centre of the first pixel, and 1 / c is the magnification there (1 for parallel beams).
        """
        normal = np.cross(self.u_mm, self.v_mm)
        area = (normal * normal).sum(-1, keepdims=True)
        u_dual = np.cross(self.v_mm, normal) / area  # u_dual . u = 1, u_dual . v = 0
        v_dual = np.cross(normal, self.u_mm) / area
        centre = (self.cols - 1) / 2, (self.rows - 1) / 2
        matrices = np.zeros((self.n_views, 3, 4))
        if self.is_parallel:
            along = self.source_mm / (self.source_mm * normal).sum(-1, keepdims=True)
            for row, dual in enumerate((u_dual, v_dual)):
                slope = dual - (dual * along).sum(-1, keepdims=True) * normal
                matrices[:, row, :3] = slope
                matrices[:, row, 3] = centre[row] - (slope * self.detector_mm).sum(-1)
            matrices[:, 2, 3] = 1.0
            return matrices
        reach = ((self.detector_mm - self.source_mm) * normal).sum(-1, keepdims=True)
        depth = normal / reach  # 1 on the detector
        matrices[:, 2, :3] = depth
        matrices[:, 2, 3] = -(depth * self.source_mm).sum(-1)
        for row, dual in enumerate((u_dual, v_dual)):
            from_centre = ((self.source_mm - self.detector_mm) * dual).sum(-1, keepdims=True) + centre[row]
            slope = dual + from_centre * depth
            matrices[:, row, :3] = slope
            matrices[:, row, 3] = -(slope * self.source_mm).sum(-1)
        return matrices

    @property
    def is_upright(self) -> bool:
        """Whether every detector column stands parallel to z, so that a column of voxels falls on one column."""
        scale = np.linalg.norm(self.u_mm, axis=1)
        leans = np.abs(self.v_mm[:, :2]).max(initial=0.0) / scale.min(), np.abs(self.u_mm[:, 2] / scale).max()
        slope = np.abs(self.source_mm[:, 2]).max() if self.is_parallel else 0.0
        return bool(max(*leans, slope) <= UPRIGHT_SLOPE)
