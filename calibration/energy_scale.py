"""Codes to keV: the S-curves of line sources, fitted together on one straight scale with its uncertainty.

A threshold counts a photon whose charge, or what a pixel got of it, lies above. Where the charge of a photon at the
distance x from a straight border is shared, a pixel gets the share Phi(x / s) of it, Phi being the normal law; so above
the share t stands the photon if x > s Phi^-1(t), and a square pixel counts the area (1 - 2 q s)^2, q = Phi^-1(t), with
lengths in units of the pitch. That bends the S-curve far more just below the edge than a straight slope can, and a
straight slope therefore moves all edges down by a share of their energy, which no residual shows.

# Ref: S-curve of lines as error functions with a slope below the edge for shared charge, each mode for itself:
#      reference on spectral CT, section 5; its goal of 0.15 keV: KTH 2015, IEEE Trans. Med. Imaging 34, 788.
# Ref: a cloud that diffuses is normal: reference on spectral CT, section 4.3. The square's area is then geometry; that
#      a corner's pixel gets the product of two shares, not the smaller one, is left out.
# Ref: end point of a tube as a check: the same section 5. Near it a thick target's photons grow in proportion to the
#      distance from it: H. A. Kramers 1923, Phil. Mag. 46, 836.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.special import erfc, ndtr

from calibration.attenuation import Line
from calibration.spectrum import emission
from firmware_iface.errors import CalibrationMissing

RELATIVE_ERROR = 0.003
"""Uncertainty of the S-curve model itself, as a share of the curve's height."""
GROUP = 0.2
"""Lines within this share of a source's strongest line are looked at together."""
SMALLEST_SPREAD, WIDEST_SPREAD = 1e-3, 0.45
"""Limits of the cloud's width as a share of the pitch."""
COMMON = ("offset", "gain", "noise", "growth")
"""What all sources of a threshold share in the fit."""
DIFFERENCE = 1e-6
"""Relative step of numerical derivatives."""
FULLEST = 5.0
"""Beyond so many widths of the cloud from the border a pixel gets it all."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2
"""Between 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SCurve:
    """Counts of one threshold against its code, under one source.

    Attributes
    ----------
    source : str
    lines : tuple of Line
        The source's lines that lie inside the scan; their fractions count relative to each other.
    dacs : (n_steps,) float64
    counts : (n_steps,) float64
        Sum over the pixels, as counted.
    """

    source: str
    lines: tuple[Line, ...]
    dacs: NDArray[np.float64]
    counts: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not self.lines or min(line.fraction for line in self.lines) < 0:
            raise ValueError(
                f"{self.source} has the lines {self.lines}; allowed: one or more, none of negative fraction"
            )
        if self.dacs.shape != self.counts.shape or self.dacs.ndim != 1 or len(self.dacs) < 6:
            raise ValueError(
                f"the scan of {self.source} has {self.dacs.shape} codes and {self.counts.shape} counts; "
                "allowed: as many of both, 6 or more"
            )

    @property
    def energies_kev(self) -> NDArray[np.float64]:
        """Energy of each line: (n_lines,) float64."""
        return np.asarray([line.energy_kev for line in self.lines])

    @property
    def shares(self) -> NDArray[np.float64]:
        """Intensity of each line as a share of the source: (n_lines,) float64."""
        fractions = np.asarray([line.fraction for line in self.lines])
        return fractions / fractions.sum()

    @property
    def energy_kev(self) -> float:
        """Mean energy of the lines, by their intensity."""
        return float(self.shares @ self.energies_kev)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EnergyScale:
    """Code = offset + gain * energy, for one threshold.

    The residuals tell how well the sources agree with one another. What moves all edges alike, by a constant or by a
    share of the energy, they cannot show: it becomes a part of offset and gain.

    Attributes
    ----------
    covariance : (2, 2) float64
        Of offset and gain, in DAC^2, DAC^2/keV and (DAC/keV)^2; counting statistics and the model's error, widened
        where the fit is worse than both.
    sources : tuple of str
    energies_kev, positions_dac, residuals_kev, widths_dac : (n_sources,) float64
        Mean energy of each source, where a fit of this source alone finds it, that position on the joint scale minus
        the energy, and the width of the edge.
    blur : (2,) float64
        Noise in DAC codes, the same at every energy, and the part of the edges' width that grows with the energy, as a
        share of it (Fano, and gains that differ); they add in squares.
    shapes : (n_sources, 4) float64
        Of each: height, the counts between half the energy and the edge without shared charge; spread, the width of the
        charge cloud as a share of the pitch; constant, the counts beyond the edge; width of the edge in codes.
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
    blur: NDArray[np.float64]
    shapes: NDArray[np.float64]
    chi2_ratio: float

    @property
    def residual_rms_kev(self) -> float:
        """Root mean square of the residuals."""
        return float(np.sqrt(np.mean(self.residuals_kev**2)))

    def model_of(self, which: int, curve: SCurve) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        """Return the fitted S-curve of one source as a function of codes."""
        lines_dac = self.offset_dac + self.gain_dac_per_kev * curve.energies_kev
        return lambda dacs: expected_counts(dacs, lines_dac, curve.shares, self.shapes[which], self.offset_dac)

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
    dacs: ArrayLike,
    lines_dac: NDArray[np.float64],
    shares: NDArray[np.float64],
    shape: NDArray[np.float64],
    offset_dac: float,
) -> NDArray[np.float64]:
    """Return the model of an S-curve, valid above half the energy of its lines: (n_steps,) float64.

    Parameters
    ----------
    dacs : (n_steps,) float
    lines_dac, shares : (n_lines,) float64
        Code at which each line's whole charge stands, and its share of the source.
    shape : (4,) float64
        Height, spread, constant and width.
    offset_dac : float
        Code of no charge, from which shared charge counts.
    """
    height, spread, constant, width = shape
    spread = float(np.clip(spread, SMALLEST_SPREAD, WIDEST_SPREAD))
    deepest = min(FULLEST, 0.5 / spread)  # in widths of the cloud, from the border to the pixel's middle
    q = deepest * _NODES
    got = np.append(ndtr(q), 1.0)
    area = np.append(4 * spread * (1 - 2 * spread * q) * deepest * _WEIGHTS, (1 - 2 * spread * deepest) ** 2)
    charges_dac = offset_dac + np.multiply.outer(lines_dac - offset_dac, got).ravel()
    weights = np.multiply.outer(shares, area).ravel()
    below = (np.asarray(dacs, dtype=np.float64)[:, None] - charges_dac) / (np.sqrt(2) * max(abs(width), 1e-3))
    # einsum, not @: threads of a linear-algebra library cost more than such small products
    return 0.5 * height * np.einsum("ij,j->i", erfc(below), weights) + constant


def fit_energy_scale(
    curves: Sequence[SCurve], *, guess: tuple[float, float] | None = None, like: EnergyScale | None = None
) -> EnergyScale:
    """Fit one straight energy scale to the S-curves of several sources together.

    Each source has its own intensity, spread of charge and constant; offset, gain, and how wide edges are, are common.

    Parameters
    ----------
    curves : two or more of different energies
    guess : (offset in DAC, gain in DAC per keV), optional
        Where to start; without it, the steepest point of each curve tells.
    like : EnergyScale, optional
        A scale of the same sources to start from instead.
    """
    energies = np.asarray([curve.energy_kev for curve in curves])
    if len(curves) < 2 or np.ptp(energies) == 0:
        raise ValueError(f"{len(curves)} curves cannot give a scale; allowed: two or more of different energies")
    if like is not None:
        offset, gain = like.offset_dac, like.gain_dac_per_kev
    elif guess is None:
        gain, offset = np.polyfit(energies, [steepest_dac(curve.dacs, curve.counts) for curve in curves], 1)
    else:
        offset, gain = guess
    if like is None:
        blur, shapes = np.array([0.5 * gain, 0.01]), np.stack([_start_of_shape(curve) for curve in curves])
    else:
        blur, shapes = like.blur, like.shapes[:, :3]
    start = np.concatenate([[offset, gain], blur, shapes.ravel()])
    low = np.concatenate([[-np.inf, 0.1 * gain, 0.05, 0], *([[0, SMALLEST_SPREAD, 0]] * len(curves))])
    high = np.concatenate([[np.inf, 10 * gain, 8 * gain, 0.3], *([[np.inf, WIDEST_SPREAD, np.inf]] * len(curves))])
    own = [np.r_[: len(COMMON), len(COMMON) + 3 * which : len(COMMON) + 3 * which + 3] for which in range(len(curves))]

    def misfit(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([_misfit(curve, parameters[mine]) for curve, mine in zip(curves, own, strict=True)])

    def slopes(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """Differentiate each source by its own parameters only, which is most of the time saved."""
        blocks = []
        for curve, mine in zip(curves, own, strict=True):
            values = parameters[mine]
            steps = DIFFERENCE * np.maximum(np.abs(values), 0.01)
            at, *beside = (_misfit(curve, moved) for moved in (values, *(values + np.diag(steps))))
            block = np.zeros((len(curve.dacs), len(parameters)))
            block[:, mine] = (np.stack(beside, axis=1) - at[:, None]) / steps
            blocks.append(block)
        return np.concatenate(blocks)

    start = np.clip(start, low + 1e-9, high)
    solve: Any = least_squares  # its types know no function for the derivatives
    found = solve(misfit, start, jac=slopes, bounds=(low, high), x_scale="jac", max_nfev=200)
    offset, gain = float(found.x[0]), float(found.x[1])
    freedom = max(len(found.fun) - len(found.x), 1)
    chi2_ratio = float(2 * found.cost / freedom)
    positions = np.asarray([_position_alone(curve, found.x[mine]) for curve, mine in zip(curves, own, strict=True)])
    widths = _widths_dac(found.x[: len(COMMON)], energies)
    return EnergyScale(
        offset_dac=offset,
        gain_dac_per_kev=gain,
        covariance=np.linalg.pinv(found.jac.T @ found.jac)[:2, :2] * max(chi2_ratio, 1.0),
        sources=tuple(curve.source for curve in curves),
        energies_kev=energies,
        positions_dac=positions,
        residuals_kev=(positions - offset) / gain - energies,
        widths_dac=widths,
        blur=found.x[2:4],
        shapes=np.column_stack([found.x[len(COMMON) :].reshape(len(curves), 3), widths]),
        chi2_ratio=chi2_ratio,
    )


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


def _position_alone(curve: SCurve, parameters: NDArray[np.float64]) -> float:
    """Fit one source by itself: where it stands, with its own height, spread and constant; the rest is joint."""
    offset, gain = parameters[:2]
    shape = parameters[len(COMMON) :]

    def alone(values: NDArray[np.float64]) -> NDArray[np.float64]:
        moved = parameters.copy()
        moved[0], moved[len(COMMON) :] = offset + values[0], values[1:]
        return _misfit(curve, moved)

    low = np.array([-np.inf, 0, SMALLEST_SPREAD / 2, -1e-9])
    high = np.array([np.inf, np.inf, 2 * WIDEST_SPREAD, np.inf])
    by = least_squares(alone, np.concatenate([[0.0], shape]), bounds=(low, high), x_scale="jac", max_nfev=100).x[0]
    return float(offset + gain * curve.energy_kev + by)


def _start_of_shape(curve: SCurve) -> NDArray[np.float64]:
    """Guess height, spread and constant of one source."""
    constant = float(max(curve.counts.min(), 0))
    return np.asarray([max(1.3 * (curve.counts.max() - constant), 1.0), 0.05, constant + 1e-3])


def _widths_dac(common: NDArray[np.float64], energies_kev: ArrayLike) -> NDArray[np.float64]:
    """Return the width of edges: noise, which is the same everywhere, and what grows with the energy, in squares."""
    _, gain, noise_dac, growth = common
    return np.hypot(noise_dac, growth * gain * np.asarray(energies_kev))


def _misfit(curve: SCurve, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (model - counts) / sigma at each code, for the common parameters and a height, a spread and a constant."""
    offset, gain = parameters[:2]
    width = _widths_dac(parameters[: len(COMMON)], curve.energy_kev)
    shape = np.append(parameters[len(COMMON) :], width)
    model = expected_counts(curve.dacs, offset + gain * curve.energies_kev, curve.shares, shape, offset)
    sigma = np.sqrt(np.maximum(curve.counts, 1) + (RELATIVE_ERROR * np.ptp(curve.counts)) ** 2)
    return (model - curve.counts) / sigma
