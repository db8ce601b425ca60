"""What a scan will tell before it is made: Cramer-Rao noise of materials, per ray and per voxel, by bins and dose.

Counts of a bin behind the sample are Poisson's, and independent: one photon counts once in a pixel. Their Fisher
information bounds the noise of the materials' paths along a ray; filtered back-projection carries it to the voxels.
Everything is linear in the counts above single thresholds, which are tabulated once: a set of thresholds is then a few
differences of rows.

What it does not know: counts that charge sharing gives to neighbouring pixels are correlated, so that without charge
summing the noise of larger regions is underrated, by up to the mean number of counts per photon; scatter; pile-up.

# Ref: Fisher information of Poisson counts: Roessl and Herrmann 2009, Phys. Med. Biol. 54, 1307.
# Ref: noise of filtered back-projection: Kak and Slaney 1988, Principles of Computerized Tomographic Imaging, chapter
#      5.2; linear interpolation between samples is a filter of sinc^2, whose aliases add.
# Ref: contrast to noise of 5 as what can be told: Rose 1948, J. Opt. Soc. Am. 38, 196.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import HIGHEST_KEV, linear_attenuation_per_mm, mass_attenuation_cm2_g, material
from calibration.geometry import Geometry
from calibration.response import PARAMETERS, Response, SensorModel, counts_above
from calibration.spectrum import ANODE_DEG, tube_spectrum
from firmware_iface.errors import WrongUsage
from reconstruction.ramp import ramp_filter
from reconstruction.spectral.model import PER_MM_OF_CM2_G
from reconstruction.spectral.sample import Sample, Segments, segments

STEP_KEV = 0.5
ENERGIES_KEV = np.arange(5.25, HIGHEST_KEV, STEP_KEV)
"""Middles of the bins of energy that everything here is summed over."""
THRESHOLDS_KEV = np.arange(6.0, 150.25, STEP_KEV)
"""Where thresholds may stand."""
LOWEST_KVP, HIGHEST_KVP = 20.0, 150.0
"""Of the tube's model."""
ROSE_CNR = 5.0
N_LINES = 6
"""Lines through each rod, over half a turn."""
_N_ALIASES = 2
_N_ANGLES = 24

Counter = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
"""Counts above thresholds, (n_thresholds,) keV, per photon of each energy, (n_energies,) keV."""


def fitted_counter(response: Response) -> Counter:
    """Return what a calibration has measured of its detector."""

    def counter(thresholds_kev: NDArray[np.float64], energies_kev: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.cumsum(response.matrix(thresholds_kev, energies_kev)[::-1], axis=0)[::-1]

    return counter


def stated_counter(sensor: SensorModel, values: Mapping[str, float] | None = None) -> Counter:
    """Return a detector that nobody has measured: the response's form, with the values that it starts from."""
    starts = {name: start for name, (start, *_) in PARAMETERS.items()} | dict(values or {})
    return lambda thresholds_kev, energies_kev: counts_above(thresholds_kev, energies_kev, sensor, starts)


def ideal_counter(sensor: SensorModel | None = None) -> Counter:
    """Return a detector that counts each photon at its energy; all of them, or those that a sensor absorbs."""

    def counter(thresholds_kev: NDArray[np.float64], energies_kev: NDArray[np.float64]) -> NDArray[np.float64]:
        share = np.ones_like(energies_kev)
        if sensor is not None:
            share = -np.expm1(-linear_attenuation_per_mm(material(sensor.material), energies_kev) * sensor.thickness_mm)
        return np.where(energies_kev >= thresholds_kev[:, None], share, 0.0)

    return counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Beam:
    """A tube's beam: its voltage as set, and every filter in it with its thickness; `kvp_ratio` is true over set."""

    kvp: float
    filters_mm: Mapping[str, float]
    anode_deg: float = ANODE_DEG
    kvp_ratio: float = 1.0

    def photons(self, distance_mm: float) -> NDArray[np.float64]:
        """Return photons per mm2 and mAs at a distance, in each bin of ENERGIES_KEV."""
        true_kvp = min(max(self.kvp * self.kvp_ratio, LOWEST_KVP), HIGHEST_KVP)
        return tube_spectrum(true_kvp, ENERGIES_KEV, self.filters_mm, self.anode_deg, distance_mm=distance_mm)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Counts above every threshold behind a sample, in one beam, of one mAs a view.

    Attributes
    ----------
    materials : tuple of str
    counts : (n_thresholds, n_lines, 1 + n_materials) float64
        Counts in a pixel at each of THRESHOLDS_KEV, and minus their slope with the path through each material.
    rod, own : (n_lines,) int64
        Which of the sample's targets the line runs through, and which of the materials is its agent.
    open_counts : (n_thresholds,) float64
        Of the open beam.
    beam : Beam
    on_axis : (n_energies,) float64
        Photons per mm2 on the axis, without the sample.
    """

    materials: tuple[str, ...]
    counts: NDArray[np.float64]
    rod: NDArray[np.int64]
    own: NDArray[np.int64]
    open_counts: NDArray[np.float64]
    beam: Beam
    on_axis: NDArray[np.float64]

    def covariance(self, places: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the Cramer-Rao covariance of the paths along each line, for sets of thresholds.

        Parameters
        ----------
        places : (..., n_passes, n_bins) or (n_bins,) int
            Rising in each pass, into THRESHOLDS_KEV.

        Returns
        -------
        (..., n_lines, n_materials, n_materials) float64
            (mm g/cm3)^2 at 1 mAs a view, of all passes together; infinite where the bins cannot tell the materials
            apart.
        """
        above = self.counts[np.atleast_2d(places)]
        bins = above.copy()
        bins[..., :-1, :, :] -= above[..., 1:, :, :]
        counts = np.maximum(bins[..., :1], 1e-30)
        scaled = bins[..., 1:] / np.sqrt(counts)
        fisher = np.einsum("...pblk,...pblm->...lkm", scaled, scaled) / bins.shape[-4]
        size = np.sqrt(np.einsum("...kk->...k", fisher))
        size = np.where(size > 0, size, 1.0)
        unit = fisher / (size[..., :, None] * size[..., None, :])
        is_told = np.linalg.det(unit) > 1e-12
        unit = np.where(is_told[..., None, None], unit, np.eye(unit.shape[-1]))
        inverse = np.linalg.inv(unit) / (size[..., :, None] * size[..., None, :])
        return np.where(is_told[..., None, None], inverse, np.inf)

    def variances(self, places: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the variance of each target's own agent, the mean of its lines: (..., n_targets) float64."""
        covariance = self.covariance(places)
        own = np.einsum("...kk->...k", covariance)[..., np.arange(len(self.rod)), self.own]
        n_targets = int(self.rod.max()) + 1
        return own.reshape(*own.shape[:-1], n_targets, -1).mean(axis=-1)


class Forecaster:
    """Tables of one sample behind one detector, for any beam.

    Parameters
    ----------
    sample : Sample
        With one target or more.
    geometry : Geometry
    counter : Counter
    n_lines : int
        Through each target, over half a turn.
    """

    def __init__(self, sample: Sample, geometry: Geometry, counter: Counter, *, n_lines: int = N_LINES) -> None:
        if not sample.targets:
            raise WrongUsage("the sample holds no agent; allowed: one rod of an agent or more")
        self.sample, self.geometry = sample, geometry
        self._above = counter(THRESHOLDS_KEV, ENERGIES_KEV)
        self._through = np.exp(-lines_through(sample, n_lines).depths(sample.attenuation_per_mm(ENERGIES_KEV)))
        self._rod = np.repeat(np.arange(len(sample.targets)), n_lines)
        self._per_path = np.stack([PER_MM_OF_CM2_G * mass_attenuation_cm2_g(m, ENERGIES_KEV) for m in sample.basis])

    def table(self, beam: Beam) -> Table:
        """Return the counts above all thresholds in a beam."""
        photons = beam.photons(self.geometry.source_to_detector_mm) * self.geometry.pitch_mm**2
        behind = (self._through * photons)[:, None, :] * np.vstack([np.ones_like(photons), self._per_path])
        n_lines, n_columns, n_energies = behind.shape
        counts = self._above @ behind.reshape(-1, n_energies).T
        basis = self.sample.basis
        own = np.array([basis.index(rod.agent) for rod in self.sample.targets])
        return Table(
            materials=basis,
            counts=counts.reshape(-1, n_lines, n_columns),
            rod=self._rod,
            open_counts=self._above @ photons,
            beam=beam,
            on_axis=beam.photons(self.geometry.source_to_object_mm),
            own=own[self._rod],
        )


def lines_through(sample: Sample, n_lines: int) -> Segments:
    """Cut lines through the middle of each target, at even angles over half a turn: targets times lines."""
    angle = (np.arange(n_lines) + 0.5) * np.pi / n_lines
    directions = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    middles = np.array([(rod.x_mm, rod.y_mm) for rod in sample.targets])
    return segments(sample, np.repeat(middles, n_lines, axis=0), np.tile(directions, (len(middles), 1)))


def voxel_gain_per_mm2(
    geometry: Geometry, n_views: int, *, window: str = "ram-lak", voxel_mm: float | None = None
) -> float:
    """Return the variance of a voxel over that of one ray's line integral, near the axis.

    Parameters
    ----------
    n_views : int
        Around the circle, each with independent noise.
    window : str
        One of `ramp.WINDOWS`.
    voxel_mm : float, optional
        Edge of the cube over which the volume is averaged. None: voxels as `mpxct reconstruct` makes them, one point
        each, on the detector's rows.
    """
    pitch_mm = geometry.pitch_mm / geometry.magnification
    gain = ramp_filter(4 * geometry.cols, pitch_mm, window).astype(np.float64)
    share = np.linspace(0, 0.5, len(gain))
    passed = np.zeros_like(share)
    for alias in range(-_N_ALIASES, _N_ALIASES + 1):
        cycles = share + alias
        passed += np.sinc(cycles) ** 4 * _averaged(cycles / pitch_mm, voxel_mm)
    twice = np.full(len(gain), 2.0)
    twice[[0, -1]] = 1.0
    variance = (twice * gain**2 * passed).sum() / twice.sum() * np.pi**2 / n_views
    rows = 1.0 if voxel_mm is None else min(pitch_mm / voxel_mm, 1.0)
    return float(variance * rows)


def _averaged(cycles_per_mm: NDArray[np.float64], voxel_mm: float | None) -> NDArray[np.float64]:
    """Return what the mean over a square leaves of the power of waves, in the mean of their directions."""
    if voxel_mm is None:
        return np.ones_like(cycles_per_mm)
    angle = (np.arange(_N_ANGLES) + 0.5) * np.pi / 2 / _N_ANGLES
    along = [np.sinc(cycles_per_mm[:, None] * voxel_mm * turn(angle)) for turn in (np.cos, np.sin)]
    return ((along[0] * along[1]) ** 2).mean(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecast:
    """What a scan will tell.

    Attributes
    ----------
    materials : tuple of str
    thresholds_kev : (n_passes, n_bins) float64
    mas : float
        Charge of each view, of all passes together.
    bin_counts, open_bin_counts : (n_passes, n_bins) float64
        In a pixel and view of one pass: the mean of the lines through the rods, and of the open beam.
    ray_sd : (n_targets, n_materials) float64
        Of the paths along a ray through each target, mm g/cm3: the root of the mean over its lines of the Cramer-Rao
        variance.
    voxel_sd_mg_ml : (n_targets, n_materials) float64
    voxel_correlation : (n_targets, n_materials, n_materials) float64
    cnr : (n_targets,) float64
        Of each rod's agent at its concentration against none, in one voxel.
    """

    materials: tuple[str, ...]
    thresholds_kev: NDArray[np.float64]
    mas: float
    bin_counts: NDArray[np.float64]
    open_bin_counts: NDArray[np.float64]
    ray_sd: NDArray[np.float64]
    voxel_sd_mg_ml: NDArray[np.float64]
    voxel_correlation: NDArray[np.float64]
    cnr: NDArray[np.float64]


def forecast(table: Table, sample: Sample, places: NDArray[np.integer], mas: float, gain_per_mm2: float) -> Forecast:
    """Say what thresholds will tell of each target.

    Parameters
    ----------
    places : (n_passes, n_bins) or (n_bins,) int
        Rising in each pass, into THRESHOLDS_KEV.
    mas : float
        Charge of each view, of all passes together.
    gain_per_mm2 : float
        As `voxel_gain_per_mm2` gives it.
    """
    n_targets, places = len(sample.targets), np.atleast_2d(places)
    by_line = table.covariance(places) / mas
    covariance = by_line.reshape(n_targets, -1, *by_line.shape[-2:]).mean(axis=1)
    if not np.isfinite(covariance).all():
        raise WrongUsage(
            f"{', '.join(table.materials)} cannot be told apart above {THRESHOLDS_KEV[places].tolist()} keV",
            hint="name fewer agents, or let more thresholds stand below the tube's voltage",
        )
    ray_sd = np.sqrt(np.einsum("tkk->tk", covariance))
    voxel_sd_mg_ml = 1000 * np.sqrt(gain_per_mm2) * ray_sd
    own = [table.materials.index(rod.agent) for rod in sample.targets]
    stated_mg_ml = np.array([rod.concentration_mg_ml for rod in sample.targets])

    def in_bins(above: NDArray[np.float64]) -> NDArray[np.float64]:
        return mas / len(places) * (above - np.append(above[:, 1:], np.zeros((len(places), 1)), axis=1))

    return Forecast(
        materials=table.materials,
        thresholds_kev=THRESHOLDS_KEV[places],
        mas=mas,
        bin_counts=in_bins(table.counts[places, :, 0].mean(axis=-1)),
        open_bin_counts=in_bins(table.open_counts[places]),
        ray_sd=ray_sd,
        voxel_sd_mg_ml=voxel_sd_mg_ml,
        voxel_correlation=covariance / (ray_sd[:, :, None] * ray_sd[:, None, :]),
        cnr=stated_mg_ml / voxel_sd_mg_ml[np.arange(n_targets), own],
    )


def places_of(thresholds_kev: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return where the nearest thresholds stand in THRESHOLDS_KEV: int, in the shape of (..., n_bins) float."""
    return np.abs(np.asarray(thresholds_kev, dtype=np.float64)[..., None] - THRESHOLDS_KEV).argmin(axis=-1)
