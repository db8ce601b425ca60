"""A scan's volume straight into a file, slab by slab or on a cluster, where memory does not hold it all.

What is asked for is the same as of `pipeline.reconstruct_scan`, but for corrections that look at all views at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from calibration.progress import Progress
from calibration.store import Calibration
from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.pipeline import chosen_bins, grid_of
from reconstruction.projections import LineIntegralReader
from reconstruction.recipe import Recipe
from reconstruction.scan_source import ScanSource, open_source
from reconstruction.size import cluster, slabs
from reconstruction.size.budget import available_bytes, parse_bytes
from reconstruction.volume import LINEAR_ATTENUATION, Volume

FREE_SHARE = 0.8
"""Of the memory that is free, what a reconstruction may take."""
DATUM_BYTES = 24
"""What a line integral takes at the most while a scan is held whole: counts, their corrections, values and masks."""
VOXEL_BYTES = 8
"""What a voxel of a bin takes: the sum, and its turned copy."""
ITERATED_VOXEL_BYTES = 24
"""What it takes of an iterative method: the volume, its update, momentum and normalisation."""


def whole_bytes(source: ScanSource, recipe: Recipe) -> int:
    """Return about how much memory `pipeline.reconstruct_scan` takes."""
    reader = _reader(source)
    n_bins = len(chosen_bins(source, recipe))
    n_data = int(np.prod(reader.shape[1:], dtype=np.int64)) * reader.shape[0]
    n_voxels = int(np.prod(grid_of(reader, recipe).shape, dtype=np.int64)) * n_bins
    return DATUM_BYTES * n_data + (ITERATED_VOXEL_BYTES if recipe.is_iterative else VOXEL_BYTES) * n_voxels


def memory_limit(
    path: str | Path,
    recipe: Recipe,
    memory: str = "",
    *,
    calibration: Calibration | None = None,
    allow_partial: bool = False,
    is_on_cluster: bool = False,
) -> int | None:
    """Return below what the work must stay; None: the scan fits into memory whole, and nobody asks for less.

    Parameters
    ----------
    memory : str
        What is asked for, as "8GB"; nothing: what is free.
    """
    if memory:
        return parse_bytes(memory)
    free_bytes = int(FREE_SHARE * available_bytes())
    if is_on_cluster:
        return free_bytes
    source = open_source(
        path,
        calibration=calibration,
        pass_number=recipe.pass_number or 1,
        linearise=recipe.linearise,
        allow_partial=allow_partial,
    )
    return None if whole_bytes(source, recipe) <= free_bytes else free_bytes


def reconstruct_to_file(
    path: str | Path,
    output: str | Path,
    recipe: Recipe,
    *,
    calibration: Calibration | None = None,
    allow_partial: bool = False,
    memory_bytes: int,
    address: str | None = None,
    tell: Callable[[str], object] | None = None,
) -> Generator[Progress, None, Path]:
    """Reconstruct by filtered back-projection into a file, within a memory; a part that was broken off is gone on with.

    Parameters
    ----------
    recipe : Recipe
        Of method "fdk", without corrections that need the whole scan.
    memory_bytes : int
        Of this process, or of each worker.
    address : str, optional
        Of a Dask scheduler, or "local:N": N processes on this machine.
    tell : callable, optional
        Takes words on what is about to happen.
    """
    _refuse_what_needs_all(recipe)
    source = open_source(
        path,
        calibration=calibration,
        pass_number=recipe.pass_number,
        linearise=recipe.linearise,
        allow_partial=allow_partial,
    )
    reader = _reader(source)
    bins = chosen_bins(source, recipe)
    is_whole = len(bins) == source.scan.shape[1]
    grid = grid_of(reader, recipe)
    steps = (
        f"{len(reader.angles_rad)} views, {source.scan.n_lost} frames lost",
        *((f"{reader.n_tiles} tiles joined",) if reader.n_tiles > 1 else ()),
        *source.words,
        f"FDK, window {recipe.window}, grid {json.dumps(asdict(grid))}",
    )
    planned = Volume.planned(
        len(bins),
        grid,
        channels=tuple(source.channels[index] for index in bins),
        unit=LINEAR_ATTENUATION,
        thresholds_kev=source.thresholds_kev if is_whole else (),
        basis=source.basis if is_whole else None,
        provenance=source.provenance(steps),
    )
    job = slabs.Job(
        open_source=slabs.ScanOpener.of(source, bins.tolist()),
        grid=grid,
        window=recipe.window,
        use_gpu=recipe.use_gpu,
        options={"is_continued": recipe.truncation != "none"},
    )
    limits: dict[str, Any] = {
        "memory_bytes": memory_bytes,
        "device_bytes": backend.free_bytes() if recipe.use_gpu else None,
        "tell": tell,
        "recipe": json.dumps([str(path), source.scan.calibration_identity, *steps]),
    }
    if address is not None:
        return (yield from cluster.reconstruct(job, planned, output, address=address, **limits))
    return (yield from slabs.reconstruct(job, planned, output, **limits))


def _reader(source: ScanSource) -> LineIntegralReader:
    return LineIntegralReader(
        source.scan,
        source.geometry,
        pass_index=source.pass_index,
        count_rate=source.count_rate,
        thickness=source.thickness,
        flat=source.flat,
    )


def _refuse_what_needs_all(recipe: Recipe) -> None:
    if recipe.needs_whole:
        named = [f"--{name}" for name in recipe.needs_whole]
        raise WrongUsage(
            f"{', '.join(named)} cannot be had slab by slab: the whole scan must be in memory for it; "
            "allowed with --memory and --cluster: fdk without corrections of the views",
            hint="leave out --memory and --cluster, or take fewer bins and larger voxels",
        )
