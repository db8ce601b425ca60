"""How a reconstruction is cut so that it fits into memory, and how long it will take: told before it begins.

A volume is cut along z into slabs, each made from all views, which are read in blocks. What a slab takes in memory
is its voxels and one block of views with what is made of it on the way; both are counted here, and a test holds the
peak of a real process against the count.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.geometry import Geometry
from calibration.levelling import upright
from firmware_iface.errors import WrongUsage
from reconstruction.volume import Grid

DEFAULT_SHARE = 0.7
"""Of the memory that is free now, what a reconstruction takes unless it is told."""
BASE_BYTES = 350_000_000
"""A process with Python, its libraries and the compiled kernels, before there is any data."""
DEVICE_BASE_BYTES = 600_000_000
"""The same on a GPU: CUDA's context and the kernels."""
SLAB_COPIES = 2
"""A slab as it is summed, and as it is written."""
SLICE_MULTIPLE = 16
"""Slabs are whole multiples of what the kernel sums together, where they are thicker."""
SAMPLE_BYTES = 56
"""Of one line integral on its way: counts, bins, open beam, logarithm, then the padded row and its spectrum."""
DEVICE_SAMPLE_BYTES = 40
FRAME_BYTES = 16
"""Of one pixel and counter of the detector: a frame as it is unpacked, flats, bad pixels."""
MARGIN_ROWS = 112
"""Rows of zeros that the kernel wants around those of the detector."""
VIEWS_PER_BLOCK = (32, 16, 8, 4, 2, 1)

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds that each kind of work takes on this machine; `reconstruction.size.slabs.measure_costs` measures them.

    Attributes
    ----------
    unpack_s : float
        Of reading one pixel of one counter from the scan file; whole frames are unpacked whatever rows are wanted.
    prepare_s : float
        Of making one line integral of counts.
    filter_s : float
        Of filtering one line integral.
    update_s : float
        Of adding one view to one voxel of one bin.
    write_s : float
        Of bringing one voxel to the disk.
    """

    unpack_s: float
    prepare_s: float
    filter_s: float
    update_s: float
    write_s: float


NOMINAL = Costs(unpack_s=2e-9, prepare_s=2e-8, filter_s=2e-8, update_s=5e-10, write_s=4e-9)
"""Two cores of 2021: good enough to choose a cut by, not to promise a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """What is to be reconstructed, in numbers.

    Attributes
    ----------
    n_bins : int
    geometry : Geometry
    grid : Grid
    lifts_mm : (n_views,) float64
    """

    n_bins: int
    geometry: Geometry
    grid: Grid
    lifts_mm: NDArray[np.float64]

    @property
    def n_views(self) -> int:
        """Number of views."""
        return len(self.lifts_mm)

    @property
    def n_updates(self) -> int:
        """How often a voxel of a bin gets a view."""
        return self.n_bins * self.n_views * int(np.prod(self.grid.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the work is cut.

    Attributes
    ----------
    slabs : tuple of slice
        Along z; together they are the volume.
    views_per_block : int
    peak_bytes, device_bytes : int
        Predicted, of the process and of the GPU.
    predicted_s : float or None
        Predicted; None where the costs were not measured.
    """

    slabs: tuple[slice, ...]
    views_per_block: int
    peak_bytes: int
    device_bytes: int = 0
    predicted_s: float | None = None

    def words(self) -> str:
        """Say it for people."""
        thickest = max(slab.stop - slab.start for slab in self.slabs)
        parts = "in one piece" if len(self.slabs) == 1 else f"in {len(self.slabs)} slabs of up to {thickest} slices"
        on_device = f", {self.device_bytes / 1e9:.2g} GB on the GPU" if self.device_bytes else ""
        time = "" if self.predicted_s is None else f", about {duration(self.predicted_s)}"
        return (
            f"{parts}, {self.views_per_block} views at a time: up to {self.peak_bytes / 1e9:.2g} GB of memory"
            f"{on_device}{time}"
        )


def plan_fdk(
    problem: Problem, memory_bytes: int, *, device_bytes: int | None = None, costs: Costs | None = None
) -> Layout:
    """Cut a filtered back-projection so that it stays below a limit.

    Parameters
    ----------
    memory_bytes : int
        For the whole process.
    device_bytes : int, optional
        Free on the GPU; None: it is not used.
    costs : Costs, optional
        What the work takes; without them no time is told, and the cut is chosen by nominal ones.

    Raises
    ------
    WrongUsage
        Not even one slice from one view at a time fits; the message tells what would do.
    """
    least = _layout(problem, problem.grid.shape[0], 1, device_bytes is not None)
    if least.peak_bytes > memory_bytes:
        raise WrongUsage(
            f"{memory_bytes / 1e9:.3g} GB of memory are too few; the least that would do: "
            f"{least.peak_bytes / 1e9:.3g} GB",
            hint=f"--memory {int(np.ceil(least.peak_bytes / 1e6))}MB, or larger voxels",
        )
    if device_bytes is not None and least.device_bytes > device_bytes:
        raise WrongUsage(
            f"the GPU has {device_bytes / 1e9:.3g} GB free; the least that would do: {least.device_bytes / 1e9:.3g} GB",
            hint="--cpu, or larger voxels",
        )
    timed = []
    for views_per_block in VIEWS_PER_BLOCK:
        n_slabs = _fewest_slabs(problem, views_per_block, memory_bytes, device_bytes)
        if n_slabs is not None:
            layout = _layout(problem, n_slabs, views_per_block, device_bytes is not None)
            timed.append(
                replace(layout, predicted_s=predict_s(problem, layout.slabs, views_per_block, costs or NOMINAL))
            )
    fastest = min(timed, key=lambda layout: layout.predicted_s or 0.0)
    return fastest if costs else replace(fastest, predicted_s=None)


def predict_s(problem: Problem, slabs: Sequence[slice], views_per_block: int, costs: Costs) -> float:
    """Return how long one process takes for some slabs."""
    geometry, n_bins, n_views = problem.geometry, problem.n_bins, problem.n_views
    frames = len(slabs) * n_bins * n_views * geometry.rows * geometry.cols
    samples = n_bins * n_views * geometry.cols * int(_n_rows(problem, slabs).sum())
    voxels = n_bins * int(np.prod(problem.grid.shape[1:])) * sum(slab.stop - slab.start for slab in slabs)
    return (
        costs.unpack_s * frames
        + (costs.prepare_s + costs.filter_s) * samples
        + voxels * (costs.update_s * n_views * through_memory(views_per_block) + costs.write_s)
    )


def through_memory(views_per_block: int) -> float:
    """Return how much more an update takes because a slab goes through memory once for each block of views.

    Once through memory is taken for as long as two updates.
    """
    return 1 + 2.0 / views_per_block


def _n_rows(problem: Problem, slabs: Sequence[slice]) -> NDArray[np.intp]:
    """Return how many rows each slab needs."""
    z = problem.grid.axes_mm()[0]
    low_mm, high_mm = z[[slab.start for slab in slabs]], z[[slab.stop - 1 for slab in slabs]]
    first, stop = _rows_between(problem.geometry, problem.grid, low_mm, high_mm, problem.lifts_mm)
    return stop - first


def sees(geometry: Geometry, grid: Grid, lifts_mm: NDArray[np.float64]) -> bool:
    """Whether any ray of these views meets the grid, or passes within a row of it."""
    z = grid.axes_mm()[0]
    falls = _falls(upright(geometry), grid, np.array([z[0] + lifts_mm.min(), z[-1] + lifts_mm.max()]))
    return bool(falls.min() < geometry.rows + 1 and falls.max() > -2)


def rows_seen(geometry: Geometry, grid: Grid, lifts_mm: ArrayLike = 0.0) -> slice:
    """Return the rows, of an upright detector, that filtered back-projection needs for a grid; at least one.

    Those on which a view sees any of it; all, where the object is lifted from view to view, because rays are then
    shared out by where they meet the whole detector.

    Parameters
    ----------
    lifts_mm : float or (n_views,) float
    """
    z = grid.axes_mm()[0]
    first, stop = _rows_between(geometry, grid, z[:1], z[-1:], np.asarray(lifts_mm, dtype=np.float64))
    return slice(int(first[0]), int(stop[0]))


def _rows_between(
    geometry: Geometry,
    grid: Grid,
    low_mm: NDArray[np.float64],
    high_mm: NDArray[np.float64],
    lifts_mm: NDArray[np.float64],
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first row, and the one after the last, for slabs of a grid that lie between these heights."""
    geometry = upright(geometry)
    lowest_mm, highest_mm = lifts_mm.min(), lifts_mm.max()
    if highest_mm > lowest_mm:
        return np.zeros(len(low_mm), np.intp), np.full(len(low_mm), geometry.rows, np.intp)
    falls = _falls(geometry, grid, np.stack([low_mm, high_mm]) + lowest_mm)
    first = np.clip(np.floor(falls.min(axis=(0, 1))) - 1, 0, geometry.rows - 1).astype(np.intp)
    stop = np.clip(np.ceil(falls.max(axis=(0, 1))) + 2, first + 1, geometry.rows).astype(np.intp)
    return first, stop


def _falls(geometry: Geometry, grid: Grid, heights_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows on which points at these heights fall, nearest to the source and furthest: (..., 2, n)."""
    _, y, x = grid.axes_mm()
    reach_mm = np.hypot(np.abs(x).max(), np.abs(y).max())
    nearest_mm = max(geometry.source_to_object_mm - reach_mm, 1e-6 * geometry.source_to_object_mm)
    scales = geometry.source_to_detector_mm / np.array([nearest_mm, geometry.source_to_object_mm + reach_mm])
    on_detector_mm = heights_mm[..., None, :] * scales[:, None]
    return (on_detector_mm - geometry.offset_v_mm) / geometry.pitch_mm + (geometry.rows - 1) / 2


def on_rows(geometry: Geometry, rows: slice) -> Geometry:
    """Return the geometry of some rows of an upright detector."""
    if geometry.is_tilted:
        raise ValueError("rows of a tilted detector are no upright detector; allowed: what `levelling.upright` returns")
    shift_px = (rows.start + rows.stop - 1) / 2 - (geometry.rows - 1) / 2
    return replace(
        geometry, rows=rows.stop - rows.start, offset_v_mm=geometry.offset_v_mm + shift_px * geometry.pitch_mm
    )


def sub_grid(grid: Grid, slab: slice) -> Grid:
    """Return the grid of some slices of another."""
    n_z, n_y, n_x = grid.shape
    x_mm, y_mm, z_mm = grid.centre_mm
    shift = (slab.start + slab.stop - 1) / 2 - (n_z - 1) / 2
    return replace(grid, shape=(slab.stop - slab.start, n_y, n_x), centre_mm=(x_mm, y_mm, z_mm + shift * grid.voxel_mm))


def cut(n_slices: int, n_slabs: int) -> tuple[slice, ...]:
    """Cut a volume into slabs of nearly the same thickness, of whole multiples of what is summed together."""
    thickness = -(-n_slices // n_slabs)
    if thickness > SLICE_MULTIPLE:
        thickness = -(-thickness // SLICE_MULTIPLE) * SLICE_MULTIPLE
    return tuple(slice(first, min(first + thickness, n_slices)) for first in range(0, n_slices, thickness))


def _fewest_slabs(problem: Problem, views_per_block: int, memory_bytes: int, device_bytes: int | None) -> int | None:
    """Return the smallest number of slabs that fits, by bisection; None: not even single slices fit."""

    def fits(n_slabs: int) -> bool:
        layout = _layout(problem, n_slabs, views_per_block, device_bytes is not None)
        return layout.peak_bytes <= memory_bytes and layout.device_bytes <= (device_bytes or 0)

    few, many = 0, problem.grid.shape[0]
    if not fits(many):
        return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if fits(middle) else (middle, many)
    return many


def _layout(problem: Problem, n_slabs: int, views_per_block: int, uses_device: bool) -> Layout:
    return layout_of(problem, cut(problem.grid.shape[0], n_slabs), views_per_block, uses_device=uses_device)


def layout_of(problem: Problem, slabs: tuple[slice, ...], views_per_block: int, *, uses_device: bool) -> Layout:
    """Predict what slabs take that are already cut."""
    geometry, n_bins = problem.geometry, problem.n_bins
    n_rows = np.full(len(slabs), geometry.rows) if geometry.is_tilted else _n_rows(problem, slabs)
    voxels = n_bins * int(np.prod(problem.grid.shape[1:])) * np.array([slab.stop - slab.start for slab in slabs])
    line = n_bins * min(views_per_block, problem.n_views) * geometry.cols
    frame = n_bins * geometry.rows * geometry.cols * FRAME_BYTES
    block = line * (n_rows * SAMPLE_BYTES + MARGIN_ROWS * 4)
    on_device = DEVICE_BASE_BYTES + 4 * voxels + line * n_rows * DEVICE_SAMPLE_BYTES
    return Layout(
        slabs=slabs,
        views_per_block=views_per_block,
        peak_bytes=int((BASE_BYTES + 4 * voxels * (1 if uses_device else SLAB_COPIES) + block + frame).max()),
        device_bytes=int(on_device.max()) if uses_device else 0,
    )


def parse_bytes(text: str) -> int:
    """Read a size of memory: "8GB", "512 MiB", "1.5e9"."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]i?|)b?\s*", text.lower())
    try:
        size = float(match[1]) * _UNITS[match[2]] if match else 0.0
    except ValueError:
        size = 0.0
    if size < 1:
        raise WrongUsage(f"the memory is {text!r}; allowed: a number with a unit, as 8GB or 512MiB")
    return int(size)


def available_bytes() -> int:
    """Return how much memory is free for programs now; limits of the container count.

    Where the system does not tell what is free, half of what it has is taken for that.
    """
    free = [value for value in (_meminfo_bytes(), _cgroup_bytes()) if value is not None]
    if free:
        return min(free)
    if sys.platform == "win32":
        return _windows_bytes()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _meminfo_bytes() -> int | None:
    path = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", path.read_text()) if path.is_file() else None
    return int(found[1]) * 1024 if found else None


def _cgroup_bytes() -> int | None:
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return None
    return max(int(limit.read_text()) - int(used.read_text()), 0)


def _windows_bytes() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "free", "page", "page_free", "virtual", "virtual_free", "x")
        ]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))  # pyright: ignore[reportAttributeAccessIssue]
    return int(status.free)


def duration(seconds: float) -> str:
    """Say a time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
