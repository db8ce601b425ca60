"""What the calibration of the beam reaches: count rate, hardening and rings, response, bad pixels, each beside its aim.

Everything is measured on detectors made by laws that the estimators do not know (`tests.beam_bench`): pulses of
constant-current discharge, pixels with thresholds of their own, the simulated sensor's photons, hidden faults.

`python tests/benchmarks/calibration_beam.py --json`
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from calibration.attenuation import material, solution
from calibration.count_rate import fit_count_rate
from calibration.geometry import Geometry
from calibration.pixels import PixelClass, classify, is_unusable
from calibration.progress import finished
from calibration.response import SensorModel, fit_response
from calibration.thickness import fit_thickness
from reconstruction.fdk import fdk
from reconstruction.volume import Grid
from sim.phantom import Cylinder, Phantom, path_lengths_mm
from tests.beam_bench import THRESHOLDS_KEV, Layers, SharpPixels, SimulatedBench, seen_per_s
from tests.benchmarks.aims import Aim

SWEEP_MA = 0.01 * 1.5 ** np.arange(13) / (0.01 * 1.5**12)
RADIUS_MM = 5.0


def aim(name: str, wanted: float, reached: float | np.floating, unit: str, *, is_least: bool = False) -> Aim:
    """One row: `wanted` is the most that is allowed, or the least."""
    return Aim(name=name, aim=wanted, reached=float(reached), unit=unit, is_least=is_least)


def count_rate_aims(n_pixels: int) -> Generator[Aim, None, None]:
    """Sweeps with Poisson noise, pixels with dead times of their own; the errors of the mean, then of one pixel."""
    rng = np.random.default_rng(1)
    shape = (n_pixels, n_pixels)
    for mode, shared, full_per_s in (("single pixel", 0.5, 6.3e5), ("charge summing", 0.12, 4.9e5)):
        ratio = rng.normal(1, 0.05, shape)
        grid = np.linspace(0.7, 1.3, 13)

        def rates(current: float, pmma_mm: float = 0.0) -> tuple[NDArray, NDArray]:
            """A pixel with a longer dead time sees as many more pulses overlap: its law at a higher rate."""
            at = [seen_per_s(current * each, pmma_mm, shared, full_per_s)[0] / each for each in grid]  # noqa: B023
            seen = np.stack([np.interp(ratio, grid, column) for column in np.transpose(at)])  # noqa: B023
            return seen, seen_per_s(current, pmma_mm, shared, full_per_s)[1]  # noqa: B023

        n_frames, per_frame = 40, 3000.0
        sweep, exposures_s = [], []
        for current in SWEEP_MA:
            seen, true = rates(float(current))
            exposures_s.append(per_frame / true[0])
            sweep.append(rng.poisson(seen * exposures_s[-1] * n_frames) / n_frames)
        curve = fit_count_rate(
            SWEEP_MA, np.stack(sweep), exposures_s=exposures_s, n_frames=n_frames, thresholds_kev=THRESHOLDS_KEV
        )
        errors: dict[str, list[float]] = {"to 10 %": [], "to 40 %": [], "behind PMMA": [], "pixel": []}
        for current in np.linspace(0.04, 1.0, 25):
            for pmma_mm in (0.0, 10.0, 30.0):
                seen, true = rates(float(current), pmma_mm)
                corrected, _ = curve.correct(seen[None], 1.0)
                by_pixel = corrected[0] / true[:, None, None] - 1
                worst = float(np.abs(by_pixel.mean(axis=(1, 2))).max())
                loss = 1 - float(seen[0].mean() / true[0])
                if loss > 0.40:
                    continue
                if pmma_mm:
                    errors["behind PMMA"].append(worst)
                    continue
                errors["to 10 %" if loss <= 0.10 else "to 40 %"].append(worst)
                errors["pixel"].append(float(by_pixel[0].std()))
        yield aim(f"{mode}: counters linear up to 10 % loss", 1.0, 100 * max(errors["to 10 %"]), "%")
        yield aim(f"{mode}: counters corrected up to 40 % loss", 2.0, 100 * max(errors["to 40 %"]), "%")
        yield aim(f"{mode}: the same behind 10 and 30 mm of PMMA", 2.0, 100 * max(errors["behind PMMA"]), "%")
        yield aim(f"{mode}: scatter between pixels up to 40 % loss", 2.0, 100 * max(errors["pixel"]), "%")


def wedge_aims(n_views: int, n_cols: int) -> Generator[Aim, None, None]:
    """A PMMA cylinder of 10 mm by pixels with thresholds 1 keV apart: cupping and rings of the lowest bin's volume."""
    geometry = Geometry(
        source_to_detector_mm=250.0, source_to_object_mm=200.0, pitch_mm=0.110 * 128 / n_cols, rows=8, cols=n_cols
    )
    pixels = SharpPixels(seed=5, shape=(geometry.rows, geometry.cols))
    pose = geometry.views([0.0])
    columns = np.arange(geometry.cols) - (geometry.cols - 1) / 2
    rows = np.arange(geometry.rows) - (geometry.rows - 1) / 2
    places = pose.detector_mm[0] + rows[:, None, None] * pose.v_mm[0] + columns[None, :, None] * pose.u_mm[0]
    cylinder = Phantom(solids=(Cylinder(material=material("pmma"), radius_mm=RADIUS_MM, height_mm=30.0),))
    chords_mm = path_lengths_mm(cylinder, pose.source_mm[0], places)[0]
    through = pixels.passed(chords_mm)
    n_flats, n_plates = 700, 100
    wedge_mm = (1.0, 2.0, 5.0, 8.0, 10.0, 15.0, 20.0)
    wedge = fit_thickness(
        pixels.frames(0.0, n_flats),
        np.stack([pixels.frames(t, n_plates) for t in wedge_mm]),
        wedge_mm,
        material="pmma",
        path_factors=np.ones(pixels.shape),
        n_frames=(n_flats, n_plates),
        thresholds_kev=THRESHOLDS_KEV,
        tube_kvp=118.0,
        reference_mm=8.0,
    )
    flat = pixels.frames(0.0, n_flats)
    # Twenty frames a view, so that what is left to see is the pixels and not the noise.
    raw = np.stack(
        [np.log(flat / np.maximum(pixels.rng.poisson(20 * through) / 20, 1)) for _ in range(n_views)], axis=1
    )
    straight, _ = wedge.linearised(raw.astype(np.float32))
    angles_rad = 2 * math.pi * np.arange(n_views) / n_views
    voxel_mm = geometry.pitch_mm * 0.8
    half = int(6.5 / voxel_mm)
    grid = Grid(shape=(4, 2 * half, 2 * half), voxel_mm=voxel_mm, centre_mm=(0.0, 0.0, 0.0))
    figures = {}
    for name, values in (("before", raw), ("after", straight)):
        volume = _run(fdk(np.ascontiguousarray(values[:1], dtype=np.float32), angles_rad, geometry, grid))[0]
        figures[name] = _cupping_and_rings(volume, voxel_mm)
    for index, what in enumerate(("cupping of a 10 mm PMMA cylinder", "rms of its rings")):
        before, after = figures["before"][index], figures["after"][index]
        yield aim(f"{what}, after (before: {before:.2f} %)", round(before / 2, 2), after, "% of its attenuation")


def _cupping_and_rings(volume: NDArray[np.floating], voxel_mm: float) -> tuple[float, float]:
    """Return how much lower the middle is than the border, and the rms of rings about a smooth profile, in per cent."""
    n = volume.shape[-1]
    away_mm = voxel_mm * np.hypot(*np.indices((n, n)) - (n - 1) / 2)
    ring = np.minimum((away_mm / voxel_mm).astype(int), n)
    inside = slice(int(0.6 / voxel_mm), int(0.85 * RADIUS_MM / voxel_mm))
    area = np.bincount(ring.ravel())[inside]
    profiles = np.stack([np.bincount(ring.ravel(), plane.ravel())[inside] / area for plane in volume])
    mean, radius = profiles.mean(), np.arange(profiles.shape[1], dtype=float)
    smooth = np.polynomial.Polynomial.fit(radius, profiles.mean(axis=0), 2)
    cupping = (smooth(radius[-1]) - smooth(radius[0])) / mean
    rings = [np.sqrt(np.average((p - np.polynomial.Polynomial.fit(radius, p, 2)(radius)) ** 2)) for p in profiles]
    return 100 * abs(float(cupping)), 100 * float(np.mean(rings) / mean)


def response_aims(is_quick: bool) -> Generator[Aim, None, None]:
    """Fit to lines and to plates of PMMA and aluminium; foretell stacks and cells of what was never in the beam."""
    bench = SimulatedBench()
    pmma_mm = (5.0, 10.0, 20.0, 40.0) if is_quick else (2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0)
    plates: dict[str, Layers] = {f"pmma-{t:g}": {"pmma": t} for t in pmma_mm}
    plates |= {f"aluminium-{t:g}": {"aluminium": t} for t in ((1.0, 4.0) if is_quick else (0.5, 1.0, 2.0, 4.0))}
    checks: dict[str, Layers] = {
        "10 mm PMMA and 1 mm Al": {"pmma": 10.0, "aluminium": 1.0},
        "20 mm PMMA and 2 mm Al": {"pmma": 20.0, "aluminium": 2.0},
        "8 mm water": {"water": 8.0},
        "8 mm of 18 mg/mL iodine": {solution("water", "iodine", 18.0): 8.0},
        "8 mm of 16 mg/mL gadolinium": {solution("water", "gadolinium", 16.0): 8.0},
        "8 mm of 211.7 mg/mL hydroxyapatite": {solution("water", "hydroxyapatite", 211.7): 8.0},
    }
    work = fit_response(
        SensorModel(),
        tube_kvp=118.0,
        thresholds_kev=bench.on_dac(np.asarray(THRESHOLDS_KEV)).tolist(),
        open_beam=bench.plate({}),
        plates={name: bench.plate(layers) for name, layers in plates.items()},
        checks={name: bench.plate(layers) for name, layers in checks.items()},
        curves=[bench.curve(source) for source in (("Gd", "W") if is_quick else ("In", "Gd", "Am-241", "Pb"))],
    )
    found = finished(work)
    error = 100 * np.abs(found.predicted / found.measured - 1)[-len(checks) :].max(axis=1)
    for name, worst in zip(checks, error, strict=True):
        yield aim(f"response: transmission of {name}, worst bin", 1.0, worst, "%")


def pixel_aims() -> Generator[Aim, None, None]:
    """Hidden faults in a field of 128 x 128; sensitivity by class, and good pixels that are blamed."""
    rng = np.random.default_rng(7)
    shape, n_series, n_each = (128, 128), 6, 10
    truth = np.zeros(shape, dtype=int)
    faults = ("dead", "hot", "noisy", "fast telegraph", "slow telegraph", "half as sensitive")
    places = rng.permutation(np.argwhere(np.ones((126, 126), dtype=bool)) + 1)[: 30 * len(faults)]
    truth[tuple(places.T)] = np.repeat(np.arange(1, len(faults) + 1), 30)
    mean = 1000 * (1 + 0.2 * np.linspace(-1, 1, 128)) * rng.normal(1, 0.05, shape)
    level = np.ones((n_series * n_each, *shape))
    level *= (1 + 0.02 * np.sin(np.arange(n_series * n_each) / 9))[:, None, None]  # drift of the tube
    series = np.repeat(np.arange(n_series), n_each)
    level[:, truth == 1] = 0
    level[:, truth == 4] *= np.where(rng.random((len(level), 30)) < 0.5, 0.8, 1.0)
    level[:, truth == 5] *= np.where(np.array([0, 0, 1, 1, 0, 1])[series] == 1, 0.9, 1.0)[:, None]
    level[:, truth == 6] *= 0.4
    flats = rng.poisson(np.stack([mean * level, 0.4 * mean * level], axis=1))
    dark = np.zeros((20, 2, *shape), dtype=int)
    dark[:, 0, truth == 2] = rng.poisson(8.0, (20, 30))
    dark[:, 0, truth == 3] = rng.poisson(0.4, (20, 30))
    found = classify(dark, flats, flat_series=series)
    wanted = (
        *(PixelClass.DEAD, PixelClass.HOT, PixelClass.NOISY, PixelClass.TELEGRAPH, PixelClass.TELEGRAPH),
        PixelClass.UNDER,
    )
    for number, (name, bit) in enumerate(zip(faults, wanted, strict=True), start=1):
        yield aim(f"pixels: {name} found", 95.0, 100 * np.mean((found[truth == number] & bit) > 0), "%", is_least=True)
    yield aim("pixels: good ones blamed", 0.01, 100 * np.mean(is_unusable(found)[truth == 0]), "%")


def aims(is_quick: bool = False) -> list[Aim]:
    """Every aim of the beam's calibration beside what was reached."""
    return [
        *count_rate_aims(24 if is_quick else 64),
        *wedge_aims(*((180, 64) if is_quick else (360, 128))),
        *response_aims(is_quick),
        *pixel_aims(),
    ]


def _run(work: Generator[object, None, NDArray]) -> NDArray:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def main() -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="end within 45 s on 2 cores")
    options = parser.parse_args()
    found = aims(options.quick)
    if options.json:
        print(json.dumps({"aims": [each.figures for each in found]}))
        return
    print("\n".join(map(str, found)))


if __name__ == "__main__":
    main()
