"""The step `wedge`: what each pixel and bin sees behind plates of known thickness."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from acquisition.beam_plan import layers_mm
from acquisition.calibrate.exposures import (
    Instrument,
    Work,
    beam,
    mean_bins,
    operating_dacs,
    select_open_beam,
    set_up_detector,
)
from acquisition.plan import Plan
from acquisition.steps import AT_ZERO
from calibration.attenuation import material
from calibration.material_basis import path_factors
from calibration.pixels import PixelClass, is_unsteady
from calibration.progress import Progress
from calibration.store import Calibration
from calibration.thickness import StepWedge, fit_thickness
from firmware_iface.errors import WrongUsage

if TYPE_CHECKING:
    from acquisition.gantry import Gantry


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlateFrames:
    """Mean counts of a frame in the open beam, and behind each plate, the drift taken out.

    Attributes
    ----------
    open_beam : (n_bins, rows, cols) float64
    behind : (n_plates, n_bins, rows, cols) float64
    flats : (n_plates + 1, n_bins, rows, cols) float64
        The series that the open beam is the mean of.
    n_open_frames, n_plate_frames : int
        How many frames each mean is of.
    """

    open_beam: NDArray[np.float64]
    behind: NDArray[np.float64]
    flats: NDArray[np.float64]
    n_open_frames: int
    n_plate_frames: int


def wedge(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Measure every plate, teach each pixel the thickness of one material, and keep the means for the response."""
    wanted = plan.calibration.wedge
    own = [index for index, plate in enumerate(wanted.plates) if set(layers_mm(plate)) == {wanted.material}]
    frames = yield from measure_plates(instrument, plan, calibration, wanted.plates)
    pixel_class = calibration.pixel_class.copy()
    # Many series, minutes apart, show pixels that switch too slowly for the step `pixels`.
    series = frames.flats * (frames.n_open_frames / len(frames.flats))
    pixel_class[is_unsteady(series) & ~calibration.is_bad] |= np.uint16(PixelClass.TELEGRAPH)
    calibration = replace(calibration, pixel_class=pixel_class)
    thickness = fit_thickness(
        frames.open_beam,
        frames.behind[own],
        [layers_mm(wanted.plates[index])[wanted.material] for index in own],
        material=wanted.material,
        path_factors=path_factors(plan.geometry),
        n_frames=(frames.n_open_frames, frames.n_plate_frames),
        thresholds_kev=plan.detector.thresholds_kev,
        tube_kvp=plan.source.kvp,
        reference_mm=wanted.reference_mm,
        is_bad=calibration.is_bad,
    )
    return replace(calibration, thickness=thickness, wedge=step_wedge(frames, wanted.plates, plan, calibration))


def measure_plates(
    instrument: Instrument, plan: Plan, calibration: Calibration, plates: Sequence[str]
) -> Generator[Progress, None, PlateFrames]:
    """Expose every plate at the scan's thresholds, with flats before and after each against drift."""
    detector, gantry, rate = instrument.detector, instrument.gantry, calibration.count_rate
    refuse_absent(gantry, plates)
    n_plate = plan.calibration.wedge.n_frames
    n_flat = max(1, round(plan.calibration.wedge.n_flat_frames / 2))
    set_up_detector(detector, plan, calibration, operating_dacs(calibration, plan))
    select_open_beam(gantry, plan)
    gantry.move_to(AT_ZERO)
    behind = []
    with beam(gantry):
        flats = [(yield from mean_bins(detector, plan, "flats", n_flat, rate))]
        for plate in plates:
            gantry.select_sample(plate)
            behind.append((yield from mean_bins(detector, plan, plate, n_plate, rate)))
            gantry.select_sample(None)
            flats.append((yield from mean_bins(detector, plan, "flats", n_flat, rate)))
    level = np.array([flat.mean(axis=(1, 2)) for flat in flats])
    drift = level.mean(axis=0) / ((level[:-1] + level[1:]) / 2)
    return PlateFrames(
        open_beam=np.mean(flats, axis=0),
        flats=np.stack(flats),
        behind=np.stack(behind) * drift[:, :, None, None],
        n_open_frames=n_flat * len(flats),
        n_plate_frames=n_plate,
    )


def refuse_absent(gantry: Gantry, plates: Sequence[str]) -> None:
    """Refuse plates that the sample changer has not, or of whose material nothing is known."""
    there = gantry.samples()
    for plate in plates:
        for name in layers_mm(plate):
            material(name)
        if there is not None and plate not in there:
            raise WrongUsage(f"the sample changer has no {plate!r}; it has {', '.join(there)}")


def step_wedge(frames: PlateFrames, plates: Sequence[str], plan: Plan, calibration: Calibration) -> StepWedge:
    """Return what the mean good pixel sees behind each plate."""
    # Judged by the open beam only: to leave out pixels that saw nothing behind a thick plate would favour the others.
    is_good = ~calibration.is_bad & (frames.open_beam > 0).all(axis=0)
    layers = [layers_mm(plate) for plate in plates]
    materials = tuple(dict.fromkeys(name for each in layers for name in each))
    open_beam, counts = frames.open_beam[:, is_good].mean(axis=-1), frames.behind[..., is_good].mean(axis=-1)
    numbers = plan.detector.thresholds
    stood_kev = [
        calibration.threshold_kev(number, calibration.threshold_dac(number, energy_kev))
        for number, energy_kev in zip(numbers, plan.detector.thresholds_kev, strict=True)
    ]
    slant = path_factors(plan.geometry)[is_good].mean()
    n_good = max(int(is_good.sum()), 1)
    return StepWedge(
        plates=tuple(plates),
        materials=materials,
        layers_mm=np.array([[each.get(name, 0.0) for name in materials] for each in layers]) * slant,
        thresholds_kev=np.asarray(stood_kev),
        open_beam=open_beam,
        counts=counts,
        open_beam_sigma_relative=1 / np.sqrt(np.maximum(open_beam * frames.n_open_frames * n_good, 1)),
        sigma_relative=1 / np.sqrt(np.maximum(counts * frames.n_plate_frames * n_good, 1)),
    )
