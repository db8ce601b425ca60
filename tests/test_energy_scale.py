"""Laws of the energy scale: what photons put in comes out, with errors that are what they say.

The photons are drawn one by one on a square pixel that shares their charge; the estimator integrates.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from calibration.attenuation import Line
from calibration.energy_scale import (
    SCurve,
    find_end_point,
    fit_energy_scale,
    line_group,
    mean_kev,
    steepest_dac,
)
from firmware_iface.errors import CalibrationMissing

LINES = {
    "In": {24.21: 0.53, 24.0: 0.29, 27.3: 0.18},
    "Gd": {42.996: 0.5, 42.31: 0.28, 48.7: 0.22},
    "Am-241": {59.541: 1.0},
    "Pb": {74.97: 0.48, 72.8: 0.29, 84.9: 0.23},
}
SCALE = (13.0, 4.3)
N_PHOTONS = 400_000


def _lines(table: dict[float, float]) -> tuple[Line, ...]:
    return tuple(Line(energy_kev=energy, fraction=fraction) for energy, fraction in table.items())


def _charges_kev(
    rng: np.random.Generator, lines: dict[float, float], *, spread: float, noise_kev: float, n: int = N_PHOTONS
) -> np.ndarray:
    """Draw what the middle pixel gets of each photon that falls on it or near it; the pitch is 1."""
    weights = np.array(list(lines.values()))
    energy = rng.choice(list(lines), n, p=weights / weights.sum())
    near = 0.5 + 4 * spread
    place = rng.uniform(-near, near, (2, n))
    share = np.prod(ndtr((place + 0.5) / spread) - ndtr((place - 0.5) / spread), axis=0)
    return energy * share + noise_kev * rng.normal(size=n)


def _curve(
    rng: np.random.Generator,
    source: str,
    lines: dict[float, float],
    *,
    spread: float = 0.05,
    noise_kev: float = 0.9,
    constant: float = 200.0,
) -> SCurve:
    """Count, at every code by itself, fresh photons above the threshold."""
    offset, gain = SCALE
    energies = np.array(list(lines))
    dacs = np.arange(round(offset + gain * energies.min() * 0.86), round(offset + gain * (energies.max() * 1.1 + 2)), 3)
    pool = np.sort(offset + gain * _charges_kev(rng, lines, spread=spread, noise_kev=noise_kev))
    mean = len(pool) - np.searchsorted(pool, dacs) + constant
    return SCurve(source=source, lines=_lines(lines), dacs=dacs.astype(float), counts=rng.poisson(mean).astype(float))


def _error_kev(scale: tuple[float, float], energy_kev: float) -> float:
    return (scale[0] + scale[1] * energy_kev - SCALE[0] - SCALE[1] * energy_kev) / SCALE[1]


@pytest.mark.parametrize(("spread", "within_kev"), [(0.01, 0.02), (0.05, 0.02), (0.1, 0.08)])
def test_photons_give_the_scale_they_were_counted_on(spread: float, within_kev: float) -> None:
    """The wider the cloud, the more the corners of the pixel weigh, which the estimator leaves out."""
    rng = np.random.default_rng(1)
    scale = fit_energy_scale([_curve(rng, name, lines, spread=spread) for name, lines in LINES.items()])
    assert scale.sources == tuple(LINES)
    assert scale.energies_kev == pytest.approx([mean_kev(_lines(table)) for table in LINES.values()])
    for energy_kev in (18, 33, 50, 75):
        assert abs(_error_kev((scale.offset_dac, scale.gain_dac_per_kev), energy_kev)) < within_kev
    assert scale.residual_rms_kev < 0.06
    assert scale.widths_dac[1] == pytest.approx(SCALE[1] * 0.9, rel=0.1)
    assert scale.shapes[:, 1] == pytest.approx([spread] * 4, abs=0.012)


def test_the_stated_error_is_that_of_repeated_measurements() -> None:
    found, stated = [], []
    curves = [_curve(np.random.default_rng(3), name, lines) for name, lines in LINES.items()]
    for seed in range(8):
        rng = np.random.default_rng(seed)
        few = [
            SCurve(source=c.source, lines=c.lines, dacs=c.dacs, counts=rng.poisson(c.counts / 100).astype(float))
            for c in curves
        ]
        scale = fit_energy_scale(few, guess=(15.0, 4.5))
        found.append(_error_kev((scale.offset_dac, scale.gain_dac_per_kev), 50))
        stated.append(float(scale.sigma_kev(50)))
    assert abs(np.mean(found)) < 3 * np.mean(stated) / np.sqrt(8) + 0.02
    assert 0.5 < np.std(found) / np.mean(stated) < 1.7


def test_a_line_that_is_off_shows_in_the_residuals_and_is_not_hidden() -> None:
    rng = np.random.default_rng(2)
    curves = []
    for name, lines in LINES.items():
        by_kev = 0.6 if name == "Gd" else 0.0
        seen = _curve(rng, name, {energy + by_kev: w for energy, w in lines.items()})
        curves.append(SCurve(source=name, lines=_lines(lines), dacs=seen.dacs, counts=seen.counts))
    scale = fit_energy_scale(curves)
    assert 0.4 < scale.residuals_kev[1] - scale.residuals_kev[[0, 2]].mean() < 0.9
    assert scale.residual_rms_kev > 0.15
    assert scale.chi2_ratio > 3
    found_kev = (scale.positions_dac - scale.offset_dac) / scale.gain_dac_per_kev
    np.testing.assert_allclose(scale.residuals_kev, found_kev - scale.energies_kev, atol=1e-9)


def test_the_steepest_point_is_near_the_edge() -> None:
    curve = _curve(np.random.default_rng(5), "Am-241", LINES["Am-241"], spread=0.01)
    assert steepest_dac(curve.dacs, curve.counts) == pytest.approx(13 + 4.3 * 59.541, abs=4)
    with pytest.raises(CalibrationMissing, match="do not fall"):
        steepest_dac(curve.dacs, np.ones(len(curve.dacs)))


def test_one_source_is_no_scale() -> None:
    with pytest.raises(ValueError, match="two or more"):
        fit_energy_scale([_curve(np.random.default_rng(1), "Am-241", LINES["Am-241"])])


def test_lines_near_the_strongest_are_looked_at_together() -> None:
    assert [line.energy_kev for line in line_group("Am-241")] == [pytest.approx(59.541, abs=0.01)]
    assert {round(line.energy_kev) for line in line_group("In")} >= {24, 27}


@pytest.mark.parametrize("kvp", [60.0, 80.0])
def test_a_tube_ends_at_its_voltage(kvp: float) -> None:
    """Photons between 0.7 kVp and the end in proportion to the distance from it (Kramers), each drawn by itself."""
    rng = np.random.default_rng(7)
    energies = kvp * (1 - 0.3 * np.sqrt(rng.uniform(size=200_000))) + 0.8 * rng.normal(size=200_000)
    steps = np.linspace(0.86 * kvp, 1.06 * kvp, 25)
    counts = [float(rng.poisson((energies > step).sum() + 20)) for step in steps]
    found = find_end_point(steps, np.asarray(counts), kvp + 1.5, sigma_kev=0.8)
    assert found.found_kev == pytest.approx(kvp, abs=max(4 * found.sigma_kev, 0.1))
    assert found.sigma_kev < 0.2
    assert found.error_kev == found.found_kev - found.kvp


def test_counts_without_an_end_are_refused() -> None:
    with pytest.raises(CalibrationMissing, match="do not end"):
        find_end_point(np.linspace(70, 85, 20), np.full(20, 1000.0), 80.0, sigma_kev=0.8)
