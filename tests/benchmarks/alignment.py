"""Hidden misalignments of the simulated scanner, found by the bead phantom and by opposing rays of a scan.

Each misalignment is drawn at random: distances within 2 mm, offsets within 0.8 mm (u) and 0.4 mm (v), roll and
tilt about v within 1 and 2 degrees. The scene's photons above 18 keV are counted with Poisson noise at the plan's
exposure; the beads go through the finder, the vials through the scan's own alignment. Aim: 0.1 pixel, 0.05 degrees.

    python tests/benchmarks/alignment.py [--json] [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script finds the packages of its own checkout

from acquisition.plan import Plan
from calibration.alignment import Alignment, align_beads
from calibration.beads import find_shadows, join_tracks
from calibration.geometry import Geometry
from calibration.opposing import align_scan
from sim.gantry import GEOMETRY, Gantry
from tests.benchmarks.aims import Aim

AIM_PX, AIM_DEG = 0.1, 0.05
LOWEST_KEV = 18.0
EFFICIENCY = 0.9
N_FLATS = 50


def misplaced(rng: np.random.Generator) -> Geometry:
    """Draw a geometry near the nominal one."""
    return replace(
        GEOMETRY,
        source_to_detector_mm=GEOMETRY.source_to_detector_mm + rng.uniform(-2, 2),
        source_to_object_mm=GEOMETRY.source_to_object_mm + rng.uniform(-2, 2),
        offset_u_mm=rng.uniform(-0.8, 0.8),
        offset_v_mm=rng.uniform(-0.4, 0.4),
        roll_rad=np.deg2rad(rng.uniform(-1, 1)),
        tilt_v_rad=np.deg2rad(rng.uniform(-2, 2)),
    )


def views(truth: Geometry, sample: str, angles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Line integrals of a sample as a misplaced scanner counts them: (n_views, rows, cols)."""
    scene = Gantry(seed=1, geometry=truth)

    def counts(line: str) -> np.ndarray:
        assert scene.line(line) == "OK"
        assert scene.line("BUSY?") == "0"
        photons, energies_kev = scene.photons(1.0)
        assert photons is not None
        return EFFICIENCY * photons[energies_kev > LOWEST_KEV].sum(axis=0)

    assert scene.line(f"TUBE {Plan().source.kvp} {Plan().source.current_ma}") == "OK"
    flat = rng.poisson(N_FLATS * counts("BEAM ON")) / N_FLATS
    assert scene.line(f"SAMP {sample}") == "OK"
    seen = [rng.poisson(counts(f"ROT {math.degrees(angle):.9g}")) for angle in angles]
    return np.log(flat) - np.log(np.maximum(seen, 0.5))


def by_beads(truth: Geometry, n_views: int, rng: np.random.Generator) -> Alignment:
    """Find the geometry as the step `geometry` does."""
    beads, angles = Plan().calibration.beads, np.arange(n_views) * 2 * np.pi / n_views
    radius_px = beads.diameter_mm / 2 * GEOMETRY.magnification / GEOMETRY.pitch_mm
    images = views(truth, beads.sample, angles, rng)
    shadows = find_shadows(images, n_beads=beads.n_beads, radius_px=radius_px)
    tracks = join_tracks(shadows, angles, n_beads=beads.n_beads, radius_px=radius_px)
    return align_beads(tracks, angles, GEOMETRY, length_mm=beads.length_mm, length_error_mm=beads.length_error_mm)


def by_scan(truth: Geometry, n_views: int, rng: np.random.Generator) -> Alignment:
    """Find axis and roll as `mpxct align` does; the distances are believed, and wrong by up to 2 mm."""
    angles = np.arange(n_views) * 2 * np.pi / n_views
    return _result(align_scan(views(truth, "vials", angles, rng), angles, GEOMETRY))


def _result(work: Generator[Any, None, Alignment]) -> Alignment:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def rows(case: int, how: str, truth: Geometry, found: Alignment) -> list[dict[str, Any]]:
    """One row for each parameter: offsets in pixels, angles in degrees, distances in mm."""
    table = []
    for name, error in zip(found.parameters, found.standard_errors.tolist(), strict=True):
        unit, factor, aim = "mm", 1.0, None
        if name.endswith("_rad"):
            unit, factor, aim = "degree", math.degrees(1), AIM_DEG
        elif name.startswith("offset"):
            unit, factor, aim = "pixel", 1 / truth.pitch_mm, AIM_PX
        true, value = float(getattr(truth, name) * factor), float(getattr(found.geometry, name) * factor)
        table.append(
            {
                "case": case, "by": how, "parameter": name.rsplit("_", 1)[0], "unit": unit, "truth": true,
                "found": value, "error": value - true, "standard_error": error * factor,
                "within": None if aim is None else abs(value - true) <= aim,
            }
        )  # fmt: skip
    if how == "scan":  # which believes the distances
        return table
    points = np.random.default_rng(0).uniform(-4, 4, (200, 3))
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    apart = found.geometry.views(angles).shadows_px(points) - truth.views(angles).shadows_px(points)
    worst = float(np.abs(apart).max())
    table.append(
        {
            "case": case, "by": how, "parameter": "worst shadow", "unit": "pixel", "truth": 0.0, "found": worst,
            "error": worst, "standard_error": found.residual_rms_px, "within": worst <= AIM_PX,
        }
    )  # fmt: skip
    return table


def study(n_cases: int, n_views: int, *, with_scan: bool = True) -> list[dict[str, Any]]:
    """Find the geometry of some scanners drawn at random: a row for each parameter."""
    rng, table = np.random.default_rng(2026), []
    for case in range(1, n_cases + 1):
        truth = misplaced(rng)
        table += rows(case, "beads", truth, by_beads(truth, n_views, rng))
        if with_scan:
            table += rows(case, "scan", truth, by_scan(truth, n_views, rng))
    return table


def aims(is_quick: bool = False) -> list[Aim]:
    """The worst error of each kind beside its aim."""
    table = study(1, 60, with_scan=False) if is_quick else study(3, Plan().calibration.beads.n_views)
    found = []
    for how in dict.fromkeys(row["by"] for row in table):
        for name in dict.fromkeys(row["parameter"] for row in table if row["by"] == how and row["within"] is not None):
            here = [row for row in table if row["by"] == how and row["parameter"] == name]
            wanted = AIM_DEG if here[0]["unit"] == "degree" else AIM_PX
            worst = max(abs(row["error"]) for row in here)
            found.append(Aim(name=f"geometry by {how}: {name}", aim=wanted, reached=worst, unit=here[0]["unit"]))
    return found


def main() -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    n_cases, n_views = (1, 60) if arguments.quick else (3, Plan().calibration.beads.n_views)
    began_s = time.monotonic()
    table = study(n_cases, n_views)
    seconds = time.monotonic() - began_s
    if arguments.json:
        print(json.dumps({"rows": table, "n_views": n_views, "seconds": seconds}))
        return
    head = ("case", "by", "parameter", "unit", "truth", "found", "error", "std err", "aim met")
    print("{:>4} {:<6} {:<20} {:<7} {:>10} {:>10} {:>9} {:>9}  {}".format(*head))
    for row in table:
        met = {None: "", True: "yes", False: "no"}[row["within"]]
        print(
            f"{row['case']:>4} {row['by']:<6} {row['parameter']:<20} {row['unit']:<7} {row['truth']:>10.4f} "
            f"{row['found']:>10.4f} {row['error']:>9.4f} {row['standard_error']:>9.4f}  {met}"
        )
    print(f"{n_views} views, {seconds:.0f} s; the worst shadow is of points within 4 mm of the middle")


if __name__ == "__main__":
    main()
