"""From the frames of a scan to line integrals: views added up, tiles of the camera joined, one geometry for all.

What a view is: frames that follow each other at one angle, in one tile and one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from acquisition.scan import ImageKey
from acquisition.scan_file import Scan
from calibration.correction import line_integrals
from calibration.count_rate import CountRate
from calibration.geometry import Geometry
from calibration.thickness import EquivalentThickness
from firmware_iface.errors import BadFile
from reconstruction.stitch import stitch, wide_geometry


class Projections(NamedTuple):
    """Frames of one view added up.

    Attributes
    ----------
    counts : (n_views, n_counters, rows, cols) uint32
    angles_rad, frames, exposures_s : (n_views,) float64
        `frames` is the middle of each view in the run, the clock of the flats.
    """

    counts: NDArray[np.uint32]
    angles_rad: NDArray[np.float64]
    frames: NDArray[np.float64]
    exposures_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LineIntegrals:
    """What reconstructions start from.

    Attributes
    ----------
    values : (n_bins, n_views, rows, cols) float32
    is_estimated : the same shape, bool
        Values that were not measured.
    angles_rad : (n_views,) float64
    geometry : Geometry
        Of one camera that sees all columns, however many tiles it is made of.
    n_tiles : int
    """

    values: NDArray[np.float32]
    is_estimated: NDArray[np.bool_]
    angles_rad: NDArray[np.float64]
    geometry: Geometry
    n_tiles: int


def gather_projections(scan: Scan, indices: NDArray[np.intp] | None = None) -> Projections:
    """Add up the frames that follow each other at one angle; lost frames add neither counts nor exposure.

    Parameters
    ----------
    indices : (n,) int, optional
        Which projections; all of the scan unless told.
    """
    indices = scan.indices(ImageKey.PROJECTION) if indices is None else indices
    if not len(indices):
        raise BadFile(f"{scan.path} holds no projections", hint="scan again, with views in the plan")
    angles_rad = scan.angles_rad[indices]
    starts = np.flatnonzero(np.diff(angles_rad, prepend=np.nan) != 0)
    counts = scan.counts(indices)
    if len(starts) < len(indices):
        counts = np.add.reduceat(counts, starts, axis=0, dtype=np.uint32)
    n_frames = np.diff(starts, append=len(indices))
    return Projections(
        counts=counts.astype(np.uint32, copy=False),
        angles_rad=angles_rad[starts],
        frames=np.add.reduceat(indices, starts) / n_frames,
        exposures_s=np.add.reduceat(scan.exposures_s[indices], starts),
    )


def measure_line_integrals(
    scan: Scan,
    geometry: Geometry,
    *,
    pass_index: int = 0,
    n_counters: int | None = None,
    count_rate: CountRate | None = None,
    thickness: EquivalentThickness | None = None,
) -> LineIntegrals:
    """Turn the counts of a scan into line integrals; each tile by its own flats.

    Parameters
    ----------
    geometry : Geometry
        Of the camera where its shift is 0.
    pass_index : int
        Which pass over the object.
    n_counters : int, optional
        Only the first ones; all unless told.
    """
    is_projection = (scan.image_key == ImageKey.PROJECTION) & (scan.passes == pass_index)
    if not is_projection.any():
        raise BadFile(f"{scan.path} holds no projections of pass {pass_index + 1}", hint="scan it to its end")
    shifts_mm = np.unique(scan.shifts_mm[is_projection]).tolist()
    counters = np.s_[:, :n_counters]
    tiles: list[tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]] = []
    for shift_mm in shifts_mm:
        is_here = (scan.shifts_mm == shift_mm) & (scan.passes == pass_index)
        views, flats = (
            np.flatnonzero(is_here & (scan.image_key == key)) for key in (ImageKey.PROJECTION, ImageKey.FLAT)
        )
        projections = gather_projections(scan, views)
        values, is_estimated = line_integrals(
            projections.counts[counters],
            scan.counts(flats)[counters],
            projection_frames=projections.frames,
            flat_frames=flats,
            projection_exposures_s=projections.exposures_s,
            flat_exposures_s=scan.exposures_s[flats],
            is_bad=scan.calibration.is_bad if scan.calibration else None,
            count_rate=count_rate,
            thickness=thickness,
        )
        tiles.append((values, is_estimated, projections.angles_rad))
    angles_rad = tiles[0][2]
    if len(tiles) == 1:
        values, is_estimated, _ = tiles[0]
    else:
        # A view that one tile has lost is none of the wide camera's.
        for _, _, others in tiles[1:]:
            angles_rad = angles_rad[np.isin(angles_rad, others)]
        places = [_places(others, angles_rad) for _, _, others in tiles]
        values, is_estimated = stitch(
            [tile[:, place] for (tile, _, _), place in zip(tiles, places, strict=True)],
            [estimated[:, place] for (_, estimated, _), place in zip(tiles, places, strict=True)],
            shifts_mm,
            geometry,
        )
    return LineIntegrals(
        values=values,
        is_estimated=is_estimated,
        angles_rad=angles_rad,
        geometry=wide_geometry(geometry, shifts_mm),
        n_tiles=len(tiles),
    )


def _places(of_all_rad: NDArray[np.float64], wanted_rad: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return where each wanted angle is among others, in whatever order these are."""
    order = np.argsort(of_all_rad, kind="stable")
    return order[np.searchsorted(of_all_rad, wanted_rad, sorter=order)]
