"""The step `pixels`: judge every pixel at the thresholds of the scan, and keep the open beam as each counts it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

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
from calibration.flat_field import FlatField
from calibration.pixels import PixelClass, classify
from calibration.progress import beside, retold
from calibration.store import Calibration

N_SERIES = 5
"""Series that the flats are taken in."""


def pixels(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Judge every pixel at the thresholds of the scan: without beam, then under the open beam.

    Pixels that fire without a photon are switched off first, because in charge summing they spoil their neighbours;
    then those that still fire are classified. The flats are taken in series with dark frames between them, so that
    pixels that switch slowly are caught; the step `wedge` looks for still slower ones. Their mean is the flat field.
    """
    detector, gantry, exposure_s = instrument.detector, instrument.gantry, plan.detector.exposure_s
    gantry.beam(False)
    calibration = replace(calibration, is_masked=np.zeros_like(calibration.is_masked))
    n_dark, n_flat = plan.calibration.n_dark_frames, plan.calibration.n_flat_frames
    set_up_detector(detector, plan, calibration, operating_dacs(calibration, plan))
    dark = yield from take(detector, "dark", n_dark, exposure_s)
    is_masked = calibration.is_masked.copy()
    is_masked[list(plan.detector.thresholds)] = dark.sum(axis=0) > 0
    calibration = replace(calibration, is_masked=is_masked)
    detector.load_pixels(pixel_configuration(calibration))
    select_open_beam(gantry, plan)
    n_series = min(N_SERIES, n_dark, n_flat)
    dark, flats, series = [], [], []
    for number in range(n_series):
        gantry.beam(False)
        share_dark, share_flat = (len(range(number, n, n_series)) for n in (n_dark, n_flat))
        dark.append((yield from take(detector, "dark, masked", share_dark, exposure_s)))
        with beam(gantry):
            flats.append((yield from take(detector, "flats", share_flat, exposure_s)))
        series += [number] * share_flat
    open_beam = np.concatenate(flats)
    refuse_full(open_beam, plan, "flats")
    found = calibration.pixel_class
    judge = partial(
        classify,
        np.concatenate(dark),
        open_beam,
        is_out_of_range=(found & np.uint16(PixelClass.OUT_OF_TRIM)) > 0,
        has_no_edge=(found & np.uint16(PixelClass.NO_EDGE)) > 0,
        is_masked=np.asarray(is_masked.any(axis=0)),
        flat_series=np.asarray(series),
        is_csm=plan.detector.is_csm,
    )
    pixel_class = yield from retold(beside("judging", judge), lambda progress: progress._replace(total=1))
    flat_field = FlatField(
        rates_per_s=(open_beam.mean(axis=0, dtype=np.float64) / exposure_s).astype(np.float32),
        thresholds=plan.detector.thresholds,
        thresholds_kev=plan.detector.thresholds_kev,
        n_frames=len(open_beam),
        exposure_s=len(open_beam) * exposure_s,
        tube_kvp=plan.source.kvp,
        current_ma=plan.source.current_ma,
    )
    return replace(calibration, pixel_class=pixel_class, flat_field=flat_field)
