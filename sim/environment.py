"""What the sensor lives in: time, temperature, bias, and what they do to charges and thresholds.

# Ref: polarisation CCE(t) = 1 - a (1 - exp(-t / tau)) since the bias was switched on; a pause of about 1 s restores the
#      sensor: Cola and Farella 2009, Appl. Phys. Lett. 94, 102113 (abstract) for the effect, the rest from memory.
# Ref: leakage: shot noise of a current over the peaking time, ENC^2 = I t / q.
# Ref: telegraph noise: a pixel's baseline jumps between two levels, with exponential times between jumps.

How far thresholds drift with temperature no source tells for this chip: 0.15 threshold steps per kelvin, with 0.05 from
chip to chip, are choices. Polarisation is off by default. What the leakage of the sensor at hand is, is an option too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage

ELECTRON_NC = 1.602176634e-10
"""The charge of an electron, nC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Climate:
    """What surrounds a sensor.

    Attributes
    ----------
    temperature_c : float
        Of chip and sensor.
    reference_c : float
        At which the thresholds stand where the specimen says.
    drift_dac_per_k, drift_sigma_dac_per_k : float
        How far baselines move on their threshold DACs, and how much that differs from chip to chip.
    polarised_share : float
        Of the charge that is lost in the end.
    polarisation_time_s : float
    refresh_s : float
        After so long without bias the sensor starts again.
    leakage_na : float
        Dark current of a pixel.
    """

    temperature_c: float = 35.0
    reference_c: float = 35.0
    drift_dac_per_k: float = 0.15
    drift_sigma_dac_per_k: float = 0.05
    polarised_share: float = 0.0
    polarisation_time_s: float = 600.0
    refresh_s: float = 1.0
    leakage_na: float = 0.01

    def __post_init__(self) -> None:
        if not -40 <= self.temperature_c <= 85:
            raise WrongUsage(f"temperature_c is {self.temperature_c:g}; allowed: -40 to 85")
        if not 0 <= self.polarised_share < 1:
            raise WrongUsage(f"a polarised share of {self.polarised_share:g}; allowed: from 0, and below 1")
        if not (self.polarisation_time_s > 0 and self.refresh_s >= 0 and self.leakage_na >= 0):
            raise WrongUsage("polarisation time, refresh time and leakage; allowed: above 0")


class Environment:
    """One sensor's surroundings, and its own time.

    Parameters
    ----------
    climate : Climate
    is_telegraph : (rows, cols) bool
    telegraph_dwell_s : float
        How long their baselines stay between jumps.
    bias_v : float
        What is on before the board says otherwise.
    seed : int
        Draws the chip's drift and the jumps.
    """

    def __init__(
        self,
        climate: Climate,
        is_telegraph: NDArray[np.bool_],
        *,
        telegraph_dwell_s: float,
        bias_v: float,
        seed: int,
    ) -> None:
        self.climate = climate
        self.temperature_c = climate.temperature_c
        self.now_s = 0.0
        self.is_still = False
        """Whether no time passes here: what was before an exposure leaves no trace in it."""
        self.clock: Callable[[], float] | None = None
        """The time of the board, which also waits; without one, only exposures take time."""
        rng = np.random.default_rng((seed, 3))
        self._drift_dac_per_k = rng.normal(climate.drift_dac_per_k, climate.drift_sigma_dac_per_k)
        self._telegraph = np.argwhere(is_telegraph)
        self._shape, self._dwell_s = is_telegraph.shape, telegraph_dwell_s
        self._is_up = rng.random(len(self._telegraph)) < 0.5
        self._rng = rng
        self._bias_v = bias_v
        self._on_s, self._off_s = 0.0, 0.0
        self.n_jumps = 0
        """How often baselines have jumped: while it stays, so does `is_up`."""

    @property
    def bias_v(self) -> float:
        """The voltage over the sensor; which sign depletes it is the board's affair."""
        return self._bias_v

    @bias_v.setter
    def bias_v(self, bias_v: float) -> None:
        bias_v = abs(bias_v)
        if self._bias_v and not bias_v:
            self._off_s = self.now_s
        elif bias_v and not self._bias_v:
            pause_s = self.now_s - self._off_s
            self._on_s = self.now_s if pause_s >= self.climate.refresh_s else self._on_s + pause_s
        self._bias_v = bias_v

    def reach(self, now_s: float) -> None:
        """Let time pass until then: baselines of telegraph pixels may jump."""
        passed_s = now_s - self.now_s
        if passed_s <= 0 or self.is_still:
            return
        self.now_s = now_s
        if len(self._telegraph):
            chance = -0.5 * math.expm1(-2 * passed_s / self._dwell_s)
            jumps = self._rng.random(len(self._telegraph)) < chance
            self._is_up ^= jumps
            self.n_jumps += int(jumps.any())

    def pass_time(self, duration_s: float) -> None:
        """Let an exposure end, and whatever the board has waited before it."""
        self.reach(max(self.now_s + duration_s, self.clock() if self.clock else 0.0))

    @property
    def collection(self) -> float:
        """The share of a charge that is collected: what polarisation leaves, and 0 without bias."""
        if not self._bias_v:
            return 0.0
        since_s = self.now_s - self._on_s
        return 1 + self.climate.polarised_share * math.expm1(-since_s / self.climate.polarisation_time_s)

    @property
    def drift_dac(self) -> float:
        """How far temperature has moved all baselines on their threshold DACs."""
        return self._drift_dac_per_k * (self.temperature_c - self.climate.reference_c)

    @property
    def is_up(self) -> NDArray[np.bool_]:
        """Which telegraph pixels' baselines are up: (rows, cols) bool."""
        is_up = np.zeros(self._shape, dtype=bool)
        up = self._telegraph[self._is_up]
        is_up[up[:, 0], up[:, 1]] = True
        return is_up

    def noise_e(self, peaking_time_s: float) -> float:
        """Return the shot noise of the dark current, in electrons."""
        return math.sqrt(self.climate.leakage_na * peaking_time_s / ELECTRON_NC)
