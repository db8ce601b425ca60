"""From a scan file to bin volumes; each step says what it did.

The scan file carries its plan and its calibration, and the volume carries the basis: nothing else is needed.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from acquisition.plan import passes_kev
from acquisition.scan_file import read_scan
from acquisition.scan_plan import beyond_one_circle
from calibration.alignment import Alignment
from calibration.geometry import Geometry
from calibration.opposing import align_scan
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.errors import WrongUsage
from reconstruction.fdk import fdk
from reconstruction.field_of_view import coarser, field_of_view, region
from reconstruction.orbits import HELIX_SHARE, ONE_SIDED_SHARE
from reconstruction.projections import LineIntegrals, measure_line_integrals
from reconstruction.recipe import Recipe
from reconstruction.scan_corrections import corrected
from reconstruction.scan_iteration import iterate_scan
from reconstruction.scan_source import ScanSource, count_passes, flat_of, open_source, plan_and_geometry
from reconstruction.sharpness import sharpest_axis
from reconstruction.spectral.passes import joined
from reconstruction.volume import LINEAR_ATTENUATION, Grid, Volume

PREVIEW = 4
"""Pixels, voxels and views that a preview takes for one."""


def reconstruct_scan(
    path: str | Path,
    recipe: Recipe | None = None,
    *,
    calibration: Calibration | None = None,
    allow_partial: bool = False,
) -> Generator[Progress, None, Volume]:
    """Turn a scan file into a volume of every bin.

    Where the scan's calibration knows the count rate at the scan's thresholds, counts are corrected for it. The bins of
    a scan of several passes stand one pass after the other, unless the recipe names a pass.

    Parameters
    ----------
    recipe : Recipe, optional
        Filtered back-projection of all bins where all views see, unless told otherwise.
    calibration : Calibration, optional
        Whose alignment to take instead of the scan's own geometry.
    allow_partial : bool
        Take also a scan that was interrupted.

    Raises
    ------
    CalibrationMissing
        The recipe asks for a step wedge, and there is none, or one of another beam.

    Returns
    -------
    volume : Volume
        In 1/mm, one channel per bin, with the calibration's material basis.
    """
    recipe = recipe or Recipe()
    n_passes = count_passes(path, allow_partial=allow_partial) if recipe.pass_number is None else 1
    if n_passes > 1:
        return (yield from _all_passes(path, n_passes, recipe, calibration, allow_partial))
    yield Progress("reading", 0, 2)
    source = open_source(
        path,
        calibration=calibration,
        pass_number=recipe.pass_number,
        linearise=recipe.linearise,
        allow_partial=allow_partial,
    )
    yield Progress("reading", 1, 2)
    measured = yield from measure_line_integrals(
        source.scan,
        source.geometry,
        pass_index=source.pass_index,
        count_rate=source.count_rate,
        thickness=source.thickness,
        flat=source.flat,
    )
    bins = chosen_bins(source, recipe)
    measured = replace(
        measured,
        values=measured.values[bins],
        is_estimated=measured.is_estimated[bins],
        open_counts=measured.open_counts[bins],
    )
    if recipe.is_preview:
        measured = previewed(measured)
    yield Progress("reading", 2, 2)
    return (yield from reconstruct_rays(source, measured, grid_of(measured, recipe), recipe))


def reconstruct_rays(
    source: ScanSource, measured: LineIntegrals, grid: Grid, recipe: Recipe
) -> Generator[Progress, None, Volume]:
    """Turn line integrals of a scan into a volume of the recipe's bins.

    Parameters
    ----------
    source : ScanSource
        Where they are from.
    measured : LineIntegrals
        Of those bins; what is corrected may be corrected in place.
    grid : Grid
        Voxels to make.
    """
    bins = chosen_bins(source, recipe)
    measured, metal, corrections = yield from corrected(measured, grid, recipe)
    is_whole = len(bins) == source.scan.shape[1]
    values, how, convergence_json = yield from _values(measured, grid, recipe)
    if metal is not None:
        values = metal.reinstated(values, grid)
    return Volume(
        values=values,
        channels=tuple(source.channels[index] for index in bins),
        unit=LINEAR_ATTENUATION,
        grid=grid,
        thresholds_kev=source.thresholds_kev if is_whole else (),
        basis=source.basis if is_whole else None,
        provenance=source.provenance(
            (
                f"{len(measured.angles_rad)} views, {source.scan.n_lost} frames lost, "
                f"{measured.is_estimated.mean():.2%} of the line integrals estimated",
                *((f"{measured.n_tiles} tiles joined",) if measured.n_tiles > 1 else ()),
                *source.words,
                *(("preview: every fourth view, and four pixels for one",) if recipe.is_preview else ()),
                *corrections,
                f"{how}, grid {json.dumps(asdict(grid))}",
            ),
            convergence_json,
        ),
    )


def _all_passes(
    path: str | Path, n_passes: int, recipe: Recipe, calibration: Calibration | None, allow_partial: bool
) -> Generator[Progress, None, Volume]:
    volumes: list[Volume] = []
    for number in range(1, n_passes + 1):
        one = replace(recipe, pass_number=number)
        volumes += [(yield from reconstruct_scan(path, one, calibration=calibration, allow_partial=allow_partial))]
    return joined(volumes)


def _values(
    measured: LineIntegrals, grid: Grid, recipe: Recipe
) -> Generator[Progress, None, tuple[NDArray[np.float32], str, str]]:
    """Return the volume, how it was made in words, and how iterations went."""
    if recipe.is_iterative:
        values, log = yield from iterate_scan(measured, grid, recipe)
        chosen = {"prior": recipe.prior, "start": recipe.start, "reference": recipe.reference, **recipe.options}
        told = "".join(f", {name} {value}" for name, value in chosen.items() if value is not None)
        words = f"{recipe.method}{told}, {len(log.steps)} iterations, ended by {log.ended_by}"
        return values, words, json.dumps(log.table())
    values = yield from fdk(
        measured.values,
        measured.angles_rad,
        measured.geometry,
        grid,
        window=recipe.window,
        use_gpu=recipe.use_gpu,
        lifts_mm=measured.lifts_mm,
        is_continued=recipe.truncation != "none",
    )
    return values, f"FDK, window {recipe.window}", ""


def chosen_bins(source: ScanSource, recipe: Recipe) -> NDArray[np.intp]:
    """Return the places of the bins that a recipe asks for."""
    n_bins = source.scan.shape[1]
    if recipe.bins and max(recipe.bins) > n_bins:
        raise WrongUsage(
            f"--bins names bin {max(recipe.bins)}; {source.scan.path} has {n_bins}: {', '.join(source.channels)}"
        )
    return np.array(recipe.bins, np.intp) - 1 if recipe.bins else np.arange(n_bins)


class Seen(Protocol):
    """What the voxels depend on: `LineIntegrals`, or a reader of them.

    Attributes
    ----------
    geometry : Geometry
    angles_rad, lifts_mm : (n_views,) float64
    """

    @property
    def geometry(self) -> Geometry: ...  # noqa: D102
    @property
    def angles_rad(self) -> NDArray[np.float64]: ...  # noqa: D102
    @property
    def lifts_mm(self) -> NDArray[np.float64]: ...  # noqa: D102


def grid_of(measured: Seen, recipe: Recipe) -> Grid:
    """Return the voxels that a recipe asks for."""
    voxel_mm = recipe.voxel_mm
    if recipe.is_preview and voxel_mm is not None:
        voxel_mm *= PREVIEW
    geometry, lifts_mm = measured.geometry, measured.lifts_mm
    left_mm, right_mm = (side * geometry.offset_u_mm + geometry.cols * geometry.pitch_mm / 2 for side in (-1, 1))
    seen_mm = geometry.rows * geometry.pitch_mm / geometry.magnification
    is_helix = np.ptp(lifts_mm) > HELIX_SHARE * seen_mm
    grid = field_of_view(
        geometry,
        voxel_mm,
        lifts_mm=lifts_mm,
        climb_mm=np.ptp(lifts_mm) / np.ptp(measured.angles_rad) * 2 * np.pi if is_helix else 0.0,
        is_wide=min(left_mm, right_mm) < ONE_SIDED_SHARE * max(left_mm, right_mm),
    )
    if recipe.shape is not None:
        grid = Grid(shape=recipe.shape, voxel_mm=grid.voxel_mm, centre_mm=grid.centre_mm)
    return region(grid, recipe.region_mm) if recipe.region_mm else grid


def previewed(measured: LineIntegrals) -> LineIntegrals:
    """Return every fourth view, and the mean of four by four pixels."""
    geometry = coarser(measured.geometry, PREVIEW)

    def joined(values: NDArray[np.generic]) -> NDArray[np.generic]:
        kept = values[:, ::PREVIEW, : geometry.rows * PREVIEW, : geometry.cols * PREVIEW]
        return kept.reshape(*kept.shape[:2], geometry.rows, PREVIEW, geometry.cols, PREVIEW)

    return replace(
        measured,
        values=joined(measured.values).mean(axis=(3, 5), dtype=np.float32),
        is_estimated=joined(measured.is_estimated).all(axis=(3, 5)),
        angles_rad=measured.angles_rad[::PREVIEW],
        lifts_mm=measured.lifts_mm[::PREVIEW],
        open_counts=measured.open_counts * PREVIEW**2,
        geometry=geometry,
    )


def align_scan_file(
    path: str | Path, *, by_sharpness: bool = False, allow_partial: bool = False
) -> Generator[Progress, None, Alignment]:
    """Find the axis of rotation from a scan itself, by the lowest threshold's counter.

    By opposing rays, which also tell the detector's roll; or by where a slice is sharpest.
    """
    yield Progress("reading", 0, 1)
    scan = read_scan(path, allow_partial=allow_partial)
    plan, geometry, _ = plan_and_geometry(scan, None)
    if beyond := beyond_one_circle(plan.scan):
        raise WrongUsage(
            f"{path} cannot be aligned by itself: {'; '.join(beyond)}; "
            "allowed: circles around the sample, the camera in the middle",
            hint="align with such a scan of the same instrument, and reconstruct this one with --calibration",
        )
    flat = flat_of(scan, plan, 0, passes_kev(plan)[0])
    measured = yield from measure_line_integrals(scan, geometry, n_counters=1, flat=flat)
    if measured.n_tiles > 1:
        raise WrongUsage(
            f"{path} has {measured.n_tiles} tiles; allowed: a scan of one tile",
            hint="align with a scan whose camera stands at shift 0, and reconstruct this one with --calibration",
        )
    yield Progress("reading", 1, 1)
    find = sharpest_axis if by_sharpness else align_scan
    return (yield from find(measured.values[0], measured.angles_rad, geometry))
