"""What a cluster of up to a thousand workers would take, on paper, from what tasks cost here.

    python tests/benchmarks/scaling.py --size 2048

Measured here: what each kind of work costs (`slabs.measure_costs`, on a scan file of one counter that is made for it),
and what Dask's scheduler takes for a task that does nothing. Assumed, and printed: how fast a worker and all of them
together reach the shared file system. A worker is a machine like this one.

The model (times in s; P workers, V blocks of views, S slabs):
    views    ceil(V / P) x (unpack, prepare, spool a block), or their bytes through the file system, if that is longer
    slabs    ceil(S / P) x (read the rows it sees, filter, back-project, write), or their bytes, if that is longer
    serial   the scheduler's time for V + S tasks, and one synchronised record for each slab
Thinner slabs keep more workers busy, but the rows that a slab sees overlap those of its neighbours, the more the wider
the cone; the model takes the number of slabs that is fastest. Amdahl's share is what stays for any number of workers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from acquisition.scan import ImageKey, Readout
from acquisition.scan_writer import ScanWriter
from acquisition.steps import Pose
from calibration.geometry import Geometry
from firmware_iface.frame import Frame
from reconstruction.size import budget, slabs
from reconstruction.size.budget import Costs
from reconstruction.size.cluster import SLABS_PER_WORKER
from reconstruction.size.slabs import Job, ScanOpener
from reconstruction.volume import Grid

WORKERS = (1, 2, 4, 10, 30, 100, 300, 1000)
VIEWS_PER_BLOCK = 32
TRIAL_PIXELS = 256
TRIAL_VIEWS = 96
N_TASKS = 300


def geometry_of(size: int) -> Geometry:
    """The scan of P2 in the issue, with as many pixels as voxels."""
    return Geometry(
        source_to_detector_mm=1500.0,
        source_to_object_mm=1000.0,
        pitch_mm=100.0 / size * 1.5,
        rows=size,
        cols=size,
    )


def grid_of(size: int) -> Grid:
    return Grid(shape=(size, size, size), voxel_mm=100.0 / size)


def costs_here(folder: Path, size: int) -> dict[int, Costs]:
    """Measure on a scan file of Poisson counts, for slabs of each thickness: thin ones cost more for each voxel."""
    geometry = geometry_of(size)
    readout = Readout(
        shape=(1, size, size), depth_bits=12, thresholds=(1,), thresholds_kev=(20.0,), pitch_mm=geometry.pitch_mm
    )
    rng = np.random.default_rng(0)
    images = rng.poisson(400, (8, 1, size, size)).astype(readout.dtype)
    with ScanWriter(folder / "scan.h5", readout, n_frames=TRIAL_VIEWS + 2) as writer:
        for number in range(TRIAL_VIEWS + 2):
            key = ImageKey.FLAT if number < 2 else ImageKey.PROJECTION
            frame = Frame(
                counts=images[number % 8],
                thresholds=readout.thresholds,
                sequence=number,
                timestamp_ns=number,
                exposure_ns=10**9,
                run_id=1,
            )
            writer.write(frame, key, Pose(angle_rad=2 * np.pi * max(number - 2, 0) / TRIAL_VIEWS))
        writer.finish()
    job = Job(
        open_source=ScanOpener(path=folder / "scan.h5", geometry=geometry, pass_index=0, bins=(0,)), grid=grid_of(size)
    )
    thicknesses = [size // n for n in _cuts(size)]
    slabs.measure_costs(job, job.open_source(), folder / "volume.h5", np.s_[0:size])  # compiles
    return {
        thickness: slabs.measure_costs(
            job, job.open_source(), folder / "volume.h5", np.s_[(size - thickness) // 2 : (size + thickness) // 2]
        )
        for thickness in thicknesses
    }


def scheduler_s_per_task() -> float:
    """Measure what a task costs that does nothing, with one worker that is in another process."""
    from distributed import Client, LocalCluster, wait

    with (
        LocalCluster(n_workers=1, threads_per_worker=4, processes=True, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        wait(client.map(abs, range(20), pure=False))
        began_s = time.perf_counter()
        wait(client.map(abs, range(N_TASKS), pure=False))
        return (time.perf_counter() - began_s) / N_TASKS


def rows_of_slabs(size: int, n_slabs: int) -> tuple[int, int, int]:
    """Return how many slabs there are, how many rows the widest sees, and all together."""
    geometry, grid = geometry_of(size), grid_of(size)
    cut = budget.cut(size, n_slabs)
    rows = [budget.rows_seen(geometry, budget.sub_grid(grid, slab)) for slab in cut]
    counts = [each.stop - each.start for each in rows]
    return len(cut), max(counts), sum(counts)


def predict(
    size: int, n_workers: int, costs: dict[int, Costs], scheduler_s: float, assumed: dict[str, float]
) -> dict[str, float | int]:
    """Return the times of the fastest cut for so many workers."""
    return min(
        (
            _predict(size, n_workers, n_slabs, costs[min(size // n_slabs, max(costs))], scheduler_s, assumed)
            for n_slabs in _cuts(size)
        ),
        key=lambda told: told["seconds"],
    )


def _cuts(size: int) -> list[int]:
    return sorted({min(2**k, size) for k in range(12)})


def _predict(
    size: int, n_workers: int, n_slabs: int, costs: Costs, scheduler_s: float, assumed: dict[str, float]
) -> dict[str, float | int]:
    one, all_ = assumed["worker_bytes_per_s"], assumed["file_system_bytes_per_s"]
    views_per_task = max(min(VIEWS_PER_BLOCK, size // (SLABS_PER_WORKER * n_workers)), 1)
    n_blocks = math.ceil(size / views_per_task)
    block = views_per_task * size * size
    view_task_s = block * (costs.unpack_s + costs.prepare_s + 5 / one)
    views_s = max(math.ceil(n_blocks / n_workers) * view_task_s, n_blocks * block * (2 + 5) / all_)
    n_slabs, most_rows, rows = rows_of_slabs(size, n_slabs)
    thickness = math.ceil(size / n_slabs)
    update_s = costs.update_s * budget.through_memory(VIEWS_PER_BLOCK)
    slab_task_s = most_rows * size * size * (costs.filter_s + 5 / one) + thickness * size * size * (
        size * update_s + max(costs.write_s, 4 / one)
    )
    slabs_s = max(math.ceil(n_slabs / n_workers) * slab_task_s, (rows * size * size * 5 + size**3 * 4) / all_)
    serial_s = (n_blocks + n_slabs) * scheduler_s + n_slabs * assumed["record_s"]
    return {
        "seconds": views_s + slabs_s + serial_s,
        "views_s": views_s,
        "slabs_s": slabs_s,
        "serial_s": serial_s,
        "n_slabs": n_slabs,
        "rows_read_over_rows": rows / size,
    }


def measure(size: int, assumed: dict[str, float]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        costs = costs_here(Path(folder), TRIAL_PIXELS)
    scheduler_s = scheduler_s_per_task()
    table = {n: predict(size, n, costs, scheduler_s, assumed) for n in WORKERS}
    alone_s = table[1]["seconds"]
    endless_s = predict(size, 10**9, costs, scheduler_s, assumed)["seconds"]
    for n, told in table.items():
        told["speedup"] = alone_s / told["seconds"]
        told["efficiency"] = alone_s / told["seconds"] / n
    return {
        "size": size,
        "costs": {f"slabs of {thickness}": asdict(told) for thickness, told in costs.items()},
        "scheduler_ms_per_task": 1e3 * scheduler_s,
        "assumed": assumed,
        "amdahl_share": endless_s / alone_s,
        "workers": {str(n): told for n, told in table.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--worker-gb-per-s", type=float, default=1.0, help="of one worker from and to the file system")
    parser.add_argument("--file-system-gb-per-s", type=float, default=20.0, help="of all workers together")
    parser.add_argument("--record-ms", type=float, default=5.0, help="one small synchronised write")
    parser.add_argument("--quick", action="store_true", help="it is quick by itself")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    assumed = {
        "worker_bytes_per_s": 1e9 * options.worker_gb_per_s,
        "file_system_bytes_per_s": 1e9 * options.file_system_gb_per_s,
        "record_s": 1e-3 * options.record_ms,
    }
    told = measure(options.size, assumed)
    if options.json:
        print(json.dumps(told))
        return
    print(f"{told['size']}^3 from {told['size']} views of {told['size']}^2")
    for slab, costs in told["costs"].items():
        print(f"costs in {slab}, s:", ", ".join(f"{name} {value:.2g}" for name, value in costs.items()))
    print(f"scheduler: {told['scheduler_ms_per_task']:.2f} ms a task; assumed: {told['assumed']}")
    heads = ("workers", "time", "speed-up", "share", "slabs", "views s", "slabs s", "serial s")
    print(" ".join(head.rjust(width) for head, width in zip(heads, (8, 10, 9, 6, 6, 9, 9, 9), strict=True)))
    for n, row in told["workers"].items():
        print(
            f"{n:>8} {budget.duration(row['seconds']):>10} {row['speedup']:>9.1f} {row['efficiency']:>6.0%} "
            f"{row['n_slabs']:>6} {row['views_s']:>9.1f} {row['slabs_s']:>9.1f} {row['serial_s']:>9.1f}"
        )
    print(f"with any number of workers {1 / told['amdahl_share']:.0f} times as fast as one, and no more")


if __name__ == "__main__":
    main()
