"""Laws of the energy scale: what photons put in comes out, with errors that are what they say.

The photons are drawn one by one on a square pixel that shares their charge; the form that the fit knows is an integral.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtr

from calibration.attenuation import Line
from calibration.edge_form import CLOUD_RATIOS, EdgeForm
from calibration.energy_scale import (
    SCurve,
    edge_contrast,
    expected_counts,
    find_end_point,
    fit_energy_scale,
    has_edge,
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
SPREAD = 0.05
"""Width of the cloud over the pitch."""
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


def _form(lines: dict[float, float]) -> EdgeForm:
    """Integrate the charges of a square pixel and its surroundings over places, for each width of the cloud."""
    charges = 0.5 * min(lines) + 0.1 * np.arange(int(0.62 * max(lines) / 0.1) + 60, dtype=np.float64)
    counts = np.zeros((len(CLOUD_RATIOS), len(charges)))
    x = (np.arange(600) + 0.5) / 600 * 0.9  # from the middle to well beyond the border
    for of_cloud, ratio in zip(counts, CLOUD_RATIOS, strict=True):
        along = ndtr((x + 0.5) / SPREAD / ratio) - ndtr((x - 0.5) / SPREAD / ratio)
        share = np.multiply.outer(along, along).ravel()
        for energy, weight in lines.items():
            seen, _ = np.histogram(energy * share, bins=np.append(charges, charges[-1] + 0.1) - 0.05)
            of_cloud += weight / sum(lines.values()) * seen / 600**2
    return EdgeForm(charges_kev=charges, counts=counts, collected_kev=0.0)


FORMS = {name: _form(lines) for name, lines in LINES.items()}


def _curve(
    rng: np.random.Generator,
    source: str,
    lines: dict[float, float],
    *,
    spread: float = SPREAD,
    noise_kev: float = 0.9,
    constant: float = 200.0,
) -> SCurve:
    """Count, at every code by itself, fresh photons above the threshold."""
    offset, gain = SCALE
    energies = np.array(list(lines))
    dacs = np.arange(round(offset + gain * energies.min() * 0.86), round(offset + gain * (energies.max() * 1.1 + 2)), 3)
    pool = np.sort(offset + gain * _charges_kev(rng, lines, spread=spread, noise_kev=noise_kev))
    mean = len(pool) - np.searchsorted(pool, dacs) + constant
    return SCurve(
        source=source,
        lines=_lines(LINES[source]),
        form=FORMS[source],
        dacs=dacs.astype(float),
        counts=rng.poisson(mean).astype(float),
    )


def _error_kev(scale: tuple[float, float], energy_kev: float) -> float:
    return (scale[0] + scale[1] * energy_kev - SCALE[0] - SCALE[1] * energy_kev) / SCALE[1]


@pytest.mark.parametrize("ratio", [0.9, 1.0, 1.08])
def test_photons_give_the_scale_they_were_counted_on(ratio: float) -> None:
    rng = np.random.default_rng(1)
    scale = fit_energy_scale([_curve(rng, name, lines, spread=ratio * SPREAD) for name, lines in LINES.items()])
    assert scale.sources == tuple(LINES)
    assert scale.energies_kev == pytest.approx([mean_kev(_lines(table)) for table in LINES.values()])
    for energy_kev in (18, 33, 50, 75):
        assert abs(_error_kev((scale.offset_dac, scale.gain_dac_per_kev), energy_kev)) < 0.03
        assert scale.sigma_kev(energy_kev) < 0.04
    assert scale.residual_rms_kev < 0.04
    assert scale.widths_dac[1] == pytest.approx(SCALE[1] * 0.9, rel=0.05)
    assert scale.shapes[:, 1] == pytest.approx([ratio] * 4, abs=0.06)
    assert scale.blur[2] == pytest.approx(ratio, abs=0.05)


def test_the_model_is_the_curve_that_was_counted() -> None:
    curves = [_curve(np.random.default_rng(8), name, lines) for name, lines in LINES.items()]
    scale = fit_energy_scale(curves)
    for which, curve in enumerate(curves):
        off = (curve.counts - scale.model_of(which, curve)(curve.dacs)) / np.ptp(curve.counts)
        assert np.sqrt(np.mean(off**2)) < 0.006
    sharper = scale.model_of(0, curves[0], width_dac=0.5)(curves[0].dacs)
    assert np.diff(sharper).min() < 1.5 * np.diff(scale.model_of(0, curves[0])(curves[0].dacs)).min()


def test_a_known_zero_is_taken_for_what_it_is_worth() -> None:
    curves = [_curve(np.random.default_rng(9), name, lines) for name, lines in LINES.items()]
    free = fit_energy_scale(curves)
    held = fit_energy_scale(curves, zero=(SCALE[0] + 2, 1e-3))
    hardly = fit_energy_scale(curves, zero=(SCALE[0] + 2, 1e3))
    assert held.offset_dac == pytest.approx(SCALE[0] + 2, abs=0.05)
    assert hardly.offset_dac == pytest.approx(free.offset_dac, abs=0.05)


def test_an_edge_shows_where_charge_is_hardly_shared_and_not_where_all_of_it_is() -> None:
    rng = np.random.default_rng(10)
    sharp = _curve(rng, "Am-241", LINES["Am-241"])
    shared = _curve(rng, "Am-241", LINES["Am-241"], spread=0.4)
    assert edge_contrast(sharp)[0] > 0.5
    assert has_edge(sharp)
    assert not has_edge(shared)


def test_noise_blurs_counts_but_loses_none() -> None:
    form = FORMS["Gd"]
    far_below, half = np.array([1.0]), np.array([form.charges_kev[-1] + 30])
    assert expected_counts(far_below, form, 1.0, 2.0)[0] == pytest.approx(form.at(1.0).sum(), rel=1e-9)
    assert expected_counts(half, form, 1.0, 2.0)[0] == pytest.approx(0, abs=1e-9)
    steps = np.linspace(10, 60, 2001)
    area = [np.trapezoid(expected_counts(steps, form, 1.0, sigma), steps) for sigma in (0.2, 2.0)]
    assert area[0] == pytest.approx(area[1], rel=1e-4)


def test_the_stated_error_is_that_of_repeated_measurements() -> None:
    found, stated = [], []
    curves = [_curve(np.random.default_rng(3), name, lines) for name, lines in LINES.items()]
    for seed in range(8):
        rng = np.random.default_rng(seed)
        few = [replace(c, counts=rng.poisson(c.counts / 100).astype(float)) for c in curves]
        scale = fit_energy_scale(few, guess=(15.0, 4.5))
        found.append(_error_kev((scale.offset_dac, scale.gain_dac_per_kev), 50))
        stated.append(float(scale.sigma_kev(50)))
    assert abs(np.mean(found)) < 3 * np.mean(stated) / np.sqrt(8) + 0.02
    assert 0.3 < np.std(found) / np.mean(stated) < 1.5


def test_a_line_that_is_off_shows_in_the_residuals_and_is_not_hidden() -> None:
    rng = np.random.default_rng(2)
    curves = []
    for name, lines in LINES.items():
        by_kev = 0.6 if name == "Gd" else 0.0
        curves.append(_curve(rng, name, {energy + by_kev: w for energy, w in lines.items()}))
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
