"""materials of a scan by the physics of its rays: from counts, without bins' volumes between.

Two tiers. "projection" fits the path through each material to the counts of every ray, and reconstructs the paths.
"onestep" fits the volumes of all materials to all counts at once. Both take the response that was fitted to this
detector, so that hardening of the beam and cross-talk of the bins are part of the fit, and both tell their noise:
errors drawn from the Cramer-Rao bound of the rays go the same way as the paths did.

# Ref: two-step decomposition: Schlomka et al. 2008, Phys. Med. Biol. 53, 4031; one step: Mechlem et al. 2018,
#      IEEE Trans. Med. Imaging 37, 68.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import chi2

from acquisition.plan import passes_kev
from acquisition.scan_plan import Turning
from calibration.attenuation import material
from calibration.material_basis import SOLVENT, joined
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction import backend
from reconstruction.fdk import fdk
from reconstruction.field_of_view import cut_out, reached
from reconstruction.methods.convergence import ConvergenceLog, logged
from reconstruction.methods.iterates import Iterate
from reconstruction.onestep import one_step
from reconstruction.pipeline import grid_of, previewed
from reconstruction.projections import LineIntegrals, measure_line_integrals, places_of
from reconstruction.projector import Projector
from reconstruction.recipe import Recipe
from reconstruction.scan_expectation import Expectation, expected
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.scan_source import ScanSource, open_source
from reconstruction.spectral.cells import cells_of_basis, path_map
from reconstruction.spectral.compression import compress
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import RayFit, fit_rays, weak_prior_sd
from reconstruction.spectral.weighted import weighted
from reconstruction.symmetric import unpacked
from reconstruction.volume import MASS_CONCENTRATION, Grid, Volume

PROJECTION, ONE_STEP = "projection", "onestep"
VIEWS_AT_A_TIME = 16
NEIGHBOURS = 3
"""Rows and columns of pixels around a ray, among which its prior has its middle."""
N_TYPICAL_VIEWS = 8
RANGE_MARGIN = 0.2
"""Paths beyond those of the typical views, as a share of their range, over which the model must hold."""
N_ITERATIONS = {PROJECTION: 30, ONE_STEP: 20}
N_NOISE = 2
"""Draws of the noise from which its size is told in each voxel, with its neighbours'."""
NOISE_REACH_VOXELS = 2.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScanRays:
    """The counts of a scan, with the bins of all its passes, and what they mean.

    Attributes
    ----------
    measured : LineIntegrals
        Of all bins.
    model : SpectralModel
        With the same bins, and the materials that are looked for.
    sources : tuple of ScanSource
        One for each pass.
    places : tuple of int
        Which bins of all passes they are, from 0; nothing: all.
    """

    measured: LineIntegrals
    model: SpectralModel
    sources: tuple[ScanSource, ...]
    places: tuple[int, ...] = ()

    @property
    def open_counts(self) -> NDArray[np.float64]:
        """Counts of a pixel in one view of the open beam: (n_bins,) float64."""
        return self.measured.open_counts

    def of_bins(self, numbers: Sequence[int]) -> ScanRays:
        """Return some bins of every pass, from 1."""
        if not numbers:
            return self
        n_bins = len(self.model.bins) // len(self.sources)
        if max(numbers) > n_bins:
            raise WrongUsage(f"bin {max(numbers)} is named; allowed: 1 to {n_bins}, in every pass")
        here = [first * n_bins + number - 1 for first in range(len(self.sources)) for number in numbers]
        _refuse_too_many(self.model.materials, len(here))
        measured = self.measured
        return replace(
            self,
            measured=replace(
                measured,
                values=measured.values[here],
                is_estimated=measured.is_estimated[here],
                open_counts=measured.open_counts[here],
            ),
            model=self.model.of_bins(here),
            places=tuple(here),
        )


def read_rays(
    path: str | Path,
    materials: Sequence[str] = (),
    *,
    calibration: Calibration | None = None,
    pass_number: int | None = None,
    allow_partial: bool = False,
) -> Generator[Progress, None, ScanRays]:
    """Read a scan for a decomposition of its rays.

    Parameters
    ----------
    materials : sequence of str
        Names on the shelf of `calibration.attenuation`; nothing: those of the calibration's material basis.
    calibration : Calibration, optional
        Whose response, and geometry if it has one, to take; None: the scan's own.
    pass_number : int, optional
        Which pass of several; None: all, with the bins of each.

    Raises
    ------
    CalibrationMissing
        No response was fitted to this detector, or to another voltage of the tube.
    """
    yield Progress("reading", 0, 1)
    aligned = calibration if calibration is not None and calibration.alignment is not None else None
    first = open_source(path, calibration=aligned, pass_number=pass_number or 1, allow_partial=allow_partial)
    scanned = first.plan.scan
    n_passes = len(passes_kev(first.plan)) if isinstance(scanned, Turning) else 1
    numbers = [pass_number] if pass_number else range(1, n_passes + 1)
    sources = tuple(open_source(path, calibration=aligned, pass_number=n, allow_partial=allow_partial) for n in numbers)
    model = _model_of(sources, materials, calibration or first.scan.calibration)
    parts = []
    for done, source in enumerate(sources):
        yield Progress("reading", done, len(sources))
        parts.append(
            measure_line_integrals(
                source.scan, source.geometry, pass_index=source.pass_index, count_rate=source.count_rate
            )
        )
    yield Progress("reading", len(sources), len(sources))
    return ScanRays(measured=_joined(parts), model=model, sources=sources)


def _model_of(
    sources: Sequence[ScanSource], materials: Sequence[str], calibration: Calibration | None
) -> SpectralModel:
    """Return what the bins of all passes count behind the materials."""
    response = calibration.response if calibration else None
    if calibration is None or response is None:
        raise CalibrationMissing(
            "no response was fitted to this detector: what a bin counts of each energy is not known",
            hint="run mpxct calibrate wedge and response and give the file with --calibration, or use --tier image",
        )
    kvp = sources[0].plan.source.kvp
    if response.tube_kvp != kvp:
        raise CalibrationMissing(
            f"the response was fitted at {response.tube_kvp:g} kVp, and the scan has {kvp:g} kVp",
            hint="run mpxct calibrate wedge and response with this scan's plan",
        )
    names = tuple(materials) or (calibration.basis.materials if calibration.basis else ())
    if not names:
        raise WrongUsage("no materials are named, and the calibration has none", hint="--materials water,I,Gd")
    models = [SpectralModel.of_response(response, names, thresholds_kev=source.thresholds_kev) for source in sources]
    n_bins = sum(len(model.bins) for model in models)
    _refuse_too_many(names, n_bins)
    return models[0] if len(models) == 1 else SpectralModel.joined(models)


def _refuse_too_many(materials: Sequence[str], n_bins: int) -> None:
    if len(materials) > n_bins:
        raise WrongUsage(
            f"{len(materials)} materials cannot be told apart with {n_bins} bins; allowed: at most {n_bins}"
        )


def _joined(parts: Sequence[LineIntegrals]) -> LineIntegrals:
    """Return the bins of all passes, of the views that all have."""
    first = parts[0]
    if len(parts) == 1:
        return first
    poses = [np.round(part.angles_rad, 9) + 1j * np.round(part.lifts_mm, 9) for part in parts]
    shared = poses[0]
    for other in poses[1:]:
        shared = shared[np.isin(shared, other)]
    if not len(shared):
        raise WrongUsage("the passes have no view in common; allowed: passes over the same views")
    places = [places_of(pose, shared) for pose in poses]
    return replace(
        first,
        values=np.concatenate([part.values[:, at] for part, at in zip(parts, places, strict=True)]),
        is_estimated=np.concatenate([part.is_estimated[:, at] for part, at in zip(parts, places, strict=True)]),
        angles_rad=first.angles_rad[places[0]],
        lifts_mm=first.lifts_mm[places[0]],
        open_counts=np.concatenate([part.open_counts for part in parts]),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScanMaterials:
    """What a scan says of its materials.

    Attributes
    ----------
    volume : Volume
        In g/cm3.
    sigma : Volume or None
        Standard error of each voxel, in g/cm3, by the Cramer-Rao bound; None where the reconstruction is not linear.
    chi_square_ratio : float
        Median misfit of the rays over that of noise alone: 1 where the model holds, NaN where there are none.
    log : ConvergenceLog or None
        Of the iterations, if there were any.
    """

    volume: Volume
    sigma: Volume | None
    chi_square_ratio: float
    log: ConvergenceLog | None


def decompose_scan(
    rays: ScanRays,
    recipe: Recipe,
    *,
    tier: str = PROJECTION,
    prior: str | None = None,
    strength: float | None = None,
    n_iterations: int | None = None,
    grid: Grid | None = None,
) -> Generator[Progress, None, ScanMaterials]:
    """Turn the counts of a scan into volumes of its materials.

    Parameters
    ----------
    rays : ScanRays
    recipe : Recipe
        Voxels, window and preview; its method is that of paths without a prior.
    tier : "projection" or "onestep"
    prior : str, optional
        A joint prior of `reconstruction.spectral.strength`; None: paths are back-projected, or one step goes without.
    strength : float, optional
        In units of the noise. None: the prior's own.
    n_iterations : int, optional
        None: as many as the method's default.
    grid : Grid, optional
        Voxels to make; None: those of the recipe.
    """
    if tier not in (PROJECTION, ONE_STEP):
        raise WrongUsage(f"the tier is {tier!r}; allowed: image, {PROJECTION}, {ONE_STEP}")
    _refuse_what_is_of_bins(recipe)
    rays = rays.of_bins(recipe.bins)
    measured = previewed(rays.measured) if recipe.is_preview else rays.measured
    rays = replace(rays, measured=measured)
    grid = grid or grid_of(measured, recipe)
    seen = yield from expected(measured, grid, recipe, n_passes=len(rays.sources))
    fit, model = yield from fit_paths(rays, seen)
    whole = reached(grid, measured.geometry, measured.lifts_mm) if prior or tier == ONE_STEP else grid
    values = yield from _back_projected(fit.paths, measured, whole, recipe)
    log, sigma = None, None
    if prior or tier == ONE_STEP:
        n_iterations = n_iterations or N_ITERATIONS[tier]
        iterates = _iterates(rays, seen, fit, model, values, whole, recipe, tier, prior, strength, n_iterations)
        values, log = yield from logged(iterates, tier, n_iterations)
        values = np.ascontiguousarray(backend.to_host(values)[:, *cut_out(whole, grid)])
    else:
        sigma = yield from _noise_of(fit, rays, grid, recipe)
    matrix = _cells_map(rays, model)
    values = np.tensordot(matrix, values, axes=1).astype(np.float32)
    if sigma is not None:
        sigma *= np.abs(np.diag(matrix)).astype(np.float32)[:, None, None, None]
    ratio = _misfit_ratio(fit)
    told = f"{prior}, strength {strength if strength is not None else 'its own'}" if prior else "no prior"
    words = (
        f"{len(measured.angles_rad)} views, {len(model.bins)} bins of {len(rays.sources)} passes",
        *dict.fromkeys(told for source in rays.sources for told in source.words),
        *seen.words,
        f"{tier} domain, {', '.join(model.materials)}: {told}, misfit {ratio:.3g} of that of noise",
        *(("paths brought to those of the calibration's cells",) if (matrix != np.eye(len(matrix))).any() else ()),
    )
    made = _volume_of(values, rays, grid, words, log)
    return ScanMaterials(
        volume=made,
        sigma=None if sigma is None else _volume_of(sigma, rays, grid, (*words, "standard error by the bound of rays")),
        chi_square_ratio=ratio,
        log=log,
    )


def _refuse_what_is_of_bins(recipe: Recipe) -> None:
    """Refuse what a recipe asks of bins' volumes, of which there are none here."""
    if recipe.is_iterative:
        raise WrongUsage(
            f"the method {recipe.method} makes volumes of bins; rays are back-projected, or iterate with a joint prior",
            hint="leave the method out, and give a prior of the materials, or the tier onestep",
        )
    if recipe.weights != "auto":
        raise WrongUsage(
            f"the weights are {recipe.weights!r}, which bins' volumes may have; allowed here: auto, by what counts tell"
        )
    if recipe.linearise:
        raise WrongUsage(
            "bins are made straight by the step wedge for one material; rays are fitted with the hardening of all",
            hint="leave linearise out: the response holds what it would take out",
        )


def _iterates(
    rays: ScanRays,
    seen: Expectation,
    fit: RayFit,
    model: SpectralModel,
    start: NDArray[np.float32],
    grid: Grid,
    recipe: Recipe,
    tier: str,
    prior: str | None,
    strength: float | None,
    n_iterations: int,
) -> Iterator[Iterate]:
    """Return the iterates of one step, or of paths that are weighted by what their rays tell."""
    measured = rays.measured
    scan = ScanGeometry.circular(measured.geometry, measured.angles_rad, lifts_mm=measured.lifts_mm)
    A = Projector(scan, grid, n_channels=len(model.materials), use_gpu=recipe.use_gpu)
    send = backend.to_device if recipe.use_gpu else np.asarray
    options: dict[str, Any] = {
        "prior": prior,
        "strength": strength,
        "start": send(start),
        "n_iterations": n_iterations,
    }
    if tier == ONE_STEP:
        weights = send(seen.is_known.astype(np.float32))
        opened, background = send(seen.open_counts), send(seen.background)
        return one_step(
            A, send(seen.counts), model, open_counts=opened, background=background, weights=weights, **options
        )
    information = np.where(fit.is_converged & seen.is_known.all(axis=0), fit.information, 0)
    return weighted(A, send(fit.paths), send(information), **options)


def fit_paths(rays: ScanRays, seen: Expectation) -> Generator[Progress, None, tuple[RayFit, SpectralModel]]:
    """Fit the paths of all rays, with a prior so wide that it only keeps noisy rays from running away.

    A prior some times as wide as the noise still shortens what is there by some per cent if its middle is 0; so rays
    are fitted twice, the second time around the median of what their neighbours were the first time.

    Returns
    -------
    fit : RayFit
        (..., n_views, rows, cols).
    model : SpectralModel
        Of few nodes, over the paths of this scan.
    """
    n_views = seen.counts.shape[1]
    yield Progress("rays", 0, n_views)
    few = np.unique(np.linspace(0, n_views - 1, N_TYPICAL_VIEWS).round().astype(int))
    some = seen.of_views(few)
    free = fit_rays(some.counts, some.open_counts, rays.model, background=some.background).paths
    is_thick = free.sum(axis=0) >= np.nanquantile(free.sum(axis=0), 0.75)
    typical = np.maximum(np.nanmedian(free[:, is_thick], axis=1), 0)
    prior_sd = weak_prior_sd(rays.model, rays.open_counts, typical)
    sampled = fit_rays(
        some.counts, some.open_counts, rays.model, prior_sd=prior_sd, start=free, background=some.background
    ).paths
    lowest, highest = np.nanquantile(sampled.reshape(len(sampled), -1), (0.002, 0.998), axis=1)
    margin = RANGE_MARGIN * (highest - lowest) + 1e-6
    model = compress(rays.model, highest + margin, lowest - margin).model
    parts = []
    for begin in range(0, n_views, VIEWS_AT_A_TIME):
        views = slice(begin, min(begin + VIEWS_AT_A_TIME, n_views))
        some = seen.of_views(views)
        data: dict[str, Any] = {"prior_sd": prior_sd, "background": some.background}
        drawn = fit_rays(some.counts, some.open_counts, model, **data).paths
        around = ndimage.median_filter(drawn, (1, 1, NEIGHBOURS, NEIGHBOURS), mode="nearest")
        parts.append(fit_rays(some.counts, some.open_counts, model, prior_mean=around, start=drawn, **data))
        yield Progress("rays", views.stop, n_views)
    return _together(parts), model


def _cells_map(rays: ScanRays, model: SpectralModel) -> NDArray[np.float64]:
    """Return what brings the model's paths to those of the cells of the calibration: (n_materials, n_materials).

    Nothing is changed where the calibration has no cells of all materials at these thresholds.
    """
    same = np.eye(len(model.materials))
    known = [source.basis for source in rays.sources if source.basis and source.basis.is_for(source.thresholds_kev)]
    if len(known) < len(rays.sources):
        return same
    cells = {cell.material: cell for cell in rays.sources[0].plan.calibration.cells}
    if not set(model.materials) <= set(cells) & set(known[0].materials) or SOLVENT not in model.materials:
        return same
    paths, transmissions = cells_of_basis(
        joined(known),
        model.materials,
        thickness_mm={name: cell.thickness_mm for name, cell in cells.items()},
        concentrations_mg_ml={name: cell.concentration_mg_ml for name, cell in cells.items()},
        densities_g_cm3={name: material(name).density_g_cm3 for name in cells},
    )
    if rays.places:
        transmissions = transmissions[list(rays.places)]
    return path_map(rays.model, paths, transmissions, rays.open_counts)


def _together(parts: Sequence[RayFit]) -> RayFit:
    """Return one fit of the views of several."""
    axis = {"paths": 1, "information": 1}
    return RayFit(
        **{
            name: np.concatenate([getattr(part, name) for part in parts], axis=axis.get(name, 0))
            for name in RayFit.__slots__
        }
    )


def _back_projected(
    paths: NDArray[np.float32], measured: LineIntegrals, grid: Grid, recipe: Recipe
) -> Generator[Progress, None, NDArray[np.float32]]:
    return fdk(
        np.nan_to_num(paths),
        measured.angles_rad,
        measured.geometry,
        grid,
        window=recipe.window,
        use_gpu=recipe.use_gpu,
        lifts_mm=measured.lifts_mm,
        is_continued=recipe.truncation != "none",
    )


def _noise_of(
    fit: RayFit, rays: ScanRays, grid: Grid, recipe: Recipe
) -> Generator[Progress, None, NDArray[np.float32]]:
    """Return the standard error of each voxel: what errors of the rays, drawn from their bound, become there."""
    rng = np.random.default_rng(0)
    covariance = np.moveaxis(unpacked(np.where(np.isfinite(fit.covariance), fit.covariance, 0)), (0, 1), (-2, -1))
    values, vectors = np.linalg.eigh(covariance)
    roots = (vectors * np.sqrt(np.maximum(values, 0))[..., None, :]).astype(np.float32)
    total = np.zeros((len(fit.paths), *grid.shape), np.float32)
    for _ in range(N_NOISE):
        drawn = rng.standard_normal((*fit.paths.shape[1:], len(fit.paths)), np.float32)
        errors = np.ascontiguousarray(np.moveaxis((roots @ drawn[..., None])[..., 0], -1, 0))
        total += (yield from _back_projected(errors, rays.measured, grid, recipe)) ** 2
    smooth = [ndimage.gaussian_filter(channel, NOISE_REACH_VOXELS, mode="nearest") for channel in total / N_NOISE]
    return np.sqrt(np.stack(smooth))


def _misfit_ratio(fit: RayFit) -> float:
    is_told = fit.n_degrees > 0
    if not is_told.any():
        return float("nan")
    return float(np.median(fit.chi_square[is_told] / chi2.median(fit.n_degrees[is_told].astype(np.float64))))


def _volume_of(
    values: NDArray[np.float32],
    rays: ScanRays,
    grid: Grid,
    words: tuple[str, ...],
    log: ConvergenceLog | None = None,
) -> Volume:
    return Volume(
        values=values.astype(np.float32, copy=False),
        channels=rays.model.materials,
        unit=MASS_CONCENTRATION,
        grid=grid,
        thresholds_kev=rays.sources[0].thresholds_kev if len(rays.sources) == 1 else (),
        provenance=rays.sources[0].provenance(words, "" if log is None else json.dumps(log.table())),
    )
