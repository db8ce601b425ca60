"""The calibration run: what the detector is asked, in which order, until a `Calibration` is known.

Each step takes the calibration so far and returns a better one: `equalise` makes it, `energy` puts thresholds to keV,
`pixels` judges pixels, `materials` measures the basis. All are generators of progress.

# Ref: order and codes: EXCALIBUR calibration, dexter and Merlin manual v0.7 p43-45 (reference on the Medipix3RX,
#      section 8; its addendum, section 5): noise peaks at 1 ms, target 15, DAC_Disc from two settings, trims spread
#      over the matrix so that not all pixels are noisy at once, then one step up or down where it helps.
# Ref: nominal gain 8.81 DAC/keV in SHGM (EXCALIBUR) times 7 fF over the feedback capacitance of the mode.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from acquisition.plan import Cell, Plan
from calibration import thresholds
from calibration.attenuation import Line, material
from calibration.correction import bins
from calibration.material_basis import CellMeasurement, measure_basis
from calibration.pixels import PixelClass, classify
from calibration.progress import Progress
from calibration.spectrum import emission
from calibration.store import Calibration, MeasuredLine, software_version
from firmware_iface.chip import COLS, FEEDBACK_FF, N_THRESHOLDS, ROWS, SUBPIXELS, TRIM_CODES, Gain
from firmware_iface.device import Configuration, Detector, PixelConfiguration
from firmware_iface.errors import CalibrationMissing, DataLost, WrongUsage
from firmware_iface.frame import Frame

if TYPE_CHECKING:
    from acquisition.gantry import Gantry

TUBE = "TUBE"
LOWEST_TARGET_DAC = 15.0
TRIAL_DISCS = (60, 120)
MIDDLE_TRIM = TRIM_CODES // 2
MEASURED_TRIMS = (0, 8, 16, 24, 31)
HIGHEST_CODE = 511
PARKED_CODE = HIGHEST_CODE
SHGM_DAC_PER_KEV = 8.81
RETRIES = 3
FULL_SHARE = 0.95
"""Counters nearer to their end than this are taken for full."""
FULL_PIXELS_SHARE = 0.02
"""This share of the pixels may be full: noisy ones are."""
QUIET_SHARE = 3e-3
"""A noise scan is over when fewer pixels than this share count anything."""
GROUP = 0.2
"""Lines within this share of a source's strongest line are looked at together."""

Work = Generator[Progress, None, Calibration]


NoiseScan = Callable[[str, NDArray[np.uint8], range], Generator[Progress, None, NDArray[np.float32]]]
"""Stage name, trims and codes to noise peaks."""


class Instrument(Protocol):
    """A detector and the gantry around it."""

    @property
    def detector(self) -> Detector:
        """What counts."""
        ...

    @property
    def gantry(self) -> Gantry:
        """What moves and shines."""
        ...


def calibrate_all(instrument: Instrument, plan: Plan) -> Work:
    """Run every step in its order and return the whole calibration."""
    _refuse_unknown(instrument.gantry, plan)
    calibration = yield from equalise(instrument, plan)
    calibration = yield from energy(instrument, plan, calibration)
    calibration = yield from pixels(instrument, plan, calibration)
    return (yield from materials(instrument, plan, calibration))


def pixel_configuration(calibration: Calibration) -> PixelConfiguration:
    """Return trims and masks as the chip's own matrix holds them."""
    return _matrix(calibration.trim, calibration.is_masked)


def operating_dacs(calibration: Calibration, plan: Plan) -> dict[str, int]:
    """Return every DAC code of the scan that a plan describes, thresholds included.

    In charge summing Threshold0 arbitrates; thresholds that are not read are parked out of the way.
    """
    codes = _parked_dacs(calibration, plan)
    for number, energy_kev in zip(plan.detector.thresholds, plan.detector.thresholds_kev, strict=True):
        codes[f"Threshold{number}"] = calibration.threshold_dac(number, energy_kev)
    return codes


def equalise(instrument: Instrument, plan: Plan, *, target_dac: float | None = None) -> Work:
    """Bring the noise peaks of all eight thresholds to one code; the energy scale is then still nominal.

    Noise peaks are measured at the middle trim (the figure before), DAC_DiscL and DAC_DiscH are chosen, five trim
    codes spread over the matrix are measured, the best is chosen by interpolation, tried one step further, and
    measured again.

    Parameters
    ----------
    target_dac : float, optional
        Where to bring them. By default where they stand at the middle trim, which asks the least of the trims and so
        allows the finest steps; but not so low that a peak is cut by the end of the DAC.
    """
    detector, exposure_s = instrument.detector, plan.calibration.equalisation_exposure_s
    _refuse_fine_pitch(plan)
    instrument.gantry.beam(False)
    detector.set_bias(plan.detector.bias_v)
    detector.configure(
        Configuration(
            is_colour=True,
            is_csm=plan.detector.is_csm,
            gain=Gain[plan.detector.gain],
            depth_bits=12,
            counters=(0, 1),
            is_equalization=True,
        )
    )
    planes = (N_THRESHOLDS, ROWS // 2, COLS // 2)

    def scan(stage: str, trim: NDArray[np.uint8], codes: range) -> Generator[Progress, None, NDArray[np.float32]]:
        return (yield from _noise_scan(detector, stage, trim, codes, exposure_s))

    before = yield from scan(
        "noise before", np.full(planes, MIDDLE_TRIM, dtype=np.uint8), range(0, HIGHEST_CODE + 1, 2)
    )
    if target_dac is None:
        target_dac = max(LOWEST_TARGET_DAC, round(thresholds.mean_and_sigma(before)[0]))
    discs = yield from _choose_discs(detector, scan, target_dac, planes)
    detector.set_dacs(discs)
    edges = yield from _measure_trims(scan, planes, range(0, HIGHEST_CODE + 1, 3))
    choice = thresholds.choose_trims(edges, MEASURED_TRIMS, target_dac)

    near = range(max(round(target_dac) - 15, 0), round(target_dac) + 16)
    trim = choice.trims
    measured = yield from scan("check", trim, near)
    trial = thresholds.refine_trims(trim, measured, target_dac)
    is_better = thresholds.is_closer((yield from scan("refine", trial, near)), measured, target_dac)
    trim = np.where(is_better, trial, trim)
    after = yield from scan("noise after", trim, near)

    used = _used_thresholds(plan)
    pixel_class = np.zeros(planes[1:], dtype=np.uint8)
    pixel_class[choice.is_out_of_range[used].any(axis=0)] |= np.uint8(PixelClass.OUT_OF_TRIM)
    pixel_class[np.isnan(after[used]).any(axis=0)] |= np.uint8(PixelClass.NO_EDGE)
    nominal = SHGM_DAC_PER_KEV * FEEDBACK_FF[Gain.SHGM] / FEEDBACK_FF[Gain[plan.detector.gain]]
    return Calibration(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        software=software_version(),
        device=detector.info.serial,
        chip_id=str(detector.chip_id()),
        gain=plan.detector.gain,
        is_csm=plan.detector.is_csm,
        is_colour=True,
        bias_v=plan.detector.bias_v,
        dacs=dict(detector.dacs),
        trim=trim,
        is_masked=np.zeros(planes, dtype=bool),
        pixel_class=pixel_class,
        target_dac=target_dac,
        edges_before_dac=before,
        edges_after_dac=after,
        offset_dac=np.asarray([thresholds.mean_and_sigma(plane)[0] for plane in after]),
        gain_dac_per_kev=np.full(N_THRESHOLDS, nominal),
        lines=(),
        thresholds_kev=plan.detector.thresholds_kev,
    )


def energy(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Put the thresholds that are read on an energy scale, in the scan's own mode.

    The first source is looked for over a wide range, which mends the nominal gain; then each is scanned finely. The
    thresholds that are not read (Threshold0 arbitrates) keep the offset of their noise peaks and take the mean gain of
    those that are read.
    """
    set_up_detector(instrument.detector, plan, calibration, _parked_dacs(calibration, plan))
    instrument.gantry.select_sample(None)
    with _beam(instrument.gantry):
        offset_dac, gain = yield from _find_gain(instrument, plan, calibration)
        calibration = replace(calibration, gain_dac_per_kev=np.full(N_THRESHOLDS, gain))
        instrument.detector.set_dacs(_parked_dacs(calibration, plan))
        curves = yield from _scan_sources(instrument, plan, calibration, (offset_dac, gain))
    scales = {
        number: thresholds.fit_energy_scale(of_one, guess=(offset_dac, gain)) for number, of_one in curves.items()
    }
    return _with_scales(calibration, scales)


def pixels(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Judge every pixel at the thresholds of the scan: without beam, then under the open beam.

    Pixels that fire without a photon are switched off first, because in charge summing they spoil their neighbours;
    then those that still fire are classified.
    """
    detector, exposure_s = instrument.detector, plan.detector.exposure_s
    instrument.gantry.beam(False)
    calibration = replace(calibration, is_masked=np.zeros_like(calibration.is_masked))
    n_dark, n_flat = plan.calibration.n_dark_frames, plan.calibration.n_flat_frames
    set_up_detector(detector, plan, calibration, operating_dacs(calibration, plan))
    dark = yield from _take(detector, "dark", n_dark, exposure_s)
    is_masked = calibration.is_masked.copy()
    is_masked[list(plan.detector.thresholds)] = dark.sum(axis=0) > 0
    calibration = replace(calibration, is_masked=is_masked)
    detector.load_pixels(pixel_configuration(calibration))
    dark = yield from _take(detector, "dark, masked", n_dark, exposure_s)
    _select_open_beam(instrument.gantry, plan)
    with _beam(instrument.gantry):
        flats = yield from _take(detector, "flats", n_flat, exposure_s)
    refuse_full(flats, plan, "flats")
    found = calibration.pixel_class
    pixel_class = classify(
        dark,
        flats,
        is_out_of_range=(found & np.uint8(PixelClass.OUT_OF_TRIM)) > 0,
        has_no_edge=(found & np.uint8(PixelClass.NO_EDGE)) > 0,
        is_masked=np.asarray(is_masked.any(axis=0)),
    )
    return replace(calibration, pixel_class=pixel_class)


def materials(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Measure the basis behind each cell, with flats before and after it against the drift of tube and sensor."""
    detector, gantry = instrument.detector, instrument.gantry
    cells = plan.calibration.cells
    n_flat = max(1, round(2 * plan.calibration.n_flat_frames / (len(cells) + 1)))
    set_up_detector(detector, plan, calibration, operating_dacs(calibration, plan))
    _select_open_beam(gantry, plan)
    gantry.rotate_to(0.0)
    behind = []
    with _beam(gantry):
        flats = [(yield from _mean_bins(detector, plan, "flats", n_flat))]
        for cell in cells:
            gantry.select_sample(cell.name)
            behind.append((yield from _mean_bins(detector, plan, cell.name, plan.calibration.n_cell_frames)))
            gantry.select_sample(None)
            flats.append((yield from _mean_bins(detector, plan, "flats", n_flat)))
    basis = measure_basis(
        np.mean(flats, axis=0),
        [
            _undrifted(cell, counts, flats, index)
            for index, (cell, counts) in enumerate(zip(cells, behind, strict=True))
        ],
        geometry=plan.geometry,
        thresholds_kev=plan.detector.thresholds_kev,
        densities_g_cm3={cell.material: material(cell.material).density_g_cm3 for cell in cells},
        is_bad=calibration.is_bad,
    )
    basis = replace(basis, tube_kvp=plan.source.kvp)
    return replace(calibration, basis=basis, thresholds_kev=plan.detector.thresholds_kev)


def _undrifted(
    cell: Cell, counts: NDArray[np.float64], flats: Sequence[NDArray[np.float64]], index: int
) -> CellMeasurement:
    """Scale what came through a cell by how far the flats around it stand from the mean of all flats, bin by bin."""
    around = (flats[index].mean(axis=(1, 2)) + flats[index + 1].mean(axis=(1, 2))) / 2
    drift = np.mean([flat.mean(axis=(1, 2)) for flat in flats], axis=0) / around
    return CellMeasurement(
        material=cell.material,
        concentration_mg_ml=cell.concentration_mg_ml,
        thickness_mm=cell.thickness_mm,
        counts=counts * drift[:, None, None],
    )


def _choose_discs(
    detector: Detector, scan: NoiseScan, target_dac: float, planes: tuple[int, ...]
) -> Generator[Progress, None, dict[str, int]]:
    """Measure mean edges with two strengths of the trim DACs, and return the strengths to use.

    Half of the pixels stand at trim 0 and half at the middle, like a chessboard; the highest trim, whose peaks may lie
    below the DAC's range, follows by a straight line.
    """
    is_middle = np.indices(planes).sum(axis=0) % 2 == 1
    lowest: dict[int, list[float]] = {0: [], 1: []}
    highest: dict[int, list[float]] = {0: [], 1: []}
    sigma_dac = 0.0
    for disc in TRIAL_DISCS:
        detector.set_dacs({"DAC_DiscL": disc, "DAC_DiscH": disc})
        trim = np.where(is_middle, MIDDLE_TRIM, 0).astype(np.uint8)
        edges = yield from scan(f"DAC_Disc {disc}", trim, range(0, HIGHEST_CODE + 1, 4))
        for side in (0, 1):
            here, middle = edges[side::2], is_middle[side::2]
            at_0, sigma = thresholds.mean_and_sigma(here[~middle])
            at_middle, _ = thresholds.mean_and_sigma(here[middle])
            lowest[side].append(at_0)
            highest[side].append(at_0 + (at_middle - at_0) * (TRIM_CODES - 1) / MIDDLE_TRIM)
            sigma_dac = max(sigma_dac, sigma)
    return {
        name: thresholds.choose_disc(
            TRIAL_DISCS, lowest[side], highest[side], sigma_dac=sigma_dac, target_dac=target_dac
        )
        for side, name in enumerate(("DAC_DiscL", "DAC_DiscH"))
    }


def _measure_trims(
    scan: NoiseScan, planes: tuple[int, ...], codes: range
) -> Generator[Progress, None, NDArray[np.float32]]:
    """Measure the noise peak of every pixel at each of MEASURED_TRIMS: (n_trims, 8, rows, cols) float32."""
    n_trims = len(MEASURED_TRIMS)
    edges = np.full((n_trims, *planes), np.nan, dtype=np.float32)
    _, row, col = np.indices(planes)
    for shift in range(n_trims):
        which = (row + col + shift) % n_trims
        found = yield from scan(f"trims {shift + 1}/{n_trims}", np.asarray(MEASURED_TRIMS, np.uint8)[which], codes)
        np.put_along_axis(edges, which[None], found[None], axis=0)
    return edges


def _noise_scan(
    detector: Detector, stage: str, trim: NDArray[np.uint8], codes: range, exposure_s: float
) -> Generator[Progress, None, NDArray[np.float32]]:
    """Scan all eight thresholds together over the noise, until no more is seen: edges (8, rows, cols) float32."""
    detector.load_pixels(_matrix(trim, np.zeros(trim.shape, dtype=bool)))
    taken: list[NDArray[np.unsignedinteger]] = []
    has_counted = np.zeros(trim.shape, dtype=bool)
    n_quiet = 0
    for done, code in enumerate(codes):
        yield Progress(stage, done, len(codes))
        detector.set_dacs({f"Threshold{number}": code for number in range(N_THRESHOLDS)})
        counts = _frame(detector, exposure_s).counts
        taken.append(counts)
        has_counted |= counts > 0
        n_quiet = n_quiet + 1 if np.count_nonzero(counts) < QUIET_SHARE * counts.size else 0
        if n_quiet == 4 and has_counted.mean() > 0.5:
            break
    return thresholds.noise_edges_dac(np.stack(taken), codes[: len(taken)])


def _scan_s_curve(
    detector: Detector, plan: Plan, stage: str, codes: range, is_good: NDArray[np.bool_]
) -> Generator[Progress, None, NDArray[np.float64]]:
    """Scan the thresholds that are read together: sums over the quiet pixels, (n_steps, n_read) float64."""
    taken = []
    for done, code in enumerate(codes):
        yield Progress(stage, done, len(codes))
        detector.set_dacs({f"Threshold{number}": code for number in plan.detector.thresholds})
        counts = _frame(detector, plan.calibration.energy_exposure_s).counts
        refuse_full(counts, plan, stage)
        taken.append(counts[:, is_good])
    curves = np.stack(taken).astype(np.float64)
    # Above all lines a good pixel counts next to nothing; one that does is noisy, and would bend the curve.
    tail = curves[-3:].sum(axis=0)
    limit = np.median(tail, axis=1, keepdims=True)
    is_quiet = tail <= limit + 5 * np.sqrt(limit + 1) + 5
    return np.sum(curves, axis=2, where=is_quiet)


def _find_gain(
    instrument: Instrument, plan: Plan, calibration: Calibration
) -> Generator[Progress, None, tuple[float, float]]:
    """Look for the source of lowest energy over a wide range: offset in DAC, and gain in DAC per keV."""
    read = list(plan.detector.thresholds)
    offset_dac = float(calibration.offset_dac[read].mean())
    name = min(plan.calibration.sources, key=lambda source: _mean_kev(_line_group(source)))
    energy_kev = _mean_kev(_line_group(name))
    expected = float(calibration.gain_dac_per_kev[read].mean()) * energy_kev
    codes = range(round(offset_dac + 0.5 * expected), min(round(offset_dac + 1.7 * expected), HIGHEST_CODE), 5)
    instrument.gantry.select_source(name)
    counts = yield from _scan_s_curve(instrument.detector, plan, f"find {name}", codes, ~calibration.is_bad)
    return offset_dac, (thresholds.steepest_dac(codes, counts.sum(axis=1)) - offset_dac) / energy_kev


def _scan_sources(
    instrument: Instrument, plan: Plan, calibration: Calibration, scale: tuple[float, float]
) -> Generator[Progress, None, dict[int, list[thresholds.SCurve]]]:
    """Scan each source finely around its lines: the S-curves of each threshold that is read."""
    offset_dac, gain = scale
    curves: dict[int, list[thresholds.SCurve]] = {number: [] for number in plan.detector.thresholds}
    scanned = []
    for name in plan.calibration.sources:
        lines = _line_group(name)
        energies_kev = tuple(line.energy_kev for line in lines)
        # Below the window escape peaks of the sensor may stand, which the model of the curve does not know. Above it no
        # good pixel may still count, or those with a high gain would be taken for noisy ones and left out.
        first, last = offset_dac + gain * 0.86 * min(energies_kev), offset_dac + gain * (1.10 * max(energies_kev) + 2)
        if last > HIGHEST_CODE:
            continue  # beyond the range of the DAC in this gain
        codes = range(round(first), round(last) + 1, max(1, round(gain * max(energies_kev) / 130)))
        instrument.gantry.select_source(name)
        counts = yield from _scan_s_curve(instrument.detector, plan, f"scan {name}", codes, ~calibration.is_bad)
        scanned.append(name)
        for of_one, column in zip(curves.values(), counts.T, strict=True):
            of_one.append(
                thresholds.SCurve(
                    source=name,
                    lines=lines,
                    dacs=np.asarray(codes, dtype=np.float64),
                    counts=column,
                )
            )
    if len(scanned) < 2:
        raise WrongUsage(
            f"of the sources {', '.join(plan.calibration.sources)} only {len(scanned)} lie on the DAC in gain "
            f"{plan.detector.gain}; allowed: 2 or more",
            hint="choose sources of lower energy, or a lower gain",
        )
    return curves


def _with_scales(calibration: Calibration, scales: dict[int, thresholds.EnergyScale]) -> Calibration:
    gains = np.full(N_THRESHOLDS, np.mean([scale.gain_dac_per_kev for scale in scales.values()]))
    offsets = np.asarray([thresholds.mean_and_sigma(plane)[0] for plane in calibration.edges_after_dac])
    for number, scale in scales.items():
        gains[number], offsets[number] = scale.gain_dac_per_kev, scale.offset_dac
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
    return replace(calibration, offset_dac=offsets, gain_dac_per_kev=gains, lines=lines)


def _line_group(source: str) -> tuple[Line, ...]:
    """Return the strongest line of a source and those near it."""
    lines = emission(source)
    strongest = max(lines, key=lambda line: line.fraction)
    return tuple(line for line in lines if abs(line.energy_kev / strongest.energy_kev - 1) <= GROUP)


def _mean_kev(lines: Iterable[Line]) -> float:
    lines = tuple(lines)
    return sum(line.energy_kev * line.fraction for line in lines) / sum(line.fraction for line in lines)


def _parked_dacs(calibration: Calibration, plan: Plan) -> dict[str, int]:
    """Return every DAC code with the thresholds out of the way, but for the one that arbitrates."""
    codes = {**calibration.dacs, **{f"Threshold{number}": PARKED_CODE for number in range(N_THRESHOLDS)}}
    if plan.detector.is_csm:
        codes["Threshold0"] = calibration.threshold_dac(0, plan.detector.arbitration_kev)
    return codes


def set_up_detector(detector: Detector, plan: Plan, calibration: Calibration, dacs: dict[str, int]) -> None:
    """Bring the detector into the state of the scan, with these DAC codes."""
    if (calibration.gain, calibration.is_csm, calibration.is_colour) != (
        plan.detector.gain,
        plan.detector.is_csm,
        plan.detector.is_colour,
    ):
        raise CalibrationMissing(
            f"the equalisation was made in gain {calibration.gain}, charge summing {calibration.is_csm}; "
            f"the plan wants {plan.detector.gain}, {plan.detector.is_csm}",
            hint="equalise again with this plan",
        )
    detector.set_bias(plan.detector.bias_v)
    detector.configure(
        Configuration(
            is_colour=plan.detector.is_colour,
            is_csm=plan.detector.is_csm,
            gain=Gain[plan.detector.gain],
            depth_bits=plan.detector.depth_bits,
            counters=plan.detector.counters,
        )
    )
    detector.set_dacs(dacs)
    detector.load_pixels(pixel_configuration(calibration))


def _select_open_beam(gantry: Gantry, plan: Plan) -> None:
    gantry.select_sample(None)
    gantry.select_source(TUBE)
    gantry.set_tube(plan.source.kvp, plan.source.current_ma)


@contextmanager
def _beam(gantry: Gantry) -> Iterator[None]:
    """Switch the beam on, and off again however the work inside ends."""
    gantry.beam(True)
    try:
        yield
    finally:
        gantry.beam(False)


def _matrix(trim: NDArray[np.uint8], is_masked: NDArray[np.bool_]) -> PixelConfiguration:
    """Spread planes (8, rows, cols) over the chip's own pixels, two thresholds to each."""
    trim_l, trim_h = np.zeros((ROWS, COLS), dtype=np.uint8), np.zeros((ROWS, COLS), dtype=np.uint8)
    masks = np.zeros((ROWS, COLS), dtype=bool)
    for pair, (row, col) in enumerate(SUBPIXELS):
        trim_l[row::2, col::2], trim_h[row::2, col::2] = trim[2 * pair], trim[2 * pair + 1]
        masks[row::2, col::2] = is_masked[2 * pair] | is_masked[2 * pair + 1]
    return PixelConfiguration(is_masked=masks, trim_l=trim_l, trim_h=trim_h, is_test=np.zeros((ROWS, COLS), dtype=bool))


def _frame(detector: Detector, exposure_s: float) -> Frame:
    """Take one frame; one that is lost is taken again."""
    for _ in range(RETRIES):
        # To the end of the run: one that is left early is aborted and drained where nobody hears a Ctrl-C.
        taken = [item for item in detector.frames(1, exposure_s) if isinstance(item, Frame)]
        if taken:
            return taken[0]
    raise DataLost(
        f"one frame of the calibration was lost {RETRIES} times in a row", hint="check the cable and `mpxct doctor`"
    )


def _take(
    detector: Detector, stage: str, n_frames: int, exposure_s: float
) -> Generator[Progress, None, NDArray[np.unsignedinteger]]:
    """Take frames, lost ones again: (n_frames, n_counters, rows, cols)."""
    taken: list[NDArray[np.unsignedinteger]] = []
    for _ in range(RETRIES):
        for item in detector.frames(n_frames - len(taken), exposure_s):
            if isinstance(item, Frame):
                yield Progress(stage, len(taken), n_frames)
                taken.append(item.counts)
        if len(taken) == n_frames:
            return np.stack(taken)
    raise DataLost(
        f"{n_frames - len(taken)} of {n_frames} frames of '{stage}' stayed lost after {RETRIES} attempts",
        hint="check the cable and `mpxct doctor`",
    )


def _mean_bins(
    detector: Detector, plan: Plan, stage: str, n_frames: int
) -> Generator[Progress, None, NDArray[np.float64]]:
    counts = yield from _take(detector, stage, n_frames, plan.detector.exposure_s)
    refuse_full(counts, plan, stage)
    return bins(counts.mean(axis=0, dtype=np.float64)).astype(np.float64)


def refuse_full(counts: NDArray[np.unsignedinteger], plan: Plan, stage: str) -> None:
    """Refuse counts (..., n_counters, rows, cols) of which more than a few pixels are near the end of the counter."""
    full = FULL_SHARE * ((1 << plan.detector.depth_bits) - 1)
    share = float((counts >= full).mean(axis=(-2, -1)).max())
    if share > FULL_PIXELS_SHARE:
        raise WrongUsage(
            f"{100 * share:.0f} % of the pixels count {full:.0f} and more in '{stage}', where the counters end; "
            f"allowed: up to {100 * FULL_PIXELS_SHARE:.0f} %",
            hint="take a shorter exposure or less current",
        )


def _refuse_unknown(gantry: Gantry, plan: Plan) -> None:
    """Refuse sources and cells that are not there, or of which nothing is known, before time is spent on the others."""
    for source in plan.calibration.sources:
        emission(source)
        if source not in gantry.sources():
            raise WrongUsage(f"there is no source {source!r}; there are {', '.join(gantry.sources())}")
    for cell in plan.calibration.cells:
        material(cell.material)
        if cell.name not in gantry.samples():
            raise WrongUsage(f"the sample changer has no {cell.name!r}; it has {', '.join(gantry.samples())}")


def _used_thresholds(plan: Plan) -> list[int]:
    return sorted({*plan.detector.thresholds, *((0,) if plan.detector.is_csm else ())})


def _refuse_fine_pitch(plan: Plan) -> None:
    if not plan.detector.is_colour:
        raise WrongUsage(
            f"mode {plan.detector.mode} cannot be calibrated here; allowed: colour-csm, colour-spm",
            hint="choose a colour mode in the plan",
        )
