"""From the counts of a scan to its materials: both tiers find what counts were made of, and the stated errors hold."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from acquisition.plan import Cell
from calibration.attenuation import material
from calibration.geometry import Geometry
from calibration.material_basis import MaterialBasis
from firmware_iface.errors import WrongUsage
from reconstruction.projections import LineIntegrals
from reconstruction.recipe import Recipe
from reconstruction.scan_materials import A_TABLE, POLYNOMIAL, decompose_scan
from reconstruction.scan_rays import ScanRays
from reconstruction.spectral.error_maps import drawn_counts
from reconstruction.spectral.model import SpectralModel
from reconstruction.volume import Provenance
from tests.spectral_models import made_up_model

GEOMETRY = Geometry(source_to_detector_mm=300.0, source_to_object_mm=200.0, pitch_mm=0.75, rows=9, cols=64)
ANGLES = np.arange(180) * 2 * np.pi / 180
OPEN_COUNTS = 2e4
# (centre x, y, radius in mm), and g/cm3 of each material inside: water everywhere, one agent in each insert.
Cylinders = tuple[tuple[tuple[float, float, float], tuple[float, ...]], ...]
CYLINDERS: Cylinders = (
    ((0.0, 0.0, 12.0), (1.0, 0.0, 0.0)),
    ((5.0, 0.0, 3.0), (0.0, 0.01, 0.0)),
    ((-5.0, 2.0, 3.0), (0.0, 0.0, 0.01)),
)


def finished(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def chords_mm(
    x0: float, y0: float, radius_mm: float, geometry: Geometry = GEOMETRY, angles: np.ndarray = ANGLES
) -> np.ndarray:
    """Exact chords through an upright cylinder: (n_views, rows, cols)."""
    views = geometry.views(angles)
    cols = np.arange(geometry.cols) - (geometry.cols - 1) / 2
    rows = np.arange(geometry.rows) - (geometry.rows - 1) / 2
    pixel = (
        views.detector_mm[:, None, None]
        + cols[:, None] * views.u_mm[:, None, None]
        + rows[:, None, None] * views.v_mm[:, None, None]
    )
    ray = pixel - views.source_mm[:, None, None]
    length = np.linalg.norm(ray, axis=-1)
    flat = np.linalg.norm(ray[..., :2], axis=-1)
    aside = (x0 - views.source_mm[:, None, None, 0]) * ray[..., 1] - (y0 - views.source_mm[:, None, None, 1]) * ray[
        ..., 0
    ]
    return 2 * np.sqrt(np.maximum(radius_mm**2 - (aside / flat) ** 2, 0)) * length / flat


def scanned(
    model: SpectralModel,
    *,
    seed: int | None,
    cylinders: Cylinders = CYLINDERS,
    geometry: Geometry = GEOMETRY,
    angles: np.ndarray = ANGLES,
    **of_source: object,
) -> ScanRays:
    paths = sum(
        chords_mm(*place, geometry, angles) * np.array(amounts[: len(model.materials)])[:, None, None, None]
        for place, amounts in cylinders
    )
    opened = np.full(len(model.bins), OPEN_COUNTS)
    counts = opened[:, None, None, None] * model.transmission(np.asarray(paths))
    if seed is not None:
        counts = drawn_counts(model, np.asarray(paths), opened, np.random.default_rng(seed))
    values = -np.log(np.maximum(counts, 0.5) / OPEN_COUNTS).astype(np.float32)
    measured = LineIntegrals(
        values=values,
        is_estimated=np.zeros(values.shape, np.bool_),
        angles_rad=angles,
        lifts_mm=np.zeros(len(angles)),
        geometry=geometry,
        open_counts=opened,
        n_tiles=1,
    )
    told: dict[str, object] = {"words": (), "thresholds_kev": (), "basis": None} | of_source
    source = SimpleNamespace(provenance=lambda steps, _="": Provenance(steps=steps), **told)
    return ScanRays(measured=measured, model=model, sources=(cast("Any", source),))


def inside(grid_axes: tuple[np.ndarray, ...], place: tuple[float, float, float], share: float = 0.7) -> np.ndarray:
    _, y, x = grid_axes
    return np.hypot(y[:, None] - place[1], x - place[0]) < share * place[2]


@pytest.mark.parametrize(("tier", "prior"), [("projection", None), ("projection", "tnv"), ("onestep", "huber")])
def test_noisy_counts_become_the_concentrations_they_were_made_of(tier, prior):
    model = made_up_model(("water", "iodine", "gadolinium"), (20, 33, 50, 62))
    found = finished(decompose_scan(scanned(model, seed=1), Recipe(), tier=tier, prior=prior, n_draws=0))
    assert found.chi_square_ratio == pytest.approx(1, abs=0.15)
    assert (found.log is None) == (tier == "projection" and prior is None)
    axes = found.volume.grid.axes_mm()
    middle = found.volume.values[:, found.volume.grid.shape[0] // 2]
    for k, (place, amounts) in enumerate(CYLINDERS[1:], 1):
        mean = middle[:, inside(axes, place)].mean(axis=1)
        assert mean[k] == pytest.approx(amounts[k], rel=0.12)
        assert abs(mean[3 - k]) < 0.0015
        assert mean[0] == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("fit", [A_TABLE, POLYNOMIAL])
def test_polynomials_of_signals_stand_in_for_the_likelihood(fit):
    model = made_up_model(("water", "iodine", "gadolinium"), (20, 33, 50, 62))
    rays = scanned(model, seed=None)
    found = finished(decompose_scan(rays, Recipe(), fit=fit, n_draws=0))
    likely = finished(decompose_scan(rays, Recipe(), n_draws=0))
    middle, other = (each.volume.values[:, each.volume.grid.shape[0] // 2] for each in (found, likely))
    for k, (place, amounts) in enumerate(CYLINDERS[1:], 1):
        region = inside(found.volume.grid.axes_mm(), place)
        assert middle[k, region].mean() == pytest.approx(amounts[k], rel=0.03)
        assert middle[:, region].mean(axis=1) == pytest.approx(other[:, region].mean(axis=1), rel=0.03, abs=3e-4)
    assert any("signals" in step or "A-table" in step for step in found.volume.provenance.steps)
    with pytest.raises(WrongUsage, match="allowed: likelihood, a-table, polynomial"):
        decompose_scan(rays, Recipe(), fit="spline").send(None)


def test_the_prior_of_rays_takes_nothing_off_the_agents():
    model = made_up_model(("water", "iodine", "gadolinium"), (20, 33, 50, 62))
    volume = finished(decompose_scan(scanned(model, seed=None), Recipe())).volume
    middle = volume.values[:, volume.grid.shape[0] // 2]
    for k, (place, amounts) in enumerate(CYLINDERS[1:], 1):
        mean = middle[:, inside(volume.grid.axes_mm(), place)].mean(axis=1)
        assert mean[k] == pytest.approx(amounts[k], rel=0.012)
        assert mean[0] == pytest.approx(1, rel=0.012)


def test_stated_errors_are_those_that_repeated_scans_show():
    model = made_up_model(("water", "iodine", "gadolinium"), (20, 33, 50, 62))
    runs = [
        finished(decompose_scan(scanned(model, seed=seed), Recipe(), n_draws=0 if seed else 2)) for seed in range(6)
    ]
    middle = np.stack([run.volume.values[:, 2] for run in runs])
    sigma = runs[0].sigma
    assert sigma is not None
    core = inside(sigma.grid.axes_mm(), (0.0, 0.0, 12.0), 0.6)
    seen = np.sqrt(middle.var(axis=0, ddof=1)[:, core].mean(axis=1))
    told = np.sqrt((sigma.values[:, 2][:, core] ** 2).mean(axis=1))
    np.testing.assert_allclose(told / seen, 1, atol=0.1)


@pytest.mark.parametrize(("tier", "prior"), [("projection", "huber"), ("onestep", "tv")])
def test_stated_errors_hold_under_a_prior(tier, prior):
    """The noise that is told of one scan is what repeated scans show, though iterations and prior are not linear."""
    model = made_up_model(("water", "iodine"), (20, 33, 50))
    small = {"geometry": replace(GEOMETRY, pitch_mm=1.2, rows=2, cols=40), "angles": ANGLES[::3]}
    options: dict[str, Any] = {"tier": tier, "prior": prior, "n_iterations": 8}
    draws = [3, *[0] * 5]
    rays = [scanned(model, seed=seed, **small) for seed in range(len(draws))]
    runs = [
        finished(decompose_scan(of_run, Recipe(), n_draws=n, **options)) for of_run, n in zip(rays, draws, strict=True)
    ]
    sigma = runs[0].sigma
    assert sigma is not None
    seen = np.stack([run.volume.values for run in runs]).var(axis=0, ddof=1)
    core = inside(sigma.grid.axes_mm(), (0.0, 0.0, 12.0), 0.6)
    measured, told = (np.sqrt(variance[..., core].mean(axis=(1, 2))) for variance in (seen, sigma.values**2))
    np.testing.assert_allclose(told / measured, 1, atol=0.2)
    assert all(run.sigma is None for run in runs[1:])


def test_errors_of_a_preview_are_larger_by_what_neighbours_share():
    """Sums of pixels that count the same photons are noisier than those of pixels that are independent."""
    model = made_up_model(("water",), (20, 33, 50))
    root = np.sqrt(model.weights)
    shared = np.array([0.08, 0.04])[:, None, None, None] * root[:, None] * root
    small, recipe = {"geometry": replace(GEOMETRY, rows=4), "angles": ANGLES[::2]}, Recipe(is_preview=True)
    scans = [scanned(replace(model, neighbour_weights=shared), seed=seed, **small) for seed in range(10)]
    runs = [finished(decompose_scan(rays, recipe, n_draws=0 if k else 10)) for k, rays in enumerate(scans)]
    unaware = finished(decompose_scan(replace(scans[0], model=model), recipe, n_draws=10))
    assert runs[0].sigma is not None
    assert unaware.sigma is not None
    core = inside(runs[0].volume.grid.axes_mm(), (0.0, 0.0, 12.0), 0.7)
    seen = np.stack([run.volume.values for run in runs]).var(axis=0, ddof=1)[..., core].mean()
    told, too_little = (np.sqrt((run.sigma.values[..., core] ** 2).mean() / seen) for run in (runs[0], unaware))
    assert told == pytest.approx(1, abs=0.1)
    assert too_little < 0.85
    assert any("charge sharing" in step for step in runs[0].volume.provenance.steps)
    assert not any("charge sharing" in step for step in unaware.volume.provenance.steps)


def test_passes_add_their_bins():
    model = made_up_model(("water", "iodine", "gadolinium"), (20, 33, 50, 62))
    joined = SpectralModel.joined([model, model])
    paths = np.random.default_rng(0).random((3, 5))
    assert joined.weights.shape == (2 * len(model.bins), model.weights.shape[1])
    np.testing.assert_allclose(joined.transmission(paths), np.tile(model.transmission(paths), (2, 1)), rtol=1e-12)


def test_cells_make_good_what_the_response_misses():
    materials, thresholds_kev = ("water", "iodine", "gadolinium"), (20.0, 33.0, 50.0, 62.0)
    truth, fitted = made_up_model(materials, (20, 33, 50, 62)), made_up_model(materials, (21.2, 34.2, 51.2, 63.2))
    cells = [Cell(name="a", material="water", thickness_mm=20.0)]
    cells += [Cell(name=name, material=name, concentration_mg_ml=4.0, thickness_mm=20.0) for name in materials[1:]]
    share = [1 - 0.004 / material(name).density_g_cm3 for name in materials[1:]]
    depth = -np.log(truth.transmission(np.array([[20.0, *(20 * s for s in share)], [0, 0.08, 0], [0, 0, 0.08]])))
    columns = [depth[:, 0] / 20, *((depth[:, k + 1] - s * depth[:, 0]) / 0.08 for k, s in enumerate(share))]
    basis = MaterialBasis(
        materials=materials, attenuation_per_mm_per_g_cm3=np.stack(columns, axis=1), thresholds_kev=thresholds_kev
    )
    plan = SimpleNamespace(calibration=SimpleNamespace(cells=cells))
    errors = {}
    for known in (None, basis):
        rays = scanned(truth, seed=None, basis=known, plan=plan, thresholds_kev=thresholds_kev)
        found = finished(decompose_scan(replace(rays, model=fitted), Recipe()))
        middle = found.volume.values[:, found.volume.grid.shape[0] // 2]
        core = inside(found.volume.grid.axes_mm(), CYLINDERS[1][0])
        errors[known is not None] = np.abs(middle[1:, core].mean(axis=1) - [0.01, 0]).max()
        assert ("cells" in found.volume.provenance.steps[-1]) == (known is not None)
    assert errors[False] > 3e-4
    assert errors[True] < errors[False] / 2, errors


def test_an_unknown_tier_is_refused():
    with pytest.raises(WrongUsage, match="allowed: image, projection, onestep"):
        finished(
            decompose_scan(
                scanned(made_up_model(("water", "iodine", "gadolinium"), (20, 33, 50, 62)), seed=None),
                Recipe(),
                tier="magic",
            )
        )
