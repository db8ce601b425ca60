"""How long a design takes, whether what it foretells comes true, and what it says of the chip's ways to more bins.

The first table is noise in simulated material volumes (Poisson counts, each ray fitted, back-projected) over what was
foretold; the second the search over voltages, filters and thresholds for one task at one dose, in charge summing with
four thresholds in one pass and in two, and in single pixels with eight. CPU seconds are of the whole process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from acquisition.plan import Plan
from calibration.response import SensorModel
from reconstruction.spectral.design import Designer, Limits, beams_of, rate_at_loss_per_s
from reconstruction.spectral.dose import dose_by_photons, dose_mgy_per_fluence
from reconstruction.spectral.prediction import (
    ENERGIES_KEV,
    Beam,
    Forecaster,
    ideal_counter,
    stated_counter,
    voxel_gain_per_mm2,
)
from reconstruction.spectral.sample import ring_of
from tests.design_bench import reconstructed_noise, run

AGENTS = (("iodine", 5.0), ("gadolinium", 5.0), ("gold", 5.0))
DIAMETER_MM, DOSE_MGY, N_VIEWS = 10.0, 100.0, 720
WAYS = {"charge summing, 4": (True, 4, 1), "charge summing, 2 x 4": (True, 4, 2), "single pixels, 8": (False, 8, 1)}
DEAD_TIME_S = {True: 4e-6, False: 1e-6}


def noise(*, is_quick: bool) -> dict[str, dict[str, float]]:
    """Return observed over foretold noise of each material, the mean of all rods."""
    sample = ring_of([("iodine", 5.0), ("gadolinium", 5.0)], 9.0, "water")
    beam, thresholds_kev = Beam(kvp=100.0, filters_mm={"aluminium": 3.0}), np.array([18.0, 33.0, 50.0, 75.0])
    found = {}
    counters = {"stated": stated_counter(SensorModel()), "ideal": ideal_counter(SensorModel())}
    for name, counter in counters.items():
        for mas in (0.1, 1.0):
            foretold, observed, _ = reconstructed_noise(
                sample, counter, beam, thresholds_kev, mas=mas, n_views=60 if is_quick else 180, n_rows=32
            )
            ratio = (observed / foretold).mean(axis=0)
            found[f"{name}, {mas:g} mAs a view"] = dict(zip(sample.basis, ratio.tolist(), strict=True))
    return found


def designs(*, is_quick: bool) -> dict[str, dict[str, object]]:
    """Return the best settings of each way to more bins, and what they took."""
    sample, geometry = ring_of(AGENTS, DIAMETER_MM, "water"), Plan().geometry
    per_fluence = run(dose_mgy_per_fluence(sample, geometry, ENERGIES_KEV))
    kvps = (80.0, 100.0, 120.0) if is_quick else (60.0, 70.0, 80.0, 90.0, 100.0, 110.0, 120.0)
    added_mm = {"aluminium": (0.0, 1.0, 2.0, 4.0), "copper": (0.1, 0.25, 0.5)}
    beams = beams_of(kvps, {"aluminium": 1.8}, added_mm)
    found = {}
    for name, (is_csm, n_thresholds, n_passes) in WAYS.items():
        began_s = time.process_time()
        designer = Designer(
            Forecaster(sample, geometry, stated_counter(SensorModel(is_csm=is_csm))),
            Limits(n_views=N_VIEWS, dose_mgy=DOSE_MGY, rate_per_s=rate_at_loss_per_s(0.1, DEAD_TIME_S[is_csm])),
            gain_per_mm2=voxel_gain_per_mm2(geometry, N_VIEWS, window="hann"),
            dose_mgy_per_fluence=per_fluence,
        )
        best = run(designer.search(beams, n_thresholds, n_passes=n_passes))
        photons = best.beam.photons(geometry.source_to_object_mm)
        thrown = dose_by_photons(sample, geometry, photons, ENERGIES_KEV)
        found[name] = {
            "kvp": best.beam.kvp,
            "filters_mm": dict(best.beam.filters_mm),
            "passes_kev": best.passes_kev,
            "cnr": dict(zip(sample.basis[1:], best.forecast.cnr.tolist(), strict=True)),
            "dose_over_thrown": best.dose_mgy / (thrown.dose_mgy * float(photons.sum()) * best.forecast.mas * N_VIEWS),
            "beam_s": best.view_s * N_VIEWS,
            "n_beams": len(beams),
            "cpu_s": time.process_time() - began_s,
        }
    return found


def main() -> None:
    """Print the tables, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer views and voltages")
    arguments = parser.parse_args()
    figures = {"noise": noise(is_quick=arguments.quick), "designs": designs(is_quick=arguments.quick)}
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"{'noise, observed / foretold':<28}" + "".join(f"{name:>12}" for name in ("water", "iodine", "gadolinium")))
    for name, ratios in figures["noise"].items():
        print(f"{name:<28}" + "".join(f"{ratio:>12.3f}" for ratio in ratios.values()))
    agents = ", ".join(f"{name} {mg_ml:g} mg/mL" for name, mg_ml in AGENTS)
    print(f"\n{agents} in {DIAMETER_MM:g} mm of water, {DOSE_MGY:g} mGy, voxels of 88 um")
    for name, best in figures["designs"].items():
        thresholds = " | ".join(" ".join(f"{kev:g}" for kev in one) for one in best["passes_kev"])
        cnr = " ".join(f"{value:.2f}" for value in best["cnr"].values())
        filters = " ".join(f"{k} {v:g}" for k, v in best["filters_mm"].items() if v)
        print(f"{name:<22} {best['kvp']:g} kVp, {filters} mm; {thresholds} keV; CNR {cnr}; beam {best['beam_s']:.0f} s")
        cost = f"{best['n_beams']} beams in {best['cpu_s']:.1f} s CPU"
        print(f"{'':<22} {cost}; dose over that of photons thrown {best['dose_over_thrown']:.3f}")


if __name__ == "__main__":
    main()
