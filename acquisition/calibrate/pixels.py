"""The step `pixels`: judge every pixel at the thresholds of the scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from acquisition.calibrate.exposures import (
    Instrument,
    Work,
    beam,
    operating_dacs,
    pixel_configuration,
    refuse_full,
    select_open_beam,
    set_up_detector,
    take,
)
from acquisition.plan import Plan
from calibration.pixels import PixelClass, classify
from calibration.store import Calibration


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
    dark = yield from take(detector, "dark", n_dark, exposure_s)
    is_masked = calibration.is_masked.copy()
    is_masked[list(plan.detector.thresholds)] = dark.sum(axis=0) > 0
    calibration = replace(calibration, is_masked=is_masked)
    detector.load_pixels(pixel_configuration(calibration))
    dark = yield from take(detector, "dark, masked", n_dark, exposure_s)
    select_open_beam(instrument.gantry, plan)
    with beam(instrument.gantry):
        flats = yield from take(detector, "flats", n_flat, exposure_s)
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
