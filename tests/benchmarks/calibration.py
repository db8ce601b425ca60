"""Each aim of the calibration beside what was reached, on the simulated chip with its hidden truth.

An aim is a function of this registry; it may look into the simulator, which no estimator may. `--only WORD` runs those
whose name holds the word.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from acquisition.calibrate import steps
from acquisition.instrument import open_instrument
from acquisition.plan import CalibrationPlan, DetectorPlan, EnergyPlan, EqualisationPlan, Plan
from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.chip import COLS, OPERATING_POINT_V, PITCH_MM, ROWS, Gain
from sim.instrument import chips_of, scene_of
from sim.sensor import Settings
from tests.benchmarks import alignment, calibration_beam
from tests.benchmarks.aims import Aim

THRESHOLDS_KEV: Mapping[str, tuple[float, ...]] = {
    "colour-csm": (18.0, 33.0, 50.0, 75.0),
    "colour-spm": (15.0, 20.0, 25.0, 33.0, 42.0, 50.0, 62.0, 75.0),
    "fine-csm": (20.0,),
    "fine-spm": (20.0, 33.0),
}
ENERGIES_KEV = (18.0, 33.0, 50.0, 75.0)
"""Where scales are compared with the truth."""


Study = Callable[[bool], Sequence[Aim]]
"""Whether it is to be quick, to the aims it measures."""
STUDIES: dict[str, Study] = {}


def study(name: str) -> Callable[[Study], Study]:
    """Register a study under a name."""

    def register(function: Study) -> Study:
        STUDIES[name] = function
        return function

    return register


def finished(work: Generator[Progress, None, Calibration]) -> Calibration:
    """Run a step to its end."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def plan_of(mode: str, *, quick: bool) -> Plan:
    """Return the plan of a mode; a quick one takes fewer rounds and sources."""
    plan = Plan(
        detector=DetectorPlan(mode=mode, thresholds_kev=THRESHOLDS_KEV[mode]),
        calibration=CalibrationPlan(
            sources=("In", "Gd", "Am-241") if quick else CalibrationPlan().sources,
            equalisation=EqualisationPlan(max_rounds=1 if quick else 8),
            energy=EnergyPlan(end_point_frames=2 if quick else 6),
        ),
    )
    if mode.startswith("fine"):
        plan = msgspec.structs.replace(plan, geometry=replace(plan.geometry, pitch_mm=PITCH_MM, rows=ROWS, cols=COLS))
    return plan


@cache
def calibrated(mode: str, quick: bool) -> Calibration:
    """Tune, equalise and put to keV the simulated chip in a mode."""
    plan = plan_of(mode, quick=quick)
    with open_instrument("sim:fine" if mode.startswith("fine") else "sim:demo") as instrument:
        calibration = steps.begin(instrument, plan)
        for name in ("bias", "equalise", "energy"):
            calibration = finished(steps.run_step(steps.STEPS[name], instrument, plan, calibration))
    return calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What the simulated pixels are: (n_thresholds, rows, cols), (rows, cols), (rows, cols)."""

    baseline_dac: NDArray[np.float32]
    gain_dac_per_kev: NDArray[np.float32]
    is_good: NDArray[np.bool_]


def truth_of(calibration: Calibration) -> Truth:
    """Look into the simulator at the settings of a calibration."""
    name = "demo" if calibration.is_colour else "fine"
    ((_, sensor),) = chips_of(name, {}, scene_of(name, 1))
    settings = Settings(
        threshold_dac=np.full(len(calibration.trim), 511),
        trim=calibration.trim,
        is_masked=calibration.is_masked,
        disc_l=calibration.dacs["DAC_DiscL"],
        disc_h=calibration.dacs["DAC_DiscH"],
        gain=Gain[calibration.gain],
        is_csm=calibration.is_csm,
        is_equalization=False,
    )
    truth = sensor.truth_in(settings)
    return Truth(
        baseline_dac=sensor.baselines_dac(settings),
        gain_dac_per_kev=sensor.gain_dac_per_kev(settings.gain) * truth.relative_gain,
        is_good=~truth.is_dead & (truth.relative_noise < 2) & ~calibration.is_bad,
    )


@study("bias currents")
def bias_currents(quick: bool) -> Sequence[Aim]:
    """How far GND, FBK and Cas stand from their voltages."""
    record = calibrated("colour-csm", quick).bias_currents
    assert record is not None
    off_v = np.abs(record.voltage_v - np.asarray(list(OPERATING_POINT_V.values()))).max()
    return [Aim(name="bias currents, furthest from their voltage", aim=4.0, reached=1000 * float(off_v), unit="mV")]


@study("equalisation")
def equalisation(quick: bool) -> Sequence[Aim]:
    """The true spread of the pixels' thresholds over the quantisation limit of their trims."""
    aims = []
    for mode in ("colour-csm",) if quick else tuple(THRESHOLDS_KEV):
        calibration = calibrated(mode, quick)
        truth, record = truth_of(calibration), calibration.equalisation
        assert record is not None
        ratios = [
            plane[truth.is_good].std() / limit
            for plane, limit in zip(truth.baseline_dac, record.limit_dac, strict=True)
        ]
        aims.append(
            Aim(name=f"equalisation, {mode}: true sigma / limit", aim=1.1, reached=float(max(ratios)), unit="1")
        )
    return aims


@study("energy")
def energy(quick: bool) -> Sequence[Aim]:
    """The scale against its lines and against the truth, of the chip and of each pixel."""
    aims = []
    for mode in ("colour-csm",) if quick else tuple(THRESHOLDS_KEV):
        calibration = calibrated(mode, quick)
        truth, pixel_scale = truth_of(calibration), calibration.pixel_scale
        assert pixel_scale is not None
        global_kev, pixel_kev, pull = [], [], []
        for number in sorted({line.threshold for line in calibration.lines}):
            for energy_kev in ENERGIES_KEV:
                code = float(calibration.offset_dac[number] + calibration.gain_dac_per_kev[number] * energy_kev)
                true_kev = (code - truth.baseline_dac[number]) / truth.gain_dac_per_kev
                error = (pixel_scale.threshold_kev(number, code) - true_kev)[truth.is_good]
                global_kev.append(true_kev[truth.is_good].mean() - energy_kev)
                pixel_kev.append(np.sqrt(np.nanmean(error**2)))
                pull.append(pixel_kev[-1] / np.nanmedian(pixel_scale.sigma_kev(number, energy_kev)))
        of = f"energy, {mode}:"
        aims += [
            Aim(name=f"{of} rms residual of the lines", aim=0.15, reached=calibration.residual_rms_kev, unit="keV"),
            Aim(name=f"{of} rms error against the truth", aim=0.15, reached=_rms(global_kev), unit="keV"),
            Aim(name=f"{of} rms error of a pixel's scale", aim=0.5, reached=_rms(pixel_kev), unit="keV"),
            Aim(name=f"{of} that error over the stated one", aim=1.5, reached=_rms(pull), unit="1"),
        ]
        if calibration.end_point is not None:
            off_kev = abs(calibration.end_point.error_kev)
            aims.append(Aim(name=f"{of} end point of 80 kV", aim=0.5, reached=off_kev, unit="keV"))
    return aims


@study("beam")
def beam(quick: bool) -> Sequence[Aim]:
    """Count rate, hardening and rings, response, bad pixels; the script of that name runs them alone."""
    return calibration_beam.aims(quick)


@study("geometry")
def geometry(quick: bool) -> Sequence[Aim]:
    """Where source and detector are, of scanners that stand elsewhere than planned; the script alone tells more."""
    return alignment.aims(quick)


def _rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="one mode, fewer sources and rounds")
    parser.add_argument("--only", default="", help="run the studies whose name holds this word")
    options = parser.parse_args()
    aims: list[Aim] = []
    for name, measure in STUDIES.items():
        if options.only not in name:
            continue
        began = time.perf_counter()
        found = measure(options.quick)
        aims += found
        if not options.json:
            print("\n".join(map(str, found)))
            print(f"  {name}: {time.perf_counter() - began:.0f} s", flush=True)
    if options.json:
        print(json.dumps({"aims": [aim.figures for aim in aims]}))


if __name__ == "__main__":
    main()
