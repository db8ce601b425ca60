"""What amplifiers and discriminators make of the hits that photons leave, one photon after the other.

A *place* is a pixel of the chip, with a margin of one pixel around the chip, so that every hit has all its neighbours;
the summing node of a place is that at the pixel's lower left corner.

# Ref: the pulse: a charge raises the output at once, it holds for the peaking time (120 ns: CERN Knowledge Transfer)
#      and falls at the constant rate of Ikrum ("1 nA = DAC 5": geant4medipix `DetectorConfig.ini`), never below 0.
# Ref: charge summing: Pennicard et al. 2011 (abstract) and ADVACAM forum, Medipix3 operation modes: the pixel with the
#      largest charge of its neighbourhood wins, if that is above its TH0, and counts the largest of its four 2x2 sums.
# Ref: the first Medipix3: the summing node with the largest sum of its neighbourhood wins, and nodes of low threshold
#      draw hits to themselves: Pennicard et al. 2011 (abstract). That the excess over the threshold decides is our
#      reading of it.

Choices where no source tells: noise is that of the amplifier, the same for all its discriminators; a sum has one noise
of its own; the arbiter compares charges with noise, not what earlier photons left; dead and masked pixels win and lose
as others do and count nothing; a node's output falls as a pixel's does, however many pixels feed it. The Fano factor
acts on each pixel's charge.

Hits come in batches, and each step goes through a whole batch: a processor works at many hits at a time, and fetches
their places from memory together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim import chance

NEVER_KEV = 1e30
"""A threshold that nothing crosses."""
SINGLES, SUMS = 0, 4
"""A pixel's first four thresholds see its own charge, the others sums in charge summing."""
N_COUNTS = 8
_RECORD = 16
GAIN, NOISE_KEV2, SUM_NOISE_KEV2, ARBITER, TH0, LOWEST, _OUTPUT, _RAISED = range(N_COUNTS, _RECORD)
_OUT, _SINCE, _SUM, _RIVAL = range(4)
_SURE_SIGMA2 = 36.0
"""Noise further out than 6 sigma is left out where all thresholds are that far above the output."""
_CACHE_LINE = 64

_kernel = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # pyright: ignore[reportCallIssue]
"""Compiles what is called per batch: counting references to its arrays would take a third of the time."""
_inlined = njit(inline="always", error_model="numpy")
_ONE = np.uint64(1)


class Front(NamedTuple):
    """How the amplifiers and discriminators work."""

    stride: np.uint64
    """From one row of places to the next."""
    is_csm: bool
    has_arbiter: bool
    is_first_rule: bool
    fano_kev: np.float32
    fall_kev_per_s: np.float32
    peaking_time_s: np.float32


class Amplifiers(NamedTuple):
    """What the amplifiers remember, and their counters; amplitudes are keV of the mean pixel.

    Times count from the beginning of a window, so that 32 bits hold them.

    Attributes
    ----------
    pixels : (places, _RECORD) float32
        All that a hit looks at, side by side in memory. First the thresholds, those on sums from SUMS on, NEVER_KEV
        where nothing is counted; then what the names of columns say.
    counts : (places, N_COUNTS) float32
    nodes : (places, 4) float32
        Of the summing nodes: where the output stood when last raised, when that was, and what the photon at hand adds;
        and what that photon's hit on the pixel is with noise, -NEVER_KEV for none.
    """

    pixels: np.ndarray
    counts: np.ndarray
    nodes: np.ndarray


class Hits(NamedTuple):
    """The hits of a batch, photon by photon.

    Attributes
    ----------
    lasts : (photons,) uint64
        Where the hits of each photon end.
    arrivals_s : (photons,) float32
    places : (hits,) uint32
    times_s : (hits,) float32
    charges_kev : (hits,) float32
        What the pixel's charge is worth, and then what it adds to the output.
    seen_kev : (hits,) float32
        The same with noise; before that a normal number.
    before_kev : (hits,) float32
        Where the output stood.
    winners : (hits,) uint32
        Which hits win.
    sums_kev : (hits, 2) float32
        Of each winner: the sum that it counts, and where the output of its node stood.
    """

    lasts: np.ndarray
    arrivals_s: np.ndarray
    places: np.ndarray
    times_s: np.ndarray
    charges_kev: np.ndarray
    seen_kev: np.ndarray
    before_kev: np.ndarray
    winners: np.ndarray
    sums_kev: np.ndarray


def amplifiers(pixels: NDArray[np.float32]) -> Amplifiers:
    """Return amplifiers at rest, with records (rows, cols, columns up to LOWEST) of their pixels."""
    rows, cols, n_columns = pixels.shape
    places = np.zeros((rows + 2, cols + 2, _RECORD), dtype=np.float32)
    places[..., :N_COUNTS] = NEVER_KEV
    places[1:-1, 1:-1, :n_columns] = pixels
    places[..., _RAISED] = -1.0
    n = (rows + 2) * (cols + 2)
    state = Amplifiers(
        pixels=_aligned(n, _RECORD),
        counts=_aligned(n, N_COUNTS),
        nodes=_aligned(n, 4),
    )
    state.pixels[:] = places.reshape(n, _RECORD)
    state.nodes[:, _SINCE], state.nodes[:, _RIVAL] = -1.0, -NEVER_KEV
    return state


def _aligned(n: int, columns: int) -> NDArray[np.float32]:
    """Return zeros whose rows do not lie across lines of the cache."""
    memory = np.zeros(4 * n * columns + _CACHE_LINE, dtype=np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    return memory[start : start + 4 * n * columns].view(np.float32).reshape(n, columns)


def hits(n_photons: int, n_hits: int) -> Hits:
    """Return memory for the hits of a batch."""
    charges_kev, times_s, seen_kev, before_kev = np.zeros((4, n_hits), dtype=np.float32)
    return Hits(
        lasts=np.zeros(n_photons, dtype=np.uint64),
        arrivals_s=np.zeros(n_photons, dtype=np.float32),
        places=np.zeros(n_hits, dtype=np.uint32),
        times_s=times_s,
        charges_kev=charges_kev,
        seen_kev=seen_kev,
        before_kev=before_kev,
        winners=np.zeros(n_hits, dtype=np.uint32),
        sums_kev=np.zeros((n_hits, 2), dtype=np.float32),
    )


def counted(state: Amplifiers, rows: int, cols: int) -> NDArray[np.float32]:
    """Return the counts of the pixels: (N_COUNTS, rows, cols)."""
    return np.moveaxis(state.counts.reshape(rows + 2, cols + 2, N_COUNTS)[1:-1, 1:-1], -1, 0)


@_kernel
def begin_window(state: Amplifiers, passed_s: float) -> None:
    """Count times from a new beginning."""
    for place in range(len(state.pixels)):
        state.pixels[place, _RAISED] -= passed_s
        state.nodes[place, _SINCE] -= passed_s


@_kernel
def count(front: Front, state: Amplifiers, batch: Hits, n_photons: int, dice: chance.Dice) -> None:
    """Bring the hits of a batch to the amplifiers and count."""
    n_hits = int(batch.lasts[n_photons - 1])
    batch.sums_kev[0, 0] = _fetch(front, state, batch, n_hits)
    chance.fill_normal(batch.seen_kev[:n_hits], dice)
    _raise_pixels(front, state, batch, n_hits, dice)
    if front.is_csm and front.is_first_rule:
        _count_nodes(front, state, batch, n_photons, dice)
    elif front.is_csm:
        _count_winners(front, state, batch, _arbitrate(front, state, batch, n_photons), dice)


@_kernel
def _fetch(front: Front, state: Amplifiers, batch: Hits, n_hits: int) -> np.float32:
    """Touch all that hits will look at, so that memory answers for many at a time."""
    touched = np.float32(0)
    for i in range(np.uint64(n_hits)):
        place = np.uint64(batch.places[i])
        touched += state.pixels[place, 0] + state.counts[place, 0]
        touched += state.nodes[place, 0] + state.nodes[place + front.stride, 0]
    return touched


@_inlined
def _output_kev(output_kev: np.float32, raised_s: np.float32, time_s: np.float32, front: Front) -> np.float32:
    """Return where an output stands now."""
    fallen_kev = max(np.float32(0), (time_s - raised_s - front.peaking_time_s) * front.fall_kev_per_s)
    return max(np.float32(0), output_kev - fallen_kev)


@_inlined
def _crossed_from_kev(
    pixel: np.ndarray, before_kev: np.float32, noise_kev2: np.float32, dice: chance.Dice
) -> np.float32:
    """Return from where an output rises: where it stood, with noise if that may matter."""
    above_kev = pixel[LOWEST] - before_kev
    if above_kev < 0 or above_kev * above_kev < _SURE_SIGMA2 * noise_kev2:
        return before_kev + np.float32(math.sqrt(noise_kev2)) * chance.normal(dice)
    return before_kev


@_inlined
def _count_crossed(counts: np.ndarray, pixel: np.ndarray, first: int, from_kev: np.float32, to_kev: np.float32) -> None:
    """Count at four thresholds what crosses them; all four at a time, if they are read before any is written."""
    a, b, c, d = pixel[first], pixel[first + 1], pixel[first + 2], pixel[first + 3]
    n_a, n_b, n_c, n_d = counts[first], counts[first + 1], counts[first + 2], counts[first + 3]
    counts[first] = n_a + np.float32((from_kev <= a) & (a < to_kev))
    counts[first + 1] = n_b + np.float32((from_kev <= b) & (b < to_kev))
    counts[first + 2] = n_c + np.float32((from_kev <= c) & (c < to_kev))
    counts[first + 3] = n_d + np.float32((from_kev <= d) & (d < to_kev))


@_kernel
def _raise_pixels(front: Front, state: Amplifiers, batch: Hits, n_hits: int, dice: chance.Dice) -> None:
    """Add hits to their pixels' outputs, and count what pixels count alone."""
    for i in range(np.uint64(n_hits)):
        place = batch.places[i]
        pixel, counts, time_s = state.pixels[place], state.counts[place], batch.times_s[i]
        added_kev, noise_kev2 = batch.charges_kev[i] * pixel[GAIN], pixel[NOISE_KEV2]
        seen_kev = added_kev + math.sqrt(noise_kev2 + front.fano_kev * added_kev) * batch.seen_kev[i]
        before_kev = _output_kev(pixel[_OUTPUT], pixel[_RAISED], time_s, front)
        from_kev = _crossed_from_kev(pixel, before_kev, noise_kev2, dice)
        _count_crossed(counts, pixel, SINGLES, from_kev, before_kev + seen_kev)
        if not front.is_csm:
            _count_crossed(counts, pixel, SUMS, from_kev, before_kev + seen_kev)
        pixel[_OUTPUT], pixel[_RAISED] = before_kev + added_kev, time_s
        batch.charges_kev[i], batch.seen_kev[i], batch.before_kev[i] = added_kev, seen_kev, before_kev


@_inlined
def _add_to_nodes(front: Front, state: Amplifiers, batch: Hits, i: int) -> None:
    """Add a hit to the sums of the four nodes that it feeds, and enter it as a rival."""
    nodes, place, added_kev = state.nodes, np.uint64(batch.places[i]), batch.charges_kev[i]
    above = place + front.stride
    nodes[place, _RIVAL] = batch.seen_kev[i]
    nodes[place, _SUM] += added_kev
    nodes[place + _ONE, _SUM] += added_kev
    nodes[above, _SUM] += added_kev
    nodes[above + _ONE, _SUM] += added_kev


@_inlined
def _raise_node(front: Front, node: np.ndarray, time_s: np.float32) -> None:
    """Let a node's output rise by its sum, which is used up."""
    node[_OUT] = _output_kev(node[_OUT], node[_SINCE], time_s, front) + node[_SUM]
    node[_SINCE], node[_SUM] = time_s, np.float32(0)


@_inlined
def _raise_nodes(front: Front, state: Amplifiers, batch: Hits, i: int, time_s: np.float32) -> None:
    """Let the nodes that a hit feeds rise, and take it from the rivals."""
    place = np.uint64(batch.places[i])
    above = place + front.stride
    _raise_node(front, state.nodes[place], time_s)
    _raise_node(front, state.nodes[place + _ONE], time_s)
    _raise_node(front, state.nodes[above], time_s)
    _raise_node(front, state.nodes[above + _ONE], time_s)
    state.nodes[place, _RIVAL] = np.float32(-NEVER_KEV)


@_inlined
def _wins(front: Front, state: Amplifiers, batch: Hits, i: int) -> bool:
    """Return whether a hit is above the arbiter's threshold and not below any of its neighbours."""
    place, own_kev, nodes = np.uint64(batch.places[i]), batch.seen_kev[i], state.nodes
    below, above = place - front.stride, place + front.stride
    largest = max(
        max(
            max(nodes[below - _ONE, _RIVAL], nodes[below, _RIVAL]),
            max(nodes[below + _ONE, _RIVAL], nodes[place - _ONE, _RIVAL]),
        ),
        max(
            max(nodes[above - _ONE, _RIVAL], nodes[above, _RIVAL]),
            max(nodes[above + _ONE, _RIVAL], nodes[place + _ONE, _RIVAL]),
        ),
    )
    is_seen = batch.before_kev[i] + own_kev > state.pixels[place, ARBITER]
    return (is_seen | (not front.has_arbiter)) & (largest <= own_kev)


@_inlined
def _largest_sum(front: Front, state: Amplifiers, place: np.uint64) -> np.uint64:
    """Return which of the four nodes of a pixel has the largest sum."""
    nodes, above = state.nodes, place + front.stride
    lower = place + np.uint64(nodes[place + _ONE, _SUM] > nodes[place, _SUM])
    upper = above + np.uint64(nodes[above + _ONE, _SUM] > nodes[above, _SUM])
    return upper if nodes[upper, _SUM] > nodes[lower, _SUM] else lower


@_kernel
def _arbitrate(front: Front, state: Amplifiers, batch: Hits, n_photons: int) -> int:
    """Bring the hits of each photon to the nodes, and find its winners and their largest sums; return how many win."""
    first = n = np.uint64(0)
    for number in range(np.uint64(n_photons)):
        last, time_s = batch.lasts[number], batch.arrivals_s[number]
        for i in range(first, last):
            _add_to_nodes(front, state, batch, i)
        n_won = n
        for i in range(first, last):  # without branches, which nobody could foretell
            batch.winners[n] = i
            n += np.uint64(_wins(front, state, batch, i))
        for k in range(n_won, n):
            node = state.nodes[_largest_sum(front, state, np.uint64(batch.places[batch.winners[k]]))]
            batch.sums_kev[k, 0] = node[_SUM]
            batch.sums_kev[k, 1] = _output_kev(node[_OUT], node[_SINCE], time_s, front)
        for i in range(first, last):
            _raise_nodes(front, state, batch, i, time_s)
        first = last
    return int(n)


@_kernel
def _count_winners(front: Front, state: Amplifiers, batch: Hits, n: int, dice: chance.Dice) -> None:
    """Count winners at TH0, and their sums at the thresholds that see sums."""
    for k in range(np.uint64(n)):
        i = batch.winners[k]
        place, before_kev = batch.places[i], batch.before_kev[i]
        pixel, counts = state.pixels[place], state.counts[place]
        crosses = (before_kev <= pixel[TH0]) & (pixel[TH0] < before_kev + batch.seen_kev[i])
        counts[0] += np.float32(crosses & front.has_arbiter)
        _count_sum(front, pixel, counts, batch.sums_kev[k, 0], batch.sums_kev[k, 1], dice)


@_inlined
def _count_sum(
    front: Front, pixel: np.ndarray, counts: np.ndarray, sum_kev: np.float32, before_kev: np.float32, dice: chance.Dice
) -> None:
    """Count a sum at the thresholds that see sums."""
    noise_kev2 = pixel[SUM_NOISE_KEV2]
    to_kev = before_kev + sum_kev + math.sqrt(noise_kev2 + front.fano_kev * sum_kev) * chance.normal(dice)
    _count_crossed(counts, pixel, SUMS, _crossed_from_kev(pixel, before_kev, noise_kev2, dice), to_kev)


@_kernel
def _count_nodes(front: Front, state: Amplifiers, batch: Hits, n_photons: int, dice: chance.Dice) -> None:
    """Let the summing nodes with the largest excess over their thresholds count, by the first Medipix3's rule.

    A node belongs to the pixel below, left of it; those below the first row or left of the first column to none.
    """
    first, stride, n_columns = np.uint64(0), np.int64(front.stride), np.int64(front.stride) - 2
    for number in range(np.uint64(n_photons)):
        last, time_s, n = batch.lasts[number], batch.arrivals_s[number], 0
        for i in range(first, last):
            _add_to_nodes(front, state, batch, i)
        for i in range(first, last):
            for corner in range(4):
                node = np.int64(batch.places[i]) + (corner & 1) + stride * (corner >> 1)
                owner = node - stride - 1
                known = 0
                while known < n and batch.winners[known] != node:
                    known += 1
                if known == n and owner >= stride and 1 <= owner % stride <= n_columns:
                    pixel = state.pixels[owner]
                    noise_kev = math.sqrt(pixel[SUM_NOISE_KEV2]) * chance.normal(dice)
                    batch.winners[n] = node
                    batch.sums_kev[n, 0] = state.nodes[node, _SUM] + noise_kev - pixel[SUMS]
                    n += 1
        for i in range(n):
            node, wins = np.int64(batch.winners[i]), True
            for j in range(n):
                apart = abs(np.int64(batch.winners[j]) - node)
                is_near = apart <= 1 or stride - 1 <= apart <= stride + 1
                wins &= not (is_near and batch.sums_kev[j, 0] > batch.sums_kev[i, 0])
            if wins:
                owner, output = node - stride - 1, state.nodes[node]
                before_kev = _output_kev(output[_OUT], output[_SINCE], time_s, front)
                _count_sum(front, state.pixels[owner], state.counts[owner], output[_SUM], before_kev, dice)
        for i in range(first, last):
            _raise_nodes(front, state, batch, i, time_s)
        first = last
