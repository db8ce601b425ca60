"""The open beam as every pixel counts it, at the thresholds of the scan: kept with a calibration, with its settings.

It flattens live views, tells how even the detector is, and stands in for the flats of a scan that took none; most
take their own, close in time, because the response of CdTe drifts.

# Ref: photons are counted one by one, so the mean of n frames scatters by 1/sqrt(counts) (Poisson); what pixels differ
#      by beyond that is their own and the beam's pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Evenness(NamedTuple):
    """How even the open beam is above one threshold, over the pixels that are used; shares of the mean.

    `pattern_ratio` is what `counting_ratio` does not explain of `spread_ratio`: the pixels' own differences.
    """

    mean_per_s: float
    spread_ratio: float
    counting_ratio: float
    pattern_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlatField:
    """The open beam, pixel by pixel; when it was measured stands in the calibration's history.

    Attributes
    ----------
    rates_per_s : (n_counters, rows, cols) float32
        Counts above each threshold per second of exposure.
    thresholds : tuple of int
        Number (0 to 7) of the threshold of each counter.
    thresholds_kev : tuple of float
    n_frames : int
    exposure_s : float
        Of all frames together.
    tube_kvp, current_ma : float
        As the tube stood.
    """

    rates_per_s: NDArray[np.float32]
    thresholds: tuple[int, ...]
    thresholds_kev: tuple[float, ...]
    n_frames: int
    exposure_s: float
    tube_kvp: float
    current_ma: float

    def __post_init__(self) -> None:
        n = len(self.rates_per_s)
        if self.rates_per_s.ndim != 3 or not n == len(self.thresholds) == len(self.thresholds_kev):
            raise ValueError(
                f"a flat field of shape {self.rates_per_s.shape} has thresholds {self.thresholds} at "
                f"{self.thresholds_kev} keV; allowed: (n_counters, rows, cols), and one of each for every counter"
            )

    @property
    def frame_s(self) -> float:
        """Exposure of one of its frames."""
        return self.exposure_s / self.n_frames

    @property
    def frame_counts(self) -> NDArray[np.float32]:
        """What one of its frames counts, as a mean: (n_counters, rows, cols)."""
        return self.rates_per_s * np.float32(self.frame_s)

    def evenness(self, is_bad: NDArray[np.bool_]) -> tuple[Evenness, ...]:
        """Return how even each counter is without the pixels that are not used, (rows, cols) bool; NaN without any."""
        return tuple(_evenness(plane[~is_bad].astype(np.float64), self.exposure_s) for plane in self.rates_per_s)


def _evenness(rates_per_s: NDArray[np.float64], exposure_s: float) -> Evenness:
    mean = float(rates_per_s.mean()) if rates_per_s.size else 0.0
    if mean <= 0:
        return Evenness(mean if rates_per_s.size else np.nan, np.nan, np.nan, np.nan)
    spread, counting = float(rates_per_s.std()) / mean, float(1 / np.sqrt(mean * exposure_s))
    return Evenness(mean, spread, counting, float(np.sqrt(max(spread**2 - counting**2, 0.0))))
