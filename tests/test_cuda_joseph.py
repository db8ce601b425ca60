"""Joseph's pair on the GPU computes what the plain formula does, and its halves are each other's exact adjoint."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.geometry import Geometry
from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.kernels import joseph_gpu, joseph_plain
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid

SHAPE = (11, 13, 9)
HALF = 2.0**-11
"""Relative error of a number rounded to half precision."""


def circle(n_views, rows, cols, rng, **askew):
    geometry = Geometry(
        source_to_detector_mm=60,
        source_to_object_mm=rng.uniform(28, 50),
        pitch_mm=rng.uniform(0.6, 2.5),
        rows=rows,
        cols=cols,
        offset_u_mm=rng.normal(),
        offset_v_mm=rng.normal(),
        **askew,
    )
    return ScanGeometry.circular(geometry, rng.uniform(0, 7, n_views), lifts_mm=rng.normal(size=n_views))


def cone(n_views, rows, cols, rng):
    return circle(n_views, rows, cols, rng)


def tilted(n_views, rows, cols, rng):
    return circle(n_views, rows, cols, rng, roll_rad=0.1, tilt_u_rad=0.2, tilt_v_rad=-0.1)


def parallel(n_views, rows, cols, rng):
    return ScanGeometry.parallel(rng.uniform(0, 7, n_views), rows=rows, cols=cols, pitch_mm=rng.uniform(0.4, 2))


def any_way(n_views, rows, cols, rng, *, is_parallel):
    """Rays from everywhere, z among it, on slanting detectors with pixels that are no rectangles."""
    to_source = rng.normal(size=(n_views, 3))
    to_source /= np.linalg.norm(to_source, axis=1, keepdims=True)
    u = np.cross(to_source, rng.normal(size=(n_views, 3)))
    u *= 1.2 / np.linalg.norm(u, axis=1, keepdims=True)
    return ScanGeometry(
        source_mm=to_source * (1 if is_parallel else 30),
        detector_mm=rng.normal(size=(n_views, 3)) - 12 * to_source,
        u_mm=u,
        v_mm=rng.uniform(0.5, 1.7) * np.cross(to_source, u) + 0.1 * to_source + 0.2 * u,
        rows=rows,
        cols=cols,
        is_parallel=is_parallel,
    )


def any_cone(n_views, rows, cols, rng):
    return any_way(n_views, rows, cols, rng, is_parallel=False)


def any_parallel(n_views, rows, cols, rng):
    return any_way(n_views, rows, cols, rng, is_parallel=True)


def rays_of(projector):
    """As the kernels take them: source, first pixel and steps to the next, in voxels from the first one, z, y, x."""
    scan, grid = projector.scan, projector.grid
    first_voxel = np.array([axis[0] for axis in grid.axes_mm()][::-1])
    first_pixel = scan.detector_mm - (scan.cols - 1) / 2 * scan.u_mm - (scan.rows - 1) / 2 * scan.v_mm
    source = scan.source_mm if scan.is_parallel else scan.source_mm - first_voxel
    return np.stack([source, first_pixel - first_voxel, scan.u_mm, scan.v_mm], axis=1)[:, :, ::-1] / grid.voxel_mm


def by_formula(projector, x, y):
    """Both halves in float64."""
    scan, voxel_mm, rays = projector.scan, projector.grid.voxel_mm, rays_of(projector)
    ax, aty = np.zeros(projector.range_shape), np.zeros(projector.domain_shape)
    joseph_plain.forward(x.astype(float), ax, rays, scan.is_parallel, voxel_mm, 0, scan.n_views)
    joseph_plain.adjoint(aty, y.astype(float), rays, scan.is_parallel, voxel_mm)
    return ax, aty


def on_device(projector, x, y, *, is_half=False):
    """Both halves by the kernels, into arrays that hold something before."""
    rays, voxel_mm, is_parallel = rays_of(projector), projector.grid.voxel_mm, projector.scan.is_parallel
    ax = backend.to_device(np.full(projector.range_shape, np.nan, np.float32))
    aty = backend.to_device(np.ones(projector.domain_shape, np.float32))
    joseph_gpu.forward(backend.to_device(x), ax, rays, is_parallel, voxel_mm, is_half=is_half)
    joseph_gpu.adjoint(aty, backend.to_device(y), rays, is_parallel, voxel_mm, is_half=is_half)
    return backend.to_host(ax), backend.to_host(aty) - 1


def numbers(rng, projector):
    return (rng.normal(size=n).astype(np.float32) for n in (projector.domain_shape, projector.range_shape))


@pytest.mark.parametrize("scan_of", [cone, tilted, parallel, any_cone, any_parallel])
def test_it_computes_the_plain_formula_and_its_adjoint(device, scan_of):
    rng = np.random.default_rng(11)
    for n_channels in (1, 2, 3, 4, 5):
        n_views = joseph_gpu.VIEWS_PER_LAUNCH + 3 if n_channels == 2 else 3
        shape = tuple(int(n) for n in rng.integers(1, 14, 3))
        rows, cols = (int(n) for n in rng.integers(2, 16, 2))
        grid = Grid(shape=shape, voxel_mm=rng.uniform(0.5, 1.5), centre_mm=tuple(rng.normal(size=3)))
        projector = Projector(scan_of(n_views, rows, cols, rng), grid, n_channels=n_channels)
        x, y = numbers(rng, projector)
        ax, aty = on_device(projector, x, y)
        expected_ax, expected_aty = by_formula(projector, x, y)
        np.testing.assert_allclose(ax, expected_ax, atol=1e-5 * max(1, np.abs(expected_ax).max()))
        np.testing.assert_allclose(aty, expected_aty, atol=1e-5 * max(1, np.abs(expected_aty).max()))
        one, other = (ax.astype(float) * y).sum(), (x.astype(float) * aty).sum()
        assert abs(one - other) <= 1e-7 * max(1, np.linalg.norm(ax) * np.linalg.norm(y))


@pytest.mark.parametrize("scan_of", [cone, tilted])
def test_the_matrix_of_one_half_is_the_transpose_of_the_other(device, scan_of):
    """Element by element, from unit vectors: nothing can cancel."""
    rng = np.random.default_rng(3)
    projector = Projector(scan_of(3, 5, 6, rng), Grid(shape=(4, 5, 3), voxel_mm=1.1), n_channels=1)
    n_voxels, n_pixels = np.prod(projector.domain_shape), np.prod(projector.range_shape)
    scan, voxel_mm = projector.scan, projector.grid.voxel_mm
    columns, lines = np.zeros((n_pixels, n_voxels)), np.zeros((n_pixels, n_voxels))
    for k in range(n_voxels):
        x = backend.to_device(np.eye(1, n_voxels, k, dtype=np.float32).reshape(projector.domain_shape))
        ax = backend.to_device(np.zeros(projector.range_shape, np.float32))
        joseph_gpu.forward(x, ax, rays_of(projector), scan.is_parallel, voxel_mm)
        columns[:, k] = backend.to_host(ax).ravel()
    for k in range(n_pixels):
        y = backend.to_device(np.eye(1, n_pixels, k, dtype=np.float32).reshape(projector.range_shape))
        aty = backend.to_device(np.zeros(projector.domain_shape, np.float32))
        joseph_gpu.adjoint(aty, y, rays_of(projector), scan.is_parallel, voxel_mm)
        lines[k] = backend.to_host(aty).ravel()
    assert (columns > 0).mean() > 0.05
    np.testing.assert_allclose(lines, columns, atol=4e-7)


@pytest.mark.parametrize("scan_of", [cone, any_parallel])
@pytest.mark.parametrize("n_channels", [1, 2, 4])
def test_half_precision_errs_by_what_its_digits_say(device, scan_of, n_channels):
    rng = np.random.default_rng(5)
    projector = Projector(scan_of(4, 9, 8, rng), Grid(shape=SHAPE, voxel_mm=0.8), n_channels=n_channels)
    x, y = numbers(rng, projector)
    for factor in (1, 1e-9, 1e9):
        ax, aty = on_device(projector, (factor * x).astype(np.float32), y, is_half=True)
        expected_ax, expected_aty = by_formula(projector, x, y)
        sizes = by_formula(projector, np.abs(x), np.abs(y))
        assert (np.abs(ax / factor - expected_ax) <= 2 * HALF * sizes[0] + 1e-5 * sizes[0].max()).all()
        assert (np.abs(aty - expected_aty) <= 2 * HALF * sizes[1] + 1e-5 * sizes[1].max()).all()


def test_a_ray_through_voxel_centres_sums_them(device):
    """Along each axis in turn, from both ends; the sums are exact."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 8, (1, 3, 4, 5)).astype(np.float32)
    u, v = np.eye(3)[[1, 0, 0]], np.eye(3)[[2, 2, 1]]  # of rays along x, y and z, in x, y, z
    for is_turned in (1, -1):
        scan = ScanGeometry(
            source_mm=is_turned * np.eye(3),
            detector_mm=np.zeros((3, 3)),
            u_mm=u,
            v_mm=v,
            rows=5,
            cols=5,
            is_parallel=True,
        )
        # The detector's middle is on the middle of a voxel: half a voxel off the grid's along y, which has four.
        projector = Projector(scan, Grid(shape=(3, 4, 5), voxel_mm=1.0, centre_mm=(0, 0.5, 0)), use_gpu=True)
        seen = backend.to_host(projector.forward(backend.to_device(x)))[0]
        middle = np.zeros((3, 5, 5))
        middle[0, 1:4, 1:5] = x[0].sum(2)  # rows z, columns y from -1 to 2
        middle[1, 1:4, :] = x[0].sum(1)  # rows z, columns x
        middle[2, 1:5, :] = x[0].sum(0)  # rows y, columns x
        np.testing.assert_allclose(seen, middle, rtol=0, atol=1e-5)


def test_the_projector_masks_subsets_and_fills_what_it_is_given(device):
    rng = np.random.default_rng(2)
    scan, grid, mask = cone(6, 7, 8, rng), Grid(shape=SHAPE, voxel_mm=0.8), rng.random(SHAPE) < 0.6
    there = Projector(scan, grid, n_channels=2, mask=mask, use_gpu=True)
    x, y = numbers(rng, there)
    for views in (slice(0, 6), slice(1, 6, 2), np.array([4, 0])):
        subset = there.subset(views)
        seen, spread = by_formula(subset, x * mask, y[:, views])
        ax, aty = backend.to_device(np.full(subset.range_shape, 9, np.float32)), backend.to_device(0 * x + 9)
        assert subset.forward(backend.to_device(x), out=ax) is ax
        assert subset.adjoint(backend.to_device(y[:, views]), out=aty) is aty
        np.testing.assert_allclose(backend.to_host(ax), seen, atol=2e-5)
        np.testing.assert_allclose(backend.to_host(aty), spread * mask, atol=2e-5)


def test_the_adjoint_gives_the_same_bits_every_time(device):
    rng = np.random.default_rng(4)
    projector = Projector(cone(5, 9, 8, rng), Grid(shape=SHAPE, voxel_mm=0.8), n_channels=2, use_gpu=True)
    y = backend.to_device(rng.normal(size=projector.range_shape).astype(np.float32))
    one, other = (backend.to_host(projector.adjoint(y)) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_every_ray_belongs_to_one_axis(device):
    """At 45 degrees, where two components are equal to rounding: each ray is done once, whichever axis takes it."""
    scan = ScanGeometry.parallel(np.pi / 4 + np.pi / 2 * np.arange(4), rows=3, cols=9, pitch_mm=1.0)
    projector = Projector(scan, Grid(shape=(3, 9, 9), voxel_mm=1.0), use_gpu=True)
    seen = backend.to_host(projector.forward(backend.to_device(np.ones((1, 3, 9, 9), np.float32))))
    expected = 9 * np.sqrt(2) - 2 * np.abs(np.arange(9) - 4.0)  # the chord of a square along its diagonal
    np.testing.assert_allclose(seen[0, :, 1], np.tile(expected, (4, 1)), atol=0.8)


def test_doubles_and_a_grid_round_the_source_are_refused(device):
    rng = np.random.default_rng(1)
    scan = cone(2, 4, 4, rng)
    doubles = Projector(scan, Grid(shape=SHAPE, voxel_mm=0.8), dtype=np.float64, use_gpu=True)
    with pytest.raises(WrongUsage, match="float64; allowed: float32"):
        doubles.forward(backend.to_device(np.zeros(doubles.domain_shape)))
    wide = Projector(scan, Grid(shape=(4, 90, 90), voxel_mm=1.0), use_gpu=True)
    with pytest.raises(WrongUsage, match="reaches the source"):
        wide.forward(backend.to_device(np.zeros(wide.domain_shape, np.float32)))
