"""Volumes made slab by slab: the same as whole, whatever the memory, and the same after a break."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calibration.geometry import Geometry
from reconstruction import budget, slabs
from reconstruction.fdk import fdk
from reconstruction.slabs import Job
from reconstruction.volume import Grid, Provenance, Volume, load_volume
from tests.slab_source import Ellipsoids

GEOMETRY = Geometry(source_to_detector_mm=150.0, source_to_object_mm=100.0, pitch_mm=0.3, rows=64, cols=40)
GRID = Grid(shape=(70, 24, 26), voxel_mm=0.25, centre_mm=(0.1, -0.2, 0.3))
SOLIDS = ((0.5, -0.3, 0.2, 2.0, 1.5, 3.0, 0.05), (-1.0, 0.8, -1.5, 0.8, 0.8, 0.8, 0.1))
SOURCE = Ellipsoids(geometry=GEOMETRY, n_views=40, solids=SOLIDS, n_bins=2)
JOB = Job(open_source=SOURCE, grid=GRID, window="hann")
PLANNED = Volume.planned(
    2,
    GRID,
    channels=("18-33 keV", "33+ keV"),
    unit="1/mm",
    thresholds_kev=(18.0, 33.0),
    provenance=Provenance(source_file="scan.h5", software="0.1", steps=("FDK",)),
)
TIGHT = budget.layout_of(slabs.problem_of(SOURCE, GRID), budget.cut(70, 5), 1, uses_device=False).peak_bytes
"""A memory that forces several slabs."""


def run(work):
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def make(path: Path, memory_bytes: int = TIGHT, job: Job = JOB, recipe: str = "a"):
    return slabs.reconstruct(job, PLANNED, path, memory_bytes=memory_bytes, recipe=recipe)


def in_one_piece(job: Job = JOB) -> np.ndarray:
    source = job.open_source()
    values, _ = source.read(np.s_[:], np.s_[:])
    return run(fdk(values, source.angles_rad, source.geometry, job.grid, window=job.window))


def test_slab_by_slab_is_the_same_volume(tmp_path):
    loaded = load_volume(run(make(tmp_path / "v.h5")))
    expected = in_one_piece()
    assert loaded.provenance.steps[-1] == "5 slabs along z"
    np.testing.assert_allclose(loaded.values, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert (loaded.channels, loaded.grid) == (PLANNED.channels, GRID)
    assert loaded.provenance.steps[:2] == ("FDK", "0.00% of the line integrals estimated")
    assert [p.name for p in tmp_path.iterdir()] == ["v.h5"]
