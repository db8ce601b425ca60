"""The stand-in GPU refuses what a real one would not take, and the kernels touch no memory but their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reconstruction import backend
from tests import cuda_shim

ROOT = Path(__file__).resolve().parent.parent
KERNEL = """
__constant__ float factors[2];
extern "C" __global__ void __launch_bounds__(256) scaled(float *there, const float *here, int n, float shift)
{
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < n)
        there[at] = factors[1] * here[at] + shift;
}
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "scaled.cu"
    path.write_text(KERNEL)
    return path


def test_it_runs_every_thread_once(device, source):
    backend.set_constant(source, "factors", backend.to_device(np.array([5, 2], np.float32)))
    here, there = (backend.to_device(np.arange(n, dtype=np.float32)) for n in (100, 101))
    kernel = backend.cuda_kernel(source, "scaled")
    kernel((4, 1, 1), (32, 1, 1), (there, here, np.int32(100), np.float32(3)))
    np.testing.assert_array_equal(backend.to_host(there), [*(2 * np.arange(100) + 3), 100])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda a: a[:3], "takes ppif: got 3"),
        (lambda a: (a[0], np.zeros(4, np.float32), *a[2:]), "no array of the device"),
        (lambda a: (a[0], a[1][::2], *a[2:]), "not contiguous"),
        (lambda a: (a[0], a[1].astype(np.float64), *a[2:]), "float64"),
        (lambda a: (*a[:2], 4, a[3]), "4 is given for an int"),
        (lambda a: (*a[:3], 3.0), "3.0 is given for a float"),
    ],
)
def test_a_launch_that_does_not_match_its_kernel_fails(monkeypatch, source, change, match):
    with cuda_shim.installed(monkeypatch):
        arrays = (backend.to_device(np.zeros(8, np.float32)) for _ in range(2))
        arguments = change((*arrays, np.int32(4), np.float32(3)))
        with pytest.raises(AssertionError, match=match):
            backend.cuda_kernel(source, "scaled")((1, 1, 1), (32, 1, 1), arguments)
        with pytest.raises(AssertionError):
            backend.cuda_kernel(source, "scaled")((1, 1, 1), (32, 64, 1), arguments)


@pytest.mark.timeout(300)  # five compilations with the sanitizer: long on a loaded machine
def test_the_kernels_stay_inside_their_arrays(source):
    """Any geometry, every access checked; rays and shadows that miss everything are among them. Then one too many."""
    script = """
import sys
from pathlib import Path
import numpy as np
from tests import cuda_shim
sys.modules["cupy"] = cuda_shim.fake_cupy()
from reconstruction import backend
from reconstruction.kernels import backproject_gpu, joseph_gpu
rng = np.random.default_rng(0)
def numbers(*shape):
    return backend.to_device(rng.normal(size=shape).astype(np.float32))
for trial in range(60):
    n_bins, n_views = int(rng.choice([1, 4])), int(rng.integers(1, 4))
    is_half = n_bins == 4
    shape, detector = rng.integers(1, 8, 3).tolist(), rng.integers(1, 8, 2).tolist()
    matrices = rng.normal(size=(n_views, 3, 4)) * 3
    matrices[:, 2, 3] = rng.uniform(0.1, 30, n_views)
    if trial % 2:
        matrices[:, (0, 2), 2] = 0
    images = numbers(n_views, n_bins, *detector)
    backproject_gpu.backproject(numbers(n_bins, *shape), images, matrices, np.ones(n_views), is_half=is_half)
    rays = rng.normal(size=(n_views, 4, 3)) * [[4], [9], [1], [1]]
    is_parallel = trial % 3 == 0
    if not is_parallel:
        rays[:, 0] *= 30 / np.linalg.norm(rays[:, 0], axis=1, keepdims=True)
        rays[:, 1] = 3 - rays[:, 0] / 2 + rng.normal(size=(n_views, 3))
    if trial % 2:
        rays[:, 3, 1:] = 0
    pair = numbers(n_bins, *shape), numbers(n_bins, n_views, *detector)
    try:
        joseph_gpu.forward(*pair, rays, is_parallel, 1.0, is_half=is_half)
    except Exception as error:
        assert "reaches the source" in str(error)
        continue
    joseph_gpu.adjoint(*pair, rays, is_parallel, 1.0, is_half=is_half)
    print("done")
there, here = (backend.to_device(np.zeros(n, np.float32)) for n in (1000, 999))
for n in (999, 1000):
    print("n is", n, flush=True)
    scaled = backend.cuda_kernel(Path(sys.argv[1]), "scaled")
    scaled((32, 1, 1), (32, 1, 1), (there, here, np.int32(n), np.float32(3)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(source)],
        env=cuda_shim.sanitizer_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("done") > 30, done.stderr
    assert "n is 1000" in done.stdout, done.stderr
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
