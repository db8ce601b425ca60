"""Which counts of neighbouring pixels belong to one photon, by the fitted response.

Exclusive bins of one pixel never count a photon twice: they are independent. Its neighbours may count it too, with the
charge that falls to them, or with a K photon of the sensor that is absorbed there. So counts of neighbours vary
together, and those of bins do as soon as pixels are added up, in a preview or in the voxels of a reconstruction.

What is not known: the second count of a photon that scatters in the sensor, and pixels beyond the nearest, whose few
K photons are put to the nearest.

# Ref: covariance of counts that photons share, the mean of the product of what one photon counts in both: reference on
#      spectral CT, section 3.6. The response itself: `calibration.response`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from calibration.attenuation import material
from calibration.response import Response, SensorModel, blur, cluster, escaping, k_photons, per_mm_of

EDGES = ((1, 0), (0, 1))
CORNERS = ((1, 1), (1, -1))
CHARGE_STEP_KEV = 0.5
N_PLACES = 20
"""Along an axis of half a pixel, at which a charge may be deposited."""
N_FLIGHTS = 1 << 14


def counts_together(response: Response, thresholds_kev: ArrayLike, energies_kev: ArrayLike) -> NDArray[np.float64]:
    """Return the mean product of what one incident photon counts in bin a of a pixel, and in bin b of a neighbour.

    Parameters
    ----------
    thresholds_kev : (n_bins,) float
        As set, rising; the last bin is open.
    energies_kev : (n_energies,) float

    Returns
    -------
    together : (2, n_bins, n_bins, n_energies) float64
        Of one neighbour across an edge (there are 4), and of one across a corner (4).
    """
    sensor, values = response.sensor, response.values
    energies = np.asarray(energies_kev, dtype=np.float64)
    thresholds = response.true_kev(np.asarray(thresholds_kev, dtype=np.float64))
    photo, scattered = (per_mm_of(material(sensor.material), energies, process) for process in ("photo", "incoherent"))
    absorbed = -np.expm1(-(photo + scattered) * sensor.thickness_mm * values["thickness_relative"])
    charges = np.arange(CHARGE_STEP_KEV, energies.max() + 2 * CHARGE_STEP_KEV, CHARGE_STEP_KEV)
    table = _shared(thresholds, charges, sensor, values)
    _, together = _photo(thresholds, energies, sensor, values, (charges, table), generations=2)
    return absorbed * photo / (photo + scattered) * together


def _photo(
    thresholds: NDArray[np.float64],
    energies: NDArray[np.float64],
    sensor: SensorModel,
    values: Mapping[str, float],
    shared: tuple[NDArray[np.float64], NDArray[np.float64]],
    generations: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return counts, (n_bins, n_energies), and those together, of a photon that is absorbed by the photo-effect."""
    kept = np.ones_like(energies)
    counts = np.zeros((len(thresholds), len(energies)))
    together = np.zeros((2, len(thresholds), len(thresholds), len(energies)))
    thickness_mm = sensor.thickness_mm * values["thickness_relative"]
    for line_kev, chance in k_photons(sensor.material, tuple(energies)) if generations else ():
        if not chance.any():
            continue
        line_per_mm = float(per_mm_of(material(sensor.material), np.array([line_kev]), "total")[0])
        away = chance * np.exp(-values["capture_mm"] * line_per_mm)
        kept = kept - away
        stays = 1 - escaping(tuple(energies), sensor.material, round(thickness_mm, 4), line_per_mm)
        apart = away * np.exp(-values["veto_mm"] * line_per_mm) * stays
        left = _in_bins(thresholds, energies - line_kev, sensor, values)
        flown, flown_together = _photo(thresholds, np.array([line_kev]), sensor, values, shared, generations - 1)
        counts += away * left + apart * flown
        together += away * _between(*shared, energies - line_kev) + apart * flown_together
        both = left[:, None] * flown[None] + flown[:, None] * left[None]
        across = _across_edges(line_per_mm, values["capture_mm"] + values["veto_mm"], sensor.pitch_mm)
        together += apart * np.stack([across / 4 * both, (1 - across) / 4 * both])
    counts += kept * _in_bins(thresholds, energies, sensor, values)
    return counts, together + kept * _between(*shared, energies)


def _in_bins(
    thresholds: NDArray[np.float64], charges: NDArray[np.float64], sensor: SensorModel, values: Mapping[str, float]
) -> NDArray[np.float64]:
    above = cluster(thresholds[:, None], charges, sensor, values)
    return above - np.vstack([above[1:], np.zeros_like(above[:1])])


def _between(
    charges: NDArray[np.float64], table: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the table at some charges, linearly; nothing where there is none."""
    place = np.clip(wanted / CHARGE_STEP_KEV - 1, 0, len(charges) - 1.001)
    low = place.astype(np.intp)
    part = place - low
    return np.where(wanted > 0, table[..., low] * (1 - part) + table[..., low + 1] * part, 0)


def _shared(
    thresholds: NDArray[np.float64], charges: NDArray[np.float64], sensor: SensorModel, values: Mapping[str, float]
) -> NDArray[np.float64]:
    """Return what a deposit at a random place counts together: (2, n_bins, n_bins, n_charges); summed, nothing."""
    n_bins = len(thresholds)
    together = np.zeros((2, n_bins, n_bins, len(charges)))
    if sensor.is_csm:
        return together
    nodes, weights = np.polynomial.legendre.leggauss(N_PLACES)
    x = (nodes + 1) / 4  # from the middle of a pixel to its border
    weight = (weights[:, None] * weights / 4).ravel()
    sigma, cloud = blur(charges, sensor, values)
    for k, charge_kev in enumerate(charges):
        borders = ndtr((np.arange(-1, 3)[:, None] - 0.5 - x) / cloud[k])
        along = np.diff(borders, axis=0)  # the share of the pixels -1, 0, 1 along one axis, from each place
        share = along[:, None, :, None] * along[None, :, None, :]
        above = ndtr((charge_kev * share.reshape(3, 3, -1) - thresholds[:, None, None, None]) / sigma[k])
        inside = above - np.concatenate([above[1:], np.zeros_like(above[:1])])
        for kind, offsets in enumerate((EDGES, CORNERS)):
            for dy, dx in offsets:
                one = inside[:, : 3 - dy, max(-dx, 0) : 3 - max(dx, 0)].reshape(n_bins, -1, len(weight))
                other = inside[:, dy:, max(dx, 0) : 3 + min(dx, 0)].reshape(n_bins, -1, len(weight))
                product = np.einsum("apw,bpw->ab", one * weight, other, optimize=True)
                together[kind, :, :, k] += (product + product.T) / 4  # places of all four quarters, two offsets
    return together


@lru_cache(maxsize=64)
def _across_edges(line_per_mm: float, from_mm: float, pitch_mm: float) -> float:
    """Return which share of the K photons that reach another pixel, from a random place, go to one across an edge."""
    rng = np.random.default_rng(0)
    flight_mm = from_mm + rng.exponential(1 / line_per_mm, N_FLIGHTS)
    sine = np.sqrt(1 - rng.uniform(-1, 1, N_FLIGHTS) ** 2)
    turn = rng.uniform(0, 2 * np.pi, N_FLIGHTS)
    aside = flight_mm * sine / pitch_mm * np.stack([np.cos(turn), np.sin(turn)])
    moved = np.clip(np.floor(rng.uniform(0, 1, (2, N_FLIGHTS)) + aside), -1, 1)
    n_axes = np.abs(moved).sum(axis=0)
    return float((n_axes == 1).sum() / max((n_axes > 0).sum(), 1))
