"""The step `energy`: put thresholds to keV by the S-curves of sources with known lines, and each pixel's too."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from acquisition.calibrate.edges import NOISE_KEV, layer_of
from acquisition.calibrate.exposures import (
    HIGHEST_CODE,
    TUBE,
    Instrument,
    Work,
    beam,
    frame,
    parked_dacs,
    refuse_full,
    set_up_detector,
)
from acquisition.calibrate.watch import CurveFitted, show
from acquisition.plan import Plan
from calibration.edge_form import EdgeForm, edge_form
from calibration.energy_scale import (
    EndPoint,
    EnergyScale,
    SCurve,
    find_end_point,
    fit_energy_scale,
    has_edge,
    line_group,
    mean_kev,
    steepest_dac,
    steepest_kev,
)
from calibration.equalisation import mean_and_sigma
from calibration.pixel_scale import Lines, PixelScale, edge_shifts, fit_lines, shift_grid
from calibration.progress import Progress
from calibration.store import Calibration, MeasuredLine
from firmware_iface.device import Detector
from firmware_iface.errors import CalibrationMissing, WrongUsage

Model = Callable[[NDArray[np.float64]], NDArray[np.float64]]

FIRST_SHARE, FIRST_SHARE_ALONE = 0.86, 0.72
LAST_SHARE, LAST_KEV = 1.10, 2.0
"""A scan goes from this share of its lowest line, lower where pixels do not sum and edges rise out of shared charge, to
this share of its highest and so many keV more."""
STEPS_PER_EDGE = 130
"""A step is about this part of the highest line's distance from no charge."""
SHIFT_KEV = 5.0
"""How far from the chip's edge a pixel's is looked for, at the least."""
FIRST_PIXELS = 2000
"""So many pixels are enough to tell how the pixels' edges differ."""
LEAST_WIDTH = 0.4
"""A pixel's edge is not taken for narrower than this share of the chip's."""
ZERO_SIGMA_KEV = 0.05
"""How well the noise peak is taken to tell where no charge stands: a choice, several times its statistical error."""
END_POINT_SHARES = (0.86, 1.06)
END_POINT_STEPS = 24


@dataclass(slots=True, kw_only=True, eq=False)
class _Scan:
    """What one source showed: counts (n_steps, n_read, n_good) of the good pixels."""

    source: str
    form: EdgeForm
    codes: NDArray[np.float64]
    counts: NDArray[np.unsignedinteger]

    def curve_of(self, rows: int | slice, which: NDArray[np.bool_] | slice = slice(None)) -> SCurve:
        """Return what thresholds and pixels count together."""
        counts = self.counts[:, rows][..., which].reshape(len(self.codes), -1).sum(axis=1, dtype=np.float64)
        return SCurve(source=self.source, lines=line_group(self.source), form=self.form, dacs=self.codes, counts=counts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fit:
    """What one threshold's scans tell."""

    scale: EnergyScale
    lines: Lines
    curves: list[SCurve]

    def shown(self, number: int) -> list[CurveFitted]:
        """Return every source's curve on this threshold beside its fit, for whoever looks on."""
        return [
            CurveFitted(
                source=curve.source,
                threshold=number,
                codes_dac=curve.dacs,
                counts=curve.counts,
                fitted=self.scale.model_of(which, curve)(curve.dacs),
                position_dac=float(self.scale.positions_dac[which]),
            )
            for which, curve in enumerate(self.curves)
        ]


def energy(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Put the thresholds that are read on an energy scale, in the scan's own mode, and each of their pixels.

    The first source is looked for over a wide range, which mends the nominal gain; then each is scanned finely, and
    those that show no edge in this mode are left out. Thresholds that are not read (Threshold0 arbitrates) take offset
    and gain from those that are, the offset moved by how far their noise stands from the others'.
    """
    set_up_detector(instrument.detector, plan, calibration, parked_dacs(calibration, plan))
    instrument.gantry.select_sample(None)
    with beam(instrument.gantry):
        offset_dac, gain = yield from _find_gain(instrument, plan, calibration)
        calibration = replace(calibration, gain_dac_per_kev=np.full(len(calibration.trim), gain))
        instrument.detector.set_dacs(parked_dacs(calibration, plan))
        scans = yield from _scan_sources(instrument, plan, calibration, (offset_dac, gain))
    with_edge = [scan for scan in scans if has_edge(scan.curve_of(slice(None)))]
    if len(with_edge) < 2:
        raise CalibrationMissing(
            f"of the sources {', '.join(scan.source for scan in scans)} only {len(with_edge)} show an edge in this "
            "mode; needed: 2 or more",
            hint="expose longer, or choose sources below the sensor's K edges",
        )
    fits = yield from _fit_thresholds(with_edge, plan, calibration, (offset_dac, gain))
    for number, fit in fits.items():
        for curve in fit.shown(number):
            show(instrument, curve)
    calibration = replace(
        _with_scales(calibration, fits),
        sources_without_edge=tuple(scan.source for scan in scans if scan not in with_edge),
    )
    if plan.calibration.energy.end_point_kvp:
        calibration = replace(calibration, end_point=(yield from _check_end_point(instrument, plan, calibration)))
    return calibration


def _scan_s_curve(
    detector: Detector, plan: Plan, stage: str, codes: range, is_good: NDArray[np.bool_]
) -> Generator[Progress, None, NDArray[np.unsignedinteger]]:
    """Scan the thresholds that are read together: counts of the good pixels, (n_steps, n_read, n_good)."""
    taken = []
    for done, code in enumerate(codes):
        yield Progress(stage, done, len(codes))
        detector.set_dacs({f"Threshold{number}": code for number in plan.detector.thresholds})
        counts = frame(detector, plan.calibration.energy_exposure_s).counts
        refuse_full(counts, plan, stage)
        taken.append(counts[:, is_good])
    return np.stack(taken)


def _is_quiet(counts: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
    """Return which pixels, of counts (n_steps, n_pixels), count next to nothing above all lines, as good ones do."""
    tail = counts[-3:].sum(axis=0, dtype=np.float64)
    limit = np.median(tail)
    return tail <= limit + 5 * np.sqrt(limit + 1) + 5


def _find_gain(
    instrument: Instrument, plan: Plan, calibration: Calibration
) -> Generator[Progress, None, tuple[float, float]]:
    """Look for the source of lowest energy over a wide range: offset in DAC, and gain in DAC per keV."""
    read = list(plan.detector.thresholds)
    offset_dac = float(calibration.offset_dac[read].mean())
    name = min(plan.calibration.sources, key=lambda source: mean_kev(line_group(source)))
    energy_kev = mean_kev(line_group(name))
    steepest = steepest_kev(edge_form(line_group(name), layer_of(plan)), NOISE_KEV)
    expected = float(calibration.gain_dac_per_kev[read].mean()) * energy_kev
    codes = range(round(offset_dac + 0.5 * expected), min(round(offset_dac + 1.7 * expected), HIGHEST_CODE), 5)
    instrument.gantry.select_source(name)
    counts = yield from _scan_s_curve(instrument.detector, plan, f"find {name}", codes, ~calibration.is_bad)
    curve = sum(of_one[:, _is_quiet(of_one)].sum(axis=1, dtype=np.float64) for of_one in counts.swapaxes(0, 1))
    return offset_dac, (steepest_dac(codes, np.asarray(curve)) - offset_dac) / steepest


def _scan_sources(
    instrument: Instrument, plan: Plan, calibration: Calibration, scale: tuple[float, float]
) -> Generator[Progress, None, list[_Scan]]:
    """Scan each source finely around its lines."""
    offset_dac, gain = scale
    scans = []
    for name in plan.calibration.sources:
        energies_kev = tuple(line.energy_kev for line in line_group(name))
        # Above the window no good pixel may still count, or those with a high gain would be taken for noisy ones.
        first_share = FIRST_SHARE if plan.detector.is_csm else FIRST_SHARE_ALONE
        first = offset_dac + gain * first_share * min(energies_kev)
        last = offset_dac + gain * (LAST_SHARE * max(energies_kev) + LAST_KEV)
        if last > HIGHEST_CODE:
            continue  # beyond the range of the DAC in this gain
        codes = range(round(first), round(last) + 1, max(1, round(gain * max(energies_kev) / STEPS_PER_EDGE)))
        instrument.gantry.select_source(name)
        counts = yield from _scan_s_curve(instrument.detector, plan, f"scan {name}", codes, ~calibration.is_bad)
        scans.append(
            _Scan(
                source=name,
                form=edge_form(line_group(name), layer_of(plan)),
                codes=np.asarray(codes, dtype=np.float64),
                counts=counts,
            )
        )
    if len(scans) < 2:
        raise WrongUsage(
            f"of the sources {', '.join(plan.calibration.sources)} only {len(scans)} lie on the DAC in gain "
            f"{plan.detector.gain}; allowed: 2 or more",
            hint="choose sources of lower energy, or a lower gain",
        )
    return scans


def _fit_thresholds(
    scans: list[_Scan], plan: Plan, calibration: Calibration, guess: tuple[float, float]
) -> Generator[Progress, None, dict[int, _Fit]]:
    """Fit the scales of all thresholds that are read, side by side."""
    read = plan.detector.thresholds
    is_good = ~calibration.is_bad
    # Where single pixels count, the noise peak stands at no charge; behind sums the summing node has an offset.
    knows_zero = not plan.detector.is_csm and plan.calibration.equalisation.method == "noise"
    zeros = [calibration.edges_after_dac[number][is_good] if knows_zero else None for number in read]
    fits: dict[int, _Fit] = {}
    with ThreadPoolExecutor() as pool:
        running = pool.map(partial(_fit_threshold, scans, guess), range(len(read)), zeros)
        for number in read:
            yield Progress("fit", len(fits), len(read))
            fits[number] = next(running)
    return fits


def _fit_threshold(
    scans: list[_Scan], guess: tuple[float, float], row: int, zero_dac: NDArray[np.float32] | None
) -> _Fit:
    """Fit the scale of one threshold by what all pixels count together, and the lines of its pixels.

    Parameters
    ----------
    zero_dac : (n_good,) float32, optional
        Where no charge stands in each pixel.
    """
    quiet = [_is_quiet(scan.counts[:, row]) for scan in scans]
    curves = [scan.curve_of(row, is_quiet) for scan, is_quiet in zip(scans, quiet, strict=True)]
    sigma_dac = ZERO_SIGMA_KEV * guess[1]
    zero = None if zero_dac is None else (mean_and_sigma(zero_dac)[0], sigma_dac)
    scale = fit_energy_scale(curves, guess=guess, zero=zero)
    at = scale.offset_dac + scale.gain_dac_per_kev * scale.energies_kev
    energies, positions, sigmas = list(scale.energies_kev), [], []
    for which, (scan, is_quiet, curve) in enumerate(zip(scans, quiet, curves, strict=True)):
        shift, sigma = _shifts(scan, row, partial(scale.model_of, which, curve), scale)
        positions.append(np.where(is_quiet, at[which] + shift, np.nan))
        sigmas.append(sigma)
    if zero_dac is not None:
        energies, positions = [0.0, *energies], [zero_dac.astype(np.float64), *positions]
        sigmas = [np.full(zero_dac.shape, sigma_dac), *sigmas]
    return _Fit(
        scale=scale,
        lines=fit_lines(np.asarray(energies), np.stack(positions), np.stack(sigmas)),
        curves=curves,
    )


def _shifts(
    scan: _Scan, row: int, model_of: Callable[..., Model], scale: EnergyScale
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far each pixel's edge stands from the chip's, and the errors.

    The chip's edge is blurred by how the pixels' edges differ, which a first look at some of them tells.
    """
    wide_dac = SHIFT_KEV * scale.gain_dac_per_kev + 0.1 * (scan.codes[-1] - scan.codes[0])
    grid, counts = shift_grid(wide_dac), scan.counts[:, row]
    every = slice(None, None, max(1, counts.shape[1] // FIRST_PIXELS))
    width_dac = float(scale.widths_dac[scale.sources.index(scan.source)])
    shift, sigma = edge_shifts(counts[:, every], scan.codes, model_of(), grid)
    known = np.isfinite(shift)
    if not known.any():
        return edge_shifts(counts, scan.codes, model_of(), grid)
    _, spread = mean_and_sigma(shift[known])
    between = max(spread**2 - float(np.median(sigma[known] ** 2)), 0.0)
    own_dac = np.sqrt(max(width_dac**2 - between, (LEAST_WIDTH * width_dac) ** 2))
    return edge_shifts(counts, scan.codes, model_of(width_dac=own_dac), grid)


def _check_end_point(
    instrument: Instrument, plan: Plan, calibration: Calibration
) -> Generator[Progress, None, EndPoint | None]:
    """Look where the tube's spectrum ends, with the highest threshold that is read; None beyond the DAC's range."""
    wanted, number = plan.calibration.energy, plan.detector.thresholds[-1]
    try:
        first, last = (calibration.threshold_dac(number, share * wanted.end_point_kvp) for share in END_POINT_SHARES)
    except WrongUsage:
        return None
    codes = range(first, last + 1, max(1, (last - first) // END_POINT_STEPS))
    instrument.gantry.select_source(TUBE)
    instrument.gantry.set_tube(wanted.end_point_kvp, wanted.end_point_ma)
    scale = calibration.pixel_scale
    is_good = ~calibration.is_bad
    if scale is not None:
        is_good &= np.isfinite(scale.gain_dac_per_kev[number])
    counts = np.zeros(len(codes))
    noisy = np.zeros(is_good.shape, dtype=bool)
    taken = []
    with beam(instrument.gantry):
        for done, code in enumerate(codes):
            yield Progress(f"end of {wanted.end_point_kvp:g} kV", done, len(codes))
            instrument.detector.set_dacs({f"Threshold{number}": code})
            taken.append(
                sum(
                    frame(instrument.detector, plan.detector.exposure_s).counts[-1].astype(np.float64)
                    for _ in range(wanted.end_point_frames)
                )
            )
    beyond = np.mean(taken[-3:], axis=0)
    noisy = beyond > np.median(beyond[is_good]) + 5 * np.sqrt(np.median(beyond[is_good]) + 1) + 5
    counts = np.asarray([one[is_good & ~noisy].sum() for one in taken])
    energies = np.asarray([calibration.threshold_kev(number, code) for code in codes])
    # one pixel's threshold stands elsewhere than the chip's: their spread blurs the end as noise does
    spread = 0.0
    if scale is not None:
        spread = float(np.nanstd(scale.threshold_kev(number, codes[len(codes) // 2])[is_good & ~noisy]))
    try:
        return find_end_point(energies, counts, wanted.end_point_kvp, sigma_kev=float(np.hypot(spread, 0.8)))
    except CalibrationMissing:
        return None


def _pixel_scale(calibration: Calibration, fits: Mapping[int, _Fit]) -> PixelScale:
    """Return the pixels' lines as maps, with NaN for what was not measured."""
    is_good = ~calibration.is_bad

    def filled(values_of: Callable[[Lines], NDArray[np.float64]]) -> NDArray[np.float32]:
        maps = np.full(calibration.trim.shape, np.nan, dtype=np.float32)
        for number, fit in fits.items():
            maps[number, is_good] = values_of(fit.lines)
        return maps

    return PixelScale(
        offset_dac=filled(lambda lines: lines.parameters[:, 0]),
        gain_dac_per_kev=filled(lambda lines: lines.parameters[:, 1]),
        offset_variance=filled(lambda lines: lines.covariance[:, 0, 0]),
        gain_variance=filled(lambda lines: lines.covariance[:, 1, 1]),
        covariance=filled(lambda lines: lines.covariance[:, 0, 1]),
        chi2_ratio=np.asarray(
            [fits[number].lines.chi2_ratio if number in fits else np.nan for number in range(len(calibration.trim))]
        ),
    )


def _with_scales(calibration: Calibration, fits: Mapping[int, _Fit]) -> Calibration:
    n = len(calibration.trim)
    scales = {number: fit.scale for number, fit in fits.items()}
    noise = np.asarray([mean_and_sigma(plane)[0] for plane in calibration.edges_after_dac])
    above = np.mean([scale.offset_dac - noise[number] for number, scale in scales.items()])
    gains = np.full(n, np.mean([scale.gain_dac_per_kev for scale in scales.values()]))
    offsets = noise + above
    covariance = np.full((n, 2, 2), np.nan)
    for number, scale in scales.items():
        gains[number], offsets[number] = scale.gain_dac_per_kev, scale.offset_dac
        covariance[number] = scale.covariance
    lines = tuple(
        MeasuredLine(
            threshold=number,
            source=source,
            energy_kev=float(scale.energies_kev[row]),
            position_dac=float(scale.positions_dac[row]),
            residual_kev=float(scale.residuals_kev[row]),
        )
        for number, scale in scales.items()
        for row, source in enumerate(scale.sources)
    )
    return replace(
        calibration,
        offset_dac=offsets,
        gain_dac_per_kev=gains,
        lines=lines,
        scale_covariance=covariance,
        pixel_scale=_pixel_scale(calibration, fits),
        flat_field=None,  # its thresholds stood where the scale before put them
    )
