"""Slabs on a cluster of local processes: the same volume, whoever makes it and whoever is killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from firmware_iface.errors import MpxctError, WrongUsage
from reconstruction.size import cluster, slabs
from reconstruction.size.volume_writer import partial_volume_path
from reconstruction.volume import load_volume
from tests.slab_source import Deadly
from tests.test_slabs import GEOMETRY, JOB, PLANNED, SOLIDS, TIGHT, make, run

N_WORKERS = 2
pytestmark = pytest.mark.timeout(300)  # processes start slowly where all processors are busy


@pytest.fixture(scope="module")
def address():
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=N_WORKERS, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as local:
        yield local.scheduler_address


def on_cluster(path: Path, address: str, job=JOB, **options):
    return cluster.reconstruct(job, PLANNED, path, address=address, memory_bytes=TIGHT, recipe="a", **options)


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> bytes:
    return run(make(tmp_path_factory.mktemp("local") / "v.h5")).read_bytes()


@pytest.mark.parametrize("spools", [False, True])
def test_the_cluster_makes_the_same_file_as_one_process(tmp_path, address, local, spools):
    told = []
    path = run(on_cluster(tmp_path / "v.h5", address, spools=spools, tell=told.append))
    assert path.read_bytes() == local
    assert [p.name for p in tmp_path.iterdir()] == ["v.h5"]
    assert told[0].startswith(f"{N_WORKERS} workers at {address}, each in 5 slabs")


@pytest.mark.parametrize("spools", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_a_killed_worker_was_doing_is_done_by_another(tmp_path, address, local, spools):
    grave = tmp_path / "grave"
    job = replace(JOB, open_source=Deadly(geometry=GEOMETRY, n_views=20, solids=SOLIDS, n_bins=2, grave=str(grave)))
    path = run(on_cluster(tmp_path / "v.h5", address, job=job, spools=spools))
    assert grave.is_dir()
    assert path.read_bytes() == local


def test_what_a_cluster_began_one_process_ends(tmp_path, address, local):
    work = on_cluster(tmp_path / "v.h5", address)
    for step in work:
        if (step.stage, step.done) == ("slabs", 2):
            work.close()
    assert partial_volume_path(tmp_path / "v.h5").exists()
    assert run(make(tmp_path / "v.h5")).read_bytes() == local


def test_a_cluster_of_its_own_is_started_and_more_workers_mean_more_slabs(tmp_path):
    path = run(cluster.reconstruct(JOB, PLANNED, tmp_path / "v.h5", address="local:1", memory_bytes=10**9, recipe="a"))
    loaded = load_volume(path)
    assert loaded.provenance.steps[-1] == "2 slabs along z"
    whole = run(slabs.reconstruct(JOB, PLANNED, tmp_path / "w.h5", memory_bytes=10**9, recipe="a"))
    expected = load_volume(whole).values
    np.testing.assert_allclose(loaded.values, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("address", ["local:0", "local:two", "local:"])
def test_an_address_that_is_none_is_refused(tmp_path, address):
    with pytest.raises(WrongUsage, match="local:N"):
        run(on_cluster(tmp_path / "v.h5", address))


def test_a_cluster_that_does_not_answer_is_told(tmp_path):
    with pytest.raises(MpxctError, match="no Dask scheduler answers at"):
        run(on_cluster(tmp_path / "v.h5", "tcp://127.0.0.1:1"))
