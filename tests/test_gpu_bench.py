"""The GPU benchmark runs to its end on the stand-in, whose figures are of no use, and refuses without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reconstruction.scan_geometry import ScanGeometry
from tests import cuda_shim
from tests.benchmarks import gpu

ROOT = Path(__file__).resolve().parent.parent


def test_it_measures_all_that_it_promises(monkeypatch):
    with cuda_shim.installed(monkeypatch):
        monkeypatch.setattr(gpu, "interpolation_rate", lambda *_: 1e9)  # the stand-in has no textures
        figures = gpu.run({"cone 8": 8}, n_blocks=2, n_steps=2, n_copied=1000)
        rows = figures["cone 8"]
        assert {"backprojection", "fdk", "forward", "adjoint", "os_sart", "tv"} <= set(rows)
        for row in rows.values():
            assert row["ours_s"] > 0
            assert row["share"] > 0
        assert json.loads(json.dumps(figures))["device"] == "a stand-in"
        assert "of ceiling" in gpu.table(figures)


def test_a_ray_along_an_axis_crosses_as_many_slices_as_it_is_long():
    class Straight(gpu.Work):
        @property
        def scan(self):
            return ScanGeometry.parallel([0.0], rows=2, cols=3, pitch_mm=1.0)

    work = Straight(4)
    straight = work.scan
    # `crossings` takes the rays from their sources: far away they are parallel.
    far = ScanGeometry(
        source_mm=1e9 * straight.source_mm,
        detector_mm=straight.detector_mm,
        u_mm=straight.u_mm,
        v_mm=straight.v_mm,
        rows=2,
        cols=3,
    )
    Straight.scan = property(lambda self: far)
    assert gpu.crossings(work, np.full((2, 3), 4.0)) == pytest.approx(24)


def test_without_a_gpu_it_says_so():
    from reconstruction.backend import has_gpu

    if has_gpu():
        pytest.skip("there is a GPU here")
    command = [sys.executable, str(ROOT / "tests/benchmarks/gpu.py"), "--json", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cupy is not installed" in json.loads(done.stdout)["error"]
