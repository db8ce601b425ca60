"""What the camera sees of a sample that turns: its field of view, at one place or at several side by side.

A camera at one place that is shifted to a side sees one half of a wide sample, and after half a turn the other half: a
half-scan, which needs the whole circle. At several places it sees as much as one wide camera.

# Ref: half-scan with a shifted detector: Wang 2002, Med. Phys. 29, 1634. Short scan, 180 degrees and the fan: Parker
#      1982, Med. Phys. 9, 254. Tam-Danielsson window of a flat detector, and the highest pitch: Noo, Pack & Heuscher
#      2003, Phys. Med. Biol. 48, 3787, eq. 79.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from calibration.geometry import Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What all positions of the camera together see.

    Attributes
    ----------
    low_mm, high_mm : float
        The outermost edges along the rows, in the detector's plane, from the ray through the axis.
    overlap_mm : float
        What neighbouring positions both see at least, in the detector's plane; a whole row for one position.
    is_wide : bool
        Whether it is a half-scan: the camera stands more to one side than to the other, on purpose.
    """

    geometry: Geometry
    low_mm: float
    high_mm: float
    overlap_mm: float
    is_wide: bool

    @property
    def radius_mm(self) -> float:
        """Of the cylinder around the axis that every view sees; in a half-scan, that a whole circle sees."""
        reach_mm = (max if self.is_wide else min)(-self.low_mm, self.high_mm)
        return self._radius_mm(reach_mm)

    @property
    def twice_seen_mm(self) -> float:
        """Radius of what views from both sides see."""
        return self._radius_mm(min(-self.low_mm, self.high_mm))

    @property
    def height_mm(self) -> float:
        """Of the camera's shadow on the axis."""
        return self.geometry.rows * self.geometry.pitch_mm / self.geometry.magnification

    @property
    def voxel_mm(self) -> float:
        """Of one pixel's shadow on the axis."""
        return self.geometry.pitch_mm / self.geometry.magnification

    @property
    def fan_rad(self) -> float:
        """From the central ray to the outermost one, both sides."""
        return 2 * math.atan(max(-self.low_mm, self.high_mm) / self.geometry.source_to_detector_mm)

    @property
    def short_scan_rad(self) -> float:
        """The least arc in which every ray is seen from one side at least."""
        return math.pi + self.fan_rad

    @property
    def highest_pitch_mm(self) -> float:
        """The most that a helix may climb in a turn, so that its turns' windows meet on the detector."""
        distance_mm, edge_mm = self.geometry.source_to_detector_mm, max(-self.low_mm, self.high_mm)
        per_pitch = (edge_mm**2 + distance_mm**2) * (math.pi / 2 + math.atan(edge_mm / distance_mm))
        per_pitch /= 2 * math.pi * self.geometry.source_to_object_mm * distance_mm
        half_height_mm = (self.geometry.rows - 1) * self.geometry.pitch_mm / 2 - abs(self.geometry.offset_v_mm)
        return half_height_mm / per_pitch

    def _radius_mm(self, reach_mm: float) -> float:
        return self.geometry.source_to_object_mm * math.sin(math.atan(reach_mm / self.geometry.source_to_detector_mm))


def coverage(geometry: Geometry, shifts_mm: Sequence[float]) -> Coverage:
    """Return what the camera sees from these positions, ascending.

    Raises
    ------
    ValueError
        Neighbouring positions leave a gap, or the axis is seen from none.
    """
    width_mm = geometry.cols * geometry.pitch_mm
    for left_mm, right_mm in pairwise(shifts_mm):
        if right_mm - left_mm >= width_mm:
            raise ValueError(
                f"shifts_mm has {left_mm:g} and {right_mm:g} next to each other; "
                f"allowed: less than {width_mm:g} mm apart, the camera's width, so that they overlap"
            )
    low_mm = shifts_mm[0] + geometry.offset_u_mm - width_mm / 2
    high_mm = shifts_mm[-1] + geometry.offset_u_mm + width_mm / 2
    if not low_mm < 0 < high_mm:
        raise ValueError(
            f"shifts_mm is {list(shifts_mm)}: the camera sees {low_mm:g} to {high_mm:g} mm beside the axis; "
            "allowed: positions that see the axis of rotation"
        )
    return Coverage(
        geometry=geometry,
        low_mm=low_mm,
        high_mm=high_mm,
        overlap_mm=min((width_mm - right + left for left, right in pairwise(shifts_mm)), default=width_mm),
        is_wide=abs(shifts_mm[0] + shifts_mm[-1]) > geometry.pitch_mm,
    )
