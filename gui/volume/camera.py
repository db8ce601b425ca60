"""Where a volume is looked at from: one record for the graphics card, the processor and what is written over both.

# Ref: the matrices are those of OpenGL 2.1, section 2.11 (right-handed eye space, looking along -z).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

HALF_TURN_RAD = float(np.pi)
LEAST_SHARE, MOST_SHARE = 0.05, 20.0
"""How far zooming goes, in shares of the size of what is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """A place to look from; angles as in `calibration.geometry`, counter-clockwise as seen from +z.

    Attributes
    ----------
    azimuth_rad, elevation_rad : float
        Direction from the middle to the camera; 0, 0 is +x, and -pi/2, 0 is where the source stands at angle 0.
    distance_mm : float
        From the middle; also sets the scale of an orthographic view, so that changing over leaves the size.
    fov_rad : float
        Angle that the smaller edge of the picture spans.
    """

    azimuth_rad: float = -1.05
    elevation_rad: float = 0.44
    distance_mm: float
    fov_rad: float = 0.45
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    is_orthographic: bool = False

    @classmethod
    def around(cls, size_mm: tuple[float, float, float], centre_mm: tuple[float, float, float], **parts: float) -> Self:
        """Look at a box of edges x, y, z so that it fits into the picture from every side."""
        made = cls(distance_mm=1.0, centre_mm=centre_mm, **parts)  # pyright: ignore[reportArgumentType]
        radius_mm = float(np.linalg.norm(size_mm)) / 2
        return replace(made, distance_mm=radius_mm / np.sin(made.fov_rad / 2))

    def turned(self, azimuth_rad: float, elevation_rad: float) -> Self:
        """Go round the middle; not beyond its poles."""
        return replace(
            self,
            azimuth_rad=(self.azimuth_rad + azimuth_rad + HALF_TURN_RAD) % (2 * HALF_TURN_RAD) - HALF_TURN_RAD,
            elevation_rad=float(np.clip(self.elevation_rad + elevation_rad, -HALF_TURN_RAD / 2, HALF_TURN_RAD / 2)),
        )

    def zoomed(self, factor: float, size_mm: float) -> Self:
        """Come nearer by a factor, within what makes sense for a thing of this size."""
        distance_mm = float(np.clip(self.distance_mm / factor, LEAST_SHARE * size_mm, MOST_SHARE * size_mm))
        return replace(self, distance_mm=distance_mm)

    def panned(self, right_mm: float, up_mm: float) -> Self:
        """Look at another point, so far to the right and up in the picture."""
        right, up, _ = self.axes()
        x, y, z = np.asarray(self.centre_mm) + right_mm * right + up_mm * up
        return replace(self, centre_mm=(float(x), float(y), float(z)))

    def axes(self) -> NDArray[np.float64]:
        """Return unit vectors (3, 3): right and up in the picture, and from the middle towards the camera."""
        ca, sa = np.cos(self.azimuth_rad), np.sin(self.azimuth_rad)
        ce, se = np.cos(self.elevation_rad), np.sin(self.elevation_rad)
        return np.array([[-sa, ca, 0.0], [-se * ca, -se * sa, ce], [ce * ca, ce * sa, se]])

    def eye_mm(self) -> NDArray[np.float64]:
        """Return where it stands, (3,); one without perspective stands very far away."""
        far = 1e6 if self.is_orthographic else 1.0
        return np.asarray(self.centre_mm) + far * self.distance_mm * self.axes()[2]

    def view(self) -> NDArray[np.float64]:
        """Return the matrix (4, 4) from mm to the camera's eye."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes()
        matrix[:3, 3] = -matrix[:3, :3] @ np.asarray(self.centre_mm)
        matrix[2, 3] -= self.distance_mm
        return matrix

    def half_extent_mm(self, width: int, height: int) -> tuple[float, float]:
        """Return half of what the picture spans at the middle, across and upwards."""
        half_mm = self.distance_mm * np.tan(self.fov_rad / 2) / min(width, height)
        return float(half_mm * width), float(half_mm * height)

    def projection(self, width: int, height: int, radius_mm: float) -> NDArray[np.float64]:
        """Return the matrix (4, 4) from the eye to the cube of OpenGL.

        Parameters
        ----------
        radius_mm : float
            Nothing farther from the middle than this need be seen; the tighter, the finer is depth.
        """
        far = self.distance_mm + radius_mm
        near = self.distance_mm - radius_mm
        a, b = self.half_extent_mm(width, height)
        matrix = np.zeros((4, 4))
        if self.is_orthographic:
            matrix[0, 0], matrix[1, 1], matrix[3, 3] = 1 / a, 1 / b, 1.0
            matrix[2, 2], matrix[2, 3] = -2 / (far - near), -(far + near) / (far - near)
            return matrix
        near = max(near, 0.01 * self.distance_mm)
        matrix[0, 0], matrix[1, 1], matrix[3, 2] = self.distance_mm / a, self.distance_mm / b, -1.0
        matrix[2, 2], matrix[2, 3] = -(far + near) / (far - near), -2 * far * near / (far - near)
        return matrix

    def pixels_of(
        self, points_mm: NDArray[np.floating], width: int, height: int, radius_mm: float
    ) -> NDArray[np.float64]:
        """Return where points (n, 3) are in a picture: (n, 2), pixels from its upper left corner."""
        matrix = self.projection(width, height, radius_mm) @ self.view()
        homogeneous = np.c_[points_mm, np.ones(len(points_mm))] @ matrix.T
        x, y = (homogeneous[:, :2] / homogeneous[:, 3:]).T
        return np.c_[(x + 1) / 2 * width, (1 - y) / 2 * height]

    def mm_per_pixel(self, width: int, height: int) -> float:
        """Return the size of a pixel at the middle."""
        return 2 * self.half_extent_mm(width, height)[0] / width


STANDARD_VIEWS: dict[str, tuple[float, float]] = {
    "Front": (-HALF_TURN_RAD / 2, 0.0),
    "Back": (HALF_TURN_RAD / 2, 0.0),
    "Right": (0.0, 0.0),
    "Left": (HALF_TURN_RAD, 0.0),
    "Top": (-HALF_TURN_RAD / 2, HALF_TURN_RAD / 2),
    "Bottom": (-HALF_TURN_RAD / 2, -HALF_TURN_RAD / 2),
    "Corner": (-1.05, 0.44),
}
"""Azimuth and elevation; from the front x runs to the right and z up, from the top x to the right and y up."""
