"""What the whole chain reads in the MARS phantoms: simulated detector, calibration, scan, reconstruction, materials.

The instrument is `sim:demo`, and what is estimated sees nothing of it but frames: it is calibrated as a user would,
writes a scan file, and from there on that file is all there is. The true concentrations are those that the phantom's
maker states; they enter in the last step only, where they are compared.

Two ways to eight bins: charge summing has four thresholds in a pass, so that eight are two passes; without it the chip
has eight in one. Each is decomposed in the image domain, by cells of known content, and in the projection domain, by
the response that was fitted to sources and plates.

# Ref: aims and the published bar (R2 0.97, slope 0.81-0.95, cross-talk 0.34 mg/mL: Si-Mohamed et al. 2018, Eur.
#      Radiol. Exp. 2, 34), detection limit at a contrast to noise of 5 (Clark and Badea 2013) and at 3 sigma of the
#      blank over the slope (IUPAC), identification by voxels (Raja et al. 2018): reference on spectral CT, 1.3 and 9.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from acquisition.beam_plan import ResponsePlan, WedgePlan
from acquisition.calibrate.steps import calibrate_all
from acquisition.instrument import open_instrument
from acquisition.plan import (
    CalibrationPlan,
    Cell,
    DetectorPlan,
    EnergyPlan,
    EqualisationPlan,
    Plan,
    SourcePlan,
    passes_kev,
)
from acquisition.runner import run_scan
from acquisition.scan_plan import ScanPlan
from calibration import store
from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.material_basis import joined
from calibration.spectrum import air_kerma_mgy, tube_spectrum
from calibration.store import Calibration
from firmware_iface.errors import WrongUsage
from reconstruction.assessment import Figures, assess, common_mtf50_per_mm
from reconstruction.assessment import figures_of as figures_of_maps
from reconstruction.decomposition import bin_covariance, decompose
from reconstruction.fdk import fdk
from reconstruction.merit.resolution import blurred
from reconstruction.phantom_file import Phantom, Vial
from reconstruction.projections import join_pixels
from reconstruction.quality import cylinder_mask, regression, vial_statistics
from reconstruction.recipe import Recipe
from reconstruction.scan_materials import decompose_scan
from reconstruction.scan_rays import ScanRays, read_rays
from reconstruction.volume import MASS_CONCENTRATION, Grid, Volume
from sim.mars import multi_contrast_phantom, raja_phantom
from sim.phantom import THICK_CELL_MM, THICK_CELLS_MG_ML, Insert

T = TypeVar("T")
DEVICE = "sim:demo?repeatable=1"
PASSES_KEV = ((19.0, 33.0, 50.0, 80.0), (26.0, 41.0, 60.0, 95.0))
"""Charge summing: edges of iodine (33.2), gadolinium (50.2) and gold (80.7 keV) in the first pass, between them in the
second."""
SINGLE_KEV = (19.0, 26.0, 33.0, 41.0, 50.0, 60.0, 80.0, 95.0)
SHIFTS_MM = (5.06, 17.6)
"""Two places of the camera, to one side of the axis: with a whole circle they see a cylinder of 39 mm."""
AGENTS = ("iodine", "gadolinium", "gold")
MATERIALS = ("water", *AGENTS, "hydroxyapatite")
SHOWN_MG_ML = 2.0
JOINED_PIXELS = 4
VOXEL_MM, COARSE = 0.5, 2
"""Voxels, and how many of them along each axis make one that limits are told of beside: 1 mm, as in one published
protocol (CMMI 2018, 2136840)."""
PRIOR = "tnv"
Z_RANGE_MM = (-4.0, 4.0)
PHANTOMS = {"mars-multi": multi_contrast_phantom, "mars-raja": raja_phantom}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    n_views: int = 240
    accumulate: int = 4
    n_flats: int = 40
    exposure_s: float = 10.0
    current_ma: float = 0.00057
    n_cell_frames: int = 60
    n_plate_frames: int = 40
    max_rounds: int = 3
    sources: tuple[str, ...] = ("In", "Gd", "Am-241", "Pb")
    n_points: int = 40
    plates: tuple[str, ...] = ("pmma-5", "pmma-10", "pmma-20", "pmma-30", "pmma-40", "aluminium-1", "aluminium-4")
    n_dark_frames: int = 20


QUICK = Size(
    n_views=36,
    accumulate=1,
    n_flats=10,
    n_cell_frames=5,
    n_plate_frames=5,
    max_rounds=0,
    sources=("Am-241", "Pb"),
    n_points=8,
    plates=("pmma-10", "pmma-20", "pmma-30", "pmma-40", "aluminium-1"),
    n_dark_frames=5,
)
"""Enough to see that the chain is whole, up to the image domain; its figures, and its response, are noise."""


def plan_of(mode: str, sample: str, size: Size) -> Plan:
    """Return the plan of one scan; charge summing has two passes."""
    is_csm = mode == "colour-csm"
    return Plan(
        detector=DetectorPlan(
            mode=mode,
            thresholds_kev=PASSES_KEV[0] if is_csm else SINGLE_KEV,
            exposure_s=size.exposure_s,
            accumulate=size.accumulate,
        ),
        source=SourcePlan(kvp=118.0, current_ma=size.current_ma),
        scan=ScanPlan(
            sample=sample,
            n_views=size.n_views,
            frames_per_view=1,
            flats_every_n_views=size.n_views,
            n_flats=size.n_flats,
            shifts_mm=SHIFTS_MM,
            passes_kev=PASSES_KEV if is_csm else (),
        ),
        calibration=CalibrationPlan(
            steps=("equalise", "energy", "pixels", "materials", "wedge", "response"),
            cells=tuple(
                Cell(
                    name=f"cell-{THICK_CELL_MM:g}-{name}",
                    material=name,
                    concentration_mg_ml=concentration_mg_ml,
                    thickness_mm=THICK_CELL_MM,
                )
                for name, concentration_mg_ml in THICK_CELLS_MG_ML.items()
            ),
            n_dark_frames=size.n_dark_frames,
            n_flat_frames=size.n_cell_frames,
            n_cell_frames=size.n_cell_frames,
            equalisation=EqualisationPlan(max_rounds=size.max_rounds),
            energy=EnergyPlan(end_point_kvp=0.0),
            sources=size.sources,
            wedge=WedgePlan(
                reference_mm=30.0,
                plates=size.plates,
                n_frames=size.n_plate_frames,
                n_flat_frames=size.n_plate_frames,
            ),
            response=ResponsePlan(checks=("pmma-20+aluminium-2",), sources=size.sources, n_points=size.n_points),
        ),
    )


def run(work: Generator[object, None, T]) -> T:
    """Run a long work to its end."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def calibrated(plan: Plan) -> Calibration:
    """Calibrate a new instrument as the plan says."""
    with open_instrument(DEVICE) as instrument:
        return run(calibrate_all(instrument, plan))


def scanned(plan: Plan, calibration: Calibration, path: Path) -> Path:
    """Scan the phantom."""
    with open_instrument(DEVICE) as instrument:
        return run(run_scan(instrument, plan, calibration, path, overwrite=True)).path


def rays_of(path: Path) -> ScanRays:
    """Return the line integrals of all passes, pixels joined, and what its bins count behind materials."""
    rays = run(read_rays(path, MATERIALS))
    return replace(rays, measured=join_pixels(rays.measured, JOINED_PIXELS))


def grid_of(radius_mm: float) -> Grid:
    """Return voxels around the phantom, in the slices that all views see."""
    across = 2 * int(np.ceil((radius_mm + 0.5) / VOXEL_MM))
    along = 2 * round(Z_RANGE_MM[1] / VOXEL_MM)
    return Grid(shape=(along, across, across), voxel_mm=VOXEL_MM)


def by_image(rays: ScanRays, grid: Grid) -> Volume:
    """Reconstruct every bin, and decompose voxels by the basis that was measured behind cells."""
    measured = rays.measured
    values = run(fdk(measured.values, measured.angles_rad, measured.geometry, grid, window="hann"))
    basis = joined([source.basis for source in rays.sources if source.basis is not None])
    found = decompose(values, basis.attenuation_per_mm_per_g_cm3, covariance=bin_covariance(values))
    return Volume(values=found, channels=basis.materials, unit=MASS_CONCENTRATION, grid=grid)


def by_projection(rays: ScanRays, grid: Grid, prior: str | None = None) -> Volume:
    """Decompose every ray by the fitted response, and reconstruct each material, as `mpxct decompose SCAN` does."""
    recipe = Recipe(window="hann", voxel_mm=grid.voxel_mm, shape=grid.shape)
    return run(decompose_scan(rays, recipe, tier="projection", prior=prior, n_draws=0)).volume


TIERS: Mapping[str, Callable[[ScanRays, Grid], Volume]] = {
    "image": by_image,
    "projection": by_projection,
    "weighted": lambda rays, grid: by_projection(rays, grid, PRIOR),
}
"""Image domain by cells; rays by the response and cells; the same, reconstructed with all rays' errors and a prior."""


def coarsened(materials: Volume, factor: int) -> Volume:
    """Return means over `factor` voxels along each axis, and what does not fill a voxel left off."""
    n_z, n_y, n_x = (n // factor for n in materials.grid.shape)
    kept = materials.values[:, : n_z * factor, : n_y * factor, : n_x * factor]
    grid = replace(
        materials.grid,
        shape=(n_z, n_y, n_x),
        voxel_mm=materials.grid.voxel_mm * factor,
        centre_mm=materials.grid.centre_mm,
    )
    values = kept.reshape(-1, n_z, factor, n_y, factor, n_x, factor).mean(axis=(2, 4, 6))
    return replace(materials, values=values, grid=grid)


def vials_of(inserts: Sequence[Insert]) -> list[Vial]:
    """Return the vials as their maker states them."""
    return [
        Vial(
            material=insert.material,
            concentration_mg_ml=insert.concentration_mg_ml,
            x_mm=insert.x_mm,
            y_mm=insert.y_mm,
            radius_mm=insert.radius_mm,
        )
        for insert in inserts
    ]


def figures_of(materials: Volume, inserts: Sequence[Insert]) -> dict[str, Any]:
    """Compare with what the maker states."""
    statistics = vial_statistics(materials, vials_of(inserts), z_range_mm=Z_RANGE_MM)
    agents = [agent for agent in AGENTS if any(s.vial.material == agent for s in statistics)]
    blank = next(s for s in statistics if s.vial.material == "water")
    identified = identification(materials, inserts, agents)
    found: dict[str, Any] = {}
    for agent in agents:
        line = regression(statistics, agent)
        without = [s.mean_mg_ml(agent) for s in statistics if s.vial.material != agent]
        found[agent] = {
            "r2": line.r2,
            "slope": line.slope,
            "offset_mg_ml": line.offset_mg_ml,
            "cross_talk_rmse_mg_ml": float(np.sqrt(np.mean(np.square(without)))),
            "sd_mg_ml": blank.sd_mg_ml(agent),
            "limit_cnr_5_mg_ml": 5 * blank.sd_mg_ml(agent) / line.slope,
            "limit_3_sigma_mg_ml": 3 * blank.sd_mg_ml(agent) / line.slope,
            **identified[agent],
        }
    agent_vials = [s for s in statistics if s.vial.material in (*agents, "water")]
    wrong = [s.mean_mg_ml(agent) for s in agent_vials for agent in agents if s.vial.material != agent]
    return {
        "agents": found,
        "cross_talk_rmse_mg_ml": float(np.sqrt(np.mean(np.square(wrong)))),
        "vials": [
            {
                "holds": f"{s.vial.material} {s.vial.concentration_mg_ml:g}",
                **{name: round(s.mean_mg_ml(name), 3) for name in s.materials},
            }
            for s in statistics
        ],
    }


def identification(materials: Volume, inserts: Sequence[Insert], agents: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return sensitivity and specificity of each agent at 2 mg/mL, by voxels.

    A voxel shows the agent that it reads most of, if that is more than half of 2 mg/mL. Voxels that hold an agent are
    those of its vials of 2 mg/mL; those that do not are of every vial with another content.
    """
    shown: list[tuple[Vial, NDArray[np.intp]]] = []
    names = [materials.channels.index(agent) for agent in agents]
    for vial in vials_of(inserts):
        inside = cylinder_mask(materials.grid, vial, z_range_mm=Z_RANGE_MM)
        read = MG_ML_PER_G_CM3 * materials.values[names][:, inside]
        shown.append((vial, np.where(read.max(axis=0) > SHOWN_MG_ML / 2, read.argmax(axis=0), -1)))
    found = {}
    for place, agent in enumerate(agents):
        held = [s == place for vial, s in shown if (vial.material, vial.concentration_mg_ml) == (agent, SHOWN_MG_ML)]
        others = [s != place for vial, s in shown if vial.material != agent]
        found[agent] = {
            "sensitivity": float(np.concatenate(held).mean()) if held else float("nan"),
            "specificity": float(np.concatenate(others).mean()),
        }
    return found


def add_matched(volumes: Mapping[str, Volume], inserts: Sequence[Insert], found: dict[str, Any]) -> None:
    """Quote limits and identification again, of all ways' maps blurred to the least sharp of any.

    Where a prior keeps edges, rims are sharper than voxels can tell; such maps are blurred as if they were perfect.
    """
    mapped = tuple(vial for vial in vials_of(inserts) if vial.material in MATERIALS)
    described = Phantom(vials=mapped, z_range_mm=Z_RANGE_MM)
    sharpness = {way: mtf50_of(volume, described) for way, volume in volumes.items()}
    mtf50_per_mm = min(known for known in sharpness.values() if np.isfinite(known))
    found["matched"] = {"mtf50_per_mm": mtf50_per_mm, "mtf50_as_it_is_per_mm": sharpness}
    for way, volume in volumes.items():
        figures = at_sharpness(volume, described, mtf50_per_mm, is_perfect=not np.isfinite(sharpness[way]))
        found["matched"][way] = {
            agent: {
                "limit_cnr_5_mg_ml": limits.cnr_mg_ml,
                "limit_3_sigma_mg_ml": limits.iupac_mg_ml,
                "sensitivity": next(
                    share
                    for vial, share in zip(figures.vials, figures.identified_share, strict=True)
                    if (vial.vial.material, vial.vial.concentration_mg_ml) == (agent, SHOWN_MG_ML)
                ),
            }
            for agent, limits in figures.limits.items()
            if agent in AGENTS
        }


def mtf50_of(volume: Volume, described: Phantom) -> float:
    """Return the MTF50 of the least sharp map; NaN where all are sharper than voxels can tell."""
    try:
        return common_mtf50_per_mm([volume], described)
    except WrongUsage:
        return float("nan")


def at_sharpness(volume: Volume, described: Phantom, mtf50_per_mm: float, *, is_perfect: bool) -> Figures:
    """Return what maps read that are brought to this MTF50."""
    if not is_perfect:
        matched = run(assess(volume, described, mtf50_per_mm=mtf50_per_mm)).matched
        assert matched is not None
        return matched
    blur_mm = np.sqrt(np.log(2) / 2) / (np.pi * mtf50_per_mm)
    values = np.stack([blurred(map_, blur_mm, volume.grid.voxel_mm) for map_ in volume.values])
    return figures_of_maps(replace(volume, values=values), described, {})


def dose_of(plan: Plan) -> dict[str, float]:
    """Return the air kerma at the axis, of all views and passes at one place of the camera, and how long it takes."""
    scan = plan.scan
    assert isinstance(scan, ScanPlan)
    exposure_s = plan.detector.exposure_s * plan.detector.accumulate
    n_views = scan.n_views * len(passes_kev(plan))
    energies_kev = np.arange(8.5, plan.source.kvp)
    spectrum = tube_spectrum(
        plan.source.kvp, energies_kev, {"aluminium": 3.8}, distance_mm=plan.geometry.source_to_object_mm
    )
    mas = plan.source.current_ma * exposure_s * n_views
    n_places = len(scan.shifts_mm)
    return {
        "air_kerma_mgy": air_kerma_mgy(spectrum * mas, energies_kev) * n_places,
        "mas": mas * n_places,
        "beam_h": exposure_s * n_views * n_places / 3600,
    }


def table(name: str, figures: dict[str, Any]) -> str:
    """Return one way's figures for a person."""
    lines = [f"{name}: cross-talk {figures['cross_talk_rmse_mg_ml']:.3f} mg/mL"]
    for agent, f in figures["agents"].items():
        lines.append(
            f"  {agent:<12} R2 {f['r2']:.4f}  slope {f['slope']:.3f}  offset {f['offset_mg_ml']:+.3f}  cross-talk "
            f"{f['cross_talk_rmse_mg_ml']:.3f}  limit at CNR 5 {f['limit_cnr_5_mg_ml']:.2f}, at 3 sigma "
            f"{f['limit_3_sigma_mg_ml']:.2f} mg/mL  sensitivity {f['sensitivity']:.3f}  specificity "
            f"{f['specificity']:.3f}; in voxels of {COARSE * VOXEL_MM:g} mm {f['coarse']['limit_cnr_5_mg_ml']:.2f}, "
            f"{f['coarse']['limit_3_sigma_mg_ml']:.2f}, {f['coarse']['sensitivity']:.3f}, "
            f"{f['coarse']['specificity']:.3f}"
        )
    for vial in figures["vials"]:
        cells = "  ".join(f"{key} {value:9.2f}" for key, value in vial.items() if key != "holds")
        lines.append(f"    {vial['holds']:<22} {cells}")
    return "\n".join(lines)


def measure(mode: str, sample: str, size: Size, folder: Path, tiers: Sequence[str] = tuple(TIERS)) -> dict[str, Any]:
    """Walk the whole way once, with what is in the folder already."""
    plan = plan_of(mode, sample, size)
    seconds = {}
    began = time.monotonic()
    calibration_path, scan_path = folder / f"{mode}.h5", folder / f"{mode}-{sample}.h5"
    if not calibration_path.exists():
        store.save(calibrated(plan), calibration_path)
    calibration = store.load(calibration_path)
    seconds["calibrate"] = time.monotonic() - began
    began = time.monotonic()
    if not scan_path.exists():
        scanned(plan, calibration, scan_path)
    seconds["acquire"] = time.monotonic() - began
    phantom = PHANTOMS[sample]()
    grid = grid_of(phantom.solids[0].half_mm[0])
    rays = rays_of(scan_path)
    found: dict[str, Any] = {"seconds": seconds, "dose": dose_of(plan), "voxel_mm": VOXEL_MM}
    volumes = {}
    for tier in tiers:
        began = time.monotonic()
        volumes[tier] = volume = TIERS[tier](rays, grid)
        seconds[tier] = time.monotonic() - began
        found[tier] = figures_of(volume, phantom.inserts)
        coarse = figures_of(coarsened(volume, COARSE), phantom.inserts)
        for agent, figures in found[tier]["agents"].items():
            names = ("limit_cnr_5_mg_ml", "limit_3_sigma_mg_ml", "sensitivity", "specificity")
            figures["coarse"] = {name: coarse["agents"][agent][name] for name in names}
    if volumes:
        add_matched(volumes, phantom.inserts, found)
    return found


def main() -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="end within 45 s on 2 cores")
    parser.add_argument("--folder", type=Path, help="keep calibrations and scans here, and take those that are there")
    parser.add_argument("--phantom", choices=tuple(PHANTOMS), default="mars-multi")
    parser.add_argument("--mode", choices=("colour-csm", "colour-spm", "both"), default="both")
    parser.add_argument("--tiers", default=",".join(TIERS), help="of these; all unless told")
    options = parser.parse_args()
    modes = ("colour-csm", "colour-spm") if options.mode == "both" else (options.mode,)
    size, tiers = Size(), options.tiers.split(",")
    if options.quick:
        size, modes, tiers = QUICK, modes[:1], tiers[:1]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = {mode: measure(mode, options.phantom, size, folder, tiers) for mode in modes}
    if options.json:
        print(json.dumps(found))
        return
    for mode, each in found.items():
        print(f"{mode}: { ({key: round(value, 3) for key, value in each['dose'].items()}) }, voxels of {VOXEL_MM} mm")
        print(f"{mode}: seconds { ({key: round(value, 1) for key, value in each['seconds'].items()}) }")
        for tier in tiers:
            print(table(f"{mode}, {tier}", each[tier]))
        print(f"{mode}, all at one sharpness: {json.dumps(each['matched'], indent=2)}")


if __name__ == "__main__":
    main()
