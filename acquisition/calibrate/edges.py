"""Where each pixel's thresholds stand, measured in one of three ways: by noise, by test pulses, by a source's edge.

All three give one code per discriminator. `spacing` lets few pixels count at a time: the others are masked, and a scan
is made for each of the spacing x spacing patterns.

# Ref: noise peak at 1 ms, spacing, test pulses of 2222 e- and more from TP_REF 0.3 V, 3.204e-5 V per electron, spacing:
#      dexter and Merlin manual v0.7 p20, p43-45; reference on the Medipix3RX, sections 7.1 and 8.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from acquisition.calibrate.exposures import HIGHEST_CODE, Instrument, beam, frame, matrix
from acquisition.calibrate.watch import EdgesFound, show
from acquisition.plan import Plan
from calibration.bias_currents import search
from calibration.edge_form import EdgeForm, Layer, edge_form
from calibration.energy_scale import expected_counts, line_group, mean_kev, steepest_dac, steepest_kev
from calibration.equalisation import falling_edges_dac, mean_and_sigma, noise_edges_dac
from calibration.pixel_scale import edge_shifts, shift_grid
from calibration.progress import Progress
from firmware_iface.chip import (
    COLOUR_PITCH_MM,
    COLS,
    FEEDBACK_FF,
    FINE_THRESHOLDS,
    N_THRESHOLDS,
    PITCH_MM,
    ROWS,
    SUBPIXELS,
    TEST_PULSE_V_PER_E,
    Gain,
)
from firmware_iface.device import Configuration

SHGM_DAC_PER_KEV = 8.81
"""In silicon, whose pair takes `SILICON_PAIR_EV`; other sensors and gains in proportion."""
SILICON_PAIR_EV = 3.62
QUIET_SHARE = 3e-3
"""A noise scan is over when fewer pixels than this share count anything."""
PULSE_PERIOD_S = 1e-4
PULSE_SPACING = 3
PULSE_WINDOW_KEV = 4.0
"""Several times the noise of charge summing."""
NOISE_KEV = 1.0
"""Noise and spread of the pixels that is taken for granted before any is measured."""
FEWEST_COUNTS = 1e-3
"""Beyond the edge, per absorbed photon."""
SPREAD_DAC = 80
"""How far pixels may stand from the mean before they are equalised, trims from end to end included."""

Planes = Generator[Progress, None, NDArray[np.float32]]


def nominal_gain(plan: Plan) -> float:
    """Return the steps per keV that the sources tell of the gain mode, for this sensor's energy per electron."""
    per_charge = SHGM_DAC_PER_KEV * SILICON_PAIR_EV / plan.calibration.equalisation.pair_ev
    return per_charge * FEEDBACK_FF[Gain.SHGM] / FEEDBACK_FF[Gain[plan.detector.gain]]


def layer_of(plan: Plan) -> Layer:
    """Return the sensor of a plan, as it counts."""
    sensor = plan.calibration.response
    return Layer(
        material=sensor.sensor_material,
        thickness_mm=sensor.sensor_thickness_mm,
        pitch_mm=COLOUR_PITCH_MM if plan.detector.is_colour else PITCH_MM,
        bias_v=plan.detector.bias_v,
        is_csm=plan.detector.is_csm,
    )


class Edges(Protocol):
    """One way to measure edges."""

    energy_kev: float
    """Charge at whose edge this looks."""
    lowest_dac: float
    """Lower edges than this are not seen whole."""

    def prepare(self) -> Generator[Progress, None, None]:
        """Set up what is needed before the first scan."""
        ...

    def scan(self, stage: str, trim: NDArray[np.uint8], codes: range | None) -> Planes:
        """Return the edge of each discriminator, (n_thresholds, rows, cols) float32; without codes, look everywhere."""
        ...


def edges_of(instrument: Instrument, plan: Plan) -> Edges:
    """Return the way that the plan wants."""
    ways = {"noise": NoiseEdges, "pulses": PulseEdges, "source": SourceEdges}
    return ways[plan.calibration.equalisation.method](instrument, plan)


def equalisation_configuration(plan: Plan, *, is_test_pulsed: bool = False) -> Configuration:
    """Return the scan's own mode, in which every discriminator counts for itself and all are read."""
    return Configuration(
        is_colour=plan.detector.is_colour,
        is_csm=plan.detector.is_csm,
        gain=Gain[plan.detector.gain],
        depth_bits=12,
        counters=(0, 1),
        is_equalization=True,
        is_test_pulsed=is_test_pulsed,
    )


@dataclass(slots=True)
class NoiseEdges:
    """The code at which a discriminator counts the most noise: no photons, one thousandth of a second."""

    instrument: Instrument
    plan: Plan
    energy_kev: float = 0.0
    lowest_dac: float = 15.0

    def prepare(self) -> Generator[Progress, None, None]:
        """Darken, and choose the mode."""
        self.instrument.gantry.beam(False)
        self.instrument.detector.configure(equalisation_configuration(self.plan))
        yield from ()

    def scan(self, stage: str, trim: NDArray[np.uint8], codes: range | None) -> Planes:
        """Scan upwards until no more noise is seen."""
        detector, exposure_s = self.instrument.detector, self.plan.calibration.equalisation_exposure_s
        edges = np.full(trim.shape, np.nan, dtype=np.float32)
        spacing = max(self.plan.calibration.equalisation.spacing, 1)
        for which, counts_here in enumerate(_patterns(trim.shape, spacing)):
            detector.load_pixels(matrix(trim, np.broadcast_to(~counts_here, trim.shape)))
            taken: list[NDArray[np.unsignedinteger]] = []
            has_counted = np.zeros(trim.shape, dtype=bool)
            n_quiet, wanted = 0, codes or range(0, HIGHEST_CODE + 1, 2)
            for done, code in enumerate(wanted):
                yield Progress(_named(stage, which, spacing), done, len(wanted))
                detector.set_dacs(_all_thresholds(code))
                counts = frame(detector, exposure_s).counts
                taken.append(counts)
                has_counted |= counts > 0
                n_quiet = n_quiet + 1 if np.count_nonzero(counts) < QUIET_SHARE * counts.size / spacing**2 else 0
                if n_quiet == 4 and has_counted[:, counts_here].mean() > 0.5:
                    break
            found = noise_edges_dac(np.stack(taken), wanted[: len(taken)])
            edges[:, counts_here] = found[:, counts_here]
        show(self.instrument, EdgesFound(stage=stage, edges_dac=edges, trim=trim))
        return edges


@dataclass(slots=True)
class PulseEdges:
    """The code at which half of the test pulses pass; in charge summing every third pixel at a time, lest sums mix."""

    instrument: Instrument
    plan: Plan
    energy_kev: float = 0.0
    lowest_dac: float = 0.0
    _at_dac: float = 0.0

    def prepare(self) -> Generator[Progress, None, None]:
        """Choose the mode, put the pulses' level to their charge by the sense DAC, and see where they are counted."""
        detector, wanted = self.instrument.detector, self.plan.calibration.equalisation
        self.instrument.gantry.beam(False)
        detector.configure(equalisation_configuration(self.plan, is_test_pulsed=True))
        detector.set_test_columns(np.ones(COLS, dtype=bool))
        for number in range(detector.info.n_chips):
            target_v = detector.sense_v("TP_REF", number) + wanted.pulse_e * TEST_PULSE_V_PER_E
            looking = search("TP_REFA", target_v, tolerance_v=0.01, last_code=HIGHEST_CODE)
            code = next(looking)
            while True:
                yield Progress(f"test pulses, chip {number + 1}", code, HIGHEST_CODE + 1)
                detector.set_dacs({"TP_REFA": code, "TP_REFB": code}, number)
                try:
                    code = looking.send(detector.sense_v("TP_REFA", number))
                except StopIteration:
                    break
        detector.set_test_pulses(wanted.n_pulses, PULSE_PERIOD_S)
        self.energy_kev = wanted.pulse_e * wanted.pair_ev * 1e-3
        self.lowest_dac = 0.5 * self.energy_kev * nominal_gain(self.plan)
        shape = _planes(self.plan)
        (counts_here, *_) = _patterns(shape, self._spacing)
        codes = range(round(self.lowest_dac), HIGHEST_CODE + 1, 4)
        window_dac = PULSE_WINDOW_KEV * nominal_gain(self.plan)
        taken = yield from self._count("find pulses", np.full(shape, 16, dtype=np.uint8), counts_here, codes)
        found = falling_edges_dac(taken, codes, wanted.n_pulses, window_dac=window_dac)
        self._at_dac, _ = mean_and_sigma(found)

    @property
    def _spacing(self) -> int:
        return self.plan.calibration.equalisation.spacing or (PULSE_SPACING if self.plan.detector.is_csm else 1)

    def scan(self, stage: str, trim: NDArray[np.uint8], codes: range | None) -> Planes:
        """Scan over the pulses' edge, one pattern of pixels after the other."""
        window_dac = PULSE_WINDOW_KEV * nominal_gain(self.plan)
        at = round(self._at_dac)
        if codes is None:
            steps = range(max(at - SPREAD_DAC, 0), min(at + SPREAD_DAC, HIGHEST_CODE) + 1, 3)
        else:
            steps = _wider(codes, window_dac)
        edges = np.full(trim.shape, np.nan, dtype=np.float32)
        n_pulses = self.plan.calibration.equalisation.n_pulses
        for which, counts_here in enumerate(_patterns(trim.shape, self._spacing)):
            taken = yield from self._count(_named(stage, which, self._spacing), trim, counts_here, steps)
            edges[:, counts_here] = falling_edges_dac(taken, steps, n_pulses, window_dac=window_dac)
        show(self.instrument, EdgesFound(stage=stage, edges_dac=edges, trim=trim))
        return edges

    def _count(
        self, stage: str, trim: NDArray[np.uint8], counts_here: NDArray[np.bool_], codes: range
    ) -> Generator[Progress, None, NDArray[np.unsignedinteger]]:
        """Count the pulses of one pattern at every code: (n_codes, n_thresholds, n_pixels)."""
        detector, n_pulses = self.instrument.detector, self.plan.calibration.equalisation.n_pulses
        is_masked = np.broadcast_to(~counts_here, trim.shape)
        detector.load_pixels(matrix(trim, is_masked, _in_matrix(counts_here, len(trim))))
        taken = []
        for done, code in enumerate(codes):
            yield Progress(stage, done, len(codes))
            detector.set_dacs(_all_thresholds(code))
            taken.append(frame(detector, (n_pulses + 1) * PULSE_PERIOD_S).counts[:, counts_here])
        return np.stack(taken)


@dataclass(slots=True)
class SourceEdges:
    """The edge of a source's strongest lines: how far each pixel's S-curve stands from the chip's."""

    instrument: Instrument
    plan: Plan
    energy_kev: float = 0.0
    lowest_dac: float = 0.0
    _baseline_dac: float = 0.0
    _gain_dac_per_kev: float = 1.0

    def prepare(self) -> Generator[Progress, None, None]:
        """Find the noise, which is where no charge stands; then the edge above it, which mends the nominal gain."""
        detector, gantry, wanted = self.instrument.detector, self.instrument.gantry, self.plan.calibration.equalisation
        detector.set_bias(self.plan.detector.bias_v)
        noise = NoiseEdges(self.instrument, self.plan)
        yield from noise.prepare()
        shape = _planes(self.plan)
        middle = np.full(shape, 16, dtype=np.uint8)
        self._baseline_dac, _ = mean_and_sigma((yield from noise.scan("noise", middle, None)))
        self.energy_kev = mean_kev(line_group(wanted.source))
        gantry.select_sample(None)
        gantry.select_source(wanted.source)
        expected = nominal_gain(self.plan) * self.energy_kev
        first, last = self._baseline_dac + 0.5 * expected, self._baseline_dac + 1.6 * expected + SPREAD_DAC
        codes = range(round(first), min(round(last), HIGHEST_CODE + 1), 6)
        with beam(gantry):
            detector.load_pixels(matrix(middle, np.zeros(shape, dtype=bool)))
            sums = []
            for done, code in enumerate(codes):
                yield Progress(f"find {wanted.source}", done, len(codes))
                detector.set_dacs(_all_thresholds(code))
                sums.append(frame(detector, wanted.source_exposure_s).counts.sum(dtype=np.float64))
        steepest = steepest_kev(self._form(), NOISE_KEV)
        self._gain_dac_per_kev = (steepest_dac(codes, sums) - self._baseline_dac) / steepest
        self.lowest_dac = self._baseline_dac + 0.7 * self._gain_dac_per_kev * self.energy_kev

    def _form(self) -> EdgeForm:
        """Return the form of an edge as pixels of 110 um see it: smaller ones alone hardly show any to compare."""
        layer = replace(layer_of(self.plan), pitch_mm=COLOUR_PITCH_MM)
        return edge_form(line_group(self.plan.calibration.equalisation.source), layer)

    def scan(self, stage: str, trim: NDArray[np.uint8], codes: range | None) -> Planes:
        """Scan over the edge under the beam; before pixels are equalised, over all places where it may stand."""
        detector, wanted = self.instrument.detector, self.plan.calibration.equalisation
        at = round(self._baseline_dac + self._gain_dac_per_kev * self.energy_kev)
        margin = round(2 * self._gain_dac_per_kev)
        if codes is None:
            codes = range(max(at - SPREAD_DAC, 0), min(at + SPREAD_DAC, HIGHEST_CODE) + 1, 3)
        else:
            codes = range(codes.start, min(codes.stop + margin, HIGHEST_CODE + 1), 2)
        form = self._form()

        def expected(dacs: NDArray[np.float64]) -> NDArray[np.float64]:
            energies_kev = (dacs - self._baseline_dac) / self._gain_dac_per_kev
            return expected_counts(energies_kev, form, 1.0, NOISE_KEV) + FEWEST_COUNTS

        edges = np.full(trim.shape, np.nan, dtype=np.float32)
        spacing = max(wanted.spacing, 1)
        with beam(self.instrument.gantry):
            for which, counts_here in enumerate(_patterns(trim.shape, spacing)):
                detector.load_pixels(matrix(trim, np.broadcast_to(~counts_here, trim.shape)))
                taken = []
                for done, code in enumerate(codes):
                    yield Progress(_named(stage, which, spacing), done, len(codes))
                    detector.set_dacs(_all_thresholds(code))
                    taken.append(frame(detector, wanted.source_exposure_s).counts[:, counts_here])
                counts = np.stack(taken)
                shift, _ = edge_shifts(
                    counts.reshape(len(counts), -1),
                    np.asarray(codes, dtype=np.float64),
                    expected,
                    shift_grid(SPREAD_DAC),
                )
                edges[:, counts_here] = (at + shift).reshape(counts.shape[1:])
        show(self.instrument, EdgesFound(stage=stage, edges_dac=edges, trim=trim))
        return edges


def _planes(plan: Plan) -> tuple[int, int, int]:
    return (N_THRESHOLDS, ROWS // 2, COLS // 2) if plan.detector.is_colour else (FINE_THRESHOLDS, ROWS, COLS)


def _patterns(planes: tuple[int, ...], spacing: int) -> Generator[NDArray[np.bool_], None, None]:
    """Yield which pixels, (rows, cols) bool, count together; each once."""
    row, col = np.indices(planes[1:])
    for of_row in range(spacing):
        for of_col in range(spacing):
            yield (row % spacing == of_row) & (col % spacing == of_col)


def _in_matrix(pixels: NDArray[np.bool_], n_thresholds: int) -> NDArray[np.bool_]:
    """Return pixels of the mode as those of the chip's matrix; of a cluster the bonded one, P1, is enough."""
    if n_thresholds == FINE_THRESHOLDS:
        return pixels
    whole = np.zeros((ROWS, COLS), dtype=bool)
    row, col = SUBPIXELS[0]
    whole[row::2, col::2] = pixels
    return whole


def _wider(codes: range, by_dac: float) -> range:
    by = round(by_dac) + 2
    return range(max(codes.start - by, 0), min(codes.stop + by, HIGHEST_CODE + 1), codes.step)


def _named(stage: str, pattern: int, spacing: int) -> str:
    return stage if spacing == 1 else f"{stage}, pattern {pattern + 1}/{spacing**2}"


def _all_thresholds(code: int) -> dict[str, int]:
    return {f"Threshold{number}": code for number in range(N_THRESHOLDS)}
