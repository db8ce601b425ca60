"""Line integrals of a scan without the artefacts that a recipe names: scatter, rings, metal.

In this order: scatter is taken off the counts, rings are the pixels' own, and the shadow of metal is filled in by what
is around it. Each says what it did.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.progress import Progress
from firmware_iface.errors import BadFile, WrongUsage
from reconstruction.artefacts import metal, rings, scatter
from reconstruction.fdk import fdk
from reconstruction.field_of_view import cut_out, reached
from reconstruction.projections import LineIntegrals
from reconstruction.projector import Projector
from reconstruction.recipe import Recipe
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid

MOST_SHADOW = 0.9
"""Of the rays: what may be interpolated across metal (a choice)."""
LEAST_COUNTS = 0.5
"""What counts that scatter leaves nothing of are taken for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Metal:
    """Metal that was taken out of the views, and is to stand in the volume again.

    Attributes
    ----------
    grid : Grid
    is_metal : (z, y, x) bool
    values : (n_bins, n_voxels) float32
        What its voxels read before.
    """

    grid: Grid
    is_metal: NDArray[np.bool_]
    values: NDArray[np.float32]

    def reinstated(self, values: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
        """Return a volume on a part of the grid, with the metal in it."""
        whole = np.zeros((len(values), *self.grid.shape), np.float32)
        whole[:, self.is_metal] = self.values
        here = cut_out(self.grid, grid)
        return metal.reinstate(values, whole[:, *here], self.is_metal[here]).astype(np.float32, copy=False)


def corrected(
    measured: LineIntegrals, grid: Grid, recipe: Recipe
) -> Generator[Progress, None, tuple[LineIntegrals, Metal | None, tuple[str, ...]]]:
    """Correct line integrals, in place where that saves memory.

    Parameters
    ----------
    grid : Grid
        The voxels that are asked for.

    Returns
    -------
    measured : LineIntegrals
    found : Metal or None
    words : tuple of str
        What was done, for the provenance.
    """
    words: list[str] = []
    found = None
    if recipe.scatter is not None:
        yield Progress("scatter", 0, 1)
        words.append(_subtract_scatter(measured, recipe))
        yield Progress("scatter", 1, 1)
    if recipe.rings != rings.NONE:
        yield Progress("rings", 0, 1)
        words.append(suppress_rings(measured, recipe.rings))
        yield Progress("rings", 1, 1)
    if recipe.metal_per_mm is not None:
        measured, found, told = yield from reduce_metal(measured, grid, recipe)
        words.append(told)
    return measured, found, tuple(words)


def read_kernels(path: Path) -> list[scatter.Kernel]:
    """Read the scatter kernels of all bins from a TOML file: one table [[bin]] each, with the fields of `Kernel`."""

    class File(msgspec.Struct, forbid_unknown_fields=True):
        bin: list[scatter.Kernel]

    try:
        return msgspec.toml.decode(path.read_bytes(), type=File).bin
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise BadFile(
            f"{path} holds no scatter kernels: {error}",
            hint="one table [[bin]] per bin, with the fields of reconstruction.artefacts.scatter.Kernel",
        ) from error


def kernels_of(recipe: Recipe, n_bins: int, n_passes: int = 1) -> list[scatter.Kernel]:
    """Return one kernel for each of `n_bins` bins of `n_passes` passes.

    The recipe's file has as many; or those of one pass, for each alike; or those of all passes, where one is worked on.
    """
    assert recipe.scatter is not None, "asked for by who has looked"
    kernels, number = read_kernels(recipe.scatter), recipe.pass_number or 1
    if len(kernels) * n_passes == n_bins:
        return kernels * n_passes
    if n_passes == 1 and len(kernels) % n_bins == 0 and number * n_bins <= len(kernels):
        return kernels[(number - 1) * n_bins : number * n_bins]
    if len(kernels) != n_bins:
        raise WrongUsage(
            f"{recipe.scatter} has {len(kernels)} kernels for {n_bins} bins; allowed: one [[bin]] per bin, of one pass "
            "or of all"
        )
    return kernels


def _subtract_scatter(measured: LineIntegrals, recipe: Recipe) -> str:
    open_counts = measured.open_counts.astype(np.float32)[:, None, None, None]
    counts = open_counts * np.exp(-measured.values)
    beam = np.broadcast_to(open_counts, counts.shape)
    kernels = kernels_of(recipe, len(counts))
    primary = scatter.subtract(counts, beam, kernels, pitch_mm=measured.geometry.pitch_mm)
    measured.values[...] = -np.log(np.maximum(primary.counts, np.float32(LEAST_COUNTS)) / open_counts)
    return primary.words


def suppress_rings(measured: LineIntegrals, method: str) -> str:
    """Take rings out, in place; "auto" chooses the method by what the scan shows."""
    if method != "auto":
        return rings.suppress(measured.values, method=method)[1]
    choice = rings.choose(measured.values, measured.angles_rad, measured.geometry, lifts_mm=measured.lifts_mm)
    _, done = rings.suppress(measured.values, method=choice.candidate.method, options=choice.candidate.options)
    return f"{done}: {choice.words}"


def reduce_metal(
    measured: LineIntegrals, grid: Grid, recipe: Recipe
) -> Generator[Progress, None, tuple[LineIntegrals, Metal | None, str]]:
    """Fill in the shadow of metal by what is around it, and remember the metal."""
    whole = reached(grid, measured.geometry, measured.lifts_mm)
    scan = ScanGeometry.circular(measured.geometry, measured.angles_rad, lifts_mm=measured.lifts_mm)

    def by_fdk(values: NDArray[np.float32]) -> Generator[Progress, None, NDArray[np.float32]]:
        return fdk(
            values, measured.angles_rad, measured.geometry, whole, window=recipe.window, lifts_mm=measured.lifts_mm
        )

    first = yield from by_fdk(measured.values)
    yield Progress("metal", 0, 1)
    reduced = yield from metal.reduce(
        measured.values,
        Projector(scan, whole),
        by_fdk,
        voxel_mm=whole.voxel_mm,
        is_metal=metal.segment(first.mean(axis=0), threshold_per_mm=recipe.metal_per_mm),
    )
    yield Progress("metal", 1, 1)
    if reduced.is_in_shadow.mean() > MOST_SHADOW:
        share = reduced.is_in_shadow.mean()
        raise WrongUsage(
            f"{share:.1%} of the rays meet what attenuates more than {recipe.metal_per_mm:g} per mm; "
            f"allowed: up to {MOST_SHADOW:.0%}, for the others tell what stands there",
            hint="give what only metal exceeds",
        )
    if not reduced.is_metal.any():
        return measured, None, reduced.words
    found = Metal(grid=whole, is_metal=reduced.is_metal, values=first[:, reduced.is_metal])
    is_estimated = measured.is_estimated | reduced.is_in_shadow
    return replace(measured, values=reduced.values, is_estimated=is_estimated), found, reduced.words
