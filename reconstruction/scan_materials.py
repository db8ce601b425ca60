"""materials of a scan by the physics of its rays: from counts, without bins' volumes between.

Two tiers. "projection" fits the path through each material to the counts of every ray, and reconstructs the paths.
"onestep" fits the volumes of all materials to all counts at once. Both take the response that was fitted to this
detector, so that hardening of the beam and cross-talk of the bins are part of the fit, and both tell their noise: it
is drawn anew and goes the same way (`reconstruction.spectral.error_maps`).

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
from reconstruction.pipeline import PREVIEW, grid_of, previewed
from reconstruction.projections import LineIntegrals, measure_line_integrals, places_of
from reconstruction.projector import Projector
from reconstruction.recipe import Recipe
from reconstruction.scan_expectation import Expectation, expected
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.scan_source import ScanSource, open_source
from reconstruction.spectral.cells import cells_of_basis, path_map
from reconstruction.spectral.compression import compress
from reconstruction.spectral.error_maps import drawn_counts, drawn_errors, standard_error
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import RayFit, fit_rays, weak_prior_sd
from reconstruction.spectral.weighted import weighted
from reconstruction.volume import MASS_CONCENTRATION, Grid, Volume

PROJECTION, ONE_STEP = "projection", "onestep"
VIEWS_AT_A_TIME = 16
NEIGHBOURS = 3
"""Rows and columns of pixels around a ray, among which its prior has its middle."""
N_TYPICAL_VIEWS = 8
RANGE_MARGIN = 0.2
"""Paths beyond those of the typical views, as a share of their range, over which the model must hold."""
N_ITERATIONS = {PROJECTION: 30, ONE_STEP: 20}
N_DRAWS = 2
"""Of the noise, from which its size is told in each voxel, with its neighbours'. Each takes as long as the volume."""


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
    knows_sharing: bool = False,
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
    knows_sharing : bool
        Take from the response, too, which counts of neighbouring pixels are of one photon.

    Raises
    ------
    CalibrationMissing
        No response was fitted to this detector, or to another voltage of the tube.
    """
    yield Progress("reading", 0, 1)
    aligned = calibration if calibration is not None and calibration.alignment is not None else None
    number = 1 if pass_number is None else pass_number
    first = open_source(path, calibration=aligned, pass_number=number, allow_partial=allow_partial)
    scanned = first.plan.scan
    n_passes = len(passes_kev(first.plan)) if isinstance(scanned, Turning) else 1
    numbers = range(1, n_passes + 1) if pass_number is None else [number]
    sources = tuple(open_source(path, calibration=aligned, pass_number=n, allow_partial=allow_partial) for n in numbers)
    model = _model_of(sources, materials, calibration or first.scan.calibration, knows_sharing=knows_sharing)
    parts = []
    for done, source in enumerate(sources):
        yield Progress("reading", done, len(sources))
        part = yield from measure_line_integrals(
            source.scan, source.geometry, pass_index=source.pass_index, count_rate=source.count_rate
        )
        parts.append(part)
    yield Progress("reading", len(sources), len(sources))
    return ScanRays(measured=_joined(parts), model=model, sources=sources)


def _model_of(
    sources: Sequence[ScanSource], materials: Sequence[str], calibration: Calibration | None, *, knows_sharing: bool
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
    models = [
        SpectralModel.of_response(response, names, thresholds_kev=source.thresholds_kev, knows_sharing=knows_sharing)
        for source in sources
    ]
    n_bins = sum(len(model.bins) for model in models)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise WrongUsage(f"the materials name {', '.join(twice)} more than once; allowed: each once")
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
        Standard error of each voxel, in g/cm3; None where no noise was drawn.
    chi_square_ratio : float
        Median misfit of the rays over that of noise alone: 1 where the model holds, NaN where there are none.
    log : ConvergenceLog or None
        Of the iterations, if there were any.
    """

    volume: Volume
    sigma: Volume | None
    chi_square_ratio: float
    log: ConvergenceLog | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Way:
    """How counts become volumes: all that is the same for the counts of a scan and for those that are drawn."""

    rays: ScanRays
    recipe: Recipe
    model: SpectralModel
    prior_sd: NDArray[np.float64]
    whole: Grid
    tier: str
    prior: str | None
    strength_relative: float | None
    n_iterations: int

    @property
    def is_iterated(self) -> bool:
        """Whether paths that are back-projected are a start only."""
        return self.prior is not None or self.tier == ONE_STEP

    @property
    def is_linear(self) -> bool:
        """Whether errors of the rays can go the way by themselves: they are independent, and nothing is iterated."""
        return not self.is_iterated and self.rays.model.neighbour_weights is None

    @property
    def projector(self) -> Projector:
        """To the rays of all materials."""
        measured = self.rays.measured
        scan = ScanGeometry.circular(measured.geometry, measured.angles_rad, lifts_mm=measured.lifts_mm)
        return Projector(scan, self.whole, n_channels=len(self.model.materials), use_gpu=self.recipe.use_gpu)

    @property
    def send(self) -> Any:
        """What brings an array to where the iterations are."""
        return backend.to_device if self.recipe.use_gpu else np.asarray

    def fit(self, seen: Expectation) -> Generator[Progress, None, RayFit]:
        """Fit the paths of all rays twice: around 0, and around the median of what their neighbours were."""
        n_views, parts = seen.counts.shape[1], []
        for begin in range(0, n_views, VIEWS_AT_A_TIME):
            views = slice(begin, min(begin + VIEWS_AT_A_TIME, n_views))
            some = seen.of_views(views)
            data: dict[str, Any] = {"prior_sd": self.prior_sd, "background": some.background}
            drawn = fit_rays(some.counts, some.open_counts, self.model, **data).paths
            around = ndimage.median_filter(drawn, (1, 1, NEIGHBOURS, NEIGHBOURS), mode="nearest")
            parts.append(fit_rays(some.counts, some.open_counts, self.model, prior_mean=around, start=drawn, **data))
            yield Progress("rays", views.stop, n_views)
        return _together(parts)

    def back_project(self, paths: NDArray[np.float32]) -> Generator[Progress, None, NDArray[np.float32]]:
        """Return volumes of paths by filtered back-projection."""
        measured = self.rays.measured
        return fdk(
            np.nan_to_num(paths),
            measured.angles_rad,
            measured.geometry,
            self.whole,
            window=self.recipe.window,
            use_gpu=self.recipe.use_gpu,
            lifts_mm=measured.lifts_mm,
            is_continued=self.recipe.truncation != "none",
        )

    def iterates(self, seen: Expectation, fit: RayFit, start: NDArray[np.float32]) -> Iterator[Iterate]:
        """Return the iterates of one step, or of paths that are weighted by what their rays tell."""
        send = self.send
        options: dict[str, Any] = {
            "prior": self.prior,
            "strength": self.strength_relative,
            "start": send(start),
            "n_iterations": self.n_iterations,
        }
        if self.tier == ONE_STEP:
            options |= {"open_counts": send(seen.open_counts), "background": send(seen.background)}
            options |= {"weights": send(seen.is_known.astype(np.float32))}
            return one_step(self.projector, send(seen.counts), self.model, **options)
        information = np.where(fit.is_converged & seen.is_known.all(axis=0), fit.information, 0)
        return weighted(self.projector, send(fit.paths), send(information), **options)

    def draw(
        self, seen: Expectation, fit: RayFit, values: NDArray[np.float32], n_draws: int
    ) -> Generator[Progress, None, list[NDArray[np.float32]]]:
        """Return volumes of drawn noise: of errors alone where the way is linear, else with the object."""
        rng = np.random.default_rng(0)
        paths = np.nan_to_num(fit.paths)
        if self.is_iterated:
            paths = backend.to_host(self.projector.forward(self.send(values)))
        source = self.model if self.rays.model.neighbour_weights is None else self.rays.model
        draws = []
        for done in range(n_draws):
            if self.is_linear:
                volume = yield from self.back_project(drawn_errors(fit.covariance, rng))
            else:
                again = replace(seen, counts=drawn_counts(source, paths, seen.open_counts, rng, seen.background))
                fitted = yield from self.fit(again)
                volume = yield from self.back_project(fitted.paths)
                for iterate in self.iterates(again, fitted, volume) if self.is_iterated else ():
                    volume = iterate.volume
                    yield Progress("noise", done * self.n_iterations + iterate.number, n_draws * self.n_iterations)
            draws.append(backend.to_host(volume))
        return draws


def decompose_scan(
    rays: ScanRays,
    recipe: Recipe,
    *,
    tier: str = PROJECTION,
    prior: str | None = None,
    strength: float | None = None,
    n_iterations: int | None = None,
    grid: Grid | None = None,
    n_draws: int = N_DRAWS,
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
    n_draws : int
        How often noise is drawn for the error maps; with iterations each takes as long as the volume. 0: no error maps.
    """
    if tier not in (PROJECTION, ONE_STEP):
        raise WrongUsage(f"the tier is {tier!r}; allowed: image, {PROJECTION}, {ONE_STEP}")
    _refuse_what_is_of_bins(recipe)
    rays = rays.of_bins(recipe.bins)
    measured = previewed(rays.measured) if recipe.is_preview else rays.measured
    if n_iterations is not None and n_iterations < 1:
        raise WrongUsage(f"{n_iterations} iterations were asked for; allowed: at least 1")
    told_sharing = _sharing_words(rays)
    model = rays.model.of_summed_pixels(PREVIEW if recipe.is_preview else 1)
    rays = replace(rays, measured=measured, model=model)
    grid = grid or grid_of(measured, recipe)
    seen = yield from expected(measured, grid, recipe, n_passes=len(rays.sources))
    yield Progress("rays", 0, seen.counts.shape[1])
    model, prior_sd = small_model(rays, seen)
    is_iterated = prior is not None or tier == ONE_STEP
    way = _Way(
        rays=rays,
        recipe=recipe,
        model=model,
        prior_sd=prior_sd,
        whole=reached(grid, measured.geometry, measured.lifts_mm) if is_iterated else grid,
        tier=tier,
        prior=prior,
        strength_relative=strength,
        n_iterations=n_iterations or N_ITERATIONS[tier],
    )
    if not way.is_linear and n_draws == 1:
        raise WrongUsage("one draw of the noise tells no errors; allowed: 2 or more, or 0 for no error maps")
    fit = yield from way.fit(seen)
    values = yield from way.back_project(fit.paths)
    log = None
    if way.is_iterated:
        values, log = yield from logged(way.iterates(seen, fit, values), tier, way.n_iterations)
        values = backend.to_host(values)
    matrix = _cells_map(rays, model)
    asked = (slice(None), *cut_out(way.whole, grid))

    def finished(volume: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.tensordot(matrix, volume[asked], axes=1).astype(np.float32)

    sigma = None
    if n_draws:
        draws = yield from way.draw(seen, fit, values, n_draws)
        sigma = standard_error([finished(draw) for draw in draws], is_centred=way.is_linear)
    ratio = _misfit_ratio(fit)
    told = f"{prior}, strength {strength if strength is not None else 'its own'}" if prior else "no prior"
    words = (
        f"{len(measured.angles_rad)} views, {len(model.bins)} bins of {len(rays.sources)} passes",
        *dict.fromkeys(told for source in rays.sources for told in source.words),
        *seen.words,
        f"{1 - seen.is_known.mean():.2%} of the counts not measured, {np.mean(seen.counts == 0):.2%} are none",
        f"{tier} domain, {', '.join(model.materials)}: {told}, {_misfit_told(ratio)}",
        *told_sharing,
        *(("paths brought to those of the calibration's cells",) if (matrix != np.eye(len(matrix))).any() else ()),
    )
    means = "by the bound of rays" if way.is_linear else f"by {n_draws} draws of the counts around the solution"
    return ScanMaterials(
        volume=_volume_of(finished(values), rays, grid, words, log),
        sigma=None if sigma is None else _volume_of(sigma, rays, grid, (*words, f"standard error {means}")),
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


def _sharing_words(rays: ScanRays) -> tuple[str, ...]:
    """Say how much neighbours count of the same photons, where that is known."""
    if rays.model.neighbour_weights is None:
        return ()
    root = np.sqrt(rays.open_counts)
    both = 4 * np.einsum("kabe,a,b->", rays.model.neighbour_weights, root, root) / rays.open_counts.sum()
    return (f"charge sharing is in the errors: each count has {both:.2f} others of its photon beside it, on the mean",)


def small_model(rays: ScanRays, seen: Expectation) -> tuple[SpectralModel, NDArray[np.float64]]:
    """Look at some views: what paths there are, and how well they are told.

    A prior some times as wide as the noise still shortens what is there by some per cent if its middle is 0; so rays
    are fitted twice, the second time around the median of what their neighbours were the first time.

    Returns
    -------
    model : SpectralModel
        Of few nodes, over the paths of this scan.
    prior_sd : (n_materials,) float64, mm g/cm3
        So wide that it only keeps noisy rays from running away.
    """
    few = np.unique(np.linspace(0, seen.counts.shape[1] - 1, N_TYPICAL_VIEWS).round().astype(int))
    some = seen.of_views(few)
    is_seen = (some.counts > 0).all(axis=0)  # what nothing came through is as thick as one likes
    if not is_seen.any():
        raise WrongUsage(
            "no ray has counts in all bins behind the object: it is too thick, or the exposure too short",
            hint="choose bins with counts, or scan with more exposure or a higher voltage",
        )
    free = fit_rays(some.counts, some.open_counts, rays.model, background=some.background).paths
    is_thick = is_seen & (free.sum(axis=0) >= np.nanquantile(free.sum(axis=0)[is_seen], 0.75))
    typical = np.maximum(np.nanmedian(free[:, is_thick], axis=1), 0)
    prior_sd = weak_prior_sd(rays.model, rays.open_counts, typical)
    sampled = fit_rays(
        some.counts, some.open_counts, rays.model, prior_sd=prior_sd, start=free, background=some.background
    ).paths
    lowest, highest = np.nanquantile(sampled[:, is_seen], (0.002, 0.998), axis=1)
    margin = RANGE_MARGIN * (highest - lowest) + 1e-6
    return compress(rays.model, highest + margin, lowest - margin).model, prior_sd


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


def _misfit_ratio(fit: RayFit) -> float:
    is_told = fit.n_degrees > 0
    if not is_told.any():
        return float("nan")
    return float(np.median(fit.chi_square[is_told] / chi2.median(fit.n_degrees[is_told].astype(np.float64))))


def _misfit_told(ratio: float) -> str:
    if np.isnan(ratio):
        return "misfit not to be told: there are as many materials as bins"
    return f"misfit {ratio:.3g} of that of noise"


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
