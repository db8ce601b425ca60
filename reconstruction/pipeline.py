"""From a scan file to bin volumes, and from bin volumes to materials; each step says what it did.

The scan file carries its plan and its calibration, and the volume carries the basis: nothing else is needed.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from acquisition.plan import Plan, plan_to_json
from acquisition.scan import ImageKey
from acquisition.scan_file import Scan, read_scan
from acquisition.scan_plan import beyond_one_circle
from calibration.alignment import Alignment
from calibration.correction import line_integrals
from calibration.count_rate import CountRate
from calibration.geometry import Geometry
from calibration.material_basis import MaterialBasis
from calibration.opposing import align_scan
from calibration.progress import Progress
from calibration.store import Calibration, software_version
from calibration.thickness import EquivalentThickness
from firmware_iface.errors import BadFile, CalibrationMissing, WrongUsage
from reconstruction import decomposition
from reconstruction.fdk import fdk
from reconstruction.sharpness import sharpest_axis
from reconstruction.volume import (
    LINEAR_ATTENUATION,
    MASS_CONCENTRATION,
    Grid,
    Provenance,
    Volume,
    read_bin_images,
)

DEFAULT_WINDOW = "hann"


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


def gather_projections(scan: Scan) -> Projections:
    """Add up the frames that follow each other at one angle; lost frames add neither counts nor exposure."""
    indices = scan.indices(ImageKey.PROJECTION)
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


def field_of_view(geometry: Geometry, voxel_mm: float | None = None) -> Grid:
    """Return the grid that all views see, with voxels of one pixel's size on the axis unless told otherwise."""
    voxel_mm = voxel_mm or geometry.pitch_mm / geometry.magnification
    half_mm = geometry.cols * geometry.pitch_mm / 2 - abs(geometry.offset_u_mm)
    if half_mm <= 0:
        raise WrongUsage(
            f"the detector's shift of {geometry.offset_u_mm} mm leaves the axis out of its view",
            hint="give --shape and --voxel-mm",
        )
    radius_mm = geometry.source_to_object_mm * np.sin(np.arctan2(half_mm, geometry.source_to_detector_mm))
    half_height_mm = geometry.rows * geometry.pitch_mm / 2
    lowest_mm = -_seen_height_mm(geometry, radius_mm, half_height_mm - geometry.offset_v_mm)
    highest_mm = _seen_height_mm(geometry, radius_mm, half_height_mm + geometry.offset_v_mm)
    across = max(int(2 * radius_mm / voxel_mm), 1)
    along = max(int((highest_mm - lowest_mm) / voxel_mm), 1)
    return Grid(shape=(along, across, across), voxel_mm=voxel_mm, centre_mm=(0.0, 0.0, (lowest_mm + highest_mm) / 2))


def _seen_height_mm(geometry: Geometry, radius_mm: float, edge_mm: float) -> float:
    """Return how high an edge of the detector lets every view see at this radius: least where the source is near."""
    distance_mm = geometry.source_to_object_mm - np.copysign(radius_mm, edge_mm)
    return float(edge_mm * distance_mm / geometry.source_to_detector_mm)


def reconstruct_scan(
    path: str | Path,
    *,
    voxel_mm: float | None = None,
    shape: tuple[int, int, int] | None = None,
    window: str = DEFAULT_WINDOW,
    use_gpu: bool = False,
    allow_partial: bool = False,
    linearise: bool = False,
    calibration: Calibration | None = None,
) -> Generator[Progress, None, Volume]:
    """Turn a scan file into a volume of every bin.

    Where the scan's calibration knows the count rate at the scan's thresholds, counts are corrected for it.

    Parameters
    ----------
    voxel_mm, shape
        Size and number (z, y, x) of the voxels; None: what all views see, one pixel's size on the axis.
    window : str
        One of `reconstruction.fdk.WINDOWS`.
    allow_partial : bool
        Take also a scan that was interrupted.
    linearise : bool
        Take out the hardening of the beam by the step wedge that the scan's calibration holds.
    calibration : Calibration, optional
        Whose alignment to take instead of the scan's own geometry.

    Raises
    ------
    CalibrationMissing
        There is no step wedge, or one of another beam.

    Returns
    -------
    volume : Volume
        In 1/mm, one channel per bin, with the calibration's material basis.
    """
    yield Progress("reading", 0, 2)
    scan = read_scan(path, allow_partial=allow_partial)
    plan, geometry, origin = _plan_and_geometry(scan, calibration)
    grid = field_of_view(geometry, voxel_mm)
    if shape is not None:
        grid = Grid(shape=shape, voxel_mm=grid.voxel_mm, centre_mm=grid.centre_mm)
    projections = gather_projections(scan)
    yield Progress("reading", 1, 2)
    flats = scan.indices(ImageKey.FLAT)
    count_rate, told = _count_rate_of(scan)
    integrals, is_estimated = line_integrals(
        projections.counts,
        scan.counts(flats),
        projection_frames=projections.frames,
        flat_frames=flats,
        projection_exposures_s=projections.exposures_s,
        flat_exposures_s=scan.exposures_s[flats],
        is_bad=scan.calibration.is_bad if scan.calibration else None,
        count_rate=count_rate,
        thickness=_wedge_of(scan) if linearise else None,
    )
    yield Progress("reading", 2, 2)
    values = yield from fdk(integrals, projections.angles_rad, geometry, grid, window=window, use_gpu=use_gpu)
    thresholds_kev = scan.readout.thresholds_kev
    return Volume(
        values=values,
        channels=_bin_names(thresholds_kev, len(values)),
        unit=LINEAR_ATTENUATION,
        grid=grid,
        thresholds_kev=thresholds_kev,
        basis=scan.calibration.basis if scan.calibration else None,
        provenance=Provenance(
            source_file=Path(path).name,
            plan_json=plan_to_json(plan),
            calibration_identity=scan.calibration_identity,
            software=software_version(),
            steps=(
                f"{len(projections.angles_rad)} views, {scan.n_lost} frames lost, "
                f"{is_estimated.mean():.2%} of the line integrals estimated",
                f"geometry {origin}",
                told,
                *(("straight in thickness by the step wedge",) if linearise else ()),
                f"FDK, window {window}, grid {json.dumps(asdict(grid))}",
            ),
        ),
    )


def _count_rate_of(scan: Scan) -> tuple[CountRate | None, str]:
    """Return the count-rate calibration that fits a scan, and in words what it does."""
    known = scan.calibration.count_rate if scan.calibration else None
    if known is None:
        return None, "count rate not corrected: it was not measured (mpxct calibrate count-rate)"
    if not known.is_for(scan.readout.thresholds_kev):
        return None, f"count rate not corrected: it was measured at thresholds of {known.thresholds_kev.tolist()} keV"
    return known, f"count rate corrected ({known.law}, up to {known.highest_rate_per_s:.3g} counts/s/pixel)"


def _wedge_of(scan: Scan) -> EquivalentThickness:
    """Return the step wedge that fits a scan, or refuse."""
    known = scan.calibration.thickness if scan.calibration else None
    hint = "measure it with this plan, and scan again: mpxct calibrate wedge"
    if known is None:
        raise CalibrationMissing("the scan's calibration holds no step wedge to linearise with", hint=hint)
    kvp = scan.plan.source.kvp if scan.plan else known.tube_kvp
    if (known.thresholds_kev, known.tube_kvp) != (tuple(scan.readout.thresholds_kev), kvp):
        raise CalibrationMissing(
            f"the step wedge was measured at {known.tube_kvp:g} kVp and {list(known.thresholds_kev)} keV; the scan has "
            f"{kvp:g} kVp and {list(scan.readout.thresholds_kev)} keV",
            hint=hint,
        )
    return known


def align_scan_file(
    path: str | Path, *, by_sharpness: bool = False, allow_partial: bool = False
) -> Generator[Progress, None, Alignment]:
    """Find the axis of rotation from a scan itself, by the lowest threshold's counter.

    By opposing rays, which also tell the detector's roll; or by where a slice is sharpest.
    """
    yield Progress("reading", 0, 1)
    scan = read_scan(path, allow_partial=allow_partial)
    _, geometry, _ = _plan_and_geometry(scan, None)
    projections, flats = gather_projections(scan), scan.indices(ImageKey.FLAT)
    integrals, _ = line_integrals(
        projections.counts[:, :1],
        scan.counts(flats)[:, :1],
        projection_frames=projections.frames,
        flat_frames=flats,
        projection_exposures_s=projections.exposures_s,
        flat_exposures_s=scan.exposures_s[flats],
        is_bad=scan.calibration.is_bad if scan.calibration else None,
    )
    yield Progress("reading", 1, 1)
    find = sharpest_axis if by_sharpness else align_scan
    return (yield from find(integrals[0], projections.angles_rad, geometry))


def _plan_and_geometry(scan: Scan, calibration: Calibration | None) -> tuple[Plan, Geometry, str]:
    """Return the scan's plan, and where source and detector were: as given, else as calibrated, else as planned."""
    if scan.plan is None or scan.geometry is None:
        raise BadFile(f"{scan.path} does not say where source and detector stood", hint="a scan needs its plan inside")
    if beyond := beyond_one_circle(scan.plan.scan):
        raise WrongUsage(
            f"{scan.path} cannot be reconstructed yet: {'; '.join(beyond)}; "
            "allowed: one pass around a circle, the camera at one place in the middle",
            hint="the frames are all in the file, each with its angle, lift, shift and pass",
        )
    alignment = scan.calibration.alignment if scan.calibration else None
    if calibration is not None:
        alignment = calibration.alignment
        if alignment is None:
            raise CalibrationMissing(
                f"the calibration {calibration.identity} holds no geometry",
                hint="make one: mpxct calibrate geometry, or mpxct align SCAN -o FILE",
            )
    geometry = alignment.geometry if alignment else scan.plan.geometry
    if (geometry.rows, geometry.cols) != scan.shape[2:]:
        raise WrongUsage(
            f"the geometry is of {geometry.rows} x {geometry.cols} pixels; the scan has "
            f"{scan.shape[2]} x {scan.shape[3]}",
            hint="align with a scan or phantom in the scan's own mode",
        )
    return scan.plan, geometry, f"by {alignment.method}" if alignment else "as planned"


def _bin_names(thresholds_kev: Sequence[float], n_bins: int) -> tuple[str, ...]:
    if len(thresholds_kev) != n_bins:
        return tuple(f"bin {number}" for number in range(1, n_bins + 1))
    edges = [f"{energy:g}" for energy in thresholds_kev]
    return (*(f"{low}-{high} keV" for low, high in pairwise(edges)), f"{edges[-1]}+ keV")


def read_image_folder(folder: str | Path, *, scale: float = 1.0, voxel_mm: float | None = None) -> Volume:
    """Read one TIFF per bin as a volume.

    Parameters
    ----------
    scale : float
        Grey value that means an attenuation of 1 per cm.
    voxel_mm : float, optional
        Edge of a pixel; None: the images do not tell, and lengths count pixels.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise WrongUsage(f"the scale is {scale}; allowed: above 0, the grey value that means 1 per cm")
    names, values = read_bin_images(folder)
    return Volume(
        values=values * np.float32(decomposition.CM_PER_MM / scale),
        channels=names,
        unit=LINEAR_ATTENUATION,
        grid=Grid(
            shape=(values.shape[1], values.shape[2], values.shape[3]),
            voxel_mm=1.0 if voxel_mm is None else voxel_mm,
            is_scale_known=voxel_mm is not None,
        ),
        provenance=Provenance(
            source_file=Path(folder).name, software=software_version(), steps=(f"TIFF images, scale {scale:g}",)
        ),
    )


def decompose_volume(
    volume: Volume,
    attenuation: decomposition.Attenuation | None = None,
    *,
    is_weighted: bool = False,
    is_non_negative: bool = False,
) -> Volume:
    """Turn bins into materials.

    Parameters
    ----------
    attenuation : MaterialBasis or Matrix, optional
        None: the basis that the volume carries.
    is_weighted : bool
        Let quiet bins count more, by the noise that the volume shows; with as many materials as bins nothing is left
        to weigh.
    is_non_negative : bool
        Allow no concentration below 0.

    Returns
    -------
    volume : Volume
        In g/cm3, one channel per material.
    """
    if volume.unit != LINEAR_ATTENUATION:
        raise WrongUsage(f"the volume holds {', '.join(volume.channels)} in {volume.unit}; allowed: bins in 1/mm")
    attenuation = attenuation or volume.basis
    if attenuation is None:
        raise CalibrationMissing(
            "the volume carries no material basis",
            hint="run mpxct calibrate materials and scan again, or give --matrix",
        )
    _check_bins(volume, attenuation)
    if isinstance(attenuation, decomposition.Matrix):
        attenuation = attenuation.in_order_of(volume.channels)
    values = decomposition.decompose(
        volume.values,
        attenuation.attenuation_per_mm_per_g_cm3,
        covariance=decomposition.bin_covariance(volume.values) if is_weighted else None,
        is_non_negative=is_non_negative,
    )
    n_bins, n_materials = np.shape(attenuation.attenuation_per_mm_per_g_cm3)
    weights = "as many as bins" if n_materials == n_bins else "weighted by noise" if is_weighted else "unweighted"
    how = weights + (", none below 0" if is_non_negative else "")
    source = volume.provenance
    return Volume(
        values=values,
        channels=attenuation.materials,
        unit=MASS_CONCENTRATION,
        grid=volume.grid,
        thresholds_kev=volume.thresholds_kev,
        basis=attenuation if isinstance(attenuation, MaterialBasis) else None,
        provenance=Provenance(
            source_file=source.source_file,
            plan_json=source.plan_json,
            calibration_identity=source.calibration_identity,
            software=software_version(),
            steps=(*source.steps, f"least squares, {how}, into {', '.join(attenuation.materials)}"),
        ),
    )


def _check_bins(volume: Volume, attenuation: decomposition.Attenuation) -> None:
    n_bins = len(attenuation.attenuation_per_mm_per_g_cm3)
    if n_bins != len(volume.channels):
        raise WrongUsage(
            f"the volume has {len(volume.channels)} bins and the matrix {n_bins}; allowed: as many in both",
            hint="use the calibration or the matrix that belongs to this scan",
        )
    if not isinstance(attenuation, MaterialBasis) or not volume.thresholds_kev:
        return
    if not np.allclose(attenuation.thresholds_kev, volume.thresholds_kev, atol=0.5):
        raise CalibrationMissing(
            f"the basis was measured with thresholds {attenuation.thresholds_kev} keV, "
            f"and the scan has {volume.thresholds_kev} keV",
            hint="run mpxct calibrate materials with this scan's plan",
        )
    plan = json.loads(volume.provenance.plan_json or "{}")
    kvp = plan.get("source", {}).get("kvp")
    if None not in (kvp, attenuation.tube_kvp) and kvp != attenuation.tube_kvp:
        raise CalibrationMissing(
            f"the basis was measured at {attenuation.tube_kvp:g} kVp, and the scan at {kvp:g} kVp",
            hint="run mpxct calibrate materials with this scan's plan",
        )
