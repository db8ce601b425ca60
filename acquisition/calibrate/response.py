"""The step `response`: fit what each bin counts of each energy to lines and plates."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace

import numpy as np

from acquisition.calibrate.exposures import (
    HIGHEST_CODE,
    Instrument,
    Work,
    beam,
    parked_dacs,
    refuse_full,
    set_up_detector,
    take,
)
from acquisition.calibrate.wedge import measure_plates, refuse_absent, step_wedge
from acquisition.plan import Plan
from calibration.attenuation import material
from calibration.progress import Progress
from calibration.response import PlateMeasurement, SensorModel, SourceCurve, fit_response
from calibration.spectrum import emission
from calibration.store import Calibration
from calibration.thickness import StepWedge
from firmware_iface.errors import CalibrationMissing, WrongUsage

ABOVE_LINE = 1.12
"""S-curves go on to this share of the strongest line, and `ABOVE_KEV` more."""
ABOVE_KEV = 2.0


def response(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Scan the thresholds over the whole range under each source, expose the plates that check, and fit."""
    wanted = plan.calibration.response
    if calibration.wedge is None:
        raise CalibrationMissing("the plates are not measured", hint="mpxct calibrate wedge")
    # before the sources are scanned, which takes long
    material(wanted.sensor_material)
    refuse_absent(instrument.gantry, wanted.checks)
    curves = yield from _scan_sources(instrument, plan, calibration)
    checks: Mapping[str, PlateMeasurement] = {}
    if wanted.checks:
        frames = yield from measure_plates(instrument, plan, calibration, wanted.checks)
        _, checks = _as_measurements(step_wedge(frames, wanted.checks, plan, calibration))
    open_beam, plates = _as_measurements(calibration.wedge)
    found = yield from fit_response(
        SensorModel(
            material=wanted.sensor_material,
            thickness_mm=wanted.sensor_thickness_mm,
            pitch_mm=plan.geometry.pitch_mm,
            is_csm=plan.detector.is_csm,
        ),
        tube_kvp=plan.source.kvp,
        thresholds_kev=calibration.wedge.thresholds_kev.tolist(),
        open_beam=open_beam,
        plates=plates,
        checks=checks,
        curves=curves,
    )
    return replace(calibration, response=found)


def _scan_sources(
    instrument: Instrument, plan: Plan, calibration: Calibration
) -> Generator[Progress, None, list[SourceCurve]]:
    """Scan the thresholds that are read, all at one code, from the lowest energy to above the strongest line."""
    detector, gantry, wanted = instrument.detector, instrument.gantry, plan.calibration.response
    there = gantry.sources()
    for name in wanted.sources:
        emission(name)
        if name not in there:
            raise WrongUsage(f"there is no source {name!r}; there are {', '.join(there)}")
    numbers = plan.detector.thresholds
    is_good = ~calibration.is_bad
    set_up_detector(detector, plan, calibration, parked_dacs(calibration, plan))
    gantry.select_sample(None)
    curves = []
    with beam(gantry):
        for name in wanted.sources:
            gantry.select_source(name)
            strongest_kev = max(emission(name), key=lambda line: line.fraction).energy_kev
            ends = (wanted.lowest_kev, ABOVE_LINE * strongest_kev + ABOVE_KEV)
            first, last = (
                calibration.offset_dac[numbers[0]] + calibration.gain_dac_per_kev[numbers[0]] * e for e in ends
            )
            codes = np.unique(np.linspace(first, min(last, HIGHEST_CODE), wanted.n_points).round().astype(int))
            counts = []
            for done, code in enumerate(codes.tolist()):
                yield Progress(f"response to {name}", done, len(codes))
                detector.set_dacs({f"Threshold{number}": code for number in numbers})
                frames = yield from take(
                    detector, f"response to {name}", wanted.n_frames_per_point, plan.calibration.energy_exposure_s
                )
                refuse_full(frames, plan, name)
                counts.append(frames.sum(axis=0, dtype=np.float64)[:, is_good])
            # A good pixel counts next to nothing above all lines; one that does is noisy, and would bend the curve.
            seen = np.stack(counts)
            is_quiet = seen[-1] <= 5 + 5 * np.sqrt(1 + np.median(seen[-1]))
            curves.append(
                SourceCurve(
                    source=name,
                    counter=np.tile(np.arange(len(numbers)), len(codes)),
                    thresholds_kev=np.array(
                        [[calibration.threshold_kev(n, c) for n in numbers] for c in codes]
                    ).ravel(),
                    counts=np.sum(seen, axis=2, where=is_quiet).ravel(),
                )
            )
    return curves


def _as_measurements(wedge: StepWedge) -> tuple[PlateMeasurement, dict[str, PlateMeasurement]]:
    """Return the open beam, and each plate by its name."""
    plates = {
        name: PlateMeasurement(
            layers_mm={m: float(t) for m, t in zip(wedge.materials, layers, strict=True) if t},
            counts=counts,
            sigma_relative=sigma,
        )
        for name, layers, counts, sigma in zip(
            wedge.plates, wedge.layers_mm, wedge.counts, wedge.sigma_relative, strict=True
        )
    }
    open_beam = PlateMeasurement(layers_mm={}, counts=wedge.open_beam, sigma_relative=wedge.open_beam_sigma_relative)
    return open_beam, plates
