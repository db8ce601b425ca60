"""chip counters: `(n_counters, rows, cols) uint32`, events above each threshold, one photon after the other.

The same sensor as `sim.sensor`, without tables: photons come at random times, each leaves its charges, every amplifier
holds what earlier ones left, and discriminators count when the output crosses their thresholds upwards.

# Ref: the pulse: a charge raises the output at once, it holds for the peaking time (120 ns: CERN Knowledge Transfer)
#      and falls at the constant rate of Ikrum ("1 nA = DAC 5": geant4medipix `DetectorConfig.ini`), never below 0.
# Ref: charge summing: Pennicard et al. 2011 (abstract) and ADVACAM forum, Medipix3 operation modes: the pixel with the
#      largest charge of its neighbourhood wins, if that is above its TH0, and counts the largest of its four 2x2 sums.
# Ref: the first Medipix3: the summing node with the largest sum of its neighbourhood wins, and nodes of low threshold
#      draw hits to themselves: Pennicard et al. 2011 (abstract). That the excess over the threshold decides is our
#      reading of it.
# Ref: alias tables: M. D. Vose 1991, IEEE Trans. Softw. Eng. 17, 972.

Choices where no source tells: noise is that of the amplifier, the same for all its discriminators; a sum has one noise
of its own; the arbiter compares charges with noise, not what earlier photons left; dead and masked pixels win and lose
as others do and count nothing; a node's output falls as a pixel's does, however many pixels feed it. Noise counts
are drawn as `sim.sensor` draws them in the dark. The Fano factor acts on each pixel's charge.

An exposure is cut into PARTS of time that run beside each other; each begins a while before its time, in the same beam,
so that no pulse of before is missing. The result depends on the generator alone, not on the machine.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage
from sim import charge
from sim.sensor import Sensor, Settings

Arbitration = Literal["rx", "first"]
PARTS = 2
WARM_UP_KEV = 1600.0
"""A part begins before its time by so much falling of the output: ten of the largest photons."""

_kernel = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # pyright: ignore[reportCallIssue]
_NO_PIXEL = -1
_NEVER_KEV = 1e30
_SURE_SIGMA = 5.0
"""Noise further out than this is left out where a threshold is far above the output."""


class _Light(NamedTuple):
    """What comes: photons that interact, as tables to draw from."""

    accept: np.ndarray
    other: np.ndarray
    """(pixels,): alias table of the pixel."""
    upto: np.ndarray
    """(pixels, energies): share of photons up to each energy."""
    energies_kev: np.ndarray
    interacting: np.ndarray
    attenuation_per_mm: np.ndarray
    rate_per_s: float
    cols: int


class _Front(NamedTuple):
    """The amplifiers and discriminators, pixel by pixel of the chip's mode; amplitudes are keV of the mean pixel."""

    place: np.ndarray
    """(sensor rows, sensor cols): number of the chip's pixel that a pixel of the sensor feeds, or _NO_PIXEL."""
    threshold_kev: np.ndarray
    """(pixels, thresholds): _NEVER_KEV where it counts nothing."""
    arbiter_kev: np.ndarray
    gain: np.ndarray
    noise_kev: np.ndarray
    """(pixels, 2): of a pixel alone, of a sum."""
    cols: int
    is_csm: bool
    has_arbiter: bool
    is_first_rule: bool
    fano_kev: float
    fall_kev_per_s: float
    peaking_time_s: float


class _State(NamedTuple):
    """What one part of an exposure remembers and counts."""

    pixels: np.ndarray
    """(pixels, 2): output in keV when it was last raised, and when."""
    nodes: np.ndarray
    """((rows + 1) * (cols + 1), 2): the same of the summing nodes; node (row, col) is the corner below, left of it."""
    hits: np.ndarray
    """(MAX_PIXELS, 3) int64: pixel, row and column of each hit."""
    amplitudes_kev: np.ndarray
    """(MAX_PIXELS, 3): what a hit adds, the same with noise, what stood before."""
    sums: np.ndarray
    """(4 MAX_PIXELS, 4): of the first rule's nodes, row, column, sum, excess."""
    counts: np.ndarray
    """(pixels, thresholds)."""


class EventSensor(Sensor):
    """A sensor that is exposed photon by photon; see `Sensor` for the parameters.

    Parameters
    ----------
    arbitration : {"rx", "first"}
        Who wins in charge summing: the pixel with the largest charge, as in the Medipix3RX, or the summing node with
        the largest sum, as in the first Medipix3.
    """

    def __init__(self, *, arbitration: Arbitration = "rx", **sensor: Any) -> None:
        if arbitration not in get_args(Arbitration):
            raise WrongUsage(f"arbitration is {arbitration!r}; allowed: {', '.join(get_args(Arbitration))}")
        super().__init__(**sensor)
        self._is_first_rule = arbitration == "first"

    def expose(
        self,
        photons: NDArray[np.float32] | None,
        energies_kev: NDArray,
        duration_s: float,
        settings: Settings,
        rng: np.random.Generator,
    ) -> NDArray[np.uint32]:
        """Open the shutter and count; see `Sensor.expose`."""
        front = self._front(settings)
        noise = super().expose(None, energies_kev, duration_s, settings, rng)
        seeds = rng.integers(2**63, size=PARTS)
        if photons is None or not self._collects(settings) or not np.any(photons):
            return noise
        if photons.shape != (len(energies_kev), *self.truth.is_dead.shape):
            raise ValueError(
                f"photons of shape {photons.shape}; allowed: {(len(energies_kev), *self.truth.is_dead.shape)}"
            )
        physics = charge.physics_of(self.biased_layer, float(energies_kev[0]))
        light = _light(physics, photons, np.asarray(energies_kev, dtype=float), duration_s)
        warm_up_s = 10 * front.peaking_time_s + WARM_UP_KEV / front.fall_kev_per_s

        def count(seed: int) -> NDArray[np.uint32]:
            state = _new_state(*noise.shape)
            part_rng = np.random.Generator(np.random.SFC64(int(seed)))
            _expose(physics, light, front, state, charge.workspace(), duration_s / PARTS, warm_up_s, part_rng)
            return state.counts

        with ThreadPoolExecutor(PARTS) as pool:
            counts = sum(pool.map(count, seeds), start=np.zeros((), dtype=np.uint32))
        return noise + counts.T.reshape(noise.shape)

    def _front(self, settings: Settings) -> _Front:
        truth = self._checked_truth(settings)
        gain = truth.relative_gain
        threshold_kev = self.thresholds_kev(settings) * gain
        is_silent = settings.is_masked | truth.is_dead
        noise_kev = self._noise_kev(settings)[[0, 1], None, None] * (truth.relative_noise * gain)
        has_arbiter = settings.is_csm and not settings.is_equalization
        return _Front(
            place=self._places(settings),
            threshold_kev=_by_pixel(np.where(is_silent, np.float32(_NEVER_KEV), threshold_kev)),
            arbiter_kev=threshold_kev[0].ravel(),
            gain=gain.ravel(),
            noise_kev=_by_pixel(noise_kev),
            cols=threshold_kev.shape[2],
            is_csm=settings.is_csm,
            has_arbiter=has_arbiter,
            is_first_rule=self._is_first_rule,
            fano_kev=self._fano * self._pair_kev,
            fall_kev_per_s=self._fall_kev_per_s(settings),
            peaking_time_s=getattr(self.front_end, "peaking_time_s", 120e-9),
        )

    def _fall_kev_per_s(self, settings: Settings) -> float:
        na_per_code = getattr(self.front_end, "ikrum_na_per_code", 0.2)
        electrons_per_s = getattr(settings, "ikrum", 10) * na_per_code * 1e-9 / 1.602e-19
        return max(electrons_per_s, 1.0) * self._pair_kev

    def _places(self, settings: Settings) -> NDArray[np.int64]:
        """Return which pixel of the chip's mode each pixel of the sensor feeds: (rows, cols) int64."""
        truth = self.truth_in(settings)
        numbers = np.arange(truth.is_dead.size).reshape(truth.is_dead.shape)
        if truth is self.truth:
            return numbers
        if not self.is_fine:
            return np.ascontiguousarray(numbers[self._bonded])
        places = np.full(self.truth.is_dead.shape, _NO_PIXEL)
        places[self._bonded] = numbers
        return places


def _by_pixel(planes: NDArray) -> NDArray[np.float32]:
    return np.ascontiguousarray(planes.reshape(len(planes), -1).T, dtype=np.float32)


def _new_state(n_thresholds: int, rows: int, cols: int) -> _State:
    long_ago = np.array([0.0, -1.0])
    return _State(
        pixels=np.tile(long_ago, (rows * cols, 1)),
        nodes=np.tile(long_ago, ((rows + 1) * (cols + 1), 1)),
        hits=np.zeros((charge.MAX_PIXELS, 3), dtype=np.int64),
        amplitudes_kev=np.zeros((charge.MAX_PIXELS, 3)),
        sums=np.zeros((4 * charge.MAX_PIXELS, 4)),
        counts=np.zeros((rows * cols, n_thresholds), dtype=np.uint32),
    )


def _light(
    physics: charge.Physics, photons: NDArray[np.float32], energies_kev: NDArray[np.float64], duration_s: float
) -> _Light:
    attenuation_per_mm, interacting = charge.interaction(physics, energies_kev)
    weights = np.ascontiguousarray(photons.reshape(len(photons), -1).T) * interacting.astype(np.float32)
    upto = np.cumsum(weights, axis=1, dtype=np.float32)
    totals = upto[:, -1].astype(np.float64)
    upto /= np.maximum(upto[:, -1:], np.float32(1e-30))
    upto[:, -1] = 1.0
    accept, other = np.empty(len(totals), dtype=np.float64), np.empty(len(totals), dtype=np.int64)
    _fill_alias(totals * (len(totals) / totals.sum()), accept, other)
    return _Light(
        accept=accept,
        other=other,
        upto=upto,
        energies_kev=energies_kev,
        interacting=interacting,
        attenuation_per_mm=attenuation_per_mm,
        rate_per_s=float(totals.sum() / duration_s),
        cols=photons.shape[2],
    )


@njit(cache=True, nogil=True)
def _fill_alias(share: np.ndarray, accept: np.ndarray, other: np.ndarray) -> None:
    """Fill an alias table from shares whose mean is 1, which are used up."""
    n = len(share)
    small, large = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    n_small = n_large = 0
    for i in range(n):
        accept[i], other[i] = 1.0, i
        if share[i] < 1:
            small[n_small] = i
            n_small += 1
        else:
            large[n_large] = i
            n_large += 1
    while n_small and n_large:
        n_small -= 1
        poor, rich = small[n_small], large[n_large - 1]
        accept[poor], other[poor] = share[poor], rich
        share[rich] -= 1 - share[poor]
        if share[rich] < 1:
            n_large -= 1
            small[n_small] = rich
            n_small += 1


@_kernel
def _expose(
    physics: charge.Physics, light: _Light, front: _Front, state: _State, workspace: charge.Workspace,
    duration_s: float, warm_up_s: float, rng: np.random.Generator,
) -> None:  # fmt: skip
    """Let photons come one after the other, and count those that come in time."""
    n_lit, n_energies = light.upto.shape
    time_s, pitch_mm = -warm_up_s, physics.pitch_mm
    mean_gap_s = 1 / light.rate_per_s
    while True:
        time_s -= mean_gap_s * math.log(1 - rng.random())
        if time_s >= duration_s:
            return
        u = rng.random() * n_lit
        pixel = int(u)
        if u - pixel >= light.accept[pixel]:
            pixel = light.other[pixel]
        low, high = 0, n_energies - 1
        if high > 0:
            u = rng.random()
            while low < high:
                middle = (low + high) >> 1
                if light.upto[pixel, middle] > u:
                    high = middle
                else:
                    low = middle + 1
        row, col = pixel // light.cols, pixel % light.cols
        depth_mm = -math.log(1 - light.interacting[low] * rng.random()) / light.attenuation_per_mm[low]
        x_mm, y_mm = (col + rng.random()) * pitch_mm, (row + rng.random()) * pitch_mm
        n = charge.deposit_of(physics, light.energies_kev[low], x_mm, y_mm, depth_mm, rng, workspace)
        n = _land(front, state, workspace, n)
        if n == 0:
            continue
        is_counting = time_s >= 0
        _raise_pixels(front, state, n, time_s, is_counting, rng)
        if front.is_csm:
            if front.is_first_rule:
                _count_nodes(front, state, n, time_s, is_counting, rng)
            else:
                _count_winners(front, state, n, time_s, is_counting, rng)
            _raise_nodes(front, state, n, time_s)


@_kernel
def _land(front: _Front, state: _State, workspace: charge.Workspace, n: int) -> int:
    """Bring charges to the pixels of the chip that they feed; return how many there are."""
    rows, cols = front.place.shape
    landed = 0
    for i in range(n):
        col, row = workspace.pixels[i, 0], workspace.pixels[i, 1]
        if not (0 <= col < cols and 0 <= row < rows):
            continue
        pixel = front.place[row, col]
        if pixel == _NO_PIXEL:
            continue
        state.hits[landed, 0] = pixel
        state.hits[landed, 1], state.hits[landed, 2] = pixel // front.cols, pixel % front.cols
        state.amplitudes_kev[landed, 0] = workspace.charges_kev[i] * front.gain[pixel]
        landed += 1
    return landed


@njit(inline="always")
def _output_kev(outputs: np.ndarray, i: int, time_s: float, fall_kev_per_s: float, peaking_time_s: float) -> float:
    """Return where an output stands now."""
    fallen_kev = (time_s - outputs[i, 1] - peaking_time_s) * fall_kev_per_s
    return outputs[i, 0] if fallen_kev <= 0 else max(0.0, outputs[i, 0] - fallen_kev)


@_kernel
def _raise_pixels(
    front: _Front, state: _State, n: int, time_s: float, is_counting: bool, rng: np.random.Generator
) -> None:
    """Add the hits to their pixels' outputs, and count what the pixels count alone."""
    n_thresholds = front.threshold_kev.shape[1]
    first = 2 if front.has_arbiter else 0
    step = 2 if front.is_csm else 1
    for i in range(n):
        pixel, added_kev = state.hits[i, 0], state.amplitudes_kev[i, 0]
        noise_kev = front.noise_kev[pixel, 0]
        sigma_kev = math.sqrt(noise_kev * noise_kev + front.fano_kev * added_kev)
        seen_kev = added_kev + sigma_kev * rng.standard_normal()
        before_kev = _output_kev(state.pixels, pixel, time_s, front.fall_kev_per_s, front.peaking_time_s)
        state.pixels[pixel, 0], state.pixels[pixel, 1] = before_kev + added_kev, time_s
        lowest_kev = before_kev + noise_kev * rng.standard_normal()
        state.amplitudes_kev[i, 1], state.amplitudes_kev[i, 2] = seen_kev, before_kev
        if is_counting:
            for k in range(first, n_thresholds, step):
                threshold_kev = front.threshold_kev[pixel, k]
                state.counts[pixel, k] += (lowest_kev <= threshold_kev) & (threshold_kev < before_kev + seen_kev)


@_kernel
def _count_winners(
    front: _Front, state: _State, n: int, time_s: float, is_counting: bool, rng: np.random.Generator
) -> None:
    """Let the pixels that hold more charge than their neighbours count, and count sums."""
    hits, amplitudes_kev = state.hits, state.amplitudes_kev
    for i in range(n):
        pixel, row, col = hits[i, 0], hits[i, 1], hits[i, 2]
        own_kev, before_kev, arbiter_kev = amplitudes_kev[i, 1], amplitudes_kev[i, 2], front.arbiter_kev[pixel]
        if front.has_arbiter and before_kev + own_kev <= arbiter_kev:
            continue
        below_left = below_right = above_left = above_right = amplitudes_kev[i, 0]
        wins = True
        for j in range(n):
            dr, dc = hits[j, 1] - row, hits[j, 2] - col
            if j == i or dr > 1 or dr < -1 or dc > 1 or dc < -1:
                continue
            if amplitudes_kev[j, 1] > own_kev:
                wins = False
                break
            other_kev = amplitudes_kev[j, 0]
            if dr <= 0 and dc <= 0:
                below_left += other_kev
            if dr <= 0 and dc >= 0:
                below_right += other_kev
            if dr >= 0 and dc <= 0:
                above_left += other_kev
            if dr >= 0 and dc >= 0:
                above_right += other_kev
        if not wins or not is_counting:
            continue
        below, above = max(below_left, below_right), max(above_left, above_right)
        to_row = 1 if above > below else 0
        to_col = 1 if (above_right > above_left if to_row else below_right > below_left) else 0
        node = (row + to_row) * (front.cols + 1) + col + to_col
        if front.has_arbiter:
            threshold_kev = front.threshold_kev[pixel, 0]
            state.counts[pixel, 0] += (before_kev <= threshold_kev) & (threshold_kev < before_kev + own_kev)
        _count_sum(front, state, pixel, node, max(above, below), time_s, rng)


@_kernel
def _count_sum(
    front: _Front, state: _State, pixel: int, node: int, sum_kev: float, time_s: float, rng: np.random.Generator
) -> None:
    """Count a sum at the thresholds that see sums."""
    before_kev = _output_kev(state.nodes, node, time_s, front.fall_kev_per_s, front.peaking_time_s)
    noise_kev = front.noise_kev[pixel, 1]
    seen_kev = (
        before_kev + sum_kev + math.sqrt(noise_kev * noise_kev + front.fano_kev * sum_kev) * rng.standard_normal()
    )
    lowest_kev = before_kev + noise_kev * rng.standard_normal()
    for k in range(1, front.threshold_kev.shape[1], 2):
        threshold_kev = front.threshold_kev[pixel, k]
        state.counts[pixel, k] += (lowest_kev <= threshold_kev) & (threshold_kev < seen_kev)


@_kernel
def _raise_nodes(front: _Front, state: _State, n: int, time_s: float) -> None:
    """Add the hits to the outputs of the four nodes that each feeds."""
    for i in range(n):
        first = state.hits[i, 1] * (front.cols + 1) + state.hits[i, 2]
        for corner in range(4):
            node = first + (corner & 1) + (front.cols + 1) * (corner >> 1)
            before_kev = _output_kev(state.nodes, node, time_s, front.fall_kev_per_s, front.peaking_time_s)
            state.nodes[node, 0], state.nodes[node, 1] = before_kev + state.amplitudes_kev[i, 0], time_s


@_kernel
def _count_nodes(
    front: _Front, state: _State, n: int, time_s: float, is_counting: bool, rng: np.random.Generator
) -> None:
    """Let the summing nodes with the largest excess over their thresholds count, by the first Medipix3's rule.

    A node belongs to the pixel below, left of it; those above the last row or right of the last column to none.
    """
    hits, sums = state.hits, state.sums
    n_rows = len(state.pixels) // front.cols
    n_nodes = 0
    for i in range(n):
        for corner in range(4):
            row, col = hits[i, 1] + (corner >> 1) - 1, hits[i, 2] + (corner & 1) - 1  # the node's pixel
            known = 0
            while known < n_nodes and (sums[known, 0] != row or sums[known, 1] != col):
                known += 1
            if known < n_nodes or row < 0 or col < 0 or row >= n_rows:
                continue
            sum_kev = 0.0
            for j in range(n):
                if 0 <= hits[j, 1] - row <= 1 and 0 <= hits[j, 2] - col <= 1:
                    sum_kev += state.amplitudes_kev[j, 0]
            pixel = row * front.cols + col
            sums[n_nodes, 0], sums[n_nodes, 1], sums[n_nodes, 2] = row, col, sum_kev
            noise_kev = front.noise_kev[pixel, 1] * rng.standard_normal()
            sums[n_nodes, 3] = sum_kev + noise_kev - front.threshold_kev[pixel, 1]
            n_nodes += 1
    for i in range(n_nodes):
        wins = is_counting
        for j in range(n_nodes):
            is_near = abs(sums[j, 0] - sums[i, 0]) <= 1 and abs(sums[j, 1] - sums[i, 1]) <= 1
            wins &= not (is_near and sums[j, 3] > sums[i, 3])
        if wins:
            row, col = int(sums[i, 0]), int(sums[i, 1])
            pixel, node = row * front.cols + col, (row + 1) * (front.cols + 1) + col + 1
            _count_sum(front, state, pixel, node, sums[i, 2], time_s, rng)
