"""Corrections of a scan where its counts are fitted: they go into what is expected, and leave the counts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from firmware_iface.errors import WrongUsage
from reconstruction.artefacts import rings, scatter
from reconstruction.pipeline import grid_of
from reconstruction.recipe import Recipe
from reconstruction.scan_expectation import expected
from reconstruction.scan_materials import decompose_scan
from reconstruction.scan_rays import ScanRays
from tests import test_scan_materials as bench
from tests.spectral_models import made_up_model
from tests.test_scan_materials import finished, inside

GEOMETRY = replace(bench.GEOMETRY, rows=3, cols=96, pitch_mm=0.5)
ANGLES = np.arange(90) * 2 * np.pi / 90
OPEN_COUNTS = bench.OPEN_COUNTS
CYLINDERS = (
    ((2.0, -1.0, 9.0), (1.0, 0.0, 0.0)),
    ((6.0, -1.0, 2.5), (0.0, 0.01, 0.0)),
    ((-2.0, 1.0, 2.5), (0.0, 0.0, 0.01)),
)
MODEL = made_up_model(("water", "iodine", "gadolinium"), (20, 33, 50, 62))
KERNELS = [
    scatter.Kernel(
        amplitude_per_mm2=share, transmission_slope=0.5, attenuation_slope=1.0, narrow_mm=6.0, wide_mm=15.0,
        wide_share=0.3,
    )
    for share in (0.02, 0.017, 0.013, 0.012)
]  # fmt: skip


@pytest.fixture(scope="module")
def clean() -> ScanRays:
    """An object beside the axis, where rings and what is round are not one."""
    return bench.scanned(MODEL, seed=None, cylinders=CYLINDERS, geometry=GEOMETRY, angles=ANGLES)


def counted(clean: ScanRays, expectation: np.ndarray, *, is_estimated: np.ndarray | None = None) -> ScanRays:
    """Counts of this expectation, as a scan has them."""
    counts = np.random.default_rng(8).poisson(expectation)
    values = -np.log(np.maximum(counts, 0.5) / OPEN_COUNTS).astype(np.float32)
    is_unknown = counts < 1
    if is_estimated is not None:
        is_unknown = is_unknown | is_estimated
    return replace(clean, measured=replace(clean.measured, values=values, is_estimated=is_unknown))


def expectation(clean: ScanRays) -> np.ndarray:
    return OPEN_COUNTS * np.exp(-clean.measured.values.astype(float))


def agents_mg_ml(rays: ScanRays, recipe: Recipe, **options: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Middle slice of iodine and gadolinium, inside the body."""
    volume = finished(decompose_scan(rays, recipe, **options)).volume
    middle = 1e3 * volume.values[1:, volume.grid.shape[0] // 2]
    return middle[:, inside(volume.grid.axes_mm(), CYLINDERS[0][0], 0.9)], volume.provenance.steps


def apart(found: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - other) ** 2)))


def test_without_anything_to_correct_nothing_changes(clean):
    rays = counted(clean, expectation(clean))
    seen = finished(expected(rays.measured, grid_of(rays.measured, Recipe()), Recipe()))
    np.testing.assert_array_equal(seen.counts, np.float32(OPEN_COUNTS) * np.exp(-rays.measured.values))
    assert seen.open_counts is rays.measured.open_counts
    assert not seen.background.any()
    assert seen.is_known.all()
    plain, _ = agents_mg_ml(rays, Recipe())
    looked, steps = agents_mg_ml(rays, Recipe(rings="auto", metal_per_mm=5.0))
    np.testing.assert_array_equal(looked, plain)
    assert any("no rings worth suppressing" in step for step in steps)
    assert any("no metal found" in step for step in steps)


def test_stripes_become_gains_and_the_counts_stay(clean):
    shape = (len(MODEL.bins), 1, GEOMETRY.rows, GEOMETRY.cols)
    log_gain = 0.03 * np.random.default_rng(3).standard_normal(shape)
    rays = counted(clean, expectation(clean) * np.exp(log_gain))
    before = rays.measured.values.copy()
    seen = finished(expected(rays.measured, grid_of(rays.measured, Recipe()), Recipe(rings="sorting")))
    np.testing.assert_array_equal(rays.measured.values, before)
    share = seen.is_known.mean()
    assert share > 0.98
    is_known = seen.is_known[:, :1]
    np.testing.assert_array_equal(
        seen.counts[seen.is_known], (np.float32(OPEN_COUNTS) * np.exp(-before))[seen.is_known]
    )
    left = (np.log(seen.open_counts / OPEN_COUNTS) - log_gain)[is_known]
    assert left.std() < 0.5 * log_gain.std()
    truth, _ = agents_mg_ml(clean, Recipe())
    rays = replace(clean, measured=replace(clean.measured, values=clean.measured.values - log_gain.astype(np.float32)))
    plain, _ = agents_mg_ml(rays, Recipe())
    mended, steps = agents_mg_ml(rays, Recipe(rings="sorting"))
    as_lines, _ = agents_mg_ml(_suppressed(rays, "sorting"), Recipe())
    assert apart(mended, truth) < 0.6 * apart(plain, truth)
    assert apart(mended, truth) < 1.05 * apart(as_lines, truth)  # as much as the method takes off line integrals
    assert any("as gains of pixels in each bin" in step for step in steps)


def _suppressed(rays: ScanRays, method: str) -> ScanRays:
    values, _ = rings.suppress(rays.measured.values.copy(), method=method)
    return replace(rays, measured=replace(rays.measured, values=values))


def test_stuck_pixels_are_no_gain(clean):
    stuck = expectation(clean)
    stuck[1, :, 1, 40] = 0.5 * OPEN_COUNTS
    rays = counted(clean, stuck)
    seen = finished(expected(rays.measured, grid_of(rays.measured, Recipe()), Recipe(rings="sorting")))
    assert not seen.is_known[1, :, 1, 40].any()
    assert seen.is_known.mean() > 0.99
    np.testing.assert_allclose(seen.counts[1, :, 1, 40], expectation(clean)[1, :, 1, 40], rtol=0.15)


def kernel_file(folder, kernels) -> Any:
    lines = []
    for kernel in kernels:
        lines += ["[[bin]]", *(f"{name} = {getattr(kernel, name)}" for name in scatter.Kernel.__slots__)]
    (folder / "kernels.toml").write_text("\n".join(lines))
    return folder / "kernels.toml"


@pytest.mark.parametrize("tier", ["projection", "onestep"])
def test_scatter_is_expected_beside_the_primary(clean, tmp_path, tier):
    primary = expectation(clean)
    beam = np.full(primary.shape, OPEN_COUNTS, np.float32)
    added = np.stack(
        [
            scatter.estimate(p, o, kernel, pitch_mm=GEOMETRY.pitch_mm)
            for p, o, kernel in zip(primary, beam, KERNELS, strict=True)
        ]
    )
    assert 0.05 < added.sum() / primary.sum() < 0.3
    options = {"tier": tier, "n_iterations": 3} if tier == "onestep" else {"tier": tier}
    truth, _ = agents_mg_ml(counted(clean, primary), Recipe(), **options)
    rays = counted(clean, primary + added)
    plain, _ = agents_mg_ml(rays, Recipe(), **options)
    mended, steps = agents_mg_ml(rays, Recipe(scatter=kernel_file(tmp_path, KERNELS)), **options)
    bias = np.abs((plain - truth).mean(axis=1)), np.abs((mended - truth).mean(axis=1))
    assert (bias[1] < 0.1 * bias[0] + 0.02).all(), bias
    assert any("of the counts expected, by kernels" in step for step in steps)


def test_scatter_of_two_passes_has_a_kernel_for_every_bin(clean, tmp_path):
    measured = clean.measured
    both = replace(
        measured,
        values=np.tile(measured.values, (2, 1, 1, 1)),
        is_estimated=np.tile(measured.is_estimated, (2, 1, 1, 1)),
        open_counts=np.tile(measured.open_counts, 2),
    )
    grid = grid_of(both, Recipe())
    found = [
        finished(expected(both, grid, Recipe(scatter=kernel_file(tmp_path, kernels)), n_passes=2)).background
        for kernels in (KERNELS, KERNELS * 2)
    ]
    np.testing.assert_array_equal(*found)
    second = [replace(kernel, amplitude_per_mm2=0.0) for kernel in KERNELS]
    found = finished(expected(both, grid, Recipe(scatter=kernel_file(tmp_path, KERNELS + second)), n_passes=2))
    assert found.background[:4].any()
    assert not found.background[4:].any()
    with pytest.raises(WrongUsage, match="3 kernels for 8 bins"):
        finished(expected(both, grid, Recipe(scatter=kernel_file(tmp_path, KERNELS[:3])), n_passes=2))


def test_rays_through_metal_count_for_nothing(clean):
    rod = bench.chords_mm(2.0, -5.0, 0.6, GEOMETRY, ANGLES)
    rays = counted(clean, expectation(clean) * np.exp(-2.5 * rod))
    recipe = Recipe(metal_per_mm=0.6)
    seen = finished(expected(rays.measured, grid_of(rays.measured, recipe), recipe))
    assert not seen.is_known[:, rod > 0.6].any()
    assert seen.is_known[:, rod == 0].mean() > 0.9
    truth, _ = agents_mg_ml(counted(clean, expectation(clean)), Recipe())
    plain, _ = agents_mg_ml(rays, Recipe())
    mended, steps = agents_mg_ml(rays, recipe)
    assert apart(mended, truth) < 0.3 * apart(plain, truth)
    assert any("voxels of metal" in step for step in steps)


def test_nothing_counted_is_a_count(clean):
    dim = expectation(clean) / OPEN_COUNTS * 3
    rays = counted(clean, dim)
    measured = replace(
        rays.measured, open_counts=np.full(4, 3.0), values=rays.measured.values + np.log(3 / OPEN_COUNTS)
    )
    measured.values[:, :, 1, 30] = 0.1
    measured.is_estimated[:, :, 1, 30] = True
    seen = finished(expected(replace(measured, values=measured.values.astype(np.float32)), None, Recipe()))  # type: ignore[arg-type]
    assert seen.counts.sum() == pytest.approx(dim.sum(), rel=0.02)
    assert (seen.counts == 0).mean() == pytest.approx(np.exp(-dim).mean(), rel=0.1)
    assert not seen.is_known[:, :, 1, 30].any()
    assert np.delete(seen.is_known, 30, axis=3).all()


def test_rays_without_counts_make_nothing_infinite_and_a_scan_without_any_is_refused(clean):
    through = np.exp(-clean.measured.values.astype(float))
    rays = counted(clean, OPEN_COUNTS * through**25)
    assert rays.measured.is_estimated.mean() > 0.1
    volume = finished(decompose_scan(rays, Recipe())).volume
    assert np.isfinite(volume.values).all()
    assert "are none" in volume.provenance.steps[1]
    with pytest.raises(WrongUsage, match="no ray has counts in all bins"):
        finished(decompose_scan(counted(clean, 0 * through), Recipe()))


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        (Recipe(method="sirt"), "the method sirt makes volumes of bins"),
        (Recipe(weights="noise"), "the weights are 'noise'"),
        (Recipe(linearise=True), "step wedge"),
        (Recipe(metal_per_mm=1e-4), r"of the rays meet what attenuates more than 0\.0001 per mm"),
        (Recipe(bins=(1, 5)), "bin 5 is named; allowed: 1 to 4"),
        (Recipe(bins=(1, 2)), "3 materials cannot be told apart with 2 bins"),
    ],
)
def test_what_makes_no_sense_for_counts_is_refused(clean, recipe, match):
    with pytest.raises(WrongUsage, match=match):
        finished(decompose_scan(clean, recipe))


def test_chosen_bins_tell_the_same_where_there_is_no_noise(clean):
    found, steps = agents_mg_ml(clean, Recipe(bins=(1, 2, 4)))
    everything, _ = agents_mg_ml(clean, Recipe())
    assert apart(found, everything) < 0.1
    assert any("3 bins" in step for step in steps)
