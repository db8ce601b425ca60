"""RTK, ASTRA and ODL as oracles: the same rays, the same volumes, the same iterations.

They live in an environment of their own: `make peers` makes it, and MPXCT_RECON_PEERS_PYTHON names another. Without one
these tests are skipped. ASTRA's 3-D projectors need CUDA, so it is asked about slices; RTK answers in three dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from calibration.geometry import Geometry
from reconstruction.fdk import fdk
from reconstruction.iterative import METHODS
from reconstruction.projector import Projector
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid
from tests.benchmarks.comparison import ask, peers_python, result_of
from tests.benchmarks.problems import Problem, cone_beam, parallel_beam

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Ask = Callable[..., dict[str, NDArray]]


@pytest.fixture(scope="module")
def results() -> Ask:
    """Return what asks a peer and returns its results, or skip, saying how to make the peers."""
    try:
        python: Path = peers_python()
    except SystemExit as missing:
        pytest.skip(str(missing))

    def asked(peer: str, *operations: str, arrays: dict[str, NDArray], **numbers: Any) -> dict[str, NDArray]:
        answers = ask(peer, operations, arrays=arrays, numbers=numbers, python=python)
        return {name: answers[name].result for name in operations}

    return asked


def vectors(scan: ScanGeometry) -> NDArray[np.float64]:
    return np.stack([scan.source_mm, scan.detector_mm, scan.u_mm, scan.v_mm], axis=1)


def numbers(scan: ScanGeometry, grid: Grid) -> dict[str, Any]:
    return {
        "rows": scan.rows,
        "cols": scan.cols,
        "shape": grid.shape,
        "voxel_mm": grid.voxel_mm,
        "n_views": scan.n_views,
    }


def inner_noise(grid: Grid, seed: int = 0) -> NDArray[np.float32]:
    """Noise of a few voxels' size that is 0 at the faces, where programs differ in what lies outside: (z, y, x)."""
    values = np.random.default_rng(seed).normal(size=grid.shape)
    values = gaussian_filter(values, [min(1.0, (n - 1) / 8) for n in grid.shape])
    for axis, n in enumerate(grid.shape):
        if n > 1:
            np.moveaxis(values, axis, 0)[[0, 1, 2, n - 3, n - 2, n - 1]] = 0
    return values.astype(np.float32)


def rms(values: NDArray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


# RTK: three dimensions.

ASKEW = Geometry(
    source_to_detector_mm=150.0,
    source_to_object_mm=100.0,
    pitch_mm=0.7,
    rows=40,
    cols=48,
    offset_u_mm=2.0,
    offset_v_mm=-1.0,
    roll_rad=0.1,
    tilt_u_rad=0.15,
    tilt_v_rad=-0.2,
)


@pytest.mark.parametrize(
    "geometry", [replace(ASKEW, roll_rad=0, tilt_u_rad=0, tilt_v_rad=0), ASKEW], ids=["upright", "askew"]
)
def test_joseph_is_rtk_s_joseph_both_ways_for_any_pose(results, geometry):
    scan = ScanGeometry.circular(geometry, [0.0, 0.3, 1.1, 2.0, 3.0, 4.4, 5.9], lifts_mm=[0, 1, -2, 3, 0, 0.5, -1])
    grid = Grid(shape=(24, 28, 32), voxel_mm=0.6)
    volume = inner_noise(grid)
    projections = inner_noise(Grid(shape=(scan.rows, scan.cols, 7), voxel_mm=1.0), 1)
    projections = np.ascontiguousarray(np.moveaxis(projections, 2, 0))
    theirs = results(
        "rtk", "forward", "adjoint",
        arrays={"vectors": vectors(scan), "volume": volume, "projections": projections}, **numbers(scan, grid),
    )  # fmt: skip
    projector = Projector(scan, grid)
    ours = projector.forward(volume[None])[0]
    assert rms(theirs["forward"] - ours) < 1e-4 * np.abs(ours).max()
    inside = slice(3, -3), slice(3, -3), slice(3, -3)
    back = projector.adjoint(projections[None])[0]
    assert rms((theirs["adjoint"] - back)[inside]) < 1e-4 * np.abs(back).max()


def test_fdk_is_rtk_s_voxel_by_voxel(results):
    problem = cone_beam(64, 90)
    assert problem.geometry is not None
    projections = problem.projections()
    arrays = {"vectors": vectors(problem.scan), "projections": projections[0]}
    theirs = results("rtk", "fdk", arrays=arrays, **numbers(problem.scan, problem.grid))["fdk"]
    ours = result_of(fdk(projections, problem.angles_rad, problem.geometry, problem.grid))[0]
    judged = problem.judged()
    assert rms((ours - theirs)[judged]) < 1e-5


def test_conjugate_gradients_are_rtk_s(results):
    problem = cone_beam(32, 36, "P3")
    projections = problem.projections()
    arrays = {"vectors": vectors(problem.scan), "projections": projections[0]}
    theirs = results("rtk", "cg", arrays=arrays, n_iterations=6, **numbers(problem.scan, problem.grid))["cg"]
    ours = last_volume(problem, "cgls", 6)
    judged = problem.judged()
    assert rms((ours - theirs)[judged]) < 0.1 * problem.rmse(theirs[None])  # at its faces RTK ends rays elsewhere


# ASTRA and ODL: slices.


def slice_problem(n: int = 65) -> Problem:
    return parallel_beam(n, 48, n + 28)


def in_the_plane(scan: ScanGeometry) -> NDArray[np.float64]:
    """Rows of `parallel_vec` or `fanflat_vec`: x and y of ray or source, detector and u, out of the 3-D vectors."""
    rows = scan.to_astra(1.0).reshape(-1, 4, 3)
    return rows[:, :3, :2].reshape(-1, 6)


@pytest.mark.parametrize("kind", ["cone", "parallel3d"])
def test_circular_beams_have_the_vectors_that_astra_gives_its_own(results, kind):
    angles = np.array([0.0, 0.4, 1.9, 4.0])
    answer = results(
        "astra", "circular_vectors", arrays={"angles_rad": angles},
        kind=kind, pitch=0.7, rows=5, cols=8, source_to_object=100.0, object_to_detector=50.0,
    )  # fmt: skip
    if kind == "cone":
        geometry = Geometry(source_to_detector_mm=150, source_to_object_mm=100, pitch_mm=0.7, rows=5, cols=8)
        ours = ScanGeometry.circular(geometry, angles).to_astra()
    else:
        ours = ScanGeometry.parallel(angles, rows=5, cols=8, pitch_mm=0.7).to_astra()
    theirs = answer["circular_vectors"]
    if kind == "parallel3d":  # ASTRA lets these rays run towards where its cone has the source; integrals do not mind
        theirs[:, :3] *= -1
    np.testing.assert_allclose(theirs, ours, atol=1e-9)


def test_parallel_vectors_mean_to_astra_what_they_mean_to_us(results):
    rng, grid = np.random.default_rng(4), Grid(shape=(1, 40, 40), voxel_mm=1.0)
    scan = ScanGeometry.parallel(rng.uniform(0, 7, 9), rows=1, cols=51, pitch_mm=0.8, offset_u_mm=1.7)
    volume = inner_noise(grid)
    arrays = {"volume": volume, "vectors_2d": in_the_plane(scan)}
    theirs = results("astra", "forward", arrays=arrays, is_parallel=True, **numbers(scan, grid))["forward"]
    ours = Projector(scan, grid).forward(volume[None])[0]
    assert np.abs(theirs - ours).max() < 1e-4 * np.abs(ours).max()


def test_fan_vectors_mean_to_astra_what_they_mean_to_us(results):
    """ASTRA has no interpolating fan on the CPU: it cuts squares, and the two agree as far as the object is smooth."""
    grid = Grid(shape=(1, 96, 96), voxel_mm=1.0)
    fan = Geometry(source_to_detector_mm=300, source_to_object_mm=200, pitch_mm=1.2, rows=1, cols=121)
    geometry = replace(fan, offset_u_mm=3.0, tilt_v_rad=0.1)
    scan = ScanGeometry.circular(geometry, np.array([0.1, 0.9, 2.2, 3.3, 5.0]))
    smooth = gaussian_filter(inner_noise(replace(grid, shape=(1, 56, 56))), (0, 4, 4))
    volume = np.pad(smooth, ((0, 0), (20, 20), (20, 20)))
    arrays = {"volume": volume, "vectors_2d": in_the_plane(scan)}
    theirs = results("astra", "forward", arrays=arrays, is_parallel=False, **numbers(scan, grid))["forward"]
    ours = Projector(scan, grid).forward(volume[None])[0]
    assert rms(theirs - ours) < 5e-3 * np.abs(ours).max()


def test_the_adjoint_is_astra_s(results):
    problem = slice_problem()
    projections = problem.projections()
    arrays = {"projections": projections[0], "angles_rad": problem.angles_rad}
    theirs = results("astra", "adjoint", arrays=arrays, **numbers(problem.scan, problem.grid))["adjoint"]
    ours = Projector(problem.scan, problem.grid).adjoint(projections)[0]
    assert rms(theirs - ours) < 1e-5 * np.abs(ours).max()


PEERS_ITERATIONS = [("sirt", "astra", "sirt"), ("cgls", "astra", "cgls"), ("cgls", "odl", "cgls")]


@pytest.mark.parametrize(("method", "peer", "operation"), PEERS_ITERATIONS)
def test_iterations_are_those_of_the_peers(results, method, peer, operation):
    problem = slice_problem()
    arrays = {"projections": problem.projections()[0], "angles_rad": problem.angles_rad}
    theirs = results(peer, operation, arrays=arrays, n_iterations=5, **numbers(problem.scan, problem.grid))[operation]
    ours = last_volume(problem, method, 5)
    assert rms(ours - theirs) < 2e-3


def last_volume(problem: Problem, method: str, n_iterations: int) -> NDArray[np.float32]:
    projector = Projector(problem.scan, problem.grid)
    *_, last = METHODS[method].run(projector, problem.projections(), n_iterations=n_iterations)
    return last.volume[0]
