"""The calibration run against a detector made here, whose truth is known to the test and not to the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy.special import ndtr

from acquisition.calibrate import exposures, pixels, steps
from acquisition.cli import CalibrationStep
from acquisition.plan import CalibrationPlan, EnergyPlan, Plan
from acquisition.steps import Pose
from calibration.attenuation import linear_attenuation_per_mm, material, solution
from calibration.equalisation import mean_and_sigma
from calibration.material_basis import path_factors
from calibration.pixels import PixelClass
from calibration.progress import Progress
from calibration.spectrum import emission
from calibration.store import Calibration
from firmware_iface.chip import DEFAULT_DACS, SUBPIXELS
from firmware_iface.device import Configuration, PixelConfiguration
from firmware_iface.errors import CalibrationMissing, DataLost, WrongUsage
from firmware_iface.frame import Frame, Lost

PLANES = (8, 128, 128)
GAIN_DAC_PER_KEV = 3.9
NOISE_KEV = 0.5
TUBE_KEV = np.array([26.0, 41.0, 62.0, 90.0])
"""One line in the middle of each bin of the default plan: the tables' attenuation is then the exact answer."""
PHOTONS = 700.0

PLAN = msgspec.structs.replace(
    Plan(),
    calibration=CalibrationPlan(
        n_dark_frames=6,
        n_flat_frames=20,
        n_cell_frames=20,
        energy=EnergyPlan(end_point_kvp=0),
        sources=("In", "Am-241", "Pb"),
        # Strong cells: this beam has one line per bin and cannot harden, and few frames are to suffice.
        cells=tuple(
            msgspec.structs.replace(cell, concentration_mg_ml=5 * cell.concentration_mg_ml)
            for cell in CalibrationPlan().cells
        ),
    ),
)


@dataclass
class Bench:
    """A detector and a gantry in one, with pixels of known offsets: the stand-in of both."""

    seed: int = 1
    lose_every: int = 0
    sensor_k: float = 305.0
    baseline_dac: float = 40.0
    dacs: dict[str, int] = field(default_factory=lambda: dict(DEFAULT_DACS))
    info: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(serial="NUMBERS-1", n_chips=1))
    n_frames: int = 0
    n_open_runs: int = 0
    source: str = "TUBE"
    sample: str | None = None
    is_lit: bool = False

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.offset_dac = self.rng.normal(self.baseline_dac, 9, PLANES)
        self.trim_strength = self.rng.normal(0.95, 0.03, PLANES)
        self.is_dead = self.rng.uniform(size=PLANES[1:]) < 0.002
        self.is_hot = np.zeros(PLANES, dtype=bool)
        self.is_hot[3, 60, 60] = self.is_hot[7, 9, 100] = True
        self.trim = np.zeros(PLANES)
        self.is_masked = np.zeros(PLANES, dtype=bool)
        self.configuration = Configuration()

    @property
    def detector(self) -> Any:
        return self

    @property
    def gantry(self) -> Any:
        return self

    def samples(self) -> tuple[str, ...]:
        return tuple(cell.name for cell in PLAN.calibration.cells)

    def sources(self) -> tuple[str, ...]:
        return ("TUBE", *PLAN.calibration.sources)

    def chip_id(self) -> str:
        return "W1_A1"

    def health(self) -> SimpleNamespace:
        return SimpleNamespace(sensor_k=self.sensor_k)

    def configure(self, configuration: Configuration) -> None:
        self.configuration = configuration

    def sense_v(self, name: str, chip_number: int = 0) -> float:
        assert chip_number == 0
        return 0.03 + 0.00475 * self.dacs[name]

    def set_bias(self, bias_v: float) -> None:
        assert bias_v == PLAN.detector.bias_v

    def set_dacs(self, codes: Mapping[str, int], chip_number: int | None = None) -> None:
        assert set(codes) <= set(DEFAULT_DACS)
        self.dacs |= codes

    def load_pixels(self, pixels: PixelConfiguration) -> None:
        for pair, (row, col) in enumerate(SUBPIXELS):
            for side, trims in enumerate((pixels.trim_l, pixels.trim_h)):
                self.trim[2 * pair + side] = trims[row::2, col::2]
                self.is_masked[2 * pair + side] = pixels.is_masked[row::2, col::2]

    def move_to(self, pose: Pose) -> None:
        assert pose == Pose()

    def select_sample(self, name: str | None) -> None:
        self.sample = name

    def select_source(self, name: str) -> None:
        self.source = name

    def set_tube(self, kvp: float, current_ma: float) -> None:
        assert (kvp, current_ma) == (PLAN.source.kvp, PLAN.source.current_ma)

    def beam(self, is_on: bool) -> None:
        self.is_lit = is_on

    def edges_dac(self) -> np.ndarray:
        disc = np.array([self.dacs[f"DAC_Disc{'LH'[number % 2]}"] for number in range(8)])[:, None, None]
        return self.offset_dac + self.trim_strength * disc * (1 - self.trim / 16)

    def thresholds_kev(self) -> np.ndarray:
        codes = np.array([self.dacs[f"Threshold{number}"] for number in range(8)])[:, None, None]
        return (codes - self.edges_dac()) / GAIN_DAC_PER_KEV

    def frames(self, n_frames: int, exposure_s: float) -> Iterator[Frame | Lost]:
        numbers = sorted(2 * pair + counter for pair in range(4) for counter in self.configuration.counters)
        mean = self._mean(self.thresholds_kev()[numbers], exposure_s)
        mean[self.is_hot[numbers]] += 20
        mean[:, self.is_dead] = 0
        mean[self.is_masked[numbers]] = 0
        self.n_open_runs += 1
        for sequence in range(n_frames):
            self.n_frames += 1
            if self.lose_every and self.n_frames % self.lose_every == 0:
                yield Lost(run_id=1, first_sequence=sequence, n_frames=1, reason="a test takes it")
                continue
            counts = np.minimum(self.rng.poisson(mean), 4095).astype(np.uint16)
            yield Frame(
                counts=counts,
                thresholds=tuple(numbers),
                sequence=sequence,
                timestamp_ns=0,
                exposure_ns=round(exposure_s * 1e9),
                run_id=1,
            )
        self.n_open_runs -= 1

    def _mean(self, thresholds_kev: np.ndarray, exposure_s: float) -> np.ndarray:
        noise = 1e6 * exposure_s * np.exp(-0.5 * (thresholds_kev / NOISE_KEV) ** 2)
        if not self.is_lit:
            return noise
        for energy_kev, photons in self._light():
            noise = noise + photons * exposure_s * ndtr((energy_kev - thresholds_kev) / NOISE_KEV)
        return noise

    def _light(self) -> Iterator[tuple[float, Any]]:
        if self.source != "TUBE":
            lines = emission(self.source)
            total = sum(line.fraction for line in lines)
            for line in lines:
                if line.energy_kev > 20:
                    yield line.energy_kev, 300 * line.fraction / total
            return
        through = np.ones((len(TUBE_KEV), *PLANES[1:]))
        if self.sample is not None:
            per_mm = linear_attenuation_per_mm(_liquid(self.sample), TUBE_KEV)
            through = np.exp(
                -per_mm[:, None, None] * PLAN.calibration.cells[0].thickness_mm * path_factors(PLAN.geometry)
            )
        yield from zip(TUBE_KEV, PHOTONS * through, strict=True)


def _liquid(name: str) -> Any:
    cell = next(cell for cell in PLAN.calibration.cells if cell.name == name)
    water = material("water")
    return water if cell.material == "water" else solution(water, material(cell.material), cell.concentration_mg_ml)


def _run(work: Generator[Progress, None, Calibration]) -> Calibration:
    while True:
        try:
            step = next(work)
        except StopIteration as end:
            return end.value
        assert 0 <= step.done < step.total, step


def _step(name: str, bench: Bench, calibration: Calibration, plan: Plan = PLAN, **options: Any) -> Calibration:
    return _run(steps.run_step(steps.STEPS[name], bench, plan, calibration, **options))


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="module")
def equalised(bench: Bench) -> Calibration:
    return _step("equalise", bench, steps.begin(bench, PLAN))


@pytest.fixture(scope="module")
def whole(bench: Bench, equalised: Calibration) -> Calibration:
    calibration = _step("energy", bench, equalised)
    calibration = _step("pixels", bench, calibration)
    return _step("materials", bench, calibration)


def test_equalisation_brings_the_true_thresholds_together(bench: Bench, equalised: Calibration) -> None:
    assert bench.n_frames < 1000
    bench.dacs |= equalised.dacs
    bench.load_pixels(exposures.pixel_configuration(equalised))
    edges, is_live = bench.edges_dac(), ~np.broadcast_to(bench.is_dead, PLANES)
    step_dac = equalised.dacs["DAC_DiscL"] * 0.95 / 16
    assert mean_and_sigma(equalised.edges_before_dac)[1] == pytest.approx(9, rel=0.05)
    assert mean_and_sigma(edges[is_live])[1] < 1.1 * step_dac / np.sqrt(12)
    assert edges[is_live].mean() == pytest.approx(equalised.target_dac, abs=0.2)
    error = equalised.edges_after_dac - edges
    assert np.isnan(equalised.edges_after_dac[~is_live]).all()
    assert np.nanmean(np.abs(error[is_live])) < 0.15
    assert (equalised.pixel_class[bench.is_dead] & np.uint8(PixelClass.NO_EDGE)).all()
    assert np.count_nonzero(equalised.pixel_class[~bench.is_dead]) < 0.01 * 128 * 128


def test_a_low_baseline_is_equalised_to_the_lowest_target() -> None:
    bench = Bench(baseline_dac=8.0, seed=4)
    calibration = _step("equalise", bench, steps.begin(bench, PLAN))
    assert calibration.target_dac == 15
    assert mean_and_sigma(calibration.edges_after_dac)[1] < 1.5


def test_the_energy_scale_is_the_one_put_in(bench: Bench, whole: Calibration) -> None:
    read = list(PLAN.detector.thresholds)
    assert {line.threshold for line in whole.lines} == set(read)
    assert whole.residual_rms_kev < 0.15
    assert whole.gain_dac_per_kev == pytest.approx([GAIN_DAC_PER_KEV] * 8, rel=0.01)
    bench.load_pixels(exposures.pixel_configuration(whole))
    bench.dacs |= exposures.operating_dacs(whole, PLAN)
    true_kev = np.median(bench.thresholds_kev(), axis=(1, 2))
    assert true_kev[read] == pytest.approx(PLAN.detector.thresholds_kev, abs=0.3)
    assert true_kev[0] == pytest.approx(PLAN.detector.arbitration_kev, abs=0.3)
    assert (true_kev[[2, 4, 6]] > 100).all(), "thresholds that are not read stay out of the way"


def test_bad_pixels_are_those_that_were_put_in(bench: Bench, whole: Calibration) -> None:
    is_hot = bench.is_hot.any(axis=0)
    assert (whole.pixel_class[bench.is_dead] & np.uint8(PixelClass.DEAD)).all()
    assert (whole.pixel_class[is_hot] & np.uint8(PixelClass.MASKED)).all()
    assert np.array_equal(whole.is_masked[list(PLAN.detector.thresholds)].any(axis=0), is_hot)
    is_trimmed = (whole.pixel_class & np.uint8(PixelClass.OUT_OF_TRIM | PixelClass.NO_EDGE)) > 0
    others = whole.is_bad & ~bench.is_dead & ~is_hot & ~is_trimmed
    assert np.count_nonzero(others) <= 3


def test_the_flat_field_is_the_open_beam_as_pixels_count_it(bench: Bench, whole: Calibration) -> None:
    flat, read = whole.flat_field, list(PLAN.detector.thresholds)
    assert flat is not None
    assert (flat.thresholds, flat.thresholds_kev) == (tuple(read), PLAN.detector.thresholds_kev)
    assert (flat.tube_kvp, flat.current_ma) == (PLAN.source.kvp, PLAN.source.current_ma)
    bench.load_pixels(exposures.pixel_configuration(whole))
    bench.dacs |= exposures.operating_dacs(whole, PLAN)
    bench.select_source("TUBE")
    bench.is_lit, bench.sample = True, None
    truth = bench._mean(bench.thresholds_kev()[read], 1.0)
    bench.is_lit = False
    is_good = ~whole.is_bad
    off = (flat.rates_per_s - truth)[:, is_good] / np.sqrt(truth / flat.exposure_s)[:, is_good]
    assert abs(off.mean()) < 0.02
    assert off.std() == pytest.approx(1, abs=0.03)
    found = flat.evenness(whole.is_bad)
    for each, plane in zip(found, truth, strict=True):
        assert each.mean_per_s == pytest.approx(plane[is_good].mean(), rel=2e-3)


def test_the_judgement_of_pixels_can_be_left_at_any_time(
    bench: Bench, equalised: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()
    monkeypatch.setattr(pixels, "classify", lambda *_, **__: is_over.wait(30.0))
    work = steps.run_step(steps.STEPS["pixels"], bench, PLAN, _step("energy", bench, equalised))
    while next(work).stage != "judging":
        pass
    began_s = time.monotonic()
    next(work)
    work.close()
    assert time.monotonic() - began_s < 2.0
    is_over.set()
    assert not bench.is_lit


def test_a_new_energy_scale_has_no_flat_field(bench: Bench, whole: Calibration) -> None:
    assert _step("energy", bench, whole).flat_field is None


def test_the_basis_is_the_attenuation_of_the_liquids(whole: Calibration) -> None:
    basis = whole.basis
    assert basis is not None
    assert basis.materials == tuple(cell.material for cell in PLAN.calibration.cells)
    for column, name in enumerate(basis.materials):
        matter = material(name)
        truth = linear_attenuation_per_mm(matter, TUBE_KEV) / matter.density_g_cm3
        np.testing.assert_allclose(basis.attenuation_per_mm_per_g_cm3[:, column], truth, rtol=0.03, err_msg=name)


def test_planes_go_to_their_own_pixels_and_back(whole: Calibration) -> None:
    pixels = exposures.pixel_configuration(whole)
    for pair, (row, col) in enumerate(SUBPIXELS):
        np.testing.assert_array_equal(pixels.trim_l[row::2, col::2], whole.trim[2 * pair])
        np.testing.assert_array_equal(pixels.trim_h[row::2, col::2], whole.trim[2 * pair + 1])
    assert pixels.is_masked.sum() == 2
    assert not pixels.is_test.any()


def test_every_run_is_taken_to_its_end(bench: Bench, whole: Calibration) -> None:
    assert whole.basis is not None
    assert bench.n_open_runs == 0


def test_lost_frames_are_taken_again(whole: Calibration) -> None:
    bench = Bench(lose_every=7)
    calibration = _step("pixels", bench, whole)
    assert calibration.pixel_class.shape == PLANES[1:]
    with pytest.raises(DataLost, match="stayed lost after 3 attempts"):
        _step("pixels", Bench(lose_every=1), whole)


def test_a_calibration_of_another_mode_is_not_continued(bench: Bench, whole: Calibration) -> None:
    plan = msgspec.structs.replace(PLAN, detector=msgspec.structs.replace(PLAN.detector, gain="LGM"))
    with pytest.raises(CalibrationMissing, match="gain HGM, now LGM"):
        _step("energy", bench, whole, plan)


def test_a_step_tells_which_other_it_needs(bench: Bench) -> None:
    with pytest.raises(CalibrationMissing, match="the step materials needs energy and pixels first"):
        _step("materials", bench, steps.begin(bench, PLAN))


def test_the_history_tells_each_step_and_how_warm_it_was(whole: Calibration) -> None:
    assert [record.step for record in whole.history] == ["equalise", "energy", "pixels", "materials"]
    assert {record.mode for record in whole.history} == {"colour-csm"}
    assert [record.temperature_k for record in whole.history] == [305.0] * 4
    assert not any(record.is_forced for record in whole.history)


def test_a_warmer_detector_is_refused_unless_forced(whole: Calibration) -> None:
    warm = Bench(sensor_k=308.0)
    with pytest.raises(CalibrationMissing, match=r"sensor at 31.9 C, now \+3.0 K \(allowed: 2 K\)"):
        _step("pixels", warm, whole)
    assert warm.n_frames == 0
    forced = _step("pixels", warm, whole, is_forced=True)
    assert forced.history[-1].is_forced


def test_full_counters_are_refused(whole: Calibration) -> None:
    plan = msgspec.structs.replace(PLAN, detector=msgspec.structs.replace(PLAN.detector, exposure_s=20.0))
    with pytest.raises(WrongUsage, match="where the counters end"):
        _step("materials", Bench(), whole, plan)


WATER = PLAN.calibration.cells[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ("In", "Xx-99")}, "'Xx-99' is no element"),
        ({"sources": ("In", "Sn")}, "there is no source 'Sn'; there are TUBE, In"),
        ({"cells": (msgspec.structs.replace(WATER, name="cell-oil"),)}, "no 'cell-oil'; it has cell-water"),
        (
            {"cells": (WATER, msgspec.structs.replace(WATER, material="unobtainium", concentration_mg_ml=4.0))},
            "'unobtainium' is neither",
        ),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_measured(changes: dict[str, Any], message: str) -> None:
    bench = Bench()
    section = msgspec.structs.replace(PLAN.calibration, **changes)
    with pytest.raises(WrongUsage, match=message):
        next(steps.calibrate_all(bench, msgspec.structs.replace(PLAN, calibration=section)))
    assert bench.n_frames == 0


def test_the_command_line_knows_every_step() -> None:
    assert [step.value for step in CalibrationStep] == [*steps.STEPS, "all"]
    for step in steps.STEPS.values():
        order = list(steps.STEPS)
        assert all(order.index(name) < order.index(step.name) for name in step.needs), step.name
