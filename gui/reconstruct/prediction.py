"""How long a work will take, and how much memory: told before it begins, better once a slice was tried."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gui.reconstruct.settings import Settings
from gui.reconstruct.sources import Facts, size_words
from gui.reconstruct.tries import Try
from reconstruction.recipe import Recipe

if TYPE_CHECKING:
    from reconstruction.volume import Grid

PROJECTIONS_PER_ITERATION = 2
"""An iteration projects the volume once, and projects the difference back; each is taken for as long as an update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is to be expected.

    Attributes
    ----------
    seconds_s : float
    peak_bytes, slice_bytes, free_bytes : int
        Of all; of one slice of all bins, below which nothing can go; and what may be taken.
    is_in_slabs : bool
        Whether what does not fit can be made slab by slab.
    shape : (z, y, x) int
    by : str
        What it is told by.
    """

    seconds_s: float
    peak_bytes: int
    slice_bytes: int
    free_bytes: int
    is_in_slabs: bool
    shape: tuple[int, int, int]
    voxel_mm: float
    by: str

    @property
    def fits(self) -> bool:
        """Whether the memory that is free is enough."""
        return self.peak_bytes <= self.free_bytes

    @property
    def why_not(self) -> str:
        """Why not even a slice can be made on this computer; empty where it can."""
        if self.slice_bytes <= self.free_bytes:
            return ""
        _, y, x = self.shape
        return f"One slice of {x} × {y} voxels takes {self._short_of(self.slice_bytes)}."

    @property
    def why_not_whole(self) -> str:
        """Why the whole cannot be made on this computer; empty where it can."""
        if self.why_not or self.fits or self.is_in_slabs:
            return self.why_not
        return (
            f"{size_words(self.shape)} voxels take {self._short_of(self.peak_bytes)}, or fdk without corrections of "
            "the views, which goes slab by slab."
        )

    def _short_of(self, bytes_: int) -> str:
        return (
            f"{bytes_ / 1e9:.3g} GB of memory at once, and {self.free_bytes / 1e9:.2g} GB can be taken: "
            "choose larger voxels, a region, fewer bins"
        )

    def words(self) -> str:
        """Say it for people."""
        from reconstruction.size.budget import duration

        if self.why_not_whole:
            return f"⚠ {self.why_not_whole}"
        free = f"{self.free_bytes / 1e9:.2g} GB can be taken"
        memory = free if self.fits else f"only {free}: it is made slab by slab"
        return (
            f"{size_words(self.shape)} voxels of {self.voxel_mm:.3g} mm: about {duration(max(self.seconds_s, 1))} "
            f"({self.by}), {self.peak_bytes / 1e9:.2g} GB of memory ({memory})"
        )


def predict(facts: Facts, settings: Settings, last: Try | None = None) -> Prediction | None:
    """Return what a reconstruction of a scan will take; None where that cannot be told.

    Parameters
    ----------
    last : Try, optional
        A try of a slice by these settings, whose pace is better than a rule of thumb.

    Raises
    ------
    WrongUsage
        The scan cannot give what is asked for: a region beside it, or a back-projection of too few views.
    """
    from calibration.levelling import upright
    from reconstruction.orbits import plan_orbit
    from reconstruction.pipeline import PREVIEW, grid_of
    from reconstruction.scan_slabs import DATUM_BYTES, FREE_SHARE, ITERATED_VOXEL_BYTES, VOXEL_BYTES
    from reconstruction.size.budget import BASE_BYTES, NOMINAL, Problem, available_bytes, cut, predict_s

    orbit, recipe = facts.orbit, settings.recipe
    if orbit is None:
        return None
    n_bins = len(recipe.bins) or len(facts.channels) * (facts.n_passes if recipe.pass_number is None else 1)
    n_views = len(orbit.angles_rad)
    grid = grid_of(orbit, recipe)
    if not recipe.is_iterative:
        plan_orbit(orbit.angles_rad, upright(orbit.geometry), grid, lifts_mm=orbit.lifts_mm)
    if recipe.is_preview:
        grid = replace(grid, shape=_fewer(grid.shape, PREVIEW), voxel_mm=grid.voxel_mm * PREVIEW)
        n_views = -(-n_views // PREVIEW)
    problem = Problem(n_bins=n_bins, geometry=orbit.geometry, grid=grid, lifts_mm=orbit.lifts_mm[:n_views])
    seconds_s, by = predict_s(problem, cut(grid.shape[0], 1), 32, NOMINAL), "a rule of thumb"
    n_voxels = math.prod(grid.shape)
    if recipe.is_iterative:
        whole = _reached(facts, grid)
        n_iterations = _iterations(recipe)
        if last is not None and last.seconds_per_iteration_s and last.settings.recipe == recipe:
            ratio = whole.shape[0] / last.n_slices
            seconds_s += n_iterations * last.seconds_per_iteration_s * ratio
            by = "the pace of the last try"
        else:
            n_updates = n_bins * n_views * math.prod(whole.shape)
            seconds_s += n_iterations * PROJECTIONS_PER_ITERATION * n_updates * NOMINAL.update_s
        n_voxels = math.prod(whole.shape)
    n_data = n_bins * n_views * orbit.geometry.rows * orbit.geometry.cols
    if recipe.is_preview:
        n_data //= PREVIEW**2
    per_voxel = ITERATED_VOXEL_BYTES if recipe.is_iterative else VOXEL_BYTES
    return Prediction(
        seconds_s=seconds_s,
        peak_bytes=BASE_BYTES + DATUM_BYTES * n_data + per_voxel * n_bins * n_voxels,
        slice_bytes=per_voxel * n_bins * math.prod(grid.shape[1:]),
        free_bytes=int(FREE_SHARE * available_bytes()),
        is_in_slabs=not recipe.needs_whole,
        shape=grid.shape,
        voxel_mm=grid.voxel_mm,
        by=by,
    )


def _iterations(recipe: Recipe) -> int:
    from reconstruction.iterative import method_named

    return recipe.n_iterations or method_named(recipe.method).iterations


def _reached(facts: Facts, grid: Grid) -> Grid:
    """Return the grid that iterations work on, which reaches as far as the rays do."""
    from reconstruction.field_of_view import reached

    assert facts.orbit is not None
    return reached(grid, facts.orbit.geometry, facts.orbit.lifts_mm)


def _fewer(shape: tuple[int, int, int], factor: int) -> tuple[int, int, int]:
    z, y, x = (max(n // factor, 1) for n in shape)
    return z, y, x
