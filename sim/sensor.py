"""chip counters: `(n_counters, rows, cols) uint32`, events above each threshold.

`sim.charge` says what charge a photon leaves in which pixel; here the front end makes counts of it: noise, each
pixel's own thresholds and gain, dead time, and Poisson statistics.

The chip's mode and the sensor's pitch need not agree. In colour mode a 110 um pixel has eight thresholds, in fine
pitch a 55 um pixel has two; a 110 um sensor is bonded to one pixel of each 2x2 cluster, so that in fine pitch the other
three see noise only, and in colour mode three of four pixels of a 55 um sensor contribute nothing.

# Ref: trim law edge = offset + g DAC_Disc (1 - code/16): sign from dexter `ThlScan.cpp` 1455-1470, step from EXCALIBUR
#      `excalibur_calibration` 1551-1554; the constants are a fit to two scripts, not a specification.
# Ref: 8.81 threshold steps per keV in silicon, SHGM: EXCALIBUR calibration 409-445; other gains go as 1/Cf (dexter
#      `qcstmconfigmonitoring.cpp` 33-36), other sensors as the energy of a pair.
# Ref: noise 80 e- alone, 175 e- summed: CERN Knowledge Transfer, Medipix3. Pair energies and Fano factors: common
#      values from memory (CdTe 4.43 eV and 0.1 as in geant4medipix `DetectorConfig.ini`).
# Ref: rate of noise crossings f0 exp(-x^2 / 2 sigma^2): S. O. Rice 1944, Bell Syst. Tech. J. 23, 282.
# Ref: paralysable dead time m = n exp(-n tau). 10 % loss at 375 kcps per 55 um pixel alone and 30 kcps per 110 um
#      pixel summed: Ballabriga et al. 2016, JINST 11, P01007, quoted from memory.
# Ref: colour and charge summing: TH0 arbitrates, TH1, 3, 5, 7 see sums, the others single pixels: MARS `medipix3rx.py`.
# Ref: colour mode on a 55 um sensor: Merlin manual v0.7 p12-13, p16. Which pixel of the cluster counts, or is bonded,
#      is not told: an option. That a 110 um sensor in fine pitch lights one pixel of four follows from its bonding.

Counts of one pixel are drawn exactly: a photon counts at most once per pixel and threshold, so the counts between
neighbouring thresholds are independent Poisson numbers and counters are nested. Not simulated yet: that neighbouring
pixels, and in charge summing the single-pixel counters, see the same photons (their covariance); pile-up of energies;
the smaller variance that dead time leaves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import erfc

from calibration.attenuation import material as matter
from firmware_iface import chip
from firmware_iface.errors import WrongUsage
from sim import charge, pulses
from sim.specimen import FINE_THRESHOLDS, SUBPIXEL_PLACES, FrontEnd, PixelTruth, draw_truth
from sim.tables import CHARGE_BINS, CHARGE_STEP_KEV, WINNER_BINS, WINNER_STEP_KEV, deposits

PAIR_EV: Mapping[str, float] = {"silicon": 3.62, "gaas": 4.2, "cdte": 4.43, "czt": 4.64}
FANO: Mapping[str, float] = {"silicon": 0.115, "gaas": 0.12, "cdte": 0.1, "czt": 0.1}
SHGM_DAC_PER_KEV_SILICON = 8.81
TRIM_CENTRE = 16
"""The trim code at which DAC_Disc shifts nothing."""
BUSY_KEV = 5.0
"""Charge from which an event keeps a pixel busy."""
ARBITER_STEP_KEV = 0.25
"""Arbitration is simulated with one TH0 for the whole chip, rounded to this."""
_SINGLE, _WINNER, _SUMMED = range(3)


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
    ) -> None:
        if material not in PAIR_EV:
            raise WrongUsage(f"no sensor of {material!r}; allowed: {', '.join(PAIR_EV)}")
        if pitch_mm not in (chip.PITCH_MM, chip.COLOUR_PITCH_MM):
            raise WrongUsage(f"a pitch of {pitch_mm} mm; allowed: {chip.PITCH_MM} or {chip.COLOUR_PITCH_MM}")
        if cluster_pulse not in ("bonded", "sum"):
            raise WrongUsage(f"cluster_pulse is {cluster_pulse!r}; allowed: 'bonded', 'sum'")
        self.front_end = front_end or FrontEnd()
        self.layer = charge.SensorLayer(
            material=matter(material), thickness_mm=thickness_mm, pitch_mm=pitch_mm, bias_v=bias_v
        )
        self.is_fine = pitch_mm == chip.PITCH_MM
        planes = (FINE_THRESHOLDS if self.is_fine else chip.N_THRESHOLDS, rows, cols)
        self.truth = draw_truth(self.front_end, planes, np.random.default_rng(seed))
        self.collects_holes = material == "silicon" if collects_holes is None else collects_holes
        self._bonded = SUBPIXEL_PLACES[bonded_subpixel]
        self._other_truth = self.truth.as_clusters(self._bonded) if self.is_fine else self.truth.as_fine()
        self._cluster_pulse = cluster_pulse
        self._pair_kev = PAIR_EV[material] * 1e-3
        self._fano = FANO[material]
        self._tables = lru_cache(maxsize=4)(self._make_tables)

    def gain_dac_per_kev(self, gain: chip.Gain) -> float:
        """Return the threshold steps per keV of the mean pixel."""
        per_charge = SHGM_DAC_PER_KEV_SILICON * PAIR_EV["silicon"] * 1e-3 / self._pair_kev
        return per_charge * chip.FEEDBACK_FF[chip.Gain.SHGM] / chip.FEEDBACK_FF[gain]

    def truth_in(self, settings: Settings) -> PixelTruth:
        """Return the pixels as the chip's mode groups them."""
        return self.truth if settings.n_thresholds == self.truth.n_thresholds else self._other_truth

    def baselines_dac(self, settings: Settings) -> NDArray[np.float32]:
        """Return where each baseline stands on its threshold DAC: (n_thresholds, rows, cols) float32."""
        truth = self.truth_in(settings)
        disc = np.where(np.arange(settings.n_thresholds) % 2, settings.disc_h, settings.disc_l)
        shift = disc.astype(np.float32)[:, None, None] * (1 - settings.trim.astype(np.float32) / TRIM_CENTRE)
        return (truth.offset_dac + truth.trim_strength * shift).astype(np.float32)

    def thresholds_kev(self, settings: Settings) -> NDArray[np.float32]:
        """Return the energy at which each discriminator's threshold stands: (n_thresholds, rows, cols) float32."""
        above_dac = np.asarray(settings.threshold_dac, dtype=np.float32)[:, None, None] - self.baselines_dac(settings)
        gain_dac_per_kev = self.gain_dac_per_kev(settings.gain) * self.truth_in(settings).relative_gain
        return (above_dac / gain_dac_per_kev).astype(np.float32)

    def expected(
        self, photons: NDArray[np.float32] | None, energies_kev: NDArray, duration_s: float, settings: Settings
    ) -> NDArray[np.float32]:
        """Return the mean events above each threshold: (n_thresholds, rows, cols) float32; see `expose`."""
        truth = self._checked_truth(settings)
        rows, cols = self.truth.is_dead.shape
        if photons is not None and photons.shape != (len(energies_kev), rows, cols):
            raise ValueError(
                f"photons of shape {photons.shape}; allowed: ({len(energies_kev)}, {rows}, {cols}) for these energies"
            )
        thresholds_kev = self.thresholds_kev(settings)
        is_summed = self._is_summed(settings)
        tables = np.zeros((3, 1, 0), dtype=np.float32)
        if photons is None or settings.is_hole_collecting != self.collects_holes:
            photons = np.zeros((0, *truth.is_dead.shape), dtype=np.float32)
        else:
            is_alone = truth is not self.truth  # no neighbour that counts is on a neighbouring pixel of the sensor
            arbiter_kev = self._arbiter_kev(thresholds_kev[0], settings)
            tables = self._tables(tuple(map(float, energies_kev)), arbiter_kev, is_alone, settings.gain)
            photons = self._reaching(photons, truth)
        which = np.where(is_summed, _SUMMED, _SINGLE)
        if settings.is_csm and not settings.is_equalization:
            which[0] = _WINNER
        front = self.front_end
        return _mean_counts(
            np.ascontiguousarray(photons, dtype=np.float32), tables, which, thresholds_kev, settings.is_masked,
            truth.is_dead, self._noise_kev(settings), truth.relative_noise, settings.is_csm,
            settings.is_csm and not settings.is_equalization, duration_s, front.noise_rate_per_s,
            front.summed_dead_time_s if settings.is_csm else front.dead_time_s,
        )  # fmt: skip

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
        mean = self.expected(photons, energies_kev, duration_s, settings)
        return _draw_counts(mean, settings.is_csm, rng)

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

    @staticmethod
    def _is_summed(settings: Settings) -> NDArray[np.bool_]:
        """Return which thresholds see the charge of 2x2 pixels: (n_thresholds,) bool."""
        return settings.is_csm & (np.arange(settings.n_thresholds) % 2 == 1)

    def _noise_kev(self, settings: Settings) -> NDArray[np.float32]:
        front = self.front_end
        noise_e = np.where(self._is_summed(settings), front.summed_noise_e, front.noise_e).astype(np.float32)
        return (noise_e * (self._pair_kev * front.gain_noise_relative[settings.gain])).astype(np.float32)

    def _arbiter_kev(self, threshold_kev: NDArray[np.float32], settings: Settings) -> float:
        if not settings.is_csm or settings.is_equalization:
            return 0.0
        middle_kev = float(np.median(threshold_kev[~self.truth_in(settings).is_dead]))
        return max(0.0, round(middle_kev / ARBITER_STEP_KEV) * ARBITER_STEP_KEV)

    def _make_tables(
        self, energies_kev: tuple[float, ...], arbiter_kev: float, is_alone: bool, gain: chip.Gain
    ) -> NDArray[np.float32]:
        """Return counts per photon above each threshold: (3 kinds, CHARGE_BINS + 1 thresholds, n_energies) float32."""
        left = deposits(self.layer, energies_kev)
        noisier = self.front_end.gain_noise_relative[gain]
        single, summed = (
            _above(noise_e * self._pair_kev * noisier, self._fano * self._pair_kev)
            for noise_e in (self.front_end.noise_e, self.front_end.summed_noise_e)
        )
        if is_alone:  # nothing to win against, nothing to add: the sum is the pixel's own charge
            kinds = (
                left.single @ single,
                left.single @ single,
                _above_arbiter(left.single, arbiter_kev) @ summed,
            )
        else:
            kinds = (
                left.single @ single,
                left.winner @ single,
                _arbitrated(left.summed, arbiter_kev) @ summed,
            )
        return np.ascontiguousarray(np.stack(kinds).transpose(0, 2, 1))


@lru_cache(maxsize=8)
def _above(noise_kev: float, fano_kev: float) -> NDArray[np.float32]:
    """Return the chance that a charge is seen above a threshold: (CHARGE_BINS, CHARGE_BINS + 1) float32."""
    charge_kev = (np.arange(CHARGE_BINS) + 0.5)[:, None] * CHARGE_STEP_KEV
    threshold_kev = np.arange(CHARGE_BINS + 1)[None, :] * CHARGE_STEP_KEV
    sigma_kev = np.sqrt(noise_kev**2 + fano_kev * charge_kev)
    return (0.5 * erfc((threshold_kev - charge_kev) / (math.sqrt(2) * sigma_kev))).astype(np.float32)


def _arbitrated(summed: NDArray[np.float32], arbiter_kev: float) -> NDArray[np.float32]:
    """Return the sums of events whose winner is above the arbiter's threshold: (n_energies, CHARGE_BINS) float32."""
    lowest_kev = np.arange(WINNER_BINS, dtype=np.float32) * WINNER_STEP_KEV
    share = np.clip(1 - (arbiter_kev - lowest_kev) / WINNER_STEP_KEV, 0, 1)
    return np.einsum("ewc,w->ec", summed, share.astype(np.float32), optimize=True)


def _above_arbiter(single: NDArray[np.float32], arbiter_kev: float) -> NDArray[np.float32]:
    """Return the charges of lone pixels that are above the arbiter's threshold: (n_energies, CHARGE_BINS) float32."""
    lowest_kev = np.arange(CHARGE_BINS, dtype=np.float32) * CHARGE_STEP_KEV
    return single * np.clip(1 - (arbiter_kev - lowest_kev) / CHARGE_STEP_KEV, 0, 1).astype(np.float32)


@njit(cache=True, nogil=True)
def _rises(threshold_kev: float, noise_kev: float) -> float:
    """Return the chance that the baseline is below the threshold, so that a pulse can cross it upwards."""
    return 0.5 * math.erfc(-threshold_kev / (1.4142135623730951 * noise_kev))


@njit(cache=True, nogil=True)
def _crosses(threshold_kev: float, noise_kev: float) -> float:
    """Return the rate of noise above the threshold as a share of the greatest, which is at the baseline."""
    x = threshold_kev / noise_kev
    return math.exp(-0.5 * x * x) if abs(x) < 8 else 0.0


@njit(cache=True, nogil=True, fastmath=True)
def _counts_above(photons: np.ndarray, table: np.ndarray, threshold_kev: float) -> float:
    """Return the mean counts of one pixel above a threshold, between the table's two nearest ones."""
    place = min(max(threshold_kev / np.float32(CHARGE_STEP_KEV), np.float32(0)), np.float32(len(table) - 1.001))
    low = int(place)
    below = above = np.float32(0)
    for energy in range(len(photons)):
        below += photons[energy] * table[low, energy]
        above += photons[energy] * table[low + 1, energy]
    return float(below + (above - below) * (place - low))


@njit(cache=True, nogil=True)
def _mean_counts(
    photons: np.ndarray, tables: np.ndarray, which: np.ndarray, threshold_kev: np.ndarray, is_masked: np.ndarray,
    is_dead: np.ndarray, noise_kev: np.ndarray, relative_noise: np.ndarray, is_csm: bool, has_arbiter: bool,
    duration_s: float, noise_rate_per_s: float, dead_time_s: float,
) -> np.ndarray:  # fmt: skip
    """Fold photons with the tables at every pixel's own thresholds; add noise: (n_thresholds, rows, cols) float32."""
    n_energies, rows, cols = photons.shape
    mean = np.zeros(threshold_kev.shape, dtype=np.float32)
    line = np.empty((cols, n_energies), dtype=np.float32)
    busy_table = tables[_SUMMED if is_csm else _SINGLE]
    for row in range(rows):
        for energy in range(n_energies):
            for col in range(cols):
                line[col, energy] = photons[energy, row, col]
        for col in range(cols):
            if is_dead[row, col]:
                continue
            noisier = relative_noise[row, col]
            busy = _counts_above(line[col], busy_table, BUSY_KEV) if n_energies else 0.0
            alive = math.exp(-busy / duration_s * dead_time_s)
            arbiter_kev, arbiter_noise_kev = threshold_kev[0, row, col], noisier * noise_kev[0]
            for plane in range(len(mean)):
                if is_masked[plane, row, col]:
                    continue
                this_kev, this_noise_kev = threshold_kev[plane, row, col], noisier * noise_kev[plane]
                seen = alive * _rises(this_kev, this_noise_kev)
                noise = noise_rate_per_s * duration_s * _crosses(this_kev, this_noise_kev)
                if has_arbiter and plane % 2:
                    seen *= _rises(arbiter_kev, arbiter_noise_kev)
                    noise *= _crosses(arbiter_kev, arbiter_noise_kev)
                if n_energies and seen > 1e-9:
                    seen *= _counts_above(line[col], tables[which[plane]], this_kev)
                    noise += seen
                mean[plane, row, col] = noise
    return mean


@njit(cache=True, nogil=True)
def _draw_counts(mean: np.ndarray, is_csm: bool, rng: np.random.Generator) -> np.ndarray:
    """Draw nested counts: the difference of neighbouring thresholds is an independent Poisson number.

    In charge summing the single-pixel counters and the summed ones are two families; else all eight are one.
    """
    planes, rows, cols = mean.shape
    counts = np.zeros(mean.shape, dtype=np.uint32)
    family = np.empty(planes, dtype=np.int64)
    for row in range(rows):
        for col in range(cols):
            for start in range(2 if is_csm else 1):
                n = 0
                for plane in range(start, planes, 2 if is_csm else 1):
                    place = n
                    while place and mean[family[place - 1], row, col] > mean[plane, row, col]:
                        family[place] = family[place - 1]
                        place -= 1
                    family[place] = plane
                    n += 1
                drawn, reached = np.uint32(0), np.float32(0)
                for i in range(n):
                    step = mean[family[i], row, col] - reached
                    if step > 0:
                        drawn += np.uint32(rng.poisson(step))
                        reached = mean[family[i], row, col]
                    counts[family[i], row, col] = drawn
    return counts
