"""Fits of rays on the CPU: many rays side by side, each at its own trial point, one sweep over the nodes for all.

A lane holds one ray. In every round the expected counts of all lanes and their slopes are evaluated at once, lane
beside lane, so that the compiler takes several at a time; then each lane accepts or refuses its trial, and steps. A
lane whose ray has ended takes the next one, so that none waits for the slowest.

# Ref: Fisher scoring damped as by Levenberg and Marquardt: Marquardt 1963, J. SIAM 11, 431; of spectral counts:
#      Roessl and Proksa 2007, Phys. Med. Biol. 52, 4679; Schlomka et al. 2008, Phys. Med. Biol. 53, 4031.
# Ref: log m = 2 artanh((m - 1) / (m + 1)): Abramowitz and Stegun 1964, 4.1.27.
# Ref: 2^n by adding n to the exponent's bits, n rounded by adding 1.5 * 2^52: IEEE 754, binary64.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

LANES = 64
GUESSES_PER_SIGNAL = 16
"""How finely the table of first guesses is divided."""
NODES_AT_ONCE = 4
"""How many nodes go into a sum before it is stored: `gather` is written for four."""
_ROUND = 1.5 * 2.0**52
_LOWEST, _HIGHEST = -1000.0, 1000.0
_NODES = np.cos((np.arange(9) + 0.5) * math.pi / 9) / 2
_C8, _C7, _C6, _C5, _C4, _C3, _C2, _C1, _C0 = (float(c) for c in np.polyfit(_NODES, 2.0**_NODES, 8))
_SQRT_HALF = np.int64(np.array(math.sqrt(0.5)).view(np.int64))
_BIAS, _TWO_52, _LN2 = np.int64(1023 << 52), np.int64(0x433 << 52), math.log(2)
_SMALLEST_PIVOT = 1e-12
_FIRST_DAMPING, _RAISED, _LOWERED, _HIGHEST_DAMPING, _NO_DAMPING = 0.03, 8.0, 0.1, 1e9, 1e-3
_NEVER_COUNTED = 1e-30
_SLACK = 1e-9
"""A trial is refused if it is worse by more than this part of its value: below it, sums of doubles are rounding."""


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def keep(exponents, paths, kept, power):  # noqa: ANN001, ANN201
    """Fill `kept` (n_nodes, lanes) with 2^(exponents @ paths), exponents (n_nodes, n_materials), paths (.., lanes)."""
    n_lanes = paths.shape[1]
    scaled, bits = power, power.view(np.int64)
    for node in range(exponents.shape[0]):
        row = kept[node]
        row_bits = row.view(np.int64)
        for lane in range(n_lanes):
            scaled[lane] = exponents[node, 0] * paths[0, lane]
        for k in range(1, exponents.shape[1]):
            exponent = exponents[node, k]
            for lane in range(n_lanes):
                scaled[lane] += exponent * paths[k, lane]
        for lane in range(n_lanes):
            x = min(max(scaled[lane], _LOWEST), _HIGHEST)
            rounded = x + _ROUND
            f = x - (rounded - _ROUND)
            high = ((_C8 * f + _C7) * f + _C6) * f + _C5
            low = ((_C4 * f + _C3) * f + _C2) * f + _C1
            row[lane] = (high * (f * f) * (f * f) + low) * f + _C0
            scaled[lane] = rounded
        for lane in range(n_lanes):
            row_bits[lane] += bits[lane] << 52


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def gather(coefficients, first_node, end_node, kept, sums):  # noqa: ANN001, ANN201
    """Fill `sums` (n, channels, lanes) with coefficients (n, channels, n_nodes) @ kept, over each one's own nodes."""
    for b in range(coefficients.shape[0]):
        for channel in range(coefficients.shape[1]):
            row, out = coefficients[b, channel], sums[b, channel]
            for lane in range(out.shape[0]):
                out[lane] = 0.0
            for node in range(first_node[b], end_node[b], 4):
                c0, c1, c2, c3 = row[node], row[node + 1], row[node + 2], row[node + 3]
                t0, t1, t2, t3 = kept[node], kept[node + 1], kept[node + 2], kept[node + 3]
                for lane in range(out.shape[0]):
                    out[lane] += c0 * t0[lane] + c1 * t1[lane] + c2 * t2[lane] + c3 * t3[lane]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def logarithms(values, logs, power):  # noqa: ANN001, ANN201
    """Fill `logs` (lanes,) with the natural logarithms of positive, normal values."""
    bits, powers, mantissa = values.view(np.int64), power.view(np.int64), logs.view(np.int64)
    for lane in range(values.shape[0]):
        n = ((bits[lane] - _SQRT_HALF + _BIAS) >> 52) & 0x7FF
        powers[lane] = n | _TWO_52
        mantissa[lane] = bits[lane] - (n << 52) + _BIAS
    for lane in range(values.shape[0]):
        s = (logs[lane] - 1.0) / (logs[lane] + 1.0)
        q = s * s
        series = ((((q / 13 + 1.0 / 11) * q + 1.0 / 9) * q + 1.0 / 7) * q + 1.0 / 5) * q + 1.0 / 3
        logs[lane] = (power[lane] - (4503599627370496.0 + 1023.0)) * _LN2 + 2.0 * s * (1.0 + q * series)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _weigh(sums, measured, opened, added, kept, hessian, gradient, value, misfit):  # noqa: ANN001, ANN202
    """Fill packed information, downhill gradient, negative log-likelihood and chi square of all lanes.

    `sums` become the slopes of the counts; the rows of `kept` are used as room.
    """
    n_bins, n_materials, n_lanes = sums.shape[0], sums.shape[1] - 1, sums.shape[2]
    expected, inverse, pull, power = kept[0], kept[1], kept[2], kept[3]
    hessian[:] = 0.0
    gradient[:] = 0.0
    value[:] = 0.0
    misfit[:] = 0.0
    for b in range(n_bins):
        share, y, y0, r = sums[b, 0], measured[b], opened[b], added[b]
        for lane in range(n_lanes):
            expected[lane] = y0[lane] * share[lane] + r[lane]
            inverse[lane] = 1.0 / expected[lane]
            pull[lane] = 1.0 - y[lane] * inverse[lane]
            misfit[lane] += pull[lane] * pull[lane] * expected[lane]
        logarithms(expected, share, power)
        for lane in range(n_lanes):
            value[lane] += expected[lane] - y[lane] * share[lane]
        for k in range(n_materials):
            slope, g = sums[b, k + 1], gradient[k]
            for lane in range(n_lanes):
                slope[lane] *= y0[lane]
                g[lane] += slope[lane] * pull[lane]
        pair = 0
        for k in range(n_materials):
            weighted, slope = pull, sums[b, k + 1]
            for lane in range(n_lanes):
                weighted[lane] = slope[lane] * inverse[lane]
            for other in range(k, n_materials):
                slope_other, h = sums[b, other + 1], hessian[pair]
                for lane in range(n_lanes):
                    h[lane] += weighted[lane] * slope_other[lane]
                pair += 1


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def solve(packed, damping, prior, gradient, lower, step, gain):  # noqa: ANN001, ANN201
    """Solve (H + damping diag H) step = gradient in all lanes; directions of which H says nothing get no step.

    Parameters
    ----------
    packed, gradient : (K (K + 1) / 2, lanes) and (K, lanes) float64
        H is the packed matrix, the rows of its upper triangle, plus the diagonal `prior` (K,).
    damping : (lanes,) float64
    lower : (K, K, lanes) float64
        Filled: Cholesky factors, their diagonals inverted.
    step, gain : (K, lanes) and (lanes,) float64
        Filled; the gain is half of gradient . step, what the quadratic model foretells.
    """
    n, n_lanes = gradient.shape
    pair = 0
    for k in range(n):
        for other in range(k, n):
            value, source = lower[other, k], packed[pair]
            for lane in range(n_lanes):  # each by itself: to assign arrays takes Numba seconds to compile
                value[lane] = source[lane]
            pair += 1
    for k in range(n):
        pivot, value = lower[k, k], step[k]
        for lane in range(n_lanes):
            whole = pivot[lane] + prior[k]
            pivot[lane] = whole * (1.0 + damping[lane])
            value[lane] = _SMALLEST_PIVOT * whole
        for j in range(k):
            row = lower[k, j]
            for lane in range(n_lanes):
                pivot[lane] -= row[lane] * row[lane]
        for lane in range(n_lanes):
            is_told = pivot[lane] > max(value[lane], 0.0)
            pivot[lane] = 1.0 / math.sqrt(pivot[lane] if is_told else 1.0)
            if not is_told:
                pivot[lane] = 0.0
        for i in range(k + 1, n):
            value = lower[i, k]
            for j in range(k):
                left, right = lower[i, j], lower[k, j]
                for lane in range(n_lanes):
                    value[lane] -= left[lane] * right[lane]
            for lane in range(n_lanes):
                value[lane] *= pivot[lane]
    gain[:] = 0.0
    for k in range(n):
        value, pivot, source = step[k], lower[k, k], gradient[k]
        for lane in range(n_lanes):
            value[lane] = source[lane]
        for j in range(k):
            left, right = lower[k, j], step[j]
            for lane in range(n_lanes):
                value[lane] -= left[lane] * right[lane]
        for lane in range(n_lanes):
            value[lane] *= pivot[lane]
            gain[lane] += 0.5 * value[lane] * value[lane]
    for k in range(n - 1, -1, -1):
        value, pivot = step[k], lower[k, k]
        for i in range(k + 1, n):
            left, right = lower[i, k], step[i]
            for lane in range(n_lanes):
                value[lane] -= left[lane] * right[lane]
        for lane in range(n_lanes):
            value[lane] *= pivot[lane]


@njit(cache=True, nogil=True, error_model="numpy")
def _load(lane, ray, counts, open_counts, background, starts, guess, measured, opened, added, trial):  # noqa: ANN001, ANN202
    """Put a ray into a lane, and return how many of its bins were measured.

    A bin that was not measured, or has no open beam, expects next to nothing and got 0.
    """
    n_used, total, whole = 0, 0.0, 0.0
    for b in range(counts.shape[0]):
        y = np.float64(counts[b, ray])
        y0 = np.float64(open_counts[b, ray if open_counts.shape[1] > 1 else 0])
        r = np.float64(background[b, ray if background.shape[1] > 1 else 0])
        is_used = y >= 0 and y < np.inf and y0 > 0 and y0 < np.inf and r >= 0 and r < np.inf
        measured[b, lane] = y if is_used else 0.0
        opened[b, lane] = y0 if is_used else 0.0
        added[b, lane] = r + _NEVER_COUNTED if is_used else _NEVER_COUNTED
        n_used += is_used
        total += y - r if is_used else 0.0
        whole += y0 if is_used else 0.0
    at = ray if starts.shape[1] > 1 else 0
    is_given = True
    for k in range(starts.shape[0]):
        trial[k, lane] = starts[k, at]
        is_given = is_given and math.isfinite(starts[k, at])
    if not is_given:
        signal = -math.log(max(total, 0.5) / max(whole, 0.5))
        place = min(max(signal * GUESSES_PER_SIGNAL, 0.0), guess.shape[1] - 1.001)
        below = int(place)
        for k in range(starts.shape[0]):
            trial[k, lane] = guess[k, below] + (place - below) * (guess[k, below + 1] - guess[k, below])
    return n_used


@njit(cache=True, nogil=True, error_model="numpy")
def fit(
    counts,  # noqa: ANN001
    open_counts,  # noqa: ANN001
    background,  # noqa: ANN001
    starts,  # noqa: ANN001
    guess,  # noqa: ANN001
    prior_mean,  # noqa: ANN001
    prior_information,  # noqa: ANN001
    exponents,  # noqa: ANN001
    coefficients,  # noqa: ANN001
    first_node,  # noqa: ANN001
    end_node,  # noqa: ANN001
    n_iterations,  # noqa: ANN001
    tolerance,  # noqa: ANN001
    paths,  # noqa: ANN001
    information,  # noqa: ANN001
    chi_square,  # noqa: ANN001
    n_degrees,  # noqa: ANN001
    rounds,  # noqa: ANN001
    is_converged,  # noqa: ANN001
    first,  # noqa: ANN001
    end,  # noqa: ANN001
) -> None:
    """Fit the rays from `first` to `end`.

    Parameters
    ----------
    counts : (n_bins, n_rays) float
    open_counts, background : (n_bins, n_rays) or (n_bins, 1) float
    starts : (n_materials, n_rays) or (n_materials, 1) float64
        Not finite: begin with the guess.
    guess : (n_materials, n) float64
        Paths for total signals -ln(counts / open beam) of 0, 1 / GUESSES_PER_SIGNAL, ...
    prior_mean : (n_materials, n_rays) or (n_materials, 1) float64
    prior_information : (n_materials,) float64
    exponents : (n_nodes, n_materials) float64
        Of 2, negative.
    coefficients : (n_bins, 1 + n_materials, n_nodes) float64
        Of the transmission and of what it loses per path.
    first_node, end_node : (n_bins,) int64
        Where a bin's coefficients are; a multiple of four nodes apart.
    n_iterations : int
        Most trials of a ray.
    tolerance : float
        What the next step must gain at least in likelihood, or the ray ends.
    paths, information, chi_square, n_degrees, rounds, is_converged : (..., n_rays)
        Filled.
    """
    n_bins, n_materials, n_nodes = counts.shape[0], starts.shape[0], exponents.shape[0]
    n_pairs = n_materials * (n_materials + 1) // 2
    lanes = min(LANES, end - first)
    measured, opened, added = np.empty((n_bins, lanes)), np.empty((n_bins, lanes)), np.empty((n_bins, lanes))
    kept, power = np.empty((max(n_nodes, 4), lanes)), np.empty(lanes)
    sums = np.empty((n_bins, 1 + n_materials, lanes))
    trial, trial_value, trial_misfit = np.empty((n_materials, lanes)), np.empty(lanes), np.empty(lanes)
    trial_hessian, trial_gradient = np.empty((n_pairs, lanes)), np.empty((n_materials, lanes))
    here, value, misfit = np.zeros((n_materials, lanes)), np.empty(lanes), np.empty(lanes)
    hessian, gradient = np.zeros((n_pairs, lanes)), np.zeros((n_materials, lanes))
    damping, lower = np.zeros(lanes), np.empty((n_materials, n_materials, lanes))
    step, gain = np.empty((n_materials, lanes)), np.empty(lanes)
    ray, trials, n_used = np.empty(lanes, np.int64), np.zeros(lanes, np.int64), np.empty(lanes, np.int64)

    following = first
    for lane in range(lanes):
        ray[lane] = following
        n_used[lane] = _load(
            lane, following, counts, open_counts, background, starts, guess, measured, opened, added, trial
        )
        following += 1
    n_busy = lanes
    while n_busy > 0:
        keep(exponents, trial, kept, power)
        gather(coefficients, first_node, end_node, kept, sums)
        _weigh(sums, measured, opened, added, kept, trial_hessian, trial_gradient, trial_value, trial_misfit)
        for lane in range(lanes):
            trials[lane] += 1
            mean_at = ray[lane] if prior_mean.shape[1] > 1 else 0
            new = trial_value[lane]
            for k in range(n_materials):
                off = trial[k, lane] - prior_mean[k, mean_at]
                new += 0.5 * prior_information[k] * off * off
            if trials[lane] == 1 or new <= value[lane] + _SLACK * (1.0 + abs(new)):
                value[lane], misfit[lane] = new, trial_misfit[lane]
                for k in range(n_materials):
                    off = trial[k, lane] - prior_mean[k, mean_at]
                    here[k, lane] = trial[k, lane]
                    gradient[k, lane] = trial_gradient[k, lane] - prior_information[k] * off
                for pair in range(n_pairs):
                    hessian[pair, lane] = trial_hessian[pair, lane]
                damping[lane] *= _LOWERED
                if damping[lane] < _NO_DAMPING:
                    damping[lane] = 0.0
            else:
                damping[lane] = max(_FIRST_DAMPING, damping[lane] * _RAISED)
        solve(hessian, damping, prior_information, gradient, lower, step, gain)
        for lane in range(lanes):
            i = ray[lane]
            for k in range(n_materials):
                trial[k, lane] = here[k, lane] + step[k, lane]
            is_ended = gain[lane] * (1.0 + damping[lane]) < tolerance
            if i < 0 or not (is_ended or trials[lane] >= n_iterations or damping[lane] > _HIGHEST_DAMPING):
                continue
            for k in range(n_materials):
                paths[k, i] = np.nan if n_used[lane] == 0 else trial[k, lane] if is_ended else here[k, lane]
            for pair in range(n_pairs):
                information[pair, i] = hessian[pair, lane]
            chi_square[i], n_degrees[i] = misfit[lane], n_used[lane] - n_materials
            rounds[i], is_converged[i] = trials[lane], is_ended and n_used[lane] > 0
            trials[lane], damping[lane] = 0, 0.0
            if following < end:
                ray[lane] = following
                n_used[lane] = _load(
                    lane, following, counts, open_counts, background, starts, guess, measured, opened, added, trial
                )
                following += 1
            else:
                ray[lane] = -1
                n_busy -= 1
