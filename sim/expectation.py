"""Mean, variance and covariance of what pixels count, from `sim.tables` and `sim.pulse_train`.

Each pixel has its own thresholds, photons and rate. Pile-up is solved exactly for a few loads per exposure, each with
the mean spectrum of the pixels about as busy, and interpolated between them. Charge that crosses to neighbours blurs
what a pixel counts by the share that the mean spectrum gives.

# Ref: means and covariances of a compound Poisson process: photons times the mean counts of one photon, and times the
#      mean products of two counts of one photon.
# Ref: noise crossings f0 exp(-x^2 / 2 sigma^2): S. O. Rice 1944, Bell Syst. Tech. J. 23, 282.

Stated simplifications: one correlation per exposure, from its mean spectrum; a summing node's traffic is that of four
pixels like the one that counts; two nodes of neighbours share half of it, of diagonal neighbours a quarter; the arbiter
takes no part in pile-up; at the sensor's edge the light goes on outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim import draw, pulse_train, strips, tables
from sim.tables import CHARGE_BINS, CHARGE_STEP_KEV, MEMBERS, N_KINDS, PLACES, SINGLE, SUMMED, WINNER

LEVEL_STEP_KEV = 0.5
N_LEVELS = 321
"""The output's levels reach 160 keV."""
LOADS = np.concatenate([[0.0], np.geomspace(1e-3, 0.1, 9), np.linspace(0.13, 1.0, 30), [np.inf]])
"""Edges between pixels that are about as busy, as the share of time in which the discharge runs."""
SAME_NODE = np.array([1.0, 0.5, 0.25, 0.0, 0.0, 0.0])
"""How much of the traffic of its summing node a pixel has in common with one of each class around it."""
LANES = 32
"""So many energies are summed at once."""
_LEAST_COUNTS = 1e-3
_MOST_CORRELATED = 0.95


class Pulse(NamedTuple):
    """The amplifier: see `sim.pulse_train`."""

    fall_kev_per_s: float
    peaking_time_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Response:
    """What photons of some energies count, per photon.

    Attributes
    ----------
    table : (N_KINDS, CHARGE_BINS + 1, n_energies or more) float32
        Counts above each threshold of the charges' grid; zeros fill up to whole LANES.
    first : (N_KINDS, CHARGE_BINS + 1) int64
        The first energy that counts at all above it, or one that is some less, so that whole LANES follow.
    traffic : (2, n_energies, N_LEVELS) float64
        Charges that reach a pixel, and a node of 2x2 pixels, on the grid of levels.
    workload_kev : (n_energies,) float32
        Charge in a pixel; a node has four times as much.
    deposits : Deposits or None
        What else one photon counts; None where every pixel stands alone.
    """

    table: NDArray[np.float32]
    first: NDArray[np.int64]
    traffic: NDArray[np.float64]
    workload_kev: NDArray[np.float32]
    deposits: tables.Deposits | None

    @property
    def above(self) -> NDArray[np.float32]:
        """Counts above each threshold: (N_KINDS, CHARGE_BINS + 1, n_energies) float32."""
        return self.table[:, :, : len(self.workload_kev)]


class PileUp(NamedTuple):
    """What pile-up does at some loads, from the least to the greatest.

    Attributes
    ----------
    load : (n_loads,) float64
    alive : (n_loads, 2) float64
        Share of time in which a pixel, and a node, stand at the baseline.
    lifted : (n_loads, N_KINDS, N_LEVELS) float64
        Counts per second on top of earlier pulses, per load; at no load there are none, for they go with its square.
    """

    load: NDArray[np.float64]
    alive: NDArray[np.float64]
    lifted: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Discriminators:
    """The thresholds in force.

    Attributes
    ----------
    kind : (n,) int64
        What each sees: single, winner or summed.
    threshold_kev : (n, rows, cols) float32
    seen : (n, rows, cols) float32
        Share of the events that can cross the threshold upwards.
    noise_per_s : (n, rows, cols) float32
    nominal_kev : (n,) float64
        Of the middle pixel.
    """

    kind: NDArray[np.int64]
    threshold_kev: NDArray[np.float32]
    seen: NDArray[np.float32]
    noise_per_s: NDArray[np.float32]
    nominal_kev: NDArray[np.float64]


class Light(NamedTuple):
    """What one exposure's photons do.

    Attributes
    ----------
    counts : (n, rows, cols) float32
        Mean events above each threshold, without noise.
    alive : (rows, cols) float32
        Share of time in which a pixel can count noise.
    load : (rows, cols) float32
    spectrum : (n_energies,) float64
        Mean photons per pixel.
    refold : callable of (first row, last row + 1, Discriminators)
        Counts these rows again, in place, with other thresholds.
    """

    counts: NDArray[np.float32]
    alive: NDArray[np.float32]
    load: NDArray[np.float32]
    spectrum: NDArray[np.float64]
    refold: Callable[[int, int, Discriminators], None]


def response(
    deposits: tables.Deposits, noise_kev: tuple[float, float], fano_kev: float, arbiter_kev: float, is_alone: bool
) -> Response:
    """Return counts per photon.

    Parameters
    ----------
    deposits : Deposits
    noise_kev : (float, float)
        Of single and of summed charges.
    fano_kev : float
        Fano factor times the energy of a pair.
    arbiter_kev : float
        What a winner's charge must be above.
    is_alone : bool
        Whether no neighbour counts: nothing to win against, nothing to add.
    """
    single, summed = (tables.seen_above(one_kev, fano_kev) for one_kev in noise_kev)
    if is_alone:
        kinds = [deposits.single @ single] * 2 + [_above_arbiter(deposits.single, arbiter_kev) @ summed]
    else:
        kinds = [
            deposits.single @ single,
            deposits.winner @ single,
            _arbitrated(deposits.summed, arbiter_kev) @ summed,
        ]
    table = np.zeros((N_KINDS, CHARGE_BINS + 1, -(-len(deposits.single) // LANES) * LANES), dtype=np.float32)
    table[:, :, : len(deposits.single)] = np.stack(kinds).transpose(0, 2, 1)
    node = deposits.single if is_alone else deposits.node
    charge_kev = (np.arange(CHARGE_BINS) + 0.5) * CHARGE_STEP_KEV
    return Response(
        table=table,
        first=(table > 1e-7).argmax(axis=2) // LANES * LANES,
        traffic=np.stack([_on_levels(deposits.single), _on_levels(node)]),
        workload_kev=(deposits.single @ charge_kev).astype(np.float32),
        deposits=None if is_alone else deposits,
    )


def light(
    photons: NDArray[np.float32], of: Response, thresholds: Discriminators, pulse: Pulse, duration_s: float
) -> Light:
    """Return what photons of (n_energies, rows, cols) count on average above each threshold."""
    n_energies, rows, cols = photons.shape
    spectra = np.empty((rows, cols, of.table.shape[2]), dtype=np.float32)
    load = np.empty((rows, cols), dtype=np.float32)
    blocks = -(-rows // strips.BLOCK)
    groups = np.zeros((blocks, len(LOADS) - 1, n_energies))
    members = np.zeros((blocks, len(LOADS) - 1), dtype=np.int64)
    per_photon = (of.workload_kev / (pulse.fall_kev_per_s * duration_s)).astype(np.float32)
    middle = np.clip(thresholds.nominal_kev / CHARGE_STEP_KEV, 0, CHARGE_BINS).round().astype(int)
    weights = np.concatenate([per_photon[None], of.above[thresholds.kind, middle]])
    evenly = np.empty((len(weights) - 1, rows, cols), dtype=np.float32)
    busiest = _busiest(of, thresholds)

    def sort(start: int, stop: int) -> None:
        _sort_by_load(photons, weights, LOADS / busiest, spectra, load, evenly, groups, members, start, stop)

    strips.in_parallel(sort, rows)
    by_load, n_members = groups.sum(axis=0), members.sum(axis=0)
    is_there = n_members > 0
    mean_spectra = by_load[is_there] / n_members[is_there, None]
    piled = _pile_up(mean_spectra / duration_s, mean_spectra @ per_photon, of, pulse, _kinds_of(thresholds))
    spectrum = by_load.sum(axis=0) / n_members.sum()
    blur = _blur(evenly, of, thresholds, spectrum)
    counts = np.zeros(thresholds.threshold_kev.shape, dtype=np.float32)
    alive = np.empty((rows, cols), dtype=np.float32)

    def fold(start: int, stop: int, thresholds: Discriminators = thresholds) -> None:
        _fold(
            spectra, load, of.table, of.first, thresholds.kind, thresholds.threshold_kev, thresholds.seen, blur,
            piled, duration_s, counts, alive, start, stop,
        )  # fmt: skip

    strips.in_parallel(fold, rows)
    return Light(counts=counts, alive=alive, load=load, spectrum=spectrum, refold=fold)


def mean_counts(
    light: Light, noise_per_s: NDArray[np.float32], duration_s: np.float32, factor: np.float32
) -> NDArray[np.float32]:
    """Return the mean events of light that is stronger by a factor near 1, with noise: (n, rows, cols) float32."""
    mean = np.empty_like(light.counts)
    _add_noise(light.counts, factor, noise_per_s, duration_s, light.alive, mean)
    return mean


def families(thresholds: Discriminators) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order in which counters are drawn, and where each family of nested counters ends."""
    order: list[int] = []
    ends: list[int] = []
    for kind in np.unique(thresholds.kind):
        planes = np.flatnonzero(thresholds.kind == kind)
        order += list(planes[np.argsort(-thresholds.nominal_kev[planes], kind="stable")])
        ends.append(len(order))
    return np.array(order, dtype=np.int64), np.array(ends, dtype=np.int64)


def pairs_above(of: Response, thresholds: Discriminators) -> NDArray[np.float32]:
    """Return what one photon counts together: (n_energies, n_places, n, n) float32, in the order of families.

    In class 0, the pixel itself, one charge above two thresholds is one above the higher.
    """
    order, _ = families(thresholds)
    kind, nominal_kev = thresholds.kind[order], thresholds.nominal_kev[order]
    assert of.deposits is not None
    share = tables.pair_above(nominal_kev)
    n = len(order)
    together = np.empty((len(of.deposits.pairs), len(PLACES), n, n), dtype=np.float32)
    for one in np.unique(kind):
        for other in np.unique(kind):
            i, j = np.flatnonzero(kind == one), np.flatnonzero(kind == other)
            part = share[i] @ of.deposits.pairs[:, one, other] @ share[j].T
            together[:, :, i[:, None], j[None, :]] = part
    rows = np.clip(nominal_kev / CHARGE_STEP_KEV, 0, CHARGE_BINS).round().astype(int)
    for i in range(n):
        for j in range(n):
            if (kind[i] == SUMMED) == (kind[j] == SUMMED):
                which = WINNER if WINNER in (kind[i], kind[j]) else kind[i]
                together[:, 0, i, j] = of.above[which, max(rows[i], rows[j])]
    return together


def mixing(
    spectrum: NDArray[np.float64], of: Response, thresholds: Discriminators, together: NDArray[np.float32] | None,
    pulse: Pulse, duration_s: float,
) -> draw.Mixing:  # fmt: skip
    """Return how the counts of one exposure hang together.

    Parameters
    ----------
    spectrum : (n_energies,) float64
        Mean photons per pixel; the load of a pixel with these is 1 for the mixing's bond.
    of : Response
    thresholds : Discriminators
    together : (n_energies, n_places, n, n) float32 or None
        See `pairs_above`; None where every pixel stands alone.
    pulse : Pulse
    duration_s : float
    """
    order, ends = families(thresholds)
    kind = thresholds.kind[order]
    steps = np.clip(thresholds.nominal_kev[order] / LEVEL_STEP_KEV, 0, N_LEVELS - 1).round().astype(np.int64)
    per_s = spectrum / duration_s
    counts, hidden = np.zeros(len(order)), np.zeros((len(order), len(order)))
    both, kept = np.zeros_like(hidden), np.zeros(len(order))
    for one in np.unique(kind):
        own = np.flatnonzero(kind == one)
        output = pulse_train.levels(per_s @ of.traffic[int(one == SUMMED)], LEVEL_STEP_KEV, *pulse)
        above_per_s = of.above[one, ::2] @ per_s
        rate_per_s = above_per_s[0] if above_per_s[0] > 0 else 1.0
        at_once, taken = pulse_train.covariance_per_s(
            rate_per_s, above_per_s / rate_per_s, output, steps[own], LEVEL_STEP_KEV, *pulse
        )
        both[np.ix_(own, own)], hidden[np.ix_(own, own)] = at_once * duration_s, taken * duration_s
        counts[own] = np.diag(at_once) * duration_s
        kept[own] = np.diag(at_once) / above_per_s[steps[own]].clip(1e-30)
    between = np.eye(len(order))
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        between[np.arange(first + 1, end), np.arange(first, end - 1)] = -1
    exclusive = between @ counts
    is_counted = exclusive > _LEAST_COUNTS
    if not is_counted.any():
        return draw.independent(order, ends)
    scale = np.where(is_counted, 1 / np.sqrt(exclusive.clip(_LEAST_COUNTS)), 0)
    scale = scale[:, None] * scale[None, :]
    is_family = kind[:, None] == kind[None, :]

    bond = np.where(is_counted, 1, 0) * np.eye(len(order)) - between @ (both - hidden) @ between.T * scale
    bond *= is_family
    correlation = np.zeros((len(PLACES), len(order), len(order)))
    if together is not None:
        covariance = np.tensordot(spectrum, together, axes=1)
        kept = kept.clip(0, 1.2)  # what pile-up adds far above all lines is no part of this
        covariance[0] *= np.minimum(kept[:, None], kept[None, :])  # while a node rests, so do its pixels
        covariance[1:] *= kept[:, None] * kept[None, :]
        is_node = (kind == SUMMED)[:, None] & (kind == SUMMED)[None, :]
        covariance[1:] -= SAME_NODE[1:, None, None] * np.where(is_node, hidden, 0)
        correlation = between @ covariance @ between.T * scale
        shrunk = draw.shrinkage(exclusive)
        correlation /= shrunk[:, None] * shrunk[None, :]
    correlation[0][is_family] = 0
    correlation = correlation.clip(-_MOST_CORRELATED, _MOST_CORRELATED)
    correlation[0] += np.eye(len(order))
    return draw.Mixing(order, ends, draw.mixing_kernel(correlation, ends), np.ascontiguousarray(bond, dtype=np.float32))


def _kinds_of(thresholds: Discriminators) -> NDArray[np.bool_]:
    return np.isin(np.arange(N_KINDS), thresholds.kind)


def _busiest(of: Response, thresholds: Discriminators) -> float:
    """Return how much more traffic than a pixel the busiest thing that counts has."""
    return 4.0 if SUMMED in thresholds.kind and of.deposits is not None else 1.0


def _pile_up(
    per_s: NDArray[np.float64], load: NDArray[np.float64], of: Response, pulse: Pulse, is_wanted: NDArray[np.bool_]
) -> PileUp:
    """Solve the pulses of some spectra, photons per second and pixel of (n_loads, n_energies)."""
    n = len(load)
    alive, lifted = np.ones((n + 1, 2)), np.zeros((n + 1, N_KINDS, N_LEVELS))
    traffic = [per_s @ of.traffic[which] for which in range(2)]
    above = np.tensordot(per_s, of.above[:, ::2], axes=(1, 2))
    is_wanted = is_wanted | np.array([True, False, False])
    for i in range(n):
        if load[i] <= 0:
            continue
        for which, kinds in enumerate(((SINGLE, WINNER), (SUMMED,))):
            if not is_wanted[list(kinds)].any():
                continue
            output = pulse_train.levels(traffic[which][i], LEVEL_STEP_KEV, *pulse)
            alive[i + 1, which] = output.atoms[0]
            for kind in kinds:
                if is_wanted[kind]:
                    lifted[i + 1, kind] = pulse_train.lifted_counts(above[i, kind], output) / load[i]
    return PileUp(load=np.concatenate([[0.0], load]), alive=alive, lifted=lifted)


def _blur(
    evenly: NDArray[np.float32], of: Response, thresholds: Discriminators, spectrum: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return by how much charge from and to neighbours changes what each pixel counts: (n, rows, cols) float32.

    ``evenly`` is what pixels would count without neighbours if all had the nominal thresholds.
    """
    if of.deposits is None:
        return np.ones((len(evenly), 1, 1), dtype=np.float32)
    low, high = evenly.min(axis=(1, 2)), evenly.max(axis=(1, 2))
    if np.all(high - low <= 1e-4 * high):
        return np.ones((len(evenly), 1, 1), dtype=np.float32)
    share = tables.pair_above(thresholds.nominal_kev)
    spread = np.einsum("e,ekpt->kpt", spectrum, of.deposits.spread)[thresholds.kind]
    reaching = np.einsum("npt,nt->np", spread, share)
    reaching /= reaching.sum(axis=1, keepdims=True).clip(1e-30) * MEMBERS
    padded = np.pad(evenly, ((0, 0), (tables.REACH,) * 2, (tables.REACH,) * 2), mode="edge")
    ratio = np.empty_like(evenly)
    reaching = reaching.astype(np.float32)

    def of_rows(start: int, stop: int) -> None:
        _spread(padded, reaching, tables.CLASS_OF_PLACE, evenly, ratio, start, stop)

    strips.in_parallel(of_rows, evenly.shape[1])
    return ratio


def _arbitrated(summed: NDArray[np.float32], arbiter_kev: float) -> NDArray[np.float32]:
    """Return the sums of events whose winner is above the arbiter's threshold: (n_energies, CHARGE_BINS) float32."""
    lowest_kev = np.arange(tables.WINNER_BINS, dtype=np.float32) * tables.WINNER_STEP_KEV
    share = np.clip(1 - (arbiter_kev - lowest_kev) / tables.WINNER_STEP_KEV, 0, 1)
    return np.einsum("ewc,w->ec", summed, share.astype(np.float32), optimize=True)


def _above_arbiter(single: NDArray[np.float32], arbiter_kev: float) -> NDArray[np.float32]:
    """Return the charges of lone pixels that are above the arbiter's threshold: (n_energies, CHARGE_BINS) float32."""
    lowest_kev = np.arange(CHARGE_BINS, dtype=np.float32) * CHARGE_STEP_KEV
    return single * np.clip(1 - (arbiter_kev - lowest_kev) / CHARGE_STEP_KEV, 0, 1).astype(np.float32)


def _on_levels(charges: NDArray[np.float32]) -> NDArray[np.float64]:
    """Put charges on the grid of levels, each on the two nearest, so that the mean stays: (n_energies, N_LEVELS)."""
    place = (np.arange(CHARGE_BINS) + 0.5) * CHARGE_STEP_KEV / LEVEL_STEP_KEV
    low = np.minimum(place.astype(int), N_LEVELS - 2)
    onto = np.zeros((CHARGE_BINS, N_LEVELS))
    np.add.at(onto, (np.arange(CHARGE_BINS), low), 1 - (place - low))
    np.add.at(onto, (np.arange(CHARGE_BINS), low + 1), place - low)
    return charges @ onto


@strips.quick
def _spread(
    padded: np.ndarray, share: np.ndarray, class_of_place: np.ndarray, evenly: np.ndarray, ratio: np.ndarray,
    start: int, stop: int,
) -> None:  # fmt: skip
    for plane in range(len(ratio)):
        for row in range(start, stop):
            found, own = ratio[plane, row], evenly[plane, row]
            found[:] = 0
            for down in range(class_of_place.shape[0]):
                line, which = padded[plane, row + down], class_of_place[down]
                a, b, c = share[plane, which[0]], share[plane, which[1]], share[plane, which[2]]  # and again b, a
                first, second, third, fourth, fifth = line, line[1:], line[2:], line[3:], line[4:]
                for col in range(len(found)):
                    found[col] += a * (first[col] + fifth[col]) + b * (second[col] + fourth[col]) + c * third[col]
            for col in range(len(found)):
                found[col] /= max(own[col], np.float32(1e-30))


@njit(cache=True, nogil=True)
def _sort_by_load(
    photons: np.ndarray, weights: np.ndarray, edges: np.ndarray, spectra: np.ndarray, load: np.ndarray,
    evenly: np.ndarray, groups: np.ndarray, members: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    """Give every pixel its spectrum, load and nominal counts, and sum the spectra of pixels about as busy.

    ``weights`` (1 + n, n_energies) are the load of a photon, and what it counts.
    """
    n_energies, _, cols = photons.shape
    n, m = -(-len(weights) // strips.TILE) * strips.TILE, -(-n_energies // strips.TILE) * strips.TILE
    whole, lines = np.zeros((n, m), dtype=np.float32), np.zeros((m, cols), dtype=np.float32)
    for kind in range(len(weights)):  # each by itself: to assign arrays takes Numba seconds to compile
        for energy in range(n_energies):
            whole[kind, energy] = weights[kind, energy]
    sums = np.empty((n, cols), dtype=np.float32)
    for row in range(start, stop):
        _turn(photons, row, lines, spectra[row])
        strips.multiply(whole, lines, sums)
        for kind in range(1, len(weights)):
            for col in range(cols):
                evenly[kind - 1, row, col] = sums[kind, col]
        for col in range(cols):
            load[row, col] = sums[0, col]
            group = np.searchsorted(edges, sums[0, col], side="right") - 1
            members[row // strips.BLOCK, group] += 1
            _add(spectra[row, col], groups[row // strips.BLOCK, group])


@strips.quick
def _add_noise(
    counts: np.ndarray, factor: np.float32, noise_per_s: np.ndarray, duration_s: np.float32, alive: np.ndarray,
    mean: np.ndarray,
) -> None:  # fmt: skip
    for plane in range(len(mean)):
        for row in range(mean.shape[1]):
            signal, noise, share, both = counts[plane, row], noise_per_s[plane, row], alive[row], mean[plane, row]
            for col in range(len(both)):
                both[col] = factor * signal[col] + duration_s * noise[col] * share[col]


@strips.quick
def _turn(photons: np.ndarray, row: int, lines: np.ndarray, spectra: np.ndarray) -> None:
    """Copy one row's photons, energy by energy, and pixel by pixel: (cols, n_energies or more) float32."""
    for energy in range(len(photons)):
        line, copy = photons[energy, row], lines[energy]
        for col in range(len(copy)):
            copy[col] = line[col]
    for col in range(len(spectra)):
        one = spectra[col]
        one[len(photons) :] = 0
        for energy in range(len(photons)):
            one[energy] = lines[energy, col]


@strips.quick
def _add(values: np.ndarray, sums: np.ndarray) -> None:
    for i in range(len(sums)):
        sums[i] += values[i]


@strips.quick
def _counts_above(photons: np.ndarray, lower: np.ndarray, upper: np.ndarray, part: np.float32) -> np.float32:
    """Return the mean counts of one pixel above a threshold, between the table's two nearest ones."""
    counts = np.float32(0)
    for energy in range(len(photons)):
        counts += photons[energy] * (lower[energy] + part * (upper[energy] - lower[energy]))
    return counts


@strips.quick
def _between(values: np.ndarray, place: float) -> float:
    """Return what stands between two values of a row, at a place on its grid."""
    i = int(place)
    return values[i] + (place - i) * (values[i + 1] - values[i])


@strips.quick
def _fold(
    spectra: np.ndarray, load: np.ndarray, table: np.ndarray, first: np.ndarray, kinds: np.ndarray,
    threshold_kev: np.ndarray, seen: np.ndarray, blur: np.ndarray, piled: PileUp, duration_s: float,
    counts: np.ndarray, alive: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    """Fold photons with the tables at every pixel's own thresholds."""
    loads = piled.load
    is_even = blur.shape[1] == 1
    for row in range(start, stop):
        for col in range(load.shape[1]):
            here = load[row, col]
            high = 1
            while high < len(loads) - 1 and loads[high] < here:
                high += 1
            part = 0.0
            if high < len(loads) and loads[high] > loads[high - 1]:
                part = min((here - loads[high - 1]) / (loads[high] - loads[high - 1]), 2.0)
            high = min(high, len(loads) - 1)
            low = max(high - 1, 0)
            lower, upper = piled.alive[low], piled.alive[high]
            alone = min(max(lower[0] + part * (upper[0] - lower[0]), 0.0), 1.0)
            node = min(max(lower[1] + part * (upper[1] - lower[1]), 0.0), 1.0)
            alive[row, col] = alone
            if here <= 0:
                continue
            for plane in range(len(kinds)):
                counts[plane, row, col] = 0
                if seen[plane, row, col] < 1e-9:
                    continue
                kind = kinds[plane]
                energy_kev = max(threshold_kev[plane, row, col], np.float32(0))
                place = min(energy_kev / CHARGE_STEP_KEV, CHARGE_BINS - 0.001)
                at = int(place)
                begin = first[kind, at]
                found = (node if kind == SUMMED else alone) * _counts_above(
                    spectra[row, col, begin:], table[kind, at, begin:], table[kind, at + 1, begin:],
                    np.float32(place - at),
                )  # fmt: skip
                found *= blur[plane, 0, 0] if is_even else blur[plane, row, col]
                level = min(energy_kev / LEVEL_STEP_KEV, N_LEVELS - 1.001)
                less, more = _between(piled.lifted[low, kind], level), _between(piled.lifted[high, kind], level)
                lifted = max(less + part * (more - less), 0.0) * here * duration_s
                counts[plane, row, col] = seen[plane, row, col] * (found + lifted)


@njit(cache=True, nogil=True)
def share_of_upcrossings(threshold_kev: np.ndarray, noise_kev: np.ndarray, relative_noise: np.ndarray) -> np.ndarray:
    """Return the chance that the baseline is below the threshold, so that a pulse can cross it upwards."""
    seen = np.empty(threshold_kev.shape, dtype=np.float32)
    for plane in range(len(seen)):
        for row in range(relative_noise.shape[0]):
            for col in range(relative_noise.shape[1]):
                sigma_kev = 1.4142135623730951 * noise_kev[plane] * relative_noise[row, col]
                x = threshold_kev[plane, row, col] / sigma_kev
                seen[plane, row, col] = 1.0 if x > 5 else 0.5 * math.erfc(-x)
    return seen


@njit(cache=True, nogil=True)
def share_of_crossings(threshold_kev: np.ndarray, noise_kev: np.ndarray, relative_noise: np.ndarray) -> np.ndarray:
    """Return the rate of noise above the threshold as a share of the greatest, which is at the baseline."""
    crossing = np.empty(threshold_kev.shape, dtype=np.float32)
    for plane in range(len(crossing)):
        for row in range(relative_noise.shape[0]):
            for col in range(relative_noise.shape[1]):
                x = threshold_kev[plane, row, col] / (noise_kev[plane] * relative_noise[row, col])
                crossing[plane, row, col] = math.exp(-0.5 * x * x) if abs(x) < 8 else 0.0
    return crossing
