"""The step `materials`: what each bin sees of each material, measured behind cells of known content."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from acquisition.calibrate.exposures import (
    Instrument,
    Work,
    beam,
    mean_bins,
    operating_dacs,
    select_open_beam,
    set_up_detector,
)
from acquisition.plan import Cell, Plan, at_thresholds, calibrated_kev
from acquisition.steps import AT_ZERO
from calibration.attenuation import material
from calibration.material_basis import CellMeasurement, MaterialBasis, joined, measure_basis
from calibration.progress import Progress
from calibration.store import Calibration


def materials(instrument: Instrument, plan: Plan, calibration: Calibration) -> Work:
    """Measure the basis behind each cell, at the thresholds of each pass that the plan's scan makes."""
    passes = calibrated_kev(plan)
    bases: list[MaterialBasis] = []
    for energies_kev in passes:
        bases += [(yield from _basis(instrument, at_thresholds(plan, energies_kev), calibration))]
    return replace(calibration, basis=joined(bases), thresholds_kev=passes[0])


def _basis(instrument: Instrument, plan: Plan, calibration: Calibration) -> Generator[Progress, None, MaterialBasis]:
    """Measure one pass, with flats before and after each cell against the drift of tube and sensor."""
    detector, gantry = instrument.detector, instrument.gantry
    cells, rate = plan.calibration.cells, calibration.count_rate
    n_flat = max(1, round(2 * plan.calibration.n_flat_frames / (len(cells) + 1)))
    set_up_detector(detector, plan, calibration, operating_dacs(calibration, plan))
    select_open_beam(gantry, plan)
    gantry.move_to(AT_ZERO)
    behind = []
    with beam(gantry):
        flats = [(yield from mean_bins(detector, plan, "flats", n_flat, rate))]
        for cell in cells:
            gantry.select_sample(cell.name)
            behind.append((yield from mean_bins(detector, plan, cell.name, plan.calibration.n_cell_frames, rate)))
            gantry.select_sample(None)
            flats.append((yield from mean_bins(detector, plan, "flats", n_flat, rate)))
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
    return replace(basis, tube_kvp=plan.source.kvp)


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
