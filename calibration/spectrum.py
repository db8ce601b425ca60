"""Source: what a tungsten tube, a radionuclide or a fluorescent target sends out.

# Ref: tube: SpekPy 2.5.4 (MIT), model `spekpy-v2-casim`, G. Poludniowski et al. 2021, Med. Phys. 48, 3630; baked in
#      `data/` for a tungsten anode in vacuum without any filter; filters are applied here by `attenuation`.
# Ref: radionuclides: the tables of xraylib 4.3.0, photons per decay; fluorescence: `attenuation.k_shell`.
# Ref: energy given to electrons by Compton scattering: O. Klein, Y. Nishina 1929, Z. Phys. 52, 853; CODATA 2018; Z/A of
#      dry air: NIST.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.attenuation import (
    HIGHEST_KEV,
    LOWEST_KEV,
    Line,
    Material,
    atomic_number,
    k_shell,
    linear_attenuation_per_mm,
    mass_attenuation_cm2_g,
)
from firmware_iface.errors import WrongUsage

ELECTRON_REST_KEV = 510.99895
ELECTRON_RADIUS_CM = 2.8179403e-13
AIR_ELECTRONS_PER_G = 0.49919 * 6.0221408e23
MGY_PER_KEV_PER_G, MM2_PER_CM2 = 1.602176634e-10, 100.0
REFERENCE_MM = 1000.0
"""Where the baked spectra are stated."""
ANODE_DEG = 12.0
"""Default anode angle: a choice, common in micro-focus and medical tubes; a scanner's own goes into its plan."""

# fmt: off
RADIONUCLIDES: Mapping[str, Mapping[float, float]] = {
    "Am-241": {
        11.871: 0.0066, 13.761: 0.0107, 13.946: 0.0960, 15.861: 0.00153, 16.109: 0.00184, 16.839: 0.0250,
        17.061: 0.0150, 17.505: 0.0065, 17.751: 0.0570, 17.992: 0.0137, 20.784: 0.0139, 21.099: 0.0065,
        21.342: 0.0059, 21.491: 0.0029, 26.3448: 0.024, 33.1964: 0.00126, 43.423: 0.00073, 59.5412: 0.359,
    },
    "Cd-109": {
        2.634: 0.0018, 2.806: 0.00097, 2.978: 0.0050, 2.984: 0.0450, 3.151: 0.0260, 3.203: 0.0014,
        3.234: 0.0022, 3.348: 0.0058, 3.520: 0.0028, 21.990: 0.295, 22.163: 0.557, 24.912: 0.0476,
        24.943: 0.0920, 25.147: 0.00067, 25.458: 0.0230, 25.511: 0.00487, 88.040: 0.0361,
    },
    "Co-57": {6.391: 0.164, 6.404: 0.326, 7.058: 0.0587, 14.413: 0.0916, 122.0614: 0.856, 136.4743: 0.1068},
    "Fe-55": {5.888: 0.085, 5.899: 0.169, 6.490: 0.0299},
}
# fmt: on
"""Energy in keV and photons per decay of every line within 1-160 keV that has 5e-4 photons per decay or more."""


@cache
def _table() -> Mapping[str, NDArray]:
    with np.load(Path(__file__).parent / "data" / "tube.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def tube_spectrum(
    kvp: float,
    energies_kev: ArrayLike,
    filters: Mapping[str, float] | None = None,
    anode_deg: float = ANODE_DEG,
    *,
    distance_mm: float = REFERENCE_MM,
) -> NDArray[np.float64]:
    """Return the photons of a tungsten tube in each energy bin, at a distance from its focal spot.

    The model has bins of 1 keV, from 1 keV to the tube's voltage; other bins get their share of each, so photons are
    conserved on any grid and characteristic lines are spread over 1 keV. Whole kVp are the model's own; between
    them, and between its anode angles, the nearest two are mixed.

    Parameters
    ----------
    kvp : tube voltage, 20 to 150
    energies_kev : (n,) float
        Centres of the energy bins: a uniform grid upwards, two or more.
    filters : thickness in mm of each filter, by material name, the air path included
    anode_deg : anode angle, 6 to 22
    distance_mm : where the photons are counted; fluence falls with its square

    Returns
    -------
    (n,) float64, photons per mm2 per mAs
    """
    if not distance_mm > 0:
        raise WrongUsage(f"photons cannot be counted at {distance_mm:g} mm from the focal spot; allowed: above 0")
    centres_kev, width_kev = _uniform_grid(energies_kev)
    model_kev = _table()["energy_kev"]
    photons = _unfiltered(kvp, anode_deg) * transmission(filters or {}, model_kev)
    # Mixing two voltages must not leave photons above the stated one: the last bin ends at it.
    edges_kev = np.minimum(np.append(model_kev - 0.5, model_kev[-1] + 0.5), kvp)
    wanted_kev = np.append(centres_kev - width_kev / 2, centres_kev[-1] + width_kev / 2)
    below = np.interp(wanted_kev, edges_kev, np.append(0.0, np.cumsum(photons)))
    return np.diff(below) * (REFERENCE_MM / distance_mm) ** 2


def _uniform_grid(energies_kev: ArrayLike) -> tuple[NDArray[np.float64], float]:
    centres = np.asarray(energies_kev, dtype=np.float64)
    steps = np.diff(centres) if centres.ndim == 1 else np.zeros(1)
    if not steps.size or steps.min() <= 0 or not np.allclose(steps, steps[0]):
        raise WrongUsage("the energy grid must be one row of bin centres, two or more, upwards and evenly spaced")
    return centres, float(np.mean(steps))


def _unfiltered(kvp: float, anode_deg: float) -> NDArray[np.float64]:
    """Photons per mm2 per mAs at 1 m in the model's own bins, mixed of its nearest voltages and angles."""
    mixed = _table()["per_mm2"].astype(np.float64)
    for axis, value, unit in (("anode_deg", anode_deg, "degrees of anode angle"), ("kvp", kvp, "kVp")):
        grid = _table()[axis]
        if not grid[0] <= value <= grid[-1]:
            raise WrongUsage(f"a tube at {value:g} {unit} is not modelled; allowed: {grid[0]:g} to {grid[-1]:g}")
        lower = min(int(np.searchsorted(grid, value, side="right")) - 1, len(grid) - 2)
        weight = (value - grid[lower]) / (grid[lower + 1] - grid[lower])
        mixed = (1 - weight) * mixed[lower] + weight * mixed[lower + 1]
    return mixed


def transmission(filters: Mapping[str, float], energies_kev: ArrayLike) -> NDArray[np.float64]:
    """Return the share of photons that passes all filters (name to thickness in mm): (n,) float64."""
    passed = np.ones(np.shape(energies_kev))
    for name, thickness_mm in filters.items():
        if not thickness_mm >= 0:
            raise WrongUsage(f"a filter of {thickness_mm} mm {name} cannot be; allowed: 0 mm or more")
        passed = passed * np.exp(-linear_attenuation_per_mm(name, energies_kev) * thickness_mm)
    return passed


def radioactive_lines(name: str) -> tuple[Line, ...]:
    """Return the lines of a radionuclide such as Am-241; each `fraction` is photons per decay."""
    if name not in RADIONUCLIDES:
        raise WrongUsage(f"no radionuclide {name!r}; known: {', '.join(RADIONUCLIDES)}")
    return tuple(Line(energy_kev=energy, fraction=per_decay) for energy, per_decay in RADIONUCLIDES[name].items())


def fluorescence_lines(element: str) -> tuple[Line, ...]:
    """Return the K lines of a target within 1-160 keV; each `fraction` is its share of the K photons."""
    shell = k_shell(atomic_number(element))
    lines = tuple(line for line in shell.lines if LOWEST_KEV <= line.energy_kev <= HIGHEST_KEV)
    if not lines:
        raise WrongUsage(f"{element} has no K lines from {LOWEST_KEV:g} to {HIGHEST_KEV:g} keV")
    return lines


def emission(name: str) -> tuple[Line, ...]:
    """Return the lines of a source by name: a radionuclide (Am-241), or a fluorescent target (In, Gd, lead)."""
    if name in RADIONUCLIDES:
        return radioactive_lines(name)
    try:
        return fluorescence_lines(name)
    except WrongUsage as refused:
        known = ", ".join(RADIONUCLIDES)
        raise WrongUsage(str(refused), hint=f"sources with lines: {known}, or an element that fluoresces") from refused


def half_value_layer_mm(spectrum: ArrayLike, energies_kev: ArrayLike, material: Material | str = "aluminium") -> float:
    """Return the thickness that halves the air kerma of a spectrum in a narrow beam.

    Parameters
    ----------
    spectrum, energies_kev : (n,) float
        Photons in each bin, and the bins' centres.
    """
    photons, energies = np.asarray(spectrum, dtype=np.float64), np.asarray(energies_kev, dtype=np.float64)
    kerma = photons * energies * _energy_transfer_cm2_g(energies)
    if not kerma.sum() > 0:
        raise WrongUsage("a spectrum without photons has no half-value layer")
    attenuation = linear_attenuation_per_mm(material, energies)

    # What passes is a sum of falling exponentials, hence convex: Newton's steps from 0 never overshoot.
    thickness_mm = step_mm = 0.0
    while step_mm > 1e-9 * thickness_mm or thickness_mm == 0.0:
        passed = kerma * np.exp(-attenuation * thickness_mm)
        step_mm = float((passed.sum() - kerma.sum() / 2) / (passed @ attenuation))
        thickness_mm += step_mm
    return thickness_mm


def air_kerma_mgy(spectrum: ArrayLike, energies_kev: ArrayLike) -> float:
    """Return the kerma in air, free of what would scatter, of photons per mm2 in each energy bin."""
    photons, energies = np.asarray(spectrum, dtype=np.float64), np.asarray(energies_kev, dtype=np.float64)
    return float(photons @ (energies * _energy_transfer_cm2_g(energies)) * MM2_PER_CM2 * MGY_PER_KEV_PER_G)


def klein_nishina_cm2(energies_kev: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the cross section of a free electron for scattering, and of it what the electron takes of the energy.

    Returns
    -------
    total, transferred : (n,) float64, cm2
    """
    cosine, weight = np.polynomial.legendre.leggauss(32)
    left = 1 / (1 + np.asarray(energies_kev, dtype=np.float64)[:, None] / ELECTRON_REST_KEV * (1 - cosine))
    scattered = weight * left**2 * (left + 1 / left - 1 + cosine**2)
    area_cm2 = np.pi * ELECTRON_RADIUS_CM**2
    return area_cm2 * scattered.sum(axis=1), area_cm2 * (scattered * (1 - left)).sum(axis=1)


def _energy_transfer_cm2_g(energies_kev: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mass energy-transfer coefficient of air: all of a photo-absorption, the electron's share of a scattering.

    Electrons scatter as if free: binding spares them the small transfers only, which hardly count.
    """
    _, transferred = klein_nishina_cm2(energies_kev)
    return mass_attenuation_cm2_g("air", energies_kev, "photo") + AIR_ELECTRONS_PER_G * transferred
