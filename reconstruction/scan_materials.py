"""Materials of a scan by the physics of its rays: from counts, without bins' volumes between.

Two tiers. "projection" fits the path through each material to the counts of every ray, and reconstructs the paths.
"onestep" fits the volumes of all materials to all counts at once. Both take what the bins count behind materials
(`reconstruction.scan_rays`), so that hardening of the beam and cross-talk of the bins are part of the fit, and both
tell their noise: it is drawn anew and goes the same way (`reconstruction.spectral.error_maps`).

# Ref: two-step decomposition: Schlomka et al. 2008, Phys. Med. Biol. 53, 4031; one step: Mechlem et al. 2018,
#      IEEE Trans. Med. Imaging 37, 68.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import chi2

from calibration.attenuation import material
from calibration.material_basis import SOLVENT, joined
from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.fdk import fdk
from reconstruction.field_of_view import cut_out, reached
from reconstruction.methods.convergence import ConvergenceLog, logged
from reconstruction.methods.iterates import Iterate
from reconstruction.onestep import one_step
from reconstruction.pipeline import PREVIEW, grid_of, previewed
from reconstruction.projector import Projector
from reconstruction.recipe import Recipe
from reconstruction.scan_expectation import Expectation, expected
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.scan_rays import ScanRays
from reconstruction.spectral.cells import cells_of_basis, path_map
from reconstruction.spectral.compression import compress
from reconstruction.spectral.error_maps import drawn_counts, drawn_errors, standard_error
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import NEIGHBOURS, RayFit, fit_rays, steady_information, weak_prior_sd
from reconstruction.spectral.wedge import SignalPolynomial, Wedge, fit_a_table, fit_polynomial, fit_signals
from reconstruction.spectral.weighted import weighted
from reconstruction.volume import MASS_CONCENTRATION, Grid, Volume

PROJECTION, ONE_STEP = "projection", "onestep"
VIEWS_AT_A_TIME = 16
N_TYPICAL_VIEWS = 8
RANGE_MARGIN = 0.2
"""Paths beyond those of the typical views, as a share of their range, over which the model must hold."""
LIKELIHOOD, A_TABLE, POLYNOMIAL = "likelihood", "a-table", "polynomial"
FITS = (LIKELIHOOD, A_TABLE, POLYNOMIAL)
"""How the paths of a ray are found: as its counts are most likely, or by polynomials of its signals."""
N_ITERATIONS = {PROJECTION: 30, ONE_STEP: 20}
N_DRAWS = 2
"""Of the noise, from which its size is told in each voxel, with its neighbours'. Each takes as long as the volume."""


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
    polynomial: SignalPolynomial | None
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
        """Whether errors of the rays can go the way by themselves: at the bound, independent, and nothing iterated."""
        return not self.is_iterated and self.rays.model.neighbour_weights is None and self.polynomial is None

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
        """Find the paths of all rays."""
        n_views, parts = seen.counts.shape[1], []
        for begin in range(0, n_views, VIEWS_AT_A_TIME):
            views = slice(begin, min(begin + VIEWS_AT_A_TIME, n_views))
            parts.append(self._fit_some(seen.of_views(views)))
            yield Progress("rays", views.stop, n_views)
        return _together(parts)

    def _fit_some(self, some: Expectation) -> RayFit:
        """Fit rays by a polynomial; or twice: around 0, and around the median of what their neighbours were."""
        if self.polynomial is not None:
            return fit_signals(some.counts, some.open_counts, self.polynomial, self.model, background=some.background)
        data: dict[str, Any] = {"prior_sd": self.prior_sd, "background": some.background}
        drawn = fit_rays(some.counts, some.open_counts, self.model, **data).paths
        around = ndimage.median_filter(drawn, (1, 1, NEIGHBOURS, NEIGHBOURS), mode="nearest")
        return fit_rays(some.counts, some.open_counts, self.model, prior_mean=around, start=drawn, **data)

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
        is_told = fit.is_converged & seen.is_known.all(axis=0)
        steady = steady_information(fit, seen.counts, seen.open_counts, self.model, background=seen.background)
        information = np.where(is_told, steady, 0)
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
    fit: str = LIKELIHOOD,
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
    fit : "likelihood", "a-table" or "polynomial"
        How the paths of rays are found; one step starts from them.
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
    if fit not in FITS:
        raise WrongUsage(f"the fit is {fit!r}; allowed: {', '.join(FITS)}")
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
    model, prior_sd, highest = small_model(rays, seen)
    is_iterated = prior is not None or tier == ONE_STEP
    way = _Way(
        rays=rays,
        recipe=recipe,
        model=model,
        prior_sd=prior_sd,
        polynomial=_polynomial(fit, model, highest, rays.open_counts),
        whole=reached(grid, measured.geometry, measured.lifts_mm) if is_iterated else grid,
        tier=tier,
        prior=prior,
        strength_relative=strength,
        n_iterations=n_iterations or N_ITERATIONS[tier],
    )
    if not way.is_linear and n_draws == 1:
        raise WrongUsage("one draw of the noise tells no errors; allowed: 2 or more, or 0 for no error maps")
    fitted = yield from way.fit(seen)
    values = yield from way.back_project(fitted.paths)
    log = None
    if way.is_iterated:
        values, log = yield from logged(way.iterates(seen, fitted, values), tier, way.n_iterations)
        values = backend.to_host(values)
    matrix = _cells_map(rays, model)
    asked = (slice(None), *cut_out(way.whole, grid))

    def finished(volume: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.tensordot(matrix, volume[asked], axes=1).astype(np.float32)

    sigma = None
    if n_draws:
        draws = yield from way.draw(seen, fitted, values, n_draws)
        sigma = standard_error([finished(draw) for draw in draws], is_centred=way.is_linear)
    ratio = _misfit_ratio(fitted)
    told = f"{prior}, strength {strength if strength is not None else 'its own'}" if prior else "no prior"
    words = (
        f"{len(measured.angles_rad)} views, {len(model.bins)} bins"
        + (f" of {len(rays.sources)} passes" if len(rays.sources) > 1 else ""),
        *dict.fromkeys(told for source in rays.sources for told in source.words),
        *seen.words,
        f"{1 - seen.is_known.mean():.2%} of the counts not measured, {np.mean(seen.counts == 0):.2%} are none",
        *rays.words,
        f"{tier} domain, {', '.join(model.materials)}: {_fit_told(fit)}{told}, {_misfit_told(ratio)}",
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


def small_model(rays: ScanRays, seen: Expectation) -> tuple[SpectralModel, NDArray[np.float64], NDArray[np.float64]]:
    """Look at some views: what paths there are, and how well they are told.

    A prior some times as wide as the noise still shortens what is there by some per cent if its middle is 0; so rays
    are fitted twice, the second time around the median of what their neighbours were the first time.

    Returns
    -------
    model : SpectralModel
        Of few nodes, over the paths of this scan.
    prior_sd : (n_materials,) float64, mm g/cm3
        So wide that it only keeps noisy rays from running away.
    highest : (n_materials,) float64, mm g/cm3
        Up to where the model holds.
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
    return compress(rays.model, highest + margin, lowest - margin).model, prior_sd, highest + margin


def _polynomial(
    fit: str, model: SpectralModel, highest: NDArray[np.float64], open_counts: NDArray[np.float64]
) -> SignalPolynomial | None:
    """Return what stands in for the likelihood, taught by a wedge that the model makes up over the scan's paths."""
    if fit == LIKELIHOOD:
        return None
    wedge = Wedge.of_model(model, highest, open_counts)
    return fit_a_table(wedge) if fit == A_TABLE else fit_polynomial(wedge)


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


def _fit_told(fit: str) -> str:
    return {LIKELIHOOD: "", A_TABLE: "rays by an A-table, ", POLYNOMIAL: "rays by a polynomial of their signals, "}[fit]


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
