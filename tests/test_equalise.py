"""The step `equalise` in every way and mode, and `bias`, against a detector made here of pixels with known offsets."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy.special import ndtr

from acquisition.calibrate import steps
from acquisition.plan import CalibrationPlan, DetectorPlan, EqualisationPlan, Plan
from calibration.energy_scale import line_group
from calibration.equalisation import TrimFault, mean_and_sigma
from calibration.progress import Progress
from calibration.store import Calibration, load, save
from firmware_iface.chip import DEFAULT_DACS, SUBPIXELS, TEST_PULSE_V_PER_E
from firmware_iface.device import Configuration, PixelConfiguration
from firmware_iface.errors import OurMistake, TheirMistake
from firmware_iface.frame import Frame

BASELINE_DAC, SIGMA_DAC, GAIN_DAC_PER_KEV, NOISE_DAC = 60.0, 8.0, 3.6, 1.5


@dataclass
class Pixels:
    """A detector and a gantry in one: offsets that differ, one dead pixel, one beyond all trims."""

    is_fine: bool
    n_chips: int = 1
    has_sense: bool = True
    reach_v: float = 1.3
    adc_noise_v: float = 0.0
    n_frames: int = 0
    is_lit: bool = False
    source: str = "TUBE"
    n_pulses: int = 0
    masked_share: float = 0.0
    applied: list[dict[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(3)
        self.planes = (2, 256, 256) if self.is_fine else (8, 128, 128)
        self.offset_dac = self.rng.normal(BASELINE_DAC, SIGMA_DAC, self.planes).astype(np.float32)
        self.offset_dac[1, 20, 30] = BASELINE_DAC + 90
        self.strength = self.rng.normal(1, 0.03, self.planes).astype(np.float32)
        self.info = SimpleNamespace(serial="NUMBERS-2", n_chips=self.n_chips)
        self.applied = [dict(DEFAULT_DACS) for _ in range(self.n_chips)]
        self.configuration = Configuration()
        self.trim = np.zeros(self.planes, dtype=np.uint8)
        self.is_masked = self.is_test = np.zeros(self.planes, dtype=bool)

    @property
    def detector(self) -> Any:
        return self

    @property
    def gantry(self) -> Any:
        return self

    @property
    def dacs(self) -> dict[str, int]:
        return self.applied[0]

    def chip_id(self) -> str:
        return "W1_A1"

    def health(self) -> SimpleNamespace:
        return SimpleNamespace(sensor_k=300.0)

    def configure(self, configuration: Configuration) -> None:
        self.configuration = configuration

    def set_bias(self, bias_v: float) -> None:
        assert bias_v

    def set_dacs(self, codes: Mapping[str, int], chip_number: int | None = None) -> None:
        for number in range(self.n_chips) if chip_number is None else [chip_number]:
            self.applied[number] |= codes

    def sense_v(self, name: str, chip_number: int = 0) -> float:
        if not self.has_sense:
            raise OurMistake("board NUMBERS-2 has not got a converter at the sense pads")
        last = 511 if name.startswith("TP_REF") and name != "TP_REF" else 255
        chip_scale = 1 + 0.04 * chip_number
        voltage = 0.03 + self.reach_v * chip_scale * self.applied[chip_number][name] / last
        return voltage + self.adc_noise_v * self.rng.normal()

    def set_test_columns(self, columns: np.ndarray) -> None:
        assert columns.all()

    def set_test_pulses(self, n_pulses: int, period_s: float = 1e-4) -> None:
        self.n_pulses = n_pulses

    def load_pixels(self, pixels: PixelConfiguration) -> None:
        whole = [(slice(None), slice(None))]
        places = whole if self.is_fine else [(slice(row, None, 2), slice(col, None, 2)) for row, col in SUBPIXELS]
        for pair, place in enumerate(places):
            for side, trims in enumerate((pixels.trim_l, pixels.trim_h)):
                self.trim[2 * pair + side] = trims[place]
        self.is_masked = np.stack([pixels.is_masked[place] for place in places for _ in (0, 1)])
        self.is_test = np.broadcast_to(pixels.is_test[places[0]], self.planes)
        self.masked_share = float(self.is_masked.mean())

    def select_sample(self, name: str | None) -> None:
        assert name is None

    def select_source(self, name: str) -> None:
        self.source = name

    def beam(self, is_on: bool) -> None:
        self.is_lit = is_on

    def edges_dac(self) -> np.ndarray:
        disc = np.resize([self.dacs["DAC_DiscL"], self.dacs["DAC_DiscH"]], len(self.trim)).astype(np.float32)
        return self.offset_dac + self.strength * disc[:, None, None] * (1 - self.trim.astype(np.float32) / 16)

    def frames(self, n_frames: int, exposure_s: float) -> Iterator[Frame]:
        assert n_frames == 1
        self.n_frames += 1
        codes = np.array([self.dacs[f"Threshold{number}"] for number in range(len(self.trim))], dtype=np.float32)
        above = codes[:, None, None] - self.edges_dac()
        mean = 1e6 * exposure_s * np.exp(-0.5 * (above / NOISE_DAC) ** 2) if not self.is_lit else np.zeros_like(above)
        if self.is_lit:
            lines = line_group(self.source)
            total = sum(line.fraction for line in lines)
            for line in lines:
                share = 300 * line.fraction / total
                mean += share * ndtr((GAIN_DAC_PER_KEV * line.energy_kev - above) / NOISE_DAC)
        counts = self.rng.poisson(mean)
        if self.configuration.is_test_pulsed and self.n_pulses:
            step_v = self.sense_v("TP_REFA") - self.sense_v("TP_REF")
            pulse_dac = GAIN_DAC_PER_KEV * step_v / TEST_PULSE_V_PER_E * 4.43e-3
            counts += self.rng.binomial(self.n_pulses, self.is_test * ndtr((pulse_dac - above) / NOISE_DAC))
        counts[self.is_masked] = 0
        counts[:, 7, 9] = 0  # dead
        yield Frame(
            counts=np.minimum(counts, 4095).astype(np.uint16),
            thresholds=tuple(range(len(counts))),
            sequence=0,
            timestamp_ns=0,
            exposure_ns=1,
            run_id=1,
        )


def _plan(mode: str, **options: Any) -> Plan:
    n = {"colour-csm": 4, "colour-spm": 8, "fine-csm": 1, "fine-spm": 2}[mode]
    return Plan(
        detector=DetectorPlan(mode=mode, thresholds_kev=tuple(np.linspace(20.0, 60.0, n))),
        calibration=CalibrationPlan(equalisation=EqualisationPlan(max_rounds=3, **options)),
    )


def _run(work: Generator[Progress, None, Calibration]) -> Calibration:
    while True:
        try:
            step = next(work)
        except StopIteration as end:
            return end.value
        assert 0 <= step.done < step.total, step


def _step(name: str, pixels: Pixels, plan: Plan, calibration: Calibration | None = None) -> Calibration:
    begun = calibration or steps.begin(pixels, plan)
    return _run(steps.run_step(steps.STEPS[name], pixels, plan, begun))


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("fine-spm", {}),
        pytest.param("fine-csm", {}, marks=pytest.mark.slow),
        pytest.param("colour-spm", {"spacing": 2}, marks=pytest.mark.slow),
        ("colour-spm", {"method": "pulses"}),
        ("fine-spm", {"method": "source", "source": "Am-241"}),
    ],
)
def test_every_mode_and_way_comes_to_the_quantisation_limit(mode: str, options: dict[str, Any]) -> None:
    pixels, plan = Pixels(is_fine=mode.startswith("fine")), _plan(mode, **options)
    calibration = _step("equalise", pixels, plan)
    record = calibration.equalisation
    assert record is not None
    assert calibration.trim.shape == pixels.planes
    pixels.trim = calibration.trim
    edges = pixels.edges_dac()
    assert record.sigma_before_dac == pytest.approx([SIGMA_DAC] * len(edges), rel=0.05)
    for plane, limit in zip(edges, record.limit_dac, strict=True):
        assert mean_and_sigma(plane)[1] < 1.1 * limit
    assert record.sigma_after_dac == pytest.approx(record.limit_dac, rel=0.15)
    assert record.trim_histogram.sum(axis=1).tolist() == [edges[0].size] * len(edges)
    assert (record.fault[:, 7, 9] == TrimFault.NO_EDGE).all()
    assert record.fault[1, 20, 30] == TrimFault.TOO_HIGH
    assert np.count_nonzero(record.fault) < 0.01 * record.fault.size
    assert calibration.is_bad[7, 9]
    charge_kev = {"noise": 0.0, "pulses": 5000 * 4.43e-3, "source": 59.541}[record.method]
    assert record.energy_kev == pytest.approx(charge_kev, abs=0.01)
    assert calibration.offset_dac == pytest.approx([edges.mean()] * len(edges), abs=4), "the nominal scale starts at 0"
    assert not pixels.is_lit
    assert pixels.n_pulses == 0


def test_a_spacing_masks_all_pixels_but_those_of_its_pattern() -> None:
    pixels = Pixels(is_fine=False)
    work = steps.run_step(
        steps.STEPS["equalise"], pixels, _plan("colour-csm", spacing=4), steps.begin(pixels, _plan("colour-csm"))
    )
    while next(work).done == 0:
        pass
    assert pixels.masked_share == pytest.approx(15 / 16)


def test_figures_in_kev_and_electrons_follow_from_the_gain_and_the_file_keeps_all(tmp_path: Any) -> None:
    pixels, plan = Pixels(is_fine=True), _plan("fine-spm")
    calibration = _step("equalise", pixels, plan, _step("bias", pixels, plan))
    record = calibration.equalisation
    assert record is not None
    kev = record.in_kev(record.sigma_after_dac, calibration.gain_dac_per_kev)
    assert kev * calibration.gain_dac_per_kev == pytest.approx(record.sigma_after_dac)
    assert record.in_electrons(record.sigma_after_dac, calibration.gain_dac_per_kev) == pytest.approx(kev / 4.43e-3)
    save(calibration, tmp_path / "c.h5")
    again = load(tmp_path / "c.h5")
    assert again.identity == calibration.identity
    assert again.equalisation is not None
    assert again.equalisation.step_dac == pytest.approx(record.step_dac)
    assert again.bias_currents is not None
    assert again.bias_currents.names == ("GND", "FBK", "Cas")
    assert [record.step for record in again.history] == ["bias", "equalise"]


def test_each_chip_gets_its_own_codes_and_the_equalisation_keeps_them() -> None:
    pixels, plan = Pixels(is_fine=True, n_chips=2, adc_noise_v=2e-4), _plan("fine-spm")
    calibration = _step("bias", pixels, plan)
    record = calibration.bias_currents
    assert record is not None
    assert np.abs(record.voltage_v - record.target_v).max() <= 0.004
    assert (record.codes[1] < record.codes[0]).all()
    assert {name: calibration.dacs[name] for name in record.names} == record.dacs(0)
    work = steps.run_step(steps.STEPS["equalise"], pixels, plan, calibration)
    next(work)
    for number in (0, 1):
        assert record.dacs(number).items() <= pixels.applied[number].items()


def test_a_dac_out_of_reach_is_told_and_a_board_without_a_converter_goes_without() -> None:
    plan = _plan("fine-spm")
    with pytest.raises(TheirMistake, match=r"GND reads .* wanted: 0\.650 V"):
        _step("bias", Pixels(is_fine=True, reach_v=0.5), plan)
    blind = Pixels(is_fine=True, has_sense=False)
    with pytest.raises(OurMistake, match="has not got"):
        _step("bias", blind, plan)
    assert steps.STEPS["bias"].is_skippable
    assert not replace(steps.begin(blind, plan)).history


def test_settings_that_cannot_be_are_refused() -> None:
    for changes in ({"method": "magic"}, {"spacing": 17}, {"pair_ev": 0.0}, {"n_pulses": 1}):
        with pytest.raises((ValueError, msgspec.ValidationError), match=next(iter(changes))):
            EqualisationPlan(**changes)  # pyright: ignore[reportArgumentType]
