"""The steps count-rate, wedge and response against a beam and a detector made here, whose laws only the test knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy.special import ndtr

from acquisition.beam_plan import CountRatePlan, ResponsePlan, WedgePlan, layers_mm
from acquisition.calibrate.count_rate import count_rate
from acquisition.calibrate.response import response
from acquisition.calibrate.wedge import wedge
from acquisition.plan import CalibrationPlan, Plan
from acquisition.steps import Pose
from calibration import store
from calibration.attenuation import linear_attenuation_per_mm
from calibration.material_basis import path_factors
from calibration.pixels import PixelClass
from calibration.spectrum import emission, tube_spectrum
from calibration.store import Calibration
from firmware_iface.chip import DEFAULT_DACS
from firmware_iface.errors import CalibrationMissing, WrongUsage
from firmware_iface.frame import Frame

PLANES = (8, 128, 128)
NUMBERS = (1, 3, 5, 7)
OFFSET_DAC, GAIN_DAC_PER_KEV = 40.0, 4.0
DEAD_TIME_S = 4e-6
SIGMA_KEV = 0.8
WEDGE = ("pmma-5", "pmma-10", "pmma-20", "pmma-40", "aluminium-1", "aluminium-4")
ENERGIES_KEV = np.arange(8.5, 118.0)
PLAN = msgspec.structs.replace(
    Plan(),
    calibration=CalibrationPlan(
        wedge=WedgePlan(plates=WEDGE, n_frames=4, n_flat_frames=4),
        count_rate=CountRatePlan(n_frames=4, growth_ratio=2.0),
        response=ResponsePlan(
            sources=("Gd", "W"), n_points=16, n_frames_per_point=1, checks=("pmma-20+aluminium-2", "water-8")
        ),
    ),
)


class Beam:
    """A detector that sees every absorbed photon whole, loses counts as paralysable ones do, and its gantry."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)
        self.dacs = dict(DEFAULT_DACS)
        self.sensitivity = self.rng.normal(1, 0.05, PLANES[1:])
        self.slow = (40, 50)
        self.sample: str | None = None
        self.source = "TUBE"
        self.current_ma = 0.0
        self.highest_ma_seen = 0.0
        self.is_lit = False
        self.n_runs = 0
        flux = tube_spectrum(PLAN.source.kvp, ENERGIES_KEV, {"aluminium": 3.8})
        self.flux_per_s_ma = 5e5 * flux / flux.sum()

    @property
    def detector(self) -> Any:
        return self

    @property
    def gantry(self) -> Any:
        return self

    info = SimpleNamespace(serial="LAW-1")

    def set_bias(self, bias_v: float) -> None: ...
    def configure(self, configuration: object) -> None: ...
    def load_pixels(self, pixels: object) -> None: ...
    def move_to(self, pose: Pose) -> None: ...

    def set_dacs(self, codes: Mapping[str, int]) -> None:
        self.dacs |= codes

    def samples(self) -> tuple[str, ...]:
        return (*WEDGE, "pmma-20+aluminium-2", "water-8")

    def sources(self) -> tuple[str, ...]:
        return ("TUBE", "Gd", "W")

    def select_sample(self, name: str | None) -> None:
        self.sample = name

    def select_source(self, name: str) -> None:
        self.source = name

    def set_tube(self, kvp: float, current_ma: float) -> None:
        self.current_ma = current_ma
        self.highest_ma_seen = max(self.highest_ma_seen, current_ma)

    def beam(self, is_on: bool) -> None:
        self.is_lit = is_on

    def frames(self, n_frames: int, exposure_s: float) -> Iterator[Frame]:
        assert self.is_lit
        self.n_runs += 1
        rates = self._rates()
        rates = rates * np.exp(-rates[0] * DEAD_TIME_S)
        rates[:, *self.slow] *= 0.8 if self.n_runs % 4 else 1.0  # switches between runs, never within one
        for sequence in range(n_frames):
            between = rates - np.concatenate([rates[1:], np.zeros_like(rates[:1])])
            counts = np.cumsum(self.rng.poisson(between * exposure_s)[::-1], axis=0)[::-1]
            yield Frame(
                counts=np.minimum(counts, 4095).astype(np.uint16),
                thresholds=NUMBERS,
                sequence=sequence,
                timestamp_ns=0,
                exposure_ns=round(exposure_s * 1e9),
                run_id=1,
            )

    def _rates(self) -> np.ndarray:
        thresholds = np.array([(self.dacs[f"Threshold{n}"] - OFFSET_DAC) / GAIN_DAC_PER_KEV for n in NUMBERS])
        if self.source == "TUBE":
            energies, photons = ENERGIES_KEV, self.current_ma * self.flux_per_s_ma
        else:
            lines = emission(self.source)
            energies = np.array([line.energy_kev for line in lines])
            photons = 400 * np.array([line.fraction for line in lines])
        photons = photons * -np.expm1(-linear_attenuation_per_mm("cdte", energies))
        above = ndtr((energies - thresholds[:, None]) / SIGMA_KEV)
        depth = np.zeros_like(energies)
        for name, thickness_mm in layers_mm(self.sample).items() if self.sample else ():
            depth += linear_attenuation_per_mm(name, energies) * thickness_mm * path_factors(PLAN.geometry).mean()
        return (above @ (photons * np.exp(-depth)))[:, None, None] * self.sensitivity


@pytest.fixture(scope="module")
def beam() -> Beam:
    return Beam()


@pytest.fixture(scope="module")
def energies_known() -> Calibration:
    return Calibration(
        created="2026-01-01T00:00:00Z",
        software="1",
        device="LAW-1",
        chip_id="W1",
        gain="HGM",
        is_csm=True,
        is_colour=True,
        bias_v=PLAN.detector.bias_v,
        dacs=dict(DEFAULT_DACS),
        trim=np.zeros(PLANES, np.uint8),
        is_masked=np.zeros(PLANES, bool),
        pixel_class=np.zeros(PLANES[1:], np.uint16),
        target_dac=15.0,
        edges_before_dac=np.ones(PLANES, np.float32),
        edges_after_dac=np.ones(PLANES, np.float32),
        offset_dac=np.full(8, OFFSET_DAC),
        gain_dac_per_kev=np.full(8, GAIN_DAC_PER_KEV),
        lines=(),
        thresholds_kev=PLAN.detector.thresholds_kev,
    )


@pytest.fixture(scope="module")
def swept(beam: Beam, energies_known: Calibration) -> Calibration:
    return _run(count_rate(beam, PLAN, energies_known))


@pytest.fixture(scope="module")
def wedged(beam: Beam, swept: Calibration) -> Calibration:
    return _run(wedge(beam, PLAN, swept))


def test_the_sweep_finds_the_dead_time_and_ends_where_it_was_told(beam: Beam, swept: Calibration) -> None:
    found = swept.count_rate
    assert found is not None
    assert found.law == "paralysable"
    assert found.rate_at_loss_per_s(0.1) == pytest.approx(-np.log(0.9) / DEAD_TIME_S, rel=0.02)
    lost = 1 - found.counted_share(found.highest_rate_per_s)
    assert 0.45 < lost < 0.75
    assert beam.highest_ma_seen < PLAN.calibration.count_rate.highest_ma
    assert beam.current_ma == PLAN.source.current_ma, "the tube is left as the scan wants it"
    assert not beam.is_lit


def test_the_wedge_teaches_thickness_free_of_lost_counts(beam: Beam, wedged: Calibration) -> None:
    assert wedged.wedge is not None
    assert wedged.thickness is not None
    index = wedged.wedge.plates.index("pmma-20")
    signal = np.log(wedged.wedge.open_beam / wedged.wedge.counts[index])
    true = np.zeros(4)
    energies, absorbed = ENERGIES_KEV, -np.expm1(-linear_attenuation_per_mm("cdte", ENERGIES_KEV))
    above = ndtr((energies - wedged.wedge.thresholds_kev[:, None]) / SIGMA_KEV)
    flux = (above - np.vstack([above[1:], 0 * energies])) * beam.flux_per_s_ma * absorbed
    per_mm = linear_attenuation_per_mm("pmma", energies) * path_factors(PLAN.geometry).mean()
    true = np.log(flux.sum(axis=1) / (flux @ np.exp(-20 * per_mm)))
    np.testing.assert_allclose(signal, true, rtol=3e-3)
    np.testing.assert_allclose(wedged.thickness.equivalent_mm(np.zeros((4, *PLANES[1:])))[0], 0, atol=1e-9)
    assert wedged.pixel_class[beam.slow] == PixelClass.TELEGRAPH
    assert np.count_nonzero(wedged.pixel_class) == 1


def test_the_response_foretells_the_plates_that_were_held_back(beam: Beam, wedged: Calibration) -> None:
    calibration = _run(response(beam, PLAN, wedged))
    found = calibration.response
    assert found is not None
    assert found.plates[-found.n_checks :] == ("pmma-20+aluminium-2", "water-8")
    np.testing.assert_allclose(found.predicted / found.measured, 1, atol=0.01)


def test_what_the_steps_measured_comes_back_from_the_file(wedged: Calibration, tmp_path: Any) -> None:
    store.save(wedged, tmp_path / "calibration.h5")
    back = store.load(tmp_path / "calibration.h5")
    assert back.identity == wedged.identity
    assert back.count_rate is not None
    assert back.wedge is not None
    assert back.wedge.plates == WEDGE


def test_each_pass_of_a_scan_has_a_sweep_at_its_thresholds(
    beam: Beam, energies_known: Calibration, tmp_path: Any
) -> None:
    passes = (PLAN.detector.thresholds_kev, (22.0, 38.0, 55.0, 80.0))
    of_rate = CountRatePlan(n_frames=1, growth_ratio=3.0)
    plan = msgspec.structs.replace(
        replace_calibration(of_rate), scan=msgspec.structs.replace(PLAN.scan, passes_kev=passes)
    )
    store.save(_run(count_rate(beam, plan, energies_known)), tmp_path / "calibration.h5")
    found = store.load(tmp_path / "calibration.h5").count_rate
    assert found is not None
    assert [each.thresholds_kev.tolist() for each in found.passes] == [list(kev) for kev in passes]
    for each in passes:
        of_pass = found.of_pass(each)
        assert of_pass is not None
        assert of_pass.is_for(each)
    assert found.of_pass((25.0, 40.0, 60.0, 85.0)) is None
    slopes = [each.true_rates_per_s_ma[-1] for each in found.passes]
    assert slopes[1] < 0.95 * slopes[0]  # fewer events are above 80 keV than above 75 keV
    for each in found.passes:
        assert each.rate_at_loss_per_s(0.1) == pytest.approx(-np.log(0.9) / DEAD_TIME_S, rel=0.03)


def test_refusals(beam: Beam, energies_known: Calibration, swept: Calibration) -> None:
    with pytest.raises(CalibrationMissing, match="the plates are not measured"):
        _run(response(beam, PLAN, energies_known))
    other = msgspec.structs.replace(
        PLAN, detector=msgspec.structs.replace(PLAN.detector, thresholds_kev=(20.0, 35.0, 50.0, 75.0))
    )
    with pytest.raises(CalibrationMissing, match=r"measured with thresholds at \[18.0, 33.0, 50.0, 75.0\] keV"):
        _run(wedge(beam, other, swept))
    few = replace_calibration(CountRatePlan(highest_ma=0.004, n_frames=1, growth_ratio=2.0))
    with pytest.raises(WrongUsage, match=r"the sweep has 2 currents up to 0.004 mA; allowed: 5 or more"):
        _run(count_rate(beam, few, energies_known))
    missing = msgspec.structs.replace(
        PLAN, calibration=msgspec.structs.replace(PLAN.calibration, wedge=WedgePlan(plates=("pmma-3",)))
    )
    with pytest.raises(WrongUsage, match="the sample changer has no 'pmma-3'"):
        _run(wedge(beam, missing, replace(energies_known)))
    with pytest.raises(ValueError, match="'brass' names no plate; allowed: material-millimetres"):
        WedgePlan(plates=("brass",))


def replace_calibration(of_rate: CountRatePlan) -> Plan:
    return msgspec.structs.replace(PLAN, calibration=msgspec.structs.replace(PLAN.calibration, count_rate=of_rate))


def _run(work: Any) -> Calibration:
    while True:
        try:
            step = next(work)
        except StopIteration as end:
            return end.value
        assert step.done >= 0, step
        assert step.done < step.total or step.total == 0, step  # 0: nobody knows how many trials a fit takes
