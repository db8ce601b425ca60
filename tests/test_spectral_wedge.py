"""What a step wedge teaches: paths by polynomials, near the Cramer-Rao bound, and a model without a response."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.attenuation import material
from calibration.thickness import StepWedge
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction.spectral.model import SpectralModel
from reconstruction.spectral.ray_fit import fit_rays
from reconstruction.spectral.wedge import (
    SignalPolynomial,
    Wedge,
    fit_a_table,
    fit_polynomial,
    held_out_errors,
    model_of_plates,
    signals,
)
from tests.spectral_models import made_up_model

OPEN = np.array([4e4, 5e4, 3e4, 2e4])
HIGHEST = np.array([60.0, 0.4])


def made_up_wedge(n_exposures: float = 1e4) -> StepWedge:
    """Return plates of PMMA and aluminium as measured with that many frames."""
    layers_mm = np.array([[p, a] for p in (0, 10, 25, 40) for a in (0, 1, 3, 6)][1:], dtype=float)
    model = made_up_model(("pmma", "aluminum"))
    paths = (layers_mm * [material("pmma").density_g_cm3, material("aluminum").density_g_cm3]).T
    rng = np.random.default_rng(1)
    expected = OPEN * model.transmission(paths).T * n_exposures
    return StepWedge(
        plates=tuple(f"plate {k}" for k in range(len(layers_mm))),
        materials=("pmma", "aluminum"),
        layers_mm=layers_mm,
        thresholds_kev=np.array([20.0, 33.0, 45.0, 60.0]),
        open_beam=rng.poisson(OPEN * n_exposures) / n_exposures,
        counts=rng.poisson(expected) / n_exposures,
        open_beam_sigma_relative=(OPEN * n_exposures) ** -0.5,
        sigma_relative=expected**-0.5,
    )


def polynomials() -> list[SignalPolynomial]:
    wedge = Wedge.of_model(made_up_model(), HIGHEST, OPEN, n_steps=9)
    return [fit_polynomial(wedge), fit_a_table(wedge)]


@pytest.mark.parametrize("which", [0, 1], ids=["polynomial", "A-table"])
@pytest.mark.parametrize("truth", [(30.0, 0.1), (50.0, 0.3)])
def test_noise_is_near_the_cramer_rao_bound(which: int, truth: tuple[float, float]) -> None:
    model, paths = made_up_model(), np.asarray(truth)
    n = 20_000
    counts = np.random.default_rng(2).poisson(np.broadcast_to((OPEN * model.transmission(paths))[:, None], (4, n)))
    found = polynomials()[which].paths(signals(counts, OPEN))
    bound = np.sqrt(np.diag(np.linalg.inv(model.fisher(paths, OPEN))))
    assert ((found.std(axis=1) / bound > 0.98) & (found.std(axis=1) / bound < 1.04)).all()
    assert np.abs(found.mean(axis=1) - paths) / bound == pytest.approx(0, abs=0.06)


def test_the_open_beam_reads_nothing() -> None:
    for found in polynomials():
        assert found.paths(np.zeros((4, 3, 2))) == pytest.approx(np.zeros((2, 3, 2)))


def test_two_bins_and_two_materials_leave_nothing_free() -> None:
    model = made_up_model(edges_kev=(20, 50))
    wedge = Wedge.of_model(model, HIGHEST, np.array([1e9, 1e9]), n_steps=9)
    rough, fine = (fit_polynomial(wedge, order) for order in (2, 4))
    assert (fine.residual < 0.2 * rough.residual).all()
    assert (fine.residual < 0.002 * HIGHEST).all()


def test_too_few_plates_are_refused() -> None:
    wedge = Wedge.of_plates(made_up_wedge())
    with pytest.raises(CalibrationMissing, match="plates"):
        fit_polynomial(wedge, 3)
    with pytest.raises(WrongUsage, match="1 or more"):
        fit_a_table(wedge, 0)
    with pytest.raises(CalibrationMissing, match="unknowns"):
        model_of_plates(made_up_wedge(), 6)


def test_signals_take_away_the_background_and_stand_no_counts() -> None:
    counts = np.array([[100.0, 0.0], [30.0, 5.0]])
    assert signals(counts, [200.0, 100.0], [0.0, 20.0]) == pytest.approx(
        -np.log([[0.5, 0.5 / 200], [0.1, 0.5 / 100]]), rel=1e-6
    )


def test_a_few_exponentials_foretell_plates_that_they_did_not_see() -> None:
    wedge = made_up_wedge()
    one, two, three = (np.sqrt(np.mean(held_out_errors(wedge, n)[0] ** 2)) for n in (1, 2, 3))  # of the widest bin
    assert two < 0.1 * one  # one exponential knows no hardening
    assert three < 0.2 * two
    assert three < 3e-4  # the counts' own noise is 1e-4
    model = model_of_plates(wedge, 3)
    inside = np.random.default_rng(3).uniform(0, 1, (2, 300)) * [[45.0], [15.0]]
    truth = made_up_model(("pmma", "aluminum")).transmission(inside)
    assert np.abs(model.transmission(inside) / truth - 1).max() < 6e-4
    assert np.isnan(model.energies_kev).all()


def test_exponentials_are_found_again() -> None:
    truth = SpectralModel(
        materials=("a",), bins=("1", "2"), weights=np.array([[0.3, 0.7, 0, 0], [0, 0, 0.6, 0.4]]),
        attenuation_per_mm_per_g_cm3=np.array([[0.3], [0.1], [0.15], [0.04]]), energies_kev=np.full(4, np.nan),
    )  # fmt: skip
    paths = np.linspace(1, 40, 12)[None]
    found = SpectralModel.fitted_to_wedge(paths, truth.transmission(paths), 1e-6, materials=("a",))
    assert found.weights == pytest.approx(truth.weights, abs=5e-3)
    assert found.attenuation_per_mm_per_g_cm3 == pytest.approx(truth.attenuation_per_mm_per_g_cm3, rel=1e-2)


def test_rays_are_fitted_without_a_response() -> None:
    hidden, model = made_up_model(("pmma", "aluminum")), model_of_plates(made_up_wedge())
    paths = np.array([30.0, 8.0])
    counts = np.random.default_rng(4).poisson(np.broadcast_to((OPEN * hidden.transmission(paths))[:, None], (4, 5000)))
    fit = fit_rays(counts, OPEN, model)
    bound = np.sqrt(np.diag(np.linalg.inv(hidden.fisher(paths, OPEN))))
    assert fit.paths.std(axis=1) / bound == pytest.approx(1, abs=0.05)
    assert np.abs(fit.paths.mean(axis=1) - paths) / bound == pytest.approx(0, abs=0.3)
    assert fit.chi_square.mean() == pytest.approx(2, abs=0.2)


def test_a_polynomial_starts_a_fit() -> None:
    model = made_up_model()
    counts = np.random.default_rng(5).poisson(np.full((4, 3000), (OPEN * model.transmission(HIGHEST / 2))[:, None]))
    start = polynomials()[1].paths(signals(counts, OPEN))
    begun, plain = fit_rays(counts, OPEN, model, start=start), fit_rays(counts, OPEN, model)
    assert begun.n_iterations.mean() < 0.7 * plain.n_iterations.mean()
    assert np.abs((begun.paths - plain.paths) / plain.sigma).max() < 0.05
