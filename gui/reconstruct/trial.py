"""One slice of a scan, made quickly: only the rows of the detector that see it are reconstructed.

For a filtered back-projection the slice equals that of the whole volume. An iterative method sees rows beyond the slice
only as far as its rays reach, which is near to what the whole would give, and so many times faster.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibration.progress import Progress
from gui.reconstruct.jobs import (
    calibration_of,
    materials_asked,
    materials_of,
    quantities_of,
    quantities_wanted,
    watched,
)
from gui.reconstruct.settings import IMAGE, Settings
from gui.reconstruct.sources import open_scan, reader_of
from gui.reconstruct.tries import Try, pictures_of

if TYPE_CHECKING:
    from reconstruction.methods.convergence import Step
    from reconstruction.projections import LineIntegrals
    from reconstruction.scan_rays import ScanRays
    from reconstruction.scan_source import ScanSource
    from reconstruction.volume import Grid, Volume

VIEWS_AT_A_TIME = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """Line integrals of the rows that see one slice.

    Attributes
    ----------
    grid : Grid
        One slice.
    """

    source: ScanSource
    measured: LineIntegrals
    grid: Grid


@dataclass(slots=True, kw_only=True)
class Kept:
    """What the last try has read, so that the next of the same slice need not; one thread at a time."""

    seen: dict[object, Seen] = field(default_factory=dict)
    rays: dict[object, tuple[ScanRays, Grid]] = field(default_factory=dict)


def slice_number(grid: Grid, z_mm: float) -> int:
    """Return the slice nearest to a height."""
    return int(np.argmin(np.abs(grid.axes_mm()[0] - z_mm)))


def slice_of(volume: Volume, z_mm: float) -> Volume:
    """Return one slice of a volume, as a volume."""
    from reconstruction.size.budget import sub_grid

    number = slice_number(volume.grid, z_mm)
    values = np.array(volume.values[:, number : number + 1])
    return replace(volume, values=values, grid=sub_grid(volume.grid, slice(number, number + 1)))


def try_bins(
    path: Path, settings: Settings, z_mm: float, kept: Kept, log: list[Step]
) -> Generator[Progress, None, Volume]:
    """Reconstruct one slice of a scan; a preview is made with all views here."""
    from reconstruction.pipeline import reconstruct_rays
    from reconstruction.scan_source import count_passes
    from reconstruction.spectral.passes import joined

    settings = replace(settings, recipe=replace(settings.recipe, is_preview=False))
    n_passes = 1
    if settings.recipe.pass_number is None:
        n_passes = count_passes(path, allow_partial=settings.allow_partial)
    volumes = []
    for number in range(1, n_passes + 1):
        pass_number = number if n_passes > 1 else settings.recipe.pass_number
        seen = yield from _seen(path, settings, z_mm, pass_number, kept)
        measured = replace(seen.measured, values=seen.measured.values.copy())
        recipe = replace(settings.recipe, pass_number=pass_number)
        volumes.append((yield from watched(reconstruct_rays(seen.source, measured, seen.grid, recipe), log)))
    return volumes[0] if n_passes == 1 else joined(volumes)


def try_materials(
    source: Path | Volume, settings: Settings, z_mm: float, kept: Kept, log: list[Step]
) -> Generator[Progress, None, tuple[Volume, Volume | None]]:
    """Decompose one slice of a scan or a volume; return its materials, and the quantities that are asked for."""
    asked = settings.decomposition
    quantities_wanted(materials_asked(source, settings), asked.quantities)
    if asked.tier == IMAGE:
        if isinstance(source, Path):
            bins = whole = yield from try_bins(source, settings, z_mm, kept, log)
        else:
            bins, whole = slice_of(source, z_mm), source
        yield Progress("materials", 0, 1)
        found, _ = materials_of(bins, whole, asked)
    else:
        assert isinstance(source, Path), "other tiers are of scans"
        found = yield from _try_rays(source, settings, z_mm, kept, log)
    quantities = (yield from quantities_of(found, asked.quantities)) if asked.quantities.is_any else None
    return found, quantities


def _seen(
    path: Path, settings: Settings, z_mm: float, pass_number: int | None, kept: Kept
) -> Generator[Progress, None, Seen]:
    from calibration.levelling import level, upright
    from reconstruction.pipeline import chosen_bins, grid_of
    from reconstruction.projections import LineIntegrals
    from reconstruction.size.budget import on_rows, rows_seen, sub_grid

    recipe = settings.recipe
    grid_asked = (recipe.voxel_mm, recipe.shape, recipe.region_mm)
    key = (path, path.stat().st_mtime_ns, settings.calibration, pass_number, recipe.linearise, recipe.bins, z_mm)
    key = (*key, grid_asked, settings.allow_partial)
    if key in kept.seen:
        return kept.seen[key]
    yield Progress("reading the slice", 0, 1)
    source = open_scan(path, settings, pass_number=pass_number, allow_partial=settings.allow_partial)
    reader = reader_of(source)
    whole = grid_of(reader, recipe)
    number = slice_number(whole, z_mm)
    grid = sub_grid(whole, slice(number, number + 1))
    bins = chosen_bins(source, recipe)
    geometry = reader.geometry
    rows = rows_seen(geometry, grid, reader.lifts_mm)
    parts = []
    n_views = reader.shape[1]
    for first in range(0, n_views, VIEWS_AT_A_TIME):
        views = slice(first, min(first + VIEWS_AT_A_TIME, n_views))
        values, is_estimated = reader.read(views, np.s_[:] if geometry.is_tilted else rows)
        if geometry.is_tilted:
            values = np.asarray(level(values, geometry), np.float32)[..., rows, :]
            is_estimated = is_estimated[..., rows, :]
        parts.append((values[bins], is_estimated[bins]))
        yield Progress("reading the slice", views.stop, n_views)
    measured = LineIntegrals(
        values=np.concatenate([values for values, _ in parts], axis=1),
        is_estimated=np.concatenate([is_estimated for _, is_estimated in parts], axis=1),
        angles_rad=reader.angles_rad,
        lifts_mm=reader.lifts_mm,
        geometry=on_rows(upright(geometry), rows),
        open_counts=reader.open_counts()[bins],
        n_tiles=reader.n_tiles,
    )
    seen = Seen(source=source, measured=measured, grid=grid)
    if len(kept.seen) > 3:
        kept.seen.clear()
    kept.seen[key] = seen
    return seen


def _try_rays(
    path: Path, settings: Settings, z_mm: float, kept: Kept, log: list[Step]
) -> Generator[Progress, None, Volume]:
    from calibration.levelling import level, upright
    from reconstruction.pipeline import grid_of
    from reconstruction.scan_materials import decompose_scan
    from reconstruction.scan_rays import read_rays
    from reconstruction.size.budget import on_rows, rows_seen, sub_grid

    asked, recipe = settings.decomposition, replace(settings.recipe.of_rays, is_preview=False)
    key = (path, path.stat().st_mtime_ns, settings.calibration, recipe.pass_number, asked.materials, z_mm)
    key = (*key, recipe.voxel_mm, recipe.shape, recipe.region_mm)
    if key not in kept.rays:
        rays = yield from read_rays(
            path,
            asked.materials,
            calibration=calibration_of(settings),
            pass_number=recipe.pass_number,
            allow_partial=settings.allow_partial,
        )
        measured = rays.measured
        whole = grid_of(measured, recipe)
        number = slice_number(whole, z_mm)
        grid = sub_grid(whole, slice(number, number + 1))
        geometry = measured.geometry
        rows = rows_seen(geometry, grid, measured.lifts_mm)
        cropped = replace(
            measured,
            values=np.ascontiguousarray(np.asarray(level(measured.values, geometry), np.float32)[..., rows, :]),
            is_estimated=np.ascontiguousarray(measured.is_estimated[..., rows, :]),
            geometry=on_rows(upright(geometry), rows),
        )
        kept.rays.clear()
        kept.rays[key] = replace(rays, measured=cropped), grid
    rays, grid = kept.rays[key]
    work = decompose_scan(
        rays,
        recipe,
        tier=asked.tier,
        prior=asked.prior_name,
        strength=asked.strength_relative,
        n_iterations=asked.n_iterations,
        grid=grid,
        n_draws=0,
    )
    return (yield from watched(work, log)).volume


def make_try(
    source: Path | Volume, settings: Settings, z_mm: float, kept: Kept, log: list[Step], *, kind: str, number: int
) -> Generator[Progress, None, Try]:
    """Make one slice, of bins or of materials, and the pictures of it."""
    began_s = time.monotonic()
    n_slices = 1
    others = None
    if kind == "bins":
        assert isinstance(source, Path), "bins are of scans"
        made = yield from try_bins(source, settings, z_mm, kept, log)
        if settings.recipe.is_iterative:
            n_slices = _iterated_slices(kept)
    else:
        made, others = yield from try_materials(source, settings, z_mm, kept, log)
    yield Progress("pictures", 0, 1)
    pictures = pictures_of(made) + (pictures_of(others) if others is not None else ())
    _, y, x = made.grid.axes_mm()
    return Try(
        number=number,
        kind=kind,
        settings=settings,
        z_mm=made.grid.centre_mm[2],
        pixel_mm=made.grid.voxel_mm,
        corner_mm=(float(x[0]) - made.grid.voxel_mm / 2, float(y[-1]) + made.grid.voxel_mm / 2),
        pictures=pictures,
        seconds_s=time.monotonic() - began_s,
        seconds_per_iteration_s=log[-1].seconds / max(log[-1].number, 1) if log else 0.0,
        n_slices=n_slices,
        steps=made.provenance.steps,
    )


def _iterated_slices(kept: Kept) -> int:
    from reconstruction.field_of_view import reached

    seen = list(kept.seen.values())[-1]
    return reached(seen.grid, seen.measured.geometry, seen.measured.lifts_mm).shape[0]
