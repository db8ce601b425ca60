"""The CUDA source computes what the CPU kernel does: compiled as C++ over CUDA's built-ins, and on a real GPU."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess

import numpy as np
import pytest

from reconstruction.kernels import backproject_cpu, backproject_gpu

SHIM = """
#include <cmath>
#define __global__
#define __device__
struct Index { unsigned int x, y, z; };
static Index blockIdx, threadIdx, blockDim;
#include "backproject.cu"
extern "C" void launch(
    const unsigned int *blocks, const unsigned int *threads, float *volume, const float *projections,
    const float *poses, const int *n, const float *at)
{
    blockDim = {threads[0], threads[1], threads[2]};
    for (blockIdx.z = 0; blockIdx.z < blocks[2]; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < blocks[1]; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < blocks[0]; ++blockIdx.x)
    for (threadIdx.z = 0; threadIdx.z < threads[2]; ++threadIdx.z)
    for (threadIdx.y = 0; threadIdx.y < threads[1]; ++threadIdx.y)
    for (threadIdx.x = 0; threadIdx.x < threads[0]; ++threadIdx.x)
        backproject(volume, projections, poses, n[0], n[1], n[2], n[3], n[4], n[5], n[6],
                    at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7]);
}
"""


def work():
    """A detector whose edges the volume overlaps, and axes that no block of threads divides."""
    rng = np.random.default_rng(8)
    filtered = rng.normal(size=(5, 2, 21, 19)).astype(np.float32)
    angles = rng.uniform(0, 2 * np.pi, 5)
    poses = np.stack([np.cos(angles), np.sin(angles), rng.uniform(0.5, 1, 5)], axis=1)
    x, y, z = (centre + (np.arange(n) - (n - 1) / 2) * 0.9 for n, centre in ((35, 0.7), (13, -0.4), (29, 2.1)))
    return filtered, poses, (x, y, z, np.array([300.0, 450.0, 9.3, 10.8, 21]))


def oracle(filtered, poses, axes):
    x, y, z, _ = axes
    volume = np.zeros((len(y), len(x), filtered.shape[1], len(z)), np.float32)
    backproject_cpu.backproject_plain(volume, backproject_cpu.with_margins(filtered), poses, *axes)
    return np.moveaxis(volume, (2, 3), (0, 1))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here: the CUDA source cannot be compiled as C++")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "shim.cpp").write_text(SHIM)
    library = folder / "shim.so"
    command = [compiler, "-std=c++14", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-sign-compare", "-shared", "-fPIC"]
    done = subprocess.run(
        [*command, f"-I{backproject_gpu.SOURCE.parent}", "-o", str(library), str(folder / "shim.cpp")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def test_compiled_as_cpp_it_agrees_with_the_cpu_kernel(compiled):
    filtered, poses, axes = work()
    plan = backproject_gpu.launch(filtered.shape, *axes)
    volume = np.zeros((2, 29, 13, 35), np.float32)
    poses32 = poses.astype(np.float32)
    n = np.array([a for a in plan.arguments if isinstance(a, np.int32)], np.int32)
    at = np.array([a for a in plan.arguments if isinstance(a, np.float32)], np.float32)
    assert (len(n), len(at)) == (7, 8)
    blocks, threads = np.array(plan.blocks, np.uint32), np.array(plan.threads, np.uint32)
    compiled.launch(*(pointer(array) for array in (blocks, threads, volume, filtered, poses32, n, at)))
    expected = oracle(filtered, poses, axes)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(volume, expected, atol=5e-4)


def test_the_launch_matches_the_source():
    source = backproject_gpu.SOURCE.read_text()
    assert int(re.search(r"#define Z_PER_THREAD (\d+)", source).group(1)) == backproject_gpu.Z_PER_THREAD
    parameters = re.search(r"void backproject\((.*?)\)\s*\{", source, re.DOTALL).group(1).split(",")
    kinds = {"int": np.int32, "float": np.float32}
    scalars = [kinds[p.split()[0]] for p in parameters if "*" not in p]
    filtered, _, axes = work()
    assert [type(a) for a in backproject_gpu.launch(filtered.shape, *axes).arguments] == scalars


@pytest.mark.gpu
def test_on_a_gpu_it_agrees_with_the_cpu_kernel():
    from reconstruction import backend

    filtered, poses, axes = work()
    volume = backend.to_device(np.zeros((2, 29, 13, 35), np.float32))
    backproject_gpu.backproject(volume, backend.to_device(filtered), backend.to_device(poses.astype(np.float32)), *axes)
    np.testing.assert_allclose(backend.to_host(volume), oracle(filtered, poses, axes), atol=5e-4)


@pytest.mark.gpu
def test_on_a_gpu_the_whole_reconstruction_agrees():
    from calibration.geometry import Geometry
    from reconstruction.fdk import fdk
    from reconstruction.volume import Grid

    geometry = Geometry(source_to_detector_mm=150.0, source_to_object_mm=100.0, pitch_mm=0.3, rows=32, cols=36)
    projections = np.random.default_rng(0).normal(size=(2, 60, 32, 36)).astype(np.float32)
    values = []
    for use_gpu in (False, True):
        angles_rad = np.arange(60) * 2 * np.pi / 60
        stages = fdk(projections, angles_rad, geometry, Grid(shape=(20, 24, 24), voxel_mm=0.2), use_gpu=use_gpu)
        while True:
            try:
                next(stages)
            except StopIteration as end:
                values.append(end.value)
                break
    np.testing.assert_allclose(values[1], values[0], atol=1e-3 * np.abs(values[0]).max())
