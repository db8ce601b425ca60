"""What the counts of a scan are expected to be besides attenuation, for fits that take them as they were counted.

The corrections of `scan_corrections` change line integrals. A fit of counts needs its data untouched, for their noise
is Poisson's as they stand; so what a correction finds goes to the other side, into what is expected:

    counts[bin, view, pixel] ~ gain[bin, pixel] (open[bin] transmission(paths) + scatter[bin, view, pixel])

Rings are gains of single pixels in single bins. Scatter adds to what comes straight through. Rays through metal, and
pixels that no gain explains, were not measured: they stand as painted in from around, and count for nothing where
weights are possible.

# Ref: gains and additive terms in the mean of Poisson counts: Erdogan and Fessler 1999, Phys. Med. Biol. 44, 2835.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration import pixels
from calibration.progress import Progress
from reconstruction.artefacts import rings, scatter
from reconstruction.projections import LineIntegrals
from reconstruction.recipe import Recipe
from reconstruction.scan_corrections import LEAST_COUNTS, kernels_of, reduce_metal, suppress_rings
from reconstruction.volume import Grid

STARVED_COUNTS = 1.0
"""Where fewer were counted, the line integral is a bound, and the count itself is what is known: none."""
UNSTEADY_SHARE, UNSTEADY_NOISE = 0.25, 2.0
"""Of the variance of what a pixel reads over the views, and of that of its noise: what a gain may leave of that which a
ring method takes off. More, and the pixel is dead, stuck or restless (a choice)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expectation:
    """The counts of all rays, and what they are held against.

    Attributes
    ----------
    counts : (n_bins, n_views, rows, cols) float32
        As counted, had all pixels the mean pixel's open beam; painted in where nothing was measured.
    open_counts : (n_bins,) float64, or (n_bins, 1, rows, cols) float32
        Of one view, the gains of pixels included.
    background : (n_bins,) or (n_bins, n_views, rows, cols) float32
        Scattered counts that are expected beside those that come straight through.
    is_known : (n_bins, n_views, rows, cols) bool
        What was measured.
    words : tuple of str
        What was found, for the provenance.
    """

    counts: NDArray[np.float32]
    open_counts: NDArray[np.floating]
    background: NDArray[np.float32]
    is_known: NDArray[np.bool_]
    words: tuple[str, ...] = ()

    def of_views(self, views: slice | NDArray[np.intp]) -> Expectation:
        """Return that of some views."""
        background = self.background[:, views] if self.background.ndim > 1 else self.background
        return replace(self, counts=self.counts[:, views], background=background, is_known=self.is_known[:, views])


def expected(
    measured: LineIntegrals, grid: Grid, recipe: Recipe, *, n_passes: int = 1
) -> Generator[Progress, None, Expectation]:
    """Find what a recipe's corrections mean for counts; the line integrals are left as they are.

    Parameters
    ----------
    measured : LineIntegrals
    grid : Grid
        The voxels that are asked for: where metal is looked for.
    n_passes : int
        How many passes the bins are of.
    """
    opened = measured.open_counts.astype(np.float32)[:, None, None, None]
    counts = opened * np.exp(-measured.values)
    is_starved = measured.is_estimated & (counts < STARVED_COUNTS)
    counts[is_starved] = 0
    is_painted = np.zeros(counts.shape, np.bool_)
    gains, background, words = None, np.zeros(len(counts), np.float32), []
    depth = measured.values
    if recipe.rings != rings.NONE:
        yield Progress("rings", 0, 1)
        depth, gains, is_gain, told = _gains(measured, counts, recipe.rings)
        is_painted |= ~is_gain[:, None]
        words.append(told)
        yield Progress("rings", 1, 1)
    if recipe.scatter is not None:
        yield Progress("scatter", 0, 1)
        primary, background = _scattered(replace(measured, values=depth), kernels_of(recipe, len(counts), n_passes))
        share = background.sum(axis=(1, 2, 3)) / np.maximum(counts.sum(axis=(1, 2, 3), dtype=np.float64), 1)
        words.append(f"scatter of {', '.join(f'{part:.1%}' for part in share)} of the counts expected, by kernels")
        depth = -np.log(np.maximum(primary, np.float32(LEAST_COUNTS)) / opened)
        yield Progress("scatter", 1, 1)
    if recipe.metal_per_mm is not None:
        whole = replace(measured, values=depth.copy())
        reduced, _, told = yield from reduce_metal(whole, grid, recipe)
        is_painted |= reduced.values != depth
        depth = reduced.values
        words.append(f"{told}; what it is made of is not told: its voxels hold what is around them")
    if gains is not None:
        opened = opened * gains
        background = background * gains if background.ndim > 1 else background
    if is_painted.any():
        added = background if background.ndim > 1 else 0
        counts = np.where(is_painted, opened * np.exp(-depth) + added, counts)
    return Expectation(
        counts=counts,
        open_counts=measured.open_counts if gains is None else opened,
        background=background,
        is_known=(is_starved | ~measured.is_estimated) & ~is_painted,
        words=tuple(words),
    )


def _gains(
    measured: LineIntegrals, counts: NDArray[np.float32], method: str
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.bool_], str]:
    """Return line integrals without rings, each pixel's gain in each bin, where a gain explains it, and the words."""
    smooth = measured.values.copy()
    words = suppress_rings(replace(measured, values=smooth), method)
    taken = measured.values - smooth
    is_gain = np.ones((len(taken), *taken.shape[2:]), np.bool_)
    if not taken.any():
        return measured.values, None, is_gain, words
    n_measured = np.sum(~measured.is_estimated, axis=1)
    stripe = np.sum(taken, axis=1, where=~measured.is_estimated) / np.maximum(n_measured, 1)
    noise = np.mean(1 / np.maximum(counts, 1), axis=1)
    is_gain = (taken - stripe[:, None]).var(axis=1) <= UNSTEADY_SHARE * smooth.var(axis=1) + UNSTEADY_NOISE * noise
    stripe = np.where(is_gain, stripe, 0).astype(np.float32)
    n_lost = np.count_nonzero(~is_gain)
    told = f"{words}, as gains of pixels in each bin (spread {stripe[is_gain].std():.2%})"
    told += f"; {n_lost} that no gain explains left out" if n_lost else ""
    depth = measured.values - stripe[:, None]
    for of_bin, is_lost in zip(depth, ~is_gain, strict=True):
        if is_lost.any() and not is_lost.all():
            of_bin[...] = pixels.fill(of_bin, is_lost)
    return depth, np.exp(-stripe)[:, None], is_gain, told


def _scattered(
    measured: LineIntegrals, kernels: list[scatter.Kernel]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return primary counts, and the scatter beside them, which unlike these is smooth."""
    opened = measured.open_counts.astype(np.float32)[:, None, None, None]
    counts = opened * np.exp(-measured.values)
    beam = np.broadcast_to(opened, counts.shape)
    primary = scatter.subtract(counts, beam, kernels, pitch_mm=measured.geometry.pitch_mm).counts
    background = np.empty_like(primary)
    for of_bin, open_beam, kernel, landed in zip(primary, beam, kernels, background, strict=True):
        for first in range(0, len(of_bin), scatter.VIEWS_PER_BLOCK):
            block = np.s_[first : first + scatter.VIEWS_PER_BLOCK]
            landed[block] = scatter.estimate(
                of_bin[block], open_beam[block], kernel, pitch_mm=measured.geometry.pitch_mm
            )
    return primary, background
