"""From signals straight to paths, as a step wedge teaches it: polynomials, of all bins or of their best combinations.

A polynomial of the signals -ln(counts / open beam) of all bins needs no model, only plates; where bins are more than
materials the plates leave it free, and it takes what is least noisy. The A-table way first combines the bins, as
maximum likelihood would in the wedge's middle, into as many numbers as there are materials, and corrects those for
hardening: near the Cramer-Rao bound in one multiplication per term. Either one starts
`reconstruction.spectral.ray_fit`, or stands in for it.

# Ref: polynomials of two signals: Alvarez and Macovski 1976, Phys. Med. Biol. 21, 733; Cardinal and Fenster 1990,
#      Med. Phys. 17, 327.
# Ref: linear maximum likelihood and a correction by calibration (A-table): Alvarez 2011, Med. Phys. 38, 2324.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.attenuation import material
from calibration.thickness import FLOOR, StepWedge
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import RayFit, fit_rays

MOST_EXPONENTIALS = 4
"""Per bin: more, no wedge of some ten plates tells."""
RIGHT_OVER_QUIET = 10.0
"""How much a deviation at a plate counts against as much noise: noise decides where plates leave bins free, no more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wedge:
    """What each bin shows behind known paths.

    Attributes
    ----------
    materials : tuple of str
    bins : tuple of str
    paths : (n_materials, n_plates) float64, mm g/cm3
    signals : (n_bins, n_plates) float64
        -ln(counts / open beam).
    sigma : (n_bins, n_plates) float64
        Standard error of a signal in use, at the exposure of a frame: by it the bins weigh against one another.
    """

    materials: tuple[str, ...]
    bins: tuple[str, ...]
    paths: NDArray[np.float64]
    signals: NDArray[np.float64]
    sigma: NDArray[np.float64]

    def __post_init__(self) -> None:
        n_plates = self.paths.shape[1]
        if self.signals.shape != (len(self.bins), n_plates) or self.sigma.shape != self.signals.shape:
            raise ValueError(
                f"signals {self.signals.shape} and sigma {self.sigma.shape} of {len(self.bins)} bins and {n_plates} "
                "plates; allowed: (n_bins, n_plates) both"
            )
        if len(self.paths) != len(self.materials):
            raise ValueError(f"paths {self.paths.shape} of {len(self.materials)} materials; allowed: one row each")

    @classmethod
    def of_model(
        cls, model: SpectralModel, highest_paths: ArrayLike, open_counts: ArrayLike, *, n_steps: int = 6
    ) -> Wedge:
        """Make up the wedge that a model would show: all combinations of `n_steps` paths of each material, from 0.

        Combinations behind which a bin is left less than a count are dropped.
        """
        steps = [np.linspace(0, high, n_steps) for high in np.asarray(highest_paths, dtype=np.float64)]
        paths = np.stack([axis.ravel() for axis in np.meshgrid(*steps, indexing="ij")])
        share = model.transmission(paths)
        counts = np.asarray(open_counts, dtype=np.float64)[:, None] * share
        is_seen = (counts >= 1).all(axis=0)
        return cls(
            materials=model.materials,
            bins=model.bins,
            paths=paths[:, is_seen],
            signals=-np.log(share[:, is_seen]),
            sigma=counts[:, is_seen] ** -0.5,
        )

    @classmethod
    def of_plates(cls, wedge: StepWedge) -> Wedge:
        """Take the measured one: plates of one material or several, and the open beam for the path 0."""
        densities = np.array([material(name).density_g_cm3 for name in wedge.materials])
        bare = np.zeros((1, len(densities)))
        counts = np.concatenate([wedge.open_beam[None], wedge.counts]).T
        return cls(
            materials=wedge.materials,
            bins=tuple(f"{low:g} keV" for low in wedge.thresholds_kev),
            paths=(np.concatenate([bare, wedge.layers_mm]) * densities).T,
            signals=-np.log(counts / counts[:, :1]),
            sigma=counts**-0.5,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SignalPolynomial:
    """Paths as polynomials of linear combinations of the signals.

    Attributes
    ----------
    materials : tuple of str
    combinations : (n_combined, n_bins) float64
        What of the signals the polynomial is of.
    powers : (n_terms, n_combined) int64
    coefficients : (n_materials, n_terms) float64
    residual : (n_materials,) float64, mm g/cm3
        Rms deviation at the plates.
    """

    materials: tuple[str, ...]
    combinations: NDArray[np.float64]
    powers: NDArray[np.int64]
    coefficients: NDArray[np.float64]
    residual: NDArray[np.float64]

    def paths(self, signals: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the paths behind signals: (n_bins, ...) to (n_materials, ...) float32, mm g/cm3."""
        combined = np.tensordot(self.combinations, signals, axes=1)
        return np.tensordot(self.coefficients, _terms(combined, self.powers), axes=1).astype(np.float32)


def signals(counts: NDArray, open_counts: ArrayLike, background: ArrayLike = 0.0) -> NDArray[np.float32]:
    """Return -ln(counts / open beam) of (n_bins, ...) counts, as if no bin had less than half a count; float32.

    Parameters
    ----------
    open_counts, background : (n_bins, ...) or (n_bins,) float
    """
    of_bins = [np.asarray(values, dtype=np.float32) for values in (open_counts, background)]
    opened, added = (v.reshape(v.shape + (1,) * (counts.ndim - v.ndim)) if v.ndim else v for v in of_bins)
    return -np.log(np.maximum(counts - added, np.float32(0.5)) / opened)


def fit_signals(
    counts: NDArray[np.floating],
    open_counts: ArrayLike,
    polynomial: SignalPolynomial,
    model: SpectralModel,
    *,
    background: ArrayLike = 0.0,
) -> RayFit:
    """Return the paths that a polynomial gives, and what the counts tell of them by a model.

    Parameters
    ----------
    counts : (n_bins, ...) float
    open_counts, background : (n_bins, ...) or (n_bins,) float
    """
    paths = polynomial.paths(signals(counts, open_counts, background))
    judged = fit_rays(counts, open_counts, model, start=paths, n_iterations=1, background=background)
    return replace(judged, paths=paths, is_converged=np.isfinite(paths).all(axis=0))


def fitted_model(step_wedge: StepWedge) -> tuple[SpectralModel, str]:
    """Fit as many exponentials per bin as foretell best the plates that are held out, and say how well.

    Raises
    ------
    CalibrationMissing
        There are too few plates.
    """
    n_plates = len(step_wedge.plates)
    per_exponential = len(step_wedge.materials) + 1
    allowed = [n for n in range(1, MOST_EXPONENTIALS + 1) if n * per_exponential - 1 < n_plates]
    if not allowed:
        raise CalibrationMissing(
            f"{n_plates} plates of {', '.join(step_wedge.materials)} teach no model; allowed: more than "
            f"{per_exponential - 1}",
            hint="measure more plates: [calibration.wedge] of the plan",
        )
    sigma = np.maximum(np.hypot(step_wedge.sigma_relative, step_wedge.open_beam_sigma_relative), FLOOR).T
    errors = {n: held_out_errors(step_wedge, n) for n in allowed}
    best = min(allowed, key=lambda n: float(np.mean((errors[n] / sigma) ** 2)))
    words = (
        f"what bins count by {n_plates} plates of {', '.join(step_wedge.materials)}: {best} "
        f"exponential{'s' if best > 1 else ''} each, which foretell a plate held out to "
        f"{np.median(np.abs(errors[best])):.2%} (worst {np.abs(errors[best]).max():.2%})"
    )
    return model_of_plates(step_wedge, best), words


def model_of_plates(step_wedge: StepWedge, n_exponentials: int = 2) -> SpectralModel:
    """Fit a forward model of a few exponentials per bin to a measured wedge."""
    return _model_of(step_wedge, np.arange(len(step_wedge.plates)), n_exponentials)


def held_out_errors(step_wedge: StepWedge, n_exponentials: int = 2) -> NDArray[np.float64]:
    """Return how far each plate is from what a model fitted to all others foretells.

    Returns
    -------
    errors_relative : (n_bins, n_plates) float64
        Of the transmission. The thickest plates are extrapolations then.
    """
    measured, errors = Wedge.of_plates(step_wedge), []
    for plate in range(len(step_wedge.plates)):
        others = np.delete(np.arange(len(step_wedge.plates)), plate)
        foretold = _model_of(step_wedge, others, n_exponentials).transmission(measured.paths[:, 1 + plate])
        errors.append(foretold * np.exp(measured.signals[:, 1 + plate]) - 1)
    return np.stack(errors, axis=1)


def _model_of(step_wedge: StepWedge, plates: NDArray[np.intp], n_exponentials: int) -> SpectralModel:
    measured = Wedge.of_plates(step_wedge)
    sigma = np.hypot(step_wedge.sigma_relative, step_wedge.open_beam_sigma_relative).T
    return SpectralModel.fitted_to_wedge(
        measured.paths[:, 1 + plates],
        np.exp(-measured.signals[:, 1 + plates]),
        np.maximum(sigma[:, plates], FLOOR),
        materials=measured.materials,
        bins=measured.bins,
        n_exponentials=n_exponentials,
    )


def fit_polynomial(wedge: Wedge, order: int = 2) -> SignalPolynomial:
    """Fit the paths to a polynomial of all bins' signals."""
    scale = 1 / np.abs(wedge.signals).max(axis=1)
    return _fitted(wedge, np.diag(scale), order)


def fit_a_table(wedge: Wedge, order: int = 4) -> SignalPolynomial:
    """Fit the paths to a polynomial of the bins' best combinations, as many as there are materials."""
    slopes = np.linalg.lstsq(wedge.paths.T, wedge.signals.T, rcond=None)[0].T  # (n_bins, n_materials)
    weights = np.median(wedge.sigma, axis=1) ** -2
    normal = slopes.T @ (weights[:, None] * slopes)
    combinations = np.linalg.solve(normal, slopes.T * weights)
    highest = np.abs(combinations @ wedge.signals).max(axis=1)
    return _fitted(wedge, combinations / highest[:, None], order)


def _fitted(wedge: Wedge, combinations: NDArray[np.float64], order: int) -> SignalPolynomial:
    if order < 1:
        raise WrongUsage(f"a polynomial of order {order}; allowed: 1 or more")
    powers = _powers(len(combinations), order)
    if len(powers) > wedge.paths.shape[1]:
        raise CalibrationMissing(
            f"{len(powers)} terms of order {order} from {wedge.paths.shape[1]} plates",
            hint="measure more plates, or take a lower order",
        )
    combined = combinations @ wedge.signals
    terms = _terms(combined, powers)
    slopes = np.tensordot(combinations.T, _slopes(combined, powers), axes=1)  # (n_bins, n_terms, n_plates)
    noise = np.moveaxis(slopes * wedge.sigma[:, None], 1, -1).reshape(-1, len(powers))
    # The open beam must read 0, for most rays beside the object are it: no constant term stands in `powers`.
    rows = np.concatenate([RIGHT_OVER_QUIET * terms.T, noise])
    wanted = np.concatenate([RIGHT_OVER_QUIET * wedge.paths.T, np.zeros((len(noise), len(wedge.paths)))])
    scale = np.abs(rows).max(axis=0)
    coefficients = (np.linalg.lstsq(rows / scale, wanted, rcond=None)[0] / scale[:, None]).T
    residual = np.sqrt(np.mean((coefficients @ terms - wedge.paths) ** 2, axis=1))
    return SignalPolynomial(
        materials=wedge.materials,
        combinations=combinations,
        powers=powers,
        coefficients=np.asarray(coefficients, dtype=np.float64),
        residual=residual,
    )


def _powers(n: int, order: int) -> NDArray[np.int64]:
    every = [p for p in itertools.product(range(order + 1), repeat=n) if 1 <= sum(p) <= order]
    return np.array(sorted(every, key=lambda p: (sum(p), p)), dtype=np.int64)


def _terms(values: NDArray[np.floating], powers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return every product of powers of the values: (n_terms, ...) float64."""
    tower = [np.ones_like(values), values]
    for _ in range(int(np.max(powers)) - 1):
        tower.append(tower[-1] * values)
    terms = np.ones((len(powers), *values.shape[1:]))
    for term, row in zip(terms, powers, strict=True):
        for k, power in enumerate(row):
            if power:
                term *= tower[power][k]
    return terms


def _slopes(values: NDArray[np.floating], powers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how every term changes with every value: (n_values, n_terms, ...) float64."""
    lowered = [np.maximum(powers - np.eye(len(values), dtype=np.int64)[k], 0) for k in range(len(values))]
    return np.stack(
        [powers[:, k].reshape(-1, *[1] * (values.ndim - 1)) * _terms(values, lowered[k]) for k in range(len(values))]
    )
