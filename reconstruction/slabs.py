"""Volumes and scans larger than memory: made slab by slab from blocks of views, and gone on with after a break.

A slab is some slices along z. It is made from all views, of which only the rows that see it are read, a block at a
time; then it is written to its place in the volume file (`reconstruction.volume_writer`), and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from acquisition.scan_file import read_scan
from calibration.geometry import Geometry
from calibration.levelling import level, upright
from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from reconstruction.budget import (
    Problem,
    layout_of,
    on_rows,
    plan_fdk,
    rows_seen,
    sub_grid,
)
from reconstruction.fdk import FdkStream
from reconstruction.projections import LineIntegralReader
from reconstruction.volume import Grid, Volume
from reconstruction.volume_writer import VolumeWriter


class Source(Protocol):
    """Line integrals that are read a part at a time; `LineIntegralReader` is one.

    Attributes
    ----------
    shape : tuple of int
        (n_bins, n_views, rows, cols).
    angles_rad, lifts_mm : (n_views,) float64
    geometry : Geometry
    """

    shape: tuple[int, int, int, int]
    angles_rad: NDArray[np.float64]
    lifts_mm: NDArray[np.float64]
    geometry: Geometry

    def read(self, views: slice, rows: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return (n_bins, n_views, rows, cols) values and which of them are estimated."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanSource:
    """How to open the line integrals of a scan file, in any process that reaches the file.

    Attributes
    ----------
    path : path
    geometry : Geometry
        Of the camera where its shift is 0.
    pass_index : int
        Which pass over the object.
    allow_partial : bool
        Take also a scan that was interrupted.
    corrects_count_rate, is_linearised : bool
        Whether the scan's own calibration corrects the count rate, and takes out the beam's hardening.
    """

    path: Path
    geometry: Geometry
    pass_index: int = 0
    allow_partial: bool = False
    corrects_count_rate: bool = False
    is_linearised: bool = False

    def __call__(self) -> LineIntegralReader:
        """Open it."""
        scan = read_scan(self.path, allow_partial=self.allow_partial)
        known = scan.calibration
        return LineIntegralReader(
            scan,
            self.geometry,
            pass_index=self.pass_index,
            count_rate=known.count_rate if known and self.corrects_count_rate else None,
            thickness=known.thickness if known and self.is_linearised else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be reconstructed, and how; small, so that it can travel to other processes.

    Attributes
    ----------
    open_source : callable
        Returns a `Source`; `ScanSource` is one.
    grid : Grid
    window : str
        One of `reconstruction.fdk.WINDOWS`.
    use_gpu : bool
    options : dict
        What else `FdkStream` is to know.
    """

    open_source: Callable[[], Source]
    grid: Grid
    window: str = "ram-lak"
    use_gpu: bool = False
    options: dict[str, Any] = field(default_factory=dict)


class Slab(NamedTuple):
    """A part of a volume, and what it was made from.

    Attributes
    ----------
    values : (n_bins, n_slices, y, x) float32, 1/mm
    n_values, n_estimated : int
        Line integrals that were read for it, and those among them that were not measured.
    """

    values: NDArray[np.float32]
    n_values: int
    n_estimated: int


def problem_of(source: Source, grid: Grid) -> Problem:
    """Return in numbers what is to be done."""
    return Problem(n_bins=source.shape[0], geometry=source.geometry, grid=grid, lifts_mm=source.lifts_mm)


def reconstruct(
    job: Job, planned: Volume, path: str | Path, *, memory_bytes: int, device_bytes: int | None = None, recipe: str
) -> Generator[Progress, None, Path]:
    """Reconstruct into a file by filtered back-projection, slab by slab.

    Breaking it off at any moment, in whatever way, leaves a part that the same call goes on with.

    Parameters
    ----------
    planned : Volume
        What the file says beside its values: `Volume.planned`.
    memory_bytes, device_bytes
        As of `budget.plan_fdk`.
    recipe : str
        Tells this reconstruction from all others: a part that was made by another is refused.

    Returns
    -------
    path : Path
        Of the volume file.
    """
    yield Progress("reading", 0, 1)
    source = job.open_source()
    writer = open_writer(job, source, planned, path, memory_bytes, device_bytes, recipe)
    yield Progress("reading", 1, 1)
    n_slabs, n_views = len(writer.records), len(source.angles_rad)
    for number in writer.unfinished:
        work = make_slab(job, source, writer.slab(number), writer.records[number].views_per_block)
        stage = f"slab {number + 1} of {n_slabs}"
        try:
            while True:
                step = next(work)
                yield Progress(stage, number * n_views + step.done, n_slabs * n_views)
        except StopIteration as end:
            slab: Slab = end.value
        writer.write(number, slab.values, n_values=slab.n_values, n_estimated=slab.n_estimated)
        del slab  # before the next one is begun
    return writer.finish((*planned.provenance.steps, *words_of(writer)))


def open_writer(
    job: Job,
    source: Source,
    planned: Volume,
    path: str | Path,
    memory_bytes: int,
    device_bytes: int | None,
    recipe: str,
) -> VolumeWriter:
    """Cut the work and make the file, or go on with the file that is there, whose cut must fit the memory too."""
    problem = problem_of(source, job.grid)
    layout = plan_fdk(problem, memory_bytes, device_bytes=device_bytes)
    writer = VolumeWriter(path, planned, layout.slabs, layout.views_per_block, recipe)
    views_per_block = writer.records[0].views_per_block
    begun = layout_of(
        problem,
        tuple(map(writer.slab, range(len(writer.records)))),
        views_per_block,
        uses_device=device_bytes is not None,
    )
    if begun.peak_bytes > memory_bytes or begun.device_bytes > (device_bytes or 0):
        raise WrongUsage(
            f"{writer.partial} was begun in slabs that take {begun.peak_bytes / 1e9:.3g} GB of memory; the limit is "
            f"{memory_bytes / 1e9:.3g} GB",
            hint="give it more memory, or delete it and begin again",
        )
    return writer


def words_of(writer: VolumeWriter) -> tuple[str, ...]:
    """Say how a volume was made of its slabs."""
    n_values = sum(record.n_values for record in writer.records)
    n_estimated = sum(record.n_estimated for record in writer.records)
    return (
        f"{n_estimated / max(n_values, 1):.2%} of the line integrals estimated",
        f"{len(writer.records)} slabs along z",
    )


def make_slab(job: Job, source: Source, slab: slice, views_per_block: int) -> Generator[Progress, None, Slab]:
    """Reconstruct some slices, reading only what they need."""
    geometry, grid = upright(source.geometry), sub_grid(job.grid, slab)
    rows = rows_seen(geometry, grid, source.lifts_mm)
    stream = FdkStream(
        source.angles_rad,
        on_rows(geometry, rows),
        grid,
        source.shape[0],
        window=job.window,
        use_gpu=job.use_gpu,
        lifts_mm=source.lifts_mm,
        **job.options,
    )
    n_views, n_values, n_estimated = len(source.angles_rad), 0, 0
    yield Progress("back-projection", 0, n_views)
    for first in range(0, n_views, views_per_block):
        views = slice(first, min(first + views_per_block, n_views))
        values, is_estimated = read_upright(source, views, rows)
        n_values, n_estimated = n_values + values.size, n_estimated + int(np.count_nonzero(is_estimated))
        stream.add(values, views)
        yield Progress("back-projection", views.stop, n_views)
    return Slab(stream.result(), n_values, n_estimated)


def read_upright(source: Source, views: slice, rows: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read rows of the upright detector; where the detector is tilted, whole views are read for them."""
    if not source.geometry.is_tilted:
        return source.read(views, rows)
    values, is_estimated = source.read(views, np.s_[:])
    values = np.asarray(level(values, source.geometry), np.float32)
    return np.ascontiguousarray(values[..., rows, :]), is_estimated[..., rows, :]
