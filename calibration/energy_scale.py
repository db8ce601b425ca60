"""Codes to keV: the S-curves of line sources, fitted together on one straight scale with its uncertainty.

A threshold counts a photon whose charge, or what a pixel got of it, lies above. What pixels get of a photon is
`calibration.edge_form`; here it is blurred by noise and laid on the codes. A straight slope below the edge instead of
that form moves all edges down by a share of their energy, which no residual shows.

The width of the charge cloud is free within what is known of it: one width for all sources, and for each source its
own near that. So a source whose edge drowns in shared charge says little of the scale, and the errors know it.

# Ref: S-curve of lines, each mode for itself: reference on spectral CT, section 5; its goal of 0.15 keV: KTH 2015, IEEE
#      Trans. Med. Imaging 34, 788.
# Ref: end point of a tube as a check: the same section 5. Near it a thick target's photons grow in proportion to the
#      distance from it: H. A. Kramers 1923, Phil. Mag. 46, 836.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from calibration.attenuation import Line
from calibration.edge_form import COLLECTION_SIGMA, EdgeForm, cloud_parts
from calibration.spectrum import emission
from firmware_iface.errors import CalibrationMissing

RELATIVE_ERROR = 0.003
"""Uncertainty of the S-curve model itself, as a share of the curve's height."""
CLOUD_SIGMA = 0.1
"""How well the published width of the charge cloud is known, as a share of it."""
CLOUD_SIGMA_OF_SOURCE = 0.03
"""How well one source's cloud is known from the others'."""
GROUP = 0.2
"""Lines within this share of a source's strongest line are looked at together."""
COMMON = ("offset", "gain", "noise", "growth", "cloud")
"""What all sources of a threshold share in the fit."""
OWN = ("height", "cloud", "constant")
"""What each has for itself."""
LEAST_CONTRAST = 0.1
"""Less of a rise of the slope towards an edge is none: the form of shared charge is not known better."""
SHORTER = 0.3
"""This share of what a scan shows below the lines is left out to see what that changes: the error of the form."""
FEWEST_STEPS = 6
FAR_SIGMA = 6.0
"""Beyond so many sigma noise changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SCurve:
    """Counts of one threshold against its code, under one source.

    Attributes
    ----------
    source : str
    lines : tuple of Line
        The source's lines that lie inside the scan; their fractions count relative to each other.
    form : EdgeForm
        What pixels see of these lines.
    dacs : (n_steps,) float64
    counts : (n_steps,) float64
        Sum over the pixels, as counted.
    """

    source: str
    lines: tuple[Line, ...]
    form: EdgeForm
    dacs: NDArray[np.float64]
    counts: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not self.lines or min(line.fraction for line in self.lines) < 0:
            raise ValueError(
                f"{self.source} has the lines {self.lines}; allowed: one or more, none of negative fraction"
            )
        if self.dacs.shape != self.counts.shape or self.dacs.ndim != 1 or len(self.dacs) < FEWEST_STEPS:
            raise ValueError(
                f"the scan of {self.source} has {self.dacs.shape} codes and {self.counts.shape} counts; "
                "allowed: as many of both, {FEWEST_STEPS} or more"
            )

    @property
    def energy_kev(self) -> float:
        """Mean energy of the lines, by their intensity."""
        return mean_kev(self.lines)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EnergyScale:
    """Code = offset + gain * energy, for one threshold.

    The residuals tell how well the sources agree with one another. What moves all edges alike, by a constant or by a
    share of the energy, they cannot show: it becomes a part of offset and gain.

    Attributes
    ----------
    covariance : (2, 2) float64
        Of offset and gain, in DAC^2, DAC^2/keV and (DAC/keV)^2: counting statistics and the model's error, widened
        where the fit, or the lines about it, scatter more; what a fit of shorter curves changes; and what carriers'
        lifetimes are uncertain by. It is the error of all pixels in common.
    sources : tuple of str
    energies_kev, positions_dac, residuals_kev, widths_dac : (n_sources,) float64
        Mean energy of each source, where a fit of this source alone finds it, that position on the joint scale minus
        the energy, and the width of the edge.
    position_sigmas_kev : (n_sources,) float64
        Standard error of each position alone, which is large where a source shows no edge.
    blur : (3,) float64
        Noise in DAC codes, the same at every energy; the part of the edges' width that grows with the energy, as a
        share of it (Fano, and gains that differ), which adds in squares; the width of the charge cloud over the
        published one.
    shapes : (n_sources, 3) float64
        Of each: height, the photons absorbed; width of the charge cloud over the published one; constant, the counts
        beyond the edge.
    chi2_ratio : float
        Sum of squared deviations over degrees of freedom.
    """

    offset_dac: float
    gain_dac_per_kev: float
    covariance: NDArray[np.float64]
    sources: tuple[str, ...]
    energies_kev: NDArray[np.float64]
    positions_dac: NDArray[np.float64]
    residuals_kev: NDArray[np.float64]
    widths_dac: NDArray[np.float64]
    position_sigmas_kev: NDArray[np.float64]
    blur: NDArray[np.float64]
    shapes: NDArray[np.float64]
    chi2_ratio: float

    @property
    def residual_rms_kev(self) -> float:
        """Root mean square of the residuals."""
        return float(np.sqrt(np.mean(self.residuals_kev**2)))

    def model_of(
        self, which: int, curve: SCurve, *, width_dac: float | None = None
    ) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        """Return the fitted S-curve of one source as a function of codes, with another width of the edge if told."""
        height, cloud, constant = self.shapes[which]
        sigma_kev = (self.widths_dac[which] if width_dac is None else width_dac) / self.gain_dac_per_kev

        def model(dacs: NDArray[np.float64]) -> NDArray[np.float64]:
            energies_kev = (np.asarray(dacs, dtype=np.float64) - self.offset_dac) / self.gain_dac_per_kev
            return height * expected_counts(energies_kev, curve.form, cloud, sigma_kev) + constant

        return model

    def sigma_kev(self, energy_kev: ArrayLike) -> NDArray[np.float64]:
        """Return the standard error of the scale at some energies, in keV."""
        energy = np.asarray(energy_kev, dtype=np.float64)
        (a, b), (_, c) = self.covariance
        return np.sqrt(np.maximum(a + 2 * b * energy + c * energy**2, 0)) / self.gain_dac_per_kev


@dataclass(frozen=True, slots=True, kw_only=True)
class EndPoint:
    """Where a tube's spectrum ends on an energy scale.

    Attributes
    ----------
    kvp : float
        What the tube was set to.
    found_kev, sigma_kev : float
        Where the counts end, and its standard error from counting statistics.
    """

    kvp: float
    found_kev: float
    sigma_kev: float

    @property
    def error_kev(self) -> float:
        """Found minus set."""
        return self.found_kev - self.kvp


def line_group(source: str) -> tuple[Line, ...]:
    """Return the strongest line of a source and those near it, which are looked at together."""
    lines = emission(source)
    strongest = max(lines, key=lambda line: line.fraction)
    return tuple(line for line in lines if abs(line.energy_kev / strongest.energy_kev - 1) <= GROUP)


def mean_kev(lines: Iterable[Line]) -> float:
    """Return the mean energy of lines by their intensity."""
    lines = tuple(lines)
    return sum(line.energy_kev * line.fraction for line in lines) / sum(line.fraction for line in lines)


def steepest_dac(curve_dacs: ArrayLike, counts: ArrayLike) -> float:
    """Return the code where an S-curve falls fastest, from a smoothed difference: a first guess of the edge."""
    dacs, values = np.asarray(curve_dacs, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    fall = -np.convolve(np.diff(values), (0.25, 0.5, 0.25), mode="valid")
    if len(fall) == 0 or fall.max() <= 0:
        raise CalibrationMissing(
            "the counts do not fall anywhere in the scan", hint="check that the source is in the beam, and the range"
        )
    middles = (dacs[1:] + dacs[:-1]) / 2
    return float(middles[1 + int(np.argmax(fall))])


def expected_counts(
    thresholds_kev: NDArray[np.float64], form: EdgeForm, cloud_ratio: float, sigma_kev: float
) -> NDArray[np.float64]:
    """Return counts per absorbed photon above thresholds, behind noise: (n_steps,) float64."""
    return _blurred(np.ravel(thresholds_kev), form.charges_kev, form.at(cloud_ratio)[None], sigma_kev)[0, 0]


def fit_energy_scale(
    curves: Sequence[SCurve],
    *,
    guess: tuple[float, float] | None = None,
    zero: tuple[float, float] | None = None,
) -> EnergyScale:
    """Fit one straight energy scale to the S-curves of several sources together.

    Each source has its own intensity, width of the cloud and constant; offset, gain, and how wide edges are, are
    common.

    Parameters
    ----------
    curves : two or more of different energies
    guess : (offset in DAC, gain in DAC per keV), optional
        Where to start; without it, the steepest point of each curve tells.
    zero : (code, its standard error), optional
        Where no charge stands, if something else than photons tells it.
    """
    energies = np.asarray([curve.energy_kev for curve in curves])
    if len(curves) < 2 or np.ptp(energies) == 0:
        raise ValueError(f"{len(curves)} curves cannot give a scale; allowed: two or more of different energies")
    if guess is None:
        gain, offset = np.polyfit(energies, [steepest_dac(curve.dacs, curve.counts) for curve in curves], 1)
    else:
        offset, gain = guess
    shapes = [_start_of_shape(curve, offset, gain) for curve in curves]
    found = _joint_fit(curves, np.concatenate([[offset, gain, 0.5 * gain, 0.02, 1.0], *shapes]), zero)
    offset, gain = float(found.x[0]), float(found.x[1])
    freedom = max(len(found.fun) - len(found.x), 1)
    chi2_ratio = float(2 * found.cost / freedom)
    alone = [_position_alone(curve, found.x[mine]) for curve, mine in zip(curves, _own(len(curves)), strict=True)]
    positions, sigmas = np.transpose(alone)
    scatter = np.sum(((positions - offset - gain * energies) / sigmas) ** 2) / max(len(curves) - 2, 1)
    covariance = np.linalg.pinv(found.jac.T @ found.jac)[:2, :2] * max(chi2_ratio, 1.0) * max(scatter, 1.0)
    moved = _joint_fit([_shorter(curve, offset, gain) for curve in curves], found.x, zero).x[:2] - found.x[:2]
    return EnergyScale(
        offset_dac=offset,
        gain_dac_per_kev=gain,
        covariance=covariance + np.outer(moved, moved) + _of_collection(curves, gain, sigmas, zero),
        sources=tuple(curve.source for curve in curves),
        energies_kev=energies,
        positions_dac=positions,
        residuals_kev=(positions - offset) / gain - energies,
        widths_dac=gain * _sigma_kev(found.x, energies),
        position_sigmas_kev=sigmas / gain,
        blur=found.x[2 : len(COMMON)],
        shapes=found.x[len(COMMON) :].reshape(len(curves), len(OWN)),
        chi2_ratio=chi2_ratio,
    )


def edge_contrast(curve: SCurve) -> tuple[float, float]:
    """Return by which share of its fastest fall a curve falls more slowly somewhere before, and the standard error.

    Where charge is shared so much that hardly a photon leaves all of it in one pixel, counts fall ever more slowly up
    to the line: the contrast is 0, and no edge is there to calibrate with.
    """
    n = max(3, len(curve.dacs) // 8)
    fall = (curve.counts[:-n] - curve.counts[n:]) / (curve.dacs[n:] - curve.dacs[:-n])
    variance = (curve.counts[:-n] + curve.counts[n:]) / (curve.dacs[n:] - curve.dacs[:-n]) ** 2
    fastest = int(np.argmax(fall))
    slowest = int(np.argmin(fall[: fastest + 1]))
    if fall[fastest] <= 0:
        return 0.0, 0.0
    return (
        float(1 - fall[slowest] / fall[fastest]),
        float(math.sqrt(variance[slowest] + variance[fastest]) / fall[fastest]),
    )


def has_edge(curve: SCurve) -> bool:
    """Return whether a source's counts show an edge: a contrast of more than `LEAST_CONTRAST`, by three errors."""
    contrast, sigma = edge_contrast(curve)
    return contrast > LEAST_CONTRAST + 3 * sigma


def steepest_kev(form: EdgeForm, sigma_kev: float) -> float:
    """Return the energy at which the counts of a source fall fastest, behind noise."""
    energies = form.charges_kev[form.charges_kev > 0.7 * form.charges_kev[-1]]
    return float(energies[np.argmin(np.gradient(expected_counts(energies, form, 1.0, sigma_kev)))])


def find_end_point(energies_kev: ArrayLike, counts: ArrayLike, kvp: float, *, sigma_kev: float) -> EndPoint:
    """Find where the counts of a tube end, from a scan around its voltage.

    Near the end of the spectrum the counts above a threshold grow with the square of the distance from it, and as its
    cube next; noise blurs them, and a constant stands beyond.

    Parameters
    ----------
    energies_kev : (n_steps,) float
        Where the threshold stood, on the scale that is checked.
    counts : (n_steps,) float
        Sum over the pixels.
    kvp : float
        What the tube was set to; the search starts there.
    sigma_kev : float
        Noise of the charge in keV.

    Raises
    ------
    CalibrationMissing
        Nothing is counted, or the counts do not end inside the scan.
    """
    energy, n = np.asarray(energies_kev, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    low, high = float(energy.min()), float(energy.max())
    if n.sum() < 100 or n[energy.argmin()] <= 2 * n[energy.argmax()]:
        raise CalibrationMissing(
            f"the counts of the tube at {kvp:g} kV do not end between {low:.1f} and {high:.1f} keV",
            hint="check that the beam is on, or expose longer",
        )
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)

    def misfit(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        end, square, cube, constant = parameters
        above = np.maximum(end - energy[:, None] + sigma_kev * nodes, 0)
        model = (square * above**2 + cube * above**3) @ (weights / weights.sum()) + constant
        return (model - n) / np.sqrt(np.maximum(n, 1))

    span = kvp - low
    start = np.array([kvp, n.max() / span**2, 0.0, max(float(n.min()), 0.0)])
    found = least_squares(misfit, start, x_scale=[1.0, start[1], start[1] / span, max(n.max() / 100, 1.0)])
    freedom = max(len(n) - len(start), 1)
    covariance = np.linalg.pinv(found.jac.T @ found.jac) * max(2 * found.cost / freedom, 1.0)
    if not low < found.x[0] < high:
        raise CalibrationMissing(
            f"the tube at {kvp:g} kV seems to end at {found.x[0]:.1f} keV; scanned: {low:.1f} to {high:.1f} keV",
            hint="check the energy scale and the tube's voltage",
        )
    return EndPoint(kvp=kvp, found_kev=float(found.x[0]), sigma_kev=float(np.sqrt(covariance[0, 0])))


def _own(n_curves: int) -> list[NDArray[np.intp]]:
    """Return where the parameters of each source stand: those of all, and its own."""
    n_common, n_own = len(COMMON), len(OWN)
    return [np.r_[:n_common, n_common + n_own * i : n_common + n_own * (i + 1)] for i in range(n_curves)]


def _joint_fit(curves: Sequence[SCurve], start: NDArray[np.float64], zero: tuple[float, float] | None) -> Any:
    """Fit all curves together by least squares, as `scipy.optimize` returns it."""
    own, gain = _own(len(curves)), start[1]
    low = np.concatenate([[-np.inf, 0.1 * gain, 0.05, 0, 0.5], *([[0, 0.5, 0]] * len(curves))])
    high = np.concatenate([[np.inf, 10 * gain, 8 * gain, 0.3, 1.5], *([[np.inf, 1.5, np.inf]] * len(curves))])

    def misfit(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = [_misfit(curve, parameters[mine])[0] for curve, mine in zip(curves, own, strict=True)]
        return np.concatenate([*parts, _off_zero(parameters, zero)[0]])

    def slopes(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        blocks = []
        for curve, mine in zip(curves, own, strict=True):
            slope = _misfit(curve, parameters[mine])[1]
            block = np.zeros((len(slope), len(parameters)))
            block[:, mine] = slope
            blocks.append(block)
        return np.concatenate([*blocks, _off_zero(parameters, zero)[1]])

    solve: Any = least_squares  # its types know no function for the derivatives
    start = np.clip(start, low + 1e-9, high)
    return solve(misfit, start, jac=slopes, bounds=(low, high), x_scale="jac", max_nfev=100)


def _shorter(curve: SCurve, offset_dac: float, gain_dac_per_kev: float) -> SCurve:
    """Return a curve without its first part, what is well below the lines, as far as enough of it is left."""
    lowest = offset_dac + gain_dac_per_kev * min(line.energy_kev for line in curve.lines if line.fraction > 0)
    kept = curve.dacs >= curve.dacs[0] + SHORTER * (lowest - curve.dacs[0])
    return replace(curve, dacs=curve.dacs[kept], counts=curve.counts[kept]) if kept.sum() >= FEWEST_STEPS else curve


def _position_alone(curve: SCurve, parameters: NDArray[np.float64]) -> tuple[float, float]:
    """Fit one source by itself, with its own height, cloud and constant: where it stands, and the error, in codes."""
    gain = parameters[1]
    free = np.r_[0, len(COMMON) : len(parameters)]

    def at(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        moved = parameters.copy()
        moved[free] = values
        found, slopes = _misfit(curve, moved)
        return found, slopes[:, free]

    low, high = np.array([-np.inf, 0, 0.4, -1e-9]), np.array([np.inf, np.inf, 1.6, np.inf])
    solve: Any = least_squares
    found = solve(
        lambda values: at(values)[0], parameters[free], jac=lambda values: at(values)[1], bounds=(low, high),
        x_scale="jac", max_nfev=50,
    )  # fmt: skip
    sigma = math.sqrt(np.linalg.pinv(found.jac.T @ found.jac)[0, 0])
    return float(found.x[0] + gain * curve.energy_kev), sigma


def _off_zero(
    parameters: NDArray[np.float64], zero: tuple[float, float] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far the offset is from where no charge stands, over the error, and the derivatives."""
    if zero is None:
        return np.zeros(0), np.zeros((0, len(parameters)))
    slope = np.zeros((1, len(parameters)))
    slope[0, 0] = 1 / zero[1]
    return np.array([(parameters[0] - zero[0]) / zero[1]]), slope


def _of_collection(
    curves: Sequence[SCurve], gain: float, sigmas_dac: NDArray[np.float64], zero: tuple[float, float] | None
) -> NDArray[np.float64]:
    """Return the covariance of offset and gain (2, 2) that uncertain lifetimes of carriers bring."""
    energies = np.array([curve.energy_kev for curve in curves])
    moved = np.array([curve.form.collected_kev for curve in curves])
    if zero is not None:
        energies, moved, sigmas_dac = np.append(energies, 0), np.append(moved, 0), np.append(sigmas_dac, zero[1])
    design = np.stack([np.ones_like(energies), energies], axis=1) / sigmas_dac[:, None]
    by = np.linalg.lstsq(design, COLLECTION_SIGMA * gain * moved / sigmas_dac, rcond=None)[0]
    return np.outer(by, by).astype(np.float64)


def _start_of_shape(curve: SCurve, offset_dac: float, gain_dac_per_kev: float) -> NDArray[np.float64]:
    """Guess height, cloud and constant of one source."""
    constant = float(max(curve.counts.min(), 0))
    first_kev = (curve.dacs.min() - offset_dac) / gain_dac_per_kev
    seen = curve.form.at(1.0)[curve.form.charges_kev > first_kev].sum()
    return np.asarray([max((curve.counts.max() - constant) / max(seen, 1e-3), 1.0), 1.0, constant + 1e-3])


def _sigma_kev(parameters: NDArray[np.float64], energies_kev: ArrayLike) -> NDArray[np.float64]:
    """Return the width of edges: noise, which is the same everywhere, and what grows with the energy, in squares."""
    _, gain, noise_dac, growth = parameters[:4]
    return np.hypot(noise_dac / gain, growth * np.asarray(energies_kev))


def _misfit(curve: SCurve, parameters: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (model - counts) / sigma at each code, then what the clouds are off by, and the derivatives.

    For the common parameters and the source's own; (n_steps + 2,) and (n_steps + 2, n_parameters) float64.
    """
    offset, gain, noise_dac, growth, cloud_of_all, height, cloud, constant = parameters
    energy_kev = curve.energy_kev
    width = float(_sigma_kev(parameters, energy_kev))
    thresholds_kev = (curve.dacs - offset) / gain
    parts, slopes = cloud_parts(cloud)
    seen = _blurred(thresholds_kev, curve.form.charges_kev, curve.form.counts, width)
    above, by_threshold, by_width = np.einsum("c,kct->kt", parts, seen)
    by_cloud = slopes @ seen[0]
    sigma = np.sqrt(np.maximum(curve.counts, 1) + (RELATIVE_ERROR * np.ptp(curve.counts)) ** 2)
    n = len(sigma)
    derivative = np.zeros((n + 2, len(parameters)))
    derivative[:n, 0] = -height * by_threshold / gain
    derivative[:n, 1] = -height * (by_threshold * thresholds_kev + by_width * (noise_dac / gain) ** 2 / width) / gain
    derivative[:n, 2] = height * by_width * noise_dac / (gain**2 * width)
    derivative[:n, 3] = height * by_width * growth * energy_kev**2 / width
    derivative[:n, 5], derivative[:n, 6], derivative[:n, 7] = above, height * by_cloud, 1.0
    derivative[:n] /= sigma[:, None]
    derivative[n, 4], derivative[n, 6] = -1 / CLOUD_SIGMA_OF_SOURCE, 1 / CLOUD_SIGMA_OF_SOURCE
    derivative[n + 1, 4] = 1 / CLOUD_SIGMA
    off = np.empty(n + 2)
    off[:n] = (height * above + constant - curve.counts) / sigma
    off[n:] = (cloud - cloud_of_all) / CLOUD_SIGMA_OF_SOURCE, (cloud_of_all - 1) / CLOUD_SIGMA
    return off, derivative


@njit(cache=True, nogil=True)
def _blurred(thresholds_kev: np.ndarray, charges_kev: np.ndarray, counts: np.ndarray, sigma_kev: float) -> np.ndarray:
    """Return what is counted above thresholds, and its derivatives by threshold and sigma: (3, n_clouds, n_steps).

    ``counts`` is (n_clouds, n_charges); the charges go evenly upwards.
    """
    n_clouds, n_charges = counts.shape
    step_kev = charges_kev[1] - charges_kev[0]
    upwards = np.zeros((n_clouds, n_charges + 1))
    for i in range(n_charges - 1, -1, -1):
        for c in range(n_clouds):
            upwards[c, i] = upwards[c, i + 1] + counts[c, i]
    found = np.zeros((3, n_clouds, len(thresholds_kev)))
    for t in range(len(thresholds_kev)):
        threshold_kev = thresholds_kev[t]
        place, reach = (threshold_kev - charges_kev[0]) / step_kev, FAR_SIGMA * sigma_kev / step_kev
        first = min(max(int(place - reach), 0), n_charges)
        last = min(max(int(place + reach) + 1, 0), n_charges)
        for c in range(n_clouds):
            found[0, c, t] = upwards[c, last]
        for i in range(first, last):
            z = (threshold_kev - charges_kev[i]) / sigma_kev
            above, density = 0.5 * math.erfc(z * math.sqrt(0.5)), math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
            for c in range(n_clouds):
                found[0, c, t] += counts[c, i] * above
                found[1, c, t] -= counts[c, i] * density / sigma_kev
                found[2, c, t] += counts[c, i] * density * z / sigma_kev
    return found
