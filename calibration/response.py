"""What a counter counts of a photon of each energy: a parametric response, fitted to measurements of this detector.

The form is physics, the numbers are measured. A photon is absorbed by the photo-effect or scatters; above an edge its
vacancy may send a K photon out of the pixels that count it, which leaves less charge there and may count elsewhere;
charge spreads over the pixel's borders or is lost on its way; noise blurs the rest. How far K photons get, how wide the
charge spreads, how much is lost, how wide a line is, where each threshold really stands, and through how much aluminium
and at what voltage the tube shines, is fitted to S-curves of sources with lines, to the open beam and to plates.

Everything is per incident photon. What it does not know: pile-up (`calibration.count_rate` takes it out before),
differences between pixels, scatter from the object.

# Ref: tail of incomplete collection: G. W. Phillips, K. W. Marlow 1976, Nucl. Instrum. Meth. 137, 525 (exponential).
# Ref: charge sharing of a Gaussian cloud at the borders of a square pixel: error functions, reference on spectral CT,
#      section 4.3; range of electrons: K. Kanaya, S. Okayama 1972, J. Phys. D 5, 43.
# Ref: escape of isotropic photons from a slab, exponential integral E2: S. Chandrasekhar, Radiative Transfer, 1960,
#      chapter 1.
# Ref: edges, yields, lines, attenuation: `calibration.attenuation`; tube: `calibration.spectrum`.
# Ref: pair energies and Fano factors: common values (CdTe 4.43 eV and 0.1 as in geant4medipix `DetectorConfig.ini`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import make_interp_spline
from scipy.optimize import OptimizeResult, least_squares
from scipy.special import expn, ndtr, ndtri

from calibration.attenuation import (
    Material,
    Process,
    k_shell,
    linear_attenuation_per_mm,
    mass_attenuation_cm2_g,
    material,
)
from calibration.progress import Progress, telling
from calibration.spectrum import emission, transmission, tube_spectrum
from firmware_iface.errors import CalibrationMissing, WrongUsage

PAIR_KEV: Mapping[str, float] = {"silicon": 3.62e-3, "gaas": 4.2e-3, "cdte": 4.43e-3, "czt": 4.64e-3}
FANO: Mapping[str, float] = {"silicon": 0.115, "gaas": 0.12, "cdte": 0.1, "czt": 0.1}
ENERGY_STEP_KEV = 0.5
CURVE_STEP_KEV = 0.6
LOWEST_LINE_KEV = 1.0
ELECTRON_REST_KEV = 510.99895
SHARE_FLOOR = 5e-3
"""Relative error of the model for a share of the open beam or a point of an S-curve, beside counting statistics."""
TRANSMISSION_FLOOR = 5e-4
"""The same for what a plate lets through, where most of what the model misses cancels."""
_TAIL = -np.log(1 - (np.arange(5) + 0.5) / 5)
"""Five losses that stand for an exponential law."""
_HERMITE, _HERMITE_WEIGHT = (values[:, None, None] for values in np.polynomial.hermite_e.hermegauss(7))
_HERMITE_WEIGHT = _HERMITE_WEIGHT / _HERMITE_WEIGHT.sum()
LARGEST_CLOUD = 0.4

# fmt: off
PARAMETERS: Mapping[str, tuple[float, float, float, float]] = {
    "noise_kev": (0.8, 0.05, 6.0, np.inf),
    "width_relative": (0.015, 0.0, 0.15, 0.02),
    "capture_mm": (0.05, 0.0, 1.0, 0.1),
    "veto_mm": (0.02, 0.0, 1.0, 0.1),
    "cloud_mm": (0.010, 0.002, 0.05, np.inf),
    "cloud_growth_relative": (0.3, 0.0, 2.0, 0.2),
    "tail_share": (0.05, 0.0, 0.9, 0.1),
    "tail_relative": (0.05, 0.005, 0.5, 0.05),
    "thickness_relative": (1.0, 0.5, 1.5, 0.03),
    "filter_mm": (3.0, 0.0, 30.0, np.inf),
    "kvp_relative": (1.0, 0.9, 1.1, 0.01),
    "window_mm": (0.5, 0.0, 10.0, 1.0),
}
# fmt: on
"""Start, lowest, highest, and how well each is known beforehand (standard deviation about the start).

Noise of a line, and its width in proportion to energy (gains of the pixels); how far from its origin a K photon is
still part of the same count, and how much further it must get to count by itself; standard deviation of the charge
cloud, and its growth with the electrons' range; share of events that lose charge, and the mean share they lose;
thickness of the sensor over its nominal one; aluminium in the tube's beam, its true voltage over the set one, aluminium
before the sources.
"""
THRESHOLD_SIGMA_KEV = 0.15
"""How well the energy calibration knows each threshold: they are parameters too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorModel:
    """What is known of the sensor beforehand."""

    material: str = "cdte"
    thickness_mm: float = 1.0
    pitch_mm: float = 0.110
    is_csm: bool = True

    def __post_init__(self) -> None:
        if self.material not in PAIR_KEV:
            raise WrongUsage(f"no sensor of {self.material!r}; allowed: {', '.join(PAIR_KEV)}")
        if not (self.thickness_mm > 0 and self.pitch_mm > 0):
            raise WrongUsage(f"a sensor of {self.thickness_mm} mm, pitch {self.pitch_mm} mm; allowed: above 0")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceCurve:
    """The S-curve of a source with lines, the same for a wide range of thresholds.

    Attributes
    ----------
    source : str
        A name of `calibration.spectrum.emission`.
    counter : (n_points,) int
        Which of the counters counted each point.
    thresholds_kev : (n_points,) float64
        Where its threshold stood, as the energy calibration says.
    counts : (n_points,) float64
        Events above it, summed over the good pixels.
    """

    source: str
    counter: NDArray[np.integer]
    thresholds_kev: NDArray[np.float64]
    counts: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlateMeasurement:
    """What each bin counts behind layers of known matter.

    Attributes
    ----------
    layers_mm : mapping of material name or Material to thickness
        Along the mean ray; nothing is the open beam.
    counts : (n_bins,) float64
        Mean counts, in any unit that is the same for all plates.
    sigma_relative : (n_bins,) float64
        Their relative standard error.
    """

    layers_mm: Mapping[str | Material, float]
    counts: NDArray[np.float64]
    sigma_relative: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Response:
    """A fitted response, and the spectrum of the tube it was fitted with.

    Attributes
    ----------
    sensor : SensorModel
    tube_kvp : float
        As set.
    parameter_names : tuple of str
        Those of PARAMETERS that the mode shows (charge summing hides the cloud, sharing the tail), then
        ``threshold_N_kev``: how much higher the threshold of each counter stands than it was set.
    parameters : (n_parameters,) float64
    covariance : (n_parameters, n_parameters) float64
        Enlarged where the model misses the data by more than their errors.
    chi_square_ratio : float
        Chi square over `n_degrees` degrees of freedom; above 1 where the form is not exact.
    thresholds_kev : tuple of float
        As set while the plates were measured.
    plates : tuple of str
        The plates of the fit and after them those that were held back to check it.
    n_checks : int
        How many were held back.
    measured, predicted : (n_plates, n_bins) float64
        Transmission of each plate.
    """

    sensor: SensorModel
    tube_kvp: float
    parameter_names: tuple[str, ...]
    parameters: NDArray[np.float64]
    covariance: NDArray[np.float64]
    chi_square_ratio: float
    n_degrees: int
    thresholds_kev: tuple[float, ...]
    plates: tuple[str, ...]
    n_checks: int
    measured: NDArray[np.float64]
    predicted: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = len(self.parameter_names)
        if self.parameters.shape != (n,) or self.covariance.shape != (n, n):
            raise ValueError(
                f"{n} names, parameters {self.parameters.shape}, covariance {self.covariance.shape}; allowed: one size"
            )

    @property
    def figures(self) -> dict[str, object]:
        """What tells whether it is good: how far the plates that were held back are from what it foretells."""
        error = np.abs(self.predicted / self.measured - 1)[-self.n_checks :] if self.n_checks else np.zeros((0, 1))
        return {
            "worst_check_percent": round(100 * float(error.max()), 3) if error.size else None,
            "chi_square_ratio": round(self.chi_square_ratio, 2),
            "filter_mm": round(self.values["filter_mm"], 2),
            "noise_kev": round(self.values["noise_kev"], 3),
        }

    @property
    def values(self) -> Mapping[str, float]:
        """The parameters by their names; one that this mode does not show stands at its start."""
        starts = {name: start for name, (start, *_) in PARAMETERS.items()}
        return starts | dict(zip(self.parameter_names, map(float, self.parameters), strict=True))

    def matrix(self, thresholds_kev: ArrayLike, energies_kev: ArrayLike) -> NDArray[np.float64]:
        """Return counts in each bin per incident photon of each energy: (n_bins, n_energies) float64.

        Parameters
        ----------
        thresholds_kev : (n_bins,) float
            As set, rising; the last bin is open. The measured error of each counter's threshold is added, where as many
            are asked for as were measured.
        energies_kev : (n_energies,) float
        """
        thresholds = np.asarray(thresholds_kev, dtype=np.float64)
        if (np.diff(thresholds) <= 0).any():
            raise WrongUsage(f"the thresholds are {thresholds.tolist()} keV; allowed: rising")
        above = counts_above(self.true_kev(thresholds), energies_kev, self.sensor, self.values)
        return above - np.vstack([above[1:], np.zeros_like(above[:1])])

    def spectrum(self, energies_kev: ArrayLike) -> NDArray[np.float64]:
        """Return the share of the tube's photons in each energy bin, a uniform grid: (n_energies,) float64."""
        photons = _tube(np.asarray(energies_kev, dtype=np.float64), self.tube_kvp, self.values)
        return photons / photons.sum()

    def transmission(
        self, layers_mm: Mapping[str | Material, float], thresholds_kev: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Return which share of the open beam's counts each bin keeps behind layers of matter: (n_bins,) float64."""
        energies = _grid(self.tube_kvp)
        seen = self.matrix(self.thresholds_kev if thresholds_kev is None else thresholds_kev, energies)
        seen = seen * self.spectrum(energies)
        return (seen @ _through(layers_mm, energies)) / seen.sum(axis=1)

    def true_kev(self, thresholds_kev: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where thresholds really stand that are set to these energies."""
        n = len(self.thresholds_kev)
        off = self.parameters[-n:]
        return thresholds_kev + (off if len(thresholds_kev) == n else off.mean())


def counts_above(
    thresholds_kev: ArrayLike, energies_kev: ArrayLike, sensor: SensorModel, values: Mapping[str, float]
) -> NDArray[np.float64]:
    """Return mean counts above each threshold per incident photon: (n_thresholds, n_energies) float64.

    Parameters
    ----------
    thresholds_kev : (n_thresholds,) float
        Where they really stand.
    energies_kev : (n_energies,) float
    values : mapping of str to float
        By the names of PARAMETERS.
    """
    thresholds = np.asarray(thresholds_kev, dtype=np.float64)[:, None]
    energies = np.asarray(energies_kev, dtype=np.float64)
    matter = material(sensor.material)
    thickness_mm = sensor.thickness_mm * values["thickness_relative"]
    photo, scattered = (per_mm_of(matter, energies, process) for process in ("photo", "incoherent"))
    absorbed = -np.expm1(-(photo + scattered) * thickness_mm)
    by_photo = _photo(thresholds, energies, sensor, values, generations=2)
    by_scatter = _scattered(thresholds, energies, sensor, values)
    return absorbed * (photo * by_photo + scattered * by_scatter) / (photo + scattered)


def _photo(
    thresholds: NDArray[np.float64],
    energies: NDArray[np.float64],
    sensor: SensorModel,
    values: Mapping[str, float],
    generations: int,
) -> NDArray[np.float64]:
    """Return counts per photon that is absorbed by the photo-effect: (n_thresholds, n_energies)."""
    kept = np.ones_like(energies)
    counts = np.zeros((len(thresholds), len(energies)))
    if generations:
        thickness_mm = sensor.thickness_mm * values["thickness_relative"]
        for line_kev, chance in k_photons(sensor.material, tuple(energies)):
            if not chance.any():
                continue
            line_per_mm = float(per_mm_of(material(sensor.material), np.array([line_kev]), "total")[0])
            away = chance * np.exp(-values["capture_mm"] * line_per_mm)
            kept = kept - away
            counts += away * cluster(thresholds, energies - line_kev, sensor, values)
            stays = 1 - escaping(tuple(energies), sensor.material, round(thickness_mm, 4), line_per_mm)
            apart = away * np.exp(-values["veto_mm"] * line_per_mm) * stays
            counts += apart * _photo(thresholds, np.array([line_kev]), sensor, values, generations - 1)
    return counts + kept * cluster(thresholds, energies, sensor, values)


def _scattered(
    thresholds: NDArray[np.float64], energies: NDArray[np.float64], sensor: SensorModel, values: Mapping[str, float]
) -> NDArray[np.float64]:
    """Return counts per photon that scatters: its electron's, flat up to the highest, and its own when absorbed."""
    ratio = 2 * energies / ELECTRON_REST_KEV
    highest_kev = energies * ratio / (1 + ratio)
    electron = np.clip(1 - thresholds / highest_kev, 0, 1)
    left_kev = np.maximum(energies - highest_kev / 2, LOWEST_LINE_KEV)
    per_mm = per_mm_of(material(sensor.material), left_kev, "photo")
    # From anywhere in the slab in any direction: half of the thickness is the mean way out.
    caught = -np.expm1(-per_mm * sensor.thickness_mm / 2)
    return electron + caught * cluster(thresholds, left_kev, sensor, values)


def cluster(
    thresholds: NDArray[np.float64], charges_kev: NDArray[np.float64], sensor: SensorModel, values: Mapping[str, float]
) -> NDArray[np.float64]:
    """Return counts per deposit of charge at one spot, its tail included: (n_thresholds, n_charges)."""
    charges = np.maximum(charges_kev, 1e-3)
    if not sensor.is_csm:  # sharing hides the tail
        return np.where(charges_kev > 0, _spread(thresholds, charges, sensor, values), 0)
    tail = values["tail_share"]
    counts = (1 - tail) * _spread(thresholds, charges, sensor, values)
    for loss in values["tail_relative"] * _TAIL:
        counts += tail / len(_TAIL) * _spread(thresholds, charges * np.exp(-loss), sensor, values)
    return np.where(charges_kev > 0, counts, 0)


def _spread(
    thresholds: NDArray[np.float64], charges: NDArray[np.float64], sensor: SensorModel, values: Mapping[str, float]
) -> NDArray[np.float64]:
    """Return counts per deposit that is collected whole: summed in one pixel, or shared with neighbours."""
    sigma, cloud = blur(charges, sensor, values)
    if sensor.is_csm:
        return ndtr((charges - thresholds) / sigma)
    share = (thresholds + _HERMITE * sigma) / charges
    return np.einsum("gtc,gij->tc", _area(share, cloud), _HERMITE_WEIGHT)


def blur(
    charges: NDArray[np.float64], sensor: SensorModel, values: Mapping[str, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the standard deviations of noise, in keV, and of the cloud, in pixels, of deposits of charge."""
    noise_kev2 = FANO[sensor.material] * PAIR_KEV[sensor.material] * charges + values["noise_kev"] ** 2
    sigma = np.sqrt(noise_kev2 + (values["width_relative"] * charges) ** 2)
    cloud_mm = np.hypot(values["cloud_mm"], values["cloud_growth_relative"] * _range_mm(sensor.material, charges))
    return sigma, np.minimum(cloud_mm / sensor.pitch_mm, LARGEST_CLOUD)


def _area(share: NDArray[np.float64], cloud: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return in how many pixels a deposit at a random place leaves more than a share of its charge.

    ``cloud`` is the cloud's standard deviation in pixels, one for each deposit (the last axis).
    """
    shares, clouds, table = _area_table()
    x = np.clip((share - shares[0]) / (shares[1] - shares[0]), 0, len(shares) - 1.001)
    y = np.clip((cloud - clouds[0]) / (clouds[1] - clouds[0]), 0, len(clouds) - 1.001)
    i, j = x.astype(np.intp), np.broadcast_to(y.astype(np.intp), x.shape)
    dx, dy = x - i, y - j
    low = table[i, j] * (1 - dx) + table[i + 1, j] * dx
    high = table[i, j + 1] * (1 - dx) + table[i + 1, j + 1] * dx
    return np.where(share < 1, low * (1 - dy) + high * dy, 0)


@lru_cache(maxsize=1)
def _area_table() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Tabulate `_area`: shares (n,), clouds (m,), and the area (n, m).

    Along one axis the share inside is Phi(w), w the distance to the nearest border in standard deviations; the axes
    are independent.
    """
    shares, clouds = np.linspace(0.01, 1.0, 298), np.linspace(0.005, LARGEST_CLOUD, 80)
    nodes, weights = np.polynomial.legendre.leggauss(32)
    u, cloud = shares[:, None], clouds[None, :]
    lowest = ndtri(u)
    lowest = np.clip(lowest, -8, 8)
    highest = np.maximum(0.5 / cloud, lowest)
    w = lowest[..., None] + (highest - lowest)[..., None] * (nodes + 1) / 2
    inside = np.clip(u[..., None] / ndtr(w), 1e-15, 1 - 1e-15)
    across = np.clip(1 - 2 * cloud[..., None] * ndtri(inside), 0, None)
    return shares, clouds, cloud * (highest - lowest) * (across @ weights)


@lru_cache(maxsize=64)
def k_photons(name: str, energies: tuple[float, ...]) -> tuple[tuple[float, NDArray[np.float64]], ...]:
    """Return the K photons of a sensor, alpha and beta of each element: energy, and chance per photo-absorption."""
    matter, energies_kev = material(name), np.asarray(energies)
    parts = {
        z: fraction * mass_attenuation_cm2_g(_element(z), energies_kev, process="photo")
        for z, fraction in matter.mass_fractions
    }
    total = np.sum(list(parts.values()), axis=0)
    photons = []
    for z, part in parts.items():
        shell = k_shell(z)
        chance = part / total * shell.fraction * shell.fluorescence_yield * (energies_kev >= shell.edge_kev)
        lines = [line for line in shell.lines if line.energy_kev >= LOWEST_LINE_KEV]
        middle = 0.94 * shell.edge_kev  # between alpha and beta of every element of a sensor
        for group in ([x for x in lines if x.energy_kev < middle], [x for x in lines if x.energy_kev >= middle]):
            fraction = sum(line.fraction for line in group)
            if fraction > 0:
                mean_kev = sum(line.energy_kev * line.fraction for line in group) / fraction
                photons.append((float(mean_kev), chance * fraction))
    return tuple(photons)


@lru_cache(maxsize=256)
def escaping(energies: tuple[float, ...], name: str, thickness_mm: float, line_per_mm: float) -> NDArray[np.float64]:
    """Return the chance that a K photon leaves the sensor, from where photons of each energy are absorbed."""
    per_mm = per_mm_of(material(name), np.asarray(energies), "total")
    nodes, weights = np.polynomial.legendre.leggauss(12)
    depth = thickness_mm * (nodes + 1) / 2
    out = 0.5 * (expn(2, line_per_mm * depth) + expn(2, line_per_mm * (thickness_mm - depth)))
    here = weights * np.exp(-per_mm[:, None] * depth)
    return (here @ out) / here.sum(axis=1)


@lru_cache(maxsize=128)
def _element(z: int) -> Material:
    return Material(name=f"Z={z}", density_g_cm3=1.0, mass_fractions=((z, 1.0),))


def per_mm_of(matter: Material, energies_kev: NDArray[np.float64], process: Process) -> NDArray[np.float64]:
    """Return the linear attenuation of a process: (n_energies,) float64."""
    return _cached_per_mm(matter, energies_kev.tobytes(), process)


@lru_cache(maxsize=512)
def _cached_per_mm(matter: Material, energies: bytes, process: Process) -> NDArray[np.float64]:
    energies_kev = np.frombuffer(energies, dtype=np.float64)
    return mass_attenuation_cm2_g(matter, energies_kev, process=process) * matter.density_g_cm3 / 10


def _range_mm(name: str, energies_kev: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the range of electrons by Kanaya and Okayama, with A = 2.3 Z."""
    matter = material(name)
    z = sum(number * fraction for number, fraction in matter.mass_fractions)
    return 1e-3 * 0.0276 * 2.3 * z / (z**0.889 * matter.density_g_cm3) * energies_kev**1.67


def _grid(kvp: float) -> NDArray[np.float64]:
    return np.arange(8.25, 1.03 * kvp, ENERGY_STEP_KEV)


def _tube(energies_kev: NDArray[np.float64], kvp: float, values: Mapping[str, float]) -> NDArray[np.float64]:
    return tube_spectrum(
        float(np.clip(kvp * values["kvp_relative"], 20, 150)), energies_kev, {"aluminium": values["filter_mm"]}
    )


def _through(layers_mm: Mapping[str | Material, float], energies_kev: NDArray[np.float64]) -> NDArray[np.float64]:
    depth = np.zeros_like(energies_kev)
    for matter, thickness_mm in layers_mm.items():
        depth += linear_attenuation_per_mm(matter, energies_kev) * thickness_mm
    return np.exp(-depth)


def fit_response(
    sensor: SensorModel,
    *,
    tube_kvp: float,
    thresholds_kev: Sequence[float],
    open_beam: PlateMeasurement,
    plates: Mapping[str, PlateMeasurement],
    checks: Mapping[str, PlateMeasurement],
    curves: Sequence[SourceCurve] = (),
) -> Generator[Progress, None, Response]:
    """Fit the response to what was measured; each time that it is tried with other parameters is a step.

    Parameters
    ----------
    thresholds_kev : sequence of float
        As set, for the open beam and the plates.
    open_beam, plates : PlateMeasurement
        By name; at least four plates.
    checks : mapping of str to PlateMeasurement
        Held back: the fit does not see them, only the record compares them.
    curves : sequence of SourceCurve
        One for each source; without any, the line's shape comes from beforehand.

    Raises
    ------
    CalibrationMissing
        There are too few plates, or a bin is empty.
    """
    if len(plates) < 4:
        raise CalibrationMissing(
            f"the response is to be fitted to {len(plates)} plates; allowed: 4 or more",
            hint="measure them: mpxct calibrate wedge",
        )
    for name, plate in {"the open beam": open_beam, **plates, **checks}.items():
        if not (plate.counts > 0).all():
            raise CalibrationMissing(
                f"bin {1 + int(np.argmin(plate.counts > 0))} counts nothing behind {name}",
                hint="use thinner plates, more frames or more current",
            )
    hidden = "cloud" if sensor.is_csm else "tail"
    own = [name for name in PARAMETERS if not name.startswith(hidden)]
    names = (*own, *(f"threshold_{k}_kev" for k in range(len(thresholds_kev))))
    threshold = (0.0, -2.0, 2.0, THRESHOLD_SIGMA_KEV)
    start, lowest, highest, known = np.array([PARAMETERS.get(name, threshold) for name in names]).T
    starts = {name: first for name, (first, *_) in PARAMETERS.items()}
    misfit = _Misfit(sensor, tube_kvp, np.asarray(thresholds_kev, dtype=np.float64), open_beam, plates, curves)

    def deviation(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([misfit(starts | dict(zip(names, map(float, p), strict=True))), (p - start) / known])

    def solve(tell: Callable[[Progress], None]) -> OptimizeResult:
        tried = count(1)

        def told_deviation(p: NDArray[np.float64]) -> NDArray[np.float64]:
            tell(Progress("fit of the response", next(tried), 0))
            return deviation(p)

        return least_squares(
            told_deviation,
            start,
            bounds=(lowest, highest),
            x_scale=np.where(np.isfinite(known), known, start),
            ftol=1e-4,
            xtol=1e-5,
            max_nfev=40,
        )

    fit = yield from telling(solve)
    n_degrees = len(fit.fun) - 2 * len(start)
    ratio = 2 * float(fit.cost) / max(n_degrees, 1)
    covariance = np.linalg.pinv(fit.jac.T @ fit.jac) * max(ratio, 1.0)
    every = {**plates, **checks}
    response = Response(
        sensor=sensor,
        tube_kvp=tube_kvp,
        parameter_names=names,
        parameters=fit.x,
        covariance=covariance,
        chi_square_ratio=ratio,
        n_degrees=n_degrees,
        thresholds_kev=tuple(map(float, thresholds_kev)),
        plates=tuple(every),
        n_checks=len(checks),
        measured=np.stack([plate.counts / open_beam.counts for plate in every.values()]),
        predicted=np.zeros((len(every), len(thresholds_kev))),
    )
    response.predicted[:] = [response.transmission(plate.layers_mm) for plate in every.values()]
    return response


class _Misfit:
    """How far the data are from what parameters make of them, in standard errors."""

    def __init__(
        self,
        sensor: SensorModel,
        tube_kvp: float,
        thresholds_kev: NDArray[np.float64],
        open_beam: PlateMeasurement,
        plates: Mapping[str, PlateMeasurement],
        curves: Sequence[SourceCurve],
    ) -> None:
        self._sensor, self._kvp, self._thresholds_kev, self._curves = sensor, tube_kvp, thresholds_kev, curves
        self._energies = _grid(tube_kvp)
        self._through = np.stack([_through(plate.layers_mm, self._energies) for plate in plates.values()], axis=1)
        self._shares = np.log(open_beam.counts / open_beam.counts.sum())
        self._share_sigma = np.hypot(SHARE_FLOOR, open_beam.sigma_relative)
        self._passed = np.stack([np.log(plate.counts / open_beam.counts) for plate in plates.values()], axis=1)
        sigma = [np.hypot(plate.sigma_relative, open_beam.sigma_relative) for plate in plates.values()]
        self._passed_sigma = np.hypot(np.stack(sigma, axis=1), TRANSMISSION_FLOOR)

    def __call__(self, values: Mapping[str, float]) -> NDArray[np.float64]:
        off = np.array([values[f"threshold_{k}_kev"] for k in range(len(self._thresholds_kev))])
        above = counts_above(self._thresholds_kev + off, self._energies, self._sensor, values)
        seen = (above - np.vstack([above[1:], np.zeros_like(above[:1])])) * _tube(self._energies, self._kvp, values)
        seen = np.maximum(seen, 0)
        flat = np.maximum(seen.sum(axis=1), 1e-30)
        passed = np.log(np.maximum((seen @ self._through) / flat[:, None], 1e-30))
        return np.concatenate(
            [
                (np.log(flat / flat.sum()) - self._shares) / self._share_sigma,
                ((passed - self._passed) / self._passed_sigma).ravel(),
                *(self._of_curve(curve, off, values) for curve in self._curves),
            ]
        )

    def _of_curve(
        self, curve: SourceCurve, off: NDArray[np.float64], values: Mapping[str, float]
    ) -> NDArray[np.float64]:
        lowest_kev = curve.thresholds_kev.min() - 4 * values["noise_kev"]  # a line below all thresholds is not seen
        lines = [line for line in emission(curve.source) if line.energy_kev > lowest_kev]
        energies = np.array([line.energy_kev for line in lines])
        photons = np.array([line.fraction for line in lines]) * transmission(
            {"aluminium": values["window_mm"]}, energies
        )
        stands_kev = curve.thresholds_kev + off[curve.counter]
        grid_kev = np.arange(stands_kev.min() - CURVE_STEP_KEV, stands_kev.max() + 2 * CURVE_STEP_KEV, CURVE_STEP_KEV)
        above = counts_above(grid_kev, energies, self._sensor, values) @ photons
        model = make_interp_spline(grid_kev, above, k=3)(stands_kev)
        sigma = np.sqrt(curve.counts + 1 + (SHARE_FLOOR * curve.counts.max()) ** 2)
        strength = (model / sigma**2) @ curve.counts / ((model / sigma) @ (model / sigma))
        return (curve.counts - strength * model) / sigma
