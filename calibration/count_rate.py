"""How many events the counters miss or gain at high rates, measured on a sweep of the tube's current, and undone.

Pulses that overlap are lost to the lowest threshold, and the higher ones see sums of pulses that alone they would not
see. Both follow from the traffic of all pulses. The first counter, of the lowest threshold, is its clock: its curve is
inverted, and then each counter is what the first one's share leaves of it, plus a share of the counter below:

    counted[k] = true[k] lost(z) + true[k - 1] gained[k](z),   z = traffic, the true rate of the first counter

This is done on the counters; bins, their differences, follow no such law. A pixel's curves are the mean curves with its
own dead time: its traffic is stretched by `dead_time_ratio`.

That gains are fed by the counter below is a choice. On pulses of constant-current discharge with 40 % loss it leaves
errors of up to 2 % behind 0 to 30 mm of PMMA, where shares of the counter itself leave 4 % and shares of the first
counter 10 % (`tests/test_count_rate.py`): a hard beam overlaps by other charges than the open beam of the sweep.

# Ref: m = n exp(-n tau) and m = n / (1 + n tau): G. F. Knoll, Radiation Detection and Measurement, 4th ed., section
#      4.VII; the hybrid m = n exp(-n tau_p) / (1 + n tau_n): Lee and Gardner 2000, Appl. Radiat. Isot. 53, 731.
# Ref: variance of counts after dead time: D. F. Yu, J. A. Fessler 2000, Phys. Med. Biol. 45, 2043.
# Ref: constant-current discharge makes the dead time grow with energy: arXiv 1903.06147 (Blaj). Its loss begins with
#      the second order of the rate (level crossing), hence the polynomial law, an expansion of log(counted / true).
# Ref: choice between laws: G. Schwarz 1978, Ann. Stat. 6, 461 (BIC).
# Ref: drawing what each pixel shows towards the mean: B. Efron, C. Morris 1975, J. Am. Stat. Assoc. 70, 311.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from firmware_iface.errors import CalibrationMissing, WrongUsage

FEWEST_CURRENTS = 5
TABLE_POINTS = 4097
PEAK_SHARE = 0.98
"""The curve is inverted up to this share of the traffic at which it bends down; beyond, one count has two causes."""
FLOOR = 5e-4
"""Relative error of a point of the mean curve that is no counting statistics: the ripple of the tube's output."""
ITERATIONS = 8
REFINEMENTS = 3
N_GROUPS = 12
THRESHOLD_KEV = 0.5
"""Thresholds that differ by less are the same for the count rate."""

_Curve = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def _non_paralysable(z: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.log1p(np.maximum(c[0] * z, -0.99))


def _hybrid(z: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    return -c[0] * z - np.log1p(np.maximum(c[1] * z, -0.99))


LAWS: Mapping[str, tuple[int, _Curve]] = {
    "paralysable": (1, lambda z, c: -c[0] * z),
    "non-paralysable": (1, _non_paralysable),
    "hybrid": (2, _hybrid),
    "polynomial": (3, lambda z, c: -((c[2] * z + c[1]) * z + c[0]) * z),
}
"""Coefficients of each law, and log(counted / true) at a traffic `z`, in units of the sweep's highest."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CountRate:
    """The counters' curves in one mode, gain and discharge current.

    Attributes
    ----------
    law : str
        One of LAWS: of the first counter's losses.
    thresholds_kev : (n_counters,) float64
        Lowest first.
    loss : (3,) float64
        Coefficients of the law; those that it has not are 0.
    gains : (n_counters, 3) float64
        Of z, z^2 and z^3 in what each counter gains, as a share of the counter below; 0 for the first.
    highest_rate_per_s : float
        True rate of the first counter in the mean pixel at the end of the sweep: the unit of the traffic.
    dead_time_ratio : (rows, cols) float32
        Dead time of each pixel over that of the mean pixel.
    dead_time_sigma_relative : float
        Standard error of one pixel's ratio, before it was drawn towards 1 as that error demands.
    currents_ma : (n_currents,) float64
    rates_per_s : (n_currents, n_counters) float64
        The sweep: what the mean good pixel counted.
    true_rates_per_s_ma : (n_counters,) float64
        Slopes of the mean curves at no current.
    laws : tuple of str
    bic : (n_laws,) float64
        Of each law on the first counter's mean curve: the lowest was taken.
    residual_relative : (n_counters,) float64
        Rms deviation of the mean curves' points from the law.
    next_pass : CountRate, optional
        The same at the thresholds of the next pass, where a scan makes several.
    """

    law: str
    thresholds_kev: NDArray[np.float64]
    loss: NDArray[np.float64]
    gains: NDArray[np.float64]
    highest_rate_per_s: float
    dead_time_ratio: NDArray[np.float32]
    dead_time_sigma_relative: float
    currents_ma: NDArray[np.float64]
    rates_per_s: NDArray[np.float64]
    true_rates_per_s_ma: NDArray[np.float64] = field(metadata={"units": "1/s/mA"})
    laws: tuple[str, ...]
    bic: NDArray[np.float64]
    residual_relative: NDArray[np.float64]
    next_pass: CountRate | None = None

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise ValueError(f"no law {self.law!r}; allowed: {', '.join(LAWS)}")
        shapes = (self.loss.shape, self.gains.shape, self.dead_time_ratio.ndim)
        if shapes != ((3,), (len(self.thresholds_kev), 3), 2):
            raise ValueError(
                f"{len(self.thresholds_kev)} thresholds, loss {shapes[0]}, gains {shapes[1]} and dead times in "
                f"{shapes[2]} dimensions; allowed: (3,), (n_counters, 3), (rows, cols)"
            )
        if not self.highest_rate_per_s > 0 or not (self.dead_time_ratio > 0).all():
            raise ValueError("the highest rate and every dead time ratio; allowed: above 0")

    @property
    def figures(self) -> dict[str, object]:
        """What tells whether it is good."""
        at_ten = self.rate_at_loss_per_s(0.1)
        return {
            "law": self.law,
            "rate_at_10_percent_loss_per_s": round(at_ten) if np.isfinite(at_ten) else None,
            "highest_rate_per_s": round(self.highest_rate_per_s),
            "worst_residual_percent": round(100 * float(self.residual_relative.max()), 3),
        }

    def is_for(self, thresholds_kev: Sequence[float]) -> bool:
        """Whether it was measured at these thresholds: what overlaps add depends on where they stand."""
        mine = self.thresholds_kev
        return len(mine) == len(thresholds_kev) and bool(np.abs(mine - thresholds_kev).max() <= THRESHOLD_KEV)

    @property
    def passes(self) -> tuple[CountRate, ...]:
        """What was measured at the thresholds of each pass, this one first."""
        return (self, *(self.next_pass.passes if self.next_pass else ()))

    def of_pass(self, thresholds_kev: Sequence[float]) -> CountRate | None:
        """Return what was measured at these thresholds, if anything was."""
        return next((each for each in self.passes if each.is_for(thresholds_kev)), None)

    @property
    def thresholds_told(self) -> str:
        """The thresholds of all passes, in words."""
        return "; ".join(str(each.thresholds_kev.tolist()) for each in self.passes)

    def counted_share(self, true_rate_per_s: ArrayLike) -> NDArray[np.float64]:
        """Return counted over true events of the first counter in the mean pixel, at a true rate."""
        return np.exp(self._curve(np.asarray(true_rate_per_s, dtype=np.float64) / self.highest_rate_per_s))

    def rate_at_loss_per_s(self, loss: float) -> float:
        """Return the true rate at which the mean pixel's first counter loses this share; NaN: beyond the sweep."""
        z = np.linspace(0, 1, TABLE_POINTS)
        lost = 1 - np.exp(self._curve(z))
        at = int(np.argmax(lost >= loss))
        if not at:
            return float("nan")
        share = (loss - lost[at - 1]) / (lost[at] - lost[at - 1])
        return float((z[at - 1] + share * (z[at] - z[at - 1])) * self.highest_rate_per_s)

    def counted_per_s(self, currents_ma: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the law says that the mean pixel counts: (n_currents, n_counters) float64."""
        true = currents_ma[:, None] * self.true_rates_per_s_ma
        traffic = true[:, :1] / self.highest_rate_per_s
        counted = true * self.counted_share(true[:, :1])
        powers = traffic ** np.arange(1, self.gains.shape[1] + 1)
        counted[:, 1:] += true[:, :-1] * (powers @ self.gains[1:].T)
        return counted

    def correct(
        self, counts: NDArray[np.number], exposures_s: ArrayLike, *, rows: slice = np.s_[:]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return what the counters would have counted without overlap, and which values nobody can tell.

        Parameters
        ----------
        counts : (..., n_counters, rows, cols) number
            Events above each threshold, lowest first.
        exposures_s : float, or (...) float
        rows : slice
            Of the detector, to which the counts belong.

        Returns
        -------
        true : (..., n_counters, rows, cols) float32
        is_out_of_range : (..., rows, cols) bool
            The traffic is above what the sweep reached, or where its curve bends down: the value is a lower bound.
        """
        ratio = self.dead_time_ratio[rows]
        self._refuse_foreign(counts, ratio)
        exposures = np.broadcast_to(np.asarray(exposures_s, dtype=np.float64), counts.shape[:-3])[..., None, None]
        z, is_out = self._traffic(counts[..., 0, :, :] / exposures, ratio)
        stretched = z * ratio
        share = np.exp(self._curve(stretched))
        true = np.empty(counts.shape, dtype=np.float32)
        true[..., 0, :, :] = counts[..., 0, :, :] / share
        for k in range(1, counts.shape[-3]):
            gained = true[..., k - 1, :, :] * _gain(stretched, self.gains[k])
            true[..., k, :, :] = (counts[..., k, :, :] - gained) / share
        return true, is_out

    def variance_of_bins(self, counts: NDArray[np.number], exposures_s: ArrayLike) -> NDArray[np.float32]:
        """Return the variance of each bin of corrected counts: (..., n_counters, rows, cols) float32.

        Dead time makes the counted events more regular than Poisson's; undoing it enlarges what noise is left. A bin is
        taken for a random share of the first counter's events; the law's own formula holds for the two classical
        laws, and to the first order of the loss for the others.
        """
        self._refuse_foreign(counts, self.dead_time_ratio)
        exposures = np.broadcast_to(np.asarray(exposures_s, dtype=np.float64), counts.shape[:-3])[..., None, None]
        first = np.maximum(counts[..., 0, :, :].astype(np.float64), 1)
        z, _ = self._traffic(first / exposures, self.dead_time_ratio)
        z = z * self.dead_time_ratio
        step = 1e-5
        slope = 1 + z * (self._curve(z + step) - self._curve(z - step)) / (2 * step)  # dlog m / dlog n
        fano = np.clip(self._fano(z, slope), 0.05, 1)
        stretch = 1 / np.maximum(slope, 0.02) - 1
        true, _ = self.correct(counts, exposures_s)
        result = np.empty(counts.shape, dtype=np.float32)
        for counter in range(counts.shape[-3]):
            above = counter + 1 < counts.shape[-3]
            counted = counts[..., counter, :, :].astype(np.float64) - (counts[..., counter + 1, :, :] if above else 0)
            wanted = true[..., counter, :, :] - (true[..., counter + 1, :, :] if above else 0)
            counted = np.maximum(counted, 1)
            enlarged = np.maximum(wanted, 1) / counted
            share = counted / first
            result[..., counter, :, :] = (
                counted * enlarged**2 * (1 + share * (fano - 1) + share * fano * (2 * stretch + stretch**2))
            )
        return result

    def _traffic(
        self, rates_per_s: NDArray, ratio: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Invert the first counter's curve: its true rate in units of the highest, and where that is out of range."""
        z = np.linspace(0, 1.2 * float(self.dead_time_ratio.max()), TABLE_POINTS)
        counted = z * np.exp(self._curve(z))
        bend = int(np.argmax(np.diff(counted) <= 0)) if (np.diff(counted) <= 0).any() else len(z) - 1
        top = max(int(PEAK_SHARE * bend), 1) if bend < len(z) - 1 else bend
        stretched = rates_per_s / self.highest_rate_per_s * ratio
        true = np.interp(stretched, counted[: top + 1], z[: top + 1]) / ratio
        return true, (stretched > counted[top]) | (true > 1.02)

    def _curve(self, z: NDArray[np.floating]) -> NDArray[np.float64]:
        return LAWS[self.law][1](np.asarray(z, dtype=np.float64), self.loss)

    def _fano(self, z: NDArray[np.float64], slope: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return variance over mean of the first counter's events."""
        x = self.loss[0] * z
        if self.law == "paralysable":
            return 1 - 2 * x * np.exp(-x)
        if self.law == "non-paralysable":
            return (1 + x) ** -2.0
        return np.exp(self._curve(z)) * slope

    def _refuse_foreign(self, counts: NDArray[np.number], ratio: NDArray[np.float32]) -> None:
        measured = (len(self.thresholds_kev), *ratio.shape)
        if counts.shape[-3:] != measured:
            raise CalibrationMissing(
                f"the count-rate calibration is of {measured} counters and pixels; "
                f"these counts have {counts.shape[-3:]}",
                hint="measure it in this mode: mpxct calibrate count-rate",
            )


def joined(records: Sequence[CountRate]) -> CountRate:
    """Return one record of several passes, in their order."""
    first, *others = records
    return replace(first, next_pass=joined(others) if others else None)


def fit_count_rate(
    currents_ma: ArrayLike,
    counts: NDArray[np.number],
    *,
    exposures_s: ArrayLike,
    n_frames: ArrayLike,
    thresholds_kev: ArrayLike,
    is_bad: NDArray[np.bool_] | None = None,
    law: str | None = None,
) -> CountRate:
    """Fit every law to the mean curves, take the best, and fit each pixel's own dead time.

    Parameters
    ----------
    currents_ma : (n_currents,) float
        The tube's output must be in proportion to it, its spectrum the same.
    counts : (n_currents, n_counters, rows, cols) number
        Mean counts of a frame at each current, lowest threshold first.
    exposures_s, n_frames : float, or (n_currents,)
        Exposure of a frame, and how many frames each mean is of.
    is_bad : (rows, cols) bool, optional
        Pixels that do not count; their dead time is the mean one.
    law : str, optional
        By default the law of the lowest BIC.

    Raises
    ------
    WrongUsage
        There are too few currents, or the law is unknown.
    CalibrationMissing
        No good pixel counted at some current.
    """
    currents = np.asarray(currents_ma, dtype=np.float64)
    if len(np.unique(currents)) < FEWEST_CURRENTS or (currents <= 0).any():
        raise WrongUsage(
            f"{len(np.unique(currents))} tube currents from {min(currents, default=0):g} mA; "
            f"allowed: {FEWEST_CURRENTS} or more different ones above 0"
        )
    if law is not None and law not in LAWS:
        raise WrongUsage(f"no law {law!r}; allowed: {', '.join(LAWS)}")
    n_seen = (np.asarray(n_frames) * np.ones(len(currents)))[:, None, None, None]
    rates = counts / (np.asarray(exposures_s, dtype=np.float64) * np.ones(len(currents)))[:, None, None, None]
    is_good = np.asarray((counts > 0).all(axis=(0, 1)))
    if is_bad is not None:
        is_good &= ~is_bad
    if not is_good.any():
        raise CalibrationMissing(
            "no good pixel counted at every current of the sweep", hint="use more current or longer exposures"
        )
    mean = rates[..., is_good].mean(axis=-1)
    sigma = np.hypot(FLOOR, 1 / np.sqrt(np.maximum((counts * n_seen)[..., is_good].sum(axis=-1), 1)))
    z = currents / currents.max()
    fits = {name: _fit_loss(name, z[None], mean[None, :, 0], sigma[None, :, 0]) for name in LAWS}
    bic = np.array([fit[2] for fit in fits.values()])
    chosen = law or list(LAWS)[int(np.argmin(bic))]
    curve, loss, highest = LAWS[chosen][1], fits[chosen][1], float(fits[chosen][0][0])
    # The mean of unlike pixels follows no pixel's law: fit pixels, then the law again on groups of like ones.
    events = (counts * n_seen)[:, 0]
    groups, by_group = np.zeros(is_good.sum(), dtype=np.intp), mean[None]
    ratio, log_slope, error = _fit_pixels(curve, loss, currents, rates[:, 0], events, is_good, highest)
    for _ in range(REFINEMENTS):
        order = np.argsort(ratio, kind="stable")
        groups = np.empty(len(ratio), dtype=np.intp)
        groups[order] = np.arange(len(ratio)) * min(N_GROUPS, len(ratio)) // len(ratio)
        members = [groups == number for number in range(groups.max() + 1)]
        by_group = np.stack([rates[..., is_good][..., m].mean(axis=-1) for m in members])
        stretch = [float((np.exp(log_slope[m]) * ratio[m]).mean()) for m in members]
        z = np.asarray(stretch)[:, None] * currents / highest
        share_of = np.array([m.sum() for m in members])[:, None] / len(ratio)
        _, loss, _ = _fit_loss(chosen, z, by_group[..., 0], np.hypot(FLOOR, sigma[None, :, 0] / np.sqrt(share_of)))
        ratio, log_slope, error = _fit_pixels(curve, loss, currents, rates[:, 0], events, is_good, highest)
    share = np.exp(curve(np.atleast_2d(z), loss))
    slopes, gains = _fit_gains(currents, np.atleast_2d(z), share, by_group, sigma)
    model = _model(currents, np.atleast_2d(z), share, slopes, gains)
    ratios = np.ones(is_good.shape, dtype=np.float32)
    ratios[is_good] = ratio
    return CountRate(
        law=chosen,
        thresholds_kev=np.asarray(thresholds_kev, dtype=np.float64),
        loss=loss,
        gains=gains,
        highest_rate_per_s=highest,
        dead_time_ratio=ratios,
        dead_time_sigma_relative=float(np.median(error)),
        currents_ma=currents,
        rates_per_s=mean,
        true_rates_per_s_ma=np.average(slopes, axis=0, weights=np.bincount(groups)),
        laws=tuple(LAWS),
        bic=bic,
        residual_relative=np.sqrt(np.mean((by_group / model - 1) ** 2, axis=(0, 1))),
    )


def _gain(z: NDArray, coefficients: NDArray[np.float64]) -> NDArray:
    return ((coefficients[2] * z + coefficients[1]) * z + coefficients[0]) * z


def _fit_loss(
    law: str, z: NDArray[np.float64], rates: NDArray[np.float64], sigma: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Fit one law to the first counter's curves in groups of pixels, each with its own slope.

    All of (n_groups, n_currents). Returns true rates at z = 1 (n_groups,), coefficients (3,), and the law's BIC.
    """
    n_coefficients, curve = LAWS[law]
    measured, weight = np.log(rates / z), 1 / sigma**2

    def deviation(c: NDArray[np.float64]) -> NDArray[np.float64]:
        left = measured - curve(z, c)
        return ((left - np.average(left, axis=1, weights=weight)[:, None]) / sigma).ravel()

    fit = least_squares(deviation, np.r_[0.1, np.zeros(n_coefficients - 1)])
    coefficients = np.zeros(3)
    coefficients[:n_coefficients] = fit.x
    slopes = np.exp(np.average(measured - curve(z, fit.x), axis=1, weights=weight))
    return slopes, coefficients, 2 * fit.cost + (len(z) + n_coefficients) * np.log(z.size)


def _fit_gains(
    currents_ma: NDArray[np.float64],
    z: NDArray[np.float64],
    share: NDArray[np.float64],
    rates: NDArray[np.float64],
    sigma: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit the higher counters' curves in groups of pixels: true rates by current (n_groups, n_counters), and gains.

    z, share : (n_groups, n_currents); rates : (n_groups, n_currents, n_counters); gains : (n_counters, 3).
    """
    n_groups, _, n = rates.shape
    slopes, gains = np.empty((n_groups, n)), np.zeros((n, 3))
    slopes[:, 0] = np.exp(np.mean(np.log(rates[..., 0] / share / currents_ma), axis=1))
    own = np.eye(n_groups)[:, None, :] * (currents_ma * share)[:, :, None]
    for k in range(1, n):
        below = slopes[:, k - 1, None] * currents_ma
        columns = np.concatenate([own, np.stack([below * z**power for power in (1, 2, 3)], axis=2)], axis=2)
        weight = 1 / (sigma[:, k] * rates[..., k])
        found = np.linalg.lstsq(
            (columns * weight[..., None]).reshape(-1, n_groups + 3), (rates[..., k] * weight).ravel(), rcond=None
        )[0]
        slopes[:, k], gains[k] = found[:n_groups], found[n_groups:]
    return slopes, gains


def _model(
    currents_ma: NDArray[np.float64],
    z: NDArray[np.float64],
    share: NDArray[np.float64],
    slopes: NDArray[np.float64],
    gains: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return what the groups of pixels should count: (n_groups, n_currents, n_counters)."""
    true = slopes[:, None, :] * currents_ma[:, None]
    model = true * share[..., None]
    for k in range(1, slopes.shape[1]):
        model[..., k] += true[..., k - 1] * _gain(z, gains[k])
    return model


def _fit_pixels(
    curve: _Curve,
    loss: NDArray[np.float64],
    currents_ma: NDArray[np.float64],
    rates: NDArray,
    n_events: NDArray,
    is_good: NDArray[np.bool_],
    highest_rate_per_s: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Fit slope and dead time of each good pixel by Gauss-Newton on the logarithm, all pixels at once.

    Returns for each good pixel the ratio, drawn towards their mean, which is 1; log of the slope; error of the ratio.
    """
    seen, weight = np.log(rates[:, is_good] / currents_ma[:, None]), n_events[:, is_good]
    log_slope, ratio = seen[np.argmin(currents_ma)].copy(), np.ones(seen.shape[1])
    information = w = wr = wrr = np.ones_like(ratio)
    step = 1e-4
    for _ in range(ITERATIONS):
        traffic = np.exp(log_slope) * currents_ma[:, None] / highest_rate_per_s
        z = traffic * ratio
        by_ratio = traffic * (curve(z + step, loss) - curve(z - step, loss)) / (2 * step)
        missing = seen - log_slope - curve(z, loss)
        w, wr, wrr = weight.sum(axis=0), (weight * by_ratio).sum(axis=0), (weight * by_ratio**2).sum(axis=0)
        b, br = (weight * missing).sum(axis=0), (weight * by_ratio * missing).sum(axis=0)
        information = wrr - wr**2 / w
        change = np.divide(br - wr * b / w, information, out=np.zeros_like(b), where=information > 0)
        ratio = np.clip(ratio + np.clip(change, -0.3, 0.3), 0.1, 10)
        log_slope = log_slope + (b - wr * change) / w
    # The slope is the unit of the pixel's own traffic: what errors the two share cancel in their ratio.
    error = np.sqrt(np.maximum((w + wrr + 2 * wr) / w / np.maximum(information, 1e-12), 1e-12))
    own = max(float(np.var(ratio) - np.mean(error**2)), 0.0)
    drawn = 1 + (ratio / ratio.mean() - 1) * own / (own + error**2)
    return drawn, log_slope, error
