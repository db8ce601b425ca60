"""bin volumes of a scan by an iterative method: noise, support, start and stop are taken from the scan itself.

What the data must be explained by reaches beyond the voxels that are asked for: rays run through all of the object. So
a method works on a wider grid, and what was asked for is cut out of it.

# Ref: variance of a line integral, one over its counts: Whiting et al. 2006, Med. Phys. 33, 3290, in first order.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.artefacts.metal import weights as noise_weights
from reconstruction.fdk import fdk
from reconstruction.field_of_view import cut_out, reached
from reconstruction.iterative import COUNTS, LINE_INTEGRALS, NON_NEGATIVE, method_named, reconstruct
from reconstruction.methods.convergence import ConvergenceLog
from reconstruction.methods.stopping import Discrepancy
from reconstruction.projections import LineIntegrals
from reconstruction.projector import Projector
from reconstruction.recipe import FDK, Recipe
from reconstruction.scan_geometry import ScanGeometry
from reconstruction.volume import Grid, Volume, load_volume


def iterate_scan(
    measured: LineIntegrals, grid: Grid, recipe: Recipe
) -> Generator[Progress, None, tuple[NDArray[np.float32], ConvergenceLog]]:
    """Reconstruct all bins of a scan by the method that a recipe names.

    Parameters
    ----------
    grid : Grid
        The voxels that are asked for.

    Returns
    -------
    values : (n_bins, z, y, x) float32, 1/mm
    log : ConvergenceLog
    """
    method = method_named(recipe.method)
    whole = reached(grid, measured.geometry, measured.lifts_mm)
    n_bins = len(measured.values)
    scan = ScanGeometry.circular(measured.geometry, measured.angles_rad, lifts_mm=measured.lifts_mm)
    projector = Projector(scan, whole, n_channels=n_bins, use_gpu=recipe.use_gpu)
    send: Any = backend.to_device if recipe.use_gpu else np.asarray
    open_counts = measured.open_counts.astype(np.float32)[:, None, None, None]
    is_known = ~measured.is_estimated
    arrays: dict[str, Any] = {}
    data = measured.values
    if method.takes == NON_NEGATIVE:
        data = np.maximum(data, 0)
    if method.takes == COUNTS:
        arrays["flat"] = send(np.broadcast_to(open_counts, data.shape))
        data = open_counts * np.exp(-measured.values)
    if recipe.weights == "noise" and method.takes != LINE_INTEGRALS:
        raise WrongUsage(f"--weights noise is of line integrals; {recipe.method} takes {method.takes}")
    weighs_noise = recipe.weights == "noise" or (recipe.stops_at_noise and method.takes == LINE_INTEGRALS)
    if recipe.weights == "auto":
        weighs_noise |= method.is_statistical
    if weighs_noise:
        weights = noise_weights(measured.values, open_counts, is_estimated=measured.is_estimated)
    else:
        weights = is_known.astype(np.float32)
    arrays["weights"] = send(weights)
    for name, origin in (("start", recipe.start), ("reference", recipe.reference)):
        if origin is not None:
            arrays[name] = send((yield from _volume_from(origin, measured, whole, recipe)))
    stop = None
    if recipe.stops_at_noise:
        if method.takes == NON_NEGATIVE:
            raise WrongUsage(
                f"{recipe.method} does not know the noise of line integrals, and cannot stop at it",
                hint="pwls and transmission do",
            )
        stop = Discrepancy(n_data=int(np.count_nonzero(is_known)) // n_bins)
    done = yield from reconstruct(
        projector,
        send(data),
        method=recipe.method,
        iterations=recipe.n_iterations,
        prior=recipe.prior,
        stop=stop,
        options=recipe.options,
        **arrays,
    )
    values = backend.to_host(done.values)
    return np.ascontiguousarray(values[:, *cut_out(whole, grid)]), done.log


def _volume_from(
    origin: Path | str, measured: LineIntegrals, grid: Grid, recipe: Recipe
) -> Generator[Progress, None, NDArray[np.float32]]:
    """Return the volume of a file, or that of filtered back-projection, on a grid: (n_bins, z, y, x)."""
    n_bins = len(measured.values)
    if origin != FDK:
        volume = load_volume(origin)
        if len(volume.channels) not in (1, n_bins):
            raise WrongUsage(f"{origin} has {len(volume.channels)} channels; allowed: {n_bins}, as many as bins, or 1")
        return np.broadcast_to(resampled(volume, grid), (n_bins, *grid.shape))
    values = yield from fdk(
        measured.values,
        measured.angles_rad,
        measured.geometry,
        grid,
        window=recipe.window,
        use_gpu=recipe.use_gpu,
        lifts_mm=measured.lifts_mm,
    )
    return np.maximum(values, 0)


def resampled(volume: Volume, grid: Grid) -> NDArray[np.float32]:
    """Return the values of a volume at other voxels, linearly between its own and 0 beyond them."""
    scale = grid.voxel_mm / volume.grid.voxel_mm
    offset: Any = [  # its declared type is that of one number for all axes
        (axis[0] - own[0]) / volume.grid.voxel_mm
        for axis, own in zip(grid.axes_mm(), volume.grid.axes_mm(), strict=True)
    ]
    values = np.empty((len(volume.values), *grid.shape), np.float32)
    for channel, out in zip(volume.values, values, strict=True):
        ndimage.affine_transform(
            channel, np.full(3, scale), offset, grid.shape, output=out, order=1, mode="constant", prefilter=False
        )
    return values
