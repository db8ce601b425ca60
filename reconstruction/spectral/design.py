"""Which thresholds, voltage, filter and charge serve a task best: the worst of its agents is to be seen best.

At a given dose contrast to noise is what is looked for, and the smallest one of all agents is made as large as may be.
Where detection limits are given instead, the agents' concentrations are those limits, and the dose follows. Thresholds
are found by moving one at a time along the table of counts, from several starts, by a mean of the agents' noise that
the worst one rules; voltage and filter by trying all that are offered.

# Ref: bins that serve a task best: Roessl and Herrmann 2009, Phys. Med. Biol. 54, 1307; energy thresholds stand near
#      K edges: the reference on spectral CT, section 3.5.
# Ref: m = n exp(-n tau), lost share of a paralysable counter: Knoll, Radiation Detection and Measurement, 4.VII.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.attenuation import k_shell, material
from calibration.geometry import Geometry
from calibration.progress import Progress
from calibration.spectrum import air_kerma_mgy, half_value_layer_mm
from firmware_iface.errors import WrongUsage
from reconstruction.spectral.prediction import (
    ENERGIES_KEV,
    ROSE_CNR,
    THRESHOLDS_KEV,
    Beam,
    Forecast,
    Forecaster,
    Table,
    forecast,
    places_of,
)
from reconstruction.spectral.sample import Sample

N_STARTS, N_LATER_STARTS = 12, 4
"""Of the search in the first beam, and in those after it, which begin from the best one too."""
COARSE, FINE = 4, 1
"""Steps along THRESHOLDS_KEV: of the search, and of its end."""
RULES_BY = 8
"""Power of the mean over agents, so high that the worst one rules; and of the time beyond the longest."""
MOST_SWEEPS = 12
HEAVY_Z = 20
"""Elements from here on have K edges that thresholds can stand at."""
SPM_DEAD_TIME_S, CSM_DEAD_TIME_S = 1e-6, 4e-6
"""Of a counter that nobody has measured: choices. No source settles them; the first is the upper end of what is told of
Medipix3RX, and charge summing is four times slower in a comparable chip (pixirad.com)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a design must keep to.

    Attributes
    ----------
    n_views : int
    dose_mgy : float, optional
        Mean of the sample's slices in the beam, for the whole scan. None: as much as the detection limits take.
    rate_per_s : float
        What a pixel's lowest counter may get of the open beam, before losses.
    highest_ma : float
        Of the tube.
    highest_w : float
        Of the tube.
    longest_s : float
        Beam on the sample, for the whole scan.
    lowest_kev : float
        Where the lowest threshold may stand.
    gap_kev : float
        Between two thresholds.
    """

    n_views: int
    dose_mgy: float | None
    rate_per_s: float
    highest_ma: float = math.inf
    highest_w: float = math.inf
    longest_s: float = math.inf
    lowest_kev: float = 10.0
    gap_kev: float = 2.0

    def __post_init__(self) -> None:
        if self.n_views < 1 or not (self.dose_mgy is None or self.dose_mgy > 0) or not self.rate_per_s > 0:
            raise WrongUsage(
                f"{self.n_views} views, {self.dose_mgy} mGy, {self.rate_per_s} counts per s; allowed: above 0"
            )
        if min(self.highest_ma, self.highest_w, self.longest_s, self.gap_kev) <= 0:
            raise WrongUsage("the highest current and power, the longest time and the gap; allowed: above 0")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Design:
    """Settings, and what they will tell.

    Attributes
    ----------
    beam : Beam
    current_ma : float
        As planned, or the highest that the pixels' rate and the tube allow.
    view_s : float
        Beam of each view.
    dose_mgy : float
        Mean absorbed dose of the slices in the beam, of all views.
    kerma_mgy : float
        Air kerma on the axis, without a sample, of all views.
    half_value_mm : float
        Of aluminium.
    open_rate_per_s : float
        What a pixel's lowest counter gets of the open beam.
    forecast : Forecast
    """

    beam: Beam
    current_ma: float
    view_s: float
    dose_mgy: float
    kerma_mgy: float
    half_value_mm: float
    open_rate_per_s: float
    forecast: Forecast

    @property
    def passes_kev(self) -> tuple[tuple[float, ...], ...]:
        """Thresholds of each pass."""
        return tuple(tuple(one) for one in self.forecast.thresholds_kev.tolist())


def rate_at_loss_per_s(loss_share: float, dead_time_s: float) -> float:
    """Return the true rate at which a paralysable counter loses a share."""
    if not 0 < loss_share < 1 or not dead_time_s > 0:
        raise WrongUsage(f"a loss of {loss_share} with a dead time of {dead_time_s} s; allowed: 0 to 1, and above 0")
    return -math.log1p(-loss_share) / dead_time_s


class Designer:
    """Judges and finds settings for one sample, detector and set of limits.

    Parameters
    ----------
    forecaster : Forecaster
    limits : Limits
    gain_per_mm2 : float
        From rays to voxels, as `prediction.voxel_gain_per_mm2` gives it.
    dose_mgy_per_fluence : (n_energies,) float64
        As `dose.dose_mgy_per_fluence` gives it, on ENERGIES_KEV.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        limits: Limits,
        *,
        gain_per_mm2: float,
        dose_mgy_per_fluence: NDArray[np.float64],
    ) -> None:
        self.limits = limits
        self._forecaster, self._gain_per_mm2, self._dose = forecaster, gain_per_mm2, dose_mgy_per_fluence
        self._wanted_g_cm3 = np.array([rod.concentration_mg_ml / 1000 for rod in self.sample.targets])

    @property
    def sample(self) -> Sample:
        """What is to be seen."""
        return self._forecaster.sample

    @property
    def geometry(self) -> Geometry:
        """Of the scanner."""
        return self._forecaster.geometry

    def judge(
        self, beam: Beam, passes_kev: ArrayLike, mas: float | None = None, current_ma: float | None = None
    ) -> Design:
        """Say what settings will tell.

        Parameters
        ----------
        passes_kev : (n_passes, n_thresholds) or (n_thresholds,) float
        mas : float, optional
            Of all views. None: as much as the limits allow, or as the detection limits take.
        current_ma : float, optional
            None: as high as the limits allow.
        """
        places = np.atleast_2d(places_of(np.asarray(passes_kev)))
        return self._design(self._forecaster.table(beam), places, mas, current_ma)

    def search(
        self, beams: Sequence[Beam], n_thresholds: int, *, n_passes: int = 1, starts: Sequence[ArrayLike] = ()
    ) -> Generator[Progress, None, Design]:
        """Return the best settings in any of the beams.

        Parameters
        ----------
        beams : sequence of Beam
        n_thresholds : int
            In each pass.
        n_passes : int
            Over the same views, each with an equal share of the charge.
        starts : sequence of (n_passes, n_thresholds) or (n_thresholds,) float
            Thresholds in keV to begin the search from, beside those that are made up here.
        """
        if n_passes * (n_thresholds - 1) + 1 < len(self.sample.basis):
            raise WrongUsage(
                f"{len(self.sample.basis)} materials cannot be told apart with {n_thresholds} thresholds, {n_passes} x",
                hint="name fewer agents, or take a mode with more thresholds",
            )
        best: tuple[float, Table, NDArray[np.int64]] | None = None
        rng = np.random.default_rng(0)  # the same search each time
        for done, beam in enumerate(beams):
            yield Progress("beams", done, len(beams))
            table = self._forecaster.table(beam)
            before = None if best is None else best[2]
            tried = self._starts(table, (n_passes, n_thresholds), starts, before, rng)
            merit, places = max((self._polished(table, at, COARSE) for at in tried), key=lambda one: one[0])
            if best is None or merit > best[0]:
                best = merit, table, places
        yield Progress("beams", len(beams), len(beams))
        if best is None or best[0] <= 0:
            raise WrongUsage("no beam is left to try", hint="offer voltages above the thresholds")
        _, table, places = best
        places = self._polished(table, places, FINE)[1]
        return self._design(table, places)

    def landscape(self, design: Design) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return contrast to noise where one threshold is moved and the others stay.

        Returns
        -------
        thresholds_kev : (n_steps,) float64
        cnr : (n_passes, n_bins, n_steps, n_targets) float64
            NaN where thresholds would come too close.
        """
        table = self._forecaster.table(design.beam)
        places = places_of(design.forecast.thresholds_kev)
        steps = np.flatnonzero((self.limits.lowest_kev <= THRESHOLDS_KEV) & (design.beam.kvp > THRESHOLDS_KEV))
        cnr = np.full((*places.shape, len(steps), len(self.sample.targets)), np.nan)
        for which in np.ndindex(*places.shape):
            sets = self._moved(places, which, 1, design.beam.kvp)
            variance = table.variances(sets) / design.forecast.mas * self._gain_per_mm2
            cnr[which][np.searchsorted(steps, sets[(..., *which)])] = self._wanted_g_cm3 / np.sqrt(variance)
        return THRESHOLDS_KEV[steps], cnr

    def _design(
        self,
        table: Table,
        places: NDArray[np.int64],
        mas: float | None = None,
        current_ma: float | None = None,
    ) -> Design:
        limits = self.limits
        lowest = int(places[:, 0].min())
        used_ma = current_ma or float(self._highest_ma(table)[lowest])
        dose_per_mas = float(table.on_axis @ self._dose)
        if mas is None and limits.dose_mgy is None:
            at_one = forecast(table, self.sample, places, 1.0, self._gain_per_mm2)
            mas = limits.n_views * float((ROSE_CNR / at_one.cnr).max()) ** 2
        elif mas is None:
            mas = float(self._mas(table)[lowest])
        view_mas = mas / limits.n_views
        return Design(
            beam=table.beam,
            current_ma=used_ma,
            view_s=view_mas / used_ma,
            dose_mgy=mas * dose_per_mas,
            kerma_mgy=mas * air_kerma_mgy(table.on_axis, ENERGIES_KEV),
            half_value_mm=half_value_layer_mm(table.on_axis, ENERGIES_KEV),
            open_rate_per_s=float(table.open_counts[lowest] * used_ma),
            forecast=forecast(table, self.sample, places, view_mas, self._gain_per_mm2),
        )

    def _highest_ma(self, table: Table) -> NDArray[np.float64]:
        """Return the highest current by where the lowest threshold stands."""
        by_rate = self.limits.rate_per_s / np.maximum(table.open_counts, 1e-30)
        return np.minimum(by_rate, min(self.limits.highest_ma, self.limits.highest_w / table.beam.kvp))

    def _mas(self, table: Table) -> NDArray[np.float64]:
        """Return the charge of all views that dose and time allow, by where the lowest threshold stands."""
        dose_per_mas = float(table.on_axis @ self._dose)
        if self.limits.dose_mgy is None:
            return np.full(len(THRESHOLDS_KEV), 1.0 / dose_per_mas)
        return np.minimum(self.limits.dose_mgy / dose_per_mas, self._highest_ma(table) * self.limits.longest_s)

    def _merit(self, table: Table, sets: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return, for each set of thresholds, a mean contrast to noise that the worst agent rules."""
        noise = np.sqrt(table.variances(sets)) / self._wanted_g_cm3
        worst = noise.max(axis=-1)
        others = np.where(np.isfinite(worst)[:, None], noise, 1.0) / np.where(np.isfinite(worst), worst, 1.0)[:, None]
        lowest = sets[..., 0].min(axis=-1)
        mas = self._mas(table)[lowest]
        merit = np.sqrt(mas / self.limits.n_views / self._gain_per_mm2)
        merit = merit / (worst * (others**RULES_BY).mean(axis=-1) ** (1 / RULES_BY))
        if self.limits.dose_mgy is not None or not math.isfinite(self.limits.longest_s):
            return merit
        # Of one mGy; what the detection limits take of it takes its time.
        needed_s = mas / self._highest_ma(table)[lowest] * (ROSE_CNR / np.maximum(merit, 1e-30)) ** 2
        return merit * np.minimum(1.0, self.limits.longest_s / needed_s) ** RULES_BY

    def _starts(
        self,
        table: Table,
        shape: tuple[int, int],
        given: Sequence[ArrayLike],
        best: NDArray[np.int64] | None,
        rng: np.random.Generator,
    ) -> list[NDArray[np.int64]]:
        """Return where to begin: the best of the beams before, or what is given, and some by chance."""
        one = (1, shape[1])
        starts = [self._by_chance(table.beam, one, rng) for _ in range(N_STARTS if best is None else N_LATER_STARTS)]
        if shape[0] > 1:  # one pass made several times is the least to improve on
            found = max((self._polished(table, start, COARSE) for start in starts), key=lambda each: each[0])
            starts = [np.tile(found[1], (shape[0], 1)), *(self._by_chance(table.beam, shape, rng) for _ in starts)]
        before = [places_of(np.broadcast_to(np.asarray(kev, dtype=np.float64), shape)) for kev in given]
        return starts + [
            places
            for places in (before if best is None else [best])
            if THRESHOLDS_KEV[places.max()] < table.beam.kvp - self.limits.gap_kev
        ]

    def _by_chance(self, beam: Beam, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return thresholds anywhere, as far apart as they must be: (n_passes, n)."""
        low = int(np.searchsorted(THRESHOLDS_KEV, self.limits.lowest_kev))
        free = int(np.searchsorted(THRESHOLDS_KEV, beam.kvp - 0.5)) - low - (shape[1] - 1) * self._gap
        if free < 1:
            raise WrongUsage(
                f"{shape[1]} thresholds do not fit between {self.limits.lowest_kev:g} and {beam.kvp:g} keV",
                hint="offer higher voltages, a lower lowest threshold or a smaller gap",
            )
        return low + np.sort(rng.integers(0, free, shape), axis=1) + self._gap * np.arange(shape[1])

    def _polished(self, table: Table, places: NDArray[np.int64], step: int) -> tuple[float, NDArray[np.int64]]:
        """Move one threshold at a time to where it is best, until none moves."""
        merit = float(self._merit(table, places[None])[0])
        for _ in range(MOST_SWEEPS):
            before = merit
            for which in np.ndindex(*places.shape):
                sets = self._moved(places, which, step, table.beam.kvp)
                merits = self._merit(table, sets)
                if len(sets) and merits.max() > merit:
                    merit, places = float(merits.max()), sets[int(merits.argmax())]
            if merit <= before * (1 + 1e-6):
                break
        return merit, places

    def _moved(self, places: NDArray[np.int64], which: tuple[int, ...], step: int, kvp: float) -> NDArray[np.int64]:
        """Return sets in which one threshold stands anywhere that its neighbours allow: (n_sets, n_passes, n)."""
        of_pass, i = which
        mine, gap = places[of_pass], self._gap
        first = mine[i - 1] + gap if i else int(np.searchsorted(THRESHOLDS_KEV, self.limits.lowest_kev))
        last = mine[i + 1] - gap if i + 1 < len(mine) else int(np.searchsorted(THRESHOLDS_KEV, kvp - 0.5)) - 1
        stands = np.arange(first + (mine[i] - first) % step, last + 1, step)
        sets = np.tile(places, (len(stands), 1, 1))
        sets[:, of_pass, i] = stands
        return sets

    @property
    def _gap(self) -> int:
        return max(math.ceil(self.limits.gap_kev / (THRESHOLDS_KEV[1] - THRESHOLDS_KEV[0]) - 1e-9), 1)


def k_edges_kev(sample: Sample) -> tuple[float, ...]:
    """Return the K edges of the sample's agents, heaviest element first."""
    numbers = {z for name in sample.basis[1:] for z, _ in material(name).mass_fractions if z >= HEAVY_Z}
    return tuple(k_shell(z).edge_kev for z in sorted(numbers, reverse=True))


def beams_of(
    kvps: Sequence[float],
    inherent_mm: Mapping[str, float],
    added_mm: Mapping[str, Sequence[float]],
    *,
    kvp_ratio: float = 1.0,
) -> tuple[Beam, ...]:
    """Return a beam for each voltage, with each thickness of each filter that may be added, one at a time."""
    choices: list[Mapping[str, float]] = [
        {name: mm} for name, thicknesses_mm in added_mm.items() for mm in thicknesses_mm
    ] or [{}]
    beams = []
    for kvp in kvps:
        for choice in choices:
            names = dict.fromkeys([*inherent_mm, *choice])
            filters = {name: inherent_mm.get(name, 0.0) + choice.get(name, 0.0) for name in names}
            beams.append(Beam(kvp=kvp, filters_mm=filters, kvp_ratio=kvp_ratio))
    return tuple(beams)
