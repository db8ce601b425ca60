"""chip counters: `(n_counters, rows, cols) uint32`, events above each threshold, one photon after the other.

The same sensor as `sim.sensor`, without tables: photons come at random times, each leaves its charges (`sim.charge`),
every amplifier holds what earlier ones left, and discriminators count when the output crosses their thresholds upwards
(`sim.amplifiers`).

# Ref: alias tables: M. D. Vose 1991, IEEE Trans. Softw. Eng. 17, 972.

Noise counts are drawn as `sim.sensor` draws them in the dark.

An exposure is cut into PARTS of time that run beside each other; each begins a while before its time, in the same beam,
so that no pulse of before is missing. The result depends on the generator alone, not on the machine.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage
from sim import amplifiers, chance, charge, landing
from sim.sensor import Sensor, Settings

Arbitration = Literal["rx", "first"]
PARTS = 2
WARM_UP_KEV = 1600.0
"""A part begins before its time by so much falling of the output: ten of the largest photons."""

_kernel = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # pyright: ignore[reportCallIssue]
_BATCH = 64
"""So many photons are followed before their hits are counted."""
_WINDOW_S = 10e-3
"""Times count from the beginning of a window of this length: 1 ns is exact in 32 bits."""
_WHOLE = (1 << 31) - 1


class _Light(NamedTuple):
    """What comes: photons that interact, as tables to draw from."""

    alias: np.ndarray
    """(energies * pixels, 2) int32: alias table of the energy and the pixel: own share in 2^-31, and the other."""
    energies_kev: np.ndarray
    interacting: np.ndarray
    attenuation_per_mm: np.ndarray
    rate_per_s: float
    n_pixels: int
    per_pixel: float
    cols: int
    per_col: float


class _Batch(NamedTuple):
    """Photons that come one after the other."""

    arrivals_s: np.ndarray
    """(_BATCH,) float64: when each comes."""
    chances: np.ndarray
    """(_BATCH,) float64: for an alias."""
    photons: np.ndarray
    """(_BATCH, 2) int64: its energy, its pixel."""


class EventSensor(Sensor):
    """A sensor that is exposed photon by photon; see `Sensor` for the parameters.

    Parameters
    ----------
    arbitration : {"rx", "first"}
        Who wins in charge summing: the pixel with the largest charge, as in the Medipix3RX, or the summing node with
        the largest sum, as in the first Medipix3.
    """

    def __init__(self, *, arbitration: Arbitration = "rx", **sensor: Any) -> None:
        if arbitration not in get_args(Arbitration):
            raise WrongUsage(f"arbitration is {arbitration!r}; allowed: {', '.join(get_args(Arbitration))}")
        super().__init__(**sensor)
        self._is_first_rule = arbitration == "first"
        self._physics = lru_cache(maxsize=4)(charge.physics_of)

    def expose(
        self,
        photons: NDArray[np.float32] | None,
        energies_kev: NDArray,
        duration_s: float,
        settings: Settings,
        rng: np.random.Generator,
    ) -> NDArray[np.uint32]:
        """Open the shutter and count; see `Sensor.expose`."""
        front, pixels = self._front(settings), self._pixels(settings)
        noise = super().expose(None, energies_kev, duration_s, settings, rng)
        seeds = rng.integers(2**63, size=PARTS)
        if photons is None or not self._collects(settings) or not np.any(photons):
            return noise
        if photons.shape != (len(energies_kev), *self.truth.is_dead.shape):
            raise ValueError(
                f"photons of shape {photons.shape}; allowed: {(len(energies_kev), *self.truth.is_dead.shape)}"
            )
        physics = self._physics(self.biased_layer, float(energies_kev[0]))
        light = _light(physics, photons, np.asarray(energies_kev, dtype=float), duration_s)
        warm_up_s = float(10 * front.peaking_time_s + WARM_UP_KEV / front.fall_kev_per_s)

        def count(seed: int) -> NDArray[np.float32]:
            state = amplifiers.amplifiers(pixels)
            hits = amplifiers.hits(_BATCH, _BATCH * charge.MAX_PIXELS)
            batch = _Batch(np.zeros(_BATCH), np.zeros(_BATCH), np.zeros((_BATCH, 2), dtype=np.int64))
            dice = chance.dice(np.random.default_rng(int(seed)))
            _expose(
                physics, light, front, batch, charge.workspace(_BATCH, self._landing(settings)), hits, state,
                duration_s / PARTS, warm_up_s, dice,
            )  # fmt: skip
            return amplifiers.counted(state, *noise.shape[1:])[_columns(settings)]

        with ThreadPoolExecutor(PARTS) as pool:
            parts = list(pool.map(count, seeds))
        return noise + np.sum(parts, axis=0, dtype=np.float64).astype(np.uint32)

    def _front(self, settings: Settings) -> amplifiers.Front:
        pulse = self.pulse(settings)
        return amplifiers.Front(
            stride=np.uint64(settings.trim.shape[2] + 2),
            is_csm=settings.is_csm,
            has_arbiter=settings.is_csm and not settings.is_equalization,
            is_first_rule=self._is_first_rule,
            fano_kev=np.float32(self._fano * self._pair_kev),
            fall_kev_per_s=np.float32(pulse.fall_kev_per_s),
            peaking_time_s=np.float32(pulse.peaking_time_s),
        )

    def _pixels(self, settings: Settings) -> NDArray[np.float32]:
        """Return the records of the pixels: (rows, cols, columns) float32."""
        truth = self._checked_truth(settings)
        threshold_kev = self.thresholds_kev(settings) * truth.relative_gain
        noise_kev = self._noise_kev(settings)[:2, None, None] * (truth.relative_noise * truth.relative_gain)
        counted_kev = np.where(settings.is_masked | truth.is_dead, np.float32(amplifiers.NEVER_KEV), threshold_kev)
        pixels = np.zeros((*truth.is_dead.shape, amplifiers.LOWEST + 1), dtype=np.float32)
        pixels[..., : amplifiers.N_COUNTS] = amplifiers.NEVER_KEV
        pixels[..., _columns(settings)] = np.moveaxis(counted_kev, 0, -1)
        if settings.is_csm and not settings.is_equalization:  # then TH0 counts winners
            pixels[..., 0], pixels[..., amplifiers.TH0] = amplifiers.NEVER_KEV, counted_kev[0]
        pixels[..., amplifiers.GAIN] = truth.relative_gain
        pixels[..., amplifiers.NOISE_KEV2], pixels[..., amplifiers.SUM_NOISE_KEV2] = noise_kev**2
        pixels[..., amplifiers.ARBITER] = threshold_kev[0]
        pixels[..., amplifiers.LOWEST] = threshold_kev.min(axis=0)
        return pixels

    def _landing(self, settings: Settings) -> landing.Landing:
        """Return which places of `sim.amplifiers` the pixels of the sensor feed."""
        rows, cols = settings.trim.shape[1:]
        of_row, of_col = self._places(settings, 0, cols + 2), self._places(settings, 1, 1)
        return landing.landing(of_row, of_col, (rows + 2) * (cols + 2), charge.MAX_CLOUDS)

    def _places(self, settings: Settings, axis: int, stride: int) -> NDArray[np.int64]:
        """Return what each row or column of the sensor contributes to the place that it feeds."""
        truth = self.truth_in(settings)
        size = self.truth.is_dead.shape[axis]
        of_pixels, of_chip = np.full(size, landing.NO_PLACE), (1 + np.arange(truth.is_dead.shape[axis])) * stride
        if truth is self.truth:
            of_pixels[:] = of_chip
        elif self.is_fine:
            of_pixels[self._bonded[axis]] = of_chip
        else:
            of_pixels[:] = of_chip[self._bonded[axis]]
        return of_pixels


def _columns(settings: Settings) -> NDArray[np.int64]:
    """Return in which column of a record each threshold is."""
    threshold = np.arange(settings.n_thresholds)
    return threshold // 2 + amplifiers.SUMS * (threshold % 2) if settings.is_csm else threshold


def _light(
    physics: charge.Physics, photons: NDArray[np.float32], energies_kev: NDArray[np.float64], duration_s: float
) -> _Light:
    attenuation_per_mm, interacting = charge.interaction(physics, energies_kev)
    share = (photons.reshape(len(photons), -1) * interacting[:, None]).ravel()
    total = share.sum()
    alias = np.empty((len(share), 2), dtype=np.int32)
    _fill_alias(share * (len(share) / total), alias)
    n_pixels = len(share) // len(photons)
    return _Light(
        alias=alias,
        energies_kev=energies_kev,
        interacting=interacting,
        attenuation_per_mm=attenuation_per_mm,
        rate_per_s=float(total / duration_s),
        n_pixels=n_pixels,
        per_pixel=1 / n_pixels,
        cols=photons.shape[2],
        per_col=1 / photons.shape[2],
    )


@njit(cache=True, nogil=True)
def _fill_alias(share: np.ndarray, alias: np.ndarray) -> None:
    """Fill an alias table from shares whose mean is 1, which are used up."""
    n = len(share)
    small, large = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    n_small, n_large, largest = 0, 0, np.argmax(share)
    for i in range(n):
        alias[i, 1] = largest  # for what rounding leaves over
        if share[i] < 1:
            small[n_small] = i
            n_small += 1
        else:
            large[n_large] = i
            n_large += 1
    while n_small and n_large:
        n_small -= 1
        poor, rich = small[n_small], large[n_large - 1]
        alias[poor, 1] = rich
        share[rich] -= 1 - share[poor]
        if share[rich] < 1:
            n_large -= 1
            small[n_small] = rich
            n_small += 1
    for i in range(n):
        alias[i, 0] = int(min(share[i], 1.0) * _WHOLE)


@_kernel
def _expose(
    physics: charge.Physics, light: _Light, front: amplifiers.Front, batch: _Batch,
    workspace: charge.Workspace, hits: amplifiers.Hits, state: amplifiers.Amplifiers,
    duration_s: float, warm_up_s: float, dice: chance.Dice,
) -> None:  # fmt: skip
    """Let photons come one after the other, window by window of time, and count those that come in time."""
    begin_s, now_s = -warm_up_s, 0.0  # of the window, and in it
    while begin_s < duration_s:
        end_s = min(_WINDOW_S, (duration_s if begin_s >= 0 else 0) - begin_s)
        while now_s < end_s:
            n_photons, now_s = _arrive(light, batch, now_s, end_s, dice)
            _hit(physics, light, batch, workspace, hits, n_photons, dice)
            amplifiers.count(front, state, hits, n_photons, dice)
        amplifiers.begin_window(state, end_s)
        now_s -= end_s
        if begin_s < 0 and begin_s + end_s >= 0:
            state.counts[:] = 0
        begin_s += end_s


@_kernel
def _arrive(light: _Light, batch: _Batch, now_s: float, end_s: float, dice: chance.Dice) -> tuple[int, float]:
    """Draw when and where up to a batch of photons come; return how many before the end, and when the next comes."""
    arrivals_s, photons = batch.arrivals_s, batch.photons
    mean_gap_s = 1 / light.rate_per_s
    n = 0
    while n < _BATCH and now_s < end_s:
        arrivals_s[n] = now_s
        now_s += mean_gap_s * chance.exponential(dice)
        n += 1
    for i in range(n):
        u = chance.uniform(dice) * len(light.alias)
        photons[i, 0] = int(u)
        batch.chances[i] = (u - photons[i, 0]) * _WHOLE
    for i in range(n):  # in a loop of its own, for which memory answers at many places at a time
        place = photons[i, 0]
        other, is_own = light.alias[place, 1], batch.chances[i] < light.alias[place, 0]
        place = place if is_own else other
        photons[i, 0] = int((place + 0.5) * light.per_pixel)
        photons[i, 1] = place - photons[i, 0] * light.n_pixels
    return n, now_s


@_kernel
def _hit(
    physics: charge.Physics, light: _Light, batch: _Batch, workspace: charge.Workspace,
    hits: amplifiers.Hits, n_photons: int, dice: chance.Dice,
) -> None:  # fmt: skip
    """Follow the photons of a batch to charges in pixels of the chip."""
    photons, n_hits = batch.photons, 0
    for i in range(n_photons):
        energy, lit = photons[i, 0], photons[i, 1]
        row = int((lit + 0.5) * light.per_col)
        x, y, u = chance.three(dice)
        passed = np.float32(1 - light.interacting[energy] * u)
        depth_mm = float(-math.log(passed) / light.attenuation_per_mm[energy])
        charge.incident(workspace, i, float(light.energies_kev[energy]), lit - row * light.cols + x, row + y, depth_mm)
    charge.drift(physics, workspace.clouds, charge.follow(physics, workspace, n_photons, dice))
    charges_kev, places = workspace.landing.charges_kev, workspace.landing.places
    for i in range(n_photons):
        time_s = np.float32(batch.arrivals_s[i])
        for k in range(charge.land(workspace, i)):
            hits.places[n_hits], hits.times_s[n_hits] = places[k], time_s
            hits.charges_kev[n_hits], charges_kev[places[k]] = charges_kev[places[k]], 0.0
            n_hits += 1
        hits.arrivals_s[i], hits.lasts[i] = time_s, n_hits
