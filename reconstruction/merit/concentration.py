"""How well measured concentrations agree with true ones.

# Ref: line by least squares, standard errors of slope and intercept, band of the mean: Draper and Smith 1998, Applied
#      Regression Analysis, 3rd ed., chapter 1.
# Ref: bias and limits of agreement, and their standard errors: Bland and Altman 1999, Stat. Methods Med. Res. 8, 135.
# Ref: concordance: Lin 1989, Biometrics 45, 255.
# Ref: detection limits: the concentration whose contrast is 5 times the noise of its surrounding, Clark et al. 2013
#      (PMC3746324); 3 standard deviations of the blank over the slope, Currie 1995 (IUPAC), Pure Appl. Chem. 67, 1699.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

DETECTED_CNR = 5.0
BLANK_SIGMAS = 3.0
CONFIDENCE = 0.95
_AGREEING_SIGMAS = 1.96
"""Limits of agreement hold 95 % of differences that are normal."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Regression:
    """measured = slope * true + offset, over a series of vials.

    Attributes
    ----------
    true_mg_ml, measured_mg_ml : (n,) float64
        What it was fitted to.
    slope_se_ratio, offset_se_mg_ml : float
        Standard errors; NaN with two points, which leave nothing to tell them from.
    residual_sd_mg_ml : float
        About the line; NaN with two points.
    concordance_ratio : float
        Lin's coefficient: 1 only where measured equals true.
    worst_mg_ml : float
        Largest error of any vial, against its true concentration.
    """

    slope: float
    slope_se_ratio: float
    offset_mg_ml: float
    offset_se_mg_ml: float
    r2: float
    residual_sd_mg_ml: float
    concordance_ratio: float
    worst_mg_ml: float
    true_mg_ml: NDArray[np.float64]
    measured_mg_ml: NDArray[np.float64]

    def at(self, true_mg_ml: ArrayLike) -> NDArray[np.float64]:
        """Return what the line reads."""
        return self.slope * np.asarray(true_mg_ml, dtype=np.float64) + self.offset_mg_ml

    def band(self, true_mg_ml: ArrayLike, confidence: float = CONFIDENCE) -> NDArray[np.float64]:
        """Return how far the line may be off on either side, with this confidence; NaN with two points."""
        n, mean = len(self.true_mg_ml), self.true_mg_ml.mean()
        away = np.asarray(true_mg_ml, dtype=np.float64) - mean
        if n < 3:
            return np.full(away.shape, np.nan)
        reach = stats.t.ppf((1 + confidence) / 2, n - 2)
        spread = ((self.true_mg_ml - mean) ** 2).sum()
        return reach * self.residual_sd_mg_ml * np.sqrt(1 / n + away**2 / spread)


def regress(true_mg_ml: ArrayLike, measured_mg_ml: ArrayLike) -> Regression:
    """Fit measured on true concentrations, all with one weight.

    Parameters
    ----------
    true_mg_ml, measured_mg_ml : (n,) float
        At least two true ones differ.
    """
    true, measured = _pairs(true_mg_ml, measured_mg_ml)
    n = len(true)
    if len(np.unique(true)) < 2:
        raise ValueError(f"{n} concentrations, and no two differ; allowed: at least 2")
    away = true - true.mean()
    spread = float(away @ away)
    slope = float(away @ measured) / spread
    intercept = float(measured.mean() - slope * true.mean())
    residual = measured - slope * true - intercept
    total = float(((measured - measured.mean()) ** 2).sum())
    variance = float(residual @ residual) / (n - 2) if n > 2 else np.nan
    return Regression(
        slope=slope,
        slope_se_ratio=float(np.sqrt(variance / spread)),
        offset_mg_ml=intercept,
        offset_se_mg_ml=float(np.sqrt(variance * (1 / n + true.mean() ** 2 / spread))),
        r2=1 - float(residual @ residual) / total if total > 0 else np.nan,
        residual_sd_mg_ml=float(np.sqrt(variance)),
        concordance_ratio=2 * slope * spread / (spread + total + n * float(true.mean() - measured.mean()) ** 2),
        worst_mg_ml=float(np.abs(measured - true).max()),
        true_mg_ml=true,
        measured_mg_ml=measured,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Differences measured - true: their mean, and the limits that hold 95 % of them.

    Attributes
    ----------
    bias_se_mg_ml, limit_se_mg_ml : float
        Standard errors of the bias and of either limit; NaN with one point.
    """

    bias_mg_ml: float
    bias_se_mg_ml: float
    lower_mg_ml: float
    upper_mg_ml: float
    limit_se_mg_ml: float
    rmse_mg_ml: float
    n: int


def agreement(true_mg_ml: ArrayLike, measured_mg_ml: ArrayLike) -> Agreement:
    """Compare measured with true concentrations after Bland and Altman: both (n,) float, at least one of them."""
    true, measured = _pairs(true_mg_ml, measured_mg_ml)
    wrong, n = measured - true, len(true)
    if not n:
        raise ValueError("there is no concentration to compare; allowed: at least 1")
    bias = float(wrong.mean())
    sd = float(wrong.std(ddof=1)) if n > 1 else np.nan
    reach = _AGREEING_SIGMAS * sd
    return Agreement(
        bias_mg_ml=bias,
        bias_se_mg_ml=sd / float(np.sqrt(n)),
        lower_mg_ml=bias - reach,
        upper_mg_ml=bias + reach,
        limit_se_mg_ml=sd * float(np.sqrt(1 / n + _AGREEING_SIGMAS**2 / (2 * (n - 1)))) if n > 1 else np.nan,
        rmse_mg_ml=float(np.sqrt(np.mean(wrong**2))),
        n=n,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionLimits:
    """The least concentration that is seen in one voxel: by contrast to noise, and by the blank's spread."""

    cnr_mg_ml: float
    iupac_mg_ml: float


def detection_limits(slope: float, blank_sd_mg_ml: float) -> DetectionLimits:
    """Return from where on a voxel stands out of a blank whose voxels spread by `blank_sd_mg_ml`.

    Both scale with the noise, so that they hold for one voxel size, sharpness and dose. NaN where the slope is not
    positive: such a map detects nothing.
    """
    least = blank_sd_mg_ml / slope if slope > 0 else np.nan
    return DetectionLimits(cnr_mg_ml=DETECTED_CNR * least, iupac_mg_ml=BLANK_SIGMAS * least)


def contrast_to_noise(mean_mg_ml: ArrayLike, blank_mg_ml: float, blank_sd_mg_ml: float) -> NDArray[np.float64]:
    """Return how many standard deviations of the blank's voxels a mean stands away from the blank's."""
    return np.asarray(np.abs(np.asarray(mean_mg_ml) - blank_mg_ml) / blank_sd_mg_ml, dtype=np.float64)


def mixing(true_mg_ml: ArrayLike, measured_mg_ml: ArrayLike) -> NDArray[np.float64]:
    """Return how much of each material the maps show for one mg/mL of each that is there.

    Parameters
    ----------
    true_mg_ml, measured_mg_ml : (n_vials, n_materials) float

    Returns
    -------
    shown : (n_materials, n_materials) float64
        `shown[map, there]`: slopes on the diagonal, cross-talk beside it; NaN where the vials cannot tell.
    """
    true, measured = (np.asarray(c, dtype=np.float64) for c in (true_mg_ml, measured_mg_ml))
    design = np.column_stack([true, np.ones(len(true))])
    n = true.shape[1]
    if len(true) < n + 1 or np.linalg.matrix_rank(design) < n + 1:
        return np.full((n, n), np.nan)
    return np.asarray(np.linalg.lstsq(design, measured, rcond=None)[0][:n].T, dtype=np.float64)


def _pairs(true_mg_ml: ArrayLike, measured_mg_ml: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    true, measured = (np.asarray(c, dtype=np.float64).ravel() for c in (true_mg_ml, measured_mg_ml))
    if len(true) != len(measured):
        raise ValueError(f"{len(true)} true and {len(measured)} measured concentrations; allowed: as many of each")
    return true, measured
