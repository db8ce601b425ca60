"""Volumes made slab by slab: the same as whole, whatever the memory, and the same after a break."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from calibration.geometry import Geometry
from firmware_iface.errors import BadFile, MpxctError, WrongUsage
from reconstruction.fdk import fdk
from reconstruction.pipeline import reconstruct_scan
from reconstruction.recipe import Recipe
from reconstruction.scan_source import open_source
from reconstruction.size import budget, slabs, volume_writer
from reconstruction.size.slabs import Job, ScanOpener
from reconstruction.size.volume_writer import partial_volume_path
from reconstruction.volume import Grid, Provenance, Volume, load_volume
from tests.slab_source import Ellipsoids
from tests.test_pipeline import write_scan

ROOT = Path(__file__).resolve().parent.parent
GEOMETRY = Geometry(source_to_detector_mm=150.0, source_to_object_mm=100.0, pitch_mm=0.3, rows=64, cols=40)
GRID = Grid(shape=(70, 24, 26), voxel_mm=0.25, centre_mm=(0.1, -0.2, 0.3))
SOLIDS = ((0.5, -0.3, 0.2, 2.0, 1.5, 3.0, 0.05), (-1.0, 0.8, -1.5, 0.8, 0.8, 0.8, 0.1))
SOURCE = Ellipsoids(geometry=GEOMETRY, n_views=20, solids=SOLIDS, n_bins=2)
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
    lifts_mm = source.lifts_mm
    return run(fdk(values, source.angles_rad, source.geometry, job.grid, window=job.window, lifts_mm=lifts_mm))


def test_slab_by_slab_is_the_same_volume(tmp_path):
    loaded = load_volume(run(make(tmp_path / "v.h5")))
    expected = in_one_piece()
    assert loaded.provenance.steps[-1] == "5 slabs along z"
    np.testing.assert_allclose(loaded.values, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    assert (loaded.channels, loaded.grid) == (PLANNED.channels, GRID)
    assert loaded.provenance.steps[:2] == ("FDK", "0.00% of the line integrals estimated")
    assert [p.name for p in tmp_path.iterdir()] == ["v.h5"]


def test_only_the_rows_that_a_slab_sees_are_read(tmp_path):
    source = replace(SOURCE, reads=[])
    run(make(tmp_path / "v.h5", job=replace(JOB, open_source=source)))
    read = {(rows.start, rows.stop) for _, rows in source.reads}
    assert len(read) == 5
    assert max(stop - start for start, stop in read) < 0.5 * GEOMETRY.rows


def killed_before_the_third_slab_is_read() -> None:
    def make_slab(job, source, slab, n):
        if slab.start > 20:
            die()
        return (yield from old(job, source, slab, n))

    old, slabs.make_slab = slabs.make_slab, make_slab


def killed_when_the_second_is_written_but_not_yet_recorded() -> None:
    def record(self, number, *others, **options):
        if number == 1:
            die()
        old(self, number, *others, **options)

    old, volume_writer.VolumeWriter.record = volume_writer.VolumeWriter.record, record


def killed_when_all_are_written() -> None:
    volume_writer.VolumeWriter.finish = lambda *arguments: die()


N_DONE = {
    killed_before_the_third_slab_is_read: 2,
    killed_when_the_second_is_written_but_not_yet_recorded: 1,
    killed_when_all_are_written: 5,
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_all(folder: Path) -> None:
    """Do the work once for each moment, in a process that is killed without warning.

    They are forked from a process of its own that has loaded all it takes and runs no threads yet.
    """
    for moment in N_DONE:
        child = os.fork()
        if child == 0:
            moment()
            run(make(folder / f"{moment.__name__}.h5"))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, moment.__name__


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    code = f"from pathlib import Path\nfrom tests.test_slabs import kill_all\nkill_all(Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=110, check=True)
    return folder


@pytest.mark.parametrize("moment", N_DONE)
def test_what_was_killed_goes_on_and_is_the_same_byte_for_byte(killed, tmp_path, moment):
    path = killed / f"{moment.__name__}.h5"
    assert partial_volume_path(path).exists()
    assert not path.exists()
    source = replace(SOURCE, reads=[])
    run(make(path, job=replace(JOB, open_source=source)))
    assert len(source.reads) == (5 - N_DONE[moment]) * SOURCE.n_views  # what was done is not done again
    assert path.read_bytes() == run(make(tmp_path / "whole.h5")).read_bytes()


def broken_off(path: Path, n_slabs: int) -> Path:
    """Break the work off while the slab after the first ones is made."""
    work = make(path)
    for step in work:
        if step.stage.startswith(f"slab {n_slabs + 1} "):
            break
    work.close()
    return partial_volume_path(path)


def test_a_part_that_was_broken_off_goes_on_with_other_memory(tmp_path):
    broken_off(tmp_path / "v.h5", 2)
    assert run(make(tmp_path / "v.h5", TIGHT + 10**9)).read_bytes() == run(make(tmp_path / "w.h5")).read_bytes()


def test_a_part_that_is_damaged_is_refused(tmp_path):
    partial = broken_off(tmp_path / "v.h5", 2)
    whole = partial.read_bytes()
    with h5py.File(partial) as file:
        values, table = file["values"].id.get_offset(), file["slabs"].id.get_offset()
    for place, reason in (
        (values + 100, "not what was written"),
        (table + 7 * 8, "beside each other"),  # where the second slab begins
        (table + 2 * 7 * 8 + 3 * 8, "not what was written"),  # the third says it is done
    ):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        partial.write_bytes(damaged)
        with pytest.raises(BadFile, match=reason) as refusal:
            run(make(tmp_path / "v.h5"))
        assert "delete it" in (refusal.value.hint or "")
    partial.write_bytes(whole[:-1])
    with pytest.raises(BadFile, match="damaged"):
        run(make(tmp_path / "v.h5"))
    partial.write_bytes(whole)
    run(make(tmp_path / "v.h5"))


def test_a_part_of_another_volume_is_refused(tmp_path):
    partial = broken_off(tmp_path / "v.h5", 1)
    with pytest.raises(WrongUsage, match="another volume"):
        run(make(tmp_path / "v.h5", recipe="b"))
    assert partial.exists()


def test_a_part_that_was_begun_with_more_memory_is_refused(tmp_path):
    work = make(tmp_path / "v.h5", TIGHT + 10**8)
    for _ in zip(range(3), work, strict=False):
        pass
    work.close()
    with pytest.raises(WrongUsage, match="was begun in slabs that take"):
        run(make(tmp_path / "v.h5"))


def test_no_room_on_the_disk_is_said_before_anything_is_done(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(volume_writer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MpxctError, match="GB free"):
        run(make(tmp_path / "v.h5"))
    assert not list(tmp_path.iterdir())


def test_a_tilted_detector_is_levelled_before_its_rows_are_cut(tmp_path):
    tilted = replace(SOURCE, geometry=replace(GEOMETRY, roll_rad=0.03, tilt_u_rad=0.02, tilt_v_rad=-0.02))
    job = replace(JOB, open_source=tilted)
    loaded = load_volume(run(make(tmp_path / "v.h5", TIGHT + 10**7, job=job)))
    expected = in_one_piece(job)
    np.testing.assert_allclose(loaded.values, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_helix_is_the_same_in_slabs_and_views_that_see_nothing_of_one_are_not_read(tmp_path):
    flat = replace(GEOMETRY, rows=16)
    helix = replace(SOURCE, geometry=flat, n_views=160, turns=5.0, lift_mm=14.0, n_bins=2, reads=[])
    job = replace(JOB, open_source=helix)
    loaded = load_volume(run(make(tmp_path / "v.h5", job=job)))
    assert 0 < len(helix.reads) < 0.7 * 5 * helix.n_views
    expected = in_one_piece(replace(JOB, open_source=helix))
    np.testing.assert_allclose(loaded.values, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_long_work_tells_its_time_from_a_trial_and_a_resumed_one_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(slabs, "TRIAL_UPDATES", 0)
    told = []
    work = slabs.reconstruct(JOB, PLANNED, tmp_path / "v.h5", memory_bytes=TIGHT, recipe="a", tell=told.append)
    for step in work:
        if step.stage.startswith("slab 3"):
            work.close()
    run(slabs.reconstruct(JOB, PLANNED, tmp_path / "v.h5", memory_bytes=TIGHT, recipe="a", tell=told.append))
    assert told[0].startswith("in 5 slabs of up to")
    assert told[1].startswith("going on, 2 slabs are done; in 5 slabs")
    assert all("of memory, about" in text for text in told)


def test_costs_are_those_of_a_source_that_takes_its_time(tmp_path):
    class Slow(Ellipsoids):
        def read(self, views, rows):
            n_rows = len(range(self.geometry.rows)[rows])
            time.sleep(0.05 + 0.004 * n_rows)
            return super().read(views, rows)

    source = Slow(geometry=GEOMETRY, n_views=20, solids=SOLIDS)
    costs = slabs.measure_costs(JOB, source, tmp_path / "v.h5", np.s_[0 : JOB.grid.shape[0]])
    n_lines = 5 * GEOMETRY.cols
    assert costs.prepare_s > 0.004 / n_lines * 0.9
    assert costs.unpack_s * n_lines * GEOMETRY.rows + costs.prepare_s * n_lines > 0.04
    assert min(costs.filter_s, costs.write_s) > 0


def test_a_scan_file_is_reconstructed_in_slabs_as_in_one_piece(tmp_path):
    scan = write_scan(tmp_path / "scan.h5", lost=(5, 6, 7))
    whole = run(reconstruct_scan(scan, Recipe(window="hann", truncation="none")))
    opener = ScanOpener.of(open_source(scan), (2, 0))
    assert len(pickle.dumps(opener)) < 2000  # it travels to workers
    job = Job(open_source=opener, grid=whole.grid, window="hann", options={"is_continued": False})
    problem = slabs.problem_of(opener(), whole.grid)
    memory_bytes = budget.layout_of(problem, budget.cut(whole.grid.shape[0], 3), 1, uses_device=False).peak_bytes
    planned = Volume.planned(2, whole.grid, channels=("c", "a"), unit="1/mm")
    work = slabs.reconstruct(job, planned, tmp_path / "v.h5", memory_bytes=memory_bytes, recipe="r")
    loaded = load_volume(run(work))
    assert loaded.provenance.steps[-1] == "3 slabs along z"
    np.testing.assert_allclose(loaded.values, whole.values[[2, 0]], rtol=0, atol=2e-6 * np.abs(whole.values).max())
