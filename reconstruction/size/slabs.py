"""Volumes and scans larger than memory: made slab by slab from blocks of views, and gone on with after a break.

A slab is some slices along z. It is made from all views, of which only the rows that see it are read, a block at a
time; then it is written to its place in the volume file (`reconstruction.size.volume_writer`), and forgotten.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from acquisition.scan_file import read_scan
from calibration.geometry import Geometry
from calibration.levelling import level, upright
from calibration.progress import Progress, retold
from firmware_iface.errors import WrongUsage
from reconstruction.fdk import FdkStream
from reconstruction.projections import LineIntegralReader
from reconstruction.scan_source import ScanSource
from reconstruction.size.budget import (
    Costs,
    Layout,
    Problem,
    cut,
    layout_of,
    on_rows,
    plan_fdk,
    predict_s,
    rows_seen,
    sees,
    sub_grid,
    through_memory,
)
from reconstruction.size.volume_writer import VolumeWriter
from reconstruction.volume import Grid, Volume

TRIAL_VIEWS = 16
TRIAL_REPEATS = 3
TRIAL_SLAB_UPDATES = 10**9
"""A trial takes a strip of the slab that is as wide as it needs for so many updates: half a second."""
TRIAL_BYTES = 1 << 25
TRIAL_UPDATES = 2 * 10**10
"""Work of more updates than this is long enough that its time is predicted first."""


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
class ScanOpener:
    """How to open the line integrals of a scan file, in any process that reaches the file.

    Attributes
    ----------
    path : path
    geometry : Geometry
        Of the camera where its shift is 0.
    pass_index : int
        Which pass over the object.
    bins : tuple of int
        Which bins, from 0, in their order.
    allow_partial : bool
        Take also a scan that was interrupted.
    count_rate_kev : tuple of float
        At which thresholds the scan's own calibration corrects the count rate; nothing: it does not.
    is_linearised : bool
        Whether it takes out the beam's hardening.
    has_no_flats : bool
        Whether its calibration's flat field stands in for flats of its own.
    """

    path: Path
    geometry: Geometry
    pass_index: int
    bins: tuple[int, ...]
    allow_partial: bool = False
    count_rate_kev: tuple[float, ...] = ()
    is_linearised: bool = False
    has_no_flats: bool = False

    @classmethod
    def of(cls, source: ScanSource, bins: Sequence[int]) -> ScanOpener:
        """Return how to open again what is open here."""
        return cls(
            path=source.scan.path.absolute(),
            geometry=source.geometry,
            pass_index=source.pass_index,
            bins=tuple(int(index) for index in bins),
            allow_partial=True,  # whether it may be one was asked before
            count_rate_kev=source.thresholds_kev if source.count_rate else (),
            is_linearised=source.thickness is not None,
            has_no_flats=source.flat is not None,
        )

    def __call__(self) -> Source:
        """Open it."""
        scan = read_scan(self.path, allow_partial=self.allow_partial)
        known = scan.calibration
        reader = LineIntegralReader(
            scan,
            self.geometry,
            pass_index=self.pass_index,
            count_rate=known.count_rate.of_pass(self.count_rate_kev) if known and known.count_rate else None,
            thickness=known.thickness if known and self.is_linearised else None,
            flat=known.flat_field if known and self.has_no_flats else None,
        )
        return _ChosenBins(reader, list(self.bins))


class _ChosenBins:
    """Some bins of a reader."""

    def __init__(self, reader: LineIntegralReader, bins: list[int]) -> None:
        self._reader, self._bins = reader, bins
        self.shape = (len(bins), *reader.shape[1:])
        self.angles_rad, self.lifts_mm, self.geometry = reader.angles_rad, reader.lifts_mm, reader.geometry

    def read(self, views: slice, rows: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        values, is_estimated = self._reader.read(views, rows)
        return values[self._bins], is_estimated[self._bins]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be reconstructed, and how; small, so that it can travel to other processes.

    Attributes
    ----------
    open_source : callable
        Returns a `Source`; `ScanOpener` is one.
    grid : Grid
    window : str
        One of `reconstruction.ramp.WINDOWS`.
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
    job: Job,
    planned: Volume,
    path: str | Path,
    *,
    memory_bytes: int,
    device_bytes: int | None = None,
    recipe: str,
    tell: Callable[[str], object] | None = None,
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
    tell : callable
        Gets in words how the work is cut, and, if it is long, how long it will take.

    Returns
    -------
    path : Path
        Of the volume file.
    """
    yield Progress("reading", 0, 1)
    source = job.open_source()
    writer, layout = open_writer(job, source, planned, path, memory_bytes, device_bytes, recipe)
    left, n_slabs, n_views = writer.unfinished, len(writer.records), len(source.angles_rad)
    if tell is not None:
        problem = problem_of(source, job.grid)
        if problem.n_updates > TRIAL_UPDATES and left:
            costs = measure_costs(job, source, writer.partial, writer.slab(left[0]))
            seconds = predict_s(problem, [writer.slab(number) for number in left], layout.views_per_block, costs)
            layout = replace(layout, predicted_s=seconds)
        tell((f"going on, {n_slabs - len(left)} slabs are done; " if writer.is_resumed else "") + layout.words())
    yield Progress("reading", 1, 1)
    for number in left:
        work = make_slab(job, source, writer.slab(number), layout.views_per_block)
        slab = yield from retold(work, partial(_of_all, number, n_slabs, n_views))
        writer.write(number, slab.values, n_values=slab.n_values, n_estimated=slab.n_estimated)
        del slab  # before the next one is begun
    return writer.finish((*planned.provenance.steps, *words_of(writer)))


def _of_all(number: int, n_slabs: int, n_views: int, step: Progress) -> Progress:
    """Tell a step of one slab as one of all slabs."""
    return Progress(f"slab {number + 1} of {n_slabs}", number * n_views + step.done, n_slabs * n_views)


def open_writer(
    job: Job,
    source: Source,
    planned: Volume,
    path: str | Path,
    memory_bytes: int,
    device_bytes: int | None,
    recipe: str,
    *,
    least_slabs: int = 1,
) -> tuple[VolumeWriter, Layout]:
    """Cut the work and make the file, or go on with the file that is there, whose cut must fit the memory too."""
    problem = problem_of(source, job.grid)
    layout = plan_fdk(problem, memory_bytes, device_bytes=device_bytes)
    slabs = layout.slabs if len(layout.slabs) >= least_slabs else cut(job.grid.shape[0], least_slabs)
    writer = VolumeWriter(path, planned, slabs, layout.views_per_block, recipe)
    layout = layout_of(
        problem,
        tuple(map(writer.slab, range(len(writer.records)))),
        writer.records[0].views_per_block,
        uses_device=device_bytes is not None,
    )
    if layout.peak_bytes > memory_bytes or layout.device_bytes > (device_bytes or 0):
        raise WrongUsage(
            f"{writer.partial} was begun in slabs that take {layout.peak_bytes / 1e9:.3g} GB of memory; the limit is "
            f"{memory_bytes / 1e9:.3g} GB",
            hint="give it more memory, or delete it and begin again",
        )
    return writer, layout


def measure_costs(job: Job, source: Source, file: Path, slab: slice) -> Costs:
    """Measure on the job itself what its kinds of work cost here: some views into a strip of one slab.

    Parameters
    ----------
    file : path
        Of the volume: what writing costs is measured beside it.
    slab : slice
        One of those that the work is cut into. An update costs the more the fewer slices a slab has: what is the same
        for a whole column of voxels is reckoned once for each slab.
    """
    n_bins, n_views, _, n_cols = source.shape
    n = max(min(TRIAL_VIEWS, n_views // (TRIAL_REPEATS + 1)), 1)
    blocks = [slice(first, first + n) for first in range(0, min((TRIAL_REPEATS + 1) * n, n_views - n + 1), n)]
    whole = sub_grid(job.grid, slab)
    n_slices, n_y, n_x = whole.shape
    strip = replace(whole, shape=(n_slices, min(max(TRIAL_SLAB_UPDATES // (n_bins * n * n_slices * n_x), 1), n_y), n_x))
    rows = rows_seen(upright(source.geometry), whole, source.lifts_mm)
    values, _ = read_upright(source, blocks[0], rows)

    def added_s(grid: Grid) -> float:
        stream = open_stream(job, source, grid, rows)
        return _usual_seconds(lambda views: stream.add(values, views), blocks)

    one_row = slice(rows.start, rows.start + 1)
    seconds_one = _usual_seconds(lambda views: read_upright(source, views, one_row), blocks)
    seconds_rows = _usual_seconds(lambda views: read_upright(source, views, rows), blocks)
    line, n_rows = n_bins * n * n_cols, rows.stop - rows.start
    prepare_s = max(seconds_rows - seconds_one, 0.0) / (line * max(n_rows - 1, 1))
    unpack_s = max(seconds_one - prepare_s * line, 0.0) / (line * source.geometry.rows)
    filter_s = added_s(replace(strip, shape=(n_slices, 1, 1))) / (line * n_rows)
    update_s = max(added_s(strip) - filter_s * line * n_rows, 0.0) / (n_bins * n * math.prod(strip.shape))
    with tempfile.TemporaryFile(dir=file.absolute().parent) as trial_file:

        def write(_: slice) -> None:
            trial_file.write(bytes(TRIAL_BYTES))
            trial_file.flush()
            os.fsync(trial_file.fileno())

        write_s = 4 * _usual_seconds(write, blocks) / TRIAL_BYTES
    return Costs(
        unpack_s=unpack_s,
        prepare_s=prepare_s,
        filter_s=filter_s,
        update_s=update_s / through_memory(n),
        write_s=write_s,
    )


def _usual_seconds(work: Callable[[slice], object], blocks: Sequence[slice]) -> float:
    """Return what a block of views takes, the median of all but the first, in which things are still warming up."""
    seconds = []
    for views in blocks:
        began_s = time.perf_counter()
        work(views)
        seconds.append(time.perf_counter() - began_s)
    return statistics.median(seconds[1:] or seconds)


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
    stream = open_stream(job, source, grid, rows)
    n_views, n_values, n_estimated = len(source.angles_rad), 0, 0
    yield Progress("back-projection", 0, n_views)
    for first in range(0, n_views, views_per_block):
        views = slice(first, min(first + views_per_block, n_views))
        if not sees(geometry, grid, source.lifts_mm[views]):
            continue  # along a helix most views see nothing of a slab, and add nothing to it
        values, is_estimated = read_upright(source, views, rows)
        n_values, n_estimated = n_values + values.size, n_estimated + int(np.count_nonzero(is_estimated))
        stream.add(values, views)
        yield Progress("back-projection", views.stop, n_views)
    return Slab(stream.result(), n_values, n_estimated)


def open_stream(job: Job, source: Source, grid: Grid, rows: slice) -> FdkStream:
    """Begin the sum of all views into a grid, from some rows of the upright detector."""
    return FdkStream(
        source.angles_rad,
        on_rows(upright(source.geometry), rows),
        grid,
        source.shape[0],
        window=job.window,
        use_gpu=job.use_gpu,
        lifts_mm=source.lifts_mm,
        **job.options,
    )


def read_upright(source: Source, views: slice, rows: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read rows of the upright detector; where the detector is tilted, whole views are read for them."""
    if not source.geometry.is_tilted:
        return source.read(views, rows)
    values, is_estimated = source.read(views, np.s_[:])
    values = np.asarray(level(values, source.geometry), np.float32)
    return np.ascontiguousarray(values[..., rows, :]), is_estimated[..., rows, :]
