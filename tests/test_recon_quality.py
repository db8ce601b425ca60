"""Laws of the reconstruction: what resolution, noise and orders of convergence must be, whatever the code looks like.

# Ref: noise of filtered back-projection: Riederer, Pelc and Chesler 1978, Phys. Med. Biol. 23, 446; Kak and Slaney
#      1988, Principles of Computerized Tomographic Imaging, chapter 5.2. Linear interpolation between samples is a
#      triangle, whose transform is sinc^2.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.transform import iradon, radon

from calibration.geometry import Geometry
from reconstruction.fdk import fdk
from reconstruction.projector import Projector
from reconstruction.ramp import WINDOWS
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid
from tests.benchmarks.problems import line_integrals, shepp_logan, voxel_means

GEOMETRY = Geometry(source_to_detector_mm=150.0, source_to_object_mm=100.0, pitch_mm=0.3, rows=33, cols=63)
N_SLICES = 64
SAMPLING_MM = GEOMETRY.pitch_mm / GEOMETRY.magnification
"""Distance of the rays on the axis of rotation."""


ELLIPSOIDS = np.array(
    [
        [1.0, 4.0, 3.0, 3.5, 0.2, -0.1, 0.0, 20.0],
        [-0.6, 1.5, 1.0, 2.0, -1.1, 0.4, 0.1, -30.0],
        [0.5, 0.9, 1.2, 0.8, 1.7, -0.3, 0.0, 0.0],
    ]
)
"""Rows of solids as `tests.benchmarks.problems` has them."""


def run(work):
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def full_turn(n_views: int) -> NDArray[np.float64]:
    return np.arange(n_views) * 2 * np.pi / n_views


def solid(value: float, half_axes_mm, centre_mm, turn_deg: float = 0.0) -> NDArray[np.float64]:
    return np.array([value, *half_axes_mm, *centre_mm, turn_deg])


def rays_of(scan: ScanGeometry) -> tuple[NDArray, NDArray]:
    """A point of each ray and its direction: (n_views, rows, cols, 3)."""
    col = (np.arange(scan.cols) - (scan.cols - 1) / 2)[:, None]
    row = (np.arange(scan.rows) - (scan.rows - 1) / 2)[:, None, None]
    pixels = scan.detector_mm[:, None, None] + col * scan.u_mm[:, None, None] + row * scan.v_mm[:, None, None]
    source = scan.source_mm[:, None, None]
    along = np.broadcast_to(source, pixels.shape) if scan.is_parallel else pixels - source
    return pixels, along / np.linalg.norm(along, axis=-1, keepdims=True)


def blob_integrals(scan: ScanGeometry, centre_mm, sigma_mm: float) -> NDArray[np.float64]:
    """Exact integrals of a Gaussian blob of height 1/mm: (1, n_views, rows, cols)."""
    pixels, along = rays_of(scan)
    away = pixels - np.asarray(centre_mm)
    squared = (away**2).sum(-1) - (away * along).sum(-1) ** 2
    return np.sqrt(2 * np.pi) * sigma_mm * np.exp(-squared / 2 / sigma_mm**2)[None]


def blob(grid: Grid, centre_mm, sigma_mm: float) -> NDArray[np.float64]:
    """The blob at the voxels' centres: (1, z, y, x)."""
    z, y, x = grid.axes_mm()
    x0, y0, z0 = centre_mm
    squared = (z - z0)[:, None, None] ** 2 + (y - y0)[:, None] ** 2 + (x - x0) ** 2
    return np.exp(-squared / 2 / sigma_mm**2)[None]


def rms(values: NDArray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def orders(errors: list[float]) -> NDArray[np.float64]:
    """By which power of the step each halving of it lowers the error."""
    return np.log2(np.array(errors[:-1]) / errors[1:])


# The data that everything else is held against.


def test_every_view_holds_the_mass_of_the_phantom():
    scan, solids = ScanGeometry.parallel(full_turn(5), rows=151, cols=151, pitch_mm=0.45), shepp_logan(32.0)
    mass = float((solids[:, 0] * 4 / 3 * np.pi * solids[:, 1:4].prod(1)).sum())
    for of_a_view in line_integrals(scan, solids).sum((1, 2), dtype=np.float64):
        assert of_a_view * 0.45**2 == pytest.approx(mass, rel=1e-3)
    means = voxel_means(Grid(shape=(64, 64, 64), voxel_mm=1.0), solids)
    assert means.sum(dtype=np.float64) == pytest.approx(mass, rel=1e-3)
    assert means.min() == pytest.approx(0, abs=1e-6)
    assert means.max() <= 1 + 1e-6


def test_chords_through_a_ball_are_those_of_a_circle():
    scan = ScanGeometry.circular(replace(GEOMETRY, offset_u_mm=1.0, roll_rad=0.1), [0.3, 2.0])
    pixels, along = rays_of(scan)
    away = pixels - np.array([1.0, -0.5, 0.7])
    squared = (away**2).sum(-1) - (away * along).sum(-1) ** 2
    expected = 0.3 * 2 * np.sqrt(np.maximum(1.5**2 - squared, 0))
    values = line_integrals(scan, solid(0.3, (1.5, 1.5, 1.5), (1.0, -0.5, 0.7), 33.0)[None])
    np.testing.assert_allclose(values, expected, atol=2e-6)
    assert (expected > 0).mean() > 0.05


def test_a_turned_ellipsoid_is_the_ellipsoid_of_a_turned_scan():
    lying = solid(1.0, (3.0, 1.0, 2.0), (1.0, 2.0, 0.5))
    turned = solid(
        1.0, (3.0, 1.0, 2.0), (np.cos(0.4) - 2 * np.sin(0.4), np.sin(0.4) + 2 * np.cos(0.4), 0.5), np.rad2deg(0.4)
    )
    here = line_integrals(ScanGeometry.circular(GEOMETRY, [0.2, 1.9]), lying[None])
    there = line_integrals(ScanGeometry.circular(GEOMETRY, [0.6, 2.3]), turned[None])
    np.testing.assert_allclose(here, there, atol=1e-5)


# Convergence with resolution.


def test_the_projector_of_a_smooth_object_is_of_second_order():
    scan, centre, errors = (
        ScanGeometry.circular(replace(GEOMETRY, rows=9, cols=21), [0.1, 1.3, 2.7]),
        (0.4, -0.3, 0.2),
        [],
    )
    exact = blob_integrals(scan, centre, 1.5)
    for n in (20, 40, 80):
        grid = Grid(shape=(n, n, n), voxel_mm=20.0 / n)
        errors.append(rms(Projector(scan, grid, dtype=np.float64).forward(blob(grid, centre, 1.5)) - exact))
    assert orders(errors) == pytest.approx([2.0, 2.0], abs=0.1)
    assert errors[-1] < 5e-3 * exact.max()


def test_the_projector_of_ellipsoids_is_of_first_order():
    """A chord ends in an edge of infinite slope: wrong by the root of a voxel, in a layer as thick as a voxel."""
    scan, errors = ScanGeometry.circular(replace(GEOMETRY, rows=21, cols=41, pitch_mm=0.43), full_turn(5)), []
    exact = line_integrals(scan, ELLIPSOIDS)
    for n in (16, 32, 64):
        grid = Grid(shape=(n, n, n), voxel_mm=10.0 / n)
        errors.append(rms(Projector(scan, grid).forward(voxel_means(grid, ELLIPSOIDS)[None])[0] - exact))
    assert orders(errors) == pytest.approx([1.0, 1.0], abs=0.15)
    assert errors[-1] < 0.01 * exact.max()


def fdk_of_blob(fineness: int) -> tuple[float, float]:
    """Error of the middle slice, and the largest value, where all steps are `fineness` times smaller."""
    geometry = replace(GEOMETRY, pitch_mm=0.9 / fineness, cols=21 * fineness, rows=9 * fineness | 1)
    angles = full_turn(48 * fineness)
    grid = Grid(shape=(1, 25, 25), voxel_mm=0.2)
    scan, centre = ScanGeometry.circular(geometry, angles), (0.7, -0.4, 0.0)
    values = run(fdk(blob_integrals(scan, centre, 0.9), angles, geometry, grid))
    return rms(values - blob(grid, centre, 0.9)), float(values.max())


def test_the_reconstruction_of_a_smooth_object_is_of_second_order():
    errors, heights = zip(*(fdk_of_blob(fineness) for fineness in (1, 2, 4)), strict=True)
    assert (orders(list(errors)) > 1.8).all()
    assert errors[-1] < 0.01
    assert heights[-1] == pytest.approx(1.0, abs=0.02)


def test_the_reconstruction_of_ellipsoids_converges_as_edges_do():
    """An edge is wrong by as much as it is high in a layer as thick as a voxel: the RMS falls with its root."""
    errors = []
    for n in (32, 64, 128):
        geometry, angles = replace(GEOMETRY, pitch_mm=16.0 / n, cols=n, rows=15), full_turn(4 * n)
        grid = Grid(shape=(1, n, n), voxel_mm=10.0 / n)
        projections = line_integrals(ScanGeometry.circular(geometry, angles), ELLIPSOIDS)[None]
        wrong = run(fdk(projections, angles, geometry, grid))[0, 0] - voxel_means(grid, ELLIPSOIDS)[0]
        _, y, x = grid.axes_mm()
        errors.append(rms(wrong[np.hypot(y[:, None], x) < 4.8]))
    assert orders(errors) == pytest.approx([0.5, 0.5], abs=0.2)


# Rotations and mirrors.


def test_a_turn_of_the_object_is_a_turn_of_the_scan():
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(1, 7, 10, 10)).astype(np.float32)
    grid = Grid(shape=(7, 10, 10), voxel_mm=0.5)
    geometry = replace(GEOMETRY, rows=12, cols=17, pitch_mm=0.5, offset_u_mm=0.3, roll_rad=0.05, tilt_v_rad=0.1)
    here, there = (
        Projector(ScanGeometry.circular(geometry, angles), grid)
        for angles in ([0.2, 1.0], [0.2 + np.pi / 2, 1.0 + np.pi / 2])
    )
    turned = np.rot90(volume, axes=(3, 2))  # x becomes y
    np.testing.assert_allclose(there.forward(turned), here.forward(volume), atol=2e-4)
    projections = rng.normal(size=here.range_shape).astype(np.float32)
    np.testing.assert_allclose(there.adjoint(projections), np.rot90(here.adjoint(projections), axes=(3, 2)), atol=2e-4)


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1)])
def test_no_axis_is_better_than_another(order):
    """The projector of a scan whose axes change places makes the same of a volume whose axes do."""
    rng = np.random.default_rng(1)
    volume = rng.normal(size=(9, 9, 9)).astype(np.float32)
    grid = Grid(shape=(9, 9, 9), voxel_mm=0.5)
    scan = ScanGeometry.circular(replace(GEOMETRY, rows=12, cols=17, pitch_mm=0.5, tilt_u_rad=0.2), full_turn(5) + 0.1)
    moved = ScanGeometry(
        **{name: getattr(scan, name)[:, order] for name in ("source_mm", "detector_mm", "u_mm", "v_mm")},
        rows=scan.rows,
        cols=scan.cols,
    )
    axes = [2 - order[2 - axis] for axis in range(3)]  # the arrays have z first
    values = Projector(moved, grid).forward(volume.transpose(axes)[None])
    np.testing.assert_allclose(values, Projector(scan, grid).forward(volume[None]), atol=2e-4)


def test_the_picture_turns_with_the_scan_and_is_mirrored_with_the_rows():
    angles, grid = full_turn(40), Grid(shape=(6, 16, 16), voxel_mm=0.4)
    projections = line_integrals(ScanGeometry.circular(GEOMETRY, angles), shepp_logan(3.2))[None]
    values = run(fdk(projections, angles, GEOMETRY, grid))
    turned = run(fdk(projections, angles + np.pi / 2, GEOMETRY, grid))
    np.testing.assert_allclose(turned, np.rot90(values, axes=(3, 2)), atol=5e-4)
    mirrored = run(fdk(np.ascontiguousarray(projections[:, :, ::-1]), angles, GEOMETRY, grid))
    np.testing.assert_allclose(mirrored, values[:, ::-1], atol=5e-4)


# Resolution.


def edge_response(window: str) -> tuple[NDArray, NDArray]:
    """The reconstructed rim of a cylinder: distance outwards from it in mm, and the values there."""
    angles, radius_mm, centre = full_turn(240), 4.0, (0.613, -0.371, 0.0)
    grid = Grid(shape=(1, 111, 111), voxel_mm=0.1)
    scan = ScanGeometry.circular(GEOMETRY, angles)
    cylinder = solid(1.0, (radius_mm, radius_mm, np.inf), centre)[None]
    values = run(fdk(line_integrals(scan, cylinder)[None], angles, GEOMETRY, grid, window=window))[0, 0]
    _, y, x = grid.axes_mm()
    outwards = np.hypot(y[:, None] - centre[1], x - centre[0]) - radius_mm
    return outwards.ravel(), values.ravel()


@pytest.mark.parametrize("window", ["ram-lak", "shepp-logan", "hann"])
def test_the_mtf_of_an_edge_is_the_window_times_that_of_the_interpolation(window):
    outwards, values = edge_response(window)
    step, reach = SAMPLING_MM / 8, 8 * SAMPLING_MM
    edges = np.arange(-reach, reach + step / 2, step)
    counts, _ = np.histogram(outwards, edges)
    edge = np.histogram(outwards, edges, weights=values)[0] / counts
    line = -np.diff(edge) * np.hanning(len(edge) - 1 + 2)[1:-1]
    line /= line.sum()
    place = (np.arange(len(line)) - (len(line) - 1) / 2) * step
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):  # of the highest frequency that the rays hold
        frequency = share / (2 * SAMPLING_MM)
        measured = abs((line * np.exp(-2j * np.pi * frequency * place)).sum()) / np.sinc(frequency * step)
        theory = float(WINDOWS[window](np.array([share]))[0]) * np.sinc(frequency * SAMPLING_MM) ** 2
        assert measured == pytest.approx(theory, abs=0.03), share


# Noise.


def noise_reconstructed(sigma: float, n_views: int, *, window: str = "ram-lak", n: int = 48, seed: int = 0) -> NDArray:
    """White noise in the projections, reconstructed on half the rays' distance: (N_SLICES, y, x), all independent.

    The source is so far away that each row of the detector sees one slice.
    """
    rng = np.random.default_rng(seed)
    far = replace(GEOMETRY, source_to_detector_mm=1.5e5, source_to_object_mm=1e5, rows=N_SLICES, cols=n + 15)
    noise = rng.normal(0, sigma, (1, n_views, far.rows, far.cols)).astype(np.float32)
    grid = Grid(shape=(2 * N_SLICES - 1, n, n), voxel_mm=SAMPLING_MM / 2)
    # Noise at the detector's edge is no object that is cut there: nothing is to be continued.
    return run(fdk(noise, full_turn(n_views), far, grid, window=window, is_continued=False))[0, ::2]


def filtered_spectrum(frequency: NDArray, window: str) -> NDArray[np.float64]:
    """Noise power of filtered rows that are interpolated linearly, for white noise of variance 1: 1/mm."""
    highest = 1 / (2 * SAMPLING_MM)
    folded = np.abs((frequency + highest) % (2 * highest) - highest)  # the samples' spectrum repeats itself
    gain = folded * WINDOWS[window](folded / highest)
    return SAMPLING_MM * gain**2 * np.sinc(frequency * SAMPLING_MM) ** 4


@pytest.mark.parametrize("window", ["ram-lak", "hann"])
def test_the_variance_is_that_of_theory(window):
    values = noise_reconstructed(0.02, 180, window=window)
    frequency = np.linspace(0, 8 / SAMPLING_MM, 20001)
    theory = 2 * np.trapezoid(filtered_spectrum(frequency, window), frequency) * 0.02**2 * np.pi**2 / 180
    assert values.var() == pytest.approx(theory, rel=0.03)
    assert abs(values.mean()) < 0.01 * values.std()


@pytest.mark.parametrize("window", ["ram-lak", "hann"])
def test_the_noise_power_spectrum_is_that_of_theory(window):
    values, voxel_mm = noise_reconstructed(1.0, 180, window=window, n=96), SAMPLING_MM / 2
    n = values.shape[-1]
    taper = np.outer(np.hanning(n), np.hanning(n))
    power = (np.abs(np.fft.fft2(values * taper)) ** 2).mean(0) * voxel_mm**2 / (taper**2).sum()
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(n, voxel_mm), np.fft.fftfreq(n, voxel_mm)))
    highest = 1 / (2 * SAMPLING_MM)
    peak = np.pi / 180 * (filtered_spectrum(frequency[frequency > 0], window) / frequency[frequency > 0]).max()
    for low in np.arange(0.2, 1.0, 0.2) * highest:
        ring = (frequency >= low) & (frequency < low + 0.2 * highest)
        theory = np.pi / 180 * filtered_spectrum(frequency[ring], window) / frequency[ring]
        assert power[ring].mean() == pytest.approx(theory.mean(), rel=0.05, abs=1e-3 * peak), low / highest


def test_the_variance_falls_with_views_and_dose_alike():
    base = noise_reconstructed(0.02, 120).var()
    assert noise_reconstructed(0.02, 240, seed=1).var() == pytest.approx(base / 2, rel=0.06)
    fourfold_dose = noise_reconstructed(0.01, 120, seed=2).var()
    assert fourfold_dose == pytest.approx(base / 4, rel=0.06)


def test_photons_count_once_however_they_are_shared_among_views():
    """The same number of photons in half the views, twice as many in each: the same noise."""
    many = noise_reconstructed(0.02, 240).var()
    few = noise_reconstructed(0.02 / np.sqrt(2), 120, seed=1).var()
    assert few == pytest.approx(many, rel=0.06)


# Values.


def test_a_uniform_object_is_uniform():
    angles, grid = full_turn(180), Grid(shape=(1, 41, 41), voxel_mm=0.2)
    cylinder = solid(0.02, (4.5, 4.5, np.inf), (0.2, 0.1, 0.0))[None]
    scan = ScanGeometry.circular(GEOMETRY, angles)
    values = run(fdk(line_integrals(scan, cylinder)[None], angles, GEOMETRY, grid))[0, 0]
    _, y, x = grid.axes_mm()
    radius = np.hypot(y[:, None] - 0.1, x - 0.2)
    rings = [values[(radius >= low) & (radius < low + 0.8)].mean() for low in np.arange(0, 3.9, 0.8)]
    assert rings == pytest.approx([0.02] * len(rings), rel=2e-3)


def test_values_are_linear_in_the_attenuation():
    angles, grid = full_turn(120), Grid(shape=(1, 31, 31), voxel_mm=0.25)
    centres, attenuations = [(2.0, 0.0), (-2.0, 0.5), (0.0, 2.2), (0.3, -2.1)], [0.005, 0.02, 0.08, 0.3]
    solids = [solid(a, (0.9, 0.9, np.inf), (x, y, 0.0)) for a, (x, y) in zip(attenuations, centres, strict=True)]
    scan = ScanGeometry.circular(GEOMETRY, angles)
    values = run(fdk(line_integrals(scan, np.array(solids))[None], angles, GEOMETRY, grid))[0, 0]
    _, y, x = grid.axes_mm()
    measured = [values[np.hypot(y[:, None] - cy, x - cx) < 0.5].mean() for cx, cy in centres]
    slope, offset = np.polyfit(attenuations, measured, 1)
    assert slope == pytest.approx(1, abs=0.01)
    assert abs(offset) < 0.001


# scikit-image as an oracle.


def smooth_slice(n: int) -> tuple[Grid, NDArray[np.float32]]:
    grid = Grid(shape=(1, n, n), voxel_mm=1.0)
    image = blob(grid, (6.0, -3.0, 0.0), 5.0) - 0.4 * blob(grid, (-5.0, 4.0, 0.0), 4.0)
    _, y, x = grid.axes_mm()
    return grid, (image * (np.hypot(y[:, None], x) <= n // 2)).astype(np.float32)


def test_parallel_projections_are_those_of_scikit_image():
    grid, image = smooth_slice(65)
    angles = np.arange(24) * np.pi / 24
    ours = Projector(ScanGeometry.parallel(angles, rows=1, cols=65, pitch_mm=1.0), grid).forward(image)[0, :, 0]
    theirs = radon(image[0, 0, ::-1], theta=np.rad2deg(angles), circle=True).T
    assert rms(ours - theirs) < 3e-3 * np.abs(ours).max()


def test_the_adjoint_smears_as_scikit_image_does():
    grid, image = smooth_slice(65)
    angles = np.arange(24) * np.pi / 24
    projector = Projector(ScanGeometry.parallel(angles, rows=1, cols=65, pitch_mm=1.0), grid)
    projections = projector.forward(image)
    ours = projector.adjoint(projections)[0, 0]
    theirs = iradon(projections[0, :, 0].T.astype(np.float64), theta=np.rad2deg(angles), filter_name=None, circle=True)
    theirs = theirs[::-1] * 2 * len(angles) / np.pi
    _, y, x = grid.axes_mm()
    inside = np.hypot(y[:, None], x) < 25
    assert rms((ours - theirs)[inside]) < 0.01 * np.abs(ours).max()
