"""The step `energy`: put thresholds to keV by the S-curves of sources with known lines, and each pixel's too."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

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
from acquisition.plan import Plan
from calibration.energy_scale import (
    EndPoint,
    EnergyScale,
    SCurve,
    find_end_point,
    fit_energy_scale,
    line_group,
    mean_kev,
    steepest_dac,
)
from calibration.equalisation import mean_and_sigma
from calibration.pixel_scale import PixelScale, edge_shifts, fit_lines, registered, shift_grid
from calibration.progress import Progress
from calibration.store import Calibration, MeasuredLine
from firmware_iface.device import Detector
from firmware_iface.errors import CalibrationMissing, WrongUsage

FIRST_SHARE, LAST_SHARE, LAST_KEV = 0.86, 1.10, 2.0
"""A scan goes from this share of its lowest line to this share of its highest and so many keV more."""
STEPS_PER_EDGE = 130
"""A step is about this part of the highest line's distance from no charge."""
SHIFT_KEV = 5.0
"""How far from the chip's edge a pixel's is looked for, at the least."""
REGISTERED_PIXELS = 6000
"""So many pixels are enough for the curve that all are compared with: its counts are no longer what limits it."""
END_POINT_SHARES = (0.86, 1.06)
END_POINT_STEPS = 24


@dataclass(slots=True, kw_only=True, eq=False)
class _Scan:
    """What one source showed: counts (n_steps, n_read, n_good) of the good pixels."""

    source: str
    codes: NDArray[np.float64]
    counts: NDArray[np.unsignedinteger]


def energy(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Put the thresholds that are read on an energy scale, in the scan's own mode, and each of their pixels.

    The first source is looked for over a wide range, which mends the nominal gain; then each is scanned finely. The
    curves of the pixels are laid over one another before the chip's scale is fitted, so that their differences do not
    blur it. Thresholds that are not read (Threshold0 arbitrates) take offset and gain from those that are, the offset
    moved by how far their noise stands from the others'.
    """
    set_up_detector(instrument.detector, plan, calibration, parked_dacs(calibration, plan))
    instrument.gantry.select_sample(None)
    with beam(instrument.gantry):
        offset_dac, gain = yield from _find_gain(instrument, plan, calibration)
        calibration = replace(calibration, gain_dac_per_kev=np.full(len(calibration.trim), gain))
        instrument.detector.set_dacs(parked_dacs(calibration, plan))
        scans = yield from _scan_sources(instrument, plan, calibration, (offset_dac, gain))
    scales: dict[int, EnergyScale] = {}
    pixel_scale = _nothing_known(calibration)
    read = plan.detector.thresholds
    for row, number in enumerate(read):
        yield Progress("fit", row, len(read))
        like = scales.get(read[row - 1]) if row else None
        scales[number] = _fit_threshold(scans, row, number, ~calibration.is_bad, (offset_dac, gain), like, pixel_scale)
    calibration = _with_scales(calibration, scales, pixel_scale)
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
    expected = float(calibration.gain_dac_per_kev[read].mean()) * energy_kev
    codes = range(round(offset_dac + 0.5 * expected), min(round(offset_dac + 1.7 * expected), HIGHEST_CODE), 5)
    instrument.gantry.select_source(name)
    counts = yield from _scan_s_curve(instrument.detector, plan, f"find {name}", codes, ~calibration.is_bad)
    curve = sum(of_one[:, _is_quiet(of_one)].sum(axis=1, dtype=np.float64) for of_one in counts.swapaxes(0, 1))
    return offset_dac, (steepest_dac(codes, np.asarray(curve)) - offset_dac) / energy_kev


def _scan_sources(
    instrument: Instrument, plan: Plan, calibration: Calibration, scale: tuple[float, float]
) -> Generator[Progress, None, list[_Scan]]:
    """Scan each source finely around its lines."""
    offset_dac, gain = scale
    scans = []
    for name in plan.calibration.sources:
        energies_kev = tuple(line.energy_kev for line in line_group(name))
        # Below the window escape peaks of the sensor may stand, which the model of the curve does not know. Above it no
        # good pixel may still count, or those with a high gain would be taken for noisy ones and left out.
        first = offset_dac + gain * FIRST_SHARE * min(energies_kev)
        last = offset_dac + gain * (LAST_SHARE * max(energies_kev) + LAST_KEV)
        if last > HIGHEST_CODE:
            continue  # beyond the range of the DAC in this gain
        codes = range(round(first), round(last) + 1, max(1, round(gain * max(energies_kev) / STEPS_PER_EDGE)))
        instrument.gantry.select_source(name)
        counts = yield from _scan_s_curve(instrument.detector, plan, f"scan {name}", codes, ~calibration.is_bad)
        scans.append(_Scan(source=name, codes=np.asarray(codes, dtype=np.float64), counts=counts))
    if len(scans) < 2:
        raise WrongUsage(
            f"of the sources {', '.join(plan.calibration.sources)} only {len(scans)} lie on the DAC in gain "
            f"{plan.detector.gain}; allowed: 2 or more",
            hint="choose sources of lower energy, or a lower gain",
        )
    return scans


def _fit_threshold(
    scans: list[_Scan],
    row: int,
    number: int,
    is_good: NDArray[np.bool_],
    guess: tuple[float, float],
    like: EnergyScale | None,
    pixel_scale: PixelScale,
) -> EnergyScale:
    """Fit the scale of one threshold, and write its pixels' own into the maps."""
    quiet = [_is_quiet(scan.counts[:, row]) for scan in scans]
    sums = [scan.counts[:, row, which].sum(axis=1, dtype=np.float64) for scan, which in zip(scans, quiet, strict=True)]
    curves = [_curve(scan, scan.codes, total) for scan, total in zip(scans, sums, strict=True)]
    blurred = fit_energy_scale(curves, guess=guess, like=like)
    every = slice(None, None, max(1, scans[0].counts.shape[2] // REGISTERED_PIXELS))
    some = [replace(scan, counts=scan.counts[:, :, every]) for scan in scans]
    shifts = _shifts(some, row, [which[every] for which in quiet], blurred, curves)
    laid = [
        _curve(scan, *registered(scan.counts[:, row], scan.codes, shift - np.nanmedian(shift)))
        for scan, (shift, _) in zip(some, shifts, strict=True)
    ]
    scale = fit_energy_scale(laid, like=blurred)
    shifts = _shifts(scans, row, quiet, scale, laid)
    at = scale.offset_dac + scale.gain_dac_per_kev * scale.energies_kev
    lines = fit_lines(
        scale.energies_kev, np.stack([shift for shift, _ in shifts]) + at[:, None], np.stack([s for _, s in shifts])
    )
    pixel_scale.offset_dac[number, is_good], pixel_scale.gain_dac_per_kev[number, is_good] = lines.parameters.T
    pixel_scale.offset_variance[number, is_good] = lines.covariance[:, 0, 0]
    pixel_scale.gain_variance[number, is_good] = lines.covariance[:, 1, 1]
    pixel_scale.covariance[number, is_good] = lines.covariance[:, 0, 1]
    pixel_scale.chi2_ratio[number] = lines.chi2_ratio
    return scale


def _curve(scan: _Scan, codes: NDArray[np.float64], counts: NDArray[np.float64]) -> SCurve:
    return SCurve(source=scan.source, lines=line_group(scan.source), dacs=codes, counts=counts)


def _shifts(
    scans: list[_Scan], row: int, quiet: list[NDArray[np.bool_]], scale: EnergyScale, curves: list[SCurve]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return how far each pixel's edge of each source stands from the scale, and the errors; NaN in noisy pixels."""
    found = []
    for which, (scan, is_quiet, curve) in enumerate(zip(scans, quiet, curves, strict=True)):
        reach_dac = SHIFT_KEV * scale.gain_dac_per_kev + 0.1 * (scan.codes[-1] - scan.codes[0])
        shift, sigma = edge_shifts(scan.counts[:, row], scan.codes, scale.model_of(which, curve), shift_grid(reach_dac))
        found.append((np.where(is_quiet, shift, np.nan), sigma))
    return found


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


def _nothing_known(calibration: Calibration) -> PixelScale:
    """Return maps of NaN, to be filled threshold by threshold."""

    def unknown() -> NDArray[np.float32]:
        return np.full(calibration.trim.shape, np.nan, dtype=np.float32)

    return PixelScale(
        offset_dac=unknown(),
        gain_dac_per_kev=unknown(),
        offset_variance=unknown(),
        gain_variance=unknown(),
        covariance=unknown(),
        chi2_ratio=np.full(len(calibration.trim), np.nan),
    )


def _with_scales(calibration: Calibration, scales: dict[int, EnergyScale], pixel_scale: PixelScale) -> Calibration:
    n = len(calibration.trim)
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
        pixel_scale=pixel_scale,
    )
