"""The slabs of a volume on the processes of a Dask cluster; the only door to dask.

No line integral and no voxel goes through the scheduler. Workers open the scan file themselves and write to the volume
file themselves (`volume_writer.SlabFile`); what travels is the job, which is small, and a checksum back. So all of
them, and whoever starts the work, must see both files under the same paths, on a POSIX file system that lets several
machines write to different places of one file (Lustre, GPFS, BeeGFS, CephFS, NFS). What a worker was doing when it was
killed is done again by another; it would have written the same bytes.

A scan file unpacks whole frames, whatever rows are asked for. Where there are many slabs, views are therefore prepared
once (view tasks), and spooled to a file beside the volume, in which rows can be read by themselves (slab tasks).
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.geometry import Geometry
from calibration.levelling import upright
from calibration.progress import Progress, finished
from firmware_iface.errors import MpxctError, WrongUsage
from reconstruction.size.slabs import Job, Source, make_slab, open_writer, read_upright, words_of
from reconstruction.size.volume_writer import SlabFile
from reconstruction.volume import Volume

SLABS_PER_WORKER = 2
"""At least so many, lest all wait for the last one."""
SPOOL_FROM_SLABS = 8
"""From so many slabs on, views are prepared once instead of once for each slab."""
RETRIES = 2
"""How often a task that failed is tried again; one whose worker was killed is tried again by Dask itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """A file of upright line integrals, rows side by side, and which of them are estimated behind them.

    Attributes
    ----------
    path : Path
    shape : tuple of int
        (n_bins, n_views, rows, cols).
    geometry : Geometry
        Without tilts.
    angles_rad, lifts_mm : tuple of float
    """

    path: Path
    shape: tuple[int, int, int, int]
    geometry: Geometry
    angles_rad: tuple[float, ...]
    lifts_mm: tuple[float, ...]

    def __call__(self) -> SpooledSource:
        """Open it."""
        return SpooledSource(self)

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return 5 * int(np.prod(self.shape))

    def write(self, views: slice, values: NDArray[np.float32], is_estimated: NDArray[np.bool_]) -> None:
        """Write some views to the disk."""
        _, n_views, n_rows, n_cols = self.shape
        with self.path.open("r+b") as file:
            for size, begin, array in ((4, 0, values), (1, 4 * int(np.prod(self.shape)), is_estimated)):
                for number, of_bin in enumerate(array):
                    file.seek(begin + size * (number * n_views + views.start) * n_rows * n_cols)
                    file.write(np.ascontiguousarray(of_bin).data.cast("B"))
            file.flush()
            os.fsync(file.fileno())


class SpooledSource:
    """The line integrals of a spool; a `slabs.Source`."""

    def __init__(self, spool: Spool) -> None:
        self.shape, self.geometry = spool.shape, spool.geometry
        self.angles_rad, self.lifts_mm = np.asarray(spool.angles_rad), np.asarray(spool.lifts_mm)
        self._values = np.memmap(spool.path, np.float32, "r", 0, spool.shape)
        self._is_estimated = np.memmap(spool.path, np.bool_, "r", 4 * self._values.size, spool.shape)

    def read(self, views: slice, rows: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return some views and rows, and which values are estimated."""
        return np.array(self._values[:, views, rows]), np.array(self._is_estimated[:, views, rows])


def reconstruct(
    job: Job,
    planned: Volume,
    path: str | Path,
    *,
    address: str,
    memory_bytes: int,
    device_bytes: int | None = None,
    recipe: str,
    tell: Callable[[str], object] | None = None,
    spools: bool | None = None,
) -> Generator[Progress, None, Path]:
    """Reconstruct into a file as `slabs.reconstruct` does, on the workers of a cluster.

    A part that was broken off is gone on with here or there, whichever made it.

    Parameters
    ----------
    address : str
        Of a Dask scheduler, as "tcp://host:8786"; or "local:N": N processes on this machine.
    memory_bytes, device_bytes
        Of each worker.
    spools : bool, optional
        Prepare views once, and keep them in a file beside the volume until it is done; None: from
        `SPOOL_FROM_SLABS` slabs on, where the disk has room.

    Raises
    ------
    WrongUsage
        Dask is not installed, or the address is none.
    MpxctError
        The cluster does not answer, or a task kills its workers again and again.
    """
    path = Path(path).absolute()
    yield Progress("reading", 0, 1)
    source = job.open_source()
    with _client(address) as client:
        n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
        writer, layout = open_writer(
            job,
            source,
            planned,
            path,
            memory_bytes,
            device_bytes,
            recipe,
            least_slabs=SLABS_PER_WORKER * n_workers,
        )
        left = writer.unfinished
        if tell is not None:
            tell(f"{n_workers} workers at {address}, each {layout.words()}")
        yield Progress("reading", 1, 1)
        spool = _spool_of(source, path, recipe, layout.views_per_block)
        if spools is None:
            room = shutil.disk_usage(path.parent).free
            spools = spool.path.exists() or (len(left) >= SPOOL_FROM_SLABS and spool.n_bytes < room)
        if spools and left:
            if not spool.path.exists():
                yield from _fill(client, job, spool, layout.views_per_block, n_workers)
            job = replace(job, open_source=spool)
        tasks = [(number, job, writer.file, writer.slab(number), layout.views_per_block) for number in left]
        for done, (number, checksum, n_values, n_estimated) in enumerate(_results(client, slab_task, tasks), 1):
            writer.record(number, checksum, n_values=n_values, n_estimated=n_estimated)
            yield Progress("slabs", len(writer.records) - len(left) + done, len(writer.records))
    spool.path.unlink(missing_ok=True)
    return writer.finish((*planned.provenance.steps, *words_of(writer)))


def slab_task(number: int, job: Job, file: SlabFile, slab: slice, views_per_block: int) -> tuple[int, int, int, int]:
    """Make a slab and write it, on a worker; return its number and what `VolumeWriter.record` wants to know."""
    made = finished(make_slab(job, _opened(job.open_source), slab, views_per_block))
    return number, file.write(slab, made.values), made.n_values, made.n_estimated


def view_task(job: Job, spool: Spool, views: slice) -> int:
    """Prepare some views and spool them, on a worker; return how many."""
    spool.write(views, *read_upright(_opened(job.open_source), views, slice(0, spool.shape[2])))
    return views.stop - views.start


@functools.lru_cache(maxsize=2)
def _opened(open_source: Callable[[], Source]) -> Source:
    """Keep a source open from task to task; its flats and bad pixels are looked at once."""
    return open_source()


def _spool_of(source: Source, path: Path, recipe: str, views_per_block: int) -> Spool:
    mark = hashlib.sha256(f"{recipe} {views_per_block}".encode()).hexdigest()[:8]
    return Spool(
        path=path.with_name(f"{path.stem}.views-{mark}"),
        shape=source.shape,
        geometry=upright(source.geometry),
        angles_rad=tuple(source.angles_rad.tolist()),
        lifts_mm=tuple(source.lifts_mm.tolist()),
    )


def _fill(client: Any, job: Job, spool: Spool, views_per_block: int, n_workers: int) -> Generator[Progress, None, None]:
    """Have all views spooled; the file gets its name when it is whole."""
    filling = replace(spool, path=spool.path.with_name(spool.path.name + ".partial"))
    with filling.path.open("wb") as file:
        file.truncate(spool.n_bytes)
    n_views = spool.shape[1]
    step = max(min(views_per_block, n_views // (SLABS_PER_WORKER * n_workers)), 1)
    tasks = [(job, filling, slice(first, min(first + step, n_views))) for first in range(0, n_views, step)]
    n_done = 0
    yield Progress("views", 0, n_views)
    for n_more in _results(client, view_task, tasks):
        n_done += n_more
        yield Progress("views", n_done, n_views)
    filling.path.replace(spool.path)


def _results(client: Any, task: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> Iterator[Any]:
    """Yield what tasks return, in the order in which they end; whoever stops early ends the others."""
    from distributed import KilledWorker, as_completed

    futures = [client.submit(task, *each, pure=False, retries=RETRIES) for each in arguments]
    try:
        for future in as_completed(futures):
            yield future.result()
    except KilledWorker as error:
        raise MpxctError(
            f"a task of the cluster killed every worker that tried it: {error}",
            hint="give each worker less to hold: a smaller --memory; its log tells more",
        ) from error
    finally:
        client.cancel(futures, force=True)


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start one of processes on this machine for as long as it is needed."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise WrongUsage("a cluster was asked for, but Dask is not installed", hint="install mpxct[cluster]") from error
    if not address.startswith("local:"):
        try:
            client = Client(address, timeout=10)
        except (OSError, ValueError, TypeError) as error:
            raise MpxctError(
                f"no Dask scheduler answers at {address}: {error}",
                hint="give its address, as tcp://host:8786, or local:2",
            ) from error
        with client:
            if not client.scheduler_info(n_workers=-1)["workers"]:
                raise MpxctError(f"the cluster at {address} has no workers", hint=f"start some: dask worker {address}")
            yield client
        return
    count = address.removeprefix("local:")
    if not count.isdigit() or int(count) < 1:
        raise WrongUsage(f"the cluster is {address!r}; allowed: local:N with N of at least 1, or tcp://host:port")
    with (
        LocalCluster(
            n_workers=int(count),
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",  # there is always one; here, and on any free port
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
