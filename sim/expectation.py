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
    above : (N_KINDS, CHARGE_BINS + 1, n_energies) float32
        Counts above each threshold of the charges' grid.
    first : (N_KINDS, CHARGE_BINS + 1) int64
        The first energy that counts at all above it.
    traffic : (2, n_energies, N_LEVELS) float64
        Charges that reach a pixel, and a node of 2x2 pixels, on the grid of levels.
    workload_kev : (n_energies,) float32
        Charge in a pixel; a node has four times as much.
    deposits : Deposits or None
        What else one photon counts; None where every pixel stands alone.
    """

    above: NDArray[np.float32]
    first: NDArray[np.int64]
    traffic: NDArray[np.float64]
    workload_kev: NDArray[np.float32]
    deposits: tables.Deposits | None


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
    above = np.ascontiguousarray(np.stack(kinds).transpose(0, 2, 1))
    node = deposits.single if is_alone else deposits.node
    charge_kev = (np.arange(CHARGE_BINS) + 0.5) * CHARGE_STEP_KEV
    return Response(
        above=above,
        first=(above > 1e-7).argmax(axis=2),
        traffic=np.stack([_on_levels(deposits.single), _on_levels(node)]),
        workload_kev=(deposits.single @ charge_kev).astype(np.float32),
        deposits=None if is_alone else deposits,
    )


def light(
    photons: NDArray[np.float32], of: Response, thresholds: Discriminators, pulse: Pulse, duration_s: float
) -> Light:
    """Return what photons of (n_energies, rows, cols) count on average above each threshold."""
    n_energies, rows, cols = photons.shape
    spectra = np.empty((rows, cols, n_energies), dtype=np.float32)
    load = np.empty((rows, cols), dtype=np.float32)
    groups = np.zeros((rows, len(LOADS) - 1, n_energies))  # by row, so that the sum does not depend on threads
    members = np.zeros((rows, len(LOADS) - 1), dtype=np.int64)
    per_photon = (of.workload_kev / (pulse.fall_kev_per_s * duration_s)).astype(np.float32)
    middle = np.clip(thresholds.nominal_kev / CHARGE_STEP_KEV, 0, CHARGE_BINS).round().astype(int)
    weights = of.above[thresholds.kind, middle]
    evenly = np.zeros((len(weights), rows, cols), dtype=np.float32)
    busiest = _busiest(of, thresholds)

    def sort(start: int, stop: int) -> None:
        _sort_by_load(
            photons, per_photon, weights, LOADS / busiest, spectra, load, evenly, groups, members, start, stop
        )

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
            spectra, load, of.above, of.first, thresholds.kind, thresholds.threshold_kev, thresholds.seen, blur,
            piled, duration_s, counts, alive, start, stop,
        )  # fmt: skip

    strips.in_parallel(fold, rows)
    return Light(counts=counts, alive=alive, load=load, spectrum=spectrum, refold=fold)


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
    above = np.einsum("le,kte->lkt", per_s, of.above[:, ::2])
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
    _spread(padded, reaching.astype(np.float32), tables.CLASS_OF_PLACE, evenly, ratio)
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


@njit(cache=True, nogil=True, fastmath=True)
def _spread(
    padded: np.ndarray, share: np.ndarray, class_of_place: np.ndarray, evenly: np.ndarray, ratio: np.ndarray
) -> None:
    n, rows, cols = ratio.shape
    for plane in range(n):
        for row in range(rows):
            found = ratio[plane, row]
            found[:] = 0
            for down in range(class_of_place.shape[0]):
                for right in range(class_of_place.shape[1]):
                    weight, shifted = share[plane, class_of_place[down, right]], padded[plane, row + down, right:]
                    for col in range(cols):
                        found[col] += weight * shifted[col]
            for col in range(cols):
                found[col] /= max(evenly[plane, row, col], np.float32(1e-30))


@njit(cache=True, nogil=True, fastmath=True)
def _sort_by_load(
    photons: np.ndarray, per_photon: np.ndarray, weights: np.ndarray, edges: np.ndarray, spectra: np.ndarray,
    load: np.ndarray, evenly: np.ndarray, groups: np.ndarray, members: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    """Give every pixel its spectrum, load and nominal counts, and sum the spectra of pixels about as busy."""
    n_energies, _, cols = photons.shape
    for row in range(start, stop):
        for energy in range(n_energies):
            line = photons[energy, row]
            for col in range(cols):
                spectra[row, col, energy] = line[col]
            for plane in range(len(weights)):
                weight, counted = weights[plane, energy], evenly[plane, row]
                for col in range(cols):
                    counted[col] += weight * line[col]
        for col in range(cols):
            here, one = np.float32(0), spectra[row, col]
            for energy in range(n_energies):
                here += one[energy] * per_photon[energy]
            load[row, col] = here
            group = np.searchsorted(edges, here, side="right") - 1
            members[row, group] += 1
            for energy in range(n_energies):
                groups[row, group, energy] += one[energy]


@njit(cache=True, nogil=True, fastmath=True)
def _counts_above(photons: np.ndarray, table: np.ndarray, first: np.ndarray, place: float) -> float:
    """Return the mean counts of one pixel above a threshold, between the table's two nearest ones."""
    low = int(place)
    start = first[low]
    passing, lower, upper = photons[start:], table[low, start:], table[low + 1, start:]
    below = above = np.float32(0)
    for energy in range(len(passing)):
        below += passing[energy] * lower[energy]
        above += passing[energy] * upper[energy]
    return float(below + (above - below) * np.float32(place - low))


@njit(cache=True, nogil=True)
def _fold(
    spectra: np.ndarray, load: np.ndarray, above: np.ndarray, first: np.ndarray, kinds: np.ndarray,
    threshold_kev: np.ndarray, seen: np.ndarray, blur: np.ndarray, piled: PileUp, duration_s: float,
    counts: np.ndarray, alive: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    """Fold photons with the tables at every pixel's own thresholds."""
    loads = piled.load
    is_even = blur.shape[1] == 1
    for row in range(start, stop):
        for col in range(load.shape[1]):
            here, photons = load[row, col], spectra[row, col]
            high = 1
            while high < len(loads) - 1 and loads[high] < here:
                high += 1
            part = 0.0
            if high < len(loads) and loads[high] > loads[high - 1]:
                part = min((here - loads[high - 1]) / (loads[high] - loads[high - 1]), 2.0)
            high = min(high, len(loads) - 1)
            low = max(high - 1, 0)
            at_base = piled.alive[low] + part * (piled.alive[high] - piled.alive[low])
            alive[row, col] = min(max(at_base[0], 0.0), 1.0)
            if here <= 0:
                continue
            for plane in range(len(kinds)):
                counts[plane, row, col] = 0
                if seen[plane, row, col] < 1e-9:
                    continue
                kind = kinds[plane]
                base = min(max(at_base[1 if kind == SUMMED else 0], 0.0), 1.0)
                energy_kev = max(threshold_kev[plane, row, col], np.float32(0))
                place = min(energy_kev / CHARGE_STEP_KEV, CHARGE_BINS - 0.001)
                found = base * _counts_above(photons, above[kind], first[kind], place)
                found *= blur[plane, 0, 0] if is_even else blur[plane, row, col]
                level = min(energy_kev / LEVEL_STEP_KEV, N_LEVELS - 1.001)
                i = int(level)
                lower = piled.lifted[low, kind, i] + (level - i) * (
                    piled.lifted[low, kind, i + 1] - piled.lifted[low, kind, i]
                )
                upper = piled.lifted[high, kind, i] + (level - i) * (
                    piled.lifted[high, kind, i + 1] - piled.lifted[high, kind, i]
                )
                lifted = max(lower + part * (upper - lower), 0.0) * here * duration_s
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
