"""Fewer nodes: the same transmission, slopes and fits, within what was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from firmware_iface.errors import WrongUsage
from reconstruction.spectral.compression import compress
from reconstruction.spectral.ray_fit import fit_rays
from tests.spectral_models import made_up_model, mory_model

HIGHEST = np.array([60.0, 0.5])


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_errors_stay_below_the_tolerance_everywhere(tolerance: float) -> None:
    model = made_up_model()
    small = compress(model, HIGHEST, tolerance=tolerance)
    paths = np.random.default_rng(5).uniform(-0.05, 1, (2, 2000)) * HIGHEST[:, None]
    error = np.abs(small.model.transmission(paths) / model.transmission(paths) - 1).max()
    slope_error = np.abs(small.model.slopes(paths) / model.slopes(paths) - 1).max()
    assert error < 3 * tolerance  # what it was measured at are other paths
    assert slope_error < 30 * tolerance
    assert len(small.model.energies_kev) < 0.5 * len(model.energies_kev)
    assert small.model.transmission(np.zeros((2, 1))) == pytest.approx(1)
    assert set(small.model.energies_kev) <= set(model.energies_kev)


def test_it_finds_few_exponentials_again() -> None:
    model = made_up_model()
    few = compress(model, HIGHEST, tolerance=1e-2).model
    again = compress(few, HIGHEST, tolerance=1e-9)
    assert len(again.model.energies_kev) <= len(few.energies_kev)
    assert again.transmission_error_relative < 1e-9


def test_fits_are_the_same() -> None:
    model, opened = made_up_model(), np.array([4e4, 5e4, 3e4, 2e4])
    truth = np.broadcast_to(np.array([[30.0], [0.1]]), (2, 500))
    counts = np.random.default_rng(6).poisson(opened[:, None] * model.transmission(truth))
    whole, small = (fit_rays(counts, opened, m) for m in (model, compress(model, HIGHEST).model))
    assert np.abs((whole.paths - small.paths) / whole.sigma).max() < 0.05
    assert small.information == pytest.approx(whole.information, rel=5e-3)


def test_what_lets_nothing_through_is_refused() -> None:
    with pytest.raises(WrongUsage, match="nothing comes through"):
        compress(made_up_model(), [1e5, 1.0], [5e4, 0.5])
    with pytest.raises(WrongUsage, match="rising"):
        compress(made_up_model(), [1.0, 1.0], [2.0, 0.0])


def test_the_published_scanner(test_data: Path) -> None:
    model, _ = mory_model(test_data)
    small = compress(model, [0.3, 0.3, 220.0])
    assert len(small.model.energies_kev) <= 20  # of 101
    assert small.transmission_error_relative < 1e-4
