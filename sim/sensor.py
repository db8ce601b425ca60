"""chip counters: `(n_counters, rows, cols) uint32`, events above each threshold.

`sim.charge` says what charge a photon leaves in which pixel; here the front end makes counts of it: noise, each
pixel's own thresholds and gain, pile-up, and the statistics of counts. How is decided elsewhere: means and covariances
in `sim.expectation`, pulses in `sim.pulse_train`, the draw in `sim.draw`, temperature and time in `sim.environment`.

The chip's mode and the sensor's pitch need not agree. In colour mode a 110 um pixel has eight thresholds, in fine
pitch a 55 um pixel has two; a 110 um sensor is bonded to one pixel of each 2x2 cluster, so that in fine pitch the other
three see noise only, and in colour mode three of four pixels of a 55 um sensor contribute nothing.

# Ref: trim law edge = offset + g DAC_Disc (1 - code/16): sign from dexter `ThlScan.cpp` 1455-1470, step from EXCALIBUR
#      `excalibur_calibration` 1551-1554; the constants are a fit to two scripts, not a specification.
# Ref: 8.81 threshold steps per keV in silicon, SHGM: EXCALIBUR calibration 409-445; other gains go as 1/Cf (dexter
#      `qcstmconfigmonitoring.cpp` 33-36), other sensors as the energy of a pair.
# Ref: noise 80 e- alone, 175 e- summed: CERN Knowledge Transfer, Medipix3. Pair energies and Fano factors:
#      `sim.semiconductor`.
# Ref: Ikrum discharges the amplifier whatever its feedback capacitor: in charge per second the gain does not matter.
# Ref: colour and charge summing: TH0 arbitrates, TH1, 3, 5, 7 see sums, the others single pixels: MARS `medipix3rx.py`.
# Ref: colour mode on a 55 um sensor: Merlin manual v0.7 p12-13, p16. Which pixel of the cluster counts, or is bonded,
#      is not told: an option. That a 110 um sensor in fine pitch lights one pixel of four follows from its bonding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import EllipsisType
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from calibration.attenuation import material as matter
from firmware_iface import chip
from firmware_iface.errors import WrongUsage
from sim import draw, expectation, pulses
from sim.environment import ELECTRON_NC, Climate, Environment
from sim.expectation import Discriminators, Light, Pulse, Response
from sim.semiconductor import SEMICONDUCTORS, SensorLayer
from sim.specimen import FINE_THRESHOLDS, SUBPIXEL_PLACES, FrontEnd, PixelTruth, doubled, draw_truth
from sim.tables import SINGLE, SUMMED, WINNER, deposits

PAIR_EV: Mapping[str, float] = {name: one.pair_ev for name, one in SEMICONDUCTORS.items()}
FANO: Mapping[str, float] = {name: one.fano for name, one in SEMICONDUCTORS.items()}
SHGM_DAC_PER_KEV_SILICON = 8.81
TRIM_CENTRE = 16
"""The trim code at which DAC_Disc shifts nothing."""
BIAS_STEP_V = 10.0
"""The field in the sensor is simulated for the bias rounded to this."""
DRIFT_STEP_DAC, COLLECTION_STEP = 0.02, 1e-3
"""Conditions that change by less change no threshold."""
SAME_LIGHT = 0.005
"""Light that differs from the last exposure's by a factor that is nearer to 1 has the last one's pile-up."""
ARBITER_STEP_KEV = 0.25
"""Arbitration is simulated with one TH0 for the whole chip, rounded to this."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settings:
    """What the chip's registers set in the front end, one plane per threshold: 8 in colour mode, 2 in fine pitch.

    Attributes
    ----------
    threshold_dac : (n_thresholds,) int
        Codes of Threshold0 to Threshold7, or Threshold0 and 1.
    trim : (n_thresholds, rows, cols) uint8
        5-bit trim code of each discriminator; even thresholds have a DiscL, odd ones a DiscH.
    is_masked : (n_thresholds, rows, cols) bool
        Discriminators that are inhibited.
    disc_l, disc_h : int
        Codes of DAC_DiscL and DAC_DiscH, the strength of a trim step.
    gain : chip.Gain
    is_csm : bool
        Charge summing: odd thresholds see the summed charge of 2x2 pixels, Threshold0 arbitrates.
    is_equalization : bool
        Every discriminator counts for itself, without the arbiter.
    is_hole_collecting : bool
        The amplifiers wait for holes, not for electrons.
    ikrum : int
        Code of Ikrum, the current that discharges the amplifiers.
    """

    threshold_dac: NDArray[np.integer]
    trim: NDArray[np.uint8]
    is_masked: NDArray[np.bool_]
    disc_l: int
    disc_h: int
    gain: chip.Gain
    is_csm: bool
    is_equalization: bool
    is_hole_collecting: bool = False
    ikrum: int = 10

    def __post_init__(self) -> None:
        n = len(self.threshold_dac)
        if np.ndim(self.threshold_dac) != 1 or n not in (FINE_THRESHOLDS, chip.N_THRESHOLDS):
            raise ValueError(
                f"threshold_dac has shape {np.shape(self.threshold_dac)}; "
                f"allowed: ({chip.N_THRESHOLDS},) in colour mode, ({FINE_THRESHOLDS},) in fine pitch"
            )
        if self.trim.ndim != 3 or len(self.trim) != n or self.trim.shape != self.is_masked.shape:
            raise ValueError(
                f"trim of shape {self.trim.shape} and is_masked of shape {self.is_masked.shape}; "
                f"allowed: both ({n}, rows, cols)"
            )
        if self.trim.size and int(self.trim.max()) >= chip.TRIM_CODES:
            raise ValueError(f"a trim code is {int(self.trim.max())}; allowed: 0 to {chip.TRIM_CODES - 1}")

    @property
    def n_thresholds(self) -> int:
        """8 in colour mode, 2 in fine pitch."""
        return len(self.threshold_dac)


Pixels = NDArray[np.bool_] | EllipsisType
"""Some pixels, (rows, cols) bool, or all."""


class _Exposure(NamedTuple):
    """An exposure that others may be like."""

    photons: NDArray[np.float32]
    settings: Settings
    conditions: tuple[object, ...]
    n_jumps: int
    light: Light
    mixing: draw.Mixing
    load: NDArray[np.float32]


class Sensor:
    """A semiconductor layer on a chip.

    Parameters
    ----------
    rows, cols : int
        Pixels of the sensor: 128 x 128 of 110 um, or 256 x 256 of 55 um.
    pitch_mm : float
        0.110, each pixel on a cluster of the chip, or 0.055, each on a pixel of the chip.
    collects_holes : bool, optional
        Which charge the sensor's electric field brings to the pixels; by default holes in silicon (p-on-n), electrons
        in all else. With the chip set to the other polarity there is only noise.
    bonded_subpixel : {0, 1, 2, 3}
        Which of P1 to P4 of a cluster is bonded to a 110 um sensor, or counts for the cluster in colour mode.
    cluster_pulse : {"bonded", "sum"}
        What a test pulse is in colour mode: the charge of the bonded pixel, or of all pulsed pixels of the cluster.
    seed : int
        Which specimen this is: its pixels' offsets, gains and defects are drawn from it once.
    climate : Climate, optional
        What surrounds it.

    Attributes
    ----------
    environment : Environment
        Its temperature, bias and time, which exposures let pass.
    """

    def __init__(
        self,
        *,
        rows: int = chip.ROWS // 2,
        cols: int = chip.COLS // 2,
        pitch_mm: float = chip.COLOUR_PITCH_MM,
        material: str = "cdte",
        thickness_mm: float = 1.0,
        bias_v: float = 500.0,
        front_end: FrontEnd | None = None,
        collects_holes: bool | None = None,
        bonded_subpixel: int = 0,
        cluster_pulse: str = "bonded",
        seed: int = 1,
        climate: Climate | None = None,
    ) -> None:
        if material not in PAIR_EV:
            raise WrongUsage(f"no sensor of {material!r}; allowed: {', '.join(PAIR_EV)}")
        if pitch_mm not in (chip.PITCH_MM, chip.COLOUR_PITCH_MM):
            raise WrongUsage(f"a pitch of {pitch_mm} mm; allowed: {chip.PITCH_MM} or {chip.COLOUR_PITCH_MM}")
        if cluster_pulse not in ("bonded", "sum"):
            raise WrongUsage(f"cluster_pulse is {cluster_pulse!r}; allowed: 'bonded', 'sum'")
        self.front_end = front_end or FrontEnd()
        self.layer = SensorLayer(material=matter(material), thickness_mm=thickness_mm, pitch_mm=pitch_mm, bias_v=bias_v)
        self.is_fine = pitch_mm == chip.PITCH_MM
        planes = (FINE_THRESHOLDS if self.is_fine else chip.N_THRESHOLDS, rows, cols)
        self.truth = draw_truth(self.front_end, planes, np.random.default_rng(seed))
        self.collects_holes = material == "silicon" if collects_holes is None else collects_holes
        self._bonded = SUBPIXEL_PLACES[bonded_subpixel]
        self._other_truth = self.truth.as_clusters(self._bonded) if self.is_fine else self.truth.as_fine()
        self._cluster_pulse = cluster_pulse
        self._pair_kev = PAIR_EV[material] * 1e-3
        self._fano = FANO[material]
        self.environment = Environment(
            climate or Climate(), self.truth.is_telegraph, telegraph_dwell_s=self.front_end.telegraph_dwell_s,
            bias_v=bias_v, seed=seed,
        )  # fmt: skip
        self._responses = lru_cache(maxsize=4)(self._make_response)
        self._last_discriminators: tuple[Settings, tuple[object, ...], int, Discriminators] | None = None
        self._last_exposure: _Exposure | None = None
        self._last_pairs: tuple[Response, Discriminators, NDArray[np.float32]] | None = None

    def gain_dac_per_kev(self, gain: chip.Gain) -> float:
        """Return the threshold steps per keV of the mean pixel."""
        per_charge = SHGM_DAC_PER_KEV_SILICON * PAIR_EV["silicon"] * 1e-3 / self._pair_kev
        return per_charge * chip.FEEDBACK_FF[chip.Gain.SHGM] / chip.FEEDBACK_FF[gain]

    @property
    def biased_layer(self) -> SensorLayer:
        """The layer at the bias that is on it now, to BIAS_STEP_V."""
        return replace(self.layer, bias_v=max(round(self.environment.bias_v / BIAS_STEP_V), 1) * BIAS_STEP_V)

    def truth_in(self, settings: Settings) -> PixelTruth:
        """Return the pixels as the chip's mode groups them."""
        return self.truth if settings.n_thresholds == self.truth.n_thresholds else self._other_truth

    def baselines_dac(self, settings: Settings) -> NDArray[np.float32]:
        """Return where each baseline stands on its threshold DAC: (n_thresholds, rows, cols) float32."""
        return self._baselines_dac_of(settings, ...)

    def thresholds_kev(self, settings: Settings) -> NDArray[np.float32]:
        """Return the energy at which each discriminator's threshold stands: (n_thresholds, rows, cols) float32."""
        return self._thresholds_kev_of(settings, ...)

    def _baselines_dac_of(self, settings: Settings, pixels: Pixels) -> NDArray[np.float32]:
        truth = self.truth_in(settings)
        trim = settings.trim[:, pixels]
        disc = np.where(np.arange(settings.n_thresholds) % 2, settings.disc_h, settings.disc_l)
        disc = disc.astype(np.float32).reshape(-1, *[1] * (trim.ndim - 1))
        shift = disc * (1 - trim.astype(np.float32) / TRIM_CENTRE)
        is_up = self._as_in(truth, self.environment.is_up)[pixels]
        moved_dac = self.environment.drift_dac + self.front_end.telegraph_dac * is_up
        return (truth.offset_dac[:, pixels] + truth.trim_strength[:, pixels] * shift + moved_dac).astype(np.float32)

    def _thresholds_kev_of(self, settings: Settings, pixels: Pixels) -> NDArray[np.float32]:
        baselines_dac = self._baselines_dac_of(settings, pixels)
        threshold_dac = np.asarray(settings.threshold_dac, dtype=np.float32)
        above_dac = threshold_dac.reshape(-1, *[1] * (baselines_dac.ndim - 1)) - baselines_dac
        gain_dac_per_kev = self.gain_dac_per_kev(settings.gain) * self.truth_in(settings).relative_gain[pixels]
        return (above_dac / (gain_dac_per_kev * (self.environment.collection or 1.0))).astype(np.float32)

    def expected(
        self, photons: NDArray[np.float32] | None, energies_kev: NDArray, duration_s: float, settings: Settings
    ) -> NDArray[np.float32]:
        """Return the mean events above each threshold: (n_thresholds, rows, cols) float32; see `expose`."""
        return self._mean_and_ties(photons, energies_kev, duration_s, settings)[0]

    def ties(
        self, photons: NDArray[np.float32] | None, energies_kev: NDArray, duration_s: float, settings: Settings
    ) -> tuple[draw.Mixing, NDArray[np.float32]]:
        """Return how events hang together, and each pixel's load, (rows, cols) float32; see `draw.draw_counts`."""
        _, load, mixing = self._mean_and_ties(photons, energies_kev, duration_s, settings)
        return mixing, load

    def expose(
        self,
        photons: NDArray[np.float32] | None,
        energies_kev: NDArray,
        duration_s: float,
        settings: Settings,
        rng: np.random.Generator,
    ) -> NDArray[np.uint32]:
        """Open the shutter and count.

        Parameters
        ----------
        photons : (n_energies, rows, cols) float32
            Photons on each pixel of the sensor during the exposure, or None in the dark.
        energies_kev : (n_energies,) float
        duration_s : float
        settings : Settings
        rng : Generator
            Draws this exposure's statistics.

        Returns
        -------
        (n_thresholds, rows, cols) uint32
            Events above each threshold, in the pixels of the chip's mode.
        """
        mean, load, mixing = self._mean_and_ties(photons, energies_kev, duration_s, settings)
        self.environment.pass_time(duration_s)
        return draw.draw_counts(mean, load, mixing, rng)

    def inject(
        self, n: int, charge_e: NDArray[np.float32], settings: Settings, rng: np.random.Generator
    ) -> NDArray[np.uint32]:
        """Give test pulses to the amplifiers and count.

        Every amplifier has its own capacitor, so the sensor does not matter, nor does the polarity: the pulse has that
        of the amplifiers. Pulses come one after the other, without dead time.

        Parameters
        ----------
        n : int
            How many pulses.
        charge_e : (256, 256) float32, or as many pixels as the sensor covers
            Electrons that each pulse injects into every 55 um pixel; 0 or less counts nothing.
        settings : Settings
        rng : Generator

        Returns
        -------
        (n_thresholds, rows, cols) uint32
        """
        truth = self._checked_truth(settings)
        if settings.n_thresholds == chip.N_THRESHOLDS:
            pulsed = [charge_e[place] for place in SUBPIXEL_PLACES]
            charge_e = sum(pulsed[1:], pulsed[0]) if self._cluster_pulse == "sum" else charge_e[self._bonded]
        if charge_e.shape != truth.is_dead.shape:
            raise ValueError(f"charges in {charge_e.shape} pixels; allowed: {truth.is_dead.shape}")
        chance = pulses.chance(
            charge_e * self._pair_kev,
            self.thresholds_kev(settings),
            self._noise_kev(settings)[:, None, None] * truth.relative_noise,
            is_csm=settings.is_csm,
            has_arbiter=settings.is_csm and not settings.is_equalization,
        )
        chance[settings.is_masked | truth.is_dead] = 0
        return pulses.draw(n, chance, settings.is_csm, rng)

    def _collects(self, settings: Settings) -> bool:
        """Return whether charge of the right sign reaches the amplifiers."""
        return settings.is_hole_collecting == self.collects_holes and self.environment.bias_v > 0

    def _checked_truth(self, settings: Settings) -> PixelTruth:
        truth = self.truth_in(settings)
        if settings.trim.shape[1:] != truth.is_dead.shape:
            raise ValueError(
                f"settings are of {settings.trim.shape[1:]} pixels; the sensor has {truth.is_dead.shape} in this mode"
            )
        return truth

    def _reaching(self, photons: NDArray[np.float32], truth: PixelTruth) -> NDArray[np.float32]:
        """Return the photons on the pixels of the chip's mode: none on pixels without bond, or that do not count."""
        if truth is self.truth:
            return photons
        if self.is_fine:
            return photons[:, *self._bonded]
        reaching = np.zeros((len(photons), *truth.is_dead.shape), dtype=np.float32)
        reaching[:, *self._bonded] = photons
        return reaching

    def _as_in(self, truth: PixelTruth, values: NDArray) -> NDArray:
        """Return what is known of the sensor's pixels in the pixels of the chip's mode."""
        if truth is self.truth:
            return values
        return values[self._bonded] if self.is_fine else doubled(values)

    @staticmethod
    def _is_summed(settings: Settings) -> NDArray[np.bool_]:
        """Return which thresholds see the charge of 2x2 pixels: (n_thresholds,) bool."""
        return settings.is_csm & (np.arange(settings.n_thresholds) % 2 == 1)

    def _noise_kev(self, settings: Settings) -> NDArray[np.float32]:
        front = self.front_end
        noise_e = np.where(self._is_summed(settings), front.summed_noise_e, front.noise_e)
        noise_e = np.hypot(noise_e, self.environment.noise_e(front.peaking_time_s))
        return (noise_e * (self._pair_kev * front.gain_noise_relative[settings.gain])).astype(np.float32)

    def _arbiter_kev(self, nominal_kev: float, settings: Settings) -> float:
        if not settings.is_csm or settings.is_equalization:
            return 0.0
        return max(0.0, round(nominal_kev / ARBITER_STEP_KEV) * ARBITER_STEP_KEV)

    def _mean_and_ties(
        self, photons: NDArray[np.float32] | None, energies_kev: NDArray, duration_s: float, settings: Settings
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], draw.Mixing]:
        """Return the mean events of an exposure, each pixel's load, and how the events hang together."""
        truth = self._checked_truth(settings)
        rows, cols = self.truth.is_dead.shape
        if photons is not None and photons.shape != (len(energies_kev), rows, cols):
            raise ValueError(
                f"photons of shape {photons.shape}; allowed: ({len(energies_kev)}, {rows}, {cols}) for these energies"
            )
        thresholds = self._discriminators(settings)
        if photons is None or not self._collects(settings) or not len(photons):
            return (
                thresholds.noise_per_s * np.float32(duration_s),
                np.zeros(truth.is_dead.shape, dtype=np.float32),
                draw.independent(*expectation.families(thresholds)),
            )
        exposure, factor = self._exposure_like(photons, energies_kev, duration_s, settings, thresholds)
        light = exposure.light
        mean = expectation.mean_counts(light, thresholds.noise_per_s, np.float32(duration_s), np.float32(factor))
        return mean, exposure.load, exposure.mixing

    def _discriminators(self, settings: Settings) -> Discriminators:
        """Return where the thresholds stand now; the same as the last time, while nothing has changed."""
        conditions, n_jumps = self._conditions(), self.environment.n_jumps
        last = self._last_discriminators
        if last is None or last[0] is not settings or last[1] != conditions:
            found = self._all_discriminators(settings)
        elif last[2] != n_jumps:
            found = self._after_jumps(last[3], settings)
        else:
            return last[3]
        self._last_discriminators = settings, conditions, n_jumps, found
        return found

    def _all_discriminators(self, settings: Settings) -> Discriminators:
        truth = self.truth_in(settings)
        threshold_kev = self.thresholds_kev(settings)
        kind = np.where(self._is_summed(settings), SUMMED, SINGLE)
        if settings.is_csm and not settings.is_equalization:
            kind[0] = WINNER
        seen, noise_per_s = self._shares(
            settings, threshold_kev, truth.relative_noise, settings.is_masked | truth.is_dead
        )
        return Discriminators(
            kind=kind,
            threshold_kev=threshold_kev,
            seen=seen,
            noise_per_s=noise_per_s,
            nominal_kev=np.median(threshold_kev[:, ~truth.is_dead], axis=1).astype(float),
        )

    def _after_jumps(self, before: Discriminators, settings: Settings) -> Discriminators:
        """Return the same thresholds, but for the telegraph pixels'."""
        truth = self.truth_in(settings)
        moving = self._as_in(truth, self.truth.is_telegraph)
        now = replace(
            before,
            threshold_kev=before.threshold_kev.copy(),
            seen=before.seen.copy(),
            noise_per_s=before.noise_per_s.copy(),
        )
        now.threshold_kev[:, moving] = self._thresholds_kev_of(settings, moving)
        now.seen[:, moving], now.noise_per_s[:, moving] = (
            share[:, 0]
            for share in self._shares(
                settings,
                now.threshold_kev[:, None, moving],
                truth.relative_noise[None, moving],
                (settings.is_masked | truth.is_dead)[:, None, moving],
            )
        )
        return now

    def _shares(
        self, settings: Settings, threshold_kev: NDArray[np.float32], relative_noise: NDArray[np.float32],
        is_silent: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
        """Return what share of the events crosses thresholds, and how often noise does, per second."""
        noise_kev = self._noise_kev(settings)
        seen = expectation.share_of_upcrossings(threshold_kev, noise_kev, relative_noise)
        crossing = expectation.share_of_crossings(threshold_kev, noise_kev, relative_noise)
        if settings.is_csm and not settings.is_equalization:
            seen[1::2] *= seen[0]
            crossing[1::2] *= crossing[0]
        seen[is_silent] = crossing[is_silent] = 0
        return seen, crossing * np.float32(self.front_end.noise_rate_per_s)

    def _exposure_like(
        self, photons: NDArray[np.float32], energies_kev: NDArray, duration_s: float, settings: Settings,
        thresholds: Discriminators,
    ) -> tuple[_Exposure, float]:  # fmt: skip
        """Return this exposure, or the last one if that differs by a factor near 1 at most, which is returned too."""
        energies = tuple(map(float, energies_kev))
        layer = self.biased_layer
        conditions, n_jumps = (energies, layer.bias_v, duration_s, *self._conditions()), self.environment.n_jumps
        last = self._last_exposure
        if last is not None and last.settings is settings and last.conditions == conditions:
            is_same = photons is last.photons and not photons.flags.writeable
            factor = 1.0 if is_same else _proportion(photons, last.photons)
            if abs(factor - 1) < SAME_LIGHT:
                if last.n_jumps != n_jumps:
                    for row in np.flatnonzero(
                        self._as_in(self.truth_in(settings), self.truth.is_telegraph).any(axis=1)
                    ):
                        last.light.refold(int(row), int(row) + 1, thresholds)
                    self._last_exposure = last = last._replace(n_jumps=n_jumps)
                return last, factor
        truth = self.truth_in(settings)
        of = self._responses(
            energies, self._arbiter_kev(thresholds.nominal_kev[0], settings), truth is not self.truth, settings.gain,
            layer,
        )  # fmt: skip
        pulse = self.pulse(settings)
        reaching = np.ascontiguousarray(self._reaching(photons, truth), dtype=np.float32)
        light = expectation.light(reaching, of, thresholds, pulse, duration_s)
        mixing = expectation.mixing(
            light.spectrum, of, thresholds, self._pairs_above(of, thresholds), pulse, duration_s
        )
        kept = photons.copy() if photons.flags.writeable else photons
        load = (light.load / max(float(light.load.mean()), 1e-30)).astype(np.float32)
        self._last_exposure = _Exposure(kept, settings, conditions, n_jumps, light, mixing, load)
        return self._last_exposure, 1.0

    def _pairs_above(self, of: Response, thresholds: Discriminators) -> NDArray[np.float32] | None:
        if of.deposits is None:
            return None
        last = self._last_pairs
        if last is None or last[0] is not of or np.any(last[1].nominal_kev != thresholds.nominal_kev):
            self._last_pairs = last = of, thresholds, expectation.pairs_above(of, thresholds)
        return last[2]

    def _conditions(self) -> tuple[int, int]:
        """Return what of the surroundings moves all thresholds, in steps that matter."""
        here = self.environment
        return round(here.drift_dac / DRIFT_STEP_DAC), round(here.collection / COLLECTION_STEP)

    def pulse(self, settings: Settings) -> Pulse:
        """Return how pulses fall and hold."""
        discharge_e_per_s = max(settings.ikrum, 1e-3) * self.front_end.ikrum_na_per_code / ELECTRON_NC
        return Pulse(discharge_e_per_s * self._pair_kev, self.front_end.peaking_time_s)

    def _make_response(
        self, energies_kev: tuple[float, ...], arbiter_kev: float, is_alone: bool, gain: chip.Gain, layer: SensorLayer
    ) -> Response:
        noisier = self._pair_kev * self.front_end.gain_noise_relative[gain]
        return expectation.response(
            deposits(layer, energies_kev),
            (self.front_end.noise_e * noisier, self.front_end.summed_noise_e * noisier),
            self._fano * self._pair_kev,
            arbiter_kev,
            is_alone,
        )


@njit(cache=True, nogil=True, fastmath=True)
def _proportion(values: np.ndarray, to: np.ndarray) -> float:
    """Return by what factor all values differ from others, or infinity if no one factor does."""
    flat, others = values.reshape(-1), to.reshape(-1)
    total, total_of_others = 0.0, 0.0
    for i in range(0, len(flat), 997):
        total += flat[i]
        total_of_others += others[i]
    factor = np.float32(total / total_of_others) if total_of_others > 0 else np.float32(1)
    for start in range(0, len(flat), 4096):
        n_other = 0
        for i in range(start, min(start + 4096, len(flat))):
            n_other += abs(flat[i] - factor * others[i]) > np.float32(3e-6) * abs(flat[i])
        if n_other:
            return math.inf
    return float(factor)
