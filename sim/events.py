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
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firmware_iface import chip
from firmware_iface.errors import WrongUsage
from sim import chance, charge
from sim.sensor import Sensor, Settings

Arbitration = Literal["rx", "first"]
PARTS = 2
WARM_UP_KEV = 1600.0
"""A part begins before its time by so much falling of the output: ten of the largest photons."""

_kernel = njit(cache=True, nogil=True, error_model="numpy", _nrt=False)  # pyright: ignore[reportCallIssue]
_inlined = njit(inline="always", error_model="numpy")
_RECORD = 32
_GAIN, _NOISE_KEV2, _SUM_NOISE_KEV2, _ARBITER, _TH0, _LOWEST, _OUTPUT, _TIME = range(8, 16)
_COUNTS = 16
_SUMS = 4
"""Columns of a record from here on are the thresholds on sums, in charge summing."""
_BATCH = 128
"""So many photons are followed before their hits are counted: their places in memory are fetched meanwhile."""
_WINDOW_S = 10e-3
"""Times count from the beginning of a window of this length: 1 ns is exact in 32 bits."""
_NO_PIXEL = -1
_WHOLE = (1 << 31) - 1
_NEVER_KEV = 1e30
_SURE_SIGMA2 = 36.0
"""Noise further out than 6 sigma is left out where all thresholds are that far above the output."""


class _Light(NamedTuple):
    """What comes: photons that interact, as tables to draw from."""

    alias: np.ndarray
    """(energies * pixels, 2) int32: alias table of the energy and the pixel: own share in 2^-31, and the other."""
    energies_kev: np.ndarray
    interacting: np.ndarray
    attenuation_per_mm: np.ndarray
    rate_per_s: float
    n_pixels: int
    per_pixel: float
    cols: int
    per_col: float


class _Front(NamedTuple):
    """How the amplifiers and discriminators work."""

    row_of: np.ndarray
    col_of: np.ndarray
    """Which row and column of the chip's pixels those of the sensor feed, or _NO_PIXEL."""
    n_thresholds: int
    rows: int
    cols: int
    is_csm: bool
    has_arbiter: bool
    is_first_rule: bool
    fano_kev: np.float32
    fall_kev_per_s: np.float32
    peaking_time_s: np.float32


class _State(NamedTuple):
    """What one part of an exposure knows of each pixel, remembers and counts."""

    pixels: np.ndarray
    """(pixels, _RECORD) float32: all that a hit looks at, side by side in memory. First the thresholds, those on sums
    from _SUMS on, _NEVER_KEV where nothing is counted; then what the names of columns say; from _COUNTS on the counts.
    Amplitudes are keV of the mean pixel, times count from the beginning of a window."""
    nodes: np.ndarray
    """((rows + 1) * (cols + 1), 2) float32: output and time of the summing nodes when last raised; node (row, col) is
    the corner below, left of the pixel."""
    arrivals: np.ndarray
    """(_BATCH,) float64: when each photon of a batch comes."""
    photons: np.ndarray
    """(_BATCH, 3) int64: its energy, its pixel, its last cloud and then its last hit."""
    hits: np.ndarray
    """(_BATCH * MAX_PIXELS, 3) int64: pixel, row and column of each hit."""
    amplitudes_kev: np.ndarray
    """(_BATCH * MAX_PIXELS, 3) float32: what a hit adds, the same with noise, what stood before."""
    noise: np.ndarray
    """(_BATCH * MAX_PIXELS,) float32: a normal number for each hit."""
    around: np.ndarray
    """(3, 3) float32: what hits add to a winner and its neighbours."""
    sums: np.ndarray
    """(4 MAX_PIXELS, 4): of the first rule's nodes, row, column, sum, excess."""


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
        self._physics = lru_cache(maxsize=4)(charge.physics_of)

    def expose(
        self,
        photons: NDArray[np.float32] | None,
        energies_kev: NDArray,
        duration_s: float,
        settings: Settings,
        rng: np.random.Generator,
    ) -> NDArray[np.uint32]:
        """Open the shutter and count; see `Sensor.expose`."""
        front, pixels = self._front(settings), self._pixels(settings)
        noise = super().expose(None, energies_kev, duration_s, settings, rng)
        seeds = rng.integers(2**63, size=PARTS)
        if photons is None or not self._collects(settings) or not np.any(photons):
            return noise
        if photons.shape != (len(energies_kev), *self.truth.is_dead.shape):
            raise ValueError(
                f"photons of shape {photons.shape}; allowed: {(len(energies_kev), *self.truth.is_dead.shape)}"
            )
        physics = self._physics(self.biased_layer, float(energies_kev[0]))
        light = _light(physics, photons, np.asarray(energies_kev, dtype=float), duration_s)
        warm_up_s = float(10 * front.peaking_time_s + WARM_UP_KEV / front.fall_kev_per_s)

        def count(seed: int) -> NDArray[np.float32]:
            state = _new_state(pixels, front)
            dice = chance.dice(np.random.default_rng(int(seed)))
            _expose(physics, light, front, state, charge.workspace(_BATCH), duration_s / PARTS, warm_up_s, dice)
            return state.pixels[:, _COUNTS + _columns(settings)]

        with ThreadPoolExecutor(PARTS) as pool:
            parts = list(pool.map(count, seeds))
        counts = np.sum(parts, axis=0, dtype=np.float64).astype(np.uint32)
        return noise + counts.T.reshape(noise.shape)

    def _front(self, settings: Settings) -> _Front:
        rows, cols = settings.trim.shape[1:]
        pulse = self.pulse(settings)
        return _Front(
            row_of=self._feeds(settings, 0),
            col_of=self._feeds(settings, 1),
            n_thresholds=settings.n_thresholds,
            rows=rows,
            cols=cols,
            is_csm=settings.is_csm,
            has_arbiter=settings.is_csm and not settings.is_equalization,
            is_first_rule=self._is_first_rule,
            fano_kev=np.float32(self._fano * self._pair_kev),
            fall_kev_per_s=np.float32(pulse.fall_kev_per_s),
            peaking_time_s=np.float32(pulse.peaking_time_s),
        )

    def _pixels(self, settings: Settings) -> NDArray[np.float32]:
        """Return the records of the pixels before anything came: (pixels, _RECORD) float32."""
        truth = self._checked_truth(settings)
        threshold_kev = self.thresholds_kev(settings) * truth.relative_gain
        noise_kev = self._noise_kev(settings)[:2, None, None] * (truth.relative_noise * truth.relative_gain)
        is_silent = settings.is_masked | truth.is_dead
        pixels = np.zeros((truth.is_dead.size, _RECORD), dtype=np.float32)
        pixels[:, : chip.N_THRESHOLDS] = _NEVER_KEV
        counted_kev = _by_pixel(np.where(is_silent, np.float32(_NEVER_KEV), threshold_kev))
        pixels[:, _columns(settings)] = counted_kev
        if settings.is_csm and not settings.is_equalization:  # then TH0 counts winners
            pixels[:, 0], pixels[:, _TH0] = _NEVER_KEV, counted_kev[:, 0]
        pixels[:, _GAIN] = truth.relative_gain.ravel()
        pixels[:, [_NOISE_KEV2, _SUM_NOISE_KEV2]] = _by_pixel(noise_kev**2)
        pixels[:, _ARBITER] = threshold_kev[0].ravel()
        pixels[:, _LOWEST] = threshold_kev.min(axis=0).ravel()
        pixels[:, _TIME] = -1.0
        return pixels

    def _feeds(self, settings: Settings, axis: int) -> NDArray[np.int64]:
        """Return which row or column of the chip's mode each one of the sensor feeds."""
        truth = self.truth_in(settings)
        of_sensor, of_chip = self.truth.is_dead.shape[axis], truth.is_dead.shape[axis]
        if truth is self.truth:
            return np.arange(of_sensor)
        if not self.is_fine:
            return np.arange(of_chip)[self._bonded[axis]]
        feeds = np.full(of_sensor, _NO_PIXEL)
        feeds[self._bonded[axis]] = np.arange(of_chip)
        return feeds


def _columns(settings: Settings) -> NDArray[np.int64]:
    """Return in which column of a record each threshold is."""
    threshold = np.arange(settings.n_thresholds)
    return threshold // 2 + _SUMS * (threshold % 2) if settings.is_csm else threshold


def _by_pixel(planes: NDArray) -> NDArray[np.float32]:
    return planes.reshape(len(planes), -1).T.astype(np.float32)


def _new_state(pixels: NDArray[np.float32], front: _Front) -> _State:
    return _State(
        pixels=pixels.copy(),
        nodes=np.tile(np.array([0.0, -1.0], dtype=np.float32), ((front.rows + 1) * (front.cols + 1), 1)),
        arrivals=np.zeros(_BATCH),
        photons=np.zeros((_BATCH, 3), dtype=np.int64),
        hits=np.zeros((_BATCH * charge.MAX_PIXELS, 3), dtype=np.int64),
        amplitudes_kev=np.zeros((_BATCH * charge.MAX_PIXELS, 3), dtype=np.float32),
        noise=np.zeros(_BATCH * charge.MAX_PIXELS, dtype=np.float32),
        around=np.zeros((3, 3), dtype=np.float32),
        sums=np.zeros((4 * charge.MAX_PIXELS, 4)),
    )


def _light(
    physics: charge.Physics, photons: NDArray[np.float32], energies_kev: NDArray[np.float64], duration_s: float
) -> _Light:
    attenuation_per_mm, interacting = charge.interaction(physics, energies_kev)
    share = (photons.reshape(len(photons), -1) * interacting[:, None]).ravel()
    total = share.sum()
    alias = np.empty((len(share), 2), dtype=np.int32)
    _fill_alias(share * (len(share) / total), alias)
    n_pixels = len(share) // len(photons)
    return _Light(
        alias=alias,
        energies_kev=energies_kev,
        interacting=interacting,
        attenuation_per_mm=attenuation_per_mm,
        rate_per_s=float(total / duration_s),
        n_pixels=n_pixels,
        per_pixel=1 / n_pixels,
        cols=photons.shape[2],
        per_col=1 / photons.shape[2],
    )


@njit(cache=True, nogil=True)
def _fill_alias(share: np.ndarray, alias: np.ndarray) -> None:
    """Fill an alias table from shares whose mean is 1, which are used up."""
    n = len(share)
    small, large = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    n_small, n_large, largest = 0, 0, np.argmax(share)
    for i in range(n):
        alias[i, 1] = largest  # for what rounding leaves over
        if share[i] < 1:
            small[n_small] = i
            n_small += 1
        else:
            large[n_large] = i
            n_large += 1
    while n_small and n_large:
        n_small -= 1
        poor, rich = small[n_small], large[n_large - 1]
        alias[poor, 1] = rich
        share[rich] -= 1 - share[poor]
        if share[rich] < 1:
            n_large -= 1
            small[n_small] = rich
            n_small += 1
    for i in range(n):
        alias[i, 0] = int(min(share[i], 1.0) * _WHOLE)


@_kernel
def _expose(
    physics: charge.Physics, light: _Light, front: _Front, state: _State, workspace: charge.Workspace,
    duration_s: float, warm_up_s: float, dice: chance.Dice,
) -> None:  # fmt: skip
    """Let photons come one after the other, window by window of time, and count those that come in time."""
    begin_s, now_s = -warm_up_s, 0.0  # of the window, and in it
    while begin_s < duration_s:
        end_s = min(_WINDOW_S, duration_s - begin_s)
        while now_s < end_s:
            n_photons, now_s = _arrive(light, state, now_s, end_s, dice)
            n_hits = _hit(physics, light, front, state, workspace, n_photons, dice)
            _fetch(state, n_hits)
            chance.fill_normal(state.noise[:n_hits], dice)
            _count(front, state, n_photons, begin_s, dice)
        begin_s += end_s
        now_s -= end_s
        for i in range(len(state.pixels)):
            state.pixels[i, _TIME] -= end_s
        for i in range(len(state.nodes)):
            state.nodes[i, 1] -= end_s


@_kernel
def _arrive(light: _Light, state: _State, now_s: float, end_s: float, dice: chance.Dice) -> tuple[int, float]:
    """Draw when and where up to a batch of photons come; return how many before the end, and when the next comes."""
    arrivals, photons = state.arrivals, state.photons
    mean_gap_s = 1 / light.rate_per_s
    n = 0
    while n < _BATCH and now_s < end_s:
        arrivals[n] = now_s
        now_s += mean_gap_s * chance.exponential(dice)
        n += 1
    for i in range(n):
        u = chance.uniform(dice) * len(light.alias)
        place = int(u)
        other, is_own = light.alias[place, 1], (u - place) * _WHOLE < light.alias[place, 0]
        place = place if is_own else other
        photons[i, 0] = int((place + 0.5) * light.per_pixel)
        photons[i, 1] = place - photons[i, 0] * light.n_pixels
    return n, now_s


@_kernel
def _hit(
    physics: charge.Physics, light: _Light, front: _Front, state: _State, workspace: charge.Workspace, n_photons: int,
    dice: chance.Dice,
) -> int:  # fmt: skip
    """Follow the photons of a batch to charges in pixels of the chip; return how many these are."""
    pitch_mm, photons, n_clouds = physics.pitch_mm, state.photons, 0
    for i in range(n_photons):
        energy, lit = photons[i, 0], photons[i, 1]
        row = int((lit + 0.5) * light.per_col)
        col = lit - row * light.cols
        passed = np.float32(1 - light.interacting[energy] * chance.uniform(dice))
        depth_mm = float(-math.log(passed) / light.attenuation_per_mm[energy])
        x_mm, y_mm = (col + chance.uniform(dice)) * pitch_mm, (row + chance.uniform(dice)) * pitch_mm
        n_clouds = charge.follow(
            physics, float(light.energies_kev[energy]), x_mm, y_mm, depth_mm, dice, workspace.clouds, n_clouds
        )
        photons[i, 2] = n_clouds
    charge.drift(physics, workspace.clouds, n_clouds)
    first = n = 0
    for i in range(n_photons):
        last = photons[i, 2]
        for k in range(charge.collect(workspace, first, last)):
            col, row = workspace.pixels[k, 0], workspace.pixels[k, 1]
            if 0 <= col < len(front.col_of) and 0 <= row < len(front.row_of):
                row, col = front.row_of[row], front.col_of[col]
                if row != _NO_PIXEL and col != _NO_PIXEL:
                    state.hits[n, 0], state.hits[n, 1], state.hits[n, 2] = row * front.cols + col, row, col
                    state.amplitudes_kev[n, 0] = workspace.charges_kev[k]
                    n += 1
        first, photons[i, 2] = last, n
    return n


@_inlined
def _fetch(state: _State, n: int) -> None:
    """Touch all that the hits will look at, so that memory answers for many at a time."""
    touched = np.float32(0)
    for i in range(n):
        pixel = state.hits[i, 0]
        touched += state.pixels[pixel, 0] + state.pixels[pixel, _COUNTS]
    state.sums[0, 0] = touched


@_kernel
def _count(front: _Front, state: _State, n_photons: int, begin_s: float, dice: chance.Dice) -> None:
    """Bring the hits of a batch to the amplifiers, photon by photon."""
    first = 0
    for photon in range(n_photons):
        last, time_s = state.photons[photon, 2], np.float32(state.arrivals[photon])
        is_counting = bool(begin_s + time_s >= 0)
        for i in range(first, last):
            _raise_pixel(front, state, i, time_s, is_counting, dice)
        if front.is_csm:
            if is_counting and front.is_first_rule:
                _count_nodes(front, state, first, last, time_s, dice)
            elif is_counting:
                for i in range(first, last):
                    if _is_winner(front, state, i, first, last):
                        _count_winner(front, state, i, first, last, time_s, dice)
            for i in range(first, last):
                _raise_nodes(front, state, i, time_s)
        first = last


@_inlined
def _output_kev(output_kev: np.float32, raised_s: np.float32, time_s: np.float32, front: _Front) -> np.float32:
    """Return where an output stands now."""
    fallen_kev = max(np.float32(0), (time_s - raised_s - front.peaking_time_s) * front.fall_kev_per_s)
    return max(np.float32(0), output_kev - fallen_kev)


@_inlined
def _crossed_from_kev(
    pixel: np.ndarray, before_kev: np.float32, noise_kev2: np.float32, dice: chance.Dice
) -> np.float32:
    """Return from where an output rises: where it stood, with noise if that may matter."""
    above_kev = pixel[_LOWEST] - before_kev
    if above_kev < 0 or above_kev * above_kev < _SURE_SIGMA2 * noise_kev2:
        return before_kev + np.float32(math.sqrt(noise_kev2)) * chance.normal(dice)
    return before_kev


@_inlined
def _count_crossed(pixel: np.ndarray, first: int, from_kev: np.float32, to_kev: np.float32) -> None:
    """Count at four thresholds of a record what crosses them."""
    for k in range(first, first + _SUMS):
        pixel[_COUNTS + k] += np.float32((from_kev <= pixel[k]) & (pixel[k] < to_kev))


@_inlined
def _raise_pixel(
    front: _Front, state: _State, i: int, time_s: np.float32, is_counting: bool, dice: chance.Dice
) -> None:
    """Add a hit to its pixel's output, and count what the pixel counts alone."""
    pixel = state.pixels[state.hits[i, 0]]
    added_kev, noise_kev2 = state.amplitudes_kev[i, 0] * pixel[_GAIN], pixel[_NOISE_KEV2]
    seen_kev = added_kev + math.sqrt(noise_kev2 + front.fano_kev * added_kev) * state.noise[i]
    before_kev = _output_kev(pixel[_OUTPUT], pixel[_TIME], time_s, front)
    pixel[_OUTPUT], pixel[_TIME] = before_kev + added_kev, time_s
    state.amplitudes_kev[i, 0], state.amplitudes_kev[i, 1] = added_kev, seen_kev
    state.amplitudes_kev[i, 2] = before_kev
    if is_counting:
        from_kev = _crossed_from_kev(pixel, before_kev, noise_kev2, dice)
        _count_crossed(pixel, 0, from_kev, before_kev + seen_kev)
        if not front.is_csm:
            _count_crossed(pixel, _SUMS, from_kev, before_kev + seen_kev)


@_inlined
def _is_winner(front: _Front, state: _State, i: int, first: int, last: int) -> bool:
    """Return whether a hit is above the arbiter's threshold and not below any of its neighbours."""
    hits, amplitudes_kev = state.hits, state.amplitudes_kev
    row, col, own_kev = hits[i, 1], hits[i, 2], amplitudes_kev[i, 1]
    wins = not front.has_arbiter or amplitudes_kev[i, 2] + own_kev > state.pixels[hits[i, 0], _ARBITER]
    for j in range(first, last):  # without branches, which nobody could foretell
        is_near = (abs(hits[j, 1] - row) <= 1) & (abs(hits[j, 2] - col) <= 1)
        wins &= not (is_near & (amplitudes_kev[j, 1] > own_kev))
    return wins


@_inlined
def _count_winner(
    front: _Front, state: _State, i: int, first: int, last: int, time_s: np.float32, dice: chance.Dice
) -> None:
    """Count a hit that is larger than its neighbours, and the largest of its four sums."""
    hits, amplitudes_kev = state.hits, state.amplitudes_kev
    row, col, own_kev, before_kev = hits[i, 1], hits[i, 2], amplitudes_kev[i, 1], amplitudes_kev[i, 2]
    around = state.around
    around[:] = 0
    for j in range(first, last):
        dr, dc = hits[j, 1] - row, hits[j, 2] - col
        if abs(dr) <= 1 and abs(dc) <= 1:
            around[dr + 1, dc + 1] = amplitudes_kev[j, 0]
    below_left = around[0, 0] + around[0, 1] + around[1, 0] + around[1, 1]
    below_right = around[0, 1] + around[0, 2] + around[1, 1] + around[1, 2]
    above_left = around[1, 0] + around[1, 1] + around[2, 0] + around[2, 1]
    above_right = around[1, 1] + around[1, 2] + around[2, 1] + around[2, 2]
    below, above = max(below_left, below_right), max(above_left, above_right)
    to_row = 1 if above > below else 0
    to_col = 1 if (above_right > above_left if to_row else below_right > below_left) else 0
    node = (row + to_row) * (front.cols + 1) + col + to_col
    pixel = state.pixels[hits[i, 0]]
    if front.has_arbiter and before_kev <= pixel[_TH0] and pixel[_TH0] < before_kev + own_kev:
        pixel[_COUNTS] += 1
    _count_sum(front, state, hits[i, 0], node, max(above, below), time_s, dice)


@_inlined
def _count_sum(
    front: _Front, state: _State, winner: int, node: int, sum_kev: np.float32, time_s: np.float32, dice: chance.Dice
) -> None:
    """Count a sum at the thresholds that see sums."""
    pixel, output = state.pixels[winner], state.nodes[node]
    before_kev, noise_kev2 = _output_kev(output[0], output[1], time_s, front), pixel[_SUM_NOISE_KEV2]
    to_kev = before_kev + sum_kev + math.sqrt(noise_kev2 + front.fano_kev * sum_kev) * chance.normal(dice)
    _count_crossed(pixel, _SUMS, _crossed_from_kev(pixel, before_kev, noise_kev2, dice), to_kev)


@_inlined
def _raise_nodes(front: _Front, state: _State, i: int, time_s: np.float32) -> None:
    """Add a hit to the outputs of the four nodes that it feeds."""
    added_kev, lower_left = state.amplitudes_kev[i, 0], state.hits[i, 1] * (front.cols + 1) + state.hits[i, 2]
    for corner in range(4):
        output = state.nodes[lower_left + (corner & 1) + (front.cols + 1) * (corner >> 1)]
        before_kev = _output_kev(output[0], output[1], time_s, front)
        output[0], output[1] = before_kev + added_kev, time_s


@_kernel
def _count_nodes(front: _Front, state: _State, first: int, last: int, time_s: np.float32, dice: chance.Dice) -> None:
    """Let the summing nodes with the largest excess over their thresholds count, by the first Medipix3's rule.

    A node belongs to the pixel below, left of it; those below the first row or left of the first column to none.
    """
    hits, sums = state.hits, state.sums
    n = 0
    for i in range(first, last):
        for corner in range(4):
            row, col = hits[i, 1] + (corner >> 1) - 1, hits[i, 2] + (corner & 1) - 1  # of the node's pixel
            known = 0
            while known < n and (sums[known, 0] != row or sums[known, 1] != col):
                known += 1
            if known < n or row < 0 or col < 0:
                continue
            sum_kev = 0.0
            for j in range(first, last):
                if 0 <= hits[j, 1] - row <= 1 and 0 <= hits[j, 2] - col <= 1:
                    sum_kev += state.amplitudes_kev[j, 0]
            pixel = state.pixels[row * front.cols + col]
            noise_kev = math.sqrt(pixel[_SUM_NOISE_KEV2]) * chance.normal(dice)
            sums[n, 0], sums[n, 1], sums[n, 2] = row, col, sum_kev
            sums[n, 3] = sum_kev + noise_kev - pixel[_SUMS]
            n += 1
    for i in range(n):
        wins = True
        for j in range(n):
            is_near = abs(sums[j, 0] - sums[i, 0]) <= 1 and abs(sums[j, 1] - sums[i, 1]) <= 1
            wins &= not (is_near and sums[j, 3] > sums[i, 3])
        if wins:
            row, col = int(sums[i, 0]), int(sums[i, 1])
            node = (row + 1) * (front.cols + 1) + col + 1
            _count_sum(front, state, row * front.cols + col, node, sums[i, 2], time_s, dice)
