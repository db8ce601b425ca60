"""Beams and detectors made by their laws, whose truth is known: for the tests and the benchmark of the beam's steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from calibration.attenuation import Material, linear_attenuation_per_mm
from calibration.response import PlateMeasurement, SourceCurve
from calibration.spectrum import emission, transmission, tube_spectrum
from firmware_iface import chip
from sim.sensor import Sensor, Settings

Layers = Mapping[str | Material, float]
BENCH_SHAPE = (16, 16)
ENERGIES_KEV = np.arange(8.5, 118.0)
PMMA_PER_MM = linear_attenuation_per_mm("pmma", ENERGIES_KEV)
PHOTONS = tube_spectrum(118.0, ENERGIES_KEV, {"aluminium": 3.8}) * -np.expm1(
    -linear_attenuation_per_mm("cdte", ENERGIES_KEV)
)
THRESHOLDS_KEV = (18.0, 33.0, 50.0, 75.0)


# Pulses that fall at a constant rate after a hold, by level crossing.


@cache
def charge_law(pmma_mm: float, shared: float) -> tuple[np.ndarray, float]:
    """Charge law of a toy sensor on 0.25 keV, a flat tail below each energy; and detected photons, relative."""
    energies = np.arange(8.5, 118.0)
    photons = tube_spectrum(118.0, energies, {"aluminium": 3.8, "pmma": pmma_mm})
    photons = photons * -np.expm1(-linear_attenuation_per_mm("cdte", energies))
    charge_kev = (np.arange(480) + 0.5) * 0.25
    law = np.zeros(480)
    for energy, n in zip(energies, photons, strict=True):
        tail = charge_kev < energy
        law[tail] += shared * n / tail.sum()
        law[int(energy / 0.25)] += (1 - shared) * n
    return law / law.sum(), float(photons.sum())


def counted_per_s(rate_per_s: float, law: np.ndarray, hold_s: float = 120e-9, fall_kev_s: float = 55e6) -> np.ndarray:
    """Upward crossings per second of each of 480 thresholds, in steps of 0.25 keV."""
    step, n_long = 0.25, 8192
    alone = np.exp(-rate_per_s * hold_s)
    spectrum = np.fft.rfft(law, n_long)
    batch = np.fft.irfft(alone * spectrum / (1 - (1 - alone) * spectrum), n_long)
    above = np.interp(np.arange(480) * step, (np.arange(n_long) + 1) * step, 1 - np.cumsum(batch), left=1.0)
    idle = 1 - rate_per_s * float(law @ (np.arange(480) + 0.5)) * step / alone / fall_kev_s
    assert idle > 0, "the amplifier is paralysed"
    share = rate_per_s * step / fall_kev_s
    crossings = np.zeros(480)
    crossings[0] = rate_per_s * idle
    for i in range(1, 480):
        before = 0.5 * crossings[0] * above[i] + crossings[1:i] @ above[i - 1 : 0 : -1]
        crossings[i] = (rate_per_s * idle * above[i] + share * before) / (1 - share / 2)
    return alone * crossings


def seen_per_s(current: float, pmma_mm: float, shared: float, full_per_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Rates at THRESHOLDS_KEV, counted and true."""
    law, detected = charge_law(pmma_mm, shared)
    rate = full_per_s * current * detected / charge_law(0.0, shared)[1]
    places = (np.asarray(THRESHOLDS_KEV) / 0.25).astype(int)
    return counted_per_s(rate, law)[places], counted_per_s(1.0, law)[places] * rate


class SharpPixels:
    """Pixels with sharp thresholds, each with its own error of all of them, at 4000 counts in the open beam."""

    def __init__(
        self, seed: int = 1, sigma_kev: float = 1.0, per_frame: float = 4000.0, shape: tuple[int, int] = (16, 20)
    ) -> None:
        self.shape = shape
        self.rng = np.random.default_rng(seed)
        off_kev = self.rng.normal(0, sigma_kev, (1, *self.shape))
        edges = np.array([*THRESHOLDS_KEV, 200.0])[:, None, None] + off_kev
        distance = ENERGIES_KEV[:, None, None, None] - edges
        above = np.clip(distance + 0.5, 0, 1)  # an energy bin of 1 keV is cut where the threshold stands
        self.weights = (above[:, :-1] - above[:, 1:]) * PHOTONS[:, None, None, None] * per_frame / PHOTONS.sum()

    def mean(self, thickness_mm: float) -> np.ndarray:
        return np.einsum("e,ebij->bij", np.exp(-PMMA_PER_MM * thickness_mm), self.weights)

    def passed(self, thickness_mm: np.ndarray) -> np.ndarray:
        """Return mean counts behind a thickness that is each pixel's own: (n_bins, rows, cols)."""
        return np.einsum("eij,ebij->bij", np.exp(-PMMA_PER_MM[:, None, None] * thickness_mm), self.weights)

    def frames(self, thickness_mm: float, n: int) -> np.ndarray:
        return self.rng.poisson(n * self.mean(thickness_mm)) / n


class SimulatedBench:
    """The simulated sensor, its thresholds at known places but for what equalisation leaves, and a filtered tube."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(2)
        self.sensor = Sensor(rows=BENCH_SHAPE[0], cols=BENCH_SHAPE[1], seed=3)
        self.gain = self.sensor.gain_dac_per_kev(chip.Gain.HGM)
        self.sensor.truth.offset_dac[:] = self.rng.normal(0, 0.5, self.sensor.truth.offset_dac.shape)
        self.sensor.truth.is_dead[:] = False
        self.sensor.truth.relative_noise[:] = 1
        flux = tube_spectrum(118.0, ENERGIES_KEV, {"aluminium": 3.8})
        self.flux = flux / flux.sum() * 6000

    def on_dac(self, thresholds_kev: np.ndarray) -> np.ndarray:
        """Return the energies of the codes nearest to some energies."""
        return np.round(np.asarray(thresholds_kev) * self.gain) / self.gain

    def mean(self, photons: np.ndarray, energies_kev: np.ndarray, thresholds_kev: np.ndarray) -> np.ndarray:
        codes = np.zeros(8)
        codes[0] = 7 * self.gain
        codes[[1, 3, 5, 7]] = np.asarray(thresholds_kev) * self.gain
        settings = Settings(
            threshold_dac=codes.round().astype(int),
            trim=np.zeros((8, *BENCH_SHAPE), dtype=np.uint8),
            is_masked=np.zeros((8, *BENCH_SHAPE), dtype=bool),
            disc_l=0,
            disc_h=0,
            gain=chip.Gain.HGM,
            is_csm=True,
            is_equalization=False,
        )
        field = np.ones((1, *BENCH_SHAPE), dtype=np.float32) * photons[:, None, None].astype(np.float32)
        # So slow that nothing overlaps: the count-rate calibration is another one.
        return self.sensor.expected(field, energies_kev, 1e9, settings)[[1, 3, 5, 7]]

    def plate(self, layers: Layers, n_frames: int = 100) -> PlateMeasurement:
        depth = sum((linear_attenuation_per_mm(m, ENERGIES_KEV) * t for m, t in layers.items()), np.zeros(110))
        mean = self.mean(self.flux * np.exp(-depth), ENERGIES_KEV, np.asarray(THRESHOLDS_KEV))
        above = self.rng.poisson(n_frames * mean).mean(axis=(1, 2)) / n_frames
        counts = above - np.append(above[1:], 0)
        return PlateMeasurement(
            layers_mm=layers,
            counts=counts,
            sigma_relative=1 / np.sqrt(counts * n_frames * BENCH_SHAPE[0] * BENCH_SHAPE[1]),
        )

    def curve(self, source: str) -> SourceCurve:
        lines = emission(source)
        energies = np.array([line.energy_kev for line in lines])
        photons = np.array([line.fraction for line in lines]) * transmission({"aluminium": 1.0}, energies)
        strongest = max(lines, key=lambda line: line.fraction).energy_kev
        thresholds = self.on_dac(np.linspace(14, 1.15 * strongest, 18))
        mean = [self.mean(photons / photons.sum() * 4000, energies, np.full(4, t)).sum(axis=(1, 2)) for t in thresholds]
        return SourceCurve(
            source=source,
            counter=np.tile(np.arange(4), len(thresholds)),
            thresholds_kev=np.repeat(thresholds, 4),
            counts=self.rng.poisson(mean).astype(float).ravel(),
        )
